//! The story of one slot. A nanny is one task for one slot, for the daemon's whole life: it reads its order from the pool (a level, not an
//! edge), does that one thing, and reads again.
//!
//! ```text
//!  Rest ──► Fill: image gate ─► pacer ─► create ─► start ─► prove (I4) ─► register
//!             │ failed: undo, then BackOff
//!  Adopt: prove (I4) what a predecessor had in the slot ─► proven, or given up
//!  Tend: wait for the first of: its end (pidfd, then the engine's wait, then a doubt from the event stream, each settled by looking), a new order
//!  Vacate: put up the fence (rename), see that nobody is left ─► vacated | occupied | spoiled
//!  Renew: take its link away, have it move into a new network namespace, furnish that, look again ─► renewed | occupied | spoiled
//!         or prove that its namespaces are as they were, look again
//!  Await: somebody is inside: look again until nobody is ─► vacated; too long ─► detached, the slot goes on without this buddy
//!  Retire: fence, see that nobody is left, remove, believe it when the pidfd says so ─► removed
//! ```
//!
//! What it promises: only this task creates or removes containers of its slot (I3); waits are cancelled by a new order, mutations run to their
//! end; whatever a failed or uncertain step may have left is remembered as *debris* and cleared before the next preparation; an answer that says
//! nothing (a cut connection, a deadline) changes nothing (I9). What it deliberately does not know: leases, callers, sizes.

mod adopt;
pub mod backoff;
pub mod buddy;
mod files;
pub mod fill;
pub mod fitness;
pub mod leftovers;
pub mod looks;
pub mod minder;
pub mod pin;
mod renew;
pub mod shelf;
mod vacate;
pub mod verify;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio_util::sync::ReusableBoxFuture;

use crate::config;
use crate::engine::paced::Paced;
use crate::engine::{ContainerId, ContainerStatus, Engine, ErrorClass, WaitOutcome};
use crate::headcount::Present;
use crate::image::gate::Gate;
use crate::level;
use crate::netns::networks::{Link, Networks};
use crate::netns::{Held, Kernel, Snapshot};
use crate::observer::{Doubts, EngineState, Heard};
use crate::pool::state::Order;
use crate::pool::{Moment, Pool, SlotIndex, UseKey};
use crate::telemetry::metric;
use backoff::Backoff;
use buddy::Breed;
use files::SharedFiles;
pub(crate) use fill::{hold, hold_there};
use leftovers::Leftovers;
use looks::Looks;
use minder::Detached;
use shelf::Shelf;

/// What nannies need of the configuration; may change while they run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of failed preparations.
    pub backoff: config::Backoff,
    /// How long a configured joiner may stay after the fence.
    pub settle: Duration,
    /// How long a quarantined buddy keeps its slot.
    pub detach_after: Duration,
}

/// What all nannies share.
pub struct Tools {
    /// The slots.
    pub pool: Arc<Pool>,
    /// Behind the pacer.
    pub engine: Arc<Paced>,
    /// Of the placeholder image.
    pub gate: Arc<Gate>,
    /// Processes and namespaces.
    pub kernel: Arc<dyn Kernel>,
    /// Who is inside whom.
    pub looks: Arc<Looks>,
    /// What buddies are made of.
    pub breed: Arc<Breed>,
    /// Those that nspool furnishes.
    pub networks: Arc<Networks>,
    /// Whether this engine's buddies can be renewed.
    pub fitness: fitness::Fitness,
    /// Live settings.
    pub settings: level::Receiver<Settings>,
    /// Whether the engine answers.
    pub engine_state: level::Receiver<EngineState>,
    /// Which network namespaces buddies have.
    pub present: Present,
    /// Doubts about containers, from the event stream.
    pub doubts: Arc<Doubts>,
    /// Set once a buddy of this placeholder has lived for a while: see `fill`.
    pub trust: fill::Trust,
    /// Which fences the engine's events have told of.
    pub heard: Arc<Heard>,
    /// Where the namespaces of containers can be joined by path; `None`: nowhere.
    pub shelf: Option<Shelf>,
    /// Folders that are no slot's; `None`: nobody mounts any.
    pub leftovers: Option<Leftovers>,
    /// What buddies were, where they are to be verified.
    pub snapshots: Arc<verify::Snapshots>,
    /// What becomes of a buddy that somebody was in of whom it is not known that they are bounded; only where it is to be verified.
    pub unbounded: config::Unbounded,
    /// A buddy was made or adopted: it may be of another image than the present one.
    pub made: Notify,
    /// Whether a container keeps the placeholder image, or may.
    pub pinned: pin::Pinned,
    /// To the minder; as many places as buddies may be detached.
    pub detached: mpsc::Sender<Detached>,
    /// Random ends of names; seeded in simulations.
    pub dice: parking_lot::Mutex<fastrand::Rng>,
}

/// A buddy in its nanny's care.
pub(crate) struct Buddy {
    id: ContainerId,
    /// Its present name.
    name: String,
    generation: u64,
    held: Box<dyn Held>,
    started_at: String,
    registered_at: Moment,
    /// For the next use's namespace.
    facts: crate::engine::Container,
    resolv_conf: Arc<str>,
    doubt: Arc<Notify>,
    /// The engine's wait, kept over orders: each one is a connection.
    witness: Option<ReusableBoxFuture<'static, WaitOutcome>>,
    attach_at: tokio::time::Instant,
    /// The use whose name no longer resolves.
    fenced: Option<u64>,
    /// The engine does not remove it while a container is there that could join it.
    depended_on: bool,
    /// The use after which it was proven that nobody is inside.
    proven_empty: Option<u64>,
    /// On a managed network, while it is furnished.
    link: Option<Link>,
    /// By which name it can be joined by path.
    shelved: Option<String>,
    /// The use after which it moved on.
    renewed: Option<u64>,
    /// Those that joiners share with it, as they were; only of one that is to be renewed or verified.
    files: Option<SharedFiles>,
    /// Whether the events have told of its last fence; only of one that is to be verified.
    heard: Option<level::Receiver<bool>>,
    /// What its namespaces were; only of one that is to be verified.
    snapshot: Option<Arc<dyn Snapshot>>,
}

/// Why a nanny looks up from its buddy.
enum Event {
    NewOrder,
    /// The pidfd says so.
    Ended,
    /// A second witness says that something happened.
    Doubt,
    /// It has lived long enough for its slot's failures to be forgotten.
    Healthy,
    /// What an earlier try may have left is to be looked for again.
    LookForDebris,
    /// Only a bug gets here; the slot must not stay handed out.
    NoBuddy,
}

/// Between two looks for what an earlier try may have left.
const LOOK_FOR_DEBRIS: Duration = Duration::from_secs(1);
/// Between two waits on one container.
const REATTACH_AFTER: Duration = Duration::from_millis(200);

/// See the module.
pub struct Nanny {
    slot: SlotIndex,
    tools: Arc<Tools>,
    nudge: Arc<Notify>,
    /// Of preparations.
    backoff: Backoff,
    /// Of calls on the way out.
    retries: Backoff,
    buddy: Option<Buddy>,
    /// Containers that may exist though their creation, or removal, failed.
    debris: Vec<fill::Debris>,
}

impl Nanny {
    /// For slot `slot`.
    #[must_use]
    pub fn new(slot: SlotIndex, tools: Arc<Tools>) -> Self {
        let seed = tools.dice.lock().u64(..) ^ u64::from(slot);
        let (backoff, retries) = {
            let config = &tools.settings.borrow().backoff;
            (Backoff::new(config, seed), Backoff::new(config, !seed))
        };
        let nudge = tools.pool.nudge_of(slot);
        Self { slot, nudge, backoff, retries, tools, buddy: None, debris: Vec::new() }
    }

    /// Follows orders until the pool stops and this slot has nothing left in the engine.
    pub async fn run(mut self) {
        loop {
            match self.tools.pool.order(self.slot) {
                // What a stop leaves for the next daemon, debris is part of.
                Order::Rest if self.debris.is_empty() || self.tools.pool.read(|state| state.is_keeping()) => {
                    if self.tools.pool.read(|state| state.is_stopping()) {
                        return;
                    }
                    self.nudge.notified().await;
                }
                Order::Rest => {
                    self.wait_with(&Order::Rest, LOOK_FOR_DEBRIS).await;
                    self.clear_debris().await;
                }
                Order::Adopt(key) => self.adopt(key).await,
                Order::Fill { generation } => self.fill(generation).await,
                Order::BackOff => {
                    let wait = self.backoff.next_wait();
                    self.wait_with(&Order::BackOff, wait).await;
                    self.tools.pool.with(|state, now| state.backoff_over(now, self.slot));
                }
                Order::Tend(key) => self.tend(key).await,
                Order::Vacate(key) => self.vacate(key).await,
                Order::Renew(key) => self.renew(key).await,
                Order::Await(key) => self.await_empty(key).await,
                Order::Retire(key) => self.retire(key).await,
            }
        }
    }

    /// Waits for as long as the order stays the same, at most this long. `true` when it is still the same.
    async fn wait_with(&self, order: &Order, most: Duration) -> bool {
        // Nudges that change nothing (those for our own reports, say) do not cut it short.
        tokio::time::timeout(most, self.until_order_is_not(order)).await.is_err()
    }

    async fn until_order_is_not(&self, order: &Order) {
        while self.tools.pool.order(self.slot) == *order {
            self.nudge.notified().await;
        }
    }

    fn network(&self) -> usize {
        usize::from(self.tools.pool.read(|state| state.network_of(self.slot)))
    }

    fn dice(&self) -> u32 {
        self.tools.dice.lock().u32(..)
    }

    /// Watches over a buddy until something happens to it, or the order changes.
    async fn tend(&mut self, key: UseKey) {
        match self.next_event().await {
            Event::NewOrder => {}
            Event::Ended => self.gone(key, "its process ended").await,
            Event::Doubt => self.settle_doubt(key).await,
            Event::Healthy => {
                self.backoff.reset();
                self.tools.pool.with(|state, _| state.healthy(self.slot));
            }
            Event::LookForDebris => self.clear_debris().await,
            Event::NoBuddy => self.tools.pool.with(|state, now| state.buddy_gone(now, key, "its nanny has no buddy")),
        }
    }

    /// Cancel safe: what is awaited is kept in the buddy, or is a level.
    async fn next_event(&mut self) -> Event {
        let healthy_after = self.tools.settings.borrow().backoff.healthy_after;
        let Some(buddy) = &mut self.buddy else { return Event::NoBuddy };
        let healthy_in = (buddy.registered_at + healthy_after).saturating_sub(self.tools.pool.now());
        let unproven = self.backoff.failures() > 0;
        let mut engine_state = self.tools.engine_state.clone();
        loop {
            let up = engine_state.borrow_and_update().is_up();
            let Buddy { witness, held, id, doubt, attach_at, .. } = &mut *buddy;
            if witness.is_none() && up && tokio::time::Instant::now() >= *attach_at {
                *witness = Some(attach(Arc::clone(&self.tools.engine), id.clone()));
            }
            let attached = witness.is_some();
            let wait = async {
                match witness {
                    Some(witness) => witness.get_pin().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = held.exited() => return Event::Ended,
                () = self.nudge.notified() => return Event::NewOrder,
                () = doubt.notified() => return Event::Doubt,
                outcome = wait => {
                    *witness = None;
                    // Not at once again: an engine that cuts every wait must not be hammered.
                    *attach_at = tokio::time::Instant::now() + REATTACH_AFTER;
                    match outcome {
                        WaitOutcome::Exited(_) => return Event::Doubt,
                        WaitOutcome::Unknown => {}
                    }
                }
                Ok(()) = engine_state.changed(), if !attached => {}
                () = tokio::time::sleep_until(*attach_at), if !attached && up => {}
                () = tokio::time::sleep(healthy_in), if unproven => return Event::Healthy,
                () = tokio::time::sleep(LOOK_FOR_DEBRIS), if !self.debris.is_empty() => return Event::LookForDebris,
            }
        }
    }

    /// A second witness says that something happened. The pidfd knows whether it lives, an inspect what else is wrong with it.
    async fn settle_doubt(&mut self, key: UseKey) {
        let Some(buddy) = &self.buddy else { return };
        if !buddy.held.is_alive() {
            return self.gone(key, "its process ended").await;
        }
        let why = match self.tools.engine.inspect(buddy.id.as_str()).await {
            Ok(container) if container.started_at != buddy.started_at => "it was restarted",
            Ok(container) => match container.status {
                ContainerStatus::Running => return,
                ContainerStatus::Paused => "it was paused",
                ContainerStatus::Restarting | ContainerStatus::Removing => "it is being restarted or removed",
                // The engine says it has ended, the kernel says it lives: then it is not to be trusted, and not to be handed out.
                ContainerStatus::Exited | ContainerStatus::Dead | ContainerStatus::Created => "the engine says it is not running",
                ContainerStatus::Unknown => "the engine says a state that nobody knows",
            },
            Err(error) if error.class == ErrorClass::NotFound => "it was removed",
            // Unknown is neither dead nor well: the pidfd goes on watching, the next event or reconnect asks again.
            Err(error) => {
                tracing::debug!(slot = self.slot, generation = key.generation, %error, "cannot settle a doubt");
                return;
            }
        };
        self.gone(key, why).await;
    }

    async fn gone(&mut self, key: UseKey, why: &'static str) {
        let Some(buddy) = &self.buddy else { return };
        let lived = self.tools.pool.now().saturating_sub(buddy.registered_at);
        self.tools.pool.with(|state, now| state.buddy_gone(now, key, why));
        tracing::warn!(
            slot = self.slot, generation = buddy.generation, use_number = key.use_number, container = %buddy.id,
            lived_ms = u64::try_from(lived.as_millis()).unwrap_or(u64::MAX), why, "buddy gone"
        );
        metrics::counter!(metric::BUDDIES_DIED, "cause" => why.replace(' ', "_")).increment(1);
        if lived < self.tools.settings.borrow().backoff.healthy_after {
            self.tools.trust.shaken();
            self.tools.pool.with(|state, _| state.note_failure(self.slot, why));
        }
        // For the operator; the slot is out of the pool already.
        if let Ok(container) = self.tools.engine.inspect(buddy.id.as_str()).await
            && (container.exit_code.is_some_and(|code| code != 0) || !container.error.is_empty())
        {
            let words = format!("{why}: exit code {}, {}", container.exit_code.unwrap_or(-1), container.error);
            self.tools.pool.with(|state, _| state.note_error(self.slot, words.trim_end_matches([',', ' ']).to_owned()));
        }
    }
}

fn attach(engine: Arc<Paced>, id: ContainerId) -> ReusableBoxFuture<'static, WaitOutcome> {
    // An error (the engine is away, say) tells as little as a stream that was cut.
    ReusableBoxFuture::new(async move { engine.wait(&id).await.unwrap_or(WaitOutcome::Unknown) })
}
