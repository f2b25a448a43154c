//! With the fake engine and a paused clock: one fetch for all, whose image it is, what is told again, and when it is tried again.

use futures::FutureExt as _;
use futures::future::join_all;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::engine::fake::{FakeWorld, Fault, Operation};

const NAME: &str = "reg:5000/team/fn:1";
const PULL: Duration = Duration::from_secs(10);

struct Host {
    world: Arc<FakeWorld>,
    cache: Cache,
}

fn settings() -> config::Images {
    config::Images { failed_for: Duration::from_secs(30), ..config::Images::default() }
}

fn host_with(settings: config::Images, credentials: CredentialSource) -> Host {
    let world = FakeWorld::new(1);
    world.set_latency(Operation::PullImage, PULL);
    let cache = Cache::new(world.engine(), credentials, settings, config::Backoff::default());
    Host { world, cache }
}

/// The registry has [`NAME`], for everybody.
fn host() -> Host {
    let host = host_with(settings(), CredentialSource::new(Vec::new(), None));
    host.world.publish_image(NAME, None);
    host
}

/// The registry has [`NAME`] for Ann only.
fn private_host() -> Host {
    let host = host_with(settings(), CredentialSource::new(Vec::new(), None));
    host.world.publish_image(NAME, Some(ann()));
    host
}

fn ann() -> Credentials {
    Credentials { username: "ann".into(), secret: "anns-word".into() }
}

fn bob() -> Credentials {
    Credentials { username: "bob".into(), secret: "bobs-word".into() }
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

async fn over(mut following: level::Receiver<Told>) -> Result<Ensured, Failure> {
    let told = following.wait_for(|told| told.outcome.is_some()).await.unwrap();
    told.outcome.clone().unwrap()
}

fn kind(outcome: &Result<Ensured, Failure>) -> Option<Kind> {
    outcome.as_ref().err().map(|failure| failure.kind)
}

impl Host {
    async fn ensure(&self, name: &str, credentials: Option<Credentials>) -> Result<Ensured, Failure> {
        over(self.cache.ensure(&reference(name), credentials)).await
    }

    fn pulls(&self) -> u64 {
        self.world.count(Operation::PullImage)
    }

    fn refuse(&self, class: ErrorClass, words: &str) {
        self.world.script(Operation::PullImage, Fault::Error(class, words.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_here_is_answered_without_the_registry() {
    let host = host();
    let id = host.world.put_image("local/built:1");
    let ensured = host.ensure("local/built:1", None).await.unwrap();
    assert_eq!(ensured, Ensured { id, digest: String::new(), fetched: false, stale: None });
    assert_eq!(host.pulls(), 0);
    let [row] = &host.cache.images()[..] else { panic!("{:?}", host.cache.images()) };
    assert_eq!((row.reference.as_str(), row.private, &row.state), ("local/built:1", false, &ImageState::Present(ensured)));
}

#[tokio::test(start_paused = true)]
async fn ten_callers_at_once_are_one_pull_and_hear_the_same() {
    let host = host();
    let began = Instant::now();
    let outcomes = join_all((0..10).map(|_| host.ensure(NAME, None))).await;
    assert_eq!((host.pulls(), began.elapsed()), (1, PULL));
    let first = outcomes[0].clone().unwrap();
    assert!(first.fetched && first.digest.starts_with("sha256:"), "{first:?}");
    assert!(outcomes.iter().all(|outcome| outcome.as_ref() == Ok(&first)));
    let since = host.cache.images()[0].since;
    assert_eq!(host.ensure(NAME, None).await, Ok(Ensured { fetched: false, ..first }));
    assert_eq!((host.pulls(), host.cache.images()[0].since), (1, since));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any of the callers goes away at any time, the first included, or all of them: the fetch goes on, for those who stay and those who come.
    #[test]
    fn whoever_goes_away_ends_only_the_own_wait(leave in prop::collection::vec((any::<bool>(), 0..12_u64), 1..6), late in 0..12_u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let host = host();
            let began = Instant::now();
            let callers = leave.iter().map(|(leaves, after)| {
                let following = host.cache.ensure(&reference(NAME), None);
                async move {
                    if !*leaves {
                        return Some(over(following).await);
                    }
                    tokio::time::timeout(Duration::from_secs(*after), over(following)).await.ok()
                }
            });
            let comes_late = async {
                tokio::time::sleep(Duration::from_secs(late)).await;
                host.ensure(NAME, None).await
            };
            let (outcomes, late) = tokio::join!(join_all(callers), comes_late);
            assert!(outcomes.iter().flatten().all(Result::is_ok) && late.is_ok());
            assert!(leave.iter().zip(&outcomes).all(|((leaves, _), outcome)| *leaves || outcome.is_some()));
            assert_eq!(host.pulls(), 1);
            assert!(began.elapsed() <= Duration::from_secs(12));
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_follows_goes_on() {
    let host = host();
    drop(host.cache.ensure(&reference(NAME), None));
    tokio::time::sleep(PULL + Duration::from_secs(1)).await;
    assert!(host.cache.images().iter().all(|row| matches!(row.state, ImageState::Present(_))) && host.cache.images().len() == 1);
    assert!(host.ensure(NAME, None).await.is_ok_and(|ensured| !ensured.fetched));
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_while_it_goes_on() {
    let host = host();
    let mut following = host.cache.ensure(&reference(NAME), None);
    let under_way = following.wait_for(|told| told.progress.bytes > 0).await.unwrap().clone();
    assert_eq!(under_way.progress, Progress { attempt: 1, layers: 1, layers_done: 0, bytes: 1, bytes_total: 2 });
    assert_eq!((under_way.after, under_way.outcome), (None, None));
    assert!(matches!(host.cache.images()[0].state, ImageState::Fetching));
    let done = following.wait_for(|told| told.outcome.is_some()).await.unwrap().clone();
    assert_eq!((done.progress.layers_done, done.progress.bytes), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn what_ann_may_pull_is_not_thereby_bobs_nor_everybodys() {
    let host = private_host();
    let anns = host.ensure(NAME, Some(ann())).await.unwrap();
    for (credentials, what) in
        [(Some(bob()), "another's"), (None, "none"), (Some(Credentials { secret: "wrong".into(), ..ann() }), "wrong")]
    {
        assert_eq!(kind(&host.ensure(NAME, credentials).await), Some(Kind::Denied), "{what}");
    }
    // By another spelling either.
    let other = format!("{}@{}", NAME.trim_end_matches(":1"), anns.digest);
    assert!(host.ensure(&other, None).await.is_err());
    let again = host.ensure(NAME, Some(ann())).await;
    assert_eq!(again, Ok(anns.clone()), "the registry was asked again");
    assert!(host.cache.images().iter().any(|row| row.private) && host.cache.failures().len() == 4);

    // Nor to the next daemon, which remembers nothing.
    let next = Cache::new(host.world.engine(), CredentialSource::new(Vec::new(), None), settings(), config::Backoff::default());
    assert_eq!(kind(&over(next.ensure(&reference(NAME), None)).await), Some(Kind::Denied));
    // Until the operator gives it to all.
    host.world.image_removed(&format!("{PRIVATE}:{}", hex_of(&anns.id)));
    assert_eq!(host.ensure(NAME, None).await, Ok(Ensured { fetched: false, ..anns }));
}

fn hex_of(id: &ImageId) -> &str {
    id.as_str().strip_prefix("sha256:").unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_the_operator_has_brought_stays_everybodys() {
    let host = private_host();
    let id = host.world.put_image(NAME);
    assert_eq!(kind(&host.ensure(NAME, Some(bob())).await), Some(Kind::Denied));
    assert!(host.ensure(NAME, Some(ann())).await.unwrap().fetched);
    assert_eq!(host.ensure(NAME, None).await.unwrap().id, id);
    assert_eq!(host.world.count(Operation::TagImage), 0);
}

/// Else a caller could take an image from everybody, by pulling it under another name.
#[tokio::test(start_paused = true)]
async fn what_has_an_operators_name_stays_everybodys_whoever_pulls_it() {
    let host = private_host();
    host.world.set_latency(Operation::PullImage, Duration::ZERO);
    host.world.script(Operation::PullImage, Fault::Late(PULL));
    let anns = host.cache.ensure(&reference(NAME), Some(ann()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let engine = host.world.engine();
    let id = engine.image_id(NAME).await.unwrap().unwrap();
    engine.tag_image(&id, "local/built", "1").await.unwrap();
    over(anns).await.unwrap();
    assert_eq!(host.ensure("local/built:1", None).await.unwrap().id, id);
    assert_eq!(host.world.count(Operation::TagImage), 1, "the operator's");
}

#[test]
fn names_that_come_by_callers_credentials_are_nobody_elses() {
    let mut unnamed = Unnamed::default();
    let image = |tags: &[&str], digests: &[&str]| Image {
        id: "sha256:1".into(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        digests: digests.iter().map(|digest| (*digest).to_owned()).collect(),
        labels: crate::engine::Labels::new(),
    };
    unnamed.enter("reg:5000/anns");
    unnamed.enter("bobs");
    let both = image(&["reg:5000/anns:1", "docker.io/library/bobs:1"], &["reg:5000/anns@sha256:2", "bobs@sha256:2"]);
    assert!(!unnamed.knows_as_everybodys(&both), "two callers at once");
    assert!(unnamed.knows_as_everybodys(&image(&["reg:5000/anns:1", "built:1"], &[])));
    assert!(unnamed.knows_as_everybodys(&image(&[], &["reg:5000/anns@sha256:2", "quay.io/fn@sha256:2"])));
    assert!(!unnamed.knows_as_everybodys(&image(&[], &[])));
}

#[tokio::test(start_paused = true)]
async fn what_the_daemons_own_credentials_are_good_for_is_everybodys() {
    let registry = config::Registry { host: "reg:5000".into(), username: "ann".into(), password: "anns-word".into() };
    let host = host_with(settings(), CredentialSource::new(vec![registry], None));
    host.world.publish_image(NAME, Some(ann()));
    host.ensure(NAME, Some(ann())).await.unwrap();
    assert!(host.ensure(NAME, None).await.unwrap().fetched, "it came by a caller's, so the registry is asked by the daemon's");
}

/// While Ann's pull is under way the image may be in the engine already, without its second name.
#[tokio::test(start_paused = true)]
async fn an_image_on_its_way_is_not_everybodys_for_a_moment() {
    let host = private_host();
    host.world.set_latency(Operation::PullImage, Duration::ZERO);
    host.world.script(Operation::PullImage, Fault::Late(PULL));
    let anns = host.cache.ensure(&reference(NAME), Some(ann()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(host.world.engine().image_id(NAME).await.unwrap().is_some(), "the engine has it");
    assert_eq!(kind(&host.ensure(NAME, None).await), Some(Kind::Denied));
    assert!(over(anns).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_image_of_which_nobody_knows_how_it_came_is_not_everybodys() {
    let host = host_with(config::Images { attempts: 1, ..settings() }, CredentialSource::new(Vec::new(), None));
    host.world.publish_image(NAME, Some(ann()));
    host.world.script(Operation::PullImage, Fault::Unknown { done: true });
    assert_eq!(kind(&host.ensure(NAME, Some(ann())).await), Some(Kind::Failed));
    assert_eq!(kind(&host.ensure(NAME, None).await), Some(Kind::Denied));

    let host = private_host();
    host.world.script_always(Operation::TagImage, None, Fault::Error(ErrorClass::Refused, "no names today".into()));
    let failed = host.ensure(NAME, Some(ann())).await.unwrap_err();
    assert!(failed.why.contains("no names today"), "{failed}");
    assert_eq!(kind(&host.ensure(NAME, None).await), Some(Kind::Denied));
}

#[tokio::test(start_paused = true)]
async fn callers_with_different_credentials_do_not_share_a_fetch() {
    let host = private_host();
    let (anns, bobs) = tokio::join!(host.ensure(NAME, Some(ann())), host.ensure(NAME, Some(bob())));
    assert!(anns.is_ok());
    assert_eq!((kind(&bobs), host.pulls()), (Some(Kind::Denied), 2));
}

#[tokio::test(start_paused = true)]
async fn a_lasting_no_is_told_again_for_a_while_to_the_same_identity() {
    let host = private_host();
    let began = Instant::now();
    let first = host.ensure(NAME, Some(bob())).await.unwrap_err();
    assert_eq!((first.kind, first.retry_after, began.elapsed()), (Kind::Denied, None, PULL), "it was not tried twice");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let again = host.ensure(NAME, Some(bob())).await.unwrap_err();
    assert_eq!((again.why, again.retry_after, host.pulls()), (first.why, Some(Duration::from_secs(20)), 1));
    assert_eq!(host.cache.failures().len(), 1, "one failure, told twice");
    assert!(host.ensure(NAME, Some(ann())).await.is_ok());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(kind(&host.ensure(NAME, Some(bob())).await), Some(Kind::Denied));
    assert_eq!((host.pulls(), host.cache.failures().len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn a_no_does_not_outlive_the_image_that_comes_otherwise() {
    let host = host();
    assert_eq!(kind(&host.ensure("reg:5000/none:1", None).await), Some(Kind::Unknown));
    host.world.put_image("reg:5000/none:1");
    assert!(host.ensure("reg:5000/none:1", None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_with_growing_jittered_waits() {
    let host = host();
    for words in ["one", "two", "three"] {
        host.refuse(ErrorClass::Refused, words);
    }
    let mut following = host.cache.ensure(&reference(NAME), None);
    let backoff = config::Backoff::default();
    for (number, words) in [(1, "one"), (2, "two"), (3, "three")] {
        following.wait_for(|told| told.after.as_ref().is_some_and(|after| after.contains(words))).await.unwrap();
        let began = Instant::now();
        following.wait_for(|told| told.progress.attempt == number + 1).await.unwrap();
        let full = backoff.first * (1 << (number - 1));
        let waited = began.elapsed();
        assert!(waited >= full / 2 && waited <= full + Duration::from_millis(1), "after {words}: {waited:?} of {full:?}");
    }
    assert!(over(following).await.is_ok());
    assert_eq!((host.pulls(), host.cache.failures()), (4, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn all_attempts_in_vain_are_the_last_ones_words_and_are_not_told_again() {
    let host = host();
    host.world.script_always(Operation::PullImage, None, Fault::Error(ErrorClass::Refused, "connection refused".into()));
    let failed = host.ensure(NAME, None).await.unwrap_err();
    assert_eq!((failed.kind, host.pulls()), (Kind::Failed, 5));
    assert!(failed.why.contains("connection refused") && failed.why.contains(NAME), "{failed}");
    host.world.unscript(Operation::PullImage);
    assert!(host.ensure(NAME, None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_busy_registry_is_not_asked_before_it_says() {
    let host = host();
    let after = Duration::from_secs(20);
    host.refuse(ErrorClass::RegistryBusy { retry_after: Some(after) }, "429");
    let began = Instant::now();
    assert!(host.ensure(NAME, None).await.is_ok());
    let took = began.elapsed() - 2 * PULL;
    assert!(took >= after && took <= after + after / 2, "{took:?}");

    host.world.image_removed(NAME);
    host.refuse(ErrorClass::RegistryBusy { retry_after: None }, "429");
    let began = Instant::now();
    assert!(host.ensure(NAME, None).await.is_ok());
    let took = began.elapsed() - 2 * PULL;
    assert!(took >= Duration::from_millis(2500) && took <= Duration::from_secs(6), "{took:?}");

    // So late that nobody waits for it: told, and told again until then.
    host.world.image_removed(NAME);
    let late = Duration::from_secs(3600);
    host.refuse(ErrorClass::RegistryBusy { retry_after: Some(late) }, "429");
    let busy = host.ensure(NAME, None).await.unwrap_err();
    assert_eq!((busy.kind, busy.retry_after), (Kind::Busy, Some(late)));
    let pulls = host.pulls();
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(host.ensure(NAME, None).await.unwrap_err().retry_after, Some(Duration::from_secs(600)));
    assert_eq!(host.pulls(), pulls);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(host.ensure(NAME, None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_fetch_has_a_deadline_over_all_its_attempts() {
    let host = host();
    host.refuse(ErrorClass::Refused, "first words");
    host.world.script(Operation::PullImage, Fault::Never);
    let began = Instant::now();
    let failed = host.ensure(NAME, None).await.unwrap_err();
    assert_eq!((failed.kind, began.elapsed()), (Kind::Failed, settings().fetch_timeout));
    assert!(failed.why.contains("600s") && failed.why.contains("first words"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_is_said_so() {
    let host = host();
    host.world.engine_away();
    assert_eq!(kind(&host.ensure(NAME, None).await), Some(Kind::EngineAway));
}

#[tokio::test(start_paused = true)]
async fn fetches_wait_for_places_and_images_that_are_here_do_not() {
    let host = host_with(config::Images { concurrent: 1, queue: 3, ..settings() }, CredentialSource::new(Vec::new(), None));
    host.world.put_image("here:1");
    for name in ["a:1", "b:1"] {
        host.world.publish_image(name, None);
    }
    let began = Instant::now();
    let (one, other) = (host.cache.ensure(&reference("a:1"), None), host.cache.ensure(&reference("b:1"), None));
    assert!(host.ensure("here:1", None).await.is_ok());
    assert_eq!(began.elapsed(), Duration::ZERO);
    let third = host.cache.ensure(&reference("c:1"), None);
    assert_eq!(kind(&host.ensure("d:1", None).await), Some(Kind::Crowded));
    let all = join_all([over(one), over(other), over(third)]).await;
    assert_eq!(all.iter().map(kind).collect::<Vec<_>>(), [None, None, Some(Kind::Unknown)]);
    assert_eq!(began.elapsed(), 3 * PULL);
}

#[tokio::test(start_paused = true)]
async fn while_slots_are_filled_fetches_have_fewer_places() {
    let host = host();
    host.world.publish_image("b:1", None);
    let filled = Instant::now() + PULL + PULL / 2;
    host.cache.places().spare_while(move || Instant::now() < filled);
    let began = Instant::now();
    let both = join_all([host.ensure(NAME, None), host.ensure("b:1", None)]).await;
    assert!(both.iter().all(Result::is_ok));
    assert_eq!(began.elapsed(), 2 * PULL, "one after the other");
    host.world.image_removed(NAME);
    host.world.image_removed("b:1");
    let began = Instant::now();
    join_all([host.ensure(NAME, None), host.ensure("b:1", None)]).await;
    assert_eq!(began.elapsed(), PULL, "side by side");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_fetches_and_those_to_come() {
    let host = host();
    let following = host.cache.ensure(&reference(NAME), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    host.cache.close().await;
    assert_eq!(over(following).now_or_never().as_ref().and_then(kind), Some(Kind::Stopping));
    assert_eq!(kind(&host.ensure(NAME, None).await), Some(Kind::Stopping));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_and_kept_has_bounds() {
    let bounds = config::Images { remember: 3, keep_failures: 2, ..settings() };
    let host = host_with(bounds, CredentialSource::new(Vec::new(), None));
    for name in ["a:1", "b:1", "c:1", "d:1"] {
        assert_eq!(kind(&host.ensure(name, None).await), Some(Kind::Unknown));
    }
    assert_eq!(host.cache.images().iter().map(|row| row.reference.clone()).collect::<Vec<_>>(), ["b:1", "c:1", "d:1"]);
    assert_eq!(host.cache.failures().iter().map(|failed| failed.reference.clone()).collect::<Vec<_>>(), ["d:1", "c:1"]);
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_what_is_told_or_listed() {
    let host = private_host();
    let failed = host.ensure(NAME, Some(bob())).await;
    host.ensure(NAME, Some(ann())).await.unwrap();
    let told = format!("{failed:?} {:?} {:?}", host.cache.images(), host.cache.failures());
    assert!(!told.contains("word") && !told.contains("ann"), "{told}");
}

#[test]
fn too_many_repositories_in_doubt_are_all_in_doubt() {
    let mut unnamed = Unnamed::default();
    unnamed.enter("a");
    unnamed.enter("a");
    unnamed.leave("a");
    assert_eq!((unnamed.seen("a"), unnamed.seen("b")), ((true, 2), (false, 2)));
    unnamed.leave("a");
    assert_eq!(unnamed.seen("a"), (false, 2));
    for number in 0..=MOST_UNNAMED {
        unnamed.enter(&number.to_string());
    }
    assert!(unnamed.seen("b").0);
}

/// Images that are here, and registries that have another by now.
mod freshness {
    use super::*;
    use crate::config::Freshness;
    use crate::image::registry::RegistryError;
    use crate::image::registry::scripted::{Scripted, away};

    const TTL: Duration = Duration::from_secs(6 * 3600);

    /// Its image is here, and its registry says that it has the same.
    async fn asking(freshness: Freshness) -> (Host, Arc<Scripted>, Ensured) {
        let world = FakeWorld::new(1);
        world.set_latency(Operation::PullImage, PULL);
        world.publish_image(NAME, None);
        let registry = Arc::new(Scripted::default());
        let settings = config::Images { freshness, ..settings() };
        let credentials = CredentialSource::new(Vec::new(), None);
        let cache = Cache::asking(registry.clone(), world.engine(), credentials, settings, config::Backoff::default());
        let host = Host { world, cache };
        let first = host.ensure(NAME, None).await.unwrap();
        registry.will_say(Ok(first.digest.clone()));
        (host, registry, Ensured { fetched: false, ..first })
    }

    fn row(host: &Host) -> Row {
        host.cache.images().into_iter().find(|row| row.reference == NAME).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_registry_is_asked_when_the_time_is_up_and_once_for_all() {
        let (host, registry, first) = asking(Freshness::Ttl).await;
        assert!(row(&host).checked.is_some(), "it came from there just now");
        tokio::time::sleep(TTL - Duration::from_secs(1)).await;
        assert_eq!(host.ensure(NAME, None).await, Ok(first.clone()));
        assert!(registry.taken().is_empty());
        tokio::time::sleep(Duration::from_secs(1)).await;
        registry.takes(Duration::from_secs(1));
        let outcomes = join_all((0..10).map(|_| host.ensure(NAME, None))).await;
        assert!(outcomes.iter().all(|outcome| outcome.as_ref() == Ok(&first)), "{outcomes:?}");
        assert_eq!(registry.taken(), [(NAME.to_owned(), None)]);
        assert_eq!(host.ensure(NAME, None).await, Ok(first));
        assert!(registry.taken().is_empty());
        assert_eq!(host.pulls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_here_before_counts_from_when_it_was_first_asked_for() {
        let (host, _, first) = asking(Freshness::Ttl).await;
        let registry = Arc::new(Scripted::default());
        let credentials = CredentialSource::new(Vec::new(), None);
        let cache = Cache::asking(registry.clone(), host.world.engine(), credentials, settings(), config::Backoff::default());
        let next = Host { world: Arc::clone(&host.world), cache };
        assert_eq!(next.ensure(NAME, None).await, Ok(first.clone()));
        assert_eq!((row(&next).checked, registry.taken().len()), (None, 0));
        registry.will_say(Ok(first.digest));
        tokio::time::sleep(TTL).await;
        assert!(next.ensure(NAME, None).await.is_ok());
        assert_eq!((row(&next).checked.is_some(), registry.taken().len()), (true, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_one_is_pulled_by_its_digest_and_has_the_tag_then() {
        let (host, registry, first) = asking(Freshness::Always).await;
        let next = host.world.publish_anew(NAME);
        registry.will_say(Ok(next.to_string()));
        let began = Instant::now();
        let outcomes = join_all((0..10).map(|_| host.ensure(NAME, None))).await;
        let anew = Ensured { id: next.clone(), digest: next.to_string(), fetched: true, stale: None };
        assert!(outcomes.iter().all(|outcome| outcome.as_ref() == Ok(&anew)), "{outcomes:?}");
        assert_eq!((host.pulls(), began.elapsed()), (2, PULL));
        let last = host.world.calls().into_iter().rfind(|call| call.operation == Operation::PullImage).unwrap();
        assert_eq!(last.subject, format!("reg:5000/team/fn@{next}"));
        let engine = host.world.engine();
        assert_eq!(engine.image_id(NAME).await.unwrap(), Some(next));
        assert!(engine.image_id(first.id.as_str()).await.unwrap().is_some(), "nothing is removed");
        assert_eq!(host.ensure(NAME, None).await, Ok(Ensured { fetched: false, ..anew }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_does_not_stop_what_is_here() {
        let (host, registry, first) = asking(Freshness::Always).await;
        registry.will_say(Err(away()));
        let stale = host.ensure(NAME, None).await.unwrap();
        let since = stale.stale.clone().expect("nobody could tell");
        assert!(since.why.contains("no route to host"), "{since:?}");
        assert_eq!(Ensured { stale: None, ..stale.clone() }, first);
        assert_eq!(row(&host).stale, Some(since.clone()));
        assert_eq!(host.ensure(NAME, None).await, Ok(stale));
        assert_eq!(registry.taken().len(), 1, "it is left alone for a while");
        tokio::time::sleep(Duration::from_secs(30)).await;
        let again = host.ensure(NAME, None).await.unwrap();
        assert_eq!((again.stale.unwrap().since, registry.taken().len()), (since.since, 1));
        registry.will_say(Ok(first.digest.clone()));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(host.ensure(NAME, None).await, Ok(first));
        assert_eq!((row(&host).stale, host.pulls(), host.cache.failures().len()), (None, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_registry_is_not_asked_before_it_says() {
        let (host, registry, _) = asking(Freshness::Always).await;
        registry.will_say(Err(RegistryError::Busy { host: "reg:5000".into(), retry_after: Some(Duration::from_secs(3600)) }));
        assert!(host.ensure(NAME, None).await.unwrap().stale.is_some());
        tokio::time::sleep(Duration::from_secs(3599)).await;
        assert!(host.ensure(NAME, None).await.is_ok());
        assert_eq!(registry.taken().len(), 1);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(host.ensure(NAME, None).await.is_ok());
        assert_eq!(registry.taken().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_one_that_cannot_be_had_leaves_the_old_one() {
        let (host, registry, first) = asking(Freshness::Always).await;
        let next = host.world.publish_anew(NAME);
        registry.will_say(Ok(next.to_string()));
        host.refuse(ErrorClass::DiskFull, "no space left on device");
        let stale = host.ensure(NAME, None).await.unwrap();
        assert!(stale.id == first.id && stale.stale.is_some_and(|stale| stale.why.contains("no space left")));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(host.ensure(NAME, None).await.unwrap().id, next);
    }

    #[tokio::test(start_paused = true)]
    async fn a_digest_what_was_built_here_and_never_ask_nobody() {
        let (host, registry, first) = asking(Freshness::Always).await;
        host.world.put_image("local/built:1");
        assert!(host.ensure("local/built:1", None).await.unwrap().stale.is_none());
        assert!(host.ensure(&format!("reg:5000/team/fn@{}", first.digest), None).await.is_ok());
        assert!(registry.taken().is_empty());
        let (host, registry, _) = asking(Freshness::Never).await;
        tokio::time::sleep(100 * TTL).await;
        assert!(host.ensure(NAME, None).await.is_ok() && registry.taken().is_empty());
    }

    /// A pull by the caller's credentials is the question, each time.
    #[tokio::test(start_paused = true)]
    async fn callers_credentials_are_asked_by_pulls_as_ever() {
        let (host, registry, _) = asking(Freshness::Always).await;
        assert!(host.ensure(NAME, Some(ann())).await.unwrap().fetched);
        assert!(registry.taken().is_empty());
        let private = host.cache.images().into_iter().find(|row| row.private).unwrap();
        assert_eq!((private.checked, private.stale), (None, None));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_hosts_store_comes_from_there_and_is_everybodys() {
    use crate::image::placeholder::Archive;
    use crate::image::store::{Options, Store};

    let dir = tempfile::tempdir().unwrap();
    let host = host_with(config::Images { store: dir.path().join("images"), ..settings() }, CredentialSource::new(Vec::new(), None));
    host.world.publish_image(NAME, None);
    let archive = Archive::embedded().unwrap();
    assert_eq!(kind(&host.ensure(archive.reference(), None).await), Some(Kind::Unknown), "there is no store");
    assert!(!dir.path().join("images").exists(), "and none is begun");
    let store = Store::open(&dir.path().join("images"), Options::default()).unwrap();
    let stored = store.import_tar(archive.bytes(), None).unwrap();
    let pulls = host.pulls();
    let ensured = host.ensure(archive.reference(), None).await.unwrap();
    assert_eq!((ensured.id.as_str(), ensured.fetched), (stored[0].id.as_str(), false));
    // Away from the engine, and back without the registry.
    host.world.image_removed(archive.reference());
    assert_eq!(host.ensure(archive.reference(), None).await, Ok(ensured));
    assert_eq!((host.pulls(), host.world.count(Operation::LoadImage)), (pulls, 2));
    // What it has not comes from the registry, and so does what it cannot give.
    assert!(host.ensure(NAME, None).await.unwrap().fetched);
    std::fs::write(dir.path().join("images/index.json"), "broken").unwrap();
    host.world.image_removed(NAME);
    assert!(host.ensure(NAME, None).await.unwrap().fetched);
}
