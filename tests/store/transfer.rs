//! Engines are loaded from the store, and only when they have to be.

use std::io::Read;
use std::sync::Arc;

use nspool::engine::fake::{FakeWorld, Fault, Operation};
use nspool::engine::{Engine, ErrorClass, ImageArchive};
use nspool::image::store::{Digest, Store};
use nspool::image::transfer::{self, How, TransferError};

use super::images::{Image, assert_sound, name, open};

struct Host {
    dir: tempfile::TempDir,
    store: Store,
    world: Arc<FakeWorld>,
    engine: Arc<dyn Engine>,
}

impl Host {
    fn new(image: &Image, names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        store.import_tar(&*image.saved(names), None).unwrap();
        let world = FakeWorld::new(1);
        Self { engine: world.engine(), dir, store, world }
    }

    async fn ensure(&self, reference: &str) -> Result<transfer::Ensured, TransferError> {
        transfer::ensure_loaded(&*self.engine, &self.store, &name(reference)).await
    }
}

#[tokio::test]
async fn an_engine_is_loaded_once_and_again_when_it_was_wiped() {
    let image = Image::new(&[1, 2], 1_000_000);
    let host = Host::new(&image, &["a/fn:1", "a/fn:2"]);
    let first = host.ensure("a/fn:1").await.unwrap();
    assert_eq!((first.id.as_str(), first.how), (image.id().as_str(), How::Loaded));
    let asked = host.world.count(Operation::Image);
    let again = host.ensure("a/fn:1").await.unwrap();
    assert_eq!((&again.id, again.how, host.world.count(Operation::Image)), (&first.id, How::Present, asked + 1), "one question");
    let other_name = host.ensure("a/fn:2").await.unwrap();
    assert_eq!((&other_name.id, other_name.how), (&first.id, How::Named));
    assert_eq!(host.engine.image_id("a/fn:2").await.unwrap().as_ref(), Some(&first.id));
    assert_eq!((host.world.count(Operation::LoadImage), host.world.count(Operation::TagImage)), (1, 1));
    host.world.image_removed(first.id.as_str());
    assert_eq!(host.ensure("a/fn:2").await.unwrap().how, How::Loaded);
    assert_eq!((host.world.count(Operation::LoadImage), host.world.count(Operation::PullImage)), (2, 0));
}

#[tokio::test]
async fn what_cannot_be_loaded_says_whose_fault_it_is() {
    let image = Image::new(&[1], 10);
    let host = Host::new(&image, &["a/fn:1"]);
    assert!(matches!(host.ensure("a/other:1").await, Err(TransferError::NotStored(reference)) if reference.as_str() == "a/other:1"));
    host.world.script(Operation::LoadImage, Fault::Error(ErrorClass::DiskFull, "no space left on device".into()));
    assert!(matches!(host.ensure("a/fn:1").await, Err(TransferError::Engine(error)) if error.class == ErrorClass::DiskFull));
    // Done, says the engine, and it was not.
    host.world.on_call({
        let world = Arc::downgrade(&host.world);
        move |call| {
            if call.operation == Operation::LoadImage {
                world.upgrade().unwrap().image_removed("a/fn:1");
            }
        }
    });
    assert!(matches!(host.ensure("a/fn:1").await, Err(TransferError::NotThere(_))));
    let layer = host.dir.path().join("blobs/sha256").join(Digest::of(&image.layers[0]).hex());
    std::fs::remove_file(layer).unwrap();
    assert!(matches!(host.ensure("a/fn:1").await, Err(TransferError::Store(_))));
}

/// It is cut off, not taken for the whole.
#[tokio::test]
async fn an_archive_that_breaks_off_is_no_image() {
    let image = Image::new(&[1], 600_000);
    let host = Host::new(&image, &["a/fn:1"]);
    let stored = host.store.image("a/fn:1").unwrap().unwrap();
    let mut bytes = Vec::new();
    host.store.export(&stored, &["a/fn:1".into()]).unwrap().read_to_end(&mut bytes).unwrap();
    let pieces = [Ok(bytes[..5000].to_vec().into()), Err(std::io::Error::other("the disk is gone"))];
    let error = host.engine.load_image(ImageArchive::Chunks(Box::pin(futures::stream::iter(pieces)))).await.unwrap_err();
    assert!(error.class == ErrorClass::Unknown && error.message.contains("the disk is gone"), "{error:?}");
    // A layer that is cut off under way.
    let layer = host.dir.path().join("blobs/sha256").join(Digest::of(&image.layers[0]).hex());
    let mut export = host.store.export(&stored, &[]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&layer).unwrap().set_len(1000).unwrap();
    let error = export.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("became shorter while it was read"), "{error}");
    // Before it begins, that is seen at once.
    assert!(matches!(host.ensure("a/fn:1").await, Err(TransferError::Store(_))));
}

#[tokio::test]
async fn what_an_engine_has_comes_into_the_store() {
    let image = Image::new(&[1, 2], 700_000);
    let host = Host::new(&Image::new(&[3], 10), &["a/other:1"]);
    host.engine.load_image(image.saved(&["b/built:1"]).into()).await.unwrap();
    let stored = transfer::save(&*host.engine, &host.store, "b/built:1").await.unwrap();
    assert_eq!((&stored[0].id, &*stored[0].names), (&image.id(), &["b/built:1".to_owned()][..]));
    assert_eq!(host.store.images().unwrap().len(), 2);
    let missing = transfer::save(&*host.engine, &host.store, "b/missing:1").await;
    assert!(matches!(missing, Err(TransferError::Engine(error)) if error.class == ErrorClass::NotFound));
    assert_sound(&host.store, 0);
}
