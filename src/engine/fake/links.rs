//! Links of managed networks on the fake machine: one per namespace, which it goes with.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::machine::NsKey;
use super::{FakeWorld, Violation};
use crate::engine::NamespaceKind;
use crate::level;
use crate::netns::managed::host::Finding;
use crate::netns::managed::names::HostEnd;
use crate::netns::managed::{FurnishError, Plan};
use crate::netns::networks::{Found, Links, NetworkError};
use crate::netns::{Held, KernelError, NamespaceId};

/// How one furnishing goes.
#[derive(Clone, Debug)]
pub enum LinkFault {
    /// Not done.
    Error(FurnishError),
    /// Done, and the answer says that nobody knows.
    DoneUnknown,
    /// Done after this long.
    Slow(Duration),
}

#[derive(Clone, Copy, Debug)]
struct FakeLink {
    namespace: NsKey,
    address: IpAddr,
}

/// See [`FakeWorld::links`].
#[derive(Debug, Default)]
pub(super) struct LinkTable {
    ends: BTreeMap<HostEnd, FakeLink>,
    furnishings: VecDeque<LinkFault>,
    /// Strips that fail.
    stuck: u32,
    /// The set-up of the host fails with this.
    trouble: Option<String>,
    changes: level::Sender<u64>,
}

/// See [`FakeWorld::links`].
struct FakeLinks {
    world: Arc<FakeWorld>,
    /// Links that this daemon made or took over, and did not take away.
    known: Mutex<BTreeSet<HostEnd>>,
}

impl FakeWorld {
    /// Managed networks' side.
    #[must_use]
    pub fn links(self: &Arc<Self>) -> Arc<dyn Links> {
        Arc::new(FakeLinks { world: Arc::clone(self), known: Mutex::default() })
    }

    /// The next furnishing that no earlier script takes goes like this.
    pub fn script_furnish(&self, fault: LinkFault) {
        self.links.lock().furnishings.push_back(fault);
    }

    /// So many strips fail, and nothing is taken away.
    pub fn script_strips_fail(&self, strips: u32) {
        self.links.lock().stuck = strips;
    }

    /// Somebody removes the links that are there.
    pub fn remove_links(&self) {
        self.links.lock().ends.clear();
    }

    /// The networks cannot be set up; `None`: they can.
    pub fn set_network_trouble(&self, why: Option<&str>) {
        self.links.lock().trouble = why.map(str::to_owned);
    }

    /// The address of a container's namespace; `None`: it has no link.
    #[must_use]
    pub fn address_of(&self, container: &str) -> Option<IpAddr> {
        let namespace = self.namespace_of(container)?;
        let model = self.model.lock();
        let key = model.machine.key_of(namespace)?;
        self.links.lock().ends.values().find(|link| link.namespace == key).map(|link| link.address)
    }

    /// Links that are there.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.links_there().len()
    }

    fn links_there(&self) -> Vec<(HostEnd, IpAddr)> {
        let model = self.model.lock();
        let mut table = self.links.lock();
        table.ends.retain(|_, link| model.machine.is_there(link.namespace));
        table.ends.iter().map(|(end, link)| (end.clone(), link.address)).collect()
    }

    fn furnish_now(&self, namespace: NamespaceId, plan: &Plan) -> Result<(), NetworkError> {
        let there = self.links_there();
        let mut model = self.model.lock();
        let gone = NetworkError::Namespace(KernelError::Failed { what: "the namespace".to_owned(), message: "gone".to_owned() });
        let key = model.machine.key_of(namespace).ok_or(gone)?;
        let address = plan.ipv4.address;
        let mut table = self.links.lock();
        if table.ends.contains_key(&plan.host_end) || table.ends.values().any(|link| link.namespace == key) {
            return Err(NetworkError::Link(FurnishError::AlreadyThere { name: plan.host_end.to_string() }));
        }
        if there.iter().any(|(_, other)| *other == address) {
            model.violations.push(Violation::AddressTwice(address));
        }
        table.ends.insert(plan.host_end.clone(), FakeLink { namespace: key, address });
        Ok(())
    }
}

impl FakeLinks {
    fn furnish_now(&self, namespace: NamespaceId, plan: &Plan) -> Result<(), NetworkError> {
        self.world.furnish_now(namespace, plan)?;
        self.known.lock().insert(plan.host_end.clone());
        Ok(())
    }
}

impl Links for FakeLinks {
    fn furnish<'a>(&'a self, held: &'a dyn Held, plan: &'a Plan) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            let namespace = held.namespace(NamespaceKind::Net).ok_or(NetworkError::Namespace(KernelError::Gone { pid: held.pid() }))?;
            let fault = self.world.links.lock().furnishings.pop_front();
            match fault {
                None => self.furnish_now(namespace, plan),
                Some(LinkFault::Error(error)) => Err(NetworkError::Link(error)),
                Some(LinkFault::DoneUnknown) => {
                    self.furnish_now(namespace, plan)?;
                    Err(NetworkError::Link(FurnishError::TimedOut { what: "furnishing a namespace".into(), limit: Duration::ZERO }))
                }
                Some(LinkFault::Slow(slow)) => {
                    tokio::time::sleep(slow).await;
                    self.furnish_now(namespace, plan)
                }
            }
        })
    }

    fn strip<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            let mut table = self.world.links.lock();
            if table.stuck > 0 {
                table.stuck -= 1;
                return Err(NetworkError::Link(FurnishError::QueueFull));
            }
            table.ends.remove(end);
            self.known.lock().remove(end);
            Ok(())
        })
    }

    fn cut<'a>(&'a self, _end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async { Ok(()) })
    }

    fn links(&self) -> BoxFuture<'_, Result<Found, NetworkError>> {
        Box::pin(async move { Ok(self.world.links_there().into_iter().map(|(end, address)| (end, Some(address))).collect()) })
    }

    fn adopt(&self, plans: Vec<Plan>) -> BoxFuture<'_, Result<(), NetworkError>> {
        self.known.lock().extend(plans.into_iter().map(|plan| plan.host_end));
        Box::pin(async { Ok(()) })
    }

    fn mend(&self) -> BoxFuture<'_, Result<Vec<Finding>, NetworkError>> {
        Box::pin(async move {
            let trouble = self.world.links.lock().trouble.clone();
            if let Some(why) = trouble {
                return Err(NetworkError::NotSetUp(why));
            }
            let there: BTreeSet<HostEnd> = self.world.links_there().into_iter().map(|(end, _)| end).collect();
            Ok(self.known.lock().difference(&there).cloned().map(Finding::PortGone).collect())
        })
    }

    fn tear_down(&self) -> BoxFuture<'_, Result<Vec<FurnishError>, NetworkError>> {
        Box::pin(async move {
            self.world.links.lock().ends.clear();
            Ok(Vec::new())
        })
    }

    fn changes(&self) -> level::Receiver<u64> {
        self.world.links.lock().changes.subscribe()
    }
}
