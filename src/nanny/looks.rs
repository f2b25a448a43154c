//! Who is inside whom: the engine's list and the kernel's processes, each look shared by all slots that wait for one.

use std::ops::Deref;
use std::sync::Arc;

use crate::coalesce::Coalesced;
use crate::engine::{ContainerId, ContainerSummary, Engine, EngineError, NamespaceKind};
use crate::netns::{Held, Kernel, KernelError};
use crate::random::HashMap;

type Listing = Result<Arc<Listed>, EngineError>;

/// All containers, and which of them joins whom: every slot that leaves asks for its own, and a stop has all slots ask.
#[derive(Debug)]
pub struct Listed {
    containers: Vec<ContainerSummary>,
    joiners: HashMap<String, Vec<usize>>,
}

impl Listed {
    fn of(containers: Vec<ContainerSummary>) -> Self {
        let mut joiners: HashMap<String, Vec<usize>> = HashMap::default();
        for (index, container) in containers.iter().enumerate() {
            if let Some(buddy) = container.joins() {
                joiners.entry(buddy.to_owned()).or_default().push(index);
            }
        }
        Self { containers, joiners }
    }

    /// The containers that join this one's network namespace.
    pub fn joiners_of(&self, buddy: &ContainerId) -> impl Iterator<Item = &ContainerSummary> {
        self.joiners.get(buddy.as_str()).into_iter().flatten().map(|index| &self.containers[*index])
    }
}

impl Deref for Listed {
    type Target = [ContainerSummary];

    fn deref(&self) -> &Self::Target {
        &self.containers
    }
}

/// Shared looks. A look serves those who asked before it began, so what it says was true after they asked.
pub struct Looks {
    list: Coalesced<Listing>,
    kernel: Arc<dyn Kernel>,
    shared: Vec<NamespaceKind>,
    may_fork: bool,
}

/// Why nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The engine's list.
    #[error("{0}")]
    Engine(EngineError),
    /// The kernel's processes.
    #[error("{0}")]
    Kernel(KernelError),
}

/// Who is there besides the buddy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Containers that hold the namespace, and processes that no listed container explains away; for people.
    pub live: Vec<String>,
    /// Containers that do not hold it and could still start.
    pub configured: Vec<String>,
}

impl Inside {
    /// Both.
    #[must_use]
    pub fn all(self) -> Vec<String> {
        [self.live, self.configured].concat()
    }

    /// Nobody at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.configured.is_empty()
    }
}

impl Looks {
    /// `shared`: the namespaces that joiners may share; `may_fork`: the placeholder may have children of its own.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, kernel: Arc<dyn Kernel>, shared: Vec<NamespaceKind>, may_fork: bool) -> Self {
        let list = Coalesced::new(move || {
            let engine = Arc::clone(&engine);
            async move { engine.list().await.map(|list| Arc::new(Listed::of(list))) }
        });
        Self { list, kernel, shared, may_fork }
    }

    /// All containers. Cancel safe.
    ///
    /// # Errors
    /// The engine's; it says nothing about who is there.
    pub async fn list(&self) -> Listing {
        self.list.look().await
    }

    /// Everybody in the buddy's namespaces but the buddy. `held` is `None` for a buddy without a process (its namespaces cannot be looked
    /// into then, only the engine's list is left).
    ///
    /// # Errors
    /// What could not be looked at; it says nothing about who is there.
    pub async fn inside(&self, buddy: &ContainerId, held: Option<&dyn Held>) -> Result<Inside, LookError> {
        let strangers = async {
            match held {
                Some(held) => self.strangers(held).await,
                None => Ok(Vec::new()),
            }
        };
        // Neither waits for the other: each begins after whatever the caller relies on.
        let (list, strangers) = tokio::join!(self.list(), strangers);
        let mut inside = Inside::default();
        for container in list.map_err(LookError::Engine)?.joiners_of(buddy) {
            let who = format!("container {} ({})", container.id.as_str().get(..12).unwrap_or(container.id.as_str()), container.name);
            if container.status.is_live() { inside.live.push(who) } else { inside.configured.push(who) }
        }
        inside.live.extend(strangers.map_err(LookError::Kernel)?);
        Ok(inside)
    }

    async fn strangers(&self, held: &dyn Held) -> Result<Vec<String>, KernelError> {
        let mut strangers = Vec::new();
        for kind in &self.shared {
            let Some(namespace) = held.namespace(*kind) else { continue };
            let members = self.kernel.members(*kind, &[namespace]).await?;
            strangers.extend(members.get(&namespace).into_iter().flatten().filter(|process| process.pid != held.pid()).cloned());
        }
        strangers.sort();
        strangers.dedup();
        if self.may_fork && !strangers.is_empty() && !self.shared.contains(&NamespaceKind::Pid) {
            let own = held.namespace(NamespaceKind::Pid);
            let members = self.kernel.members(NamespaceKind::Pid, own.as_slice()).await?;
            strangers.retain(|process| !members.values().flatten().any(|own| own.pid == process.pid));
        }
        Ok(strangers.iter().map(ToString::to_string).collect())
    }
}
