//! What is asked by way of generic netlink: what TCP remembers of others, and settings of protocols.
//!
//! Families have numbers that the kernel gives out when they come; they are asked for once.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::io::Errno;

use super::facts::{Fact, Section};
use super::place::{Family, Part, Place};
use super::verdict::{InspectError, Kind};
use crate::netns::wire::{ACK, Batch, Message, half};

const CONTROL: u16 = 16;
const GETFAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const HEADER: usize = 4;
const VERSION: u8 = 1;

struct Protocol {
    name: &'static str,
    part: Part,
    /// 0: not known yet.
    number: AtomicU16,
}

static TCP_METRICS: Protocol = Protocol::new("tcp_metrics", "tcp_metrics");
const METRICS_GET: u8 = 1;
const METRICS_DELETE: u8 = 2;

static MPTCP: Protocol = Protocol::new("mptcp_pm", "mptcp");
static SEGMENTS: Protocol = Protocol::new("SEG6", "ipv6");

/// A question about settings.
struct Question {
    of: &'static Protocol,
    what: &'static str,
    command: u8,
    is_list: bool,
}

static QUESTIONS: [Question; 4] = [
    Question { of: &MPTCP, what: "MPTCP endpoint", command: 3, is_list: true },
    Question { of: &MPTCP, what: "MPTCP limits", command: 6, is_list: false },
    Question { of: &SEGMENTS, what: "key of segment routing", command: 2, is_list: true },
    Question { of: &SEGMENTS, what: "source of segment routing", command: 4, is_list: false },
];

impl Protocol {
    const fn new(name: &'static str, module: &'static str) -> Self {
        Self { name, part: Part::new(module, Errno::NOENT), number: AtomicU16::new(0) }
    }

    fn number(&self, place: &mut Place) -> Result<Option<u16>, InspectError> {
        match self.number.load(Ordering::Relaxed) {
            0 => {
                let asked = self.part.ask(|| {
                    let mut batch = Batch::default();
                    batch.push("asking for a family", CONTROL, 0, &[GETFAMILY, 1, 0, 0], |a| a.text(FAMILY_NAME, self.name));
                    let read = |message: &Message<'_>| half(message.attributes(HEADER).get(FAMILY_ID)?, 0);
                    place.socket(Family::Generic)?.ask(&mut batch, read).map_err(InspectError::reading(self.name))
                });
                let number = asked?.flatten();
                self.number.store(number.unwrap_or(0), Ordering::Relaxed);
                Ok(number)
            }
            number => Ok(Some(number)),
        }
    }
}

/// How many connections had been made when TCP was last seen to remember nobody, if that is worth anything.
#[derive(Debug)]
pub(super) struct Opens(AtomicU64);

const NOT_KNOWN: u64 = u64::MAX;
const COUNTERS: &str = "snmp";

impl Opens {
    /// `is_quiet`: there is no connection that could be remembered when it ends.
    pub(super) fn take(place: &mut Place, is_quiet: bool) -> Result<Self, InspectError> {
        let opens = Self(AtomicU64::new(NOT_KNOWN));
        if is_quiet {
            opens.metrics(place, true)?;
        }
        Ok(opens)
    }

    /// What TCP remembers of others, by their addresses. The kernel looks through what it remembers for all namespaces, which takes a third of a
    /// millisecond; where nobody has connected since there was nothing, there is nothing.
    pub(super) fn metrics(&self, place: &mut Place, is_quiet: bool) -> Result<usize, InspectError> {
        let opens = opens(place)?.unwrap_or(NOT_KNOWN);
        if is_quiet && opens != NOT_KNOWN && self.0.load(Ordering::Relaxed) == opens {
            return Ok(0);
        }
        let Some(number) = TCP_METRICS.number(place)? else { return Ok(0) };
        let read = |message: &Message<'_>| Fact::of(message, HEADER, &[]);
        let found = place.list(Family::Generic, "what TCP remembers", number, &[METRICS_GET, VERSION, 0, 0], |_| {}, read)?.len();
        self.0.store(if found == 0 && is_quiet { opens } else { NOT_KNOWN }, Ordering::Relaxed);
        Ok(found)
    }
}

/// Connections made and taken since the namespace was.
fn opens(place: &Place) -> Result<Option<u64>, InspectError> {
    let text = place.file(COUNTERS)?.unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:")).map(str::split_whitespace);
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return Ok(None) };
    let of = names.zip(values).filter(|(name, _)| matches!(*name, "ActiveOpens" | "PassiveOpens"));
    let counts: Option<Vec<u64>> = of.map(|(_, value)| value.parse().ok()).collect();
    Ok(counts.filter(|counts| counts.len() == 2).map(|counts| counts.iter().sum()))
}

/// All of it.
pub(super) fn forget_metrics(place: &mut Place) -> Result<(), InspectError> {
    let Some(number) = TCP_METRICS.number(place)? else { return Ok(()) };
    let mut batch = Batch::default();
    batch.push("forgetting what TCP remembers", number, ACK, &[METRICS_DELETE, VERSION, 0, 0], |_| {});
    // Refused or not: it is read again.
    place.socket(Family::Generic)?.transact(&mut batch).map(drop).map_err(InspectError::reading("what TCP remembers, to remove it"))
}

/// Settings of protocols.
pub(super) fn settings(place: &mut Place) -> Result<Section, InspectError> {
    let mut facts = Vec::new();
    for question in &QUESTIONS {
        let Some(number) = question.of.number(place)? else { continue };
        let header = [question.command, VERSION, 0, 0];
        let read = |message: &Message<'_>| {
            let text = message.body.get(HEADER..)?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            (!text.is_empty()).then(|| Fact::text(question.what, text))
        };
        if question.is_list {
            facts.extend(place.list(Family::Generic, question.what, number, &header, |_| {}, read)?);
        } else {
            let mut batch = Batch::default();
            batch.push("asking for a setting", number, 0, &header, |_| {});
            facts.extend(place.socket(Family::Generic)?.ask(&mut batch, read).map_err(InspectError::reading(question.what))?);
        }
    }
    Ok(Section { kind: Kind::Protocol, facts })
}
