//! What changed between two configurations, and which of it a running daemon can take over.

use super::Config;
use super::keys::KEYS;

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
        changes.push(Change { key: "registries", old: String::new(), new: String::new(), live: true });
    }
    changes
}

/// `old` with every live change of `new` taken over: what the daemon works with after a reload.
#[must_use]
pub fn apply_live(old: &Config, new: &Config) -> Config {
    let mut config = old.clone();
    for key in KEYS.iter().filter(|key| key.live) {
        (key.set)(&mut config, &(key.get)(new));
    }
    config.registries.clone_from(&new.registries);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PlaceholderImage, Registry, Reuse};

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
            [("pool.ready", true), ("pool.reuse", true), ("placeholder.image", false), ("pacer.rate", true), ("registries", true)]
        );
        assert_eq!((changes[0].old.as_str(), changes[0].new.as_str()), ("8", "9"));
        assert!(!format!("{changes:?}").contains("secret"));

        let applied = apply_live(&old, &new);
        assert_eq!(applied.pool.ready, 9);
        assert_eq!(applied.placeholder.image, PlaceholderImage::Embedded);
        let left: Vec<_> = diff(&applied, &new).iter().map(|change| change.key).collect();
        assert_eq!(left, ["placeholder.image"]);
    }

    #[test]
    fn nothing_changed_is_nothing_to_do() {
        assert_eq!(diff(&Config::default(), &Config::default()), []);
    }
}
