//! The API's promises, in process over a real Unix socket with the real pool; the buddies are made by hand.

#[path = "support/hand.rs"]
mod hand;
mod rpc;
#[path = "support/served.rs"]
mod served;
#[path = "support/world.rs"]
mod world;
