//! `exec`: takes a namespace, runs one plain program in it, gives the namespace back. What `run` is for containers, without an engine.
//!
//! The program is a child of this process, and joins by the lease's paths ([`join`]). The lease has a ttl, which is renewed as long as this process is there:
//! so it also stands over a restart of the daemon, and without this process it ends. The program ends with this process, whatever ends it.
//!
//! It knows its own child only. What that leaves behind in the namespace the daemon finds, and the slot waits for it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::thread::{CapabilitySet, capabilities};
use tokio::time::{Instant, interval_at};

use super::child::{self, Who, give_back};
use super::exit::{self, Failure};
use super::output::say;
use super::signals::Signals;
use super::{Globals, args};
use crate::client::{Client, Request};
use crate::netns::join::{self, JoinError, Place, StartError};
use crate::proto;

/// How long the lease stands when nobody renews it, as while this process is stopped.
const TTL: Duration = Duration::from_secs(120);
/// Several tries for each.
const RENEW_EVERY: Duration = Duration::from_secs(10);
const RIGHTS: &str = "It takes CAP_SYS_ADMIN: use `sudo nspool exec`, or give a service's unit AmbientCapabilities=CAP_SYS_ADMIN.";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool exec -- ip addr
  nspool exec --wait 5s --tenant acme ./handler --once
  nspool exec -- setpriv --pdeathsig keep --reuid 1000 --regid 1000 --clear-groups ./handler
  nspool exec --token \"$TOKEN\" -- sh -c 'ping -c 1 \"$PEER\"'    # in a lease that one has, which stays

The program's environment has NSPOOL_NAMESPACE_ID, NSPOOL_NETNS_PATH and NSPOOL_IP_ADDRESS. All else is as it is here: user, folder, files, and
/etc/resolv.conf. Exit code: that of the program, or 128 and the signal's number; 126 it cannot be started, 127 it is not found.")]
pub(super) struct Exec {
    /// How long to wait for a slot
    #[arg(long, value_parser = args::duration, value_name = "DURATION", default_value = "10s")]
    wait: Duration,
    /// One of the pool's networks [default: any]
    #[arg(long, default_value = "", hide_default_value = true)]
    network: String,
    /// The agent's name
    #[arg(long, default_value = "nspool-exec")]
    owner: String,
    /// Whom it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Of a lease that is there already; it is not released afterwards
    #[arg(long, env = "NSPOOL_TOKEN", hide_env_values = true, conflicts_with_all = ["wait", "network", "owner", "tenant"])]
    token: Option<String>,
    /// The program, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// What became of the program.
enum Outcome {
    NotStarted(Failure),
    Ended(ExitStatus),
    /// It may still be there.
    Unknown(io::Error),
}

pub(super) async fn exec(globals: &Globals, args: Exec) -> anyhow::Result<ExitCode> {
    // Before the lease is taken: from then on a signal must not end this without giving it back.
    let mut signals = Signals::new()?;
    let client = globals.client()?;
    may_join(&client).await?;
    let Some(token) = &args.token else { return in_a_new_lease(&client, &args, &mut signals).await };
    let lease = client.lease(token).await?;
    if lease.state() != proto::LeaseState::Active {
        let message = format!("the lease is lost: {}\n  Release it, and allocate another.", lease.cause);
        return Err(Failure::new(exit::FOUND, message).into());
    }
    result(run_in(&lease, &args.command, &mut signals).await)
}

/// Whoever lacks the right gets no lease, which would be used up for nothing. That there is no way to the daemon either is said first.
async fn may_join(client: &Client) -> anyhow::Result<()> {
    if capabilities(None).is_ok_and(|own| !own.effective.contains(CapabilitySet::SYS_ADMIN)) {
        client.info().await?;
        let message = format!("this user may not join namespaces\n  {RIGHTS}");
        return Err(Failure::new(exit::NOPERM, message).into());
    }
    Ok(())
}

async fn in_a_new_lease(client: &Client, args: &Exec, signals: &mut Signals) -> anyhow::Result<ExitCode> {
    let request = Request::new().wait(args.wait).network(&args.network).owner(&args.owner).tenant(&args.tenant).ttl(TTL);
    let mut lease = child::allocate(client, request, signals).await?;
    let outcome = tokio::select! {
        outcome = run_in(&lease, &args.command, signals) => outcome,
        never = keep(client, &lease.token) => match never {},
    };
    match outcome {
        Outcome::NotStarted(_) | Outcome::Ended(_) => lease.finished(),
        Outcome::Unknown(_) => {}
    }
    give_back(lease).await;
    client.close(Duration::from_secs(5)).await;
    result(outcome)
}

fn result(outcome: Outcome) -> anyhow::Result<ExitCode> {
    match outcome {
        Outcome::NotStarted(failure) => Err(failure.into()),
        Outcome::Ended(status) => Ok(child::exit_code(status)),
        Outcome::Unknown(error) => Err(anyhow::Error::new(error).context("whether the program has ended is not known")),
    }
}

/// Renews the lease, for as long as somebody waits for this. Whatever becomes of the lease, the program goes on where it is.
async fn keep(client: &Client, token: &str) -> Infallible {
    let mut times = interval_at(Instant::now() + RENEW_EVERY, RENEW_EVERY);
    loop {
        times.tick().await;
        // A daemon that is away may be back for the next.
        if let Err(error) = client.renew(token, None).await
            && matches!(error.reason(), "LEASE_LOST" | "LEASE_ENDED" | "UNKNOWN_TOKEN")
        {
            say(&format!("nspool: {error}; the program goes on"));
            return std::future::pending().await;
        }
    }
}

async fn run_in(lease: &proto::Lease, program: &[OsString], signals: &mut Signals) -> Outcome {
    let places = match places(lease) {
        Ok(places) => places,
        Err(failure) => return Outcome::NotStarted(failure),
    };
    let mut command = join::command(&places, program);
    surround(&mut command, lease);
    match join::start(&places, command).await {
        Ok(program) => {
            let who = Who { name: "the program", at_once: "ending the program", shares_our_terminal: true };
            child::supervise(program, signals, who).await.map_or_else(Outcome::Unknown, Outcome::Ended)
        }
        Err(StartError::Join(error)) => Outcome::NotStarted(not_joined(error)),
        Err(error @ StartError::Process(_)) => Outcome::NotStarted(Failure::new(exit::UNAVAILABLE, error.to_string())),
    }
}

fn places(lease: &proto::Lease) -> Result<Vec<Place>, Failure> {
    let unavailable = |message: String| Err(Failure::new(exit::UNAVAILABLE, message));
    if lease.oci_namespaces.is_empty() {
        let kind = lease.engine.as_ref().map_or("", |engine| &engine.kind);
        return unavailable(format!(
            "the namespaces of this pool ({kind}) have no paths by which a program could join\n  \
             `nspool run IMAGE` runs a container in one; there are paths where nspool may mount: the unit with systemd/native.conf, or \
             [engine] kind = \"native\"."
        ));
    }
    let mut places = Vec::new();
    for namespace in &lease.oci_namespaces {
        match Place::new(&namespace.r#type, &namespace.path) {
            Some(place) => places.push(place),
            None => return unavailable(format!("a program cannot join the lease's {} namespace, only a container can", namespace.r#type)),
        }
    }
    Ok(places)
}

/// What the program is told in its environment. The token is for who holds the lease.
fn surround(command: &mut Command, lease: &proto::Lease) {
    command.env("NSPOOL_NAMESPACE_ID", &lease.namespace_id).env("NSPOOL_NETNS_PATH", &lease.netns_path);
    command.env_remove("NSPOOL_TOKEN").env_remove("NSPOOL_IP_ADDRESS");
    let address = lease.ip_addresses.first().and_then(|address| address.split('/').next());
    if let Some(address) = address.filter(|address| address.parse::<IpAddr>().is_ok()) {
        command.env("NSPOOL_IP_ADDRESS", address);
    }
}

/// What the child says, and ends with, when it did not become the program.
pub(super) fn not_joined(error: JoinError) -> Failure {
    let (code, advice) = match &error {
        JoinError::Ended(_) => (exit::FOUND, "Allocate another: `nspool leases` lists those that stand."),
        JoinError::Hidden(_) | JoinError::NotMounted { .. } => (
            exit::UNAVAILABLE,
            "`nspool leases` lists the leases that stand; a container sees their paths by a mount of that folder with rslave.",
        ),
        JoinError::NotAllowed { .. } => (exit::NOPERM, RIGHTS),
        JoinError::Refused { .. } => (exit::UNAVAILABLE, ""),
        JoinError::NoProgram(_) => (exit::NO_PROGRAM, ""),
        JoinError::NotExecutable { .. } => (exit::NOT_EXECUTABLE, ""),
        JoinError::Orphan => (exit::UNAVAILABLE, ""),
        JoinError::Words => (exit::USAGE, ""),
    };
    let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
    let advice = if advice.is_empty() { String::new() } else { format!("\n  {advice}") };
    Failure::new(code, format!("{error}{cause}{advice}"))
}
