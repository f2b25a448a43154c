//! A context that came as a tar, in a file of the daemon's: what the tar says is looked at before anything is made of it.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::{Content, ContextError, Found, Judged, MOST_ENTRIES, Selection, Source, Visit, What, check_link, refused, text_of};

/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The whole tar, unpacked nowhere.
pub(in crate::image::build) struct Tarball(File);

impl Tarball {
    /// `file` begins with the tar.
    pub(in crate::image::build) fn new(file: File) -> Result<Self, ContextError> {
        let tarball = Self(file);
        let mut first = [0; 2];
        let read = tarball.start()?.read_exact(&mut first);
        if read.is_ok() && first == GZIP {
            return Err(ContextError::NoTar { why: "it is compressed: gunzip it first".into() });
        }
        Ok(tarball)
    }

    /// One reader at a time: all share one position.
    fn start(&self) -> Result<&File, ContextError> {
        (&self.0).rewind().map_err(no_tar)?;
        Ok(&self.0)
    }

    fn each(
        &self,
        mut visit: impl FnMut(PathBuf, tar::Entry<'_, io::BufReader<&File>>) -> Result<(), ContextError>,
    ) -> Result<(), ContextError> {
        let mut archive = tar::Archive::new(io::BufReader::new(self.start()?));
        for (number, entry) in archive.entries().map_err(no_tar)?.enumerate() {
            if number >= MOST_ENTRIES {
                return Err(ContextError::TooLarge { limit: format!("{MOST_ENTRIES} files and folders") });
            }
            let entry = entry.map_err(no_tar)?;
            if entry.header().entry_type() == EntryType::XGlobalHeader {
                continue;
            }
            let path = inside(&entry.path().map_err(no_tar)?)?;
            visit(path, entry)?;
        }
        Ok(())
    }
}

fn no_tar(error: io::Error) -> ContextError {
    ContextError::NoTar { why: error.to_string() }
}

/// Without `./`; the context's own folder is empty.
fn inside(path: &Path) -> Result<PathBuf, ContextError> {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused(path, "leads out of the context")),
            Component::RootDir | Component::Prefix(_) => return Err(refused(path, "is an absolute path")),
        }
    }
    if cleaned.as_os_str().as_bytes().contains(&0) {
        return Err(refused(path, "has a zero byte in it"));
    }
    Ok(cleaned)
}

fn look(path: PathBuf, entry: &tar::Entry<'_, io::BufReader<&File>>) -> Result<Found, ContextError> {
    let header = entry.header();
    let link = || match entry.link_name() {
        Ok(Some(target)) => Ok(target.into_owned()),
        Ok(None) => Err(refused(&path, "is a link to nothing")),
        Err(error) => Err(no_tar(error)),
    };
    let kind = header.entry_type();
    let what = if kind.is_dir() {
        What::Folder
    } else if kind.is_symlink() {
        let target = link()?;
        check_link(&path, &target)?;
        What::Link(target)
    } else if kind.is_hard_link() {
        What::HardLink(inside(&link()?)?)
    } else if kind.is_file() || kind == EntryType::Continuous {
        What::File { size: entry.size(), stamp: None }
    } else if kind.is_character_special() || kind.is_block_special() {
        return Err(refused(&path, "is a device"));
    } else if kind.is_fifo() {
        return Err(refused(&path, "is a pipe"));
    } else {
        return Err(refused(&path, "is of a kind that no builder takes"));
    };
    let mode = header.mode().map_err(no_tar)? & 0o7777;
    let mtime = header.mtime().unwrap_or_default();
    Ok(Found { path, mode, mtime, what, left_out: false })
}

impl Source for Tarball {
    fn text(&self, path: &str) -> Result<Option<String>, ContextError> {
        let wanted = super::super::ignore::clean(path);
        let mut text = None;
        self.each(|found, entry| {
            if found == Path::new(&wanted) {
                if !entry.header().entry_type().is_file() {
                    return Err(refused(&found, "is no file"));
                }
                // The last of that name, as for all others.
                text = Some(text_of(path, entry)?);
            }
            Ok(())
        })?;
        Ok(text)
    }

    #[expect(private_interfaces, reason = "as in the trait")]
    fn walk(&self, selection: &Selection, visit: &mut Visit<'_>) -> Result<(), ContextError> {
        self.each(|path, mut entry| {
            if path.as_os_str().is_empty() {
                return Ok(());
            }
            // Refused, even where it is left out.
            let mut found = look(path, &entry)?;
            match selection.judge(&found.path) {
                Judged::LeftOut => return Ok(()),
                Judged::Kept => found.left_out = true,
                Judged::In => {}
            }
            visit(&found, &mut InTar(&mut entry))
        })
    }
}

struct InTar<'a>(&'a mut dyn Read);

impl Content for InTar<'_> {
    fn open(&mut self) -> Result<&mut dyn Read, ContextError> {
        Ok(self.0)
    }
}
