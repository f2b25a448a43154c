//! nspool keeps network namespaces ready for functions that run in containers.
//!
//! Starting a container is slow mostly because of its network namespace. nspool is the daemon beside a FaaS agent that keeps such namespaces
//! ready: one **nanny** task per **slot** keeps one **buddy** (a placeholder container that does nothing) alive; the agent **allocates** a slot
//! over gRPC, starts its function's container with `--network container:<namespace id>`, and **releases** it.
//!
//! ```text
//!  config ─► daemon ─► supervisor ─► nanny[k] ─► gate ─► paced engine ─► Docker, podman, native; netns ─► kernel
//!               │                      │  ▲                   │            (by the helper process)
//!               │            register  │  │ vacate / retire   │ exited, paused, gone; joined, left
//!               │                      ▼  │                   ▼
//!               └─► api ── allocate / release ──► pool ◄── observer
//!                                                  └─► ledger ─► (the next daemon's) recovery, nannies adopt
//! ```
//!
//! # Words
//! slot: a numbered place · buddy: the placeholder container in it · generation: pool-wide, strictly increasing number of a buddy · use: counts
//! the hand-outs of a buddy · nanny: the task that keeps one slot filled · gate: lets one preparation of the placeholder image run for all, and
//! closes again when the image is gone · pin: a container that never runs, and keeps that image where no buddy does · fresh: still what its registry has ·
//! roll: replace, slot by slot, buddies of an earlier placeholder image · pacer: rate and concurrency limit before engine mutations · engine: Docker, podman, or none (native), behind a trait ·
//! pool: the slots' states, the free lists, the leases · lease: one hand-out · holder: the peer that has it · owner: the name an agent gives itself ·
//! joiner: a container or process in a buddy's namespaces (*live*: a process, or a running, paused or restarting container; *configured*: created
//! or exited, could still start) · ledger: the journal of buddies and leases, for the next daemon · adopt: prove again what a predecessor had ·
//! fence: what makes a late join fail (the buddy's rename; of who joins by path, the folder's) · renewal: a new network namespace under the same buddy · managed network: one whose
//! namespaces nspool *furnishes* with link, addresses and routes · retire: give a buddy up · detach: give a slot free whose buddy still has somebody
//! inside · cordon: hand out nothing more · drain: cordon and wait, bounded · audit: hold pool, ledger, engine and kernel against each other.
//!
//! # Invariants
//! Cited by these names in code and tests.
//! - **I1** Each slot is in exactly one state; all counts are derived from that one structure.
//! - **I2** A use of a buddy has at most one lease. A release by an old, wrong or repeated token never touches another's. A late join by a lease's
//!   name fails once the lease has ended.
//! - **I3** Only nanny k (or, where no nanny is, recovery, minder and purge under the pool's lock) creates or removes containers of slot k, and only the pin its
//!   own one, which is in no slot and never runs. Nothing
//!   without our ownership labels and names is ever touched, nothing of another live pool: a lock, not a label, proves an owner dead.
//! - **I4** Ready means started, alive by its pidfd, not paused, the same container id and start, in a network namespace of its own, furnished. Names, pids
//!   and inode numbers are no identity: they come back.
//! - **I5** At most one preparation of an image is in flight; it belongs to the daemon, not to whoever asked first.
//! - **I6** Every engine mutation passed the pacer. No engine call is without a deadline, but wait and events, which have probes and reconnects.
//! - **I7** No lock is held across an await; an Allocate that finds a slot touches neither engine nor kernel network.
//! - **I8** An answered Allocate survives kill -9 of the daemon: the ledger was written first. A failed write undoes the lease.
//! - **I9** A namespace with a live joiner is never removed, renewed or handed out, under any policy. Unknown is neither dead nor free: an EOF, a timeout, a
//!   5xx change no slot to free.
//! - **I10** What is handed out is a fresh namespace, or one that is proven to be as it was when it was ready, unless `reuse = "always"`.
//! - **I11** Stop is bounded, and says what becomes of the slots: `remove` leaves nothing of ours but what has live joiners, each named; `keep` leaves all
//!   for the next start to adopt.
//! - **I12** Every queue, retry, wait, label, message and file has a bound.
//!
//! What is deliberately absent: anything that survives a reboot (buddies do not), container engines other than Docker and podman.
//!
//! # Who may say what
//! `bollard` only in `engine/docker*` · `governor` only in `engine/paced*` · netlink and other namespaces only in `netns/` · `tonic` only in
//! `api/`, `client*` and where generated code needs it · `hyper_rustls` and `url` only in `image/registry` · the pool knows no engine, the ledger no pool, the api no nanny, a nanny no lease.
//! `tests/layering.rs` holds the code to it.
//!
//! # Reading order
//! [`pool::state`] (the picture of a slot's life) → [`ledger`] (what survives the daemon) → [`nanny`] (the story of one slot) → [`engine`] (what an
//! engine is asked) → [`audit`] (what must agree) → [`daemon`] (assembly and stop) → [`api`] (what callers are told) → [`process`] (sockets and signals).
//! Images: [`image::cache`] (one fetch for all who ask, and whose image it is) → [`image::freshness`] (whether it is still what its registry has) →
//! [`image::build`] (one build for all, by what goes in) → [`image::gate`] (the placeholder) → [`nanny::pin`] (that it stays) → [`mod@roll`] (that all
//! buddies come from it) → [`image::room`] (that they fit on the disk) → [`image::store`] (what outlives engines, and how) → [`image::download`] (what comes into it) →
//! [`image::transfer`] (engines are loaded from it) → [`image::push`] (registries are given what is here).
//! Networks of our own: [`netns::networks`] (addresses and links as nannies use them) → [`netns::managed`] (bridges, links, rules) →
//! [`engine_networks`] (those whose bridge the engine makes for us).
//! Without a container engine: [`engine::native`] (a buddy is a folder) → [`netns::folders`] (namespaces as files, to be joined by path) →
//! [`netns::join`] (a program joins one) → [`netns::cni`] (plugins that furnish them) → [`nanny::shelf`] (paths beside a container engine) →
//! [`headcount`] (who is inside, where no engine tells).
//! What needs rights: [`netns::helper`] (a process of its own, a fixed set of verbs).
//! Beneath all: [`level`] (a value that many follow), [`random`] (where chance comes from), `sync` (locks, as a model checker sees them), [`measured`] (locks that tell how long they were held).

/// The examples in the README compile.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct Readme;

pub mod proto;

pub mod ledger;
pub mod pool;

pub mod audit;
pub mod headcount;
pub mod nanny;
pub mod observer;
pub mod recovery;
pub mod renewal;
pub mod roll;
pub mod supervisor;

mod causes;
pub mod coalesce;
pub mod engine;
pub mod engine_networks;
pub mod image;
pub mod level;
pub mod lock;
pub mod measured;
pub mod netns;
pub mod random;
mod sync;

pub mod api;
pub mod client;

pub mod cli;
pub mod config;
pub mod daemon;
pub mod process;
pub mod systemd;
pub mod telemetry;
