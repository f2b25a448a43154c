//! PoolAdmin: who may, and what each call does.

use nspool::pool::UseKey;
use nspool::proto::{
    AllocateRequest, AuditRequest, CordonRequest, Difference, DrainRequest, DrainResponse, ForceReleaseRequest, GetLeaseRequest,
    InspectRequest, LeaseState, Leftover, ListLeasesRequest, ListSlotsRequest, RecycleSlotRequest, ReleaseOutcome, ResizeRequest,
    UncordonRequest,
};
use tonic::{Code, Streaming};

use crate::served::*;

#[tokio::test]
async fn only_operators_may_change_and_all_may_look() {
    let served = served().await;
    let lease = allocate(&mut served.agent().await, request("a")).await.unwrap();
    let mut nobody = served.operator_as(NOBODY).await;
    let not_allowed = |status: tonic::Status| {
        assert_eq!(refusal(&status), (Code::PermissionDenied, "NOT_ALLOWED".to_owned()));
    };
    not_allowed(nobody.resize(ResizeRequest { ready: Some(1), max: None }).await.unwrap_err());
    not_allowed(nobody.cordon(CordonRequest::default()).await.unwrap_err());
    not_allowed(nobody.uncordon(UncordonRequest {}).await.unwrap_err());
    not_allowed(nobody.drain(DrainRequest::default()).await.unwrap_err());
    not_allowed(nobody.recycle_slot(RecycleSlotRequest { slot: 0, force: true }).await.unwrap_err());
    not_allowed(nobody.audit(AuditRequest { fix: false }).await.unwrap_err());
    not_allowed(nobody.inspect(InspectRequest { slot: 0 }).await.unwrap_err());
    not_allowed(nobody.force_release(ForceReleaseRequest { lease_id: lease.lease_id.clone() }).await.unwrap_err());
    assert_eq!(served.pool.read(|state| (state.doors(), state.usage().leased)), ((false, false), 1));

    assert_eq!(nobody.list_slots(ListSlotsRequest {}).await.unwrap().into_inner().slots.len(), 2);
    assert_eq!(nobody.list_leases(ListLeasesRequest {}).await.unwrap().into_inner().leases.len(), 1);

    served.limits.send_modify(|limits| limits.admin_uids.push(NOBODY));
    nobody.cordon(CordonRequest::default()).await.unwrap();
    assert_eq!(served.pool.read(|state| state.doors()), (true, false));
}

#[tokio::test]
async fn lists_show_everything_but_secrets() {
    let served = served().await;
    let mut operator = served.operator().await;
    let asked = AllocateRequest { tenant: "t".into(), ..request("a") };
    let lease = allocate(&mut served.agent().await, asked).await.unwrap();
    let listed = operator.list_leases(ListLeasesRequest {}).await.unwrap().into_inner().leases;
    assert_eq!((listed[0].token.as_str(), listed[0].host_config.as_str()), ("", ""));
    assert_eq!((listed[0].lease_id.as_str(), listed[0].tenant.as_str()), (lease.lease_id.as_str(), "t"));
    assert!(!format!("{listed:?}").contains(&lease.token));

    let answer = operator.list_slots(ListSlotsRequest {}).await.unwrap().into_inner();
    let slot = answer.slots.iter().find(|slot| slot.slot == lease.slot).unwrap();
    assert_eq!((slot.state.as_str(), slot.lease_id.as_str()), ("leased", lease.lease_id.as_str()));
    assert_eq!((slot.generation, slot.r#use, slot.pid), (lease.generation, lease.r#use, 4000 + lease.slot));
    assert_eq!((slot.namespace_id.as_str(), slot.container_id.as_str()), (lease.namespace_id.as_str(), lease.container_id.as_str()));
    assert!(slot.since.is_some() && !slot.doomed && slot.network == "bridge");
    assert_eq!(answer.slots.iter().filter(|slot| slot.state == "ready" && slot.lease_id.is_empty()).count(), 1);
    assert_eq!((answer.detached[0].slot, answer.detached[0].joiners[0].as_str()), (7, "container f1"));
}

#[tokio::test]
async fn resize_follows_at_once_and_refuses_nonsense() {
    let served = served().await;
    let mut operator = served.operator().await;
    let answer = operator.resize(ResizeRequest { ready: None, max: Some(5) }).await.unwrap().into_inner();
    assert_eq!((answer.ready, answer.max), (2, 5));
    operator.resize(ResizeRequest { ready: Some(4), max: None }).await.unwrap();
    served.until(|state| state.usage().ready == 4).await;
    operator.resize(ResizeRequest { ready: Some(1), max: Some(1) }).await.unwrap();
    served.until(|state| state.usage().ready == 1 && state.usage().retiring == 0).await;
    let status = operator.resize(ResizeRequest { ready: Some(9), max: None }).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::InvalidArgument, "BAD_FIELD".to_owned()));
    assert_eq!(bad_fields(&status), ["ready", "max"]);
    let status = operator.resize(ResizeRequest { ready: None, max: Some(u32::MAX) }).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["max"]);
    assert_eq!(served.pool.read(|state| state.sizes()), (1, 1));
}

#[tokio::test]
async fn recycle_gives_a_new_buddy_now_or_at_the_release() {
    let served = served_one().await;
    let (mut agent, mut operator) = (served.agent().await, served.operator().await);
    let generation = |served: &Served| served.pool.read(|state| state.slot_view(0).key.generation);
    let first = generation(&served);
    let answer = operator.recycle_slot(RecycleSlotRequest { slot: 0, force: false }).await.unwrap().into_inner();
    assert_eq!(answer.state, "ready");
    served.until(|state| state.usage().ready == 1).await;
    assert!(generation(&served) > first);

    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let answer = operator.recycle_slot(RecycleSlotRequest { slot: 0, force: false }).await.unwrap().into_inner();
    assert_eq!(answer.state, "leased");
    assert!(operator.list_slots(ListSlotsRequest {}).await.unwrap().into_inner().slots[0].doomed);
    agent.get_lease(GetLeaseRequest { token: lease.token.clone() }).await.unwrap();
    release(&mut agent, &lease.token).await.unwrap();
    let next = allocate(&mut agent, waiting("b", SOON)).await.unwrap();
    assert!(next.generation > lease.generation);

    operator.recycle_slot(RecycleSlotRequest { slot: 0, force: true }).await.unwrap();
    let lost = agent.get_lease(GetLeaseRequest { token: next.token }).await.unwrap().into_inner().lease.unwrap();
    assert_eq!(lost.state(), LeaseState::Lost);
    let outcome = operator.recycle_slot(RecycleSlotRequest { slot: 99, force: false }).await;
    assert_refused(outcome, Code::NotFound, "UNKNOWN_SLOT");
}

#[tokio::test]
async fn a_lease_can_be_ended_by_its_id() {
    let served = served_one().await;
    let (mut agent, mut operator) = (served.agent().await, served.operator().await);
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let answer = operator.force_release(ForceReleaseRequest { lease_id: lease.lease_id.clone() }).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), ReleaseOutcome::Returned);
    let next = allocate(&mut agent, waiting("b", SOON)).await.unwrap();
    assert!(next.generation > lease.generation, "not vouched for: a new buddy");
    let again = operator.force_release(ForceReleaseRequest { lease_id: lease.lease_id }).await;
    assert_refused(again, Code::NotFound, "UNKNOWN_LEASE");
    let wrong = operator.force_release(ForceReleaseRequest { lease_id: lease.token }).await;
    assert_eq!(bad_fields(&wrong.unwrap_err()), ["lease_id"]);
}

async fn next(stream: &mut Streaming<DrainResponse>) -> DrainResponse {
    soon(stream.message()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_drain_waits_until_nothing_is_leased_and_leaves_the_doors_closed() {
    let served = served().await;
    let (mut agent, mut operator) = (served.agent().await, served.operator().await);
    let leases = [allocate(&mut agent, request("a")).await.unwrap(), allocate(&mut agent, request("b")).await.unwrap()];
    let mut drain = operator.drain(DrainRequest { timeout: None }).await.unwrap().into_inner();
    assert_eq!(next(&mut drain).await, DrainResponse { leased: 2, waiting: 0, drained: false, timed_out: false });
    release(&mut agent, &leases[0].token).await.unwrap();
    assert_eq!(next(&mut drain).await.leased, 1);
    release(&mut agent, &leases[1].token).await.unwrap();
    assert_eq!(next(&mut drain).await, DrainResponse { leased: 0, waiting: 0, drained: true, timed_out: false });
    assert!(soon(drain.message()).await.unwrap().is_none());
    served.until(|state| state.doors() == (true, false)).await;
    operator.uncordon(UncordonRequest {}).await.unwrap();
    allocate(&mut agent, waiting("c", SOON)).await.unwrap();
}

#[tokio::test]
async fn a_drain_is_bounded_undone_by_uncordon_and_over_when_its_caller_goes() {
    let served = served().await;
    let (mut agent, mut operator) = (served.agent().await, served.operator().await);
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    let mut drain = operator.drain(DrainRequest { timeout: millis(200) }).await.unwrap().into_inner();
    assert!(!next(&mut drain).await.timed_out);
    assert_eq!(next(&mut drain).await, DrainResponse { leased: 1, waiting: 0, drained: false, timed_out: true });
    served.until(|state| state.doors() == (true, false)).await;

    let mut drain = operator.drain(DrainRequest { timeout: None }).await.unwrap().into_inner();
    next(&mut drain).await;
    operator.uncordon(UncordonRequest {}).await.unwrap();
    let status = soon(drain.message()).await.unwrap_err();
    assert_eq!(refusal(&status), (Code::Aborted, "UNCORDONED".to_owned()));
    served.until(|state| state.doors() == (false, false)).await;

    // Two at once: the pool drains until the last one is over.
    let mut first = operator.drain(DrainRequest { timeout: None }).await.unwrap().into_inner();
    let mut second = operator.drain(DrainRequest { timeout: None }).await.unwrap().into_inner();
    next(&mut first).await;
    next(&mut second).await;
    drop(first);
    let key = UseKey { slot: lease.slot, generation: lease.generation, use_number: lease.r#use };
    served.pool.with(|state, now| state.force_release(now, key)).unwrap();
    assert!(next(&mut second).await.drained);
    served.until(|state| state.doors() == (true, false)).await;
}

#[tokio::test]
async fn an_inspection_shows_a_diff_or_says_why_not() {
    let served = served().await;
    let mut operator = served.operator().await;
    let seen = operator.inspect(InspectRequest { slot: 0 }).await.unwrap().into_inner();
    let generation = served.pool.read(|state| state.slot_view(0).key.generation);
    assert_eq!(seen.slot.unwrap().generation, generation);
    let wanted =
        Difference { kind: "link".into(), subject: format!("eth0 mtu, generation {generation}"), was: Some("1500".into()), is: None };
    assert_eq!((seen.differences, seen.leftovers), (vec![wanted], vec![Leftover { kind: "neighbour".into(), count: 2 }]));
    served.pool.with(|state, now| state.resize(now, 2, 4)).unwrap();
    let none = operator.inspect(InspectRequest { slot: 3 }).await.unwrap_err();
    assert_eq!(refusal(&none), (Code::FailedPrecondition, "NO_SNAPSHOT".to_owned()));
    let unknown = operator.inspect(InspectRequest { slot: 4 }).await.unwrap_err();
    assert_eq!(refusal(&unknown), (Code::NotFound, "UNKNOWN_SLOT".to_owned()));
}

#[tokio::test]
async fn an_audit_says_what_it_found_and_mends_when_told_to() {
    let served = served().await;
    let mut operator = served.operator().await;
    for fix in [false, true] {
        let audit = operator.audit(AuditRequest { fix }).await.unwrap().into_inner();
        assert_eq!((audit.slots, audit.leases, audit.containers, audit.more), (2, 1, 3, 4));
        let [finding] = &audit.findings[..] else { panic!("{audit:?}") };
        assert_eq!((finding.kind.as_str(), finding.subject.as_str(), finding.fixable, finding.fixed), ("orphan", "c1", true, fix));
        assert!(audit.at.is_some());
    }
}
