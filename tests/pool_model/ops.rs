//! What can happen to a pool, in words that random numbers can fill in. Picks are taken modulo what there is to pick from.

use std::time::Duration;

use nspool::pool::state::Afterwards;
use proptest::prelude::*;

/// How a story begins.
#[derive(Clone, Debug)]
pub struct Start {
    pub networks: u32,
    pub ready: u32,
    pub max: u32,
    pub rules: RuleSet,
}

/// Rules that may change under way.
#[derive(Clone, Debug)]
pub struct RuleSet {
    /// By network.
    pub afterwards: [Afterwards; 3],
    pub keep_tenants: bool,
    pub linger_ms: u64,
    pub max_detached: u32,
    pub max_waiting: u32,
    pub quota: Option<u32>,
    pub remember_ms: u64,
    pub remember_max: u32,
    pub trim_ms: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Life {
    Joiners(u64),
    Ttl(u64),
    Connection(u64),
}

/// Which key a message carries.
#[derive(Clone, Copy, Debug)]
pub enum Age {
    Present,
    /// One of the keys there ever were.
    Past(usize),
    /// Never given out.
    Invented,
}

#[derive(Clone, Copy, Debug)]
pub enum Label {
    None,
    Right,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub buddy: usize,
    pub joiner: u8,
    pub label: Label,
    pub live: bool,
    pub bounded: bool,
    /// How long ago the engine was asked.
    pub age: Duration,
}

#[derive(Clone, Debug)]
pub enum Op {
    Allocate {
        uid: u32,
        owner: u8,
        id: Option<u8>,
        tenant: u8,
        network: Option<u16>,
        life: Life,
        wait: bool,
    },
    Cancel(usize),
    Deliver(usize),
    Undo(usize),
    Release {
        pick: usize,
        doubtful: bool,
    },
    ReleaseOld {
        pick: usize,
        doubtful: bool,
    },
    ReleaseWrong,
    ForceRelease(usize),
    ForceStale(usize),
    Renew {
        pick: usize,
        ttl: Option<u64>,
    },
    RenewOld(usize),
    Pass(u64),
    ConnectionClosed(u64),
    BuddyGone(usize, Age),
    Vacated(usize, Age),
    Renewed(usize, Age),
    Cooling(usize, bool),
    Occupied(usize, Age),
    Spoiled(usize, Age),
    Detach(usize, Age),
    DetachedRemoved,
    Removed(usize, Age),
    /// The nanny of a slot says the obvious next thing.
    Nanny(usize),
    Registered(usize),
    FillFailed(usize),
    FillFailedStale(usize),
    BackoffOver(usize),
    Healthy(usize),
    DiedYoung(usize),
    NoteError(usize),
    Resize(u32, u32),
    SetRules(RuleSet),
    Cordon(bool),
    Uncordon,
    Recycle(usize, bool),
    Stop,
    Engine(bool),
    Joined(Seen),
    JoinerUnknown(usize),
    JoinerStopped(usize, u8),
    JoinerRemoved(usize, u8),
    Listed(Vec<Seen>),
}

pub fn start() -> impl Strategy<Value = Start> {
    (1u32..4, 0u32..5, 0u32..4, rules()).prop_map(|(networks, ready, more, rules)| Start {
        networks,
        ready,
        max: (ready + more).max(1),
        rules,
    })
}

fn rules() -> impl Strategy<Value = RuleSet> {
    let one = || prop_oneof![Just(Afterwards::Retire), Just(Afterwards::Renew), Just(Afterwards::Verify), Just(Afterwards::Reuse)];
    let afterwards = [one(), one(), one()];
    ((afterwards, any::<bool>()), 0u64..2000, 0u32..3, 0u32..4, prop::option::weighted(0.3, 1u32..3), 0u64..5000, 0u32..6, 1u64..3000)
        .prop_map(|((afterwards, keep_tenants), linger_ms, max_detached, max_waiting, quota, remember_ms, remember_max, trim_ms)| RuleSet {
            afterwards,
            keep_tenants,
            linger_ms,
            max_detached,
            max_waiting,
            quota,
            remember_ms,
            remember_max,
            trim_ms,
        })
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![(0u64..3000).prop_map(Life::Joiners), (0u64..3000).prop_map(Life::Ttl), (0u64..3).prop_map(Life::Connection)]
}

fn age() -> impl Strategy<Value = Age> {
    prop_oneof![6 => Just(Age::Present), 3 => any::<usize>().prop_map(Age::Past), 1 => Just(Age::Invented)]
}

fn seen() -> impl Strategy<Value = Seen> {
    let label = prop_oneof![2 => Just(Label::None), 4 => Just(Label::Right), 1 => Just(Label::Wrong)];
    let age = prop_oneof![3 => Just(0), 1 => 1u64..500].prop_map(Duration::from_millis);
    (any::<usize>(), 0u8..3, label, any::<bool>(), any::<bool>(), age).prop_map(|(buddy, joiner, label, live, bounded, age)| Seen {
        buddy,
        joiner,
        label,
        live,
        bounded,
        age,
    })
}

fn allocate() -> impl Strategy<Value = Op> {
    (0u32..2, 0u8..2, prop::option::of(0u8..3), 0u8..8, prop::option::of(0u16..3), life(), any::<bool>())
        .prop_map(|(uid, owner, id, tenant, network, life, wait)| Op::Allocate { uid, owner, id, tenant: tenant / 7, network, life, wait })
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => allocate(),
        22 => any::<usize>().prop_map(Op::Nanny),
        10 => callers(),
        8 => nannies(),
        4 => operators(),
        5 => containers(),
        6 => prop_oneof![4 => 0u64..500, 1 => 500u64..8000].prop_map(Op::Pass),
    ]
}

fn callers() -> impl Strategy<Value = Op> {
    let pick = any::<usize>;
    prop_oneof![
        8 => (pick(), prop::bool::weighted(0.2)).prop_map(|(pick, doubtful)| Op::Release { pick, doubtful }),
        2 => (pick(), any::<bool>()).prop_map(|(pick, doubtful)| Op::ReleaseOld { pick, doubtful }),
        1 => Just(Op::ReleaseWrong),
        2 => (pick(), prop::option::of(0u64..3000)).prop_map(|(pick, ttl)| Op::Renew { pick, ttl }),
        1 => pick().prop_map(Op::RenewOld),
        2 => pick().prop_map(Op::Cancel),
        3 => pick().prop_map(Op::Deliver),
        2 => pick().prop_map(Op::Undo),
        1 => (0u64..3).prop_map(Op::ConnectionClosed),
    ]
}

fn nannies() -> impl Strategy<Value = Op> {
    let pick = any::<usize>;
    prop_oneof![
        2 => (pick(), age()).prop_map(|(slot, age)| Op::BuddyGone(slot, age)),
        2 => (pick(), age()).prop_map(|(slot, age)| Op::Vacated(slot, age)),
        2 => (pick(), age()).prop_map(|(slot, age)| Op::Renewed(slot, age)),
        2 => (pick(), any::<bool>()).prop_map(|(slot, is)| Op::Cooling(slot, is)),
        3 => (pick(), age()).prop_map(|(slot, age)| Op::Occupied(slot, age)),
        1 => (pick(), age()).prop_map(|(slot, age)| Op::Spoiled(slot, age)),
        2 => (pick(), age()).prop_map(|(slot, age)| Op::Detach(slot, age)),
        1 => Just(Op::DetachedRemoved),
        2 => (pick(), age()).prop_map(|(slot, age)| Op::Removed(slot, age)),
        3 => pick().prop_map(Op::Registered),
        2 => pick().prop_map(Op::FillFailed),
        1 => pick().prop_map(Op::FillFailedStale),
        1 => pick().prop_map(Op::BackoffOver),
        1 => pick().prop_map(Op::Healthy),
        1 => pick().prop_map(Op::DiedYoung),
        1 => pick().prop_map(Op::NoteError),
    ]
}

fn operators() -> impl Strategy<Value = Op> {
    let pick = any::<usize>;
    prop_oneof![
        6 => (0u32..7, 0u32..8).prop_map(|(ready, max)| Op::Resize(ready, max)),
        2 => rules().prop_map(Op::SetRules),
        2 => any::<bool>().prop_map(Op::Cordon),
        4 => Just(Op::Uncordon),
        4 => (pick(), any::<bool>()).prop_map(|(slot, force)| Op::Recycle(slot, force)),
        2 => pick().prop_map(Op::ForceRelease),
        1 => pick().prop_map(Op::ForceStale),
        1 => Just(Op::Stop),
        3 => any::<bool>().prop_map(Op::Engine),
    ]
}

fn containers() -> impl Strategy<Value = Op> {
    let pick = any::<usize>;
    prop_oneof![
        6 => seen().prop_map(Op::Joined),
        1 => (0usize..8).prop_map(Op::JoinerUnknown),
        1 => (pick(), 0u8..3).prop_map(|(buddy, joiner)| Op::JoinerStopped(buddy, joiner)),
        4 => (pick(), 0u8..3).prop_map(|(buddy, joiner)| Op::JoinerRemoved(buddy, joiner)),
        2 => prop::collection::vec(seen(), 0..4).prop_map(Op::Listed),
    ]
}
