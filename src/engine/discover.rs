//! Where the engine is: the configured endpoint, else `DOCKER_HOST`, else the usual sockets; and whether there is one at all.
//!
//! `kind = "auto"` means the native engine only on a host that knows nothing of a container engine ([`traces`]): one that is installed and away is waited
//! for, since its functions could not join what nspool made without it.
//!
//! Only local Unix sockets are taken: a joined network namespace means nothing on another machine, and access to an engine's socket is root
//! on its host. What can go wrong is an endpoint of another kind, which is refused with the reason. Whether an engine *answers* is deliberately
//! not known here: a daemon whose engine is away stays up and waits for it.

use std::path::Path;

use super::docker::Docker;
use super::{EngineError, EngineKind};
use crate::config::{Engine, EngineChoice};

/// Why no engine can be looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoverError {
    /// `tcp://`, `http(s)://`, `ssh://`, `npipe://`, `fd://`.
    #[error("{origin} is {endpoint:?}: {reason}; only local sockets like unix:///var/run/docker.sock are supported")]
    NotLocal {
        /// `engine.endpoint` or `DOCKER_HOST`.
        origin: &'static str,
        /// What was read, without a user name or password.
        endpoint: String,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// Neither `unix://` nor an absolute path.
    #[error("{origin} is {endpoint:?}, which is not a socket's address; write unix:///path/to/engine.sock")]
    NotAnEndpoint {
        /// `engine.endpoint` or `DOCKER_HOST`.
        origin: &'static str,
        /// What was read.
        endpoint: String,
    },
    /// The client could not be made.
    #[error("cannot use {endpoint}")]
    Client {
        /// The endpoint chosen.
        endpoint: String,
        /// Why.
        #[source]
        source: EngineError,
    },
}

/// The endpoints (`unix:///…`) to look at, in this order; none for the native engine, else at least one. The environment is asked for `DOCKER_HOST` and `XDG_RUNTIME_DIR`; an
/// empty variable counts as absent.
///
/// # Errors
/// [`DiscoverError::NotLocal`] and [`DiscoverError::NotAnEndpoint`], for the configured endpoint or for `DOCKER_HOST`.
pub fn candidates(config: &Engine, env: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, DiscoverError> {
    if config.kind == EngineChoice::Native {
        return Ok(Vec::new());
    }
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(endpoint) = config.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
        return Ok(vec![local("engine.endpoint", endpoint)?]);
    }
    if let Some(endpoint) = env("DOCKER_HOST") {
        return Ok(vec![local("DOCKER_HOST", &endpoint)?]);
    }
    let runtime_dir = env("XDG_RUNTIME_DIR").filter(|dir| dir.starts_with('/'));
    let mut docker = vec!["unix:///var/run/docker.sock".to_owned(), "unix:///run/docker.sock".to_owned()];
    let mut podman = vec!["unix:///run/podman/podman.sock".to_owned()];
    if let Some(dir) = runtime_dir {
        docker.push(format!("unix://{dir}/docker.sock"));
        podman.push(format!("unix://{dir}/podman/podman.sock"));
    }
    Ok(match config.kind {
        EngineChoice::Docker => docker,
        EngineChoice::Podman => podman,
        EngineChoice::Native => Vec::new(),
        EngineChoice::Auto => docker.into_iter().chain(podman).collect(),
    })
}

/// A client of the first candidate whose socket exists, else of the first candidate: the caller then waits for it. Does no I/O but looking for
/// the sockets.
///
/// # Errors
/// Those of [`candidates`].
pub fn connect(config: &Engine, env: impl Fn(&str) -> Option<String>) -> Result<Docker, DiscoverError> {
    let endpoint = choose(candidates(config, env)?, |path| path.exists());
    let wanted = match config.kind {
        EngineChoice::Auto | EngineChoice::Native => None,
        EngineChoice::Docker => Some(EngineKind::Docker),
        EngineChoice::Podman => Some(EngineKind::Podman),
    };
    Docker::connect(&endpoint, wanted).map_err(|source| DiscoverError::Client { endpoint, source })
}

/// Units of Docker, wherever systemd looks for them.
const UNITS: [&str; 2] = ["docker.service", "docker.socket"];
const UNIT_FOLDERS: [&str; 4] = ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// What on this host says that functions run on a container engine, in words: an endpoint that somebody wrote down, a socket, a unit or a client's
/// configuration of Docker's. None: nothing does. `root` is where the host's files are, `/`.
///
/// # Errors
/// Those of [`candidates`].
pub fn traces(config: &Engine, root: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Option<String>, DiscoverError> {
    let said = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(endpoint) = config.endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) {
        return Ok(Some(format!("engine.endpoint is {endpoint}")));
    }
    if said("DOCKER_HOST").is_some() {
        return Ok(Some("DOCKER_HOST is set".to_owned()));
    }
    let on_host = |path: &str| root.join(path.trim_start_matches('/'));
    let sockets = candidates(config, &env)?.into_iter().filter_map(|endpoint| endpoint.strip_prefix("unix://").map(str::to_owned));
    let units = UNIT_FOLDERS.iter().flat_map(|folder| UNITS.iter().map(move |unit| format!("{folder}/{unit}")));
    let clients = [said("DOCKER_CONFIG"), said("HOME").map(|home| format!("{home}/.docker"))].into_iter().flatten();
    let clients = clients.map(|folder| format!("{folder}/config.json"));
    // What may not be looked at may be there.
    Ok(sockets.chain(units).chain(clients).find(|path| on_host(path).try_exists().unwrap_or(true)).map(|path| format!("there is {path}")))
}

fn choose(candidates: Vec<String>, exists: impl Fn(&Path) -> bool) -> String {
    let present = candidates.iter().position(|endpoint| endpoint.strip_prefix("unix://").is_some_and(|path| exists(Path::new(path))));
    candidates.into_iter().nth(present.unwrap_or(0)).unwrap_or_default()
}

/// A bare absolute path is taken as a socket's.
fn local(origin: &'static str, endpoint: &str) -> Result<String, DiscoverError> {
    let reason = match endpoint.split_once("://").map(|(scheme, _)| scheme) {
        Some("unix") => None,
        Some("tcp" | "http" | "https") => Some("an engine over TCP may be on another machine, and nspool works in this one's kernel"),
        Some("ssh") => Some("an engine over ssh is on another machine, and nspool works in this one's kernel"),
        Some("npipe" | "fd") => Some("this is not a socket that can be connected to here"),
        Some(_) => Some("this kind of address is not known"),
        None => None,
    };
    if let Some(reason) = reason {
        return Err(DiscoverError::NotLocal { origin, endpoint: without_userinfo(endpoint), reason });
    }
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(DiscoverError::NotAnEndpoint { origin, endpoint: endpoint.to_owned() });
    }
    Ok(format!("unix://{path}"))
}

fn without_userinfo(endpoint: &str) -> String {
    match (endpoint.find("://"), endpoint.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://…{}", &endpoint[..scheme], &endpoint[at..]),
        _ => endpoint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(kind: EngineChoice, endpoint: Option<&str>, env: &[(&str, &str)]) -> Result<Vec<String>, DiscoverError> {
        let config = Engine { kind, endpoint: endpoint.map(str::to_owned), ..Engine::default() };
        candidates(&config, |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_configured_endpoint_goes_before_docker_host_before_the_usual_sockets() {
        let env = [("DOCKER_HOST", "unix:///h.sock"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        assert_eq!(from(EngineChoice::Auto, Some("unix:///c.sock"), &env).unwrap(), ["unix:///c.sock"]);
        assert_eq!(from(EngineChoice::Auto, Some("/c.sock"), &env).unwrap(), ["unix:///c.sock"]);
        assert_eq!(from(EngineChoice::Podman, None, &env).unwrap(), ["unix:///h.sock"]);
        assert_eq!(
            from(EngineChoice::Auto, None, &env[1..]).unwrap(),
            [
                "unix:///var/run/docker.sock",
                "unix:///run/docker.sock",
                "unix:///run/user/7/docker.sock",
                "unix:///run/podman/podman.sock",
                "unix:///run/user/7/podman/podman.sock"
            ]
        );
        assert_eq!(from(EngineChoice::Podman, None, &[("DOCKER_HOST", "")]).unwrap(), ["unix:///run/podman/podman.sock"]);
        assert_eq!(from(EngineChoice::Docker, None, &[]).unwrap().len(), 2);
    }

    #[test]
    fn an_engine_elsewhere_is_refused_with_the_reason_and_without_the_password() {
        for endpoint in ["tcp://127.0.0.1:2375", "ssh://host", "http://localhost", "npipe:////./pipe/x", "quic://x"] {
            let error = from(EngineChoice::Auto, None, &[("DOCKER_HOST", endpoint)]).unwrap_err();
            assert!(matches!(&error, DiscoverError::NotLocal { origin: "DOCKER_HOST", .. }), "{error}");
            assert!(error.to_string().contains(endpoint) && error.to_string().contains("only local sockets"), "{error}");
        }
        let error = from(EngineChoice::Auto, Some("ssh://bob:secret@host"), &[]).unwrap_err();
        assert!(!error.to_string().contains("secret") && !error.to_string().contains("bob"), "{error}");
        assert!(matches!(from(EngineChoice::Auto, Some("docker.sock"), &[]), Err(DiscoverError::NotAnEndpoint { .. })));
        assert!(matches!(from(EngineChoice::Auto, Some("unix://x.sock"), &[]), Err(DiscoverError::NotAnEndpoint { .. })));
    }

    #[test]
    fn the_first_socket_that_exists_is_chosen_else_the_first() {
        let all = || vec!["unix:///a".to_owned(), "unix:///b".to_owned(), "unix:///c".to_owned()];
        assert_eq!(choose(all(), |path| path != Path::new("/a")), "unix:///b");
        assert_eq!(choose(all(), |_| false), "unix:///a");
    }

    #[test]
    fn any_trace_of_a_container_engine_speaks_against_none() {
        let traced = |config: &Engine, files: &[&str], env: &[(&str, &str)]| {
            let host = tempfile::tempdir().unwrap();
            for file in files {
                let path = host.path().join(file.trim_start_matches('/'));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "").unwrap();
            }
            traces(config, host.path(), |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())).unwrap()
        };
        let auto = Engine::default();
        let root = [("HOME", "/root")];
        assert_eq!(traced(&auto, &["/lib/systemd/system/podman.socket", "/root/.docker/other"], &root), None);
        for file in [
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/podman/podman.sock",
            "/lib/systemd/system/docker.service",
            "/root/.docker/config.json",
        ] {
            assert_eq!(traced(&auto, &[file], &root), Some(format!("there is {file}")));
        }
        assert_eq!(traced(&auto, &["/d/config.json"], &[("DOCKER_CONFIG", "/d")]), Some("there is /d/config.json".into()));
        assert!(traced(&auto, &[], &[("DOCKER_HOST", "unix:///h.sock")]).is_some_and(|why| why.contains("DOCKER_HOST")));
        let written = Engine { endpoint: Some("unix:///e.sock".into()), ..Engine::default() };
        assert!(traced(&written, &[], &[]).is_some_and(|why| why.contains("/e.sock")));
    }

    #[test]
    fn a_client_is_made_though_no_engine_is_there() {
        let config = Engine { endpoint: Some("unix:///nonexistent/e.sock".into()), ..Engine::default() };
        assert_eq!(connect(&config, |_| None).unwrap().endpoint(), "unix:///nonexistent/e.sock");
    }
}
