//! Managed networks: nspool itself gives a namespace its link, addresses and routes, by netlink, in process.
//!
//! ```text
//!   slot's namespace │ host
//!                    │
//!     lo   eth0 ═════╪═══ ns7gqbi42-7 ─┐ (an isolated port)
//!   10.200.0.42/16   │                 ├─ bridge nsbr0, 10.200.0.1/16 ── forwarding, table nspool_test ── outside
//!     lo   eth0 ═════╪═══ ns7gqbi43-1 ─┘
//! ```
//!
//! [`network`] says what a network is, and plans a slot's link; [`addresses`] keeps the book of who has which address; [`Worker`] does it,
//! in one thread, asked through a [`Furnisher`]; [`host`] tells what is not as it should be. Below them `rules` and `nft` for the firewall,
//! `link` for links; netlink itself is [`super::socket`] and [`super::wire`].
//!
//! What it promises: only links, bridges, tables and rules that are ours by name ([`names`]) are made, changed or removed · a slot has all
//! of its network, or none · addresses can be used at once (no duplicate detection) · when a link is said to be gone, it is · everything
//! has a deadline · all that was added to the host goes with [`Furnisher::tear_down`].
//!
//! What can go wrong: see [`FurnishError::class`] for what was asked, and [`host::Finding`] for what others do to the host meanwhile.
//!
//! # Another's bridge
//! On a bridge that Docker made, Docker's rules for it (NAT, forwarding) serve our slots, too, as they go by bridge and subnet; slots then
//! need addresses that Docker does not hand out (its `--ip-range` leaves them to us). Whether it was there, or is made for us, is not known here. Our isolation keeps slots from each other there, not
//! from Docker's containers.
//!
//! It deliberately does not know pools, leases, engines, nor when a namespace may be furnished or stripped.

pub mod addresses;
mod error;
mod hand;
pub mod host;
mod inside;
mod link;
pub mod names;
pub mod network;
mod nft;
mod rules;
mod subnet;
pub(super) mod trial;
mod watch;
mod worker;

pub use error::{Class, FurnishError};
pub(super) use hand::loopback_up;
pub use hand::{Furnished, INSIDE, Stripped};
pub(super) use inside::{Inside, look_inside};
pub use network::{Bridge, ManagedNetwork, Plan, Range};
pub use subnet::{Subnet, SubnetError};
pub use worker::{Furnisher, Limits, Worker};
