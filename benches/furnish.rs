//! What a namespace's link costs: furnished by netlink in process, against the same done by the `ip` tool; and its removal, one by one against
//! those that wait together.
//!
//! In a network namespace that stands for the host, with a bridge; every namespace is new. Medians of interleaved rounds. Needs root and `ip`.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that fails, fails")]

#[path = "../tests/support/space.rs"]
mod space;

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use futures::future::join_all;
use nspool::netns::managed::host::{Forwarding, Host};
use nspool::netns::managed::names::Names;
use nspool::netns::managed::{Bridge, Furnisher, Limits, ManagedNetwork, Plan, Range, Worker};
use space::Space;

const ROUNDS: usize = 100;
/// Removed together.
const TOGETHER: usize = 50;

fn network() -> ManagedNetwork {
    ManagedNetwork {
        name: "bench".to_owned(),
        bridge: Bridge::Own { name: "nsbr0".to_owned() },
        slots: 500,
        ipv4: Range::whole("10.200.0.0/20".parse().unwrap()),
        ipv6: Some(Range::whole("fd00:200::/64".parse().unwrap())),
        mtu: 1500,
        isolation: true,
        nat: true,
    }
}

/// What [`Furnisher::furnish`] does, with as few programs as it takes: two.
fn by_tool(host: &Space, space: &Space, plan: &Plan) {
    let (end, v4, v6) = (&plan.host_end, plan.ipv4, plan.ipv6.unwrap());
    let fd = format!("/proc/{}/fd/{}", std::process::id(), space.fd().as_raw_fd());
    let link = format!(
        "link add {end} mtu {mtu} master {bridge} type veth peer name eth0 mtu {mtu} netns {fd}\nlink set {end} up type bridge_slave isolated on\n",
        mtu = plan.mtu,
        bridge = plan.bridge
    );
    let inside = format!(
        "link set lo up\nlink set eth0 up\naddr add {}/{} dev eth0\nroute add default via {}\naddr add {}/{} dev eth0 nodad\nroute add default via {}\n",
        v4.address, v4.prefix, v4.gateway, v6.address, v6.prefix, v6.gateway
    );
    for (place, lines) in [(host, link), (space, inside)] {
        place.run(&format!("exec ip -batch - <<'END'\n{lines}END"));
    }
}

async fn by_us(furnisher: &Furnisher, space: &Space, plan: &Plan) {
    furnisher.furnish(space.fd(), plan).await.unwrap();
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

async fn with_present(furnisher: &Furnisher, host: &Space, plans: &[Plan], present: usize) {
    let (busy, rest) = plans.split_at(present);
    let held: Vec<Space> = busy.iter().map(|_| Space::new()).collect();
    for (plan, space) in busy.iter().zip(&held) {
        by_us(furnisher, space, plan).await;
    }
    let (mut ours, mut tools, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let plan = &rest[round % rest.len()];
        let space = Space::new();
        let start = Instant::now();
        by_us(furnisher, &space, plan).await;
        ours.push(start.elapsed());
        let start = Instant::now();
        furnisher.strip(&plan.host_end).await.unwrap();
        removals.push(start.elapsed());
        let space = Space::new();
        let start = Instant::now();
        by_tool(host, &space, plan);
        tools.push(start.elapsed());
        furnisher.strip(&plan.host_end).await.unwrap();
    }
    let (ours, tools, removal) = (median(ours), median(tools), median(removals));
    println!(
        "{present:>4} links there: furnish {ours:.2} ms, by ip {tools:.2} ms ({:.1} times as long); remove {removal:.1} ms",
        tools / ours
    );
    join_all(busy.iter().map(|plan| furnisher.strip(&plan.host_end))).await;
}

async fn together(furnisher: &Furnisher, plans: &[Plan]) {
    let mut each = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let spaces: Vec<Space> = plans.iter().map(|_| Space::new()).collect();
        let start = Instant::now();
        join_all(plans.iter().zip(&spaces).map(|(plan, space)| by_us(furnisher, space, plan))).await;
        each.0.push(start.elapsed() / u32::try_from(plans.len()).unwrap());
        let start = Instant::now();
        join_all(plans.iter().map(|plan| furnisher.strip(&plan.host_end))).await;
        each.1.push(start.elapsed() / u32::try_from(plans.len()).unwrap());
    }
    println!("{} at once, each: furnish {:.2} ms, remove {:.2} ms", plans.len(), median(each.0), median(each.1));
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (space, network, names) = (Space::new(), network(), Names::of("bench"));
    let host = Host { names: names.clone(), networks: vec![network.clone()], forwarding: Forwarding::Told };
    let (worker, furnisher) = Worker::start_in(space.owned(), host, Limits::default()).unwrap();
    furnisher.mend().await.unwrap();
    let mut book = network.book();
    let plans: Vec<Plan> = (0..400).map(|slot| network.plan(&names, slot, 1, book.allocate(Duration::ZERO).unwrap()).unwrap()).collect();
    for present in [0, 300] {
        with_present(&furnisher, &space, &plans, present).await;
    }
    together(&furnisher, &plans[..TOGETHER]).await;
    worker.stop().await;
}
