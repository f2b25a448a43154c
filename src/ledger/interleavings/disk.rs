//! A disk that fails when the schedule says so.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ledger::Store;
use crate::sync::checked::dice;

/// Clones share the contents.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    bytes: Vec<u8>,
    /// Of so many writes one fails, after a part of it; 0: none.
    one_fails_of: u32,
}

impl Disk {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().bytes.clone()
    }

    pub(crate) fn fail_one_of(&self, writes: u32) {
        self.0.lock().one_fails_of = writes;
    }

    fn fails(&self) -> bool {
        let one_of = self.0.lock().one_fails_of;
        one_of > 0 && dice(one_of) == 0
    }
}

impl Store for Disk {
    fn read(&self, from: u64) -> io::Result<Vec<u8>> {
        Ok(self.bytes().split_off(usize::try_from(from).unwrap()))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let fails = self.fails();
        let mut disk = self.0.lock();
        let written = if fails { bytes.len() / 2 } else { bytes.len() };
        disk.bytes.resize(usize::try_from(at).unwrap(), 0);
        disk.bytes.extend_from_slice(&bytes[..written]);
        if fails { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.lock().bytes.truncate(usize::try_from(length).unwrap());
        Ok(())
    }

    fn reserve(&mut self, _: u64) -> io::Result<()> {
        if self.fails() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().bytes = bytes.to_vec();
        Ok(())
    }

    fn keep_aside(&mut self) -> io::Result<String> {
        Ok(String::new())
    }
}
