//! What managed networks ask of the kernel, tried once in the network namespace of the calling thread: for [`crate::netns::trial`].

use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::io::Errno;

use super::names::Names;
use super::network::{Bridge, ManagedNetwork, Range};
use super::subnet::Subnet;
use super::{link, nft, rules};
use crate::netns::socket::Socket;
use crate::netns::trial::Refused;
use crate::netns::wire::Batch;

const BRIDGE: &str = "nsbr0";
const PAIR: [&str; 2] = ["ns0", "ns1"];
const OURS: &str = "nspool doctor";
/// Two hardware addresses that nobody has but whom they are given by hand.
const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const MTU: u32 = 1500;

/// A bridge is made.
pub(in crate::netns) fn bridge() -> Result<(), Refused> {
    let mut socket = open()?;
    let mut batch = Batch::default();
    link::create_bridge(&mut batch, BRIDGE, OURS, MAC[0]);
    transact(&mut socket, &mut batch)
}

/// A pair of links is made, one of them an isolated port of the bridge, if that is there.
pub(in crate::netns) fn pair() -> Result<(), Refused> {
    let mut socket = open()?;
    let bridge = link::find(&mut socket, BRIDGE).map_err(|errno| Refused::at("looking for the bridge", errno))?;
    let home = File::open("/proc/thread-self/ns/net")
        .map_err(|error| Refused::at("opening the network namespace", Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let mut batch = Batch::default();
    let pair = link::Pair {
        name: PAIR[0],
        master: bridge.as_ref().map_or(0, |bridge| bridge.index),
        mtu: MTU,
        is_isolated: true,
        peer: PAIR[1],
        peer_mac: MAC[1],
        peer_namespace: home.as_fd(),
        alias: OURS,
    };
    link::create_pair(&mut batch, &pair);
    match transact(&mut socket, &mut batch) {
        // Without a bridge there is no port to isolate; the pair itself is what was asked for.
        Err(refused) if bridge.is_none() => match link::find(&mut socket, PAIR[0]) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(refused),
        },
        done => done,
    }
}

/// A table is made with every kind of rule that there is, but for IPv6.
pub(in crate::netns) fn rules() -> Result<(), Refused> {
    let subnet = Subnet::of(std::net::Ipv4Addr::new(10, 213, 0, 0).into(), 24);
    let subnet = subnet.map_err(|_| Refused::at("naming a subnet", Errno::INVAL))?;
    let network = ManagedNetwork {
        name: "doctor".to_owned(),
        bridge: Bridge::Own { name: BRIDGE.to_owned() },
        slots: 1,
        ipv4: Range::whole(subnet),
        ipv6: None,
        mtu: MTU,
        isolation: true,
        nat: true,
    };
    let mut socket = nft::open().map_err(|errno| Refused::at("opening a socket of netfilter", errno))?;
    nft::replace(&mut socket, &Names::of("doctor"), &rules::rules(&[network])).map_err(|refusal| Refused::at(refusal.step, refusal.errno))
}

fn open() -> Result<Socket, Refused> {
    Socket::open(None, 0).map_err(|errno| Refused::at("opening a socket of links", errno))
}

fn transact(socket: &mut Socket, batch: &mut Batch) -> Result<(), Refused> {
    let refusals = socket.transact(batch).map_err(|errno| Refused::at("asking for links", errno))?;
    match refusals.first() {
        Some(refusal) => Err(Refused::at(refusal.step, refusal.errno)),
        None => Ok(()),
    }
}
