//! What the helper can be asked for, and nothing else: the verbs, with what each of them brings and answers.
//!
//! A question is one of them, an answer the result that its line names. Descriptors that go along are in the order given here. Both ends are the same
//! program, so the form is nobody else's concern, and changes with it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::NamespaceKind;
use crate::netns::cni::Cni;
use crate::netns::files::SharedFile;
use crate::netns::folders::{Folder, Ids, MountError};
use crate::netns::inspection::Depth;
use crate::netns::managed::host::Host;
use crate::netns::managed::names::HostEnd;
use crate::netns::managed::{FurnishError, Plan};
use crate::netns::networks::NetworkError;
use crate::netns::{KernelError, NamespaceId};

/// What a helper is told first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// The networks that it works on, if there are any.
    pub host: Option<Host>,
    /// Where it mounts namespaces, if it is to.
    pub folders: Option<PathBuf>,
    /// It cannot work without.
    #[serde(default)]
    pub must_mount: bool,
    /// Of the user namespaces that it makes, if it is to.
    #[serde(default)]
    pub ids: Option<Ids>,
    /// Where CNI plugins are, for namespaces in folders.
    #[serde(default)]
    pub cni: Cni,
    /// Held while it is there.
    pub lock: PathBuf,
    /// What it writes, and how.
    pub log: Log,
}

/// Of `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Which lines.
    pub filter: String,
    /// Whether in JSON.
    pub json: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Verb {
    /// The first one: `Result<Hosts, BeginError>`.
    Begin(Begin),
    /// `()`.
    Ping,
    /// Of the log: `()`.
    Filter { filter: String },
    /// `Result<Vec<NamespaceKind>, KernelError>`, with the pidfd and a namespace of each of these kinds.
    Hold { pid: u32, kinds: Vec<NamespaceKind> },
    /// `Result<Vec<(NamespaceId, Vec<Process>)>, KernelError>`.
    Members { kind: NamespaceKind, of: Vec<NamespaceId> },
    /// Of a pidfd and its network namespace: `Result<Renewed, RenewError>`, with the new one.
    Renew { use_number: u64, within: Duration },
    /// Of a pidfd and a namespace of each of these kinds: `Result<u64, InspectError>`, by which it is called from then on.
    Snapshot { kinds: Vec<NamespaceKind>, depth: Depth, addresses: Vec<IpAddr>, within: Duration },
    /// `Verdict`.
    Inspect { snapshot: u64, depth: Depth, within: Duration },
    /// `Result<Seen, InspectError>`.
    Look { snapshot: u64, within: Duration },
    /// `()`.
    Forget { snapshot: u64 },
    /// `Vec<Result<SharedFile, String>>`.
    ReadFiles { files: Vec<(PathBuf, u64)> },
    /// `Result<(), String>`.
    ReplaceFiles { files: Vec<SharedFile> },
    /// Of a network namespace: `Result<(), LinkError>`.
    Furnish { plan: Plan },
    /// `Result<(), LinkError>`.
    Strip { end: HostEnd },
    /// `Result<(), LinkError>`.
    Cut { end: HostEnd },
    /// `Result<Found, LinkError>`.
    Links,
    /// `Result<(), LinkError>`.
    Adopt { plans: Vec<Plan> },
    /// `Result<Vec<Finding>, LinkError>`.
    Mend,
    /// `Result<Vec<FurnishError>, LinkError>`.
    TearDown,
    /// `Result<(), MountError>`.
    MakeFolder { folder: Folder, kinds: Vec<NamespaceKind> },
    /// Of a namespace of each of these kinds: `Result<(), MountError>`.
    PublishFolder { folder: Folder, kinds: Vec<NamespaceKind> },
    /// `Result<Vec<NamespaceKind>, MountError>`, with a namespace of each of these kinds.
    OpenFolder { folder: Folder, kinds: Vec<NamespaceKind> },
    /// The same.
    RenewFolder { folder: Folder, kinds: Vec<NamespaceKind> },
    /// `Result<(), MountError>`.
    ClearFolder { folder: Folder },
    /// `Result<(), MountError>`.
    TidyFolders { pool: String },
    /// Of the folder's network namespace: `Result<Attached, CniError>`.
    Attach { folder: Folder, network: String },
    /// The same: `Result<Option<Attached>, CniError>`.
    Attached { folder: Folder, ask: bool },
    /// The same, or of none: `Result<(), CniError>`.
    Detach { folder: Folder },
}

impl Verb {
    /// What it is asked to do, for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::Ping => "ping",
            Self::Filter { .. } => "filter its log",
            Self::Hold { .. } => "hold a process",
            Self::Members { .. } => "look for members",
            Self::Renew { .. } => "renew",
            Self::Snapshot { .. } => "take a snapshot",
            Self::Inspect { .. } => "inspect",
            Self::Look { .. } => "look",
            Self::Forget { .. } => "forget",
            Self::ReadFiles { .. } => "read files",
            Self::ReplaceFiles { .. } => "replace files",
            Self::Furnish { .. } => "furnish",
            Self::Strip { .. } => "strip",
            Self::Cut { .. } => "cut a link off",
            Self::Links => "list links",
            Self::Adopt { .. } => "adopt",
            Self::Mend => "mend",
            Self::TearDown => "tear down",
            Self::MakeFolder { .. } => "make namespaces",
            Self::PublishFolder { .. } => "publish namespaces",
            Self::OpenFolder { .. } => "open namespaces",
            Self::RenewFolder { .. } => "make new namespaces",
            Self::ClearFolder { .. } => "clear a folder away",
            Self::TidyFolders { .. } => "tidy folders",
            Self::Attach { .. } => "have CNI plugins furnish",
            Self::Attached { .. } => "look at what CNI plugins gave",
            Self::Detach { .. } => "have CNI plugins take back",
        }
    }
}

/// A question's form, and an answer's.
pub(super) fn write(what: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(what)
}

/// The host's own namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hosts {
    pub(super) net: NamespaceId,
    pub(super) ipc: NamespaceId,
    pub(super) pid: NamespaceId,
    pub(super) uts: NamespaceId,
    pub(super) user: NamespaceId,
    /// The helper can mount namespaces where they are wanted.
    pub(super) mounts: bool,
}

/// Why a helper cannot work.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum BeginError {
    /// Of the host's own namespaces.
    #[error("the host's namespaces cannot be read")]
    Kernel(#[source] KernelError),
    /// The thread for links.
    #[error("the managed networks cannot be worked on; nspool needs root, or CAP_NET_ADMIN and CAP_SYS_ADMIN")]
    Links(#[source] FurnishError),
    /// The thread for folders.
    #[error("namespaces cannot be mounted where others see them")]
    Folders(#[source] MountError),
    /// It cannot be made.
    #[error("the helper's lock: {0}")]
    Lock(String),
    /// Its capabilities, its log.
    #[error("the helper's own process: {0}")]
    Process(String),
}

/// [`NetworkError`], as far as links have it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum LinkError {
    Link(FurnishError),
    Namespace(KernelError),
    NotSetUp(String),
}

impl From<LinkError> for NetworkError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Link(error) => Self::Link(error),
            LinkError::Namespace(error) => Self::Namespace(error),
            LinkError::NotSetUp(why) => Self::NotSetUp(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::netns::inspection::InspectError;

    #[test]
    fn errors_come_as_they_were() {
        let refused = FurnishError::Refused { step: "a step".into(), subject: "x".to_owned(), cause: Errno::NODEV };
        for error in [refused, FurnishError::TimedOut { what: "a deed".into(), limit: Duration::from_millis(1) }, FurnishError::Stopped] {
            let written = serde_json::to_vec(&LinkError::Link(error.clone())).unwrap();
            let read: NetworkError = serde_json::from_slice::<LinkError>(&written).unwrap().into();
            assert_eq!(format!("{read:?}"), format!("{:?}", NetworkError::Link(error)));
        }
        let unreadable = InspectError::Unreadable { what: "x".to_owned(), cause: Errno::PERM };
        let read: InspectError = serde_json::from_slice(&serde_json::to_vec(&unreadable).unwrap()).unwrap();
        assert_eq!(read.to_string(), unreadable.to_string());
        assert!(serde_json::from_str::<InspectError>(r#"{"Unreadable":{"what":"x","cause":0}}"#).is_err());
    }
}
