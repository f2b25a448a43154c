//! What is written: one protobuf message per record, so that a later release may add fields and kinds, and this one reads past them.
//!
//! Tags are never used twice: [`format`](super::format) says what else holds for changes here, and `tests/ledger.rs` keeps what each release wrote. A
//! kind that is not known decodes to nothing and is skipped. Moments are nanoseconds of CLOCK_BOOTTIME; they mean
//! something on one boot only, and so does the file.

/// One frame's payload.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// `None`: of a kind that a later release writes.
    #[prost(oneof = "Record", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub record: Option<Record>,
}

/// What happened.
#[expect(clippy::large_enum_variant, reason = "made and encoded one at a time")]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Record {
    /// The first one in a file.
    #[prost(message, tag = "1")]
    Began(Began),
    /// A buddy is Ready for this use.
    #[prost(message, tag = "2")]
    Ready(Ready),
    /// A buddy is on its way out: never to be handed out again as it is.
    #[prost(message, tag = "3")]
    Out(Out),
    /// A use was lent out.
    #[prost(message, tag = "4")]
    Leased(Leased),
    /// Something about a lease has changed.
    #[prost(message, tag = "5")]
    Changed(Changed),
    /// A lease is over, and remembered.
    #[prost(message, tag = "6")]
    Ended(Ended),
    /// A lease was taken back before anybody was told of it: its slot is Ready as before.
    #[prost(message, tag = "7")]
    Undone(Undone),
    /// What operators said.
    #[prost(message, tag = "8")]
    Doors(Doors),
}

/// Whose file it is, and who can read it. These numbers are for good, in every format.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Began {
    /// `/proc/sys/kernel/random/boot_id`
    #[prost(string, tag = "1")]
    pub boot_id: String,
    /// The pool's name.
    #[prost(string, tag = "2")]
    pub pool: String,
    /// Stays as long as leases do.
    #[prost(string, tag = "3")]
    pub incarnation: String,
    /// Since when it tells everything: what is older, an earlier ledger told, which is lost.
    #[prost(uint64, tag = "4")]
    pub at: u64,
    /// [`FORMAT`](super::format::FORMAT) of whoever wrote the file.
    #[prost(uint32, tag = "5")]
    pub format: u32,
    /// [`OLDEST_READER`](super::format::OLDEST_READER) of whoever wrote the file.
    #[prost(uint32, tag = "6")]
    pub oldest_reader: u32,
    /// Of which kind the engine is that the buddies are on (`docker`, `podman`, `native`); empty: a container engine.
    #[prost(string, tag = "7")]
    pub engine: String,
}

/// See [`Record::Ready`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ready {
    /// Its place.
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    /// Which buddy.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// Which use.
    #[prost(uint64, tag = "3")]
    pub use_number: u64,
    /// The network's name.
    #[prost(string, tag = "4")]
    pub network: String,
    /// What it hands out.
    #[prost(message, optional, tag = "5")]
    pub namespace: Option<Namespace>,
}

/// As `pool::Namespace`, but for what follows from the namespace id.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespace {
    /// The buddy's name for this use.
    #[prost(string, tag = "1")]
    pub namespace_id: String,
    /// JSON to merge into a create.
    #[prost(string, tag = "2")]
    pub host_config: String,
    /// The buddy.
    #[prost(string, tag = "3")]
    pub container_id: String,
    /// Whether a holder may know it.
    #[prost(bool, tag = "4")]
    pub tell_container_id: bool,
    /// Addresses with prefix length.
    #[prost(string, repeated, tag = "5")]
    pub addresses: Vec<String>,
    /// As many gateways; empty for none.
    #[prost(string, repeated, tag = "6")]
    pub gateways: Vec<String>,
    /// What joiners see.
    #[prost(string, tag = "7")]
    pub resolv_conf: String,
    /// 0: not known.
    #[prost(uint32, tag = "8")]
    pub mtu: u32,
    /// The buddy's init.
    #[prost(uint32, tag = "9")]
    pub pid: u32,
    /// The engine's own text: with the container id the buddy's identity.
    #[prost(string, tag = "10")]
    pub started_at: String,
    /// Where its namespaces are mounted; empty: nowhere.
    #[prost(string, tag = "11")]
    pub folder: String,
}

/// See [`Record::Out`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Out {
    /// Its place.
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    /// Which buddy.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

/// See [`Record::Leased`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Leased {
    /// 128 bits.
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// Its place.
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    /// Which buddy.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// Which use.
    #[prost(uint64, tag = "4")]
    pub use_number: u64,
    /// The call.
    #[prost(message, optional, tag = "5")]
    pub request: Option<Request>,
    /// Since when.
    #[prost(uint64, tag = "6")]
    pub allocated_at: u64,
    /// When it ends by itself.
    #[prost(uint64, optional, tag = "7")]
    pub deadline: Option<u64>,
    /// A container joined at some time.
    #[prost(bool, tag = "8")]
    pub joined: bool,
    /// Why it is LOST.
    #[prost(string, optional, tag = "9")]
    pub lost: Option<String>,
    /// Only where no Ready record has it: LOST leases in a compacted file.
    #[prost(message, optional, tag = "10")]
    pub namespace: Option<Namespace>,
    /// The network's name, beside `namespace`.
    #[prost(string, tag = "11")]
    pub network: String,
}

/// As `pool::Request`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// The peer's.
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    /// The agent.
    #[prost(string, tag = "2")]
    pub owner: String,
    /// May be empty.
    #[prost(string, tag = "3")]
    pub tenant: String,
    /// `None`: no idempotence.
    #[prost(string, optional, tag = "4")]
    pub request_id: Option<String>,
    /// The network it asked for, by name.
    #[prost(string, optional, tag = "5")]
    pub network: Option<String>,
    /// See [`Lifetime`]; `None`: of a kind that a later release has, which is read as the end of a connection that is gone.
    #[prost(oneof = "Lifetime", tags = "6, 7, 8")]
    pub lifetime: Option<Lifetime>,
    /// Never interpreted.
    #[prost(btree_map = "string, string", tag = "9")]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// As `pool::Lifetime`.
#[derive(Clone, Copy, PartialEq, Eq, prost::Oneof)]
pub enum Lifetime {
    /// With its `join_by`.
    #[prost(uint64, tag = "6")]
    Joiners(u64),
    /// With its ttl.
    #[prost(uint64, tag = "7")]
    Ttl(u64),
    /// Of a connection, which no restart survives.
    #[prost(bool, tag = "8")]
    Connection(bool),
}

/// See [`Record::Changed`]: the whole of what can change.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Changed {
    /// Which lease.
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// When it ends by itself.
    #[prost(uint64, optional, tag = "2")]
    pub deadline: Option<u64>,
    /// A container joined at some time.
    #[prost(bool, tag = "3")]
    pub joined: bool,
    /// Why it is LOST.
    #[prost(string, optional, tag = "4")]
    pub lost: Option<String>,
}

/// See [`Record::Ended`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ended {
    /// Which lease.
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    /// `pool::Cause::word`.
    #[prost(string, tag = "2")]
    pub cause: String,
    /// With the cause `lost`: why.
    #[prost(string, tag = "3")]
    pub lost: String,
    /// When it may be forgotten.
    #[prost(uint64, tag = "4")]
    pub forget_at: u64,
    /// Only in a compacted file, and where it had a request id: the lease's own record is gone there.
    #[prost(message, optional, tag = "5")]
    pub request: Option<Request>,
}

/// See [`Record::Undone`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Undone {
    /// Which lease.
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
}

/// See [`Record::Doors`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Doors {
    /// Nothing is handed out.
    #[prost(bool, tag = "1")]
    pub cordoned: bool,
    /// Sizes that an operator asked for; `None`: those of the configuration.
    #[prost(uint32, optional, tag = "3")]
    pub ready: Option<u32>,
    /// See `ready`.
    #[prost(uint32, optional, tag = "4")]
    pub max: Option<u32>,
    /// What the configuration said then: with other sizes in it, `ready` and `max` mean nothing any more.
    #[prost(uint32, tag = "5")]
    pub configured_ready: u32,
    /// See `configured_ready`.
    #[prost(uint32, tag = "6")]
    pub configured_max: u32,
}
