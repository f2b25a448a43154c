//! The first process of a pid namespace, which is as long as that process is: the embedded init, in a cell.
//!
//! ```text
//!  the thread for folders ── spawns ──► this program, as [`ROLE`] ── spawns ──► /init, pid 1 of a new pid namespace
//!         │  ◄─── its pid ──────────────────┘ waits                             (no rights, an empty root, nobody's network)
//!         └─ writes it down, says so ─────► ends
//! ```
//!
//! The role is a process of its own, as that is how one gets rid of rights and goes into other namespaces for good. The cell is where the init lives: mount,
//! network, ipc and uts namespaces in which there is nothing but the init's file, and no way to the host's. A function that is root in the
//! shared pid namespace, and may trace processes, gains nothing by what it finds there; the file cannot be read, so that others may not trace it at all.
//! All inits of one helper share the cell of the first one.
//!
//! What it promises: an init is written down beside its namespace before it is anybody's, by its pid and the time of its start, which together are no other
//! process's (`Written`). It is ended by that, by whichever helper. What can go wrong: no more processes or pid namespaces · the thread's process ends
//! before it has written it down, and then the role ends the init · somebody ends the init: the kernel ends all who are in its namespace, and who
//! holds the folder sees it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Gid, Uid};
use rustix::process::{Pid, PidfdFlags, Signal, chdir, pidfd_open, pidfd_send_signal, pivot_root};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space, set_thread_gid, set_thread_groups, set_thread_uid};

use super::{MountError, Open};
use crate::engine::NamespaceKind;
use crate::image::placeholder::INIT;
use crate::netns::helper::channel::{self, Message};
use crate::netns::helper::keeper::{COMMAND, SELF};
use crate::netns::helper::powers;
use crate::netns::linux::ends_within;

/// What tells this process from the other helpers.
pub const ROLE: &str = "first";
/// Beside the namespace: who keeps it.
pub(super) const FILE: &str = "init";
/// To start two processes takes milliseconds.
pub(super) const STARTED_WITHIN: Duration = Duration::from_secs(5);
/// The kernel ends all who are in the namespace before its first process is gone.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
/// More than the init's size and its folder's.
const CELL: &std::ffi::CStr = c"size=64k,nr_inodes=8,mode=0555";

/// Where inits are, by its namespaces.
#[derive(Debug)]
pub(super) struct Cell(Vec<OwnedFd>);

/// So many they are.
const CELLS: usize = 4;

impl Cell {
    fn of(pid: u32) -> Result<Self, MountError> {
        let open = |name| File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
        let names: [_; CELLS] = ["mnt", "net", "ipc", "uts"];
        let opened = names.into_iter().map(open).collect::<io::Result<Vec<_>>>();
        opened.map(Self).map_err(|error| refused("opening the namespaces of", &error))
    }

    fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        self.0.iter().map(OwnedFd::try_clone).collect()
    }
}

/// An init that nobody knows of yet; it ends unless it is [written down](Self::write_down).
#[derive(Debug)]
pub(super) struct First {
    pid: u32,
    socket: OwnedFd,
    role: Child,
}

impl First {
    /// Starts one, in the cell or in the first of its kind. Blocks until it is there.
    ///
    /// `users`: the user namespace that the pid namespace is to belong to.
    pub(super) fn start(cell: &mut Option<Cell>, users: Option<&OwnedFd>) -> Result<Self, MountError> {
        let failed = |error: io::Error| refused("starting", &error);
        let (ours, theirs) = channel::pair().map_err(|errno| failed(errno.into()))?;
        set_socket_timeout(&ours, Timeout::Recv, Some(STARTED_WITHIN)).map_err(|errno| failed(errno.into()))?;
        let mut role = Command::new(SELF);
        role.arg0(env!("CARGO_PKG_NAME")).args([COMMAND, ROLE]).env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let role = role.process_group(0).spawn().map_err(failed)?;
        let mut first = Self { pid: 0, socket: ours, role };
        first.pid = first.asked(cell.as_ref(), users)?;
        if cell.is_none() {
            *cell = Some(Cell::of(first.pid)?);
        }
        Ok(first)
    }

    fn asked(&self, cell: Option<&Cell>, users: Option<&OwnedFd>) -> Result<u32, MountError> {
        let failed = |error: io::Error| refused("starting", &error);
        let mut descriptors = cell.map(Cell::descriptors).transpose().map_err(failed)?.unwrap_or_default();
        descriptors.extend(users.map(OwnedFd::try_clone).transpose().map_err(failed)?);
        let question = Message { number: 1, body: Vec::new(), descriptors };
        channel::send(self.socket.as_fd(), &question).map_err(|errno| failed(errno.into()))?;
        let answer = channel::receive(self.socket.as_fd()).map_err(|error| MountError::Stopped(format!("the init's parent: {error}")))?;
        let answer = answer.ok_or_else(|| MountError::Stopped("the init's parent has ended".to_owned()))?;
        let words = serde_json::from_slice::<Result<u32, MountError>>(&answer.body);
        words.map_err(|error| MountError::Stopped(format!("the init's parent: {error}")))?
    }

    /// The namespace that it keeps.
    pub(super) fn namespaces(&self) -> Result<Open, MountError> {
        let opened = File::open(format!("/proc/{}/ns/pid", self.pid));
        Ok(vec![(NamespaceKind::Pid, opened.map_err(|error| refused("opening the namespace of", &error))?.into())])
    }

    /// From now on it stays, and whoever reads the folder can end it.
    pub(super) fn write_down(mut self, folder: &Path) -> Result<(), MountError> {
        let written = Written::of(self.pid).map_err(|error| refused("reading the start of", &error))?;
        let file = folder.join(FILE);
        std::fs::write(&file, written.to_string()).map_err(|error| {
            // Half of it names nobody.
            drop(std::fs::remove_file(&file));
            refused("writing down", &error)
        })?;
        channel::send(self.socket.as_fd(), &Message::default()).map_err(|errno| refused("keeping", &errno.into()))?;
        self.role.wait().map(drop).map_err(|error| refused("waiting for the parent of", &error))
    }
}

impl Drop for First {
    /// Its parent ends it when the socket is closed, unless it was told to let it stay; the parent itself is waited for.
    fn drop(&mut self) {
        if matches!(self.role.try_wait(), Ok(Some(_))) {
            return;
        }
        let _told = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let has_ended = pidfd_open(Pid::from_child(&self.role), PidfdFlags::empty()).is_ok_and(|role| ends_within(&role, ENDED_WITHIN));
        if !has_ended {
            tracing::warn!(pid = self.role.id(), "the parent of a namespace's first process does not end, and is killed");
            let _killed = self.role.kill();
        }
        let _waited = self.role.wait();
    }
}

/// Who keeps a folder's pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) pid: u32,
    /// In clock ticks since the boot.
    started: u64,
}

impl Written {
    fn of(pid: u32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // After the name, which may have anything in it: the 22nd field of proc_pid_stat(5).
        let started = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok());
        started.map(|started| Self { pid, started }).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// `None`: the folder has no init.
    pub(super) fn read(folder: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(folder.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let (pid, started) = text.trim_end().split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        match (pid.parse(), started.parse()) {
            (Ok(pid), Ok(started)) => Ok(Some(Self { pid, started })),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether the process of that pid is still this one.
    pub(super) fn is_there(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// Ends it, and with it all who are in its namespace; blocks until it is gone. One that is gone is no error.
    fn end(self) -> Result<(), Errno> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            opened => opened?,
        };
        // After it was opened: what is looked at now is what is ended, or has ended.
        if !self.is_there() {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
        if ends_within(&pidfd, ENDED_WITHIN) { Ok(()) } else { Err(Errno::TIMEDOUT) }
    }
}

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.started)
    }
}

/// Of a folder that is cleared. One without an init is none to end.
pub(super) fn end(folder: &Path) -> Result<(), MountError> {
    match Written::read(folder) {
        Ok(Some(written)) => written.end().map_err(|errno| refused("ending", &errno.into())),
        Ok(None) => Ok(()),
        Err(error) => Err(refused("reading who is", &error)),
    }
}

fn refused(step: &'static str, error: &io::Error) -> MountError {
    MountError::refused(step, "the first process of a pid namespace")(super::mason::errno(error))
}

/// The process's life, as [`ROLE`].
#[must_use]
pub fn work() -> ExitCode {
    let thread = io::stdin();
    let Ok(Some(question)) = channel::receive(thread.as_fd()) else { return ExitCode::FAILURE };
    let (cell, users) = question.descriptors.split_at(question.descriptors.len() / CELLS * CELLS);
    let started = started(cell, users.first());
    let words = started.as_ref().map(Child::id).map_err(Clone::clone);
    let Ok(body) = serde_json::to_vec(&words) else { return ExitCode::FAILURE };
    let told = channel::send(thread.as_fd(), &Message { number: 1, body, descriptors: Vec::new() });
    let Ok(mut init) = started else { return ExitCode::FAILURE };
    match channel::receive(thread.as_fd()) {
        // It is written down.
        Ok(Some(_)) if told.is_ok() => ExitCode::SUCCESS,
        Ok(_) | Err(_) => {
            // An error says that it has ended.
            let _ended = init.kill().and_then(|()| init.wait());
            ExitCode::FAILURE
        }
    }
}

fn started(cell: &[OwnedFd], users: Option<&OwnedFd>) -> Result<Child, MountError> {
    // Before there is no way to it any more.
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null").map(Stdio::from);
    let io = |step: &'static str| move |error: io::Error| refused(step, &error);
    let none = [null(), null(), null()].into_iter().collect::<io::Result<Vec<_>>>().map_err(io("starting"))?;
    let Ok([stdin, stdout, stderr]) = <[Stdio; 3]>::try_from(none) else { return Err(refused("starting", &Errno::INVAL.into())) };
    let entered = if cell.is_empty() { build_cell() } else { cell.iter().try_for_each(|fd| move_into_link_name_space(fd.as_fd(), None)) };
    entered.map_err(|errno| refused("making the cell of", &errno.into()))?;
    users.map_or(Ok(()), become_user).map_err(|errno| refused("going into the user namespace of", &errno.into()))?;
    let unshared = unshare(CloneFlags::CLONE_NEWPID).map_err(|error| io::Error::from_raw_os_error(error as i32));
    unshared.map_err(io("making"))?;
    powers::keep(CapabilitySet::empty()).map_err(|errno| refused("taking the rights of", &errno.into()))?;
    let mut init = Command::new("/init");
    init.arg0("nspool-init").env_clear().process_group(0).stdin(stdin).stdout(stdout).stderr(stderr).spawn().map_err(io("starting"))
}

/// Root of that namespace, who is nobody on the host.
pub(in crate::netns) fn become_user(users: &OwnedFd) -> Result<(), Errno> {
    move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
    set_thread_groups(&[])?;
    set_thread_gid(Gid::ROOT)?;
    set_thread_uid(Uid::ROOT)
}

/// Namespaces with nothing in them but the init's file.
fn build_cell() -> Result<(), Errno> {
    let kinds = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(kinds).map_err(|error| Errno::from_raw_os_error(error as i32))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Any folder will do: nobody else sees it.
    let root = PathBuf::from("/proc");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("nspool", &root, "tmpfs", flags, CELL)?;
    let written =
        OpenOptions::new().write(true).create_new(true).mode(0o111).open(root.join("init")).and_then(|mut file| file.write_all(INIT));
    written.map_err(|error| super::mason::errno(&error))?;
    mount_remount(&root, flags | MountFlags::RDONLY, CELL)?;
    chdir(&root)?;
    // The new root is on top of the old one, which goes.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_pid_and_its_start() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Written::read(dir.path()).unwrap(), None);
        end(dir.path()).unwrap();
        let own = Written::of(std::process::id()).unwrap();
        assert!(own.is_there());
        std::fs::write(dir.path().join(FILE), own.to_string()).unwrap();
        assert_eq!(Written::read(dir.path()).unwrap(), Some(own));
        // One that had our pid before: we are not ended for it.
        let another = Written { started: own.started - 1, ..own };
        assert!(!another.is_there());
        another.end().unwrap();
        for nonsense in ["", "1", "1 x", "-1 2"] {
            std::fs::write(dir.path().join(FILE), nonsense).unwrap();
            assert!(end(dir.path()).is_err(), "{nonsense:?}");
        }
    }
}
