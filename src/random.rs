//! Where everything random comes from: tokens, identities, jitter, and the order of hash tables.
//!
//! What it promises: secrets are the kernel's randomness, and nobody outside can make keys that meet in one place of a table. Only on a thread
//! that was given a seed ([`begin`]) all of it follows from that, so that a simulated life (`tests/lives/`) is the same each time it is told.
//! What can go wrong: a kernel that has no randomness to give, which ends the daemon at its start, as no token would be a secret.

use std::cell::RefCell;
use std::hash::{BuildHasher, DefaultHasher, RandomState};

thread_local! {
    static STORY: RefCell<Option<fastrand::Rng>> = const { RefCell::new(None) };
}

/// From here on, on this thread, nothing is left to chance, and nothing is secret: for simulations.
pub fn begin(seed: u64) {
    STORY.with_borrow_mut(|story| *story = Some(fastrand::Rng::with_seed(seed)));
}

/// Fills it with the kernel's randomness.
///
/// # Panics
/// When the kernel has none to give.
pub fn fill(bytes: &mut [u8]) {
    STORY.with_borrow_mut(|story| match story {
        Some(story) => story.fill(bytes),
        None => getrandom::fill(bytes).expect("the kernel gives random bytes"),
    });
}

/// Dice for jitter; not for secrets.
#[must_use]
pub fn dice() -> fastrand::Rng {
    STORY.with_borrow_mut(|story| story.as_mut().map_or_else(fastrand::Rng::new, fastrand::Rng::fork))
}

/// An identity (version 4).
#[must_use]
pub fn uuid() -> uuid::Uuid {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// A hash table whose order is nobody's to foresee, but in a simulation.
pub type HashMap<K, V> = std::collections::HashMap<K, V, Order>;
/// See [`HashMap`].
pub type HashSet<K> = std::collections::HashSet<K, Order>;

/// How a table hashes.
#[derive(Clone, Debug)]
pub struct Order(Option<RandomState>);

impl Default for Order {
    fn default() -> Self {
        let simulated = STORY.with_borrow(Option::is_some);
        Self((!simulated).then(RandomState::new))
    }
}

impl BuildHasher for Order {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        self.0.as_ref().map_or_else(DefaultHasher::new, RandomState::build_hasher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> (Vec<u32>, uuid::Uuid, u64) {
        let table: HashSet<u32> = (0..100).collect();
        (table.into_iter().collect(), uuid(), dice().u64(..))
    }

    fn in_a_story(seed: u64) -> (Vec<u32>, uuid::Uuid, u64) {
        std::thread::spawn(move || {
            begin(seed);
            told()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_story_repeats_itself_and_nothing_else_does() {
        assert_eq!(in_a_story(1), in_a_story(1));
        assert_ne!(in_a_story(1).1, in_a_story(2).1);
        let (one, other) = (told(), told());
        assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2);
    }
}
