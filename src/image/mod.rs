//! Images: the placeholder, prepared once for all slots behind a gate that closes again, and those that callers ask for, fetched once for all who ask.
//!
//! [`placeholder`] makes the embedded image; [`gate`] sees to it that an image is there before a nanny creates from it, and that only one
//! preparation runs, whoever waits (I5); [`cache`] does the same for any image, asked for by a [`mod@reference`]; [`build`] builds them; [`pull`] finds the credentials that a pull
//! needs. None of them knows slots, leases or nannies.

use std::sync::Arc;
use std::time::Duration;

use self::build::Builds;
use self::cache::Cache;
use self::pull::CredentialSource;
use crate::config;
use crate::engine::Engine;
use crate::random;

pub mod build;
pub mod cache;
pub mod gate;
pub mod placeholder;
pub mod pull;
pub mod reference;

/// Those that callers ask for, fetched and built. Clones share everything.
#[derive(Clone)]
pub struct Images {
    /// By reference.
    pub cache: Cache,
    /// By what goes in.
    pub builds: Builds,
}

impl Images {
    /// `engine` is a paced one.
    #[must_use]
    pub fn new(engine: &Arc<dyn Engine>, credentials: CredentialSource, settings: &config::Images, backoff: config::Backoff) -> Self {
        let cache = Cache::new(Arc::clone(engine), credentials, settings.clone(), backoff);
        let builds = Builds::new(Arc::clone(engine), cache.clone(), settings.clone());
        Self { cache, builds }
    }

    /// Cuts off fetches and builds, those to come included, and waits until they have ended. Cancel safe: they end all the same.
    pub async fn close(&self) {
        self.builds.close().await;
        self.cache.close().await;
    }
}

/// Doubles with each failure, up to the longest; a random half of it is taken off, so that many daemons on one registry drift apart.
fn jittered(first: Duration, longest: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let full = first.saturating_mul(1 << doublings).min(longest);
    full / 2 + (full / 2).mul_f64(random::dice().f64())
}
