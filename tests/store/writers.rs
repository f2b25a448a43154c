//! Many at once: threads and processes write, sweep and read one store.

use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nspool::image::store::{Options, Step, Steps, Store};

use super::crashes::child;
use super::images::{Image, assert_sound, assert_whole, name, open, open_with, spawned};

const IMAGES: u64 = 12;

fn image(seed: u64, number: u64) -> Image {
    // All share the first layer; each has one that nobody else has.
    Image::new(&[0, 1000 * (seed + 1) + number], 40_000)
}

fn named(seed: u64, number: u64) -> String {
    format!("w{seed}/fn:{number}")
}

/// A writer's work: its own images, one after the other, and a name that all want.
pub fn write(store: &Store, seed: u64) {
    for number in 0..IMAGES {
        store.import_tar(&*image(seed, number).saved(&[&named(seed, number), "all/want:1"]), None).unwrap();
    }
}

fn assert_written(store: &Store, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        for number in 0..IMAGES {
            assert_whole(store, &named(seed, number), &image(seed, number));
        }
    }
    assert!(store.image("all/want:1").unwrap().is_some());
    let wanting = store.images().unwrap().iter().filter(|image| image.names.iter().any(|name| name == "all/want:1")).count();
    assert_eq!(wanting, 1);
    assert_sound(store, 0);
}

#[test]
fn what_is_staged_for_one_reference_is_staged_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, wanted) = (open(dir.path()), name("reg:5000/a:1"));
    let first = store.stage_for(&wanted).unwrap().unwrap();
    // Another process.
    let other = open(dir.path());
    assert!(other.stage_for(&wanted).unwrap().is_none());
    assert!(other.stage_for(&name("reg:5000/a:2")).unwrap().is_some());
    let mut blob = first.blob("it", Default::default()).unwrap();
    drop(first);
    assert!(other.stage_for(&wanted).unwrap().is_none(), "a blob of it is still being written");
    blob.write_all_of(&b"it"[..]).unwrap();
    drop(blob);
    let second = other.stage_for(&wanted).unwrap().unwrap();
    let folder = std::fs::read_dir(dir.path().join("staging")).unwrap().next().unwrap().unwrap().path();
    drop(second);
    std::fs::create_dir(folder).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let third = std::iter::repeat_with(|| store.stage_for(&wanted).unwrap()).take_while(|_| Instant::now() < deadline).flatten().next();
    assert!(third.is_some(), "a dead one's is nobody's");
    drop(third);
    assert_sound(&store, 0);
}

#[test]
fn eight_writers_and_a_sweeper_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (over, most_swept) = (AtomicBool::new(false), Mutex::new(0));
    thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|seed| {
                let store = &store;
                scope.spawn(move || write(store, seed))
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let garbage = Image::new(&[u64::MAX], 100);
                store.import_tar(&*garbage.saved(&["g/garbage:1"]), None).unwrap();
                assert_whole(&store, "g/garbage:1", &garbage);
                assert!(store.remove(&name("g/garbage:1")).unwrap());
                let swept = store.sweep().unwrap();
                let mut most = most_swept.lock().unwrap();
                *most = swept.blobs.max(*most);
                assert_eq!(store.verify().unwrap().faults, []);
            }
        });
        let ended: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(*most_swept.lock().unwrap() > 0);
    assert_written(&store, 0..8);
}

fn ended(children: &mut [Child]) -> bool {
    children.iter_mut().all(|child| child.try_wait().unwrap().is_some_and(|status| status.success() || panic!("{status}")))
}

#[test]
fn three_processes_and_a_sweeper_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // All of them begin it.
    let mut children: Vec<Child> = (0..3).map(|seed| child(dir.path(), &format!("write {seed}"), 0)).collect();
    let limit = Instant::now() + Duration::from_secs(120);
    while !ended(&mut children) {
        assert!(Instant::now() < limit);
        let store = open(dir.path());
        store.sweep().unwrap();
        assert_eq!(store.verify().unwrap().faults, []);
    }
    assert_written(&open(dir.path()), 0..3);
}

/// Lets another writer be faster each time an index is about to be replaced.
#[derive(Debug)]
struct Overtaken {
    root: std::path::PathBuf,
    times: Mutex<u64>,
    seen_under_lock: AtomicBool,
}

impl Steps for Overtaken {
    fn before(&self, step: Step<'_>) -> std::io::Result<()> {
        let Step::SyncFile(path) = step else { return Ok(()) };
        if !path.ends_with("index.json") {
            return Ok(());
        }
        let lock = std::fs::File::open(self.root.join("lock"))?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            self.seen_under_lock.store(true, Ordering::Relaxed);
            return Ok(());
        }
        drop(lock);
        let mut times = self.times.lock().unwrap();
        *times += 1;
        open(&self.root).import_tar(&*Image::new(&[*times], 10).saved(&[&format!("o/t:{times}")]), None).unwrap();
        Ok(())
    }
}

#[test]
fn who_is_overtaken_each_time_comes_through_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let steps = Arc::new(Overtaken { root: dir.path().into(), times: Mutex::new(0), seen_under_lock: AtomicBool::new(false) });
    let slow = open_with(dir.path(), Options { steps: Some(steps.clone()), ..Options::default() });
    let image = Image::new(&[77], 10);
    slow.import_tar(&*image.saved(&["slow/fn:1"]), None).unwrap();
    assert!(steps.seen_under_lock.load(Ordering::Relaxed));
    let times = *steps.times.lock().unwrap();
    assert_eq!(times, 16);
    assert_whole(&slow, "slow/fn:1", &image);
    assert_eq!(slow.images().unwrap().len() as u64, times + 1);
    assert_sound(&slow, 0);
}

/// What takes long is done before: beneath the lock there are renames only, and as many whatever the size.
#[derive(Debug)]
struct UnderLock {
    root: std::path::PathBuf,
    seen: Mutex<Vec<String>>,
}

impl Steps for UnderLock {
    fn before(&self, step: Step<'_>) -> std::io::Result<()> {
        let lock = std::fs::OpenOptions::new().create(true).append(true).open(self.root.join("lock"))?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            let words = format!("{step:?}");
            self.seen.lock().unwrap().push(words.split([' ', '(']).next().unwrap().to_owned());
        }
        Ok(())
    }
}

#[test]
fn beneath_the_lock_are_renames_only_as_many_as_there_are_blobs() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let steps = Arc::new(UnderLock { root: dir.path().into(), seen: Mutex::default() });
    let store = open_with(dir.path(), Options { steps: Some(steps.clone()), ..Options::default() });
    let taken = || std::mem::take(&mut *steps.seen.lock().unwrap());
    for (seeds, bytes, renames) in [([1, 2], 100, 5), ([3, 4], 5_000_000, 5)] {
        store.import_tar(&*Image::new(&seeds, bytes).saved(&["a/fn:1"]), None).unwrap();
        assert_eq!(taken(), vec!["Rename"; renames]);
    }
    // The first image's, which lost its name: a manifest, a config, two layers.
    assert_eq!(store.sweep().unwrap().blobs, 4);
    assert_eq!(taken(), vec!["Rename"; 4]);
}

#[test]
fn how_long_the_lock_is_held_is_measured() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let dir = tempfile::tempdir().unwrap();
    metrics::with_local_recorder(&recorder, || {
        open(dir.path()).import_tar(&*Image::new(&[1], 10).saved(&["a/fn:1"]), None).unwrap();
    });
    let text = handle.render();
    // To begin, to settle, to publish.
    for metric in ["nspool_lock_wait_seconds_count{lock=\"store\"} 3", "nspool_lock_hold_seconds_count{lock=\"store\"} 3"] {
        assert!(text.contains(metric), "{text}");
    }
}

#[test]
fn a_staging_folder_is_dead_when_its_lock_is_free_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let staging = dir.path().join("staging");
    let count = || std::fs::read_dir(&staging).unwrap().count();
    let live = store.stage().unwrap();
    live.put("it", "", b"x").unwrap();
    let dead = |name: &str| {
        std::fs::create_dir(staging.join(name)).unwrap();
        std::fs::write(staging.join(name).join("part-0"), b"half").unwrap();
    };
    dead("left by somebody");
    assert_eq!(count(), 2);
    // Also when it is as old as can be, and the store is another's.
    let mut touch = std::process::Command::new("touch");
    touch.args(["-d", "1980-01-01"]).args(std::fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().path()));
    assert!(spawned(&mut touch).wait().unwrap().success());
    open(dir.path());
    assert_eq!(count(), 1);
    assert!(live.adopt(&nspool::image::store::Digest::of(b"x")).unwrap());
    dead("more");
    store.sweep().unwrap();
    assert_eq!(count(), 1);
    // A blob's writer keeps the folder for as long as it needs it.
    let mut blob = live.blob("it", Default::default()).unwrap();
    drop(live);
    open(dir.path());
    blob.write(b"y").unwrap();
    blob.finish().unwrap();
    assert_eq!(count(), 0);
}

/// Folders that are made and swept at the same time.
#[test]
fn a_folder_that_was_made_a_moment_ago_is_not_taken_for_a_dead_writers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    open(dir.path());
                }
            });
        }
        let mut kept = true;
        let made = (0..2000).try_for_each(|_| -> Result<(), nspool::image::store::StoreError> {
            let staging = store.stage()?;
            let written = staging.put("it", "", b"x")?;
            kept &= staging.adopt(&written.digest)?;
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        made.unwrap();
        assert!(kept);
    });
    assert_sound(&store, 0);
}

pub fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}
