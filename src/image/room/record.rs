//! What is known of uses, on the disk: one small file for each pool, in a folder that all daemons of the host read.
//!
//! Two pools on one engine share its images, so each reads what the others wrote before it removes anything. A file is replaced as a whole, by a
//! rename, after its bytes are on the disk: there is the old one or the new one. One that is missing, broken, or of a later version says nothing, and then nothing is known
//! ([`Record::since`] says since when that is so).
//!
//! All of it blocks. What can go wrong is the system's, and never the caller's: who writes says it once and tries again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::uses::{Known, MOST, Use};
use crate::engine::ImageId;

/// The folder beside the store.
const FOLDER: &str = "images-used";
/// A later one is not read.
const VERSION: u32 = 1;
/// Larger files are not ours.
const LARGEST: u64 = 64 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Text {
    version: u32,
    /// Seconds since 1970, as all times here.
    since: u64,
    /// Nothing was asked for after this was written.
    #[serde(default)]
    complete: bool,
    images: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    id: String,
    #[serde(default)]
    came: bool,
    #[serde(default)]
    names: Vec<String>,
    asked: u64,
    #[serde(default)]
    held_until: u64,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Uses are written down since then.
    pub since: SystemTime,
    /// Its daemon has come to its end: nobody was answered after this was written.
    pub complete: bool,
    /// All that is known.
    pub known: Known,
}

/// Where a pool's uses are written.
#[derive(Clone, Debug)]
pub struct File {
    folder: PathBuf,
    name: String,
}

impl File {
    /// Beside the store in this folder.
    #[must_use]
    pub fn beside(store: &Path, pool: &str) -> Self {
        let folder = store.parent().unwrap_or(Path::new("/")).join(FOLDER);
        Self { folder, name: format!("{pool}.json") }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// What the last daemon of this pool wrote; `None`: nothing is known.
    #[must_use]
    pub fn read(&self) -> Option<Record> {
        let path = self.path();
        match read(&path) {
            Ok(record) => Some(record),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "when images were used is not known: none that is not asked for anew is removed for a while");
                None
            }
        }
    }

    /// What the daemons of other pools wrote. A file that cannot be read says nothing.
    #[must_use]
    pub fn read_others(&self) -> Known {
        let mut others = Known::default();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") && path != self.path() {
                match read(&path) {
                    Ok(record) => super::uses::merge(&mut others, record.known),
                    Err(error) => tracing::debug!(file = %path.display(), %error, "another pool's uses of images cannot be read"),
                }
            }
        }
        others
    }

    /// Replaces it.
    ///
    /// # Errors
    /// The system's; the old one is there still.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let row = |(id, used): (&ImageId, &Use)| Row {
            id: id.to_string(),
            came: used.came,
            names: used.names.clone(),
            asked: seconds(used.asked),
            // Rounded up: a hold is not shortened by its being written down.
            held_until: seconds(used.held_until) + 1,
        };
        let mut images: Vec<Row> = record.known.iter().map(row).collect();
        images.sort_by(|a, b| a.id.cmp(&b.id));
        let text = serde_json::to_vec(&Text { version: VERSION, since: seconds(record.since), complete: record.complete, images })?;
        // Always the same one: a pool has one daemon, and what a killed one left is written over.
        let next = self.folder.join(format!("{}.next", self.name));
        let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&next, self.path())?;
        fs::File::open(&self.folder)?.sync_all()
    }
}

fn read(path: &Path) -> io::Result<Record> {
    if fs::metadata(path)?.len() > LARGEST {
        return Err(io::Error::other("it is too large"));
    }
    let text: Text = serde_json::from_slice(&fs::read(path)?)?;
    if text.version != VERSION {
        return Err(io::Error::other(format!("its version is {}, and only {VERSION} is read", text.version)));
    }
    let row = |row: Row| {
        let Row { id, came, names, asked, held_until } = row;
        (ImageId::from(id), Use { came, names, asked: time(asked), held_until: time(held_until) })
    };
    Ok(Record { since: time(text.since), complete: text.complete, known: text.images.into_iter().take(MOST).map(row).collect() })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What no clock shows is not believed.
fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(1 << 40))
}

#[cfg(test)]
mod tests;
