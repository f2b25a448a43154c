//! Whether a container engine answers where `serve` would look for one, and whether it has room.
//!
//! It deliberately does not know whether an engine is needed: none at all is told, and no more. One that is there, or that the configuration
//! names, and cannot be used, is what somebody has to mend.

use std::path::{Path, PathBuf};

use futures::future::join_all;
use rustix::fs::statvfs;

use super::finding::{Check, Finding, Status};
use super::folders::{Room, room};
use super::host::{Host, within};
use crate::config::{Config, EngineChoice};
use crate::engine::docker::{About, Docker};
use crate::engine::{EngineError, EngineKind, ErrorClass, discover};

/// Layers and logs of containers go there, also those of the functions.
const LEAST_BYTES: u64 = 512 << 20;
const LEAST_FILES: u64 = 10_000;

/// What came of one socket.
#[derive(Debug)]
enum Answer {
    Nobody,
    Here(About),
    Refused(EngineError),
    Late,
}

pub(super) async fn check(host: &Host, config: &Config) -> Vec<Finding> {
    let engine = Check::of("answers", "slots are filled by a container engine");
    if config.engine.kind == EngineChoice::Native {
        return vec![engine.ok(format!("none is wanted: nspool mounts namespaces below {}", config.state.namespaces.display()))];
    }
    let found = discover::candidates(&config.engine, |name| host.variable(name));
    let endpoints = match found {
        Ok(endpoints) => endpoints,
        Err(error) => {
            return vec![engine.missing(error.to_string()).remedy("DOCKER_HOST=unix:///var/run/docker.sock, or [engine] endpoint")];
        }
    };
    let answers = join_all(endpoints.iter().map(|endpoint| ask(host, endpoint))).await;
    // As `serve` chooses: the first that is there.
    let chosen = answers.iter().position(|answer| !matches!(answer, Answer::Nobody));
    let Some(chosen) = chosen else { return vec![nobody(engine, host, config, &endpoints)] };
    let elsewhere = endpoints.iter().zip(&answers).skip(chosen + 1).find_map(|(endpoint, answer)| match answer {
        Answer::Here(about) => Some((endpoint.as_str(), about)),
        Answer::Nobody | Answer::Refused(_) | Answer::Late => None,
    });
    let endpoint = endpoints[chosen].as_str();
    match &answers[chosen] {
        Answer::Here(about) => of_engine(host, config, endpoint, about).await,
        Answer::Refused(error) if error.class == ErrorClass::NotAllowed => vec![not_allowed(engine, host, endpoint)],
        Answer::Refused(error) => vec![or_elsewhere(silent(engine, host, endpoint, &error.message), elsewhere)],
        Answer::Nobody | Answer::Late => {
            let seen = format!("it takes connections, but did not answer within {:?}", host.limit);
            vec![or_elsewhere(silent(engine, host, endpoint, &seen), elsewhere)]
        }
    }
}

async fn ask(host: &Host, endpoint: &str) -> Answer {
    let path = host.path(socket(endpoint));
    // A folder that may not be looked into counts as there: connecting tells.
    if let Ok(false) = path.try_exists() {
        return Answer::Nobody;
    }
    let asked = async { Docker::connect(&format!("unix://{}", path.display()), None)?.about().await };
    match tokio::time::timeout(host.limit, asked).await {
        Ok(Ok(about)) => Answer::Here(about),
        Ok(Err(error)) => Answer::Refused(error),
        Err(_) => Answer::Late,
    }
}

fn socket(endpoint: &str) -> &str {
    endpoint.strip_prefix("unix://").unwrap_or(endpoint)
}

fn is_podman(endpoint: &str) -> bool {
    endpoint.contains("podman")
}

/// Somebody has said which one it is to be.
fn is_named(host: &Host, config: &Config) -> bool {
    let has_host = host.variable("DOCKER_HOST").is_some_and(|value| !value.is_empty());
    config.engine.endpoint.is_some() || has_host || config.engine.kind != EngineChoice::Auto
}

fn nobody(engine: Check, host: &Host, config: &Config, endpoints: &[String]) -> Finding {
    let looked = endpoints.iter().map(|endpoint| socket(endpoint)).collect::<Vec<_>>().join(", ");
    let seen = format!("no engine is there; looked at {looked}");
    if is_named(host, config) {
        let finding = engine.missing(seen);
        return remedies(finding, config);
    }
    // As `serve` chooses.
    match discover::traces(&config.engine, &host.path("/"), |name| host.variable(name)) {
        Ok(None) => {
            let finding = engine.note(format!("{seen}. Nothing speaks of one, so `serve` makes namespaces itself"));
            remedies(finding, config)
        }
        Ok(Some(trace)) => engine
            .missing(format!("{seen}. But {trace}, so `serve` waits for it"))
            .remedy("systemctl start docker")
            .remedy("[engine] kind = \"native\", where functions join by path"),
        Err(error) => engine.missing(error.to_string()),
    }
}

fn remedies(finding: Finding, config: &Config) -> Finding {
    let wants = |kind| [EngineChoice::Auto, kind].contains(&config.engine.kind);
    let finding = if wants(EngineChoice::Docker) { finding.remedy("apt-get install docker.io") } else { finding };
    match wants(EngineChoice::Podman) {
        true => finding.remedy("apt-get install podman && systemctl enable --now podman.socket"),
        false => finding,
    }
}

fn not_allowed(engine: Check, host: &Host, endpoint: &str) -> Finding {
    let seen = format!("{} may not be used as {}", socket(endpoint), host.user());
    let finding = engine.is(if host.is_root() { Status::Missing } else { Status::Warning }, seen);
    let finding = finding.remedy("sudo nspool doctor");
    if host.is_root() || is_podman(endpoint) { finding } else { finding.remedy(format!("usermod -aG docker {}", host.user())) }
}

fn silent(engine: Check, host: &Host, endpoint: &str, why: &str) -> Finding {
    let finding = engine.missing(format!("{}: {why}", socket(endpoint)));
    let stale = why.contains("refused");
    match (is_podman(endpoint), stale) {
        (true, _) => finding.remedy("systemctl restart podman.socket podman"),
        (false, true) => finding.remedy("systemctl start docker"),
        (false, false) => {
            finding.remedy("systemctl restart docker").remedy(format!("{}journalctl -u docker", if host.is_root() { "" } else { "sudo " }))
        }
    }
}

fn or_elsewhere(finding: Finding, elsewhere: Option<(&str, &About)>) -> Finding {
    match elsewhere {
        Some((endpoint, about)) => {
            finding.remedy(format!("[engine] endpoint = \"{endpoint}\", where {} {} answers", about.kind, about.version))
        }
        None => finding,
    }
}

async fn of_engine(host: &Host, config: &Config, endpoint: &str, about: &About) -> Vec<Finding> {
    let engine = Check::of("answers", "slots are filled by a container engine");
    let seen = format!("{} {} at {endpoint}", about.kind, about.version);
    let wanted = [(EngineChoice::Docker, "docker"), (EngineChoice::Podman, "podman")];
    let wanted = wanted.into_iter().find(|(choice, _)| *choice == config.engine.kind).map(|(_, word)| word);
    let answers = match wanted.filter(|wanted| *wanted != about.kind.to_string()) {
        Some(wanted) => {
            engine.missing(format!("{seen}, but {wanted} is configured")).remedy("[engine] kind = \"auto\", or another endpoint")
        }
        None => engine.ok(seen),
    };
    vec![answers, of_id(about), of_storage(host, about).await]
}

fn of_id(about: &About) -> Finding {
    let id = Check::of("id", "the lock that keeps two daemons from one pool is named after it");
    // podman makes another one for each answer.
    let told = if about.kind == EngineKind::Podman { "" } else { about.id.as_str() };
    match (told, about.storage.as_str()) {
        ("", "") => {
            id.warning("the engine tells neither an id nor its folder: two engines cannot be told apart").remedy("systemctl restart docker")
        }
        ("", storage) => id.ok(format!("the engine tells none that stays: its folder {storage} stands for it")),
        (known, _) => id.ok(known.to_owned()),
    }
}

async fn of_storage(host: &Host, about: &About) -> Finding {
    let storage = Check::of("storage", "images, containers and what functions write need room on the engine's disk");
    if about.storage.is_empty() {
        return storage.note("the engine does not tell where it keeps its files");
    }
    let folder: PathBuf = host.path(Path::new(&about.storage));
    match within(host.limit, move || statvfs(&folder)).await {
        None => storage.warning(format!("{}: the disk did not answer within {:?}", about.storage, host.limit)).remedy("dmesg | tail"),
        Some(Err(errno)) => storage.note(format!("{} cannot be looked at as {}: {errno}", about.storage, host.user())),
        Some(Ok(found)) => {
            let least = Room { bytes: LEAST_BYTES, files: LEAST_FILES };
            room(storage, &about.storage, Room::of(&found), least)
                .map_err(|finding| finding.remedy(prune(about)))
                .unwrap_or_else(|finding| finding)
        }
    }
}

fn prune(about: &About) -> String {
    format!("{} system prune", about.kind)
}

#[cfg(test)]
mod tests {
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config;

    fn with_endpoint(path: &str) -> Config {
        Config { engine: config::Engine { endpoint: Some(format!("unix://{path}")), ..config::Engine::default() }, ..Config::default() }
    }

    async fn first(made_up: &MadeUp, config: &Config) -> Finding {
        check(&made_up.host, config).await.remove(0)
    }

    #[tokio::test]
    async fn without_any_engine_it_is_a_note_unless_one_is_named() {
        let made_up = MadeUp::new();
        let finding = first(&made_up, &Config::default()).await;
        assert_eq!((finding.status, finding.remedies.len()), (Status::Note, 2), "{finding:?}");
        assert!(finding.seen.contains("makes namespaces itself"), "{finding:?}");
        let finding = first(&made_up, &with_endpoint("/run/e.sock")).await;
        assert_eq!(finding.status, Status::Missing, "{finding:?}");
        let made_up = made_up.with("/lib/systemd/system/docker.service", "[Unit]");
        let finding = first(&made_up, &Config::default()).await;
        assert!(finding.status == Status::Missing && finding.seen.contains("/lib/systemd/system/docker.service"), "{finding:?}");
        assert_eq!(finding.remedies[0], "systemctl start docker");
        let podman = Config { engine: config::Engine { kind: EngineChoice::Podman, ..config::Engine::default() }, ..Config::default() };
        let finding = first(&made_up, &podman).await;
        assert!(finding.remedies.len() == 1 && finding.remedies[0].contains("podman.socket"), "{finding:?}");
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_wants_a_start() {
        let made_up = MadeUp::new().with_folder("/var/run");
        drop(std::os::unix::net::UnixListener::bind(made_up.host.path("/var/run/docker.sock")).unwrap());
        let finding = first(&made_up, &Config::default()).await;
        assert_eq!((finding.status, finding.remedies[0].as_str()), (Status::Missing, "systemctl start docker"), "{finding:?}");
    }

    #[tokio::test]
    async fn an_engine_that_is_frozen_is_told_in_time() {
        let made_up = MadeUp::new().with_folder("/run/podman").with_folder("/var/run");
        let _frozen = std::os::unix::net::UnixListener::bind(made_up.host.path("/run/podman/podman.sock")).unwrap();
        let begun = std::time::Instant::now();
        let finding = first(&made_up, &Config::default()).await;
        assert!(begun.elapsed() < made_up.host.limit * 10, "{:?}", begun.elapsed());
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.seen.contains("did not answer") && finding.remedies[0].contains("podman"), "{finding:?}");
    }

    #[tokio::test]
    async fn an_engine_on_another_machine_is_missing_with_the_reason() {
        let config =
            Config { engine: config::Engine { endpoint: Some("tcp://h:1".into()), ..config::Engine::default() }, ..Config::default() };
        let finding = first(&MadeUp::new(), &config).await;
        assert!(finding.status == Status::Missing && finding.seen.contains("another machine"), "{finding:?}");
    }

    #[tokio::test]
    async fn another_kind_than_the_configured_one_is_missing_and_no_id_is_told() {
        let made_up = MadeUp::new();
        let about = About { kind: EngineKind::Docker, version: "1".into(), id: String::new(), storage: String::new() };
        let podman = Config { engine: config::Engine { kind: EngineChoice::Podman, ..config::Engine::default() }, ..Config::default() };
        let statuses = |findings: Vec<Finding>| findings.into_iter().map(|finding| finding.status).collect::<Vec<_>>();
        assert_eq!(
            statuses(of_engine(&made_up.host, &podman, "unix:///x", &about).await),
            [Status::Missing, Status::Warning, Status::Note]
        );
        let about = About { id: "A".into(), storage: "/".into(), ..about };
        let found = of_engine(&made_up.host, &Config::default(), "unix:///x", &about).await;
        assert_eq!((found[0].status, found[1].status, found[2].name), (Status::Ok, Status::Ok, "storage"));
        let about = About { storage: "/nowhere".into(), ..about };
        assert_eq!(of_storage(&made_up.host, &about).await.status, Status::Note);
    }

    #[test]
    fn whoever_may_not_use_the_socket_is_told_how_to() {
        let made_up = MadeUp::new().with("/etc/passwd", "ann:x:1000:1000::/:/bin/sh").asked_by(1000);
        let engine = Check::of("answers", "");
        let finding = not_allowed(engine, &made_up.host, "unix:///var/run/docker.sock");
        assert_eq!((finding.status, finding.remedies[1].as_str()), (Status::Warning, "usermod -aG docker ann"));
        assert_eq!(not_allowed(engine, &made_up.host, "unix:///run/podman/podman.sock").remedies.len(), 1);
        assert_eq!(not_allowed(engine, &made_up.asked_by(0).host, "unix:///var/run/docker.sock").status, Status::Missing);
    }
}
