//! The API's promises, in process over a real Unix socket with the real pool; the buddies are made by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "a test waits for its callers by their handles")]

#[path = "support/hand.rs"]
mod hand;
mod rpc;
#[path = "support/served.rs"]
mod served;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/small_registry.rs"]
mod small_registry;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/image.rs"]
mod support_image;
#[path = "support/world.rs"]
mod world;
