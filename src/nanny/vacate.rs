//! The way out of a use: the fence, the proof that nobody is left, and the removal.
//!
//! The fence is the buddy's rename: from then on the lease's name no longer resolves, and a container created to join by it cannot start. One
//! created *before* the rename holds the id and still can: those are listed after the fence. An engine that does not answer, or answers without
//! saying anything, is asked again until it does: unknown is never empty (I9).

use std::sync::Arc;
use std::time::Duration;

use super::Nanny;
use super::looks::Inside;
use super::minder::Detached;
use super::shelf::ShelfError;
use crate::engine::{ContainerId, Engine, EngineError, ErrorClass};
use crate::pool::UseKey;
use crate::pool::state::{Afterwards, Order};

/// Between two looks into a quarantined namespace, if nothing tells earlier.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between two looks for a configured joiner to go away.
const SETTLE_STEP: Duration = Duration::from_millis(50);
/// How long a process may outlive its forced removal before the engine is asked again.
const EXIT_AFTER_REMOVAL: Duration = Duration::from_secs(5);

/// What the search for joiners came to.
pub(super) enum Left {
    Nobody,
    /// Live joiners.
    Somebody(Vec<String>),
    /// Only configured ones, and they stay.
    Configured(Vec<String>),
    /// The order changed meanwhile.
    NewOrder,
}

impl Nanny {
    /// After a lease: nobody may follow by the old name, nobody may be left.
    pub(super) async fn vacate(&mut self, key: UseKey) {
        let order = Order::Vacate(key);
        match self.fence(key, &order).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                return self.spoiled(key, format!("the fence could not be put up: {error}"));
            }
            None => return,
        }
        let settle = self.tools.settings.borrow().settle;
        match self.who_is_left(&order, settle).await {
            Left::Nobody => self.vacated(key).await,
            Left::Somebody(who) => self.occupied(key, who),
            Left::Configured(who) => self.spoiled(key, format!("{} could still start", who.join(", "))),
            Left::NewOrder => {}
        }
    }

    async fn vacated(&mut self, key: UseKey) {
        let (network, tools) = (self.network(), Arc::clone(&self.tools));
        let Some(buddy) = &mut self.buddy else {
            // Only a bug gets here; the slot must not stay as it is.
            return self.spoiled(key, "its nanny has no buddy".to_owned());
        };
        // It is ready then as it is.
        if tools.breed.networks[network].afterwards == Afterwards::Reuse
            && let Err(error) = tools.publish(buddy).await
        {
            return self.spoiled(key, error.to_string());
        }
        buddy.proven_empty = Some(key.use_number);
        self.retries.reset();
        let next = self.tools.breed.namespace(network, buddy);
        self.tools.pool.with(|state, now| state.vacated(now, key, Arc::new(next)));
    }

    /// The use cannot end in another one: the buddy goes.
    pub(super) fn spoiled(&mut self, key: UseKey, why: String) {
        if let Some(buddy) = &mut self.buddy {
            // Somebody may have come in since the look: the way out looks again.
            buddy.proven_empty = None;
        }
        tracing::warn!(slot = self.slot, generation = key.generation, use_number = key.use_number, why, "the buddy serves no other lease");
        self.tools.pool.with(|state, now| state.spoiled(now, key, why));
    }

    pub(super) fn occupied(&self, key: UseKey, who: Vec<String>) {
        tracing::warn!(
            slot = self.slot, generation = key.generation, use_number = key.use_number, lease_id = %key,
            joiners = who.join(", "), "somebody is still inside after the lease"
        );
        self.tools.pool.with(|state, now| state.occupied(now, key, who));
    }

    /// Somebody is inside: looks again until nobody is, or until the slot has waited long enough.
    pub(super) async fn await_empty(&mut self, key: UseKey) {
        let since = self.tools.pool.read(|state| state.slot_view(self.slot).since);
        let Some(buddy) = &self.buddy else { return self.nap(LOOK_AGAIN).await };
        let Ok(inside) = self.tools.looks.inside(&buddy.id, Some(&*buddy.held)).await else {
            return self.nap(LOOK_AGAIN).await;
        };
        let who = if buddy.depended_on { inside.all() } else { inside.live };
        if who.is_empty() {
            return self.vacated(key).await;
        }
        self.tools.pool.with(|state, now| state.occupied(now, key, who));
        let stopping = self.tools.pool.read(|state| state.is_stopping());
        let overdue = self.tools.pool.now().saturating_sub(since) >= self.tools.settings.borrow().detach_after;
        if overdue && !stopping && self.detach(key) {
            return;
        }
        self.nap(LOOK_AGAIN).await;
    }

    fn detach(&mut self, key: UseKey) -> bool {
        // The place in the queue first: a buddy must not get lost between the slot and the minder.
        let Ok(place) = self.tools.detached.try_reserve() else { return false };
        if !self.tools.pool.with(|state, now| state.detach(now, key)) {
            return false;
        }
        if let Some(buddy) = self.buddy.take() {
            self.tools.doubts.forget(&buddy.id);
            self.tools.heard.forget(&buddy.id);
            self.tools.present.forget(&buddy.id);
            tracing::warn!(slot = self.slot, generation = buddy.generation, container = %buddy.id, "buddy detached: somebody stays inside");
            place.send(Detached {
                id: buddy.id,
                name: buddy.name,
                slot: self.slot,
                generation: buddy.generation,
                held: Some(buddy.held),
                link: buddy.link,
                since: self.tools.pool.now(),
                joiners: Vec::new(),
                keep_until: Duration::ZERO,
            });
        }
        true
    }

    /// The way out: nobody may be inside, then it is removed.
    pub(super) async fn retire(&mut self, key: UseKey) {
        let Some(buddy) = &self.buddy else {
            return self.tools.pool.with(|state, now| state.removed(now, key));
        };
        if buddy.proven_empty != Some(key.use_number) {
            let order = Order::Retire(key);
            // A buddy that cannot be renamed can still be looked into and removed; what failed is retried by the look or the removal.
            if self.fence(key, &order).await.is_none() {
                return;
            }
            match self.who_is_left(&order, Duration::ZERO).await {
                // What is only configured finds nothing to join once the buddy is gone.
                Left::Nobody | Left::Configured(_) => {}
                Left::Somebody(who) => return self.occupied(key, who),
                Left::NewOrder => return,
            }
        }
        self.remove(key).await;
    }

    async fn remove(&mut self, key: UseKey) {
        let Some(buddy) = &self.buddy else { return };
        let removed = self.tools.engine.remove(&buddy.id).await;
        let error = match removed {
            // The engine's word is not proof; the pidfd's is.
            Ok(()) => match tokio::time::timeout(EXIT_AFTER_REMOVAL, buddy.held.exited()).await {
                Ok(()) => {
                    self.tools.doubts.forget(&buddy.id);
                    self.tools.heard.forget(&buddy.id);
                    self.tools.present.forget(&buddy.id);
                    tracing::info!(slot = self.slot, generation = buddy.generation, container = %buddy.id, "buddy removed");
                    if let Err(error) = self.withdraw().await {
                        // Nobody is in there, and nobody is told of it; the next start clears it away.
                        tracing::warn!(slot = self.slot, %error, "a folder stays that its namespaces were joined by");
                    }
                    if let Some(link) = self.buddy.take().and_then(|buddy| buddy.link) {
                        self.tools.networks.leave(link, self.tools.pool.now()).await;
                    }
                    self.retries.reset();
                    return self.tools.pool.with(|state, now| state.removed(now, key));
                }
                Err(_) => format!("the engine says removed, process {} lives on", buddy.held.pid()),
            },
            Err(error) if error.class == ErrorClass::HasDependents => return self.wait_for_dependents(key).await,
            Err(error) => error.to_string(),
        };
        tracing::warn!(slot = self.slot, generation = buddy.generation, container = %buddy.id, error, "buddy not removed yet");
        self.tools.pool.with(|state, _| state.note_error(self.slot, error));
        // Somebody may have come in since the look: the next try looks again.
        if let Some(buddy) = &mut self.buddy {
            buddy.proven_empty = None;
        }
        self.retry_later(&Order::Retire(key)).await;
    }

    /// Nobody is inside, but the engine keeps it for containers that could still start. They are not ours to remove: the slot waits for them as for
    /// somebody inside.
    async fn wait_for_dependents(&mut self, key: UseKey) {
        let Some(buddy) = &mut self.buddy else { return };
        (buddy.depended_on, buddy.proven_empty) = (true, None);
        match self.tools.looks.inside(&buddy.id, Some(&*buddy.held)).await {
            Ok(inside) if !inside.is_empty() => self.occupied(key, inside.all()),
            // Gone since, or not to be told: the next try says.
            Ok(_) | Err(_) => drop(self.retry_later(&Order::Retire(key)).await),
        }
    }

    /// Gives the buddy the name of its next use. `None` when the order changed meanwhile; an error when it will not work.
    async fn fence(&mut self, key: UseKey, order: &Order) -> Option<Result<(), EngineError>> {
        let random = self.dice();
        let Some(buddy) = &self.buddy else { return Some(Ok(())) };
        if buddy.fenced == Some(key.use_number) {
            return Some(Ok(()));
        }
        let id = buddy.id.clone();
        let name = self.tools.breed.name(self.slot, buddy.generation, key.use_number + 1, random);
        if let Some(buddy) = self.buddy.as_mut().filter(|buddy| buddy.snapshot.is_some()) {
            buddy.heard = Some(self.tools.heard.expect(&id, &name));
        }
        loop {
            let renamed = match self.rename(&id, &name).await {
                // Without a buddy nothing resolves any more.
                Err(error) if error.class == ErrorClass::NotFound => Ok(false),
                renamed => renamed.map(|()| true),
            };
            let error = match renamed {
                Ok(renamed) => match self.withdraw().await {
                    Ok(()) => {
                        if let Some(buddy) = self.buddy.as_mut().filter(|_| renamed) {
                            buddy.fenced = Some(key.use_number);
                            buddy.name = name;
                        }
                        return Some(Ok(()));
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match error.class {
                ErrorClass::NotFound => return Some(Ok(())),
                ErrorClass::Unknown | ErrorClass::Away => {}
                ErrorClass::ImageMissing
                | ErrorClass::NetworkMissing
                | ErrorClass::NameTaken
                | ErrorClass::HasDependents
                | ErrorClass::NoAddresses
                | ErrorClass::DiskFull
                | ErrorClass::RegistryDenied
                | ErrorClass::RegistryUnknown
                | ErrorClass::RegistryBusy { .. }
                | ErrorClass::NotAllowed
                | ErrorClass::Refused => return Some(Err(error)),
            }
            self.tools.pool.with(|state, _| state.note_error(self.slot, error.to_string()));
            if !self.retry_later(order).await {
                return None;
            }
        }
    }

    /// Nobody joins it by path any more. It is not known whether that is so after an error.
    async fn withdraw(&mut self) -> Result<(), EngineError> {
        let Some(buddy) = &mut self.buddy else { return Ok(()) };
        let withdrawn = self.tools.withdraw(buddy).await;
        withdrawn.map_err(|error: ShelfError| EngineError {
            operation: "withdraw",
            class: ErrorClass::Unknown,
            subject: buddy.name.clone(),
            message: error.to_string(),
            status: None,
        })
    }

    /// A rename that failed may have been done, now or by an earlier try: the engine refuses to give a container the name it has.
    async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), EngineError> {
        let Err(error) = self.tools.engine.rename(id, name).await else { return Ok(()) };
        match self.tools.engine.inspect(id.as_str()).await {
            Ok(container) if container.name == name => Ok(()),
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// Looks until it can be told who is left; configured joiners have `settle` to go away or to turn into live ones.
    pub(super) async fn who_is_left(&mut self, order: &Order, settle: Duration) -> Left {
        let deadline = tokio::time::Instant::now() + settle;
        loop {
            let Some(buddy) = &self.buddy else { return Left::Nobody };
            match self.tools.looks.inside(&buddy.id, Some(&*buddy.held)).await {
                Ok(Inside { live, .. }) if !live.is_empty() => return Left::Somebody(live),
                Ok(inside) if inside.is_empty() => return Left::Nobody,
                Ok(inside) if tokio::time::Instant::now() >= deadline => return Left::Configured(inside.configured),
                Ok(_) => tokio::time::sleep(SETTLE_STEP).await,
                Err(error) => {
                    let words = format!("cannot tell who is inside: {error}");
                    self.tools.pool.with(|state, _| state.note_error(self.slot, words));
                    if !self.retry_later(order).await {
                        return Left::NewOrder;
                    }
                }
            }
        }
    }

    /// Waits before an engine call is tried again. `false` when the order is another one now.
    pub(super) async fn retry_later(&mut self, order: &Order) -> bool {
        let wait = self.retries.next_wait();
        self.wait_with(order, wait).await
    }

    /// Until a nudge or a doubt, or for so long.
    async fn nap(&self, most: Duration) {
        let doubt = async {
            match &self.buddy {
                Some(buddy) => buddy.doubt.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.nudge.notified() => {}
            () = doubt => {}
            () = tokio::time::sleep(most) => {}
        }
    }
}
