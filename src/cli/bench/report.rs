//! What was found: as a table, as JSON, as CSV files, and where the plots go.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::slots::Slots;
use super::starts::{Side, StartsAt};
use super::{Plan, plot};
use crate::cli::output;
use crate::cli::stats::{median, median_of, millis, per_second, percentile};
use crate::engine::EngineInfo;

/// See the module.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    nspool: &'static str,
    engine: String,
    processors: usize,
    network: String,
    rounds: u32,
    pub(super) rows: Vec<Row>,
    #[serde(skip)]
    samples: Vec<Sample>,
}

/// One side of one comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    /// `start`, `fill`, `removal`.
    pub(super) measure: &'static str,
    /// How many at once.
    pub(super) at_once: u32,
    /// `leased` or the network's name; `daemon` or `bare`; `daemon` or `one by one`.
    pub(super) side: String,
    /// How many were timed: starts, or whole fills and removals.
    pub(super) runs: usize,
    /// Of a start, or per buddy of a fill or removal.
    pub(super) median_ms: f64,
    pub(super) p5_ms: f64,
    pub(super) p95_ms: f64,
    /// Starts or buddies per second, the median of the batches.
    pub(super) per_second: f64,
    /// The share of the median that the lease took; starts in leases only.
    pub(super) lease_ms: Option<f64>,
    /// How many times better than the other side; on our side only. By the median of starts, by the rate of fills and removals.
    pub(super) ratio: Option<f64>,
}

/// One thing that was timed.
#[derive(Debug)]
struct Sample {
    measure: &'static str,
    at_once: u32,
    side: String,
    round: u32,
    took: Duration,
}

/// In the tables' words.
const LEASED: &str = "leased";
const DAEMON: &str = "daemon";

impl Report {
    pub(super) fn new(engine: &EngineInfo, plan: &Plan, starts: Vec<StartsAt>, slots: Slots) -> Self {
        let mut report = Self {
            nspool: env!("CARGO_PKG_VERSION"),
            engine: format!("{} {}", engine.kind, engine.version),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            network: plan.network.clone(),
            rounds: plan.rounds,
            rows: Vec::new(),
            samples: Vec::new(),
        };
        for at in starts {
            report.add_starts(&at);
        }
        let (fill, bare) = (&slots.fill_daemon, &slots.fill_bare);
        report.add_slots("fill", &slots, [(DAEMON, slots.parallel, fill), ("bare loop", slots.parallel, bare)]);
        let (removal, one_by_one) = (&slots.remove_daemon, &slots.remove_one_by_one);
        report.add_slots("removal", &slots, [(DAEMON, slots.parallel, removal), ("one by one", 1, one_by_one)]);
        report
    }

    fn add_starts(&mut self, at: &StartsAt) {
        let network = self.network.clone();
        let mut leased = self.start_row(at.at_once, LEASED, &at.leased);
        let plain = self.start_row(at.at_once, &network, &at.plain);
        leased.lease_ms = Some(millis(median(&at.leased.leasing)));
        leased.ratio = Some(quotient(plain.median_ms, leased.median_ms));
        self.rows.extend([leased, plain]);
    }

    fn start_row(&mut self, at_once: u32, side: &str, measured: &Side) -> Row {
        let samples = measured.starts.iter().map(|&(round, took)| Sample { measure: "start", at_once, side: side.to_owned(), round, took });
        self.samples.extend(samples);
        let all: Vec<Duration> = measured.starts.iter().map(|(_, took)| *took).collect();
        row("start", at_once, side, &all, median_of(&measured.rates))
    }

    fn add_slots(&mut self, measure: &'static str, slots: &Slots, sides: [(&'static str, u32, &Vec<Duration>); 2]) {
        let mut rows = sides.map(|(side, at_once, rounds)| {
            let samples = (1..).zip(rounds).map(|(round, &took)| Sample { measure, at_once, side: side.to_owned(), round, took });
            self.samples.extend(samples);
            let each: Vec<Duration> = rounds.iter().map(|took| *took / slots.buddies.max(1)).collect();
            let rates: Vec<f64> = rounds.iter().map(|took| per_second(slots.buddies, *took)).collect();
            row(measure, at_once, side, &each, median_of(&rates))
        });
        rows[0].ratio = Some(quotient(rows[0].per_second, rows[1].per_second));
        self.rows.extend(rows);
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let header = ["what", "at once", "side", "runs", "median", "p5 – p95", "per second", "of it the lease", "ratio"];
        let ms = |value: f64| format!("{value:.1} ms");
        let cells = |row: &Row| {
            vec![
                row.measure.to_owned(),
                row.at_once.to_string(),
                row.side.clone(),
                row.runs.to_string(),
                ms(row.median_ms),
                format!("{:.0} – {:.0}", row.p5_ms, row.p95_ms),
                format!("{:.1}", row.per_second),
                row.lease_ms.map(ms).unwrap_or_default(),
                row.ratio.map(|ratio| format!("{ratio:.2}×")).unwrap_or_default(),
            ]
        };
        format!(
            "{}\n{}; both sides in turns. A start: from the first call (of the daemon, or of the engine) until the engine says\n\
             that the function runs; slots were filled before. A fill or removal: time per buddy.\n",
            output::table(&header, self.rows.iter().map(cells).collect()),
            self.caption(),
        )
    }

    fn caption(&self) -> String {
        let rounds = if self.rounds == 1 { "1 round".to_owned() } else { format!("{} rounds", self.rounds) };
        format!("{}, nspool {}, {} processors, {rounds}", self.engine, self.nspool, self.processors)
    }

    /// Writes CSV files and plots there; answers their paths.
    pub(super) fn write(&self, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let mut written = Vec::new();
        let plots = plot::all(self, &self.caption())?;
        let tables = [("bench.csv", self.csv()), ("samples.csv", self.samples_csv())];
        for (name, content) in tables.into_iter().chain(plots) {
            let path = dir.join(name);
            std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
        }
        Ok(written)
    }

    fn csv(&self) -> String {
        let mut text = String::from("measure,at_once,side,runs,median_ms,p5_ms,p95_ms,per_second,lease_ms,ratio\n");
        for row in &self.rows {
            let optional = |value: Option<f64>| value.map(|value| format!("{value:.3}")).unwrap_or_default();
            // Writing to a String cannot fail.
            _ = writeln!(
                text,
                "{},{},{},{},{:.3},{:.3},{:.3},{:.3},{},{}",
                row.measure,
                row.at_once,
                row.side,
                row.runs,
                row.median_ms,
                row.p5_ms,
                row.p95_ms,
                row.per_second,
                optional(row.lease_ms),
                optional(row.ratio)
            );
        }
        text
    }

    fn samples_csv(&self) -> String {
        let mut text = String::from("measure,at_once,side,round,ms\n");
        for sample in &self.samples {
            let Sample { measure, at_once, side, round, took } = sample;
            _ = writeln!(text, "{measure},{at_once},{side},{round},{:.3}", millis(*took));
        }
        text
    }
}

fn row(measure: &'static str, at_once: u32, side: &str, all: &[Duration], per_second: f64) -> Row {
    Row {
        measure,
        at_once,
        side: side.to_owned(),
        runs: all.len(),
        median_ms: millis(median(all)),
        p5_ms: millis(percentile(all, 5)),
        p95_ms: millis(percentile(all, 95)),
        per_second,
        lease_ms: None,
        ratio: None,
    }
}

fn quotient(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}
