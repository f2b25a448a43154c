//! `serve`: reads the configuration, says what is odd about it, and hands over to the daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::args::ConfigFlags;
use super::exit;
use crate::causes::with_causes;
use crate::config::raw::{self, Sources};
use crate::config::{Config, EngineChoice};
use crate::daemon::DaemonError;
use crate::engine::discover;
use crate::ledger::{Ledger, OpenError, boot_id};
use crate::lock::LockError;
use crate::netns::helper::{BeginError, HelperError};
use crate::process::{self, ProcessError};
use crate::telemetry;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool serve
  nspool serve --ready 16 --max 128 --networks bridge,functions
  nspool serve --config ./nspool.toml --listen unix:/tmp/nspool.sock --log-format json

Each flag goes before its variable (NSPOOL_POOL_READY), and that before the file.
SIGHUP reads the file again. SIGTERM or SIGINT stops within stop.timeout; a second one stops at once.
Exit code 1: a stop left buddies behind because somebody was in them, or a network that the engine made, as a container was on it.")]
pub(super) struct Serve {
    /// The configuration file; it must exist [default: /etc/nspool/nspool.toml, if it exists]
    #[arg(long, env = "NSPOOL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: ConfigFlags,
}

pub(super) fn run(args: Serve) -> anyhow::Result<ExitCode> {
    let mut sources = Sources::from_process(args.config, args.flags.0);
    let loaded = raw::load(&sources)?;
    let choice = choose(&loaded.config)?;
    let loaded = match &choice {
        Choice::Native { .. } => {
            sources.flags.push((ENGINE_KIND, EngineChoice::Native.word().to_owned()));
            raw::load(&sources).map_err(|mistakes| anyhow::Error::from(mistakes).context(choice.to_string()))?
        }
        Choice::Written | Choice::Containers { .. } => loaded,
    };
    // Before there is a second thread.
    let prepared = process::prepare(&loaded.config).map_err(failure)?;
    let log = telemetry::init(&loaded.config.log)?;
    match &loaded.file {
        Some(file) => tracing::info!(file = %file.display(), "configuration read"),
        None => tracing::info!(file = raw::DEFAULT_FILE, "no configuration file: defaults, variables and flags are in force"),
    }
    if !matches!(choice, Choice::Written) {
        tracing::info!("{choice}");
    }
    say_warnings(&loaded.warnings);
    let reload = move || {
        let loaded = raw::load(&sources)?;
        say_warnings(&loaded.warnings);
        Ok(loaded.config)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(Box::pin(start(loaded.config, prepared, log, reload)))
}

/// The key that says which engine it is to be.
const ENGINE_KIND: &str = "engine.kind";

/// What `kind = "auto"` comes to here.
#[derive(Debug, thiserror::Error)]
enum Choice {
    /// It is not auto.
    #[error("as configured")]
    Written,
    /// Because of this.
    #[error("a container engine is wanted: {why}")]
    Containers { why: String },
    /// Because of this.
    #[error("namespaces are made without a container engine (engine.kind = \"native\"): {why}")]
    Native { why: String },
}

/// What a predecessor's slots are on stays, for as long as there are any; else what the host looks like decides.
fn choose(config: &Config) -> anyhow::Result<Choice> {
    if config.engine.kind != EngineChoice::Auto {
        return Ok(Choice::Written);
    }
    // A ledger that cannot be read now is told of when it is opened.
    let kept = boot_id().and_then(|boot| Ledger::peek(&config.state.dir, &boot)).ok().flatten();
    let kept = kept.filter(|table| !table.buddies.is_empty() || !table.leases.is_empty()).and_then(|table| table.began);
    if let Some(began) = kept {
        let why = "slots are kept that a daemon before this one had there".to_owned();
        return Ok(if began.engine == EngineChoice::Native.word() { Choice::Native { why } } else { Choice::Containers { why } });
    }
    let traces = discover::traces(&config.engine, Path::new("/"), |name| std::env::var(name).ok());
    Ok(match traces.map_err(|error| exit::Failure::new(exit::CONFIG, error.to_string()))? {
        Some(why) => Choice::Containers { why },
        None => Choice::Native { why: "nothing on this host speaks of Docker or podman".to_owned() },
    })
}

fn say_warnings(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// The one place where the command line meets the daemon.
async fn start(
    config: Config,
    prepared: process::Prepared,
    log: telemetry::LogHandle,
    reload: impl Fn() -> Result<Config, raw::Mistakes> + Send + Sync + 'static,
) -> anyhow::Result<ExitCode> {
    // The clone: what is said below is written too.
    let stopped = process::run(config, prepared, log.clone(), reload).await.map_err(failure)?;
    for left in &stopped.left {
        tracing::warn!(container = left.container, why = left.why, "left in the engine");
    }
    Ok(if stopped.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

/// The exit code tells systemd, or a script, what to do about it.
fn failure(error: ProcessError) -> anyhow::Error {
    let code = match &error {
        ProcessError::Kernel(_)
        | ProcessError::Helper(HelperError::Begin(BeginError::Kernel(_) | BeginError::Links(_) | BeginError::Folders(_))) => exit::NOPERM,
        ProcessError::Engine(_) | ProcessError::Group(_) | ProcessError::Systemd(_) => exit::CONFIG,
        ProcessError::InUse(_)
        | ProcessError::Ledger(OpenError::Taken(_))
        | ProcessError::Daemon(DaemonError::Lock(LockError::Taken { .. })) => exit::TEMPFAIL,
        ProcessError::Ledger(OpenError::Io { .. }) => exit::CONFIG,
        ProcessError::Listen { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => exit::NOPERM,
        ProcessError::Listen { .. } | ProcessError::Metrics(_) => exit::CONFIG,
        ProcessError::Placeholder(_)
        | ProcessError::Boot(_)
        | ProcessError::Signals(_)
        | ProcessError::Daemon(_)
        | ProcessError::Keeper(_)
        | ProcessError::Powers(_)
        | ProcessError::Helper(_)
        | ProcessError::HelperLost(_) => exit::SOFTWARE,
    };
    exit::Failure::new(code, with_causes(&error)).into()
}
