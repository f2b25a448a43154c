//! Where blobs were seen: so that what a registry has is neither sent nor asked for again.
//!
//! A blob is noted when the registry has said that a repository has it: by a HEAD, a mount, or an upload. It is believed for `[images] fresh_for`, counted
//! from then, and never because nobody has complained since: not every registry looks at what a manifest names.
//!
//! What one identity was shown is not used for another: whether there is something to mount from would tell it what others have there.
//!
//! Whoever looks for a blob has its [turn](Seen::turn): who comes second finds what the first has brought, and need not bring it as well.
//!
//! It is a memory and no truth: a registry that is wiped, or collects its garbage, knows better, and whoever uses it must be ready to hear so. It is bounded:
//! what was of use the longest time ago is forgotten first. It deliberately outlives nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::image::cache::Whose;
use crate::image::store::Digest;
use crate::random::HashMap;

/// Blobs at most, over all registries; some hundred bytes each.
const MOST: usize = 16_384;
/// Repositories of one blob at most, the last ones: one is enough to mount from.
const MOST_PLACES: usize = 8;

/// Who was shown something, and by which registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Who {
    pub(super) host: Arc<str>,
    pub(super) whose: Whose,
}

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The repository had it.
    Here,
    /// Another one of the same registry had it.
    Elsewhere(String),
    /// Nothing.
    No,
}

pub(super) struct Seen {
    table: Mutex<Table>,
    good_for: Duration,
    most: usize,
}

type Key = (Who, Digest);

#[derive(Default)]
struct Table {
    blobs: HashMap<Key, Blob>,
    /// By when they were of use.
    ages: BTreeMap<u64, Key>,
    next: u64,
    /// Of those who look for a blob in a repository.
    turns: HashMap<(Key, String), Weak<Turn>>,
}

type Turn = tokio::sync::Mutex<()>;

struct Blob {
    /// The last one seen is the last.
    places: Vec<(String, Instant)>,
    age: u64,
}

impl Seen {
    pub(super) fn new(good_for: Duration) -> Self {
        Self { table: Mutex::default(), good_for, most: MOST }
    }

    /// Waits until nobody else, by the same identity, looks for this blob in this repository. To be held until it is noted, or given up. Cancel safe.
    pub(super) async fn turn(&self, who: &Who, digest: &Digest, repository: &str) -> OwnedMutexGuard<()> {
        let turn = self.table.lock().turn(((who.clone(), digest.clone()), repository.to_owned()));
        turn.lock_owned().await
    }

    pub(super) fn of(&self, who: &Who, digest: &Digest, repository: &str) -> Known {
        let mut table = self.table.lock();
        let key = (who.clone(), digest.clone());
        let now = Instant::now();
        let Some(blob) = table.blobs.get_mut(&key) else { return Known::No };
        blob.places.retain(|(_, at)| now.duration_since(*at) < self.good_for);
        let known = if blob.places.iter().any(|(place, _)| place == repository) {
            Known::Here
        } else {
            blob.places.last().map_or(Known::No, |(place, _)| Known::Elsewhere(place.clone()))
        };
        match known {
            Known::No => table.remove(&key),
            Known::Here | Known::Elsewhere(_) => table.touch(&key),
        }
        known
    }

    /// The registry has just said that the repository has it.
    pub(super) fn note(&self, who: &Who, digest: &Digest, repository: &str) {
        let mut table = self.table.lock();
        let key = (who.clone(), digest.clone());
        let blob = table.blobs.entry(key.clone()).or_insert_with(|| Blob { places: Vec::new(), age: 0 });
        blob.places.retain(|(place, _)| place != repository);
        if blob.places.len() >= MOST_PLACES {
            blob.places.remove(0);
        }
        blob.places.push((repository.to_owned(), Instant::now()));
        table.touch(&key);
        while table.blobs.len() > self.most
            && let Some((_, oldest)) = table.ages.pop_first()
        {
            table.blobs.remove(&oldest);
        }
    }

    /// The repository does not have it.
    pub(super) fn forget(&self, who: &Who, digest: &Digest, repository: &str) {
        let mut table = self.table.lock();
        table.forget(&(who.clone(), digest.clone()), repository);
    }

    /// Nobody knows what the repository has.
    pub(super) fn forget_repository(&self, who: &Who, repository: &str) {
        let mut table = self.table.lock();
        let keys: Vec<Key> = table.blobs.keys().filter(|(known, _)| known == who).cloned().collect();
        keys.iter().for_each(|key| table.forget(key, repository));
    }
}

impl Table {
    fn turn(&mut self, of: (Key, String)) -> Arc<Turn> {
        if let Some(turn) = self.turns.get(&of).and_then(Weak::upgrade) {
            return turn;
        }
        // Of those that are under way there are few.
        self.turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::default());
        self.turns.insert(of, Arc::downgrade(&turn));
        turn
    }

    fn touch(&mut self, key: &Key) {
        self.next += 1;
        if let Some(blob) = self.blobs.get_mut(key) {
            self.ages.remove(&blob.age);
            blob.age = self.next;
            self.ages.insert(self.next, key.clone());
        }
    }

    fn forget(&mut self, key: &Key, repository: &str) {
        let Some(blob) = self.blobs.get_mut(key) else { return };
        blob.places.retain(|(place, _)| place != repository);
        if blob.places.is_empty() {
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(blob) = self.blobs.remove(key) {
            self.ages.remove(&blob.age);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(host: &str) -> Who {
        Who { host: host.into(), whose: Whose::Daemons }
    }

    fn blob(number: usize) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_is_believed_for_a_while_and_by_nobody_else() {
        let seen = Seen::new(Duration::from_secs(10));
        let (one, a) = (who("one"), blob(0));
        assert_eq!(seen.of(&one, &a, "r"), Known::No);
        seen.note(&one, &a, "r");
        assert_eq!(seen.of(&one, &a, "r"), Known::Here);
        assert_eq!(seen.of(&one, &a, "s"), Known::Elsewhere("r".into()));
        assert_eq!(seen.of(&one, &blob(1), "r"), Known::No);
        assert_eq!(seen.of(&who("other"), &a, "r"), Known::No, "another registry");
        let credentials = crate::engine::Credentials { username: "ann".into(), secret: "word".into() };
        let identity = crate::image::cache::Identities::new().of(&credentials);
        let ann = Who { whose: Whose::Callers(identity), ..one.clone() };
        assert_eq!(seen.of(&ann, &a, "r"), Known::No, "another identity");

        tokio::time::advance(Duration::from_secs(6)).await;
        seen.note(&one, &a, "s");
        assert_eq!(seen.of(&one, &a, "t"), Known::Elsewhere("s".into()), "the last one");
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(seen.of(&one, &a, "r"), Known::Elsewhere("s".into()), "its time is up");
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(seen.of(&one, &a, "s"), Known::No);
        assert!(seen.table.lock().blobs.is_empty() && seen.table.lock().ages.is_empty());

        let never = Seen::new(Duration::ZERO);
        never.note(&one, &a, "r");
        assert_eq!(never.of(&one, &a, "r"), Known::No);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_asked_for_again() {
        let seen = Seen::new(Duration::from_secs(10));
        let one = who("one");
        for (digest, repository) in [(0, "r"), (0, "s"), (1, "r")] {
            seen.note(&one, &blob(digest), repository);
            seen.note(&who("other"), &blob(digest), repository);
        }
        seen.forget(&one, &blob(0), "r");
        assert_eq!(seen.of(&one, &blob(0), "r"), Known::Elsewhere("s".into()));
        assert_eq!(seen.of(&one, &blob(1), "r"), Known::Here);
        seen.forget_repository(&one, "r");
        assert_eq!(seen.of(&one, &blob(1), "r"), Known::No);
        assert_eq!(seen.of(&one, &blob(0), "s"), Known::Here);
        assert_eq!(seen.of(&who("other"), &blob(1), "r"), Known::Here);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_what_is_of_use_stays() {
        let seen = Seen { most: 3, ..Seen::new(Duration::from_secs(10)) };
        let one = who("one");
        (0..3).for_each(|number| seen.note(&one, &blob(number), "r"));
        assert_eq!(seen.of(&one, &blob(0), "r"), Known::Here);
        seen.note(&one, &blob(3), "r");
        let known: Vec<_> = (0..4).map(|number| seen.of(&one, &blob(number), "r")).collect();
        assert_eq!(known, [Known::Here, Known::No, Known::Here, Known::Here]);
        (0..100).for_each(|number| seen.note(&one, &blob(3), &number.to_string()));
        let table = seen.table.lock();
        assert_eq!((table.blobs.len(), table.ages.len()), (3, 3));
        assert_eq!(table.blobs[&(one, blob(3))].places.len(), MOST_PLACES);
    }
}
