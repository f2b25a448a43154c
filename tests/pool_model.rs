//! The pool's state against a naive model: random stories of callers, nannies, containers, operators and time, compared after every step.
//!
//! The model (`pool_model/model.rs`) is written independently, with plain vectors and scans. Besides agreeing with it, these must hold after
//! every step: the state's own self-check (I1 and all tables), I2 (a delivered use is never lent again, tokens of old leases touch nobody's),
//! generations that only grow, fills within `max`, no second use without a vouched release, nobody lent a slot that somebody stayed in, and a
//! nudge for every nanny whose order changed.
//!
//! `PROPTEST_CASES` says how many stories are told; a failure prints the shortest one that fails.

#![expect(clippy::wildcard_enum_match_arm, reason = "the model says what it does with few states or ops, and nothing with all others")]

#[path = "formats/format_1.rs"]
mod format_1;
#[path = "formats/in_the_pool.rs"]
mod in_the_pool;
#[path = "pool_model/model.rs"]
mod model;
#[path = "pool_model/ops.rs"]
mod ops;
#[path = "pool_model/run.rs"]
mod run;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};

/// About ten seconds in a debug build.
const CASES: u32 = 600;

fn config() -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let persistence = FileFailurePersistence::Direct("tests/pool_model/regressions.txt");
    Config { cases, failure_persistence: Some(Box::new(persistence)), max_shrink_iters: 20_000, ..Config::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_pool_agrees_with_a_naive_model(start in ops::start(), story in prop::collection::vec(ops::op(), 1..120)) {
        run::tell(&start, &story);
    }
}
