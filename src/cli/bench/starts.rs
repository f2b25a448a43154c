//! Function starts in leases beside starts on the network, for each number at once.

use std::time::Duration;

use super::{Plan, resize};
use crate::cli::progress::Step;
use crate::cli::stage::Stage;
use crate::cli::stage::compare::{Batch, Comparison};
use crate::cli::stats::per_second;

/// What was measured with so many starts at once.
pub(super) struct StartsAt {
    pub(super) at_once: u32,
    pub(super) leased: Side,
    pub(super) plain: Side,
}

/// One side of it.
#[derive(Default)]
pub(super) struct Side {
    /// Of each start, with its round.
    pub(super) starts: Vec<(u32, Duration)>,
    /// Of each lease.
    pub(super) leasing: Vec<Duration>,
    /// Starts per second of each batch.
    pub(super) rates: Vec<f64>,
}

impl Side {
    fn add(&mut self, round: u32, at_once: u32, batch: &Batch) {
        self.starts.extend(batch.starts.iter().map(|start| (round, *start)));
        self.leasing.extend(&batch.leasing);
        self.rates.push(per_second(at_once, batch.all));
    }
}

/// All of them, once in each round, so that a machine that changes its pace meanwhile changes it for all.
pub(super) async fn measure(stage: &Stage, plan: &Plan) -> anyhow::Result<Vec<StartsAt>> {
    let mut all: Vec<StartsAt> =
        plan.concurrency.iter().map(|&at_once| StartsAt { at_once, leased: Side::default(), plain: Side::default() }).collect();
    resize(stage, plan.slots(), |_| {}).await?;
    let mut comparison = Comparison::new(stage, &plan.network, plan.slots());
    for round in 1..=plan.rounds {
        for at in &mut all {
            one_round(&mut comparison, at, round, plan).await?;
        }
    }
    comparison.end().await?;
    Ok(all)
}

async fn one_round(comparison: &mut Comparison<'_>, at: &mut StartsAt, round: u32, plan: &Plan) -> anyhow::Result<()> {
    let batches = plan.starts.div_ceil(at.at_once);
    let words = format!("Round {round} of {}: starts, {} at once", plan.rounds, at.at_once);
    let step = Step::begin(&words, batches.into());
    for batch in 0..batches {
        comparison.fill(at.at_once, |_| {}).await?;
        let pair = comparison.pair(at.at_once).await?;
        at.leased.add(round, at.at_once, &pair.pooled);
        at.plain.add(round, at.at_once, &pair.plain);
        step.at(u64::from(batch) + 1);
    }
    step.end(&format!("{words}: done"));
    Ok(())
}
