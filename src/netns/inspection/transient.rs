//! What unprivileged joiners leave by and by: connections without an owner, what was learnt of neighbours and routes, what TCP and connection
//! tracking remember. It is removed, and looked for again until nothing is there.
//!
//! What can go wrong: the kernel does not remove something (older ones keep TIME-WAIT), or something comes again each time, as a gateway
//! does that asks for us. After a few rounds that is a difference. Connections go first: closing one can make a neighbour known.

use super::facts::Fact;
use super::generic::Opens;
use super::place::{Family, Place};
use super::sockets::{self, Found, Sockets};
use super::verdict::{Difference, InspectError, Kind, Leftover, LeftoverKind};
use super::{generic, netfilter, route};
use crate::netns::wire::Batch;

const ROUNDS: usize = 4;
const DELROUTE: u16 = 25;
const DELNEIGH: u16 = 29;
/// As many as the kernel's answers to fit in a socket.
const AT_ONCE: usize = 64;
const INET6: u8 = 10;
/// Makes the kernel forget what it has learnt of IPv4's routes, in the namespace of the thread that writes.
const FORGET_ROUTES: &str = "/proc/sys/net/ipv4/route/flush";

/// What is there.
#[derive(Debug)]
pub(super) struct Transients {
    pub(super) sockets: Found,
    pub(super) neighbours: Vec<Fact>,
    pub(super) learnt_routes: Vec<Fact>,
    pub(super) metrics: usize,
    pub(super) tracked: usize,
}

impl Transients {
    fn read(place: &mut Place, before: &Sockets, opens: &Opens) -> Result<Self, InspectError> {
        let sockets = sockets::look(place, before)?;
        let (neighbours, learnt_routes) = (route::neighbours(place)?.1, route::routes(place)?.1);
        Self::with(place, sockets, neighbours, learnt_routes, before, opens)
    }

    /// What is known already, and the rest.
    pub(super) fn with(
        place: &mut Place,
        sockets: Found,
        neighbours: Vec<Fact>,
        learnt_routes: Vec<Fact>,
        before: &Sockets,
        opens: &Opens,
    ) -> Result<Self, InspectError> {
        // A connection that is there may be remembered later, when it ends.
        let is_quiet = before.are_without_tcp() && sockets.connections() == 0 && sockets.hidden == 0 && sockets.differences.is_empty();
        let metrics = opens.metrics(place, is_quiet)?;
        Ok(Self { sockets, neighbours, learnt_routes, metrics, tracked: netfilter::tracked(place)? })
    }

    fn counts(&self) -> [(LeftoverKind, usize); 5] {
        [
            (LeftoverKind::Connection, self.sockets.connections()),
            (LeftoverKind::Neighbour, self.neighbours.len()),
            (LeftoverKind::LearntRoute, self.learnt_routes.len()),
            (LeftoverKind::TcpMetrics, self.metrics),
            (LeftoverKind::Conntrack, self.tracked),
        ]
    }

    /// For people.
    pub(super) fn told(&self) -> Vec<Leftover> {
        self.counts().into_iter().filter(|(_, count)| *count > 0).map(|(kind, count)| Leftover { kind, count }).collect()
    }

    fn is_nothing(&self) -> bool {
        self.counts().iter().all(|(_, count)| *count == 0)
    }

    fn remove(&self, place: &mut Place) -> Result<(), InspectError> {
        sockets::destroy(place, &self.sockets.orphans)?;
        forget_routes(place, &self.learnt_routes)?;
        forget_neighbours(place, &self.neighbours)?;
        if self.tracked > 0 {
            netfilter::forget_connections(place)?;
        }
        if self.metrics > 0 {
            generic::forget_metrics(place)?;
        }
        Ok(())
    }
}

/// What was removed, or what could not be, or what came to light meanwhile.
pub(super) fn clear(
    place: &mut Place,
    mut found: Transients,
    before: &Sockets,
    opens: &Opens,
) -> Result<Result<Vec<Leftover>, Vec<Difference>>, InspectError> {
    let mut removed: Vec<Leftover> = Vec::new();
    for _ in 0..ROUNDS {
        if !found.sockets.differences.is_empty() || found.is_nothing() && found.sockets.hidden > 0 {
            // Nothing holds it that could be removed.
            found.sockets = sockets::look_settled(place, before)?;
        }
        if !found.sockets.differences.is_empty() {
            return Ok(Err(found.sockets.differences));
        }
        if found.is_nothing() {
            return Ok(Ok(removed));
        }
        for (kind, count) in found.counts().into_iter().filter(|(_, count)| *count > 0) {
            match removed.iter_mut().find(|leftover| leftover.kind == kind) {
                // What is there still was not removed.
                Some(leftover) => leftover.count = leftover.count.max(count),
                None => removed.push(Leftover { kind, count }),
            }
        }
        found.remove(place)?;
        found = Transients::read(place, before, opens)?;
    }
    if found.sockets.hidden > 0 {
        found.sockets = sockets::look_settled(place, before)?;
    }
    let still = found.counts().into_iter().filter(|(_, count)| *count > 0);
    let mut differences: Vec<Difference> = still.map(|(kind, count)| not_removed(kind, count)).collect();
    differences.append(&mut found.sockets.differences);
    Ok(if differences.is_empty() { Ok(removed) } else { Err(differences) })
}

fn not_removed(kind: LeftoverKind, count: usize) -> Difference {
    Difference {
        kind: Kind::NotRemoved,
        subject: kind.word().to_owned(),
        was: None,
        is: Some(format!("{count} still there after {ROUNDS} rounds")),
    }
}

fn forget_neighbours(place: &mut Place, neighbours: &[Fact]) -> Result<(), InspectError> {
    delete(place, "removing a neighbour", DELNEIGH, neighbours, &[1, 9])
}

fn forget_routes(place: &mut Place, routes: &[Fact]) -> Result<(), InspectError> {
    let (v6, v4): (Vec<Fact>, Vec<Fact>) = routes.iter().cloned().partition(|route| route.header().first() == Some(&INET6));
    if !v4.is_empty() {
        std::fs::write(FORGET_ROUTES, "1").map_err(|error| {
            InspectError::reading("learnt routes, to remove them")(
                rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO),
            )
        })?;
    }
    // To, link, way, metric, table.
    delete(place, "removing a learnt route", DELROUTE, &v6, &[1, 4, 5, 6, 15])
}

/// By their headers and some of their attributes. Refused or not: they are read again.
fn delete(place: &mut Place, step: &'static str, kind: u16, facts: &[Fact], by: &[u16]) -> Result<(), InspectError> {
    for some in facts.chunks(AT_ONCE) {
        place.in_time()?;
        let mut batch = Batch::default();
        for fact in some {
            batch.push(step, kind, 0, fact.header(), |a| {
                fact.attributes()
                    .all()
                    .filter(|(attribute, _)| by.contains(attribute))
                    .for_each(|(attribute, value)| a.put(attribute, value));
            });
        }
        place.socket(Family::Route)?.transact(&mut batch).map_err(InspectError::reading("leftovers, to remove them"))?;
    }
    Ok(())
}
