//! What there is in a namespace, as a list of facts by kind, and where two such lists differ.
//!
//! A fact is a message of the kernel without what counts or passes by itself, or a line of text. Two of them are the same when their bytes
//! are; what they mean is asked only of those that differ ([`shown`]). The order does not matter.

use std::collections::BTreeMap;

use super::link;
use super::shown;
use super::verdict::{Difference, Kind};
use crate::netns::wire::{Attributed, Message};

/// Told of one kind; then it is only said how many more there are.
const MOST_TOLD: usize = 32;

/// Something that is so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fact {
    /// An answer of the kernel.
    Message {
        /// Its type.
        message: u16,
        /// Of its bytes.
        header: usize,
        /// Header and attributes.
        bytes: Vec<u8>,
    },
    /// A line.
    Text {
        /// What it is about.
        subject: String,
        /// May be empty.
        value: String,
    },
}

impl Fact {
    /// Without the given attributes. The header is for the caller to clear of what passes.
    pub(super) fn of(message: &Message<'_>, header: usize, without: &[u16]) -> Option<Self> {
        let mut bytes = Vec::with_capacity(message.body.len());
        bytes.extend(message.body.get(..header)?);
        for (kind, value) in message.attributes(header).all().filter(|(kind, _)| !without.contains(kind)) {
            put(&mut bytes, kind, value);
        }
        Some(Self::Message { message: message.kind, header, bytes })
    }

    pub(super) fn text(subject: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Text { subject: subject.into(), value: value.into() }
    }

    pub(super) fn header(&self) -> &[u8] {
        match self {
            Self::Message { header, bytes, .. } => bytes.get(..*header).unwrap_or_default(),
            Self::Text { .. } => &[],
        }
    }

    pub(super) fn header_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Message { header, bytes, .. } => bytes.get_mut(..*header).unwrap_or_default(),
            Self::Text { .. } => &mut [],
        }
    }

    pub(super) fn attributes(&self) -> Attributed<'_> {
        match self {
            Self::Message { header, bytes, .. } => Attributed(bytes.get(*header..).unwrap_or_default()),
            Self::Text { .. } => Attributed(&[]),
        }
    }
}

/// Writes an attribute as the kernel does.
pub(super) fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// All facts of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: Kind,
    pub(super) facts: Vec<Fact>,
}

/// Links by their index, for those who read a difference.
pub(super) type Names = BTreeMap<u32, String>;

/// What is different. Both must have the same sections in the same order, as from one version of this program they have.
pub(super) fn differences(was: &[Section], is: &[Section]) -> Vec<Difference> {
    if was == is {
        return Vec::new();
    }
    let names = (link::names(was), link::names(is));
    let pairs = was.iter().zip(is).filter(|(was, is)| was != is);
    pairs.flat_map(|(was, is)| compare(was.kind, &was.facts, &is.facts, &names)).collect()
}

fn compare(kind: Kind, was: &[Fact], is: &[Fact], (names_then, names_now): &(Names, Names)) -> Vec<Difference> {
    let (gone, new) = apart(was, is);
    let mut found = if kind == Kind::Link {
        link::differences(&gone, &new)
    } else {
        let told = |facts: &[&Fact], names| facts.iter().take(4 * MOST_TOLD).map(|fact| shown::told(kind, fact, names)).collect::<Vec<_>>();
        pair(told(&gone, names_then), told(&new, names_now))
    };
    if found.len() > MOST_TOLD {
        let more = found.len() - MOST_TOLD;
        found.truncate(MOST_TOLD);
        found.push(Difference { kind, subject: "and more".to_owned(), was: None, is: Some(format!("at least {more}")) });
    }
    found
}

/// What only one of them has.
fn apart<'a>(was: &'a [Fact], is: &'a [Fact]) -> (Vec<&'a Fact>, Vec<&'a Fact>) {
    let sorted = |facts: &'a [Fact]| {
        let mut facts: Vec<&Fact> = facts.iter().collect();
        facts.sort_unstable();
        facts.into_iter().peekable()
    };
    let (mut was, mut is) = (sorted(was), sorted(is));
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    loop {
        match (was.peek(), is.peek()) {
            (Some(old), Some(now)) if old == now => drop((was.next(), is.next())),
            (Some(old), Some(now)) if old < now => gone.extend(was.next()),
            (_, Some(_)) => new.extend(is.next()),
            (Some(_), None) => gone.extend(was.next()),
            (None, None) => return (gone, new),
        }
    }
}

/// What is told of the same subject belongs together.
fn pair(gone: Vec<(Kind, String, String)>, new: Vec<(Kind, String, String)>) -> Vec<Difference> {
    let mut found: Vec<Difference> =
        gone.into_iter().map(|(kind, subject, was)| Difference { kind, subject, was: Some(was), is: None }).collect();
    for (kind, subject, is) in new {
        match found.iter_mut().find(|other| other.kind == kind && other.subject == subject && other.is.is_none()) {
            Some(other) => other.is = Some(is),
            None => found.push(Difference { kind, subject, was: None, is: Some(is) }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(lines: &[(&str, &str)]) -> Section {
        Section { kind: Kind::Sysctl, facts: lines.iter().map(|&(subject, value)| Fact::text(subject, value)).collect() }
    }

    #[test]
    fn the_order_makes_no_difference_and_all_else_does() {
        let was = [section(&[("a", "1"), ("b", "2"), ("b", "2")])];
        assert_eq!(differences(&was, &[section(&[("b", "2"), ("a", "1"), ("b", "2")])]), []);
        let lines = |is: &[(&str, &str)]| differences(&was, &[section(is)]).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(lines(&[("a", "3"), ("b", "2"), ("b", "2")]), ["sysctl a: was 1, is 3"]);
        assert_eq!(lines(&[("a", "1"), ("b", "2")]), ["sysctl b: was 2, is gone"]);
        assert_eq!(lines(&[("a", "1"), ("b", "2"), ("b", "2"), ("c", "")]), ["sysctl c: was not there, is there"]);
    }

    #[test]
    fn a_thousand_differences_are_not_told_one_by_one() {
        let many: Vec<(String, String)> = (0..1000).map(|n| (n.to_string(), String::new())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(differences(&[section(&[])], &[section(&many)]).len(), MOST_TOLD + 1);
    }
}
