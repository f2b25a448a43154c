//! Watch: snapshot, positions, who sees what, how fast, and what becomes of a slow reader.

use std::time::{Duration, Instant};

use nspool::proto::watch_response::Event;
use nspool::proto::{LeaseState, Snapshot, WatchRequest, WatchResponse};
use tonic::{Code, Streaming};

use crate::served::*;

async fn watch(agent: &mut Agent, position: Option<u64>) -> Streaming<WatchResponse> {
    agent.watch(WatchRequest { position }).await.unwrap().into_inner()
}

async fn next(stream: &mut Streaming<WatchResponse>) -> (u64, Event) {
    let response = soon(stream.message()).await.unwrap().unwrap();
    (response.position, response.event.unwrap())
}

/// The next that is no count.
async fn next_event(stream: &mut Streaming<WatchResponse>) -> (u64, Event) {
    loop {
        let (position, event) = next(stream).await;
        if !matches!(event, Event::Capacity(_)) {
            return (position, event);
        }
    }
}

async fn snapshot(stream: &mut Streaming<WatchResponse>) -> (u64, Snapshot) {
    match next(stream).await {
        (position, Event::Snapshot(snapshot)) => (position, snapshot),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_snapshot_comes_first_then_changes_with_positions_to_go_on_from() {
    let served = served().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let mut stream = watch(&mut agent, None).await;
    let (start, first) = snapshot(&mut stream).await;
    assert_eq!(first.usage.unwrap().leased, 1);
    assert_eq!((first.leases.len(), first.leases[0].lease_id.as_str()), (1, lease.lease_id.as_str()));
    assert_eq!(first.incarnation, "incarnation-1");
    assert!(!first.cordoned && !first.draining);

    served.pool.with(|state, _| state.cordon(false));
    served.kill_buddy(&lease);
    served.pool.with(|state, _| state.uncordon());
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(next_event(&mut stream).await);
    }
    assert!(matches!(&seen[0].1, Event::Cordon(doors) if doors.cordoned));
    assert!(matches!(&seen[1].1, Event::Lost(lost) if lost.lease_id == lease.lease_id && lost.state() == LeaseState::Lost
        && lost.cause == "killed by the test" && lost.namespace_id == lease.namespace_id && lost.owner == "agent-1"));
    assert!(matches!(&seen[2].1, Event::Cordon(doors) if !doors.cordoned));
    assert_eq!(seen.iter().map(|(position, _)| *position).collect::<Vec<_>>(), [start + 1, start + 2, start + 3]);

    // From a position on: what came after it, and no snapshot.
    let mut again = watch(&mut agent, Some(start + 1)).await;
    let (position, event) = next_event(&mut again).await;
    assert!(position == start + 2 && matches!(event, Event::Lost(_)), "{position} {event:?}");
}

#[tokio::test]
async fn a_position_that_is_not_remembered_gives_reset_and_a_snapshot() {
    let mut setup = Setup::default();
    setup.config.pool.watch_backlog = 4;
    let served = Served::start(setup).await;
    let mut agent = served.agent().await;
    let (start, _) = snapshot(&mut watch(&mut agent, None).await).await;
    for _ in 0..5 {
        served.pool.with(|state, _| state.uncordon());
    }
    // Too old, of an earlier run, never given out.
    for unknown in [start, 7, start + 6] {
        let mut stream = watch(&mut agent, Some(unknown)).await;
        let (position, event) = next(&mut stream).await;
        assert!(position == start + 5 && matches!(event, Event::Reset(_)), "{event:?}");
        assert_eq!(snapshot(&mut stream).await.0, start + 5);
    }
    let (_, event) = next(&mut watch(&mut agent, Some(start + 1)).await).await;
    assert!(matches!(event, Event::Cordon(_)), "{event:?}");
}

#[tokio::test]
async fn lost_is_told_at_once() {
    let served = served().await;
    let mut agent = served.agent().await;
    let mut stream = watch(&mut agent, None).await;
    snapshot(&mut stream).await;
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let lease = soon(allocate(&mut agent, waiting("", SOON))).await.unwrap();
        let killed = Instant::now();
        served.kill_buddy(&lease);
        while !matches!(next(&mut stream).await.1, Event::Lost(lost) if lost.lease_id == lease.lease_id) {}
        fastest = fastest.min(killed.elapsed());
        release(&mut agent, &lease.token).await.unwrap();
    }
    // The best of many, so that a busy machine does not count.
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[tokio::test]
async fn each_uid_sees_its_own_leases_and_operators_see_all() {
    let served = served().await;
    let (mut root, mut nobody) = (served.agent().await, served.agent_as(NOBODY).await);
    let roots = allocate(&mut root, request("a")).await.unwrap();
    let nobodys = allocate(&mut nobody, request("b")).await.unwrap();
    let (mut sees_all, mut sees_own) = (watch(&mut root, None).await, watch(&mut nobody, None).await);
    assert_eq!(snapshot(&mut sees_all).await.1.leases.len(), 2);
    let own = snapshot(&mut sees_own).await.1.leases;
    assert_eq!(own.iter().map(|lease| &lease.lease_id).collect::<Vec<_>>(), [&nobodys.lease_id]);
    served.kill_buddy(&roots);
    served.kill_buddy(&nobodys);
    for expected in [&roots, &nobodys] {
        assert!(matches!(next_event(&mut sees_all).await.1, Event::Lost(lost) if lost.lease_id == expected.lease_id));
    }
    assert!(matches!(next_event(&mut sees_own).await.1, Event::Lost(lost) if lost.lease_id == nobodys.lease_id));

    served.limits.send_modify(|limits| limits.admin_uids.push(NOBODY));
    assert_eq!(snapshot(&mut watch(&mut nobody, None).await).await.1.leases.len(), 2);
}

#[tokio::test]
async fn counts_come_when_they_differ_and_not_too_often() {
    let served = served().await;
    let mut agent = served.agent().await;
    let mut stream = watch(&mut agent, None).await;
    snapshot(&mut stream).await;
    let started = Instant::now();
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let Event::Capacity(usage) = next(&mut stream).await.1 else { panic!("counts") };
    assert_eq!((usage.ready, usage.leased), (1, 1));
    assert!(started.elapsed() < Duration::from_secs(2));
    // A lot happens, few counts come, and the last is true.
    for _ in 0..200 {
        let other = allocate(&mut agent, waiting("", SOON)).await.unwrap();
        release(&mut agent, &other.token).await.unwrap();
    }
    release(&mut agent, &lease.token).await.unwrap();
    let mut counts = 0;
    let busy = started.elapsed();
    loop {
        let Event::Capacity(usage) = next(&mut stream).await.1 else { panic!("counts") };
        counts += 1;
        if (usage.ready, usage.leased) == (2, 0) && served.pool.read(|state| state.usage().ready) == 2 {
            break;
        }
    }
    assert!(counts <= busy.as_millis() / 100 + 2, "{counts} in {busy:?}");
    // Nothing happens, nothing comes.
    assert!(tokio::time::timeout(Duration::from_millis(300), stream.message()).await.is_err());
}

#[tokio::test]
async fn a_slow_reader_is_cut_off_with_the_reason() {
    let mut setup = Setup::default();
    setup.config.pool.watch_backlog = 16;
    let served = Served::start(setup).await;
    let narrow = Served::endpoint().initial_stream_window_size(128).initial_connection_window_size(128);
    let mut slow = nspool::proto::namespace_pool_client::NamespacePoolClient::new(served.channel_by(narrow).await);
    let mut fast_agent = served.agent().await;
    let (mut stream, mut fast) = (watch(&mut slow, None).await, watch(&mut fast_agent, None).await);
    let (mut told, _) = snapshot(&mut fast).await;
    // More than the flow control and the ring hold, while the slow one does not read; the fast one keeps up with each.
    for _ in 0..3000 {
        served.pool.with(|state, _| state.uncordon());
        told = next_event(&mut fast).await.0;
    }
    let mut read = 0;
    let status = loop {
        match soon(stream.message()).await {
            Ok(message) => read += usize::from(message.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(refusal(&status), (Code::Aborted, "SLOW_READER".to_owned()));
    assert!(read < 3000, "{read}");
    assert!(told > 0);
}
