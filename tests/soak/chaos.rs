//! Hurts everything that the test owns, one thing after the other, and sees to it that it gets up again.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nspool::client::Client;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::footprint::shims;
use super::world::{World, kept};
use crate::support::daemon::{LIMIT, TestDaemon, kill, text};
use crate::support::engines::TestEngine;
use crate::support::eventually;
use crate::support::image::BUSYBOX;

/// A daemon ends no lease by itself before it is that old.
const GRACE: Duration = Duration::from_secs(30);
/// How late a forgotten lease may end: it lingers, or waits for a joiner, and the engine is away now and then.
const PATIENCE: Duration = Duration::from_secs(45);

/// Owns what it hurts.
pub(crate) struct Chaos<'e> {
    daemon: TestDaemon<'e>,
    engine: TestEngine,
    world: Arc<World>,
    dice: fastrand::Rng,
    faults: BTreeMap<&'static str, u32>,
    daemon_since: Instant,
    /// Processes of containers that Docker did not know at the last look.
    debris: HashSet<(u32, String)>,
}

impl<'e> Chaos<'e> {
    pub(crate) fn new(daemon: TestDaemon<'e>, engine: TestEngine, world: Arc<World>, seed: u64) -> Self {
        let dice = fastrand::Rng::with_seed(seed);
        Self { daemon, engine, world, dice, faults: BTreeMap::new(), daemon_since: Instant::now(), debris: HashSet::new() }
    }

    pub(crate) fn daemon(&self) -> &TestDaemon<'e> {
        &self.daemon
    }

    pub(crate) fn daemon_mut(&mut self) -> &mut TestDaemon<'e> {
        &mut self.daemon
    }

    pub(crate) fn faults(&self) -> &BTreeMap<&'static str, u32> {
        &self.faults
    }

    /// Until then. Comes back with engine and daemon up; panics when an agent has.
    pub(crate) async fn rage(&mut self, span: Duration, agents: &mut JoinSet<()>) {
        let end = Instant::now() + span;
        // The last daemon lives through a part of it: its descriptors are counted.
        let last_restart = end - (span / 4).min(2 * GRACE);
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(self.dice.u64(1000..3000))).await;
            // What is forgotten can end only if a daemon lives on for a while.
            let spare = Instant::now() > last_restart || !self.world.may_forget();
            self.strike(spare).await;
            self.look_at_the_forgotten().await;
            let _later = self.clear_debris().await;
            if let Some(ended) = agents.try_join_next() {
                panic!("an agent went before the end: {ended:?}");
            }
        }
    }

    fn count(&mut self, kind: &'static str) {
        self.world.note(kind);
        *self.faults.entry(kind).or_default() += 1;
    }

    async fn strike(&mut self, spare_the_daemon: bool) {
        match self.dice.u8(if spare_the_daemon { 5 } else { 0 }..24) {
            0..2 => self.kill_daemon(false).await,
            2..4 => self.stop_daemon().await,
            4 => self.kill_daemon(true).await,
            5..8 => self.freeze_engine().await,
            8..10 => self.restart_engine("engine stopped", "TERM", spare_the_daemon).await,
            10..12 => self.restart_engine("engine killed", "KILL", spare_the_daemon).await,
            12..14 => self.kill_containerd().await,
            _ => self.hurt_a_buddy().await,
        }
    }

    async fn hurt_a_buddy(&mut self) {
        let label = format!("label=nspool.pool={}", self.world.pool);
        let found = self.world.docker(&["ps", "-q", "--no-trunc", "--filter", &label]).await;
        let buddies = text(&found.stdout);
        let buddies: Vec<&str> = buddies.lines().collect();
        let Some(buddy) = self.dice.choice(&buddies) else { return };
        let (kind, verb): (_, &[&str]) = match self.dice.u8(..4) {
            0 => ("buddy killed", &["kill"]),
            1 => ("buddy paused", &["pause"]),
            2 => ("buddy removed", &["rm", "-f"]),
            _ => ("buddy restarted", &["restart", "-t", "0"]),
        };
        self.world.hurts(buddy);
        self.world.note(&format!("{kind}: {buddy}, soon"));
        // The pool may have removed it in this moment.
        if self.world.docker(&[verb, &[buddy]].concat()).await.status.success() {
            self.count(kind);
        }
    }

    async fn kill_daemon(&mut self, and_a_buddy: bool) {
        self.daemon.kill();
        self.count("daemon killed");
        if and_a_buddy {
            self.hurt_a_buddy().await;
        }
        self.start_daemon().await;
    }

    async fn stop_daemon(&mut self) {
        assert_eq!(self.daemon.stop().await, 0, "a stop that keeps: {}", self.daemon.log());
        self.count("daemon stopped");
        self.start_daemon().await;
    }

    async fn start_daemon(&mut self) {
        self.daemon.launch().await;
        self.daemon_since = Instant::now();
    }

    async fn freeze_engine(&mut self) {
        self.world.trouble();
        self.engine.signal("STOP");
        tokio::time::sleep(Duration::from_millis(self.dice.u64(1000..3000))).await;
        self.engine.signal("CONT");
        self.count("engine frozen");
        self.engine_is_up().await;
    }

    async fn restart_engine(&mut self, kind: &'static str, signal: &str, spare_the_daemon: bool) {
        self.world.trouble();
        let pid = self.engine.pid();
        self.engine.signal(signal);
        eventually("the engine's end", LIMIT, || async { has_ended(pid).then_some(()) }).await;
        self.count(kind);
        if !spare_the_daemon && self.dice.u8(..3) == 0 {
            self.kill_daemon(false).await;
        }
        tokio::task::block_in_place(|| self.engine.launch());
        self.engine_is_up().await;
    }

    /// The engine starts another one by itself.
    async fn kill_containerd(&mut self) {
        let file = self.engine.dir.join("exec/containerd/containerd.pid");
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let command = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap();
        let own = self.engine.dir.display().to_string();
        assert!(String::from_utf8_lossy(&command).contains(&own), "{pid} is not this engine's containerd");
        self.world.trouble();
        kill("KILL", pid.unsigned_abs());
        self.count("containerd killed");
        eventually("containerd's end", LIMIT, || async { has_ended(pid).then_some(()) }).await;
        self.engine_is_up().await;
    }

    /// It is when it runs containers.
    async fn engine_is_up(&self) {
        let runs = || async {
            let output = self.world.docker(&["run", "--rm", "--network", "none", BUSYBOX, "true"]).await;
            output.status.success().then_some(())
        };
        eventually("the engine to run containers again", LIMIT, runs).await;
        self.world.trouble();
    }

    /// A start that was cut off by the death of containerd leaves a process and its shim, of which Docker knows nothing any more. The process is
    /// in the function's namespace, so the buddy stays, as it must: this is for the operator, and here for us.
    /// Answers whether there is none.
    pub(crate) async fn clear_debris(&mut self) -> bool {
        let found = shims(&self.engine);
        let list = self.world.docker(&["ps", "-aq", "--no-trunc"]).await;
        assert!(list.status.success(), "{}", text(&list.stderr));
        let known = text(&list.stdout);
        let unknown: HashSet<_> = found.into_iter().filter(|(_, container)| !known.contains(container)).collect();
        // Those of a container that comes or goes in this moment are another matter.
        for (shim, _) in unknown.intersection(&self.debris) {
            let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap_or_default();
            for child in children.split_whitespace() {
                kill("KILL", child.parse().unwrap());
            }
            kill("KILL", *shim);
            self.world.tally(|tally| tally.cut_off += 1);
        }
        self.debris = unknown;
        self.debris.is_empty()
    }

    /// Nobody releases them: they end by themselves.
    async fn look_at_the_forgotten(&self) {
        let client = Client::connect(&self.world.endpoint).unwrap();
        for forgotten in self.world.forgotten() {
            let lease = match client.lease(&forgotten.lease.token).await {
                Ok(lease) => lease,
                Err(error) if error.reason() == "LEASE_ENDED" => {
                    self.world.is_over(&forgotten.lease);
                    self.world.tally(|tally| tally.ended_alone += 1);
                    continue;
                }
                Err(error) if error.is_unavailable() => continue,
                Err(error) => panic!("{}: {error}", forgotten.lease.lease_id),
            };
            if lease.state() == nspool::proto::LeaseState::Lost {
                assert!(self.world.is_hurt(&lease), "{} is lost: {}", lease.lease_id, lease.cause);
                self.world.is_over(&lease);
                self.world.tally(|tally| tally.lost += 1);
            }
            let waits_since = forgotten.since.max(self.daemon_since);
            assert!(waits_since.elapsed() < GRACE + PATIENCE, "{} does not end: {lease:#?}", lease.lease_id);
        }
    }
}

/// Whether the process is gone, or waits for its parent to hear of it.
fn has_ended(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// What a failure leaves to read: hours of logs are too long for the terminal.
impl Drop for Chaos<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (from, name) in [(self.daemon.dir.path().join("log"), "daemon"), (self.engine.dir.join("log"), "engine")] {
                let _best_effort = std::fs::copy(from, kept(name));
            }
            println!("the whole story: {}", kept("*").display());
        }
    }
}
