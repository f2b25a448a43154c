//! The signals that ask to stop, held back from the moment [`Signals`] exists: what has to be cleaned up is cleaned up first.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// SIGINT and SIGTERM, which do not end the process while this lives.
pub(super) struct Signals {
    interrupts: tokio::signal::unix::Signal,
    terminations: tokio::signal::unix::Signal,
}

/// A signal came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interrupted {
    /// Which one.
    pub(super) signal: Signal,
    /// Its name.
    pub(super) name: &'static str,
}

impl Interrupted {
    /// What a shell makes of a process that this signal ended: 130 for SIGINT, 143 for SIGTERM.
    pub(super) fn exit_code(self) -> u8 {
        u8::try_from(128 + self.signal.as_raw()).unwrap_or(u8::MAX)
    }
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { interrupts: signal(SignalKind::interrupt())?, terminations: signal(SignalKind::terminate())? })
    }

    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Interrupted {
        tokio::select! {
            Some(()) = self.interrupts.recv() => Interrupted { signal: Signal::INT, name: "SIGINT" },
            Some(()) = self.terminations.recv() => Interrupted { signal: Signal::TERM, name: "SIGTERM" },
            else => std::future::pending().await,
        }
    }

    /// The work's result, unless a signal comes first: the work is then dropped.
    pub(super) async fn unless<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            signal = self.next() => Err(signal),
            done = work => Ok(done),
        }
    }
}
