//! Between the store and engines: an engine is loaded from the store, and what it has comes into the store.
//!
//! An engine is asked for the image's id, and if it has that, nothing is loaded: its id is the digest of a config, which names all layers. The registry
//! has no part in any of this, so an engine that was wiped is full again without a network, and Docker and podman on one host share what was downloaded
//! once.
//!
//! The store blocks; it runs on threads that may, with a few pieces in between ([`WINDOW`]). What can go wrong is in [`TransferError`]: whose fault it
//! is, the store's or the engine's. It deliberately never retries, and does not know who is loaded when.
//!
//! Docker with containerd's image store has ids of its own: there nothing is skipped.

use std::io::{self, Read};

use futures::stream::{self, StreamExt as _};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::host_store::{HostStore, blocking};
use super::reference::{self, Reference};
use super::stages::Stage;
use super::store::{Store, StoreError, StoredImage};
use crate::engine::{Chunks, Engine, EngineError, Image, ImageId};

/// Pieces between a disk and an engine.
const WINDOW: usize = 4;
const PIECE: usize = 256 << 10;

/// Why an image did not come over.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The store does not have it.
    #[error("{0} is not in the image store")]
    NotStored(Reference),
    /// The store's words.
    #[error("the image store")]
    Store(#[source] StoreError),
    /// The engine's words.
    #[error(transparent)]
    Engine(EngineError),
    /// The engine took the archive, and says that it does not have the image.
    #[error("{0} was loaded, and the engine does not have it")]
    NotThere(Reference),
    /// The thread that reads or writes the store ended early: a bug, or the process ends.
    #[error("the work on the image store ended early")]
    CutOff(#[from] tokio::task::JoinError),
}

impl From<StoreError> for TransferError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<EngineError> for TransferError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// What it took that an engine has an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Nothing.
    Present,
    /// It had the image, and not the name.
    Named,
    /// All of it.
    Loaded,
}

/// An image that an engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// By which containers are created.
    pub id: ImageId,
    /// What it took.
    pub how: How,
}

/// Sees to it that the engine has an image of the store, with that name. Cancel safe: a load that is dropped is cut off, and the engine keeps nothing.
///
/// # Errors
/// [`TransferError`].
pub async fn ensure_loaded(engine: &dyn Engine, store: &Store, reference: &Reference) -> Result<Ensured, TransferError> {
    let (look, wanted) = (store.clone(), reference.clone());
    let stored = blocking::<_, TransferError>(move || look.image(wanted.as_str())).await?;
    let stored = stored.ok_or_else(|| TransferError::NotStored(reference.clone()))?;
    if let Some(present) = engine.image(stored.id.as_str()).await? {
        return name(engine, present, reference).await;
    }
    Stage::Load.of(load(engine, store, stored, reference)).await?;
    match engine.image(reference.as_str()).await? {
        Some(image) => Ok(Ensured { id: image.id, how: How::Loaded }),
        None => Err(TransferError::NotThere(reference.clone())),
    }
}

/// The same from the host's own store, if there is one, and if it has the image; `None` otherwise.
///
/// # Errors
/// [`TransferError`].
pub async fn load_if_stored(engine: &dyn Engine, host: &HostStore, reference: &Reference) -> Result<Option<Ensured>, TransferError> {
    let wanted = reference.clone();
    let found = host.look::<_, TransferError>(move |store| Ok(store.image(wanted.as_str())?.map(|_| store)));
    let Some(store) = found.await?.flatten() else { return Ok(None) };
    ensure_loaded(engine, &store, reference).await.map(Some)
}

async fn name(engine: &dyn Engine, image: Image, reference: &Reference) -> Result<Ensured, TransferError> {
    let is_named = image.tags.iter().chain(&image.digests).any(|name| reference::is_same(name, reference.as_str()));
    // By digest it can only be pulled.
    let Some(tag) = reference.tag().filter(|_| !is_named) else { return Ok(Ensured { id: image.id, how: How::Present }) };
    engine.tag_image(&image.id, reference.name(), tag).await?;
    Ok(Ensured { id: image.id, how: How::Named })
}

async fn load(engine: &dyn Engine, store: &Store, stored: StoredImage, reference: &Reference) -> Result<(), TransferError> {
    let (open, names) = (store.clone(), vec![reference.to_string()]);
    let export = blocking::<_, TransferError>(move || open.export(&stored, &names)).await?;
    Ok(engine.load_image(crate::engine::ImageArchive::Chunks(chunks(export))).await?)
}

/// Takes an image of the engine into the store, as the engine names it (by id: without a name).
///
/// # Errors
/// [`TransferError`].
pub async fn save(engine: &dyn Engine, store: &Store, reference: &str) -> Result<Vec<StoredImage>, TransferError> {
    save_as(engine, store, reference, None).await
}

/// The same; with `name` that is its only name in the store.
///
/// # Errors
/// [`TransferError`].
pub async fn save_as(
    engine: &dyn Engine,
    store: &Store,
    reference: &str,
    name: Option<&Reference>,
) -> Result<Vec<StoredImage>, TransferError> {
    let work = async {
        let reader = SyncIoBridge::new(StreamReader::new(engine.save_image(reference).await?));
        let (store, name) = (store.clone(), name.cloned());
        blocking(move || store.import_tar(reader, name.as_ref())).await
    };
    Stage::Save.of(work).await
}

/// What comes from there, read by a thread that ends with the stream.
fn chunks(mut source: impl Read + Send + 'static) -> Chunks {
    let (tell, told) = mpsc::channel(WINDOW);
    let reading = tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = match source.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(piece.into())
                }
                Err(error) => Err(error),
            };
            let is_last = read.is_err();
            // Nobody listens: the load was given up.
            if tell.blocking_send(read).is_err() || is_last {
                return;
            }
        }
    });
    stream::unfold((told, Some(reading)), |(mut told, reading)| async move {
        match (told.recv().await, reading) {
            (Some(piece), reading) => Some((piece, (told, reading))),
            // An archive that ends without its end is no archive.
            (None, Some(reading)) => reading.await.err().map(|ended| (Err(io::Error::other(ended)), (told, None))),
            (None, None) => None,
        }
    })
    .boxed()
}
