//! The real program on real engines, end to end: what DESIGN's contract promises, seen from the outside only.
//!
//! Each test has a daemon, a pool and containers of its own, and most of them run on Docker and on podman. Those that stop or freeze an
//! engine start one for themselves, which takes seconds: they are in `e2e/engine_away.rs`.

#![expect(clippy::unwrap_used, reason = "the bodies of tests are functions of their own here, shared by the engines")]

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/small_registry.rs"]
mod small_registry;
mod support;

/// Each `async fn(&TestEngine)` as a test of its own on Docker and on podman.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod on_docker { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(crate::support::engines::docker()).await } )* }
        mod on_podman { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(crate::support::engines::podman()).await } )* }
    };
}

mod e2e {
    mod bad_days;
    mod buddies;
    mod builds;
    mod cni;
    mod crash_points;
    mod engine_away;
    mod engine_networks;
    mod exec;
    mod fresh;
    mod full;
    mod helper;
    mod images;
    mod joiners;
    mod joins;
    mod leases;
    mod lifetimes;
    mod live;
    mod native;
    mod paths;
    mod pids;
    mod pins;
    mod restarts;
    mod rootless;
    mod seen;
    mod stops;
    mod systemd;
    mod upgrades;
    mod users;
    mod verified;
    mod wiped;
}
