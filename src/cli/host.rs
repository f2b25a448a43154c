//! For the commands that do the work of a daemon themselves (`purge`, `demo`, `bench`): the kernel, the engine, the pool's lock, and the exit
//! code when one of them is not to be had.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::exit::{self, Failure};
use crate::causes::with_causes;
use crate::config;
use crate::engine::docker::Docker;
use crate::engine::native::Native;
use crate::engine::{Engine as _, EngineError, EngineInfo, ErrorClass, NamespaceKind, discover};
use crate::lock::{self, LockError, PoolLock};
use crate::netns::Kernel;
use crate::netns::cni::{Aside, Attacher, Cni, GivesBack};
use crate::netns::folders::{Mason, Mounter, WithFolders};
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

/// Whether there is a socket, or somebody says where one is: it need not answer. Unlike the daemon, which stays with what the host's functions are started
/// by, a command has no reason to wait for an engine that is installed and not there.
pub(super) fn is_engine_there(endpoint: Option<&str>) -> Result<bool, Failure> {
    let variable = |name: &str| std::env::var(name).ok();
    let is_said = endpoint.is_some() || variable("DOCKER_HOST").is_some_and(|host| !host.is_empty());
    let found = discover::candidates(&config::Engine::default(), variable);
    let found = found.map_err(|error| Failure::new(exit::CONFIG, error.to_string()))?;
    Ok(is_said || found.iter().any(|endpoint| Path::new(endpoint.trim_start_matches("unix://")).exists()))
}

/// The native engine of one pool, in this process.
pub(super) struct Natively {
    pub(super) engine: Arc<Native>,
    pub(super) info: EngineInfo,
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) mounter: Arc<dyn Mounter>,
}

/// Namespaces are mounted below that folder; what CNI plugins gave them they can take back.
pub(super) async fn native(root: &Path, pool: &str, cni: Cni, kernel: Arc<dyn Kernel>) -> Result<Natively, Failure> {
    let mason = Mason::start(root, None).map_err(|error| Failure::new(exit::NOPERM, format!("namespaces cannot be mounted: {error}")))?;
    let attacher: Arc<dyn Attacher> = Arc::new(Aside::new(cni, root.to_owned()));
    let mounter: Arc<dyn Mounter> = Arc::new(GivesBack::new(Arc::new(mason), Arc::clone(&attacher), root.to_owned()));
    let engine = Arc::new(Native::new(root, pool, Arc::clone(&mounter)));
    let info = engine.info().await.map_err(|error| engine_failure("the native engine does not answer", &error))?;
    Ok(Natively { engine, info, kernel: Arc::new(WithFolders::new(kernel, Arc::clone(&mounter), attacher)), mounter })
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
        | ErrorClass::RegistryUnknown
        | ErrorClass::RegistryBusy { .. }
        | ErrorClass::Away
        | ErrorClass::Unknown
        | ErrorClass::Refused => exit::UNAVAILABLE,
    };
    Failure::new(code, format!("{what}: {error}"))
}

/// The pool's lock, at once or not at all.
pub(super) fn lock(engine: &EngineInfo, pool: &str) -> Result<PoolLock, Failure> {
    PoolLock::take(&lock::folder(), &engine.id, pool).map_err(|error| lock_failure(&error))
}

/// No daemon has a pool of that name, on whatever engine: what is on the host is named after the pool alone.
pub(super) fn nobody_runs(pool: &str) -> Result<(), Failure> {
    lock::is_free(&lock::folder(), pool).map_err(|error| lock_failure(&error))
}

/// Words and exit code for a lock that is not ours.
pub(super) fn lock_failure(error: &LockError) -> Failure {
    let code = match error {
        LockError::Taken { .. } => exit::TEMPFAIL,
        LockError::Io { .. } => exit::NOPERM,
    };
    Failure::new(code, with_causes(error))
}
