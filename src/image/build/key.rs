//! A build's key: two builds with the same one give the same image, as far as what goes in can tell.
//!
//! SHA-256 over fields, each with its length before it, the first of which is the version of this list: the builder, the platform, the Dockerfile, the
//! target, the build args by name, the id of each image that it begins from, and each thing in the context, by path: its type, mode bits, and content or link
//! target. No times, no owners, no order. What a build fetches by itself (`RUN apt-get`, `ADD https://…`) is in no key.

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest as _, Sha256};

use super::context::{Entries, Kind, hex};
use crate::engine::ImageId;
use crate::image::reference::Reference;

/// Changes with the meaning of any field.
const VERSION: &[u8] = b"nspool build key 1";

/// 32 bytes; shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

/// All that goes in.
#[derive(Clone, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) builder: &'a str,
    pub(super) platform: &'a str,
    pub(super) dockerfile: &'a str,
    pub(super) target: &'a str,
    pub(super) args: &'a BTreeMap<String, String>,
    pub(super) bases: &'a [(Reference, ImageId)],
    pub(super) context: &'a Entries,
}

impl Inputs<'_> {
    pub(super) fn key(&self) -> Key {
        let mut fields = Fields(Sha256::new());
        fields.put(VERSION);
        for text in [self.builder, self.platform, self.dockerfile, self.target] {
            fields.put(text);
        }
        fields.count(self.args.len());
        for (name, value) in self.args {
            fields.put(name);
            fields.put(value);
        }
        let mut bases: Vec<_> = self.bases.iter().map(|(reference, id)| (reference.as_str(), digits(id))).collect();
        bases.sort_unstable();
        fields.count(bases.len());
        for (reference, id) in bases {
            fields.put(reference);
            fields.put(id);
        }
        fields.count(self.context.len());
        for (path, entry) in self.context {
            fields.put(path);
            fields.put(entry.mode.to_be_bytes());
            match &entry.kind {
                Kind::Folder => fields.put("folder"),
                Kind::File(digest) => {
                    fields.put("file");
                    fields.put(digest);
                }
                Kind::Link(target) => {
                    fields.put("link");
                    fields.put(target);
                }
            }
        }
        Key(fields.0.finalize().into())
    }
}

/// Docker writes `sha256:` in front, podman does not everywhere.
fn digits(id: &ImageId) -> &str {
    id.as_str().strip_prefix("sha256:").unwrap_or(id.as_str())
}

struct Fields(Sha256);

impl Fields {
    fn put(&mut self, field: impl AsRef<[u8]>) {
        self.count(field.as_ref().len());
        self.0.update(field);
    }

    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_be_bytes());
    }
}

impl Key {
    /// Of 64 hexadecimal digits, as they are shown.
    pub(super) fn parse(digits: &str) -> Option<Self> {
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return None;
        }
        let mut key = [0; 32];
        for (at, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Self(key))
    }
}

#[cfg(test)]
mod tests;
