//! What goes wrong in a store, with what it was about.

use std::io;
use std::path::{Path, PathBuf};

use super::layout::Digest;
use crate::image::reference::BadReference;

/// Why a store did not do what it was asked. Whatever it is, the store verifies, and its images are those that it had; only where the very last sync fails
/// the new ones may be there as well.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's file system has no room, or the quota is used up.
    #[error("no space left in the image store, at {}", path.display())]
    Full {
        /// What was to be written.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Any other word of the system about a file of the store.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// `read`, `write`, `rename`, …
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The folder is something else's.
    #[error("{} is no image store: {why}", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// A file of the store is not what it must be. `nspool image verify` names all of these.
    #[error("{} is broken: {why}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Bytes came that are not those that were asked for. They are thrown away.
    #[error("{what} is not what it is said to be: its digest is {actual} and not {expected}")]
    Digest {
        /// Where they came from.
        what: String,
        /// Asked for.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// More or fewer bytes came than were announced. They are thrown away.
    #[error("{what} has {actual} bytes and not {expected}")]
    Size {
        /// Where they came from.
        what: String,
        /// Announced.
        expected: u64,
        /// So many came, or that many and more.
        actual: u64,
    },
    /// A manifest names a blob that came neither with it nor before.
    #[error("the image's {role} {digest} is missing")]
    Missing {
        /// `config`, `layer`, `manifest`.
        role: &'static str,
        /// Its name.
        digest: Digest,
    },
    /// An archive or a layout that is not to be taken.
    #[error("{subject}: {why}")]
    Refused {
        /// The part of it that is wrong.
        subject: String,
        /// What is wrong with it.
        why: String,
    },
    /// A name that an image cannot have.
    #[error("the image name {name:?}")]
    Name {
        /// As it was written.
        name: String,
        /// What is wrong with it.
        #[source]
        source: BadReference,
    },
    /// What is imported cannot be read any further.
    #[error("cannot read what is imported")]
    Source(#[source] io::Error),
}

impl StoreError {
    /// Of the system's word about a file of the store.
    pub(super) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let is_full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if is_full { Self::Full { path, source } } else { Self::Io { operation, path, source } }
    }

    /// An index where an image should be.
    pub(in crate::image) fn nested(digest: &Digest) -> Self {
        Self::refused(format!("the index {digest}"), "it is behind another one")
    }

    pub(super) fn refused(subject: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { subject: subject.into(), why: why.into() }
    }
}
