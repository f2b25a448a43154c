//! Against a registry in this process: what is sent, what is not, and what becomes of troubles.

#[path = "../../../tests/support/small_registry.rs"]
mod small_registry;

use std::time::Duration;

use tempfile::TempDir;

use self::small_registry::{SmallRegistry, Trouble};
use super::*;
use crate::engine::fake::{FakeWorld, Operation};
use crate::image::cache::PRIVATE;
use crate::image::pull::CredentialSource;
use crate::image::store::{Options, Store};

/// A host with an engine, a pusher, and a registry within reach.
struct Host {
    world: Arc<FakeWorld>,
    registry: SmallRegistry,
    pusher: Pusher,
    dir: TempDir,
}

/// A `docker save` tar with an image of these layers.
fn archive(reference: &str, layers: &[&[u8]]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let digests: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}}).to_string();
    let name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    add(&name, config.as_bytes());
    for (digest, layer) in digests.iter().zip(layers) {
        add(&format!("{}/layer.tar", digest.hex()), layer);
    }
    let files: Vec<String> = digests.iter().map(|digest| format!("{}/layer.tar", digest.hex())).collect();
    add("manifest.json", serde_json::json!([{"Config": name, "RepoTags": [reference], "Layers": files}]).to_string().as_bytes());
    tar.into_inner().unwrap()
}

impl Host {
    /// `with_store`: the host has one of its own.
    async fn new(with_store: bool) -> Self {
        Self::with(with_store, |_| {}).await
    }

    async fn with(with_store: bool, change: impl FnOnce(&mut config::Images)) -> Self {
        let (world, registry, dir) = (FakeWorld::new(1), SmallRegistry::start().await, tempfile::tempdir().unwrap());
        let (store, spool) = (dir.path().join("store"), dir.path().join("spool"));
        std::fs::create_dir(&spool).unwrap();
        if with_store {
            Store::open(&store, Options::default()).unwrap();
        }
        let mut settings = config::Images { store, spool, ..config::Images::default() };
        change(&mut settings);
        let backoff = config::Backoff { first: Duration::from_millis(1), ..config::Backoff::default() };
        let cache = Cache::new(world.engine(), CredentialSource::new(Vec::new(), None), settings.clone(), backoff);
        let pusher = Pusher::new(world.engine(), cache, settings);
        let host = Self { world, registry, pusher, dir };
        host.load("fn:1", &[b"base", b"one"]).await;
        host.load("fn:2", &[b"base", b"two"]).await;
        host
    }

    async fn load(&self, name: &str, layers: &[&[u8]]) {
        self.world.engine().load_image(archive(name, layers).into()).await.unwrap();
    }

    fn target(&self, name: &str) -> Reference {
        Reference::parse(&format!("{}/{name}", self.registry.host)).unwrap()
    }

    async fn push_by(&self, source: &str, target: &str, credentials: Option<Credentials>) -> Result<Pushed, Failure> {
        let mut following = self.pusher.push(&Source::parse(source).unwrap(), &self.target(target), credentials).await?;
        let over = tokio::time::timeout(Duration::from_secs(60), following.wait_for(|told| told.outcome.is_some())).await;
        over.expect("it is over in time").unwrap().outcome.clone().unwrap()
    }

    async fn push(&self, source: &str, target: &str) -> Result<Pushed, Failure> {
        self.push_by(source, target, None).await
    }

    fn spooled(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("spool")).unwrap().count()
    }
}

fn layers(seen: u32, mounted: u32, present: u32, uploaded: u32) -> Layers {
    Layers { seen, mounted, present, uploaded }
}

fn account(secret: &str) -> Option<Credentials> {
    Some(Credentials { username: "ann".into(), secret: secret.into() })
}

#[tokio::test]
async fn what_the_registry_has_is_neither_sent_nor_asked_for_again() {
    for with_store in [true, false] {
        let host = Host::new(with_store).await;
        let first = host.push("fn:1", "team/fn:1").await.unwrap();
        assert_eq!(first.layers, layers(0, 0, 0, 2));
        assert!(first.bytes > 7, "the config, too: {first:?}");
        let (media_type, bytes) = host.registry.state.lock().manifests["team/fn 1"].clone();
        assert_eq!((media_type.as_str(), Digest::of(&bytes)), ("application/vnd.oci.image.manifest.v1+json", first.digest.clone()));
        assert_eq!(host.registry.count("HEAD"), 3);

        host.registry.taken();
        let second = host.push("fn:2", "team/fn:2").await.unwrap();
        assert_eq!(second.layers, layers(1, 0, 0, 1));
        let asked = host.registry.taken();
        assert!(!asked.iter().any(|asked| asked.contains(Digest::of(b"base").as_str())), "{asked:?}");
        assert_eq!(asked.iter().filter(|asked| asked.starts_with("PUT /v2/team/fn/blobs")).count(), 2, "a layer and a config: {asked:?}");

        // All of it again: one request, and another name for it.
        assert_eq!(host.push("fn:2", "team/fn:3").await.unwrap(), Pushed { layers: layers(2, 0, 0, 0), bytes: 0, ..second });
        assert_eq!(host.registry.taken(), ["PUT /v2/team/fn/manifests/3"]);
        // Another who asks has to look.
        assert_eq!(host.push_by("fn:2", "team/fn:3", account("word")).await.unwrap().layers, layers(0, 0, 2, 0));
        assert_eq!(host.spooled(), 0);
        let saved = host.world.count(Operation::SaveImage);
        assert_eq!(saved, if with_store { 2 } else { 4 }, "what is in the host's store is not asked of the engine");
    }
}

#[tokio::test]
async fn another_repository_mounts_and_sends_what_it_may_not() {
    let host = Host::new(true).await;
    host.push("fn:1", "team/fn:1").await.unwrap();
    host.registry.taken();
    let pushed = host.push("fn:1", "other/fn:1").await.unwrap();
    assert_eq!((pushed.layers, pushed.bytes), (layers(0, 2, 0, 0), 0));
    let asked = host.registry.taken();
    assert!(asked.iter().filter(|asked| asked.starts_with("POST") && asked.contains("from=team%2Ffn")).count() == 3, "{asked:?}");
    assert_eq!(asked.len(), 4, "{asked:?}");

    // It takes over nothing: what it answered is the place to send it to.
    host.registry.state.lock().no_mounts = true;
    let pushed = host.push("fn:1", "third/fn:1").await.unwrap();
    assert_eq!(pushed.layers, layers(0, 0, 0, 2));
    let asked = host.registry.taken();
    assert_eq!((asked.len(), asked.iter().filter(|asked| asked.starts_with("HEAD")).count()), (7, 0), "{asked:?}");

    // What may not be read there is no no to writing here.
    let digest = Digest::of(b"base");
    host.registry.next(&format!("mount={}", digest.as_str().replace(':', "%3A")), Trouble::Says(403, Vec::new(), String::new()));
    assert_eq!(host.push("fn:1", "fourth/fn:1").await.unwrap().layers, layers(0, 0, 0, 2));
}

#[tokio::test]
async fn what_one_was_shown_is_not_used_for_another() {
    let host = Host::new(true).await;
    host.push_by("fn:1", "anns/fn:1", account("anns-word")).await.unwrap();
    host.registry.taken();
    for other in [None, account("bobs-word")] {
        assert_eq!(host.push_by("fn:1", &format!("x{}/fn:1", u8::from(other.is_some())), other).await.unwrap().layers, layers(0, 0, 0, 2));
        let asked = host.registry.taken();
        assert!(!asked.iter().any(|asked| asked.contains("mount")), "{asked:?}");
    }
    assert_eq!(host.push_by("fn:1", "y/fn:1", account("anns-word")).await.unwrap().layers, layers(0, 2, 0, 0));
}

#[tokio::test]
async fn a_registry_that_was_wiped_knows_better() {
    let host = Host::new(true).await;
    let first = host.push("fn:1", "team/fn:1").await.unwrap();
    host.registry.wipe();
    let again = host.push("fn:1", "team/fn:1").await.unwrap();
    assert_eq!((&again.digest, again.layers), (&first.digest, layers(0, 0, 0, 2)));
    assert!(host.registry.state.lock().manifests.contains_key("team/fn 1"));
    // And in another repository, where it would mount.
    host.registry.wipe();
    assert_eq!(host.push("fn:1", "other/fn:1").await.unwrap().layers, layers(0, 0, 0, 2));

    // One that names none.
    let no = r#"{"errors": [{"code": "BLOB_UNKNOWN"}]}"#;
    host.registry.next("PUT /v2/other/fn/manifests", Trouble::Says(400, Vec::new(), no.into()));
    assert_eq!(host.push("fn:1", "other/fn:2").await.unwrap().layers, layers(0, 0, 2, 0));

    // One that says so whatever it has is believed, and told so.
    for _ in 0..2 {
        host.registry.next("PUT /v2/other/fn/manifests", Trouble::Says(400, Vec::new(), no.into()));
    }
    let failure = host.push("fn:1", "other/fn:3").await.unwrap_err();
    assert!(failure.kind == Kind::PushFailed && failure.why.contains("then says that it has not"), "{failure}");
}

#[tokio::test]
async fn troubles_that_pass_are_waited_for_and_others_told() {
    let host = Host::new(true).await;
    let busy = || Trouble::Says(429, vec![("retry-after", "1".into())], String::new());
    host.registry.next("HEAD", busy());
    host.registry.next("POST", Trouble::Says(502, Vec::new(), String::new()));
    // It is there, but the answer is lost.
    host.registry.next("PUT /v2/team/fn/blobs", Trouble::DoneAndSays(500, Vec::new(), String::new()));
    host.registry.next("PUT /v2/team/fn/manifests", Trouble::Says(503, Vec::new(), String::new()));
    let began = std::time::Instant::now();
    host.push("fn:1", "team/fn:1").await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "it said when to come back");

    let long = Trouble::Says(429, vec![("retry-after", "3600".into())], String::new());
    host.registry.next("PUT /v2/team/fn/manifests", long);
    let failure = host.push("fn:1", "team/fn:1").await.unwrap_err();
    assert_eq!((failure.kind, failure.retry_after), (Kind::Busy, Some(Duration::from_secs(3600))));
    for (status, kind, most) in [(403, Kind::Denied, 1), (404, Kind::Unknown, 1), (400, Kind::PushFailed, 1), (500, Kind::PushFailed, 2)] {
        host.registry.taken();
        for _ in 0..2 {
            host.registry.next("PUT /v2/team/fn/manifests/x", Trouble::Says(status, Vec::new(), String::new()));
        }
        assert_eq!(host.push("fn:1", "team/fn:x").await.unwrap_err().kind, kind, "{status}");
        assert_eq!(host.registry.count("PUT"), most, "{status}");
        host.registry.state.lock().next.clear();
    }

    let other = format!("sha256:{}", "0".repeat(64));
    host.registry.next("PUT /v2/team/fn/manifests", Trouble::DoneAndSays(201, vec![("docker-content-digest", other)], String::new()));
    let failure = host.push("fn:1", "team/fn:1").await.unwrap_err();
    assert!(failure.kind == Kind::PushFailed && failure.why.contains("what has the digest"), "{failure}");
}

#[tokio::test]
async fn a_password_is_told_to_the_registry_and_to_nobody_else() {
    let host = Host::new(true).await;
    host.registry.state.lock().password = Some("Basic YW5uOmFubnMtd29yZA==".into());
    assert_eq!(host.push("fn:1", "team/fn:1").await.unwrap_err().kind, Kind::Denied);
    let denied = host.push_by("fn:1", "team/fn:1", account("wrong-word")).await.unwrap_err();
    assert!(denied.kind == Kind::Denied && !denied.why.contains("wrong-word"), "{denied}");
    assert_eq!(host.push_by("fn:1", "team/fn:1", account("anns-word")).await.unwrap().layers, layers(0, 0, 0, 2));
}

#[tokio::test]
async fn ten_who_ask_are_one_push_and_the_same_of_another_is_not() {
    let host = Host::new(true).await;
    let outcomes = futures::future::join_all((0..10).map(|_| host.push("fn:1", "team/fn:1"))).await;
    assert!(outcomes.iter().all(|outcome| outcome == &outcomes[0] && outcome.is_ok()), "{outcomes:?}");
    assert_eq!(host.registry.count("PUT /v2/team/fn/manifests"), 1);
}

#[tokio::test]
async fn two_at_once_that_share_a_layer_send_it_once() {
    let host = Host::new(true).await;
    let (base, go) = (Digest::of(b"base"), Arc::new(tokio::sync::Notify::new()));
    host.registry.next(&format!("HEAD /v2/team/fn/blobs/{base}"), Trouble::After(Arc::clone(&go)));
    let target = |name| host.target(name);
    let mut first = host.pusher.push(&Source::parse("fn:1").unwrap(), &target("team/fn:1"), None).await.unwrap();
    host.registry.held.notified().await;
    let mut second = host.pusher.push(&Source::parse("fn:2").unwrap(), &target("team/fn:2"), None).await.unwrap();
    // All that it can do alone.
    second.wait_for(|told| told.progress.layers_done == 1).await.unwrap();
    go.notify_one();
    for (following, expected) in [(&mut first, layers(0, 0, 0, 2)), (&mut second, layers(1, 0, 0, 1))] {
        let told = following.wait_for(|told| told.outcome.is_some()).await.unwrap().clone();
        assert_eq!(told.outcome.unwrap().unwrap().layers, expected);
    }
    assert_eq!(host.registry.count(base.as_str()), 1, "{:?}", host.registry.taken());
    let sent = base.as_str().replace(':', "%3A");
    assert_eq!(host.registry.count(&format!("digest={sent}")), 1);
}

#[tokio::test]
async fn a_stop_cuts_off_in_mid_upload() {
    let host = Host::new(false).await;
    host.registry.next("PUT /v2/team/fn/blobs", Trouble::Silent);
    let mut following = host.pusher.push(&Source::parse("fn:1").unwrap(), &host.target("team/fn:1"), None).await.unwrap();
    host.registry.held.notified().await;
    host.pusher.close().await;
    let told = following.wait_for(|told| told.outcome.is_some()).await.unwrap().clone();
    assert_eq!(told.outcome.unwrap().unwrap_err().kind, Kind::Stopping);
    assert!(host.registry.state.lock().manifests.is_empty());
    assert_eq!(host.spooled(), 0, "the store for one push goes with it");
    assert_eq!(host.push("fn:1", "team/fn:2").await.unwrap_err().kind, Kind::Stopping, "and those to come");
}

#[tokio::test]
async fn what_is_not_here_or_somebodys_own_is_not_pushed() {
    let host = Host::new(true).await;
    assert_eq!(host.push("none:1", "team/fn:1").await.unwrap_err().kind, Kind::Unknown);
    let id = host.world.engine().image_id("fn:1").await.unwrap().unwrap();
    host.world.engine().tag_image(&id, PRIVATE, id.bare()).await.unwrap();
    for source in ["fn:1", id.as_str()] {
        assert_eq!(host.push(source, "team/fn:1").await.unwrap_err().kind, Kind::Private);
    }
    assert_eq!(host.registry.taken(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_of_the_store_needs_no_engine_and_one_by_its_id_no_place_there() {
    let host = Host::new(true).await;
    let store = Store::open(&host.dir.path().join("store"), Options::default()).unwrap();
    let imported = store.import_tar(&archive("stored:1", &[b"three", b"three"])[..], None).unwrap();
    let pushed = host.push("stored:1", "team/fn:3").await.unwrap();
    assert_eq!((&pushed.digest, pushed.layers), (&imported[0].manifest, layers(0, 0, 0, 1)), "a layer that is there twice is one");
    assert_eq!(host.push(imported[0].id.as_str(), "team/fn:4").await.unwrap().layers, layers(1, 0, 0, 0));
    assert_eq!(host.world.count(Operation::SaveImage), 0);

    let id = host.world.engine().image_id("fn:1").await.unwrap().unwrap();
    host.push(id.as_str(), "team/fn:1").await.unwrap();
    assert_eq!((store.images().unwrap().len(), host.spooled()), (1, 0), "nobody could name it there");
    host.push("fn:1", "team/fn:1").await.unwrap();
    assert_eq!(store.image("fn:1").unwrap().unwrap().id.as_str(), id.as_str());
}

#[tokio::test]
async fn what_was_seen_is_asked_for_again_when_its_time_is_up() {
    let host = Host::with(true, |settings| settings.fresh_for = Duration::ZERO).await;
    host.push("fn:1", "team/fn:1").await.unwrap();
    assert_eq!(host.push("fn:1", "team/fn:1").await.unwrap().layers, layers(0, 0, 2, 0));
}
