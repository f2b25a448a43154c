//! Namespaces as files: one folder for each use, `<root>/<pool>/<namespace id>/`, in which a file for each kind (`net`, `ipc`, `uts`) is the
//! namespace itself, mounted there. What is in such a folder can be joined by path, by whoever may join namespaces; when the folder is renamed or
//! removed a late open fails, which is the fence of those who join by path.
//!
//! A folder is made in two ways. Of a buddy that is a container's it is an image of what its process is in ([`Mounter::publish`]), and goes with the
//! use. Of one that is no process at all ([`Mounter::make`], the native engine) it is all there is: the mount keeps the namespace, and what the
//! daemon knows of it is the folder and its descriptors ([`held`]).
//!
//! Mounts are the business of one thread ([`mason`]), in the mount namespace of the host's first process, so that agents outside the unit's sandbox see
//! them. The root is a mount of its own, shared: who has a mount namespace of its own sees them come and go. A file is removed when it is no mount any
//! more, and the kernel then takes away what other mount namespaces have copied of it: no copy keeps a namespace.
//!
//! What can go wrong: the host's mount namespace cannot be entered, a mount is not permitted · no more mounts (`fs.mount-max`), namespaces
//! (`user.max_net_namespaces`) or memory · somebody has unmounted or removed what is ours, or put something in its place · the way back to the host's
//! namespaces fails, and then the thread ends, so that nothing is done in the wrong place.
//!
//! It deliberately does not know slots, uses, or what a folder's name means.

pub mod first;
pub mod held;
pub mod mason;
pub mod user;
mod watch;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::NamespaceId;
use crate::engine::NamespaceKind;

pub use held::WithFolders;
pub use mason::Mason;
pub use user::Ids;

/// Where the folders of all pools are.
pub const ROOT: &str = "/run/nspool/ns";
/// What is known of a buddy that is no process, in its folder: without it the folder is nobody's.
pub const RECORD: &str = "buddy.json";
/// Before the name of a folder whose namespaces are not there yet.
pub const UNFINISHED: char = '.';

/// One folder below the root. Its parts are plain names: no path leads out of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(String, String)", into = "(String, String)")]
pub struct Folder {
    pool: String,
    name: String,
}

/// Not the name of a folder of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a folder with namespaces")]
pub struct NotAFolder(String);

impl Folder {
    /// `<root>/<pool>/<name>`, with letters, digits and dashes; `name` may have one dot, in front.
    ///
    /// # Errors
    /// Anything else is in one of them.
    pub fn new(pool: &str, name: &str) -> Result<Self, NotAFolder> {
        let is_plain = |name: &str| !name.is_empty() && name.len() <= 128 && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        match (is_plain(pool), is_plain(name.strip_prefix(UNFINISHED).unwrap_or(name))) {
            (true, true) => Ok(Self { pool: pool.to_owned(), name: name.to_owned() }),
            (false, _) => Err(NotAFolder(pool.to_owned())),
            (_, false) => Err(NotAFolder(name.to_owned())),
        }
    }

    /// By its path, whatever the root is.
    ///
    /// # Errors
    /// The last two parts are not such names.
    pub fn of(path: &Path) -> Result<Self, NotAFolder> {
        let part = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).map(str::to_owned);
        let (pool, name) = (part(path.parent().and_then(Path::file_name)), part(path.file_name()));
        Self::new(&pool.unwrap_or_default(), &name.unwrap_or_default())
    }

    /// Under that root.
    #[must_use]
    pub fn path(&self, root: &Path) -> PathBuf {
        root.join(&self.pool).join(&self.name)
    }

    /// Whose it is.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Within the pool.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.name)
    }
}

impl TryFrom<(String, String)> for Folder {
    type Error = NotAFolder;

    fn try_from((pool, name): (String, String)) -> Result<Self, NotAFolder> {
        Self::new(&pool, &name)
    }
}

impl From<Folder> for (String, String) {
    fn from(folder: Folder) -> Self {
        (folder.pool, folder.name)
    }
}

/// Namespaces that are held open, each with its kind.
pub type Open = Vec<(NamespaceKind, OwnedFd)>;

/// Of a descriptor of a namespace; meaningful while it is open.
///
/// # Errors
/// The kernel's.
pub fn namespace_id(open: &OwnedFd) -> Result<NamespaceId, Errno> {
    rustix::fs::fstat(open).map(|stat| NamespaceId { dev: stat.st_dev, ino: stat.st_ino })
}

/// Makes namespaces and mounts, and takes them away. [`Mason`] is the real one, the helper process has one. All of it is carried out once asked for,
/// whoever waits.
pub trait Mounter: Send + Sync + 'static {
    /// New namespaces of these kinds, mounted in the folder, which is there. The loopback link is up. After an error nothing is mounted there.
    fn make<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<(), MountError>>;
    /// Mounts these in a new folder of that name. After an error there is no such folder, unless the log says so.
    fn publish<'a>(&'a self, folder: &'a Folder, namespaces: Open) -> BoxFuture<'a, Result<(), MountError>>;
    /// What is mounted in it, of these kinds and in this order; an error, where a file for a kind is there and none is mounted, or where there is not even
    /// a network namespace.
    fn open<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>>;
    /// New namespaces of these kinds in the place of those that are mounted. After an error it is not known what is mounted.
    fn renew<'a>(&'a self, folder: &'a Folder, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Open, MountError>>;
    /// The folder goes, with all that is mounted in it; one that is not there has gone. Who is in a namespace stays in it.
    fn clear<'a>(&'a self, folder: &'a Folder) -> BoxFuture<'a, Result<(), MountError>>;
    /// The pool's own folder goes if it is empty, and the root if no other pool has one.
    fn tidy<'a>(&'a self, pool: &'a str) -> BoxFuture<'a, Result<(), MountError>>;
}

/// Why something was not done with a folder.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
pub enum MountError {
    /// The kernel said no.
    #[error("{step} {subject}: {}{}", hint_of(*.cause), .cause)]
    Refused {
        /// What was tried.
        step: std::borrow::Cow<'static, str>,
        /// On what.
        subject: String,
        /// The kernel's word.
        #[serde(with = "super::errno")]
        cause: Errno,
    },
    /// Somebody has unmounted it. It may be there still, and somebody in it: only who knows that nobody is may remove the folder.
    #[error("no {kind} namespace is mounted in {folder}: somebody has unmounted it; remove the folder if nobody is in there")]
    NotMounted {
        /// Which folder.
        folder: String,
        /// Which kind.
        kind: String,
    },
    /// What plugins gave its namespace, they do not take back: nothing was done.
    #[error("the network of {folder} cannot be given back: {why}")]
    Network {
        /// Which folder.
        folder: String,
        /// Which plugin, and what is wrong.
        why: String,
    },
    /// The thread is not where it should be, and has ended; or whoever was asked has.
    #[error("namespaces cannot be mounted any more: {0}")]
    Stopped(String),
}

impl MountError {
    pub(super) fn refused(step: &'static str, subject: impl fmt::Display) -> impl FnOnce(Errno) -> Self {
        let subject = subject.to_string();
        move |cause| Self::Refused { step: step.into(), subject, cause }
    }
}

/// What an operator can do, where the kernel's word alone does not say it.
fn hint_of(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC => "no more mounts or namespaces are to be had (fs.mount-max, user.max_net_namespaces and its like): ",
        Errno::PERM | Errno::ACCESS => {
            "nspool needs root, or CAP_SYS_ADMIN (in a unit's sandbox CAP_SYS_CHROOT, for user namespaces CAP_SETUID and CAP_SETGID): "
        }
        Errno::AGAIN => "no more processes are to be had (kernel.pid_max, a unit's TasksMax, a cgroup's pids.max): ",
        Errno::NOMEM => "the kernel is out of memory for it: ",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folders_name_leads_nowhere_else() {
        let root = Path::new("/r");
        assert_eq!(Folder::new("p", "nspool-p-1-2-3-abc").unwrap().path(root), Path::new("/r/p/nspool-p-1-2-3-abc"));
        assert_eq!(Folder::new("p", ".a").unwrap().path(root), Path::new("/r/p/.a"));
        for (pool, name) in
            [("", "a"), ("p", ""), ("p", "."), ("p", ".."), ("..", "a"), ("p/q", "a"), ("p", "a/b"), ("p", "a\0"), (".p", "a")]
        {
            assert!(Folder::new(pool, name).is_err(), "{pool:?} {name:?}");
            assert!(serde_json::from_value::<Folder>(serde_json::json!([pool, name])).is_err(), "{pool:?} {name:?}");
        }
        assert_eq!(Folder::of(Path::new("/x/y/p/a")).unwrap(), Folder::new("p", "a").unwrap());
        assert!(Folder::of(Path::new("/x/y/p/a (deleted)")).is_err() && Folder::of(Path::new("/")).is_err());
    }

    #[test]
    fn an_error_says_what_to_do() {
        let error = MountError::refused("mounting", "x")(Errno::NOSPC).to_string();
        assert!(error.starts_with("mounting x: no more mounts") && error.contains("fs.mount-max"), "{error}");
        let error = MountError::refused("starting", "x")(Errno::AGAIN).to_string();
        assert!(error.starts_with("starting x: no more processes") && error.contains("TasksMax"), "{error}");
    }
}
