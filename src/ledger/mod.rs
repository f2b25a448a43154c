//! The ledger: a journal of buddies and leases, so that an answered Allocate survives a kill -9 of the daemon (I8).
//!
//! What it promises: a record that [`Ledger::flush`] has written is there for the next daemon; callers that flush at the same time share one
//! write; its cost does not grow with the pool; a write that fails or is cut short is undone at once, kept in memory and tried again with the
//! next one, and meanwhile nothing is handed out ([`Ledger::flush_grant`]); room is reserved ahead, so that a release can be recorded when the
//! disk is full; the file is compacted when most of it means nothing any more, and writers wait only while it is read and replaced, not while it is replayed.
//!
//! What it does not promise: anything over a reboot. Buddies die with the host, so the file is bound to the boot id and never synced; a completed
//! write survives the process, and that is enough.
//!
//! What can go wrong: a torn tail (the daemon was killed in a write: cut off, the caller was not answered) · a broken middle (reported, the file
//! kept aside; leases that are still told stand, buddies are not trusted to be free) · a file of another boot (begun anew) · a file of another
//! pool, of a release too far ahead ([`mod@format`]), or that another daemon uses (refused) · a disk that is full or fails (see above).
//!
//! What it deliberately does not know: the pool. It is handed frames, and hands back a [`Table`].

pub mod format;
mod frames;
#[cfg(test)]
pub(crate) mod interleavings;
pub mod record;
mod store;
mod table;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::level;

pub use format::{Identity, boot_id};
pub use frames::encode;
use frames::scan;
use record::{Began, Record};
pub use store::{FileStore, OpenError, Store};
pub use table::Table;

use crate::sync::{Mutex, sleep};

/// Room that is kept free behind the end: releases, ends and fences of some thousand leases.
const RESERVE: u64 = 256 << 10;
/// By how much the reservation grows.
const RESERVE_STEP: u64 = 1 << 20;
/// Below this a file is not worth compacting.
const WORTH_COMPACTING: u64 = 1 << 20;
/// A file is compacted when it has grown by this factor since the last time.
const GROWTH: u64 = 4;
/// Between two tries of what cannot be written, while nobody else tries.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Records that wait for a disk to work again; beyond, the ledger is given up until the next start.
const MOST_WAITING: usize = 16 << 20;

/// Why nothing can be recorded.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the ledger cannot be written: {0}")]
pub struct WriteError(String);

/// What the last daemon left.
#[derive(Debug)]
pub struct Replayed {
    /// What stands.
    pub table: Table,
    /// How it was found.
    pub found: Found,
}

/// How a ledger was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There was none, or one of an earlier boot.
    Nothing,
    /// As it was left.
    Whole {
        /// Bytes of a write that was not completed, which were cut off; usually none.
        torn: usize,
        /// Records of kinds that only later releases know, which are not kept; see [`mod@format`].
        unread: usize,
    },
    /// So many bytes in the middle mean nothing.
    Broken {
        /// How many.
        bytes: usize,
        /// Where the file is kept for people; empty: nowhere.
        aside: String,
    },
}

/// See the module.
pub struct Ledger {
    began: Began,
    /// Frames in the order of the pool's changes, not written yet. A leaf lock.
    staged: Mutex<Vec<u8>>,
    file: Mutex<File>,
    compactable: Notify,
    /// Why nothing can be recorded; empty: it can.
    health: level::Sender<String>,
}

struct File {
    store: Box<dyn Store>,
    length: u64,
    reserved: u64,
    /// As long as the last compaction left it.
    compacted: u64,
    /// How often it was begun anew.
    begun: u64,
    /// What could not be written, and goes before what is staged.
    waiting: Vec<u8>,
    failure: Option<WriteError>,
    given_up: bool,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

impl Ledger {
    /// The ledger of a state folder.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(folder: &Path, identity: &Identity) -> Result<(Arc<Self>, Replayed), OpenError> {
        let store = FileStore::open(folder)?;
        Self::on(Box::new(store), identity).map_err(|source| OpenError::Io { path: folder.to_owned(), source })
    }

    /// The same on any store. What was there is read, mended and compacted.
    ///
    /// # Errors
    /// The store's.
    pub fn on(mut store: Box<dyn Store>, identity: &Identity) -> io::Result<(Arc<Self>, Replayed)> {
        let bytes = store.read(0)?;
        let scanned = scan(&bytes);
        let (torn, broken, unread) = (bytes.len() - scanned.end, scanned.broken, scanned.unread);
        let mut table = Table::of(scanned.records);
        let of_this_boot = table.began.take_if(|began| began.boot_id == identity.boot_id);
        let of_another_boot = table.began.is_some();
        if let Some(began) = &of_this_boot {
            identity.may_take(began)?;
        }
        let found = match (&of_this_boot, broken) {
            (Some(_), 0) => Found::Whole { torn, unread },
            (None, _) if of_another_boot || bytes.is_empty() => Found::Nothing,
            (Some(_) | None, _) => Found::Broken { bytes: broken.max(torn), aside: store.keep_aside().unwrap_or_default() },
        };
        if of_this_boot.is_none() {
            table = Table::default();
        }
        let began = Began { engine: identity.engine.clone(), ..of_this_boot.unwrap_or_else(|| identity.begin()) };
        table.began = Some(format::sign(began));
        if matches!(found, Found::Broken { .. }) {
            table.distrust(nanos(identity.now));
        }
        let mended = encoded(table.clone());
        store.replace(&mended)?;
        let length = mended.len() as u64;
        let file = File { store, length, reserved: 0, compacted: length, begun: 0, waiting: Vec::new(), failure: None, given_up: false };
        let ledger = Self {
            began: table.began.clone().unwrap_or_default(),
            staged: Mutex::new(Vec::new()),
            file: Mutex::new(file),
            compactable: Notify::new(),
            health: level::Sender::new(String::new()),
        };
        Ok((Arc::new(ledger), Replayed { table, found }))
    }

    /// What a dead daemon's ledger in this folder tells, without taking it over; `None`: there is none, or it is of an earlier boot.
    ///
    /// # Errors
    /// The file cannot be read, or [`format::TooNew`].
    pub fn peek(folder: &Path, boot_id: &str) -> io::Result<Option<Table>> {
        let table = match std::fs::read(folder.join(store::NAME)) {
            Ok(bytes) => Table::read(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(began) = table.began.as_ref().filter(|began| began.boot_id == boot_id) else { return Ok(None) };
        format::may_read(began)?;
        Ok(Some(table))
    }

    /// Takes over frames, in the order of the changes they tell: to be called under the lock that makes the order.
    pub fn stage(&self, frames: &mut Vec<u8>) {
        let mut staged = self.staged.lock();
        if staged.is_empty() {
            std::mem::swap(&mut *staged, frames);
        } else {
            staged.append(frames);
        }
    }

    /// Writes what is staged. Once it returns well, all that was staged before the call is written, by whomever. What fails waits for the next try.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn flush(&self) -> Result<(), WriteError> {
        self.write(false)
    }

    /// The same for something that must not be lost: only where the reserve holds, too.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn flush_grant(&self) -> Result<(), WriteError> {
        self.write(true)
    }

    fn write(&self, with_reserve: bool) -> Result<(), WriteError> {
        let mut file = self.file.lock();
        let batch = std::mem::take(&mut *self.staged.lock());
        let written = file.append(batch, with_reserve);
        self.health.send_if_modified(|told| {
            let words = file.failure.as_ref().map_or_else(String::new, |failure| failure.0.clone());
            let news = *told != words;
            *told = words;
            news
        });
        if file.length > WORTH_COMPACTING && file.length > GROWTH * file.compacted {
            self.compactable.notify_one();
        }
        written
    }

    /// Why nothing can be recorded at the moment.
    #[must_use]
    pub fn failure(&self) -> Option<WriteError> {
        self.file.lock().failure.clone()
    }

    /// The same as a level, in the system's words; empty: all is well.
    #[must_use]
    pub fn health(&self) -> level::Receiver<String> {
        self.health.subscribe()
    }

    /// Compacts whenever it is worth it, and tries again what cannot be written, until `stop`. `now` is the time since boot, `most` as in [`Ledger::compact`].
    pub async fn keep_short(self: Arc<Self>, now: impl Fn() -> Duration, most: usize, stop: CancellationToken) {
        loop {
            // Looked at once: a failure between two looks would be waited for by neither arm.
            let fails = self.failure().is_some();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.compactable.notified() => {}
                () = sleep(TRY_AGAIN), if fails => {
                    // Told by the level.
                    let _still = self.flush_grant();
                    continue;
                }
                () = failing(self.health()), if !fails => continue,
            }
            let (own, now) = (Arc::clone(&self), nanos(now()));
            let before = self.length();
            match tokio::task::spawn_blocking(move || own.compact(now, most)).await {
                Ok(Ok(())) => tracing::debug!(before, after = self.length(), "ledger compacted"),
                Ok(Err(error)) => tracing::warn!(%error, "the ledger could not be compacted"),
                Err(error) => tracing::error!(%error, "the compaction of the ledger failed"),
            }
        }
    }

    /// Writes the fewest records that come to the same: `now` as nanoseconds since boot, and `most` ends, say what may be forgotten. Blocks, so
    /// not for a task; writers are kept out while the file is read and while it is replaced.
    ///
    /// # Errors
    /// The store's; the ledger is as it was, and is not compacted before it has grown as much again.
    pub fn compact(&self, now: u64, most: usize) -> io::Result<()> {
        let (before, begun) = {
            let mut file = self.file.lock();
            file.compacted = file.length;
            (file.read(0)?, file.begun)
        };
        let mut table = Table::of(scan(&before).records);
        table.forget(now, most);
        let mut next = encoded(table);
        let mut file = self.file.lock();
        if file.begun != begun {
            // What was read is not there any more, and what is there is as short as it can be.
            return Ok(());
        }
        next.extend(file.read(before.len() as u64)?);
        file.store.replace(&next)?;
        (file.length, file.reserved, file.compacted) = (next.len() as u64, 0, next.len() as u64);
        Ok(())
    }

    /// What the file comes to, once everything that is staged is in it. Blocks, so not for a task.
    ///
    /// # Errors
    /// [`WriteError`], or the store's.
    pub fn told(&self) -> io::Result<Table> {
        self.flush().map_err(io::Error::other)?;
        let bytes = self.file.lock().read(0)?;
        Ok(Table::of(scan(&bytes).records))
    }

    /// Begins the file anew with what it should tell; what is staged, or could not be written, is taken to be in `table`. To be called under the
    /// lock that makes the order.
    ///
    /// # Errors
    /// The store's; nothing is lost.
    pub fn rewrite(&self, table: Table) -> io::Result<()> {
        let mut file = self.file.lock();
        let mut staged = self.staged.lock();
        let bytes = encoded(Table { began: Some(self.began.clone()), ..table });
        file.store.replace(&bytes)?;
        (file.length, file.reserved, file.compacted) = (bytes.len() as u64, 0, bytes.len() as u64);
        staged.clear();
        (file.waiting, file.given_up) = (Vec::new(), false);
        file.begun += 1;
        Ok(())
    }

    /// Bytes in the file.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.file.lock().length
    }
}

fn nanos(moment: Duration) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}

fn encoded(table: Table) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in table.records() {
        encode(record, &mut bytes);
    }
    bytes
}

impl File {
    /// What was written whole, from there on.
    fn read(&self, from: u64) -> io::Result<Vec<u8>> {
        let mut bytes = self.store.read(from)?;
        bytes.truncate(usize::try_from(self.length - from).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    fn append(&mut self, batch: Vec<u8>, with_reserve: bool) -> Result<(), WriteError> {
        if self.given_up {
            return self.failure.clone().map_or(Ok(()), Err);
        }
        let outcome = if self.waiting.is_empty() {
            self.try_append(&batch, with_reserve).map_err(|error| (error, batch))
        } else {
            self.waiting.extend_from_slice(&batch);
            let all = std::mem::take(&mut self.waiting);
            self.try_append(&all, with_reserve).map_err(|error| (error, all))
        };
        match outcome {
            Ok(()) => {
                if self.failure.is_some() && self.keep_reserve(self.length).is_ok() {
                    self.failure = None;
                    tracing::info!("the ledger can be written again");
                }
                Ok(())
            }
            Err((error, all)) => Err(self.failed(&error, all)),
        }
    }

    fn try_append(&mut self, bytes: &[u8], with_reserve: bool) -> io::Result<()> {
        let end = self.length + bytes.len() as u64;
        if with_reserve {
            self.keep_reserve(end)?;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.store.write(self.length, bytes) {
            // What of it was written is no whole batch: the next daemon must not find half of it. If that fails as well, a later write covers it.
            self.store.truncate(self.length)?;
            self.reserved = 0;
            return Err(error);
        }
        self.length = end;
        Ok(())
    }

    fn keep_reserve(&mut self, end: u64) -> io::Result<()> {
        if end + RESERVE > self.reserved {
            let reserved = end + RESERVE + RESERVE_STEP;
            self.store.reserve(reserved)?;
            self.reserved = reserved;
        }
        Ok(())
    }

    fn failed(&mut self, error: &io::Error, all: Vec<u8>) -> WriteError {
        let failure = WriteError(error.to_string());
        if self.failure.is_none() {
            tracing::error!(%error, "the ledger cannot be written: nothing is handed out until it can");
        }
        self.waiting = all;
        if self.waiting.len() > MOST_WAITING {
            tracing::error!("too much waits for the ledger: it is given up until the next start");
            (self.given_up, self.waiting) = (true, Vec::new());
        }
        self.failure = Some(failure.clone());
        failure
    }
}

async fn failing(mut health: level::Receiver<String>) {
    if health.wait_for(|words| !words.is_empty()).await.is_err() {
        std::future::pending().await
    }
}

/// A record as it is handed to [`Ledger::stage`].
#[must_use]
pub fn frame(record: Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(record, &mut bytes);
    bytes
}
