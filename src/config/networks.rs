//! Networks that nspool furnishes itself: from `[networks.NAME]` to [`ManagedNetwork`], and which policy each network of the pool has.
//!
//! What the kernel and the bridge need of a network is judged by [`crate::netns::managed::network`]; here are the rules between the keys,
//! and where a mistake is. This file deliberately does not look at the machine: whether a bridge exists is found out by who uses it.
//!
//! With `engine_network` the subnet is cut in two: slots have one part (`addresses`), the engine's containers the largest that leaves it out, which is
//! the other half of the subnet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::keys::NETWORK_KEYS;
use super::raw::{Draft, Origin};
use super::value::Value;
use super::{Config, EngineChoice, PlaceholderImage, Reuse};
use crate::engine::{Labels, NamespaceKind, NetworkRange, NetworkSpec};
use crate::netns::managed::host::Forwarding;
use crate::netns::managed::network::{clashes, is_link_name};
use crate::netns::managed::{Bridge, ManagedNetwork, Range, Subnet};

const SUBNET: &str = "10.213.0.0/16";
const MTU: u32 = 1500;
const REST: Duration = Duration::from_secs(10);

/// `[networks.NAME]` with `kind = "managed"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Managed {
    /// Without mistakes. It has the name that is in `pool.networks`, and as many slots as `pool.max` was at the start.
    pub network: ManagedNetwork,
    /// How long an address rests before another use gets it.
    pub rest: Duration,
    /// Whether the host's forwarding may be switched on for it.
    pub forwarding: bool,
    /// The engine makes its bridge; `None`: nspool does, or it is there.
    pub engine: Option<EngineNetwork>,
}

/// `[networks.NAME]` with `kind = "cni"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniNetwork {
    /// In `pool.networks`.
    pub name: String,
    /// In the configuration of CNI.
    pub config: String,
}

impl CniNetwork {
    /// A key's place, as [`Managed::path`].
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        path(&self.name, key)
    }

    /// Both its keys, as [`Managed::written`].
    #[must_use]
    pub fn written(&self) -> Vec<(&'static str, String)> {
        vec![("kind", "\"cni\"".to_owned()), ("config", format!("{:?}", self.config))]
    }
}

/// A network that the engine makes for a managed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineNetwork {
    /// As the engine's clients call it.
    pub name: String,
    /// Whether the engine hides slots and containers behind the host's addresses.
    pub nat: bool,
}

impl Managed {
    /// A key's place: `networks."fast".mtu`.
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        path(&self.network.name, key)
    }

    /// All its keys, each with the value that is in force, as it is written in TOML.
    #[must_use]
    pub fn written(&self) -> Vec<(&'static str, String)> {
        NETWORK_KEYS.iter().map(|key| (key.name, key.kind.to_toml(&self.value(key.name)))).collect()
    }

    /// What the engine is asked for, without labels. `None`: nothing.
    #[must_use]
    pub fn engine_spec(&self) -> Option<NetworkSpec> {
        let (network, engine) = (&self.network, self.engine.as_ref()?);
        let range = |range: Range| NetworkRange {
            subnet: range.subnet.to_string(),
            range: range.subnet.half_without(range.part).map(|half| half.to_string()).unwrap_or_default(),
            gateway: range.gateway.to_string(),
        };
        Some(NetworkSpec {
            name: engine.name.clone(),
            bridge: network.bridge.name().to_owned(),
            ranges: [Some(network.ipv4), network.ipv6].into_iter().flatten().map(range).collect(),
            mtu: network.mtu,
            masquerade: engine.nat,
            labels: Labels::new(),
        })
    }

    fn value(&self, key: &str) -> Value {
        let (network, engine) = (&self.network, self.engine.as_ref());
        let is_anothers = matches!(network.bridge, Bridge::Existing { .. });
        let text = |text: Option<String>| Value::Text(text.unwrap_or_default());
        let part = |range: Range| is_anothers.then(|| range.part.to_string());
        match key {
            "kind" => text(Some("managed".to_owned())),
            "bridge" => text(Some(network.bridge.name().to_owned())),
            "existing" => Value::Switch(is_anothers && engine.is_none()),
            "engine_network" => text(engine.map(|engine| engine.name.clone())),
            "subnet" => text(Some(network.ipv4.subnet.to_string())),
            "gateway" => text(Some(network.ipv4.gateway.to_string())),
            "addresses" => text(part(network.ipv4)),
            "subnet6" => text(network.ipv6.map(|range| range.subnet.to_string())),
            "gateway6" => text(network.ipv6.map(|range| range.gateway.to_string())),
            "addresses6" => text(network.ipv6.and_then(part)),
            "mtu" => Value::Number(u64::from(network.mtu)),
            "isolation" => Value::Switch(network.isolation),
            "nat" => Value::Switch(engine.map_or(network.nat, |engine| engine.nat)),
            "forwarding" => Value::Switch(self.forwarding),
            "rest" => Value::Duration(self.rest),
            // Of another kind of network.
            "config" => text(None),
            _ => unreachable!("not a key of a network: {key}"),
        }
    }
}

impl Config {
    /// A network of the pool, by its place in [`Pool::networks`](super::Pool::networks); `None`: it is the engine's.
    #[must_use]
    pub fn managed_of(&self, network: usize) -> Option<&Managed> {
        let name = self.pool.networks.get(network)?;
        self.managed.iter().find(|managed| managed.network.name == *name)
    }

    /// As above, of those that plugins furnish.
    #[must_use]
    pub fn cni_of(&self, network: usize) -> Option<&CniNetwork> {
        let name = self.pool.networks.get(network)?;
        self.cni_networks.iter().find(|cni| cni.name == *name)
    }

    /// What becomes of a buddy on that network after a use; `auto` is decided here.
    #[must_use]
    pub fn reuse_of(&self, network: usize) -> Reuse {
        let auto = if self.can_renew(network) { Reuse::Fresh } else { Reuse::Once };
        self.pool.reuse.unwrap_or(auto)
    }

    /// A new network link is ours to give on managed networks only, shared ipc or pid would outlive the renewal, and only the embedded init
    /// knows how to leave its namespace. Without a container engine all namespaces are ours, and new ones are all of them, but for pid: a new one is a new
    /// first process, which is a new buddy.
    fn can_renew(&self, network: usize) -> bool {
        if self.engine.kind == EngineChoice::Native {
            return !self.pool.namespaces.contains(&NamespaceKind::Pid);
        }
        self.pool.namespaces == [NamespaceKind::Net]
            && self.placeholder.image == PlaceholderImage::Embedded
            && self.managed_of(network).is_some()
    }

    /// Of the host, which has one for all networks.
    #[must_use]
    pub fn forwarding(&self) -> Forwarding {
        if self.managed.iter().any(|managed| managed.forwarding) { Forwarding::SwitchedOn } else { Forwarding::Told }
    }
}

/// A `[networks.NAME]` section as it was read.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) origin: Origin,
    /// Those that were accepted.
    pub(super) values: BTreeMap<&'static str, (Value, Origin)>,
    /// Whether those are all.
    pub(super) is_whole: bool,
}

impl Section {
    /// Of each key, by its [`path`].
    pub(super) fn origins(&self) -> impl Iterator<Item = (String, Origin)> {
        self.values.iter().map(|(key, (_, origin))| (path(&self.name, key), origin.clone()))
    }

    /// Neither this nor managed when the kind could not be read.
    pub(super) fn is_engines(&self) -> bool {
        self.values.get("kind").map_or(self.is_whole, |(kind, _)| kind.text() == "engine")
    }

    fn is_cnis(&self) -> bool {
        self.values.get("kind").is_some_and(|(kind, _)| kind.text() == "cni")
    }

    fn path(&self) -> String {
        format!("networks.{:?}", self.name)
    }

    /// An empty one is as none.
    fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|(value, _)| value.text()).filter(|text| !text.is_empty())
    }

    fn is_on(&self, key: &str, default: bool) -> bool {
        self.values.get(key).map_or(default, |(value, _)| value.is_on())
    }

    /// On a bridge that the engine makes, slots get the second half unless it is said: the gateway, by default, is in the first.
    fn range(&self, [subnet, gateway, part]: [&str; 3], default: Option<&str>) -> Option<Range> {
        let whole = Range::whole(self.text(subnet).or(default)?.parse().ok()?);
        let parsed = |key| self.text(key).and_then(|text| text.parse::<IpAddr>().ok());
        let part = self.text(part).and_then(|text| text.parse::<Subnet>().ok());
        let half = self.text("engine_network").and_then(|_| whole.subnet.part(whole.subnet.prefix() + 1, 1));
        Some(Range { gateway: parsed(gateway).unwrap_or(whole.gateway), part: part.or(half).unwrap_or(whole.part), ..whole })
    }

    /// What is written, and does not fit the rest.
    fn check_keys(&self, draft: &mut Draft) {
        let is_existing = self.is_on("existing", false);
        let is_anothers = is_existing || self.text("engine_network").is_some();
        let has_ipv6 = self.text("subnet6").is_some();
        let with = |only: &str, good: bool, keys: &[&'static str], draft: &mut Draft| {
            for key in keys.iter().filter(|key| !good && self.text(key).is_some()) {
                let (origin, read) = (self.values[key].1.clone(), format!("read {:?}", self.text(key).unwrap_or_default()));
                draft.mistake(origin, &path(&self.name, key), read, format!("\"\" without {only}"), "");
            }
        };
        with("kind = \"cni\"", false, &["config"], draft);
        with("existing = true or engine_network", is_anothers, &["addresses"], draft);
        with("subnet6", has_ipv6, &["gateway6"], draft);
        with("subnet6, and existing = true or engine_network", is_anothers && has_ipv6, &["addresses6"], draft);
        if let Some((value, origin)) = self.values.get("engine_network").filter(|(value, _)| is_existing && !value.text().is_empty()) {
            let read = format!("read {:?}", value.text());
            draft.mistake(origin.clone(), &path(&self.name, "engine_network"), read, "\"\" with existing = true", "");
        }
        let wanted = ["bridge", "subnet", "gateway", "addresses"]
            .iter()
            .chain(has_ipv6.then_some(&["gateway6", "addresses6"]).into_iter().flatten());
        for key in wanted.filter(|key| is_existing && self.text(key).is_none()) {
            let hint = "nothing is assumed about a bridge of somebody else's";
            draft.mistake(self.origin.clone(), &path(&self.name, key), "missing", "a value, with existing = true", hint);
        }
    }

    /// All keys are for other networks, but the kind.
    fn check_engines(&self, draft: &mut Draft) {
        for (key, (_, origin)) in self.values.iter().filter(|(key, _)| **key != "kind") {
            let hint = "write kind = \"managed\" for a network that nspool furnishes itself";
            draft.mistake(origin.clone(), &path(&self.name, key), "written for a network of the engine", "kind only", hint);
        }
    }

    /// Plugins furnish namespaces that nspool makes, and know the rest by their own configuration.
    fn cni(&self, draft: &mut Draft, config: &Config) -> CniNetwork {
        for (key, (_, origin)) in self.values.iter().filter(|(key, _)| !["kind", "config"].contains(key)) {
            let hint = "the rest is in the configuration of CNI, in cni.conf_dir";
            draft.mistake(origin.clone(), &path(&self.name, key), "written for a network of CNI plugins", "kind and config only", hint);
        }
        if config.engine.kind != EngineChoice::Native {
            let origin = self.values.get("kind").map_or_else(|| self.origin.clone(), |(_, origin)| origin.clone());
            let hint = "a container engine's networks are its own business: CNI plugins furnish namespaces that nspool makes itself";
            draft.mistake(origin, &path(&self.name, "kind"), "read \"cni\"", "only with engine.kind = \"native\"", hint);
        }
        CniNetwork { name: self.name.clone(), config: self.text("config").unwrap_or(&self.name).to_owned() }
    }

    fn bridge(&self, draft: &mut Draft) -> Option<Bridge> {
        let name = self.text("bridge").map_or_else(|| format!("ns-{}", self.name), str::to_owned);
        if self.is_on("existing", false) {
            return Some(Bridge::Existing { name });
        }
        let is_engines = self.text("engine_network").is_some();
        if !is_link_name(&name) {
            let hint = format!("{name:?}, which it would be, is no name for a link");
            draft.mistake(self.origin.clone(), &path(&self.name, "bridge"), "missing", "1 to 15 characters of a-z A-Z 0-9 _ . -", hint);
            return None;
        }
        Some(if is_engines { Bridge::Existing { name } } else { Bridge::Own { name } })
    }

    /// Nothing, when its keys do not say what it is. A network with mistakes may have some together with others, too.
    fn managed(&self, draft: &mut Draft, slots: u32) -> Option<Managed> {
        let before = draft.mistakes.len();
        self.check_keys(draft);
        let bridge = self.bridge(draft);
        if draft.mistakes.len() > before {
            return None;
        }
        let nat = self.is_on("nat", !self.is_on("existing", false));
        let engine = self.text("engine_network").map(|name| EngineNetwork { name: name.to_owned(), nat });
        let network = ManagedNetwork {
            name: self.name.clone(),
            bridge: bridge?,
            slots,
            ipv4: self.range(["subnet", "gateway", "addresses"], Some(SUBNET))?,
            ipv6: self.range(["subnet6", "gateway6", "addresses6"], None),
            mtu: self.values.get("mtu").map_or(MTU, |(mtu, _)| mtu.small()),
            isolation: self.is_on("isolation", true),
            nat: engine.is_none() && nat,
        };
        for mistake in network.mistakes() {
            // The key says which network it is.
            let what = mistake.strip_prefix(&format!("network {}: ", self.name)).unwrap_or(&mistake);
            draft.mistake(self.origin.clone(), &self.path(), what, "", "");
        }
        if engine.is_some() {
            for range in [Some(network.ipv4), network.ipv6].into_iter().flatten().filter(|range| range.part == range.subnet) {
                let what = format!("all of {} is for slots", range.subnet);
                draft.mistake(
                    self.origin.clone(),
                    &self.path(),
                    what,
                    "a part of it at most",
                    "the engine needs another for its containers",
                );
            }
        }
        let rest = self.values.get("rest").map_or(REST, |(rest, _)| rest.duration());
        Some(Managed { network, rest, forwarding: self.is_on("forwarding", true), engine })
    }
}

/// What two networks cannot both have, the kernel's side aside: the engine's own network, its bridge, and all of its addresses.
fn engine_clashes(one: &Managed, other: &Managed) -> Vec<String> {
    let (a, b) = (&one.network, &other.network);
    let mut clashes = Vec::new();
    if let (Some(ours), Some(others)) = (&one.engine, &other.engine)
        && ours.name == others.name
    {
        clashes.push(format!("networks {} and {}: both have the engine_network {}", a.name, b.name, ours.name));
    }
    if one.engine.is_none() && other.engine.is_none() {
        return clashes;
    }
    if a.bridge == b.bridge {
        clashes.push(format!("networks {} and {}: both have the bridge {}", a.name, b.name, a.bridge.name()));
    }
    let ranges = |network: &ManagedNetwork| [Some(network.ipv4), network.ipv6].into_iter().flatten().collect::<Vec<_>>();
    for (x, y) in ranges(a).iter().flat_map(|x| ranges(b).into_iter().map(move |y| (*x, y))) {
        // Those whose parts overlap are told by all networks' rule.
        if x.subnet.overlaps(y.subnet) && !x.part.overlaps(y.part) {
            clashes.push(format!("networks {} and {}: {} and {} overlap", a.name, b.name, x.subnet, y.subnet));
        }
    }
    clashes
}

/// Makes the managed networks, and those of plugins; mistakes go into the draft.
pub(super) fn build(draft: &mut Draft, config: &Config) -> (Vec<Managed>, Vec<CniNetwork>) {
    let pool = &config.pool;
    let mut sections = std::mem::take(&mut draft.networks);
    sections.extend(natives_default(draft, config, &sections));
    let (mut built, mut plugged): (Vec<(Managed, &Section)>, Vec<CniNetwork>) = Default::default();
    for section in &sections {
        if section.is_engines() {
            section.check_engines(draft);
        } else if section.is_cnis() {
            plugged.push(section.cni(draft, config));
        } else if section.is_whole
            && let Some(managed) = section.managed(draft, pool.max)
        {
            if managed.engine.is_some() && config.engine.kind == EngineChoice::Podman {
                let (origin, path) = (section.values["engine_network"].1.clone(), managed.path("engine_network"));
                let hint =
                    "podman gives a network its bridge only while a container of its own is on it: nspool makes a bridge of its own there";
                draft.mistake(origin, &path, "written with engine.kind = \"podman\"", "\"\" with podman", hint);
            }
            built.push((managed, section));
        }
    }
    for (at, (one, _)) in built.iter().enumerate() {
        for (other, section) in &built[at + 1..] {
            for clash in clashes(&one.network, &other.network).into_iter().chain(engine_clashes(one, other)) {
                draft.mistake(section.origin.clone(), &section.path(), clash, "", "");
            }
        }
    }
    let mut managed: Vec<Managed> = built.into_iter().map(|(managed, _)| managed).collect();
    let place = |network: &String| pool.networks.iter().position(|name| name == network);
    managed.sort_by_key(|managed| place(&managed.network.name));
    plugged.sort_by_key(|plugged| place(&plugged.name));
    draft.networks = sections;
    (managed, plugged)
}

/// Without a container engine there is no `bridge` of its; so that slots reach the outside all the same, nspool makes one, unless it is said which networks
/// there are.
fn natives_default(draft: &Draft, config: &Config, sections: &[Section]) -> Option<Section> {
    let is_said = draft.settings.contains_key("pool.networks") || !sections.is_empty();
    let values = BTreeMap::from([("kind", (Value::Text("managed".to_owned()), Origin::Default))]);
    let name = config.pool.networks.first().cloned()?;
    (config.engine.kind == EngineChoice::Native && !is_said).then_some(Section { name, origin: Origin::Default, values, is_whole: true })
}

/// A key's place.
pub(super) fn path(name: &str, key: &str) -> String {
    format!("networks.{name:?}.{key}")
}

#[cfg(test)]
mod tests;
