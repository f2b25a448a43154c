//! The proof that a network namespace is as it was when it was ready, for those that are used again as they are (`reuse = "verified"`).
//!
//! [`Baseline::take`] reads all that a joiner could change, when nobody has been there yet; [`inspect`] reads it again after a use, when
//! nobody is there any more, and says [`Verdict::Clean`] or [`Verdict::Dirty`] with each [`Difference`].
//!
//! ```text
//!   structure that differs        dirty: it is never repaired
//!   what comes about by and by    removed, and looked for again: clean, or dirty if it is still there
//!   unreadable, late              dirty
//! ```
//!
//! What it promises: clean means that each of these is byte for byte what it was, but for counters and times: links with all that the kernel
//! tells of them, addresses and their labels, routes of all tables, rules, nexthops, permanent and proxy neighbours and the settings for the others, hardware
//! addresses that are listened to, queueing, filters, XDP, nftables, the older tables, ipsets and their like, services of IPVS, IPsec, multicast groups,
//! settings of MPTCP and segment routing · that there is no socket beyond the baseline's, of any family, wherever its owner is · that there are
//! no connections without an owner, learnt neighbours and routes, metrics of TCP, tracked connections.
//!
//! Two more belong to it where joiners could leave them, and are asked for by themselves: the ipc objects of a shared ipc namespace ([`Objects`]),
//! and what the host tracks for the slot's addresses ([`HostConnections`]).
//!
//! What it deliberately does not look at: processes, the files that joiners share, the host's end of the link, features of links that ethtool sets,
//! ports of FOU and tunnels of L2TP without a session. At [`Depth::Usual`] neither what takes more than NET_ADMIN to leave: [`Depth::Privileged`]
//! also compares /proc/sys/net (not the settings of ipc), but nobody sees programs that a privileged joiner attached without link or filter
//! (`bpf(2)`): after one that could, better retire.
//!
//! What can go wrong: see [`InspectError`]. All of it is done by a thread that is made for it, goes in and ends there ([`place`]); it is bounded in
//! number, and one that comes too late is left to end by itself.

mod facts;
mod files;
mod generic;
mod glance;
mod host;
mod ipc;
mod legacy;
mod link;
mod netfilter;
mod place;
mod route;
mod shown;
mod sockets;
mod transient;
mod verdict;
mod xfrm;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore, oneshot};

pub use host::HostConnections;
pub use ipc::Objects;
pub use verdict::{Difference, InspectError, Kind, Leftover, LeftoverKind, Verdict};

use facts::Section;
use generic::Opens;
use netfilter::Ruleset;
use place::{Place, Until};
use sockets::Sockets;
use transient::Transients;

/// Threads that are inside namespaces at the same time. The kernel's locks make more of them pointless.
const MOST_AT_ONCE: usize = 4;
/// What they need, and some.
const STACK: usize = 256 * 1024;

static TURNS: Semaphore = Semaphore::const_new(MOST_AT_ONCE);

/// How much is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Depth {
    /// What a joiner with NET_ADMIN or less could change.
    Usual,
    /// Also all settings below /proc/sys/net, which a privileged one can write: some milliseconds more.
    Privileged,
}

/// A namespace as it was when it was ready.
#[derive(Debug)]
pub struct Baseline {
    structure: Structure,
    sockets: Sockets,
    opens: Opens,
    /// Held by an inspection, whose own sockets another one would find.
    turn: Arc<Mutex<()>>,
}

/// All that is compared and never repaired.
#[derive(Debug)]
struct Structure {
    sections: Vec<Section>,
    ruleset: Ruleset,
    settings: Option<Section>,
}

impl Baseline {
    /// Reads all that is compared later. The namespace must be furnished and at rest, with nobody but its keeper inside: what is there is
    /// taken for right. `within` is for all of it.
    ///
    /// Cancel safe: nothing is changed.
    ///
    /// # Errors
    /// When something cannot be read, or not in time: the namespace cannot be verified.
    pub async fn take(namespace: BorrowedFd<'_>, depth: Depth, within: Duration) -> Result<Arc<Self>, InspectError> {
        visit(namespace, Until { at: Instant::now() + within, limit: within }, None, move |place| {
            let sockets = sockets::take(place)?;
            let (structure, _) = Structure::read(place, depth, None)?;
            let opens = Opens::take(place, sockets.are_without_tcp())?;
            Ok(Arc::new(Self { structure, sockets, opens, turn: Arc::default() }))
        })
        .await
    }
}

/// Compares, and removes what may be removed; see the module. Nobody may be inside but the keeper that the baseline knows.
///
/// A [`Depth::Privileged`] inspection needs a baseline of that depth, or what it lacks counts as unreadable. `within` is for all of it; what is late
/// is dirty. Not cancel safe, in the way of a mutation: what was begun is carried out.
pub async fn inspect(namespace: BorrowedFd<'_>, baseline: &Arc<Baseline>, depth: Depth, within: Duration) -> Verdict {
    let until = Until { at: Instant::now() + within, limit: within };
    let late = Verdict::Dirty(vec![InspectError::Late { limit: within }.into()]);
    let Ok(turn) = tokio::time::timeout(within, Arc::clone(&baseline.turn).lock_owned()).await else { return late };
    let baseline = Arc::clone(baseline);
    let deed = move |place: &mut Place| inspect_inside(place, &baseline, depth);
    visit(namespace, until, Some(turn), deed).await.unwrap_or_else(|error| Verdict::Dirty(vec![error.into()]))
}

/// What is different, and what was left by and by: told, and left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// What would make it dirty.
    pub differences: Vec<Difference>,
    /// What would be removed.
    pub leftovers: Vec<Leftover>,
}

/// Compares at [`Depth::Usual`], and changes nothing. Whoever is inside shows by sockets.
///
/// # Errors
/// Something cannot be read, or not in time.
pub async fn look(namespace: BorrowedFd<'_>, baseline: &Arc<Baseline>, within: Duration) -> Result<Seen, InspectError> {
    let until = Until { at: Instant::now() + within, limit: within };
    let turn =
        tokio::time::timeout(within, Arc::clone(&baseline.turn).lock_owned()).await.map_err(|_| InspectError::Late { limit: within })?;
    let baseline = Arc::clone(baseline);
    let deed = move |place: &mut Place| {
        let mut sockets = sockets::look_settled(place, &baseline.sockets)?;
        let (structure, passing) = Structure::read(place, Depth::Usual, Some(&baseline.structure))?;
        let mut differences = baseline.structure.differences(&structure)?;
        differences.append(&mut sockets.differences);
        let (before, opens) = (&baseline.sockets, &baseline.opens);
        let found = Transients::with(place, sockets, passing.neighbours, passing.learnt_routes, before, opens)?;
        Ok(Seen { differences, leftovers: found.told() })
    };
    visit(namespace, until, Some(turn), deed).await
}

fn inspect_inside(place: &mut Place, baseline: &Baseline, depth: Depth) -> Result<Verdict, InspectError> {
    let mut sockets = sockets::look(place, &baseline.sockets)?;
    let (structure, passing) = Structure::read(place, depth, Some(&baseline.structure))?;
    let mut differences = baseline.structure.differences(&structure)?;
    if !differences.is_empty() || !sockets.differences.is_empty() {
        sockets = sockets::look_settled(place, &baseline.sockets)?;
        differences.append(&mut sockets.differences);
        if !differences.is_empty() {
            return Ok(Verdict::Dirty(differences));
        }
    }
    let (before, opens) = (&baseline.sockets, &baseline.opens);
    let found = Transients::with(place, sockets, passing.neighbours, passing.learnt_routes, before, opens)?;
    let outcome = transient::clear(place, found, before, opens)?;
    place.in_time()?;
    Ok(match outcome {
        Ok(removed) => Verdict::Clean { removed },
        Err(differences) => Verdict::Dirty(differences),
    })
}

impl Structure {
    /// With what was learnt, which is no part of it.
    fn read(place: &mut Place, depth: Depth, before: Option<&Self>) -> Result<(Self, route::Routed), InspectError> {
        let mut routed = route::read(place)?;
        let mut sections = std::mem::take(&mut routed.sections);
        sections.extend(xfrm::read(place)?);
        sections.push(netfilter::things(place)?);
        sections.push(generic::settings(place)?);
        sections.push(files::multicast(place)?);
        sections.push(files::virtual_servers(place)?);
        sections.push(files::legacy_tables(place)?);
        let ruleset = netfilter::ruleset(place, before.map(|before| &before.ruleset))?;
        let settings = match depth {
            Depth::Usual => None,
            Depth::Privileged => Some(files::settings(place)?),
        };
        Ok((Self { sections, ruleset, settings }, routed))
    }

    fn differences(&self, is: &Self) -> Result<Vec<Difference>, InspectError> {
        let mut found = facts::differences(&self.sections, &is.sections);
        found.extend(facts::differences(std::slice::from_ref(&self.ruleset.section), std::slice::from_ref(&is.ruleset.section)));
        match (&self.settings, &is.settings) {
            (_, None) => {}
            (Some(was), Some(is)) => found.extend(facts::differences(std::slice::from_ref(was), std::slice::from_ref(is))),
            (None, Some(_)) => return Err(InspectError::reading("settings, which the baseline does not have")(Errno::NODATA)),
        }
        Ok(found)
    }
}

/// Does it in a thread that goes into the network namespace, and ends there.
async fn visit<T: Send + 'static>(
    namespace: BorrowedFd<'_>,
    until: Until,
    inspection: Option<OwnedMutexGuard<()>>,
    deed: impl FnOnce(&mut Place) -> Result<T, InspectError> + Send + 'static,
) -> Result<T, InspectError> {
    let namespace = owned(namespace)?;
    let visit = move || {
        // Given back when the sockets are closed.
        let _inspection = inspection;
        Place::enter(&namespace, until).and_then(|mut place| deed(&mut place))
    };
    by_thread(until, visit).await
}

/// Does it in a thread that is made for it, when there are not too many of them.
async fn by_thread<T: Send + 'static>(
    until: Until,
    deed: impl FnOnce() -> Result<T, InspectError> + Send + 'static,
) -> Result<T, InspectError> {
    let work = async {
        // Never closed.
        let turn = TURNS.acquire().await;
        let (to, answer) = oneshot::channel();
        let visitor = move || {
            let _turn = turn;
            drop(to.send(deed()));
        };
        std::thread::Builder::new().name("nspool-inspect".to_owned()).stack_size(STACK).spawn(visitor).map_err(failed("a thread"))?;
        answer.await.unwrap_or_else(|_| Err(InspectError::reading("the namespace, by a thread that failed")(Errno::FAULT)))
    };
    tokio::time::timeout_at(until.at.into(), work).await.unwrap_or(Err(InspectError::Late { limit: until.limit }))
}

fn owned(fd: BorrowedFd<'_>) -> Result<OwnedFd, InspectError> {
    fd.try_clone_to_owned().map_err(failed("the namespace's descriptor"))
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> InspectError {
    move |error| InspectError::reading(what)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
