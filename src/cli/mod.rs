//! The command line: what can be typed, and which file carries it out.
//!
//! Data goes to stdout, words for people to stderr. Every command returns an exit code after sysexits ([`exit`]); nothing here ends the
//! process. The commands know the daemon only through [`crate::client`]; `serve` is a daemon, `demo` and `bench` run one of their own ([`stage`]),
//! and `purge` stands in for one that is dead.

mod admin;
mod args;
mod audit;
pub mod bench;
mod child;
mod config;
pub mod demo;
mod doctor;
mod engine_client;
mod exec;
pub mod exit;
mod helper;
mod host;
mod image;
mod image_build;
mod image_push;
mod image_room;
mod image_store;
mod inspect;
mod lease;
mod meta;
mod output;
mod progress;
pub mod purge;
mod restart_plan;
mod run;
mod serve;
mod show;
mod signals;
mod stage;
mod stats;
mod views;
mod watch;
mod whois;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::runtime::Builder;

pub use args::duration;
pub use output::{Format, Output};

use crate::client::Client;

/// nspool keeps network namespaces ready, so that function containers start faster.
#[derive(Debug, Parser)]
#[command(
    name = "nspool",
    version,
    about = "Keeps network namespaces ready for function containers",
    long_about = "Keeps network namespaces ready for function containers.\n\n\
                  A container that joins a ready namespace starts two to three times faster than one that gets its own. `nspool serve` is the \
                  daemon that keeps them ready; the other commands talk to it over its Unix socket.",
    after_help = EXIT_CODES,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 good; 1 it ran, but found something; 64 usage; 69 daemon or engine not reachable; 70 a bug in nspool; \
                          75 try again later; 77 not allowed; 78 mistakes in the configuration.";

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub struct Globals {
    /// The daemon's socket
    #[arg(long, global = true, env = "NSPOOL_ENDPOINT", default_value = crate::client::DEFAULT_ENDPOINT, value_name = "unix:PATH", help_heading = "Global options")]
    pub endpoint: String,
    /// A table for people, or JSON for programs
    #[arg(long, short = 'o', global = true, env = "NSPOOL_OUTPUT", value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub output: Format,
    /// How long the daemon may take to answer a call [default: 10s]
    #[arg(long, global = true, value_parser = duration, value_name = "DURATION", help_heading = "Global options")]
    pub timeout: Option<Duration>,
}

impl Globals {
    /// A client of the daemon at `--endpoint`; connects when it is used.
    pub fn client(&self) -> anyhow::Result<Client> {
        let client = Client::connect(&self.endpoint)?;
        Ok(match self.timeout {
            Some(timeout) => client.with_timeout(timeout),
            None => client,
        })
    }

    /// Where results go.
    #[must_use]
    pub fn out(&self) -> Output {
        Output::new(self.output)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::Serve),
    /// Take a namespace and print how to join it
    Allocate(lease::Allocate),
    /// Move the expiry of a lease with a ttl
    Renew(lease::Renew),
    /// Give a namespace back
    Release(lease::Release),
    /// List all leases of an owner, with their tokens
    Resume(lease::Resume),
    /// Run one container in a pooled namespace
    Run(run::Run),
    /// Run a plain program in a pooled namespace, without a container
    Exec(exec::Exec),
    /// Show how many slots are in which state
    Usage(show::UsageArgs),
    /// List the slots
    Slots(show::Slots),
    /// List the leases
    Leases(show::Leases),
    /// Follow what happens in the pool
    Watch(watch::Watch),
    /// Say which slot, lease and owner a container, process or address belongs to
    Whois(whois::Whois),
    /// Change how many slots are kept ready, and how many there may be
    Resize(admin::Resize),
    /// Hand out nothing more
    Cordon(admin::Cordon),
    /// Hand out again
    Uncordon(admin::Uncordon),
    /// Cordon, and wait until nothing is leased
    Drain(admin::Drain),
    /// Replace the buddy of a slot
    Recycle(admin::Recycle),
    /// Compare slots, ledger, engine and kernel, and say what does not agree
    Audit(audit::AuditArgs),
    /// Show what is different in a slot's namespaces from when it was ready
    Inspect(inspect::InspectArgs),
    /// Have images here before they are needed, fetched once for all who ask
    Image(image::ImageArgs),
    /// Say what a restart of the daemon would do to slots and leases
    RestartPlan(restart_plan::RestartPlan),
    /// Remove what a dead pool left behind
    Purge(purge::Purge),
    /// Say what this host lacks for nspool to work well, and what grants it
    Doctor(doctor::Doctor),
    /// Start functions in pooled namespaces beside functions on the bridge
    Demo(demo::Demo),
    /// Measure pooled starts against plain ones on this engine
    Bench(bench::Bench),
    /// Check or show the configuration
    Config(config::ConfigArgs),
    /// Print a completion script for a shell
    Completions(meta::Completions),
    /// Print the manual page, or write all of them to a directory
    Man(meta::Man),
    /// A process of nspool's own
    #[command(hide = true)]
    Helper(helper::HelperArgs),
}

/// Parses, carries out, and says what the process should exit with.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return exit::of_usage(&error),
    };
    exit::of_result(execute(cli))
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { globals, command } = cli;
    // These give rights away, or go into other namespaces, in a process with one thread.
    if let Command::Serve(args) = command {
        return serve::run(args);
    }
    if let Command::Helper(args) = &command {
        return helper::run(args);
    }
    // A client has one connection; the others are, or start, a daemon.
    let one_thread = !matches!(command, Command::Bench(_) | Command::Demo(_));
    let mut builder = if one_thread { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let runtime = builder.enable_all().build()?;
    runtime.block_on(dispatch(globals, command))
}

async fn dispatch(globals: Globals, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(_) | Command::Helper(_) => unreachable!("they have runtimes of their own"),
        Command::Allocate(args) => lease::allocate(&globals, args).await,
        Command::Renew(args) => lease::renew(&globals, args).await,
        Command::Release(args) => lease::release(&globals, args).await,
        Command::Resume(args) => lease::resume(&globals, args).await,
        Command::Run(args) => Box::pin(run::run(&globals, args)).await,
        Command::Exec(args) => Box::pin(exec::exec(&globals, args)).await,
        Command::Usage(_) => show::usage(&globals).await,
        Command::Slots(args) => show::slots(&globals, args).await,
        Command::Leases(args) => show::leases(&globals, args).await,
        Command::Watch(args) => watch::watch(&globals, args).await,
        Command::Whois(args) => whois::whois(&globals, args).await,
        Command::Resize(args) => admin::resize(&globals, args).await,
        Command::Cordon(args) => admin::cordon(&globals, args).await,
        Command::Uncordon(_) => admin::uncordon(&globals).await,
        Command::Drain(_) => admin::drain(&globals).await,
        Command::Recycle(args) => admin::recycle(&globals, args).await,
        Command::Audit(args) => audit::audit(&globals, args).await,
        Command::Inspect(args) => inspect::inspect(&globals, args).await,
        Command::Image(args) => image::run(&globals, args).await,
        Command::RestartPlan(args) => restart_plan::run(&globals, args).await,
        Command::Purge(args) => Box::pin(purge::run(&globals, args)).await,
        Command::Doctor(args) => Box::pin(doctor::doctor(&globals, args)).await,
        Command::Demo(args) => Box::pin(demo::run(&globals, args)).await,
        Command::Bench(args) => Box::pin(bench::run(&globals, args)).await,
        Command::Config(args) => config::run(&globals, args),
        Command::Completions(args) => meta::completions(&args),
        Command::Man(args) => meta::man(&args),
    }
}
