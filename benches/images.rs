//! What it takes to have an image of a Dockerfile that was built before: by its key (BuildImage), beside the engine's own fully cached build.
//!
//!     deploy/setup.sh engine run cargo bench --bench images [-- ROUNDS]
//!
//! The daemon is the real one, the engine a Docker of the bench's own. Two contexts: one with a small file, and one with 64 MiB more that do not change. Each
//! round asks all sides once, in turns: BuildImage by folder over one connection; the engine's API with a tar that is ready in memory; and the two command lines,
//! `nspool image build` and `docker build`. Medians over all rounds. Then BuildImage in a row, in turns with the two questions that it asks of the engine: an agent
//! that starts functions, on a host that does nothing else.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::BuildImageOptions;
use futures::TryStreamExt as _;
use nspool::client::Client;
use nspool::proto::build_image_request::Part;
use nspool::proto::build_image_response::Event;
use nspool::proto::{BuildDefinition, BuildImageRequest, BuiltImage};

#[path = "../tests/support/mod.rs"]
mod support;

use support::daemon::{NSPOOL, TestDaemon};
use support::engines::{PrivateDocker, TestEngine};
use support::image::{BUSYBOX, busybox_image};

const ROUNDS: usize = 40;
const LARGE: usize = 64 << 20;
/// Calls in a row.
const CALLS: usize = 300;

/// Of one context, in milliseconds.
#[derive(Default)]
struct Figures {
    by_key: Vec<f64>,
    by_engine: Vec<f64>,
    by_nspool: Vec<f64>,
    by_docker: Vec<f64>,
}

#[tokio::main]
async fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    let engine = PrivateDocker::start();
    let daemon = TestDaemon::start(&engine, &["pool.ready = 1", "pool.max = 2"]).await;
    daemon.settled(1).await;
    let docker = Docker::connect_with_unix(engine.socket.to_str().unwrap(), 120, bollard::API_DEFAULT_VERSION).unwrap();
    busybox_image(&nspool::engine::docker::Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap()).await;
    let client = daemon.client();
    for (name, bytes) in [("a small context", 0), ("64 MiB that do not change", LARGE)] {
        let dir = context(bytes);
        // Files that changed less than two seconds ago are read each time.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let tar = hyper::body::Bytes::from(packed(dir.path()));
        let first = build(&client, dir.path()).await;
        by_engine(&docker, tar.clone()).await;
        let mut figures = Figures::default();
        for _ in 0..rounds {
            let began = Instant::now();
            let again = build(&client, dir.path()).await;
            figures.by_key.push(millis(began));
            assert!(again.reused && again.id == first.id);
            let began = Instant::now();
            by_engine(&docker, tar.clone()).await;
            figures.by_engine.push(millis(began));
            let began = Instant::now();
            let output = daemon.cli_of(NSPOOL.as_ref(), &["image", "build", dir.path().to_str().unwrap()]).output().unwrap();
            figures.by_nspool.push(millis(began));
            assert!(output.status.success(), "{output:?}");
            let began = Instant::now();
            docker_build(&engine, dir.path());
            figures.by_docker.push(millis(began));
        }
        report(name, rounds, figures);
        in_a_row(&client, &docker, dir.path(), &first.reference).await;
    }
}

async fn in_a_row(client: &Client, docker: &Docker, folder: &Path, image: &str) {
    let (mut calls, mut questions) = (Vec::new(), Vec::new());
    for _ in 0..CALLS {
        let began = Instant::now();
        assert!(build(client, folder).await.reused);
        calls.push(millis(began));
        let began = Instant::now();
        let (base, known) = tokio::join!(docker.inspect_image(BUSYBOX), docker.inspect_image(image));
        questions.push(millis(began));
        assert!(base.is_ok() && known.is_ok());
    }
    let (calls, questions) = (median(&mut calls), median(&mut questions));
    println!("  {CALLS} calls in a row: {calls:.2} ms; its two questions to the engine, asked at once: {questions:.2} ms");
}

/// What the engine has to look through to find that nothing has changed.
fn context(bytes: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(dir.path().join(name), content).unwrap();
    write("Dockerfile", format!("FROM {BUSYBOX}\nCOPY . /fn\nRUN ls /fn\nENV A=1\nCMD [\"/bin/true\"]\n").as_bytes());
    write("handler", b"#!/bin/sh\necho works\n");
    for number in 0..bytes >> 20 {
        let mut megabyte = vec![0; 1 << 20];
        nspool::random::fill(&mut megabyte);
        write(&format!("data-{number}"), &megabyte);
    }
    dir
}

fn packed(folder: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", folder).unwrap();
    tar.into_inner().unwrap()
}

async fn build(client: &Client, folder: &Path) -> BuiltImage {
    let definition = BuildDefinition { context_folder: folder.to_str().unwrap().into(), ..BuildDefinition::default() };
    let parts = futures::stream::iter([BuildImageRequest { part: Some(Part::Definition(definition)) }]);
    let mut answers = client.build_image(parts).await.unwrap();
    loop {
        if let Some(Event::Image(image)) = answers.next().await.unwrap().expect("an image").event {
            return image;
        }
    }
}

async fn by_engine(docker: &Docker, tar: hyper::body::Bytes) {
    let options = BuildImageOptions { t: Some("localhost/nspool-bench:1".into()), rm: true, ..BuildImageOptions::default() };
    let lines: Vec<_> = docker.build_image(options, None, Some(bollard::body_full(tar))).try_collect().await.unwrap();
    assert!(!lines.is_empty());
}

/// By the engine's own client, and its classic builder, as nspool has it.
fn docker_build(engine: &TestEngine, folder: &Path) {
    engine.run(&["build", "-q", "-t", "localhost/nspool-bench:1", folder.to_str().unwrap()]);
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(name: &str, rounds: usize, mut figures: Figures) {
    let (key, engine) = (median(&mut figures.by_key), median(&mut figures.by_engine));
    let (nspool, docker) = (median(&mut figures.by_nspool), median(&mut figures.by_docker));
    println!("{name}, medians of {rounds} rounds:");
    println!("  BuildImage {key:.2} ms, the engine's cached build by its API {engine:.1} ms: {:.0}x", engine / key);
    println!("  `nspool image build` {nspool:.1} ms, `docker build` {docker:.1} ms: {:.0}x", docker / nspool);
    println!("  BuildImage beside `docker build`: {:.0}x", docker / key);
}
