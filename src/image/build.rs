//! Images built from a Dockerfile and its context: known by what goes in, and built once, however many ask.
//!
//! ```text
//! begin ─► survey the context ─► the images that it begins from are ensured ─► key ─► an image has it ─► that one
//!             ▲                                                                 │ none
//!             │ context or images changed meanwhile                             ▼
//!             └───────────────────────────── pack ─► build ─► look ◄── the same build under way? follow it; else a task of ours
//! ```
//!
//! What it promises:
//! - The same [`Key`] gives the same image, as long as the engine has it: one question to the engine, asked early (`guess`), no build. It says so by the image's tag, [`REPOSITORY`]`:<key>`, and the label
//!   [`KEY_LABEL`], which together outlive the daemon, and which no image built upon it by others has. What is known from before is only a place to look
//!   first: an image that is gone is built anew, and is never an error.
//! - One build for a key, whoever asks. It belongs to [`Builds`]: who goes away ends its own wait. Its output is told to all who follow, from its beginning; a slow
//!   follower misses lines, is told how many, and holds up nobody.
//! - The key is that of what the builder got: the context is hashed again while it is packed, and the images that it begins from are looked at again
//!   after the build. What has changed meanwhile is begun anew, some times.
//! - The engine pulls nothing: the images that a Dockerfile names come by the [`Cache`], once for all, with its rules of whose they are.
//! - Nothing stays of a build that fails, is too late, or is cut off by a stop, but what the engine keeps as its own build cache.
//!
//! What can go wrong: a Dockerfile, `.dockerignore` or context that is none ([`Kind::Invalid`], with the line or path) · a context that cannot be read from here
//! ([`Kind::ContextUnreadable`]) · an instruction that fails ([`Kind::BuildFailed`], with the builder's words) · all that can go wrong with a fetch.
//!
//! It deliberately does not know who asks, and removes no image.

mod building;
mod context;
mod dockerfile;
mod flight;
mod guess;
mod ignore;
mod index;
mod key;
mod log;
mod memo;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::try_join_all;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::building::Building;
use self::context::{Folder, Selection};
use self::dockerfile::Dockerfile;
use self::flight::Told;
use self::guess::{Early, Guesses};
use self::index::Index;
pub use self::index::Row;
pub use self::key::Key;
use self::memo::Memo;
use super::cache::{Cache, Failure, Kind};
use super::reference::Reference;
use super::room::uses::Seen;
use crate::config;
use crate::engine::{Engine, Image, ImageId};
use crate::level;
use crate::measured::{Mutex, Named};
use crate::random::HashMap;

pub use self::context::ContextError;

/// The repository of the tags of what was built here; the tag is the key.
pub const REPOSITORY: &str = "nspool.local/build";
/// Its value is the key.
pub const KEY_LABEL: &str = "nspool.build.key";
/// When it was built, in RFC 3339.
pub const DATE_LABEL: &str = "nspool.build.at";

/// What is to be built.
#[derive(Debug)]
pub struct Definition {
    /// What `COPY` copies from.
    pub context: Context,
    /// Where the Dockerfile is in the context.
    pub dockerfile: String,
    /// The Dockerfile, if it is not in the context.
    pub content: Option<String>,
    /// The stage that is wanted; empty: the last one.
    pub target: String,
    /// Build args.
    pub args: BTreeMap<String, String>,
    /// `os/arch[/variant]`; empty: the engine's own.
    pub platform: String,
    /// Whether or not there is an image of it, and without the engine's build cache.
    pub anew: bool,
}

/// See [`Definition::context`].
#[derive(Debug)]
pub enum Context {
    /// A folder, as the daemon sees it.
    Folder {
        /// Absolute.
        path: PathBuf,
        /// Its device and inode, where it must be this one.
        identity: Option<(u64, u64)>,
    },
    /// A tar, not compressed, from its file's beginning.
    Tar(File),
}

/// An image that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// By which containers are created.
    pub id: ImageId,
    /// What went in.
    pub key: Key,
    /// Nothing was built for it now.
    pub reused: bool,
}

impl Built {
    /// Its name in the engine.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.key)
    }
}

fn name_of(key: &Key) -> String {
    format!("{REPOSITORY}:{key}")
}

/// What comes of asking.
#[derive(Debug)]
pub enum Event {
    /// What the build has printed, line by line; `missed` lines before them are no longer there.
    Log {
        /// Without their ends.
        lines: Vec<Arc<str>>,
        /// Not told to this follower.
        missed: u64,
    },
    /// The last one.
    Built(Built),
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Builds(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    cache: Cache,
    settings: config::Images,
    builder: OnceCell<String>,
    memo: Memo,
    table: Mutex<Table>,
    guesses: Mutex<Guesses>,
    turns: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// What is there is not known.
    unsure: Notify,
}

#[derive(Default)]
struct Table {
    under_way: HashMap<Key, level::Receiver<Told>>,
    index: Index,
}

impl Builds {
    /// Knows nothing yet, and does nothing until it is asked or [`Builds::run`]. `engine` is a paced one.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, cache: Cache, settings: config::Images) -> Self {
        let turns = Arc::new(Semaphore::new(settings.queue as usize));
        let lock = Named { name: "image_builds", bound: settings.lock_bound };
        Self(Arc::new(Inner {
            engine,
            cache,
            settings,
            builder: OnceCell::new(),
            memo: Memo::default(),
            table: Mutex::new(lock, Table::default()),
            guesses: Mutex::new(lock, Guesses::default()),
            turns,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            unsure: Notify::new(),
        }))
    }

    /// A turn among those who ask, whose contexts need room and whose builds wait for each other.
    ///
    /// # Errors
    /// [`Kind::Crowded`]: `[images] queue` have one.
    pub fn enter(&self) -> Result<Turn, Failure> {
        let crowded = |_| Failure::new(Kind::Crowded, "too many builds are asked for at once ([images] queue)");
        let place = Arc::clone(&self.0.turns).try_acquire_owned().map_err(crowded)?;
        Ok(Turn { builds: Arc::clone(&self.0), _place: place })
    }

    /// What was built here and is there, by date; `None` while that is not known.
    #[must_use]
    pub fn rows(&self) -> Option<Vec<Row>> {
        self.0.table.lock().index.rows()
    }

    /// Something may have happened unheard: what is known of the engine's images is not, until they were listed again.
    pub fn forget(&self) {
        self.0.table.lock().index.forget();
        self.0.unsure.notify_one();
    }

    /// An image of the engine is gone, or has lost a name.
    pub fn image_gone(&self, id: &str) {
        if self.0.table.lock().index.gone(id) {
            self.0.unsure.notify_one();
        }
    }

    /// Knows what is there, from the first [`Builds::forget`] to the end. A list that fails leaves it not known, until somebody asks or forgets.
    pub async fn run(self, stop: CancellationToken) {
        let keep = async {
            loop {
                self.0.unsure.notified().await;
                self.list().await;
            }
        };
        stop.run_until_cancelled(keep).await;
    }

    /// Lists what is there, unless that is known. A list that fails leaves it not known.
    pub async fn list(&self) {
        self.0.list().await;
    }

    /// Cuts off all builds, those to come included, and waits until they have ended. Cancel safe: they end all the same.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// One caller's turn, until it is dropped.
pub struct Turn {
    builds: Arc<Inner>,
    _place: OwnedSemaphorePermit,
}

impl Turn {
    /// A file for a tar on its way, without a name: it goes with the last who has it open.
    ///
    /// # Errors
    /// Those of `[images] spool`.
    pub fn spool(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.builds.settings.spool)
    }

    /// Bytes that a context may have.
    #[must_use]
    pub fn context_limit(&self) -> u64 {
        self.builds.settings.context_limit
    }

    /// Begins to find or build an image; nothing happens until [`Building::next`].
    #[must_use]
    pub fn begin(&self, definition: Definition) -> Building {
        Building::new(Arc::clone(&self.builds), definition)
    }
}

impl Inner {
    async fn list(&self) {
        let Some(before) = self.table.lock().index.begin() else { return };
        match self.engine.images(KEY_LABEL).await {
            Ok(images) => self.table.lock().index.listed(before, &images),
            Err(error) => tracing::warn!(%error, "what was built here is not known"),
        }
    }

    /// The image of a key, if the engine has it.
    async fn known(&self, key: Key) -> Result<Option<Built>, Failure> {
        let look = self.look(key).await?;
        self.seen(look).await
    }

    async fn look(&self, key: Key) -> Result<Look, Failure> {
        let seen = self.cache.uses().seen();
        let image = self.engine.image(&name_of(&key)).await?.filter(|image| is_of(image, key));
        Ok(Look { key, seen, image })
    }

    /// What a look has found is held for who asked.
    async fn seen(&self, Look { key, seen, image }: Look) -> Result<Option<Built>, Failure> {
        let image = match image {
            Some(image) => self.cache.uses().hold(&image.id, &name_of(&key), true, seen).await.then_some(image),
            None => None,
        };
        let mut table = self.table.lock();
        match image {
            Some(image) => {
                table.index.used(key, &image, SystemTime::now());
                Ok(Some(Built { id: image.id, key, reused: true }))
            }
            None => {
                table.index.missing(key);
                Ok(None)
            }
        }
    }

    async fn builder(&self) -> Result<&str, Failure> {
        let builder = self.builder.get_or_try_init(|| async { self.engine.info().await.map(|info| info.kind.to_string()) }).await;
        Ok(builder?)
    }

    /// The images that a Dockerfile begins from, present and usable by the daemon's own credentials.
    async fn bases(&self, file: &Dockerfile, early: &mut Early) -> Result<Vec<(Reference, ImageId)>, Failure> {
        let seen: Vec<_> = file.bases.iter().map(|reference| (reference, early.base(reference))).collect();
        let ensured = seen.into_iter().map(|(reference, look)| async move {
            let mut following = self.cache.ensure_seen(reference, None, look);
            let ended = || Failure::new(Kind::Failed, "the fetch ended without a word: a bug in nspool");
            let outcome = following.wait_for(|told| told.outcome.is_some()).await.map_err(|_| ended())?.outcome.clone();
            let ensured =
                outcome.ok_or_else(ended)?.map_err(|failure| Failure { why: format!("FROM {reference}: {failure}").into(), ..failure })?;
            Ok::<_, Failure>((reference.clone(), ensured.id))
        });
        try_join_all(ensured).await
    }

    /// Off the async threads, in a task of ours.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T, ContextError> + Send + 'static) -> Result<T, Failure> {
        match self.tasks.spawn_blocking(work).await {
            Ok(done) => done.map_err(Failure::from),
            Err(_) => Err(Failure::new(Kind::Failed, "reading the context ended early: a bug in nspool")),
        }
    }
}

/// What another one built upon it does not have: both come from the same build.
fn is_of(image: &Image, key: Key) -> bool {
    image.labels.get(KEY_LABEL).is_some_and(|label| Key::parse(label) == Some(key)) && image.tags.contains(&name_of(&key))
}

impl From<ContextError> for Failure {
    fn from(error: ContextError) -> Self {
        let kind = match &error {
            ContextError::Unreadable { .. } => Kind::ContextUnreadable,
            ContextError::Spool(source) if source.kind() == io::ErrorKind::StorageFull => Kind::DiskFull,
            ContextError::Spool(_) => Kind::Failed,
            ContextError::Refused { .. }
            | ContextError::NoTar { .. }
            | ContextError::TooLarge { .. }
            | ContextError::Ignore { .. }
            | ContextError::NotText { .. } => Kind::Invalid,
        };
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self::new(kind, &format!("{error}{source}"))
    }
}

/// At an image by its key.
struct Look {
    key: Key,
    seen: Seen,
    image: Option<Image>,
}

/// A tar of a folder for a daemon that cannot read it: what it would take, and what it needs to know that. `dockerfile`: where it is in the folder.
///
/// # Errors
/// [`ContextError`].
pub fn tar_of(folder: &Path, dockerfile: Option<&str>, limit: u64) -> Result<File, ContextError> {
    let source = Folder::open(folder, None)?;
    let selection = Selection::to_send(&source, dockerfile, limit)?;
    let out = tempfile::tempfile().map_err(ContextError::Spool)?;
    context::pack(&source, &selection, &out)?;
    (&out).rewind().map_err(ContextError::Spool)?;
    Ok(out)
}
