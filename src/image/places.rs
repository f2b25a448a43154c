//! Places: how much heavy image work goes on at once, pulls and builds alike, and less of it while slots are filled.
//!
//! Beside a large pull a container's create takes 33 ms instead of 12, and it is by creates that a pool comes to its target. So while it is short,
//! whoever asks for a place finds fewer ([`Places::spare_while`]). Those who have one go on: work that is half done would only have to be done again.
//!
//! First come, first served. A place is given back by dropping it. It deliberately does not know what it is for, nor the pool: it is told by a
//! question, which nobody asks while nobody waits, so that an Allocate costs nothing here.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// How often who waits asks whether the pool is still short.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Whether slots are being filled, and fewer are ready than should be.
type Short = Box<dyn Fn() -> bool + Send + Sync>;

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Places(Arc<Inner>);

struct Inner {
    most: u32,
    while_short: u32,
    short: OnceLock<Short>,
    taken: Mutex<u32>,
    given_back: Notify,
    /// Who holds it is the first in the queue.
    turn: Semaphore,
}

/// One of them. Dropping it gives it back.
#[must_use = "dropping it gives the place back"]
pub struct Place(Arc<Inner>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.taken.lock() -= 1;
        self.0.given_back.notify_one();
    }
}

impl Places {
    /// At least one of each.
    #[must_use]
    pub fn new(most: u32, while_short: u32) -> Self {
        let most = most.max(1);
        let while_short = while_short.clamp(1, most);
        let (short, taken, given_back) = (OnceLock::new(), Mutex::new(0), Notify::new());
        Self(Arc::new(Inner { most, while_short, short, taken, given_back, turn: Semaphore::new(1) }))
    }

    /// There are fewer places while `short` says so. Before this: never. To be said once; later ones do nothing.
    pub fn spare_while(&self, short: impl Fn() -> bool + Send + Sync + 'static) {
        let _first = self.0.short.set(Box::new(short));
    }

    /// How many there are when nothing speaks against it.
    #[must_use]
    pub fn most(&self) -> u32 {
        self.0.most
    }

    /// Waits for a place; `None`: there was none by then. Cancel safe.
    pub async fn acquire(&self, deadline: Instant) -> Option<Place> {
        tokio::time::timeout_at(deadline, self.take()).await.ok()
    }

    async fn take(&self) -> Place {
        // It is never closed, and were it, nobody would be kept.
        let _turn = self.0.turn.acquire().await;
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            // What was given back before this wait is kept for it.
            let _again = tokio::time::timeout(ASK_EVERY, self.0.given_back.notified()).await;
        }
    }

    /// Slots are being filled, and fewer are ready than should be.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.0.short.get().is_some_and(|short| short())
    }

    fn try_take(&self) -> Option<Place> {
        let most = if self.is_short() { self.0.while_short } else { self.0.most };
        let mut taken = self.0.taken.lock();
        (*taken < most).then(|| {
            *taken += 1;
            Place(Arc::clone(&self.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::FutureExt as _;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_as_many_as_there_are() {
        let places = Places::new(2, 1);
        let (first, _second) = (places.acquire(soon()).await.unwrap(), places.acquire(soon()).await.unwrap());
        let began = Instant::now();
        assert!(places.acquire(soon()).await.is_none());
        assert_eq!(began.elapsed(), Duration::from_secs(10), "it has waited");
        let mut waits = Box::pin(places.acquire(soon()));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(first);
        let began = Instant::now();
        assert!(waits.await.is_some());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_fewer_while_slots_are_filled() {
        let places = Places::new(3, 1);
        let short = Arc::new(AtomicBool::new(false));
        let says = Arc::clone(&short);
        places.spare_while(move || says.load(Ordering::Relaxed));
        let both = (places.acquire(soon()).await.unwrap(), places.acquire(soon()).await.unwrap());
        short.store(true, Ordering::Relaxed);
        assert!(places.acquire(soon()).await.is_none(), "those who have one keep it");
        drop(both);
        let one = places.acquire(soon()).await.unwrap();
        let mut waits = Box::pin(places.acquire(soon()));
        assert!(waits.as_mut().now_or_never().is_none());
        short.store(false, Ordering::Relaxed);
        let began = Instant::now();
        assert!(waits.await.is_some());
        assert!(began.elapsed() <= ASK_EVERY);
        drop(one);
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_first_is_served_first_and_who_goes_away_takes_nothing() {
        let places = Places::new(1, 1);
        let only = places.acquire(soon()).await.unwrap();
        let (mut first, mut gone, mut third) =
            (Box::pin(places.acquire(soon())), Box::pin(places.acquire(soon())), Box::pin(places.acquire(soon())));
        for wait in [&mut first, &mut gone, &mut third] {
            assert!(wait.as_mut().now_or_never().is_none());
        }
        drop(gone);
        drop(only);
        assert!(third.as_mut().now_or_never().is_none(), "it is not its turn");
        let place = first.await.unwrap();
        assert!(third.as_mut().now_or_never().is_none());
        drop(place);
        assert!(third.await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_always_one() {
        let places = Places::new(0, 0);
        places.spare_while(|| true);
        assert!(places.acquire(soon()).await.is_some());
    }
}
