//! A buddy's namespaces as files, for those who join by path: one folder for each use, made before it is handed out and gone with its fence.
//!
//! Only of buddies that are containers: those of the native engine are such folders themselves, and their engine's rename is the fence.
//!
//! What can go wrong: a folder cannot be made (the slot is not handed out, with the reason) · it cannot be taken away (the fence is not up: tried again, or the
//! buddy serves no other lease) · a daemon that was killed left folders of uses that are over: see [`leftovers`](super::leftovers).

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Buddy, Tools};
use crate::engine::NamespaceKind;
use crate::netns::folders::{Folder, MountError, Mounter, namespace_id};
use crate::netns::{Held, KernelError};

/// Why a use is not to be had by path.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShelfError {
    /// The buddy's own.
    #[error("the namespaces of the buddy: {0}")]
    Held(KernelError),
    /// The folder's.
    #[error("the folder that its namespaces are joined by: {0}")]
    Folder(MountError),
}

impl Tools {
    /// The buddy's present use can be joined by path, if any can.
    pub(super) async fn publish(&self, buddy: &mut Buddy) -> Result<(), ShelfError> {
        if let Some(shelf) = &self.shelf {
            shelf.publish(&buddy.name, buddy.held.as_ref()).await?;
            buddy.shelved = Some(buddy.name.clone());
        }
        Ok(())
    }

    /// Nobody joins it by path any more.
    pub(super) async fn withdraw(&self, buddy: &mut Buddy) -> Result<(), ShelfError> {
        if let (Some(shelf), Some(name)) = (&self.shelf, &buddy.shelved) {
            shelf.withdraw(name).await?;
            buddy.shelved = None;
        }
        Ok(())
    }
}

/// Where one pool's folders are.
pub struct Shelf {
    root: PathBuf,
    pool: String,
    kinds: Vec<NamespaceKind>,
    mounter: Arc<dyn Mounter>,
}

impl Shelf {
    /// For namespaces of these kinds.
    #[must_use]
    pub fn new(root: PathBuf, pool: String, kinds: Vec<NamespaceKind>, mounter: Arc<dyn Mounter>) -> Self {
        Self { root, pool, kinds, mounter }
    }

    fn folder(&self, name: &str) -> Result<Folder, ShelfError> {
        Folder::new(&self.pool, name).map_err(|error| ShelfError::Folder(MountError::Stopped(error.to_string())))
    }

    /// What is held can be joined by that name, once this is done. What a predecessor or an earlier try left of that name stays if it is the same, and goes if
    /// it is not.
    ///
    /// # Errors
    /// There is no such folder then.
    pub(super) async fn publish(&self, name: &str, held: &dyn Held) -> Result<(), ShelfError> {
        let folder = self.folder(name)?;
        if folder.path(&self.root).exists() && self.is_published(&folder, held).await {
            return Ok(());
        }
        let open = |kind: &NamespaceKind| Ok((*kind, held.open(*kind)?));
        let namespaces = self.kinds.iter().map(open).collect::<Result<_, _>>().map_err(ShelfError::Held)?;
        if folder.path(&self.root).exists() {
            self.mounter.clear(&folder).await.map_err(ShelfError::Folder)?;
        }
        self.mounter.publish(&folder, namespaces).await.map_err(ShelfError::Folder)
    }

    async fn is_published(&self, folder: &Folder, held: &dyn Held) -> bool {
        let Ok(there) = self.mounter.open(folder, &self.kinds).await else { return false };
        let same = |(kind, open): &(NamespaceKind, OwnedFd)| namespace_id(open).is_ok_and(|id| held.namespace(*kind) == Some(id));
        there.len() == self.kinds.len() && there.iter().all(same)
    }

    /// Nobody joins by that name, once this is done.
    ///
    /// # Errors
    /// It may be there still.
    pub(super) async fn withdraw(&self, name: &str) -> Result<(), ShelfError> {
        self.mounter.clear(&self.folder(name)?).await.map_err(ShelfError::Folder)
    }
}
