//! Where the bytes are: a file of ours alone, or in tests something that fails as a disk does.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;

/// Bytes that outlive the process. Every call is short: the state folder is in memory, or on a disk that is.
pub trait Store: Send {
    /// All of them from there on.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, from: u64) -> io::Result<Vec<u8>>;
    /// Writes at `at`, which is the end. What it wrote after an error is not known.
    ///
    /// # Errors
    /// The system's; a short write as well.
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts off what is beyond.
    ///
    /// # Errors
    /// The system's.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Sees that bytes up to there can be written, come what may. Does not change the length.
    ///
    /// # Errors
    /// The system's, `StorageFull` for instance.
    fn reserve(&mut self, length: u64) -> io::Result<()>;
    /// Other contents, all at once: whoever is killed meanwhile leaves the old ones or the new ones.
    ///
    /// # Errors
    /// The system's; the old ones are there still.
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Puts a copy of the contents beside it, for people. Answers where.
    ///
    /// # Errors
    /// The system's.
    fn keep_aside(&mut self) -> io::Result<String>;
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it.
    #[error("another nspool uses the state folder {}; each pool needs one of its own ([state] dir)", .0.display())]
    Taken(PathBuf),
    /// The folder or a file in it.
    #[error("the ledger {} cannot be opened", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A file in the state folder, under a lock that the kernel lets go when the process ends.
#[derive(Debug)]
pub struct FileStore {
    path: PathBuf,
    file: File,
    /// On a file of its own, because the ledger itself is replaced.
    _lock: File,
}

/// In the state folder.
pub(super) const NAME: &str = "ledger";

impl FileStore {
    /// Opens the ledger of this folder, which nobody else may use meanwhile. Folder 0700, files 0600: they hold tokens.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(NAME);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io(folder))?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(io(folder))?;
        let lock_path = folder.join("lock");
        let lock = open(&lock_path).map_err(io(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(OpenError::Taken(folder.to_owned())),
            Err(errno) => return Err(io(&lock_path)(errno.into())),
        }
        let file = open(&path).map_err(io(&path))?;
        Ok(Self { path, file, _lock: lock })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        self.path.with_file_name(format!("{NAME}.{suffix}"))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

impl Store for FileStore {
    fn read(&self, from: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // A cursor of its own: the file's is shared, and nobody else's business.
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn reserve(&mut self, length: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, length) {
            // A file system without reservations: a full disk is then noticed by the write.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let next = self.beside("next");
        let file = open(&next)?;
        file.set_len(0)?;
        file.write_all_at(bytes, 0)?;
        std::fs::rename(&next, &self.path)?;
        self.file = file;
        Ok(())
    }

    fn keep_aside(&mut self) -> io::Result<String> {
        let aside = self.beside("broken");
        std::fs::copy(&self.path, &aside)?;
        Ok(aside.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn it_is_ours_alone_and_its_reserve_is_not_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pool");
        let mut store = FileStore::open(&folder).unwrap();
        assert!(matches!(FileStore::open(&folder), Err(OpenError::Taken(_))));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
        store.reserve(1 << 20).unwrap();
        store.write(0, b"abc").unwrap();
        assert_eq!(store.read(0).unwrap(), b"abc");
        store.truncate(1).unwrap();
        store.replace(b"other").unwrap();
        store.write(5, b"!").unwrap();
        drop(store);
        let mut store = FileStore::open(&folder).unwrap();
        assert_eq!(store.read(0).unwrap(), b"other!");
        assert_eq!(std::fs::read(store.keep_aside().unwrap()).unwrap(), b"other!");
        assert_eq!(mode(&folder.join("ledger.broken")), 0o600);
    }
}
