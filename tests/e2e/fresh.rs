//! A new network namespace for each lease, under the same buddy, on a network that nspool furnishes.

use std::collections::BTreeSet;
use std::process::Command;

use nspool::proto;

use super::helper::helpers;
use crate::support::daemon::{NSPOOL, TestDaemon, load_busybox, returned, text};
use crate::support::engines::{TestEngine, unique, unique_subnet};

on_both_engines!(
    each_use_sees_nothing_of_the_last_one,
    a_function_with_the_leases_host_config_cannot_write_what_the_next_one_reads,
    functions_reach_what_they_should,
    functions_reach_what_they_should_by_ipv6,
    a_killed_daemon_loses_no_lease_and_no_link,
    somebody_left_behind_keeps_the_namespace_and_the_address,
    a_link_that_somebody_removes_is_a_lost_lease,
    a_stop_leaves_nothing_on_the_host,
    a_purge_takes_the_networks_along,
    many_uses_leave_nothing_behind,
);

/// The lines of a managed network, and its bridge.
pub(super) fn own(more: &[&str]) -> (Vec<String>, String) {
    let bridge = format!("nt{:x}", unique());
    let lines = [
        "pool.networks = [\"own\"]".to_owned(),
        "networks.own.kind = \"managed\"".to_owned(),
        format!("networks.own.bridge = {bridge:?}"),
        format!("networks.own.subnet = {:?}", unique_subnet(24)),
        "networks.own.rest = \"100ms\"".to_owned(),
    ];
    (lines.into_iter().chain(more.iter().map(|line| (*line).to_owned())).collect(), bridge)
}

pub(super) async fn started<'e>(engine: &'e TestEngine, more: &[&str]) -> (TestDaemon<'e>, String) {
    load_busybox(engine);
    let (lines, bridge) = own(more);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    (TestDaemon::start(engine, &lines).await, bridge)
}

pub(super) fn one_slot() -> [&'static str; 2] {
    ["pool.ready = 1", "pool.max = 1"]
}

pub(super) fn address(lease: &proto::Lease) -> &str {
    lease.ip_addresses[0].split('/').next().unwrap()
}

pub(super) fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Waits until so many are on the bridge: the kernel takes a while to take away those that were left.
pub(super) async fn links(daemon: &TestDaemon<'_>, bridge: &str, expected: usize) {
    let count = |_| async { (run(&["ip", "-o", "link", "show", "master", bridge]).lines().count() == expected).then_some(()) };
    daemon.level(&format!("{expected} links on the bridge"), count).await;
}

/// Everything that a function can change in the namespace and in what it shares with the buddy, as root with NET_ADMIN.
const DIRT: &str = "ip addr add 192.0.2.7/32 dev lo && ip link add dirt0 type veth peer name dirt1 && ip route add 198.51.100.0/24 dev eth0 \
    && echo 6.6.6.6 bank >> /etc/hosts && echo nameserver 6.6.6.6 > /etc/resolv.conf && echo evil > /etc/hostname && (nc -l -p 4444 &) && sleep 0.1";

async fn each_use_sees_nothing_of_the_last_one(engine: &TestEngine) {
    let (daemon, _) = started(engine, &one_slot()).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let (mut addresses, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut container = None;
    for number in 1..=4 {
        let lease = daemon.allocate(&client).await;
        assert_eq!((lease.r#use, lease.container_id.as_str()), (number, ""), "an id would outlive the fence: {}", daemon.log());
        assert!(addresses.insert(lease.ip_addresses.clone()) && names.insert(lease.namespace_id.clone()));
        let slot = daemon.slots().await.remove(0);
        assert_eq!(*container.get_or_insert(slot.container_id.clone()), slot.container_id, "the same buddy");
        let function =
            |command: &str| daemon.function(&["run", "--rm", "--cap-add", "NET_ADMIN"], &lease.network_mode, &["sh", "-c", command]);
        let seen = function("ip -o addr; ip -o link; ip route; cat /etc/hosts /etc/resolv.conf /etc/hostname; netstat -lnt").unwrap();
        assert!(seen.contains(&lease.ip_addresses[0]) && seen.contains(&format!("default via {}", lease.gateways[0])), "{seen}");
        for trace in ["192.0.2.7", "dirt0", "198.51.100.0", "bank", "6.6.6.6", "evil", ":4444"] {
            assert!(!seen.contains(trace), "use {number} sees {trace} of the one before:\n{seen}");
        }
        function(DIRT).unwrap();
        returned(&client.release(&lease.token, false).await.unwrap());
    }
    let renewals = daemon.log().matches("buddy ready").count();
    assert_eq!(renewals, 1, "no other buddy was made:\n{}", daemon.log());
}

async fn a_function_with_the_leases_host_config_cannot_write_what_the_next_one_reads(engine: &TestEngine) {
    let (daemon, _) = started(engine, &one_slot()).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let merge: serde_json::Value = serde_json::from_str(&lease.host_config).unwrap();
    let binds: Vec<&str> = merge["HostConfig"]["Binds"].as_array().unwrap().iter().map(|bind| bind.as_str().unwrap()).collect();
    // podman shares no resolv.conf with those that join a buddy on network none.
    assert!(binds.len() >= 2, "{binds:?}");
    let verb: Vec<&str> = ["run", "--rm"].into_iter().chain(binds.iter().flat_map(|bind| ["-v", *bind])).collect();
    let write = "for file in hosts hostname; do echo 6.6.6.6 bank >> /etc/$file && echo wrote $file; done; cat /etc/hosts";
    let said = daemon.function(&verb, &lease.network_mode, &["sh", "-c", write]).unwrap();
    assert!(said.contains("localhost") && !said.contains("wrote") && !said.contains("bank"), "{said}");
}

async fn functions_reach_what_they_should(engine: &TestEngine) {
    let (daemon, bridge) = started(engine, &["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let (one, other) = (daemon.allocate(&client).await, daemon.allocate(&client).await);
    let reaches = |lease: &proto::Lease, to: &str| {
        let ping = format!("busybox ping -c 1 -W 2 {to}; true");
        let said = daemon.function(&["run", "--rm"], &lease.network_mode, &["sh", "-c", &ping]).unwrap();
        assert!(said.contains("packets transmitted"), "{said}");
        said.contains(" 1 packets received")
    };
    assert!(reaches(&one, &one.gateways[0]));
    assert!(!reaches(&one, address(&other)), "slots are kept from each other");
    run(&["busybox", "ping", "-c", "1", "-W", "2", address(&one)]);
    // The next use's address works as well.
    client.release(&one.token, false).await.unwrap();
    let again = daemon.allocate(&client).await;
    assert!(reaches(&again, &again.gateways[0]));
    links(&daemon, &bridge, 2).await;
}

async fn functions_reach_what_they_should_by_ipv6(engine: &TestEngine) {
    let subnet6 = format!("networks.own.subnet6 = \"fd4e:53:{:x}::/64\"", unique() & 0xffff);
    let (daemon, _) = started(engine, &["pool.ready = 2", "pool.max = 2", &subnet6]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let sixth = |lease: &proto::Lease| {
        lease.ip_addresses.iter().find(|address| address.contains(':')).unwrap().split('/').next().unwrap().to_owned()
    };
    let (one, other) = (daemon.allocate(&client).await, daemon.allocate(&client).await);
    let reaches = |lease: &proto::Lease, to: &str| {
        let said =
            daemon.function(&["run", "--rm"], &lease.network_mode, &["sh", "-c", &format!("busybox ping6 -c 1 -W 2 {to}; true")]).unwrap();
        assert!(said.contains("packets transmitted"), "{said}");
        said.contains(" 1 packets received")
    };
    let gateway = one.gateways.iter().find(|gateway| gateway.contains(':')).unwrap();
    assert!(reaches(&one, gateway) && !reaches(&one, &sixth(&other)), "slots are kept from each other");
    let mut addresses = BTreeSet::from([sixth(&one), sixth(&other)]);
    for _ in 0..3 {
        client.release(&one.token, false).await.unwrap();
        let again = daemon.allocate(&client).await;
        assert!(addresses.insert(sixth(&again)) && reaches(&again, gateway), "{}", daemon.log());
        client.release(&again.token, false).await.unwrap();
    }
}

async fn a_killed_daemon_loses_no_lease_and_no_link(engine: &TestEngine) {
    let (mut daemon, bridge) = started(engine, &["pool.ready = 1", "pool.max = 2", "stop.policy = \"keep\""]).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let function = daemon.stay(&lease.network_mode);
    daemon.settled_but_leased(1).await;
    // By their names: the kernel takes its time with the rest.
    let links = || -> Vec<String> {
        let shown = run(&["ip", "-o", "link", "show", "master", &bridge]);
        shown.lines().map(|link| link.split_whitespace().nth(1).unwrap().to_owned()).collect()
    };
    let (before, slots) = (links(), daemon.slots().await);
    daemon.kill();
    daemon.launch().await;
    let client = daemon.client();
    daemon.settled_but_leased(1).await;
    assert_eq!(links(), before);
    let after = daemon.slots().await;
    for (before, after) in slots.iter().zip(&after) {
        assert_eq!((&before.container_id, &before.namespace_id), (&after.container_id, &after.namespace_id));
    }
    let seen = engine.run(&["exec", &function, "busybox", "ping", "-c", "1", "-W", "2", &lease.gateways[0]]);
    assert!(seen.contains("1 packets received"), "{seen}");
    engine.run(&["rm", "-f", &function]);
    client.release(&lease.token, false).await.unwrap();
    // The ready one is renewed as if nothing had been.
    let next = daemon.allocate(&client).await;
    client.release(&next.token, false).await.unwrap();
    let renewed = daemon.slot(next.slot, "the next use", |slot| slot.state == "ready" && slot.r#use == next.r#use + 1).await;
    assert_eq!(renewed.generation, next.generation);
}

async fn somebody_left_behind_keeps_the_namespace_and_the_address(engine: &TestEngine) {
    let (daemon, _) = started(engine, &["pool.ready = 1", "pool.max = 2"]).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let function = daemon.stay(&lease.network_mode);
    client.release(&lease.token, false).await.unwrap();
    daemon.slot(lease.slot, "quarantine", |slot| slot.state == "quarantined").await;
    let seen = engine.run(&["exec", &function, "ip", "-o", "-4", "addr"]);
    assert!(seen.contains(&lease.ip_addresses[0]), "{seen}");
    let other = daemon.allocate(&client).await;
    assert_ne!(other.ip_addresses, lease.ip_addresses);
    engine.run(&["rm", "-f", &function]);
    let gone = |slot: &proto::Slot| slot.generation != lease.generation || slot.container_id.is_empty();
    daemon.slot(lease.slot, "another buddy, or none", gone).await;
}

async fn a_link_that_somebody_removes_is_a_lost_lease(engine: &TestEngine) {
    let (daemon, bridge) = started(engine, &one_slot()).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let ports = run(&["ip", "-o", "link", "show", "master", &bridge]);
    let link = ports.split_whitespace().nth(1).unwrap().split('@').next().unwrap();
    run(&["ip", "link", "del", link]);
    daemon.usage("the loss", |usage| usage.lost == 1).await;
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(1).await;
    // The firewall's table, too, is looked after.
    run(&["nft", "delete", "table", "inet", &format!("nspool_{}", daemon.pool)]);
    let mended = |_| async { run(&["nft", "list", "tables"]).contains(&format!("inet nspool_{}", daemon.pool)).then_some(()) };
    daemon.level("the table to be there again", mended).await;
}

async fn a_stop_leaves_nothing_on_the_host(engine: &TestEngine) {
    let (mut daemon, bridge) = started(engine, &["stop.policy = \"remove\""]).await;
    daemon.settled(2).await;
    let lease = daemon.allocate(&daemon.client()).await;
    assert!(run(&["ip", "-o", "link"]).contains(&bridge) && run(&["nft", "list", "tables"]).contains(&format!("nspool_{}", daemon.pool)));
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert!(!run(&["ip", "-o", "link"]).contains(&bridge), "{}", daemon.log());
    assert!(!run(&["nft", "list", "tables"]).contains(&format!("nspool_{}", daemon.pool)));
    assert!(!run(&["ip", "-o", "addr"]).contains(&lease.gateways[0]));
}

async fn a_purge_takes_the_networks_along(engine: &TestEngine) {
    let (mut daemon, bridge) = started(engine, &one_slot()).await;
    daemon.settled(1).await;
    daemon.kill();
    let purged =
        daemon.cli_of(NSPOOL.as_ref(), &["purge", "--pool", &daemon.pool, "--engine-endpoint", &engine.endpoint()]).output().unwrap();
    assert!(purged.status.success(), "{} {}", text(&purged.stdout), text(&purged.stderr));
    assert!(!run(&["ip", "-o", "link"]).contains(&bridge) && !run(&["nft", "list", "tables"]).contains(&daemon.pool));
}

/// By how much the daemon and its helper may grow: what a few hundred uses need (0.4 MiB were measured), and what the allocator keeps of the ledger's compactions, one in
/// some thousand uses, for each of its arenas (17 MiB after 10,000; with a single arena 6 MiB, and no more from then on).
const MEMORY_KIB: u64 = 4 << 10;
const MEMORY_KIB_A_USE: u64 = 2;

/// What a use may leave in the daemon and its helper, both together.
#[derive(Debug)]
struct Traces {
    descriptors: usize,
    threads: usize,
    rules: usize,
    memory_kib: u64,
}

async fn traces(daemon: &TestDaemon<'_>) -> Traces {
    let both = [daemon.pid(), helpers(daemon).await.1];
    let count = |of: &str| both.iter().map(|pid| std::fs::read_dir(format!("/proc/{pid}/{of}")).unwrap().count()).sum();
    let rules = run(&["nft", "list", "ruleset"]).matches(&format!("nspool_{}", daemon.pool)).count();
    let memory = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        memory.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let memory_kib = both.iter().map(memory).sum();
    Traces { descriptors: count("fd"), threads: count("task"), rules, memory_kib }
}

async fn many_uses_leave_nothing_behind(engine: &TestEngine) {
    // What is remembered of leases is bounded by these, and full by the first look.
    let (daemon, bridge) = started(engine, &[&one_slot()[..], &["pool.remember_max = 16", "pool.watch_backlog = 16"]].concat()).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let mut before = None;
    let uses = std::env::var("NSPOOL_USES").map_or(300, |uses| uses.parse().unwrap());
    for number in 0..uses {
        let lease = daemon.allocate(&client).await;
        client.release(&lease.token, false).await.unwrap();
        if number == 20 {
            daemon.settled(1).await;
            before = Some(traces(&daemon).await);
        }
    }
    daemon.settled(1).await;
    let audit = daemon.cli(&["audit"]);
    assert!(audit.status.success(), "{}", text(&audit.stdout));
    let (before, after) = (before.unwrap(), traces(&daemon).await);
    assert!(after.descriptors <= before.descriptors + 4 && after.threads <= before.threads + 4, "{before:?} {after:?}");
    assert_eq!(after.rules, before.rules);
    assert!(after.memory_kib <= before.memory_kib + MEMORY_KIB + MEMORY_KIB_A_USE * uses, "{before:?} {after:?}");
    links(&daemon, &bridge, 1).await;
    assert_eq!(daemon.slots().await.remove(0).r#use, uses + 1, "all of it under one buddy:\n{}", text(daemon.log().as_bytes()));
}
