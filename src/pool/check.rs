//! A self-check for tests and simulations: recomputes from the slots and leases all that the state keeps twice for speed, and panics where
//! the two disagree. Linear in the pool's size, so not for the daemon's own use.

use std::collections::BTreeSet;

use super::leases::Known;
use super::list::{List, Place};
use super::state::{STATES, SlotState, State};
use super::target::share;
use super::types::{ConnectionId, Lifetime, SlotIndex};
use crate::random::HashMap;

impl State {
    /// See the module.
    ///
    /// # Panics
    /// When anything disagrees, with what and where.
    #[doc(hidden)]
    pub fn check(&self) {
        self.check_counts_and_lists();
        self.check_slots();
        self.check_leases();
        self.check_requests();
        self.check_waiters();
    }

    /// I1.
    fn check_counts_and_lists(&self) {
        let mut linked = 0;
        for (number, network) in self.networks.iter().enumerate() {
            let here = |state| {
                let fits = |slot: &SlotIndex| {
                    let place = &self.slots[*slot as usize];
                    usize::from(place.network) == number && place.state == state
                };
                (0..self.slot_count()).filter(fits).collect::<BTreeSet<_>>()
            };
            for state in STATES {
                assert_eq!(here(state).len(), network.count(state) as usize, "count of {state:?} on network {number}");
            }
            for (list, state) in [(&network.ready, SlotState::Ready), (&network.idle, SlotState::Idle)] {
                assert_eq!(self.walk(list), here(state), "the list of {state:?} on network {number}");
                linked += network.count(state) as usize;
            }
            let target = share(self.rules.ready, u32::try_from(number).unwrap_or(0), self.rules.networks);
            let surplus = network.count(SlotState::Ready) > target;
            assert_eq!(network.surplus_since.is_some(), surplus, "surplus of network {number}");
        }
        assert_eq!(self.slots.iter().filter(|slot| slot.place != Place::default()).count(), linked, "slots in some list");
    }

    fn walk(&self, list: &List) -> BTreeSet<SlotIndex> {
        let there = |(slot, place): &(SlotIndex, Place)| self.slots[*slot as usize].place == *place;
        let all: Vec<SlotIndex> = list.places().filter(there).map(|(slot, _)| slot).collect();
        assert_eq!(all.first().copied(), list.front(), "the list's front");
        let set: BTreeSet<SlotIndex> = all.iter().copied().collect();
        assert_eq!(all.len(), set.len(), "a slot is twice in a list");
        assert_eq!(all.last().copied(), list.back(), "the list's back");
        set
    }

    fn check_slots(&self) {
        let mut generations = BTreeSet::new();
        let mut buddies = 0;
        for slot in 0..self.slot_count() {
            let place = &self.slots[slot as usize];
            let with_buddy = place.state.has_buddy();
            assert_eq!(place.namespace.is_some(), with_buddy, "slot {slot}: {:?} and a namespace", place.state);
            assert_eq!(place.lease.is_some(), place.state == SlotState::Leased, "slot {slot}: {:?} and a lease", place.state);
            assert!(with_buddy || !place.unproven, "slot {slot}: {:?} and unproven", place.state);
            assert!(place.state != SlotState::Adopting || place.unproven, "slot {slot}: Adopting and proven");
            assert!(place.state != SlotState::Ready || !place.unproven, "slot {slot}: Ready and unproven");
            assert!(place.generation < self.upcoming_generation(), "slot {slot}: a generation from the future");
            if let Some(namespace) = &place.namespace {
                buddies += 1;
                assert!(generations.insert(place.generation), "slot {slot}: its generation is another one's too");
                assert_eq!(self.by_container.get(&namespace.container_id), Some(&slot), "slot {slot} by its container");
            }
            if place.state == SlotState::Ready || !with_buddy {
                assert_eq!(place.doom, None, "slot {slot}: {:?} and doomed", place.state);
                assert!(place.occupants.is_empty(), "slot {slot}: {:?} and occupied", place.state);
            }
            let moving = matches!(place.state, SlotState::Ready | SlotState::Leased | SlotState::Filling | SlotState::BackingOff);
            assert!(!(self.stopping && moving), "slot {slot}: {:?} after the stop", place.state);
        }
        assert_eq!(self.by_container.len(), buddies, "containers known");
        assert_eq!(self.unproven as usize, self.slots.iter().filter(|slot| slot.unproven).count(), "buddies unproven");
    }

    /// I2, and the tables beside the leases.
    fn check_leases(&self) {
        let (mut uids, mut connections) = (HashMap::default(), HashMap::<ConnectionId, BTreeSet<usize>>::default());
        let (mut lost, mut timed) = (0, 0);
        for (index, lease) in &self.leases {
            assert_eq!(self.by_token.get(&lease.token), Some(&index), "lease {} by its token", lease.key);
            let slot = &self.slots[lease.key.slot as usize];
            if lease.lost.is_some() {
                lost += 1;
                assert_ne!(slot.lease, Some(index), "lease {} is lost and has its slot", lease.key);
            } else {
                assert_eq!((slot.lease, self.key(lease.key.slot)), (Some(index), lease.key), "lease {} and its slot", lease.key);
            }
            *uids.entry(lease.request.uid).or_insert(0) += 1;
            if let Lifetime::Connection(connection) = lease.request.lifetime {
                connections.entry(connection).or_default().insert(index);
            }
            if let Some((when, place)) = lease.deadline {
                timed += 1;
                assert_eq!(self.deadlines.at_place(place), Some(index), "deadline of lease {}", lease.key);
                assert!(place.fires_at() >= when, "deadline of lease {} fires early", lease.key);
            }
        }
        assert_eq!(self.by_token.len(), self.leases.len(), "tokens known");
        assert_eq!(self.lost, lost, "leases lost");
        assert_eq!(self.leases_per_uid, uids, "leases per uid");
        let known: HashMap<_, BTreeSet<usize>> =
            self.by_connection.iter().map(|(c, leases)| (*c, leases.iter().copied().collect())).collect();
        assert_eq!(known, connections, "leases per connection");
        assert_eq!(self.deadlines.len(), timed, "deadlines set");
    }

    /// Every request id belongs to a lease, a waiter or an ended lease, and each of these that has one is known by it.
    fn check_requests(&self) {
        for (key, known) in &self.by_request {
            let request = match known {
                Known::Lease(index) => self.leases.get(*index).map(|lease| &lease.request),
                Known::Waiting(waiter) => self.waiters.get(*waiter).map(|waiting| &waiting.request),
                Known::Ended(token) => self.ended.get(*token).and_then(|ended| ended.request.as_ref()),
            };
            assert_eq!(request.and_then(|request| request.key()).as_ref(), Some(key), "{known:?}");
        }
        let leases = self.leases.iter().filter(|(_, lease)| lease.request.request_id.is_some()).count();
        let waiting = self.waiters.iter().filter(|(_, waiting)| waiting.request.request_id.is_some()).count();
        assert_eq!(self.by_request.len(), leases + waiting + self.ended.requests(), "request ids known");
        self.ended.check(self.rules.remember_max);
    }

    /// Nobody waits while a slot that could serve it is ready.
    fn check_waiters(&self) {
        assert!(self.waiters.len() == 0 || !(self.cordoned || self.stopping), "somebody waits at closed doors");
        for (waiter, waiting) in self.waiters.iter() {
            for (number, network) in self.networks.iter().enumerate() {
                let serves = waiting.request.network.is_none_or(|wanted| usize::from(wanted) == number);
                let mut fitting = network.ready.present(&self.slots).filter(|slot| self.fits(*slot, &waiting.request.tenant));
                assert!(!serves || fitting.next().is_none(), "{waiter:?} waits beside a ready slot on network {number}");
            }
        }
    }
}
