//! Netlink messages, written and read: headers, attributes, nests.
//!
//! What can go wrong: an answer that is cut short or malformed, which reads as one with fewer attributes; never a panic. It deliberately
//! knows nothing of what messages mean, nor of sockets.
//!
//! Why not a crate? Those for links (`rtnetlink`) are asynchronous and bring a connection's task per socket, of which we need one per
//! furnished namespace; those for nftables wrap a C library or run `nft`. We say a dozen kinds of message, and both families in the same
//! words.

/// Of every request.
const NLM_F_REQUEST: u16 = 1;
/// "Answer, also if it went well."
pub(super) const ACK: u16 = 4;
/// Only if it is not there yet, together with [`CREATE`].
pub(super) const EXCLUSIVE: u16 = 0x200;
/// In place of what is there, together with [`CREATE`].
pub(super) const REPLACE: u16 = 0x100;
/// Make it.
pub(super) const CREATE: u16 = 0x400;
/// At the end of a list.
pub(super) const APPEND: u16 = 0x800;
/// All of them.
pub(super) const DUMP: u16 = 0x300;
/// In an answer: the list changed while it was read.
pub(super) const INTERRUPTED: u16 = 0x10;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;

/// Requests that are sent together, each with the words in which its failure is told.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    messages: Vec<Sent>,
}

/// Of a request in a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    at: usize,
    pub(super) step: &'static str,
    pub(super) wants_ack: bool,
}

impl Batch {
    /// `header` is the family's own; `step` says what is tried: "creating the link".
    pub(super) fn push(&mut self, step: &'static str, kind: u16, flags: u16, header: &[u8], fill: impl FnOnce(&mut Attributes<'_>)) {
        let at = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend(header);
        fill(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - at).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.bytes);
        self.messages.push(Sent { at, step, wants_ack: flags & ACK != 0 });
    }

    /// In the order in which they were pushed.
    pub(super) fn messages(&self) -> &[Sent] {
        &self.messages
    }

    /// As bytes, numbered from `first` on.
    pub(super) fn numbered(&mut self, first: u32) -> &[u8] {
        let mut number = first;
        for sent in &self.messages {
            self.bytes[sent.at + 8..sent.at + 12].copy_from_slice(&number.to_ne_bytes());
            number = number.wrapping_add(1);
        }
        &self.bytes
    }

    /// What follows the headers of the last message: its attributes.
    pub(super) fn last_body(&self, header: usize) -> &[u8] {
        self.messages.last().map_or(&[], |sent| &self.bytes[sent.at + HEADER + header..])
    }
}

/// Where attributes are written.
#[derive(Debug)]
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        pad(self.0);
    }

    /// With the NUL at its end that the kernel wants.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.put(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// In the machine's order.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// In the network's order, as nftables has it.
    pub(super) fn network_number(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let at = self.0.len();
        self.put(kind | NESTED, &[]);
        fill(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// A header inside a nest.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        pad(self.0);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// An answer, or a piece of news.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) number: u32,
    /// From the family's header on.
    pub(super) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// What follows a family's header of that length.
    pub(super) fn attributes(&self, header: usize) -> Attributed<'a> {
        Attributed(self.body.get(header..).unwrap_or_default())
    }
}

/// All messages in what was received.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = word(bytes, 0)? as usize;
        let body = bytes.get(HEADER..length)?;
        let message = Message { kind: half(bytes, 4)?, flags: half(bytes, 6)?, number: word(bytes, 8)?, body };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Attributes to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributed<'a>(pub(super) &'a [u8]);

impl<'a> Attributed<'a> {
    pub(super) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut bytes = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(half(bytes, 0)?);
            let found = (half(bytes, 2)? & KIND_MASK, bytes.get(4..length)?);
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(found)
        })
    }

    pub(super) fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|&(found, _)| found == kind).map(|(_, value)| value)
    }

    pub(super) fn nested(self, kind: u16) -> Attributed<'a> {
        Attributed(self.get(kind).unwrap_or_default())
    }

    pub(super) fn number(self, kind: u16) -> Option<u32> {
        word(self.get(kind)?, 0)
    }

    /// Without the NUL at its end.
    pub(super) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut batch = Batch::default();
        batch.push("first", 16, ACK, &[7; 4], |a| {
            a.text(3, "eth0");
            a.nest(18, |a| {
                a.text(1, "veth");
                a.nest(2, |a| a.number(4, 1400));
            });
        });
        batch.push("second", 20, 0, &[], |a| a.put(1, &[1, 2, 3]));
        let bytes = batch.numbered(41).to_vec();
        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.iter().map(|m| (m.kind, m.number)).collect::<Vec<_>>(), [(16, 41), (20, 42)]);
        let attributes = read[0].attributes(4);
        assert_eq!(attributes.text(3).unwrap(), "eth0");
        assert_eq!(attributes.nested(18).nested(2).number(4), Some(1400));
        assert_eq!(read[1].attributes(0).get(1), Some(&[1, 2, 3][..]));
        assert!(batch.messages()[0].wants_ack && !batch.messages()[1].wants_ack);
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                for (kind, _) in message.attributes(4).all() {
                    let _ = (message.attributes(4).text(kind), message.attributes(4).number(kind));
                }
            }
        }
    }
}
