//! The host's side of a pool's networks: bridges, the table of rules, forwarding. Set up, compared, mended, taken away.
//!
//! Setting up changes only what is missing or different, so that it also mends, and a second daemon's start disturbs nobody. What can go
//! wrong is told as a list of [`Finding`]s: what is not as it should be and that we could not, or may not, put right. Whether the host
//! forwards packets is the operator's decision, and changed only when configured.

use std::borrow::Cow;
use std::net::IpAddr;

use super::error::FurnishError;
use super::hand::{Hand, answers_for, wait_until};
use super::link::{self, INET, INET6, Link};
use super::names::{HostEnd, Names};
use super::network::{Bridge, ManagedNetwork, Segment};
use super::nft;
use super::rules::rules;
use crate::netns::socket::Refusal;
use crate::netns::wire::Batch;

/// At a tear-down, while others wait for the kernel, too.
const STRIPPED_TOGETHER: usize = 256;

/// A pool's networks.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Host {
    /// Of the pool.
    pub names: Names,
    /// Without [`mistakes`](super::network::mistakes).
    pub networks: Vec<ManagedNetwork>,
    /// What is done about it.
    pub forwarding: Forwarding,
}

/// Whether packets go from link to link is a setting of the whole host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Forwarding {
    /// Left as it is; a finding when it is off.
    Told,
    /// Switched on, and left on at the end: others may count on it by then. With IPv6 the host then listens to no router any more, unless
    /// told to.
    SwitchedOn,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum Finding {
    /// Not there, or no bridge.
    #[error("the bridge {0} is not there")]
    NoBridge(String),
    /// Of the name of ours.
    #[error("{0} is there, and it is not ours")]
    Foreign(String),
    /// Down, or its MTU is another.
    #[error("the bridge {0} is down, or its MTU was changed")]
    BridgeChanged(String),
    /// On the bridge.
    #[error("the bridge {bridge} does not have the address {address}")]
    NoGateway {
        /// Which one.
        bridge: String,
        /// That slots send to.
        address: IpAddr,
    },
    /// Not on its bridge, down, or isolated otherwise than it should be.
    #[error("the link {0} is not a port of its bridge as it should be")]
    PortChanged(HostEnd),
    /// A link of a slot that should be there.
    #[error("the link {0} is gone")]
    PortGone(HostEnd),
    /// A link of ours that nobody told us of: strip it, if nobody is left in its namespace.
    #[error("the link {0} belongs to no known slot")]
    Stray(HostEnd),
    /// Of the pool: not there, or with other rules.
    #[error("the firewall's table {0} is not there, or was changed")]
    RulesChanged(String),
    /// In `DOCKER-USER`.
    #[error("the rules in DOCKER-USER ({family}) that let our bridges through are not there")]
    NotLetThrough {
        /// `ip` or `ip6`.
        family: Cow<'static, str>,
    },
    /// By others' rules.
    #[error("the chain {chain} of table {family} {table} drops what is forwarded, ours, too, unless a rule there accepts our bridges")]
    ForwardDropped {
        /// `ip`, `ip6` or `inet`.
        family: Cow<'static, str>,
        /// Of the chain.
        table: String,
        /// Whose policy it is.
        chain: String,
    },
    /// Then slots reach nobody but their host.
    #[error("the host does not forward {family} packets: set {}=1", if *family == "IPv4" { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" })]
    NoForwarding {
        /// `IPv4` or `IPv6`.
        family: Cow<'static, str>,
    },
}

impl Hand {
    /// Makes what is missing, puts right what is different, and tells what is still not as it should be.
    pub(super) fn mend(&mut self) -> Result<Vec<Finding>, FurnishError> {
        for network in self.host.networks.clone() {
            if matches!(network.bridge, Bridge::Own { .. }) {
                for segment in network.segments() {
                    self.mend_bridge(&segment, network.mtu)?;
                }
            }
        }
        self.mend_rules()?;
        self.mend_ports()?;
        if self.host.forwarding == Forwarding::SwitchedOn {
            self.switch_forwarding_on()?;
        }
        self.audit()
    }

    fn mend_bridge(&mut self, segment: &Segment, mtu: u32) -> Result<(), FurnishError> {
        let (name, mark, mac) = (&segment.bridge, self.host.names.mark(), self.host.names.mac(&segment.bridge));
        let mut batch = Batch::default();
        match self.find(name)? {
            Some(link) if !is_ours(&link, &mark) => return Err(FurnishError::Foreign { name: name.clone() }),
            Some(_) => {}
            None => {
                self.is_nobodys(segment)?;
                link::create_bridge(&mut batch, name, &mark, mac);
            }
        }
        if segment.ipv6.is_some() {
            link::no_addresses_by_itself(&mut batch, name);
        }
        link::bring_up(&mut batch, name, Some(mtu));
        self.all_of(&mut batch, name)?;
        let index = self.find(name)?.ok_or_else(|| FurnishError::NoBridge { name: name.clone() })?.index;
        let mut batch = Batch::default();
        link::add_address(&mut batch, index, segment.gateway4, segment.ipv4.prefix());
        if let Some((subnet, gateway)) = segment.ipv6 {
            link::add_address(&mut batch, index, gateway, subnet.prefix());
            // Without one that is sure, the host asks for no slot's hardware address in another's name: nothing would be forwarded to slots at first.
            link::add_address(&mut batch, index, link::link_local(mac), 64);
        }
        self.all_of(&mut batch, name)?;
        segment.ipv6.map_or(Ok(()), |(_, gateway)| wait_until(|| answers_for(&mut self.route, index, gateway)))
    }

    /// Before there is a bridge. Routes that come later are their makers' choice.
    fn is_nobodys(&mut self, segment: &Segment) -> Result<(), FurnishError> {
        let routes = link::routes(&mut self.route).map_err(FurnishError::failing("listing routes", &segment.bridge))?;
        let ours = [Some(segment.ipv4), segment.ipv6.map(|(subnet, _)| subnet)];
        for subnet in ours.into_iter().flatten() {
            if let Some((route, index)) = routes.iter().find(|(route, _)| route.overlaps(subnet)) {
                let links = link::list(&mut self.route, |link| link.index == *index);
                let links = links.map_err(FurnishError::failing("listing links", &segment.bridge))?;
                let link = links.first().map_or_else(|| format!("link {index}"), |link| link.name.clone());
                return Err(FurnishError::Overlap { subnet: subnet.to_string(), route: route.to_string(), link });
            }
        }
        Ok(())
    }

    fn mend_rules(&mut self) -> Result<(), FurnishError> {
        let (names, wanted) = (self.host.names.clone(), rules(&self.host.networks));
        let refused = |refusal: Refusal| FurnishError::refused(refusal, &names.table());
        let failed = FurnishError::failing("reading the firewall", "nftables");
        let chains = nft::chains(&mut self.nft).map_err(&failed)?;
        if !nft::is_whole(&mut self.nft, &names, &wanted, &chains).map_err(&failed)? {
            nft::replace(&mut self.nft, &names, &wanted).map_err(refused)?;
        }
        let bridges = self.host.own_bridges();
        for family in chains.iter().filter(|chain| chain.is_docker_user()).map(|chain| chain.family) {
            let there = nft::let_through(&mut self.nft, &names, family).map_err(&failed)?;
            if there.len() != 2 * bridges.len() {
                nft::replace_let_through(&mut self.nft, &names, family, &there, &bridges).map_err(refused)?;
            }
        }
        Ok(())
    }

    fn mend_ports(&mut self) -> Result<(), FurnishError> {
        for (end, found) in self.ports_found()? {
            let (Some(link), Some(port)) = (found, self.ports.get(&end).cloned()) else { continue };
            let master = self.find(&port.bridge)?.map(|bridge| bridge.index);
            if master.is_some() && !is_port(&link, master, port.is_isolated) {
                let mut batch = Batch::default();
                link::port(&mut batch, end.as_str(), master, port.is_isolated, None);
                // It may go with its namespace at any time, and the audit looks again.
                self.transact(&mut batch, end.as_str())?;
            }
        }
        Ok(())
    }

    fn switch_forwarding_on(&mut self) -> Result<(), FurnishError> {
        for (family, _, path) in self.host.families() {
            let failed = FurnishError::failing("switching forwarding on", path);
            if !link::forwards(&mut self.route, family).map_err(&failed)? {
                let write = std::fs::write(path, "1");
                write.map_err(|error| failed(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)))?;
            }
        }
        Ok(())
    }

    /// Changes nothing.
    pub(super) fn audit(&mut self) -> Result<Vec<Finding>, FurnishError> {
        let mut findings = Vec::new();
        self.audit_bridges(&mut findings)?;
        self.audit_ports(&mut findings)?;
        self.audit_rules(&mut findings)?;
        for (family, name, _) in self.host.families() {
            if !link::forwards(&mut self.route, family).map_err(FurnishError::failing("asking for forwarding", name))? {
                findings.push(Finding::NoForwarding { family: name.into() });
            }
        }
        Ok(findings)
    }

    fn audit_bridges(&mut self, findings: &mut Vec<Finding>) -> Result<(), FurnishError> {
        let mark = self.host.names.mark();
        let addresses = link::addresses(&mut self.route).map_err(FurnishError::failing("listing addresses", "bridges"))?;
        for network in self.host.networks.clone() {
            let own = matches!(network.bridge, Bridge::Own { .. });
            for segment in network.segments() {
                let name = segment.bridge.clone();
                let link = match self.find(&name)? {
                    None => Err(Finding::NoBridge(name)),
                    Some(link) if own && !is_ours(&link, &mark) => Err(Finding::Foreign(name)),
                    Some(link) if link.kind != "bridge" => Err(Finding::NoBridge(name)),
                    Some(link) => Ok(link),
                };
                let link = match link {
                    Ok(link) => link,
                    Err(finding) => {
                        findings.push(finding);
                        continue;
                    }
                };
                if !link.is_up || own && link.mtu != network.mtu {
                    findings.push(Finding::BridgeChanged(link.name.clone()));
                }
                let gateways = [Some((segment.ipv4, segment.gateway4)), segment.ipv6].into_iter().flatten();
                for (subnet, address) in gateways.filter(|(subnet, gateway)| !addresses.contains(&(link.index, *gateway, subnet.prefix())))
                {
                    debug_assert!(subnet.contains(address), "a gateway is in its subnet");
                    findings.push(Finding::NoGateway { bridge: link.name.clone(), address });
                }
            }
        }
        Ok(())
    }

    fn audit_ports(&mut self, findings: &mut Vec<Finding>) -> Result<(), FurnishError> {
        for (end, found) in self.ports_found()? {
            match (found, self.ports.get(&end).cloned()) {
                (None, _) => findings.push(Finding::PortGone(end)),
                (Some(_), None) => findings.push(Finding::Stray(end)),
                (Some(link), Some(port)) => {
                    let master = self.find(&port.bridge)?.map(|bridge| bridge.index);
                    if master.is_none() || !is_port(&link, master, port.is_isolated) {
                        findings.push(Finding::PortChanged(end));
                    }
                }
            }
        }
        Ok(())
    }

    /// All links of slots that are there, or should be.
    fn ports_found(&mut self) -> Result<Vec<(HostEnd, Option<Link>)>, FurnishError> {
        let names = self.host.names.clone();
        let links = link::list(&mut self.route, |link| names.slot_of(&link.name).is_some());
        let links = links.map_err(FurnishError::failing("listing links", "slots"))?;
        let mut found: Vec<_> = links.into_iter().filter_map(|link| Some((names.slot_of(&link.name)?.0, Some(link)))).collect();
        let there: std::collections::BTreeSet<HostEnd> = found.iter().map(|(end, _)| end.clone()).collect();
        found.extend(self.ports.keys().filter(|end| !there.contains(*end)).map(|end| (end.clone(), None)));
        Ok(found)
    }

    /// Links of slots that are there, whoever made them, each with the address that its slot has.
    pub(super) fn links(&mut self) -> Result<Vec<(HostEnd, Option<IpAddr>)>, FurnishError> {
        let names = self.host.names.clone();
        let found = self.ports_found()?.into_iter();
        Ok(found.filter_map(|(end, link)| Some((end, names.address_in(&link?.alias)))).collect())
    }

    fn audit_rules(&mut self, findings: &mut Vec<Finding>) -> Result<(), FurnishError> {
        let names = self.host.names.clone();
        let failed = FurnishError::failing("reading the firewall", "nftables");
        let chains = nft::chains(&mut self.nft).map_err(&failed)?;
        if !nft::is_whole(&mut self.nft, &names, &rules(&self.host.networks), &chains).map_err(&failed)? {
            findings.push(Finding::RulesChanged(names.table()));
        }
        let bridges = self.host.own_bridges();
        for chain in &chains {
            let docker_user = chains.iter().any(|other| other.family == chain.family && other.is_docker_user());
            let family = family_name(chain.family);
            if chain.is_docker_user() && nft::let_through(&mut self.nft, &names, chain.family).map_err(&failed)?.len() != 2 * bridges.len()
            {
                findings.push(Finding::NotLetThrough { family: family.into() });
            }
            if chain.drops_what_is_forwarded() && !docker_user && !bridges.is_empty() {
                findings.push(Finding::ForwardDropped { family: family.into(), table: chain.table.clone(), chain: chain.name.clone() });
            }
        }
        Ok(())
    }

    /// Takes away all that is ours by name, links of slots included. Goes on after a failure, and tells all of them.
    pub(super) fn tear_down(&mut self) -> Vec<FurnishError> {
        let names = self.host.names.clone();
        let mut failures = Vec::new();
        match self.ports_found() {
            Ok(found) => {
                let ends: Vec<HostEnd> = found.into_iter().map(|(end, _)| end).collect();
                for ends in ends.chunks(STRIPPED_TOGETHER) {
                    failures.extend(self.strip(ends).into_iter().filter_map(Result::err));
                }
            }
            Err(error) => failures.push(error),
        }
        failures.extend(self.remove_bridges(&names.mark()).err());
        let refused = |refusal: Refusal| FurnishError::refused(refusal, &names.table());
        let failed = FurnishError::failing("reading the firewall", "nftables");
        failures.extend(nft::remove(&mut self.nft, &names).map_err(refused).err());
        match nft::chains(&mut self.nft).map_err(&failed) {
            Ok(chains) => {
                for family in chains.iter().filter(|chain| chain.is_docker_user()).map(|chain| chain.family) {
                    let removed = nft::let_through(&mut self.nft, &names, family)
                        .map_err(&failed)
                        .and_then(|there| nft::replace_let_through(&mut self.nft, &names, family, &there, &[]).map_err(refused));
                    failures.extend(removed.err());
                }
            }
            Err(error) => failures.push(error),
        }
        failures
    }

    /// Also those that are no longer configured.
    fn remove_bridges(&mut self, mark: &str) -> Result<(), FurnishError> {
        let bridges = link::list(&mut self.route, |link| is_ours(link, mark)).map_err(FurnishError::failing("listing links", "bridges"))?;
        let mut batch = Batch::default();
        for bridge in &bridges {
            link::delete(&mut batch, &bridge.name);
        }
        self.all_of(&mut batch, "bridges")
    }

    fn all_of(&mut self, batch: &mut Batch, subject: &str) -> Result<(), FurnishError> {
        self.transact(batch, subject)?.first().map_or(Ok(()), |refusal| Err(FurnishError::refused(*refusal, subject)))
    }
}

impl Host {
    fn own_bridges(&self) -> Vec<String> {
        let own = self.networks.iter().filter(|network| matches!(network.bridge, Bridge::Own { .. }));
        own.flat_map(|network| network.segments().into_iter().map(|segment| segment.bridge)).collect()
    }

    /// With their names, and where they are switched on.
    fn families(&self) -> Vec<(u8, &'static str, &'static str)> {
        let mut families = vec![(INET, "IPv4", "/proc/sys/net/ipv4/ip_forward")];
        if self.networks.iter().any(|network| network.ipv6.is_some()) {
            families.push((INET6, "IPv6", "/proc/sys/net/ipv6/conf/all/forwarding"));
        }
        families
    }
}

fn is_ours(link: &Link, mark: &str) -> bool {
    link.kind == "bridge" && link.alias == mark
}

fn is_port(link: &Link, master: Option<u32>, is_isolated: bool) -> bool {
    link.is_up && link.master == master && link.is_isolated == is_isolated
}

fn family_name(family: u8) -> &'static str {
    match family {
        INET => "ip",
        INET6 => "ip6",
        _ => "inet",
    }
}
