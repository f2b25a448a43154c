//! What the whole daemon costs on the scripted engine: resident memory and time to fill, from 1,000 to 100,000 slots, and how fast a new daemon
//! takes over when all of them are leased and the old one is killed. The engine and its containers are in the same process, so the figures are
//! above what the daemon alone needs. Each daemon has a ledger.
//!
//!     cargo bench --bench daemon
//!
//! Each size runs in a process of its own. Exit code 1: 1,000 slots took 25 MB or more, their take-over 1 s to the answers or 5 s in all, or a
//! size did not fill.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench prints, and fails by panicking")]

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspool::config::Config;
use nspool::daemon::{Daemon, Parts, Signal};
use nspool::engine::fake::FakeWorld;
use nspool::image::gate::Source;
use nspool::ledger::{Identity, Ledger};
use nspool::pool::{Lifetime, Request};
use tokio::sync::mpsc;

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const MOST_FOR_A_THOUSAND: f64 = 25.0;

fn main() -> ExitCode {
    if let Some(slots) = std::env::var("NSPOOL_BENCH_SLOTS").ok().and_then(|slots| slots.parse().ok()) {
        child(slots);
        return ExitCode::SUCCESS;
    }
    println!("{:>8}  {:>12}  {:>10}  {:>10}  {:>10}  {:>10}", "slots", "resident MB", "filled in", "answering", "adopted in", "stopped in");
    let mut good = true;
    for slots in SIZES {
        let output = Command::new(std::env::current_exe().unwrap())
            .env("NSPOOL_BENCH_SLOTS", slots.to_string())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let figures: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [resident, fill, answering, adopted, stop] = figures[..] else {
            println!("{slots:>8}  failed: {text}");
            good = false;
            continue;
        };
        println!("{slots:>8}  {resident:>12.1}  {fill:>9.2}s  {answering:>9.3}s  {adopted:>9.2}s  {stop:>9.2}s");
        good &= slots != 1_000 || (resident < MOST_FOR_A_THOUSAND && answering < 1.0 && adopted < 5.0);
    }
    println!("target for 1,000 slots: under {MOST_FOR_A_THOUSAND} MB, answering in 1 s, adopted in 5 s");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn child(slots: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = Config::default();
        (config.pool.ready, config.pool.max) = (slots, slots);
        (config.pacer.rate, config.pacer.concurrent) = (None, 1024);
        config.stop.timeout = Duration::from_secs(300);
        let (world, dir) = (FakeWorld::new(1), tempfile::tempdir().unwrap());
        world.forget_calls();
        let daemon = daemon(&config, &world, dir.path());
        let pool = daemon.pool();
        let (_tell, told) = mpsc::channel(1);
        let began = Instant::now();
        // Dropped at the end of this, as by a kill.
        let (fill, resident) = tokio::select! {
            ended = daemon.run(told) => panic!("the daemon ended: {ended:?}"),
            figures = async {
                pool.until(|state| state.usage().ready == slots).await;
                let figures = (began.elapsed().as_secs_f64(), resident_mb());
                for _ in 0..slots {
                    pool.allocate(request(), Duration::ZERO).await.unwrap();
                }
                figures
            } => figures,
        };
        drop(pool);
        // A kill takes all at once; here the tasks of the old one end as they get their turn, and its lock with them.
        while Ledger::open(&dir.path().join("state"), &identity(&config)).is_err() {
            tokio::task::yield_now().await;
        }
        let began = Instant::now();
        let daemon = self::daemon(&config, &world, dir.path());
        // From here on calls are answered: leases are known, by token and by request.
        let answering = began.elapsed().as_secs_f64();
        let pool = daemon.pool();
        assert_eq!(pool.read(|state| (state.usage().leased, state.unproven())), (slots, slots));
        let (tell, told) = mpsc::channel(1);
        let (adopted, stopping) = (std::cell::Cell::new(0.0), std::cell::Cell::new(Instant::now()));
        let (stopped, ()) = tokio::join!(daemon.run(told), async {
            pool.until(|state| state.unproven() == 0).await;
            adopted.set(began.elapsed().as_secs_f64());
            assert_eq!(pool.read(|state| (state.usage().leased, state.usage().lost)), (slots, 0));
            stopping.set(Instant::now());
            tell.send(Signal::Stop).await.unwrap();
        });
        assert!(stopped.unwrap().left.is_empty());
        println!("{resident} {fill} {answering} {} {}", adopted.get(), stopping.get().elapsed().as_secs_f64());
    });
}

fn daemon(config: &Config, world: &Arc<FakeWorld>, dir: &Path) -> Daemon {
    let parts = Parts {
        engine: world.engine(),
        kernel: world.kernel(),
        links: Some(world.links()),
        mounter: None,
        source: Source::from_config(&config.placeholder, &[]).unwrap(),
        listeners: Vec::new(),
        locks: dir.join("locks"),
        ledger: Some(Ledger::open(&dir.join("state"), &identity(config)).unwrap()),
        keep: false,
    };
    Daemon::assemble(config.clone(), parts)
}

fn identity(config: &Config) -> Identity {
    Identity { boot_id: "bench".into(), pool: config.pool.name.clone(), now: Duration::ZERO, engine: String::new() }
}

fn request() -> Request {
    Request {
        uid: 0,
        owner: "agent".into(),
        tenant: String::new(),
        request_id: None,
        network: None,
        lifetime: Lifetime::Ttl(Duration::from_secs(3600)),
        labels: std::collections::BTreeMap::new(),
    }
}

fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
