//! Which fences the event stream has told of, with all that came before them looked at.
//!
//! A function that was there before the fence was told of before it: the word of its end may be all that is left of it. Whoever relies on what was heard of a
//! use waits until its fence was. What can go wrong: the stream ends, and the fence is never told of; whoever waits has a limit of its own.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::ContainerId;
use crate::level;
use crate::random::HashMap;

/// The fences that somebody waits to hear of, by the buddies' new names.
#[derive(Debug, Default)]
pub struct Heard(Mutex<HashMap<ContainerId, (String, level::Sender<bool>)>>);

impl Heard {
    /// `true` once it was told that the container is called that now, and everybody who was told of before was looked at. To be called before the
    /// rename.
    pub fn expect(&self, container: &ContainerId, name: &str) -> level::Receiver<bool> {
        let (sender, heard) = level::channel(false);
        self.0.lock().insert(container.clone(), (name.to_owned(), sender));
        heard
    }

    /// No longer.
    pub fn forget(&self, container: &ContainerId) {
        self.0.lock().remove(container);
    }

    fn is_expected(&self, container: &str, name: &str) -> bool {
        self.0.lock().get(&ContainerId::from(container)).is_some_and(|(expected, _)| expected == name)
    }

    fn tell(&self, container: &str, name: &str) {
        if let Some((_, heard)) = self.0.lock().get(&ContainerId::from(container)).filter(|(expected, _)| expected == name) {
            heard.send_replace(true);
        }
    }
}

/// Questions about containers that are under way on one stream, and the fences that wait for them.
#[derive(Debug)]
pub(super) struct UnderWay {
    heard: Arc<Heard>,
    next: u64,
    asked: BTreeSet<u64>,
    fences: VecDeque<(u64, String, String)>,
}

impl UnderWay {
    pub(super) fn new(heard: Arc<Heard>) -> Self {
        Self { heard, next: 0, asked: BTreeSet::new(), fences: VecDeque::new() }
    }

    /// The number of a new question.
    pub(super) fn ask(&mut self) -> u64 {
        self.next += 1;
        self.asked.insert(self.next);
        self.next
    }

    /// All that a question was about is known.
    pub(super) fn settled(&mut self, number: u64) {
        self.asked.remove(&number);
        self.tell();
    }

    /// A container has another name, as the stream tells.
    pub(super) fn renamed(&mut self, container: String, name: String) {
        if self.heard.is_expected(&container, &name) {
            self.fences.push_back((self.next, container, name));
            self.tell();
        }
    }

    /// Of those fences before which nothing is under way any more.
    fn tell(&mut self) {
        let oldest = self.asked.first().copied().unwrap_or(u64::MAX);
        while self.fences.front().is_some_and(|(asked, _, _)| *asked < oldest) {
            if let Some((_, container, name)) = self.fences.pop_front() {
                self.heard.tell(&container, &name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_waits_for_what_was_asked_before_it_and_for_nothing_else() {
        let heard = Arc::new(Heard::default());
        let fence = heard.expect(&ContainerId::from("buddy"), "next");
        let mut under_way = UnderWay::new(Arc::clone(&heard));
        let (first, second) = (under_way.ask(), under_way.ask());
        under_way.renamed("buddy".into(), "of-an-earlier-use".into());
        under_way.renamed("another".into(), "next".into());
        under_way.renamed("buddy".into(), "next".into());
        let later = under_way.ask();
        under_way.settled(second);
        assert!(!*fence.borrow());
        under_way.settled(first);
        assert!(*fence.borrow(), "{later} came after it");
    }

    #[test]
    fn fences_are_told_of_at_once_when_nothing_is_under_way() {
        let heard = Arc::new(Heard::default());
        let fence = heard.expect(&ContainerId::from("buddy"), "next");
        UnderWay::new(Arc::clone(&heard)).renamed("buddy".into(), "next".into());
        assert!(*fence.borrow());
        let again = heard.expect(&ContainerId::from("buddy"), "after-next");
        assert!(!*again.borrow());
    }
}
