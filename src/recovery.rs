//! What a dead predecessor left in the engine: buddies of this pool that nobody is in are removed, those with somebody inside go to the minder.
//!
//! The caller holds the pool's lock, which proves that the owner of every buddy found here is dead (I3). What the ledger tells of is adopted by
//! nannies; this is for all else. Whoever cannot be looked into is taken for occupied (I9).

use std::sync::Arc;

use futures::stream::{self, StreamExt};

use crate::engine::{ContainerId, ContainerSummary, Engine, EngineError};
use crate::ledger::{self, Replayed};
use crate::nanny::buddy::{Breed, Ownership};
use crate::nanny::kinds_held;
use crate::nanny::looks::Looks;
use crate::nanny::minder::Detached;
use crate::netns::{Held, Kernel};
use crate::pool::{Moment, Pool, Restored};

/// What to recover with.
#[derive(Clone)]
pub struct Means {
    /// Behind the pacer, or bare.
    pub engine: Arc<dyn Engine>,
    /// Processes and namespaces.
    pub kernel: Arc<dyn Kernel>,
    /// Who is inside whom.
    pub looks: Arc<Looks>,
    /// Which containers are this pool's.
    pub breed: Arc<Breed>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Above every generation that was found.
    pub next_generation: u64,
    /// Names of the buddies that were removed.
    pub removed: Vec<String>,
    /// Those that could not be: with the people inside, or the reason.
    pub occupied: Vec<Detached>,
}

/// One buddy of a dead predecessor, as a look found it.
#[derive(Debug)]
pub struct Found {
    /// The container.
    pub id: ContainerId,
    /// Its present name.
    pub name: String,
    /// The slot it was made for.
    pub slot: u32,
    /// Its generation.
    pub generation: u64,
    /// Its process, if it has one that could be taken hold of.
    pub held: Option<Box<dyn Held>>,
    /// Who is inside, or why nobody can tell; empty: nobody is.
    pub inside: Vec<String>,
}

/// What the last daemon's ledger tells, into the empty pool; its nannies prove it.
pub fn restore(pool: &Pool, replayed: Replayed) {
    let Replayed { table, found } = replayed;
    match &found {
        ledger::Found::Nothing | ledger::Found::Whole { torn: 0 } => {}
        ledger::Found::Whole { torn } => tracing::info!(bytes = torn, "the end of the ledger was not completed: cut off"),
        ledger::Found::Broken { bytes, aside } => {
            tracing::error!(bytes, aside, "the ledger is broken: leases that it tells stand, other buddies are not trusted to be free");
        }
    }
    let restored = pool.with(|state, now| state.restore(now, table));
    if restored != Restored::default() {
        tracing::info!(leases = restored.leases, buddies = restored.buddies, "restored from the ledger");
    }
}

/// Looks at all containers of this pool, and touches none.
///
/// # Errors
/// The engine's list failed: nothing is known.
pub async fn look(means: &Means) -> Result<Vec<Found>, EngineError> {
    let list = means.looks.list().await?;
    let ours = list.iter().filter_map(|found| Some((found.clone(), means.breed.owned(&found.name, &found.labels)?)));
    Ok(stream::iter(ours.collect::<Vec<_>>()).map(|(found, owner)| examine(means, found, owner)).buffer_unordered(16).collect().await)
}

/// Looks at all containers of this pool but those to `spare` (which a slot has), removes those that nobody is in.
///
/// # Errors
/// The engine's list failed: nothing was touched, nothing is known.
pub async fn recover(means: &Means, spare: impl Fn(&str) -> bool) -> Result<Recovered, EngineError> {
    let list = means.looks.list().await?;
    let ours: Vec<(ContainerSummary, Ownership)> =
        list.iter().filter_map(|found| Some((found.clone(), means.breed.owned(&found.name, &found.labels)?))).collect();
    let mut recovered =
        Recovered { next_generation: ours.iter().map(|(_, owner)| owner.generation + 1).max().unwrap_or(0), ..Recovered::default() };
    let now = means.kernel.since_boot();
    let ours = ours.into_iter().filter(|(found, _)| !spare(found.id.as_str()));
    // Each is removed right after the look at it, so that what was seen is still true.
    let clean_one = |(found, owner)| async move { clean(means, examine(means, found, owner).await, now).await };
    let mut cleaned = std::pin::pin!(stream::iter(ours).map(clean_one).buffer_unordered(16));
    while let Some(outcome) = cleaned.next().await {
        match outcome {
            Ok(name) => recovered.removed.push(name),
            Err(occupied) => recovered.occupied.push(*occupied),
        }
    }
    Ok(recovered)
}

/// Removes one buddy unless somebody is inside; answers its name, or the buddy as it stays.
async fn clean(means: &Means, mut found: Found, now: Moment) -> Result<String, Box<Detached>> {
    if found.inside.is_empty() {
        match means.engine.remove(&found.id).await {
            Ok(()) => {
                tracing::info!(container = %found.id, name = found.name, "removed a dead predecessor's buddy");
                return Ok(found.name);
            }
            Err(error) => found.inside.push(format!("could not be removed: {error}")),
        }
    }
    tracing::warn!(container = %found.id, name = found.name, joiners = found.inside.join(", "), "a dead predecessor's buddy stays");
    let Found { id, name, slot, generation, held, inside } = found;
    Err(Box::new(Detached { id, name, slot, generation, held, since: now, joiners: inside }))
}

/// Who is inside one of this pool's buddies.
pub(crate) async fn examine(means: &Means, found: ContainerSummary, owner: Ownership) -> Found {
    let (held, inside) = match hold(means, &found).await {
        Ok(held) => match means.looks.inside(&found.id, held.as_deref()).await {
            Ok(inside) => (held, inside.live),
            Err(error) => (held, vec![format!("could not be looked into: {error}")]),
        },
        Err(error) => (None, vec![error]),
    };
    Found { id: found.id, name: found.name, slot: owner.slot, generation: owner.generation, held, inside }
}

async fn hold(means: &Means, found: &ContainerSummary) -> Result<Option<Box<dyn Held>>, String> {
    let container = means.engine.inspect(found.id.as_str()).await.map_err(|error| error.to_string())?;
    if container.pid == 0 {
        return Ok(None);
    }
    means.kernel.hold(container.pid, &kinds_held(&means.breed.namespaces)).map(Some).map_err(|error| error.to_string())
}
