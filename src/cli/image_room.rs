//! `image prune`: room on the disk, now, or what it would take.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::exit::{self, Failure};
use super::output::{say, table};
use super::{Globals, args, views};
use crate::proto;
use crate::proto::prune_images_response::Event;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool image prune --dry-run
  nspool image prune --room 20GiB
  nspool image prune --dry-run --room 0 -o json | jq '.images[] | select(.outcome == \"stays\")'

Images that came by nspool go, those first that were asked for the longest ago, until all images together take so many bytes at most; layers are counted once.
Never what a container uses, what the pool's buddies run, what somebody has just asked for ([images] hold), or what others brought (unless [images] room_for_others).
For operators only. Exit code 1: the images take more than that still.")]
pub(super) struct Prune {
    /// Remove nothing, and say what would go, and why the rest stays
    #[arg(long)]
    dry_run: bool,
    /// What all images may take afterwards; 0: all goes that may [default: nine tenths of `[images] room`]
    #[arg(long, value_name = "SIZE", value_parser = args::size)]
    room: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PrunedView {
    dry_run: bool,
    bytes_before: u64,
    bytes_after: u64,
    bytes_ours: u64,
    bytes_wanted: u64,
    images: Vec<ImageView>,
}

#[derive(Debug, Serialize)]
struct ImageView {
    id: String,
    names: Vec<String>,
    bytes: u64,
    frees: u64,
    used: String,
    created: String,
    ours: bool,
    outcome: String,
    why: String,
    #[serde(skip)]
    last: String,
}

impl From<proto::PrunedImage> for ImageView {
    fn from(image: proto::PrunedImage) -> Self {
        let proto::PrunedImage { id, names, bytes, frees, used, created, ours, outcome, why } = image;
        let (last, used, created) = (views::age(used.as_ref()), views::time(used.as_ref()), views::time(created.as_ref()));
        Self { id, names, bytes, frees, used, created, ours, outcome, why, last }
    }
}

pub(super) async fn run(globals: &Globals, args: Prune) -> anyhow::Result<ExitCode> {
    let Prune { dry_run, room } = args;
    let prune = prune(globals, dry_run, room);
    let view = match globals.timeout {
        None => prune.await?,
        Some(patience) => tokio::time::timeout(patience, prune).await.unwrap_or_else(|_| Err(late(patience)))?,
    };
    globals.out().print(&view, text)?;
    say(&summary(&view));
    Ok(if view.bytes_after > view.bytes_wanted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn late(patience: Duration) -> anyhow::Error {
    let words = format!("PruneImages: not done within {}; it goes on", humantime::format_duration(patience));
    Failure::new(exit::TEMPFAIL, words).into()
}

async fn prune(globals: &Globals, dry_run: bool, room: Option<u64>) -> anyhow::Result<PrunedView> {
    let client = globals.client()?;
    let mut answers = client.prune_images(dry_run, room).await?;
    let mut images = Vec::new();
    while let Some(answer) = answers.next().await? {
        match answer.event {
            Some(Event::Image(image)) => images.push(ImageView::from(image)),
            Some(Event::Summary(summary)) => {
                let proto::PruneSummary { bytes_before, bytes_after, bytes_ours, bytes_wanted, removed: _ } = summary;
                return Ok(PrunedView { dry_run, bytes_before, bytes_after, bytes_ours, bytes_wanted, images });
            }
            None => {}
        }
    }
    Err(Failure::new(exit::UNAVAILABLE, "PruneImages: the daemon ended the stream without an answer; is it stopping?").into())
}

fn text(view: &PrunedView) -> String {
    let size = |bytes: u64| if bytes == 0 { String::new() } else { indicatif::HumanBytes(bytes).to_string() };
    let row = |image: &ImageView| {
        let name = image.names.first().cloned().unwrap_or_default();
        let more = if image.names.len() > 1 { format!(" and {} more", image.names.len() - 1) } else { String::new() };
        let outcome = image.outcome.replace('_', " ");
        vec![
            format!("{name}{more}"),
            size(image.bytes),
            size(image.frees),
            image.last.clone(),
            outcome,
            image.why.clone(),
            image.id.clone(),
        ]
    };
    table(&["name", "size", "frees", "used", "outcome", "why", "id"], view.images.iter().map(row).collect())
}

fn summary(view: &PrunedView) -> String {
    let bytes = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
    let (before, after) = (bytes(view.bytes_before), bytes(view.bytes_after));
    let then = if view.dry_run { format!("would take {after}") } else { format!("take {after} now") };
    let enough =
        if view.bytes_after > view.bytes_wanted { format!(", which is more than {}", bytes(view.bytes_wanted)) } else { String::new() };
    format!("images took {before}, layers counted once, and {then}{enough}")
}
