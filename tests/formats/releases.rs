//! What releases promise each other about the ledger, as `src/ledger/format.rs` has it. Of each format there is a file of records, `N.ledger`, and
//! a frozen reader, `format_N.rs`.
//!
//! Whoever changes the format raises `FORMAT` and runs
//! ```text
//! NSPOOL_WRITE_LEDGER=1 cargo test --test ledger releases
//! ```
//! which writes the new file (never over one that is there: until a release has it, it may be removed by hand), copies `record.rs` to a new frozen
//! reader, and adds both to the tests here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nspool::ledger::format::{FORMAT, OLDEST_READER};
use nspool::ledger::record::Record;
use nspool::ledger::{Found, Identity, Ledger, Replayed, Table, frame};
use nspool::pool::state::{Rules, State};

use super::everything::{everything, kind};
use super::{format_1, format_2, in_the_pool};
use crate::support::disk::Disk;
use crate::{put, rules};

/// Of this boot and pool are the files.
fn identity() -> Identity {
    Identity { boot_id: "golden boot".into(), pool: "golden".into(), now: Duration::from_secs(1), engine: "native".into() }
}

fn file(format: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/{format}.ledger"))
}

fn written(records: impl IntoIterator<Item = Record>) -> Vec<u8> {
    records.into_iter().flat_map(frame).collect()
}

fn disk(bytes: &[u8]) -> Disk {
    let disk = Disk::default();
    disk.change(|contents| contents.extend_from_slice(bytes));
    disk
}

fn open(disk: &Disk) -> std::io::Result<(Arc<Ledger>, Replayed)> {
    Ledger::on(Box::new(disk.clone()), &identity())
}

#[test]
fn this_release_writes_the_format_that_it_says() {
    let path = file(FORMAT);
    if std::env::var_os("NSPOOL_WRITE_LEDGER").is_some() && !path.exists() {
        std::fs::write(&path, written(everything())).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_default();
    assert!(written(everything()) == kept, "the format has changed, or is a new one: see the top of tests/formats/releases.rs");
    let found: BTreeSet<u32> = everything().iter().map(kind).collect();
    assert_eq!(found, (1..=8).collect(), "every kind is in the file");
}

/// One line for each thing that stands.
fn lines(table: &format_1::Table) -> String {
    let mut lines = vec![format!("{:?}", table.began), format!("{:?}", table.doors)];
    lines.extend(table.buddies.values().map(|buddy| format!("{buddy:?}")));
    lines.extend(table.leases.values().map(|lease| format!("{lease:?}")));
    lines.extend(table.ended.iter().map(|ended| format!("{ended:?}")));
    lines.join("\n")
}

const NETWORKS: [&str; 2] = ["none", "bridge"];

fn networks() -> Arc<[String]> {
    NETWORKS.map(str::to_owned).into()
}

/// The pool of a daemon that starts with this.
fn restored(table: &Table) -> State {
    let mut pool = State::new(Rules { networks: 2, ready: 2, max: 8, ..rules() }, 1);
    pool.record_with(networks());
    pool.hold_back();
    pool.restore(identity().now, table.clone());
    pool.check();
    pool
}

#[test]
fn an_upgrade_from_format_1_finds_everything() {
    let bytes = std::fs::read(file(1)).unwrap();
    let told = format_1::read(&bytes);
    insta::assert_snapshot!("format_1", lines(&told));
    let disk = disk(&bytes);
    let (_, Replayed { table, found }) = open(&disk).unwrap();
    assert_eq!(found, Found::Whole { torn: 0, unread: 0 });
    let pool = restored(&table);
    in_the_pool::agree(&told, &table, &pool, &networks());
    for lease in pool.lease_views(None) {
        let deadline = told.leases[lease.token.0.as_slice()].deadline.map(Duration::from_nanos);
        assert_eq!(lease.deadline, deadline, "it is after the grace");
    }
    // Nothing of it got lost on its way through file and pool.
    let began = format_1::read(&disk.bytes()).began.unwrap();
    assert_eq!((began.format, began.oldest_reader), (FORMAT, OLDEST_READER));
    assert_eq!(Some(format_1::Began { format: 1, oldest_reader: 1, ..began }), told.began);
    let now = format_1::read(&written(pool.told().records()));
    assert_eq!((now.doors, now.buddies, now.leases, now.ended), (told.doors, told.buddies, told.leases, told.ended));
}

/// What a reader of format 2 finds in what this release writes.
#[test]
fn a_downgrade_to_format_2_finds_everything() {
    let told = format_2::read(&std::fs::read(file(2)).unwrap());
    let now = format_2::read(&written(everything()));
    assert_eq!((told.began, told.buddies.len(), told.leases.len()), (now.began, now.buddies.len(), now.leases.len()));
    let namespaces = now.buddies.values().filter_map(|ready| ready.namespace.as_ref());
    assert!(namespaces.clone().count() > 0 && namespaces.clone().all(|namespace| !namespace.folder.is_empty()));
    assert_eq!((told.buddies, told.leases, told.ended), (now.buddies, now.leases, now.ended));
}

#[test]
fn a_downgrade_to_format_1_finds_everything() {
    assert_eq!(OLDEST_READER, 1, "this test goes with what it tests");
    let disk = Disk::default();
    let (ledger, _) = open(&disk).unwrap();
    everything().into_iter().for_each(|record| put(&ledger, record).unwrap());
    let appended = disk.bytes();
    ledger.compact(0, 100).unwrap();
    for bytes in [appended, disk.bytes()] {
        let table = Table::read(&bytes);
        in_the_pool::agree(&format_1::read(&bytes), &table, &restored(&table), &networks());
    }
}

/// A field with a number that no release has had yet.
const UNKNOWN: u32 = 1000;

fn field(number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut bytes);
    prost::encoding::encode_varint(body.len() as u64, &mut bytes);
    [bytes.as_slice(), body].concat()
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&length.to_le_bytes()[..], &crc32fast::hash(payload).to_le_bytes(), payload].concat()
}

/// What a later release may make of a record: fields of its own beside it, in it, and in the messages in it. Protobuf merges what comes twice.
fn with_later_fields(record: Record) -> Vec<u8> {
    let later = field(UNKNOWN, b"later");
    let inner: Vec<u32> = match &record {
        Record::Ready(_) => vec![5],
        Record::Leased(lease) => {
            if lease.namespace.is_some() {
                vec![5, 10]
            } else {
                vec![5]
            }
        }
        Record::Ended(ended) => ended.request.iter().map(|_| 5).collect(),
        Record::Began(_) | Record::Out(_) | Record::Changed(_) | Record::Undone(_) | Record::Doors(_) => Vec::new(),
    };
    let inner: Vec<u8> = inner.into_iter().flat_map(|number| field(number, &later)).collect();
    let more = field(kind(&record), &[inner, later.clone()].concat());
    framed(&[&frame(record)[8..], &more, &later].concat())
}

/// A file of a later release, whose records come with others between them.
fn of_a_later_release(oldest_reader: u32) -> Vec<u8> {
    let mut records = everything();
    let Some(Record::Began(began)) = records.first_mut() else { panic!("it begins with Began") };
    (began.format, began.oldest_reader) = (FORMAT + 2, oldest_reader);
    let unknown = [framed(&field(9, b"the next kind")), framed(&field(UNKNOWN, b"another"))].concat();
    records.into_iter().flat_map(|record| [with_later_fields(record), unknown.clone()].concat()).collect()
}

#[test]
fn what_a_later_release_adds_costs_no_lease_when_it_is_read_and_compacted() {
    let expected = Table::of(everything());
    let disk = disk(&of_a_later_release(FORMAT));
    let (ledger, Replayed { table, found }) = open(&disk).unwrap();
    assert_eq!(found, Found::Whole { torn: 0, unread: 2 * everything().len() });
    assert_eq!(table, expected);
    ledger.compact(0, 100).unwrap();
    // What is not known was dropped, and the file is this release's.
    let (_, Replayed { table, found }) = open(&disk).unwrap();
    assert_eq!(found, Found::Whole { torn: 0, unread: 0 });
    assert_eq!(table, expected);
    assert_eq!(disk.bytes(), written(expected.records()));
}

#[test]
fn a_file_that_cannot_be_read_rightly_is_refused_and_left_alone() {
    let bytes = of_a_later_release(FORMAT + 1);
    let store = disk(&bytes);
    let refused = open(&store).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
    assert!(refused.to_string().contains("it is of a later release"), "{refused}");
    assert!(store.bytes() == bytes);

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ledger"), &bytes).unwrap();
    assert_eq!(Ledger::peek(folder.path(), &identity().boot_id).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    // What was there before the host was started again is no matter.
    assert_eq!(Ledger::peek(folder.path(), "another boot").unwrap(), None);
    let another = Identity { boot_id: "another boot".into(), ..identity() };
    assert_eq!(Ledger::on(Box::new(store), &another).unwrap().1.found, Found::Nothing);
}
