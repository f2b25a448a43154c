//! Images: the placeholder, prepared once for all slots behind a gate that closes again, and those that callers ask for, fetched once for all who ask.
//!
//! [`placeholder`] makes the embedded image; [`gate`] sees to it that an image is there before a nanny creates from it, and that only one
//! preparation runs, whoever waits (I5); [`cache`] does the same for any image, asked for by a [`mod@reference`]; [`pull`] finds the credentials that a pull
//! needs. [`store`] keeps images on this host, whatever becomes of its engines; [`transfer`] brings them from there into an engine and back. None of
//! them knows slots, leases or nannies.

use std::time::Duration;

use crate::random;

pub mod cache;
pub mod gate;
pub mod placeholder;
pub mod pull;
pub mod reference;
pub mod store;
pub mod transfer;

/// Doubles with each failure, up to the longest; a random half of it is taken off, so that many daemons on one registry drift apart.
fn jittered(first: Duration, longest: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(31);
    let full = first.saturating_mul(1 << doublings).min(longest);
    full / 2 + (full / 2).mul_f64(random::dice().f64())
}
