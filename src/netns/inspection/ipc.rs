//! The ipc objects that joiners of a *shared ipc* namespace can leave: System V shared memory, semaphores and message queues, POSIX message
//! queues, POSIX shared memory.
//!
//! [`Objects::read`] tells what is there, [`Objects::differences`] what is different: objects that are new or gone, other permissions, owners or
//! sizes, messages that wait. Times and the numbers of processes do not count.
//!
//! ```text
//!   System V      /proc/sysvipc, which shows the reader's own namespace: a thread that is made for it goes in, and ends there
//!   POSIX         /dev/mqueue and /dev/shm as the keeper has them; no link is followed; a folder that is not there has nothing
//! ```
//!
//! What it promises: no difference means the same objects, each by its number, with the same owners, permissions and sizes, and the same folders.
//! Who gives the keeper's root vouches that it is the keeper's: opened while a pidfd says that it lives.
//!
//! What it deliberately does not look at: what is *in* an object that was there from the beginning (the keepers of pools make none) · below a
//! folder in /dev/shm, which is one object · queues of a namespace whose keeper has no /dev/mqueue: engines give it to each container ·
//! memory without a name, which ends with those who use it · the settings below /proc/sys/kernel and /proc/sys/fs/mqueue, which only a
//! privileged joiner can write.
//!
//! What can go wrong: going in (CAP_SYS_ADMIN), a folder that is a link or a file, more objects than are compared: all of it is an error and never
//! an empty answer.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, fstatfs, open, openat, openat2, statat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::facts::{self, Fact, Section};
use super::place::{Until, read_all};
use super::verdict::{Difference, InspectError, Kind};
use super::{by_thread, owned, shown};

/// Of all kinds together. More of them are not compared any more.
const MOST: usize = 1 << 14;
/// For names, as the kernel gives them.
const NAMES: usize = 16 * 1024;
/// What `statfs(2)` says of POSIX message queues.
const MQUEUE: u64 = 0x1980_0202;

/// A list of System V objects.
struct Table {
    file: &'static str,
    what: &'static str,
    /// What is told of one besides its key and who made it: the names of columns. Others are times, counts and processes.
    columns: &'static [&'static str],
}

const TABLES: [Table; 3] = [
    Table { file: "/proc/sysvipc/shm", what: "shared memory", columns: &["shmid", "perms", "size", "uid", "gid", "cgid"] },
    Table { file: "/proc/sysvipc/sem", what: "semaphores", columns: &["semid", "perms", "nsems", "uid", "gid", "cgid"] },
    Table { file: "/proc/sysvipc/msg", what: "message queue", columns: &["msqid", "perms", "cbytes", "qnum", "uid", "gid", "cgid"] },
];

/// From the keeper's root on, and what is in there.
const FOLDERS: [(&str, &str); 2] = [("dev/mqueue", "message queue"), ("dev/shm", "shared memory")];

/// The objects of an ipc namespace at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects(Section);

impl Objects {
    /// Reads them all. `ipc` is the namespace, `root` the root folder of its keeper (`/proc/<pid>/root`); see the module for what the caller
    /// vouches for. `within` is for all of it.
    ///
    /// Cancel safe: nothing is changed.
    ///
    /// # Errors
    /// When something cannot be read, or not in time, or there is more than can be compared.
    pub async fn read(ipc: BorrowedFd<'_>, root: BorrowedFd<'_>, within: Duration) -> Result<Self, InspectError> {
        let until = Until { at: Instant::now() + within, limit: within };
        let (ipc, root) = (owned(ipc)?, owned(root)?);
        by_thread(until, move || read(&ipc, &root, until)).await
    }

    /// What is different now.
    #[must_use]
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut found = facts::differences(std::slice::from_ref(&self.0), std::slice::from_ref(&now.0));
        for difference in &mut found {
            difference.subject = shown::cut(&difference.subject);
        }
        found
    }
}

/// By a thread that ends then: it does not come back from the namespace.
fn read(ipc: &OwnedFd, root: &OwnedFd, until: Until) -> Result<Objects, InspectError> {
    move_into_link_name_space(ipc.as_fd(), Some(LinkNameSpaceType::InterProcessCommunication))
        .map_err(InspectError::reading("the ipc namespace, by entering it"))?;
    let mut found = Found { facts: Vec::new(), until };
    for table in &TABLES {
        found.table(table)?;
    }
    for (path, what) in FOLDERS {
        found.folder(root, path, what)?;
    }
    until.in_time()?;
    Ok(Objects(Section { kind: Kind::Ipc, facts: found.facts }))
}

struct Found {
    facts: Vec<Fact>,
    until: Until,
}

impl Found {
    fn push(&mut self, fact: Fact) -> Result<(), InspectError> {
        self.until.in_time()?;
        if self.facts.len() >= MOST {
            return Err(InspectError::reading("ipc objects")(Errno::TOOBIG));
        }
        self.facts.push(fact);
        Ok(())
    }

    fn table(&mut self, table: &Table) -> Result<(), InspectError> {
        let failed = InspectError::reading(table.file);
        let file = match open(table.file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            // A kernel without them.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        let text = read_all(&file).map_err(&failed)?;
        let mut lines = text.lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        for line in lines {
            self.push(table.object(&names, line).ok_or_else(|| failed(Errno::BADMSG))?)?;
        }
        Ok(())
    }

    /// The folder, and each name in it.
    fn folder(&mut self, root: &OwnedFd, path: &str, what: &str) -> Result<(), InspectError> {
        let failed = InspectError::reading(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let folder = match openat2(root, path, flags, Mode::empty(), inside) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        };
        let stat = fstat(&folder).map_err(&failed)?;
        self.push(Fact::text(format!("folder /{path}"), format!("{} device {:#x}", owner(&stat), stat.st_dev)))?;
        let has_queues = fstatfs(&folder).map_err(&failed)?.f_type.cast_unsigned() == MQUEUE;
        let mut buffer = Vec::with_capacity(NAMES);
        let mut names = RawDir::new(&folder, buffer.spare_capacity_mut());
        while let Some(entry) = names.next() {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            match object(&folder, name, has_queues) {
                Ok(value) => self.push(Fact::text(format!("{what} /{}", name.to_bytes().escape_ascii()), value))?,
                // Gone meanwhile.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(())
    }
}

impl Table {
    /// Nothing for a line that does not have what it must.
    fn object(&self, names: &[&str], line: &str) -> Option<Fact> {
        let values: Vec<&str> = line.split_whitespace().collect();
        let of = |column: &str| values.get(names.iter().position(|name| *name == column)?).copied();
        let key = match of("key")?.parse::<i32>().ok()? {
            0 => "without a key".to_owned(),
            key => format!("{key:#010x}"),
        };
        let mut value = String::new();
        for column in self.columns {
            let _ = write!(value, "{}{column} {}", if value.is_empty() { "" } else { " " }, of(column)?);
        }
        Some(Fact::text(format!("{} {key} by uid {}", self.what, of("cuid")?), value))
    }
}

/// What is told of a name. Only message queues are opened: in /dev/shm a name may be anything.
fn object(folder: &OwnedFd, name: &CStr, is_queue: bool) -> Result<String, Errno> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut value = format!("{} size {}", owner(&stat), stat.st_size);
    if is_queue {
        let queue = openat(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let text = read_all(&queue)?;
        let waiting = text.split_whitespace().find_map(|word| word.strip_prefix("QSIZE:")).ok_or(Errno::BADMSG)?;
        let _ = write!(value, " waiting {waiting}");
    }
    Ok(value)
}

fn owner(stat: &Stat) -> String {
    format!("inode {} mode {:o} uid {} gid {}", stat.st_ino, stat.st_mode, stat.st_uid, stat.st_gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(facts: &[(&str, &str)]) -> Objects {
        Objects(Section { kind: Kind::Ipc, facts: facts.iter().map(|&(subject, value)| Fact::text(subject, value)).collect() })
    }

    #[test]
    fn a_table_is_read_by_the_names_of_its_columns_and_not_by_their_places() {
        let [shm, ..] = TABLES;
        let names = ["gid", "key", "shmid", "perms", "size", "new", "uid", "cuid", "cgid"];
        let read = shm.object(&names, "7 -2 3 600 4096 x 1 2 8").unwrap();
        assert_eq!(read, Fact::text("shared memory 0xfffffffe by uid 2", "shmid 3 perms 600 size 4096 uid 1 gid 7 cgid 8"));
        let private = shm.object(&names, "7 0 3 600 4096 x 1 2 8").unwrap();
        assert!(matches!(private, Fact::Text { subject, .. } if subject == "shared memory without a key by uid 2"));
        assert_eq!(shm.object(&names, "7 0 3 600 4096 x 1 2"), None, "cut short");
        assert_eq!(shm.object(&names[1..], "0 3 600 4096 x 1 2 8"), None, "without gid");
    }

    #[test]
    fn names_that_begin_the_same_are_two_and_are_cut_only_when_told() {
        let long = "x".repeat(200);
        let was = objects(&[(&format!("{long}1"), "inode 1")]);
        let found = was.differences(&objects(&[(&format!("{long}2"), "inode 1")]));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|difference| difference.subject.len() < 100 && difference.subject.ends_with("... (201 bytes)")));
    }
}
