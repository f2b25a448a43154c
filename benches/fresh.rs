//! What a fresh namespace for every lease costs, on a real Docker engine, beside everything else one can do: from a Release to the slot's next lease
//! (`fresh`, `always`, `once`, one slot each), and how many function starts a second are sustained with each, and on the engine's bridge.
//!
//!     deploy/setup.sh engine run cargo bench --bench fresh [-- [fill] ROUNDS [USES]]
//!
//! With `fill`: how soon so many slots are ready and gone again, on a network that nspool furnishes and on the engine's bridge, and the engine's
//! calls in it.
//!
//! The engine is one of the bench's own, the daemon the real one. A start is a container created, started, waited for and removed; with a pool it has its
//! lease before, and gives it back after. Where the time to the next lease is measured, each is held for a tenth of a second. Each round does all sides, one after the other; what is compared is within the same run.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptions, StartContainerOptions, WaitContainerOptions};
use futures::StreamExt as _;
use nspool::client::{Client, Request};
use tokio::task::JoinSet;

#[path = "../tests/support/mod.rs"]
mod support;

use support::daemon::{LIMIT, TestDaemon, load_busybox};
use support::engines::{PrivateDocker, TestEngine, unique};
use support::image::BUSYBOX;

const ROUNDS: usize = 3;
/// Per side and round.
const USES: u32 = 100;
/// How long each lease is held while it is looked how soon the next one comes.
const HELD: Duration = Duration::from_millis(100);
/// Starts at once while they are sustained, on as many slots.
const AT_ONCE: u32 = 4;
const SIDES: [Side; 5] = [Side::Fresh, Side::Verified, Side::Always, Side::Once, Side::Bridge];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Fresh,
    Verified,
    Always,
    Once,
    /// No pool.
    Bridge,
}

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u32>().ok());
    let rounds = numbers.next().map_or(ROUNDS, |rounds| rounds as usize);
    let uses = numbers.next().unwrap_or(USES);
    let engine = PrivateDocker::start();
    load_busybox(&engine);
    if std::env::args().any(|argument| argument == "fill") {
        return filled(&engine, rounds, uses).await;
    }
    let mut again: Vec<Vec<f64>> = vec![Vec::new(); SIDES.len()];
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); SIDES.len()];
    let mut stages = String::new();
    for _ in 0..rounds {
        for (at, side) in SIDES.into_iter().enumerate() {
            if side != Side::Bridge {
                let (times, seen) = next_leases(&engine, side, uses).await;
                again[at].extend(times);
                match side {
                    Side::Fresh => stages = seen,
                    Side::Verified => stages.push_str(&format!("of a verified one:\n{seen}")),
                    Side::Always | Side::Once | Side::Bridge => {}
                }
            }
            rates[at].push(sustained(&engine, side, uses).await);
        }
    }
    report(&mut again, &mut rates, rounds, uses);
    println!("\nstages of a fresh use, last round, mean:\n{stages}");
}

fn lines(side: Side, slots: u32, metrics: &str) -> Vec<String> {
    let mut lines = vec![
        format!("pool.ready = {slots}"),
        format!("pool.max = {slots}"),
        "stop.policy = \"remove\"".to_owned(),
        // The log is no part of it.
        "log.filter = \"warn\"".to_owned(),
        format!("metrics.listen = {metrics:?}"),
    ];
    match side {
        Side::Fresh => lines.extend([
            "pool.networks = [\"own\"]".to_owned(),
            "networks.own.kind = \"managed\"".to_owned(),
            format!("networks.own.bridge = \"nb{:x}\"", unique()),
        ]),
        Side::Verified => lines.push("pool.reuse = \"verified\"".to_owned()),
        Side::Always => lines.push("pool.reuse = \"always\"".to_owned()),
        Side::Once => lines.push("pool.reuse = \"once\"".to_owned()),
        Side::Bridge => {}
    }
    lines
}

async fn pool<'e>(engine: &'e TestEngine, side: Side, slots: u32) -> (TestDaemon<'e>, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let lines = lines(side, slots, &port);
    let daemon = TestDaemon::start(engine, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    daemon.settled(slots).await;
    (daemon, port)
}

/// Milliseconds from a Release to the only slot's next lease, and what the daemon says of the stages.
async fn next_leases(engine: &TestEngine, side: Side, uses: u32) -> (Vec<f64>, String) {
    let (mut daemon, port) = pool(engine, side, 1).await;
    let client = daemon.client();
    let uses = if side == Side::Once { uses.div_ceil(4) } else { uses };
    let mut lease = client.allocate(Request::new().wait(LIMIT)).await.unwrap().keep();
    let mut times = Vec::new();
    for _ in 0..uses {
        // As a function does: meanwhile the kernel takes away what the use before left.
        tokio::time::sleep(HELD).await;
        let began = Instant::now();
        client.release(&lease.token, false).await.unwrap();
        lease = client.allocate(Request::new().wait(LIMIT)).await.unwrap().keep();
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    client.release(&lease.token, false).await.unwrap();
    let stages = stages(&port, &["rename", "list", "inspect"]).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    (times, stages)
}

/// The pool grows from one slot to as many, and goes.
async fn filled(engine: &TestEngine, rounds: usize, slots: u32) {
    const ENGINES: [&str; 4] = ["create", "start", "inspect", "remove"];
    let mut rates = [const { [const { Vec::new() }; 2] }; 2];
    let mut calls = [String::new(), String::new()];
    for _ in 0..rounds {
        for (at, side) in [Side::Fresh, Side::Once].into_iter().enumerate() {
            let (mut daemon, port) = pool(engine, side, 1).await;
            let began = Instant::now();
            daemon.client().resize(Some(slots + 1), Some(slots + 1)).await.unwrap();
            daemon.settled(slots + 1).await;
            rates[at][0].push(f64::from(slots) / began.elapsed().as_secs_f64());
            calls[at] = stages(&port, &ENGINES).await;
            let began = Instant::now();
            assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
            rates[at][1].push(f64::from(slots + 1) / began.elapsed().as_secs_f64());
        }
    }
    println!("{rounds} rounds of {slots} slots; a second, median of rounds");
    for (what, at_end) in [("filled", 0), ("removed, the networks included", 1)] {
        let [own, bridge] = [0, 1].map(|side| at(&mut rates[side][at_end], 0.5));
        println!("  {what}: furnished by nspool {own:.1}, on the bridge {bridge:.1}: {:.2} times as fast", own / bridge);
    }
    for (what, calls) in ["furnished by nspool", "on the bridge"].iter().zip(&calls) {
        println!("\n{what}, last round, while it was filled, mean:\n{calls}");
    }
}

/// Means of the daemon's own histograms, and of these calls of the engine.
async fn stages(port: &str, calls: &[&str]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(port).await.unwrap();
    socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    let value = |name: &str| -> Option<f64> { text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()) };
    let mean = |name: &str, labels: &str| {
        let (sum, count) = (value(&format!("{name}_sum{labels} "))?, value(&format!("{name}_count{labels} "))?);
        Some(format!("  {name}{labels} {:.2} ms over {count}\n", sum / count * 1e3))
    };
    let engines = calls.iter().map(|operation| ("nspool_engine_call_seconds", format!("{{operation=\"{operation}\"}}")));
    let ours = ["nspool_inspection_seconds", "nspool_renewal_seconds", "nspool_furnishing_seconds", "nspool_renewed_seconds"]
        .map(|name| (name, String::new()));
    ours.into_iter().chain(engines).filter_map(|(name, labels)| mean(name, &labels)).collect()
}

/// Function starts a second.
async fn sustained(engine: &TestEngine, side: Side, uses: u32) -> f64 {
    let mut pool = match side {
        Side::Bridge => None,
        Side::Fresh | Side::Verified | Side::Always | Side::Once => Some(pool(engine, side, AT_ONCE).await.0),
    };
    let docker = Docker::connect_with_unix(engine.socket.to_str().unwrap(), 120, bollard::API_DEFAULT_VERSION).unwrap();
    let left = Arc::new(AtomicU32::new(uses));
    let (began, mut workers) = (Instant::now(), JoinSet::new());
    for _ in 0..AT_ONCE {
        let (docker, client, left) = (docker.clone(), pool.as_ref().map(TestDaemon::client), Arc::clone(&left));
        workers.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                one(&docker, client.as_ref()).await;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    let rate = f64::from(uses) / began.elapsed().as_secs_f64();
    if let Some(daemon) = &mut pool {
        assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    }
    rate
}

async fn one(docker: &Docker, client: Option<&Client>) {
    let lease = match client {
        Some(client) => Some(client.allocate(Request::new().wait(LIMIT).ttl(Duration::from_secs(600))).await.unwrap().keep()),
        None => None,
    };
    let mode = lease.as_ref().map_or_else(|| "bridge".to_owned(), |lease| lease.network_mode.clone());
    let body = ContainerCreateBody {
        image: Some(BUSYBOX.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        host_config: Some(HostConfig { network_mode: Some(mode), ..HostConfig::default() }),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
    docker.start_container(&id, None::<StartContainerOptions>).await.unwrap();
    let _ended = docker.wait_container(&id, None::<WaitContainerOptions>).next().await;
    docker.remove_container(&id, Some(RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() })).await.unwrap();
    if let (Some(client), Some(lease)) = (client, lease) {
        client.release(&lease.token, false).await.unwrap();
    }
}

fn at(times: &mut [f64], part: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a list that is there")]
    let index = ((times.len() - 1) as f64 * part).round() as usize;
    times[index]
}

fn report(again: &mut [Vec<f64>], rates: &mut [Vec<f64>], rounds: usize, uses: u32) {
    println!("{rounds} rounds of {uses} uses");
    println!("\nfrom a Release to the slot's next lease, ms: p50, p95, most");
    let mut medians = Vec::new();
    for (side, times) in SIDES.iter().zip(again.iter_mut()).filter(|(_, times)| !times.is_empty()) {
        medians.push(at(times, 0.5));
        println!("  {side:8?} {:8.2} {:8.2} {:8.2}   n = {}", at(times, 0.5), at(times, 0.95), at(times, 1.0), times.len());
    }
    println!("  once / fresh: {:.1}, once / verified: {:.1}", medians[3] / medians[0], medians[3] / medians[1]);
    println!("\nfunction starts a second, {AT_ONCE} at once, median of rounds");
    let medians: Vec<f64> = rates.iter_mut().map(|rates| at(rates, 0.5)).collect();
    for (side, rate) in SIDES.iter().zip(&medians) {
        println!("  {side:8?} {rate:8.1}   fresh has {:.2} times as many", medians[0] / rate);
    }
}
