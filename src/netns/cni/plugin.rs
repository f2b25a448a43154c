//! One plugin, run: a process of its own, in a process group of its own, with a deadline and bounded output.
//!
//! What a plugin starts (one for addresses, mostly) is in its group, and is ended with it: also when the plugin itself ended well, as nobody would look after
//! what it leaves. The group is ended before the plugin is waited for, since its number is nobody else's until then. Init reaps those that lost their parent.
//!
//! What can go wrong: it cannot be started, does not end, writes too much or nonsense, or says what is wrong; see [`Failure`]. One that the kernel does not let go
//! of after it was killed is left to it, and that is logged.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;
use serde_json::Value;

use super::list::NetworkList;
use super::record::Record;
use super::{CniError, Failure};
use crate::netns::managed::INSIDE;

/// What one may write to its standard output.
const MOST_OUTPUT: usize = 1 << 20;
/// What is kept of its standard error: the end.
const MOST_STDERR: usize = 4 << 10;
/// For one that was killed, and for those that have its pipes.
pub(super) const ENDED_WITHIN: Duration = Duration::from_secs(2);
/// Plugins call iptables and the like.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A network's, in order, each found.
pub(super) struct Plugins {
    programs: Vec<PathBuf>,
    /// `CNI_PATH`.
    dirs: String,
    limit: Duration,
}

/// One of them.
#[derive(Clone, Copy)]
pub(super) struct Plugin<'a> {
    at: usize,
    plugins: &'a Plugins,
}

/// The first one of that name, which can be started.
pub(super) fn find(network: &str, plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, CniError> {
    let missing = || CniError::NoPlugin { network: network.to_owned(), plugin: plugin.to_owned(), dirs: shown(dirs, ", ") };
    let file = dirs.iter().map(|dir| dir.join(plugin)).find(|file| file.exists()).ok_or_else(missing)?;
    let can_run = std::fs::metadata(&file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let refused = || CniError::NotExecutable { network: network.to_owned(), file: file.display().to_string() };
    if can_run { Ok(file) } else { Err(refused()) }
}

fn shown(dirs: &[PathBuf], separator: &str) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(separator)
}

impl Plugins {
    /// All of them are there, or nothing is begun.
    pub(super) fn of(list: &NetworkList, dirs: &[PathBuf], limit: Duration) -> Result<Self, CniError> {
        let programs = list.types().map(|plugin| find(&list.name, plugin, dirs)).collect::<Result<_, _>>()?;
        Ok(Self { programs, dirs: shown(dirs, ":"), limit })
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Plugin<'_>> {
        (0..self.programs.len()).map(|at| Plugin { at, plugins: self })
    }
}

/// In the specification's words.
#[derive(Deserialize)]
struct SaidError {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugin<'_> {
    /// What it wrote.
    pub(super) fn call(self, command: &str, kept: &Record, namespace: &str, previous: Option<&Value>) -> Result<Vec<u8>, CniError> {
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &kept.id),
            ("CNI_NETNS", namespace),
            ("CNI_IFNAME", INSIDE),
            ("CNI_PATH", &self.plugins.dirs),
            ("CNI_ARGS", &kept.args),
            ("PATH", PATH),
        ];
        let program = &self.plugins.programs[self.at];
        let ended = run(program, &environment, &kept.list.execution(self.at, previous), self.plugins.limit);
        ended.and_then(Ended::judged).map_err(|failure| self.failed(command, kept, failure))
    }

    pub(super) fn failed(self, command: &str, kept: &Record, failure: Failure) -> CniError {
        let plugin = kept.list.types().nth(self.at).unwrap_or_default().to_owned();
        CniError::Plugin { network: kept.list.name.clone(), plugin, command: command.to_owned(), failure: Box::new(failure) }
    }
}

struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Ended {
    fn judged(self) -> Result<Vec<u8>, Failure> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        Err(match serde_json::from_slice(&self.stdout) {
            Ok(SaidError { code, msg, details }) => Failure::Said { code, msg, details },
            Err(_) => Failure::Exited { status: self.status.to_string(), stderr: String::from_utf8_lossy(&self.stderr).trim().to_owned() },
        })
    }
}

fn run(program: &Path, environment: &[(&str, &str)], input: &[u8], limit: Duration) -> Result<Ended, Failure> {
    let until = Instant::now() + limit;
    let mut command = Command::new(program);
    command.env_clear().envs(environment.iter().copied()).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error: io::Error| Failure::NotStarted(error.to_string());
    let mut child = command.spawn().map_err(failed)?;
    let talked = Talk::with(&mut child).map_err(failed).and_then(|mut talk| {
        let heard = talk.until_it_ends(input, until, limit);
        end(&mut child, &talk.pidfd)?;
        // What was in the pipes, now that all who had them are gone.
        heard.and_then(|()| talk.until_all_is_read()).map(|()| talk)
    });
    match talked {
        Ok(talk) => Ok(Ended { status: child.wait().map_err(failed)?, stdout: talk.stdout, stderr: talk.stderr }),
        Err(failure) => Err(failure),
    }
}

/// Its whole group, and then it is reaped.
fn end(child: &mut Child, pidfd: &OwnedFd) -> Result<(), Failure> {
    let pid = Pid::from_child(child);
    match kill_process_group(pid, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => tracing::error!(pid = pid.as_raw_nonzero().get(), %errno, "a CNI plugin cannot be killed"),
    }
    let until = Instant::now() + ENDED_WITHIN;
    let mut ended = [PollFd::new(pidfd, PollFlags::IN)];
    if wait(&mut ended, until).map_err(|errno| Failure::NotStarted(errno.to_string()))? {
        return child.wait().map(drop).map_err(|error| Failure::NotStarted(error.to_string()));
    }
    tracing::error!(pid = pid.as_raw_nonzero().get(), "a CNI plugin was killed, and the kernel does not let it go");
    Err(Failure::TimedOut(ENDED_WITHIN))
}

/// False when it is over, and nothing came.
fn wait(watched: &mut [PollFd<'_>], until: Instant) -> Result<bool, Errno> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(watched, Some(&left)) {
            Err(Errno::INTR) => {}
            polled => return polled.map(|ready| ready > 0),
        }
    }
}

/// What goes to it and comes from it.
struct Talk {
    pidfd: OwnedFd,
    input: Option<ChildStdin>,
    written: usize,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Talk {
    fn with(child: &mut Child) -> io::Result<Self> {
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pid = Pid::from_child(child);
        let opened = || -> io::Result<Self> {
            input.iter().try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
            output.iter().try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
            errors.iter().try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            Ok(Self { pidfd, input, written: 0, output, errors, stdout: Vec::new(), stderr: Vec::new() })
        };
        let talk = opened();
        if talk.is_err() {
            // Out of descriptors: nobody could see its end. It has done nothing yet that its own end would not undo.
            let _ = child.kill().and_then(|()| child.wait());
        }
        talk
    }

    fn until_it_ends(&mut self, input: &[u8], until: Instant, limit: Duration) -> Result<(), Failure> {
        loop {
            let ready = {
                let writes = self.input.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT));
                let reads = [self.output.as_ref().map(|pipe| pipe.as_fd()), self.errors.as_ref().map(|pipe| pipe.as_fd())];
                let reads = reads.into_iter().flatten().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN));
                let mut watched: Vec<PollFd<'_>> =
                    std::iter::once(PollFd::new(&self.pidfd, PollFlags::IN)).chain(writes).chain(reads).collect();
                let any = wait(&mut watched, until).map_err(|errno| Failure::NotStarted(errno.to_string()))?;
                any.then(|| !watched[0].revents().is_empty())
            };
            let Some(has_ended) = ready else { return Err(Failure::TimedOut(limit)) };
            self.write(input);
            self.read()?;
            if has_ended {
                return Ok(());
            }
        }
    }

    fn until_all_is_read(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + ENDED_WITHIN;
        loop {
            self.read()?;
            let open = [self.output.as_ref().map(|pipe| pipe.as_fd()), self.errors.as_ref().map(|pipe| pipe.as_fd())];
            let mut watched: Vec<PollFd<'_>> =
                open.into_iter().flatten().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)).collect();
            // Who has left the group and kept a pipe has nothing to say any more.
            if watched.is_empty() || !wait(&mut watched, until).map_err(|errno| Failure::NotStarted(errno.to_string()))? {
                return Ok(());
            }
        }
    }

    /// A plugin that does not read all of it says so itself.
    fn write(&mut self, input: &[u8]) {
        let Some(pipe) = &mut self.input else { return };
        let is_open = match pipe.write(&input[self.written..]) {
            Ok(written) => {
                self.written += written;
                self.written < input.len()
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        if !is_open {
            self.input = None;
        }
    }

    /// All that is there.
    fn read(&mut self) -> Result<(), Failure> {
        let Self { output, errors, stdout, stderr, .. } = self;
        drain(output, |bytes| {
            stdout.extend_from_slice(bytes);
            if stdout.len() > MOST_OUTPUT { Err(Failure::TooMuch { most: MOST_OUTPUT }) } else { Ok(()) }
        })?;
        drain(errors, |bytes| {
            stderr.extend_from_slice(bytes);
            stderr.drain(..stderr.len().saturating_sub(MOST_STDERR));
            Ok(())
        })
    }
}

/// One piece, so that a plugin that never stops is still seen to be late.
fn drain(pipe: &mut Option<impl io::Read>, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut buffer = [0; 16 << 10];
    let Some(open) = pipe else { return Ok(()) };
    match open.read(&mut buffer) {
        Ok(0) => *pipe = None,
        Ok(length) => take(&buffer[..length])?,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        Err(error) => return Err(Failure::Nonsense(error.to_string())),
    }
    Ok(())
}
