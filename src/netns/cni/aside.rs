//! CNI for those who must not block: each chain on a thread of its own, as it waits for processes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::{Attached, Cni, CniError, RECORD, Wanted};
use crate::netns::folders::Folder;

/// Has plugins furnish the namespaces of folders. All of it is carried out once asked for, whoever waits.
pub trait Attacher: Send + Sync + 'static {
    /// ADD, for the network namespace of that folder.
    fn attach<'a>(&'a self, folder: &'a Folder, network: &'a str, namespace: OwnedFd) -> BoxFuture<'a, Result<Attached, CniError>>;
    /// What it has, by its record; with `ask` also by its plugins (CHECK) and by itself. `None`: no record of a whole ADD.
    fn look<'a>(&'a self, folder: &'a Folder, namespace: OwnedFd, ask: bool) -> BoxFuture<'a, Result<Option<Attached>, CniError>>;
    /// DEL, if there is a record; `None`: the namespace is gone.
    fn detach<'a>(&'a self, folder: &'a Folder, namespace: Option<OwnedFd>) -> BoxFuture<'a, Result<(), CniError>>;
}

/// In this process, with its rights.
#[derive(Debug)]
pub struct Aside {
    cni: Arc<Cni>,
    /// Where folders are.
    root: PathBuf,
}

impl Aside {
    /// For folders below `root`.
    #[must_use]
    pub fn new(cni: Cni, root: PathBuf) -> Self {
        Self { cni: Arc::new(cni), root }
    }

    fn record(&self, folder: &Folder) -> PathBuf {
        folder.path(&self.root).join(RECORD)
    }

    async fn done<T: Send + 'static>(&self, deed: impl FnOnce(&Cni) -> Result<T, CniError> + Send + 'static) -> Result<T, CniError> {
        let (to, done) = oneshot::channel();
        let cni = Arc::clone(&self.cni);
        // Nobody may wait for it any more.
        let work = move || drop(to.send(deed(&cni)));
        let started = std::thread::Builder::new().name("nspool-cni".to_owned()).spawn(work);
        started.map_err(|error| CniError::Stopped(format!("no thread: {error}")))?;
        done.await.unwrap_or_else(|_| Err(CniError::Stopped("the thread for it has ended".to_owned())))
    }
}

impl Attacher for Aside {
    fn attach<'a>(&'a self, folder: &'a Folder, network: &'a str, namespace: OwnedFd) -> BoxFuture<'a, Result<Attached, CniError>> {
        let (record, pool, id, network) = (self.record(folder), folder.pool().to_owned(), folder.name().to_owned(), network.to_owned());
        self.done(move |cni| {
            let id = id.trim_start_matches(crate::netns::folders::UNFINISHED);
            let wanted = Wanted { network: &network, id, args: &[("NSPOOL_POOL", &pool)] };
            cni.attach(&wanted, namespace.as_fd(), &record)
        })
        .boxed()
    }

    fn look<'a>(&'a self, folder: &'a Folder, namespace: OwnedFd, ask: bool) -> BoxFuture<'a, Result<Option<Attached>, CniError>> {
        let record = self.record(folder);
        self.done(move |cni| cni.look(namespace.as_fd(), &record, ask)).boxed()
    }

    fn detach<'a>(&'a self, folder: &'a Folder, namespace: Option<OwnedFd>) -> BoxFuture<'a, Result<(), CniError>> {
        let record = self.record(folder);
        self.done(move |cni| cni.detach(namespace.as_ref().map(OwnedFd::as_fd), &record)).boxed()
    }
}
