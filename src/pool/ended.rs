//! Leases that are over, remembered for a while (and at most so many), so that a late or repeated call gets a true answer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::types::{Cause, Moment, Request, Token};
use crate::random::HashMap;

#[derive(Debug)]
struct Entry {
    forget_at: Moment,
    token: Token,
}

/// What is remembered of a lease.
#[derive(Debug)]
pub(super) struct EndedLease {
    pub cause: Cause,
    /// Only where it had a request id.
    pub request: Option<Arc<Request>>,
}

#[derive(Debug, Default)]
pub(super) struct Ended {
    queue: VecDeque<Entry>,
    by_token: HashMap<Token, EndedLease>,
}

impl Ended {
    /// Entries come with a constant age, so the queue is in order of time.
    pub(super) fn push(&mut self, forget_at: Moment, token: Token, lease: EndedLease) {
        self.queue.push_back(Entry { forget_at, token });
        self.by_token.insert(token, lease);
    }

    pub(super) fn get(&self, token: Token) -> Option<&EndedLease> {
        self.by_token.get(&token)
    }

    /// When each may be forgotten, from the oldest on.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Moment, Token, &EndedLease)> {
        self.queue.iter().filter_map(|entry| Some((entry.forget_at, entry.token, self.by_token.get(&entry.token)?)))
    }

    /// The oldest one that is due, or one too many.
    pub(super) fn pop(&mut self, now: Moment, max: u32) -> Option<EndedLease> {
        let oldest = self.queue.front()?;
        if oldest.forget_at > now && self.queue.len() <= max as usize {
            return None;
        }
        let entry = self.queue.pop_front()?;
        self.by_token.remove(&entry.token)
    }

    /// How many of them had a request id.
    pub(super) fn requests(&self) -> usize {
        self.by_token.values().filter(|ended| ended.request.is_some()).count()
    }

    /// Panics unless queue and table hold the same, at most `max`.
    pub(super) fn check(&self, max: u32) {
        assert!(self.queue.len() <= max as usize, "more ended leases than may be");
        assert_eq!(self.queue.len(), self.by_token.len(), "ended leases queued and known");
        assert!(self.queue.iter().all(|entry| self.by_token.contains_key(&entry.token)), "an ended lease is queued and not known");
    }

    pub(super) fn next(&self) -> Option<Moment> {
        self.queue.front().map(|entry| entry.forget_at)
    }
}
