//! Managed networks on the kernel that the tests run on, each in a host of its own: a network namespace. Needs root, `ip` and `nft`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

#[path = "support/space.rs"]
mod space;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nspool::netns::managed::addresses::{AddressBook, Place};
use nspool::netns::managed::host::{Finding, Forwarding, Host};
use nspool::netns::managed::names::Names;
use nspool::netns::managed::{
    Bridge, Class, FurnishError, Furnished, Furnisher, INSIDE, Limits, ManagedNetwork, Plan, Range, Stripped, Worker,
};
use space::Space;

/// Longer than any answer on one machine takes; less than the second after which a lost packet is sent again, so that none may be lost.
const DROPPED: Duration = Duration::from_millis(700);
const LIMIT: Duration = Duration::from_secs(20);

/// A host with the way out, and the outside, which has no way back to slots.
struct Rig {
    host: Space,
    outside: Space,
    network: ManagedNetwork,
    names: Names,
    book: AddressBook,
}

fn network() -> ManagedNetwork {
    ManagedNetwork {
        name: "test".to_owned(),
        bridge: Bridge::Own { name: "nsbr0".to_owned() },
        slots: 64,
        ipv4: Range::whole("10.200.0.0/20".parse().unwrap()),
        ipv6: Some(Range::whole("fd00:200::/64".parse().unwrap())),
        mtu: 1400,
        isolation: true,
        nat: true,
    }
}

impl Rig {
    fn new(network: ManagedNetwork) -> Self {
        assert_eq!(network.mistakes(), [] as [&str; 0]);
        let (host, outside) = (Space::new(), Space::new());
        host.run(
            "ip link set lo up; ip link add out0 type veth peer name in0; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
        outside.run("ip link set lo up");
        let mut holder = outside.inside(|| Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap());
        host.run(&format!("ip link set in0 netns {}", holder.id()));
        holder.kill().unwrap();
        holder.wait().unwrap();
        host.run("ip addr add 192.0.2.1/24 dev out0; ip addr add 2001:db8::1/64 dev out0 nodad; ip link set out0 up");
        outside.run("ip addr add 192.0.2.2/24 dev in0; ip addr add 2001:db8::2/64 dev in0 nodad; ip link set in0 up");
        let book = network.book();
        Self { host, outside, network, names: Names::of("test"), book }
    }

    fn start(&self) -> (Worker, Furnisher) {
        self.start_with(Forwarding::Told)
    }

    fn start_with(&self, forwarding: Forwarding) -> (Worker, Furnisher) {
        let host = Host { names: self.names.clone(), networks: vec![self.network.clone()], forwarding };
        Worker::start_in(self.host.owned(), host, Limits::default()).unwrap()
    }

    fn plan(&mut self, slot: u32) -> Plan {
        let place = self.book.allocate(Duration::ZERO).unwrap();
        self.network.plan(&self.names, slot, 1, place).unwrap()
    }

    async fn slot(&mut self, furnisher: &Furnisher, slot: u32) -> Slot {
        let (space, plan) = (Space::new(), self.plan(slot));
        let furnished = furnisher.furnish(space.fd(), &plan).await.unwrap();
        Slot { space, plan, furnished }
    }

    /// Everything that may be found on a host afterwards. Not what comes and goes with carriers: states, and what the kernel adds itself.
    fn shown(&self) -> String {
        self.host.run(
            r"ip -o link | sed -E 's/^[0-9]+: //; s/<[^>]*>//; s/(state|mode) [A-Z]+//g' | sort
              ip -o addr | grep -v fe80 | sed -E 's/^[0-9]+: //' | sort
              (ip route show table all; ip -6 route show table all; ip rule; ip -6 rule) | sed -E '/fe80|ff00/d; s/ linkdown//' | sort
              nft list ruleset",
        )
    }
}

struct Slot {
    space: Space,
    plan: Plan,
    furnished: Furnished,
}

impl Slot {
    fn ipv4(&self) -> IpAddr {
        self.plan.ipv4.address
    }

    fn ipv6(&self) -> IpAddr {
        self.plan.ipv6.unwrap().address
    }

    fn reaches(&self, other: &Space, at: IpAddr) -> io::Result<SocketAddr> {
        reaches(&self.space, other, at)
    }
}

/// Connects from one to a listener in the other, which says from where it saw it come.
fn reaches(from: &Space, other: &Space, at: IpAddr) -> io::Result<SocketAddr> {
    let listener = other.inside(|| TcpListener::bind((at, 0)))?;
    let to = listener.local_addr()?;
    let _stream = from.inside(|| TcpStream::connect_timeout(&to, DROPPED))?;
    listener.accept().map(|(_, peer)| peer)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_slot_reaches_its_gateway_and_the_outside_by_the_hosts_addresses() {
    let mut rig = Rig::new(network());
    let (worker, furnisher) = rig.start();
    assert_eq!(furnisher.mend().await.unwrap(), []);
    let slot = rig.slot(&furnisher, 7).await;
    // At once: no address is tentative.
    assert_eq!(slot.reaches(&rig.host, ip("10.200.0.1")).unwrap().ip(), slot.ipv4());
    assert_eq!(slot.reaches(&rig.host, ip("fd00:200::1")).unwrap().ip(), slot.ipv6());
    assert_eq!(slot.reaches(&rig.outside, ip("192.0.2.2")).unwrap().ip(), ip("192.0.2.1"));
    assert_eq!(slot.reaches(&rig.outside, ip("2001:db8::2")).unwrap().ip(), ip("2001:db8::1"));
    assert!(slot.reaches(&slot.space, ip("127.0.0.1")).is_ok(), "lo is up");
    assert!(reaches(&rig.host, &slot.space, slot.ipv4()).is_ok(), "the host reaches it");

    // Who finds the way in from outside is not let in.
    rig.outside.run("ip route add 10.200.0.0/20 via 192.0.2.1; ip route add fd00:200::/64 via 2001:db8::1");
    assert!(reaches(&rig.outside, &slot.space, slot.ipv4()).is_err());
    assert!(reaches(&rig.outside, &slot.space, slot.ipv6()).is_err());

    let link = slot.space.run("ip -o link show eth0");
    assert!(link.contains("mtu 1400") && link.contains(&format!("{}: eth0", slot.furnished.index)), "{link}");
    assert!(rig.host.run(&format!("ip link show {}", slot.furnished.host_end)).contains("mtu 1400"));
    assert_eq!(furnisher.audit().await.unwrap(), []);
    worker.stop().await;
    assert!(matches!(furnisher.audit().await, Err(FurnishError::Stopped)));
}

#[tokio::test]
async fn isolation_keeps_slots_from_each_other_also_by_way_of_the_gateway() {
    for isolation in [true, false] {
        let mut rig = Rig::new(ManagedNetwork { isolation, ..network() });
        let (worker, furnisher) = rig.start();
        furnisher.mend().await.unwrap();
        let (one, other) = (rig.slot(&furnisher, 1).await, rig.slot(&furnisher, 2).await);
        for at in [other.ipv4(), other.ipv6()] {
            assert_eq!(one.reaches(&other.space, at).is_err(), isolation, "{at}");
        }
        one.space.run(&format!("ip route add {}/32 via 10.200.0.1; ip route add {}/128 via fd00:200::1", other.ipv4(), other.ipv6()));
        other.space.run(&format!("ip route add {}/32 via 10.200.0.1; ip route add {}/128 via fd00:200::1", one.ipv4(), one.ipv6()));
        for at in [other.ipv4(), other.ipv6()] {
            assert_eq!(one.reaches(&other.space, at).is_err(), isolation, "{at} by way of the gateway");
        }
        worker.stop().await;
    }
}

#[tokio::test]
async fn more_slots_than_ports_are_spread_over_several_bridges() {
    for isolation in [true, false] {
        let mut rig = Rig::new(ManagedNetwork { isolation, slots: 1100, ..network() });
        let (worker, furnisher) = rig.start();
        assert_eq!(furnisher.mend().await.unwrap(), []);
        let first = rig.slot(&furnisher, 0).await;
        while rig.book.taken() < 1023 {
            rig.book.allocate(Duration::ZERO).unwrap();
        }
        let second = rig.slot(&furnisher, 1).await;
        assert_eq!((first.plan.bridge.as_str(), second.plan.bridge.as_str()), ("nsbr0", "nsbr0-1"));
        assert_eq!((second.ipv4(), second.plan.ipv4.gateway), (ip("10.200.8.2"), ip("10.200.8.1")));
        assert!(second.reaches(&rig.host, ip("10.200.8.1")).is_ok());
        assert!(second.reaches(&rig.host, second.plan.ipv6.unwrap().gateway).is_ok());
        assert_eq!(second.reaches(&rig.outside, ip("192.0.2.2")).unwrap().ip(), ip("192.0.2.1"));
        for at in [second.ipv4(), second.ipv6()] {
            assert_eq!(first.reaches(&second.space, at).is_err(), isolation, "{at}");
        }
        assert_eq!(furnisher.audit().await.unwrap(), []);
        assert_eq!(furnisher.tear_down().await.unwrap().len(), 0);
        worker.stop().await;
    }
}

#[tokio::test]
async fn tearing_down_leaves_the_host_as_it_was() {
    let mut rig = Rig::new(network());
    // Of names that look like ours.
    rig.host.run("ip link add nsbr0-1 type bridge; ip link add nsabcde1-1 type bridge; nft add table inet nspool_other; nft add table ip nspool_test");
    let before = rig.shown();
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let slots = [rig.slot(&furnisher, 1).await, rig.slot(&furnisher, 2).await, rig.slot(&furnisher, 3).await];
    assert_ne!(rig.shown(), before);
    assert_eq!(furnisher.tear_down().await.unwrap().len(), 0);
    assert_eq!(rig.shown(), before);
    assert!(slots[0].space.run("ip -br link").lines().all(|line| !line.starts_with(INSIDE)), "the slot's end went, too");
    assert_eq!(furnisher.tear_down().await.unwrap().len(), 0, "and again");
    worker.stop().await;
    drop(slots);
}

#[tokio::test]
async fn a_bridge_that_is_not_ours_is_left_alone() {
    let mut rig = Rig::new(network());
    rig.host.run("ip link add nsbr0 type bridge");
    let before = rig.shown();
    let (worker, furnisher) = rig.start();
    assert!(matches!(furnisher.mend().await, Err(FurnishError::Foreign { name }) if name == "nsbr0"));
    assert!(furnisher.audit().await.unwrap().contains(&Finding::Foreign("nsbr0".to_owned())));
    assert_eq!(furnisher.tear_down().await.unwrap().len(), 0);
    assert_eq!(rig.shown(), before);
    rig.host.run("ip link del nsbr0");
    let (space, plan) = (Space::new(), rig.plan(1));
    let error = furnisher.furnish(space.fd(), &plan).await.unwrap_err();
    assert_eq!((error.class(), error.to_string().as_str()), (Class::Gone, "there is no bridge nsbr0 that is up"));
    worker.stop().await;
}

#[tokio::test]
async fn slots_on_anothers_bridge_use_what_it_has() {
    let subnet = "172.30.0.0/16".parse().unwrap();
    let ipv4 = Range { subnet, gateway: ip("172.30.0.1"), part: "172.30.128.0/17".parse().unwrap() };
    let bridge = Bridge::Existing { name: "docker0".to_owned() };
    let mut rig = Rig::new(ManagedNetwork { bridge, ipv4, ipv6: None, nat: false, ..network() });
    let (worker, furnisher) = rig.start();
    assert_eq!(furnisher.mend().await.unwrap(), [Finding::NoBridge("docker0".to_owned())]);
    assert_eq!(furnisher.tear_down().await.unwrap().len(), 0);
    rig.host
        .run("ip link add docker0 address 02:42:00:00:00:01 type bridge; ip addr add 172.30.0.1/16 dev docker0; ip link set docker0 up");
    let before = rig.shown();
    assert_eq!(furnisher.mend().await.unwrap(), []);
    let (one, other) = (rig.slot(&furnisher, 1).await, rig.slot(&furnisher, 2).await);
    assert_eq!(one.ipv4(), ip("172.30.128.0"), "a part has no network address of its own");
    assert!(one.reaches(&rig.host, ip("172.30.0.1")).is_ok());
    assert!(one.reaches(&other.space, other.ipv4()).is_err());
    assert!(one.space.run("ip -6 addr show eth0").is_empty(), "no IPv6 that nobody asked for");
    assert_eq!(furnisher.tear_down().await.unwrap().len(), 0);
    // Its hardware address was chosen by the kernel, and follows the ports.
    let but_for_hardware = |shown: &str| shown.lines().filter(|line| !line.starts_with("docker0")).collect::<Vec<_>>().join("\n");
    assert_eq!(but_for_hardware(&rig.shown()), but_for_hardware(&before));
    worker.stop().await;
}

#[tokio::test]
async fn what_others_break_is_noticed_told_and_mended() {
    let mut rig = Rig::new(network());
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let slot = rig.slot(&furnisher, 1).await;
    let end = slot.furnished.host_end.clone();
    let bridge = || "nsbr0".to_owned();
    let table = || Finding::RulesChanged("nspool_test".to_owned());
    let mut changes = worker.changes();
    for (deed, expected) in [
        ("nft flush ruleset".to_owned(), vec![table()]),
        ("nft flush chain inet nspool_test forward".to_owned(), vec![table()]),
        ("nft insert rule inet nspool_test forward accept".to_owned(), vec![table()]),
        ("nft delete table inet nspool_test; nft add table inet nspool_test".to_owned(), vec![table()]),
        ("ip link set nsbr0 down".to_owned(), vec![Finding::BridgeChanged(bridge())]),
        ("ip addr del 10.200.0.1/20 dev nsbr0".to_owned(), vec![Finding::NoGateway { bridge: bridge(), address: ip("10.200.0.1") }]),
        (format!("ip link set {end} nomaster"), vec![Finding::PortChanged(end.clone())]),
        ("ip link del nsbr0".to_owned(), vec![Finding::NoBridge(bridge()), Finding::PortChanged(end.clone())]),
    ] {
        // The news of our own doing come a little later.
        while tokio::time::timeout(Duration::from_millis(30), changes.changed()).await.is_ok() {
            drop(changes.borrow_and_update());
        }
        rig.host.run(&deed);
        tokio::time::timeout(LIMIT, changes.changed()).await.unwrap_or_else(|_| panic!("{deed} is noticed")).unwrap();
        drop(changes.borrow_and_update());
        let mut found = furnisher.audit().await.unwrap();
        found.retain(|finding| !matches!(finding, Finding::NoGateway { address: IpAddr::V6(_), .. }));
        assert_eq!(found, expected, "{deed}");
        assert_eq!(furnisher.mend().await.unwrap(), [], "{deed}");
        // A bridge that was without a port has to come up again, which the kernel does in its own time.
        let bridge_is_up = "ip link show nsbr0 | grep -q 'LOWER_UP.* state UP'";
        rig.host.run(&format!("until {bridge_is_up} && ip -d link show {end} | grep -q 'state forwarding'; do sleep 0.01; done"));
        assert_eq!(slot.reaches(&rig.outside, ip("192.0.2.2")).unwrap().ip(), ip("192.0.2.1"), "{deed}");
    }
    rig.host.run(&format!("ip link del {end}"));
    assert_eq!(furnisher.mend().await.unwrap(), [Finding::PortGone(end.clone())], "only its slot can say what becomes of it");
    assert_eq!(furnisher.strip(&end).await.unwrap(), Stripped::WasNotThere);
    assert_eq!(furnisher.audit().await.unwrap(), []);
    worker.stop().await;
}

#[tokio::test]
async fn a_second_daemon_adopts_links_or_is_told_of_them() {
    let mut rig = Rig::new(network());
    let (first, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let slots = [rig.slot(&furnisher, 1).await, rig.slot(&furnisher, 2).await];
    first.stop().await;
    let before = rig.shown();
    let (second, furnisher) = rig.start();
    let ends = slots.iter().map(|slot| slot.furnished.host_end.clone()).collect::<Vec<_>>();
    let mut strays = furnisher.mend().await.unwrap();
    strays.sort();
    assert_eq!(strays, ends.iter().cloned().map(Finding::Stray).collect::<Vec<_>>());
    assert_eq!(rig.shown(), before, "nothing was changed");
    furnisher.adopt(vec![slots[0].plan.clone()]).await.unwrap();
    assert_eq!(furnisher.audit().await.unwrap(), [Finding::Stray(ends[1].clone())]);
    assert_eq!(furnisher.strip(&ends[1]).await.unwrap(), Stripped::Removed);
    assert_eq!(furnisher.audit().await.unwrap(), []);
    assert!(slots[0].reaches(&rig.host, ip("10.200.0.1")).is_ok());
    second.stop().await;
}

/// What passes the slot's link, by each way and family.
fn traffic(slot: &Slot, rig: &Rig) -> [bool; 6] {
    let ways = [
        (&slot.space, &rig.host, ip("10.200.0.1")),
        (&slot.space, &rig.host, ip("fd00:200::1")),
        (&slot.space, &rig.outside, ip("192.0.2.2")),
        (&slot.space, &rig.outside, ip("2001:db8::2")),
        (&rig.host, &slot.space, slot.ipv4()),
        (&rig.host, &slot.space, slot.ipv6()),
    ];
    std::thread::scope(|scope| ways.map(|(from, to, at)| scope.spawn(move || reaches(from, to, at).is_ok())).map(|way| way.join().unwrap()))
}

/// Whoever still has the old namespace has its end of the link, too.
#[tokio::test]
async fn nothing_passes_a_link_that_was_cut_whatever_is_done_to_its_other_end() {
    let mut rig = Rig::new(network());
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let (slot, other) = (rig.slot(&furnisher, 1).await, rig.slot(&furnisher, 2).await);
    let end = slot.furnished.host_end.clone();
    let listener = rig.host.inside(|| TcpListener::bind(("10.200.0.1", 0))).unwrap();
    let mut open = slot.space.inside(|| TcpStream::connect_timeout(&listener.local_addr().unwrap(), DROPPED)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(DROPPED)).unwrap();
    assert_eq!(traffic(&slot, &rig), [true; 6]);
    furnisher.cut(&end).await.unwrap();
    assert_eq!(traffic(&slot, &rig), [false; 6], "cut");
    io::Write::write_all(&mut open, b"x").unwrap();
    assert!(io::Read::read(&mut accepted, &mut [0]).is_err(), "what was sent on an open connection came through");
    // The kernel tells bridges of a link some time after it has changed.
    let heard =
        format!("until ip link show {end} | grep -q LOWER_UP && ! ip link show {end} | grep -q LOWERLAYERDOWN; do sleep 0.02; done");
    for deed in [
        "ip link set eth0 down; ip link set eth0 up",
        "ip link set eth0 down; sleep 0.3; ip link set eth0 up",
        "ip link set eth0 address 02:00:00:00:00:77; ip link set eth0 mtu 1300; ip link set eth0 mode default",
    ] {
        slot.space.run(&format!(
            "{deed}; ip -6 addr replace {}/64 dev eth0 nodad; ip route replace default via 10.200.0.1; ip -6 route replace default via fd00:200::1",
            slot.ipv6()
        ));
        rig.host.run(&heard);
        assert_eq!(traffic(&slot, &rig), [false; 6], "{deed}");
    }
    rig.host.run("ip link set nsbr0 down");
    furnisher.mend().await.unwrap();
    rig.host.run(&heard);
    assert_eq!(traffic(&slot, &rig), [false; 6], "the bridge was down, and mended");
    assert_eq!(traffic(&other, &rig), [true; 6], "others are not cut");
    furnisher.cut(&end).await.unwrap();
    assert_eq!(furnisher.strip(&end).await.unwrap(), Stripped::Removed);
    furnisher.cut(&end).await.unwrap();
    assert_eq!(furnisher.audit().await.unwrap(), []);
    worker.stop().await;
}

#[tokio::test]
async fn forwarding_is_told_and_switched_on_only_if_configured() {
    let rig = Rig::new(network());
    rig.host.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    let (worker, furnisher) = rig.start();
    let off = [Finding::NoForwarding { family: "IPv4".into() }, Finding::NoForwarding { family: "IPv6".into() }];
    assert_eq!(furnisher.mend().await.unwrap(), off);
    assert_eq!(off[0].to_string(), "the host does not forward IPv4 packets: set net.ipv4.ip_forward=1");
    worker.stop().await;
    let (worker, furnisher) = rig.start_with(Forwarding::SwitchedOn);
    assert_eq!(furnisher.mend().await.unwrap(), []);
    worker.stop().await;
}

#[tokio::test]
async fn where_docker_drops_what_is_forwarded_its_own_chain_lets_us_through() {
    let mut rig = Rig::new(network());
    rig.host.run("iptables -P FORWARD DROP");
    let (worker, furnisher) = rig.start();
    let dropped = Finding::ForwardDropped { family: "ip".into(), table: "filter".to_owned(), chain: "FORWARD".to_owned() };
    assert_eq!(furnisher.mend().await.unwrap(), [dropped]);
    let slot = rig.slot(&furnisher, 1).await;
    assert!(slot.reaches(&rig.outside, ip("192.0.2.2")).is_err());
    rig.host.run("iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -I FORWARD -j DOCKER-USER");
    assert_eq!(furnisher.audit().await.unwrap(), [Finding::NotLetThrough { family: "ip".into() }]);
    let before = rig.host.run("iptables -S");
    assert_eq!(furnisher.mend().await.unwrap(), []);
    assert!(slot.reaches(&rig.outside, ip("192.0.2.2")).is_ok());
    let rules = rig.host.run("iptables -S DOCKER-USER");
    assert!(rules.contains("-A DOCKER-USER -i nsbr0 -m comment --comment \"nspool pool test\" -j ACCEPT"), "{rules}");
    assert_eq!(furnisher.mend().await.unwrap(), []);
    assert_eq!(rig.host.run("iptables -S DOCKER-USER"), rules, "once is enough");
    // As Docker's start does.
    rig.host.run("iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN");
    assert_eq!(furnisher.audit().await.unwrap(), [Finding::NotLetThrough { family: "ip".into() }]);
    furnisher.mend().await.unwrap();
    assert_eq!(furnisher.tear_down().await.unwrap().len(), 0);
    assert_eq!(rig.host.run("iptables -S"), before);
    worker.stop().await;
}

#[tokio::test]
async fn a_thousand_uses_leave_no_trace() {
    let mut rig = Rig::new(ManagedNetwork { slots: 50, ..network() });
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let plans: Vec<Plan> = (0..50).map(|slot| rig.plan(slot)).collect();
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let (shown, descriptors) = (rig.shown(), count("/proc/self/fd"));
    for _ in 0..20 {
        let spaces: Vec<Space> = plans.iter().map(|_| Space::new()).collect();
        let all = futures::future::join_all(plans.iter().zip(&spaces).map(|(plan, space)| furnisher.furnish(space.fd(), plan))).await;
        let ends: Vec<_> = all.into_iter().map(|furnished| furnished.unwrap().host_end).collect();
        let stripped = futures::future::join_all(ends.iter().map(|end| furnisher.strip(end))).await;
        assert!(stripped.into_iter().all(|stripped| stripped.unwrap() == Stripped::Removed));
    }
    assert_eq!(rig.shown(), shown);
    // Other tests of this process have descriptors, too, but not a thousand.
    assert!(count("/proc/self/fd") < descriptors + 600, "{} of {descriptors}", count("/proc/self/fd"));
    assert_eq!(furnisher.audit().await.unwrap(), []);
    worker.stop().await;
}

#[tokio::test]
async fn a_namespace_that_dies_meanwhile_takes_its_link_along() {
    let mut rig = Rig::new(network());
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    for slot in 0..10 {
        let (space, plan) = (Space::new(), rig.plan(slot));
        let mut inside = space.inside(|| Command::new("sleep").arg("1000").spawn().unwrap());
        let killer = std::thread::spawn(move || {
            inside.kill().unwrap();
            inside.wait().unwrap();
        });
        furnisher.furnish(space.fd(), &plan).await.unwrap();
        killer.join().unwrap();
        drop(space);
        // Gone with the namespace or by us, but gone.
        furnisher.strip(&plan.host_end).await.unwrap();
        assert_eq!(furnisher.strip(&plan.host_end).await.unwrap(), Stripped::WasNotThere);
    }
    assert_eq!(furnisher.audit().await.unwrap(), []);
    worker.stop().await;
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_undone() {
    let mut rig = Rig::new(network());
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let (space, plan) = (Space::new(), rig.plan(1));
    for _ in 0..20 {
        // Asked, and given up on at once.
        let _ = futures::FutureExt::now_or_never(furnisher.furnish(space.fd(), &plan));
        furnisher.strip(&plan.host_end).await.unwrap();
        furnisher.furnish(space.fd(), &plan).await.unwrap();
        let again = furnisher.furnish(space.fd(), &plan).await.unwrap_err();
        assert_eq!((again.class(), again.to_string()), (Class::Busy, format!("{} is there already", plan.host_end)));
        assert!(rig.host.run(&format!("ip -d link show {}", plan.host_end)).contains("isolated on"), "what is there stays as it is");
        assert_eq!(furnisher.strip(&plan.host_end).await.unwrap(), Stripped::Removed);
    }
    // A half that cannot be finished is taken back.
    space.run("ip link add eth0 type bridge");
    let error = furnisher.furnish(space.fd(), &plan).await.unwrap_err();
    assert_eq!(error.to_string(), "eth0 is there already");
    space.run("ip link del eth0; sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let error = furnisher.furnish(space.fd(), &plan).await.unwrap_err();
    assert_eq!(error.to_string(), format!("adding the address ({})", plan.host_end));
    assert_eq!(furnisher.strip(&plan.host_end).await.unwrap(), Stripped::WasNotThere);
    assert_eq!(furnisher.audit().await.unwrap(), []);
    worker.stop().await;
}

#[tokio::test]
async fn a_full_range_a_full_bridge_and_a_full_queue_are_told_apart() {
    let mut rig = Rig::new(ManagedNetwork { slots: 1, ipv4: Range::whole("10.200.0.0/30".parse().unwrap()), ..network() });
    let only = rig.book.allocate(Duration::ZERO).unwrap();
    assert_eq!(only, Place(2));
    assert_eq!(rig.book.allocate(Duration::ZERO).unwrap_err().taken, 1);
    let host = Host { names: rig.names.clone(), networks: vec![rig.network.clone()], forwarding: Forwarding::Told };
    let (worker, furnisher) = Worker::start_in(rig.host.owned(), host, Limits { queue: 1, deadline: LIMIT }).unwrap();
    furnisher.mend().await.unwrap();
    let start = Instant::now();
    let all = futures::future::join_all((0..50).map(|_| furnisher.audit())).await;
    assert!(all.iter().any(|answer| matches!(answer, Err(error) if error.class() == Class::Busy)), "{all:?}");
    assert!(all.iter().any(Result::is_ok) && start.elapsed() < LIMIT);

    let ports = "for i in $(seq 512); do echo link add a$i master nsbr0 type veth peer name b$i; echo link set b$i master nsbr0; done";
    rig.host.run(&format!("({ports}) | head -n 1023 | ip -batch -"));
    let (space, plan) = (Space::new(), rig.network.plan(&rig.names, 0, 1, only).unwrap());
    let error = furnisher.furnish(space.fd(), &plan).await.unwrap_err();
    assert_eq!(error.class(), Class::Exhausted, "{error}");
    assert_eq!(furnisher.strip(&plan.host_end).await.unwrap(), Stripped::WasNotThere);
    worker.stop().await;
}

#[tokio::test]
async fn a_range_that_the_host_reaches_elsewhere_is_refused_with_the_route_and_nothing_is_made() {
    for (family, address) in [("IPv4", "10.200.3.0/24"), ("IPv6", "fd00:200::/96")] {
        let rig = Rig::new(network());
        rig.host.run(&format!("ip route add {address} dev out0"));
        let (worker, furnisher) = rig.start();
        let error = furnisher.mend().await.unwrap_err();
        let FurnishError::Overlap { route, link, .. } = &error else { panic!("{family}: {error:?}") };
        assert_eq!((route.as_str(), link.as_str()), (address, "out0"));
        assert!(error.to_string().contains("give the network another subnet"), "{error}");
        assert!(!rig.host.run("ip link").contains("nsbr0"));
        rig.host.run(&format!("ip route del {address} dev out0"));
        furnisher.mend().await.unwrap();
        // A route that comes later is its maker's choice, and takes no bridge away.
        rig.host.run(&format!("ip route add {address} dev out0"));
        furnisher.mend().await.unwrap();
        worker.stop().await;
    }
}

#[tokio::test]
async fn more_links_than_a_socket_has_answers_for_go_together() {
    let mut rig = Rig::new(ManagedNetwork { slots: 500, ..network() });
    let (worker, furnisher) = rig.start();
    furnisher.mend().await.unwrap();
    let mut slots = Vec::new();
    for slot in 0..300 {
        slots.push(rig.slot(&furnisher, slot).await);
    }
    assert_eq!(furnisher.links().await.unwrap().len(), 300);
    let failures = furnisher.tear_down().await.unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(furnisher.links().await.unwrap().len(), 0);
    assert!(!rig.host.run("ip -o link").contains("nsbr0"));
    worker.stop().await;
}
