//! `whois`: from a container, a process or an address to its slot, lease and owner.
//!
//! It works from the two lists of the daemon, `/proc` of this host and, for a container that is not a buddy, the engine's own client. A
//! process is known by its network namespace, which is compared while the buddy lives; so it needs the right to look at both (root).

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::exit::{self, Failure};
use super::output::pairs;
use super::views::{LeaseView, SlotView};
use super::{Globals, engine_client};
use crate::client::Client;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool whois 172.17.0.5
  sudo nspool whois 4711
  nspool whois my-function-container

Exit code 1: it belongs to no slot.")]
pub(super) struct Whois {
    /// A container's name or id, a namespace id, a pid, or an IP address
    #[arg(value_name = "CONTAINER|PID|IP")]
    what: String,
}

#[derive(Debug, Serialize)]
struct WhoisView {
    asked: String,
    /// `address`, `process`, `buddy` or `joiner`.
    kind: &'static str,
    slot: SlotView,
    lease: Option<LeaseView>,
}

/// What was asked for, found among the lists.
struct Found {
    kind: &'static str,
    slot: u32,
}

pub(super) async fn whois(globals: &Globals, args: Whois) -> anyhow::Result<ExitCode> {
    let client = globals.client()?;
    let slots: Vec<SlotView> = client.slots().await?.slots.into_iter().map(SlotView::from).collect();
    let leases: Vec<LeaseView> = client.leases().await?.into_iter().map(LeaseView::from).collect();
    let found = if let Ok(address) = args.what.parse::<IpAddr>() {
        by_address(address, &leases)
    } else if let Ok(pid) = args.what.parse::<u32>() {
        by_process(pid, &slots, &leases)?
    } else {
        by_container(&client, &args.what, &slots).await?
    };
    let view = found.and_then(|found| {
        let slot = slots.into_iter().find(|slot| slot.slot == found.slot)?;
        let lease = leases.into_iter().find(|lease| !slot.lease_id.is_empty() && lease.lease_id == slot.lease_id);
        Some(WhoisView { asked: args.what.clone(), kind: found.kind, slot, lease })
    });
    let Some(view) = view else {
        return Err(Failure::new(exit::FOUND, format!("{} belongs to no slot of this pool", args.what)).into());
    };
    globals.out().print(&view, whois_text)?;
    Ok(ExitCode::SUCCESS)
}

fn whois_text(view: &WhoisView) -> String {
    let lease = view.lease.as_ref();
    let of_lease = |field: fn(&LeaseView) -> String| lease.map(field).unwrap_or_default();
    pairs(vec![
        ("kind", view.kind.to_owned()),
        ("slot", format!("{}, generation {}, use {}, {}", view.slot.slot, view.slot.generation, view.slot.use_, view.slot.state)),
        ("namespace", view.slot.namespace_id.clone()),
        ("buddy", view.slot.container_id.clone()),
        ("lease", lease.map_or_else(|| "none".to_owned(), |lease| format!("{}, {}", lease.lease_id, lease.state))),
        ("owner", of_lease(|lease| lease.owner.clone())),
        ("tenant", of_lease(|lease| lease.tenant.clone())),
        ("addresses", of_lease(|lease| lease.ip_addresses.join(", "))),
        ("allocated", of_lease(|lease| lease.allocated_at.clone())),
    ])
}

fn by_address(address: IpAddr, leases: &[LeaseView]) -> Option<Found> {
    let of = |text: &String| text.split('/').next().and_then(|text| text.parse::<IpAddr>().ok());
    let lease = leases.iter().find(|lease| lease.ip_addresses.iter().any(|text| of(text) == Some(address)))?;
    Some(Found { kind: "address", slot: lease.slot })
}

fn by_process(pid: u32, slots: &[SlotView], leases: &[LeaseView]) -> Result<Option<Found>, Failure> {
    let of_process = network_namespace(pid).map_err(|error| cannot_read(pid, &error))?;
    for slot in slots.iter().filter(|slot| slot.pid != 0) {
        match network_namespace(slot.pid) {
            Ok(namespace) if namespace == of_process => {
                return Ok(Some(Found { kind: if slot.pid == pid { "buddy" } else { "process" }, slot: slot.slot }));
            }
            // A buddy that ended since the list was made.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(cannot_read(slot.pid, &error)),
        }
    }
    // A buddy that is no process has a path while it is leased. One that is not seen from here tells nothing.
    let is_it =
        |lease: &&LeaseView| !lease.netns_path.is_empty() && identity(&lease.netns_path).is_ok_and(|namespace| namespace == of_process);
    Ok(leases.iter().find(is_it).map(|lease| Found { kind: "process", slot: lease.slot }))
}

/// Device and inode, which are an identity only between namespaces that exist now.
fn network_namespace(pid: u32) -> io::Result<(u64, u64)> {
    identity(&format!("/proc/{pid}/ns/net"))
}

fn identity(path: &str) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn cannot_read(pid: u32, error: &io::Error) -> Failure {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        Failure::new(exit::FOUND, format!("there is no process {pid}"))
    } else if kind == io::ErrorKind::PermissionDenied {
        Failure::new(exit::NOPERM, format!("not allowed to see the namespaces of process {pid}: use sudo"))
    } else {
        Failure::new(exit::FOUND, format!("cannot read /proc/{pid}/ns/net: {error}"))
    }
}

async fn by_container(client: &Client, name: &str, slots: &[SlotView]) -> anyhow::Result<Option<Found>> {
    let is_buddy = |slot: &&SlotView| slot.namespace_id == name || is_id(name, &slot.container_id);
    if let Some(slot) = slots.iter().find(is_buddy) {
        return Ok(Some(Found { kind: "buddy", slot: slot.slot }));
    }
    let engine = client.info().await?.engine.unwrap_or_default();
    let mut command = engine_client::command(&engine)?;
    command.args(["inspect", "--type", "container", "--format", "{{.Id}} {{.HostConfig.NetworkMode}}", "--", name]);
    let output = command.output().await.map_err(|error| engine_client::not_started(&engine, &error))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(exit::FOUND, format!("{} does not know {name}: {}", engine.kind, words.trim())).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (id, mode) = text.trim().split_once(' ').unwrap_or_default();
    let joined = mode.strip_prefix("container:").unwrap_or_default();
    let of = |slot: &&SlotView| [id, joined].iter().any(|id| is_id(id, &slot.container_id) || *id == slot.namespace_id && !id.is_empty());
    Ok(slots.iter().find(of).map(|slot| Found { kind: if slot.container_id == id { "buddy" } else { "joiner" }, slot: slot.slot }))
}

/// A full id, or at least twelve digits of it, as the engines print them.
fn is_id(text: &str, id: &str) -> bool {
    text.len() >= 12 && id.starts_with(text)
}
