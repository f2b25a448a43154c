//! Every way to stop: bounded, and nothing of ours is left but what somebody is in, which is named.

use crate::support::daemon::{LIMIT, TestDaemon, joined, load_busybox};
use crate::support::engines::TestEngine;

on_both_engines!(
    a_stop_removes_what_is_ready_or_leased,
    a_stop_during_the_fill_leaves_nothing,
    a_stop_leaves_what_somebody_is_in_and_the_next_start_minds_it,
    a_second_signal_stops_at_once,
);

async fn a_stop_removes_what_is_ready_or_leased(engine: &TestEngine) {
    let mut daemon = TestDaemon::start(engine, &[]).await;
    daemon.settled(2).await;
    let lease = daemon.allocate(&daemon.client()).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.containers(), [""; 0]);
    assert!(!daemon.socket.exists());
    assert!(!daemon.log().contains(&lease.token));
    assert_eq!(daemon.cli(&["usage"]).status.code(), Some(69));
}

async fn a_stop_during_the_fill_leaves_nothing(engine: &TestEngine) {
    let config = if engine.kind == nspool::engine::EngineKind::Podman { "pool.ready = 6" } else { "pool.ready = 24" };
    let mut daemon = TestDaemon::start(engine, &[config, "pool.max = 32"]).await;
    // From the very first moment to the middle of it.
    for ready in [0, 1, 3] {
        daemon.usage("the fill to be under way", |usage| usage.ready >= ready).await;
        assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
        assert_eq!(daemon.containers(), [""; 0], "stopped with {ready} ready");
        daemon.launch().await;
    }
    daemon.stop().await;
}

async fn a_stop_leaves_what_somebody_is_in_and_the_next_start_minds_it(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["stop.timeout = \"5m\""]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let mut events = client.watch(None).await.unwrap();
    let function = daemon.stay(&lease.network_mode);
    joined(&mut events, &lease).await;
    daemon.usage("nothing is being made", |usage| usage.ready == 2 && usage.filling == 0).await;
    drop((events, client));
    daemon.signal("TERM");
    daemon.usage("only that one left", |usage| usage.quarantined == 1 && usage.vacant + 1 == usage.max).await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(LIMIT).await, 1, "{}", daemon.log());
    assert_eq!(daemon.buddies(), [lease.container_id.as_str()], "only the one that somebody is in");
    let log = daemon.log();
    let named = log.lines().find(|line| line.contains("left in the engine")).unwrap();
    assert!(named.contains(&lease.container_id) && named.contains(&function[..12]), "{named}");
    assert!(engine.run(&["exec", &function, "ip", "-o", "-4", "addr"]).contains("eth0"));

    daemon.launch().await;
    let usage = daemon.usage("the pool, and the predecessor's buddy", |usage| usage.ready == 2 && usage.detached == 1).await;
    assert_eq!(usage.quarantined, 0);
    for slot in daemon.slots().await.iter().filter(|slot| slot.generation > 0) {
        assert!(slot.generation > lease.generation);
    }
    assert!(engine.run(&["exec", &function, "ip", "-o", "-4", "addr"]).contains("eth0"));
    engine.run(&["rm", "-f", &function]);
    daemon.usage("nothing detached", |usage| usage.detached == 0).await;
    assert_eq!(daemon.buddies().len(), 2);
    assert_eq!(daemon.stop().await, 0);
    assert_eq!(daemon.containers(), [""; 0]);
}

async fn a_second_signal_stops_at_once(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["pool.ready = 1", "stop.timeout = \"5m\""]).await;
    let lease = daemon.allocate(&daemon.client()).await;
    daemon.stay(&lease.network_mode);
    daemon.signal("TERM");
    daemon.slot(lease.slot, "the quarantine", |slot| slot.state == "quarantined").await;
    daemon.signal("INT");
    assert_eq!(daemon.exit_code(LIMIT).await, 1);
    assert!(daemon.log().lines().any(|line| line.contains("left in the engine") && line.contains(&lease.container_id)));
    assert!(!daemon.socket.exists());
}
