//! What the host still tracks of connections with a slot's addresses: the next tenant gets the same address, and would take part in them.
//!
//! [`HostConnections::forget`] removes each entry whose source or destination, as it was sent or as it is answered, is one of the addresses, then
//! looks again. Each is removed by its tuple, zone and number as the kernel told them, or by a tuple that names the address itself: an entry of others is
//! not, also when it has come in the place of one of these meanwhile.
//!
//! What it promises: clean means that at the last look there was none. What comes about by itself while it is looked at (somebody beyond still
//! sends to the address) is removed again, a few times.
//!
//! What can go wrong: entries that are not removed, or come again each time: [`Kind::NotRemoved`] · the kernel cannot be asked. A kernel without
//! connection tracking has nothing to forget.
//!
//! What it deliberately does not look at: expectations, which go with the connection that made them · the host's neighbours, routes and sets of
//! nftables · IPVS.
//!
//! How: where a glance at the kernel's own list tells all of it ([`glance`](super::glance)), by that. Else by a walk through the kernel's whole table, of all
//! namespaces, which tells all that the host has, and serves everybody who waits. Where the host has very many, the kernel is asked for each side of each
//! address (`CTA_FILTER`, since 5.8; older ones tell all, which costs time only), a walk each. A look serves only those who asked before it began, so
//! that nobody gets what was seen while his function was inside.
//!
//! Why not skip the look when nothing has passed the slot's link since the last one? Its counters tell too little: an entry with the slot's address needs no
//! packet on its link. Others may send in its name, and the host tracks what it could not deliver, or what it answers itself.
//!
//! Why not let the kernel remove what its filter finds? It does since 6.8 only, and an older one takes the same message for something else.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::facts;
use super::glance::{Seen, Told, glance};
use super::netfilter::{self, CONNTRACK, CONNTRACK_DELETE, HEADER};
use super::place::{Family, Place, Until};
use super::verdict::{Difference, InspectError, Kind, Leftover, LeftoverKind, Verdict};
use super::visit;
use crate::coalesce::Coalesced;
use crate::netns::wire::{Attributed, Attributes, Batch, Message};

const ROUNDS: usize = 4;
/// Of one round, so that a flood has a bound: the rest is for the next.
const MOST: usize = 1 << 16;
/// As many as the kernel's answers to fit in a socket.
const AT_ONCE: usize = 64;
/// To tell so many entries takes as long as one walk: 4.5 µs each, against 9.4 ms for 262144 buckets and 0.2 µs for each entry (Linux 6.18).
const WORTH_A_WALK: usize = 2000;
/// By the same figures, so many walks take longer than to tell all, however many there are.
const MOST_WALKS: usize = 16;

/// For a look that several wait for.
const SHARED: Duration = Duration::from_secs(2);
const ALL: &str = "tracked connections of the host";

const GET: u16 = CONNTRACK + 1;
pub(super) const INET: u8 = 2;
pub(super) const INET6: u8 = 10;
/// Attributes of an entry.
pub(super) const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
pub(super) const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// Of a tuple.
pub(super) const TUPLE_IP: u16 = 1;
/// Of its addresses: the sources' odd, the destinations' even.
pub(super) const V4_SOURCE: u16 = 1;
pub(super) const V6_SOURCE: u16 = 3;

/// Where an address may stand, with the attribute of the filter that says so.
#[derive(Clone, Copy, Debug)]
struct Side {
    tuple: u16,
    is_destination: bool,
}

const SIDES: [Side; 4] = [
    Side { tuple: ORIGINAL, is_destination: false },
    Side { tuple: ORIGINAL, is_destination: true },
    Side { tuple: REPLY, is_destination: false },
    Side { tuple: REPLY, is_destination: true },
];

/// What an entry is known by: its tuple, zone and, from a walk, number, in the kernel's bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) family: u8,
    pub(super) attributes: Vec<u8>,
}

/// What a network namespace tracks, for all who have addresses of which it shall forget: looks are shared.
#[derive(Debug)]
pub struct HostConnections {
    host: Arc<OwnedFd>,
    glances: Option<Coalesced<Glance>>,
    walks: Coalesced<Walk>,
}

type Glance = Result<Arc<Option<Seen>>, InspectError>;
/// All connections, each with its addresses; nothing where telling them all takes longer than to ask for those of an address.
type Walk = Result<Arc<Option<Vec<Walked>>>, InspectError>;

/// An entry, if the kernel has told by what it can be removed.
#[derive(Clone, Debug)]
struct Walked {
    ends: Vec<IpAddr>,
    entry: Option<Entry>,
}

impl HostConnections {
    /// Asks nothing yet.
    #[must_use]
    pub fn of(host: OwnedFd) -> Self {
        let walking = Self::walking(host);
        let host = Arc::clone(&walking.host);
        Self { glances: Some(Coalesced::new(move || shared(Arc::clone(&host), glance))), ..walking }
    }

    /// The same without glances, as on a kernel without the file for that.
    #[must_use]
    pub fn walking(host: OwnedFd) -> Self {
        let host = Arc::new(host);
        let walked = Arc::clone(&host);
        Self { host, glances: None, walks: Coalesced::new(move || shared(Arc::clone(&walked), walk)) }
    }

    /// Removes what is tracked for these addresses, and looks again: clean with the number of entries that were there, or dirty. `within` is for all
    /// of it; what is late is dirty.
    ///
    /// Nobody may have the addresses at that time. Not cancel safe, in the way of a mutation: what was begun is carried out.
    pub async fn forget(&self, addresses: &[IpAddr], within: Duration) -> Verdict {
        let addresses: Arc<BTreeSet<IpAddr>> = Arc::new(addresses.iter().map(IpAddr::to_canonical).collect());
        let until = Until { at: Instant::now() + within, limit: within };
        let late = Err(InspectError::Late { limit: within });
        let forgotten = tokio::time::timeout_at(until.at.into(), self.forget_all(&addresses, until)).await.unwrap_or(late);
        forgotten.and_then(|verdict| until.in_time().map(|()| verdict)).unwrap_or_else(|error| Verdict::Dirty(vec![error.into()]))
    }

    async fn forget_all(&self, addresses: &Arc<BTreeSet<IpAddr>>, until: Until) -> Result<Verdict, InspectError> {
        let mut forgotten = BTreeSet::new();
        let mut found = self.look(addresses, until).await?;
        for _ in 0..ROUNDS {
            if found.is_empty() {
                break;
            }
            let entries = found.clone();
            visit(self.host.as_fd(), until, None, move |place| remove(place, &entries)).await?;
            forgotten.append(&mut found);
            found = self.look(addresses, until).await?;
        }
        let count = forgotten.len();
        Ok(match found.first() {
            Some(one) => Verdict::Dirty(vec![not_removed(found.len(), one)]),
            None if count == 0 => Verdict::Clean { removed: Vec::new() },
            None => Verdict::Clean { removed: vec![Leftover { kind: LeftoverKind::Conntrack, count }] },
        })
    }

    async fn look(&self, addresses: &Arc<BTreeSet<IpAddr>>, until: Until) -> Result<BTreeSet<Entry>, InspectError> {
        if addresses.is_empty() {
            return Ok(BTreeSet::new());
        }
        if let Some(glances) = &self.glances
            && let Some(found) = glances.look().await?.as_ref().as_ref().and_then(|seen| seen_of(seen, addresses))
        {
            return Ok(found);
        }
        if let Some(walked) = self.walks.look().await?.as_ref() {
            let entries = walked.iter().filter(|walked| walked.ends.iter().any(|end| addresses.contains(end)));
            return entries.map(|walked| walked.entry.clone().ok_or_else(unknown)).collect();
        }
        let addresses = Arc::clone(addresses);
        visit(self.host.as_fd(), until, None, move |place| look_by_sides(place, &addresses)).await
    }
}

/// A look for everybody who waits, with a bound of its own.
async fn shared<T: Send + 'static>(
    host: Arc<OwnedFd>,
    look: impl FnOnce(&mut Place) -> Result<T, InspectError> + Send + 'static,
) -> Result<Arc<T>, InspectError> {
    let until = Until { at: Instant::now() + SHARED, limit: SHARED };
    visit(host.as_fd(), until, None, look).await.map(Arc::new)
}

/// Nothing when one of them cannot be removed by what is told of it: its tuple as it is sent does not name the address, and another one of that tuple may
/// be in its place by now.
fn seen_of(seen: &Seen, addresses: &BTreeSet<IpAddr>) -> Option<BTreeSet<Entry>> {
    let names = |ends: &[IpAddr]| ends.iter().any(|end| addresses.contains(end));
    let entry = |told: &Told| told.entry.clone().filter(|_| names(&told.ends[..2]));
    seen.values().filter(|told| names(&told.ends)).map(entry).collect()
}

fn walk(place: &mut Place) -> Result<Option<Vec<Walked>>, InspectError> {
    match netfilter::tracked(place)? {
        0 => Ok(Some(Vec::new())),
        tracked if tracked > SIDES.len() * WORTH_A_WALK => Ok(None),
        _ => {
            let read = |message: &Message<'_>| Some(Walked { ends: ends(message).collect(), entry: Entry::read(message) });
            let all = list(place, None, read)?;
            // A flood has come meanwhile.
            Ok(Some(all).filter(|all| all.len() < MOST))
        }
    }
}

fn look_by_sides(place: &mut Place, addresses: &BTreeSet<IpAddr>) -> Result<BTreeSet<Entry>, InspectError> {
    let tracked = netfilter::tracked(place)?;
    let walks = addresses.len() * SIDES.len();
    if walks > MOST_WALKS || tracked <= walks * WORTH_A_WALK {
        return list_of(place, addresses, None);
    }
    let mut found = BTreeSet::new();
    for &address in addresses {
        for side in SIDES {
            match list_of(place, addresses, Some((address, side))) {
                // No such filter.
                Err(InspectError::Unreadable { cause: Errno::OPNOTSUPP | Errno::INVAL, .. }) => return list_of(place, addresses, None),
                entries => found.append(&mut entries?),
            }
        }
    }
    Ok(found)
}

/// Those of the addresses, of all that the kernel tells.
fn list_of(place: &mut Place, addresses: &BTreeSet<IpAddr>, only: Option<(IpAddr, Side)>) -> Result<BTreeSet<Entry>, InspectError> {
    let read = |message: &Message<'_>| ends(message).any(|end| addresses.contains(&end)).then(|| Entry::read(message));
    list(place, only, read)?.into_iter().map(|entry| entry.ok_or_else(unknown)).collect()
}

/// What is read of those that the kernel tells, up to [`MOST`].
fn list<T>(place: &mut Place, only: Option<(IpAddr, Side)>, read: impl Fn(&Message<'_>) -> Option<T>) -> Result<Vec<T>, InspectError> {
    place.in_time()?;
    let count = Cell::new(0);
    let bounded = |message: &Message<'_>| {
        let found = if count.get() < MOST { read(message) } else { None };
        count.set(count.get() + usize::from(found.is_some()));
        found
    };
    let family = match only {
        Some((IpAddr::V4(_), _)) => INET,
        Some((IpAddr::V6(_), _)) => INET6,
        None => 0,
    };
    let fill = |a: &mut Attributes<'_>| {
        if let Some((address, side)) = only {
            side.ask(a, address);
        }
    };
    place.socket(Family::Netfilter)?.list(GET, &[family, 0, 0, 0], fill, bounded).map_err(InspectError::reading(ALL))
}

fn unknown() -> InspectError {
    InspectError::reading(ALL)(Errno::BADMSG)
}

/// Refused or not: they are looked for again.
fn remove(place: &mut Place, entries: &BTreeSet<Entry>) -> Result<(), InspectError> {
    let mut entries = entries.iter().peekable();
    while entries.peek().is_some() {
        place.in_time()?;
        let mut batch = Batch::default();
        for entry in entries.by_ref().take(AT_ONCE) {
            batch.push("forgetting a connection", CONNTRACK_DELETE, 0, &[entry.family, 0, 0, 0], |a| a.raw(&entry.attributes));
        }
        let removed = place.socket(Family::Netfilter)?.transact(&mut batch);
        removed.map_err(InspectError::reading("tracked connections of the host, to remove them"))?;
    }
    Ok(())
}

impl Side {
    fn ask(self, a: &mut Attributes<'_>, address: IpAddr) {
        let further = u16::from(self.is_destination);
        a.nest(self.tuple, |a| {
            a.nest(TUPLE_IP, |a| match address {
                IpAddr::V4(ip) => a.put(V4_SOURCE + further, &ip.octets()),
                IpAddr::V6(ip) => a.put(V6_SOURCE + further, &ip.octets()),
            });
        });
        // The filter's attributes have the numbers of the tuples, its bits those of sources and destinations.
        a.nest(FILTER, |a| a.number(self.tuple, 1 << further));
    }
}

impl Entry {
    /// Nothing without a tuple and a number, by which alone it can be removed and no other one.
    fn read(message: &Message<'_>) -> Option<Self> {
        let family = *message.body.first()?;
        let told = message.attributes(HEADER);
        let mut attributes = Vec::new();
        for kind in [ORIGINAL, ID] {
            facts::put(&mut attributes, kind, told.get(kind)?);
        }
        if let Some(zone) = told.get(ZONE) {
            facts::put(&mut attributes, ZONE, zone);
        }
        Some(Self { family, attributes })
    }
}

/// All addresses of an entry.
fn ends<'a>(message: &Message<'a>) -> impl Iterator<Item = IpAddr> + use<'a> {
    let told = message.attributes(HEADER);
    [ORIGINAL, REPLY].into_iter().flat_map(move |tuple| addresses(told.nested(tuple)))
}

fn addresses(tuple: Attributed<'_>) -> impl Iterator<Item = IpAddr> {
    tuple.nested(TUPLE_IP).all().filter_map(|(_, bytes)| match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    })
}

fn not_removed(count: usize, one: &Entry) -> Difference {
    let ends: Vec<String> = addresses(Attributed(&one.attributes).nested(ORIGINAL)).map(|end| end.to_string()).collect();
    Difference {
        kind: Kind::NotRemoved,
        subject: "conntrack of the host".to_owned(),
        was: None,
        is: Some(format!("{count} still there after {ROUNDS} rounds, one of them from {}", ends.join(" to "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::wire::messages;

    fn told(fill: impl FnOnce(&mut Attributes<'_>)) -> Option<Entry> {
        let mut batch = Batch::default();
        batch.push("telling", CONNTRACK, 0, &[INET, 0, 0, 0], fill);
        messages(batch.numbered(1)).next().and_then(|message| Entry::read(&message))
    }

    /// Or another one that has its tuple by now would be removed for it.
    #[test]
    fn an_entry_is_known_by_its_number_too_and_without_one_by_nothing() {
        let entry = |number| told(|a| [(ORIGINAL, 7), (ZONE, 5), (ID, number)].iter().for_each(|&(kind, value)| a.number(kind, value)));
        assert_ne!(entry(1), entry(2));
        let removed = entry(1).map(|entry| entry.attributes).unwrap_or_default();
        assert_eq!([ORIGINAL, ZONE, ID].map(|kind| Attributed(&removed).number(kind)), [Some(7), Some(5), Some(1)]);
        assert_eq!(told(|a| a.number(ORIGINAL, 7)), None);
        assert_eq!(told(|a| a.number(ID, 1)), None);
    }
}
