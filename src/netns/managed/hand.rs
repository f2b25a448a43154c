//! What the worker does for one slot: its link comes and goes.
//!
//! The pair is created on the host, with its other end at once in the slot's namespace: it is never visible on the host. What is to be done
//! inside goes through a socket that was opened there; the thread is inside for that moment only.
//!
//! A link that was just brought up carries nothing until the kernel, a little later, has taken notice of its carrier: a function's first
//! packet would be lost, and tried again a second later. So a slot is furnished only when its bridge sends to its port.
//!
//! What can go wrong: any step, and then the link is taken away again; the way back to the host, and then the worker ends. Who holds the
//! namespace's descriptor keeps it alive: a process that ends in the middle of it changes nothing, and the link goes with the namespace
//! afterwards.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::FurnishError;
use super::host::Host;
use super::link::{self, Pair};
use super::names::HostEnd;
use super::network::Plan;
use super::nft;
use crate::netns::socket::{Refusal, Socket};
use crate::netns::wire::Batch;

/// The name of the link inside.
pub const INSIDE: &str = "eth0";
const LOOPBACK: &str = "lo";
/// From here on it is cheaper to put links into a group and remove that, than to remove one after the other: each costs some 20 ms.
const WORTH_A_GROUP: usize = 2;
/// Messages whose answers a socket keeps until they are read, with its usual room: beyond some hundreds the kernel drops them.
const ANSWERED_TOGETHER: usize = 64;
/// Groups that people use have small numbers.
const GROUPS: std::ops::Range<u32> = 1 << 20..1 << 31;
const MOST_TRIES: usize = 4;
/// For the kernel to notice a carrier: a fraction of a millisecond, unless much else is done to links.
const SETTLING: Duration = Duration::from_secs(2);
/// Between looks.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };

/// The worker's sockets, and what it remembers.
#[derive(Debug)]
pub(super) struct Hand {
    home: OwnedFd,
    pub(super) route: Socket,
    pub(super) nft: Socket,
    pub(super) host: Host,
    /// What should be on the bridges.
    pub(super) ports: BTreeMap<HostEnd, Port>,
}

/// How a slot's link should be on its bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) bridge: String,
    pub(super) is_isolated: bool,
}

/// A slot's link is there, with its addresses and routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Furnished {
    /// On the host.
    pub host_end: HostEnd,
    /// Of [`INSIDE`], in its namespace.
    pub index: u32,
}

/// The link is gone now, and its address free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stripped {
    /// By us.
    Removed,
    /// It had gone before, as with its namespace.
    WasNotThere,
}

impl Hand {
    /// Goes to that namespace for good, and opens its sockets there.
    pub(super) fn new(home: OwnedFd, host: Host) -> Result<Self, FurnishError> {
        enter(home.as_fd()).map_err(FurnishError::failing("entering the host's network namespace", "setns"))?;
        let route = Socket::open(None, 0).map_err(FurnishError::failing("opening a socket", "links"))?;
        let nft = nft::open().map_err(FurnishError::failing("opening a socket", "nftables"))?;
        Ok(Self { home, route, nft, host, ports: BTreeMap::new() })
    }

    pub(super) fn adopt(&mut self, plan: &Plan) {
        let port = Port { bridge: plan.bridge.clone(), is_isolated: plan.isolated };
        self.ports.insert(plan.host_end.clone(), port);
    }

    pub(super) fn furnish(&mut self, namespace: BorrowedFd<'_>, plan: &Plan) -> Result<Furnished, FurnishError> {
        let mut inside = self.socket_inside(namespace)?;
        self.create(namespace, plan)?;
        let furnished = furnish_inside(&mut inside, plan);
        match furnished.and_then(|index| self.settle(&mut inside, index, plan).map(|()| index)) {
            Ok(index) => {
                self.adopt(plan);
                Ok(Furnished { host_end: plan.host_end.clone(), index })
            }
            Err(error) => {
                self.undo(&plan.host_end);
                Err(error)
            }
        }
    }

    fn socket_inside(&self, namespace: BorrowedFd<'_>) -> Result<Socket, FurnishError> {
        enter(namespace).map_err(FurnishError::failing("entering the slot's network namespace", "setns"))?;
        let socket = Socket::open(None, 0);
        enter(self.home.as_fd()).map_err(|cause| FurnishError::Astray { cause })?;
        socket.map_err(FurnishError::failing("opening a socket inside", "links"))
    }

    fn create(&mut self, namespace: BorrowedFd<'_>, plan: &Plan) -> Result<(), FurnishError> {
        let name = plan.host_end.as_str();
        let bridge = self.find(&plan.bridge)?.filter(|bridge| bridge.kind == "bridge" && bridge.is_up);
        let bridge = bridge.ok_or_else(|| FurnishError::NoBridge { name: plan.bridge.clone() })?;
        let mut batch = Batch::default();
        let alias = self.host.names.alias(plan.ipv4.address);
        let pair = Pair {
            name,
            master: bridge.index,
            mtu: plan.mtu,
            is_isolated: plan.isolated,
            peer: INSIDE,
            peer_mac: plan.mac,
            peer_namespace: namespace,
            alias: &alias,
        };
        link::create_pair(&mut batch, &pair);
        match self.transact(&mut batch, name)?.first() {
            None => Ok(()),
            Some(Refusal { at: 0, errno: Errno::EXIST, .. }) => {
                let name = if self.find(name)?.is_some() { name } else { INSIDE };
                Err(FurnishError::AlreadyThere { name: name.to_owned() })
            }
            Some(refusal) => {
                // What was made but could not be put on the bridge, the kernel leaves there.
                self.undo(&plan.host_end);
                Err(FurnishError::refused(*refusal, name))
            }
        }
    }

    /// Until packets pass: at the slot's port, at its bridge, which has no carrier before it has a port, and for those who ask for its
    /// address.
    fn settle(&mut self, inside: &mut Socket, index: u32, plan: &Plan) -> Result<(), FurnishError> {
        let gone = |name: &str| FurnishError::failing("waiting until packets pass", name)(Errno::NODEV);
        wait_until(|| {
            let port = self.find(plan.host_end.as_str())?.ok_or_else(|| gone(plan.host_end.as_str()))?;
            let bridge = self.find(&plan.bridge)?.ok_or_else(|| gone(&plan.bridge))?;
            Ok(port.is_running && port.is_in_use && bridge.is_running)
        })?;
        plan.ipv6.map_or(Ok(()), |ipv6| wait_until(|| answers_for(inside, index, ipv6.address)))
    }

    /// Takes away the links of slots, whoever has their namespaces. In the order in which they were given.
    pub(super) fn strip(&mut self, ends: &[HostEnd]) -> Vec<Result<Stripped, FurnishError>> {
        for end in ends {
            self.ports.remove(end);
        }
        if ends.len() >= WORTH_A_GROUP {
            // If not together, then one by one, which also says what is wrong with which.
            let at_once = self.remove_group(ends).unwrap_or_default();
            if at_once.len() == ends.len() {
                return at_once.into_iter().map(Ok).collect();
            }
        }
        ends.iter().map(|end| self.remove_one(end)).collect()
    }

    /// Nothing passes the slot's port any more. The link is not expected to be there any longer, and goes with its namespace or by
    /// [`strip`](Self::strip).
    pub(super) fn cut(&mut self, end: &HostEnd) -> Result<(), FurnishError> {
        self.ports.remove(end);
        let mut batch = Batch::default();
        link::cut_port(&mut batch, end.as_str());
        match self.transact(&mut batch, end.as_str())?.first() {
            None | Some(Refusal { errno: Errno::NODEV, .. }) => Ok(()),
            Some(refusal) => Err(FurnishError::refused(*refusal, end.as_str())),
        }
    }

    /// Takes away what should not have come about. Why it should not is what the caller tells; that it is still there is said here, and an audit
    /// finds it.
    pub(super) fn undo(&mut self, end: &HostEnd) {
        self.ports.remove(end);
        if let Err(error) = self.remove_one(end) {
            tracing::warn!(link = end.as_str(), %error, "a slot's link that is not to be used could not be removed");
        }
    }

    fn remove_one(&mut self, end: &HostEnd) -> Result<Stripped, FurnishError> {
        let mut batch = Batch::default();
        link::delete(&mut batch, end.as_str());
        match self.transact(&mut batch, end.as_str())?.first() {
            None => Ok(Stripped::Removed),
            Some(Refusal { errno: Errno::NODEV, .. }) => Ok(Stripped::WasNotThere),
            Some(refusal) => Err(FurnishError::refused(*refusal, end.as_str())),
        }
    }

    fn remove_group(&mut self, ends: &[HostEnd]) -> Result<Vec<Stripped>, FurnishError> {
        let group = self.free_group()?;
        let mut stripped = vec![Stripped::Removed; ends.len()];
        for (at, ends) in ends.chunks(ANSWERED_TOGETHER).enumerate() {
            let mut batch = Batch::default();
            for end in ends {
                link::set_group(&mut batch, end.as_str(), group);
            }
            for refusal in self.transact(&mut batch, "links of slots")? {
                match refusal.errno {
                    Errno::NODEV => stripped[at * ANSWERED_TOGETHER + refusal.at] = Stripped::WasNotThere,
                    _ => return Err(FurnishError::refused(refusal, ends[refusal.at].as_str())),
                }
            }
        }
        if stripped.contains(&Stripped::Removed) {
            let mut batch = Batch::default();
            link::delete_group(&mut batch, group);
            match self.transact(&mut batch, "links of slots")?.first() {
                // All of them had gone meanwhile.
                None | Some(Refusal { errno: Errno::NODEV, .. }) => {}
                Some(refusal) => return Err(FurnishError::refused(*refusal, "links of slots")),
            }
        }
        Ok(stripped)
    }

    /// One that no link is in, out of so many that nobody else will take it before we are done.
    fn free_group(&mut self) -> Result<u32, FurnishError> {
        let failed = FurnishError::failing("listing links", "groups");
        for _ in 0..MOST_TRIES {
            let group = crate::random::dice().u32(GROUPS);
            if link::list(&mut self.route, |link| link.group == group).map_err(&failed)?.is_empty() {
                return Ok(group);
            }
        }
        Err(failed(Errno::BUSY))
    }

    pub(super) fn find(&mut self, name: &str) -> Result<Option<link::Link>, FurnishError> {
        link::find(&mut self.route, name).map_err(FurnishError::failing("looking for the link", name))
    }

    pub(super) fn transact(&mut self, batch: &mut Batch, subject: &str) -> Result<Vec<Refusal>, FurnishError> {
        self.route.transact(batch).map_err(FurnishError::failing("talking to the kernel", subject))
    }
}

/// Waits for what nobody tells us of: the kernel's news come before it is so.
pub(super) fn wait_until(mut holds: impl FnMut() -> Result<bool, FurnishError>) -> Result<(), FurnishError> {
    let until = Instant::now() + SETTLING;
    while !holds()? {
        if Instant::now() > until {
            return Err(FurnishError::TimedOut { what: "waiting until packets pass".into(), limit: SETTLING });
        }
        // Interrupted is as good as over.
        let _ = poll(&mut [], Some(&PAUSE));
    }
    Ok(())
}

/// See [`link::answers_for`].
pub(super) fn answers_for(socket: &mut Socket, index: u32, address: IpAddr) -> Result<bool, FurnishError> {
    link::answers_for(socket, index, address).map_err(FurnishError::failing("listing who listens", "IPv6"))
}

pub(super) fn enter(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

/// Brings up the loopback link of the network namespace that this thread is in.
pub(in crate::netns) fn loopback_up() -> Result<(), Errno> {
    let mut batch = Batch::default();
    link::bring_up(&mut batch, LOOPBACK, None);
    match Socket::open(None, 0)?.transact(&mut batch)?.first() {
        None => Ok(()),
        Some(refusal) => Err(refusal.errno),
    }
}

/// Addresses and routes, once the link is there. Gives its index.
fn furnish_inside(inside: &mut Socket, plan: &Plan) -> Result<u32, FurnishError> {
    let failed = FurnishError::failing("looking for the link inside", INSIDE);
    let index = link::find(inside, INSIDE).map_err(&failed)?.ok_or_else(|| failed(Errno::NODEV))?.index;
    let mut batch = Batch::default();
    link::no_addresses_by_itself(&mut batch, INSIDE);
    link::bring_up(&mut batch, LOOPBACK, None);
    link::bring_up(&mut batch, INSIDE, None);
    if plan.ipv6.is_some() {
        link::add_address(&mut batch, index, link::link_local(plan.mac), 64);
    }
    for interface in [Some(plan.ipv4), plan.ipv6].into_iter().flatten() {
        link::add_address(&mut batch, index, interface.address, interface.prefix);
        link::add_default_route(&mut batch, index, interface.gateway);
    }
    let refusals = inside.transact(&mut batch).map_err(FurnishError::failing("talking to the kernel inside", INSIDE))?;
    // The first one is refused by a kernel without IPv6, which is well if none is wanted; if it is, the address is refused, too.
    match refusals.into_iter().find(|refusal| refusal.at != 0) {
        None => Ok(index),
        Some(refusal) => Err(FurnishError::refused(refusal, plan.host_end.as_str())),
    }
}
