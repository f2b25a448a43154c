//! A tar that nobody vouches for, taken apart into staged blobs.
//!
//! Nothing in it becomes a path on this host: files are staged as blobs, by their digests, and their names are only remembered. All the same an archive
//! with a name or a link that leads out of it, or with a device, is refused as a whole: what made it was no image tool. Links within it are followed,
//! because `docker save` writes a layer that several images have only once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::rc::Rc;

use tar::EntryType;

use crate::image::store::error::StoreError;
use crate::image::store::layout::{Descriptor, Digest};
use crate::image::store::staging::{Expected, Staging, Written};

/// Images have some hundreds.
const MOST_FILES: usize = 65_536;
/// Names and other words before a file; they are read into memory.
const LONGEST_HEADER: u64 = 1 << 20;
const MOST_LINKS: usize = 8;
/// In a layout.
const BLOBS: &str = "blobs/sha256/";

#[derive(Debug, Default)]
pub(super) struct Unpacked {
    files: BTreeMap<String, Written>,
    /// From where to where; both from the archive's root.
    links: BTreeMap<String, String>,
}

/// Reads only so much while a header is read.
struct Bounded<R> {
    source: R,
    left: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if let Some(left) = self.left.get() {
            let left = left.checked_sub(count as u64).ok_or_else(|| io::Error::other("a header is longer than any is"))?;
            self.left.set(Some(left));
        }
        Ok(count)
    }
}

impl Unpacked {
    pub(super) fn read(staging: &Staging, tar: impl Read) -> Result<Self, StoreError> {
        let left = Rc::new(Cell::new(None));
        let mut archive = tar::Archive::new(Bounded { source: tar, left: Rc::clone(&left) });
        let mut entries = archive.entries().map_err(StoreError::Source)?;
        let mut unpacked = Self::default();
        for number in 0.. {
            left.set(Some(LONGEST_HEADER));
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(|error| not_a_tar(number, error))?;
            left.set(None);
            if number >= MOST_FILES {
                return Err(StoreError::refused("the archive", format!("there are more than {MOST_FILES} files in it")));
            }
            unpacked.take(staging, &mut entry)?;
        }
        Ok(unpacked)
    }

    fn take(&mut self, staging: &Staging, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), StoreError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refused = |why: &str| Err(StoreError::refused(format!("the archive's {shown:?}"), why));
        let own = entry.path().map_err(StoreError::Source)?.into_owned();
        let Some(name) = within("", &own) else { return refused("its name leads out of the archive") };
        if kind.is_dir() {
            return Ok(());
        }
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name().map_err(StoreError::Source)?.unwrap_or_default().into_owned();
            // A symbolic link begins where it is, a hard one at the archive's root.
            let from = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(folder, _)| folder) } else { "" };
            let Some(target) = within(from, &target) else { return refused("it is a link that leads out of the archive") };
            self.files.remove(&name);
            self.links.insert(name, target);
            return Ok(());
        }
        if kind != EntryType::Regular && kind != EntryType::Continuous {
            return refused("it is a device, a pipe or a sparse file, which no image archive has");
        }
        let digest = name.strip_prefix(BLOBS).and_then(Digest::of_hex);
        let mut blob = staging.blob(format!("the archive's {shown:?}"), Expected { digest, size: Some(entry.size()) })?;
        blob.write_all_of(entry)?;
        self.links.remove(&name);
        self.files.insert(name, blob.finish()?);
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// The file of that name, behind links if need be.
    pub(super) fn file(&self, name: &str) -> Result<&Written, StoreError> {
        let missing = || StoreError::refused(format!("the archive's {name:?}"), "it is not there");
        let mut at = within("", Path::new(name)).ok_or_else(missing)?;
        for _ in 0..MOST_LINKS {
            match self.links.get(&at) {
                Some(target) => at.clone_from(target),
                None => return self.files.get(&at).ok_or_else(missing),
            }
        }
        Err(StoreError::refused(format!("the archive's {name:?}"), "it is a link in a circle"))
    }

    /// A file that is read into memory.
    pub(super) fn small(&self, staging: &Staging, name: &str) -> Result<Vec<u8>, StoreError> {
        staging.read(&self.file(name)?.digest)
    }

    /// A layout's blobs are staged by now, as far as they came.
    pub(super) fn fetch(&self, staging: &Staging, descriptor: &Descriptor) -> Result<(), StoreError> {
        if staging.adopt(&descriptor.digest)? {
            Ok(())
        } else {
            Err(StoreError::Missing { role: "blob", digest: descriptor.digest.clone() })
        }
    }
}

/// From there to where the path leads, if that is within.
fn within(from: &str, path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

fn not_a_tar(number: usize, error: io::Error) -> StoreError {
    let is_of_the_source = error.get_ref().is_none() && error.raw_os_error().is_some();
    if is_of_the_source {
        return StoreError::Source(error);
    }
    let place =
        if number == 0 { "at its beginning (a compressed one must be unpacked first)".to_owned() } else { format!("behind file {number}") };
    StoreError::refused("the archive", format!("it is no tar, or a broken one, {place}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_out_is_nowhere() {
        for (from, path, to) in [
            ("", "a/b", Some("a/b")),
            ("", "./a//b/", Some("a/b")),
            ("a", "../b/layer.tar", Some("b/layer.tar")),
            ("a/b", "../../c", Some("c")),
            ("", "a/../b", Some("b")),
            ("", "..", None),
            ("", "a/../../b", None),
            ("a", "../../b", None),
            ("", "/a", None),
            ("a", "/etc/shadow", None),
        ] {
            assert_eq!(within(from, Path::new(path)).as_deref(), to, "{path} from {from:?}");
        }
    }
}
