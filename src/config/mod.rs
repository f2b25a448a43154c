//! The configuration as the daemon uses it: validated, with durations as [`Duration`] and every default a value that works.
//!
//! [`raw`] is what can be written in the file, the environment and the flags; it refuses unknown keys. Validation reports all mistakes at
//! once, each with file, line, key, what was read and what is allowed. This file deliberately knows no TOML.

mod checks;
mod fn_env;
pub mod keys;
pub mod networks;
pub mod raw;
pub mod reload;
pub mod sample;
mod validate;
pub mod value;

use std::path::PathBuf;
use std::time::Duration;

use crate::engine::NamespaceKind;
use crate::netns::cni::Cni;
use crate::netns::folders::Ids;
use crate::netns::folders::ROOT;
pub use networks::{CniNetwork, EngineNetwork, Managed};

/// Everything that can be configured. The sections are those of `/etc/nspool/nspool.toml`; `systemd/nspool.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Config {
    /// `[pool]`
    pub pool: Pool,
    /// `[placeholder]`
    pub placeholder: Placeholder,
    /// `[networks.NAME]` of the kind `managed`; each is in [`Pool::networks`], in that order. The others there are the engine's.
    pub managed: Vec<Managed>,
    /// `[networks.NAME]` of the kind `cni`, in the same order.
    pub cni_networks: Vec<CniNetwork>,
    /// `[images]`
    pub images: Images,
    /// `[registries."host:port"]`
    pub registries: Vec<Registry>,
    /// `[engine]`
    pub engine: Engine,
    /// `[cni]`
    pub cni: Cni,
    /// `[pacer]`
    pub pacer: Pacer,
    /// `[backoff]`
    pub backoff: Backoff,
    /// `[api]`
    pub api: Api,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[log]`
    pub log: Log,
    /// `[state]`
    pub state: State,
    /// `[audit]`
    pub audit: Audit,
    /// `[stop]`
    pub stop: Stop,
}

/// What becomes of a buddy after a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reuse {
    /// A new buddy for each use.
    Once,
    /// The same namespace again, fenced only, as Fn does: the next tenant sees what the last one left.
    Always,
    /// A new namespace under the same buddy; on managed networks only.
    Fresh,
    /// The same namespace again, after the proof that it is as it was.
    Verified,
}

/// What becomes of a buddy under [`Reuse::Verified`] after somebody was inside who can do more than root with NET_ADMIN, or of whom that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unbounded {
    /// It serves no other lease: nobody sees all that they can do.
    Retire,
    /// All settings are compared, too.
    Inspect,
}

/// What becomes of a namespace that is used again when another tenant comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AcrossTenants {
    /// It goes to whoever comes.
    Allow,
    /// It goes to its tenant only; for another one it is given up.
    Retire,
}

impl AcrossTenants {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Retire => "retire",
        }
    }
}

impl Unbounded {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Retire => "retire",
            Self::Inspect => "inspect",
        }
    }
}

impl Reuse {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Always => "always",
            Self::Fresh => "fresh",
            Self::Verified => "verified",
        }
    }
}

/// `[pool]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// 1 to 20 characters of `a-z0-9-`; part of every buddy's name and label.
    pub name: String,
    /// Slots kept ready, spread evenly over the networks.
    pub ready: u32,
    /// Buddies that may exist at once.
    pub max: u32,
    /// The engine's networks and ours, the first is the default; never empty.
    pub networks: Vec<String>,
    /// Always holds `Net`.
    pub namespaces: Vec<NamespaceKind>,
    /// Of user namespaces.
    pub user_ids: Ids,
    /// `None`: `auto`. What it comes to on a network says [`Config::reuse_of`].
    pub reuse: Option<Reuse>,
    /// Matters where that is `Verified`.
    pub privileged_joiners: Unbounded,
    /// Matters where that is `Verified` or `Always`.
    pub across_tenants: AcrossTenants,
    /// How long a `joiners` lease waits for its first joiner, unless the caller says.
    pub join_by: Duration,
    /// How long a `joiners` lease outlives its last joiner.
    pub linger: Duration,
    /// How often processes that joined by path are looked for; zero: never.
    pub count_every: Duration,
    /// Longest `ttl`, `join_by` and `wait` that a caller may ask for.
    pub longest: Duration,
    /// After the fence: how long a configured joiner may take to go away before the buddy is retired.
    pub settle: Duration,
    /// How long a quarantined buddy keeps its slot.
    pub detach_after: Duration,
    /// Detached buddies at most; beyond, they keep their slots.
    pub max_detached: u32,
    /// Allocate calls that may wait at once.
    pub max_waiting: u32,
    /// Leases per uid; `None`: no quota.
    pub quota_per_uid: Option<u32>,
    /// How long an ended lease's token and request id are remembered.
    pub remember: Duration,
    /// Ended leases remembered at most.
    pub remember_max: u32,
    /// A ready slot beyond `ready` is given up after this long without need.
    pub trim_after: Duration,
    /// Events kept for watchers that come back.
    pub watch_backlog: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            name: "default".into(),
            ready: 8,
            max: 64,
            networks: vec!["bridge".into()],
            namespaces: vec![NamespaceKind::Net],
            user_ids: Ids { first: 0x7000_0000, count: 0x1_0000 },
            reuse: None,
            privileged_joiners: Unbounded::Retire,
            across_tenants: AcrossTenants::Allow,
            join_by: Duration::from_secs(60),
            linger: Duration::from_secs(10),
            count_every: Duration::from_secs(1),
            longest: Duration::from_secs(24 * 3600),
            settle: Duration::from_secs(1),
            detach_after: Duration::from_secs(60),
            max_detached: 64,
            max_waiting: 1024,
            quota_per_uid: None,
            remember: Duration::from_secs(600),
            remember_max: 16_384,
            trim_after: Duration::from_secs(30),
            watch_backlog: 4096,
        }
    }
}

/// `[placeholder]`: what a buddy runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// The built-in one, or a reference that is pulled when it is not there.
    pub image: PlaceholderImage,
    /// Split into words; empty: the image's own.
    pub command: Vec<String>,
    /// `uid:gid`, one that no function uses.
    pub user: String,
    /// Bytes.
    pub memory: i64,
    /// Tasks.
    pub pids: i64,
    /// One pull or load at most this long.
    pub prepare_timeout: Duration,
}

/// See [`Placeholder::image`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceholderImage {
    /// Made by nspool itself.
    Embedded,
    /// e.g. `busybox:1.36`.
    Reference(String),
}

impl Default for Placeholder {
    fn default() -> Self {
        Self {
            image: PlaceholderImage::Embedded,
            command: Vec::new(),
            user: "65533:65533".into(),
            memory: 16 << 20,
            pids: 16,
            prepare_timeout: Duration::from_secs(300),
        }
    }
}

/// `[images]`: those that callers ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// A fetch with all its attempts, or a push, at most this long.
    pub fetch_timeout: Duration,
    /// How often a fetch asks the registry.
    pub attempts: u32,
    /// Fetches that ask registries at once.
    pub concurrent: u32,
    /// The same while the pool has less ready than it should.
    pub concurrent_while_filling: u32,
    /// When a registry is asked whether what is here is still what it has.
    pub freshness: Freshness,
    /// With [`Freshness::Ttl`]: how long nobody asks. Also how long a layer that was seen in a registry is believed to be there.
    pub fresh_for: Duration,
    /// Images that may be looked for, fetched and waited for at once.
    pub queue: u32,
    /// How long a registry is not asked again after a no that will be the same.
    pub failed_for: Duration,
    /// Images that are remembered at most.
    pub remember: u32,
    /// Failures that are kept for the operator.
    pub keep_failures: u32,
    /// A build, with the wait for its turn, at most this long.
    pub build_timeout: Duration,
    /// Bytes of a context at most.
    pub context_limit: u64,
    /// Where contexts lie on their way to the builder, and images on their way to a registry if there is no store.
    pub spool: PathBuf,
    /// Who may build.
    pub builders: Builders,
    /// The host's own store, if it is there.
    pub store: PathBuf,
    /// Who asks registries for what callers ask for.
    pub fetched_by: FetchedBy,
    /// Locks of images that are held for longer are logged.
    pub lock_bound: Duration,
    /// Bytes that the engine's images may take; 0: no limit.
    pub room: u64,
    /// Images that did not come by nspool may go, too.
    pub room_for_others: bool,
    /// Bytes that the store may take; 0: no limit.
    pub store_room: u64,
    /// How long an image that was answered is not removed.
    pub hold: Duration,
}

/// See [`Images::builders`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Builders {
    /// Those who may change the pool.
    #[default]
    Operators,
    /// All who may call. Folders of the host stay with operators.
    Everybody,
}

impl Builders {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Operators => "operators",
            Self::Everybody => "everybody",
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            fetch_timeout: Duration::from_secs(600),
            attempts: 5,
            concurrent: 3,
            concurrent_while_filling: 1,
            freshness: Freshness::Ttl,
            fresh_for: Duration::from_secs(6 * 3600),
            queue: 256,
            failed_for: Duration::from_secs(30),
            remember: 1024,
            keep_failures: 32,
            build_timeout: Duration::from_secs(1800),
            context_limit: 1 << 30,
            spool: PathBuf::from("/var/tmp"),
            builders: Builders::Operators,
            store: PathBuf::from(crate::image::store::DEFAULT),
            room: 0,
            room_for_others: false,
            store_room: 0,
            hold: Duration::from_secs(600),
            fetched_by: FetchedBy::Engine,
            lock_bound: Duration::from_millis(20),
        }
    }
}

/// See [`Images::fetched_by`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FetchedBy {
    /// The engine pulls into its own store, by its own mirrors and proxies.
    #[default]
    Engine,
    /// nspool fetches into [`Images::store`], from which the engine is loaded.
    Nspool,
}

impl FetchedBy {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::Nspool => "nspool",
        }
    }
}

/// See [`Images::freshness`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Each time somebody asks for it.
    Always,
    /// When it was not asked for a while.
    Ttl,
    /// Never.
    Never,
}

impl Freshness {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Ttl => "ttl",
            Self::Never => "never",
        }
    }

    /// [`Freshness::word`] read back; any other word is the default.
    pub(crate) fn of(word: &str) -> Self {
        match word {
            "always" => Self::Always,
            "never" => Self::Never,
            _ => Self::Ttl,
        }
    }
}

/// `[registries."host:port"]`: credentials that go before those of the Docker config file.
#[derive(Clone, PartialEq, Eq)]
pub struct Registry {
    /// `docker.io`, `127.0.0.1:5000`, …
    pub host: String,
    /// The account.
    pub username: String,
    /// Read from `password_file` at start and at reload.
    pub password: String,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({})", self.host)
    }
}

/// `[engine]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Which one to look for.
    pub kind: EngineChoice,
    /// `unix:///…`; `None`: DOCKER_HOST, then the usual sockets.
    pub endpoint: Option<String>,
    /// For a call that reads.
    pub read_timeout: Duration,
    /// For a create, start, rename or remove.
    pub write_timeout: Duration,
    /// How often a silent engine is asked whether it lives.
    pub probe_every: Duration,
}

/// See [`Engine::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// Docker, else podman, else none: see `engine::discover`.
    Auto,
    /// Docker only.
    Docker,
    /// podman only.
    Podman,
    /// No container engine: nspool makes the namespaces itself.
    Native,
}

impl EngineChoice {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Native => "native",
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            kind: EngineChoice::Auto,
            endpoint: None,
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            probe_every: Duration::from_secs(2),
        }
    }
}

/// `[pacer]`: what the engine is spared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pacer {
    /// Preparations per second; `None` (written 0): no limit.
    pub rate: Option<u32>,
    /// Preparations that may come at once.
    pub burst: u32,
    /// Mutations in flight.
    pub concurrent: u32,
}

impl Default for Pacer {
    fn default() -> Self {
        Self { rate: Some(10), burst: 20, concurrent: 4 }
    }
}

/// `[backoff]`: of a slot that could not be filled, and of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure; doubles with each.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
    /// A buddy that lived this long makes the slot's failures forgotten.
    pub healthy_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(200), longest: Duration::from_secs(30), healthy_after: Duration::from_secs(10) }
    }
}

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Unix sockets to listen on (those that systemd passed go first, then these are not used).
    pub listen: Vec<PathBuf>,
    /// Permission bits of the sockets.
    pub mode: u32,
    /// Group of the sockets; a group that does not exist is said and left out, unless it was configured.
    pub group: Option<String>,
    /// Who may use PoolAdmin besides uid 0 and the daemon's own.
    pub admin_uids: Vec<u32>,
    /// Deadline of a unary call that brings none.
    pub timeout: Duration,
    /// Largest message taken, in bytes.
    pub max_message: usize,
    /// Calls in flight per connection.
    pub max_streams: u32,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: vec!["/run/nspool/nspool.sock".into()],
            mode: 0o660,
            group: None,
            admin_uids: Vec::new(),
            timeout: Duration::from_secs(30),
            max_message: 64 << 10,
            max_streams: 1024,
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Metrics {
    /// Loopback only, e.g. `127.0.0.1:9464`; `None` (the default): no listener.
    pub listen: Option<std::net::SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// A `tracing` filter, e.g. `info` or `nspool=debug`.
    pub filter: String,
}

/// See [`Log::format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

/// `[state]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// 0700; `/run/nspool/<pool>` by default.
    pub dir: PathBuf,
    /// Of all pools; see [`crate::netns::folders`].
    pub namespaces: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: "/run/nspool/default".into(), namespaces: ROOT.into() }
    }
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Between two audits that nobody asked for; zero: none.
    pub every: Duration,
}

impl Default for Audit {
    fn default() -> Self {
        Self { every: Duration::from_secs(600) }
    }
}

/// What a stop does with the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPolicy {
    /// Keep under systemd, which starts the daemon again; remove otherwise.
    Auto,
    /// Leaves slots and leases to the next start.
    Keep,
    /// Removes every buddy that nobody is in.
    Remove,
}

/// `[stop]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// What becomes of the slots.
    pub policy: StopPolicy,
    /// The whole stop takes at most this long.
    pub timeout: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self { policy: StopPolicy::Auto, timeout: Duration::from_secs(20) }
    }
}
