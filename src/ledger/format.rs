//! Which releases read which file.
//!
//! A ledger is read by others than its writer: by the next release at an upgrade, by the last one when that is taken back. Both must find the same
//! leases. What that takes of whoever changes the format:
//!
//! - Frames, and the numbers in [`Began`], never change: without them nobody could tell that a file is of a later release, and would take it for
//!   broken. Other frames would need another file name.
//! - The number of a kind or a field keeps its type and meaning for good, and is not used again once it is given up.
//! - What is added may be missing, and then means what releases without it meant. A new value where there is a choice (a lifetime, the cause of an
//!   end) goes into a field of its own, beside the nearest old one, which is what earlier releases go by.
//! - What cannot be read past, because other records mean something else without it, or because it is longer than an earlier release believes, takes
//!   two releases: the first one reads it and raises [`FORMAT`], the second one writes it and raises [`OLDEST_READER`] to that. Earlier ones refuse
//!   the file then, and leave it as it is.
//!
//! An earlier release writes the file anew at its start, without what it does not know. That is not carried along on purpose: it described a state
//! that is changed by a daemon that does not know it, and would come back as if it were true still. So the later release finds what it finds at a
//! first upgrade, and nothing else: one case to get right, and the one that is tested (`tests/ledger.rs`, `make upgrade`).

use std::io;
use std::time::Duration;

use super::record::Began;

/// What this release writes. 0, which is none, was written before there were formats, and is read as 1. 2 tells the engine, and the folders of
/// namespaces.
pub const FORMAT: u32 = 2;
/// The oldest format whose readers get the same leases from what this release writes.
pub const OLDEST_READER: u32 = 1;

/// A file of a release that is too far ahead.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is of a later release: in format {format}, which takes a reader of format {oldest_reader}, and this one is of {FORMAT}; start that release \
     again, and stop it with [stop] policy = \"remove\" before this one, or remove the file, and with it what is known of leases"
)]
pub struct TooNew {
    /// Who wrote it.
    pub format: u32,
    /// Who can read it.
    pub oldest_reader: u32,
}

/// Whose ledger it is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// See [`boot_id`].
    pub boot_id: String,
    /// The pool's name.
    pub pool: String,
    /// Since the boot.
    pub now: Duration,
    /// Of which kind the engine is; empty: not known yet.
    pub engine: String,
}

/// The boot that this is.
///
/// # Errors
/// The kernel's.
pub fn boot_id() -> io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

impl Identity {
    /// Whether a file of this boot may be taken over.
    ///
    /// # Errors
    /// It is another pool's, or [`TooNew`].
    pub(super) fn may_take(&self, began: &Began) -> io::Result<()> {
        if began.pool != self.pool {
            let words = format!("it is of the pool {:?}, not {:?}; each pool needs a [state] dir of its own", began.pool, self.pool);
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
        }
        may_read(began)
    }

    /// A new file's first record.
    pub(super) fn begin(&self) -> Began {
        Began {
            boot_id: self.boot_id.clone(),
            pool: self.pool.clone(),
            incarnation: crate::random::uuid().to_string(),
            at: super::nanos(self.now),
            ..Began::default()
        }
    }
}

/// Whether this release gets the same leases from a file as the one that wrote it.
///
/// # Errors
/// [`TooNew`].
pub(super) fn may_read(began: &Began) -> io::Result<()> {
    let Began { format, oldest_reader, .. } = *began;
    if oldest_reader > FORMAT {
        return Err(io::Error::new(io::ErrorKind::Unsupported, TooNew { format, oldest_reader }));
    }
    Ok(())
}

/// The same file's first record, as this release writes it.
pub(super) fn sign(began: Began) -> Began {
    Began { format: FORMAT, oldest_reader: OLDEST_READER, ..began }
}
