//! Messages between two processes of this program: a number, some bytes, some descriptors.
//!
//! Over a socket that keeps the bounds of packets. A message is one packet or several, one after the other, of which the last says that it is; its
//! descriptors come with the first. Sending and receiving block: both ends have threads for it.
//!
//! What can go wrong: the other end is gone; or what comes is no such message, and then nothing that follows can be believed either.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Well below what a socket takes at once.
const PACKET: usize = 64 * 1024;
/// A look at all processes of a host with a million of them.
const LONGEST: usize = 64 * 1024 * 1024;
/// A pidfd, and a namespace of each kind.
pub(in crate::netns) const MOST_DESCRIPTORS: usize = 5;
/// The number of what comes without a question.
pub(in crate::netns) const NEWS: u64 = 0;
const HEADER: usize = 9;
const LAST: u8 = 1;
const MORE: u8 = 0;

#[derive(Debug, Default)]
pub(in crate::netns) struct Message {
    /// Of the question that it is, or answers, or [`NEWS`].
    pub(in crate::netns) number: u64,
    pub(in crate::netns) body: Vec<u8>,
    pub(in crate::netns) descriptors: Vec<OwnedFd>,
}

/// Why nothing more is received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// By the kernel.
    #[error("the socket: {0}")]
    Socket(Errno),
    /// Not a message.
    #[error("what came is {0}")]
    Nonsense(&'static str),
}

/// Both ends of a new one.
pub(in crate::netns) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

pub(in crate::netns) fn send(socket: BorrowedFd<'_>, message: &Message) -> Result<(), Errno> {
    let mut descriptors: Vec<BorrowedFd<'_>> = message.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let mut chunks = message.body.chunks(PACKET).peekable();
    loop {
        let chunk = chunks.next().unwrap_or_default();
        let mut header = [if chunks.peek().is_none() { LAST } else { MORE }; HEADER];
        header[1..].copy_from_slice(&message.number.to_ne_bytes());
        packet(socket, [&header, chunk], &descriptors)?;
        if header[0] == LAST {
            return Ok(());
        }
        descriptors.clear();
    }
}

fn packet(socket: BorrowedFd<'_>, parts: [&[u8]; 2], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if descriptors.len() > MOST_DESCRIPTORS || !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::MSGSIZE);
    }
    loop {
        match sendmsg(socket, &parts.map(IoSlice::new), &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent.map(drop),
        }
    }
}

/// The next one; `None`: the other end is gone.
pub(in crate::netns) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Message>, ChannelError> {
    let mut message = Message::default();
    let mut buffer = vec![0; HEADER + PACKET];
    let mut first = true;
    loop {
        let (length, descriptors) = receive_packet(socket, &mut buffer)?;
        if length == 0 {
            // In the middle of one, or between two.
            return Ok(None);
        }
        let (header, chunk) = buffer[..length].split_first_chunk::<HEADER>().ok_or(ChannelError::Nonsense("too short"))?;
        let [kind, number @ ..] = *header;
        let number = u64::from_ne_bytes(number);
        if first {
            (message.number, message.descriptors, first) = (number, descriptors, false);
        } else if number != message.number || !descriptors.is_empty() {
            return Err(ChannelError::Nonsense("another message in the middle of one"));
        }
        if message.body.len() + chunk.len() > LONGEST {
            return Err(ChannelError::Nonsense("too long"));
        }
        message.body.extend_from_slice(chunk);
        match kind {
            LAST => return Ok(Some(message)),
            MORE if !chunk.is_empty() => {}
            _ => return Err(ChannelError::Nonsense("of an unknown kind")),
        }
    }
}

fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), ChannelError> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            // It was ended with something unread.
            Err(Errno::CONNRESET) => return Ok((0, Vec::new())),
            received => break received.map_err(ChannelError::Socket)?,
        }
    };
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = part {
            descriptors.extend(passed);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ChannelError::Nonsense("more than was agreed on"));
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_message_comes_as_it_was_sent_however_long_it_is() {
        for length in [0, 1, PACKET - 1, PACKET, PACKET + 1, 5 * PACKET + 7] {
            let (one, other) = pair().unwrap();
            let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sent = body.clone();
            let sender = std::thread::spawn(move || {
                for number in [7, 8] {
                    send(one.as_fd(), &Message { number, body: sent.clone(), descriptors: Vec::new() }).unwrap();
                }
            });
            for number in [7, 8] {
                let message = receive(other.as_fd()).unwrap().unwrap();
                assert!((message.number, &message.body) == (number, &body), "{length}");
            }
            assert!(receive(other.as_fd()).unwrap().is_none());
            sender.join().unwrap();
        }
    }

    #[test]
    fn descriptors_come_along() {
        let (one, other) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(one.as_fd(), &Message { number: 1, body: vec![1; 2 * PACKET], descriptors: vec![writer.into()] }).unwrap();
        let message = receive(other.as_fd()).unwrap().unwrap();
        let mut passed = std::fs::File::from(message.descriptors.into_iter().next().unwrap());
        passed.write_all(b"here").unwrap();
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
    }

    #[test]
    fn nonsense_is_told_and_too_many_descriptors_are_not_sent() {
        let nonsense = |packets: &[&[u8]]| {
            let (one, other) = pair().unwrap();
            for bytes in packets {
                rustix::io::write(&one, bytes).unwrap();
            }
            drop(one);
            receive(other.as_fd())
        };
        for packets in [&[&b"x"[..]][..], &[b"?12345678"], &[b"\0aaaaaaaa"], &[b"\0aaaaaaaax", b"\x01bbbbbbbbx"]] {
            assert!(matches!(nonsense(packets), Err(ChannelError::Nonsense(_))), "{packets:?}");
        }
        assert!(nonsense(&[b"\0aaaaaaaax"]).unwrap().is_none(), "it ended in the middle");
        let (one, _other) = pair().unwrap();
        let descriptors = (0..=MOST_DESCRIPTORS).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        assert_eq!(send(one.as_fd(), &Message { descriptors, ..Message::default() }), Err(Errno::MSGSIZE));
    }
}
