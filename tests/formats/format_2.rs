//! Format 2, frozen: what it has, and how a release that knows nothing later reads it. Copied from `src/ledger/` when the format was made, and never
//! changed since: it stands for daemons that are installed somewhere.

use std::collections::{BTreeMap, HashSet};

use prost::Message as _;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    #[prost(oneof = "Record", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub record: Option<Record>,
}

#[expect(clippy::large_enum_variant, reason = "one at a time")]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Record {
    #[prost(message, tag = "1")]
    Began(Began),
    #[prost(message, tag = "2")]
    Ready(Ready),
    #[prost(message, tag = "3")]
    Out(Out),
    #[prost(message, tag = "4")]
    Leased(Leased),
    #[prost(message, tag = "5")]
    Changed(Changed),
    #[prost(message, tag = "6")]
    Ended(Ended),
    #[prost(message, tag = "7")]
    Undone(Undone),
    #[prost(message, tag = "8")]
    Doors(Doors),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Began {
    #[prost(string, tag = "1")]
    pub boot_id: String,
    #[prost(string, tag = "2")]
    pub pool: String,
    #[prost(string, tag = "3")]
    pub incarnation: String,
    #[prost(uint64, tag = "4")]
    pub at: u64,
    #[prost(uint32, tag = "5")]
    pub format: u32,
    #[prost(uint32, tag = "6")]
    pub oldest_reader: u32,
    #[prost(string, tag = "7")]
    pub engine: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ready {
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    #[prost(uint64, tag = "3")]
    pub use_number: u64,
    #[prost(string, tag = "4")]
    pub network: String,
    #[prost(message, optional, tag = "5")]
    pub namespace: Option<Namespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Namespace {
    #[prost(string, tag = "1")]
    pub namespace_id: String,
    #[prost(string, tag = "2")]
    pub host_config: String,
    #[prost(string, tag = "3")]
    pub container_id: String,
    #[prost(bool, tag = "4")]
    pub tell_container_id: bool,
    #[prost(string, repeated, tag = "5")]
    pub addresses: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    pub gateways: Vec<String>,
    #[prost(string, tag = "7")]
    pub resolv_conf: String,
    #[prost(uint32, tag = "8")]
    pub mtu: u32,
    #[prost(uint32, tag = "9")]
    pub pid: u32,
    #[prost(string, tag = "10")]
    pub started_at: String,
    #[prost(string, tag = "11")]
    pub folder: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Out {
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Leased {
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub slot: u32,
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    #[prost(uint64, tag = "4")]
    pub use_number: u64,
    #[prost(message, optional, tag = "5")]
    pub request: Option<Request>,
    #[prost(uint64, tag = "6")]
    pub allocated_at: u64,
    #[prost(uint64, optional, tag = "7")]
    pub deadline: Option<u64>,
    #[prost(bool, tag = "8")]
    pub joined: bool,
    #[prost(string, optional, tag = "9")]
    pub lost: Option<String>,
    #[prost(message, optional, tag = "10")]
    pub namespace: Option<Namespace>,
    #[prost(string, tag = "11")]
    pub network: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    #[prost(uint32, tag = "1")]
    pub uid: u32,
    #[prost(string, tag = "2")]
    pub owner: String,
    #[prost(string, tag = "3")]
    pub tenant: String,
    #[prost(string, optional, tag = "4")]
    pub request_id: Option<String>,
    #[prost(string, optional, tag = "5")]
    pub network: Option<String>,
    #[prost(oneof = "Lifetime", tags = "6, 7, 8")]
    pub lifetime: Option<Lifetime>,
    #[prost(btree_map = "string, string", tag = "9")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Oneof)]
pub enum Lifetime {
    #[prost(uint64, tag = "6")]
    Joiners(u64),
    #[prost(uint64, tag = "7")]
    Ttl(u64),
    #[prost(bool, tag = "8")]
    Connection(bool),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Changed {
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    #[prost(uint64, optional, tag = "2")]
    pub deadline: Option<u64>,
    #[prost(bool, tag = "3")]
    pub joined: bool,
    #[prost(string, optional, tag = "4")]
    pub lost: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Ended {
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
    #[prost(string, tag = "2")]
    pub cause: String,
    #[prost(string, tag = "3")]
    pub lost: String,
    #[prost(uint64, tag = "4")]
    pub forget_at: u64,
    #[prost(message, optional, tag = "5")]
    pub request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Undone {
    #[prost(bytes = "vec", tag = "1")]
    pub token: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Doors {
    #[prost(bool, tag = "1")]
    pub cordoned: bool,
    #[prost(uint32, optional, tag = "3")]
    pub ready: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    pub max: Option<u32>,
    #[prost(uint32, tag = "5")]
    pub configured_ready: u32,
    #[prost(uint32, tag = "6")]
    pub configured_max: u32,
}

/// What a file comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Table {
    pub began: Option<Began>,
    pub doors: Option<Doors>,
    pub buddies: BTreeMap<u32, Ready>,
    pub leases: BTreeMap<Vec<u8>, Leased>,
    pub ended: Vec<Ended>,
}

/// The records of a whole file. Panics at what it would take for broken.
pub fn records(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let length = word(0) as usize;
        assert!((1..=256 << 10).contains(&length), "a frame of {length} bytes");
        let payload = &bytes[8..8 + length];
        assert_eq!(crc32fast::hash(payload), word(4), "the checksum of a frame");
        records.extend(Entry::decode(payload).expect("a record").record);
        bytes = &bytes[8 + length..];
    }
    records
}

/// What a whole file comes to.
pub fn read(bytes: &[u8]) -> Table {
    let (mut table, mut known) = (Table::default(), HashSet::new());
    records(bytes).into_iter().for_each(|record| table.apply(record, &mut known));
    table
}

impl Table {
    fn apply(&mut self, record: Record, known: &mut HashSet<Vec<u8>>) {
        match record {
            Record::Began(began) => self.began = Some(began),
            Record::Ready(ready) => drop(self.buddies.insert(ready.slot, ready)),
            Record::Out(out) => self.buddies.retain(|slot, buddy| (*slot, buddy.generation) != (out.slot, out.generation)),
            Record::Leased(mut lease) => {
                let key = (lease.generation, lease.use_number);
                let buddy = self.buddies.get(&lease.slot).filter(|buddy| (buddy.generation, buddy.use_number) == key);
                if let (Some(buddy), None) = (buddy, &lease.namespace) {
                    lease.namespace.clone_from(&buddy.namespace);
                    lease.network.clone_from(&buddy.network);
                }
                self.leases.insert(lease.token.clone(), lease);
            }
            Record::Changed(Changed { token, deadline, joined, lost }) => {
                if let Some(lease) = self.leases.get_mut(&token) {
                    (lease.deadline, lease.joined, lease.lost) = (deadline, joined, lost);
                }
            }
            Record::Ended(mut ended) => {
                if let Some(lease) = self.leases.remove(&ended.token) {
                    ended.request = lease.request.filter(|request| request.request_id.is_some());
                }
                if known.insert(ended.token.clone()) {
                    self.ended.push(ended);
                }
            }
            Record::Undone(undone) => drop(self.leases.remove(&undone.token)),
            Record::Doors(doors) => self.doors = Some(doors),
        }
    }
}
