//! How many slots a network should have: pure arithmetic.

/// What counts of one network's slots are needed to size it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Slots to keep ready.
    pub ready_target: u32,
    /// Buddies that may exist.
    pub max: u32,
    /// Ready now.
    pub ready: u32,
    /// On their way to ready.
    pub filling: u32,
    /// Buddies that exist: ready, leased, vacating, renewing, quarantined, retiring.
    pub existing: u32,
    /// Of these, on their way out.
    pub retiring: u32,
    /// Callers that wait and that this network could serve.
    pub waiting: u32,
}

impl Demand {
    /// How many more vacant slots to fill now: up to the ready target and one for each caller that waits, within `max`.
    #[must_use]
    pub fn to_fill(self) -> u32 {
        let wanted = self.ready_target.saturating_add(self.waiting).saturating_sub(self.ready.saturating_add(self.filling));
        wanted.min(self.max.saturating_sub(self.existing.saturating_add(self.filling)))
    }

    /// How many slots are there beyond `max`, not counting those on their way out.
    #[must_use]
    pub fn excess(self) -> u32 {
        (self.existing - self.retiring).saturating_add(self.filling).saturating_sub(self.max)
    }

    /// Ready slots that nobody needs.
    #[must_use]
    pub fn surplus(self) -> u32 {
        self.ready.saturating_sub(self.ready_target)
    }
}

/// The part of `total` that network `index` of `networks` gets: even, the first ones get the rest.
#[must_use]
pub fn share(total: u32, index: u32, networks: u32) -> u32 {
    total / networks + u32::from(index < total % networks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_add_up_and_differ_by_one_at_most(total in 0u32..10_000, networks in 1u32..50) {
            let shares: Vec<u32> = (0..networks).map(|i| share(total, i, networks)).collect();
            prop_assert_eq!(shares.iter().sum::<u32>(), total);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }

        #[test]
        fn filling_never_goes_beyond_max(ready_target in 0u32..100, max in 0u32..100, ready in 0u32..100, filling in 0u32..100, others in 0u32..100, waiting in 0u32..100) {
            let demand = Demand { ready_target, max, ready, filling, existing: ready + others, retiring: 0, waiting };
            let fill = demand.to_fill();
            prop_assert!(fill == 0 || demand.existing + filling + fill <= max);
            prop_assert!(fill == 0 || ready + filling + fill <= ready_target + waiting);
        }
    }
}
