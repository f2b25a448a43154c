//! Which images came by nspool, when each was last asked for, and for whom it is held.
//!
//! Who is told that an image is here is about to create a container from it. So the answer and the hold are one ([`Uses::hold`]): an image that was removed
//! since that caller began to look is no answer, and one that is held is not removed ([`Uses::claim`]). Between the two stands the moment in which the engine
//! is at it: who asks then waits for how it ends.
//!
//! Times are the wall's at the start, and from there on the machine's own: a clock that is set shortens no hold. What was noted by a clock that was ahead counts as now.
//!
//! Bounded: of more than [`MOST`] images those that were asked for the longest ago are forgotten. It deliberately knows no engine and no file.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::engine::ImageId;
use crate::image::reference;
use crate::random::HashMap;

/// Images that are remembered.
pub const MOST: usize = 4096;
/// Names of one image by which it came.
const MOST_NAMES: usize = 16;
/// Removals that are remembered, for those who began to look before them.
const MOST_GONE: usize = 1024;

/// What is known of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Nspool brought it: it was not in the engine before.
    pub came: bool,
    /// Those by which it was asked for.
    pub names: Vec<String>,
    /// When that was last.
    pub asked: SystemTime,
    /// It is not removed before that.
    pub held_until: SystemTime,
}

impl Use {
    /// The same image, as others know it.
    fn merge(&mut self, other: &Self) {
        self.came |= other.came;
        self.asked = self.asked.max(other.asked);
        self.held_until = self.held_until.max(other.held_until);
        for name in &other.names {
            self.name(name);
        }
    }

    fn name(&mut self, name: &str) {
        if self.names.len() < MOST_NAMES && !self.names.iter().any(|known| reference::is_same(known, name)) {
            self.names.push(name.to_owned());
        }
    }

    /// Whether it was asked for by that name.
    #[must_use]
    pub fn knows(&self, name: &str) -> bool {
        self.names.iter().any(|known| reference::is_same(known, name))
    }
}

/// By id.
pub type Known = HashMap<ImageId, Use>;

/// How many removals there had been when somebody began to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Uses(Arc<Inner>);

struct Inner {
    wall: SystemTime,
    began: Instant,
    table: Mutex<Table>,
    /// A removal came to its end.
    settled: Notify,
    /// Something new is in the engine.
    brought: Notify,
    /// Something is to be written down.
    changed: Notify,
}

struct Table {
    hold: Duration,
    known: Known,
    /// Being removed.
    going: HashMap<ImageId, ()>,
    /// Removed, with the number of the removal.
    gone: HashMap<ImageId, u64>,
    removals: u64,
}

impl Uses {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(hold: Duration) -> Self {
        let table = Table { hold, known: Known::default(), going: HashMap::default(), gone: HashMap::default(), removals: 0 };
        let (settled, brought, changed) = (Notify::new(), Notify::new(), Notify::new());
        Self(Arc::new(Inner { wall: SystemTime::now(), began: Instant::now(), table: Mutex::new(table), settled, brought, changed }))
    }

    /// The wall's time, as it is reckoned here.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.0.wall + self.0.began.elapsed()
    }

    /// The same, at the start.
    #[must_use]
    pub fn began(&self) -> SystemTime {
        self.0.wall
    }

    /// How long an answer holds.
    #[must_use]
    pub fn holds_for(&self) -> Duration {
        self.0.table.lock().hold
    }

    /// Answers from now on hold for that long.
    pub fn set_hold(&self, hold: Duration) {
        self.0.table.lock().hold = hold;
    }

    /// To be asked before the engine is.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen(self.0.table.lock().removals)
    }

    /// Somebody is told that the image is here: it is held. `false`: it was removed since `seen`, so it may not be here. `came`: the engine did not have it before.
    /// Cancel safe.
    pub async fn hold(&self, id: &ImageId, name: &str, came: bool, seen: Seen) -> bool {
        loop {
            let settled = self.0.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            {
                let mut table = self.0.table.lock();
                if !table.going.contains_key(id) {
                    if table.gone.get(id).is_some_and(|removal| *removal > seen.0) {
                        return false;
                    }
                    table.note(id, name, came, self.now());
                    break;
                }
            }
            settled.await;
        }
        self.0.changed.notify_one();
        if came {
            self.0.brought.notify_one();
        }
        true
    }

    /// The image is about to be removed; until the [`Claim`] is dropped nobody is told that it is here. `None`: it is held.
    #[must_use]
    pub fn claim(&self, id: &ImageId) -> Option<Claim> {
        let now = self.now();
        let mut table = self.0.table.lock();
        if table.known.get(id).is_some_and(|known| known.held_until > now) || table.going.insert(id.clone(), ()).is_some() {
            return None;
        }
        Some(Claim { uses: self.clone(), id: id.clone(), is_gone: true })
    }

    /// What is known of all.
    #[must_use]
    pub fn known(&self) -> Known {
        self.0.table.lock().known.clone()
    }

    /// Of one.
    #[must_use]
    pub fn of(&self, id: &str) -> Option<Use> {
        self.0.table.lock().known.get(&ImageId::from(id)).cloned()
    }

    /// What was known before, by this daemon's predecessor. What has been heard since stands.
    pub fn recall(&self, before: Known) {
        let now = self.now();
        let mut table = self.0.table.lock();
        let latest = now + table.hold;
        for (id, mut used) in before {
            (used.asked, used.held_until) = (used.asked.min(now), used.held_until.min(latest));
            table.known.entry(id).and_modify(|known| known.merge(&used)).or_insert(used);
        }
        table.forget_the_oldest();
    }

    /// Forgets images that are not in the engine, but for those that somebody asked for since `listed`.
    pub fn keep_only(&self, is_there: impl Fn(&ImageId) -> bool, listed: SystemTime) {
        let mut table = self.0.table.lock();
        let before = table.known.len();
        table.known.retain(|id, used| is_there(id) || used.asked >= listed);
        if table.known.len() != before {
            self.0.changed.notify_one();
        }
    }

    /// Comes back when something new is in the engine. Cancel safe.
    pub async fn brought(&self) {
        self.0.brought.notified().await;
    }

    /// Comes back when something is to be written down. Cancel safe.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

/// What another daemon on the same engine knows of the same images.
pub fn merge(known: &mut Known, others: Known) {
    for (id, used) in others {
        known.entry(id).and_modify(|known| known.merge(&used)).or_insert(used);
    }
}

/// An image that is being removed. Dropped without a word, it counts as removed: nobody is told that it is here before the engine was asked.
#[must_use = "dropping it says that the image is gone"]
pub struct Claim {
    uses: Uses,
    id: ImageId,
    is_gone: bool,
}

impl Claim {
    /// The engine keeps it.
    pub fn stays(mut self) {
        self.is_gone = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = self.uses.0.table.lock();
        table.going.remove(&self.id);
        if self.is_gone {
            table.removed(&self.id);
        }
        drop(table);
        self.uses.0.settled.notify_waiters();
        self.uses.0.changed.notify_one();
    }
}

impl Table {
    fn note(&mut self, id: &ImageId, name: &str, came: bool, now: SystemTime) {
        let used = self.known.entry(id.clone()).or_insert(Use { came: false, names: Vec::new(), asked: now, held_until: now });
        used.came |= came;
        used.name(name);
        used.asked = now;
        used.held_until = used.held_until.max(now + self.hold);
        self.forget_the_oldest();
    }

    fn removed(&mut self, id: &ImageId) {
        self.known.remove(id);
        self.removals += 1;
        self.gone.insert(id.clone(), self.removals);
        if self.gone.len() > MOST_GONE
            && let Some(oldest) = self.gone.iter().min_by_key(|(_, removal)| **removal).map(|(id, _)| id.clone())
        {
            self.gone.remove(&oldest);
        }
    }

    fn forget_the_oldest(&mut self) {
        while self.known.len() > MOST {
            let oldest = self.known.iter().min_by_key(|(_, used)| used.asked).map(|(id, _)| id.clone());
            oldest.and_then(|oldest| self.known.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests;
