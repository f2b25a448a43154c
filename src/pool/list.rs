//! Lists of slots that a slot can leave from the middle in constant time: the links live beside the slots, a slot is in one list at most.

use super::types::SlotIndex;

const NONE: SlotIndex = SlotIndex::MAX;
/// In no list.
const OUT: SlotIndex = SlotIndex::MAX - 1;

/// The links of one slot. Small, because those of a slot's neighbours are seldom in a cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    previous: SlotIndex,
    next: SlotIndex,
}

impl Link {
    fn is_linked(self) -> bool {
        self.next != OUT
    }
}

impl Default for Link {
    fn default() -> Self {
        Self { previous: OUT, next: OUT }
    }
}

/// A list's ends. The front is what was put in last.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    front: SlotIndex,
    back: SlotIndex,
}

impl Default for List {
    fn default() -> Self {
        Self { front: NONE, back: NONE }
    }
}

/// The links of all slots.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

impl Links {
    pub(super) fn grow_to(&mut self, slots: usize) {
        if self.0.len() < slots {
            self.0.resize(slots, Link::default());
        }
    }

    pub(super) fn push_front(&mut self, list: &mut List, slot: SlotIndex) {
        let link = &mut self.0[slot as usize];
        assert!(!link.is_linked(), "slot {slot} is in a list already");
        *link = Link { previous: NONE, next: list.front };
        match list.front {
            NONE => list.back = slot,
            front => self.0[front as usize].previous = slot,
        }
        list.front = slot;
    }

    pub(super) fn push_back(&mut self, list: &mut List, slot: SlotIndex) {
        let link = &mut self.0[slot as usize];
        assert!(!link.is_linked(), "slot {slot} is in a list already");
        *link = Link { previous: list.back, next: NONE };
        match list.back {
            NONE => list.front = slot,
            back => self.0[back as usize].next = slot,
        }
        list.back = slot;
    }

    pub(super) fn remove(&mut self, list: &mut List, slot: SlotIndex) {
        let link = std::mem::take(&mut self.0[slot as usize]);
        assert!(link.is_linked(), "slot {slot} is in no list");
        match link.previous {
            NONE => list.front = link.next,
            previous => self.0[previous as usize].next = link.next,
        }
        match link.next {
            NONE => list.back = link.previous,
            next => self.0[next as usize].previous = link.previous,
        }
    }

    /// How many slots are in some list.
    pub(super) fn linked(&self) -> usize {
        self.0.iter().filter(|link| link.is_linked()).count()
    }

    /// From the front to the back; checks the links back on its way.
    pub(super) fn walk(&self, list: &List) -> impl Iterator<Item = SlotIndex> {
        let mut previous = NONE;
        std::iter::successors(list.front(), |slot| {
            let next = self.0[*slot as usize].next;
            (next != NONE).then_some(next)
        })
        .inspect(move |slot| {
            assert_eq!(self.0[*slot as usize].previous, previous, "slot {slot}: its link back");
            previous = *slot;
        })
    }
}

impl List {
    pub(super) fn front(&self) -> Option<SlotIndex> {
        (self.front != NONE).then_some(self.front)
    }

    pub(super) fn back(&self) -> Option<SlotIndex> {
        (self.back != NONE).then_some(self.back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_like_a_deque(moves in prop::collection::vec((0u8..3, 0u32..8), 0..200)) {
            let (mut links, mut list, mut model) = (Links::default(), List::default(), VecDeque::new());
            links.grow_to(8);
            for (what, slot) in moves {
                match (what, model.iter().position(|s| *s == slot)) {
                    (0, None) => { links.push_front(&mut list, slot); model.push_front(slot); }
                    (1, None) => { links.push_back(&mut list, slot); model.push_back(slot); }
                    (2, Some(at)) => { links.remove(&mut list, slot); model.remove(at); }
                    _ => {}
                }
                prop_assert_eq!(list.front(), model.front().copied());
                prop_assert_eq!(list.back(), model.back().copied());
            }
            while let Some(slot) = list.front() {
                prop_assert_eq!(Some(slot), model.pop_front());
                links.remove(&mut list, slot);
            }
            prop_assert!(model.is_empty());
        }
    }
}
