//! How many slots there are: what is wanted is compared with what is there after every move, one network at a time. The arithmetic is in
//! [`target`](super::target).

use std::sync::Arc;

use super::list::Place;
use super::state::{Rules, STATES, Slot, SlotState, State};
use super::target::{Demand, share};
use super::tenants::Had;
use super::types::{Denied, Moment, NetworkIndex, SlotIndex};

impl State {
    /// Follows new sizes at once: fills, or gives up vacant, then ready slots; leased ones go when they come back.
    ///
    /// # Errors
    /// [`Denied::BadSize`] when `ready` is above `max`, or `max` is 0; nothing changes then.
    pub fn resize(&mut self, now: Moment, ready: u32, max: u32) -> Result<(), Denied> {
        if ready > max || max == 0 {
            return Err(Denied::BadSize { ready, max });
        }
        let shrinks = ready < self.rules.ready;
        (self.rules.ready, self.rules.max) = (ready, max);
        self.grow_to(now, max);
        for network in 0..self.rules.networks {
            if shrinks {
                for _ in 0..self.demand(network).surplus() {
                    self.give_up_coldest(now, network, "the pool was made smaller");
                }
            }
            self.rebalance(now, network);
        }
        Ok(())
    }

    /// The same for the sizes of the configuration, new or at the start: what an operator asked for goes.
    ///
    /// # Errors
    /// As [`State::resize`].
    pub fn resize_configured(&mut self, now: Moment, ready: u32, max: u32) -> Result<(), Denied> {
        self.resize(now, ready, max)?;
        (self.configured, self.asked_sizes) = ((ready, max), None);
        self.record_doors();
        Ok(())
    }

    /// The same for sizes that an operator asks for, which stay over a restart unless the configuration has other ones then.
    ///
    /// # Errors
    /// As [`State::resize`].
    pub fn resize_asked(&mut self, now: Moment, ready: u32, max: u32) -> Result<(), Denied> {
        self.resize(now, ready, max)?;
        self.asked_sizes = Some((ready, max));
        self.record_doors();
        Ok(())
    }

    /// Fills nothing, whatever sizes are asked for, before [`State::open`]: what a predecessor left is looked for by what makes a new buddy look
    /// like one of those.
    pub fn hold_back(&mut self) {
        self.opened = false;
    }

    /// Whether it fills, and all that a predecessor left is known.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.opened && self.unproven == 0
    }

    /// Begins to fill, with the sizes that hold. Answers them.
    ///
    /// # Errors
    /// As [`State::resize`].
    pub fn open(&mut self, now: Moment) -> Result<(u32, u32), Denied> {
        let (ready, max) = self.asked_sizes.unwrap_or(self.configured);
        self.opened = true;
        self.resize(now, ready, max)?;
        Ok((ready, max))
    }

    /// New rules but for the sizes and the number of networks, which stay as they are.
    pub fn set_rules(&mut self, now: Moment, rules: Rules) {
        self.rules = Rules { networks: self.rules.networks, ready: self.rules.ready, max: self.rules.max, ..rules };
        self.forget(now);
        self.serve_waiters(now);
        for network in 0..self.rules.networks {
            self.rebalance(now, network);
        }
    }

    pub(super) fn grow_to(&mut self, now: Moment, max: u32) {
        for slot in self.slot_count()..max {
            let network = NetworkIndex::try_from(slot % self.rules.networks).unwrap_or(0);
            self.slots.push(Slot {
                state: SlotState::Idle,
                since: now,
                unproven: false,
                place: Place::default(),
                network,
                generation: 0,
                use_number: 0,
                use_since: Moment::ZERO,
                look_again: false,
                had: Had::default(),
                unbounded: false,
                namespace: None,
                image: None,
                lease: None,
                doom: None,
                failures: 0,
                died_young: false,
                last_error: None,
                occupants: Arc::new([]),
            });
            let network = &mut self.networks[network as usize];
            network.counts[SlotState::Idle as usize] += 1;
            network.idle.push_back(&mut self.places, slot, &mut self.slots[slot as usize]);
        }
    }

    /// Gives a vacant slot to another network: what a predecessor left there is attached to that one.
    pub(super) fn move_to_network(&mut self, slot: SlotIndex, to: NetworkIndex) {
        let place = &self.slots[slot as usize];
        assert!(place.state == SlotState::Idle, "slot {slot} is not vacant");
        let from = place.network;
        if from == to {
            return;
        }
        let idle = SlotState::Idle as usize;
        let network = &mut self.networks[usize::from(from)];
        network.idle.remove(slot, &mut self.slots);
        network.counts[idle] -= 1;
        self.slots[slot as usize].network = to;
        let network = &mut self.networks[usize::from(to)];
        network.idle.push_back(&mut self.places, slot, &mut self.slots[slot as usize]);
        network.counts[idle] += 1;
    }

    pub(super) fn demand(&self, network: u32) -> Demand {
        let count = |state| self.networks[network as usize].count(state);
        let networks = self.rules.networks;
        Demand {
            ready_target: if self.stopping {
                0
            } else {
                share(self.rules.ready, network, networks) + self.networks[network as usize].ahead
            },
            max: if self.stopping { 0 } else { share(self.rules.max, network, networks) },
            ready: count(SlotState::Ready),
            // One that is being adopted is on its way to ready as well.
            filling: count(SlotState::Filling) + count(SlotState::Adopting),
            existing: STATES.iter().filter(|state| state.is_settled()).map(|state| count(*state)).sum(),
            retiring: count(SlotState::Retiring),
            waiting: self.waiters.of_network(network),
        }
    }

    /// For how many more callers this network has something ready, on its way, or still to be filled.
    fn room(&self, network: u32) -> u32 {
        let demand = self.demand(network);
        let more = demand.max.saturating_sub(demand.existing + demand.filling);
        let idle = self.networks[network as usize].count(SlotState::Idle);
        (demand.ready + demand.filling + more.min(idle)).saturating_sub(demand.waiting)
    }

    /// Of the callers that take any network, those that this one counts as its own: an even share, but none that it has no room for; the
    /// first networks with room take those. Linear in the networks, and only while such a caller waits.
    pub(super) fn any_share(&self, network: u32) -> u32 {
        let any = self.waiters.of_any();
        if any == 0 {
            return 0;
        }
        let even = |network| share(any, network, self.rules.networks).min(self.room(network));
        let mut left = any - (0..self.rules.networks).map(even).sum::<u32>();
        for other in 0..network {
            left -= left.min(self.room(other) - even(other));
        }
        even(network) + left.min(self.room(network) - even(network))
    }

    /// Somebody began or ceased to wait, or a network's room has changed while somebody waits who takes any.
    pub(super) fn rebalance_for_waiters(&mut self, now: Moment) {
        for network in 0..self.rules.networks {
            self.rebalance_one(now, network);
        }
    }

    /// Makes what is there follow what is wanted, after something changed in one network. Cheap when nothing is to do.
    pub(super) fn rebalance(&mut self, now: Moment, network: u32) {
        if self.waiters.of_any() == 0 {
            self.rebalance_one(now, network);
        } else {
            self.rebalance_for_waiters(now);
        }
    }

    fn rebalance_one(&mut self, now: Moment, network: u32) {
        if !self.opened || self.keeping {
            return;
        }
        let demand = self.demand(network);
        let with_any = Demand { waiting: demand.waiting + self.any_share(network), ..demand };
        for _ in 0..with_any.to_fill() {
            let Some(slot) = self.networks[network as usize].idle.front() else { break };
            self.slots[slot as usize].generation = self.next_generation;
            self.slots[slot as usize].use_number = 1;
            self.next_generation += 1;
            self.set_state(now, slot, SlotState::Filling);
        }
        if self.demand(network).excess() > 0 {
            self.give_up_excess(now, network);
        }
        let place = &mut self.networks[network as usize];
        let surplus = place.count(SlotState::Ready) > share(self.rules.ready, network, self.rules.networks);
        place.surplus_since = surplus.then(|| place.surplus_since.unwrap_or(now));
    }

    /// Vacant ones first, then ready ones. What is leased goes when it comes back ([`State::vacated`] looks at the excess).
    fn give_up_excess(&mut self, now: Moment, network: u32) {
        let any_filling = self.networks[network as usize].count(SlotState::Filling) > 0;
        let filling: Vec<SlotIndex> = (0..if any_filling { self.slot_count() } else { 0 })
            .filter(|slot| {
                let place = &self.slots[*slot as usize];
                place.state == SlotState::Filling && u32::from(place.network) == network
            })
            .collect();
        for slot in filling.into_iter().rev().take(self.demand(network).excess() as usize) {
            self.set_state(now, slot, SlotState::Idle);
        }
        for _ in 0..self.demand(network).excess().min(self.networks[network as usize].count(SlotState::Ready)) {
            self.give_up_coldest(now, network, "the pool was made smaller");
        }
    }

    pub(super) fn give_up_coldest(&mut self, now: Moment, network: u32, why: &'static str) {
        if let Some(slot) = self.networks[network as usize].ready.back() {
            self.doom(slot, why);
            self.set_state(now, slot, SlotState::Retiring);
        }
    }
}
