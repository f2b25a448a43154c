//! Namespaces without a container engine, beside what else one can do. Needs root and `ip`; `runc` where it is there.
//!
//!     cargo bench --bench native [-- ROUNDS]                 a furnished namespace, by nspool and by the ip tool; a Release to the next lease; runc
//!     cargo bench --bench native -- slots [CSV SVG]          pools of 100 to 4,000 slots on five bridges: filled, held, taken away
//!     deploy/setup.sh engine run cargo bench --bench native -- docker [ROUNDS]    a slot, by nspool alone and by Docker
//!
//! Each round does both sides, one after the other; figures are medians of rounds, ratios are within the same run. The daemon is the real one. The tool is
//! used in its fastest way: one process for all that is on the host, and one for each namespace, as it cannot change into another by itself.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nspool::client::Request;
use plotters::prelude::*;

#[path = "../tests/support/mod.rs"]
mod support;

use support::daemon::{LIMIT, TestDaemon};
use support::engines::{PrivateDocker, TestEngine, native, unique};

const ROUNDS: usize = 5;
/// Namespaces in a row, for one figure.
const IN_A_ROW: u32 = 50;
const USES: usize = 100;
const RUNS: usize = 20;
const SLOTS: [u32; 5] = [100, 500, 1000, 2000, 4000];
/// A bridge has 1,023 ports.
const BRIDGES: u32 = 5;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(ROUNDS);
    match arguments.first().map(String::as_str) {
        Some("slots") => slots(&arguments[1..]).await,
        Some("docker") => beside_docker(rounds).await,
        _ => {
            one_namespace(rounds).await;
            next_lease().await;
            by_runc().await;
        }
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// So many networks, each with a bridge of its own.
fn networks(number: u32, more: &[String]) -> Vec<String> {
    let mark = unique();
    let names: Vec<String> = (0..number).map(|at| format!("\"n{at}\"")).collect();
    let network = |at: u32| {
        [
            format!("networks.n{at}.kind = \"managed\""),
            format!("networks.n{at}.bridge = \"nt{mark:x}{at}\""),
            format!("networks.n{at}.subnet = \"198.18.{}.0/19\"", 32 * at),
            format!("networks.n{at}.nat = false"),
            format!("networks.n{at}.rest = \"0s\""),
        ]
    };
    let own = [format!("pool.networks = [{}]", names.join(", ")), "log.filter = \"warn\"".to_owned(), "audit.every = \"0s\"".to_owned()];
    own.into_iter().chain((0..number).flat_map(network)).chain(more.iter().cloned()).collect()
}

async fn pool(lines: &[String]) -> TestDaemon<'static> {
    TestDaemon::start(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn size(ready: u32) -> Vec<String> {
    [format!("pool.ready = {ready}"), format!("pool.max = {ready}"), "stop.timeout = \"60s\"".to_owned()].into()
}

// ---- one namespace -----------------------------------------------------------------------------------------------------------------------

/// From nothing to so many ready slots of a running daemon, leases and ledger included.
async fn by_nspool() -> Duration {
    let mut daemon = pool(&networks(1, &[vec!["pool.ready = 0".to_owned()], vec![format!("pool.max = {}", IN_A_ROW)]].concat())).await;
    let client = daemon.client();
    let begun = Instant::now();
    client.resize(Some(IN_A_ROW), Some(IN_A_ROW)).await.unwrap();
    daemon.settled(IN_A_ROW).await;
    let took = begun.elapsed();
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    took
}

fn fed(arguments: &[&str], lines: &str) {
    let mut child = Command::new("ip").args(arguments).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

fn by_tool() -> Duration {
    let mark = format!("nt{:x}", unique());
    fed(&[], &format!("link add {mark} type bridge\nlink set {mark} up\n"));
    let begun = Instant::now();
    let mut host = String::new();
    for at in 0..IN_A_ROW {
        writeln!(
            host,
            "netns add {mark}-{at}\nlink add {mark}{at} master {mark} type veth peer name eth0 netns {mark}-{at}\nlink set {mark}{at} up"
        )
        .unwrap();
    }
    fed(&[], &host);
    for at in 0..IN_A_ROW {
        let inside =
            format!("link set lo up\nlink set eth0 up\naddr add 10.99.0.{}/16 dev eth0\nroute add default via 10.99.0.1\n", at + 2);
        fed(&["-n", &format!("{mark}-{at}")], &inside);
    }
    let took = begun.elapsed();
    let gone: String = (0..IN_A_ROW).map(|at| format!("netns del {mark}-{at}\n")).collect();
    fed(&[], &format!("{gone}link del {mark}\n"));
    took
}

async fn one_namespace(rounds: usize) {
    let (mut ours, mut tool) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(millis(by_nspool().await) / f64::from(IN_A_ROW));
        tool.push(millis(by_tool()) / f64::from(IN_A_ROW));
    }
    let (ours, tool) = (median(ours), median(tool));
    println!(
        "a furnished namespace, {rounds} rounds of {IN_A_ROW}: a ready slot of the pool {ours:.2} ms, by ip -batch {tool:.2} ms: {:.1}x",
        tool / ours
    );
}

// ---- the next lease ----------------------------------------------------------------------------------------------------------------------

async fn next_lease() {
    let mut daemon = pool(&networks(1, &size(1))).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let mut took = Vec::new();
    let mut lease = daemon.allocate(&client).await;
    for _ in 0..USES {
        let begun = Instant::now();
        client.release(&lease.token, false).await.unwrap();
        lease = client.allocate(Request::new().wait(LIMIT)).await.unwrap().keep();
        took.push(millis(begun.elapsed()));
    }
    client.release(&lease.token, false).await.unwrap();
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    println!("from a Release to the slot's next lease, in new namespaces, {USES} uses: p50 {:.2} ms", median(took));
}

// ---- runc --------------------------------------------------------------------------------------------------------------------------------

/// A bundle whose function does nothing, in that network namespace; without one, in a new one.
fn bundle(folder: &Path, path: Option<&str>) {
    let path =
        path.map(|path| serde_json::json!({"type": "network", "path": path})).unwrap_or_else(|| serde_json::json!({"type": "network"}));
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| serde_json::json!({ "type": kind }));
    let all: Vec<_> = namespaces.into_iter().chain([path]).collect();
    let config = serde_json::json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": true}, "hostname": "f",
        "process": {"args": ["/bin/busybox", "true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}], "linux": {"namespaces": all},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn run(folder: &Path) {
    let name = format!("nspb{:x}", unique());
    let ran = Command::new("runc").args(["run", "--no-pivot", "--bundle"]).arg(folder).arg(&name).stdin(Stdio::null()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// What a lease spares: a namespace, with a link, an address and a route, made with the tool before, and removed after.
fn with_its_own(folder: &Path, bridge: &str) -> Duration {
    let mark = format!("nt{:x}", unique());
    let begun = Instant::now();
    fed(&[], &format!("netns add {mark}\nlink add {mark} master {bridge} type veth peer name eth0 netns {mark}\nlink set {mark} up\n"));
    fed(&["-n", &mark], "link set lo up\nlink set eth0 up\naddr add 10.99.0.2/16 dev eth0\nroute add default via 10.99.0.1\n");
    bundle(folder, Some(&format!("/run/netns/{mark}")));
    run(folder);
    let took = begun.elapsed();
    fed(&[], &format!("netns del {mark}\n"));
    took
}

async fn by_runc() {
    if Command::new("runc").arg("--version").stdout(Stdio::null()).status().is_err() {
        return println!("runc is not there");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("rootfs/bin")).unwrap();
    std::fs::create_dir_all(folder.path().join("rootfs/proc")).unwrap();
    std::fs::copy("/bin/busybox", folder.path().join("rootfs/bin/busybox")).unwrap();
    let mut daemon = pool(&networks(1, &size(2))).await;
    daemon.settled(2).await;
    let bridge = format!("nt{:x}", unique());
    fed(&[], &format!("link add {bridge} type bridge\nlink set {bridge} up\n"));
    let client = daemon.client();
    let (mut leased, mut own) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let begun = Instant::now();
        let lease = client.allocate(Request::new().wait(LIMIT)).await.unwrap().keep();
        bundle(folder.path(), Some(&lease.netns_path));
        run(folder.path());
        leased.push(millis(begun.elapsed()));
        client.release(&lease.token, false).await.unwrap();
        own.push(millis(with_its_own(folder.path(), &bridge)));
    }
    fed(&[], &format!("link del {bridge}\n"));
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    let (leased, own) = (median(leased), median(own));
    println!("runc run, {RUNS} runs: in a lease {leased:.1} ms, in a namespace made for it {own:.1} ms: {:.2}x", own / leased);
}

// ---- beside Docker -----------------------------------------------------------------------------------------------------------------------

async fn filled(engine: &TestEngine, lines: &[String], slots: u32) -> f64 {
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut daemon = TestDaemon::start(engine, &lines).await;
    daemon.settled(1).await;
    let begun = Instant::now();
    daemon.client().resize(Some(slots + 1), Some(slots + 1)).await.unwrap();
    daemon.settled(slots + 1).await;
    let took = millis(begun.elapsed()) / f64::from(slots);
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    took
}

async fn beside_docker(rounds: usize) {
    let docker = PrivateDocker::start();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(filled(native(), &networks(1, &["pool.ready = 1".to_owned()]), IN_A_ROW).await);
        theirs.push(filled(&docker, &["pool.ready = 1".to_owned(), "pool.reuse = \"once\"".to_owned()], IN_A_ROW).await);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "a ready slot, {rounds} rounds of {IN_A_ROW}: native {ours:.2} ms, a Docker buddy on the bridge {theirs:.1} ms: {:.0}x",
        theirs / ours
    );
}

// ---- many slots --------------------------------------------------------------------------------------------------------------------------

struct Row {
    slots: u32,
    fill: f64,
    /// Processor time for a slot: the kernel's, and all.
    kernel: f64,
    processor: f64,
    /// Megabytes of the daemon, its helper and their keeper, shared pages divided.
    memory: f64,
    stop: f64,
}

/// A process and those below it.
fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below = children.split_whitespace().flat_map(|child| family(child.parse().unwrap()));
    std::iter::once(pid).chain(below).collect()
}

/// Kernel's and program's seconds so far.
fn processor(pid: u32) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap() / 100.0;
    (ticks(12), ticks(11))
}

fn memory(pid: u32) -> f64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

async fn of(slots: u32) -> Row {
    let mut daemon = TestDaemon::prepare(native(), &networks(BRIDGES, &size(slots)).iter().map(String::as_str).collect::<Vec<_>>());
    let begun = Instant::now();
    daemon.launch().await;
    daemon.settled(slots).await;
    let fill = begun.elapsed().as_secs_f64();
    let family = family(daemon.pid());
    let (kernel, program) = family.iter().map(|pid| processor(*pid)).fold((0.0, 0.0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
    let memory = family.iter().map(|pid| memory(*pid)).sum();
    let begun = Instant::now();
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    let each = 1e3 / f64::from(slots);
    Row { slots, fill, kernel: kernel * each, processor: (kernel + program) * each, memory, stop: begun.elapsed().as_secs_f64() }
}

async fn slots(files: &[String]) {
    let mut rows = Vec::new();
    println!(
        "{:>6} {:>8} {:>12} {:>20} {:>12} {:>8} {:>8}",
        "slots", "fill s", "ms a slot", "kernel's cpu ms", "all cpu ms", "PSS MB", "stop s"
    );
    for slots in SLOTS {
        let row = of(slots).await;
        let each = row.fill * 1e3 / f64::from(slots);
        println!(
            "{slots:>6} {:>8.2} {each:>12.2} {:>20.2} {:>12.2} {:>8.1} {:>8.2}",
            row.fill, row.kernel, row.processor, row.memory, row.stop
        );
        rows.push(row);
    }
    if let [csv, svg] = files {
        let mut text = String::from("slots,fill_s,kernel_ms_a_slot,processor_ms_a_slot,pss_mb,stop_s\n");
        for Row { slots, fill, kernel, processor, memory, stop } in &rows {
            writeln!(text, "{slots},{fill:.3},{kernel:.3},{processor:.3},{memory:.1},{stop:.3}").unwrap();
        }
        std::fs::write(csv, text).unwrap();
        plot(Path::new(svg), &rows);
    }
}

fn plot(path: &Path, rows: &[Row]) {
    let area = SVGBackend::new(path, (800, 480)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let each = |row: &Row| row.fill * 1e3 / f64::from(row.slots);
    let most = rows.iter().map(|row| each(row).max(row.processor).max(row.stop * 1e3 / f64::from(row.slots))).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption("What a slot of the native engine costs, by slots that there are in the end", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d((100.0..4000.0).log_scale(), 0.0..most * 1.2)
        .unwrap();
    chart.configure_mesh().x_desc("slots").y_desc("ms a slot").x_label_formatter(&|slots| format!("{slots:.0}")).draw().unwrap();
    let mut line = |label: &str, color: RGBColor, of: &dyn Fn(&Row) -> f64| {
        let points: Vec<(f64, f64)> = rows.iter().map(|row| (f64::from(row.slots), of(row))).collect();
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)).point_size(3))
            .unwrap()
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    };
    line("until it is ready", BLACK, &each);
    line("processor time for that", BLUE, &|row| row.processor);
    line("of it the kernel's", RED, &|row| row.kernel);
    line("until it is gone", GREEN, &|row| row.stop * 1e3 / f64::from(row.slots));
    let labels = SeriesLabelPosition::UpperLeft;
    chart.configure_series_labels().position(labels).background_style(WHITE.mix(0.8)).border_style(BLACK).draw().unwrap();
    area.present().unwrap();
}
