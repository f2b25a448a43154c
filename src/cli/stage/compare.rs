//! Starts in leases beside starts on a network of the engine, batch by batch.
//!
//! The two sides take turns at going first. Slots are filled before and their leases held on, so that no buddy is made or removed while
//! a start is timed: what is compared is the start of a function, not the sustained rate of a pool (a used slot costs a new buddy). Before
//! each batch the machine has a [`REST`]: engine and kernel tear down a network of their own after its container's removal was answered, and
//! without it the start that follows pays for that, whichever side it is on.

use std::time::Duration;

use super::Stage;
use super::functions::{Functions, Place, Started};
use crate::client::Lease;

/// Longer than the tear-down of what a batch made: without it, a start that followed one on the bridge took 30 ms more than one that followed
/// a start in a lease; with it, none did.
const REST: Duration = Duration::from_millis(200);

/// What one batch of starts at once took.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Batch {
    /// Of each start, lease included.
    pub(in crate::cli) starts: Vec<Duration>,
    /// Of each start's lease; zeros without leases.
    pub(in crate::cli) leasing: Vec<Duration>,
    /// Until the last one runs.
    pub(in crate::cli) all: Duration,
}

impl Batch {
    fn of(started: &[Started]) -> Self {
        let all = started.iter().map(|function| function.took).max().unwrap_or_default();
        Self { starts: started.iter().map(|f| f.took).collect(), leasing: started.iter().map(|f| f.leasing).collect(), all }
    }
}

/// One batch of each side.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Pair {
    pub(in crate::cli) pooled: Batch,
    pub(in crate::cli) plain: Batch,
}

/// See the module.
pub(in crate::cli) struct Comparison<'a> {
    stage: &'a Stage,
    network: Place,
    slots: u32,
    held: Vec<Lease>,
    pooled_first: bool,
}

impl<'a> Comparison<'a> {
    /// On a stage whose pool has so many slots, and no more.
    pub(in crate::cli) fn new(stage: &'a Stage, network: &str, slots: u32) -> Self {
        Self { stage, network: Place::Network(network.to_owned()), slots, held: Vec::new(), pooled_first: true }
    }

    /// Fills the slots unless so many are ready still; tells `ready` how many there are. Not part of what is timed.
    pub(in crate::cli) async fn fill(&mut self, at_once: u32, ready: impl Fn(u32)) -> anyhow::Result<()> {
        if self.stage.pool.read(|state| state.usage().ready) < at_once {
            Functions::release(std::mem::take(&mut self.held)).await?;
            self.stage.filled(self.slots, ready).await?;
        }
        Ok(())
    }

    /// Starts so many at once on each side, one side after the other, and sees them end. There must be as many slots ready: see
    /// [`Comparison::fill`].
    pub(in crate::cli) async fn pair(&mut self, at_once: u32) -> anyhow::Result<Pair> {
        let pooled_first = self.pooled_first;
        self.pooled_first = !pooled_first;
        if pooled_first {
            let pooled = self.batch(at_once, &Place::Lease).await?;
            Ok(Pair { pooled, plain: self.batch(at_once, &self.network.clone()).await? })
        } else {
            let plain = self.batch(at_once, &self.network.clone()).await?;
            Ok(Pair { pooled: self.batch(at_once, &Place::Lease).await?, plain })
        }
    }

    async fn batch(&mut self, at_once: u32, place: &Place) -> anyhow::Result<Batch> {
        tokio::time::sleep(REST).await;
        let started = self.stage.functions.start(at_once, place).await?;
        let batch = Batch::of(&started);
        self.held.extend(self.stage.functions.finish(started).await?);
        Ok(batch)
    }

    /// Gives the last leases back.
    pub(in crate::cli) async fn end(self) -> anyhow::Result<()> {
        Functions::release(self.held).await
    }
}
