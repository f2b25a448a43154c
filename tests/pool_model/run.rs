//! Tells one story to the state and to the model, and compares.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use nspool::ledger::Table;
use nspool::pool::state::{Effect, Order, Rules, SlotState, State};
use nspool::pool::{
    Allocated, Cause, ConnectionId, GRACE, JoinerSeen, LeaseIndex, Lifetime, Moment, Namespace, PoolEvent, Released, Request, Token,
    UseKey, WaiterId,
};

use super::model::{Answer, Model, Told, Waiter, word};
use super::ops::{Age, Label, Life, Op, RuleSet, Seen, Start};
use super::{format_1, in_the_pool};

const FIRST_GENERATION: u64 = 100;

struct Story {
    state: State,
    model: Model,
    now: Moment,
    next_token: u64,
    next_container: u64,
    /// All that were ever granted to waiters: what is delivered or undone twice, or late, must change nothing.
    granted_late: Vec<(LeaseIndex, Token)>,
    /// Buddies that nannies are preparing.
    preparing: Vec<(u32, u64)>,
    all_keys: Vec<UseKey>,
    all_tokens: Vec<Token>,
    all_waiters: Vec<WaiterId>,
    all_buddies: Vec<(Arc<str>, String)>,
    /// Uses whose holders were told.
    delivered: HashSet<(u64, u64)>,
    /// Uses that ended by a Release without doubt.
    vouched: HashSet<(u64, u64)>,
    /// Generations that somebody stayed in.
    occupied: HashSet<u64>,
    newest_generation: u64,
    names: Arc<[String]>,
    /// All that was recorded.
    journal: Vec<u8>,
    steps: u32,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn rules(start: &Start, set: &RuleSet) -> Rules {
    Rules {
        networks: start.networks,
        ready: 0,
        max: 0,
        afterwards: set.afterwards.into(),
        keep_tenants: set.keep_tenants,
        linger: ms(set.linger_ms),
        max_detached: set.max_detached,
        max_waiting: set.max_waiting,
        quota_per_uid: set.quota,
        remember: ms(set.remember_ms),
        remember_max: set.remember_max,
        trim_after: ms(set.trim_ms),
    }
}

/// The causes of losses are for people: not compared.
fn plain(released: Released) -> Released {
    match released {
        Released::AlreadyEnded(Cause::Lost(_)) => Released::AlreadyEnded(Cause::Lost("".into())),
        other => other,
    }
}

pub fn tell(start: &Start, story: &[Op]) {
    let rules = rules(start, &start.rules);
    let names: Arc<[String]> = (0..start.networks).map(|network| format!("net{network}")).collect();
    let mut state = State::new(rules.clone(), FIRST_GENERATION);
    state.record_with(Arc::clone(&names));
    let mut told = Story {
        state,
        model: Model::new(rules, FIRST_GENERATION),
        now: Duration::from_secs(1000),
        next_token: 0,
        next_container: 0,
        granted_late: Vec::new(),
        preparing: Vec::new(),
        all_keys: Vec::new(),
        all_tokens: Vec::new(),
        all_waiters: Vec::new(),
        all_buddies: Vec::new(),
        delivered: HashSet::new(),
        vouched: HashSet::new(),
        occupied: HashSet::new(),
        newest_generation: FIRST_GENERATION - 1,
        names,
        journal: Vec::new(),
        steps: 0,
    };
    told.step(&Op::Engine(true));
    told.step(&Op::Resize(start.ready, start.max));
    for op in story {
        told.step(op);
    }
    told.restart();
    told.wind_up();
    told.restart();
}

impl Story {
    /// Everything ends, and everything is forgotten: nothing may be left.
    fn wind_up(&mut self) {
        for op in [Op::Engine(true), Op::Cordon(true), Op::Pass(1_000_000), Op::Stop, Op::Pass(1_000_000)] {
            self.step(&op);
        }
        let left = (self.state.lease_views(None).len(), self.state.usage().waiting, self.state.usage().lost);
        assert_eq!(left, (0, 0, 0), "leases, waiters and losses after the end");
        for slot in 0..self.state.slot_count() {
            // At most: a look, a renewal, another look because somebody was seen during each, and the removal.
            for _ in 0..5 {
                self.step(&Op::Nanny(slot as usize));
            }
        }
        let usage = self.state.usage();
        assert_eq!((usage.ready, usage.vacating, usage.quarantined, usage.retiring), (0, 0, 0, 0), "buddies after the end");
        assert_eq!(self.state.next_tick(), None, "something is due after the end");
    }

    fn step(&mut self, op: &Op) {
        let orders: Vec<Order> = (0..self.state.slot_count()).map(|slot| self.state.order(slot)).collect();
        let filling = self.filling();
        let effects = self.apply(op);
        let nudged: BTreeSet<u32> = effects.iter().filter_map(|e| if let Effect::Nudge(slot) = e { Some(*slot) } else { None }).collect();
        self.compare_told(effects);
        for slot in 0..self.state.slot_count() {
            let order = self.state.order(slot);
            let before = orders.get(slot as usize).unwrap_or(&Order::Rest);
            assert!(*before == order || nudged.contains(&slot), "slot {slot}: {before:?} became {order:?} without a nudge");
            self.note_order(slot, &order);
        }
        self.state.check();
        self.compare_slots();
        self.compare_leases();
        self.compare_usage();
        self.steps += 1;
        if self.steps.is_multiple_of(8) {
            self.restart();
        }
        for (network, before) in filling.into_iter().enumerate() {
            let (network, after) = (network as u32, self.filling()[network]);
            let all = self.model.existing(network) + after;
            assert!(after <= before || all <= self.model.max(network), "network {network}: {all} of {} at most", self.model.max(network));
        }
    }

    fn filling(&self) -> Vec<u32> {
        (0..self.model.rules.networks).map(|network| self.model.count(network, &[SlotState::Filling])).collect()
    }

    fn note_order(&mut self, slot: u32, order: &Order) {
        let key = self.model.key(slot);
        if key.generation >= FIRST_GENERATION && !self.all_keys.contains(&key) {
            self.all_keys.push(key);
        }
        if let Order::Fill { generation } = *order
            && !self.preparing.contains(&(slot, generation))
        {
            self.preparing.push((slot, generation));
        }
    }

    // ---- one op on both ------------------------------------------------------------------------------------------------------------

    fn drain(&mut self) -> (Vec<Effect>, Vec<UseKey>) {
        let effects: Vec<Effect> = self.state.take_effects().collect();
        let ended = effects.iter().filter_map(|effect| if let Effect::Ended(key, _) = effect { Some(*key) } else { None }).collect();
        (effects, ended)
    }

    fn apply(&mut self, op: &Op) -> Vec<Effect> {
        let now = self.now;
        match op.clone() {
            Op::Allocate { .. } => return self.allocate(op),
            Op::Release { pick, doubtful } => {
                if let Some(token) = self.pick_lease(pick) {
                    self.release(token, doubtful);
                }
            }
            Op::ReleaseOld { pick, doubtful } if !self.all_tokens.is_empty() => {
                self.release(self.all_tokens[pick % self.all_tokens.len()], doubtful);
            }
            Op::ReleaseWrong => self.release(Token([0xff; 16]), false),
            Op::Pass(millis) => {
                self.now += ms(millis);
                self.state.tick(self.now);
                let (effects, ended) = self.drain();
                self.model.tick(self.now, &ended);
                return effects;
            }
            Op::ConnectionClosed(connection) => {
                self.state.connection_closed(now, ConnectionId(connection));
                let (effects, ended) = self.drain();
                self.model.connection_closed(now, &ended, ConnectionId(connection));
                return effects;
            }
            Op::Stop => {
                self.state.stop(now);
                let (effects, ended) = self.drain();
                self.model.stop(now, &ended);
                return effects;
            }
            Op::SetRules(set) => {
                let start = Start { networks: 77, ready: 77, max: 77, rules: set.clone() };
                self.state.set_rules(now, rules(&start, &set));
                self.model.set_rules(now, rules(&start, &set));
            }
            Op::Cancel(_) | Op::Deliver(_) | Op::Undo(_) | Op::ForceRelease(_) | Op::ForceStale(_) | Op::Renew { .. } | Op::RenewOld(_) => {
                self.caller(op);
            }
            Op::Joined(_) | Op::JoinerUnknown(_) | Op::JoinerStopped(..) | Op::JoinerRemoved(..) | Op::Listed(_) => self.container(op),
            Op::Resize(..) | Op::Cordon(_) | Op::Uncordon | Op::Recycle(..) | Op::Engine(_) => self.operator(op),
            _ if self.state.slot_count() > 0 => self.nanny(op),
            _ => {}
        }
        self.drain().0
    }

    fn pick_lease(&self, pick: usize) -> Option<Token> {
        (!self.model.leases.is_empty()).then(|| self.model.leases[pick % self.model.leases.len()].token)
    }

    fn allocate(&mut self, op: &Op) -> Vec<Effect> {
        let Op::Allocate { uid, owner, id, tenant, network, life, wait } = op else { unreachable!() };
        let request = Request {
            uid: *uid,
            owner: owner.to_string(),
            tenant: tenant.to_string(),
            request_id: id.map(|id| id.to_string()),
            network: network.map(|network| network % self.model.rules.networks as u16),
            lifetime: match *life {
                // Few different ones, so that a retry asks for the same.
                Life::Joiners(millis) => Lifetime::Joiners { join_by: ms(millis / 1000 * 1000) },
                Life::Ttl(millis) => Lifetime::Ttl(ms(millis / 1000 * 1000)),
                Life::Connection(connection) => Lifetime::Connection(ConnectionId(connection)),
            },
            labels: BTreeMap::new(),
        };
        self.next_token += 1;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next_token.to_be_bytes());
        let token = Token(bytes);
        let real = self.state.allocate(self.now, request.clone(), token, *wait);
        let effects = self.drain().0;
        let expected = self.model.allocate(self.now, &request, token, *wait);
        let real = real.map_err(|denied| word(&denied));
        match (real, expected) {
            (Err(real), Err(expected)) => assert_eq!(real, expected),
            (Ok(Allocated::Granted(index)), Ok(Answer::Granted(key))) => {
                assert_eq!((self.state.view(index).key, self.state.view(index).token), (key, token));
                self.all_tokens.push(token);
                self.granted(key);
                self.deliver(key);
            }
            (Ok(Allocated::Repeated(index)), Ok(Answer::Repeated(key))) => {
                let view = self.state.view(index);
                assert_eq!(view.key, key);
                assert!(self.state.delivered(index, view.token), "as the pool does before it answers");
                self.deliver(key);
            }
            (Ok(Allocated::Waiting(id)), Ok(Answer::Queued)) => {
                assert!(!self.all_waiters.contains(&id), "a waiter's number came twice");
                self.all_waiters.push(id);
                self.model.queued(self.now, Waiter { id, request, token });
            }
            (Ok(Allocated::Waiting(real)), Ok(Answer::Waiting(expected))) => assert_eq!(real, expected),
            (real, expected) => panic!("allocate: {real:?}, expected {expected:?}"),
        }
        effects
    }

    /// I2 and I10, at each hand-out.
    fn granted(&self, key: UseKey) {
        assert!(!self.delivered.contains(&(key.generation, key.use_number)), "use {key} is lent twice");
        assert!(!self.occupied.contains(&key.generation), "use {key} is lent with somebody inside");
        let before = (key.generation, key.use_number - 1);
        assert!(key.use_number == 1 || self.vouched.contains(&before), "use {key} is lent and nobody vouched for the last one");
    }

    fn deliver(&mut self, key: UseKey) {
        self.delivered.insert((key.generation, key.use_number));
    }

    fn release(&mut self, token: Token, doubtful: bool) {
        let lease = self.model.leases.iter().find(|lease| lease.token == token);
        let vouched = lease.filter(|lease| !lease.lost && !doubtful).map(|lease| (lease.key.generation, lease.key.use_number));
        let real = self.state.release(self.now, token, doubtful).map(plain).map_err(|denied| word(&denied));
        assert_eq!(real, self.model.release(self.now, token, doubtful).map(plain));
        self.vouched.extend(vouched);
    }

    fn caller(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Cancel(pick) if !self.all_waiters.is_empty() => {
                // The latest ones, so that it often is one that waits.
                let id = self.all_waiters[self.all_waiters.len() - 1 - pick % self.all_waiters.len().min(3)];
                let real = self.state.cancel_wait(now, id).map(|denied| word(&denied));
                assert_eq!(real, self.model.cancel(now, id));
            }
            Op::Deliver(pick) if !self.granted_late.is_empty() => {
                let (index, token) = self.granted_late[self.granted_late.len() - 1 - pick % self.granted_late.len().min(4)];
                let key = self.model.leases.iter().find(|lease| lease.token == token).map(|lease| lease.key);
                let real = self.state.delivered(index, token);
                assert_eq!(real, self.model.delivered(token));
                if let Some(key) = key {
                    self.deliver(key);
                }
            }
            Op::Undo(pick) if !self.granted_late.is_empty() => {
                let (index, token) = self.granted_late[self.granted_late.len() - 1 - pick % self.granted_late.len().min(4)];
                self.state.undo(now, index, token);
                self.model.undo(now, token);
            }
            Op::ForceRelease(pick) => {
                let key =
                    self.pick_lease(pick).and_then(|token| self.model.leases.iter().find(|lease| lease.token == token)).map(|l| l.key);
                if let Some(key) = key {
                    self.force(key);
                }
            }
            Op::ForceStale(pick) if !self.all_keys.is_empty() => self.force(self.all_keys[pick % self.all_keys.len()]),
            Op::Renew { pick, ttl } => {
                if let Some(token) = self.pick_lease(pick) {
                    self.renew(token, ttl);
                }
            }
            Op::RenewOld(pick) if !self.all_tokens.is_empty() => self.renew(self.all_tokens[pick % self.all_tokens.len()], None),
            _ => {}
        }
    }

    fn force(&mut self, key: UseKey) {
        let real = self.state.force_release(self.now, key).map_err(|denied| word(&denied));
        assert_eq!(real, self.model.force_release(self.now, key));
    }

    fn renew(&mut self, token: Token, ttl: Option<u64>) {
        let real = self.state.renew(self.now, token, ttl.map(ms)).map_err(|denied| word(&denied));
        assert_eq!(real, self.model.renew(self.now, token, ttl.map(ms)));
    }

    fn operator(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Resize(ready, max) => {
                let real = self.state.resize(now, ready, max).map_err(|denied| word(&denied));
                assert_eq!(real, self.model.resize(now, ready, max));
            }
            Op::Cordon(draining) => {
                self.state.cordon(draining);
                self.model.cordon(now, draining);
            }
            Op::Uncordon => {
                self.state.uncordon();
                self.model.uncordon();
            }
            Op::Recycle(pick, force) => {
                let slot = (pick % (self.state.slot_count() as usize + 1)) as u32;
                let real = self.state.recycle(now, slot, force).map_err(|denied| word(&denied));
                assert_eq!(real, self.model.recycle(now, slot, force));
            }
            Op::Engine(up) => {
                self.state.set_engine_up(up);
                self.model.engine_up = up;
                self.model.joiner_unknown(None);
            }
            _ => unreachable!(),
        }
    }

    fn namespace(&self, key: UseKey, container: &Arc<str>) -> Arc<Namespace> {
        let namespace_id = format!("ns-{key}");
        Arc::new(Namespace {
            network_mode: format!("container:{namespace_id}"),
            namespace_id,
            host_config: String::new(),
            container_id: Arc::clone(container),
            tell_container_id: false,
            started_at: String::new(),
            folder: String::new(),
            addresses: Vec::new(),
            resolv_conf: String::new(),
            mtu: 0,
            pid: 0,
        })
    }

    fn nanny(&mut self, op: &Op) {
        let now = self.now;
        let slot_at = |pick: usize| (pick % self.state.slot_count() as usize) as u32;
        match *op {
            Op::Nanny(pick) => self.obvious(slot_at(pick)),
            Op::BuddyGone(pick, age) => {
                let key = self.pick_key(pick, age);
                self.state.buddy_gone(now, key, "gone");
                self.model.buddy_gone(now, key);
            }
            Op::Vacated(pick, age) => self.vacated(self.pick_key(pick, age)),
            Op::Cooling(pick, is) => {
                let key = self.pick_key(pick, Age::Present);
                self.state.cooling(now, key, is);
                self.model.cooling(now, key, is);
            }
            Op::Renewed(pick, age) => self.renewed(self.pick_key(pick, age)),
            Op::Occupied(pick, age) => {
                let key = self.pick_key(pick, age);
                self.state.occupied(now, key, vec!["somebody".into()]);
                self.model.occupied(now, key, vec!["somebody".into()]);
                let there = self.model.slots.get(key.slot as usize).is_some_and(|slot| slot.state == SlotState::Quarantined);
                if there && self.model.key(key.slot) == key {
                    self.occupied.insert(key.generation);
                }
            }
            Op::Spoiled(pick, age) => {
                let key = self.pick_key(pick, age);
                self.state.spoiled(now, key, "spoiled");
                self.model.spoiled(now, key);
            }
            Op::Detach(pick, age) => {
                let key = self.pick_key(pick, age);
                assert_eq!(self.state.detach(now, key), self.model.detach(now, key));
            }
            Op::DetachedRemoved if self.model.detached > 0 => {
                self.state.detached_removed();
                self.model.detached -= 1;
            }
            Op::Removed(pick, age) => self.removed(self.pick_key(pick, age)),
            Op::Registered(pick) if !self.preparing.is_empty() => {
                let (slot, generation) = self.preparing[pick % self.preparing.len()];
                if !self.model.has_buddy(slot) {
                    self.registered(slot, generation);
                }
            }
            Op::FillFailed(pick) if !self.preparing.is_empty() => {
                let (slot, generation) = self.preparing.remove(pick % self.preparing.len());
                self.fill_failed(slot, generation);
            }
            Op::FillFailedStale(pick) => self.fill_failed(slot_at(pick), 1),
            Op::BackoffOver(pick) => self.backoff_over(slot_at(pick)),
            Op::Healthy(pick) => {
                let slot = slot_at(pick);
                self.state.healthy(slot);
                self.model.slots[slot as usize].failures = 0;
            }
            Op::DiedYoung(pick) => {
                let slot = slot_at(pick);
                self.state.note_failure(slot, "young");
                self.model.note_failure(slot);
            }
            Op::NoteError(pick) => {
                let slot = slot_at(pick);
                self.state.note_error(slot, "noted");
                self.model.slots[slot as usize].errors = true;
            }
            _ => {}
        }
    }

    fn pick_key(&self, pick: usize, age: Age) -> UseKey {
        let present = self.model.key((pick % self.model.slots.len()) as u32);
        match age {
            Age::Past(past) if !self.all_keys.is_empty() => self.all_keys[past % self.all_keys.len()],
            Age::Present | Age::Past(_) => present,
            Age::Invented => UseKey { slot: present.slot * 7, generation: present.generation, use_number: present.use_number + 1 },
        }
    }

    /// What a nanny says when all goes well.
    fn obvious(&mut self, slot: u32) {
        match self.state.order(slot) {
            Order::Adopt(_) => unreachable!("no predecessor in this story"),
            Order::Rest | Order::Tend(_) => {}
            Order::Fill { generation } => self.registered(slot, generation),
            Order::BackOff => self.backoff_over(slot),
            Order::Vacate(key) | Order::Await(key) => self.vacated(key),
            Order::Renew(key) => {
                self.state.cooling(self.now, key, false);
                self.model.cooling(self.now, key, false);
                self.renewed(key);
            }
            Order::Retire(key) => self.removed(key),
        }
    }

    fn registered(&mut self, slot: u32, generation: u64) {
        // A nanny does one thing after another: what it was told to prepare before is over.
        self.preparing.retain(|(other, _)| *other != slot);
        self.next_container += 1;
        let container: Arc<str> = format!("container-{:010}", self.next_container).into();
        let key = UseKey { slot, generation, use_number: 1 };
        let namespace = self.namespace(key, &container);
        self.all_buddies.push((Arc::clone(&container), namespace.namespace_id.clone()));
        self.state.registered(self.now, slot, generation, Arc::clone(&namespace));
        self.model.registered(self.now, slot, generation, namespace);
    }

    fn fill_failed(&mut self, slot: u32, generation: u64) {
        self.state.fill_failed(self.now, slot, generation, "no");
        self.model.fill_failed(self.now, slot, generation);
    }

    fn backoff_over(&mut self, slot: u32) {
        self.state.backoff_over(self.now, slot);
        self.model.backoff_over(self.now, slot);
    }

    fn vacated(&mut self, key: UseKey) {
        let next = self.next_use(key);
        self.state.vacated(self.now, key, Arc::clone(&next));
        self.model.vacated(self.now, key, next);
    }

    fn renewed(&mut self, key: UseKey) {
        let next = self.next_use(key);
        self.state.renewed(self.now, key, Arc::clone(&next));
        self.model.renewed(self.now, key, next);
    }

    fn next_use(&self, key: UseKey) -> Arc<Namespace> {
        let next = UseKey { use_number: key.use_number + 1, ..key };
        let container =
            self.model.slots.get(key.slot as usize).and_then(|slot| slot.namespace.as_ref()).map(|n| Arc::clone(&n.container_id));
        self.namespace(next, &container.unwrap_or_else(|| "none".into()))
    }

    fn removed(&mut self, key: UseKey) {
        self.state.removed(self.now, key);
        self.model.removed(self.now, key);
    }

    // ---- containers ----------------------------------------------------------------------------------------------------------------

    fn seen(&self, seen: Seen) -> Option<JoinerSeen> {
        let buddy = self.pick_buddy(seen.buddy)?;
        let present = self.model.slots.iter().filter_map(|slot| slot.namespace.as_ref()).find(|n| n.container_id == buddy);
        let namespace_id = match seen.label {
            Label::None => None,
            Label::Right => present.map(|namespace| namespace.namespace_id.clone()),
            Label::Wrong => Some("ns-of-another".to_owned()),
        };
        Some(JoinerSeen {
            buddy,
            joiner: format!("joiner-{}", seen.joiner).into(),
            namespace_id,
            live: seen.live,
            bounded: seen.bounded,
            as_of: self.now.saturating_sub(seen.age),
        })
    }

    /// Mostly one of the latest.
    fn pick_buddy(&self, pick: usize) -> Option<Arc<str>> {
        let all = self.all_buddies.len();
        (all > 0).then(|| Arc::clone(&self.all_buddies[all - 1 - pick % all.min(6)].0))
    }

    fn container(&mut self, op: &Op) {
        let now = self.now;
        match op {
            Op::JoinerUnknown(pick) => {
                let named = self.model.slots.get(*pick).and_then(|place| place.namespace.as_ref());
                let label = named.map(|namespace| namespace.namespace_id.clone());
                self.state.joiner_unknown(label.as_deref());
                self.model.joiner_unknown(label.as_deref());
            }
            Op::Joined(seen) => {
                if let Some(seen) = self.seen(*seen) {
                    assert_eq!(self.state.joined(now, &seen), self.model.joined(now, &seen));
                }
            }
            Op::Listed(all) => {
                let all: Vec<JoinerSeen> = all.iter().filter_map(|seen| self.seen(*seen)).collect();
                assert_eq!(self.state.joiners_listed(now, &all).len(), self.model.listed(now, &all));
            }
            Op::JoinerStopped(buddy, joiner) => {
                if let Some(buddy) = self.pick_buddy(*buddy) {
                    self.state.joiner_stopped(&buddy, &format!("joiner-{joiner}"));
                    self.model.joiner_stopped(&buddy, &format!("joiner-{joiner}"));
                }
            }
            Op::JoinerRemoved(buddy, joiner) => {
                if let Some(buddy) = self.pick_buddy(*buddy) {
                    self.state.joiner_removed(now, &buddy, &format!("joiner-{joiner}"));
                    self.model.joiner_removed(now, &buddy, &format!("joiner-{joiner}"));
                }
            }
            _ => unreachable!(),
        }
    }

    // ---- comparisons ---------------------------------------------------------------------------------------------------------------

    fn compare_told(&mut self, effects: Vec<Effect>) {
        let mut real = Told::default();
        for effect in effects {
            match effect {
                Effect::Nudge(_) => {}
                Effect::Granted(waiter, index) => {
                    let lease = self.state.view(index);
                    real.granted.push((waiter, lease.token, lease.key));
                    self.granted_late.push((index, lease.token));
                    self.all_tokens.push(lease.token);
                    self.granted(lease.key);
                }
                Effect::Refused(waiter, denied) => real.refused.push((waiter, word(&denied))),
                Effect::Ended(key, _) => real.ended.push(key),
                Effect::Event(PoolEvent::Joined(note)) => real.events.push(format!("joined {} {}", note.key, note.namespace_id)),
                Effect::Event(PoolEvent::Lost(note)) => real.events.push(format!("lost {} {}", note.key, note.namespace_id)),
                Effect::Event(PoolEvent::Ending(note)) => real.events.push(format!("ending {} {}", note.key, note.namespace_id)),
                Effect::Event(PoolEvent::Cordon { cordoned, draining }) => real.events.push(format!("cordon {cordoned} {draining}")),
            }
        }
        let mut expected = std::mem::take(&mut self.model.told);
        for told in [&mut real, &mut expected] {
            told.events.sort();
            told.ended.sort();
        }
        assert_eq!(real, expected);
    }

    fn compare_slots(&mut self) {
        assert_eq!(self.state.slot_count() as usize, self.model.slots.len());
        let mut fresh = Vec::new();
        for (number, expected) in self.model.slots.iter().enumerate() {
            let real = self.state.slot_view(number as u32);
            assert_eq!(real.key, self.model.key(number as u32), "slot {number}");
            assert_eq!((real.state, real.since), (expected.state, expected.since), "slot {number}");
            assert_eq!(real.doom.is_some(), expected.doomed, "slot {number}: doom {:?}", real.doom);
            assert_eq!(real.namespace, expected.namespace, "slot {number}");
            assert_eq!((real.failures, real.last_error.is_some()), (expected.failures, expected.errors), "slot {number}: failures");
            assert_eq!(*real.occupants, expected.occupants, "slot {number}: occupants");
            assert_eq!(real.unbounded, expected.unbounded, "slot {number}: unbounded");
            assert_eq!(u32::from(real.network), expected.network);
            if expected.state == SlotState::Filling && expected.generation > self.newest_generation {
                fresh.push(expected.generation);
            }
        }
        fresh.sort_unstable();
        for generation in fresh {
            assert_eq!(generation, self.newest_generation + 1, "generations have no gaps, and never go back");
            self.newest_generation = generation;
        }
    }

    fn compare_leases(&self) {
        let mut real: Vec<_> = self.state.lease_views(None);
        real.sort_by_key(|lease| lease.token.0);
        let mut expected: Vec<_> = self.model.leases.iter().collect();
        expected.sort_by_key(|lease| lease.token.0);
        assert_eq!(real.len(), expected.len(), "leases");
        for (real, expected) in real.iter().zip(expected) {
            assert_eq!((real.token, real.key), (expected.token, expected.key));
            assert_eq!((real.deadline, real.lost.is_some()), (expected.deadline, expected.lost), "lease {}", real.key);
            assert_eq!((real.joiners, real.allocated_at), (expected.joiners.len(), expected.allocated_at), "lease {}", real.key);
            assert_eq!((&*real.request, &real.namespace), (&expected.request, &expected.namespace), "lease {}", real.key);
        }
    }

    /// What a daemon would find that was started now: every lease, every buddy that was ready, and nothing else.
    fn restart(&mut self) {
        self.journal.extend(self.state.take_journal());
        let rules = Rules { ready: 0, max: 0, ..self.model.rules.clone() };
        let recorded = Table::read(&self.journal);
        self.compare_recorded(recorded.clone());
        // An earlier release finds the same.
        in_the_pool::agree(&format_1::read(&self.journal), &recorded, &self.state, &self.names);
        let mut next = State::new(rules, FIRST_GENERATION);
        next.record_with(Arc::clone(&self.names));
        next.restore(self.now, recorded);
        next.check();
        let leases = |state: &State| {
            let mut views = state.lease_views(None);
            views.sort_by_key(|lease| lease.token.0);
            views
        };
        let (was, is) = (leases(&self.state), leases(&next));
        assert_eq!(was.len(), is.len(), "leases over a restart");
        for (was, is) in was.iter().zip(&is) {
            assert_eq!((was.token, was.key, &was.lost, &was.namespace), (is.token, is.key, &is.lost, &is.namespace));
            assert_eq!((was.network, was.allocated_at), (is.network, is.allocated_at));
            let (old, new) = (&*was.request, &*is.request);
            assert_eq!((old.uid, &old.owner, &old.tenant, &old.request_id), (new.uid, &new.owner, &new.tenant, &new.request_id));
            assert_eq!((old.network, &old.labels), (new.network, &new.labels));
            match (old.lifetime, new.lifetime) {
                (Lifetime::Connection(_), Lifetime::Connection(_)) => assert!(is.deadline.is_some(), "nobody would end {}", is.key),
                (old, new) => assert_eq!(old, new),
            }
            assert!(is.deadline.is_none_or(|deadline| deadline >= self.now + GRACE), "{} ends within the grace", is.key);
            assert!(was.deadline.is_none_or(|was| is.deadline.is_none_or(|is| is >= was)), "{} ends early", is.key);
        }
        for slot in 0..self.state.slot_count() {
            let was = self.state.slot_view(slot);
            let is = (slot < next.slot_count()).then(|| next.slot_view(slot));
            let expected = match was.state {
                SlotState::Ready => Some(SlotState::Adopting),
                SlotState::Leased => Some(SlotState::Leased),
                _ => None,
            };
            let found = is.as_ref().map(|is| is.state).filter(|state| *state != SlotState::Idle);
            assert_eq!(found, expected, "slot {slot} after a restart, it was {:?}", was.state);
            if let Some(is) = is.filter(|_| expected.is_some()) {
                assert_eq!((was.key, was.network, was.namespace), (is.key, is.network, is.namespace));
                assert_eq!(next.order(slot), Order::Adopt(is.key));
            }
        }
        assert_eq!(next.doors().0, self.state.doors().0, "the cordon");
    }

    /// Record by record it came to what would be written anew.
    fn compare_recorded(&self, mut recorded: Table) {
        let mut told = self.state.told();
        // Deadlines that follow from others' doings are not recorded: over a restart there is the grace.
        recorded.leases.values_mut().chain(told.leases.values_mut()).for_each(|lease| lease.deadline = None);
        assert_eq!(recorded.leases, told.leases);
        assert_eq!(recorded.buddies, told.buddies);
        assert_eq!(recorded.doors.is_some_and(|doors| doors.cordoned), told.doors.is_some_and(|doors| doors.cordoned));
        // A ledger may remember for longer.
        assert!(told.ended.iter().all(|ended| recorded.ended.contains(ended)), "{:?} are not all in {:?}", told.ended, recorded.ended);
    }

    fn compare_usage(&self) {
        let (usage, model) = (self.state.usage(), &self.model);
        let total = |states: &[SlotState]| (0..model.rules.networks).map(|network| model.count(network, states)).sum::<u32>();
        assert_eq!(usage.ready, total(&[SlotState::Ready]));
        assert_eq!(usage.leased, total(&[SlotState::Leased]));
        assert_eq!(usage.filling, total(&[SlotState::Filling]));
        assert_eq!(usage.vacating, total(&[SlotState::Vacating]));
        assert_eq!((usage.renewing, usage.cooling), (total(&[SlotState::Renewing]), total(&[SlotState::Cooling])));
        assert_eq!(usage.quarantined, total(&[SlotState::Quarantined]));
        assert_eq!(usage.retiring, total(&[SlotState::Retiring]));
        assert_eq!((usage.target, usage.max), (model.rules.ready, model.rules.max));
        assert_eq!(usage.waiting as usize, model.waiters.len());
        assert_eq!((usage.misses, usage.allocations, usage.detached), (model.misses, model.allocations, model.detached));
        assert_eq!(self.state.stale(), model.stale, "stale messages");
        assert_eq!(self.state.doors(), (model.cordoned, model.draining));
    }
}
