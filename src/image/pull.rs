//! Which credentials a pull of a reference goes out with, and the pull by those of the daemon's ([`by_source`]).
//!
//! The registry's host is read from the reference as Docker reads it. `[registries]` of the configuration goes first, then the Docker config
//! file (`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`), whose credential helpers are programs of others: they are run off
//! the async threads, one look-up at a time, with a deadline.
//!
//! What can go wrong is in [`CredentialError`]. None of it need stop a pull: the image may be public, so the caller tries without and
//! tells both if the registry says no. Secrets are in no error, no log and no `Debug`; what a helper printed counts as a secret.
//!
//! It deliberately tries nothing twice, and does not know what an image is for.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use tokio::sync::oneshot;

use super::stages::Stage;
use crate::config::Registry;
use crate::engine::{Credentials, Engine, EngineError, ErrorClass, PullStep};

/// How long a credential helper may take.
pub const HELPER_DEADLINE: Duration = Duration::from_secs(10);

const DOCKER_HUB: &str = "docker.io";
/// What Docker files Docker Hub's account under, for reasons of its history.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Why the Docker config file gave no answer. "Has no entry" is an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The file is there and could not be read or understood.
    #[error("cannot read {path}: {message}")]
    Unreadable {
        /// The Docker config file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The helper that the file names is missing, failed, or answered with something else than credentials.
    #[error("the credential helper that {path} names for {host} failed: {message}")]
    Helper {
        /// The Docker config file.
        path: PathBuf,
        /// The registry.
        host: String,
        /// Never the helper's output, which may hold secrets.
        message: String,
    },
    /// The helper took longer than [`HELPER_DEADLINE`], or one from an earlier look-up still runs.
    #[error("the credential helper that {path} names for {host} gave no answer within {HELPER_DEADLINE:?}")]
    HelperTimeout {
        /// The Docker config file.
        path: PathBuf,
        /// The registry.
        host: String,
    },
}

/// Where credentials are looked for. `Debug` shows hosts and the path, nothing else.
#[derive(Clone, Debug)]
pub struct CredentialSource {
    registries: Vec<Registry>,
    docker_config: Option<PathBuf>,
    /// A helper that hangs keeps its thread until it ends; this keeps it at one, however often a pull is tried again.
    busy: Arc<AtomicBool>,
}

impl CredentialSource {
    /// `docker_config` is the file's own path; `None`: only `registries`.
    #[must_use]
    pub fn new(registries: Vec<Registry>, docker_config: Option<PathBuf>) -> Self {
        Self { registries, docker_config, busy: Arc::default() }
    }

    /// With the Docker config file where `DOCKER_CONFIG` or `HOME` say it is.
    #[must_use]
    pub fn from_env(registries: Vec<Registry>) -> Self {
        let folder = std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = folder.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
        Self::new(registries, folder.map(|folder| folder.join("config.json")))
    }

    /// The credentials for `reference`; `None` when nothing is configured for its registry. Cancel safe: a helper that was started runs
    /// to its end, unheard.
    ///
    /// # Errors
    /// The Docker config file or its helper is broken; see [`CredentialError`].
    pub async fn lookup(&self, reference: &str) -> Result<Option<Credentials>, CredentialError> {
        let host = registry_host(reference);
        if let Some(entry) = self.registries.iter().find(|entry| canonical_host(&entry.host) == host) {
            return Ok(Some(Credentials { username: entry.username.clone(), secret: entry.password.clone() }));
        }
        match &self.docker_config {
            Some(path) => self.look_into_docker_config(path.clone(), host.to_owned()).await,
            None => Ok(None),
        }
    }

    async fn look_into_docker_config(&self, path: PathBuf, host: String) -> Result<Option<Credentials>, CredentialError> {
        let timeout = CredentialError::HelperTimeout { path: path.clone(), host: host.clone() };
        if self.busy.swap(true, Ordering::AcqRel) {
            return Err(timeout);
        }
        let busy = Busy(self.busy.clone());
        let (answer, answered) = oneshot::channel();
        // A thread of its own and not the runtime's blocking pool, which a stop would wait for: a helper can hang for good.
        let spawned = std::thread::Builder::new().name("docker-credential".into()).spawn({
            let (path, host) = (path.clone(), host.clone());
            move || {
                let result = read_docker_config(&path, &host);
                drop(busy);
                // Nobody waits any more after the deadline.
                let _ = answer.send(result);
            }
        });
        if let Err(error) = spawned {
            return Err(CredentialError::Helper { path, host, message: error.to_string() });
        }
        match tokio::time::timeout(HELPER_DEADLINE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CredentialError::Helper { path, host, message: "it ended without an answer".into() }),
            Err(_) => Err(timeout),
        }
    }
}

/// Pulls by what `source` has for it; without credentials when they cannot be had: the image may be public. If the registry then says no, both are told.
/// Dropping it cuts the pull off.
///
/// # Errors
/// As [`Engine::pull_image`].
pub async fn by_source(
    engine: &dyn Engine,
    reference: &str,
    source: &CredentialSource,
    told: &(dyn Fn(PullStep) + Send + Sync),
) -> Result<(), EngineError> {
    let found = source.lookup(reference).await;
    if let Err(error) = &found {
        tracing::warn!(reference, %error, "no credentials, pulling without");
    }
    let pulled = Stage::Pull.of(engine.pull_image(reference, found.as_ref().ok().and_then(Option::as_ref), told)).await;
    match (pulled, found) {
        (Err(mut denied), Err(lookup)) if denied.class == ErrorClass::RegistryDenied => {
            denied.message = format!("{} (asked without credentials: {lookup})", denied.message);
            Err(denied)
        }
        (pulled, _) => pulled,
    }
}

struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Blocks for as long as the helper takes.
fn read_docker_config(path: &std::path::Path, host: &str) -> Result<Option<Credentials>, CredentialError> {
    let unreadable = |message: String| CredentialError::Unreadable { path: path.to_owned(), message };
    let helper = |message: &str| CredentialError::Helper { path: path.to_owned(), host: host.to_owned(), message: message.to_owned() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let key = if host == DOCKER_HUB { DOCKER_HUB_KEY } else { host };
    match docker_credential::get_credential_from_reader(BufReader::new(file), key) {
        Ok(DockerCredential::UsernamePassword(username, secret)) => Ok(Some(Credentials { username, secret })),
        Ok(DockerCredential::IdentityToken(secret)) => Ok(Some(Credentials { username: String::new(), secret })),
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => Ok(None),
        // The helpers' protocol has no better way to say that they know no such registry.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => Ok(None),
        Err(CredentialRetrievalError::HelperFailure { helper: name, .. }) => Err(helper(&format!("{name} says it failed"))),
        Err(CredentialRetrievalError::HelperCommunicationError) => Err(helper("it cannot be run")),
        Err(CredentialRetrievalError::MalformedHelperResponse) => Err(helper("its answer is not what a helper says")),
        Err(CredentialRetrievalError::ConfigReadError) => Err(unreadable("not a Docker config file".into())),
        Err(CredentialRetrievalError::CredentialDecodingError) => Err(unreadable(format!("the auth entry for {host} is malformed"))),
        Err(CredentialRetrievalError::CredentialMismatchError) => {
            Err(unreadable(format!("the auth entry for {host} does not match its username and password")))
        }
    }
}

/// The registry a reference is pulled from, as Docker reads it: what is before the first `/`, if it looks like a host (has a dot, a port
/// or a capital letter, or is `localhost`); else Docker Hub.
#[must_use]
pub fn registry_host(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((first, _)) if first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase()) => {
            canonical_host(first)
        }
        Some(_) | None => DOCKER_HUB,
    }
}

/// Docker Hub goes by several names.
fn canonical_host(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | DOCKER_HUB_KEY => DOCKER_HUB,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn source(folder: &tempfile::TempDir, config: &str) -> CredentialSource {
        let path = folder.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        CredentialSource::new(Vec::new(), Some(path))
    }

    fn credentials(username: &str, secret: &str) -> Credentials {
        Credentials { username: username.into(), secret: secret.into() }
    }

    #[test]
    fn the_host_is_read_as_docker_reads_it() {
        for (reference, host) in [
            ("busybox", "docker.io"),
            ("busybox:1.36", "docker.io"),
            ("library/busybox@sha256:00", "docker.io"),
            ("index.docker.io/library/busybox", "docker.io"),
            ("localhost/busybox", "localhost"),
            ("localhost:5000/busybox:1.36", "localhost:5000"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000"),
            ("registry:5000/a", "registry:5000"),
            ("quay.io/org/image:tag", "quay.io"),
            ("nspool.local/placeholder:0", "nspool.local"),
            ("HOST/a", "HOST"),
        ] {
            assert_eq!(registry_host(reference), host, "{reference}");
        }
    }

    #[tokio::test]
    async fn the_configuration_goes_before_the_docker_config_file() {
        let folder = tempfile::tempdir().unwrap();
        // "file:secret", and for Docker Hub "hub:secret".
        let mut source = source(
            &folder,
            r#"{"auths": {"127.0.0.1:5000": {"auth": "ZmlsZTpzZWNyZXQ="}, "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
                "tokens.example": {"identitytoken": "abc"}}}"#,
        );
        assert_eq!(source.lookup("127.0.0.1:5000/a").await, Ok(Some(credentials("file", "secret"))));
        assert_eq!(source.lookup("busybox").await, Ok(Some(credentials("hub", "secret"))));
        assert_eq!(source.lookup("tokens.example/a").await, Ok(Some(credentials("", "abc"))));
        assert_eq!(source.lookup("quay.io/a").await, Ok(None));

        source.registries = vec![
            Registry { host: "127.0.0.1:5000".into(), username: "ours".into(), password: "word".into() },
            Registry { host: "index.docker.io".into(), username: "alias".into(), password: "word".into() },
        ];
        assert_eq!(source.lookup("127.0.0.1:5000/a").await, Ok(Some(credentials("ours", "word"))));
        assert_eq!(source.lookup("docker.io/library/busybox").await, Ok(Some(credentials("alias", "word"))));
        let debug = format!("{source:?} {:?}", source.lookup("busybox").await);
        assert!(!debug.contains("word"), "{debug}");
    }

    #[tokio::test]
    async fn no_file_is_no_credentials_and_a_broken_one_is_an_error_without_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let absent = CredentialSource::new(Vec::new(), Some(folder.path().join("absent")));
        assert_eq!(absent.lookup("quay.io/a").await, Ok(None));
        assert_eq!(CredentialSource::new(Vec::new(), None).lookup("quay.io/a").await, Ok(None));

        for broken in ["{", r#"{"auths": {"quay.io": {"auth": "c2VjcmV0"}}}"#] {
            let error = source(&folder, broken).lookup("quay.io/a").await.unwrap_err();
            assert!(matches!(error, CredentialError::Unreadable { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    /// A helper is found by `PATH`, which belongs to the whole process: the test runs itself again with its own. `Some(folder)` in the inner one.
    fn with_helper(test: &str, script: &str) -> Option<tempfile::TempDir> {
        if std::env::var_os("NSPOOL_TEST_INNER").is_some() {
            return Some(tempfile::tempdir().unwrap());
        }
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-scripted");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("image::pull::tests::{test}"), "--nocapture"])
            .env("NSPOOL_TEST_INNER", "1")
            .env("PATH", path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
        None
    }

    const ALL_BY_HELPER: &str = r#"{"auths": {"quay.io": {}}, "credsStore": "scripted"}"#;

    #[tokio::test]
    async fn a_helper_is_asked_for_the_registry() {
        let script = r#"[ "$1" = get ] && [ "$(cat)" = quay.io ] && echo '{"ServerURL": "quay.io", "Username": "u", "Secret": "s"}'"#;
        if let Some(folder) = with_helper("a_helper_is_asked_for_the_registry", script) {
            assert_eq!(source(&folder, ALL_BY_HELPER).lookup("quay.io/a").await, Ok(Some(credentials("u", "s"))));
        }
    }

    #[tokio::test]
    async fn a_helper_that_knows_no_such_registry_means_no_credentials() {
        let script = "cat >/dev/null; echo 'credentials not found in native keychain'; exit 1";
        if let Some(folder) = with_helper("a_helper_that_knows_no_such_registry_means_no_credentials", script) {
            assert_eq!(source(&folder, ALL_BY_HELPER).lookup("quay.io/a").await, Ok(None));
        }
    }

    #[tokio::test]
    async fn what_a_failing_helper_prints_is_told_to_nobody() {
        let script = "cat >/dev/null; echo my-secret; echo my-secret >&2; exit 1";
        if let Some(folder) = with_helper("what_a_failing_helper_prints_is_told_to_nobody", script) {
            let error = source(&folder, ALL_BY_HELPER).lookup("quay.io/a").await.unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains("docker-credential-scripted") && !told.contains("my-secret"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_missing_helper_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = source(&folder, r#"{"credsStore": "nspool-no-such-helper"}"#).lookup("quay.io/a").await.unwrap_err();
        assert!(matches!(error, CredentialError::Helper { .. }), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_helper_that_hangs_is_given_up_and_not_started_twice() {
        // The clock is paused and nothing else runs, so the deadline comes at once; the helper's own seconds are real ones.
        let script = r#"echo started >> "${0%/*}/starts"; sleep 3"#;
        if let Some(folder) = with_helper("a_helper_that_hangs_is_given_up_and_not_started_twice", script) {
            let source = source(&folder, ALL_BY_HELPER);
            for _ in 0..3 {
                let error = source.lookup("quay.io/a").await.unwrap_err();
                assert!(matches!(error, CredentialError::HelperTimeout { .. }), "{error:?}");
            }
            assert!(source.busy.load(Ordering::Acquire), "the first helper still runs");
        }
    }
}
