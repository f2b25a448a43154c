//! The keys of `[networks.NAME]`, as `table` has those of the other sections. The examples are the defaults, but for the kind.

use std::time::Duration;

use super::NamedKey;
use crate::config::checks;
use crate::config::value::Kind;

/// In the order of the sample file.
pub const NETWORK_KEYS: &[NamedKey] = &[
    NamedKey {
        name: "kind",
        example: "\"managed\"",
        kind: Kind::Choice { allowed: &["engine", "managed", "cni"], refused: &[] },
        doc: "Who furnishes it: engine (the default), managed, which is nspool itself, or cni, which are plugins, and only without a container engine.",
    },
    NamedKey {
        name: "config",
        example: "\"\"",
        kind: Kind::Text(checks::CNI_NETWORK),
        doc: "The network's name in the configuration of CNI. With kind = \"cni\" only, which has no other key.",
    },
    NamedKey {
        name: "bridge",
        example: "\"\"",
        kind: Kind::Text(checks::BRIDGE),
        doc: "Where the links of slots go. Made by nspool, and removed with the pool; more than 1023 slots need more of them, which are \
              NAME-1, NAME-2 and so on.",
    },
    NamedKey {
        name: "existing",
        example: "false",
        kind: Kind::Switch,
        doc: "Whether the bridge is somebody else's, mostly Docker's, whose address, forwarding and NAT serve the slots, too.",
    },
    NamedKey {
        name: "engine_network",
        example: "\"\"",
        kind: Kind::Text(checks::ENGINE_NETWORK),
        doc: "A network that the engine makes for it, with that bridge and subnet, whose NAT and firewall then serve the slots; the engine's own containers \
              can be on it, too. It is made when it is not there, and removed with the pool once no container is on it. Docker only.",
    },
    NamedKey {
        name: "subnet",
        example: "\"10.213.0.0/16\"",
        kind: Kind::Text(checks::SUBNET),
        doc: "All addresses on the bridge. Nobody else may have them.",
    },
    NamedKey {
        name: "gateway",
        example: "\"\"",
        kind: Kind::Text(checks::GATEWAY),
        doc: "The bridge's own address, where slots send what is for the outside.",
    },
    NamedKey {
        name: "addresses",
        example: "\"\"",
        kind: Kind::Text(checks::PART),
        doc: "What slots get of the subnet; only with existing = true, or with engine_network, where it is the second half unless it is said, and \
              the engine's containers get the other half.",
    },
    NamedKey { name: "subnet6", example: "\"\"", kind: Kind::Text(checks::SUBNET6), doc: "IPv6 addresses, besides those of IPv4." },
    NamedKey { name: "gateway6", example: "\"\"", kind: Kind::Text(checks::GATEWAY6), doc: "As gateway, of subnet6." },
    NamedKey { name: "addresses6", example: "\"\"", kind: Kind::Text(checks::PART6), doc: "As addresses, of subnet6." },
    NamedKey {
        name: "mtu",
        example: "1500",
        kind: Kind::Number { min: 1280, max: 65_535, zero: None },
        doc: "The longest packet on its links, in bytes: no more than the host's own link to the outside has.",
    },
    NamedKey { name: "isolation", example: "true", kind: Kind::Switch, doc: "Whether slots are kept from each other." },
    NamedKey {
        name: "nat",
        example: "true",
        kind: Kind::Switch,
        doc: "Whether slots reach the outside by the host's addresses; then nobody outside reaches them. Always false with existing = true; with engine_network the engine sees to it.",
    },
    NamedKey {
        name: "forwarding",
        example: "true",
        kind: Kind::Switch,
        doc: "Whether nspool may switch the host's packet forwarding on, without which slots reach nobody but the host. It stays on. One \
              network that says so is enough.",
    },
    NamedKey {
        name: "rest",
        example: "\"10s\"",
        kind: Kind::Duration { min: Duration::ZERO, max: Duration::from_secs(3600) },
        doc: "How long an address rests after a use before another use gets it, so that packets which are still on their way reach nobody.",
    },
];
