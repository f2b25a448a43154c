//! What operators and the daemon say to the pool: cordon, recycle, stop, and what time brings.

use super::leases::LeaseIndex;
use super::state::{Effect, SlotState, State};
use super::types::{Cause, Denied, LeaseNote, Moment, PoolEvent, SlotIndex};

impl State {
    /// Hands out nothing more; waiters are refused. `draining` is for the words only.
    pub fn cordon(&mut self, draining: bool) {
        (self.cordoned, self.draining) = (true, draining);
        let denied = if draining { Denied::Draining } else { Denied::Cordoned };
        self.refuse_waiters(&denied);
        self.record_doors();
        self.effects.push(Effect::Event(PoolEvent::Cordon { cordoned: true, draining }));
    }

    /// Opens the doors again.
    pub fn uncordon(&mut self) {
        (self.cordoned, self.draining) = (false, false);
        self.record_doors();
        self.effects.push(Effect::Event(PoolEvent::Cordon { cordoned: false, draining: false }));
    }

    /// Retires the buddy of a slot: at once if it is ready, after its lease if it is leased; `force` makes that lease LOST now. Answers the state
    /// it was found in.
    ///
    /// # Errors
    /// [`Denied::UnknownSlot`].
    pub fn recycle(&mut self, now: Moment, slot: SlotIndex, force: bool) -> Result<SlotState, Denied> {
        let Some(place) = self.slots.get(slot as usize) else { return Err(Denied::UnknownSlot { slot }) };
        let (found, network) = (place.state, u32::from(place.network));
        match found {
            SlotState::Ready | SlotState::Renewing | SlotState::Cooling => {
                self.doom(slot, "recycled");
                self.set_state(now, slot, SlotState::Retiring);
            }
            SlotState::Leased => {
                self.doom(slot, "recycled");
                if force {
                    self.lose(now, slot, "recycled by an operator".into());
                    self.set_state(now, slot, SlotState::Vacating);
                }
            }
            SlotState::Vacating => self.doom(slot, "recycled"),
            SlotState::BackingOff => self.set_state(now, slot, SlotState::Idle),
            SlotState::Adopting => self.doom(slot, "recycled"),
            SlotState::Idle | SlotState::Filling | SlotState::Quarantined | SlotState::Retiring => {}
        }
        self.rebalance(now, network);
        Ok(found)
    }

    /// Whether the engine answers. While it does not, no `joiners` lease ends: nobody could tell whether somebody joined.
    pub fn set_engine_up(&mut self, up: bool) {
        self.engine_up = up;
        // Whoever came and went between two streams of events was told by neither.
        self.joiner_unknown(None);
    }

    /// The end: every lease ends, every buddy is to be retired once empty, nothing is filled.
    pub fn stop(&mut self, now: Moment) {
        self.stopping = true;
        self.refuse_waiters(&Denied::Stopping);
        let all: Vec<LeaseIndex> = self.leases.iter().map(|(index, _)| index).collect();
        for lease in all {
            self.end_lease(now, lease, Cause::Stopping);
        }
        for slot in 0..self.slot_count() {
            match self.slots[slot as usize].state {
                SlotState::Filling | SlotState::BackingOff => self.set_state(now, slot, SlotState::Idle),
                // What is renewed would only be waited for: for an address, say.
                SlotState::Ready | SlotState::Renewing | SlotState::Cooling => {
                    self.doom(slot, "the daemon stops");
                    self.set_state(now, slot, SlotState::Retiring);
                }
                SlotState::Vacating | SlotState::Adopting => self.doom(slot, "the daemon stops"),
                // Its state stays, but its nanny waits for a nudge, and nothing is to be waited for any more.
                SlotState::Idle => self.effects.push(Effect::Nudge(slot)),
                SlotState::Leased | SlotState::Quarantined | SlotState::Retiring => {}
            }
        }
        for network in 0..self.rules.networks {
            self.rebalance(now, network);
        }
    }

    /// The end of this daemon, and not of the pool: nothing more is handed out or filled, all else stays as it is for the next one. Releases are
    /// still taken.
    pub fn stop_and_keep(&mut self, now: Moment) {
        (self.stopping, self.keeping) = (true, true);
        self.refuse_waiters(&Denied::Stopping);
        for slot in 0..self.slot_count() {
            match self.slots[slot as usize].state {
                SlotState::Filling | SlotState::BackingOff => self.set_state(now, slot, SlotState::Idle),
                SlotState::Adopting
                | SlotState::Idle
                | SlotState::Ready
                | SlotState::Leased
                | SlotState::Vacating
                | SlotState::Renewing
                | SlotState::Cooling
                | SlotState::Quarantined
                | SlotState::Retiring => self.effects.push(Effect::Nudge(slot)),
            }
        }
    }

    /// What time has brought: leases that end, surplus slots that go, tokens that are forgotten.
    pub fn tick(&mut self, now: Moment) {
        if self.keeping {
            return;
        }
        self.fire_deadlines(now);
        self.forget(now);
        for network in 0..self.rules.networks {
            let place = &mut self.networks[network as usize];
            if let Some(since) = place.surplus_since
                && now >= since + self.rules.trim_after
            {
                place.surplus_since = Some(now);
                self.give_up_coldest(now, network, "more were ready than needed");
                self.rebalance(now, network);
            }
        }
    }

    /// When to call [`State::tick`] next, at the latest.
    #[must_use]
    pub fn next_tick(&self) -> Option<Moment> {
        if self.keeping {
            return None;
        }
        let trim = self.networks.iter().filter_map(|n| n.surplus_since).min().map(|since| since + self.rules.trim_after);
        [self.deadlines.next(), trim, self.ended.next()].into_iter().flatten().min()
    }

    pub(super) fn note(&self, index: LeaseIndex, cause: &str) -> LeaseNote {
        let lease = &self.leases[index];
        LeaseNote {
            key: lease.key,
            uid: lease.request.uid,
            owner: lease.request.owner.clone(),
            namespace_id: lease.namespace.namespace_id.clone(),
            cause: cause.to_owned(),
        }
    }

    /// The generation that the next buddy gets.
    pub(super) fn upcoming_generation(&self) -> u64 {
        self.next_generation
    }

    /// Detached buddies.
    #[must_use]
    pub fn detached(&self) -> u32 {
        self.detached
    }
}
