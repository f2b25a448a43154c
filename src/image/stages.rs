//! What an image goes through on its way, and how long each part of it takes ([`metric::IMAGE_STAGE`]).
//!
//! A stage is measured whether it succeeds or not, and told apart by that; one that is cut off is not measured. It deliberately knows nothing of
//! what is done, and keeps nothing.

use std::time::Instant;

use crate::telemetry::metric;

/// A part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// A registry is asked what it has under a name.
    Head,
    /// The engine fetches an image.
    Pull,
    /// The engine builds one, with its context on the way to it.
    Build,
    /// A blob is written beside the store, and hashed.
    Stage,
    /// Blobs and index get their places in the store, for good.
    Commit,
    /// An engine is loaded from the store.
    Load,
    /// An engine's image comes into the store.
    Save,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Head, Self::Pull, Self::Build, Self::Stage, Self::Commit, Self::Load, Self::Save];

    /// The label `stage`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Pull => "pull",
            Self::Build => "build",
            Self::Stage => "stage",
            Self::Commit => "commit",
            Self::Load => "load",
            Self::Save => "save",
        }
    }

    /// What comes of this, measured. Cancel safe if that is.
    pub async fn of<T, E>(self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let began = Instant::now();
        let result = work.await;
        self.took(began, result.is_ok());
        result
    }

    /// The same of what blocks.
    pub fn of_blocking<T, E>(self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let began = Instant::now();
        let result = work();
        self.took(began, result.is_ok());
        result
    }

    /// It began then and has ended now.
    pub fn took(self, began: Instant, done: bool) {
        let outcome = if done { "done" } else { "failed" };
        metrics::histogram!(metric::IMAGE_STAGE, "stage" => self.word(), "outcome" => outcome).record(began.elapsed());
    }
}
