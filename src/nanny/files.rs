//! The files that joiners share with a buddy: its /etc/hosts, /etc/hostname and /etc/resolv.conf, which the engine mounts into each joiner, writable.
//!
//! A function that runs as root can write into them, and the next tenant would read it. So for each use they are replaced from what they were when
//! the buddy was made: by a new file under the old name, never in place, since a process that was left behind may still have the old one open, and
//! what it writes then reaches nobody. Where the namespaces are used again as they are, they are compared first.
//!
//! What can go wrong: the engine's folder is not in our sight, or not ours to write; the buddy is not handed out again then.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Container;
use crate::netns::inspection::{Difference, InspectError, Kind};

/// What the shared files were.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedFiles(Arc<[SharedFile]>);

#[derive(Debug)]
struct SharedFile {
    path: PathBuf,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
}

impl SharedFiles {
    /// As they are now: nobody has joined yet.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(super) async fn of(container: &Container) -> io::Result<Self> {
        let paths = [&container.resolv_conf_path, &container.hosts_path, &container.hostname_path];
        let paths: Vec<PathBuf> = paths.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        if paths.is_empty() {
            return Ok(Self::default());
        }
        let read = move || paths.into_iter().map(SharedFile::read).collect::<io::Result<Arc<[SharedFile]>>>();
        tokio::task::spawn_blocking(read).await?.map(Self)
    }

    /// What is different from what they were: a difference each, which does not show what is in them. What is late is different.
    pub(super) async fn differences(&self, within: Duration) -> Vec<Difference> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let files = Arc::clone(&self.0);
        let compare = tokio::task::spawn_blocking(move || files.iter().filter_map(SharedFile::difference).collect());
        match tokio::time::timeout(within, compare).await {
            Ok(Ok(differences)) => differences,
            Ok(Err(error)) => vec![unreadable("the shared files", error.to_string())],
            Err(_) => vec![InspectError::Late { limit: within }.into()],
        }
    }

    /// Makes each of them a new file with the first one's content.
    ///
    /// # Errors
    /// One of them cannot be replaced, or is not what was written.
    pub(super) async fn renew(&self) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let files = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || files.iter().try_for_each(SharedFile::replace)).await?
    }
}

impl SharedFile {
    fn read(path: PathBuf) -> io::Result<Self> {
        Self::read_at_most(path, u64::MAX)
    }

    fn read_at_most(path: PathBuf, bytes: u64) -> io::Result<Self> {
        let of_path = |error: io::Error| with_path(&path, &error);
        let (file, mut content) = (std::fs::File::open(&path).map_err(of_path)?, Vec::new());
        file.take(bytes).read_to_end(&mut content).map_err(of_path)?;
        let metadata = std::fs::symlink_metadata(&path).map_err(of_path)?;
        Ok(Self { content, mode: metadata.permissions().mode() & 0o7777, owner: (metadata.uid(), metadata.gid()), path })
    }

    fn difference(&self) -> Option<Difference> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Its length is a function's choice: more than there was is not read.
        match Self::read_at_most(self.path.clone(), self.content.len() as u64 + 1) {
            Err(error) => Some(unreadable(&name, error.to_string())),
            Ok(now) if (now.mode, now.owner) != (self.mode, self.owner) => Some(different(&name, &self.rights(), &now.rights())),
            Ok(now) if now.content != self.content => {
                Some(different(&name, &format!("{} bytes", self.content.len()), &format!("{} bytes or more, others", now.content.len())))
            }
            Ok(_) => None,
        }
    }

    fn rights(&self) -> String {
        format!("{:o} of {}:{}", self.mode, self.owner.0, self.owner.1)
    }

    fn replace(&self) -> io::Result<()> {
        let of_path = |error: io::Error| with_path(&self.path, &error);
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".nspool");
        let next = self.path.with_file_name(name);
        // Of a daemon that ended just here.
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(of_path(error)),
            Ok(()) | Err(_) => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next).map_err(of_path)?;
        file.write_all(&self.content).map_err(of_path)?;
        std::os::unix::fs::fchown(&file, Some(self.owner.0), Some(self.owner.1)).map_err(of_path)?;
        file.set_permissions(std::fs::Permissions::from_mode(self.mode)).map_err(of_path)?;
        std::fs::rename(&next, &self.path).map_err(of_path)?;
        let is = std::fs::read(&self.path).map_err(of_path)?;
        if is == self.content { Ok(()) } else { Err(io::Error::other(format!("{} was changed at once", self.path.display()))) }
    }
}

fn different(subject: &str, was: &str, is: &str) -> Difference {
    Difference { kind: Kind::SharedFile, subject: subject.to_owned(), was: Some(was.to_owned()), is: Some(is.to_owned()) }
}

fn unreadable(subject: &str, why: String) -> Difference {
    Difference { kind: Kind::Unreadable, subject: subject.to_owned(), was: None, is: Some(why) }
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_a_new_one_and_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let file = SharedFile::read(path.clone()).unwrap();
        let (mut left_open, inode) =
            (std::fs::OpenOptions::new().append(true).open(&path).unwrap(), std::fs::metadata(&path).unwrap().ino());
        left_open.write_all(b"6.6.6.6 bank\n").unwrap();
        std::fs::write(folder.path().join("hosts.nspool"), "of one that was cut short").unwrap();
        file.replace().unwrap();
        left_open.write_all(b"6.6.6.6 mail\n").unwrap();
        let now = std::fs::metadata(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "127.0.0.1 localhost\n");
        assert_eq!((now.permissions().mode() & 0o7777, now.ino() == inode), (0o640, false));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_became_of_a_file_is_told_and_a_long_one_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let file = SharedFile::read(path.clone()).unwrap();
        assert_eq!(file.difference(), None);
        std::fs::write(&path, "127.0.0.1 lokalhost\n").unwrap();
        assert_eq!(file.difference().unwrap().to_string(), "shared_file hosts: was 20 bytes, is 20 bytes or more, others");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(file.difference().unwrap().to_string(), "shared_file hosts: was 20 bytes, is 21 bytes or more, others");
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(file.difference().unwrap().to_string().contains("is 666 of "));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.difference().unwrap().kind, Kind::Unreadable);
    }

    #[test]
    fn what_cannot_be_replaced_is_said_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "").unwrap();
        let file = SharedFile::read(path.clone()).unwrap();
        drop(folder);
        let error = file.replace().unwrap_err();
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert!(SharedFile::read(path).is_err());
    }
}
