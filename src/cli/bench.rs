//! `bench`: measures, on the user's own engine, what a pool gains and what the daemon costs; both sides of each comparison in one run, in turns.
//!
//! Three comparisons: function starts in leases beside starts on the network ([`starts`]), the daemon's fill beside a bare loop of parallel
//! creators, and its removal beside one by one ([`slots`]). What was found goes out as a table or JSON, as CSV and as plots ([`report`], [`plot`]).
//! It leaves nothing in the engine, also at a signal, and then writes nothing.

mod bare;
mod plot;
mod report;
mod slots;
mod starts;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use self::bare::Bare;
use self::report::Report;
use super::output::say;
use super::progress::Step;
use super::signals::Signals;
use super::stage::{Opening, Stage};
use super::{Globals, exit};
use crate::config::{self, Config};

/// The pool's name.
const POOL: &str = "bench";

/// What the measurement is told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo nspool bench --quick
  sudo nspool bench --concurrency 1,4,16,50 --rounds 5 --out ./bench

Writes a table to stdout, and CSV files and plots (SVG) to --out. It runs a pool of its own and leaves nothing in the engine,
also at Ctrl-C (exit code 130). A whole run takes some twenty minutes on two processors.")]
pub struct Bench {
    /// The engine's socket [default: found as `serve` finds it]
    #[arg(long, value_name = "unix://PATH")]
    pub engine_endpoint: Option<String>,
    /// About a minute: one round of few starts
    #[arg(long)]
    pub quick: bool,
    /// Starts at once, one measurement each [default: 1,2,4,8,16,32,50; quick: 1,4,16]
    #[arg(long, value_delimiter = ',', value_name = "N,N,…", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub concurrency: Vec<u32>,
    /// How often each measurement is repeated [default: 3; quick: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// Starts per measurement and side, at least [default: 50; quick: 16]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub starts: Option<u32>,
    /// Buddies per fill and removal [default: 32; quick: 16]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub buddies: Option<u32>,
    /// Creates, starts or removals in flight while filling and removing
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub parallel: u32,
    /// The functions' image, which must be there [default: nspool's own placeholder]
    #[arg(long)]
    pub image: Option<String>,
    /// The network of the plain starts, and of the pool
    #[arg(long, default_value = "bridge")]
    pub network: String,
    /// Where the CSV files and the plots go
    #[arg(long, default_value = "nspool-bench", value_name = "DIR")]
    pub out: PathBuf,
}

/// The same, with everything decided.
struct Plan {
    concurrency: Vec<u32>,
    rounds: u32,
    starts: u32,
    buddies: u32,
    parallel: u32,
    network: String,
}

impl Plan {
    fn of(args: &Bench) -> Self {
        let choose = |given: Option<u32>, whole, quick| given.unwrap_or(if args.quick { quick } else { whole });
        let mut concurrency = match (args.concurrency.is_empty(), args.quick) {
            (false, _) => args.concurrency.clone(),
            (true, false) => vec![1, 2, 4, 8, 16, 32, 50],
            (true, true) => vec![1, 4, 16],
        };
        concurrency.sort_unstable();
        concurrency.dedup();
        Self {
            concurrency,
            rounds: choose(args.rounds, 3, 1),
            starts: choose(args.starts, 50, 16),
            buddies: choose(args.buddies, 32, 16),
            parallel: args.parallel,
            network: args.network.clone(),
        }
    }

    /// Slots for the starts: a whole batch of the largest fits, and nothing is filled without need.
    fn slots(&self) -> u32 {
        let largest = self.concurrency.last().copied().unwrap_or(1);
        largest.max(self.starts.min(50))
    }
}

/// Runs it.
pub async fn run(globals: &Globals, args: Bench) -> anyhow::Result<ExitCode> {
    let plan = Plan::of(&args);
    let mut signals = Signals::new()?;
    let mut config = Config::default();
    // Each measurement says how many slots it wants.
    config.pool = config::Pool { name: POOL.to_owned(), ready: 1, max: 1, networks: vec![plan.network.clone()], ..config.pool };
    config.pacer = config::Pacer { rate: None, concurrent: plan.parallel, ..config.pacer };
    let opening = Opening { endpoint: args.engine_endpoint.as_deref(), image: args.image.as_deref(), config };
    let stage = Stage::open(opening).await?;
    let bare = Bare::new(&stage, &plan.network);
    let measured = signals.unless(measure(&stage, &bare, &plan)).await;
    say("Cleaning up: the functions, the pool, its containers and its image.");
    let mut left = bare.close().await;
    left.extend(stage.close(&mut signals).await);
    for left in &left {
        say(&format!("nspool: left behind: {left}"));
    }
    match measured {
        Err(interrupted) => {
            say(&format!("nspool: {}: stopped; nothing is written", interrupted.name));
            return Ok(ExitCode::from(interrupted.exit_code()));
        }
        Ok(report) => {
            let report = report?;
            for path in report.write(&args.out)? {
                say(&format!("wrote {}", path.display()));
            }
            globals.out().print(&report, Report::table)?;
        }
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

async fn measure(stage: &Stage, bare: &Bare, plan: &Plan) -> anyhow::Result<Report> {
    let engine = &stage.engine;
    say(&format!("{} {} answers at {}.", engine.kind, engine.version, engine.endpoint));
    let step = Step::begin("The first buddies, to warm up", plan.parallel.into());
    // The daemon takes its configured size when it has reached the engine: a resize before that would be undone.
    stage.filled(1, |_| {}).await?;
    resize(stage, plan.parallel, |ready| step.at(ready.into())).await?;
    stage.functions.clear_dead_runs().await;
    bare.begin().await?;
    step.end("The engine is warm.");
    let starts = starts::measure(stage, plan).await?;
    let slots = slots::measure(stage, bare, plan).await?;
    Ok(Report::new(engine, plan, starts, slots))
}

/// As many slots as that, no more; waits until all are ready.
async fn resize(stage: &Stage, slots: u32, ready: impl Fn(u32)) -> anyhow::Result<()> {
    stage.client.resize(Some(slots), Some(slots.max(1))).await?;
    stage.filled(slots, ready).await
}
