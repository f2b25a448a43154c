//! `demo`: starts functions in leased namespaces beside functions on the bridge, and prints both latencies and their ratio.

use std::process::ExitCode;

use clap::Args;

use super::Globals;
use super::exit::{self, Failure};

/// What the demonstration is told.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sudo nspool demo --starts 20\n\nIt runs a pool of its own and leaves nothing behind.")]
pub struct Demo {
    /// The engine's socket [default: found as `serve` finds it]
    #[arg(long, value_name = "unix://PATH")]
    pub engine_endpoint: Option<String>,
    /// Slots of the pool
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub ready: u32,
    /// Starts of each kind
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub starts: u32,
    /// Starts at once in the second round
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub concurrency: u32,
    /// The functions' image, which must be there [default: nspool's own placeholder]
    #[arg(long)]
    pub image: Option<String>,
}

/// Runs it.
pub async fn run(_globals: &Globals, _args: Demo) -> anyhow::Result<ExitCode> {
    Err(Failure::new(exit::SOFTWARE, "this build has no demonstration").into())
}
