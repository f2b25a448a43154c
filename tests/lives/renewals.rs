//! `reuse = "fresh"` on a managed network: each use in a namespace of its own under the same buddy, and what may go wrong on the way there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nspool::config::Config;
use nspool::engine::fake::{FakeWorld, Fault, FunctionSpec, LinkFault, Operation, RenewalFault, Violation};
use nspool::ledger::{Identity, Ledger};
use nspool::netns::managed::FurnishError;
use nspool::netns::{KernelError, RenewError, WrongAnswer};
use nspool::pool::Cause;
use nspool::pool::state::SlotState;

use crate::assert_clean;
use crate::support::rig::{self, Rig, fresh, started};

fn one_slot() -> Config {
    rig::one_slot(fresh())
}

async fn ended(world: &FakeWorld, rig: Rig, what: &str) {
    rig.stop().await;
    assert_clean(world, what);
    assert_eq!(world.link_count(), 0, "{what}");
}

#[tokio::test(start_paused = true)]
async fn each_use_has_a_namespace_and_an_address_that_rested() {
    let (world, rig) = started(one_slot()).await;
    let (mut namespaces, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for number in 1..=30 {
        let grant = rig.use_once().await;
        let lease = &grant.lease;
        assert_eq!(lease.key.use_number, number, "the same buddy");
        assert!(namespaces.insert(lease.namespace.namespace_id.clone()));
        let address = lease.namespace.addresses[0].address.clone();
        assert!(address.ends_with("/16") && lease.namespace.mtu == 1400 && lease.namespace.addresses[0].gateway == "10.213.0.1");
        assert!(addresses.insert(address), "nobody had it in the last ten seconds");
        rig.settled(1).await;
    }
    assert_eq!((world.count(Operation::Create), world.link_count()), (3, 1), "the probe's two, and one buddy");
    ended(&world, rig, "thirty uses").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_leased_is_where_the_lease_says() {
    let (world, rig) = started(one_slot()).await;
    for _ in 0..3 {
        let grant = rig.allocate().await;
        let buddy = world.buddies()[0].id.to_string();
        let address = world.address_of(&buddy).unwrap();
        assert_eq!(grant.lease.namespace.addresses[0].address, format!("{address}/16"));
        let name = &grant.lease.namespace.namespace_id;
        let function = world.run_function(name, Some(name), "").unwrap();
        assert_eq!(world.namespace_of(function.as_str()), world.namespace_of(&buddy));
        world.exit_function(&function, 0);
        world.remove_function(&function);
        rig.release(&grant);
        rig.settled(1).await;
    }
    ended(&world, rig, "leases").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_costs_the_buddy_and_nothing_else() {
    let wrong = |wrong| RenewalFault::Error(RenewError::Wrong { pid: 1, wrong });
    let faults = [
        RenewalFault::Slow(Duration::from_secs(1)),
        RenewalFault::Slow(Duration::from_secs(100)),
        RenewalFault::Never,
        RenewalFault::Refused,
        RenewalFault::Killed,
        RenewalFault::Strays,
        wrong(WrongAnswer::NotNew),
        RenewalFault::Error(RenewError::Kernel(KernelError::Failed { what: "a cookie".into(), message: "no".into() })),
    ];
    for fault in faults {
        let what = format!("{fault:?}");
        let survives = matches!(fault, RenewalFault::Slow(slow) if slow < Duration::from_secs(2));
        let (world, rig) = started(one_slot()).await;
        world.script_renewal(fault);
        let first = rig.use_once().await.lease.key;
        rig.settled(1).await;
        let grant = rig.use_once().await;
        assert_eq!(grant.lease.key.generation == first.generation, survives, "{what}");
        ended(&world, rig, &what).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_cannot_be_made_costs_the_buddy_and_is_undone() {
    for while_filling in [false, true] {
        let faults = [
            LinkFault::Error(FurnishError::QueueFull),
            LinkFault::Error(FurnishError::NoBridge { name: "nsbr0".into() }),
            LinkFault::DoneUnknown,
            LinkFault::Slow(Duration::from_secs(3)),
        ];
        for fault in faults {
            let what = format!("{fault:?}, while filling: {while_filling}");
            let world = FakeWorld::new(1);
            if while_filling {
                world.script_furnish(fault.clone());
            }
            let rig = Rig::start(one_slot(), Arc::clone(&world));
            rig.settled(1).await;
            if !while_filling {
                world.script_furnish(fault);
            }
            rig.use_once().await;
            rig.settled(1).await;
            assert_eq!(world.link_count(), 1, "{what}");
            ended(&world, rig, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_stays_keeps_its_address_until_it_is_gone() {
    let (world, rig) = started(one_slot()).await;
    world.script_strips_fail(1);
    rig.use_once().await;
    rig.settled(1).await;
    // What could not be taken away is tried again when the networks are looked after.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.link_count(), 1);
    ended(&world, rig, "a stuck strip").await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_somebody_removes_costs_the_lease() {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    world.remove_links();
    rig.pool.until(|state| state.slot_view(0).state != SlotState::Leased).await;
    rig.settled(1).await;
    let slot = rig.pool.read(|state| state.slot_view(0));
    assert!(slot.key.generation > grant.lease.key.generation, "another buddy: {slot:?}");
    ended(&world, rig, "a removed link").await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_buddys_link_does_not_cost_the_next_one() {
    let (world, rig) = started(one_slot()).await;
    // It goes with its namespace, and that it is gone cannot be learnt.
    world.script_strips_fail(1000);
    world.kill(world.buddies()[0].id.as_str());
    rig.pool.until(|state| state.slot_view(0).state != SlotState::Ready).await;
    rig.settled(1).await;
    let grant = rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    let function = world.run_function(name, Some(name), "").unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let slot = rig.pool.read(|state| state.slot_view(0));
    assert_eq!((slot.key, slot.state), (grant.lease.key, SlotState::Leased), "{slot:?}");
    world.script_strips_fail(0);
    world.exit_function(&function, 0);
    world.remove_function(&function);
    ended(&world, rig, "a dead buddy's link").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_filled_while_the_networks_cannot_be_set_up() {
    let world = FakeWorld::new(1);
    world.set_network_trouble(Some("nsbr0 is there, and it is not ours"));
    let rig = Rig::start(one_slot(), Arc::clone(&world));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let slot = rig.pool.read(|state| state.slot_view(0));
    assert!(slot.last_error.is_some_and(|why| why.contains("not ours")) && world.count(Operation::Start) == 0);
    world.set_network_trouble(None);
    rig.settled(1).await;
    ended(&world, rig, "trouble").await;
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_waits_for_its_address_can_be_stopped_and_recycled() {
    for stop in [true, false] {
        let (world, rig) = started(one_slot()).await;
        let grant = rig.allocate().await;
        world.set_network_trouble(Some("somebody's bridge"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        rig.release(&grant);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(rig.pool.read(|state| (state.slot_view(0).state, state.usage().cooling)), (SlotState::Cooling, 1));
        if !stop {
            rig.pool.with(|state, now| state.recycle(now, 0, false)).unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!world.is_alive(&grant.lease.namespace.container_id));
        }
        let began = tokio::time::Instant::now();
        ended(&world, rig, "waiting for an address").await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_a_slot_waits_for_its_address_is_not_left_behind() {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    world.set_network_trouble(Some("somebody's bridge"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    rig.release(&grant);
    rig.pool.until(|state| state.slot_view(0).state == SlotState::Cooling).await;
    // By the id, which the fence does not hide.
    let buddy = world.buddies()[0].id.to_string();
    let function = world.create_function(FunctionSpec::joining(&buddy, None)).unwrap();
    world.start_function(&function).unwrap();
    world.set_network_trouble(None);
    rig.pool.until(|state| state.slot_view(0).state == SlotState::Quarantined).await;
    world.exit_function(&function, 0);
    world.remove_function(&function);
    rig.settled(1).await;
    assert!(rig.allocate().await.lease.key.generation > grant.lease.key.generation);
    ended(&world, rig, "somebody while it cooled").await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_joins_the_old_namespace_is_not_relied_upon() {
    let world = FakeWorld::new(1);
    world.remember_first_namespaces();
    let rig = Rig::start(one_slot(), Arc::clone(&world));
    tokio::time::sleep(Duration::from_secs(20)).await;
    let slot = rig.pool.read(|state| state.slot_view(0));
    let why = slot.last_error.unwrap_or_default().to_string();
    assert!(why.contains("cannot be renewed") && why.contains("the old network namespace"), "{why}");
    assert_eq!(rig.pool.read(|state| state.usage().ready), 0);
    ended(&world, rig, "unfit").await;
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_in_the_middle_of_a_renewal_is_seen_before_ready() {
    for live in [true, false] {
        let (world, rig) = started(one_slot()).await;
        let grant = rig.allocate().await;
        let buddy = world.buddies()[0].id.to_string();
        world.script_renewal(RenewalFault::Slow(Duration::from_secs(1)));
        rig.release(&grant);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(rig.pool.read(|state| state.slot_view(0).state), SlotState::Renewing);
        // By the id, which the fence does not hide.
        let spec = FunctionSpec::joining(&buddy, None);
        let function = world.create_function(spec).unwrap();
        if live {
            world.start_function(&function).unwrap();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let slot = rig.pool.read(|state| state.slot_view(0));
        if live {
            assert_eq!(slot.state, SlotState::Quarantined);
        } else {
            assert!(
                slot.key.generation > grant.lease.key.generation,
                "what could still start is no reason to wait, and one for another buddy"
            );
        }
        world.exit_function(&function, 0);
        world.remove_function(&function);
        rig.settled(1).await;
        let next = rig.use_once().await;
        assert!(next.lease.key.generation > grant.lease.key.generation);
        rig.stop().await;
        // No fence keeps one out that knows the id, which no lease tells: it came in between the look and the move, and is left in the old namespace,
        // without a link. What matters is that nobody gets this buddy any more.
        let between = world.violations();
        assert!(between.iter().all(|violation| live && matches!(violation, Violation::RenewedWithJoiner { .. })), "{between:?}");
        assert_eq!((world.buddies().len(), world.link_count()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_left_behind_is_never_renewed_under_and_keeps_the_address() {
    let mut config = one_slot();
    (config.pool.max, config.pool.detach_after) = (2, Duration::from_secs(5));
    let (world, rig) = started(config).await;
    let grant = rig.allocate().await;
    let name = &grant.lease.namespace.namespace_id;
    let function = world.run_function(name, Some(name), "stays").unwrap();
    let mine = world.address_of(function.as_str()).unwrap();
    rig.release(&grant);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.address_of(function.as_str()), Some(mine), "detached, and still there");
    for _ in 0..5 {
        let other = rig.use_once().await;
        assert_ne!(other.lease.namespace.addresses[0].address, format!("{mine}/16"));
        rig.settled_beside(1).await;
    }
    world.exit_function(&function, 0);
    world.remove_function(&function);
    rig.settled(1).await;
    ended(&world, rig, "left behind").await;
}

#[tokio::test(start_paused = true)]
async fn a_doubtful_release_is_no_renewal() {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    rig.pool.with(|state, now| state.release(now, grant.lease.token, true)).unwrap();
    rig.settled(1).await;
    assert!(rig.use_once().await.lease.key.generation > grant.lease.key.generation);
    ended(&world, rig, "doubtful").await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_links_with_their_addresses() {
    let world = FakeWorld::new(1);
    let (locks, state) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let mut config = fresh();
    (config.pool.ready, config.pool.max) = (2, 3);
    let identity = |world: &Arc<FakeWorld>| Identity {
        boot_id: "boot".into(),
        pool: "default".into(),
        now: world.kernel().since_boot(),
        engine: String::new(),
    };
    let start = |keep| {
        let ledger = Ledger::open(state.path(), &identity(&world)).unwrap();
        Rig::start_in(config.clone(), Arc::clone(&world), Arc::clone(&locks), Some(ledger), keep)
    };
    let rig = start(true);
    rig.settled(2).await;
    rig.use_once().await;
    rig.settled(2).await;
    let grant = rig.allocate().await;
    rig.settled_beside(2).await;
    let before: BTreeSet<_> =
        world.buddies().into_iter().map(|buddy| (buddy.id.to_string(), world.address_of(buddy.id.as_str()))).collect();
    rig.kill().await;

    let rig = start(false);
    rig.settled_beside(2).await;
    let after: BTreeSet<_> = world.buddies().into_iter().map(|buddy| (buddy.id.to_string(), world.address_of(buddy.id.as_str()))).collect();
    assert_eq!(before, after);
    // A ready one goes on as before. What a leased one shared with its function is not known any more, so it is given up after the lease.
    let ready = rig.use_once().await;
    rig.settled_beside(2).await;
    assert!(world.buddies().iter().any(|buddy| buddy.id.as_str() == &*ready.lease.namespace.container_id));
    rig.release(&grant);
    rig.settled(2).await;
    assert!(!world.is_alive(&grant.lease.namespace.container_id));
    ended(&world, rig, "a restart").await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_ends_in_mid_renewal_leaves_nothing_to_hand_out() {
    let world = FakeWorld::new(1);
    let (locks, state) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let start = || {
        let identity = Identity { boot_id: "boot".into(), pool: "default".into(), now: world.kernel().since_boot(), engine: String::new() };
        let ledger = Ledger::open(state.path(), &identity).unwrap();
        Rig::start_in(one_slot(), Arc::clone(&world), Arc::clone(&locks), Some(ledger), false)
    };
    let rig = start();
    rig.settled(1).await;
    world.script_renewal(RenewalFault::Slow(Duration::from_secs(1)));
    let grant = rig.use_once().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.pool.read(|state| state.slot_view(0).state), SlotState::Renewing);
    rig.kill().await;
    let rig = start();
    rig.settled(1).await;
    let next = rig.use_once().await;
    assert!(next.lease.key.generation > grant.lease.key.generation);
    ended(&world, rig, "killed in mid-renewal").await;
}

#[tokio::test(start_paused = true)]
async fn the_engine_may_fail_in_every_way_around_a_renewal() {
    for operation in [Operation::Inspect, Operation::List, Operation::Rename] {
        for fault in crate::faults() {
            let what = format!("{operation:?} {fault:?}");
            let (world, rig) = started(one_slot()).await;
            let grant = rig.allocate().await;
            world.script(operation, fault.clone());
            if operation == Operation::List {
                // The one after the fence, too, so that the last look has one as well.
                world.script(operation, Fault::Ok);
                world.script(operation, fault);
            }
            rig.release(&grant);
            rig.settled(1).await;
            rig.use_once().await;
            ended(&world, rig, &what).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_buddy_that_dies_while_it_is_leased_is_lost_with_its_link() {
    let (world, rig) = started(one_slot()).await;
    let grant = rig.allocate().await;
    world.kill(&grant.lease.namespace.container_id);
    rig.settled(1).await;
    let lost = rig.pool.with(|state, now| state.release(now, grant.lease.token, false)).unwrap();
    assert!(matches!(lost, nspool::pool::Released::AlreadyEnded(Cause::Lost(_))), "{lost:?}");
    ended(&world, rig, "a death").await;
}
