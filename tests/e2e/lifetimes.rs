//! How leases end by themselves, and how their holder hears of it.

use std::time::{Duration, Instant};

use nspool::client::Request;
use nspool::proto::watch_response::Event;
use nspool::proto::{LeaseState, ReleaseOutcome};

use crate::support::daemon::{LIMIT, TestDaemon, joined, kill, load_busybox, next_event};
use crate::support::engines::TestEngine;
use crate::support::image::BUSYBOX;

on_both_engines!(
    a_lease_that_nobody_joins_ends,
    a_placeholders_own_children_are_no_joiners,
    a_lease_ends_after_its_last_joiner,
    a_death_is_told_within_a_second,
    a_lease_ends_with_its_connection,
    a_ttl_is_renewed_and_runs_out,
);

async fn a_lease_that_nobody_joins_ends(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.reuse = \"always\""]).await;
    let client = daemon.client();
    let wait = Request::new().wait(LIMIT);
    let lease = client.allocate(wait.joiners(Some(Duration::from_secs(1)))).await.unwrap().keep();
    let token = &lease.token;
    let error = daemon.level("the lease's end", |client| async move { client.lease(token).await.err() }).await;
    assert_eq!(error.reason(), "LEASE_ENDED", "{error}");
    let released = client.release(&lease.token, false).await.unwrap();
    assert_eq!(released.outcome(), ReleaseOutcome::AlreadyEnded);
    assert!(!released.cause.is_empty());
    // Only a release leads to another use: this one expired.
    daemon.settled(1).await;
    assert!(daemon.slots().await.iter().all(|slot| slot.state != "ready" || slot.generation != lease.generation));
}

async fn a_placeholders_own_children_are_no_joiners(engine: &TestEngine) {
    load_busybox(engine);
    let (image, command) = (format!("placeholder.image = {BUSYBOX:?}"), "placeholder.command = [\"sh\", \"-c\", \"sleep 1000 & wait\"]");
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.count_every = \"100ms\"", &image, command]).await;
    let client = daemon.client();
    let lease = client.allocate(Request::new().wait(LIMIT).joiners(Some(Duration::from_secs(1)))).await.unwrap().keep();
    let token = &lease.token;
    let error = daemon.level("the lease's end", |client| async move { client.lease(token).await.err() }).await;
    assert_eq!(error.reason(), "LEASE_ENDED", "{error}");
}

async fn a_lease_ends_after_its_last_joiner(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.linger = \"1s\""]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let mut events = client.watch(None).await.unwrap();
    let function = daemon.stay(&lease.network_mode);
    let who = joined(&mut events, &lease).await;
    assert!(who.cause.contains(&function[..12]), "{who:?}");
    engine.run(&["kill", &function]);
    // A container that has ended may be started again: it still counts.
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_millis(1500) {
        assert_eq!(client.lease(&lease.token).await.unwrap().state(), LeaseState::Active);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let removed = Instant::now();
    engine.run(&["rm", &function]);
    let ending = |event| {
        if let Event::Ending(ending) = event
            && ending.lease_id == lease.lease_id
        {
            Some(ending)
        } else {
            None
        }
    };
    next_event(&mut events, "ENDING", ending).await;
    assert!(removed.elapsed() >= Duration::from_secs(1), "it lingered for {:?} only", removed.elapsed());
    daemon.settled(1).await;
    assert_eq!(client.release(&lease.token, false).await.unwrap().outcome(), ReleaseOutcome::AlreadyEnded);
}

async fn a_death_is_told_within_a_second(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    let client = daemon.client();
    let mut shortest = Duration::MAX;
    // The host may be busy with something else just then.
    for _ in 0..5 {
        let lease = daemon.allocate(&client).await;
        let mut events = client.watch(None).await.unwrap();
        let pid = daemon.slots().await.into_iter().find(|slot| slot.slot == lease.slot).unwrap().pid;
        let killed = Instant::now();
        kill("KILL", pid);
        let lost = |event| {
            if let Event::Lost(lost) = event
                && lost.lease_id == lease.lease_id
            {
                Some(lost)
            } else {
                None
            }
        };
        let lost = next_event(&mut events, "LOST", lost).await;
        shortest = shortest.min(killed.elapsed());
        assert!(!lost.cause.is_empty());
        assert_eq!(client.lease(&lease.token).await.unwrap().state(), LeaseState::Lost);
        daemon.usage("a new one, and the lost lease", |usage| usage.ready == 1 && usage.lost == 1).await;
        assert_eq!(client.release(&lease.token, false).await.unwrap().outcome(), ReleaseOutcome::AlreadyEnded);
        assert_eq!(daemon.settled(1).await.lost, 0);
        if shortest < Duration::from_secs(1) {
            return;
        }
    }
    panic!("{shortest:?} at best");
}

async fn a_lease_ends_with_its_connection(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    let holder = daemon.client();
    let lease = holder.allocate(Request::new().wait(LIMIT).connection()).await.unwrap().keep();
    daemon.usage("the lease", |usage| usage.leased == 1).await;
    drop(holder);
    daemon.settled(1).await;
    let released = daemon.client().release(&lease.token, false).await.unwrap();
    assert_eq!(released.outcome(), ReleaseOutcome::AlreadyEnded);
}

async fn a_ttl_is_renewed_and_runs_out(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    let lease = daemon.json(&["allocate", "--wait", "60s", "--lifetime", "ttl", "--ttl", "60s"]);
    let token = lease["token"].as_str().unwrap();
    let expires = async || {
        let at = daemon.client().lease(token).await.unwrap().expires_at.unwrap();
        (at.seconds, at.nanos)
    };
    let first = expires().await;
    daemon.json(&["renew", token]);
    assert!(expires().await > first);
    daemon.json(&["renew", token, "--ttl", "1s"]);
    daemon.settled(1).await;
    assert_eq!(daemon.cli(&["renew", token]).status.code(), Some(1));
    assert_eq!(daemon.cli(&["release", token]).status.code(), Some(1));
}
