//! Which places are whose: given out, resting, held.
//!
//! An address that comes back rests before another tenant gets it, because late packets and others' neighbour tables are reached by no
//! cleaning; it is held, without an end, while a process that was left behind may still live in the old namespace. Those that were never
//! given out go first, then those that have rested longest.
//!
//! Pure: no clock (moments are handed in) and no chance, so the same story is told the same way each time. What can go wrong: nothing is
//! free, and then it is said when something will be, if that is known; or a caller gives back what it does not have, which changes nothing
//! and is said.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// An address of a network, in both families, counted from its first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u32);

/// Since boot, as [`Kernel::since_boot`](crate::netns::Kernel::since_boot) has it.
pub type Moment = Duration;

/// See the module.
#[derive(Clone, Debug)]
pub struct AddressBook {
    /// Places go from 0 to this.
    end: u32,
    not_used: BTreeSet<u32>,
    /// From here on none was given out by [`allocate`](Self::allocate).
    untouched: u32,
    /// Before this none of those is.
    not_before: Moment,
    /// What is not here was never given out, or is not used.
    states: HashMap<u32, State>,
    /// Of those, the resting ones by when that ends.
    resting: BTreeSet<(Moment, u32)>,
    taken: u32,
    held: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Taken,
    Held,
    Resting(Moment),
}

/// Nothing is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address is free: {taken} are given out, {resting} rest, {held} are held")]
pub struct Exhausted {
    /// Given out.
    pub taken: u32,
    /// Until a known moment.
    pub resting: u32,
    /// Until somebody is gone.
    pub held: u32,
    /// When the first one has rested, if any rests.
    pub next: Option<Moment>,
}

/// The place is not in the state for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("place {} is not {expected}", place.0)]
pub struct Misplaced {
    /// Which one.
    pub place: Place,
    /// What it would have to be.
    pub expected: &'static str,
}

impl AddressBook {
    /// With all places below `end` but those that are not to be used.
    #[must_use]
    pub fn new(end: u32, not_used: BTreeSet<u32>) -> Self {
        let not_used = not_used.into_iter().filter(|place| *place < end).collect();
        Self { end, not_used, untouched: 0, not_before: Moment::ZERO, states: HashMap::new(), resting: BTreeSet::new(), taken: 0, held: 0 }
    }

    /// How many can be given out at all.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.end - u32::try_from(self.not_used.len()).unwrap_or(u32::MAX)
    }

    /// How many are given out.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// How many are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// How many could be given out now.
    #[must_use]
    pub fn free(&self, now: Moment) -> u32 {
        let still = self.resting.range((now, u32::MAX)..).filter(|(until, _)| *until > now).count();
        self.size() - self.taken - self.held - u32::try_from(still).unwrap_or(u32::MAX)
    }

    /// Gives out one that was never given out, or else the one that has rested longest.
    ///
    /// # Errors
    /// When there is none.
    pub fn allocate(&mut self, now: Moment) -> Result<Place, Exhausted> {
        let place = self.take_untouched(now).or_else(|| self.take_rested(now)).ok_or_else(|| self.exhausted())?;
        self.states.insert(place, State::Taken);
        self.taken += 1;
        Ok(Place(place))
    }

    /// Each place is passed once in the book's life.
    fn take_untouched(&mut self, now: Moment) -> Option<u32> {
        while now >= self.not_before && self.untouched < self.end {
            let place = self.untouched;
            self.untouched += 1;
            if !self.not_used.contains(&place) && !self.states.contains_key(&place) {
                return Some(place);
            }
        }
        None
    }

    fn take_rested(&mut self, now: Moment) -> Option<u32> {
        let &(until, place) = self.resting.first().filter(|(until, _)| *until <= now)?;
        self.resting.remove(&(until, place));
        Some(place)
    }

    fn exhausted(&self) -> Exhausted {
        let resting = u32::try_from(self.resting.len()).unwrap_or(u32::MAX);
        let rested = self.resting.first().map(|(until, _)| *until);
        let next = if self.untouched < self.end { rested.min(Some(self.not_before)).or(Some(self.not_before)) } else { rested };
        Exhausted { taken: self.taken, resting, held: self.held, next }
    }

    /// Those that this book has not given out rest: somebody else did, and it is not known which.
    pub fn rest_untouched(&mut self, until: Moment) {
        self.not_before = until;
    }

    /// Takes one that somebody has already: a slot that outlived the daemon.
    ///
    /// # Errors
    /// When it is given out or held, or is none of ours. That it should still rest is no reason: it is in use.
    pub fn claim(&mut self, place: Place) -> Result<(), Misplaced> {
        let misplaced = Misplaced { place, expected: "free" };
        if place.0 >= self.end || self.not_used.contains(&place.0) {
            return Err(misplaced);
        }
        match self.states.get(&place.0) {
            Some(State::Taken | State::Held) => return Err(misplaced),
            Some(State::Resting(until)) => {
                self.resting.remove(&(*until, place.0));
            }
            None => {}
        }
        self.states.insert(place.0, State::Taken);
        self.taken += 1;
        Ok(())
    }

    /// Gives back what was given out or held; nobody gets it before that moment.
    ///
    /// # Errors
    /// When it was neither.
    pub fn rest(&mut self, place: Place, until: Moment) -> Result<(), Misplaced> {
        match self.states.get(&place.0) {
            Some(State::Taken) => self.taken -= 1,
            Some(State::Held) => self.held -= 1,
            Some(State::Resting(_)) | None => return Err(Misplaced { place, expected: "given out or held" }),
        }
        self.states.insert(place.0, State::Resting(until));
        self.resting.insert((until, place.0));
        Ok(())
    }

    /// As [`rest`](Self::rest), without any: nobody has ever used it.
    ///
    /// # Errors
    /// As there.
    pub fn put_back(&mut self, place: Place, now: Moment) -> Result<(), Misplaced> {
        self.rest(place, now)
    }

    /// Keeps it from everybody, until it is told to rest.
    ///
    /// # Errors
    /// When it was not given out.
    pub fn hold(&mut self, place: Place) -> Result<(), Misplaced> {
        match self.states.get_mut(&place.0) {
            Some(state @ State::Taken) => *state = State::Held,
            Some(State::Held | State::Resting(_)) | None => return Err(Misplaced { place, expected: "given out" }),
        }
        self.taken -= 1;
        self.held += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_address_rests_before_anybody_gets_it() {
        let mut book = AddressBook::new(3, BTreeSet::from([0]));
        let (one, two) = (book.allocate(at(0)).unwrap(), book.allocate(at(0)).unwrap());
        assert_eq!((one, two, book.size()), (Place(1), Place(2), 2));
        book.rest(two, at(20)).unwrap();
        book.rest(one, at(30)).unwrap();
        assert_eq!(book.allocate(at(19)), Err(Exhausted { taken: 0, resting: 2, held: 0, next: Some(at(20)) }));
        assert_eq!((book.free(at(19)), book.free(at(20)), book.free(at(30))), (0, 1, 2));
        assert_eq!(book.allocate(at(40)), Ok(two), "it has rested longest");
    }

    #[test]
    fn what_a_predecessor_may_have_given_out_rests() {
        let mut book = AddressBook::new(2, BTreeSet::new());
        book.rest_untouched(at(10));
        book.claim(Place(0)).unwrap();
        assert_eq!(book.allocate(at(9)).unwrap_err().next, Some(at(10)));
        book.rest(Place(0), at(5)).unwrap();
        assert_eq!(book.allocate(at(4)).unwrap_err().next, Some(at(5)));
        assert_eq!(book.allocate(at(5)), Ok(Place(0)));
        assert_eq!(book.allocate(at(10)), Ok(Place(1)));
        assert_eq!(book.allocate(at(10)).unwrap_err().next, None);
    }

    #[test]
    fn a_held_address_is_nobodys_until_it_is_told_to_rest() {
        let mut book = AddressBook::new(1, BTreeSet::new());
        let place = book.allocate(at(0)).unwrap();
        book.hold(place).unwrap();
        assert_eq!(book.allocate(at(1_000_000)).unwrap_err().held, 1);
        assert_eq!(book.claim(place).unwrap_err().to_string(), "place 0 is not free");
        book.rest(place, at(5)).unwrap();
        assert_eq!(book.allocate(at(5)), Ok(place));
    }

    #[test]
    fn a_hundred_thousand_places_cost_no_more_each_than_a_hundred() {
        let mut book = AddressBook::new(65_536, BTreeSet::from([0, 1, 65_535]));
        for round in 0..3 {
            let places: Vec<Place> = (0..book.size()).map(|_| book.allocate(at(round)).unwrap()).collect();
            assert_eq!(book.allocate(at(round)).unwrap_err().next, None);
            places.into_iter().for_each(|place| book.put_back(place, at(round)).unwrap());
        }
    }

    /// The same in the plainest words.
    #[derive(Default)]
    struct Model(Vec<Option<State>>);

    impl Model {
        fn allocate(&mut self, now: Moment) -> Option<Place> {
            let rested = |(at, state): (usize, &Option<State>)| match state {
                Some(State::Resting(until)) if *until <= now => Some((*until, at)),
                _ => None,
            };
            let never = self.0.iter().position(Option::is_none);
            let at = never.or_else(|| self.0.iter().enumerate().filter_map(rested).min().map(|(_, at)| at))?;
            self.0[at] = Some(State::Taken);
            Some(Place(u32::try_from(at).unwrap()))
        }

        fn change(&mut self, place: Place, from: impl Fn(Option<State>) -> bool, to: State) -> bool {
            let Some(state) = self.0.get_mut(place.0 as usize) else { return false };
            let may = from(*state);
            if may {
                *state = Some(to);
            }
            may
        }
    }

    proptest! {
        #[test]
        fn the_book_agrees_with_the_plainest_one(size in 1_u32..12, deeds in proptest::collection::vec((0_u8..5, 0_u32..13, 0_u64..4), 0..120)) {
            let mut book = AddressBook::new(size, BTreeSet::new());
            let mut model = Model(vec![None; size as usize]);
            let mut now = at(0);
            for (deed, place, seconds) in deeds {
                let place = Place(place);
                let is_out = |state| matches!(state, Some(State::Taken | State::Held));
                match deed {
                    0 => prop_assert_eq!(book.allocate(now).ok(), model.allocate(now)),
                    1 => prop_assert_eq!(book.rest(place, now + at(seconds)).is_ok(), model.change(place, is_out, State::Resting(now + at(seconds)))),
                    2 => prop_assert_eq!(book.hold(place).is_ok(), model.change(place, |state| state == Some(State::Taken), State::Held)),
                    3 => prop_assert_eq!(book.claim(place).is_ok(), model.change(place, |state| !is_out(state), State::Taken)),
                    _ => now += at(seconds),
                }
                let count = |wanted: fn(&State) -> bool| u32::try_from(model.0.iter().flatten().filter(|state| wanted(state)).count()).unwrap();
                prop_assert_eq!(book.taken(), count(|state| *state == State::Taken));
                prop_assert_eq!(book.held(), count(|state| *state == State::Held));
                let resting = model.0.iter().flatten().filter(|state| matches!(state, State::Resting(until) if *until > now)).count();
                prop_assert_eq!(book.free(now) as usize, model.0.len() - (book.taken() + book.held()) as usize - resting);
            }
        }
    }
}
