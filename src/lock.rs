//! One daemon per pool and engine: a lock named after both, wherever the state folder is.
//!
//! An flock on a file, held for the daemon's life and let go by the kernel when it ends, however it ends: that, and no label, is the proof that
//! a buddy's owner is dead (I3).

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// Where the locks are on a host.
pub const LOCKS: &str = "/run/nspool/locks";

/// Where this process has its locks: [`LOCKS`], unless that is closed to it, as to a user who runs a pool of their own in a user namespace: then it is in
/// their `XDG_RUNTIME_DIR`. Nobody else's pool is theirs to touch, so nobody else has to see the lock.
#[must_use]
pub fn folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    runtime.filter(|_| is_closed(Path::new(LOCKS))).map_or_else(|| LOCKS.into(), |folder| folder.join("nspool/locks"))
}

/// By what is there of it.
fn is_closed(folder: &Path) -> bool {
    let there = folder.ancestors().find(|folder| folder.exists());
    let refused = |folder: &Path| accessat(CWD, folder, Access::WRITE_OK, AtFlags::EACCESS).is_err();
    there.is_some_and(refused)
}

/// Whether no lock of that pool is held, whichever engine's it is.
///
/// # Errors
/// [`LockError::Taken`] when one is; one of them cannot be looked at.
pub fn is_free(locks: &Path, pool: &str) -> Result<(), LockError> {
    let of_pool = |name: &str| {
        let engine = name.strip_prefix(pool).and_then(|name| name.strip_prefix('-')).and_then(|name| name.strip_suffix(".lock"));
        engine.is_some_and(|engine| engine.len() == ENGINE_DIGITS && engine.bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    for entry in std::fs::read_dir(locks).into_iter().flatten().flatten().filter(|entry| of_pool(&entry.file_name().to_string_lossy())) {
        let path = entry.path();
        let io = |source| LockError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            // Discarded meanwhile: its owner has ended.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened.map_err(io)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LockError::Taken { pool: pool.to_owned(), path }),
            Err(errno) => return Err(io(errno.into())),
        }
    }
    Ok(())
}

/// Of the hash that stands for an engine.
const ENGINE_DIGITS: usize = 16;

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("another nspool runs the pool {pool:?} (lock {})", path.display())]
    Taken {
        /// The pool.
        pool: String,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be made.
    #[error("the lock {} cannot be taken", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The held lock; dropping it lets go.
#[derive(Debug)]
pub struct PoolLock {
    file: File,
    path: PathBuf,
}

impl PoolLock {
    /// Takes the lock of `pool` on the engine with this id, at once or not at all.
    ///
    /// # Errors
    /// [`LockError::Taken`] when somebody has it.
    pub fn take(locks: &Path, engine_id: &str, pool: &str) -> Result<Self, LockError> {
        // An engine's id may hold any character; its hash is a file name.
        let engine: String = Sha256::digest(engine_id).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = locks.join(format!("{pool}-{engine}.lock"));
        let io = |source| LockError::Io { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(locks).map_err(io)?;
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(io)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(LockError::Taken { pool: pool.to_owned(), path }),
                Err(errno) => return Err(io(errno.into())),
            }
            // Between the open and the lock its last owner may have discarded the file: a lock on that keeps nobody out.
            if is_at(&file, &path).map_err(io)? {
                return Ok(Self { file, path });
            }
        }
    }

    /// Lets go, and removes the file: for pools that end for good.
    ///
    /// # Errors
    /// The file could not be removed; the lock is let go all the same.
    pub fn discard(self) -> Result<(), LockError> {
        let removed = std::fs::remove_file(&self.path);
        // Only now: whoever opened the file meanwhile finds that it is not there any more.
        drop(self.file);
        removed.map_err(|source| LockError::Io { path: self.path, source })
    }
}

/// Whether this file is the one that has the name now.
pub(crate) fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pool_on_one_engine_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let locks = folder.path().join("locks");
        let first = PoolLock::take(&locks, "engine/1", "a").unwrap();
        assert!(matches!(PoolLock::take(&locks, "engine/1", "a"), Err(LockError::Taken { .. })));
        let _other_pool = PoolLock::take(&locks, "engine/1", "b").unwrap();
        let _other_engine = PoolLock::take(&locks, "engine/2", "a").unwrap();
        drop(first);
        let again = PoolLock::take(&locks, "engine/1", "a").unwrap();
        // Other releases lock this one, too.
        assert_eq!(again.path, locks.join("a-b974461d776bb658.lock"));
    }

    #[test]
    fn a_pool_is_free_when_nobody_has_it_on_any_engine() {
        let folder = tempfile::tempdir().unwrap();
        let locks = folder.path().join("locks");
        is_free(&locks, "a").unwrap();
        let _others = ["ab", "a-b", "b"].map(|pool| PoolLock::take(&locks, "engine/1", pool).unwrap());
        let one = PoolLock::take(&locks, "engine/1", "a").unwrap();
        let another = PoolLock::take(&locks, "engine/2", "a").unwrap();
        drop(one);
        assert!(matches!(is_free(&locks, "a"), Err(LockError::Taken { path, .. }) if path == another.path));
        drop(another);
        is_free(&locks, "a").unwrap();
        // To ask takes it from nobody.
        PoolLock::take(&locks, "engine/2", "a").unwrap();
    }

    #[test]
    fn a_discarded_lock_is_gone_and_a_lock_on_its_file_keeps_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let lock = PoolLock::take(folder.path(), "e", "a").unwrap();
        let path = lock.path.clone();
        let opened_before = File::open(&path).unwrap();
        lock.discard().unwrap();
        assert!(!path.exists());
        assert!(!is_at(&opened_before, &path).unwrap());
        let next = PoolLock::take(folder.path(), "e", "a").unwrap();
        assert!(!is_at(&opened_before, &path).unwrap(), "a file of another owner has the name");
        assert!(is_at(&next.file, &path).unwrap());
        assert!(matches!(PoolLock::take(folder.path(), "e", "a"), Err(LockError::Taken { .. })));
    }
}
