//! Another placeholder image: the pool rolls to it slot by slot, and is never below its target. And the image stays, whoever prunes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nspool::config::{Config, PlaceholderImage, Reuse};
use nspool::engine::ImageId;
use nspool::engine::fake::{FakeWorld, Operation};

use crate::support::rig::{Rig, config};

const IDLE: &str = "idle:1";

fn of_a_reference(ready: u32, max: u32, reuse: Reuse) -> Config {
    let mut config = config(reuse);
    config.placeholder.image = PlaceholderImage::Reference(IDLE.into());
    (config.pool.ready, config.pool.max) = (ready, max);
    config
}

/// Its slots are full, and what their buddies were made from.
async fn started(config: Config) -> (Arc<FakeWorld>, Rig, ImageId) {
    let world = FakeWorld::new(1);
    let image = world.put_image(IDLE);
    world.set_latency(Operation::Create, Duration::from_millis(20));
    world.set_latency(Operation::Start, Duration::from_millis(200));
    world.set_latency(Operation::Remove, Duration::from_millis(50));
    let ready = config.pool.ready;
    let rig = Rig::start(config, Arc::clone(&world));
    rig.settled(ready).await;
    (world, rig, image)
}

/// Somebody moves the tag, and the daemon gets to look.
fn moved(world: &FakeWorld) -> ImageId {
    let next = world.put_image(IDLE);
    world.cut_events();
    next
}

fn made_of(world: &FakeWorld, image: &ImageId) -> usize {
    world.buddies().iter().filter(|buddy| world.container(buddy.id.as_str()).unwrap().image == *image).count()
}

/// The fewest that were ready whenever the engine was told something from here on.
fn fewest(world: &FakeWorld, rig: &Rig) -> Arc<AtomicU32> {
    let (fewest, pool) = (Arc::new(AtomicU32::new(u32::MAX)), Arc::clone(&rig.pool));
    let seen = Arc::clone(&fewest);
    world.on_call(move |_| {
        seen.fetch_min(pool.read(|state| state.usage().ready), Ordering::Relaxed);
    });
    fewest
}

async fn until(what: &str, level: impl Fn() -> bool) {
    let looks = async {
        while !level() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(900), looks).await.unwrap_or_else(|_| panic!("not {what}"));
}

#[tokio::test(start_paused = true)]
async fn the_pool_rolls_slot_by_slot_and_never_below_its_target() {
    for (ready, max, least) in [(4, 16, 4), (1, 2, 1), (3, 3, 2)] {
        let (world, rig, old) = started(of_a_reference(ready, max, Reuse::Once)).await;
        let fewest = fewest(&world, &rig);
        let creates = world.count(Operation::Create);
        let next = moved(&world);
        until("rolled", || made_of(&world, &old) == 0).await;
        rig.settled(ready).await;
        assert_eq!((made_of(&world, &next), world.buddies().len()), (ready as usize, ready as usize));
        assert_eq!(fewest.load(Ordering::Relaxed), least, "of {ready}, at most {max}");
        assert_eq!(world.count(Operation::Create) - creates, u64::from(ready), "each was made once");
        assert_eq!(world.violations(), []);
        assert_eq!(rig.stop().await.left, []);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_leased_goes_when_its_lease_is_over() {
    for reuse in [Reuse::Once, Reuse::Always] {
        let (world, rig, old) = started(of_a_reference(2, 8, reuse)).await;
        let held = rig.allocate().await;
        let next = moved(&world);
        until("rolled", || made_of(&world, &old) == 1).await;
        rig.settled_beside(2).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(world.is_alive(&held.lease.namespace.container_id), "its holder has it still");
        rig.release(&held);
        until("gone", || made_of(&world, &old) == 0).await;
        rig.settled(2).await;
        assert_eq!(made_of(&world, &next), 2);
        assert_eq!(rig.stop().await.left, []);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_does_not_live_takes_no_old_one_away() {
    let (world, rig, old) = started(of_a_reference(3, 8, Reuse::Once)).await;
    world.buddies_exit_at_once(Some(1));
    let next = moved(&world);
    let fewest = fewest(&world, &rig);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((made_of(&world, &old), fewest.load(Ordering::Relaxed)), (3, 3));
    world.buddies_exit_at_once(None);
    until("rolled", || made_of(&world, &old) == 0).await;
    rig.settled(3).await;
    assert_eq!(made_of(&world, &next), 4, "three, and what kept the image while none of them lived");
    assert_eq!(fewest.load(Ordering::Relaxed), 3);
    assert_eq!(rig.stop().await.left, []);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_no_buddy_uses_is_kept_by_a_container_that_never_runs() {
    let (world, rig, image) = started(of_a_reference(0, 4, Reuse::Once)).await;
    let pins = || world.containers();
    until("pinned", || pins().len() == 1).await;
    let starts = world.count(Operation::Start);
    world.images_pruned();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.engine().image_id(IDLE).await.unwrap(), Some(image.clone()));
    assert!(rig.auditor.audit(false).await.unwrap().findings.is_empty(), "it is known");

    // `docker container prune`: made again.
    world.remove_by_hand(pins()[0].id.as_str());
    until("pinned again", || pins().len() == 1).await;

    // Of another image by now.
    let next = moved(&world);
    until("moved on", || pins().len() == 1 && made_of(&world, &next) == 1).await;
    assert_eq!((world.count(Operation::Start), made_of(&world, &image)), (starts, 0));
    assert_eq!(rig.stop().await.left, []);
    assert_eq!(world.containers(), []);
}

#[tokio::test(start_paused = true)]
async fn with_buddies_about_nothing_else_keeps_the_image() {
    let (world, rig, image) = started(of_a_reference(2, 4, Reuse::Once)).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.containers().len(), 2);
    world.images_pruned();
    assert_eq!(world.engine().image_id(IDLE).await.unwrap(), Some(image));
    assert_eq!(rig.stop().await.left, []);
}
