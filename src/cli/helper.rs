//! `helper`: the two processes that the daemon starts for itself ([`crate::netns::helper`]), the one in which `doctor` tries things
//! ([`crate::netns::trial`]), and the one that becomes the program of `exec` ([`crate::netns::join`]). Nothing for people.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::netns::helper::{keeper, server};
use crate::netns::{join, trial};

use super::exec;

#[derive(Debug, Args)]
pub(super) struct HelperArgs {
    /// Which of them
    #[arg(value_parser = [keeper::KEEP, keeper::WORK, trial::ROLE, join::ROLE])]
    role: String,
    /// For one of them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub(super) fn run(args: &HelperArgs) -> anyhow::Result<ExitCode> {
    Ok(match args.role.as_str() {
        keeper::KEEP => keeper::keep(),
        trial::ROLE => trial::work(),
        join::ROLE => return Err(exec::not_joined(join::become_program(&args.words)).into()),
        _ => server::work(),
    })
}
