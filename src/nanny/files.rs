//! The files that joiners share with a buddy: its /etc/hosts, /etc/hostname and /etc/resolv.conf, which the engine mounts into each joiner, writable.
//!
//! A function that runs as root can write into them, and the next tenant would read it. So for each use they are replaced from what they were when
//! the buddy was made ([`crate::netns::files`]). Where the namespaces are used again as they are, they are compared first.
//!
//! What can go wrong: the engine's folder is not in our sight, or not ours to write, or a file is longer than any that an engine writes; the buddy is not
//! handed out again then.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Container;
use crate::netns::Kernel;
use crate::netns::files::{MOST_BYTES, SharedFile};
use crate::netns::inspection::{Difference, InspectError, Kind};

/// What the shared files were.
#[derive(Clone, Default)]
pub(super) struct SharedFiles(Option<Known>);

#[derive(Clone)]
struct Known {
    kernel: Arc<dyn Kernel>,
    files: Arc<[SharedFile]>,
}

impl std::fmt::Debug for SharedFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().flat_map(|known| known.files.iter().map(|file| &file.path))).finish()
    }
}

impl SharedFiles {
    /// As they are now: nobody has joined yet.
    ///
    /// # Errors
    /// One of them cannot be read, or is too long.
    pub(super) async fn of(container: &Container, kernel: &Arc<dyn Kernel>) -> io::Result<Self> {
        let paths = [&container.resolv_conf_path, &container.hosts_path, &container.hostname_path];
        let paths: Vec<PathBuf> = paths.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect();
        if paths.is_empty() { Ok(Self::default()) } else { Self::at(paths, kernel).await }
    }

    async fn at(paths: Vec<PathBuf>, kernel: &Arc<dyn Kernel>) -> io::Result<Self> {
        let wanted = paths.into_iter().map(|path| (path, MOST_BYTES)).collect();
        let files: Arc<[SharedFile]> = kernel.read_files(wanted).await.into_iter().collect::<Result<_, _>>().map_err(io::Error::other)?;
        // There may be more than was read, and what is put back would be cut off there.
        if let Some(long) = files.iter().find(|file| file.content.len() as u64 >= MOST_BYTES) {
            return Err(io::Error::other(format!("{} has {MOST_BYTES} bytes or more", long.path.display())));
        }
        Ok(Self(Some(Known { kernel: Arc::clone(kernel), files })))
    }

    /// What is different from what they were: a difference each, which does not show what is in them. What is late is different.
    pub(super) async fn differences(&self, within: Duration) -> Vec<Difference> {
        let Some(Known { kernel, files }) = &self.0 else { return Vec::new() };
        // Its length is a function's choice: more than there was is not read.
        let wanted = files.iter().map(|file| (file.path.clone(), file.content.len() as u64 + 1)).collect();
        match tokio::time::timeout(within, kernel.read_files(wanted)).await {
            Ok(now) => files.iter().zip(now).filter_map(|(was, now)| difference(was, now)).collect(),
            Err(_) => vec![InspectError::Late { limit: within }.into()],
        }
    }

    /// Makes each of them a new file with the first one's content.
    ///
    /// # Errors
    /// One of them cannot be replaced, or is not what was written.
    pub(super) async fn renew(&self) -> io::Result<()> {
        match &self.0 {
            Some(Known { kernel, files }) => kernel.replace_files(files.to_vec()).await.map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

fn difference(was: &SharedFile, now: Result<SharedFile, String>) -> Option<Difference> {
    let subject = was.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let differs = |was: String, is: String| Difference { kind: Kind::SharedFile, subject: subject.clone(), was: Some(was), is: Some(is) };
    let rights = |file: &SharedFile| format!("{:o} of {}:{}", file.mode, file.owner.0, file.owner.1);
    match now {
        Err(error) => Some(Difference { kind: Kind::Unreadable, subject, was: None, is: Some(error) }),
        Ok(now) if (now.mode, now.owner) != (was.mode, was.owner) => Some(differs(rights(was), rights(&now))),
        Ok(now) if now.content != was.content => {
            Some(differs(format!("{} bytes", was.content.len()), format!("{} bytes or more, others", now.content.len())))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::netns::linux::Linux;

    #[tokio::test]
    async fn what_became_of_a_file_is_told_and_a_long_one_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0".repeat(64)).join("hosts");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let kernel: Arc<dyn Kernel> = Arc::new(Linux::new());
        let files = SharedFiles::at(vec![path.clone()], &kernel).await.unwrap();
        let told = async || {
            let told = files.differences(Duration::from_secs(60)).await;
            told.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(told().await, "");
        std::fs::write(&path, "127.0.0.1 lokalhost\n").unwrap();
        assert_eq!(told().await, "shared_file hosts: was 20 bytes, is 20 bytes or more, others");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(told().await, "shared_file hosts: was 20 bytes, is 21 bytes or more, others");
        files.renew().await.unwrap();
        assert_eq!(told().await, "");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(told().await.contains("is 666 of "));
        std::fs::remove_file(&path).unwrap();
        assert!(told().await.starts_with("unreadable hosts: "), "{}", told().await);
    }

    #[tokio::test]
    async fn what_is_too_long_to_be_put_back_whole_is_no_baseline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0".repeat(64)).join("hosts");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let kernel: Arc<dyn Kernel> = Arc::new(Linux::new());
        let longest = usize::try_from(MOST_BYTES).unwrap() - 1;
        std::fs::write(&path, vec![b'#'; longest]).unwrap();
        SharedFiles::at(vec![path.clone()], &kernel).await.unwrap().renew().await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap().len(), longest);
        for longer in [longest + 1, longest + 2] {
            std::fs::write(&path, vec![b'#'; longer]).unwrap();
            let error = SharedFiles::at(vec![path.clone()], &kernel).await.unwrap_err().to_string();
            assert!(error.contains("hosts has 262144 bytes or more"), "{error}");
        }
    }
}
