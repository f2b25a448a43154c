//! For the commands that do the work of a daemon themselves (`purge`, `demo`, `bench`): the kernel, the engine, the pool's lock, and the exit
//! code when one of them is not to be had.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::exit::{self, Failure};
use crate::causes::with_causes;
use crate::config;
use crate::engine::docker::Docker;
use crate::engine::{Engine as _, EngineError, EngineInfo, ErrorClass, NamespaceKind, discover};
use crate::lock::{LOCKS, LockError, PoolLock};
use crate::netns::Kernel;
use crate::netns::linux::Linux;

/// For the engine's first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// The kernel, as root sees it.
pub(super) fn kernel() -> Result<Arc<dyn Kernel>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new(exit::NOPERM, "this looks into other processes' namespaces and needs root: use sudo"));
    }
    let kernel = Linux::new();
    let seen = kernel.host_namespace(NamespaceKind::Net);
    seen.map_err(|error| Failure::new(exit::NOPERM, format!("other processes' namespaces cannot be seen: {error}")))?;
    Ok(Arc::new(kernel))
}

/// The engine at the endpoint, else where `serve` would find it; it has answered.
pub(super) async fn engine(endpoint: Option<&str>) -> Result<(Arc<Docker>, EngineInfo), Failure> {
    let wanted = config::Engine { endpoint: endpoint.map(str::to_owned), ..config::Engine::default() };
    let docker = discover::connect(&wanted, |name| std::env::var(name).ok())
        .map_err(|error| Failure::new(if endpoint.is_some() { exit::USAGE } else { exit::CONFIG }, error.to_string()))?;
    let at = docker.endpoint().to_owned();
    let info = tokio::time::timeout(FIRST_ANSWER, docker.info()).await;
    let info = info.unwrap_or_else(|_| Err(EngineError::deadline("info", &at, FIRST_ANSWER)));
    let info = info.map_err(|error| engine_failure(&format!("the engine at {at} does not answer"), &error))?;
    Ok((Arc::new(docker), info))
}

/// Words and exit code for what an engine says.
pub(super) fn engine_failure(what: &str, error: &EngineError) -> Failure {
    let code = match error.class {
        ErrorClass::NotAllowed => exit::NOPERM,
        ErrorClass::NotFound
        | ErrorClass::ImageMissing
        | ErrorClass::NetworkMissing
        | ErrorClass::NameTaken
        | ErrorClass::HasDependents
        | ErrorClass::NoAddresses
        | ErrorClass::DiskFull
        | ErrorClass::RegistryDenied
        | ErrorClass::Away
        | ErrorClass::Unknown
        | ErrorClass::Refused => exit::UNAVAILABLE,
    };
    Failure::new(code, format!("{what}: {error}"))
}

/// The pool's lock, at once or not at all.
pub(super) fn lock(engine: &EngineInfo, pool: &str) -> Result<PoolLock, Failure> {
    PoolLock::take(Path::new(LOCKS), &engine.id, pool).map_err(|error| lock_failure(&error))
}

/// Words and exit code for a lock that is not ours.
pub(super) fn lock_failure(error: &LockError) -> Failure {
    let code = match error {
        LockError::Taken { .. } => exit::TEMPFAIL,
        LockError::Io { .. } => exit::NOPERM,
    };
    Failure::new(code, with_causes(error))
}
