//! One look at everything, with the pool read before and after. No judgement here.

use std::sync::Arc;

use futures::stream::{self, StreamExt};

use crate::engine::{Container, ContainerId, Engine, EngineError, ErrorClass, NamespaceKind};
use crate::ledger::Table;
use crate::nanny::leftovers::Leftover;
use crate::nanny::looks::Listed;
use crate::nanny::minder::DetachedList;
use crate::nanny::{Tools, hold_there};
use crate::netns::{Held, KernelError, NamespaceId};
use crate::pool::state::{SlotState, State};
use crate::pool::{Moment, Namespace, SlotIndex, SlotView};
use crate::random::{HashMap, HashSet};

/// Inspections at a time: an audit is in no hurry, callers are.
const INSPECTIONS: usize = 4;
/// Ready slots whose namespaces are searched together: each batch costs two scans of the processes, and holds this many namespaces open.
const SEARCHED_TOGETHER: usize = 256;

/// What the pool says at one moment.
pub(super) struct Books {
    pub(super) slots: Vec<SlotView>,
    pub(super) told: Table,
    /// Containers known to have joined, by leased slot.
    pub(super) joiners: HashMap<SlotIndex, usize>,
}

/// What the kernel says of one buddy.
pub(super) enum Process {
    /// There is none.
    Gone,
    /// It is there, in this network namespace, with these beside it (looked for only when the slot is ready).
    There { network: Option<NamespaceId>, strangers: Vec<String> },
    /// Nobody can tell.
    Unknown(String),
}

pub(super) struct Sight {
    pub(super) before: Books,
    pub(super) after: Books,
    /// `None`: there is no ledger.
    pub(super) told: Option<Result<Table, String>>,
    pub(super) list: Result<Arc<Listed>, EngineError>,
    /// When it was asked for.
    pub(super) listed_at: Moment,
    /// `None`: there is no such container.
    pub(super) inspected: HashMap<ContainerId, Result<Option<Container>, EngineError>>,
    pub(super) processes: HashMap<SlotIndex, Process>,
    pub(super) host: Result<NamespaceId, String>,
    /// The minder's.
    pub(super) detached: HashSet<ContainerId>,
    /// Folders of the pool's that had no slot's name before.
    pub(super) folders: Result<Vec<Leftover>, String>,
}

impl Books {
    fn of(state: &State) -> Self {
        let leases = state.lease_views(None);
        Self {
            slots: state.slot_views(),
            told: state.told(),
            joiners: leases.iter().filter(|lease| lease.lost.is_none()).map(|lease| (lease.key.slot, lease.joiners)).collect(),
        }
    }

    /// Slots whose buddy stands still, with what it hands out.
    pub(super) fn standing(&self) -> impl Iterator<Item = (&SlotView, &Arc<Namespace>)> {
        let at_rest = |slot: &&SlotView| matches!(slot.state, SlotState::Ready | SlotState::Leased | SlotState::Quarantined);
        self.slots.iter().filter(at_rest).filter_map(|slot| Some((slot, slot.namespace.as_ref()?)))
    }
}

impl Sight {
    pub(super) async fn of(tools: &Tools, detached: &DetachedList) -> Self {
        let before = tools.pool.read(Books::of);
        let minded = || detached.lock().iter().map(|buddy| buddy.id.clone()).collect::<HashSet<_>>();
        let mut watched = minded();
        let told = told(tools).await;
        let listed_at = tools.pool.now();
        let list = tools.looks.list().await;
        // An engine that does not list does not inspect either, and each call would wait for its deadline.
        let inspected = if list.is_ok() { inspect(tools, &before).await } else { HashMap::default() };
        let processes = processes(tools, &before, &inspected).await;
        let host = tools.kernel.host_namespace(NamespaceKind::Net).map_err(|error| error.to_string());
        watched.extend(minded());
        let folders = folders(tools, &before).await;
        let after = tools.pool.read(Books::of);
        Self { before, after, told, list, listed_at, inspected, processes, host, detached: watched, folders }
    }
}

async fn told(tools: &Tools) -> Option<Result<Table, String>> {
    let ledger = Arc::clone(tools.pool.ledger()?);
    let read = tokio::task::spawn_blocking(move || ledger.told()).await;
    Some(match read {
        Ok(Ok(table)) => Ok(table),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    })
}

async fn folders(tools: &Tools, books: &Books) -> Result<Vec<Leftover>, String> {
    let Some(leftovers) = &tools.leftovers else { return Ok(Vec::new()) };
    let present = books.slots.iter().filter_map(|slot| Some(slot.namespace.as_ref()?.namespace_id.clone())).collect();
    leftovers.look(&present).await.map_err(|error| error.to_string())
}

type Inspected = HashMap<ContainerId, Result<Option<Container>, EngineError>>;

async fn inspect(tools: &Tools, books: &Books) -> Inspected {
    let ids: Vec<ContainerId> = books.standing().map(|(_, namespace)| ContainerId(Arc::clone(&namespace.container_id))).collect();
    let inspect = |id: ContainerId| async move {
        let answer = match tools.engine.inspect(id.as_str()).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if error.class == ErrorClass::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        (id, answer)
    };
    stream::iter(ids).map(inspect).buffer_unordered(INSPECTIONS).collect().await
}

/// By its pid; one that is no process, by its folder.
async fn processes(tools: &Tools, books: &Books, inspected: &Inspected) -> HashMap<SlotIndex, Process> {
    let folder = |namespace: &Namespace| {
        let id = ContainerId(Arc::clone(&namespace.container_id));
        inspected.get(&id).and_then(|answer| answer.as_ref().ok()?.as_ref()?.folder.clone())
    };
    let mut found = HashMap::default();
    let all = books.standing().map(|(slot, namespace)| (slot, namespace, folder(namespace)));
    let all: Vec<_> = all.filter(|(_, namespace, folder)| namespace.pid != 0 || folder.is_some()).collect();
    for batch in all.chunks(SEARCHED_TOGETHER) {
        let looks = batch.iter().map(|(slot, namespace, folder)| async {
            let process = match hold_there(tools.kernel.as_ref(), folder.as_deref(), namespace.pid, &tools.breed.namespaces).await {
                Ok(held) => look_into(tools, slot, namespace, &*held).await,
                Err(KernelError::Gone { .. }) => Process::Gone,
                Err(error @ (KernelError::NotPermitted { .. } | KernelError::Failed { .. })) => Process::Unknown(error.to_string()),
            };
            (slot.key.slot, process)
        });
        found.extend(futures::future::join_all(looks).await);
    }
    found
}

async fn look_into(tools: &Tools, slot: &SlotView, namespace: &Namespace, held: &dyn Held) -> Process {
    let network = held.namespace(NamespaceKind::Net);
    if slot.state != SlotState::Ready {
        return Process::There { network, strangers: Vec::new() };
    }
    match tools.looks.inside(&ContainerId(Arc::clone(&namespace.container_id)), Some(held)).await {
        Ok(inside) => Process::There { network, strangers: inside.all() },
        // The engine's silence is told once, not for each slot.
        Err(crate::nanny::looks::LookError::Engine(_)) => Process::There { network, strangers: Vec::new() },
        Err(error) => Process::Unknown(error.to_string()),
    }
}
