//! The networks that nspool has the engine make, for managed networks with an `engine_network`: Docker's NAT and firewall serve the slots on them as
//! they are, and Docker's own containers can be on them, too.
//!
//! ```text
//!   10.213.0.0/16, gateway 10.213.0.1   ├─ 10.213.0.0/17    the engine's, for its containers (its `--ip-range`)
//!   on the bridge ns-fast               └─ 10.213.128.0/17  ours, for slots
//! ```
//!
//! What it promises:
//! - A network of the wanted name is there, made by this pool, with the wanted settings and its bridge on this host; else it is told why not
//!   ([`Trouble`]), and nothing of the managed networks is filled meanwhile.
//! - Only networks with this pool's labels are ever removed ([`owner`]), and only with no container on them, in whatever state: neither one that
//!   somebody else made, nor another pool's, nor ours with other settings, is changed or removed to make a wish come true.
//! - A link of the host that has the bridge's name before the network is there is in the way: engines would take it over.
//! - What somebody removes is made again: a network as soon as its bridge is missed, a bridge by making its network anew, when no container is on it.
//! - An engine that does not answer takes nothing away: what was good stays so while the bridge is there.
//! - At the end of the pool ([`EngineNetworks::remove`]) those with its labels go, also those that no configuration wants any more; what stays is told.
//!
//! What can go wrong: the engine's own refusals (a subnet that overlaps another network's) · an engine whose bridges are not on this host (rootless, in a
//! virtual machine) · podman, which makes none ([`crate::engine::docker`]) · a container that is given an address out of the slots' part by hand (`--ip`),
//! which engines allow.
//!
//! The caller holds the pool's lock (I3). It deliberately does not know links, slots, when it is looked, nor what fills them; every mutation goes through
//! the engine it is given, which is paced (I6).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::{Engine, EngineError, ErrorClass, Labels, Network, NetworkSpec};
use crate::nanny::buddy::{LABEL_POOL, LABEL_VERSION};

/// On a network that nspool made: its name, so that labels copied to another make that nobody's.
pub const LABEL_NETWORK: &str = "nspool.network";

/// After a failure; doubles up to [`AT_LEAST_EVERY`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// What nobody tells of: networks that are changed for others of the same name.
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// Whether the host has a link of that name.
pub type IsLink = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Why a network is not as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The engine's words.
    #[error("{0}")]
    Engine(EngineError),
    /// Somebody else's.
    #[error("the engine has a network {name} already, {whose}: it is left as it is; remove it, or choose another engine_network")]
    Foreign {
        /// Of both.
        name: String,
        /// In words.
        whose: String,
    },
    /// Ours, made for another configuration.
    #[error(
        "the engine's network {name} was made otherwise: {}; it is left as it is; write what it has, or remove it once nothing is on it",
        .differences.join(", ")
    )]
    Different {
        /// Its name.
        name: String,
        /// Each in words.
        differences: Vec<String>,
    },
    /// Before the network was made.
    #[error("the engine's network {name} is not made: there is a link {bridge} on the host already, which the engine would take over")]
    LinkInTheWay {
        /// Of the network.
        name: String,
        /// Of the link.
        bridge: String,
    },
    /// Only an engine that makes the network anew makes its bridge.
    #[error("the bridge {bridge} of the engine's network {name} is gone, and the network cannot be made anew: on it are {}", .users.join(", "))]
    InUse {
        /// Of the network.
        name: String,
        /// That is gone.
        bridge: String,
        /// Containers.
        users: Vec<String>,
    },
    /// The engine said that it is done.
    #[error("the engine made the network {name}, and its bridge {bridge} is not on this host: the engine's networks cannot serve here")]
    Elsewhere {
        /// Of the network.
        name: String,
        /// That should be here.
        bridge: String,
    },
}

/// A network of this pool that stays, or would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name.
    pub network: String,
    /// Who is on it, or what the engine says.
    pub why: Vec<String>,
}

/// What became of this pool's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names of those that are gone, or would be.
    pub removed: Vec<String>,
    /// The others.
    pub left: Vec<Left>,
}

/// The pool that made it; `None`: nspool did not, and never touches it.
#[must_use]
pub fn owner(network: &Network) -> Option<&str> {
    let made = &network.made_with;
    let is_named = made.labels.get(LABEL_NETWORK) == Some(&made.name) && made.labels.contains_key(LABEL_VERSION);
    made.labels.get(LABEL_POOL).filter(|_| is_named).map(String::as_str)
}

fn labels(pool: &str, name: &str) -> Labels {
    let labels = [(LABEL_POOL, pool), (LABEL_NETWORK, name), (LABEL_VERSION, env!("CARGO_PKG_VERSION"))];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// See the module.
pub struct EngineNetworks {
    engine: Arc<dyn Engine>,
    pool: String,
    wanted: Vec<NetworkSpec>,
    is_link: IsLink,
}

impl EngineNetworks {
    /// Of a pool. The labels of `wanted` are not looked at.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, pool: &str, wanted: Vec<NetworkSpec>, is_link: IsLink) -> Self {
        let labelled = |spec: NetworkSpec| NetworkSpec { labels: labels(pool, &spec.name), ..spec };
        Self { engine, pool: pool.to_owned(), wanted: wanted.into_iter().map(labelled).collect(), is_link }
    }

    /// Whether any is wanted.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Of the wanted ones.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.wanted.iter().map(|spec| spec.name.as_str())
    }

    /// A bridge is not there, so that there is something to do.
    fn is_missing_one(&self) -> bool {
        self.wanted.iter().any(|spec| !(self.is_link)(&spec.bridge))
    }

    /// Makes what is missing; the names of what was made. All networks are tried, and the first trouble told. Not cancel safe: a network whose bridge is
    /// gone may be removed and not yet made.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn ensure(&self) -> Result<Vec<String>, Trouble> {
        let there = self.engine.networks().await.map_err(Trouble::Engine)?;
        let (mut made, mut trouble) = (Vec::new(), None);
        for spec in &self.wanted {
            match self.ensure_one(spec, &there).await {
                Ok(true) => made.push(spec.name.clone()),
                Ok(false) => {}
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        trouble.map_or(Ok(made), Err)
    }

    /// Whether it had to be made.
    async fn ensure_one(&self, spec: &NetworkSpec, there: &[Network]) -> Result<bool, Trouble> {
        let named: Vec<&Network> = there.iter().filter(|network| network.made_with.name == spec.name).collect();
        let (name, bridge) = (spec.name.clone(), spec.bridge.clone());
        let foreign = |whose| Trouble::Foreign { name: name.clone(), whose };
        if let Some(other) = named.iter().find(|network| owner(network) != Some(&self.pool)) {
            let whose = owner(other).map_or_else(|| "which nspool did not make".to_owned(), |pool| format!("which is the pool {pool}'s"));
            return Err(foreign(whose));
        }
        match named[..] {
            [] if (self.is_link)(&bridge) => return Err(Trouble::LinkInTheWay { name, bridge }),
            [] => {}
            [network] => {
                let differences = network.differences(spec);
                if !differences.is_empty() {
                    return Err(Trouble::Different { name, differences });
                }
                if (self.is_link)(&bridge) {
                    return Ok(false);
                }
                let users = self.engine.network_users(network).await.map_err(Trouble::Engine)?;
                if !users.is_empty() {
                    return Err(Trouble::InUse { name, bridge, users });
                }
                self.engine.remove_network(network).await.map_err(Trouble::Engine)?;
            }
            _ => return Err(foreign("more than once".to_owned())),
        }
        self.engine.create_network(spec).await.map_err(Trouble::Engine)?;
        if (self.is_link)(&bridge) { Ok(true) } else { Err(Trouble::Elsewhere { name, bridge }) }
    }

    /// Takes all networks of this pool away that nothing is on, wanted or not. With `dry_run` it only looks.
    ///
    /// # Errors
    /// The engine's networks cannot be listed: nothing was touched, nothing is known.
    pub async fn remove(&self, dry_run: bool) -> Result<Removed, EngineError> {
        let there = self.engine.networks().await?;
        let mut outcome = Removed::default();
        for network in there.iter().filter(|network| owner(network) == Some(&self.pool)) {
            let name = network.made_with.name.clone();
            match self.remove_one(network, dry_run).await {
                Ok(()) => outcome.removed.push(name),
                Err(why) => outcome.left.push(Left { network: name, why }),
            }
        }
        Ok(outcome)
    }

    async fn remove_one(&self, network: &Network, dry_run: bool) -> Result<(), Vec<String>> {
        let words = |error: EngineError| vec![error.to_string()];
        let users = self.engine.network_users(network).await.map_err(words)?;
        if !users.is_empty() {
            return Err(users.into_iter().map(|user| format!("container {user}")).collect());
        }
        if dry_run { Ok(()) } else { self.engine.remove_network(network).await.map_err(words) }
    }
}

/// When to look, and what stands in the way until the next look.
pub struct Care {
    networks: Arc<EngineNetworks>,
    /// Empty: nothing.
    why: String,
    next: Instant,
    wait: Duration,
}

impl Care {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(networks: Arc<EngineNetworks>) -> Self {
        let why = if networks.any() { "the engine's networks are not looked at yet" } else { "" };
        Self { networks, why: why.to_owned(), next: Instant::now(), wait: FIRST_WAIT }
    }

    /// Looks when it is time to, and when a bridge is missed; answers why the networks are not as they should be, or nothing. To be asked often. `may_look`:
    /// the engine answers, and the pool's lock is held.
    pub async fn look(&mut self, may_look: bool) -> &str {
        if may_look && self.networks.any() && self.is_due() {
            let is_missing_one = self.networks.is_missing_one();
            match self.networks.ensure().await {
                Ok(made) => {
                    made.iter().for_each(|network| tracing::info!(network, "the engine made this network"));
                    (self.why, self.wait) = (String::new(), FIRST_WAIT);
                    self.next = Instant::now() + AT_LEAST_EVERY;
                }
                Err(trouble) => {
                    if !self.why.is_empty() || is_missing_one || !says_nothing(&trouble) {
                        self.why = trouble.to_string();
                    }
                    self.next = Instant::now() + self.wait;
                    self.wait = (self.wait * 2).min(AT_LEAST_EVERY);
                }
            }
        }
        &self.why
    }

    /// A bridge that is missed after a good look is not waited for.
    fn is_due(&self) -> bool {
        Instant::now() >= self.next || self.wait == FIRST_WAIT && self.networks.is_missing_one()
    }
}

/// Of an engine that could not be asked.
fn says_nothing(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Engine(error) if matches!(error.class, ErrorClass::Away | ErrorClass::Unknown))
}

#[cfg(test)]
mod tests;
