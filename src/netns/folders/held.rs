//! Namespaces that a folder keeps, held: what [`Held`] is for a process, without one.
//!
//! It is alive as long as its folder is there, with its record: who removes that (the engine, or somebody else) ends it. Nobody can end it from inside. What holds the
//! namespaces against everything else is their descriptors, here, and the mounts, for the next daemon.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use tokio_util::task::TaskTracker;

use super::first::{self, Written};
use super::watch::{Watch, Watched};
use super::{Folder, MountError, Mounter, Open, RECORD};
use crate::engine::NamespaceKind;
use crate::netns::cni::{Attached, Attacher, CniError};
use crate::netns::files::SharedFile;
use crate::netns::inspection::{Depth, InspectError};
use crate::netns::linux::Namespace;
use crate::netns::{Held, Kernel, KernelError, Members, NamespaceId, RenewError, Renewed, Snapshot, WrongAnswer};

impl From<MountError> for KernelError {
    fn from(error: MountError) -> Self {
        Self::Failed { what: "namespaces in a folder".to_owned(), message: error.to_string() }
    }
}

/// A [`Kernel`] that can also hold what folders keep.
pub struct WithFolders {
    inner: Arc<dyn Kernel>,
    mounter: Arc<dyn Mounter>,
    attacher: Arc<dyn Attacher>,
    watch: Arc<Watch>,
    tasks: TaskTracker,
}

impl WithFolders {
    /// Processes are `inner`'s.
    #[must_use]
    pub fn new(inner: Arc<dyn Kernel>, mounter: Arc<dyn Mounter>, attacher: Arc<dyn Attacher>) -> Self {
        Self { inner, mounter, attacher, watch: Arc::default(), tasks: TaskTracker::new() }
    }

    async fn held(&self, path: &Path, kinds: &[NamespaceKind]) -> Result<Box<dyn Held>, KernelError> {
        let failed = |errno: Errno| match errno {
            Errno::NOENT => KernelError::Gone { pid: 0 },
            errno => KernelError::Failed { what: path.display().to_string(), message: errno.to_string() },
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        // By its descriptor: the name may be another's by now, or another's next.
        let watched = self.watch.folder(&link_of(&open), &self.tasks)?;
        let place = Place { open, watched };
        let folder = place.folder()?;
        let namespaces = taken(self.mounter.open(&folder, kinds).await?)?;
        // What was opened by the name was this folder's, if the folder still has the name.
        if place.folder()? != folder {
            return Err(KernelError::Gone { pid: 0 });
        }
        let first = self.first(path, &namespaces).await?;
        let held = InFolder {
            place,
            first,
            namespaces: Mutex::new(namespaces),
            mounter: Arc::clone(&self.mounter),
            attacher: Arc::clone(&self.attacher),
            host: self.inner.host_namespace(NamespaceKind::Net)?,
            turn: tokio::sync::Mutex::new(()),
        };
        Ok(Box::new(HeldFolder { held: Arc::new(held), tasks: self.tasks.clone() }))
    }

    /// Of the pid namespace, if there is one.
    async fn first(&self, folder: &Path, namespaces: &[Arc<Namespace>]) -> Result<First, KernelError> {
        let Some(pids) = namespaces.iter().find(|namespace| namespace.kind == NamespaceKind::Pid) else { return Ok(First::NotNeeded) };
        let failed = |error: std::io::Error| KernelError::Failed {
            what: folder.join(first::FILE).display().to_string(),
            message: error.to_string(),
        };
        let Some(written) = Written::read(folder).map_err(failed)? else { return Ok(First::Ended) };
        match self.inner.hold(written.pid, &[NamespaceKind::Pid]).await {
            // Whoever has that pid and is in that namespace is its first process: without it there would be nobody in there.
            Ok(held) if held.namespace(NamespaceKind::Pid) == Some(pids.id) => Ok(First::Held(held)),
            Ok(_) | Err(KernelError::Gone { .. }) => Ok(First::Ended),
            Err(error) => Err(error),
        }
    }
}

impl Kernel for WithFolders {
    fn hold<'a>(&'a self, pid: u32, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>> {
        self.inner.hold(pid, kinds)
    }

    fn hold_folder<'a>(&'a self, folder: &'a Path, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>> {
        self.held(folder, kinds).boxed()
    }

    fn host_namespace(&self, kind: NamespaceKind) -> Result<NamespaceId, KernelError> {
        self.inner.host_namespace(kind)
    }

    fn members<'a>(&'a self, kind: NamespaceKind, of: &'a [NamespaceId]) -> BoxFuture<'a, Result<Members, KernelError>> {
        self.inner.members(kind, of)
    }

    fn read_files(&self, files: Vec<(PathBuf, u64)>) -> BoxFuture<'_, Vec<Result<SharedFile, String>>> {
        self.inner.read_files(files)
    }

    fn replace_files(&self, files: Vec<SharedFile>) -> BoxFuture<'_, Result<(), String>> {
        self.inner.replace_files(files)
    }

    fn since_boot(&self) -> Duration {
        self.inner.since_boot()
    }
}

/// Each is one of the kind that it is said to be.
fn taken(open: Open) -> Result<Vec<Arc<Namespace>>, KernelError> {
    open.into_iter().map(|(kind, open)| Namespace::passed(kind, open.into()).map(Arc::new)).collect()
}

fn link_of(open: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}

/// A folder, whatever it is called.
#[derive(Debug)]
struct Place {
    open: OwnedFd,
    watched: Watched,
}

impl Place {
    fn is_there(&self) -> bool {
        // A removed folder is empty. Any other error says nothing: not gone.
        !matches!(statat(&self.open, RECORD, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT))
    }

    /// Its present name.
    fn folder(&self) -> Result<Folder, KernelError> {
        if !self.is_there() {
            return Err(KernelError::Gone { pid: 0 });
        }
        let failed = |message: String| KernelError::Failed { what: "a folder's name".to_owned(), message };
        let path = std::fs::read_link(link_of(&self.open)).map_err(|error| failed(error.to_string()))?;
        Folder::of(&path).map_err(|error| failed(error.to_string()))
    }
}

#[derive(Debug)]
struct HeldFolder {
    held: Arc<InFolder>,
    tasks: TaskTracker,
}

/// Who keeps the pid namespace.
#[derive(Debug)]
enum First {
    /// There is none.
    NotNeeded,
    Held(Box<dyn Held>),
    /// And the namespace with it; the others are there, and somebody may be in them.
    Ended,
}

struct InFolder {
    place: Place,
    first: First,
    namespaces: Mutex<Vec<Arc<Namespace>>>,
    mounter: Arc<dyn Mounter>,
    attacher: Arc<dyn Attacher>,
    host: NamespaceId,
    /// Of renewals.
    turn: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for InFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFolder").field("place", &self.place).field("namespaces", &self.namespaces).finish_non_exhaustive()
    }
}

impl InFolder {
    fn held(&self, kind: NamespaceKind) -> Option<Arc<Namespace>> {
        self.namespaces.lock().iter().find(|namespace| namespace.kind == kind).cloned()
    }

    async fn renewed(&self) -> Result<Renewed, RenewError> {
        let _turn = self.turn.lock().await;
        let (folder, began) = (self.place.folder()?, Instant::now());
        let kinds: Vec<NamespaceKind> = self.namespaces.lock().iter().map(|namespace| namespace.kind).collect();
        let new = taken(self.mounter.renew(&folder, &kinds).await.map_err(KernelError::from)?)?;
        let old = self.namespaces.lock().clone();
        // The old ones are still held: no number can be another's.
        if new.len() != old.len() || new.iter().any(|new| old.iter().any(|old| old.id == new.id)) {
            return Err(RenewError::Wrong { pid: 0, wrong: WrongAnswer::NotNew });
        }
        if new.iter().any(|new| new.id == self.host) {
            return Err(RenewError::Wrong { pid: 0, wrong: WrongAnswer::TheHosts });
        }
        let namespace = new.iter().find(|new| new.kind == NamespaceKind::Net).map(|new| new.id).ok_or(KernelError::Gone { pid: 0 })?;
        *self.namespaces.lock() = new;
        Ok(Renewed { namespace, cookie: None, took: began.elapsed() })
    }
}

impl HeldFolder {
    /// Its present name, and its network namespace.
    fn network(&self) -> Result<(Folder, OwnedFd), CniError> {
        let failed = |error: KernelError| CniError::Stopped(error.to_string());
        Ok((self.held.place.folder().map_err(failed)?, self.open(NamespaceKind::Net).map_err(failed)?))
    }
}

impl Held for HeldFolder {
    /// Of who keeps the pid namespace, where there is one; else there is no process.
    fn pid(&self) -> u32 {
        if let First::Held(first) = &self.held.first { first.pid() } else { 0 }
    }

    fn is_alive(&self) -> bool {
        let first = match &self.held.first {
            First::NotNeeded => true,
            First::Held(first) => first.is_alive(),
            First::Ended => false,
        };
        first && self.held.place.is_there()
    }

    fn exited(&self) -> BoxFuture<'_, ()> {
        async move {
            let first = async {
                match &self.held.first {
                    First::Held(first) => first.exited().await,
                    First::NotNeeded | First::Ended => std::future::pending().await,
                }
            };
            let mut first = std::pin::pin!(first);
            loop {
                let gone = self.held.place.watched.gone.notified();
                let mut gone = std::pin::pin!(gone);
                // Waits before it looks: what comes in between is not missed.
                gone.as_mut().enable();
                if !self.is_alive() {
                    return;
                }
                tokio::select! {
                    () = gone => {}
                    () = &mut first => return,
                }
            }
        }
        .boxed()
    }

    fn namespace(&self, kind: NamespaceKind) -> Option<NamespaceId> {
        self.held.held(kind).map(|namespace| namespace.id)
    }

    fn open(&self, kind: NamespaceKind) -> Result<OwnedFd, KernelError> {
        let held = self.held.held(kind).ok_or(KernelError::Gone { pid: 0 })?;
        let failed =
            |error: std::io::Error| KernelError::Failed { what: "a namespace's descriptor".to_owned(), message: error.to_string() };
        held.open.try_clone().map(OwnedFd::from).map_err(failed)
    }

    /// All of them are new ones afterwards, whatever the number of the use is: nobody has to be told.
    fn renew(&self, _use_number: u64, within: Duration) -> BoxFuture<'_, Result<Renewed, RenewError>> {
        let held = Arc::clone(&self.held);
        let renewal = self.tasks.spawn(async move { tokio::time::timeout(within, held.renewed()).await });
        async move {
            let late = || KernelError::Failed { what: "new namespaces".to_owned(), message: format!("not there within {within:?}") };
            match renewal.await {
                Ok(Ok(renewed)) => renewed,
                Ok(Err(_)) => Err(RenewError::Kernel(late())),
                Err(error) => {
                    Err(RenewError::Kernel(KernelError::Failed { what: "the task of a renewal".to_owned(), message: error.to_string() }))
                }
            }
        }
        .boxed()
    }

    fn attach<'a>(&'a self, network: &'a str) -> BoxFuture<'a, Result<Attached, CniError>> {
        async move {
            let (folder, namespace) = self.network()?;
            self.held.attacher.attach(&folder, network, namespace).await
        }
        .boxed()
    }

    fn attached(&self, ask: bool) -> BoxFuture<'_, Result<Option<Attached>, CniError>> {
        async move {
            let (folder, namespace) = self.network()?;
            self.held.attacher.look(&folder, namespace, ask).await
        }
        .boxed()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), CniError>> {
        async move {
            let (folder, namespace) = self.network()?;
            self.held.attacher.detach(&folder, Some(namespace)).await
        }
        .boxed()
    }

    fn snapshot(
        &self,
        _depth: Depth,
        _addresses: Vec<IpAddr>,
        _within: Duration,
    ) -> BoxFuture<'_, Result<Arc<dyn Snapshot>, InspectError>> {
        // A new one costs less than an inspection.
        let refused = InspectError::Unreadable {
            what: "namespaces without a process, which are renewed instead".to_owned(),
            cause: Errno::OPNOTSUPP,
        };
        std::future::ready(Err(refused)).boxed()
    }
}
