//! What comes about by and by: it is removed, and a second inspection finds nothing more.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};

use super::*;

/// A connection from one to the other, closed by the one that made it, which is what leaves TIME-WAIT there.
pub(crate) fn exchange(from: &Space, to: &Space, at: &str) {
    let address: std::net::IpAddr = at.parse().unwrap();
    let listener = to.inside(|| TcpListener::bind((address, 0))).unwrap();
    let mut client = from.inside(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap();
    let mut server = listener.accept().unwrap().0;
    for _ in 0..3 {
        client.write_all(b"question").unwrap();
        server.read_exact(&mut [0; 8]).unwrap();
        server.write_all(b"answer").unwrap();
        client.read_exact(&mut [0; 6]).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
    drop(server);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[tokio::test]
async fn what_a_connection_leaves() {
    for (at, inside) in [("10.9.0.1", false), ("fd09::1", false), ("127.0.0.1", true), ("::1", true)] {
        let rig = Rig::new().await;
        let to = if inside { &rig.slot } else { &rig.beyond };
        exchange(&rig.slot, to, at);
        assert!(rig.slot.run("ss -Htan state time-wait").lines().count() == 1, "{at}: or this tests nothing");
        let removed = rig.removed().await;
        assert!(has(&removed, LeftoverKind::Connection), "{at}: {removed:?}");
        if !inside {
            assert!(has(&removed, LeftoverKind::Neighbour), "{at}: {removed:?}");
            assert!(has(&removed, LeftoverKind::TcpMetrics), "{at}: {removed:?}");
        }
        // But for the groups that the kernel itself reports to.
        let left = || rig.slot.run("ss -Htan; ip tcp_metrics show; ip neigh show nud all | grep -v NOARP || true");
        if !left().is_empty() {
            // The other side may have asked for the slot's address since.
            rig.removed().await;
        }
        assert_eq!(left(), "", "{at}");
        rig.assert_clean(at).await;
    }
}

#[tokio::test]
async fn connections_that_nobody_has_any_more() {
    let rig = Rig::new().await;
    let listener = rig.beyond.inside(|| TcpListener::bind("10.9.0.1:0")).unwrap();
    let client = rig.slot.inside(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap();
    let _unread = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    while (&client).write(&[0; 65536]).is_ok() {}
    drop(client);
    assert!(rig.slot.run("ss -Htan").contains("FIN-WAIT-1"), "or this tests nothing");
    assert!(has(&rig.removed().await, LeftoverKind::Connection));
    assert_eq!(rig.slot.run("ss -Htan"), "");
    rig.assert_clean("the first").await;
}

#[tokio::test]
async fn a_thousand_connections() {
    let rig = Rig::new().await;
    for _ in 0..1000 {
        exchange(&rig.slot, &rig.slot, "127.0.0.1");
    }
    let removed = rig.removed().await;
    assert!(removed.iter().any(|leftover| leftover.kind == LeftoverKind::Connection && leftover.count >= 1000), "{removed:?}");
    rig.assert_clean("the first").await;
}

#[tokio::test]
async fn neighbours_in_every_state() {
    let rig = Rig::new().await;
    rig.slot.run(
        "for state in reachable stale delay probe failed noarp incomplete; do n=$((n + 1))
           ip neigh add 10.9.0.1$n lladdr 02:00:00:00:00:66 nud $state dev eth0; done
         ip neigh add fd09::77 lladdr 02:00:00:00:00:66 nud stale dev eth0",
    );
    let socket = rig.slot.inside(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.send_to(b"x", "10.9.0.99:7").unwrap();
    drop(socket);
    assert!(has(&rig.removed().await, LeftoverKind::Neighbour));
    rig.assert_clean("the first").await;
    // The kernel enters groups that a link listens to when it reports them, a second or two after the link is up.
    let left = rig.slot.run("ip neigh show nud all");
    assert_eq!(left.lines().find(|line| !line.starts_with("ff02::")), None, "{left}");
}

#[tokio::test]
async fn tracked_connections() {
    let rules = "nft 'table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }'";
    let rig = Rig::with(rules, Depth::Usual).await;
    exchange(&rig.slot, &rig.beyond, "10.9.0.1");
    assert_ne!(rig.slot.run("cat /proc/sys/net/netfilter/nf_conntrack_count"), "0\n", "or this tests nothing");
    assert!(has(&rig.removed().await, LeftoverKind::Conntrack));
    assert_eq!(rig.slot.run("cat /proc/sys/net/netfilter/nf_conntrack_count"), "0\n");
    rig.assert_clean("the first").await;
}

#[tokio::test]
async fn what_a_path_was_said_to_carry() {
    let rig = Rig::new().await;
    let far = Space::new();
    let peer = format!("/proc/{}/fd/{}", std::process::id(), far.fd().as_raw_fd());
    rig.beyond.run(&format!(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
         ip link add far0 mtu 1300 type veth peer name near0 mtu 1300 netns {peer}
         ip addr add 10.8.0.1/24 dev far0; ip addr add fd08::1/64 dev far0 nodad; ip link set far0 up"
    ));
    far.run(
        "ip link set near0 up; ip addr add 10.8.0.2/24 dev near0; ip addr add fd08::2/64 dev near0 nodad
         ip route add default via 10.8.0.1; ip route add default via fd08::1",
    );
    // The baseline is older than that, and none of it is inside.
    for (from, to) in [("10.9.0.2:0", "10.8.0.2:7"), ("[fd09::2]:0", "[fd08::2]:7")] {
        let socket = rig.slot.inside(|| UdpSocket::bind(from)).unwrap();
        socket.connect(to).unwrap();
        let until = std::time::Instant::now() + WITHIN;
        while !rig.slot.run("ip route show cache; ip -6 route show cache").contains("mtu 1300") {
            assert!(std::time::Instant::now() < until, "{to}: or this tests nothing");
            // Refused once the path's MTU is known.
            let _ = socket.send(&[0; 1400]);
        }
        drop(socket);
        let removed = rig.removed().await;
        assert!(has(&removed, LeftoverKind::LearntRoute), "{to}: {removed:?}");
        assert_eq!(rig.slot.run("ip route show cache; ip -6 route show cache"), "", "{to}");
        rig.assert_clean(to).await;
    }
}

#[tokio::test]
async fn nothing_is_removed_from_what_is_dirty() {
    let rig = Rig::new().await;
    exchange(&rig.slot, &rig.beyond, "10.9.0.1");
    rig.slot.run("ip addr add 10.9.0.7/24 dev eth0");
    rig.dirt().await;
    assert_eq!(rig.slot.run("ss -Htan state time-wait").lines().count(), 1);
}
