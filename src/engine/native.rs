//! The native engine: no engine at all. A buddy is a folder in which namespaces are mounted ([`crate::netns::folders`]), without container, image or
//! process, so it costs a millisecond and some kilobytes, and cannot die of itself.
//!
//! ```text
//!   create ─► <root>/<pool>/.<name>/buddy.json ─ start ─► namespaces mounted, folder renamed to <name> ─ rename ─► <next name> ─ remove ─► nothing
//! ```
//!
//! A folder that has its name is whole; one with a dot before it was not started, or its start was cut short. The name is the lease's namespace id, and
//! what agents join is a path in the folder: its rename is the fence, at once for all kinds. What there is, the folders tell, to the next daemon as well:
//! nothing is remembered here but what a folder's record says.
//!
//! What can go wrong: somebody else removes or unmounts what is ours (a buddy whose folder is gone is gone; an audit finds the rest) · a start that is cut
//! short leaves a folder with a dot, which whoever removes the buddy removes · no process is listed here, who is in a namespace tells
//! the kernel alone.
//!
//! Images, and networks, are containers' business: every image is there, and the networks there are, are [`NONE`] (loopback alone), and those that nspool
//! furnishes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt as _};
use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{
    BuddySpec, BuildSpec, Chunks, Container, ContainerId, ContainerStatus, ContainerSummary, Credentials, Engine, EngineError, EngineEvent,
    EngineFuture, EngineInfo, EngineKind, ErrorClass, Image, ImageArchive, ImageId, ImageRemoval, Labels, NamespaceKind, Network,
    NetworkSpec, PullStep, SizedImage, WaitOutcome,
};
use crate::netns::folders::{Folder, MountError, Mounter, RECORD, UNFINISHED};
use crate::random;

/// The network on which a namespace has nothing but its loopback link.
pub const NONE: &str = "none";
/// What the id of every image is.
const IMAGE: &str = "native";

/// Birth facts of a buddy.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    id: String,
    labels: Labels,
    namespaces: Vec<NamespaceKind>,
}

/// See the module. One pool's.
pub struct Native {
    root: PathBuf,
    pool: String,
    mounter: Arc<dyn Mounter>,
    /// By the folder's name, as it was when it was looked at last. What is not there any more is found out by looking.
    known: Mutex<BTreeMap<String, Arc<Record>>>,
}

impl Native {
    /// Folders of that pool, below `root`.
    #[must_use]
    pub fn new(root: &Path, pool: &str, mounter: Arc<dyn Mounter>) -> Self {
        Self { root: root.to_owned(), pool: pool.to_owned(), mounter, known: Mutex::default() }
    }

    fn folder(&self, name: &str) -> Result<Folder, EngineError> {
        Folder::new(&self.pool, name).map_err(|error| refused("folder", name, &error.to_string()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(&self.pool).join(name)
    }

    /// Reads what folders there are, and the records of those that are new. It is a folder in memory, as a rule: nothing is waited for.
    fn look(&self) -> io::Result<BTreeMap<String, Arc<Record>>> {
        let mut known = self.known.lock();
        let mut found = BTreeMap::new();
        let entries = match std::fs::read_dir(self.root.join(&self.pool)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                known.clear();
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Some(record) = known.get(&name) {
                found.insert(name, Arc::clone(record));
            } else if let Some(record) = read(&entry.path())? {
                found.insert(name, Arc::new(record));
            }
        }
        known.clone_from(&found);
        drop(known);
        Ok(found)
    }

    /// The folder's name and its record, by id or by the name as the engine says it.
    fn find(&self, operation: &'static str, id_or_name: &str) -> Result<(String, Arc<Record>), EngineError> {
        let failed = |error: io::Error| refused(operation, id_or_name, &error.to_string());
        let is_it = |(name, record): &(&String, &Arc<Record>)| record.id == id_or_name || plain(name) == id_or_name;
        let seen = self.known.lock().iter().find(is_it).map(|(name, record)| (name.clone(), Arc::clone(record)));
        if let Some(seen) = seen.filter(|(name, _)| self.path(name).exists()) {
            return Ok(seen);
        }
        let found = self.look().map_err(failed)?;
        let found = found.iter().find(is_it).map(|(name, record)| (name.clone(), Arc::clone(record)));
        found.ok_or_else(|| gone(operation, id_or_name))
    }

    fn created(&self, spec: &BuddySpec) -> Result<ContainerId, EngineError> {
        let failed = |error: io::Error| from_io("create", &spec.name, &error);
        if spec.network != NONE {
            let message = format!("there is no network {:?} without a container engine, only {NONE:?} and managed ones", spec.network);
            return Err(EngineError { class: ErrorClass::NetworkMissing, ..refused("create", &spec.name, &message) });
        }
        if self.path(&spec.name).exists() {
            return Err(EngineError { class: ErrorClass::NameTaken, ..refused("create", &spec.name, "there is a folder of that name") });
        }
        let name = format!("{UNFINISHED}{}", self.folder(&spec.name)?.name());
        let path = self.path(&name);
        let (mut id, mut bytes) = (String::new(), [0; 32]);
        random::fill(&mut bytes);
        bytes.iter().for_each(|byte| id.push_str(&format!("{byte:02x}")));
        let record = Record { id: id.clone(), labels: spec.labels.clone(), namespaces: spec.namespaces.clone() };
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(self.root.join(&self.pool)).map_err(failed)?;
        std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(failed)?;
        if let Err(error) = write(&path, &record) {
            // Without a record it is nobody's, and goes with the next look.
            drop(std::fs::remove_dir_all(&path));
            return Err(failed(error));
        }
        self.known.lock().insert(name, Arc::new(record));
        Ok(ContainerId::from(id))
    }

    async fn started(&self, id: &ContainerId) -> Result<(), EngineError> {
        let (name, record) = self.find("start", id.as_str())?;
        if !name.starts_with(UNFINISHED) {
            return Ok(());
        }
        let folder = self.folder(&name)?;
        self.mounter.make(&folder, &record.namespaces).await.map_err(|error| from_mount("start", &name, &error))?;
        self.moved("start", &name, plain(&name))
    }

    /// A folder has another name from then on.
    fn moved(&self, operation: &'static str, from: &str, to: &str) -> Result<(), EngineError> {
        let failed = |errno: Errno| from_io(operation, from, &errno.into());
        // Under the lock, so that nobody sees the one without the other.
        let mut known = self.known.lock();
        renameat_with(CWD, self.path(from), CWD, self.path(to), RenameFlags::NOREPLACE).map_err(failed)?;
        if let Some(record) = known.remove(from) {
            known.insert(to.to_owned(), record);
        }
        Ok(())
    }

    fn renamed(&self, id: &ContainerId, name: &str) -> Result<(), EngineError> {
        let (from, _) = self.find("rename", id.as_str())?;
        self.moved("rename", &from, self.folder(name)?.name())
    }

    async fn removed(&self, id: &ContainerId) -> Result<(), EngineError> {
        let (name, _) = match self.find("remove", id.as_str()) {
            Err(error) if error.class == ErrorClass::NotFound => return Ok(()),
            found => found?,
        };
        self.mounter.clear(&self.folder(&name)?).await.map_err(|error| from_mount("remove", &name, &error))?;
        self.known.lock().remove(&name);
        Ok(())
    }

    fn inspected(&self, id_or_name: &str) -> Result<Container, EngineError> {
        let (name, record) = self.find("inspect", id_or_name)?;
        let path = self.path(&name);
        let inode = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.ino(),
            Err(error) => return Err(from_io("inspect", id_or_name, &error)),
        };
        let status = status_of(&name);
        Ok(Container {
            id: ContainerId::from(record.id.as_str()),
            name: plain(&name).to_owned(),
            status,
            pid: 0,
            folder: (status == ContainerStatus::Running).then_some(path),
            started_at: format!("inode {inode}"),
            exit_code: None,
            error: String::new(),
            labels: record.labels.clone(),
            image: ImageId::from(IMAGE),
            network_mode: NONE.to_owned(),
            ipc_mode: String::new(),
            pid_mode: String::new(),
            addresses: Vec::new(),
            resolv_conf_path: String::new(),
            hosts_path: String::new(),
            hostname_path: String::new(),
            bounded: false,
        })
    }

    fn listed(&self) -> Result<Vec<ContainerSummary>, EngineError> {
        let found = self.look().map_err(|error| from_io("list", &self.pool, &error))?;
        let row = |(name, record): (String, Arc<Record>)| ContainerSummary {
            id: ContainerId::from(record.id.as_str()),
            name: plain(&name).to_owned(),
            labels: record.labels.clone(),
            status: status_of(&name),
            network_mode: NONE.to_owned(),
            image: ImageId::from(IMAGE),
        };
        Ok(found.into_iter().map(row).collect())
    }
}

fn plain(name: &str) -> &str {
    name.strip_prefix(UNFINISHED).unwrap_or(name)
}

fn status_of(name: &str) -> ContainerStatus {
    if name.starts_with(UNFINISHED) { ContainerStatus::Created } else { ContainerStatus::Running }
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    // Under another name first: a record that is there is whole.
    let (unfinished, whole) = (path.join(format!(".{RECORD}")), path.join(RECORD));
    std::fs::write(&unfinished, serde_json::to_vec(record)?)?;
    std::fs::rename(unfinished, whole)
}

/// `None`: it is gone, or was never begun, and then it goes now; or it is not ours.
fn read(path: &Path) -> io::Result<Option<Record>> {
    match std::fs::read(path.join(RECORD)) {
        Ok(record) => Ok(serde_json::from_slice(&record).ok()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            // What a create left that ended before its record was there. Refused unless it is empty; who is about to write one makes another.
            drop(std::fs::remove_dir(path));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn refused(operation: &'static str, subject: &str, message: &str) -> EngineError {
    EngineError { operation, class: ErrorClass::Refused, subject: subject.to_owned(), message: message.to_owned(), status: None }
}

fn gone(operation: &'static str, subject: &str) -> EngineError {
    EngineError { class: ErrorClass::NotFound, ..refused(operation, subject, "there is no such folder") }
}

fn from_io(operation: &'static str, subject: &str, error: &io::Error) -> EngineError {
    let class = match Errno::from_io_error(error) {
        Some(Errno::NOENT) => ErrorClass::NotFound,
        Some(Errno::EXIST) => ErrorClass::NameTaken,
        Some(Errno::NOSPC) => ErrorClass::DiskFull,
        Some(Errno::ACCESS | Errno::PERM) => ErrorClass::NotAllowed,
        Some(_) | None => ErrorClass::Refused,
    };
    EngineError { class, ..refused(operation, subject, &error.to_string()) }
}

fn from_mount(operation: &'static str, subject: &str, error: &MountError) -> EngineError {
    let class = match error {
        // Nobody knows whether it was done: the helper process may have ended in the middle of it.
        MountError::Stopped(_) => ErrorClass::Unknown,
        MountError::Refused { cause: Errno::PERM | Errno::ACCESS, .. } => ErrorClass::NotAllowed,
        MountError::Refused { .. } | MountError::NotMounted { .. } | MountError::Network { .. } => ErrorClass::Refused,
    };
    EngineError { class, ..refused(operation, subject, &error.to_string()) }
}

fn done<'a, T: Send + 'a>(answer: Result<T, EngineError>) -> EngineFuture<'a, T> {
    std::future::ready(answer).boxed()
}

impl Engine for Native {
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        let uname = rustix::system::uname();
        done(Ok(EngineInfo {
            kind: EngineKind::Native,
            id: "native".to_owned(),
            version: uname.release().to_string_lossy().into_owned(),
            endpoint: self.root.display().to_string(),
        }))
    }

    fn ping(&self) -> EngineFuture<'_, ()> {
        done(Ok(()))
    }

    fn image<'a>(&'a self, _reference: &'a str) -> EngineFuture<'a, Option<Image>> {
        done(Ok(Some(Image { id: ImageId::from(IMAGE), tags: Vec::new(), digests: Vec::new(), labels: Labels::new() })))
    }

    fn load_image(&self, _archive: ImageArchive) -> EngineFuture<'_, ()> {
        done(Ok(()))
    }

    fn save_image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Chunks> {
        done(Err(refused("save", reference, "there is no container engine")))
    }

    fn pull_image<'a>(
        &'a self,
        _reference: &'a str,
        _credentials: Option<&'a Credentials>,
        _told: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()> {
        done(Ok(()))
    }

    fn tag_image<'a>(&'a self, _id: &'a ImageId, _repository: &'a str, _tag: &'a str) -> EngineFuture<'a, ()> {
        done(Ok(()))
    }

    fn images<'a>(&'a self, _label: &'a str) -> EngineFuture<'a, Vec<Image>> {
        done(Ok(Vec::new()))
    }

    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        done(Ok(Vec::new()))
    }

    fn remove_image<'a>(&'a self, name: &'a str) -> EngineFuture<'a, ImageRemoval> {
        done(Err(refused("remove image", name, "there is no container engine")))
    }

    fn build_image<'a>(&'a self, spec: &'a BuildSpec, _context: File, _told: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        let message = "there is no container engine to build with".to_owned();
        done(Err(EngineError { operation: "build", class: ErrorClass::Refused, subject: spec.tag.clone(), message, status: None }))
    }

    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        async { self.created(spec) }.boxed()
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        self.started(id).boxed()
    }

    fn inspect<'a>(&'a self, id_or_name: &'a str) -> EngineFuture<'a, Container> {
        async { self.inspected(id_or_name) }.boxed()
    }

    fn rename<'a>(&'a self, id: &'a ContainerId, name: &'a str) -> EngineFuture<'a, ()> {
        async { self.renamed(id, name) }.boxed()
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        self.removed(id).boxed()
    }

    /// Never comes back for one that is there: whoever holds the folder sees its end first.
    fn wait<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        async move {
            match self.find("wait", id.as_str()) {
                Ok(_) => std::future::pending().await,
                Err(error) if error.class == ErrorClass::NotFound => Ok(WaitOutcome::Exited(-1)),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        async { self.listed() }.boxed()
    }

    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        done(Ok(Vec::new()))
    }

    fn create_network<'a>(&'a self, spec: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        done(Err(refused("create network", &spec.name, "there is no container engine")))
    }

    fn network_users<'a>(&'a self, _network: &'a Network) -> EngineFuture<'a, Vec<String>> {
        done(Ok(Vec::new()))
    }

    fn remove_network<'a>(&'a self, _network: &'a Network) -> EngineFuture<'a, ()> {
        done(Ok(()))
    }

    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        // Nothing happens here that nobody asked for; a folder's end its holder sees.
        done(Ok(stream::pending().boxed()))
    }
}
