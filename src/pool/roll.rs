//! Rolling: buddies that were made from another image than the present one are replaced, so that at no time fewer are ready than should be.
//!
//! Of each network one more is made ready than should be, then an old one goes, and so on; what is leased, or on its way back from a lease, goes when
//! its use is over. Where `max` has no room for one more, and nothing is leased that would come back and make some, an old one has to go first: there,
//! and only there, one is missing for as long as a preparation takes. What cannot be made from the new image (it may be broken) leaves the old ones
//! where they are.
//!
//! Pure like all of the state: who knows the image says so ([`State::made_of`]), and asks for the next step when something has changed.

use std::sync::Arc;

use super::state::{Slot, SlotState, State};
use super::target::share;
use super::types::{Moment, NetworkIndex, SlotIndex};

const WHY: &str = "the placeholder image has changed";

/// What there is to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Not to be used again after their present use.
    last_use: Vec<SlotIndex>,
    /// To go now.
    retire: Vec<SlotIndex>,
    /// So many more than the target are to be ready.
    ahead: Vec<(NetworkIndex, u32)>,
}

impl Step {
    /// Nothing, before something else has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl State {
    /// The slot's buddy was made from this image; empty: nobody knows. To be said before it is registered or proven.
    pub fn made_of(&mut self, slot: SlotIndex, image: &str) {
        self.slots[slot as usize].image = Some(image).filter(|image| !image.is_empty()).map(Into::into);
    }

    /// Whether a buddy is there that was made from it.
    #[must_use]
    pub fn has_buddy_of(&self, image: &str) -> bool {
        self.slots.iter().any(|slot| slot.state.has_buddy() && slot.image.as_deref() == Some(image))
    }

    /// Some are ready that were made from another one.
    #[must_use]
    pub fn is_rolling(&self, image: &str) -> bool {
        !self.stopping && self.slots.iter().any(|slot| slot.state == SlotState::Ready && is_old(slot, image))
    }

    /// What to do next so that all buddies come to be made from `image`.
    #[must_use]
    pub fn next_step(&self, image: &str) -> Step {
        let mut step = Step::default();
        if self.stopping || !self.opened {
            return step;
        }
        let old = (0..self.slot_count()).filter(|slot| is_old(&self.slots[*slot as usize], image));
        step.last_use = old.filter(|slot| self.goes_after_its_use(*slot)).collect();
        for (network, place) in self.networks.iter().enumerate() {
            let network = NetworkIndex::try_from(network).unwrap_or(NetworkIndex::MAX);
            let ready: Vec<SlotIndex> =
                place.ready.present(&self.slots).filter(|slot| is_old(&self.slots[*slot as usize], image)).collect();
            // The coldest first: those before them are the next to be handed out.
            let retire = ready.iter().rev().take(self.may_go(network) as usize);
            let ahead = u32::from(ready.len() > retire.len());
            step.retire.extend(retire);
            if place.ahead != ahead {
                step.ahead.push((network, ahead));
            }
        }
        step
    }

    /// How many ready ones of a network may go at once.
    fn may_go(&self, network: NetworkIndex) -> u32 {
        let network = u32::from(network);
        let (demand, target) = (self.demand(network), share(self.rules.ready, network, self.rules.networks));
        let spare = demand.ready.saturating_sub(target);
        let is_full = demand.existing + demand.filling >= demand.max && demand.existing == demand.ready && demand.filling == 0;
        if spare == 0 && is_full && demand.ready >= target { 1 } else { spare }
    }

    fn goes_after_its_use(&self, slot: SlotIndex) -> bool {
        let place = &self.slots[slot as usize];
        match place.state {
            SlotState::Leased | SlotState::Vacating | SlotState::Renewing | SlotState::Cooling => place.doom.is_none(),
            SlotState::Adopting
            | SlotState::Idle
            | SlotState::Filling
            | SlotState::BackingOff
            | SlotState::Ready
            | SlotState::Quarantined
            | SlotState::Retiring => false,
        }
    }

    /// Does it: [`State::next_step`] of this very moment. Answers the slots that go now.
    pub fn roll(&mut self, now: Moment, image: &str) -> Arc<[SlotIndex]> {
        let Step { last_use, retire, ahead } = self.next_step(image);
        for slot in last_use {
            self.doom(slot, WHY);
        }
        for slot in &retire {
            self.doom(*slot, WHY);
            self.set_state(now, *slot, SlotState::Retiring);
        }
        for (network, ahead) in ahead {
            self.networks[usize::from(network)].ahead = ahead;
        }
        for network in 0..self.rules.networks {
            self.rebalance(now, network);
        }
        retire.into()
    }
}

fn is_old(slot: &Slot, image: &str) -> bool {
    slot.state.has_buddy() && slot.image.as_deref().is_some_and(|own| own != image)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::pool::state::{Afterwards, Order, Rules};
    use crate::pool::{Lifetime, Namespace, Request, Token};

    const NOW: Moment = Duration::from_secs(1);

    fn state(networks: u32, ready: u32, max: u32) -> State {
        let rules = Rules {
            networks,
            ready,
            max,
            afterwards: vec![Afterwards::Reuse; networks as usize].into(),
            keep_tenants: false,
            linger: Duration::ZERO,
            max_detached: 0,
            max_waiting: 0,
            quota_per_uid: None,
            remember: Duration::ZERO,
            remember_max: 0,
            trim_after: Duration::from_secs(30),
        };
        let mut state = State::new(rules, 1);
        state.resize(NOW, ready, max).unwrap();
        state
    }

    fn namespace(slot: SlotIndex, generation: u64) -> Arc<Namespace> {
        Arc::new(Namespace {
            namespace_id: format!("{slot}-{generation}"),
            network_mode: String::new(),
            host_config: String::new(),
            container_id: format!("{slot}-{generation}").into(),
            tell_container_id: false,
            addresses: Vec::new(),
            resolv_conf: String::new(),
            mtu: 0,
            pid: 0,
            started_at: String::new(),
            folder: String::new(),
        })
    }

    /// One slot's nanny does what it is to do. `false`: nothing.
    fn act(state: &mut State, slot: SlotIndex, image: &str) -> bool {
        match state.order(slot) {
            Order::Fill { generation } => {
                state.made_of(slot, image);
                state.registered(NOW, slot, generation, namespace(slot, generation));
            }
            Order::Retire(key) => state.removed(NOW, key),
            Order::Vacate(key) => state.vacated(NOW, key, namespace(slot, key.generation)),
            Order::Rest | Order::Adopt(_) | Order::BackOff | Order::Tend(_) | Order::Renew(_) | Order::Await(_) => return false,
        }
        state.take_effects();
        true
    }

    fn settle(state: &mut State, image: &str) {
        while (0..state.slot_count()).any(|slot| act(state, slot, image)) {}
    }

    fn allocate(state: &mut State, number: u8) -> bool {
        let request = Request {
            uid: 0,
            owner: String::new(),
            request_id: None,
            tenant: String::new(),
            network: None,
            lifetime: Lifetime::Ttl(Duration::from_secs(1000)),
            labels: std::collections::BTreeMap::new(),
        };
        let done = state.allocate(NOW, Arc::new(request), Token([number; 16]), false).is_ok();
        state.take_effects();
        done
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        /// Whatever the sizes, and in whatever order nannies act: all come to be of the new image, no network is ever below its target that has room for
        /// one more, and none is more than one below that has not. What is leased meanwhile keeps its namespace.
        #[test]
        fn all_come_to_the_new_image_and_none_is_missed(
            networks in 1u32..4, ready in 0u32..9, room in 0u32..5, leased in 0u8..3, order in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let max = (ready + room).max(1);
            let mut state = state(networks, ready, max);
            settle(&mut state, "a");
            let held = (0..leased).filter(|number| allocate(&mut state, *number)).count();
            settle(&mut state, "a");
            let before: Vec<_> = (0..networks).map(|network| state.network_usage(network)).collect();
            for pick in order {
                if !state.next_step("b").is_empty() {
                    state.roll(NOW, "b");
                    state.take_effects();
                }
                state.check();
                let slot = pick.index(state.slot_count() as usize);
                act(&mut state, SlotIndex::try_from(slot).unwrap(), "b");
                for (network, before) in (0..networks).zip(&before) {
                    let now = state.network_usage(network);
                    let least = before.ready.min(before.target) - u32::from(before.max == before.target && before.leased == 0 && before.ready > 0);
                    prop_assert!(now.ready >= least, "network {}: {} ready, {} before, of {}", network, now.ready, before.ready, before.target);
                    prop_assert!(now.ready + now.leased + now.retiring <= now.max.max(before.ready + before.leased));
                }
            }
            loop {
                state.roll(NOW, "b");
                settle(&mut state, "b");
                if state.next_step("b").is_empty() {
                    break;
                }
            }
            state.check();
            let old = state.slots.iter().filter(|slot| is_old(slot, "b")).collect::<Vec<_>>();
            let full = |network: u32| {
                let usage = state.network_usage(network);
                usage.leased > 0 && usage.vacant == 0
            };
            // Those that are leased, and those that their network cannot spare before these come back.
            prop_assert!(old.iter().all(|slot| slot.state == SlotState::Leased || full(u32::from(slot.network))), "{:?}", old);
            prop_assert_eq!(state.slots.iter().filter(|slot| slot.state == SlotState::Leased).count(), held);
            for number in 0..leased {
                let _ = state.release(NOW, Token([number; 16]), false);
                state.take_effects();
            }
            for _ in 0..100 {
                settle(&mut state, "b");
                state.roll(NOW, "b");
            }
            prop_assert!(!state.slots.iter().any(|slot| is_old(slot, "b")));
            prop_assert!(state.next_step("b").is_empty());
        }
    }

    #[test]
    fn nothing_is_rolled_by_a_daemon_that_stops_or_has_not_begun() {
        let mut state = state(1, 2, 4);
        settle(&mut state, "a");
        assert!(state.is_rolling("b") && state.has_buddy_of("a") && !state.has_buddy_of("b"));
        assert!(state.next_step("a").is_empty() && !state.is_rolling("a"));
        state.hold_back();
        assert!(state.next_step("b").is_empty());
        state.open(NOW).unwrap();
        assert!(!state.next_step("b").is_empty());
        state.stop(NOW);
        assert!(state.next_step("b").is_empty() && !state.is_rolling("b"));
    }
}
