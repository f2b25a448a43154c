//! Rolls the pool to another placeholder image, slot by slot: tells the pool's `roll` which image is the present one, and when to look again.
//!
//! It begins when the gate opens with another image than buddies were made from: the registry had a new one ([`crate::image::freshness`]), somebody moved the
//! tag, or this daemon adopts what one with another image left. While nothing is to be rolled it sleeps: nobody's Allocate wakes it.
//!
//! It deliberately does not know how buddies are made or removed (their nannies do that), and does not judge the image: of one that does not live
//! ([`Trust`](crate::nanny::fill::Trust)) none becomes ready, and then none of the old ones goes.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::nanny::Tools;

/// Until `stop`.
pub async fn run(tools: Arc<Tools>, stop: CancellationToken) {
    stop.run_until_cancelled(roll(&tools)).await;
}

async fn roll(tools: &Tools) {
    let (pool, mut gate) = (&tools.pool, tools.gate.subscribe());
    let mut known = None;
    loop {
        let image = gate.borrow_and_update().image().cloned();
        if let Some(image) = &image
            && known.as_ref() != Some(image)
        {
            if known.is_some() {
                // Nobody knows yet whether what it runs stays.
                tools.trust.shaken();
            }
            known = Some(image.clone());
        }
        let mut changed = std::pin::pin!(pool.changed());
        changed.as_mut().enable();
        let is_rolling = match image.as_ref().map(|image| image.bare()) {
            Some(image) if !pool.read(|state| state.next_step(image)).is_empty() => {
                let slots = pool.with(|state, now| state.roll(now, image));
                for slot in slots.iter() {
                    tracing::info!(slot, image, "its buddy makes way for one of the present placeholder image");
                }
                continue;
            }
            Some(image) => pool.read(|state| state.is_rolling(image)),
            None => false,
        };
        tokio::select! {
            biased;
            Ok(()) = gate.changed() => {}
            () = tools.made.notified() => {}
            () = changed, if is_rolling => {}
            else => return,
        }
    }
}
