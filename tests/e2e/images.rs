//! Images by the command line: fetched once, for whoever's credentials are good for them, whatever becomes of those who ask.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nspool::engine::docker::Docker;
use nspool::engine::{Engine as _, EngineKind};

use super::seen::{listener, metrics, sum};
use crate::small_registry::{SmallRegistry, Trouble as Answers};
use crate::support::daemon::{LIMIT, NSPOOL, TestDaemon, text};
use crate::support::engines::{TestEngine, native, unique};
use crate::support::image::{busybox_archive, labelled_archive, random_archive};
use crate::support::proxy::{Proxy, Trouble};
use crate::support::registry::{PASSWORD, TestRegistry, USER};
use crate::support::{eventually, wait_for};

on_both_engines!(
    ten_programs_are_one_fetch,
    a_fetch_outlives_who_asked,
    what_came_by_a_password_is_not_everybodys_after_a_restart,
    the_placeholder_follows_its_tag_and_stays_whoever_prunes,
    a_restart_with_the_same_image_rolls_nothing,
    what_is_pushed_costs_nothing_the_second_time,
    a_push_that_is_killed_leaves_nothing,
    what_was_answered_outlives_a_killed_daemon_and_a_prune,
);

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
    proxy.next(Trouble::Slow(Duration::from_secs(8)));
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

async fn what_is_pushed_costs_nothing_the_second_time(engine: &TestEngine) {
    let registry = TestRegistry::start(true);
    let local = format!("localhost/nspool-test-fn-{:x}:1", unique());
    let docker = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
    docker.load_image(random_archive(&local, 3 << 20).into()).await.unwrap();
    let (line, address) = listener();
    let mut daemon = TestDaemon::prepare(engine, &[&line]);
    let (file, store) = (daemon.dir.path().join("password"), daemon.dir.path().join("no-store"));
    std::fs::write(&file, PASSWORD).unwrap();
    let of_registry = |key: &str, value: &str| format!("registries.\"{}\".{key} = {value:?}", registry.host);
    let password = of_registry("password_file", &file.display().to_string());
    daemon.configure(&[&of_registry("username", USER), &password, &format!("images.store = {store:?}")]);
    daemon.launch().await;
    let targets = ["team/fn:1", "team/fn:2"].map(|name| format!("{}/{name}", registry.host));
    let counts = targets.each_ref().map(|target| {
        let pushed = daemon.json(&["image", "push", &local, target]);
        assert_eq!(pushed["target"].as_str(), Some(target.as_str()), "{pushed}");
        ["layers", "uploaded", "seen"].map(|count| pushed[count].as_u64().unwrap())
    });
    assert_eq!(counts, [[1, 1, 0], [1, 0, 1]]);
    let told = metrics(&address);
    assert_eq!(sum(&told, "nspool_image_pushes_total", "outcome=\"pushed\""), 2.0, "{told}");
    assert_eq!(sum(&told, "nspool_image_pushed_layers_total", "how=\"seen\""), 1.0, "{told}");

    let missing = daemon.cli(&["image", "push", "localhost/nspool-test-none:1", &targets[0]]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    engine.run(&["rmi", &local]);
    let fetched = ensure_by(&daemon, &targets[1], PASSWORD);
    assert!(fetched.status.success(), "{fetched:?}");
    let own = daemon.cli(&["image", "push", &targets[1]]);
    assert!(own.status.code() == Some(1) && text(&own.stderr).contains("a caller's credentials"), "{own:?}");
    assert_eq!(daemon.stop().await, 0);
    assert!(!daemon.log().contains(PASSWORD));
    let id = serde_json::from_slice::<serde_json::Value>(&fetched.stdout).unwrap()[0]["id"].as_str().unwrap().to_owned();
    engine.run(&["rmi", "-f", &id]);
}

async fn a_push_that_is_killed_leaves_nothing(engine: &TestEngine) {
    let registry = SmallRegistry::start().await;
    let local = format!("localhost/nspool-test-fn-{:x}:1", unique());
    let docker = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
    docker.load_image(random_archive(&local, 3 << 20).into()).await.unwrap();
    let mut daemon = TestDaemon::prepare(engine, &[]);
    let (spool, store) = (daemon.dir.path().join("spool"), daemon.dir.path().join("no-store"));
    std::fs::create_dir(&spool).unwrap();
    daemon.configure(&[&format!("images.spool = {spool:?}"), &format!("images.store = {store:?}")]);
    daemon.launch().await;
    registry.next("PUT /v2/team/fn/blobs", Answers::Silent);
    let target = format!("{}/team/fn:1", registry.host);
    let mut pushing = daemon.cli_of(NSPOOL.as_ref(), &["image", "push", &local, &target]).stderr(Stdio::null()).spawn().unwrap();
    registry.held.notified().await;
    daemon.kill();
    assert!(!pushing.wait().unwrap().success());
    let spooled = || std::fs::read_dir(&spool).unwrap().count();
    assert_eq!(spooled(), 1, "a store for one push");
    assert!(registry.state.lock().manifests.is_empty());

    daemon.launch().await;
    let pushed = daemon.json(&["image", "push", &local, &target]);
    assert_eq!((pushed["layers"].as_u64(), spooled()), (Some(1), 0), "{pushed}");
    assert!(registry.state.lock().manifests.contains_key("team/fn 1"));
    assert_eq!(daemon.stop().await, 0);
    engine.run(&["rmi", &local]);
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

/// The image's id as the engine writes it for that container, or for that name.
fn image_of(engine: &TestEngine, what: &[&str]) -> String {
    // Not there for a moment, if the pool pulls it while its other name is being taken away.
    let said = wait_for("the image's id", LIMIT, || Some(engine.client(what)).filter(|said| said.status.success()));
    text(&said.stdout).trim_start_matches("sha256:").to_owned()
}

/// All images that have the mark and that no container was made from.
fn prune(engine: &TestEngine, mark: &str) {
    let words = ["image", "prune", "-a", "-f", "--filter", &format!("label=nspool-test={mark}")];
    if engine.kind == EngineKind::Docker {
        return drop(engine.run(&words));
    }
    // Docker's client says more than podman's API takes.
    let mut podman = Command::new("podman");
    podman.args(["--url", &engine.endpoint()]).args(words);
    // It reads all images for that, and another test's may just be going.
    wait_for("podman to prune", LIMIT, || podman.output().unwrap().status.success().then_some(()));
}

async fn the_placeholder_follows_its_tag_and_stays_whoever_prunes(engine: &TestEngine) {
    let registry = TestRegistry::start(false);
    let mark = format!("{:x}", unique());
    let publish = |version: &'static str| {
        let mark = mark.clone();
        let registry = &registry;
        async move {
            let local = format!("localhost/nspool-test-idle-{mark}:{version}");
            let archive = labelled_archive(&local, &[("nspool-test", &mark), ("version", version)]);
            Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap().load_image(archive.into()).await.unwrap();
            registry.push(engine, &local, "team/idle:1");
            engine.run(&["rmi", &local]);
        }
    };
    publish("1").await;
    // By another name than that by which it is pushed.
    let proxy = Proxy::before(&registry.host).await;
    let reference = format!("{}/team/idle:1", proxy.host);
    let prune = || prune(engine, &mark);
    let image = || image_of(engine, &["image", "inspect", "-f", "{{.Id}}", &reference]);
    let config =
        [format!("placeholder.image = {reference:?}"), "images.fresh_for = \"2s\"".to_owned(), "stop.policy = \"remove\"".to_owned()];
    let mut daemon = TestDaemon::start(engine, &config.each_ref().map(String::as_str)).await;
    daemon.settled(2).await;
    let first = image();
    prune();
    assert_eq!(image(), first, "buddies use it");

    // Its name is lost, and comes back.
    engine.run(&["tag", &reference, &format!("localhost/kept-{mark}:1")]);
    engine.run(&["rmi", &reference]);
    let named = || async { engine.client(&["image", "inspect", &reference]).status.success().then_some(()) };
    eventually("the name to be given back", LIMIT, named).await;
    assert_eq!(image(), first);
    engine.run(&["rmi", &format!("localhost/kept-{mark}:1")]);

    publish("2").await;
    let rolled = || async {
        let ready = daemon.client().usage().await.unwrap().total.unwrap().ready;
        assert!(ready >= 2, "{ready} ready, of two");
        let next = image();
        // One that was listed may be gone by now.
        let made_of = |buddy: &str| text(&engine.client(&["inspect", "-f", "{{.Image}}", buddy]).stdout);
        let of_next = |buddy: &String| made_of(buddy).trim_start_matches("sha256:") == next;
        (next != first && ready == 2 && daemon.buddies().iter().all(of_next)).then_some(())
    };
    eventually("all buddies to be of the new image", LIMIT, rolled).await;
    daemon.settled(2).await;

    daemon.json(&["resize", "--ready", "0", "--max", "4"]);
    daemon.settled(0).await;
    let pinned = || async { (daemon.containers().len() == 1).then_some(()) };
    eventually("a container to keep the image", LIMIT, pinned).await;
    let second = image();
    prune();
    assert_eq!(image(), second, "a container that never ran keeps it");
    let audit = daemon.cli(&["audit"]);
    assert!(audit.status.success(), "{audit:?}");

    drop(proxy);
    let stale = || async {
        let images = daemon.json(&["image", "list"])["images"].clone();
        let own = images.as_array().unwrap().iter().find(|image| image["placeholder"] == true).cloned().unwrap();
        own["stale_why"].as_str().filter(|why| why.contains("cannot be reached")).map(str::to_owned)
    };
    eventually("the list to say since when", LIMIT, stale).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!(daemon.containers(), Vec::<String>::new(), "nothing is left");
    prune();
    assert!(!engine.client(&["image", "inspect", &reference]).status.success(), "nobody keeps it any more");
}

async fn a_restart_with_the_same_image_rolls_nothing(engine: &TestEngine) {
    let mut daemon = TestDaemon::start(engine, &[]).await;
    daemon.settled(2).await;
    let before = daemon.buddies();
    daemon.kill();
    daemon.launch().await;
    daemon.json(&["resize", "--ready", "4", "--max", "8"]);
    daemon.settled(4).await;
    let now = daemon.buddies();
    assert!(now.len() == 4 && before.iter().all(|buddy| now.contains(buddy)), "{before:?}, then {now:?}");
    assert!(!daemon.log().contains("makes way"), "{}", daemon.log());
}

async fn what_was_answered_outlives_a_killed_daemon_and_a_prune(engine: &TestEngine) {
    let registry = TestRegistry::start(false);
    pushed(engine, &registry, |name| random_archive(name, 3 << 20)).await;
    let reference = format!("{}/team/fn:1", registry.host);
    let (line, address) = listener();
    let mut daemon = TestDaemon::start(engine, &["stop.policy = \"keep\"", "images.hold = \"1h\"", &line]).await;
    let id = daemon.json(&["image", "ensure", &reference])[0]["id"].as_str().unwrap().to_owned();
    // Exit code 1: the pool's own image is more than nothing.
    let prune = |daemon: &TestDaemon<'_>, more: &[&str]| {
        let output = daemon.cli(&[&["image", "prune", "--room", "0", "-o", "json"], more].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        told["images"].as_array().unwrap().iter().find(|image| image["id"] == *id).cloned()
    };
    let is_held = |told: Option<serde_json::Value>| {
        let told = told.unwrap();
        assert_eq!((told["outcome"].as_str(), told["why"].as_str()), (Some("stays"), Some("held for who asked for it")), "{told}");
    };
    is_held(prune(&daemon, &[]));
    let listed = daemon.json(&["image", "list"])["images"][0].clone();
    assert!(listed["held_until"].as_str().is_some_and(|until| !until.is_empty()) && listed["id"] == *id, "{listed}");
    let file = daemon.dir.path().join(format!("images-used/{}.json", daemon.pool));
    let written = || async { std::fs::read_to_string(&file).ok().filter(|text| text.contains(&id)) };
    eventually("the use to be written down", LIMIT, written).await;
    daemon.kill();
    daemon.launch().await;
    is_held(prune(&daemon, &[]));
    engine.run(&["image", "inspect", &id]);

    // Nobody is about to use it any more.
    daemon.configure(&["images.hold = \"0s\""]);
    daemon.kill();
    daemon.launch().await;
    let would = prune(&daemon, &["--dry-run"]).unwrap();
    assert_eq!((would["outcome"].as_str(), would["ours"].as_bool()), (Some("would_go"), Some(true)), "{would}");
    assert!(would["frees"].as_u64().unwrap() >= 3 << 20, "{would}");
    assert_eq!(prune(&daemon, &[]).unwrap()["outcome"], "removed");
    assert_eq!(prune(&daemon, &[]), None);
    assert!(!engine.client(&["image", "inspect", &id]).status.success());
    let told = metrics(&address);
    assert_eq!(sum(&told, "nspool_images_removed_total", "outcome=\"removed\""), 1.0, "{told}");
    assert!(sum(&told, "nspool_image_bytes", "") > 0.0, "{told}");
}
