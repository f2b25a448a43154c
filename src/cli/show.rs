//! `usage`, `slots`, `leases`: what there is now.

use std::process::ExitCode;

use clap::Args;

use super::Globals;
use super::output::{pairs, table};
use super::views::{CountsView, LeaseView, SlotView, UsageView};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nspool usage\n  nspool usage -o json | jq .ready")]
pub(super) struct UsageArgs {}

pub(super) async fn usage(globals: &Globals) -> anyhow::Result<ExitCode> {
    let view = UsageView::from(globals.client()?.usage().await?);
    globals.out().print(&view, usage_text)?;
    Ok(ExitCode::SUCCESS)
}

fn usage_text(usage: &UsageView) -> String {
    let engine = usage.engine.as_ref().map(|engine| format!("{} ({} {})", engine.endpoint, engine.kind, engine.version));
    let with = |state: &str, words: &str| if words.is_empty() { state.to_owned() } else { format!("{state}: {words}") };
    let handing_out = match (usage.cordoned, usage.draining) {
        (_, true) => "no, draining",
        (true, false) => "no, cordoned",
        (false, false) => "yes",
    };
    let mut text = pairs(vec![
        ("pool", usage.pool.clone()),
        ("handing out", handing_out.to_owned()),
        ("engine", with(&usage.engine_state, &usage.engine_error)),
        ("found at", engine.unwrap_or_default()),
        ("image", with(&usage.image_state, &usage.image_error)),
        ("ledger", with(if usage.ledger_error.is_empty() { "ready" } else { "failing" }, &usage.ledger_error)),
        ("allocations", format!("{}, of which {} found nothing ready", usage.total.allocations, usage.total.misses)),
    ]);
    text.push('\n');
    text.push_str(&counts_table(usage));
    text
}

/// A row per network and one for all, with the columns that hold anything.
fn counts_table(usage: &UsageView) -> String {
    let mut rows: Vec<(&str, &CountsView)> = usage.networks.iter().map(|(name, counts)| (name.as_str(), counts)).collect();
    rows.push(("all", &usage.total));
    let always = ["ready", "leased", "target", "max"];
    let columns: Vec<usize> = (0..usage.total.columns().len())
        .filter(|column| rows.iter().any(|(_, counts)| always.contains(&counts.columns()[*column].0) || counts.columns()[*column].1 != "0"))
        .collect();
    let header: Vec<&str> = std::iter::once("network").chain(columns.iter().map(|column| usage.total.columns()[*column].0)).collect();
    let body = rows.iter().map(|(name, counts)| {
        let counts = counts.columns();
        std::iter::once((*name).to_owned()).chain(columns.iter().map(|column| counts[*column].1.clone())).collect()
    });
    table(&header, body.collect())
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nspool slots\n  nspool slots --state quarantined -o json")]
pub(super) struct Slots {
    /// Only those in this state
    #[arg(long)]
    state: Option<String>,
    /// Only those on this network
    #[arg(long)]
    network: Option<String>,
}

pub(super) async fn slots(globals: &Globals, args: Slots) -> anyhow::Result<ExitCode> {
    let response = globals.client()?.slots().await?;
    let wanted = |slot: &SlotView| {
        args.state.as_ref().is_none_or(|state| slot.state.eq_ignore_ascii_case(state))
            && args.network.as_ref().is_none_or(|network| slot.network == *network)
    };
    let detached = response.detached.into_iter().map(SlotView::from);
    let view: Vec<SlotView> = response.slots.into_iter().map(SlotView::from).chain(detached).filter(wanted).collect();
    globals.out().print(&view, |view| slots_text(view))?;
    Ok(ExitCode::SUCCESS)
}

fn slots_text(slots: &[SlotView]) -> String {
    let row = |slot: &SlotView| {
        let state = if slot.doomed { format!("{} (doomed)", slot.state) } else { slot.state.clone() };
        let note = if slot.joiners.is_empty() { slot.last_error.clone() } else { format!("held by {}", slot.joiners.join(", ")) };
        let failures = if slot.failures == 0 { String::new() } else { slot.failures.to_string() };
        vec![
            slot.slot.to_string(),
            state,
            slot.age.clone(),
            slot.network.clone(),
            slot.namespace_id.clone(),
            slot.lease_id.clone(),
            failures,
            note,
        ]
    };
    let header = ["slot", "state", "since", "network", "namespace", "lease", "failures", "note"];
    table(&header, slots.iter().map(row).collect())
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nspool leases\n  nspool leases --owner agent-1 -o json\n\nTokens are never shown; an owner gets its own by `nspool resume`."
)]
pub(super) struct Leases {
    /// Only those of this owner
    #[arg(long)]
    owner: Option<String>,
    /// Only those for this tenant
    #[arg(long)]
    tenant: Option<String>,
}

pub(super) async fn leases(globals: &Globals, args: Leases) -> anyhow::Result<ExitCode> {
    let wanted = |lease: &LeaseView| {
        args.owner.as_ref().is_none_or(|owner| lease.owner == *owner) && args.tenant.as_ref().is_none_or(|tenant| lease.tenant == *tenant)
    };
    let leases: Vec<LeaseView> = globals.client()?.leases().await?.into_iter().map(LeaseView::from).filter(wanted).collect();
    globals.out().print(&leases, |leases| leases_text(leases))?;
    Ok(ExitCode::SUCCESS)
}

fn leases_text(leases: &[LeaseView]) -> String {
    let row = |lease: &LeaseView| {
        let state = if lease.cause.is_empty() { lease.state.to_owned() } else { format!("{}: {}", lease.state, lease.cause) };
        let mut row = vec![lease.lease_id.clone(), state, lease.slot.to_string(), lease.namespace_id.clone()];
        row.extend([lease.ip_addresses.join(","), lease.owner.clone(), lease.tenant.clone(), lease.age.clone()]);
        row.push(lease.expires_at.clone().unwrap_or_default());
        row
    };
    let header = ["lease", "state", "slot", "namespace", "addresses", "owner", "tenant", "age", "ends"];
    table(&header, leases.iter().map(row).collect())
}
