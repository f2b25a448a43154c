//! Images by the command line: fetched once, for whoever's credentials are good for them, whatever becomes of those who ask.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use nspool::engine::Engine as _;
use nspool::engine::docker::Docker;

use super::seen::{listener, metrics, sum};
use crate::support::daemon::{NSPOOL, TestDaemon, text};
use crate::support::engines::{TestEngine, native, unique};
use crate::support::image::{busybox_archive, random_archive};
use crate::support::proxy::{Proxy, Trouble};
use crate::support::registry::{PASSWORD, TestRegistry, USER};

on_both_engines!(ten_programs_are_one_fetch, a_fetch_outlives_who_asked, what_came_by_a_password_is_not_everybodys_after_a_restart);

/// In the registry, and no longer in the engine.
async fn pushed(engine: &TestEngine, registry: &TestRegistry, archive: impl Fn(&str) -> Vec<u8>) {
    let local = format!("localhost/nspool-test-fn-{:x}:1", unique());
    Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap().load_image(archive(&local).into()).await.unwrap();
    registry.push(engine, &local, "team/fn:1");
    engine.run(&["rmi", &local]);
}

/// `nspool image ensure` with a password by stdin.
fn ensure_by(daemon: &TestDaemon<'_>, reference: &str, password: &str) -> Output {
    let args = ["image", "ensure", reference, "--username", USER, "--password-stdin", "-o", "json"];
    let mut child =
        daemon.cli_of(NSPOOL.as_ref(), &args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

async fn ten_programs_are_one_fetch(engine: &TestEngine) {
    let registry = TestRegistry::start(true);
    pushed(engine, &registry, busybox_archive).await;
    let reference = format!("{}/team/fn:1", registry.host);
    let (line, address) = listener();
    let mut daemon = TestDaemon::prepare(engine, &[&line]);
    let file = daemon.dir.path().join("password");
    std::fs::write(&file, PASSWORD).unwrap();
    let of_registry = |key: &str, value: &str| format!("registries.\"{}\".{key} = {value:?}", registry.host);
    daemon.configure(&[&of_registry("username", USER), &of_registry("password_file", &file.display().to_string())]);
    daemon.launch().await;
    let ask = || daemon.cli_of(NSPOOL.as_ref(), &["image", "ensure", &reference, "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let programs: Vec<_> = (0..10).map(|_| ask()).collect();
    let ids: Vec<String> = programs
        .into_iter()
        .map(|program| {
            let output = program.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()[0]["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(ids[0].len() >= 64 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    engine.run(&["run", "--rm", "--network", "none", &ids[0], "true"]);

    let told = metrics(&address);
    assert_eq!(sum(&told, "nspool_image_fetches_total", "outcome=\"fetched\""), 1.0, "{told}");
    assert_eq!(sum(&told, "nspool_image_ensures_total", ""), 10.0, "{told}");
    let listed = daemon.json(&["image", "list"]);
    assert_eq!((listed["images"][0]["reference"].as_str(), listed["images"][0]["state"].as_str()), (Some(&*reference), Some("present")));
    engine.run(&["rmi", &reference]);
}

async fn a_fetch_outlives_who_asked(engine: &TestEngine) {
    let registry = TestRegistry::start(false);
    pushed(engine, &registry, |name| random_archive(name, 3 << 20)).await;
    let proxy = Proxy::before(&registry.host).await;
    let reference = format!("{}/team/fn:1", proxy.host);
    proxy.next(Trouble::Slow(Duration::from_secs(3)));
    let daemon = TestDaemon::start(engine, &[]).await;
    let gone = daemon.cli(&["image", "ensure", &reference, "--timeout", "1s"]);
    assert_eq!(gone.status.code(), Some(75), "{gone:?}");
    assert!(text(&gone.stderr).contains("the fetch goes on"), "{gone:?}");
    let image = daemon.json(&["image", "ensure", &reference]);
    assert_eq!(image[0]["fetched"], true, "it followed the fetch that was under way");
    let asked = proxy.taken();
    assert_eq!(asked.iter().filter(|line| line.contains("/blobs/")).count(), 2, "the layer and the configuration, once each: {asked:?}");
    engine.run(&["rmi", &reference]);
}

async fn what_came_by_a_password_is_not_everybodys_after_a_restart(engine: &TestEngine) {
    let registry = TestRegistry::start(true);
    pushed(engine, &registry, |name| random_archive(name, 1 << 10)).await;
    let reference = format!("{}/team/fn:1", registry.host);
    let (line, address) = listener();
    let mut daemon = TestDaemon::start(engine, &["log.filter = \"trace\"", "stop.policy = \"keep\"", &line]).await;
    let anybody = |daemon: &TestDaemon<'_>| daemon.cli(&["image", "ensure", &reference]);
    let fetched = ensure_by(&daemon, &reference, PASSWORD);
    assert!(fetched.status.success(), "{fetched:?}");
    let refused = anybody(&daemon);
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
    assert!(text(&refused.stderr).contains("--username"), "{refused:?}");
    assert_eq!(ensure_by(&daemon, &reference, "wrong-horse-7").status.code(), Some(77));
    let told = [metrics(&address), daemon.json(&["image", "list"]).to_string()];

    daemon.kill();
    daemon.launch().await;
    assert_eq!(anybody(&daemon).status.code(), Some(77), "the next daemon gives it away");
    assert!(ensure_by(&daemon, &reference, PASSWORD).status.success());
    assert_eq!(daemon.stop().await, 0);
    for text in told.iter().chain([&daemon.log()]) {
        for secret in [PASSWORD, "wrong-horse-7"] {
            assert!(!text.contains(secret), "it tells {secret}: {text}");
        }
    }
    let id = serde_json::from_slice::<serde_json::Value>(&fetched.stdout).unwrap()[0]["id"].as_str().unwrap().to_owned();
    engine.run(&["rmi", "-f", &id]);
}

#[tokio::test]
async fn without_a_container_engine_there_are_no_images() {
    let daemon = TestDaemon::start(native(), &["pool.networks = [\"none\"]"]).await;
    for args in [&["image", "ensure", "busybox"][..], &["image", "list"]] {
        let refused = daemon.cli(args);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(text(&refused.stderr).contains("without a container engine"), "{refused:?}");
    }
}
