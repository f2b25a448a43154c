//! The placeholder image: prepared once for all slots, behind a gate that closes again.
pub mod gate;
pub mod placeholder;
pub mod pull;
