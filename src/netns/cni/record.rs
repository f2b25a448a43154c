//! What a DEL needs, kept in a file: the configuration as it was at the ADD, and what the plugins said.
//!
//! Whoever works by a record has the lock of the folder that it is in, so that two who want to take back the same link do so one after the other. The lock
//! goes with the process that has it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list::NetworkList;
use super::{Attached, CniError};

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) list: NetworkList,
    /// `CNI_CONTAINERID`.
    pub(super) id: String,
    /// `CNI_ARGS`.
    pub(super) args: String,
    /// `CNI_NETNS` of the ADD, which is what the result calls the namespace.
    pub(super) namespace: String,
    /// The last plugin's that said something.
    pub(super) result: Option<Value>,
    /// The ADD came to its end.
    pub(super) attached: Option<Attached>,
}

/// Which network a record is of, without its lock; `None`: there is none that can be read.
pub fn network_of(record: &Path) -> Option<String> {
    let record: Record = serde_json::from_slice(&std::fs::read(record).ok()?).ok()?;
    Some(record.list.name)
}

/// A record's file, while nobody else works by it.
#[derive(Debug)]
pub(super) struct Locked {
    file: PathBuf,
    _folder: File,
}

impl Locked {
    /// Waits for whoever has it, who has deadlines. `None`: its folder is gone.
    pub(super) fn beside(file: &Path) -> Result<Option<Self>, CniError> {
        let failed = |error: io::Error| CniError::record(file, error);
        let folder = match File::open(file.parent().unwrap_or_else(|| Path::new("/"))) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        loop {
            match flock(&folder, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                locked => {
                    return locked.map(|()| Some(Self { file: file.to_owned(), _folder: folder })).map_err(|errno| failed(errno.into()));
                }
            }
        }
    }

    /// `None`: there is none.
    pub(super) fn read(&self) -> Result<Option<Record>, CniError> {
        match std::fs::read(&self.file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| CniError::record(&self.file, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CniError::record(&self.file, error)),
        }
    }

    /// One that is there is whole. Only its owner reads it: configurations may have secrets.
    pub(super) fn write(&self, record: &Record) -> Result<(), CniError> {
        let unfinished = self.file.with_extension("unfinished");
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            std::fs::rename(&unfinished, &self.file)
        };
        write().map_err(|error| CniError::record(&self.file, error))
    }

    pub(super) fn remove(&self) -> Result<(), CniError> {
        std::fs::remove_file(&self.file).map_err(|error| CniError::record(&self.file, error))
    }
}
