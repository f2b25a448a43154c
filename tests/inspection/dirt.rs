//! Structure: each deed of a joiner with NET_ADMIN, or a privileged one, is found by its own name.

use super::*;

/// A deed, its name, and what the line says of it.
async fn each_is_found(deeds: &[(&str, Kind, &str)]) {
    for (deed, kind, said) in deeds {
        let rig = Rig::new().await;
        rig.assert_clean(&format!("before {deed}")).await;
        rig.slot.run(deed);
        let found = rig.dirt().await;
        let by_name = found.iter().filter(|difference| difference.kind == *kind).map(ToString::to_string).collect::<Vec<_>>();
        assert!(by_name.iter().any(|line| line.contains(said)), "{deed}: {}", lines(&found));
        // What the kernel does by and by may come or go meanwhile.
        let again: Vec<String> = rig.dirt().await.iter().map(ToString::to_string).collect();
        assert!(by_name.iter().all(|line| again.contains(line)), "{deed}: nothing was repaired, but {by_name:?} is {again:?}");
    }
}

#[tokio::test]
async fn links() {
    each_is_found(&[
        ("ip link set eth0 mtu 1400", Kind::Link, "link eth0 mtu: was 1500, is 1400"),
        ("ip link set lo mtu 9000", Kind::Link, "link lo mtu"),
        ("ip link set eth0 address 02:00:00:00:00:99", Kind::Link, "link eth0 address: was 02:00:00:00:00:02, is 02:00:00:00:00:99"),
        ("ip link set eth0 alias mine", Kind::Link, "link eth0 alias: was not there, is mine"),
        ("ip link set lo down", Kind::Link, "link lo flags: was UP,LOOPBACK"),
        ("ip link set eth0 promisc on", Kind::Link, "PROMISC"),
        ("ip link set eth0 allmulticast on", Kind::Link, "ALLMULTI"),
        ("ip link set eth0 arp off", Kind::Link, "NOARP"),
        ("ip link set eth0 txqueuelen 7", Kind::Link, "txqueuelen: was 1000, is 7"),
        ("ip link set eth0 group 7", Kind::Link, "group: was 0, is 7"),
        ("ip link property add dev eth0 altname other", Kind::Link, "other names"),
        (
            "ip link set eth0 down; ip link set eth0 name eth7; ip link set eth7 up
             until ip link show eth7 | grep -q 'LOWER_UP.* state UP'; do sleep 0.01; done",
            Kind::Link,
            "eth0 name: was eth0, is eth7",
        ),
        ("ip link set eth0 addrgenmode eui64", Kind::Link, "IPv6 attribute 8"),
        ("ip link set eth0 gso_max_size 4096", Kind::Link, "gso_max_size"),
        ("ip link add b0 type bridge", Kind::Link, "b0: was not there, is index"),
        ("ip link add b0 type bridge; ip link set eth0 master b0", Kind::Link, "eth0 master"),
        ("ip link add v0 type veth peer name v1", Kind::Link, "link v1: was not there"),
        ("ip link add m0 link eth0 type macvlan", Kind::Link, "a macvlan"),
        ("ip link add x0 type vxlan id 7 dstport 4789 local 10.9.0.2 remote 10.9.0.1", Kind::Link, "a vxlan"),
        ("ip tuntap add t0 mode tun", Kind::Link, "a tun"),
        ("ip link del eth0", Kind::Link, "link eth0: was index"),
        // In the place of what was there.
        (
            "ip link del eth0; ip link add eth0 address 02:00:00:00:00:02 type veth peer name up0; ip link set eth0 up",
            Kind::Link,
            "link eth0",
        ),
    ])
    .await;
}

#[tokio::test]
async fn addresses_and_routes() {
    each_is_found(&[
        ("ip addr add 10.9.0.7/24 dev eth0", Kind::Address, "address 10.9.0.7/24 dev eth0: was not there"),
        ("ip addr del 10.9.0.2/24 dev eth0", Kind::Address, "address 10.9.0.2/24 dev eth0: was scope 0"),
        ("ip addr add 127.0.0.9/32 dev lo", Kind::Address, "127.0.0.9/32 dev lo"),
        ("ip addr add fd09::7/64 dev eth0 nodad", Kind::Address, "fd09::7/64 dev eth0"),
        ("ip addrlabel add prefix fd09:7::/32 label 77", Kind::AddressLabel, "address_label fd09:7::/32: was not there, is label 77"),
        ("ip addr change 10.9.0.2/24 dev eth0 valid_lft 1000 preferred_lft 1000", Kind::Address, "flags"),
        ("ip route add 10.77.0.0/16 via 10.9.0.1", Kind::Route, "10.77.0.0/16 table 254"),
        ("ip route add 10.77.0.0/16 via 10.9.0.1 table 100", Kind::Route, "10.77.0.0/16 table 100"),
        ("ip route add 10.77.0.0/16 via 10.9.0.1 table 70000", Kind::Route, "10.77.0.0/16 table 70000"),
        ("ip route add local 10.77.0.0/16 dev lo table local", Kind::Route, "10.77.0.0/16 table 255"),
        ("ip route add blackhole 10.77.0.0/16", Kind::Route, "10.77.0.0/16"),
        ("ip route change default via 10.9.0.9", Kind::Route, "via 10.9.0.9"),
        ("ip route change default via 10.9.0.1 mtu lock 600", Kind::Route, "metrics"),
        ("ip route del default", Kind::Route, "default table 254 family 2 type 1: was"),
        ("ip route add fd77::/64 via fd09::1", Kind::Route, "fd77::/64"),
        ("ip route add fd77::/64 via fd09::1 table 100", Kind::Route, "fd77::/64 table 100"),
        ("ip rule add from 10.9.0.2 table 100", Kind::Rule, "from 10.9.0.2"),
        ("ip -6 rule add from fd09::2 table 100", Kind::Rule, "from fd09::2"),
        ("ip rule del table default", Kind::Rule, "is gone"),
        ("ip nexthop add id 7 via 10.9.0.1 dev eth0", Kind::Nexthop, "nexthop 7"),
    ])
    .await;
}

#[tokio::test]
async fn neighbours_and_multicast() {
    each_is_found(&[
        ("ip neigh add 10.9.0.1 lladdr 02:00:00:00:00:66 nud permanent dev eth0", Kind::Neighbour, "10.9.0.1 dev eth0"),
        ("ip neigh add fd09::1 lladdr 02:00:00:00:00:66 nud permanent dev eth0", Kind::Neighbour, "lladdr 02:00:00:00:00:66"),
        ("ip neigh add proxy 10.9.0.7 dev eth0", Kind::Neighbour, "10.9.0.7 dev eth0"),
        ("ip neigh add proxy fd09::7 dev eth0", Kind::Neighbour, "fd09::7 dev eth0"),
        ("ip ntable change name arp_cache dev eth0 base_reachable 1000", Kind::NeighbourSettings, "arp_cache dev eth0"),
        ("bridge fdb add 02:00:00:00:00:77 dev eth0 self", Kind::ForwardingEntry, "02:00:00:00:00:77 dev eth0"),
        ("ip maddr add 33:33:00:00:00:77 dev eth0", Kind::Multicast, "333300000077 dev eth0"),
        ("ip addr add 239.1.2.3/32 dev eth0 autojoin", Kind::Multicast, "239.1.2.3 dev eth0"),
    ])
    .await;
}

#[tokio::test]
async fn queueing_and_filters() {
    each_is_found(&[
        ("tc qdisc add dev eth0 root tbf rate 1mbit burst 10k latency 50ms", Kind::Qdisc, "tbf dev eth0"),
        ("tc qdisc add dev lo root handle 1: htb", Kind::Qdisc, "htb dev lo"),
        (
            "tc qdisc add dev eth0 root handle 1: htb; tc class add dev eth0 parent 1: classid 1:1 htb rate 1mbit",
            Kind::Filter,
            "htb dev eth0",
        ),
        ("tc qdisc add dev eth0 clsact", Kind::Qdisc, "clsact dev eth0"),
        ("tc qdisc add dev eth0 ingress", Kind::Qdisc, "ingress dev eth0"),
        ("tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress u32 match u32 0 0 flowid 1:1", Kind::Filter, "u32 dev eth0"),
    ])
    .await;
}

/// Filters in a queue that was there from the beginning, which tells nothing by itself.
#[tokio::test]
async fn a_filter_in_a_queue_of_the_baselines() {
    let rig =
        Rig::with("tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress prio 1 u32 match u32 0 0 flowid 1:1", Depth::Usual).await;
    rig.assert_clean("nothing").await;
    rig.slot.run("tc filter add dev eth0 egress u32 match u32 0 0 flowid 1:1");
    assert!(rig.dirt().await.iter().all(|difference| difference.kind == Kind::Filter));
}

#[tokio::test]
async fn firewalls() {
    each_is_found(&[
        ("nft add table inet mine", Kind::Nftables, "nftables table inet mine"),
        ("nft 'table ip mine { chain c { type filter hook output priority 0; drop; }; }'", Kind::Nftables, "rule in ip mine c"),
        ("nft 'table ip mine { set s { type ipv4_addr; elements = { 10.0.0.1 } ; }; }'", Kind::Nftables, "elements of ip mine s"),
        (
            "nft 'table netdev mine { chain c { type filter hook ingress device eth0 priority 0; }; }'",
            Kind::Nftables,
            "chain netdev mine c",
        ),
        ("iptables-nft -A OUTPUT -j DROP", Kind::Nftables, "chain ip filter OUTPUT"),
        ("ip6tables-nft -A OUTPUT -j DROP", Kind::Nftables, "ip6 filter"),
        ("iptables-legacy -A OUTPUT -j DROP", Kind::LegacyTable, "legacy_table iptables filter"),
        ("iptables-legacy -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 7", Kind::LegacyTable, "iptables nat"),
        ("ip6tables-legacy -t mangle -L", Kind::LegacyTable, "ip6tables mangle"),
        ("arptables-nft -A INPUT -j DROP", Kind::Nftables, "arp"),
        ("ipset create mine hash:ip; ipset add mine 10.0.0.1", Kind::NetfilterObject, "netfilter_object mine"),
    ])
    .await;
}

/// As where an engine keeps rules for its resolver inside.
#[tokio::test]
async fn rules_of_the_baselines_may_count_but_not_change() {
    for (rules, change, kind) in [
        ("iptables-legacy -t nat -A OUTPUT -d 10.9.0.1 -p tcp -j ACCEPT", "iptables-legacy -t nat -A OUTPUT -j ACCEPT", Kind::LegacyTable),
        ("ip6tables-legacy -A OUTPUT -m comment --comment x -j ACCEPT", "ip6tables-legacy -P OUTPUT DROP", Kind::LegacyTable),
        ("iptables-legacy -A OUTPUT -m limit --limit 1000/s -j ACCEPT", "iptables-legacy -R OUTPUT 1 -j ACCEPT", Kind::LegacyTable),
        ("iptables-nft -A OUTPUT -p tcp -j ACCEPT", "iptables-nft -D OUTPUT 1", Kind::Nftables),
        ("nft 'table ip t { chain c { type filter hook output priority 0; counter; }; }'", "nft flush table ip t", Kind::Nftables),
    ] {
        let rig = Rig::with(rules, Depth::Usual).await;
        rig.assert_clean(rules).await;
        for _ in 0..3 {
            leftovers::exchange(&rig.slot, &rig.slot, "127.0.0.1");
            leftovers::exchange(&rig.slot, &rig.slot, "::1");
        }
        rig.removed().await;
        rig.slot.run(change);
        assert_eq!(rig.dirt().await[0].kind, kind, "{change}");
    }
}

#[tokio::test]
async fn ipsec_and_protocols() {
    // Kernels without ESP have associations that are being made, too.
    let state = "ip xfrm state allocspi src 10.9.0.2 dst 10.9.0.1 proto esp mode tunnel min 7 max 7";
    each_is_found(&[
        (state, Kind::XfrmState, "to 10.9.0.1 spi 0x7"),
        ("ip xfrm policy add dir out src 10.9.0.2 dst 10.9.0.1 action block", Kind::XfrmPolicy, "of direction 1"),
        (
            "ip xfrm policy setdefault in block || ip xfrm policy add dir in src 10.9.0.2 dst 10.9.0.1 action block",
            Kind::XfrmPolicy,
            "xfrm_policy",
        ),
        ("ip mptcp endpoint add 10.9.0.2 dev eth0 signal", Kind::Protocol, "MPTCP endpoint"),
        ("ip mptcp limits set subflows 5", Kind::Protocol, "MPTCP limits"),
        ("ip sr tunsrc set fd09::2", Kind::Protocol, "source of segment routing"),
    ])
    .await;
}

#[tokio::test]
async fn settings_that_a_privileged_one_writes() {
    let rig = Rig::with("", Depth::Privileged).await;
    let full = || inspect(rig.slot.fd(), &rig.baseline, Depth::Privileged, WITHIN);
    assert!(full().await.is_clean());
    rig.slot.run("sysctl -qw net.ipv4.ip_unprivileged_port_start=7");
    let Verdict::Dirty(found) = full().await else { panic!("clean") };
    assert_eq!(lines(&found), "sysctl net.ipv4.ip_unprivileged_port_start: was 1024, is 7");
    rig.slot.run("sysctl -qw net.ipv4.ip_unprivileged_port_start=1024");
    assert!(full().await.is_clean());
    // Of a link, also without.
    rig.slot.run("sysctl -qw net.ipv4.conf.eth0.arp_ignore=2 net.ipv6.conf.eth0.accept_ra=0");
    let found = lines(&rig.dirt().await);
    assert!(found.contains("link eth0 IPv4 setting 19: was 0, is 2") && found.contains("link eth0 IPv6 setting"), "{found}");

    let rig = Rig::new().await;
    let Verdict::Dirty(found) = inspect(rig.slot.fd(), &rig.baseline, Depth::Privileged, WITHIN).await else { panic!("clean") };
    assert_eq!(found[0].kind, Kind::Unreadable, "a baseline without settings proves nothing of them");
}

#[tokio::test]
async fn a_flood_is_told_in_a_few_lines() {
    let rig = Rig::new().await;
    rig.slot.run("for a in $(seq 80); do seq -f \"route add blackhole 10.77.$a.%g\" 250; done | ip -batch -");
    let found = rig.dirt().await;
    assert!(found.len() < 50 && found.iter().all(|difference| difference.kind == Kind::Route), "{}", found.len());
    assert!(found.last().unwrap().to_string().contains("and more"));
    rig.slot.run("for a in $(seq 250); do seq -f \"route add blackhole 10.78.$a.%g\" 250; done | ip -batch -");
    assert_eq!(rig.dirt().await[0].kind, Kind::Unreadable, "more than is ever compared");
}

#[tokio::test]
async fn what_was_put_back_is_clean() {
    let rig = Rig::new().await;
    for (deed, undone) in [
        ("ip addr add 10.9.0.7/24 dev eth0", "ip addr del 10.9.0.7/24 dev eth0"),
        ("ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"),
        ("ip rule add from 10.9.0.2 table 100", "ip rule del from 10.9.0.2 table 100"),
        ("nft add table inet mine", "nft delete table inet mine"),
        ("tc qdisc add dev eth0 clsact", "tc qdisc del dev eth0 clsact"),
    ] {
        rig.slot.run(deed);
        rig.dirt().await;
        rig.slot.run(undone);
        rig.removed().await;
    }
}
