//! The gate in front of the placeholder image: open while the image is there, closed while it is not.
//!
//! One task, the daemon's ([`Gate::run`]), prepares the image, however many nannies wait (I5). A nanny's [`Gate::ready`] is a wait on a
//! level: dropping it ends that wait and nothing else.
//!
//! ```text
//! Unknown ─► Preparing ─there─► Ready ─image_gone─► Preparing
//!              │    ▲             ├─ nudge: looked up, still there: stays Ready
//!          failed   │ after a     └─ its time is up (`freshness`): the registry is asked; it has another one: Ready, with that
//!              ▼    │ jittered
//!              Failed backoff, or at once on a nudge
//! ```
//!
//! An image that only lost its name (`docker rmi` of a tag) gets it back, without a pull. One that the registry has anew is pulled beside the old
//! one, which the gate stays open with until then; who keeps slots sees the other id and rolls.
//!
//! What can go wrong: the engine is away, the registry says no, the disk is full, the deadline passes. None of it is fatal. The gate stays
//! closed, keeps the words for health and usage, and tries again for as long as the daemon lives. Of an open one's freshness nothing closes it.
//!
//! It deliberately does not know nannies or slots, and never removes an image: one that nobody needs any more is the operator's.

mod fresh;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::fresh::KeptFresh;
use super::freshness::{Policy, Stale};
use super::host_store::HostStore;
use super::placeholder::Archive;
use super::pull::{self, CredentialSource};
use super::reference::Reference;
use super::registry::Registry;
use super::transfer;
use crate::causes::with_causes;
use crate::config;
use crate::engine::{Engine, EngineError, ErrorClass, Image, ImageId};
use crate::level;

/// Where the placeholder image comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Loaded from nspool itself.
    Embedded(Archive),
    /// Pulled when the engine has it not, and as often as [`Gate::kept_fresh`] says.
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
    /// There. Exits: Preparing, and Failed when a look at it fails.
    Ready(Placeholder),
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
            Self::Ready(placeholder) => Some(&placeholder.id),
            Self::Unknown | Self::Preparing { .. } | Self::Failed(_) => None,
        }
    }

    /// Since when nobody can tell whether the open gate's image is still what the registry has.
    #[must_use]
    pub fn stale(&self) -> Option<&Stale> {
        match self {
            Self::Ready(placeholder) => placeholder.stale.as_ref(),
            Self::Unknown | Self::Preparing { .. } | Self::Failed(_) => None,
        }
    }
}

/// The image of an open gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// By which buddies are created.
    pub id: ImageId,
    /// Of its manifest in the reference's repository; empty if it never was in one.
    pub digest: String,
    /// Since when the gate is open with it.
    pub since: SystemTime,
    /// Since when the registry could not be asked, though it was time to.
    pub stale: Option<Stale>,
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
    /// What it was open with last: to be found again when it has lost its name.
    had: Mutex<Option<Image>>,
    fresh: Option<KeptFresh>,
    /// Where to look before a registry is asked.
    store: Option<HostStore>,
    /// Kept until the gate is open again, where it means one more look.
    gone: Notify,
    nudged: Notify,
}

impl Gate {
    /// Closed; it does nothing until [`Gate::run`]. `prepare_timeout` is for one whole preparation.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, source: Source, backoff: config::Backoff, prepare_timeout: Duration) -> Self {
        let state = level::Sender::new(GateState::Unknown);
        let (gone, nudged) = (Notify::new(), Notify::new());
        Self { engine, source, backoff, prepare_timeout, state, had: Mutex::default(), fresh: None, store: None, gone, nudged }
    }

    /// Asks the registry by `policy` whether the image that is here is still what it has. Before this: never.
    #[must_use]
    pub fn kept_fresh(mut self, policy: Policy, registry: Arc<dyn Registry>) -> Self {
        self.fresh = match &self.source {
            Source::Embedded(_) => None,
            Source::Reference { reference, credentials } => {
                Reference::parse(reference).ok().and_then(|reference| KeptFresh::new(reference, credentials.clone(), registry, policy))
            }
        };
        self
    }

    /// Looks into the host's own [`store`](super::store), if it is there, before an image is pulled.
    #[must_use]
    pub fn stocked(mut self, store: HostStore) -> Self {
        self.store = Some(store);
        self
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
            let ours = state.image().is_some_and(|image| image.bare() == ImageId::from(id).bare());
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
        stop.run_until_cancelled(self.keep()).await;
    }

    async fn keep(&self) {
        let mut failures = 0;
        self.state.send_replace(GateState::Preparing { after: None });
        loop {
            match self.prepare_in_time().await {
                Ok(image) => {
                    failures = 0;
                    self.open(image);
                    self.rest().await;
                }
                Err(error) => {
                    failures += 1;
                    let wait = super::jittered(self.backoff.first, self.backoff.longest, failures);
                    self.fail(&error, wait);
                    tokio::select! {
                        biased;
                        () = self.nudged.notified() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
            self.begin();
        }
    }

    /// Open, until there is reason for another look.
    async fn rest(&self) {
        loop {
            tokio::select! {
                biased;
                () = self.nudged.notified() => return,
                () = self.gone.notified() => return,
                () = async { match &self.fresh { Some(fresh) => fresh.due().await, None => std::future::pending().await } } => {}
            }
            tokio::select! {
                biased;
                // Those who wait need what there was, at once: a new one has time.
                () = self.gone.notified() => return,
                changed = self.freshen() => if changed { return },
            }
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

    fn open(&self, mut image: Image) {
        {
            let mut had = self.had.lock();
            // With a repository's last tag Docker forgets the digest as well, and the gate would not know any more that it came from there.
            let before = had.take().filter(|before| before.id == image.id);
            let lost = before.into_iter().flat_map(|before| before.digests).filter(|digest| !image.digests.contains(digest));
            let lost: Vec<String> = lost.collect();
            image.digests.extend(lost);
            *had = Some(image.clone());
        }
        let digest = Reference::parse(self.reference()).map(|reference| reference.digest_of(&image)).unwrap_or_default();
        let id = image.id.clone();
        if let Some(fresh) = &self.fresh {
            fresh.sees(image);
        }
        let opened = self.state.send_if_modified(|state| {
            let differs = state.image() != Some(&id);
            // Another one was asked for just now.
            let (since, stale) = match state {
                GateState::Ready(same) if !differs => (same.since, same.stale.clone()),
                GateState::Ready(_) | GateState::Unknown | GateState::Preparing { .. } | GateState::Failed(_) => (SystemTime::now(), None),
            };
            *state = GateState::Ready(Placeholder { id: id.clone(), digest: digest.clone(), since, stale });
            differs
        });
        if opened {
            tracing::info!(reference = self.reference(), image = %id, digest, "the placeholder image is ready");
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

    async fn prepare_in_time(&self) -> Result<Image, EngineError> {
        let answer = tokio::time::timeout(self.prepare_timeout, self.prepare()).await;
        answer.unwrap_or_else(|_| Err(EngineError::deadline("prepare", self.reference(), self.prepare_timeout)))
    }

    /// Looks the image up; not there: gives it its name back, or gets it, and looks again.
    async fn prepare(&self) -> Result<Image, EngineError> {
        let reference = self.reference();
        if let Some(image) = self.engine.image(reference).await? {
            return Ok(image);
        }
        self.state.send_if_modified(|state| {
            let open = state.image().is_some();
            if open {
                *state = GateState::Preparing { after: None };
            }
            open
        });
        if let Some(image) = self.named_again().await? {
            return Ok(image);
        }
        match &self.source {
            Source::Embedded(archive) => self.engine.load_image(archive.bytes().to_vec().into()).await?,
            Source::Reference { .. } if self.stored().await => {}
            Source::Reference { credentials, .. } => {
                pull::by_source(&*self.engine, reference, credentials, &|_| {}).await?;
                if let Some(fresh) = &self.fresh {
                    fresh.asked();
                }
            }
        }
        self.engine.image(reference).await?.ok_or_else(|| EngineError {
            operation: "prepare",
            class: ErrorClass::ImageMissing,
            subject: reference.to_owned(),
            message: "the engine says it has it now, and then that it has not".into(),
            status: None,
        })
    }

    /// Whether the host's own store had it, and the engine has it from there.
    async fn stored(&self) -> bool {
        let (Some(store), Ok(reference)) = (&self.store, Reference::parse(self.reference())) else { return false };
        match transfer::load_if_stored(&*self.engine, store, &reference).await {
            Ok(loaded) => loaded.is_some(),
            Err(error) => {
                tracing::warn!(%reference, why = with_causes(&error), "the placeholder image cannot be had from the store, and is pulled");
                false
            }
        }
    }

    /// The image that the gate was open with, if all that is missing is its name. A digest is no name that could be given.
    async fn named_again(&self) -> Result<Option<Image>, EngineError> {
        let Some(id) = self.had.lock().as_ref().map(|image| image.id.clone()) else { return Ok(None) };
        let reference = Reference::parse(self.reference()).ok();
        let Some((repository, tag)) = reference.as_ref().and_then(Reference::tagged) else { return Ok(None) };
        if self.engine.image(id.as_str()).await?.is_none() {
            return Ok(None);
        }
        let named = self.engine.tag_image(&id, repository, tag).await;
        let (reference, image) = (self.reference(), &id);
        match named {
            Ok(()) => tracing::info!(reference, %image, "the placeholder image had lost its name, and has it again"),
            // It may have gone for good meanwhile: got anew, then.
            Err(error) => tracing::warn!(reference, %image, %error, "the placeholder image has lost its name"),
        }
        self.engine.image(reference).await
    }
}

#[cfg(test)]
mod tests;
