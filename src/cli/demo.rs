//! `demo`: starts functions in leased namespaces beside functions on the bridge, and prints both latencies and their ratio.

mod native;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::Globals;
use super::output::{self, say};
use super::progress::Step;
use super::signals::{Interrupted, Signals};
use super::stage::compare::{Comparison, Pair};
use super::stage::{Opening, Stage};
use super::stats::{median, millis, ratio};
use super::{exit, host};
use crate::config::{self, Config};

/// The pool's name.
const POOL: &str = "demo";
/// What functions are compared with.
const NETWORK: &str = "bridge";

/// What the demonstration is told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sudo nspool demo --starts 40\n\nIt runs a pool of its own and leaves nothing behind, also at Ctrl-C (exit code 130)."
)]
pub struct Demo {
    /// The engine's socket [default: found as `serve` finds it]
    #[arg(long, value_name = "unix://PATH")]
    pub engine_endpoint: Option<String>,
    /// Slots of the pool
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub ready: u32,
    /// Starts of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub starts: u32,
    /// Starts at once in the second round, no more than there are slots
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub concurrency: u32,
    /// The functions' image, which must be there [default: nspool's own placeholder]
    #[arg(long)]
    pub image: Option<String>,
    /// Without a container engine, also where there is one [default: where no engine's socket is there]
    #[arg(long, conflicts_with_all = ["engine_endpoint", "image"])]
    pub native: bool,
    /// What is run without a container engine
    #[arg(long, default_value = "true")]
    pub program: String,
}

#[derive(Debug, Serialize)]
struct View {
    engine: String,
    slots: u32,
    fill_ms: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    at_once: u32,
    starts: usize,
    bridge_ms: f64,
    leased_ms: f64,
    lease_ms: f64,
    ratio: f64,
}

impl Row {
    fn of(at_once: u32, pairs: &[Pair]) -> Self {
        let all = |of: fn(&Pair) -> &[Duration]| pairs.iter().flat_map(of).copied().collect::<Vec<_>>();
        let (leased, plain) = (all(|pair| &pair.pooled.starts), all(|pair| &pair.plain.starts));
        Self {
            at_once,
            starts: leased.len(),
            bridge_ms: millis(median(&plain)),
            leased_ms: millis(median(&leased)),
            lease_ms: millis(median(&all(|pair| &pair.pooled.leasing))),
            ratio: ratio(median(&plain), median(&leased)),
        }
    }
}

/// Runs it.
pub async fn run(globals: &Globals, args: Demo) -> anyhow::Result<ExitCode> {
    if args.native || args.image.is_none() && !host::is_engine_there(args.engine_endpoint.as_deref())? {
        return Box::pin(native::run(globals, args)).await;
    }
    let mut signals = Signals::new()?;
    let mut config = Config::default();
    config.pool = config::Pool { name: POOL.to_owned(), ready: args.ready, max: args.ready, ..config.pool };
    let opening = Opening { endpoint: args.engine_endpoint.as_deref(), image: args.image.as_deref(), config };
    let stage = Stage::open(opening).await?;
    let shown = signals.unless(show(&stage, &args)).await;
    say("Cleaning up: the functions, the pool, its containers and its image.");
    let left = stage.close(&mut signals).await;
    if !left.is_empty() {
        say(&format!("nspool: `nspool purge --pool {POOL}` removes the pool's containers once nobody is in them"));
    }
    finish(globals, shown, table, &left)
}

/// What was found goes out even if something is left, which is said behind.
fn finish<V: Serialize>(
    globals: &Globals,
    shown: Result<anyhow::Result<V>, Interrupted>,
    table: impl Fn(&V) -> String,
    left: &[String],
) -> anyhow::Result<ExitCode> {
    for left in left {
        say(&format!("nspool: left behind: {left}"));
    }
    match shown {
        Err(interrupted) => {
            say(&format!("nspool: {}: stopped", interrupted.name));
            Ok(ExitCode::from(interrupted.exit_code()))
        }
        Ok(view) => {
            globals.out().print(&view?, table)?;
            Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
        }
    }
}

async fn show(stage: &Stage, args: &Demo) -> anyhow::Result<View> {
    let engine = format!("{} {}", stage.engine.kind, stage.engine.version);
    say(&format!("{engine} answers at {}.", stage.engine.endpoint));
    let step = Step::begin(
        &format!("Filling a pool of {}: one container each, that does nothing but keep a network namespace", args.ready),
        args.ready.into(),
    );
    let begin = Instant::now();
    stage.filled(args.ready, |ready| step.at(ready.into())).await?;
    let filled = begin.elapsed();
    stage.functions.clear_dead_runs().await;
    step.end(&format!("{} namespaces are ready after {:.1} s.", args.ready, filled.as_secs_f64()));

    let mut comparison = Comparison::new(stage, NETWORK, args.ready);
    let mut rows = vec![rounds(&mut comparison, 1, args.starts, "one at a time").await?];
    let at_once = args.concurrency.min(args.ready);
    if at_once > 1 {
        rows.push(rounds(&mut comparison, at_once, args.starts, &format!("{at_once} at once")).await?);
    }
    comparison.end().await?;
    Ok(View { engine, slots: args.ready, fill_ms: millis(filled), rows })
}

/// Interleaved, so that a machine that gets busy meanwhile slows both sides.
async fn rounds(comparison: &mut Comparison<'_>, at_once: u32, starts: u32, words: &str) -> anyhow::Result<Row> {
    let batches = starts.div_ceil(at_once);
    let words = format!("Starting functions {words}: take a lease and join its namespace, then the same on the bridge, in turns");
    let step = Step::begin(&words, (2 * batches * at_once).into());
    let mut pairs = Vec::new();
    for batch in 0..batches {
        // A used namespace is not used again: its slot gets a new one, while nothing is timed.
        comparison.fill(at_once, |_| {}).await?;
        pairs.push(comparison.pair(at_once).await?);
        step.at((2 * (batch + 1) * at_once).into());
    }
    let row = Row::of(at_once, &pairs);
    step.end(&format!("{} at once: {:.0} ms in a lease, {:.0} ms on the bridge.", at_once, row.leased_ms, row.bridge_ms));
    Ok(row)
}

fn table(view: &View) -> String {
    let header = ["starts at once", "runs", "on the bridge", "in a lease", "of it the lease", "ratio"];
    let row = |row: &Row| {
        let ms = |value: f64| format!("{value:.1} ms");
        vec![
            row.at_once.to_string(),
            format!("2 × {}", row.starts),
            ms(row.bridge_ms),
            ms(row.leased_ms),
            ms(row.lease_ms),
            format!("{:.2}× faster", row.ratio),
        ]
    };
    let table = output::table(&header, view.rows.iter().map(row).collect());
    format!("{table}Medians, from the first call until the engine says that the function runs. Slots were filled before.\n")
}
