//! What a dead predecessor left in the engine: buddies of this pool that nobody is in are removed, those with somebody inside go to the minder, and
//! so do those that a lost ledger may have told as leased, for as long as a function may be on its way to them.
//!
//! The caller holds the pool's lock, which proves that the owner of every buddy found here is dead (I3). What the ledger tells of is adopted by
//! nannies; this is for all else. Whoever cannot be looked into is taken for occupied (I9).

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};

use crate::engine::{ContainerId, ContainerSummary, Engine, EngineError};
use crate::ledger::{self, Replayed};
use crate::nanny::buddy::{Breed, Ownership};
use crate::nanny::hold;
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

/// Buddies that an earlier ledger told of, which is lost: a lease may be on each, and its function about to start.
#[derive(Clone, Copy, Debug)]
pub struct Suspects {
    /// Of generations below this one.
    pub below: u64,
    /// Kept until then, though nobody is inside.
    pub until: Moment,
}

/// What the last daemon's ledger tells, into the empty pool; its nannies prove it. Answers whom it may have forgotten, and that they are kept for
/// `join_by` after the loss.
pub fn restore(pool: &Pool, replayed: Replayed, join_by: Duration) -> Suspects {
    let Replayed { table, found } = replayed;
    let began = Duration::from_nanos(table.began.as_ref().map_or(0, |began| began.at));
    match &found {
        ledger::Found::Nothing | ledger::Found::Whole { torn: 0, unread: 0 } => {}
        ledger::Found::Whole { torn, unread: 0 } => tracing::info!(bytes = torn, "the end of the ledger was not completed: cut off"),
        ledger::Found::Whole { torn, unread } => {
            tracing::info!(
                bytes = torn,
                records = unread,
                "the ledger is of a later release: its leases stand, what only that release knows is dropped"
            );
        }
        ledger::Found::Broken { bytes, aside } => {
            tracing::error!(bytes, aside, "the ledger is broken: leases that it tells stand, other buddies are not trusted to be free");
        }
    }
    let restored = pool.with(|state, now| state.restore(now, table));
    if restored != Restored::default() {
        tracing::info!(leases = restored.leases, buddies = restored.buddies, "restored from the ledger");
    }
    // A ledger that is whole by now may be the successor of one that was lost a moment ago.
    let below = if matches!(found, ledger::Found::Whole { .. }) { first_generation(began) } else { u64::MAX };
    Suspects { below, until: began + join_by }
}

/// Above every generation of an earlier run on this boot, which made fewer than one buddy per millisecond.
#[must_use]
pub fn first_generation(now: Moment) -> u64 {
    u64::try_from(now.as_millis()).unwrap_or(0) + 1
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

/// Looks at all containers of this pool but those to `spare` (whom this daemon made or has), removes those that nobody is in, but for running `suspects`.
///
/// # Errors
/// The engine's list failed: nothing was touched, nothing is known.
pub async fn recover(
    means: &Means,
    spare: impl Fn(&ContainerId, &Ownership) -> bool,
    suspects: Option<Suspects>,
) -> Result<Recovered, EngineError> {
    let list = means.looks.list().await?;
    let ours: Vec<(ContainerSummary, Ownership)> =
        list.iter().filter_map(|found| Some((found.clone(), means.breed.owned(&found.name, &found.labels)?))).collect();
    let mut recovered =
        Recovered { next_generation: ours.iter().map(|(_, owner)| owner.generation + 1).max().unwrap_or(0), ..Recovered::default() };
    let now = means.kernel.since_boot();
    let (joiners, ours): (Vec<_>, Vec<_>) =
        ours.into_iter().filter(|(found, owner)| !spare(&found.id, owner)).partition(|(found, _)| found.joins().is_some());
    clear_probes(means, joiners).await;
    // Each is removed right after the look at it, so that what was seen is still true.
    let suspects = suspects.filter(|suspects| now < suspects.until);
    let clean_one = |(found, owner)| async move {
        let found = examine(means, found, owner).await;
        // One that never ran was handed out to nobody.
        let suspect = suspects.filter(|suspects| found.generation < suspects.below && found.held.is_some());
        match suspect {
            Some(suspects) => Err(keep(found, now, suspects.until)),
            None => clean(means, found, now).await,
        }
    };
    let mut cleaned = std::pin::pin!(stream::iter(ours).map(clean_one).buffer_unordered(16));
    while let Some(outcome) = cleaned.next().await {
        match outcome {
            Ok(name) => recovered.removed.push(name),
            Err(occupied) => recovered.occupied.push(*occupied),
        }
    }
    Ok(recovered)
}

/// Of our containers only a probe's joins another one ([`crate::renewal`]), and nobody was ever told of it: the buddy that it is in can go then.
async fn clear_probes(means: &Means, joiners: Vec<(ContainerSummary, Ownership)>) {
    for (found, _) in joiners {
        match means.engine.remove(&found.id).await {
            Ok(()) => tracing::info!(container = %found.id, name = found.name, "removed what a dead predecessor's probe left"),
            Err(error) => tracing::warn!(container = %found.id, name = found.name, %error, "what a probe left could not be removed yet"),
        }
    }
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
    Err(Box::new(found.detached(now)))
}

fn keep(found: Found, now: Moment, until: Moment) -> Box<Detached> {
    tracing::warn!(container = %found.id, name = found.name, keep = ?until.saturating_sub(now), "a buddy that the ledger may have told as leased is kept");
    Box::new(Detached { keep_until: until, ..found.detached(now) })
}

impl Found {
    /// For the minder.
    pub(crate) fn detached(self, now: Moment) -> Detached {
        let Self { id, name, slot, generation, held, inside } = self;
        Detached { id, name, slot, generation, held, link: None, since: now, joiners: inside, keep_until: Moment::ZERO }
    }
}

/// Who is inside one of this pool's buddies.
pub(crate) async fn examine(means: &Means, found: ContainerSummary, owner: Ownership) -> Found {
    let (held, inside) = match held(means, &found).await {
        Ok(held) => match means.looks.inside(&found.id, held.as_deref()).await {
            Ok(inside) => (held, inside.live),
            Err(error) => (held, vec![format!("could not be looked into: {error}")]),
        },
        Err(error) => (None, vec![error]),
    };
    Found { id: found.id, name: found.name, slot: owner.slot, generation: owner.generation, held, inside }
}

async fn held(means: &Means, found: &ContainerSummary) -> Result<Option<Box<dyn Held>>, String> {
    let container = means.engine.inspect(found.id.as_str()).await.map_err(|error| error.to_string())?;
    hold(means.kernel.as_ref(), &container, &means.breed.namespaces).await.map_err(|error| error.to_string())
}
