//! The pool as a pure state machine: every slot's state, the free lists, the leases, the waiters. No clock, no I/O, no tokio, no randomness:
//! time, tokens and facts come in as arguments, what is to be done goes out as [`Effect`]s.
//!
//! ```text
//!  Vacant{Idle ⇄ Filling ⇄ BackingOff} ─registered─► Ready ─allocate─► Leased ─the lease ends─► Vacating ─vacated─► Ready (reuse = "always")
//!      ▲                                              │ doom            │ died: lease LOST       │    │
//!      │                                              ▼                 ▼                        │    ├─ vacated (reuse = "fresh") ─► Renewing ⇄ Cooling, ─renewed─► Ready
//!      │                                              │                 │                        │    │                      └─ spoiled, doom ─► Retiring
//!      │                                              │                 │                        │    └─ vacated (otherwise) ─► Retiring
//!      ├──────────────── removed ───────────────── Retiring ◄───────────┘                        │ occupied
//!      │                                              │ occupied ─► Quarantined ◄────────────────┘
//!      └──────────────── detached ───────────────────────────────── Quarantined ─vacated─► Retiring
//! ```
//!
//! At the start of a daemon, slots that its predecessor left Ready are Adopting until their nannies have proven the buddies again, and leased ones
//! are Leased, unproven.
//!
//! Beside this file: `sizing` (what is wanted against what is there), `roll` (one image for all), `leases`, `joiners`, `waiters`, `doors` (what operators say).
//!
//! What it promises: I1 (one state each, all counts follow from [`State::set_state`], the only place that changes one), I2 (a use has at most one
//! lease; a stale [`UseKey`] changes nothing and is counted), constant time for every operation on the way of an Allocate, a Release or a
//! buddy's death. What it deliberately does not know: engines, nannies, the wire.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::deadlines::Deadlines;
use super::ended::Ended;
use super::journal::Journal;
use super::leases::{Lease, LeaseIndex};
use super::list::{List, Listed, Place, Places};
use super::tenants::Had;
use super::types::{Denied, Moment, Namespace, NetworkIndex, PoolEvent, RequestKey, SlotIndex, Token, UseKey, Words};
use super::waiters::{WaiterId, Waiters};
use crate::random::HashMap;

/// Where a slot is in its life. Each variant's exits are in the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// A predecessor's buddy that was ready: its nanny proves it again.
    Adopting,
    /// No buddy, and none wanted.
    Idle,
    /// No buddy yet: its nanny prepares one.
    Filling,
    /// No buddy: the last preparation failed, the next is due later.
    BackingOff,
    /// A proven buddy in the free list.
    Ready,
    /// A use of it is lent out.
    Leased,
    /// The use is over: the fence goes up, and nobody may be left.
    Vacating,
    /// Fenced and empty: the buddy moves into a new network namespace, or its own is inspected.
    Renewing,
    /// Fenced and empty: it waits for an address that has rested.
    Cooling,
    /// Somebody is left inside.
    Quarantined,
    /// On its way out: fenced, proven empty, removed.
    Retiring,
}

/// All states, in the order of their counters.
pub const STATES: [SlotState; 11] = [
    SlotState::Adopting,
    SlotState::Idle,
    SlotState::Filling,
    SlotState::BackingOff,
    SlotState::Ready,
    SlotState::Leased,
    SlotState::Vacating,
    SlotState::Renewing,
    SlotState::Cooling,
    SlotState::Quarantined,
    SlotState::Retiring,
];

impl SlotState {
    /// The word that people and programs see. The three without a buddy are all `vacant` to them.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Adopting => "adopting",
            Self::Idle | Self::Filling | Self::BackingOff => "vacant",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Vacating => "vacating",
            Self::Renewing => "renewing",
            Self::Cooling => "cooling",
            Self::Quarantined => "quarantined",
            Self::Retiring => "retiring",
        }
    }

    /// With a buddy that counts as one: one that is being adopted counts as being filled.
    pub(super) fn is_settled(self) -> bool {
        self.has_buddy() && self != Self::Adopting
    }

    pub(super) fn has_buddy(self) -> bool {
        match self {
            Self::Idle | Self::Filling | Self::BackingOff => false,
            Self::Adopting
            | Self::Ready
            | Self::Leased
            | Self::Vacating
            | Self::Renewing
            | Self::Cooling
            | Self::Quarantined
            | Self::Retiring => true,
        }
    }
}

/// What becomes of a buddy once a vouched-for use is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// Retired.
    Retire,
    /// Ready again, in a network namespace that never was.
    Renew,
    /// Ready again, once it is proven that its namespaces are as they were.
    Verify,
    /// Ready again.
    Reuse,
}

/// Sizes and bounds; all may change while it runs but the networks.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How many networks there are.
    pub networks: u32,
    /// Slots kept ready, over all networks.
    pub ready: u32,
    /// Buddies that may exist, over all networks.
    pub max: u32,
    /// The reuse policy, by network; none is [`Afterwards::Retire`].
    pub afterwards: Arc<[Afterwards]>,
    /// A namespace that is used again goes to nobody but the tenant who had it.
    pub keep_tenants: bool,
    /// See `config::Pool`.
    pub linger: Duration,
    /// See `config::Pool`.
    pub max_detached: u32,
    /// See `config::Pool`.
    pub max_waiting: u32,
    /// See `config::Pool`.
    pub quota_per_uid: Option<u32>,
    /// See `config::Pool`.
    pub remember: Duration,
    /// See `config::Pool`.
    pub remember_max: u32,
    /// See `config::Pool`.
    pub trim_after: Duration,
}

/// What the shell has to do after a call; in order.
#[derive(Debug)]
pub enum Effect {
    /// The slot's order may have changed: its nanny should look.
    Nudge(SlotIndex),
    /// A waiter got a lease.
    Granted(WaiterId, LeaseIndex),
    /// A waiter got a no.
    Refused(WaiterId, Denied),
    /// Tell the watchers.
    Event(PoolEvent),
    /// A lease is over; how.
    Ended(UseKey, &'static str),
}

/// What the nanny of a slot should do now: a level, to be read again after each nudge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    Rest,
    /// Look at what a predecessor had in the slot, say [`State::proven`] or [`State::buddy_gone`].
    Adopt(UseKey),
    /// Prepare a buddy of this generation.
    Fill {
        /// For its name and labels.
        generation: u64,
    },
    /// The last preparation failed: say [`State::backoff_over`] when the backoff is over.
    BackOff,
    /// Watch over the buddy.
    Tend(UseKey),
    /// Put up the fence, see that nobody is left, say [`State::vacated`] or [`State::occupied`].
    Vacate(UseKey),
    /// By its network's policy move the buddy into a new network namespace, or prove that its own is as it was; say [`State::renewed`].
    Renew(UseKey),
    /// Wait until nobody is left, then say [`State::vacated`].
    Await(UseKey),
    /// Fence, see that nobody is left, remove, say [`State::removed`].
    Retire(UseKey),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub state: SlotState,
    pub since: Moment,
    /// A predecessor's buddy that its nanny has not looked at yet.
    pub unproven: bool,
    pub place: Place,
    pub network: NetworkIndex,
    pub generation: u64,
    pub use_number: u64,
    /// When this daemon found the present use to be empty; zero for a predecessor's lease.
    pub use_since: Moment,
    /// Somebody was seen while it was looked for who is inside: one look may have been too early.
    pub look_again: bool,
    /// Whose functions have been in its namespace.
    pub had: Had,
    /// Somebody who can do more than root with NET_ADMIN was in the present use, or may have been.
    pub unbounded: bool,
    pub namespace: Option<Arc<Namespace>>,
    /// What its buddy was made from, as its nanny says it.
    pub image: Option<Arc<str>>,
    pub lease: Option<LeaseIndex>,
    /// Why its buddy is not to be used again after this.
    pub doom: Option<Words>,
    pub failures: u32,
    /// The present buddy did; its slot backs off before the next.
    pub died_young: bool,
    pub last_error: Option<Words>,
    /// Who holds it in quarantine.
    pub occupants: Arc<[String]>,
}

impl Slot {
    /// Somebody may be in its buddy, or may have been, who can do more than root with NET_ADMIN. A look that is under way may have asked before.
    pub(super) fn found_unbounded(&mut self) {
        let in_use = matches!(self.state, SlotState::Leased | SlotState::Vacating | SlotState::Renewing | SlotState::Cooling);
        if in_use && !self.unbounded {
            self.unbounded = true;
            self.look_again |= self.state != SlotState::Leased;
        }
    }
}

impl Listed for Slot {
    fn place(&mut self) -> &mut Place {
        &mut self.place
    }
}

#[derive(Debug, Default)]
pub(super) struct Network {
    pub ready: List,
    pub idle: List,
    pub counts: [u32; STATES.len()],
    pub surplus_since: Option<Moment>,
    /// Ready ones beyond the target, so that others can go: see `roll`.
    pub ahead: u32,
}

impl Network {
    pub(super) fn count(&self, state: SlotState) -> u32 {
        self.counts[state as usize]
    }
}

/// See the module.
#[derive(Debug)]
pub struct State {
    pub(super) rules: Rules,
    pub(super) slots: Vec<Slot>,
    pub(super) places: Places,
    pub(super) networks: Vec<Network>,
    pub(super) leases: slab::Slab<Lease>,
    pub(super) by_token: HashMap<Token, LeaseIndex>,
    pub(super) by_request: HashMap<RequestKey, super::leases::Known>,
    pub(super) by_container: HashMap<Arc<str>, SlotIndex>,
    pub(super) by_connection: HashMap<super::types::ConnectionId, BTreeSet<LeaseIndex>>,
    pub(super) leases_per_uid: HashMap<u32, u32>,
    pub(super) deadlines: Deadlines,
    pub(super) ended: Ended,
    pub(super) waiters: Waiters,
    pub(super) effects: Vec<Effect>,
    pub(super) next_generation: u64,
    pub(super) lost: u32,
    pub(super) detached: u32,
    /// Slots whose buddy is unproven.
    pub(super) unproven: u32,
    pub(super) cordoned: bool,
    pub(super) draining: bool,
    pub(super) stopping: bool,
    /// … and leaves everything as it is for the next daemon.
    pub(super) keeping: bool,
    /// Slots are filled and given up; not so while a predecessor's are adopted.
    pub(super) opened: bool,
    /// Sizes of the configuration, and those that an operator asked for instead: `ready` and `max`.
    pub(super) configured: (u32, u32),
    pub(super) asked_sizes: Option<(u32, u32)>,
    /// Nothing ends by itself before.
    pub(super) grace_until: Moment,
    pub(super) journal: Journal,
    pub(super) engine_up: bool,
    /// Something was ready since the start.
    pub(super) filled_once: bool,
    pub(super) misses: u64,
    pub(super) allocations: u64,
    pub(super) stale: u64,
    /// A moving average of how long a preparation takes.
    pub(super) fill_time: Option<Duration>,
}

impl State {
    /// An empty pool whose first buddy gets `first_generation`. Fills nothing before [`State::resize`].
    #[must_use]
    pub fn new(rules: Rules, first_generation: u64) -> Self {
        let networks = (0..rules.networks).map(|_| Network::default()).collect();
        Self {
            waiters: Waiters::new(rules.networks),
            ended: Ended::default(),
            configured: (rules.ready, rules.max),
            rules,
            networks,
            slots: Vec::new(),
            places: Places::default(),
            leases: slab::Slab::new(),
            by_token: HashMap::default(),
            by_request: HashMap::default(),
            by_container: HashMap::default(),
            by_connection: HashMap::default(),
            leases_per_uid: HashMap::default(),
            deadlines: Deadlines::default(),
            effects: Vec::new(),
            next_generation: first_generation,
            lost: 0,
            detached: 0,
            unproven: 0,
            cordoned: false,
            draining: false,
            stopping: false,
            keeping: false,
            opened: true,
            asked_sizes: None,
            grace_until: Moment::ZERO,
            journal: Journal::default(),
            engine_up: false,
            filled_once: false,
            misses: 0,
            allocations: 0,
            stale: 0,
            fill_time: None,
        }
    }

    /// What is to be done, in order. Empty it after every call.
    pub fn take_effects(&mut self) -> std::vec::Drain<'_, Effect> {
        self.effects.drain(..)
    }

    /// Slots there are, by number; never shrinks.
    #[must_use]
    pub fn slot_count(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// What the nanny of `slot` should do now.
    #[must_use]
    pub fn order(&self, slot: SlotIndex) -> Order {
        let (key, place) = (self.key(slot), &self.slots[slot as usize]);
        if self.keeping {
            return Order::Rest;
        }
        if place.unproven {
            return Order::Adopt(key);
        }
        match place.state {
            SlotState::Idle => Order::Rest,
            // Only with a buddy that is unproven.
            SlotState::Adopting => Order::Adopt(key),
            SlotState::Filling => Order::Fill { generation: key.generation },
            SlotState::BackingOff => Order::BackOff,
            SlotState::Ready | SlotState::Leased => Order::Tend(key),
            SlotState::Vacating => Order::Vacate(key),
            SlotState::Renewing | SlotState::Cooling => Order::Renew(key),
            SlotState::Quarantined => Order::Await(key),
            SlotState::Retiring => Order::Retire(key),
        }
    }

    pub(super) fn key(&self, slot: SlotIndex) -> UseKey {
        let place = &self.slots[slot as usize];
        UseKey { slot, generation: place.generation, use_number: place.use_number }
    }

    /// Whether `key` is the slot's present; counts it when it is stale.
    fn is_present(&mut self, key: UseKey) -> bool {
        let present = (key.slot as usize) < self.slots.len() && self.key(key.slot) == key;
        self.stale += u64::from(!present);
        present
    }

    /// The one place where a slot changes its state: counters, lists and the nanny's nudge move together.
    pub(super) fn set_state(&mut self, now: Moment, slot: SlotIndex, state: SlotState) {
        let (before, network) = (self.slots[slot as usize].state, self.slots[slot as usize].network);
        let network = &mut self.networks[usize::from(network)];
        match before {
            SlotState::Ready => network.ready.remove(slot, &mut self.slots),
            SlotState::Idle => network.idle.remove(slot, &mut self.slots),
            SlotState::Adopting
            | SlotState::Filling
            | SlotState::BackingOff
            | SlotState::Leased
            | SlotState::Vacating
            | SlotState::Renewing
            | SlotState::Cooling
            | SlotState::Quarantined
            | SlotState::Retiring => {}
        }
        network.counts[before as usize] -= 1;
        network.counts[state as usize] += 1;
        let place = &mut self.slots[slot as usize];
        place.state = state;
        place.since = now;
        place.look_again = false;
        match state {
            SlotState::Ready => network.ready.push_front(&mut self.places, slot, place),
            // The lowest numbers are filled first after a start, the longest vacant later: a slot that just failed is not the next to try.
            SlotState::Idle => network.idle.push_back(&mut self.places, slot, place),
            SlotState::Adopting
            | SlotState::Filling
            | SlotState::BackingOff
            | SlotState::Leased
            | SlotState::Vacating
            | SlotState::Renewing
            | SlotState::Cooling
            | SlotState::Quarantined
            | SlotState::Retiring => {}
        }
        if state != SlotState::Leased {
            self.effects.push(Effect::Nudge(slot));
        }
        let could_be_used = matches!(before, SlotState::Adopting | SlotState::Ready | SlotState::Leased);
        if could_be_used && matches!(state, SlotState::Vacating | SlotState::Quarantined | SlotState::Retiring) {
            self.record_out(slot);
        }
    }

    pub(super) fn doom(&mut self, slot: SlotIndex, why: impl Into<Words>) {
        let place = &mut self.slots[slot as usize];
        if place.doom.is_none() {
            place.doom = Some(why.into());
        }
    }

    // ---- what nannies say; what operators say is in `doors`, the sizes are in `sizing`, leases in `leases` ---------------------------

    /// A buddy is there: started, proven, furnished. From here on the slot is Ready, or on its way out if it is not wanted any more.
    pub fn registered(&mut self, now: Moment, slot: SlotIndex, generation: u64, namespace: Arc<Namespace>) {
        let place = &mut self.slots[slot as usize];
        assert!(!place.state.has_buddy(), "slot {slot} has a buddy already");
        let wanted = place.generation == generation && place.state == SlotState::Filling;
        let took = now.saturating_sub(place.since);
        (place.generation, place.use_number) = (generation, 1);
        place.doom = None;
        place.last_error = None;
        place.had = Had::Nobody;
        place.occupants = Arc::new([]);
        let network = u32::from(place.network);
        self.by_container.insert(Arc::clone(&namespace.container_id), slot);
        place.namespace = Some(namespace);
        if wanted {
            self.fill_time = Some(self.fill_time.map_or(took, |average| (average * 7 + took) / 8));
            self.make_ready(now, slot);
        } else {
            self.doom(slot, "not wanted any more");
            self.set_state(now, slot, SlotState::Retiring);
        }
        self.rebalance(now, network);
    }

    /// A preparation failed and left nothing behind. The slot rests until [`State::backoff_over`]; another one may take its place.
    pub fn fill_failed(&mut self, now: Moment, slot: SlotIndex, generation: u64, error: impl Into<Words>) {
        let place = &mut self.slots[slot as usize];
        place.failures = place.failures.saturating_add(1);
        place.last_error = Some(error.into());
        if place.state == SlotState::Filling && place.generation == generation {
            let network = u32::from(place.network);
            self.set_state(now, slot, SlotState::BackingOff);
            self.rebalance(now, network);
        }
    }

    /// The slot may be filled again.
    pub fn backoff_over(&mut self, now: Moment, slot: SlotIndex) {
        if self.slots[slot as usize].state == SlotState::BackingOff {
            self.set_state(now, slot, SlotState::Idle);
            self.rebalance(now, u32::from(self.slots[slot as usize].network));
        }
    }

    /// The slot's buddy has lived long enough: its failures are forgotten.
    pub fn healthy(&mut self, slot: SlotIndex) {
        self.slots[slot as usize].failures = 0;
    }

    /// The slot's buddy died young: once it is removed the slot backs off before the next.
    pub fn note_failure(&mut self, slot: SlotIndex, error: impl Into<Words>) {
        let place = &mut self.slots[slot as usize];
        place.failures = place.failures.saturating_add(1);
        place.died_young = true;
        place.last_error = Some(error.into());
    }

    /// The daemon is on its way out.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// … and leaves everything as it is for the next daemon.
    #[must_use]
    pub fn is_keeping(&self) -> bool {
        self.keeping
    }

    /// Buddies of a predecessor that their nannies have not looked at yet.
    #[must_use]
    pub fn unproven(&self) -> u32 {
        self.unproven
    }

    /// The network of a slot.
    #[must_use]
    pub fn network_of(&self, slot: SlotIndex) -> NetworkIndex {
        self.slots[slot as usize].network
    }

    /// Generations of a dead predecessor are not used again.
    pub fn generations_begin_at(&mut self, first: u64) {
        self.next_generation = self.next_generation.max(first);
    }

    /// Keeps an error for the operator without changing anything else.
    pub fn note_error(&mut self, slot: SlotIndex, error: impl Into<Words>) {
        self.slots[slot as usize].last_error = Some(error.into());
    }

    fn make_ready(&mut self, now: Moment, slot: SlotIndex) {
        self.filled_once = true;
        let place = &mut self.slots[slot as usize];
        (place.use_since, place.unbounded) = (now, false);
        self.set_state(now, slot, SlotState::Ready);
        self.record_ready(slot);
        if !self.cordoned && !self.stopping {
            self.serve_waiter(now, slot);
        }
    }

    /// A predecessor's buddy is what it was. `empty`: nobody is in one that nobody has leased.
    pub fn proven(&mut self, now: Moment, key: UseKey, empty: bool) {
        if !self.is_present(key) || !std::mem::take(&mut self.slots[key.slot as usize].unproven) {
            return;
        }
        self.unproven -= 1;
        if self.slots[key.slot as usize].state == SlotState::Adopting {
            if !empty {
                self.doom(key.slot, "somebody was inside without a lease when nspool came back");
            }
            if self.keeps_tenants(self.slots[key.slot as usize].network) && self.slots[key.slot as usize].had == Had::Others {
                self.doom(key.slot, "nobody knows whose functions were in it");
            }
            if self.slots[key.slot as usize].doom.is_some() {
                self.set_state(now, key.slot, SlotState::Retiring);
            } else {
                self.make_ready(now, key.slot);
            }
        }
        self.effects.push(Effect::Nudge(key.slot));
        self.rebalance(now, u32::from(self.slots[key.slot as usize].network));
    }

    /// The buddy died, was paused, or is not the one it was. A lease on it is LOST.
    pub fn buddy_gone(&mut self, now: Moment, key: UseKey, why: impl Into<Words>) {
        // The use may have moved on between the death and its report: only another generation makes it stale.
        let place = self.slots.get(key.slot as usize);
        if place.is_none_or(|place| place.generation != key.generation || !place.state.has_buddy()) {
            self.stale += 1;
            return;
        }
        let why = why.into();
        self.doom(key.slot, why.clone());
        // Then its nanny has nothing to vacate or to wait for.
        let never_adopted = std::mem::take(&mut self.slots[key.slot as usize].unproven);
        self.unproven -= u32::from(never_adopted);
        match self.slots[key.slot as usize].state {
            SlotState::Leased => {
                self.lose(now, key.slot, why.clone());
                self.set_state(now, key.slot, SlotState::Retiring);
            }
            SlotState::Ready | SlotState::Adopting => self.set_state(now, key.slot, SlotState::Retiring),
            SlotState::Vacating | SlotState::Quarantined | SlotState::Retiring if never_adopted => {
                self.set_state(now, key.slot, SlotState::Retiring);
            }
            // Its nanny sees it as well, and says that the renewal failed.
            SlotState::Renewing | SlotState::Cooling | SlotState::Vacating | SlotState::Quarantined | SlotState::Retiring => {}
            SlotState::Idle | SlotState::Filling | SlotState::BackingOff => unreachable!("slot {} has a buddy", key.slot),
        }
        self.slots[key.slot as usize].last_error = Some(why);
        self.rebalance(now, u32::from(self.slots[key.slot as usize].network));
    }

    /// The fence is up and nobody is inside. `next` is what the next use hands out in this namespace, if policy and doom allow that. When somebody
    /// was seen meanwhile, it stays as it is: there is to be another look.
    pub fn vacated(&mut self, now: Moment, key: UseKey, next: Arc<Namespace>) {
        if !self.is_present(key) {
            return;
        }
        let place = &mut self.slots[key.slot as usize];
        let network = u32::from(place.network);
        match place.state {
            SlotState::Vacating if std::mem::take(&mut place.look_again) => self.effects.push(Effect::Nudge(key.slot)),
            SlotState::Vacating => match self.afterwards(key.slot) {
                Afterwards::Retire => self.set_state(now, key.slot, SlotState::Retiring),
                Afterwards::Renew | Afterwards::Verify => self.set_state(now, key.slot, SlotState::Renewing),
                Afterwards::Reuse => self.use_again(now, key.slot, next),
            },
            SlotState::Quarantined => {
                place.occupants = Arc::new([]);
                self.set_state(now, key.slot, SlotState::Retiring);
            }
            SlotState::Adopting
            | SlotState::Idle
            | SlotState::Filling
            | SlotState::BackingOff
            | SlotState::Ready
            | SlotState::Leased
            | SlotState::Renewing
            | SlotState::Cooling
            | SlotState::Retiring => {
                self.stale += 1;
            }
        }
        self.rebalance(now, network);
    }

    /// The buddy is in a new network namespace, proven and furnished, or in its own, which is as it was; and alone: `next` is what the next use hands out, if it is still wanted. When
    /// somebody was seen meanwhile, it stays as it is: there is to be another look.
    pub fn renewed(&mut self, now: Moment, key: UseKey, next: Arc<Namespace>) {
        if !self.is_present(key) {
            return;
        }
        let place = &mut self.slots[key.slot as usize];
        if place.state != SlotState::Renewing {
            self.stale += 1;
            return;
        }
        if std::mem::take(&mut place.look_again) {
            return self.effects.push(Effect::Nudge(key.slot));
        }
        match self.afterwards(key.slot) {
            Afterwards::Retire => self.set_state(now, key.slot, SlotState::Retiring),
            Afterwards::Renew => {
                self.slots[key.slot as usize].had = Had::Nobody;
                self.use_again(now, key.slot, next);
            }
            Afterwards::Verify | Afterwards::Reuse => self.use_again(now, key.slot, next),
        }
        self.rebalance(now, u32::from(self.slots[key.slot as usize].network));
    }

    /// No address has rested long enough for the next use, or one has by now: the slot is Cooling as long.
    pub fn cooling(&mut self, now: Moment, key: UseKey, is: bool) {
        let (from, to) = if is { (SlotState::Renewing, SlotState::Cooling) } else { (SlotState::Cooling, SlotState::Renewing) };
        if self.is_present(key) && self.slots[key.slot as usize].state == from {
            self.set_state(now, key.slot, to);
        }
    }

    /// By policy, doom and need.
    fn afterwards(&self, slot: SlotIndex) -> Afterwards {
        let place = &self.slots[slot as usize];
        let wanted = place.doom.is_none() && self.demand(u32::from(place.network)).excess() == 0;
        // Nobody could have it: several had.
        let useless = self.keeps_tenants(place.network) && place.had == Had::Others;
        let policy = self.rules.afterwards.get(usize::from(place.network)).filter(|_| wanted && !useless);
        policy.copied().unwrap_or(Afterwards::Retire)
    }

    fn use_again(&mut self, now: Moment, slot: SlotIndex, next: Arc<Namespace>) {
        let place = &mut self.slots[slot as usize];
        place.namespace = Some(next);
        place.use_number += 1;
        self.make_ready(now, slot);
    }

    /// Somebody is still inside: `who`, for people. Said again when that changes.
    pub fn occupied(&mut self, now: Moment, key: UseKey, who: Vec<String>) {
        if !self.is_present(key) {
            return;
        }
        match self.slots[key.slot as usize].state {
            SlotState::Vacating | SlotState::Renewing | SlotState::Cooling | SlotState::Retiring => {
                self.slots[key.slot as usize].occupants = who.into();
                self.doom(key.slot, "somebody stayed inside after the lease");
                self.set_state(now, key.slot, SlotState::Quarantined);
                // One on its way out did not count against `max`, a quarantined one does.
                self.rebalance(now, u32::from(self.slots[key.slot as usize].network));
            }
            SlotState::Quarantined => self.slots[key.slot as usize].occupants = who.into(),
            SlotState::Adopting | SlotState::Idle | SlotState::Filling | SlotState::BackingOff | SlotState::Ready | SlotState::Leased => {
                self.stale += 1
            }
        }
    }

    /// A use cannot be ended as it should (a fence that fails, a joiner that stays configured, a renewal that fails): the buddy goes.
    pub fn spoiled(&mut self, now: Moment, key: UseKey, why: impl Into<Words>) {
        let why = why.into();
        if self.is_present(key)
            && matches!(self.slots[key.slot as usize].state, SlotState::Vacating | SlotState::Renewing | SlotState::Cooling)
        {
            self.doom(key.slot, why.clone());
            self.slots[key.slot as usize].last_error = Some(why);
            self.set_state(now, key.slot, SlotState::Retiring);
        }
    }

    /// Gives the slot of a quarantined buddy free; the caller goes on watching the buddy outside of the slots. `false`: as many are detached as
    /// may, or it is not quarantined any more; the slot keeps it.
    pub fn detach(&mut self, now: Moment, key: UseKey) -> bool {
        if !self.is_present(key)
            || self.slots[key.slot as usize].state != SlotState::Quarantined
            || self.detached >= self.rules.max_detached
        {
            return false;
        }
        self.detached += 1;
        self.clear(now, key.slot);
        true
    }

    /// A detached buddy that a predecessor left, or that was found without a slot, counts as well.
    pub fn adopt_detached(&mut self) {
        self.detached += 1;
    }

    /// A detached buddy has been removed.
    pub fn detached_removed(&mut self) {
        self.detached -= 1;
    }

    /// The buddy has been removed from the engine.
    pub fn removed(&mut self, now: Moment, key: UseKey) {
        if self.is_present(key) && self.slots[key.slot as usize].state == SlotState::Retiring {
            self.clear(now, key.slot);
        }
    }

    fn clear(&mut self, now: Moment, slot: SlotIndex) {
        let place = &mut self.slots[slot as usize];
        if let Some(namespace) = place.namespace.take() {
            self.by_container.remove(&namespace.container_id);
        }
        (place.doom, place.image) = (None, None);
        place.occupants = Arc::new([]);
        let network = u32::from(place.network);
        let tired = std::mem::take(&mut place.died_young) && !self.stopping;
        self.set_state(now, slot, if tired { SlotState::BackingOff } else { SlotState::Idle });
        self.rebalance(now, network);
    }
}
