//! `helper`: the two processes that the daemon starts for itself ([`crate::netns::helper`]), the one in which `doctor` tries things
//! ([`crate::netns::trial`]), the one that becomes the program of `exec` ([`crate::netns::join`]), the one that starts the first process of a pid
//! namespace ([`crate::netns::folders::first`]), and the one that makes user namespaces ([`crate::netns::folders::user`]). Nothing for people.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use crate::netns::folders::{first, user};
use crate::netns::helper::{keeper, server};
use crate::netns::{join, trial};

use super::exec;

#[derive(Debug, Args)]
pub(super) struct HelperArgs {
    /// Which of them
    #[arg(value_parser = [keeper::KEEP, keeper::WORK, trial::ROLE, join::ROLE, first::ROLE, user::ROLE])]
    role: String,
    /// For one of them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

pub(super) fn run(args: &HelperArgs) -> anyhow::Result<ExitCode> {
    Ok(match args.role.as_str() {
        keeper::KEEP => keeper::keep(),
        trial::ROLE => trial::work(),
        first::ROLE => first::work(),
        user::ROLE => user::work(),
        join::ROLE => return Err(exec::not_joined(join::become_program(&args.words)).into()),
        _ => server::work(),
    })
}
