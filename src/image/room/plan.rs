//! Which images go so that the others fit, and in which order. Pure: no clock, no engine, no disk.
//!
//! An image is what it is made of: pieces (an engine's layers, a store's blobs), each with its size, and each counted once, however many images have it. So what
//! an image frees depends on which others stay, and is worked out anew for each step.
//!
//! - What has a reason to stay, stays.
//! - Of the others the one that was used the longest ago goes first. One that would free nothing yet (the base of others that are here) waits until
//!   it would: it counts as used for as long as those that are made of it.
//! - Nothing goes once the low mark is reached, and nothing that frees nothing, also not together with all that goes.
//! - Where several have the same pieces and nobody else does, they go together, though none of them alone would free anything.
//!
//! It deliberately does not know why an image stays, nor whether it will be let go: whoever carries a plan out may find that somebody uses it by now.

use std::time::SystemTime;

use crate::random::{HashMap, HashSet};

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The same for the same part, in whichever image it is.
    pub name: String,
    /// What it takes.
    pub bytes: u64,
}

/// What is asked of one image.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What it is made of.
    pub pieces: Vec<Piece>,
    /// When it was used last, as far as that is known.
    pub used: SystemTime,
    /// Why it stays; `None`: it may go.
    pub stays: Option<Stays>,
}

/// Why an image stays, whatever the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stays {
    /// It is what the pool's buddies run.
    Pinned,
    /// A container was made from it, whether or not that runs.
    InUse,
    /// Somebody was told a moment ago that it is here.
    Held,
    /// It did not come by nspool, or has a name that did not.
    NotOurs,
    /// Nobody can tell yet when it was used.
    NotKnown,
    /// It has no name by which it could be taken away.
    Nameless,
}

impl Stays {
    /// A few words for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Pinned => "the pool's own",
            Self::InUse => "a container has it",
            Self::Held => "held for who asked for it",
            Self::NotOurs => "not nspool's",
            Self::NotKnown => "not known for long enough",
            Self::Nameless => "has no name",
        }
    }
}

/// One that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goes {
    /// Where it stands among the candidates.
    pub index: usize,
    /// What that frees, all before it being gone.
    pub frees: u64,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub goes: Vec<Goes>,
    /// All that is there now, each piece counted once.
    pub before: u64,
    /// The same afterwards.
    pub after: u64,
}

/// All pieces of these images, each counted once.
pub fn bytes_of<'a>(images: impl IntoIterator<Item = &'a [Piece]>) -> u64 {
    let mut seen: HashSet<&str> = HashSet::default();
    images.into_iter().flatten().filter(|piece| seen.insert(&piece.name)).fold(0, |sum, piece| sum.saturating_add(piece.bytes))
}

/// What goes so that what stays has `low` bytes at most, or as few as can be.
#[must_use]
pub fn plan(candidates: &[Candidate], low: u64) -> Plan {
    let mut here = Here::new(candidates);
    let before = here.total;
    let mut order: Vec<usize> = (0..candidates.len()).filter(|index| here.may_go(*index)).collect();
    order.sort_by_key(|index| candidates[*index].used);
    let mut goes: Vec<usize> = Vec::new();
    while here.total > low {
        // Where nothing is anybody's alone, those who share something with the fewest go together.
        let alone = order.iter().position(|index| here.frees(*index) > 0);
        let shared = || (0..order.len()).min_by_key(|at| here.sharers(order[*at]));
        let Some(at) = alone.or_else(shared) else { break };
        let index = order.remove(at);
        here.take_away(index);
        goes.push(index);
    }
    // Those that made room for nobody in the end.
    for at in (0..goes.len()).rev() {
        if here.regains(goes[at]) == 0 {
            here.bring_back(goes.remove(at));
        }
    }
    let after = here.total;
    Plan { goes: each_with_its_share(candidates, goes), before, after }
}

fn each_with_its_share(candidates: &[Candidate], goes: Vec<usize>) -> Vec<Goes> {
    let mut here = Here::new(candidates);
    let share = |index| {
        let frees = here.frees(index);
        here.take_away(index);
        Goes { index, frees }
    };
    goes.into_iter().map(share).collect()
}

/// What is there, while it gets less.
struct Here<'a> {
    candidates: &'a [Candidate],
    pieces: HashMap<&'a str, Counted>,
    total: u64,
}

#[derive(Default)]
struct Counted {
    bytes: u64,
    /// Images that have it and are there.
    images: u32,
    /// One of them stays.
    stays: bool,
}

impl<'a> Here<'a> {
    fn new(candidates: &'a [Candidate]) -> Self {
        let mut here = Self { candidates, pieces: HashMap::default(), total: 0 };
        for candidate in candidates {
            for piece in distinct(&candidate.pieces) {
                let counted = here.pieces.entry(&piece.name).or_default();
                // Whoever says less of the same piece is not believed: it is there once, and as large as that.
                here.total = here.total.saturating_add(piece.bytes.saturating_sub(counted.bytes));
                counted.bytes = counted.bytes.max(piece.bytes);
                counted.images += 1;
                counted.stays |= candidate.stays.is_some();
            }
        }
        here
    }

    fn counted(&self, index: usize) -> impl Iterator<Item = &Counted> {
        distinct(&self.candidates[index].pieces).filter_map(|piece| self.pieces.get(piece.name.as_str()))
    }

    /// Nothing keeps it, and not all of it is kept by others.
    fn may_go(&self, index: usize) -> bool {
        self.candidates[index].stays.is_none() && self.counted(index).any(|piece| !piece.stays && piece.bytes > 0)
    }

    fn frees(&self, index: usize) -> u64 {
        self.counted(index).filter(|piece| piece.images == 1).fold(0, |sum, piece| sum.saturating_add(piece.bytes))
    }

    /// How many have the part of it that the fewest have.
    fn sharers(&self, index: usize) -> u32 {
        let may_go = self.counted(index).filter(|piece| !piece.stays && piece.bytes > 0);
        may_go.map(|piece| piece.images).min().unwrap_or(u32::MAX)
    }

    fn regains(&self, index: usize) -> u64 {
        self.counted(index).filter(|piece| piece.images == 0).fold(0, |sum, piece| sum.saturating_add(piece.bytes))
    }

    fn take_away(&mut self, index: usize) {
        self.total = self.total.saturating_sub(self.frees(index));
        for piece in distinct(&self.candidates[index].pieces) {
            self.pieces.entry(&piece.name).and_modify(|counted| counted.images -= 1);
        }
    }

    fn bring_back(&mut self, index: usize) {
        self.total = self.total.saturating_add(self.regains(index));
        for piece in distinct(&self.candidates[index].pieces) {
            self.pieces.entry(&piece.name).and_modify(|counted| counted.images += 1);
        }
    }
}

/// An image may have the same layer twice; a store keeps it once.
fn distinct(pieces: &[Piece]) -> impl Iterator<Item = &Piece> {
    pieces.iter().enumerate().filter(|(at, piece)| pieces[..*at].iter().all(|before| before.name != piece.name)).map(|(_, piece)| piece)
}

#[cfg(test)]
mod tests;
