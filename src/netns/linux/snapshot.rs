//! What a held process's namespaces were, and the comparison with what they are: [`super::super::inspection`] for each of them.
//!
//! What can go wrong: the process ends meanwhile, so that what is found by its pid may be another's; then nothing is known.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::{Namespace, Process};
use crate::engine::NamespaceKind;
use crate::netns::Snapshot;
use crate::netns::inspection::{self, Baseline, Depth, Difference, HostConnections, InspectError, Objects, Seen, Verdict};

/// The daemon's own, which is the host's.
const HOST: &str = "/proc/self/ns/net";

/// One for all slots, which share its looks.
static CONNECTIONS: OnceLock<HostConnections> = OnceLock::new();

fn hosts() -> io::Result<&'static HostConnections> {
    match CONNECTIONS.get() {
        Some(connections) => Ok(connections),
        None => File::open(HOST).map(|host| CONNECTIONS.get_or_init(|| HostConnections::of(host.into()))),
    }
}

#[derive(Debug)]
struct Kept {
    process: Arc<Process>,
    network: Arc<Namespace>,
    baseline: Arc<Baseline>,
    /// Only of one that shares its ipc namespace.
    ipc: Option<(Arc<Namespace>, Objects)>,
    addresses: Vec<IpAddr>,
}

pub(in crate::netns) async fn take(
    process: Arc<Process>,
    depth: Depth,
    addresses: Vec<IpAddr>,
    within: Duration,
) -> Result<Arc<dyn Snapshot>, InspectError> {
    let network = process.held(NamespaceKind::Net).ok_or_else(|| unreadable("the network namespace", Errno::NOENT))?;
    let baseline = Baseline::take(network.open.as_fd(), depth, within).await?;
    let ipc = match process.held(NamespaceKind::Ipc) {
        Some(namespace) => {
            let objects = objects(&process, &namespace, within).await?;
            Some((namespace, objects))
        }
        None => None,
    };
    Ok(Arc::new(Kept { process, network, baseline, ipc, addresses }))
}

/// The ipc objects, by the files that the process sees.
async fn objects(process: &Process, namespace: &Namespace, within: Duration) -> Result<Objects, InspectError> {
    // Opened anew each time: held, it would keep the container's files mounted.
    let root = open(format!("/proc/{}/root", process.pid), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|errno| unreadable("the root folder", errno))?;
    let objects = Objects::read(namespace.open.as_fd(), root.as_fd(), within).await?;
    if process.is_alive() { Ok(objects) } else { Err(unreadable("the root folder of a process that ended", Errno::SRCH)) }
}

impl Kept {
    async fn ipc_differences(&self, within: Duration) -> Result<Vec<Difference>, InspectError> {
        let Some((namespace, were)) = &self.ipc else { return Ok(Vec::new()) };
        Ok(were.differences(&objects(&self.process, namespace, within).await?))
    }

    /// What the host tracks for the addresses, which the next use has as well.
    async fn forget_connections(&self, within: Duration) -> Verdict {
        if self.addresses.is_empty() {
            return Verdict::Clean { removed: Vec::new() };
        }
        match hosts() {
            Ok(connections) => connections.forget(&self.addresses, within).await,
            Err(error) => Verdict::Dirty(vec![unreadable(HOST, Errno::from_io_error(&error).unwrap_or(Errno::IO)).into()]),
        }
    }
}

impl Snapshot for Kept {
    fn inspect(&self, depth: Depth, within: Duration) -> BoxFuture<'_, Verdict> {
        async move {
            let inside = inspection::inspect(self.network.open.as_fd(), &self.baseline, depth, within);
            let (inside, ipc) = tokio::join!(inside, self.ipc_differences(within));
            let ipc = ipc.unwrap_or_else(|error| vec![error.into()]);
            // After the connections' own ends.
            let outside = if inside.is_clean() && ipc.is_empty() { self.forget_connections(within).await } else { Verdict::Dirty(ipc) };
            both(inside, outside)
        }
        .boxed()
    }

    fn look(&self, within: Duration) -> BoxFuture<'_, Result<Seen, InspectError>> {
        async move {
            let mut seen = inspection::look(self.network.open.as_fd(), &self.baseline, within).await?;
            seen.differences.extend(self.ipc_differences(within).await?);
            Ok(seen)
        }
        .boxed()
    }
}

fn both(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (Verdict::Clean { removed }, Verdict::Clean { removed: more }) => {
            let mut all = removed;
            for leftover in more {
                match all.iter_mut().find(|known| known.kind == leftover.kind) {
                    Some(known) => known.count += leftover.count,
                    None => all.push(leftover),
                }
            }
            Verdict::Clean { removed: all }
        }
        (Verdict::Dirty(differences), Verdict::Clean { .. }) | (Verdict::Clean { .. }, Verdict::Dirty(differences)) => {
            Verdict::Dirty(differences)
        }
        (Verdict::Dirty(mut differences), Verdict::Dirty(more)) => {
            differences.extend(more);
            Verdict::Dirty(differences)
        }
    }
}

fn unreadable(what: &str, cause: Errno) -> InspectError {
    InspectError::Unreadable { what: what.to_owned(), cause }
}
