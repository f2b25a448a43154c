//! Images fetched from a real registry, on Docker and on podman, on good days and on bad ones.
//!
//! Promises: ten callers at once cost the registry what one costs; what a registry does on a bad day ends with the image or with its words, and never
//! with a storm of requests; an image that is here because one could pull it is not thereby another's.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]
#![expect(clippy::print_stdout, reason = "what was measured, or said, is worth a look")]

#[path = "images/builds.rs"]
mod builds;
#[path = "images/push.rs"]
mod push;
#[path = "images/room.rs"]
mod room;
#[path = "images/stored.rs"]
mod stored;
mod support;
#[path = "images/tls.rs"]
mod tls;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use nspool::config;
use nspool::engine::docker::Docker;
use nspool::engine::paced::{Deadlines, Paced};
use nspool::engine::{Credentials, Engine};
use nspool::image::cache::{Cache, Ensured, Failure, Kind, PRIVATE};
use nspool::image::pull::CredentialSource;
use nspool::image::reference::Reference;
use support::engines::{TestEngine, docker, podman, unique};
use support::image::random_archive;
use support::proxy::{Proxy, Trouble};
use support::registry::{PASSWORD, TestRegistry, USER};
use tokio_util::task::TaskTracker;

const LIMIT: Duration = Duration::from_secs(120);
const LAYER: usize = 3 << 20;

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod docker_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(crate::docker()).await } )* }
        mod podman_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(crate::podman()).await } )* }
    };
}
pub(crate) use on_both_engines;

on_both_engines!(
    ten_callers_cost_the_registry_what_one_costs,
    a_layer_that_is_cut_off_comes_all_the_same,
    a_layer_with_a_wrong_digest_is_thrown_away_and_fetched_once_more,
    a_registry_that_always_sends_another_digest_is_an_error_that_says_so,
    a_busy_registry_is_waited_for,
    a_registry_that_stays_busy_is_left_alone,
    an_image_that_one_may_pull_is_not_thereby_anothers,
    a_registry_that_has_no_such_image_is_asked_once,
    a_tag_that_moves_is_followed_by_one_question,
);

/// A registry with one image that nobody else has, behind a proxy, and a cache on the engine.
struct Bench<'e> {
    host: &'e TestEngine,
    engine: Arc<dyn Engine>,
    proxy: Proxy,
    registry: TestRegistry,
    cache: Cache,
    /// By which the image is fetched through the proxy.
    name: String,
}

impl<'e> Bench<'e> {
    async fn new(host: &'e TestEngine, with_password: bool) -> Self {
        Self::with(host, with_password, config::Images { attempts: 3, ..config::Images::default() }).await
    }

    async fn with(host: &'e TestEngine, with_password: bool, settings: config::Images) -> Self {
        let registry = TestRegistry::start(with_password);
        let local = format!("localhost/nspool-test-fn-{:x}:1", unique());
        let docker = Docker::connect(&host.endpoint(), Some(host.kind)).unwrap();
        docker.load_image(random_archive(&local, LAYER).into()).await.unwrap();
        registry.push(host, &local, "team/fn:1");
        host.run(&["rmi", &local]);
        let proxy = Proxy::before(&registry.host).await;
        let engine = paced(docker);
        // Where everybody may pull, nobody asks for it.
        let account = config::Registry { host: proxy.host.clone(), username: USER.into(), password: PASSWORD.into() };
        let own = if settings.freshness == config::Freshness::Always { vec![account] } else { Vec::new() };
        let cache = Cache::new(Arc::clone(&engine), CredentialSource::new(own, None), settings, config::Backoff::default());
        let name = format!("{}/team/fn:1", proxy.host);
        Self { host, engine, proxy, registry, cache, name }
    }

    /// The registry has another image under the same name from now on.
    async fn publish_anew(&self) {
        let local = format!("localhost/nspool-test-fn-{:x}:1", unique());
        self.engine.load_image(random_archive(&local, LAYER).into()).await.unwrap();
        self.registry.push(self.host, &local, "team/fn:1");
        self.host.run(&["rmi", &local]);
    }

    async fn ensure_by(&self, name: &str, credentials: Option<Credentials>) -> Result<Ensured, Failure> {
        let mut following = self.cache.ensure(&Reference::parse(name).unwrap(), credentials);
        let over = tokio::time::timeout(LIMIT, following.wait_for(|told| told.outcome.is_some())).await;
        over.expect("it is over in time").unwrap().outcome.clone().unwrap()
    }

    async fn ensure(&self) -> Result<Ensured, Failure> {
        self.ensure_by(&self.name, None).await
    }

    /// From the engine, with every layer: nothing else has them.
    fn forget(&self) {
        self.host.run(&["rmi", &self.name]);
    }

    /// By which it is created from, and the digest that the registry has it under.
    async fn is_here(&self, ensured: &Ensured) {
        let image = self.engine.image(&self.name).await.unwrap().expect("the engine has it");
        assert_eq!(image.id, ensured.id);
        assert_eq!(self.engine.image_id(ensured.id.as_str()).await.unwrap().as_ref(), Some(&image.id));
        assert!(ensured.digest.starts_with("sha256:") && image.digests.iter().any(|digest| digest.ends_with(&ensured.digest)), "{image:?}");
    }
}

fn paced(docker: Docker) -> Arc<dyn Engine> {
    let deadlines = Deadlines::from_config(&config::Engine::default(), &config::Placeholder::default());
    Arc::new(Paced::new(Arc::new(docker), &config::Pacer::default(), deadlines, TaskTracker::new()))
}

fn account(secret: &str) -> Option<Credentials> {
    Some(Credentials { username: USER.into(), secret: secret.into() })
}

async fn ten_callers_cost_the_registry_what_one_costs(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    let one = bench.ensure().await.unwrap();
    bench.is_here(&one).await;
    let alone = bench.proxy.taken();
    assert!(!bench.ensure().await.unwrap().fetched);
    assert_eq!(bench.proxy.taken(), Vec::<String>::new(), "it is here, and nobody is asked");

    bench.forget();
    let ten = join_all((0..10).map(|_| bench.ensure())).await;
    assert!(ten.iter().all(|outcome| outcome.as_ref() == Ok(&one)), "{ten:?}");
    let together = bench.proxy.taken();

    bench.forget();
    let pulls = join_all((0..10).map(|_| bench.engine.pull_image(&bench.name, None, &|_| {}))).await;
    assert!(pulls.iter().all(Result::is_ok), "{pulls:?}");
    let each = bench.proxy.taken();
    println!("{}: requests of one caller {}, of ten {}, of ten without the cache {}", host.kind, alone.len(), together.len(), each.len());
    assert!(together.len() <= alone.len(), "{together:?}, alone {alone:?}");
    assert!(each.len() > 2 * alone.len(), "{each:?}");
    bench.forget();
}

async fn a_layer_that_is_cut_off_comes_all_the_same(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    bench.proxy.next(Trouble::CutOff);
    let ensured = bench.ensure().await.unwrap();
    bench.is_here(&ensured).await;
    let asked = bench.proxy.taken();
    assert!(asked.len() <= 20, "{asked:?}");
    bench.forget();
}

async fn a_layer_with_a_wrong_digest_is_thrown_away_and_fetched_once_more(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    bench.proxy.next(Trouble::Corrupt);
    let ensured = bench.ensure().await.unwrap();
    bench.is_here(&ensured).await;
    bench.forget();
}

async fn a_registry_that_always_sends_another_digest_is_an_error_that_says_so(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    bench.proxy.always(Some(Trouble::Corrupt));
    let failure = bench.ensure().await.unwrap_err();
    println!("{}: {failure}", host.kind);
    assert_eq!(failure.kind, Kind::Failed);
    let words = failure.why.to_lowercase();
    assert!(words.contains("digest") && words.contains("sha256:"), "{words}");
    assert_eq!(bench.engine.image_id(&bench.name).await.unwrap(), None);
    let asked = bench.proxy.taken().len();
    assert!(asked <= 60, "{asked} requests for three attempts");
    bench.proxy.always(None);
    assert!(bench.ensure().await.is_ok());
    bench.forget();
}

async fn a_busy_registry_is_waited_for(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    for _ in 0..2 {
        bench.proxy.next(Trouble::Busy { retry_after: 1 });
    }
    let began = Instant::now();
    let ensured = bench.ensure().await.unwrap();
    bench.is_here(&ensured).await;
    println!("{}: here after {:?}", host.kind, began.elapsed());
    assert!(began.elapsed() >= Duration::from_secs(1));
    bench.forget();
}

async fn a_registry_that_stays_busy_is_left_alone(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    bench.proxy.always(Some(Trouble::Busy { retry_after: 1 }));
    let began = Instant::now();
    let outcomes = join_all((0..10).map(|_| bench.ensure())).await;
    let (asked, took) = (bench.proxy.taken(), began.elapsed());
    let failure = outcomes[0].clone().unwrap_err();
    println!("{}: {failure}, after {} requests in {took:?}", host.kind, asked.len());
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_err_and(|failure| failure.kind == Kind::Busy)), "{outcomes:?}");
    // podman tries again by itself, at the pace that the registry asks for.
    assert!(asked.len() as f64 <= 10.0 + 1.5 * took.as_secs_f64(), "{asked:?} in {took:?}");
    // Told again, and not asked again.
    assert_eq!(bench.ensure().await.unwrap_err().kind, Kind::Busy);
    assert_eq!(bench.proxy.taken(), Vec::<String>::new());
}

async fn an_image_that_one_may_pull_is_not_thereby_anothers(host: &TestEngine) {
    let bench = Bench::new(host, true).await;
    let name = bench.name.as_str();
    assert_eq!(bench.ensure().await.unwrap_err().kind, Kind::Denied);
    let ours = bench.ensure_by(name, account(PASSWORD)).await.unwrap();
    bench.is_here(&ours).await;
    let by_digest = format!("{}@{}", name.trim_end_matches(":1"), ours.digest);
    for reference in [name, &by_digest] {
        bench.proxy.taken();
        let denied = bench.ensure_by(reference, account("wrong-horse-7")).await.unwrap_err();
        assert_eq!(denied.kind, Kind::Denied, "{reference}: {denied}");
        assert!(!denied.why.contains("wrong-horse-7") && !bench.proxy.taken().is_empty(), "{denied}");
        assert!(bench.ensure_by(reference, None).await.is_err(), "{reference} without credentials");
        let again = bench.ensure_by(reference, account(PASSWORD)).await.unwrap();
        assert_eq!((&again.id, again.fetched), (&ours.id, true), "{reference}");
    }
    // The operator gives it to all.
    let private = format!("{PRIVATE}:{}", ours.id.as_str().trim_start_matches("sha256:"));
    host.run(&["rmi", &private]);
    let everybodys = bench.ensure_by(name, None).await.unwrap();
    assert_eq!((everybodys.id, everybodys.fetched), (ours.id, false));
    bench.forget();
}

async fn a_registry_that_has_no_such_image_is_asked_once(host: &TestEngine) {
    let bench = Bench::new(host, false).await;
    for missing in [format!("{}/team/fn:2", bench.proxy.host), format!("{}/team/none:1", bench.proxy.host)] {
        let failure = bench.ensure_by(&missing, None).await.unwrap_err();
        assert_eq!(failure.kind, Kind::Unknown, "{failure}");
        let asked = bench.proxy.taken();
        assert!(asked.len() <= 4, "{asked:?}");
        assert_eq!(bench.ensure_by(&missing, None).await.unwrap_err().kind, Kind::Unknown);
        assert_eq!(bench.proxy.taken(), Vec::<String>::new());
    }
}

async fn a_tag_that_moves_is_followed_by_one_question(host: &TestEngine) {
    for with_password in [false, true] {
        let bench =
            Bench::with(host, with_password, config::Images { freshness: config::Freshness::Always, ..config::Images::default() }).await;
        let first = bench.ensure().await.unwrap();
        bench.proxy.taken();
        let again = bench.ensure().await.unwrap();
        assert_eq!((&again.id, again.fetched, &again.stale), (&first.id, false, &None));
        let asked = bench.proxy.taken();
        // Once more with the password that it wanted.
        let head = "HEAD /v2/team/fn/manifests/1".to_owned();
        assert_eq!(asked, vec![head; if with_password { 2 } else { 1 }]);

        bench.publish_anew().await;
        let outcomes = join_all((0..10).map(|_| bench.ensure())).await;
        let next = outcomes[0].clone().unwrap();
        assert!(outcomes.iter().all(|outcome| outcome.as_ref() == Ok(&next)), "{outcomes:?}");
        assert!(next.fetched && next.id != first.id && next.digest != first.digest, "{next:?}, before {first:?}");
        bench.is_here(&next).await;
        println!("{}: requests for one that has changed: {}", host.kind, bench.proxy.taken().len());

        bench.proxy.always(Some(Trouble::Busy { retry_after: 3600 }));
        let stale = bench.ensure().await.unwrap();
        assert_eq!((&stale.id, stale.fetched), (&next.id, false));
        assert!(stale.stale.is_some_and(|stale| stale.why.contains("too many requests")));
        bench.proxy.taken();
        assert!(bench.ensure().await.unwrap().stale.is_some());
        assert_eq!(bench.proxy.taken(), Vec::<String>::new(), "it is left alone");
        bench.forget();
        host.run(&["rmi", first.id.as_str().trim_start_matches("sha256:")]);
    }
}
