//! Which packets go where: the rules of a pool's table, as plain values.
//!
//! Isolated ports of a bridge do not hear each other, which is the bridge's doing and not here. What is here is what goes over the host: a
//! packet that a slot sends to the gateway for a neighbour (the host would send it back to the bridge), one for a slot on another bridge,
//! one with somebody else's sender, one that comes in from outside; and NAT for those that go out.
//!
//! Our rules only ever drop, or leave a packet to others: an accept in one table overrides no drop in another. What has to be let through
//! elsewhere stands in [`nft`](super::nft). On a bridge that is somebody else's only traffic among our own addresses is our business.
//!
//! Not prevented: a slot with NET_RAW or NET_ADMIN that takes its neighbour's address.

use std::fmt;

use super::link::{INET, INET6, family};
use super::network::{Bridge, ManagedNetwork, Segment};
use super::subnet::Subnet;

/// Where a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    Forward,
    Postrouting,
}

pub(super) const CHAINS: [Chain; 2] = [Chain::Forward, Chain::Postrouting];

/// What must hold, in order, and in the end what is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chain: Chain,
    pub(super) expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// It comes from that link.
    From(String),
    /// It goes to that link.
    To(String),
    /// It goes to any other.
    NotTo(String),
    SourceIn(Subnet),
    SourceNotIn(Subnet),
    DestinationIn(Subnet),
    /// It begins a connection.
    New,
    Drop,
    Masquerade,
}

/// All rules of the pool's table.
pub(super) fn rules(networks: &[ManagedNetwork]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for network in networks {
        for segment in network.segments() {
            match network.bridge {
                Bridge::Own { .. } => on_our_bridge(&mut rules, networks, network, &segment),
                Bridge::Existing { .. } if network.isolation => on_a_foreign_bridge(&mut rules, network),
                Bridge::Existing { .. } => {}
            }
        }
    }
    rules
}

fn on_our_bridge(rules: &mut Vec<Rule>, networks: &[ManagedNetwork], network: &ManagedNetwork, segment: &Segment) {
    let from = || Expression::From(segment.bridge.clone());
    let to = || Expression::To(segment.bridge.clone());
    let mut forward = |expressions| rules.push(Rule { chain: Chain::Forward, expressions });
    let subnets = || [Some(segment.ipv4), segment.ipv6.map(|(subnet, _)| subnet)].into_iter().flatten();
    for own in subnets() {
        forward(vec![from(), Expression::SourceNotIn(own), Expression::Drop]);
    }
    if network.isolation {
        for part in networks.iter().flat_map(parts) {
            forward(vec![from(), Expression::DestinationIn(part), Expression::Drop]);
        }
    }
    if network.nat {
        for whole in [Some(network.ipv4), network.ipv6].into_iter().flatten() {
            forward(vec![to(), Expression::SourceNotIn(whole.subnet), Expression::New, Expression::Drop]);
        }
        for own in subnets() {
            let expressions = vec![Expression::SourceIn(own), Expression::NotTo(segment.bridge.clone()), Expression::Masquerade];
            rules.push(Rule { chain: Chain::Postrouting, expressions });
        }
    }
}

fn on_a_foreign_bridge(rules: &mut Vec<Rule>, network: &ManagedNetwork) {
    let from = || Expression::From(network.bridge.name().to_owned());
    for part in parts(network) {
        let expressions = vec![from(), Expression::SourceIn(part), Expression::DestinationIn(part), Expression::Drop];
        rules.push(Rule { chain: Chain::Forward, expressions });
    }
}

fn parts(network: &ManagedNetwork) -> impl Iterator<Item = Subnet> {
    [Some(network.ipv4), network.ipv6].into_iter().flatten().map(|range| range.part)
}

/// The family that an expression's addresses are of.
pub(super) fn family_of(expression: &Expression) -> Option<u8> {
    match expression {
        Expression::SourceIn(subnet) | Expression::SourceNotIn(subnet) | Expression::DestinationIn(subnet) => Some(family(subnet.first())),
        Expression::From(_) | Expression::To(_) | Expression::NotTo(_) | Expression::New | Expression::Drop | Expression::Masquerade => {
            None
        }
    }
}

/// In the words of `nft list ruleset`.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = match family_of(self) {
            Some(INET6) => "ip6",
            Some(INET) | Some(_) | None => "ip",
        };
        match self {
            Self::From(link) => write!(f, "iifname \"{link}\""),
            Self::To(link) => write!(f, "oifname \"{link}\""),
            Self::NotTo(link) => write!(f, "oifname != \"{link}\""),
            Self::SourceIn(subnet) => write!(f, "{ip} saddr {subnet}"),
            Self::SourceNotIn(subnet) => write!(f, "{ip} saddr != {subnet}"),
            Self::DestinationIn(subnet) => write!(f, "{ip} daddr {subnet}"),
            Self::New => f.write_str("ct state new"),
            Self::Drop => f.write_str("drop"),
            Self::Masquerade => f.write_str("masquerade"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.expressions.iter().map(Expression::to_string).collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::managed::Range;

    #[test]
    fn rules_read_as_nft_shows_them() {
        let own = ManagedNetwork {
            name: "own".to_owned(),
            bridge: Bridge::Own { name: "nsbr0".to_owned() },
            slots: 8,
            ipv4: Range::whole("10.200.0.0/24".parse().unwrap()),
            ipv6: Some(Range::whole("fd00::/64".parse().unwrap())),
            mtu: 1500,
            isolation: true,
            nat: true,
        };
        let foreign = Bridge::Existing { name: "docker0".to_owned() };
        let ipv4 = Range { part: "172.17.255.0/24".parse().unwrap(), ..Range::whole("172.17.0.0/16".parse().unwrap()) };
        let docker = ManagedNetwork { bridge: foreign, ipv4, ipv6: None, nat: false, ..own.clone() };
        let told: Vec<String> = rules(&[own.clone(), docker]).iter().map(Rule::to_string).collect();
        assert_eq!(
            told,
            [
                "iifname \"nsbr0\" ip saddr != 10.200.0.0/24 drop",
                "iifname \"nsbr0\" ip6 saddr != fd00::/64 drop",
                "iifname \"nsbr0\" ip daddr 10.200.0.0/24 drop",
                "iifname \"nsbr0\" ip6 daddr fd00::/64 drop",
                "iifname \"nsbr0\" ip daddr 172.17.255.0/24 drop",
                "oifname \"nsbr0\" ip saddr != 10.200.0.0/24 ct state new drop",
                "oifname \"nsbr0\" ip6 saddr != fd00::/64 ct state new drop",
                "ip saddr 10.200.0.0/24 oifname != \"nsbr0\" masquerade",
                "ip6 saddr fd00::/64 oifname != \"nsbr0\" masquerade",
                "iifname \"docker0\" ip saddr 172.17.255.0/24 ip daddr 172.17.255.0/24 drop",
            ]
        );
        let open = rules(&[ManagedNetwork { isolation: false, nat: false, ..own }]);
        assert_eq!(open.len(), 2, "only somebody else's sender is refused: {open:?}");
    }
}
