//! Who is in a namespace when its lease is over, or comes too late: the fence, the quarantine, the detached ones.

use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::fresh::{one_slot, own};
use crate::support::daemon::{LIMIT, TEST_LABEL, TestDaemon, joined, load_busybox, returned, text};
use crate::support::engines::{TestEngine, docker};
use crate::support::eventually;
use crate::support::image::BUSYBOX;

on_both_engines!(
    a_start_by_an_old_name_fails,
    a_container_created_before_the_release_never_meets_the_next_tenant,
    a_function_that_stays_keeps_its_namespace,
    a_slot_goes_on_without_a_buddy_that_stays_occupied,
    a_process_without_a_container_is_found,
    a_function_that_ended_and_was_not_removed_is_named_where_it_matters,
);

async fn a_start_by_an_old_name_fails(engine: &TestEngine) {
    load_busybox(engine);
    for reuse in ["once", "always"] {
        let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1", &format!("pool.reuse = {reuse:?}")]).await;
        let client = daemon.client();
        let lease = daemon.allocate(&client).await;
        client.release(&lease.token, false).await.unwrap();
        daemon.settled(1).await;
        let late = daemon.function(&["run", "--rm"], &lease.network_mode, &["true"]);
        assert!(late.is_err(), "{reuse}: it started");
        // Nor does it hurt whoever comes next.
        let next = daemon.allocate(&client).await;
        daemon.function(&["run", "--rm"], &next.network_mode, &["true"]).unwrap();
    }
}

async fn a_container_created_before_the_release_never_meets_the_next_tenant(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 2", "pool.reuse = \"always\"", "pool.settle = \"200ms\""]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let early = daemon.function(&["create"], &lease.network_mode, &["sleep", "1000"]).unwrap();
    client.release(&lease.token, false).await.unwrap();
    let next = daemon.allocate(&client).await;
    assert!((next.slot, next.generation) != (lease.slot, lease.generation), "handed on with somebody who could still start");
    let tenants = daemon.slots().await.into_iter().find(|slot| slot.slot == next.slot).unwrap().pid;
    if engine.client(&["start", &early]).status.success() {
        // podman cannot remove a container that another one depends on: it still has the old namespace, and only that.
        let pid = engine.run(&["inspect", "--format", "{{.State.Pid}}", &early]);
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_ne!(namespace(&pid), namespace(&tenants.to_string()), "it is in the next tenant's namespace");
    }
    engine.run(&["rm", "-f", &early]);
    client.release(&next.token, false).await.unwrap();
    daemon.settled(1).await;
}

/// Buddies are joined as soon as the engine knows them, again and again, while they are started and moved. Not on podman: there a container that is
/// removed while another one is made to join it can be lost by half, and 4.3 lists nothing any more from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_from_the_first_moment_on_never_gets_the_hosts_namespace() {
    const JOINS: usize = 6;
    let engine = docker();
    load_busybox(engine);
    let (mut lines, _) = own(&one_slot());
    lines.extend(["backoff.first = \"100ms\"", "backoff.longest = \"200ms\""].map(str::to_owned));
    let mut daemon = TestDaemon::prepare(engine, &lines.iter().map(String::as_str).collect::<Vec<_>>());
    let command = daemon.command(&[]);
    daemon.spawn(command);
    let until = Instant::now() + LIMIT;
    let (pool, joins) = (daemon.pool.clone(), AtomicUsize::new(0));
    let hammer = || {
        let (label, mut seen) = (format!("label=nspool.pool={pool}"), Vec::new());
        while joins.load(Ordering::Relaxed) < JOINS && Instant::now() < until {
            for buddy in engine.run(&["ps", "-aq", "--no-trunc", "--filter", &label]).split_whitespace() {
                let network = format!("container:{buddy}");
                let test = format!("{TEST_LABEL}={pool}");
                let joined = engine.client(&[
                    "run",
                    "--rm",
                    "--label",
                    &test,
                    "--network",
                    &network,
                    BUSYBOX,
                    "busybox",
                    "readlink",
                    "/proc/self/ns/net",
                ]);
                if joined.status.success() {
                    joins.fetch_add(1, Ordering::Relaxed);
                    seen.push(text(&joined.stdout).trim().to_owned());
                }
            }
        }
        seen
    };
    let seen: Vec<String> = std::thread::scope(|scope| {
        let hammers = [scope.spawn(hammer), scope.spawn(hammer)];
        hammers.into_iter().flat_map(|hammer| hammer.join().unwrap()).collect()
    });
    let hosts = std::fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap().to_owned();
    assert!(seen.iter().all(|namespace| namespace.starts_with("net:[") && *namespace != hosts), "{seen:?}");
    assert!(!seen.is_empty(), "or this tests nothing: {}", daemon.log());
    // Nobody stays in the way once they leave off.
    daemon.settled(1).await;
}

/// Whether a container runs and has an address beside loopback.
fn is_whole(engine: &TestEngine, function: &str) -> bool {
    engine.run(&["exec", function, "ip", "-o", "-4", "addr"]).contains("eth0")
}

async fn a_function_that_stays_keeps_its_namespace(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 2"]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let mut events = client.watch(None).await.unwrap();
    let function = daemon.stay(&lease.network_mode);
    joined(&mut events, &lease).await;
    returned(&client.release(&lease.token, false).await.unwrap());
    let slot = daemon.slot(lease.slot, "the quarantine", |slot| slot.state == "quarantined" && !slot.joiners.is_empty()).await;
    assert!(slot.joiners.iter().any(|joiner| joiner.contains(&function[..12])), "{:?}", slot.joiners);
    let usage = daemon.usage("another one ready", |usage| usage.ready == 1).await;
    assert_eq!(usage.quarantined, 1);
    // A forced recycle, a smaller pool and a few more looks are no reasons either.
    let _found = client.recycle(lease.slot, true).await;
    client.resize(Some(0), Some(1)).await.unwrap();
    daemon.usage("the other one to be given up", |usage| usage.ready + usage.retiring == 0).await;
    client.resize(Some(1), Some(2)).await.unwrap();
    let next = daemon.allocate(&client).await;
    client.release(&next.token, false).await.unwrap();
    assert!(is_whole(engine, &function));
    assert!(daemon.buddies().contains(&lease.container_id));
    engine.run(&["rm", "-f", &function]);
    daemon.settled(1).await;
    assert!(!daemon.buddies().contains(&lease.container_id));
}

async fn a_slot_goes_on_without_a_buddy_that_stays_occupied(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1", "pool.detach_after = \"2s\""]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let function = daemon.stay(&lease.network_mode);
    client.release(&lease.token, false).await.unwrap();
    daemon.usage("the detached buddy, and a slot that is ready", |usage| usage.detached == 1 && usage.ready == 1).await;
    assert!(is_whole(engine, &function));
    let listed = || daemon.json(&["slots", "--state", "detached"]);
    daemon
        .level("the detached buddy in the list", |_| async { listed()[0]["joiners"].to_string().contains(&function[..12]).then_some(()) })
        .await;
    let detached = listed();
    assert_eq!(detached[0]["container_id"].as_str(), Some(lease.container_id.as_str()));
    engine.run(&["rm", "-f", &function]);
    daemon.usage("nothing detached", |usage| usage.detached == 0).await;
    assert_eq!(daemon.buddies().len(), 1);
}

async fn a_function_that_ended_and_was_not_removed_is_named_where_it_matters(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 2", "pool.settle = \"200ms\""]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let function = daemon.function(&["create"], &lease.network_mode, &["true"]).unwrap();
    engine.run(&["start", &function]);
    engine.run(&["wait", &function]);
    client.release(&lease.token, false).await.unwrap();
    let left =
        |slot: &nspool::proto::Slot| slot.generation != lease.generation || !matches!(&*slot.state, "leased" | "vacating" | "retiring");
    let slot = daemon.slot(lease.slot, "the way out", left).await;
    if slot.state == "quarantined" {
        // podman removes nothing that another container depends on.
        assert!(slot.joiners.iter().any(|joiner| joiner.contains(&function[..12])), "{:?}", slot.joiners);
    }
    daemon.usage("another one ready", |usage| usage.ready == 1).await;
    engine.run(&["rm", "-f", &function]);
    daemon.settled(1).await;
    assert!(!daemon.buddies().contains(&lease.container_id));
}

/// Ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait());
    }
}

async fn a_process_without_a_container_is_found(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1"]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let buddy = daemon.slots().await[lease.slot as usize].pid.to_string();
    let command = Command::new("nsenter").args(["-t", &buddy, "-n", "sleep", "1000"]).spawn().unwrap();
    let process = Process(command);
    let pid = process.0.id();
    let inside = || std::fs::read_link(format!("/proc/{pid}/ns/net")).ok() == std::fs::read_link(format!("/proc/{buddy}/ns/net")).ok();
    eventually("the process to be inside", Duration::from_secs(10), || async { inside().then_some(()) }).await;
    client.release(&lease.token, false).await.unwrap();
    let slot = daemon.slot(lease.slot, "the quarantine", |slot| slot.state == "quarantined" && !slot.joiners.is_empty()).await;
    assert!(slot.joiners.iter().any(|joiner| joiner.contains(&pid.to_string())), "{:?}", slot.joiners);
    drop(process);
    let next = daemon.slot(lease.slot, "the slot to come back", |slot| slot.state == "ready").await;
    assert!(next.generation > lease.generation);
}
