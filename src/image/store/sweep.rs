//! Gives back the space of blobs that no image needs: those of images that were removed or replaced, and of commits that came to no end.
//!
//! A blob goes if no index names it and no staging folder pins it. Both are looked at under the lock, when nothing is renamed into the store and no index
//! is replaced; and that index is on the disk before anything goes, so that no power cut brings an older one back which needs it. What goes is only
//! renamed under the lock, into a staging folder of the sweep's own, and is freed after that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Store;
use super::commit::{Seen, TRIES};
use super::error::StoreError;
use super::layout::{Digest, Role};
use super::staging::{Folder, sweep_dead};

/// What a sweep gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many.
    pub blobs: u64,
    /// Together.
    pub bytes: u64,
}

impl Store {
    /// Removes the blobs that no image needs, and what dead writers left.
    ///
    /// # Errors
    /// The system's; what an image needs is there still.
    pub fn sweep(&self) -> Result<Swept, StoreError> {
        let disk = &self.0.disk;
        sweep_dead(&self.staging(), disk)?;
        let trash = Folder::make(&self.staging(), disk)?;
        for attempt in 0..=TRIES {
            let last = if attempt < TRIES { None } else { Some(self.0.lock.take()?) };
            let seen = self.see_index()?;
            disk.sync_folder(self.root())?;
            let named = self.named_by(&seen)?;
            let unnamed: Vec<(Digest, u64)> = self.blobs_and_sizes()?.into_iter().filter(|(digest, _)| !named.contains(digest)).collect();
            let held = last.map_or_else(|| self.0.lock.take(), Ok)?;
            if !seen.is_current()? {
                continue;
            }
            let pinned = names_in_folders_of(&self.staging())?;
            let mut swept = Swept::default();
            for (digest, size) in unnamed.iter().filter(|(digest, _)| !pinned.contains(digest.hex())) {
                disk.rename(&self.blob_path(digest), &trash.path.join(format!("trash-{}", digest.hex())))?;
                swept = Swept { blobs: swept.blobs + 1, bytes: swept.bytes + size };
            }
            drop(held);
            return Ok(swept);
        }
        Ok(Swept::default())
    }

    /// Every blob that an image needs.
    fn named_by(&self, seen: &Seen) -> Result<BTreeSet<Digest>, StoreError> {
        let mut named = BTreeSet::new();
        for descriptor in &seen.index.manifests {
            if descriptor.role() != Role::Manifest {
                let why = "it is no image's manifest, so nobody knows what it needs: nothing is swept";
                return Err(StoreError::Broken { path: self.blob_path(&descriptor.digest), why: why.into() });
            }
            named.insert(descriptor.digest.clone());
            named.extend(self.manifest(&descriptor.digest)?.parts().map(|(_, part)| part.digest.clone()));
        }
        Ok(named)
    }

    /// All that have a digest for a name.
    fn blobs_and_sizes(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut blobs = Vec::new();
        for path in files_of(&self.blobs())? {
            let name = path.file_name().and_then(std::ffi::OsStr::to_str).and_then(Digest::of_hex);
            // One that is not there any more was another sweep's.
            if let (Some(digest), Ok(found)) = (name, path.symlink_metadata()) {
                blobs.push((digest, found.len()));
            }
        }
        Ok(blobs)
    }
}

fn names_in_folders_of(staging: &Path) -> Result<BTreeSet<String>, StoreError> {
    let mut names = BTreeSet::new();
    for folder in files_of(staging)? {
        match files_of(&folder) {
            Ok(files) => names.extend(files.iter().filter_map(|file| Some(file.file_name()?.to_str()?.to_owned()))),
            // It ended meanwhile. Before it did, its index was there, or it needs nothing.
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

pub(super) fn files_of(folder: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let listed = std::fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(|source| StoreError::io("list", folder, source))
}
