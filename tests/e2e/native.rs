//! Namespaces without a container engine: made by the daemon's helper, joined by path.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nspool::client::Request;

use nspool::lock::{LOCKS, PoolLock};
use nspool::proto::{self, ReleaseOutcome};

use super::fresh::{address, links, one_slot, own, run};
use super::helper::helpers;
use crate::support::daemon::{LIMIT, TestDaemon, joined, kill, text};
use crate::support::engines::native;

/// With a network of its own.
async fn started(more: &[&str]) -> (TestDaemon<'static>, String) {
    let (lines, bridge) = own(more);
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    (TestDaemon::start(native(), &lines).await, bridge)
}

/// Here, where the daemon is: what is mounted on /sys may be another network namespace's.
fn is_link(name: &str) -> bool {
    let links = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    links.lines().any(|line| line.trim_start().strip_prefix(name).is_some_and(|rest| rest.starts_with(':')))
}

fn file(lease: &proto::Lease, kind: &str) -> String {
    let of_kind = lease.oci_namespaces.iter().find(|namespace| namespace.r#type == kind);
    of_kind.unwrap_or_else(|| panic!("no {kind} in {:?}", lease.oci_namespaces)).path.clone()
}

/// A program in the lease's namespaces; what it printed.
fn inside(lease: &proto::Lease, command: &str) -> Result<String, String> {
    let options = lease.oci_namespaces.iter().map(|namespace| match namespace.r#type.as_str() {
        "network" => format!("--net={}", namespace.path),
        kind => format!("--{kind}={}", namespace.path),
    });
    let output = Command::new("nsenter").args(options).args(["sh", "-c", command]).output().unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// A process that stays in the lease's network namespace until it is killed.
struct Stays(Child);

impl Stays {
    fn inside(lease: &proto::Lease) -> Self {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", lease.netns_path)).args(["sh", "-c", "echo in; exec sleep 1000"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        Self(child)
    }
}

impl Drop for Stays {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait());
    }
}

/// All that a function can do to its namespaces.
const DIRT: &str = "ip addr add 192.0.2.7/32 dev lo && ip link add dirt0 type veth peer name dirt1 && ip route add 198.51.100.0/24 dev eth0 \
    && hostname evil && ipcmk -M 7654321 > /dev/null";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_use_sees_nothing_of_the_last_one_and_its_paths_are_gone() {
    let (daemon, _) = started(&[&one_slot()[..], &["pool.namespaces = [\"net\", \"ipc\", \"uts\"]"]].concat()).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let mut addresses = BTreeSet::new();
    let mut container = None;
    for number in 1..=4 {
        let lease = daemon.allocate(&client).await;
        assert_eq!((lease.r#use, lease.container_id.as_str()), (number, ""), "{}", daemon.log());
        assert!(addresses.insert(lease.ip_addresses.clone()));
        let slot = daemon.slots().await.remove(0);
        assert_eq!(*container.get_or_insert(slot.container_id.clone()), slot.container_id, "the same buddy");
        let root = daemon.dir.path().join("ns").join(&daemon.pool).join(&lease.namespace_id);
        assert_eq!((Path::new(&lease.netns_path), Path::new(&file(&lease, "uts"))), (&*root.join("net"), &*root.join("uts")));
        assert_eq!(lease.network_mode, format!("ns:{}", lease.netns_path));
        let seen = inside(&lease, "ip -o addr; ip -o link; ip route; hostname; ipcs -m").unwrap();
        assert!(seen.contains(&lease.ip_addresses[0]) && seen.contains(&format!("default via {}", lease.gateways[0])), "{seen}");
        for trace in ["192.0.2.7", "dirt0", "198.51.100.0", "evil", "7654321"] {
            assert!(!seen.contains(trace), "use {number} sees {trace} of the one before:\n{seen}");
        }
        inside(&lease, &format!("busybox ping -c 1 -W 2 {}", lease.gateways[0])).unwrap();
        inside(&lease, DIRT).unwrap();
        assert!(inside(&lease, "hostname; ipcs -m").unwrap().contains("7654321"), "it was there");
        assert_eq!(client.release(&lease.token, false).await.unwrap().outcome(), ReleaseOutcome::Returned);
        // The fence.
        daemon.slot(0, "the next use", |slot| slot.r#use == number + 1 && slot.state == "ready").await;
        assert!(!Path::new(&lease.netns_path).exists() && inside(&lease, "true").is_err());
    }
    assert_eq!(daemon.log().matches("buddy ready").count(), 1, "no other buddy was made:\n{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_inside_keeps_the_namespace_and_its_address_and_nobody_follows() {
    let (daemon, _) = started(&one_slot()).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let stays = Stays::inside(&lease);
    client.release(&lease.token, false).await.unwrap();
    let slot = daemon.slot(0, "quarantine", |slot| slot.state == "quarantined").await;
    assert!(slot.joiners.iter().any(|who| who.contains(&stays.0.id().to_string())), "{slot:?}");
    assert!(inside(&lease, "true").is_err(), "nobody follows by the lease's path");
    let there = run(&["nsenter", "-t", &stays.0.id().to_string(), "-n", "ip", "-o", "addr"]);
    assert!(there.contains(address(&lease)), "its link stays: {there}");
    drop(stays);
    daemon.settled(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_loses_nothing() {
    let (mut daemon, bridge) = started(&["pool.ready = 2", "pool.max = 4"]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    daemon.settled_but_leased(1).await;
    let stays = Stays::inside(&lease);
    let before = daemon.slots().await;
    daemon.kill();
    daemon.launch().await;
    daemon.usage("what was there", |usage| usage.ready >= 2 && usage.leased == 1).await;
    let after = daemon.slots().await;
    for slot in before.iter().filter(|slot| ["ready", "leased"].contains(&slot.state.as_str())) {
        let now = after.iter().find(|now| now.slot == slot.slot).unwrap();
        assert_eq!((&now.namespace_id, &now.container_id, &now.state), (&slot.namespace_id, &slot.container_id, &slot.state));
    }
    let same = daemon.client().lease(&lease.token).await.unwrap();
    assert_eq!((same.netns_path.as_str(), same.ip_addresses.clone()), (lease.netns_path.as_str(), lease.ip_addresses.clone()));
    assert!(inside(&same, "ip -o addr").unwrap().contains(address(&lease)));
    drop(stays);
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.usage("all ready", |usage| usage.leased + usage.vacating + usage.renewing == 0).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.mounts().len(), 0, "{:?}", daemon.mounts());
    assert!(!is_link(&bridge));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_helper_takes_no_namespace_along() {
    let (daemon, bridge) = started(&["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    kill("KILL", helpers(&daemon).await.1);
    assert!(inside(&lease, "ip -o addr").unwrap().contains(address(&lease)));
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(2).await;
    links(&daemon, &bridge, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_with_somebody_inside_names_them_and_a_purge_takes_the_rest() {
    let (mut daemon, bridge) = started(&["pool.ready = 2", "pool.max = 2", "stop.timeout = \"5s\""]).await;
    daemon.settled(2).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let stays = Stays::inside(&lease);
    assert_eq!(daemon.stop().await, 1, "{}", daemon.log());
    daemon.says(&format!("process {} ", stays.0.id())).await;
    let namespaces = daemon.dir.path().join("ns").display().to_string();
    let purge = |expected: i32| {
        let output = daemon.cli(&["purge", "--pool", &daemon.pool, "--engine", "native", "--namespaces", &namespaces, "-o", "json"]);
        assert_eq!(output.status.code(), Some(expected), "{}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let left = purge(1);
    assert!(left["left"][0]["why"][0].as_str().unwrap().contains(&stays.0.id().to_string()), "{left}");
    drop(stays);
    let gone = purge(0);
    assert_eq!(gone["removed"].as_array().unwrap().len(), 1, "{gone}");
    assert_eq!(daemon.mounts().len(), 0, "{:?}", daemon.mounts());
    assert!(!Path::new(&namespaces).exists() && !is_link(&bridge));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_takes_nothing_that_another_engine_may_have() {
    let (mut daemon, bridge) = started(&["pool.ready = 1", "pool.max = 1"]).await;
    daemon.settled(1).await;
    let namespaces = daemon.dir.path().join("ns");
    daemon.kill();
    let purge = || {
        let output =
            daemon.cli(&["purge", "--pool", &daemon.pool, "--engine", "native", "--namespaces", &namespaces.display().to_string()]);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    // The pool's links have its name alone, whatever its engine.
    let another = PoolLock::take(LOCKS.as_ref(), "an engine", &daemon.pool).unwrap();
    let (code, out, err) = purge();
    assert!((code, out.as_str()) == (Some(75), "") && err.contains("another nspool runs"), "{err}");
    assert_eq!(daemon.mounts().len(), 2, "the root and one namespace: {:?}", daemon.mounts());
    drop(another);

    // A container's namespaces, by which functions join it.
    let containers = namespaces.join(&daemon.pool).join("nspool-x");
    std::fs::create_dir(&containers).unwrap();
    std::fs::write(containers.join("net"), "").unwrap();
    let (code, out, err) = purge();
    assert_eq!(code, Some(1), "{err}");
    assert!(out.contains(&containers.display().to_string()) && out.contains("purge the pool on its container engine"), "{out}");
    assert!(containers.exists() && is_link(&bridge));
    std::fs::remove_dir_all(&containers).unwrap();
    assert_eq!(purge().0, Some(0));
    assert!(!namespaces.exists() && !is_link(&bridge));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_ours_until_all_of_it_is_gone() {
    let (mut daemon, _) = started(&["pool.ready = 1", "pool.max = 1", "stop.timeout = \"2s\""]).await;
    daemon.settled(1).await;
    let folder = daemon.dir.path().join("ns").join(&daemon.pool);
    let buddy = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    std::fs::create_dir(buddy.join("somebodys")).unwrap();
    assert_eq!(daemon.stop().await, 1, "{}", daemon.log());
    daemon.says("/somebodys").await;
    let left = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert!(left.join("buddy.json").exists() && left.join("somebodys").exists(), "{left:?}");
    std::fs::remove_dir(left.join("somebodys")).unwrap();
    daemon.configure(&["stop.timeout = \"20s\""]);
    daemon.launch().await;
    daemon.level("the folder to be gone", |_| async { (!left.exists()).then_some(()) }).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_start_left_half_made_goes_and_what_is_not_ours_stays() {
    let (mut daemon, _) = started(&["pool.ready = 1", "pool.max = 1"]).await;
    daemon.settled(1).await;
    daemon.kill();
    let folder = daemon.dir.path().join("ns").join(&daemon.pool);
    // As if it had been killed before the record, before the mounts, and before the name.
    let buddy = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let record = std::fs::read(buddy.join("buddy.json")).unwrap();
    let half = |name: String, has_record: bool| {
        let path = folder.join(name);
        std::fs::create_dir(&path).unwrap();
        if has_record {
            let other = text(&record).replacen("\"id\":\"", "\"id\":\"f", 1);
            std::fs::write(path.join("buddy.json"), other.replace("\"nspool.slot\":\"0\"", "\"nspool.slot\":\"7\"")).unwrap();
        }
        path
    };
    let generation = buddy.file_name().unwrap().to_str().unwrap().rsplit('-').nth(2).unwrap().to_owned();
    let ours = [half(".nspool-x-1-1-1-00000000".into(), false), half(format!(".nspool-{}-7-{generation}-1-00000000", daemon.pool), true)];
    let others = folder.join("somebodys");
    std::fs::create_dir(&others).unwrap();
    std::fs::write(others.join("file"), "x").unwrap();
    daemon.launch().await;
    daemon.settled(1).await;
    daemon.level("the half-made to be gone", |_| async { ours.iter().all(|path| !path.exists()).then_some(()) }).await;
    assert!(others.join("file").exists() && buddy.exists());
}

/// As a pool on a container engine leaves it: the folder of a use, with a namespace that somebody is in, or nobody, or with none.
fn containers_folder(daemon: &TestDaemon<'_>, slot: u32, make: &str) -> std::path::PathBuf {
    let folder = daemon.dir.path().join("ns").join(&daemon.pool).join(format!("nspool-{}-{slot}-1-1-00000000", daemon.pool));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("net"), "").unwrap();
    run(&["sh", "-ec", &make.replace("FILE", &folder.join("net").display().to_string())]);
    folder
}

fn audited(daemon: &TestDaemon<'_>, more: &[&str]) -> Vec<serde_json::Value> {
    let output = daemon.cli(&[&["audit", "-o", "json"], more].concat());
    let audit = serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    audit["findings"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_pool_left_on_a_container_engine_goes_when_nobody_is_in_it() {
    let (mut daemon, _) = started(&["pool.ready = 1", "pool.max = 1"]).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let nobodys = "unshare --net=FILE true";
    let over = containers_folder(&daemon, 9, nobodys);
    let rows = audited(&daemon, &[]);
    assert!(rows.len() == 1 && rows[0]["kind"] == "folder" && rows[0]["fixable"] == true && over.exists(), "{rows:?}");
    let rows = audited(&daemon, &["--fix"]);
    assert!(rows.len() == 1 && rows[0]["fixed"] == true && !over.exists(), "{rows:?}");
    assert!(audited(&daemon, &[]).is_empty());

    daemon.kill();
    let over = containers_folder(&daemon, 9, nobodys);
    // The host's: whoever runs this is in there.
    let somebodys = containers_folder(&daemon, 8, "mount --bind /proc/self/ns/net FILE");
    let unmounted = containers_folder(&daemon, 7, "true");
    let others = containers_folder(&daemon, 6, "touch FILE-and-more");
    daemon.launch().await;
    daemon.level("what is over to be gone", |_| async { (!over.exists()).then_some(()) }).await;
    assert_eq!(daemon.client().lease(&lease.token).await.unwrap().netns_path, lease.netns_path);
    inside(&lease, "true").unwrap();
    daemon.usage("the lease", |usage| usage.leased == 1 && usage.vacating + usage.filling == 0).await;
    daemon.taken_over().await;
    let rows = audited(&daemon, &["--fix"]);
    assert_eq!(rows.len(), 3, "{rows:?}");
    for (folder, why) in
        [(somebodys, "is in its net namespace"), (unmounted, "no net namespace is mounted"), (others, "net-and-more in it is not nspool's")]
    {
        let name = format!("folder {}", folder.file_name().unwrap().display());
        let found = rows.iter().find(|found| found["subject"] == *name).unwrap();
        assert!(found["kind"] == "stray" && found["fixable"] == false && folder.join("net").exists(), "{found}");
        assert!(found["detail"].as_str().unwrap().contains(why), "{found}");
    }
    assert_eq!(daemon.log().matches("is left alone").count(), 3, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_do_to_the_folders_is_found() {
    let (daemon, _) = started(&["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let folder = Path::new(&lease.netns_path).parent().unwrap().to_owned();
    // The namespace is held open by others.
    run(&["umount", "-l", &lease.netns_path]);
    let audit = daemon.cli(&["audit", "-o", "json"]);
    assert_eq!(audit.status.code(), Some(1), "{}", text(&audit.stdout));
    assert!(
        text(&audit.stdout).contains(&lease.namespace_id) || text(&audit.stdout).contains(&format!("slot {}", lease.slot)),
        "{}",
        text(&audit.stdout)
    );
    std::fs::remove_dir_all(folder).unwrap();
    daemon
        .level("the lease to be lost", |client| {
            let token = lease.token.clone();
            async move { client.lease(&token).await.is_ok_and(|lease| lease.state() == proto::LeaseState::Lost).then_some(()) }
        })
        .await;
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.settled(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_of_loopback_alone_needs_no_bridge() {
    let daemon = TestDaemon::start(native(), &["pool.networks = [\"none\"]", "pool.ready = 1", "pool.max = 1"]).await;
    let lease = daemon.allocate(&daemon.client()).await;
    assert_eq!(lease.ip_addresses, [""; 0]);
    let seen = inside(&lease, "ip -o link; busybox ping -c 1 -W 2 127.0.0.1").unwrap();
    assert_eq!(seen.matches("lo:").count(), 1, "{seen}");
    daemon.client().release(&lease.token, false).await.unwrap();
    let next = daemon.allocate(&daemon.client()).await;
    assert_eq!((next.r#use, inside(&lease, "true").is_err()), (2, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_joined_by_path_is_a_joiner_of_its_lease() {
    let (daemon, _) = started(&["pool.ready = 1", "pool.max = 1", "pool.linger = \"1s\"", "pool.count_every = \"100ms\""]).await;
    let client = daemon.client();
    let mut events = client.watch(None).await.unwrap();
    let lease = client.allocate(Request::new().wait(LIMIT).joiners(Some(LIMIT))).await.unwrap().keep();
    let stays = Stays::inside(&lease);
    let told = joined(&mut events, &lease).await;
    let whois = daemon.json(&["whois", &stays.0.id().to_string()]);
    assert_eq!((whois["kind"].as_str(), whois["lease"]["lease_id"].as_str()), (Some("process"), Some(&*lease.lease_id)), "{whois}");
    assert_eq!(told.cause, format!("process {}", stays.0.id()));
    // It was not to be joined for longer than that; now it is, and stays.
    let same = client.lease(&lease.token).await.unwrap();
    assert_eq!(same.remaining, None, "nothing is pending: {same:?}");
    drop(stays);
    daemon.slot(0, "the next use, after the last joiner's end", |slot| slot.state == "ready" && slot.generation > lease.generation).await;
    let ended = client.release(&lease.token, false).await.unwrap();
    assert_eq!(ended.outcome(), ReleaseOutcome::AlreadyEnded, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_nobody_joins_by_path_ends_by_itself() {
    let (daemon, _) = started(&["pool.ready = 1", "pool.max = 1", "pool.count_every = \"100ms\""]).await;
    let lease = daemon.client().allocate(Request::new().wait(LIMIT).joiners(Some(Duration::from_secs(1)))).await.unwrap().keep();
    daemon.slot(0, "the end of the lease", |slot| slot.state == "ready" && slot.lease_id.is_empty()).await;
    let ended = daemon.client().release(&lease.token, false).await.unwrap();
    assert_eq!(ended.outcome(), ReleaseOutcome::AlreadyEnded, "{ended:?}");
}

/// A host on which nothing speaks of a container engine.
const BARE: &str = "mount -t tmpfs none /run; for folder in /etc/systemd/system /usr/lib/systemd/system; do mkdir -p $folder; \
    mount -t tmpfs none $folder; done; exec \"$@\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_needs_no_engine_where_nothing_speaks_of_one() {
    let (lines, _) = own(&one_slot());
    let mut daemon = TestDaemon::prepare(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>());
    daemon.configure(&["engine.kind = \"auto\""]);
    let mut command = daemon.command(&["unshare", "-m", "sh", "-c", BARE, "sh"]);
    command.env("HOME", daemon.dir.path());
    daemon.launch_as(command).await;
    daemon.settled(1).await;
    daemon.says("nothing on this host speaks of Docker or podman").await;
    assert!(text(&daemon.cli(&["usage"]).stdout).contains("(native "));
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());

    // The same, with a client's configuration: the engine is waited for.
    let home = daemon.dir.path().join(".docker");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("config.json"), "{}").unwrap();
    daemon.configure(&["pool.networks = [\"bridge\"]"]);
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    std::fs::write(
        daemon.config(),
        text.lines().filter(|line| !line.starts_with("networks.")).map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    let mut command = daemon.command(&["unshare", "-m", "sh", "-c", BARE, "sh"]);
    command.env("HOME", daemon.dir.path());
    daemon.launch_as(command).await;
    let usage = daemon.client().usage().await.unwrap();
    daemon.says("a container engine is wanted: there is").await;
    assert_ne!(usage.engine_state, "up", "{usage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_stays_with_what_the_slots_that_are_kept_are_on() {
    let (mut daemon, _) = started(&one_slot()).await;
    daemon.settled(1).await;
    let before = daemon.slots().await.remove(0);
    daemon.kill();
    // Whatever else this host has.
    daemon.configure(&["engine.kind = \"auto\""]);
    daemon.launch().await;
    daemon.settled(1).await;
    let after = daemon.slots().await.remove(0);
    assert_eq!((after.namespace_id, after.container_id), (before.namespace_id, before.container_id), "{}", daemon.log());
    daemon.says("slots are kept that a daemon before this one had there").await;
}
