//! What nspool asks of a container engine, and how an engine says no.
//!
//! The [`Engine`] trait is all that nannies, the gate, recovery and the observer know of Docker or podman. It deliberately does not know
//! slots, leases or the pacer: [`paced::Paced`] wraps an engine to add deadlines, rate and concurrency limits and metrics, with the same trait.
//!
//! What can go wrong is in [`ErrorClass`]: a caller chooses between retry, give up and tell by the class alone, never by the text. The most
//! important one is [`ErrorClass::Unknown`]: the engine may or may not have done it (a cut connection, a deadline), so look before trying again.

pub mod discover;
pub mod docker;
pub mod fake;
mod images;
pub mod native;
mod network;
pub mod paced;
pub mod seccomp;
mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub use images::{BuildSpec, Chunks, Image, ImageArchive, ImageRemoval, Layer, LayerStage, PullStep, SizedImage};
pub use network::{Network, NetworkRange, NetworkSpec};
pub use spec::{BuddySpec, Flavour};

/// What every engine call returns; dropping it abandons the *wait*, the engine may still carry the call out.
pub type EngineFuture<'a, T> = BoxFuture<'a, Result<T, EngineError>>;

/// Labels of a container. Sorted, so that what is logged and hashed is stable.
pub type Labels = BTreeMap<String, String>;

/// A container's full id (64 hex digits on Docker and podman).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(pub Arc<str>);

/// An image's content id, e.g. `sha256:9f…`. Containers are created by it, never by tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub Arc<str>);

macro_rules! string_id {
    ($name:ident) => {
        impl $name {
            /// The id as the engine writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(id: &str) -> Self {
                Self(id.into())
            }
        }
        impl From<String> for $name {
            fn from(id: String) -> Self {
                Self(id.into())
            }
        }
    };
}
string_id!(ContainerId);
string_id!(ImageId);

impl ImageId {
    /// Without `sha256:`, which Docker writes in front and podman not everywhere.
    #[must_use]
    pub fn bare(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

/// Which program answers behind the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// Docker (moby).
    Docker,
    /// podman through its Docker-compatible API.
    Podman,
    /// None: nspool makes the namespaces itself.
    Native,
    /// The scripted engine of the tests and benches.
    Fake,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Native => "native",
            Self::Fake => "fake",
        })
    }
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Docker or podman.
    pub kind: EngineKind,
    /// Stable over restarts of the engine; names the pool's lock. Never empty.
    pub id: String,
    /// e.g. `20.10.24`.
    pub version: String,
    /// e.g. `unix:///var/run/docker.sock`.
    pub endpoint: String,
}

/// A namespace kind that a buddy shares with its joiners. The network namespace is always shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceKind {
    /// Network: always.
    Net,
    /// System V and POSIX ipc: shared memory outlives the function that made it.
    Ipc,
    /// Processes: a root joiner can then end the buddy, and see all other joiners' processes. Of the native engine's it needs a first process.
    Pid,
    /// The host's name. No container engine lets it be shared: of the native engine's only.
    Uts,
    /// User and group ids; the others then belong to it. Of the native engine's only.
    User,
}

impl NamespaceKind {
    /// Those that a thread goes into, and comes back from.
    pub const ENTERED: [Self; 3] = [Self::Net, Self::Ipc, Self::Uts];
    /// Those that can be joined by path; in this order, as who has joined the last one may not join others.
    pub const JOINABLE: [Self; 5] = [Self::Net, Self::Ipc, Self::Uts, Self::Pid, Self::User];

    /// The name under `/proc/<pid>/ns/`, and in an OCI namespace path.
    #[must_use]
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Uts => "uts",
            Self::User => "user",
        }
    }
}

/// Where a container is in its life, as the engine says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerStatus {
    /// Never started.
    Created,
    /// Has a process.
    Running,
    /// Frozen; note that the engine's `Running` flag is true as well.
    Paused,
    /// Between two runs.
    Restarting,
    /// Being removed.
    Removing,
    /// Ran and ended.
    Exited,
    /// Half removed.
    Dead,
    /// A word we do not know: treated as live wherever that is the safe side.
    Unknown,
}

impl ContainerStatus {
    /// Whether a container in this state holds the namespaces it joined (the *live* joiner of DESIGN).
    #[must_use]
    pub fn is_live(self) -> bool {
        match self {
            Self::Running | Self::Paused | Self::Restarting | Self::Removing | Self::Unknown => true,
            Self::Created | Self::Exited | Self::Dead => false,
        }
    }
}

/// One address of a container on its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// With prefix length, e.g. `172.17.0.5/16`.
    pub address: String,
    /// Empty when the network has none.
    pub gateway: String,
}

/// What `inspect` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Full id.
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    /// Where it is in its life.
    pub status: ContainerStatus,
    /// Its first process, in the host's pid namespace; 0 when there is none.
    pub pid: u32,
    /// Where its namespaces are mounted, when it is no process but these.
    pub folder: Option<PathBuf>,
    /// The engine's own text; compared, never parsed. Changes with every start.
    pub started_at: String,
    /// Of the last run.
    pub exit_code: Option<i64>,
    /// The engine's words on the last run's failure; empty when there are none.
    pub error: String,
    /// Birth facts.
    pub labels: Labels,
    /// The image id it was created from.
    pub image: ImageId,
    /// `HostConfig.NetworkMode`, `IpcMode`, `PidMode` as the engine says them.
    pub network_mode: String,
    /// See `network_mode`.
    pub ipc_mode: String,
    /// See `network_mode`.
    pub pid_mode: String,
    /// IPv4 first, then IPv6, over all networks it is attached to.
    pub addresses: Vec<Address>,
    /// The host's path of the resolv.conf that joiners get; empty when the engine does not say.
    pub resolv_conf_path: String,
    /// The same of /etc/hosts.
    pub hosts_path: String,
    /// The same of /etc/hostname.
    pub hostname_path: String,
    /// As root it can do no more to a namespace that it joins than the engine's own capabilities and NET_ADMIN allow.
    pub bounded: bool,
}

impl Container {
    /// The containers this one joins, by network, ipc or pid mode (`container:<id>`), as written there (an id once the engine resolved it).
    pub fn joins(&self) -> impl Iterator<Item = &str> {
        [&self.network_mode, &self.ipc_mode, &self.pid_mode].into_iter().filter_map(|mode| mode.strip_prefix("container:"))
    }
}

/// One row of the engine's list, created and exited ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSummary {
    /// Full id.
    pub id: ContainerId,
    /// Without the leading slash; the first name the engine gives.
    pub name: String,
    /// Birth facts.
    pub labels: Labels,
    /// Where it is in its life.
    pub status: ContainerStatus,
    /// `container:<full id>` for joiners by network; joiners by ipc or pid alone do not show here.
    pub network_mode: String,
    /// The id of the image that it was made from.
    pub image: ImageId,
}

impl ContainerSummary {
    /// The id of the container whose network namespace this one joins.
    #[must_use]
    pub fn joins(&self) -> Option<&str> {
        self.network_mode.strip_prefix("container:")
    }
}

/// How a wait for a container's end came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// It is not running, says the engine; the code is -1 when it never ran.
    Exited(i64),
    /// The stream ended without a word (an engine that went away): says nothing about the container.
    Unknown,
}

/// What happened to a container or an image, from the engine's event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEvent {
    /// What happened.
    pub action: EventAction,
    /// The container's or image's id.
    pub id: String,
    /// The container's name; empty for images.
    pub name: String,
    /// The container's labels (and whatever else the engine puts there).
    pub attributes: Labels,
}

/// Only what nspool acts upon; everything else is dropped by the engine's implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventAction {
    /// A container exists.
    Created,
    /// A container runs.
    Started,
    /// A container ended.
    Died,
    /// A container was frozen.
    Paused,
    /// A container was thawed.
    Unpaused,
    /// A container has another name, the event's.
    Renamed,
    /// A container exists no more (`destroy`, podman's `remove`).
    Removed,
    /// An image was deleted or lost a tag.
    ImageGone,
}

/// A user name and password for one registry. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The account, or empty with an identity token.
    pub username: String,
    /// The secret, or the identity token when `username` is empty.
    pub secret: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// A container engine. Implementations are cheap to share (`Arc<dyn Engine>`), never retry, and set no deadlines but for what they
/// document: [`paced::Paced`] does that. Not cancel safe in the sense that matters: a dropped mutation may still be carried out.
pub trait Engine: Send + Sync + 'static {
    /// Who answers. Negotiates the API version anew, so it is what to call after a reconnect.
    fn info(&self) -> EngineFuture<'_, EngineInfo>;
    /// Whether it answers at all.
    fn ping(&self) -> EngineFuture<'_, ()>;

    /// A local image by reference or id; `None` when it is not there.
    fn image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Option<Image>>;
    /// Only its id.
    fn image_id<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Option<ImageId>> {
        Box::pin(async move { Ok(self.image(reference).await?.map(|image| image.id)) })
    }
    /// Loads a `docker save` tar. Errors inside the answer's stream are errors here; an archive that breaks off is one, too.
    fn load_image(&self, archive: ImageArchive) -> EngineFuture<'_, ()>;
    /// An image as a `docker save` tar, by reference or id. [`ErrorClass::NotFound`] when there is none. The deadline is for each piece of it.
    fn save_image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Chunks>;
    /// Pulls by reference. The registry is asked by these credentials even when the image is here already. `told` hears how far it is. Errors inside
    /// the answer's stream are errors here; they are the registry's own words.
    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<&'a Credentials>,
        told: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()>;
    /// Gives an image one more name, `repository:tag`; taken from the image that had it before.
    fn tag_image<'a>(&'a self, id: &'a ImageId, repository: &'a str, tag: &'a str) -> EngineFuture<'a, ()>;
    /// All images that have this label, whatever its value. An error is never an empty list.
    fn images<'a>(&'a self, label: &'a str) -> EngineFuture<'a, Vec<Image>>;
    /// All images that have a name, or of which no other one is made, with what they take. An error is never an empty list.
    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>>;
    /// Takes a name away; with its last one the image goes. By id: one that has no more than one name. Never by force: the engine is the last judge of whether
    /// it is in use, which is an answer and no error.
    fn remove_image<'a>(&'a self, name: &'a str) -> EngineFuture<'a, ImageRemoval>;
    /// Builds one from images that are here and a tar, read from where the file stands. `told` hears what the build prints, in pieces that may or may
    /// not be lines. Its containers go with it, however it ends. Errors inside the answer's stream are errors here.
    fn build_image<'a>(&'a self, spec: &'a BuildSpec, context: File, told: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()>;

    /// Creates a buddy, not started. [`ErrorClass::Unknown`]: it may exist, look its name up.
    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId>;
    /// Starts it; "already running" is success.
    fn start<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()>;
    /// By id or name. [`ErrorClass::NotFound`] when there is none.
    fn inspect<'a>(&'a self, id_or_name: &'a str) -> EngineFuture<'a, Container>;
    /// Gives it a new name; the old one no longer resolves once this returned.
    fn rename<'a>(&'a self, id: &'a ContainerId, name: &'a str) -> EngineFuture<'a, ()>;
    /// Removes it by force, with its anonymous volumes; "no such container" is success.
    fn remove<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()>;
    /// Comes back when the container is not running (condition `not-running`, the only one that is safe to attach again). No deadline.
    fn wait<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, WaitOutcome>;
    /// All containers, in any state. An error is never an empty list.
    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>>;
    /// All networks, each with what it was made with. An error is never an empty list.
    fn networks(&self) -> EngineFuture<'_, Vec<Network>>;
    /// Makes a bridge network. [`ErrorClass::Unknown`]: it may exist, look. [`ErrorClass::Refused`] where the engine's networks would not do.
    fn create_network<'a>(&'a self, spec: &'a NetworkSpec) -> EngineFuture<'a, ()>;
    /// Names of the containers that are on it or would be with their next start, in any state.
    fn network_users<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, Vec<String>>;
    /// Removes it; "no such network" is success. Refused while a container with a process is on it.
    fn remove_network<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, ()>;
    /// Subscribes. The events between the call and its return are in the stream. The stream ends with an error or with the connection;
    /// events while nobody was subscribed are lost: list and inspect afterwards. No deadline on the stream.
    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>>;
}

/// What a caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// No such container (404 on a container).
    NotFound,
    /// The image is not there (404 at create): close the gate.
    ImageMissing,
    /// The network, or a container to join, is not there.
    NetworkMissing,
    /// The name is in use (409; podman: 500 with "already in use").
    NameTaken,
    /// Another container joins this one, though it may have ended: podman removes none that is depended on.
    HasDependents,
    /// The network's addresses are used up.
    NoAddresses,
    /// No space left on the engine's disk.
    DiskFull,
    /// The registry refused the credentials, or wants some.
    RegistryDenied,
    /// The registry has no such image.
    RegistryUnknown,
    /// The registry has had too many requests (429).
    RegistryBusy {
        /// Where its words say when to come back: engines keep its headers to themselves.
        retry_after: Option<Duration>,
    },
    /// Nothing was done: the engine could not be reached (no socket, connection refused).
    Away,
    /// Nobody knows whether it was done: the connection was cut, the answer was not understood, or the deadline passed.
    Unknown,
    /// A reconnect to the engine's socket is not permitted.
    NotAllowed,
    /// The engine said no, and says it again next time (any other 4xx or 5xx).
    Refused,
}

/// An engine call that failed. `Display` gives the operation, what it was on and the engine's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} {subject}: {message}")]
pub struct EngineError {
    /// `create`, `start`, `pull`, …
    pub operation: &'static str,
    /// What to do about it.
    pub class: ErrorClass,
    /// A container, an image, a network; may be empty.
    pub subject: String,
    /// The engine's own words, on one line, at most 512 bytes, without credentials.
    pub message: String,
    /// The HTTP status, where there was one.
    pub status: Option<u16>,
}

impl EngineError {
    /// A deadline passed: the outcome is not known.
    #[must_use]
    pub fn deadline(operation: &'static str, subject: &str, after: Duration) -> Self {
        Self {
            operation,
            class: ErrorClass::Unknown,
            subject: subject.to_owned(),
            message: format!("no answer within {after:?}"),
            status: None,
        }
    }
}
