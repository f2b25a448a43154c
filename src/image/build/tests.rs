//! With the fake engine and a paused clock: one build for all, what is reused and when it is not, what changes meanwhile, and how it ends otherwise.

use std::time::Duration;

use futures::future::join_all;
use tempfile::TempDir;
use tokio::time::Instant;

use super::building::ATTEMPTS;
use super::*;
use crate::engine::ErrorClass;
use crate::engine::fake::{Containers, Events, FakeWorld, Fault, Operation};
use crate::image::pull::CredentialSource;

const BASE: &str = "reg:5000/base:1";
const BUILD: Duration = Duration::from_secs(60);

struct Host {
    world: Arc<FakeWorld>,
    cache: Cache,
    builds: Builds,
    dir: TempDir,
}

fn settings() -> config::Images {
    config::Images { build_timeout: Duration::from_secs(600), ..config::Images::default() }
}

fn host_with(settings: &config::Images) -> Host {
    let world = FakeWorld::new(1);
    world.set_latency(Operation::BuildImage, BUILD);
    world.publish_image(BASE, None);
    let cache = Cache::new(world.engine(), CredentialSource::new(Vec::new(), None), settings.clone(), config::Backoff::default());
    let builds = Builds::new(world.engine(), cache.clone(), settings.clone());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), format!("FROM {BASE}\nCOPY a /a\n")).unwrap();
    std::fs::write(dir.path().join("a"), "1").unwrap();
    Host { world, cache, builds, dir }
}

fn host() -> Host {
    host_with(&settings())
}

fn kind<T>(outcome: &Result<T, Failure>) -> Option<Kind> {
    outcome.as_ref().err().map(|failure| failure.kind)
}

impl Host {
    fn definition(&self) -> Definition {
        Definition {
            context: Context::Folder { path: self.dir.path().to_owned(), identity: None },
            dockerfile: "Dockerfile".into(),
            content: None,
            target: String::new(),
            args: BTreeMap::new(),
            platform: String::new(),
            anew: false,
        }
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.dir.path().join(name), content).unwrap();
    }

    async fn build(&self) -> Result<Built, Failure> {
        self.over(self.definition()).await
    }

    async fn over(&self, definition: Definition) -> Result<Built, Failure> {
        over(self.builds.enter().unwrap().begin(definition)).await.map(|(built, _)| built)
    }

    async fn has_base(&self) {
        self.cache.ensure(&Reference::parse(BASE).unwrap(), None).wait_for(|told| told.outcome.is_some()).await.unwrap();
    }

    fn built(&self) -> u64 {
        self.world.count(Operation::BuildImage)
    }
}

async fn over(mut building: Building) -> Result<(Built, Vec<String>), Failure> {
    let mut printed = Vec::new();
    loop {
        match building.next().await? {
            Event::Log { lines, .. } => printed.extend(lines.iter().map(ToString::to_string)),
            Event::Built(built) => return Ok((built, printed)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_is_built_once_and_found_again() {
    let host = host();
    let (first, printed) = over(host.builds.enter().unwrap().begin(host.definition())).await.unwrap();
    assert!(!first.reused);
    assert_eq!(printed, ["Step 1/1 : FROM scratch", "done"]);
    let again = host.build().await.unwrap();
    assert_eq!(again, Built { reused: true, ..first.clone() });
    // Another daemon, on the same engine.
    let other = Builds::new(host.world.engine(), host.cache.clone(), settings());
    assert_eq!(over(other.enter().unwrap().begin(host.definition())).await.unwrap().0, again);
    assert_eq!((host.built(), host.world.count(Operation::PullImage)), (1, 1));
    let image = host.world.engine().image(&first.name()).await.unwrap().unwrap();
    assert_eq!((image.id, image.labels.get(KEY_LABEL)), (first.id, Some(&first.key.to_string())));
}

#[tokio::test(start_paused = true)]
async fn what_is_as_it_was_takes_the_time_of_one_question() {
    let host = host();
    let first = host.build().await.unwrap();
    host.world.set_latency(Operation::Image, Duration::from_secs(1));
    let tar = || Definition { context: Context::Tar(tar_of(host.dir.path(), None, 1 << 20).unwrap()), ..host.definition() };
    for definition in [host.definition(), tar()] {
        let (began, asked) = (Instant::now(), host.world.count(Operation::Image));
        assert_eq!(host.over(definition).await.unwrap(), Built { reused: true, ..first.clone() });
        assert_eq!((began.elapsed().as_secs(), host.world.count(Operation::Image) - asked), (1, 2), "its image and its base, at once");
    }
    // Known by another definition.
    host.write("a", "2");
    let (began, second) = (Instant::now(), host.build().await.unwrap());
    assert!(!second.reused && began.elapsed() > BUILD);
    host.write("a", "1");
    let began = Instant::now();
    assert_eq!(host.build().await.unwrap(), Built { reused: true, ..first });
    assert_eq!(began.elapsed().as_secs(), 2, "it was looked for in the wrong place, and its base in the right one");
}

#[tokio::test(start_paused = true)]
async fn a_guess_brings_nothing() {
    let host = host();
    host.build().await.unwrap();
    assert_eq!(host.world.count(Operation::PullImage), 1);
    host.world.image_removed(BASE);
    host.write("Dockerfile", "FROM scratch\nCOPY a /a\n");
    host.build().await.unwrap();
    assert_eq!(host.world.count(Operation::PullImage), 1, "what nobody builds from any more");
    host.write("Dockerfile", &format!("FROM {BASE}\nCOPY a /a\n"));
    host.build().await.unwrap();
    assert_eq!(host.world.count(Operation::PullImage), 2);
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_another_image() {
    let host = host();
    let first = host.build().await.unwrap();
    let mut definitions = vec![Definition { args: BTreeMap::from([("A".into(), "1".into())]), ..host.definition() }];
    definitions.push(Definition { platform: "linux/arm64".into(), ..host.definition() });
    definitions.push(Definition { target: "0".into(), ..host.definition() });
    definitions.push(Definition { content: Some(format!("FROM {BASE}\n")), ..host.definition() });
    for definition in definitions {
        let built = host.over(definition).await.unwrap();
        assert!(!built.reused && built.key != first.key && built.id != first.id);
    }
    host.write("a", "2");
    assert!(!host.build().await.unwrap().reused);
    host.write("a", "1");
    assert_eq!(host.build().await.unwrap(), Built { reused: true, ..first });
    let anew = host.over(Definition { anew: true, ..host.definition() }).await.unwrap();
    assert!(!anew.reused);
    assert_eq!(host.build().await.unwrap().id, anew.id, "it has taken the name");
}

#[tokio::test(start_paused = true)]
async fn a_tar_of_the_folder_is_the_same_image() {
    let host = host();
    let first = host.build().await.unwrap();
    let tar = tar_of(host.dir.path(), Some("Dockerfile"), u64::MAX).unwrap();
    let by_tar = host.over(Definition { context: Context::Tar(tar), ..host.definition() }).await.unwrap();
    assert_eq!(by_tar, Built { reused: true, ..first });
}

#[tokio::test(start_paused = true)]
async fn ten_callers_are_one_build_whoever_goes_away() {
    let host = host();
    let others = join_all((0..10).map(|_| host.build()));
    let leaving = async {
        let mut building = host.builds.enter().unwrap().begin(host.definition());
        let left = tokio::time::timeout(BUILD / 2, async { while building.next().await.is_ok() {} }).await;
        assert!(left.is_err());
    };
    let ((), outcomes) = tokio::join!(leaving, others);
    let one = outcomes[0].clone().unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.as_ref() == Ok(&one)), "{outcomes:?}");
    assert_eq!((host.built(), host.world.count(Operation::PullImage)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_build_goes_on_when_all_have_gone() {
    let host = host();
    let mut building = host.builds.enter().unwrap().begin(host.definition());
    assert!(tokio::time::timeout(BUILD / 2, async { while building.next().await.is_ok() {} }).await.is_err());
    drop(building);
    tokio::time::sleep(BUILD).await;
    let found = host.build().await.unwrap();
    assert!(found.reused);
    assert_eq!(host.built(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_gone_is_built_again() {
    let host = host();
    let first = host.build().await.unwrap();
    host.world.image_removed(&first.name());
    let second = host.build().await.unwrap();
    assert!(!second.reused && second.id != first.id);
    // Another image has the name: not ours, whatever it is called.
    let engine = host.world.engine();
    let (repository, tag) = (REPOSITORY, first.key.to_string());
    let foreign = host.world.put_image("foreign:1");
    engine.tag_image(&foreign, repository, &tag).await.unwrap();
    let third = host.build().await.unwrap();
    assert!(!third.reused && third.id != foreign);
}

#[tokio::test(start_paused = true)]
async fn a_base_that_moves_while_it_is_built_upon_begins_anew() {
    let host = host();
    host.has_base().await;
    let engine = host.world.engine();
    let build = host.build();
    let move_on = async {
        tokio::time::sleep(BUILD / 2).await;
        let other = host.world.put_image("other:1");
        engine.tag_image(&other, "reg:5000/base", "1").await.unwrap();
    };
    let (built, ()) = tokio::join!(build, move_on);
    let built = built.unwrap();
    assert_eq!((built.reused, host.built()), (false, 2));
    assert_eq!(host.build().await.unwrap(), Built { reused: true, ..built }, "it is that of the base as it is now");
}

#[tokio::test(start_paused = true)]
async fn a_context_that_never_holds_still_is_given_up() {
    let host = host_with(&config::Images { concurrent: 1, ..settings() });
    host.has_base().await;
    let place_soon = async || host.cache.places().acquire(Instant::now() + BUILD).await;
    let mut place = place_soon().await;
    let change = async {
        for number in 0..ATTEMPTS {
            // It was surveyed, and waits for its turn to be packed.
            tokio::time::sleep(Duration::from_secs(1)).await;
            host.write("a", &format!("changed {number}"));
            drop(place.take());
            place = place_soon().await;
        }
    };
    let (outcome, ()) = tokio::join!(host.build(), change);
    assert_eq!(outcome.unwrap_err(), Failure::new(Kind::Failed, "the context changed while it was built from, 3 times"));
    assert_eq!(host.built(), 0);
    drop(place);
    assert!(!host.build().await.unwrap().reused);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_build_is_told_with_its_place() {
    let host = host();
    host.write("Dockerfile", "FROM x\nFORM y\n");
    assert_eq!(host.build().await.unwrap_err(), Failure::new(Kind::Invalid, "Dockerfile: line 2: unknown instruction: FORM"));
    host.write("Dockerfile", "FROM scratch\n");
    let refused = host.over(Definition { target: "prod".into(), ..host.definition() }).await.unwrap_err();
    assert_eq!(refused, Failure::new(Kind::Invalid, "Dockerfile: there is no stage \"prod\""));
    host.write(".dockerignore", "[");
    assert_eq!(host.build().await.unwrap_err().kind, Kind::Invalid);
    let nowhere = Definition { context: Context::Folder { path: "/nowhere".into(), identity: None }, ..host.definition() };
    let failed = host.over(nowhere).await.unwrap_err();
    assert_eq!((failed.kind, failed.why.contains("/nowhere")), (Kind::ContextUnreadable, true));
    host.write(".dockerignore", "");
    host.write("Dockerfile", "FROM reg:5000/none:1\n");
    let failed = host.build().await.unwrap_err();
    assert_eq!(failed.kind, Kind::Unknown);
    assert!(failed.why.starts_with("FROM reg:5000/none:1: "), "{failed}");
    assert_eq!(host.built(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_fails_or_is_late_says_why_and_is_tried_again() {
    let host = host();
    let words = "The command '/bin/sh -c false' returned a non-zero code: 1";
    host.world.script(Operation::BuildImage, Fault::Error(ErrorClass::Refused, words.into()));
    assert_eq!(host.build().await.unwrap_err(), Failure::new(Kind::BuildFailed, words));
    host.world.script(Operation::BuildImage, Fault::Never);
    let late = host.build().await.unwrap_err();
    assert_eq!(late, Failure::new(Kind::BuildFailed, "not built within 10m ([images] build_timeout)"));
    host.world.engine_away();
    assert_eq!(host.build().await.unwrap_err().kind, Kind::EngineAway);
    host.world.engine_back(Containers::Kept, Events::Lost);
    assert!(!host.build().await.unwrap().reused);
}

#[tokio::test(start_paused = true)]
async fn a_build_that_missed_an_image_which_has_just_gone_is_begun_anew() {
    let host = host();
    let missed = || Fault::Error(ErrorClass::ImageMissing, "getting top layer info: layer not known".into());
    host.world.script(Operation::BuildImage, missed());
    assert!(!host.build().await.unwrap().reused);
    host.write("a", "something else");
    for _ in 0..ATTEMPTS {
        host.world.script(Operation::BuildImage, missed());
    }
    let failed = host.build().await.unwrap_err();
    assert_eq!(
        failed,
        Failure::new(
            Kind::Failed,
            "what the engine has (getting top layer info: layer not known) changed while it was built from, 3 times"
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_builds_and_those_to_come() {
    let host = host();
    let building = over(host.builds.enter().unwrap().begin(host.definition()));
    let stop = async {
        tokio::time::sleep(BUILD / 2).await;
        host.builds.close().await;
    };
    let (outcome, ()) = tokio::join!(building, stop);
    assert_eq!(kind(&outcome), Some(Kind::Stopping));
    assert_eq!(kind(&host.build().await), Some(Kind::Stopping));
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_known_from_one_listing_and_kept_true() {
    let host = host();
    let first = host.build().await.unwrap();
    assert_eq!(host.builds.rows(), None, "nobody has listed");
    let stop = CancellationToken::new();
    let other = Builds::new(host.world.engine(), host.cache.clone(), settings());
    let run = other.clone().run(stop.clone());
    let look = async {
        let until = async |wanted: Option<usize>| {
            while other.rows().map(|rows| rows.len()) != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        host.world.script(Operation::Images, Fault::Error(ErrorClass::Away, "away".into()));
        other.forget();
        until(None).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((other.rows(), host.world.count(Operation::Images)), (None, 1), "a list that failed is not an empty one");
        other.forget();
        until(Some(1)).await;
        host.world.image_removed(&first.name());
        other.image_gone(first.id.as_str());
        until(Some(0)).await;
        assert_eq!(host.world.count(Operation::Images), 3);
        stop.cancel();
    };
    tokio::join!(run, look);
}

#[tokio::test(start_paused = true)]
async fn no_more_may_ask_at_once_than_the_queue_has_places() {
    let host = host_with(&config::Images { queue: 2, ..settings() });
    let turns = [host.builds.enter().unwrap(), host.builds.enter().unwrap()];
    assert_eq!(kind(&host.builds.enter()), Some(Kind::Crowded));
    drop(turns);
    assert!(host.builds.enter().is_ok());
}
