//! What systemd is told, and what it passes: readiness, reload, stop, watchdog, listening sockets.
//!
//! Without systemd (`NOTIFY_SOCKET`, `LISTEN_FDS` not set) all of this does nothing. A notification that fails is logged and otherwise left
//! alone: the pool does not depend on it. This file deliberately does not know what healthy means, nor who listens on a socket.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// Why the passed sockets cannot be used. A daemon that was given sockets must not open others instead, so this ends it.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// LISTEN_FDS or LISTEN_PID make no sense.
    #[error("the sockets that systemd passed cannot be counted")]
    Environment(#[source] io::Error),
    /// A descriptor cannot be looked at.
    #[error("descriptor {fd}, which systemd passed, cannot be used")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Not a listening Unix stream socket.
    #[error("descriptor {fd}, which systemd passed, is {what}; nspool takes listening Unix stream sockets (ListenStream=/path) only")]
    Unfit {
        /// Its number.
        fd: RawFd,
        /// What it is instead.
        what: &'static str,
    },
}

/// Tells systemd how the daemon is. Cheap to copy; sends nothing when nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notifier;

impl Notifier {
    /// Calls are answered from now on.
    pub fn ready(self, status: &str) {
        send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// The configuration is being read again; [`Notifier::ready`] ends it.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "systemd is not told of the reload: the clock cannot be read"),
        }
    }

    /// The stop has begun.
    pub fn stopping(self, status: &str) {
        send(&[NotifyState::Stopping, NotifyState::Status(status)]);
    }

    /// A line for `systemctl status`.
    pub fn status(self, status: &str) {
        send(&[NotifyState::Status(status)]);
    }

    /// Feeds the watchdog at half its interval while `healthy` says so, until `stop`; at once over when systemd wants no watchdog.
    /// When `healthy` says no, systemd ends the daemon after the rest of the interval: say it before, in the log.
    pub async fn watchdog(self, healthy: impl Fn() -> bool + Send, stop: CancellationToken) {
        let Some(interval) = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()) else { return };
        feed(interval, healthy, stop, || send(&[NotifyState::Watchdog])).await;
    }
}

async fn feed(interval: Duration, healthy: impl Fn() -> bool + Send, stop: CancellationToken, feed: impl Fn() + Send) {
    let mut ticks = tokio::time::interval(interval / 2);
    let mut was_healthy = true;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let is_healthy = healthy();
        if is_healthy {
            feed();
        } else if was_healthy {
            tracing::error!(watchdog = ?interval, "the daemon's heartbeat is late; unless it comes back, systemd will end the daemon");
        }
        was_healthy = is_healthy;
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd could not be notified");
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The listening sockets that systemd passed, in the unit's order; empty when it passed none, and at the second call. They are systemd's:
/// never unlink their paths. They are non-blocking and close on exec.
///
/// The variables stay in the environment: taking one out is not safe while other threads may read it. They name this process by its id, so
/// children do not take them for theirs.
pub fn inherited_listeners() -> Result<Vec<UnixListener>, SystemdError> {
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    sd_notify::listen_fds().map_err(SystemdError::Environment)?.map(listener).collect()
}

fn listener(fd: RawFd) -> Result<UnixListener, SystemdError> {
    let of = |source: io::Error| SystemdError::Descriptor { fd, source };
    let owned = duplicate(fd).map_err(of)?;
    let unfit = |what| Err(SystemdError::Unfit { fd, what });
    match sockopt::socket_domain(&owned) {
        Ok(AddressFamily::UNIX) => {}
        Ok(_) => return unfit("not a Unix socket: over TCP a peer has no identity"),
        Err(_) => return unfit("no socket"),
    }
    if sockopt::socket_type(&owned).map_err(|error| of(error.into()))? != SocketType::STREAM {
        return unfit("not a stream socket");
    }
    if !sockopt::socket_acceptconn(&owned).map_err(|error| of(error.into()))? {
        return unfit("not listening (is the unit's Accept= set to yes?)");
    }
    let listener = UnixListener::from(owned);
    listener.set_nonblocking(true).map_err(of)?;
    Ok(listener)
}

/// An owned copy of one of our own descriptors, by its number. A number proves nothing to the compiler, so taking the descriptor itself would
/// need `unsafe`; the kernel, asked through our own pidfd, checks the number and makes a copy.
fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(&ourselves, fd, PidfdGetfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_listening_unix_socket_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let original = UnixListener::bind(&path).unwrap();
        let taken = listener(original.as_raw_fd()).unwrap();
        drop(original);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(taken.accept().is_ok());
        drop(taken);
        assert!(path.exists(), "an inherited socket is never unlinked");
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        let what = |fd| match listener(fd) {
            Err(SystemdError::Unfit { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(what(tcp.as_raw_fd()).contains("TCP"));
        let (stream, _other) = UnixStream::pair().unwrap();
        assert!(what(stream.as_raw_fd()).contains("not listening"));
        let datagram = UnixDatagram::unbound().unwrap();
        assert!(what(datagram.as_raw_fd()).contains("not a stream"));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(what(file.as_raw_fd()), "no socket");
        assert!(matches!(listener(1_000_000), Err(SystemdError::Descriptor { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_while_healthy() {
        let healthy = Arc::new(AtomicBool::new(true));
        let fed = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let (asked, counted) = (healthy.clone(), fed.clone());
        let work = feed(
            Duration::from_secs(10),
            move || asked.load(Ordering::Relaxed),
            stop.clone(),
            move || {
                counted.fetch_add(1, Ordering::Relaxed);
            },
        );
        let story = async {
            tokio::time::sleep(Duration::from_secs(21)).await;
            assert_eq!(fed.load(Ordering::Relaxed), 5, "at once, then every five seconds");
            healthy.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(fed.load(Ordering::Relaxed), 5);
            healthy.store(true, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(fed.load(Ordering::Relaxed), 6);
            stop.cancel();
        };
        tokio::join!(work, story);
    }
}
