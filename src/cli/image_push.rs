//! `image push`: an image that is here, to a registry.

use std::process::ExitCode;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar};
use serde::Serialize;

use super::Globals;
use super::exit::{self, Failure};
use super::image::Account;
use super::output::table;
use super::progress::spinner;
use crate::client::Client;
use crate::proto;
use crate::proto::push_image_response::Event;

#[derive(Debug, Args)]
pub(super) struct Push {
    /// A name that the image has here, or its id
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where it goes, e.g. registry:5000/team/fn:7 [default: SOURCE]
    #[arg(value_name = "TARGET", default_value = "", hide_default_value = true)]
    target: String,
    #[command(flatten)]
    account: Account,
}

#[derive(Debug, Serialize)]
struct PushedView {
    target: String,
    digest: String,
    id: String,
    layers: u32,
    uploaded: u32,
    mounted: u32,
    present: u32,
    seen: u32,
    bytes: u64,
}

impl From<proto::PushedImage> for PushedView {
    fn from(pushed: proto::PushedImage) -> Self {
        let proto::PushedImage { digest, target, layers, uploaded, mounted, seen, present, bytes, id } = pushed;
        Self { target, digest, id, layers, uploaded, mounted, present, seen, bytes }
    }
}

pub(super) async fn run(globals: &Globals, args: Push) -> anyhow::Result<ExitCode> {
    let auth = args.account.auth()?;
    let (client, bar) = (globals.client()?, spinner());
    let words = if args.target.is_empty() { args.source.clone() } else { args.target.clone() };
    let follow = follow(&client, proto::PushImageRequest { source: args.source, target: args.target, auth }, &words, &bar);
    let pushed = match globals.timeout {
        None => follow.await,
        Some(patience) => tokio::time::timeout(patience, follow).await.unwrap_or_else(|_| {
            let words = format!("{words}: not there within {}; the push goes on", humantime::format_duration(patience));
            Err(Failure::new(exit::TEMPFAIL, words).into())
        }),
    };
    bar.finish_and_clear();
    globals.out().print(&PushedView::from(pushed?), pushed_text)?;
    Ok(ExitCode::SUCCESS)
}

async fn follow(client: &Client, asked: proto::PushImageRequest, words: &str, bar: &ProgressBar) -> anyhow::Result<proto::PushedImage> {
    bar.set_message(words.to_owned());
    let mut answers = client.push_image(asked).await?;
    while let Some(answer) = answers.next().await? {
        match answer.event {
            Some(Event::Pushed(pushed)) => return Ok(pushed),
            Some(Event::Progress(progress)) => bar.set_message(progress_text(words, &progress)),
            None => {}
        }
    }
    Err(Failure::new(exit::UNAVAILABLE, "PushImage: the daemon ended the stream without an answer; is it stopping?").into())
}

fn progress_text(words: &str, progress: &proto::PushProgress) -> String {
    let mut words = vec![words.to_owned()];
    if progress.layers > 0 {
        words.push(format!("{} of {} layers", progress.layers_done, progress.layers));
    }
    if progress.bytes_total > 0 {
        words.push(format!("{} of {}", HumanBytes(progress.bytes), HumanBytes(progress.bytes_total)));
    }
    words.join(", ")
}

fn pushed_text(pushed: &PushedView) -> String {
    let counts = [pushed.layers, pushed.uploaded, pushed.mounted, pushed.present + pushed.seen].map(|count| count.to_string());
    let [layers, uploaded, mounted, there] = counts;
    let row = vec![pushed.target.clone(), layers, uploaded, mounted, there, HumanBytes(pushed.bytes).to_string(), pushed.digest.clone()];
    table(&["target", "layers", "sent", "mounted", "there", "bytes sent", "digest"], vec![row])
}
