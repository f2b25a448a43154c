//! The helper process: what the daemon may not do itself, and what becomes of slots and leases when the helper is no good.

use std::os::unix::fs::{PermissionsExt as _, chown};

use nspool::netns::helper::powers;
use rustix::thread::CapabilitySet;

use super::fresh::{one_slot, own, started};
use super::seen::{listener, metrics, sum};
use crate::support::daemon::{LIMIT, TestDaemon, kill, load_busybox, text};
use crate::support::engines::{PrivateDocker, docker};
use crate::support::eventually;

/// Of `/proc/<pid>/status` of each thread.
fn statuses(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).ok()).collect()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim()
}

/// Inherited, permitted, effective, bounding, ambient.
fn capabilities(status: &str) -> [CapabilitySet; 5] {
    let set = |set| CapabilitySet::from_bits_retain(u64::from_str_radix(field(status, set), 16).unwrap());
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(set)
}

fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    children.flat_map(|children| children.split_whitespace().map(|child| child.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

/// The keeper, and its helper.
pub(super) async fn helpers(daemon: &TestDaemon<'_>) -> (u32, u32) {
    let both = || async {
        let [keeper] = *children(daemon.pid()) else { return None };
        let [helper] = *children(keeper) else { return None };
        Some((keeper, helper))
    };
    eventually("a keeper with one helper", LIMIT, both).await
}

fn is_there(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

async fn gone(pids: [u32; 2]) {
    eventually("the end of the keeper and its helper", LIMIT, || async { (!pids.iter().any(|pid| is_there(*pid))).then_some(()) }).await;
}

/// Three ready, one leased.
async fn full(daemon: &TestDaemon<'_>) {
    daemon.usage("three ready beside one leased", |usage| (usage.ready, usage.leased, usage.renewing + usage.filling) == (3, 1, 0)).await;
}

async fn is_well(daemon: &TestDaemon<'_>) {
    let audit = || async {
        let audit = daemon.cli(&["audit"]);
        audit.status.success().then_some(()).ok_or(text(&audit.stdout)).ok()
    };
    eventually("an audit without findings", LIMIT, audit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_has_no_capabilities_and_its_helper_those_it_needs() {
    let (mut daemon, _) = started(docker(), &[]).await;
    daemon.settled(2).await;
    let (keeper, helper) = helpers(&daemon).await;
    for status in statuses(daemon.pid()) {
        assert_eq!((capabilities(&status), field(&status, "NoNewPrivs")), ([CapabilitySet::empty(); 5], "1"), "{status}");
    }
    for status in statuses(helper) {
        assert!(capabilities(&status).iter().all(|has| powers::HELPERS.contains(*has)), "{status}");
    }
    let name = |pid: u32| field(&statuses(pid)[0], "Name").to_owned();
    assert_eq!((name(keeper), name(helper)), ("nspool-keeper".to_owned(), "nspool-helper".to_owned()));
    assert_eq!(daemon.stop().await, 0);
    assert!(!is_there(keeper) && !is_there(helper), "both are waited for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_keeps_the_one_capability_that_it_takes_to_talk_to_another_users_engine() {
    let engine = PrivateDocker::start();
    chown(&engine.socket, Some(1000), Some(1000)).unwrap();
    std::fs::set_permissions(&engine.socket, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (mut daemon, _) = started(&engine, &[]).await;
    daemon.settled(2).await;
    let (none, one) = (CapabilitySet::empty(), CapabilitySet::DAC_OVERRIDE);
    for status in statuses(daemon.pid()) {
        assert_eq!((capabilities(&status), field(&status, "NoNewPrivs")), ([none, one, one, one, none], "1"), "{status}");
    }
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    daemon.function(&["run", "--rm"], &lease.network_mode, &["true"]).unwrap();
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(2).await;
    is_well(&daemon).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_filter_that_is_changed_reaches_the_helper() {
    let (mut daemon, _) = started(docker(), &[&one_slot()[..], &["log.filter = \"info\""]].concat()).await;
    daemon.settled(1).await;
    daemon.configure(&["log.filter = \"info,nspool::netns::helper=debug\""]);
    daemon.signal("HUP");
    let told = || async { daemon.log().contains("the helper's log filter is another one").then_some(()) };
    eventually("the helper to say so", LIMIT, told).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

/// Whatever becomes of a helper: leases stay, slots get ready again with the next one, which is the only one.
async fn goes_on_after(what: &str, deed: impl Fn(u32)) {
    let (line, listen) = listener();
    let (mut daemon, _) = started(docker(), &[&line, "pool.ready = 3", "pool.max = 4"]).await;
    daemon.settled(3).await;
    let client = daemon.client();
    let (lease, other) = (daemon.allocate(&client).await, daemon.allocate(&client).await);
    let (keeper, helper) = helpers(&daemon).await;
    deed(helper);
    // A renewal in the middle of it.
    client.release(&other.token, false).await.unwrap();
    eventually("the next helper", LIMIT, || async { (children(keeper) != [helper] && children(keeper).len() == 1).then_some(()) }).await;
    assert!(!is_there(helper), "{what}: it was reaped before the next one was started");
    full(&daemon).await;
    is_well(&daemon).await;
    assert_eq!(client.leases().await.unwrap().len(), 1, "{what}");
    let ping = format!("ping -c 1 -w 5 {}", lease.gateways[0]);
    daemon.function(&["run", "--rm"], &lease.network_mode, &["sh", "-c", &ping]).unwrap();
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(3).await;
    daemon.says("the helper process is ended").await;
    assert!(sum(&metrics(&listen), "nspool_helper_restarts_total", "") >= 1.0, "{what}");
    is_well(&daemon).await;
    assert_eq!(daemon.stop().await, 0, "{what}: {}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_helper_is_followed_by_another() {
    goes_on_after("killed", |helper| kill("KILL", helper)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_helper_is_ended_and_followed_by_another() {
    goes_on_after("frozen", |helper| kill("STOP", helper)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_keeper_the_daemon_ends_and_the_next_one_goes_on() {
    let (mut daemon, _) = started(docker(), &["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let (keeper, helper) = helpers(&daemon).await;
    kill("KILL", keeper);
    eventually("the keeper's end", LIMIT, || async { (!is_there(keeper)).then_some(()) }).await;
    // Nobody has missed it: slots get ready, are leased, and are renewed.
    let other = daemon.allocate(&client).await;
    client.release(&other.token, false).await.unwrap();
    let renewed = daemon.slot(other.slot, "renewed", |slot| slot.state == "ready" && slot.r#use > other.r#use).await;
    assert_eq!(renewed.generation, other.generation);
    is_well(&daemon).await;
    assert!(is_there(helper), "it is the same one");
    kill("KILL", helper);
    assert_eq!(daemon.exit_code(LIMIT).await, 70, "{}", daemon.log());
    daemon.says("without a helper process").await;
    daemon.launch().await;
    let leases = daemon.client().leases().await.unwrap();
    assert_eq!(leases.iter().map(|lease| lease.slot).collect::<Vec<_>>(), [lease.slot]);
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.settled(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemons_helper_goes_with_it() {
    let (mut daemon, _) = started(docker(), &one_slot()).await;
    daemon.settled(1).await;
    let (keeper, helper) = helpers(&daemon).await;
    daemon.kill();
    gone([keeper, helper]).await;
    daemon.launch().await;
    // Neither is in the way of the next one, nor one that does not end by itself.
    let frozen = helpers(&daemon).await;
    kill("STOP", frozen.1);
    daemon.kill();
    daemon.launch().await;
    gone([frozen.0, frozen.1]).await;
    daemon.settled(1).await;
}

/// The capabilities that systemd would leave to the daemon, by that file.
pub(super) fn rights(file: &str) -> String {
    let text = std::fs::read_to_string(format!("{}/systemd/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let capabilities = line.split(' ').map(|capability| format!(",+{}", capability.trim_start_matches("CAP_").to_lowercase()));
    format!("--bounding-set=-all{}", capabilities.collect::<String>())
}

const ONCE: &str = "pool.reuse = \"once\"";

/// Fills, leases, and takes a slot back for its next use.
async fn works_with(file: &str, lines: &[&str]) {
    load_busybox(docker());
    let mut daemon = TestDaemon::prepare(docker(), lines);
    daemon.configure(&["pool.max = 2"]);
    let command = daemon.command(&["setpriv", &rights(file), "--no-new-privs"]);
    daemon.launch_as(command).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    daemon.function(&["run", "--rm", "--user", "1000"], &lease.network_mode, &["true"]).unwrap();
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(2).await;
    let again = !lines.contains(&ONCE);
    let next = daemon.slots().await.into_iter().find(|slot| (slot.generation, slot.r#use) == (lease.generation, lease.r#use + 1));
    assert_eq!(again, next.is_some(), "{file}: {}", daemon.log());
    is_well(&daemon).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_units_rights_are_enough() {
    works_with("nspool.service", &[ONCE]).await;
    works_with("nspool.service", &["pool.reuse = \"always\""]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drop_ins_rights_are_enough_for_networks_of_our_own_and_verified_ones() {
    let (mut lines, _) = own(&[]);
    lines.push("pool.reuse = \"fresh\"".to_owned());
    works_with("managed-networks.conf", &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    works_with("managed-networks.conf", &["pool.reuse = \"verified\"", "pool.privileged_joiners = \"inspect\""]).await;
}
