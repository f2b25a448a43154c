//! What is asked of the kernel about processes and their namespaces: hold a buddy's process and namespaces, notice its end, find who else
//! is inside, have it move into a new network namespace.
//!
//! It deliberately does not know the engine, slots or leases. Names, pids and inode numbers are no identity (they come back), so a buddy is
//! *held*: a pidfd for its process and an open descriptor per namespace. While the descriptors are open the inode numbers cannot be given to
//! another namespace, which is what makes [`NamespaceId`] comparable.

pub mod cni;
mod errno;
pub mod files;
pub mod folders;
pub mod helper;
pub mod host_links;
pub mod inspection;
pub mod join;
pub mod linux;
pub mod managed;
pub mod networks;
pub mod renewal;
mod socket;
pub mod trial;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::engine::NamespaceKind;
use crate::random::HashMap;

use cni::{Attached, CniError};
use files::SharedFile;
use inspection::{Depth, InspectError, Seen, Verdict};
pub use renewal::{RenewError, Renewed, WrongAnswer};

/// Device and inode of a namespace file. Meaningful only while somebody holds the namespace open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct NamespaceId {
    /// `st_dev` of nsfs.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// A process found inside a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// In the host's pid namespace.
    pub pid: u32,
    /// `comm`, for people; may be empty.
    pub command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// Members by namespace; a namespace asked for without members is there with an empty list.
pub type Members = HashMap<NamespaceId, Vec<Process>>;

/// Why the kernel could not be asked. "Cannot be told" is never "nobody there".
#[derive(Clone, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum KernelError {
    /// The process ended before, or while, it was taken hold of.
    #[error("process {pid} is gone")]
    Gone {
        /// Which one.
        pid: u32,
    },
    /// Needs root or CAP_SYS_PTRACE.
    #[error("not permitted to read {what}; nspool needs root, or CAP_SYS_PTRACE")]
    NotPermitted {
        /// The path, or the system call.
        what: String,
    },
    /// Anything else, e.g. out of descriptors.
    #[error("{what}: {message}")]
    Failed {
        /// The path, or the system call.
        what: String,
        /// The kernel's words.
        message: String,
    },
}

/// A held process: its pidfd and its namespaces. Dropping it lets go.
pub trait Held: Send + Sync + fmt::Debug {
    /// In the host's pid namespace.
    fn pid(&self) -> u32;
    /// By its pidfd: true until it has ended (zombies have ended).
    fn is_alive(&self) -> bool;
    /// Comes back when it has ended; at once if it had. Cancel safe, any number of waiters.
    fn exited(&self) -> BoxFuture<'_, ()>;
    /// Of a kind it is held with; `Net` always. What is held, which after a renewal is the new one.
    fn namespace(&self, kind: NamespaceKind) -> Option<NamespaceId>;
    /// A descriptor of the namespace of that kind that is held.
    ///
    /// # Errors
    /// Out of descriptors; none of that kind is held.
    fn open(&self, kind: NamespaceKind) -> Result<OwnedFd, KernelError>;
    /// Tells it to move into a new network namespace for this use (its next one, the first is 1), waits until it has, proves it, and holds the
    /// new namespace instead of the old one, whose descriptor is then closed: the caller has unmounted and taken away what else holds the old one,
    /// or means it to live on. `within` is for all of it. Nobody must be in the old one who is not to stay there (I9); this does not look.
    ///
    /// The kernel takes old namespaces away in the background, and until then their memory counts as the process's own: a few hundred renewals in a
    /// row, or as many old ones that somebody holds, reach a buddy's limit of 16 MiB, and the kernel ends it.
    ///
    /// Not cancel safe, in the way of a mutation: a call that was polled and is dropped is carried out all the same, and [`Held::namespace`] may
    /// change later. Calls on one process take turns.
    ///
    /// # Errors
    /// See [`RenewError`]: after any of them the process is good for nothing more, and what is held is the old namespace.
    fn renew(&self, use_number: u64, within: Duration) -> BoxFuture<'_, Result<Renewed, RenewError>>;
    /// Has CNI plugins furnish its network namespace, for the network of that name. Carried out once asked for, whoever waits.
    ///
    /// # Errors
    /// It is not in a folder; or see [`CniError`]. What was begun has been undone, or is undone with the folder's removal.
    fn attach<'a>(&'a self, _network: &'a str) -> BoxFuture<'a, Result<Attached, CniError>> {
        std::future::ready(Err(not_in_a_folder())).boxed()
    }
    /// What plugins gave it, by its record; with `ask` they and the namespace itself are asked as well, as long as nobody was inside. `None`: nothing whole.
    ///
    /// # Errors
    /// As above, or it is not there any more.
    fn attached(&self, _ask: bool) -> BoxFuture<'_, Result<Option<Attached>, CniError>> {
        std::future::ready(Err(not_in_a_folder())).boxed()
    }
    /// Has plugins take back what they gave, if they gave anything.
    ///
    /// # Errors
    /// As above; it can be tried again.
    fn detach(&self) -> BoxFuture<'_, Result<(), CniError>> {
        std::future::ready(Err(not_in_a_folder())).boxed()
    }
    /// What its namespaces are now, to be compared later: nobody but the process itself may be inside, and what is there is taken for right. `depth`
    /// is the greatest that it can be compared at, `addresses` are those by which the host may track its connections, `within` is for all of it. Cancel
    /// safe: nothing is changed.
    ///
    /// # Errors
    /// Something cannot be read, or not in time: it cannot be compared later.
    fn snapshot(&self, depth: Depth, addresses: Vec<IpAddr>, within: Duration) -> BoxFuture<'_, Result<Arc<dyn Snapshot>, InspectError>>;
}

fn not_in_a_folder() -> CniError {
    CniError::Stopped("only namespaces in a folder are furnished by them".to_owned())
}

/// What a held process's namespaces were: the network's, and the ipc namespace if it is held.
pub trait Snapshot: Send + Sync + fmt::Debug {
    /// Compares, and removes what may be removed: see [`inspection`], also on what happens when it is dropped. Nobody but the keeper may be inside.
    fn inspect(&self, depth: Depth, within: Duration) -> BoxFuture<'_, Verdict>;
    /// Compares at the usual depth and changes nothing, for people: what somebody inside does at the moment is told with the rest.
    ///
    /// # Errors
    /// Something cannot be read, or not in time.
    fn look(&self, within: Duration) -> BoxFuture<'_, Result<Seen, InspectError>>;
}

/// The kernel, as far as nspool asks it. `linux::Linux` is the real one, `engine::fake` has one for tests.
pub trait Kernel: Send + Sync + 'static {
    /// Opens a pidfd and the namespaces of `kinds`, in this order: pidfd, namespaces, then checks that the process still lives, so that what
    /// was opened was this process's.
    fn hold<'a>(&'a self, pid: u32, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>>;
    /// The same for namespaces that are mounted in a folder, of a buddy that is no process ([`folders`]); it is gone when its folder is.
    fn hold_folder<'a>(&'a self, folder: &'a Path, _kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>> {
        let refused = KernelError::Failed { what: folder.display().to_string(), message: "folders are not looked into here".to_owned() };
        std::future::ready(Err(refused)).boxed()
    }
    /// The namespace of that kind that this daemon's host uses (pid 1's).
    fn host_namespace(&self, kind: NamespaceKind) -> Result<NamespaceId, KernelError>;
    /// All processes (any thread counts for its process) in each of the given namespaces of a kind. One look begun after the call: concurrent
    /// calls share looks, so that a thousand waiting slots cost two scans, not a thousand. Processes that end meanwhile are left out;
    /// anything else that cannot be read is an error.
    fn members<'a>(&'a self, kind: NamespaceKind, of: &'a [NamespaceId]) -> BoxFuture<'a, Result<Members, KernelError>>;
    /// What the files that a container shares with its joiners are, that many bytes of each or less; why not, where one cannot be read. Cancel safe.
    fn read_files(&self, files: Vec<(PathBuf, u64)>) -> BoxFuture<'_, Vec<Result<SharedFile, String>>> {
        let number = files.len();
        let read = move || files.iter().map(|(path, most)| SharedFile::read(path, *most).map_err(|error| error.to_string())).collect();
        async move { tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| vec![Err(error.to_string()); number]) }.boxed()
    }
    /// Makes each of them a new file with that content, under the old name. Not cancel safe: what was begun is carried out.
    ///
    /// # Errors
    /// One of them cannot be replaced; those before it are.
    fn replace_files(&self, files: Vec<SharedFile>) -> BoxFuture<'_, Result<(), String>> {
        let replace = move || files.iter().try_for_each(SharedFile::replace).map_err(|error| error.to_string());
        async move { tokio::task::spawn_blocking(replace).await.unwrap_or_else(|error| Err(error.to_string())) }.boxed()
    }
    /// CLOCK_BOOTTIME: goes on while the machine sleeps, begins anew at each boot.
    fn since_boot(&self) -> Duration;
}
