//! The host's images: present and usable, or fetched, once for all who ask at the same time.
//!
//! ```text
//! ensure ─► the same fetch under way? ─► follow it
//!              │ no: a task of the cache's
//!              ▼
//!           look ─ here, and everybody's ─► its id and digest
//!              │             (its time is up: the registry is asked by one HEAD, see [`freshness`](super::freshness))
//!              │ not here, somebody's own, or the registry has another one by now
//!           in the host's own [`store`](super::store)? ─► loaded from there
//!              │ no
//!              ▼
//!           failed for good a moment ago? ─► told again
//!              │ no
//!              ▼
//!           a place ─► pull ─► look ─► name it, if it came by a caller's credentials ─► its id and digest
//!                       ▲  └ failed: a jittered wait, not shorter than the registry says; then once more
//!                       └────┘
//! ```
//!
//! What it promises:
//! - One fetch for a reference and an identity, whoever asks (I5). It belongs to the cache: who goes away, at its deadline or before, ends its own wait.
//! - What is told of it is a level ([`Told`]): a slow follower misses steps, never the outcome, and holds up nobody.
//! - An image that is here because A could pull it is not thereby B's. A call that brings credentials is answered only after the registry was asked by
//!   *these*, even when the image is here: the engine's pull is that question, and brings what the registry has now. What came to the host by
//!   a caller's credentials, and has no other name yet, gets one more name in the engine, [`PRIVATE`]`:<id>`: as long as it has that, a call without credentials is answered after the
//!   registry was asked by the daemon's own. So nothing has to be remembered over restarts or reboots, the operator sees it, and taking the name away
//!   (`docker rmi`) makes the image everybody's. What is here by the operator's own doing (pulled, built or loaded) is everybody's who may call.
//! - An image that is here and everybody's is as fresh as `[images] freshness` says; one that cannot be asked about, or whose new one cannot be had, serves on
//!   ([`Ensured::stale`]).
//! - Credentials are in no key, list, log, metric or error: a key holds an [`Identity`].
//! - Failures that will be the same next time are told again for a while (`[images] failed_for`) to the same identity, without asking the registry. The last
//!   ones are kept for the operator.
//!
//! What can go wrong: a registry that is away, slow, or cuts off (tried again, `[images] attempts` times within `fetch_timeout`) · one that says no ([`Kind`])
//! · a stop (fetches are cut off, which ends the engine's pulls too) · a daemon that is killed after a pull and before the image has its name: the image
//! is everybody's then.
//!
//! - What is answered is held ([`uses`](super::room::uses)): it is not removed to make room for a while, and was not removed since the look.
//!
//! It deliberately does not know the placeholder's gate, leases, or who calls; and never removes an image. When a disk is full it asks [`room`](super::room) once.

mod fetch;
mod memory;
mod progress;
#[cfg(test)]
mod tests;
mod whose;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::fetch::Fetch;
pub(super) use self::fetch::Look;
use self::memory::Memory;
pub use self::memory::{Failed, ImageState, Row};
pub use self::progress::Progress;
pub(in crate::image) use self::whose::Identities;
pub use self::whose::{Identity, Whose};
use super::download::DownloadError;
use super::freshness::{Checks, Stale};
use super::host_store::HostStore;
use super::places::Places;
use super::pull::CredentialSource;
use super::reference::{Reference, repository_of};
use super::registry::{Client, Registry, RegistryError};
use super::room::uses::Uses;
use super::store::StoreError;
use super::transfer::TransferError;
use crate::causes::with_causes;
use crate::config;
use crate::engine::{Credentials, Engine, EngineError, ErrorClass, Image, ImageId};
use crate::level;
use crate::measured::{Mutex, Named};
use crate::random::HashMap;

/// The repository of the names that mark images as somebody's own; the tag is the id.
pub const PRIVATE: &str = "nspool.local/private";

/// An image that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// By which containers are created.
    pub id: ImageId,
    /// Of its manifest in the reference's repository; empty if it never was there.
    pub digest: String,
    /// The registry was asked for it, now.
    pub fetched: bool,
    /// It may be an old one: nobody can tell.
    pub stale: Option<Stale>,
}

/// What became of a fetch that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Failure {
    /// What to do about it.
    pub kind: Kind,
    /// The engine's or the registry's own words, without credentials.
    pub why: Arc<str>,
    /// When to ask again, if that is known.
    pub retry_after: Option<Duration>,
}

/// See [`Failure::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The registry says no to the credentials, or wants some.
    Denied,
    /// The registry has no such image.
    Unknown,
    /// The registry has had too many requests.
    Busy,
    /// No space left for it.
    DiskFull,
    /// The engine does not answer.
    EngineAway,
    /// Too many other fetches are under way or waiting.
    Crowded,
    /// The daemon is about to end.
    Stopping,
    /// What is to be built is none: a Dockerfile, a context, a name.
    Invalid,
    /// What is to be built from cannot be read by the daemon.
    ContextUnreadable,
    /// An instruction failed, or took too long.
    BuildFailed,
    /// What is to be pushed is somebody's own.
    Private,
    /// An image did not come to a registry, for any other reason.
    PushFailed,
    /// Anything else, after all attempts.
    Failed,
}

impl Kind {
    /// A word for lists and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Unknown => "unknown",
            Self::Busy => "busy",
            Self::DiskFull => "disk_full",
            Self::EngineAway => "engine_away",
            Self::Crowded => "crowded",
            Self::Stopping => "stopping",
            Self::Invalid => "invalid",
            Self::ContextUnreadable => "context_unreadable",
            Self::BuildFailed => "build_failed",
            Self::Private => "private",
            Self::PushFailed => "push_failed",
            Self::Failed => "failed",
        }
    }

    /// The same again is what the next attempt would bring.
    fn is_permanent(self) -> bool {
        match self {
            Self::Denied | Self::Unknown | Self::DiskFull => true,
            Self::Busy
            | Self::EngineAway
            | Self::Crowded
            | Self::Stopping
            | Self::Invalid
            | Self::ContextUnreadable
            | Self::BuildFailed
            | Self::Private
            | Self::PushFailed
            | Self::Failed => false,
        }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let kind = match &error {
            RegistryError::Denied { .. } => Kind::Denied,
            RegistryError::Unknown { .. } => Kind::Unknown,
            RegistryError::Busy { .. } => Kind::Busy,
            RegistryError::Unreachable { .. }
            | RegistryError::Silent { .. }
            | RegistryError::Ailing { .. }
            | RegistryError::Strange { .. } => Kind::Failed,
        };
        Self { kind, why: error.to_string().into(), retry_after: error.retry_after() }
    }
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Self {
        match error {
            DownloadError::Registry(error) => error.into(),
            DownloadError::Store(StoreError::Full { .. }) => Self::new(Kind::DiskFull, &error.to_string()),
            DownloadError::Store(_) | DownloadError::CutOff(_) => Self::new(Kind::Failed, &error.to_string()),
        }
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Engine(error) => error.into(),
            TransferError::Store(error) => DownloadError::from(error).into(),
            TransferError::NotStored(_) | TransferError::NotThere(_) | TransferError::CutOff(_) => {
                Self::new(Kind::Failed, &with_causes(&error))
            }
        }
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, why: &str) -> Self {
        Self { kind, why: why.into(), retry_after: None }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let (kind, retry_after) = match error.class {
            ErrorClass::RegistryDenied => (Kind::Denied, None),
            ErrorClass::RegistryUnknown => (Kind::Unknown, None),
            ErrorClass::RegistryBusy { retry_after } => (Kind::Busy, retry_after),
            ErrorClass::DiskFull => (Kind::DiskFull, None),
            ErrorClass::Away | ErrorClass::NotAllowed => (Kind::EngineAway, None),
            ErrorClass::NotFound
            | ErrorClass::ImageMissing
            | ErrorClass::NetworkMissing
            | ErrorClass::NameTaken
            | ErrorClass::HasDependents
            | ErrorClass::NoAddresses
            | ErrorClass::Unknown
            | ErrorClass::Refused => (Kind::Failed, None),
        };
        Self { kind, why: error.to_string().into(), retry_after }
    }
}

/// What is told of a fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How far it is.
    pub progress: Progress,
    /// Why the attempt before failed, while another is made or waited for.
    pub after: Option<Arc<str>>,
    /// Once it is over.
    pub outcome: Option<Result<Ensured, Failure>>,
}

/// What one fetch is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    whose: Whose,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    registry: Arc<dyn Registry>,
    /// For what is fetched into the store.
    client: Client,
    credentials: CredentialSource,
    store: HostStore,
    settings: config::Images,
    backoff: config::Backoff,
    identities: Identities,
    table: Mutex<Table>,
    /// For fetches that ask the registry.
    places: Places,
    /// What was answered is held.
    uses: Uses,
    make_space: OnceLock<MakeSpace>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// For a fetch that met a full disk: whether it is worth another attempt.
type MakeSpace = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

struct Table {
    under_way: HashMap<Key, level::Receiver<Told>>,
    memory: Memory,
    checks: Checks,
    unnamed: Unnamed,
}

/// More repositories than that are not told apart.
const MOST_UNNAMED: usize = 4096;

/// Repositories of which images may be here that came by callers' credentials and do not have their second name yet: of fetches by such credentials,
/// those under way and those of which it is not known what they brought.
#[derive(Default)]
struct Unnamed {
    repositories: HashMap<String, u32>,
    /// It was too many: any may be.
    all: bool,
    /// How many there ever were: a look that saw another number may have missed one that came and went.
    ever: u64,
}

impl Unnamed {
    fn enter(&mut self, repository: &str) {
        self.ever += 1;
        if self.repositories.len() < MOST_UNNAMED || self.repositories.contains_key(repository) {
            *self.repositories.entry(repository.to_owned()).or_default() += 1;
        } else {
            self.all = true;
        }
    }

    fn leave(&mut self, repository: &str) {
        if let Some(count) = self.repositories.get_mut(repository) {
            *count -= 1;
            if *count == 0 {
                self.repositories.remove(repository);
            }
        }
    }

    fn has(&self, repository: &str) -> bool {
        self.all || self.repositories.contains_key(repository)
    }

    fn seen(&self, repository: &str) -> (bool, u64) {
        (self.has(repository), self.ever)
    }

    /// Whether an image has a name that no caller's credentials have brought: it was here for everybody.
    fn knows_as_everybodys(&self, image: &Image) -> bool {
        image.tags.iter().chain(&image.digests).any(|name| !self.has(repository_of(name)))
    }
}

impl Cache {
    /// Knows nothing yet, and does nothing until it is asked. `engine` is a paced one.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, credentials: CredentialSource, settings: config::Images, backoff: config::Backoff) -> Self {
        Self::asking(Arc::new(Client::default()), engine, credentials, settings, backoff)
    }

    /// The same with somebody else than the registries themselves to ask what they have.
    #[must_use]
    pub fn asking(
        registry: Arc<dyn Registry>,
        engine: Arc<dyn Engine>,
        credentials: CredentialSource,
        settings: config::Images,
        backoff: config::Backoff,
    ) -> Self {
        let (memory, checks) = (Memory::new(&settings), Checks::new(&settings));
        let lock = Named { name: "image_cache", bound: settings.lock_bound };
        let places = Places::new(settings.concurrent, settings.concurrent_while_filling);
        let uses = Uses::new(settings.hold);
        Self(Arc::new(Inner {
            engine,
            registry,
            client: Client::default(),
            credentials,
            store: HostStore::new(&settings),
            settings,
            backoff,
            identities: Identities::new(),
            table: Mutex::new(lock, Table { under_way: HashMap::default(), memory, checks, unnamed: Unnamed::default() }),
            places,
            uses,
            make_space: OnceLock::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Those that its fetches have, for all else that is as heavy.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.0.places
    }

    /// The host's own.
    #[must_use]
    pub fn store(&self) -> &HostStore {
        &self.0.store
    }

    /// By whose credentials a registry is asked: a caller's, else the daemon's own.
    pub(super) fn whose(&self, credentials: Option<&Credentials>) -> Whose {
        credentials.map_or(Whose::Daemons, |credentials| Whose::Callers(self.0.identities.of(credentials)))
    }

    /// The daemon's own.
    pub(super) fn credentials(&self) -> &CredentialSource {
        &self.0.credentials
    }

    pub(super) fn backoff(&self) -> &config::Backoff {
        &self.0.backoff
    }

    /// No caller's credentials have brought it, as far as is known.
    pub(super) fn is_everybodys(&self, image: &Image) -> bool {
        let is_nameless = image.tags.is_empty() && image.digests.is_empty();
        !fetch::is_named(image) && (is_nameless || self.0.table.lock().unnamed.knows_as_everybodys(image))
    }

    /// Which images were asked for, and for whom they are held: its own, and all else that gives images to callers.
    #[must_use]
    pub fn uses(&self) -> &Uses {
        &self.0.uses
    }

    /// Who is asked when a disk is full. Before this: nobody. To be said once; later ones do nothing.
    pub fn make_space_by(&self, make_space: impl Fn() -> BoxFuture<'static, bool> + Send + Sync + 'static) {
        let _first = self.0.make_space.set(Box::new(make_space));
    }

    /// Sees to it that an image is here and may be used by whoever has these credentials; `None`: the daemon's own. What comes back follows the fetch, which
    /// goes on whether or not anybody does. The outcome comes in any case; should the fetch's task fall, it is a [`Failure`], too.
    #[must_use]
    pub fn ensure(&self, reference: &Reference, credentials: Option<Credentials>) -> level::Receiver<Told> {
        self.ensure_seen(reference, credentials, None)
    }

    /// Asks the engine alone, for an [`Cache::ensure_seen`] that may follow soon.
    ///
    /// # Errors
    /// The engine's.
    pub(super) async fn look(&self, reference: &Reference) -> Result<Look, EngineError> {
        Look::at(&self.0, reference).await
    }

    /// As [`Cache::ensure`], by what was seen since somebody wanted it.
    pub(super) fn ensure_seen(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        early: Option<Look>,
    ) -> level::Receiver<Told> {
        let whose = self.whose(credentials.as_ref());
        let key = Key { reference: reference.clone(), whose };
        let mut table = self.0.table.lock();
        if let Some(following) = table.under_way.get(&key) {
            return following.clone();
        }
        if table.under_way.len() >= self.0.settings.queue as usize {
            let crowded = Failure::new(Kind::Crowded, "too many other images are being fetched ([images] queue)");
            return level::channel(Told { outcome: Some(Err(crowded)), ..Told::default() }).1;
        }
        let (told, following) = level::channel(Told::default());
        table.under_way.insert(key.clone(), following.clone());
        drop(table);
        self.0.tasks.spawn(Fetch::new(Arc::clone(&self.0), key, told).run(credentials, early));
        following
    }

    /// What is known of each image that was asked for, in the order of references; bounded by `[images] remember`.
    #[must_use]
    pub fn images(&self) -> Vec<Row> {
        let table = self.0.table.lock();
        let mut rows = table.memory.rows();
        // What callers ask for by their own credentials is asked for each time.
        for row in rows.iter_mut().filter(|row| !row.private && matches!(row.state, ImageState::Present(_))) {
            let check = Reference::parse(&row.reference).ok().and_then(|reference| table.checks.of(&reference).cloned());
            (row.checked, row.stale) = check.map_or((None, None), |check| (check.checked, check.stale));
        }
        rows
    }

    /// The last failures, the latest first; bounded by `[images] keep_failures`.
    #[must_use]
    pub fn failures(&self) -> Vec<Failed> {
        self.0.table.lock().memory.failures()
    }

    /// Cuts off all fetches, those to come included, and waits until they have ended. Cancel safe: they end all the same.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}
