//! `reuse = "verified"`: the same namespace again, when nothing is left in it, and what may go wrong on the way there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nspool::config::{AcrossTenants, Config, Reuse, Unbounded};
use nspool::engine::fake::{Containers, Events, FakeWorld, Fault, FunctionId, FunctionSpec, InspectionFault, Operation};
use nspool::ledger::{Identity, Ledger};
use nspool::netns::inspection::{Depth, Difference, InspectError, Kind};
use nspool::pool::state::SlotState;
use nspool::pool::{Grant, Request};

use crate::assert_clean;
use crate::support::rig::{self, Rig, config, started};

fn one_slot() -> Config {
    rig::one_slot(config(Reuse::Verified))
}

async fn ended(world: &FakeWorld, rig: Rig, what: &str) {
    rig.stop().await;
    assert_clean(world, what);
}

fn route() -> Difference {
    Difference { kind: Kind::Route, subject: "198.51.100.0/24".into(), was: None, is: Some("dev eth0".into()) }
}

/// A lease whose function does something before it ends.
async fn used(world: &FakeWorld, rig: &Rig, privileged: bool, does: impl FnOnce(&str)) -> Grant {
    let grant = rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    let spec = FunctionSpec { privileged, ..FunctionSpec::joining(name, Some(name)) };
    let function = world.create_function(spec).unwrap();
    world.start_function(&function).unwrap();
    rig.pool.until(|state| state.lease_views(None).iter().all(|lease| lease.joiners > 0)).await;
    does(function.as_str());
    world.exit_function(&function, 0);
    world.remove_function(&function);
    rig.release(&grant);
    rig.settled(1).await;
    grant
}

#[tokio::test(start_paused = true)]
async fn a_clean_namespace_is_used_again_under_another_name() {
    let (world, rig) = started(one_slot()).await;
    let first = world.buddies()[0].id.to_string();
    let (namespace, mut names) = (world.namespace_of(&first), std::collections::BTreeSet::new());
    for number in 1..=20 {
        let grant = used(&world, &rig, false, |_| {}).await;
        assert_eq!(grant.lease.key.use_number, number, "the same buddy");
        assert!(names.insert(grant.lease.namespace.namespace_id.clone()));
        assert_eq!(world.namespace_of(&first), namespace);
    }
    assert_eq!((world.count(Operation::Create), world.take_depths()), (1, vec![Depth::Usual; 20]));
    ended(&world, rig, "twenty uses").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_costs_the_buddy_and_is_never_seen_again() {
    let (world, rig) = started(one_slot()).await;
    let first = used(&world, &rig, false, |function| world.soil(function, Depth::Usual, route())).await;
    let why = rig.pool.read(|state| state.slot_view(0).last_error);
    assert!(why.is_none(), "the next buddy is well: {why:?}");
    assert_eq!(world.dirt_in(world.buddies()[0].id.as_str()), 0);
    let next = used(&world, &rig, false, |_| {}).await;
    assert!(next.lease.key.generation > first.lease.key.generation);
    ended(&world, rig, "dirt").await;
}

#[tokio::test(start_paused = true)]
async fn why_a_buddy_is_given_up_is_told_while_it_is_on_its_way_out() {
    let (world, rig) = started(one_slot()).await;
    world.script(Operation::Remove, Fault::Slow(Duration::from_secs(5)));
    let grant = rig.allocate().await;
    world.soil(world.buddies()[0].id.as_str(), Depth::Usual, route());
    rig.release(&grant);
    rig.pool.until(|state| state.slot_view(0).state == SlotState::Retiring).await;
    let why = rig.pool.read(|state| state.slot_view(0).doom).unwrap();
    assert_eq!(&*why, "not as it was: route 198.51.100.0/24: was not there, is dev eth0");
    rig.settled(1).await;
    ended(&world, rig, "the reason").await;
}

#[tokio::test(start_paused = true)]
async fn an_inspection_that_says_nothing_is_not_believed_to_be_clean() {
    let late = Duration::from_secs(60);
    let faults = [
        (InspectionFault::Slow(Duration::from_millis(500)), true),
        (InspectionFault::Slow(late), false),
        (InspectionFault::Error(InspectError::Late { limit: late }), false),
        (InspectionFault::Error(InspectError::Unreadable { what: "routes".into(), cause: rustix::io::Errno::MFILE }), false),
    ];
    for (fault, survives) in faults {
        let what = format!("{fault:?}");
        let (world, rig) = started(one_slot()).await;
        world.script_inspection(fault);
        let first = used(&world, &rig, false, |_| {}).await;
        let next = rig.allocate().await;
        assert_eq!(next.lease.key.generation == first.lease.key.generation, survives, "{what}");
        ended(&world, rig, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_not_filled_while_nobody_can_say_what_its_buddy_is() {
    let world = FakeWorld::new(1);
    world.script_inspection(InspectionFault::Error(InspectError::Unreadable { what: "links".into(), cause: rustix::io::Errno::PERM }));
    let rig = Rig::start(one_slot(), Arc::clone(&world));
    rig.pool.until(|state| state.slot_count() > 0 && state.slot_view(0).failures == 1).await;
    let why = rig.pool.read(|state| state.slot_view(0).last_error).unwrap();
    assert!(why.contains("reuse = \"verified\" is not to be had: reading links"), "{why}");
    rig.settled(1).await;
    ended(&world, rig, "no snapshot").await;
}

#[tokio::test(start_paused = true)]
async fn a_privileged_function_is_the_last_one_or_looked_after_as_configured() {
    for (privileged, dirt, survives) in [
        (Unbounded::Retire, false, false),
        (Unbounded::Retire, true, false),
        (Unbounded::Inspect, false, true),
        (Unbounded::Inspect, true, false),
    ] {
        let what = format!("{privileged:?}, dirt: {dirt}");
        let mut config = one_slot();
        config.pool.privileged_joiners = privileged;
        let (world, rig) = started(config).await;
        let soil = |function: &str| {
            if dirt {
                world.soil(function, Depth::Privileged, Difference { kind: Kind::Sysctl, ..route() });
            }
        };
        let first = used(&world, &rig, true, soil).await;
        // What the one before did is no matter of the next.
        let next = used(&world, &rig, false, |_| {}).await;
        assert_eq!(next.lease.key.generation == first.lease.key.generation, survives, "{what}");
        let expected = match privileged {
            Unbounded::Retire => vec![Depth::Usual],
            Unbounded::Inspect => vec![Depth::Privileged, Depth::Usual],
        };
        assert_eq!(world.take_depths(), expected, "{what}");
        ended(&world, rig, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_there_while_the_engine_was_away_may_have_been_anybody() {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    world.engine_away();
    rig.pool.until(|state| state.slot_view(0).unbounded).await;
    world.engine_back(Containers::Kept, Events::Lost);
    rig.release(&grant);
    rig.settled(1).await;
    let next = rig.allocate().await;
    assert!(next.lease.key.generation > grant.lease.key.generation);
    ended(&world, rig, "an engine that was away").await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_gone_before_it_is_looked_at_may_have_been_anybody() {
    // Whether it ran, what it says it is for, and whether the slot goes on.
    for (ran, labelled, survives) in [(false, false, true), (true, false, false), (true, true, false)] {
        let what = format!("ran: {ran}, labelled: {labelled}");
        let mut config = config(Reuse::Verified);
        (config.pool.ready, config.pool.max) = (2, 2);
        let world = FakeWorld::new(1);
        let rig = Rig::start(config, Arc::clone(&world));
        rig.settled(2).await;
        let (grant, other) = (rig.allocate().await, rig.allocate().await);
        let name = &grant.lease.namespace.namespace_id;
        let function = world.create_function(FunctionSpec::joining(name, labelled.then_some(name))).unwrap();
        if ran {
            world.start_function(&function).unwrap();
        }
        world.remove_function(&function);
        for grant in [&grant, &other] {
            rig.release(grant);
        }
        rig.settled(2).await;
        let goes_on =
            |grant: &Grant| rig.pool.read(|state| state.slot_view(grant.lease.key.slot).key.generation == grant.lease.key.generation);
        assert_eq!((goes_on(&grant), goes_on(&other)), (survives, survives || labelled), "{what}");
        ended(&world, rig, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_words_of_a_use_are_waited_for() {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    let function = world.create_function(FunctionSpec { privileged: true, ..FunctionSpec::joining(name, Some(name)) }).unwrap();
    world.start_function(&function).unwrap();
    world.soil(function.as_str(), Depth::Privileged, Difference { kind: Kind::Sysctl, ..route() });
    world.exit_function(&function, 0);
    // It is asked about now, and the answer is long in coming.
    world.script_for(Operation::Inspect, function.as_str(), Fault::Late(Duration::from_secs(1)));
    tokio::task::yield_now().await;
    world.remove_function(&function);
    rig.release(&grant);
    rig.settled(1).await;
    let next = rig.allocate().await;
    assert!(next.lease.key.generation > grant.lease.key.generation);
    assert_eq!(world.dirt_in(world.buddies()[0].id.as_str()), 0);
    ended(&world, rig, "late words").await;
}

async fn allocate_for(rig: &Rig, tenant: &str) -> Grant {
    let request = Request { tenant: tenant.to_owned(), ..rig::request() };
    rig.pool.allocate(request, Duration::from_secs(900)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_to_no_other_tenant_when_that_is_asked_for() {
    for reuse in [Reuse::Verified, Reuse::Always] {
        let what = format!("{reuse:?}");
        let mut config = config(reuse);
        (config.pool.ready, config.pool.max, config.pool.across_tenants) = (2, 2, AcrossTenants::Retire);
        let world = FakeWorld::new(1);
        let rig = Rig::start(config, Arc::clone(&world));
        rig.settled(2).await;
        let mut buddies: BTreeMap<u64, &str> = BTreeMap::new();
        for tenant in ["acme", "acme", "globex", "acme", "initech", "globex", "acme", "initech"] {
            let grant = allocate_for(&rig, tenant).await;
            let had = buddies.insert(grant.lease.key.generation, tenant);
            assert!(had.is_none_or(|had| had == tenant), "{what}: {tenant} has what {had:?} had");
            rig.release(&grant);
            rig.settled(2).await;
        }
        assert!(buddies.len() < 8, "{what}: one who comes again has the same one: {buddies:?}");
        ended(&world, rig, &what).await;
    }
}

/// A privileged container comes and goes, leaves what only a full inspection finds, and does it so that nobody must see it as a joiner.
async fn costs_the_buddy(what: &str, does: impl AsyncFnOnce(&FakeWorld, &Rig, &Grant) -> (FunctionSpec, Option<FunctionId>)) {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    let (spec, joined) = does(&world, &rig, &grant).await;
    let function = world.create_function(FunctionSpec { privileged: true, ..spec }).unwrap();
    world.start_function(&function).unwrap();
    world.soil(&grant.lease.namespace.container_id, Depth::Privileged, Difference { kind: Kind::Sysctl, ..route() });
    // The engine is asked what it may.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.exit_function(&function, 0);
    world.remove_function(&function);
    if let Some(function) = joined {
        world.exit_function(&function, 0);
        world.remove_function(&function);
    }
    rig.release(&grant);
    rig.settled(1).await;
    assert!(rig.allocate().await.lease.key.generation > grant.lease.key.generation, "{what}");
    assert_eq!(world.dirt_in(world.buddies()[0].id.as_str()), 0, "{what}");
    ended(&world, rig, what).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_past_by_joining_a_function() {
    costs_the_buddy("through a function", async |world, rig, grant| {
        let name = &grant.lease.namespace.namespace_id;
        let function = world.run_function(name, Some(name), "").unwrap();
        rig.pool.until(|state| state.lease_views(None).iter().all(|lease| lease.joiners > 0)).await;
        (FunctionSpec::joining(function.as_str(), None), Some(function))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_past_with_a_label_of_ours() {
    costs_the_buddy("a buddy's label", async |_, _, grant| {
        let labels = [("nspool.generation".to_owned(), "7".to_owned())].into();
        (FunctionSpec { labels, ..FunctionSpec::joining(&grant.lease.namespace.namespace_id, None) }, None)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nobody_gets_past_between_two_streams_of_events() {
    let (world, rig) = started(one_slot()).await;
    world.cut_events();
    tokio::time::sleep(Duration::from_millis(1)).await;
    // What is leased now was ready when the stream ended.
    let grant = rig.allocate().await;
    assert!(!rig.pool.read(|state| state.slot_view(0).unbounded));
    let function = FunctionSpec { privileged: true, ..FunctionSpec::joining(&grant.lease.namespace.namespace_id, None) };
    let function = world.create_function(function).unwrap();
    world.start_function(&function).unwrap();
    world.exit_function(&function, 0);
    world.remove_function(&function);
    let told = rig.pool.until(|state| state.slot_view(0).unbounded);
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("it is taken for privileged");
    rig.release(&grant);
    rig.settled(1).await;
    assert!(rig.allocate().await.lease.key.generation > grant.lease.key.generation);
    ended(&world, rig, "between two streams").await;
}

#[tokio::test(start_paused = true)]
async fn what_another_policy_left_is_not_taken_for_right() {
    let world = FakeWorld::new(1);
    let (locks, state) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let start = |reuse, keep| {
        let identity = Identity { boot_id: "boot".into(), pool: "default".into(), now: world.kernel().since_boot(), engine: String::new() };
        let ledger = Ledger::open(state.path(), &identity).unwrap();
        Rig::start_in(rig::one_slot(config(reuse)), Arc::clone(&world), Arc::clone(&locks), Some(ledger), keep)
    };
    let rig = start(Reuse::Always, true);
    rig.settled(1).await;
    let dirty = used(&world, &rig, false, |function| world.soil(function, Depth::Usual, route())).await;
    rig.kill().await;
    let rig = start(Reuse::Verified, false);
    rig.settled(1).await;
    let first = used(&world, &rig, false, |_| {}).await;
    assert_eq!(first.lease.key.generation, dirty.lease.key.generation, "what was ready stays ready");
    let second = used(&world, &rig, false, |_| {}).await;
    assert!(second.lease.key.generation > first.lease.key.generation, "and was never verified");
    ended(&world, rig, "another policy").await;
}
