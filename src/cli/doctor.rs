//! `doctor`: what this host lacks for nspool to work well, and what grants it.
//!
//! Each check is a small function from what it reads to a [`finding::Finding`]; what it reads comes through [`host::Host`], so that a test gives it
//! the files of a host that is not well. Nothing is changed: what has to be tried is tried in namespaces of a process of its own
//! ([`crate::netns::trial`]), which go with it. Every check has its deadline; all run at once.
//!
//! What it deliberately does not know: how a slot is filled. That an engine answers, and the kernel can what it is asked for, is all that is told;
//! `nspool audit` and `nspool usage` say what becomes of it.

mod capabilities;
mod clock;
mod cni;
mod configuration;
mod daemon;
mod engine;
mod finding;
mod folders;
mod host;
mod kernel;
mod limits;
mod trials;
mod units;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use self::configuration::Configured;
use self::finding::{Check, Finding};
use self::host::{Host, within};
use self::view::Report;
use super::{Globals, exit};
use crate::config::Config;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo nspool doctor
  nspool doctor --config ./nspool.toml
  nspool doctor -o json | jq -r '.findings[] | select(.status == \"missing\") | .remedies[]'

Reads the configuration that `serve` would read, and looks at the engine, the kernel, capabilities,
limits, folders, CNI plugins, clocks and the daemon. Changes nothing; the kernel may load a module
for what is tried in a namespace of its own. As root it sees all; anybody else is told what cannot be seen.
note: worth knowing. warning: nspool works, but less well. missing: it does not work without.
Exit code 1: something is missing. 78: the configuration has mistakes; the rest is about defaults.")]
pub(super) struct Doctor {
    /// The configuration file [default: /etc/nspool/nspool.toml, if it exists]
    #[arg(long, env = "NSPOOL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn doctor(globals: &Globals, args: Doctor) -> anyhow::Result<ExitCode> {
    let host = Host::real(globals.timeout.unwrap_or(host::LIMIT));
    let asked = host.clone();
    let configured = within(host.limit, move || configuration::check(&asked, args.config)).await.unwrap_or_else(|| Configured {
        config: Config::default(),
        has_mistakes: false,
        findings: vec![late(&host)],
    });
    let findings = look(host.clone(), configured.config, &globals.endpoint).await;
    let report = Report::new(host.uid, named("configuration", configured.findings).into_iter().chain(findings).collect());
    globals.out().print(&report, Report::text)?;
    Ok(match (configured.has_mistakes, report.is_good()) {
        (true, _) => ExitCode::from(exit::CONFIG),
        (false, false) => ExitCode::from(exit::FOUND),
        (false, true) => ExitCode::SUCCESS,
    })
}

/// All groups but the configuration, at once.
async fn look(host: Host, config: Config, endpoint: &str) -> Vec<Finding> {
    let about = Arc::new((host, config));
    let (host, config) = (&about.0, &about.1);
    let (engine, kernel, trials, capabilities, limits, folders, cni, clock, daemon) = tokio::join!(
        engine::check(host, config),
        read(&about, kernel::check),
        trials::check(host, config),
        read(&about, capabilities::check),
        read(&about, limits::check),
        read(&about, folders::check),
        read(&about, cni::check),
        clock::check(),
        daemon::check(host, config, endpoint),
    );
    let groups = [
        ("engine", engine),
        ("kernel", [kernel, trials].concat()),
        ("capabilities", capabilities),
        ("limits", limits),
        ("folders", folders),
        ("cni", cni),
        ("clock", clock),
        ("daemon", daemon),
    ];
    groups.into_iter().flat_map(|(area, findings)| named(area, findings)).collect()
}

/// A group that only reads, in a thread of its own: a file of a disk that hangs keeps nobody else.
async fn read(about: &Arc<(Host, Config)>, check: fn(&Host, &Config) -> Vec<Finding>) -> Vec<Finding> {
    let asked = Arc::clone(about);
    let found = within(about.0.limit, move || check(&asked.0, &asked.1)).await;
    found.unwrap_or_else(|| vec![late(&about.0)])
}

fn late(host: &Host) -> Finding {
    let check = Check::of("late", "what cannot be read in time cannot be judged");
    check.warning(format!("nothing could be read within {:?}", host.limit)).remedy("dmesg | tail")
}

fn named(area: &'static str, findings: Vec<Finding>) -> Vec<Finding> {
    findings.into_iter().map(|finding| Finding { area, ..finding }).collect()
}
