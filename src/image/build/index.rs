//! What was built here and is in the engine: known from one listing, kept true by what is heard and seen, or not known.
//!
//! "Not known" and "nothing" are two things: the first says nothing of any image. Whoever needs to know of one key asks the engine for it; this
//! is for lists, and for what the engine does not keep: when an image was used last, in this daemon's life.

use std::time::SystemTime;

use super::{DATE_LABEL, KEY_LABEL, Key, is_of};
use crate::engine::{Image, ImageId};
use crate::random::HashMap;

/// An image that was built here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What went in.
    pub key: Key,
    /// Its own.
    pub id: ImageId,
    /// By its label.
    pub built: Option<SystemTime>,
    /// In this daemon's life.
    pub used: Option<SystemTime>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    known: bool,
    /// Changes whenever something may have become untrue: a listing from before is no longer the whole truth.
    changes: u64,
    rows: HashMap<Key, Row>,
    used: HashMap<Key, SystemTime>,
}

/// Uses are remembered of so many images.
const MOST_USES: usize = 4096;

impl Index {
    /// `None`: not known.
    pub(super) fn rows(&self) -> Option<Vec<Row>> {
        let mut rows: Vec<Row> = self.rows.values().cloned().map(|row| Row { used: self.used.get(&row.key).copied(), ..row }).collect();
        rows.sort_by_key(|row| (row.built, row.key));
        self.known.then_some(rows)
    }

    pub(super) fn forget(&mut self) {
        self.changes += 1;
        self.known = false;
        self.rows.clear();
    }

    /// `None`: it is known. Else what a listing is to bring along.
    pub(super) fn begin(&self) -> Option<u64> {
        (!self.known).then_some(self.changes)
    }

    /// What the engine has said. It is taken only if nothing has changed since it was asked.
    pub(super) fn listed(&mut self, before: u64, images: &[Image]) {
        if self.changes != before {
            return;
        }
        self.known = true;
        self.rows.clear();
        for image in images {
            let key = image.labels.get(KEY_LABEL).and_then(|label| Key::parse(label));
            if let Some(key) = key.filter(|key| is_of(image, *key)) {
                self.put(key, image);
            }
        }
    }

    fn put(&mut self, key: Key, image: &Image) {
        let built = image.labels.get(DATE_LABEL).and_then(|date| humantime::parse_rfc3339(date).ok());
        self.rows.insert(key, Row { key, id: image.id.clone(), built, used: None });
    }

    /// The engine has it, and somebody gets it.
    pub(super) fn used(&mut self, key: Key, image: &Image, now: SystemTime) {
        self.changes += 1;
        self.put(key, image);
        if self.used.len() >= MOST_USES && !self.used.contains_key(&key) {
            let oldest = self.used.iter().min_by_key(|(_, used)| **used).map(|(key, _)| *key);
            oldest.and_then(|oldest| self.used.remove(&oldest));
        }
        self.used.insert(key, now);
    }

    /// The engine has none for it.
    pub(super) fn missing(&mut self, key: Key) {
        if self.rows.remove(&key).is_some() {
            self.changes += 1;
        }
    }

    /// It may have lost only one of its names: whether it is no longer known what is there.
    pub(super) fn gone(&mut self, id: &str) -> bool {
        let doubtful = !self.known || self.rows.values().any(|row| row.id.as_str() == id);
        if doubtful {
            self.forget();
        }
        doubtful
    }
}

#[cfg(test)]
mod tests {
    use super::super::name_of;
    use super::*;
    use crate::engine::Labels;

    fn key(digit: char) -> Key {
        Key::parse(&digit.to_string().repeat(64)).unwrap()
    }

    fn image(digit: char, tagged: bool) -> Image {
        let labels = [(KEY_LABEL, key(digit).to_string()), (DATE_LABEL, format!("2026-01-0{digit}T00:00:00Z"))];
        Image {
            id: ImageId::from(format!("sha256:{digit}")),
            tags: if tagged { vec![name_of(&key(digit))] } else { vec!["built-upon:it".into()] },
            digests: Vec::new(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Labels>(),
        }
    }

    fn keys(index: &Index) -> Option<Vec<Key>> {
        index.rows().map(|rows| rows.iter().map(|row| row.key).collect())
    }

    #[test]
    fn not_known_is_not_nothing() {
        let mut index = Index::default();
        assert_eq!(keys(&index), None);
        let before = index.begin().unwrap();
        index.listed(before, &[image('2', true), image('1', true), image('3', false)]);
        assert_eq!(keys(&index), Some(vec![key('1'), key('2')]), "what was built upon an image has its labels, not its name");
        assert_eq!(index.begin(), None);
        index.forget();
        assert_eq!((keys(&index), index.begin().is_some()), (None, true));
    }

    #[test]
    fn a_list_from_before_a_change_is_not_taken() {
        let mut index = Index::default();
        let before = index.begin().unwrap();
        assert!(index.gone("sha256:1"));
        index.listed(before, &[image('1', true)]);
        assert_eq!(keys(&index), None);
        let before = index.begin().unwrap();
        index.used(key('2'), &image('2', true), SystemTime::UNIX_EPOCH);
        index.listed(before, &[]);
        assert_eq!(keys(&index), None, "or the one that was just built would be missing");
    }

    #[test]
    fn what_is_heard_and_seen_is_known() {
        let mut index = Index::default();
        index.listed(0, &[image('1', true)]);
        index.used(key('2'), &image('2', true), SystemTime::UNIX_EPOCH);
        let used: Vec<_> = index.rows().unwrap().into_iter().map(|row| row.used).collect();
        assert_eq!(used, [None, Some(SystemTime::UNIX_EPOCH)]);
        index.missing(key('1'));
        assert_eq!(keys(&index), Some(vec![key('2')]));
        assert!(!index.gone("sha256:other"));
        assert_eq!(keys(&index), Some(vec![key('2')]));
        assert!(index.gone("sha256:2"));
        assert_eq!(keys(&index), None);
    }
}
