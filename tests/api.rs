//! The API's promises, in process over a real Unix socket with the real pool; the buddies are made by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "a test waits for its callers by their handles")]

#[path = "support/hand.rs"]
mod hand;
mod rpc;
#[path = "support/served.rs"]
mod served;
#[path = "support/world.rs"]
mod world;
