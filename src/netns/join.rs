//! A program in namespaces that are files ([`folders`](super::folders)): a process goes into them, and becomes the program.
//!
//! For `nspool exec`, whose child is this program once more, as [`ROLE`]: one thread, which opens the paths, goes in, and then becomes what was asked for.
//! So the program has the pid that was started, no process stays between, and nothing is done between a fork and an exec that is not safe there. The paths
//! are opened here, at the last moment, and not by who took the lease: a lease that has ended meanwhile has no paths any more, and the open fails. That is the
//! fence.
//!
//! Into a pid namespace nobody goes himself, only his children do: the thread that starts the program goes in first ([`start`]), and stays until it has ended.
//!
//! The program ends with who started it, as a child that nobody waits for would be in the namespace with nobody to say so. That is the kernel's parent-death
//! signal, which a change of the user takes away again (`setpriv --pdeathsig keep` does not).
//!
//! What can go wrong: the lease has ended · the paths are not seen here, in a container or sandbox that lacks the host's folder · joining is not permitted ·
//! the program is not there, or is none. Whatever it is, nothing was started.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal};
use rustix::thread::move_into_link_name_space;
use tokio::process::Child;
use tokio::sync::oneshot;

use super::folders::first::become_user;
use super::folders::mason::link_type;
use super::helper::keeper::{COMMAND, SELF};
use super::linux::{ends_within, is_namespace};
use crate::engine::NamespaceKind;

/// What tells this process from the helpers.
pub const ROLE: &str = "join";

/// A namespace to go into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    kind: NamespaceKind,
    path: PathBuf,
}

impl Place {
    /// As a lease names it: `network`, `ipc`, `uts`, `pid`, `user`. `None`: another kind, or none at all.
    #[must_use]
    pub fn new(oci_type: &str, path: &str) -> Option<Self> {
        let kind = NamespaceKind::JOINABLE.into_iter().find(|kind| oci_name(*kind) == oci_type)?;
        Some(Self { kind, path: path.into() })
    }

    /// As one word of a command line.
    fn word(&self) -> OsString {
        let mut word = OsString::from(oci_name(self.kind));
        word.push("=");
        word.push(&self.path);
        word
    }

    fn of_word(word: &OsStr) -> Option<Self> {
        let (kind, path) = word.to_str()?.split_once('=')?;
        Self::new(kind, path)
    }
}

/// As the OCI runtime specification calls it.
fn oci_name(kind: NamespaceKind) -> &'static str {
    if kind == NamespaceKind::Net { "network" } else { kind.proc_name() }
}

/// Why there is no program in the namespaces.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The path was there, or its pool's folder still is.
    #[error("the lease has ended: {} is not there any more", .0.display())]
    Ended(PathBuf),
    /// Not even the pool's folder is there.
    #[error("{} is not there: the lease has ended, or the host's folder is not seen from here (a container, or a sandbox)", .0.display())]
    Hidden(PathBuf),
    /// A file, and nothing more.
    #[error("no {} namespace is mounted on {}: somebody has unmounted it, or the host's mounts are not seen from here (a container, or a sandbox)", kind.proc_name(), path.display())]
    NotMounted {
        /// Which kind.
        kind: NamespaceKind,
        /// Where.
        path: PathBuf,
    },
    /// It takes more rights.
    #[error("not allowed to {step} {}", path.display())]
    NotAllowed {
        /// `open` or `join`.
        step: &'static str,
        /// What.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// The kernel said no for another reason.
    #[error("cannot {step} {}", path.display())]
    Refused {
        /// `open` or `join`.
        step: &'static str,
        /// What.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// It is not there.
    #[error("{}: not found", .0.display())]
    NoProgram(PathBuf),
    /// It is there.
    #[error("{}: cannot be started", program.display())]
    NotExecutable {
        /// As it was asked for.
        program: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// Who started this has ended: nobody waits for the program.
    #[error("who started this has ended")]
    Orphan,
    /// Not a command line of [`command`]'s.
    #[error("not called as it should be: this is for `nspool exec` alone")]
    Words,
}

/// This program, which goes there and becomes that one, once it is [started](start). Its surroundings are the caller's to set; they are the program's.
#[must_use]
pub fn command(places: &[Place], program: &[OsString]) -> Command {
    let mut command = Command::new(SELF);
    command.arg0(env!("CARGO_PKG_NAME")).args([COMMAND, ROLE]);
    let own = || places.iter().filter(|place| place.kind != NamespaceKind::Pid);
    command.arg(getpid().to_string()).arg(own().count().to_string());
    command.args(own().map(Place::word)).args(program);
    command
}

/// Starts it, inside a runtime, from a thread that is in the pid namespace among the places, if there is one. Cut short, the program is started or is not.
///
/// # Errors
/// The pid namespace cannot be joined; no process or thread is to be had. Whatever else is in the way says the process.
pub async fn start(places: &[Place], command: Command) -> Result<Child, StartError> {
    let mut command = tokio::process::Command::from(command);
    let Some(place) = places.iter().find(|place| place.kind == NamespaceKind::Pid).cloned() else { return Ok(command.spawn()?) };
    let (tell, told) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let _runtime = runtime.enter();
        let joined = open(&place).and_then(|namespace| join(&place, &namespace));
        let started = joined.map_err(StartError::from).and_then(|()| {
            let child = command.spawn()?;
            let pid =
                child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
            Ok((child, pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?))
        });
        // The program ends with this thread: at once, if nobody waits for it any more.
        match started {
            Ok((child, pidfd)) => {
                if tell.send(Ok(child)).is_ok() {
                    while !ends_within(&pidfd, Duration::MAX) {}
                }
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    };
    std::thread::Builder::new().name("nspool-join".to_owned()).spawn(work)?;
    told.await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It could not be where it should be.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// No process.
    #[error("cannot start a process: {0}")]
    Process(#[from] io::Error),
}

/// The process's life until it is the program: what [`command`] wrote after the role. Comes back only when that was not to be.
#[must_use]
pub fn become_program(words: &[OsString]) -> JoinError {
    let Some((parent, places, program)) = parse(words) else { return JoinError::Words };
    match go(parent, &places) {
        Ok(()) => {}
        Err(error) => return error,
    }
    let error = Command::new(&program[0]).args(&program[1..]).exec();
    not_started(&program[0], error)
}

fn parse(words: &[OsString]) -> Option<(i32, Vec<Place>, &[OsString])> {
    let [parent, count, rest @ ..] = words else { return None };
    let (places, program) = rest.split_at_checked(count.to_str()?.parse().ok()?)?;
    let places = places.iter().map(|word| Place::of_word(word)).collect::<Option<Vec<_>>>()?;
    let can_go = places.iter().all(|place: &Place| place.kind != NamespaceKind::Pid);
    (can_go && !program.is_empty()).then_some((parent.to_str()?.parse().ok()?, places, program))
}

fn go(parent: i32, places: &[Place]) -> Result<(), JoinError> {
    // All of them are opened before the first is joined: what is half there is not to be had.
    let open = places.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    places.iter().zip(open).try_for_each(|(place, namespace)| match place.kind {
        NamespaceKind::User => become_user(&namespace).map_err(|errno| refused("join", &place.path, errno.into())),
        NamespaceKind::Net | NamespaceKind::Ipc | NamespaceKind::Uts | NamespaceKind::Pid => join(place, &namespace),
    })?;
    // Last, as another user's process forgets it. It is refused of no signal that there is; a parent who ended before is not told of.
    let _told = set_parent_process_death_signal(Some(Signal::KILL));
    if parent_here() == Some(parent) { Ok(()) } else { Err(JoinError::Orphan) }
}

/// As those see it who are in the pid namespace of who started this: in another one a parent outside has no number.
fn parent_here() -> Option<i32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn join(place: &Place, namespace: &OwnedFd) -> Result<(), JoinError> {
    let joined = move_into_link_name_space(namespace.as_fd(), Some(link_type(place.kind)));
    joined.map_err(|errno| refused("join", &place.path, errno.into()))
}

fn open(place: &Place) -> Result<OwnedFd, JoinError> {
    let path = &place.path;
    let file = File::open(path).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) if pools_folder_is_there(path) => JoinError::Ended(path.clone()),
        Some(Errno::NOENT | Errno::NOTDIR) => JoinError::Hidden(path.clone()),
        Some(_) | None => refused("open", path, error),
    })?;
    match is_namespace(file.as_fd(), place.kind) {
        true => Ok(file.into()),
        false => Err(JoinError::NotMounted { kind: place.kind, path: path.clone() }),
    }
}

/// `<root>/<pool>/<namespace id>/net`: the pool's stays as long as the pool has slots.
fn pools_folder_is_there(path: &Path) -> bool {
    path.ancestors().nth(2).is_some_and(Path::is_dir)
}

fn refused(step: &'static str, path: &Path, source: io::Error) -> JoinError {
    let path = path.to_owned();
    match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::ACCESS) => JoinError::NotAllowed { step, path, source },
        Some(_) | None => JoinError::Refused { step, path, source },
    }
}

fn not_started(program: &OsStr, source: io::Error) -> JoinError {
    let program = PathBuf::from(program);
    if source.kind() == io::ErrorKind::NotFound { JoinError::NoProgram(program) } else { JoinError::NotExecutable { program, source } }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn words(of: &Command) -> Vec<OsString> {
        of.get_args().skip(2).map(OsStr::to_owned).collect()
    }

    #[test]
    fn the_command_line_comes_back_as_it_was() {
        let places = [Place::new("network", "/run/a=b/net").unwrap(), Place::new("uts", "/run/a=b/uts").unwrap()];
        let program: Vec<OsString> = vec!["--".into(), "-o".into(), OsStr::from_bytes(b"\xff").into()];
        let words = words(&command(&places, &program));
        let (parent, back, asked) = parse(&words).unwrap();
        assert_eq!((parent, &back[..], asked), (getpid().as_raw_nonzero().get(), &places[..], &program[..]));
        for too_few in 0..4 {
            assert!(matches!(become_program(&words[..too_few]), JoinError::Words));
        }
    }

    #[test]
    fn what_a_process_cannot_go_into_is_no_place() {
        for kind in ["net", "mount", ""] {
            assert_eq!(Place::new(kind, "/x"), None, "{kind}");
        }
    }

    #[test]
    fn a_path_that_leads_to_no_namespace_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let place = |path: PathBuf| Place::new("network", path.to_str().unwrap()).unwrap();
        let pool = dir.path().join("p");
        assert!(matches!(open(&place(pool.join("a/net"))), Err(JoinError::Hidden(_))));
        std::fs::create_dir_all(pool.join("a")).unwrap();
        assert!(matches!(open(&place(pool.join("b/net"))), Err(JoinError::Ended(_))));
        std::fs::write(pool.join("a/net"), "").unwrap();
        assert!(matches!(open(&place(pool.join("a/net"))), Err(JoinError::NotMounted { .. })));
        assert!(open(&place("/proc/self/ns/net".into())).is_ok());
        assert!(matches!(open(&place("/proc/self/ns/uts".into())), Err(JoinError::NotMounted { .. })));
    }
}
