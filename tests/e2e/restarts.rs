//! A daemon that is killed, its successor, its neighbours and its double. Containers of others are never touched.

use std::collections::BTreeSet;

use nspool::client::Request;
use nspool::proto::{self, LeaseState, ReleaseOutcome};

use crate::support::daemon::{LIMIT, TEST_LABEL, TestDaemon, joined, load_busybox, text};
use crate::support::engines::TestEngine;
use crate::support::image::BUSYBOX;

on_both_engines!(
    a_killed_daemon_loses_nothing,
    a_stop_that_keeps_loses_nothing,
    what_happens_to_buddies_while_no_daemon_is_there_is_noticed,
    a_successor_without_the_ledger_clears_up,
    decoys_are_never_touched,
    two_pools_on_one_engine_leave_each_other_alone,
    a_second_daemon_of_the_same_pool_gives_up,
    a_restart_is_told_beforehand,
    an_audit_finds_and_mends_what_was_done_by_hand,
);

/// Two leases, one with a function and one without, and what a restart must leave of them.
struct Before {
    occupied: proto::Lease,
    empty: proto::Lease,
    function: String,
    ready: BTreeSet<(String, u64)>,
    incarnation: String,
}

async fn ready(daemon: &TestDaemon<'_>) -> BTreeSet<(String, u64)> {
    let ready = daemon.slots().await.into_iter().filter(|slot| slot.state == "ready");
    ready.map(|slot| (slot.namespace_id, slot.generation)).collect()
}

fn request(id: &str) -> Request {
    Request::new().owner("agent").request_id(id).wait(LIMIT)
}

impl Before {
    async fn of(daemon: &TestDaemon<'_>) -> Self {
        let client = daemon.client();
        daemon.settled(2).await;
        let occupied = client.allocate(request("occupied")).await.unwrap().keep();
        let empty = client.allocate(request("empty")).await.unwrap().keep();
        let function = daemon.stay(&occupied.network_mode);
        daemon.usage("more of them ready", |usage| usage.ready == 2 && usage.filling == 0).await;
        let incarnation = client.info().await.unwrap().incarnation;
        Self { occupied, empty, function, ready: ready(daemon).await, incarnation }
    }

    /// A new daemon is there: everything is as it was, and ends as it should.
    async fn holds(self, daemon: &TestDaemon<'_>) {
        let client = daemon.client();
        daemon.usage("all adopted", |usage| usage.ready == 2 && usage.leased == 2).await;
        assert_eq!(ready(daemon).await, self.ready);
        assert_eq!(client.info().await.unwrap().incarnation, self.incarnation, "no lease was lost as a whole");
        assert_eq!(daemon.buddies().len(), 4);
        // An agent that never got its answer asks again.
        let again = client.allocate(request("empty")).await.unwrap().keep();
        assert_eq!((&again.token, &again.namespace_id), (&self.empty.token, &self.empty.namespace_id));
        let resumed = client.resume("agent").await.unwrap();
        assert_eq!(resumed.len(), 2);
        let seen = daemon.function(&["run", "--rm"], &self.empty.network_mode, &["ip", "-o", "-4", "addr", "show", "dev", "eth0"]).unwrap();
        assert!(seen.contains(&self.empty.ip_addresses[0]), "{seen}");
        assert!(daemon.engine.run(&["exec", &self.function, "ip", "-o", "-4", "addr"]).contains("eth0"));

        client.release(&self.empty.token, false).await.unwrap();
        assert_eq!(client.release(&self.empty.token, false).await.unwrap().outcome(), ReleaseOutcome::AlreadyReleased);
        let highest = self.ready.iter().map(|(_, generation)| *generation).max().unwrap();
        client.release(&self.occupied.token, false).await.unwrap();
        daemon.usage("the function's quarantine", |usage| usage.quarantined == 1).await;
        daemon.engine.run(&["rm", "-f", &self.function]);
        daemon.settled(2).await;
        let fresh = client.allocate(Request::new().wait(LIMIT)).await.unwrap().keep();
        assert!(self.ready.contains(&(fresh.namespace_id, fresh.generation)) || fresh.generation > highest, "a generation came twice");
        assert_eq!(daemon.settled_but_leased(1).await.lost, 0);
    }
}

async fn a_killed_daemon_loses_nothing(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["pool.max = 8"]).await;
    let before = Before::of(&daemon).await;
    daemon.kill();
    assert!(daemon.socket.exists(), "a killed daemon cannot remove its socket");
    daemon.launch().await;
    before.holds(&daemon).await;
}

async fn a_stop_that_keeps_loses_nothing(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["pool.max = 8", "stop.policy = \"keep\""]).await;
    let before = Before::of(&daemon).await;
    let there = daemon.buddies();
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.buddies(), there);
    daemon.launch().await;
    before.holds(&daemon).await;
}

async fn what_happens_to_buddies_while_no_daemon_is_there_is_noticed(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["pool.max = 8"]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let (well, killed, removed) = (daemon.allocate(&client).await, daemon.allocate(&client).await, daemon.allocate(&client).await);
    daemon.usage("more of them ready", |usage| usage.ready == 2 && usage.filling == 0).await;
    let idle = daemon.slots().await.into_iter().find(|slot| slot.state == "ready").unwrap();
    daemon.kill();
    engine.run(&["kill", &killed.container_id]);
    engine.run(&["rm", "-f", &removed.container_id]);
    // It runs again, in another namespace.
    engine.run(&["restart", "-t", "1", &idle.namespace_id]);
    daemon.launch().await;
    daemon.usage("two lost", |usage| usage.lost == 2 && usage.leased == 1 && usage.ready == 2 && usage.detached == 0).await;
    assert_eq!(client.lease(&well.token).await.unwrap().state(), LeaseState::Active);
    for lost in [&killed, &removed] {
        let lease = client.lease(&lost.token).await.unwrap();
        assert_eq!(lease.state(), LeaseState::Lost);
        assert!(lease.cause.contains("while nspool was away"), "{}", lease.cause);
    }
    assert!(daemon.slots().await.iter().all(|slot| slot.state != "ready" || slot.generation != idle.generation));
    daemon.usage("the old ones gone", |usage| usage.retiring == 0).await;
    assert_eq!(daemon.buddies().len(), 3);
}

async fn a_successor_without_the_ledger_clears_up(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &[]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let (occupied, empty) = (daemon.allocate(&client).await, daemon.allocate(&client).await);
    let function = daemon.stay(&occupied.network_mode);
    daemon.usage("more of them ready", |usage| usage.ready == 2).await;
    let before = daemon.slots().await;
    daemon.kill();
    std::fs::remove_dir_all(daemon.dir.path().join("state")).unwrap();
    // So long each of them is kept for somebody who may be about to join.
    daemon.configure(&["pool.join_by = \"20s\""]);
    daemon.launch().await;
    // A lease that nobody knows of any more may be on any of them.
    daemon.usage("the old ones are kept", |usage| usage.detached == 4).await;
    let late = daemon.stay(&empty.network_mode);
    daemon.usage("the new pool, and the occupied buddies", |usage| usage.ready == 2 && usage.detached == 2).await;
    engine.run(&["rm", "-f", &late]);
    daemon.usage("the one that is still occupied", |usage| usage.detached == 1).await;
    let highest = before.iter().map(|slot| slot.generation).max().unwrap();
    let after = daemon.slots().await;
    assert!(after.iter().filter(|slot| slot.state == "ready").all(|slot| slot.generation > highest), "{before:#?} {after:#?}");
    let there = daemon.buddies();
    assert_eq!(there.len(), 3);
    assert!(there.contains(&occupied.container_id) && !there.contains(&empty.container_id));
    assert!(engine.run(&["exec", &function, "ip", "-o", "-4", "addr"]).contains("eth0"));
    assert_eq!(daemon.cli(&["release", &empty.token]).status.code(), Some(1), "its lease is not known any more");
    engine.run(&["rm", "-f", &function]);
    daemon.usage("nothing detached", |usage| usage.detached == 0).await;
}

async fn decoys_are_never_touched(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::prepare(engine, &["pool.ready = 1"]);
    let label = format!("{TEST_LABEL}={}", daemon.pool);
    let ours = [
        format!("nspool.pool={}", daemon.pool),
        "nspool.instance=i".into(),
        "nspool.slot=0".into(),
        "nspool.generation=7".into(),
        "nspool.version=0.1.0".into(),
    ];
    let decoy = |name: &str, labels: &[String]| {
        let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label.as_str()]).collect();
        engine.run(&[&["run", "-d", "--name", name, "--label", &label], &labels[..], &[BUSYBOX, "sleep", "1000"]].concat())
    };
    let named_like_ours = decoy(&format!("nspool-{}-0-7-1-00000000", daemon.pool), &[]);
    let labelled_like_ours = decoy(&format!("web-{}", daemon.pool), &ours);
    let half_labelled = decoy(&format!("nspool-{}-0-8-1-00000000", daemon.pool), &ours[..2]);
    let of_another_slot = decoy(&format!("nspool-{}-1-7-1-00000000", daemon.pool), &ours);
    daemon.launch().await;
    daemon.settled(1).await;
    daemon.kill();
    daemon.launch().await;
    daemon.settled(1).await;
    assert_eq!(daemon.stop().await, 0);
    for decoy in [named_like_ours, labelled_like_ours, half_labelled, of_another_slot] {
        assert_eq!(engine.run(&["inspect", "--format", "{{.State.Status}}", &decoy]), "running");
    }
}

async fn two_pools_on_one_engine_leave_each_other_alone(engine: &TestEngine) {
    // The name of one begins like the other's.
    let mut one = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    let mut other = TestDaemon::prepare(engine, &["pool.ready = 1"]);
    let name = format!("{}-0", one.pool);
    other.configure(&[&format!("pool.name = {name:?}")]);
    other.pool = name;
    other.launch().await;
    let (first, second) = (one.settled(1).await, other.settled(1).await);
    assert_eq!((first.detached, second.detached), (0, 0));
    let theirs = other.buddies();
    one.kill();
    one.launch().await;
    one.settled(1).await;
    assert_eq!(one.stop().await, 0);
    assert_eq!(one.containers(), [""; 0]);
    assert_eq!(other.buddies(), theirs);
    assert_eq!(other.settled(1).await.misses, 0);
    assert_eq!(other.stop().await, 0);
    assert_eq!(other.containers(), [""; 0]);
}

async fn a_second_daemon_of_the_same_pool_gives_up(engine: &TestEngine) {
    let first = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    first.settled(1).await;
    let there = first.buddies();
    let mut second = TestDaemon::prepare(engine, &["pool.ready = 1", &format!("pool.name = {:?}", first.pool)]);
    second.spawn(second.command(&[]));
    assert_eq!(second.exit_code(LIMIT).await, 75, "{}", second.log());
    assert!(!second.socket.exists());
    assert_eq!(first.buddies(), there);

    // On the same socket it does not even begin.
    let mut third = TestDaemon::prepare(engine, &[&format!("api.listen = [\"unix:{}\"]", first.socket.display())]);
    third.spawn(third.command(&[]));
    assert_eq!(third.exit_code(LIMIT).await, 75, "{}", third.log());
    third.says("somebody answers on ").await;
    assert_eq!(first.settled(1).await.ready, 1);
}

/// What `restart-plan` says, and its exit code.
fn plan(daemon: &TestDaemon<'_>) -> (i32, serde_json::Value) {
    let config = daemon.config();
    let output = daemon.cli(&["restart-plan", "-o", "json", "--config", config.to_str().unwrap()]);
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    (output.status.code().unwrap(), told)
}

fn outcomes(plan: &serde_json::Value) -> BTreeSet<(String, String)> {
    let word = |slot: &serde_json::Value, key: &str| slot[key].as_str().unwrap().to_owned();
    plan["slots"].as_array().unwrap().iter().map(|slot| (word(slot, "state"), word(slot, "outcome"))).collect()
}

async fn a_restart_is_told_beforehand(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["stop.policy = \"keep\""]).await;
    daemon.settled(2).await;
    let lease = daemon.allocate(&daemon.client()).await;
    daemon.usage("one more ready", |usage| usage.ready == 2 && usage.filling == 0).await;
    let all = |outcome: &str| -> BTreeSet<(String, String)> {
        [("ready", outcome), ("leased", outcome), ("vacant", "made anew")].map(|(state, outcome)| (state.into(), outcome.into())).into()
    };
    let (code, told) = plan(&daemon);
    assert_eq!((code, outcomes(&told), told["lost"].as_u64()), (0, all("kept"), Some(0)), "{told:#}");

    // Another state folder would be another ledger.
    daemon.configure(&["state.dir = \"/tmp/elsewhere\""]);
    let (code, told) = plan(&daemon);
    assert_eq!((code, outcomes(&told), told["lost"].as_u64()), (1, all("lost"), Some(3)), "{told:#}");
    daemon.configure(&["pool.ready = \"many\""]);
    let mistakes = daemon.cli(&["restart-plan", "--config", daemon.config().to_str().unwrap()]);
    assert_eq!(mistakes.status.code(), Some(78), "{}", text(&mistakes.stderr));
    let state = format!("state.dir = {:?}", daemon.dir.path().join("state").display().to_string());
    daemon.configure(&["pool.ready = 2", &state]);

    // With nobody there, from what the last one left.
    daemon.kill();
    let (code, told) = plan(&daemon);
    let kept = BTreeSet::from([("ready".to_owned(), "kept".to_owned()), ("leased".to_owned(), "kept".to_owned())]);
    assert_eq!((code, outcomes(&told)), (0, kept.clone()), "{told:#}");
    engine.run(&["rm", "-f", &lease.namespace_id]);
    let (code, told) = plan(&daemon);
    assert_eq!((code, told["lost"].as_u64()), (1, Some(1)), "{told:#}");
    daemon.launch().await;
    daemon.usage("it is as it was told", |usage| usage.lost == 1).await;
}

async fn an_audit_finds_and_mends_what_was_done_by_hand(engine: &TestEngine) {
    load_busybox(engine);
    // So long is what may be of an earlier ledger kept, too.
    let daemon = TestDaemon::start(engine, &["pool.join_by = \"5s\""]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = client.allocate(Request::new().wait(LIMIT).joiners(Some(LIMIT))).await.unwrap().keep();
    let mut events = client.watch(None).await.unwrap();
    daemon.usage("two more ready", |usage| usage.ready == 2 && usage.filling == 0).await;
    let function = daemon.stay(&lease.network_mode);
    joined(&mut events, &lease).await;
    let agrees = |what: &str| {
        let output = daemon.cli(&["audit"]);
        assert_eq!(output.status.code(), Some(0), "{what}: {}{}", text(&output.stdout), text(&output.stderr));
    };
    agrees("nothing was done");

    // Not named by us; a buddy of a slot that is not there. One of another run would be taken for a predecessor's, and cleared away.
    let ready = daemon.slots().await.into_iter().find(|slot| slot.state == "ready").unwrap();
    let instance = engine.run(&["inspect", "--format", "{{index .Config.Labels \"nspool.instance\"}}", &ready.container_id]);
    let labels = |slot: u32, instance: &str| {
        let pool = format!("nspool.pool={}", daemon.pool);
        let instance = format!("nspool.instance={}", instance.trim());
        [instance, format!("nspool.slot={slot}"), "nspool.generation=7".into(), "nspool.version=0".into(), pool]
    };
    let make = |name: &str, labels: &[String]| {
        let own = format!("{TEST_LABEL}={}", daemon.pool);
        let labels = labels.iter().flat_map(|label| ["--label", label.as_str()]);
        let words: Vec<&str> = ["run", "-d", "--stop-timeout", "0", "--name", name, "--label", &own].into_iter().chain(labels).collect();
        engine.client(&[&words[..], &[BUSYBOX, "sleep", "1000"]].concat())
    };
    let made = |name: &str, labels: &[String]| {
        let output = make(name, labels);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let gone = |name: String| {
        let daemon = &daemon;
        async move {
            let look = || async { (!engine.run(&["ps", "-a", "--format", "{{.Names}}"]).contains(&name)).then_some(()) };
            daemon.level("it to be removed", |_| look()).await;
        }
    };
    let late = format!("nspool-{}-2-7-1-00000000", daemon.pool);
    // It may be gone before it is started.
    let _cut_short = make(&late, &labels(2, "i"));
    gone(late).await;

    let stray = made(&format!("web-{}", daemon.pool), &labels(0, "i"));
    let orphan = format!("nspool-{}-3-7-1-00000000", daemon.pool);
    made(&orphan, &labels(3, &instance));
    let found = |args: &[&str]| {
        let output = daemon.cli(&[&["audit", "-o", "json"], args].concat());
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        let findings = told["findings"].as_array().unwrap().iter();
        let row = |found: &serde_json::Value| (found["kind"].as_str().unwrap().to_owned(), found["fixed"].as_bool().unwrap());
        (output.status.code().unwrap(), findings.map(row).collect::<BTreeSet<_>>())
    };
    let row = |kind: &str, fixed: bool| (kind.to_owned(), fixed);
    assert_eq!(found(&[]), (1, BTreeSet::from([row("orphan", false), row("stray", false)])));
    assert_eq!(found(&["--fix"]), (1, BTreeSet::from([row("orphan", true), row("stray", false)])));
    gone(orphan).await;
    assert!(engine.run(&["ps", "-q", "--no-trunc"]).contains(stray.trim()), "what is not ours stays");
    engine.run(&["rm", "-f", stray.trim()]);
    agrees("the rest is mended");

    engine.run(&["rename", &ready.container_id, &format!("mine-{}", daemon.pool)]);
    assert_eq!(found(&["--fix"]), (0, BTreeSet::from([row("name", true)])));
    daemon.usage("it is replaced", |usage| usage.ready == 2 && usage.filling == 0).await;
    agrees("it was replaced");
    assert_eq!(client.lease(&lease.token).await.unwrap().state(), LeaseState::Active);
    engine.run(&["rm", "-f", &function]);
}
