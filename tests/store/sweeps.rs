//! What a sweep takes, and what it leaves alone: looked at between any two steps of a writer.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nspool::image::store::{Digest, Options, Step, Steps, Swept};

use super::images::{Image, assert_sound, assert_whole, name, open, open_with};
use super::writers::files;

#[test]
fn what_no_image_needs_goes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blobs = || files(&dir.path().join("blobs/sha256"));
    let (one, other) = (Image::new(&[1, 2], 2000), Image::new(&[1, 3], 2000));
    store.import_tar(&*one.saved(&["a/one:1", "a/uno:1"]), None).unwrap();
    store.import_tar(&*other.saved(&["a/other:1"]), None).unwrap();
    assert_eq!((store.sweep().unwrap(), blobs()), (Swept::default(), 7));
    assert!(store.remove(&name("a/one:1")).unwrap());
    assert!(!store.remove(&name("a/one:1")).unwrap());
    assert_eq!((store.sweep().unwrap(), blobs()), (Swept::default(), 7), "it has another name");
    assert!(store.remove(&name("a/uno:1")).unwrap());
    // What a writer counts on stays, though nothing names it.
    let staging = store.stage().unwrap();
    assert!(staging.adopt(&Digest::of(&one.layers[1])).unwrap());
    let swept = store.sweep().unwrap();
    assert_eq!((swept.blobs, blobs()), (2, 5), "the manifest and the config");
    drop(staging);
    let swept = store.sweep().unwrap();
    assert_eq!((swept, blobs()), (Swept { blobs: 1, bytes: one.layers[1].len() as u64 }, 4));
    assert_whole(&store, "a/other:1", &other);
    assert_sound(&store, 0);
}

/// An image that is being read can be removed and swept.
#[test]
fn an_export_keeps_what_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = Image::new(&[1, 2], 3_000_000);
    let stored = store.import_tar(&*image.saved(&["a/fn:1"]), None).unwrap();
    let export = store.export(&stored[0], &["a/fn:1".into()]).unwrap();
    assert!(store.remove(&name("a/fn:1")).unwrap());
    assert_eq!(store.sweep().unwrap().blobs, 4);
    store.import_tar(export, None).unwrap();
    assert_whole(&store, "a/fn:1", &image);
}

/// Something that nobody here understands may need anything.
#[test]
fn a_foreign_entry_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.import_tar(&*Image::new(&[1], 10).saved(&["a/fn:1"]), None).unwrap();
    let path = dir.path().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let foreign =
        serde_json::json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": index["manifests"][0]["digest"], "size": 1});
    index["manifests"].as_array_mut().unwrap().push(foreign.clone());
    index["kept"] = "as it is".into();
    std::fs::write(&path, index.to_string()).unwrap();
    assert!(store.remove(&name("a/fn:1")).unwrap());
    assert!(store.sweep().is_err());
    assert_eq!(files(&dir.path().join("blobs/sha256")), 3);
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&index["manifests"], &index["kept"]), (&serde_json::json!([foreign]), &"as it is".into()));
}

/// Sweeps the store before each step of a writer; from its first look into the store on, the image that it looked at has no name any more.
#[derive(Debug)]
struct Sweeper {
    root: PathBuf,
    looked: AtomicBool,
    swept: AtomicU64,
}

impl Steps for Sweeper {
    fn before(&self, step: Step<'_>) -> io::Result<()> {
        // Beneath the writer's lock nobody sweeps.
        let lock = std::fs::OpenOptions::new().create(true).append(true).open(self.root.join("lock"))?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok() {
            drop(lock);
            let store = open(&self.root);
            if self.looked.load(Ordering::Relaxed) {
                store.remove(&name("a/first:1")).unwrap();
            }
            self.swept.fetch_add(store.sweep().unwrap().blobs, Ordering::Relaxed);
        }
        if matches!(step, Step::Link { from, .. } if from.starts_with(self.root.join("blobs")) && from.exists()) {
            self.looked.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn a_sweep_between_any_two_steps_of_a_writer_takes_nothing_of_its_image() {
    // The first image becomes garbage while the second comes, which needs a layer of it: brought along, or taken from the store.
    let (first, second) = (Image::new(&[1, 2], 2000), Image::new(&[1, 3], 2000));
    for is_adopted in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let plain = open(dir.path());
        plain.import_tar(&*first.saved(&["a/first:1"]), None).unwrap();
        let sweeper = Arc::new(Sweeper { root: dir.path().into(), looked: AtomicBool::new(false), swept: AtomicU64::new(0) });
        let store = open_with(dir.path(), Options { steps: Some(sweeper.clone()), ..Options::default() });
        if is_adopted {
            let layout = tempfile::tempdir().unwrap();
            second.layout(layout.path(), Some("a/second:1"), false);
            std::fs::remove_file(layout.path().join("blobs/sha256").join(Digest::of(&first.layers[0]).hex())).unwrap();
            store.import_folder(layout.path(), None).unwrap();
        } else {
            store.import_tar(&*second.saved(&["a/second:1"]), None).unwrap();
        }
        assert_whole(&plain, "a/second:1", &second);
        assert_eq!(plain.images().unwrap().len(), 1);
        // The first one's manifest, config, and the layer that is only its.
        assert_eq!(sweeper.swept.load(Ordering::Relaxed), 3, "{sweeper:?}");
        assert_sound(&plain, 0);
    }
}
