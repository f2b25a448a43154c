//! Histories that are wrong, each in one way, so that the checker is known to notice.

use std::time::Duration;

use crate::checker::check;
use crate::history::{Answer, Asked, Call, History, Lease, Outcome, Sight, Time, What};

fn at(millis: u64) -> Time {
    Duration::from_millis(millis)
}

fn lease(number: u32, buddy: u32) -> Lease {
    Lease { token: format!("t{number}"), id: format!("l{number}"), buddy: (buddy, 1), lost: false }
}

fn call(times: (u64, u64), asked: Asked, answer: Answer) -> Call {
    Call { began: at(times.0), ended: at(times.1), asked, answer }
}

fn asked(request_id: &str, ttl: Option<u64>) -> Asked {
    Asked::Allocate { owner: "o".into(), request_id: request_id.into(), ttl: ttl.map(at) }
}

fn granted(times: (u64, u64), request_id: &str, number: u32, buddy: u32) -> Call {
    call(times, asked(request_id, None), Answer::Leases(vec![lease(number, buddy)]))
}

fn released(times: (u64, u64), number: u32, outcome: Outcome) -> Call {
    call(times, Asked::Release(format!("t{number}")), Answer::Released(outcome))
}

fn refused(times: (u64, u64), asked: Asked, reason: &str) -> Call {
    call(times, asked, Answer::Refused(reason.into()))
}

fn ended(cause: &str) -> Outcome {
    Outcome::AlreadyEnded(cause.into())
}

/// Beside a watcher that saw an empty pool first.
fn history(calls: Vec<Call>, sights: Vec<(u64, What)>) -> History {
    let begins = Sight { at: at(0), position: 1, what: What::Snapshot(Vec::new()) };
    let sights = sights.into_iter().map(|(position, what)| Sight { at: at(100 * position), position, what });
    History { calls, sights: vec![std::iter::once(begins).chain(sights).collect()] }
}

#[track_caller]
fn assert_wrong(calls: Vec<Call>, sights: Vec<(u64, What)>, words: &str) {
    let wrong = check(&history(calls, sights));
    assert!(wrong.len() == 1 && wrong[0].contains(words), "{wrong:#?}");
}

#[test]
fn a_history_in_which_all_is_well_is_well() {
    let ttl = asked("r3", Some(50));
    let calls = vec![
        granted((1, 2), "r1", 1, 1),
        // A retry of it; the buddy is used again after its release began.
        granted((3, 4), "r1", 1, 1),
        call((5, 6), Asked::Get("t1".into()), Answer::Leases(vec![lease(1, 1)])),
        call((5, 6), Asked::Resume("o".into()), Answer::Leases(vec![lease(1, 1)])),
        released((10, 20), 1, Outcome::Returned),
        granted((11, 12), "r2", 2, 1),
        released((15, 16), 1, Outcome::AlreadyReleased),
        refused((21, 22), asked("r1", None), "LEASE_ENDED"),
        call((30, 31), Asked::Release("t2".into()), Answer::Unknown),
        released((32, 33), 2, Outcome::AlreadyReleased),
        // One that ran out, though it was renewed, and one that an operator ended, one that was lost.
        call((100, 101), ttl, Answer::Leases(vec![lease(3, 1)])),
        call((120, 121), Asked::Renew("t3".into()), Answer::Done),
        refused((180, 181), Asked::Renew("t3".into()), "LEASE_ENDED"),
        released((190, 191), 3, ended("its ttl ran out")),
        granted((200, 201), "", 4, 2),
        call((210, 212), Asked::Force("l4".into()), Answer::Done),
        granted((300, 301), "", 5, 3),
        call((310, 311), Asked::Kill("l5".into()), Answer::Done),
        released((320, 321), 5, ended("lost: it died")),
    ];
    let sights = vec![(2, What::Ended("l3".into())), (3, What::Ended("l4".into())), (4, What::Lost("l5".into()))];
    assert_eq!(check(&history(calls, sights)), Vec::<String>::new());
}

#[test]
fn one_namespace_for_two() {
    assert_wrong(vec![granted((1, 2), "", 1, 1), granted((3, 4), "", 2, 1)], vec![], "at the same time");
    let early = vec![granted((1, 2), "", 1, 1), granted((3, 4), "", 2, 1), released((5, 6), 1, Outcome::Returned)];
    assert_wrong(early, vec![], "at the same time");
    let renewed = vec![
        call((1, 2), asked("", Some(10)), Answer::Leases(vec![lease(1, 1)])),
        call((8, 9), Asked::Renew("t1".into()), Answer::Done),
        granted((12, 13), "", 2, 1),
    ];
    assert_wrong(renewed, vec![], "at the same time");
}

#[test]
fn one_request_with_two_leases() {
    assert_wrong(vec![granted((1, 2), "r", 1, 1), granted((3, 4), "r", 2, 2)], vec![], "request r of o got");
}

#[test]
fn a_token_that_is_well_again() {
    let again = [
        call((5, 6), Asked::Get("t1".into()), Answer::Leases(vec![lease(1, 1)])),
        call((5, 6), Asked::Renew("t1".into()), Answer::Done),
        call((5, 6), Asked::Resume("o".into()), Answer::Leases(vec![lease(1, 1)])),
        granted((5, 6), "r", 1, 1),
    ];
    for call in again {
        let calls = vec![granted((1, 2), "r", 1, 1), released((3, 4), 1, Outcome::Returned), call];
        assert_wrong(calls, vec![], "was over, and is there again");
    }
}

#[test]
fn a_release_that_nothing_explains() {
    let outcomes = [Outcome::AlreadyReleased, ended("its ttl ran out"), ended("lost: it died"), ended("the daemon stops")];
    for outcome in outcomes {
        let calls = vec![granted((1, 2), "", 1, 1), released((3, 4), 1, outcome)];
        assert!(check(&history(calls, vec![])).iter().any(|wrong| wrong.contains("nothing explains")));
    }
    let calls = vec![granted((1, 2), "", 1, 1), refused((3, 4), Asked::Release("t1".into()), "UNKNOWN_TOKEN")];
    assert_wrong(calls, vec![], "nothing explains");
    let calls = vec![granted((1, 2), "", 1, 1), released((3, 6), 1, Outcome::Returned), released((4, 5), 1, Outcome::Returned)];
    assert_wrong(calls, vec![], "returned 2 times");
}

#[test]
fn a_lease_that_is_gone_though_nothing_ended_it() {
    let gone = [
        refused((3, 4), Asked::Get("t1".into()), "UNKNOWN_TOKEN"),
        refused((3, 4), Asked::Renew("t1".into()), "LEASE_ENDED"),
        call((3, 4), Asked::Get("t1".into()), Answer::Leases(vec![Lease { lost: true, ..lease(1, 1) }])),
        call((3, 4), Asked::Resume("o".into()), Answer::Leases(vec![])),
        refused((3, 4), asked("r", None), "LEASE_ENDED"),
    ];
    for call in gone {
        assert_wrong(vec![granted((1, 2), "r", 1, 1), call], vec![], "is there, and");
    }
}

#[test]
fn a_watch_that_misses_repeats_or_disorders() {
    let forced = || vec![granted((1, 2), "", 1, 1), call((3, 4), Asked::Force("l1".into()), Answer::Done)];
    let end = || What::Ended("l1".into());
    assert_eq!(check(&history(forced(), vec![(2, end())])), Vec::<String>::new());
    assert_wrong(forced(), vec![], "was never told");
    assert_wrong(forced(), vec![(2, end()), (3, end())], "told twice");
    assert_wrong(forced(), vec![(3, What::Lost("l0".into())), (2, end())], "after position 3");
    let returned = vec![granted((1, 2), "", 1, 1), released((3, 4), 1, Outcome::Returned)];
    assert_wrong(returned.clone(), vec![(2, end())], "is told to have ended otherwise");
    assert_wrong(returned, vec![(20, What::Reset), (21, What::Snapshot(vec!["l1".into()]))], "is in the snapshot");
    let mut unseen = history(forced(), vec![]);
    unseen.sights = vec![Vec::new()];
    assert!(check(&unseen).iter().any(|wrong| wrong.contains("never saw anything")));
}
