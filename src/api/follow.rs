//! Following work that goes on whoever listens: how far it is whenever that differs, at most every [`PACE`]; its outcome at once.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::status::Refusal;
use crate::image::cache::Failure;
use crate::level;

/// How often progress is told, at most.
const PACE: Duration = Duration::from_millis(100);

/// What is to be told next.
pub(super) enum Heard<P, O> {
    Progress(P),
    /// The last one.
    Outcome(O),
}

/// One caller's view. Dropped, nothing else ends.
pub(super) struct Following<T, P> {
    level: level::Receiver<T>,
    stop: CancellationToken,
    /// What was told last, and when the next may be told.
    told: Option<P>,
    next_at: Instant,
}

impl<T: Clone, P: Clone + PartialEq> Following<T, P> {
    /// Until `stop`, which is the daemon's.
    pub(super) fn new(level: level::Receiver<T>, stop: CancellationToken) -> Self {
        Self { level, stop, told: None, next_at: Instant::now() }
    }

    /// `read` makes of the level what it tells; `lost` is for work that ended without an outcome. Cancel safe.
    pub(super) async fn next<O>(
        &mut self,
        read: impl Fn(T) -> Heard<P, Result<O, Failure>>,
        lost: impl Fn() -> Failure,
    ) -> Result<Heard<P, O>, Refusal> {
        loop {
            let now = self.level.borrow_and_update().clone();
            let progress = match read(now) {
                Heard::Outcome(outcome) => return outcome.map(Heard::Outcome).map_err(Refusal::NotFetched),
                Heard::Progress(progress) => progress,
            };
            let differs = self.told.as_ref() != Some(&progress);
            if differs && Instant::now() >= self.next_at {
                self.told = Some(progress.clone());
                self.next_at = Instant::now() + PACE;
                return Ok(Heard::Progress(progress));
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Refusal::Stopping),
                changed = self.level.changed() => if changed.is_err() {
                    let last = self.level.borrow().clone();
                    return match read(last) {
                        Heard::Outcome(outcome) => outcome.map(Heard::Outcome),
                        Heard::Progress(_) => Err(lost()),
                    }
                    .map_err(Refusal::NotFetched);
                },
                () = tokio::time::sleep_until(self.next_at), if differs => {}
            }
        }
    }
}
