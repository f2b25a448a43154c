//! ImageCache: what a fetch tells, what a no looks like, and who sees what in the list.

use std::time::Duration;

use futures::StreamExt as _;
use nspool::engine::fake::{Fault, Operation};
use nspool::engine::{Credentials, ErrorClass};
use nspool::proto::build_image_request::Part;
use nspool::proto::build_image_response::Event as Told;
use nspool::proto::ensure_image_response::Event;
use nspool::proto::prune_images_response::Event as Pruned;
use nspool::proto::{
    BuildDefinition, BuildImageRequest, BuiltImage, EnsureImageRequest, EnsureImageResponse, EnsuredImage, FetchProgress,
    ListImagesRequest, PruneImagesRequest, PruneSummary, PrunedImage, RegistryAuth,
};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::served::*;

const NAME: &str = "reg:5000/team/fn";

fn ann() -> Option<RegistryAuth> {
    Some(RegistryAuth { username: "ann".into(), password: "anns-word".into(), identity_token: String::new() })
}

fn of(reference: &str, auth: Option<RegistryAuth>) -> EnsureImageRequest {
    EnsureImageRequest { reference: reference.into(), auth }
}

/// All that is told, and how it ended.
async fn followed(mut answers: Streaming<EnsureImageResponse>) -> (Vec<FetchProgress>, Result<EnsuredImage, Status>) {
    let mut told = Vec::new();
    loop {
        match soon(answers.message()).await {
            Ok(Some(EnsureImageResponse { event: Some(Event::Progress(progress)) })) => told.push(progress),
            Ok(Some(EnsureImageResponse { event: Some(Event::Image(image)) })) => {
                assert!(soon(answers.message()).await.unwrap().is_none(), "the image is the last message");
                return (told, Ok(image));
            }
            Ok(end) => panic!("{end:?} is no end"),
            Err(status) => return (told, Err(status)),
        }
    }
}

impl Served {
    async fn ensure(&self, reference: &str, auth: Option<RegistryAuth>) -> (Vec<FetchProgress>, Result<EnsuredImage, Status>) {
        followed(self.images().await.ensure_image(of(reference, auth)).await.unwrap().into_inner()).await
    }
}

#[tokio::test]
async fn a_fetch_tells_how_far_it_is_and_ends_with_the_image() {
    let served = served().await;
    served.images.publish_image(&format!("{NAME}:latest"), None);
    served.images.set_latency(Operation::PullImage, Duration::from_millis(300));
    let (told, image) = served.ensure(NAME, None).await;
    let image = image.unwrap();
    assert!(image.id.starts_with("sha256:") && image.digest.starts_with("sha256:") && image.fetched, "{image:?}");
    assert_eq!(image.reference, format!("{NAME}:latest"));
    let last = told.last().unwrap();
    assert_eq!((last.attempt, last.layers, last.bytes, last.bytes_total), (1, 1, 1, 2), "{told:?}");
    let (told, again) = served.ensure(NAME, None).await;
    assert_eq!(again.unwrap(), EnsuredImage { fetched: false, ..image });
    assert!(told.len() <= 1, "{told:?}");
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_nothing() {
    let served = served().await;
    served.images.publish_image(&format!("{NAME}:latest"), None);
    served.images.set_latency(Operation::PullImage, Duration::from_secs(1));
    let mut first = served.images().await.ensure_image(of(NAME, None)).await.unwrap().into_inner();
    soon(first.message()).await.unwrap().unwrap();
    let second = served.images().await.ensure_image(of(NAME, None)).await.unwrap().into_inner();
    // With its connection, which was its own.
    drop(first);
    let (_, image) = followed(second).await;
    assert!(image.unwrap().fetched);
    assert_eq!(served.images.count(Operation::PullImage), 1);
}

#[tokio::test]
async fn each_no_has_its_reason() {
    let served = served().await;
    served.images.publish_image("private:1", Some(Credentials { username: "ann".into(), secret: "anns-word".into() }));
    let unknown = assert_refused(served.ensure(NAME, None).await.1, Code::NotFound, "IMAGE_UNKNOWN");
    assert!(unknown.message().contains("manifest unknown") && unknown.get_details_retry_info().is_none(), "{unknown:?}");
    let again = assert_refused(served.ensure(NAME, None).await.1, Code::NotFound, "IMAGE_UNKNOWN");
    let retry = again.get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
    assert!(retry > Duration::from_secs(20) && retry <= Duration::from_secs(30), "{retry:?}");
    assert_refused(served.ensure("private:1", None).await.1, Code::PermissionDenied, "REGISTRY_DENIED");
    assert!(served.ensure("private:1", ann()).await.1.is_ok());

    let late = ErrorClass::RegistryBusy { retry_after: Some(Duration::from_secs(3600)) };
    for (class, code, reason) in
        [(late, Code::ResourceExhausted, "REGISTRY_BUSY"), (ErrorClass::DiskFull, Code::ResourceExhausted, "DISK_FULL")]
    {
        served.images.script(Operation::PullImage, Fault::Error(class, "the engine's words".into()));
        let status = assert_refused(served.ensure(&format!("{}:1", reason.to_lowercase()), None).await.1, code, reason);
        assert!(status.message().contains("the engine's words"), "{status:?}");
    }
    served.images.engine_away();
    assert_refused(served.ensure(NAME, None).await.1, Code::Unavailable, "ENGINE_AWAY");
}

#[tokio::test]
async fn what_is_no_reference_or_no_account_is_named() {
    let served = served().await;
    let mut images = served.images().await;
    let half = RegistryAuth { username: "ann".into(), ..RegistryAuth::default() };
    let both = ann().map(|account| RegistryAuth { identity_token: "t".into(), ..account });
    let long = RegistryAuth { identity_token: "t".repeat(16 * 1024 + 1), ..RegistryAuth::default() };
    for (asked, fields) in [
        (of("", None), vec!["reference"]),
        (of("Not A Reference", Some(half)), vec!["auth", "reference"]),
        (of(NAME, both), vec!["auth"]),
        (of(NAME, Some(RegistryAuth::default())), vec!["auth"]),
        (of(NAME, Some(long)), vec!["auth.identity_token"]),
    ] {
        let status = assert_refused(images.ensure_image(asked).await.map(|_| ()), Code::InvalidArgument, "BAD_FIELD");
        assert_eq!(bad_fields(&status), fields, "{status:?}");
    }
    assert_eq!(served.images.count(Operation::Image), 0);
    assert_eq!(format!("{:?}", of(NAME, ann())), format!("EnsureImageRequest {{ reference: {NAME:?}, auth: Some(RegistryAuth(…)) }}"));
}

#[tokio::test]
async fn the_list_shows_the_operator_all_and_others_what_is_not_somebodys_own() {
    let served = served().await;
    served.images.put_image("here:1");
    served.ensure("here:1", None).await.1.unwrap();
    served.ensure("reg:5000/anns:1", ann()).await.1.unwrap_err();
    let listed = served.images().await.list_images(ListImagesRequest {}).await.unwrap().into_inner();
    let rows: Vec<_> = listed.images.iter().map(|image| (image.reference.as_str(), image.state.as_str(), image.private)).collect();
    assert_eq!(rows, [("here:1", "present", false), ("reg:5000/anns:1", "failed", true)]);
    assert!(!listed.images[0].id.is_empty() && listed.images.iter().all(|image| image.since.is_some()));
    let [failure] = &listed.failures[..] else { panic!("{listed:?}") };
    assert_eq!((failure.reference.as_str(), failure.failure.as_str(), failure.private), ("reg:5000/anns:1", "unknown", true));
    assert!(failure.error.contains("manifest unknown") && !format!("{listed:?}").contains("anns-word"));

    let seen = served.images_as(NOBODY).await.list_images(ListImagesRequest {}).await.unwrap().into_inner();
    assert_eq!((seen.images.len(), seen.failures.len()), (1, 0), "{seen:?}");
}

#[tokio::test]
async fn a_stop_ends_the_wait_with_its_reason() {
    let mut served = served().await;
    served.images.publish_image(&format!("{NAME}:latest"), None);
    served.images.script(Operation::PullImage, Fault::Never);
    let mut answers = served.images().await.ensure_image(of(NAME, None)).await.unwrap().into_inner();
    soon(answers.message()).await.unwrap().unwrap();
    served.stop.cancel();
    let (_, outcome) = followed(answers).await;
    assert_refused(outcome, Code::Unavailable, "STOPPING");
    served.ended().await.unwrap();
}

/// The definition, then the pieces of a tar.
fn parts(definition: BuildDefinition, tar: &[u8]) -> Vec<BuildImageRequest> {
    let pieces = tar.chunks(1000).map(|piece| Part::Context(piece.to_vec()));
    std::iter::once(Part::Definition(definition)).chain(pieces).map(|part| BuildImageRequest { part: Some(part) }).collect()
}

/// A tar with one file.
fn tar_of(name: &str, content: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

impl Served {
    async fn build(&self, parts: Vec<BuildImageRequest>) -> Result<(Vec<String>, BuiltImage), Status> {
        let mut answers = self.images().await.build_image(futures::stream::iter(parts)).await?.into_inner();
        let mut printed = Vec::new();
        loop {
            match soon(answers.message()).await?.and_then(|answer| answer.event) {
                Some(Told::Log(log)) => printed.extend(log.lines),
                Some(Told::Image(image)) => {
                    assert!(soon(answers.message()).await.unwrap().is_none(), "the image is the last message");
                    return Ok((printed, image));
                }
                None => panic!("the stream ended without an image"),
            }
        }
    }
}

fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

#[tokio::test]
async fn an_image_is_built_of_a_tar_or_a_folder_and_found_again() {
    let served = served().await;
    let tar = tar_of("Dockerfile", "FROM scratch\n");
    let (printed, built) = served.build(parts(BuildDefinition::default(), &tar)).await.unwrap();
    assert_eq!(printed, ["Step 1/1 : FROM scratch", "done"]);
    assert!(!built.reused && built.key.len() == 64 && built.reference == format!("nspool.local/build:{}", built.key), "{built:?}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    std::fs::set_permissions(dir.path().join("Dockerfile"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let folder = BuildDefinition { context_folder: dir.path().to_str().unwrap().into(), ..BuildDefinition::default() };
    let (printed, again) = served.build(parts(folder.clone(), &[])).await.unwrap();
    assert_eq!((again, printed.len()), (BuiltImage { reused: true, ..built.clone() }, 0));
    let content = BuildDefinition { dockerfile_content: "FROM scratch\nLABEL a=b\n".into(), ..folder };
    assert_ne!(served.build(parts(content, &[])).await.unwrap().1.key, built.key);

    let listed = served.images().await.list_images(ListImagesRequest {}).await.unwrap().into_inner();
    assert_eq!((listed.built.len(), listed.built_unknown), (2, false));
    let row = listed.built.iter().find(|row| row.key == built.key).unwrap();
    assert_eq!((&row.id, row.built.is_some(), row.used.is_some()), (&built.id, true, true));
    served.images.engine_away();
    let known = served.images().await.list_images(ListImagesRequest {}).await.unwrap().into_inner();
    assert_eq!((known.built.len(), known.built_unknown), (2, false), "it was known before");
}

#[tokio::test]
async fn what_is_no_build_is_refused_by_its_part() {
    let served = served().await;
    let no = async |parts: Vec<BuildImageRequest>| served.build(parts).await.unwrap_err();
    let of = |change: &dyn Fn(&mut BuildDefinition)| {
        let mut definition = BuildDefinition::default();
        change(&mut definition);
        parts(definition, &[])
    };
    let bad = (Code::InvalidArgument, "BAD_FIELD".to_owned());
    assert_eq!(reason(&no(Vec::new()).await), bad);
    assert_eq!(reason(&no(vec![BuildImageRequest { part: Some(Part::Context(Vec::new())) }]).await), bad);
    assert_eq!(reason(&no([of(&|_| {}), of(&|_| {})].concat()).await), bad);
    let fields: [&dyn Fn(&mut BuildDefinition); 6] = [
        &|it| it.context_folder = "relative".into(),
        &|it| it.dockerfile = "../Dockerfile".into(),
        &|it| it.dockerfile = "/etc/passwd".into(),
        &|it| it.platform = "linux".into(),
        &|it| it.target = "a\nb".into(),
        &|it| it.context_folder = format!("/{}", "x".repeat(5000)),
    ];
    for field in fields {
        assert_eq!(reason(&no(of(field)).await), bad);
    }
    let none = no(of(&|_| {})).await;
    assert_eq!(reason(&none), (Code::FailedPrecondition, "CONTEXT_UNREADABLE".into()), "an empty tar has no Dockerfile");
    let broken = no(parts(BuildDefinition::default(), &tar_of("Dockerfile", "FROM a\nFORM b\n"))).await;
    assert_eq!(reason(&broken), (Code::InvalidArgument, "BAD_BUILD".into()));
    assert_eq!(broken.message(), "Dockerfile: line 2: unknown instruction: FORM");
    let other = of(&|it| (it.context_folder, it.context_inode) = ("/".into(), u64::MAX));
    assert_eq!(reason(&no(other).await), (Code::FailedPrecondition, "CONTEXT_UNREADABLE".into()));
    served.images.script(Operation::BuildImage, Fault::Error(ErrorClass::Refused, "returned a non-zero code: 1".into()));
    let failed = no(parts(BuildDefinition::default(), &tar_of("Dockerfile", "FROM scratch"))).await;
    assert_eq!(reason(&failed), (Code::FailedPrecondition, "BUILD_FAILED".into()));
}

#[tokio::test]
async fn who_goes_away_does_not_end_a_build() {
    let served = served().await;
    served.images.set_latency(Operation::BuildImage, Duration::from_millis(300));
    let all = || parts(BuildDefinition::default(), &tar_of("Dockerfile", "FROM scratch\n"));
    let going = served.images().await.build_image(futures::stream::iter(all())).await.unwrap();
    soon(async {
        while served.images.count(Operation::BuildImage) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(going);
    let (_, built) = served.build(all()).await.unwrap();
    assert_eq!((served.images.count(Operation::BuildImage), built.id.is_empty()), (1, false));
}

#[tokio::test]
async fn a_context_that_comes_no_further_is_given_up() {
    let served = served().await;
    let tar = tar_of("Dockerfile", "FROM scratch\n");
    let half = parts(BuildDefinition::default(), &tar[..1000]);
    let asked = futures::stream::iter(half).chain(futures::stream::pending());
    let mut answers = served.images().await.build_image(asked).await.unwrap().into_inner();
    // From here on time passes as soon as nobody has anything to do.
    tokio::time::pause();
    let late = answers.message().await.unwrap_err();
    assert_eq!(reason(&late), (Code::InvalidArgument, "BAD_BUILD".into()));
    assert_eq!(late.message(), "nothing of the context came for 1m");
}

impl Served {
    /// By root, unless another uid is named.
    async fn prune(&self, uid: Option<u32>, asked: PruneImagesRequest) -> Result<(Vec<PrunedImage>, PruneSummary), Status> {
        let mut images = match uid {
            Some(uid) => self.images_as(uid).await,
            None => self.images().await,
        };
        let mut answers = images.prune_images(asked).await?.into_inner();
        let mut rows = Vec::new();
        loop {
            match soon(answers.message()).await?.and_then(|answer| answer.event) {
                Some(Pruned::Image(image)) => rows.push(image),
                Some(Pruned::Summary(summary)) => {
                    assert!(soon(answers.message()).await.unwrap().is_none(), "the summary is the last message");
                    return Ok((rows, summary));
                }
                None => panic!("the stream ended without a summary"),
            }
        }
    }
}

#[tokio::test]
async fn an_operator_sees_what_would_go_and_why_the_rest_stays() {
    let mut setup = Setup::default();
    setup.config.images.hold = Duration::ZERO;
    let served = Served::start(setup).await;
    let all = |dry_run| PruneImagesRequest { dry_run, room: Some(0) };
    served.images.publish_image("reg:5000/fn:1", None);
    let ensured = served.ensure("reg:5000/fn:1", None).await.1.unwrap();
    served.images.put_image("mine:1");
    let (rows, summary) = served.prune(None, all(true)).await.unwrap();
    let told: Vec<_> =
        rows.iter().map(|row| (row.names[0].as_str(), row.outcome.as_str(), row.why.as_str(), row.frees, row.ours)).collect();
    assert_eq!(told, [("reg:5000/fn:1", "would_go", "", 1000, true), ("mine:1", "stays", "not nspool's", 0, false)]);
    assert!(rows[0].used.is_some() && rows[1].used.is_none() && rows[0].id == ensured.id && rows[0].bytes == 1000);
    assert_eq!(summary, PruneSummary { bytes_before: 2000, bytes_after: 1000, bytes_ours: 1000, bytes_wanted: 0, removed: 0 });
    assert_eq!(served.images.count(Operation::RemoveImage), 0);

    let refused = assert_refused(served.prune(Some(NOBODY), all(false)).await, Code::PermissionDenied, "NOT_ALLOWED");
    assert!(!refused.message().contains("fn:1"));
    let unlimited = assert_refused(served.prune(None, PruneImagesRequest::default()).await, Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(bad_fields(&unlimited), ["room"]);

    let (rows, summary) = served.prune(None, all(false)).await.unwrap();
    assert_eq!((rows[0].outcome.as_str(), summary.removed, summary.bytes_after), ("removed", 1, 1000));
    assert!(served.ensure("reg:5000/fn:1", None).await.1.unwrap().fetched, "it is gone");
    served.images.engine_away();
    assert_refused(served.prune(None, all(true)).await, Code::Unavailable, "ENGINE_AWAY");
}

#[tokio::test]
async fn the_list_says_when_an_image_was_used_and_for_how_long_it_is_held() {
    let served = served().await;
    served.images.put_image("here:1");
    served.ensure("here:1", None).await.1.unwrap();
    let tar = tar_of("Dockerfile", "FROM scratch\n");
    served.build(parts(BuildDefinition::default(), &tar)).await.unwrap();
    let listed = served.images().await.list_images(ListImagesRequest {}).await.unwrap().into_inner();
    let (image, built) = (&listed.images[0], &listed.built[0]);
    let ten_minutes = |used: &Option<prost_types::Timestamp>, held: &Option<prost_types::Timestamp>| {
        held.as_ref().unwrap().seconds - used.as_ref().unwrap().seconds
    };
    assert_eq!((ten_minutes(&image.used, &image.held_until), ten_minutes(&built.used, &built.held_until)), (600, 600));
    let (rows, _) = served.prune(None, PruneImagesRequest { dry_run: false, room: Some(0) }).await.unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.why == "held for who asked for it"), "{rows:?}");
}
