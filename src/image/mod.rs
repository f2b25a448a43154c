//! The placeholder image: prepared once for all slots, behind a gate that closes again.
//!
//! [`placeholder`] makes the embedded image; [`gate`] sees to it that an image is there before a nanny creates from it, and that only one
//! preparation runs, whoever waits (I5); [`pull`] finds the credentials that a pull needs. None of them knows slots, leases or nannies.
pub mod gate;
pub mod placeholder;
pub mod pull;
