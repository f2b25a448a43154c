//! A folder for what is on its way in: bytes are written, hashed and thrown away here, and nobody waits for anybody.
//!
//! Each writer has a folder of its own under `staging/`, and a lock on that folder for as long as it lives. A folder whose lock can be taken is what a
//! dead writer left, however young it is and whatever process has its pid now ([`sweep_dead`]). Between its making and its locking a folder looks dead:
//! so whoever locked one looks whether it is still there, and makes another if not. One that has a name of its own is a turn, too: nobody else has it
//! meanwhile ([`Store::stage_for`]).
//!
//! A finished blob has its digest for a name, which *pins* it: a sweep of the store leaves alone whatever has its name in a staging folder. A blob that
//! the store has already is pinned by one more name for the same file ([`Staging::adopt`]), so nothing can take it away from whoever counts on it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::Store;
use super::disk::Disk;
use super::error::StoreError;
use super::layout::{Descriptor, Digest, LONGEST};
use crate::image::stages::Stage;
use crate::lock::is_at;
use crate::random;

/// Somebody sweeps what was made a moment ago, each time: it does not happen.
const TRIES: u32 = 100;
/// At a time.
const CHUNK: usize = 1 << 20;

/// A folder under `staging/` that is ours. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) disk: Disk,
    /// Of the folder itself.
    _lock: File,
}

impl Folder {
    pub(super) fn make(staging: &Path, disk: &Disk) -> Result<Self, StoreError> {
        for _ in 0..TRIES {
            let path = staging.join(random::uuid().simple().to_string());
            match disk.make_folder(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(|source| StoreError::io("make", &path, source))?,
            }
            if let Some(lock) = try_lock(&path).map_err(|source| StoreError::io("lock", &path, source))? {
                return Ok(Self { path, disk: disk.clone(), _lock: lock });
            }
        }
        Err(StoreError::io("make a folder in", staging, io::ErrorKind::ResourceBusy.into()))
    }

    /// That of this name; a dead writer's is removed. `None`: somebody lives who has it, or had it until now.
    fn make_named(staging: &Path, name: &str, disk: &Disk) -> Result<Option<Self>, StoreError> {
        let path = staging.join(name);
        let lock = |path: &Path| try_lock(path).map_err(|source| StoreError::io("lock", path, source));
        match disk.make_folder(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if let Some(_dead) = lock(&path)? {
                    disk.remove_folder(&path)?;
                }
                return Ok(None);
            }
            made => made.map_err(|source| StoreError::io("make", &path, source))?,
        }
        Ok(lock(&path)?.map(|lock| Self { path, disk: disk.clone(), _lock: lock }))
    }

    pub(super) fn at(&self, digest: &Digest) -> PathBuf {
        self.path.join(digest.hex())
    }

    /// A file of ours with these bytes, which outlives a power cut once it has a name that does.
    pub(super) fn write_synced(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let path = self.path.join(name);
        let file = self.disk.make_file(&path)?;
        self.disk.write(&path, &file, bytes)?;
        self.disk.sync_file(&path)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = self.disk.remove_folder(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a staging folder stays until the next start");
        }
    }
}

/// `None`: somebody else has it, or it is gone.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let folder = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    Ok(is_at(&folder, path)?.then_some(folder))
}

/// Removes what dead writers left; answers how many there were.
pub(super) fn sweep_dead(staging: &Path, disk: &Disk) -> Result<u32, StoreError> {
    let mut dead = 0;
    for entry in std::fs::read_dir(staging).map_err(|source| StoreError::io("list", staging, source))? {
        let path = entry.map_err(|source| StoreError::io("list", staging, source))?.path();
        if let Some(lock) = try_lock(&path).map_err(|source| StoreError::io("lock", &path, source))? {
            disk.remove_folder(&path)?;
            drop(lock);
            dead += 1;
        }
    }
    Ok(dead)
}

/// What is known of a blob before it comes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Any other bytes are thrown away.
    pub digest: Option<Digest>,
    /// Nothing beyond is written.
    pub size: Option<u64>,
}

impl From<&Descriptor> for Expected {
    fn from(descriptor: &Descriptor) -> Self {
        Self { digest: Some(descriptor.digest.clone()), size: Some(descriptor.size) }
    }
}

/// One image, or some that belong together, on the way in. Dropped without a commit it leaves nothing.
#[derive(Debug)]
pub struct Staging {
    pub(super) store: Store,
    pub(super) folder: Arc<Folder>,
    next: AtomicU32,
}

impl Staging {
    pub(super) fn new(store: &Store) -> Result<Self, StoreError> {
        Ok(Self::within(store, Folder::make(&store.staging(), &store.0.disk)?))
    }

    pub(super) fn named(store: &Store, name: &str) -> Result<Option<Self>, StoreError> {
        let folder = Folder::make_named(&store.staging(), name, &store.0.disk)?;
        Ok(folder.map(|folder| Self::within(store, folder)))
    }

    fn within(store: &Store, folder: Folder) -> Self {
        Self { store: store.clone(), folder: Arc::new(folder), next: AtomicU32::new(0) }
    }

    /// To write a blob; several may be written at once. `what` names it in errors.
    ///
    /// # Errors
    /// The system's.
    pub fn blob(&self, what: impl Into<String>, expected: Expected) -> Result<BlobWriter, StoreError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path.join(format!("part-{number}"));
        let file = self.folder.disk.make_file(&path)?;
        let folder = Arc::clone(&self.folder);
        Ok(BlobWriter {
            folder,
            file,
            path,
            hash: Sha256::new(),
            size: 0,
            beginning: Vec::new(),
            expected,
            what: what.into(),
            finished: false,
            began: Instant::now(),
        })
    }

    /// A blob of these bytes, which are here.
    ///
    /// # Errors
    /// As [`BlobWriter`]'s.
    pub fn put(&self, what: &str, media_type: &str, bytes: &[u8]) -> Result<Descriptor, StoreError> {
        let mut blob = self.blob(what, Expected::default())?;
        blob.write(bytes)?;
        let written = blob.finish()?;
        Ok(Descriptor::new(media_type, written.digest, written.size))
    }

    /// Takes a blob that the store has, or that came before; `false`: it has to be fetched. It is hashed again, so a rotten one does not get into one more
    /// image, and is replaced by whoever fetches it.
    ///
    /// # Errors
    /// The system's.
    pub fn adopt(&self, digest: &Digest) -> Result<bool, StoreError> {
        if self.size_of(digest)?.is_some() {
            return Ok(true);
        }
        let (from, to) = (self.store.blob_path(digest), self.folder.at(digest));
        match self.folder.disk.link(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(true),
            Err(error) => return Err(StoreError::io("link", &from, error)),
        }
        if hash_file(&to)?.0 == *digest {
            return Ok(true);
        }
        tracing::warn!(blob = %from.display(), "a blob of the store is broken and will be fetched anew");
        self.folder.disk.remove_file(&to).map_err(|source| StoreError::io("remove", &to, source))?;
        Ok(false)
    }

    /// All of a blob that is staged.
    pub(super) fn read(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        read_all(&self.folder.at(digest))
    }

    /// How many bytes a staged blob has; `None`: there is none.
    pub(super) fn size_of(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.folder.at(digest);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::io("look at", &path, source)),
        }
    }
}

/// A blob that is there in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Its first few bytes.
    pub(super) beginning: Vec<u8>,
}

/// A blob on its way. Dropped before its end it leaves nothing. It keeps its staging folder until then.
#[derive(Debug)]
pub struct BlobWriter {
    folder: Arc<Folder>,
    file: File,
    path: PathBuf,
    hash: Sha256,
    size: u64,
    beginning: Vec<u8>,
    expected: Expected,
    what: String,
    finished: bool,
    began: Instant,
}

impl BlobWriter {
    /// The next bytes.
    ///
    /// # Errors
    /// The disk is full; there are more bytes than were announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let size = self.size.saturating_add(bytes.len() as u64);
        if let Some(expected) = self.expected.size.filter(|&expected| size > expected) {
            return Err(StoreError::Size { what: self.what.clone(), expected, actual: size });
        }
        self.folder.disk.write(&self.path, &self.file, bytes)?;
        self.hash.update(bytes);
        self.size = size;
        let missing = 4_usize.saturating_sub(self.beginning.len()).min(bytes.len());
        self.beginning.extend_from_slice(&bytes[..missing]);
        Ok(())
    }

    /// All that comes from there.
    ///
    /// # Errors
    /// As [`BlobWriter::write`]; [`StoreError::Source`] when it cannot be read.
    pub fn write_all_of(&mut self, mut source: impl Read) -> Result<(), StoreError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.write(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::Source(error)),
            }
        }
    }

    /// The end: from here on the blob is pinned by its name.
    ///
    /// # Errors
    /// It is not what was expected, and is thrown away.
    pub fn finish(mut self) -> Result<Written, StoreError> {
        if let Some(expected) = self.expected.size.filter(|&expected| self.size != expected) {
            return Err(StoreError::Size { what: self.what.clone(), expected, actual: self.size });
        }
        let digest = Digest::of_hash(std::mem::take(&mut self.hash));
        if let Some(expected) = self.expected.digest.take().filter(|expected| *expected != digest) {
            return Err(StoreError::Digest { what: self.what.clone(), expected, actual: digest });
        }
        self.folder.disk.rename(&self.path, &self.folder.at(&digest))?;
        self.finished = true;
        Ok(Written { digest, size: self.size, beginning: std::mem::take(&mut self.beginning) })
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        Stage::Stage.took(self.began, self.finished);
        if !self.finished {
            // It goes with its folder at the latest.
            let _ = self.folder.disk.remove_file(&self.path);
        }
    }
}

/// Digest and size of a file's contents.
pub(super) fn hash_file(path: &Path) -> Result<(Digest, u64), StoreError> {
    let failed = |source| StoreError::io("read", path, source);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((Digest::of_hash(hash), size)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A small file in full.
pub(super) fn read_all(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|source| StoreError::io("read", path, source))?;
    if bytes.len() as u64 > LONGEST {
        return Err(StoreError::Broken { path: path.to_owned(), why: format!("it is longer than {LONGEST} bytes") });
    }
    Ok(bytes)
}
