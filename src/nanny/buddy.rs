//! What one buddy is made of: its names, its labels, and what a use of it hands out.
//!
//! A container is ours only if all labels are there, parse, name this pool, *and* its name is one that we would have given it for these labels.
//! Anything less is somebody else's and is never touched (I3).

use std::path::PathBuf;
use std::sync::Arc;

use super::Buddy;
use crate::engine::{BuddySpec, Container, Flavour, ImageId, Labels, NamespaceKind};
use crate::netns::cni::Own;
use crate::netns::networks::Link;
use crate::pool::state::Afterwards;
use crate::pool::{Address, Namespace};

/// Which pool; a label of every buddy.
pub const LABEL_POOL: &str = "nspool.pool";
/// Which run of the daemon made it.
pub const LABEL_INSTANCE: &str = "nspool.instance";
/// Which slot it was made for.
pub const LABEL_SLOT: &str = "nspool.slot";
/// Its generation.
pub const LABEL_GENERATION: &str = "nspool.generation";
/// The version that made it.
pub const LABEL_VERSION: &str = "nspool.version";
/// The slot that a container says which is in none: it keeps the placeholder image ([`super::pin`]).
pub const PIN_SLOT: u32 = u32::MAX;
/// On a function's container: which namespace it was started for.
pub const LABEL_NAMESPACE_ID: &str = "nspool.namespace_id";

/// What all buddies of a daemon have in common.
#[derive(Clone, Debug)]
pub struct Breed {
    /// The pool's name.
    pub pool: String,
    /// This run of the daemon.
    pub instance: String,
    /// By index.
    pub networks: Vec<Wiring>,
    /// Which namespaces joiners may share.
    pub namespaces: Vec<NamespaceKind>,
    /// Entrypoint and arguments; empty: the image's own.
    pub command: Vec<String>,
    /// `uid:gid`.
    pub user: String,
    /// Bytes.
    pub memory: i64,
    /// Tasks.
    pub pids: i64,
    /// The placeholder may have children of its own (one that we do not know): they are not taken for joiners.
    pub may_fork: bool,
    /// Without a container engine: a buddy is no process, and all its namespaces can be renewed.
    pub native: bool,
    /// Below which its namespaces are mounted; `None`: nowhere.
    pub folders: Option<PathBuf>,
}

/// A network, as buddies are made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// In the configuration; the engine's network too, unless it is furnished.
    pub name: String,
    /// nspool furnishes it, or has it furnished.
    pub furnished: bool,
    /// … with IPv6 as well.
    pub ipv6: bool,
    /// What becomes of its buddies after a use.
    pub afterwards: Afterwards,
}

impl Wiring {
    /// One of the engine's, for buddies that serve once.
    #[must_use]
    pub fn engines(name: &str) -> Self {
        Self { name: name.to_owned(), furnished: false, ipv6: false, afterwards: Afterwards::Retire }
    }
}

/// The labels of a buddy, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Which run of the daemon made it.
    pub instance: String,
    /// For which slot.
    pub slot: u32,
    /// Its generation.
    pub generation: u64,
}

impl Breed {
    /// The name for one use. A DNS label of 63 characters at most; the random end makes it impossible to guess the next one.
    #[must_use]
    pub fn name(&self, slot: u32, generation: u64, use_number: u64, random: u32) -> String {
        format!("{}{use_number}-{random:08x}", self.stem(slot, generation))
    }

    fn stem(&self, slot: u32, generation: u64) -> String {
        format!("nspool-{}-{slot}-{generation}-", self.pool)
    }

    /// How to create the buddy.
    #[must_use]
    pub fn spec(&self, slot: u32, generation: u64, network: usize, name: &str, image: &ImageId) -> BuddySpec {
        let labels: Labels = [
            (LABEL_POOL, self.pool.clone()),
            (LABEL_INSTANCE, self.instance.clone()),
            (LABEL_SLOT, slot.to_string()),
            (LABEL_GENERATION, generation.to_string()),
            (LABEL_VERSION, env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let wiring = &self.networks[network];
        let spec = BuddySpec {
            name: name.to_owned(),
            image: image.clone(),
            command: self.command.clone(),
            labels,
            ipv6: wiring.ipv6,
            network: if wiring.furnished { "none".to_owned() } else { wiring.name.clone() },
            namespaces: self.namespaces.clone(),
            user: self.user.clone(),
            memory_bytes: self.memory,
            pids: self.pids,
            flavour: Flavour::Fixed,
        };
        match wiring.afterwards {
            // It has no process that would have to obey.
            Afterwards::Renew if self.native => spec,
            Afterwards::Renew => spec.renewable(),
            Afterwards::Retire | Afterwards::Verify | Afterwards::Reuse => spec,
        }
    }

    /// How to create a container that only keeps the image: it is never started.
    #[must_use]
    pub fn pin(&self, random: u32, image: &ImageId) -> BuddySpec {
        let name = self.name(PIN_SLOT, 0, 1, random);
        let (network, user) = ("none".to_owned(), self.user.clone());
        let namespaces = vec![NamespaceKind::Net];
        BuddySpec { network, user, namespaces, ipv6: false, flavour: Flavour::Fixed, ..self.spec(PIN_SLOT, 0, 0, &name, image) }
    }

    /// Whose a container is; `None`: not this pool's, and not to be touched.
    #[must_use]
    pub fn owned(&self, name: &str, labels: &Labels) -> Option<Ownership> {
        let label = |key| labels.get(key).map(String::as_str);
        let (slot, generation) = (label(LABEL_SLOT)?.parse().ok()?, label(LABEL_GENERATION)?.parse().ok()?);
        let instance = label(LABEL_INSTANCE)?.to_owned();
        label(LABEL_VERSION)?;
        let rest = name.strip_prefix(&self.stem(slot, generation))?;
        let (use_number, random) = rest.split_once('-')?;
        let named_by_us = use_number.parse::<u64>().is_ok() && random.len() == 8 && random.bytes().all(|c| c.is_ascii_hexdigit());
        (label(LABEL_POOL)? == self.pool && named_by_us).then_some(Ownership { instance, slot, generation })
    }

    /// What the buddy's present use, by its present name, hands out.
    #[must_use]
    pub(super) fn namespace(&self, network: usize, buddy: &Buddy) -> Namespace {
        let (name, facts) = (&buddy.name, &buddy.facts);
        let folder = self.folders.as_ref().map(|root| root.join(&self.pool).join(name).display().to_string()).unwrap_or_default();
        let network_mode = Namespace::network_mode_of(name, facts.pid, &folder);
        let mut host_config = serde_json::Map::new();
        let keys = [
            (NamespaceKind::Net, "NetworkMode"),
            (NamespaceKind::Ipc, "IpcMode"),
            (NamespaceKind::Pid, "PidMode"),
            (NamespaceKind::Uts, "UTSMode"),
            (NamespaceKind::User, "UsernsMode"),
        ];
        for (kind, key) in keys.into_iter().filter(|(kind, _)| self.namespaces.contains(kind)) {
            let mode = if facts.pid == 0 { format!("ns:{folder}/{}", kind.proc_name()) } else { network_mode.clone() };
            host_config.insert(key.to_owned(), mode.into());
        }
        // With raw sockets a function could forge its neighbours' packets on the bridge.
        host_config.insert("CapDrop".to_owned(), serde_json::json!(["NET_RAW"]));
        let once = self.networks[network].afterwards == Afterwards::Retire;
        if !once && let Some(binds) = read_only(facts) {
            host_config.insert("Binds".to_owned(), binds);
        }
        let merge = serde_json::json!({ "HostConfig": host_config, "Labels": { LABEL_NAMESPACE_ID: name } });
        Namespace {
            namespace_id: name.to_owned(),
            network_mode,
            host_config: merge.to_string(),
            container_id: Arc::clone(&facts.id.0),
            // An id outlives the fence, so it is told only when there will be no other use.
            tell_container_id: once,
            addresses: match &buddy.link {
                Some(link) => link.interfaces().iter().map(address_of).collect(),
                None => facts.addresses.iter().map(|own| Address { address: own.address.clone(), gateway: own.gateway.clone() }).collect(),
            },
            resolv_conf: buddy.link.as_ref().map(Link::resolv_conf).filter(|own| !own.is_empty()).unwrap_or(&buddy.resolv_conf).to_owned(),
            mtu: buddy.link.as_ref().map_or(0, Link::mtu),
            pid: facts.pid,
            started_at: facts.started_at.clone(),
            folder,
        }
    }
}

/// The files that the engine would mount from the buddy, writable, mounted so that a function cannot write what the next one reads. `None`: the engine does
/// not say where they are.
fn read_only(buddy: &Container) -> Option<serde_json::Value> {
    let files = [(&buddy.hosts_path, "hosts"), (&buddy.hostname_path, "hostname"), (&buddy.resolv_conf_path, "resolv.conf")];
    let binds: Vec<String> =
        files.iter().filter(|(path, _)| !path.is_empty()).map(|(path, name)| format!("{path}:/etc/{name}:ro")).collect();
    (!binds.is_empty()).then(|| binds.into())
}

fn address_of(own: &Own) -> Address {
    Address { address: own.to_string(), gateway: own.gateway.map(|gateway| gateway.to_string()).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breed() -> Breed {
        Breed {
            pool: "a-b".into(),
            instance: "i".into(),
            networks: vec![Wiring::engines("bridge")],
            namespaces: vec![NamespaceKind::Net, NamespaceKind::Ipc],
            command: Vec::new(),
            user: "1:1".into(),
            memory: 1,
            pids: 1,
            may_fork: false,
            native: false,
            folders: None,
        }
    }

    #[test]
    fn only_what_we_named_and_labelled_ourselves_is_ours() {
        let breed = breed();
        let name = breed.name(7, 1042, 3, 0xabc);
        assert_eq!(name, "nspool-a-b-7-1042-3-00000abc");
        let spec = breed.spec(7, 1042, 0, &name, &ImageId::from("sha256:1"));
        let ours = Some(Ownership { instance: "i".into(), slot: 7, generation: 1042 });
        assert_eq!(breed.owned(&name, &spec.labels), ours);
        for key in spec.labels.keys() {
            let mut less = spec.labels.clone();
            less.remove(key);
            assert_eq!(breed.owned(&name, &less), None, "without {key}");
        }
        for decoy in
            ["nspool-a-b-7-1042-3", "nspool-a-b-8-1042-3-00000abc", "web", "nspool-a-b-7-1042-3-00000abc-x", "nspool-a-b-7-1042-3-nothexno"]
        {
            assert_eq!(breed.owned(decoy, &spec.labels), None, "{decoy}");
        }
        let other = Breed { pool: "a".into(), ..breed };
        assert_eq!(other.owned(&name, &spec.labels), None);
    }

    /// As 0.1.0 named and labelled it; every later release has to know it.
    #[test]
    fn a_buddy_of_the_first_release_is_ours() {
        let labels = ["pool=a-b", "instance=i", "slot=7", "generation=1042", "version=0.1.0"]
            .map(|label| label.split_once('=').unwrap())
            .map(|(key, value)| (format!("nspool.{key}"), value.to_owned()));
        let ours = Ownership { instance: "i".into(), slot: 7, generation: 1042 };
        assert_eq!(breed().owned("nspool-a-b-7-1042-3-00000abc", &labels.into()), Some(ours));
    }

    #[test]
    fn a_pin_is_ours_and_may_do_nothing() {
        let mut breed = breed();
        breed.networks[0] = Wiring { furnished: true, ipv6: true, afterwards: Afterwards::Renew, name: "own".into() };
        let pin = breed.pin(7, &ImageId::from("sha256:1"));
        let ours = Some(Ownership { instance: "i".into(), slot: PIN_SLOT, generation: 0 });
        assert_eq!(breed.owned(&pin.name, &pin.labels), ours);
        assert_eq!((pin.flavour, pin.network.as_str(), pin.user.as_str()), (Flavour::Fixed, "none", "1:1"));
        assert!(Breed { pool: "p".repeat(20), ..breed }.name(PIN_SLOT, 0, 1, u32::MAX).len() <= 63);
    }

    #[test]
    fn a_name_is_a_dns_label_at_its_longest() {
        let breed = Breed { pool: "p".repeat(20), ..breed() };
        // A year of milliseconds, a million uses, a million slots.
        assert!(breed.name(999_999, 31_536_000_000, 999_999, u32::MAX).len() <= 63);
    }
}
