//! What needs rights, in a small process of its own, so that the part that talks to callers needs none.
//!
//! ```text
//!   daemon (no capabilities) ── verbs, descriptors ──► helper: setns, netlink, nft, signals, /proc, an engine's shared files
//!        └───────────────────────────────────────────► keeper: starts the helper, ends and reaps it before it starts another one
//! ```
//!
//! [`keeper`] and [`server`] are this program again, as `nspool helper`, started before the daemon gives its capabilities away. [`Helper`] is the
//! daemon's side: a [`Kernel`](super::Kernel) and [`Links`](super::networks::Links) whose every deed is one of a fixed set of [`verbs`]. After a
//! process was taken hold of by its number, deeds are done to the descriptors that came back, which are passed along; numbers come back, descriptors do
//! not. What an answer brings is looked at before it is believed: of which kind a descriptor is, whose, and that a new namespace is new.
//!
//! What it promises: one helper at a time, also over a restart of the daemon: the next one waits on a lock until the last one is gone · a
//! helper that ends, answers late or says what is not understood is ended and reaped, and another one is started, which is told what links there should
//! be · nothing is done twice: what was asked of the one that ended has failed, and is not asked again of the next.
//!
//! What can go wrong: all that was under way when a helper ended fails, and it may have been done · what it alone knew is lost: namespaces that were
//! to be compared with what they had been are given up · there is no helper while one cannot be started: nothing gets ready, what is leased stays
//! leased · the keeper ends: nothing, until another helper is needed; then [`Helper::lost`], and the daemon has to be started anew.

pub(super) mod channel;
pub mod client;
mod cni;
mod folders;
mod held;
pub mod keeper;
pub mod powers;
#[cfg(test)]
mod scripted;
pub mod server;
mod session;
mod verbs;

pub use client::Helper;
pub use cni::RemoteCni;
pub use folders::RemoteMounter;
pub use held::{Remote, RemoteLinks};
pub use keeper::Keeper;
pub use session::HelperError;
pub use verbs::{Begin, BeginError, Log};
