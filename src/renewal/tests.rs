//! On the scripted engine: every way a probe can go wrong has words of its own, and nothing stays behind.

use std::error::Error as _;
use std::sync::Arc;

use super::*;
use crate::engine::fake::{FakeWorld, Fault, Operation, RenewalFault};
use crate::engine::{ErrorClass, Flavour, Labels};
use crate::netns::WrongAnswer;

const WITHIN: Duration = Duration::from_secs(1);

fn spec(world: &FakeWorld, name: &str) -> BuddySpec {
    BuddySpec {
        name: name.into(),
        image: world.put_image("placeholder"),
        command: Vec::new(),
        labels: Labels::new(),
        network: "bridge".into(),
        namespaces: vec![NamespaceKind::Net],
        user: "65533:65533".into(),
        memory_bytes: 1,
        pids: 1,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}

/// A probe of this world, after which nothing is left in it.
async fn probed(world: &Arc<FakeWorld>) -> Result<Renewed, Unfit> {
    let (buddy, joiner) = (spec(world, "probe").renewable(), spec(world, "probe-joiner"));
    let probed = probe(world.engine().as_ref(), world.kernel().as_ref(), &buddy, &joiner, WITHIN).await;
    assert_eq!(world.containers(), [], "it leaves nothing behind");
    assert_eq!(world.violations(), []);
    probed
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_joins_the_renewed_namespace_is_fit() {
    let world = FakeWorld::new(1);
    let renewed = probed(&world).await.unwrap();
    assert_eq!(renewed.took, Duration::ZERO);
    assert_eq!(world.count(Operation::Renew), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_unshare_has_its_reason() {
    let world = FakeWorld::new(1);
    world.script_renewal(RenewalFault::Refused);
    let unfit = probed(&world).await.unwrap_err();
    assert!(matches!(unfit, Unfit::Ended { code: Some(EXIT_CANNOT_RENEW) }), "{unfit:?}");
    assert!(unfit.to_string().contains("seccomp"), "{unfit}");
}

#[tokio::test(start_paused = true)]
async fn silence_and_straying_are_told_apart() {
    for (fault, words) in [
        (RenewalFault::Never, "did not move to a new network namespace within 1s"),
        (RenewalFault::Slow(WITHIN * 2), "did not move to a new network namespace within 1s"),
        (RenewalFault::Strays, "moved into the host's network namespace"),
        (RenewalFault::Error(RenewError::Wrong { pid: 2, wrong: WrongAnswer::NotNew }), "not new"),
    ] {
        let world = FakeWorld::new(1);
        world.script_renewal(fault);
        let unfit = probed(&world).await.unwrap_err();
        assert!(unfit.source().unwrap().to_string().contains(words), "{unfit:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_buddy_that_ends_at_once_is_no_renewable_one() {
    let world = FakeWorld::new(1);
    world.buddies_exit_at_once(Some(127));
    let unfit = probed(&world).await.unwrap_err();
    assert_eq!(unfit.to_string(), "the renewable buddy ended with exit code 127");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_remembers_the_old_namespace_is_found_out() {
    let world = FakeWorld::new(1);
    world.remember_first_namespaces();
    let unfit = probed(&world).await.unwrap_err();
    assert!(matches!(unfit, Unfit::JoinerElsewhere(Elsewhere::TheOld)), "{unfit:?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_engine_refuses_is_said_with_the_step() {
    for (operation, filter, step) in [
        (Operation::Create, "probe", "creating a renewable buddy failed"),
        (Operation::Start, "probe", "starting a renewable buddy failed"),
        (Operation::Create, "probe-joiner", "creating a container that joins the renewed buddy failed"),
        (Operation::Start, "probe-joiner", "starting a container that joins the renewed buddy failed"),
    ] {
        let world = FakeWorld::new(1);
        world.script_for(operation, filter, Fault::Error(ErrorClass::Refused, "no".into()));
        let unfit = probed(&world).await.unwrap_err();
        assert_eq!(unfit.to_string(), step);
    }
}
