//! From a registry into the store: what a reference stands for there, with all its blobs, known ones left out.
//!
//! ```text
//! manifest ─ an index? ─► that for this machine ─► its blobs, some at once ─► hashed while they are written ─► committed under the reference
//! ```
//!
//! What it promises: of all who want the same reference at one moment, one asks the registry, over all daemons that share the store, and the others have what it
//! brought; nothing is visible before all of it is there and is what it is said to be; a blob that the store has is not asked for; one that comes
//! with another digest or size than it should is thrown away, named, and asked for once more. What the registry had under the reference is kept with
//! it ([`StoredImage::origin`]), so that one HEAD can tell whether it is still that. What had the name before, and no other name, is swept.
//!
//! What can go wrong is in [`DownloadError`]: the registry, the store, or what came. Dropping a download cuts it off and leaves nothing. It
//! deliberately tries no registry twice, knows no engine, and keeps no progress from one attempt to the next but what was committed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use super::host_store::{HostStore, blocking};
use super::pull::CredentialSource;
use super::reference::Reference;
use super::registry::{Access, Client, RegistryError, Repository};
use super::stages::Stage;
use super::store::{Commit, Contents, Descriptor, Digest, Expected, Staging, Store, StoreError, StoredImage, contents};
use crate::causes::with_causes;
use crate::engine::{LayerStage, PullStep};

/// Blobs of one image that are on their way at once.
const AT_ONCE: usize = 3;
/// Between two looks whether another process is done: a lock of a file cannot be waited for but by a thread that nobody can cut off.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often it is told how far a blob is.
const PACE: Duration = Duration::from_millis(100);

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The registry's words.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store's, or of what came.
    #[error("{}", with_causes(.0))]
    Store(StoreError),
    /// The thread that writes ended early: a bug, or the process ends.
    #[error("the work on the image store ended early: {0}")]
    CutOff(#[from] tokio::task::JoinError),
}

impl From<StoreError> for DownloadError {
    fn from(error: StoreError) -> Self {
        // What was to be written could not be read: the registry's doing.
        let StoreError::Source(source) = error else { return Self::Store(error) };
        source.downcast::<RegistryError>().map_or_else(|other| Self::Store(StoreError::Source(other)), Self::Registry)
    }
}

/// Brings what the registry has under the reference into the store, under that name. `told` hears of each layer.
///
/// # Errors
/// [`DownloadError`]; the store has the images that it had.
pub async fn download(
    repository: &Repository,
    store: &Store,
    reference: &Reference,
    told: &(dyn Fn(PullStep) + Send + Sync),
) -> Result<StoredImage, DownloadError> {
    let before = stored(store, reference).await;
    let (staging, now) = turn(store, reference).await?;
    match now {
        Some(now) if before.as_ref() != Some(&now) => Ok(now),
        Some(_) | None => download_into(staging, repository, store, reference, told).await,
    }
}

/// What the store has under that name. One that is broken is none: what comes mends it.
async fn stored(store: &Store, reference: &Reference) -> Option<StoredImage> {
    let (open, wanted) = (store.clone(), reference.clone());
    let found = blocking::<_, DownloadError>(move || open.image(wanted.as_str())).await;
    found.unwrap_or_else(|error| {
        tracing::warn!(%reference, %error, "an image of the store cannot be read, and is fetched anew");
        None
    })
}

/// The only one at this reference's, and what the store has then.
async fn turn(store: &Store, reference: &Reference) -> Result<(Staging, Option<StoredImage>), DownloadError> {
    let mut waits = false;
    loop {
        let (open, wanted) = (store.clone(), reference.clone());
        if let Some(staging) = blocking::<_, DownloadError>(move || open.stage_for(&wanted)).await? {
            return Ok((staging, stored(store, reference).await));
        }
        if !std::mem::replace(&mut waits, true) {
            tracing::info!(%reference, "another daemon fetches it into the store, and is waited for");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn download_into(
    staging: Staging,
    repository: &Repository,
    store: &Store,
    reference: &Reference,
    told: &(dyn Fn(PullStep) + Send + Sync),
) -> Result<StoredImage, DownloadError> {
    let staging = Arc::new(staging);
    let found = repository.manifest(reference.version()).await?;
    let origin = found.digest.clone();
    let (mut media_type, mut digest, mut bytes) = (found.media_type, found.digest, found.bytes);
    if let Contents::Index { ours } = contents(&media_type, &digest, &bytes)? {
        let own = repository.manifest(ours.digest.as_str()).await?;
        (media_type, digest, bytes) = (ours.media_type, own.digest, own.bytes);
    }
    let Contents::Image { parts } = contents(&media_type, &digest, &bytes)? else {
        return Err(DownloadError::Store(StoreError::nested(&digest)));
    };
    let put = Arc::clone(&staging);
    let manifest = blocking::<_, DownloadError>(move || put.put("the manifest", &media_type, &bytes)).await?;
    let cut_off = CancellationToken::new();
    let _at_the_end = cut_off.clone().drop_guard();
    let part = |part: Descriptor| Part { repository, staging: &staging, cut_off: &cut_off, told, part };
    let fetched = stream::iter(parts).map(|descriptor| part(descriptor).fetch()).buffer_unordered(AT_ONCE);
    fetched.try_collect::<()>().await?;
    let commit = Commit { manifest, names: vec![reference.clone()], origin: Some(origin) };
    let stored = blocking::<_, DownloadError>(move || staging.commit(&[commit])).await?;
    let swept = store.clone();
    // What had the name before may be nobody's now.
    match blocking::<_, DownloadError>(move || swept.sweep()).await {
        Ok(swept) if swept.blobs > 0 => {
            tracing::info!(%reference, blobs = swept.blobs, bytes = swept.bytes, "what the image was before is gone")
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%reference, %error, "what the image was before stays in the store"),
    }
    stored.into_iter().next().ok_or_else(|| DownloadError::Store(StoreError::nested(&digest)))
}

/// The same into the host's own store, which is begun if need be, by what `source` has for the registry; without credentials when they cannot be had.
/// If the registry then says no, both are told.
///
/// # Errors
/// [`DownloadError`].
pub async fn by_source(
    client: &Client,
    host: &HostStore,
    reference: &Reference,
    source: &CredentialSource,
    told: &(dyn Fn(PullStep) + Send + Sync),
) -> Result<Store, DownloadError> {
    let store = host.begun::<DownloadError>().await?;
    let found = source.lookup(reference.as_str()).await;
    if let Err(error) = &found {
        tracing::warn!(%reference, %error, "no credentials, fetching without");
    }
    let repository = client.repository(reference, found.as_ref().ok().and_then(Option::as_ref), Access::Pull);
    match (Stage::Pull.of(download(&repository, &store, reference, told)).await, found) {
        (Err(DownloadError::Registry(RegistryError::Denied { host, words })), Err(lookup)) => {
            let words = format!("{words} (asked without credentials: {lookup})");
            Err(RegistryError::Denied { host, words }.into())
        }
        (downloaded, _) => downloaded.map(|_| store),
    }
}

/// One blob on its way.
struct Part<'a> {
    repository: &'a Repository,
    staging: &'a Arc<Staging>,
    cut_off: &'a CancellationToken,
    told: &'a (dyn Fn(PullStep) + Send + Sync),
    part: Descriptor,
}

impl Part<'_> {
    async fn fetch(self) -> Result<(), DownloadError> {
        self.tell(LayerStage::Waiting);
        for is_last in [false, true] {
            let (staging, digest) = (Arc::clone(self.staging), self.part.digest.clone());
            if blocking::<_, DownloadError>(move || staging.adopt(&digest)).await? {
                break;
            }
            match self.write().await {
                Ok(()) => break,
                Err(DownloadError::Store(error @ (StoreError::Digest { .. } | StoreError::Size { .. }))) if !is_last => {
                    tracing::warn!(%error, "a blob came that is not what it should be, and is asked for once more");
                }
                Err(error) => return Err(error),
            }
        }
        self.tell(LayerStage::Done);
        Ok(())
    }

    async fn write(&self) -> Result<(), DownloadError> {
        let blob = self.repository.blob(&self.part.digest).await?;
        let what = format!("{} of {}", self.part.digest, self.repository.host());
        let (staging, expected) = (Arc::clone(self.staging), Expected::from(&self.part));
        // A thread writes; what it reads ends with this, whatever becomes of the thread.
        let came = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&came);
        let pieces = blob.into_stream().map_err(io::Error::other).inspect_ok(move |piece| {
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        });
        let reader = SyncIoBridge::new(StreamReader::new(pieces.take_until(self.cut_off.clone().cancelled_owned()).boxed()));
        let writing = blocking(move || {
            let mut blob = staging.blob(what, expected)?;
            blob.write_all_of(reader)?;
            blob.finish().map(drop)
        });
        tokio::pin!(writing);
        let mut pace = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                biased;
                written = &mut writing => return written,
                _ = pace.tick() => {
                    let current = came.load(Ordering::Relaxed);
                    self.tell(LayerStage::Downloading { current, total: self.part.size });
                }
            }
        }
    }

    fn tell(&self, stage: LayerStage) {
        let layer = self.part.digest.hex().chars().take(12).collect();
        (self.told)(PullStep { layer, stage });
    }
}

/// What the registry had under that name when the store's image of that id was downloaded; `None`: it was not, or it is another one.
///
/// # Errors
/// [`DownloadError::Store`].
pub async fn origin(host: &HostStore, reference: &Reference, id: &str) -> Result<Option<Digest>, DownloadError> {
    let (reference, id) = (reference.clone(), id.to_owned());
    let look =
        move |store: Store| Ok(store.image(reference.as_str())?.filter(|image| image.id.as_str() == id).and_then(|image| image.origin));
    host.look(look).await.map(Option::flatten)
}
