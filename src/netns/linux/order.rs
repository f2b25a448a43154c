//! The two system calls of a renewal that no safe wrapper has: the signal with a number, and the question for a namespace's cookie.

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `RENEW` of `image/init.c`: the kernel's first real-time signal and ten.
pub(super) const RENEW: i32 = 42;

/// The kernel's `siginfo_t` of a queued signal, all 128 bytes of it, on x86_64 and aarch64.
#[repr(C)]
struct QueuedSignal {
    signal: i32,
    error: i32,
    code: i32,
    gap: i32,
    pid: i32,
    uid: u32,
    value: u64,
    rest: [u8; 96],
}

/// Tells the process which use it is to make ready. From outside its pid namespace the kernel replaces the sender's pid by 0, whatever is said here:
/// that is what the init goes by.
///
/// # Errors
/// `SRCH`: it has ended. `AGAIN`: the limit on queued signals is reached. `PERM`: it is another user's.
#[expect(unsafe_code, reason = "rustix sends no signal with a value")]
pub(super) fn send(pidfd: BorrowedFd<'_>, use_number: u64) -> Result<(), Errno> {
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    let uid = rustix::process::getuid().as_raw();
    let signal = QueuedSignal { signal: RENEW, error: 0, code: libc::SI_QUEUE, gap: 0, pid, uid, value: use_number, rest: [0; 96] };
    // SAFETY: the descriptor is open, and the kernel reads the 128 bytes of a siginfo_t, which are all there, for the time of the call.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), RENEW, &raw const signal, 0) };
    result(sent).map(|_| ())
}

/// The cookies of this process' network namespace and of the given ones. In a thread of its own, which visits them and ends: no other one must ever
/// be found outside its namespace.
///
/// # Errors
/// Any: of entering one, or of a kernel that has no cookies.
pub(super) fn cookies(of: [BorrowedFd<'_>; 2]) -> Result<[u64; 3], Errno> {
    let visit = || {
        let own = cookie_here()?;
        let [first, second] = of.map(|namespace| {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            cookie_here()
        });
        Ok([own, first?, second?])
    };
    std::thread::scope(|scope| {
        let visitor = std::thread::Builder::new().name("netns-visitor".to_owned()).spawn_scoped(scope, visit);
        let visitor = visitor.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        visitor.join().unwrap_or(Err(Errno::FAULT))
    })
}

/// Of the namespace that this thread is in, by way of a socket made in it.
#[expect(unsafe_code, reason = "rustix knows no SO_NETNS_COOKIE")]
fn cookie_here() -> Result<u64, Errno> {
    let socket: OwnedFd = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the descriptor is open; the kernel writes at most `length` bytes to `cookie`, which has that many, and the length to `length`.
    let got =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length) };
    result(got.into())?;
    if length == 8 { Ok(cookie) } else { Err(Errno::PROTO) }
}

fn result(answer: i64) -> Result<i64, Errno> {
    if answer < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn what_is_sent_has_the_kernels_layout() {
        assert_eq!(size_of::<QueuedSignal>(), 128);
        assert_eq!(size_of::<QueuedSignal>(), size_of::<libc::siginfo_t>());
        assert_eq!(std::mem::offset_of!(QueuedSignal, pid), 16);
        assert_eq!(std::mem::offset_of!(QueuedSignal, value), 24);
    }

    #[test]
    fn init_and_daemon_mean_the_same_signal() {
        assert!(include_str!("../../image/init.c").contains(&format!("enum {{ RENEW = {RENEW} }};")));
    }

    #[test]
    fn one_namespace_has_one_cookie() {
        let own = std::fs::File::open("/proc/self/ns/net").unwrap();
        let [here, first, second] = cookies([own.as_fd(), own.as_fd()]).unwrap();
        assert_eq!((here, first), (first, second));
        assert_ne!(here, 0);
    }
}
