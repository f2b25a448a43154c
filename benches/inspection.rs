//! What the inspection of a clean namespace costs, against the same facts read by `nsenter` with `ip`, `nft` and `cat`: over 10 and 200 slots. And what it
//! costs to forget what the host tracks for a slot, as it is done and by walks alone, one for each: for one slot, and for four at once.
//!
//!     cargo bench --bench inspection [-- host]
//!
//! Slots are visited in turns, each at most once in 50 ms, as none is used more often; by the tools, one is visited after every tenth
//! inspection. Needs root, `ip`, `nft` and `nsenter`.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::unwrap_used, reason = "a bench that fails, fails")]

#[path = "../tests/support/space.rs"]
mod space;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspool::netns::inspection::{Baseline, Depth, HostConnections, Verdict, inspect};
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

/// Connections of others on the host.
const OTHERS: [u16; 3] = [0, 10, 1000];
const FORGETTINGS: usize = 200;
const AT_ONCE: u8 = 4;

fn slot_address(slot: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 5, 0, 10 + slot)
}

/// One connection for each port.
fn send(host: &Space, from: Ipv4Addr, ports: std::ops::Range<u16>) {
    host.inside(|| {
        let socket = UdpSocket::bind((from, 0)).unwrap();
        for port in ports {
            // Nobody listens, of which the socket is told with the next one.
            let _ = socket.send_to(b"x", ("10.6.0.1", port));
        }
    });
}

/// The time until all slots are done, each by what is told to be its own.
async fn forget(connections: &[HostConnections], slots: u8, each: usize) -> Duration {
    let begun = Instant::now();
    let forgets = (0..slots).map(|slot| async move {
        let connections = &connections[usize::from(slot) % connections.len()];
        connections.forget(&[IpAddr::V4(slot_address(slot))], WITHIN).await
    });
    for verdict in futures::future::join_all(forgets).await {
        let Verdict::Clean { removed } = verdict else { panic!("{verdict:?}") };
        assert_eq!(removed.iter().map(|leftover| leftover.count).sum::<usize>(), each);
    }
    begun.elapsed()
}

async fn measure_host() {
    let host = Space::new();
    host.run(
        "ip link set lo up; for i in $(seq 9 20); do ip addr add 10.5.0.$i/32 dev lo; done; ip addr add 10.6.0.1/32 dev lo
         nft 'table inet t {
           chain tracks { type filter hook output priority 0; ct state new accept; }
         }'
         echo 600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout",
    );
    let buckets = host.run("cat /proc/sys/net/netfilter/nf_conntrack_buckets");
    println!("forgetting what the host tracks, {} buckets, of which others use a part", buckets.trim());
    let now = [HostConnections::of(host.owned())];
    let walks: Vec<HostConnections> = (0..AT_ONCE).map(|_| HostConnections::walking(host.owned())).collect();
    let mut there = 0;
    for others in OTHERS {
        send(&host, Ipv4Addr::new(10, 5, 0, 9), 20_000 + there..20_000 + others);
        there = others;
        for (slots, each) in [(1, 0), (1, 3), (AT_ONCE, 0)] {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..FORGETTINGS {
                for (side, times) in [&now[..], &walks[..]].into_iter().zip(&mut times) {
                    (0..slots).filter(|_| each > 0).for_each(|slot| send(&host, slot_address(slot), 7000..7000 + each));
                    times.push(forget(side, slots, usize::from(each)).await);
                }
            }
            println!("{others} connections of others, {slots} slots at once with {each} each");
            let [now, walks] = times;
            let now = report("as it is done", now);
            println!("{:>32}: {:.1} times as long", "by a walk for each", report("by a walk for each", walks) / now);
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if !std::env::args().any(|argument| argument == "host") {
        for count in [10, 200] {
            measure(count).await;
        }
    }
    measure_host().await;
}
