//! What `sync` gives to tests: under [`check`] the checker's, elsewhere the real ones.
//!
//! A story is told under many schedules, each of them drawn from a seed; in each, one thread runs at a time, until it takes or leaves a
//! [`Mutex`], hands something over, or waits. The checker fails when everybody waits for somebody else. Half of the schedules are drawn
//! step by step, the other half by priorities that change a few times (PCT), which finds bugs that need one thread to be slow for long.
//!
//! `make interleavings SCHEDULES=100000` draws more of them; a failure prints its seed, and `SHUTTLE_RANDOM_SEED` begins with it.

use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::PoisonError;
use std::task::Poll;
use std::time::Duration;

use shuttle::rand::Rng as _;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::{Config, MaxSteps, Runner};

/// Schedules per story, without further notice.
const SCHEDULES: usize = 300;
/// The same ones each time.
const SEED: u64 = 1;
/// Priorities that change in a schedule of the second half.
const CHANGES: usize = 3;
/// A story that takes more steps goes in circles.
const STEPS: usize = 200_000;
/// Who waits so long waits for ever; less may run out at any time.
const FOREVER: Duration = Duration::from_secs(3600);

/// Tells the story under many schedules.
///
/// # Panics
/// When it panics under one of them, or ends in a deadlock.
pub(crate) fn check(story: impl Fn() + Clone + Send + Sync + 'static) {
    let schedules = std::env::var("NSPOOL_SCHEDULES").ok().and_then(|number| number.parse().ok()).unwrap_or(SCHEDULES);
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    config.max_steps = MaxSteps::FailAfter(STEPS);
    Runner::new(RandomScheduler::new_from_seed(SEED, schedules.div_ceil(2)), config.clone()).run(story.clone());
    Runner::new(PctScheduler::new_from_seed(SEED, CHANGES, schedules / 2), config).run(story);
}

/// A number below `end` that belongs to the schedule.
pub(crate) fn dice(end: u32) -> u32 {
    shuttle::rand::thread_rng().gen_range(0..end)
}

/// Polls `future` to its end, or drops it after some polls that came to nothing: its caller has gone.
pub(crate) async fn perhaps_dropped<F: Future>(future: F) -> Option<F::Output> {
    timeout(Duration::ZERO, future).await.ok()
}

fn is_checked() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

/// As parking_lot's. Under [`check`], taking and leaving it are steps of the schedule.
pub(crate) struct Mutex<T> {
    /// Whose turn it is, as far as the checker knows.
    turn: shuttle::sync::Mutex<()>,
    value: parking_lot::Mutex<T>,
}

/// See [`Mutex`]. The value is left before the turn is.
pub(crate) struct Guard<'a, T> {
    value: parking_lot::MutexGuard<'a, T>,
    _turn: Option<shuttle::sync::MutexGuard<'a, ()>>,
    _step: Step,
}

/// Dropped, it lets the checker choose who goes on: its own lock does so before it is left and not after, as it knows of nothing that could
/// be done in between; we may wake somebody.
struct Step;

impl Drop for Step {
    fn drop(&mut self) {
        if is_checked() && !std::thread::panicking() {
            AtomicBool::new(false).load(Ordering::SeqCst);
        }
    }
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { turn: shuttle::sync::Mutex::new(()), value: parking_lot::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let turn = is_checked().then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        Guard { value: self.value.lock(), _turn: turn, _step: Step }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// A [`timeout`] ran out.
#[derive(Debug)]
pub(crate) struct TimeIsUp;

/// As tokio's. Under [`check`] the time is up after as many polls as the schedule says, or never if it is [`FOREVER`].
pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, TimeIsUp> {
    if !is_checked() {
        return tokio::time::timeout(limit, future).await.map_err(|_| TimeIsUp);
    }
    let mut future = pin!(future);
    let mut patience = (limit < FOREVER).then(|| dice(12));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        match &mut patience {
            Some(0) => return Poll::Ready(Err(TimeIsUp)),
            Some(left) => {
                *left -= 1;
                cx.waker().wake_by_ref();
            }
            None => {}
        }
        Poll::Pending
    })
    .await
}

/// As tokio's. Under [`check`] it ends at any time.
pub(crate) async fn sleep(time: Duration) {
    if is_checked() {
        for _ in 0..dice(8) {
            shuttle::future::yield_now().await;
        }
    } else {
        tokio::time::sleep(time).await;
    }
}

/// As tokio's. Under [`check`] a receiver may act on what was sent before its sender goes on.
pub(crate) mod oneshot {
    pub(crate) use tokio::sync::oneshot::Receiver;

    pub(crate) struct Sender<T>(tokio::sync::oneshot::Sender<T>);

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        (Sender(sender), receiver)
    }

    impl<T> Sender<T> {
        pub(crate) fn send(self, value: T) -> Result<(), T> {
            let sent = self.0.send(value);
            drop(super::Step);
            sent
        }
    }
}
