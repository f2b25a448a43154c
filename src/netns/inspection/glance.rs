//! A short look at what a namespace tracks: the kernel's own list in `/proc/net/nf_conntrack`, which takes no locks.
//!
//! A walk by netlink takes a lock for each of the table's buckets, of which a host has some hundred thousand: 10 ms for 262144, however few connections there
//! are (Linux 6.18). The file's walk of the same buckets takes 0.3 ms. But it is made for people: what goes and comes while it is read, it may tell
//! wrong. So it counts as seen only when nothing of that can have been:
//! - it came whole, in one read. With the next read older kernels begin anew and pass over as many as they told before, of which some may have gone;
//! - each connection that the kernel counted just before was in it. Newer kernels go on in a bucket by how many they have told of it, so that one is
//!   passed over when another one of its bucket was told and then went. That one is missing among the counted;
//! - twice, with the same connections. For one that is there all the time to be missed, another of its bucket would have to come after the
//!   count, be told, go before the kernel's next step, some nanoseconds later, come again after the second count, and go in the same way.
//!   Which connections share a bucket only the kernel knows: it is a keyed hash.
//!
//! What can go wrong: there is no such file (`CONFIG_NF_CONNTRACK_PROCFS`) or no access, too many connections for one read, a line that is not understood,
//! one that came or went each time. Then nothing was seen, and somebody has to walk.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::facts::put;
use super::host::{Entry, INET, INET6, ORIGINAL, TUPLE_IP, V4_SOURCE, V6_SOURCE, ZONE};
use super::netfilter;
use super::place::Place;
use super::verdict::InspectError;

const FILE: &str = "nf_conntrack";
/// More do not come in one read, which is a page: each is 150 bytes and more.
const MOST: usize = 32;
/// Until two that follow each other are the same.
const GLANCES: usize = 4;

const TUPLE_PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// Of ICMP, and of ICMPv6: number, type, code.
const ICMP: [u16; 3] = [4, 5, 6];
const ICMPV6: [u16; 3] = [7, 8, 9];
/// TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// A connection as the file tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// As it is sent: from, to; as it is answered: from, to.
    pub(super) ends: [IpAddr; 4],
    /// By its tuple alone; nothing where the file does not tell all of that.
    pub(super) entry: Option<Entry>,
}

/// By all that tells them apart.
pub(super) type Seen = BTreeMap<String, Told>;

/// All connections of the namespace, if that can be told.
pub(super) fn glance(place: &mut Place) -> Result<Option<Seen>, InspectError> {
    let mut before = None;
    for _ in 0..GLANCES {
        let counted = netfilter::tracked(place)?;
        if counted == 0 {
            return Ok(Some(Seen::new()));
        }
        if counted > MOST {
            return Ok(None);
        }
        place.in_time()?;
        let Some(seen) = place.file_at_once(FILE).and_then(|text| read(&text)) else { return Ok(None) };
        // One that is over is counted until it is looked at.
        let seen = Some(seen).filter(|seen| seen.len() == counted);
        if seen.is_some() && seen == before {
            return Ok(seen);
        }
        before = seen;
    }
    Ok(None)
}

fn read(text: &str) -> Option<Seen> {
    text.lines().map(line).collect()
}

/// `ipv4 2 udp 17 29 src=… dst=… sport=… dport=… [UNREPLIED] src=… dst=… sport=… dport=… mark=0 use=1`
fn line(line: &str) -> Option<(String, Told)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (family, protocol): (u8, u8) = (words.get(1)?.parse().ok()?, words.get(3)?.parse().ok()?);
    let values: Vec<(&str, &str)> = words.iter().filter_map(|word| word.split_once('=')).collect();
    let mut ends = values.iter().filter(|(key, _)| ["src", "dst"].contains(key)).map(|(_, value)| value.parse());
    let ends = [ends.next()?.ok()?, ends.next()?.ok()?, ends.next()?.ok()?, ends.next()?.ok()?];
    let tells_apart = |key: &str| !["packets", "bytes", "mark", "secctx", "delta-time", "use"].contains(&key);
    let apart: Vec<String> = values.iter().filter(|(key, _)| tells_apart(key)).map(|(key, value)| format!("{key}={value}")).collect();
    let entry = entry(family, protocol, &ends, &values);
    Some((format!("{family} {protocol} {}", apart.join(" ")), Told { ends, entry }))
}

fn entry(family: u8, protocol: u8, ends: &[IpAddr; 4], values: &[(&str, &str)]) -> Option<Entry> {
    // The tuple as it is sent ends where that begins as it is answered.
    let answered = values.iter().rposition(|(key, _)| *key == "src")?;
    let value = |name: &str| values[..answered].iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let zone = |name: &str| values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let (mut ip, mut proto, mut tuple, mut attributes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (further, end) in (0..).zip(&ends[..2]) {
        match (family, end) {
            (INET, IpAddr::V4(end)) => put(&mut ip, V4_SOURCE + further, &end.octets()),
            (INET6, IpAddr::V6(end)) => put(&mut ip, V6_SOURCE + further, &end.octets()),
            _ => return None,
        }
    }
    put(&mut proto, NUMBER, &[protocol]);
    match protocol {
        _ if WITH_PORTS.contains(&protocol) => {
            for (kind, name) in [(SOURCE_PORT, "sport"), (DESTINATION_PORT, "dport")] {
                put(&mut proto, kind, &value(name)?.parse::<u16>().ok()?.to_be_bytes());
            }
        }
        1 | 58 => {
            let [id, kind, code] = if protocol == 1 { ICMP } else { ICMPV6 };
            put(&mut proto, id, &value("id")?.parse::<u16>().ok()?.to_be_bytes());
            put(&mut proto, kind, &[value("type")?.parse().ok()?]);
            put(&mut proto, code, &[value("code")?.parse().ok()?]);
        }
        _ => return None,
    }
    put(&mut tuple, TUPLE_IP, &ip);
    put(&mut tuple, TUPLE_PROTOCOL, &proto);
    put(&mut attributes, ORIGINAL, &tuple);
    if let Some(zone) = zone("zone") {
        put(&mut attributes, ZONE, &zone.parse::<u16>().ok()?.to_be_bytes());
    }
    // A zone of one direction alone is part of the tuple.
    let whole = zone("zone-orig").is_none() && zone("zone-reply").is_none();
    whole.then_some(Entry { family, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::wire::{Attributed, half};

    const UDP: &str = "ipv4     2 udp      17 29 src=10.5.0.2 dst=10.6.0.2 sport=4000 dport=53 packets=1 bytes=60 [UNREPLIED] \
        src=10.6.0.2 dst=192.0.2.1 sport=53 dport=4001 packets=0 bytes=0 mark=7 zone=5 use=2";

    #[test]
    fn a_line_tells_all_ends_and_what_it_can_be_removed_by() {
        let (told, udp) = line(UDP).unwrap();
        assert_eq!(udp.ends, ["10.5.0.2", "10.6.0.2", "10.6.0.2", "192.0.2.1"].map(|end| end.parse::<IpAddr>().unwrap()));
        let entry = udp.entry.unwrap();
        let (all, tuple) = (Attributed(&entry.attributes), Attributed(&entry.attributes).nested(ORIGINAL));
        let port = |kind| tuple.nested(TUPLE_PROTOCOL).get(kind).map(|port| u16::from_be_bytes(port[..2].try_into().unwrap()));
        assert_eq!((entry.family, tuple.nested(TUPLE_IP).get(V4_SOURCE)), (INET, Some(&[10, 5, 0, 2][..])));
        assert_eq!((port(SOURCE_PORT), port(DESTINATION_PORT)), (Some(4000), Some(53)));
        assert_eq!(half(all.get(ZONE).unwrap(), 0), Some(5_u16.to_be()));
        // What passes changes no name, a port does.
        let later = UDP.replace("packets=1 bytes=60", "packets=2 bytes=99").replace("17 29", "17 28").replace("[UNREPLIED] ", "");
        assert_eq!(line(&later).unwrap().0, told);
        assert_ne!(line(&UDP.replace("dport=4001", "dport=4002")).unwrap().0, told);
    }

    #[test]
    fn what_is_not_told_in_full_is_not_removed_by_it_and_what_is_not_understood_is_not_seen() {
        for (one, other) in [("zone=5", "zone-orig=5"), ("zone=5", "zone-reply=5"), ("udp      17", "gre      47"), ("sport=4000", "x=1")] {
            assert_eq!(line(&UDP.replace(one, other)).unwrap().1.entry, None, "{other}");
        }
        for (one, other) in [("src=10.5.0.2", "src=?"), ("17 29", "x 29"), ("dst=192.0.2.1 ", "")] {
            assert_eq!(line(&UDP.replace(one, other)), None, "{other}");
        }
        assert_eq!(read(&format!("{UDP}\n\n")), None);
    }
}
