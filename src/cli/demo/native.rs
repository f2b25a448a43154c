//! The demonstration on a host without a container engine: a plain program with a network of its own, made for it when it starts, beside the same program in
//! a lease. Both are made by the same code, and start the program in the same way, as `nspool exec` does.
//!
//! It brings a folder below /run, two bridges, and namespaces; [`Grounds::close`] takes them away again, from any moment on.

mod own;

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::own::Own;
use super::{Demo, POOL, finish};
use crate::cli::exit::{self, Failure};
use crate::cli::output::{self, say};
use crate::cli::progress::Step;
use crate::cli::signals::Signals;
use crate::cli::stats::{median, millis, ratio};
use crate::cli::{Globals, host};
use crate::client::{Client, Lease, Request};
use crate::config::raw::{self, Sources};
use crate::config::{Config, Log, Placeholder};
use crate::daemon::{Daemon, DaemonError, Parts, Signal, Stopped};
use crate::engine::EngineInfo;
use crate::image::gate::Source;
use crate::lock::{self, PoolLock};
use crate::netns::cni::Cni;
use crate::netns::folders::Mounter;
use crate::netns::join::{self, Place};
use crate::netns::managed::host::Host;
use crate::netns::managed::names::Names;
use crate::netns::managed::{Limits, Worker};
use crate::pool::Pool;
use crate::telemetry;

/// Without a change for so long, a fill has failed.
const NO_PROGRESS: Duration = Duration::from_secs(10);
const LAST_RELEASES: Duration = Duration::from_secs(5);
/// For what the kernel takes away in the background, so that the start that follows does not pay for it.
const REST: Duration = Duration::from_millis(50);

#[derive(Debug, Serialize)]
struct View {
    engine: &'static str,
    slots: u32,
    fill_ms: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    at_once: u32,
    starts: usize,
    own_ms: f64,
    leased_ms: f64,
    lease_ms: f64,
    ratio: f64,
}

/// Until the program has ended, and of it until its network was there.
#[derive(Clone, Copy, Debug)]
struct Took {
    all: Duration,
    network: Duration,
}

pub(super) async fn run(globals: &Globals, args: Demo) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let grounds = Grounds::open(args.ready).await?;
    let shown = Box::pin(signals.unless(show(&grounds, &args))).await;
    say("Cleaning up: namespaces, links and bridges.");
    let left = grounds.close().await;
    finish(globals, shown, table, &left)
}

/// A daemon of one's own, and what its leases are compared with.
struct Grounds {
    pool: Arc<Pool>,
    client: Client,
    own: Own,
    /// Of what has no daemon: two demonstrations would take away each other's bridges.
    lock: PoolLock,
    engine: EngineInfo,
    mounter: Arc<dyn Mounter>,
    worker: Worker,
    tell: mpsc::Sender<Signal>,
    daemon: JoinSet<Result<Stopped, DaemonError>>,
    _folder: TempDir,
}

impl Grounds {
    async fn open(ready: u32) -> anyhow::Result<Self> {
        telemetry::init(&Log { filter: std::env::var("NSPOOL_LOG_FILTER").unwrap_or_else(|_| "error".to_owned()), ..Log::default() })?;
        let kernel = host::kernel()?;
        let folder = tempfile::Builder::new().prefix("nspool-demo-").permissions(Permissions::from_mode(0o755)).tempdir_in("/run")?;
        let config = configuration(&folder, POOL, 0, ready)?;
        let own = configuration(&folder, OWN, 1, ready)?;
        let socket = folder.path().join("nspool.sock");
        let listeners = vec![UnixListener::bind(&socket)?];
        let client = Client::connect(&format!("unix:{}", socket.display()))?;
        let source = Source::from_config(&Placeholder::default(), &[])?;
        let (worker, furnisher) = Worker::start(host_of(&config), Limits::default())?;
        let owns = Worker::start(host_of(&own), Limits::default())?;
        // The first thing that would have to be taken away again.
        let native = host::native(&config.state.namespaces, POOL, Cni::default(), Arc::clone(&kernel)).await?;
        let lock = match host::lock(&native.info, OWN) {
            Ok(lock) => lock,
            Err(another) => {
                native.mounter.tidy(OWN).await?;
                return Err(another.into());
            }
        };
        let own = Own::new(&own, owns, Arc::clone(&native.mounter), Arc::clone(&native.kernel));
        let parts = Parts {
            engine: native.engine,
            kernel: native.kernel,
            links: Some(Arc::new(furnisher)),
            mounter: None,
            source,
            listeners,
            locks: lock::folder(),
            ledger: None,
            keep: false,
        };
        let daemon = Daemon::assemble(config, parts);
        let pool = daemon.pool();
        let (tell, told) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(daemon.run(told));
        Ok(Self { pool, client, own, lock, engine: native.info, mounter: native.mounter, worker, tell, daemon: tasks, _folder: folder })
    }

    /// Waits until so many are ready.
    async fn filled(&self, wanted: u32, ready: impl Fn(u32)) -> anyhow::Result<()> {
        loop {
            let now = self.pool.read(|state| state.usage().ready);
            ready(now);
            if now >= wanted {
                return Ok(());
            }
            let changed = self.pool.until(|state| state.usage().ready != now);
            if tokio::time::timeout(NO_PROGRESS, changed).await.is_err() {
                let words = self.pool.read(|state| state.slot_views().into_iter().find_map(|slot| slot.last_error));
                let why = words.map(|words| format!(": {words}")).unwrap_or_default();
                return Err(Failure::new(exit::UNAVAILABLE, format!("{wanted} ready slots are not to be had here{why}")).into());
            }
        }
    }

    /// The program in leases, so many at once.
    async fn leased(&self, at_once: u32, program: &[OsString]) -> anyhow::Result<Vec<Took>> {
        let one = || async {
            let begun = Instant::now();
            let lease = self.client.allocate(Request::new().wait(NO_PROGRESS).owner("nspool-demo")).await?;
            let network = begun.elapsed();
            let place = Place::new("network", &lease.netns_path).ok_or_else(|| anyhow::anyhow!("the lease has no path"))?;
            ended(&[place], program).await?;
            anyhow::Ok((Took { all: begun.elapsed(), network }, lease))
        };
        let ran: Vec<(Took, Lease)> = futures::future::try_join_all((0..at_once).map(|_| one())).await?;
        let (took, leases): (Vec<Took>, Vec<Lease>) = ran.into_iter().unzip();
        for mut lease in leases {
            lease.finished();
            lease.release().await?;
        }
        Ok(took)
    }

    /// Answers what may be left, for people.
    async fn close(mut self) -> Vec<String> {
        let mut left = self.own.close().await;
        if self.client.close(LAST_RELEASES).await > 0 {
            left.push("a lease was not given back in time".to_owned());
        }
        // It has ended already, if nobody listens.
        drop(self.tell.send(Signal::Stop).await);
        while let Some(ended) = self.daemon.join_next().await {
            match ended {
                Ok(Ok(stopped)) => left.extend(stopped.left.into_iter().map(|left| format!("{}: {}", left.container, left.why))),
                Ok(Err(error)) => left.push(crate::causes::with_causes(&error)),
                Err(panic) => left.push(panic.to_string()),
            }
        }
        self.worker.stop().await;
        for pool in [OWN, POOL] {
            left.extend(self.mounter.tidy(pool).await.err().map(|error| error.to_string()));
        }
        if left.is_empty() {
            // The daemon's, which has ended, and ours.
            let locks = host::lock(&self.engine, POOL).ok().into_iter().chain([self.lock]);
            left.extend(locks.filter_map(|lock| lock.discard().err()).map(|error| host::lock_failure(&error).to_string()));
        }
        left
    }
}

/// The pool that has no daemon.
const OWN: &str = "demo-own";

/// Addresses that are for comparisons of networks (RFC 2544), on a bridge of their own.
fn configuration(folder: &TempDir, pool: &str, part: u32, ready: u32) -> anyhow::Result<Config> {
    let path = folder.path().join(format!("{pool}.toml"));
    let text = format!(
        "engine.kind = \"native\"\npool.name = \"{pool}\"\npool.ready = {ready}\npool.max = {ready}\npool.networks = [\"demo\"]\n\
         networks.demo = {{ kind = \"managed\", bridge = \"ns-{pool}\", subnet = \"198.18.{}.0/20\", nat = false, forwarding = false, rest = \"0s\" }}\n\
         state.dir = {:?}\nstate.namespaces = {:?}\n",
        part * 16,
        folder.path().join(format!("{pool}-state")),
        folder.path().join("ns"),
    );
    std::fs::write(&path, text)?;
    Ok(raw::load(&Sources { file: Some(path), env: Vec::new(), flags: Vec::new() })?.config)
}

fn host_of(config: &Config) -> Host {
    Host {
        names: Names::of(&config.pool.name),
        networks: config.managed.iter().map(|managed| managed.network.clone()).collect(),
        forwarding: config.forwarding(),
    }
}

/// The program in these namespaces, from its start to its end.
async fn ended(places: &[Place], program: &[OsString]) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::from(join::command(places, program));
    let status = command.stdin(std::process::Stdio::null()).kill_on_drop(true).spawn()?.wait().await?;
    if status.success() { Ok(()) } else { Err(Failure::new(exit::SOFTWARE, format!("the program failed: {status}")).into()) }
}

async fn show(grounds: &Grounds, args: &Demo) -> anyhow::Result<View> {
    say("No container engine: nspool makes the namespaces itself.");
    let words = format!("Filling a pool of {}: each a network namespace with a link, an address and a route", args.ready);
    let step = Step::begin(&words, args.ready.into());
    grounds.own.set_up().await?;
    let begun = Instant::now();
    grounds.filled(args.ready, |ready| step.at(ready.into())).await?;
    let filled = begun.elapsed();
    step.end(&format!("{} namespaces are ready after {:.0} ms.", args.ready, millis(filled)));
    let mut rows = vec![rounds(grounds, 1, args).await?];
    let at_once = args.concurrency.min(args.ready);
    if at_once > 1 {
        rows.push(rounds(grounds, at_once, args).await?);
    }
    Ok(View { engine: "native", slots: args.ready, fill_ms: millis(filled), rows })
}

/// Interleaved, so that a machine that gets busy meanwhile slows both sides; each side goes first in turn.
async fn rounds(grounds: &Grounds, at_once: u32, args: &Demo) -> anyhow::Result<Row> {
    let program = [OsString::from(&args.program)];
    let batches = args.starts.div_ceil(at_once);
    let words = format!("Running {:?}, {at_once} at once: in a lease, then with a network of its own, in turns", args.program);
    let step = Step::begin(&words, (2 * batches * at_once).into());
    let (mut leased, mut own) = (Vec::new(), Vec::new());
    for batch in 0..batches {
        grounds.filled(at_once, |_| {}).await?;
        tokio::time::sleep(REST).await;
        if batch % 2 == 0 {
            leased.extend(grounds.leased(at_once, &program).await?);
            own.extend(grounds.own.batch(at_once, &program).await?);
        } else {
            own.extend(grounds.own.batch(at_once, &program).await?);
            leased.extend(grounds.leased(at_once, &program).await?);
        }
        step.at((2 * (batch + 1) * at_once).into());
    }
    let all = |took: &[Took]| median(&took.iter().map(|took| took.all).collect::<Vec<_>>());
    let row = Row {
        at_once,
        starts: leased.len(),
        own_ms: millis(all(&own)),
        leased_ms: millis(all(&leased)),
        lease_ms: millis(median(&leased.iter().map(|took| took.network).collect::<Vec<_>>())),
        ratio: ratio(all(&own), all(&leased)),
    };
    step.end(&format!("{} at once: {:.1} ms in a lease, {:.1} ms with a network of its own.", at_once, row.leased_ms, row.own_ms));
    Ok(row)
}

fn table(view: &View) -> String {
    let header = ["at once", "runs", "own network", "in a lease", "of it the lease", "ratio"];
    let ms = |value: f64| format!("{value:.1} ms");
    let row = |row: &Row| {
        let runs = format!("2 × {}", row.starts);
        vec![row.at_once.to_string(), runs, ms(row.own_ms), ms(row.leased_ms), ms(row.lease_ms), format!("{:.2}× faster", row.ratio)]
    };
    let table = output::table(&header, view.rows.iter().map(row).collect());
    format!(
        "{table}Medians, from the first call until the program has ended. A network of its own is made with the same code, and taken away while nothing is\n\
         timed. With `nspool serve` running, `nspool exec -- PROGRAM` does the same.\n"
    )
}
