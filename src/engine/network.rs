//! Networks of the engine, as far as nspool has it make some: what one is made with, and what one is found to be.
//!
//! Only bridge networks of this host. Addresses are texts, written as nspool writes them; an engine gives them back as they were sent. An
//! engine's network never changes, so one that differs from what is wanted is told, and left.

use std::fmt;

use super::Labels;

/// The addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkRange {
    /// All of the network's, e.g. `10.213.0.0/16`.
    pub subnet: String,
    /// Those that the engine gives to its containers; empty: all.
    pub range: String,
    /// On the bridge.
    pub gateway: String,
}

impl fmt::Display for NetworkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = if self.range.is_empty() { "all" } else { &self.range };
        write!(f, "{} (containers: {range}, gateway: {})", self.subnet, self.gateway)
    }
}

/// All that a bridge network is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// As the engine's clients call it.
    pub name: String,
    /// The link on the host.
    pub bridge: String,
    /// IPv4, and IPv6 where there is some.
    pub ranges: Vec<NetworkRange>,
    /// Of its containers' links.
    pub mtu: u32,
    /// Its containers reach the outside by the host's addresses.
    pub masquerade: bool,
    /// Whose it is; birth facts.
    pub labels: Labels,
}

/// A network that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Names may come twice, ids do not.
    pub id: String,
    /// `bridge`, `null`, …
    pub driver: String,
    /// Nothing leads out of it.
    pub internal: bool,
    /// What the engine does not say is empty, or 0.
    pub made_with: NetworkSpec,
}

impl Network {
    /// What is otherwise than wanted, labels aside, each in words; empty: nothing is.
    #[must_use]
    pub fn differences(&self, wanted: &NetworkSpec) -> Vec<String> {
        let found = &self.made_with;
        let sorted = |ranges: &[NetworkRange]| {
            let mut ranges = ranges.to_vec();
            ranges.sort();
            ranges.iter().map(NetworkRange::to_string).collect::<Vec<_>>().join(" and ")
        };
        let on = |on: bool| if on { "on" } else { "off" };
        let sides = [
            ("driver", self.driver.clone(), "bridge".to_owned()),
            ("bridge", found.bridge.clone(), wanted.bridge.clone()),
            ("subnet", sorted(&found.ranges), sorted(&wanted.ranges)),
            ("mtu", found.mtu.to_string(), wanted.mtu.to_string()),
            ("nat", on(found.masquerade).to_owned(), on(wanted.masquerade).to_owned()),
            ("internal", on(self.internal).to_owned(), on(false).to_owned()),
        ];
        let differs = sides.into_iter().filter(|(_, found, wanted)| found != wanted);
        differs.map(|(what, found, wanted)| format!("{what} is {}, not {wanted}", if found.is_empty() { "none" } else { &found })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, range: &str, gateway: &str) -> NetworkRange {
        NetworkRange { subnet: subnet.into(), range: range.into(), gateway: gateway.into() }
    }

    #[test]
    fn each_difference_is_named_and_labels_are_none() {
        let wanted = NetworkSpec {
            name: "fn".into(),
            bridge: "ns-fast".into(),
            ranges: vec![range("10.1.0.0/16", "10.1.0.0/17", "10.1.0.1"), range("fd00::/64", "fd00::/65", "fd00::1")],
            mtu: 1400,
            masquerade: true,
            labels: Labels::new(),
        };
        let mut same = Network { id: "1".into(), driver: "bridge".into(), internal: false, made_with: wanted.clone() };
        same.made_with.ranges.reverse();
        same.made_with.labels.insert("a".into(), "b".into());
        assert_eq!(same.differences(&wanted), [] as [&str; 0]);
        let of_others = NetworkSpec {
            bridge: String::new(),
            ranges: vec![range("10.1.0.0/16", "", "10.1.0.1")],
            mtu: 0,
            masquerade: false,
            ..wanted.clone()
        };
        let other = Network { id: "2".into(), driver: "macvlan".into(), internal: true, made_with: of_others };
        assert_eq!(
            other.differences(&wanted),
            [
                "driver is macvlan, not bridge",
                "bridge is none, not ns-fast",
                "subnet is 10.1.0.0/16 (containers: all, gateway: 10.1.0.1), not 10.1.0.0/16 (containers: 10.1.0.0/17, gateway: 10.1.0.1) \
                 and fd00::/64 (containers: fd00::/65, gateway: fd00::1)",
                "mtu is 0, not 1400",
                "nat is off, not on",
                "internal is on, not off",
            ]
        );
    }
}
