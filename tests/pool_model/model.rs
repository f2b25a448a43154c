//! The naive model: what DESIGN says of a pool, with plain vectors and scans. Nothing here is fast, nothing is kept twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nspool::pool::state::{Afterwards, Rules, SlotState};
use nspool::pool::{Cause, Denied, JoinerSeen, Lifetime, Moment, Namespace, Released, Request, Token, UseKey, WaiterId};

/// Deadlines fire on multiples of this.
const TICK: Duration = Duration::from_millis(50);

#[derive(Clone, Debug)]
pub struct Slot {
    pub state: SlotState,
    pub since: Moment,
    pub network: u32,
    pub generation: u64,
    pub use_number: u64,
    /// When the present use was found empty.
    pub use_since: Moment,
    pub look_again: bool,
    pub unbounded: bool,
    /// Tenants whose functions were in its namespace.
    pub had: BTreeSet<String>,
    pub doomed: bool,
    pub failures: u32,
    pub died_young: bool,
    pub errors: bool,
    pub occupants: Vec<String>,
    pub namespace: Option<Arc<Namespace>>,
    /// When it got into its state, as a count: orders the free lists.
    pub stamp: u64,
}

#[derive(Clone, Debug)]
pub struct Lease {
    pub token: Token,
    pub key: UseKey,
    pub namespace: Arc<Namespace>,
    pub request: Request,
    pub allocated_at: Moment,
    pub deadline: Option<Moment>,
    pub lost: bool,
    pub joiners: Vec<(String, bool)>,
    pub joined: bool,
    pub delivered: bool,
}

#[derive(Clone, Debug)]
pub struct Waiter {
    pub id: WaiterId,
    pub request: Request,
    pub token: Token,
}

#[derive(Clone, Debug)]
struct Past {
    token: Token,
    cause: Cause,
    request: Request,
    forget_at: Moment,
}

/// What the model expects to be told to the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// In order.
    pub granted: Vec<(WaiterId, Token, UseKey)>,
    /// In order; the word of the refusal.
    pub refused: Vec<(WaiterId, &'static str)>,
    /// In any order.
    pub events: Vec<String>,
    /// In any order.
    pub ended: Vec<UseKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Granted(UseKey),
    Repeated(UseKey),
    /// A new place in the queue: tell the model its number.
    Queued,
    Waiting(WaiterId),
}

pub struct Model {
    pub rules: Rules,
    pub slots: Vec<Slot>,
    pub leases: Vec<Lease>,
    pub waiters: Vec<Waiter>,
    past: Vec<Past>,
    surplus_since: Vec<Option<Moment>>,
    pub cordoned: bool,
    pub draining: bool,
    pub stopping: bool,
    pub engine_up: bool,
    filled_once: bool,
    pub detached: u32,
    pub stale: u64,
    pub misses: u64,
    pub allocations: u64,
    next_generation: u64,
    next_stamp: u64,
    pub told: Told,
}

/// A refusal without its figures.
pub fn word(denied: &Denied) -> &'static str {
    match denied {
        Denied::PoolEmpty { .. } => "empty",
        Denied::TooManyWaiting => "too many",
        Denied::Quota { .. } => "quota",
        Denied::Starting { .. } => "starting",
        Denied::EngineAway => "away",
        Denied::Cordoned => "cordoned",
        Denied::Draining => "draining",
        Denied::Stopping => "stopping",
        Denied::NotRecorded { .. } => "not recorded",
        Denied::LeaseLost { .. } => "lost",
        Denied::LeaseEnded { .. } => "ended",
        Denied::UnknownToken => "token?",
        Denied::UnknownLease => "lease?",
        Denied::UnknownSlot { .. } => "slot?",
        Denied::RequestConflict => "conflict",
        Denied::NotRenewable => "not renewable",
        Denied::BadSize { .. } => "bad size",
    }
}

fn same(a: &Request, b: &Request) -> bool {
    let life = match (a.lifetime, b.lifetime) {
        (Lifetime::Connection(_), Lifetime::Connection(_)) => true,
        (a, b) => a == b,
    };
    life && a.tenant == b.tenant && a.network == b.network && a.labels == b.labels
}

fn part(total: u32, index: u32, of: u32) -> u32 {
    (0..total).filter(|number| number % of == index).count() as u32
}

fn fires_at(deadline: Moment) -> Moment {
    let mut tick = TICK * (deadline.as_millis() / TICK.as_millis()) as u32;
    while tick < deadline {
        tick += TICK;
    }
    tick
}

impl Model {
    pub fn new(rules: Rules, first_generation: u64) -> Self {
        let networks = rules.networks as usize;
        Self {
            rules,
            slots: Vec::new(),
            leases: Vec::new(),
            waiters: Vec::new(),
            past: Vec::new(),
            surplus_since: vec![None; networks],
            cordoned: false,
            draining: false,
            stopping: false,
            engine_up: false,
            filled_once: false,
            detached: 0,
            stale: 0,
            misses: 0,
            allocations: 0,
            next_generation: first_generation,
            next_stamp: 0,
            told: Told::default(),
        }
    }

    // ---- looks ---------------------------------------------------------------------------------------------------------------------

    pub fn key(&self, slot: u32) -> UseKey {
        let place = &self.slots[slot as usize];
        UseKey { slot, generation: place.generation, use_number: place.use_number }
    }

    pub fn has_buddy(&self, slot: u32) -> bool {
        !matches!(self.slots[slot as usize].state, SlotState::Idle | SlotState::Filling | SlotState::BackingOff)
    }

    pub fn count(&self, network: u32, states: &[SlotState]) -> u32 {
        self.slots.iter().filter(|slot| slot.network == network && states.contains(&slot.state)).count() as u32
    }

    pub fn existing(&self, network: u32) -> u32 {
        (0..self.slots.len() as u32).filter(|slot| self.slots[*slot as usize].network == network && self.has_buddy(*slot)).count() as u32
    }

    pub fn max(&self, network: u32) -> u32 {
        if self.stopping { 0 } else { part(self.rules.max, network, self.rules.networks) }
    }

    fn target(&self, network: u32) -> u32 {
        if self.stopping { 0 } else { part(self.rules.ready, network, self.rules.networks) }
    }

    fn lease_of(&self, slot: u32) -> Option<usize> {
        self.leases.iter().position(|lease| lease.key.slot == slot && !lease.lost)
    }

    fn by_token(&self, token: Token) -> Option<usize> {
        self.leases.iter().position(|lease| lease.token == token)
    }

    fn present(&mut self, key: UseKey) -> bool {
        let present = (key.slot as usize) < self.slots.len() && self.key(key.slot) == key;
        self.stale += u64::from(!present);
        present
    }

    fn excess(&self, network: u32) -> u32 {
        let going = self.count(network, &[SlotState::Retiring]);
        (self.existing(network) - going + self.count(network, &[SlotState::Filling])).saturating_sub(self.max(network))
    }

    pub fn nothing(&self) -> &'static str {
        match (self.engine_up, self.filled_once) {
            (false, true) => "away",
            (_, false) => "starting",
            (true, true) => "empty",
        }
    }

    // ---- moves ---------------------------------------------------------------------------------------------------------------------

    fn to(&mut self, now: Moment, slot: u32, state: SlotState) {
        self.next_stamp += 1;
        let stamp = self.next_stamp;
        let place = &mut self.slots[slot as usize];
        (place.state, place.since, place.stamp, place.look_again) = (state, now, stamp, false);
        if state == SlotState::Idle {
            (place.doomed, place.namespace) = (false, None);
            place.occupants.clear();
        }
    }

    fn coldest_ready(&self, network: u32) -> Option<u32> {
        self.in_state(network, SlotState::Ready).min_by_key(|slot| self.slots[*slot as usize].stamp)
    }

    fn in_state(&self, network: u32, state: SlotState) -> impl Iterator<Item = u32> {
        let fits = move |slot: &u32| self.slots[*slot as usize].network == network && self.slots[*slot as usize].state == state;
        (0..self.slots.len() as u32).filter(fits)
    }

    fn give_up_coldest(&mut self, now: Moment, network: u32) -> bool {
        let Some(slot) = self.coldest_ready(network) else { return false };
        self.slots[slot as usize].doomed = true;
        self.to(now, slot, SlotState::Retiring);
        true
    }

    /// Callers that count as each network's: its own, and those who take any, evenly, but where there is no room for them.
    fn waiting(&self) -> Vec<u32> {
        let networks = self.rules.networks;
        let own: Vec<u32> = (0..networks)
            .map(|network| self.waiters.iter().filter(|waiter| waiter.request.network.map(u32::from) == Some(network)).count() as u32)
            .collect();
        let room = |network: u32| {
            let coming = self.count(network, &[SlotState::Ready, SlotState::Filling]);
            let taken = self.existing(network) + self.count(network, &[SlotState::Filling]);
            let more = self.count(network, &[SlotState::Idle]).min(self.max(network).saturating_sub(taken));
            (coming + more).saturating_sub(own[network as usize])
        };
        let any = self.waiters.iter().filter(|waiter| waiter.request.network.is_none()).count() as u32;
        let mut given: Vec<u32> = (0..networks).map(|network| part(any, network, networks).min(room(network))).collect();
        let mut left = any - given.iter().sum::<u32>();
        for network in 0..networks {
            let more = left.min(room(network) - given[network as usize]);
            given[network as usize] += more;
            left -= more;
        }
        (0..networks as usize).map(|network| own[network] + given[network]).collect()
    }

    /// Follows what is wanted.
    fn settle(&mut self, now: Moment) {
        for network in 0..self.rules.networks {
            loop {
                let filling = self.count(network, &[SlotState::Filling]);
                let coming = self.count(network, &[SlotState::Ready]) + filling;
                let wanted = self.target(network) + self.waiting()[network as usize];
                let idle = self.in_state(network, SlotState::Idle).min_by_key(|slot| self.slots[*slot as usize].stamp);
                let Some(slot) = idle.filter(|_| coming < wanted && self.existing(network) + filling < self.max(network)) else { break };
                (self.slots[slot as usize].generation, self.slots[slot as usize].use_number) = (self.next_generation, 1);
                self.next_generation += 1;
                self.to(now, slot, SlotState::Filling);
            }
            while self.excess(network) > 0 {
                let highest = self.in_state(network, SlotState::Filling).max();
                if let Some(slot) = highest {
                    self.to(now, slot, SlotState::Idle);
                } else if !self.give_up_coldest(now, network) {
                    break;
                }
            }
            let surplus = self.count(network, &[SlotState::Ready]) > part(self.rules.ready, network, self.rules.networks);
            let since = &mut self.surplus_since[network as usize];
            *since = surplus.then(|| since.unwrap_or(now));
        }
    }

    fn refuse_waiters(&mut self, word: &'static str) {
        for waiter in std::mem::take(&mut self.waiters) {
            self.told.refused.push((waiter.id, word));
        }
    }

    fn may_have(&self, request: &Request) -> Result<(), &'static str> {
        if self.stopping {
            return Err("stopping");
        }
        if self.cordoned {
            return Err(if self.draining { "draining" } else { "cordoned" });
        }
        let has = self.leases.iter().filter(|lease| lease.request.uid == request.uid).count() as u32;
        if self.rules.quota_per_uid.is_some_and(|limit| has >= limit) { Err("quota") } else { Ok(()) }
    }

    fn grant(&mut self, now: Moment, slot: u32, request: Request, token: Token, delivered: bool) -> UseKey {
        let key = self.key(slot);
        let deadline = match request.lifetime {
            Lifetime::Joiners { join_by } => Some(now + join_by),
            Lifetime::Ttl(ttl) => Some(now + ttl),
            Lifetime::Connection(_) => None,
        };
        let namespace = self.slots[slot as usize].namespace.clone().expect("a ready slot has one");
        let (joiners, joined, lost) = (Vec::new(), false, false);
        self.slots[slot as usize].had.insert(request.tenant.clone());
        self.leases.push(Lease { token, key, namespace, request, allocated_at: now, deadline, lost, joiners, joined, delivered });
        self.allocations += 1;
        self.to(now, slot, SlotState::Leased);
        key
    }

    fn keeps(&self, network: u32) -> bool {
        self.rules.keep_tenants && matches!(self.rules.afterwards[network as usize], Afterwards::Verify | Afterwards::Reuse)
    }

    fn fits(&self, slot: u32, tenant: &str) -> bool {
        let place = &self.slots[slot as usize];
        !self.keeps(place.network) || place.had.iter().all(|had| had == tenant)
    }

    fn make_ready(&mut self, now: Moment, slot: u32) {
        self.filled_once = true;
        (self.slots[slot as usize].use_since, self.slots[slot as usize].unbounded) = (now, false);
        self.to(now, slot, SlotState::Ready);
        self.serve(now, slot);
    }

    fn serve(&mut self, now: Moment, slot: u32) {
        let network = self.slots[slot as usize].network;
        while !self.cordoned && !self.stopping {
            let serves = |waiter: &Waiter| waiter.request.network.is_none_or(|wanted| u32::from(wanted) == network);
            let fits = |waiter: &Waiter| serves(waiter) && self.fits(slot, &waiter.request.tenant);
            let Some(first) = self.waiters.iter().position(fits) else {
                if self.waiters.iter().any(serves) {
                    self.slots[slot as usize].doomed = true;
                    self.to(now, slot, SlotState::Retiring);
                }
                return;
            };
            let waiter = self.waiters.remove(first);
            if let Err(word) = self.may_have(&waiter.request) {
                self.told.refused.push((waiter.id, word));
                continue;
            }
            let key = self.grant(now, slot, waiter.request, waiter.token, false);
            self.told.granted.push((waiter.id, waiter.token, key));
            return;
        }
    }

    fn forget(&mut self, now: Moment) {
        while self.past.first().is_some_and(|past| past.forget_at <= now || self.past.len() > self.rules.remember_max as usize) {
            self.past.remove(0);
        }
    }

    fn end(&mut self, now: Moment, at: usize, cause: Cause) {
        let lease = self.leases.remove(at);
        self.told.ended.push(lease.key);
        let told = !matches!(cause, Cause::Released | Cause::ReleasedDoubtful | Cause::Lost(_));
        if told && !lease.lost {
            self.told.events.push(format!("ending {} {}", lease.key, lease.namespace.namespace_id));
        }
        let remembered = if lease.lost { Cause::Lost("".into()) } else { cause.clone() };
        self.past.push(Past { token: lease.token, cause: remembered, request: lease.request, forget_at: now + self.rules.remember });
        self.forget(now);
        if !lease.lost {
            if cause != Cause::Released {
                self.slots[lease.key.slot as usize].doomed = true;
            }
            self.to(now, lease.key.slot, SlotState::Vacating);
        }
        self.settle(now);
    }

    fn lose(&mut self, now: Moment, slot: u32) {
        if let Some(at) = self.lease_of(slot) {
            let lease = &mut self.leases[at];
            (lease.lost, lease.deadline) = (true, Some(now + self.rules.remember));
            self.told.events.push(format!("lost {} {}", lease.key, lease.namespace.namespace_id));
        }
    }

    // ---- callers -------------------------------------------------------------------------------------------------------------------

    pub fn allocate(&mut self, now: Moment, request: &Request, token: Token, wait: bool) -> Result<Answer, &'static str> {
        let known = |other: &Request| {
            request.request_id.is_some()
                && (other.uid, &other.owner, &other.request_id) == (request.uid, &request.owner, &request.request_id)
        };
        if let Some(lease) = self.leases.iter_mut().find(|lease| known(&lease.request)) {
            if !same(&lease.request, request) {
                return Err("conflict");
            }
            if lease.lost {
                return Err("lost");
            }
            lease.delivered = true;
            return Ok(Answer::Repeated(lease.key));
        }
        if let Some(waiter) = self.waiters.iter().find(|waiter| known(&waiter.request)) {
            return if same(&waiter.request, request) { Ok(Answer::Waiting(waiter.id)) } else { Err("conflict") };
        }
        if let Some(past) = self.past.iter().find(|past| known(&past.request)) {
            return Err(match (&past.cause, same(&past.request, request)) {
                (_, false) => "conflict",
                (Cause::Lost(_), true) => "lost",
                (_, true) => "ended",
            });
        }
        self.may_have(request)?;
        let mut networks: Vec<u32> = request.network.map_or_else(|| (0..self.rules.networks).collect(), |network| vec![u32::from(network)]);
        networks.sort_by_key(|network| std::cmp::Reverse(self.count(*network, &[SlotState::Ready])));
        let newest = |network: &u32| {
            let fitting = self.in_state(*network, SlotState::Ready).filter(|slot| self.fits(*slot, &request.tenant));
            fitting.max_by_key(|slot| self.slots[*slot as usize].stamp)
        };
        if let Some(slot) = networks.iter().find_map(newest) {
            let key = self.grant(now, slot, request.clone(), token, true);
            self.settle(now);
            return Ok(Answer::Granted(key));
        }
        self.misses += 1;
        if wait && self.waiters.len() as u32 >= self.rules.max_waiting {
            return Err("too many");
        }
        if let Some(network) = networks.into_iter().find(|network| self.keeps(*network))
            && self.count(network, &[SlotState::Filling, SlotState::Retiring]) <= self.waiters.len() as u32
        {
            self.give_up_coldest(now, network);
            self.settle(now);
        }
        if !wait {
            return Err(self.nothing());
        }
        Ok(Answer::Queued)
    }

    pub fn queued(&mut self, now: Moment, waiter: Waiter) {
        self.waiters.push(waiter);
        self.settle(now);
    }

    pub fn cancel(&mut self, now: Moment, id: WaiterId) -> Option<&'static str> {
        let at = self.waiters.iter().position(|waiter| waiter.id == id)?;
        self.waiters.remove(at);
        self.settle(now);
        Some(self.nothing())
    }

    pub fn delivered(&mut self, token: Token) -> bool {
        let lease = self.leases.iter_mut().find(|lease| lease.token == token);
        lease.map(|lease| lease.delivered = true).is_some()
    }

    pub fn undo(&mut self, now: Moment, token: Token) {
        let Some(at) = self.by_token(token).filter(|at| !self.leases[*at].delivered) else { return };
        let lease = self.leases.remove(at);
        if !lease.lost {
            let slot = lease.key.slot;
            if lease.joined {
                // Nobody was told of it, and somebody is inside all the same.
                self.slots[slot as usize].doomed = true;
            }
            if self.slots[slot as usize].doomed {
                self.to(now, slot, SlotState::Vacating);
            } else {
                // The same use: whoever was seen in it was.
                let place = &self.slots[slot as usize];
                let (use_since, unbounded) = (place.use_since, place.unbounded);
                self.make_ready(now, slot);
                let place = &mut self.slots[slot as usize];
                (place.use_since, place.unbounded) = (use_since, unbounded);
            }
        }
        self.settle(now);
    }

    pub fn release(&mut self, now: Moment, token: Token, doubtful: bool) -> Result<Released, &'static str> {
        let Some(at) = self.by_token(token) else {
            let past = self.past.iter().find(|past| past.token == token).ok_or("token?")?;
            return Ok(match &past.cause {
                Cause::Released | Cause::ReleasedDoubtful => Released::AlreadyReleased,
                cause => Released::AlreadyEnded(cause.clone()),
            });
        };
        let (lost, live) = (self.leases[at].lost, self.leases[at].joiners.iter().any(|(_, live)| *live));
        self.end(now, at, if doubtful { Cause::ReleasedDoubtful } else { Cause::Released });
        Ok(match (lost, live) {
            (true, _) => Released::AlreadyEnded(Cause::Lost("".into())),
            (false, true) => Released::JoinerStillThere,
            (false, false) => Released::Returned,
        })
    }

    pub fn force_release(&mut self, now: Moment, key: UseKey) -> Result<Released, &'static str> {
        let at = self.leases.iter().position(|lease| lease.key == key).ok_or("lease?")?;
        let live = self.leases[at].joiners.iter().any(|(_, live)| *live);
        self.end(now, at, Cause::Forced);
        Ok(if live { Released::JoinerStillThere } else { Released::Returned })
    }

    pub fn renew(&mut self, now: Moment, token: Token, ttl: Option<Duration>) -> Result<Moment, &'static str> {
        let Some(at) = self.by_token(token) else {
            return Err(match self.past.iter().find(|past| past.token == token).map(|past| &past.cause) {
                None => "token?",
                Some(Cause::Lost(_)) => "lost",
                Some(_) => "ended",
            });
        };
        if self.leases[at].lost {
            return Err("lost");
        }
        let Lifetime::Ttl(own) = self.leases[at].request.lifetime else { return Err("not renewable") };
        let until = now + ttl.unwrap_or(own);
        self.leases[at].deadline = Some(until);
        Ok(until)
    }

    /// Ends those of the leases that `which` names a cause for, in the order in which the state said they ended.
    fn end_some(&mut self, now: Moment, order: &[UseKey], which: impl Fn(&Lease) -> Option<Cause>) {
        let mut some: Vec<(UseKey, Token, Cause)> =
            self.leases.iter().filter_map(|lease| Some((lease.key, lease.token, which(lease)?))).collect();
        some.sort_by_key(|(key, _, _)| order.iter().position(|ended| ended == key));
        for (_, token, cause) in some {
            let at = self.by_token(token).expect("still there");
            self.end(now, at, cause);
        }
    }

    pub fn connection_closed(&mut self, now: Moment, order: &[UseKey], connection: nspool::pool::ConnectionId) {
        let closed = |lease: &Lease| (lease.request.lifetime == Lifetime::Connection(connection)).then_some(Cause::ConnectionClosed);
        self.end_some(now, order, closed);
    }

    pub fn tick(&mut self, now: Moment, order: &[UseKey]) {
        let due = |lease: &Lease| lease.deadline.is_some_and(|deadline| fires_at(deadline) <= now);
        let engine_up = self.engine_up;
        for lease in self.leases.iter_mut().filter(|lease| due(lease)) {
            if !lease.lost && matches!(lease.request.lifetime, Lifetime::Joiners { .. }) && !engine_up {
                lease.deadline = Some(now + Duration::from_secs(1));
            }
        }
        self.end_some(now, order, |lease| match lease.request.lifetime {
            _ if !due(lease) => None,
            Lifetime::Joiners { .. } if !lease.lost => Some(if lease.joined { Cause::Lingered } else { Cause::NotJoined }),
            _ => Some(Cause::Expired),
        });
        self.forget(now);
        for network in 0..self.rules.networks {
            if self.surplus_since[network as usize].is_some_and(|since| now >= since + self.rules.trim_after) {
                self.surplus_since[network as usize] = Some(now);
                self.give_up_coldest(now, network);
                self.settle(now);
            }
        }
    }

    // ---- nannies -------------------------------------------------------------------------------------------------------------------

    pub fn registered(&mut self, now: Moment, slot: u32, generation: u64, namespace: Arc<Namespace>) {
        let place = &mut self.slots[slot as usize];
        let wanted = place.state == SlotState::Filling && place.generation == generation;
        (place.generation, place.use_number, place.namespace) = (generation, 1, Some(namespace));
        (place.errors, place.doomed) = (false, !wanted);
        place.had.clear();
        if wanted {
            self.make_ready(now, slot);
        } else {
            self.to(now, slot, SlotState::Retiring);
        }
        self.settle(now);
    }

    pub fn fill_failed(&mut self, now: Moment, slot: u32, generation: u64) {
        let place = &mut self.slots[slot as usize];
        place.failures += 1;
        place.errors = true;
        if place.state == SlotState::Filling && place.generation == generation {
            self.to(now, slot, SlotState::BackingOff);
        }
        self.settle(now);
    }

    pub fn backoff_over(&mut self, now: Moment, slot: u32) {
        if self.slots[slot as usize].state == SlotState::BackingOff {
            self.to(now, slot, SlotState::Idle);
        }
        self.settle(now);
    }

    pub fn buddy_gone(&mut self, now: Moment, key: UseKey) {
        let present = (key.slot as usize) < self.slots.len()
            && self.slots[key.slot as usize].generation == key.generation
            && self.has_buddy(key.slot);
        if !present {
            self.stale += 1;
            return;
        }
        let place = &mut self.slots[key.slot as usize];
        (place.doomed, place.errors) = (true, true);
        if matches!(place.state, SlotState::Leased | SlotState::Ready) {
            self.lose(now, key.slot);
            self.to(now, key.slot, SlotState::Retiring);
        }
        self.settle(now);
    }

    pub fn vacated(&mut self, now: Moment, key: UseKey, next: Arc<Namespace>) {
        if !self.present(key) {
            return;
        }
        let place = &self.slots[key.slot as usize];
        match place.state {
            SlotState::Vacating if place.look_again => self.slots[key.slot as usize].look_again = false,
            SlotState::Vacating => {
                self.slots[key.slot as usize].occupants.clear();
                let place = &self.slots[key.slot as usize];
                match self.rules.afterwards[place.network as usize] {
                    _ if self.is_useless(key.slot) => self.to(now, key.slot, SlotState::Retiring),
                    Afterwards::Retire => self.to(now, key.slot, SlotState::Retiring),
                    Afterwards::Renew | Afterwards::Verify => self.to(now, key.slot, SlotState::Renewing),
                    Afterwards::Reuse => self.next_use(now, key.slot, next),
                }
            }
            SlotState::Quarantined => {
                self.slots[key.slot as usize].occupants.clear();
                self.to(now, key.slot, SlotState::Retiring);
            }
            _ => self.stale += 1,
        }
        self.settle(now);
    }

    fn is_useless(&self, slot: u32) -> bool {
        let place = &self.slots[slot as usize];
        place.doomed || self.excess(place.network) > 0 || self.keeps(place.network) && place.had.len() > 1
    }

    pub fn cooling(&mut self, now: Moment, key: UseKey, is: bool) {
        let (from, to) = if is { (SlotState::Renewing, SlotState::Cooling) } else { (SlotState::Cooling, SlotState::Renewing) };
        if self.present(key) && self.slots[key.slot as usize].state == from {
            self.to(now, key.slot, to);
        }
    }

    pub fn renewed(&mut self, now: Moment, key: UseKey, next: Arc<Namespace>) {
        if !self.present(key) {
            return;
        }
        let place = &self.slots[key.slot as usize];
        if place.state != SlotState::Renewing {
            self.stale += 1;
        } else if place.look_again {
            self.slots[key.slot as usize].look_again = false;
        } else if self.is_useless(key.slot) || self.rules.afterwards[place.network as usize] == Afterwards::Retire {
            self.to(now, key.slot, SlotState::Retiring);
        } else {
            if self.rules.afterwards[place.network as usize] == Afterwards::Renew {
                self.slots[key.slot as usize].had.clear();
            }
            self.next_use(now, key.slot, next);
        }
        self.settle(now);
    }

    fn next_use(&mut self, now: Moment, slot: u32, next: Arc<Namespace>) {
        let place = &mut self.slots[slot as usize];
        (place.namespace, place.use_number) = (Some(next), place.use_number + 1);
        self.make_ready(now, slot);
    }

    pub fn occupied(&mut self, now: Moment, key: UseKey, who: Vec<String>) {
        if !self.present(key) {
            return;
        }
        match self.slots[key.slot as usize].state {
            SlotState::Vacating | SlotState::Renewing | SlotState::Cooling | SlotState::Retiring => {
                self.slots[key.slot as usize].doomed = true;
                self.slots[key.slot as usize].occupants = who;
                self.to(now, key.slot, SlotState::Quarantined);
            }
            SlotState::Quarantined => self.slots[key.slot as usize].occupants = who,
            _ => self.stale += 1,
        }
        self.settle(now);
    }

    pub fn spoiled(&mut self, now: Moment, key: UseKey) {
        if self.present(key)
            && matches!(self.slots[key.slot as usize].state, SlotState::Vacating | SlotState::Renewing | SlotState::Cooling)
        {
            let place = &mut self.slots[key.slot as usize];
            (place.doomed, place.errors) = (true, true);
            self.to(now, key.slot, SlotState::Retiring);
        }
        self.settle(now);
    }

    pub fn detach(&mut self, now: Moment, key: UseKey) -> bool {
        let may =
            self.present(key) && self.slots[key.slot as usize].state == SlotState::Quarantined && self.detached < self.rules.max_detached;
        if may {
            self.detached += 1;
            self.clear(now, key.slot);
            self.settle(now);
        }
        may
    }

    pub fn removed(&mut self, now: Moment, key: UseKey) {
        if self.present(key) && self.slots[key.slot as usize].state == SlotState::Retiring {
            self.clear(now, key.slot);
        }
        self.settle(now);
    }

    /// Without its buddy, a slot rests; one whose buddy died young backs off first.
    fn clear(&mut self, now: Moment, slot: u32) {
        self.to(now, slot, SlotState::Idle);
        let died_young = std::mem::take(&mut self.slots[slot as usize].died_young);
        if died_young && !self.stopping {
            self.to(now, slot, SlotState::BackingOff);
        }
    }

    pub fn note_failure(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        place.failures += 1;
        (place.died_young, place.errors) = (true, true);
    }

    // ---- operators -----------------------------------------------------------------------------------------------------------------

    pub fn resize(&mut self, now: Moment, ready: u32, max: u32) -> Result<(), &'static str> {
        if ready > max || max == 0 {
            return Err("bad size");
        }
        let shrinks = ready < self.rules.ready;
        (self.rules.ready, self.rules.max) = (ready, max);
        while (self.slots.len() as u32) < max {
            self.next_stamp += 1;
            self.slots.push(Slot {
                state: SlotState::Idle,
                since: now,
                network: self.slots.len() as u32 % self.rules.networks,
                generation: 0,
                use_number: 0,
                use_since: Moment::ZERO,
                look_again: false,
                unbounded: false,
                had: BTreeSet::new(),
                doomed: false,
                failures: 0,
                died_young: false,
                errors: false,
                occupants: Vec::new(),
                namespace: None,
                stamp: self.next_stamp,
            });
        }
        for network in 0..self.rules.networks {
            while shrinks && self.count(network, &[SlotState::Ready]) > self.target(network) {
                self.give_up_coldest(now, network);
            }
        }
        self.settle(now);
        Ok(())
    }

    pub fn set_rules(&mut self, now: Moment, rules: Rules) {
        self.rules = Rules { networks: self.rules.networks, ready: self.rules.ready, max: self.rules.max, ..rules };
        self.forget(now);
        for network in 0..self.rules.networks {
            let mut ready: Vec<u32> = self.in_state(network, SlotState::Ready).collect();
            ready.sort_by_key(|slot| std::cmp::Reverse(self.slots[*slot as usize].stamp));
            for slot in ready {
                let fits = |waiter: &Waiter| {
                    waiter.request.network.is_none_or(|wanted| u32::from(wanted) == network) && self.fits(slot, &waiter.request.tenant)
                };
                if self.waiters.iter().any(fits) {
                    self.serve(now, slot);
                }
            }
        }
        self.settle(now);
    }

    pub fn cordon(&mut self, now: Moment, draining: bool) {
        (self.cordoned, self.draining) = (true, draining);
        self.refuse_waiters(if draining { "draining" } else { "cordoned" });
        self.told.events.push(format!("cordon true {draining}"));
        self.settle(now);
    }

    pub fn uncordon(&mut self) {
        (self.cordoned, self.draining) = (false, false);
        self.told.events.push("cordon false false".into());
    }

    pub fn recycle(&mut self, now: Moment, slot: u32, force: bool) -> Result<SlotState, &'static str> {
        let found = self.slots.get(slot as usize).ok_or("slot?")?.state;
        match found {
            SlotState::Ready | SlotState::Renewing | SlotState::Cooling => {
                self.slots[slot as usize].doomed = true;
                self.to(now, slot, SlotState::Retiring);
            }
            SlotState::Leased => {
                self.slots[slot as usize].doomed = true;
                if force {
                    self.lose(now, slot);
                    self.to(now, slot, SlotState::Vacating);
                }
            }
            SlotState::Vacating => self.slots[slot as usize].doomed = true,
            SlotState::BackingOff => self.to(now, slot, SlotState::Idle),
            SlotState::Adopting => unreachable!("no predecessor in this story"),
            SlotState::Idle | SlotState::Filling | SlotState::Quarantined | SlotState::Retiring => {}
        }
        self.settle(now);
        Ok(found)
    }

    pub fn stop(&mut self, now: Moment, order: &[UseKey]) {
        self.stopping = true;
        self.refuse_waiters("stopping");
        self.end_some(now, order, |_| Some(Cause::Stopping));
        for slot in 0..self.slots.len() as u32 {
            match self.slots[slot as usize].state {
                SlotState::Filling | SlotState::BackingOff => self.to(now, slot, SlotState::Idle),
                SlotState::Ready | SlotState::Renewing | SlotState::Cooling => {
                    self.slots[slot as usize].doomed = true;
                    self.to(now, slot, SlotState::Retiring);
                }
                SlotState::Vacating => self.slots[slot as usize].doomed = true,
                _ => {}
            }
        }
        self.settle(now);
    }

    // ---- containers ----------------------------------------------------------------------------------------------------------------

    fn slot_of(&self, buddy: &str) -> Option<u32> {
        let has = |slot: &Slot| slot.namespace.as_ref().is_some_and(|namespace| &*namespace.container_id == buddy);
        self.slots.iter().position(has).map(|slot| slot as u32)
    }

    /// Whoever it was may have been in any use that is not over.
    pub fn joiner_unknown(&mut self, label: Option<&str>) {
        let named = |place: &Slot| label.is_some() && place.namespace.as_ref().map(|namespace| namespace.namespace_id.as_str()) == label;
        let one = self.slots.iter().any(named);
        let all: Vec<u32> = (0..self.slots.len() as u32).filter(|slot| !one || named(&self.slots[*slot as usize])).collect();
        all.into_iter().for_each(|slot| self.found_unbounded(slot));
    }

    fn found_unbounded(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        let out = matches!(place.state, SlotState::Vacating | SlotState::Renewing | SlotState::Cooling);
        if out || place.state == SlotState::Leased {
            place.look_again |= out && !place.unbounded;
            place.unbounded = true;
        }
    }

    pub fn joined(&mut self, now: Moment, seen: &JoinerSeen) -> bool {
        let Some(slot) = self.slot_of(&seen.buddy) else { return true };
        if matches!(self.slots[slot as usize].state, SlotState::Vacating | SlotState::Renewing | SlotState::Cooling) {
            self.slots[slot as usize].look_again |= seen.live;
            if !seen.bounded {
                self.found_unbounded(slot);
            }
            return true;
        }
        let place = &self.slots[slot as usize];
        let own = place.namespace.as_ref().map(|namespace| namespace.namespace_id.as_str());
        let other = seen.namespace_id.as_deref().is_some_and(|label| Some(label) != own);
        let known = self.lease_of(slot).is_some_and(|at| self.leases[at].joiners.iter().any(|(id, _)| *id == *seen.joiner));
        if (other || seen.namespace_id.is_none()) && !known && seen.as_of < place.use_since {
            return false;
        }
        if !seen.bounded && !known {
            self.found_unbounded(slot);
        }
        let place = &self.slots[slot as usize];
        match place.state {
            SlotState::Leased if !other => {
                let at = self.lease_of(slot).expect("leased");
                let lease = &mut self.leases[at];
                if let Some((_, live)) = lease.joiners.iter_mut().find(|(id, _)| *id == *seen.joiner) {
                    *live = seen.live;
                } else {
                    lease.joiners.push((seen.joiner.to_string(), seen.live));
                    lease.joined = true;
                    if matches!(lease.request.lifetime, Lifetime::Joiners { .. }) {
                        lease.deadline = None;
                    }
                    self.told.events.push(format!("joined {} {}", lease.key, lease.namespace.namespace_id));
                }
            }
            SlotState::Leased | SlotState::Ready if seen.live => {
                let state = place.state;
                let place = &mut self.slots[slot as usize];
                (place.doomed, place.errors) = (true, true);
                match state {
                    SlotState::Leased => {
                        self.lose(now, slot);
                        self.to(now, slot, SlotState::Vacating);
                    }
                    SlotState::Ready => self.to(now, slot, SlotState::Retiring),
                    _ => {}
                }
                self.settle(now);
            }
            _ => {}
        }
        true
    }

    pub fn joiner_stopped(&mut self, buddy: &str, joiner: &str) {
        if let Some(at) = self.slot_of(buddy).and_then(|slot| self.lease_of(slot))
            && let Some((_, live)) = self.leases[at].joiners.iter_mut().find(|(id, _)| id == joiner)
        {
            *live = false;
        }
    }

    pub fn joiner_removed(&mut self, now: Moment, buddy: &str, joiner: &str) {
        let Some(at) = self.slot_of(buddy).and_then(|slot| self.lease_of(slot)) else { return };
        let linger = self.rules.linger;
        let lease = &mut self.leases[at];
        let known = lease.joiners.iter().any(|(id, _)| id == joiner);
        lease.joiners.retain(|(id, _)| id != joiner);
        if known && lease.joiners.is_empty() && matches!(lease.request.lifetime, Lifetime::Joiners { .. }) {
            lease.deadline = Some(now + linger);
        }
    }

    pub fn listed(&mut self, now: Moment, all: &[JoinerSeen]) -> usize {
        let known: Vec<(Arc<str>, String)> = self
            .leases
            .iter()
            .filter(|lease| !lease.lost)
            .flat_map(|lease| lease.joiners.iter().map(|(id, _)| (Arc::clone(&lease.namespace.container_id), id.clone())))
            .collect();
        for (buddy, joiner) in known {
            if !all.iter().any(|seen| seen.buddy == buddy && *seen.joiner == *joiner) {
                self.joiner_removed(now, &buddy, &joiner);
            }
        }
        all.iter().filter(|seen| !self.joined(now, seen)).count()
    }
}
