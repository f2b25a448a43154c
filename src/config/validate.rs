//! Rules between keys, and the step from what was read to [`Config`].
//!
//! Each rule is told with the place of the value that breaks it, and with where the other value is from. Rules about one value alone are in
//! `keys` and `checks`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::keys::{self, KEYS};
use super::raw::{Draft, Origin};
use super::value::show_duration;
use super::{Config, EngineChoice, PlaceholderImage, Reuse, networks};
use crate::engine::NamespaceKind;
use crate::engine::native::NONE;

/// Makes the configuration; mistakes go into the draft.
pub(super) fn build(draft: &mut Draft) -> Config {
    let mut config = Config::default();
    for key in KEYS {
        if let Some((value, _)) = draft.settings.get(key.path) {
            (key.set)(&mut config, value);
        }
    }
    if !draft.settings.contains_key("state.dir") {
        config.state.dir = PathBuf::from(format!("/run/nspool/{}", config.pool.name));
    }
    config.registries = std::mem::take(&mut draft.registries);
    (config.managed, config.cni_networks) = networks::build(draft, &config);
    let mut rules = Rules { draft, config: &config };
    rules.sizes();
    rules.namespaces();
    rules.durations();
    rules.networks();
    if config.engine.kind == EngineChoice::Native {
        rules.native();
    } else {
        rules.fresh();
        rules.engines_namespaces();
    }
    rules.placeholder();
    rules.folders();
    config
}

struct Rules<'a> {
    draft: &'a mut Draft,
    config: &'a Config,
}

impl Rules<'_> {
    /// `path` breaks a rule unless `good`. A value that was itself refused is not judged again: its default is.
    fn check(&mut self, good: bool, path: &str, allowed: String, hint: &str) {
        if good || self.was_refused(path) {
            return;
        }
        let read = keys::find(path).map_or_else(String::new, |key| key.value_toml(self.config));
        let origin = self.origin(path);
        self.draft.mistake(origin, path, format!("read {read}"), allowed, hint);
    }

    fn was_refused(&self, path: &str) -> bool {
        self.draft.mistakes.iter().any(|mistake| mistake.key == path)
    }

    fn origin(&self, path: &str) -> Origin {
        self.draft.settings.get(path).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    /// e.g. `pool.max, which is 64 (default)`.
    fn other(&self, path: &str) -> String {
        let value = keys::find(path).map_or_else(String::new, |key| key.value_toml(self.config));
        format!("{path}, which is {value} ({})", self.origin(path))
    }

    fn sizes(&mut self) {
        let pool = &self.config.pool;
        // Said where the operator wrote something: a lone `max = 4` is at fault as much as a lone `ready = 100`.
        if self.origin("pool.ready") == Origin::Default && self.origin("pool.max") != Origin::Default {
            let allowed = format!("at least {}", self.other("pool.ready"));
            self.check(pool.ready <= pool.max, "pool.max", allowed, "");
        } else {
            let allowed = format!("at most {}", self.other("pool.max"));
            self.check(pool.ready <= pool.max, "pool.ready", allowed, "");
        }
        let several = pool.networks.iter().collect::<BTreeSet<_>>().len() == pool.networks.len();
        self.check(several, "pool.networks", "each network once".into(), "");
    }

    fn namespaces(&mut self) {
        let pool = &self.config.pool;
        let kinds: BTreeSet<_> = pool.namespaces.iter().collect();
        let good = kinds.contains(&NamespaceKind::Net) && kinds.len() == pool.namespaces.len();
        self.check(good, "pool.namespaces", "each namespace once, and \"net\" always".into(), "");
        let once = !matches!(pool.reuse, Some(Reuse::Always | Reuse::Verified)) || !kinds.contains(&NamespaceKind::Pid);
        let allowed =
            format!("no \"pid\" unless pool.reuse is \"once\"; it is {}", self.other("pool.reuse").replace("pool.reuse, which is ", ""));
        self.check(once, "pool.namespaces", allowed, "a function can leave processes behind in a shared pid namespace, and end the buddy");
    }

    fn durations(&mut self) {
        let config = self.config;
        let longest = self.other("pool.longest");
        self.check(config.pool.join_by <= config.pool.longest, "pool.join_by", format!("at most {longest}"), "");
        self.check(config.pool.linger <= config.pool.longest, "pool.linger", format!("at most {longest}"), "");
        let allowed = format!("at least {}", self.other("backoff.first"));
        self.check(config.backoff.first <= config.backoff.longest, "backoff.longest", allowed, "");
        let allowed = format!("less than engine.write_timeout, which is {}", show_duration(config.engine.write_timeout));
        self.check(config.engine.probe_every < config.engine.write_timeout, "engine.probe_every", allowed, "");
    }

    fn networks(&mut self) {
        if self.was_refused("pool.networks") {
            return;
        }
        let allowed = self.other("pool.networks").replace("pool.networks, which is", "a name in pool.networks, which are");
        let strangers = self.draft.networks.iter().filter(|section| !self.config.pool.networks.contains(&section.name));
        let strangers: Vec<_> = strangers.map(|section| (section.origin.clone(), format!("networks.{:?}", section.name))).collect();
        for (origin, path) in strangers {
            self.draft.mistake(origin, &path, "not in pool.networks, so no slot is on it", allowed.clone(), "");
        }
    }

    /// What `fresh` needs and does not find is told together: each is a decision of its own.
    fn fresh(&mut self) {
        let (pool, image) = (&self.config.pool, &self.config.placeholder.image);
        if pool.reuse != Some(Reuse::Fresh) {
            return;
        }
        let mut needs: Vec<(String, &str)> = Vec::new();
        let engines: Vec<String> = pool.networks.iter().filter(|name| self.is_engines(name)).map(|name| format!("{name:?}")).collect();
        if !engines.is_empty() && !self.was_refused("pool.networks") {
            let allowed = format!("managed networks only; {} in pool.networks ({})", engines.join(", "), self.origin("pool.networks"));
            needs
                .push((allowed, "write [networks.NAME] with kind = \"managed\" for it, or \"auto\": fresh on managed networks, else once"));
        }
        if pool.namespaces != [NamespaceKind::Net] && !self.was_refused("pool.namespaces") {
            let allowed = format!("only [\"net\"] as {}", self.other("pool.namespaces"));
            needs.push((allowed, "shared ipc or pid would outlive the renewal: use \"once\""));
        }
        if *image != PlaceholderImage::Embedded && !self.was_refused("placeholder.image") {
            let allowed = format!("only \"embedded\" as {}", self.other("placeholder.image"));
            needs.push((allowed, "only the embedded init can be renewed: leave the image out, or use \"once\""));
        }
        let origin = self.origin("pool.reuse");
        for (allowed, hint) in needs {
            self.draft.mistake(origin.clone(), "pool.reuse", "read \"fresh\"", allowed, hint);
        }
    }

    fn engines_namespaces(&mut self) {
        for kind in [NamespaceKind::Uts, NamespaceKind::User] {
            let good = !self.config.pool.namespaces.contains(&kind);
            let hint = "a container engine does not let containers share it: use engine.kind = \"native\"";
            self.check(good, "pool.namespaces", format!("no {:?} with a container engine", kind.proc_name()), hint);
        }
    }

    /// What containers, images and engine networks have to do with has no meaning there.
    fn native(&mut self) {
        let pool = &self.config.pool;
        let good = pool.reuse != Some(Reuse::Fresh) || !pool.namespaces.contains(&NamespaceKind::Pid);
        let hint = "a new pid namespace is a new first process, and so a new buddy: use \"once\", or \"auto\"";
        self.check(good, "pool.reuse", "not \"fresh\" with \"pid\" in pool.namespaces".into(), hint);
        let good = pool.reuse != Some(Reuse::Verified);
        let hint = "a new namespace costs less than an inspection: use \"fresh\"";
        self.check(good, "pool.reuse", "not \"verified\" with engine.kind = \"native\"".into(), hint);
        self.check(self.config.engine.endpoint.is_none(), "engine.endpoint", "\"\" with engine.kind = \"native\"".into(), "");
        let engines: Vec<String> = pool.networks.iter().filter(|name| *name != NONE && self.is_engines(name)).cloned().collect();
        let hint = "write [networks.NAME] with kind = \"managed\" or \"cni\" for it";
        let allowed =
            format!("{NONE:?} (loopback alone), managed networks and those of CNI plugins; {} is a container engine's", engines.join(", "));
        self.check(engines.is_empty(), "pool.networks", allowed, hint);
    }

    fn is_engines(&self, network: &str) -> bool {
        self.draft.networks.iter().find(|section| section.name == network).is_none_or(networks::Section::is_engines)
    }

    fn folders(&mut self) {
        let state = &self.config.state;
        let apart = !state.dir.starts_with(&state.namespaces) && !state.namespaces.starts_with(&state.dir);
        let allowed = format!("a folder outside of {}", self.other("state.namespaces"));
        self.check(apart, "state.dir", allowed, "one is for the daemon alone, the other for all who join namespaces");
    }

    fn placeholder(&mut self) {
        let placeholder = &self.config.placeholder;
        let embedded = placeholder.image == PlaceholderImage::Embedded;
        let good = !embedded || placeholder.command.is_empty();
        self.check(
            good,
            "placeholder.command",
            "[] with the embedded image".into(),
            "that one has no other program; set placeholder.image",
        );
    }
}
