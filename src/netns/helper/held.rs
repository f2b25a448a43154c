//! Kernel, held processes, snapshots and links as the daemon knows them, by verbs of the helper.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::io::Errno;

use super::client::Helper;
use super::session::{ANSWERED_WITHIN, HelperError, SLACK, Session};
use super::verbs::{LinkError, Verb};
use crate::engine::NamespaceKind;
use crate::level;
use crate::netns::files::SharedFile;
use crate::netns::inspection::{Depth, InspectError, Seen, Verdict};
use crate::netns::linux::{self, Namespace, Opened, Process};
use crate::netns::managed::host::Finding;
use crate::netns::managed::names::HostEnd;
use crate::netns::managed::{FurnishError, Plan};
use crate::netns::networks::{Found, Links, NetworkError};
use crate::netns::{Held, Kernel, KernelError, Members, NamespaceId, RenewError, Renewed, Snapshot, WrongAnswer};

impl From<HelperError> for KernelError {
    fn from(error: HelperError) -> Self {
        Self::Failed { what: "the kernel".to_owned(), message: error.to_string() }
    }
}

impl From<HelperError> for NetworkError {
    fn from(error: HelperError) -> Self {
        // As with a worker that does not answer: nobody knows whether it was done.
        Self::Link(FurnishError::Refused { step: "asking for it".into(), subject: error.to_string(), cause: Errno::AGAIN })
    }
}

fn unknown(error: &impl std::fmt::Display) -> InspectError {
    InspectError::Unreadable { what: format!("the namespaces ({error})"), cause: Errno::AGAIN }
}

fn duplicate(descriptor: &OwnedFd) -> Result<OwnedFd, KernelError> {
    descriptor.try_clone().map_err(|error| KernelError::Failed { what: "a process's descriptor".to_owned(), message: error.to_string() })
}

/// The daemon's [`Kernel`].
pub struct Remote(pub Arc<Helper>);

impl Kernel for Remote {
    fn hold<'a>(&'a self, pid: u32, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>> {
        async move {
            let session = self.0.session().await?;
            let verb = Verb::Hold { pid, kinds: kinds.to_vec() };
            let (held, descriptors): (Result<Vec<NamespaceKind>, KernelError>, _) = session.ask(verb, Vec::new(), ANSWERED_WITHIN).await?;
            let held = held?;
            let mut descriptors = descriptors.into_iter();
            let pidfd = descriptors.next();
            let all_there = descriptors.len() == held.len() && kinds.iter().chain([&NamespaceKind::Net]).all(|kind| held.contains(kind));
            let Some(pidfd) = pidfd.filter(|_| all_there) else {
                return Err(session.confused("hold a process", "descriptors are missing").into());
            };
            match Opened::passed(pidfd, held.into_iter().zip(descriptors).collect()) {
                Ok(opened) if opened.pid == pid => {
                    let process = Arc::new(Process::watched(opened)?);
                    Ok(Box::new(RemoteHeld { process, helper: Arc::clone(&self.0), turn: Arc::default() }) as Box<dyn Held>)
                }
                Ok(_) => Err(session.confused("hold a process", "it holds another process").into()),
                Err(KernelError::Gone { .. }) => Err(KernelError::Gone { pid }),
                Err(error) => Err(session.confused("hold a process", &error.to_string()).into()),
            }
        }
        .boxed()
    }

    fn host_namespace(&self, kind: NamespaceKind) -> Result<NamespaceId, KernelError> {
        Ok(match kind {
            NamespaceKind::Net => self.0.hosts.net,
            NamespaceKind::Ipc => self.0.hosts.ipc,
            NamespaceKind::Pid => self.0.hosts.pid,
            NamespaceKind::Uts => self.0.hosts.uts,
            NamespaceKind::User => self.0.hosts.user,
        })
    }

    fn members<'a>(&'a self, kind: NamespaceKind, of: &'a [NamespaceId]) -> BoxFuture<'a, Result<Members, KernelError>> {
        async move {
            let session = self.0.session().await?;
            let verb = Verb::Members { kind, of: of.to_vec() };
            let (found, _): (Result<Vec<(NamespaceId, Vec<_>)>, KernelError>, _) = session.ask(verb, Vec::new(), ANSWERED_WITHIN).await?;
            let found: Members = found?.into_iter().collect();
            // One that is not told of would pass for empty.
            if of.iter().all(|namespace| found.contains_key(namespace)) {
                Ok(found)
            } else {
                Err(session.confused("look for members", "a namespace is missing").into())
            }
        }
        .boxed()
    }

    fn read_files(&self, files: Vec<(PathBuf, u64)>) -> BoxFuture<'_, Vec<Result<SharedFile, String>>> {
        async move {
            let paths: Vec<PathBuf> = files.iter().map(|(path, _)| path.clone()).collect();
            match self.0.ask::<Vec<Result<SharedFile, String>>>(Verb::ReadFiles { files }, Vec::new(), ANSWERED_WITHIN).await {
                Ok((read, _)) if read.len() == paths.len() && read.iter().zip(&paths).all(|(file, path)| is_of(file, path)) => read,
                Ok(_) => vec![Err("the helper process read other files".to_owned()); paths.len()],
                Err(error) => vec![Err(error.to_string()); paths.len()],
            }
        }
        .boxed()
    }

    fn replace_files(&self, files: Vec<SharedFile>) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let replaced = self.0.ask::<Result<(), String>>(Verb::ReplaceFiles { files }, Vec::new(), ANSWERED_WITHIN).await;
            replaced.map_err(|error| error.to_string())?.0
        }
        .boxed()
    }

    fn since_boot(&self) -> Duration {
        linux::since_boot()
    }
}

fn is_of(file: &Result<SharedFile, String>, path: &PathBuf) -> bool {
    file.as_ref().map_or(true, |file| file.path == *path)
}

#[derive(Clone)]
struct RemoteHeld {
    process: Arc<Process>,
    helper: Arc<Helper>,
    /// Of renewals.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for RemoteHeld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.process.fmt(f)
    }
}

impl RemoteHeld {
    async fn renewed(&self, use_number: u64, within: Duration) -> Result<Renewed, RenewError> {
        let _turn = self.turn.lock().await;
        let descriptors = vec![duplicate(self.process.pidfd())?, self.process.open(NamespaceKind::Net)?];
        let session = self.helper.session().await.map_err(KernelError::from)?;
        let asked = session.ask(Verb::Renew { use_number, within }, descriptors, within + SLACK).await;
        let (renewed, descriptors): (Result<Renewed, RenewError>, Vec<OwnedFd>) = asked.map_err(KernelError::from)?;
        let renewed = renewed?;
        let new =
            descriptors.into_iter().next().ok_or_else(|| session.confused("renew", "without a namespace")).map_err(KernelError::from)?;
        let new = Arc::new(Namespace::passed(NamespaceKind::Net, new.into())?);
        let pid = self.process.pid;
        // Proven once more, as far as descriptors tell: the old one is still held here.
        if new.id != renewed.namespace || self.process.held(NamespaceKind::Net).is_none_or(|old| old.id == new.id) {
            return Err(RenewError::Wrong { pid, wrong: WrongAnswer::NotNew });
        }
        if new.id == self.helper.hosts.net {
            return Err(RenewError::Wrong { pid, wrong: WrongAnswer::TheHosts });
        }
        self.process.hold_instead(&new);
        Ok(renewed)
    }

    /// Not cancel safe: the helper would have it for good, and hold the namespace.
    async fn taken(&self, depth: Depth, addresses: Vec<IpAddr>, within: Duration) -> Result<RemoteSnapshot, InspectError> {
        let failed = |what: &str| InspectError::Unreadable { what: what.to_owned(), cause: Errno::NOENT };
        let held: Vec<_> = [NamespaceKind::Net, NamespaceKind::Ipc].into_iter().filter_map(|kind| self.process.held(kind)).collect();
        let kinds = held.iter().map(|namespace| namespace.kind).collect();
        let mut descriptors = vec![duplicate(self.process.pidfd()).map_err(|_| failed("the process"))?];
        for namespace in &held {
            descriptors.push(namespace.open.try_clone().map_err(|_| failed("a namespace"))?.into());
        }
        let session = self.helper.session().await.map_err(|error| unknown(&error))?;
        let verb = Verb::Snapshot { kinds, depth, addresses, within };
        let asked = session.ask::<Result<u64, InspectError>>(verb, descriptors, within + SLACK).await;
        let (taken, _) = asked.map_err(|error| unknown(&error))?;
        Ok(RemoteSnapshot { snapshot: taken?, session })
    }
}

impl Held for RemoteHeld {
    fn pid(&self) -> u32 {
        self.process.pid
    }

    fn is_alive(&self) -> bool {
        self.process.is_alive()
    }

    fn exited(&self) -> BoxFuture<'_, ()> {
        self.process.exited().boxed()
    }

    fn namespace(&self, kind: NamespaceKind) -> Option<NamespaceId> {
        self.process.held(kind).map(|namespace| namespace.id)
    }

    fn open(&self, kind: NamespaceKind) -> Result<OwnedFd, KernelError> {
        self.process.open(kind)
    }

    fn renew(&self, use_number: u64, within: Duration) -> BoxFuture<'_, Result<Renewed, RenewError>> {
        let held = self.clone();
        async move {
            let renewal = self.helper.carried_out(async move { held.renewed(use_number, within).await }).await;
            renewal.unwrap_or_else(|error| {
                Err(RenewError::Kernel(KernelError::Failed { what: "the task of a renewal".to_owned(), message: error.to_string() }))
            })
        }
        .boxed()
    }

    fn snapshot(&self, depth: Depth, addresses: Vec<IpAddr>, within: Duration) -> BoxFuture<'_, Result<Arc<dyn Snapshot>, InspectError>> {
        let held = self.clone();
        async move {
            // To its end: one that nobody waits for any more is dropped when it is there, and forgotten by the helper then.
            let taken = self.helper.carried_out(async move { held.taken(depth, addresses, within).await }).await;
            Ok(Arc::new(taken.unwrap_or_else(|error| Err(unknown(&error)))?) as Arc<dyn Snapshot>)
        }
        .boxed()
    }
}

/// Of one helper; no other knows it.
#[derive(Debug)]
struct RemoteSnapshot {
    session: Arc<Session>,
    snapshot: u64,
}

impl Drop for RemoteSnapshot {
    fn drop(&mut self) {
        self.session.tell(&Verb::Forget { snapshot: self.snapshot });
    }
}

impl Snapshot for RemoteSnapshot {
    fn inspect(&self, depth: Depth, within: Duration) -> BoxFuture<'_, Verdict> {
        async move {
            let verb = Verb::Inspect { snapshot: self.snapshot, depth, within };
            match self.session.ask(verb, Vec::new(), within + SLACK).await {
                Ok((verdict, _)) => verdict,
                Err(error) => Verdict::Dirty(vec![unknown(&error).into()]),
            }
        }
        .boxed()
    }

    fn look(&self, within: Duration) -> BoxFuture<'_, Result<Seen, InspectError>> {
        async move {
            let asked = self.session.ask(Verb::Look { snapshot: self.snapshot, within }, Vec::new(), within + SLACK).await;
            asked.map_err(|error| unknown(&error))?.0
        }
        .boxed()
    }
}

/// The daemon's [`Links`].
pub struct RemoteLinks(pub Arc<Helper>);

impl RemoteLinks {
    async fn ask<T: serde::de::DeserializeOwned>(&self, verb: Verb, descriptors: Vec<OwnedFd>) -> Result<T, NetworkError> {
        let (answer, _) = self.0.ask::<Result<T, LinkError>>(verb, descriptors, ANSWERED_WITHIN).await?;
        answer.map_err(NetworkError::from)
    }
}

impl Links for RemoteLinks {
    fn furnish<'a>(&'a self, held: &'a dyn Held, plan: &'a Plan) -> BoxFuture<'a, Result<(), NetworkError>> {
        async move {
            let namespace = held.open(NamespaceKind::Net).map_err(NetworkError::Namespace)?;
            let end = &plan.host_end;
            // Before it is asked for: this helper may end with the answer on its way, and the next one is told then which links there should be.
            let before = self.0.ports().insert(end.clone(), plan.clone());
            let furnished = self.ask::<()>(Verb::Furnish { plan: plan.clone() }, vec![namespace]).await;
            if furnished.is_err() {
                let mut ports = self.0.ports();
                // What had that name before has it still, unless it was taken away meanwhile.
                if let (Some(_), Some(before)) = (ports.remove(end), before) {
                    ports.insert(end.clone(), before);
                }
            }
            furnished
        }
        .boxed()
    }

    fn strip<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.0.ports().remove(end);
        self.ask(Verb::Strip { end: end.clone() }, Vec::new()).boxed()
    }

    fn cut<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>> {
        self.0.ports().remove(end);
        self.ask(Verb::Cut { end: end.clone() }, Vec::new()).boxed()
    }

    fn links(&self) -> BoxFuture<'_, Result<Found, NetworkError>> {
        self.ask(Verb::Links, Vec::new()).boxed()
    }

    fn adopt(&self, plans: Vec<Plan>) -> BoxFuture<'_, Result<(), NetworkError>> {
        self.0.ports().extend(plans.iter().map(|plan| (plan.host_end.clone(), plan.clone())));
        self.ask(Verb::Adopt { plans }, Vec::new()).boxed()
    }

    fn mend(&self) -> BoxFuture<'_, Result<Vec<Finding>, NetworkError>> {
        self.ask(Verb::Mend, Vec::new()).boxed()
    }

    fn tear_down(&self) -> BoxFuture<'_, Result<Vec<FurnishError>, NetworkError>> {
        self.ask(Verb::TearDown, Vec::new()).boxed()
    }

    fn changes(&self) -> level::Receiver<u64> {
        self.0.news()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use parking_lot::Mutex;
    use tokio::sync::mpsc;

    use super::*;
    use crate::netns::helper::scripted::{NOBODYS, Said, begin, opened, own_process, pidfd, said, scripted};
    use crate::netns::managed::names::Names;
    use crate::netns::managed::network::Interface;

    /// It is not believed, it is ended, and the next one, who does better, is asked.
    async fn is_not_believed(what: &str, nonsense: impl Fn() -> Said + Send + Sync + 'static) {
        let own = std::process::id();
        let starter = scripted(move |turn, _| Some(if turn == 1 { nonsense() } else { own_process() }));
        let helper = Helper::start(starter, begin()).await.unwrap();
        let kernel = Remote(Arc::clone(&helper));
        let first = kernel.hold(own, &[NamespaceKind::Net]).await;
        let Err(KernelError::Failed { message, .. }) = first else { panic!("{what}: {first:?}") };
        assert!(message.contains("confused") || message.contains("not there"), "{what}: {message}");
        let held = kernel.hold(own, &[NamespaceKind::Net]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(held.is_alive() && held.pid() == own, "{what}");
    }

    #[tokio::test]
    async fn nonsense_is_not_believed() {
        let ok = || br#"{"Ok":["net"]}"#.to_vec();
        is_not_believed("no answer at all", || (b"what?".to_vec(), Vec::new())).await;
        is_not_believed("another verb's answer", || (b"{\"Ok\":7}".to_vec(), Vec::new())).await;
        is_not_believed("no descriptors", move || (ok(), Vec::new())).await;
        is_not_believed("no namespace", move || (ok(), vec![pidfd(std::process::id())])).await;
        is_not_believed("not all kinds", || (br#"{"Ok":[]}"#.to_vec(), vec![pidfd(std::process::id())])).await;
        is_not_believed("no pidfd", move || (ok(), vec![opened("/dev/null"), opened("/proc/self/ns/net")])).await;
        is_not_believed("another's pidfd", move || (ok(), vec![pidfd(1), opened("/proc/self/ns/net")])).await;
        is_not_believed("no namespace's descriptor", move || (ok(), vec![pidfd(std::process::id()), opened("/dev/null")])).await;
        is_not_believed("a namespace of another kind", move || (ok(), vec![pidfd(std::process::id()), opened("/proc/self/ns/ipc")])).await;
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_told_of_does_not_pass_for_empty() {
        let other = NamespaceId { dev: 0, ino: 2 };
        let told = || said(&Ok::<_, KernelError>(vec![(NOBODYS, Vec::<crate::netns::Process>::new())]));
        let kernel = Remote(Helper::start(scripted(move |_, _| Some(told())), begin()).await.unwrap());
        assert_eq!(kernel.members(NamespaceKind::Net, &[NOBODYS]).await.unwrap()[&NOBODYS], []);
        kernel.members(NamespaceKind::Net, &[NOBODYS, other]).await.unwrap_err();
    }

    async fn own(helper: &Arc<Helper>) -> Box<dyn Held> {
        Remote(Arc::clone(helper)).hold(std::process::id(), &[NamespaceKind::Net]).await.unwrap()
    }

    fn plan(address: &str) -> Plan {
        let ipv4 = Interface { address: address.parse().unwrap(), prefix: 24, gateway: "10.0.0.1".parse().unwrap() };
        let host_end = Names::of("a").host_end(0, 1);
        Plan { host_end, bridge: "b".to_owned(), isolated: true, mtu: 1500, mac: [2; 6], ipv4, ipv6: None }
    }

    /// Furnishings are answered when the test says how, and plans that the next helper is told of come back.
    async fn furnisher() -> (Arc<Helper>, SyncSender<Result<(), LinkError>>, mpsc::Receiver<Vec<Plan>>) {
        let (say, answers) = sync_channel(8);
        let (tell, told) = mpsc::channel(1);
        let answers = Mutex::new(answers);
        let starter = scripted(move |_, verb| {
            if let Verb::Adopt { plans } = verb {
                tell.blocking_send(plans.clone()).unwrap();
            }
            let is_furnishing = matches!(verb, Verb::Furnish { .. });
            Some(if matches!(verb, Verb::Hold { .. }) {
                own_process()
            } else {
                said(&if is_furnishing { answers.lock().recv().unwrap() } else { Ok(()) })
            })
        });
        (Helper::start(starter, begin()).await.unwrap(), say, told)
    }

    fn refused() -> Result<(), LinkError> {
        Err(LinkError::Link(FurnishError::AlreadyThere { name: "it".to_owned() }))
    }

    #[tokio::test]
    async fn the_next_helper_is_told_of_a_link_whose_furnishing_the_last_one_has_just_answered() {
        let (helper, say, mut told) = furnisher().await;
        let (held, links, plan) = (own(&helper).await, RemoteLinks(Arc::clone(&helper)), plan("10.0.0.2"));
        let first = helper.session().await.unwrap();
        let mut furnishing = links.furnish(held.as_ref(), &plan);
        assert!(futures::poll!(&mut furnishing).is_pending(), "it is asked for");
        say.send(Ok(())).unwrap();
        // What is asked for later is answered later.
        first.ask::<()>(Verb::Ping, Vec::new(), ANSWERED_WITHIN).await.unwrap();
        first.end("a test");
        let adopted = tokio::time::timeout(ANSWERED_WITHIN, told.recv()).await.expect("it is told of no link");
        assert_eq!(adopted, Some(vec![plan.clone()]));
        furnishing.await.unwrap();
    }

    #[tokio::test]
    async fn a_link_that_could_not_be_made_takes_no_other_ones_place() {
        let (helper, say, _told) = furnisher().await;
        let (held, links) = (own(&helper).await, RemoteLinks(Arc::clone(&helper)));
        let known = || helper.ports().values().cloned().collect::<Vec<_>>();
        let (one, other) = (plan("10.0.0.2"), plan("10.0.0.3"));
        for answer in [refused(), Ok(()), refused()] {
            say.send(answer).unwrap();
        }
        links.furnish(held.as_ref(), &one).await.unwrap_err();
        assert_eq!(known(), []);
        links.furnish(held.as_ref(), &one).await.unwrap();
        links.furnish(held.as_ref(), &other).await.unwrap_err();
        assert!(known() == std::slice::from_ref(&one), "that of its name stays: {:?}", known());
        let mut furnishing = links.furnish(held.as_ref(), &other);
        assert!(futures::poll!(&mut furnishing).is_pending(), "it is asked for");
        let mut stripping = links.strip(&one.host_end);
        assert!(futures::poll!(&mut stripping).is_pending(), "it is asked for");
        say.send(refused()).unwrap();
        furnishing.await.unwrap_err();
        stripping.await.unwrap();
        assert_eq!(known(), [], "it was taken away meanwhile");
    }

    #[tokio::test]
    async fn a_snapshot_that_nobody_waits_for_any_more_is_forgotten() {
        let (tell, mut told) = mpsc::channel(1);
        let starter = scripted(move |_, verb| {
            if let Verb::Forget { snapshot } = verb {
                tell.blocking_send(*snapshot).unwrap();
            }
            Some(if matches!(verb, Verb::Hold { .. }) { own_process() } else { said(&Ok::<u64, InspectError>(7)) })
        });
        let held = own(&Helper::start(starter, begin()).await.unwrap()).await;
        let mut taking = held.snapshot(Depth::Usual, Vec::new(), Duration::from_secs(1));
        assert!(futures::poll!(&mut taking).is_pending(), "it is asked for");
        drop(taking);
        let forgotten = tokio::time::timeout(ANSWERED_WITHIN, told.recv()).await.expect("the helper has it still");
        assert_eq!(forgotten, Some(7));
    }
}
