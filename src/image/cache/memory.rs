//! What the cache knows of images: for the operator to see, and so that a registry is not asked at once again what it has refused.
//!
//! It knows what was true when it was noted: an image that somebody removes stays listed until it is asked for again.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Ensured, Failure, Key, Kind, Whose};
use crate::config;
use crate::image::freshness::Stale;
use crate::random::HashMap;

/// What is known of one image under one identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// As it was asked for, with its tag.
    pub reference: String,
    /// It is asked for by credentials that a caller brings.
    pub private: bool,
    /// How it is.
    pub state: ImageState,
    /// Since when it is so.
    pub since: SystemTime,
    /// Of one that is here and everybody's: when the registry said last that it has the same; `None`: not since the daemon's start.
    pub checked: Option<SystemTime>,
    /// … and since when it does not say.
    pub stale: Option<Stale>,
}

/// See [`Row::state`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    /// The registry is asked, or will be once there is a place.
    Fetching,
    /// It was here when somebody asked last.
    Present(Ensured),
    /// It could not be had.
    Failed(Failure),
}

/// One failure, kept for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// As it was asked for.
    pub reference: String,
    /// By credentials that a caller brought.
    pub private: bool,
    /// When.
    pub at: SystemTime,
    /// What and why.
    pub failure: Failure,
}

struct Known {
    row: Row,
    /// Orders them by age.
    number: u64,
    /// Until then the failure is told again.
    until: Option<Instant>,
}

pub(super) struct Memory {
    known: HashMap<Key, Known>,
    failures: VecDeque<Failed>,
    next: u64,
    most: usize,
    most_failures: usize,
    failed_for: Duration,
}

impl Memory {
    pub(super) fn new(settings: &config::Images) -> Self {
        Self {
            known: HashMap::default(),
            failures: VecDeque::new(),
            next: 0,
            most: settings.remember.max(1) as usize,
            most_failures: settings.keep_failures as usize,
            failed_for: settings.failed_for,
        }
    }

    pub(super) fn fetching(&mut self, key: &Key) {
        self.note(key, ImageState::Fetching, None);
    }

    pub(super) fn present(&mut self, key: &Key, ensured: Ensured) {
        self.note(key, ImageState::Present(ensured), None);
    }

    /// A failure that is new; one that was told again is none.
    pub(super) fn failed(&mut self, key: &Key, failure: Failure) {
        let asked_later = (failure.kind == Kind::Busy).then(|| failure.retry_after.unwrap_or_default());
        let lasts = if failure.kind.is_permanent() { Some(self.failed_for) } else { asked_later.map(|after| after.max(self.failed_for)) };
        let failed =
            Failed { reference: key.reference.to_string(), private: is_private(key), at: SystemTime::now(), failure: failure.clone() };
        self.failures.push_front(failed);
        self.failures.truncate(self.most_failures);
        self.note(key, ImageState::Failed(failure), lasts.map(|lasts| Instant::now() + lasts));
    }

    /// The failure that is told again, with the time that is left of it.
    pub(super) fn remembered(&self, key: &Key) -> Option<Failure> {
        let known = self.known.get(key)?;
        let left = known.until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        match &known.row.state {
            ImageState::Failed(failure) => Some(Failure { retry_after: Some(left), ..failure.clone() }),
            ImageState::Fetching | ImageState::Present(_) => None,
        }
    }

    fn note(&mut self, key: &Key, state: ImageState, until: Option<Instant>) {
        self.next += 1;
        let before = self.known.remove(key);
        // That it is still here is no news.
        let same = before.filter(|before| match (&before.row.state, &state) {
            (ImageState::Present(before), ImageState::Present(now)) => before.id == now.id,
            (ImageState::Present(_) | ImageState::Fetching | ImageState::Failed(_), _) => false,
        });
        let since = same.map_or_else(SystemTime::now, |before| before.row.since);
        let row = Row { reference: key.reference.to_string(), private: is_private(key), state, since, checked: None, stale: None };
        if self.known.len() >= self.most
            && let Some(oldest) = self.known.iter().min_by_key(|(_, known)| known.number).map(|(key, _)| key.clone())
        {
            self.known.remove(&oldest);
        }
        self.known.insert(key.clone(), Known { row, number: self.next, until });
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let mut known: Vec<&Known> = self.known.values().collect();
        known.sort_by(|a, b| (&a.row.reference, a.number).cmp(&(&b.row.reference, b.number)));
        known.into_iter().map(|known| known.row.clone()).collect()
    }

    pub(super) fn failures(&self) -> Vec<Failed> {
        self.failures.iter().cloned().collect()
    }
}

fn is_private(key: &Key) -> bool {
    matches!(key.whose, Whose::Callers(_))
}
