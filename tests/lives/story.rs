//! One seeded life of the whole daemon but for its sockets: agents that allocate, run and release, an engine that fails in every way it has, a
//! ledger on a disk that fills up, is lost or broken, and daemons that are stopped, and killed at any time or in one exact call or write. After
//! every step no lease that was answered may be gone or shared, none LOST whose buddy came to no harm, and nothing may have been done to a
//! namespace with somebody inside. At the end the faults stop: then the pool comes back to its target, and the stop leaves nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;

use crate::support::disk::Disk;
use crate::support::mortal::{Life, MortalEngine, MortalStore};
use crate::support::rig::{Rig, config, fresh};
use nspool::config::{Config, Reuse, Unbounded};
use nspool::daemon::Signal;
use nspool::engine::fake::{Containers, Events, FakeWorld, FunctionId, FunctionSpec, InspectionFault, LinkFault, RenewalFault};
use nspool::ledger::{Identity, Ledger};
use nspool::netns::inspection::{Depth, Difference, InspectError, Kind};
use nspool::netns::managed::FurnishError;
use nspool::pool::Token;
use nspool::proto;
use nspool::proto::namespace_pool_server::NamespacePool as _;

/// A lease that was answered and not released.
pub(crate) struct Held {
    pub(crate) token: String,
    pub(crate) namespace_id: String,
    pub(crate) container: Arc<str>,
    pub(crate) request: proto::AllocateRequest,
    pub(crate) functions: Vec<FunctionId>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum EngineIs {
    Up,
    Away,
    Frozen,
}

pub(crate) struct Story {
    pub(crate) world: Arc<FakeWorld>,
    pub(crate) disk: Disk,
    pub(crate) locks: Arc<tempfile::TempDir>,
    pub(crate) config: Config,
    pub(crate) dice: fastrand::Rng,
    pub(crate) rig: Option<Rig>,
    pub(crate) ledger: Option<Arc<Ledger>>,
    pub(crate) life: Arc<Life>,
    pub(crate) engine: EngineIs,
    /// Calls that were cut off by the daemon's end: answered never, done or not.
    pub(crate) doubtful: Vec<proto::AllocateRequest>,
    pub(crate) releasing: Vec<(String, bool)>,
    pub(crate) held: Vec<Held>,
    /// Leases that a lost ledger told of, and until when their buddies are kept.
    pub(crate) forgotten: Vec<(Held, Duration)>,
    /// Functions of leases that are over.
    pub(crate) stayers: Vec<FunctionId>,
    /// Containers of buddies that something was done to.
    pub(crate) hurt: HashSet<String>,
    pub(crate) requests: u32,
    pub(crate) daemons: u32,
}

impl Story {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let config = config(if dice.bool() { Reuse::Once } else { Reuse::Always });
        Self::of(seed, dice, config)
    }

    /// On a managed network, each use in a namespace of its own.
    pub(crate) fn fresh(seed: u64) -> Self {
        let mut config = fresh();
        config.managed[0].network.slots = 6;
        Self::of(seed, fastrand::Rng::with_seed(seed), config)
    }

    /// The same namespace again when nothing was left in it; functions leave things.
    pub(crate) fn verified(seed: u64) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut config = config(Reuse::Verified);
        config.pool.privileged_joiners = if dice.bool() { Unbounded::Retire } else { Unbounded::Inspect };
        Self::of(seed, dice, config)
    }

    fn of(seed: u64, dice: fastrand::Rng, mut config: Config) -> Self {
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

    pub(crate) fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    pub(crate) fn start(&mut self) {
        self.start_with(true);
    }

    pub(crate) fn start_with(&mut self, keep: bool) {
        self.daemons += 1;
        let identity = Identity {
            boot_id: "boot".into(),
            pool: self.config.pool.name.clone(),
            now: self.world.kernel().since_boot(),
            engine: String::new(),
        };
        self.life = Arc::default();
        let store = MortalStore { store: self.disk.clone(), life: Arc::clone(&self.life) };
        let ledger = Ledger::on(Box::new(store), &identity).unwrap();
        self.ledger = Some(Arc::clone(&ledger.0));
        let engine = Arc::new(MortalEngine { engine: self.world.engine(), life: Arc::clone(&self.life) });
        let rig = Rig::start_on(engine, self.config.clone(), Arc::clone(&self.world), Arc::clone(&self.locks), Some(ledger), keep);
        self.rig = Some(rig);
    }

    pub(crate) async fn kill(&mut self) {
        self.rig.take().unwrap().kill().await;
    }

    pub(crate) async fn allocate(&mut self) {
        self.requests += 1;
        let again = self.held.len() > 3 || (!self.held.is_empty() && self.dice.u8(..5) == 0);
        let request = if again {
            self.held[self.dice.usize(..self.held.len())].request.clone()
        } else {
            proto::AllocateRequest {
                request_id: format!("r{}", self.requests),
                lifetime: proto::Lifetime::Ttl.into(),
                ttl: Some(prost_types::Duration { seconds: 24 * 3600, nanos: 0 }),
                ..proto::AllocateRequest::default()
            }
        };
        self.ask(request, again).await;
    }

    pub(crate) async fn ask(&mut self, request: proto::AllocateRequest, again: bool) {
        let wait = Duration::from_millis(self.dice.u64(..3000));
        let asked = proto::AllocateRequest { wait: wait.try_into().ok(), ..request.clone() };
        let answer = self.rig().caller.namespace_pool().allocate(tonic::Request::new(asked)).await;
        if self.life.is_over() {
            if !again {
                self.doubtful.push(request);
            }
            return;
        }
        let Ok(answer) = answer else { return };
        let answer = answer.into_inner();
        let lease = answer.lease.unwrap();
        if let Some(known) = self.held.iter().find(|held| held.token == lease.token) {
            assert!(answer.repeated_request && known.namespace_id == lease.namespace_id, "another lease for the same request");
            return;
        }
        let namespace_id = lease.namespace_id.clone();
        assert!(!again || lease.state() == proto::LeaseState::Lost, "a second lease for a request that has one");
        assert!(self.held.iter().all(|held| held.namespace_id != namespace_id), "{namespace_id} is leased twice");
        let stolen = self.forgotten.iter().any(|(lost, _)| lost.namespace_id == namespace_id);
        assert!(!stolen, "{namespace_id} is leased to somebody else");
        let token = Token::from_hex(&lease.token).unwrap();
        let container = self.rig().pool.read(|state| state.lease(token)).unwrap().namespace.container_id.clone();
        assert!(!self.leaves_dirt() || self.world.dirt_in(&container) == 0, "{namespace_id} has what another lease's function left");
        self.held.push(Held { token: lease.token, namespace_id, container, request, functions: Vec::new() });
    }

    pub(crate) fn run(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let index = self.dice.usize(..self.held.len());
        if self.leaves_dirt() {
            return self.run_dirty(index);
        }
        let held = &mut self.held[index];
        if let Ok(function) = self.world.run_function(&held.namespace_id, Some(&held.namespace_id), "") {
            held.functions.push(function);
        }
    }

    fn leaves_dirt(&self) -> bool {
        self.config.pool.reuse == Some(Reuse::Verified)
    }

    /// Half of those that can do more than others also do it.
    fn run_dirty(&mut self, index: usize) {
        let held = &mut self.held[index];
        let privileged = self.dice.u8(..4) == 0;
        let spec = FunctionSpec { privileged, ..FunctionSpec::joining(&held.namespace_id, Some(&held.namespace_id)) };
        let Ok(function) = self.world.create_function(spec) else { return };
        if self.world.start_function(&function).is_err() {
            return self.world.remove_function(&function);
        }
        let depth = if privileged { Depth::Privileged } else { Depth::Usual };
        if self.dice.u8(..if privileged { 2 } else { 6 }) == 0 {
            let left = Difference { kind: Kind::Route, subject: "a route".to_owned(), was: None, is: Some(function.to_string()) };
            self.world.soil(function.as_str(), depth, left);
        }
        held.functions.push(function);
    }

    pub(crate) fn end_function(&mut self) {
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

    pub(crate) fn release(&mut self) {
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

    pub(crate) fn give_back(&mut self, token: String, doubtful: bool) {
        // Whether or not an earlier try was recorded.
        let asked = proto::ReleaseRequest { token: token.clone(), doubtful };
        let answer = self.rig().caller.namespace_pool().release(tonic::Request::new(asked)).now_or_never();
        answer.expect("a release waits for nothing").unwrap();
        if self.life.is_over() {
            self.releasing.push((token, doubtful));
        }
    }

    /// The next call of the engine, or write, or the one after it …, is the daemon's last.
    pub(crate) fn end_at_some_point(&mut self) {
        let n = self.dice.u64(1..12);
        if self.dice.bool() {
            self.life.end_in_call(n, self.dice.bool());
        } else {
            self.life.end_in_write(n, self.dice.u64(..300));
        }
    }

    /// After the daemon's end.
    pub(crate) async fn succeed(&mut self) {
        self.kill().await;
        self.start();
        self.try_again().await;
    }

    /// Callers whose call was cut off call again.
    pub(crate) async fn try_again(&mut self) {
        for (token, doubtful) in std::mem::take(&mut self.releasing) {
            self.give_back(token, doubtful);
        }
        for request in std::mem::take(&mut self.doubtful) {
            self.ask(request, false).await;
        }
    }

    pub(crate) fn hurt(&mut self) {
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

    pub(crate) fn engine(&mut self) {
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

    pub(crate) fn engine_back(&mut self, stopped: bool) {
        let containers = if stopped { Containers::Stopped } else { Containers::Kept };
        if stopped {
            self.hurt.extend(self.world.buddies().iter().map(|buddy| buddy.id.to_string()));
        }
        let events = if self.dice.bool() { Events::Late } else { Events::Lost };
        self.world.engine_back(containers, events);
        self.engine = EngineIs::Up;
    }

    pub(crate) async fn step(&mut self) {
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
    pub(crate) fn lose_ledger(&mut self) -> bool {
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
    pub(crate) fn forget(&mut self) {
        let until = self.world.kernel().since_boot() + self.config.pool.join_by;
        let pool = Arc::clone(&self.rig().pool);
        let (known, forgotten) = self.held.drain(..).partition(|held: &Held| {
            let token = Token::from_hex(&held.token).unwrap();
            pool.read(|state| state.lease(token).is_ok())
        });
        self.held = known;
        let forgotten: Vec<Held> = forgotten;
        for mut held in forgotten {
            self.stayers.append(&mut held.functions);
            self.forgotten.push((held, until));
        }
    }

    /// What may go wrong with the next renewal, or the next link.
    pub(crate) fn trouble_a_renewal(&mut self) {
        match self.dice.u8(..24) {
            0 => self.world.script_renewal(RenewalFault::Slow(Duration::from_millis(self.dice.u64(1..4000)))),
            1 => self.world.script_renewal(RenewalFault::Never),
            2 => self.world.script_renewal(RenewalFault::Refused),
            3 => self.world.script_furnish(LinkFault::DoneUnknown),
            4 => self.world.script_furnish(LinkFault::Error(FurnishError::QueueFull)),
            5 => self.world.script_furnish(LinkFault::Slow(Duration::from_millis(self.dice.u64(1..4000)))),
            6 => self.world.script_strips_fail(self.dice.u32(1..4)),
            7 => self.world.set_network_trouble(Some("somebody's bridge")),
            8..12 => self.world.set_network_trouble(None),
            _ => {}
        }
    }

    /// What may go wrong around an inspection, beside all else.
    pub(crate) fn trouble_an_inspection(&mut self) {
        let slow = Duration::from_millis(self.dice.u64(1..4000));
        match self.dice.u8(..16) {
            0 => self.world.script_inspection(InspectionFault::Slow(slow)),
            1 => self.world.script_inspection(InspectionFault::Error(InspectError::Late { limit: slow })),
            _ => {}
        }
    }

    pub(crate) fn check(&self) {
        let now = self.world.kernel().since_boot();
        for (lost, until) in &self.forgotten {
            let kept = now >= *until || self.hurt.contains(&*lost.container) || self.world.is_alive(&lost.container);
            assert!(kept, "{} was removed while its function may have been on the way", lost.namespace_id);
        }
        assert_eq!(self.world.violations(), []);
        self.rig().pool.read(|state| state.check());
        for held in &self.held {
            let asked = proto::GetLeaseRequest { token: held.token.clone() };
            let answer = self.rig().caller.namespace_pool().get_lease(tonic::Request::new(asked)).now_or_never();
            let answer = answer.expect("a look waits for nothing");
            let lease =
                answer.unwrap_or_else(|denied| panic!("the lease on {} is gone: {denied}", held.namespace_id)).into_inner().lease.unwrap();
            assert_eq!(lease.namespace_id, held.namespace_id);
            assert!(
                lease.state() == proto::LeaseState::Active || self.hurt.contains(&*held.container),
                "the lease on {} is lost though nothing happened to its buddy: {}",
                held.namespace_id,
                lease.cause
            );
            if lease.state() == proto::LeaseState::Active
                && !self.config.managed.is_empty()
                && !self.hurt.contains(&*held.container)
                && let Some(address) = lease.ip_addresses.first()
            {
                let has = self.world.address_of(&held.container).map(|address| format!("{address}/16"));
                assert_eq!(has.as_ref(), Some(address), "the link of the lease on {}", held.namespace_id);
            }
        }
    }

    /// The faults stop: everything comes back, and goes.
    pub(crate) async fn end(mut self) {
        self.life.spare();
        self.world.set_network_trouble(None);
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
        assert_eq!(self.world.link_count(), 0);
    }

    /// Until the pool is as it should be, or the daemon has ended.
    pub(crate) async fn settled_or_over(&self) {
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
    pub(crate) async fn whole_use(&mut self) -> u32 {
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
