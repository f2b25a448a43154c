//! Inside a namespace: the thread that went there, with its sockets and its view of `/proc/net`.
//!
//! The thread is made for one look and ends where it is: there is no way back that could fail, and no other work that could be done in the
//! wrong namespace.
//!
//! What can go wrong: entering (that needs CAP_SYS_ADMIN), any read. A part of the kernel that is not there at all (no module, not built) has
//! nothing to tell and is no failure; a file or a question that is refused is.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::net::{Protocol, netlink};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::facts::Fact;
use super::verdict::InspectError;
use crate::netns::socket::Socket;
use crate::netns::wire::{Attributes, Message};

/// Of one list. A joiner with NET_ADMIN can make any number; more than this is not compared any more.
const MOST_FACTS: usize = 1 << 16;
/// Of one file, as above.
const LARGEST_FILE: usize = 8 << 20;
const FIRST_READ: usize = 4096;
/// More than the kernel gives at once, which is a page.
const LARGEST_READ: usize = 1 << 17;

/// See the module.
#[derive(Debug)]
pub(super) struct Place {
    files: OwnedFd,
    route: Option<Socket>,
    netfilter: Option<Socket>,
    generic: Option<Socket>,
    diag: Option<Socket>,
    xfrm: Option<Socket>,
    until: Until,
}

/// Until when, and how long that was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    pub(super) at: Instant,
    pub(super) limit: Duration,
}

impl Until {
    pub(super) fn in_time(self) -> Result<(), InspectError> {
        if Instant::now() < self.at { Ok(()) } else { Err(InspectError::Late { limit: self.limit }) }
    }
}

/// A part of the kernel that may be missing. The kernel tries to load it with each question, which takes milliseconds: one that was missing
/// is asked again only when its module has come.
#[derive(Debug)]
pub(super) struct Part {
    module: &'static str,
    /// What the kernel says of one that is missing.
    says: Errno,
    is_missing: AtomicBool,
}

impl Part {
    pub(super) const fn new(module: &'static str, says: Errno) -> Self {
        Self { module, says, is_missing: AtomicBool::new(false) }
    }

    fn may_be_there(&self) -> bool {
        !self.is_missing.load(Ordering::Relaxed) || std::path::Path::new("/sys/module").join(self.module).exists()
    }

    /// Nothing, if it is not there.
    pub(super) fn ask<T>(&self, question: impl FnOnce() -> Result<T, InspectError>) -> Result<Option<T>, InspectError> {
        if !self.may_be_there() {
            return Ok(None);
        }
        let answer = question();
        let missing = matches!(answer, Err(InspectError::Unreadable { cause, .. }) if cause == self.says);
        self.is_missing.store(missing, Ordering::Relaxed);
        if missing { Ok(None) } else { answer.map(Some) }
    }
}

/// One of the namespace's sockets, as chosen by [`Place::list`] and its like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Family {
    Route,
    Netfilter,
    Generic,
    Diag,
    Xfrm,
}

impl Place {
    /// The calling thread goes in, and must end after this was used.
    pub(super) fn enter(namespace: &OwnedFd, until: Until) -> Result<Self, InspectError> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(InspectError::reading("the namespace, by entering it"))?;
        let files = open("/proc/thread-self/net", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let files = files.map_err(InspectError::reading("/proc/net"))?;
        Ok(Self { files, route: None, netfilter: None, generic: None, diag: None, xfrm: None, until })
    }

    /// Ours, which the namespace counts as its own.
    pub(super) fn own(&self) -> impl Iterator<Item = &OwnedFd> {
        [&self.route, &self.netfilter, &self.generic, &self.diag, &self.xfrm].into_iter().flatten().map(Socket::fd)
    }

    pub(super) fn in_time(&self) -> Result<(), InspectError> {
        self.until.in_time()
    }

    /// For something that comes about by itself.
    pub(super) fn pause(&self, pause: Duration) -> Result<(), InspectError> {
        let timeout = rustix::event::Timespec::try_from(pause).unwrap_or_default();
        // Interrupted is as good as over.
        let _ = rustix::event::poll(&mut [], Some(&timeout));
        self.in_time()
    }

    /// Below `/proc/net`; nothing when the kernel has no such file.
    pub(super) fn file(&self, name: &str) -> Result<Option<String>, InspectError> {
        let failed = InspectError::reading(name);
        let file = match openat(&self.files, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        read_all(&file).map(Some).map_err(failed)
    }

    /// The same, if it comes in one read; nothing when there is more of it, or it cannot be read.
    pub(super) fn file_at_once(&self, name: &str) -> Option<String> {
        let file = openat(&self.files, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut bytes = vec![0; LARGEST_READ];
        let length = rustix::io::read(&file, &mut bytes).ok()?;
        let more = rustix::io::read(&file, &mut bytes[length..]).ok()?;
        bytes.truncate(length);
        if more == 0 { String::from_utf8(bytes).ok() } else { None }
    }

    pub(super) fn socket(&mut self, family: Family) -> Result<&mut Socket, InspectError> {
        let (slot, protocol): (_, Option<Protocol>) = match family {
            Family::Route => (&mut self.route, None),
            Family::Netfilter => (&mut self.netfilter, Some(netlink::NETFILTER)),
            Family::Generic => (&mut self.generic, Some(netlink::GENERIC)),
            Family::Diag => (&mut self.diag, Some(netlink::SOCK_DIAG)),
            Family::Xfrm => (&mut self.xfrm, Some(netlink::XFRM)),
        };
        match slot {
            Some(socket) => Ok(socket),
            None => Ok(slot.insert(Socket::open(protocol, 0).map_err(InspectError::reading("a netlink socket inside"))?)),
        }
    }

    /// All of a list, as facts with headers of that length.
    pub(super) fn list(
        &mut self,
        family: Family,
        what: &str,
        kind: u16,
        header: &[u8],
        fill: impl Fn(&mut Attributes<'_>),
        read: impl Fn(&Message<'_>) -> Option<Fact>,
    ) -> Result<Vec<Fact>, InspectError> {
        self.in_time()?;
        let count = std::cell::Cell::new(0_usize);
        let bounded = |message: &Message<'_>| {
            count.set(count.get() + 1);
            if count.get() > MOST_FACTS { None } else { read(message) }
        };
        let facts = self.socket(family)?.list(kind, header, fill, bounded).map_err(InspectError::reading(what))?;
        if count.get() > MOST_FACTS { Err(InspectError::reading(what)(Errno::TOOBIG)) } else { Ok(facts) }
    }
}

pub(super) fn read_all(file: &OwnedFd) -> Result<String, Errno> {
    let mut bytes = vec![0; FIRST_READ];
    let mut length = 0;
    loop {
        match rustix::io::read(file, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if length == bytes.len() {
            if length >= LARGEST_FILE {
                return Err(Errno::FBIG);
            }
            bytes.resize(length * 2, 0);
        }
    }
    bytes.truncate(length);
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}
