//! What a managed network is: its bridge or bridges, its addresses, and what follows from both for each slot.
//!
//! A bridge has at most [`PORTS`] ports. A network for more slots has several bridges: its subnet is cut into equal parts, one for each,
//! with a gateway at the same place in each part. Addresses are counted as [`Place`]s, from 0 on, through all parts; the IPv6 address of a
//! place is as far into its part as the IPv4 address, so that one book keeps both.
//!
//! Pure: nothing here asks the kernel. What can go wrong is a mistake in the description, and all of them are told at once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::addresses::{AddressBook, Place};
use super::names::{HostEnd, LONGEST_LINK, MOST_SLOTS, Names};
use super::subnet::Subnet;

/// Of a bridge, in the kernel.
pub const PORTS: u32 = 1023;
/// What IPv6 wants of a link, and what a link can have.
const MTU: std::ops::RangeInclusive<u32> = 1280..=65_535;
/// With more, looking at all of them would be slow.
const MOST_BRIDGES: u32 = 64;

/// Where the links of slots go.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Bridge {
    /// Made by us, and removed with the pool. Further ones are `NAME-1`, `NAME-2`, and so on.
    Own {
        /// The first one's.
        name: String,
    },
    /// Somebody else's (Docker's, mostly), whose address, forwarding and NAT serve ours, too. We only put ports on it.
    Existing {
        /// As it is.
        name: String,
    },
}

impl Bridge {
    /// As configured.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Own { name } | Self::Existing { name } => name,
        }
    }
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Range {
    /// Of the network.
    pub subnet: Subnet,
    /// On the bridge; with several bridges that of the first.
    pub gateway: IpAddr,
    /// What slots get: the whole subnet on a bridge of our own; on another's a part that its owner does not hand out.
    pub part: Subnet,
}

impl Range {
    /// A whole subnet, with its first address as the gateway.
    #[must_use]
    pub fn whole(subnet: Subnet) -> Self {
        Self { subnet, gateway: subnet.nth(1).unwrap_or(subnet.first()), part: subnet }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ManagedNetwork {
    /// For people.
    pub name: String,
    /// Where the links go.
    pub bridge: Bridge,
    /// The most slots that have a link at once. What rests takes addresses besides.
    pub slots: u32,
    /// Always there.
    pub ipv4: Range,
    /// Absent: slots get no IPv6 address at all, not even a link-local one.
    pub ipv6: Option<Range>,
    /// Of all links.
    pub mtu: u32,
    /// Whether slots are kept from each other.
    pub isolation: bool,
    /// Whether slots reach the outside by the host's addresses; then nobody outside reaches them. On a bridge of our own only.
    pub nat: bool,
}

/// A bridge, and what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name.
    pub bridge: String,
    /// Its part of the subnet.
    pub ipv4: Subnet,
    /// On the bridge.
    pub gateway4: IpAddr,
    /// As above.
    pub ipv6: Option<(Subnet, IpAddr)>,
}

/// Everything about one slot's link.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plan {
    /// On the host.
    pub host_end: HostEnd,
    /// The bridge that it becomes a port of.
    pub bridge: String,
    /// Whether the port is kept from other isolated ports.
    pub isolated: bool,
    /// Of both ends.
    pub mtu: u32,
    /// Of the end inside, which follows from its address: whoever knew the hardware address of that IP address still does.
    pub mac: [u8; 6],
    /// Inside.
    pub ipv4: Interface,
    /// As above.
    pub ipv6: Option<Interface>,
}

/// An address inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Interface {
    /// Of the slot.
    pub address: IpAddr,
    /// Of the subnet.
    pub prefix: u8,
    /// The default route.
    pub gateway: IpAddr,
}

impl ManagedNetwork {
    /// All mistakes, in words for whoever wrote the description.
    #[must_use]
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut must = |holds: bool, mistake: String| {
            if !holds {
                mistakes.push(format!("network {}: {mistake}", self.name));
            }
        };
        let (name, bridges) = (self.bridge.name(), self.bridges());
        must(
            is_link_name(&self.bridge_name(bridges - 1)),
            format!("`{name}` is no name for {bridges} bridges: 1 to 15 letters, digits, `-`, `_`, `.`, with the bridge's number"),
        );
        must(MTU.contains(&self.mtu), format!("an MTU of {} is not from {} to {}", self.mtu, MTU.start(), MTU.end()));
        must((1..=MOST_SLOTS).contains(&self.slots), format!("{} slots are not from 1 to {MOST_SLOTS}", self.slots));
        must(bridges <= MOST_BRIDGES, format!("{} slots need {bridges} bridges; at most {MOST_BRIDGES} are kept", self.slots));
        must(self.ipv4.subnet.first().is_ipv4(), format!("{} is not IPv4", self.ipv4.subnet));
        must((16..=30).contains(&self.ipv4.subnet.prefix()), format!("{} is not from a /16 to a /30", self.ipv4.subnet));
        if let Some(ipv6) = self.ipv6 {
            must(ipv6.subnet.first().is_ipv6(), format!("{} is not IPv6", ipv6.subnet));
            must(ipv6.part.free_bits() >= self.ipv4.part.free_bits(), format!("{} has fewer addresses than {}", ipv6.part, self.ipv4.part));
        }
        for range in [Some(self.ipv4), self.ipv6].into_iter().flatten() {
            must(range.subnet.contains(range.gateway), format!("the gateway {} is not in {}", range.gateway, range.subnet));
            must(range.subnet.covers(range.part), format!("{} is not a part of {}", range.part, range.subnet));
            let fits = bridges == 1 || range.part_of(bridges).is_some_and(|part| part.contains(range.gateway));
            must(fits, format!("the gateway {} is not in the first of {bridges} parts of {}", range.gateway, range.subnet));
        }
        match self.bridge {
            Bridge::Own { .. } => must(self.is_whole(), "a bridge of our own has all of its subnet for slots".to_owned()),
            Bridge::Existing { .. } => {
                must(bridges == 1, format!("{} slots need {bridges} bridges, and {name} is one", self.slots));
                must(!self.nat, format!("NAT for {name} is its owner's business"));
            }
        }
        if mistakes.is_empty() {
            let room = self.book().size();
            if room < self.slots {
                mistakes.push(format!("network {}: {} has addresses for {room} slots, not for {}", self.name, self.ipv4.part, self.slots));
            }
        }
        mistakes
    }

    fn is_whole(&self) -> bool {
        [Some(self.ipv4), self.ipv6].into_iter().flatten().all(|range| range.part == range.subnet)
    }

    /// How many are needed.
    #[must_use]
    pub fn bridges(&self) -> u32 {
        self.slots.div_ceil(PORTS).max(1)
    }

    fn bridge_name(&self, number: u32) -> String {
        let name = self.bridge.name();
        if number == 0 { name.to_owned() } else { format!("{name}-{number}") }
    }

    /// The bridges with what is on each.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        (0..self.bridges()).filter_map(|number| self.segment(number)).collect()
    }

    fn segment(&self, number: u32) -> Option<Segment> {
        let bridges = self.bridges();
        let (ipv4, gateway4) = self.ipv4.of_segment(bridges, number)?;
        let ipv6 = match self.ipv6 {
            Some(range) => Some(range.of_segment(bridges, number)?),
            None => None,
        };
        Some(Segment { bridge: self.bridge_name(number), ipv4, gateway4, ipv6 })
    }

    /// How many places a bridge has, whether they can be used or not.
    fn stride(&self) -> u32 {
        let part = if self.bridges() == 1 { Some(self.ipv4.part) } else { self.ipv4.part_of(self.bridges()) };
        part.and_then(|part| u32::try_from(part.size()).ok()).unwrap_or(1)
    }

    /// A book with all places, without those of networks, gateways and broadcasts. Several bridges have at most as many places each as
    /// ports, so that whoever has a place has a port.
    #[must_use]
    pub fn book(&self) -> AddressBook {
        let (stride, bridges) = (self.stride(), self.bridges());
        let mut not_used = BTreeSet::new();
        for number in 0..bridges {
            let taken = self.taken_offsets(number);
            let mut usable = (0..stride).filter(|offset| !taken.contains(offset));
            let end = if bridges == 1 { stride } else { usable.nth(PORTS as usize).unwrap_or(stride) };
            not_used.extend(taken.range(..end).copied().chain(end..stride).map(|offset| number * stride + offset));
        }
        AddressBook::new(stride * bridges, not_used)
    }

    /// Where in its segment the network's, the gateway's and the broadcast address are, of both families.
    fn taken_offsets(&self, number: u32) -> BTreeSet<u32> {
        let Some(segment) = self.segment(number) else { return (0..self.stride()).collect() };
        let last = segment.ipv4.nth(segment.ipv4.size() - 1);
        let base = self.base(self.ipv4, segment.ipv4);
        let ipv4 =
            [Some(segment.ipv4.first()), Some(segment.gateway4), last].into_iter().flatten().filter_map(move |one| base.offset_of(one));
        let ipv6 = self.ipv6.zip(segment.ipv6).into_iter().flat_map(|(range, (subnet, gateway))| {
            let base = self.base(range, subnet);
            [subnet.first(), gateway].into_iter().filter_map(move |one| base.offset_of(one))
        });
        ipv4.chain(ipv6).filter_map(|offset| u32::try_from(offset).ok()).collect()
    }

    /// What places are counted in. One bridge: a part of its subnet. Several: all of each, as parts of the whole.
    fn base(&self, range: Range, segment: Subnet) -> Subnet {
        if self.bridges() == 1 { range.part } else { segment }
    }

    fn interfaces(&self, place: Place) -> Option<(Segment, Interface, Option<Interface>)> {
        let (number, offset) = (place.0 / self.stride(), u128::from(place.0 % self.stride()));
        let segment = self.segment(number)?;
        let address = |range: Range, subnet: Subnet| self.base(range, subnet).nth(offset);
        let ipv4 = Interface { address: address(self.ipv4, segment.ipv4)?, prefix: segment.ipv4.prefix(), gateway: segment.gateway4 };
        let ipv6 = match self.ipv6.zip(segment.ipv6) {
            Some((range, (subnet, gateway))) => Some(Interface { address: address(range, subnet)?, prefix: subnet.prefix(), gateway }),
            None => None,
        };
        Some((segment, ipv4, ipv6))
    }

    /// Which place an IPv4 address is: for those who know a slot by its address.
    #[must_use]
    pub fn place_of(&self, address: IpAddr) -> Option<Place> {
        u32::try_from(self.ipv4.part.offset_of(address)?).ok().map(Place)
    }

    /// What a slot's use gets at a place out of this network's [`book`](Self::book). Nothing for a place out of another's.
    #[must_use]
    pub fn plan(&self, names: &Names, slot: u32, use_number: u64, place: Place) -> Option<Plan> {
        let (segment, ipv4, ipv6) = self.interfaces(place)?;
        let IpAddr::V4(address) = ipv4.address else { return None };
        let [a, b, c, d] = address.octets();
        Some(Plan {
            host_end: names.host_end(slot, use_number),
            bridge: segment.bridge,
            isolated: self.isolation,
            mtu: self.mtu,
            mac: [0x02, 0x6e, a, b, c, d],
            ipv4,
            ipv6,
        })
    }
}

impl Range {
    /// The first one, when there are several bridges.
    fn part_of(self, bridges: u32) -> Option<Subnet> {
        self.subnet.part(self.subnet.prefix() + cuts(bridges), 0)
    }

    fn of_segment(self, bridges: u32, number: u32) -> Option<(Subnet, IpAddr)> {
        let subnet = self.subnet.part(self.subnet.prefix() + cuts(bridges), number)?;
        Some((subnet, subnet.nth(self.subnet.offset_of(self.gateway)?)?))
    }
}

/// How often a subnet is halved so that there is a part for each bridge.
fn cuts(bridges: u32) -> u8 {
    u8::try_from(bridges.next_power_of_two().trailing_zeros()).unwrap_or(0)
}

/// Whether a link can have it, and a shell needs no quotes for it.
#[must_use]
pub fn is_link_name(name: &str) -> bool {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=LONGEST_LINK).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_one)
}

/// Mistakes of networks taken together, besides each one's own.
#[must_use]
pub fn mistakes(networks: &[ManagedNetwork]) -> Vec<String> {
    let mut mistakes: Vec<String> = networks.iter().flat_map(ManagedNetwork::mistakes).collect();
    for (at, one) in networks.iter().enumerate() {
        mistakes.extend(networks[at + 1..].iter().flat_map(|other| clashes(one, other)));
    }
    mistakes
}

/// What two networks cannot both have.
#[must_use]
pub fn clashes(one: &ManagedNetwork, other: &ManagedNetwork) -> Vec<String> {
    let mut clashes = Vec::new();
    let ranges = |network: &ManagedNetwork| [Some(network.ipv4), network.ipv6].into_iter().flatten().collect::<Vec<_>>();
    for (a, b) in ranges(one).iter().flat_map(|a| ranges(other).into_iter().map(move |b| (*a, b))) {
        if a.part.overlaps(b.part) {
            clashes.push(format!("networks {} and {}: {} and {} overlap", one.name, other.name, a.part, b.part));
        }
    }
    let names = |network: &ManagedNetwork| (0..network.bridges()).map(|number| network.bridge_name(number)).collect::<BTreeSet<_>>();
    let both_existing = matches!((&one.bridge, &other.bridge), (Bridge::Existing { .. }, Bridge::Existing { .. }));
    for name in names(one).intersection(&names(other)).filter(|_| !both_existing) {
        clashes.push(format!("networks {} and {}: both have the bridge {name}", one.name, other.name));
    }
    clashes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn network(slots: u32) -> ManagedNetwork {
        ManagedNetwork {
            name: "test".to_owned(),
            bridge: Bridge::Own { name: "nsbr0".to_owned() },
            slots,
            ipv4: Range::whole("10.200.0.0/16".parse().unwrap()),
            ipv6: Some(Range::whole("fd00:200::/64".parse().unwrap())),
            mtu: 1500,
            isolation: true,
            nat: true,
        }
    }

    #[test]
    fn every_place_has_addresses_of_its_own_and_is_found_again() {
        for slots in [10, 1023, 1024, 3000] {
            let network = network(slots);
            assert_eq!(network.mistakes(), [] as [&str; 0], "{slots} slots");
            let (mut book, names) = (network.book(), Names::of("test"));
            let mut seen = BTreeSet::new();
            let mut ports = std::collections::BTreeMap::<String, u32>::new();
            for slot in 0..slots {
                let place = book.allocate(Duration::ZERO).unwrap();
                let plan = network.plan(&names, slot, 0, place).unwrap();
                assert_eq!(network.place_of(plan.ipv4.address), Some(place));
                for interface in [plan.ipv4, plan.ipv6.unwrap()] {
                    let subnet = Subnet::of(interface.gateway, interface.prefix).unwrap();
                    assert!(subnet.contains(interface.address) && interface.address != interface.gateway);
                    assert!(seen.insert(interface.address));
                }
                *ports.entry(plan.bridge).or_default() += 1;
            }
            assert_eq!(ports.len(), network.segments().len());
            assert!(network.bridges() == 1 || ports.values().all(|ports| *ports <= PORTS), "{ports:?}");
        }
    }

    #[test]
    fn the_part_on_anothers_bridge_is_all_that_is_used() {
        let subnet = "172.17.0.0/16".parse().unwrap();
        let ipv4 = Range { subnet, gateway: subnet.nth(1).unwrap(), part: "172.17.255.0/24".parse().unwrap() };
        let network =
            ManagedNetwork { bridge: Bridge::Existing { name: "docker0".to_owned() }, ipv4, ipv6: None, nat: false, ..network(200) };
        assert_eq!(network.mistakes(), [] as [&str; 0]);
        assert_eq!(network.book().size(), 255, "all but the broadcast");
        let plan = network.plan(&Names::of("test"), 0, 0, Place(7)).unwrap();
        assert_eq!((plan.ipv4.address.to_string(), plan.ipv4.prefix), ("172.17.255.7".to_owned(), 16));
        assert_eq!(network.plan(&Names::of("test"), 0, 0, Place(256)), None);
    }

    /// Looks at every place by itself, and at the addresses that it would have.
    fn usable_places(network: &ManagedNetwork) -> BTreeSet<Place> {
        let mut used = std::collections::BTreeMap::<String, u32>::new();
        let mut is_usable = |place: &Place| {
            let (segment, ipv4, ipv6) = network.interfaces(*place).unwrap();
            let last = segment.ipv4.nth(segment.ipv4.size() - 1).unwrap();
            let taken = [segment.ipv4.first(), last, segment.gateway4].contains(&ipv4.address)
                || ipv6.zip(segment.ipv6).is_some_and(|(ipv6, (subnet, gateway))| [subnet.first(), gateway].contains(&ipv6.address));
            let ports = used.entry(segment.bridge).or_default();
            let is_usable = !taken && (network.bridges() == 1 || *ports < PORTS);
            *ports += u32::from(is_usable);
            is_usable
        };
        (0..network.stride() * network.bridges()).map(Place).filter(|place| is_usable(place)).collect()
    }

    #[test]
    fn a_book_has_all_places_but_those_of_networks_gateways_and_broadcasts() {
        let at = |subnet: &str, gateway: &str| Range { gateway: gateway.parse().unwrap(), ..Range::whole(subnet.parse().unwrap()) };
        let of_other_gateways = |slots| ManagedNetwork {
            ipv4: at("10.200.0.0/20", "10.200.0.77"),
            ipv6: Some(at("fd00:200::/64", "fd00:200::99")),
            ..network(slots)
        };
        let part = Range { part: "10.200.8.0/22".parse().unwrap(), ..at("10.200.0.0/16", "10.200.9.1") };
        let beside = Range { part: "10.200.255.0/24".parse().unwrap(), ..at("10.200.0.0/16", "10.200.9.1") };
        let existing = |ipv4| ManagedNetwork { bridge: Bridge::Existing { name: "b".into() }, ipv4, ipv6: None, nat: false, ..network(9) };
        for network in [network(10), network(3000), of_other_gateways(10), of_other_gateways(2000), existing(part), existing(beside)] {
            assert_eq!(network.mistakes(), [] as [&str; 0]);
            let mut book = network.book();
            let given: BTreeSet<Place> = std::iter::from_fn(|| book.allocate(Duration::ZERO).ok()).collect();
            assert_eq!(given, usable_places(&network), "{network:?}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let wrong = ManagedNetwork {
            bridge: Bridge::Existing { name: "a/b".to_owned() },
            mtu: 576,
            ipv4: Range { gateway: "10.0.0.1".parse().unwrap(), ..network(1).ipv4 },
            ..network(2000)
        };
        let told = wrong.mistakes().join("\n");
        for word in [
            "`a/b` is no name for 2 bridges",
            "an MTU of 576",
            "the gateway 10.0.0.1 is not in 10.200.0.0/16",
            "need 2 bridges",
            "NAT for a/b",
        ] {
            assert!(told.contains(word), "{word}: {told}");
        }
        let small = ManagedNetwork { ipv4: Range::whole("10.0.0.0/24".parse().unwrap()), ..network(300) };
        assert_eq!(small.mistakes(), ["network test: 10.0.0.0/24 has addresses for 253 slots, not for 300"]);
        let both = mistakes(&[network(1), ManagedNetwork { name: "other".to_owned(), ipv6: None, ..network(1) }]).join("\n");
        assert!(both.contains("10.200.0.0/16 and 10.200.0.0/16 overlap") && both.contains("both have the bridge nsbr0"), "{both}");
    }
}
