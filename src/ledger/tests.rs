use super::record::{Leased, Namespace, Out, Ready};
use super::*;

/// A disk that fills up.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Bytes>>);

#[derive(Debug, Default)]
struct Bytes {
    bytes: Vec<u8>,
    room: Option<u64>,
    reserved: u64,
}

impl Disk {
    fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }
}

impl Store for Disk {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().bytes.clone())
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let at = usize::try_from(at).unwrap();
        let most = disk.room.map_or(u64::MAX, |room| room.max(disk.reserved));
        let fits = usize::try_from(most).unwrap().saturating_sub(at).min(bytes.len());
        disk.bytes.resize(at, 0);
        disk.bytes.extend_from_slice(&bytes[..fits]);
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.lock().bytes.truncate(usize::try_from(length).unwrap());
        Ok(())
    }
    fn reserve(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        if disk.room.is_some_and(|room| room < length) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.reserved = length;
        Ok(())
    }
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().bytes = bytes.to_vec();
        Ok(())
    }
    fn keep_aside(&mut self) -> io::Result<String> {
        Ok("aside".into())
    }
}

fn identity(boot: &str) -> Identity {
    Identity { boot_id: boot.into(), pool: "p".into() }
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
    assert_eq!(replayed.found, Found::Whole { torn: 0 });
    assert_eq!((replayed.table.leases.len(), replayed.table.buddies.len()), (1, 1));
    assert_eq!(replayed.table.began.unwrap().incarnation, incarnation);
    let (_, replayed) = open(&disk, "b2");
    assert_eq!((replayed.found, replayed.table.leases.len()), (Found::Nothing, 0));
    assert_ne!(replayed.table.began.unwrap().incarnation, incarnation);
    let other = Identity { boot_id: "b2".into(), pool: "other".into() };
    assert_eq!(Ledger::on(Box::new(disk), &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn a_torn_tail_is_cut_off_and_a_broken_middle_is_reported() {
    let disk = Disk::default();
    let (ledger, _) = open(&disk, "b");
    for slot in 0..3 {
        put(&ledger, ready(slot)).unwrap();
    }
    let length = disk.0.lock().bytes.len();
    disk.0.lock().bytes.truncate(length - 1);
    let (_, replayed) = open(&disk, "b");
    assert!(matches!(replayed.found, Found::Whole { torn } if torn > 0), "{:?}", replayed.found);
    assert_eq!(replayed.table.buddies.keys().copied().collect::<Vec<_>>(), [0, 1]);
    disk.0.lock().bytes[length / 2] ^= 1;
    let (_, replayed) = open(&disk, "b");
    assert!(matches!(&replayed.found, Found::Broken { bytes, aside } if *bytes > 0 && aside == "aside"), "{:?}", replayed.found);
    // Mended: the next one finds nothing wrong.
    assert_eq!(open(&disk, "b").1.found, Found::Whole { torn: 0 });
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
    let torn = scan(&disk.0.lock().bytes);
    assert_eq!((torn.end, torn.broken), (disk.0.lock().bytes.len(), 0), "half a batch stays");
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
