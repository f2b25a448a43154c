//! What can be seen of the pool: counts and lists. All of it is read off the one structure, nothing is counted twice.

use std::sync::Arc;

use super::state::{SlotState, State};
use super::target::share;
use super::types::{Moment, Namespace, NetworkIndex, SlotIndex, UseKey, Words};

/// Slots by state, and what happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Without a buddy, within `max`.
    pub vacant: u32,
    /// Of these, being filled, or adopted from a predecessor.
    pub filling: u32,
    /// In the free list.
    pub ready: u32,
    /// Lent out.
    pub leased: u32,
    /// See the state's picture.
    pub vacating: u32,
    /// Buddies that move into a new network namespace.
    pub renewing: u32,
    /// Of those that are to, the ones that wait for an address.
    pub cooling: u32,
    /// See the state's picture.
    pub quarantined: u32,
    /// See the state's picture.
    pub retiring: u32,
    /// Buddies outside of the slots, with somebody inside.
    pub detached: u32,
    /// LOST leases that are not released yet.
    pub lost: u32,
    /// Slots to keep ready.
    pub target: u32,
    /// Buddies that may exist.
    pub max: u32,
    /// Callers that wait.
    pub waiting: u32,
    /// Allocations that found nothing ready.
    pub misses: u64,
    /// Leases made.
    pub allocations: u64,
}

/// One row of the list of slots.
#[derive(Clone, Debug)]
pub struct SlotView {
    /// Slot, generation, use.
    pub key: UseKey,
    /// Its state.
    pub state: SlotState,
    /// In that state since.
    pub since: Moment,
    /// Index of its network.
    pub network: NetworkIndex,
    /// What it hands out; none without a buddy.
    pub namespace: Option<Arc<Namespace>>,
    /// Whether it is leased.
    pub leased: bool,
    /// Why its buddy will not be used again.
    pub doom: Option<Words>,
    /// Preparations that failed in a row.
    pub failures: u32,
    /// The last thing that went wrong.
    pub last_error: Option<Words>,
    /// Who holds it in quarantine.
    pub occupants: Arc<[String]>,
    /// Somebody was in the present use, or may have been, who can do more than root with NET_ADMIN: see `engine::Container::bounded`.
    pub unbounded: bool,
}

impl State {
    /// Over all networks.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut total = Usage {
            detached: self.detached(),
            lost: self.lost,
            waiting: self.waiters.len(),
            misses: self.misses,
            allocations: self.allocations,
            ..Usage::default()
        };
        for network in 0..self.rules.networks {
            let part = self.network_usage(network);
            total.vacant += part.vacant;
            total.filling += part.filling;
            total.ready += part.ready;
            total.leased += part.leased;
            total.vacating += part.vacating;
            total.renewing += part.renewing;
            total.cooling += part.cooling;
            total.quarantined += part.quarantined;
            total.retiring += part.retiring;
            total.target += part.target;
            total.max += part.max;
        }
        total
    }

    /// Of one network; what belongs to no network alone is 0.
    #[must_use]
    pub fn network_usage(&self, network: u32) -> Usage {
        let count = |state| self.networks[network as usize].count(state);
        let demand = self.demand(network);
        let max = share(self.rules.max, network, self.rules.networks);
        Usage {
            vacant: max.saturating_sub(demand.existing),
            filling: demand.filling,
            ready: demand.ready,
            leased: count(SlotState::Leased),
            vacating: count(SlotState::Vacating),
            renewing: count(SlotState::Renewing),
            cooling: count(SlotState::Cooling),
            quarantined: count(SlotState::Quarantined),
            retiring: demand.retiring,
            target: share(self.rules.ready, network, self.rules.networks),
            max,
            waiting: demand.waiting + self.any_share(network),
            ..Usage::default()
        }
    }

    /// Slots are on their way, and fewer are ready than should be.
    #[must_use]
    pub fn is_short(&self) -> bool {
        (0..self.rules.networks).map(|network| self.network_usage(network)).any(|usage| usage.filling > 0 && usage.ready < usage.target)
    }

    /// One row per slot, by number: all up to `max`, and those beyond that still have a buddy.
    #[must_use]
    pub fn slot_views(&self) -> Vec<SlotView> {
        (0..self.slot_count())
            .filter(|slot| *slot < self.rules.max || self.slots[*slot as usize].state != SlotState::Idle)
            .map(|slot| self.slot_view(slot))
            .collect()
    }

    /// One slot.
    #[must_use]
    pub fn slot_view(&self, slot: SlotIndex) -> SlotView {
        let place = &self.slots[slot as usize];
        SlotView {
            key: self.key(slot),
            state: place.state,
            since: place.since,
            network: place.network,
            namespace: place.namespace.clone(),
            leased: place.lease.is_some(),
            doom: place.doom.clone(),
            failures: place.failures,
            last_error: place.last_error.clone(),
            occupants: Arc::clone(&place.occupants),
            unbounded: place.unbounded,
        }
    }

    /// `(ready, max)` as they are now.
    #[must_use]
    pub fn sizes(&self) -> (u32, u32) {
        (self.rules.ready, self.rules.max)
    }

    /// `(cordoned, draining)`.
    #[must_use]
    pub fn doors(&self) -> (bool, bool) {
        (self.cordoned, self.draining)
    }

    /// Messages about a use that was not the slot's present any more.
    #[must_use]
    pub fn stale(&self) -> u64 {
        self.stale
    }
}
