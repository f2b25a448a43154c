//! The leases' side of the state machine: allocate, wait, release, renew, and every way a lease ends.

use std::sync::Arc;
use std::time::Duration;

use super::deadlines::Place;
use super::ended::EndedLease;
use super::state::{Effect, SlotState, State};
use super::types::{
    Cause, ConnectionId, Denied, LeaseView, Lifetime, Moment, Namespace, NetworkIndex, PoolEvent, Request, SlotIndex, Token, UseKey, Words,
};
use super::waiters::{WaiterId, Waiting};

/// Index of a lease; comes back for another lease later, so it goes with its token wherever it could be stale.
pub type LeaseIndex = usize;

/// One hand-out.
#[derive(Debug)]
pub(super) struct Lease {
    pub token: Token,
    pub key: UseKey,
    pub namespace: Arc<Namespace>,
    pub network: NetworkIndex,
    pub request: Arc<Request>,
    pub allocated_at: Moment,
    pub deadline: Option<(Moment, Place)>,
    /// Why it is LOST; its slot has gone its own way then.
    pub lost: Option<Words>,
    /// Containers that joined and have not been removed.
    pub joiners: Vec<Joiner>,
    /// A container joined at some time.
    pub joined: bool,
    /// Somebody was told of it, so it stands until it ends.
    pub delivered: bool,
}

/// A container that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joiner {
    pub id: Arc<str>,
    /// Running, paused or restarting, as far as the events tell.
    pub live: bool,
}

/// What is known of a request id.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    Lease(LeaseIndex),
    Waiting(WaiterId),
    Ended(Token),
}

/// How an Allocate came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocated {
    /// A new lease.
    Granted(LeaseIndex),
    /// The lease that an earlier call with this request id got.
    Repeated(LeaseIndex),
    /// Nothing yet: [`Effect::Granted`] or [`Effect::Refused`] will say. The waiter of an earlier call with this request id, if there is one.
    Waiting(WaiterId),
}

/// How a Release came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is over.
    Returned,
    /// It is over, and a container seems to be in it still.
    JoinerStillThere,
    /// A repeated release.
    AlreadyReleased,
    /// It had ended otherwise.
    AlreadyEnded(Cause),
}

/// A lease of a holder.
#[derive(Clone, Debug)]
pub struct Held {
    /// For [`State::delivered`].
    pub index: LeaseIndex,
    /// Somebody was told of it, so it is recorded.
    pub told: bool,
    /// What there is to tell.
    pub lease: LeaseView,
}

impl State {
    /// Takes a slot, or a place in the queue if `may_wait`. `token` is used only when a lease is made.
    ///
    /// # Errors
    /// [`Denied`], with a reason for each way that the table of refusals knows.
    pub fn allocate(&mut self, now: Moment, request: impl Into<Arc<Request>>, token: Token, may_wait: bool) -> Result<Allocated, Denied> {
        let request = request.into();
        if let Some(known) = request.key().and_then(|key| self.by_request.get(&key).copied()) {
            return self.repeat(&request, known);
        }
        self.may_have_one(&request)?;
        if let Some(slot) = self.ready_slot(request.network, &request.tenant) {
            // With a ledger nobody is told before it is recorded.
            let told = !self.is_recorded();
            return Ok(Allocated::Granted(self.grant(now, slot, request, token, told)));
        }
        self.misses += 1;
        if may_wait && self.waiters.len() >= self.rules.max_waiting {
            return Err(Denied::TooManyWaiting);
        }
        self.give_up_anothers(now, request.network);
        if !may_wait {
            return Err(self.nothing_ready());
        }
        let key = request.key();
        let waiter = self.waiters.push(Waiting { request, token });
        if let Some(key) = key {
            self.by_request.insert(key, Known::Waiting(waiter));
        }
        self.rebalance_for_waiters(now);
        Ok(Allocated::Waiting(waiter))
    }

    fn may_have_one(&self, request: &Request) -> Result<(), Denied> {
        if self.stopping {
            return Err(Denied::Stopping);
        }
        if self.cordoned {
            return Err(if self.draining { Denied::Draining } else { Denied::Cordoned });
        }
        match self.rules.quota_per_uid {
            Some(limit) if self.leases_per_uid.get(&request.uid).is_some_and(|has| *has >= limit) => {
                Err(Denied::Quota { uid: request.uid, limit })
            }
            _ => Ok(()),
        }
    }

    fn repeat(&mut self, request: &Request, known: Known) -> Result<Allocated, Denied> {
        let earlier = match known {
            Known::Lease(index) => Some(&self.leases[index].request),
            Known::Waiting(waiter) => self.waiters.get(waiter).map(|waiting| &waiting.request),
            Known::Ended(token) => self.ended.get(token).and_then(|ended| ended.request.as_ref()),
        };
        if earlier.is_none_or(|earlier| !earlier.same_as(request)) {
            return Err(Denied::RequestConflict);
        }
        match known {
            Known::Lease(index) => {
                if let Some(why) = &self.leases[index].lost {
                    return Err(Denied::LeaseLost { why: why.to_string() });
                }
                // As for the first call: with a ledger, this one may find that it cannot be recorded.
                self.leases[index].delivered |= !self.is_recorded();
                Ok(Allocated::Repeated(index))
            }
            Known::Waiting(waiter) => Ok(Allocated::Waiting(waiter)),
            Known::Ended(token) => Err(self.over(token)),
        }
    }

    /// What to say about a token that has no lease any more.
    fn over(&self, token: Token) -> Denied {
        match self.ended.get(token).map(|ended| &ended.cause) {
            None => Denied::UnknownToken,
            Some(Cause::Lost(why)) => Denied::LeaseLost { why: why.to_string() },
            Some(cause) => Denied::LeaseEnded { cause: cause.clone() },
        }
    }

    fn ready_slot(&self, network: Option<NetworkIndex>, tenant: &str) -> Option<SlotIndex> {
        if self.rules.keep_tenants {
            return self.fitting_slot(network, tenant);
        }
        match network {
            Some(network) => self.networks[usize::from(network)].ready.front(),
            // From where most are ready, so that a network that fills slowly is spared for those who name it.
            None => self.networks.iter().rev().max_by_key(|network| network.count(SlotState::Ready))?.ready.front(),
        }
    }

    /// Why a caller gets nothing now.
    #[must_use]
    pub fn nothing_ready(&self) -> Denied {
        if !self.engine_up && self.filled_once {
            Denied::EngineAway
        } else if !self.filled_once {
            Denied::Starting { retry_after: self.estimate() }
        } else {
            Denied::PoolEmpty { retry_after: self.estimate() }
        }
    }

    /// How long until a slot may be there for one more caller: what a preparation takes on average, times the callers ahead for each one under
    /// way. `None` when nothing is being filled: then nobody knows.
    #[must_use]
    pub fn estimate(&self) -> Option<Duration> {
        let filling: u32 = self.networks.iter().map(|network| network.count(SlotState::Filling)).sum();
        let rounds = (self.waiters.len() + 1).div_ceil(filling.max(1));
        (filling > 0 && self.engine_up).then(|| self.fill_time.unwrap_or(Duration::from_millis(250)) * rounds)
    }

    fn grant(&mut self, now: Moment, slot: SlotIndex, request: Arc<Request>, token: Token, delivered: bool) -> LeaseIndex {
        let key = self.key(slot);
        let place = &self.slots[slot as usize];
        let network = place.network;
        let namespace = Arc::clone(place.namespace.as_ref().expect("a ready slot has a namespace"));
        assert!(place.lease.is_none(), "I2: slot {slot} has a lease");
        let index = self.leases.insert(Lease {
            token,
            key,
            namespace,
            network,
            allocated_at: now,
            deadline: None,
            lost: None,
            joiners: Vec::new(),
            joined: false,
            delivered,
            request: Arc::clone(&request),
        });
        let place = &mut self.slots[slot as usize];
        place.lease = Some(index);
        place.had.has(&request.tenant);
        self.by_token.insert(token, index);
        if let Some(key) = request.key() {
            self.by_request.insert(key, Known::Lease(index));
        }
        *self.leases_per_uid.entry(request.uid).or_default() += 1;
        match request.lifetime {
            Lifetime::Joiners { join_by } => self.set_deadline(index, Some(now + join_by)),
            Lifetime::Ttl(ttl) => self.set_deadline(index, Some(now + ttl)),
            Lifetime::Connection(connection) => {
                self.by_connection.entry(connection).or_default().insert(index);
            }
        }
        self.allocations += 1;
        self.set_state(now, slot, SlotState::Leased);
        self.record_leased(index);
        self.rebalance(now, u32::from(network));
        index
    }

    /// Gives a slot that just became ready to whoever waits longest for one like it.
    pub(super) fn serve_waiter(&mut self, now: Moment, slot: SlotIndex) {
        let network = self.slots[slot as usize].network;
        while let Some(waiter) = self.waiters.first_for(network, |waiting| self.fits(slot, &waiting.request.tenant)) {
            let Some(waiting) = self.waiters.remove(waiter) else { return };
            if let Err(denied) = self.may_have_one(&waiting.request) {
                self.drop_request(&waiting.request);
                self.effects.push(Effect::Refused(waiter, denied));
                continue;
            }
            let index = self.grant(now, slot, waiting.request, waiting.token, false);
            self.effects.push(Effect::Granted(waiter, index));
            return;
        }
        if self.keeps_tenants(network) && self.waiters.first_for(network, |_| true).is_some() {
            self.doom(slot, "its namespace is another tenant's");
            self.set_state(now, slot, SlotState::Retiring);
        }
    }

    /// The caller is gone, or its time is up. Answers why it got nothing; `None` if it is not waiting any more.
    pub fn cancel_wait(&mut self, now: Moment, waiter: WaiterId) -> Option<Denied> {
        let waiting = self.waiters.remove(waiter)?;
        self.drop_request(&waiting.request);
        // Who waits on may take the room that this one leaves.
        self.rebalance_for_waiters(now);
        Some(self.nothing_ready())
    }

    pub(super) fn refuse_waiters(&mut self, denied: &Denied) {
        while let Some(waiter) = self.waiters.first() {
            if let Some(waiting) = self.waiters.remove(waiter) {
                self.drop_request(&waiting.request);
                self.effects.push(Effect::Refused(waiter, denied.clone()));
            }
        }
    }

    fn drop_request(&mut self, request: &Request) {
        if let Some(key) = request.key() {
            self.by_request.remove(&key);
        }
    }

    /// The lease has gone out to its holder: from now on only an end ends it.
    pub fn delivered(&mut self, index: LeaseIndex, token: Token) -> bool {
        match self.leases.get_mut(index) {
            Some(lease) if lease.token == token => {
                lease.delivered = true;
                true
            }
            _ => false,
        }
    }

    /// Takes back a lease that no caller was told of: its slot is as ready as before, in the same use.
    pub fn undo(&mut self, now: Moment, index: LeaseIndex, token: Token) {
        if self.leases.get(index).is_none_or(|lease| lease.token != token || lease.delivered) {
            return;
        }
        let (slot, lost) = (self.leases[index].key.slot, self.leases[index].lost.is_some());
        let joined = self.leases[index].joined;
        let lease = self.take_lease(index);
        self.record_undone(lease.token);
        self.drop_request(&lease.request);
        if lost {
            return;
        }
        let network = u32::from(self.slots[slot as usize].network);
        if joined {
            self.doom(slot, "somebody joined a lease that nobody was told of");
        }
        if self.slots[slot as usize].doom.is_some() || self.stopping {
            self.set_state(now, slot, SlotState::Vacating);
        } else {
            self.set_state(now, slot, SlotState::Ready);
            if !self.cordoned {
                self.serve_waiter(now, slot);
            }
        }
        self.rebalance(now, network);
    }

    /// Ends the lease. Never waits; safe to repeat.
    ///
    /// # Errors
    /// [`Denied::UnknownToken`] for a token never seen, or forgotten.
    pub fn release(&mut self, now: Moment, token: Token, doubtful: bool) -> Result<Released, Denied> {
        let Some(&index) = self.by_token.get(&token) else {
            return match self.ended.get(token).map(|ended| &ended.cause) {
                None => Err(Denied::UnknownToken),
                Some(Cause::Released | Cause::ReleasedDoubtful) => Ok(Released::AlreadyReleased),
                Some(cause) => Ok(Released::AlreadyEnded(cause.clone())),
            };
        };
        let lease = &self.leases[index];
        if let Some(why) = lease.lost.clone() {
            self.end_lease(now, index, Cause::Released);
            return Ok(Released::AlreadyEnded(Cause::Lost(why)));
        }
        let outcome = if lease.joiners.iter().any(|joiner| joiner.live) { Released::JoinerStillThere } else { Released::Returned };
        self.end_lease(now, index, if doubtful { Cause::ReleasedDoubtful } else { Cause::Released });
        Ok(outcome)
    }

    /// Ends a lease by what people call it.
    ///
    /// # Errors
    /// [`Denied::UnknownLease`].
    pub fn force_release(&mut self, now: Moment, key: UseKey) -> Result<Released, Denied> {
        let found = self.leases.iter().find(|(_, lease)| lease.key == key).map(|(index, _)| index);
        let index = found.ok_or(Denied::UnknownLease)?;
        let live = self.leases[index].joiners.iter().any(|joiner| joiner.live);
        self.end_lease(now, index, Cause::Forced);
        Ok(if live { Released::JoinerStillThere } else { Released::Returned })
    }

    /// Moves the expiry of a `ttl` lease to `now + ttl` (or the ttl it was allocated with).
    ///
    /// # Errors
    /// [`Denied`]: lost, ended, unknown, or without a ttl.
    pub fn renew(&mut self, now: Moment, token: Token, ttl: Option<Duration>) -> Result<Moment, Denied> {
        let Some(&index) = self.by_token.get(&token) else { return Err(self.over(token)) };
        let lease = &self.leases[index];
        if let Some(why) = &lease.lost {
            return Err(Denied::LeaseLost { why: why.to_string() });
        }
        let Lifetime::Ttl(own) = lease.request.lifetime else { return Err(Denied::NotRenewable) };
        let until = now + ttl.unwrap_or(own);
        self.set_deadline(index, Some(until));
        self.record_changed(index);
        Ok(until)
    }

    /// A `connection` lease was asked for on one connection (gone by now) and is answered on another, by a retry that waited along: from here on
    /// it lasts as long as that one.
    pub fn hold_by(&mut self, token: Token, connection: ConnectionId) {
        let Some(&index) = self.by_token.get(&token) else { return };
        let lease = &mut self.leases[index];
        let Lifetime::Connection(before) = lease.request.lifetime else { return };
        lease.request = Arc::new(Request { lifetime: Lifetime::Connection(connection), ..Request::clone(&lease.request) });
        self.set_deadline(index, None);
        if let Some(leases) = self.by_connection.get_mut(&before) {
            leases.retain(|other| *other != index);
            if leases.is_empty() {
                self.by_connection.remove(&before);
            }
        }
        self.by_connection.entry(connection).or_default().insert(index);
    }

    /// Every `connection` lease of this connection ends.
    pub fn connection_closed(&mut self, now: Moment, connection: ConnectionId) {
        for index in self.by_connection.remove(&connection).unwrap_or_default() {
            self.end_lease(now, index, Cause::ConnectionClosed);
        }
    }

    /// The lease of `slot` is LOST; the slot goes its own way, which the caller decides.
    pub(super) fn lose(&mut self, now: Moment, slot: SlotIndex, why: Words) {
        let Some(index) = self.slots[slot as usize].lease.take() else { return };
        self.lost += 1;
        self.set_deadline(index, Some(now + self.rules.remember));
        let note = self.note(index, &why);
        self.leases[index].lost = Some(why);
        self.record_changed(index);
        self.effects.push(Effect::Event(PoolEvent::Lost(note)));
    }

    pub(super) fn end_lease(&mut self, now: Moment, index: LeaseIndex, cause: Cause) {
        let slot = self.leases[index].key.slot;
        let by_itself = matches!(
            cause,
            Cause::NotJoined | Cause::Lingered | Cause::Expired | Cause::ConnectionClosed | Cause::Forced | Cause::Stopping
        );
        // The end of a LOST one is no news: its holder was told when it was lost.
        if by_itself && self.leases[index].lost.is_none() {
            let note = self.note(index, &cause.to_string());
            self.effects.push(Effect::Event(PoolEvent::Ending(note)));
        }
        let lease = self.take_lease(index);
        let remembered = lease.lost.clone().map_or_else(|| cause.clone(), Cause::Lost);
        self.effects.push(Effect::Ended(lease.key, remembered.word()));
        let request = lease.request.request_id.is_some().then(|| Arc::clone(&lease.request));
        if let Some(key) = lease.request.key() {
            self.by_request.insert(key, Known::Ended(lease.token));
        }
        let forget_at = now + self.rules.remember;
        self.record_ended(lease.token, &remembered, forget_at);
        self.ended.push(forget_at, lease.token, EndedLease { cause: remembered, request });
        self.forget(now);
        if lease.lost.is_some() {
            return;
        }
        if !cause.vouched() && self.slots[slot as usize].doom.is_none() {
            self.slots[slot as usize].doom = Some(cause.to_string().into());
        }
        self.set_state(now, slot, SlotState::Vacating);
        self.rebalance(now, u32::from(self.slots[slot as usize].network));
    }

    /// Out of all tables but the memory of request ids, which the caller sees to.
    fn take_lease(&mut self, index: LeaseIndex) -> Lease {
        self.set_deadline(index, None);
        let lease = self.leases.remove(index);
        self.by_token.remove(&lease.token);
        let uid = lease.request.uid;
        if let Some(count) = self.leases_per_uid.get_mut(&uid) {
            *count -= 1;
            if *count == 0 {
                self.leases_per_uid.remove(&uid);
            }
        }
        if let Lifetime::Connection(connection) = lease.request.lifetime
            && let Some(leases) = self.by_connection.get_mut(&connection)
        {
            leases.remove(&index);
            if leases.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
        match lease.lost {
            Some(_) => self.lost -= 1,
            None => self.slots[lease.key.slot as usize].lease = None,
        }
        lease
    }

    pub(super) fn set_deadline(&mut self, index: LeaseIndex, when: Option<Moment>) {
        if let Some((_, place)) = self.leases[index].deadline.take()
            && let Some(moved) = self.deadlines.remove(place)
            && let Some((_, moved_place)) = &mut self.leases[moved].deadline
        {
            *moved_place = place;
        }
        self.leases[index].deadline = when.map(|when| (when, self.deadlines.insert(when, index)));
    }

    pub(super) fn fire_deadlines(&mut self, now: Moment) {
        while let Some(due) = self.deadlines.pop_due(now) {
            // Out of their bucket, so their places mean nothing any more.
            due.iter().for_each(|index| self.leases[*index].deadline = None);
            for index in due {
                let lease = &self.leases[index];
                match lease.request.lifetime {
                    _ if lease.lost.is_some() => self.end_lease(now, index, Cause::Expired),
                    Lifetime::Ttl(_) => self.end_lease(now, index, Cause::Expired),
                    // Nobody can tell now whether a container joined.
                    Lifetime::Joiners { .. } if !self.engine_up => self.set_deadline(index, Some(now + Duration::from_secs(1))),
                    Lifetime::Joiners { .. } => {
                        let cause = if lease.joined { Cause::Lingered } else { Cause::NotJoined };
                        self.end_lease(now, index, cause);
                    }
                    // Only one of a predecessor has a deadline: its connection is gone, and nobody came back.
                    Lifetime::Connection(_) => self.end_lease(now, index, Cause::ConnectionClosed),
                }
            }
        }
    }

    pub(super) fn forget(&mut self, now: Moment) {
        while let Some(ended) = self.ended.pop(now, self.rules.remember_max) {
            if let Some(request) = ended.request {
                self.drop_request(&request);
            }
        }
    }

    /// A lease by its token.
    ///
    /// # Errors
    /// [`Denied`]: ended or unknown. A LOST one is there, and says so.
    pub fn lease(&self, token: Token) -> Result<LeaseView, Denied> {
        self.by_token.get(&token).map(|index| self.view(*index)).ok_or_else(|| self.over(token))
    }

    /// All leases, or those of one holder.
    #[must_use]
    pub fn lease_views(&self, of: Option<(u32, &str)>) -> Vec<LeaseView> {
        let wanted = |lease: &Lease| of.is_none_or(|(uid, owner)| lease.request.uid == uid && lease.request.owner == owner);
        self.leases.iter().filter(|(_, lease)| wanted(lease)).map(|(index, _)| self.view(index)).collect()
    }

    /// All leases of a holder.
    #[must_use]
    pub fn held_by(&self, uid: u32, owner: &str) -> Vec<Held> {
        let of_holder = |lease: &Lease| lease.request.uid == uid && lease.request.owner == owner;
        let held = self.leases.iter().filter(|(_, lease)| of_holder(lease));
        held.map(|(index, lease)| Held { index, told: lease.delivered, lease: self.view(index) }).collect()
    }

    /// Leases that were made before then and that no container has joined.
    #[must_use]
    pub fn unjoined_since(&self, then: Moment) -> u32 {
        let unjoined = self.leases.iter().filter(|(_, lease)| !lease.joined && lease.lost.is_none() && lease.allocated_at <= then);
        u32::try_from(unjoined.count()).unwrap_or(u32::MAX)
    }

    /// A lease as its holder sees it.
    #[must_use]
    pub fn view(&self, index: LeaseIndex) -> LeaseView {
        let lease = &self.leases[index];
        LeaseView {
            token: lease.token,
            key: lease.key,
            namespace: Arc::clone(&lease.namespace),
            network: lease.network,
            request: Arc::clone(&lease.request),
            allocated_at: lease.allocated_at,
            deadline: lease.deadline.map(|(when, _)| when),
            lost: lease.lost.clone(),
            joiners: lease.joiners.iter().filter(|joiner| !joiner.is_process()).count(),
        }
    }
}
