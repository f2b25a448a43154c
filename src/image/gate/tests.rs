//! With a paused clock and an engine whose images and failures are scripted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::*;
use crate::engine::{
    BuddySpec, Chunks, Container, ContainerId, ContainerSummary, Credentials, EngineEvent, EngineFuture, EngineInfo, Image, ImageArchive,
    Network, NetworkSpec, PullStep, WaitOutcome,
};

const BACKOFF: config::Backoff =
    config::Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(8), healthy_after: Duration::from_secs(10) };
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);

/// Has one image or none. A load or pull takes a second and then makes it, unless a failure is scripted.
#[derive(Default)]
struct Images {
    present: Mutex<Option<ImageId>>,
    /// For the loads and pulls to come.
    failures: Mutex<VecDeque<EngineError>>,
    /// For looks, for as long as it is there.
    away: Mutex<Option<EngineError>>,
    never: Mutex<bool>,
    brings_nothing: Mutex<bool>,
    /// Once.
    goes_once_seen: Mutex<bool>,
    loads: AtomicU32,
    at_once: AtomicU32,
    most_at_once: AtomicU32,
    /// What the last pull came with.
    asked: Mutex<Option<(String, Option<Credentials>)>>,
    made: Mutex<Option<ImageId>>,
}

impl Images {
    async fn get(&self) -> Result<(), EngineError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let at_once = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_at_once.fetch_max(at_once, Ordering::Relaxed);
        tokio::time::sleep(if *self.never.lock() { Duration::from_secs(1_000_000) } else { Duration::from_secs(1) }).await;
        self.at_once.fetch_sub(1, Ordering::Relaxed);
        if let Some(error) = self.failures.lock().pop_front() {
            return Err(error);
        }
        if *self.brings_nothing.lock() {
            return Ok(());
        }
        *self.present.lock() = Some(self.made.lock().clone().unwrap_or_else(|| "sha256:aa".into()));
        Ok(())
    }
}

impl Engine for Images {
    fn image<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Option<Image>> {
        Box::pin(async move {
            if let Some(away) = self.away.lock().clone() {
                return Err(away);
            }
            let mut present = self.present.lock();
            let seen = present.clone();
            if seen.is_some() && std::mem::take(&mut *self.goes_once_seen.lock()) {
                *present = None;
            }
            Ok(seen.map(|id| Image { id, tags: Vec::new(), digests: Vec::new() }))
        })
    }
    fn load_image(&self, _: ImageArchive) -> EngineFuture<'_, ()> {
        Box::pin(self.get())
    }
    fn save_image<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Chunks> {
        unreachable!("the gate saves no images")
    }
    fn tag_image<'a>(&'a self, _: &'a ImageId, _: &'a str, _: &'a str) -> EngineFuture<'a, ()> {
        unreachable!("the gate names no images")
    }
    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<&'a Credentials>,
        _: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()> {
        *self.asked.lock() = Some((reference.to_owned(), credentials.cloned()));
        Box::pin(self.get())
    }
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        unreachable!("the gate asks for images only")
    }
    fn ping(&self) -> EngineFuture<'_, ()> {
        unreachable!("the gate asks for images only")
    }
    fn create<'a>(&'a self, _: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        unreachable!("the gate asks for images only")
    }
    fn start<'a>(&'a self, _: &'a ContainerId) -> EngineFuture<'a, ()> {
        unreachable!("the gate asks for images only")
    }
    fn inspect<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Container> {
        unreachable!("the gate asks for images only")
    }
    fn rename<'a>(&'a self, _: &'a ContainerId, _: &'a str) -> EngineFuture<'a, ()> {
        unreachable!("the gate asks for images only")
    }
    fn remove<'a>(&'a self, _: &'a ContainerId) -> EngineFuture<'a, ()> {
        unreachable!("the gate asks for images only")
    }
    fn wait<'a>(&'a self, _: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        unreachable!("the gate asks for images only")
    }
    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        unreachable!("the gate asks for images only")
    }
    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        unreachable!("the gate asks for images only")
    }
    fn create_network<'a>(&'a self, _: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        unreachable!("the gate asks for images only")
    }
    fn network_users<'a>(&'a self, _: &'a Network) -> EngineFuture<'a, Vec<String>> {
        unreachable!("the gate asks for images only")
    }
    fn remove_network<'a>(&'a self, _: &'a Network) -> EngineFuture<'a, ()> {
        unreachable!("the gate asks for images only")
    }
    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        unreachable!("the gate asks for images only")
    }
}

fn refusal(class: ErrorClass, message: &str) -> EngineError {
    EngineError { operation: "pull", class, subject: "image".into(), message: message.into(), status: Some(500) }
}

struct Bench {
    engine: Arc<Images>,
    gate: Arc<Gate>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

fn bench_of(source: Source) -> Bench {
    let engine = Arc::new(Images::default());
    let gate = Arc::new(Gate::new(engine.clone(), source, BACKOFF, PREPARE_TIMEOUT));
    Bench { engine, gate, stop: CancellationToken::new(), tasks: JoinSet::new() }
}

fn bench() -> Bench {
    bench_of(Source::Embedded(Archive::embedded().unwrap()))
}

impl Bench {
    fn run(&mut self) {
        let (gate, stop) = (self.gate.clone(), self.stop.clone());
        self.tasks.spawn(async move { gate.run(stop).await });
    }

    fn loads(&self) -> u32 {
        self.engine.loads.load(Ordering::Relaxed)
    }

    async fn until(&self, what: impl FnMut(&GateState) -> bool) -> GateState {
        let mut changes = self.gate.subscribe();
        tokio::time::timeout(Duration::from_secs(3600), changes.wait_for(what)).await.unwrap().unwrap().clone()
    }
}

async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

fn is_failed(state: &GateState) -> bool {
    matches!(state, GateState::Failed(_))
}

#[tokio::test(start_paused = true)]
async fn one_preparation_serves_all_who_wait() {
    let mut bench = bench();
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let gate = bench.gate.clone();
        waits.spawn(async move { gate.ready().await });
    }
    settle().await;
    assert_eq!((bench.gate.state(), bench.loads()), (GateState::Unknown, 0));
    bench.run();
    assert!(waits.join_all().await.iter().all(|image| image.as_str() == "sha256:aa"));
    assert_eq!((bench.loads(), bench.engine.most_at_once.load(Ordering::Relaxed)), (1, 1));
    // Who comes later has it at once.
    assert_eq!(bench.gate.ready().now_or_never(), Some("sha256:aa".into()));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_there_is_neither_loaded_nor_pulled() {
    let mut bench = bench();
    *bench.engine.present.lock() = Some("sha256:old".into());
    bench.run();
    assert_eq!(bench.gate.ready().await.as_str(), "sha256:old");
    assert_eq!(bench.loads(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_ends_only_itself() {
    let mut bench = bench();
    bench.run();
    let mut dropped = Box::pin(bench.gate.ready());
    let mut kept = Box::pin(bench.gate.ready());
    assert!(dropped.as_mut().now_or_never().is_none() && kept.as_mut().now_or_never().is_none());
    settle().await;
    drop(dropped);
    assert_eq!(kept.await.as_str(), "sha256:aa");
    assert_eq!(bench.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn failures_keep_the_words_and_are_retried_with_a_growing_wait() {
    let mut bench = bench();
    for number in 1..=6 {
        bench.engine.failures.lock().push_back(refusal(ErrorClass::Refused, &format!("words {number}")));
    }
    let mut begin = Instant::now();
    let first = begin + Duration::from_secs(1);
    bench.run();
    for number in 1..=6_u32 {
        let state = bench.until(|state| state.failure().is_some_and(|failure| failure.count == number) && is_failed(state)).await;
        let failure = state.failure().unwrap();
        assert_eq!(&*failure.why, format!("pull image: words {number}"));
        assert_eq!((failure.class, failure.since), (ErrorClass::Refused, first));
        let waited = begin.elapsed() - Duration::from_secs(1);
        if number > 1 {
            let full = Duration::from_secs(1 << (number - 2)).min(BACKOFF.longest);
            // The paused clock goes in whole milliseconds.
            assert!(waited >= full / 2 && waited <= full + Duration::from_millis(1), "failure {number} after {waited:?}, of {full:?}");
        }
        begin = Instant::now();
    }
    // While it tries again the words stay.
    let state = bench.until(|state| matches!(state, GateState::Preparing { .. })).await;
    assert_eq!(&*state.failure().unwrap().why, "pull image: words 6");
    bench.gate.ready().await;
    assert_eq!(bench.gate.state().failure(), None);
    assert_eq!(bench.loads(), 7);

    // Open in between, the failures are forgotten: the next row begins with the first wait.
    *bench.engine.present.lock() = None;
    bench.engine.failures.lock().push_back(refusal(ErrorClass::Refused, "again"));
    bench.gate.image_gone("sha256:aa");
    let state = bench.until(is_failed).await;
    assert_eq!(state.failure().unwrap().count, 1);
    let begin = Instant::now();
    bench.gate.ready().await;
    assert!(begin.elapsed() <= Duration::from_millis(2001), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_nudge_ends_the_wait_for_the_next_attempt() {
    let mut bench = bench();
    *bench.engine.away.lock() = Some(refusal(ErrorClass::Away, "no socket"));
    bench.run();
    bench.until(|state| state.failure().is_some_and(|failure| failure.count == 6)).await;
    *bench.engine.away.lock() = None;
    let begin = Instant::now();
    bench.gate.nudge();
    bench.gate.ready().await;
    assert_eq!(begin.elapsed(), Duration::from_secs(1), "the load alone");
}

#[tokio::test(start_paused = true)]
async fn the_gate_closes_when_its_image_is_gone_and_opens_again() {
    let mut bench = bench();
    bench.run();
    bench.gate.ready().await;

    bench.gate.image_gone("sha256:other");
    assert!(bench.gate.state().image().is_some());
    settle().await;
    assert_eq!(bench.loads(), 1);

    *bench.engine.present.lock() = None;
    *bench.engine.made.lock() = Some("sha256:bb".into());
    // podman's events have no `sha256:`.
    bench.gate.image_gone("aa");
    assert_eq!(bench.gate.state(), GateState::Preparing { after: None });
    assert!(bench.gate.ready().now_or_never().is_none());
    assert_eq!(bench.gate.ready().await.as_str(), "sha256:bb");
    assert_eq!(bench.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_false_alarm_costs_a_look_only() {
    let mut bench = bench();
    bench.run();
    let image = bench.gate.ready().await;
    bench.gate.image_gone(image.as_str());
    assert!(bench.gate.ready().now_or_never().is_none());
    assert_eq!(bench.gate.ready().await, image);
    assert_eq!(bench.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_goes_right_after_it_was_seen_is_noticed() {
    let mut bench = bench();
    *bench.engine.goes_once_seen.lock() = true;
    bench.run();
    settle().await;
    // The word comes before the gate knows that the id is its own.
    bench.gate.image_gone("sha256:aa");
    bench.gate.ready().await;
    settle().await;
    bench.gate.ready().await;
    assert_eq!(bench.loads(), 2);
    assert!(bench.engine.present.lock().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_nudge_of_an_open_gate_looks_and_leaves_it_open_meanwhile() {
    let mut bench = bench();
    bench.run();
    bench.gate.ready().await;
    let mut changes = bench.gate.subscribe();
    drop(changes.borrow_and_update());
    bench.gate.nudge();
    settle().await;
    assert!(!changes.has_changed().unwrap());

    // It went while nobody heard.
    *bench.engine.present.lock() = None;
    bench.gate.nudge();
    bench.until(|state| matches!(state, GateState::Preparing { .. })).await;
    bench.gate.ready().await;
    assert_eq!(bench.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_preparation_that_never_ends_has_a_deadline() {
    let mut bench = bench();
    *bench.engine.never.lock() = true;
    let begin = Instant::now();
    bench.run();
    let state = bench.until(is_failed).await;
    assert_eq!(begin.elapsed(), PREPARE_TIMEOUT);
    let failure = state.failure().unwrap();
    assert_eq!(failure.class, ErrorClass::Unknown);
    assert!(failure.why.contains("300s") && failure.why.contains(bench.gate.reference()), "{}", failure.why);
    *bench.engine.never.lock() = false;
    bench.gate.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_the_run_in_every_state() {
    for seconds in [0, 1, 2, 100] {
        let mut bench = bench();
        *bench.engine.never.lock() = seconds == 0;
        if seconds == 2 {
            bench.engine.failures.lock().extend((0..20).map(|_| refusal(ErrorClass::Refused, "no")));
        }
        bench.run();
        settle().await;
        tokio::time::advance(Duration::from_secs(seconds)).await;
        settle().await;
        bench.stop.cancel();
        let begin = Instant::now();
        bench.tasks.join_next().await.unwrap().unwrap();
        assert_eq!(begin.elapsed(), Duration::ZERO, "after {seconds} s");
    }
}

#[tokio::test]
async fn a_reference_is_pulled_with_the_credentials_for_its_registry() {
    let entry = config::Registry { host: "127.0.0.1:5000".into(), username: "user".into(), password: "word".into() };
    let credentials = CredentialSource::new(vec![entry], None);
    let mut bench = bench_of(Source::Reference { reference: "127.0.0.1:5000/a:1".into(), credentials });
    bench.run();
    bench.gate.ready().await;
    let expected = Credentials { username: "user".into(), secret: "word".into() };
    assert_eq!(*bench.engine.asked.lock(), Some(("127.0.0.1:5000/a:1".into(), Some(expected))));
}

#[tokio::test]
async fn broken_credentials_do_not_stop_a_public_pull_and_are_told_when_it_is_denied() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, "{").unwrap();
    let source = Source::Reference { reference: "quay.io/a".into(), credentials: CredentialSource::new(Vec::new(), Some(path)) };
    let mut bench = bench_of(source);
    bench.engine.failures.lock().push_back(refusal(ErrorClass::RegistryDenied, "unauthorized: who are you?"));
    bench.run();
    let state = bench.until(is_failed).await;
    let failure = state.failure().unwrap();
    assert_eq!(failure.class, ErrorClass::RegistryDenied);
    assert!(failure.why.contains("unauthorized: who are you?") && failure.why.contains("config.json"), "{}", failure.why);
    bench.gate.ready().await;
    assert_eq!(*bench.engine.asked.lock(), Some(("quay.io/a".into(), None)));
}

#[tokio::test(start_paused = true)]
async fn an_image_that_a_load_did_not_bring_is_a_failure() {
    let mut bench = bench();
    *bench.engine.brings_nothing.lock() = true;
    bench.run();
    let state = bench.until(is_failed).await;
    assert_eq!(state.failure().unwrap().class, ErrorClass::ImageMissing);
    *bench.engine.brings_nothing.lock() = false;
    bench.gate.ready().await;
}
