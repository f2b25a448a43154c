//! The files that an engine keeps for a container and mounts into each joiner: its /etc/hosts, /etc/hostname and /etc/resolv.conf.
//!
//! Only these: of a path that is not one of them, below a container's folder, nothing is read or written. A file is replaced by a new one under the old
//! name, never in place, since a process that was left behind may still have the old one open.
//!
//! What can go wrong: the engine's folder is not in our sight, or not ours to write.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What an engine calls them.
const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];
/// So many are read at most; an engine writes some hundred. What has as many may have more.
pub const MOST_BYTES: u64 = 256 * 1024;

/// What is in a file, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFile {
    /// On the host.
    pub path: PathBuf,
    /// Of it, or its beginning.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

impl SharedFile {
    /// That many bytes of it, or less. Blocks.
    ///
    /// # Errors
    /// It is not such a file, or cannot be read.
    pub fn read(path: &Path, most: u64) -> io::Result<Self> {
        is_shared(path)?;
        let of_path = |error: io::Error| with_path(path, &error);
        let (file, mut content) = (open(path).map_err(of_path)?, Vec::new());
        let metadata = file.metadata().map_err(of_path)?;
        if !metadata.is_file() {
            return Err(of_path(io::Error::other("is no file any more")));
        }
        file.take(most.min(MOST_BYTES)).read_to_end(&mut content).map_err(of_path)?;
        let owner = (metadata.uid(), metadata.gid());
        Ok(Self { content, mode: metadata.permissions().mode() & 0o7777, owner, path: path.to_owned() })
    }

    /// Puts a new file with this content in its place. Blocks.
    ///
    /// # Errors
    /// It cannot be replaced, or is not what was written.
    pub fn replace(&self) -> io::Result<()> {
        is_shared(&self.path)?;
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
        // As long as it is ours.
        file.set_permissions(std::fs::Permissions::from_mode(self.mode)).map_err(of_path)?;
        std::os::unix::fs::fchown(&file, Some(self.owner.0), Some(self.owner.1)).map_err(of_path)?;
        std::fs::rename(&next, &self.path).map_err(of_path)?;
        let is = Self::read(&self.path, self.content.len() as u64 + 1)?;
        if is.content == self.content { Ok(()) } else { Err(io::Error::other(format!("{} was changed at once", self.path.display()))) }
    }
}

/// Neither through a link, nor waiting for somebody at the other end.
fn open(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

/// Whether it is one of a container's: by its name, below a folder that has a container's id for a name.
fn is_shared(path: &Path) -> io::Result<()> {
    let is_id = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let straight = path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| NAMES.contains(&name));
    let containers = path.components().any(|part| part.as_os_str().to_str().is_some_and(is_id));
    if straight && named && containers {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a file that a container shares with its joiners", path.display())))
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(ID).join("hosts");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        (folder, path)
    }

    #[test]
    fn a_file_is_replaced_by_a_new_one_with_the_same_rights() {
        let (_folder, path) = folder();
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let first = SharedFile::read(&path, MOST_BYTES).unwrap();
        // What a crash left.
        std::fs::write(path.with_file_name("hosts.nspool"), "half").unwrap();
        let mut left_behind = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        left_behind.write_all(b"6.6.6.6 bank\n").unwrap();
        first.replace().unwrap();
        left_behind.write_all(b"6.6.6.6 bank\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"127.0.0.1 localhost\n");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_is_said_with_its_path() {
        let (_folder, path) = folder();
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let file = SharedFile::read(&path, MOST_BYTES).unwrap();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(file.replace().unwrap_err().to_string().contains("hosts: "));
    }

    #[test]
    fn no_other_file_is_read_or_written() {
        let (folder, path) = folder();
        let of = |path: &str| folder.path().join(path);
        for other in
            [of("hosts"), of(ID).join("shadow"), of(ID).join("../hosts"), PathBuf::from("/etc/hosts"), PathBuf::from(format!("{ID}/hosts"))]
        {
            let file = SharedFile { path: other.clone(), content: Vec::new(), mode: 0o644, owner: (0, 0) };
            for error in [SharedFile::read(&other, 1).unwrap_err(), file.replace().unwrap_err()] {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            }
        }
        std::fs::write(of("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(of("secret"), &path).unwrap();
        assert!(SharedFile::read(&path, 6).is_err(), "a link leads elsewhere");
    }
}
