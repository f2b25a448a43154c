//! What changed between two configurations, and which of it a running daemon can take over.

use super::Config;
use super::keys::KEYS;
use super::networks::path;

/// One key that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.name`, `networks."NAME".key`, or `registries`.
    pub key: String,
    /// As written in TOML; empty for registries, whose values are secrets.
    pub old: String,
    /// See `old`.
    pub new: String,
    /// Whether it applies without a restart.
    pub live: bool,
}

/// All that differs, in the order of the key table.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes: Vec<Change> = KEYS
        .iter()
        .filter(|key| (key.get)(old) != (key.get)(new))
        .map(|key| Change { key: key.path.to_owned(), old: key.value_toml(old), new: key.value_toml(new), live: key.live })
        .collect();
    changes.extend(networks(old, new));
    if old.registries != new.registries {
        changes.push(Change { key: "registries".to_owned(), old: String::new(), new: String::new(), live: false });
    }
    changes
}

/// All keys of a network that are there to differ, the kind first.
fn written(config: &Config, network: &str) -> Vec<(&'static str, String)> {
    let managed = config.managed.iter().find(|managed| managed.network.name == network).map(|managed| managed.written());
    let cni = config.cni_networks.iter().find(|cni| cni.name == network).map(|cni| cni.written());
    managed.or(cni).unwrap_or_else(|| vec![("kind", "\"engine\"".to_owned())])
}

fn names(config: &Config) -> impl Iterator<Item = &String> {
    config.managed.iter().map(|managed| &managed.network.name).chain(config.cni_networks.iter().map(|cni| &cni.name))
}

/// Networks of one kind list the same keys; of those that have another kind now, that is told.
fn networks(old: &Config, new: &Config) -> Vec<Change> {
    let added = names(new).filter(|name| !names(old).any(|known| known == *name));
    let mut changes = Vec::new();
    for name in names(old).chain(added) {
        let (before, after) = (written(old, name), written(new, name));
        let compared = if before[0] == after[0] { before.len() } else { 1 };
        for ((key, old), (_, new)) in before.into_iter().zip(after).take(compared).filter(|((_, old), (_, new))| old != new) {
            changes.push(Change { key: path(name, key), old, new, live: false });
        }
    }
    changes
}

/// What a reload comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// What the daemon works with from now on: the old configuration with every live change.
    pub config: Config,
    /// What changed by it.
    pub applied: Vec<Change>,
    /// What was written differently, but needs a restart: to be told to the operator.
    pub needs_restart: Vec<Change>,
}

/// Takes over from `new` what can change live. The result is valid like any other configuration.
#[must_use]
pub fn reload(old: &Config, new: &Config) -> Reload {
    let mut config = old.clone();
    for key in KEYS.iter().filter(|key| key.live) {
        (key.set)(&mut config, &(key.get)(new));
    }
    keep_rules(&mut config);
    Reload { applied: diff(old, &config), needs_restart: diff(&config, new), config }
}

/// `new` keeps the rules between keys, and so does `old`, but a mixture of the two may break those between a live key and another.
fn keep_rules(config: &mut Config) {
    // Bridges and addresses were laid out for as many as there could be at the start.
    if let Some(slots) = config.managed.iter().map(|managed| managed.network.slots).min() {
        config.pool.max = config.pool.max.min(slots);
        config.pool.ready = config.pool.ready.min(config.pool.max);
    }
    config.pool.join_by = config.pool.join_by.min(config.pool.longest);
    config.pool.linger = config.pool.linger.min(config.pool.longest);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{CniNetwork, Managed, PlaceholderImage, Registry, Reuse};
    use crate::engine::NamespaceKind;
    use crate::netns::managed::{Bridge, ManagedNetwork, Range};

    #[test]
    fn live_changes_are_taken_over_and_the_others_are_told() {
        let old = Config::default();
        let mut new = Config::default();
        new.pool.ready = 9;
        new.pool.reuse = Some(Reuse::Always);
        new.pacer.rate = None;
        new.placeholder.image = PlaceholderImage::Reference("busybox".into());
        new.registries.push(Registry { host: "r".into(), username: "u".into(), password: "secret".into() });

        let changes = diff(&old, &new);
        let told: Vec<_> = changes.iter().map(|change| (change.key.as_str(), change.live)).collect();
        assert_eq!(
            told,
            [("pool.ready", true), ("pool.reuse", false), ("placeholder.image", false), ("pacer.rate", true), ("registries", false)]
        );
        assert_eq!((changes[0].old.as_str(), changes[0].new.as_str()), ("8", "9"));
        assert!(!format!("{changes:?}").contains("secret"));

        let reload = reload(&old, &new);
        assert_eq!(reload.config.pool.ready, 9);
        assert_eq!(reload.config.placeholder.image, PlaceholderImage::Embedded);
        assert_eq!(
            reload.needs_restart.iter().map(|change| &change.key).collect::<Vec<_>>(),
            ["pool.reuse", "placeholder.image", "registries"]
        );
        assert_eq!(reload.applied.len(), 2);
    }

    #[test]
    fn a_mixture_of_two_configurations_keeps_the_rules() {
        let mut old = Config::default();
        old.pool.namespaces.push(NamespaceKind::Pid);
        let mut new = Config::default();
        new.pool.reuse = Some(Reuse::Always);
        new.pool.longest = Duration::from_secs(7 * 24 * 3600);
        new.pool.join_by = Duration::from_secs(24 * 3600 + 1);
        let reload = reload(&old, &new);
        assert_eq!(reload.config.reuse_of(0), Reuse::Once, "pid is shared until the restart");
        assert_eq!(reload.config.pool.join_by, old.pool.longest);
        let left: Vec<_> = reload.needs_restart.iter().map(|change| &change.key).collect();
        assert_eq!(left, ["pool.namespaces", "pool.reuse", "pool.join_by", "pool.longest"]);
    }

    fn managed(name: &str) -> Managed {
        let network = ManagedNetwork {
            name: name.to_owned(),
            bridge: Bridge::Own { name: format!("ns-{name}") },
            slots: 64,
            ipv4: Range::whole("10.213.0.0/16".parse().unwrap()),
            ipv6: None,
            mtu: 1500,
            isolation: true,
            nat: true,
        };
        Managed { network, rest: Duration::from_secs(10), forwarding: true, engine: None }
    }

    #[test]
    fn networks_change_with_a_restart_only() {
        let (mut old, mut new) = (Config::default(), Config::default());
        old.managed = vec![managed("a"), managed("b")];
        new.managed = vec![managed("a"), managed("c")];
        (new.managed[0].network.mtu, new.managed[0].rest) = (1400, Duration::ZERO);
        let reload = reload(&old, &new);
        assert_eq!((&reload.config, reload.applied.len()), (&old, 0));
        let told: Vec<_> = reload.needs_restart.iter().map(|change| format!("{} {} {}", change.key, change.old, change.new)).collect();
        assert_eq!(
            told,
            [
                "networks.\"a\".mtu 1500 1400",
                "networks.\"a\".rest \"10s\" \"0s\"",
                "networks.\"b\".kind \"managed\" \"engine\"",
                "networks.\"c\".kind \"engine\" \"managed\"",
            ]
        );
    }

    #[test]
    fn a_network_that_plugins_furnish_now_is_told_by_its_kind() {
        let cni = |config: &str| vec![CniNetwork { name: "a".to_owned(), config: config.to_owned() }];
        let managed = Config { managed: vec![managed("a")], ..Config::default() };
        let (one, other) = (Config { cni_networks: cni("x"), ..Config::default() }, Config { cni_networks: cni("y"), ..Config::default() });
        let none = Config::default();
        let told =
            |old, new| diff(old, new).iter().map(|change| format!("{} {} {}", change.key, change.old, change.new)).collect::<Vec<_>>();
        assert_eq!(told(&managed, &one), ["networks.\"a\".kind \"managed\" \"cni\""]);
        assert_eq!(told(&one, &none), ["networks.\"a\".kind \"cni\" \"engine\""]);
        assert_eq!(told(&one, &other), ["networks.\"a\".config \"x\" \"y\""]);
    }

    #[test]
    fn a_managed_network_has_no_more_slots_than_it_was_laid_out_for() {
        let old = Config { managed: vec![managed("a")], ..Config::default() };
        let mut new = old.clone();
        (new.pool.ready, new.pool.max, new.managed[0].network.slots) = (80, 100, 100);
        let reload = reload(&old, &new);
        assert_eq!((reload.config.pool.ready, reload.config.pool.max), (64, 64));
        assert_eq!(reload.needs_restart.iter().map(|change| &change.key).collect::<Vec<_>>(), ["pool.ready", "pool.max"]);
        new.pool.max = 32;
        new.pool.ready = 16;
        assert_eq!(self::reload(&old, &new).config.pool.max, 32);
    }

    #[test]
    fn nothing_changed_is_nothing_to_do() {
        assert_eq!(diff(&Config::default(), &Config::default()), []);
    }
}
