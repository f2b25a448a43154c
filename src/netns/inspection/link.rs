//! Links: what is compared of them, and what is said of one that is not as it was: each thing by its own name.
//!
//! All that the kernel tells of a link is compared, but for its counters and what it measures; thus also what no name is known of here. The
//! state of its carrier is: a slot whose link is dead is not as it was when it was ready.

use std::collections::BTreeMap;

use super::facts::{Fact, Names, Section, put};
use super::shown::{As, shown};
use super::verdict::{Difference, Kind};
use crate::netns::wire::{Attributed, Message, word};

pub(super) const HEADER: usize = 16;
const IFNAME: u16 = 3;
const AF_SPEC: u16 = 26;
const XDP: u16 = 43;
const LINKINFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_XSTATS: u16 = 3;
/// Counters, and how often carriers came and went.
const PASSING: [u16; 7] = [7, 23, 35, 47, 48, AF_SPEC, LINKINFO];
const INET: u16 = 2;
const INET6: u16 = 10;
/// Settings, the part of an address that is fixed, how addresses come about, and the routers' MTU; not the counters, nor the times.
const INET6_LASTING: [u16; 4] = [2, 7, 8, 9];
const INET_CONF: u16 = 1;
const INET6_CONF: u16 = 2;

/// What attributes are called, and how they read.
const ATTRIBUTES: [(u16, &str, As); 25] = [
    (1, "address", As::Mac),
    (2, "broadcast", As::Mac),
    (IFNAME, "name", As::Text),
    (4, "mtu", As::Number),
    (5, "lower link", As::Link),
    (6, "qdisc", As::Text),
    (10, "master", As::Link),
    (13, "txqueuelen", As::Number),
    (16, "operstate", As::Number),
    (17, "mode", As::Number),
    (LINKINFO, "kind", As::Hex),
    (20, "alias", As::Text),
    (27, "group", As::Number),
    (30, "promiscuity", As::Number),
    (31, "tx queues", As::Number),
    (32, "rx queues", As::Number),
    (33, "carrier", As::Number),
    (37, "peer's namespace", As::Number),
    (39, "proto_down", As::Number),
    (40, "gso_max_segs", As::Number),
    (41, "gso_max_size", As::Number),
    (XDP, "xdp", As::Hex),
    (52, "other names", As::Hex),
    (58, "gro_max_size", As::Number),
    (61, "allmulti", As::Number),
];
const FLAGS: [&str; 19] = [
    "UP",
    "BROADCAST",
    "DEBUG",
    "LOOPBACK",
    "POINTOPOINT",
    "NOTRAILERS",
    "RUNNING",
    "NOARP",
    "PROMISC",
    "ALLMULTI",
    "MASTER",
    "SLAVE",
    "MULTICAST",
    "PORTSEL",
    "AUTOMEDIA",
    "DYNAMIC",
    "LOWER_UP",
    "DORMANT",
    "ECHO",
];

pub(super) fn fact(message: &Message<'_>) -> Option<Fact> {
    let mut fact = Fact::of(message, HEADER, &PASSING)?;
    let attributes = message.attributes(HEADER);
    let Fact::Message { bytes, .. } = &mut fact else { return None };
    bytes[12..HEADER].fill(0);
    if let Some(info) = attributes.get(LINKINFO) {
        put(bytes, LINKINFO, &without(info, &[INFO_XSTATS]));
    }
    let mut settings = Vec::new();
    for (family, value) in attributes.nested(AF_SPEC).all() {
        let value = if family == INET6 { only(value, &INET6_LASTING) } else { value.to_vec() };
        put(&mut settings, family, &value);
    }
    put(bytes, AF_SPEC, &settings);
    Some(fact)
}

fn without(nest: &[u8], kinds: &[u16]) -> Vec<u8> {
    filtered(nest, |kind| !kinds.contains(&kind))
}

fn only(nest: &[u8], kinds: &[u16]) -> Vec<u8> {
    filtered(nest, |kind| kinds.contains(&kind))
}

fn filtered(nest: &[u8], wanted: impl Fn(u16) -> bool) -> Vec<u8> {
    let mut kept = Vec::with_capacity(nest.len());
    for (kind, value) in Attributed(nest).all().filter(|&(kind, _)| wanted(kind)) {
        put(&mut kept, kind, value);
    }
    kept
}

pub(super) fn index(fact: &Fact) -> u32 {
    word(fact.header(), 4).unwrap_or(0)
}

fn name(fact: &Fact) -> String {
    fact.attributes().get(IFNAME).map(|bytes| shown(As::Text, bytes, &Names::new())).unwrap_or_default()
}

pub(super) fn names(sections: &[Section]) -> Names {
    let links = sections.iter().filter(|section| section.kind == Kind::Link);
    links.flat_map(|section| &section.facts).map(|fact| (index(fact), name(fact))).collect()
}

/// Of links that are not as they were.
pub(super) fn differences(gone: &[&Fact], new: &[&Fact]) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut new: BTreeMap<u32, &Fact> = new.iter().map(|fact| (index(fact), *fact)).collect();
    let whole = |fact: &Fact| Some(format!("index {}, {}", index(fact), kind_of(fact)));
    for was in gone {
        let difference =
            |was, is| Difference { kind: Kind::Link, subject: name_of(was, is), was: was.and_then(whole), is: is.and_then(whole) };
        match new.remove(&index(was)) {
            Some(is) => {
                let told = found.len();
                parts(was, is, &mut found);
                if found.len() == told {
                    // They differ in something that has no words here, and must not pass for the same.
                    found.push(difference(Some(*was), Some(is)));
                }
            }
            None => found.push(difference(Some(*was), None)),
        }
    }
    found.extend(new.into_values().map(|is| Difference { kind: Kind::Link, subject: name(is), was: None, is: whole(is) }));
    found
}

fn name_of(was: Option<&Fact>, is: Option<&Fact>) -> String {
    was.or(is).map(name).unwrap_or_default()
}

fn kind_of(fact: &Fact) -> String {
    let kind = fact.attributes().nested(LINKINFO).text(INFO_KIND);
    kind.map_or("of no kind".to_owned(), |kind| format!("a {}", kind.escape_debug()))
}

fn parts(was: &Fact, is: &Fact, found: &mut Vec<Difference>) {
    let subject = name(was);
    let mut tell = |kind: Kind, what: &str, was: Option<String>, is: Option<String>| {
        if was != is {
            found.push(Difference { kind, subject: format!("{subject} {what}"), was, is });
        }
    };
    tell(Kind::Link, "flags", Some(flags(was)), Some(flags(is)));
    tell(Kind::Link, "kind", Some(kind_of(was)), Some(kind_of(is)));
    let names = Names::new();
    let mut attributes: BTreeMap<u16, [Option<&[u8]>; 2]> = BTreeMap::new();
    for (side, fact) in [was, is].into_iter().enumerate() {
        for (kind, value) in fact.attributes().all() {
            attributes.entry(kind).or_default()[side] = Some(value);
        }
    }
    for (attribute, [was, is]) in attributes.into_iter().filter(|(_, [was, is])| was != is) {
        match (attribute, ATTRIBUTES.iter().find(|(known, ..)| *known == attribute)) {
            (AF_SPEC, _) => {
                let (was, is) = (settings(was), settings(is));
                let keys: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
                keys.into_iter().for_each(|key| tell(Kind::Link, key, was.get(key).cloned(), is.get(key).cloned()));
            }
            (XDP, _) => tell(Kind::Bpf, "xdp", was.map(|was| shown(As::Hex, was, &names)), is.map(|is| shown(As::Hex, is, &names))),
            (_, Some(&(_, what, how))) => {
                tell(Kind::Link, what, was.map(|was| shown(how, was, &names)), is.map(|is| shown(how, is, &names)))
            }
            (other, None) => {
                let what = format!("attribute {other}");
                tell(Kind::Link, &what, was.map(|was| shown(As::Hex, was, &names)), is.map(|is| shown(As::Hex, is, &names)));
            }
        }
    }
}

fn flags(fact: &Fact) -> String {
    let flags = word(fact.header(), 8).unwrap_or(0);
    let set = FLAGS.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name);
    set.collect::<Vec<_>>().join(",")
}

/// What `/proc/sys/net/ipv4/conf` and `/proc/sys/net/ipv6/conf` say of the link, by their numbers in the kernel.
fn settings(nest: Option<&[u8]>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let number = |bytes: &[u8]| shown(As::Number, bytes, &Names::new());
    let nest = Attributed(nest.unwrap_or_default());
    let ipv4 = nest.nested(INET).get(INET_CONF).unwrap_or_default();
    // Counted from 1 in the kernel.
    found.extend(ipv4.chunks(4).enumerate().map(|(at, value)| (format!("IPv4 setting {}", at + 1), number(value))));
    for (kind, value) in nest.nested(INET6).all() {
        if kind == INET6_CONF {
            found.extend(value.chunks(4).enumerate().map(|(at, value)| (format!("IPv6 setting {at}"), number(value))));
        } else {
            found.insert(format!("IPv6 attribute {kind}"), shown(As::Hex, value, &Names::new()));
        }
    }
    found
}
