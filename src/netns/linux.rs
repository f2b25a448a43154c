//! The real kernel: pidfds, `/proc/<pid>/ns/*`, a scan of all processes that everybody shares, and the renewal of a held process's network namespace
//! ([`renewal`]).
//!
//! What can go wrong: a process ends while it is looked at (it is [`KernelError::Gone`] in `hold`, and left out by `members`), or reading
//! another's namespaces is not permitted, which is an error and never an empty answer. So is a `/proc` that hides processes: a scan that
//! does not see process 1 has not seen everybody. Only what namespaces process 1 is in need not be readable: a hardened init's are not.
//!
//! It deliberately does not know what holds a namespace besides processes (open descriptors, bind mounts), nor who the processes belong to.

mod order;
mod renewal;
pub(super) mod snapshot;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::inspection::{Depth, InspectError};
use super::{Held, Kernel, KernelError, Members, NamespaceId, RenewError, Renewed, Snapshot};
use crate::coalesce::Coalesced;
use crate::engine::NamespaceKind;

/// The first process of this pid namespace.
const INIT: u32 = 1;

/// All processes by the namespaces their threads are in.
type Scan = Result<Arc<HashMap<NamespaceId, BTreeSet<u32>>>, KernelError>;

/// The kernel that this program runs on.
#[derive(Debug)]
pub struct Linux {
    net: Coalesced<Scan>,
    ipc: Coalesced<Scan>,
    pid: Coalesced<Scan>,
    uts: Coalesced<Scan>,
    user: Coalesced<Scan>,
}

impl Default for Linux {
    fn default() -> Self {
        Self::new()
    }
}

impl Linux {
    /// Asks nothing yet.
    #[must_use]
    pub fn new() -> Self {
        let shared = |kind| Coalesced::new(move || look(kind));
        Self {
            net: shared(NamespaceKind::Net),
            ipc: shared(NamespaceKind::Ipc),
            pid: shared(NamespaceKind::Pid),
            uts: shared(NamespaceKind::Uts),
            user: shared(NamespaceKind::User),
        }
    }

    fn looks(&self, kind: NamespaceKind) -> &Coalesced<Scan> {
        match kind {
            NamespaceKind::Net => &self.net,
            NamespaceKind::Ipc => &self.ipc,
            NamespaceKind::Pid => &self.pid,
            NamespaceKind::Uts => &self.uts,
            NamespaceKind::User => &self.user,
        }
    }

    /// [`Kernel::hold`]. Must be called inside a tokio runtime, which watches the pidfd.
    ///
    /// # Errors
    /// As there.
    pub fn hold_now(&self, pid: u32, kinds: &[NamespaceKind]) -> Result<Box<dyn Held>, KernelError> {
        Ok(Box::new(HeldProcess(Arc::new(Process::watched(Opened::of(pid, kinds)?)?))))
    }
}

impl Kernel for Linux {
    fn hold<'a>(&'a self, pid: u32, kinds: &'a [NamespaceKind]) -> BoxFuture<'a, Result<Box<dyn Held>, KernelError>> {
        async move { self.hold_now(pid, kinds) }.boxed()
    }

    fn host_namespace(&self, kind: NamespaceKind) -> Result<NamespaceId, KernelError> {
        host_namespace(kind)
    }

    fn members<'a>(&'a self, kind: NamespaceKind, of: &'a [NamespaceId]) -> BoxFuture<'a, Result<Members, KernelError>> {
        let look = self.looks(kind).look();
        async move {
            let scan = look.await?;
            let members = |namespace| scan.get(namespace).into_iter().flatten().map(|&pid| described(pid)).collect();
            Ok(of.iter().map(|namespace| (*namespace, members(namespace))).collect())
        }
        .boxed()
    }

    fn since_boot(&self) -> Duration {
        since_boot()
    }
}

pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The descriptors of a process that lived when they were opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) namespaces: Vec<Namespace>,
}

impl Opened {
    /// As [`Kernel::hold`] says.
    pub(super) fn of(pid: u32, kinds: &[NamespaceKind]) -> Result<Self, KernelError> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(KernelError::Gone { pid })?;
        let pidfd = pidfd_open(id, PidfdFlags::empty()).map_err(|errno| failure(pid, "pidfd_open".to_owned(), errno))?;
        let kinds: BTreeSet<NamespaceKind> = kinds.iter().copied().chain([NamespaceKind::Net]).collect();
        let namespaces = kinds.into_iter().map(|kind| open_namespace(pid, kind)).collect::<Result<Vec<_>, _>>()?;
        // Alive now, so the pid was this process's all the time: what was opened by it is its own.
        if ends_within(&pidfd, Duration::ZERO) { Err(KernelError::Gone { pid }) } else { Ok(Self { pid, pidfd, namespaces }) }
    }

    /// What another process opened and passed: a pidfd, and a namespace of each kind.
    pub(super) fn passed(pidfd: OwnedFd, namespaces: Vec<(NamespaceKind, OwnedFd)>) -> Result<Self, KernelError> {
        let namespaces = namespaces.into_iter().map(|(kind, open)| Namespace::passed(kind, open.into())).collect::<Result<_, _>>()?;
        Ok(Self { pid: pid_of(&pidfd)?, pidfd, namespaces })
    }
}

/// Whose pidfd it is.
fn pid_of(pidfd: &OwnedFd) -> Result<u32, KernelError> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let failed = |message: String| KernelError::Failed { what: "a process's descriptor".to_owned(), message };
    let info = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
    match pid.ok_or_else(|| failed("is none".to_owned()))?.parse::<i64>() {
        // Of one that was reaped it is -1.
        Ok(pid) => u32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(KernelError::Gone { pid: 0 }),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Shared with the thread of a renewal, which goes on when its caller is gone.
#[derive(Debug)]
struct HeldProcess(Arc<Process>);

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pidfd: AsyncFd<OwnedFd>,
    namespaces: Mutex<Vec<Arc<Namespace>>>,
    /// Held for the time of a renewal.
    renewals: Mutex<()>,
}

#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) kind: NamespaceKind,
    pub(super) id: NamespaceId,
    /// So that the inode number cannot become another's.
    pub(super) open: File,
}

impl Namespace {
    /// What another process opened and passed.
    pub(super) fn passed(kind: NamespaceKind, open: File) -> Result<Self, KernelError> {
        let failed = |message: String| KernelError::Failed { what: format!("a descriptor of a {} namespace", kind.proc_name()), message };
        if !is_namespace(open.as_fd(), kind) {
            let shown = std::fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).map_err(|error| failed(error.to_string()))?;
            return Err(failed(format!("is one of {}", shown.display())));
        }
        let stat = rustix::fs::fstat(&open).map_err(|errno| failed(errno.to_string()))?;
        Ok(Self { kind, id: NamespaceId { dev: stat.st_dev, ino: stat.st_ino }, open })
    }
}

/// Whether a pidfd's process does. Blocks for that long at most.
pub(super) fn ends_within(pidfd: &OwnedFd, pause: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(pause).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => {}
            // A pidfd becomes readable when its process ends, and stays so. An error (out of memory) says nothing: not dead.
            Ok(readable) => return readable > 0,
            Err(_) => return false,
        }
    }
}

impl Process {
    /// Inside a tokio runtime, which watches its pidfd.
    pub(super) fn watched(opened: Opened) -> Result<Self, KernelError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(KernelError::Failed { what: "watching a process".to_owned(), message: "not inside a tokio runtime".to_owned() });
        }
        let Opened { pid, pidfd, namespaces } = opened;
        let namespaces = namespaces.into_iter().map(Arc::new).collect();
        Ok(Self { pid, pidfd: watch(pid, pidfd)?, namespaces: Mutex::new(namespaces), renewals: Mutex::new(()) })
    }

    pub(super) fn pidfd(&self) -> &OwnedFd {
        self.pidfd.get_ref()
    }

    pub(super) fn is_alive(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// Comes back when it has ended. Cancel safe.
    pub(super) async fn exited(&self) {
        while self.is_alive() {
            match self.pidfd.readable().await {
                Ok(mut guard) if self.is_alive() => guard.clear_ready(),
                Ok(_) => {}
                // The runtime ends. That is not the end of the process.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Blocks for that long at most.
    fn ends_within(&self, pause: Duration) -> bool {
        ends_within(self.pidfd(), pause)
    }

    pub(super) fn held(&self, kind: NamespaceKind) -> Option<Arc<Namespace>> {
        self.namespaces.lock().iter().find(|namespace| namespace.kind == kind).cloned()
    }

    pub(super) fn open(&self, kind: NamespaceKind) -> Result<OwnedFd, KernelError> {
        let held = self.held(kind).ok_or(KernelError::Gone { pid: self.pid })?;
        let failed = |error: io::Error| KernelError::Failed { what: "a namespace's descriptor".to_owned(), message: error.to_string() };
        held.open.try_clone().map(OwnedFd::from).map_err(failed)
    }

    pub(super) fn hold_instead(&self, new: &Arc<Namespace>) {
        for namespace in self.namespaces.lock().iter_mut().filter(|namespace| namespace.kind == new.kind) {
            *namespace = Arc::clone(new);
        }
    }
}

impl Held for HeldProcess {
    fn pid(&self) -> u32 {
        self.0.pid
    }

    fn is_alive(&self) -> bool {
        self.0.is_alive()
    }

    fn exited(&self) -> BoxFuture<'_, ()> {
        self.0.exited().boxed()
    }

    fn namespace(&self, kind: NamespaceKind) -> Option<NamespaceId> {
        self.0.held(kind).map(|namespace| namespace.id)
    }

    fn open(&self, kind: NamespaceKind) -> Result<OwnedFd, KernelError> {
        self.0.open(kind)
    }

    fn snapshot(&self, depth: Depth, addresses: Vec<IpAddr>, within: Duration) -> BoxFuture<'_, Result<Arc<dyn Snapshot>, InspectError>> {
        snapshot::take(Arc::clone(&self.0), depth, addresses, within).boxed()
    }

    fn renew(&self, use_number: u64, within: Duration) -> BoxFuture<'_, Result<Renewed, RenewError>> {
        renewed(Arc::clone(&self.0), use_number, within).boxed()
    }
}

/// See [`Held::renew`]. The time begins with the call: where many block, a thread for it is free late.
pub(super) async fn renewed(process: Arc<Process>, use_number: u64, within: Duration) -> Result<Renewed, RenewError> {
    let asked = Instant::now();
    let renewal = tokio::task::spawn_blocking(move || renewal::renew(&process, use_number, within, asked.elapsed())).await;
    renewal.unwrap_or_else(|error| {
        Err(RenewError::Kernel(KernelError::Failed { what: "the thread of a renewal".to_owned(), message: error.to_string() }))
    })
}

pub(super) fn host_namespace(kind: NamespaceKind) -> Result<NamespaceId, KernelError> {
    let of = |process: &str| format!("/proc/{process}/ns/{}", kind.proc_name());
    match stat(&of("1")) {
        // Even root may not read a hardened init's. nspool itself has to run in the host's namespaces, so its own are as good.
        Err(Errno::ACCESS | Errno::PERM) => stat(&of("self")).map_err(|errno| failure(INIT, of("self"), errno)),
        answer => answer.map_err(|errno| failure(INIT, of("1"), errno)),
    }
}

/// Registers a pidfd with the runtime, inside which this must be called.
fn watch(pid: u32, pidfd: OwnedFd) -> Result<AsyncFd<OwnedFd>, KernelError> {
    readable(pidfd).map_err(|cause| KernelError::Failed { what: format!("watching process {pid}"), message: cause.to_string() })
}

/// Whether it is a namespace of that kind. The descriptor's link does not say, of one that is mounted on a file.
pub(super) fn is_namespace(open: BorrowedFd<'_>, kind: NamespaceKind) -> bool {
    // SAFETY: it has no argument and changes nothing; of a file that is no namespace it is refused, or another one's question, whose answer is no
    // such number.
    #[expect(unsafe_code, reason = "rustix knows no safe way to ask it")]
    let asked = unsafe { rustix::ioctl::ioctl(open, KindOf) };
    let flag = match kind {
        NamespaceKind::Net => 0x4000_0000,
        NamespaceKind::Ipc => 0x0800_0000,
        NamespaceKind::Pid => 0x2000_0000,
        NamespaceKind::Uts => 0x0400_0000,
        NamespaceKind::User => 0x1000_0000,
    };
    asked == Ok(flag)
}

/// `NS_GET_NSTYPE`, which answers the kind's flag for clone(2).
struct KindOf;

#[expect(unsafe_code, reason = "see `is_namespace`")]
// SAFETY: the answer is the number that the call returns; no memory is passed.
unsafe impl rustix::ioctl::Ioctl for KindOf {
    type Output = i32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        rustix::ioctl::opcode::none(0xb7, 3)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(answer: rustix::ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<i32> {
        Ok(answer)
    }
}

/// Registers a descriptor with the runtime, inside which this must be called.
#[expect(unsafe_code, reason = "tokio has no safe constructor of an AsyncFd any more")]
pub(super) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is an open descriptor, and gives the same one until it is dropped, which is when the `AsyncFd` is.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

fn open_namespace(pid: u32, kind: NamespaceKind) -> Result<Namespace, KernelError> {
    let path = format!("/proc/{pid}/ns/{}", kind.proc_name());
    let failed = |error: io::Error| failure(pid, path.clone(), Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let open = File::open(&path).map_err(failed)?;
    let stat = rustix::fs::fstat(&open).map_err(|errno| failure(pid, path.clone(), errno))?;
    Ok(Namespace { kind, id: NamespaceId { dev: stat.st_dev, ino: stat.st_ino }, open })
}

fn stat(path: &str) -> Result<NamespaceId, Errno> {
    rustix::fs::stat(path).map(|stat| NamespaceId { dev: stat.st_dev, ino: stat.st_ino })
}

/// What an errno means for a process that is asked about.
fn failure(pid: u32, what: String, errno: Errno) -> KernelError {
    match errno {
        Errno::NOENT | Errno::SRCH => KernelError::Gone { pid },
        Errno::ACCESS | Errno::PERM => KernelError::NotPermitted { what },
        errno => KernelError::Failed { what, message: errno.to_string() },
    }
}

/// One look at all processes, off the runtime's threads.
async fn look(kind: NamespaceKind) -> Scan {
    match tokio::task::spawn_blocking(move || scan(kind)).await {
        Ok(scan) => scan.map(Arc::new),
        Err(error) => Err(KernelError::Failed { what: "the scan of /proc".to_owned(), message: error.to_string() }),
    }
}

/// Every thread counts for its process. In the order of pids, so that a chain of short-lived children, whose pids rise, does not slip past.
fn scan(kind: NamespaceKind) -> Result<HashMap<NamespaceId, BTreeSet<u32>>, KernelError> {
    let mut found: HashMap<NamespaceId, BTreeSet<u32>> = HashMap::new();
    let pids = numbers_in("/proc")?;
    if !pids.contains(&INIT) {
        let message = "it does not show process 1: mounted with hidepid, or ProtectProc is set".to_owned();
        return Err(KernelError::Failed { what: "/proc".to_owned(), message });
    }
    for pid in pids {
        for thread in threads(pid)? {
            // The first thread is the process's own: the shorter way is the quicker one.
            let task = if thread == pid { String::new() } else { format!("/task/{thread}") };
            let path = format!("/proc/{pid}{task}/ns/{}", kind.proc_name());
            match stat(&path) {
                Ok(namespace) => {
                    found.entry(namespace).or_default().insert(pid);
                }
                Err(errno) => match failure(pid, path, errno) {
                    KernelError::Gone { .. } => {}
                    // The host's init is in the host's namespaces and joins nobody, so not being let see that is no loss.
                    KernelError::NotPermitted { .. } if pid == INIT => {}
                    error @ (KernelError::NotPermitted { .. } | KernelError::Failed { .. }) => return Err(error),
                },
            }
        }
    }
    Ok(found)
}

/// Of a process; none when it is gone. One that has a single thread, as most have, is not listed for it: the folder's links tell how many there are.
fn threads(pid: u32) -> Result<Vec<u32>, KernelError> {
    let folder = format!("/proc/{pid}/task");
    match rustix::fs::stat(&folder) {
        // Two of its own, and one for each.
        Ok(stat) if stat.st_nlink == 3 => Ok(vec![pid]),
        // Also what cannot be told says the list.
        Ok(_) | Err(_) => numbers_in(&folder),
    }
}

/// The numeric names in a folder of `/proc`, in the order the kernel lists them (rising); none when the folder is gone.
fn numbers_in(folder: &str) -> Result<Vec<u32>, KernelError> {
    let mut numbers = Vec::new();
    let gone_or = |error: io::Error| match failure(0, folder.to_owned(), Errno::from_io_error(&error).unwrap_or(Errno::IO)) {
        KernelError::Gone { .. } => Ok(Vec::new()),
        error @ (KernelError::NotPermitted { .. } | KernelError::Failed { .. }) => Err(error),
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return gone_or(error),
    };
    for entry in entries {
        match entry {
            Ok(entry) => numbers.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())),
            Err(error) => return gone_or(error),
        }
    }
    Ok(numbers)
}

/// With its command's name, for people; empty when it has just ended.
fn described(pid: u32) -> super::Process {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    super::Process { pid, command: command.trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_says_gone_or_not_permitted_or_failed() {
        assert!(matches!(failure(7, "x".into(), Errno::SRCH), KernelError::Gone { pid: 7 }));
        assert!(matches!(failure(7, "x".into(), Errno::NOENT), KernelError::Gone { pid: 7 }));
        assert!(matches!(failure(7, "x".into(), Errno::ACCESS), KernelError::NotPermitted { .. }));
        assert!(matches!(failure(7, "x".into(), Errno::MFILE), KernelError::Failed { .. }));
    }

    #[test]
    fn a_folder_that_is_gone_has_no_numbers_and_the_others_have_theirs() {
        assert_eq!(numbers_in("/proc/self/task/0").unwrap(), [] as [u32; 0]);
        assert!(numbers_in("/proc").unwrap().contains(&std::process::id()));
    }

    #[test]
    fn boot_time_goes_on() {
        let kernel = Linux::new();
        let (first, second) = (kernel.since_boot(), kernel.since_boot());
        assert!(second >= first && first > Duration::from_secs(1));
    }

    #[tokio::test]
    async fn a_pid_that_nobody_has_is_gone() {
        let kernel = Linux::new();
        for pid in [0, u32::MAX, 4_194_305] {
            assert!(matches!(kernel.hold_now(pid, &[]), Err(KernelError::Gone { .. })), "{pid}");
        }
    }

    #[test]
    fn a_renewal_whose_thread_is_free_late_has_no_more_time_for_that() {
        const WITHIN: Duration = Duration::from_secs(2);
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            // It has several threads, so it is not told to move, but waited for.
            let own = Linux::new().hold_now(std::process::id(), &[]).unwrap();
            let (free, is_free) = std::sync::mpsc::sync_channel::<()>(1);
            let other = tokio::task::spawn_blocking(move || is_free.recv().unwrap());
            let mut renewal = own.renew(2, WITHIN);
            assert!(tokio::time::timeout(WITHIN, &mut renewal).await.is_err(), "there is no thread for it");
            let freed = Instant::now();
            free.send(()).unwrap();
            let error = renewal.await.unwrap_err();
            assert!(freed.elapsed() < WITHIN / 2, "{error} after {:?} more", freed.elapsed());
            other.await.unwrap();
        });
    }

    #[test]
    fn holding_outside_a_runtime_is_an_error_not_a_panic() {
        assert!(matches!(Linux::new().hold_now(std::process::id(), &[]), Err(KernelError::Failed { .. })));
    }
}
