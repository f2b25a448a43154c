//! A disk that outlives daemons, and that a test can fill, tear and copy.

use std::io;
use std::sync::Arc;

use nspool::ledger::Store;
use parking_lot::Mutex;

/// Clones share the contents.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    bytes: Vec<u8>,
    /// `None`: as much as one likes.
    room: Option<u64>,
    reserved: u64,
}

impl Disk {
    /// What a daemon would find that is started now.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().bytes.clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.0.lock().bytes);
    }

    /// Not a byte more fits, whatever was reserved.
    pub fn fill(&self) {
        let mut disk = self.0.lock();
        (disk.room, disk.reserved) = (Some(disk.bytes.len() as u64), 0);
    }

    /// So many bytes fit besides those that were reserved.
    pub fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }
}

impl Store for Disk {
    fn read(&self, from: u64) -> io::Result<Vec<u8>> {
        Ok(self.bytes().split_off(usize::try_from(from).unwrap()))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        let at = usize::try_from(at).unwrap();
        let most = disk.room.map_or(u64::MAX, |room| room.max(disk.reserved));
        let fits = usize::try_from(most).unwrap().saturating_sub(at).min(bytes.len());
        disk.bytes.resize(at, 0);
        disk.bytes.extend_from_slice(&bytes[..fits]);
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.change(|bytes| bytes.truncate(usize::try_from(length).unwrap()));
        Ok(())
    }

    fn reserve(&mut self, length: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        if disk.room.is_some_and(|room| room < length) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.reserved = length;
        Ok(())
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.change(|old| *old = bytes.to_vec());
        Ok(())
    }

    fn keep_aside(&mut self) -> io::Result<String> {
        Ok("aside".into())
    }
}
