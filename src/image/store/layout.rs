//! The files of an OCI image layout, as far as a store has to understand them.
//!
//! Manifests and configs are kept as the bytes that came, because their digests are their names; only `index.json` is ever written anew, and what it
//! says beyond the fields here is kept. A digest is checked when it is read: it becomes a file's name.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::error::StoreError;
use crate::image::placeholder::Arch;

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
/// Ours.
const ORIGIN: &str = "dev.nspool.origin.digest";
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

    /// What its registry had under that name, if it came from there.
    pub(super) fn origin(&self) -> Option<Digest> {
        self.annotation(ORIGIN).and_then(Digest::parse)
    }

    /// The same blob under that name.
    pub(super) fn named(&self, name: &str, origin: Option<&Digest>) -> Self {
        let mut named = Self::new(&self.media_type, self.digest.clone(), self.size);
        let says = [(NAME, Some(name)), (FULL_NAME, Some(name)), (ORIGIN, origin.map(Digest::as_str))];
        named.annotations = says.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect();
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

impl Index {
    /// That of an image for this machine. `digest` is the index's own.
    pub(super) fn ours(&self, digest: &Digest) -> Result<&Descriptor, StoreError> {
        let architecture = Arch::NATIVE.oci_name();
        self.manifests.iter().find(|inner| inner.is_for(architecture) && !inner.is_attestation()).ok_or_else(|| {
            let why = format!("it has no image for linux/{architecture}");
            StoreError::refused(format!("the index {digest}"), why)
        })
    }
}

/// What a manifest that came from somewhere names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// The blobs of an image.
    Image {
        /// The config, and the layers.
        parts: Vec<Descriptor>,
    },
    /// Other manifests.
    Index {
        /// That for this machine.
        ours: Descriptor,
    },
}

/// Of a manifest, or an index, with this digest.
///
/// # Errors
/// [`StoreError::Refused`]: it is neither, or has nothing for this machine.
pub fn contents(media_type: &str, digest: &Digest, bytes: &[u8]) -> Result<Contents, StoreError> {
    let refused = |why: String| StoreError::refused(format!("the manifest {digest}"), why);
    match Descriptor::new(media_type, digest.clone(), bytes.len() as u64).role() {
        Role::Manifest => {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
            Ok(Contents::Image { parts: manifest.parts().map(|(_, part)| part.clone()).collect() })
        }
        Role::Index => {
            let index: Index = serde_json::from_slice(bytes).map_err(|error| refused(error.to_string()))?;
            index.ours(digest).map(|ours| Contents::Index { ours: ours.clone() })
        }
        Role::Other => Err(refused(format!("{media_type:?} is neither an image's manifest nor an index"))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_is_told_by_its_type_and_for_this_machine() {
        let one = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let part = |digit: &str, architecture: &str| {
            let platform = serde_json::json!({ "os": "linux", "architecture": architecture });
            serde_json::json!({ "mediaType": MANIFEST_TYPE, "digest": one(digit), "size": 7, "platform": platform })
        };
        let digest = Digest::of(b"");
        let of = |kind: &str, value: Value| contents(kind, &digest, value.to_string().as_bytes());
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": [part("a", "other"), part("b", Arch::NATIVE.oci_name())] });
        let Ok(Contents::Index { ours }) = of(DOCKER_INDEX_TYPE, index.clone()) else { panic!("an index") };
        assert_eq!(ours.digest.as_str(), one("b"));
        let foreign = serde_json::json!({ "schemaVersion": 2, "manifests": [part("a", "other")] });
        assert!(of(INDEX_TYPE, foreign).unwrap_err().to_string().contains("it has no image for linux/"));
        let image = serde_json::json!({ "schemaVersion": 2, "config": part("c", ""), "layers": [part("d", "")] });
        let Ok(Contents::Image { parts }) = of(MANIFEST_TYPE, image.clone()) else { panic!("an image") };
        assert_eq!(parts.iter().map(|part| part.digest.as_str()).collect::<Vec<_>>(), [one("c"), one("d")]);
        for (kind, value) in [("text/html", image), (MANIFEST_TYPE, index), (INDEX_TYPE, Value::Null)] {
            assert!(matches!(of(kind, value), Err(StoreError::Refused { .. })), "{kind}");
        }
    }
}
