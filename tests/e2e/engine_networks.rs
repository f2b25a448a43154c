//! A managed network on a network that nspool has Docker make: what is made, who reaches whom, and whose it stays.
//!
//! podman makes none, and says so.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use nspool::proto;

use crate::support::daemon::{LIMIT, NSPOOL, TEST_LABEL, TestDaemon, load_busybox, text};
use crate::support::engines::{TestEngine, docker, podman, unique, unique_subnet};
use crate::support::eventually;
use crate::support::image::BUSYBOX;

/// Names and subnet of a test's own.
struct Made {
    name: String,
    bridge: String,
    /// Without its last byte: `10.200.7.`.
    stem: String,
}

impl Made {
    fn new() -> Self {
        let number = unique();
        let stem = unique_subnet(24).trim_end_matches("0/24").to_owned();
        Self { name: format!("nspool-test-{number:x}"), bridge: format!("ne{number:x}"), stem }
    }

    fn lines(&self) -> Vec<String> {
        vec![
            "pool.networks = [\"own\"]".to_owned(),
            "pool.ready = 1".to_owned(),
            "pool.max = 2".to_owned(),
            "networks.own.kind = \"managed\"".to_owned(),
            "networks.own.rest = \"100ms\"".to_owned(),
            format!("networks.own.engine_network = {:?}", self.name),
            format!("networks.own.bridge = {:?}", self.bridge),
            format!("networks.own.subnet = \"{}0/24\"", self.stem),
        ]
    }

    fn daemon<'e>(&self, engine: &'e TestEngine, more: &[&str]) -> TestDaemon<'e> {
        load_busybox(engine);
        let lines = self.lines();
        let mut daemon = TestDaemon::prepare(engine, &lines.iter().map(String::as_str).collect::<Vec<_>>());
        daemon.configure(more);
        daemon
    }

    async fn started<'e>(&self, engine: &'e TestEngine, more: &[&str]) -> TestDaemon<'e> {
        let mut daemon = self.daemon(engine, more);
        daemon.launch().await;
        daemon
    }

    /// As the engine tells of it; `null`: it is not there.
    fn inspected(&self, engine: &TestEngine) -> serde_json::Value {
        let output = engine.client(&["network", "inspect", &self.name]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        found.get(0).cloned().unwrap_or_default()
    }

    fn id(&self, engine: &TestEngine) -> Option<String> {
        self.inspected(engine)["Id"].as_str().map(str::to_owned)
    }

    fn has_bridge(&self) -> bool {
        Command::new("ip").args(["link", "show", &self.bridge]).output().unwrap().status.success()
    }

    /// A container of the engine's on it, which stays; its address.
    fn container(&self, daemon: &TestDaemon<'_>, name: &str) -> Result<String, String> {
        let label = format!("{TEST_LABEL}={}", daemon.pool);
        let output =
            daemon.engine.client(&["run", "-d", "--name", name, "--label", &label, "--network", &self.name, BUSYBOX, "sleep", "1000"]);
        if !output.status.success() {
            return Err(text(&output.stderr));
        }
        Ok(daemon.engine.run(&["inspect", "-f", &format!("{{{{(index .NetworkSettings.Networks {:?}).IPAddress}}}}", self.name), name]))
    }

    /// The last byte of an address on it.
    fn last(&self, address: &str) -> u8 {
        address.split('/').next().unwrap().strip_prefix(&self.stem).unwrap_or_else(|| panic!("{address} on {}", self.stem)).parse().unwrap()
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

/// Whether a packet comes back.
fn pings(engine: &TestEngine, from: &str, to: &str) -> bool {
    let program = if to.contains(':') { "ping6" } else { "ping" };
    text(&engine.client(&["exec", from, "busybox", program, "-c", "1", "-W", "2", to]).stdout).contains(" 1 packets received")
}

/// With the slots' reason, which is the networks' trouble.
async fn refused(daemon: &TestDaemon<'_>, words: &str) {
    let told = |slot: &proto::Slot| slot.last_error.contains(words) && slot.state != "ready";
    daemon.slot(0, words, told).await;
    daemon.says(words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_and_containers_of_dockers_reach_each_other_and_share_no_address() {
    let (engine, made) = (docker(), Made::new());
    let subnet6 = format!("fd4e:54:{:x}", unique() & 0xffff);
    let with6 = format!("networks.own.subnet6 = \"{subnet6}::/64\"");
    let daemon = made.started(engine, &["networks.own.mtu = 1400", &with6]).await;
    daemon.settled(1).await;
    let found = made.inspected(engine);
    assert_eq!(found["Labels"]["nspool.pool"], daemon.pool);
    assert_eq!(found["Options"]["com.docker.network.bridge.name"], made.bridge);
    let ranges = found["IPAM"]["Config"].as_array().unwrap().clone();
    assert_eq!(ranges[0]["IPRange"], format!("{}0/25", made.stem));
    assert_eq!(ranges[1]["IPRange"], format!("{subnet6}::/65"));

    let lease = daemon.allocate(&daemon.client()).await;
    assert!(lease.mtu == 1400 && made.last(&lease.ip_addresses[0]) >= 128, "{lease:?}");
    let function = daemon.stay(&lease.network_mode);
    for gateway in &lease.gateways {
        // Docker's bridge looks for duplicates of its IPv6 address, once something is on it.
        eventually(gateway, LIMIT, || async { pings(engine, &function, gateway).then_some(()) }).await;
    }
    let name = format!("{}-web", daemon.pool);
    let web = made.container(&daemon, &name).unwrap();
    assert!(made.last(&web) < 128, "{web}");
    assert!(pings(engine, &function, &web));
    for address in &lease.ip_addresses {
        assert!(pings(engine, &name, address.split('/').next().unwrap()), "{address}");
    }
}

/// A host beyond this one, that knows no way back to the slots.
struct Outside {
    name: String,
    address: String,
}

impl Outside {
    fn new() -> Self {
        let number = unique();
        let (name, link) = (format!("no{number:x}"), format!("np{number:x}"));
        let stem = format!("198.18.{}.{}", number >> 6 & 255, (number & 63) << 2);
        let (stem, last) = stem.rsplit_once('.').map(|(stem, last)| (stem.to_owned(), last.parse::<u8>().unwrap())).unwrap();
        let at = |offset: u8| format!("{stem}.{}", last + offset);
        ip(&["netns", "add", &name]);
        let outside = Self { name, address: at(2) };
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &outside.name]);
        ip(&["addr", "add", &format!("{}/30", at(1)), "dev", &link]);
        ip(&["link", "set", &link, "up"]);
        ip(&["-n", &outside.name, "addr", "add", &format!("{}/30", at(2)), "dev", "eth0"]);
        ip(&["-n", &outside.name, "link", "set", "eth0", "up"]);
        outside
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dockers_nat_and_firewall_serve_the_slots() {
    let (engine, outside) = (docker(), Outside::new());
    for nat in [true, false] {
        let made = Made::new();
        let daemon = made.started(engine, &[&format!("networks.own.nat = {nat}")]).await;
        daemon.settled(1).await;
        let lease = daemon.allocate(&daemon.client()).await;
        let function = daemon.stay(&lease.network_mode);
        assert!(pings(engine, &function, &lease.gateways[0]));
        assert_eq!(pings(engine, &function, &outside.address), nat, "there is no way back but by the host's address");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_runs_out_of_addresses_before_it_takes_a_slots() {
    let (engine, made) = (docker(), Made::new());
    let small = format!("networks.own.subnet = \"{}0/28\"", made.stem);
    // The other way round, with the gateway among the slots' addresses.
    let first_half = format!("networks.own.addresses = \"{}0/29\"", made.stem);
    let daemon = made.started(engine, &[&small, &first_half]).await;
    daemon.settled(1).await;
    let mut theirs = BTreeSet::new();
    let refusal = loop {
        match made.container(&daemon, &format!("{}-{}", daemon.pool, theirs.len())) {
            Ok(address) => assert!(theirs.insert(made.last(&address)) && theirs.len() < 10, "{theirs:?}"),
            Err(refusal) => break refusal,
        }
    };
    assert!(refusal.contains("no available IPv4 addresses"), "{refusal}");
    assert!(theirs.iter().all(|last| *last >= 8), "{theirs:?}");
    let client = daemon.client();
    for _ in 0..10 {
        let lease = daemon.allocate(&client).await;
        assert!((2..8).contains(&made.last(&lease.ip_addresses[0])), "{lease:?}");
        client.release(&lease.token, false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemons_network_is_used_by_the_next_one() {
    let (engine, made) = (docker(), Made::new());
    let mut daemon = made.started(engine, &["stop.policy = \"keep\""]).await;
    daemon.settled(1).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let function = daemon.stay(&lease.network_mode);
    daemon.settled_but_leased(1).await;
    let before = made.id(engine).unwrap();
    daemon.kill();
    daemon.launch().await;
    daemon.usage("the lease and a ready one", |usage| usage.leased == 1 && usage.ready == 1).await;
    assert_eq!(made.id(engine).unwrap(), before);
    assert!(pings(engine, &function, &lease.gateways[0]));
    engine.run(&["rm", "-f", &function]);
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.allocate(&daemon.client()).await;
    // A stop that keeps keeps it, too.
    assert_eq!(daemon.stop().await, 0);
    assert_eq!(made.id(engine).unwrap(), before);
    // One that is configured otherwise neither uses nor changes it.
    daemon.configure(&["networks.own.mtu = 1400", "pool.max = 4", "pool.ready = 3"]);
    daemon.launch().await;
    let told = |slot: &proto::Slot| slot.last_error.contains("mtu is 1500, not 1400");
    daemon.level("the difference", |client| async move { client.slots().await.ok()?.slots.iter().any(told).then_some(()) }).await;
    assert_eq!(made.id(engine).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_the_network_away_unless_a_container_is_on_it() {
    let (engine, made) = (docker(), Made::new());
    let mut daemon = made.started(engine, &["stop.policy = \"remove\""]).await;
    daemon.settled(1).await;
    // Never started, so that Docker itself would let the network go.
    let (name, label) = (format!("{}-web", daemon.pool), format!("{TEST_LABEL}={}", daemon.pool));
    engine.run(&["create", "--name", &name, "--label", &label, "--network", &made.name, BUSYBOX, "true"]);
    assert_eq!(daemon.stop().await, 1, "{}", daemon.log());
    daemon.says(&format!("container {name}")).await;
    assert!(made.has_bridge());
    assert_eq!(daemon.containers(), [] as [&str; 0]);
    engine.run(&["rm", &name]);
    daemon.launch().await;
    daemon.settled(1).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert!(made.id(engine).is_none() && !made.has_bridge());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_takes_the_network_away_unless_a_container_is_on_it() {
    let (engine, made) = (docker(), Made::new());
    let mut daemon = made.started(engine, &[]).await;
    daemon.settled(1).await;
    let name = format!("{}-web", daemon.pool);
    made.container(&daemon, &name).unwrap();
    daemon.kill();
    let purge = |more: &[&str]| {
        let args = ["purge", "--pool", &daemon.pool, "--engine-endpoint", &engine.endpoint(), "-o", "json"];
        let output = daemon.cli_of(NSPOOL.as_ref(), &[&args, more].concat()).output().unwrap();
        let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), view)
    };
    let network = format!("network {}", made.name);
    let (code, view) = purge(&[]);
    assert_eq!(
        (code, &view["left"][0]["name"], &view["left"][0]["why"][0]),
        (1, &network.as_str().into(), &format!("container {name}").into())
    );
    assert!(made.has_bridge());
    engine.run(&["rm", "-f", &name]);
    let (_, view) = purge(&["--dry-run"]);
    assert_eq!((&view["removed"][0], made.has_bridge()), (&network.as_str().into(), true));
    let (code, view) = purge(&[]);
    assert_eq!((code, &view["removed"][0]), (0, &network.as_str().into()));
    assert!(made.id(engine).is_none() && !made.has_bridge());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_of_somebody_else_is_refused_and_left() {
    let (engine, made) = (docker(), Made::new());
    let theirs = engine.run(&["network", "create", "--subnet", &format!("{}0/24", made.stem), &made.name]);
    let mut daemon = made.started(engine, &["stop.policy = \"remove\""]).await;
    refused(&daemon, "which nspool did not make").await;
    daemon.kill();
    let purged =
        daemon.cli_of(NSPOOL.as_ref(), &["purge", "--pool", &daemon.pool, "--engine-endpoint", &engine.endpoint()]).output().unwrap();
    assert!(purged.status.success(), "{}", text(&purged.stdout));
    daemon.launch().await;
    refused(&daemon, "which nspool did not make").await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(made.id(engine).unwrap(), theirs);
    // Once it is gone, nothing is in the way.
    daemon.launch().await;
    refused(&daemon, "which nspool did not make").await;
    engine.run(&["network", "rm", &made.name]);
    daemon.settled(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_has_the_bridges_name_is_left() {
    let (engine, made) = (docker(), Made::new());
    ip(&["link", "add", &made.bridge, "type", "bridge"]);
    let daemon = made.started(engine, &[]).await;
    refused(&daemon, "which the engine would take over").await;
    assert_eq!(made.id(engine), None);
    ip(&["link", "del", &made.bridge]);
    daemon.settled(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_pools_network_is_refused_and_left() {
    let (engine, made) = (docker(), Made::new());
    let one = made.started(engine, &[]).await;
    one.settled(1).await;
    let before = made.id(engine);
    let mut other = made.started(engine, &["stop.policy = \"remove\""]).await;
    refused(&other, &format!("which is the pool {}'s", one.pool)).await;
    assert_eq!(other.stop().await, 0, "{}", other.log());
    assert_eq!(made.id(engine), before);
    one.allocate(&one.client()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_removes_is_made_again_and_leases_go_on() {
    let (engine, made) = (docker(), Made::new());
    let daemon = made.started(engine, &[]).await;
    daemon.settled(1).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let function = daemon.stay(&lease.network_mode);
    let mut before = made.id(engine);
    for deed in ["the network", "its bridge"] {
        if deed == "the network" {
            _ = engine.run(&["network", "rm", &made.name])
        } else {
            ip(&["link", "del", &made.bridge])
        }
        let other = || async { made.id(engine).filter(|id| Some(id) != before.as_ref() && made.has_bridge()) };
        before = Some(eventually(deed, LIMIT, other).await);
        // The bridge has another hardware address, which the function has to learn first.
        let again = || async { pings(engine, &function, &lease.gateways[0]).then_some(()) };
        eventually("the gateway", LIMIT, again).await;
        let next = daemon.allocate(&daemon.client()).await;
        daemon.client().release(&next.token, false).await.unwrap();
    }
    let slots = daemon.slots().await;
    assert!(slots.iter().any(|slot| slot.generation == lease.generation && slot.state == "leased"), "{slots:?}");
    // With a container on it the network stays as it is, and it is said why.
    let name = format!("{}-web", daemon.pool);
    made.container(&daemon, &name).unwrap();
    ip(&["link", "del", &made.bridge]);
    let said = || async { daemon.log().contains(&format!("cannot be made anew: on it are {name}")).then_some(()) };
    eventually("the reason", LIMIT, said).await;
    assert_eq!(made.id(engine), before);
    engine.run(&["rm", "-f", &name]);
    eventually("the bridge", Duration::from_secs(90), || async { made.has_bridge().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_makes_none_and_says_why() {
    let (engine, made) = (podman(), Made::new());
    let mut daemon = made.started(engine, &["stop.policy = \"remove\""]).await;
    refused(&daemon, "only while a container of its own is on it").await;
    assert_eq!(made.id(engine), None);
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}
