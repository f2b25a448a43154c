//! A lease on its way to its caller: at once, after a wait, again for a retry, or for whoever resumes.
//!
//! Until its caller is told, a lease is only lent: it is recorded first (I8), and looked at again after that. A caller that has gone, a record
//! that cannot be written, a buddy that has died meanwhile take it back ([`State::undo`](super::state::State::undo)), and the slot goes to
//! the next. What this deliberately does not know: what ends a lease that was told.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Afterwards, Allocated, Denied, Inner, LeaseIndex, LeaseView, Moment, Pool, Request, Token, WaiterId};
use crate::sync::{oneshot, timeout};

/// What comes to a caller in the queue.
pub(super) enum Outcome {
    Granted(Arc<Delivery>),
    Refused(Denied),
}

/// A lease on its way to its caller; dropped before it arrived, the slot is free again.
pub(super) struct Delivery {
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

impl Pool {
    /// Takes a slot, waiting up to `wait` for one. Cancel safe: dropped before it returned, nothing was allocated.
    ///
    /// # Errors
    /// [`Denied`]; after a wait in vain the reason that holds then.
    pub async fn allocate(&self, request: Request, wait: Duration) -> Result<Grant, Denied> {
        let request = Arc::new(request);
        let (mut left, mut waited) = (wait, false);
        loop {
            let found = match self.try_allocate(Arc::clone(&request), (self.world.token)(), !left.is_zero())? {
                ControlFlow::Break(found) => found,
                ControlFlow::Continue(waiting) => {
                    let began = self.now();
                    let found = self.wait_for_one(waiting, left).await?;
                    left = left.saturating_sub(self.now().saturating_sub(began));
                    waited = true;
                    found
                }
            };
            if let Some(grant) = found {
                return Ok(Grant { waited, ..grant });
            }
            // Its buddy died before it was recorded: another one.
        }
    }

    /// One critical section: a lease, a no, or a place in the queue. `None`: see [`Pool::stands`].
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
        let stands = self.ledger.is_none() || self.stands(index, lease.token);
        Ok(ControlFlow::Break(stands.then_some(Grant { lease, repeated, waited: false })))
    }

    /// What comes to a caller in the queue. `None`: see [`Pool::stands`].
    async fn wait_for_one(&self, mut waiting: Waiting, wait: Duration) -> Result<Option<Grant>, Denied> {
        let outcome = match timeout(wait, &mut waiting.receiver).await {
            Ok(outcome) => outcome.ok(),
            // It may have come while the time ran out.
            Err(_) => waiting.receiver.try_recv().ok(),
        };
        match outcome {
            Some(Outcome::Granted(delivery)) => {
                // Dropped on the way out of an error, it is undone.
                self.recorded_for_good()?;
                let stands = self.stands(delivery.index, delivery.lease.token);
                delivery.arrived.store(stands, Ordering::Release);
                Ok(stands.then(|| Grant { lease: delivery.lease.clone(), repeated: false, waited: true }))
            }
            Some(Outcome::Refused(denied)) => Err(denied),
            None => Err(waiting.leave().unwrap_or(Denied::PoolEmpty { retry_after: None })),
        }
    }

    /// Whether a caller can be told of its lease, which is recorded: from then on only an end ends it. If not, it was lost before anybody was told
    /// and is taken back; or another call for the same request could not record it, and has taken it back.
    fn stands(&self, index: LeaseIndex, token: Token) -> bool {
        self.with(|state, now| {
            let lost = state.lease(token).is_ok_and(|lease| lease.lost.is_some());
            if lost {
                state.undo(now, index, token);
            }
            !lost && state.delivered(index, token)
        })
    }

    /// All leases of a holder, who is told of them now. One that is on its way to its first caller at this moment is told as well if it can be
    /// recorded.
    #[must_use]
    pub fn resume(&self, uid: u32, owner: &str) -> Vec<LeaseView> {
        let mut held = self.read(|state| state.held_by(uid, owner));
        if held.iter().any(|held| !held.told) {
            let recorded = self.recorded_for_good().is_ok();
            self.with(|state, _| held.retain(|held| held.told || recorded && state.delivered(held.index, held.lease.token)));
        }
        held.into_iter().map(|held| held.lease).collect()
    }

    /// I8: what was recorded so far is written. A caller that is told of a lease passes here first.
    fn recorded_for_good(&self) -> Result<(), Denied> {
        match &self.ledger {
            Some(ledger) => ledger.flush_grant().map_err(|error| Denied::NotRecorded { why: error.to_string() }),
            None => Ok(()),
        }
    }
}

impl Inner {
    fn listen(&mut self, waiter: WaiterId) -> Waiting {
        let (sender, receiver) = oneshot::channel();
        let number = self.next_sender;
        self.next_sender += 1;
        self.waiters.entry(waiter).or_default().push((number, sender));
        Waiting { pool: Weak::clone(&self.pool), waiter, number, receiver }
    }

    pub(super) fn deliver(&mut self, now: Moment, waiter: WaiterId, index: LeaseIndex, afterwards: &mut Afterwards) {
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
