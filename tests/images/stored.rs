//! Images that nspool itself fetches into its store (`[images] fetched_by = "nspool"`), and loads Docker and podman from.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use nspool::config;
use nspool::engine::EngineKind;
use nspool::image::cache::{Cache, Ensured, Failure, Kind};
use nspool::image::pull::CredentialSource;
use nspool::image::reference::Reference;
use nspool::image::store::{Digest, Options, Store};

use crate::support::engines::{TestEngine, docker, podman};
use crate::support::eventually;
use crate::support::proxy::Trouble;
use crate::support::registry::{PASSWORD, USER};
use crate::{Bench, LIMIT, paced};

crate::on_both_engines!(
    ten_callers_cost_the_registry_what_one_costs_and_a_wiped_engine_nothing,
    two_daemons_at_once_cost_the_registry_what_one_costs,
    what_has_rotted_in_the_store_is_fetched_anew,
    a_daemon_that_stops_leaves_its_fetch_to_the_other,
    a_blob_that_is_not_what_it_should_be_is_fetched_once_more,
    a_registry_that_always_sends_another_digest_leaves_a_store_that_verifies,
    a_tag_that_moves_costs_what_is_new_in_it,
    a_registry_that_wants_a_password_gets_ours,
);

fn settings(store: &Path) -> config::Images {
    let (store, fetched_by) = (store.join("images"), config::FetchedBy::Nspool);
    config::Images { attempts: 3, store, fetched_by, ..config::Images::default() }
}

fn verified(folder: &Path) {
    let verified = Store::open(&folder.join("images"), Options::default()).unwrap().verify().unwrap();
    assert_eq!(verified.faults.len(), 0, "{:?}", verified.faults);
}

impl Bench<'_> {
    /// In the engine under its name, and in the store with what the registry has there.
    async fn is_in_both(&self, ensured: &Ensured, folder: &Path) {
        let image = self.engine.image(&self.name).await.unwrap().expect("the engine has it");
        assert_eq!(image.id, ensured.id);
        let store = Store::open(&folder.join("images"), Options::default()).unwrap();
        let stored = store.image(&self.name).unwrap().expect("the store has it");
        assert_eq!((stored.id.as_str(), stored.origin), (ensured.id.as_str(), Digest::parse(&ensured.digest)));
        verified(folder);
    }
}

async fn ten_callers_cost_the_registry_what_one_costs_and_a_wiped_engine_nothing(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, false, settings(folder.path())).await;
    let ten = join_all((0..10).map(|_| bench.ensure())).await;
    let one = ten[0].clone().unwrap();
    assert!(one.fetched && ten.iter().all(|outcome| outcome.as_ref() == Ok(&one)), "{ten:?}");
    bench.is_in_both(&one, folder.path()).await;
    let asked = bench.proxy.taken();
    println!("{}: {asked:?}", host.kind);
    assert_eq!(asked.len(), 3, "a manifest, a config, a layer: {asked:?}");

    bench.forget();
    let again = bench.ensure().await.unwrap();
    assert_eq!((&again.id, &again.digest, again.fetched), (&one.id, &one.digest, false));
    bench.is_in_both(&again, folder.path()).await;

    let (other, cache) = other_daemon(host, folder.path());
    let there = ensured(&cache, &bench.name).await.unwrap();
    assert_eq!((&there.id, &there.digest, there.fetched), (&one.id, &one.digest, false));
    assert_eq!(bench.proxy.taken(), Vec::<String>::new());
    other.run(&["rmi", &bench.name]);
    bench.forget();
}

/// Another engine of the host, and another daemon.
fn other_daemon(host: &TestEngine, folder: &Path) -> (&'static TestEngine, Cache) {
    let other = if host.kind == EngineKind::Docker { podman() } else { docker() };
    let engine = paced(nspool::engine::docker::Docker::connect(&other.endpoint(), Some(other.kind)).unwrap());
    let source = CredentialSource::new(Vec::new(), None);
    (other, Cache::new(engine, source, settings(folder), config::Backoff::default()))
}

async fn ensured(cache: &Cache, name: &str) -> Result<Ensured, Failure> {
    let mut following = cache.ensure(&Reference::parse(name).unwrap(), None);
    following.wait_for(|told| told.outcome.is_some()).await.unwrap().outcome.clone().unwrap()
}

async fn two_daemons_at_once_cost_the_registry_what_one_costs(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, false, settings(folder.path())).await;
    let (other, cache) = other_daemon(host, folder.path());
    // Long enough for both to be at it.
    bench.proxy.next(Trouble::Slow(Duration::from_secs(1)));
    let (one, there) = tokio::join!(bench.ensure(), ensured(&cache, &bench.name));
    let (one, there) = (one.unwrap(), there.unwrap());
    assert_eq!((&there.id.bare(), &there.digest), (&one.id.bare(), &one.digest));
    let asked = bench.proxy.taken();
    assert_eq!(asked.len(), 3, "a manifest, a config, a layer: {asked:?}");
    bench.is_in_both(&one, folder.path()).await;
    other.run(&["rmi", &bench.name]);
    bench.forget();
}

async fn what_has_rotted_in_the_store_is_fetched_anew(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, false, settings(folder.path())).await;
    let first = bench.ensure().await.unwrap();
    let store = Store::open(&folder.path().join("images"), Options::default()).unwrap();
    let manifest = store.image(&bench.name).unwrap().unwrap().manifest;
    std::fs::write(store.root().join("blobs/sha256").join(manifest.hex()), "rot").unwrap();
    assert!(store.image(&bench.name).is_err());
    bench.forget();
    let again = bench.ensure().await.unwrap();
    assert_eq!((&again.id, &again.digest, again.fetched), (&first.id, &first.digest, true));
    bench.is_in_both(&again, folder.path()).await;
    bench.forget();
}

async fn a_daemon_that_stops_leaves_its_fetch_to_the_other(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, false, settings(folder.path())).await;
    let (other, cache) = other_daemon(host, folder.path());
    bench.proxy.next(Trouble::Slow(Duration::from_secs(60)));
    let begun = async {
        let asks = || async { bench.proxy.taken().iter().any(|line| line.contains("/blobs/")).then_some(()) };
        eventually("the other one to fetch", LIMIT, asks).await;
        let mut asked = Box::pin(bench.ensure());
        assert!(tokio::time::timeout(Duration::from_millis(500), &mut asked).await.is_err(), "it waits for the other's");
        assert!(bench.proxy.taken().iter().all(|line| !line.contains("/manifests/")), "and asks nobody");
        cache.close().await;
        asked.await
    };
    let (stopped, one) = tokio::join!(ensured(&cache, &bench.name), begun);
    assert_eq!(stopped.unwrap_err().kind, Kind::Stopping);
    bench.is_in_both(&one.unwrap(), folder.path()).await;
    assert_eq!(std::fs::read_dir(folder.path().join("images/staging")).unwrap().count(), 0, "nothing is left of either");
    assert!(!other.client(&["image", "inspect", &bench.name]).status.success());
    bench.forget();
}

async fn a_blob_that_is_not_what_it_should_be_is_fetched_once_more(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, false, settings(folder.path())).await;
    for (trouble, times) in [(Trouble::Corrupt, 1), (Trouble::CutOff, 1), (Trouble::Busy { retry_after: 1 }, 2)] {
        (0..times).for_each(|_| bench.proxy.next(trouble));
        let ensured = bench.ensure().await.unwrap();
        bench.is_in_both(&ensured, folder.path()).await;
        let asked = bench.proxy.taken();
        assert!((4..=8).contains(&asked.len()), "{trouble:?}: {asked:?}");
        bench.forget();
        std::fs::remove_dir_all(folder.path().join("images")).unwrap();
    }
}

async fn a_registry_that_always_sends_another_digest_leaves_a_store_that_verifies(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, false, settings(folder.path())).await;
    bench.proxy.always(Some(Trouble::Corrupt));
    let failure = bench.ensure().await.unwrap_err();
    println!("{failure}");
    assert!(failure.kind == Kind::Failed && failure.why.contains("is not what it is said to be: its digest is sha256:"), "{failure}");
    assert_eq!(bench.engine.image_id(&bench.name).await.unwrap(), None);
    verified(folder.path());
    let staging = std::fs::read_dir(folder.path().join("images/staging")).unwrap();
    assert_eq!(staging.count(), 0, "nothing is left of it");
}

async fn a_tag_that_moves_costs_what_is_new_in_it(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let freshness = config::Freshness::Always;
    let bench = Bench::with(host, false, config::Images { freshness, ..settings(folder.path()) }).await;
    let first = bench.ensure().await.unwrap();
    bench.proxy.taken();
    let again = bench.ensure().await.unwrap();
    assert_eq!((&again.id, &again.digest, again.fetched, &again.stale), (&first.id, &first.digest, false, &None));
    assert_eq!(bench.proxy.taken(), ["HEAD /v2/team/fn/manifests/1"]);

    bench.publish_anew().await;
    let next = bench.ensure().await.unwrap();
    assert!(next.fetched && next.id != first.id && next.digest != first.digest, "{next:?}, before {first:?}");
    bench.is_in_both(&next, folder.path()).await;
    let asked = bench.proxy.taken();
    assert_eq!(asked.len(), 4, "one question, and what is new: {asked:?}");
    let left = Store::open(&folder.path().join("images"), Options::default()).unwrap().verify().unwrap();
    assert_eq!((left.images, left.blobs), (1, 3), "what the image was before is gone from the store");

    bench.proxy.always(Some(Trouble::Busy { retry_after: 3600 }));
    let stale = bench.ensure().await.unwrap();
    assert!(stale.id == next.id && stale.stale.is_some(), "{stale:?}");
    // From the store, whatever the registry says.
    bench.forget();
    let stored = bench.ensure().await.unwrap();
    assert_eq!((&stored.id, &stored.digest), (&next.id, &next.digest));
    bench.forget();
    host.run(&["rmi", first.id.as_str().trim_start_matches("sha256:")]);
}

async fn a_registry_that_wants_a_password_gets_ours(host: &TestEngine) {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::with(host, true, settings(folder.path())).await;
    let failure = bench.ensure().await.unwrap_err();
    assert_eq!(failure.kind, Kind::Denied, "{failure}");
    let own = config::Registry { host: bench.proxy.host.clone(), username: USER.into(), password: PASSWORD.into() };
    let source = CredentialSource::new(vec![own], None);
    let cache = Cache::new(Arc::clone(&bench.engine), source, settings(folder.path()), config::Backoff::default());
    bench.is_in_both(&ensured(&cache, &bench.name).await.unwrap(), folder.path()).await;
    bench.forget();
}
