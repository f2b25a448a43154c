//! The supervisor: the only place that spawns nannies, one per slot, and that joins them.
//!
//! What it promises: a slot that is added gets its nanny at once; at the stop it waits for all of them, bounded by whoever waits for it; a nanny
//! that panics is a bug of ours and ends the daemon in an orderly way, for its slot's buddy has no keeper any more.

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::nanny::{Nanny, Tools};

/// A nanny panicked; the words are in the log.
#[derive(Debug, thiserror::Error)]
#[error("a nanny ended in a panic: {0}")]
pub struct NannyPanicked(pub String);

/// Runs nannies until the pool stops and all of them have ended. Dropping the future aborts them.
///
/// # Errors
/// [`NannyPanicked`], at once; the others are aborted when the future is dropped.
pub async fn run(tools: Arc<Tools>) -> Result<(), NannyPanicked> {
    let pool = Arc::clone(&tools.pool);
    let mut nannies = JoinSet::new();
    let mut spawned = 0;
    loop {
        let slots = pool.read(|state| state.slot_count());
        for slot in spawned..slots {
            nannies.spawn(Nanny::new(slot, Arc::clone(&tools)).run());
        }
        spawned = slots;
        tokio::select! {
            biased;
            Some(ended) = nannies.join_next() => ended.map_err(|error| NannyPanicked(error.to_string()))?,
            () = pool.until(|state| state.slot_count() > spawned) => {}
            () = pool.until(|state| state.is_stopping()), if nannies.is_empty() => return Ok(()),
        }
    }
}
