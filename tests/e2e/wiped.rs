//! An engine that loses its images while the pool runs, with no registry left to ask.

use nspool::engine::Engine as _;
use nspool::engine::docker::Docker;

use super::seen::{listener, metrics, sum};
use crate::support::daemon::{LIMIT, NSPOOL, TestDaemon};
use crate::support::engines::{TestEngine, unique};
use crate::support::eventually;
use crate::support::image::unique_busybox_archive;
use crate::support::registry::TestRegistry;

on_both_engines!(an_engine_that_is_wiped_is_full_again_from_the_store);

async fn an_engine_that_is_wiped_is_full_again_from_the_store(engine: &TestEngine) {
    let registry = TestRegistry::start(false);
    let local = format!("localhost/nspool-test-fn-{:x}:1", unique());
    let client = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
    client.load_image(unique_busybox_archive(&local).into()).await.unwrap();
    let function = registry.push(engine, &local, "team/fn:1");
    engine.run(&["rmi", &local]);
    // No registry ever has the placeholder: an operator has put it into the store.
    let idle = format!("localhost/nspool-test-idle-{:x}:1", unique());
    let (line, address) = listener();
    let placeholder = format!("placeholder.image = {idle:?}");
    let mut daemon = TestDaemon::prepare(engine, &[&line, &placeholder, "images.fetched_by = \"nspool\""]);
    let (archive, store) = (daemon.dir.path().join("idle.tar"), daemon.dir.path().join("images"));
    std::fs::write(&archive, unique_busybox_archive(&idle)).unwrap();
    let import = ["image", "import", archive.to_str().unwrap(), "--store", store.to_str().unwrap()];
    let imported = std::process::Command::new(NSPOOL).args(import).output().unwrap();
    assert!(imported.status.success(), "{imported:?}");
    daemon.launch().await;
    daemon.settled(2).await;
    let fetched = daemon.json(&["image", "ensure", &function]);
    let id = fetched[0]["id"].as_str().unwrap();
    assert_eq!(fetched[0]["fetched"], true);
    drop(registry);

    // Containers and images together, with nothing being made meanwhile. Not by force: podman would remove containers that are just being created, and then
    // knows them for ever, and lists none.
    daemon.json(&["resize", "--ready", "0"]);
    daemon.settled(0).await;
    let loads = || sum(&metrics(&address), "nspool_image_stage_seconds_count", "stage=\"load\"");
    let before = loads();
    let wiped = || async {
        let containers = daemon.containers();
        let containers: Vec<&str> = containers.iter().map(String::as_str).collect();
        engine.client(&[&["rm", "-f"], &*containers].concat());
        engine.client(&["rmi", &idle, &function]);
        (loads() > before).then_some(())
    };
    eventually("the placeholder to come from the store again", LIMIT, wiped).await;
    daemon.json(&["resize", "--ready", "2"]);
    daemon.settled(2).await;
    let again = daemon.json(&["image", "ensure", &function]);
    assert_eq!((again[0]["id"].as_str(), &again[0]["fetched"]), (Some(id), &false.into()), "{again}");
    engine.run(&["run", "--rm", "--network", "none", id, "true"]);
    assert_eq!(daemon.stop().await, 0);
    engine.client(&["rmi", &idle, &function]);
}
