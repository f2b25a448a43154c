//! `reuse = "verified"`: the same namespace again when a function has left nothing in it that lasts, by real functions on real engines; and what
//! the same deeds come to under `fresh`.

use nspool::engine::EngineKind;
use nspool::proto;

use super::seen::{listener, metrics, sum};
use crate::support::daemon::{TestDaemon, load_busybox, returned, text};
use crate::support::engines::{TestEngine, docker, unique, unique_subnet};

on_both_engines!(
    a_clean_namespace_is_used_again,
    what_is_left_costs_the_buddy_and_is_told,
    an_inspection_shows_what_a_function_does,
    a_privileged_function_is_the_last_one,
    a_killed_daemon_goes_on_with_those_that_are_ready,
    an_ipc_object_costs_the_buddy,
    what_the_host_tracks_for_the_address_is_forgotten,
    fresh_shows_nobody_any_deed,
);

/// With the host's programs, which a function's image does not have.
const TOOLS: [&str; 6] = ["-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro"];

/// Containers of other tests come and go, and podman tells of them late: of one that is gone by then nobody knows in which slot it was.
const UNKNOWN: &str = "pool.privileged_joiners = \"inspect\"";

async fn started<'e>(engine: &'e TestEngine, more: &[&str]) -> TestDaemon<'e> {
    load_busybox(engine);
    let lines = [&["pool.ready = 1", "pool.max = 1", "pool.reuse = \"verified\"", UNKNOWN], more].concat();
    let daemon = TestDaemon::start(engine, &lines).await;
    daemon.settled(1).await;
    daemon
}

/// A function's words, or its failure's; in the host's shell, when the options bring the host's programs.
fn function(daemon: &TestDaemon<'_>, lease: &proto::Lease, options: &[&str], command: &str) -> Result<String, String> {
    let shell: &[&str] =
        if options.contains(&TOOLS[1]) { &["/usr/bin/env", "PATH=/usr/bin:/usr/sbin", "dash", "-c"] } else { &["sh", "-c"] };
    daemon.function(&[&["run", "--rm"], options].concat(), &lease.network_mode, &[shell, &[command]].concat())
}

/// Can write settings of the kernel, and is told apart from others: full privileges are not to be had everywhere.
fn powerful(engine: &TestEngine) -> &'static [&'static str] {
    match engine.kind {
        EngineKind::Native => unreachable!("not verified there"),
        EngineKind::Podman => &["--privileged"],
        EngineKind::Docker | EngineKind::Fake => &["--cap-add", "NET_ADMIN", "--security-opt", "systempaths=unconfined"],
    }
}

/// A lease, a function in it that may fail, and the release. Answers the lease and what the function said.
async fn used(daemon: &TestDaemon<'_>, options: &[&str], command: &str) -> (proto::Lease, Result<String, String>) {
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let said = function(daemon, &lease, options, command);
    returned(&client.release(&lease.token, false).await.unwrap());
    daemon.settled(1).await;
    (lease, said)
}

async fn a_clean_namespace_is_used_again(engine: &TestEngine) {
    let (line, address) = listener();
    let daemon = started(engine, &[&line]).await;
    // Leaves a connection in TIME-WAIT, and a neighbour (where nobody listens): that is removed.
    let talk = "set -e; nc -l -p 5000 >/dev/null & until echo hello | nc 127.0.0.1 5000; do sleep 0.05; done; wait
        ! nc -w 2 $(ip route | awk '/default/ {print $3}') 9 </dev/null";
    for _ in 0..3 {
        let (lease, said) = used(&daemon, &["--user", "1000"], talk).await;
        said.unwrap();
        let next = daemon.slots().await.remove(0);
        assert_eq!((next.generation, next.r#use), (lease.generation, lease.r#use + 1));
        assert_ne!(next.namespace_id, lease.namespace_id);
    }
    assert!(!daemon.log().contains("left behind"), "{}", daemon.log());
    let text = metrics(&address);
    for kind in ["connection", "neighbour"] {
        assert!(sum(&text, "nspool_leftovers_removed_total", &format!("kind=\"{kind}\"")) >= 3.0, "{kind}: {text}");
    }
}

async fn what_is_left_costs_the_buddy_and_is_told(engine: &TestEngine) {
    let daemon = started(engine, &[]).await;
    let (lease, said) = used(&daemon, &[], "echo 6.6.6.6 bank >> /etc/hosts").await;
    said.unwrap();
    daemon.says("shared_file hosts: was ").await;
    let told = daemon.log();
    assert!(told.contains("left behind") && told.contains("shared_file hosts: was "), "{told}");
    let (next, said) = used(&daemon, &[], "cat /etc/hosts").await;
    assert!(next.generation > lease.generation && !said.unwrap().contains("bank"));
}

/// Waits until an inspection of the slot says so: one that takes too long says that instead.
async fn inspected(daemon: &TestDaemon<'_>, code: i32, words: &str) {
    let look = |_| async {
        let inspected = daemon.cli(&["inspect", "0"]);
        (inspected.status.code() == Some(code) && text(&inspected.stdout).contains(words)).then_some(())
    };
    daemon.level(words, look).await;
}

async fn an_inspection_shows_what_a_function_does(engine: &TestEngine) {
    let daemon = started(engine, &[]).await;
    inspected(&daemon, 0, "as it was when it was ready").await;
    let lease = daemon.allocate(&daemon.client()).await;
    let function = daemon.function(
        &["run", "-d", "--cap-add", "NET_ADMIN"],
        &lease.network_mode,
        &["sh", "-c", "ip route add 198.51.100.0/24 dev eth0 && echo 6.6.6.6 bank >> /etc/hosts && exec nc -l -p 4444"],
    );
    let function = function.unwrap();
    let shown = daemon
        .level("the function's deeds", |_| async {
            let found = daemon.cli(&["inspect", "0", "-o", "json"]);
            let shown: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
            let has = |kind: &str| shown["differences"].as_array().unwrap().iter().any(|found| found["kind"] == kind);
            ["route", "socket", "shared_file"].into_iter().all(has).then_some(shown)
        })
        .await;
    assert_eq!(shown["is_as_it_was"], false);
    inspected(&daemon, 1, "route 198.51.100.0/24").await;
    engine.run(&["rm", "-f", function.trim()]);
    let (unknown, reuse) = (daemon.cli(&["inspect", "7"]), daemon.cli(&["inspect", "x"]));
    assert_eq!((unknown.status.success(), reuse.status.code()), (false, Some(64)));
}

async fn a_privileged_function_is_the_last_one(engine: &TestEngine) {
    let daemon = started(engine, &["pool.privileged_joiners = \"retire\""]).await;
    let (lease, said) = used(&daemon, powerful(engine), "true").await;
    said.unwrap();
    let (next, _) = used(&daemon, &[], "true").await;
    assert!(next.generation > lease.generation, "{}", daemon.log());
    daemon.says("a privileged container was inside").await;
    drop(daemon);
    let daemon = started(engine, &["pool.privileged_joiners = \"inspect\""]).await;
    let (lease, said) = used(&daemon, powerful(engine), "true").await;
    said.unwrap();
    let (next, said) = used(&daemon, powerful(engine), SETTING).await;
    said.unwrap();
    assert_eq!(next.generation, lease.generation, "it did nothing: {}", daemon.log());
    let (last, _) = used(&daemon, &[], "true").await;
    assert!(last.generation > lease.generation, "{}", daemon.log());
    daemon.says("sysctl").await;
}

async fn a_killed_daemon_goes_on_with_those_that_are_ready(engine: &TestEngine) {
    load_busybox(engine);
    let lines = ["pool.ready = 1", "pool.max = 2", "pool.reuse = \"verified\"", "stop.policy = \"keep\"", UNKNOWN];
    let mut daemon = TestDaemon::start(engine, &lines).await;
    daemon.settled(1).await;
    let lease = daemon.allocate(&daemon.client()).await;
    daemon.settled_but_leased(1).await;
    daemon.kill();
    daemon.launch().await;
    let client = daemon.client();
    daemon.settled_but_leased(1).await;
    // What it was at first is not known any more, and what its function did is not to be taken for that.
    client.release(&lease.token, false).await.unwrap();
    daemon.slot(lease.slot, "the end of its buddy", |slot| slot.generation != lease.generation || slot.state == "vacant").await;
    let ready = daemon.allocate(&client).await;
    client.release(&ready.token, false).await.unwrap();
    daemon.slot(ready.slot, "the next use", |slot| slot.state == "ready" && slot.r#use == ready.r#use + 1).await;
}

async fn an_ipc_object_costs_the_buddy(engine: &TestEngine) {
    let daemon = started(engine, &["pool.namespaces = [\"net\", \"ipc\"]"]).await;
    for (deed, survives) in [("true", true), ("ipcmk -M 64", false), ("echo left > /dev/shm/left", false), ("true", true)] {
        let client = daemon.client();
        let lease = daemon.allocate(&client).await;
        let options = [&["--ipc", &lease.network_mode], &TOOLS[..]].concat();
        function(&daemon, &lease, &options, deed).unwrap();
        client.release(&lease.token, false).await.unwrap();
        daemon.settled(1).await;
        let next = daemon.slots().await.remove(0);
        assert_eq!(next.generation == lease.generation, survives, "{deed}: {}", daemon.log());
    }
    let named = daemon.log().lines().filter(|line| line.contains("left behind") && line.contains("difference=ipc ")).count();
    assert!(named >= 2, "{}", daemon.log());
}

async fn what_the_host_tracks_for_the_address_is_forgotten(engine: &TestEngine) {
    let (line, listen) = listener();
    let daemon = started(engine, &[&line]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let address = lease.ip_addresses[0].split('/').next().unwrap();
    // An entry that nothing else removes for half a minute.
    function(&daemon, &lease, &[], &format!("ping -c 1 {}", lease.gateways[0])).unwrap();
    // Not every kernel shows its table as a file.
    let tracked = || {
        let all = std::fs::read_to_string("/proc/net/nf_conntrack").ok()?;
        Some(all.lines().filter(|line| line.split_whitespace().any(|word| word == format!("src={address}"))).count())
    };
    assert_ne!(tracked(), Some(0), "the host tracks what passes its bridges");
    client.release(&lease.token, false).await.unwrap();
    let again = daemon.slot(lease.slot, "the next use", |slot| slot.state == "ready" && slot.r#use == lease.r#use + 1).await;
    assert_eq!((again.generation, tracked().unwrap_or(0)), (lease.generation, 0), "{}", daemon.log());
    let text = metrics(&listen);
    assert!(sum(&text, "nspool_leftovers_removed_total", "kind=\"conntrack\"") >= 1.0, "{text}");
}

/// What a joiner can do, what it is called when it is found, and what the next tenant must not see.
const DEEDS: &[(&str, &str, &str)] = &[
    ("ip addr add 192.0.2.7/32 dev lo", "address", "192.0.2.7"),
    ("ip route add 198.51.100.0/24 dev eth0", "route", "198.51.100.0"),
    ("ip route add 203.0.113.0/24 dev eth0 table 77", "route", "203.0.113.0"),
    ("ip rule add from 192.0.2.9 table 77", "rule", "192.0.2.9"),
    ("ip link set eth0 mtu 1280", "link", "mtu 1280"),
    ("ip link set eth0 address 02:00:00:dd:dd:01", "link", "02:00:00:dd:dd:01"),
    ("ip link set eth0 alias dirty", "link", "alias dirty"),
    ("ip link add dirt0 type veth peer name dirt1", "link", "dirt0"),
    ("ip neigh add 192.0.2.8 lladdr 02:00:00:dd:dd:02 dev eth0", "neighbour", "192.0.2.8"),
    ("tc qdisc add dev eth0 root netem delay 10ms || tc qdisc add dev eth0 root pfifo limit 7", "qdisc", "limit 7p"),
    ("nft add table ip dirty", "nftables", "table ip dirty"),
    ("ip xfrm policy add src 192.0.2.5 dst 192.0.2.6 dir out", "xfrm_policy", "192.0.2.5"),
    ("echo 6.6.6.6 bank >> /etc/hosts", "shared_file", "bank"),
    ("echo nameserver 6.6.6.6 > /etc/resolv.conf", "shared_file", "6.6.6.6"),
];

const LOOK: &str = "ip -d addr; ip -d link; ip route show table all; ip rule; ip neigh; tc qdisc; nft list ruleset; ip xfrm policy; cat /etc/hosts /etc/resolv.conf";

/// 64 where nobody changed it.
const SETTING: &str = "echo 77 > /proc/sys/net/ipv4/ip_default_ttl";

/// Of a namespace, and what only a privileged one writes there.
const SETTINGS: [(&str, &str); 5] = [
    ("ipv4/ip_default_ttl", "77"),
    ("core/somaxconn", "77"),
    ("ipv4/tcp_syn_retries", "3"),
    ("ipv4/conf/all/route_localnet", "1"),
    ("ipv6/conf/default/hop_limit", "77"),
];

type Joiner = (&'static [&'static str], fn(&str) -> bool);

/// As whom, and which of the deeds that one may do.
const JOINERS: &[Joiner] =
    &[(&["--user", "1000"], |_| false), (&[], |kind| kind == "shared_file"), (&["--cap-add", "NET_ADMIN"], |_| true)];

async fn every_deed_is_found_by_its_name_or_was_not_done(engine: &TestEngine) {
    let daemon = started(engine, &[]).await;
    for (options, may) in JOINERS {
        let options = [*options, &TOOLS].concat();
        for (deed, kind, trace) in DEEDS.iter().filter(|(_, kind, _)| may(kind)) {
            let before = daemon.log().len();
            let (lease, said) = used(&daemon, &options, deed).await;
            said.unwrap_or_else(|error| panic!("{deed}: {error}"));
            let is_named = |line: &str| line.contains("left behind") && line.contains(&format!("difference={kind} "));
            let named = |_| async { daemon.log()[before..].lines().any(is_named).then_some(()) };
            daemon.level(&format!("{deed} as {options:?} to be named"), named).await;
            let client = daemon.client();
            let next = daemon.allocate(&client).await;
            let seen = function(&daemon, &next, &options, LOOK).unwrap();
            assert!(next.generation > lease.generation && !seen.contains(trace), "{deed}: the next one sees\n{seen}");
            client.release(&next.token, false).await.unwrap();
            daemon.settled(1).await;
        }
        let tried: Vec<&str> = DEEDS.iter().filter(|(_, kind, _)| !may(kind)).map(|(deed, _, _)| *deed).collect();
        if !tried.is_empty() {
            let (lease, _) = used(&daemon, &options, &tried.join("; ")).await;
            let (twin, _) = used(&daemon, &options, "true").await;
            assert_eq!(
                (twin.generation, twin.r#use),
                (lease.generation, lease.r#use + 1),
                "{options:?} could do nothing:\n{}",
                daemon.log()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verified_finds_every_deed_by_its_name() {
    every_deed_is_found_by_its_name_or_was_not_done(docker()).await;
}

async fn fresh_shows_nobody_any_deed(engine: &TestEngine) {
    load_busybox(engine);
    let lines = [
        "pool.ready = 1".to_owned(),
        "pool.max = 1".to_owned(),
        "pool.networks = [\"own\"]".to_owned(),
        "networks.own.kind = \"managed\"".to_owned(),
        format!("networks.own.bridge = \"nt{:x}\"", unique()),
        format!("networks.own.subnet = {:?}", unique_subnet(24)),
        "networks.own.rest = \"0s\"".to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let daemon = TestDaemon::start(engine, &lines).await;
    daemon.settled(1).await;
    let deeds: Vec<&str> = DEEDS.iter().map(|(deed, _, _)| *deed).collect();
    let settings = format!("cat {}", SETTINGS.map(|(file, _)| format!("/proc/sys/net/{file}")).join(" "));
    let write = SETTINGS.map(|(file, value)| format!("echo {value} > /proc/sys/net/{file}")).join("; ");
    let (_, clean) = used(&daemon, &[], &settings).await;
    let clean = clean.unwrap();
    let all: [&[&str]; 4] = [&["--user", "1000"], &[], &["--cap-add", "NET_ADMIN"], powerful(engine)];
    for (number, options) in all.into_iter().enumerate() {
        let options = [options, &TOOLS].concat();
        let command = format!("{}; {write}; {settings}; {LOOK}", deeds.join("; "));
        let (lease, said) = used(&daemon, &options, &command).await;
        let said = said.unwrap();
        let done = DEEDS.iter().filter(|(_, _, trace)| said.contains(trace)).count();
        assert!(number < 2 || done >= 10, "{options:?} did {done}:\n{said}");
        let written = SETTINGS.iter().zip(said.lines()).filter(|((_, value), line)| value == line).count();
        assert_eq!(written, if number == 3 { SETTINGS.len() } else { 0 }, "{options:?} wrote {written} settings:\n{said}");
        let (next, seen) = used(&daemon, &options, &format!("{settings}; {LOOK}")).await;
        let seen = seen.unwrap();
        let traces: Vec<&str> = DEEDS.iter().map(|(_, _, trace)| *trace).filter(|trace| seen.contains(trace)).collect();
        assert!(traces.is_empty() && seen.starts_with(&clean), "after {options:?} the next one sees {traces:?}:\n{seen}");
        assert_eq!((next.generation, next.r#use), (lease.generation, lease.r#use + 1), "{}", daemon.log());
    }
}
