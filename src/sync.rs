//! The lock, the hand-over and the waits of the pool and the ledger. In the daemon they are parking_lot's and tokio's as they are. In this
//! crate's own tests a model checker can take them over: whoever takes or leaves a lock, hands something over, or waits, is then stopped
//! there, and the checker decides who goes on, and which waits run out (`checked`).
//!
//! What it deliberately leaves alone: tokio's `Notify`, also below `crate::level`. It wakes whoever polls it under any executor, so a wake-up that our
//! code loses is found; what happens inside of it is its makers' to test.

#[cfg(test)]
pub(crate) mod checked;

#[cfg(test)]
pub(crate) use checked::{Mutex, oneshot, sleep, timeout};
#[cfg(not(test))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(test))]
pub(crate) use tokio::sync::oneshot;
#[cfg(not(test))]
pub(crate) use tokio::time::{sleep, timeout};
