//! The pool: the pure [`state::State`] behind one lock, with what it cannot have itself: a clock, waiters that sleep, a ring of events.
//!
//! What it promises: no lock is held across an await (I7); an Allocate that finds a slot is one short critical section and touches neither
//! engine nor kernel; a caller that goes away while it waits, or between grant and answer, leaves nothing behind; a watcher reads the ring at
//! its own pace and can only fall off its end, so a slow one never slows the pool. What it deliberately does not know: engines, nannies, gRPC.
//!
//! Reading order: [`types`](self) → [`state`] (the picture, and what nannies say) → `leases` (what holders say) → `joiners` (what containers do) →
//! [`target`] (sizing) → this file → `grants` (a lease on its way to its caller).

mod check;
mod deadlines;
mod doors;
mod ended;
mod events;
mod grants;
#[cfg(test)]
mod interleavings;
mod joiners;
mod journal;
mod leases;
mod list;
mod roll;
mod sizing;
pub mod state;
pub mod target;
mod tenants;
mod types;
mod views;
mod waiters;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

pub use events::{Backlog, Position};
pub use grants::Grant;
pub use joiners::{JoinerSeen, Untold};
pub use journal::{GRACE, Restored};
pub use leases::{Allocated, Held, LeaseIndex, Released};
pub use roll::Step;
pub use types::*;
pub use views::{SlotView, Usage};
pub use waiters::WaiterId;

use crate::ledger::Ledger;
use crate::random::HashMap;
use crate::sync::{Mutex, oneshot, sleep};
use crate::telemetry::metric;
use events::Ring;
use grants::Outcome;
use state::{Effect, Order, Rules, State};

/// What the pool needs from the world: the time since boot, and randomness for tokens. Closures, so that tests and simulations bring their own.
pub struct World {
    /// CLOCK_BOOTTIME.
    pub now: Box<dyn Fn() -> Moment + Send + Sync>,
    /// 128 bits nobody can guess.
    pub token: Box<dyn Fn() -> Token + Send + Sync>,
}

/// See the module.
pub struct Pool {
    inner: Mutex<Inner>,
    world: World,
    ledger: Option<Arc<Ledger>>,
    /// Something changed; for waits on a level, see [`Pool::changed`].
    changed: Notify,
    /// The ring has more events; see [`Pool::news`].
    news: Notify,
    /// The next tick is due earlier than was thought.
    timer: Notify,
}

struct Inner {
    state: State,
    nudges: Vec<Arc<Notify>>,
    waiters: HashMap<WaiterId, Vec<(u64, oneshot::Sender<Outcome>)>>,
    next_sender: u64,
    ring: Ring,
    /// When the timer means to wake.
    armed: Option<Moment>,
    /// Kept for its room.
    spare: Vec<Effect>,
    pool: Weak<Pool>,
}

/// What to do once the lock is free again: things that may block, or take the lock themselves.
#[derive(Default)]
struct Afterwards {
    undelivered: Vec<Outcome>,
    events: Vec<PoolEvent>,
    ended: Vec<(UseKey, &'static str)>,
}

impl Pool {
    /// An empty pool that fills nothing before [`State::resize`].
    #[must_use]
    pub fn new(rules: Rules, first_generation: u64, watch_backlog: u32, world: World) -> Arc<Self> {
        Self::recorded(rules, first_generation, watch_backlog, world, None)
    }

    /// The same with a ledger, in which all is recorded that a later daemon must know, with networks by these names.
    #[must_use]
    pub fn recorded(
        rules: Rules,
        first_generation: u64,
        watch_backlog: u32,
        world: World,
        ledger: Option<(Arc<Ledger>, Arc<[String]>)>,
    ) -> Arc<Self> {
        let mut state = State::new(rules, first_generation);
        let ledger = ledger.map(|(ledger, networks)| {
            state.record_with(networks);
            ledger
        });
        let first_position = Ring::first_position((world.now)());
        Arc::new_cyclic(|myself| Self {
            inner: Mutex::new(Inner {
                state,
                nudges: Vec::new(),
                waiters: HashMap::default(),
                next_sender: 0,
                ring: Ring::new(first_position, watch_backlog),
                armed: None,
                spare: Vec::new(),
                pool: Weak::clone(myself),
            }),
            world,
            ledger,
            changed: Notify::new(),
            news: Notify::new(),
            timer: Notify::new(),
        })
    }

    /// CLOCK_BOOTTIME, by which everything in the pool goes.
    #[must_use]
    pub fn now(&self) -> Moment {
        (self.world.now)()
    }

    /// The one way to change the state: does `act` under the lock, then all that follows from it.
    pub fn with<R>(&self, act: impl FnOnce(&mut State, Moment) -> R) -> R {
        self.locked(|inner, now| act(&mut inner.state, now))
    }

    fn locked<R>(&self, act: impl FnOnce(&mut Inner, Moment) -> R) -> R {
        let (answer, staged) = self.change(act);
        if staged && let Some(ledger) = &self.ledger {
            // A failure is the ledger's to tell and to mend: what is not written now goes before what is written next.
            let _told = ledger.flush();
        }
        answer
    }

    /// Answers as well whether there is something for the ledger to write.
    fn change<R>(&self, act: impl FnOnce(&mut Inner, Moment) -> R) -> (R, bool) {
        let mut afterwards = Afterwards::default();
        let mut inner = self.inner.lock();
        // Read under the lock, so that time in the state never runs backwards.
        let now = (self.world.now)();
        let answer = act(&mut inner, now);
        let staged = inner.perform(now, self.ledger.as_deref(), &mut afterwards);
        let rearm = inner.state.next_tick().is_some_and(|next| inner.armed.is_none_or(|armed| next < armed));
        drop(inner);
        if rearm {
            self.timer.notify_one();
        }
        // Costs nothing when nobody waits; not everything that a level may look at comes with an effect.
        self.changed.notify_waiters();
        if !afterwards.events.is_empty() {
            self.news.notify_waiters();
        }
        afterwards.run();
        (answer, staged)
    }

    /// Where all is recorded; `None`: nowhere.
    #[must_use]
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.ledger.as_ref()
    }

    /// Writes the ledger anew from what is known here. Blocks, and keeps everybody waiting meanwhile: for a repair that a person asked for.
    ///
    /// # Errors
    /// The ledger's; nothing is lost.
    pub fn rewrite_ledger(&self) -> std::io::Result<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let inner = self.inner.lock();
        ledger.rewrite(inner.state.told())
    }

    /// Reads the state.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.inner.lock().state)
    }

    /// The slot's nanny waits on this, then reads [`Pool::order`].
    #[must_use]
    pub fn nudge_of(&self, slot: SlotIndex) -> Arc<Notify> {
        Arc::clone(self.inner.lock().nudge(slot))
    }

    /// What the nanny of `slot` should do now.
    #[must_use]
    pub fn order(&self, slot: SlotIndex) -> Order {
        self.read(|state| state.order(slot))
    }

    /// Comes back at the next change of any slot; take it, then look, then await it: nothing is missed in between.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Comes back when the ring has more events: rarer than [`Pool::changed`], so that a watcher is not woken by each Allocate.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// Reads the state, and the position from which on the ring tells what happens after that.
    pub fn snapshot<R>(&self, look: impl FnOnce(&State) -> R) -> (R, Position) {
        let inner = self.inner.lock();
        (look(&inner.state), inner.ring.end())
    }

    /// Waits until `level` holds. Cancel safe.
    pub async fn until(&self, level: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed());
            changed.as_mut().enable();
            if self.read(&level) {
                return;
            }
            changed.await;
        }
    }

    /// What watchers of `position` have not seen yet.
    #[must_use]
    pub fn events_since(&self, position: Option<Position>) -> Backlog {
        self.inner.lock().ring.since(position)
    }

    /// Runs the pool's own timer until `stop`: ends leases, trims, forgets.
    pub async fn run_timer(&self, stop: CancellationToken) {
        loop {
            let next = {
                let mut inner = self.inner.lock();
                inner.armed = inner.state.next_tick();
                inner.armed
            };
            // A sleep does not count while the machine sleeps, the pool's clock does: so look once a second at least.
            let nap = next.map_or(Duration::MAX, |next| next.saturating_sub(self.now()).min(Duration::from_secs(1)));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.timer.notified() => {}
                () = sleep(nap) => self.with(|state, now| state.tick(now)),
            }
        }
    }
}

impl Inner {
    fn nudge(&mut self, slot: SlotIndex) -> &Arc<Notify> {
        let slot = slot as usize;
        while self.nudges.len() <= slot {
            self.nudges.push(Arc::new(Notify::new()));
        }
        &self.nudges[slot]
    }

    /// Carries out what the state asked for. Answers whether there is something for the ledger to write.
    fn perform(&mut self, now: Moment, ledger: Option<&Ledger>, afterwards: &mut Afterwards) -> bool {
        let mut effects = std::mem::take(&mut self.spare);
        let mut staged = false;
        loop {
            effects.extend(self.state.take_effects());
            // Under the lock, so that the records are in the order of the changes; and before a waiter is told, who writes what is staged by then.
            let journal = self.state.journal();
            if !journal.is_empty() {
                staged = true;
                if let Some(ledger) = ledger {
                    ledger.stage(journal);
                }
            }
            if effects.is_empty() {
                self.spare = effects;
                return staged;
            }
            for effect in effects.drain(..) {
                match effect {
                    Effect::Nudge(slot) => self.nudge(slot).notify_one(),
                    Effect::Granted(waiter, index) => self.deliver(now, waiter, index, afterwards),
                    Effect::Refused(waiter, denied) => {
                        for (_, sender) in self.waiters.remove(&waiter).unwrap_or_default() {
                            afterwards.undelivered.extend(sender.send(Outcome::Refused(denied.clone())).err());
                        }
                    }
                    Effect::Event(event) => {
                        self.ring.push(event.clone());
                        afterwards.events.push(event);
                    }
                    Effect::Ended(key, cause) => afterwards.ended.push((key, cause)),
                }
            }
        }
    }
}

impl Afterwards {
    /// Logs, counts, and drops what may take the lock: all that must not happen under it.
    fn run(self) {
        for (key, cause) in self.ended {
            tracing::debug!(slot = key.slot, generation = key.generation, use_number = key.use_number, lease_id = %key, cause, "lease ended");
            metrics::counter!(metric::LEASES_ENDED, "cause" => cause).increment(1);
        }
        for event in self.events {
            log_event(&event);
        }
        drop(self.undelivered);
    }
}

fn log_event(event: &PoolEvent) {
    match event {
        PoolEvent::Joined(note) => tracing::debug!(
            slot = note.key.slot, generation = note.key.generation, use_number = note.key.use_number, lease_id = %note.key,
            joiner = note.cause, "a container joined"
        ),
        PoolEvent::Lost(note) => tracing::warn!(
            slot = note.key.slot, generation = note.key.generation, use_number = note.key.use_number, lease_id = %note.key,
            owner = note.owner, cause = note.cause, "lease lost"
        ),
        PoolEvent::Ending(note) => tracing::info!(
            slot = note.key.slot, generation = note.key.generation, use_number = note.key.use_number, lease_id = %note.key,
            owner = note.owner, cause = note.cause, "lease ended by itself"
        ),
        PoolEvent::Cordon { cordoned, draining } => tracing::info!(cordoned, draining, "the doors were moved"),
    }
}
