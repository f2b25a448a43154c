//! Kernel, held processes, snapshots and links as the daemon knows them, by verbs of the helper.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::io::Errno;

use super::client::{ANSWERED_WITHIN, Helper, HelperError, SLACK, Session};
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

fn unknown(error: &HelperError) -> InspectError {
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
        let descriptors = vec![duplicate(self.process.pidfd())?, self.process.open_network()?];
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

    fn open_network(&self) -> Result<OwnedFd, KernelError> {
        self.process.open_network()
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
        async move {
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
            Ok(Arc::new(RemoteSnapshot { snapshot: taken?, session }) as Arc<dyn Snapshot>)
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
            let namespace = held.open_network().map_err(NetworkError::Namespace)?;
            self.ask::<()>(Verb::Furnish { plan: plan.clone() }, vec![namespace]).await?;
            self.0.ports().insert(plan.host_end.clone(), plan.clone());
            Ok(())
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
