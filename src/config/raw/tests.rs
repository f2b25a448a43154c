//! Each promise of `load`: sources and their order, every key in every way, all mistakes at once.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use tempfile::NamedTempFile;

use super::*;
use crate::config::value::Kind;
use crate::config::{EngineChoice, PlaceholderImage, Reuse};
use crate::engine::NamespaceKind;

/// A value for each key that is not the default, as text and as TOML.
fn other_value(key: &Key) -> (String, String) {
    let text = match key.path {
        "pool.name" => "fn-1",
        "pool.networks" => "a,b",
        "pool.namespaces" => "net,ipc",
        "pool.reuse" => "always",
        "images.freshness" => "never",
        "pool.privileged_joiners" => "inspect",
        "pool.across_tenants" => "retire",
        "placeholder.image" => "busybox:1.36",
        "placeholder.command" => "tail -f '/dev/null now'",
        "pool.user_ids" => "70000:80",
        "placeholder.user" => "7:8",
        "engine.kind" => "podman",
        "engine.endpoint" => "unix:///run/podman/podman.sock",
        "api.listen" => "unix:/tmp/a.sock,unix:///tmp/b.sock",
        "api.mode" => "0600",
        "api.group" => "fn",
        "api.admin_uids" => "1000,1001",
        "metrics.listen" => "127.0.0.1:9464",
        "log.format" => "json",
        "log.filter" => "nspool=debug",
        "state.dir" => "/tmp/nspool-state",
        "state.namespaces" => "/tmp/nspool-namespaces",
        "cni.conf_dir" => "/tmp/net.d",
        "cni.bin_dirs" => "/tmp/a,/tmp/b",
        "stop.policy" => "remove",
        "images.spool" => "/tmp/spool",
        "images.store" => "/tmp/store",
        "images.fetched_by" => "nspool",
        "images.builders" => "everybody",
        "images.room_for_others" => "true",
        _ => match key.kind {
            Kind::Duration { .. } => "1m7s",
            Kind::Size { .. } => "128KiB",
            Kind::Number { .. }
            | Kind::Choice { .. }
            | Kind::Text(_)
            | Kind::List { .. }
            | Kind::Words { .. }
            | Kind::Numbers { .. }
            | Kind::Mode
            | Kind::Switch => "33",
        },
    };
    let text = if key.path == "placeholder.memory" { "32MiB" } else { text };
    let text = if ["backoff.first", "pool.settle", "engine.probe_every"].contains(&key.path) { "7s" } else { text };
    let value = key.kind.read_text(text).unwrap_or_else(|wrong| panic!("{}: {wrong:?}", key.path));
    (text.to_owned(), key.kind.to_toml(&value))
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn sources(file: Option<&NamedTempFile>, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Sources {
    Sources {
        // An empty file, so that the machine's own does not matter.
        file: Some(file.map_or_else(|| "/dev/null".into(), |file| file.path().to_owned())),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        flags: flags.iter().map(|(path, value)| (*path, (*value).to_owned())).collect(),
    }
}

fn load_text(text: &str) -> Result<Loaded, Mistakes> {
    load(&sources(Some(&file(text)), &[], &[]))
}

fn mistakes_of(text: &str) -> Vec<String> {
    let Err(Mistakes(mistakes)) = load_text(text) else { panic!("no mistakes in {text}") };
    mistakes
        .iter()
        .map(|mistake| mistake.to_string().split_once(".tmp").map_or_else(String::new, |(_, rest)| rest[6..].to_owned()))
        .collect()
}

#[test]
fn nothing_written_is_the_default() {
    let loaded = load(&sources(None, &[], &[])).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(*loaded.origin("pool.ready"), Origin::Default);
    assert!(loaded.warnings.is_empty());
}

/// Companions that some values need to be valid.
const COMPANIONS: &str = "[placeholder]\nimage = \"busybox\"\n";

#[test]
fn every_key_is_read_from_file_variable_and_flag() {
    for key in KEYS {
        let (text, literal) = other_value(key);
        let (companion, env): (&str, &[(&str, &str)]) =
            if key.path == "placeholder.command" { (COMPANIONS, &[("NSPOOL_PLACEHOLDER_IMAGE", "busybox")]) } else { ("", &[]) };
        let header = if companion.is_empty() { format!("[{}]\n", key.section) } else { companion.to_owned() };
        let by_file = load_text(&format!("{header}{} = {literal}\n", key.name)).unwrap_or_else(|error| panic!("{}: {error}", key.path));
        let mut with_env = env.to_vec();
        let name = key.env();
        with_env.push((&name, &text));
        let by_env = load(&sources(None, &with_env, &[])).unwrap_or_else(|error| panic!("{}: {error}", key.path));
        let by_flag = load(&sources(None, env, &[(key.path, &text)])).unwrap_or_else(|error| panic!("{}: {error}", key.path));
        assert_eq!(by_file.config, by_env.config, "{}", key.path);
        assert_eq!(by_file.config, by_flag.config, "{}", key.path);
        assert_ne!((key.get)(&by_file.config), (key.get)(&Config::default()), "{}", key.path);
        assert!(matches!(by_file.origin(key.path), Origin::File(..)), "{}", key.path);
        assert_eq!(*by_env.origin(key.path), Origin::Variable(key.env()));
        assert_eq!(*by_flag.origin(key.path), Origin::Flag(key.flag));
    }
}

#[test]
fn a_flag_wins_over_a_variable_and_that_over_the_file() {
    let file = file("[pool]\nready = 1\nlinger = \"1s\"\nmax = 9\n");
    let env = [("NSPOOL_POOL_READY", "2"), ("NSPOOL_POOL_LINGER", "2s")];
    let loaded = load(&sources(Some(&file), &env, &[("pool.ready", "3")])).unwrap();
    assert_eq!(loaded.config.pool.ready, 3);
    assert_eq!(loaded.config.pool.linger.as_secs(), 2);
    assert_eq!(loaded.config.pool.max, 9);
    assert_eq!(loaded.origin("pool.max").to_string(), format!("{}:4", file.path().display()));
}

#[test]
fn all_mistakes_come_in_one_report() {
    let file = file(
        "[pool]\n\
         ready = \"eight\"\n\
         reedy = 3\n\
         reuse = \"verified\"\n\
         networks = [\"a\", 7]\n\
         settle = 5\n\
         \n\
         [poool]\n\
         x = 1\n\
         [engine]\n\
         endpoint = \"tcp://10.0.0.1:2375\"\n\
         kind = \"native\"\n\
         [api]\n\
         listen = [\"127.0.0.1:7000\"]\n\
         mode = 660\n\
         [metrics]\n\
         listen = \"0.0.0.0:9464\"\n\
         [networks.fast]\n\
         kind = \"menaged\"\n\
         mtu = 9\n\
         [stop]\n\
         policy = \"leave\"\n\
         ready = 1\n",
    );
    let env = [("NSPOOL_PACER_RATE", "fast"), ("NSPOOL_API_LISTNE", "x"), ("NSPOOL_POOL_NAMESPACES", "net,pid")];
    let flags = [("pool.reuse", "always"), ("pool.max", "0"), ("log.filter", "nspool=loud")];
    let error = load(&sources(Some(&file), &env, &flags)).unwrap_err();
    let report = error.to_string().replace(&file.path().display().to_string(), "FILE");
    insta::assert_snapshot!(report);
}

#[test]
fn syntax_errors_are_told_with_their_line_and_do_not_hide_the_rest() {
    let mistakes = mistakes_of("[pool]\nready = = 3\nmax = 0\n[stop\npolicy = \"auto\"\n");
    assert!(mistakes[0].starts_with(":2: not TOML: "), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.starts_with(":3: pool.max: read 0")), "{mistakes:?}");
    assert!(mistakes.iter().any(|mistake| mistake.starts_with(":4: not TOML")), "{mistakes:?}");
}

#[test]
fn a_key_twice_and_a_section_that_is_none_are_mistakes() {
    assert!(mistakes_of("[pool]\nready = 1\nready = 2\n")[0].starts_with(":3: not TOML: duplicate key"));
    assert_eq!(mistakes_of("pool = 3\n"), [":1: pool: read 3; allowed: a section [pool]"]);
    assert!(mistakes_of("ready = 3\n")[0].ends_with("(ready belongs under [pool])"));
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let sources = Sources { file: Some("/nowhere/nspool.toml".into()), ..Sources::default() };
    let error = load(&sources).unwrap_err().to_string();
    assert!(error.contains("/nowhere/nspool.toml:1: cannot be read: No such file"), "{error}");
}

#[test]
fn rules_between_keys_name_the_one_that_was_written() {
    let only = |text| mistakes_of(text).concat();
    assert_eq!(only("[pool]\nready = 100\n"), ":2: pool.ready: read 100; allowed: at most pool.max, which is 64 (default)");
    assert_eq!(only("[pool]\nmax = 4\n"), ":2: pool.max: read 4; allowed: at least pool.ready, which is 8 (default)");
    assert!(only("[pool]\nnamespaces = [\"ipc\"]\n").contains("\"net\" always"));
    assert!(only("[pool]\nnetworks = [\"a\", \"a\"]\n").contains("each network once"));
    assert!(only("[pool]\nreuse = \"always\"\nnamespaces = [\"net\", \"pid\"]\n").starts_with(":3: pool.namespaces: "));
    assert!(only("[placeholder]\ncommand = [\"x\"]\n").contains("with the embedded image"));
    assert!(only("[backoff]\nlongest = \"1ms\"\n").contains("at least backoff.first"));
    let good = load_text("[pool]\nnamespaces = [\"net\", \"pid\"]\n").unwrap();
    assert_eq!(good.config.pool.namespaces, [NamespaceKind::Net, NamespaceKind::Pid]);
}

#[test]
fn a_pid_namespace_of_the_native_engine_is_used_once() {
    let text = |more: &str| format!("[engine]\nkind = \"native\"\n[pool]\nnamespaces = [\"net\", \"pid\"]\n{more}");
    let good = load_text(&text("")).unwrap().config;
    assert_eq!(good.reuse_of(0), Reuse::Once);
    let mistake = mistakes_of(&text("reuse = \"fresh\"\n")).remove(0);
    assert!(mistake.starts_with(":5: pool.reuse: ") && mistake.contains("a new first process"), "{mistake}");
}

#[test]
fn pool_names_are_dns_labels() {
    for name in ["a", "0", "fn-1", "abcdefghijklmnopqrst"] {
        assert!(load_text(&format!("[pool]\nname = {name:?}\n")).is_ok(), "{name}");
    }
    for name in ["", "-a", "a-", "A", "a_b", "a.b", "abcdefghijklmnopqrstu", "ä"] {
        assert!(load_text(&format!("[pool]\nname = {name:?}\n")).is_err(), "{name}");
    }
}

#[test]
fn the_state_directory_is_named_after_the_pool() {
    let loaded = load_text("[pool]\nname = \"blue\"\n").unwrap();
    assert_eq!(loaded.config.state.dir, Path::new("/run/nspool/blue"));
}

#[test]
fn registries_read_their_password_file() {
    let secret = file("s3cret\n");
    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!("[registries.\"127.0.0.1:5000\"]\nusername = \"u\"\npassword_file = {:?}\n", secret.path());
    let loaded = load_text(&text).unwrap();
    let registry = &loaded.config.registries[0];
    assert_eq!((registry.host.as_str(), registry.username.as_str(), registry.password.as_str()), ("127.0.0.1:5000", "u", "s3cret"));
    assert!(loaded.warnings.is_empty());
    assert!(!format!("{loaded:?}").contains("s3cret"));

    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(load_text(&text).unwrap().warnings[0].contains("every user can read the password"));

    let missing = mistakes_of("[registries.r]\nusername = \"u\"\npassword_file = \"/nowhere\"\n").concat();
    assert!(missing.starts_with(":3: registries.\"r\".password_file: /nowhere cannot be read"), "{missing}");
    assert!(mistakes_of("[registries.r]\nusername = \"u\"\n").concat().contains("incomplete"));
}

#[test]
fn network_sections_of_the_engine_kind_are_taken() {
    let loaded = load_text("[pool]\nnetworks = [\"b\"]\n[networks.b]\nkind = \"engine\"\n").unwrap();
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.config.managed, []);
}

#[test]
fn fns_variables_are_understood_with_a_warning() {
    let env = [
        ("FN_EXPERIMENTAL_PREFORK_POOL_SIZE", "12"),
        ("FN_EXPERIMENTAL_PREFORK_IMAGE", "alpine"),
        ("FN_EXPERIMENTAL_PREFORK_CMD", "sleep 1d"),
        ("FN_EXPERIMENTAL_PREFORK_USE_ONCE", "0"),
        ("FN_EXPERIMENTAL_PREFORK_NETWORKS", "net1 net2"),
    ];
    let loaded = load(&sources(None, &env, &[])).unwrap();
    let pool = &loaded.config.pool;
    assert_eq!((pool.ready, pool.max, pool.reuse), (12, 12, Some(Reuse::Always)));
    assert_eq!(pool.networks, ["net1", "net2"]);
    assert_eq!(loaded.config.placeholder.image, PlaceholderImage::Reference("alpine".into()));
    assert_eq!(loaded.config.placeholder.command, ["sleep", "1d"]);
    assert_eq!(loaded.warnings.len(), 5);
    assert!(loaded.warnings[0].contains("NSPOOL_POOL_READY"));

    let ours = load(&sources(None, &[env[0], ("NSPOOL_POOL_READY", "3")], &[])).unwrap();
    assert_eq!((ours.config.pool.ready, ours.config.pool.max), (3, 12));
}

#[test]
fn fns_defaults_come_with_its_variables() {
    let image = load(&sources(None, &[("FN_EXPERIMENTAL_PREFORK_IMAGE", "alpine")], &[])).unwrap();
    assert_eq!(image.config.placeholder.command, ["tail", "-f", "/dev/null"]);
    let command = load(&sources(None, &[("FN_EXPERIMENTAL_PREFORK_CMD", "sleep 9")], &[])).unwrap();
    assert_eq!(command.config.placeholder.image, PlaceholderImage::Reference("busybox".into()));
    let once = load(&sources(None, &[("FN_EXPERIMENTAL_PREFORK_USE_ONCE", "1")], &[])).unwrap();
    assert_eq!(once.config.pool.reuse, Some(Reuse::Once));
    let wrong = load(&sources(None, &[("FN_EXPERIMENTAL_PREFORK_POOL_SIZE", "many")], &[])).unwrap_err();
    assert_eq!(wrong.0.len(), 1, "{wrong}");
}

#[test]
fn variables_of_others_are_left_alone() {
    let env = [("NSPOOL_ENDPOINT", "unix:/x"), ("NSPOOL_HOME", "/x"), ("NSPOOLX", "1"), ("PATH", "/bin")];
    let loaded = load(&sources(None, &env, &[])).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].contains("NSPOOL_HOME"));
}

#[test]
fn the_sample_is_valid_written_in_or_not() {
    let sample = crate::config::sample::sample();
    // But for the one value that is packaged: a service does not look around.
    let mut packaged = load_text(&sample).unwrap().config;
    assert_eq!(std::mem::take(&mut packaged.engine).kind, EngineChoice::Docker);
    assert_eq!(packaged, Config::default());
    let mut written: String =
        sample.lines().map(|line| format!("{}\n", line.strip_prefix('#').filter(|line| !line.starts_with(' ')).unwrap_or(line))).collect();
    // The one thing in it that has to be on the machine.
    written = written.split("\n[registries").next().unwrap().replace("networks = [\"bridge\"]", "networks = [\"bridge\", \"fast\"]");
    let mut config = load_text(&written).unwrap_or_else(|error| panic!("{error}\n{written}")).config;
    assert_eq!(config.managed.len(), 1);
    config.engine.kind = EngineChoice::Auto;
    (config.managed, config.pool.networks) = (Vec::new(), vec!["bridge".into()]);
    assert_eq!(config, Config::default());
}
