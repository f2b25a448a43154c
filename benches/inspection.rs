//! What the inspection of a clean namespace costs, against the same facts read by `nsenter` with `ip`, `nft` and `cat`: over 10 and 200 slots.
//!
//!     cargo bench --bench inspection
//!
//! Slots are visited in turns, each at most once in 50 ms, as none is used more often; by the tools, one is visited after every tenth
//! inspection. Needs root, `ip`, `nft` and `nsenter`.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that fails, fails")]

#[path = "../tests/support/space.rs"]
#[expect(dead_code, reason = "a test uses the rest")]
mod space;

use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspool::netns::inspection::{Baseline, Depth, Verdict, inspect};
use space::Space;

const INSPECTIONS: usize = 2000;
const BETWEEN_TOOLS: usize = 10;
const REST: Duration = Duration::from_millis(50);
const WITHIN: Duration = Duration::from_secs(5);

/// The same facts, by as few programs as it takes.
const BY_TOOLS: &str = "set -e
ip -d -batch - <<'END'
link show
addr show
route show table all
rule show
nexthop show
neigh show nud all
neigh show proxy
ntable show
maddr show
xfrm state
xfrm policy
tcp_metrics show
END
ip -6 -batch - <<'END'
route show table all
rule show
END
tc qdisc show
bridge fdb show
nft list ruleset
cd /proc/net
cat sockstat tcp tcp6 udp udp6 raw raw6 unix netlink packet ip_tables_names ip6_tables_names /proc/sys/net/netfilter/nf_conntrack_count";

struct Slot {
    space: Space,
    baseline: Arc<Baseline>,
    visited: Instant,
    _beyond: Space,
}

async fn slot() -> Slot {
    let (space, beyond) = (Space::new(), Space::new());
    let peer = format!("/proc/{}/fd/{}", std::process::id(), beyond.fd().as_raw_fd());
    space.run(&format!("ip link set lo up; ip link add eth0 type veth peer name up0 netns {peer}"));
    beyond.run("ip link set up0 up");
    space.run(
        "ip link set eth0 addrgenmode none; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0 nodad
         ip link set eth0 up; ip route add default via 10.9.0.1; ip route add default via fd09::1
         until ip link show eth0 | grep -q LOWER_UP; do sleep 0.01; done; sleep 0.1",
    );
    let baseline = Baseline::take(space.fd(), Depth::Usual, WITHIN).await.unwrap();
    Slot { space, baseline, visited: Instant::now(), _beyond: beyond }
}

fn by_tools(space: &Space) {
    let net = format!("--net=/proc/{}/fd/{}", std::process::id(), space.fd().as_raw_fd());
    let done = Command::new("nsenter").args([&net, "sh", "-c", BY_TOOLS]).stdout(Stdio::null()).status().unwrap();
    assert!(done.success());
}

fn report(what: &str, mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:>32}: p50 {:.3} ms, p90 {:.3}, p99 {:.3}, n = {}", at(50), at(90), at(99), times.len());
    at(50)
}

async fn measure(count: usize) {
    let mut slots = Vec::new();
    for _ in 0..count {
        slots.push(slot().await);
    }
    // What the kernel does by itself after a link came up is over then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (mut clean, mut swept, mut tools) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..INSPECTIONS {
        let slot = &mut slots[turn % count];
        tokio::time::sleep_until((slot.visited + REST).into()).await;
        let begun = Instant::now();
        match inspect(slot.space.fd(), &slot.baseline, Depth::Usual, WITHIN).await {
            Verdict::Clean { removed } if removed.is_empty() => clean.push(begun.elapsed()),
            // Neighbours of the kernel's own.
            Verdict::Clean { .. } => swept.push(begun.elapsed()),
            Verdict::Dirty(differences) => panic!("{differences:?}"),
        }
        if turn % BETWEEN_TOOLS == 0 {
            let begun = Instant::now();
            by_tools(&slot.space);
            tools.push(begun.elapsed());
        }
        slot.visited = Instant::now();
    }
    println!("{count} slots");
    let ours = report("inspected", clean);
    if !swept.is_empty() {
        report("with leftovers to be removed", swept);
    }
    let tools = report("by nsenter, ip, tc, nft, cat", tools);
    println!("{:>32}: {:.0} times as long", "the tools", tools / ours);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for count in [10, 200] {
        measure(count).await;
    }
}
