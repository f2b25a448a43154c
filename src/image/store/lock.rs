//! The store's lock: over all processes, and over the threads of each.
//!
//! It is held for renames and nothing else: no byte is copied, hashed or synced beneath it, so nobody waits for another's disk. How long it was waited
//! for and held is measured each time ([`measured`](crate::measured)). The kernel lets go of it when its holder ends, however it ends.
//! A wait ends when the holder's renames are done; only a holder that was stopped by a signal between two of them makes others wait for longer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

use super::error::StoreError;
use crate::measured::{Hold, Named};

/// In metrics and logs.
pub(super) const NAME: &str = "store";

#[derive(Debug)]
pub(super) struct Lock {
    pub(super) path: PathBuf,
    pub(super) named: Named,
}

/// Dropping it lets go.
#[derive(Debug)]
pub(super) struct Held {
    file: File,
    _hold: Hold,
}

impl Lock {
    #[track_caller]
    pub(super) fn take(&self) -> Result<Held, StoreError> {
        let began = Instant::now();
        // Opened anew each time: threads that share an open file would share the lock.
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
            retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
            Ok(file)
        };
        let file = open().map_err(|source| StoreError::io("lock", &self.path, source))?;
        Ok(Held { file, _hold: Hold::since(began, self.named) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // An unlock of an open file fails for no reason; closing it right after would do it as well. The measure ends after it.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
