//! Thousands of seeded lives (see `story.rs`), each the same whenever it is told: the clock is paused, all else that is random follows from the
//! seed. `make simulate SEEDS=1000000` runs more of them, `NSPOOL_SEED=7 cargo test --test nanny simulation` one of them again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::story::Story;
use crate::support::disk::Disk;
use crate::support::rig::Rig;
use nspool::daemon::Signal;
use nspool::engine::fake::{Call, Containers, Events, Fault, Operation};
use nspool::engine::{BuddySpec, Flavour, NamespaceKind};
use nspool::ledger::{Identity, Ledger};

const STEPS: u32 = 60;
/// A long run says after so many that it goes on.
const PROGRESS: u64 = 10_000;
/// A line each.
const FAILED_ONCE: &str = include_str!("seeds");
/// Without further notice.
const SEEDS: u64 = 2_000;
/// Of lives with renewals, or inspections, which have more to do.
const FRESH_SEEDS: u64 = 400;

/// What a story comes to.
#[derive(PartialEq)]
struct Told {
    /// All that the engine was asked.
    calls: Vec<Call>,
    /// The last daemon's.
    ledger: Vec<u8>,
}

/// Which sort of life a seed is told as.
#[derive(Clone, Copy)]
enum Sort {
    EnginesNetworks,
    Fresh,
    Verified,
}

fn tell(sort: Sort, seed: u64) -> Told {
    nspool::random::begin(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut story = match sort {
            Sort::EnginesNetworks => Story::new(seed),
            Sort::Fresh => Story::fresh(seed),
            Sort::Verified => Story::verified(seed),
        };
        for _ in 0..STEPS {
            match sort {
                Sort::EnginesNetworks => {}
                Sort::Fresh => story.trouble_a_renewal(),
                Sort::Verified => story.trouble_an_inspection(),
            }
            story.step().await;
        }
        let (world, disk) = (Arc::clone(&story.world), story.disk.clone());
        story.end().await;
        Told { calls: world.calls(), ledger: disk.bytes() }
    })
}

#[test]
fn what_failed_once_does_not_fail_again() {
    for line in FAILED_ONCE.lines().filter(|line| !line.starts_with('#')) {
        let seed = line.split_whitespace().next().unwrap().parse().unwrap();
        std::thread::Builder::new().name(line.to_owned()).spawn(move || drop(tell(Sort::EnginesNetworks, seed))).unwrap().join().unwrap();
    }
}

#[test]
fn nothing_is_lost_doubled_or_left() {
    tell_all(Sort::EnginesNetworks);
}

#[test]
fn nothing_is_lost_doubled_or_left_with_fresh_namespaces() {
    tell_all(Sort::Fresh);
}

#[test]
fn nothing_is_lost_doubled_or_left_with_verified_namespaces() {
    tell_all(Sort::Verified);
}

fn tell_all(sort: Sort) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("NSPOOL_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            0..number("NSPOOL_SEEDS").unwrap_or(match sort {
                Sort::EnginesNetworks => SEEDS,
                Sort::Fresh | Sort::Verified => FRESH_SEEDS,
            })
        }
    };
    let next = AtomicU64::new(seeds.start);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if seed > 0 && seed.is_multiple_of(PROGRESS) {
                eprintln!("{seed} lives begun");
            }
            if let Err(panic) = std::panic::catch_unwind(|| drop(tell(sort, seed))) {
                eprintln!("it was seed {seed}: NSPOOL_SEED={seed} cargo test --test nanny simulation");
                std::panic::resume_unwind(panic);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    for (sort, seed) in (0..20).flat_map(|seed| [(Sort::EnginesNetworks, seed), (Sort::Fresh, seed), (Sort::Verified, seed)]) {
        // On threads of their own, as what is random is the thread's.
        let tell = || std::thread::spawn(move || tell(sort, seed)).join().unwrap();
        let (first, second) = (tell(), tell());
        for (one, other) in first.calls.iter().zip(&second.calls) {
            assert_eq!(one, other, "seed {seed}");
        }
        assert!(first == second, "seed {seed}: other calls at the end, or another ledger");
    }
}

/// Where a daemon ends.
#[derive(Clone, Copy, Debug)]
enum Last {
    Call { answered_never: bool },
    Write { torn: u64 },
}

#[tokio::test(start_paused = true)]
async fn every_call_and_every_write_may_be_the_last() {
    let ends = [
        (Last::Call { answered_never: false }, 15),
        (Last::Call { answered_never: true }, 15),
        (Last::Write { torn: 0 }, 5),
        (Last::Write { torn: 9 }, 5),
        (Last::Write { torn: u64::MAX }, 5),
    ];
    for (last, at_least) in ends {
        let mut n = 1;
        loop {
            let mut story = Story::new(n);
            match last {
                Last::Call { answered_never } => story.life.end_in_call(n, answered_never),
                Last::Write { torn } => story.life.end_in_write(n, torn),
            }
            let ended = story.whole_use().await;
            story.end().await;
            if ended == 0 {
                break;
            }
            n += 1;
        }
        assert!(n > at_least, "{last:?}: there were only {n} of them");
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_falls_ends_no_lease() {
    let mut story = Story::new(1);
    story.rig().settled(2).await;
    story.allocate().await;
    // Another one on the same pool, with what the ledger of the first says by now: it cannot have the lock.
    let copy = Disk::default();
    copy.change(|bytes| *bytes = story.disk.bytes());
    let identity = Identity {
        boot_id: "boot".into(),
        pool: story.config.pool.name.clone(),
        now: story.world.kernel().since_boot(),
        engine: String::new(),
    };
    let ledger = Ledger::on(Box::new(copy.clone()), &identity).unwrap();
    let second = Rig::start_in(story.config.clone(), Arc::clone(&story.world), Arc::clone(&story.locks), Some(ledger), false);
    second.ended().await.unwrap_err();
    let (_, replayed) = Ledger::on(Box::new(copy), &identity).unwrap();
    assert_eq!(replayed.table.leases.len(), 1);
    story.check();
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_daemons_last_call_made_is_cleared_away_when_it_turns_up() {
    for (events_lost, frozen) in [(false, false), (true, false), (false, true)] {
        let mut story = Story::new(1);
        story.rig().settled(2).await;
        let buddy = story.world.container(story.world.buddies()[0].id.as_str()).unwrap();
        story.kill().await;
        story.start();
        story.rig().settled(2).await;
        if frozen {
            story.world.engine_frozen();
        }
        if events_lost {
            story.world.script(Operation::Events, Fault::Slow(Duration::from_secs(5)));
            story.world.cut_events();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let spec = BuddySpec {
            name: "nspool-default-3-7-1-0123abcd".into(),
            image: buddy.image,
            command: Vec::new(),
            labels: buddy
                .labels
                .into_iter()
                .chain([("nspool.slot".into(), "3".into()), ("nspool.generation".into(), "7".into())])
                .collect(),
            network: "bridge".into(),
            namespaces: vec![NamespaceKind::Net],
            user: String::new(),
            memory_bytes: 0,
            pids: 0,
            flavour: Flavour::Fixed,
            ipv6: false,
        };
        let engine = story.world.engine();
        let late = async { engine.create(&spec).await.unwrap() };
        let back = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            story.world.engine_back(Containers::Kept, Events::Late);
        };
        let id = if frozen { tokio::join!(late, back).0 } else { late.await };
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(story.world.container(id.as_str()).is_none(), "events lost: {events_lost}, frozen: {frozen}");
        assert_eq!(story.rig().pool.read(|state| state.usage().ready), 2);
        assert_eq!(story.world.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_ledger_may_have_told_as_leased_is_kept_until_its_function_had_its_time() {
    let mut story = Story::new(1);
    story.rig().settled(2).await;
    story.allocate().await;
    story.rig().settled_beside(2).await;
    story.kill().await;
    story.disk.change(Vec::clear);
    story.start();
    let lost = story.held.pop().unwrap();
    story.rig().settled(2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    // Its own ledger is whole by now, and has never heard of them.
    story.kill().await;
    story.start();
    story.rig().settled(2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().detached), 3);
    let function = story.world.run_function(&lost.namespace_id, Some(&lost.namespace_id), "").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().detached), 1, "the one that somebody is in");
    assert_eq!(story.rig().auditor.audit(false).await.unwrap().findings, []);
    story.world.remove_function(&function);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().detached), 0);
    assert_eq!(story.world.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_while_what_a_predecessor_left_is_looked_for() {
    let mut story = Story::new(1);
    story.rig().settled(2).await;
    story.kill().await;
    story.world.engine_frozen();
    story.start();
    story.rig().pool.with(|state, now| state.resize_asked(now, 5, 6)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().filling), 2, "those that are adopted, and no other");
    story.engine_back(false);
    story.rig().settled(5).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_right_after_the_start_removes_what_the_ledger_tells() {
    for frozen in [false, true] {
        let mut story = Story::new(1);
        story.rig().settled(2).await;
        story.kill().await;
        if frozen {
            story.world.engine_frozen();
        }
        story.start_with(false);
        let rig = story.rig.take().unwrap();
        rig.signals.send(Signal::Stop).await.unwrap();
        let back = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            story.world.engine_back(Containers::Kept, Events::Late);
        };
        let (ended, ()) = tokio::join!(rig.ended(), back);
        assert_eq!(ended.unwrap().left, []);
        assert!(story.world.buddies().is_empty(), "frozen: {frozen}");
    }
}
