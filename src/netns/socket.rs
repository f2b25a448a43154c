//! A netlink socket: what is asked is answered before the question returns.
//!
//! It belongs for ever to the network namespace in which it was opened, wherever its thread goes. The kernel works on a request while it is
//! being sent, and has queued all answers by then: so no wait is needed, and what is missing afterwards will not come. How long sending
//! takes is up to the kernel's lock on links, which cannot be waited for with a deadline: hence a thread of its own (`managed/worker.rs`).
//!
//! What can go wrong: the kernel refuses (an errno for each message) · a list that changes while it is read, which is read again, a bounded
//! number of times · more answers than the socket holds, which is an error.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with};

use super::wire::{Attributes, Batch, DUMP, INTERRUPTED, Message, messages, word};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// More than the kernel puts in one datagram of a list.
const BUFFER: usize = 64 * 1024;
/// A list that changed each of this many times.
const MOST_READS: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    number: u32,
    buffer: Vec<u8>,
}

/// One message was refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refusal {
    /// Which one of the batch.
    pub(super) at: usize,
    /// What was tried.
    pub(super) step: &'static str,
    pub(super) errno: Errno,
}

impl Socket {
    /// In the network namespace of the calling thread. No protocol means links, addresses and routes. `groups` are those whose news it gets.
    pub(super) fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self, Errno> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, number: 0, buffer: vec![0; BUFFER] })
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Sends all at once, and gives those that were refused, in order. The kernel goes on after one that it refuses, unless they are a
    /// transaction.
    pub(super) fn transact(&mut self, batch: &mut Batch) -> Result<Vec<Refusal>, Errno> {
        let count = batch.messages().len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let first = self.send(batch)?;
        let mut outcome: Vec<Option<i32>> = vec![None; count];
        while let Some(length) = self.receive()? {
            for message in messages(&self.buffer[..length]).filter(|message| message.kind == NLMSG_ERROR) {
                if let (Some(slot), Some(code)) = (outcome.get_mut(message.number.wrapping_sub(first) as usize), word(message.body, 0)) {
                    *slot = Some(code.cast_signed());
                }
            }
        }
        let any_refused = outcome.iter().flatten().any(|&code| code != 0);
        let refusals = batch.messages().iter().zip(outcome).enumerate().filter_map(|(at, (sent, outcome))| {
            let errno = match outcome {
                Some(0) => return None,
                Some(code) => Errno::from_raw_os_error(code.wrapping_neg()),
                // In a transaction that was refused, the others may go unanswered.
                None if !sent.wants_ack || any_refused => return None,
                None => Errno::NOMSG,
            };
            Some(Refusal { at, step: sent.step, errno })
        });
        Ok(refusals.collect())
    }

    /// Asks one question whose answer is a message, and lets `read` look at it.
    pub(super) fn ask<T>(&mut self, batch: &mut Batch, read: impl Fn(&Message<'_>) -> Option<T>) -> Result<Option<T>, Errno> {
        let first = self.send(batch)?;
        let mut answer = Ok(None);
        while let Some(length) = self.receive()? {
            for message in messages(&self.buffer[..length]).filter(|message| message.number == first) {
                match (message.kind, word(message.body, 0)) {
                    (NLMSG_ERROR, Some(0)) => {}
                    (NLMSG_ERROR, code) => answer = Err(Errno::from_raw_os_error(code.unwrap_or(0).cast_signed().wrapping_neg())),
                    _ => answer = Ok(read(&message)),
                }
            }
        }
        answer
    }

    /// A whole list, of those for which `read` gives something. A list that changed meanwhile is read again.
    pub(super) fn list<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        fill: impl Fn(&mut Attributes<'_>),
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        for _ in 0..MOST_READS {
            let mut batch = Batch::default();
            batch.push("reading a list", kind, DUMP, header, &fill);
            if let Some(found) = self.list_once(&mut batch, &read)? {
                return Ok(found);
            }
        }
        Err(Errno::AGAIN)
    }

    /// Nothing when it changed while it was read.
    fn list_once<T>(&mut self, batch: &mut Batch, read: impl Fn(&Message<'_>) -> Option<T>) -> Result<Option<Vec<T>>, Errno> {
        let first = self.send(batch)?;
        let (mut found, mut is_whole) = (Vec::new(), true);
        while let Some(length) = self.receive()? {
            for message in messages(&self.buffer[..length]).filter(|message| message.number == first) {
                is_whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    NLMSG_DONE => return Ok(is_whole.then_some(found)),
                    NLMSG_ERROR => return Err(Errno::from_raw_os_error(word(message.body, 0).unwrap_or(0).cast_signed().wrapping_neg())),
                    _ => found.extend(read(&message)),
                }
            }
        }
        Err(Errno::NOMSG)
    }

    /// What is there to be read, if anything.
    pub(super) fn receive(&mut self) -> Result<Option<usize>, Errno> {
        loop {
            match recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => return Ok(Some(length)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// What the last [`receive`](Self::receive) gave.
    pub(super) fn received(&self, length: usize) -> impl Iterator<Item = Message<'_>> {
        messages(&self.buffer[..length])
    }

    fn send(&mut self, batch: &mut Batch) -> Result<u32, Errno> {
        let first = self.number.wrapping_add(1);
        self.number = self.number.wrapping_add(u32::try_from(batch.messages().len()).unwrap_or(u32::MAX));
        let bytes = batch.numbered(first);
        let length = bytes.len();
        let sent = sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        if sent == length { Ok(first) } else { Err(Errno::MSGSIZE) }
    }
}
