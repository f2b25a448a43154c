//! `bench`: measures starts in leased namespaces against starts on the bridge, interleaved, on the user's own engine.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Globals;
use super::exit::{self, Failure};

/// What the measurement is told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sudo nspool bench --concurrency 1,4,10,50 --rounds 3 --out ./bench\n\nWrites a table to stdout, and a CSV file and plots (SVG) to --out."
)]
pub struct Bench {
    /// The engine's socket [default: found as `serve` finds it]
    #[arg(long, value_name = "unix://PATH")]
    pub engine_endpoint: Option<String>,
    /// Starts at once, one measurement each
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8,16,25,50", value_name = "N,N,…", value_parser = clap::value_parser!(u32).range(1..=500))]
    pub concurrency: Vec<u32>,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Starts per measurement
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub starts: u32,
    /// The functions' image, which must be there [default: nspool's own placeholder]
    #[arg(long)]
    pub image: Option<String>,
    /// The network of the plain starts, and of the pool
    #[arg(long, default_value = "bridge")]
    pub network: String,
    /// Where the CSV file and the plots go
    #[arg(long, default_value = "nspool-bench", value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs it.
pub async fn run(_globals: &Globals, _args: Bench) -> anyhow::Result<ExitCode> {
    Err(Failure::new(exit::SOFTWARE, "this build has no benchmarks").into())
}
