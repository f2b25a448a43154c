//! From staging into the store: [`Staging::commit`].
//!
//! # What is done in which order, and why it holds
//! 1. Every file is synced, and gets a second name in the staging folder, by which it will be moved. No lock.
//! 2. Under the lock: each is renamed to `blobs/sha256/<hex>`. Its first name stays, and pins it.
//! 3. The folder of the blobs is synced. No lock.
//! 4. A new `index.json` is made from the present one, written into staging and synced. No lock.
//! 5. Under the lock: if `index.json` is still the one that was read, it is replaced by a rename. If not, another was faster: back to 4. Somebody is
//!    always the fastest; who has lost [`TRIES`] times does 4 under the lock, too.
//! 6. The store's folder is synced, and only then the caller is told.
//!
//! *An index never names what is not there.* What it comes to name was in the staging folder from before 2 until after 5, so no sweep took it
//! (`sweep`), and what the index before it named is named all along. *Not after a power cut, either*: an index gets its name (5) only after all it names has
//! its own for good (1, 3), and after it is itself on the disk (4). *An image is there in full or not at all*: one rename (5) makes it visible.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use super::error::StoreError;
use super::layout::{Config, Descriptor, Digest, INDEX, Index, LONGEST, Manifest, Role};
use super::lock::Held;
use super::staging::{Folder, Staging};
use super::{Store, StoredImage};
use crate::image::reference::{self, Reference};
use crate::image::stages::Stage;
use crate::lock::is_at;

/// How often a change of the index is prepared without the lock.
pub(super) const TRIES: u32 = 16;

/// A manifest that is staged, with the names that the image gets. They are taken from the images that have them.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Of the manifest.
    pub manifest: Descriptor,
    /// Without any it can be found by its id.
    pub names: Vec<Reference>,
    /// What its registry has under these names: the image's manifest, or an index that leads to it.
    pub origin: Option<Digest>,
}

/// `index.json` as it was read. Its file stays open, so that no other one gets its number.
#[derive(Debug)]
pub(super) struct Seen {
    path: PathBuf,
    file: Option<File>,
    pub(super) index: Index,
}

impl Seen {
    /// Nobody has put another one in its place.
    pub(super) fn is_current(&self) -> Result<bool, StoreError> {
        let current = match &self.file {
            Some(file) => is_at(file, &self.path),
            None => self.path.try_exists().map(|exists| !exists),
        };
        current.map_err(|source| StoreError::io("look at", &self.path, source))
    }
}

impl Staging {
    /// Makes these images visible, all at once, and sees that they outlive a power cut. Blobs that are not staged are taken from the store.
    ///
    /// # Errors
    /// [`StoreError::Missing`]: a manifest names what is not there. [`StoreError::Refused`]: it is none of an image. The system's. In each case
    /// the store has the images that it had.
    pub fn commit(&self, images: &[Commit]) -> Result<Vec<StoredImage>, StoreError> {
        Stage::Commit.of_blocking(|| self.publish(images))
    }

    fn publish(&self, images: &[Commit]) -> Result<Vec<StoredImage>, StoreError> {
        let mut blobs = BTreeSet::new();
        let mut stored = Vec::new();
        for image in images {
            let manifest = self.complete(&image.manifest, &mut blobs)?;
            let names = image.names.iter().map(ToString::to_string).collect();
            stored.push(StoredImage { origin: image.origin.clone(), ..StoredImage::new(&image.manifest, &manifest, names) });
        }
        self.settle(&blobs)?;
        self.store.change_index(&self.folder, |index| images.iter().for_each(|image| add(index, image)))?;
        Ok(stored)
    }

    /// Sees that all of an image is staged, and is one.
    fn complete(&self, descriptor: &Descriptor, blobs: &mut BTreeSet<Digest>) -> Result<Manifest, StoreError> {
        if descriptor.role() != Role::Manifest {
            let why = format!("{:?} is no type of an image's manifest", descriptor.media_type);
            return Err(StoreError::refused(format!("the manifest {}", descriptor.digest), why));
        }
        self.need("manifest", descriptor, blobs)?;
        let manifest: Manifest = parse("manifest", &descriptor.digest, &self.read(&descriptor.digest)?)?;
        for (role, part) in manifest.parts() {
            self.need(role, part, blobs)?;
        }
        let config: Config = parse("config", &manifest.config.digest, &self.read(&manifest.config.digest)?)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            let why = format!("it has {layers} layers, and its config is about {diff_ids}");
            return Err(StoreError::refused(format!("the image {}", manifest.config.digest), why));
        }
        Ok(manifest)
    }

    fn need(&self, role: &'static str, descriptor: &Descriptor, blobs: &mut BTreeSet<Digest>) -> Result<(), StoreError> {
        let digest = &descriptor.digest;
        if !self.adopt(digest)? {
            return Err(StoreError::Missing { role, digest: digest.clone() });
        }
        match self.size_of(digest)? {
            Some(size) if size == descriptor.size => {
                blobs.insert(digest.clone());
                Ok(())
            }
            size => {
                Err(StoreError::Size { what: format!("the {role} {digest}"), expected: descriptor.size, actual: size.unwrap_or_default() })
            }
        }
    }

    /// Steps 1 to 3: these blobs are in the store, for as long as this is not dropped, and beyond once an index names them.
    fn settle(&self, blobs: &BTreeSet<Digest>) -> Result<(), StoreError> {
        let (disk, folder) = (&self.folder.disk, &self.folder.path);
        let mut moves = Vec::new();
        for digest in blobs {
            let (staged, moved) = (self.folder.at(digest), folder.join(format!("in-{}", digest.hex())));
            disk.sync_file(&staged)?;
            disk.link(&staged, &moved).map_err(|source| StoreError::io("link", &staged, source))?;
            // What is replaced keeps this name until we are done: to free its bytes takes the longer the more they are, and would be beneath the lock.
            let (there, kept) = (self.store.blob_path(digest), folder.join(format!("old-{}", digest.hex())));
            match disk.link(&there, &kept) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("link", &there, error)),
                Ok(()) | Err(_) => {}
            }
            moves.push((moved, there));
        }
        let held = self.store.0.lock.take()?;
        let moved = moves.iter().try_for_each(|(from, to)| disk.rename(from, to));
        drop(held);
        moved?;
        disk.sync_folder(&self.store.blobs())
    }
}

/// Under its names, which no other image has from now on.
fn add(index: &mut Index, image: &Commit) {
    if image.names.is_empty() {
        if !index.manifests.iter().any(|known| known.digest == image.manifest.digest) {
            index.manifests.push(Descriptor::new(&image.manifest.media_type, image.manifest.digest.clone(), image.manifest.size));
        }
        return;
    }
    let is_ours =
        |known: &Descriptor| known.name().is_some_and(|name| image.names.iter().any(|ours| reference::is_same(name, ours.as_str())));
    // A nameless entry of the same image has a name now.
    let was_nameless = |known: &Descriptor| known.name().is_none() && known.digest == image.manifest.digest;
    index.manifests.retain(|known| !is_ours(known) && !was_nameless(known));
    index.manifests.extend(image.names.iter().map(|name| image.manifest.named(name.as_str(), image.origin.as_ref())));
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(role: &str, digest: &Digest, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::refused(format!("the {role} {digest}"), error.to_string()))
}

impl Store {
    /// `index.json`; none is an empty one.
    pub(super) fn see_index(&self) -> Result<Seen, StoreError> {
        let path = self.root().join(INDEX);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen { path, file: None, index: Index::default() }),
            opened => opened.map_err(|source| StoreError::io("read", &path, source))?,
        };
        let mut bytes = Vec::new();
        (&file).take(LONGEST + 1).read_to_end(&mut bytes).map_err(|source| StoreError::io("read", &path, source))?;
        let broken = |why| StoreError::Broken { path: path.clone(), why };
        if bytes.len() as u64 > LONGEST {
            return Err(broken(format!("it is longer than {LONGEST} bytes")));
        }
        let index = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        Ok(Seen { path, file: Some(file), index })
    }

    /// Steps 4 to 6, with a folder of ours to write in.
    pub(super) fn change_index(&self, folder: &Folder, change: impl Fn(&mut Index)) -> Result<(), StoreError> {
        let disk = &self.0.disk;
        for attempt in 0..=TRIES {
            let last = if attempt < TRIES { None } else { Some(self.0.lock.take()?) };
            let seen = self.see_index()?;
            let mut index = seen.index.clone();
            change(&mut index);
            if index != seen.index || seen.file.is_none() {
                let next = folder.write_synced(INDEX, &encode(&index, &seen.path)?)?;
                let held: Held = last.map_or_else(|| self.0.lock.take(), Ok)?;
                if !seen.is_current()? {
                    continue;
                }
                disk.rename(&next, &seen.path)?;
                drop(held);
            }
            return disk.sync_folder(self.root());
        }
        // Under the lock nobody else can have changed it, unless it is none of us.
        Err(StoreError::Broken { path: self.root().join(INDEX), why: "something other than nspool changes it all the time".into() })
    }
}

fn encode(index: &Index, path: &std::path::Path) -> Result<Vec<u8>, StoreError> {
    let bytes = serde_json::to_vec(index).map_err(|error| StoreError::io("write", path, error.into()))?;
    if bytes.len() as u64 > LONGEST {
        return Err(StoreError::refused("index.json", format!("with so many images it would be longer than {LONGEST} bytes")));
    }
    Ok(bytes)
}
