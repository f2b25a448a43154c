//! What an engine tells of images, and of pulls under way.

use std::collections::BTreeMap;

use super::{ImageId, Labels};

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
