//! What changed between two configurations, and which of it a running daemon can take over.

use super::keys::KEYS;
use super::{Config, Reuse};
use crate::engine::NamespaceKind;

/// One key that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.name`, or `registries`.
    pub key: &'static str,
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
        .map(|key| Change { key: key.path, old: key.value_toml(old), new: key.value_toml(new), live: key.live })
        .collect();
    if old.registries != new.registries {
        changes.push(Change { key: "registries", old: String::new(), new: String::new(), live: false });
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
    if config.pool.namespaces.contains(&NamespaceKind::Pid) {
        config.pool.reuse = Reuse::Once;
    }
    config.pool.join_by = config.pool.join_by.min(config.pool.longest);
    config.pool.linger = config.pool.linger.min(config.pool.longest);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{PlaceholderImage, Registry};

    #[test]
    fn live_changes_are_taken_over_and_the_others_are_told() {
        let old = Config::default();
        let mut new = Config::default();
        new.pool.ready = 9;
        new.pool.reuse = Reuse::Always;
        new.pacer.rate = None;
        new.placeholder.image = PlaceholderImage::Reference("busybox".into());
        new.registries.push(Registry { host: "r".into(), username: "u".into(), password: "secret".into() });

        let changes = diff(&old, &new);
        let told: Vec<_> = changes.iter().map(|change| (change.key, change.live)).collect();
        assert_eq!(
            told,
            [("pool.ready", true), ("pool.reuse", true), ("placeholder.image", false), ("pacer.rate", true), ("registries", false)]
        );
        assert_eq!((changes[0].old.as_str(), changes[0].new.as_str()), ("8", "9"));
        assert!(!format!("{changes:?}").contains("secret"));

        let reload = reload(&old, &new);
        assert_eq!(reload.config.pool.ready, 9);
        assert_eq!(reload.config.placeholder.image, PlaceholderImage::Embedded);
        assert_eq!(reload.needs_restart.iter().map(|change| change.key).collect::<Vec<_>>(), ["placeholder.image", "registries"]);
        assert_eq!(reload.applied.len(), 3);
    }

    #[test]
    fn a_mixture_of_two_configurations_keeps_the_rules() {
        let mut old = Config::default();
        old.pool.namespaces.push(NamespaceKind::Pid);
        let mut new = Config::default();
        new.pool.reuse = Reuse::Always;
        new.pool.longest = Duration::from_secs(7 * 24 * 3600);
        new.pool.join_by = Duration::from_secs(24 * 3600 + 1);
        let reload = reload(&old, &new);
        assert_eq!(reload.config.pool.reuse, Reuse::Once, "pid is shared until the restart");
        assert_eq!(reload.config.pool.join_by, old.pool.longest);
        let left: Vec<_> = reload.needs_restart.iter().map(|change| change.key).collect();
        assert_eq!(left, ["pool.namespaces", "pool.reuse", "pool.join_by", "pool.longest"]);
    }

    #[test]
    fn nothing_changed_is_nothing_to_do() {
        assert_eq!(diff(&Config::default(), &Config::default()), []);
    }
}
