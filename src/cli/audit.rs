//! `audit`: what does not agree between pool, ledger, engine and kernel.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::output::{say, table};
use super::progress::spinner;
use super::views::time;
use super::{Globals, exit};
use crate::proto;

/// The engine may be slow to list, and a repair takes its time.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool audit
  nspool audit --fix
  nspool audit -o json | jq '.findings[].kind'

What is found is looked at twice, a second apart. --fix has slots in doubt looked at, gives up ready
ones that somebody is in, has orphans removed once nobody is in them, and writes the ledger anew. It
removes nothing that is in use, and touches nothing that is not the pool's.
The daemon audits by itself as well ([audit] every), and never mends then.
Exit code 1: something does not agree, or still does not after --fix.")]
pub(super) struct AuditArgs {
    /// Mend what is safe
    #[arg(long)]
    fix: bool,
}

#[derive(Debug, Serialize)]
struct AuditView {
    agrees: bool,
    at: String,
    slots: u32,
    leases: u32,
    containers: u32,
    findings: Vec<FindingView>,
    /// Found, and not listed.
    more: u32,
}

#[derive(Debug, Serialize)]
struct FindingView {
    kind: String,
    subject: String,
    detail: String,
    fixable: bool,
    fixed: bool,
}

impl From<proto::AuditResponse> for AuditView {
    fn from(response: proto::AuditResponse) -> Self {
        let finding = |finding: proto::AuditFinding| {
            let proto::AuditFinding { kind, subject, detail, fixable, fixed } = finding;
            FindingView { kind, subject, detail, fixable, fixed }
        };
        Self {
            agrees: response.more == 0 && response.findings.iter().all(|finding| finding.fixed),
            at: time(response.at.as_ref()),
            slots: response.slots,
            leases: response.leases,
            containers: response.containers,
            findings: response.findings.into_iter().map(finding).collect(),
            more: response.more,
        }
    }
}

pub(super) async fn audit(globals: &Globals, args: AuditArgs) -> anyhow::Result<ExitCode> {
    let client = globals.client()?.with_timeout(globals.timeout.unwrap_or(TIMEOUT));
    let bar = spinner();
    bar.set_message(if args.fix { "auditing and mending" } else { "auditing" });
    let answer = client.audit(args.fix).await;
    bar.finish_and_clear();
    let view = AuditView::from(answer?);
    globals.out().print(&view, audit_text)?;
    if view.agrees {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.fix && view.findings.iter().any(|finding| finding.fixable) {
        say("nspool: `nspool audit --fix` mends what is fixable");
    }
    Ok(ExitCode::from(exit::FOUND))
}

fn audit_text(view: &AuditView) -> String {
    let looked = format!("{} slots, {} leases, {} containers", view.slots, view.leases, view.containers);
    if view.findings.is_empty() {
        return format!("all agree: {looked}\n");
    }
    let row = |finding: &FindingView| {
        let fix = match (finding.fixed, finding.fixable) {
            (true, _) => "fixed",
            (false, true) => "fixable",
            (false, false) => "by hand",
        };
        vec![finding.kind.clone(), finding.subject.clone(), finding.detail.clone(), fix.to_owned()]
    };
    let mut text = table(&["kind", "what", "how it disagrees", "repair"], view.findings.iter().map(row).collect());
    if view.more > 0 {
        text.push_str(&format!("and {} more\n", view.more));
    }
    text.push_str(&format!("looked at {looked}\n"));
    text
}
