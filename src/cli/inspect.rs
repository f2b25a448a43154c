//! `inspect`: what became of a slot's buddy since it was ready, as a diff.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::views::SlotView;
use super::{Globals, exit};
use crate::proto;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool inspect 3
  nspool inspect 3 -o json | jq '.differences[].kind'

For networks with reuse = \"verified\": there the daemon knows what each buddy was when it was
ready. Changes nothing; while a function is inside, what it does shows as well. After a lease any
difference retires the buddy, and leftovers are removed.
Exit code 1: something is different.")]
pub(super) struct InspectArgs {
    /// Which slot, by its number
    slot: u32,
}

#[derive(Debug, Serialize)]
struct InspectView {
    slot: SlotView,
    is_as_it_was: bool,
    differences: Vec<DifferenceView>,
    leftovers: Vec<LeftoverView>,
}

#[derive(Debug, Serialize)]
struct DifferenceView {
    kind: String,
    subject: String,
    /// None: it was not there.
    was: Option<String>,
    /// None: it is gone.
    is: Option<String>,
}

#[derive(Debug, Serialize)]
struct LeftoverView {
    kind: String,
    count: u64,
}

impl From<proto::InspectResponse> for InspectView {
    fn from(response: proto::InspectResponse) -> Self {
        let difference = |difference: proto::Difference| {
            let proto::Difference { kind, subject, was, is } = difference;
            DifferenceView { kind, subject, was, is }
        };
        let leftover = |proto::Leftover { kind, count }: proto::Leftover| LeftoverView { kind, count };
        Self {
            slot: response.slot.unwrap_or_default().into(),
            is_as_it_was: response.differences.is_empty(),
            differences: response.differences.into_iter().map(difference).collect(),
            leftovers: response.leftovers.into_iter().map(leftover).collect(),
        }
    }
}

pub(super) async fn inspect(globals: &Globals, args: InspectArgs) -> anyhow::Result<ExitCode> {
    let view = InspectView::from(globals.client()?.inspect(args.slot).await?);
    globals.out().print(&view, inspect_text)?;
    Ok(if view.is_as_it_was { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

fn inspect_text(view: &InspectView) -> String {
    let slot = &view.slot;
    let found = match view.differences.len() {
        0 => "as it was when it was ready".to_owned(),
        1 => "one difference".to_owned(),
        more => format!("{more} differences"),
    };
    let mut text = format!("slot {}, {}, use {} of generation {}: {found}\n", slot.slot, slot.state, slot.use_, slot.generation);
    for DifferenceView { kind, subject, was, is } in &view.differences {
        let _ = writeln!(text, "  {kind} {subject}");
        for (sign, value) in [('-', was), ('+', is)] {
            if let Some(value) = value {
                let _ = writeln!(text, "    {sign} {}", if value.is_empty() { "there" } else { value });
            }
        }
    }
    let leftovers: Vec<String> = view.leftovers.iter().map(|leftover| format!("{} {}", leftover.count, leftover.kind)).collect();
    if !leftovers.is_empty() {
        let _ = writeln!(text, "to be removed after the lease: {}", leftovers.join(", "));
    }
    text
}
