//! What the integration tests share: private engines, an image to run, waiting on a level with a deadline.
//!
//! It deliberately knows nothing of pools and nannies: it is about the machine under them.
#![expect(dead_code, reason = "each test binary uses a part of this module")]
#![expect(clippy::unwrap_used, reason = "a support function that fails fails its test")]

pub mod daemon;
pub mod engines;
pub mod image;
pub mod proxy;
pub mod registry;
pub mod renewable;
pub mod space;

use std::time::{Duration, Instant};

/// Looks every 10 ms until `level` gives something; panics with `what` after `limit`.
#[expect(clippy::disallowed_methods, reason = "the level is another process's, nobody can wake us")]
pub fn wait_for<T>(what: &str, limit: Duration, mut level: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = level() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The same for async levels, on tokio's clock.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, limit: Duration, mut level: impl FnMut() -> F) -> T {
    let end = tokio::time::Instant::now() + limit;
    loop {
        if let Some(value) = level().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < end, "waited {limit:?} in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
