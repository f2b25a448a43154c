//! Network namespaces of a test's own, with what is done inside them by threads that end there.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Lives as long as this, or somebody inside.
#[derive(Debug)]
pub struct Space(File);

/// One that is there.
impl From<File> for Space {
    fn from(namespace: File) -> Self {
        Self(namespace)
    }
}

impl Space {
    /// Empty but for `lo`, which is down.
    #[expect(deprecated, reason = "only the network namespace of a thread that ends is left, which is none of what it warns of")]
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn owned(&self) -> OwnedFd {
        self.0.try_clone().unwrap().into()
    }

    /// Does something inside.
    pub fn inside<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        let work = || {
            move_into_link_name_space(self.fd(), Some(LinkNameSpaceType::Network)).unwrap();
            deed()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    /// Runs a shell's lines inside, and gives what they print. They must not fail.
    pub fn run(&self, lines: &str) -> String {
        let output = self.inside(|| Command::new("sh").args(["-ec", lines]).output().unwrap());
        assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}
