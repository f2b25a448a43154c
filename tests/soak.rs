//! The real daemon on a real Docker engine under a storm of faults: agents allocate, run functions, release, forget, die and come back, while
//! buddies, the daemon, the engine and its containerd are hurt, killed, frozen and restarted. All the while no answered lease may be gone or
//! shared, none LOST whose buddy came to no harm, and no function disturbed. Then the faults stop: the pool settles, the audit finds
//! nothing, and there are as many containers, links, namespaces, mounts and descriptors as before.
//!
//! It lasts 25 seconds, or as many as `NSPOOL_SOAK` says; `make soak MINUTES=60` is an hour. `NSPOOL_SEED` gives the dice of an earlier run, whose
//! story is alike and not the same: what happens meanwhile depends on how fast the machine is.

#![expect(clippy::unwrap_used, reason = "the parts of the story are functions of their own here")]
#![expect(clippy::print_stdout, reason = "the load and the faults are worth a look")]

mod support;

mod soak {
    pub(crate) mod agent;
    pub(crate) mod chaos;
    pub(crate) mod footprint;
    pub(crate) mod world;
}

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use soak::agent::Agent;
use soak::chaos::Chaos;
use soak::footprint::{Footprint, descriptors};
use soak::world::World;
use support::daemon::{LIMIT, TEST_LABEL, TestDaemon, containers, load_busybox, text};
use support::engines::PrivateDocker;
use support::eventually;
use tokio::task::JoinSet;
use tokio::time::Instant;

const AGENTS: u64 = 4;
const READY: u32 = 6;
/// Without further notice.
const SECONDS: u64 = 25;

const CONFIG: [&str; 9] = [
    "pool.ready = 6",
    "pool.max = 16",
    "pool.join_by = \"20s\"",
    "pool.linger = \"3s\"",
    "pool.detach_after = \"5s\"",
    "pool.trim_after = \"1s\"",
    "engine.probe_every = \"500ms\"",
    "stop.policy = \"keep\"",
    // The pool's own look at itself, in the midst of it all, must do no harm.
    "audit.every = \"5s\"",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_faults_leaves_no_trace() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("NSPOOL_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let span = Duration::from_secs(number("NSPOOL_SOAK").unwrap_or(SECONDS));
    println!("a soak of {} s, NSPOOL_SEED={seed}", span.as_secs());

    let engine = PrivateDocker::start_with(&["--live-restore"]);
    let seen = engine.handle();
    load_busybox(&seen);
    let bare = Footprint::of(&seen);
    let daemon = TestDaemon::start(&seen, &CONFIG).await;
    settled(&daemon).await;
    let before = (Footprint::of(&seen), descriptors(daemon.pid()));
    assert!(before.0.counts()["namespaces"] >= READY as usize, "{:?}", before.0);
    let world = Arc::new(World::new(engine.handle(), daemon.pool.clone(), daemon.endpoint()));

    let mut agents = JoinSet::new();
    for index in 0..AGENTS {
        agents.spawn(Agent::new(Arc::clone(&world), index, seed).live());
    }
    let mut chaos = Chaos::new(daemon, engine, Arc::clone(&world), seed);
    let began = Instant::now();
    chaos.rage(span, &mut agents).await;
    world.stop();
    while let Some(ended) = agents.join_next().await {
        ended.unwrap();
    }
    let forced = end_what_is_left(chaos.daemon(), &world).await;

    settled_at_last(&mut chaos).await;
    same_as_before(chaos.daemon(), &before).await;
    let lasted = began.elapsed();
    leave_no_trace(chaos.daemon_mut(), &bare).await;
    println!("{}", world.report(lasted, forced, chaos.faults()));
    println!("mounts that the engine forgot when it was killed: {}", Footprint::of(&seen).forgotten);
}

/// What the death of containerd left inside a buddy is seen only after a while, and keeps the buddy until it is cleared away.
async fn settled_at_last(chaos: &mut Chaos<'_>) {
    let client = chaos.daemon().client();
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        let clear = chaos.clear_debris().await;
        let usage = client.usage().await.unwrap().total.unwrap();
        if clear && usage.detached + usage.quarantined + usage.retiring + usage.vacating == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    settled(chaos.daemon()).await;
}

/// At its target, and nothing on its way, lost or detached.
async fn settled(daemon: &TestDaemon<'_>) {
    daemon.settled(READY).await;
    daemon.usage("nothing lost, nothing detached", |usage| usage.ready == READY && usage.detached + usage.lost + usage.leased == 0).await;
}

/// Ends what agents forgot and no time was left for, and what they never heard of; answers how many that were.
async fn end_what_is_left(daemon: &TestDaemon<'_>, world: &World) -> usize {
    let left = daemon.client().leases().await.unwrap();
    for lease in &left {
        // It may end by itself in this moment, which is as good.
        let told = daemon.cli(&["release", "--lease", &lease.lease_id]);
        assert!([Some(0), Some(1)].contains(&told.status.code()), "{}", text(&told.stderr));
    }
    let functions = containers(daemon.engine, &format!("{TEST_LABEL}={}", daemon.pool));
    assert!(functions.is_empty(), "the agents have removed all their functions: {functions:?}");
    world.tally(|tally| tally.forced = left.len());
    left.len()
}

async fn same_as_before(daemon: &TestDaemon<'_>, before: &(Footprint, BTreeMap<String, usize>)) {
    let audit = daemon.cli(&["audit"]);
    assert_eq!(audit.status.code(), Some(0), "{}{}", text(&audit.stdout), text(&audit.stderr));
    as_before(daemon, "the engine to be as before", &before.0).await;
    let mut found = descriptors(daemon.pid());
    let end = Instant::now() + LIMIT;
    // Connections that are kept for the next call may be fewer.
    let has_more = |found: &BTreeMap<String, usize>| found.iter().any(|(kind, count)| before.1.get(kind).is_none_or(|first| count > first));
    while has_more(&found) {
        assert!(Instant::now() < end, "the daemon has more descriptors: {found:?}, at first {:?}", before.1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        found = descriptors(daemon.pid());
    }
}

/// The engine takes links and mounts away in the background.
async fn as_before(daemon: &TestDaemon<'_>, what: &str, before: &Footprint) {
    let last = std::cell::RefCell::new(String::new());
    let look = || async {
        let found = Footprint::of(daemon.engine);
        *last.borrow_mut() = found.difference(before);
        (found.counts() == before.counts()).then_some(())
    };
    if tokio::time::timeout(LIMIT, eventually(what, LIMIT * 2, look)).await.is_err() {
        panic!("waited in vain for {what}:\n{}", last.borrow());
    }
}

/// A last daemon that removes all when it stops.
async fn leave_no_trace(daemon: &mut TestDaemon<'_>, bare: &Footprint) {
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    daemon.configure(&["stop.policy = \"remove\""]);
    daemon.launch().await;
    settled(daemon).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.buddies(), [""; 0]);
    as_before(daemon, "an engine as bare as before the first start", bare).await;
}
