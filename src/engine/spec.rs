//! All that a buddy is created with, in the words of nspool: no engine's.
//!
//! What is the same for all buddies is not in it, the engine's implementation adds it: read-only root, no-new-privileges, log driver none,
//! no restart policy, no healthcheck.

use super::{ImageId, Labels, NamespaceKind};

/// The prefix of a network that is another container's namespace.
const JOINED: &str = "container:";

/// What a buddy's first process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Nothing: without any capability, behind the engine's own seccomp profile. Its namespaces stay those that it was started with.
    Fixed,
    /// Moves into a new network namespace when it is told to ([`crate::netns::Held::renew`]): uid 0 with SYS_ADMIN alone, behind the profile of
    /// [`super::seccomp`]. See [`BuddySpec::contradiction`] for what goes with it.
    Renewable,
}

/// All that a buddy is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuddySpec {
    /// The container's name, which is the namespace id of its first use.
    pub name: String,
    /// By id, so that an untag between gate and create does no harm.
    pub image: ImageId,
    /// Entrypoint and arguments; empty: the image's own.
    pub command: Vec<String>,
    /// Ownership labels; birth facts, never changed.
    pub labels: Labels,
    /// The engine network to attach to; or `container:<id>`: the namespace of that one, as a function joins it.
    pub network: String,
    /// Which namespaces joiners may share besides the network's.
    pub namespaces: Vec<NamespaceKind>,
    /// `uid:gid` the buddy runs as.
    pub user: String,
    /// Memory limit in bytes (FACTS: 16 MiB is safe for runc's own start).
    pub memory_bytes: i64,
    /// Tasks limit.
    pub pids: i64,
    /// What its first process may do.
    pub flavour: Flavour,
    /// IPv6 is on where the engine itself gives no address: it would switch it off.
    pub ipv6: bool,
}

impl BuddySpec {
    /// The same as a renewable buddy: uid 0 on network `none`, sharing the network namespace alone.
    #[must_use]
    pub fn renewable(self) -> Self {
        Self {
            network: "none".to_owned(),
            namespaces: vec![NamespaceKind::Net],
            user: "0:0".to_owned(),
            flavour: Flavour::Renewable,
            ..self
        }
    }

    /// The name or id of the container whose network namespace it joins.
    #[must_use]
    pub fn joins(&self) -> Option<&str> {
        self.network.strip_prefix(JOINED)
    }

    /// Why no engine is asked for this: `None` when nothing speaks against it. A renewable buddy
    /// - starts on `none`: a buddy that has not moved yet is joined where it is, so on `host` that would be the host's namespace, and a network
    ///   of the engine's would be taken from it at its first move;
    /// - runs as uid 0: others get no effective capability;
    /// - shares neither ipc nor pid: who is in its pid namespace can forge an order, and what is shared would outlive the renewal.
    #[must_use]
    pub fn contradiction(&self) -> Option<&'static str> {
        match self.flavour {
            Flavour::Fixed => None,
            Flavour::Renewable if self.network != "none" => Some("a renewable buddy starts on network none"),
            Flavour::Renewable if self.user != "0:0" => Some("a renewable buddy runs as 0:0"),
            Flavour::Renewable if self.namespaces.iter().any(|kind| *kind != NamespaceKind::Net) => {
                Some("a renewable buddy shares its network namespace only")
            }
            Flavour::Renewable => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewable_buddy_is_alone_on_no_network() {
        let fixed = BuddySpec {
            name: "b".into(),
            image: "sha256:1".into(),
            command: Vec::new(),
            labels: Labels::new(),
            network: "host".into(),
            namespaces: vec![NamespaceKind::Net, NamespaceKind::Pid],
            user: "65533:65533".into(),
            memory_bytes: 1,
            ipv6: false,
            pids: 1,
            flavour: Flavour::Fixed,
        };
        assert_eq!(fixed.contradiction(), None);
        let good = fixed.clone().renewable();
        assert_eq!(good.contradiction(), None);
        let wrong = [
            BuddySpec { network: "host".into(), ..good.clone() },
            BuddySpec { network: "bridge".into(), ..good.clone() },
            BuddySpec { user: "0:1".into(), ..good.clone() },
            BuddySpec { namespaces: vec![NamespaceKind::Net, NamespaceKind::Ipc], ..good.clone() },
            BuddySpec { namespaces: vec![NamespaceKind::Pid], ..good },
        ];
        assert!(wrong.iter().all(|spec| spec.contradiction().is_some()));
    }
}
