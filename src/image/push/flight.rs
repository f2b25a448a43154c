//! One push, from its place to its outcome, which is told however it ends.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::seen::{Known, Who};
use super::source::{Found, Stored};
use super::{How, Inner, Key, Layers, Progress, Pushed, Told, not_pushed};
use crate::config;
use crate::engine::Credentials;
use crate::image::cache::{Failure, Kind};
use crate::image::jittered;
use crate::image::pull::registry_host;
use crate::image::registry::{Access, Offered, Pieces, Put, RegistryError, Repository, Session};
use crate::image::store::{Descriptor, Digest};
use crate::level;
use crate::random::{self, HashMap, HashSet};
use crate::telemetry::metric;

/// Blobs on their way at once.
const AT_ONCE: usize = 3;
/// A registry that wants to be left alone for longer is: whoever asked is told.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Of a blob on its way.
const PIECE: usize = 256 << 10;

/// Under way from [`Flight::new`] until it is dropped.
pub(super) struct Flight {
    pusher: Arc<Inner>,
    key: Key,
    told: Arc<Show>,
    outcome: Result<Pushed, Failure>,
}

/// What is told, and what that is counted from.
struct Show {
    told: level::Sender<Told>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    layers: u32,
    layers_done: u32,
    /// Of the attempts under way and those that have succeeded.
    bytes: u64,
    bytes_total: u64,
}

impl Show {
    fn change(&self, change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.lock();
        change(&mut tally);
        let Tally { layers, layers_done, bytes, bytes_total } = *tally;
        self.told.send_modify(|told| told.progress = Progress { layers, layers_done, bytes, bytes_total });
    }
}

fn fallen() -> Result<Pushed, Failure> {
    Err(Failure::new(Kind::PushFailed, "the push ended early: a bug in nspool"))
}

impl Drop for Flight {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, fallen());
        // Gone before it is told: who comes from here on begins another.
        self.pusher.under_way.lock().remove(&self.key);
        self.told.told.send_modify(|told| told.outcome = Some(outcome));
    }
}

impl Flight {
    pub(super) fn new(pusher: Arc<Inner>, key: Key, told: level::Sender<Told>) -> Self {
        let told = Arc::new(Show { told, tally: Mutex::default() });
        Self { pusher, key, told, outcome: fallen() }
    }

    pub(super) async fn run(mut self, found: Found, credentials: Option<Credentials>) {
        let (stop, began) = (self.pusher.stop.clone(), Instant::now());
        let late = self.pusher.settings.fetch_timeout;
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Failure::new(Kind::Stopping, "nspool is stopping")),
            outcome = tokio::time::timeout(late, self.carry_out(&found, credentials)) => outcome.unwrap_or_else(|_| {
                let why = format!("not pushed within {} ([images] fetch_timeout)", humantime::format_duration(late));
                Err(Failure::new(Kind::PushFailed, &why))
            }),
        };
        let (target, took) = (&self.key.target, began.elapsed());
        let word = match &outcome {
            Ok(Pushed { id, layers, bytes, .. }) => {
                tracing::info!(%target, image = %id, ?layers, bytes, ?took, "an image was pushed");
                "pushed"
            }
            Err(failure) => {
                tracing::warn!(%target, outcome = failure.kind.word(), why = %failure.why, ?took, "an image cannot be pushed");
                failure.kind.word()
            }
        };
        metrics::counter!(metric::IMAGE_PUSHES, "outcome" => word).increment(1);
        self.outcome = outcome;
    }

    async fn carry_out(&self, found: &Found, credentials: Option<Credentials>) -> Result<Pushed, Failure> {
        // Among the fetches: both burden the host.
        let deadline = Instant::now() + self.pusher.settings.fetch_timeout;
        let _place = self.pusher.cache.places().acquire(deadline).await;
        let stored = Stored::have(&self.pusher, found).await?;
        let target = &self.key.target;
        let credentials = match credentials {
            Some(credentials) => Some(credentials),
            None => self.pusher.cache.credentials().lookup(target.as_str()).await.unwrap_or_else(|error| {
                tracing::warn!(%target, %error, "no credentials, pushing without");
                None
            }),
        };
        let who = Who { host: registry_host(target.as_str()).into(), whose: self.key.whose };
        let repository = self.pusher.client.repository(target, credentials.as_ref(), Access::Push);
        let (pusher, told, layers) = (&*self.pusher, &self.told, Mutex::default());
        Errand { pusher, told, stored: &stored, repository: &repository, who, target: target.version(), layers }.run().await
    }
}

/// A push that has all it needs.
struct Errand<'a> {
    pusher: &'a Inner,
    told: &'a Arc<Show>,
    stored: &'a Stored,
    repository: &'a Repository,
    who: Who,
    /// The tag.
    target: &'a str,
    /// How each layer came there.
    layers: Mutex<HashMap<Digest, How>>,
}

impl Errand<'_> {
    async fn run(&self) -> Result<Pushed, Failure> {
        let remembered = self.attempt(true).await?;
        let missing = match remembered {
            Ended::Pushed(pushed) => return Ok(pushed),
            Ended::Missing(missing) => missing,
        };
        tracing::info!(
            registry = self.repository.host(),
            repository = self.repository.path(),
            ?missing,
            "what was seen there is not there"
        );
        if missing.is_empty() {
            self.pusher.seen.forget_repository(&self.who, self.repository.path());
        }
        for digest in &missing {
            self.pusher.seen.forget(&self.who, digest, self.repository.path());
        }
        match self.attempt(false).await? {
            Ended::Pushed(pushed) => Ok(pushed),
            Ended::Missing(missing) => {
                let host = self.repository.host();
                Err(Failure::new(
                    Kind::PushFailed,
                    &format!("{host} has, or took, every layer, and then says that it has not: {missing:?}"),
                ))
            }
        }
    }

    /// All blobs, then the manifest. `trusting`: what was seen is not asked for.
    async fn attempt(&self, trusting: bool) -> Result<Ended, Failure> {
        let manifest = &self.stored.manifest;
        let mut met = HashSet::default();
        let layers: Vec<Descriptor> = manifest.layers.iter().filter(|layer| met.insert(layer.digest.clone())).cloned().collect();
        self.told.change(|tally| (tally.layers, tally.layers_done) = (u32::try_from(layers.len()).unwrap_or(u32::MAX), 0));
        let config = (manifest.config.clone(), false);
        let blobs = layers.into_iter().map(|layer| (layer, true)).chain([config]);
        let brought = stream::iter(blobs).map(|(blob, is_layer)| self.bring(blob, is_layer, trusting)).buffer_unordered(AT_ONCE);
        brought.try_collect::<()>().await?;
        let media_type = manifest.media_type();
        let put = || self.repository.put_manifest(self.target, media_type, self.stored.bytes.clone().into());
        match self.patiently(put).await.map_err(not_pushed)? {
            Put::Missing(missing) => Ok(Ended::Missing(missing)),
            Put::Taken => {
                let mut layers = Layers::default();
                for how in self.layers.lock().values() {
                    layers.add(*how);
                    metrics::counter!(metric::IMAGE_PUSHED_LAYERS, "how" => how.word()).increment(1);
                }
                let (id, digest) = (self.stored.image.id.clone(), self.stored.image.manifest.clone());
                Ok(Ended::Pushed(Pushed { id, digest, layers, bytes: self.told.tally.lock().bytes }))
            }
        }
    }

    async fn bring(&self, blob: Descriptor, is_layer: bool, trusting: bool) -> Result<(), Failure> {
        let (seen, here) = (&self.pusher.seen, self.repository.path());
        let turn = seen.turn(&self.who, &blob.digest, here).await;
        let how = self.bring_somehow(&blob, trusting).await?;
        if how != How::Seen {
            seen.note(&self.who, &blob.digest, here);
        }
        drop(turn);
        if is_layer {
            self.told.change(|tally| tally.layers_done += 1);
            let mut layers = self.layers.lock();
            let before = layers.get(&blob.digest).copied();
            // That it is there is no news of what an earlier attempt has brought.
            if !(how == How::Present && matches!(before, Some(How::Uploaded | How::Mounted))) {
                layers.insert(blob.digest, how);
            }
        }
        Ok(())
    }

    async fn bring_somehow(&self, blob: &Descriptor, trusting: bool) -> Result<How, Failure> {
        let (seen, digest, here) = (&self.pusher.seen, &blob.digest, self.repository.path());
        let known = if trusting { seen.of(&self.who, digest, here) } else { Known::No };
        match known {
            Known::Here => return Ok(How::Seen),
            Known::Elsewhere(from) => match self.patiently(|| self.repository.mount(digest, &from)).await {
                Ok(Offered::Mounted) => return Ok(How::Mounted),
                Ok(Offered::NotMounted(session)) => {
                    seen.forget(&self.who, digest, &from);
                    return self.upload(blob, Some(session)).await;
                }
                // It may not be read there, or is there no more: that is no word on writing here.
                Err(RegistryError::Denied { .. } | RegistryError::Unknown { .. } | RegistryError::Strange { .. }) => {
                    seen.forget(&self.who, digest, &from);
                }
                Err(error) => return Err(not_pushed(error)),
            },
            Known::No => {}
        }
        if self.patiently(|| self.repository.has_blob(digest)).await.map_err(not_pushed)? {
            return Ok(How::Present);
        }
        self.upload(blob, None).await
    }

    async fn upload(&self, blob: &Descriptor, mut session: Option<Session>) -> Result<How, Failure> {
        let mut is_first = true;
        let attempt = || {
            let (session, is_first) = (session.take(), std::mem::replace(&mut is_first, false));
            async move {
                // The answer may have been lost, and not the blob.
                if !is_first && self.repository.has_blob(&blob.digest).await? {
                    return Ok(());
                }
                let session = match session {
                    Some(session) => session,
                    None => self.repository.begin_upload().await?,
                };
                let sent = Arc::new(Sent { told: Arc::clone(self.told), size: blob.size, bytes: Mutex::new(0) });
                sent.told.change(|tally| tally.bytes_total += blob.size);
                let open = || self.open(&blob.digest, &sent);
                let uploaded = self.repository.upload(&session, &blob.digest, blob.size, &open).await;
                if uploaded.is_err() {
                    sent.take_back();
                }
                uploaded
            }
        };
        self.patiently(attempt).await.map_err(not_pushed)?;
        Ok(How::Uploaded)
    }

    /// A blob's bytes, counted as they go.
    fn open(&self, digest: &Digest, sent: &Arc<Sent>) -> Pieces {
        sent.begin();
        let (store, digest, sent) = (self.stored.store.clone(), digest.clone(), Arc::clone(sent));
        let opened = async move {
            let file = tokio::task::spawn_blocking(move || store.open_blob(&digest)).await.map_err(std::io::Error::other)?;
            let file = tokio::fs::File::from_std(file.map_err(std::io::Error::other)?);
            Ok::<_, std::io::Error>(ReaderStream::with_capacity(file, PIECE))
        };
        stream::once(opened).try_flatten().inspect_ok(move |piece| sent.add(piece.len() as u64)).boxed()
    }

    /// Once more where that makes sense, not before the registry says.
    async fn patiently<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let error = match attempt().await {
            Err(error) if error.may_pass() => error,
            done => return done,
        };
        let wait = wait_after(&error, self.pusher.cache.backoff());
        if wait > LONGEST_WAIT {
            return Err(error);
        }
        tracing::info!(registry = self.repository.host(), %error, ?wait, "trying once more");
        tokio::time::sleep(wait).await;
        attempt().await
    }
}

/// How an attempt ends.
enum Ended {
    Pushed(Pushed),
    /// The registry has not these.
    Missing(Vec<Digest>),
}

/// What has gone of one blob.
struct Sent {
    told: Arc<Show>,
    size: u64,
    bytes: Mutex<u64>,
}

impl Sent {
    /// From the beginning.
    fn begin(&self) {
        let before = std::mem::take(&mut *self.bytes.lock());
        self.told.change(|tally| tally.bytes = tally.bytes.saturating_sub(before));
    }

    fn add(&self, bytes: u64) {
        *self.bytes.lock() += bytes;
        self.told.change(|tally| tally.bytes += bytes);
    }

    /// It was for nothing.
    fn take_back(&self) {
        self.begin();
        self.told.change(|tally| tally.bytes_total = tally.bytes_total.saturating_sub(self.size));
    }
}

fn wait_after(error: &RegistryError, backoff: &config::Backoff) -> Duration {
    match error.retry_after() {
        Some(after) => after + (after / 4 + backoff.first).mul_f64(random::dice().f64()),
        None => jittered(backoff.first, backoff.longest, 1),
    }
}
