//! PushImage: who may, what a push tells, and what a no looks like.

use nspool::proto::push_image_response::Event;
use nspool::proto::{PushImageRequest, PushImageResponse, PushProgress, PushedImage, RegistryAuth};
use tonic::{Code, Status};

use crate::served::*;
use crate::small_registry::{SmallRegistry, Trouble};
use crate::support_image::random_archive;

fn of(source: &str, target: &str) -> PushImageRequest {
    PushImageRequest { source: source.into(), target: target.into(), auth: None }
}

impl Served {
    /// All that is told, and how it ended.
    async fn push(&self, asked: PushImageRequest) -> Result<(Vec<PushProgress>, PushedImage), Status> {
        let mut answers = self.images().await.push_image(asked).await?.into_inner();
        let mut told = Vec::new();
        loop {
            match soon(answers.message()).await? {
                Some(PushImageResponse { event: Some(Event::Progress(progress)) }) => told.push(progress),
                Some(PushImageResponse { event: Some(Event::Pushed(pushed)) }) => {
                    assert!(soon(answers.message()).await.unwrap().is_none(), "it is the last message");
                    return Ok((told, pushed));
                }
                end => panic!("{end:?} is no end"),
            }
        }
    }
}

#[tokio::test]
async fn a_push_ends_with_what_the_registry_has() {
    let (served, registry) = (served().await, SmallRegistry::start().await);
    let name = format!("{}/team/fn:1", registry.host);
    served.images.engine().load_image(random_archive(&name, 1000).into()).await.unwrap();
    // Where its own name says.
    let (told, pushed) = served.push(of(&name, "")).await.unwrap();
    assert!(told.len() <= 3 && pushed.digest.starts_with("sha256:") && pushed.id.starts_with("sha256:"), "{told:?} {pushed:?}");
    assert_eq!((pushed.target.as_str(), pushed.layers, pushed.uploaded), (name.as_str(), 1, 1));
    assert!(pushed.bytes > 1000 && registry.state.lock().manifests.contains_key("team/fn 1"), "{pushed:?}");
    let (_, again) = served.push(of(&pushed.id, &format!("{}/team/fn", registry.host))).await.unwrap();
    assert_eq!(again, PushedImage { target: format!("{}/team/fn:latest", registry.host), uploaded: 0, seen: 1, bytes: 0, ..pushed });
}

#[tokio::test]
async fn each_no_to_a_push_has_its_reason() {
    let (served, registry) = (served().await, SmallRegistry::start().await);
    let (name, target) = ("here:1", format!("{}/team/fn:1", registry.host));
    served.images.engine().load_image(random_archive(name, 1000).into()).await.unwrap();
    let nobody = served.images_as(NOBODY).await.push_image(of(name, &target)).await;
    assert_refused(nobody.map(drop), Code::PermissionDenied, "NOT_ALLOWED");
    assert_refused(served.push(of("none:1", &target)).await, Code::NotFound, "IMAGE_UNKNOWN");
    for (status, code, reason) in [
        (403, Code::PermissionDenied, "REGISTRY_DENIED"),
        (400, Code::Unavailable, "PUSH_FAILED"),
        (429, Code::ResourceExhausted, "REGISTRY_BUSY"),
    ] {
        registry.next("PUT /v2/team/fn/manifests", Trouble::Says(status, vec![("retry-after", "3600".into())], String::new()));
        assert_refused(served.push(of(name, &target)).await, code, reason);
    }
    let id = served.images.engine().image_id(name).await.unwrap().unwrap();
    served.images.engine().tag_image(&id, "nspool.local/private", "x").await.unwrap();
    let private = assert_refused(served.push(of(name, &target)).await, Code::FailedPrecondition, "PRIVATE_IMAGE");
    assert!(private.message().contains("a caller's credentials"), "{private:?}");
    served.images.engine_away();
    assert_refused(served.push(of(name, &target)).await, Code::Unavailable, "ENGINE_AWAY");
}

#[tokio::test]
async fn what_is_no_push_is_named() {
    let served = served().await;
    let half = RegistryAuth { username: "ann".into(), ..RegistryAuth::default() };
    let pinned = format!("reg:5000/fn@sha256:{}", "a".repeat(64));
    for (asked, fields) in [
        (of("", ""), vec!["source", "target"]),
        (of("Not A Reference", "reg:5000/fn:1"), vec!["source"]),
        (of(&"a".repeat(64), ""), vec!["target"]),
        (of("fn:1", &pinned), vec!["target"]),
        (of(&pinned, ""), vec!["target"]),
        (of("nspool.local/build:7", ""), vec!["target"]),
        (PushImageRequest { auth: Some(half), ..of("fn:1", "B C") }, vec!["auth", "target"]),
    ] {
        let status = assert_refused(served.push(asked).await, Code::InvalidArgument, "BAD_FIELD");
        assert_eq!(bad_fields(&status), fields, "{status:?}");
    }
}

#[tokio::test]
async fn a_stop_ends_the_wait_for_a_push() {
    let (mut served, registry) = (served().await, SmallRegistry::start().await);
    let name = format!("{}/team/fn:1", registry.host);
    served.images.engine().load_image(random_archive(&name, 1000).into()).await.unwrap();
    registry.next("PUT", Trouble::Silent);
    let mut answers = served.images().await.push_image(of(&name, "")).await.unwrap().into_inner();
    registry.held.notified().await;
    served.stop.cancel();
    let end = loop {
        match soon(answers.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with its reason"),
            Err(status) => break status,
        }
    };
    assert_refused(Err::<(), _>(end), Code::Unavailable, "STOPPING");
    served.ended().await.unwrap();
}
