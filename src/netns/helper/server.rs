//! The helper's side: does what it is asked for, each thing by itself, with the same code that a process with rights of its own uses.
//!
//! It ends when the daemon's end of the socket is closed, in the middle of whatever it does; the lock that it has held goes with the process, and is what the
//! next one waits for. It remembers nothing but what namespaces were ([`crate::netns::Snapshot`]), and which links there should be.
//!
//! What can go wrong: it is asked for what it does not understand, says so in the log, and ends; and so it does when the thread that mounts namespaces has
//! ended, which cannot be had again: the next helper has another.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use serde::Serialize;
use tokio::sync::mpsc;

use super::channel::{self, ChannelError, Message, NEWS};
use super::powers;
use super::verbs::{Begin, BeginError, Hosts, LinkError, Verb, write};
use crate::config::LogFormat;
use crate::engine::NamespaceKind;
use crate::netns::cni::{Aside, Attacher as _, CniError};
use crate::netns::folders::{Mason, MountError, Mounter as _, Open};
use crate::netns::inspection::{Depth, InspectError, Verdict};
use crate::netns::linux::{self, Linux, Opened, Process, snapshot};
use crate::netns::managed::{FurnishError, Furnisher, Limits, Worker};
use crate::netns::networks::Found;
use crate::netns::{Kernel as _, KernelError, NamespaceId, RenewError, Snapshot};
use crate::telemetry::{self, LogHandle};

const ANSWERS: usize = 16 * 1024;
/// For renewals, files and scans, which take their turns beyond that: a unit has 256 for the daemon and its helper.
const MOST_THREADS: usize = 64;

/// The helper's life.
#[must_use]
pub fn work() -> ExitCode {
    if rustix::thread::set_name(c"nspool-helper").is_err() {
        return ExitCode::FAILURE;
    }
    let socket = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => Arc::new(socket),
        Err(_) => return ExitCode::FAILURE,
    };
    let Ok(Some(first)) = channel::receive(socket.as_fd()) else { return ExitCode::FAILURE };
    let Ok(Verb::Begin(begin)) = serde_json::from_slice::<Verb>(&first.body) else { return ExitCode::FAILURE };
    let begun = prepare(&begin);
    let answer = begun.as_ref().map(|begun| begun.hosts).map_err(Clone::clone);
    let said =
        write(&answer).ok().map(|body| channel::send(socket.as_fd(), &Message { number: first.number, body, descriptors: Vec::new() }));
    match (begun, said) {
        (Ok(begun), Some(Ok(()))) => begun.serve(&socket),
        _ => ExitCode::FAILURE,
    }
}

struct Begun {
    hosts: Hosts,
    runtime: tokio::runtime::Runtime,
    links: Option<(Worker, Furnisher)>,
    mason: Option<Mason>,
    cni: Option<Aside>,
    lock: OwnedFd,
    log: LogHandle,
}

fn prepare(begin: &Begin) -> Result<Begun, BeginError> {
    let process = |error: String| BeginError::Process(error);
    let wanted = if begin.ids.is_some() { powers::HELPERS | powers::OF_USERS } else { powers::HELPERS };
    powers::keep(wanted).map_err(|errno| process(format!("capabilities: {errno}")))?;
    let lock = lock(&begin.lock).map_err(|error| BeginError::Lock(format!("{}: {error}", begin.lock.display())))?;
    let format = if begin.log.json { LogFormat::Json } else { LogFormat::Text };
    let log = crate::config::Log { filter: begin.log.filter.clone(), format };
    let log = telemetry::init(&log).map_err(|error| process(error.to_string()))?;
    let of = |kind| linux::host_namespace(kind).map_err(BeginError::Kernel);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(MOST_THREADS).enable_all().build();
    let runtime = runtime.map_err(|error| process(error.to_string()))?;
    let links = begin.host.clone().map(|host| Worker::start(host, Limits::default())).transpose().map_err(BeginError::Links)?;
    let mason = match begin.folders.as_deref().map(|root| Mason::start(root, begin.ids)).transpose() {
        Err(error) if begin.must_mount => return Err(BeginError::Folders(error)),
        Err(error) => {
            tracing::info!(%error, "namespaces cannot be joined by path here (a unit needs native.conf for it)");
            None
        }
        Ok(mason) => mason,
    };
    let hosts = Hosts {
        net: of(NamespaceKind::Net)?,
        ipc: of(NamespaceKind::Ipc)?,
        pid: of(NamespaceKind::Pid)?,
        uts: of(NamespaceKind::Uts)?,
        user: of(NamespaceKind::User)?,
        mounts: mason.is_some(),
    };
    let cni = begin.folders.clone().map(|root| Aside::new(begin.cni.clone(), root));
    Ok(Begun { hosts, runtime, links, mason, cni, lock, log })
}

/// As long as this process is there.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    loop {
        // The daemon has a deadline for it.
        match flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            locked => return Ok(locked.map(|()| file.into())?),
        }
    }
}

impl Begun {
    fn serve(mut self, socket: &Arc<OwnedFd>) -> ExitCode {
        let (to, mut answers) = mpsc::channel::<Message>(ANSWERS);
        let outgoing = Arc::clone(socket);
        let sending = move || {
            while let Some(message) = answers.blocking_recv() {
                if channel::send(outgoing.as_fd(), &message).is_err() {
                    return;
                }
            }
        };
        if std::thread::Builder::new().name("helper-answers".to_owned()).spawn(sending).is_err() {
            return ExitCode::FAILURE;
        }
        let deeds = Arc::new(Deeds {
            kernel: Linux::new(),
            furnisher: self.links.as_ref().map(|(_, furnisher)| furnisher.clone()),
            mason: self.mason.clone(),
            cni: self.cni.take(),
            snapshots: Mutex::default(),
        });
        if let Some(furnisher) = deeds.furnisher.clone() {
            self.runtime.spawn(tell_changes(furnisher, to.clone()));
        }
        if let Some(mason) = self.mason.clone() {
            let socket = Arc::clone(socket);
            self.runtime.spawn(async move {
                mason.ended().await;
                // Wakes who listens. What is answered already may still go out. An error says that the daemon is gone.
                let _ = shutdown(&*socket, Shutdown::Read);
            });
        }
        let ended = self.listen(socket, &deeds, &to);
        // What it does may take long, and nobody waits for it any more. It is over with the process, so that is what the lock goes with.
        self.runtime.shutdown_background();
        let _ = self.lock.into_raw_fd();
        match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "the helper process ends");
                ExitCode::FAILURE
            }
        }
    }

    /// Until the daemon is gone.
    fn listen(&self, socket: &OwnedFd, deeds: &Arc<Deeds>, to: &mpsc::Sender<Message>) -> Result<(), Ending> {
        while let Some(message) = channel::receive(socket.as_fd())? {
            let verb = serde_json::from_slice(&message.body)?;
            if let Verb::Filter { filter } = &verb {
                // Here, where one comes after the other: the last one is what is meant.
                match self.log.set_filter(filter) {
                    Ok(()) => tracing::debug!(filter, "the helper's log filter is another one"),
                    Err(error) => tracing::error!(%error, "the helper's log filter stays as it was"),
                }
            }
            let (deeds, to, number) = (Arc::clone(deeds), to.clone(), message.number);
            self.runtime.spawn(async move {
                match deeds.carry_out(verb, message.descriptors).await {
                    // Refused when the daemon is gone.
                    Ok((body, descriptors)) => drop(to.send(Message { number, body, descriptors }).await),
                    Err(error) => tracing::error!(%error, "an answer cannot be said"),
                }
            });
        }
        match &self.mason {
            Some(mason) if mason.has_ended() => Err(Ending::Folders),
            Some(_) | None => Ok(()),
        }
    }
}

/// What ends it, besides the daemon's end.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("what the daemon asks for is not understood: {0}")]
    Channel(#[from] ChannelError),
    #[error("what the daemon asks for is not understood: no verb: {0}")]
    Verb(#[from] serde_json::Error),
    #[error("the thread that makes namespaces and mounts them has ended")]
    Folders,
}

async fn tell_changes(furnisher: Furnisher, to: mpsc::Sender<Message>) {
    let mut changes = furnisher.changes.clone();
    while changes.changed().await.is_ok() {
        changes.borrow_and_update();
        if to.send(Message { number: NEWS, ..Message::default() }).await.is_err() {
            return;
        }
    }
}

type Answer = serde_json::Result<(Vec<u8>, Vec<OwnedFd>)>;

fn answer(what: &impl Serialize) -> Answer {
    Ok((write(what)?, Vec::new()))
}

struct Deeds {
    kernel: Linux,
    furnisher: Option<Furnisher>,
    mason: Option<Mason>,
    cni: Option<Aside>,
    snapshots: Mutex<Snapshots>,
}

/// By the numbers that were given to them.
#[derive(Default)]
struct Snapshots {
    last: u64,
    known: HashMap<u64, Arc<dyn Snapshot>>,
}

impl Deeds {
    async fn carry_out(&self, verb: Verb, descriptors: Vec<OwnedFd>) -> Answer {
        match verb {
            Verb::Begin(_) => answer(&Err::<Hosts, _>(BeginError::Process("it has begun already".to_owned()))),
            // A filter is set by whoever listens.
            Verb::Ping | Verb::Filter { .. } => answer(&()),
            Verb::Hold { pid, kinds } => held(Opened::of(pid, &kinds)),
            Verb::Members { kind, of } => answer(&self.members(kind, &of).await),
            Verb::Renew { use_number, within } => renew(descriptors, use_number, within).await,
            Verb::Snapshot { kinds, depth, addresses, within } => {
                answer(&self.snapshot(passed(descriptors, &kinds), depth, addresses, within).await)
            }
            Verb::Inspect { snapshot, depth, within } => answer(&match self.known(snapshot) {
                Ok(known) => known.inspect(depth, within).await,
                Err(error) => Verdict::Dirty(vec![error.into()]),
            }),
            Verb::Look { snapshot, within } => answer(&match self.known(snapshot) {
                Ok(known) => known.look(within).await,
                Err(error) => Err(error),
            }),
            Verb::Forget { snapshot } => {
                self.snapshots.lock().known.remove(&snapshot);
                answer(&())
            }
            Verb::ReadFiles { files } => answer(&self.kernel.read_files(files).await),
            Verb::ReplaceFiles { files } => answer(&self.kernel.replace_files(files).await),
            Verb::Furnish { plan } => answer(&self.furnish(descriptors, &plan).await),
            Verb::Strip { end } => answer(&link_answer(async { self.links()?.strip(&end).await.map(drop) }.await)),
            Verb::Cut { end } => answer(&link_answer(async { self.links()?.cut(&end).await }.await)),
            Verb::Links => answer(&link_answer::<Found>(async { self.links()?.links().await }.await)),
            Verb::Adopt { plans } => answer(&link_answer(async { self.links()?.adopt(plans).await }.await)),
            Verb::Mend => answer(&link_answer(async { self.links()?.mend().await }.await)),
            Verb::TearDown => answer(&link_answer(async { self.links()?.tear_down().await }.await)),
            Verb::MakeFolder { folder, kinds } => answer(&async { self.mason()?.make(&folder, &kinds).await }.await),
            Verb::PublishFolder { folder, kinds } => {
                let namespaces = kinds.into_iter().zip(descriptors).collect();
                answer(&async { self.mason()?.publish(&folder, namespaces).await }.await)
            }
            Verb::OpenFolder { folder, kinds } => opened(async { self.mason()?.open(&folder, &kinds).await }.await),
            Verb::RenewFolder { folder, kinds } => opened(async { self.mason()?.renew(&folder, &kinds).await }.await),
            Verb::ClearFolder { folder } => answer(&async { self.mason()?.clear(&folder).await }.await),
            Verb::TidyFolders { pool } => answer(&async { self.mason()?.tidy(&pool).await }.await),
            Verb::Attach { folder, network } => {
                let namespace = network_passed(descriptors);
                answer(&async { self.cni()?.attach(&folder, &network, namespace.and_then(some)?).await }.await)
            }
            Verb::Attached { folder, ask } => {
                let namespace = network_passed(descriptors);
                answer(&async { self.cni()?.look(&folder, namespace.and_then(some)?, ask).await }.await)
            }
            Verb::Detach { folder } => {
                let namespace = network_passed(descriptors);
                answer(&async { self.cni()?.detach(&folder, namespace?).await }.await)
            }
        }
    }

    fn mason(&self) -> Result<&Mason, MountError> {
        self.mason.as_ref().ok_or_else(|| MountError::Stopped("no folder was asked for at the start".to_owned()))
    }

    fn cni(&self) -> Result<&Aside, CniError> {
        self.cni.as_ref().ok_or_else(|| CniError::Stopped("no folder was asked for at the start".to_owned()))
    }

    fn links(&self) -> Result<&Furnisher, FurnishError> {
        self.furnisher.as_ref().ok_or(FurnishError::Stopped)
    }

    async fn members(
        &self,
        kind: NamespaceKind,
        of: &[NamespaceId],
    ) -> Result<Vec<(NamespaceId, Vec<crate::netns::Process>)>, KernelError> {
        Ok(self.kernel.members(kind, of).await?.into_iter().collect())
    }

    async fn snapshot(
        &self,
        process: Result<Process, KernelError>,
        depth: Depth,
        addresses: Vec<std::net::IpAddr>,
        within: Duration,
    ) -> Result<u64, InspectError> {
        let process = process.map_err(|error| InspectError::Unreadable { what: error.to_string(), cause: Errno::INVAL })?;
        let taken = snapshot::take(Arc::new(process), depth, addresses, within).await?;
        let mut snapshots = self.snapshots.lock();
        snapshots.last += 1;
        let number = snapshots.last;
        snapshots.known.insert(number, taken);
        Ok(number)
    }

    fn known(&self, snapshot: u64) -> Result<Arc<dyn Snapshot>, InspectError> {
        let missing = || InspectError::Unreadable { what: "what it was at first, which is forgotten".to_owned(), cause: Errno::NOENT };
        self.snapshots.lock().known.get(&snapshot).cloned().ok_or_else(missing)
    }

    async fn furnish(&self, descriptors: Vec<OwnedFd>, plan: &crate::netns::managed::Plan) -> Result<(), LinkError> {
        let furnisher = self.links().map_err(LinkError::Link)?;
        let passed = descriptors.into_iter().next().ok_or(KernelError::Gone { pid: 0 });
        let namespace =
            passed.and_then(|passed| linux::Namespace::passed(NamespaceKind::Net, passed.into())).map_err(LinkError::Namespace)?;
        if linux::host_namespace(NamespaceKind::Net).is_ok_and(|host| host == namespace.id) {
            return Err(LinkError::NotSetUp("the namespace is the host's".to_owned()));
        }
        furnisher.furnish(namespace.open.as_fd(), plan).await.map(drop).map_err(LinkError::Link)
    }
}

/// A network namespace, and not the host's; or none at all.
fn network_passed(descriptors: Vec<OwnedFd>) -> Result<Option<OwnedFd>, CniError> {
    let Some(passed) = descriptors.into_iter().next() else { return Ok(None) };
    let stopped = |error: KernelError| CniError::Stopped(error.to_string());
    let namespace = linux::Namespace::passed(NamespaceKind::Net, passed.into()).map_err(stopped)?;
    if linux::host_namespace(NamespaceKind::Net).map_err(stopped)? == namespace.id {
        return Err(CniError::Stopped("the namespace is the host's".to_owned()));
    }
    Ok(Some(namespace.open.into()))
}

fn some(namespace: Option<OwnedFd>) -> Result<OwnedFd, CniError> {
    namespace.ok_or_else(|| CniError::Stopped("no namespace came along".to_owned()))
}

fn opened(opened: Result<Open, MountError>) -> Answer {
    match opened {
        Ok(open) => {
            let (kinds, open): (Vec<NamespaceKind>, Vec<OwnedFd>) = open.into_iter().unzip();
            Ok((write(&Ok::<_, MountError>(kinds))?, open))
        }
        Err(error) => answer(&Err::<(), _>(error)),
    }
}

fn link_answer<T>(answer: Result<T, FurnishError>) -> Result<T, LinkError> {
    answer.map_err(LinkError::Link)
}

fn passed(descriptors: Vec<OwnedFd>, kinds: &[NamespaceKind]) -> Result<Process, KernelError> {
    let mut descriptors = descriptors.into_iter();
    let pidfd = descriptors.next().ok_or(KernelError::Gone { pid: 0 })?;
    Process::watched(Opened::passed(pidfd, kinds.iter().copied().zip(descriptors).collect())?)
}

fn held(opened: Result<Opened, KernelError>) -> Answer {
    let Opened { pidfd, namespaces, .. } = match opened {
        Ok(opened) => opened,
        Err(error) => return answer(&Err::<Vec<NamespaceKind>, _>(error)),
    };
    let (kinds, open): (Vec<NamespaceKind>, Vec<OwnedFd>) =
        namespaces.into_iter().map(|namespace| (namespace.kind, OwnedFd::from(namespace.open))).unzip();
    Ok((write(&Ok::<_, KernelError>(kinds))?, std::iter::once(pidfd).chain(open).collect()))
}

async fn renew(descriptors: Vec<OwnedFd>, use_number: u64, within: Duration) -> Answer {
    let process = match passed(descriptors, &[NamespaceKind::Net]) {
        Ok(process) => Arc::new(process),
        Err(error) => return answer(&Err::<(), _>(RenewError::from(error))),
    };
    let renewed = linux::renewed(Arc::clone(&process), use_number, within).await;
    let renewed = renewed.and_then(|renewed| Ok((renewed, process.open(NamespaceKind::Net)?)));
    match renewed {
        Ok((renewed, new)) => Ok((write(&Ok::<_, RenewError>(renewed))?, vec![new])),
        Err(error) => answer(&Err::<(), _>(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::netns::folders::Folder;
    use crate::netns::helper::scripted::NOBODYS;

    /// Needs root.
    #[test]
    fn it_ends_when_the_thread_that_mounts_does_not_find_back() {
        let root = tempfile::tempdir().unwrap();
        let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let helper = |mason: Option<Mason>| {
            let (ours, theirs) = channel::pair().unwrap();
            let hosts = Hosts { net: NOBODYS, ipc: NOBODYS, pid: NOBODYS, uts: NOBODYS, user: NOBODYS, mounts: mason.is_some() };
            let lock = File::open("/dev/null").unwrap().into();
            let begun = Begun { hosts, runtime: runtime(), links: None, mason, cni: None, lock, log: LogHandle::nobodys() };
            (ours, std::thread::spawn(move || begun.serve(&Arc::new(theirs))))
        };
        let (ours, ended) = helper(Some(Mason::without_way_back(root.path()).unwrap()));
        let folder = Folder::new("p", "a").unwrap();
        let body = write(&Verb::MakeFolder { folder, kinds: vec![NamespaceKind::Net] }).unwrap();
        channel::send(ours.as_fd(), &Message { number: 1, body, descriptors: Vec::new() }).unwrap();
        // By itself: the daemon is there.
        assert_eq!(ended.join().unwrap(), ExitCode::FAILURE);

        let (ours, ended) = helper(Some(Mason::without_way_back(root.path()).unwrap()));
        drop(ours);
        assert_eq!(ended.join().unwrap(), ExitCode::SUCCESS, "the daemon's end is none of its faults");
    }
}
