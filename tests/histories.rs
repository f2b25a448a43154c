//! Many clients at once, over the real socket, on the scripted engine, while daemons are stopped and killed: every call is written down
//! with its begin, its end and its answer, and a checker that knows nothing of the pool says whether such a history can be
//! (`histories/checker.rs`). What it demands: no namespace has two holders at once; a request id means one lease; an answered lease is
//! there until something ends it, over the daemons' ends as well; a released one never comes back; each outcome of a Release has its
//! reason; each watcher sees each end of a lease once, and in order.
//!
//! A call that was cancelled, or whose connection was cut, may have been carried out or not: so the checker takes both. Cuts are exact:
//! what a daemon answers after its end reaches nobody.
//!
//! `make interleavings HISTORIES=100` tells more of them, `NSPOOL_SEED=7 cargo test --test histories` one of them again, as far as threads
//! can.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says with which seed")]
#![expect(clippy::disallowed_methods, reason = "a test waits for its clients by their handles")]

#[path = "histories/agent.rs"]
mod agent;
#[path = "histories/checker.rs"]
mod checker;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/disk.rs"]
mod disk;
#[path = "histories/history.rs"]
mod history;
#[path = "histories/house.rs"]
mod house;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/mortal.rs"]
mod mortal;
#[path = "histories/round.rs"]
mod round;
#[path = "histories/wrong.rs"]
mod wrong;

use history::{Answer, Asked, History, Outcome};

/// Without further notice.
const HISTORIES: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_clients_saw_can_be_explained() {
    let seeds = match number("NSPOOL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NSPOOL_HISTORIES").unwrap_or(HISTORIES),
    };
    for seed in seeds {
        let history = round::tell(seed).await;
        let wrong = checker::check(&history);
        if !wrong.is_empty() {
            let shown: Vec<_> = wrong.iter().take(10).collect();
            eprintln!("{history:#?}");
            panic!("seed {seed}: {} of {} calls cannot be: {shown:#?}", wrong.len(), history.calls.len());
        }
        assert_tells_something(&history, seed);
    }
}

/// A history without what it is about would always be well.
fn assert_tells_something(history: &History, seed: u64) {
    let count = |matches: fn(&history::Call) -> bool| history.calls.iter().filter(|call| matches(call)).count();
    let granted = count(|call| matches!((&call.asked, &call.answer), (Asked::Allocate { .. }, Answer::Leases(_))));
    let unknown = count(|call| call.answer == Answer::Unknown);
    let returned = count(|call| call.answer == Answer::Released(Outcome::Returned));
    let repeated = count(|call| call.answer == Answer::Released(Outcome::AlreadyReleased));
    let ended = count(|call| matches!(&call.answer, Answer::Released(Outcome::AlreadyEnded(_))));
    let seen: usize = history.sights.iter().map(Vec::len).sum();
    let all = [granted, unknown, returned, repeated, ended, seen];
    eprintln!("seed {seed}: {} calls; granted, unknown, returned, released again, ended, seen: {all:?}", history.calls.len());
    assert!(all.iter().all(|number| *number >= 3), "seed {seed}: too little happened: {all:?}");
}
