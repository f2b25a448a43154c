//! With a paused clock and an engine whose images and failures are scripted.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt as _;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::*;
use crate::engine::{
    BuddySpec, BuildSpec, Chunks, Container, ContainerId, ContainerSummary, Credentials, EngineEvent, EngineFuture, EngineInfo, Image,
    ImageArchive, ImageRemoval, Labels, Network, NetworkSpec, PullStep, SizedImage, WaitOutcome,
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
            Ok(seen.map(|id| Image { id, tags: Vec::new(), digests: Vec::new(), labels: Labels::new() }))
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
    fn images<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Vec<Image>> {
        unreachable!("the gate lists no images")
    }
    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        unreachable!("the gate measures no images")
    }
    fn remove_image<'a>(&'a self, _: &'a str) -> EngineFuture<'a, ImageRemoval> {
        unreachable!("the gate removes no images")
    }
    fn build_image<'a>(&'a self, _: &'a BuildSpec, _: File, _: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        unreachable!("the gate builds no images")
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

/// Of the fake world, with a registry that says what it has.
#[tokio::test(start_paused = true)]
async fn what_is_in_the_hosts_store_is_not_pulled() {
    use crate::engine::fake::{FakeWorld, Operation};
    use crate::image::host_store::HostStore;
    use crate::image::store::{Options, Store};

    let dir = tempfile::tempdir().unwrap();
    let (world, archive) = (FakeWorld::new(1), Archive::embedded().unwrap());
    let stored = Store::open(dir.path(), Options::default()).unwrap().import_tar(archive.bytes(), None).unwrap();
    let settings = config::Images { store: dir.path().to_owned(), ..config::Images::default() };
    let source = Source::Reference { reference: archive.reference().into(), credentials: CredentialSource::new(Vec::new(), None) };
    let gate = Arc::new(Gate::new(world.engine(), source, BACKOFF, PREPARE_TIMEOUT).stocked(HostStore::new(&settings)));
    let mut tasks = JoinSet::new();
    let running = gate.clone();
    tasks.spawn(async move { running.run(CancellationToken::new()).await });
    assert_eq!(gate.ready().await.as_str(), stored[0].id.as_str());
    assert_eq!((world.count(Operation::PullImage), world.count(Operation::LoadImage)), (0, 1));
}

mod kept_fresh {
    use super::*;
    use crate::config::Freshness;
    use crate::engine::fake::{FakeWorld, Fault, Operation};
    use crate::image::registry::scripted::{Scripted, away};

    const NAME: &str = "reg:5000/team/idle:1";
    const TTL: Duration = Duration::from_secs(3600);

    struct Host {
        world: Arc<FakeWorld>,
        registry: Arc<Scripted>,
        gate: Arc<Gate>,
        _tasks: JoinSet<()>,
    }

    async fn host(freshness: Freshness) -> Host {
        let world = FakeWorld::new(1);
        world.publish_image(NAME, None);
        let registry = Arc::new(Scripted::default());
        let source = Source::Reference { reference: NAME.into(), credentials: CredentialSource::new(Vec::new(), None) };
        let gate = Gate::new(world.engine(), source, BACKOFF, PREPARE_TIMEOUT);
        let gate = Arc::new(gate.kept_fresh(Policy { freshness, fresh_for: TTL }, registry.clone()));
        let mut tasks = JoinSet::new();
        let running = gate.clone();
        tasks.spawn(async move { running.run(CancellationToken::new()).await });
        gate.ready().await;
        settle().await;
        Host { world, registry, gate, _tasks: tasks }
    }

    impl Host {
        fn placeholder(&self) -> Placeholder {
            let GateState::Ready(placeholder) = self.gate.state() else { panic!("{}", self.gate.state()) };
            placeholder
        }

        async fn until(&self, what: impl FnMut(&GateState) -> bool) {
            let mut changes = self.gate.subscribe();
            tokio::time::timeout(Duration::from_secs(100_000), changes.wait_for(what)).await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_its_time_one_question_settles_it() {
        let host = host(Freshness::Ttl).await;
        let before = host.placeholder();
        assert_eq!((before.digest.as_str(), &before.stale), (before.id.as_str(), &None));
        host.registry.will_say(Ok(before.digest.clone()));
        tokio::time::sleep(TTL - Duration::from_secs(1)).await;
        assert!(host.registry.taken().is_empty());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(host.registry.taken(), [(NAME.to_owned(), None)]);
        tokio::time::sleep(TTL).await;
        assert_eq!(host.registry.taken().len(), 1);
        assert_eq!((host.placeholder(), host.world.count(Operation::PullImage)), (before, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_one_is_pulled_by_its_digest_while_the_old_one_serves() {
        let host = host(Freshness::Ttl).await;
        let before = host.placeholder();
        let next = host.world.publish_anew(NAME);
        host.registry.will_say(Ok(next.to_string()));
        host.world.set_latency(Operation::PullImage, Duration::from_secs(100));
        tokio::time::sleep(TTL + Duration::from_secs(50)).await;
        assert_eq!((host.placeholder(), host.gate.ready().now_or_never()), (before.clone(), Some(before.id)), "it is on its way");
        host.until(|state| state.image() == Some(&next)).await;
        let pulls: Vec<String> =
            host.world.calls().into_iter().filter(|call| call.operation == Operation::PullImage).map(|call| call.subject).collect();
        assert_eq!(pulls, [NAME.to_owned(), format!("reg:5000/team/idle@{next}")]);
        assert_eq!(host.world.engine().image_id(NAME).await.unwrap(), Some(next.clone()), "the engine's tag has moved");
        let now = host.placeholder();
        assert_eq!((&now.id, now.digest.as_str(), now.stale), (&next, next.as_str(), None));
        host.registry.taken();
        tokio::time::sleep(TTL / 2).await;
        assert!(host.registry.taken().is_empty(), "its time begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_takes_nothing_away_and_is_told_since_when() {
        let host = host(Freshness::Ttl).await;
        let before = host.placeholder();
        let mut changes = host.gate.subscribe();
        host.registry.will_say(Err(away()));
        tokio::time::sleep(TTL + Duration::from_secs(1)).await;
        let first = host.placeholder().stale.expect("nobody knows");
        assert!(first.why.contains("no route to host"), "{first:?}");
        assert!(changes.has_changed().unwrap(), "followers hear of it");
        drop(changes.borrow_and_update());
        tokio::time::sleep(Duration::from_secs(1000)).await;
        let asked = host.registry.taken().len();
        assert!((4..12).contains(&asked), "{asked} questions in a quarter of an hour");
        assert_eq!(host.placeholder().stale.unwrap().since, first.since);
        assert_eq!(host.gate.ready().now_or_never(), Some(before.id.clone()));
        host.registry.will_say(Ok(before.digest.clone()));
        host.until(|state| state.stale().is_none()).await;
        assert_eq!(host.placeholder(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_one_that_cannot_be_pulled_leaves_the_old_one() {
        let host = host(Freshness::Ttl).await;
        let before = host.placeholder();
        let next = host.world.publish_anew(NAME);
        host.registry.will_say(Ok(next.to_string()));
        host.world.script(Operation::PullImage, Fault::Error(ErrorClass::DiskFull, "no space left on device".into()));
        host.until(|state| state.stale().is_some()).await;
        assert_eq!(host.placeholder().id, before.id);
        assert!(host.placeholder().stale.unwrap().why.contains("no space left"));
        host.until(|state| state.image() == Some(&next)).await;
        assert_eq!(host.placeholder().stale, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_that_goes_while_a_new_one_is_pulled_is_not_waited_for() {
        let host = host(Freshness::Ttl).await;
        let next = host.world.publish_anew(NAME);
        host.registry.will_say(Ok(next.to_string()));
        host.registry.takes(Duration::from_secs(1000));
        tokio::time::sleep(TTL + Duration::from_secs(1)).await;
        let id = host.placeholder().id;
        host.world.image_removed(NAME);
        let began = Instant::now();
        host.gate.image_gone(id.as_str());
        assert_eq!((host.gate.ready().await, began.elapsed()), (next, Duration::ZERO), "the tag stands for that now");
    }

    #[tokio::test(start_paused = true)]
    async fn always_has_a_pace_and_never_is_never() {
        let always = host(Freshness::Always).await;
        always.registry.will_say(Ok(always.placeholder().digest));
        tokio::time::sleep(Duration::from_secs(601)).await;
        assert_eq!(always.registry.taken().len(), 10);
        let never = host(Freshness::Never).await;
        tokio::time::sleep(100 * TTL).await;
        assert!(never.registry.taken().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_came_from_a_registry_is_never_asked_for() {
        let world = FakeWorld::new(1);
        let id = world.put_image("local/built:1");
        let registry = Arc::new(Scripted::default());
        let source = Source::Reference { reference: "local/built:1".into(), credentials: CredentialSource::new(Vec::new(), None) };
        let gate = Gate::new(world.engine(), source, BACKOFF, PREPARE_TIMEOUT);
        let gate = gate.kept_fresh(Policy { freshness: Freshness::Always, fresh_for: TTL }, registry.clone());
        let stop = CancellationToken::new();
        let look = async {
            gate.ready().await;
            tokio::time::sleep(TTL).await;
            stop.cancel();
        };
        tokio::join!(gate.run(stop.clone()), look);
        let GateState::Ready(now) = gate.state() else { panic!("{}", gate.state()) };
        assert_eq!((now.id, now.digest.as_str(), now.stale), (id, "", None));
        assert!(registry.taken().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_name_is_given_back_without_a_pull() {
        let host = host(Freshness::Never).await;
        let before = host.placeholder();
        host.world.image_untagged(NAME);
        host.gate.image_gone(before.id.as_str());
        assert!(host.gate.ready().now_or_never().is_none());
        assert_eq!(host.gate.ready().await, before.id);
        assert_eq!(host.world.engine().image_id(NAME).await.unwrap(), Some(before.id));
        assert_eq!((host.world.count(Operation::PullImage), host.world.count(Operation::TagImage)), (1, 1));
    }

    /// Docker forgets by which digest it came, with the last tag of its repository.
    #[tokio::test(start_paused = true)]
    async fn one_that_had_lost_its_name_is_still_asked_for() {
        let host = host(Freshness::Ttl).await;
        let digest = format!("reg:5000/team/idle@{}", host.placeholder().digest);
        let forgotten = Image { digests: Vec::new(), ..host.world.engine().image(NAME).await.unwrap().unwrap() };
        host.gate.open(forgotten);
        assert_eq!(format!("reg:5000/team/idle@{}", host.placeholder().digest), digest);
        let next = host.world.publish_anew(NAME);
        host.registry.will_say(Ok(next.to_string()));
        host.until(|state| state.image() == Some(&next)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_cannot_be_given_back_is_pulled_again() {
        let host = host(Freshness::Never).await;
        let before = host.placeholder();
        host.world.script(Operation::TagImage, Fault::Error(ErrorClass::NotFound, "No such image".into()));
        host.world.image_untagged(NAME);
        host.gate.image_gone(before.id.as_str());
        assert_ne!(host.gate.ready().await, before.id);
        assert_eq!(host.world.count(Operation::PullImage), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_embedded_one_gets_its_name_back_without_a_load() {
        let world = FakeWorld::new(1);
        let gate = Gate::new(world.engine(), Source::Embedded(Archive::embedded().unwrap()), BACKOFF, PREPARE_TIMEOUT);
        let stop = CancellationToken::new();
        let look = async {
            let id = gate.ready().await;
            world.image_untagged(gate.reference());
            gate.image_gone(id.as_str());
            assert_eq!(gate.ready().await, id);
            assert_eq!(world.engine().image_id(gate.reference()).await.unwrap(), Some(id));
            assert_eq!(world.count(Operation::LoadImage), 1);
            stop.cancel();
        };
        tokio::join!(gate.run(stop.clone()), look);
    }
}
