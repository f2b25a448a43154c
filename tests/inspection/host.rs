//! What the host tracks for a slot's addresses: all of it goes, and nothing of others. The host is a namespace of the test's own.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nspool::netns::inspection::HostConnections;
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use super::*;

/// The slot's address, a neighbour's, one beyond, and one more of the host's.
struct Four {
    slot: &'static str,
    neighbour: &'static str,
    beyond: &'static str,
    hosts: &'static str,
}

const V4: Four = Four { slot: "10.5.0.2", neighbour: "10.5.0.3", beyond: "10.6.0.2", hosts: "10.6.0.1" };
const V6: Four = Four { slot: "fd05::2", neighbour: "fd05::3", beyond: "fd06::2", hosts: "fd06::1" };

const TO_SLOT: u16 = 7003;
const AWAY: u16 = 7004;
const AS_SLOT: u16 = 7005;
const ZONE: u16 = 7006;
const HALF_ZONE: u16 = 7007;
const AS_HOST: u16 = 7008;
/// That many name the slot's address.
const EACH: usize = 10;
const OTHERS: [u16; 2] = [7101, 7102];
/// More than are read one by one to find those of a single address, and of two.
const CROWD: std::ops::Range<u16> = 20_000..37_000;

/// All addresses on one link, and rules that track, translate and put into zones by the port.
fn host() -> Space {
    let host = Space::new();
    host.run(
        "sysctl -qw net.ipv6.conf.lo.accept_dad=0; ip link set lo up
         for ip in 10.5.0.2 10.5.0.3 10.6.0.1 10.6.0.2; do ip addr add $ip/32 dev lo; done
         for ip in fd05::2 fd05::3 fd06::1 fd06::2; do ip addr add $ip/128 dev lo nodad; done
         until [ $(ip -6 route show table local | grep -c 'local fd0') -eq 4 ]; do sleep 0.01; done
         nft 'table inet t {
           chain zones { type filter hook output priority -300; udp dport 7006 ct zone set 5; udp dport 7007 ct original zone set 6; }
           chain tracks { type filter hook output priority 0; ct state new accept; }
           chain out { type nat hook output priority -100
             udp dport 7003 meta nfproto ipv4 dnat ip to 10.5.0.2; udp dport 7003 meta nfproto ipv6 dnat ip6 to fd05::2
             udp dport 7004 meta nfproto ipv4 dnat ip to 10.5.0.3; udp dport 7004 meta nfproto ipv6 dnat ip6 to fd05::3; }
           chain post { type nat hook postrouting priority 100
             udp dport 7005 meta nfproto ipv4 snat ip to 10.5.0.2; udp dport 7005 meta nfproto ipv6 snat ip6 to fd05::2
             udp dport 7008 meta nfproto ipv4 snat ip to 10.6.0.1; udp dport 7008 meta nfproto ipv6 snat ip6 to fd06::1; }
         }'
         for timeout in udp_timeout udp_timeout_stream icmp_timeout icmpv6_timeout tcp_timeout_close tcp_timeout_time_wait; do
           echo 600 > /proc/sys/net/netfilter/nf_conntrack_$timeout; done",
    );
    host
}

fn send(from: &str, to: &str, ports: impl IntoIterator<Item = u16>) {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let socket = UdpSocket::bind((from, 0)).unwrap();
    for port in ports {
        // Nobody listens, of which the socket is told with the next one.
        let _ = socket.send_to(b"x", (to, port));
    }
}

fn connect(from: &str, to: &str) {
    let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
    let listener = TcpListener::bind(address(to)).unwrap();
    let family = if from.contains(':') { AddressFamily::INET6 } else { AddressFamily::INET };
    let tcp = socket(family, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&tcp, &address(from)).unwrap();
    rustix::net::connect(&tcp, &listener.local_addr().unwrap()).unwrap();
}

fn ping(from: &str, to: &str) {
    let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
    let (family, protocol, echo) = if from.contains(':') {
        (AddressFamily::INET6, ipproto::ICMPV6, [128, 0, 0, 0, 0x12, 0x34, 0, 1])
    } else {
        (AddressFamily::INET, ipproto::ICMP, [8, 0, 0xe5, 0xca, 0x12, 0x34, 0, 1])
    };
    let raw = socket(family, SocketType::RAW, Some(protocol)).unwrap();
    rustix::net::bind(&raw, &address(from)).unwrap();
    rustix::net::sendto(&raw, &echo, rustix::net::SendFlags::empty(), &address(to)).unwrap();
}

/// One entry of each sort. All but [`OTHERS`] name the slot's address somewhere.
fn traffic(host: &Space, of: &Four) {
    host.inside(|| {
        send(of.slot, of.beyond, [7001]);
        send(of.beyond, of.slot, [7002]);
        send(of.beyond, of.hosts, [TO_SLOT]);
        send(of.beyond, of.slot, [AWAY]);
        send(of.neighbour, of.beyond, [AS_SLOT]);
        send(of.slot, of.beyond, [ZONE, HALF_ZONE, AS_HOST]);
        send(of.neighbour, of.beyond, [OTHERS[0]]);
        send(of.beyond, of.neighbour, [OTHERS[1]]);
        connect(of.slot, of.beyond);
        ping(of.slot, of.beyond);
    });
}

/// By the kernel's own list.
fn tracked(host: &Space) -> Vec<String> {
    host.run("cat /proc/net/nf_conntrack").lines().map(str::to_owned).collect()
}

fn naming<'a>(entries: &'a [String], ip: &str) -> Vec<&'a String> {
    let all = ip.parse::<IpAddr>().unwrap();
    let is = |word: &str| word.split_once('=').and_then(|(_, ip)| ip.parse::<IpAddr>().ok()) == Some(all);
    entries.iter().filter(|entry| entry.split_whitespace().any(is)).collect()
}

async fn forgotten(host: &Space, addresses: &[&str]) -> usize {
    forgotten_by(&HostConnections::of(host.owned()), addresses).await
}

async fn forgotten_by(connections: &HostConnections, addresses: &[&str]) -> usize {
    let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    match connections.forget(&addresses, 6 * WITHIN).await {
        Verdict::Clean { removed } => removed.iter().map(|leftover| leftover.count).sum(),
        Verdict::Dirty(differences) => panic!("dirty: {}", lines(&differences)),
    }
}

/// `crowd` decides how the kernel is asked, `of` whether by glances as well.
async fn only_the_slots_are_forgotten(crowd: std::ops::Range<u16>, of: fn(OwnedFd) -> HostConnections) {
    let host = host();
    let connections = of(host.owned());
    traffic(&host, &V4);
    traffic(&host, &V6);
    host.inside(|| send(V4.neighbour, V4.beyond, crowd.clone()));
    for (of, other) in [(&V4, &V6), (&V6, &V4)] {
        let before = tracked(&host);
        let (of_slot, of_other) = (naming(&before, of.slot).len(), naming(&before, other.slot).len());
        assert_eq!(of_slot, EACH, "or this tests nothing: {:#?}", naming(&before, of.slot));
        assert_eq!(forgotten_by(&connections, &[of.slot]).await, of_slot);
        let after = tracked(&host);
        assert_eq!(naming(&after, of.slot), Vec::<&String>::new());
        assert_eq!(naming(&after, other.slot).len(), of_other, "{:#?}", naming(&after, other.slot));
        assert_eq!(after.len(), before.len() - of_slot, "nothing else is gone");
        for port in OTHERS {
            let is = |entry: &&&String| entry.contains(&format!("dport={port} "));
            assert_eq!(naming(&after, of.neighbour).iter().filter(is).count(), 1, "{port}");
        }
        assert_eq!(forgotten_by(&connections, &[of.slot]).await, 0);
    }
    traffic(&host, &V4);
    traffic(&host, &V6);
    assert_eq!(forgotten_by(&connections, &[V4.slot, V6.slot]).await, 2 * EACH, "both at once");
    assert!(tracked(&host).len() >= crowd.len() + 4);
}

#[tokio::test]
async fn on_a_host_with_few_connections() {
    only_the_slots_are_forgotten(0..0, HostConnections::of).await;
}

#[tokio::test]
async fn on_a_host_with_many_connections() {
    only_the_slots_are_forgotten(CROWD, HostConnections::of).await;
}

#[tokio::test]
async fn on_a_kernel_without_the_file() {
    only_the_slots_are_forgotten(0..0, HostConnections::walking).await;
}

/// Few enough for the file's first page, up to more than fit: each time all of one address, and nothing else.
#[tokio::test]
async fn whatever_number_comes_in_one_read() {
    let host = host();
    let connections = HostConnections::of(host.owned());
    for others in 0..40_u16 {
        host.inside(|| {
            send(V4.slot, V4.beyond, [7001, ZONE]);
            connect(V4.slot, V4.beyond);
            ping(V4.slot, V4.beyond);
        });
        if others % 2 == 1 {
            // Which the file does not tell well enough to remove them by that.
            host.inside(|| send(V4.slot, V4.beyond, [HALF_ZONE]));
            host.inside(|| send(V4.beyond, V4.hosts, [TO_SLOT]));
        }
        let there = naming(&tracked(&host), V4.slot).len();
        assert_eq!(there, if others % 2 == 1 { 6 } else { 4 });
        assert_eq!(forgotten_by(&connections, &[V4.slot]).await, there, "with {others} others");
        let after = tracked(&host);
        assert_eq!((naming(&after, V4.slot).len(), after.len()), (0, usize::from(others)), "{after:#?}");
        host.inside(|| send(V4.neighbour, V4.beyond, [30_000 + others]));
    }
}

/// What is there when it is asked for is gone afterwards, whatever comes and goes meanwhile, and in whichever way it is looked for.
#[tokio::test]
async fn nothing_is_missed_while_others_come_and_go() {
    let (host, stop) = (Arc::new(host()), Arc::new(AtomicBool::new(false)));
    // A pair that is closed is forgotten at once when it begins anew.
    let storms = [V4.neighbour, V4.hosts].map(|from| {
        let (host, stop) = (Arc::clone(&host), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                host.inside(|| send(from, V4.beyond, 7200..7205));
                host.run(&format!("conntrack -D -s {from} >/dev/null 2>&1 || true"));
            }
        })
    });
    let connections = HostConnections::of(host.owned());
    for _ in 0..100 {
        host.inside(|| send(V4.slot, V4.beyond, 7300..7303));
        assert_eq!(forgotten_by(&connections, &[V4.slot]).await, 3);
        assert_eq!(naming(&tracked(&host), V4.slot), Vec::<&String>::new());
    }
    stop.store(true, Ordering::Relaxed);
    for storm in storms {
        storm.join().unwrap();
    }
}

/// Looks are shared, and each gets what is its own.
#[tokio::test]
async fn many_slots_at_once() {
    let host = host();
    let slots: Vec<String> = (10..42).map(|last| format!("10.5.0.{last}")).collect();
    host.run(&slots.iter().map(|ip| format!("ip addr add {ip}/32 dev lo\n")).collect::<String>());
    for connections in [HostConnections::of(host.owned()), HostConnections::walking(host.owned())] {
        host.inside(|| {
            send(V4.neighbour, V4.beyond, OTHERS);
            for (slot, count) in slots.iter().zip(1..) {
                send(slot, V4.beyond, 7400..7400 + count);
            }
        });
        let all = futures::future::join_all(slots.iter().map(|slot| async { forgotten_by(&connections, &[slot]).await })).await;
        assert_eq!(all, (1..=slots.len()).collect::<Vec<_>>());
        let after = tracked(&host);
        assert_eq!(naming(&after, V4.neighbour).len(), after.len());
        assert!(after.len() >= OTHERS.len());
    }
}

/// Who comes later does not get what was seen before: its entry came after that.
#[tokio::test]
async fn a_look_that_has_begun_serves_nobody_who_comes_later() {
    let host = host();
    for connections in [HostConnections::of(host.owned()), HostConnections::walking(host.owned())] {
        for number in 0..50 {
            let late = async {
                // Somewhere in the midst of the other one's.
                tokio::time::sleep(Duration::from_micros(200 * (number % 10))).await;
                host.inside(|| send(V4.slot, V4.beyond, [7001]));
                forgotten_by(&connections, &[V4.slot]).await
            };
            host.inside(|| send(V4.neighbour, V4.beyond, [7001]));
            assert_eq!(tokio::join!(forgotten_by(&connections, &[V4.neighbour]), late), (1, 1));
        }
    }
}

#[tokio::test]
async fn a_flood_of_one_tenant() {
    let host = host();
    host.inside(|| send(V4.slot, V4.beyond, CROWD));
    host.inside(|| send(V4.neighbour, V4.beyond, OTHERS));
    assert_eq!(forgotten(&host, &[V4.slot]).await, CROWD.len());
    assert_eq!(tracked(&host).len(), OTHERS.len());
}

/// As some programs write an IPv4 address.
#[tokio::test]
async fn an_ipv4_address_inside_an_ipv6_one() {
    let host = host();
    traffic(&host, &V4);
    assert_eq!(forgotten(&host, &["::ffff:10.5.0.2"]).await, EACH);
}

#[tokio::test]
async fn where_there_is_nothing_nothing_is_forgotten() {
    assert_eq!(forgotten(&Space::new(), &[V4.slot, V6.slot]).await, 0);
    let host = host();
    traffic(&host, &V4);
    let before = tracked(&host).len();
    assert_eq!(forgotten(&host, &[]).await, 0);
    assert_eq!(forgotten(&host, &["10.5.0.20", "10.5.0.1", "fd05::2", "0.0.0.0", "::"]).await, 0);
    assert_eq!(tracked(&host).len(), before);
}

#[tokio::test]
async fn what_comes_again_each_time_is_not_removed() {
    let (host, stop, slot) = (Arc::new(host()), Arc::new(AtomicBool::new(false)), [V4.slot.parse().unwrap()]);
    let connections = HostConnections::of(host.owned());
    let floods = [(); 2].map(|()| {
        let (host, stop) = (Arc::clone(&host), Arc::clone(&stop));
        std::thread::spawn(move || {
            host.inside(|| {
                let socket = UdpSocket::bind((V4.beyond, 0)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let _ = socket.send_to(b"x", (V4.slot, 7002));
                }
            });
        })
    });
    // Those who send may be without a processor for the time of a look.
    let until = Instant::now() + 4 * WITHIN;
    let mut dirty = None;
    while dirty.is_none() && Instant::now() < until {
        dirty = Some(connections.forget(&slot, WITHIN).await).filter(|verdict| !verdict.is_clean());
    }
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.join().unwrap();
    }
    let Some(Verdict::Dirty(differences)) = dirty else { panic!("clean, while it comes again and again") };
    assert_eq!(differences.iter().map(|difference| difference.kind).collect::<Vec<_>>(), [Kind::NotRemoved]);
    let line = lines(&differences);
    assert!(line.starts_with("not_removed conntrack of the host: ") && line.ends_with("from 10.6.0.2 to 10.5.0.2"), "{line}");
    assert!(forgotten(&host, &[V4.slot]).await > 0);
    assert_eq!(forgotten(&host, &[V4.slot]).await, 0);
}

#[tokio::test]
async fn what_is_late_or_cannot_be_asked_is_dirty() {
    let host = host();
    traffic(&host, &V4);
    let slot = [V4.slot.parse().unwrap()];
    let late = HostConnections::of(host.owned()).forget(&slot, Duration::from_micros(20)).await;
    assert!(matches!(&late, Verdict::Dirty(differences) if differences[0].kind == Kind::Late), "{late:?}");
    let file = std::fs::File::open("/dev/null").unwrap();
    let unreadable = HostConnections::of(file.into()).forget(&slot, WITHIN).await;
    assert!(matches!(&unreadable, Verdict::Dirty(differences) if differences[0].kind == Kind::Unreadable), "{unreadable:?}");
}
