//! What a holder sees of bad days, on a real Docker engine: how long an Allocate takes while the engine is frozen beside when it is well, how soon
//! a new daemon answers and has taken over fifty leases after the old one was killed, and how soon a holder hears that its buddy's process was
//! killed, beside the engine's own wait for the same container.
//!
//!     deploy/setup.sh engine run cargo bench --bench engine [-- ROUNDS]
//!
//! The daemon is the real one, the engine one of the bench's own. Each round fills fifty slots, leases them one by one with the engine well or
//! frozen (in turns), kills the daemon, starts another one, kills every buddy's process, and gives all back. Figures are over all rounds.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{InspectContainerOptions, WaitContainerOptions};
use futures::StreamExt as _;
use nspool::client::Request;
use nspool::proto;
use nspool::proto::watch_response::Event;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

#[path = "../tests/support/mod.rs"]
mod support;

use rustix::process::{Pid, Signal, kill_process};
use support::daemon::{LIMIT, TestDaemon};
use support::engines::{PrivateDocker, TestEngine};

const SLOTS: usize = 50;
const ROUNDS: usize = 8;
/// What a daemon says when it has proven all that the ledger told of.
const PROVEN: &str = "what the ledger told of is proven";

/// In milliseconds.
#[derive(Default)]
struct Figures {
    well: Vec<f64>,
    frozen: Vec<f64>,
    answering: Vec<f64>,
    adopted: Vec<f64>,
    told: Vec<f64>,
    engines_wait: Vec<f64>,
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let engine = PrivateDocker::start();
    let (ready, max) = (format!("pool.ready = {SLOTS}"), format!("pool.max = {SLOTS}"));
    let mut daemon = TestDaemon::start(&engine, &[&ready, &max, "stop.policy = \"keep\""]).await;
    let mut figures = Figures::default();
    for round in 0..rounds {
        daemon.settled(50).await;
        let leases = lease_all(&daemon, &engine, round % 2 == 1, &mut figures).await;
        restart(&mut daemon, &mut figures).await;
        hear_of_deaths(&daemon, &engine, &leases, &mut figures).await;
        let client = daemon.client();
        for lease in &leases {
            client.release(&lease.token, false).await.unwrap();
        }
    }
    daemon.settled(50).await;
    daemon.configure(&["stop.policy = \"remove\""]);
    daemon.kill();
    daemon.launch().await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    report(rounds, figures);
}

async fn lease_all(daemon: &TestDaemon<'_>, engine: &TestEngine, frozen: bool, figures: &mut Figures) -> Vec<proto::Lease> {
    let client = daemon.client();
    client.info().await.unwrap();
    if frozen {
        engine.signal("STOP");
    }
    let mut leases = Vec::new();
    for _ in 0..SLOTS {
        let began = Instant::now();
        let lease = client.allocate(Request::new().ttl(Duration::from_secs(600))).await.unwrap();
        (if frozen { &mut figures.frozen } else { &mut figures.well }).push(millis(began));
        leases.push(lease.keep());
    }
    if frozen {
        engine.signal("CONT");
    }
    leases
}

async fn restart(daemon: &mut TestDaemon<'_>, figures: &mut Figures) {
    daemon.kill();
    let said = daemon.log().len();
    let command = daemon.command(&[]);
    let began = Instant::now();
    daemon.spawn(command);
    let client = daemon.client();
    while client.info().await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    figures.answering.push(millis(began));
    while !daemon.log()[said..].contains(PROVEN) {
        assert!(began.elapsed() < LIMIT, "not adopted:\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    figures.adopted.push(millis(began));
    daemon.usage("all leases", |usage| usage.leased as usize == SLOTS && usage.lost == 0).await;
}

/// What came first of the two to each container, and when.
async fn hear_of_deaths(daemon: &TestDaemon<'_>, engine: &TestEngine, leases: &[proto::Lease], figures: &mut Figures) {
    let docker = Docker::connect_with_unix(engine.socket.to_str().unwrap(), 120, bollard::API_DEFAULT_VERSION).unwrap();
    let (tell, mut heard) = mpsc::channel(4 * SLOTS);
    let mut listeners = JoinSet::new();
    let mut pids = HashMap::new();
    for lease in leases {
        let (docker, tell, id) = (docker.clone(), tell.clone(), lease.container_id.clone());
        let found = docker.inspect_container(&id, None::<InspectContainerOptions>).await.unwrap();
        let pid = i32::try_from(found.state.unwrap().pid.unwrap()).unwrap();
        pids.insert(id.clone(), Pid::from_raw(pid).unwrap());
        listeners.spawn(async move {
            // A killed process is an error in its words.
            let _exit = docker.wait_container(&id, Some(WaitContainerOptions { condition: "not-running".into() })).next().await;
            tell.send((id, false, Instant::now())).await.unwrap();
        });
    }
    let mut events = daemon.client().watch(None).await.unwrap();
    events.next().await.unwrap().expect("the watch begins with what there is");
    let names: HashMap<String, String> = leases.iter().map(|lease| (lease.lease_id.clone(), lease.container_id.clone())).collect();
    listeners.spawn(async move {
        while let Ok(Some(told)) = events.next().await {
            let Some(Event::Lost(lost)) = told.event else { continue };
            let at = Instant::now();
            if tell.send((names[&lost.lease_id].clone(), true, at)).await.is_err() {
                return;
            }
        }
    });
    // The waits were sent before this. One that the engine has not begun by the time of its kill answers no later for it.
    docker.ping().await.unwrap();
    for (id, pid) in pids {
        let began = Instant::now();
        kill_process(pid, Signal::KILL).unwrap();
        for _ in 0..2 {
            let (of, ours, at) = tokio::time::timeout(LIMIT, heard.recv()).await.expect("both hear of it").unwrap();
            assert_eq!(of, id);
            let took = at.saturating_duration_since(began).as_secs_f64() * 1e3;
            (if ours { &mut figures.told } else { &mut figures.engines_wait }).push(took);
        }
    }
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

fn report(rounds: usize, figures: Figures) {
    println!("{rounds} rounds of {SLOTS} leases; milliseconds");
    println!("{:44}  {:>6}  {:>8}  {:>8}  {:>8}", "", "n", "p50", "p99", "most");
    let rows = [
        ("Allocate, the engine well", figures.well),
        ("Allocate, the engine frozen", figures.frozen),
        ("kill -9 to the next daemon's first answer", figures.answering),
        ("kill -9 to all leases proven", figures.adopted),
        ("a buddy's death to the holder's LOST", figures.told),
        ("a buddy's death to the engine's own wait", figures.engines_wait),
    ];
    for (name, mut samples) in rows {
        samples.sort_by(f64::total_cmp);
        let Some(most) = samples.last() else { continue };
        let at = |share: usize| samples[(samples.len() - 1) * share / 100];
        println!("{name:44}  {:>6}  {:>8.2}  {:>8.2}  {:>8.2}", samples.len(), at(50), at(99), most);
    }
}
