//! With a paused clock: who is told of an image, and when it may go.

use futures::FutureExt as _;
use tokio::time::advance;

use super::*;

const HOLD: Duration = Duration::from_secs(600);

fn id(name: &str) -> ImageId {
    ImageId::from(format!("sha256:{name}"))
}

async fn asked(uses: &Uses, name: &str) -> bool {
    uses.hold(&id(name), &format!("{name}:1"), true, uses.seen()).await
}

#[tokio::test(start_paused = true)]
async fn what_was_answered_is_held_and_then_may_go() {
    let uses = Uses::new(HOLD);
    assert!(asked(&uses, "a").await);
    assert!(uses.claim(&id("a")).is_none());
    advance(HOLD - Duration::from_secs(1)).await;
    assert!(asked(&uses, "a").await, "each answer holds anew");
    advance(Duration::from_secs(2)).await;
    assert!(uses.claim(&id("a")).is_none());
    advance(HOLD).await;
    let claim = uses.claim(&id("a")).unwrap();
    assert!(uses.claim(&id("a")).is_none(), "one at a time");
    drop(claim);
    assert_eq!(uses.of("sha256:a"), None, "it is gone");
    assert!(uses.claim(&id("never heard of")).is_some());
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_of_an_image_that_goes_while_he_looks() {
    let uses = Uses::new(HOLD);
    let (early, claim) = (uses.seen(), uses.claim(&id("a")).unwrap());
    let while_going = uses.seen();
    let one = async { uses.hold(&id("a"), "a:1", false, early).await };
    let other = async { uses.hold(&id("a"), "a:1", false, while_going).await };
    let (mut one, mut other) = (Box::pin(one), Box::pin(other));
    assert!(one.as_mut().now_or_never().is_none() && other.as_mut().now_or_never().is_none(), "they wait for how it ends");
    assert!(uses.hold(&id("b"), "b:1", false, early).await, "others do not");
    drop(claim);
    assert_eq!((one.await, other.await), (false, false), "what they saw is no more");
    assert!(asked(&uses, "a").await, "who looks afterwards sees another one");
}

#[tokio::test(start_paused = true)]
async fn what_the_engine_keeps_is_answered() {
    let uses = Uses::new(HOLD);
    let claim = uses.claim(&id("a")).unwrap();
    let mut waits = Box::pin(asked(&uses, "a"));
    assert!(waits.as_mut().now_or_never().is_none());
    claim.stays();
    assert!(waits.await);
    assert!(uses.claim(&id("a")).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_recalled_stands_beside_what_was_heard_since() {
    let uses = Uses::new(HOLD);
    let now = uses.now();
    let used = |asked, held_until| Use { came: true, names: vec!["old:1".into()], asked, held_until };
    let year = Duration::from_secs(365 * 24 * 3600);
    uses.hold(&id("a"), "new:1", false, uses.seen()).await;
    let before =
        [(id("a"), used(now - year, now - year)), (id("b"), used(now + year, now + year)), (id("c"), used(now - year, now + HOLD / 2))];
    uses.recall(before.into_iter().collect());
    let a = uses.of("sha256:a").unwrap();
    assert!(a.came && a.asked == now && a.knows("old:1") && a.knows("docker.io/library/new:1") && !a.knows("other:1"));
    let b = uses.of("sha256:b").unwrap();
    assert_eq!((b.asked, b.held_until), (now, now + HOLD), "a clock was ahead");
    assert_eq!(uses.of("sha256:c").unwrap().held_until, now + HOLD / 2, "a hold outlives the daemon");
    assert!(uses.claim(&id("c")).is_none());
}

#[tokio::test(start_paused = true)]
async fn images_that_are_gone_are_forgotten_and_never_too_many_are_known() {
    let uses = Uses::new(HOLD);
    for number in 0..MOST + 10 {
        advance(Duration::from_millis(1)).await;
        assert!(asked(&uses, &format!("{number}")).await);
    }
    assert_eq!(uses.known().len(), MOST);
    assert!(uses.of("sha256:9").is_none() && uses.of("sha256:10").is_some());
    advance(Duration::from_secs(1)).await;
    let listed = uses.now();
    advance(Duration::from_secs(1)).await;
    assert!(asked(&uses, "new").await);
    uses.keep_only(|id| id.as_str() == "sha256:77", listed);
    let mut left: Vec<String> = uses.known().keys().map(ToString::to_string).collect();
    left.sort();
    assert_eq!(left, ["sha256:77", "sha256:new"], "what was asked for since the list was made is not in it");
}

#[tokio::test(start_paused = true)]
async fn what_is_new_is_told() {
    let uses = Uses::new(HOLD);
    uses.hold(&id("a"), "a:1", false, uses.seen()).await;
    assert!(uses.brought().now_or_never().is_none() && uses.changed().now_or_never().is_some());
    asked(&uses, "b").await;
    assert!(uses.brought().now_or_never().is_some());
}
