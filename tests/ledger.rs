//! What the ledger promises, on a disk that fills up, tears and rots; and what the pool promises on top of it (I8).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support {
    pub mod disk;
    pub mod world;
}

mod formats {
    mod everything;
    mod format_1;
    mod format_2;
    mod in_the_pool;
    mod releases;
}

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nspool::ledger::record::{Leased, Namespace, Out, Ready, Record};
use nspool::ledger::{Found, Identity, Ledger, Replayed, WriteError, frame};
use nspool::pool::state::{Afterwards, Order, Rules};
use nspool::pool::{Denied, Lifetime, Pool, Request};
use support::disk::Disk;
use support::world;

fn identity(boot: &str) -> Identity {
    Identity { boot_id: boot.into(), pool: "p".into(), now: Duration::ZERO, engine: String::new() }
}

fn open(disk: &Disk, boot: &str) -> (Arc<Ledger>, Replayed) {
    Ledger::on(Box::new(disk.clone()), &identity(boot)).unwrap()
}

fn ready(slot: u32) -> Record {
    let namespace = Some(Namespace { namespace_id: format!("n{slot}"), ..Namespace::default() });
    Record::Ready(Ready { slot, generation: 1, use_number: 1, network: "bridge".into(), namespace })
}

fn large(slot: u32) -> Record {
    let namespace = Some(Namespace { resolv_conf: "x".repeat(10_000), ..Namespace::default() });
    Record::Ready(Ready { slot, generation: 1, use_number: 1, network: "bridge".into(), namespace })
}

fn leased(slot: u32) -> Record {
    let token = [[0; 12].as_slice(), &slot.to_be_bytes()].concat();
    Record::Leased(Leased { token, slot, generation: 1, use_number: 1, ..Leased::default() })
}

fn put(ledger: &Ledger, record: Record) -> Result<(), WriteError> {
    ledger.stage(&mut frame(record));
    ledger.flush()
}

#[test]
fn what_was_flushed_is_there_on_this_boot_and_on_no_other() {
    let disk = Disk::default();
    let (ledger, replayed) = open(&disk, "b1");
    assert_eq!(replayed.found, Found::Nothing);
    let incarnation = replayed.table.began.unwrap().incarnation;
    put(&ledger, ready(1)).unwrap();
    put(&ledger, leased(1)).unwrap();
    let (_, replayed) = open(&disk, "b1");
    assert_eq!(replayed.found, Found::Whole { torn: 0, unread: 0 });
    assert_eq!((replayed.table.leases.len(), replayed.table.buddies.len()), (1, 1));
    assert_eq!(replayed.table.began.unwrap().incarnation, incarnation);
    let (_, replayed) = open(&disk, "b2");
    assert_eq!((replayed.found, replayed.table.leases.len()), (Found::Nothing, 0));
    assert_ne!(replayed.table.began.unwrap().incarnation, incarnation);
    let other = Identity { boot_id: "b2".into(), pool: "other".into(), now: Duration::ZERO, engine: String::new() };
    assert_eq!(Ledger::on(Box::new(disk), &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_torn_tail_is_cut_off_and_a_broken_middle_is_reported() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    for slot in 0..3 {
        put(&ledger, ready(slot)).unwrap();
    }
    let length = disk.bytes().len();
    disk.change(|bytes| bytes.truncate(length - 1));
    let (_, replayed) = open(&disk, "b");
    assert!(matches!(replayed.found, Found::Whole { torn, .. } if torn > 0), "{:?}", replayed.found);
    assert_eq!(replayed.table.buddies.keys().copied().collect::<Vec<_>>(), [0, 1]);
    disk.change(|bytes| bytes[length / 2] ^= 1);
    let (_, replayed) = open(&disk, "b");
    assert!(matches!(&replayed.found, Found::Broken { bytes, aside } if *bytes > 0 && aside == "aside"), "{:?}", replayed.found);
    // Mended: the next one finds nothing wrong.
    assert_eq!(open(&disk, "b").1.found, Found::Whole { torn: 0, unread: 0 });
}

#[test]
fn a_full_disk_takes_releases_and_no_grants_and_forgets_nothing() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    ledger.stage(&mut frame(ready(1)));
    ledger.flush_grant().unwrap();
    disk.set_room(Some(0));
    let mut records = 0;
    while ledger.flush_grant().is_ok() {
        put(&ledger, large(7)).unwrap();
        records += 1;
    }
    assert!(records > 0 && ledger.failure().is_some());
    // What is reserved is for releases.
    put(&ledger, Record::Out(Out { slot: 1, generation: 1 })).unwrap();
    assert!(ledger.failure().is_some(), "no grant could be recorded still");
    while put(&ledger, large(7)).is_ok() {}
    assert!(ledger.failure().is_some());
    let copy = Disk::default();
    copy.change(|bytes| *bytes = disk.bytes());
    assert_eq!(open(&copy, "b").1.found, Found::Whole { torn: 0, unread: 0 }, "half a batch stays");
    put(&ledger, ready(2)).unwrap_err();
    disk.set_room(None);
    put(&ledger, ready(3)).unwrap();
    assert!(ledger.failure().is_none());
    assert_eq!(open(&disk, "b").1.table.buddies.keys().copied().collect::<Vec<_>>(), [2, 3, 7]);
}

#[test]
fn compaction_keeps_what_stands_and_what_comes_meanwhile() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    for round in 0..2000 {
        put(&ledger, ready(round % 4)).unwrap();
    }
    put(&ledger, leased(2)).unwrap();
    let before = ledger.length();
    ledger.compact(0, 10).unwrap();
    assert!(ledger.length() * 100 < before, "{} of {before}", ledger.length());
    put(&ledger, ready(9)).unwrap();
    let (_, replayed) = open(&disk, "b");
    assert_eq!(replayed.table.buddies.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 9]);
    assert_eq!(replayed.table.leases.len(), 1);
}

#[test]
fn writers_that_come_together_lose_nothing() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let ledger = &ledger;
            scope.spawn(move || (0..500).for_each(|n| put(ledger, ready(writer * 500 + n)).unwrap()));
        }
        scope.spawn(|| (0..20).for_each(|_| ledger.compact(0, 10).unwrap()));
    });
    assert_eq!(open(&disk, "b").1.table.buddies.len(), 2000);
}

fn rules() -> Rules {
    Rules {
        networks: 1,
        ready: 0,
        max: 0,
        afterwards: [Afterwards::Retire].into(),
        keep_tenants: false,
        linger: Duration::from_secs(10),
        max_detached: 1,
        max_waiting: 10,
        quota_per_uid: None,
        remember: Duration::from_secs(600),
        remember_max: 100,
        trim_after: Duration::from_secs(30),
    }
}

fn request() -> Request {
    Request {
        uid: 0,
        owner: "agent".into(),
        tenant: String::new(),
        request_id: None,
        network: None,
        lifetime: Lifetime::Ttl(Duration::from_secs(3600)),
        labels: BTreeMap::new(),
    }
}

/// With two slots that are ready.
fn pool(disk: &Disk) -> Arc<Pool> {
    let (ledger, _) = open(disk, "b");
    let pool = Pool::recorded(rules(), 1, 16, world::real(), Some((ledger, ["bridge".to_owned()].into())));
    pool.with(|state, now| {
        state.set_engine_up(true);
        state.resize(now, 2, 2).unwrap();
        for slot in 0..2 {
            let Order::Fill { generation } = state.order(slot) else { panic!("slot {slot} is not filled") };
            state.registered(now, slot, generation, world::namespace(slot, generation, 1));
        }
    });
    pool
}

#[tokio::test]
async fn nothing_is_handed_out_that_cannot_be_recorded() {
    let disk = Disk::default();
    let pool = pool(&disk);
    let first = pool.allocate(request(), Duration::ZERO).await.unwrap().lease;
    disk.fill();
    let denied = pool.allocate(request(), Duration::ZERO).await.unwrap_err();
    assert!(matches!(denied, Denied::NotRecorded { .. }), "{denied:?}");
    let usage = pool.read(|state| state.usage());
    assert_eq!((usage.ready, usage.leased), (1, 1), "the slot is as ready as before");
    pool.with(|state, now| state.release(now, first.token, false)).unwrap();
    disk.set_room(None);
    let second = pool.allocate(request(), Duration::ZERO).await.unwrap().lease;
    let (_, Replayed { table, found }) = open(&disk, "b");
    assert_eq!(found, Found::Whole { torn: 0, unread: 0 });
    assert_eq!(table.leases.keys().collect::<Vec<_>>(), [&second.token.0.to_vec()]);
    assert_eq!(
        table.ended.iter().map(|ended| &ended.token).collect::<Vec<_>>(),
        [&first.token.0.to_vec()],
        "the release was not forgotten"
    );
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_works_again_is_found_out_without_anybody_asking() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    let stop = tokio_util::sync::CancellationToken::new();
    let mut health = ledger.health();
    disk.fill();
    let (short, ended) = (Arc::clone(&ledger), stop.clone());
    tokio::join!(short.keep_short(|| Duration::ZERO, 10, ended), async {
        put(&ledger, ready(1)).unwrap_err();
        health.wait_for(|words| !words.is_empty()).await.unwrap();
        disk.set_room(None);
        health.wait_for(String::is_empty).await.unwrap();
        stop.cancel();
    });
    assert_eq!(open(&disk, "b").1.table.buddies.len(), 1);
}

#[tokio::test]
async fn an_answered_lease_is_in_the_file_before_the_answer() {
    let disk = Disk::default();
    let pool = pool(&disk);
    for _ in 0..2 {
        let lease = pool.allocate(request(), Duration::ZERO).await.unwrap().lease;
        // As a daemon would read it that is started now.
        let copy = Disk::default();
        copy.change(|bytes| *bytes = disk.bytes());
        let table = open(&copy, "b").1.table;
        let found = &table.leases[&lease.token.0.to_vec()];
        assert_eq!(found.namespace.as_ref().unwrap().namespace_id, lease.namespace.namespace_id);
        assert_eq!((found.slot, found.generation, found.use_number), (lease.key.slot, lease.key.generation, lease.key.use_number));
    }
}

#[tokio::test]
async fn a_ledger_that_lost_a_record_is_no_reason_to_fall() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    for generation in [1, 2] {
        let namespace = Some(Namespace { container_id: format!("c{generation}"), ..Namespace::default() });
        let network = "bridge".to_owned();
        put(&ledger, Record::Ready(Ready { slot: 3, generation, use_number: 1, network, namespace })).unwrap();
        let request = Some(nspool::ledger::record::Request::default());
        let token = vec![u8::try_from(generation).unwrap(); 16];
        put(&ledger, Record::Leased(Leased { token, slot: 3, generation, use_number: 1, request, ..Leased::default() })).unwrap();
    }
    drop(ledger);
    let (ledger, replayed) = open(&disk, "b");
    let pool = Pool::recorded(rules(), 1, 16, world::real(), Some((ledger, ["bridge".to_owned()].into())));
    let restored = pool.with(|state, now| state.restore(now, replayed.table));
    assert_eq!((restored.leases, restored.buddies), (2, 1));
    pool.read(|state| state.check());
    let lost = pool.read(|state| {
        state.lease_views(None).into_iter().filter(|lease| lease.lost.is_some()).map(|lease| lease.key.generation).collect::<Vec<_>>()
    });
    assert_eq!(lost, [1], "the later buddy's lease stands");
}

#[test]
fn a_buddy_that_a_broken_ledger_told_as_free_is_not_free_for_the_next_start_either() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    put(&ledger, ready(1)).unwrap();
    put(&ledger, ready(2)).unwrap();
    put(&ledger, leased(2)).unwrap();
    let at = disk.bytes().len();
    // The one that is broken lent out slot 1.
    put(&ledger, leased(1)).unwrap();
    put(&ledger, ready(3)).unwrap();
    disk.change(|bytes| bytes[at + 10] ^= 1);
    for start in ["broken", "mended"] {
        let (_, replayed) = open(&disk, "b");
        assert_eq!(matches!(replayed.found, Found::Broken { .. }), start == "broken");
        assert_eq!(replayed.table.buddies.keys().copied().collect::<Vec<_>>(), [2], "{start}");
        assert_eq!(replayed.table.leases.len(), 1, "{start}");
    }
}
