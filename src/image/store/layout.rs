//! The files of an OCI image layout, as far as a store has to understand them.
//!
//! Manifests and configs are kept as the bytes that came, because their digests are their names; only `index.json` is ever written anew, and what it
//! says beyond the fields here is kept. A digest is checked when it is read: it becomes a file's name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// The file that says that a folder is a layout.
pub(super) const LAYOUT: &str = "oci-layout";
/// What is in it.
pub(super) const LAYOUT_TEXT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The names of all images.
pub(in crate::image) const INDEX: &str = "index.json";
/// Longer manifests, configs and indexes are not read: no real one comes near.
pub(super) const LONGEST: u64 = 4 << 20;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Of an image's config.
pub(super) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// By the OCI; other tools look for the part behind the path.
const NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and Docker's: the whole name.
const FULL_NAME: &str = "io.containerd.image.name";

/// `sha256:` and 64 hexadecimal digits. Nothing else can be in a store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    const PREFIX: &'static str = "sha256:";

    /// `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(Self::PREFIX)?;
        let is_hex = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        is_hex.then(|| Self(text.into()))
    }

    /// Of 64 hexadecimal digits.
    #[must_use]
    pub fn of_hex(hex: &str) -> Option<Self> {
        Self::parse(&format!("{}{hex}", Self::PREFIX))
    }

    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_hash(Sha256::new_with_prefix(bytes))
    }

    pub(super) fn of_hash(hash: Sha256) -> Self {
        let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{}{hex}", Self::PREFIX).into())
    }

    /// The name of its file.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[Self::PREFIX.len()..]
    }

    /// With `sha256:` in front.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not sha256: and 64 hexadecimal digits")))
    }
}

/// A blob, as others point to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What is in it.
    #[serde(default)]
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// What else is said of it; an image's names, in an index.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Map<String, Value>,
    /// Kept as it is.
    #[serde(flatten)]
    pub(super) other: Map<String, Value>,
}

/// What a blob is to whoever walks through a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Manifest,
    Index,
    Other,
}

impl Descriptor {
    /// Of these bytes.
    #[must_use]
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, annotations: Map::new(), other: Map::new() }
    }

    pub(super) fn role(&self) -> Role {
        match self.media_type.as_str() {
            MANIFEST_TYPE | DOCKER_MANIFEST_TYPE => Role::Manifest,
            INDEX_TYPE | DOCKER_INDEX_TYPE => Role::Index,
            _ => Role::Other,
        }
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).and_then(Value::as_str)
    }

    /// The whole name that the image has in an index. A word alone is a tag of nobody knows what.
    pub(super) fn name(&self) -> Option<&str> {
        let short = || self.annotation(NAME).filter(|name| name.contains(['/', ':']));
        self.annotation(FULL_NAME).or_else(short)
    }

    /// The same blob under that name.
    pub(super) fn named(&self, name: &str) -> Self {
        let mut named = Self::new(&self.media_type, self.digest.clone(), self.size);
        named.annotations = [NAME, FULL_NAME].into_iter().map(|key| (key.to_owned(), Value::from(name))).collect();
        named
    }

    /// Signatures and build records stand beside images as if they were some.
    pub(super) fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
    }

    /// For this machine's kernel and processor, as far as it says.
    pub(super) fn is_for(&self, architecture: &str) -> bool {
        let says = |key: &str, wanted: &str| self.other.get("platform").and_then(|at| at.get(key)).and_then(Value::as_str) == Some(wanted);
        says("os", "linux") && says("architecture", architecture)
    }
}

/// `index.json`, or an index among the blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    #[serde(flatten)]
    pub(super) other: Map<String, Value>,
}

impl Default for Index {
    fn default() -> Self {
        let other = std::iter::once(("mediaType".to_owned(), Value::from(INDEX_TYPE))).collect();
        Self { schema_version: 2, manifests: Vec::new(), other }
    }
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub(super) schema_version: u32,
    #[serde(default)]
    pub(super) media_type: String,
    /// Its digest is the image's id.
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    pub(super) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: MANIFEST_TYPE.to_owned(), config, layers }
    }

    /// As it says itself; those that do not say are the OCI's.
    #[must_use]
    pub fn media_type(&self) -> &str {
        if self.media_type.is_empty() { MANIFEST_TYPE } else { &self.media_type }
    }

    /// As bytes, and what points to them.
    pub(super) fn bytes(&self) -> serde_json::Result<(Vec<u8>, Descriptor)> {
        let bytes = serde_json::to_vec(self)?;
        let descriptor = Descriptor::new(MANIFEST_TYPE, Digest::of(&bytes), bytes.len() as u64);
        Ok((bytes, descriptor))
    }

    /// All that it names, each with its part in it.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, &Descriptor)> {
        std::iter::once(("config", &self.config)).chain(self.layers.iter().map(|layer| ("layer", layer)))
    }
}

/// Of an image's config.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    pub(super) rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RootFs {
    /// The layers' digests without their compression.
    pub(super) diff_ids: Vec<Digest>,
}

/// A layer's type, by how it begins.
pub(super) fn layer_type(beginning: &[u8]) -> &'static str {
    match beginning {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => LAYER_TYPE,
    }
}

/// Of a layer that is not compressed.
pub(super) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
