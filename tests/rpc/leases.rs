//! Leases after they were handed out: release, renewal, lifetimes, resumption.

use std::time::Duration;

use nspool::pool::JoinerSeen;
use nspool::proto::{
    AllocateRequest, GetInfoRequest, GetLeaseRequest, KeepAliveRequest, Lease, LeaseState, Lifetime, ReleaseOutcome, ReleaseRequest,
    RenewRequest, ResumeRequest,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::served::*;

const NEVER_SEEN: &str = "00112233445566778899aabbccddeeff";

fn ttl(id: &str, ttl: Option<prost_types::Duration>) -> AllocateRequest {
    AllocateRequest { lifetime: Lifetime::Ttl.into(), ttl, ..request(id) }
}

fn on_connection(id: &str) -> AllocateRequest {
    AllocateRequest { lifetime: Lifetime::Connection.into(), ..request(id) }
}

async fn resume(agent: &mut Agent, owner: &str) -> Vec<Lease> {
    let mut stream = agent.resume(ResumeRequest { owner: owner.into() }).await.unwrap().into_inner();
    let mut leases = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        leases.push(answer.lease.unwrap());
    }
    leases.sort_by_key(|lease| lease.slot);
    leases
}

fn join(served: &Served, lease: &Lease, joiner: &str) {
    let seen = JoinerSeen {
        buddy: lease.container_id.as_str().into(),
        joiner: joiner.into(),
        namespace_id: Some(lease.namespace_id.clone()),
        live: true,
        bounded: true,
        as_of: served.pool.now(),
    };
    assert!(served.pool.with(|state, now| state.joined(now, &seen)));
}

#[tokio::test]
async fn each_release_has_its_outcome() {
    let served = served().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    // Anybody who has the token may.
    let mut other = served.agent_as(NOBODY).await;
    assert_eq!(release(&mut other, &lease.token).await.unwrap(), ReleaseOutcome::Returned);
    assert_eq!(release(&mut agent, &lease.token.to_uppercase()).await.unwrap(), ReleaseOutcome::AlreadyReleased);

    let lease = allocate(&mut agent, request("b")).await.unwrap();
    join(&served, &lease, "function-1");
    assert_eq!(release(&mut agent, &lease.token).await.unwrap(), ReleaseOutcome::JoinerStillThere);

    let lease = allocate(&mut agent, waiting("c", SOON)).await.unwrap();
    served.kill_buddy(&lease);
    let answer = agent.release(ReleaseRequest { token: lease.token.clone(), doubtful: false }).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), ReleaseOutcome::AlreadyEnded);
    assert!(answer.cause.contains("killed by the test"), "{}", answer.cause);

    for unknown in [NEVER_SEEN, "", "not hex"] {
        assert_refused(release(&mut agent, unknown).await, Code::NotFound, "UNKNOWN_TOKEN");
    }
}

#[tokio::test]
async fn a_doubtful_release_retires_the_buddy() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    agent.release(ReleaseRequest { token: lease.token, doubtful: true }).await.unwrap();
    let next = allocate(&mut agent, waiting("b", SOON)).await.unwrap();
    assert!(next.generation > lease.generation);
    release(&mut agent, &next.token).await.unwrap();
    let third = allocate(&mut agent, waiting("c", SOON)).await.unwrap();
    assert_eq!((third.generation, third.r#use), (next.generation, next.r#use + 1), "vouched for: the same buddy again");
}

#[tokio::test]
async fn an_old_token_reaches_nobody_else() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    let old = allocate(&mut agent, request("a")).await.unwrap();
    release(&mut agent, &old.token).await.unwrap();
    let new = allocate(&mut agent, waiting("b", SOON)).await.unwrap();
    assert_eq!(new.slot, old.slot);
    assert_eq!(release(&mut agent, &old.token).await.unwrap(), ReleaseOutcome::AlreadyReleased);
    let there = agent.get_lease(GetLeaseRequest { token: new.token }).await.unwrap().into_inner().lease.unwrap();
    assert_eq!(there.state(), LeaseState::Active);
    assert_refused(agent.get_lease(GetLeaseRequest { token: old.token }).await, Code::FailedPrecondition, "LEASE_ENDED");
}

#[tokio::test]
async fn a_ttl_ends_the_lease_unless_it_is_renewed() {
    let served = served().await;
    let mut agent = served.agent().await;
    let short = allocate(&mut agent, ttl("short", millis(300))).await.unwrap();
    let renewed = allocate(&mut agent, ttl("renewed", seconds(1))).await.unwrap();
    assert_eq!(short.lifetime, i32::from(Lifetime::Ttl));
    let answer = agent.renew(RenewRequest { token: renewed.token.clone(), ttl: seconds(3600) }).await.unwrap().into_inner();
    assert!(answer.remaining.unwrap().seconds > 3590);
    assert!(answer.expires_at.is_some());
    served.until(|state| state.lease_views(None).len() == 1).await;
    let status = agent.release(ReleaseRequest { token: short.token.clone(), doubtful: false }).await.unwrap().into_inner();
    assert_eq!((status.outcome(), status.cause.as_str()), (ReleaseOutcome::AlreadyEnded, "its ttl ran out"));
    assert_refused(agent.renew(RenewRequest { token: short.token, ttl: None }).await, Code::FailedPrecondition, "LEASE_ENDED");
    assert_refused(agent.renew(RenewRequest { token: NEVER_SEEN.into(), ttl: None }).await, Code::NotFound, "UNKNOWN_TOKEN");
    let status = agent.renew(RenewRequest { token: renewed.token.clone(), ttl: seconds(0) }).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["ttl"]);
    served.kill_buddy(&renewed);
    assert_refused(agent.renew(RenewRequest { token: renewed.token, ttl: None }).await, Code::FailedPrecondition, "LEASE_LOST");
}

#[tokio::test]
async fn what_has_no_ttl_cannot_be_renewed() {
    let served = served().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let outcome = agent.renew(RenewRequest { token: lease.token, ttl: seconds(5) }).await;
    assert_eq!(bad_fields(&assert_refused(outcome, Code::InvalidArgument, "BAD_FIELD")), ["token"]);
}

#[tokio::test]
async fn keep_alive_renews_each_token_and_answers_each() {
    let served = served().await;
    let mut agent = served.agent().await;
    let kept = allocate(&mut agent, ttl("kept", seconds(3))).await.unwrap();
    let joiners = allocate(&mut agent, request("joiners")).await.unwrap();
    let (ask, asked) = futures::channel::mpsc::channel(4);
    let mut ask = ask;
    let mut answers = agent.keep_alive(asked).await.unwrap().into_inner();
    let tokens = vec![kept.token.clone(), joiners.token.clone(), NEVER_SEEN.to_owned()];
    ask.try_send(KeepAliveRequest { tokens: tokens.clone() }).unwrap();
    for (token, reason) in tokens.iter().zip(["", "BAD_FIELD", "UNKNOWN_TOKEN"]) {
        let answer = soon(answers.message()).await.unwrap().unwrap();
        assert_eq!((&answer.token, answer.reason.as_str()), (token, reason));
        assert_eq!(answer.remaining.is_some(), reason.is_empty());
    }
    // Far beyond its ttl it is there, as long as it is kept.
    let beyond = std::time::Instant::now() + Duration::from_secs(5);
    while std::time::Instant::now() < beyond {
        ask.try_send(KeepAliveRequest { tokens: vec![kept.token.clone()] }).unwrap();
        assert_eq!(soon(answers.message()).await.unwrap().unwrap().reason, "");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The stream's end ends nothing: the ttl does.
    drop(ask);
    assert!(soon(answers.message()).await.unwrap().is_none());
    assert_eq!(served.pool.read(|state| state.lease_views(None).len()), 2);
    served.until(|state| state.lease_views(None).len() == 1).await;
}

#[tokio::test]
async fn a_connection_lease_ends_with_its_connection() {
    let served = served().await;
    let mut agent = served.agent().await;
    let mut leaving = served.agent().await;
    let lease = allocate(&mut leaving, on_connection("a")).await.unwrap();
    assert!(lease.expires_at.is_none() && lease.remaining.is_none());
    allocate(&mut agent, on_connection("b")).await.unwrap();
    drop(leaving);
    served.until(|state| state.lease_views(None).len() == 1).await;
    let answer = agent.release(ReleaseRequest { token: lease.token, doubtful: false }).await.unwrap().into_inner();
    assert_eq!((answer.outcome(), answer.cause.as_str()), (ReleaseOutcome::AlreadyEnded, "its holder's connection closed"));
}

/// The wait is entered on one connection, which ends; a retry on another waits along and gets the lease, which then lasts as long as that one.
#[tokio::test]
async fn a_connection_lease_answered_to_a_retry_lasts_as_long_as_the_retrys_connection() {
    let served = served_one().await;
    let mut agent = served.agent().await;
    let holder = allocate(&mut agent, request("a")).await.unwrap();
    let asked = AllocateRequest { wait: seconds(10), ..on_connection("b") };
    let (mut first, mut second) = (served.agent().await, served.agent().await);
    let first_asked = asked.clone();
    let first = tokio::spawn(async move { allocate(&mut first, first_asked).await });
    served.until(|state| state.usage().waiting == 1).await;
    let keep = CancellationToken::new();
    let kept = keep.clone();
    let (joined, joins) = tokio::sync::oneshot::channel();
    let (told, tells) = tokio::sync::oneshot::channel();
    let second = tokio::spawn(async move {
        // Sent after the retry on the same connection, and answered: so the retry waits along by then.
        let mut same = second.clone();
        let later = async {
            same.get_info(GetInfoRequest {}).await.unwrap();
            joined.send(()).unwrap();
        };
        let (outcome, ()) = futures::join!(allocate(&mut second, asked), later);
        told.send(outcome).unwrap();
        kept.cancelled().await;
        drop(second);
    });
    soon(joins).await.unwrap();
    first.abort();
    release(&mut agent, &holder.token).await.unwrap();
    let lease = soon(tells).await.unwrap().unwrap();
    agent.get_lease(GetLeaseRequest { token: lease.token.clone() }).await.expect("it stands while the second connection does");
    keep.cancel();
    second.await.unwrap();
    served.until(|state| state.lease_views(None).is_empty()).await;
}

#[tokio::test]
async fn resume_gives_an_owner_its_leases_and_nobody_elses() {
    let mut setup = Setup::default();
    (setup.config.pool.ready, setup.config.pool.max) = (4, 4);
    let served = Served::start(setup).await;
    let mut agent = served.agent().await;
    let mut mine = [allocate(&mut agent, request("a")).await.unwrap(), allocate(&mut agent, request("b")).await.unwrap()];
    allocate(&mut agent, AllocateRequest { owner: "agent-2".into(), ..request("c") }).await.unwrap();
    mine.sort_by_key(|lease| lease.slot);
    served.kill_buddy(&mine[0]);
    drop(agent);
    let mut restarted = served.agent().await;
    let resumed = resume(&mut restarted, "agent-1").await;
    assert_eq!(resumed.iter().map(|lease| &lease.token).collect::<Vec<_>>(), mine.iter().map(|lease| &lease.token).collect::<Vec<_>>());
    assert_eq!(resumed.iter().map(Lease::state).collect::<Vec<_>>(), [LeaseState::Lost, LeaseState::Active]);
    assert_eq!(resumed[0].cause, "killed by the test");
    assert!(resume(&mut served.agent_as(NOBODY).await, "agent-1").await.is_empty(), "another uid");
    assert!(resume(&mut restarted, "agent-3").await.is_empty());
    let status = restarted.resume(ResumeRequest { owner: "x".repeat(129) }).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["owner"]);
}
