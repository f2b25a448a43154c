//! Sockets, wherever their owner is: in a process elsewhere, in a queue between two of them, nowhere any more.
//!
//! The kernel counts a namespace's sockets, of every family there is. While the count is that of the baseline, and those that were there are
//! still, there are no others: two reads that do not depend on how many the host has. Only otherwise are they listed, to be named.
//! One that no list shows (of a rare family, or neither bound nor connected) is found all the same, by the count.
//!
//! A socket can be counted for some milliseconds after it was closed (netlink's are), ours of the last look included, or as long as something
//! that it sent waits for a neighbour. Such neighbours are removed, and the rest is waited for, as long as there is time.
//!
//! TCP connections without an owner are not differences, but leftovers: in TIME-WAIT, which are counted apart, or with data on its way.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::place::{Family, Place};
use super::verdict::{Difference, InspectError, Kind};
use crate::netns::wire::{Batch, Message, word};

/// For those that are closed to be counted no more.
const SETTLING: Duration = Duration::from_millis(300);
/// For those of our last look that a process which is just being started has until it runs its program.
const LINGERING: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(2);
const COUNTS: &str = "sockstat";

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
/// Ports, addresses, link and cookie, in questions and answers.
const IDENTITY: usize = 48;
const IDENTITY_ASKED: usize = 8;
const IDENTITY_ANSWERED: usize = 4;
const INODE: usize = 68;
const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
const ALL_STATES: u32 = u32::MAX;
const SYN_RECEIVED: u8 = 3;
const TIME_WAIT: u8 = 6;
const LISTEN: u8 = 10;
/// As many as the kernel's answers to fit in a socket.
const AT_ONCE: usize = 64;
const MOST: usize = 1 << 16;
const MOST_TOLD: usize = 32;

/// Files below `/proc/net`, and in which column they have inodes and what is worth showing.
const FILES: [(&str, usize, usize); 11] = [
    ("netlink", 9, 1),
    ("unix", 6, 7),
    ("packet", 8, 3),
    ("udp", 9, 1),
    ("udp6", 9, 1),
    ("udplite", 9, 1),
    ("udplite6", 9, 1),
    ("raw", 9, 1),
    ("raw6", 9, 1),
    ("icmp", 9, 1),
    ("icmp6", 9, 1),
];

/// A socket of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    family: &'static str,
    /// 0: it has no owner.
    inode: u64,
    shown: String,
}

/// A TCP connection that nobody has, by what the kernel knows it by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Orphan {
    family: u8,
    identity: [u8; IDENTITY],
    is_waiting: bool,
}

/// Those of the baseline.
#[derive(Clone, Debug)]
pub(super) struct Sockets {
    used: u64,
    listed: Vec<Listed>,
    /// Those that no list shows.
    hidden: i64,
    /// Of the keeper, or ending.
    has_tcp: bool,
}

/// What is new.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) differences: Vec<Difference>,
    pub(super) orphans: Vec<Orphan>,
    /// In TIME-WAIT, by the count.
    pub(super) waiting: usize,
    /// Counted, and in no list.
    pub(super) hidden: usize,
}

impl Found {
    pub(super) fn connections(&self) -> usize {
        self.orphans.len().max(self.waiting)
    }
}

impl Sockets {
    /// No connection that is known, and could end.
    pub(super) fn are_without_tcp(&self) -> bool {
        !self.has_tcp
    }
}

/// As they are now; after a while, if some were just closed.
pub(super) fn take(place: &mut Place) -> Result<Sockets, InspectError> {
    let begun = Instant::now();
    loop {
        let used = counts(place)?.used;
        let (listed, orphans) = list(place, |_| true)?;
        let hidden = hidden(used, &listed, &orphans);
        if hidden <= 0 || begun.elapsed() > SETTLING {
            let has_tcp = !orphans.is_empty() || listed.iter().any(|socket| socket.family == "tcp");
            return Ok(Sockets { used, listed: listed.into_iter().filter(|socket| socket.inode != 0).collect(), hidden, has_tcp });
        }
        place.pause(PAUSE)?;
    }
}

/// What there is beyond the baseline, at this moment: those just closed are counted as hidden.
pub(super) fn look(place: &mut Place, before: &Sockets) -> Result<Found, InspectError> {
    let counts = counts(place)?;
    if counts.used == before.used && counts.waiting == 0 && are_still_there(place, before)? {
        return Ok(Found::default());
    }
    let (listed, orphans) = list(place, |_| true)?;
    let hidden = usize::try_from(hidden(counts.used, &listed, &orphans) - before.hidden.max(0)).unwrap_or(0);
    let is_known = |socket: &Listed| before.listed.iter().any(|known| (known.family, known.inode) == (socket.family, socket.inode));
    let new = listed.iter().filter(|socket| !is_known(socket));
    let differences = new.map(|socket| difference(socket.family, socket.shown.clone())).take(MOST_TOLD).collect();
    Ok(Found { differences, orphans, waiting: counts.waiting, hidden })
}

/// The same, after a while if some were just closed. Those that are hidden still are differences.
pub(super) fn look_settled(place: &mut Place, before: &Sockets) -> Result<Found, InspectError> {
    let begun = Instant::now();
    loop {
        let mut found = look(place, before)?;
        let is_hidden = found.hidden > 0 && begun.elapsed() < SETTLING;
        let is_listed = !found.differences.is_empty() && begun.elapsed() < LINGERING;
        if is_hidden || is_listed {
            place.pause(PAUSE)?;
            continue;
        }
        if found.hidden > 0 {
            found.differences.push(difference("of another family, or in no use", format!("{} of them", found.hidden)));
        }
        return Ok(found);
    }
}

/// Has the kernel forget them. Whether it did, the next look tells.
pub(super) fn destroy(place: &mut Place, orphans: &[Orphan]) -> Result<(), InspectError> {
    for some in orphans.chunks(AT_ONCE) {
        place.in_time()?;
        let mut batch = Batch::default();
        for orphan in some {
            let mut header = request(orphan.family);
            header[IDENTITY_ASKED..].copy_from_slice(&orphan.identity);
            batch.push("closing a connection", DESTROY, 0, &header, |_| {});
        }
        place.socket(Family::Diag)?.transact(&mut batch).map_err(InspectError::reading("TCP connections, to close them"))?;
    }
    Ok(())
}

fn difference(family: &str, shown: String) -> Difference {
    Difference { kind: Kind::Socket, subject: family.to_owned(), was: None, is: Some(shown) }
}

struct Counts {
    used: u64,
    waiting: usize,
}

fn counts(place: &Place) -> Result<Counts, InspectError> {
    let text = place.file(COUNTS)?.unwrap_or_default();
    let value = |line: &str, key: &str| {
        let line = text.lines().find_map(|found| found.strip_prefix(line))?;
        line.split_whitespace().skip_while(|word| *word != key).nth(1)?.parse::<u64>().ok()
    };
    let unreadable = || InspectError::reading(COUNTS)(Errno::NODATA);
    let used = value("sockets:", "used").ok_or_else(unreadable)?.saturating_sub(place.own().count() as u64);
    let waiting = value("TCP:", "tw").and_then(|waiting| usize::try_from(waiting).ok()).ok_or_else(unreadable)?;
    Ok(Counts { used, waiting })
}

/// How many are counted and not listed.
fn hidden(used: u64, listed: &[Listed], orphans: &[Orphan]) -> i64 {
    let counted = listed.len() + orphans.iter().filter(|orphan| !orphan.is_waiting).count();
    i64::try_from(used).unwrap_or(i64::MAX) - i64::try_from(counted).unwrap_or(i64::MAX)
}

fn are_still_there(place: &mut Place, before: &Sockets) -> Result<bool, InspectError> {
    if before.listed.is_empty() {
        return Ok(true);
    }
    let (listed, _) = list(place, |family| before.listed.iter().any(|socket| socket.family == family))?;
    let is_there = |known: &Listed| listed.iter().any(|socket| (known.family, known.inode) == (socket.family, socket.inode));
    Ok(before.listed.iter().all(is_there))
}

/// All of some families but our own, and connections without an owner.
fn list(place: &mut Place, wanted: impl Fn(&str) -> bool) -> Result<(Vec<Listed>, Vec<Orphan>), InspectError> {
    let (mut listed, mut orphans) = (Vec::new(), Vec::new());
    for (family, inode, shown) in FILES.into_iter().filter(|(family, ..)| wanted(family)) {
        let text = place.file(family)?.unwrap_or_default();
        let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        // Those of the kernel have no port.
        let lines = lines.filter(|line| family != "netlink" || line.get(2) != Some(&"0"));
        let own = if family == "netlink" { own_netlink(place)? } else { Vec::new() };
        listed.extend(lines.filter_map(|line| {
            let inode = line.get(inode)?.parse().ok()?;
            let shown = line.get(shown).copied().unwrap_or_default();
            let shown = endpoint(shown).unwrap_or_else(|| shown.escape_debug().take(64).collect());
            (!own.contains(&inode)).then_some(Listed { family, inode, shown })
        }));
    }
    if wanted("tcp") {
        for family in [INET, INET6] {
            connections(place, family, &mut listed, &mut orphans)?;
        }
    }
    if listed.len() + orphans.len() > MOST { Err(InspectError::reading("sockets")(Errno::TOOBIG)) } else { Ok((listed, orphans)) }
}

fn own_netlink(place: &mut Place) -> Result<Vec<u64>, InspectError> {
    let inodes = place.own().map(|fd| rustix::fs::fstat(fd).map(|stat| stat.st_ino));
    inodes.collect::<Result<_, _>>().map_err(InspectError::reading("our own sockets"))
}

fn connections(place: &mut Place, family: u8, listed: &mut Vec<Listed>, orphans: &mut Vec<Orphan>) -> Result<(), InspectError> {
    place.in_time()?;
    let read = |message: &Message<'_>| message.body.get(..ANSWER)?.try_into().ok();
    let socket = place.socket(Family::Diag)?;
    let answers: Vec<[u8; ANSWER]> =
        socket.list(BY_FAMILY, &request(family), |_| {}, read).map_err(InspectError::reading("TCP connections"))?;
    for answer in answers {
        let (state, inode) = (answer[1], word(&answer, INODE).unwrap_or(0));
        let identity: [u8; IDENTITY] = answer[IDENTITY_ANSWERED..IDENTITY_ANSWERED + IDENTITY].try_into().unwrap_or([0; IDENTITY]);
        if inode != 0 || state == LISTEN {
            listed.push(Listed { family: "tcp", inode: inode.into(), shown: ends(family, &identity) });
        } else {
            // Not yet connections, those are not counted either.
            orphans.push(Orphan { family, identity, is_waiting: state == TIME_WAIT || state == SYN_RECEIVED });
        }
    }
    Ok(())
}

fn request(family: u8) -> [u8; REQUEST] {
    let mut header = [0; REQUEST];
    header[..2].copy_from_slice(&[family, TCP]);
    header[4..8].copy_from_slice(&ALL_STATES.to_ne_bytes());
    header
}

fn ends(family: u8, identity: &[u8; IDENTITY]) -> String {
    let address = |at: usize| match (family, <[u8; 4]>::try_from(&identity[at..at + 4]), <[u8; 16]>::try_from(&identity[at..at + 16])) {
        (INET, Ok(ip), _) => IpAddr::from(ip).to_string(),
        (_, _, Ok(ip)) => format!("[{}]", IpAddr::from(ip)),
        (_, _, Err(_)) => String::new(),
    };
    let port = |at: usize| u16::from_be_bytes([identity[at], identity[at + 1]]);
    format!("{}:{} to {}:{}", address(4), port(0), address(20), port(2))
}

/// Of an address and a port in the kernel's digits.
fn endpoint(digits: &str) -> Option<String> {
    let (address, port) = digits.split_once(':')?;
    let words = address.as_bytes().chunks(8).map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let port = u16::from_str_radix(port, 16).ok()?;
    match bytes.len() {
        4 => Some(format!("{}:{port}", IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(format!("[{}]:{port}", IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_digits_are_addresses() {
        assert_eq!(endpoint("0100007F:0035").unwrap(), "127.0.0.1:53");
        assert_eq!(endpoint("00000000000000000000000001000000:1F90").unwrap(), "[::1]:8080");
        assert_eq!(endpoint("4"), None);
        assert_eq!(endpoint("@/x:y"), None);
    }
}
