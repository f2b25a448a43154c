//! Room on the disk: what images take is kept below a mark, and those that were asked for the longest ago go first.
//!
//! ```text
//!  a fetch or build brought something ─┐
//!  ten minutes, more or less ──────────┼─► one sweep at a time: measure ─► plan ─► claim, remove, one by one
//!  a fetch met a full disk ────────────┤      (engine)       ([`plan`])   ([`uses`])     (engine)
//!  an operator (PruneImages) ──────────┘
//! ```
//!
//! What it promises:
//! - Layers are counted once, however many images share them ([`sizes`](crate::engine::SizedImage)).
//! - Nothing goes that a container was made from, running or not; that somebody was told of a moment ago (`[images] hold`); what the pool's buddies run; or that did not come
//!   by nspool, unless `[images] room_for_others` says so. An image with a name that nspool did not give it is somebody else's, too.
//! - The engine is the last judge: nothing is forced. What it keeps keeps its names.
//! - An answer to EnsureImage or BuildImage is never of an image that is being removed.
//! - By itself it removes nothing while slots are being filled.
//! - What is known of uses survives the daemon and the host's boots ([`record`]). Where it is lost, what is not asked for anew stays for [`NOT_KNOWN_FOR`]; after a daemon
//!   that was killed everything is held once, as its last answers may not have been written down.
//!
//! What can go wrong: the engine does not answer (the next sweep comes) · uses cannot be written down (said once, a metric, tried again) · what must stay is more than
//! the mark: that is said by the metrics. A daemon that is killed at a removal may leave an image with less names than it had; its mark of whose it is goes last.
//!
//! The host's own store is swept in the same way ([`stored`]). It deliberately does not know the pool, nor the gate: both are questions that it was given.

pub mod plan;
pub mod record;
mod stored;
mod sweep;
#[cfg(test)]
mod tests;
pub mod uses;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::record::{File, Record};
pub use self::sweep::{Outcome, Row, Swept};
use self::sweep::{Sweep, Until, Why};
use self::uses::{Known, Uses};
use super::host_store::HostStore;
use super::places::Places;
use super::transfer::TransferError;
use crate::causes::with_causes;
use crate::config;
use crate::engine::{Engine, EngineError};
use crate::random;
use crate::telemetry::metric;

/// Between two sweeps by itself; a quarter more or less.
const EVERY: Duration = Duration::from_secs(600);
/// How often it looks whether slots are still being filled.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// What is known of uses is written down at most so often.
const WRITE_EVERY: Duration = Duration::from_secs(3);
/// After a write that failed.
const WRITE_AGAIN: Duration = Duration::from_secs(60);
/// For so long after the first word of uses, one of which nothing is known stays.
pub const NOT_KNOWN_FOR: Duration = Duration::from_secs(3600);

/// Names and ids of what the pool's buddies run.
type Pinned = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// What images may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in the engine; `None`: no limit.
    pub room: Option<u64>,
    /// Bytes in the host's own store; `None`: no limit.
    pub store_room: Option<u64>,
    /// Images that did not come by nspool may go, too.
    pub for_others: bool,
}

impl Limits {
    /// As configured.
    #[must_use]
    pub fn of(images: &config::Images) -> Self {
        let limit = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
        Self { room: limit(images.room), store_room: limit(images.store_room), for_others: images.room_for_others }
    }

    fn any(&self) -> bool {
        self.room.is_some() || self.store_room.is_some()
    }
}

/// Where a sweep that has begun comes to its end.
#[must_use]
pub fn low_of(room: u64) -> u64 {
    room - room / 10
}

/// Why an operator's word was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PruneError {
    /// None is configured, and none was named.
    #[error("there is no limit ([images] room): say how much room there is")]
    NoLimit,
    /// The engine's words.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The daemon is about to end.
    #[error("nspool is stopping")]
    Stopping,
}

/// What a predecessor left, besides what it knew of images.
#[derive(Clone, Copy, Debug)]
struct Recalled {
    /// Since when uses are known.
    since: SystemTime,
    /// Before that, any image may be held: it was killed, and its last answers may not be written down.
    all_held_until: SystemTime,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Room(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    uses: Uses,
    places: Places,
    store: HostStore,
    limits: Mutex<Limits>,
    reconfigured: Notify,
    pinned: OnceLock<Pinned>,
    /// Before it is said, nothing is read or written.
    file: OnceLock<File>,
    /// Once the file was read.
    recalled: OnceCell<Recalled>,
    /// One sweep at a time.
    turn: tokio::sync::Mutex<()>,
    /// The last write of the file failed.
    failing: Mutex<bool>,
    /// Sweeps go on when whoever wants them goes.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Room {
    /// Does nothing until [`Room::run`], or until it is told to. `engine` is a paced one.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, uses: Uses, places: Places, store: HostStore, settings: &config::Images) -> Self {
        Self(Arc::new(Inner {
            engine,
            uses,
            places,
            store,
            limits: Mutex::new(Limits::of(settings)),
            reconfigured: Notify::new(),
            pinned: OnceLock::new(),
            file: OnceLock::new(),
            recalled: OnceCell::new(),
            turn: tokio::sync::Mutex::new(()),
            failing: Mutex::new(false),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Those never go. Before this: none. To be said once; later ones do nothing.
    pub fn pinned_by(&self, pinned: impl Fn() -> Vec<String> + Send + Sync + 'static) {
        let _first = self.0.pinned.set(Box::new(pinned));
    }

    /// What is known of uses is read from there, and written. Before this: it ends with the daemon. To be said once; later ones do nothing.
    pub fn recorded_in(&self, file: File) {
        let _first = self.0.file.set(file);
    }

    /// For a reload.
    pub fn reconfigure(&self, settings: &config::Images) {
        self.0.uses.set_hold(settings.hold);
        *self.0.limits.lock() = Limits::of(settings);
        self.0.reconfigured.notify_one();
    }

    /// When images were asked for, and for how long they are held.
    #[must_use]
    pub fn uses(&self) -> &Uses {
        &self.0.uses
    }

    /// Sweeps and writes down what is known, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let keep = async { tokio::join!(self.keep_written(), self.keep_room()) };
        stop.run_until_cancelled(keep).await;
    }

    /// Ends sweeps after the removal that is under way, and writes down what is not yet; after everybody who uses images has ended. Cancel safe: then it is not.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.write(true).await;
    }

    /// What goes, or would go, so that the engine's images take `room` bytes at most; `None`: nine tenths of `[images] room`. Carried out whether or not slots are
    /// being filled: an operator says so.
    ///
    /// # Errors
    /// [`PruneError`].
    pub async fn prune(&self, room: Option<u64>, dry_run: bool) -> Result<Swept, PruneError> {
        let configured = self.0.limits.lock().room;
        let until = room.or_else(|| configured.map(low_of)).ok_or(PruneError::NoLimit)?;
        self.sweep(Sweep { why: Why::Prune, until: Until::Below(until), dry_run }).await
    }

    /// A disk is full: whether something was removed for it.
    pub async fn make_space(&self) -> bool {
        let Some(room) = self.0.limits.lock().room else { return false };
        if self.0.places.is_short() {
            return false;
        }
        match self.sweep(Sweep { why: Why::DiskFull, until: Until::Below(low_of(room)), dry_run: false }).await {
            Ok(swept) => swept.removed() > 0,
            Err(error) => {
                tracing::warn!(%error, "the disk is full, and what images take cannot be measured");
                false
            }
        }
    }

    async fn keep_room(&self) {
        let mut next = Instant::now() + jittered(EVERY / 10);
        loop {
            let limits = *self.0.limits.lock();
            sweep::tell_room(limits.room);
            if !limits.any() {
                self.0.reconfigured.notified().await;
                continue;
            }
            tokio::select! {
                biased;
                () = self.0.reconfigured.notified() => {}
                () = self.0.uses.brought() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            while self.0.places.is_short() {
                tokio::time::sleep(ASK_EVERY).await;
            }
            self.sweep_by_itself().await;
            next = Instant::now() + jittered(EVERY);
        }
    }

    async fn sweep_by_itself(&self) {
        let Limits { room, store_room, .. } = *self.0.limits.lock();
        if let Some(room) = room
            && let Err(error) = self.sweep(Sweep { why: Why::Room, until: Until::BelowIfAbove { high: room }, dry_run: false }).await
        {
            tracing::warn!(%error, "what images take cannot be measured: none is removed");
        }
        if let Some(room) = store_room {
            self.sweep_store(room).await;
        }
    }

    /// In a task of its own: a removal that has begun comes to its end. Cancel safe.
    async fn sweep(&self, sweep: Sweep) -> Result<Swept, PruneError> {
        let room = self.clone();
        let swept = self.0.tasks.spawn(async move {
            let _turn = room.0.turn.lock().await;
            if room.0.stop.is_cancelled() {
                return Err(PruneError::Stopping);
            }
            let began = Instant::now();
            let recalled = room.recall().await;
            let swept = sweep.carry_out(&room.0, recalled).await?;
            metrics::histogram!(metric::IMAGE_SWEEP).record(began.elapsed());
            Ok(swept)
        });
        swept.await.unwrap_or(Err(PruneError::Stopping))
    }

    async fn sweep_store(&self, room: u64) {
        let _turn = self.0.turn.lock().await;
        self.recall().await;
        let known = self.0.all_known().await;
        if let Err(error) = self.0.store.look::<_, TransferError>(move |store| stored::sweep(&store, room, &known)).await {
            tracing::warn!(why = with_causes(&error), "the image store cannot be swept");
        }
    }

    /// Reads what the last daemon knew, once.
    async fn recall(&self) -> Recalled {
        let read = async {
            let now = self.0.uses.now();
            let nothing = Recalled { since: now, all_held_until: now };
            let Some(file) = self.0.file.get().cloned() else { return nothing };
            let record = tokio::task::spawn_blocking(move || file.read()).await.ok().flatten();
            let Some(Record { since, complete, known }) = record else { return nothing };
            self.0.uses.recall(known);
            let all_held_until = if complete { now } else { self.0.uses.began() + self.0.uses.holds_for() };
            Recalled { since: since.min(now), all_held_until }
        };
        *self.0.recalled.get_or_init(|| read).await
    }

    async fn keep_written(&self) {
        loop {
            self.0.uses.changed().await;
            // The first one at once: from here on the file says that more may have been asked for.
            while !self.write(false).await {
                tokio::time::sleep(WRITE_AGAIN).await;
            }
            tokio::time::sleep(WRITE_EVERY).await;
        }
    }

    /// Whether it is written, or there is nowhere to write to.
    async fn write(&self, complete: bool) -> bool {
        let Some(file) = self.0.file.get().cloned() else { return true };
        let since = self.recall().await.since;
        let record = Record { since, complete, known: self.0.uses.known() };
        let path = file.path();
        let written = tokio::task::spawn_blocking(move || file.write(&record)).await;
        let why = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(ended) => Some(ended.to_string()),
        };
        metrics::gauge!(metric::IMAGE_USES_FAILING).set(u8::from(why.is_some()));
        let before = std::mem::replace(&mut *self.0.failing.lock(), why.is_some());
        match &why {
            Some(why) if !before => {
                tracing::warn!(file = %path.display(), why, "when images were used cannot be written down, and is forgotten at the daemon's end");
            }
            Some(_) => {}
            None if before => tracing::info!(file = %path.display(), "when images were used is written down again"),
            None => {}
        }
        why.is_none()
    }
}

impl Inner {
    /// What this daemon and those of other pools know.
    async fn all_known(&self) -> Known {
        let mut known = self.uses.known();
        if let Some(file) = self.file.get().cloned() {
            let others = tokio::task::spawn_blocking(move || file.read_others()).await.unwrap_or_default();
            uses::merge(&mut known, others);
        }
        known
    }
}

/// Many daemons on one host do not sweep in one moment.
fn jittered(every: Duration) -> Duration {
    every.mul_f64(0.75 + 0.5 * random::dice().f64())
}
