//! What is pushed: an image that is here, in the host's own store, or taken there from the engine.
//!
//! Where the host has no store, and for an image without a name of its own (which nobody could remove from the store again), that is a store for this one push, in
//! `[images] spool`, which goes with it; what a killed daemon left of one is removed by the next.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use super::{Inner, not_pushed};
use crate::engine::{Image, ImageId};
use crate::image::cache::{Failure, Kind};
use crate::image::host_store::blocking;
use crate::image::reference::{BadReference, Reference};
use crate::image::store::{Manifest, Options, Store, StoreError, StoredImage};
use crate::image::transfer::{self, TransferError};

/// Of the folders of stores for one push.
const PREFIX: &str = "nspool-push-";

/// What names an image on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A name that it has here.
    Named(Reference),
    /// `sha256:` and 64 hexadecimal digits.
    Id(String),
}

impl Source {
    /// A reference, or an id with or without `sha256:`.
    ///
    /// # Errors
    /// [`BadReference`]: it is neither.
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        if bare.len() == 64 && bare.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Ok(Self::Id(format!("sha256:{bare}")));
        }
        Reference::parse(text).map(Self::Named)
    }

    fn as_str(&self) -> &str {
        match self {
            Self::Named(reference) => reference.as_str(),
            Self::Id(id) => id,
        }
    }
}

/// An image that may be pushed.
pub(super) struct Found {
    /// The engine's, or the store's where the engine has it not.
    pub(super) id: ImageId,
    /// By which it is kept, should it come into the store now.
    name: Option<Reference>,
    in_engine: bool,
}

pub(super) async fn look(pusher: &Inner, source: &Source) -> Result<Found, Failure> {
    if let Some(image) = pusher.engine.image(source.as_str()).await? {
        return allowed(pusher, source, image);
    }
    let wanted = source.as_str().to_owned();
    let stored = pusher.cache.store().look::<_, TransferError>(move |store| store.image(&wanted));
    match stored.await.map_err(not_pushed)?.flatten() {
        Some(image) => Ok(Found { id: image.id.as_str().into(), name: None, in_engine: false }),
        None => Err(Failure::new(Kind::Unknown, &format!("{} is neither in the engine nor in the host's own store", source.as_str()))),
    }
}

fn allowed(pusher: &Inner, source: &Source, image: Image) -> Result<Found, Failure> {
    if !pusher.cache.is_everybodys(&image) {
        let why = format!("{} came here by a caller's credentials, and is its own: it is not pushed", source.as_str());
        return Err(Failure::new(Kind::Private, &why));
    }
    let name = match source {
        Source::Named(reference) => Some(reference.clone()).filter(|reference| reference.tagged().is_some()),
        Source::Id(_) => None,
    };
    Ok(Found { id: image.id, name, in_engine: true })
}

/// An image with all its blobs in files.
pub(super) struct Stored {
    pub(super) store: Store,
    pub(super) image: StoredImage,
    pub(super) manifest: Manifest,
    /// As it is sent.
    pub(super) bytes: Vec<u8>,
    /// Goes after the last use.
    _temporary: Option<Temporary>,
}

impl Stored {
    pub(super) async fn have(pusher: &Inner, found: &Found) -> Result<Self, Failure> {
        // As the store writes it; podman leaves the kind of digest out.
        let id = format!("sha256:{}", found.id.bare());
        let known = pusher.cache.store().look::<_, TransferError>(move |store| Ok((store.image(&id)?, store)));
        let (store, temporary) = match (known.await.map_err(not_pushed)?, &found.name) {
            (Some((Some(image), store)), _) => return Self::read(store, image, None).await,
            _ if !found.in_engine => return Err(Failure::new(Kind::Unknown, &format!("{} has just left the store", found.id))),
            (Some((None, store)), Some(_)) => (store, None),
            (Some((None, _)), None) | (None, _) => {
                let (spool, options) = (pusher.settings.spool.clone(), pusher.cache.store().options());
                let made = blocking::<_, TransferError>(move || Temporary::make(&spool, options));
                let (store, temporary) = made.await.map_err(not_pushed)?;
                (store, Some(temporary))
            }
        };
        // By its id: the name may be another's by now.
        let saved = transfer::save_as(&*pusher.engine, &store, found.id.as_str(), found.name.as_ref()).await.map_err(not_pushed)?;
        match <[StoredImage; 1]>::try_from(saved) {
            Ok([image]) => Self::read(store, image, temporary).await,
            Err(saved) => Err(Failure::new(Kind::PushFailed, &format!("the engine gave {} images for {}", saved.len(), found.id))),
        }
    }

    async fn read(store: Store, image: StoredImage, temporary: Option<Temporary>) -> Result<Self, Failure> {
        let read = blocking::<_, TransferError>(move || {
            let bytes = store.manifest_bytes(&image.manifest)?;
            let manifest = store.manifest(&image.manifest)?;
            Ok(Self { store, image, manifest, bytes, _temporary: temporary })
        });
        read.await.map_err(not_pushed)
    }
}

/// A store's folder that goes when this is dropped.
struct Temporary {
    _folder: TempDir,
    /// Says that its owner lives.
    _lock: File,
}

impl Temporary {
    fn make(spool: &Path, options: Options) -> Result<(Store, Self), StoreError> {
        let failed = |source| StoreError::Io { operation: "make a store in", path: spool.to_owned(), source };
        sweep(spool);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(spool).map_err(failed)?;
        let lock = File::open(folder.path()).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
        let store = Store::open(folder.path(), options)?;
        Ok((store, Self { _folder: folder, _lock: lock }))
    }
}

/// What dead ones left, as far as it is ours: the spool is open to others.
fn sweep(spool: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(spool).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own);
        if is_ours && let Err(error) = remove_dead(&entry.path()) {
            tracing::warn!(folder = %entry.path().display(), %error, "what a dead push left stays");
        }
    }
}

fn remove_dead(folder: &Path) -> io::Result<()> {
    let lock = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(()),
        Err(errno) => Err(errno.into()),
        Ok(()) => std::fs::remove_dir_all(folder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::store::INDEX;

    #[test]
    fn a_source_is_a_reference_or_an_id() {
        let hex = "ab".repeat(32);
        let id = format!("sha256:{hex}");
        assert_eq!(Source::parse(&id), Ok(Source::Id(id.clone())));
        assert_eq!(Source::parse(&hex), Ok(Source::Id(id)));
        assert_eq!(Source::parse("a/b"), Ok(Source::Named(Reference::parse("a/b:latest").unwrap())));
        for bad in ["", "sha256:ab", "A B"] {
            assert!(Source::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_dead_push_left_goes_and_what_lives_stays() {
        let spool = tempfile::tempdir().unwrap();
        let dead = spool.path().join(format!("{PREFIX}dead"));
        std::fs::create_dir_all(dead.join("blobs")).unwrap();
        let others = spool.path().join("nspool-other");
        std::fs::create_dir(&others).unwrap();
        let (living, _kept) = Temporary::make(spool.path(), Options::default()).unwrap();
        assert!(!dead.exists() && others.exists());
        let (_store, next) = Temporary::make(spool.path(), Options::default()).unwrap();
        assert!(living.root().join(INDEX).exists());
        drop(next);
        assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 2);
    }
}
