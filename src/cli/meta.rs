//! `completions` and `man`: made from the command line's own description.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};

use super::Cli;
use super::output::{say, write_out};

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nspool completions bash > /etc/bash_completion.d/nspool")]
pub(super) struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

pub(super) fn completions(args: &Completions) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nspool", &mut script);
    write_out(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nspool man | man -l -\n  nspool man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// Write a page for each command there; without it, the first page goes to stdout
    dir: Option<PathBuf>,
}

pub(super) fn man(args: &Man) -> anyhow::Result<ExitCode> {
    let command = Cli::command();
    match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
            clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            say(&format!("nspool: manual pages written to {}", dir.display()));
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            write_out(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
