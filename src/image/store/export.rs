//! An image out of the store, as an engine takes it: [`Store::export`].
//!
//! The archive has the form of `docker save` (`manifest.json`, a config, layers), which Docker and podman load alike. It is made while it is read:
//! nothing of a layer is in memory but what the reader asks for. All files are opened first, so a sweep meanwhile takes nothing from it. It deliberately
//! does not hash what it reads: engines check each layer against the config.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::PathBuf;

use serde_json::json;

use super::error::StoreError;
use super::layout::Descriptor;
use super::{Store, StoredImage};

const BLOCK: u64 = 512;

/// A tar that is made while it is read.
#[derive(Debug)]
pub struct Export {
    pieces: VecDeque<Piece>,
    /// Of the whole archive.
    length: u64,
}

#[derive(Debug)]
enum Piece {
    Bytes(Cursor<Vec<u8>>),
    /// So many bytes of a file, which has to have them.
    File {
        file: io::Take<File>,
        path: PathBuf,
    },
}

impl Store {
    /// The image with these names (engines give them to it when they load it).
    ///
    /// # Errors
    /// [`StoreError::Io`]: a blob is not there, or not readable.
    pub fn export(&self, image: &StoredImage, names: &[String]) -> Result<Export, StoreError> {
        let manifest = self.manifest(&image.manifest)?;
        let mut export = Export { pieces: VecDeque::new(), length: 0 };
        let config = format!("{}.json", manifest.config.digest.hex());
        export.add_blob(self, &config, &manifest.config)?;
        let mut added = BTreeSet::new();
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let name = format!("{}.tar", layer.digest.hex());
            if added.insert(layer.digest.clone()) {
                export.add_blob(self, &name, layer)?;
            }
            layers.push(name);
        }
        let manifest = json!([{ "Config": config, "RepoTags": names, "Layers": layers }]).to_string().into_bytes();
        export.add_header("manifest.json", manifest.len() as u64)?;
        let padding = padding(manifest.len() as u64);
        export.add_bytes(manifest);
        export.add_bytes(vec![0; padding]);
        // The end of a tar.
        export.add_bytes(vec![0; 2 * BLOCK as usize]);
        Ok(export)
    }
}

impl Export {
    /// Bytes of the whole archive.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    fn add_blob(&mut self, store: &Store, name: &str, blob: &Descriptor) -> Result<(), StoreError> {
        let path = store.blob_path(&blob.digest);
        let file = File::open(&path).map_err(|source| StoreError::io("read", &path, source))?;
        let found = file.metadata().map_err(|source| StoreError::io("look at", &path, source))?.len();
        if found != blob.size {
            return Err(StoreError::Broken { path, why: format!("it has {found} bytes and not {}", blob.size) });
        }
        self.add_header(name, blob.size)?;
        self.length += blob.size;
        self.pieces.push_back(Piece::File { file: file.take(blob.size), path });
        self.add_bytes(vec![0; padding(blob.size)]);
        Ok(())
    }

    /// Owned by root, dated 1970: the same image is the same archive.
    fn add_header(&mut self, name: &str, size: u64) -> Result<(), StoreError> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(StoreError::Source)?;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.add_bytes(header.as_bytes().to_vec());
        Ok(())
    }

    fn add_bytes(&mut self, bytes: Vec<u8>) {
        self.length += bytes.len() as u64;
        self.pieces.push_back(Piece::Bytes(Cursor::new(bytes)));
    }
}

fn padding(size: u64) -> usize {
    (size.next_multiple_of(BLOCK) - size) as usize
}

impl Read for Export {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while let Some(piece) = self.pieces.front_mut() {
            let count = match piece {
                Piece::Bytes(bytes) => bytes.read(buffer)?,
                Piece::File { file, path } => match file.read(buffer)? {
                    0 if file.limit() > 0 => {
                        let words = format!("{} became shorter while it was read", path.display());
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, words));
                    }
                    count => count,
                },
            };
            if count > 0 {
                return Ok(count);
            }
            self.pieces.pop_front();
        }
        Ok(0)
    }
}
