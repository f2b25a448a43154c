//! How records lie in the file: a frame is the payload's length and its CRC-32 (both little endian), then the payload. Nothing else is in the
//! file, so a reader can find the next whole frame behind a broken one. This layout is every release's; what may change is said in
//! [`format`](super::format).

use prost::Message;

use super::record::{Entry, Record};

/// Length and checksum.
const HEAD: usize = 8;
/// Longer than any record: 16 labels of 319 bytes, a host_config and a resolv.conf fit several times. A longer length is a broken frame, to earlier
/// releases, too.
pub(super) const LONGEST: usize = 256 << 10;

/// Appends a record's frame.
pub fn encode(record: Record, out: &mut Vec<u8>) {
    let entry = Entry { record: Some(record) };
    let start = out.len();
    out.extend([0; HEAD]);
    entry.encode(out).expect("a vector grows");
    let (head, payload) = out[start..].split_at_mut(HEAD);
    head[..4].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
}

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Scan {
    /// Whole ones of known kinds, in order.
    pub records: Vec<Record>,
    /// How many whole ones are of kinds that are not known.
    pub unread: usize,
    /// Where the last whole frame ends; what follows is a torn tail.
    pub end: usize,
    /// Bytes in the middle that are no frames.
    pub broken: usize,
}

/// Reads frames; what is behind the last whole one is torn, what is before it and no frame is broken.
pub(super) fn scan(bytes: &[u8]) -> Scan {
    let mut found = Scan::default();
    let mut at = 0;
    while at < bytes.len() {
        match frame(&bytes[at..]) {
            Some((entry, length)) => {
                found.broken += at - found.end;
                match entry.record {
                    Some(record) => found.records.push(record),
                    None => found.unread += 1,
                }
                at += length;
                found.end = at;
            }
            None => at += 1,
        }
    }
    found
}

/// The frame at the beginning, and how long it is.
fn frame(bytes: &[u8]) -> Option<(Entry, usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(word(0)?).ok()?;
    // No record is empty; so neither is room that was reserved and never written taken for one.
    if length == 0 || length > LONGEST {
        return None;
    }
    let payload = bytes.get(HEAD..HEAD + length)?;
    if crc32fast::hash(payload) != word(4)? {
        return None;
    }
    Some((Entry::decode(payload).ok()?, HEAD + length))
}

#[cfg(test)]
mod tests {
    use super::super::record::Out;
    use super::*;
    use proptest::prelude::*;

    fn out(slot: u32) -> Record {
        Record::Out(Out { slot, generation: 7 })
    }

    fn written(count: u32) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for slot in 0..count {
            encode(out(slot), &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    proptest! {
        #[test]
        fn a_torn_tail_takes_nothing_but_itself(count in 1u32..20, cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = written(count);
            let cut = cut.index(bytes.len() + 1);
            let found = scan(&bytes[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!(found.records, (0..u32::try_from(whole).unwrap()).map(out).collect::<Vec<_>>());
            prop_assert_eq!((found.end, found.broken), (ends[whole], 0));
        }

        #[test]
        fn a_broken_middle_is_noticed_and_costs_one_record(count in 2u32..20, at in any::<prop::sample::Index>(), flip in 1u8..=255) {
            let (mut bytes, ends) = written(count);
            let at = at.index(ends[ends.len() - 2]);
            bytes[at] ^= flip;
            let found = scan(&bytes);
            let hit = u32::try_from(ends.iter().filter(|end| **end <= at).count() - 1).unwrap();
            prop_assert_eq!(found.records, (0..count).filter(|slot| *slot != hit).map(out).collect::<Vec<_>>());
            prop_assert!(found.broken > 0 && found.end == bytes.len());
        }
    }

    #[test]
    fn a_kind_of_a_later_release_is_read_past() {
        let mut bytes = Vec::new();
        encode(out(1), &mut bytes);
        // Field 1000, a string.
        let payload = [&[0xc2, 0x3e, 3][..], b"new"].concat();
        bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        bytes.extend(crc32fast::hash(&payload).to_le_bytes());
        bytes.extend(&payload);
        encode(out(2), &mut bytes);
        assert_eq!(scan(&bytes), Scan { records: vec![out(1), out(2)], unread: 1, end: bytes.len(), broken: 0 });
    }
}
