//! Who joined by path, which no engine tells: processes found in the namespaces of leases, so that a lease that lasts as long as its joiners does so
//! for them, too.
//!
//! Only leases without a joiner that the engine tells of are counted, and only while there are any; one search for all of them. What it promises: a
//! process that stays longer than two searches are apart is a joiner of its lease; the last one's end is the end of the last joiner. One that came and
//! went in between was not seen: a lease that waits for its first joiner waits on. Where there is a container engine, a process is a container's, as a
//! rule, whose event is on its way: it counts when it is found a second time, and nobody has told of a container.
//!
//! What can go wrong: the search fails, which says nothing · the slot has another use by the time that the search is over (the pool refuses what is older than
//! the use).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::engine::{ContainerId, NamespaceKind};
use crate::nanny::Tools;
use crate::netns::{Held, KernelError, Members, NamespaceId};
use crate::pool::{JoinerSeen, Moment, Untold};
use crate::random::{HashMap, HashSet};

/// A buddy's own.
#[derive(Clone, Copy, Debug)]
struct Own {
    network: NamespaceId,
    /// Processes in it are the placeholder's, which may have children; `None`: it has no process.
    pids: Option<NamespaceId>,
}

/// Which namespaces each buddy has now, as its nanny holds it.
#[derive(Debug, Default)]
pub struct Present(Mutex<HashMap<ContainerId, Own>>);

impl Present {
    /// From now on; without a network namespace there is nobody to be found in it.
    pub fn holds(&self, buddy: &ContainerId, held: &dyn Held) {
        let mut present = self.0.lock();
        match held.namespace(NamespaceKind::Net) {
            Some(network) => drop(present.insert(buddy.clone(), Own { network, pids: held.namespace(NamespaceKind::Pid) })),
            None => drop(present.remove(buddy)),
        }
    }

    /// No longer.
    pub fn forget(&self, buddy: &ContainerId) {
        self.0.lock().remove(buddy);
    }

    fn of(&self, buddy: &Arc<str>) -> Option<Own> {
        self.0.lock().get(&ContainerId(Arc::clone(buddy))).copied()
    }
}

/// Counts so often, until `stop`.
pub async fn run(tools: Arc<Tools>, every: Duration, stop: CancellationToken) {
    let counting = async {
        let mut before = Seen::default();
        loop {
            tools.pool.until(|state| !state.untold().is_empty()).await;
            before = count(&tools, &before).await;
            tokio::time::sleep(every).await;
        }
    };
    stop.run_until_cancelled(counting).await;
}

/// Processes that were found, by their buddy.
type Seen = HashMap<Arc<str>, Vec<Arc<str>>>;

/// Answers whom it has found.
async fn count(tools: &Tools, before: &Seen) -> Seen {
    let as_of = tools.pool.now();
    let untold: Vec<(Untold, Own)> = {
        let untold = tools.pool.read(|state| state.untold());
        untold.into_iter().filter_map(|untold| Some((untold.clone(), tools.present.of(&untold.buddy)?))).collect()
    };
    let networks: Vec<NamespaceId> = untold.iter().map(|(_, own)| own.network).collect();
    let pids: Vec<NamespaceId> = untold.iter().filter_map(|(_, own)| own.pids).filter(|_| tools.breed.may_fork).collect();
    let found = async {
        let found = tools.kernel.members(NamespaceKind::Net, &networks).await?;
        // After the processes themselves: a child that is in the one is in the other by then.
        let own = if pids.is_empty() { Members::default() } else { tools.kernel.members(NamespaceKind::Pid, &pids).await? };
        Ok::<_, KernelError>((found, own.into_values().flatten().map(|process| process.pid).collect::<HashSet<_>>()))
    };
    let (found, placeholders) = match found.await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "who joined by path cannot be counted");
            return before.clone();
        }
    };
    let mut seen = Seen::default();
    for (untold, own) in untold {
        let inside = inside(&untold, own.network, &found, &placeholders);
        let earlier = before.get(&untold.buddy).map_or(&[][..], Vec::as_slice);
        let certain = |process: &&Arc<str>| tools.breed.native || untold.processes.contains(process) || earlier.contains(process);
        tell(tools, &untold, &inside.iter().filter(certain).cloned().collect::<Vec<_>>(), as_of);
        seen.insert(untold.buddy, inside);
    }
    seen
}

fn inside(untold: &Untold, network: NamespaceId, found: &Members, placeholders: &HashSet<u32>) -> Vec<Arc<str>> {
    let is_own = |pid: u32| pid == untold.pid || placeholders.contains(&pid);
    let inside = found.get(&network).into_iter().flatten().filter(|process| !untold.is_told && !is_own(process.pid));
    inside.map(|process| format!("process {}", process.pid).into()).collect()
}

fn tell(tools: &Tools, untold: &Untold, inside: &[Arc<str>], as_of: Moment) {
    tools.pool.with(|state, now| {
        for joiner in inside {
            let (buddy, joiner) = (Arc::clone(&untold.buddy), Arc::clone(joiner));
            // It may have ended since: at a release, the look that follows says who is there. Older than the slot's present use, it concerns another
            // lease.
            let _ = state.joined(now, &JoinerSeen { buddy, joiner, namespace_id: None, live: false, bounded: false, as_of });
        }
        for joiner in untold.processes.iter().filter(|known| !inside.contains(known)) {
            state.joiner_removed(now, &untold.buddy, joiner);
        }
    });
}
