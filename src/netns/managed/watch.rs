//! Notices when somebody else touches our bridges, ports or rules: a firewall that is reloaded, a link that is taken down.
//!
//! It tells only that something changed, as a count to be followed: what is different says an audit. It listens to the kernel's news of
//! links, addresses and nftables, in a thread that sleeps in between. What we do ourselves is news, too, as far as it looks alike; an audit
//! then finds nothing. News that were lost (the kernel says so) count as a change. What it cannot notice: iptables-legacy, and sysctls.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::FurnishError;
use super::host::Host;
use super::link::{ADDRESS_NEWS, LINK_NEWS, read_address, read_link};
use super::names::Names;
use super::nft;
use crate::level;
use crate::netns::socket::Socket;
use crate::netns::wire::Message;

/// RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR.
const LINK_GROUPS: u32 = 1 | 1 << 4 | 1 << 8;
/// NFNLGRP_NFTABLES.
const RULE_GROUPS: u32 = 1 << 6;
/// Room for the news of a burst.
const BUFFER: usize = 1 << 20;

/// Both, opened in the host's namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    links: Socket,
    rules: Socket,
}

/// Owns the thread.
#[derive(Debug)]
pub(super) struct Watch {
    changes: level::Receiver<u64>,
    stop: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// What is ours.
struct Ours {
    names: Names,
    table: String,
    bridges: BTreeSet<String>,
    gateways: BTreeSet<IpAddr>,
}

impl Watch {
    /// Leaves the calling thread in that namespace.
    pub(super) fn sockets_in(home: &OwnedFd) -> Result<Sockets, FurnishError> {
        let failed = FurnishError::failing("listening to the kernel's news", "links and rules");
        move_into_link_name_space(std::os::fd::AsFd::as_fd(home), Some(LinkNameSpaceType::Network)).map_err(&failed)?;
        let open = |protocol, groups| {
            let socket = Socket::open(protocol, groups)?;
            set_socket_recv_buffer_size(socket.fd(), BUFFER)?;
            Ok(socket)
        };
        let links = open(None, LINK_GROUPS).map_err(&failed)?;
        let rules = open(Some(NETFILTER), RULE_GROUPS).map_err(&failed)?;
        Ok(Sockets { links, rules })
    }

    pub(super) fn start(sockets: Sockets, host: &Host) -> io::Result<Self> {
        let segments: Vec<_> = host.networks.iter().flat_map(super::network::ManagedNetwork::segments).collect();
        let ours = Ours {
            names: host.names.clone(),
            table: host.names.table(),
            bridges: segments.iter().map(|segment| segment.bridge.clone()).collect(),
            gateways: segments.iter().flat_map(|s| [Some(s.gateway4), s.ipv6.map(|(_, gateway)| gateway)]).flatten().collect(),
        };
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (sender, changes) = level::channel(0);
        let told = Arc::clone(&stop);
        let work = move || follow(sockets, &told, &ours, &sender);
        let thread = std::thread::Builder::new().name("nspool-watch".to_owned()).spawn(work)?;
        Ok(Self { changes, stop, thread })
    }

    pub(super) fn changes(&self) -> level::Receiver<u64> {
        self.changes.clone()
    }

    pub(super) fn stop(self) {
        // It can only fail when the counter is full, and then it is readable, too.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        drop(self.thread.join());
    }
}

fn follow(mut sockets: Sockets, stop: &OwnedFd, ours: &Ours, changes: &level::Sender<u64>) {
    loop {
        let mut fds = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(sockets.links.fd(), PollFlags::IN),
            PollFd::new(sockets.rules.fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !fds[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        let links = count(&mut sockets.links, |message| ours.is_touched_by(message));
        let rules = count(&mut sockets.rules, |message| ours.has_rules_touched_by(message));
        if links + rules > 0 {
            changes.send_modify(|count| *count += links + rules);
        }
    }
}

/// How many of the news that are there matter.
fn count(socket: &mut Socket, matters: impl Fn(&Message<'_>) -> bool) -> u64 {
    let mut found = 0;
    loop {
        match socket.receive() {
            Ok(Some(length)) => found += socket.received(length).filter(&matters).count() as u64,
            Ok(None) => return found,
            // Some were lost. Any other failure comes again with the next poll, and says as little.
            Err(_) => return found + 1,
        }
    }
}

impl Ours {
    fn is_touched_by(&self, message: &Message<'_>) -> bool {
        if ADDRESS_NEWS.contains(&message.kind) {
            let is_gateway = read_address(message).is_some_and(|(_, address, _)| self.gateways.contains(&address));
            return is_gateway && message.kind == ADDRESS_NEWS[1];
        }
        // What bridges say of their ports is of another family.
        let link = if LINK_NEWS.contains(&message.kind) && message.body.first() == Some(&0) { read_link(message) } else { None };
        link.is_some_and(|link| {
            let is_removed = message.kind == LINK_NEWS[1];
            let is_bridge = self.bridges.contains(&link.name);
            // A link that comes or goes by itself is first put on its bridge, or taken down.
            let has_lost_its_bridge = link.is_up && link.master.is_none() && !is_removed && self.names.slot_of(&link.name).is_some();
            is_bridge && (is_removed || !link.is_up) || has_lost_its_bridge
        })
    }

    fn has_rules_touched_by(&self, message: &Message<'_>) -> bool {
        let attributes = message.attributes(nft::HEADER);
        let table = attributes.text(nft::TABLE_NAME).unwrap_or_default();
        nft::NEWS.contains(&message.kind) && (table == self.table || nft::is_about_docker_user(message))
    }
}
