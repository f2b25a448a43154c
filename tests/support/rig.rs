//! The whole daemon but for its sockets, on the scripted engine, under a paused clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nspool::api::{About, Api, DaemonStatus, Limits, Local};
use nspool::audit::Auditor;
use nspool::config::{Config, Managed, Reuse};
use nspool::daemon::{Daemon, DaemonError, Parts, Signal, Stopped};
use nspool::engine::Engine;
use nspool::engine::fake::FakeWorld;
use nspool::image::gate::Source;
use nspool::ledger::{Ledger, Replayed};
use nspool::level;
use nspool::netns::managed::{Bridge, ManagedNetwork, Range};
use nspool::pool::{Grant, Lifetime, Pool, Released, Request};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running daemon. Drop the rig and the daemon is aborted.
pub struct Rig {
    pub world: Arc<FakeWorld>,
    pub pool: Arc<Pool>,
    pub auditor: Arc<Auditor>,
    pub signals: mpsc::Sender<Signal>,
    /// A caller, which has no socket between.
    pub caller: Local,
    task: JoinHandle<Result<Stopped, DaemonError>>,
    _locks: Arc<tempfile::TempDir>,
}

/// Small, and with nothing left to chance.
pub fn config(reuse: Reuse) -> Config {
    let mut config = Config::default();
    config.pool.ready = 2;
    config.pool.max = 4;
    config.pool.reuse = Some(reuse);
    config
}

/// The same on a managed network, each use in a namespace of its own.
pub fn fresh() -> Config {
    let mut config = config(Reuse::Fresh);
    config.pool.networks = vec!["own".into()];
    let network = ManagedNetwork {
        name: "own".into(),
        bridge: Bridge::Own { name: "nsbr0".into() },
        slots: config.pool.max,
        ipv4: Range::whole("10.213.0.0/16".parse().unwrap()),
        ipv6: None,
        mtu: 1400,
        isolation: true,
        nat: true,
    };
    config.managed = vec![Managed { network, rest: Duration::from_secs(10), forwarding: false, engine: None }];
    config
}

/// With one slot, no more.
pub fn one_slot(mut config: Config) -> Config {
    (config.pool.ready, config.pool.max) = (1, 1);
    config
}

/// With one slot ready on a new machine.
pub async fn started(config: Config) -> (Arc<FakeWorld>, Rig) {
    let world = FakeWorld::new(1);
    let rig = Rig::start(config, Arc::clone(&world));
    rig.settled(1).await;
    (world, rig)
}

impl Rig {
    pub fn start(config: Config, world: Arc<FakeWorld>) -> Self {
        Self::start_in(config, world, Arc::new(tempfile::tempdir().unwrap()), None, false)
    }

    /// With what an earlier one left, and the locks' folder of it.
    pub fn start_in(
        config: Config,
        world: Arc<FakeWorld>,
        locks: Arc<tempfile::TempDir>,
        ledger: Option<(Arc<Ledger>, Replayed)>,
        keep: bool,
    ) -> Self {
        let engine = world.engine();
        Self::start_on(engine, config, world, locks, ledger, keep)
    }

    /// On something between it and the world's engine.
    pub fn start_on(
        engine: Arc<dyn Engine>,
        config: Config,
        world: Arc<FakeWorld>,
        locks: Arc<tempfile::TempDir>,
        ledger: Option<(Arc<Ledger>, Replayed)>,
        keep: bool,
    ) -> Self {
        let parts = Parts {
            engine,
            kernel: world.kernel(),
            links: Some(world.links()),
            mounter: None,
            source: Source::from_config(&config.placeholder, &[]).unwrap(),
            listeners: Vec::new(),
            locks: locks.path().to_owned(),
            ledger,
            keep,
        };
        let limits = Limits::of(&config.api, &config.pool);
        let about = about(&config, world.kernel().since_boot());
        let daemon = Daemon::assemble(config, parts);
        let (pool, auditor) = (daemon.pool(), daemon.auditor());
        let caller = Local::new(handlers(Arc::clone(&pool), about, limits), 0, CancellationToken::new());
        let (signals, received) = mpsc::channel(4);
        #[expect(clippy::disallowed_methods, reason = "the rig owns the handle and joins it in `stop`")]
        let task = tokio::spawn(daemon.run(received));
        Self { world, pool, auditor, signals, caller, task, _locks: locks }
    }

    /// kill -9: what the engine was told it carries out.
    pub async fn kill(self) {
        self.task.abort();
        let _gone = self.task.await;
    }

    /// Waits, in the clock's time, until so many are ready and nothing else is going on.
    pub async fn settled(&self, ready: u32) {
        let quiet = |state: &nspool::pool::state::State| {
            let usage = state.usage();
            usage.ready == ready
                && usage.leased + usage.vacating + usage.renewing + usage.cooling + usage.retiring + usage.quarantined + usage.filling == 0
        };
        if tokio::time::timeout(Duration::from_secs(900), self.pool.until(quiet)).await.is_err() {
            panic!("not settled: {:#?}\n{:#?}", self.pool.read(|s| s.usage()), self.pool.read(|s| s.slot_views()));
        }
    }

    /// The same beside leases.
    pub async fn settled_beside(&self, ready: u32) {
        let quiet = |state: &nspool::pool::state::State| state.usage().ready == ready && state.usage().filling == 0;
        tokio::time::timeout(Duration::from_secs(900), self.pool.until(quiet)).await.expect("slots are filled");
    }

    pub async fn allocate(&self) -> Grant {
        self.pool.allocate(request(), Duration::from_secs(900)).await.unwrap()
    }

    /// A whole use: lease, function, release.
    pub async fn use_once(&self) -> Grant {
        let grant = self.allocate().await;
        let name = &grant.lease.namespace.namespace_id;
        let function = self.world.run_function(name, Some(name), "").unwrap();
        self.world.exit_function(&function, 0);
        self.world.remove_function(&function);
        self.release(&grant);
        grant
    }

    pub fn release(&self, grant: &Grant) -> Released {
        self.pool.with(|state, now| state.release(now, grant.lease.token, false)).unwrap()
    }

    pub async fn stop(self) -> Stopped {
        let _ = self.signals.try_send(Signal::Stop);
        self.ended().await.unwrap()
    }

    pub async fn ended(self) -> Result<Stopped, DaemonError> {
        tokio::time::timeout(Duration::from_secs(3600), self.task).await.expect("the daemon ends").unwrap()
    }
}

fn about(config: &Config, started_boot: Duration) -> About {
    About {
        pool: config.pool.name.clone(),
        networks: config.pool.networks.clone(),
        namespaces: config.pool.namespaces.clone(),
        reuse: String::new(),
        at_stop: String::new(),
        state_dir: String::new(),
        incarnation: String::new(),
        version: String::new(),
        started_at: SystemTime::UNIX_EPOCH,
        started_boot,
    }
}

/// The daemon's own are behind its listeners, of which a rig has none.
fn handlers(pool: Arc<Pool>, about: About, limits: Limits) -> Api {
    Api {
        pool,
        about,
        status: level::channel(DaemonStatus::default()).1,
        limits: level::channel(limits).1,
        detached: Arc::new(Vec::new),
        images: None,
        builders: nspool::config::Builders::default(),
        inspect: Arc::new(|_, _| Box::pin(async { unreachable!("slots are inspected by the daemon's own snapshots here") })),
        audit: Arc::new(|_| Box::pin(async { unreachable!("audits are asked of the auditor here") })),
        max_message: usize::MAX,
        max_streams: u32::MAX,
        grace: Duration::ZERO,
    }
}

pub fn request() -> Request {
    Request {
        uid: 0,
        owner: String::new(),
        tenant: String::new(),
        request_id: None,
        network: None,
        lifetime: Lifetime::Joiners { join_by: Duration::from_secs(60) },
        labels: std::collections::BTreeMap::new(),
    }
}
