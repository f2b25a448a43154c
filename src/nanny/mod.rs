//! (being written)
pub mod backoff;
pub mod buddy;
