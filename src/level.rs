//! A value that changes and that many follow: each sees the latest one, not every one.
//!
//! As tokio's `watch`, and with the names of its methods. That one wakes those who wait in an order of chance, which no seed brings back; here
//! they are woken in the order in which they came, so that a simulated life is the same each time ([`random`](crate::random)).
//!
//! What can go wrong: a change between a look and the wait (whoever waits enlists first, then looks) · the sender going away (its followers
//! still read the last value, and waiting ends with [`Closed`]). All waits are cancel safe. A [`Ref`] holds up the sender: not over an await.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::Notify;

/// Set in the version when the sender is gone.
const CLOSED: u64 = 1;
/// From one version to the next.
const STEP: u64 = 2;

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    version: AtomicU64,
    changed: Notify,
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

/// Follows it.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// A look at the value.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

/// The value will not change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left to change it")]
pub struct Closed;

/// With one who follows from here on.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> Sender<T> {
    /// With nobody who follows.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared { value: RwLock::new(value), version: AtomicU64::new(0), changed: Notify::new() }))
    }

    /// One more who follows, from the present value on.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { seen: self.0.version(), shared: Arc::clone(&self.0) }
    }

    /// The present value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.value.read())
    }

    /// Puts another value in its place, and answers the one before.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|old| std::mem::swap(old, &mut value));
        value
    }

    /// Changes it in place.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            change(value);
            true
        });
    }

    /// Changes it in place; answers, as `change` does, whether that was a change. If not, nobody is told.
    pub fn send_if_modified(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut value = self.0.value.write();
            if !change(&mut value) {
                return false;
            }
            self.0.version.fetch_add(STEP, Ordering::SeqCst);
        }
        self.0.changed.notify_waiters();
        true
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.version.fetch_or(CLOSED, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl<T> Shared<T> {
    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst) & !CLOSED
    }

    fn is_closed(&self) -> bool {
        self.version.load(Ordering::SeqCst) & CLOSED != 0
    }
}

impl<T> Receiver<T> {
    /// The present value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.value.read())
    }

    /// The present value, which is seen then.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.value.read();
        // It changes together with the value.
        self.seen = self.shared.version();
        Ref(value)
    }

    /// Whether there is a value that was not seen yet.
    ///
    /// # Errors
    /// [`Closed`] when there will never be one.
    pub fn has_changed(&self) -> Result<bool, Closed> {
        if self.shared.version() != self.seen {
            return Ok(true);
        }
        if self.shared.is_closed() { Err(Closed) } else { Ok(false) }
    }

    /// Waits for a value that was not seen yet; it counts as seen then.
    ///
    /// # Errors
    /// [`Closed`] when none comes any more.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let more = self.shared.changed.notified();
            if self.has_changed()? {
                self.seen = self.shared.version();
                return Ok(());
            }
            more.await;
        }
    }

    /// Waits until the value is as wanted, which it may be already.
    ///
    /// # Errors
    /// [`Closed`] when it will not be.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            let found = wanted(&self.borrow_and_update());
            if found {
                return Ok(self.borrow());
            }
            self.changed().await?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_latest_value_is_seen_once() {
        let (sender, mut level) = channel(0);
        assert!(level.changed().now_or_never().is_none(), "what was there at the start is seen");
        sender.send_modify(|value| *value = 1);
        assert_eq!(sender.send_replace(2), 1);
        assert_eq!(level.has_changed(), Ok(true));
        level.changed().await.unwrap();
        assert_eq!(*level.borrow(), 2);
        assert!(level.changed().now_or_never().is_none());
        assert!(!sender.send_if_modified(|_| false));
        assert!(level.changed().now_or_never().is_none());
        sender.send_replace(3);
        assert_eq!(*level.borrow_and_update(), 3);
        assert_eq!(level.has_changed(), Ok(false));
    }

    #[tokio::test]
    async fn whoever_waits_is_woken_in_turn_and_told_of_the_end() {
        let (sender, level) = channel(0);
        let order = parking_lot::Mutex::new(Vec::new());
        let wait = |name| {
            let (mut level, order) = (level.clone(), &order);
            async move {
                let found = level.wait_for(|value| *value == 2).await.map(|value| *value);
                order.lock().push((name, found));
            }
        };
        let mut all: futures::stream::FuturesUnordered<_> = (0..9).map(wait).collect();
        let mut more = || futures::StreamExt::next(&mut all).now_or_never();
        assert_eq!(more(), None);
        sender.send_replace(1);
        assert_eq!(more(), None);
        sender.send_replace(2);
        while more() == Some(Some(())) {}
        assert_eq!(*order.lock(), (0..9).map(|name| (name, Ok(2))).collect::<Vec<_>>());

        let mut late = level.clone();
        let mut unmet = Box::pin(late.wait_for(|value| *value == 3));
        assert!(unmet.as_mut().now_or_never().is_none());
        drop(sender);
        assert!(matches!(unmet.await, Err(Closed)));
        assert_eq!(level.clone().wait_for(|value| *value == 2).await.map(|value| *value), Ok(2), "the last value stays");
        let mut behind = level;
        assert_eq!(behind.changed().await, Ok(()), "it had not seen that");
        assert_eq!(behind.changed().await, Err(Closed));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_change_is_missed_between_threads() {
        let (sender, mut level) = channel(0_u32);
        let (told, mut seen) = channel(0_u32);
        let echo = async move {
            while level.changed().await.is_ok() {
                let value = *level.borrow();
                told.send_replace(value);
            }
        };
        let ask = async move {
            for round in 1..=20_000 {
                sender.send_replace(round);
                assert!(seen.wait_for(|value| *value == round).await.is_ok());
            }
        };
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(echo);
        tasks.spawn(ask);
        tasks.join_all().await;
    }
}
