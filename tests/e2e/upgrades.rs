//! Upgrades and downgrades with live leases: from a predecessor's daemon to the present one and back, by a stop that keeps and by kill -9. What was
//! answered by one of them stands with the other, and so does what it says of leases that are over, lost, and of the doors.
//!
//! `make upgrade FROM=<revision>` builds the predecessor and names its program in `NSPOOL_TEST_PREDECESSOR`; without one, these tests are ignored. What
//! can be told without a predecessor, of its ledgers, `tests/ledger.rs` tells.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nspool::client::Request;
use nspool::ledger;
use nspool::ledger::record::{Began, Record};
use nspool::proto::{self, LeaseState, ReleaseOutcome};

use crate::support::daemon::{LIMIT, NSPOOL, TEST_LABEL, TestDaemon, containers, load_busybox, text};
use crate::support::engines::{self, TestEngine};
use crate::support::image::BUSYBOX;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make upgrade gives it a predecessor"]
async fn leases_outlive_upgrades_and_downgrades_on_docker() {
    leases_outlive_upgrades_and_downgrades(engines::docker()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make upgrade gives it a predecessor"]
async fn leases_outlive_upgrades_and_downgrades_on_podman() {
    leases_outlive_upgrades_and_downgrades(engines::podman()).await;
}

/// The sizes that an operator asks for; the configuration says others.
const SIZES: (u32, u32) = (3, 12);

/// What a restart would do: exit code and words.
fn plan(daemon: &TestDaemon<'_>) -> (Option<i32>, String) {
    let plan = daemon.cli(&["restart-plan", "-o", "json", "--config", daemon.config().to_str().unwrap()]);
    (plan.status.code(), text(&plan.stdout) + &text(&plan.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_of_a_release_too_far_ahead_is_refused_and_left_alone() {
    let mut daemon = TestDaemon::start(engines::docker(), &["pool.ready = 1", "stop.policy = \"keep\""]).await;
    daemon.settled(1).await;
    // All that it has to write is written, and it goes on as before.
    daemon.client().audit(false).await.unwrap();
    let buddies = daemon.buddies();
    let ledger = daemon.dir.path().join("state/ledger");
    let began = Began { boot_id: ledger::boot_id().unwrap(), pool: daemon.pool.clone(), format: 9, oldest_reader: 9, ..Began::default() };
    let bytes = ledger::frame(Record::Began(began));
    std::fs::write(&ledger, &bytes).unwrap();
    let (code, told) = plan(&daemon);
    assert!(code == Some(1) && told.contains("\"lost\": 1") && told.contains("start that release again"), "{code:?} {told}");

    daemon.kill();
    let (code, told) = plan(&daemon);
    assert!(code == Some(1) && told.contains("start that release again"), "{code:?} {told}");
    daemon.spawn(daemon.command(&[]));
    assert_eq!(daemon.exit_code(LIMIT).await, 78, "{}", daemon.log());
    daemon.says("it is of a later release: in format 9, which takes a reader of format 9").await;
    assert_eq!(std::fs::read(&ledger).unwrap(), bytes);
    assert_eq!(daemon.buddies(), buddies);
    assert!(!daemon.socket.exists(), "nobody serves it");
}

/// How a daemon makes way for the other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Stop,
    Kill,
}

/// One lease of the agent's, and what must be found of it.
struct Kept {
    lease: proto::Lease,
    request: Request,
    lost: bool,
    /// Its container.
    function: Option<String>,
}

struct Story<'e> {
    daemon: TestDaemon<'e>,
    incarnation: String,
    kept: Vec<Kept>,
    /// Tokens of those that were released.
    over: Vec<String>,
    /// `nspool run` of the predecessor, which never hears of any of this.
    human: Child,
    ready: BTreeSet<(String, u64)>,
    buddies: BTreeSet<String>,
}

async fn leases_outlive_upgrades_and_downgrades(engine: &TestEngine) {
    load_busybox(engine);
    let old = PathBuf::from(std::env::var_os("NSPOOL_TEST_PREDECESSOR").expect("NSPOOL_TEST_PREDECESSOR is the predecessor's program"));
    let new = PathBuf::from(NSPOOL);
    let changes = [(&new, End::Stop), (&old, End::Kill), (&new, End::Kill), (&old, End::Stop), (&new, End::Stop)];
    let mut story = Story::begin(engine, old.clone()).await;
    for (round, (program, end)) in changes.into_iter().enumerate() {
        story.change(program, end).await;
        story.stands().await;
        story.tell(end);
        story.goes_on(round).await;
    }
    story.end().await;
}

fn request(id: &str) -> Request {
    Request::new().owner("agent").tenant("acme").label("for", id).request_id(id).wait(LIMIT)
}

/// All that says which lease it is and what its holder was told.
fn facts(lease: &proto::Lease) -> impl PartialEq + std::fmt::Debug {
    let lease = lease.clone();
    (
        (lease.token, lease.lease_id, lease.slot, lease.generation, lease.r#use, lease.namespace_id),
        (lease.host_config, lease.network, lease.ip_addresses, lease.gateways, lease.resolv_conf, lease.lifetime),
        (lease.owner, lease.tenant, lease.labels),
    )
}

impl<'e> Story<'e> {
    /// With the first daemon: a lease of each sort.
    async fn begin(engine: &'e TestEngine, program: PathBuf) -> Self {
        let config = ["pool.max = 8", "pool.join_by = \"10m\"", "stop.policy = \"keep\""];
        let mut daemon = TestDaemon::prepare(engine, &config);
        daemon.program = program;
        // Before the host had a store of its own.
        let sample = daemon.cli_of(&daemon.program, &["config", "sample"]).output().unwrap();
        if !text(&sample.stdout).contains("/images\"") {
            daemon.leave_out("images.store");
        }
        daemon.launch().await;
        let client = daemon.client();
        client.resize(Some(SIZES.0), Some(SIZES.1)).await.unwrap();
        daemon.settled(SIZES.0).await;
        let label = format!("--engine-arg=--label={TEST_LABEL}={}", daemon.pool);
        let words = ["run", "--wait", "60s", &label, BUSYBOX, "sleep", "1000"];
        let human = daemon.cli_of(&daemon.program, &words).stdout(Stdio::null()).spawn().unwrap();
        let incarnation = client.info().await.unwrap().incarnation;
        let (kept, over, ready, buddies) = (Vec::new(), Vec::new(), BTreeSet::new(), BTreeSet::new());
        let mut story = Self { daemon, incarnation, kept, over, human, ready, buddies };
        story.allocate(request("joined")).await;
        story.starts_function();
        story.allocate(request("empty")).await;
        let timed = story.allocate(request("timed").ttl(Duration::from_secs(600))).await.lease.token.clone();
        client.renew(&timed, Some(Duration::from_secs(7200))).await.unwrap();
        let lost = story.allocate(request("lost")).await;
        lost.lost = true;
        engine.run(&["kill", &lost.lease.namespace_id]);
        let ended = story.allocate(request("ended")).await.lease.token.clone();
        story.release(&ended).await;
        story.settles().await;
        story
    }

    async fn allocate(&mut self, request: Request) -> &mut Kept {
        let lease = self.daemon.client().allocate(request.clone()).await.unwrap().keep();
        self.kept.push(Kept { lease, request, lost: false, function: None });
        self.kept.last_mut().unwrap()
    }

    /// In the namespace of the lease that came last.
    fn starts_function(&mut self) {
        let kept = self.kept.last_mut().unwrap();
        kept.function = Some(self.daemon.stay(&kept.lease.network_mode));
    }

    async fn release(&mut self, token: &str) {
        let index = self.kept.iter().position(|kept| kept.lease.token == token).unwrap();
        let kept = self.kept.remove(index);
        if let Some(function) = kept.function {
            self.daemon.engine.run(&["rm", "-f", &function]);
        }
        self.daemon.client().release(token, false).await.unwrap();
        self.over.push(kept.lease.token);
    }

    /// Nothing is on its way; from here on, nothing changes.
    async fn settles(&mut self) {
        let lost = u32::try_from(self.kept.iter().filter(|kept| kept.lost).count()).unwrap();
        // With the human's.
        let leased = u32::try_from(self.kept.len()).unwrap() - lost + 1;
        let quiet = |u: &proto::Usage| u.filling + u.vacating + u.quarantined + u.retiring + u.detached == 0;
        let all = |u: &proto::Usage| (u.ready, u.leased, u.lost) == (SIZES.0, leased, lost);
        self.daemon.usage(&format!("{leased} leased, {lost} lost, and quiet"), |usage| all(usage) && quiet(usage)).await;
        let ready = self.daemon.slots().await.into_iter().filter(|slot| slot.state == "ready");
        self.ready = ready.map(|slot| (slot.namespace_id, slot.generation)).collect();
        self.buddies = self.daemon.buddies().into_iter().collect();
    }

    /// The other daemon takes over, while the pool is cordoned.
    async fn change(&mut self, program: &PathBuf, end: End) {
        self.daemon.client().cordon("a change of releases").await.unwrap();
        match end {
            End::Stop => assert_eq!(self.daemon.stop().await, 0, "{}", self.daemon.log()),
            End::Kill => self.daemon.kill(),
        }
        self.daemon.program.clone_from(program);
        self.daemon.launch().await;
        let runs = std::fs::read_link(format!("/proc/{}/exe", self.daemon.pid())).unwrap();
        assert_eq!(runs, program.canonicalize().unwrap());
    }

    /// Everything is as the other daemon left it.
    async fn stands(&mut self) {
        let (ready, buddies) = (self.ready.clone(), self.buddies.clone());
        self.settles().await;
        assert_eq!((&self.ready, &self.buddies), (&ready, &buddies), "no buddy came or went");
        let client = self.daemon.client();
        assert_eq!(client.info().await.unwrap().incarnation, self.incarnation, "no lease was lost as a whole");
        let usage = client.usage().await.unwrap();
        let total = usage.total.unwrap();
        assert_eq!((usage.cordoned, (total.target, total.max)), (true, SIZES));

        let resumed = client.resume("agent").await.unwrap();
        let mut resumed: BTreeMap<_, _> = resumed.into_iter().map(|lease| (lease.token.clone(), lease)).collect();
        for kept in &self.kept {
            let found = resumed.remove(&kept.lease.token).unwrap_or_else(|| panic!("{} is gone", kept.lease.lease_id));
            assert_eq!(facts(&found), facts(&kept.lease));
            assert_eq!(found.state(), if kept.lost { LeaseState::Lost } else { LeaseState::Active });
            if found.lifetime() == proto::Lifetime::Ttl {
                assert!(found.remaining.unwrap().seconds > 3600, "the renewal is forgotten: {:?}", found.remaining);
            }
            if !kept.lost {
                // An agent that never got its answer asks again.
                let again = client.allocate(kept.request.clone()).await.unwrap().keep();
                assert_eq!(facts(&again), facts(&kept.lease));
            }
            if let Some(function) = &kept.function {
                let seen = self.daemon.engine.run(&["exec", function, "ip", "-o", "-4", "addr"]);
                assert!(seen.contains(&kept.lease.ip_addresses[0]), "{seen}");
            }
        }
        assert!(resumed.is_empty(), "{resumed:?}");
        for token in &self.over {
            assert_eq!(client.release(token, false).await.unwrap().outcome(), ReleaseOutcome::AlreadyReleased);
        }
        assert!(self.human.try_wait().unwrap().is_none(), "nspool run goes on");
        self.daemon.taken_over().await;
        let audit = self.daemon.cli(&["audit"]);
        assert_eq!(audit.status.code(), Some(0), "{}{}", text(&audit.stdout), text(&audit.stderr));
    }

    /// Life under this daemon: one lease of the other's ends, another one begins.
    async fn goes_on(&mut self, round: usize) {
        self.daemon.client().uncordon().await.unwrap();
        let oldest = self.kept.iter().find(|kept| !kept.lost).unwrap().lease.token.clone();
        self.release(&oldest).await;
        self.allocate(request(&format!("of round {round}"))).await;
        self.starts_function();
        self.settles().await;
    }

    /// Everything is given back, and nothing stays.
    async fn end(mut self) {
        while let Some(token) = self.kept.last().map(|kept| kept.lease.token.clone()) {
            self.release(&token).await;
        }
        let functions = containers(self.daemon.engine, &format!("{TEST_LABEL}={}", self.daemon.pool));
        assert_eq!(functions.len(), 1, "only the human's");
        self.daemon.engine.run(&["kill", &functions[0]]);
        let mut human = self.human;
        let status = tokio::task::spawn_blocking(move || human.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(137), "the predecessor's client hands on the function's exit code");
        self.daemon.settled(SIZES.0).await;
        self.daemon.configure(&["stop.policy = \"remove\""]);
        assert_eq!(self.daemon.stop().await, 0, "{}", self.daemon.log());
    }

    #[expect(clippy::print_stdout, reason = "make upgrade says what it did")]
    fn tell(&self, end: End) {
        let to = if self.daemon.program == *NSPOOL { "the present daemon" } else { "the predecessor" };
        let (leases, ready, over) = (self.kept.len() + 1, self.ready.len(), self.over.len());
        println!(
            "{:?}: to {to} by {end:?}: {leases} leases and {ready} ready buddies stand, {over} that are over are known",
            self.daemon.engine.kind
        );
    }
}
