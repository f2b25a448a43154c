//! Lists of slots that a slot can leave from the middle in constant time: a slot is in one list at most.
//!
//! A slot that leaves keeps its place in the queue, which means nothing from then on: places are numbered, and a slot knows the number of its
//! present one. So leaving touches nobody else's memory, where the links of a linked list would have to be mended in both neighbours: at
//! 100,000 slots those are in no cache. What means nothing is swept away once it is more than what does, so all of this is constant time on
//! average, and both ends of a queue are always slots that are there.

use std::collections::VecDeque;

use super::types::SlotIndex;

/// The number of a slot's place; no number is used twice, in whatever list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(u64);

/// In no list.
const NOWHERE: Place = Place(0);
/// Below so many places nothing is swept.
const NOT_WORTH_SWEEPING: usize = 64;

/// What can be in a list.
pub(super) trait Listed {
    /// Kept for the lists, and changed by nobody else.
    fn place(&mut self) -> &mut Place;
}

/// One list. The front is what was put in last.
#[derive(Debug, Default)]
pub(super) struct List {
    queue: VecDeque<(SlotIndex, Place)>,
    length: usize,
}

/// Gives out places, for all lists that share slots.
#[derive(Debug, Default)]
pub(super) struct Places(u64);

impl Places {
    fn give(&mut self, list: &mut List, slot: SlotIndex, listed: &mut impl Listed) -> (SlotIndex, Place) {
        self.0 += 1;
        let place = listed.place();
        assert!(*place == NOWHERE, "slot {slot} is in a list already");
        *place = Place(self.0);
        list.length += 1;
        (slot, *place)
    }
}

impl List {
    pub(super) fn push_front(&mut self, places: &mut Places, slot: SlotIndex, listed: &mut impl Listed) {
        let place = places.give(self, slot, listed);
        self.queue.push_front(place);
    }

    pub(super) fn push_back(&mut self, places: &mut Places, slot: SlotIndex, listed: &mut impl Listed) {
        let place = places.give(self, slot, listed);
        self.queue.push_back(place);
    }

    pub(super) fn remove(&mut self, slot: SlotIndex, slots: &mut [impl Listed]) {
        let place = std::mem::take(slots[slot as usize].place());
        assert!(place != NOWHERE, "slot {slot} is in no list");
        self.length -= 1;
        while self.queue.front().is_some_and(|place| !holds(slots, *place)) {
            self.queue.pop_front();
        }
        while self.queue.back().is_some_and(|place| !holds(slots, *place)) {
            self.queue.pop_back();
        }
        if self.queue.len() > 2 * self.length + NOT_WORTH_SWEEPING {
            self.queue.retain(|place| holds(slots, *place));
        }
    }

    pub(super) fn front(&self) -> Option<SlotIndex> {
        self.queue.front().map(|(slot, _)| *slot)
    }

    pub(super) fn back(&self) -> Option<SlotIndex> {
        self.queue.back().map(|(slot, _)| *slot)
    }

    /// Those that are there, from the front to the back.
    pub(super) fn present<'a>(&'a self, slots: &'a [super::state::Slot]) -> impl Iterator<Item = SlotIndex> + 'a {
        self.queue.iter().filter(|(slot, place)| slots[*slot as usize].place == *place).map(|(slot, _)| *slot)
    }

    /// Slots and the numbers of their places, from the front to the back, with those that mean nothing any more.
    pub(super) fn places(&self) -> impl Iterator<Item = (SlotIndex, Place)> {
        self.queue.iter().copied()
    }
}

fn holds(slots: &mut [impl Listed], (slot, place): (SlotIndex, Place)) -> bool {
    *slots[slot as usize].place() == place
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Listed for Place {
        fn place(&mut self) -> &mut Place {
            self
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_deque(moves in prop::collection::vec((0u8..4, 0u32..200), 0..2000)) {
            let (mut places, mut list, mut model) = (Places::default(), List::default(), VecDeque::new());
            let mut slots = vec![NOWHERE; 200];
            for (what, slot) in moves {
                match (what, model.iter().position(|s| *s == slot)) {
                    (0, None) => { list.push_front(&mut places, slot, &mut slots[slot as usize]); model.push_front(slot); }
                    (1, None) => { list.push_back(&mut places, slot, &mut slots[slot as usize]); model.push_back(slot); }
                    (2 | 3, Some(at)) => { list.remove(slot, &mut slots); model.remove(at); }
                    _ => {}
                }
                prop_assert_eq!(list.front(), model.front().copied());
                prop_assert_eq!(list.back(), model.back().copied());
                prop_assert!(list.queue.len() <= 2 * model.len() + NOT_WORTH_SWEEPING + 1);
            }
            let left = list.places().filter(|(slot, place)| slots[*slot as usize] == *place).map(|(slot, _)| slot);
            prop_assert!(left.eq(model.iter().copied()));
        }
    }
}
