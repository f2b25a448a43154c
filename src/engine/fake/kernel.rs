//! The [`Kernel`] side.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::FakeWorld;
use super::machine::{HOST, Life, NsKey, place};
use super::script::{MembersFault, Operation};
use crate::engine::{ErrorClass, NamespaceKind};
use crate::netns::inspection::{Depth, InspectError};
use crate::netns::{Held, Kernel, KernelError, Members, NamespaceId, RenewError, Renewed, Snapshot};

/// See [`FakeWorld::kernel`].
pub(super) struct FakeKernel(pub Arc<FakeWorld>);

/// What a held process is held by.
pub(super) struct Grip {
    pub(super) world: Arc<FakeWorld>,
    pub(super) pid: u32,
    pub(super) life: Arc<Life>,
    pub(super) pins: Mutex<Vec<(NamespaceKind, NsKey, NamespaceId)>>,
}

struct FakeHeld(Arc<Grip>);

impl std::fmt::Debug for FakeHeld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeHeld({})", self.0.pid)
    }
}

impl Held for FakeHeld {
    fn pid(&self) -> u32 {
        self.0.pid
    }

    fn is_alive(&self) -> bool {
        self.0.life.is_alive()
    }

    fn exited(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.life.ended())
    }

    fn namespace(&self, kind: NamespaceKind) -> Option<NamespaceId> {
        self.0.pins.lock().iter().find(|(held, _, _)| *held == kind).map(|(_, _, id)| *id)
    }

    fn open(&self, _kind: NamespaceKind) -> Result<OwnedFd, KernelError> {
        Err(KernelError::Failed { what: "a fake namespace".to_owned(), message: "has no descriptor".to_owned() })
    }

    fn snapshot(&self, _depth: Depth, _addresses: Vec<IpAddr>, within: Duration) -> BoxFuture<'_, Result<Arc<dyn Snapshot>, InspectError>> {
        let (world, namespace) = (Arc::clone(&self.0.world), self.namespace(NamespaceKind::Net));
        Box::pin(async move {
            let missing = || InspectError::Unreadable { what: "a fake namespace".to_owned(), cause: rustix::io::Errno::NOENT };
            world.snapshot(namespace.ok_or_else(missing)?, within).await
        })
    }

    fn renew(&self, use_number: u64, within: Duration) -> BoxFuture<'_, Result<Renewed, RenewError>> {
        Box::pin(Arc::clone(&self.0).renew(use_number, within))
    }
}

impl Drop for Grip {
    fn drop(&mut self) {
        let mut model = self.world.model.lock();
        for (_, key, _) in self.pins.get_mut().iter() {
            model.machine.unpin(*key);
        }
    }
}

impl FakeKernel {
    fn take_hold(&self, pid: u32, kinds: &[NamespaceKind]) -> Result<Box<dyn Held>, KernelError> {
        let mut model = self.0.model.lock();
        let process = model.machine.process(pid).ok_or(KernelError::Gone { pid })?;
        if let Some(error) = self.0.script.lock().holds.pop_front() {
            return Err(error);
        }
        let (namespaces, life) = (process.namespaces, Arc::clone(&process.life));
        let mut wanted = vec![NamespaceKind::Net];
        wanted.extend(kinds.iter().copied().filter(|kind| *kind != NamespaceKind::Net));
        let pins = wanted.into_iter().filter_map(|kind| {
            let key = namespaces[place(kind)];
            Some((kind, key, model.machine.pin(key)?))
        });
        let pins = Mutex::new(pins.collect());
        Ok(Box::new(FakeHeld(Arc::new(Grip { world: Arc::clone(&self.0), pid, life, pins }))))
    }
}

impl Kernel for FakeKernel {
    fn hold<'a>(&'a self, pid: u32, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>> {
        Box::pin(async move {
            let mut ticket = self.0.begin(Operation::Hold, &pid.to_string());
            let held = self.take_hold(pid, kinds);
            ticket.settled(held.as_ref().map(|_| ()).map_err(|_| ErrorClass::Refused));
            held
        })
    }

    fn host_namespace(&self, kind: NamespaceKind) -> Result<NamespaceId, KernelError> {
        self.0.model.lock().machine.id_of(HOST[place(kind)]).ok_or(KernelError::Gone { pid: 1 })
    }

    fn members<'a>(&'a self, _kind: NamespaceKind, of: &'a [NamespaceId]) -> BoxFuture<'a, Result<Members, KernelError>> {
        Box::pin(async move {
            let mut ticket = self.0.begin(Operation::Members, "");
            let (fault, latency) = {
                let mut script = self.0.script.lock();
                (script.members.pop_front().unwrap_or(MembersFault::Ok), script.latency(Operation::Members))
            };
            let answer = match fault {
                MembersFault::Ok => Ok(latency),
                MembersFault::Slow(slow) => Ok(latency + slow),
                MembersFault::Error(error) => Err(error),
                MembersFault::Never => std::future::pending().await,
            };
            ticket.settled(answer.as_ref().map(|_| ()).map_err(|_| ErrorClass::Refused));
            let wait = answer?;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let model = self.0.model.lock();
            Ok(of.iter().map(|id| (*id, model.machine.members(*id))).collect())
        })
    }

    fn since_boot(&self) -> Duration {
        self.0.since_boot()
    }
}
