//! The gate in front of the placeholder image: open while the image is there, closed while it is not.
//!
//! One task, the daemon's ([`Gate::run`]), prepares the image, however many nannies wait (I5). A nanny's [`Gate::ready`] is a wait on a
//! level: dropping it ends that wait and nothing else.
//!
//! ```text
//! Unknown ─► Preparing ─there─► Ready ─image_gone─► Preparing
//!              │    ▲             └─ nudge: looked up, still there: stays Ready
//!          failed   │ after a jittered backoff, or at once on a nudge
//!              ▼    │
//!              Failed
//! ```
//!
//! What can go wrong: the engine is away, the registry says no, the disk is full, the deadline passes. None of it is fatal. The gate stays
//! closed, keeps the words for health and usage, and tries again for as long as the daemon lives.
//!
//! It deliberately does not know nannies or slots, and never removes an image: one that nobody needs any more is the operator's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::placeholder::Archive;
use super::pull::{self, CredentialSource};
use crate::config;
use crate::engine::{Engine, EngineError, ErrorClass, ImageId};
use crate::level;

/// Where the placeholder image comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Loaded from nspool itself.
    Embedded(Archive),
    /// Pulled when the engine has it not. What the engine has is never replaced by something newer.
    Reference {
        /// e.g. `busybox:1.36`.
        reference: String,
        /// Asked anew at each pull: helpers hand out tokens that end.
        credentials: CredentialSource,
    },
}

impl Source {
    /// As configured.
    ///
    /// # Errors
    /// As [`Archive::build`].
    pub fn from_config(placeholder: &config::Placeholder, registries: &[config::Registry]) -> std::io::Result<Self> {
        Ok(match &placeholder.image {
            config::PlaceholderImage::Embedded => Self::Embedded(Archive::embedded()?),
            config::PlaceholderImage::Reference(reference) => {
                Self::Reference { reference: reference.clone(), credentials: CredentialSource::from_env(registries.to_vec()) }
            }
        })
    }

    /// The name by which the engine is asked for it.
    #[must_use]
    pub fn reference(&self) -> &str {
        match self {
            Self::Embedded(archive) => archive.reference(),
            Self::Reference { reference, .. } => reference,
        }
    }
}

/// Whether the image is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateState {
    /// [`Gate::run`] has not begun. Exit: Preparing.
    Unknown,
    /// Being looked up, loaded or pulled. Exits: Ready, Failed.
    Preparing {
        /// The failure before this attempt, so that what is told does not flicker.
        after: Option<Failure>,
    },
    /// There, under this id. Exits: Preparing, and Failed when a look at it fails.
    Ready(ImageId),
    /// Not to be had; tried again. Exit: Preparing.
    Failed(Failure),
}

impl GateState {
    /// What keeps the gate closed, if something went wrong.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) | Self::Preparing { after: Some(failure) } => Some(failure),
            Self::Unknown | Self::Preparing { after: None } | Self::Ready(_) => None,
        }
    }

    /// The image, while the gate is open.
    #[must_use]
    pub fn image(&self) -> Option<&ImageId> {
        match self {
            Self::Ready(image) => Some(image),
            Self::Unknown | Self::Preparing { .. } | Self::Failed(_) => None,
        }
    }
}

impl fmt::Display for GateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Preparing { .. } => f.write_str("preparing"),
            Self::Ready(_) => f.write_str("ready"),
            Self::Failed(_) => f.write_str("failed"),
        }
    }
}

/// Why the image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of the first failure since the gate was last open.
    pub since: Instant,
    /// Failures in a row.
    pub count: u32,
    /// Of the last one.
    pub class: ErrorClass,
    /// The last one's words: the engine's or the registry's own, without credentials.
    pub why: Arc<str>,
}

/// See the module. Shared as an `Arc`.
pub struct Gate {
    engine: Arc<dyn Engine>,
    source: Source,
    backoff: config::Backoff,
    prepare_timeout: Duration,
    state: level::Sender<GateState>,
    /// Kept until the gate is open again, where it means one more look.
    gone: Notify,
    nudged: Notify,
}

impl Gate {
    /// Closed; it does nothing until [`Gate::run`]. `prepare_timeout` is for one whole preparation.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, source: Source, backoff: config::Backoff, prepare_timeout: Duration) -> Self {
        let state = level::Sender::new(GateState::Unknown);
        Self { engine, source, backoff, prepare_timeout, state, gone: Notify::new(), nudged: Notify::new() }
    }

    /// The image's reference, for logs and labels.
    #[must_use]
    pub fn reference(&self) -> &str {
        self.source.reference()
    }

    /// Waits until the gate is open: for ever, if it never is, so wait for your own stop beside it. Cancel safe; ends no one else's wait.
    pub async fn ready(&self) -> ImageId {
        let mut changes = self.state.subscribe();
        let open = changes.wait_for(|state| state.image().is_some()).await;
        match open.ok().and_then(|state| state.image().cloned()) {
            Some(image) => image,
            // The sender is in self, which the caller holds, so this is not reached; if it were, there would be nothing to wait for.
            None => std::future::pending().await,
        }
    }

    /// A snapshot.
    #[must_use]
    pub fn state(&self) -> GateState {
        self.state.borrow().clone()
    }

    /// All changes from now on, the present state first.
    #[must_use]
    pub fn subscribe(&self) -> level::Receiver<GateState> {
        self.state.subscribe()
    }

    /// Something said that the image with this id is gone: an event of the engine, or a create that was told so ([`ErrorClass::ImageMissing`]). Closes the
    /// gate if it stands open for that image, until the engine was looked at. Another image's id does nothing.
    pub fn image_gone(&self, id: &str) {
        let closed = self.state.send_if_modified(|state| {
            let ours = state.image().is_some_and(|image| digest(image.as_str()) == digest(id));
            if ours {
                *state = GateState::Preparing { after: None };
            }
            ours
        });
        // While it is being prepared the id is not known yet, and may be this one: one more look when it is open costs nothing.
        if closed || matches!(*self.state.borrow(), GateState::Preparing { .. }) {
            self.gone.notify_one();
        }
    }

    /// Do not wait out the backoff: the engine is back. An open gate takes one look, since what happened meanwhile nobody heard.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Keeps the image there until `stop`, which cuts off a pull under way. One task runs this, once per gate: this is what makes the
    /// preparation single.
    pub async fn run(&self, stop: CancellationToken) {
        let mut failures = 0;
        self.state.send_replace(GateState::Preparing { after: None });
        loop {
            let prepared = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                prepared = self.prepare_in_time() => prepared,
            };
            let wait = match prepared {
                Ok(image) => {
                    failures = 0;
                    self.open(image);
                    None
                }
                Err(error) => {
                    failures += 1;
                    let wait = super::jittered(self.backoff.first, self.backoff.longest, failures);
                    self.fail(&error, wait);
                    Some(wait)
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.nudged.notified() => {}
                () = self.gone.notified(), if wait.is_none() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
            self.begin();
        }
    }

    /// An open gate stays open during a look: only [`Gate::image_gone`] has reason to close it before.
    fn begin(&self) {
        self.state.send_if_modified(|state| match state {
            GateState::Failed(failure) => {
                *state = GateState::Preparing { after: Some(failure.clone()) };
                true
            }
            GateState::Unknown | GateState::Preparing { .. } | GateState::Ready(_) => false,
        });
    }

    fn open(&self, image: ImageId) {
        let opened = self.state.send_if_modified(|state| {
            let differs = state.image() != Some(&image);
            *state = GateState::Ready(image.clone());
            differs
        });
        if opened {
            tracing::info!(reference = self.reference(), %image, "the placeholder image is ready");
        }
    }

    fn fail(&self, error: &EngineError, wait: Duration) {
        let why: Arc<str> = error.to_string().into();
        tracing::warn!(reference = self.reference(), class = ?error.class, %why, retry_in = ?wait, "the placeholder image cannot be had");
        self.state.send_modify(|state| {
            let before = state.failure();
            let since = before.map_or_else(Instant::now, |failure| failure.since);
            let count = before.map_or(0, |failure| failure.count).saturating_add(1);
            *state = GateState::Failed(Failure { since, count, class: error.class, why });
        });
    }

    async fn prepare_in_time(&self) -> Result<ImageId, EngineError> {
        let answer = tokio::time::timeout(self.prepare_timeout, self.prepare()).await;
        answer.unwrap_or_else(|_| Err(EngineError::deadline("prepare", self.reference(), self.prepare_timeout)))
    }

    /// Looks the image up; not there: gets it, and looks again.
    async fn prepare(&self) -> Result<ImageId, EngineError> {
        let reference = self.reference();
        if let Some(image) = self.engine.image_id(reference).await? {
            return Ok(image);
        }
        self.state.send_if_modified(|state| {
            let open = state.image().is_some();
            if open {
                *state = GateState::Preparing { after: None };
            }
            open
        });
        match &self.source {
            Source::Embedded(archive) => self.engine.load_image(archive.bytes().to_vec().into()).await?,
            Source::Reference { credentials, .. } => pull::by_source(&*self.engine, reference, credentials, &|_| {}).await?,
        }
        self.engine.image_id(reference).await?.ok_or_else(|| EngineError {
            operation: "prepare",
            class: ErrorClass::ImageMissing,
            subject: reference.to_owned(),
            message: "the engine says it has it now, and then that it has not".into(),
            status: None,
        })
    }
}

/// Docker writes `sha256:` in front, podman does not everywhere.
fn digest(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

#[cfg(test)]
mod tests;
