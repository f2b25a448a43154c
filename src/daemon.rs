//! Assembly and stop order: the only file that knows every part.
//!
//! Start: the pool, with what the ledger tells → the API answers, with STARTING while nothing is proven → the observer reaches the engine → the
//! pool's lock → nannies adopt what the ledger tells while the rest of a predecessor is removed → nannies fill. An engine or an image that is not
//! there only delays the last steps.
//!
//! Stop, by policy: every lease ends, nannies retire their buddies, those with somebody inside stay and are named; or everything stays as it is, for
//! the next daemon, as it also does when a part of this one falls. Then the API ends. Bounded by `[stop] timeout`; a second signal cuts it short.
//! What it deliberately does not know: how anything works.

mod inspect;
mod links;
mod succession;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, About, Api, DaemonStatus, Limits};
use crate::audit::Auditor;
use crate::config::{self, AcrossTenants, Config, EngineChoice, Pacer, PlaceholderImage, Reuse};
use crate::engine::paced::{Deadlines, Paced};
use crate::engine::{Engine, NamespaceKind};
use crate::engine_networks::EngineNetworks;
use crate::headcount::{self, Present};
use crate::image::Images;
use crate::image::cache::Cache;
use crate::image::freshness::{Policy, Stale};
use crate::image::gate::{Gate, GateState, Source};
use crate::image::host_store::HostStore;
use crate::image::pull::CredentialSource;
use crate::image::registry::{Client, Registry};
use crate::image::room::record::File;
use crate::ledger::{self, Ledger, Replayed};
use crate::level;
use crate::lock::LockError;
use crate::nanny::buddy::{Breed, Wiring};
use crate::nanny::fill::Trust;
use crate::nanny::fitness::Fitness;
use crate::nanny::leftovers::Leftovers;
use crate::nanny::looks::Looks;
use crate::nanny::minder::{self, Detached, DetachedList};
use crate::nanny::pin::{self, Pinned};
use crate::nanny::shelf::Shelf;
use crate::nanny::{Settings, Tools};
use crate::netns::Kernel;
use crate::netns::folders::Mounter;
use crate::netns::host_links;
use crate::netns::networks::{Links, Networks, Wire};
use crate::observer::{Doubts, EngineState, Late, Observer};
use crate::pool::state::{Afterwards, Rules, SlotState, State};
use crate::pool::{Pool, Token, World};
use crate::random;
use crate::recovery::{self, Means, Suspects};
use crate::roll;
use crate::supervisor::NannyPanicked;
use succession::Succession;
pub(crate) use succession::WAIT_FOR_LOCK;

/// How long streams and connections have to end after the slots are gone.
const END_OF_API: Duration = Duration::from_secs(2);

/// What the daemon is given by whoever runs it.
pub struct Parts {
    /// Not yet paced.
    pub engine: Arc<dyn Engine>,
    /// Processes and namespaces.
    pub kernel: Arc<dyn Kernel>,
    /// Who furnishes managed networks; `None` where none is configured.
    pub links: Option<Arc<dyn Links>>,
    /// Who mounts namespaces, to be joined by path; `None`: nobody.
    pub mounter: Option<Arc<dyn Mounter>>,
    /// Where the placeholder comes from.
    pub source: Source,
    /// The API's sockets.
    pub listeners: Vec<UnixListener>,
    /// Where pools' locks are; [`crate::lock::folder`] on a host.
    pub locks: PathBuf,
    /// What the last daemon left, and where this one writes; `None`: nothing survives.
    pub ledger: Option<(Arc<Ledger>, Replayed)>,
    /// A stop leaves slots and leases to the next daemon.
    pub keep: bool,
}

/// What the daemon is told while it runs.
#[derive(Clone, Debug)]
pub enum Signal {
    /// Stop within the bound; a second one: at once.
    Stop,
    /// Take a new configuration, as far as it can change live.
    Reload(Box<Config>),
}

/// How it ended.
#[derive(Debug, Default)]
pub struct Stopped {
    /// Buddies and networks that stay in the engine, each with who is inside, or why.
    pub left: Vec<Left>,
}

/// One buddy that stays, or a network of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The container's id, which stays true whatever it is called; or `network` and its name.
    pub container: String,
    /// Who is inside, or why it could not be removed.
    pub why: String,
}

/// Why the daemon ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon has this pool, or the lock cannot be made.
    #[error("the pool cannot be taken")]
    Lock(#[source] LockError),
    /// A bug of ours.
    #[error("a part of nspool failed")]
    Nanny(#[source] NannyPanicked),
    /// The API's sockets failed.
    #[error("the API failed")]
    Api(#[source] api::ServeError),
}

/// Levels that the daemon keeps up to date for its parts.
struct Shown {
    status: level::Sender<DaemonStatus>,
    limits: level::Sender<Limits>,
    settings: level::Sender<Settings>,
}

/// What the API shows besides.
struct Shows {
    incarnation: String,
    keep: bool,
    auditor: Arc<Auditor>,
}

/// A daemon that has been put together, and not started.
pub struct Daemon {
    config: Config,
    ledger: Option<Arc<Ledger>>,
    succession: Succession,
    keep: bool,
    /// A daemon of this pool ran before on this boot.
    predecessor: bool,
    tools: Arc<Tools>,
    shown: Shown,
    observer: Observer,
    auditor: Arc<Auditor>,
    arriving: mpsc::Receiver<Detached>,
    detached: DetachedList,
    api: Api,
    images: Option<Images>,
    listeners: Vec<UnixListener>,
    /// Engine mutations under way, which end by themselves.
    mutations: TaskTracker,
}

impl Daemon {
    /// Puts it together; no I/O.
    #[must_use]
    pub fn assemble(config: Config, parts: Parts) -> Self {
        let (ledger, replayed) = parts.ledger.unzip();
        // A ledger begins with its first daemon.
        let predecessor = replayed.as_ref().is_some_and(|replayed| replayed.found != ledger::Found::Nothing);
        let detached = DetachedList::default();
        let (pool, incarnation, suspects) = pool_of(&config, &parts.kernel, ledger.as_ref(), replayed);
        let mutations = TaskTracker::new();
        let engine = Arc::new(paced(&config, parts.engine, &mutations));
        let registry: Arc<dyn Registry> = Arc::new(Client::default());
        let gate = Arc::new(gate(&config, &engine, parts.source, &registry));
        let may_fork = may_fork(&config);
        let looks = Arc::new(looks_of(&config, &engine, &parts.kernel, may_fork));
        let leftovers = leftovers(&config, parts.mounter.as_ref(), &parts.kernel);
        let shelf = shelf(&config, parts.mounter);
        let breed = Arc::new(breed(&config, may_fork, shelf.is_some()));
        let (settings, settings_rx) = level::channel(settings_of(&config));
        let (state, engine_state) = level::channel(EngineState::Starting { why: String::new() });
        let (fitness, trust) = known_beforehand(&config);
        let (detached_tx, arriving) = mpsc::channel(config.pool.max_detached.max(1) as usize);
        let tools = Arc::new(Tools {
            pool,
            engine,
            gate,
            kernel: parts.kernel,
            looks,
            breed,
            settings: settings_rx,
            engine_state,
            networks: Arc::new(networks(&config, parts.links)),
            fitness,
            heard: Arc::default(),
            snapshots: Arc::default(),
            shelf,
            leftovers,
            unbounded: config.pool.privileged_joiners,
            present: Present::default(),
            doubts: Arc::new(Doubts::default()),
            trust,
            made: Notify::new(),
            pinned: Pinned::default(),
            detached: detached_tx,
            dice: parking_lot::Mutex::new(random::dice()),
        });
        let images = images(&config, &tools, registry);
        let (observer, late) = observer_of(&config, &tools, state, images.as_ref());
        let (means, locks) = (means_of(&tools), parts.locks);
        let (status, shown) = level::channel(DaemonStatus::default());
        let (limits, limits_shown) = level::channel(Limits::of(&config.api, &config.pool));
        let incarnation = incarnation.unwrap_or_else(|| tools.breed.instance.clone());
        let auditor = Arc::new(Auditor::new(Arc::clone(&tools), means.clone(), Arc::clone(&detached)));
        let shows = Shows { incarnation, keep: parts.keep, auditor: Arc::clone(&auditor) };
        let api = api_of(&config, &tools, &detached, shown, limits_shown, shows, images.clone());
        let shown = Shown { status, limits, settings };
        let (list, name) = (Arc::clone(&detached), config.pool.name.clone());
        let succession = Succession { tools: Arc::clone(&tools), means, suspects, late, detached: list, pool: name, locks };
        Self {
            config,
            ledger,
            succession,
            keep: parts.keep,
            predecessor,
            tools,
            shown,
            observer,
            auditor,
            arriving,
            detached,
            api,
            images,
            listeners: parts.listeners,
            mutations,
        }
    }

    /// Its audits, for whoever looks at it from inside the process.
    #[must_use]
    pub fn auditor(&self) -> Arc<Auditor> {
        Arc::clone(&self.auditor)
    }

    /// The pool, for whoever looks at it from inside the process.
    #[must_use]
    pub fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.tools.pool)
    }

    /// Whether the engine answers, for the metrics.
    #[must_use]
    pub fn tools(&self) -> Arc<Tools> {
        Arc::clone(&self.tools)
    }

    /// Runs until a signal or a failure. When the signals' sender is dropped, that is a Stop.
    ///
    /// # Errors
    /// [`DaemonError`], after an orderly stop where there was something to stop.
    pub async fn run(self, mut signals: mpsc::Receiver<Signal>) -> Result<Stopped, DaemonError> {
        let Self {
            mut config,
            ledger,
            succession,
            keep,
            predecessor,
            tools,
            shown,
            observer,
            auditor,
            arriving,
            detached,
            api,
            images,
            listeners,
            mutations,
        } = self;
        let (ending, api_ending) = (CancellationToken::new(), CancellationToken::new());
        let engines = Arc::new(engine_networks(&config, &tools));
        let mut background = watchers(&tools, &engines, predecessor, &config, images.as_ref(), &ending);
        background.spawn(observer.run(ending.clone()));
        background.spawn(minder::run(Arc::clone(&tools), arriving, Arc::clone(&detached), ending.clone()));
        if !config.audit.every.is_zero() {
            let (every, stop) = (config.audit.every, ending.clone());
            background.spawn(async move { auditor.run(every, stop).await });
        }
        let records = ledger.as_ref().map_or_else(|| level::Sender::new(String::new()).subscribe(), |ledger| ledger.health());
        if let Some(ledger) = ledger {
            let (kernel, most, stop) = (Arc::clone(&tools.kernel), config.pool.remember_max as usize, ending.clone());
            background.spawn(async move { ledger.keep_short(|| kernel.since_boot(), most, stop).await });
        }
        let Shown { status, limits, settings } = shown;
        background.spawn(show_status(Arc::clone(&tools), records, status, ending.clone()));
        let mut api = std::pin::pin!(api::serve(api, listeners, api_ending.clone()));
        let mut work = std::pin::pin!(succession.work());

        let outcome = loop {
            tokio::select! {
                biased;
                signal = signals.recv() => match signal {
                    Some(Signal::Reload(new)) => reload(&tools, images.as_ref(), &settings, &limits, &mut config, &new),
                    Some(Signal::Stop) | None => break Ok(()),
                },
                worked = &mut work => break worked,
                served = &mut api => break served.map_err(DaemonError::Api),
                Some(ended) = background.join_next() => if let Err(error) = ended {
                    break Err(DaemonError::Nanny(NannyPanicked(error.to_string())));
                },
            }
        };
        tracing::info!(timeout = ?config.stop.timeout, "stopping");
        let mut until = Instant::now() + config.stop.timeout;
        tools.engine.set_stopping();
        // Nobody asked for the end of a daemon that falls, least of all the holders of its leases.
        let keep = keep || outcome.is_err();
        tools.pool.with(|state, now| if keep { state.stop_and_keep(now) } else { state.stop(now) });
        if outcome.is_ok() {
            tokio::select! {
                biased;
                _ = tokio::time::timeout_at(until, &mut work) => {}
                _ = &mut api => {}
                () = second_stop(&mut signals) => until = Instant::now(),
            }
        }
        cut_off(&ending, images).await;
        api_ending.cancel();
        let _ = tokio::time::timeout(END_OF_API, api).await;
        end(background, mutations).await;
        outcome?;
        Ok(if keep { kept(&tools, &detached) } else { removed(&tools, &engines, &detached, until).await })
    }
}

/// Who follows a fetch hears that it is over before the API ends.
async fn cut_off(ending: &CancellationToken, images: Option<Images>) {
    ending.cancel();
    if let Some(images) = images {
        let _ = tokio::time::timeout(END_OF_API, images.close()).await;
    }
}

/// Tasks that were told to end, and mutations, which end by themselves.
async fn end(mut background: JoinSet<()>, mutations: TaskTracker) {
    let _ = tokio::time::timeout(END_OF_API, async { while background.join_next().await.is_some() {} }).await;
    mutations.close();
    let _ = tokio::time::timeout(END_OF_API, mutations.wait()).await;
}

/// Nothing stays, but for what somebody is in, and then what that needs. What else has to go has the time that is left of the stop's.
async fn removed(tools: &Tools, engines: &EngineNetworks, detached: &DetachedList, until: Instant) -> Stopped {
    let mut left = left(tools, detached);
    let unknown = |why: String| Left { container: "what keeps the placeholder image".to_owned(), why };
    match tokio::time::timeout_at(until.max(Instant::now() + END_OF_API), pin::remove(tools)).await {
        Ok(Ok(pins)) => left.extend(pins.into_iter().map(|(id, error)| Left { container: id.to_string(), why: error.to_string() })),
        Ok(Err(error)) => left.push(unknown(error.to_string())),
        Err(_) => left.push(unknown("the engine did not answer in time".to_owned())),
    }
    Stopped { left: if left.is_empty() { links::tear_down(tools, engines).await } else { left } }
}

fn watchers(
    tools: &Arc<Tools>,
    engines: &Arc<EngineNetworks>,
    predecessor: bool,
    config: &Config,
    images: Option<&Images>,
    ending: &CancellationToken,
) -> JoinSet<()> {
    let mut background = JoinSet::new();
    if let Some(images) = images {
        background.spawn(images.builds.clone().run(ending.clone()));
        background.spawn(images.room.clone().run(ending.clone()));
    }
    let (pool, gate) = (Arc::clone(&tools.pool), Arc::clone(&tools.gate));
    let stop = ending.clone();
    background.spawn(async move { pool.run_timer(stop).await });
    let stop = ending.clone();
    background.spawn(async move { gate.run(stop).await });
    background.spawn(links::run(Arc::clone(tools), Arc::clone(engines), predecessor, ending.clone()));
    background.spawn(roll::run(Arc::clone(tools), ending.clone()));
    if config.engine.kind != EngineChoice::Native {
        background.spawn(pin::run(Arc::clone(tools), ending.clone()));
    }
    background.spawn(links::tidy(Arc::clone(tools), ending.clone()));
    if !config.pool.count_every.is_zero() {
        background.spawn(headcount::run(Arc::clone(tools), config.pool.count_every, ending.clone()));
    }
    background
}

/// Everything stays, for the next daemon.
fn kept(tools: &Tools, detached: &DetachedList) -> Stopped {
    let usage = tools.pool.read(State::usage);
    tracing::info!(
        ready = usage.ready,
        leased = usage.leased,
        detached = detached.lock().len(),
        "slots and leases stay for the next start"
    );
    Stopped::default()
}

async fn second_stop(signals: &mut mpsc::Receiver<Signal>) {
    loop {
        match signals.recv().await {
            Some(Signal::Stop) => {
                tracing::warn!("stopping at once");
                return;
            }
            Some(Signal::Reload(_)) => {}
            None => std::future::pending().await,
        }
    }
}

fn reload(
    tools: &Tools,
    images: Option<&Images>,
    settings: &level::Sender<Settings>,
    limits: &level::Sender<Limits>,
    config: &mut Config,
    new: &Config,
) {
    let config::reload::Reload { config: now_live, applied, needs_restart } = config::reload::reload(config, new);
    for change in applied {
        tracing::info!(key = change.key, old = change.old, new = change.new, "changed");
    }
    for change in needs_restart {
        tracing::warn!(key = change.key, old = change.old, new = change.new, "changes with the next start only");
    }
    tools.engine.reconfigure(&pacer_of(&now_live));
    if let Some(images) = images {
        images.room.reconfigure(&now_live.images);
    }
    settings.send_replace(settings_of(&now_live));
    limits.send_replace(Limits::of(&now_live.api, &now_live.pool));
    tools.pool.with(|state, now| {
        state.set_rules(now, rules(&now_live));
        if (now_live.pool.ready, now_live.pool.max) != (config.pool.ready, config.pool.max)
            && let Err(denied) = state.resize_configured(now, now_live.pool.ready, now_live.pool.max)
        {
            tracing::error!(%denied, "the configured size is refused");
        }
    });
    *config = now_live;
}

/// Keeps what the API shows of engine and image up to date.
async fn show_status(tools: Arc<Tools>, mut ledger: level::Receiver<String>, status: level::Sender<DaemonStatus>, stop: CancellationToken) {
    let (mut engine, mut image) = (tools.engine_state.clone(), tools.gate.subscribe());
    loop {
        let ledger_error = ledger.borrow_and_update().clone();
        let next = status_of(&engine.borrow_and_update(), &image.borrow_and_update(), tools.gate.reference(), ledger_error);
        status.send_if_modified(|shown| {
            let news = *shown != next;
            *shown = next;
            news
        });
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = engine.changed() => {}
            Ok(()) = image.changed() => {}
            Ok(()) = ledger.changed() => {}
            else => return,
        }
    }
}

fn status_of(engine: &EngineState, image: &GateState, reference: &str, ledger_error: String) -> DaemonStatus {
    let stale = |stale: &Stale| format!("old since {}: {}", humantime::format_rfc3339_seconds(stale.since), stale.why);
    DaemonStatus {
        engine: match engine {
            EngineState::Starting { .. } => api::EngineState::Starting,
            EngineState::Up(_) => api::EngineState::Up,
            EngineState::Away { .. } => api::EngineState::Away,
        },
        engine_error: engine.why().to_owned(),
        engine_info: engine.info().cloned(),
        image: match image {
            GateState::Unknown => api::ImageState::Unknown,
            GateState::Preparing { .. } => api::ImageState::Preparing,
            GateState::Ready(_) => api::ImageState::Ready,
            GateState::Failed(_) => api::ImageState::Failed,
        },
        image_error: image.failure().map(|failure| failure.why.to_string()).or(image.stale().map(stale)).unwrap_or_default(),
        placeholder: match image {
            GateState::Ready(placeholder) => Some((reference.to_owned(), placeholder.clone())),
            GateState::Unknown | GateState::Preparing { .. } | GateState::Failed(_) => None,
        },
        ledger_error,
    }
}

fn observer_of(config: &Config, tools: &Tools, state: level::Sender<EngineState>, images: Option<&Images>) -> (Observer, Arc<Late>) {
    let late = Arc::new(Late::new(tools.breed.instance.clone()));
    let observer = Observer {
        engine: Arc::clone(&tools.engine) as Arc<dyn Engine>,
        pool: Arc::clone(&tools.pool),
        gate: Arc::clone(&tools.gate),
        builds: images.map(|images| images.builds.clone()),
        doubts: Arc::clone(&tools.doubts),
        heard: Arc::clone(&tools.heard),
        state,
        probe_every: config.engine.probe_every,
        backoff: config.backoff.clone(),
        late: Arc::clone(&late),
    };
    (observer, late)
}

fn means_of(tools: &Tools) -> Means {
    let engine = Arc::clone(&tools.engine) as Arc<dyn Engine>;
    Means { engine, kernel: Arc::clone(&tools.kernel), looks: Arc::clone(&tools.looks), breed: Arc::clone(&tools.breed) }
}

fn api_of(
    config: &Config,
    tools: &Tools,
    detached: &DetachedList,
    status: level::Receiver<DaemonStatus>,
    limits: level::Receiver<Limits>,
    shows: Shows,
    images: Option<Images>,
) -> Api {
    let detached = Arc::clone(detached);
    let shown = move || {
        let row = |buddy: &minder::DetachedView| api::Detached {
            container_id: buddy.id.to_string(),
            name: buddy.name.clone(),
            slot: buddy.slot,
            generation: buddy.generation,
            joiners: buddy.joiners.clone(),
            since: buddy.since,
        };
        detached.lock().iter().map(row).collect()
    };
    let about = About {
        pool: config.pool.name.clone(),
        networks: config.pool.networks.clone(),
        namespaces: config.pool.namespaces.clone(),
        reuse: policies(config),
        at_stop: if shows.keep { "keep" } else { "remove" }.to_owned(),
        state_dir: config.state.dir.to_string_lossy().into_owned(),
        incarnation: shows.incarnation,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: SystemTime::now(),
        started_boot: tools.pool.now(),
    };
    Api {
        pool: Arc::clone(&tools.pool),
        about,
        status,
        limits,
        detached: Arc::new(shown),
        audit: Arc::new(move |fix| {
            let auditor = Arc::clone(&shows.auditor);
            Box::pin(async move { auditor.audit(fix).await })
        }),
        inspect: inspect::inspections(&tools.snapshots),
        images,
        builders: config.images.builders,
        max_message: config.api.max_message,
        max_streams: config.api.max_streams,
        grace: END_OF_API,
    }
}

/// What stays: slots that are not vacant, and detached buddies.
fn left(tools: &Tools, detached: &DetachedList) -> Vec<Left> {
    let slots = tools.pool.read(|state| state.slot_views());
    let in_slots = slots.into_iter().filter_map(|slot| {
        let container = slot.namespace.as_ref()?.container_id.to_string();
        let why = match slot.state {
            SlotState::Quarantined => slot.occupants.join(", "),
            SlotState::Adopting
            | SlotState::Idle
            | SlotState::Filling
            | SlotState::BackingOff
            | SlotState::Ready
            | SlotState::Leased
            | SlotState::Vacating
            | SlotState::Renewing
            | SlotState::Cooling
            | SlotState::Retiring => {
                format!("not removed in time ({}){}", slot.state.word(), slot.last_error.map(|e| format!(": {e}")).unwrap_or_default())
            }
        };
        Some(Left { container, why })
    });
    let detached = detached.lock();
    in_slots.chain(detached.iter().map(|buddy| Left { container: buddy.id.to_string(), why: buddy.joiners.join(", ") })).collect()
}

/// With what the last daemon left, and the incarnation of its leases.
fn pool_of(
    config: &Config,
    kernel: &Arc<dyn Kernel>,
    ledger: Option<&Arc<Ledger>>,
    replayed: Option<Replayed>,
) -> (Arc<Pool>, Option<String>, Option<Suspects>) {
    let first_generation = recovery::first_generation(kernel.since_boot());
    let clock = Arc::clone(kernel);
    let world = World { now: Box::new(move || clock.since_boot()), token: Box::new(random_token) };
    let journal = ledger.map(|ledger| (Arc::clone(ledger), config.pool.networks.clone().into()));
    let pool = Pool::recorded(rules(config), first_generation, config.pool.watch_backlog, world, journal);
    let incarnation = replayed.as_ref().and_then(|replayed| replayed.table.began.as_ref()).map(|began| began.incarnation.clone());
    pool.with(|state, _| state.hold_back());
    let suspects = replayed.map(|replayed| recovery::restore(&pool, replayed, config.pool.join_by));
    (pool, incarnation, suspects)
}

fn rules(config: &Config) -> Rules {
    let pool = &config.pool;
    Rules {
        networks: u32::try_from(pool.networks.len()).unwrap_or(u32::MAX),
        ready: pool.ready,
        max: pool.max,
        afterwards: (0..pool.networks.len()).map(|network| afterwards(config.reuse_of(network))).collect(),
        keep_tenants: pool.across_tenants == AcrossTenants::Retire,
        linger: pool.linger,
        max_detached: pool.max_detached,
        max_waiting: pool.max_waiting,
        quota_per_uid: pool.quota_per_uid,
        remember: pool.remember,
        remember_max: pool.remember_max,
        trim_after: pool.trim_after,
    }
}

fn looks_of(config: &Config, engine: &Arc<Paced>, kernel: &Arc<dyn Kernel>, may_fork: bool) -> Looks {
    let engine = Arc::clone(engine) as Arc<dyn Engine>;
    let shared = match config.engine.kind {
        EngineChoice::Native => NamespaceKind::JOINABLE.to_vec(),
        EngineChoice::Auto | EngineChoice::Docker | EngineChoice::Podman => config.pool.namespaces.clone(),
    };
    Looks::new(engine, Arc::clone(kernel), shared, may_fork)
}

/// Without processes there is nothing to prove.
fn known_beforehand(config: &Config) -> (Fitness, Trust) {
    if config.engine.kind == EngineChoice::Native { (Fitness::certain(), Trust::certain()) } else { Default::default() }
}

fn paced(config: &Config, engine: Arc<dyn Engine>, mutations: &TaskTracker) -> Paced {
    let mut deadlines = Deadlines::from_config(&config.engine, &config.placeholder);
    // Gate, fetches and builds have deadlines of their own, which come first.
    deadlines.prepare = deadlines.prepare.max(config.images.fetch_timeout).max(config.images.build_timeout);
    Paced::new(engine, &pacer_of(config), deadlines, mutations.clone())
}

fn may_fork(config: &Config) -> bool {
    config.placeholder.image != PlaceholderImage::Embedded && config.engine.kind != EngineChoice::Native
}

fn gate(config: &Config, engine: &Arc<Paced>, source: Source, registry: &Arc<dyn Registry>) -> Gate {
    let gate = Gate::new(Arc::clone(engine) as Arc<dyn Engine>, source, config.backoff.clone(), config.placeholder.prepare_timeout);
    gate.kept_fresh(Policy::of(&config.images), Arc::clone(registry)).stocked(HostStore::new(&config.images))
}

/// Without a container engine there are none.
fn images(config: &Config, tools: &Tools, registry: Arc<dyn Registry>) -> Option<Images> {
    let engine = &tools.engine;
    let credentials = CredentialSource::from_env(config.registries.clone());
    if config.engine.kind == EngineChoice::Native {
        return None;
    }
    let (cache, pool) = (
        Cache::asking(registry, Arc::clone(engine) as Arc<dyn Engine>, credentials, config.images.clone(), config.backoff.clone()),
        Arc::clone(&tools.pool),
    );
    cache.places().spare_while(move || pool.read(State::is_short));
    let images = Images::new(cache, Arc::clone(engine) as Arc<dyn Engine>, &config.images);
    let gate = Arc::clone(&tools.gate);
    images.room.pinned_by(move || {
        let id = gate.state().image().map(ToString::to_string);
        id.into_iter().chain([gate.reference().to_owned()]).collect()
    });
    images.room.recorded_in(File::beside(&config.images.store, &config.pool.name));
    Some(images)
}

/// The rate is for an engine that others use as well; the kernel has nobody to be spared for.
fn pacer_of(config: &Config) -> Pacer {
    let rate = if config.engine.kind == EngineChoice::Native { None } else { config.pacer.rate };
    Pacer { rate, ..config.pacer.clone() }
}

fn settings_of(config: &Config) -> Settings {
    Settings { backoff: config.backoff.clone(), settle: config.pool.settle, detach_after: config.pool.detach_after }
}

/// A native buddy is such a folder itself.
fn shelf(config: &Config, mounter: Option<Arc<dyn Mounter>>) -> Option<Shelf> {
    let (root, pool) = (config.state.namespaces.clone(), config.pool.name.clone());
    let mounter = mounter.filter(|_| config.engine.kind != EngineChoice::Native);
    mounter.map(|mounter| Shelf::new(root, pool, config.pool.namespaces.clone(), mounter))
}

fn leftovers(config: &Config, mounter: Option<&Arc<dyn Mounter>>, kernel: &Arc<dyn Kernel>) -> Option<Leftovers> {
    let (root, pool) = (config.state.namespaces.clone(), config.pool.name.clone());
    let mounter = Arc::clone(mounter?);
    Some(if config.engine.kind == EngineChoice::Native {
        Leftovers::beside_folders(root, pool, mounter, Arc::clone(kernel))
    } else {
        Leftovers::beside_containers(root, pool, mounter)
    })
}

fn breed(config: &Config, may_fork: bool, is_shelved: bool) -> Breed {
    let native = config.engine.kind == EngineChoice::Native;
    Breed {
        pool: config.pool.name.clone(),
        instance: random::uuid().to_string(),
        networks: (0..config.pool.networks.len()).map(|network| wiring(config, network)).collect(),
        namespaces: config.pool.namespaces.clone(),
        command: config.placeholder.command.clone(),
        user: config.placeholder.user.clone(),
        memory: config.placeholder.memory,
        pids: config.placeholder.pids,
        may_fork,
        native,
        folders: (native || is_shelved).then(|| config.state.namespaces.clone()),
    }
}

fn wiring(config: &Config, network: usize) -> Wiring {
    Wiring {
        name: config.pool.networks[network].clone(),
        furnished: config.managed_of(network).is_some() || config.cni_of(network).is_some(),
        ipv6: config.managed_of(network).is_some_and(|managed| managed.network.ipv6.is_some()),
        afterwards: afterwards(config.reuse_of(network)),
    }
}

fn afterwards(reuse: Reuse) -> Afterwards {
    match reuse {
        Reuse::Once => Afterwards::Retire,
        Reuse::Always => Afterwards::Reuse,
        Reuse::Fresh => Afterwards::Renew,
        Reuse::Verified => Afterwards::Verify,
    }
}

/// One word where all networks have the same, else each network's.
fn policies(config: &Config) -> String {
    let words: Vec<&str> = (0..config.pool.networks.len()).map(|network| config.reuse_of(network).word()).collect();
    if words.iter().all(|word| *word == words[0]) {
        return words[0].to_owned();
    }
    let each: Vec<String> = config.pool.networks.iter().zip(words).map(|(name, word)| format!("{name}: {word}")).collect();
    each.join(", ")
}

fn networks(config: &Config, links: Option<Arc<dyn Links>>) -> Networks {
    let wire = |network| match (config.managed_of(network), config.cni_of(network)) {
        (Some(managed), _) => Wire::Managed(managed.network.clone(), managed.rest),
        (None, Some(cni)) => Wire::Cni(cni.config.clone()),
        (None, None) => Wire::Engines,
    };
    Networks::new(&config.pool.name, (0..config.pool.networks.len()).map(wire).collect(), links)
}

fn engine_networks(config: &Config, tools: &Tools) -> EngineNetworks {
    let wanted = config.managed.iter().filter_map(config::Managed::engine_spec).collect();
    let engine = Arc::clone(&tools.engine) as Arc<dyn Engine>;
    EngineNetworks::new(engine, &config.pool.name, wanted, Box::new(host_links::is_there))
}

fn random_token() -> Token {
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    Token(bytes)
}
