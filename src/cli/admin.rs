//! `resize`, `cordon`, `uncordon`, `drain`, `recycle`: what an operator does to the pool.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Globals;
use super::exit::{self, Failure};
use super::output::{pairs, say};
use super::progress::spinner;

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nspool resize --ready 16 --max 128\n\nIt holds over restarts, until the configuration has other sizes than now."
)]
pub(super) struct Resize {
    /// Slots kept ready
    #[arg(long, required_unless_present = "max")]
    ready: Option<u32>,
    /// Buddies that may exist at once
    #[arg(long)]
    max: Option<u32>,
}

#[derive(Debug, Serialize)]
struct ResizeView {
    ready: u32,
    max: u32,
}

pub(super) async fn resize(globals: &Globals, args: Resize) -> anyhow::Result<ExitCode> {
    let response = globals.client()?.resize(args.ready, args.max).await?;
    let view = ResizeView { ready: response.ready, max: response.max };
    globals.out().print(&view, |view| pairs(vec![("ready", view.ready.to_string()), ("max", view.max.to_string())]))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nspool cordon --reason 'kernel update'\n\nFilling and releases go on; `nspool uncordon` undoes it.")]
pub(super) struct Cordon {
    /// Goes to the log
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

#[derive(Debug, Serialize)]
struct CordonView {
    cordoned: bool,
}

pub(super) async fn cordon(globals: &Globals, args: Cordon) -> anyhow::Result<ExitCode> {
    globals.client()?.cordon(&args.reason).await?;
    globals.out().print(&CordonView { cordoned: true }, |_| "cordoned".to_owned())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nspool uncordon\n\nUndoes a drain as well.")]
pub(super) struct Uncordon {}

pub(super) async fn uncordon(globals: &Globals) -> anyhow::Result<ExitCode> {
    globals.client()?.uncordon().await?;
    globals.out().print(&CordonView { cordoned: false }, |_| "uncordoned".to_owned())?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  nspool drain --timeout 5m && systemctl stop nspool

Here --timeout says how long to wait until nothing is leased; without it, 60s.
It ends no container. Exit code 75: the time is up and something is still leased; the pool stays cordoned.")]
pub(super) struct Drain {}

#[derive(Debug, Serialize)]
struct DrainView {
    drained: bool,
    timed_out: bool,
    leased: u32,
    waiting: u32,
}

pub(super) async fn drain(globals: &Globals) -> anyhow::Result<ExitCode> {
    let mut answers = globals.client()?.drain(globals.timeout).await?;
    let bar = spinner();
    let mut last = None;
    while let Some(answer) = answers.next().await? {
        bar.set_message(format!("draining: {} leased", answer.leased));
        last = Some(answer);
    }
    bar.finish_and_clear();
    let Some(answer) = last else {
        return Err(Failure::new(exit::UNAVAILABLE, "Drain: the daemon ended the stream without an answer; is it stopping?").into());
    };
    let view = DrainView { drained: answer.drained, timed_out: answer.timed_out, leased: answer.leased, waiting: answer.waiting };
    globals.out().print(&view, |view| if view.drained { "drained".to_owned() } else { format!("not drained: {} leased", view.leased) })?;
    if view.drained {
        return Ok(ExitCode::SUCCESS);
    }
    say("nspool: the pool stays cordoned; `nspool leases` lists what is left, `nspool uncordon` hands out again");
    Ok(ExitCode::from(exit::TEMPFAIL))
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool recycle 7            # at once if it is ready, at its release if it is leased
  nspool recycle 7 --force    # takes a leased one from its holder, whose lease is lost")]
pub(super) struct Recycle {
    /// The slot's number, as in `nspool slots`
    slot: u32,
    /// Also when it is leased
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Serialize)]
struct RecycleView {
    slot: u32,
    state: String,
}

pub(super) async fn recycle(globals: &Globals, args: Recycle) -> anyhow::Result<ExitCode> {
    let state = globals.client()?.recycle(args.slot, args.force).await?;
    let view = RecycleView { slot: args.slot, state };
    globals.out().print(&view, |view| format!("slot {} was {}; its buddy will be replaced", view.slot, view.state))?;
    Ok(ExitCode::SUCCESS)
}
