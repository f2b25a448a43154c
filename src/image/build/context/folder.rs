//! A context that is a folder. The kernel keeps every look inside of it (`openat2`, `RESOLVE_BENEATH`), without links, whoever changes it meanwhile.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};

use super::{Content, ContextError, Found, Judged, Selection, Source, Visit, What, check_link, refused, text_of};
use crate::image::build::memo::Stamp;

/// An open folder: it stays the same one, whatever becomes of its name.
pub(in crate::image::build) struct Folder {
    root: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// `path` may lead over links: whoever names it is asked for it. `identity`: device and inode that it must have.
    ///
    /// # Errors
    /// [`ContextError::Unreadable`].
    pub(in crate::image::build) fn open(path: &Path, identity: Option<(u64, u64)>) -> Result<Self, ContextError> {
        let unreadable = |source| ContextError::Unreadable { path: path.to_owned(), source };
        let opened = fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = opened.map_err(|errno| unreadable(errno.into()))?;
        let stat = fs::fstat(&root).map_err(|errno| unreadable(errno.into()))?;
        if identity.is_some_and(|identity| identity != (stat.st_dev, stat.st_ino)) {
            return Err(unreadable(io::Error::other("it is another folder here than the caller's")));
        }
        Ok(Self { root, path: path.to_owned() })
    }

    fn unreadable(&self, path: &Path, source: impl Into<io::Error>) -> ContextError {
        ContextError::Unreadable { path: self.path.join(path), source: source.into() }
    }

    fn open_in(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        // Not to hang on what has become a pipe.
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::io::retry_on_intr(|| fs::openat2(&self.root, path, flags, Mode::empty(), resolve))
    }

    fn open_file(&self, path: &Path) -> Result<File, ContextError> {
        let opened = self.open_in(path, OFlags::empty()).map_err(|errno| self.unreadable(path, errno))?;
        let stat = fs::fstat(&opened).map_err(|errno| self.unreadable(path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(path, "is no file any more"));
        }
        Ok(opened.into())
    }

    fn content<'a>(&'a self, found: &'a Found) -> LazyFile<'a> {
        LazyFile { folder: self, path: &found.path, file: None }
    }

    /// What is in one folder, by name.
    fn names(&self, folder: &Path) -> Result<(OwnedFd, Vec<OsString>), ContextError> {
        let at = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let opened = self.open_in(at, OFlags::DIRECTORY).map_err(|errno| self.unreadable(folder, errno))?;
        let entries = fs::Dir::read_from(&opened).map_err(|errno| self.unreadable(folder, errno))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(|errno| self.unreadable(folder, errno))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok((opened, names))
    }

    /// `None`: a socket, which no archive has.
    fn look(&self, folder: &OwnedFd, name: &OsString, path: PathBuf) -> Result<Option<Found>, ContextError> {
        let stat = fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.unreadable(&path, errno))?;
        let what = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => What::Folder,
            FileType::RegularFile => What::File { size: u64::try_from(stat.st_size).unwrap_or_default(), stamp: Some(Stamp::of(&stat)) },
            FileType::Symlink => {
                let target = fs::readlinkat(folder, name, Vec::new()).map_err(|errno| self.unreadable(&path, errno))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                check_link(&path, &target)?;
                What::Link(target)
            }
            FileType::Socket => return Ok(None),
            FileType::Fifo => return Err(refused(&path, "is a pipe: name it in .dockerignore")),
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
                return Err(refused(&path, "is a device: name it in .dockerignore"));
            }
        };
        let mode = stat.st_mode & 0o7777;
        Ok(Some(Found { path, mode, mtime: u64::try_from(stat.st_mtime).unwrap_or_default(), what, left_out: false }))
    }

    /// `waiting`: folders that are left out, and are sent when something in them is.
    fn descend(&self, folder: &Path, selection: &Selection, waiting: &mut Vec<Found>, visit: &mut Visit<'_>) -> Result<(), ContextError> {
        let (opened, names) = self.names(folder)?;
        for name in names {
            let path = folder.join(&name);
            let judged = selection.judge(&path);
            // What is left out is not even looked at, but for folders that may have something in them.
            if judged == Judged::LeftOut && !selection.looks_into(&path) {
                continue;
            }
            let Some(mut found) = self.look_if(judged, &opened, &name, path)? else { continue };
            let is_folder = matches!(found.what, What::Folder);
            found.left_out = judged == Judged::Kept;
            if judged != Judged::LeftOut {
                for parent in waiting.drain(..) {
                    visit(&parent, &mut self.content(&parent))?;
                }
                visit(&found, &mut self.content(&found))?;
            }
            if is_folder {
                let path = found.path.clone();
                if judged == Judged::LeftOut {
                    waiting.push(found);
                }
                self.descend(&path, selection, waiting, visit)?;
                // Nothing in it was sent.
                if waiting.last().is_some_and(|last| last.path == path) {
                    waiting.pop();
                }
            }
        }
        Ok(())
    }

    fn look_if(&self, judged: Judged, folder: &OwnedFd, name: &OsString, path: PathBuf) -> Result<Option<Found>, ContextError> {
        if judged == Judged::LeftOut {
            let stat = fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.unreadable(&path, errno))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(None);
            }
        }
        self.look(folder, name, path)
    }
}

impl Source for Folder {
    fn text(&self, path: &str) -> Result<Option<String>, ContextError> {
        match self.open_in(Path::new(path), OFlags::empty()) {
            Ok(_) => text_of(path, self.open_file(Path::new(path))?).map(Some),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::XDEV) => Err(refused(Path::new(path), "is a link, or behind one")),
            Err(errno) => Err(self.unreadable(Path::new(path), errno)),
        }
    }

    #[expect(private_interfaces, reason = "as in the trait")]
    fn walk(&self, selection: &Selection, visit: &mut Visit<'_>) -> Result<(), ContextError> {
        self.descend(Path::new(""), selection, &mut Vec::new(), visit)
    }
}

/// Opened only when it is asked for: most files are known unread.
struct LazyFile<'a> {
    folder: &'a Folder,
    path: &'a Path,
    file: Option<File>,
}

impl Content for LazyFile<'_> {
    fn open(&mut self) -> Result<&mut dyn Read, ContextError> {
        let file = self.folder.open_file(self.path)?;
        Ok(self.file.insert(file))
    }
}
