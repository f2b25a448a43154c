//! The minder: watches over buddies that were given up with somebody still inside, outside of the slots, and removes each one once it is empty.
//!
//! They come from nannies whose slot has waited long enough, and from a dead predecessor. Their number is bounded by the pool, and by what the
//! predecessor left. All of them share one look per second.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Tools;
use crate::engine::{ContainerId, Engine, ErrorClass};
use crate::netns::Held;
use crate::netns::networks::Link;
use crate::pool::Moment;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A buddy without a slot.
#[derive(Debug)]
pub struct Detached {
    /// The container.
    pub id: ContainerId,
    /// Its present name.
    pub name: String,
    /// The slot it was made for.
    pub slot: u32,
    /// Its generation.
    pub generation: u64,
    /// `None`: it has no process any more.
    pub held: Option<Box<dyn Held>>,
    /// Its link, whose address is nobody else's while it is here.
    pub link: Option<Link>,
    /// Detached since.
    pub since: Moment,
    /// Who is inside, for people.
    pub joiners: Vec<String>,
    /// Not removed before, though nobody is inside: a lease that is not known any more may be on it. Zero: no such thing.
    pub keep_until: Moment,
}

/// What people see of a [`Detached`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachedView {
    /// The container.
    pub id: ContainerId,
    /// Its present name.
    pub name: String,
    /// The slot it was made for.
    pub slot: u32,
    /// Its generation.
    pub generation: u64,
    /// Detached since.
    pub since: Moment,
    /// Who is inside.
    pub joiners: Vec<String>,
}

/// The list that others may read.
pub type DetachedList = Arc<Mutex<Vec<DetachedView>>>;

/// See the module. Ends at `stop`; what is still occupied then stays in `list`.
pub async fn run(tools: Arc<Tools>, mut arriving: mpsc::Receiver<Detached>, list: DetachedList, stop: CancellationToken) {
    let mut minded: Vec<Detached> = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(buddy) = arriving.recv() => take_in(&tools, &mut minded, buddy),
            () = tokio::time::sleep(LOOK_EVERY), if !minded.is_empty() => minded = look_after(&tools, minded).await,
        }
        *list.lock() = minded.iter().map(view).collect();
    }
    // A last look, so that what is named as left behind is what is there.
    while let Ok(buddy) = arriving.try_recv() {
        take_in(&tools, &mut minded, buddy);
    }
    minded = look_after(&tools, minded).await;
    *list.lock() = minded.iter().map(view).collect();
}

/// Two looks for what a predecessor left may find the same one before it shows in the list.
fn take_in(tools: &Tools, minded: &mut Vec<Detached>, buddy: Detached) {
    if minded.iter().any(|known| known.id == buddy.id) {
        tools.pool.with(|state, _| state.detached_removed());
    } else {
        minded.push(buddy);
    }
}

fn view(buddy: &Detached) -> DetachedView {
    DetachedView {
        id: buddy.id.clone(),
        name: buddy.name.clone(),
        slot: buddy.slot,
        generation: buddy.generation,
        since: buddy.since,
        joiners: buddy.joiners.clone(),
    }
}

/// A stop that removes ends every lease, and this one's as well.
fn kept(tools: &Tools, buddy: &Detached) -> bool {
    let ending = tools.pool.read(|state| state.is_stopping() && !state.is_keeping());
    !ending && tools.pool.now() < buddy.keep_until
}

/// Removes those that are empty; answers the others.
async fn look_after(tools: &Tools, minded: Vec<Detached>) -> Vec<Detached> {
    let looks = minded.into_iter().map(|mut buddy| async {
        let configured = match tools.looks.inside(&buddy.id, buddy.held.as_deref()).await {
            Ok(inside) if inside.live.is_empty() && kept(tools, &buddy) => {
                buddy.joiners = vec!["perhaps a lease that the ledger lost".to_owned()];
                return Some(buddy);
            }
            Ok(inside) if inside.live.is_empty() => inside.configured,
            Ok(inside) => {
                buddy.joiners = inside.live;
                return Some(buddy);
            }
            Err(error) => {
                tracing::debug!(container = %buddy.id, %error, "cannot tell who is inside a detached buddy");
                return Some(buddy);
            }
        };
        match tools.engine.remove(&buddy.id).await {
            Ok(()) => {
                tracing::info!(slot = buddy.slot, generation = buddy.generation, container = %buddy.id, "detached buddy removed");
                if let Some(link) = buddy.link.take() {
                    tools.networks.leave(link, tools.pool.now()).await;
                }
                tools.pool.with(|state, _| state.detached_removed());
                None
            }
            Err(error) if error.class == ErrorClass::HasDependents => {
                buddy.joiners = configured;
                Some(buddy)
            }
            Err(error) => {
                tracing::warn!(container = %buddy.id, %error, "a detached buddy could not be removed yet");
                Some(buddy)
            }
        }
    });
    futures::future::join_all(looks).await.into_iter().flatten().collect()
}
