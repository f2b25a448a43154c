//! `restart-plan`: what a restart would do, said before it is done.
//!
//! With a daemon it is asked what it has, and the configuration that the next one would read is held against that. Without one its ledger is read
//! and the engine asked what is left of it. Nothing is changed either way. What it deliberately does not know: whether somebody restarts at all, and
//! what changes between the plan and the restart.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::exit::{self, Failure};
use super::output::{pairs, table};
use super::{Globals, host};
use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::config::raw::{self, Sources};
use crate::engine::{ContainerStatus, Engine as _};
use crate::ledger::{Ledger, Table, boot_id};
use crate::nanny::buddy::LABEL_POOL;
use crate::proto;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool restart-plan && systemctl restart nspool
  nspool restart-plan --config ./nspool.toml -o json

Reads the configuration that the next daemon would read (and this shell's NSPOOL_ variables), and asks
the running daemon what it has; when none runs, reads what the last one left. Changes nothing.
Exit code 0: no lease and no ready slot would be lost. 1: something would be. 78: the configuration
has mistakes, so the daemon would not start.")]
pub(super) struct RestartPlan {
    /// The configuration file [default: /etc/nspool/nspool.toml, if it exists]
    #[arg(long, env = "NSPOOL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct PlanView {
    pool: String,
    /// Of the daemon that runs; empty when none does.
    running: String,
    /// Of this program, which may be what comes next.
    installed: String,
    /// `keep` or `remove`; empty when no daemon runs.
    at_stop: String,
    /// Leases, ready slots: how many of them are lost.
    lost: u32,
    slots: Vec<SlotPlan>,
    /// Whatever is worth knowing before.
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SlotPlan {
    slot: u32,
    state: String,
    lease_id: String,
    /// `kept`, `lost`, `made anew`, `watched`.
    outcome: &'static str,
    why: String,
}

/// What decides the fate of all of them.
struct Circumstances {
    /// Why nothing would be found again; `None`: it is.
    all_lost: Option<String>,
    /// Networks of the next configuration.
    networks: Vec<String>,
}

const KEPT: &str = "kept";
const LOST: &str = "lost";
const ANEW: &str = "made anew";
const WATCHED: &str = "watched";

pub(super) async fn run(globals: &Globals, args: RestartPlan) -> anyhow::Result<ExitCode> {
    let next = raw::load(&Sources::from_process(args.config, Vec::new()))?;
    let client = globals.client()?;
    let mut view = match client.info().await {
        Ok(info) => of_daemon(&client, info, &next.config).await?,
        Err(ClientError::Unreachable { .. }) => of_ledger(&next.config).await?,
        Err(error) => return Err(error.into()),
    };
    view.notes.extend(next.warnings);
    view.lost = u32::try_from(view.slots.iter().filter(|slot| slot.outcome == LOST).count()).unwrap_or(u32::MAX);
    globals.out().print(&view, plan_text)?;
    Ok(if view.lost == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

async fn of_daemon(client: &Client, info: proto::GetInfoResponse, next: &Config) -> anyhow::Result<PlanView> {
    let (usage, slots, leases) = (client.usage().await?, client.slots().await?, client.leases().await?);
    let leases: HashMap<&str, &proto::Lease> = leases.iter().map(|lease| (lease.lease_id.as_str(), lease)).collect();
    let circumstances = Circumstances { all_lost: all_lost(&info, next), networks: next.pool.networks.clone() };
    let mut plans: Vec<SlotPlan> =
        slots.slots.iter().map(|slot| slot_plan(slot, leases.get(slot.lease_id.as_str()).copied(), &circumstances)).collect();
    plans.extend(slots.detached.iter().map(|buddy| SlotPlan {
        slot: buddy.slot,
        state: "detached".to_owned(),
        lease_id: String::new(),
        outcome: WATCHED,
        why: "somebody is inside: removed once nobody is".to_owned(),
    }));
    let mut notes = Vec::new();
    let waiting = usage.total.as_ref().map_or(0, |total| total.waiting);
    if waiting > 0 {
        notes.push(format!("{waiting} callers wait for a slot: they are told STOPPING, and find the next daemon when they try again"));
    }
    if !usage.ledger_error.is_empty() {
        notes.push(format!("the ledger cannot be written ({}): what ended since then would be taken for leased", usage.ledger_error));
    }
    if usage.engine_state != "up" {
        notes.push(format!("the engine does not answer ({}): nothing is handed out until it does", usage.engine_error));
    }
    if let Some(total) = usage.total.as_ref().filter(|total| (total.target, total.max) != (next.pool.ready, next.pool.max)) {
        notes.push(format!(
            "sizes: ready {}, max {} now; the configuration says ready {}, max {} (sizes set by `nspool resize` hold over a restart)",
            total.target, total.max, next.pool.ready, next.pool.max
        ));
    }
    Ok(PlanView {
        pool: info.pool,
        running: info.version,
        installed: env!("CARGO_PKG_VERSION").to_owned(),
        at_stop: info.at_stop,
        lost: 0,
        slots: plans,
        notes,
    })
}

/// Why the next daemon would find nothing of this one.
fn all_lost(info: &proto::GetInfoResponse, next: &Config) -> Option<String> {
    if info.at_stop != "keep" {
        return Some("the running daemon ends its leases and removes its buddies at a stop (stop.policy)".to_owned());
    }
    if info.pool != next.pool.name {
        return Some(format!("the configuration names another pool, {:?}", next.pool.name));
    }
    if Path::new(&info.state_dir) != next.state.dir {
        return Some(format!(
            "the configuration has another state folder, {}: the ledger is in {}",
            next.state.dir.display(),
            info.state_dir
        ));
    }
    if let Some(why) = refusal(&next.state.dir) {
        return Some(why);
    }
    let engine = info.engine.as_ref().map(|engine| engine.endpoint.as_str()).unwrap_or_default();
    match &next.engine.endpoint {
        Some(endpoint) if !engine.is_empty() && socket(endpoint) != socket(engine) => {
            Some(format!("the configuration names another engine, {endpoint}: the slots are on {engine}"))
        }
        _ => None,
    }
}

/// Why a daemon of this release would not take over the ledger there, as far as whoever asks may look at it.
fn refusal(folder: &Path) -> Option<String> {
    let refused = boot_id().and_then(|boot| Ledger::peek(folder, &boot)).err()?;
    (refused.kind() == std::io::ErrorKind::Unsupported).then(|| format!("this program does not start with the ledger: {refused}"))
}

fn socket(endpoint: &str) -> &str {
    endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint)
}

fn slot_plan(slot: &proto::Slot, lease: Option<&proto::Lease>, circumstances: &Circumstances) -> SlotPlan {
    let configured = circumstances.networks.contains(&slot.network);
    let (outcome, why) = match (slot.state.as_str(), &circumstances.all_lost) {
        ("ready" | "leased" | "adopting", Some(why)) => (LOST, why.clone()),
        ("ready" | "adopting", None) if configured => (KEPT, "looked at, then ready again".to_owned()),
        ("ready" | "adopting", None) => (LOST, format!("its network {:?} is not configured any more", slot.network)),
        ("leased", None) => {
            let lifetime = lease.map_or(proto::Lifetime::Unspecified, proto::Lease::lifetime);
            let why = match lifetime {
                proto::Lifetime::Connection => "its holder has 30s to come back with Resume",
                proto::Lifetime::Unspecified | proto::Lifetime::Joiners | proto::Lifetime::Ttl if configured => "with its lease",
                proto::Lifetime::Unspecified | proto::Lifetime::Joiners | proto::Lifetime::Ttl => {
                    "with its lease; given up after it, its network is not configured any more"
                }
            };
            (KEPT, why.to_owned())
        }
        ("quarantined", _) => (WATCHED, "somebody is inside: removed once nobody is".to_owned()),
        ("vacant", _) => (ANEW, "nothing is in it".to_owned()),
        _ => (ANEW, "what is left of its buddy is removed".to_owned()),
    };
    SlotPlan { slot: slot.slot, state: slot.state.clone(), lease_id: slot.lease_id.clone(), outcome, why }
}

/// Nobody runs: what the next daemon would find.
async fn of_ledger(next: &Config) -> anyhow::Result<PlanView> {
    let folder = &next.state.dir;
    let cannot = |error: std::io::Error| {
        let code = if error.kind() == std::io::ErrorKind::PermissionDenied { exit::NOPERM } else { exit::FOUND };
        Failure::new(code, format!("no daemon answers, and the last one's ledger in {} cannot be read: {error}", folder.display()))
    };
    let table = Ledger::peek(folder, &boot_id().map_err(cannot)?).map_err(cannot)?;
    let (engine, _) = host::engine(next.engine.endpoint.as_deref()).await?;
    let list = engine.list().await.map_err(|error| host::engine_failure("the engine's containers cannot be listed", &error))?;
    let running: HashMap<&str, bool> =
        list.iter().map(|container| (container.id.as_str(), container.status == ContainerStatus::Running)).collect();
    let mut notes = vec!["no daemon runs: this is what the next one would find".to_owned()];
    if table.is_none() {
        notes.push(format!("there is no ledger of this boot in {}", folder.display()));
    }
    let table = table.unwrap_or_default();
    let slots = of_table(&table, &running, &next.pool.networks);
    let told = |id: &str| table.buddies.values().filter_map(|buddy| buddy.namespace.as_ref()).any(|namespace| namespace.container_id == id);
    let untold = list.iter().filter(|found| found.labels.get(LABEL_POOL) == Some(&next.pool.name) && !told(found.id.as_str())).count();
    if untold > 0 {
        notes.push(format!("{untold} containers of the pool are not in the ledger: each is removed once nobody is inside"));
    }
    Ok(PlanView {
        pool: next.pool.name.clone(),
        running: String::new(),
        installed: env!("CARGO_PKG_VERSION").to_owned(),
        at_stop: String::new(),
        lost: 0,
        slots,
        notes,
    })
}

fn of_table(table: &Table, running: &HashMap<&str, bool>, networks: &[String]) -> Vec<SlotPlan> {
    let leases: HashMap<(u32, u64), String> = table
        .leases
        .values()
        .filter(|lease| lease.lost.is_none())
        .map(|lease| ((lease.slot, lease.generation), format!("{}-{}-{}", lease.slot, lease.generation, lease.use_number)))
        .collect();
    let plan = |buddy: &crate::ledger::record::Ready| {
        let id = buddy.namespace.as_ref().map(|namespace| namespace.container_id.as_str()).unwrap_or_default();
        let lease_id = leases.get(&(buddy.slot, buddy.generation)).cloned().unwrap_or_default();
        let (outcome, why) = match running.get(id) {
            Some(true) if networks.contains(&buddy.network) || !lease_id.is_empty() => (KEPT, "its buddy runs"),
            Some(true) => (LOST, "its network is not configured any more"),
            Some(false) => (LOST, "its buddy does not run any more"),
            None => (LOST, "its buddy is gone"),
        };
        let state = if lease_id.is_empty() { "ready" } else { "leased" };
        SlotPlan { slot: buddy.slot, state: state.to_owned(), lease_id, outcome, why: why.to_owned() }
    };
    table.buddies.values().map(plan).collect()
}

fn plan_text(view: &PlanView) -> String {
    let mut text = pairs(vec![
        ("pool", view.pool.clone()),
        ("running", if view.running.is_empty() { "nothing".to_owned() } else { view.running.clone() }),
        ("this program", view.installed.clone()),
        (
            "a stop",
            match view.at_stop.as_str() {
                "keep" => "leaves slots and leases to the next start".to_owned(),
                "remove" => "ends leases and removes buddies".to_owned(),
                _ => String::new(),
            },
        ),
    ]);
    text.push('\n');
    // One row for all that fare alike; a lease that is lost is named.
    let mut rows: Vec<(Vec<String>, u32)> = Vec::new();
    for slot in &view.slots {
        let named = if slot.outcome == LOST { slot.lease_id.clone() } else { String::new() };
        let row = vec![slot.state.clone(), slot.outcome.to_owned(), slot.why.clone(), named];
        match rows.iter_mut().find(|(known, _)| *known == row) {
            Some((_, many)) => *many += 1,
            None => rows.push((row, 1)),
        }
    }
    let rows = rows.into_iter().map(|(row, many)| [vec![many.to_string()], row].concat());
    text.push_str(&table(&["slots", "state", "outcome", "why", "lease"], rows.collect()));
    for note in &view.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text.push_str(&match view.lost {
        0 => "nothing would be lost\n".to_owned(),
        lost => format!("{lost} slots would be lost\n"),
    });
    text
}
