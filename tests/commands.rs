//! `demo`, `purge` and `bench` as somebody types them, on real engines: what they find, what they refuse, and that they leave nothing behind.
//!
//! They use pools by fixed names, and look at all that is in an engine, so one test runs at a time.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nspool::client::Client;
use nspool::engine::Engine as _;
use nspool::engine::docker::Docker;
use nspool::lock::{LOCKS, PoolLock};
use nspool::nanny::buddy::PIN_SLOT;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::engines::{TestEngine, docker, podman, unique};
use support::image::{BUSYBOX, busybox_image};
use support::{eventually, wait_for};
use tokio::sync::{Mutex, MutexGuard};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const LIMIT: Duration = Duration::from_secs(120);

/// What there is besides the engine's own things: before and after must be the same.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    containers: BTreeSet<String>,
    images: BTreeSet<String>,
    locks: BTreeSet<String>,
}

impl Traces {
    fn of(engine: &TestEngine) -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect();
        let locks = std::fs::read_dir(LOCKS).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap());
        Self {
            containers: lines(engine.run(&["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}"])),
            images: lines(engine.run(&["images", "--no-trunc", "-q"])),
            locks: locks.filter(|name| name.starts_with("demo-") || name.starts_with("bench-")).collect(),
        }
    }
}

/// A turn alone, and a folder for temporary files that must be empty in the end.
struct Stand<'e> {
    engine: &'e TestEngine,
    before: Traces,
    tmp: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl<'e> Stand<'e> {
    async fn new(engine: &'e TestEngine) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        Self { engine, before: Traces::of(engine), tmp: tempfile::Builder::new().prefix("nspt").tempdir_in("/tmp").unwrap(), _turn: turn }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = nspool(arguments);
        command.args(["--engine-endpoint", &self.engine.endpoint()]).env("TMPDIR", self.tmp.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        outcome(&self.command(arguments).output().unwrap())
    }

    fn assert_nothing_left(&self) {
        assert_eq!(Traces::of(self.engine), self.before);
        let files: Vec<_> = std::fs::read_dir(self.tmp.path()).unwrap().collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

/// The program, deaf to this machine's configuration.
fn nspool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nspool"));
    command.args(arguments).stdin(Stdio::null());
    for variable in ["NSPOOL_OUTPUT", "NSPOOL_LOG_FILTER", "NSPOOL_CONFIG", "DOCKER_HOST"] {
        command.env_remove(variable);
    }
    command
}

fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

// ---- demo ----------------------------------------------------------------------------------------------------------------------------

async fn the_demo_compares_and_leaves_nothing(engine: &TestEngine) {
    let stand = Stand::new(engine).await;
    let (code, out, words) = stand.run(&["demo", "--ready", "2", "--starts", "3", "--concurrency", "2", "-o", "json"]);
    assert_eq!(code, 0, "{words}");
    let view: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(view["slots"], 2);
    let rows = view["rows"].as_array().unwrap();
    let starts: Vec<_> = rows.iter().map(|row| (row["at_once"].as_u64().unwrap(), row["starts"].as_u64().unwrap())).collect();
    assert_eq!(starts, [(1, 3), (2, 4)], "whole batches: {out}");
    for row in rows {
        let figure = |key: &str| row[key].as_f64().unwrap();
        assert!(figure("leased_ms") > figure("lease_ms") && figure("lease_ms") > 0.0, "{row}");
        assert!((figure("ratio") - figure("bridge_ms") / figure("leased_ms")).abs() < 0.01, "{row}");
    }
    for step in ["answers at unix://", "namespaces are ready", "one at a time", "2 at once"] {
        assert!(words.contains(step), "{step:?} is not said: {words}");
    }
    stand.assert_nothing_left();
}

#[tokio::test]
async fn the_demo_compares_and_leaves_nothing_on_docker() {
    the_demo_compares_and_leaves_nothing(docker()).await;
}

#[tokio::test]
async fn the_demo_compares_and_leaves_nothing_on_podman() {
    the_demo_compares_and_leaves_nothing(podman()).await;
}

/// What the demonstration without an engine puts on the host.
fn native_traces() -> Vec<String> {
    // Of this network namespace, which what is mounted on /sys may not be of.
    let links = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    let links = links.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let folders = std::fs::read_dir("/run").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let locks = std::fs::read_dir(LOCKS).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let ours = links.filter(|name| name.starts_with("ns-demo")).chain(folders.filter(|name| name.starts_with("nspool-demo-")));
    let mounts = mounts.lines().filter(|mount| mount.contains("nspool-demo-")).map(str::to_owned);
    ours.chain(mounts).chain(locks.filter(|name| name.starts_with("demo-"))).collect()
}

#[tokio::test]
async fn the_demo_needs_no_engine_and_leaves_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let output = nspool(&["demo", "--native", "--ready", "2", "--starts", "3", "--concurrency", "2", "-o", "json"]).output().unwrap();
    let (code, out, words) = outcome(&output);
    assert_eq!(code, 0, "{words}");
    let view: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&view["slots"], &view["engine"]), (&2.into(), &"native".into()));
    let starts: Vec<_> = view["rows"].as_array().unwrap().iter().map(|row| (row["at_once"].as_u64(), row["starts"].as_u64())).collect();
    assert_eq!(starts, [(Some(1), Some(3)), (Some(2), Some(4))], "whole batches: {out}");
    for row in view["rows"].as_array().unwrap() {
        let figure = |key: &str| row[key].as_f64().unwrap();
        assert!(figure("leased_ms") > figure("lease_ms") && figure("lease_ms") > 0.0 && figure("own_ms") > 0.0, "{row}");
        assert!((figure("ratio") - figure("own_ms") / figure("leased_ms")).abs() < 0.01, "{row}");
    }
    assert_eq!(native_traces(), [""; 0]);

    let another = PoolLock::take(LOCKS.as_ref(), "native", "demo-own").unwrap();
    let (code, out, words) = outcome(&nspool(&["demo", "--native", "--ready", "1"]).output().unwrap());
    assert!((code, out.as_str()) == (75, "") && words.contains("another nspool runs the pool \"demo-own\""), "{code}: {words}");
    another.discard().unwrap();
    assert_eq!(native_traces(), [""; 0]);

    let (code, _, words) = outcome(&nspool(&["demo", "--native", "--ready", "1", "--program", "/nowhere"]).output().unwrap());
    assert!(code != 0 && words.contains("/nowhere"), "{code}: {words}");
    assert_eq!(native_traces(), [""; 0]);

    for (step, signal, code) in [("Filling", Signal::TERM, 143), ("1 at once", Signal::INT, 130)] {
        let (ended, said) = interrupt(nspool(&["demo", "--native", "--ready", "3", "--starts", "10000"]), step, signal);
        assert_eq!(ended, code, "{said}");
        assert_eq!(native_traces(), [""; 0], "{said}");
    }
}

/// Starts it, waits until it says `step`, sends the signal, and gives what it says afterwards.
fn interrupt(mut command: Command, step: &str, signal: Signal) -> (i32, String) {
    let mut child: Child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut words = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(step) {
        assert!(words.read_line(&mut said).unwrap() > 0, "it ended before {step:?}: {said}");
    }
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), signal).unwrap();
    words.read_to_string(&mut said).unwrap();
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "", "figures of an interrupted run");
    (child.wait().unwrap().code().unwrap(), said)
}

#[tokio::test]
async fn a_demo_that_is_interrupted_cleans_up_wherever_it_is() {
    let stand = Stand::new(docker()).await;
    for (step, signal, code) in [("Filling", Signal::TERM, 143), ("one at a time", Signal::INT, 130)] {
        let begin = Instant::now();
        let (ended, said) = interrupt(stand.command(&["demo", "--ready", "3", "--starts", "1000"]), step, signal);
        assert_eq!(ended, code, "{said}");
        assert!(begin.elapsed() < LIMIT, "{said}");
        stand.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_demo_beside_another_says_so_and_touches_nothing() {
    let stand = Stand::new(docker()).await;
    let info = Docker::connect(&stand.engine.endpoint(), None).unwrap().info().await.unwrap();
    let other = PoolLock::take(Path::new(LOCKS), &info.id, "demo").unwrap();
    let (code, out, words) = stand.run(&["demo", "--ready", "1"]);
    assert_eq!((code, out.as_str()), (75, ""), "{words}");
    assert!(words.contains("another nspool runs the pool \"demo\""), "{words}");
    other.discard().unwrap();
    stand.assert_nothing_left();
}

#[test]
fn what_cannot_be_used_is_said_before_anything_is_done() {
    for command in ["demo", "bench", "purge"] {
        let run = |arguments: &[&str]| outcome(&nspool(&[&[command], arguments].concat()).output().unwrap());
        let (code, _, words) = run(&["--engine-endpoint", "unix:///nonexistent/e.sock"]);
        assert_eq!(code, 69, "{command}: {words}");
        assert!(words.contains("/nonexistent/e.sock"), "{words}");
        let (code, _, words) = run(&["--engine-endpoint", "tcp://127.0.0.1:2375"]);
        assert_eq!(code, 64, "{command}: {words}");
        assert!(words.contains("only local sockets"), "{words}");
    }
}

#[tokio::test]
async fn a_functions_image_that_is_not_there_is_said_so() {
    let stand = Stand::new(docker()).await;
    let (code, _, words) = stand.run(&["demo", "--image", "localhost/nobody:1"]);
    assert_eq!(code, 69, "{words}");
    assert!(words.contains("localhost/nobody:1") && words.contains("pull it first"), "{words}");
    stand.assert_nothing_left();
}

// ---- purge ---------------------------------------------------------------------------------------------------------------------------

/// A pool with a daemon of its own, which can be killed.
struct Serving<'e> {
    engine: &'e TestEngine,
    pool: String,
    child: Child,
    _dir: tempfile::TempDir,
}

impl<'e> Serving<'e> {
    async fn start(engine: &'e TestEngine, ready: u32) -> Self {
        let pool = format!("t{:x}", unique());
        let dir = tempfile::Builder::new().prefix("nspt").tempdir_in("/tmp").unwrap();
        let socket = dir.path().join("s").display().to_string();
        let ready_flag = ready.to_string();
        let mut command = nspool(&["serve", "--config", "/dev/null", "--pool", &pool, "--ready", &ready_flag, "--max", &ready_flag]);
        command.args(["--listen", &format!("unix:{socket}"), "--engine-endpoint", &engine.endpoint()]);
        let child = command.args(["--log-filter", "error"]).spawn().unwrap();
        let serving = Self { engine, pool, child, _dir: dir };
        let client = Client::connect(&format!("unix:{socket}")).unwrap();
        let all_ready = || async { client.usage().await.ok()?.total.filter(|counts| counts.ready == ready) };
        eventually("all slots to be ready", LIMIT, all_ready).await;
        serving
    }

    fn buddies(&self) -> BTreeSet<String> {
        let names = self.engine.run(&["ps", "-a", "--filter", &format!("label=nspool.pool={}", self.pool), "--format", "{{.Names}}"]);
        let (stem, pin) = (format!("nspool-{}-", self.pool), pin(&self.pool));
        names.lines().filter(|name| name.starts_with(&stem) && !name.starts_with(&pin)).map(str::to_owned).collect()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _ended = self.child.wait();
        let ours = self.engine.run(&["ps", "-aq", "--filter", &format!("label=nspool.pool={}", self.pool)]);
        let ours: Vec<&str> = ours.lines().collect();
        if !ours.is_empty() {
            self.engine.client(&[&["rm", "-f"][..], &ours].concat());
        }
    }
}

/// What keeps the placeholder image while there is no buddy, as when the first one is slow.
fn pin(pool: &str) -> String {
    format!("nspool-{pool}-{PIN_SLOT}-")
}

fn names(value: &Value) -> BTreeSet<String> {
    let name = |item: &Value| item.as_str().or_else(|| item["name"].as_str()).unwrap().to_owned();
    value.as_array().unwrap().iter().map(name).collect()
}

#[tokio::test]
async fn a_purge_removes_what_a_dead_pool_left_and_nothing_else() {
    let stand = Stand::new(docker()).await;
    let engine = stand.engine;
    busybox_image(&Docker::connect(&engine.endpoint(), None).unwrap()).await;
    let mut serving = Serving::start(engine, 3).await;
    let pool = serving.pool.clone();
    let buddies = serving.buddies();
    assert_eq!(buddies.len(), 3);

    let (code, out, words) = stand.run(&["purge", "--pool", &pool]);
    assert_eq!((code, out.as_str()), (75, ""), "while the daemon lives: {words}");
    assert!(words.contains("another nspool runs the pool"), "{words}");
    assert_eq!(serving.buddies(), buddies);
    serving.kill();

    // One has somebody inside, one a joiner that could start and has no process.
    let [joined, configured]: [&String; 2] = buddies.iter().take(2).collect::<Vec<_>>().try_into().unwrap();
    let sleep = [BUSYBOX, "/bin/sleep", "100000"];
    let joiner = engine.run(&[&["run", "-d", "--network", &format!("container:{joined}")][..], &sleep].concat());
    let created = engine.run(&[&["create", "--network", &format!("container:{configured}")][..], &sleep].concat());
    // Labels without the name, the name without labels, and another pool's.
    let label = |pool: &str| {
        let of = [("pool", pool), ("instance", "x"), ("slot", "0"), ("generation", "1"), ("version", "0.1.0")];
        of.iter().flat_map(|(key, value)| ["--label".to_owned(), format!("nspool.{key}={value}")]).collect::<Vec<_>>()
    };
    let decoys = [
        (format!("decoy-{pool}"), label(&pool)),
        (format!("nspool-{pool}-0-1-1-00000abc"), Vec::new()),
        (format!("nspool-{pool}x-0-1-1-00000abc"), label(&format!("{pool}x"))),
    ];
    for (name, labels) in &decoys {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        engine.run(&[&["create", "--name", name][..], &labels, &sleep].concat());
    }
    let exists = |name: &str| engine.client(&["inspect", "--type", "container", name]).status.success();

    let free: BTreeSet<String> = buddies.iter().filter(|name| *name != joined).cloned().collect();
    for dry_run in [true, false] {
        let dry: &[&str] = if dry_run { &["--dry-run"] } else { &[] };
        let (code, out, words) = stand.run(&[&["purge", "--pool", &pool, "-o", "json"], dry].concat());
        assert_eq!(code, 1, "{words}");
        let view: Value = serde_json::from_str(&out).unwrap();
        let mut removed = names(&view["removed"]);
        removed.retain(|name| !name.starts_with(&pin(&pool)));
        assert_eq!((&view["dry_run"], removed), (&dry_run.into(), free.clone()), "{out}");
        assert_eq!(names(&view["left"]), BTreeSet::from([joined.clone()]), "{out}");
        assert!(view["left"][0]["why"].to_string().contains(&joiner[..12]), "who is inside is said: {out}");
        assert_eq!(free.iter().any(|name| exists(name)), dry_run, "{out}");
        assert!(exists(joined));
    }

    engine.run(&["rm", "-f", &joiner]);
    let (code, out, words) = stand.run(&["purge", "--pool", &pool]);
    assert_eq!(code, 0, "{words}");
    assert!(out.contains(joined.as_str()) && out.contains("removed"), "{out}");
    let (code, out, _) = stand.run(&["purge", "--pool", &pool]);
    assert_eq!(code, 0);
    assert!(out.contains("nothing of a pool"), "{out}");
    for (decoy, _) in &decoys {
        assert!(exists(decoy), "{decoy} is somebody else's");
        engine.run(&["rm", "-f", decoy]);
    }
    engine.run(&["rm", "-f", &created]);
    let lock_left =
        || std::fs::read_dir(LOCKS).unwrap().flatten().any(|file| file.file_name().to_string_lossy().starts_with(&format!("{pool}-")));
    assert!(!lock_left(), "the pool is gone, and its lock with it");
}

// ---- bench ---------------------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn the_bench_writes_every_series_and_leaves_nothing() {
    let stand = Stand::new(docker()).await;
    let out = tempfile::tempdir().unwrap();
    let small = ["--quick", "--concurrency", "1,2", "--starts", "2", "--buddies", "3", "--parallel", "2"];
    let (code, text, words) = stand.run(&[&["bench", "-o", "json", "--out", out.path().to_str().unwrap()], &small[..]].concat());
    assert_eq!(code, 0, "{words}");

    let report: Value = serde_json::from_str(&text).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let key = |row: &Value| format!("{},{},{}", row["measure"].as_str().unwrap(), row["at_once"], row["side"].as_str().unwrap());
    let wanted = [
        "start,1,leased",
        "start,1,bridge",
        "start,2,leased",
        "start,2,bridge",
        "fill,2,daemon",
        "fill,2,bare loop",
        "removal,2,daemon",
        "removal,1,one by one",
    ];
    assert_eq!(rows.iter().map(key).collect::<Vec<_>>(), wanted);
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let (csv, samples) = (read("bench.csv"), read("samples.csv"));
    assert_eq!(csv.lines().count(), 1 + wanted.len());
    for (row, wanted) in rows.iter().zip(wanted) {
        for figure in ["median_ms", "p5_ms", "p95_ms", "per_second"] {
            assert!(row[figure].as_f64().unwrap() > 0.0, "{figure} of {row}");
        }
        let ours = wanted.ends_with("leased") || wanted.ends_with("daemon");
        assert_eq!(row["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), ours, "{row}");
        assert!(csv.lines().any(|line| line.starts_with(&format!("{wanted},"))), "{wanted} in {csv}");
        let runs = usize::try_from(row["runs"].as_u64().unwrap()).unwrap();
        assert_eq!(samples.lines().filter(|line| line.starts_with(&format!("{wanted},"))).count(), runs, "{wanted} in {samples}");
    }
    for (name, texts) in [
        ("start-latency.svg", &["starts at once", "ms until the function runs", "in a leased namespace", "on the network"][..]),
        ("start-throughput.svg", &["starts at once", "starts per second", "in a leased namespace", "on the network"]),
        ("slots.svg", &["buddies per second", "fill: daemon", "fill: bare loop", "removal: daemon", "removal: bare loop"]),
    ] {
        let svg = read(name);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{name}");
        for text in texts {
            assert!(svg.contains(text), "{text:?} is not in {name}");
        }
    }
    stand.assert_nothing_left();
}

#[tokio::test]
async fn a_bench_that_is_interrupted_writes_nothing_and_leaves_nothing() {
    let stand = Stand::new(docker()).await;
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().join("figures");
    let command =
        stand.command(&["bench", "--quick", "--concurrency", "3", "--starts", "3", "--rounds", "500", "--out", dir.to_str().unwrap()]);
    let (code, said) = interrupt(command, "Round 1 of 500: starts", Signal::INT);
    assert_eq!(code, 130, "{said}");
    assert!(!dir.exists(), "{said}");
    wait_for("its containers to be gone", LIMIT, || (Traces::of(stand.engine) == stand.before).then_some(()));
    stand.assert_nothing_left();
}
