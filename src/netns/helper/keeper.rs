//! Starts helpers, one at a time, and reaps them.
//!
//! The keeper is started while the daemon still has its rights, and stays: it is what a daemon without rights needs to get another helper. It does one thing
//! when it is asked, on a socket that is its standard input: end the helper that there is, wait until it is gone, start another, and pass the
//! other end of its socket on. When the daemon is gone it ends the helper, and itself. It reads nothing else, and takes no signal from the daemon's
//! terminal.
//!
//! What can go wrong: a program cannot be started (it says why, and can be asked again); the keeper is killed, and then the daemon cannot get helpers any more.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::channel::{self, Message};
use super::client::{StartError, Starter};
use crate::netns::linux;

/// The command of this program that both processes are, and what tells them apart.
pub const COMMAND: &str = "helper";
/// As above.
pub const KEEP: &str = "keep";
/// As above.
pub const WORK: &str = "work";
/// To end one that does not end by itself takes the kernel a moment.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// They go when they are told to, or are ended.
const ENDED_WITHIN: Duration = Duration::from_secs(5);
/// Of the environment: nothing that is meant for the daemon, as systemd's sockets are.
const PASSED_ON: [&str; 2] = ["NO_COLOR", "RUST_BACKTRACE"];
/// This program, also after it was replaced by another release.
pub(in crate::netns) const SELF: &str = "/proc/self/exe";

/// The keeper, as the daemon has it.
#[derive(Debug)]
pub struct Keeper {
    socket: Arc<OwnedFd>,
    child: Child,
}

impl Keeper {
    /// Starts it, with this process's rights for good.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn() -> io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        set_socket_timeout(&ours, Timeout::Recv, Some(STARTED_WITHIN))?;
        Ok(Self { socket: Arc::new(ours), child: start(KEEP, theirs)? })
    }

    /// Gets helpers from it.
    #[must_use]
    pub fn starter(&self) -> Starter {
        let socket = Arc::clone(&self.socket);
        Box::new(move || ask(&socket))
    }

    /// Ends the helper, and it, and waits until both are gone. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// They are not gone by then, or cannot be waited for.
    pub fn end(mut self) -> io::Result<()> {
        // An error says that it is so already.
        let _ = shutdown(&self.socket, Shutdown::Both);
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        if !linux::ends_within(&pidfd, ENDED_WITHIN) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {ENDED_WITHIN:?}")));
        }
        self.child.wait().map(drop)
    }
}

fn start(role: &str, socket: OwnedFd) -> io::Result<Child> {
    let passed_on = std::env::vars_os().filter(|(name, _)| PASSED_ON.iter().any(|wanted| name == wanted));
    Command::new(SELF)
        .arg0(env!("CARGO_PKG_NAME"))
        .args([COMMAND, role])
        .env_clear()
        .envs(passed_on)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        // A terminal's Ctrl-C is for the daemon.
        .process_group(0)
        .spawn()
}

fn ask(keeper: &OwnedFd) -> Result<OwnedFd, StartError> {
    let question = Message { number: 1, ..Message::default() };
    channel::send(keeper.as_fd(), &question).map_err(|errno| StartError::Lost(errno.to_string()))?;
    let answer = channel::receive(keeper.as_fd()).map_err(|error| StartError::Lost(error.to_string()))?;
    let answer = answer.ok_or_else(|| StartError::Lost("it has ended".to_owned()))?;
    match answer.descriptors.into_iter().next() {
        Some(socket) => Ok(socket),
        None => Err(StartError::Failed(String::from_utf8_lossy(&answer.body).into_owned())),
    }
}

/// The keeper's life.
#[must_use]
pub fn keep() -> ExitCode {
    if rustix::thread::set_name(c"nspool-keeper").is_err() || close_what_was_inherited().is_err() {
        return ExitCode::FAILURE;
    }
    let daemon = io::stdin();
    let mut helper: Option<Child> = None;
    while let Ok(Some(_)) = channel::receive(daemon.as_fd()) {
        end(&mut helper);
        let answer = match start_helper() {
            Ok((child, socket)) => {
                helper = Some(child);
                Message { number: 1, body: Vec::new(), descriptors: vec![socket] }
            }
            Err(error) => Message { number: 1, body: error.to_string().into_bytes(), descriptors: Vec::new() },
        };
        if channel::send(daemon.as_fd(), &answer).is_err() {
            break;
        }
    }
    end(&mut helper);
    ExitCode::SUCCESS
}

fn start_helper() -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = channel::pair()?;
    Ok((start(WORK, theirs)?, ours))
}

/// Sockets that systemd passed to the daemon, mostly: they would be open as long as this process is there.
fn close_what_was_inherited() -> io::Result<()> {
    let names: Vec<_> = std::fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<_>>()?;
    for descriptor in names.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok()).filter(|descriptor| *descriptor > 2) {
        // The folder's own is closed by now.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

/// Ended and reaped. Neither can fail of a child of ours that nobody else waits for.
fn end(helper: &mut Option<Child>) {
    if let Some(mut child) = helper.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}
