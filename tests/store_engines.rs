//! The image store beside real engines: what Docker and podman save goes in, with their own ids; both are loaded from one store, once each; and other tools
//! read the store as the OCI layout that it is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what was measured is worth a look")]

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use nspool::config;
use nspool::engine::docker::Docker;
use nspool::engine::paced::{Deadlines, Paced};
use nspool::engine::{Engine, EngineKind};
use nspool::image::reference::Reference;
use nspool::image::store::{Options, Store};
use nspool::image::transfer::{self, How};
use support::engines::{TestEngine, docker, podman, unique};
use support::image::{busybox_archive, random_archive, unique_busybox_archive};
use tokio_util::task::TaskTracker;

const LAYER: usize = 3 << 20;

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod docker_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::docker()).await } )* }
        mod podman_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::podman()).await } )* }
    };
}

on_both_engines!(
    what_the_engine_saves_comes_back_with_its_id_and_runs,
    a_saved_tar_with_gzip_layers_is_loaded_as_it_is,
    the_engines_own_saved_tars_of_several_images_are_taken,
);

fn engine(host: &TestEngine) -> Paced {
    let deadlines = Deadlines::from_config(&config::Engine::default(), &config::Placeholder::default());
    let docker = Docker::connect(&host.endpoint(), Some(host.kind)).unwrap();
    Paced::new(std::sync::Arc::new(docker), &config::Pacer::default(), deadlines, TaskTracker::new())
}

fn name(what: &str) -> String {
    format!("localhost/nspool-test-{what}-{:x}:1", unique())
}

fn open(root: &Path) -> Store {
    Store::open(root, Options::default()).unwrap()
}

async fn ensure(engine: &Paced, store: &Store, name: &str) -> transfer::Ensured {
    transfer::ensure_loaded(engine, store, &Reference::parse(name).unwrap()).await.unwrap()
}

/// Loads a changed busybox, so that nobody else has it; gives its id.
async fn busybox(engine: &Paced, host: &TestEngine, name: &str) -> String {
    engine.load_image(busybox_archive(name).into()).await.unwrap();
    let container = host.run(&["create", name, "sh"]);
    // A layer of its own, made by the engine.
    if host.kind == EngineKind::Podman {
        // It takes no commit of Docker's client.
        podmans(host, &["commit", "-q", &container, name]);
    } else {
        host.run(&["commit", &container, name]);
    }
    host.run(&["rm", &container]);
    engine.image_id(name).await.unwrap().unwrap().to_string()
}

/// podman's own client, on that engine.
fn podmans(host: &TestEngine, arguments: &[&str]) {
    let output = std::process::Command::new("podman").args(["--url", &host.endpoint()]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_id(stored: &str, engines: &str) -> bool {
    stored.trim_start_matches("sha256:") == engines.trim_start_matches("sha256:")
}

async fn what_the_engine_saves_comes_back_with_its_id_and_runs(host: &TestEngine) {
    let (dir, engine, name) = (tempfile::tempdir().unwrap(), engine(host), name("saved"));
    let store = open(dir.path());
    let id = busybox(&engine, host, &name).await;
    let stored = transfer::save(&engine, &store, &name).await.unwrap();
    assert!(is_id(stored[0].id.as_str(), &id), "{stored:?}, the engine has {id}");
    assert_eq!(stored[0].names, std::slice::from_ref(&name));
    assert_eq!(store.verify().unwrap().faults, []);
    host.run(&["rmi", &name]);
    assert_eq!(engine.image_id(&id).await.unwrap(), None);

    let loaded = ensure(&engine, &store, &name).await;
    assert!(is_id(loaded.id.as_str(), &id) && loaded.how == How::Loaded, "{loaded:?}");
    assert!(host.run(&["run", "--rm", "--net", "none", &name, "sh", "-c", "echo it runs"]).contains("it runs"));
    let began = Instant::now();
    assert_eq!(ensure(&engine, &store, &name).await.how, How::Present);
    println!("{}: present after {:?}", host.kind, began.elapsed());
    // A name that it lost is given again, and nothing is loaded.
    host.run(&["tag", &name, &format!("{name}-kept")]);
    host.run(&["rmi", &name]);
    assert_eq!(ensure(&engine, &store, &name).await.how, How::Named);
    assert!(engine.image_id(&name).await.unwrap().is_some());
    host.run(&["rmi", &name, &format!("{name}-kept")]);
}

/// One download, two engines; and a wiped one is filled again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docker_and_podman_are_loaded_from_one_store() {
    let (dir, name) = (tempfile::tempdir().unwrap(), name("both"));
    let store = open(dir.path());
    let stored = store.import_tar(&*random_archive(&name, LAYER), None).unwrap();
    for host in [docker(), podman(), docker()] {
        let engine = engine(host);
        let first = ensure(&engine, &store, &name).await;
        let second = ensure(&engine, &store, &name).await;
        assert!(is_id(stored[0].id.as_str(), first.id.as_str()), "{}: {first:?}", host.kind);
        assert_eq!((first.how, second.how), (How::Loaded, How::Present), "{}", host.kind);
        host.run(&["rmi", &name]);
    }
}

/// As registries have them, and so as pulls will store them.
async fn a_saved_tar_with_gzip_layers_is_loaded_as_it_is(host: &TestEngine) {
    let (dir, engine, name) = (tempfile::tempdir().unwrap(), engine(host), name("gzip"));
    let (plain, zipped) = (open(&dir.path().join("plain")), open(&dir.path().join("zipped")));
    let stored = plain.import_tar(&*unique_busybox_archive(&name), None).unwrap();
    let tar = rezipped(&plain, &stored[0]);
    let again = zipped.import_tar(&*tar, None).unwrap();
    assert!(again[0].id == stored[0].id && again[0].size < stored[0].size, "{again:?}");
    let loaded = ensure(&engine, &zipped, &name).await;
    assert!(is_id(stored[0].id.as_str(), loaded.id.as_str()) && loaded.how == How::Loaded, "{loaded:?}");
    assert!(host.run(&["run", "--rm", "--net", "none", &name, "sh", "-c", "echo it runs"]).contains("it runs"));
    host.run(&["rmi", &name]);
}

/// The same image with its layers compressed, in the form of `docker save`.
fn rezipped(store: &Store, image: &nspool::image::store::StoredImage) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    tar::Archive::new(store.export(image, &image.names).unwrap()).unpack(dir.path()).unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            assert!(std::process::Command::new("gzip").arg(&path).status().unwrap().success());
            std::fs::rename(path.with_extension("tar.gz"), path).unwrap();
        }
    }
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("", dir.path()).unwrap();
    tar.into_inner().unwrap()
}

async fn the_engines_own_saved_tars_of_several_images_are_taken(host: &TestEngine) {
    let (dir, engine) = (tempfile::tempdir().unwrap(), engine(host));
    let store = open(&dir.path().join("store"));
    let (one, two) = (name("one"), name("two"));
    let ids = [busybox(&engine, host, &one).await, busybox(&engine, host, &two).await];
    let mut tars = vec![host.client(&["save", &one, &two]).stdout];
    if host.kind == EngineKind::Podman {
        // Its own client has it write a layout in a tar.
        let path = dir.path().join("oci.tar");
        podmans(host, &["save", "--format", "oci-archive", "-o", path.to_str().unwrap(), &one]);
        tars.push(std::fs::read(path).unwrap());
    }
    for tar in tars {
        store.import_tar(&*tar, None).unwrap();
        let found = store.image(&one).unwrap().expect("it has its name");
        assert!(is_id(found.id.as_str(), &ids[0]), "{found:?}");
    }
    assert!(is_id(store.image(&two).unwrap().unwrap().id.as_str(), &ids[1]));
    assert_eq!(store.verify().unwrap().faults, []);
    host.run(&["rmi", &one, &two]);
}

/// podman loads the store's folder itself, as a tar: it is an OCI layout that others read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_reads_the_store_as_an_oci_layout() {
    let (dir, name, host) = (tempfile::tempdir().unwrap(), name("layout"), podman());
    let store = open(dir.path());
    let stored = store.import_tar(&*random_archive(&name, 100_000), None).unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    for part in ["oci-layout", "index.json"] {
        tar.append_path_with_name(dir.path().join(part), part).unwrap();
    }
    tar.append_dir_all("blobs", dir.path().join("blobs")).unwrap();
    let engine = engine(host);
    engine.load_image(tar.into_inner().unwrap().into()).await.unwrap();
    let loaded = engine.image_id(&name).await.unwrap().expect("podman knows it by its name");
    assert!(is_id(stored[0].id.as_str(), loaded.as_str()));
    host.run(&["rmi", &name]);
}

/// A load that is given up is cut off: the engine keeps nothing, and the next one is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_given_up_leaves_nothing() {
    let (dir, name, host) = (tempfile::tempdir().unwrap(), name("given-up"), docker());
    let store = open(dir.path());
    let stored = store.import_tar(&*random_archive(&name, 64 << 20), None).unwrap();
    let engine = engine(host);
    let reference = Reference::parse(&name).unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(30), transfer::ensure_loaded(&engine, &store, &reference)).await;
    assert!(given_up.is_err(), "{given_up:?}");
    assert_eq!(engine.image_id(stored[0].id.as_str()).await.unwrap(), None);
    assert_eq!(ensure(&engine, &store, &name).await.how, How::Loaded);
    host.run(&["rmi", &name]);
}
