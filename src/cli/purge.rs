//! `purge`: removes what a dead pool left behind.
//!
//! It takes the pool's lock, as a daemon does: while one is alive nothing is looked at. Then it does what the pool's next daemon would do at its
//! start ([`recovery`]), and takes away what managed networks put on the host under the pool's name, and the networks that the engine made for them
//! ([`engine_networks`](crate::engine_networks)), unless a container is on one. It does not read the daemon's configuration:
//! it looks into every kind of namespace that a pool may share.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::exit::Failure;
use super::{Globals, exit, host, output};
use crate::causes::with_causes;
use crate::config::{self, Config};
use crate::engine::discover;
use crate::engine::paced::{Deadlines, Paced};
use crate::engine::{Engine, EngineInfo, EngineKind, NamespaceKind};
use crate::engine_networks::EngineNetworks;
use crate::image::placeholder::IMAGE_LABEL;
use crate::nanny::buddy::Breed;
use crate::nanny::leftovers::Leftovers;
use crate::nanny::looks::Looks;
use crate::netns::Kernel;
use crate::netns::cni::{BIN_DIRS, Cni};
use crate::netns::folders::{self, Mason, Mounter};
use crate::netns::managed::host::{Forwarding, Host};
use crate::netns::managed::names::Names;
use crate::netns::managed::{Limits, Worker};
use crate::recovery::{self, Means};

/// What the purge is told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo nspool purge --dry-run
  sudo nspool purge --pool blue

Touches only containers and networks with nspool's labels and names, of a pool that no daemon is alive for, and that nobody is in.
Exit code 1: something was left because somebody is in it. Exit code 75: a daemon is alive.")]
pub struct Purge {
    /// The pool's name
    #[arg(long, default_value = "default")]
    pub pool: String,
    /// The engine's socket [default: found as `serve` finds it]
    #[arg(long, value_name = "unix://PATH")]
    pub engine_endpoint: Option<String>,
    /// Where to look: on a container engine, or for what the native engine mounted [default: as `serve` chooses]
    #[arg(long, value_enum)]
    pub engine: Option<Where>,
    /// Where namespaces are mounted
    #[arg(long, value_name = "DIR", default_value = folders::ROOT)]
    pub namespaces: PathBuf,
    /// Where the CNI plugins are that take back what they gave
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_values = BIN_DIRS)]
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// Of which kind the dead pool's engine was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Where {
    /// Docker or podman.
    Containers,
    /// None: namespaces that nspool made.
    Native,
}

#[derive(Debug, Serialize)]
struct View {
    pool: String,
    engine: String,
    dry_run: bool,
    /// Or would be, in a dry run.
    removed: Vec<String>,
    left: Vec<LeftView>,
}

#[derive(Debug, Serialize)]
struct LeftView {
    name: String,
    container_id: String,
    /// Who is inside, or why it could not be removed.
    why: Vec<String>,
}

/// Runs it.
pub async fn run(globals: &Globals, args: Purge) -> anyhow::Result<ExitCode> {
    let mut kernel = host::kernel()?;
    let mut mounter = None;
    let wanted = config::Engine { endpoint: args.engine_endpoint.clone(), ..config::Engine::default() };
    // As the daemon decides: an engine that is away may have functions in the pool's namespaces, whose network this would take.
    let traces = discover::traces(&wanted, Path::new("/"), |name| std::env::var(name).ok());
    let traces = traces.map_err(|error| Failure::new(exit::USAGE, error.to_string()))?;
    let folder = args.namespaces.join(&args.pool);
    // Links are the pool's, whatever its engine: those of one that is on a container engine are not for the native one to take.
    let has_links = args.engine != Some(Where::Native) || traces.is_none() || folder.exists();
    host::nobody_runs(&args.pool)?;
    let (engine, info): (Arc<dyn Engine>, EngineInfo) = match args.engine {
        Some(Where::Native) => native(&args, &mut kernel, &mut mounter).await?,
        None if traces.is_none() => native(&args, &mut kernel, &mut mounter).await?,
        Some(Where::Containers) | None => {
            let (docker, info) = host::engine(args.engine_endpoint.as_deref()).await?;
            (docker, info)
        }
    };
    let lock = host::lock(&info, &args.pool)?;
    let engine = Paced::new(
        engine,
        &no_pace(),
        Deadlines::from_config(&Config::default().engine, &Config::default().placeholder),
        TaskTracker::new(),
    );
    let means = means(&args.pool, Arc::new(engine), kernel).await?;
    let mut view = purge(&args, &info, &means).await?;
    if mounter.is_some() && !args.dry_run {
        view.left.extend(unrecorded(&folder));
    }
    if view.left.is_empty() && !args.dry_run && has_links {
        view.left = links_left(&args.pool).await;
    }
    // Before its networks the pool itself: a buddy with somebody inside needs them.
    if view.left.is_empty() || args.dry_run {
        engines_networks(&args, &means, &mut view).await?;
    }
    if !args.dry_run {
        clear_folders(&args, mounter, &mut view).await;
    }
    globals.out().print(&view, table)?;
    if view.left.is_empty() && !args.dry_run {
        // The pool is gone, and its lock with it.
        lock.discard()?;
    }
    Ok(if view.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

async fn native(
    args: &Purge,
    kernel: &mut Arc<dyn Kernel>,
    mounter: &mut Option<Arc<dyn Mounter>>,
) -> Result<(Arc<dyn Engine>, EngineInfo), Failure> {
    let cni = Cni { bin_dirs: args.cni_bin_dirs.clone(), ..Cni::default() };
    let native = host::native(&args.namespaces, &args.pool, cni, Arc::clone(kernel)).await?;
    (*kernel, *mounter) = (native.kernel, Some(native.mounter));
    Ok((native.engine, native.info))
}

/// What is below the pool's folder and not the native engine's: a container's namespaces, whose pool is on another engine.
fn unrecorded(folder: &Path) -> Vec<LeftView> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let others = entries.filter(|entry| !entry.path().join(folders::RECORD).exists());
    let why = "not the native engine's: purge the pool on its container engine";
    others
        .map(|entry| LeftView { name: entry.path().display().to_string(), container_id: String::new(), why: vec![why.to_owned()] })
        .collect()
}

/// Folders by which containers' namespaces were joined go with them; the native engine's have gone, and leave an empty one.
async fn clear_folders(args: &Purge, mounter: Option<Arc<dyn Mounter>>, view: &mut View) {
    let cleared = async {
        let mounter = match mounter {
            Some(mounter) => mounter,
            None if !args.namespaces.join(&args.pool).exists() => return anyhow::Ok(()),
            None => {
                let mason: Arc<dyn Mounter> = Arc::new(Mason::start(&args.namespaces, None)?);
                let leftovers = Leftovers::beside_containers(args.namespaces.clone(), args.pool.clone(), Arc::clone(&mason));
                let alone = leftovers.sweep(&view.left.iter().map(|left| left.name.clone()).collect()).await;
                view.left.extend(alone?.into_iter().map(|(name, why)| LeftView { name, container_id: String::new(), why: vec![why] }));
                mason
            }
        };
        Ok(mounter.tidy(&args.pool).await?)
    };
    if let Err(error) = cleared.await {
        let name = args.namespaces.join(&args.pool).display().to_string();
        view.left.push(LeftView { name, container_id: String::new(), why: vec![error.to_string()] });
    }
}

fn no_pace() -> config::Pacer {
    config::Pacer { rate: None, ..config::Pacer::default() }
}

/// What to look and remove with, of whatever the dead pool was made.
pub(super) async fn means(pool: &str, engine: Arc<dyn Engine>, kernel: Arc<dyn Kernel>) -> Result<Means, Failure> {
    let mut breed = Breed {
        pool: pool.to_owned(),
        instance: String::new(),
        networks: Vec::new(),
        namespaces: vec![NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Pid],
        command: Vec::new(),
        user: String::new(),
        memory: 0,
        pids: 0,
        may_fork: false,
        native: false,
        folders: None,
    };
    let info = engine.info().await.map_err(|error| host::engine_failure("the engine does not answer", &error))?;
    if info.kind == EngineKind::Native {
        breed.namespaces = NamespaceKind::JOINABLE.to_vec();
    }
    let list = engine.list().await.map_err(|error| host::engine_failure("the engine's containers cannot be listed", &error))?;
    let mut ours = list.iter().filter(|found| breed.owned(&found.name, &found.labels).is_some());
    if info.kind != EngineKind::Native && ours.any(|found| !found.labels.contains_key(IMAGE_LABEL)) {
        // A placeholder that is not our own may have children, which are no joiners though they are in its pid namespace.
        breed.may_fork = true;
        breed.namespaces.retain(|kind| *kind != NamespaceKind::Pid);
    }
    let looks = Looks::new(Arc::clone(&engine), Arc::clone(&kernel), breed.namespaces.clone(), breed.may_fork);
    Ok(Means { engine, kernel, looks: Arc::new(looks), breed: Arc::new(breed) })
}

async fn purge(args: &Purge, info: &EngineInfo, means: &Means) -> Result<View, Failure> {
    let failed = |error| host::engine_failure("the engine's containers cannot be listed", &error);
    let mut view =
        View { pool: args.pool.clone(), engine: info.endpoint.clone(), dry_run: args.dry_run, removed: Vec::new(), left: Vec::new() };
    if args.dry_run {
        for found in recovery::look(means).await.map_err(failed)? {
            if found.inside.is_empty() {
                view.removed.push(found.name);
            } else {
                view.left.push(LeftView { name: found.name, container_id: found.id.to_string(), why: found.inside });
            }
        }
    } else {
        let recovered = recovery::recover(means, |_, _| false, None).await.map_err(failed)?;
        view.removed = recovered.removed;
        let left = recovered.occupied.into_iter();
        view.left = left.map(|buddy| LeftView { name: buddy.name, container_id: buddy.id.to_string(), why: buddy.joiners }).collect();
    }
    view.removed.sort();
    view.left.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(view)
}

/// What the pool's managed networks put on the host goes, too; answers what does not.
async fn links_left(pool: &str) -> Vec<LeftView> {
    let host = Host { names: Names::of(pool), networks: Vec::new(), forwarding: Forwarding::Told };
    let failures = match Worker::start(host, Limits::default()) {
        Ok((worker, furnisher)) => {
            let failures = furnisher.tear_down().await.unwrap_or_else(|error| vec![error]);
            worker.stop().await;
            failures
        }
        Err(error) => vec![error],
    };
    let left = |error| LeftView { name: "networks on the host".to_owned(), container_id: String::new(), why: vec![with_causes(error)] };
    failures.iter().map(|error| left(error)).collect()
}

/// Those that the engine made for the pool.
async fn engines_networks(args: &Purge, means: &Means, view: &mut View) -> Result<(), Failure> {
    let networks = EngineNetworks::new(Arc::clone(&means.engine), &args.pool, Vec::new(), Box::new(|_| true));
    let removed = networks.remove(args.dry_run).await;
    let removed = removed.map_err(|error| host::engine_failure("the engine's networks cannot be listed", &error))?;
    view.removed.extend(removed.removed.into_iter().map(|name| format!("network {name}")));
    let left = removed.left.into_iter();
    view.left.extend(left.map(|left| LeftView { name: format!("network {}", left.network), container_id: String::new(), why: left.why }));
    Ok(())
}

fn table(view: &View) -> String {
    if view.removed.is_empty() && view.left.is_empty() {
        return format!("nothing of a pool {:?} is on the engine at {}\n", view.pool, view.engine);
    }
    let done = if view.dry_run { "would be removed" } else { "removed" };
    let removed = view.removed.iter().map(|name| vec![name.clone(), done.to_owned(), String::new()]);
    let left = view.left.iter().map(|left| vec![left.name.clone(), "left".to_owned(), left.why.join(", ")]);
    output::table(&["buddy", "outcome", "who is inside"], removed.chain(left).collect())
}
