//! What an engine is spared: [`Paced`] wraps an engine and is one itself, with the same trait.
//!
//! - **Rate.** A token is one preparation: a create and a start, with their undo ([`PreparationPermit`]). Removals have a bucket of their own, of the same
//!   size, so that a pool that fills cannot keep another part of it from being cleared. Nothing else has a rate: neither the fence
//!   (rename), nor looks (inspect, list) ever wait behind preparations or removals.
//!   A network that is made or removed takes a token of the same buckets.
//! - **Concurrency.** Create, start and remove share a cap; rename has a cap of its own of the same size, so that a fence waits for other fences
//!   only. Both are fair.
//! - **Deadlines.** Every call has one, but wait and events. It begins when the call does, not when it queues: a queue is left by dropping the
//!   wait, or moves on by the deadlines of those in front.
//! - **Mutations run to their end.** Waiting for a token or a place is cancel safe and takes nothing. After it the call is a task on the tracker: who drops the
//!   future stops listening, and the call goes on. At its deadline the call is cut off and the answer is [`ErrorClass::Unknown`]: the engine
//!   may still carry it out. It is not left running, since an engine that never answers would then keep its places for good.
//!   Load, pull and build are the exception: a dropped one is cut off, which ends a pull or build on the engine's side too.
//! - **Stop** ([`Paced::set_stopping`]) keeps only the concurrency: nobody waits for a token any more, and a create or start that still queues is
//!   refused: nobody wants what it would make, and removals would have to wait behind it.
//!
//! What can go wrong is what the engine says, and the deadline. This file deliberately does not know slots, leases, or why something is
//! prepared or removed, and never retries. It is the only one that knows governor, whose own waiting would sleep outside of tokio's clock:
//! only its `check` is used.

mod cap;
mod pieces;

use std::fs::File;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use governor::clock::{Clock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cap::{Cap, Place};
use self::pieces::each_in_time;
use super::{
    BuddySpec, BuildSpec, Chunks, Container, ContainerId, ContainerSummary, Credentials, Engine, EngineError, EngineEvent, EngineFuture,
    EngineInfo, ErrorClass, Image, ImageArchive, ImageId, ImageRemoval, Network, NetworkSpec, PullStep, SizedImage, WaitOutcome,
};
use crate::config;
use crate::level;

/// The names of the metrics that are counted here.
pub mod names {
    /// Counter; labels `operation` (`create`, …) and `outcome` (`ok`, or the error's class).
    pub const ENGINE_CALLS: &str = "nspool_engine_calls_total";
    /// Histogram of seconds, without the time queued; label `operation`. Not for wait and events, which last as long as what they watch.
    pub const ENGINE_CALL_SECONDS: &str = "nspool_engine_call_seconds";
    /// Histogram of seconds spent queued; label `queue` (`preparation`, `removal`, `mutation`, `fence`).
    pub const PACER_WAIT_SECONDS: &str = "nspool_pacer_wait_seconds";
}

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Of info, ping, inspect, list, looks at images and networks, and an image's new name.
    pub read: Duration,
    /// Of create, start, rename and remove, and of a network's.
    pub write: Duration,
    /// Of a load, pull or build.
    pub prepare: Duration,
}

impl Deadlines {
    /// As configured.
    #[must_use]
    pub fn from_config(engine: &config::Engine, placeholder: &config::Placeholder) -> Self {
        Self { read: engine.read_timeout, write: engine.write_timeout, prepare: placeholder.prepare_timeout }
    }
}

/// An engine with a pacer in front. Clones share the pacer.
#[derive(Clone)]
pub struct Paced(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    deadlines: Mutex<Deadlines>,
    /// Owns the mutations under way; whoever closes it can wait for their end.
    tracker: TaskTracker,
    preparations: Bucket,
    removals: Bucket,
    mutations: Cap,
    fences: Cap,
    stopping: CancellationToken,
}

/// Leave for one preparation: a create, its start, and their undo. Dropping it unused gives nothing back.
#[must_use = "a token was taken for one preparation"]
pub struct PreparationPermit(Arc<Inner>);

impl std::fmt::Debug for PreparationPermit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PreparationPermit")
    }
}

impl PreparationPermit {
    /// Removes what this preparation half made, without a removal's token: its own covers it. Otherwise as [`Engine::remove`].
    ///
    /// # Errors
    /// As [`Engine::remove`].
    pub async fn undo(&self, id: &ContainerId) -> Result<(), EngineError> {
        remove(&self.0, id).await
    }
}

impl Paced {
    /// Starts with full buckets. Mutations become tasks of `tracker`.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, pacer: &config::Pacer, deadlines: Deadlines, tracker: TaskTracker) -> Self {
        Self(Arc::new(Inner {
            engine,
            deadlines: Mutex::new(deadlines),
            tracker,
            preparations: Bucket::new("preparation", pacer),
            removals: Bucket::new("removal", pacer),
            mutations: Cap::new("mutation", pacer.concurrent),
            fences: Cap::new("fence", pacer.concurrent),
            stopping: CancellationToken::new(),
        }))
    }

    /// Waits for a preparation's token, first come, first served. Cancel safe: a dropped wait takes nothing and keeps nobody.
    pub async fn preparation(&self) -> PreparationPermit {
        self.0.preparations.take(&self.0.stopping).await;
        PreparationPermit(self.0.clone())
    }

    /// From now on nobody waits for a token, those who do included. There is no way back.
    pub fn set_stopping(&self) {
        self.0.stopping.cancel();
    }

    /// A place for a create or a start, which a stop refuses. Cancel safe.
    async fn enter_to_prepare(&self, operation: &'static str, subject: &str) -> Result<Place, EngineError> {
        tokio::select! {
            biased;
            () = self.0.stopping.cancelled() => {
                let (subject, message) = (subject.to_owned(), "nspool is stopping".to_owned());
                Err(EngineError { operation, class: ErrorClass::Refused, subject, message, status: None })
            }
            place = self.0.mutations.enter() => Ok(place),
        }
    }

    /// For a reload. A bucket whose rate or burst changed starts full, and those who wait for it see the new one at once. A smaller concurrency
    /// is reached as calls end.
    pub fn reconfigure(&self, pacer: &config::Pacer) {
        self.0.preparations.reconfigure(pacer);
        self.0.removals.reconfigure(pacer);
        self.0.mutations.resize(pacer.concurrent);
        self.0.fences.resize(pacer.concurrent);
    }

    /// For a reload; holds for calls that begin afterwards.
    pub fn set_deadlines(&self, deadlines: Deadlines) {
        *self.0.deadlines.lock() = deadlines;
    }

    /// A look: no queue, and dropped when the caller is.
    fn read<'a, T>(&self, operation: &'static str, subject: &'a str, call: EngineFuture<'a, T>) -> EngineFuture<'a, T>
    where
        T: Send + 'a,
    {
        let deadline = self.0.deadlines.lock().read;
        Box::pin(limited(operation, subject, deadline, call))
    }

    /// A load, pull or build.
    fn prepare_image<'a>(&self, operation: &'static str, subject: &'a str, call: EngineFuture<'a, ()>) -> EngineFuture<'a, ()> {
        let deadline = self.0.deadlines.lock().prepare;
        Box::pin(limited(operation, subject, deadline, call))
    }
}

impl Engine for Paced {
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        self.read("info", "", self.0.engine.info())
    }

    fn ping(&self) -> EngineFuture<'_, ()> {
        self.read("ping", "", self.0.engine.ping())
    }

    fn image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Option<Image>> {
        self.read("image", reference, self.0.engine.image(reference))
    }

    fn load_image(&self, archive: ImageArchive) -> EngineFuture<'_, ()> {
        self.prepare_image("load", "", self.0.engine.load_image(archive))
    }

    fn save_image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Chunks> {
        let deadline = self.0.deadlines.lock().prepare;
        let first = limited("save", reference, deadline, self.0.engine.save_image(reference));
        Box::pin(async move { Ok(each_in_time(first.await?, deadline)) })
    }

    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<&'a Credentials>,
        told: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()> {
        self.prepare_image("pull", reference, self.0.engine.pull_image(reference, credentials, told))
    }

    fn tag_image<'a>(&'a self, id: &'a ImageId, repository: &'a str, tag: &'a str) -> EngineFuture<'a, ()> {
        self.read("tag", id.as_str(), self.0.engine.tag_image(id, repository, tag))
    }

    fn images<'a>(&'a self, label: &'a str) -> EngineFuture<'a, Vec<Image>> {
        self.read("images", label, self.0.engine.images(label))
    }

    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        // Of an image that was not seen before the engine is asked twice.
        let deadline = self.0.deadlines.lock().prepare;
        Box::pin(limited("image sizes", "", deadline, self.0.engine.image_sizes()))
    }

    fn remove_image<'a>(&'a self, name: &'a str) -> EngineFuture<'a, ImageRemoval> {
        // As long as a disk takes for gigabytes.
        let deadline = self.0.deadlines.lock().prepare;
        Box::pin(limited("remove image", name, deadline, self.0.engine.remove_image(name)))
    }

    fn build_image<'a>(&'a self, spec: &'a BuildSpec, context: File, told: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        self.prepare_image("build", &spec.tag, self.0.engine.build_image(spec, context, told))
    }

    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        Box::pin(async move {
            let place = self.enter_to_prepare("create", &spec.name).await?;
            let spec = spec.clone();
            let name = spec.name.clone();
            mutate(&self.0, place, "create", name, move |engine| Box::pin(async move { engine.create(&spec).await })).await
        })
    }

    fn start<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        Box::pin(async move {
            let place = self.enter_to_prepare("start", id.as_str()).await?;
            let id = id.clone();
            mutate(&self.0, place, "start", id.to_string(), move |engine| Box::pin(async move { engine.start(&id).await })).await
        })
    }

    fn inspect<'a>(&'a self, id_or_name: &'a str) -> EngineFuture<'a, Container> {
        self.read("inspect", id_or_name, self.0.engine.inspect(id_or_name))
    }

    fn rename<'a>(&'a self, id: &'a ContainerId, name: &'a str) -> EngineFuture<'a, ()> {
        Box::pin(async move {
            let place = self.0.fences.enter().await;
            let (id, name) = (id.clone(), name.to_owned());
            mutate(&self.0, place, "rename", id.to_string(), move |engine| Box::pin(async move { engine.rename(&id, &name).await })).await
        })
    }

    fn remove<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        Box::pin(async move {
            self.0.removals.take(&self.0.stopping).await;
            remove(&self.0, id).await
        })
    }

    fn wait<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        Box::pin(counted("wait", self.0.engine.wait(id)))
    }

    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        self.read("list", "", self.0.engine.list())
    }

    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        self.read("networks", "", self.0.engine.networks())
    }

    fn create_network<'a>(&'a self, spec: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        Box::pin(async move {
            self.0.preparations.take(&self.0.stopping).await;
            let place = self.enter_to_prepare("create network", &spec.name).await?;
            let spec = spec.clone();
            let name = spec.name.clone();
            mutate(&self.0, place, "create network", name, move |engine| Box::pin(async move { engine.create_network(&spec).await })).await
        })
    }

    fn network_users<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, Vec<String>> {
        self.read("network users", &network.made_with.name, self.0.engine.network_users(network))
    }

    fn remove_network<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, ()> {
        Box::pin(async move {
            self.0.removals.take(&self.0.stopping).await;
            let place = self.0.mutations.enter().await;
            let (network, name) = (network.clone(), network.made_with.name.clone());
            let remove =
                move |engine: Arc<dyn Engine>| -> BoxFuture<'static, _> { Box::pin(async move { engine.remove_network(&network).await }) };
            mutate(&self.0, place, "remove network", name, remove).await
        })
    }

    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        Box::pin(counted("events", self.0.engine.events()))
    }
}

async fn remove(inner: &Inner, id: &ContainerId) -> Result<(), EngineError> {
    let place = inner.mutations.enter().await;
    let id = id.clone();
    mutate(inner, place, "remove", id.to_string(), move |engine| Box::pin(async move { engine.remove(&id).await })).await
}

/// Carries a mutation out as a task that the caller cannot cancel. Nothing is awaited before the task exists.
async fn mutate<T, C>(inner: &Inner, place: Place, operation: &'static str, subject: String, call: C) -> Result<T, EngineError>
where
    T: Send + 'static,
    C: FnOnce(Arc<dyn Engine>) -> BoxFuture<'static, Result<T, EngineError>>,
{
    let deadline = inner.deadlines.lock().write;
    let call = call(inner.engine.clone());
    let task = inner.tracker.spawn({
        let subject = subject.clone();
        async move {
            let result = limited(operation, &subject, deadline, call).await;
            drop(place);
            result
        }
    });
    task.await.unwrap_or_else(|ended| {
        let message = format!("the call's task ended early: {ended}");
        Err(EngineError { operation, class: ErrorClass::Unknown, subject, message, status: None })
    })
}

/// With a deadline, counted and timed.
async fn limited<T>(operation: &'static str, subject: &str, deadline: Duration, call: EngineFuture<'_, T>) -> Result<T, EngineError> {
    let begin = Instant::now();
    let answer = tokio::time::timeout(deadline, call).await;
    let result = answer.unwrap_or_else(|_| Err(EngineError::deadline(operation, subject, deadline)));
    metrics::histogram!(names::ENGINE_CALL_SECONDS, "operation" => operation).record(begin.elapsed());
    count(operation, &result);
    result
}

async fn counted<T>(operation: &'static str, call: EngineFuture<'_, T>) -> Result<T, EngineError> {
    let result = call.await;
    count(operation, &result);
    result
}

fn count<T>(operation: &'static str, result: &Result<T, EngineError>) {
    let outcome = result.as_ref().map_or_else(|error| outcome_name(error.class), |_| "ok");
    metrics::counter!(names::ENGINE_CALLS, "operation" => operation, "outcome" => outcome).increment(1);
}

fn outcome_name(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::NotFound => "not_found",
        ErrorClass::ImageMissing => "image_missing",
        ErrorClass::NetworkMissing => "network_missing",
        ErrorClass::NameTaken => "name_taken",
        ErrorClass::HasDependents => "has_dependents",
        ErrorClass::NoAddresses => "no_addresses",
        ErrorClass::DiskFull => "disk_full",
        ErrorClass::RegistryDenied => "registry_denied",
        ErrorClass::RegistryUnknown => "registry_unknown",
        ErrorClass::RegistryBusy { .. } => "registry_busy",
        ErrorClass::Away => "away",
        ErrorClass::Unknown => "unknown",
        ErrorClass::NotAllowed => "not_allowed",
        ErrorClass::Refused => "refused",
    }
}

/// tokio's clock for governor: the time since the limiter was made.
#[derive(Clone, Copy, Debug)]
struct TokioClock {
    origin: Instant,
}

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>;

/// A token bucket with a queue: first come, first served.
struct Bucket {
    name: &'static str,
    /// One place: who holds it is first in the queue. tokio's semaphore is fair, and a dropped wait leaves the queue.
    turn: Semaphore,
    /// `None`: no limit.
    limit: level::Sender<Option<Limit>>,
}

#[derive(Clone)]
struct Limit {
    rate: NonZeroU32,
    burst: NonZeroU32,
    limiter: Arc<Limiter>,
}

impl Limit {
    fn new(pacer: &config::Pacer) -> Option<Self> {
        let rate = NonZeroU32::new(pacer.rate?)?;
        let burst = NonZeroU32::new(pacer.burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(rate).allow_burst(burst);
        let limiter = Arc::new(RateLimiter::direct_with_clock(quota, TokioClock { origin: Instant::now() }));
        Some(Self { rate, burst, limiter })
    }

    /// Takes a token, or says when to ask again.
    fn check(&self) -> Result<(), Duration> {
        let now = self.limiter.clock().now();
        self.limiter.check().map_err(|not_yet| not_yet.earliest_possible().duration_since(now).into())
    }
}

impl Bucket {
    fn new(name: &'static str, pacer: &config::Pacer) -> Self {
        Self { name, turn: Semaphore::new(1), limit: level::Sender::new(Limit::new(pacer)) }
    }

    fn reconfigure(&self, pacer: &config::Pacer) {
        let new = Limit::new(pacer);
        self.limit.send_if_modified(|old| {
            // The same limit keeps its level: a reload is no way around it.
            let differs = old.as_ref().map(|limit| (limit.rate, limit.burst)) != new.as_ref().map(|limit| (limit.rate, limit.burst));
            if differs {
                *old = new;
            }
            differs
        });
    }

    async fn take(&self, stopping: &CancellationToken) {
        let begin = Instant::now();
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            () = self.take_in_turn() => {}
        }
        metrics::histogram!(names::PACER_WAIT_SECONDS, "queue" => self.name).record(begin.elapsed());
    }

    async fn take_in_turn(&self) {
        // The semaphore is never closed, and were it, nobody would be kept.
        let _turn = self.turn.acquire().await;
        let mut changes = self.limit.subscribe();
        loop {
            let limit = changes.borrow_and_update().clone();
            let Some(Err(wait)) = limit.map(|limit| limit.check()) else { return };
            tokio::select! {
                biased;
                // The sender lives in self, so an error cannot come; it would only make us look again.
                _ = changes.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
