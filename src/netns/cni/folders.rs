//! A folder that goes takes back what plugins gave its namespace, while that is still there: whoever removes it, and whenever, does not have to know.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{Attacher, RECORD};
use crate::engine::NamespaceKind;
use crate::netns::folders::{Folder, MountError, Mounter, Open};

/// A [`Mounter`] that does so, and is otherwise the one behind it.
pub struct GivesBack {
    inner: Arc<dyn Mounter>,
    attacher: Arc<dyn Attacher>,
    root: PathBuf,
}

impl GivesBack {
    /// For folders below `root`.
    #[must_use]
    pub fn new(inner: Arc<dyn Mounter>, attacher: Arc<dyn Attacher>, root: PathBuf) -> Self {
        Self { inner, attacher, root }
    }

    async fn give_back(&self, folder: &Folder) -> Result<(), MountError> {
        if !folder.path(&self.root).join(RECORD).exists() {
            return Ok(());
        }
        let namespace: Option<OwnedFd> = match self.inner.open(folder, &[NamespaceKind::Net]).await {
            Ok(open) => open.into_iter().next().map(|(_, open)| open),
            // It was never mounted, or somebody has unmounted it: then there is none to be found by anybody.
            Err(MountError::NotMounted { .. }) => None,
            Err(error) => return Err(error),
        };
        let given_back = self.attacher.detach(folder, namespace).await;
        given_back.map_err(|error| MountError::Network { folder: folder.to_string(), why: error.to_string() })
    }
}

impl Mounter for GivesBack {
    fn make<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<(), MountError>> {
        self.inner.make(folder, kinds)
    }

    fn publish<'a>(&'a self, folder: &'a Folder, namespaces: Open) -> BoxFuture<'a, Result<(), MountError>> {
        self.inner.publish(folder, namespaces)
    }

    fn open<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>> {
        self.inner.open(folder, kinds)
    }

    /// A nanny that knows of plugins has had them take it back before; another's may be on a network that was theirs before a restart.
    fn renew<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>> {
        async move {
            self.give_back(folder).await?;
            self.inner.renew(folder, kinds).await
        }
        .boxed()
    }

    fn clear<'a>(&'a self, folder: &'a Folder) -> BoxFuture<'a, Result<(), MountError>> {
        async move {
            self.give_back(folder).await?;
            self.inner.clear(folder).await
        }
        .boxed()
    }

    fn tidy<'a>(&'a self, pool: &'a str) -> BoxFuture<'a, Result<(), MountError>> {
        self.inner.tidy(pool)
    }
}
