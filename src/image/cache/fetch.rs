//! One fetch, from the first look to its outcome, which is told and noted however it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::progress::Tally;
use super::{Ensured, Failure, Inner, Key, Kind, PRIVATE, Told, Whose};
use crate::causes::with_causes;
use crate::config::{self, FetchedBy};
use crate::engine::{Credentials, EngineError, ErrorClass, Image, ImageId, PullStep};
use crate::image::freshness::{Verdict, ask, can_change, take_over};
use crate::image::reference::{Reference, repository_of};
use crate::image::room::uses::Seen;
use crate::image::stages::Stage;
use crate::image::transfer::{self, TransferError};
use crate::image::{download, jittered, pull};
use crate::level;
use crate::random;
use crate::telemetry::metric;

/// The first wait after a registry that has had too many requests and does not say when to come back; it doubles as all waits do.
const BUSY_FIRST: Duration = Duration::from_secs(5);

/// Under way from [`Fetch::new`] until it is dropped.
pub(super) struct Fetch {
    cache: Arc<Inner>,
    key: Key,
    told: level::Sender<Told>,
    end: End,
    /// A pull may have brought an image that does not have its second name.
    doubtful: AtomicBool,
    /// What the engine had under the reference, at the last look before anything was done.
    had: Mutex<Option<ImageId>>,
}

/// An image that was removed each time between the look and the answer is no answer.
const LOOKS: u32 = 3;

/// At what the engine has under a reference, and what was known beside it in that moment.
pub(in crate::image) struct Look {
    image: Option<Image>,
    /// Nobody's own credentials were at work on that repository.
    quiet: bool,
    seen: Seen,
}

impl Look {
    pub(super) async fn at(cache: &Inner, reference: &Reference) -> Result<Self, EngineError> {
        let seen = cache.uses.seen();
        let unnamed = || cache.table.lock().unnamed.seen(reference.repository());
        let (others, before) = unnamed();
        let image = cache.engine.image(reference.as_str()).await?;
        let quiet = !others && unnamed() == (false, before);
        Ok(Self { image, quiet, seen })
    }
}

/// What is left to say when it is dropped.
enum End {
    /// Its task fell, or was never run.
    Fallen,
    /// It was told once before: no news for the memory.
    Again(Failure),
    /// To be told and noted.
    Outcome(Result<Ensured, Failure>),
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let (outcome, again) = match std::mem::replace(&mut self.end, End::Fallen) {
            End::Fallen => (Err(Failure::new(Kind::Failed, "the fetch ended early: a bug in nspool")), false),
            End::Again(failure) => (Err(failure), true),
            End::Outcome(outcome) => (outcome, false),
        };
        {
            // Noted and gone in one: who comes from here on finds the one or begins another.
            let mut table = self.cache.table.lock();
            table.under_way.remove(&self.key);
            match &outcome {
                Ok(ensured) => table.memory.present(&self.key, ensured.clone()),
                Err(failure) if !again => table.memory.failed(&self.key, failure.clone()),
                Err(_) => {}
            }
        }
        self.told.send_modify(|told| told.outcome = Some(outcome));
    }
}

impl Fetch {
    pub(super) fn new(cache: Arc<Inner>, key: Key, told: level::Sender<Told>) -> Self {
        Self { cache, key, told, end: End::Fallen, doubtful: AtomicBool::new(false), had: Mutex::default() }
    }

    /// `early`: what was seen already, since it was asked for.
    pub(super) async fn run(mut self, credentials: Option<Credentials>, early: Option<Look>) {
        let stop = self.cache.stop.clone();
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => End::Outcome(Err(Failure::new(Kind::Stopping, "nspool is stopping"))),
            end = self.carry_out_and_hold(credentials, early) => end,
        };
        self.end = end;
    }

    /// Who is told of an image is about to create from it.
    async fn carry_out_and_hold(&self, credentials: Option<Credentials>, mut early: Option<Look>) -> End {
        // A removal that ends after its image was fetched anew has the new one looked at once more.
        let mut brought: Option<Ensured> = None;
        for _ in 0..LOOKS {
            let look = match early.take() {
                Some(look) => look,
                None => match Look::at(&self.cache, &self.key.reference).await {
                    Ok(look) => look,
                    Err(error) => return End::Outcome(Err(error.into())),
                },
            };
            let seen = look.seen;
            let ensured = match self.carry_out(look, credentials.clone()).await {
                End::Outcome(Ok(ensured)) => ensured,
                end @ (End::Outcome(Err(_)) | End::Again(_) | End::Fallen) => return end,
            };
            let before = brought.take().filter(|before| before.id == ensured.id);
            let came = before.is_some() || self.had.lock().as_ref() != Some(&ensured.id);
            let ensured = Ensured { fetched: ensured.fetched || before.is_some_and(|before| before.fetched), ..ensured };
            if self.cache.uses.hold(&ensured.id, self.key.reference.as_str(), came, seen).await {
                return End::Outcome(Ok(ensured));
            }
            brought = Some(ensured).filter(|_| came);
        }
        End::Outcome(Err(Failure::new(Kind::Failed, "it was removed again each time that it was here: is there room for it?")))
    }

    async fn carry_out(&self, look: Look, credentials: Option<Credentials>) -> End {
        let before = match self.answer_from_here(look) {
            Here::Usable(image) => return End::Outcome(Ok(self.freshened(image).await)),
            Here::NotUsable(before) => before,
        };
        if let Some(image) = self.stored().await {
            return End::Outcome(Ok(self.freshened(image).await));
        }
        {
            let mut table = self.cache.table.lock();
            if let Some(failure) = table.memory.remembered(&self.key) {
                return End::Again(failure);
            }
            table.memory.fetching(&self.key);
        }
        let fetched = self.fetch_and_tell(before.as_ref(), credentials.as_ref(), None).await;
        if fetched.is_ok() && self.key.whose == Whose::Daemons {
            self.cache.table.lock().checks.fresh(&self.key.reference);
        }
        End::Outcome(fetched)
    }

    /// What the operator has put into the host's own store is everybody's, and no registry is asked for it.
    async fn stored(&self) -> Option<Image> {
        let (cache, reference) = (&self.cache, &self.key.reference);
        if self.key.whose != Whose::Daemons {
            return None;
        }
        let _place = cache.places.acquire(Instant::now() + cache.settings.fetch_timeout).await?;
        let loaded = async {
            let Some(loaded) = transfer::load_if_stored(&*cache.engine, &cache.store, reference).await? else { return Ok(None) };
            let transfer::Ensured { id, how } = loaded;
            tracing::info!(%reference, image = %id, ?how, "an image came from the store");
            Ok::<_, TransferError>(cache.engine.image(id.as_str()).await?)
        };
        loaded.await.unwrap_or_else(|error| {
            let why = with_causes(&error);
            tracing::warn!(%reference, %why, "an image cannot be had from the store, and is asked for elsewhere");
            None
        })
    }

    /// With what its registry had under the reference, if it came from there through the store: of what they were loaded with, Docker knows no
    /// manifest, and podman makes one of its own.
    async fn with_origin(&self, mut image: Image) -> Image {
        let reference = &self.key.reference;
        match download::origin(&self.cache.store, reference, image.id.as_str()).await {
            Ok(Some(origin)) => {
                image.digests.retain(|digest| repository_of(digest) != reference.repository());
                image.digests.push(format!("{}@{origin}", reference.repository()));
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%reference, %error, "where an image came from cannot be read"),
        }
        image
    }

    /// What is here, or what the registry has instead by now.
    async fn freshened(&self, image: Image) -> Ensured {
        let (cache, reference) = (&self.cache, &self.key.reference);
        let image = self.with_origin(image).await;
        let known = |stale| Ensured { stale, ..self.ensured(image.clone(), false) };
        if !can_change(reference, &image) {
            return known(None);
        }
        {
            let mut table = cache.table.lock();
            if !table.checks.is_due(reference) {
                return known(table.checks.of(reference).and_then(|check| check.stale.clone()));
            }
        }
        let (why, retry_after) = match ask(&*cache.registry, &cache.credentials, reference, &image).await {
            Verdict::Fresh => {
                cache.table.lock().checks.fresh(reference);
                return known(None);
            }
            Verdict::Changed(digest) => match self.fetch_and_tell(Some(&image.id), None, Some(&digest)).await {
                Ok(anew) => {
                    cache.table.lock().checks.fresh(reference);
                    return anew;
                }
                Err(failure) => (failure.why, failure.retry_after),
            },
            Verdict::Unknown(why, retry_after) => (why, retry_after),
        };
        known(Some(cache.table.lock().checks.in_vain(reference, &why, retry_after)))
    }

    /// `digest`: by that, and then under the reference.
    async fn fetch_and_tell(
        &self,
        before: Option<&ImageId>,
        credentials: Option<&Credentials>,
        digest: Option<&str>,
    ) -> Result<Ensured, Failure> {
        let began = Instant::now();
        let wanted = Wanted { before, credentials, digest };
        let fetched = self.fetch(wanted, began + self.cache.settings.fetch_timeout).await;
        metrics::histogram!(metric::IMAGE_FETCH).record(began.elapsed());
        let outcome = fetched.as_ref().map_or_else(|failure| failure.kind.word(), |_| "fetched");
        metrics::counter!(metric::IMAGE_FETCHES, "outcome" => outcome).increment(1);
        let (reference, took) = (&self.key.reference, began.elapsed());
        match &fetched {
            Ok(Ensured { id, digest, .. }) => tracing::info!(%reference, image = %id, digest, ?took, "an image was fetched"),
            Err(Failure { why, .. }) => tracing::warn!(%reference, outcome, %why, ?took, "an image cannot be had"),
        }
        fetched
    }

    /// Whether the engine has it, and everybody may use it.
    fn answer_from_here(&self, Look { image, quiet, .. }: Look) -> Here {
        *self.had.lock() = image.as_ref().map(|image| image.id.clone());
        match image {
            Some(image) if self.key.whose == Whose::Daemons && quiet && !is_named(&image) => Here::Usable(image),
            image => Here::NotUsable(image.map(|image| image.id)),
        }
    }

    fn ensured(&self, image: Image, fetched: bool) -> Ensured {
        Ensured { digest: self.key.reference.digest_of(&image), id: image.id, fetched, stale: None }
    }

    /// In its place and time.
    async fn fetch(&self, wanted: Wanted<'_>, deadline: Instant) -> Result<Ensured, Failure> {
        let settings = &self.cache.settings;
        let Some(_place) = self.cache.places.acquire(deadline).await else {
            let why = format!("no place among {} fetches within {:?}", settings.concurrent, settings.fetch_timeout);
            return Err(Failure::new(Kind::Crowded, &why));
        };
        let repository = wanted.credentials.map(|_| self.key.reference.repository());
        if let Some(repository) = repository {
            self.cache.table.lock().unnamed.enter(repository);
        }
        let fetched = self.attempts(wanted, deadline).await;
        // Cut off before this, or in doubt: nobody knows what has come, and the repository stays marked.
        if let Some(repository) = repository
            && (fetched.is_ok() || !self.doubtful.load(Ordering::Relaxed))
        {
            self.cache.table.lock().unnamed.leave(repository);
        }
        fetched
    }

    async fn attempts(&self, wanted: Wanted<'_>, deadline: Instant) -> Result<Ensured, Failure> {
        let settings = &self.cache.settings;
        let (mut attempt, mut made_space) = (1, false);
        loop {
            let attempted = tokio::time::timeout_at(deadline, self.attempt(attempt, wanted)).await;
            let failure = match attempted {
                Ok(Ok(image)) => return Ok(self.ensured(image, true)),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(Failure::new(Kind::Failed, &self.late())),
            };
            if failure.kind == Kind::DiskFull && !std::mem::replace(&mut made_space, true) && self.space_was_made(deadline).await {
                attempt += 1;
                continue;
            }
            let wait = wait_after(&failure, &self.cache.backoff, attempt);
            if failure.kind.is_permanent() || attempt >= settings.attempts || Instant::now() + wait >= deadline {
                return Err(failure);
            }
            tracing::info!(reference = %self.key.reference, attempt, why = %failure.why, retry_in = ?wait, "fetching an image failed");
            metrics::counter!(metric::IMAGE_RETRIES).increment(1);
            self.told.send_modify(|told| told.after = Some(failure.why));
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// Whether something was removed so that there is room for it.
    async fn space_was_made(&self, deadline: Instant) -> bool {
        let Some(make_space) = self.cache.make_space.get() else { return false };
        tokio::time::timeout_at(deadline, make_space()).await.unwrap_or(false)
    }

    /// Why the last attempt was cut off.
    fn late(&self) -> String {
        let words = format!("pull {}: not done within {:?}", self.key.reference, self.cache.settings.fetch_timeout);
        match &self.told.borrow().after {
            Some(after) => format!("{words}; the attempt before: {after}"),
            None => words,
        }
    }

    async fn attempt(&self, attempt: u32, wanted: Wanted<'_>) -> Result<Image, Failure> {
        let (engine, reference) = (&*self.cache.engine, self.key.reference.as_str());
        let tally = Mutex::new(Tally::of_attempt(attempt));
        let show = |progress| self.told.send_modify(|told| told.progress = progress);
        show(tally.lock().progress());
        let hear = |step: PullStep| {
            let mut tally = tally.lock();
            tally.hear(step);
            show(tally.progress());
        };
        let by_nspool = self.cache.settings.fetched_by == FetchedBy::Nspool && self.key.reference.tagged().is_some();
        if by_nspool && wanted.credentials.is_none() {
            return self.by_nspool(&hear).await;
        }
        let Some(credentials) = wanted.credentials else {
            let anew = wanted.digest.map(|digest| self.key.reference.at(digest));
            pull::by_source(engine, anew.as_ref().map_or(reference, Reference::as_str), &self.cache.credentials, &hear).await?;
            if let Some(digest) = wanted.digest {
                take_over(engine, &self.key.reference, digest).await?;
            }
            return Ok(self.brought().await?);
        };
        let doubtful = self.doubtful.swap(true, Ordering::Relaxed);
        let pulled = Stage::Pull.of(engine.pull_image(reference, Some(credentials), &hear)).await;
        if pulled.as_ref().is_err_and(|error| error.class != ErrorClass::Unknown) {
            self.doubtful.store(doubtful, Ordering::Relaxed);
        }
        pulled?;
        let image = self.brought().await?;
        let is_new = wanted.before != Some(&image.id) && !is_named(&image);
        if is_new && !self.cache.table.lock().unnamed.knows_as_everybodys(&image) {
            engine.tag_image(&image.id, PRIVATE, image.id.bare()).await?;
        }
        Ok(image)
    }

    /// Into the store, and from there into the engine.
    async fn by_nspool(&self, hear: &(dyn Fn(PullStep) + Send + Sync)) -> Result<Image, Failure> {
        let Inner { client, credentials, store, engine, .. } = &*self.cache;
        let reference = &self.key.reference;
        let store = download::by_source(client, store, reference, credentials, hear).await?;
        transfer::ensure_loaded(&**engine, &store, reference).await?;
        Ok(self.with_origin(self.brought().await?).await)
    }

    async fn brought(&self) -> Result<Image, EngineError> {
        let reference = self.key.reference.as_str();
        self.cache.engine.image(reference).await?.ok_or_else(|| EngineError {
            operation: "pull",
            class: ErrorClass::ImageMissing,
            subject: reference.to_owned(),
            message: "the engine says it has it now, and then that it has not".into(),
            status: None,
        })
    }
}

/// What is to be fetched.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// What the reference stood for.
    before: Option<&'a ImageId>,
    /// A caller's.
    credentials: Option<&'a Credentials>,
    /// What the registry has under the reference, as it said just now.
    digest: Option<&'a str>,
}

/// What the engine has under a reference.
enum Here {
    /// For whoever asks.
    Usable(Image),
    /// Nothing, or something that the registry has to be asked about.
    NotUsable(Option<ImageId>),
}

/// Whether it came by a caller's credentials.
pub(super) fn is_named(image: &Image) -> bool {
    image.tags.iter().any(|tag| tag.strip_prefix(PRIVATE).is_some_and(|rest| rest.starts_with(':')))
}

/// Never shorter than the registry says.
fn wait_after(failure: &Failure, backoff: &config::Backoff, attempt: u32) -> Duration {
    if failure.kind != Kind::Busy {
        return jittered(backoff.first, backoff.longest, attempt);
    }
    match failure.retry_after {
        Some(after) => after + (after / 4 + backoff.first).mul_f64(random::dice().f64()),
        None => jittered(backoff.first.max(BUSY_FIRST), backoff.longest.max(BUSY_FIRST), attempt),
    }
}
