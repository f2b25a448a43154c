//! What may be written for the texts of the configuration: names, endpoints, paths.
//!
//! Each check says what is allowed in words that fit an error message, and gives a reason where the refusal is a decision of ours rather
//! than a typing mistake. Nothing here looks at the machine: whether a network or a directory exists is found out by who uses it.

use std::net::{IpAddr, SocketAddr};

use super::value::Check;
use crate::netns::folders::Ids;
use crate::netns::managed::Subnet;
use crate::netns::managed::network::is_link_name;

/// `sun_path` holds 108 bytes with its end mark.
const SOCKET_PATH_MAX: usize = 107;

/// Networks of the engine, and ours.
pub(super) const NETWORK: Check = Check {
    allowed: "names of networks: 1 to 128 characters of a-z A-Z 0-9 _ . -, beginning with a letter or digit",
    test: |text| {
        if text == "host" {
            return Err(Some("with the host's network there is no namespace of its own to hand out".into()));
        }
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        verdict(first && rest && text.len() <= 128)
    },
};

/// A managed network's bridge.
pub(super) const BRIDGE: Check = Check {
    allowed: "\"\" (\"ns-\" and the network's name), or a link's name: 1 to 15 characters of a-z A-Z 0-9 _ . -",
    test: |text| verdict(text.is_empty() || is_link_name(text)),
};

/// Of the engine, made for a managed network.
pub(super) const ENGINE_NETWORK: Check = Check {
    allowed: "\"\" (none), or a new network's name: 2 to 64 characters of a-z A-Z 0-9 _ . -, beginning with a letter or digit",
    test: |text| {
        if ["bridge", "host", "none", "default", "nat", "container", "ingress"].contains(&text) {
            return Err(Some("that is one of the engine's own".into()));
        }
        let first = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        verdict(text.is_empty() || first && rest && (2..=64).contains(&text.len()))
    },
};

/// In the configuration of CNI.
pub(super) const CNI_NETWORK: Check = Check {
    allowed: "\"\" (the network's own name), or 1 to 128 characters of a-z A-Z 0-9 _ . -, beginning with a letter or digit",
    test: |text| verdict(text.is_empty() || (NETWORK.test)(text).is_ok()),
};

/// All addresses of a managed network.
pub(super) const SUBNET: Check =
    Check { allowed: "an IPv4 subnet from a /16 to a /30, like \"10.213.0.0/16\"", test: |text| is_subnet(text, IpAddr::is_ipv4) };

/// As above.
pub(super) const SUBNET6: Check = Check {
    allowed: "\"\" (none), or an IPv6 subnet like \"fd00:213::/64\"",
    test: |text| if text.is_empty() { Ok(()) } else { is_subnet(text, IpAddr::is_ipv6) },
};

/// Those that slots get.
pub(super) const PART: Check = Check {
    allowed: "\"\" (all of the subnet), or a part of it like \"172.17.128.0/17\"",
    test: |text| if text.is_empty() { Ok(()) } else { is_subnet(text, IpAddr::is_ipv4) },
};

/// As above.
pub(super) const PART6: Check = Check {
    allowed: "\"\" (all of subnet6), or a part of it like \"fd00:213:0:0:8000::/65\"",
    test: |text| if text.is_empty() { Ok(()) } else { is_subnet(text, IpAddr::is_ipv6) },
};

/// The bridge's address.
pub(super) const GATEWAY: Check = Check {
    allowed: "\"\" (the first address of the subnet), or an IPv4 address like \"10.213.0.1\"",
    test: |text| verdict(text.is_empty() || text.parse().is_ok_and(|address: IpAddr| address.is_ipv4())),
};

/// As above.
pub(super) const GATEWAY6: Check = Check {
    allowed: "\"\" (the first address of subnet6), or an IPv6 address like \"fd00:213::1\"",
    test: |text| verdict(text.is_empty() || text.parse().is_ok_and(|address: IpAddr| address.is_ipv6())),
};

/// The pool's name is part of every buddy's name, which is a DNS label.
pub(super) const POOL_NAME: Check = Check {
    allowed: "1 to 20 characters of a-z, 0-9 and -, neither beginning nor ending with -",
    test: |text| {
        let good = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        verdict((1..=20).contains(&text.len()) && good && !text.starts_with('-') && !text.ends_with('-'))
    },
};

/// Namespaces that a buddy shares.
pub(super) const NAMESPACE: Check = Check {
    allowed: "\"net\", \"ipc\", \"pid\", \"uts\" and \"user\"; \"net\" must be among them",
    test: |text| verdict(["net", "ipc", "pid", "uts", "user"].contains(&text)),
};

/// The placeholder image.
pub(super) const IMAGE: Check = Check {
    allowed: "\"embedded\", or an image reference like \"busybox:1.36\" without spaces, at most 255 characters",
    test: |text| verdict(!text.is_empty() && text.len() <= 255 && !text.contains(|c: char| c.is_whitespace() || c.is_control())),
};

/// A word of a command.
pub(super) const WORD: Check = Check {
    allowed: "a list of words, or one string that is split into words as a shell would",
    test: |text| if text.len() <= 4096 && !text.contains('\0') { Ok(()) } else { Err(Some("a word has at most 4096 bytes".into())) },
};

/// `uid:gid`.
pub(super) const USER: Check = Check {
    allowed: "two numbers \"uid:gid\", neither of them 0",
    test: |text| {
        let numbers = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse::<u32>().ok()?, gid.parse::<u32>().ok()?)));
        match numbers {
            Some((0, _) | (_, 0)) => Err(Some("a buddy needs no root, and a function that is root must not be able to signal it".into())),
            Some(_) => Ok(()),
            None => Err(None),
        }
    },
};

/// `first:count`.
pub(super) const USER_IDS: Check = Check {
    allowed: "two numbers \"first:count\", the first id above 0, up to 4294967294",
    test: |text| user_ids(text).map(drop).ok_or(None),
};

/// What such a text says.
pub(super) fn user_ids(text: &str) -> Option<Ids> {
    let (first, count) = text.split_once(':')?;
    let ids = Ids { first: first.parse().ok()?, count: count.parse().ok()? };
    // The last one of all means that there is none.
    let fits = ids.first.checked_add(ids.count).is_some_and(|end| end < u32::MAX);
    (ids.first > 0 && ids.count > 0 && fits).then_some(ids)
}

/// Where the engine listens.
pub(super) const ENGINE_ENDPOINT: Check = Check {
    allowed: "\"\" (find it), or a local Unix socket like \"unix:///var/run/docker.sock\"",
    test: |text| match text.strip_prefix("unix://") {
        _ if text.is_empty() => Ok(()),
        Some(path) => verdict(path.starts_with('/') && path.len() <= SOCKET_PATH_MAX),
        None if text.contains("://") => {
            Err(Some("nspool must see the engine's processes and namespaces, so only an engine on this host will do".into()))
        }
        None => Err(None),
    },
};

/// Where the API listens.
pub(super) const LISTEN: Check = Check {
    allowed: "\"unix:/absolute/path\", with a path of at most 107 bytes",
    test: |text| match text.strip_prefix("unix:") {
        Some(path) => verdict(path.starts_with('/') && path.len() <= SOCKET_PATH_MAX && !path.ends_with('/')),
        None if text.contains(':') => Err(Some("over TCP a peer has no identity, and leases belong to a uid".into())),
        None => Err(None),
    },
};

/// Where the metrics are served.
pub(super) const METRICS_LISTEN: Check = Check {
    allowed: "\"\" (no listener), or a loopback address with its port, like \"127.0.0.1:9464\" or \"[::1]:9464\"",
    test: |text| match text.parse::<SocketAddr>() {
        _ if text.is_empty() => Ok(()),
        Ok(address) if address.ip().is_loopback() => Ok(()),
        Ok(_) => Err(Some("the metrics have no access control, so they stay on this host".into())),
        Err(_) => Err(None),
    },
};

/// The group of the API's sockets.
pub(super) const GROUP: Check = Check {
    allowed: "\"\" (\"nspool\", if there is such a group), or a group's name of at most 32 characters",
    test: |text| verdict(text.len() <= 32 && !text.contains(|c: char| c.is_whitespace() || c == ':' || c.is_control())),
};

/// A `tracing` filter.
pub(super) const FILTER: Check = Check {
    allowed: "a level (error, warn, info, debug, trace), or a list like \"info,nspool::engine=debug\"",
    test: |text| match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => verdict(!text.trim().is_empty()),
        Err(error) => Err(Some(error.to_string())),
    },
};

/// The daemon's own directory; sockets may lie in it, so its path is short.
pub(super) const DIRECTORY: Check = Check {
    allowed: "an absolute path of at most 80 bytes; by default /run/nspool/<pool.name>",
    test: |text| verdict(text.starts_with('/') && text.len() <= 80),
};

/// Somebody else's.
pub(super) const FOLDER: Check =
    Check { allowed: "an absolute path", test: |text| verdict(text.starts_with('/') && text.len() <= 4096 && !text.contains(':')) };

/// A registry account.
pub(super) const ACCOUNT: Check = Check {
    allowed: "1 to 255 characters",
    test: |text| verdict((1..=255).contains(&text.len()) && !text.contains(|c: char| c.is_control())),
};

/// A file to read.
pub(super) const FILE: Check = Check { allowed: "the absolute path of a readable file", test: |text| verdict(text.starts_with('/')) };

fn is_subnet(text: &str, is_family: fn(&IpAddr) -> bool) -> Result<(), Option<String>> {
    let subnet: Subnet = text.parse().map_err(|error: crate::netns::managed::SubnetError| Some(error.to_string()))?;
    verdict(is_family(&subnet.first()))
}

fn verdict(good: bool) -> Result<(), Option<String>> {
    if good { Ok(()) } else { Err(None) }
}
