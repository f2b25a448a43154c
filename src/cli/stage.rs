//! A pool of one's own for `demo` and `bench`: a whole daemon in this process, on a socket in a temporary folder, with functions beside it.
//!
//! What it promises: [`Stage::close`] takes away all that was brought, in this order: functions end and are removed, leases are given back, the
//! daemon stops (and removes its buddies), images that were not there before go. It works from any moment on, also when what was measured
//! was dropped in the middle; a second signal cuts it short, and what may be left is then said. What can go wrong is told with the engine's own
//! words, and with an exit code. It deliberately does not know what is measured.

pub(super) mod compare;
pub(super) mod functions;

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use self::functions::{Functions, Image};
use super::exit::Failure;
use super::output::say;
use super::signals::Signals;
use super::{exit, host};
use crate::client::Client;
use crate::config::{Config, Log, Placeholder};
use crate::daemon::{Daemon, DaemonError, Parts, Signal, Stopped};
use crate::engine::docker::Docker;
use crate::engine::{Engine as _, EngineError, EngineInfo, ErrorClass};
use crate::image::gate::Source;
use crate::lock;
use crate::netns::Kernel;
use crate::pool::Pool;
use crate::pool::state::State;
use crate::telemetry;

/// Without any progress for so long, a fill has failed.
const NO_PROGRESS: Duration = Duration::from_secs(60);
/// For functions, and for leases, to end at the close.
const LAST_FUNCTIONS: Duration = Duration::from_secs(30);
const LAST_RELEASES: Duration = Duration::from_secs(5);
/// How long an image may be in use by containers that are gone, and may take to appear after a load that was cut off.
const IMAGE_IN_USE: Duration = Duration::from_secs(5);
const IMAGE_MAY_APPEAR: Duration = Duration::from_secs(1);
/// What is logged, unless `NSPOOL_LOG_FILTER` says otherwise: the commands speak for themselves.
const QUIET: &str = "error";

/// See the module.
pub(super) struct Stage {
    pub(super) docker: Arc<Docker>,
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) engine: EngineInfo,
    pub(super) pool: Arc<Pool>,
    pub(super) client: Client,
    pub(super) functions: Functions,
    /// The placeholder's reference; `brought`: it was not there before.
    placeholder: String,
    brought: bool,
    tell: mpsc::Sender<Signal>,
    daemon: Mutex<JoinSet<Result<Stopped, DaemonError>>>,
    pool_name: String,
    _folder: TempDir,
}

/// What to open.
pub(super) struct Opening<'a> {
    /// The engine's socket, if it was given.
    pub(super) endpoint: Option<&'a str>,
    /// Of the functions; `None`: the placeholder, told to end at once.
    pub(super) image: Option<&'a str>,
    /// Of the daemon; its sockets are not used.
    pub(super) config: Config,
}

impl Stage {
    /// Looks at the engine, changes nothing, then starts the daemon.
    pub(super) async fn open(opening: Opening<'_>) -> anyhow::Result<Self> {
        let log = Log { filter: std::env::var("NSPOOL_LOG_FILTER").unwrap_or_else(|_| QUIET.to_owned()), ..Log::default() };
        telemetry::init(&log)?;
        let kernel = host::kernel()?;
        let (docker, engine) = host::engine(opening.endpoint).await?;
        let source = Source::from_config(&Placeholder::default(), &[])?;
        let placeholder = source.reference().to_owned();
        let look = |error| host::engine_failure("the engine's images cannot be looked at", &error);
        let brought = docker.image_id(&placeholder).await.map_err(look)?.is_none();
        let image = match opening.image {
            None => Image::Placeholder(placeholder.clone()),
            Some(reference) => Image::Given(docker.image_id(reference).await.map_err(look)?.ok_or_else(|| {
                Failure::new(
                    exit::UNAVAILABLE,
                    format!("the image {reference:?} is not on the engine at {}: pull it first", engine.endpoint),
                )
            })?),
        };

        let folder = tempfile::Builder::new().prefix("nspool-").tempdir()?;
        let socket = folder.path().join("nspool.sock");
        let listeners = vec![UnixListener::bind(&socket)?];
        let client = Client::connect(&format!("unix:{}", socket.display()))?;
        let pool_name = opening.config.pool.name.clone();
        let parts = Parts {
            engine: Arc::clone(&docker) as _,
            kernel: Arc::clone(&kernel),
            links: None,
            mounter: None,
            source,
            listeners,
            locks: lock::folder(),
            ledger: None,
            keep: false,
        };
        let daemon = Daemon::assemble(opening.config, parts);
        let pool = daemon.pool();
        let (tell, told) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(daemon.run(told));
        let functions = Functions::new(Arc::clone(&docker), image, client.clone(), &pool_name);
        let daemon = Mutex::new(tasks);
        Ok(Self { docker, kernel, engine, pool, client, functions, placeholder, brought, tell, daemon, pool_name, _folder: folder })
    }

    /// The placeholder's reference.
    pub(super) fn placeholder(&self) -> &str {
        &self.placeholder
    }

    /// Waits until as many are ready as are wanted, and the pool has nothing else to do; tells `ready` how many there are.
    ///
    /// # Errors
    /// The daemon ended, or nothing has changed for a minute: the last error of a slot says why.
    pub(super) async fn filled(&self, wanted: u32, ready: impl Fn(u32)) -> anyhow::Result<()> {
        let usage = |state: &State| {
            let usage = state.usage();
            (
                usage.ready,
                usage.leased + usage.vacating + usage.renewing + usage.cooling + usage.retiring + usage.quarantined + usage.filling,
            )
        };
        loop {
            let (now, busy) = self.pool.read(usage);
            ready(now);
            if now == wanted && busy == 0 {
                return Ok(());
            }
            let changed = self.pool.until(|state| usage(state) != (now, busy));
            if tokio::time::timeout(NO_PROGRESS, self.unless_it_ends(changed)).await.unwrap_or_else(|_| Err(self.stuck(wanted)))? {
                continue;
            }
        }
    }

    /// The work, unless the daemon ends before.
    async fn unless_it_ends(&self, work: impl Future<Output = ()>) -> anyhow::Result<bool> {
        let mut daemon = self.daemon.lock().await;
        tokio::select! {
            () = work => Ok(true),
            ended = daemon.join_next() => match ended {
                Some(Ok(Err(error))) => Err(self.failure(&error).into()),
                Some(Err(panic)) => Err(panic.into()),
                Some(Ok(Ok(_))) | None => Err(Failure::new(exit::SOFTWARE, "the daemon has ended by itself").into()),
            },
        }
    }

    fn failure(&self, error: &DaemonError) -> Failure {
        match error {
            DaemonError::Lock(lock) => host::lock_failure(lock),
            DaemonError::Nanny(_) | DaemonError::Api(_) => {
                let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
                Failure::new(exit::SOFTWARE, format!("the daemon of the pool {:?} failed: {error}{cause}", self.pool_name))
            }
        }
    }

    fn stuck(&self, wanted: u32) -> anyhow::Error {
        let slots = self.pool.read(State::slot_views);
        let words = slots.into_iter().find_map(|slot| slot.last_error).map(|words| format!(": {words}")).unwrap_or_default();
        let message = format!("{wanted} ready slots are not to be had on the engine at {}{words}", self.engine.endpoint);
        Failure::new(exit::UNAVAILABLE, message).into()
    }

    /// See the module. Answers what may be left, for people.
    pub(super) async fn close(self, signals: &mut Signals) -> Vec<String> {
        let mut left = Vec::new();
        let cleared = signals.unless(async {
            let mut left = self.functions.clear(LAST_FUNCTIONS).await;
            if self.client.close(LAST_RELEASES).await > 0 {
                left.push("a lease was not given back in time".to_owned());
            }
            left
        });
        match cleared.await {
            Ok(words) => left.extend(words),
            Err(again) => {
                say(&format!("nspool: {}: stopping at once", again.name));
                left.push("containers of functions".to_owned());
            }
        }
        left.extend(self.stop_daemon(signals).await);
        if self.brought
            && let Err(error) = self.remove_placeholder().await
        {
            left.push(format!("the image {}: {error}", self.placeholder));
        }
        // One that is taken belongs to another, who came in our place.
        if let Ok(lock) = host::lock(&self.engine, &self.pool_name)
            && left.is_empty()
            && let Err(error) = lock.discard()
        {
            left.push(host::lock_failure(&error).to_string());
        }
        left
    }

    /// The engine refuses for as long as it thinks that a container uses the image, which it does for a moment after the last one is gone;
    /// refused for longer, somebody else uses it by now, and it is theirs. A load that the stop cut off is carried out all the same, so an
    /// image that was not there may still appear.
    async fn remove_placeholder(&self) -> Result<(), EngineError> {
        let begin = tokio::time::Instant::now();
        loop {
            match self.docker.remove_image(&self.placeholder).await {
                Err(error) if error.class != ErrorClass::Refused => return Err(error),
                Err(_) if begin.elapsed() > IMAGE_IN_USE => return Ok(()),
                Ok(()) if begin.elapsed() > IMAGE_MAY_APPEAR => return Ok(()),
                Ok(()) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// A second signal, or a third, is handed on: the daemon then stops at once.
    async fn stop_daemon(&self, signals: &mut Signals) -> Vec<String> {
        let mut daemon = self.daemon.lock().await;
        let mut told = self.tell.send(Signal::Stop).await;
        loop {
            let ended = tokio::select! {
                ended = daemon.join_next() => ended,
                again = signals.next() => {
                    if told.is_ok() {
                        say(&format!("nspool: {}: the daemon stops at once", again.name));
                        told = self.tell.send(Signal::Stop).await;
                    }
                    continue;
                }
            };
            return match ended {
                Some(Ok(Ok(stopped))) => {
                    stopped.left.into_iter().map(|left| format!("the buddy {}: {}", left.container, left.why)).collect()
                }
                Some(Ok(Err(error))) => vec![self.failure(&error).to_string()],
                Some(Err(panic)) => vec![panic.to_string()],
                // It has ended before, and said so then.
                None => Vec::new(),
            };
        }
    }
}
