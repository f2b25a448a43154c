//! `config check`, `config show`, `config sample`: the configuration, without a daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::Globals;
use super::output::{say, table, write_out};
use crate::config::keys::KEYS;
use crate::config::raw::{self, Loaded, Sources};
use crate::config::sample::sample;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Report all mistakes in a file, the variables and their rules
    #[command(after_help = "Examples:\n  nspool config check\n  nspool config check ./nspool.toml\n\nExit code 78: there are mistakes.")]
    Check {
        /// The file [default: /etc/nspool/nspool.toml, if it exists]
        file: Option<PathBuf>,
    },
    /// Show the value of every key, and where it is from
    #[command(after_help = "Examples:\n  nspool config show\n  nspool config show ./nspool.toml --changed")]
    Show {
        /// The file [default: /etc/nspool/nspool.toml, if it exists]
        #[arg(env = "NSPOOL_CONFIG")]
        file: Option<PathBuf>,
        /// Only what is not the default
        #[arg(long)]
        changed: bool,
    },
    /// Print a commented file with every key
    #[command(after_help = "Example:\n  nspool config sample > /etc/nspool/nspool.toml")]
    Sample,
}

pub(super) fn run(globals: &Globals, args: ConfigArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ConfigCommand::Check { file } => {
            let loaded = load(file)?;
            let what = loaded.file.as_ref().map_or_else(|| "defaults and variables".to_owned(), |file| file.display().to_string());
            say(&format!("nspool: {what}: no mistakes"));
        }
        ConfigCommand::Show { file, changed } => show(globals, &load(file)?, changed)?,
        ConfigCommand::Sample => write_out(&sample())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn load(file: Option<PathBuf>) -> anyhow::Result<Loaded> {
    let loaded = raw::load(&Sources::from_process(file, Vec::new()))?;
    for warning in &loaded.warnings {
        say(&format!("nspool: warning: {warning}"));
    }
    Ok(loaded)
}

#[derive(Debug, Serialize)]
struct KeyView {
    /// As in TOML.
    value: String,
    from: String,
    live: bool,
}

fn show(globals: &Globals, loaded: &Loaded, changed: bool) -> anyhow::Result<()> {
    let keys = KEYS.iter().map(|key| (key.path.to_owned(), key.value_toml(&loaded.config), key.live));
    let managed = loaded.config.managed.iter().flat_map(|managed| {
        let written = managed.written();
        written.into_iter().map(|(key, value)| (managed.path(key), value, false))
    });
    let plugged = loaded.config.cni_networks.iter().flat_map(|cni| {
        let written = cni.written();
        written.into_iter().map(|(key, value)| (cni.path(key), value, false))
    });
    let shown: Vec<(String, KeyView)> = keys
        .chain(managed)
        .chain(plugged)
        .map(|(path, value, live)| (loaded.origin(&path), path, value, live))
        .filter(|(from, ..)| !changed || **from != raw::Origin::Default)
        .map(|(from, path, value, live)| (path, KeyView { value, from: from.to_string(), live }))
        .collect();
    let view: BTreeMap<&str, &KeyView> = shown.iter().map(|(path, view)| (path.as_str(), view)).collect();
    globals.out().print(&view, |_| {
        let row = |(path, view): &(String, KeyView)| vec![path.clone(), view.value.clone(), view.from.clone()];
        table(&["key", "value", "from"], shown.iter().map(row).collect())
    })
}
