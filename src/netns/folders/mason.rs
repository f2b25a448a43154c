//! The thread that makes namespaces and mounts them: one job after the other, in the mount namespace of the host.
//!
//! A thread of its own, because it goes into other namespaces; one, because the kernel makes one mount, and sets up one network namespace, at a time
//! anyway. It is outside its own namespaces from [`Hand::unshared`] to the way back only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{mpsc, oneshot};

use super::first::{self, Cell, First};
use super::{Folder, Ids, MountError, Mounter, Open, RECORD, user};
use crate::engine::NamespaceKind;
use crate::netns::linux::is_namespace;
use crate::netns::managed::loopback_up;

/// Jobs that wait: more than there are slots that can be at it at once.
const QUEUE: usize = 1024;
const HOSTS_MOUNTS: &str = "/proc/1/ns/mnt";
const OWN_MOUNTS: &str = "/proc/thread-self/ns/mnt";

/// Asks the thread, which ends with the last of its clones.
#[derive(Clone, Debug)]
pub struct Mason(mpsc::Sender<Job>);

#[derive(Debug)]
enum Job {
    Make(Folder, Vec<NamespaceKind>, Reply<()>),
    Publish(Folder, Open, Reply<()>),
    Open(Folder, Vec<NamespaceKind>, Reply<Open>),
    Renew(Folder, Vec<NamespaceKind>, Reply<Open>),
    Clear(Folder, Reply<()>),
    Tidy(String, Reply<()>),
}

/// Nobody may wait for it any more.
type Reply<T> = oneshot::Sender<Result<T, MountError>>;

impl Mason {
    /// Folders below `root`, which is made. `ids`: of the user namespaces, if there are to be any.
    ///
    /// # Errors
    /// The root cannot be mounted, the host's mount namespace cannot be entered, the thread's own namespaces cannot be opened, no thread can be started.
    pub fn start(root: &Path, ids: Option<Ids>) -> Result<Self, MountError> {
        let root = root.to_owned();
        Self::by(move || Hand::new(root, ids))
    }

    fn by(hand: impl FnOnce() -> Result<Hand, MountError> + Send + 'static) -> Result<Self, MountError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let work = move || match hand() {
            Ok(hand) => {
                if ready.send(Ok(())).is_ok() {
                    run(hand, queue);
                }
            }
            // Whoever started it waits for this.
            Err(error) => drop(ready.send(Err(error))),
        };
        let failed = |error: io::Error| MountError::Stopped(format!("no thread: {error}"));
        std::thread::Builder::new().name("nspool-folders".to_owned()).spawn(work).map_err(failed)?;
        is_ready.recv().map_err(|_| stopped())??;
        Ok(Self(jobs))
    }

    /// One that does not find the way back from the first namespaces that it makes.
    #[cfg(test)]
    pub(in crate::netns) fn without_way_back(root: &Path) -> Result<Self, MountError> {
        let root = root.to_owned();
        let nowhere = || open(Path::new("/dev/null"));
        Self::by(move || {
            Ok(Hand { root, ids: None, home: vec![(NamespaceKind::Net, nowhere()?)], is_rooted: true, cell: None, astray: None })
        })
    }

    /// Until the thread is gone: it went astray, which it has logged, or panicked. Nothing that is asked for is done any more.
    pub(in crate::netns) async fn ended(&self) {
        self.0.closed().await;
    }

    /// As above.
    pub(in crate::netns) fn has_ended(&self) -> bool {
        self.0.is_closed()
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, MountError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(job(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn stopped() -> MountError {
    MountError::Stopped("the thread for it has ended".to_owned())
}

impl Mounter for Mason {
    fn make<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<(), MountError>> {
        self.ask(|reply| Job::Make(folder.clone(), kinds.to_vec(), reply)).boxed()
    }

    fn publish<'a>(&'a self, folder: &'a Folder, namespaces: Open) -> BoxFuture<'a, Result<(), MountError>> {
        self.ask(|reply| Job::Publish(folder.clone(), namespaces, reply)).boxed()
    }

    fn open<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>> {
        self.ask(|reply| Job::Open(folder.clone(), kinds.to_vec(), reply)).boxed()
    }

    fn renew<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>> {
        self.ask(|reply| Job::Renew(folder.clone(), kinds.to_vec(), reply)).boxed()
    }

    fn clear<'a>(&'a self, folder: &'a Folder) -> BoxFuture<'a, Result<(), MountError>> {
        self.ask(|reply| Job::Clear(folder.clone(), reply)).boxed()
    }

    fn tidy<'a>(&'a self, pool: &'a str) -> BoxFuture<'a, Result<(), MountError>> {
        self.ask(|reply| Job::Tidy(pool.to_owned(), reply)).boxed()
    }
}

fn run(mut hand: Hand, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        // A failed send: nobody waits for it any more.
        match job {
            Job::Make(folder, kinds, reply) => drop(reply.send(hand.make(&folder, &kinds))),
            Job::Publish(folder, namespaces, reply) => drop(reply.send(hand.publish(&folder, &namespaces))),
            Job::Open(folder, kinds, reply) => drop(reply.send(hand.open(&folder, &kinds))),
            Job::Renew(folder, kinds, reply) => drop(reply.send(hand.renew(&folder, &kinds))),
            Job::Clear(folder, reply) => drop(reply.send(hand.clear(&folder))),
            Job::Tidy(pool, reply) => drop(reply.send(hand.tidy(&pool))),
        }
        if let Some(why) = &hand.astray {
            tracing::error!(why, "the thread that makes namespaces is not where it should be, and ends");
            return;
        }
    }
}

struct Hand {
    root: PathBuf,
    ids: Option<Ids>,
    /// Its own namespaces, to go back to.
    home: Open,
    /// The root is a mount of its own.
    is_rooted: bool,
    /// Where the first processes of pid namespaces live, once there is one.
    cell: Option<Cell>,
    /// Why there is no going on.
    astray: Option<String>,
}

impl Hand {
    fn new(root: PathBuf, ids: Option<Ids>) -> Result<Self, MountError> {
        enter_hosts_mounts()?;
        let mut home = Open::new();
        for kind in NamespaceKind::ENTERED {
            let own = open(&own_namespace(kind))?;
            match move_into_link_name_space(own.as_fd(), Some(link_type(kind))) {
                Ok(()) => home.push((kind, own)),
                // Without a way back it may not leave. So it is in a user namespace whose network is the host's: `unshare --user` without `--net`.
                Err(errno) if kind == NamespaceKind::Net => {
                    return Err(MountError::refused("going into", "this process's own network namespace")(errno));
                }
                Err(_) => {}
            }
        }
        let mut hand = Self { root, ids, home, is_rooted: false, cell: None, astray: None };
        // What is not permitted is better known at once.
        hand.rooted()?;
        Ok(hand)
    }

    fn make(&mut self, folder: &Folder, kinds: &[NamespaceKind]) -> Result<(), MountError> {
        self.rooted()?;
        let (kept, mounted): (Vec<_>, Vec<_>) = kinds.iter().partition(|kind| **kind == NamespaceKind::Pid);
        let mut namespaces = self.made(&mounted)?;
        let users = namespaces.iter().find(|(kind, _)| *kind == NamespaceKind::User).map(|(_, open)| open);
        let first = if kept.is_empty() { None } else { Some(First::start(&mut self.cell, users)?) };
        if let Some(first) = &first {
            namespaces.extend(first.namespaces()?);
        }
        self.mount_all(folder, &namespaces)?;
        let Some(first) = first else { return Ok(()) };
        // Last: until then it ends by itself.
        first.write_down(&folder.path(&self.root)).inspect_err(|_| self.unmount_all(folder, &namespaces))
    }

    fn publish(&mut self, folder: &Folder, namespaces: &Open) -> Result<(), MountError> {
        self.rooted()?;
        let path = folder.path(&self.root);
        make_folder(&path)?;
        let published = self.mount_all(folder, namespaces);
        if published.is_err()
            && let Err(left) = self.clear(folder)
        {
            tracing::warn!(%left, "what is half-made stays");
        }
        published
    }

    fn open(&self, folder: &Folder, kinds: &[NamespaceKind]) -> Result<Open, MountError> {
        let path = folder.path(&self.root);
        let missing = |kind: NamespaceKind| MountError::NotMounted { folder: folder.to_string(), kind: kind.proc_name().to_owned() };
        let mut found = Open::new();
        for kind in kinds {
            match File::open(path.join(kind.proc_name())) {
                // Not a file that nothing is mounted on.
                Ok(open) if is_namespace(open.as_fd(), *kind) => found.push((*kind, open.into())),
                Ok(_) => return Err(missing(*kind)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && *kind == NamespaceKind::Net => return Err(missing(*kind)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(MountError::refused("opening", folder)(errno(&error))),
            }
        }
        Ok(found)
    }

    fn renew(&mut self, folder: &Folder, kinds: &[NamespaceKind]) -> Result<Open, MountError> {
        if kinds.contains(&NamespaceKind::Pid) {
            // Who is in there would end with the old one.
            return Err(MountError::refused("renewing", "a pid namespace")(Errno::OPNOTSUPP));
        }
        let namespaces = self.made(kinds)?;
        for (kind, _) in &namespaces {
            take_away(&folder.path(&self.root).join(kind.proc_name()))?;
        }
        self.mount_all(folder, &namespaces)?;
        Ok(namespaces)
    }

    fn mount_all(&self, folder: &Folder, namespaces: &Open) -> Result<(), MountError> {
        let path = folder.path(&self.root);
        for (at, (kind, namespace)) in namespaces.iter().enumerate() {
            let file = path.join(kind.proc_name());
            if let Err(error) = mount_one(&file, namespace) {
                self.unmount_all(folder, &namespaces[..=at]);
                return Err(error);
            }
        }
        Ok(())
    }

    fn unmount_all(&self, folder: &Folder, namespaces: &[(NamespaceKind, OwnedFd)]) {
        for (kind, _) in namespaces.iter().rev() {
            if let Err(left) = take_away(&folder.path(&self.root).join(kind.proc_name())) {
                tracing::warn!(%left, "what is half-made stays");
            }
        }
    }

    fn clear(&mut self, folder: &Folder) -> Result<(), MountError> {
        let path = folder.path(&self.root);
        let failed = |step: &'static str, error: &io::Error| MountError::refused(step, folder)(errno(error));
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("listing", &error)),
        };
        let paths: Vec<PathBuf> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(|e| failed("listing", &e))?;
        first::end(&path)?;
        let record = path.join(RECORD);
        let mut failures: Vec<MountError> = paths.iter().filter(|path| **path != record).filter_map(|path| take_away(path).err()).collect();
        if let Some(first) = failures.pop() {
            // Without its record the folder would be nobody's: it goes last, and only then.
            failures.iter().for_each(|failure| tracing::warn!(%failure, "a part of a folder stays"));
            return Err(first);
        }
        take_away(&record)?;
        remove_folder(&path)
    }

    fn tidy(&mut self, pool: &str) -> Result<(), MountError> {
        let is_empty = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        let own = Folder::new(pool, pool).map_err(|error| MountError::Stopped(error.to_string()))?.path(&self.root);
        if let Some(own) = own.parent().filter(|own| is_empty(own)) {
            remove_folder(own)?;
        }
        if is_empty(&self.root) {
            unmount_whole(&self.root)?;
            self.is_rooted = false;
            // Another pool may have come meanwhile: a folder that is not empty stays.
            drop(std::fs::remove_dir(&self.root));
        }
        Ok(())
    }

    /// The root is there, a mount of its own, and shared: who has copied the mounts of the host sees what is mounted below it later.
    fn rooted(&mut self) -> Result<(), MountError> {
        if self.is_rooted && self.root.exists() {
            return Ok(());
        }
        make_folders(&self.root)?;
        let shared = || mount_change(&self.root, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
        let failed = |step| MountError::refused(step, self.root.display());
        match shared() {
            // It is no mount yet.
            Err(Errno::INVAL) => {
                mount_bind_recursive(&self.root, &self.root).map_err(failed("mounting"))?;
                shared().map_err(failed("sharing the mounts below"))?;
            }
            changed => changed.map_err(failed("sharing the mounts below"))?,
        }
        self.is_rooted = true;
        Ok(())
    }

    /// New namespaces, with the loopback link up.
    fn made(&mut self, kinds: &[NamespaceKind]) -> Result<Open, MountError> {
        if !kinds.contains(&NamespaceKind::User) {
            return self.unshared(kinds);
        }
        let ids = self.ids.ok_or_else(|| MountError::Stopped("which ids a user namespace is to have was not said".to_owned()))?;
        let opened = user::made(kinds, ids)?;
        let network: Vec<_> = opened.iter().filter(|(kind, _)| *kind == NamespaceKind::Net).collect();
        let is_up = network.iter().try_for_each(|(kind, open)| {
            move_into_link_name_space(open.as_fd(), Some(link_type(*kind)))?;
            loopback_up()
        });
        self.go_home(&[NamespaceKind::Net])?;
        is_up.map_err(MountError::refused("bringing up", "the loopback link"))?;
        Ok(opened)
    }

    /// New namespaces. The thread is in them for that moment.
    fn unshared(&mut self, kinds: &[NamespaceKind]) -> Result<Open, MountError> {
        if let Some(kind) = kinds.iter().find(|kind| !self.home.iter().any(|(home, _)| home == *kind)) {
            return Err(MountError::refused("going into", format!("this process's own {} namespace", kind.proc_name()))(Errno::PERM));
        }
        let flags = kinds.iter().fold(CloneFlags::empty(), |flags, kind| flags | clone_flag(*kind));
        let words = || kinds.iter().map(|kind| kind.proc_name()).collect::<Vec<_>>().join(" ");
        unshare(flags).map_err(|error| MountError::refused("making namespaces:", words())(Errno::from_raw_os_error(error as i32)))?;
        let opened = kinds.iter().map(|kind| Ok((*kind, open(&own_namespace(*kind))?))).collect::<Result<Open, MountError>>();
        let is_up = if kinds.contains(&NamespaceKind::Net) { loopback_up() } else { Ok(()) };
        self.go_home(kinds)?;
        is_up.map_err(MountError::refused("bringing up", "the loopback link"))?;
        opened
    }

    fn go_home(&mut self, kinds: &[NamespaceKind]) -> Result<(), MountError> {
        for (kind, home) in self.home.iter().filter(|(kind, _)| kinds.contains(kind)) {
            if let Err(errno) = move_into_link_name_space(home.as_fd(), Some(link_type(*kind))) {
                let why = format!("no way back to the host's {} namespace: {errno}", kind.proc_name());
                self.astray = Some(why.clone());
                return Err(MountError::Stopped(why));
            }
        }
        Ok(())
    }
}

/// So that what is mounted is seen by all. Without another mount namespace than the host's there is nothing to enter.
fn enter_hosts_mounts() -> Result<(), MountError> {
    let identity = |path: &str| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let failed = |error: &io::Error| MountError::refused("entering", "the host's mount namespace")(errno(error));
    let hosts = match identity(HOSTS_MOUNTS) {
        Ok(hosts) => hosts,
        // Even root may not look at a hardened init's. Whoever runs nspool without a sandbox loses nothing.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::info!(%error, "the host's mount namespace cannot be seen: namespaces are mounted in nspool's own");
            return Ok(());
        }
        Err(error) => return Err(failed(&error)),
    };
    if identity(OWN_MOUNTS).is_ok_and(|own| own == hosts) {
        return Ok(());
    }
    let hosts = open(Path::new(HOSTS_MOUNTS))?;
    // The folder that a process is in is all its threads', and a thread that has it with others may not go.
    unshare(CloneFlags::CLONE_FS)
        .map_err(|error| MountError::refused("entering", "the host's mount namespace")(Errno::from_raw_os_error(error as i32)))?;
    let entered = move_into_link_name_space(hosts.as_fd(), Some(LinkNameSpaceType::Mount));
    entered.map_err(MountError::refused("entering", "the host's mount namespace"))
}

fn own_namespace(kind: NamespaceKind) -> PathBuf {
    format!("/proc/thread-self/ns/{}", kind.proc_name()).into()
}

fn descriptor(open: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_fd().as_raw_fd()).into()
}

fn open(path: &Path) -> Result<OwnedFd, MountError> {
    let file = File::open(path).map_err(|error| MountError::refused("opening", path.display())(errno(&error)))?;
    Ok(file.into())
}

fn mount_one(file: &Path, namespace: &OwnedFd) -> Result<(), MountError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o444).open(file);
    made.map_err(|error| MountError::refused("making", file.display())(errno(&error)))?;
    mount_bind(descriptor(namespace), file).map_err(MountError::refused("mounting a namespace on", file.display()))
}

/// All that is mounted on it, and then the file: which has the kernel take away what other mount namespaces have copied.
fn take_away(file: &Path) -> Result<(), MountError> {
    unmount_whole(file)?;
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MountError::refused("removing", file.display())(errno(&error))),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn unmount_whole(path: &Path) -> Result<(), MountError> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there any more.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(cause) => return Err(MountError::refused("unmounting", path.display())(cause)),
        }
    }
}

fn make_folders(path: &Path) -> Result<(), MountError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| MountError::refused("making", path.display())(errno(&error)))
}

/// The last part is new.
fn make_folder(path: &Path) -> Result<(), MountError> {
    if let Some(parent) = path.parent() {
        make_folders(parent)?;
    }
    let made = std::fs::DirBuilder::new().mode(0o755).create(path);
    made.map_err(|error| MountError::refused("making", path.display())(errno(&error)))
}

fn remove_folder(path: &Path) -> Result<(), MountError> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(MountError::refused("removing", path.display())(errno(&error))),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

pub(super) fn clone_flag(kind: NamespaceKind) -> CloneFlags {
    match kind {
        NamespaceKind::Net => CloneFlags::CLONE_NEWNET,
        NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
        NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
        // Needs a first process: no file keeps it.
        NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
        NamespaceKind::User => CloneFlags::CLONE_NEWUSER,
    }
}

/// As setns(2) wants it.
pub(in crate::netns) fn link_type(kind: NamespaceKind) -> LinkNameSpaceType {
    match kind {
        NamespaceKind::Net => LinkNameSpaceType::Network,
        NamespaceKind::Ipc => LinkNameSpaceType::InterProcessCommunication,
        NamespaceKind::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        NamespaceKind::Pid => LinkNameSpaceType::ProcessID,
        NamespaceKind::User => LinkNameSpaceType::User,
    }
}
