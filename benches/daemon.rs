//! What the whole daemon costs on the scripted engine: resident memory and time to fill, from 1,000 to 100,000 slots. The engine and its
//! containers are in the same process, so the figures are above what the daemon alone needs.
//!
//!     cargo bench --bench daemon
//!
//! Each size runs in a process of its own. Exit code 1: 1,000 slots took 25 MB or more, or a size did not fill.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nspool::config::Config;
use nspool::daemon::{Daemon, Parts, Signal};
use nspool::engine::fake::FakeWorld;
use nspool::image::gate::Source;
use tokio::sync::mpsc;

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const MOST_FOR_A_THOUSAND: f64 = 25.0;

fn main() -> ExitCode {
    if let Some(slots) = std::env::var("NSPOOL_BENCH_SLOTS").ok().and_then(|slots| slots.parse().ok()) {
        child(slots);
        return ExitCode::SUCCESS;
    }
    println!("{:>8}  {:>12}  {:>10}  {:>10}", "slots", "resident MB", "filled in", "stopped in");
    let mut good = true;
    for slots in SIZES {
        let output = Command::new(std::env::current_exe().unwrap())
            .env("NSPOOL_BENCH_SLOTS", slots.to_string())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let figures: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [resident, fill, stop] = figures[..] else {
            println!("{slots:>8}  failed: {text}");
            good = false;
            continue;
        };
        println!("{slots:>8}  {resident:>12.1}  {fill:>9.2}s  {stop:>9.2}s");
        good &= slots != 1_000 || resident < MOST_FOR_A_THOUSAND;
    }
    println!("target: under {MOST_FOR_A_THOUSAND} MB for 1,000 slots");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn child(slots: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = Config::default();
        (config.pool.ready, config.pool.max) = (slots, slots);
        (config.pacer.rate, config.pacer.concurrent) = (None, 1024);
        config.stop.timeout = Duration::from_secs(300);
        let world = FakeWorld::new(1);
        world.forget_calls();
        let locks = tempfile::tempdir().unwrap();
        let parts = Parts {
            engine: world.engine(),
            kernel: world.kernel(),
            source: Source::from_config(&config.placeholder, &[]).unwrap(),
            listeners: Vec::new(),
            locks: locks.path().to_owned(),
            ledger: None,
            keep: false,
        };
        let daemon = Daemon::assemble(config, parts);
        let pool = daemon.pool();
        let (tell, told) = mpsc::channel(1);
        let began = Instant::now();
        let (filled, resident) = (std::cell::Cell::new(0.0), std::cell::Cell::new(0.0));
        let stopping = std::cell::Cell::new(Instant::now());
        let (stopped, ()) = tokio::join!(daemon.run(told), async {
            pool.until(|state| state.usage().ready == slots).await;
            filled.set(began.elapsed().as_secs_f64());
            resident.set(resident_mb());
            stopping.set(Instant::now());
            tell.send(Signal::Stop).await.unwrap();
        });
        assert!(stopped.unwrap().left.is_empty());
        println!("{} {} {}", resident.get(), filled.get(), stopping.get().elapsed().as_secs_f64());
    });
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
