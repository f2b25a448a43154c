//! What an operator changes while it runs: by the configuration and SIGHUP, and by the command line.

use std::time::Duration;

use nspool::client::Request;
use nspool::proto::LeaseState;

use crate::support::daemon::{LIMIT, TestDaemon, text};
use crate::support::engines::TestEngine;
use crate::support::eventually;

on_both_engines!(a_reload_resizes_and_a_mistake_changes_nothing, the_command_line_resizes_cordons_drains_and_recycles);

async fn a_reload_resizes_and_a_mistake_changes_nothing(engine: &TestEngine) {
    let mut daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.trim_after = \"1s\""]).await;
    daemon.settled(1).await;
    daemon.configure(&["pool.ready = 3"]);
    daemon.signal("HUP");
    daemon.settled(3).await;
    daemon.configure(&["pool.ready = \"many\"", "pool.max = 99"]);
    daemon.signal("HUP");
    eventually("the mistake to be told", LIMIT, || async { daemon.log().contains("pool.ready: read \"many\"").then_some(()) }).await;
    let usage = daemon.settled(3).await;
    assert_eq!((usage.target, usage.max), (3, 4));
    daemon.configure(&["pool.ready = 1", "pool.max = 4", "api.mode = \"0600\""]);
    daemon.signal("HUP");
    daemon.settled(1).await;
    daemon.says("changes with the next start only").await;
    let log = daemon.log();
    assert!(log.lines().any(|line| line.contains("changes with the next start only") && line.contains("api.mode")), "{log}");
    assert_eq!(daemon.buddies().len(), 1);
}

async fn the_command_line_resizes_cordons_drains_and_recycles(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.trim_after = \"1s\""]).await;
    daemon.settled(1).await;
    assert_eq!(daemon.json(&["resize", "--ready", "3"])["ready"], 3);
    daemon.settled(3).await;
    daemon.json(&["resize", "--ready", "1", "--max", "2"]);
    daemon.settled(1).await;

    daemon.json(&["cordon", "--reason", "a test"]);
    let refused = daemon.cli(&["allocate"]);
    assert_eq!(refused.status.code(), Some(75), "{}", text(&refused.stderr));
    assert_eq!(daemon.json(&["usage"])["cordoned"], true);
    daemon.json(&["uncordon"]);

    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    assert_eq!(daemon.cli(&["drain", "--timeout", "1s"]).status.code(), Some(75));
    assert_eq!(daemon.cli(&["allocate"]).status.code(), Some(75));
    client.release(&lease.token, false).await.unwrap();
    assert_eq!(daemon.json(&["drain"])["drained"], true);
    daemon.json(&["uncordon"]);
    daemon.settled(1).await;

    let before = daemon.slots().await.into_iter().find(|slot| slot.state == "ready").unwrap();
    daemon.json(&["recycle", &before.slot.to_string()]);
    daemon.level("it to go", |_| async { (!daemon.buddies().contains(&before.container_id)).then_some(()) }).await;
    daemon.settled(1).await;

    let lease = daemon.allocate(&client).await;
    let slot = lease.slot.to_string();
    daemon.json(&["recycle", &slot]);
    assert_eq!(client.lease(&lease.token).await.unwrap().state(), LeaseState::Active, "its holder may finish");
    daemon.json(&["recycle", &slot, "--force"]);
    assert_eq!(client.lease(&lease.token).await.unwrap().state(), LeaseState::Lost);
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(1).await;
    // Who waits is served by what a release brings back.
    let held = [daemon.allocate(&client).await, daemon.allocate(&client).await];
    let waiting = client.allocate(Request::new().wait(LIMIT));
    let (waiting, released) = tokio::join!(waiting, async {
        daemon.usage("somebody to wait", |usage| usage.waiting == 1).await;
        client.release(&held[0].token, false).await
    });
    released.unwrap();
    drop(waiting.unwrap());
    client.close(Duration::from_secs(5)).await;
}
