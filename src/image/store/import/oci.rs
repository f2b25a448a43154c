//! An OCI layout: an `index.json` that leads to manifests, perhaps over other indexes, and blobs that are named by their digests.
//!
//! Of an index with one manifest for each platform only that for this machine is taken.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use super::name;
use crate::image::store::check_layout;
use crate::image::store::commit::{Commit, parse};
use crate::image::store::error::StoreError;
use crate::image::store::layout::{Descriptor, INDEX, Index, LAYOUT, LONGEST, Manifest, Role};
use crate::image::store::staging::{Expected, Staging};

/// Indexes that lead to indexes.
const DEEPEST: u32 = 4;

/// Sees that a blob is staged.
type Fetch<'a> = &'a dyn Fn(&Descriptor) -> Result<(), StoreError>;

pub(super) fn images(staging: &Staging, index: &[u8], fetch: Fetch<'_>) -> Result<Vec<Commit>, StoreError> {
    let index: Index = serde_json::from_slice(index).map_err(|error| StoreError::refused(INDEX, error.to_string()))?;
    let mut commits: Vec<Commit> = Vec::new();
    for descriptor in index.manifests.iter().filter(|descriptor| !descriptor.is_attestation()) {
        let names = descriptor.name().map(name).transpose()?;
        let manifest = image(staging, descriptor, fetch, DEEPEST)?;
        match commits.iter_mut().find(|commit| commit.manifest.digest == manifest.digest) {
            Some(known) => known.names.extend(names),
            None => commits.push(Commit { manifest, names: names.into_iter().collect(), origin: None }),
        }
    }
    Ok(commits)
}

/// Fetches all of an image; answers what points to its manifest.
fn image(staging: &Staging, descriptor: &Descriptor, fetch: Fetch<'_>, depth: u32) -> Result<Descriptor, StoreError> {
    match descriptor.role() {
        Role::Manifest => {
            fetch(descriptor)?;
            let manifest: Manifest = parse("manifest", &descriptor.digest, &staging.read(&descriptor.digest)?)?;
            manifest.parts().try_for_each(|(_, part)| fetch(part))?;
            Ok(Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size))
        }
        Role::Index if depth > 0 => {
            fetch(descriptor)?;
            let index: Index = parse("index", &descriptor.digest, &staging.read(&descriptor.digest)?)?;
            image(staging, index.ours(&descriptor.digest)?, fetch, depth - 1)
        }
        Role::Index => Err(StoreError::refused(format!("the index {}", descriptor.digest), "it is behind too many others")),
        Role::Other => {
            let why = format!("{:?} is neither an image's manifest nor an index", descriptor.media_type);
            Err(StoreError::refused(format!("the blob {}", descriptor.digest), why))
        }
    }
}

pub(super) fn images_of_folder(staging: &Staging, folder: &Path) -> Result<Vec<Commit>, StoreError> {
    let layout = folder.join(LAYOUT);
    let text = small(&layout)?;
    check_layout(&layout, &text)?;
    let index = small(&folder.join(INDEX))?;
    images(staging, &index, &|descriptor| {
        if staging.adopt(&descriptor.digest)? {
            return Ok(());
        }
        let path = folder.join("blobs/sha256").join(descriptor.digest.hex());
        let file = match open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { role: "blob", digest: descriptor.digest.clone() });
            }
            opened => opened.map_err(|error| unreadable(&path, error))?,
        };
        let mut blob = staging.blob(path.display().to_string(), Expected::from(descriptor))?;
        blob.write_all_of(file)?;
        blob.finish().map(drop)
    })
}

fn small(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(path, error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(StoreError::refused(path.display().to_string(), format!("it is longer than {LONGEST} bytes")));
    }
    Ok(bytes)
}

/// A regular file, and no link to one: in a layout that somebody brought, a link may lead anywhere, and a pipe is never read to its end.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

fn unreadable(path: &Path, error: io::Error) -> StoreError {
    let why = match rustix::io::Errno::from_io_error(&error) {
        Some(rustix::io::Errno::LOOP) => "it is a link".to_owned(),
        Some(_) | None => error.to_string(),
    };
    StoreError::refused(path.display().to_string(), why)
}
