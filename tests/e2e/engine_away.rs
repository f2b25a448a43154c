//! Engines that are not there, go, come back, or hang. The slow ones: each starts an engine for itself.

use std::time::{Duration, Instant};

use nspool::client::Request;

use crate::support::daemon::{LIMIT, TestDaemon, text};
use crate::support::engines::{PrivateDocker, PrivatePodman, TestEngine};

/// Waits until `usage` says that.
async fn engine_state(daemon: &TestDaemon<'_>, state: &str) -> String {
    let look = |client: nspool::client::Client| async move {
        let usage = client.usage().await.unwrap();
        (usage.engine_state == state).then_some(usage.engine_error)
    };
    daemon.level(&format!("the engine to be {state}"), look).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_comes_later_is_filled_then() {
    let mut engine = PrivateDocker::start();
    let seen = engine.handle();
    engine.kill();
    let daemon = TestDaemon::start(&seen, &[]).await;
    let look = |client: nspool::client::Client| async move { Some(client.usage().await.unwrap().engine_error).filter(|e| !e.is_empty()) };
    let words = daemon.level("the engine's words", look).await;
    assert!(words.contains(&seen.endpoint()), "{words}");
    assert_eq!(engine_state(&daemon, "starting").await, words);
    let refused = daemon.cli(&["allocate"]);
    assert_eq!(refused.status.code(), Some(75), "{}", text(&refused.stderr));
    // Who waits is served when it is there.
    let client = daemon.client().with_timeout(Duration::from_secs(60));
    let waiting = client.allocate(Request::new().wait(Duration::from_secs(60)));
    let (lease, ()) = tokio::join!(waiting, async {
        daemon.usage("somebody to wait", |usage| usage.waiting == 1).await;
        tokio::task::block_in_place(|| engine.launch());
    });
    drop(lease.unwrap());
    daemon.settled(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buddies_that_outlive_docker_stay_in_the_pool() {
    buddies_outlive(PrivateDocker::start_with(&["--live-restore"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buddies_that_outlive_podman_stay_in_the_pool() {
    buddies_outlive(PrivatePodman::start()).await;
}

async fn buddies_outlive(mut engine: TestEngine) {
    let seen = engine.handle();
    let daemon = TestDaemon::start(&seen, &["engine.probe_every = \"200ms\""]).await;
    daemon.settled(2).await;
    let before = daemon.slots().await;
    engine.kill();
    let words = engine_state(&daemon, "away").await;
    assert!(!words.is_empty());
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    assert!(before.iter().any(|slot| slot.generation == lease.generation), "handed out while the engine is away");
    client.release(&lease.token, false).await.unwrap();
    engine.launch();
    engine_state(&daemon, "up").await;
    daemon.settled(2).await;
    let after = daemon.slots().await;
    let kept = after.iter().filter(|slot| before.iter().any(|old| old.generation == slot.generation && slot.state == "ready")).count();
    assert_eq!(kept, 1, "the one that was not leased lives on: {before:#?} {after:#?}");
    assert_eq!(daemon.buddies().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buddies_that_die_with_their_engine_are_replaced() {
    let mut engine = PrivateDocker::start();
    let seen = engine.handle();
    let mut daemon = TestDaemon::start(&seen, &["engine.probe_every = \"200ms\""]).await;
    daemon.settled(2).await;
    let before = daemon.slots().await;
    engine.kill();
    engine_state(&daemon, "away").await;
    engine.launch();
    engine_state(&daemon, "up").await;
    let highest = before.iter().map(|slot| slot.generation).max().unwrap();
    let all_new = |client: nspool::client::Client| async move {
        let slots = client.slots().await.unwrap().slots;
        (slots.iter().filter(|slot| slot.state == "ready" && slot.generation > highest).count() == 2).then_some(())
    };
    daemon.level("new buddies", all_new).await;
    daemon.settled(2).await;
    assert_eq!(daemon.buddies().len(), 2);
    assert_eq!(daemon.stop().await, 0);
    assert_eq!(daemon.containers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_is_bounded_when_the_engine_hangs_or_is_gone() {
    let mut engine = PrivateDocker::start();
    let seen = engine.handle();
    let mut daemon = TestDaemon::start(&seen, &["stop.timeout = \"2s\""]).await;
    daemon.settled(2).await;
    engine.signal("STOP");
    let began = Instant::now();
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(LIMIT).await, 1, "{}", daemon.log());
    let took = began.elapsed();
    engine.signal("CONT");
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Beside them what keeps the image, if the fill was slow.
    let named = daemon.log().lines().filter(|line| line.contains("left in the engine") && line.contains("not removed in time")).count();
    assert_eq!(named, 2, "{}", daemon.log());
    assert!(!daemon.socket.exists());
    daemon.launch().await;
    daemon.settled(2).await;
    assert_eq!(daemon.buddies().len(), 2, "the next start has cleared up");

    engine.kill();
    daemon.signal("TERM");
    assert_eq!(daemon.exit_code(LIMIT).await, 1, "{}", daemon.log());
    engine.launch();
    // Longer than any stop may wait.
    daemon.configure(&["engine.read_timeout = \"60s\""]);
    daemon.launch().await;
    daemon.settled(2).await;
    daemon.json(&["resize", "--ready", "0"]);
    daemon.settled(0).await;
    daemon.level("a container to keep the image", |_| async { (daemon.containers().len() == 1).then_some(()) }).await;
    engine.signal("STOP");
    let began = Instant::now();
    assert_eq!(daemon.stop().await, 1, "{}", daemon.log());
    let took = began.elapsed();
    engine.signal("CONT");
    assert!(took < Duration::from_secs(20), "with what keeps the image: {took:?}");
    daemon.launch().await;
    daemon.json(&["resize", "--ready", "2"]);
    daemon.settled(2).await;
    assert_eq!(daemon.stop().await, 0);
    assert_eq!(daemon.containers(), [""; 0]);
}
