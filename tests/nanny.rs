//! The nanny's matrix: every engine operation × every way it can go × every place to be cancelled, on the scripted engine with a paused clock.
//! In each cell the pool must come back to its target by itself, hand out working namespaces, and leave nothing behind at the stop.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says with which seed")]

#[path = "lives/audit.rs"]
mod audit;
#[path = "lives/renewals.rs"]
mod renewals;
#[path = "lives/rolling.rs"]
mod rolling;
#[path = "lives/simulation.rs"]
mod simulation;
#[path = "lives/story.rs"]
mod story;
#[path = "lives/verified.rs"]
mod verified;
mod support {
    pub mod disk;
    pub mod mortal;
    pub mod rig;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nspool::config::Reuse;
use nspool::daemon::Signal;
use nspool::engine::ErrorClass;
use nspool::engine::fake::{Containers, Events, FakeWorld, Fault, MembersFault, Operation, Phase};
use nspool::netns::KernelError;
use nspool::pool::Cause;
use nspool::pool::state::SlotState;
use support::rig::{Rig, config};

fn faults() -> Vec<Fault> {
    vec![
        Fault::Error(ErrorClass::Refused, "no".into()),
        Fault::Error(ErrorClass::Away, "connection refused".into()),
        Fault::Slow(Duration::from_secs(5)),
        Fault::Slow(Duration::from_secs(300)),
        Fault::Late(Duration::from_secs(5)),
        Fault::Never,
        Fault::DoneNever,
        Fault::Unknown { done: true },
        Fault::Unknown { done: false },
    ]
}

const OPERATIONS: [Operation; 10] = [
    Operation::Info,
    Operation::Image,
    Operation::LoadImage,
    Operation::Create,
    Operation::Start,
    Operation::Inspect,
    Operation::Rename,
    Operation::Remove,
    Operation::Wait,
    Operation::List,
];

fn assert_clean(world: &FakeWorld, what: &str) {
    assert_eq!(world.violations(), [], "{what}");
    let left = world.buddies();
    assert!(left.is_empty(), "{what}: left behind: {left:#?}");
}

#[tokio::test(start_paused = true)]
async fn every_operation_may_fail_in_every_way_while_filling() {
    for reuse in [Reuse::Once, Reuse::Always] {
        for operation in OPERATIONS {
            for fault in faults() {
                let what = format!("{reuse:?} {operation:?} {fault:?}");
                let world = FakeWorld::new(1);
                world.script(operation, fault);
                let rig = Rig::start(config(reuse), Arc::clone(&world));
                rig.settled(2).await;
                rig.use_once().await;
                rig.settled(2).await;
                let stopped = rig.stop().await;
                assert!(stopped.left.is_empty(), "{what}: {stopped:?}");
                assert_clean(&world, &what);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_may_fail_in_every_way_during_a_use() {
    for reuse in [Reuse::Once, Reuse::Always] {
        for operation in OPERATIONS {
            for fault in faults() {
                let what = format!("{reuse:?} {operation:?} {fault:?}");
                let world = FakeWorld::new(1);
                let rig = Rig::start(config(reuse), Arc::clone(&world));
                rig.settled(2).await;
                world.script(operation, fault);
                let first = rig.use_once().await;
                let second = rig.use_once().await;
                assert_ne!(first.lease.namespace.namespace_id, second.lease.namespace.namespace_id, "{what}: no name is used twice");
                rig.settled(2).await;
                let stopped = rig.stop().await;
                assert!(stopped.left.is_empty(), "{what}: {stopped:?}");
                assert_clean(&world, &what);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_at_is_looked_at_again() {
    let trouble = || KernelError::Failed { what: "/proc".into(), message: "too many open files".into() };
    for fault in [MembersFault::Error(trouble()), MembersFault::Slow(Duration::from_secs(20)), MembersFault::Ok] {
        let world = FakeWorld::new(1);
        world.script_hold(trouble());
        let rig = Rig::start(config(Reuse::Always), Arc::clone(&world));
        rig.settled(2).await;
        world.script_members(fault);
        rig.use_once().await;
        rig.settled(2).await;
        rig.stop().await;
        assert_clean(&world, "look");
    }
}

/// How many engine calls a start, two uses and a stop make, and what happens if the stop comes at the n-th of them.
#[tokio::test(start_paused = true)]
async fn a_stop_at_any_engine_call_leaves_nothing() {
    for reuse in [Reuse::Once, Reuse::Always] {
        let mut at = 0;
        loop {
            let world = FakeWorld::new(at);
            let rig = Rig::start(config(reuse), Arc::clone(&world));
            let (calls, signals) = (AtomicU64::new(0), rig.signals.clone());
            world.on_call(move |call| {
                if call.phase == Phase::Begun && calls.fetch_add(1, Ordering::Relaxed) == at {
                    let _ = signals.try_send(Signal::Stop);
                }
            });
            let reached = tokio::select! {
                () = async { rig.settled(2).await; rig.use_once().await; rig.use_once().await; rig.settled(2).await } => false,
                () = rig.pool.until(|state| state.is_stopping()) => true,
            };
            // A second stop would cut the first one short.
            let stopped = if reached { rig.ended().await.unwrap() } else { rig.stop().await };
            assert!(stopped.left.is_empty(), "{reuse:?}, stop at call {at}: {stopped:?}");
            assert_clean(&world, &format!("{reuse:?}, stop at call {at}"));
            if !reached {
                assert!(at > 10, "the run makes more calls than that");
                break;
            }
            at += 1;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_buddy_that_ends_leaves_at_once_and_is_replaced() {
    type Act = fn(&FakeWorld, &str);
    let acts: [(&str, Act); 4] = [
        ("killed", |world, id| world.kill(id)),
        ("paused", |world, id| world.pause(id)),
        ("restarted", |world, id| world.restart(id).unwrap()),
        ("removed by hand", |world, id| world.remove_by_hand(id)),
    ];
    for (what, act) in acts {
        let world = FakeWorld::new(1);
        let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
        rig.settled(2).await;
        let (ready, leased) = (rig.allocate().await, rig.allocate().await);
        rig.release(&ready);
        rig.pool.until(|state| state.usage().ready == 2 && state.usage().retiring == 0 && state.usage().vacating == 0).await;
        let victims: Vec<_> = world.buddies().iter().map(|buddy| buddy.id.clone()).collect();
        let before = tokio::time::Instant::now();
        victims.iter().for_each(|id| act(&world, id.as_str()));
        rig.pool.until(|state| state.lease(leased.lease.token).is_ok_and(|lease| lease.lost.is_some())).await;
        assert!(before.elapsed() < Duration::from_millis(100), "{what}: noticed after {:?}", before.elapsed());
        rig.pool.until(|state| state.usage().ready == 2).await;
        assert!(world.buddies().iter().all(|buddy| !victims.contains(&buddy.id)), "{what}: replaced");
        let released = rig.release(&leased);
        assert!(matches!(released, nspool::pool::Released::AlreadyEnded(Cause::Lost(_))), "{what}: {released:?}");
        rig.stop().await;
        assert_clean(&world, what);
    }
}

#[tokio::test(start_paused = true)]
async fn a_placeholder_that_ends_at_once_is_never_handed_out() {
    let world = FakeWorld::new(1);
    world.buddies_exit_at_once(Some(3));
    let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
    let none = rig.pool.allocate(support::rig::request(), Duration::from_secs(120)).await;
    assert!(none.is_err(), "{none:?}");
    let views = rig.pool.read(|state| state.slot_views());
    assert!(views.iter().any(|slot| slot.last_error.as_deref().is_some_and(|words| words.contains("exit code 3"))), "{views:#?}");
    // With backoff: 120 s of tries at the pacer's rate would be over a thousand.
    assert!(world.count(Operation::Create) < 120, "{} creates", world.count(Operation::Create));
    world.buddies_exit_at_once(None);
    rig.settled(2).await;
    rig.stop().await;
    assert_clean(&world, "ends at once");
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_cannot_be_filled_takes_nothing_from_those_that_can() {
    let world = FakeWorld::new(1);
    let mut config = config(Reuse::Once);
    config.pool.networks = vec!["bridge".into(), "gone".into()];
    let rig = Rig::start(config, Arc::clone(&world));
    rig.pool.until(|state| state.usage().ready == 1).await;
    for _ in 0..3 {
        rig.use_once().await;
    }
    let usage = rig.pool.read(|state| state.network_usage(1));
    assert_eq!(usage.ready, 0);
    let views = rig.pool.read(|state| state.slot_views());
    assert!(views.iter().any(|slot| slot.network == 1 && slot.last_error.is_some()), "{views:#?}");
    rig.stop().await;
    assert_clean(&world, "network missing");
}

#[tokio::test(start_paused = true)]
async fn somebody_left_behind_quarantines_the_slot_and_then_detaches_the_buddy() {
    let world = FakeWorld::new(1);
    let rig = Rig::start(config(Reuse::Always), Arc::clone(&world));
    rig.settled(2).await;
    let grant = rig.allocate().await;
    let buddy = grant.lease.namespace.container_id.clone();
    let pid = world.leave_process_behind(&buddy).unwrap();
    rig.release(&grant);
    let slot = grant.lease.key.slot;
    rig.pool.until(|state| state.slot_view(slot).state == SlotState::Quarantined).await;
    let occupants = rig.pool.read(|state| state.slot_view(slot).occupants);
    assert!(occupants.iter().any(|who| who.contains(&pid.to_string())), "{occupants:?}");
    rig.pool.until(|state| state.detached() == 1 && state.usage().quarantined == 0).await;
    rig.settled(2).await;
    assert!(world.is_alive(&buddy), "not removed under a live joiner");
    world.end_process(pid);
    rig.pool.until(|state| state.detached() == 0).await;
    rig.settled(2).await;
    rig.stop().await;
    assert_clean(&world, "left behind");
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_slots_that_were_never_filled() {
    let rig = Rig::start(config(Reuse::Once), FakeWorld::new(1));
    rig.settled(2).await;
    let began = tokio::time::Instant::now();
    assert!(rig.stop().await.left.is_empty());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_live_joiner_outlives_the_stop_and_is_named() {
    let world = FakeWorld::new(1);
    let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
    rig.settled(2).await;
    let grant = rig.allocate().await;
    let name = grant.lease.namespace.namespace_id.clone();
    let function = world.run_function(&name, Some(&name), "busy").unwrap();
    let stopped = rig.stop().await;
    assert_eq!(stopped.left.len(), 1, "{stopped:?}");
    assert!(stopped.left[0].why.contains("busy"), "{stopped:?}");
    assert_eq!(world.violations(), []);
    assert_eq!(world.buddies().len(), 1);
    // The next start minds it, and removes it once it is empty.
    let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
    rig.settled(2).await;
    assert_eq!(rig.pool.read(|state| state.detached()), 1);
    world.exit_function(&function, 0);
    world.remove_function(&function);
    rig.pool.until(|state| state.detached() == 0).await;
    rig.stop().await;
    assert_clean(&world, "after the second stop");
}

#[tokio::test(start_paused = true)]
async fn a_late_start_by_an_old_name_fails_and_a_configured_joiner_dooms_the_buddy() {
    let world = FakeWorld::new(1);
    let rig = Rig::start(config(Reuse::Always), Arc::clone(&world));
    rig.settled(2).await;
    let grant = rig.allocate().await;
    let name = grant.lease.namespace.namespace_id.clone();
    let before = world.create_function(nspool::engine::fake::FunctionSpec::joining(&name, Some(&name))).unwrap();
    rig.release(&grant);
    rig.settled(2).await;
    let late = world.create_function(nspool::engine::fake::FunctionSpec::joining(&name, Some(&name))).unwrap();
    assert_eq!(world.start_function(&late).unwrap_err().class, ErrorClass::NetworkMissing);
    assert!(world.start_function(&before).is_err(), "created before the fence: its buddy was retired");
    assert!(!world.is_alive(&grant.lease.namespace.container_id), "retired");
    rig.stop().await;
    assert_clean(&world, "late joins");
}

#[tokio::test(start_paused = true)]
async fn the_same_buddy_is_handed_out_again_only_after_a_vouched_release() {
    let world = FakeWorld::new(1);
    let mut config = config(Reuse::Always);
    (config.pool.ready, config.pool.max) = (1, 1);
    let rig = Rig::start(config, Arc::clone(&world));
    rig.settled(1).await;
    let first = rig.use_once().await.lease.key;
    rig.settled(1).await;
    let second = rig.allocate().await;
    assert_eq!((second.lease.key.generation, second.lease.key.use_number), (first.generation, 2));
    rig.pool.with(|state, now| state.release(now, second.lease.token, true)).unwrap();
    rig.settled(1).await;
    let third = rig.use_once().await.lease.key;
    assert!(third.generation > first.generation, "in doubt: a new buddy");
    rig.stop().await;
    assert_clean(&world, "reuse");
}

#[tokio::test(start_paused = true)]
async fn a_late_word_of_a_joiner_that_is_gone_keeps_no_lease() {
    let world = FakeWorld::new(1);
    let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
    rig.settled(2).await;
    let grant = rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    let stays = world.run_function(name, Some(name), "stays").unwrap();
    world.script_for(Operation::Inspect, "goes", Fault::Late(Duration::from_secs(5)));
    let goes = world.run_function(name, Some(name), "goes").unwrap();
    // Once it has been looked at, and before the answer is there.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for function in [&goes, &stays] {
        world.exit_function(function, 0);
        world.remove_function(function);
    }
    let lease_ended = rig.pool.until(|state| state.usage().leased == 0);
    tokio::time::timeout(Duration::from_secs(60), lease_ended).await.expect("nobody is in it any more");
    rig.settled(2).await;
    rig.stop().await;
    assert_clean(&world, "a late word");
}

#[tokio::test(start_paused = true)]
async fn a_late_word_of_the_use_before_does_not_cost_the_buddy() {
    let world = FakeWorld::new(1);
    let mut config = config(Reuse::Always);
    (config.pool.ready, config.pool.max) = (1, 1);
    let rig = Rig::start(config, Arc::clone(&world));
    rig.settled(1).await;
    // What the engine says of the first use's function is told when the third one has begun.
    world.script_for(Operation::Inspect, "of-the-first", Fault::Late(Duration::from_secs(5)));
    let grant = rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    let function = world.run_function(name, None, "of-the-first").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.calls().iter().filter(|call| call.name == "of-the-first").count(), 1, "asked, not answered");
    world.exit_function(&function, 0);
    world.remove_function(&function);
    rig.release(&grant);
    rig.settled(1).await;
    rig.use_once().await;
    rig.settled(1).await;
    let third = rig.allocate().await;
    assert_eq!((third.lease.key.generation, third.lease.key.use_number), (grant.lease.key.generation, 3));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let joiners = rig.pool.read(|state| state.lease_views(None)[0].joiners);
    assert_eq!((rig.pool.read(|state| state.usage().leased), joiners), (1, 0));
    rig.release(&third);
    rig.settled(1).await;
    rig.stop().await;
    assert_clean(&world, "a late word");
}

#[tokio::test(start_paused = true)]
async fn the_pool_comes_back_after_the_engine_was_away() {
    for (containers, frozen) in [(Containers::Kept, false), (Containers::Stopped, false), (Containers::Kept, true)] {
        let what = format!("{containers:?}, frozen: {frozen}");
        let world = FakeWorld::new(1);
        let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
        rig.settled(2).await;
        if frozen {
            world.engine_frozen()
        } else {
            world.engine_away()
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(rig.pool.read(|state| state.usage().ready), 2, "{what}: an absence changes no slot");
        world.engine_back(containers, Events::Lost);
        // The deaths are noticed in no time of the paused clock, but not before anybody else runs.
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.settled(2).await;
        rig.use_once().await;
        rig.settled(2).await;
        rig.stop().await;
        assert_clean(&world, &what);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_goes_closes_the_gate_and_comes_back() {
    let world = FakeWorld::new(1);
    let rig = Rig::start(config(Reuse::Once), Arc::clone(&world));
    rig.settled(2).await;
    let image = world.container(world.buddies()[0].id.as_str()).unwrap().image;
    world.image_removed(image.as_str());
    rig.use_once().await;
    rig.use_once().await;
    rig.settled(2).await;
    assert!(world.engine().image_id(image.as_str()).await.unwrap().is_some());
    rig.stop().await;
    assert_clean(&world, "image removed");
}
