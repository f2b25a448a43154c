//! Processes and namespaces of the fake machine. Pids and inode numbers come back as soon as they are free, the lowest first: worse than any
//! real kernel, so that whoever takes one for an identity is found out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::engine::NamespaceKind;
use crate::netns::{NamespaceId, Process};
use crate::random::HashMap;

/// Device of nsfs.
const DEV: u64 = 4;
const FIRST_INO: u64 = 4_026_531_840;

/// A namespace, never given to another one.
pub(super) type NsKey = u64;

/// Network, ipc, pid, uts, user: in this order.
pub(super) type NsSet = [NsKey; 5];

/// The host's, which pid 1 is in.
pub(super) const HOST: NsSet = [0, 1, 2, 3, 4];

pub(super) fn place(kind: NamespaceKind) -> usize {
    match kind {
        NamespaceKind::Net => 0,
        NamespaceKind::Ipc => 1,
        NamespaceKind::Pid => 2,
        NamespaceKind::Uts => 3,
        NamespaceKind::User => 4,
    }
}

/// A process as a pidfd sees it: it stays itself when the pid comes back.
#[derive(Debug)]
pub(super) struct Life {
    alive: AtomicBool,
    ended: Notify,
}

impl Life {
    pub(super) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(super) async fn ended(&self) {
        let mut ended = std::pin::pin!(self.ended.notified());
        ended.as_mut().enable();
        if self.is_alive() {
            ended.await;
        }
    }
}

#[derive(Debug)]
pub(super) struct Proc {
    pub namespaces: NsSet,
    /// The number of the container it is the first process of.
    pub container: Option<u64>,
    pub command: Arc<str>,
    pub life: Arc<Life>,
    /// What the placeholder keeps in its memory.
    pub use_number: u64,
    /// Orders that came while it was frozen.
    pub orders: Vec<u64>,
}

#[derive(Debug)]
struct Namespace {
    ino: u64,
    members: BTreeSet<u32>,
    /// Open descriptors.
    pins: u32,
}

#[derive(Debug)]
pub(super) struct Machine {
    processes: BTreeMap<u32, Proc>,
    namespaces: HashMap<NsKey, Namespace>,
    by_ino: HashMap<u64, NsKey>,
    next_key: NsKey,
    free_inos: BTreeSet<u64>,
    next_ino: u64,
    free_pids: BTreeSet<u32>,
    next_pid: u32,
}

impl Machine {
    pub(super) fn new() -> Self {
        let mut machine = Self {
            processes: BTreeMap::new(),
            namespaces: HashMap::default(),
            by_ino: HashMap::default(),
            next_key: 0,
            free_inos: BTreeSet::new(),
            next_ino: FIRST_INO,
            free_pids: BTreeSet::new(),
            next_pid: 1,
        };
        let host = std::array::from_fn(|_| machine.new_namespace());
        debug_assert_eq!(host, HOST);
        machine.spawn(host, None, "init");
        machine
    }

    /// A namespace that nobody is in yet: give it to a process at once.
    pub(super) fn new_namespace(&mut self) -> NsKey {
        let key = self.next_key;
        self.next_key += 1;
        let ino = self.free_inos.pop_first().unwrap_or_else(|| {
            self.next_ino += 1;
            self.next_ino - 1
        });
        self.namespaces.insert(key, Namespace { ino, members: BTreeSet::new(), pins: 0 });
        self.by_ino.insert(ino, key);
        key
    }

    pub(super) fn spawn(&mut self, namespaces: NsSet, container: Option<u64>, command: &str) -> u32 {
        let pid = self.free_pids.pop_first().unwrap_or_else(|| {
            self.next_pid += 1;
            self.next_pid - 1
        });
        for key in namespaces {
            if let Some(namespace) = self.namespaces.get_mut(&key) {
                namespace.members.insert(pid);
            }
        }
        let life = Arc::new(Life { alive: AtomicBool::new(true), ended: Notify::new() });
        self.processes.insert(pid, Proc { namespaces, container, command: command.into(), life, use_number: 1, orders: Vec::new() });
        pid
    }

    pub(super) fn end(&mut self, pid: u32) -> Option<Proc> {
        let process = self.processes.remove(&pid)?;
        self.free_pids.insert(pid);
        process.life.alive.store(false, Ordering::Release);
        process.life.ended.notify_waiters();
        for key in process.namespaces {
            if let Some(namespace) = self.namespaces.get_mut(&key) {
                namespace.members.remove(&pid);
            }
            self.drop_if_free(key);
        }
        Some(process)
    }

    /// No container's any more: the engine believes that it has ended.
    pub(super) fn disown(&mut self, pid: u32) {
        if let Some(process) = self.processes.get_mut(&pid) {
            process.container = None;
        }
    }

    pub(super) fn process(&self, pid: u32) -> Option<&Proc> {
        self.processes.get(&pid)
    }

    pub(super) fn process_mut(&mut self, pid: u32) -> Option<&mut Proc> {
        self.processes.get_mut(&pid)
    }

    /// The process leaves its namespace of that kind for another one.
    pub(super) fn enter(&mut self, pid: u32, kind: NamespaceKind, key: NsKey) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        let left = std::mem::replace(&mut process.namespaces[place(kind)], key);
        if let Some(namespace) = self.namespaces.get_mut(&left) {
            namespace.members.remove(&pid);
        }
        if let Some(namespace) = self.namespaces.get_mut(&key) {
            namespace.members.insert(pid);
        }
        self.drop_if_free(left);
    }

    pub(super) fn is_there(&self, key: NsKey) -> bool {
        self.namespaces.contains_key(&key)
    }

    pub(super) fn id_of(&self, key: NsKey) -> Option<NamespaceId> {
        self.namespaces.get(&key).map(|namespace| NamespaceId { dev: DEV, ino: namespace.ino })
    }

    /// An open descriptor keeps the inode number from coming back.
    pub(super) fn pin(&mut self, key: NsKey) -> Option<NamespaceId> {
        self.namespaces.get_mut(&key)?.pins += 1;
        self.id_of(key)
    }

    pub(super) fn key_of(&self, id: NamespaceId) -> Option<NsKey> {
        self.by_ino.get(&id.ino).copied().filter(|_| id.dev == DEV)
    }

    pub(super) fn unpin(&mut self, key: NsKey) {
        if let Some(namespace) = self.namespaces.get_mut(&key) {
            namespace.pins -= 1;
        }
        self.drop_if_free(key);
    }

    fn drop_if_free(&mut self, key: NsKey) {
        let free = self.namespaces.get(&key).filter(|namespace| namespace.members.is_empty() && namespace.pins == 0);
        if let Some(ino) = free.map(|namespace| namespace.ino) {
            self.namespaces.remove(&key);
            self.by_ino.remove(&ino);
            self.free_inos.insert(ino);
        }
    }

    /// Pids in a namespace, the lowest first.
    pub(super) fn pids_in(&self, key: NsKey) -> impl Iterator<Item = u32> {
        self.namespaces.get(&key).into_iter().flat_map(|namespace| namespace.members.iter().copied())
    }

    /// By what a look at /proc tells: inode numbers, not identities.
    pub(super) fn members(&self, id: NamespaceId) -> Vec<Process> {
        let key = self.by_ino.get(&id.ino).filter(|_| id.dev == DEV);
        let pids = key.into_iter().flat_map(|key| self.pids_in(*key));
        pids.map(|pid| Process { pid, command: self.processes.get(&pid).map(|p| p.command.to_string()).unwrap_or_default() }).collect()
    }
}
