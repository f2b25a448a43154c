//! `helper`: the two processes that the daemon starts for itself ([`crate::netns::helper`]). Nothing for people.

use std::process::ExitCode;

use clap::Args;

use crate::netns::helper::{keeper, server};

#[derive(Debug, Args)]
pub(super) struct HelperArgs {
    /// Which of them
    #[arg(value_parser = [keeper::KEEP, keeper::WORK])]
    role: String,
}

pub(super) fn run(args: &HelperArgs) -> ExitCode {
    if args.role == keeper::KEEP { keeper::keep() } else { server::work() }
}
