//! What functions leave in network namespaces on the fake machine, and the inspections that find it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use super::FakeWorld;
use super::machine::NsKey;
use crate::netns::inspection::{Depth, Difference, InspectError, Seen, Verdict};
use crate::netns::{NamespaceId, Snapshot};

/// See [`FakeWorld::soil`].
#[derive(Debug, Default)]
pub(super) struct Soil {
    dirt: BTreeMap<NsKey, Vec<(Depth, Difference)>>,
    inspections: VecDeque<InspectionFault>,
    /// Of inspections that were made.
    depths: Vec<Depth>,
}

/// How one inspection goes, or the taking of a snapshot.
#[derive(Clone, Debug)]
pub enum InspectionFault {
    /// It cannot be made.
    Error(InspectError),
    /// It is made after this long.
    Slow(Duration),
}

struct FakeSnapshot {
    world: Arc<FakeWorld>,
    namespace: NsKey,
    was: Vec<Difference>,
}

impl std::fmt::Debug for FakeSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeSnapshot({})", self.namespace)
    }
}

impl FakeWorld {
    /// Somebody leaves something in a container's network namespace, to be seen by inspections of that depth or more.
    pub fn soil(&self, container: &str, depth: Depth, difference: Difference) {
        let namespace = self.namespace_of(container).and_then(|id| self.model.lock().machine.key_of(id));
        if let Some(key) = namespace {
            self.soil.lock().dirt.entry(key).or_default().push((depth, difference));
        }
    }

    /// How many things were left in a container's network namespace.
    #[must_use]
    pub fn dirt_in(&self, container: &str) -> usize {
        let namespace = self.namespace_of(container).and_then(|id| self.model.lock().machine.key_of(id));
        namespace.and_then(|key| self.soil.lock().dirt.get(&key).map(Vec::len)).unwrap_or(0)
    }

    /// The next inspection that no earlier script takes goes like this.
    pub fn script_inspection(&self, fault: InspectionFault) {
        self.soil.lock().inspections.push_back(fault);
    }

    /// Of the inspections that were made since the last call.
    #[must_use]
    pub fn take_depths(&self) -> Vec<Depth> {
        std::mem::take(&mut self.soil.lock().depths)
    }

    pub(super) async fn snapshot(self: Arc<Self>, namespace: NamespaceId, within: Duration) -> Result<Arc<dyn Snapshot>, InspectError> {
        self.inspection_goes_on(within).await?;
        let missing = || InspectError::Unreadable { what: "a fake namespace".to_owned(), cause: rustix::io::Errno::NOENT };
        let namespace = self.model.lock().machine.key_of(namespace).ok_or_else(missing)?;
        let was = self.seen_in(namespace, Depth::Privileged);
        Ok(Arc::new(FakeSnapshot { world: self, namespace, was }))
    }

    async fn inspection_goes_on(&self, within: Duration) -> Result<(), InspectError> {
        let fault = self.soil.lock().inspections.pop_front();
        match fault {
            None => Ok(()),
            Some(InspectionFault::Error(error)) => Err(error),
            Some(InspectionFault::Slow(slow)) => {
                tokio::time::sleep(slow.min(within)).await;
                if slow < within { Ok(()) } else { Err(InspectError::Late { limit: within }) }
            }
        }
    }

    fn seen_in(&self, namespace: NsKey, depth: Depth) -> Vec<Difference> {
        let soil = self.soil.lock();
        let there = soil.dirt.get(&namespace).into_iter().flatten();
        there.filter(|(needs, _)| *needs == Depth::Usual || depth == Depth::Privileged).map(|(_, difference)| difference.clone()).collect()
    }
}

impl FakeSnapshot {
    async fn differences(&self, depth: Depth, within: Duration) -> Result<Vec<Difference>, InspectError> {
        self.world.soil.lock().depths.push(depth);
        self.world.inspection_goes_on(within).await?;
        let mut seen = self.world.seen_in(self.namespace, depth);
        seen.retain(|difference| !self.was.contains(difference));
        Ok(seen)
    }
}

impl Snapshot for FakeSnapshot {
    fn inspect(&self, depth: Depth, within: Duration) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            match self.differences(depth, within).await {
                Ok(differences) if differences.is_empty() => Verdict::Clean { removed: Vec::new() },
                Ok(differences) => Verdict::Dirty(differences),
                Err(error) => Verdict::Dirty(vec![error.into()]),
            }
        })
    }

    fn look(&self, within: Duration) -> BoxFuture<'_, Result<Seen, InspectError>> {
        Box::pin(async move { Ok(Seen { differences: self.differences(Depth::Usual, within).await?, leftovers: Vec::new() }) })
    }
}
