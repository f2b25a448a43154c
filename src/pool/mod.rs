//! The pool: the pure [`state::State`] behind one lock, with what it cannot have itself: a clock, waiters that sleep, a ring of events.
//!
//! What it promises: no lock is held across an await (I7); an Allocate that finds a slot is one short critical section and touches neither
//! engine nor kernel; a caller that goes away while it waits, or between grant and answer, leaves nothing behind; a watcher reads the ring at
//! its own pace and can only fall off its end, so a slow one never slows the pool. What it deliberately does not know: engines, nannies, gRPC.
//!
//! Reading order: [`types`](self) → [`state`] (the picture, and what nannies say) → `leases` (what holders say) → `joiners` (what containers do) →
//! [`target`] (sizing) → this file.

mod check;
mod deadlines;
mod doors;
mod ended;
mod events;
mod joiners;
mod journal;
mod leases;
mod list;
mod sizing;
pub mod state;
pub mod target;
mod types;
mod views;
mod waiters;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified, oneshot};
use tokio_util::sync::CancellationToken;

pub use events::{Backlog, Position};
pub use joiners::JoinerSeen;
pub use journal::{GRACE, Restored};
pub use leases::{Allocated, LeaseIndex, Released};
pub use types::*;
pub use views::{SlotView, Usage};
pub use waiters::WaiterId;

use crate::ledger::Ledger;
use crate::random::HashMap;
use crate::telemetry::metric;
use events::Ring;
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

enum Outcome {
    Granted(Arc<Delivery>),
    Refused(Denied),
}

/// A lease on its way to its caller; dropped before it arrived, the slot is free again.
struct Delivery {
    pool: Weak<Pool>,
    lease: LeaseView,
    index: LeaseIndex,
    arrived: AtomicBool,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.arrived.load(Ordering::Acquire)
            && let Some(pool) = self.pool.upgrade()
        {
            pool.with(|state, now| state.undo(now, self.index, self.lease.token));
        }
    }
}

/// What an Allocate got.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The lease.
    pub lease: LeaseView,
    /// An earlier call with this request id got it.
    pub repeated: bool,
    /// It was not there at once.
    pub waited: bool,
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
        inner.perform(now, &mut afterwards);
        let journal = inner.state.journal();
        let staged = !journal.is_empty();
        if staged && let Some(ledger) = &self.ledger {
            // Under the lock, so that the records are in the order of the changes.
            ledger.stage(journal);
        }
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

    /// I8: what was recorded so far is written. A caller that is told of a lease passes here first.
    fn recorded_for_good(&self) -> Result<(), Denied> {
        match &self.ledger {
            Some(ledger) => ledger.flush_grant().map_err(|error| Denied::NotRecorded { why: error.to_string() }),
            None => Ok(()),
        }
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

    /// Takes a slot, waiting up to `wait` for one. Cancel safe: dropped before it returned, nothing was allocated.
    ///
    /// # Errors
    /// [`Denied`]; after a wait in vain the reason that holds then.
    pub async fn allocate(&self, request: Request, wait: Duration) -> Result<Grant, Denied> {
        let request = Arc::new(request);
        let mut waiting = loop {
            match self.try_allocate(Arc::clone(&request), (self.world.token)(), !wait.is_zero())? {
                ControlFlow::Break(Some(grant)) => return Ok(grant),
                // Its buddy died before it was recorded: another one.
                ControlFlow::Break(None) => {}
                ControlFlow::Continue(waiting) => break waiting,
            }
        };
        let outcome = match tokio::time::timeout(wait, &mut waiting.receiver).await {
            Ok(outcome) => outcome.ok(),
            // It may have come while the time ran out.
            Err(_) => waiting.receiver.try_recv().ok(),
        };
        match outcome {
            Some(Outcome::Granted(delivery)) => {
                // Dropped on the way out of an error, it is undone.
                self.recorded_for_good()?;
                delivery.arrived.store(true, Ordering::Release);
                self.with(|state, _| state.delivered(delivery.index, delivery.lease.token));
                Ok(Grant { lease: delivery.lease.clone(), repeated: false, waited: true })
            }
            Some(Outcome::Refused(denied)) => Err(denied),
            None => Err(waiting.leave().unwrap_or(Denied::PoolEmpty { retry_after: None })),
        }
    }

    /// One critical section: a lease, a no, or a place in the queue. `None`: a lease that was lost before it was recorded, and is taken back.
    fn try_allocate(&self, request: Arc<Request>, token: Token, may_wait: bool) -> Result<ControlFlow<Option<Grant>, Waiting>, Denied> {
        let (outcome, _) = self.change(|inner, now| {
            Ok(match inner.state.allocate(now, request, token, may_wait)? {
                Allocated::Granted(index) => ControlFlow::Break((index, false, inner.state.view(index))),
                Allocated::Repeated(index) => ControlFlow::Break((index, true, inner.state.view(index))),
                Allocated::Waiting(waiter) => ControlFlow::Continue(inner.listen(waiter)),
            })
        });
        let (index, repeated, lease) = match outcome? {
            ControlFlow::Break(lease) => lease,
            ControlFlow::Continue(waiting) => return Ok(ControlFlow::Continue(waiting)),
        };
        self.recorded_for_good().inspect_err(|_| self.with(|state, now| state.undo(now, index, lease.token)))?;
        if self.ledger.is_some() && !repeated {
            // A retry may have been told of it meanwhile; then it stands.
            let stands = self.with(|state, now| {
                let lost = state.lease(lease.token).is_ok_and(|lease| lease.lost.is_some());
                if lost {
                    state.undo(now, index, lease.token);
                }
                !lost && state.delivered(index, lease.token)
            });
            if !stands {
                return Ok(ControlFlow::Break(None));
            }
        }
        Ok(ControlFlow::Break(Some(Grant { lease, repeated, waited: false })))
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
                () = tokio::time::sleep(nap) => self.with(|state, now| state.tick(now)),
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

    fn listen(&mut self, waiter: WaiterId) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        let number = self.next_sender;
        self.next_sender += 1;
        self.waiters.entry(waiter).or_default().push((number, sender));
        Waiting { pool: Weak::clone(&self.pool), waiter, number, receiver }
    }

    /// Carries out what the state asked for.
    fn perform(&mut self, now: Moment, afterwards: &mut Afterwards) {
        let mut effects = std::mem::take(&mut self.spare);
        loop {
            effects.extend(self.state.take_effects());
            if effects.is_empty() {
                self.spare = effects;
                return;
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

    fn deliver(&mut self, now: Moment, waiter: WaiterId, index: LeaseIndex, afterwards: &mut Afterwards) {
        let lease = self.state.view(index);
        let senders = self.waiters.remove(&waiter).unwrap_or_default();
        if senders.is_empty() {
            self.state.undo(now, index, lease.token);
            return;
        }
        let delivery = Arc::new(Delivery { pool: Weak::clone(&self.pool), lease, index, arrived: AtomicBool::new(false) });
        for (_, sender) in senders {
            afterwards.undelivered.extend(sender.send(Outcome::Granted(Arc::clone(&delivery))).err());
        }
        // Not dropped here: its drop takes the lock.
        afterwards.undelivered.push(Outcome::Granted(delivery));
    }
}

/// A caller in the queue; dropped, it has left.
struct Waiting {
    pool: Weak<Pool>,
    waiter: WaiterId,
    number: u64,
    receiver: oneshot::Receiver<Outcome>,
}

impl Waiting {
    /// Leaves the queue, and takes the waiter with it if no retry of the same request waits along. Answers why it got nothing.
    fn leave(&self) -> Option<Denied> {
        self.pool.upgrade()?.locked(|inner, now| {
            let senders = inner.waiters.get_mut(&self.waiter)?;
            senders.retain(|(number, _)| *number != self.number);
            if senders.is_empty() {
                inner.waiters.remove(&self.waiter);
                inner.state.cancel_wait(now, self.waiter)
            } else {
                Some(inner.state.nothing_ready())
            }
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave();
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
