//! What an engine tells of images, and of pulls under way; and images as they go in and come out.

use std::fmt;
use std::io;
use std::time::SystemTime;

use futures::stream::{self, BoxStream, StreamExt as _};
use hyper::body::Bytes;

use std::collections::BTreeMap;

use super::{ImageId, Labels};

/// The bytes of an archive in the form of `docker save`, as they come. An error ends it; what was there before it is not the whole.
pub type Chunks = BoxStream<'static, io::Result<Bytes>>;

/// An image on its way into an engine.
pub enum ImageArchive {
    /// All of it.
    Whole(Vec<u8>),
    /// Too large to be in memory.
    Chunks(Chunks),
}

impl ImageArchive {
    /// Piece by piece.
    #[must_use]
    pub fn into_chunks(self) -> Chunks {
        match self {
            Self::Whole(bytes) => stream::iter([Ok(bytes.into())]).boxed(),
            Self::Chunks(chunks) => chunks,
        }
    }
}

impl From<Vec<u8>> for ImageArchive {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(bytes)
    }
}

impl fmt::Debug for ImageArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "ImageArchive({} bytes)", bytes.len()),
            Self::Chunks(_) => f.write_str("ImageArchive(…)"),
        }
    }
}

/// An image that the engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// By which containers are created.
    pub id: ImageId,
    /// `repository:tag`, as the engine writes them.
    pub tags: Vec<String>,
    /// `repository@sha256:…` of the manifests it came by; none if it never was in a registry.
    pub digests: Vec<String>,
    /// Its own, and those of what it was built from.
    pub labels: Labels,
}

/// One with what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizedImage {
    /// As ever.
    pub image: Image,
    /// When it was built, wherever that was.
    pub created: SystemTime,
    /// The lowest first.
    pub layers: Vec<Layer>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The same in all images that share it: known by itself and all below it.
    pub chain: String,
    /// In the engine's store.
    pub bytes: u64,
}

/// What became of an image's name, or of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRemoval {
    /// It is gone; with its last name, the image.
    Removed,
    /// There was none.
    Absent,
    /// The engine keeps it, and these are its words: a container has it, or other images are made of it.
    InUse(String),
}

/// How an image is built, besides what it is built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildSpec {
    /// In the context.
    pub dockerfile: String,
    /// The stage that is wanted; empty: the last one.
    pub target: String,
    /// Build args.
    pub args: BTreeMap<String, String>,
    /// `os/arch[/variant]`; empty: the engine's own.
    pub platform: String,
    /// Of the image.
    pub labels: Labels,
    /// `repository:tag`; taken from the image that had it before.
    pub tag: String,
    /// Whatever was built before.
    pub anew: bool,
}

/// One word of an engine on a layer that it pulls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullStep {
    /// As the engine calls it: a short form of its digest.
    pub layer: String,
    /// How far it is.
    pub stage: LayerStage,
}

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerStage {
    /// Named, and nothing of it is here.
    Waiting,
    /// On its way.
    Downloading {
        /// Bytes that are here.
        current: u64,
        /// Of so many; 0 when the registry does not say.
        total: u64,
    },
    /// All its bytes are here.
    Downloaded,
    /// In the engine's store.
    Done,
}
