//! What the store does to the disk, one step at a time.
//!
//! Every change that the store makes goes through here, and nothing else of it changes a file: so a test can end the process before any step, let any
//! step fail, or write all of them down and work out what a power cut would have left ([`Steps`]). In production nobody is told.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use super::error::StoreError;

/// One change of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A new folder.
    MakeFolder(&'a Path),
    /// A new file, empty; one of that name is emptied.
    MakeFile(&'a Path),
    /// Some bytes at the end of a file.
    Write(&'a Path),
    /// What was written to a file outlives a power cut.
    SyncFile(&'a Path),
    /// The names in a folder do.
    SyncFolder(&'a Path),
    /// One more name for a file.
    Link {
        /// A name that it has.
        from: &'a Path,
        /// The new one.
        to: &'a Path,
    },
    /// Another name for a file, in place of whatever had it.
    Rename {
        /// The old one.
        from: &'a Path,
        /// The new one.
        to: &'a Path,
    },
    /// A name less.
    RemoveFile(&'a Path),
    /// A folder less; it is empty.
    RemoveFolder(&'a Path),
}

/// Hears of each step before it is done: for tests.
pub trait Steps: fmt::Debug + Send + Sync {
    /// An error is taken for the step's own, which is then not done.
    ///
    /// # Errors
    /// Those that a test wants to see.
    fn before(&self, step: Step<'_>) -> io::Result<()>;
}

/// Does the steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(pub(super) Option<Arc<dyn Steps>>);

impl Disk {
    fn step(&self, step: Step<'_>, done: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if let Some(steps) = &self.0 {
            steps.before(step)?;
        }
        done()
    }

    /// For root alone: images may be nobody else's to read.
    pub(super) fn make_folder(&self, path: &Path) -> io::Result<()> {
        self.step(Step::MakeFolder(path), || DirBuilder::new().mode(0o700).create(path))
    }

    pub(super) fn make_file(&self, path: &Path) -> Result<File, StoreError> {
        let mut file = None;
        let made = self.step(Step::MakeFile(path), || {
            file = Some(OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(path)?);
            Ok(())
        });
        let made = made.and_then(|()| file.ok_or_else(|| io::ErrorKind::NotFound.into()));
        made.map_err(|source| StoreError::io("make", path, source))
    }

    pub(super) fn write(&self, path: &Path, mut file: &File, bytes: &[u8]) -> Result<(), StoreError> {
        self.step(Step::Write(path), || file.write_all(bytes)).map_err(|source| StoreError::io("write", path, source))
    }

    /// Whoever wrote it.
    pub(super) fn sync_file(&self, path: &Path) -> Result<(), StoreError> {
        self.step(Step::SyncFile(path), || File::open(path)?.sync_all()).map_err(|source| StoreError::io("sync", path, source))
    }

    pub(super) fn sync_folder(&self, path: &Path) -> Result<(), StoreError> {
        self.step(Step::SyncFolder(path), || File::open(path)?.sync_all()).map_err(|source| StoreError::io("sync", path, source))
    }

    pub(super) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Link { from, to }, || std::fs::hard_link(from, to))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        self.step(Step::Rename { from, to }, || std::fs::rename(from, to)).map_err(|source| StoreError::io("rename", from, source))
    }

    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(Step::RemoveFile(path), || std::fs::remove_file(path))
    }

    /// With the files in it; it has no folders.
    pub(super) fn remove_folder(&self, path: &Path) -> Result<(), StoreError> {
        let removed = || -> io::Result<()> {
            for entry in std::fs::read_dir(path)? {
                self.remove_file(&entry?.path())?;
            }
            self.step(Step::RemoveFolder(path), || std::fs::remove_dir(path))
        };
        removed().map_err(|source| StoreError::io("remove", path, source))
    }

    /// A folder that is there after a power cut as well, with all above it.
    pub(super) fn have_folder(&self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.have_folder(above)?;
        match self.make_folder(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(StoreError::io("make", path, error)),
            // Made by another at the same time: it has not synced it yet, perhaps.
            Ok(()) | Err(_) => self.sync_folder(above),
        }
    }
}
