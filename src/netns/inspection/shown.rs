//! Facts as people read them: what they are about, and what they say of it.
//!
//! Everything of a fact is in one or the other, by its name or, where none is known here, as bytes: two facts that differ never read the same.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::facts::{Fact, Names};
use super::verdict::Kind;
use crate::netns::wire::{half, word};

/// Of a text or of bytes.
const LONGEST: usize = 64;

/// How a value reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    Ip,
    Mac,
    Number,
    Text,
    /// Its name, by its index.
    Link,
    Hex,
}

pub(super) fn shown(how: As, bytes: &[u8], names: &Names) -> String {
    match (how, bytes.len()) {
        (As::Ip, 4) => <[u8; 4]>::try_from(bytes).map(|ip| IpAddr::from(ip).to_string()).unwrap_or_default(),
        (As::Ip, 16) => <[u8; 16]>::try_from(bytes).map(|ip| IpAddr::from(ip).to_string()).unwrap_or_default(),
        (As::Mac, 1..=8) => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        (As::Number, 1) => bytes[0].to_string(),
        (As::Number, 2) => half(bytes, 0).unwrap_or(0).to_string(),
        (As::Number, 4) => word(bytes, 0).unwrap_or(0).to_string(),
        (As::Link, 4) => link(word(bytes, 0).unwrap_or(0), names),
        (As::Text, _) => {
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end.min(LONGEST)]).escape_debug().to_string()
        }
        _ => hex(bytes),
    }
}

/// A text without control characters, not longer than is good for a line.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let short: String = text.chars().take(LONGEST).collect();
    format!("{short}... ({} bytes)", text.len())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in bytes.iter().take(LONGEST) {
        let _ = write!(text, "{byte:02x}");
    }
    if bytes.len() > LONGEST {
        let _ = write!(text, "... ({} bytes)", bytes.len());
    }
    text
}

fn link(index: u32, names: &Names) -> String {
    names.get(&index).cloned().unwrap_or_else(|| format!("#{index}"))
}

/// What kind of difference it makes, what it is about, and what it says.
pub(super) fn told(kind: Kind, fact: &Fact, names: &Names) -> (Kind, String, String) {
    let message = match fact {
        Fact::Message { message, .. } => *message,
        Fact::Text { subject, value } => return (kind, subject.clone(), value.clone()),
    };
    let told = Told { fact, names };
    let (subject, value) = match kind {
        Kind::Address => told.address(),
        Kind::Route => told.route(),
        Kind::Rule => told.rule(),
        Kind::Nexthop => (told.number(1), hex(fact.header()) + &told.rest(&[1], &NEXTHOP)),
        Kind::Neighbour => told.neighbour(told.ip(1)),
        Kind::ForwardingEntry => told.neighbour(None),
        Kind::NeighbourSettings => {
            let settings = fact.attributes().nested(6);
            (format!("{} dev {}", told.text(1), link(settings.number(1).unwrap_or(0), names)), hex(settings.0))
        }
        Kind::Qdisc | Kind::Filter => {
            let kind = if kind == Kind::Filter && told.text(1) == "bpf" { Kind::Bpf } else { kind };
            let subject = format!("{} dev {} parent {:x}", told.text(1), told.link(4), told.word(12));
            return (kind, subject, format!("handle {:x} info {:x}{}", told.word(8), told.word(16), told.rest(&[1], &[])));
        }
        Kind::Nftables => told.nftables(message),
        Kind::XfrmState => {
            let to = if told.byte(212) == 2 { 56..60 } else { 56..72 };
            let to = shown(As::Ip, fact.header().get(to).unwrap_or_default(), names);
            // Not what is in its attributes, which are its keys.
            (format!("to {to} spi {:#x}", told.word(72).swap_bytes()), String::new())
        }
        Kind::XfrmPolicy => {
            let selector = hex(fact.header().get(..56).unwrap_or_default());
            let subject = format!("{} of direction {}", told.word(156), told.byte(160));
            (subject, format!("action {} {selector}{}", told.byte(161), told.rest(&[], &[])))
        }
        // Some have their name first, some after a version.
        Kind::NetfilterObject => (if told.text(2).is_empty() { told.text(1) } else { told.text(2) }, told.rest(&[], &[])),
        Kind::Link
        | Kind::Bpf
        | Kind::LegacyTable
        | Kind::Multicast
        | Kind::Protocol
        | Kind::Socket
        | Kind::Sysctl
        | Kind::AddressLabel
        | Kind::VirtualServer
        | Kind::SharedFile
        | Kind::Ipc
        | Kind::NotRemoved
        | Kind::Unreadable
        | Kind::Late => (hex(fact.header()), told.rest(&[], &[])),
    };
    (kind, subject, value)
}

/// A message that is being told, with words for its parts. What is missing reads as nothing.
struct Told<'a> {
    fact: &'a Fact,
    names: &'a Names,
}

impl Told<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.fact.header().get(at).copied().unwrap_or(0)
    }

    fn word(&self, at: usize) -> u32 {
        word(self.fact.header(), at).unwrap_or(0)
    }

    fn link(&self, at: usize) -> String {
        link(self.word(at), self.names)
    }

    fn text(&self, attribute: u16) -> String {
        self.fact.attributes().get(attribute).map(|bytes| shown(As::Text, bytes, self.names)).unwrap_or_default()
    }

    fn ip(&self, attribute: u16) -> Option<String> {
        self.fact.attributes().get(attribute).map(|bytes| shown(As::Ip, bytes, self.names))
    }

    fn number(&self, attribute: u16) -> String {
        self.fact.attributes().number(attribute).unwrap_or(0).to_string()
    }

    fn rest(&self, without: &[u16], known: &[Known]) -> String {
        details(self.fact, without, known, self.names)
    }

    fn address(&self) -> (String, String) {
        let address = self.ip(2).or_else(|| self.ip(1)).unwrap_or_default();
        let subject = format!("{address}/{} dev {}", self.byte(1), self.link(4));
        (subject, format!("scope {}{}", self.byte(3), self.rest(&[2], &ADDRESS)))
    }

    fn route(&self) -> (String, String) {
        let to = self.ip(1).map_or("default".to_owned(), |to| format!("{to}/{}", self.byte(1)));
        let table = self.fact.attributes().number(15).unwrap_or_else(|| self.byte(4).into());
        let subject = format!("{to} table {table} family {} type {}", self.byte(0), self.byte(7));
        let (protocol, scope, tos, flags) = (self.byte(5), self.byte(6), self.byte(3), self.word(8));
        (subject, format!("protocol {protocol} scope {scope} tos {tos} flags {flags:#x}{}", self.rest(&[1, 15], &ROUTE)))
    }

    fn rule(&self) -> (String, String) {
        let subject = format!("{} family {}", self.number(6), self.byte(0));
        let (from, to, action, flags) = (self.byte(2), self.byte(1), self.byte(7), self.word(8));
        (subject, format!("from /{from} to /{to} action {action} flags {flags:#x}{}", self.rest(&[6], &RULE)))
    }

    fn neighbour(&self, ip: Option<String>) -> (String, String) {
        let to = ip.or_else(|| self.fact.attributes().get(2).map(|mac| shown(As::Mac, mac, self.names)));
        let subject = format!("{} dev {}", to.unwrap_or_default(), self.link(4));
        let state = half(self.fact.header(), 8).unwrap_or(0);
        (subject, format!("state {state:#x} flags {:#x}{}", self.byte(10), self.rest(&[1], &NEIGHBOUR)))
    }

    fn nftables(&self, message: u16) -> (String, String) {
        let family = match self.byte(0) {
            1 => "inet",
            2 => "ip",
            3 => "arp",
            5 => "netdev",
            7 => "bridge",
            10 => "ip6",
            _ => "unknown",
        };
        let (what, name) = match message & 0xff {
            0 => ("table", String::new()),
            3 => ("chain", self.text(3)),
            6 => ("rule in", self.text(2)),
            9 => ("set", self.text(2)),
            12 => ("elements of", self.text(2)),
            18 => ("object", self.text(2)),
            22 => ("flowtable", self.text(2)),
            _ => ("something in", String::new()),
        };
        (format!("{what} {family} {} {name}", self.text(1)).trim_end().to_owned(), self.rest(&[1], &[]))
    }
}

/// An attribute, what it is called, how it reads.
type Known = (u16, &'static str, As);

const ADDRESS: [Known; 6] = [
    (1, "peer", As::Ip),
    (3, "label", As::Text),
    (4, "broadcast", As::Ip),
    (8, "flags", As::Number),
    (9, "metric", As::Number),
    (11, "protocol", As::Number),
];
const ROUTE: [Known; 11] = [
    (2, "from", As::Ip),
    (3, "iif", As::Link),
    (4, "dev", As::Link),
    (5, "via", As::Ip),
    (6, "metric", As::Number),
    (7, "src", As::Ip),
    (8, "metrics", As::Hex),
    (9, "nexthops", As::Hex),
    (16, "mark", As::Number),
    (20, "preference", As::Number),
    (30, "nhid", As::Number),
];
const RULE: [Known; 8] = [
    (1, "to", As::Ip),
    (2, "from", As::Ip),
    (3, "iif", As::Text),
    (10, "fwmark", As::Number),
    (15, "table", As::Number),
    (16, "fwmask", As::Number),
    (17, "oif", As::Text),
    (21, "protocol", As::Number),
];
const NEXTHOP: [Known; 2] = [(5, "dev", As::Link), (6, "via", As::Ip)];
const NEIGHBOUR: [Known; 2] = [(2, "lladdr", As::Mac), (12, "protocol", As::Number)];

fn details(fact: &Fact, without: &[u16], known: &[Known], names: &Names) -> String {
    let mut text = String::new();
    for (attribute, value) in fact.attributes().all().filter(|(attribute, _)| !without.contains(attribute)) {
        let _ = match known.iter().find(|(of, ..)| *of == attribute) {
            Some(&(_, what, how)) => write!(text, " {what} {}", shown(how, value, names)),
            None => write!(text, " [{attribute}] {}", hex(value)),
        };
        if text.len() > 16 * LONGEST {
            text.push_str(" ...");
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_shown() {
        let mut bytes = vec![0; 224];
        super::super::facts::put(&mut bytes, 2, b"secret");
        let fact = Fact::Message { message: 16, header: 224, bytes };
        assert_eq!(told(Kind::XfrmState, &fact, &Names::new()), (Kind::XfrmState, "to :: spi 0x0".to_owned(), String::new()));
    }

    #[test]
    fn what_a_joiner_named_cannot_speak_to_a_terminal() {
        assert_eq!(shown(As::Text, b"a\x1b[2Jb\0c", &Names::new()), "a\\u{1b}[2Jb");
    }

    #[test]
    fn what_is_cut_short_is_shown_as_bytes() {
        assert_eq!(shown(As::Ip, &[1, 2], &Names::new()), "0x0102");
        assert_eq!(shown(As::Number, &[1, 2, 3], &Names::new()), "0x010203");
        let fact = Fact::Message { message: 16, header: 500, bytes: vec![0; 3] };
        for kind in [Kind::Link, Kind::Address, Kind::XfrmState, Kind::XfrmPolicy, Kind::Nftables, Kind::Qdisc] {
            told(kind, &fact, &Names::new());
        }
    }
}
