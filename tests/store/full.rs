//! A disk that is full, really, and one that fails at any step.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nspool::image::store::{Options, Step, Steps, Store, StoreError};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::images::{Image, assert_sound, assert_whole, in_memory, name, open};

/// A file system of a few megabytes.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Self {
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(c"size=8m")).expect("root mounts a file system in memory");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_the_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Small::mount(dir.path());
    let store = open(&disk.0.join("images"));
    let (here, large, small) = (Image::new(&[1], 1 << 20), Image::new(&[2, 3, 4], 4 << 20), Image::new(&[5], 5 << 20));
    store.import_tar(&*here.saved(&["a/here:1"]), None).unwrap();
    for _ in 0..3 {
        let error = store.import_tar(&*large.saved(&["a/large:1"]), None).unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }) && error.to_string().contains("no space left in the image store"), "{error}");
        assert_sound(&store, 0);
        assert_whole_in_place(&store, &here);
    }
    // What was written of the large one is gone.
    store.import_tar(&*small.saved(&["a/small:1"]), None).unwrap();
    assert!(store.import_tar(&*Image::new(&[6], 2 << 20).saved(&["a/more:1"]), None).is_err());
    // To remove something takes no more room than there is: a folder and an index.
    assert!(store.remove(&name("a/small:1")).unwrap());
    assert!(store.sweep().unwrap().bytes > 5 << 20);
    store.import_tar(&*Image::new(&[6], 2 << 20).saved(&["a/more:1"]), None).unwrap();
    assert_sound(&store, 0);
}

fn assert_whole_in_place(store: &Store, image: &Image) {
    assert_eq!(store.images().unwrap().iter().map(|image| image.id.clone()).collect::<Vec<_>>(), [image.id()]);
}

/// Fails one step.
#[derive(Debug)]
struct Failing {
    at: u32,
    with: rustix::io::Errno,
    steps: AtomicU32,
}

impl Steps for Failing {
    fn before(&self, _: Step<'_>) -> io::Result<()> {
        if self.steps.fetch_add(1, Ordering::Relaxed) + 1 == self.at { Err(self.with.into()) } else { Ok(()) }
    }
}

#[test]
fn a_disk_that_fails_at_any_step_leaves_a_store_that_verifies() {
    let (first, second) = (Image::new(&[1, 2], 2000), Image::new(&[1, 3], 2000));
    for with in [rustix::io::Errno::NOSPC, rustix::io::Errno::IO] {
        let mut failed = 0;
        for at in 1.. {
            let dir = in_memory();
            open(dir.path()).import_tar(&*first.saved(&["a/first:1", "a/moves:1"]), None).unwrap();
            let steps = Arc::new(Failing { at, with, steps: AtomicU32::new(0) });
            let work = || -> Result<(), StoreError> {
                let store = Store::open(dir.path(), Options { steps: Some(steps.clone()), ..Options::default() })?;
                store.import_tar(&*second.saved(&["a/second:1", "a/moves:1"]), None)?;
                store.remove(&name("a/first:1"))?;
                store.sweep().map(drop)
            };
            let done = work();
            if let Err(error) = &done {
                failed += 1;
                let is_named = matches!(error, StoreError::Full { .. }) == (with == rustix::io::Errno::NOSPC);
                assert!(is_named && matches!(error, StoreError::Full { .. } | StoreError::Io { .. }), "step {at}: {error:?}");
            }
            let store = open(dir.path());
            assert_sound(&store, 0);
            match store.image("a/second:1").unwrap() {
                Some(_) => ["a/second:1", "a/moves:1"].iter().for_each(|name| assert_whole(&store, name, &second)),
                None => ["a/first:1", "a/moves:1"].iter().for_each(|name| assert_whole(&store, name, &first)),
            }
            if steps.steps.load(Ordering::Relaxed) < at {
                done.unwrap();
                break;
            }
        }
        // Some are of no account: what cannot be removed is removed by the next.
        assert!(failed > 30, "{failed}");
    }
}
