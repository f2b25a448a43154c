//! The daemon as a process of its host: sockets, signals, metrics' listener, systemd. What is in here is all that a test of [`Daemon`] does
//! without.
//!
//! What it promises: sockets that systemd passed are used instead of the configured ones and never unlinked; a socket path that somebody answers
//! on is not taken away; SIGTERM and SIGINT stop, a second one stops at once, SIGHUP reads the configuration again; READY is said once calls are
//! answered; the watchdog is fed only while tasks get their turn.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::unistd::{Group, chown};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{CapabilitySet, capabilities};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, EngineChoice, StopPolicy, raw::Mistakes};
use crate::daemon::{self, Daemon, DaemonError, Parts, Signal, Stopped};
use crate::engine::discover::{self, DiscoverError};
use crate::engine::docker::Docker;
use crate::engine::native::Native;
use crate::engine::{Engine, NamespaceKind};
use crate::image::freshness::unix;
use crate::image::gate::Source;
use crate::ledger::{Identity, Ledger, OpenError, Replayed, boot_id};
use crate::level;
use crate::nanny::Tools;
use crate::netns::cni::{Attacher, GivesBack};
use crate::netns::folders::{Mounter, WithFolders};
use crate::netns::helper::{Begin, Helper, HelperError, Keeper, Log, Remote, RemoteCni, RemoteLinks, RemoteMounter, powers};
use crate::netns::linux::Linux;
use crate::netns::managed::host::Host;
use crate::netns::managed::names::Names;
use crate::netns::networks::Links;
use crate::netns::{Kernel, KernelError};
use crate::systemd::{Notifier, SystemdError, inherited_listeners};
use crate::telemetry::{self, LogHandle, TelemetryError, metric};

/// The group that may talk to the daemon, unless another is configured.
const GROUP: &str = "nspool";
/// Between two beats; the watchdog wants one that is not older than three.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Why the process could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Not root.
    #[error("nspool has to look into other processes' namespaces")]
    Kernel(#[source] KernelError),
    /// No engine can be looked for.
    #[error("no engine can be used")]
    Engine(#[source] DiscoverError),
    /// The embedded placeholder.
    #[error("the placeholder cannot be put together")]
    Placeholder(#[source] io::Error),
    /// Passed sockets.
    #[error("systemd's sockets cannot be used")]
    Systemd(#[source] SystemdError),
    /// Somebody answers there.
    #[error("somebody answers on {} already; is another nspool running?", .0.display())]
    InUse(PathBuf),
    /// The path, or its folder.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `[api] group`.
    #[error("the group {0:?} of [api] group does not exist")]
    Group(String),
    /// `[metrics] listen`.
    #[error("the metrics cannot be served")]
    Metrics(#[source] TelemetryError),
    /// `[state] dir`.
    #[error("no lease can be recorded")]
    Ledger(#[source] OpenError),
    /// What tells one boot from another.
    #[error("the boot id cannot be read")]
    Boot(#[source] io::Error),
    /// What starts helpers.
    #[error("the keeper of the helper process cannot be started")]
    Keeper(#[source] io::Error),
    /// Capabilities cannot be given away.
    #[error("nspool cannot give its capabilities away")]
    Powers(#[source] io::Error),
    /// The first one.
    #[error("there is no helper process")]
    Helper(#[source] HelperError),
    /// There is none, and there will be none.
    #[error("nothing can be done any more without a helper process: {0}")]
    HelperLost(String),
    /// SIGTERM and the like.
    #[error("signals cannot be caught")]
    Signals(#[source] io::Error),
    /// The daemon itself.
    #[error("the daemon ended")]
    Daemon(#[source] DaemonError),
}

/// What a daemon needs its rights for, done before it gives them away.
#[derive(Debug)]
pub struct Prepared {
    keeper: Keeper,
    sockets: Sockets,
}

/// The first part of the daemon, in a process with one thread: starts the keeper of the helper, opens the sockets, and gives away all capabilities,
/// but for the one to connect to another user's engine, where that is needed.
///
/// # Errors
/// [`ProcessError`], with its sources.
pub fn prepare(config: &Config) -> Result<Prepared, ProcessError> {
    may_look().map_err(ProcessError::Kernel)?;
    let endpoints = discover::candidates(&config.engine, |name| std::env::var(name).ok()).map_err(ProcessError::Engine)?;
    let keeper = Keeper::spawn().map_err(ProcessError::Keeper)?;
    let sockets = Sockets::open(&config.api)?;
    give_away(&endpoints).map_err(|errno| ProcessError::Powers(errno.into()))?;
    Ok(Prepared { keeper, sockets })
}

/// Of those engines that are there, each can be talked to afterwards.
fn give_away(endpoints: &[String]) -> Result<(), Errno> {
    let own = capabilities(None)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, rustix::thread::CapabilitySets { effective: none, ..own })?;
    let refused = |endpoint: &String| {
        let path = endpoint.trim_start_matches("unix://");
        matches!(accessat(CWD, path, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS), Err(Errno::ACCESS))
    };
    let anothers = endpoints.iter().any(refused);
    // What is to be given away for good is done with all rights.
    rustix::thread::set_capabilities(None, own)?;
    powers::keep(if anothers { CapabilitySet::DAC_OVERRIDE } else { none })
}

/// Runs the daemon until it is told to stop. `reload` reads the configuration again.
///
/// # Errors
/// [`ProcessError`], with its sources.
pub async fn run(
    config: Config,
    prepared: Prepared,
    log: LogHandle,
    reload: impl Fn() -> Result<Config, Mistakes> + Send + 'static,
) -> Result<Stopped, ProcessError> {
    let Prepared { keeper, sockets } = prepared;
    let (listeners, bound) = sockets.listening()?;
    let containers = containers(&config)?;
    let endpoint = containers.as_ref().map_or("native", |engine| engine.endpoint());
    tracing::info!(endpoint, pool = config.pool.name, version = env!("CARGO_PKG_VERSION"), "starting");
    let source = Source::from_config(&config.placeholder, &config.registries).map_err(ProcessError::Placeholder)?;
    let metrics = match config.metrics.listen {
        Some(address) => {
            let handle = telemetry::install_metrics().map_err(ProcessError::Metrics)?;
            Some((telemetry::listen_metrics(address).await.map_err(ProcessError::Metrics)?, handle))
        }
        None => None,
    };
    let (tell, told) = mpsc::channel(4);
    let signals = Signals::catch().map_err(ProcessError::Signals)?;

    let networks = config.pool.networks.clone();
    let keep = match config.stop.policy {
        StopPolicy::Keep => true,
        StopPolicy::Remove => false,
        // Whoever waits for a notice is a manager that starts the daemon again.
        StopPolicy::Auto => std::env::var_os("NOTIFY_SOCKET").is_some(),
    };
    let ledger = open_ledger(&config).await?;
    let ledger_error = ledger.0.health();
    let ledger = Some(ledger);
    let helper = Helper::start(keeper.starter(), begin(&config)).await.map_err(ProcessError::Helper)?;
    let mut lost = helper.lost();
    let Hands { engine, kernel, links, mounter } = Hands::of(&config, containers, &helper);
    let locks = crate::lock::folder();
    let mounts = helper.mounts().then(|| Arc::clone(&mounter));
    let parts = Parts { engine, kernel, links, mounter: mounts, source, listeners, locks, ledger, keep };
    let folders = (helper.mounts() && !keep).then(|| config.pool.name.clone());
    let daemon = Daemon::assemble(config.clone(), parts);
    let tools = daemon.tools();
    let end = CancellationToken::new();
    let mut helpers = JoinSet::new();
    helpers.spawn(signals.run(tell, log_filter(log, Arc::clone(&helper)), config, reload));
    helpers.spawn(watch_over(Arc::clone(&tools), end.clone()));
    if let Some((listener, handle)) = metrics {
        let refresh = Arc::new(move || set_gauges(&tools, &networks, &ledger_error));
        let served = telemetry::serve_metrics(listener, handle, refresh, end.clone());
        helpers.spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(%error, "the metrics are not served any more");
            }
        });
    }
    Notifier.ready("filling");
    let outcome = tokio::select! {
        outcome = daemon.run(told) => outcome.map_err(ProcessError::Daemon),
        // As a crash: the next daemon goes on with what there is.
        Ok(why) = lost.wait_for(Option::is_some) => Err(ProcessError::HelperLost(why.clone().unwrap_or_default())),
    };
    if let Some(pool) = folders.filter(|_| outcome.is_ok())
        && let Err(error) = mounter.tidy(&pool).await
    {
        tracing::warn!(%error, "the pool's empty folder stays");
    }
    end.cancel();
    let_go(&helper, keeper).await;
    drop(bound);
    outcome
}

async fn let_go(helper: &Helper, keeper: Keeper) {
    helper.stop().await;
    match tokio::task::spawn_blocking(|| keeper.end()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the helper process may still be there"),
        Err(error) => tracing::warn!(%error, "the helper process may still be there"),
    }
}

/// What the daemon acts with.
struct Hands {
    engine: Arc<dyn Engine>,
    kernel: Arc<dyn Kernel>,
    links: Option<Arc<dyn Links>>,
    mounter: Arc<dyn Mounter>,
}

impl Hands {
    fn of(config: &Config, containers: Option<Docker>, helper: &Arc<Helper>) -> Self {
        let root = &config.state.namespaces;
        let attacher: Arc<dyn Attacher> = Arc::new(RemoteCni::new(Arc::clone(helper), &config.cni, root.clone()));
        let mounter = Arc::new(RemoteMounter(Arc::clone(helper)));
        let mounter: Arc<dyn Mounter> = Arc::new(GivesBack::new(mounter, Arc::clone(&attacher), root.clone()));
        let engine: Arc<dyn Engine> = match containers {
            Some(containers) => Arc::new(containers),
            None => Arc::new(Native::new(&config.state.namespaces, &config.pool.name, Arc::clone(&mounter))),
        };
        Self {
            engine,
            kernel: Arc::new(WithFolders::new(Arc::new(Remote(Arc::clone(helper))), Arc::clone(&mounter), attacher)),
            links: (!config.managed.is_empty()).then(|| Arc::new(RemoteLinks(Arc::clone(helper))) as Arc<dyn Links>),
            mounter,
        }
    }
}

/// The container engine; `None`: the native one is wanted.
fn containers(config: &Config) -> Result<Option<Docker>, ProcessError> {
    if config.engine.kind == EngineChoice::Native {
        return Ok(None);
    }
    discover::connect(&config.engine, |name| std::env::var(name).ok()).map(Some).map_err(ProcessError::Engine)
}

/// Changes which lines are written, by the daemon and by its helper.
fn log_filter(log: LogHandle, helper: Arc<Helper>) -> impl Fn(&str) -> Result<(), TelemetryError> + Send + 'static {
    move |filter| {
        log.set_filter(filter)?;
        helper.set_log_filter(filter);
        Ok(())
    }
}

/// What each helper is told first.
fn begin(config: &Config) -> Begin {
    let host = Host {
        names: Names::of(&config.pool.name),
        networks: config.managed.iter().map(|managed| managed.network.clone()).collect(),
        forwarding: config.forwarding(),
    };
    Begin {
        host: (!config.managed.is_empty()).then_some(host),
        folders: Some(config.state.namespaces.clone()),
        must_mount: config.engine.kind == EngineChoice::Native,
        ids: config.pool.namespaces.contains(&NamespaceKind::User).then_some(config.pool.user_ids),
        cni: config.cni.clone(),
        lock: config.state.dir.join(format!("{}.helper", config.pool.name)),
        log: Log { filter: config.log.filter.clone(), json: config.log.format == config::LogFormat::Json },
    }
}

/// A predecessor that is on its way out has it for a moment longer.
async fn open_ledger(config: &Config) -> Result<(Arc<Ledger>, Replayed), ProcessError> {
    let identity = Identity {
        boot_id: boot_id().map_err(ProcessError::Boot)?,
        pool: config.pool.name.clone(),
        now: Linux::new().since_boot(),
        engine: config.engine.kind.word().to_owned(),
    };
    let deadline = tokio::time::Instant::now() + daemon::WAIT_FOR_LOCK;
    loop {
        match Ledger::open(&config.state.dir, &identity) {
            Err(OpenError::Taken(_)) if tokio::time::Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
            opened => return opened.map_err(ProcessError::Ledger),
        }
    }
}

/// Whether this process may see who is in a namespace. Better said at the start than by every slot.
fn may_look() -> Result<(), KernelError> {
    Linux::new().host_namespace(NamespaceKind::Net)?;
    match capabilities(None) {
        Ok(own) if own.effective.contains(CapabilitySet::SYS_PTRACE) => Ok(()),
        Ok(_) => Err(KernelError::NotPermitted { what: "the namespaces of other users' processes".into() }),
        Err(errno) => Err(KernelError::Failed { what: "capget".into(), message: errno.to_string() }),
    }
}

/// Listening sockets, and which of them are ours to remove.
#[derive(Debug)]
struct Sockets {
    listeners: Vec<(PathBuf, std::os::unix::net::UnixListener)>,
    bound: Vec<Bound>,
    /// Only root can use them.
    no_group: bool,
}

/// A socket that we made: it goes with this, however far a start came.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    identity: (u64, u64),
}

impl Sockets {
    fn open(api: &config::Api) -> Result<Self, ProcessError> {
        let passed = inherited_listeners().map_err(ProcessError::Systemd)?;
        if !passed.is_empty() {
            let listeners = passed.into_iter().map(|listener| (PathBuf::from("(passed by systemd)"), listener)).collect();
            return Ok(Self { listeners, bound: Vec::new(), no_group: false });
        }
        let group = group(api)?;
        let mut sockets = Self { listeners: Vec::new(), bound: Vec::new(), no_group: group.is_none() };
        for path in &api.listen {
            make_way(path)?;
            let (listener, bound) =
                bind(path, api.mode, group.as_ref()).map_err(|source| ProcessError::Listen { path: path.clone(), source })?;
            sockets.listeners.push((path.clone(), listener));
            sockets.bound.push(bound);
        }
        Ok(sockets)
    }

    /// Inside a runtime.
    fn listening(self) -> Result<(Vec<UnixListener>, Vec<Bound>), ProcessError> {
        if self.no_group {
            tracing::info!(group = GROUP, "there is no such group: only root can use the socket");
        }
        let adopt = |(path, listener)| UnixListener::from_std(listener).map_err(|source| ProcessError::Listen { path, source });
        Ok((self.listeners.into_iter().map(adopt).collect::<Result<_, _>>()?, self.bound))
    }
}

fn group(api: &config::Api) -> Result<Option<Group>, ProcessError> {
    let found = |name: &str| Group::from_name(name).ok().flatten();
    match &api.group {
        Some(name) => found(name).map(Some).ok_or_else(|| ProcessError::Group(name.clone())),
        None => Ok(found(GROUP)),
    }
}

/// Removes a socket that nobody answers on, which a killed daemon leaves; anything else stays.
fn make_way(path: &Path) -> Result<(), ProcessError> {
    let io = |source| ProcessError::Listen { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")));
        }
        Ok(_) => {}
    }
    // Not waiting for somebody whose queue is full, who is there as well.
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
    let connected = socket.and_then(|socket| connect(socket, &SocketAddrUnix::new(path)?));
    match connected {
        Ok(()) | Err(Errno::AGAIN) => Err(ProcessError::InUse(path.to_owned())),
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(io),
        Err(errno) => Err(io(errno.into())),
    }
}

fn bind(path: &Path, mode: u32, group: Option<&Group>) -> io::Result<(std::os::unix::net::UnixListener, Bound)> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Connecting needs write permission, which no usual umask gives to others: nobody gets in before the mode is set.
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    if let Some(group) = group {
        chown(path, None, Some(group.gid))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((listener, Bound { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) }))
}

impl Drop for Bound {
    /// Unless somebody else's socket is there by now.
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

/// Caught before anything is started, so that none ends the process in an uncontrolled way.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn run(
        mut self,
        tell: mpsc::Sender<Signal>,
        set_filter: impl Fn(&str) -> Result<(), TelemetryError> + Send + 'static,
        mut config: Config,
        reload: impl Fn() -> Result<Config, Mistakes> + Send + 'static,
    ) {
        loop {
            let signal = tokio::select! {
                Some(()) = self.terminate.recv() => Signal::Stop,
                Some(()) = self.interrupt.recv() => Signal::Stop,
                Some(()) = self.hangup.recv() => {
                    Notifier.reloading();
                    let read = reload();
                    Notifier.ready("running");
                    match read {
                        Ok(new) => {
                            if new.log.filter != config.log.filter && let Err(error) = set_filter(&new.log.filter) {
                                tracing::error!(%error, "the log filter stays as it was");
                            }
                            config = new;
                            Signal::Reload(Box::new(config.clone()))
                        }
                        Err(mistakes) => {
                            tracing::error!(%mistakes, "the configuration stays as it was");
                            continue;
                        }
                    }
                }
                else => return,
            };
            if matches!(signal, Signal::Stop) {
                Notifier.stopping("stopping");
            }
            if tell.send(signal).await.is_err() {
                return;
            }
        }
    }
}

/// Feeds the watchdog, and keeps the line in `systemctl status` true.
async fn watch_over(tools: Arc<Tools>, end: CancellationToken) {
    let beat = Arc::new(AtomicU64::new(0));
    let began = tokio::time::Instant::now();
    let seen = Arc::clone(&beat);
    let healthy = move || began.elapsed() < Duration::from_secs(seen.load(Ordering::Relaxed)) + HEARTBEAT * 3;
    let mut ticks = tokio::time::interval(HEARTBEAT);
    let mut watchdog = std::pin::pin!(Notifier.watchdog(healthy, end.clone()));
    let mut watched = true;
    let mut said = String::new();
    loop {
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            _ = ticks.tick() => {
                beat.store(began.elapsed().as_secs(), Ordering::Relaxed);
                // Takes the pool's lock: a daemon whose lock is stuck does not get here.
                let line = status_line(&tools);
                if line != said {
                    Notifier.status(&line);
                    said = line;
                }
            }
            () = &mut watchdog, if watched => watched = false,
        }
    }
}

fn status_line(tools: &Tools) -> String {
    let usage = tools.pool.read(|state| state.usage());
    let state = tools.engine_state.borrow();
    let engine = if state.is_up() { String::new() } else { format!("; engine away: {}", state.why()) };
    format!("{} of {} ready, {} leased, {} quarantined{engine}", usage.ready, usage.target, usage.leased, usage.quarantined)
}

/// Right before each reading, from the pool itself, so that the gauges cannot disagree with it.
fn set_gauges(tools: &Tools, networks: &[String], ledger_error: &level::Receiver<String>) {
    let (usage, per_network, stale, cordoned) = tools.pool.read(|state| {
        let per_network: Vec<_> = (0..networks.len()).map(|index| state.network_usage(u32::try_from(index).unwrap_or(0))).collect();
        (state.usage(), per_network, state.stale(), state.doors().0)
    });
    for (name, usage) in networks.iter().zip(&per_network) {
        let counts = [
            ("vacant", usage.vacant),
            ("filling", usage.filling),
            ("ready", usage.ready),
            ("leased", usage.leased),
            ("vacating", usage.vacating),
            ("renewing", usage.renewing),
            ("cooling", usage.cooling),
            ("quarantined", usage.quarantined),
            ("retiring", usage.retiring),
        ];
        for (state, count) in counts {
            metrics::gauge!(metric::SLOTS, "state" => state, "network" => name.clone()).set(count);
        }
    }
    metrics::gauge!(metric::LEASES_LOST).set(usage.lost);
    let minute_ago = tools.pool.now().saturating_sub(Duration::from_secs(60));
    metrics::gauge!(metric::LEASES_UNJOINED).set(tools.pool.read(|state| state.unjoined_since(minute_ago)));
    metrics::gauge!(metric::LEDGER_FAILING).set(u8::from(!ledger_error.borrow().is_empty()));
    metrics::gauge!(metric::WAITING).set(usage.waiting);
    metrics::gauge!(metric::TARGET).set(usage.target);
    metrics::gauge!(metric::MAX).set(usage.max);
    metrics::gauge!(metric::DETACHED).set(usage.detached);
    metrics::gauge!(metric::CORDONED).set(u8::from(cordoned));
    metrics::gauge!(metric::ENGINE_UP).set(u8::from(tools.engine_state.borrow().is_up()));
    metrics::gauge!(metric::IMAGE_READY).set(u8::from(tools.gate.state().image().is_some()));
    metrics::gauge!(metric::PLACEHOLDER_STALE_SINCE).set(unix(tools.gate.state().stale().map(|stale| stale.since)));
    metrics::counter!(metric::STALE_MESSAGES).absolute(stale);
    metrics::counter!(metric::MISSES).absolute(usage.misses);
    metrics::gauge!(metric::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
}
