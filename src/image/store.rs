//! nspool's own image store: an OCI image layout that outlives engines, crashes and power cuts, and that several processes use at once.
//!
//! An image comes into it once, from a registry, an engine, or a file, and every engine of the host is loaded from it.
//!
//! ```text
//!  oci-layout, index.json      which images there are: the only file that makes one visible
//!  blobs/sha256/<hex>          manifests, configs and layers, each named by what is in it
//!  staging/<unique>/           what is on its way in, locked by its writer
//!  lock                        held for renames only
//! ```
//!
//! # What it promises
//! - Bytes come in without any lock: each writer hashes and syncs in a folder of its own. The lock is held for renames, whatever the size (`lock`).
//! - A process that is killed, and a power cut, at whatever step, leave a store that [`Store::verify`] finds whole, and an image either there in full
//!   or not at all (`commit` says why). What was said to be stored is stored.
//! - What a dead writer left is known by a lock and not by age or pid, and removed by the next [`Store::open`] (`staging`).
//! - No blob goes that an image or a writer counts on (`sweep`).
//! - Bytes with another digest than they should have are thrown away and named. A full disk is an error that says so.
//!
//! # What can go wrong
//! Bits that rot: [`Store::verify`] names the blob; whoever brings it again (an import, a pull) mends it. A store on a file system without hard links
//! or flock is refused by the first write.
//!
//! It deliberately knows no engine, no registry and no async: every call blocks, and belongs on a thread that may. It is for Linux images by SHA-256;
//! an image of several platforms comes in as that of this machine.
//!
//! Reading order: this file → `staging` → `commit` → `sweep` → `lock`, `disk` → `verify` → `import`, `export`; `layout` has the file formats.

mod commit;
mod disk;
mod error;
mod export;
mod import;
mod layout;
mod lock;
mod staging;
mod sweep;
mod verify;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::reference::{self, Reference};
use crate::measured::Named;

pub use commit::Commit;
pub use disk::{Step, Steps};
pub use error::StoreError;
pub use export::Export;
pub use layout::{Contents, Descriptor, Digest, Manifest, contents};
pub use staging::{BlobWriter, Expected, Staging, Written};
pub use sweep::Swept;
pub use verify::{Fault, Verified};

use disk::Disk;
pub(super) use layout::INDEX;
use layout::{LAYOUT, LAYOUT_TEXT, Role};
use lock::Lock;
use staging::Folder;

/// Where the host's store is.
pub const DEFAULT: &str = "/var/lib/nspool/images";

/// What is in a store's folder, and in a file system's of its own.
const OURS: [&str; 6] = [LAYOUT, INDEX, "blobs", "staging", "lock", "lost+found"];

/// How a store is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Holding the lock for longer is logged.
    pub hold_bound: Duration,
    /// Hears of each change of the disk: for tests.
    pub steps: Option<Arc<dyn Steps>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { hold_bound: Duration::from_millis(20), steps: None }
    }
}

/// An image that is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// The digest of its config: by this id engines know it.
    pub id: Digest,
    /// The digest of its manifest: by this registries know it.
    pub manifest: Digest,
    /// As they were given.
    pub names: Vec<String>,
    /// Bytes of all its blobs, as they are stored.
    pub size: u64,
    /// How many.
    pub layers: usize,
    /// What the registry had under the name by which it was asked for: this manifest, or an index that leads to it. `None`: it never came from there.
    pub origin: Option<Digest>,
}

impl StoredImage {
    fn new(descriptor: &Descriptor, manifest: &Manifest, names: Vec<String>) -> Self {
        Self {
            id: manifest.config.digest.clone(),
            manifest: descriptor.digest.clone(),
            names,
            size: manifest.parts().map(|(_, part)| part.size).fold(descriptor.size, u64::saturating_add),
            layers: manifest.layers.len(),
            origin: descriptor.origin(),
        }
    }
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    disk: Disk,
    lock: Lock,
}

/// See the module. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

impl Store {
    /// Opens the store in this folder, or begins one there; removes what dead writers left. Reads no blob.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`]: there is something else. The system's.
    pub fn open(root: &Path, options: Options) -> Result<Self, StoreError> {
        let Options { hold_bound, steps } = options;
        let disk = Disk(steps);
        let store = Self(Arc::new(Inner {
            root: root.to_owned(),
            disk,
            lock: Lock { path: root.join("lock"), named: Named { name: lock::NAME, bound: hold_bound } },
        }));
        store.begin()?;
        let dead = staging::sweep_dead(&store.staging(), &store.0.disk)?;
        if dead > 0 {
            tracing::info!(store = %root.display(), folders = dead, "removed what dead writers left in the image store");
        }
        Ok(store)
    }

    #[cfg(test)]
    pub(super) fn hold_bound(&self) -> Duration {
        self.0.lock.named.bound
    }

    /// Makes what is missing of the store's own files and folders.
    fn begin(&self) -> Result<(), StoreError> {
        let disk = &self.0.disk;
        disk.have_folder(self.root())?;
        let path = self.root().join(LAYOUT);
        let is_new = match std::fs::read(&path) {
            Ok(text) => check_layout(&path, &text).map(|()| false)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.refuse_foreign().map(|()| true)?,
            Err(source) => return Err(StoreError::io("read", &path, source)),
        };
        disk.have_folder(&self.blobs())?;
        disk.have_folder(&self.staging())?;
        if is_new || !self.root().join(INDEX).exists() {
            let folder = Folder::make(&self.staging(), disk)?;
            self.change_index(&folder, |_| {})?;
            // Last: it says that the rest is there. Whoever else begins it writes the same.
            disk.rename(&folder.write_synced(LAYOUT, LAYOUT_TEXT.as_bytes())?, &path)?;
            disk.sync_folder(self.root())?;
        }
        Ok(())
    }

    /// A folder with somebody else's files is no place for a store.
    fn refuse_foreign(&self) -> Result<(), StoreError> {
        for path in sweep::files_of(self.root())? {
            let name = path.file_name().unwrap_or_default();
            if !OURS.iter().any(|ours| name == *ours) {
                let why = format!("it is not empty, and has no {LAYOUT} ({} is there)", name.to_string_lossy());
                return Err(StoreError::NotAStore { path: self.root().to_owned(), why });
            }
        }
        Ok(())
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    fn staging(&self) -> PathBuf {
        self.root().join("staging")
    }

    fn blobs(&self) -> PathBuf {
        self.root().join("blobs/sha256")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// A place to write the blobs of one image, or of some that become visible together.
    ///
    /// # Errors
    /// The system's.
    pub fn stage(&self) -> Result<Staging, StoreError> {
        Staging::new(self)
    }

    /// The same for what this reference stands for elsewhere: there is one at a time, over all processes. `None`: somebody has it, or had it until now.
    ///
    /// # Errors
    /// The system's.
    pub fn stage_for(&self, reference: &Reference) -> Result<Option<Staging>, StoreError> {
        Staging::named(self, &format!("for-{}", Digest::of(reference.as_str().as_bytes()).hex()))
    }

    /// All images, by their manifests.
    ///
    /// # Errors
    /// [`StoreError::Broken`]: a manifest is not there or not readable.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images: BTreeMap<Digest, StoredImage> = BTreeMap::new();
        for descriptor in self.see_index()?.index.manifests.into_iter().filter(|descriptor| descriptor.role() == Role::Manifest) {
            let name = descriptor.name().map(str::to_owned);
            match images.get_mut(&descriptor.digest) {
                Some(known) => known.names.extend(name),
                None => {
                    let manifest = self.manifest(&descriptor.digest)?;
                    images.insert(descriptor.digest.clone(), StoredImage::new(&descriptor, &manifest, name.into_iter().collect()));
                }
            }
        }
        Ok(images.into_values().collect())
    }

    /// The image of that name, or with that id (`sha256:…`).
    ///
    /// # Errors
    /// As [`Store::images`].
    pub fn image(&self, name_or_id: &str) -> Result<Option<StoredImage>, StoreError> {
        if let Some(id) = Digest::parse(name_or_id) {
            return Ok(self.images()?.into_iter().find(|image| image.id == id));
        }
        let index = self.see_index()?.index;
        let is_it = |known: &&Descriptor| known.name().is_some_and(|name| reference::is_same(name, name_or_id));
        let Some(found) = index.manifests.iter().find(is_it).filter(|found| found.role() == Role::Manifest) else { return Ok(None) };
        let names = index.manifests.iter().filter(|other| other.digest == found.digest).filter_map(Descriptor::name);
        let manifest = self.manifest(&found.digest)?;
        Ok(Some(StoredImage::new(found, &manifest, names.map(str::to_owned).collect())))
    }

    /// What an image is made of.
    ///
    /// # Errors
    /// [`StoreError::Broken`]: it is not there, or not readable.
    pub fn manifest(&self, digest: &Digest) -> Result<Manifest, StoreError> {
        let bytes = self.manifest_bytes(digest)?;
        serde_json::from_slice(&bytes).map_err(|error| StoreError::Broken { path: self.blob_path(digest), why: error.to_string() })
    }

    /// The same as it is stored: its digest is that of these bytes.
    ///
    /// # Errors
    /// It is not there, or longer than any manifest.
    pub fn manifest_bytes(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        staging::read_all(&self.blob_path(digest))
    }

    /// Any blob, to be read from its beginning. Whoever has it open reads all of it, whatever becomes of its image.
    ///
    /// # Errors
    /// It is not there.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|source| StoreError::io("open", &path, source))
    }

    /// Takes a name away; with its last one an image is no longer to be seen. Its space comes back with the next [`Store::sweep`]. `false`: nothing
    /// has that name.
    ///
    /// # Errors
    /// The system's; the name is there still.
    pub fn remove(&self, name: &Reference) -> Result<bool, StoreError> {
        let is_it = |known: &Descriptor| known.name().is_some_and(|known| reference::is_same(known, name.as_str()));
        if !self.see_index()?.index.manifests.iter().any(is_it) {
            return Ok(false);
        }
        let folder = Folder::make(&self.staging(), &self.0.disk)?;
        self.change_index(&folder, |index| index.manifests.retain(|known| !is_it(known)))?;
        Ok(true)
    }
}

fn check_layout(path: &Path, text: &[u8]) -> Result<(), StoreError> {
    let version = serde_json::from_slice::<serde_json::Value>(text).ok().and_then(|layout| Some(layout.get("imageLayoutVersion")?.clone()));
    if version.as_ref().and_then(serde_json::Value::as_str).is_some_and(|version| version.starts_with("1.")) {
        return Ok(());
    }
    Err(StoreError::Broken { path: path.to_owned(), why: "it does not say imageLayoutVersion 1".into() })
}
