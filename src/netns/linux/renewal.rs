//! A renewal on the real kernel: make sure that the process can obey, tell it, wait for the change, prove it, and hold the new namespace instead of
//! the old one. See [`crate::netns::renewal`] for what is proven.
//!
//! All of it is done by one thread that may block, and to its end even if nobody waits any more: a change that was seen is never forgotten half-way.
//! There is no event for "a process changed its namespace", so it is looked at again and again, each time after a quarter of the time that
//! was waited so far; the wait in between is one for the end of the process, which *is* an event.
//!
//! The old namespace's descriptor is closed when the new one is proven, and by nobody else. When nothing else holds the old one, the kernel takes it
//! away then, with its links; that takes its time, in the background.

use std::fs;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::order::{cookies, send};
use super::{INIT, Namespace, Process, failure, open_namespace, stat};
use crate::engine::NamespaceKind;
use crate::netns::{KernelError, RenewError, Renewed, WrongAnswer};

/// The first look is not worth less: a network namespace takes the kernel some hundred microseconds.
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
/// Well above what a renewal takes.
const FIRST_REPEAT: Duration = Duration::from_millis(20);
/// When it takes this long, this much more does not matter.
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// `within`: for all of it, but for the turn: a second call waits for the first. So much of it was `spent` before.
pub(super) fn renew(process: &Process, use_number: u64, within: Duration, spent: Duration) -> Result<Renewed, RenewError> {
    let _turn = process.renewals.lock();
    let (begun, pid) = (Instant::now(), process.pid);
    let old = process.held(NamespaceKind::Net).ok_or(KernelError::Gone { pid })?;
    let wait = Wait { process, begun, left: within.saturating_sub(spent), within };

    if look(pid)? != old.id {
        return Err(RenewError::Wrong { pid, wrong: WrongAnswer::MovedUntold });
    }
    // A buddy that has just been started may still be the runtime, which has several threads.
    let alone = wait.until(|| status(pid).map(|status| (status.threads == 1).then_some(())));
    alone.or_else(|error| one_thread(pid).and(Err(error)))?;
    let (told, mut orders) = (Instant::now(), Orders { process, use_number, next: Instant::now(), gap: FIRST_REPEAT });
    wait.until(|| {
        orders.send_if_due()?;
        look(pid).map(|now| (now != old.id).then_some(()))
    })?;

    let new = Arc::new(open_namespace(pid, NamespaceKind::Net)?);
    let cookie = prove(process, &old, &new)?;
    process.hold_instead(&new);
    Ok(Renewed { namespace: new.id, cookie, took: told.elapsed() })
}

/// The kernel drops an order that comes before the init blocks the signal, right after its start. So it is repeated, less and less often: a
/// number that was obeyed is not the next one any more, and does nothing.
struct Orders<'a> {
    process: &'a Process,
    use_number: u64,
    next: Instant,
    gap: Duration,
}

impl Orders<'_> {
    fn send_if_due(&mut self) -> Result<(), KernelError> {
        if Instant::now() < self.next {
            return Ok(());
        }
        (self.next, self.gap) = (self.next + self.gap, self.gap * 2);
        let pid = self.process.pid;
        send(self.process.pidfd.get_ref().as_fd(), self.use_number)
            .map_err(|errno| failure(pid, format!("pidfd_send_signal to process {pid}"), errno))
    }
}

/// The new namespace is open by now, and the old one is still: neither number can be another's.
fn prove(process: &Process, old: &Namespace, new: &Namespace) -> Result<Option<u64>, RenewError> {
    let pid = process.pid;
    let wrong = |wrong| Err(RenewError::Wrong { pid, wrong });
    // Alive now, so the pid was this process's all the time: what was opened by it is its own.
    if !process.is_alive() {
        return Err(RenewError::Gone { pid });
    }
    one_thread(pid)?;
    if new.id == old.id {
        return wrong(WrongAnswer::NotNew);
    }
    let own = stat("/proc/self/ns/net").map_err(|errno| failure(INIT, "/proc/self/ns/net".to_owned(), errno))?;
    if new.id == own || new.id == super::host_namespace(NamespaceKind::Net)? {
        return wrong(WrongAnswer::TheHosts);
    }
    match cookies([old.open.as_fd(), new.open.as_fd()]) {
        Ok([host, before, now]) if now == before || now == host => wrong(WrongAnswer::NotNew),
        Ok([_, _, now]) => Ok(Some(now)),
        // The inodes have told already.
        Err(Errno::NOPROTOOPT | Errno::PERM | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(RenewError::Kernel(failure(pid, "the cookie of a network namespace".to_owned(), errno))),
    }
}

/// A wait with a deadline for something about a process that nobody tells of.
struct Wait<'a> {
    process: &'a Process,
    begun: Instant,
    /// When it began.
    left: Duration,
    /// As it was asked for: that is what people are told.
    within: Duration,
}

impl Wait<'_> {
    fn until<T>(&self, mut level: impl FnMut() -> Result<Option<T>, KernelError>) -> Result<T, RenewError> {
        let (pid, begun) = (self.process.pid, Instant::now());
        loop {
            if let Some(value) = level()? {
                return Ok(value);
            }
            let left = self.left.saturating_sub(self.begun.elapsed());
            if left.is_zero() {
                return Err(RenewError::NoAnswer { pid, state: status(pid)?.state, within: self.within });
            }
            let pause = (begun.elapsed() / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE).min(left);
            if self.process.ends_within(pause) {
                return Err(RenewError::Gone { pid });
            }
        }
    }
}

fn look(pid: u32) -> Result<super::NamespaceId, KernelError> {
    let path = format!("/proc/{pid}/ns/net");
    stat(&path).map_err(|errno| failure(pid, path, errno))
}

fn one_thread(pid: u32) -> Result<(), RenewError> {
    match status(pid)?.threads {
        1 => Ok(()),
        threads => Err(RenewError::Wrong { pid, wrong: WrongAnswer::Threads(threads) }),
    }
}

/// Of `/proc/<pid>/status`.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    state: char,
    threads: u32,
}

fn status(pid: u32) -> Result<Status, KernelError> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| failure(pid, path.clone(), Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    parse_status(&text).ok_or(KernelError::Failed { what: path, message: "not understood".to_owned() })
}

fn parse_status(text: &str) -> Option<Status> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    Some(Status { state: value("State")?.chars().next()?, threads: value("Threads")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_a_state_and_threads() {
        assert_eq!(parse_status("Name:\tinit\nState:\tT (stopped)\nThreads:\t1\n"), Some(Status { state: 'T', threads: 1 }));
        assert_eq!(parse_status("State:\tS\n"), None);
        assert!(status(std::process::id()).unwrap().threads > 1);
        assert!(matches!(status(4_194_305), Err(KernelError::Gone { .. })));
    }
}
