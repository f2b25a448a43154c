//! Words of a renewal: the move of a held process into a network namespace that never was, and how that fails.
//!
//! The process is told by a real-time signal that carries the number of the use that it makes ready (`image/init.c`), and obeys only the next
//! one. What it did is not asked of it but looked up, and proven: the namespace is another one than before (by inode, while the old descriptor is
//! still held, and by the kernel's cookie where it gives one, which no other namespace gets until the machine boots), it is not the host's, and
//! the process is still the same one, with one thread. That it is not some third one that somebody else had made is the doing of the seccomp profile, which
//! has no `setns`.
//!
//! A [`RenewError`] never says that nothing was done: an order cannot be taken back, a frozen process obeys it when it is thawed. So whatever the
//! error is, the buddy is retired, and its namespaces are whatever they are.

use std::time::Duration;

use super::{KernelError, NamespaceId};

/// A renewal that went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Renewed {
    /// The network namespace that is held from now on.
    pub namespace: NamespaceId,
    /// `SO_NETNS_COOKIE` of it, unlike the inode number never given to another one until the next boot. `None`: the kernel (before 5.14) does
    /// not say, or not to us.
    pub cookie: Option<u64>,
    /// From the signal to the new namespace held and proven.
    pub took: Duration,
}

/// Why a renewal is not one. The buddy is to be retired in every case.
#[derive(Clone, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum RenewError {
    /// The process ended, before or while it was told: its exit code says whether it was refused the system call.
    #[error("process {pid} ended instead of moving to a new network namespace")]
    Gone {
        /// Which one.
        pid: u32,
    },
    /// Nothing changed in this time: it is frozen or stopped, it does not know the signal, or the number was not its next one.
    #[error("process {pid} (state {state}) did not move to a new network namespace within {within:?}")]
    NoAnswer {
        /// Which one.
        pid: u32,
        /// As of `/proc/<pid>/status`: `T` is stopped; a frozen one shows `D` or `S`, depending on the control groups' version.
        state: char,
        /// How long was waited.
        within: Duration,
    },
    /// It is not where, or what, it should be.
    #[error("process {pid} {wrong}")]
    Wrong {
        /// Which one.
        pid: u32,
        /// In what way.
        wrong: WrongAnswer,
    },
    /// Could not be told, or not be proven.
    #[error("a renewal could not be carried out")]
    Kernel(#[source] KernelError),
}

/// What makes an answer a wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum WrongAnswer {
    /// It is in another namespace than the one that is held for it: it moved without being told, or after its time was over.
    #[error("had left its network namespace before it was told to")]
    MovedUntold,
    /// The namespace it moved to is the host's.
    #[error("moved into the host's network namespace")]
    TheHosts,
    /// The namespace it moved to is, by inode or cookie, the old one or this program's own.
    #[error("moved into a network namespace that is not new")]
    NotNew,
    /// Only the thread that obeys would move, the others stay behind: it is not told, or was not alone when it moved.
    #[error("has {0} threads, of which one would move")]
    Threads(u32),
}

impl From<KernelError> for RenewError {
    fn from(error: KernelError) -> Self {
        match error {
            KernelError::Gone { pid } => Self::Gone { pid },
            error @ (KernelError::NotPermitted { .. } | KernelError::Failed { .. }) => Self::Kernel(error),
        }
    }
}
