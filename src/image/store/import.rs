//! Images out of files, for hosts without a network: [`Store::import_tar`], [`Store::import_folder`].
//!
//! Taken are the tars of `docker save` and `podman save` in all their forms (layers beside a `manifest.json`, or an OCI layout in a tar), and folders that
//! are OCI layouts, as skopeo and buildah make them. Layers stay as they are, compressed or not; a config's bytes are not touched, so the id is the one
//! that engines give. All images of a file become visible at once.
//!
//! What comes is not trusted: see `archive` for tars; a folder's files are opened without following links; every digest is checked.

mod archive;
mod docker;
mod oci;

use std::io::Read;
use std::path::Path;

use self::archive::Unpacked;
use super::commit::Commit;
use super::error::StoreError;
use super::layout::{INDEX, LAYOUT};
use super::{Store, StoredImage};
use crate::image::reference::Reference;

impl Store {
    /// The images of a tar, read once from its beginning to its end. With `name` it must be one image, which gets this name and none of its own.
    ///
    /// # Errors
    /// [`StoreError::Refused`], [`StoreError::Digest`], [`StoreError::Missing`], [`StoreError::Source`]: about what was imported. The system's.
    /// In each case nothing of it is visible.
    pub fn import_tar(&self, tar: impl Read, name: Option<&Reference>) -> Result<Vec<StoredImage>, StoreError> {
        let staging = self.stage()?;
        let unpacked = Unpacked::read(&staging, tar)?;
        let commits = if unpacked.has(LAYOUT) && unpacked.has(INDEX) {
            let index = unpacked.small(&staging, INDEX)?;
            oci::images(&staging, &index, &|descriptor| unpacked.fetch(&staging, descriptor))?
        } else if unpacked.has(docker::MANIFEST) {
            docker::images(&staging, &unpacked)?
        } else {
            let why = format!("it has neither {} nor {LAYOUT} and {INDEX}: is it what `docker save` or `skopeo` wrote?", docker::MANIFEST);
            return Err(StoreError::refused("the archive", why));
        };
        staging.commit(&renamed(commits, name)?)
    }

    /// The images of a folder that is an OCI layout. `name` as in [`Store::import_tar`].
    ///
    /// # Errors
    /// As [`Store::import_tar`].
    pub fn import_folder(&self, folder: &Path, name: Option<&Reference>) -> Result<Vec<StoredImage>, StoreError> {
        let staging = self.stage()?;
        let commits = oci::images_of_folder(&staging, folder)?;
        staging.commit(&renamed(commits, name)?)
    }
}

fn renamed(mut commits: Vec<Commit>, name: Option<&Reference>) -> Result<Vec<Commit>, StoreError> {
    match (commits.as_mut_slice(), name) {
        ([], _) => Err(StoreError::refused("the archive", "there is no image in it")),
        ([one], Some(name)) => {
            one.names = vec![name.clone()];
            Ok(commits)
        }
        (_, Some(_)) => Err(StoreError::refused("the archive", format!("there are {} images in it, for one name", commits.len()))),
        (_, None) => Ok(commits),
    }
}

fn name(text: &str) -> Result<Reference, StoreError> {
    Reference::parse(text).map_err(|source| StoreError::Name { name: text.to_owned(), source })
}
