//! What rtnetlink tells: links, addresses, routes of all tables and families, rules, nexthops, neighbours, queueing, filters.
//!
//! Each is one question for all of a kind. Routes that were learnt (path MTUs, redirects) come with the others, neighbours that were learnt
//! with those that somebody set; they are kept apart here, because they may be removed.

use std::net::Ipv6Addr;

use rustix::io::Errno;

use super::facts::{Fact, Section};
use super::link;
use super::place::{Family, Place};
use super::verdict::{InspectError, Kind};
use crate::netns::wire::{Message, half, word};

const GETLINK: u16 = 18;
const GETADDR: u16 = 22;
const GETROUTE: u16 = 26;
const GETNEIGH: u16 = 30;
const GETRULE: u16 = 34;
const GETQDISC: u16 = 38;
const GETTCLASS: u16 = 42;
const GETTFILTER: u16 = 46;
const GETNEIGHTBL: u16 = 66;
const GETADDRLABEL: u16 = 74;
const GETNEXTHOP: u16 = 106;

const EXT_MASK: u16 = 29;
/// Traffic counters cost more than all the rest of an answer.
const SKIP_STATISTICS: u32 = 1 << 3;

const ADDRESS: usize = 8;
const ADDRESS_LABEL: usize = 12;
const INET6: u8 = 10;
pub(super) const ROUTE: usize = 12;
const RULE: usize = 12;
pub(super) const NEIGHBOUR: usize = 12;
const NEXTHOP: usize = 8;
const NEIGHBOUR_TABLE: usize = 4;
const QUEUE: usize = 20;

/// When it was made and used, how often, until when.
const ADDRESS_PASSING: [u16; 1] = [6];
const ROUTE_PASSING: [u16; 3] = [12, 17, 23];
const NEIGHBOUR_PASSING: [u16; 2] = [3, 4];
const QUEUE_PASSING: [u16; 3] = [3, 4, 7];
/// "This one was learnt by and by."
const ROUTE_CLONED: u32 = 0x200;
const STATE_PERMANENT: u16 = 0x80;
const PROXY: u8 = 8;
const BRIDGE: u8 = 7;
const PARAMETERS: u16 = 6;
const PARAMETERS_LINK: u16 = 1;
/// How many use them, and a time that the kernel draws by lot again and again.
const PARAMETERS_PASSING: [u16; 2] = [2, 3];
/// Those that have no filters and no classes.
const PLAIN: [&str; 5] = ["noqueue", "pfifo_fast", "pfifo", "bfifo", "mq"];
const QUEUE_KIND: u16 = 1;
/// Where filters are that see what comes in, and what goes out.
const CLSACT_PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// What [`read`] gives: what stays, and what was learnt.
#[derive(Debug, Default)]
pub(super) struct Routed {
    pub(super) sections: Vec<Section>,
    pub(super) neighbours: Vec<Fact>,
    pub(super) learnt_routes: Vec<Fact>,
}

pub(super) fn read(place: &mut Place) -> Result<Routed, InspectError> {
    let (routes, learnt_routes) = routes(place)?;
    let (mut permanent, neighbours) = neighbours(place)?;
    permanent.extend(proxies(place)?);
    let links = place.list(Family::Route, "links", GETLINK, &[0; link::HEADER], |a| a.number(EXT_MASK, SKIP_STATISTICS), link::fact)?;
    let qdiscs = queueing(place, "qdiscs", GETQDISC, [0; QUEUE])?;
    let filters = filters(place, &qdiscs)?;
    let sections = vec![
        Section { kind: Kind::Link, facts: links },
        Section { kind: Kind::Address, facts: plain(place, "addresses", GETADDR, ADDRESS, &ADDRESS_PASSING)? },
        Section { kind: Kind::AddressLabel, facts: or_none(address_labels(place))? },
        Section { kind: Kind::Route, facts: routes },
        Section { kind: Kind::Rule, facts: plain(place, "rules", GETRULE, RULE, &[])? },
        Section { kind: Kind::Nexthop, facts: or_none(plain(place, "nexthops", GETNEXTHOP, NEXTHOP, &[]))? },
        Section { kind: Kind::Neighbour, facts: permanent },
        Section { kind: Kind::NeighbourSettings, facts: neighbour_settings(place)? },
        Section { kind: Kind::ForwardingEntry, facts: or_none(forwarding(place))? },
        Section { kind: Kind::Qdisc, facts: qdiscs },
        Section { kind: Kind::Filter, facts: filters },
    ];
    Ok(Routed { sections, neighbours, learnt_routes })
}

fn plain(place: &mut Place, what: &str, kind: u16, header: usize, without: &[u16]) -> Result<Vec<Fact>, InspectError> {
    place.list(Family::Route, what, kind, &vec![0; header], |_| {}, |message| Fact::of(message, header, without))
}

/// Of something that older kernels do not know.
fn or_none(facts: Result<Vec<Fact>, InspectError>) -> Result<Vec<Fact>, InspectError> {
    match facts {
        Err(InspectError::Unreadable { cause: Errno::OPNOTSUPP, .. }) => Ok(Vec::new()),
        facts => facts,
    }
}

/// Those that somebody set, and those that were learnt.
pub(super) fn routes(place: &mut Place) -> Result<(Vec<Fact>, Vec<Fact>), InspectError> {
    let all = plain(place, "routes", GETROUTE, ROUTE, &ROUTE_PASSING)?;
    Ok(all.into_iter().partition(|route| word(route.header(), 8).unwrap_or(0) & ROUTE_CLONED == 0))
}

/// Those that somebody set, and those that were learnt, or that the kernel made by itself.
pub(super) fn neighbours(place: &mut Place) -> Result<(Vec<Fact>, Vec<Fact>), InspectError> {
    let all = plain(place, "neighbours", GETNEIGH, NEIGHBOUR, &NEIGHBOUR_PASSING)?;
    Ok(all.into_iter().partition(|neighbour| half(neighbour.header(), 8).unwrap_or(0) & STATE_PERMANENT != 0))
}

fn proxies(place: &mut Place) -> Result<Vec<Fact>, InspectError> {
    let mut header = [0; NEIGHBOUR];
    header[10] = PROXY;
    let read = |message: &Message<'_>| Fact::of(message, NEIGHBOUR, &NEIGHBOUR_PASSING);
    place.list(Family::Route, "proxy neighbours", GETNEIGH, &header, |_| {}, read)
}

fn forwarding(place: &mut Place) -> Result<Vec<Fact>, InspectError> {
    let mut header = [0; NEIGHBOUR];
    header[0] = BRIDGE;
    let read = |message: &Message<'_>| Fact::of(message, NEIGHBOUR, &NEIGHBOUR_PASSING);
    place.list(Family::Route, "forwarding entries", GETNEIGH, &header, |_| {}, read)
}

/// Which IPv6 addresses are preferred; every namespace has some from the beginning.
fn address_labels(place: &mut Place) -> Result<Vec<Fact>, InspectError> {
    let mut header = [0; ADDRESS_LABEL];
    header[0] = INET6;
    let read = |message: &Message<'_>| {
        let address = message.attributes(ADDRESS_LABEL).get(1).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())?;
        let prefix = message.body.get(2)?;
        let label = message.attributes(ADDRESS_LABEL).number(2)?;
        Some(Fact::text(format!("{}/{prefix}", Ipv6Addr::from(address)), format!("label {label}")))
    };
    place.list(Family::Route, "address labels", GETADDRLABEL, &header, |_| {}, read)
}

/// Of each link. Those of the whole host are nobody's in here.
fn neighbour_settings(place: &mut Place) -> Result<Vec<Fact>, InspectError> {
    place.list(
        Family::Route,
        "settings of neighbours",
        GETNEIGHTBL,
        &[0; NEIGHBOUR_TABLE],
        |_| {},
        |message| {
            let parameters = message.attributes(NEIGHBOUR_TABLE).nested(PARAMETERS);
            parameters.number(PARAMETERS_LINK)?;
            let mut fact = Fact::of(message, NEIGHBOUR_TABLE, &[2, 3, 4, 5, PARAMETERS, 7, 8])?;
            let Fact::Message { bytes, .. } = &mut fact else { return None };
            let lasting = parameters.all().filter(|(kind, _)| !PARAMETERS_PASSING.contains(kind));
            let mut nest = Vec::new();
            lasting.for_each(|(kind, value)| super::facts::put(&mut nest, kind, value));
            super::facts::put(bytes, PARAMETERS, &nest);
            Some(fact)
        },
    )
}

fn queueing(place: &mut Place, what: &str, kind: u16, header: [u8; QUEUE]) -> Result<Vec<Fact>, InspectError> {
    place.list(
        Family::Route,
        what,
        kind,
        &header,
        |_| {},
        |message| {
            let mut fact = Fact::of(message, QUEUE, &QUEUE_PASSING)?;
            if kind == GETQDISC {
                // How many hold it.
                fact.header_mut()[16..QUEUE].fill(0);
            }
            Some(fact)
        },
    )
}

/// And classes. A namespace whose queues are plain ones, as they are where nobody has set any, costs no question.
fn filters(place: &mut Place, qdiscs: &[Fact]) -> Result<Vec<Fact>, InspectError> {
    let mut found = Vec::new();
    for qdisc in qdiscs {
        let kind = qdisc.attributes().text(QUEUE_KIND).unwrap_or_default();
        if PLAIN.contains(&kind.as_str()) {
            continue;
        }
        let handle = word(qdisc.header(), 8).unwrap_or(0);
        let parents = if kind == "clsact" { CLSACT_PARENTS.to_vec() } else { vec![handle] };
        for parent in parents {
            let mut header = [0; QUEUE];
            header[4..8].copy_from_slice(&qdisc.header()[4..8]);
            header[12..16].copy_from_slice(&parent.to_ne_bytes());
            found.extend(queueing(place, "filters", GETTFILTER, header)?);
        }
        let mut header = [0; QUEUE];
        header[4..8].copy_from_slice(&qdisc.header()[4..8]);
        found.extend(queueing(place, "classes", GETTCLASS, header)?);
    }
    Ok(found)
}
