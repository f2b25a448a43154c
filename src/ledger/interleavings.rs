//! The ledger's group flush, its compaction and its second tries, with the threads in between each other in every order that the checker
//! finds.

pub(crate) mod disk;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shuttle::future::block_on;
use shuttle::thread;
use tokio_util::sync::CancellationToken;

use super::record::{Ready, Record};
use super::{Identity, Ledger, Table, frame};
use crate::sync::checked::check;
use disk::Disk;

/// A ledger, and who makes the order.
struct Desk {
    ledger: Arc<Ledger>,
    disk: Disk,
    /// What was staged, in order: as under the pool's lock.
    staged: crate::sync::Mutex<Vec<u32>>,
}

impl Desk {
    fn new(one_fails_of: u32) -> Arc<Self> {
        let disk = Disk::default();
        let identity = Identity { boot_id: "b".into(), pool: "p".into(), now: Duration::ZERO, engine: String::new() };
        let (ledger, _) = Ledger::on(Box::new(disk.clone()), &identity).unwrap();
        disk.fail_one_of(one_fails_of);
        Arc::new(Self { ledger, disk, staged: crate::sync::Mutex::new(Vec::new()) })
    }

    fn stage(&self, number: u32) {
        let mut staged = self.staged.lock();
        self.ledger.stage(&mut frame(record(number)));
        staged.push(number);
    }

    /// What a daemon would find that started now.
    fn written(&self) -> Vec<u32> {
        let scanned = super::scan(&self.disk.bytes());
        let slot = |record: Record| if let Record::Ready(ready) = record { Some(ready.slot) } else { None };
        scanned.records.into_iter().filter_map(slot).collect()
    }

    /// A write that comes back well has written what was staged before.
    fn put(&self, number: u32) -> bool {
        self.stage(number);
        let well = if number.is_multiple_of(2) { self.ledger.flush() } else { self.ledger.flush_grant() }.is_ok();
        assert!(!well || self.written().contains(&number), "record {number} was said to be written");
        well
    }
}

fn ready(number: u32) -> Ready {
    Ready { slot: number, generation: 1, use_number: 1, ..Ready::default() }
}

fn record(number: u32) -> Record {
    Record::Ready(ready(number))
}

/// Three writers, two records each; answers how many were told that all is well.
fn write_together(desk: &Arc<Desk>) -> usize {
    let writer = |first: u32| {
        let desk = Arc::clone(desk);
        thread::spawn(move || (first..first + 2).filter(|number| desk.put(*number)).count())
    };
    let writers = [writer(0), writer(10), writer(20)];
    writers.into_iter().map(|writer| writer.join().unwrap()).sum()
}

#[test]
fn who_is_told_that_it_is_written_finds_it_written_and_in_order() {
    check(|| {
        let desk = Desk::new(0);
        assert_eq!(write_together(&desk), 6);
        assert_eq!(desk.written(), *desk.staged.lock());
    });
}

#[test]
fn what_failed_goes_before_what_comes_later_and_nobody_waits_for_ever() {
    check(|| {
        let desk = Desk::new(3);
        write_together(&desk);
        desk.disk.fail_one_of(0);
        desk.ledger.flush_grant().unwrap();
        assert_eq!(desk.written(), *desk.staged.lock());
        assert!(desk.ledger.failure().is_none() && desk.ledger.health().borrow().is_empty());
    });
}

#[test]
fn a_compaction_between_writers_loses_nothing() {
    check(|| {
        let desk = Desk::new(4);
        let compactor = Arc::clone(&desk);
        let compactor = thread::spawn(move || (0..2).for_each(|_| compactor.ledger.compact(0, 10).unwrap()));
        write_together(&desk);
        compactor.join().unwrap();
        desk.disk.fail_one_of(0);
        desk.ledger.flush().unwrap();
        let mut expected = desk.staged.lock().clone();
        expected.sort_unstable();
        let slots: Vec<u32> = Table::read(&desk.disk.bytes()).buddies.into_keys().collect();
        assert_eq!(slots, expected);
    });
}

/// Begins the ledger anew with all that was staged, under the lock that makes the order, as the pool does it.
fn rewrite(desk: &Desk) {
    let staged = desk.staged.lock();
    let buddies = staged.iter().map(|number| (*number, ready(*number)));
    desk.ledger.rewrite(Table { buddies: buddies.collect(), ..Table::default() }).unwrap();
}

#[test]
fn a_ledger_begun_anew_between_writers_has_each_record_once() {
    check(|| {
        let desk = Desk::new(0);
        let repair = Arc::clone(&desk);
        let repair = thread::spawn(move || rewrite(&repair));
        assert_eq!(write_together(&desk), 6);
        repair.join().unwrap();
        let (mut written, mut expected) = (desk.written(), desk.staged.lock().clone());
        written.sort_unstable();
        expected.sort_unstable();
        assert_eq!(written, expected);
    });
}

#[test]
fn a_ledger_begun_anew_during_a_compaction_stays_as_it_was_begun() {
    check(|| {
        let desk = Desk::new(0);
        // Much of which a ledger that is begun anew has nothing.
        for _ in 0..3 {
            desk.ledger.stage(&mut frame(record(99)));
        }
        desk.ledger.flush().unwrap();
        let (repair, compactor) = (Arc::clone(&desk), Arc::clone(&desk));
        let repair = thread::spawn(move || rewrite(&repair));
        let compactor = thread::spawn(move || compactor.ledger.compact(0, 10).unwrap());
        assert!(desk.put(0) && desk.put(1));
        repair.join().unwrap();
        compactor.join().unwrap();
        assert_eq!(desk.written(), *desk.staged.lock());
        assert_eq!(desk.ledger.length(), desk.disk.bytes().len() as u64);
    });
}

#[test]
fn what_cannot_be_written_is_tried_again_though_nobody_else_comes() {
    check(|| {
        let desk = Desk::new(0);
        let stop = CancellationToken::new();
        let keeper = Arc::clone(&desk.ledger).keep_short(|| Duration::ZERO, 10, stop.clone());
        let keeper = thread::spawn(move || block_on(keeper));
        let writer = Arc::clone(&desk);
        let writer = thread::spawn(move || {
            writer.disk.fail_one_of(1);
            writer.put(0);
            writer.disk.fail_one_of(0);
        });
        writer.join().unwrap();
        block_on(async { desk.ledger.health().wait_for(String::is_empty).await.map(drop) }).unwrap();
        assert_eq!(desk.written(), [0]);
        stop.cancel();
        keeper.join().unwrap();
    });
}

#[test]
fn the_level_says_what_the_last_write_came_to() {
    check(|| {
        let desk = Desk::new(2);
        let seen = Arc::new(Mutex::new(0));
        let (watcher, changes) = (Arc::clone(&desk), Arc::clone(&seen));
        let stop = CancellationToken::new();
        let until = stop.clone();
        let watcher = thread::spawn(move || {
            let mut health = watcher.ledger.health();
            block_on(async {
                while let Some(Ok(())) = until.run_until_cancelled(health.changed()).await {
                    *changes.lock() += 1;
                }
            });
            health.borrow().clone()
        });
        write_together(&desk);
        let level = desk.ledger.failure().map(|failure| failure.0).unwrap_or_default();
        stop.cancel();
        assert_eq!(watcher.join().unwrap(), level);
    });
}
