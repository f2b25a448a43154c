//! Deadlines of leases, in buckets of a tick, so that setting and clearing one costs the same at a hundred leases and at a hundred thousand.
//!
//! A deadline fires at the first tick at or after it, never before: up to [`TICK`] late.

use std::collections::BTreeMap;
use std::time::Duration;

use super::types::Moment;

/// How late a deadline may fire.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Where an entry stands; handed out by [`Deadlines::insert`], given back to [`Deadlines::remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    tick: u64,
    position: usize,
}

impl Place {
    /// When an entry at this place fires.
    pub(super) fn fires_at(self) -> Moment {
        at(self.tick)
    }
}

/// Entries by tick. The number of buckets follows how many different ticks are in use, not how many entries.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    buckets: BTreeMap<u64, Vec<usize>>,
    spare: Vec<Vec<usize>>,
}

impl Deadlines {
    /// Puts `entry` at `when`.
    pub(super) fn insert(&mut self, when: Moment, entry: usize) -> Place {
        let tick = u64::try_from(when.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX);
        let spare = &mut self.spare;
        let bucket = self.buckets.entry(tick).or_insert_with(|| spare.pop().unwrap_or_default());
        bucket.push(entry);
        Place { tick, position: bucket.len() - 1 }
    }

    /// Takes an entry away. Answers which entry has moved to its place, if one has: tell that one.
    pub(super) fn remove(&mut self, place: Place) -> Option<usize> {
        let bucket = self.buckets.get_mut(&place.tick).expect("a place is given back once");
        bucket.swap_remove(place.position);
        let moved = bucket.get(place.position).copied();
        if bucket.is_empty() {
            let bucket = self.buckets.remove(&place.tick).unwrap_or_default();
            if self.spare.len() < 16 {
                self.spare.push(bucket);
            }
        }
        moved
    }

    /// When the next one fires.
    pub(super) fn next(&self) -> Option<Moment> {
        self.buckets.first_key_value().map(|(tick, _)| at(*tick))
    }

    /// Which entry stands there.
    pub(super) fn at_place(&self, place: Place) -> Option<usize> {
        self.buckets.get(&place.tick)?.get(place.position).copied()
    }

    /// How many are set.
    pub(super) fn len(&self) -> usize {
        self.buckets.values().map(Vec::len).sum()
    }

    /// The entries of one bucket that is due; they are out. Call until `None`.
    pub(super) fn pop_due(&mut self, now: Moment) -> Option<Vec<usize>> {
        let first = self.buckets.first_entry()?;
        (at(*first.key()) <= now).then(|| first.remove())
    }
}

fn at(tick: u64) -> Moment {
    Duration::from_nanos(tick.saturating_mul(TICK.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn fires_all_at_their_time_and_none_before(moves in prop::collection::vec((0u64..400, any::<bool>()), 1..200)) {
            let mut deadlines = Deadlines::default();
            let mut places: HashMap<usize, (Place, Moment)> = HashMap::new();
            for (entry, (millis, remove)) in moves.into_iter().enumerate() {
                if remove && let Some(&victim) = places.keys().min() {
                    let (place, _) = places.remove(&victim).unwrap();
                    if let Some(moved) = deadlines.remove(place) {
                        places.get_mut(&moved).unwrap().0 = place;
                    }
                }
                let when = Duration::from_millis(millis);
                places.insert(entry, (deadlines.insert(when, entry), when));
            }
            for now in (0..500).map(Duration::from_millis) {
                while let Some(due) = deadlines.pop_due(now) {
                    for entry in due {
                        let (_, when) = places.remove(&entry).expect("fires once");
                        prop_assert!(when <= now && now < when + TICK + Duration::from_millis(1));
                    }
                }
                prop_assert!(deadlines.next().is_none_or(|next| next > now));
            }
            prop_assert!(places.is_empty());
        }
    }
}
