//! The Rust client against a daemon that answers what the test says.

mod stub;

use std::time::{Duration, Instant};

use futures::stream;
use nspool::client::{Client, ClientError, Request};
use nspool::proto::ReleaseOutcome;
use stub::{Running, refusal};
use tonic::Code;

const SOON: Duration = Duration::from_secs(5);

fn client(daemon: &Running) -> Client {
    Client::connect(&daemon.endpoint()).expect("the endpoint is good")
}

#[tokio::test]
async fn a_finished_lease_is_released_without_doubt() {
    let daemon = Running::start();
    let client = client(&daemon);
    let mut lease = client.allocate(Request::new().owner("o").label("k", "v")).await.unwrap();
    assert_eq!(lease.network_mode, "container:nspool-default-7-1042-3-k2");
    lease.finished();
    let response = lease.release().await.unwrap();
    assert_eq!(response.outcome(), ReleaseOutcome::Returned);
    daemon.script(|script| {
        assert_eq!(script.allocated[0].labels["k"], "v");
        assert!(!script.allocated[0].request_id.is_empty(), "a lost reply can be asked for again");
        assert_eq!(script.released.len(), 1);
        assert!(!script.released[0].doubtful);
    });
}

#[tokio::test]
async fn a_dropped_lease_is_released_as_doubtful_and_close_waits_for_it() {
    let daemon = Running::start();
    let client = client(&daemon);
    drop(client.allocate(Request::new()).await.unwrap());
    let mut finished = client.allocate(Request::new()).await.unwrap();
    finished.finished();
    drop(finished);
    assert_eq!(client.close(SOON).await, 0);
    daemon.script(|script| {
        let mut doubts: Vec<bool> = script.released.iter().map(|release| release.doubtful).collect();
        doubts.sort_unstable();
        assert_eq!(doubts, [false, true]);
        assert!(script.released.iter().all(|release| release.token == "secret-token"));
    });
}

#[tokio::test]
async fn a_kept_lease_stands() {
    let daemon = Running::start();
    let client = client(&daemon);
    let kept = client.allocate(Request::new()).await.unwrap().keep();
    assert_eq!(kept.token, "secret-token");
    assert_eq!(client.close(SOON).await, 0);
    daemon.script(|script| assert!(script.released.is_empty()));
    drop(client.adopt(kept));
    assert_eq!(client.close(SOON).await, 0);
    daemon.script(|script| assert_eq!(script.released.len(), 1));
}

#[tokio::test]
async fn a_failed_release_is_tried_again_in_the_background() {
    let daemon = Running::start();
    let client = client(&daemon);
    let lease = client.allocate(Request::new()).await.unwrap();
    daemon.script(|script| {
        script.release.extend([tonic::Status::unavailable("later"), tonic::Status::unavailable("later")]);
    });
    assert!(lease.release().await.unwrap_err().is_unavailable());
    assert_eq!(client.close(SOON).await, 0);
    daemon.script(|script| assert_eq!(script.released.len(), 3));
}

#[tokio::test]
async fn close_is_bounded_when_the_daemon_is_gone() {
    let daemon = Running::start();
    let client = client(&daemon);
    let lease = client.allocate(Request::new()).await.unwrap();
    drop(daemon);
    drop(lease);
    let begun = Instant::now();
    assert_eq!(client.close(Duration::from_millis(200)).await, 1);
    assert!(begun.elapsed() < SOON);
}

#[tokio::test]
async fn a_lost_reply_is_asked_for_again_under_the_same_id() {
    let daemon = Running::start();
    let client = client(&daemon);
    daemon.script(|script| script.delay.push_back(Duration::from_secs(60)));
    let asking = client.allocate(Request::new());
    let restarting = async {
        let deadline = Instant::now() + SOON;
        while daemon.script(|script| script.allocated.is_empty()) {
            assert!(Instant::now() < deadline, "the first call did not arrive");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        daemon.restart()
    };
    let (lease, daemon) = tokio::join!(asking, restarting);
    let lease = lease.unwrap().keep();
    assert_eq!(lease.slot, 7);
    daemon.script(|script| {
        assert_eq!(script.allocated.len(), 2);
        assert_eq!(script.allocated[0].request_id, script.allocated[1].request_id);
    });
}

#[tokio::test]
async fn the_client_finds_a_daemon_that_came_back() {
    let daemon = Running::start();
    let client = client(&daemon);
    client.usage().await.unwrap();
    let daemon = daemon.restart();
    let deadline = Instant::now() + SOON;
    // The first call may still meet the old connection's end.
    while let Err(error) = client.usage().await {
        assert!(error.is_unavailable(), "{error:?}");
        assert!(Instant::now() < deadline);
    }
    drop(daemon);
}

#[tokio::test]
async fn nobody_there_is_told_at_once_unless_the_caller_waits() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("unix://{}", dir.path().join("s").display());
    let client = Client::connect(&endpoint).unwrap();
    let begun = Instant::now();
    let error = client.allocate(Request::new()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(!error.outcome_unknown());
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(error.to_string().contains(&endpoint));

    let begun = Instant::now();
    let error = client.allocate(Request::new().wait(Duration::from_millis(300))).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(begun.elapsed() >= Duration::from_millis(100) && begun.elapsed() < SOON);
}

#[tokio::test]
async fn a_pool_that_starts_is_waited_for_within_wait() {
    let daemon = Running::start();
    let client = client(&daemon);
    let starting = || refusal(Code::Unavailable, "STARTING", "the pool is filling", Some(Duration::from_millis(10)));
    daemon.script(|script| script.allocate.extend([starting(), starting()]));
    let lease = client.allocate(Request::new().wait(SOON)).await.unwrap();
    _ = lease.keep();
    daemon.script(|script| {
        assert_eq!(script.allocated.len(), 3);
        script.allocate.push_back(starting());
    });
    assert_eq!(client.allocate(Request::new()).await.unwrap_err().reason(), "STARTING");
}

#[tokio::test]
async fn refusals_carry_their_details() {
    let daemon = Running::start();
    let client = client(&daemon);
    let empty = refusal(Code::ResourceExhausted, "POOL_EMPTY", "no slot is ready", Some(Duration::from_secs(3)));
    daemon.script(|script| script.allocate.push_back(empty));
    let error = client.allocate(Request::new().wait(SOON)).await.unwrap_err();
    assert_eq!(error.reason(), "POOL_EMPTY");
    assert_eq!(error.code(), Some(Code::ResourceExhausted));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    assert!(!error.is_unavailable(), "an empty pool is not asked again: the daemon has waited already");

    daemon.script(|script| script.allocate.push_back(refusal(Code::InvalidArgument, "UNKNOWN_NETWORK", "bad request", None)));
    let error = client.allocate(Request::new().network("x")).await.unwrap_err();
    let ClientError::Refused { fields, .. } = &error else { panic!("{error:?}") };
    assert_eq!(fields, &[("network".to_owned(), "no such network".to_owned())]);
    assert_eq!(error.to_string(), "Allocate: bad request; network: no such network");
}

#[tokio::test]
async fn a_silent_daemon_is_not_waited_for_longer_than_the_deadline() {
    let daemon = Running::start();
    let client = client(&daemon).with_timeout(Duration::from_millis(200));
    daemon.script(|script| script.delay.extend([Duration::from_secs(60); 20]));
    let begun = Instant::now();
    let error = client.allocate(Request::new()).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error:?}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn streams_come_through() {
    let daemon = Running::start();
    let client = client(&daemon);
    let leases = client.resume("agent-1").await.unwrap();
    assert_eq!(leases.iter().map(|lease| lease.token.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let mut answers = client.keep_alive(stream::iter([vec!["a".to_owned(), "b".to_owned()]])).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap().token, "a");
    assert_eq!(answers.next().await.unwrap().unwrap().token, "b");
    assert!(answers.next().await.unwrap().is_none());
    let mut events = client.watch(Some(4)).await.unwrap();
    let mut count = 0;
    while events.next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test]
async fn a_lease_shows_no_token() {
    let daemon = Running::start();
    let client = client(&daemon);
    let lease = client.allocate(Request::new()).await.unwrap();
    assert!(!format!("{lease:?}").contains("secret-token"));
    _ = lease.keep();
}

#[tokio::test]
async fn endpoints_that_are_no_unix_sockets_are_refused() {
    for endpoint in ["/run/nspool.sock", "tcp://127.0.0.1:1", "unix:relative", "unix://"] {
        assert!(matches!(Client::connect(endpoint), Err(ClientError::BadEndpoint { .. })), "{endpoint}");
    }
}

#[test]
fn a_client_without_a_runtime_is_an_error_not_a_panic() {
    assert!(matches!(Client::connect("unix:/x"), Err(ClientError::NoRuntime)));
}
