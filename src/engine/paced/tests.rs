//! On tokio's paused clock: times are exact, down to its millisecond.

use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{advance, timeout};

use super::*;
use crate::engine::{EngineKind, Flavour, NamespaceKind};

const SECOND: Duration = Duration::from_secs(1);
const DEADLINES: Deadlines = Deadlines { read: Duration::from_secs(10), write: Duration::from_secs(60), prepare: Duration::from_secs(300) };

/// Takes as long as it is told for each call, and tells when calls begin and end.
struct Slow {
    takes: Duration,
    told: mpsc::Sender<(&'static str, Told)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Begun,
    Done,
    CutOff,
}

/// A call under way; tells when it is dropped before its end.
struct Call<'a>(&'a Slow, &'static str, Told);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.told.try_send((self.1, self.2)).unwrap();
    }
}

impl Slow {
    fn call<T: Send + 'static>(&self, operation: &'static str, answer: T) -> EngineFuture<'_, T> {
        Box::pin(async move {
            self.told.try_send((operation, Told::Begun)).unwrap();
            let mut call = Call(self, operation, Told::CutOff);
            tokio::time::sleep(self.takes).await;
            call.2 = Told::Done;
            Ok(answer)
        })
    }
}

impl Engine for Slow {
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        let info = EngineInfo { kind: EngineKind::Fake, id: "slow".into(), version: "1".into(), endpoint: String::new() };
        self.call("info", info)
    }
    fn ping(&self) -> EngineFuture<'_, ()> {
        self.call("ping", ())
    }
    fn image<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Option<Image>> {
        self.call("image", None)
    }
    fn load_image(&self, _: ImageArchive) -> EngineFuture<'_, ()> {
        self.call("load", ())
    }
    fn save_image<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Chunks> {
        self.call("save", ImageArchive::from(Vec::new()).into_chunks())
    }
    fn pull_image<'a>(&'a self, _: &'a str, _: Option<&'a Credentials>, _: &'a (dyn Fn(PullStep) + Send + Sync)) -> EngineFuture<'a, ()> {
        self.call("pull", ())
    }
    fn tag_image<'a>(&'a self, _: &'a ImageId, _: &'a str, _: &'a str) -> EngineFuture<'a, ()> {
        self.call("tag", ())
    }
    fn images<'a>(&'a self, _: &'a str) -> EngineFuture<'a, Vec<Image>> {
        self.call("images", Vec::new())
    }
    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        self.call("image sizes", Vec::new())
    }
    fn remove_image<'a>(&'a self, _: &'a str) -> EngineFuture<'a, ImageRemoval> {
        self.call("remove image", ImageRemoval::Removed)
    }
    fn build_image<'a>(&'a self, _: &'a BuildSpec, _: File, _: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        self.call("build", ())
    }
    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        self.call("create", spec.name.as_str().into())
    }
    fn start<'a>(&'a self, _: &'a ContainerId) -> EngineFuture<'a, ()> {
        self.call("start", ())
    }
    fn inspect<'a>(&'a self, id: &'a str) -> EngineFuture<'a, Container> {
        let error = EngineError {
            operation: "inspect",
            class: ErrorClass::NotFound,
            subject: id.into(),
            message: "none".into(),
            status: Some(404),
        };
        Box::pin(async move { self.call("inspect", ()).await.and(Err(error)) })
    }
    fn rename<'a>(&'a self, _: &'a ContainerId, _: &'a str) -> EngineFuture<'a, ()> {
        self.call("rename", ())
    }
    fn remove<'a>(&'a self, _: &'a ContainerId) -> EngineFuture<'a, ()> {
        self.call("remove", ())
    }
    fn wait<'a>(&'a self, _: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        self.call("wait", WaitOutcome::Exited(0))
    }
    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        self.call("list", Vec::new())
    }
    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        self.call("networks", Vec::new())
    }
    fn create_network<'a>(&'a self, _: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        self.call("create network", ())
    }
    fn network_users<'a>(&'a self, _: &'a Network) -> EngineFuture<'a, Vec<String>> {
        self.call("network users", Vec::new())
    }
    fn remove_network<'a>(&'a self, _: &'a Network) -> EngineFuture<'a, ()> {
        self.call("remove network", ())
    }
    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        Box::pin(async move { Ok(futures::stream::empty().boxed()) })
    }
}

struct Bench {
    paced: Paced,
    tracker: TaskTracker,
    told: mpsc::Receiver<(&'static str, Told)>,
}

impl Bench {
    fn told(&mut self) -> Vec<(&'static str, Told)> {
        std::iter::from_fn(|| self.told.try_recv().ok()).collect()
    }
}

fn bench(rate: Option<u32>, burst: u32, concurrent: u32, takes: Duration) -> Bench {
    let (sender, told) = mpsc::channel(4096);
    let tracker = TaskTracker::new();
    let engine = Arc::new(Slow { takes, told: sender });
    Bench { paced: Paced::new(engine, &pacer(rate, burst, concurrent), DEADLINES, tracker.clone()), tracker, told }
}

fn pacer(rate: Option<u32>, burst: u32, concurrent: u32) -> config::Pacer {
    config::Pacer { rate, burst, concurrent }
}

fn id() -> ContainerId {
    "0123".into()
}

fn spec(name: &str) -> BuddySpec {
    BuddySpec {
        name: name.into(),
        image: "sha256:0".into(),
        command: Vec::new(),
        labels: super::super::Labels::new(),
        network: "bridge".into(),
        namespaces: vec![NamespaceKind::Net],
        user: "65533:65533".into(),
        memory_bytes: 1,
        pids: 1,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}

/// Lets every task go as far as it can at this moment of the paused clock.
fn network_spec() -> NetworkSpec {
    NetworkSpec {
        name: "fn".into(),
        bridge: "ns-fn".into(),
        ranges: Vec::new(),
        mtu: 1500,
        masquerade: true,
        labels: super::super::Labels::new(),
    }
}

fn network() -> Network {
    Network { id: "1".into(), driver: "bridge".into(), internal: false, made_with: network_spec() }
}

async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// When each of `count` waits came through, in milliseconds from now.
async fn milliseconds_of(count: usize, paced: &Paced, removals: bool) -> Vec<u128> {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let paced = paced.clone();
        tasks.spawn(async move {
            if removals {
                paced.remove(&id()).await.unwrap();
            } else {
                let _permit = paced.preparation().await;
            }
            begin.elapsed().as_millis()
        });
    }
    let mut times = tasks.join_all().await;
    times.sort_unstable();
    times
}

#[tokio::test(start_paused = true)]
async fn the_burst_comes_at_once_and_the_rest_at_the_rate() {
    let bench = bench(Some(10), 20, 4, Duration::ZERO);
    let times = milliseconds_of(50, &bench.paced, false).await;
    let expected: Vec<u128> = (0..50).map(|n: u128| n.saturating_sub(19) * 100).collect();
    assert_eq!(times, expected);

    // Ten seconds without anybody fill the bucket to its burst, and no further.
    advance(10 * SECOND).await;
    let times = milliseconds_of(22, &bench.paced, false).await;
    assert_eq!(times[..20], [0; 20]);
    assert_eq!(times[20..], [100, 200]);
}

#[tokio::test(start_paused = true)]
async fn removals_have_a_bucket_of_their_own() {
    let bench = bench(Some(10), 2, 100, Duration::ZERO);
    assert_eq!(milliseconds_of(3, &bench.paced, false).await, [0, 0, 100]);
    assert_eq!(milliseconds_of(4, &bench.paced, true).await, [0, 0, 100, 200]);
}

#[tokio::test(start_paused = true)]
async fn no_rate_is_no_limit() {
    for rate in [None, Some(0)] {
        let bench = bench(rate, 1, 1, Duration::ZERO);
        assert_eq!(milliseconds_of(1000, &bench.paced, false).await, [0; 1000]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_undo_takes_no_removal_token() {
    let bench = bench(Some(1), 1, 4, Duration::ZERO);
    let begin = Instant::now();
    let permit = bench.paced.preparation().await;
    permit.undo(&id()).await.unwrap();
    bench.paced.remove(&id()).await.unwrap();
    assert_eq!(begin.elapsed(), Duration::ZERO);
    bench.paced.remove(&id()).await.unwrap();
    assert_eq!(begin.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn tokens_go_first_come_first_served_and_a_dropped_wait_takes_none() {
    let bench = bench(Some(1), 1, 4, Duration::ZERO);
    let _first = bench.paced.preparation().await;
    let mut waits: Vec<_> = (0..5).map(|_| Box::pin(bench.paced.preparation())).collect();
    for wait in &mut waits {
        assert!(wait.as_mut().now_or_never().is_none());
    }
    // The head, which sleeps, and one in the middle give up.
    drop(waits.remove(0));
    drop(waits.remove(1));
    let begin = Instant::now();
    for (place, mut wait) in waits.into_iter().enumerate() {
        let _permit = (&mut wait).await;
        assert_eq!(begin.elapsed(), SECOND * (u32::try_from(place).unwrap() + 1), "place {place}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_everybody_through_and_keeps_the_concurrency() {
    let mut bench = bench(Some(1), 1, 2, SECOND);
    let begin = Instant::now();
    let _first = bench.paced.preparation().await;
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let paced = bench.paced.clone();
        tasks.spawn(async move { paced.remove(&id()).await });
        let paced = bench.paced.clone();
        tasks.spawn(async move {
            let _permit = paced.preparation().await;
            Ok(())
        });
    }
    settle().await;
    bench.paced.set_stopping();
    settle().await;
    assert_eq!(bench.told().iter().filter(|(_, told)| *told == Told::Begun).count(), 2);
    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    // Six removals of a second, two at a time.
    assert_eq!(begin.elapsed(), 3 * SECOND);
    let _at_once = bench.paced.preparation().await;
    assert_eq!(begin.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_stop_refuses_creates_and_starts_that_still_queue() {
    let mut bench = bench(None, 1, 2, SECOND);
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..10 {
        let paced = bench.paced.clone();
        tasks.spawn(async move { if number % 2 == 0 { paced.create(&spec("buddy")).await.map(drop) } else { paced.start(&id()).await } });
    }
    settle().await;
    bench.paced.set_stopping();
    let results = tasks.join_all().await;
    let refused: Vec<&EngineError> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(refused.len(), 8, "those under way run to their end");
    assert!(refused.iter().all(|error| error.class == ErrorClass::Refused));
    assert_eq!(bench.told().iter().filter(|(_, told)| *told == Told::Begun).count(), 2);
    assert_eq!(begin.elapsed(), SECOND);
    bench.paced.remove(&id()).await.unwrap();
}

/// I6, of networks.
#[tokio::test(start_paused = true)]
async fn networks_are_made_and_removed_at_the_pace_of_all_else() {
    let mut bench = bench(Some(1), 1, 1, SECOND / 10);
    let (paced, network) = (bench.paced.clone(), network());
    let begin = Instant::now();
    let _burst = paced.preparation().await;
    paced.create_network(&network_spec()).await.unwrap();
    assert_eq!(begin.elapsed(), SECOND + SECOND / 10, "a token, then the call");
    paced.remove_network(&network).await.unwrap();
    let begin = Instant::now();
    assert!(timeout(SECOND / 2, paced.remove_network(&network)).await.is_err(), "removals have tokens, too");
    assert_eq!(bench.told().len(), 4, "who leaves the queue begins nothing");
    paced.remove_network(&network).await.unwrap();
    assert!(begin.elapsed() > SECOND * 9 / 10);
    // Once begun it runs to its end.
    tokio::time::sleep(2 * SECOND).await;
    bench.told();
    assert!(timeout(SECOND / 20, paced.remove_network(&network)).await.is_err());
    tokio::time::sleep(SECOND).await;
    assert_eq!(bench.told(), [("remove network", Told::Begun), ("remove network", Told::Done)]);
    paced.set_stopping();
    assert_eq!(paced.create_network(&network_spec()).await.unwrap_err().class, ErrorClass::Refused);
    paced.remove_network(&network).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn mutations_share_a_cap_in_order_and_the_fence_does_not_wait_for_them() {
    let mut bench = bench(None, 1, 2, SECOND);
    let mut tasks = JoinSet::new();
    for number in 0..6 {
        let paced = bench.paced.clone();
        tasks.spawn(async move {
            match number % 3 {
                0 => paced.create(&spec("buddy")).await.map(|_| ()),
                1 => paced.start(&id()).await,
                _ => paced.remove(&id()).await,
            }
        });
        settle().await;
    }
    assert_eq!(bench.told(), [("create", Told::Begun), ("start", Told::Begun)]);

    let begin = Instant::now();
    bench.paced.rename(&id(), "elsewhere").await.unwrap();
    bench.paced.inspect("x").await.unwrap_err();
    bench.paced.list().await.unwrap();
    assert_eq!(begin.elapsed(), 3 * SECOND, "one second each and no queue");

    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    let begun: Vec<_> = bench.told().into_iter().filter(|(_, told)| *told == Told::Begun).map(|(name, _)| name).collect();
    let mutations: Vec<_> = begun.into_iter().filter(|name| ["create", "start", "remove"].contains(name)).collect();
    assert_eq!(mutations, ["remove", "create", "start", "remove"]);
}

#[tokio::test(start_paused = true)]
async fn fences_have_a_cap_of_the_same_size() {
    let bench = bench(None, 1, 2, SECOND);
    let begin = Instant::now();
    let (id, names) = (id(), ["a", "b", "c", "d", "e"]);
    let renames = names.iter().map(|name| bench.paced.rename(&id, name));
    assert!(futures::future::join_all(renames).await.iter().all(Result::is_ok));
    assert_eq!(begin.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_mutation_goes_on_when_its_caller_is_dropped() {
    let mut bench = bench(None, 1, 1, SECOND);
    let caller = timeout(SECOND / 2, bench.paced.create(&spec("buddy"))).await;
    assert!(caller.is_err());
    bench.tracker.close();
    bench.tracker.wait().await;
    assert_eq!(bench.told(), [("create", Told::Begun), ("create", Told::Done)]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_dropped_in_the_queue_begins_nothing() {
    let mut bench = bench(None, 1, 1, SECOND);
    let paced = bench.paced.clone();
    let mut first = JoinSet::new();
    first.spawn(async move { paced.start(&id()).await });
    settle().await;
    assert!(timeout(SECOND / 2, bench.paced.create(&spec("buddy"))).await.is_err());
    assert!(first.join_all().await.iter().all(Result::is_ok));
    bench.tracker.close();
    bench.tracker.wait().await;
    assert_eq!(bench.told(), [("start", Told::Begun), ("start", Told::Done)]);
    // Its place went back.
    bench.paced.start(&id()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_call_but_a_wait_has_its_deadline() {
    let mut bench = bench(None, 1, 1, Duration::from_secs(1_000_000));
    let (paced, id) = (&bench.paced, id());
    let unknown = |error: EngineError, operation: &str| {
        assert_eq!((error.class, error.operation), (ErrorClass::Unknown, operation));
    };
    let mut begin = Instant::now();
    let mut took = || std::mem::replace(&mut begin, Instant::now()).elapsed();
    unknown(paced.info().await.unwrap_err(), "info");
    assert_eq!(took(), DEADLINES.read);
    unknown(paced.ping().await.unwrap_err(), "ping");
    unknown(paced.image_id("a").await.unwrap_err(), "image");
    unknown(paced.tag_image(&"a".into(), "b", "c").await.unwrap_err(), "tag");
    unknown(paced.images("a").await.unwrap_err(), "images");
    unknown(paced.inspect("a").await.unwrap_err(), "inspect");
    unknown(paced.list().await.unwrap_err(), "list");
    unknown(paced.networks().await.unwrap_err(), "networks");
    unknown(paced.network_users(&network()).await.unwrap_err(), "network users");
    assert_eq!(took(), 8 * DEADLINES.read);
    unknown(paced.load_image(Vec::new().into()).await.unwrap_err(), "load");
    unknown(paced.save_image("a").await.map(drop).unwrap_err(), "save");
    unknown(paced.pull_image("a", None, &|_| {}).await.unwrap_err(), "pull");
    assert_eq!(took(), 3 * DEADLINES.prepare);
    // One place only: each of these gives it back, though the engine never answered.
    unknown(paced.create(&spec("a")).await.unwrap_err(), "create");
    unknown(paced.start(&id).await.unwrap_err(), "start");
    unknown(paced.rename(&id, "b").await.unwrap_err(), "rename");
    unknown(paced.remove(&id).await.unwrap_err(), "remove");
    unknown(paced.create_network(&network_spec()).await.unwrap_err(), "create network");
    unknown(paced.remove_network(&network()).await.unwrap_err(), "remove network");
    assert_eq!(took(), 6 * DEADLINES.write);
    assert_eq!(paced.wait(&id).await, Ok(WaitOutcome::Exited(0)));
    assert_eq!(took(), Duration::from_secs(1_000_000));
    let cut_off = bench.told().iter().filter(|(_, told)| *told == Told::CutOff).count();
    assert_eq!(cut_off, 18);
}

#[tokio::test(start_paused = true)]
async fn a_reload_wakes_those_who_wait_and_the_same_limits_give_no_new_burst() {
    let bench = bench(Some(1), 1, 4, Duration::ZERO);
    let begin = Instant::now();
    let _first = bench.paced.preparation().await;
    let mut wait = Box::pin(bench.paced.preparation());
    assert!(wait.as_mut().now_or_never().is_none());
    bench.paced.reconfigure(&pacer(Some(1), 1, 2));
    assert!(wait.as_mut().now_or_never().is_none());
    let _second = (&mut wait).await;
    assert_eq!(begin.elapsed(), SECOND);

    let mut wait = Box::pin(bench.paced.preparation());
    assert!(wait.as_mut().now_or_never().is_none());
    bench.paced.reconfigure(&pacer(None, 1, 2));
    let _third = (&mut wait).await;
    assert_eq!(begin.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_smaller_cap_is_reached_as_calls_end_and_a_larger_one_at_once() {
    let mut bench = bench(None, 1, 4, SECOND);
    let mut tasks = JoinSet::new();
    for _ in 0..12 {
        let paced = bench.paced.clone();
        tasks.spawn(async move { paced.start(&id()).await });
    }
    let begun = |bench: &mut Bench| bench.told().iter().filter(|(_, told)| *told == Told::Begun).count();
    settle().await;
    assert_eq!(begun(&mut bench), 4);
    bench.paced.reconfigure(&pacer(None, 1, 1));
    advance(SECOND).await;
    settle().await;
    assert_eq!(begun(&mut bench), 1);
    // Up, down and up again while one call is under way.
    bench.paced.reconfigure(&pacer(None, 1, 3));
    settle().await;
    assert_eq!(begun(&mut bench), 2);
    bench.paced.reconfigure(&pacer(None, 1, 1));
    bench.paced.reconfigure(&pacer(None, 1, 2));
    advance(SECOND).await;
    settle().await;
    assert_eq!(begun(&mut bench), 2);
    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    assert_eq!(begun(&mut bench), 3);
}

#[test]
fn calls_and_waits_are_counted_by_operation_and_outcome() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let bench = bench(Some(1), 1, 1, SECOND);
            bench.paced.preparation().await.undo(&id()).await.unwrap();
            bench.paced.inspect("x").await.unwrap_err();
        });
    });
    let told = handle.render();
    for line in [
        r#"nspool_engine_calls_total{operation="remove",outcome="ok"} 1"#,
        r#"nspool_engine_calls_total{operation="inspect",outcome="not_found"} 1"#,
        r#"nspool_engine_call_seconds_sum{operation="remove"} 1"#,
        r#"nspool_pacer_wait_seconds_count{queue="preparation"} 1"#,
        r#"nspool_pacer_wait_seconds_count{queue="mutation"} 1"#,
    ] {
        assert!(told.lines().any(|told| told == line), "{line} is not in\n{told}");
    }
}
