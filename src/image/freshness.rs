//! Whether what is here under a tag is still what its registry has: when to ask, whom, and what the answer means.
//!
//! ```text
//! a digest, or nothing that ever came from a registry ─► fresh for ever
//! asked not long ago (`[images] freshness`, `fresh_for`) ─► as it was
//! else one HEAD ─ the same digest ─► fresh
//!               ├ another one ─► pulled by that digest, and the tag moved to it
//!               └ no answer ─► what is here serves on, and since when is told
//! ```
//!
//! What can go wrong: the registry is away, slow, says no, or has the image no more; the pull of the new one fails. None of it takes away what is
//! here: it is *stale* ([`Stale`]) until an answer comes, and the registry is left alone for a while after each question in vain.
//!
//! It deliberately knows neither the gate nor the cache, which both go by it, and pulls nothing itself.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::pull::CredentialSource;
use super::reference::Reference;
use super::registry::Registry;
use super::stages::Stage;
use crate::config;
use crate::engine::{Engine, EngineError, Image};
use crate::random::HashMap;
use crate::telemetry::metric;

/// It could not be asked for what is here in its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Of the first question in vain.
    pub since: SystemTime,
    /// The last one's words, without credentials.
    pub why: Arc<str>,
}

impl Stale {
    /// After another question in vain.
    pub(super) fn still(before: Option<&Self>, why: &str) -> Self {
        Self { since: before.map_or_else(SystemTime::now, |before| before.since), why: why.into() }
    }
}

/// When to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// As configured.
    pub freshness: config::Freshness,
    /// With a ttl: how long nobody asks.
    pub fresh_for: Duration,
}

impl Policy {
    /// As configured.
    #[must_use]
    pub fn of(settings: &config::Images) -> Self {
        Self { freshness: settings.freshness, fresh_for: settings.fresh_for }
    }

    /// From one answer to the next question; `None`: no question.
    #[must_use]
    pub fn lasts(&self) -> Option<Duration> {
        match self.freshness {
            config::Freshness::Always => Some(Duration::ZERO),
            config::Freshness::Ttl => Some(self.fresh_for),
            config::Freshness::Never => None,
        }
    }
}

/// What one question came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The registry has what is here.
    Fresh,
    /// It has something else, under this digest.
    Changed(String),
    /// Nobody knows, in these words; when to ask again, if that is known.
    Unknown(Arc<str>, Option<Duration>),
}

/// Whether a question could have another answer than what is here.
pub(super) fn can_change(reference: &Reference, image: &Image) -> bool {
    !reference.is_pinned() && reference.is_origin_of(image)
}

/// One question, by the daemon's own credentials; without, where they cannot be had: the image may be public.
pub(super) async fn ask(registry: &dyn Registry, credentials: &CredentialSource, reference: &Reference, image: &Image) -> Verdict {
    let found = credentials.lookup(reference.as_str()).await;
    let by = found.as_ref().ok().and_then(Option::as_ref);
    let verdict = match Stage::Head.of(registry.head(reference, by)).await {
        Ok(digest) if reference.has(image, &digest) => Verdict::Fresh,
        Ok(digest) => Verdict::Changed(digest),
        Err(error) => {
            let retry_after = error.retry_after();
            let words = found.err().map_or_else(|| error.to_string(), |lookup| format!("{error} (asked without credentials: {lookup})"));
            Verdict::Unknown(words.into(), retry_after)
        }
    };
    let outcome = match &verdict {
        Verdict::Fresh => "fresh",
        Verdict::Changed(_) => "changed",
        Verdict::Unknown(..) => "unknown",
    };
    metrics::counter!(metric::IMAGE_CHECKS, "outcome" => outcome).increment(1);
    match &verdict {
        Verdict::Fresh => tracing::debug!(%reference, "the registry has what is here"),
        Verdict::Changed(digest) => tracing::info!(%reference, digest, "the registry has another image than what is here"),
        Verdict::Unknown(why, _) => tracing::warn!(%reference, %why, "whether an image is fresh cannot be told: the old one serves on"),
    }
    verdict
}

/// Moves the tag to what was pulled by its digest, as a pull by the tag would have.
pub(super) async fn take_over(engine: &dyn Engine, reference: &Reference, digest: &str) -> Result<Option<Image>, EngineError> {
    let Some(image) = engine.image(reference.at(digest).as_str()).await? else { return Ok(None) };
    if let Some((repository, tag)) = reference.tagged() {
        engine.tag_image(&image.id, repository, tag).await?;
    }
    // With its names as they are now.
    engine.image(reference.as_str()).await
}

/// When the registry was asked last, by reference.
pub(super) struct Checks {
    policy: Policy,
    /// After a question in vain.
    leave_alone: Duration,
    most: usize,
    known: HashMap<Reference, Check>,
}

/// Of one reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// Of the last answer; of the first look, before there is one.
    fresh: Instant,
    /// The same for people; `None` before the first answer.
    pub(super) checked: Option<SystemTime>,
    not_before: Instant,
    pub(super) stale: Option<Stale>,
}

impl Check {
    fn at(now: Instant) -> Self {
        Self { fresh: now, checked: None, not_before: now, stale: None }
    }
}

impl Checks {
    pub(super) fn new(settings: &config::Images) -> Self {
        let most = settings.remember.max(1) as usize;
        Self { policy: Policy::of(settings), leave_alone: settings.failed_for, most, known: HashMap::default() }
    }

    /// Whether to ask now. From here on it is known.
    pub(super) fn is_due(&mut self, reference: &Reference) -> bool {
        let Some(lasts) = self.policy.lasts() else { return false };
        let now = Instant::now();
        let check = self.enter(reference);
        now >= check.not_before && now.duration_since(check.fresh) >= lasts
    }

    /// The registry has what is here.
    pub(super) fn fresh(&mut self, reference: &Reference) {
        let now = Instant::now();
        *self.enter(reference) = Check { checked: Some(SystemTime::now()), ..Check::at(now) };
        self.show();
    }

    /// It could not be told. Answers since when that is so.
    pub(super) fn in_vain(&mut self, reference: &Reference, why: &str, retry_after: Option<Duration>) -> Stale {
        let wait = retry_after.unwrap_or_default().max(self.leave_alone);
        let check = self.enter(reference);
        let stale = Stale::still(check.stale.as_ref(), why);
        (check.not_before, check.stale) = (Instant::now() + wait, Some(stale.clone()));
        self.show();
        stale
    }

    pub(super) fn of(&self, reference: &Reference) -> Option<&Check> {
        self.known.get(reference)
    }

    fn enter(&mut self, reference: &Reference) -> &mut Check {
        if !self.known.contains_key(reference)
            && self.known.len() >= self.most
            && let Some(oldest) = self.known.iter().min_by_key(|(_, check)| check.fresh).map(|(reference, _)| reference.clone())
        {
            self.known.remove(&oldest);
        }
        self.known.entry(reference.clone()).or_insert_with(|| Check::at(Instant::now()))
    }

    fn show(&self) {
        let stale = || self.known.values().filter_map(|check| check.stale.as_ref());
        metrics::gauge!(metric::IMAGES_STALE).set(u32::try_from(stale().count()).unwrap_or(u32::MAX));
        metrics::gauge!(metric::IMAGES_STALE_SINCE).set(unix(stale().map(|stale| stale.since).min()));
    }
}

/// Seconds since 1970, as gauges have it; 0 for none.
pub(crate) fn unix(time: Option<SystemTime>) -> f64 {
    time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0.0, |since| since.as_secs_f64().floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(freshness: config::Freshness) -> Checks {
        let fresh_for = Duration::from_secs(100);
        Checks::new(&config::Images { freshness, fresh_for, failed_for: Duration::from_secs(30), remember: 3, ..config::Images::default() })
    }

    fn reference(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_ttl_counts_from_the_first_look_and_from_each_answer() {
        let (mut checks, name) = (checks(config::Freshness::Ttl), reference("a:1"));
        assert!(!checks.is_due(&name));
        pass(99).await;
        assert!(!checks.is_due(&name));
        pass(1).await;
        assert!(checks.is_due(&name) && checks.of(&name).unwrap().checked.is_none());
        checks.fresh(&name);
        assert!(!checks.is_due(&name) && checks.of(&name).unwrap().checked.is_some());
        pass(100).await;
        assert!(checks.is_due(&name));
    }

    #[tokio::test(start_paused = true)]
    async fn always_is_each_time_and_never_is_never() {
        let (mut always, mut never, name) = (checks(config::Freshness::Always), checks(config::Freshness::Never), reference("a:1"));
        assert!(always.is_due(&name));
        always.fresh(&name);
        assert!(always.is_due(&name));
        assert!(!never.is_due(&name));
        pass(1_000_000).await;
        assert!(!never.is_due(&name));
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_left_alone_after_a_question_in_vain() {
        for freshness in [config::Freshness::Always, config::Freshness::Ttl] {
            let (mut checks, name) = (checks(freshness), reference("a:1"));
            checks.is_due(&name);
            pass(100).await;
            assert!(checks.is_due(&name));
            let first = checks.in_vain(&name, "one", None);
            assert!(!checks.is_due(&name));
            pass(30).await;
            assert!(checks.is_due(&name));
            let second = checks.in_vain(&name, "two", Some(Duration::from_secs(50)));
            assert_eq!((second.since, &*second.why), (first.since, "two"));
            pass(49).await;
            assert!(!checks.is_due(&name), "the registry has said when");
            pass(1).await;
            assert!(checks.is_due(&name));
            checks.fresh(&name);
            assert_eq!(checks.of(&name).unwrap().stale, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_has_a_bound() {
        let mut checks = checks(config::Freshness::Ttl);
        for name in ["a:1", "b:1", "c:1", "d:1"] {
            checks.is_due(&reference(name));
            pass(1).await;
        }
        assert_eq!((checks.known.len(), checks.of(&reference("a:1"))), (3, None));
    }

    #[test]
    fn a_digest_and_what_never_was_in_a_registry_do_not_change() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = |digests: &[String]| Image {
            id: "sha256:1".into(),
            tags: Vec::new(),
            digests: digests.to_vec(),
            labels: crate::engine::Labels::new(),
        };
        let pulled = image(&[format!("docker.io/library/a@{digest}")]);
        assert!(can_change(&reference("a:1"), &pulled));
        assert!(!can_change(&reference(&format!("a@{digest}")), &pulled));
        assert!(!can_change(&reference("a:1"), &image(&[])), "built or loaded");
        assert!(!can_change(&reference("b:1"), &pulled), "tagged by hand");
    }
}
