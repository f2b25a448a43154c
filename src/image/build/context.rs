//! A build's context: what is in its folder or tar after `.dockerignore`, and the tar of it that the builder gets.
//!
//! What it promises:
//! - Nothing from outside the context gets in: a folder is read through the kernel's own confinement, without following a link anywhere, and a tar's names are
//!   looked at. A link is handed on as a link, for the image to follow; one that climbs out of the context is refused.
//! - The key is made of what is sent: [`pack`] hashes what it writes. [`survey`], which takes known digests for files that look unchanged, is good for a
//!   question ("is there an image of this?"), and never for the answer to another one.
//! - The order of files in a folder or tar, their times and owners do not matter; with the builder all are root's, as with `docker build`.
//! - The Dockerfile and `.dockerignore` are sent though they are left out (the builder needs them), and then are not part of the context.
//!
//! What can go wrong is in [`ContextError`]. Everything here blocks; it deliberately knows no engine and no Dockerfile.

mod folder;
mod tarball;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub(super) use self::folder::Folder;
pub(super) use self::tarball::Tarball;
use super::ignore::{BadPattern, Ignore};
use super::memo::{Memo, Stamp};

/// More than any context that anybody builds from.
pub(super) const MOST_ENTRIES: usize = 1_000_000;
/// Of a Dockerfile or `.dockerignore`; Docker's own bound for a line is 64 KiB.
const LONGEST_TEXT: u64 = 4 << 20;

/// Why a context cannot be built from.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It, or a file of it that is needed, cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Of the context, or in it.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A path or link that leads out of it.
    #[error("{} {what}", path.display())]
    Refused {
        /// In the context.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Not a tar, or one that is cut off.
    #[error("the context is no tar: {why}")]
    NoTar {
        /// The reader's words.
        why: String,
    },
    /// `[images] context_limit`, or [`MOST_ENTRIES`].
    #[error("the context is larger than {limit}")]
    TooLarge {
        /// In words.
        limit: String,
    },
    /// A line of `.dockerignore`.
    #[error("{file}: {bad}")]
    Ignore {
        /// Its name.
        file: String,
        /// The line.
        bad: BadPattern,
    },
    /// A file whose bytes are words.
    #[error("{} is not UTF-8", path.display())]
    NotText {
        /// In the context.
        path: PathBuf,
    },
    /// No room for the tar, most likely.
    #[error("cannot write the context for the builder")]
    Spool(#[source] io::Error),
}

/// Something in a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its lowest twelve bits.
    pub(super) mode: u32,
    /// What it is.
    pub(super) kind: Kind,
}

/// See [`Entry::kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A folder.
    Folder,
    /// A file, by the SHA-256 of its content.
    File([u8; 32]),
    /// A link, with its target's bytes.
    Link(Vec<u8>),
}

/// All of a context, by the bytes of its paths.
pub(super) type Entries = BTreeMap<Vec<u8>, Entry>;

/// What a walk finds.
struct Found {
    /// Without anything before it.
    path: PathBuf,
    mode: u32,
    /// Seconds since 1970.
    mtime: u64,
    what: What,
    /// Left out by `.dockerignore`, and sent all the same.
    left_out: bool,
}

enum What {
    Folder,
    File {
        size: u64,
        /// Of a file on disk.
        stamp: Option<Stamp>,
    },
    Link(PathBuf),
    /// To a file that came before.
    HardLink(PathBuf),
}

/// A file's content, once.
trait Content {
    fn open(&mut self) -> Result<&mut dyn Read, ContextError>;
}

/// What is done with each thing found.
type Visit<'a> = dyn FnMut(&Found, &mut dyn Content) -> Result<(), ContextError> + 'a;

/// A folder or a tar.
pub(super) trait Source {
    /// A text in it; `None` if there is none of that name.
    fn text(&self, path: &str) -> Result<Option<String>, ContextError>;

    /// Goes through it, folders before what is in them.
    #[expect(private_interfaces, reason = "only this module goes through sources")]
    fn walk(&self, selection: &Selection, visit: &mut Visit<'_>) -> Result<(), ContextError>;
}

/// What is sent of a context.
pub(super) struct Selection {
    ignore: Ignore,
    /// Sent though left out.
    kept: Vec<String>,
    /// Files that are not in the source, or are others there.
    added: BTreeMap<String, Vec<u8>>,
    /// Bytes.
    limit: u64,
}

impl Selection {
    /// What goes for a Dockerfile of this path: `<path>.dockerignore`, else `.dockerignore`, is obeyed. With a `content` of its own the Dockerfile is not looked
    /// for in the source; the builder gets it under the name that comes back, hidden from `COPY`. `limit`: bytes.
    ///
    /// # Errors
    /// As [`ContextError`] says; [`ContextError::Unreadable`] when there is no Dockerfile.
    pub(super) fn new(
        source: &dyn Source,
        dockerfile: &str,
        content: Option<String>,
        limit: u64,
    ) -> Result<(Self, String, String), ContextError> {
        let beside = content.is_none().then(|| format!("{dockerfile}.dockerignore"));
        let (ignore, text) = ignore_of(source, beside.as_deref())?;
        let mut selection = Self { ignore, kept: vec![".dockerignore".to_owned()], added: BTreeMap::new(), limit };
        if let Some(content) = content {
            let hidden = format!(".dockerfile.{}", &hex(&Sha256::digest(&content))[..16]);
            selection.added.insert(".dockerignore".into(), format!("{}\n{hidden}\n", text.unwrap_or_default()).into_bytes());
            selection.added.insert(hidden.clone(), content.clone().into_bytes());
            return Ok((selection, hidden, content));
        }
        let missing = || ContextError::Unreadable { path: dockerfile.into(), source: io::ErrorKind::NotFound.into() };
        let content = source.text(dockerfile)?.ok_or_else(missing)?;
        selection.kept.push(dockerfile.to_owned());
        Ok((selection, dockerfile.to_owned(), content))
    }

    /// What goes to a daemon that is to select for itself.
    pub(super) fn to_send(source: &dyn Source, dockerfile: Option<&str>, limit: u64) -> Result<Self, ContextError> {
        let beside = dockerfile.map(|dockerfile| format!("{dockerfile}.dockerignore"));
        let (ignore, _) = ignore_of(source, beside.as_deref())?;
        let kept = [Some(".dockerignore"), dockerfile, beside.as_deref()];
        Ok(Self { ignore, kept: kept.into_iter().flatten().map(str::to_owned).collect(), added: BTreeMap::new(), limit })
    }

    fn judge(&self, path: &Path) -> Judged {
        let path = path.to_string_lossy();
        if self.added.contains_key(&*path) {
            return Judged::LeftOut;
        }
        match (self.ignore.excludes(&path), self.kept.iter().any(|kept| *kept == path)) {
            (false, _) => Judged::In,
            (true, true) => Judged::Kept,
            (true, false) => Judged::LeftOut,
        }
    }

    /// Whether something in a folder that is left out may be sent.
    fn looks_into(&self, folder: &Path) -> bool {
        self.ignore.takes_back() || self.kept.iter().any(|kept| Path::new(kept).starts_with(folder))
    }
}

/// By the first of the two files that is there, and its text.
fn ignore_of(source: &dyn Source, beside: Option<&str>) -> Result<(Ignore, Option<String>), ContextError> {
    for name in beside.into_iter().chain([".dockerignore"]) {
        if let Some(text) = source.text(name)? {
            let ignore = Ignore::parse(&text).map_err(|bad| ContextError::Ignore { file: name.to_owned(), bad })?;
            return Ok((ignore, Some(text)));
        }
    }
    Ok((Ignore::default(), None))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    In,
    Kept,
    LeftOut,
}

/// What the context's key is made of, by digests that are known of files that look unchanged.
///
/// # Errors
/// As [`ContextError`] says.
pub(super) fn survey(source: &Folder, selection: &Selection, memo: &Memo) -> Result<Entries, ContextError> {
    let mut tally = Tally::new(selection);
    source.walk(selection, &mut |found, content| {
        let kind = match &found.what {
            What::File { size, stamp } => {
                tally.count(*size)?;
                let digest = memo.digest(*stamp, || digest(&found.path, content.open()?, *size))?;
                Kind::File(digest)
            }
            what @ (What::Folder | What::Link(_) | What::HardLink(_)) => tally.known(&found.path, what)?,
        };
        tally.add(found, kind)
    })?;
    Ok(tally.entries)
}

/// Writes the tar for the builder, and says what is in it.
///
/// # Errors
/// As [`ContextError`] says.
pub(super) fn pack(source: &dyn Source, selection: &Selection, out: &File) -> Result<Entries, ContextError> {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, out));
    let mut tally = Tally::new(selection);
    source.walk(selection, &mut |found, content| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(found.mode);
        header.set_mtime(found.mtime);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let kind = match &found.what {
            What::File { size, .. } => {
                tally.count(*size)?;
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(*size);
                let mut hashing = Hashing { inner: content.open()?, hash: Sha256::new(), left: *size };
                tar.append_data(&mut header, &found.path, &mut hashing).map_err(ContextError::Spool)?;
                if hashing.left > 0 {
                    return Err(changed(&found.path));
                }
                Kind::File(hashing.hash.finalize().into())
            }
            What::Folder => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, &found.path, io::empty()).map_err(ContextError::Spool)?;
                Kind::Folder
            }
            What::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, &found.path, target).map_err(ContextError::Spool)?;
                tally.known(&found.path, &found.what)?
            }
            What::HardLink(target) => {
                let kind = tally.known(&found.path, &found.what)?;
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, &found.path, target).map_err(ContextError::Spool)?;
                kind
            }
        };
        tally.add(found, kind)
    })?;
    for (name, content) in &selection.added {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, &content[..]).map_err(ContextError::Spool)?;
    }
    tar.into_inner().and_then(|mut out| out.flush()).map_err(ContextError::Spool)?;
    Ok(tally.entries)
}

/// What was found so far, within bounds.
struct Tally {
    entries: Entries,
    bytes: u64,
    limit: u64,
}

impl Tally {
    fn new(selection: &Selection) -> Self {
        Self { entries: Entries::new(), bytes: 0, limit: selection.limit }
    }

    fn count(&mut self, size: u64) -> Result<(), ContextError> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limit {
            return Err(ContextError::TooLarge { limit: format!("{} bytes ([images] context_limit)", self.limit) });
        }
        Ok(())
    }

    /// Of all that has no content of its own.
    fn known(&self, path: &Path, what: &What) -> Result<Kind, ContextError> {
        match what {
            What::Link(target) => Ok(Kind::Link(target.as_os_str().as_bytes().to_vec())),
            What::HardLink(target) => match self.entries.get(target.as_os_str().as_bytes()) {
                Some(Entry { kind: kind @ Kind::File(_), .. }) => Ok(kind.clone()),
                Some(_) | None => Err(refused(path, "is a hard link to a file that is not in the context before it")),
            },
            What::Folder | What::File { .. } => Ok(Kind::Folder),
        }
    }

    fn add(&mut self, found: &Found, kind: Kind) -> Result<(), ContextError> {
        if self.entries.len() >= MOST_ENTRIES {
            return Err(ContextError::TooLarge { limit: format!("{MOST_ENTRIES} files and folders") });
        }
        if !found.left_out {
            self.entries.insert(found.path.as_os_str().as_bytes().to_vec(), Entry { mode: found.mode, kind });
        }
        Ok(())
    }
}

/// Hashes what it hands on, and hands on no more than there was.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        self.hash.update(&buffer[..count]);
        self.left -= count as u64;
        Ok(count)
    }
}

fn digest(path: &Path, content: &mut dyn Read, size: u64) -> Result<[u8; 32], ContextError> {
    let mut hashing = Hashing { inner: content, hash: Sha256::new(), left: size };
    let mut buffer = vec![0; 1 << 17];
    loop {
        match hashing.read(&mut buffer) {
            Ok(0) if hashing.left == 0 => return Ok(hashing.hash.finalize().into()),
            Ok(0) => return Err(changed(path)),
            Ok(_) => {}
            Err(source) => return Err(ContextError::Unreadable { path: path.to_owned(), source }),
        }
    }
}

fn changed(path: &Path) -> ContextError {
    refused(path, "became shorter while it was read")
}

fn refused(path: &Path, what: &'static str) -> ContextError {
    ContextError::Refused { path: path.to_owned(), what }
}

/// A relative link stays within the context. An absolute one is for the image, which has a root of its own.
fn check_link(path: &Path, target: &Path) -> Result<(), ContextError> {
    let mut depth = path.components().count().saturating_sub(1);
    for part in target.components() {
        match part {
            std::path::Component::RootDir | std::path::Component::Prefix(_) => return Ok(()),
            std::path::Component::ParentDir if depth == 0 => return Err(refused(path, "is a link that leads out of the context")),
            std::path::Component::ParentDir => depth -= 1,
            std::path::Component::CurDir => {}
            std::path::Component::Normal(_) => depth += 1,
        }
    }
    Ok(())
}

fn text_of(path: &str, content: impl Read) -> Result<String, ContextError> {
    let mut bytes = Vec::new();
    let read = content.take(LONGEST_TEXT + 1).read_to_end(&mut bytes);
    read.map_err(|source| ContextError::Unreadable { path: path.into(), source })?;
    if bytes.len() as u64 > LONGEST_TEXT {
        return Err(ContextError::TooLarge { limit: format!("{LONGEST_TEXT} bytes in {path}") });
    }
    String::from_utf8(bytes).map_err(|_| ContextError::NotText { path: path.into() })
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
