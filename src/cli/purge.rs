//! `purge`: removes what a dead pool left behind.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Globals;
use super::exit::{self, Failure};

/// What the purge is told.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo nspool purge --dry-run
  sudo nspool purge --pool default

Touches only containers with nspool's labels, of a pool that no daemon is alive for, and that nobody is in.
Exit code 1: something was left because somebody is in it.")]
pub struct Purge {
    /// The pool's name
    #[arg(long, default_value = "default")]
    pub pool: String,
    /// The engine's socket [default: found as `serve` finds it]
    #[arg(long, value_name = "unix://PATH")]
    pub engine_endpoint: Option<String>,
    /// Where the pool kept its files [default: /run/nspool/<pool>]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs it.
pub async fn run(_globals: &Globals, _args: Purge) -> anyhow::Result<ExitCode> {
    Err(Failure::new(exit::SOFTWARE, "this build cannot purge").into())
}
