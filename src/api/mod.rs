//! The gRPC services over the pool and the host's images: who may say what to them, and how their answers look on the wire.
//!
//! What it promises: one table from refusals to statuses (`status`), all bad fields of a request named at once (`validate`), callers known by
//! the credentials of their socket, a `connection` lease that ends with its connection however that ends, unary calls that keep their
//! deadline, streams that end with a reason when the daemon stops, a stop within [`Api::grace`]. What can go wrong: a listener that cannot
//! accept for now (said once a second, tried again). What it deliberately does not know: nannies, engines beyond what [`DaemonStatus`] tells,
//! where its listeners come from, the ledger.
//!
//! ```text
//!  UnixListener ─► connection (peer, its end) ─► deadline ─► namespace_pool ─► validate ─► Pool
//!                                                         ├► admin, image_cache           │
//!                                                         ├► health ◄─ status, cordon     ▼
//!                                                         └► reflection        convert, status, watch
//! ```

mod admin;
mod connection;
mod convert;
mod counters;
mod deadline;
mod follow;
mod health;
mod image_builds;
mod image_cache;
mod image_push;
mod image_room;
mod local;
mod namespace_pool;
mod status;
mod turns;
mod validate;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, NotNow};
use crate::config;
use crate::config::Builders;
use crate::engine::{EngineInfo, NamespaceKind};
use crate::image::Images;
use crate::image::gate::Placeholder;
use crate::level;
use crate::pool::{ConnectionId, Moment, Pool, SlotIndex};

use counters::Counters;
pub use local::Local;

/// All that the services need. Made by the daemon; install the metrics recorder before [`serve`], which registers its handles there.
pub struct Api {
    /// The pool.
    pub pool: Arc<Pool>,
    /// Who answers.
    pub about: About,
    /// How engine and image are; the daemon keeps it up to date.
    pub status: level::Receiver<DaemonStatus>,
    /// What may change by a reload.
    pub limits: level::Receiver<Limits>,
    /// Buddies that were given up with somebody inside, as whoever watches them knows them.
    pub detached: Arc<dyn Fn() -> Vec<Detached> + Send + Sync>,
    /// Audits, and mends when told to.
    pub audit: Audits,
    /// Looks at what became of a buddy.
    pub inspect: Inspections,
    /// The host's images; `None` without a container engine.
    pub images: Option<Images>,
    /// Who may build (`[images] builders`).
    pub builders: Builders,
    /// Largest message taken, in bytes (`[api] max_message`).
    pub max_message: usize,
    /// Calls in flight per connection (`[api] max_streams`).
    pub max_streams: u32,
    /// After `stop`: how long calls in flight may take before their connections are cut.
    pub grace: Duration,
}

/// Makes an audit, with or without repairs.
pub type Audits = Arc<dyn Fn(bool) -> BoxFuture<'static, Result<Audit, NotNow>> + Send + Sync>;

/// Looks at a slot's buddy of that generation; `None`: what it was is not known.
pub type Inspections = Arc<dyn Fn(SlotIndex, u64) -> BoxFuture<'static, Option<Inspected>> + Send + Sync>;

/// What became of a buddy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspected {
    /// From what it was when it was ready; what cannot be read is one, too.
    pub differences: Vec<Differs>,
    /// Kinds and counts of what passes, and is removed after a lease.
    pub leftovers: Vec<(&'static str, u64)>,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differs {
    /// A word for programs.
    pub kind: &'static str,
    /// Of what.
    pub subject: String,
    /// `None`: it was not there.
    pub was: Option<String>,
    /// `None`: it is gone.
    pub is: Option<String>,
}

/// What does not change while the daemon runs.
#[derive(Clone, Debug)]
pub struct About {
    /// The pool's name.
    pub pool: String,
    /// The networks' names, in the order of their indices in the pool.
    pub networks: Vec<String>,
    /// The kinds of namespaces that a lease is of.
    pub namespaces: Vec<NamespaceKind>,
    /// The policy in force: `once`, `always`, `fresh` or `verified`, for each network when they differ.
    pub reuse: String,
    /// What a stop does: `keep` or `remove`.
    pub at_stop: String,
    /// Where the ledger is.
    pub state_dir: String,
    /// Opaque; see the contract.
    pub incarnation: String,
    /// Of nspool.
    pub version: String,
    /// The wall clock …
    pub started_at: SystemTime,
    /// … and the pool's clock at one and the same time, so that moments can be shown to people.
    pub started_boot: Moment,
}

/// Levels that the services show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DaemonStatus {
    /// Whether the engine answers.
    pub engine: EngineState,
    /// Its words when it does not; empty when nothing is wrong.
    pub engine_error: String,
    /// Who it is; none while it was never reached.
    pub engine_info: Option<EngineInfo>,
    /// The placeholder's.
    pub image: ImageState,
    /// Why there is no image, or nobody can tell whether it is fresh; empty when nothing is wrong.
    pub image_error: String,
    /// By which reference, and what it is, while it is there.
    pub placeholder: Option<(String, Placeholder)>,
    /// Why no lease can be recorded; empty when nothing is wrong.
    pub ledger_error: String,
}

/// See [`DaemonStatus`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineState {
    /// Not reached yet.
    #[default]
    Starting,
    /// Answers.
    Up,
    /// Answered once, or never will for now.
    Away,
}

impl EngineState {
    /// As GetUsage says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Away => "away",
        }
    }
}

/// See [`DaemonStatus`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageState {
    /// Not looked for yet, or nobody can tell.
    #[default]
    Unknown,
    /// Being loaded or pulled.
    Preparing,
    /// There.
    Ready,
    /// Could not be had; tried again.
    Failed,
}

impl ImageState {
    /// As GetUsage says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

/// Parts of the configuration that may change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// See `config::Api`.
    pub admin_uids: Vec<u32>,
    /// See `config::Api`; new connections follow a change.
    pub timeout: Duration,
    /// See `config::Pool`.
    pub join_by: Duration,
    /// See `config::Pool`.
    pub longest: Duration,
}

impl Limits {
    /// As configured.
    #[must_use]
    pub fn of(api: &config::Api, pool: &config::Pool) -> Self {
        Self { admin_uids: api.admin_uids.clone(), timeout: api.timeout, join_by: pool.join_by, longest: pool.longest }
    }
}

/// A buddy outside of the slots with somebody inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// Its container.
    pub container_id: String,
    /// Its name now.
    pub name: String,
    /// Where it came from.
    pub slot: u32,
    /// Which buddy it is.
    pub generation: u64,
    /// Who is inside.
    pub joiners: Vec<String>,
    /// Given up at.
    pub since: Moment,
}

/// Why the services could not be offered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors that were compiled in do not fit together.
    #[error("set up server reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// What all connections share.
struct Shared {
    pool: Arc<Pool>,
    about: About,
    status: level::Receiver<DaemonStatus>,
    limits: level::Receiver<Limits>,
    detached: Arc<dyn Fn() -> Vec<Detached> + Send + Sync>,
    audit: Audits,
    inspect: Inspections,
    images: Option<Images>,
    builders: Builders,
    max_message: usize,
    max_streams: u32,
    counters: Counters,
    stop: CancellationToken,
    /// Connections that are open.
    connections: Mutex<HashSet<ConnectionId>>,
    next_connection: AtomicU64,
    /// Drains that wait.
    drains: AtomicU32,
    own_uid: u32,
}

impl Shared {
    fn new(api: Api, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            pool: api.pool,
            about: api.about,
            status: api.status,
            limits: api.limits,
            detached: api.detached,
            audit: api.audit,
            inspect: api.inspect,
            images: api.images,
            builders: api.builders,
            max_message: api.max_message,
            max_streams: api.max_streams,
            counters: Counters::new(),
            stop,
            connections: Mutex::default(),
            next_connection: AtomicU64::new(1),
            drains: AtomicU32::new(0),
            own_uid: rustix::process::geteuid().as_raw(),
        })
    }

    fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }
}

/// Serves on all listeners until `stop`, then refuses new work, ends the streams with a reason and comes back when every call is answered, or
/// cut off after [`Api::grace`]. Dropped before, it stops in the same way at once. Whoever bound the listeners' paths removes them.
///
/// # Errors
/// [`ServeError`], before anything is served.
pub async fn serve(api: Api, listeners: Vec<UnixListener>, stop: CancellationToken) -> Result<(), ServeError> {
    // A child, so that dropping this future stops what it spawned.
    let stop = stop.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let cut = CancellationToken::new();
    let _cut_when_dropped = cut.clone().drop_guard();

    if listeners.is_empty() {
        // Nobody can call: what is said below costs a daemon of a simulation more than all the rest of its start.
        stop.cancelled().await;
        return Ok(());
    }
    let (grace, max_message) = (api.grace, api.max_message);
    let shared = Shared::new(api, stop.clone());
    let (reporter, rest) = health::and_reflection(max_message).map_err(ServeError::Reflection)?;
    let tasks = TaskTracker::new();
    tasks.spawn(health::follow(Arc::clone(&shared), reporter));
    for listener in listeners {
        let server = connection::Server::new(Arc::clone(&shared), rest.clone(), tasks.clone(), cut.clone());
        tasks.spawn(server.accept(listener));
    }
    stop.cancelled().await;
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), ?grace, "calls were still in flight after the grace: their connections are cut");
        cut.cancel();
        tasks.wait().await;
    }
    Ok(())
}
