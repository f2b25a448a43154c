//! What a dead predecessor left in the engine: buddies of this pool that nobody is in are removed, those with somebody inside go to the minder.
//!
//! The caller holds the pool's lock, which proves that the owner of every buddy found here is dead (I3). Leases do not survive a restart yet, so
//! nothing is adopted. Whoever cannot be looked into is taken for occupied (I9).

use std::sync::Arc;

use futures::stream::{self, StreamExt};

use crate::engine::{ContainerSummary, Engine, EngineError};
use crate::nanny::buddy::{Breed, Ownership};
use crate::nanny::kinds_held;
use crate::nanny::looks::Looks;
use crate::nanny::minder::Detached;
use crate::netns::{Held, Kernel};
use crate::pool::Moment;

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

/// Looks at all containers of this pool, removes those that nobody is in.
///
/// # Errors
/// The engine's list failed: nothing was touched, nothing is known.
pub async fn recover(means: &Means) -> Result<Recovered, EngineError> {
    let list = means.looks.list().await?;
    let ours: Vec<(ContainerSummary, Ownership)> =
        list.iter().filter_map(|found| Some((found.clone(), means.breed.owned(&found.name, &found.labels)?))).collect();
    let mut recovered =
        Recovered { next_generation: ours.iter().map(|(_, owner)| owner.generation + 1).max().unwrap_or(0), ..Recovered::default() };
    let now = means.kernel.since_boot();
    let mut cleaned = stream::iter(ours).map(|(found, owner)| clean(means, found, owner, now)).buffer_unordered(16);
    while let Some(outcome) = cleaned.next().await {
        match outcome {
            Ok(name) => recovered.removed.push(name),
            Err(occupied) => recovered.occupied.push(*occupied),
        }
    }
    Ok(recovered)
}

/// Removes one buddy; answers its name, or the buddy as it stays.
async fn clean(means: &Means, found: ContainerSummary, owner: Ownership, now: Moment) -> Result<String, Box<Detached>> {
    let held = hold(means, &found).await;
    let why = match &held {
        Ok(held) => match means.looks.inside(&found.id, held.as_deref()).await {
            Ok(inside) if inside.live.is_empty() => match means.engine.remove(&found.id).await {
                Ok(()) => {
                    tracing::info!(container = %found.id, name = found.name, "removed a dead predecessor's buddy");
                    return Ok(found.name);
                }
                Err(error) => vec![format!("could not be removed: {error}")],
            },
            Ok(inside) => inside.live,
            Err(error) => vec![format!("could not be looked into: {error}")],
        },
        Err(error) => vec![error.clone()],
    };
    tracing::warn!(container = %found.id, name = found.name, joiners = why.join(", "), "a dead predecessor's buddy stays");
    let held = held.unwrap_or_default();
    Err(Box::new(Detached {
        id: found.id,
        name: found.name,
        slot: owner.slot,
        generation: owner.generation,
        held,
        since: now,
        joiners: why,
    }))
}

async fn hold(means: &Means, found: &ContainerSummary) -> Result<Option<Box<dyn Held>>, String> {
    let container = means.engine.inspect(found.id.as_str()).await.map_err(|error| error.to_string())?;
    if container.pid == 0 {
        return Ok(None);
    }
    means.kernel.hold(container.pid, &kinds_held(&means.breed.namespaces)).map(Some).map_err(|error| error.to_string())
}
