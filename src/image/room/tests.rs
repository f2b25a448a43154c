//! With the fake engine and a paused clock: what goes when, and what stays.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use proptest::prelude::*;
use tokio::task::JoinSet;

use super::plan::Stays;
use super::*;
use crate::engine::ErrorClass;
use crate::engine::ImageId;
use crate::engine::fake::{FakeWorld, Fault, Operation, Phase};
use crate::image::Images;
use crate::image::cache::{Cache, Ensured, Failure, Kind};
use crate::image::placeholder::{Arch, Archive};
use crate::image::pull::CredentialSource;
use crate::image::reference::Reference;
use crate::image::store::{Options, Store};

const MINUTE: Duration = Duration::from_secs(60);

/// Each image takes 1000 bytes, unless it says something else.
struct Host {
    world: Arc<FakeWorld>,
    images: Images,
    dir: tempfile::TempDir,
    running: JoinSet<()>,
    stop: CancellationToken,
}

fn settings(room: u64) -> config::Images {
    config::Images { room, hold: 10 * MINUTE, failed_for: Duration::from_millis(1), ..config::Images::default() }
}

impl Host {
    fn new(settings: config::Images) -> Self {
        Self::again(FakeWorld::new(1), settings, tempfile::tempdir().unwrap())
    }

    /// The next daemon on the same engine, with the same file.
    fn again(world: Arc<FakeWorld>, settings: config::Images, dir: tempfile::TempDir) -> Self {
        let settings = config::Images { store: dir.path().join("store"), ..settings };
        let cache = Cache::new(world.engine(), CredentialSource::new(Vec::new(), None), settings.clone(), config::Backoff::default());
        let images = Images::new(cache, world.engine(), &settings);
        images.room.recorded_in(File::beside(&settings.store, "test"));
        Self { world, images, dir, running: JoinSet::new(), stop: CancellationToken::new() }
    }

    fn run(mut self) -> Self {
        self.running.spawn(self.images.room.clone().run(self.stop.clone()));
        self
    }

    async fn ensure(&self, name: &str) -> Result<Ensured, Failure> {
        let mut following = self.images.cache.ensure(&Reference::parse(name).unwrap(), None);
        let told = following.wait_for(|told| told.outcome.is_some()).await.unwrap();
        told.outcome.clone().unwrap()
    }

    /// From a registry, where it was not.
    async fn fetched(&self, name: &str) -> ImageId {
        self.world.publish_image(name, None);
        let ensured = self.ensure(name).await.unwrap();
        assert!(ensured.fetched);
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensured.id
    }

    async fn has(&self, name: &str) -> bool {
        self.world.engine().image(name).await.unwrap().is_some()
    }

    async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.world.engine().image_sizes().await.unwrap().into_iter().flat_map(|image| image.image.tags).collect();
        names.sort();
        names
    }

    async fn prune(&self, room: u64) -> Vec<(String, Outcome)> {
        told(&self.images.room.prune(Some(room), false).await.unwrap())
    }
}

fn told(swept: &Swept) -> Vec<(String, Outcome)> {
    let mut rows: Vec<(String, Outcome)> =
        swept.rows.iter().map(|row| (row.names.first().cloned().unwrap_or_default(), row.outcome.clone())).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_for_the_longest_ago_goes_once_nobody_is_about_to_use_it() {
    let host = Host::new(settings(2500)).run();
    for name in ["reg:5000/a:1", "reg:5000/b:1", "reg:5000/c:1"] {
        host.fetched(name).await;
    }
    tokio::time::sleep(5 * MINUTE).await;
    assert_eq!(host.names().await.len(), 3, "all of them are held");
    host.ensure("reg:5000/a:1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(24 * 60)).await;
    assert_eq!(host.names().await, ["reg:5000/a:1", "reg:5000/c:1"], "down to nine tenths of 2500, and a was asked for after b");
    assert_eq!(host.world.count(Operation::RemoveImage), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_brings_something_makes_room_for_it_at_once() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(2500) }).run();
    for name in ["reg:5000/a:1", "reg:5000/b:1"] {
        host.fetched(name).await;
    }
    let began = Instant::now();
    host.fetched("reg:5000/c:1").await;
    assert_eq!((host.names().await, began.elapsed()), (vec!["reg:5000/b:1".to_owned(), "reg:5000/c:1".into()], Duration::from_secs(1)));
    let measured = host.world.count(Operation::ImageSizes);
    host.ensure("reg:5000/c:1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.world.count(Operation::ImageSizes), measured, "nothing came");
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nothing_is_measured_and_a_reload_changes_that() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(0) }).run();
    for name in ["reg:5000/a:1", "reg:5000/b:1"] {
        host.fetched(name).await;
    }
    tokio::time::sleep(60 * MINUTE).await;
    assert_eq!(host.world.count(Operation::ImageSizes), 0);
    assert_eq!(host.images.room.prune(None, true).await, Err(PruneError::NoLimit));
    host.images.room.reconfigure(&config::Images { hold: Duration::ZERO, ..settings(1000) });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.names().await, [""; 0], "a thousand is more than nine tenths of it");
}

#[tokio::test(start_paused = true)]
async fn each_stays_for_its_reason() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(0) });
    let held = host.fetched("reg:5000/held:1").await;
    for name in ["reg:5000/used:1", "reg:5000/named:1", "reg:5000/old:1", "reg:5000/pinned:1"] {
        host.fetched(name).await;
    }
    let id = |name: &'static str| async { host.world.engine().image_id(name).await.unwrap().unwrap() };
    host.world.use_image(&id("reg:5000/used:1").await).unwrap();
    host.world.engine().tag_image(&id("reg:5000/named:1").await, "mine", "1").await.unwrap();
    host.world.put_image("foreign:1");
    host.ensure("foreign:1").await.unwrap();
    host.world.put_image("nspool.local/placeholder:0123456789ab");
    host.images.room.pinned_by(|| vec!["reg:5000/pinned:1".into()]);
    host.images.room.uses().set_hold(MINUTE);
    host.ensure("reg:5000/held:1").await.unwrap();
    let stays = Outcome::Stays;
    let expected = [
        ("foreign:1", stays(Stays::Held)),
        ("mine:1", stays(Stays::NotOurs)),
        ("nspool.local/placeholder:0123456789ab", stays(Stays::Pinned)),
        ("reg:5000/held:1", stays(Stays::Held)),
        ("reg:5000/old:1", Outcome::WouldGo),
        ("reg:5000/pinned:1", stays(Stays::Pinned)),
        ("reg:5000/used:1", stays(Stays::InUse)),
    ];
    let expected = |last: Outcome| {
        expected.clone().map(|(name, outcome)| (name.to_owned(), if outcome == Outcome::WouldGo { last.clone() } else { outcome }))
    };
    // Of the foreign one it is known that somebody asked for it.
    host.ensure("foreign:1").await.unwrap();
    assert_eq!(told(&host.images.room.prune(Some(0), true).await.unwrap()), expected(Outcome::WouldGo));
    assert!(host.has("reg:5000/old:1").await, "nothing was done");
    assert_eq!(host.prune(0).await, expected(Outcome::Removed));
    assert!(!host.has("reg:5000/old:1").await && host.has(held.as_str()).await);
    tokio::time::sleep(2 * MINUTE).await;
    let later = host.prune(0).await;
    assert_eq!(later[0], ("foreign:1".to_owned(), stays(Stays::NotOurs)));
    assert_eq!(later[3], ("reg:5000/held:1".to_owned(), Outcome::Removed));
}

#[tokio::test(start_paused = true)]
async fn what_is_others_goes_by_its_age_when_the_operator_says_so() {
    let host = Host::new(config::Images { room_for_others: true, hold: Duration::ZERO, ..settings(0) });
    for name in ["one:1", "two:1", "three:1"] {
        host.world.put_image(name);
    }
    host.ensure("one:1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = host.prune(1000).await;
    assert_eq!(first[0], ("one:1".to_owned(), Outcome::Removed), "the only one that anybody knows of: {first:?}");
    assert_eq!(first[1].1, Outcome::Stays(Stays::NotKnown), "for a while nobody knows who uses the rest");
    tokio::time::sleep(NOT_KNOWN_FOR).await;
    host.ensure("two:1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.prune(1000).await, [("three:1".to_owned(), Outcome::Removed), ("two:1".to_owned(), Outcome::Fits)]);
}

#[tokio::test(start_paused = true)]
async fn a_hold_and_the_order_outlive_the_daemon_and_a_lost_file_keeps_all() {
    let host = Host::new(settings(0)).run();
    for name in ["reg:5000/a:1", "reg:5000/b:1"] {
        host.fetched(name).await;
    }
    host.images.close().await;
    let Host { world, dir, .. } = host;
    let host = Host::again(world, config::Images { hold: Duration::from_secs(1), ..settings(0) }, dir);
    // The wall's clock has not moved meanwhile; what was held for longer than anybody would now is held for that long.
    host.images.room.uses().set_hold(10 * MINUTE);
    assert!(host.prune(0).await.iter().all(|(_, outcome)| *outcome == Outcome::Stays(Stays::Held)));
    tokio::time::sleep(11 * MINUTE).await;
    let built = host.world.put_image(&format!("nspool.local/build:{}", "7".repeat(64)));
    assert_eq!(host.prune(2000).await[1], ("reg:5000/a:1".to_owned(), Outcome::Removed));
    host.images.close().await;
    let Host { world, dir, .. } = host;
    let path = File::beside(&dir.path().join("store"), "test").path();
    assert!(path.exists());
    std::fs::write(&path, "garbage").unwrap();
    let host = Host::again(world, settings(0), dir);
    let kept = host.prune(0).await;
    assert_eq!(kept[0].1, Outcome::Stays(Stays::NotKnown), "it came by us, and nobody knows when it was used");
    assert_eq!(kept[1].1, Outcome::Stays(Stays::NotOurs), "nobody knows that it did");
    tokio::time::sleep(NOT_KNOWN_FOR + MINUTE).await;
    assert_eq!(host.prune(0).await[0].1, Outcome::Removed);
    assert!(!host.has(built.as_str()).await);
}

#[tokio::test(start_paused = true)]
async fn after_a_daemon_that_was_killed_everything_is_held_once() {
    let host = Host::new(config::Images { hold: Duration::from_secs(2), ..settings(0) }).run();
    host.fetched("reg:5000/a:1").await;
    tokio::time::sleep(MINUTE).await;
    // Not closed: a daemon that is no more.
    let Host { world, dir, .. } = host;
    let host = Host::again(world, settings(0), dir);
    assert_eq!(host.prune(0).await[0].1, Outcome::Stays(Stays::Held), "its hold is over, and its last answer may not be written down");
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(host.prune(0).await[0].1, Outcome::Removed, "it came by the one before");
}

#[tokio::test(start_paused = true)]
async fn while_slots_are_filled_nothing_goes_by_itself() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(1500) }).run();
    let short = Arc::new(AtomicBool::new(true));
    let says = Arc::clone(&short);
    host.images.cache.places().spare_while(move || says.load(Ordering::Relaxed));
    for name in ["reg:5000/a:1", "reg:5000/b:1"] {
        host.fetched(name).await;
    }
    tokio::time::sleep(60 * MINUTE).await;
    assert_eq!(host.names().await.len(), 2);
    assert!(!host.images.room.make_space().await);
    short.store(false, Ordering::Relaxed);
    tokio::time::sleep(ASK_EVERY + Duration::from_secs(1)).await;
    assert_eq!(host.names().await, ["reg:5000/b:1"]);
    short.store(true, Ordering::Relaxed);
    assert_eq!(host.prune(0).await, [("reg:5000/b:1".to_owned(), Outcome::Removed)], "an operator says so");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_worth_another_attempt_when_something_went() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(1000) });
    let full = |host: &Host| host.world.script(Operation::PullImage, Fault::Error(ErrorClass::DiskFull, "no space left on device".into()));
    host.world.publish_image("reg:5000/new:1", None);
    full(&host);
    assert_eq!(host.ensure("reg:5000/new:1").await.unwrap_err().kind, Kind::DiskFull, "nothing is there to go");
    assert_eq!(host.world.count(Operation::PullImage), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    host.fetched("reg:5000/old:1").await;
    full(&host);
    assert!(host.ensure("reg:5000/new:1").await.unwrap().fetched);
    assert_eq!((host.names().await, host.world.count(Operation::PullImage)), (vec!["reg:5000/new:1".to_owned()], 4));
    tokio::time::sleep(Duration::from_secs(1)).await;
    host.world.publish_image("reg:5000/large:1", None);
    full(&host);
    full(&host);
    assert_eq!(host.ensure("reg:5000/large:1").await.unwrap_err().kind, Kind::DiskFull);
    assert_eq!(host.world.count(Operation::PullImage), 6, "one more attempt, not more");
}

#[tokio::test(start_paused = true)]
async fn there_is_one_sweep_at_a_time() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(1000) });
    for name in ["reg:5000/a:1", "reg:5000/b:1", "reg:5000/c:1"] {
        host.fetched(name).await;
    }
    for operation in [Operation::ImageSizes, Operation::RemoveImage, Operation::List] {
        host.world.set_latency(operation, Duration::from_secs(3));
    }
    let (now, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (counts, highest) = (Arc::clone(&now), Arc::clone(&most));
    host.world.on_call(move |call| {
        if [Operation::ImageSizes, Operation::RemoveImage].contains(&call.operation) {
            match call.phase {
                Phase::Begun => drop(highest.fetch_max(counts.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed)),
                Phase::Answered => drop(counts.fetch_sub(1, Ordering::Relaxed)),
            }
        }
    });
    let room = &host.images.room;
    let (one, other, space) = tokio::join!(room.prune(Some(2000), false), room.prune(Some(0), false), room.make_space());
    assert_eq!((one.unwrap().removed(), other.unwrap().removed(), space), (1, 2, false));
    assert_eq!((most.load(Ordering::Relaxed), now.load(Ordering::Relaxed)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_an_image_that_is_going_gets_one_that_is_here() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(1000) });
    host.fetched("reg:5000/a:1").await;
    host.images.room.uses().set_hold(10 * MINUTE);
    host.world.set_latency(Operation::RemoveImage, Duration::from_secs(5));
    let asks = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        host.ensure("reg:5000/a:1").await
    };
    let (gone, ensured) = tokio::join!(host.prune(0), asks);
    assert_eq!(gone, [("reg:5000/a:1".to_owned(), Outcome::Removed)]);
    let ensured = ensured.unwrap();
    assert!(ensured.fetched && host.has(ensured.id.as_str()).await, "{ensured:?}");
    assert_eq!(host.prune(0).await[0].1, Outcome::Stays(Stays::Held));
}

#[tokio::test(start_paused = true)]
async fn what_the_engine_keeps_keeps_its_names_and_is_answered() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(1000) });
    let id = host.fetched("reg:5000/a:1").await;
    host.world.publish_image("reg:5000/b:1", None);
    host.world.engine().tag_image(&id, "reg:5000/b", "1").await.unwrap();
    host.ensure("reg:5000/b:1").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // In the moment between the plan and the removal.
    let (world, used) = (Arc::clone(&host.world), id.clone());
    let once = AtomicBool::new(false);
    host.world.on_call(move |call| {
        if call.operation == Operation::RemoveImage && call.phase == Phase::Answered && !once.swap(true, Ordering::Relaxed) {
            world.use_image(&used).unwrap();
        }
    });
    let kept = host.prune(0).await;
    assert!(matches!(&kept[0].1, Outcome::Kept(words) if words.contains("is using it")), "{kept:?}");
    assert_eq!(host.names().await, ["reg:5000/a:1", "reg:5000/b:1"]);
    assert!(!host.ensure("reg:5000/a:1").await.unwrap().fetched);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_written_is_a_metric_and_no_failure() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _local = metrics::set_default_local_recorder(&recorder);
    let host = Host::new(settings(0)).run();
    std::fs::write(host.dir.path().join("images-used"), "in the way").unwrap();
    host.fetched("reg:5000/a:1").await;
    tokio::time::sleep(MINUTE).await;
    assert!(recorder.handle().render().contains("nspool_image_uses_failing 1"), "{}", recorder.handle().render());
    std::fs::remove_file(host.dir.path().join("images-used")).unwrap();
    tokio::time::sleep(2 * MINUTE).await;
    assert!(recorder.handle().render().contains("nspool_image_uses_failing 0"));
    let written = std::fs::read_to_string(host.dir.path().join("images-used/test.json")).unwrap();
    assert!(written.contains("reg:5000/a:1"), "{written}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_answer_is_an_error_and_nothing_goes() {
    let host = Host::new(config::Images { hold: Duration::ZERO, ..settings(1000) });
    host.fetched("reg:5000/a:1").await;
    for operation in [Operation::ImageSizes, Operation::List] {
        host.world.script(operation, Fault::Error(ErrorClass::Unknown, "EOF".into()));
        assert!(matches!(host.images.room.prune(Some(0), false).await, Err(PruneError::Engine(_))));
    }
    host.world.script(Operation::RemoveImage, Fault::Unknown { done: true });
    assert!(matches!(host.prune(0).await[0].1, Outcome::Failed(_)));
    assert!(host.ensure("reg:5000/a:1").await.unwrap().fetched, "it was done all the same, and is fetched anew");
}

/// Archives of some kilobytes, each another image.
fn stored(store: &Store, name: &str, bytes: usize) -> ImageId {
    let data: Vec<u8> = std::iter::repeat_with(|| random::dice().u8(..)).take(bytes).collect();
    let archive = Archive::build(&data, Arch::NATIVE).unwrap();
    let images = store.import_tar(archive.bytes(), Some(&Reference::parse(name).unwrap())).unwrap();
    ImageId::from(images[0].id.as_str())
}

#[tokio::test(start_paused = true)]
async fn the_store_is_swept_in_the_same_way() {
    let host = Host::new(settings(0)).run();
    let root = host.dir.path().join("store");
    let store = Store::open(&root, Options::default()).unwrap();
    for name in ["reg:5000/a:1", "reg:5000/b:1", "reg:5000/c:1"] {
        stored(&store, name, 15_000);
    }
    let size = store.images().unwrap()[0].size;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!host.ensure("reg:5000/a:1").await.unwrap().fetched, "it is loaded from there");
    host.images.room.reconfigure(&config::Images { store_room: size * 5 / 2, ..settings(0) });
    let names = || {
        let mut left: Vec<String> = store.images().unwrap().into_iter().flat_map(|image| image.names).collect();
        left.sort();
        left
    };
    while names().len() == 3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(names(), ["reg:5000/a:1", "reg:5000/c:1"], "the first that came and that nobody asked for");
    // The sweep of blobs follows the name.
    drop(host.images.room.0.turn.lock().await);
    let blobs: u64 = std::fs::read_dir(root.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
    assert!(blobs <= size * 9 / 4, "{blobs} bytes are there");
    assert!(store.verify().unwrap().faults.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// However callers and sweeps meet: what was answered is there when the caller creates from it, within the hold.
    #[test]
    fn what_was_answered_is_there(asks in prop::collection::vec((0..2_usize, 0..60_u64), 4..12), sweeps in prop::collection::vec(0..60_u64, 6..20)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let host = Host::new(config::Images { hold: Duration::from_secs(2), ..settings(0) });
            for (operation, seconds) in [(Operation::RemoveImage, 2), (Operation::PullImage, 3), (Operation::Image, 1), (Operation::ImageSizes, 1)] {
                host.world.set_latency(operation, Duration::from_secs(seconds));
            }
            let names = ["reg:5000/a:1", "reg:5000/b:1"];
            for name in names {
                host.world.publish_image(name, None);
            }
            let ask = |(which, at): (usize, u64)| {
                let host = &host;
                async move {
                    tokio::time::sleep(Duration::from_secs(at)).await;
                    let ensured = host.ensure(names[which]).await.unwrap();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    host.world.use_image(&ensured.id).map(|container| host.world.remove_by_hand(container.as_str()))
                }
            };
            let sweep = |at: u64| {
                let host = &host;
                async move {
                    tokio::time::sleep(Duration::from_secs(at)).await;
                    host.prune(0).await;
                }
            };
            let (created, _) = tokio::join!(
                futures::future::join_all(asks.into_iter().map(ask)),
                futures::future::join_all(sweeps.into_iter().map(sweep)),
            );
            assert!(created.iter().all(Result::is_ok), "{created:?}");
        });
    }
}
