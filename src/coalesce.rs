//! One look at something that is dear to look at (the engine's list, all processes) for everybody who wants one at the same time.
//!
//! A look serves only calls that arrived before it began, so nobody gets a picture that is older than the question: calls that arrive while a
//! look runs share the next one. So any number of callers cost two looks at most. Looks do not overlap.
//!
//! It deliberately knows nothing of what is looked at, has no clock and starts no task: a look is driven by those who wait, by those for it
//! and by those for the next one. A caller that goes away, or holds its future without polling it, holds up nobody else; when all who wait
//! are gone, the look is dropped.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;

type Look<T> = Shared<BoxFuture<'static, T>>;

/// Shares the looks that a closure makes. `T` is cloned for each caller: an `Arc`, or a `Result` of one.
pub struct Coalesced<T: Clone> {
    begin: Arc<dyn Fn() -> BoxFuture<'static, T> + Send + Sync>,
    state: Arc<Mutex<State<T>>>,
}

/// Weak, so that the callers own the looks.
struct State<T: Clone> {
    /// Began last; may be finished.
    running: Option<WeakShared<BoxFuture<'static, T>>>,
    /// Not begun: whoever comes may join it.
    pending: Option<WeakShared<BoxFuture<'static, T>>>,
}

impl<T: Clone> fmt::Debug for Coalesced<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Coalesced")
    }
}

impl<T: Clone + Send + Sync + 'static> Coalesced<T> {
    /// `begin` is called once for each look, when it begins.
    pub fn new<F>(begin: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        Self { begin: Arc::new(move || begin().boxed()), state: Arc::new(Mutex::new(State { running: None, pending: None })) }
    }

    /// What a look sees that begins after this call. The call counts as arrived now, not at the first poll. Cancel safe.
    pub fn look(&self) -> impl Future<Output = T> + Send + 'static {
        let mut state = self.state.lock();
        if let Some(pending) = state.pending.as_ref().and_then(WeakShared::upgrade) {
            return pending;
        }
        let before: Option<Look<T>> = state.running.as_ref().and_then(WeakShared::upgrade);
        let (begin, shared) = (Arc::clone(&self.begin), Arc::clone(&self.state));
        let look = async move {
            if let Some(before) = before {
                before.await;
            }
            {
                // The only pending look is this one: those before it have begun, and those after it would have joined it.
                let mut state = shared.lock();
                state.running = state.pending.take();
            }
            begin().await
        }
        .boxed()
        .shared();
        state.pending = look.downgrade();
        look
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;
    use tokio::time::{Instant, sleep, timeout};

    const LOOK: Duration = Duration::from_secs(1);

    /// Looks take a second and see their own number.
    fn counted() -> (Coalesced<u32>, Arc<AtomicU32>) {
        let begun = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&begun);
        let coalesced = Coalesced::new(move || {
            let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                sleep(LOOK).await;
                number
            }
        });
        (coalesced, begun)
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_calls_at_once_are_one_look() {
        let (coalesced, begun) = counted();
        let seen = futures::future::join_all((0..1000).map(|_| coalesced.look())).await;
        assert!(seen.iter().all(|&number| number == 1));
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_during_a_look_gets_the_next_one_and_shares_it() {
        let (coalesced, begun) = counted();
        let start = Instant::now();
        let late = async {
            sleep(LOOK / 2).await;
            futures::future::join_all((0..1000).map(|_| coalesced.look())).await
        };
        let (first, second) = tokio::join!(coalesced.look(), late);
        assert_eq!(first, 1);
        assert!(second.iter().all(|&number| number == 2));
        assert_eq!((begun.load(Ordering::Relaxed), start.elapsed()), (2, LOOK * 2), "two looks, one after the other");
        assert_eq!(coalesced.look().await, 3, "a finished look serves nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_does_not_end_the_others_look() {
        let (coalesced, begun) = counted();
        let mut leaving = Box::pin(coalesced.look());
        let staying = coalesced.look();
        assert!(timeout(LOOK / 2, &mut leaving).await.is_err());
        drop(leaving);
        assert_eq!((staying.await, begun.load(Ordering::Relaxed)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_look_holds_up_nobody() {
        let (coalesced, _) = counted();
        assert!(timeout(LOOK / 2, coalesced.look()).await.is_err());
        assert_eq!(timeout(LOOK * 2, coalesced.look()).await, Ok(2));
        // Neither does one that was never begun.
        drop(coalesced.look());
        assert_eq!(coalesced.look().await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_does_not_poll_holds_up_nobody() {
        let (coalesced, _) = counted();
        let mut stalled = Box::pin(coalesced.look());
        assert!(timeout(LOOK / 2, &mut stalled).await.is_err(), "begun, and then not polled any more");
        assert_eq!(timeout(LOOK * 3, coalesced.look()).await, Ok(2));
        assert_eq!(stalled.await, 1);
    }
}
