//! The daemon's own work beside the bare engine: filling slots against a loop of parallel creators, removing them against one by one.

use std::time::{Duration, Instant};

use super::bare::Bare;
use super::{Plan, resize};
use crate::cli::progress::Step;
use crate::cli::stage::Stage;

/// How long each took, a duration per round, for so many buddies.
pub(super) struct Slots {
    pub(super) buddies: u32,
    pub(super) parallel: u32,
    pub(super) fill_daemon: Vec<Duration>,
    pub(super) fill_bare: Vec<Duration>,
    pub(super) remove_daemon: Vec<Duration>,
    pub(super) remove_one_by_one: Vec<Duration>,
}

pub(super) async fn measure(stage: &Stage, bare: &Bare, plan: &Plan) -> anyhow::Result<Slots> {
    let mut slots = Slots {
        buddies: plan.buddies,
        parallel: plan.parallel,
        fill_daemon: Vec::new(),
        fill_bare: Vec::new(),
        remove_daemon: Vec::new(),
        remove_one_by_one: Vec::new(),
    };
    resize(stage, 0, |_| {}).await?;
    for round in 1..=plan.rounds {
        let words = format!("Round {round} of {}: filling and removing {} slots", plan.rounds, plan.buddies);
        let step = Step::begin(&words, u64::from(plan.buddies) * 4);
        // In turns, so that neither always comes first.
        if round % 2 == 1 {
            daemon(stage, &mut slots, &step).await?;
            by_hand(bare, &mut slots, &step).await?;
        } else {
            by_hand(bare, &mut slots, &step).await?;
            daemon(stage, &mut slots, &step).await?;
        }
        step.end(&format!("{words}: done"));
    }
    Ok(slots)
}

/// From the word to the daemon until all are ready, and until all are gone; its proofs and looks included.
async fn daemon(stage: &Stage, slots: &mut Slots, step: &Step) -> anyhow::Result<()> {
    let count = slots.buddies;
    let begin = Instant::now();
    resize(stage, count, |ready| step.at(ready.into())).await?;
    slots.fill_daemon.push(begin.elapsed());
    let begin = Instant::now();
    resize(stage, 0, |ready| step.at((2 * count - ready).into())).await?;
    slots.remove_daemon.push(begin.elapsed());
    Ok(())
}

async fn by_hand(bare: &Bare, slots: &mut Slots, step: &Step) -> anyhow::Result<()> {
    let (buddies, took) = bare.fill(slots.buddies, slots.parallel).await?;
    slots.fill_bare.push(took);
    step.at(u64::from(slots.buddies) * 3);
    slots.remove_one_by_one.push(bare.remove_one_by_one(buddies, |count| step.at(u64::from(slots.buddies) * 3 + count)).await?);
    Ok(())
}
