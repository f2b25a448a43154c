//! Images: the placeholder, prepared once for all slots behind a gate that closes again, and those that callers ask for, fetched once for all who ask.
//!
//! [`placeholder`] makes the embedded image; [`gate`] sees to it that an image is there before a nanny creates from it, and that only one
//! preparation runs, whoever waits (I5); [`cache`] does the same for any image, asked for by a [`mod@reference`]; [`freshness`] says when a [`registry`] is asked
//! whether that is still what it has; [`build`] builds them; [`push`] brings them to registries; [`pull`] finds the credentials that a pull needs. [`store`] keeps
//! images on this host, whatever becomes of its engines; [`host_store`] is that of a daemon; [`download`] brings them there from registries, [`transfer`] from there into an engine and back. [`room`] keeps what
//! they take below a mark, [`stages`] measures all of it. None of them knows slots, leases or nannies.

use std::sync::Arc;
use std::time::Duration;

use self::build::Builds;
use self::cache::Cache;
use self::push::Pusher;
use self::room::Room;
use crate::config;
use crate::engine::Engine;
use crate::random;

pub mod build;
pub mod cache;
pub mod download;
pub mod freshness;
pub mod gate;
pub mod host_store;
pub mod placeholder;
pub mod places;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
pub mod room;
pub mod stages;
pub mod store;
pub mod transfer;

/// Those that callers ask for, fetched, built and pushed. Clones share everything.
#[derive(Clone)]
pub struct Images {
    /// By reference.
    pub cache: Cache,
    /// By what goes in.
    pub builds: Builds,
    /// To registries.
    pub pusher: Pusher,
    /// That they fit on the disk.
    pub room: Room,
}

impl Images {
    /// `engine` is a paced one.
    #[must_use]
    pub fn new(cache: Cache, engine: Arc<dyn Engine>, settings: &config::Images) -> Self {
        let builds = Builds::new(Arc::clone(&engine), cache.clone(), settings.clone());
        let pusher = Pusher::new(Arc::clone(&engine), cache.clone(), settings.clone());
        let room = Room::new(engine, cache.uses().clone(), cache.places().clone(), cache.store().clone(), settings);
        let makes = room.clone();
        cache.make_space_by(move || {
            let room = makes.clone();
            Box::pin(async move { room.make_space().await })
        });
        Self { cache, builds, pusher, room }
    }

    /// Cuts off fetches, builds and pushes, those to come included, and waits until they have ended. Cancel safe: they end all the same.
    pub async fn close(&self) {
        self.pusher.close().await;
        self.builds.close().await;
        self.cache.close().await;
        self.room.close().await;
    }
}

/// Doubles with each failure, up to the longest; a random half of it is taken off, so that many daemons on one registry drift apart.
fn jittered(first: Duration, longest: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let full = first.saturating_mul(1 << doublings).min(longest);
    full / 2 + (full / 2).mul_f64(random::dice().f64())
}
