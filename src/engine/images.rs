//! What an engine tells of images, and of pulls under way.

use super::ImageId;

/// An image that the engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// By which containers are created.
    pub id: ImageId,
    /// `repository:tag`, as the engine writes them.
    pub tags: Vec<String>,
    /// `repository@sha256:…` of the manifests it came by; none if it never was in a registry.
    pub digests: Vec<String>,
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
