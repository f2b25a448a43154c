//! `allocate`, `renew`, `release`, `resume`: what an agent does, by hand.
//!
//! An allocation by hand is meant to outlive the command: its lease stands until it is released or ends by itself.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::exit::{self, Failure};
use super::output::{pairs, say, table};
use super::views::{self, LeaseView};
use super::{Globals, args};
use crate::client::Request;
use crate::proto;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool allocate --wait 20s
  nspool allocate --lifetime ttl --ttl 10m --owner agent-1 --tenant acme --label app=thumbs -o json
  docker run --rm --network \"$(nspool allocate -o json | jq -r .network_mode)\" busybox ip addr")]
pub(super) struct Allocate {
    /// How long to wait for a slot
    #[arg(long, value_parser = args::duration, value_name = "DURATION")]
    wait: Option<Duration>,
    /// One of the pool's networks [default: any]
    #[arg(long, default_value = "", hide_default_value = true)]
    network: String,
    /// When the lease ends by itself: after its containers are gone, or at a time that `renew` moves
    #[arg(long, value_enum, default_value_t = LifetimeArg::Joiners)]
    lifetime: LifetimeArg,
    /// With --lifetime joiners: how long to wait for the first container [default: the pool's join_by]
    #[arg(long, value_parser = args::duration, value_name = "DURATION")]
    join_by: Option<Duration>,
    /// With --lifetime ttl: how long
    #[arg(long, value_parser = args::duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    /// The agent's name, for `resume`
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Whom it is for
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// The same id again gets the same lease
    #[arg(long, default_value = "", hide_default_value = true)]
    request_id: String,
    /// Shown in lists; may be given several times
    #[arg(long = "label", value_parser = args::label, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LifetimeArg {
    Joiners,
    Ttl,
    Connection,
}

impl Allocate {
    fn request(self) -> Result<Request, Failure> {
        let usage = |message: &str| Failure::new(exit::USAGE, format!("nspool allocate: {message}"));
        let request = Request::new().network(self.network).owner(self.owner).tenant(self.tenant).request_id(self.request_id);
        let request = request.wait(self.wait.unwrap_or_default());
        let request = match (self.lifetime, self.join_by, self.ttl) {
            (LifetimeArg::Joiners, join_by, None) => request.joiners(join_by),
            (LifetimeArg::Ttl, None, Some(ttl)) => request.ttl(ttl),
            (LifetimeArg::Joiners, _, Some(_)) => return Err(usage("--ttl goes with --lifetime ttl")),
            (LifetimeArg::Ttl, Some(_), _) => return Err(usage("--join-by goes with --lifetime joiners")),
            (LifetimeArg::Ttl, None, None) => return Err(usage("--lifetime ttl needs --ttl, e.g. --ttl 10m")),
            (LifetimeArg::Connection, _, _) => {
                return Err(usage("a lease that ends with the connection would end with this command; see `nspool run`"));
            }
        };
        Ok(self.labels.into_iter().fold(request, |request, (key, value)| request.label(key, value)))
    }
}

pub(super) async fn allocate(globals: &Globals, args: Allocate) -> anyhow::Result<ExitCode> {
    let request = args.request()?;
    let lease = globals.client()?.allocate(request).await?.keep();
    let view = LeaseView::from(lease);
    globals.out().print(&view, lease_pairs)?;
    Ok(ExitCode::SUCCESS)
}

fn lease_pairs(lease: &LeaseView) -> String {
    let labels: Vec<String> = lease.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs(vec![
        ("token", lease.token.clone()),
        ("lease", lease.lease_id.clone()),
        ("namespace", lease.namespace_id.clone()),
        ("join with", format!("--network {}", lease.network_mode)),
        ("netns path", lease.netns_path.clone()),
        ("slot", format!("{}, generation {}, use {}", lease.slot, lease.generation, lease.use_)),
        ("network", lease.network.clone()),
        ("addresses", lease.ip_addresses.join(", ")),
        ("ends", ends(lease)),
        ("owner", lease.owner.clone()),
        ("tenant", lease.tenant.clone()),
        ("labels", labels.join(", ")),
    ])
}

fn ends(lease: &LeaseView) -> String {
    match (&lease.expires_at, lease.lifetime) {
        (Some(at), "joiners") => format!("{at}, unless a container joins"),
        (Some(at), _) => at.clone(),
        (None, "connection") => "with the connection".to_owned(),
        (None, _) => "after its containers are gone".to_owned(),
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nspool renew \"$TOKEN\" --ttl 10m")]
pub(super) struct Renew {
    /// As `allocate` printed it
    #[arg(env = "NSPOOL_TOKEN", hide_env_values = true)]
    token: String,
    /// From now [default: what it was allocated with]
    #[arg(long, value_parser = args::duration, value_name = "DURATION")]
    ttl: Option<Duration>,
}

#[derive(Debug, Serialize)]
struct RenewView {
    expires_at: String,
    remaining_seconds: Option<f64>,
}

pub(super) async fn renew(globals: &Globals, args: Renew) -> anyhow::Result<ExitCode> {
    let response = globals.client()?.renew(&args.token, args.ttl).await?;
    let view =
        RenewView { expires_at: views::time(response.expires_at.as_ref()), remaining_seconds: views::seconds(response.remaining.as_ref()) };
    globals.out().print(&view, |view| pairs(vec![("ends", view.expires_at.clone())]))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool release \"$TOKEN\"
  nspool release \"$TOKEN\" --doubtful     # a create or start in it may still be under way
  sudo nspool release --lease LEASE_ID    # someone else's; the buddy is never used again

Exit code 1: the lease had ended by itself, or a container is still in the namespace.")]
pub(super) struct Release {
    /// As `allocate` printed it
    #[arg(env = "NSPOOL_TOKEN", hide_env_values = true, required_unless_present = "lease", conflicts_with = "lease")]
    token: Option<String>,
    /// A create or start of a container in it may still be under way: never use the buddy again
    #[arg(long, conflicts_with = "lease")]
    doubtful: bool,
    /// End the lease with this id, without its token (for administrators)
    #[arg(long, value_name = "LEASE_ID")]
    lease: Option<String>,
}

#[derive(Debug, Serialize)]
struct ReleaseView {
    outcome: &'static str,
    cause: String,
}

pub(super) async fn release(globals: &Globals, args: Release) -> anyhow::Result<ExitCode> {
    let client = globals.client()?;
    let (outcome, cause) = match (&args.lease, &args.token) {
        (Some(lease), _) => (client.force_release(lease).await?, String::new()),
        (None, token) => {
            let response = client.release(token.as_deref().unwrap_or_default(), args.doubtful).await?;
            (response.outcome(), response.cause)
        }
    };
    let view = ReleaseView { outcome: views::release_outcome(outcome), cause };
    globals.out().print(&view, |view| match view.cause.as_str() {
        "" => view.outcome.replace('_', " "),
        cause => format!("{}: {cause}", view.outcome.replace('_', " ")),
    })?;
    Ok(match outcome {
        proto::ReleaseOutcome::Returned | proto::ReleaseOutcome::AlreadyReleased => ExitCode::SUCCESS,
        proto::ReleaseOutcome::JoinerStillThere => {
            say("nspool: a container is still in the namespace; the slot waits until it is gone (`nspool slots` shows which one)");
            ExitCode::from(exit::FOUND)
        }
        proto::ReleaseOutcome::AlreadyEnded | proto::ReleaseOutcome::Unspecified => ExitCode::from(exit::FOUND),
    })
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  nspool resume agent-1 -o json\n\nLists only leases that were allocated under your uid.")]
pub(super) struct Resume {
    /// As given to `allocate --owner`
    owner: String,
}

pub(super) async fn resume(globals: &Globals, args: Resume) -> anyhow::Result<ExitCode> {
    let leases: Vec<LeaseView> = globals.client()?.resume(&args.owner).await?.into_iter().map(LeaseView::from).collect();
    globals.out().print(&leases, |leases| {
        let row = |lease: &LeaseView| {
            vec![
                lease.lease_id.clone(),
                lease.state.to_owned(),
                lease.token.clone(),
                lease.namespace_id.clone(),
                lease.ip_addresses.join(","),
            ]
        };
        table(&["lease", "state", "token", "namespace", "addresses"], leases.iter().map(row).collect())
    })?;
    Ok(ExitCode::SUCCESS)
}
