//! A renewal beside a new buddy, on real engines: from the signal to the new namespace held and proven, and what the same costs by remove, create and
//! start of a buddy on the same engine.
//!
//!     deploy/setup.sh engine run cargo bench --bench renewal [-- RENEWALS]
//!
//! The engines are the bench's own, Docker and podman one after the other. Renewals are counted from the call to its return, so the time of a
//! thread's wake-up is in them; the new buddy gets no address either (network none), so that both ways end at an unfurnished namespace.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::time::{Duration, Instant};

use nspool::engine::Engine;
use nspool::engine::docker::Docker;
use nspool::netns::linux::Linux;

#[path = "../tests/support/mod.rs"]
mod support;

use support::engines::{PrivateDocker, PrivatePodman, TestEngine};
use support::renewable::{Renewable, connect, namespaces_of_the_machine, placeholder, spec, taken_away};

const RENEWALS: u64 = 1000;
const BUDDIES: usize = 20;
const WITHIN: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() {
    let renewals = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(RENEWALS);
    println!("milliseconds; {:10}  {:>24}  {:>6}  {:>8}  {:>8}  {:>8}", "", "", "n", "p50", "p95", "most");
    for engine in [PrivateDocker::start(), PrivatePodman::start()] {
        measure(&engine, renewals).await;
    }
}

async fn measure(engine: &TestEngine, renewals: u64) {
    let docker = connect(engine);
    let buddy = Renewable::start(&docker, "bench").await;
    let (mut moved, all) = (Vec::new(), namespaces_of_the_machine());
    for number in 2..renewals + 2 {
        let begun = Instant::now();
        buddy.held.renew(number, WITHIN).await.unwrap();
        moved.push(begun.elapsed());
        if number % 50 == 0 {
            taken_away(all).await;
        }
    }
    docker.remove(&buddy.id).await.unwrap();
    let made = again(&docker).await;
    let (renewal, anew) = (report(engine, "renewed", moved), report(engine, "removed, created, started", made));
    println!("{:24}  {:>24}  {:>15.0} times as fast at p50", engine.kind.to_string(), "", anew / renewal);
}

/// Held, too, since a buddy is not ready before.
async fn again(docker: &Docker) -> Vec<Duration> {
    let (kernel, image) = (Linux::new(), placeholder(docker).await);
    let mut last = docker.create(&spec("first", &image).renewable()).await.unwrap();
    docker.start(&last).await.unwrap();
    let mut made = Vec::new();
    for _ in 0..BUDDIES {
        let begun = Instant::now();
        docker.remove(&last).await.unwrap();
        last = docker.create(&spec("next", &image).renewable()).await.unwrap();
        docker.start(&last).await.unwrap();
        let pid = docker.inspect(last.as_str()).await.unwrap().pid;
        let _held = kernel.hold_now(pid, &[]).unwrap();
        made.push(begun.elapsed());
    }
    docker.remove(&last).await.unwrap();
    made
}

/// Gives back the median.
fn report(engine: &TestEngine, what: &str, mut took: Vec<Duration>) -> f64 {
    took.sort();
    let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1e3;
    let kind = engine.kind.to_string();
    println!("{kind:24}  {what:>24}  {:>6}  {:>8.2}  {:>8.2}  {:>8.2}", took.len(), at(50), at(95), at(100));
    at(50)
}
