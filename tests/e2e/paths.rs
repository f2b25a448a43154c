//! Namespaces of containers, joined by path: as files that are there as long as the lease is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspool::proto;

use super::fresh::{address, own, run};
use crate::support::daemon::{TestDaemon, load_busybox, text};
use crate::support::engines::TestEngine;

on_both_engines!(
    a_leases_path_leads_into_its_namespace_and_is_gone_with_it,
    a_path_of_a_use_in_the_same_namespace_is_another,
    a_killed_daemons_paths_stay_where_a_lease_is_and_go_where_none_is,
    an_audit_finds_the_folders_of_no_slot_and_takes_those_that_are_ours,
);

fn folders(daemon: &TestDaemon<'_>) -> Vec<PathBuf> {
    let folder = daemon.dir.path().join("ns").join(&daemon.pool);
    std::fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

fn seen(lease: &proto::Lease) -> Result<String, String> {
    let output = Command::new("nsenter").arg(format!("--net={}", lease.netns_path)).args(["ip", "-o", "addr"]).output().unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

async fn started<'e>(engine: &'e TestEngine, lines: &[&str]) -> TestDaemon<'e> {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, lines).await;
    daemon.settled(1).await;
    daemon
}

async fn a_leases_path_leads_into_its_namespace_and_is_gone_with_it(engine: &TestEngine) {
    let (lines, _) = own(&["pool.ready = 1", "pool.max = 1"]);
    let mut daemon = started(engine, &lines.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let client = daemon.client();
    for number in 1..=3 {
        let lease = daemon.allocate(&client).await;
        assert_eq!((lease.r#use, lease.network_mode.as_str()), (number, &*format!("container:{}", lease.namespace_id)));
        assert_eq!(lease.oci_namespaces.len(), 1);
        let inside = seen(&lease).unwrap();
        assert!(inside.contains(address(&lease)), "{inside}");
        client.release(&lease.token, false).await.unwrap();
        daemon.slot(0, "the next use", |slot| slot.r#use == number + 1 && slot.state == "ready").await;
        assert!(seen(&lease).is_err() && !Path::new(&lease.netns_path).exists());
        assert_eq!(folders(&daemon).len(), 1, "{:?}", folders(&daemon));
    }
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!((daemon.mounts().len(), daemon.dir.path().join("ns").exists()), (0, false));
}

async fn a_path_of_a_use_in_the_same_namespace_is_another(engine: &TestEngine) {
    let daemon = started(engine, &["pool.ready = 1", "pool.max = 1", "pool.reuse = \"always\""]).await;
    let client = daemon.client();
    let first = daemon.allocate(&client).await;
    seen(&first).unwrap();
    client.release(&first.token, false).await.unwrap();
    let next = daemon.allocate(&client).await;
    assert_eq!((next.generation, next.r#use), (first.generation, 2));
    assert!(seen(&first).is_err());
    seen(&next).unwrap();
}

fn a_use_that_is_over(daemon: &TestDaemon<'_>, slot: u32) -> PathBuf {
    let over = folders(daemon)[0].parent().unwrap().join(format!("nspool-{}-{slot}-1-1-00000000", daemon.pool));
    std::fs::create_dir(&over).unwrap();
    std::fs::write(over.join("net"), "").unwrap();
    run(&["mount", "--bind", "/proc/self/ns/net", &over.join("net").display().to_string()]);
    over
}

async fn an_audit_finds_the_folders_of_no_slot_and_takes_those_that_are_ours(engine: &TestEngine) {
    let mut daemon = started(engine, &["pool.ready = 1", "pool.max = 1"]).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let found = |more: &[&str]| {
        let output = daemon.cli(&[&["audit", "-o", "json"], more].concat());
        let audit: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = |found: &serde_json::Value| (found["kind"].as_str().unwrap().to_owned(), found["fixed"].as_bool().unwrap());
        (output.status.code().unwrap(), audit["findings"].as_array().unwrap().iter().map(row).collect::<BTreeSet<_>>())
    };
    assert_eq!(found(&[]), (0, BTreeSet::new()), "a lease's folder is its slot's");
    let ours = [a_use_that_is_over(&daemon, 0), a_use_that_is_over(&daemon, 9)];
    // Of a pool of that name on the native engine, of somebody's program, and of somebody.
    let (natives, others) = (a_use_that_is_over(&daemon, 8), a_use_that_is_over(&daemon, 7));
    std::fs::write(natives.join("buddy.json"), "{}").unwrap();
    std::fs::write(others.join("notes"), "").unwrap();
    let somebodys = natives.with_file_name("somebodys");
    std::fs::create_dir(&somebodys).unwrap();
    let row = |kind: &str, fixed| (kind.to_owned(), fixed);
    assert_eq!(found(&[]), (1, BTreeSet::from([row("folder", false), row("stray", false)])));
    assert!(ours.iter().all(|folder| folder.exists()), "it only looks");
    assert_eq!(found(&["--fix"]), (1, BTreeSet::from([row("folder", true), row("stray", false)])));
    assert!(!ours.iter().any(|folder| folder.exists()));
    assert!([&natives, &others].iter().all(|folder| folder.join("net").exists()) && somebodys.exists());
    seen(&lease).unwrap();
    assert_eq!(found(&["--fix"]), (1, BTreeSet::from([row("stray", false)])));

    daemon.kill();
    let namespaces = daemon.dir.path().join("ns").display().to_string();
    let purged = daemon.cli(&["purge", "--pool", &daemon.pool, "--engine-endpoint", &engine.endpoint(), "--namespaces", &namespaces]);
    let said = text(&purged.stdout);
    assert_eq!(purged.status.code(), Some(1), "{said}{}", text(&purged.stderr));
    for alone in [&natives, &others, &somebodys] {
        assert!(alone.exists() && said.contains(alone.file_name().unwrap().to_str().unwrap()), "{alone:?}: {said}");
    }
    assert_eq!(folders(&daemon).len(), 3, "the lease's went with its buddy: {said}");
}

async fn a_killed_daemons_paths_stay_where_a_lease_is_and_go_where_none_is(engine: &TestEngine) {
    let mut daemon = started(engine, &["pool.ready = 1", "pool.max = 2"]).await;
    let lease = daemon.allocate(&daemon.client()).await;
    daemon.kill();
    // As of a use whose buddy went with the daemon.
    let over = a_use_that_is_over(&daemon, 9);
    daemon.launch().await;
    daemon.level("what is over to be gone", |_| async { (!over.exists()).then_some(()) }).await;
    daemon.usage("the lease", |usage| usage.leased == 1 && usage.ready >= 1).await;
    let same = daemon.client().lease(&lease.token).await.unwrap();
    assert_eq!(same.netns_path, lease.netns_path);
    let inside = seen(&same).unwrap();
    assert!(inside.contains(address(&lease)), "{inside}");
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.level("its path to be gone", |_| async { (!Path::new(&lease.netns_path).exists()).then_some(()) }).await;
}
