//! Images pushed to a real registry: what comes back from it runs, and it is asked for, and sent, no more than it needs.

use nspool::image::push::{Layers, Pushed, Pusher, Source};
use nspool::image::store::{Options, Store};
use tempfile::TempDir;

use super::support::image::layered_archive;
use super::*;

on_both_engines!(
    what_was_pushed_is_pulled_and_runs,
    an_image_that_shares_layers_costs_its_own,
    another_repository_takes_them_over,
    a_registry_that_was_wiped_gets_all_again,
    a_password_is_asked_for_and_given,
);

/// An engine with images of which two share a layer, a registry behind a proxy, and who pushes there.
struct Pier<'e> {
    host: &'e TestEngine,
    engine: Arc<dyn Engine>,
    proxy: Proxy,
    registry: TestRegistry,
    pusher: Pusher,
    names: [String; 2],
    dir: TempDir,
}

impl Drop for Pier<'_> {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| drop(self.host.run(&["rmi", name])));
    }
}

impl<'e> Pier<'e> {
    async fn new(host: &'e TestEngine, with_password: bool) -> Self {
        let registry = TestRegistry::start(with_password);
        let proxy = Proxy::before(&registry.host).await;
        let docker = Docker::connect(&host.endpoint(), Some(host.kind)).unwrap();
        let mark = unique().to_be_bytes();
        let names = ["one", "two"].map(|name| format!("localhost/nspool-test-push-{:x}:{name}", unique()));
        for name in &names {
            docker.load_image(layered_archive(name, &mark, name.as_bytes()).into()).await.unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let (store, spool) = (dir.path().join("store"), dir.path().join("spool"));
        std::fs::create_dir(&spool).unwrap();
        Store::open(&store, Options::default()).unwrap();
        let (engine, settings) = (paced(docker), config::Images { store, spool, ..config::Images::default() });
        let credentials = CredentialSource::new(Vec::new(), None);
        let cache = Cache::new(Arc::clone(&engine), credentials, settings.clone(), config::Backoff::default());
        let pusher = Pusher::new(Arc::clone(&engine), cache, settings);
        Self { host, engine, proxy, registry, pusher, names, dir }
    }

    async fn push_by(&self, source: &str, target: &str, credentials: Option<Credentials>) -> Result<Pushed, Failure> {
        let target = Reference::parse(&format!("{}/{target}", self.proxy.host)).unwrap();
        let mut following = self.pusher.push(&Source::parse(source).unwrap(), &target, credentials).await?;
        let over = tokio::time::timeout(LIMIT, following.wait_for(|told| told.outcome.is_some())).await;
        over.expect("it is over in time").unwrap().outcome.clone().unwrap()
    }

    async fn push(&self, source: &str, target: &str) -> Pushed {
        self.push_by(source, target, None).await.unwrap()
    }

    /// From the registry itself: another name for the engine, which has nothing of it.
    async fn comes_back(&self, target: &str, pushed: &Pushed) {
        for name in &self.names {
            self.host.run(&["rmi", name]);
        }
        let reference = format!("{}/{target}", self.registry.host);
        self.engine.pull_image(&reference, None, &|_| {}).await.unwrap();
        let image = self.engine.image(&reference).await.unwrap().expect("it was pulled");
        assert_eq!(image.id.as_str().trim_start_matches("sha256:"), pushed.id.hex(), "the same image");
        assert!(image.digests.iter().any(|known| known.ends_with(pushed.digest.as_str())), "{image:?}, pushed {pushed:?}");
        assert!(self.host.run(&["run", "--rm", "--net", "none", &reference, "cat", "/data"]).contains("push"));
        for name in &self.names {
            self.host.run(&["tag", &reference, name]);
        }
        self.host.run(&["rmi", &reference]);
    }

    /// Of these methods, since it was called last.
    fn asked(&self, methods: &[&str]) -> Vec<String> {
        self.proxy.taken().into_iter().filter(|asked| methods.iter().any(|method| asked.starts_with(method))).collect()
    }
}

fn layers(seen: u32, mounted: u32, present: u32, uploaded: u32) -> Layers {
    Layers { seen, mounted, present, uploaded }
}

async fn what_was_pushed_is_pulled_and_runs(host: &TestEngine) {
    let pier = Pier::new(host, false).await;
    let began = Instant::now();
    let pushed = pier.push(&pier.names[0], "team/fn:1").await;
    println!("{}: {} bytes of {} layers pushed after {:?}", host.kind, pushed.bytes, pushed.layers.all(), began.elapsed());
    assert_eq!(pushed.layers, layers(0, 0, 0, 2));
    // By its id, and as the daemon would on a host without a store.
    std::fs::remove_dir_all(pier.dir.path().join("store")).unwrap();
    let id = pier.engine.image_id(&pier.names[0]).await.unwrap().unwrap();
    let again = pier.push(id.as_str(), "team/fn:2").await;
    assert_eq!((&again.digest, again.layers, again.bytes), (&pushed.digest, layers(2, 0, 0, 0), 0));
    assert_eq!(std::fs::read_dir(pier.dir.path().join("spool")).unwrap().count(), 0);
    pier.comes_back("team/fn:2", &again).await;
}

async fn an_image_that_shares_layers_costs_its_own(host: &TestEngine) {
    let pier = Pier::new(host, false).await;
    pier.push(&pier.names[0], "team/fn:1").await;
    let first = pier.asked(&[""]);
    let pushed = pier.push(&pier.names[1], "team/fn:2").await;
    assert_eq!(pushed.layers, layers(1, 0, 0, 1));
    let asked = pier.asked(&[""]);
    println!("{}: requests of the first push {}, of one that shares a layer {}", host.kind, first.len(), asked.len());
    // A layer and a config, each asked for and sent, and the manifest.
    assert_eq!((first.len(), asked.len()), (10, 7), "{first:?}, {asked:?}");
    assert!(asked.iter().all(|asked| !asked.starts_with("HEAD") || !first.contains(asked)), "{asked:?}, before {first:?}");
    pier.push(&pier.names[1], "team/fn:3").await;
    assert_eq!(pier.asked(&[""]), ["PUT /v2/team/fn/manifests/3"]);
    pier.comes_back("team/fn:2", &pushed).await;
}

async fn another_repository_takes_them_over(host: &TestEngine) {
    let pier = Pier::new(host, false).await;
    pier.push(&pier.names[0], "team/fn:1").await;
    pier.asked(&[]);
    let pushed = pier.push(&pier.names[0], "other/fn:1").await;
    assert_eq!((pushed.layers, pushed.bytes), (layers(0, 2, 0, 0), 0));
    let asked = pier.asked(&[""]);
    assert_eq!(asked.iter().filter(|asked| asked.contains("mount=sha256") && asked.contains("from=team%2Ffn")).count(), 3, "{asked:?}");
    assert_eq!(asked.len(), 4, "{asked:?}");
    pier.comes_back("other/fn:1", &pushed).await;
}

async fn a_registry_that_was_wiped_gets_all_again(host: &TestEngine) {
    let mut pier = Pier::new(host, false).await;
    let first = pier.push(&pier.names[0], "team/fn:1").await;
    pier.registry.wipe();
    let again = pier.push(&pier.names[0], "team/fn:1").await;
    assert_eq!((&again.digest, again.layers), (&first.digest, layers(0, 0, 0, 2)));
    pier.registry.wipe();
    assert_eq!(pier.push(&pier.names[0], "other/fn:1").await.layers, layers(0, 0, 0, 2), "nothing to mount");
    pier.comes_back("other/fn:1", &again).await;
}

async fn a_password_is_asked_for_and_given(host: &TestEngine) {
    let pier = Pier::new(host, true).await;
    for wrong in [None, account("wrong-horse-7")] {
        let denied = pier.push_by(&pier.names[0], "team/fn:1", wrong).await.unwrap_err();
        assert!(denied.kind == Kind::Denied && !denied.why.contains("wrong-horse-7"), "{denied}");
    }
    let pushed = pier.push_by(&pier.names[0], "team/fn:1", account(PASSWORD)).await.unwrap();
    assert_eq!(pushed.layers, layers(0, 0, 0, 2));
    let pushed = pier.push_by(&pier.names[0], "other/fn:1", account(PASSWORD)).await.unwrap();
    assert_eq!(pushed.layers, layers(0, 2, 0, 0));
    // What these were shown is nobody else's.
    let denied = pier.push_by(&pier.names[0], "other/fn:1", None).await.unwrap_err();
    assert_eq!(denied.kind, Kind::Denied, "{denied}");
}
