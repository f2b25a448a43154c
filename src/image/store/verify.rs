//! Reads everything, and says what is not as it should be: [`Store::verify`].
//!
//! It changes nothing and takes no lock, so writers and sweeps go on meanwhile: what is missing is looked for in a second index before it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::layout::{Config, Digest, LAYOUT, Manifest, Role};
use super::staging::{hash_file, read_all};
use super::sweep::files_of;
use super::{Store, check_layout};

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
    /// The names or ids of the images that are broken thereby; none if only space is wasted.
    pub images: Vec<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

/// What was read, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many.
    pub images: usize,
    /// How many.
    pub blobs: usize,
    /// Of all blobs.
    pub bytes: u64,
    /// Each thing that is wrong; empty: all is well.
    pub faults: Vec<Fault>,
}

/// A blob that an index leads to.
#[derive(Default)]
struct Needed {
    size: u64,
    by: BTreeSet<String>,
}

impl Store {
    /// Reads and hashes every blob. Takes as long as the disk takes.
    ///
    /// # Errors
    /// A folder of the store cannot be listed; a broken file is no error but a [`Fault`].
    pub fn verify(&self) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        let layout = self.root().join(LAYOUT);
        let text = read_all(&layout).and_then(|text| check_layout(&layout, &text));
        verified.faults.extend(text.err().map(|error| fault(&layout, &error)));
        for path in files_of(&self.blobs())? {
            self.check_blob(&path, &mut verified);
        }
        let needed = self.needed(&mut verified);
        let broken: BTreeSet<PathBuf> = verified.faults.iter().map(|fault| fault.path.clone()).collect();
        for (digest, needed) in needed {
            let path = self.blob_path(&digest);
            let images: Vec<String> = needed.by.into_iter().collect();
            if broken.contains(&path) {
                verified.faults.iter_mut().filter(|fault| fault.path == path).for_each(|fault| fault.images.clone_from(&images));
                continue;
            }
            let why = match path.symlink_metadata() {
                Ok(found) if found.len() == needed.size => continue,
                Ok(found) => format!("it has {} bytes and not {}, as the manifest says", found.len(), needed.size),
                Err(error) => error.to_string(),
            };
            verified.faults.push(Fault { path, why, images });
        }
        Ok(verified)
    }

    /// A file among the blobs: it is what its name says.
    fn check_blob(&self, path: &Path, verified: &mut Verified) {
        let mut wrong = |why: String| verified.faults.push(Fault { path: path.to_owned(), why, images: Vec::new() });
        let Some(digest) = path.file_name().and_then(std::ffi::OsStr::to_str).and_then(Digest::of_hex) else {
            return wrong("its name is no digest".into());
        };
        match path.symlink_metadata() {
            Ok(found) if !found.is_file() => return wrong("it is no regular file".into()),
            // A sweep took it meanwhile; should an image need it, that is found later.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Ok(_) | Err(_) => {}
        }
        match hash_file(path) {
            Ok((actual, size)) if actual == digest => {
                verified.blobs += 1;
                verified.bytes += size;
            }
            Ok((actual, _)) => wrong(format!("its digest is {actual}, which is not its name")),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => wrong(words(&error)),
        }
    }

    /// What the images of the present index are made of. What is wrong with a manifest or a config itself is told at once.
    fn needed(&self, verified: &mut Verified) -> BTreeMap<Digest, Needed> {
        let mut needed: BTreeMap<Digest, Needed> = BTreeMap::new();
        let seen = match self.see_index() {
            Ok(seen) => seen,
            Err(error) => {
                verified.faults.push(fault(&self.root().join(super::INDEX), &error));
                return needed;
            }
        };
        let mut images = BTreeSet::new();
        for descriptor in &seen.index.manifests {
            let name = descriptor.name().map_or_else(|| descriptor.digest.to_string(), str::to_owned);
            let mut need = |digest: &Digest, size: u64| {
                let entry = needed.entry(digest.clone()).or_default();
                entry.size = size;
                entry.by.insert(name.clone());
            };
            need(&descriptor.digest, descriptor.size);
            let path = self.blob_path(&descriptor.digest);
            if descriptor.role() != Role::Manifest {
                let why = format!("it is a {:?}, which is no image's manifest", descriptor.media_type);
                verified.faults.push(Fault { path, why, images: vec![name.clone()] });
                continue;
            }
            images.insert(descriptor.digest.clone());
            // One that is missing is told with the other blobs.
            let Ok(bytes) = read_all(&path) else { continue };
            match serde_json::from_slice::<Manifest>(&bytes) {
                Ok(manifest) => {
                    manifest.parts().for_each(|(_, part)| need(&part.digest, part.size));
                    self.check_config(&manifest, &name, verified);
                }
                Err(error) => verified.faults.push(Fault { path, why: error.to_string(), images: vec![name.clone()] }),
            }
        }
        verified.images = images.len();
        needed
    }

    fn check_config(&self, manifest: &Manifest, name: &str, verified: &mut Verified) {
        let path = self.blob_path(&manifest.config.digest);
        let Ok(bytes) = read_all(&path) else { return };
        let why = match serde_json::from_slice::<Config>(&bytes) {
            Ok(config) if config.rootfs.diff_ids.len() == manifest.layers.len() => return,
            Ok(config) => format!("it is about {} layers, and the image has {}", config.rootfs.diff_ids.len(), manifest.layers.len()),
            Err(error) => error.to_string(),
        };
        verified.faults.push(Fault { path, why, images: vec![name.to_owned()] });
    }
}

fn fault(path: &Path, error: &StoreError) -> Fault {
    Fault { path: path.to_owned(), why: words(error), images: Vec::new() }
}

/// Without the path, which stands beside it.
fn words(error: &StoreError) -> String {
    match error {
        StoreError::Broken { why, .. } => why.clone(),
        StoreError::Io { source, .. } | StoreError::Full { source, .. } => source.to_string(),
        StoreError::NotAStore { .. }
        | StoreError::Digest { .. }
        | StoreError::Size { .. }
        | StoreError::Missing { .. }
        | StoreError::Refused { .. }
        | StoreError::Name { .. }
        | StoreError::Source(_) => error.to_string(),
    }
}
