//! Pin: a container that never runs keeps the placeholder image in the engine while no buddy does.
//!
//! `docker image prune -a` removes every image that no container was made from, and buddies are containers: with them about the image is safe. Without
//! (`ready = 0`, an engine that cannot start any, a pool that was made small) a pin is made, within some seconds, and stays until the image is
//! another one or the daemon stops. It is named and labelled as the pool's ([`PIN_SLOT`]), so that recovery and purge clear it away like a buddy that
//! nobody is in, and the audit knows it.
//!
//! What can go wrong: it is removed by hand or by `docker container prune` (made again) · its create's outcome is not known (at the stop all pins of this
//! run are looked for, by their labels) · the image goes in the moment before (the gate gets it again). It deliberately does not know slots or why there is no buddy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Tools;
use super::buddy::PIN_SLOT;
use crate::engine::{ContainerId, Engine, EngineError, ErrorClass, ImageId};

/// Between two looks; two in a row have to find no buddy.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After a create that failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Whether this daemon made one: then there is something to look for at its end.
#[derive(Debug, Default)]
pub struct Pinned(AtomicBool);

/// The present one.
struct Pin {
    id: ContainerId,
    image: ImageId,
}

struct Keeper {
    tools: Arc<Tools>,
    pin: Option<Pin>,
    /// The last look found no buddy.
    was_bare: bool,
    not_before: Instant,
    /// Something may have happened to the pin.
    doubt: Arc<Notify>,
}

/// Until `stop`; what is there then is for [`remove`], or the next daemon.
pub async fn run(tools: Arc<Tools>, stop: CancellationToken) {
    let keeper = Keeper { tools, pin: None, was_bare: false, not_before: Instant::now(), doubt: Arc::default() };
    stop.run_until_cancelled(keeper.keep()).await;
}

impl Keeper {
    async fn keep(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let doubt = Arc::clone(&self.doubt);
        loop {
            tokio::select! {
                biased;
                () = doubt.notified() => self.settle().await,
                _ = looks.tick() => self.look().await,
            }
        }
    }

    /// Whether it is still there.
    async fn settle(&mut self) {
        let Some(pin) = &self.pin else { return };
        match self.tools.engine.inspect(pin.id.as_str()).await {
            Err(error) if error.class == ErrorClass::NotFound => {
                tracing::info!(container = %pin.id, "what kept the placeholder image is gone");
                self.tools.doubts.forget(&pin.id);
                self.pin = None;
            }
            // Of an engine that does not answer the next stream of events raises the doubt anew.
            Ok(_) | Err(_) => {}
        }
    }

    async fn look(&mut self) {
        let Some(image) = self.tools.gate.state().image().cloned() else { return };
        if self.pin.as_ref().is_some_and(|pin| pin.image != image) {
            self.let_go().await;
        }
        // Before, another daemon may have the pool.
        let is_bare = self.tools.pool.read(|state| state.is_open() && !state.is_stopping() && !state.has_buddy_of(image.bare()));
        let is_due = is_bare && self.was_bare && self.pin.is_none();
        self.was_bare = is_bare;
        if is_due && Instant::now() >= self.not_before {
            self.make(image).await;
        }
    }

    async fn make(&mut self, image: ImageId) {
        let tools = Arc::clone(&self.tools);
        let random = tools.dice.lock().u32(..);
        let spec = tools.breed.pin(random, &image);
        let _permit = tools.engine.preparation().await;
        // From here on there may be one.
        tools.pinned.0.store(true, Ordering::Relaxed);
        match tools.engine.create(&spec).await {
            Ok(id) => {
                tracing::info!(container = %id, name = spec.name, %image, "no buddy uses the placeholder image: a container that never runs keeps it");
                tools.doubts.watch(&id, &self.doubt);
                self.pin = Some(Pin { id, image });
            }
            Err(error) => {
                self.not_before = Instant::now() + RETRY_AFTER;
                if error.class == ErrorClass::ImageMissing {
                    tools.gate.image_gone(image.as_str());
                }
                tracing::warn!(name = spec.name, %image, %error, "the placeholder image cannot be kept by a container");
            }
        }
    }

    async fn let_go(&mut self) {
        let Some(pin) = self.pin.take() else { return };
        self.tools.doubts.forget(&pin.id);
        if let Err(error) = self.tools.engine.remove(&pin.id).await {
            tracing::warn!(container = %pin.id, %error, "what kept an earlier placeholder image could not be removed yet");
        }
    }
}

/// At the end: all pins of this run go, those included that nobody knows of. Answers what stays, and why.
///
/// # Errors
/// The engine's list failed: nobody knows.
pub async fn remove(tools: &Tools) -> Result<Vec<(ContainerId, EngineError)>, EngineError> {
    let mut left = Vec::new();
    if !tools.pinned.0.load(Ordering::Relaxed) {
        return Ok(left);
    }
    for found in tools.engine.list().await? {
        let owner = tools.breed.owned(&found.name, &found.labels);
        if owner.is_some_and(|owner| owner.slot == PIN_SLOT && owner.instance == tools.breed.instance)
            && let Err(error) = tools.engine.remove(&found.id).await
        {
            left.push((found.id, error));
        }
    }
    Ok(left)
}
