//! Digests of files that were read once and look unchanged since: the same inode, size and times of content and inode.
//!
//! What can go wrong: a file that is written to within the clock tick in which it was hashed would look unchanged. So nothing is remembered of a file that
//! changed less than [`SETTLED`] before. A file system that does not keep times, or whoever sets the host's clock back, can still make a lie of it, which is why
//! no build's key comes from here ([`super::context::pack`]).
//!
//! Bounded: two generations of [`GENERATION`] files each; a full one takes the place of the older.

use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::random::HashMap;

/// The coarsest times that file systems in use keep (FAT: two seconds).
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// Files in one generation: some 25 MB for two.
const GENERATION: usize = 1 << 17;

/// What a file looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    /// Nanoseconds since 1970, of content and inode.
    modified: i128,
    changed: i128,
}

impl Stamp {
    #[expect(clippy::useless_conversion, reason = "the kernel's types differ between architectures")]
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        let nanoseconds = |seconds: i64, nanoseconds: i128| i128::from(seconds) * 1_000_000_000 + nanoseconds;
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: nanoseconds(i64::from(stat.st_mtime), stat.st_mtime_nsec as i128),
            changed: nanoseconds(i64::from(stat.st_ctime), stat.st_ctime_nsec as i128),
        }
    }

    fn settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let newest = self.modified.max(self.changed);
        i128::try_from(now).is_ok_and(|now| now - newest >= SETTLED.as_nanos().cast_signed())
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Memo {
    files: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: HashMap<Stamp, [u8; 32]>,
    old: HashMap<Stamp, [u8; 32]>,
}

impl Generations {
    fn get(&mut self, stamp: &Stamp) -> Option<[u8; 32]> {
        if let Some(digest) = self.young.get(stamp) {
            return Some(*digest);
        }
        let digest = *self.old.get(stamp)?;
        self.put(*stamp, digest);
        Some(digest)
    }

    fn put(&mut self, stamp: Stamp, digest: [u8; 32]) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(stamp, digest);
    }
}

impl Memo {
    /// The digest of a file with this stamp, by `read` if it is not known.
    pub(super) fn digest<E>(&self, stamp: Option<Stamp>, read: impl FnOnce() -> Result<[u8; 32], E>) -> Result<[u8; 32], E> {
        self.digest_at(SystemTime::now(), stamp, read)
    }

    fn digest_at<E>(&self, now: SystemTime, stamp: Option<Stamp>, read: impl FnOnce() -> Result<[u8; 32], E>) -> Result<[u8; 32], E> {
        let Some(stamp) = stamp else { return read() };
        if let Some(digest) = self.files.lock().get(&stamp) {
            return Ok(digest);
        }
        let digest = read()?;
        // By the time before it was read: what changed since has another stamp.
        if stamp.settled(now) {
            self.files.lock().put(stamp, digest);
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn stamp(inode: u64, seconds: i128) -> Stamp {
        Stamp { device: 1, inode, size: 7, modified: seconds * 1_000_000_000, changed: 0 }
    }

    fn reads(memo: &Memo, now: u64, stamp: Stamp) -> bool {
        let mut read = false;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
        let digest = memo.digest_at(now, Some(stamp), || {
            read = true;
            Ok::<_, Infallible>([u8::try_from(stamp.inode % 251).unwrap_or(0); 32])
        });
        assert_eq!(digest.unwrap_or_default(), [u8::try_from(stamp.inode % 251).unwrap_or(0); 32]);
        read
    }

    #[test]
    fn a_file_that_looks_the_same_is_read_once() {
        let memo = Memo::default();
        assert!(reads(&memo, 1000, stamp(1, 900)));
        assert!(!reads(&memo, 1000, stamp(1, 900)));
        for other in [
            stamp(2, 900),
            stamp(1, 901),
            Stamp { size: 8, ..stamp(1, 900) },
            Stamp { changed: 1, ..stamp(1, 900) },
            Stamp { device: 2, ..stamp(1, 900) },
        ] {
            assert!(reads(&memo, 1000, other), "{other:?}");
        }
    }

    #[test]
    fn a_file_that_has_just_changed_is_read_again() {
        let memo = Memo::default();
        assert!(reads(&memo, 1001, stamp(1, 1000)));
        assert!(reads(&memo, 1002, stamp(1, 1000)));
        assert!(!reads(&memo, 1002, stamp(1, 1000)));
        // The clock was set back.
        assert!(reads(&memo, 900, stamp(2, 1000)));
        assert!(reads(&memo, 900, stamp(2, 1000)));
    }

    #[test]
    fn no_more_than_two_generations_are_remembered() {
        let memo = Memo::default();
        let files = 3 * GENERATION as u64;
        for inode in 0..files {
            assert!(reads(&memo, 1000, stamp(inode, 0)));
            assert!(!reads(&memo, 1000, stamp(0, 0)), "one that is used is kept, after {inode}");
        }
        let generations = memo.files.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
