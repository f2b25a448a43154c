//! Where the checks look: the files of a host, the environment, and who asks. A test gives them a folder of its own instead.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is not said within this long is not said.
pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// Of a file below `/proc`, `/sys` or `/etc`; the list of mounts is the longest.
const LONGEST: u64 = 16 << 20;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Host {
    root: PathBuf,
    environment: BTreeMap<String, String>,
    /// Effective.
    pub(super) uid: u32,
    /// This program, for what is tried in a process of its own.
    pub(super) program: PathBuf,
    /// For each thing that may not answer.
    pub(super) limit: Duration,
}

impl Host {
    /// The one that this program runs on, with that much patience.
    pub(super) fn real(limit: Duration) -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            root: PathBuf::from("/"),
            environment: std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect(),
            uid: rustix::process::geteuid().as_raw(),
            program: PathBuf::from("/proc/self/exe"),
            limit,
        }
    }

    /// Where an absolute path of the host is.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Without the white space at its end.
    pub(super) fn read(&self, path: &str) -> io::Result<String> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        std::fs::File::open(self.path(path))?.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }

    /// The first number in a file; none when there is no such file, or no number in it.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path).ok()?.split_whitespace().next()?.parse().ok()
    }

    pub(super) fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).cloned()
    }

    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Of whoever asks; the number when there is no name.
    pub(super) fn user(&self) -> String {
        let users = self.read("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid) = (fields.next()?, fields.next()?, fields.next()?);
            (uid == self.uid.to_string()).then(|| name.to_owned())
        });
        name.unwrap_or_else(|| self.uid.to_string())
    }

    /// A field of `/proc/self/status`, e.g. `CapEff`.
    pub(super) fn own(&self, field: &str) -> Option<String> {
        let status = self.read("/proc/self/status").ok()?;
        status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
    }

    /// The mount that a path is on.
    pub(super) fn mount_of(&self, path: &Path) -> Option<Mount> {
        let mounts = self.read("/proc/self/mountinfo").ok()?;
        let on_the_way = mounts.lines().filter_map(Mount::read).filter(|mount| path.starts_with(&mount.place));
        // Of two on one place the later one is on top.
        on_the_way.max_by_key(|mount| mount.place.components().count())
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) place: PathBuf,
    /// e.g. `tmpfs`.
    pub(super) kind: String,
    /// Those of the file system itself included.
    pub(super) options: Vec<String>,
}

impl Mount {
    /// Like `22 21 0:5 / /run rw,nosuid shared:3 - tmpfs tmpfs rw,size=10k`.
    fn read(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let (mut before, mut after) = (before.split(' ').skip(4), after.split(' '));
        let (place, options, kind) = (before.next()?, before.next()?, after.next()?);
        let options = options.split(',').chain(after.nth(1).unwrap_or_default().split(','));
        Some(Self { place: place.into(), kind: kind.to_owned(), options: options.map(str::to_owned).collect() })
    }

    pub(super) fn is_in_memory(&self) -> bool {
        self.kind == "tmpfs" || self.kind == "ramfs"
    }
}

/// Carries out what may never come back, like a question to a disk, in a thread of its own, which is left behind when it is late: at the end of this
/// program the runtime waits for none of them.
pub(super) async fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let work = move || {
        // Nobody listens any more when it was late.
        let _late = tell.send(work());
    };
    std::thread::Builder::new().name("doctor".to_owned()).spawn(work).ok()?;
    tokio::time::timeout(limit, told).await.ok()?.ok()
}

#[cfg(test)]
pub(super) mod made_up {
    //! A host of files that a test has written.

    use super::*;

    pub(in crate::cli::doctor) struct MadeUp {
        dir: tempfile::TempDir,
        pub(in crate::cli::doctor) host: Host,
    }

    impl MadeUp {
        pub(in crate::cli::doctor) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = Host {
                root: dir.path().to_owned(),
                environment: BTreeMap::new(),
                uid: 0,
                program: PathBuf::from("/bin/false"),
                limit: Duration::from_millis(300),
            };
            Self { dir, host }
        }

        pub(in crate::cli::doctor) fn with(self, path: &str, text: &str) -> Self {
            let path = self.dir.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
            self
        }

        pub(in crate::cli::doctor) fn with_folder(self, path: &str) -> Self {
            std::fs::create_dir_all(self.dir.path().join(path.trim_start_matches('/'))).unwrap();
            self
        }

        pub(in crate::cli::doctor) fn asked_by(mut self, uid: u32) -> Self {
            self.host.uid = uid;
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::made_up::MadeUp;
    use super::*;

    #[test]
    fn a_path_is_on_the_nearest_mount_and_on_the_last_one_there() {
        let mounts = "21 1 8:1 / / rw,relatime - ext4 /dev/vda rw\n\
                      22 21 0:5 / /run rw,nosuid shared:3 - tmpfs tmpfs rw,size=10k\n\
                      23 22 0:6 / /running ro - xfs /dev/b rw\n\
                      24 22 0:7 / /proc rw - proc proc rw\n\
                      25 24 0:8 / /proc rw - proc proc rw,hidepid=invisible";
        let made_up = MadeUp::new().with("/proc/self/mountinfo", mounts);
        let kind = |path: &str| made_up.host.mount_of(Path::new(path)).unwrap().kind;
        assert_eq!([kind("/run/nspool"), kind("/var"), kind("/running")], ["tmpfs", "ext4", "xfs"]);
        let options = made_up.host.mount_of(Path::new("/proc")).unwrap().options;
        assert!(options.contains(&"hidepid=invisible".to_owned()), "{options:?}");
    }

    #[test]
    fn whoever_asks_has_a_name_or_a_number() {
        let made_up = MadeUp::new().with("/etc/passwd", "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/home:/bin/sh\n");
        assert_eq!(made_up.host.user(), "root");
        assert_eq!(made_up.asked_by(7).host.user(), "7");
    }

    #[tokio::test]
    async fn what_never_comes_back_is_left_behind() {
        assert_eq!(within(Duration::from_secs(30), || 7).await, Some(7));
        let (_keep, never) = std::sync::mpsc::sync_channel::<()>(0);
        assert!(within(Duration::from_millis(50), move || never.recv()).await.is_none());
    }
}
