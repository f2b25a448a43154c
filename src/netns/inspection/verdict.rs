//! What an inspection says: clean, or what is different, in words for metrics and for people.
//!
//! Names and texts that a joiner chose are shown with their control characters escaped, and cut short.

use std::fmt;
use std::time::Duration;

use rustix::io::Errno;

/// The outcome of an inspection.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// As it was when it was ready, now. What had been left by and by was removed, and looked for again.
    Clean {
        /// At most one of a kind.
        removed: Vec<Leftover>,
    },
    /// Not to be used again. Never empty.
    Dirty(Vec<Difference>),
}

impl Verdict {
    /// Whether it may be used again.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::Clean { .. })
    }
}

/// What differences are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Kind {
    /// A link, or something about one: hardware address, MTU, flags, alias, master, queues, per-link settings.
    Link,
    /// An IPv4 or IPv6 address.
    Address,
    /// Which addresses the kernel prefers as its own.
    AddressLabel,
    /// Of any table and family.
    Route,
    /// A policy routing rule.
    Rule,
    /// A nexthop object.
    Nexthop,
    /// A permanent or a proxy neighbour.
    Neighbour,
    /// How a link asks for its neighbours.
    NeighbourSettings,
    /// A hardware address that a link also receives for.
    ForwardingEntry,
    /// A queueing discipline or a class of one.
    Qdisc,
    /// A traffic control filter.
    Filter,
    /// A program in the path of packets: XDP, a filter's, or one that is attached to the namespace.
    Bpf,
    /// Tables, chains, rules, sets of nftables (and of iptables upon it).
    Nftables,
    /// Tables of the older iptables, ip6tables or arptables.
    LegacyTable,
    /// A set, an accounting object, a timeout policy that rules could use.
    NetfilterObject,
    /// Of IPVS.
    VirtualServer,
    /// An IPsec security association.
    XfrmState,
    /// An IPsec policy, or what holds where there is none.
    XfrmPolicy,
    /// A multicast group that somebody is in.
    Multicast,
    /// Settings of a protocol: endpoints and limits of MPTCP, segment routing.
    Protocol,
    /// A socket, wherever its owner is.
    Socket,
    /// A setting below /proc/sys/net.
    Sysctl,
    /// One of the files that joiners share with their buddy.
    SharedFile,
    /// An object of a shared ipc namespace: shared memory, semaphores, a message queue.
    Ipc,
    /// A leftover that is still there after its removal.
    NotRemoved,
    /// Something could not be read.
    Unreadable,
    /// It took too long.
    Late,
}

impl Kind {
    /// For metrics and JSON. Stable.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Address => "address",
            Self::AddressLabel => "address_label",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Nexthop => "nexthop",
            Self::Neighbour => "neighbour",
            Self::NeighbourSettings => "neighbour_settings",
            Self::ForwardingEntry => "forwarding_entry",
            Self::Qdisc => "qdisc",
            Self::Filter => "filter",
            Self::Bpf => "bpf",
            Self::Nftables => "nftables",
            Self::LegacyTable => "legacy_table",
            Self::NetfilterObject => "netfilter_object",
            Self::VirtualServer => "virtual_server",
            Self::XfrmState => "xfrm_state",
            Self::XfrmPolicy => "xfrm_policy",
            Self::Multicast => "multicast",
            Self::Protocol => "protocol",
            Self::Socket => "socket",
            Self::Sysctl => "sysctl",
            Self::SharedFile => "shared_file",
            Self::Ipc => "ipc",
            Self::NotRemoved => "not_removed",
            Self::Unreadable => "unreadable",
            Self::Late => "late",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One line of a diff: what was when the namespace was ready, and what is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// For metrics.
    pub kind: Kind,
    /// Of what: "eth0 mtu", "10.0.0.0/8 table 100".
    pub subject: String,
    /// Nothing when it was not there.
    pub was: Option<String>,
    /// Nothing when it is gone.
    pub is: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &str| if value.is_empty() { "there".to_owned() } else { value.to_owned() };
        write!(f, "{} {}: ", self.kind, self.subject)?;
        match (&self.was, &self.is) {
            (None, Some(is)) if matches!(self.kind, Kind::NotRemoved | Kind::Unreadable | Kind::Late) => f.write_str(is),
            (None, None) => write!(f, "cannot be told"),
            (None, Some(is)) => write!(f, "was not there, is {}", shown(is)),
            (Some(was), None) => write!(f, "was {}, is gone", shown(was)),
            (Some(was), Some(is)) => write!(f, "was {}, is {}", shown(was), shown(is)),
        }
    }
}

/// What unprivileged joiners leave by and by, and what is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum LeftoverKind {
    /// TCP connections without an owner: in TIME-WAIT, or with data that still wants to go.
    Connection,
    /// Neighbours that were learnt.
    Neighbour,
    /// Routes that were learnt: path MTUs and redirects.
    LearntRoute,
    /// What TCP remembers of others.
    TcpMetrics,
    /// Entries of connection tracking.
    Conntrack,
}

impl LeftoverKind {
    /// For metrics and JSON. Stable.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Neighbour => "neighbour",
            Self::LearntRoute => "learnt_route",
            Self::TcpMetrics => "tcp_metrics",
            Self::Conntrack => "conntrack",
        }
    }
}

/// Removed, and found gone when looked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Leftover {
    /// For metrics.
    pub kind: LeftoverKind,
    /// How many.
    pub count: usize,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, self.kind.word())
    }
}

/// Why a namespace could not be looked at. As to its use again, this is as good as dirty.
#[derive(Clone, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum InspectError {
    /// The kernel refused, or gave more than can be taken.
    #[error("reading {what}")]
    Unreadable {
        /// What was to be read.
        what: String,
        /// The kernel's word.
        #[source]
        #[serde(with = "crate::netns::errno")]
        cause: Errno,
    },
    /// See the deadline that was given.
    #[error("the inspection took longer than {limit:?}")]
    Late {
        /// How long it might have taken.
        limit: Duration,
    },
}

impl InspectError {
    pub(super) fn reading(what: &str) -> impl Fn(Errno) -> Self {
        move |cause| Self::Unreadable { what: what.to_owned(), cause }
    }
}

impl From<InspectError> for Difference {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Unreadable { what, cause } => {
                Self { kind: Kind::Unreadable, subject: what, was: None, is: Some(cause.to_string()) }
            }
            InspectError::Late { limit } => {
                Self { kind: Kind::Late, subject: "the inspection".to_owned(), was: None, is: Some(format!("not done within {limit:?}")) }
            }
        }
    }
}
