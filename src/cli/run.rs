//! `run`: takes a namespace, starts one container in it with the engine's own client, shows its output, gives the namespace back.
//!
//! A first SIGINT or SIGTERM is handed on to the client, which hands it on to the container; a second one ends the client. Whenever it is not
//! certain that the container is gone, the release is doubtful, so that nobody gets that namespace again.

use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;

use super::child::{self, Who, give_back};
use super::signals::Signals;
use super::{Globals, args, engine_client};
use crate::client::Request;
use crate::proto;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool run busybox ip addr
  nspool run --wait 5s --tenant acme my-function:1.2 /bin/handler --once
  nspool run --engine-arg=--memory=64m --engine-arg=--read-only my-function:1.2

Exit code: that of the container, or as the engine's client says it (125 the engine refused, 126 and 127 the command could not run).")]
pub(super) struct Run {
    /// How long to wait for a slot
    #[arg(long, value_parser = args::duration, value_name = "DURATION", default_value = "10s")]
    wait: Duration,
    /// One of the pool's networks [default: any]
    #[arg(long, default_value = "", hide_default_value = true)]
    network: String,
    /// The agent's name
    #[arg(long, default_value = "nspool-run")]
    owner: String,
    /// Whom it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Keep stdin open
    #[arg(long, short)]
    interactive: bool,
    /// Another option for the engine's `run`; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    engine_arg: Vec<String>,
    /// The image to run
    image: String,
    /// What to run in it [default: the image's own]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(super) async fn run(globals: &Globals, args: Run) -> anyhow::Result<ExitCode> {
    // Before the lease is taken: from then on a signal must not end this without giving it back.
    let mut signals = Signals::new()?;
    let client = globals.client()?;
    let request = Request::new().wait(args.wait).network(&args.network).owner(&args.owner).tenant(&args.tenant);
    let mut lease = child::allocate(&client, request, &mut signals).await?;
    let engine = lease.engine.clone().unwrap_or_default();
    let mut command = match engine_client::command(&engine) {
        Ok(command) => command,
        Err(failure) => {
            lease.finished();
            give_back(lease).await;
            return Err(failure.into());
        }
    };
    command.args(run_arguments(&lease, &args));
    command.stdin(if args.interactive { Stdio::inherit() } else { Stdio::null() });
    if !args.interactive {
        // In a group of its own it gets only the signals that are handed on, not a second copy from the terminal.
        command.process_group(0);
    }
    let who = Who {
        name: "the engine's client",
        at_once: "ending the engine's client; the container may go on",
        shares_our_terminal: args.interactive,
    };
    let status = match command.spawn() {
        Ok(client) => child::supervise(client, &mut signals, who).await?,
        Err(error) => {
            lease.finished();
            give_back(lease).await;
            return Err(engine_client::not_started(&engine, &error).into());
        }
    };
    if is_certain(status) {
        lease.finished();
    }
    give_back(lease).await;
    client.close(Duration::from_secs(5)).await;
    Ok(child::exit_code(status))
}

/// The daemon says in `host_config` what goes with a lease; this is the same in the words of the client's options.
fn run_arguments(lease: &proto::Lease, args: &Run) -> Vec<String> {
    let create: serde_json::Value = serde_json::from_str(&lease.host_config).unwrap_or_default();
    let host = &create["HostConfig"];
    let mut words = vec!["run".to_owned(), "--rm".into(), "--network".into(), lease.network_mode.clone()];
    words.extend(["--label".into(), format!("nspool.namespace_id={}", lease.namespace_id)]);
    let strings = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let mut dropped = strings(&host["CapDrop"]);
    if !dropped.iter().any(|capability| capability.trim_start_matches("CAP_") == "NET_RAW" || capability == "ALL") {
        dropped.push("NET_RAW".into());
    }
    words.extend(dropped.into_iter().flat_map(|capability| ["--cap-drop".into(), capability]));
    words.extend(strings(&host["Binds"]).into_iter().flat_map(|bind| ["--volume".into(), bind]));
    for (option, mode) in [("--ipc", &host["IpcMode"]), ("--pid", &host["PidMode"])] {
        words.extend(mode.as_str().filter(|mode| !mode.is_empty()).into_iter().flat_map(|mode| [option.to_owned(), mode.to_owned()]));
    }
    if args.interactive {
        words.push("--interactive".into());
    }
    words.extend(args.engine_arg.iter().cloned());
    words.push(args.image.clone());
    words.extend(args.command.iter().cloned());
    words
}

/// `run --rm` returns after its container is removed, unless the engine failed (125) or the client itself was ended.
fn is_certain(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| code != 125)
}
