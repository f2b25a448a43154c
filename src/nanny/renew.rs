//! Renew: from an empty, fenced use to the next one, in a network namespace that never was, under the same buddy.
//!
//! ```text
//!            ┌► the old link is cut off ──────────┐
//!  address ──┼► the init is told to move ─► proven ┼─► furnished ─► look again ─► Ready
//!            └► the shared files are replaced ─────┘
//! ```
//!
//! The old link is cut off: what pins the old namespace (a descriptor, a socket that was passed on) keeps it, and must reach nobody by it. It is
//! not removed here, which takes ten times as long as all the rest: the kernel does that with the namespace, or the pool a little later. One that CNI
//! plugins gave is taken back by them first, and then the rest goes on. The look
//! at the end is for whoever came meanwhile: the engine resolves the name that a container is to join early, and lists the container late.
//!
//! What can go wrong, and what is done about it: no address has rested long enough (waited for) · the init does not answer, or answers wrong · the
//! link cannot be made · the buddy is not the one it was · somebody is inside: in each case this buddy serves no other lease (I10). A daemon that ends
//! in the middle leaves a buddy that its ledger does not tell as ready, so its successor removes it.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;

use super::Nanny;
use super::shelf::ShelfError;
use super::vacate::Left;
use crate::causes::with_causes;
use crate::engine::{Container, ContainerStatus, Engine, EngineError, ErrorClass};
use crate::netns::RenewError;
use crate::netns::networks::{Link, NetworkError, Reserved};
use crate::pool::UseKey;
use crate::pool::state::{Order, SlotState};
use crate::telemetry::metric;

/// A renewal takes a millisecond; a buddy that needs this long is not worth waiting for.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks for an address, if nothing tells earlier.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why a buddy cannot be renewed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("{}", with_causes(.0))]
    Move(RenewError),
    #[error("{0}")]
    Network(NetworkError),
    #[error("a file that its joiners share could not be replaced: {0}")]
    Files(std::io::Error),
    #[error("{0}")]
    Shelf(ShelfError),
    #[error("{0}")]
    Changed(&'static str),
    #[error("{0} could still start")]
    Configured(String),
}

impl RenewalError {
    /// For the metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::Move(RenewError::Gone { .. }) => "ended",
            Self::Move(RenewError::NoAnswer { .. }) => "no_answer",
            Self::Move(RenewError::Wrong { .. }) => "wrong_answer",
            Self::Move(RenewError::Kernel(_)) => "kernel",
            Self::Network(_) => "network",
            Self::Files(_) => "files",
            Self::Shelf(_) => "folder",
            Self::Changed(_) => "changed",
            Self::Configured(_) => "configured",
        }
    }
}

impl Nanny {
    pub(super) async fn renew(&mut self, key: UseKey) {
        let order = Order::Renew(key);
        let began = self.tools.pool.now();
        if self.verifies() {
            // Each time: somebody may have come and gone since the last one.
            match self.verify(key).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return self.spoiled(key, error.to_string()),
                None => return,
            }
        } else if self.buddy.as_ref().is_none_or(|buddy| buddy.renewed != Some(key.use_number)) {
            let reserved = match self.tools.networks.is_furnished(self.network()) {
                true => match self.address(&order).await {
                    None => return,
                    reserved => reserved,
                },
                false => None,
            };
            if self.has_cooled(key) && !self.is_still_empty(key, &order).await {
                return;
            }
            if let Err(error) = self.move_on(key, reserved).await {
                return self.not_renewed(key, &error);
            }
        }
        // Before the last look, which is also for those who come by path.
        if let Some(buddy) = &mut self.buddy
            && let Err(error) = self.tools.publish(buddy).await
        {
            return self.not_renewed(key, &RenewalError::Shelf(error));
        }
        if self.is_as_before_and_empty(key, &order).await {
            self.renewed(key, began);
        }
    }

    /// The last look. Identity, list and processes are looked at together; should that take long, the process that was there is alive in the end, and so
    /// the same.
    async fn is_as_before_and_empty(&mut self, key: UseKey, order: &Order) -> bool {
        let (engine, id) = (Arc::clone(&self.tools.engine), self.buddy.as_ref().map(|buddy| buddy.id.clone()));
        let inspection = async move {
            match id {
                Some(id) => Some(engine.inspect(id.as_str()).await),
                None => None,
            }
        };
        let settle = self.tools.settings.borrow().settle;
        let (inspected, left) = tokio::join!(inspection, self.who_is_left(order, settle));
        if let Err(error) = self.same_as_before(inspected, order).await {
            self.not_renewed(key, &error);
            return false;
        }
        self.is_empty(key, left)
    }

    /// What is verified is counted as such.
    fn count(&self, outcome: &'static str) {
        if !self.verifies() {
            metrics::counter!(metric::RENEWALS, "outcome" => outcome).increment(1);
        }
    }

    /// It waited for an address, and goes on.
    fn has_cooled(&self, key: UseKey) -> bool {
        let waited = self.tools.pool.read(|state| state.slot_view(key.slot).state == SlotState::Cooling);
        if waited {
            self.tools.pool.with(|state, now| state.cooling(now, key, false));
        }
        waited
    }

    /// The last look may be long ago.
    async fn is_still_empty(&mut self, key: UseKey, order: &Order) -> bool {
        let settle = self.tools.settings.borrow().settle;
        let left = self.who_is_left(order, settle).await;
        self.is_empty(key, left)
    }

    fn is_empty(&mut self, key: UseKey, left: Left) -> bool {
        match left {
            Left::Nobody => return true,
            Left::Somebody(who) => {
                self.count("occupied");
                self.occupied(key, who);
            }
            Left::Configured(who) => self.not_renewed(key, &RenewalError::Configured(who.join(", "))),
            Left::NewOrder => {}
        }
        false
    }

    fn not_renewed(&mut self, key: UseKey, error: &RenewalError) {
        self.count(error.word());
        self.spoiled(key, error.to_string());
    }

    /// Waits for one; `None` when the order changes meanwhile.
    pub(super) async fn address(&mut self, order: &Order) -> Option<Reserved> {
        let network = self.network();
        let mut trouble = self.tools.networks.trouble();
        loop {
            let now = self.tools.pool.now();
            let (wait, error) = match self.tools.networks.reserve(network, now) {
                Ok(reserved) => return Some(reserved),
                Err(error @ NetworkError::Exhausted { .. }) => (error.retry_after(now), error),
                Err(error) => (None, error),
            };
            tracing::debug!(slot = self.slot, %error, ?wait, "waiting for an address");
            self.tools.pool.with(|state, now| {
                state.note_error(self.slot, error.to_string());
                if let Order::Renew(key) = order {
                    state.cooling(now, *key, true);
                }
            });
            let mended = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => {
                        if trouble.changed().await.is_err() {
                            std::future::pending().await
                        }
                    }
                }
            };
            tokio::select! {
                biased;
                () = self.until_order_is_not(order) => return None,
                () = mended => {}
                // Others give addresses back, and nobody says so.
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn move_on(&mut self, key: UseKey, reserved: Option<Reserved>) -> Result<(), RenewalError> {
        let tools = &self.tools;
        let Some(buddy) = &mut self.buddy else { return Err(RenewalError::Changed("its nanny has no buddy")) };
        // That was the old namespace: should the slot be given up meanwhile, it is looked into the new one as well.
        buddy.proven_empty = None;
        let files = buddy.files.as_ref().ok_or(RenewalError::Changed("what it shared with its joiners at first is not known any more"))?;
        let cut = async {
            match &buddy.link {
                Some(link) => tools.networks.cut(link, buddy.held.as_ref()).await,
                None => Ok(()),
            }
        };
        let cut = if buddy.link.as_ref().is_some_and(Link::goes_first) {
            cut.await.map_err(RenewalError::Network)?;
            std::future::ready(Ok(())).left_future()
        } else {
            cut.right_future()
        };
        let (cut, renewed, replaced) = tokio::join!(cut, buddy.held.renew(key.use_number + 1, ANSWER_WITHIN), files.renew());
        cut.map_err(RenewalError::Network)?;
        let renewed = renewed.map_err(RenewalError::Move)?;
        tools.present.holds(&buddy.id, buddy.held.as_ref());
        replaced.map_err(RenewalError::Files)?;
        metrics::histogram!(metric::RENEWAL).record(renewed.took);
        if let Some(link) = buddy.link.take() {
            tools.networks.leave(link, tools.pool.now()).await;
        }
        if let Some(reserved) = reserved {
            let (turn, began) = (turn(buddy.generation, key.use_number + 1), tools.pool.now());
            let link = tools.networks.furnish(reserved, self.slot, turn, buddy.held.as_ref(), began).await;
            buddy.link = Some(link.map_err(RenewalError::Network)?);
            metrics::histogram!(metric::FURNISHING).record(tools.pool.now().saturating_sub(began));
        }
        buddy.renewed = Some(key.use_number);
        Ok(())
    }

    /// The engine's container is the one that was proven, and runs (I4); the pidfd tells the rest. It is asked again if it did not say.
    async fn same_as_before(&mut self, mut inspected: Option<Result<Container, EngineError>>, order: &Order) -> Result<(), RenewalError> {
        loop {
            let Some(buddy) = &self.buddy else { return Err(RenewalError::Changed("its nanny has no buddy")) };
            let answer = match inspected.take() {
                Some(answer) => answer,
                None => self.tools.engine.inspect(buddy.id.as_str()).await,
            };
            let changed = match answer {
                Ok(now) if now.status != ContainerStatus::Running || now.pid != buddy.held.pid() => "it does not run any more",
                Ok(now) if now.started_at != buddy.started_at => "it was restarted",
                Ok(_) if !buddy.held.is_alive() => "its process ended",
                Ok(_) => return Ok(()),
                Err(error) if error.class == ErrorClass::NotFound => "it was removed",
                Err(error) => {
                    self.tools.pool.with(|state, _| state.note_error(self.slot, error.to_string()));
                    if self.retry_later(order).await {
                        continue;
                    }
                    return Err(RenewalError::Changed("it could not be looked at"));
                }
            };
            return Err(RenewalError::Changed(changed));
        }
    }

    fn renewed(&mut self, key: UseKey, began: crate::pool::Moment) {
        let network = self.network();
        let Some(buddy) = &mut self.buddy else { return };
        buddy.proven_empty = Some(key.use_number);
        let next = self.tools.breed.namespace(network, buddy);
        self.count("ready");
        if !self.verifies() {
            metrics::histogram!(metric::RENEWED).record(self.tools.pool.now().saturating_sub(began));
        }
        self.tools.pool.with(|state, now| state.renewed(now, key, Arc::new(next)));
    }
}

/// Tells a slot's links apart: those of a use from the last one's, and those of a buddy from an earlier one's that somebody stays in.
pub(super) fn turn(generation: u64, use_number: u64) -> u64 {
    generation.wrapping_add(use_number)
}
