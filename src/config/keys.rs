//! The one table of all configuration keys: what each is called, what may be written, where it goes in [`Config`], what it is for.
//!
//! The file, the environment, the flags, `config show`, the reload, the sample file and the reference are all driven by [`KEYS`], so that
//! none of them can know a key that another does not. Defaults are not repeated here: they are what [`Config::default`] holds. This file
//! deliberately does not know where a value was read from, nor rules between keys (`validate` has those).

mod network;
mod table;

pub use network::NETWORK_KEYS;
pub use table::KEYS;

use super::value::{Kind, Value};
use super::{Config, checks};

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// `pool`, …
    pub section: &'static str,
    /// The name within its section.
    pub name: &'static str,
    /// `section.name`.
    pub path: &'static str,
    /// The flag of `nspool serve`, without the dashes.
    pub flag: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// Whether a reload applies a change without a restart.
    pub live: bool,
    /// What it is for, in one or two sentences.
    pub doc: &'static str,
    /// What is written for a default that is decided from something else (`auto`), in TOML.
    pub written_default: Option<&'static str>,
    /// Reads it from a configuration.
    pub get: fn(&Config) -> Value,
    /// Writes a value that [`Key::kind`] has accepted.
    pub set: fn(&mut Config, &Value),
}

impl Key {
    /// `NSPOOL_<SECTION>_<KEY>`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("NSPOOL_{}_{}", self.section, self.name).to_uppercase()
    }

    /// The default, as it is written in TOML.
    #[must_use]
    pub fn default_toml(&self) -> String {
        self.written_default.map_or_else(|| self.kind.to_toml(&(self.get)(&Config::default())), str::to_owned)
    }

    /// Its value in a configuration, as it is written in TOML.
    #[must_use]
    pub fn value_toml(&self, config: &Config) -> String {
        self.kind.to_toml(&(self.get)(config))
    }
}

/// Finds a key by its `section.name`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// What each section is about, in the order of the sample file.
pub const SECTIONS: &[(&str, &str)] = &[
    ("pool", "What is kept ready, and what becomes of it."),
    ("placeholder", "What a buddy runs: the container that keeps a namespace alive."),
    ("images", "Images that callers ask for: `nspool image ensure`, EnsureImage."),
    ("engine", "The container engine."),
    ("cni", "Where CNI plugins and their configurations are, for networks of that kind."),
    ("pacer", "What the engine is spared."),
    ("backoff", "How long a slot that could not be filled, and the gate before the image, wait until they try again."),
    ("api", "The gRPC sockets."),
    ("metrics", "Prometheus metrics over HTTP, at /metrics."),
    ("log", "What is logged, to stderr."),
    ("state", "Where the daemon keeps its own files."),
    ("audit", "What is looked over without being asked."),
    ("stop", "What a stop does with the slots."),
];

/// A section whose header holds a name of the operator's; only in the file.
#[derive(Debug)]
pub struct NamedSection {
    /// `networks`, `registries`.
    pub section: &'static str,
    /// The header in the sample, with an example of a name.
    pub header: &'static str,
    /// What it is about.
    pub doc: &'static str,
    /// The keys.
    pub keys: &'static [NamedKey],
}

/// A key of a [`NamedSection`].
#[derive(Debug)]
pub struct NamedKey {
    /// Its name.
    pub name: &'static str,
    /// An example, in TOML.
    pub example: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What it is for.
    pub doc: &'static str,
}

/// The sections with names in them.
pub const NAMED_SECTIONS: &[NamedSection] = &[
    NamedSection {
        section: "networks",
        header: "networks.fast",
        doc: "Who furnishes one of the networks in pool.networks. Without such a table it is the engine, which must have a network of that \
              name. With kind = \"managed\" it is nspool: it makes a bridge and gives each slot its link, addresses and routes, so that a slot \
              can get a new namespace under the same buddy after each use (reuse = \"fresh\"). With kind = \"cni\" CNI plugins do (see cni). \
              All other keys are for managed networks only, and are shown with their defaults. With existing = true the slots go on a bridge of somebody else's: that needs bridge, \
              subnet, gateway, and as addresses a part of the subnet that its owner gives to nobody (docker network create --subnet \
              10.89.0.0/16 --ip-range 10.89.0.0/17 leaves 10.89.128.0/17). With engine_network nspool has Docker make \
              such a network. All of it changes with a restart only.",
        keys: NETWORK_KEYS,
    },
    NamedSection {
        section: "registries",
        header: "registries.\"127.0.0.1:5000\"",
        doc: "Credentials for pulling images from that registry: the placeholder, and those that callers ask for without credentials of their own. They go before those of the Docker config file.",
        keys: &[
            NamedKey { name: "username", example: "\"nspool\"", kind: Kind::Text(checks::ACCOUNT), doc: "The account." },
            NamedKey {
                name: "password_file",
                example: "\"/etc/nspool/registry-password\"",
                kind: Kind::Text(checks::FILE),
                doc: "The password is its first line. Read at start. Only its owner should be able to read it.",
            },
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_is_there_once() {
        assert_eq!(KEYS.iter().map(|key| key.path).collect::<BTreeSet<_>>().len(), KEYS.len());
        assert_eq!(KEYS.iter().map(|key| key.flag).collect::<BTreeSet<_>>().len(), KEYS.len());
        assert_eq!(KEYS.iter().map(Key::env).collect::<BTreeSet<_>>().len(), KEYS.len());
        assert!(KEYS.iter().all(|key| SECTIONS.iter().any(|(section, _)| *section == key.section)));
    }

    /// The default can be written down and read again, through text and through TOML, and lands in its field.
    #[test]
    fn every_default_reads_back() {
        for key in KEYS {
            let default = (key.get)(&Config::default());
            let literal = key.kind.to_toml(&default);
            let parsed = toml::de::DeValue::parse(&literal).unwrap();
            assert_eq!(key.kind.read_toml(parsed.get_ref()).unwrap(), default, "{}", key.path);
            let mut config = Config::default();
            (key.set)(&mut config, &default);
            assert_eq!(config, Config::default(), "{}", key.path);
            assert!(!key.doc.is_empty() && key.doc.ends_with('.'), "{}", key.path);
        }
    }
}
