//! Locks with a name: how long each was waited for and held is measured every time ([`metric::LOCK_WAIT`], [`metric::LOCK_HOLD`]), and a hold that is
//! longer than it should be is a line in the log.
//!
//! [`Hold`] measures one hold of any lock, also of one that the kernel keeps between processes; [`Mutex`] is a lock between threads that is measured
//! by it. It costs two looks at the clock and two histograms, well under a microsecond, so it is for locks that are taken per image or file, not for the
//! pool's own, which is taken per lease.
//!
//! It deliberately knows nothing of what is locked, and bounds nothing: it says which lock was slow.

use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::{Duration, Instant};

use crate::telemetry::metric;

/// What a lock is called in metrics and logs, and for how long it may be held without a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The label `lock`.
    pub name: &'static str,
    /// `[images] lock_bound`.
    pub bound: Duration,
}

/// One hold, from its beginning until it is dropped: right after the lock was let go of.
#[derive(Debug)]
pub struct Hold {
    lock: Named,
    /// Where it was taken.
    by: &'static Location<'static>,
    waited: Duration,
    since: Instant,
}

impl Hold {
    /// The lock was taken just now, after a wait that began then.
    #[must_use]
    #[track_caller]
    pub fn since(began: Instant, lock: Named) -> Self {
        let since = Instant::now();
        Self { lock, by: Location::caller(), waited: since - began, since }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (held, Named { name, bound }) = (self.since.elapsed(), self.lock);
        metrics::histogram!(metric::LOCK_WAIT, "lock" => name).record(self.waited);
        metrics::histogram!(metric::LOCK_HOLD, "lock" => name).record(held);
        if held > bound {
            let (by, waited) = (self.by, self.waited);
            tracing::warn!(lock = name, ?held, ?bound, ?waited, %by, "a lock was held for longer than it should be");
        }
    }
}

/// Between threads. Never held over an await (I7).
#[derive(Debug)]
pub struct Mutex<T> {
    lock: Named,
    inner: parking_lot::Mutex<T>,
}

/// Dropping it lets go, and measures.
#[derive(Debug)]
pub struct Guard<'a, T> {
    // Fields are dropped in this order: the log is written by nobody who holds the lock.
    inner: parking_lot::MutexGuard<'a, T>,
    _hold: Hold,
}

impl<T> Mutex<T> {
    /// Held by nobody.
    pub fn new(lock: Named, value: T) -> Self {
        Self { lock, inner: parking_lot::Mutex::new(value) }
    }

    /// Waits until nobody else has it.
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        let began = Instant::now();
        let inner = self.inner.lock();
        Guard { inner, _hold: Hold::since(began, self.lock) }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_and_holds_are_told_by_name() {
        let recorder = crate::telemetry::builder().unwrap().build_recorder();
        let lock = Mutex::new(Named { name: "one_of_ours", bound: Duration::ZERO }, 1);
        metrics::with_local_recorder(&recorder, || {
            *lock.lock() += 1;
            assert_eq!(*lock.lock(), 2);
        });
        let text = recorder.handle().render();
        for name in [metric::LOCK_WAIT, metric::LOCK_HOLD] {
            assert!(text.contains(&format!("{name}_count{{lock=\"one_of_ours\"}} 2")), "{text}");
        }
    }
}
