//! A daemon that is killed, its successor, its neighbours and its double. Containers of others are never touched.

use std::time::Duration;

use crate::support::daemon::{LIMIT, TEST_LABEL, TestDaemon, load_busybox};
use crate::support::engines::TestEngine;
use crate::support::image::BUSYBOX;

on_both_engines!(
    a_successor_clears_up_after_a_killed_daemon,
    decoys_are_never_touched,
    two_pools_on_one_engine_leave_each_other_alone,
    a_second_daemon_of_the_same_pool_gives_up,
);

async fn a_successor_clears_up_after_a_killed_daemon(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &[]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let (occupied, empty) = (daemon.allocate(&client).await, daemon.allocate(&client).await);
    let function = daemon.stay(&occupied.network_mode);
    daemon.usage("more of them ready", |usage| usage.ready == 2).await;
    let before = daemon.slots().await;
    daemon.kill();
    assert!(daemon.socket.exists(), "a killed daemon cannot remove its socket");
    daemon.launch().await;
    daemon.usage("the new pool, and the occupied buddy", |usage| usage.ready == 2 && usage.detached == 1).await;
    let highest = before.iter().map(|slot| slot.generation).max().unwrap();
    let after = daemon.slots().await;
    assert!(after.iter().filter(|slot| slot.state == "ready").all(|slot| slot.generation > highest), "{before:#?} {after:#?}");
    let there = daemon.buddies();
    assert_eq!(there.len(), 3);
    assert!(there.contains(&occupied.container_id) && !there.contains(&empty.container_id));
    assert!(engine.run(&["exec", &function, "ip", "-o", "-4", "addr"]).contains("eth0"));
    assert_eq!(daemon.cli(&["release", &empty.token]).status.code(), Some(1), "no lease survives yet");
    engine.run(&["rm", "-f", &function]);
    daemon.usage("nothing detached", |usage| usage.detached == 0).await;
}

async fn decoys_are_never_touched(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::prepare(engine, &["pool.ready = 1"]);
    let label = format!("{TEST_LABEL}={}", daemon.pool);
    let ours = [
        format!("nspool.pool={}", daemon.pool),
        "nspool.instance=i".into(),
        "nspool.slot=0".into(),
        "nspool.generation=7".into(),
        "nspool.version=0.1.0".into(),
    ];
    let decoy = |name: &str, labels: &[String]| {
        let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label.as_str()]).collect();
        engine.run(&[&["run", "-d", "--name", name, "--label", &label], &labels[..], &[BUSYBOX, "sleep", "1000"]].concat())
    };
    let named_like_ours = decoy(&format!("nspool-{}-0-7-1-00000000", daemon.pool), &[]);
    let labelled_like_ours = decoy(&format!("web-{}", daemon.pool), &ours);
    let half_labelled = decoy(&format!("nspool-{}-0-8-1-00000000", daemon.pool), &ours[..2]);
    let of_another_slot = decoy(&format!("nspool-{}-1-7-1-00000000", daemon.pool), &ours);
    daemon.launch().await;
    daemon.settled(1).await;
    daemon.kill();
    daemon.launch().await;
    daemon.settled(1).await;
    assert_eq!(daemon.stop().await, 0);
    for decoy in [named_like_ours, labelled_like_ours, half_labelled, of_another_slot] {
        assert_eq!(engine.run(&["inspect", "--format", "{{.State.Status}}", &decoy]), "running");
    }
}

async fn two_pools_on_one_engine_leave_each_other_alone(engine: &TestEngine) {
    // The name of one begins like the other's.
    let mut one = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    let mut other = TestDaemon::prepare(engine, &["pool.ready = 1"]);
    let name = format!("{}-0", one.pool);
    other.configure(&[&format!("pool.name = {name:?}")]);
    other.pool = name;
    other.launch().await;
    let (first, second) = (one.settled(1).await, other.settled(1).await);
    assert_eq!((first.detached, second.detached), (0, 0));
    let theirs = other.buddies();
    one.kill();
    one.launch().await;
    one.settled(1).await;
    assert_eq!(one.stop().await, 0);
    assert_eq!(one.buddies(), [""; 0]);
    assert_eq!(other.buddies(), theirs);
    assert_eq!(other.settled(1).await.misses, 0);
    assert_eq!(other.stop().await, 0);
    assert_eq!(other.buddies(), [""; 0]);
}

async fn a_second_daemon_of_the_same_pool_gives_up(engine: &TestEngine) {
    let first = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    first.settled(1).await;
    let there = first.buddies();
    let mut second = TestDaemon::prepare(engine, &["pool.ready = 1", &format!("pool.name = {:?}", first.pool)]);
    second.spawn(second.command(&[]));
    assert_eq!(second.exit_code(LIMIT).await, 75, "{}", second.log());
    assert!(!second.socket.exists());
    assert_eq!(first.buddies(), there);

    // On the same socket it does not even begin.
    let mut third = TestDaemon::prepare(engine, &[&format!("api.listen = [\"unix:{}\"]", first.socket.display())]);
    third.spawn(third.command(&[]));
    assert_eq!(third.exit_code(Duration::from_secs(5)).await, 75, "{}", third.log());
    assert_eq!(first.settled(1).await.ready, 1);
}
