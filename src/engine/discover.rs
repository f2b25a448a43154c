//! Where the engine is: the configured endpoint, else `DOCKER_HOST`, else the usual sockets.
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

/// The endpoints (`unix:///…`) to look at, in this order; never empty. The environment is asked for `DOCKER_HOST` and `XDG_RUNTIME_DIR`; an
/// empty variable counts as absent.
///
/// # Errors
/// [`DiscoverError::NotLocal`] and [`DiscoverError::NotAnEndpoint`], for the configured endpoint or for `DOCKER_HOST`.
pub fn candidates(config: &Engine, env: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, DiscoverError> {
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
        EngineChoice::Auto => None,
        EngineChoice::Docker => Some(EngineKind::Docker),
        EngineChoice::Podman => Some(EngineKind::Podman),
    };
    Docker::connect(&endpoint, wanted).map_err(|source| DiscoverError::Client { endpoint, source })
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
    fn a_client_is_made_though_no_engine_is_there() {
        let config = Engine { endpoint: Some("unix:///nonexistent/e.sock".into()), ..Engine::default() };
        assert_eq!(connect(&config, |_| None).unwrap().endpoint(), "unix:///nonexistent/e.sock");
    }
}
