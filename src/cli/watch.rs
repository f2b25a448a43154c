//! `watch`: a line for each thing that happens, until the daemon or the reader ends it.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Globals;
use super::output::say;
use super::views::{self, CountsView};
use crate::client::{Answers, Client};
use crate::proto;
use crate::proto::watch_response::Event;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool watch
  nspool watch -o json | jq -c 'select(.event == \"lost\")'

After the daemon was away it connects again and goes on; --once ends it instead.")]
pub(super) struct Watch {
    /// Go on from here: the position of an earlier line
    #[arg(long)]
    position: Option<u64>,
    /// End when the daemon ends the stream
    #[arg(long)]
    once: bool,
}

/// One line: the keys that its event has, the others are left out.
#[derive(Debug, Serialize)]
struct EventView {
    position: u64,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<CountsView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cordoned: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    draining: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseEventView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leases: Option<Vec<LeaseEventView>>,
}

#[derive(Debug, Serialize)]
struct LeaseEventView {
    lease_id: String,
    namespace_id: String,
    slot: u32,
    generation: u64,
    #[serde(rename = "use")]
    use_: u64,
    owner: String,
    state: &'static str,
    cause: String,
}

impl From<proto::LeaseEvent> for LeaseEventView {
    fn from(event: proto::LeaseEvent) -> Self {
        let state = views::lease_state(event.state());
        let proto::LeaseEvent { lease_id, namespace_id, slot, generation, r#use: use_, owner, state: _, cause } = event;
        Self { lease_id, namespace_id, slot, generation, use_, owner, state, cause }
    }
}

impl EventView {
    fn empty(position: u64) -> Self {
        Self { position, event: "unknown", usage: None, cordoned: None, draining: None, incarnation: None, lease: None, leases: None }
    }

    fn new(response: proto::WatchResponse) -> Self {
        let empty = Self::empty(response.position);
        let lease = |event, lease: proto::LeaseEvent| Self { event, lease: Some(lease.into()), ..Self::empty(response.position) };
        match response.event {
            None => empty,
            Some(Event::Snapshot(snapshot)) => Self {
                event: "snapshot",
                usage: snapshot.usage.map(CountsView::from),
                cordoned: Some(snapshot.cordoned),
                draining: Some(snapshot.draining),
                incarnation: Some(snapshot.incarnation),
                leases: Some(snapshot.leases.into_iter().map(LeaseEventView::from).collect()),
                ..empty
            },
            Some(Event::Capacity(usage)) => Self { event: "capacity", usage: Some(usage.into()), ..empty },
            Some(Event::Joined(event)) => lease("joined", event),
            Some(Event::Lost(event)) => lease("lost", event),
            Some(Event::Ending(event)) => lease("ending", event),
            Some(Event::Cordon(cordon)) => {
                Self { event: "cordon", cordoned: Some(cordon.cordoned), draining: Some(cordon.draining), ..empty }
            }
            Some(Event::Reset(_)) => Self { event: "reset", ..empty },
        }
    }

    fn text(&self) -> String {
        let mut words = vec![format!("{:<9}", self.event)];
        if let Some(usage) = &self.usage {
            words.extend(usage.columns().iter().filter(|(_, count)| count != "0").map(|(name, count)| format!("{name}={count}")));
        }
        if let Some(lease) = &self.lease {
            words.push(format!("lease={} slot={} namespace={}", lease.lease_id, lease.slot, lease.namespace_id));
            words.extend(Some(format!("cause={:?}", lease.cause)).filter(|_| !lease.cause.is_empty()));
        }
        words.extend(self.leases.as_ref().map(|leases| format!("leases={}", leases.len())));
        words.extend(self.cordoned.filter(|yes| *yes || self.event == "cordon").map(|yes| format!("cordoned={yes}")));
        words.extend(self.draining.filter(|yes| *yes).map(|_| "draining=true".to_owned()));
        words.join(" ").trim_end().to_owned()
    }
}

pub(super) async fn watch(globals: &Globals, args: Watch) -> anyhow::Result<ExitCode> {
    let client = globals.client()?;
    let mut position = args.position;
    let mut answers = client.watch(position).await?;
    loop {
        match answers.next().await {
            Ok(Some(response)) => {
                position = Some(response.position);
                globals.out().line(&EventView::new(response), EventView::text)?;
            }
            Ok(None) if args.once => return Ok(ExitCode::SUCCESS),
            Err(error) if args.once || !error.is_unavailable() => return Err(error.into()),
            Ok(None) | Err(_) => answers = again(&client, position).await?,
        }
    }
}

/// Connects once a second until the daemon is back; Ctrl-C is what ends this.
async fn again(client: &Client, position: Option<u64>) -> anyhow::Result<Answers<proto::WatchResponse>> {
    say("nspool: the daemon ended the stream; connecting again");
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        ticks.tick().await;
        match client.watch(position).await {
            Ok(answers) => return Ok(answers),
            Err(error) if error.is_unavailable() => {}
            Err(error) => return Err(error.into()),
        }
    }
}
