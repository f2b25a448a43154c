//! Who may say what: the rules at the top of `src/lib.rs`, held against the source. Comments and tests may name anything.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, code_of(&fs::read_to_string(path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

/// Without comments, and without the module's tests.
fn code_of(source: &str) -> String {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn offenders(says: &str, may: &[&str]) -> Vec<String> {
    let says_it = |code: &str| code.match_indices(says).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
    sources()
        .into_iter()
        .filter(|(name, code)| says_it(code) && !may.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn only_these_may_say_these_names() {
    let none: Vec<String> = Vec::new();
    assert_eq!(offenders("bollard", &["engine/docker"]), none);
    assert_eq!(offenders("governor", &["engine/paced"]), none);
    assert_eq!(offenders("tonic", &["api/", "client", "proto.rs", "cli/exit.rs"]), none);
    assert_eq!(offenders("anyhow", &["cli/"]), none);
    assert_eq!(offenders("sd_notify", &["systemd.rs"]), none);
    assert_eq!(offenders("axum", &["telemetry"]), none);
    assert_eq!(offenders("hyper_rustls", &["image/registry/wire.rs"]), none);
    assert_eq!(offenders("url::", &["image/registry/"]), none);
    // The daemon itself has the helper do it; what runs as the operator does it itself.
    assert_eq!(offenders("netns::linux", &["netns/", "cli/", "process.rs"]), none);
    // Netlink, and going into namespaces: by hand, so these are words of rustix.
    assert_eq!(offenders("SocketAddrNetlink", &["netns/socket.rs"]), none);
    assert_eq!(offenders("move_into_link_name_space", &["netns/"]), none);
}

#[test]
fn the_parts_do_not_know_what_they_must_not() {
    let forbidden = [
        ("pool/", &["crate::engine", "crate::netns", "crate::nanny", "crate::api", "crate::daemon", "tonic"][..]),
        ("ledger/", &["crate::pool", "crate::engine", "crate::nanny", "crate::api"][..]),
        ("api/", &["crate::nanny", "crate::supervisor", "crate::daemon", "crate::netns"][..]),
        ("nanny/", &["crate::api", "crate::daemon", "crate::proto", "state::Lease"][..]),
        ("engine/", &["crate::pool", "crate::nanny", "crate::api", "crate::image"][..]),
        ("netns/", &["crate::pool", "crate::nanny", "crate::api"][..]),
        ("audit/", &["crate::api", "crate::daemon", "crate::proto"][..]),
        ("image/", &["crate::pool", "crate::nanny", "crate::api"][..]),
    ];
    for (name, code) in sources() {
        for (folder, words) in forbidden.iter().filter(|(folder, _)| name.starts_with(folder)) {
            for word in *words {
                assert!(!code.contains(word), "{name}: {folder} must not know {word}");
            }
        }
    }
}

#[test]
fn nannies_are_spawned_in_one_place() {
    let spawners: Vec<String> = sources().into_iter().filter(|(_, code)| code.contains("Nanny::new(")).map(|(name, _)| name).collect();
    assert_eq!(spawners, ["supervisor.rs"]);
}

#[test]
fn the_rule_itself_can_fail() {
    assert_eq!(code_of("use a; // bollard\n//! bollard\n#[cfg(test)]\nmod tests { bollard }"), "use a; \n");
    assert!(!offenders("serde_json", &["no such folder"]).is_empty());
}
