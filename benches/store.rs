//! How long the image store's lock is held while eight writers bring large blobs, beside a store that writes beneath its lock; and what it costs that
//! an engine has an image already, beside loading it again.
//!
//!     cargo bench --bench store [-- MEBIBYTES [ROUNDS]]
//!     deploy/setup.sh engine run cargo bench --bench store     (with the second part)
//!
//! Both stores get the same bytes by the same writers, on the same disk, in turns: each writer hashes, syncs and names a blob of its own. Asked: held for less
//! than a millisecond at p99, whatever the size; a load skipped 300 times faster than done. The exit code is 1 when one is missed.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use nspool::engine::Engine as _;
use nspool::engine::docker::Docker;
use nspool::image::reference::Reference;
use nspool::image::store::{Commit, Descriptor, Options, Store};
use nspool::image::transfer;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

#[path = "../tests/support/mod.rs"]
mod support;

const WRITERS: usize = 8;
const MEBIBYTES: usize = 64;
const ROUNDS: usize = 4;
const CHUNK: usize = 1 << 20;
const MOST_HELD: f64 = 1e-3;
const LEAST_FACTOR: f64 = 300.0;
const LOADED_MEBIBYTES: usize = 192;

/// Seconds, as the store measures them itself.
#[derive(Debug, Default)]
struct Held(Mutex<Vec<f64>>);

impl HistogramFn for Held {
    fn record(&self, value: f64) {
        self.0.lock().push(value);
    }
}

#[derive(Debug)]
struct Measures {
    held: Arc<Held>,
    waited: Arc<Held>,
}

impl Recorder for Measures {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match key.name() {
            "nspool_lock_hold_seconds" => Histogram::from_arc(Arc::clone(&self.held)),
            "nspool_lock_wait_seconds" => Histogram::from_arc(Arc::clone(&self.waited)),
            _ => Histogram::noop(),
        }
    }
}

/// Bytes that no two blobs share.
fn blob(data: &[u8], number: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
    data.chunks(CHUNK).map(move |chunk| {
        let mut chunk = chunk.to_vec();
        chunk[..8].copy_from_slice(&number.to_le_bytes());
        chunk
    })
}

fn ours(store: &Store, data: &[u8], number: u64) {
    let staging = store.stage().unwrap();
    let mut writer = staging.blob("layer", Default::default()).unwrap();
    blob(data, number).for_each(|chunk| writer.write(&chunk).unwrap());
    let layer = writer.finish().unwrap();
    let config =
        serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.digest.as_str()]}});
    let config = staging.put("config", "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()).unwrap();
    let part = |part: &Descriptor| serde_json::json!({"mediaType": part.media_type, "digest": part.digest.as_str(), "size": part.size});
    let layer = Descriptor::new("application/vnd.oci.image.layer.v1.tar", layer.digest, layer.size);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": part(&config), "layers": [part(&layer)]}).to_string();
    let manifest = staging.put("manifest", "application/vnd.oci.image.manifest.v1+json", manifest.as_bytes()).unwrap();
    let names = vec![Reference::parse(&format!("bench/fn:{number}")).unwrap()];
    staging.commit(&[Commit { manifest, names, origin: None }]).unwrap();
}

/// What the simplest store does: it has the lock while the bytes come.
fn baseline(root: &Path, data: &[u8], number: u64, measures: &Measures) {
    let began = Instant::now();
    let lock = File::create(root.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let since = Instant::now();
    let path = root.join(format!("part-{number}"));
    let (mut file, mut hash) = (File::create(&path).unwrap(), Sha256::new());
    for chunk in blob(data, number) {
        std::io::Write::write_all(&mut file, &chunk).unwrap();
        hash.update(&chunk);
    }
    file.sync_all().unwrap();
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::rename(path, root.join(hex)).unwrap();
    File::open(root).unwrap().sync_all().unwrap();
    drop(lock);
    measures.held.record(since.elapsed().as_secs_f64());
    measures.waited.record((since - began).as_secs_f64());
}

/// All writers at once; how long it took them.
fn at_once(write: impl Fn(u64) + Sync) -> Duration {
    let began = Instant::now();
    thread::scope(|scope| {
        (0..WRITERS as u64).for_each(|writer| {
            drop(scope.spawn({
                let write = &write;
                move || write(writer)
            }))
        })
    });
    began.elapsed()
}

struct Row {
    held: Vec<f64>,
    waited: Vec<f64>,
    took: Vec<f64>,
}

impl Row {
    fn at(samples: &[f64], share: f64) -> f64 {
        samples[((samples.len() - 1) as f64 * share).round() as usize]
    }

    fn print(&mut self, name: &str) {
        [&mut self.held, &mut self.waited, &mut self.took].into_iter().for_each(|samples| samples.sort_by(f64::total_cmp));
        let micros = |samples: &[f64], share| Self::at(samples, share) * 1e6;
        println!(
            "{name:34} {:>6} {:>12.0} {:>12.0} {:>12.0} {:>12.0} {:>12.0} {:>9.2}",
            self.held.len(),
            micros(&self.held, 0.5),
            micros(&self.held, 0.99),
            micros(&self.held, 1.0),
            micros(&self.waited, 0.5),
            micros(&self.waited, 0.99),
            Self::at(&self.took, 0.5)
        );
    }
}

fn locks(mebibytes: usize, rounds: usize, measures: &Measures) -> bool {
    let mut data = vec![0; mebibytes << 20];
    nspool::random::fill(&mut data);
    let taken = |samples: &Held| std::mem::take(&mut *samples.0.lock());
    let row = || Row { held: Vec::new(), waited: Vec::new(), took: Vec::new() };
    let (mut own, mut other) = (row(), row());
    for round in 0..rounds as u64 {
        let number = |writer: u64| round * WRITERS as u64 + writer;
        for is_own in [round % 2 == 0, round % 2 == 1] {
            let dir = tempfile::tempdir().unwrap();
            let row = if is_own { &mut own } else { &mut other };
            let took = if is_own {
                let store = Store::open(dir.path(), Options::default()).unwrap();
                // What it takes to begin a store is none of it.
                taken(&measures.held);
                taken(&measures.waited);
                at_once(|writer| ours(&store, &data, number(writer)))
            } else {
                at_once(|writer| baseline(dir.path(), &data, number(writer), measures))
            };
            row.took.push(took.as_secs_f64());
            row.held.extend(taken(&measures.held));
            row.waited.extend(taken(&measures.waited));
        }
    }
    println!("{WRITERS} writers at once, a blob of {mebibytes} MiB each, {rounds} rounds; microseconds, and seconds for all eight");
    println!(
        "{:34} {:>6} {:>12} {:>12} {:>12} {:>12} {:>12} {:>9}",
        "", "n", "held p50", "held p99", "most", "waited p50", "waited p99", "all"
    );
    own.print("ours");
    other.print("a store that writes beneath it");
    let (ours, theirs) = (Row::at(&own.held, 0.99), Row::at(&other.held, 0.99));
    let kept = ours < MOST_HELD;
    println!("held p99: {:.0} times shorter; under {} ms: {}", theirs / ours, MOST_HELD * 1e3, if kept { "kept" } else { "MISSED" });
    kept
}

async fn loads() -> bool {
    let host = support::engines::docker();
    let engine = Docker::connect(&host.endpoint(), Some(host.kind)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    let name = format!("localhost/nspool-bench-{:x}:1", support::engines::unique());
    let archive = support::image::random_archive(&name, LOADED_MEBIBYTES << 20);
    let stored = store.import_tar(&*archive, None).unwrap();
    drop(archive);
    let reference = Reference::parse(&name).unwrap();
    let began = Instant::now();
    transfer::ensure_loaded(&engine, &store, &reference).await.unwrap();
    println!("\n{} {LOADED_MEBIBYTES} MiB, first load from the store: {:.0} ms", host.kind, began.elapsed().as_secs_f64() * 1e3);
    let (mut skipped, mut asked, mut loaded) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..7 {
        let began = Instant::now();
        transfer::ensure_loaded(&engine, &store, &reference).await.unwrap();
        skipped.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        engine.image(stored[0].id.as_str()).await.unwrap().unwrap();
        asked.push(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let export = store.export(&stored[0], std::slice::from_ref(&name)).unwrap();
        let path = dir.path().join("tar");
        std::io::copy(&mut { export }, &mut File::create(&path).unwrap()).unwrap();
        let written = began.elapsed();
        host.run(&["load", "-q", "-i", path.to_str().unwrap()]);
        loaded.push((began.elapsed() - written).as_secs_f64());
    }
    host.run(&["rmi", &name]);
    let median = |samples: &mut Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2] * 1e3
    };
    let (skipped, asked, loaded) = (median(&mut skipped), median(&mut asked), median(&mut loaded));
    let kept = loaded / skipped >= LEAST_FACTOR;
    println!(
        "present: `docker load` {loaded:.1} ms, skipped {skipped:.3} ms (of which the question to the engine {asked:.3} ms): {:.0} times faster; {LEAST_FACTOR} asked: {}",
        loaded / skipped,
        if kept { "kept" } else { "MISSED" }
    );
    kept
}

fn main() -> ExitCode {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let measures = Measures { held: Arc::default(), waited: Arc::default() };
    metrics::set_global_recorder(Measures { held: Arc::clone(&measures.held), waited: Arc::clone(&measures.waited) }).unwrap();
    let (mebibytes, rounds) = (numbers.first().copied().unwrap_or(MEBIBYTES), numbers.get(1).copied().unwrap_or(ROUNDS));
    let mut kept = locks(mebibytes, rounds, &measures);
    if std::env::var_os("NSPOOL_TEST_DOCKER").is_some() {
        kept &= tokio::runtime::Runtime::new().unwrap().block_on(loads());
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
