//! A process that is killed -9 before any step of its work on the disk: the next one finds a whole store, and the image in full or not at all.
//!
//! The process is this test binary once more, told by its environment what to do and when to die. Another writer is alive all the while.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nspool::image::store::{Expected, Options, Step, Steps, Store};
use rustix::process::{Signal, getpid, kill_process};

use super::images::{Image, assert_sound, assert_whole, in_memory, layer, name, open, spawned};

const ROOT: &str = "NSPOOL_TEST_STORE";
const WORK: &str = "NSPOOL_TEST_STORE_WORK";
const DIES_AT: &str = "NSPOOL_TEST_STORE_DIES_AT";

/// Kills the process before this step, counted from 1.
#[derive(Debug)]
struct Death {
    at: u32,
    steps: AtomicU32,
}

impl Steps for Death {
    fn before(&self, _: Step<'_>) -> io::Result<()> {
        if self.steps.fetch_add(1, Ordering::Relaxed) + 1 == self.at {
            kill_process(getpid(), Signal::KILL)?;
        }
        Ok(())
    }
}

/// The test binary once more, doing one of the works below.
pub fn child(root: &Path, work: &str, dies_at: u32) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "store::crashes::work", "--ignored", "--quiet"])
        .envs([(WORK, work), (ROOT, root.to_str().unwrap()), (DIES_AT, &dies_at.to_string())])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    spawned(&mut command)
}

fn first() -> Image {
    Image::new(&[1, 2], 3000)
}

/// Shares a layer with the first, and has one that takes more than one write.
fn second() -> Image {
    Image::of(vec![layer(1, 3000), layer(3, 1_100_000), layer(4, 3000)])
}

/// Shares a layer with the first.
fn small() -> Image {
    Image::new(&[1, 3], 3000)
}

#[test]
#[ignore = "the work of a process that others start"]
fn work() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let at = std::env::var(DIES_AT).unwrap().parse().unwrap();
    let options = Options { steps: Some(Arc::new(Death { at, steps: AtomicU32::new(0) })), ..Options::default() };
    let store = Store::open(root.as_ref(), options).unwrap();
    let work = std::env::var(WORK).unwrap();
    match work.split_once(' ').map_or((&*work, ""), |(verb, rest)| (verb, rest)) {
        ("begin", _) => drop(store.import_tar(&*first().saved(&["a/first:1"]), None).unwrap()),
        ("import", _) => drop(store.import_tar(&*second().saved(&["a/second:1", "a/moves:1"]), None).unwrap()),
        ("remove", _) => {
            assert!(store.remove(&name("a/first:1")).unwrap() && store.remove(&name("a/moves:1")).unwrap());
            store.sweep().unwrap();
        }
        ("write", seed) => super::writers::write(&store, seed.parse().unwrap()),
        (other, _) => panic!("{other}"),
    }
}

/// Kills a child before each of its steps in turn, each time on a store made anew; answers how many steps there were.
fn at_every_step(work: &str, prepare: impl Fn(&Path), check: impl Fn(&Store)) -> u32 {
    for at in 1.. {
        let dir = in_memory();
        let root = dir.path().join("images");
        prepare(&root);
        // A live writer, older than the one that dies.
        let alive = root.exists().then(|| {
            let staging = open(&root).stage().unwrap();
            let mut blob = staging.blob("alive", Expected::default()).unwrap();
            blob.write(b"half").unwrap();
            (staging, blob)
        });
        let status = child(&root, work, at).wait().unwrap();
        let store = open(&root);
        assert_sound(&store, usize::from(alive.is_some()));
        check(&store);
        if let Some((staging, mut blob)) = alive {
            blob.write(b" and half").unwrap();
            let written = blob.finish().unwrap();
            assert!(staging.adopt(&written.digest).unwrap(), "step {at}: what a live writer has is left alone");
        }
        // What it left is garbage at most, and the work can be done again.
        store.sweep().unwrap();
        assert_sound(&store, 0);
        if status.success() {
            return at - 1;
        }
        assert_eq!(status.signal(), Some(9), "step {at}: {status}");
        if at % 8 == 0 && work != "remove" {
            assert!(child(&root, work, 0).wait().unwrap().success());
            assert_sound(&store, 0);
        }
    }
    unreachable!()
}

fn with_first(root: &Path) {
    open(root).import_tar(&*first().saved(&["a/first:1", "a/moves:1"]), None).unwrap();
}

#[test]
fn a_death_at_any_step_of_an_import_leaves_all_of_the_image_or_nothing() {
    let whole = AtomicU32::new(0);
    let steps = at_every_step("import", with_first, |store| {
        assert_whole(store, "a/first:1", &first());
        match store.image("a/second:1").unwrap() {
            None => assert_whole(store, "a/moves:1", &first()),
            Some(_) => {
                whole.fetch_add(1, Ordering::Relaxed);
                assert_whole(store, "a/second:1", &second());
                assert_whole(store, "a/moves:1", &second());
            }
        }
    });
    // It is not there for long, and there is more to come after it is: the sync, and the cleaning up.
    let whole = whole.into_inner();
    assert!(steps > 50 && whole > 3 && whole < steps / 2, "{steps} steps, there at {whole} of them");
}

#[test]
fn a_death_at_any_step_of_the_first_opening_leaves_a_store_or_the_beginning_of_one() {
    let steps = at_every_step(
        "begin",
        |_| {},
        |store| {
            if store.image("a/first:1").unwrap().is_some() {
                assert_whole(store, "a/first:1", &first());
            }
        },
    );
    assert!(steps > 50, "{steps}");
}

#[test]
fn a_death_at_any_step_of_a_removal_and_a_sweep_leaves_what_others_need() {
    let both = |root: &Path| {
        with_first(root);
        open(root).import_tar(&*small().saved(&["a/second:1"]), None).unwrap();
    };
    let steps = at_every_step("remove", both, |store| {
        assert_whole(store, "a/second:1", &small());
        for name in ["a/first:1", "a/moves:1"] {
            if store.image(name).unwrap().is_some() {
                assert_whole(store, name, &first());
            }
        }
    });
    assert!(steps > 15, "{steps}");
}
