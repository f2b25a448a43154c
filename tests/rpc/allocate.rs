//! Allocate: what a lease holds, every refusal, idempotence, waits, and callers that vanish.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nspool::pool::state::State;
use nspool::proto::{AllocateRequest, CordonRequest, DrainRequest, LeaseState, Lifetime, UncordonRequest};
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::served::*;

#[tokio::test]
async fn a_lease_holds_all_that_a_container_needs() {
    let served = served().await;
    let labels = HashMap::from([("function".to_owned(), "hello".to_owned())]);
    let asked = AllocateRequest { tenant: "t".into(), labels: labels.clone(), ..request("r1") };
    let lease = allocate(&mut served.agent().await, asked).await.unwrap();
    assert_eq!(lease.token.len(), 32);
    assert_eq!(lease.lease_id, format!("{}-{}-{}", lease.slot, lease.generation, lease.r#use));
    assert_eq!(lease.state(), LeaseState::Active);
    assert_eq!(lease.network_mode, format!("container:{}", lease.namespace_id));
    assert!(lease.host_config.contains(&lease.namespace_id));
    assert_eq!(lease.container_id.len(), 64);
    assert_eq!(lease.engine.unwrap().kind, "fake");
    assert_eq!((lease.network.as_str(), lease.mtu), ("bridge", 1500));
    assert!(lease.ip_addresses[0].starts_with("172.17.0."));
    assert_eq!(lease.gateways, ["172.17.0.1"]);
    assert!(lease.resolv_conf.contains("nameserver"));
    assert_eq!(lease.lifetime, i32::from(Lifetime::Joiners));
    assert_eq!((lease.owner.as_str(), lease.tenant.as_str()), ("agent-1", "t"));
    assert_eq!(lease.labels, labels);
    assert_eq!((lease.netns_path.as_str(), lease.oci_namespaces.len()), ("", 0));
    // joiners: join_by is pending, 60 s by default.
    let remaining = Duration::try_from(lease.remaining.unwrap()).unwrap();
    assert!(remaining > Duration::from_secs(50) && remaining <= Duration::from_secs(60), "{remaining:?}");
    let expires = std::time::SystemTime::try_from(lease.expires_at.unwrap()).unwrap();
    let left = expires.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(61), "{left:?}");
}

#[tokio::test]
async fn an_empty_pool_says_so_and_when_to_come_back() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let status = assert_refused(allocate(&mut agent, request("b")).await, Code::ResourceExhausted, "POOL_EMPTY");
    assert!(status.get_details_retry_info().is_none(), "nothing is being filled: nobody knows when");

    // With room for one more, held back by its nanny, there is an estimate.
    served.hand.fill(false);
    served.pool.with(|state, now| state.resize(now, 1, 2)).unwrap();
    let status = assert_refused(allocate(&mut agent, request("b")).await, Code::ResourceExhausted, "POOL_EMPTY");
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    drop(lease);
}

#[tokio::test]
async fn a_pool_that_was_never_full_is_starting_and_one_without_engine_is_away() {
    let served = Served::start(Setup { fill: false, ..Setup::default() }).await;
    let mut agent = served.agent().await;
    let status = assert_refused(allocate(&mut agent, request("a")).await, Code::Unavailable, "STARTING");
    assert!(status.get_details_retry_info().is_some());
    served.hand.fill(true);
    served.until(|state| state.usage().ready == 2).await;
    served.pool.with(|state, _| state.set_engine_up(false));
    for id in ["a", "b"] {
        allocate(&mut agent, request(id)).await.unwrap();
    }
    assert_refused(allocate(&mut agent, request("c")).await, Code::Unavailable, "ENGINE_AWAY");
}

#[tokio::test]
async fn closed_doors_refuse_new_calls_and_waiting_ones_but_not_retries() {
    let served = served_one().await;
    let (mut agent, mut operator) = (served.agent().await, served.operator().await);
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let mut waiter = agent.clone();
    let waits = tokio::spawn(async move { allocate(&mut waiter, waiting("b", SOON)).await });
    served.until(|state| state.usage().waiting == 1).await;
    operator.cordon(CordonRequest { reason: "maintenance".into() }).await.unwrap();
    assert_refused(soon(waits).await.unwrap(), Code::FailedPrecondition, "CORDONED");
    assert_refused(allocate(&mut agent, waiting("c", SOON)).await, Code::FailedPrecondition, "CORDONED");
    assert_eq!(allocate(&mut agent, request("a")).await.unwrap().token, lease.token);

    let drain = operator.drain(DrainRequest { timeout: seconds(60) }).await.unwrap();
    assert_refused(allocate(&mut agent, request("c")).await, Code::FailedPrecondition, "DRAINING");
    drop(drain);
    operator.uncordon(UncordonRequest {}).await.unwrap();
    release(&mut agent, &lease.token).await.unwrap();
    allocate(&mut agent, waiting("c", SOON)).await.unwrap();
}

#[tokio::test]
async fn a_stopping_pool_and_a_full_quota_have_their_own_reasons() {
    let mut setup = Setup::default();
    setup.config.pool.quota_per_uid = Some(1);
    let served = Served::start(setup).await;
    let mut agent = served.agent().await;
    allocate(&mut agent, request("a")).await.unwrap();
    let status = assert_refused(allocate(&mut agent, request("b")).await, Code::ResourceExhausted, "QUOTA");
    assert_eq!(status.get_details_error_info().unwrap().metadata["limit"], "1");
    let mut other = served.agent_as(NOBODY).await;
    allocate(&mut other, request("b")).await.expect("the quota is per uid");
    served.pool.with(|state, now| state.stop(now));
    assert_refused(allocate(&mut agent, request("c")).await, Code::Unavailable, "STOPPING");
}

#[tokio::test]
async fn too_many_waiters_are_an_empty_pool() {
    let mut setup = Setup { fill: false, ..Setup::default() };
    setup.config.pool.max_waiting = 1;
    let served = Served::start(setup).await;
    let mut agent = served.agent().await;
    let mut first = agent.clone();
    let waits = tokio::spawn(async move { allocate(&mut first, waiting("a", SOON)).await });
    served.until(|state| state.usage().waiting == 1).await;
    assert_refused(allocate(&mut agent, waiting("b", SOON)).await, Code::ResourceExhausted, "POOL_EMPTY");
    served.hand.fill(true);
    soon(waits).await.unwrap().unwrap();
}

#[tokio::test]
async fn all_bad_fields_are_named_at_once() {
    let served = served().await;
    let mut agent = served.agent().await;
    let long = "x".repeat(129);
    let asked = AllocateRequest {
        request_id: long.clone(),
        owner: "tab\there".into(),
        tenant: long.clone(),
        network: "nowhere".into(),
        lifetime: Lifetime::Ttl.into(),
        join_by: seconds(5),
        ttl: None,
        wait: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        labels: HashMap::from([("k".repeat(64), String::new()), ("v".to_owned(), "x".repeat(257)), (String::new(), "x".into())]),
    };
    let status = assert_refused(allocate(&mut agent, asked).await, Code::InvalidArgument, "BAD_FIELD");
    let mut named = bad_fields(&status);
    named.dedup();
    let key = format!("labels[\"{}\"]", "k".repeat(24));
    let expected = ["join_by", "labels[\"\"]", &key, "labels[\"v\"]", "network", "owner", "request_id", "tenant", "ttl", "wait"];
    assert_eq!(named, expected);
    assert!(served.pool.read(State::usage).allocations == 0);
}

#[tokio::test]
async fn each_bound_is_where_the_contract_says() {
    let served = served().await;
    let mut agent = served.agent().await;
    let cases: Vec<(&str, AllocateRequest)> = vec![
        ("lifetime", AllocateRequest { lifetime: 9, ..request("") }),
        ("ttl", AllocateRequest { ttl: seconds(5), ..request("") }),
        ("ttl", AllocateRequest { lifetime: Lifetime::Ttl.into(), ttl: seconds(0), ..request("") }),
        ("ttl", AllocateRequest { lifetime: Lifetime::Ttl.into(), ttl: seconds(24 * 3600 + 1), ..request("") }),
        ("join_by", AllocateRequest { join_by: seconds(0), ..request("") }),
        ("join_by", AllocateRequest { lifetime: Lifetime::Connection.into(), join_by: seconds(1), ..request("") }),
        ("wait", AllocateRequest { wait: seconds(24 * 3600 + 1), ..request("") }),
        ("labels", AllocateRequest { labels: (0..17).map(|n| (n.to_string(), String::new())).collect(), ..request("") }),
    ];
    for (field, asked) in cases {
        let status = assert_refused(allocate(&mut agent, asked).await, Code::InvalidArgument, "BAD_FIELD");
        assert_eq!(bad_fields(&status), [field]);
    }
    // 128 characters, though 256 bytes; 16 labels at their bounds.
    let labels = (0..16).map(|n| (format!("{n:063}"), "v".repeat(256))).collect();
    let asked =
        AllocateRequest { request_id: "é".repeat(128), owner: "é".repeat(128), labels, join_by: seconds(24 * 3600), ..request("") };
    allocate(&mut agent, asked).await.unwrap();
}

#[tokio::test]
async fn many_bad_fields_still_fit_into_a_status() {
    let mut setup = Setup::default();
    setup.config.api.max_message = 1 << 20;
    let served = Served::start(setup).await;
    let labels = (0..1000).map(|n| (format!("{n}{}", "\u{7f}".repeat(70)), "\u{1}".repeat(300))).collect();
    let outcome = allocate(&mut served.agent().await, AllocateRequest { labels, ..request("") }).await;
    let status = assert_refused(outcome, Code::InvalidArgument, "BAD_FIELD");
    assert!(bad_fields(&status).contains(&"labels".to_owned()));
    assert!(status.message().contains("more"));
}

#[tokio::test]
async fn an_unknown_network_is_told_which_there_are_and_a_known_one_is_given() {
    let mut setup = Setup::default();
    setup.config.pool.networks = vec!["bridge".into(), "backend".into()];
    let served = Served::start(setup).await;
    let mut agent = served.agent().await;
    let outcome = allocate(&mut agent, AllocateRequest { network: "front".into(), ..request("") }).await;
    let status = assert_refused(outcome, Code::InvalidArgument, "UNKNOWN_NETWORK");
    assert_eq!(status.get_details_error_info().unwrap().metadata["networks"], "bridge, backend");
    assert_eq!(bad_fields(&status), ["network"]);
    assert!(status.message().contains("backend"), "{}", status.message());
    let lease = allocate(&mut agent, AllocateRequest { network: "backend".into(), ..request("") }).await.unwrap();
    assert_eq!(lease.network, "backend");
    let outcome = allocate(&mut agent, AllocateRequest { network: "backend".into(), ..request("") }).await;
    assert_refused(outcome, Code::ResourceExhausted, "POOL_EMPTY");
}

#[tokio::test]
async fn a_repeated_request_is_the_same_lease_for_the_same_caller_only() {
    let served = Served::start(Setup { config: four_slots(), ..Setup::default() }).await;
    let mut agent = served.agent().await;
    let first = agent.allocate(request("r")).await.unwrap().into_inner();
    assert!(!first.repeated_request);
    // On another connection, as after a reconnect.
    let again = served.agent().await.allocate(request("r")).await.unwrap().into_inner();
    assert!(again.repeated_request);
    let first = first.lease.unwrap();
    assert_eq!(again.lease.unwrap().token, first.token);

    let status = assert_refused(
        allocate(&mut agent, AllocateRequest { tenant: "other".into(), ..request("r") }).await,
        Code::InvalidArgument,
        "BAD_FIELD",
    );
    assert_eq!(bad_fields(&status), ["request_id"]);

    let other_owner = allocate(&mut agent, AllocateRequest { owner: "agent-2".into(), ..request("r") }).await.unwrap();
    let other_uid = allocate(&mut served.agent_as(NOBODY).await, request("r")).await.unwrap();
    let unnamed = allocate(&mut agent, request("")).await.unwrap();
    let tokens = std::collections::HashSet::from([first.token.clone(), other_owner.token, other_uid.token, unnamed.token]);
    assert_eq!(tokens.len(), 4);

    release(&mut agent, &first.token).await.unwrap();
    let status = assert_refused(allocate(&mut agent, request("r")).await, Code::FailedPrecondition, "LEASE_ENDED");
    assert_eq!(status.get_details_error_info().unwrap().metadata["cause"], "released");
}

fn four_slots() -> nspool::config::Config {
    let mut config = nspool::config::Config::default();
    (config.pool.ready, config.pool.max) = (4, 4);
    config
}

#[tokio::test]
async fn a_retry_of_a_lost_lease_says_lost() {
    let served = served().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("r")).await.unwrap();
    served.kill_buddy(&lease);
    let status = assert_refused(allocate(&mut agent, request("r")).await, Code::FailedPrecondition, "LEASE_LOST");
    assert!(status.message().contains("killed by the test"));
}

#[tokio::test]
async fn a_retry_during_the_wait_joins_it() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    let holder = allocate(&mut agent, request("a")).await.unwrap();
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let mut agent = served.agent().await;
        waits.spawn(async move { allocate(&mut agent, waiting("b", SOON)).await.unwrap().token });
    }
    served.until(|state| state.usage().waiting == 1).await;
    release(&mut agent, &holder.token).await.unwrap();
    let first = soon(waits.join_next()).await.unwrap().unwrap();
    let second = soon(waits.join_next()).await.unwrap().unwrap();
    assert_eq!(first, second);
    assert_eq!(served.pool.read(|state| state.lease_views(None).len()), 1);
}

#[tokio::test]
async fn a_wait_in_vain_ends_before_the_calls_deadline() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    allocate(&mut agent, request("a")).await.unwrap();
    let started = Instant::now();
    let outcome = allocate(&mut agent, waiting("b", Duration::from_millis(50))).await;
    assert_refused(outcome, Code::ResourceExhausted, "POOL_EMPTY");
    assert!(started.elapsed() >= Duration::from_millis(50));

    // The caller's deadline is the shorter one: the answer is ours and not the deadline's.
    let mut asked = Request::new(waiting("b", Duration::from_secs(3600)));
    asked.set_timeout(Duration::from_secs(2));
    let status = agent.allocate(asked).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::ResourceExhausted, "POOL_EMPTY".to_owned()));

    // Without one, the daemon's own holds.
    served.limits.send_modify(|limits| limits.timeout = Duration::from_millis(300));
    let started = Instant::now();
    let outcome = allocate(&mut agent, waiting("b", Duration::from_secs(3600))).await;
    assert_refused(outcome, Code::ResourceExhausted, "POOL_EMPTY");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(served.pool.read(State::usage).waiting, 0);
}

#[tokio::test]
async fn a_caller_that_leaves_its_wait_leaves_the_queue() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    let holder = allocate(&mut agent, request("a")).await.unwrap();
    // Once by a cancelled call, once by a connection that closes.
    let same_connection = agent.clone();
    for (id, mut caller) in [("b", same_connection), ("c", served.agent().await)] {
        let wait = tokio::spawn(async move { allocate(&mut caller, waiting(id, SOON)).await });
        served.until(|state| state.usage().waiting == 1).await;
        wait.abort();
        served.until(|state| state.usage().waiting == 0).await;
    }
    release(&mut agent, &holder.token).await.unwrap();
    served.until_untouched().await;
}

#[tokio::test]
async fn callers_that_vanish_in_mid_grant_leave_nothing_behind() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    for round in 0..60 {
        let holder = soon(allocate(&mut agent, waiting("", SOON))).await.unwrap();
        let mut caller = if round % 2 == 0 { agent.clone() } else { served.agent().await };
        let wait = tokio::spawn(async move { allocate(&mut caller, waiting(&format!("w{round}"), SOON)).await });
        served.until(|state| state.usage().waiting == 1).await;
        // The grant and the departure race. Where the grant was answered first, the caller knows it and gives it back.
        release(&mut agent, &holder.token).await.unwrap();
        if round % 3 == 0 {
            tokio::task::yield_now().await;
        }
        wait.abort();
        if let Ok(Ok(lease)) = wait.await {
            release(&mut agent, &lease.token).await.unwrap();
        }
        // What was answered to a caller that had just gone stands until `join_by`, as the contract says: here a release stands for that. What
        // was on its way is undone by itself, perhaps before the release.
        for view in served.pool.read(|state| state.lease_views(None)) {
            drop(served.pool.with(|state, now| state.release(now, view.token, false)));
        }
    }
    served.until_untouched().await;
}
