//! What the kernel lets this program do, tried: in a process of its own, in namespaces of its own, which go with it.
//!
//! For `nspool doctor`, which starts that process and reads its lines. The process has one thread, without which it could make no user namespace, and
//! ends with whoever started it. What the kernel keeps of it: a module that it had to load for a bridge, a link or a rule, as it would for the daemon.
//!
//! Whoever may not make a network namespace makes a user namespace first, where everybody may, and goes on in that: what is missing in the kernel
//! is missing there, too.

use std::io::{self, Write as _};
use std::process::ExitCode;

use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::managed::trial;

/// What tells this process from the other helpers.
pub const ROLE: &str = "try";

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deed {
    /// A descriptor of a process.
    Pidfd,
    /// A network namespace.
    Net,
    /// One of ipc.
    Ipc,
    /// One of host names.
    Uts,
    /// One of processes.
    Pid,
    /// One of users.
    User,
    /// A bridge in the network namespace.
    Bridge,
    /// A pair of links there, one of them on the bridge.
    Veth,
    /// A table of rules there, as managed networks have.
    Rules,
}

/// How that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// What.
    pub deed: Deed,
    /// Whether it was done in a user namespace, as it may not be done outside.
    pub in_user_namespace: bool,
    /// `None`: it went well.
    pub refusal: Option<Refused>,
}

/// The kernel's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What it was that did not go.
    pub step: String,
    /// As a number.
    pub errno: i32,
}

impl Refused {
    /// At that step.
    pub(super) fn at(step: impl Into<String>, errno: Errno) -> Self {
        Self { step: step.into(), errno: errno.raw_os_error() }
    }

    /// Whether it is a matter of rights.
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        [Errno::PERM, Errno::ACCESS].iter().any(|errno| errno.raw_os_error() == self.errno)
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.step, Errno::from_raw_os_error(self.errno))
    }
}

/// What the process says, as a line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// If nothing follows, this is what the kernel did not come back from.
    Begun(Deed),
    /// It did.
    Ended(Tried),
    /// That was all.
    Done,
}

/// The process's life.
#[must_use]
pub fn work() -> ExitCode {
    let parent = set_parent_process_death_signal(Some(Signal::KILL));
    match parent.map_err(io::Error::from).and_then(|()| try_all()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn try_all() -> io::Result<()> {
    attempt(Deed::Pidfd, false, || pidfd_open(getpid(), PidfdFlags::empty()).map(drop).map_err(|errno| Refused::at("pidfd_open", errno)))?;
    let net = attempt(Deed::Net, false, || unshare(UnshareFlags::NEWNET))?;
    let mut inside = false;
    let mut has_network = net.is_none();
    if net.is_some_and(|refused| refused.is_not_permitted()) {
        inside = attempt(Deed::User, false, || unshare(UnshareFlags::NEWUSER))?.is_none();
        has_network = inside && attempt(Deed::Net, true, || unshare(UnshareFlags::NEWNET))?.is_none();
        if !inside {
            return say(&Line::Done);
        }
    }
    if has_network {
        attempt(Deed::Bridge, inside, trial::bridge)?;
        attempt(Deed::Veth, inside, trial::pair)?;
        attempt(Deed::Rules, inside, trial::rules)?;
    }
    for (deed, flag) in [(Deed::Ipc, UnshareFlags::NEWIPC), (Deed::Uts, UnshareFlags::NEWUTS), (Deed::Pid, UnshareFlags::NEWPID)] {
        attempt(deed, inside, || unshare(flag))?;
    }
    if !inside {
        attempt(Deed::User, false, || unshare(UnshareFlags::NEWUSER))?;
    }
    say(&Line::Done)
}

fn attempt(deed: Deed, in_user_namespace: bool, how: impl FnOnce() -> Result<(), Refused>) -> io::Result<Option<Refused>> {
    say(&Line::Begun(deed))?;
    let refusal = how().err();
    say(&Line::Ended(Tried { deed, in_user_namespace, refusal: refusal.clone() }))?;
    Ok(refusal)
}

fn say(line: &Line) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(line)?)?;
    out.flush()
}

#[expect(deprecated, reason = "descriptors, which is what it warns of, are not among what is left")]
fn unshare(what: UnshareFlags) -> Result<(), Refused> {
    rustix::thread::unshare(what).map_err(|errno| Refused::at("unshare", errno))
}
