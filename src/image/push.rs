//! Images brought to registries: once, however many ask, and of each only what its registry has not.
//!
//! ```text
//! push ─► look: which image, and may it leave? ─► the same push under way? ─► follow it
//!                                                    │ no: a task of the pusher's
//!                                                    ▼
//!      a place ─► the image in the host's own store, else taken there from the engine ─► each layer, three at once:
//!                                                        seen there ─► nothing
//!                                                        seen in another repository ─► mounted, else sent
//!                                                        else asked for ─► there, or sent
//!                                                  ─► the manifest ─► taken
//!                                                        │ the registry has not all that it names
//!                                                        └► forgotten, and once more with every layer asked for
//! ```
//!
//! What it promises:
//! - One push for an image, a target and an identity, whoever asks. It belongs to the [`Pusher`]: who goes away ends its own wait.
//! - A layer that the registry has is not sent, and one that was seen in the target's repository not even asked for (`seen`); two pushes at once that need
//!   the same layer there send it once. That is a memory: when the registry
//!   disagrees, it is forgotten and the push made once more without it; the outcome is the registry's word on the manifest, never ours.
//! - What is said to be pushed has the digest that the store knows it by: its manifest goes as it is.
//! - An image that came by a caller's credentials ([`PRIVATE`](super::cache::PRIVATE)) is not pushed, whoever asks, as long as it is somebody's own.
//! - Credentials are in no key, log, metric or error, and in memory as long as their push.
//!
//! Layers go as they are in the store: compressed, if they came so from a registry; as plain tars, if they came from an engine. Compressing them here would give
//! other digests with each version of the compressor, so that what is there would be sent again, and would cost more time than a registry's network does.
//!
//! What can go wrong: an image that is neither in the engine nor in the store · a registry that says no, is away, busy, or cuts off (tried once more) · a full
//! disk · a stop (pushes are cut off; the registry shows nothing of them).
//!
//! It deliberately does not know who may push, and removes no image.

mod flight;
mod seen;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::flight::Flight;
use self::seen::Seen;
pub use self::source::Source;
use super::cache::{Cache, Failure, Kind, Whose};
use super::reference::Reference;
use super::registry::Client;
use super::store::Digest;
use crate::config;
use crate::engine::{Credentials, Engine};
use crate::level;
use crate::random::HashMap;

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// It was seen there: nobody was asked.
    Seen,
    /// The registry took it over from another of its repositories.
    Mounted,
    /// It was there, says the registry.
    Present,
    /// It was sent.
    Uploaded,
}

impl How {
    /// A word for metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Mounted => "mounted",
            Self::Present => "present",
            Self::Uploaded => "uploaded",
        }
    }
}

/// An image that is in a registry now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Of its config.
    pub id: Digest,
    /// Of its manifest: by this the registry knows it.
    pub digest: Digest,
    /// How many different layers it has, and how each came there.
    pub layers: Layers,
    /// Sent, config included.
    pub bytes: u64,
}

/// Counts of an image's layers; without its config, which is brought as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    /// See [`How::Seen`].
    pub seen: u32,
    /// See [`How::Mounted`].
    pub mounted: u32,
    /// See [`How::Present`].
    pub present: u32,
    /// See [`How::Uploaded`].
    pub uploaded: u32,
}

impl Layers {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> u32 {
        self.seen + self.mounted + self.present + self.uploaded
    }

    fn add(&mut self, how: How) {
        let count = match how {
            How::Seen => &mut self.seen,
            How::Mounted => &mut self.mounted,
            How::Present => &mut self.present,
            How::Uploaded => &mut self.uploaded,
        };
        *count += 1;
    }
}

/// How far a push is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Different ones; 0 before the image is in the store.
    pub layers: u32,
    /// Of these, those that are in the repository.
    pub layers_done: u32,
    /// Sent …
    pub bytes: u64,
    /// … of so many, as far as is known what has to be sent.
    pub bytes_total: u64,
}

/// What is told of a push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// How far it is.
    pub progress: Progress,
    /// Once it is over.
    pub outcome: Option<Result<Pushed, Failure>>,
}

/// What one push is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The engine's id; the store's where the engine has not the image.
    image: Arc<str>,
    target: Reference,
    whose: Whose,
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Pusher(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    cache: Cache,
    client: Client,
    settings: config::Images,
    under_way: Mutex<HashMap<Key, level::Receiver<Told>>>,
    seen: Seen,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Pusher {
    /// Knows nothing yet, and does nothing until it is asked. `engine` is a paced one; credentials, identities and places are the cache's.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, cache: Cache, settings: config::Images) -> Self {
        Self(Arc::new(Inner {
            engine,
            cache,
            client: Client::default(),
            seen: Seen::new(settings.fresh_for),
            settings,
            under_way: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Brings an image to where `target` says, which has a tag, by these credentials; `None`: the daemon's own. What comes back follows the push, which goes on
    /// whether or not anybody does. The outcome comes in any case. Dropped before it answers, nothing has begun.
    ///
    /// # Errors
    /// [`Failure`]: there is no such image, it is somebody's own, or too many others are on their way.
    pub async fn push(
        &self,
        source: &Source,
        target: &Reference,
        credentials: Option<Credentials>,
    ) -> Result<level::Receiver<Told>, Failure> {
        let found = source::look(&self.0, source).await?;
        let whose = self.0.cache.whose(credentials.as_ref());
        let key = Key { image: found.id.as_str().into(), target: target.clone(), whose };
        let mut under_way = self.0.under_way.lock();
        if let Some(following) = under_way.get(&key) {
            return Ok(following.clone());
        }
        if under_way.len() >= self.0.settings.queue as usize {
            return Err(Failure::new(Kind::Crowded, "too many other images are being pushed ([images] queue)"));
        }
        let (told, following) = level::channel(Told::default());
        under_way.insert(key.clone(), following.clone());
        drop(under_way);
        self.0.tasks.spawn(Flight::new(Arc::clone(&self.0), key, told).run(found, credentials));
        Ok(following)
    }

    /// Cuts off all pushes, those to come included, and waits until they have ended. Cancel safe: they end all the same.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// What a fetch would call a failure like any other is one of a push here.
fn not_pushed(error: impl Into<Failure>) -> Failure {
    let failure = error.into();
    let kind = if failure.kind == Kind::Failed { Kind::PushFailed } else { failure.kind };
    Failure { kind, ..failure }
}
