//! Firewalls: nftables, the objects that rules may use, connection tracking.
//!
//! The kernel counts the changes to a namespace's nftables. As long as that number is the baseline's, the ruleset is; only if it is not, the
//! rules themselves are read. What packets alone add to the sets of a ruleset that was there from the beginning is not seen.

use rustix::io::Errno;

use super::facts::{Fact, Section};
use super::place::{Family, Part, Place};
use super::verdict::{InspectError, Kind};
use crate::netns::wire::{ACK, Attributed, Batch, Message, word};

pub(super) const HEADER: usize = 4;
pub(super) const CONNTRACK: u16 = 1 << 8;
const IPSET: u16 = 6 << 8;
const ACCOUNTING: u16 = 7 << 8;
const TIMEOUTS: u16 = 8 << 8;
const NFTABLES: u16 = 10 << 8;
const GETGEN: u16 = NFTABLES + 16;
const GEN_ID: u16 = 1;
const GETSET: u16 = NFTABLES + 10;
const GETSETELEM: u16 = NFTABLES + 13;
/// Tables, chains, rules, sets, objects, flowtables.
const RULESET: [u16; 6] = [NFTABLES + 1, NFTABLES + 4, NFTABLES + 7, GETSET, NFTABLES + 19, NFTABLES + 23];
const TABLE: u16 = 1;
const SET: u16 = 2;
const IPSET_PROTOCOL: u16 = 1;
/// What `ipset` 6 and later speak.
const IPSET_VERSION: &[u8] = &[6];
const IPSET_LIST: u16 = IPSET + 7;
pub(super) const CONNTRACK_DELETE: u16 = CONNTRACK + 2;
const CONNTRACK_STATISTICS: u16 = CONNTRACK + 5;
const CONNTRACK_ENTRIES: u16 = 1;
const COUNT_FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

static NF_TABLES: Part = Part::new("nf_tables", Errno::INVAL);
static IP_SET: Part = Part::new("ip_set", Errno::INVAL);
static ACCT: Part = Part::new("nfnetlink_acct", Errno::INVAL);
static CTTIMEOUT: Part = Part::new("nfnetlink_cttimeout", Errno::INVAL);
static CTNETLINK: Part = Part::new("nf_conntrack_netlink", Errno::INVAL);

/// What there is, and by which number of changes it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruleset {
    generation: Option<u32>,
    pub(super) section: Section,
}

/// The same as before, if nothing has changed since.
pub(super) fn ruleset(place: &mut Place, before: Option<&Ruleset>) -> Result<Ruleset, InspectError> {
    loop {
        let generation = generation(place)?;
        if let Some(before) = before.filter(|before| before.generation == generation) {
            return Ok(before.clone());
        }
        let facts = if generation.is_some() { whole_ruleset(place)? } else { Vec::new() };
        if self::generation(place)? == generation {
            return Ok(Ruleset { generation, section: Section { kind: Kind::Nftables, facts } });
        }
        place.in_time()?;
    }
}

fn generation(place: &mut Place) -> Result<Option<u32>, InspectError> {
    let asked = NF_TABLES.ask(|| {
        let mut batch = Batch::default();
        batch.push("asking for the ruleset's generation", GETGEN, 0, &[0; HEADER], |_| {});
        let socket = place.socket(Family::Netfilter)?;
        let read = |message: &Message<'_>| big(message.attributes(HEADER), GEN_ID);
        socket.ask(&mut batch, read).map_err(InspectError::reading("the ruleset of nftables"))
    });
    Ok(asked?.flatten())
}

fn whole_ruleset(place: &mut Place) -> Result<Vec<Fact>, InspectError> {
    let mut found = Vec::new();
    for kind in RULESET {
        let facts = objects(place, "the ruleset of nftables", kind, &[])?;
        if kind == GETSET {
            for set in &facts {
                let family = set.header().first().copied().unwrap_or(0);
                let of = |attribute| set.attributes().get(attribute).unwrap_or_default().to_vec();
                found.extend(objects(place, "a set of nftables", GETSETELEM, &[(0, vec![family]), (TABLE, of(TABLE)), (SET, of(SET))])?);
            }
        }
        found.extend(facts);
    }
    Ok(found)
}

/// The attribute 0 stands for the family.
fn objects(place: &mut Place, what: &str, kind: u16, asked: &[(u16, Vec<u8>)]) -> Result<Vec<Fact>, InspectError> {
    let family = asked.iter().find(|(attribute, _)| *attribute == 0).and_then(|(_, value)| value.first().copied()).unwrap_or(0);
    place.list(
        Family::Netfilter,
        what,
        kind,
        &[family, 0, 0, 0],
        |a| asked.iter().filter(|(attribute, _)| *attribute != 0).for_each(|(attribute, value)| a.put(*attribute, value)),
        |message| {
            let mut fact = Fact::of(message, HEADER, &[])?;
            // The number of changes, which is another one each time.
            fact.header_mut()[2..].fill(0);
            Some(fact)
        },
    )
}

/// What rules could use, if there were any.
pub(super) fn things(place: &mut Place) -> Result<Section, InspectError> {
    let version = [(IPSET_PROTOCOL, IPSET_VERSION.to_vec())];
    let mut facts = IP_SET.ask(|| objects(place, "sets", IPSET_LIST, &version))?.unwrap_or_default();
    facts.extend(ACCT.ask(|| objects(place, "accounting objects", ACCOUNTING + 1, &[]))?.into_iter().flatten());
    facts.extend(CTTIMEOUT.ask(|| objects(place, "timeout policies", TIMEOUTS + 1, &[]))?.into_iter().flatten());
    Ok(Section { kind: Kind::NetfilterObject, facts })
}

/// How many connections are tracked for the namespace.
pub(super) fn tracked(place: &mut Place) -> Result<usize, InspectError> {
    let asked = CTNETLINK.ask(|| {
        let mut batch = Batch::default();
        batch.push("counting connections", CONNTRACK_STATISTICS, 0, &[0; HEADER], |_| {});
        let read = |message: &Message<'_>| big(message.attributes(HEADER), CONNTRACK_ENTRIES);
        place.socket(Family::Netfilter)?.ask(&mut batch, read).map_err(InspectError::reading("the count of tracked connections"))
    });
    match asked? {
        Some(Some(count)) => Ok(count as usize),
        // Tracked they may be all the same.
        Some(None) | None => match std::fs::read_to_string(COUNT_FILE) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            text => {
                let unreadable = || InspectError::reading(COUNT_FILE)(Errno::IO);
                text.ok().and_then(|text| text.trim().parse().ok()).ok_or_else(unreadable)
            }
        },
    }
}

/// All of them, with what they expect.
pub(super) fn forget_connections(place: &mut Place) -> Result<(), InspectError> {
    let mut batch = Batch::default();
    batch.push("forgetting connections", CONNTRACK_DELETE, ACK, &[0; HEADER], |_| {});
    // Refused or not: they are counted again.
    place.socket(Family::Netfilter)?.transact(&mut batch).map(drop).map_err(InspectError::reading("tracked connections, to remove them"))
}

fn big(attributes: Attributed<'_>, kind: u16) -> Option<u32> {
    word(attributes.get(kind)?, 0).map(u32::from_be)
}
