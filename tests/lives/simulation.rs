//! The whole daemon but for its sockets, through hundreds of seeded lives: agents that allocate, run and release, an engine that fails in every way
//! it has, a ledger on a disk that fills up, is lost or broken, and daemons that are stopped, and killed at any time or in one exact call or write.
//! After every step no lease that was answered may be gone or shared, none LOST whose buddy came to no harm, and nothing may have been done to a
//! namespace with somebody inside. At the end the faults stop: then the pool comes back to its target, and the stop leaves nothing.
//!
//! `make simulate SEEDS=1000000` runs more of them, `NSPOOL_SEED=7 cargo test --test nanny simulation` one of them again. The clock is paused, so a
//! seed's story takes milliseconds; but for the order of hash tables it is the same each time.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::disk::Disk;
use crate::support::mortal::{Life, MortalEngine, MortalStore};
use crate::support::rig::{Rig, config, request};
use nspool::config::{Config, Reuse};
use nspool::daemon::Signal;
use nspool::engine::fake::{Containers, Events, FakeWorld, Fault, FunctionId, Operation};
use nspool::engine::{BuddySpec, NamespaceKind};
use nspool::ledger::{Identity, Ledger};
use nspool::pool::{Lifetime, Request, Token};

const STEPS: u32 = 60;
/// Without further notice.
const SEEDS: u64 = 2_000;

/// A lease that was answered and not released.
struct Held {
    token: Token,
    namespace_id: String,
    container: Arc<str>,
    request: Request,
    functions: Vec<FunctionId>,
}

#[derive(Clone, Copy, PartialEq)]
enum EngineIs {
    Up,
    Away,
    Frozen,
}

struct Story {
    world: Arc<FakeWorld>,
    disk: Disk,
    locks: Arc<tempfile::TempDir>,
    config: Config,
    dice: fastrand::Rng,
    rig: Option<Rig>,
    ledger: Option<Arc<Ledger>>,
    life: Arc<Life>,
    engine: EngineIs,
    /// Calls that were cut off by the daemon's end: answered never, done or not.
    doubtful: Vec<Request>,
    releasing: Vec<(Token, bool)>,
    held: Vec<Held>,
    /// Leases that a lost ledger told of, and until when their buddies are kept.
    forgotten: Vec<(Held, Duration)>,
    /// Functions of leases that are over.
    stayers: Vec<FunctionId>,
    /// Containers of buddies that something was done to.
    hurt: HashSet<String>,
    requests: u32,
    daemons: u32,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut config = config(if dice.bool() { Reuse::Once } else { Reuse::Always });
        config.pool.max = 6;
        config.pacer.rate = None;
        config.pool.detach_after = Duration::from_secs(5);
        let locks = Arc::new(tempfile::tempdir().unwrap());
        let mut story = Self {
            world: FakeWorld::new(seed),
            disk: Disk::default(),
            locks,
            config,
            dice,
            rig: None,
            ledger: None,
            life: Arc::default(),
            doubtful: Vec::new(),
            releasing: Vec::new(),
            engine: EngineIs::Up,
            held: Vec::new(),
            forgotten: Vec::new(),
            stayers: Vec::new(),
            hurt: HashSet::new(),
            requests: 0,
            daemons: 0,
        };
        story.start();
        story
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    fn start(&mut self) {
        self.start_with(true);
    }

    fn start_with(&mut self, keep: bool) {
        self.daemons += 1;
        let identity = Identity { boot_id: "boot".into(), pool: self.config.pool.name.clone(), now: self.world.kernel().since_boot() };
        self.life = Arc::default();
        let store = MortalStore { store: self.disk.clone(), life: Arc::clone(&self.life) };
        let ledger = Ledger::on(Box::new(store), &identity).unwrap();
        self.ledger = Some(Arc::clone(&ledger.0));
        let engine = Arc::new(MortalEngine { engine: self.world.engine(), life: Arc::clone(&self.life) });
        let rig = Rig::start_on(engine, self.config.clone(), Arc::clone(&self.world), Arc::clone(&self.locks), Some(ledger), keep);
        self.rig = Some(rig);
    }

    async fn kill(&mut self) {
        self.rig.take().unwrap().kill().await;
    }

    async fn allocate(&mut self) {
        self.requests += 1;
        let again = self.held.len() > 3 || (!self.held.is_empty() && self.dice.u8(..5) == 0);
        let request = if again {
            self.held[self.dice.usize(..self.held.len())].request.clone()
        } else {
            let request_id = Some(format!("r{}", self.requests));
            Request { request_id, lifetime: Lifetime::Ttl(Duration::from_secs(24 * 3600)), ..request() }
        };
        self.ask(request, again).await;
    }

    async fn ask(&mut self, request: Request, again: bool) {
        let wait = Duration::from_millis(self.dice.u64(..3000));
        let answer = self.rig().pool.allocate(request.clone(), wait).await;
        if self.life.is_over() {
            if !again {
                self.doubtful.push(request);
            }
            return;
        }
        let Ok(grant) = answer else { return };
        let (token, namespace) = (grant.lease.token, &grant.lease.namespace);
        if let Some(known) = self.held.iter().find(|held| held.token == token) {
            assert!(grant.repeated && known.namespace_id == namespace.namespace_id, "another lease for the same request");
            return;
        }
        assert!(!again || grant.lease.lost.is_some(), "a second lease for a request that has one");
        assert!(self.held.iter().all(|held| held.namespace_id != namespace.namespace_id), "{} is leased twice", namespace.namespace_id);
        let (namespace_id, container) = (namespace.namespace_id.clone(), Arc::clone(&namespace.container_id));
        let stolen = self.forgotten.iter().any(|(lost, _)| lost.namespace_id == namespace_id);
        assert!(!stolen, "{namespace_id} is leased to somebody else");
        self.held.push(Held { token, namespace_id, container, request, functions: Vec::new() });
    }

    fn run(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let index = self.dice.usize(..self.held.len());
        let held = &mut self.held[index];
        if let Ok(function) = self.world.run_function(&held.namespace_id, Some(&held.namespace_id), "") {
            held.functions.push(function);
        }
    }

    fn end_function(&mut self) {
        let with: Vec<usize> = (0..self.held.len()).filter(|index| !self.held[*index].functions.is_empty()).collect();
        if !self.stayers.is_empty() && (with.is_empty() || self.dice.bool()) {
            let function = self.stayers.swap_remove(self.dice.usize(..self.stayers.len()));
            self.world.remove_function(&function);
        } else if !with.is_empty() {
            let index = with[self.dice.usize(..with.len())];
            let function = self.held[index].functions.pop().unwrap();
            self.world.exit_function(&function, 0);
            self.world.remove_function(&function);
        }
    }

    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let mut held = self.held.swap_remove(self.dice.usize(..self.held.len()));
        if self.dice.u8(..4) > 0 {
            held.functions.drain(..).for_each(|function| self.world.remove_function(&function));
        }
        self.stayers.extend(held.functions);
        let doubtful = self.dice.u8(..4) == 0;
        self.give_back(held.token, doubtful);
    }

    fn give_back(&mut self, token: Token, doubtful: bool) {
        // Whether or not an earlier try was recorded.
        self.rig().pool.with(|state, now| state.release(now, token, doubtful)).unwrap();
        if self.life.is_over() {
            self.releasing.push((token, doubtful));
        }
    }

    /// The next call of the engine, or write, or the one after it …, is the daemon's last.
    fn end_at_some_point(&mut self) {
        let n = self.dice.u64(1..12);
        if self.dice.bool() {
            self.life.end_in_call(n, self.dice.bool());
        } else {
            self.life.end_in_write(n, self.dice.u64(..300));
        }
    }

    /// After the daemon's end.
    async fn succeed(&mut self) {
        self.kill().await;
        self.start();
        self.try_again().await;
    }

    /// Callers whose call was cut off call again.
    async fn try_again(&mut self) {
        for (token, doubtful) in std::mem::take(&mut self.releasing) {
            self.give_back(token, doubtful);
        }
        for request in std::mem::take(&mut self.doubtful) {
            self.ask(request, false).await;
        }
    }

    fn hurt(&mut self) {
        let buddies = self.world.buddies();
        if buddies.is_empty() {
            return;
        }
        let buddy = buddies[self.dice.usize(..buddies.len())].id.to_string();
        match self.dice.u8(..4) {
            0 => self.world.kill(&buddy),
            1 => self.world.remove_by_hand(&buddy),
            2 => self.world.pause(&buddy),
            _ => drop(self.world.restart(&buddy)),
        }
        self.hurt.insert(buddy);
    }

    fn engine(&mut self) {
        match self.engine {
            EngineIs::Up if self.dice.bool() => {
                self.world.engine_away();
                self.engine = EngineIs::Away;
            }
            EngineIs::Up => {
                self.world.engine_frozen();
                self.engine = EngineIs::Frozen;
            }
            EngineIs::Away | EngineIs::Frozen => {
                let stopped = self.engine == EngineIs::Away && self.dice.u8(..4) == 0;
                self.engine_back(stopped);
            }
        }
    }

    fn engine_back(&mut self, stopped: bool) {
        let containers = if stopped { Containers::Stopped } else { Containers::Kept };
        if stopped {
            self.hurt.extend(self.world.buddies().iter().map(|buddy| buddy.id.to_string()));
        }
        let events = if self.dice.bool() { Events::Late } else { Events::Lost };
        self.world.engine_back(containers, events);
        self.engine = EngineIs::Up;
    }

    async fn step(&mut self) {
        self.try_again().await;
        match self.dice.u8(..100) {
            0..30 => self.allocate().await,
            30..45 => self.run(),
            45..55 => self.end_function(),
            55..66 => self.release(),
            66..71 => self.hurt(),
            71..73 => self.world.cut_events(),
            73..75 => self.world.cut_waits(),
            75..79 => self.engine(),
            79 => {
                let fix = self.dice.bool();
                // Whether it finds something, the story does not know; what it mends must not do harm.
                drop(self.rig().auditor.audit(fix).await);
            }
            80..82 => self.world.containerd_away(),
            82..84 => self.world.containerd_back(),
            84..86 => self.world.set_disk_full(self.dice.bool()),
            86..88 => {
                if self.dice.bool() {
                    self.disk.fill();
                } else {
                    self.disk.set_room(None);
                }
            }
            88..93 => {
                self.kill().await;
                let lost = self.dice.u8(..6) == 0 && self.lose_ledger();
                self.start();
                if lost {
                    self.forget();
                }
            }
            93..95 => {
                let rig = self.rig.take().unwrap();
                let left = rig.stop().await.left;
                assert!(left.is_empty() || self.life.is_over(), "a stop that keeps leaves all on purpose");
                self.start();
            }
            95..98 => self.end_at_some_point(),
            _ => tokio::time::sleep(Duration::from_millis(self.dice.u64(..8000))).await,
        }
        if self.dice.bool() {
            tokio::time::sleep(Duration::from_millis(self.dice.u64(..200))).await;
        }
        self.check();
        while self.life.is_over() {
            self.succeed().await;
            self.check();
        }
    }

    /// `false`: what is left is as good as before.
    fn lose_ledger(&mut self) -> bool {
        if self.dice.bool() {
            self.disk.change(Vec::clear);
            return true;
        }
        let length = self.disk.bytes().len();
        let at = self.dice.usize(..length / 2 + 1);
        // Long enough that something whole comes after it: at its very end it would be a write that was not completed.
        if length > 2_000 {
            self.disk.change(|bytes| bytes[at] ^= 0xff);
        }
        length > 2_000
    }

    /// Leases that the present daemon has not heard of. Their functions go on.
    fn forget(&mut self) {
        let until = self.world.kernel().since_boot() + self.config.pool.join_by;
        let pool = Arc::clone(&self.rig().pool);
        let (known, forgotten) = self.held.drain(..).partition(|held: &Held| pool.read(|state| state.lease(held.token).is_ok()));
        self.held = known;
        let forgotten: Vec<Held> = forgotten;
        for mut held in forgotten {
            self.stayers.append(&mut held.functions);
            self.forgotten.push((held, until));
        }
    }

    fn check(&self) {
        let now = self.world.kernel().since_boot();
        for (lost, until) in &self.forgotten {
            let kept = now >= *until || self.hurt.contains(&*lost.container) || self.world.is_alive(&lost.container);
            assert!(kept, "{} was removed while its function may have been on the way", lost.namespace_id);
        }
        assert_eq!(self.world.violations(), []);
        self.rig().pool.read(|state| state.check());
        for held in &self.held {
            let lease = self.rig().pool.read(|state| state.lease(held.token));
            let lease = lease.unwrap_or_else(|denied| panic!("the lease on {} is gone: {denied}", held.namespace_id));
            assert_eq!(lease.namespace.namespace_id, held.namespace_id);
            assert!(
                lease.lost.is_none() || self.hurt.contains(&*held.container),
                "the lease on {} is lost though nothing happened to its buddy: {:?}",
                held.namespace_id,
                lease.lost
            );
        }
    }

    /// The faults stop: everything comes back, and goes.
    async fn end(mut self) {
        self.life.spare();
        if self.engine != EngineIs::Up {
            self.engine_back(false);
        }
        self.world.containerd_back();
        self.world.set_disk_full(false);
        self.disk.set_room(None);
        for buddy in self.world.buddies() {
            self.world.unpause(buddy.id.as_str());
        }
        let buddies: HashSet<String> = self.world.buddies().iter().map(|buddy| buddy.id.to_string()).collect();
        for container in self.world.containers() {
            if !buddies.contains(container.id.as_str()) {
                self.world.remove_by_hand(container.id.as_str());
            }
        }
        self.check();
        // A release that could not be recorded may have been forgotten with its daemon.
        let all: Vec<_> = self.rig().pool.read(|state| state.lease_views(None));
        for lease in all {
            self.rig().pool.with(|state, now| state.force_release(now, lease.key)).unwrap();
        }
        self.rig().settled(self.config.pool.ready).await;
        assert_eq!(self.world.violations(), []);
        // What could not be recorded is, as soon as it can be.
        let mut health = self.ledger.as_ref().unwrap().health();
        health.wait_for(String::is_empty).await.unwrap();
        assert_eq!(self.rig().auditor.audit(false).await.unwrap().findings, []);
        self.kill().await;
        self.start_with(false);
        self.rig().settled(self.config.pool.ready).await;
        let rig = self.rig.take().unwrap();
        rig.signals.send(Signal::Stop).await.unwrap();
        assert_eq!(rig.ended().await.unwrap().left, []);
        assert_eq!(self.world.violations(), []);
        assert!(self.world.buddies().is_empty(), "left behind: {:#?}", self.world.buddies());
    }
}

fn tell(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut story = Story::new(seed);
        for _ in 0..STEPS {
            story.step().await;
        }
        story.end().await;
    });
}

#[test]
fn nothing_is_lost_doubled_or_left() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("NSPOOL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NSPOOL_SEEDS").unwrap_or(SEEDS),
    };
    let next = AtomicU64::new(seeds.start);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            if let Err(panic) = std::panic::catch_unwind(|| tell(seed)) {
                eprintln!("it was seed {seed}: NSPOOL_SEED={seed} cargo test --test nanny simulation");
                std::panic::resume_unwind(panic);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}

/// Where a daemon ends.
#[derive(Clone, Copy, Debug)]
enum Last {
    Call { answered_never: bool },
    Write { torn: u64 },
}

impl Story {
    /// Until the pool is as it should be, or the daemon has ended.
    async fn settled_or_over(&self) {
        for _ in 0..6_000 {
            let usage = self.rig().pool.read(|state| state.usage());
            let moving = usage.filling + usage.vacating + usage.retiring + usage.quarantined;
            if self.life.is_over() || (usage.ready == self.config.pool.ready && moving == 0) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not settled: {:#?}", self.rig().pool.read(|state| state.slot_views()));
    }

    /// Filled, leased, used, given back, filled again, with ends of the daemon wherever they come. Answers how many came.
    async fn whole_use(&mut self) -> u32 {
        for act in 0..5 {
            match act {
                1 => self.allocate().await,
                2 => self.run(),
                3 => {
                    self.end_function();
                    self.release();
                }
                _ => self.settled_or_over().await,
            }
            self.check();
            while self.life.is_over() {
                self.succeed().await;
                self.settled_or_over().await;
                self.check();
            }
        }
        self.daemons - 1
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_and_every_write_may_be_the_last() {
    let ends = [
        (Last::Call { answered_never: false }, 15),
        (Last::Call { answered_never: true }, 15),
        (Last::Write { torn: 0 }, 5),
        (Last::Write { torn: 9 }, 5),
        (Last::Write { torn: u64::MAX }, 5),
    ];
    for (last, at_least) in ends {
        let mut n = 1;
        loop {
            let mut story = Story::new(n);
            match last {
                Last::Call { answered_never } => story.life.end_in_call(n, answered_never),
                Last::Write { torn } => story.life.end_in_write(n, torn),
            }
            let ended = story.whole_use().await;
            story.end().await;
            if ended == 0 {
                break;
            }
            n += 1;
        }
        assert!(n > at_least, "{last:?}: there were only {n} of them");
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_falls_ends_no_lease() {
    let mut story = Story::new(1);
    story.rig().settled(2).await;
    story.allocate().await;
    // Another one on the same pool, with what the ledger of the first says by now: it cannot have the lock.
    let copy = Disk::default();
    copy.change(|bytes| *bytes = story.disk.bytes());
    let identity = Identity { boot_id: "boot".into(), pool: story.config.pool.name.clone(), now: story.world.kernel().since_boot() };
    let ledger = Ledger::on(Box::new(copy.clone()), &identity).unwrap();
    let second = Rig::start_in(story.config.clone(), Arc::clone(&story.world), Arc::clone(&story.locks), Some(ledger), false);
    second.ended().await.unwrap_err();
    let (_, replayed) = Ledger::on(Box::new(copy), &identity).unwrap();
    assert_eq!(replayed.table.leases.len(), 1);
    story.check();
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_daemons_last_call_made_is_cleared_away_when_it_turns_up() {
    for (events_lost, frozen) in [(false, false), (true, false), (false, true)] {
        let mut story = Story::new(1);
        story.rig().settled(2).await;
        let buddy = story.world.container(story.world.buddies()[0].id.as_str()).unwrap();
        story.kill().await;
        story.start();
        story.rig().settled(2).await;
        if frozen {
            story.world.engine_frozen();
        }
        if events_lost {
            story.world.script(Operation::Events, Fault::Slow(Duration::from_secs(5)));
            story.world.cut_events();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let spec = BuddySpec {
            name: "nspool-default-3-7-1-0123abcd".into(),
            image: buddy.image,
            command: Vec::new(),
            labels: buddy
                .labels
                .into_iter()
                .chain([("nspool.slot".into(), "3".into()), ("nspool.generation".into(), "7".into())])
                .collect(),
            network: "bridge".into(),
            namespaces: vec![NamespaceKind::Net],
            user: String::new(),
            memory_bytes: 0,
            pids: 0,
        };
        let engine = story.world.engine();
        let late = async { engine.create(&spec).await.unwrap() };
        let back = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            story.world.engine_back(Containers::Kept, Events::Late);
        };
        let id = if frozen { tokio::join!(late, back).0 } else { late.await };
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(story.world.container(id.as_str()).is_none(), "events lost: {events_lost}, frozen: {frozen}");
        assert_eq!(story.rig().pool.read(|state| state.usage().ready), 2);
        assert_eq!(story.world.violations(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_ledger_may_have_told_as_leased_is_kept_until_its_function_had_its_time() {
    let mut story = Story::new(1);
    story.rig().settled(2).await;
    story.allocate().await;
    story.rig().settled_beside(2).await;
    story.kill().await;
    story.disk.change(Vec::clear);
    story.start();
    let lost = story.held.pop().unwrap();
    story.rig().settled(2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    // Its own ledger is whole by now, and has never heard of them.
    story.kill().await;
    story.start();
    story.rig().settled(2).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().detached), 3);
    let function = story.world.run_function(&lost.namespace_id, Some(&lost.namespace_id), "").unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().detached), 1, "the one that somebody is in");
    assert_eq!(story.rig().auditor.audit(false).await.unwrap().findings, []);
    story.world.remove_function(&function);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().detached), 0);
    assert_eq!(story.world.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_while_what_a_predecessor_left_is_looked_for() {
    let mut story = Story::new(1);
    story.rig().settled(2).await;
    story.kill().await;
    story.world.engine_frozen();
    story.start();
    story.rig().pool.with(|state, now| state.resize_asked(now, 5, 6)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(story.rig().pool.read(|state| state.usage().filling), 2, "those that are adopted, and no other");
    story.engine_back(false);
    story.rig().settled(5).await;
}
