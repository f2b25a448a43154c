//! Links, addresses and routes: what is said of them to the kernel, and what it says.
//!
//! It deliberately does not know what a pool wants of them, nor what is ours. All requests for one namespace go into one batch, because
//! each way into the kernel costs more than the message.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::subnet::Subnet;
use crate::netns::socket::Socket;
use crate::netns::wire::{ACK, Attributed, Attributes, Batch, CREATE, EXCLUSIVE, Message, REPLACE, word};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
const GETMULTICAST: u16 = 58;
const GETNETCONF: u16 = 82;
/// The news that [`watch`](super::watch) hears.
pub(super) const LINK_NEWS: [u16; 2] = [NEWLINK, DELLINK];
/// As above, of addresses.
pub(super) const ADDRESS_NEWS: [u16; 2] = [NEWADDR, 21];

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKMODE: u16 = 17;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const BR_MCAST_SNOOPING: u16 = 23;
const BRPORT_ISOLATED: u16 = 33;
const INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
/// Traffic counters cost more than all the rest of an answer.
const SKIP_STATISTICS: u32 = 1 << 3;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const BRPORT_STATE: u16 = 1;
const STATE_DISABLED: &[u8] = &[0];
/// The state of a link, and the mode in which it gets no further than that.
const DORMANT: (u8, u8) = (5, 1);
const LINK_HEADER: usize = 16;

const RTA_DST: u16 = 1;
/// Of packets to one host or network, and not the host's own addresses.
const RTN_UNICAST: u8 = 1;
const ROUTE_HEADER: usize = 12;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_MULTICAST: u16 = 7;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;
const ADDRESS_HEADER: usize = 8;
const SCOPE_LINK: u8 = 253;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_STATIC: u8 = 4;
const TYPE_UNICAST: u8 = 1;

const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const ALL_LINKS: u32 = u32::MAX;

pub(super) const INET: u8 = 2;
pub(super) const INET6: u8 = 10;

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) alias: String,
    pub(super) mtu: u32,
    pub(super) is_up: bool,
    pub(super) master: Option<u32>,
    pub(super) is_isolated: bool,
    /// Its carrier is there, and the kernel has taken notice.
    pub(super) is_running: bool,
    /// A port that its bridge sends to.
    pub(super) is_in_use: bool,
    pub(super) group: u32,
}

/// An address as the kernel shows it: of which link, and with which prefix.
pub(super) type LinkAddress = (u32, IpAddr, u8);

fn header(index: u32, is_up: bool) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if is_up {
        header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    header
}

/// The pair of one slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) master: u32,
    pub(super) mtu: u32,
    pub(super) is_isolated: bool,
    pub(super) peer: &'a str,
    pub(super) peer_mac: [u8; 6],
    pub(super) peer_namespace: BorrowedFd<'a>,
    pub(super) alias: &'a str,
}

/// Two messages: the second one, on its own, also puts right a port that was changed.
pub(super) fn create_pair(batch: &mut Batch, pair: &Pair<'_>) {
    batch.push("creating the link", NEWLINK, ACK | CREATE | EXCLUSIVE, &header(0, false), |a| {
        a.text(IFLA_IFNAME, pair.name);
        a.number(IFLA_MTU, pair.mtu);
        a.nest(IFLA_LINKINFO, |a| {
            a.text(INFO_KIND, "veth");
            a.nest(INFO_DATA, |a| {
                a.nest(VETH_INFO_PEER, |a| {
                    a.raw(&header(0, false));
                    a.text(IFLA_IFNAME, pair.peer);
                    a.number(IFLA_MTU, pair.mtu);
                    a.put(IFLA_ADDRESS, &pair.peer_mac);
                    a.put(IFLA_NET_NS_FD, &pair.peer_namespace.as_raw_fd().to_ne_bytes());
                });
            });
        });
        a.number(IFLA_MASTER, pair.master);
    });
    port(batch, pair.name, None, pair.is_isolated, Some(pair.alias));
}

/// Sets how a port of a bridge is isolated, after it was put on `master`, if that is given, and brings it up.
pub(super) fn port(batch: &mut Batch, name: &str, master: Option<u32>, is_isolated: bool, alias: Option<&str>) {
    if let Some(master) = master {
        batch.push("putting the link on the bridge", NEWLINK, ACK, &header(0, false), |a| {
            a.text(IFLA_IFNAME, name);
            a.number(IFLA_MASTER, master);
        });
    }
    batch.push("bringing the port up", NEWLINK, ACK, &header(0, true), |a| {
        a.text(IFLA_IFNAME, name);
        if let Some(alias) = alias {
            // The kernel takes none with the creation.
            a.put(IFLA_IFALIAS, alias.as_bytes());
        }
        a.nest(IFLA_LINKINFO, |a| {
            a.text(INFO_SLAVE_KIND, "bridge");
            a.nest(INFO_SLAVE_DATA, |a| a.put(BRPORT_ISOLATED, &[u8::from(is_isolated)]));
        });
    });
}

/// From then on nothing passes the port, in either direction. Unlike all ways to take it off its bridge this waits for nobody.
///
/// Why not the port's own state? A bridge sets it anew whenever it hears of the link: at the end of the very message that disabled it, and each
/// time that somebody inside takes the other end down and up. A port of a dormant link it disables each time.
pub(super) fn cut_port(batch: &mut Batch, name: &str) {
    batch.push("cutting the port off", NEWLINK, ACK, &header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.put(IFLA_OPERSTATE, &[DORMANT.0]);
        a.put(IFLA_LINKMODE, &[DORMANT.1]);
    });
}

/// Its hardware address is fixed, or it would change with the ports, and with it what everybody has in the neighbour tables.
/// Its MTU is for [`bring_up`] to set: the kernel keeps only one that was changed, and lets any other follow the ports.
pub(super) fn create_bridge(batch: &mut Batch, name: &str, alias: &str, mac: [u8; 6]) {
    batch.push("creating the bridge", NEWLINK, ACK | CREATE | EXCLUSIVE, &header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.put(IFLA_ADDRESS, &mac);
        // Who listens to which group is not worth watching: ports that may hear each other hear all.
        a.nest(IFLA_LINKINFO, |a| {
            a.text(INFO_KIND, "bridge");
            a.nest(INFO_DATA, |a| a.put(BR_MCAST_SNOOPING, &[0]));
        });
    });
    batch.push("naming the bridge ours", NEWLINK, ACK, &header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.put(IFLA_IFALIAS, alias.as_bytes());
    });
}

pub(super) fn bring_up(batch: &mut Batch, name: &str, mtu: Option<u32>) {
    batch.push("bringing the link up", NEWLINK, ACK, &header(0, true), |a| {
        a.text(IFLA_IFNAME, name);
        if let Some(mtu) = mtu {
            a.number(IFLA_MTU, mtu);
        }
    });
}

/// No IPv6 address by itself, whose duplicates it would look for, and no questions for routers. Refused where there is no IPv6.
pub(super) fn no_addresses_by_itself(batch: &mut Batch, name: &str) {
    batch.push("setting how IPv6 addresses come about", NEWLINK, ACK, &header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.nest(IFLA_AF_SPEC, |a| a.nest(u16::from(INET6), |a| a.put(INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE])));
    });
}

pub(super) fn delete(batch: &mut Batch, name: &str) {
    batch.push("removing the link", DELLINK, ACK, &header(0, false), |a| a.text(IFLA_IFNAME, name));
}

/// All links of a group at once, at the price of one.
pub(super) fn delete_group(batch: &mut Batch, group: u32) {
    batch.push("removing the links", DELLINK, ACK, &header(0, false), |a| a.number(IFLA_GROUP, group));
}

pub(super) fn set_group(batch: &mut Batch, name: &str, group: u32) {
    batch.push("grouping the link", NEWLINK, ACK, &header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.number(IFLA_GROUP, group);
    });
}

/// Without duplicate detection: it can be used at once. Who hands out addresses knows that they are unique.
pub(super) fn add_address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let scope = if is_link_local { SCOPE_LINK } else { 0 };
    let [a, b, c, d] = index.to_ne_bytes();
    let header = [family(address), prefix, 0, scope, a, b, c, d];
    batch.push("adding the address", NEWADDR, ACK | CREATE | REPLACE, &header, |a| {
        put_ip(a, IFA_LOCAL, address);
        put_ip(a, IFA_ADDRESS, address);
        a.number(IFA_FLAGS, IFA_F_NODAD);
    });
}

pub(super) fn add_default_route(batch: &mut Batch, index: u32, gateway: IpAddr) {
    let header = [family(gateway), 0, 0, 0, TABLE_MAIN, PROTOCOL_STATIC, 0, TYPE_UNICAST, 0, 0, 0, 0];
    batch.push("adding the default route", NEWROUTE, ACK | CREATE | EXCLUSIVE, &header, |a| {
        put_ip(a, RTA_GATEWAY, gateway);
        a.number(RTA_OIF, index);
    });
}

fn put_ip(attributes: &mut Attributes<'_>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => attributes.put(kind, &address.octets()),
        IpAddr::V6(address) => attributes.put(kind, &address.octets()),
    }
}

pub(super) fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { INET } else { INET6 }
}

/// The link of that name, or nothing.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Errno> {
    let mut batch = Batch::default();
    batch.push("looking for the link", GETLINK, 0, &header(0, false), |a| {
        a.text(IFLA_IFNAME, name);
        a.number(IFLA_EXT_MASK, SKIP_STATISTICS);
    });
    match socket.ask(&mut batch, read_link) {
        Err(Errno::NODEV) => Ok(None),
        answer => answer,
    }
}

/// All links for which `wanted` holds.
pub(super) fn list(socket: &mut Socket, wanted: impl Fn(&Link) -> bool) -> Result<Vec<Link>, Errno> {
    let fill = |a: &mut Attributes<'_>| a.number(IFLA_EXT_MASK, SKIP_STATISTICS);
    socket.list(GETLINK, &header(0, false), fill, |message| read_link(message).filter(&wanted))
}

/// Where the host sends packets for a network: that, and the number of the link.
pub(super) type Route = (Subnet, u32);

/// All routes of the namespace to networks; not the default ones.
pub(super) fn routes(socket: &mut Socket) -> Result<Vec<Route>, Errno> {
    socket.list(GETROUTE, &[0; ROUTE_HEADER], |_| {}, read_route)
}

fn read_route(message: &Message<'_>) -> Option<Route> {
    let (prefix, kind) = (*message.body.get(1)?, *message.body.get(7)?);
    let attributes = message.attributes(ROUTE_HEADER);
    let subnet = Subnet::of(ip_address(attributes.get(RTA_DST)?)?, prefix).ok()?;
    (kind == RTN_UNICAST && prefix > 0).then_some((subnet, attributes.number(RTA_OIF)?))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    }
}

/// All addresses of the namespace.
pub(super) fn addresses(socket: &mut Socket) -> Result<Vec<LinkAddress>, Errno> {
    socket.list(GETADDR, &[0; ADDRESS_HEADER], |_| {}, read_address)
}

/// Whether a link listens to those who ask for the owner of an IPv6 address, as it does a little after it got it. IPv4 knows no such thing.
pub(super) fn answers_for(socket: &mut Socket, index: u32, address: IpAddr) -> Result<bool, Errno> {
    let IpAddr::V6(address) = address else { return Ok(true) };
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, u16::from_be_bytes([0xff, a]), u16::from_be_bytes([b, c]));
    let listens = |message: &Message<'_>| {
        let is_group = word(message.body, 4)? == index && message.attributes(ADDRESS_HEADER).get(IFA_MULTICAST)? == group.octets();
        is_group.then_some(())
    };
    Ok(!socket.list(GETMULTICAST, &[INET6, 0, 0, 0, 0, 0, 0, 0], |_| {}, listens)?.is_empty())
}

/// Whether packets of that family are forwarded between links.
pub(super) fn forwards(socket: &mut Socket, family: u8) -> Result<bool, Errno> {
    let mut batch = Batch::default();
    batch.push("asking for forwarding", GETNETCONF, 0, &[family, 0, 0, 0], |a| a.number(NETCONFA_IFINDEX, ALL_LINKS));
    let answer = socket.ask(&mut batch, |message| message.attributes(4).number(NETCONFA_FORWARDING))?;
    Ok(answer.is_some_and(|forwarding| forwarding != 0))
}

/// From an answer, or from news.
pub(super) fn read_link(message: &Message<'_>) -> Option<Link> {
    let attributes = message.attributes(LINK_HEADER);
    let info = attributes.nested(IFLA_LINKINFO);
    Some(Link {
        index: word(message.body, 4)?,
        name: attributes.text(IFLA_IFNAME)?,
        kind: info.text(INFO_KIND).unwrap_or_default(),
        alias: attributes.text(IFLA_IFALIAS).unwrap_or_default(),
        mtu: attributes.number(IFLA_MTU).unwrap_or(0),
        is_up: word(message.body, 8)? & IFF_UP != 0,
        master: attributes.number(IFLA_MASTER),
        is_isolated: info.nested(INFO_SLAVE_DATA).get(BRPORT_ISOLATED) == Some(&[1]),
        is_running: word(message.body, 8)? & IFF_RUNNING != 0,
        is_in_use: info.nested(INFO_SLAVE_DATA).get(BRPORT_STATE).is_some_and(|state| state != STATE_DISABLED),
        group: attributes.number(IFLA_GROUP).unwrap_or(0),
    })
}

/// From an answer, or from news.
pub(super) fn read_address(message: &Message<'_>) -> Option<LinkAddress> {
    let attributes: Attributed<'_> = message.attributes(ADDRESS_HEADER);
    let address = ip_address(attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?)?;
    Some((word(message.body, 4)?, address, *message.body.get(1)?))
}

/// What the kernel would have made of a hardware address.
pub(super) fn link_local([a, b, c, d, e, f]: [u8; 6]) -> IpAddr {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f)).into()
}
