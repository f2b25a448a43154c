//! The words of the pool: keys, requests, what a lease hands out, refusals. No behaviour beyond formatting.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A moment: time since boot (CLOCK_BOOTTIME), so that it goes on while the machine sleeps and no wall clock can move it.
pub type Moment = Duration;

/// A numbered place.
pub type SlotIndex = u32;

/// Index into the configured networks.
pub type NetworkIndex = u16;

/// Words for people. Most are known when the program is built: so a buddy's death allocates nothing, which at 100,000 slots would cost more
/// than all the rest of it.
pub type Words = Cow<'static, str>;

/// One use of one buddy. Every message about a slot carries it; one that does not match the slot's present is stale, counted and dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UseKey {
    /// Which slot.
    pub slot: SlotIndex,
    /// Which buddy: pool-wide, strictly increasing.
    pub generation: u64,
    /// Which hand-out of that buddy, from 1.
    pub use_number: u64,
}

impl fmt::Display for UseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.slot, self.generation, self.use_number)
    }
}

/// 128 random bits: the only thing that releases a lease. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

impl Token {
    /// As it goes over the wire.
    #[must_use]
    pub fn to_hex(self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = String::with_capacity(32);
        for byte in self.0 {
            hex.push(char::from(DIGITS[usize::from(byte >> 4)]));
            hex.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        hex
    }

    /// `None` for anything but 32 lower or upper case hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 32 {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// A client's connection, for `connection` leases. Numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

/// What ends a lease besides a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lifetime {
    /// No joiner by then, or `linger` after the last one was removed.
    Joiners {
        /// How long the first joiner may take.
        join_by: Duration,
    },
    /// Its expiry, which Renew moves.
    Ttl(Duration),
    /// The end of the connection.
    Connection(ConnectionId),
}

/// An Allocate call, validated. What makes two requests with one id "the same" is everything in here but the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The peer's uid.
    pub uid: u32,
    /// The name an agent gives itself; may be empty.
    pub owner: String,
    /// May be empty.
    pub tenant: String,
    /// `None`: no idempotence.
    pub request_id: Option<String>,
    /// `None`: any.
    pub network: Option<NetworkIndex>,
    /// See [`Lifetime`].
    pub lifetime: Lifetime,
    /// Never interpreted.
    pub labels: BTreeMap<String, String>,
}

impl Request {
    pub(super) fn key(&self) -> Option<RequestKey> {
        let id = self.request_id.clone()?;
        Some(RequestKey { uid: self.uid, owner: self.owner.clone(), id })
    }

    /// Whether a repeated call asks for the same thing. A retry comes on another connection, so that does not count.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        let lifetime = match (self.lifetime, other.lifetime) {
            (Lifetime::Connection(_), Lifetime::Connection(_)) => true,
            (mine, theirs) => mine == theirs,
        };
        lifetime && self.tenant == other.tenant && self.network == other.network && self.labels == other.labels
    }
}

/// Requests are idempotent by this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    pub uid: u32,
    pub owner: String,
    pub id: String,
}

/// One address of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// With prefix length, e.g. `172.17.0.5/16`.
    pub address: String,
    /// Empty when the network has none.
    pub gateway: String,
}

/// What a lease hands out: made by the nanny before the slot is Ready, shared with every answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The buddy's name for this use.
    pub namespace_id: String,
    /// `container:<namespace_id>`; of a buddy that is no process `ns:<path>`.
    pub network_mode: String,
    /// JSON to merge into a container create.
    pub host_config: String,
    /// The buddy.
    pub container_id: Arc<str>,
    /// Whether a holder may know the container id: ids outlive the fence, so only when there is no later use.
    pub tell_container_id: bool,
    /// Of the namespace.
    pub addresses: Vec<Address>,
    /// What joiners see in /etc/resolv.conf; empty when it could not be read.
    pub resolv_conf: String,
    /// 0 when not known.
    pub mtu: u32,
    /// The buddy's init in the host's pid namespace; 0: it is no process.
    pub pid: u32,
    /// The engine's own text: with the container id the buddy's identity (I4).
    pub started_at: String,
    /// The folder that its namespaces are mounted in, one file for each kind; empty: they are not.
    pub folder: String,
}

impl Namespace {
    /// See [`Namespace::network_mode`].
    #[must_use]
    pub fn network_mode_of(namespace_id: &str, pid: u32, folder: &str) -> String {
        if pid == 0 && !folder.is_empty() { format!("ns:{folder}/net") } else { format!("container:{namespace_id}") }
    }
}

/// Why a lease is over, or how it got LOST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The holder gave it back.
    Released,
    /// The holder gave it back with a create or start perhaps outstanding.
    ReleasedDoubtful,
    /// No joiner appeared in time.
    NotJoined,
    /// The last joiner was removed a while ago.
    Lingered,
    /// Its ttl ran out.
    Expired,
    /// The holder's connection ended.
    ConnectionClosed,
    /// An operator ended it.
    Forced,
    /// The daemon stops.
    Stopping,
    /// It was LOST, for this reason, and nobody released it for long.
    Lost(Words),
}

impl Cause {
    /// For metrics and logs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::ReleasedDoubtful => "released_doubtful",
            Self::NotJoined => "not_joined",
            Self::Lingered => "lingered",
            Self::Expired => "expired",
            Self::ConnectionClosed => "connection_closed",
            Self::Forced => "forced",
            Self::Stopping => "stopping",
            Self::Lost(_) => "lost",
        }
    }

    /// The way back from [`Cause::word`]; a word of a later release is an end all the same.
    pub(super) fn from_word(word: &str, lost: String) -> Self {
        match word {
            "released" => Self::Released,
            "released_doubtful" => Self::ReleasedDoubtful,
            "not_joined" => Self::NotJoined,
            "lingered" => Self::Lingered,
            "connection_closed" => Self::ConnectionClosed,
            "forced" => Self::Forced,
            "stopping" => Self::Stopping,
            "lost" => Self::Lost(lost.into()),
            _ => Self::Expired,
        }
    }

    /// Only this way may a buddy be used again: the holder says that nothing of its own is under way.
    pub(super) fn vouched(&self) -> bool {
        *self == Self::Released
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Released => "released by its holder",
            Self::ReleasedDoubtful => "released by its holder, in doubt",
            Self::NotJoined => "no container joined in time",
            Self::Lingered => "its last container was removed",
            Self::Expired => "its ttl ran out",
            Self::ConnectionClosed => "its holder's connection closed",
            Self::Forced => "ended by an operator",
            Self::Stopping => "the daemon stops",
            Self::Lost(why) => return write!(f, "lost: {why}"),
        })
    }
}

/// A refusal that a caller can cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Nothing ready, and the caller did not want to wait, or waited in vain.
    #[error("no slot is ready")]
    PoolEmpty {
        /// When a try has a chance, as far as the pool can tell.
        retry_after: Option<Duration>,
    },
    /// As many callers wait as may.
    #[error("too many callers wait already")]
    TooManyWaiting,
    /// The uid has as many leases as it may have.
    #[error("uid {uid} has {limit} leases, which is all it may have")]
    Quota {
        /// Whose.
        uid: u32,
        /// How many.
        limit: u32,
    },
    /// Nothing was ready since the daemon started.
    #[error("the pool is being filled for the first time")]
    Starting {
        /// When a try has a chance, as far as the pool can tell.
        retry_after: Option<Duration>,
    },
    /// Nothing ready, and nothing can be made.
    #[error("the engine is away and no slot is ready")]
    EngineAway,
    /// An operator closed the pool.
    #[error("the pool is cordoned")]
    Cordoned,
    /// An operator drains the pool.
    #[error("the pool is draining")]
    Draining,
    /// The daemon is on its way out.
    #[error("the daemon stops")]
    Stopping,
    /// A lease that cannot be recorded would not survive the daemon.
    #[error("no lease can be recorded: {why}")]
    NotRecorded {
        /// What the ledger says.
        why: String,
    },
    /// The lease is there, the namespace is not.
    #[error("the lease was lost: {why}")]
    LeaseLost {
        /// The reason.
        why: String,
    },
    /// The lease is over.
    #[error("the lease has ended: {cause}")]
    LeaseEnded {
        /// How.
        cause: Cause,
    },
    /// A token never seen, or forgotten.
    #[error("no lease has this token")]
    UnknownToken,
    /// No lease with that id.
    #[error("no lease has this id")]
    UnknownLease,
    /// No such slot.
    #[error("there is no slot {slot}")]
    UnknownSlot {
        /// The number.
        slot: SlotIndex,
    },
    /// The same request id with other parameters.
    #[error("request_id was used before with other parameters")]
    RequestConflict,
    /// Renew of a lease that has no ttl.
    #[error("the lease has no ttl to renew")]
    NotRenewable,
    /// Sizes that make no sense.
    #[error("ready ({ready}) must be at most max ({max}), and max at least 1")]
    BadSize {
        /// Asked for.
        ready: u32,
        /// Asked for.
        max: u32,
    },
}

/// A lease as its holder or a list sees it.
#[derive(Clone, Debug)]
pub struct LeaseView {
    /// Left out of lists by whoever shows them.
    pub token: Token,
    /// Which use.
    pub key: UseKey,
    /// What was handed out.
    pub namespace: Arc<Namespace>,
    /// Index of the network.
    pub network: NetworkIndex,
    /// The call it answers.
    pub request: Arc<Request>,
    /// Since when.
    pub allocated_at: Moment,
    /// When it ends by itself, if it does.
    pub deadline: Option<Moment>,
    /// Why it is LOST, if it is.
    pub lost: Option<Words>,
    /// Containers known to have joined.
    pub joiners: usize,
}

/// For a watcher: what happened to a lease, or to the pool.
#[derive(Clone, Debug)]
pub enum PoolEvent {
    /// A container joined.
    Joined(LeaseNote),
    /// The namespace is gone or not to be trusted.
    Lost(LeaseNote),
    /// It ended by itself, or by an operator.
    Ending(LeaseNote),
    /// The doors were closed or opened.
    Cordon {
        /// Nothing more is handed out.
        cordoned: bool,
        /// … and somebody waits until nothing is leased.
        draining: bool,
    },
}

/// See [`PoolEvent`].
#[derive(Clone, Debug)]
pub struct LeaseNote {
    /// Which use.
    pub key: UseKey,
    /// Who may see it.
    pub uid: u32,
    /// The agent.
    pub owner: String,
    /// The name it had.
    pub namespace_id: String,
    /// Why, or who joined.
    pub cause: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_wire_and_is_not_shown() {
        let token = Token([0, 1, 2, 0x7f, 0x80, 0xff, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(Token::from_hex(&token.to_hex()), Some(token));
        assert_eq!(format!("{token:?}"), "Token(…)");
        for wrong in ["", "00", "zz0102030405060708090a0b0c0d0e0f", "000102030405060708090a0b0c0d0e0f0"] {
            assert_eq!(Token::from_hex(wrong), None, "{wrong}");
        }
    }
}
