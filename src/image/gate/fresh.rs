//! The placeholder's freshness: when its registry is asked, and what is done when it has another image by now.
//!
//! The gate is open all the while. What fails leaves it open with what it has, marked stale, and is tried again after a wait that grows.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Gate, GateState};
use crate::engine::{EngineError, ErrorClass, Image};
use crate::image::freshness::{Policy, Stale, Verdict, ask, can_change, take_over};
use crate::image::pull::{self, CredentialSource};
use crate::image::reference::Reference;
use crate::image::registry::Registry;

/// Nobody asks for the placeholder by name, so with `always` there has to be a pace.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// After the first question in vain; doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LONGEST_RETRY: Duration = Duration::from_secs(900);

/// See the module.
pub(super) struct KeptFresh {
    reference: Reference,
    credentials: CredentialSource,
    registry: Arc<dyn Registry>,
    every: Duration,
    clock: Mutex<Clock>,
}

#[derive(Default)]
struct Clock {
    image: Option<Image>,
    /// `None` while nothing is there that could change.
    due: Option<Instant>,
    in_vain: u32,
}

impl KeptFresh {
    /// `None`: nobody is ever to be asked.
    pub(super) fn new(reference: Reference, credentials: CredentialSource, registry: Arc<dyn Registry>, policy: Policy) -> Option<Self> {
        let every = policy.lasts()?.max(AT_MOST_EVERY.min(policy.fresh_for));
        Some(Self { reference, credentials, registry, every, clock: Mutex::default() })
    }

    /// Until it is time to ask. Cancel safe.
    pub(super) async fn due(&self) {
        let due = self.clock.lock().due;
        match due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// What is there. Its time counts from the first look, unless it was asked for just now.
    pub(super) fn sees(&self, image: Image) {
        let mut clock = self.clock.lock();
        let can_change = can_change(&self.reference, &image);
        clock.due = can_change.then(|| clock.due.unwrap_or_else(|| Instant::now() + self.every));
        clock.image = Some(image);
    }

    /// The registry has said what it has: its time begins anew.
    pub(super) fn asked(&self) {
        let mut clock = self.clock.lock();
        (clock.due, clock.in_vain) = (Some(Instant::now() + self.every), 0);
    }

    fn in_vain(&self, retry_after: Option<Duration>) {
        let mut clock = self.clock.lock();
        clock.in_vain = clock.in_vain.saturating_add(1);
        let wait = crate::image::jittered(FIRST_RETRY, LONGEST_RETRY, clock.in_vain).max(retry_after.unwrap_or_default());
        clock.due = Some(Instant::now() + wait);
    }
}

impl Gate {
    /// Asks the registry. `true`: another image has the name now, to be looked at.
    pub(super) async fn freshen(&self) -> bool {
        let Some(fresh) = &self.fresh else { return false };
        let Some(image) = fresh.clock.lock().image.clone() else { return false };
        let (why, retry_after) = match ask(&*fresh.registry, &fresh.credentials, &fresh.reference, &image).await {
            Verdict::Fresh => {
                fresh.asked();
                self.is_stale(None);
                return false;
            }
            Verdict::Changed(digest) => match self.pull_anew(fresh, &digest).await {
                Ok(()) => {
                    fresh.asked();
                    self.is_stale(None);
                    return true;
                }
                Err(error) => {
                    tracing::warn!(reference = %fresh.reference, digest, %error, "the new placeholder image cannot be had: the old one serves on");
                    (error.to_string().into(), None)
                }
            },
            Verdict::Unknown(why, retry_after) => (why, retry_after),
        };
        fresh.in_vain(retry_after);
        self.is_stale(Some(&why));
        false
    }

    async fn pull_anew(&self, fresh: &KeptFresh, digest: &str) -> Result<(), EngineError> {
        let anew = fresh.reference.at(digest);
        let pull = async {
            pull::by_source(&*self.engine, anew.as_str(), &fresh.credentials, &|_| {}).await?;
            let gone = || EngineError {
                operation: "pull",
                class: ErrorClass::ImageMissing,
                subject: anew.to_string(),
                message: "the engine says it has it now, and then that it has not".into(),
                status: None,
            };
            take_over(&*self.engine, &fresh.reference, digest).await?.map(drop).ok_or_else(gone)
        };
        let pulled = tokio::time::timeout(self.prepare_timeout, pull).await;
        pulled.unwrap_or_else(|_| Err(EngineError::deadline("pull", anew.as_str(), self.prepare_timeout)))
    }

    fn is_stale(&self, why: Option<&str>) {
        self.state.send_if_modified(|state| match state {
            GateState::Ready(placeholder) => {
                let stale = why.map(|why| Stale::still(placeholder.stale.as_ref(), why));
                let news = placeholder.stale != stale;
                placeholder.stale = stale;
                news
            }
            GateState::Unknown | GateState::Preparing { .. } | GateState::Failed(_) => false,
        });
    }
}
