//! A user namespace, and others that belong to it: made by a process of its own, as a process with threads makes none.
//!
//! ```text
//!  the thread for folders ── spawns ──► this program, as [`ROLE`]: a new user namespace, and new others, which belong to it
//!         │  ◄─── done ─────────────────────┘ waits
//!         └─ writes its maps, opens all of them ─► ends
//! ```
//!
//! Who is root in there is on the host the first of a range of ids that nobody else has ([`Ids`]), and every id inside is one of them: what gets out of
//! a function that way is nobody on the host. The maps are written from outside, as only who has CAP_SETUID and CAP_SETGID there may; until then nobody can be
//! anybody inside.
//!
//! What can go wrong: no more user namespaces, or users may have none (a sysctl, a unit's sandbox) · the range is not ours to give (a pool without root has the
//! ids of its own user namespace alone).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sched::unshare;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::{Deserialize, Serialize};

use super::first::STARTED_WITHIN;
use super::mason::{clone_flag, errno};
use super::{MountError, Open};
use crate::engine::NamespaceKind;
use crate::netns::helper::channel::{self, Message};
use crate::netns::helper::keeper::{COMMAND, SELF};

/// What tells this process from the other helpers.
pub const ROLE: &str = "user";

/// The host's user and group ids that are 0, 1, and so on inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// On the host.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// New namespaces of these kinds, the user namespace among them, to which the others belong.
pub(super) fn made(kinds: &[NamespaceKind], ids: Ids) -> Result<Open, MountError> {
    let (ours, theirs) = channel::pair().map_err(|errno| failed("making", errno))?;
    set_socket_timeout(&ours, Timeout::Recv, Some(STARTED_WITHIN)).map_err(|errno| failed("making", errno))?;
    let mut role = Command::new(SELF);
    role.arg0(env!("CARGO_PKG_NAME")).args([COMMAND, ROLE]).env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null());
    let mut role = role.process_group(0).spawn().map_err(|error| failed("making", errno(&error)))?;
    let opened = opened(&ours, &role, kinds, ids);
    // It ends with its socket, if it has not.
    drop(ours);
    role.wait().map_err(|error| failed("waiting for who made", errno(&error)))?;
    opened
}

fn opened(socket: &OwnedFd, role: &Child, kinds: &[NamespaceKind], ids: Ids) -> Result<Open, MountError> {
    let stopped = |error: String| MountError::Stopped(format!("who makes a user namespace: {error}"));
    let body = serde_json::to_vec(kinds).map_err(|error| stopped(error.to_string()))?;
    channel::send(socket.as_fd(), &Message { number: 1, body, descriptors: Vec::new() }).map_err(|errno| failed("making", errno))?;
    let answer = channel::receive(socket.as_fd()).map_err(|error| stopped(error.to_string()))?;
    let answer = answer.ok_or_else(|| stopped("it has ended".to_owned()))?;
    serde_json::from_slice::<Result<(), MountError>>(&answer.body).map_err(|error| stopped(error.to_string()))??;
    let of = |file: &str| format!("/proc/{}/{file}", role.id());
    for map in ["uid_map", "gid_map"] {
        let written = std::fs::write(of(map), format!("0 {} {}\n", ids.first, ids.count));
        written.map_err(|error| failed("writing the ids of", errno(&error)))?;
    }
    let open = |kind: &NamespaceKind| Ok((*kind, File::open(of(&format!("ns/{}", kind.proc_name())))?.into()));
    kinds.iter().map(open).collect::<io::Result<Open>>().map_err(|error| failed("opening", errno(&error)))
}

fn failed(step: &'static str, errno: Errno) -> MountError {
    MountError::refused(step, "a user namespace")(errno)
}

/// The process's life, as [`ROLE`].
#[must_use]
pub fn work() -> ExitCode {
    let thread = io::stdin();
    let Ok(Some(question)) = channel::receive(thread.as_fd()) else { return ExitCode::FAILURE };
    let Ok(kinds) = serde_json::from_slice::<Vec<NamespaceKind>>(&question.body) else { return ExitCode::FAILURE };
    // The user namespace is made first, whatever the order is: the others belong to it.
    let flags = kinds.iter().map(|kind| clone_flag(*kind)).collect();
    let made = unshare(flags).map_err(|error| failed("making", Errno::from_raw_os_error(error as i32)));
    let Ok(body) = serde_json::to_vec(&made) else { return ExitCode::FAILURE };
    if channel::send(thread.as_fd(), &Message { number: 1, body, descriptors: Vec::new() }).is_err() {
        return ExitCode::FAILURE;
    }
    // Until they are held elsewhere: nothing more is said.
    match channel::receive(thread.as_fd()) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(_)) | Err(_) => ExitCode::FAILURE,
    }
}
