//! `image ensure`, `image list`: the host's images, by the daemon's cache. `image build`, `image push` are in files of their own, `image import`,
//! `image verify` in [`super::image_store`].

use std::io::BufRead as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde::Serialize;

use super::exit::{self, Failure};
use super::image_build::{self, Build};
use super::output::table;
use super::progress::spinner;
use super::views;
use super::{Globals, image_push, image_room, image_store};
use crate::client::Client;
use crate::proto;
use crate::proto::ensure_image_response::Event;

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// See to it that images are here, and print their ids
    #[command(after_help = "Examples:
  nspool image ensure busybox:1.36 registry:5000/team/fn:7
  nspool image ensure quay.io/org/fn -o json | jq -r .[0].id
  pass show registry | nspool image ensure registry:5000/team/fn:7 --username ann --password-stdin

However many ask, an image is fetched once, by the daemon: at Ctrl-C, or when --timeout is up for one image, the fetch goes on, and who asks
again follows it. With --username the registry is asked by these credentials, even when the image is here.
Exit code 1: there is no such image. 75: the time is up, or the registry wants to be left alone. 77: the registry says no.")]
    Ensure(Ensure),
    /// Build an image of a Dockerfile, unless there is one of the same, and print its id
    #[command(after_help = "Examples:
  nspool image build functions/resize
  nspool image build -f deploy/Dockerfile --build-arg VERSION=7 -o json . | jq -r .id
  git archive HEAD | nspool image build -

An image is known by what goes in: the Dockerfile, its context after .dockerignore, target, build args, platform and the images that it begins from. What is known
is not built again, and however many ask, it is built once, by the daemon: at Ctrl-C the build goes on, and who asks again follows it.
What the build prints goes to stderr. The context is read by the daemon where it sees the same folder, else it is sent.
Exit code 1: the build fails. 64: the Dockerfile or the context is none. 75: the time is up. 77: not allowed.")]
    Build(Build),
    /// Bring an image that is here to a registry, and print its digest there
    #[command(after_help = "Examples:
  nspool image push registry:5000/team/fn:7
  nspool image push nspool.local/build:0f3c… registry:5000/team/fn:7 -o json | jq -r .digest
  pass show registry | nspool image push fn:7 registry:5000/team/fn:7 --username ann --password-stdin

The registry is sent the layers that it does not have, and is not asked again for those that were seen there. However many ask, an image is pushed once, by the
daemon: at Ctrl-C, or when --timeout is up, the push goes on, and who asks again follows it. The image comes from this host's store, else from the engine.
Exit code 1: there is no such image here. 69: the registry does not take it. 75: the time is up, or the registry wants to be left alone. 77: not allowed, or the
registry says no.")]
    Push(image_push::Push),
    /// List the images that were asked for, those that were built, or the last failures
    #[command(
        after_help = "Examples:\n  nspool image list\n  nspool image list --built\n  nspool image list --failures -o json | jq .failures"
    )]
    List(List),
    /// Remove images that nobody has asked for in a long time, until the rest fits
    Prune(image_room::Prune),
    /// Take images out of files into this host's image store
    Import(image_store::Import),
    /// Read all of this host's image store, and say what is broken
    Verify(image_store::Verify),
}

#[derive(Debug, Args)]
struct List {
    /// Only what was built here and is in the engine
    #[arg(long, conflicts_with = "failures")]
    built: bool,
    /// Only the last failures
    #[arg(long)]
    failures: bool,
}

#[derive(Debug, Args)]
struct Ensure {
    /// As they are pulled, e.g. busybox:1.36
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,
    #[command(flatten)]
    account: Account,
}

/// By whom a registry is asked.
#[derive(Debug, Args)]
pub(super) struct Account {
    /// Ask the registry by this account
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read its password from the first line of stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Account {
    pub(super) fn auth(self) -> anyhow::Result<Option<proto::RegistryAuth>> {
        let Some(username) = self.username else { return Ok(None) };
        Ok(Some(proto::RegistryAuth { username, password: password()?, identity_token: String::new() }))
    }
}

#[derive(Debug, Serialize)]
struct EnsuredView {
    reference: String,
    id: String,
    digest: String,
    fetched: bool,
    stale_since: String,
}

impl From<proto::EnsuredImage> for EnsuredView {
    fn from(image: proto::EnsuredImage) -> Self {
        let proto::EnsuredImage { id, digest, fetched, reference, stale_since } = image;
        Self { reference, id, digest, fetched, stale_since: views::time(stale_since.as_ref()) }
    }
}

#[derive(Debug, Serialize)]
struct ListView {
    images: Vec<ImageView>,
    /// `None`: the engine cannot be asked.
    built: Option<Vec<BuiltView>>,
    failures: Vec<FailureView>,
}

#[derive(Debug, Serialize)]
struct BuiltView {
    id: String,
    key: String,
    reference: String,
    built: String,
    used: String,
    held_until: String,
    #[serde(skip)]
    age: String,
    #[serde(skip)]
    last: String,
}

#[derive(Debug, Serialize)]
struct ImageView {
    reference: String,
    state: String,
    since: String,
    id: String,
    digest: String,
    failure: String,
    error: String,
    private: bool,
    placeholder: bool,
    checked: String,
    stale_since: String,
    stale_why: String,
    used: String,
    held_until: String,
    #[serde(skip)]
    age: String,
    #[serde(skip)]
    last: String,
    #[serde(skip)]
    stale_for: String,
}

#[derive(Debug, Serialize)]
struct FailureView {
    reference: String,
    at: String,
    failure: String,
    error: String,
    private: bool,
    #[serde(skip)]
    age: String,
}

pub(super) async fn run(globals: &Globals, args: ImageArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        ImageCommand::Ensure(args) => ensure(globals, args).await,
        ImageCommand::Build(args) => image_build::run(globals, args).await,
        ImageCommand::Push(args) => image_push::run(globals, args).await,
        ImageCommand::List(args) => list(globals, &args).await,
        ImageCommand::Prune(args) => image_room::run(globals, args).await,
        ImageCommand::Import(args) => image_store::import(globals, args).await,
        ImageCommand::Verify(args) => image_store::verify(globals, args).await,
    }
}

async fn ensure(globals: &Globals, args: Ensure) -> anyhow::Result<ExitCode> {
    let auth = args.account.auth()?;
    let client = globals.client()?;
    let bar = spinner();
    let mut images: Vec<EnsuredView> = Vec::new();
    for reference in &args.references {
        let ensured = one(&client, reference, auth.clone(), globals.timeout, &bar).await;
        match ensured {
            Ok(image) => images.push(image.into()),
            Err(error) => {
                bar.finish_and_clear();
                // What is here is worth knowing, whatever became of the rest.
                globals.out().print(&images, |images| images_text(images))?;
                return Err(error);
            }
        }
    }
    bar.finish_and_clear();
    globals.out().print(&images, |images| images_text(images))?;
    Ok(ExitCode::SUCCESS)
}

/// The first line of stdin. It stands in no list of processes and in no shell's history.
fn password() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Failure::new(exit::USAGE, "--password-stdin: there is no password on stdin").into());
    }
    Ok(password.to_owned())
}

async fn one(
    client: &Client,
    reference: &str,
    auth: Option<proto::RegistryAuth>,
    patience: Option<Duration>,
    bar: &ProgressBar,
) -> anyhow::Result<proto::EnsuredImage> {
    bar.set_message(reference.to_owned());
    let follow = async {
        let mut answers = client.ensure_image(reference, auth).await?;
        while let Some(answer) = answers.next().await? {
            match answer.event {
                Some(Event::Image(image)) => return Ok(image),
                Some(Event::Progress(progress)) => bar.set_message(progress_text(reference, &progress)),
                None => {}
            }
        }
        Err(Failure::new(exit::UNAVAILABLE, "EnsureImage: the daemon ended the stream without an answer; is it stopping?").into())
    };
    let Some(patience) = patience else { return follow.await };
    tokio::time::timeout(patience, follow).await.unwrap_or_else(|_| {
        let words = format!("{reference}: not here within {}; the fetch goes on", humantime::format_duration(patience));
        Err(Failure::new(exit::TEMPFAIL, words).into())
    })
}

fn progress_text(reference: &str, progress: &proto::FetchProgress) -> String {
    let mut words = vec![reference.to_owned()];
    if progress.layers > 0 {
        words.push(format!("{} of {} layers", progress.layers_done, progress.layers));
    }
    if progress.bytes_total > 0 {
        words.push(format!("{} of {}", indicatif::HumanBytes(progress.bytes), indicatif::HumanBytes(progress.bytes_total)));
    }
    if !progress.last_error.is_empty() {
        words.push(format!("attempt {}, after: {}", progress.attempt, progress.last_error));
    }
    words.join(", ")
}

fn images_text(images: &[EnsuredView]) -> String {
    let row = |image: &EnsuredView| {
        let how = match (image.fetched, image.stale_since.is_empty()) {
            (true, _) => "fetched",
            (false, true) => "was here",
            (false, false) => "was here, may be old",
        };
        vec![image.reference.clone(), how.to_owned(), image.id.clone(), image.digest.clone()]
    };
    table(&["reference", "", "id", "digest"], images.iter().map(row).collect())
}

async fn list(globals: &Globals, args: &List) -> anyhow::Result<ExitCode> {
    let response = globals.client()?.images().await?;
    let image = |image: proto::KnownImage| ImageView {
        since: views::time(image.since.as_ref()),
        age: views::age(image.since.as_ref()),
        reference: image.reference,
        state: image.state,
        id: image.id,
        digest: image.digest,
        failure: image.failure,
        error: image.error,
        private: image.private,
        placeholder: image.placeholder,
        checked: views::time(image.checked.as_ref()),
        stale_since: views::time(image.stale_since.as_ref()),
        stale_for: views::age(image.stale_since.as_ref()),
        stale_why: image.stale_why,
        used: views::time(image.used.as_ref()),
        last: views::age(image.used.as_ref()),
        held_until: views::time(image.held_until.as_ref()),
    };
    let failure = |failed: proto::ImageFailure| FailureView {
        at: views::time(failed.at.as_ref()),
        age: views::age(failed.at.as_ref()),
        reference: failed.reference,
        failure: failed.failure,
        error: failed.error,
        private: failed.private,
    };
    let built = |built: proto::BuiltImage| BuiltView {
        built: views::time(built.built.as_ref()),
        used: views::time(built.used.as_ref()),
        held_until: views::time(built.held_until.as_ref()),
        age: views::age(built.built.as_ref()),
        last: views::age(built.used.as_ref()),
        id: built.id,
        key: built.key,
        reference: built.reference,
    };
    let view = ListView {
        images: response.images.into_iter().map(image).collect(),
        built: (!response.built_unknown).then(|| response.built.into_iter().map(built).collect()),
        failures: response.failures.into_iter().map(failure).collect(),
    };
    if args.built && view.built.is_none() {
        return Err(Failure::new(exit::UNAVAILABLE, "what was built here is not known: the engine cannot be asked").into());
    }
    globals.out().print(&view, |view| list_text(view, args))?;
    Ok(ExitCode::SUCCESS)
}

fn list_text(view: &ListView, args: &List) -> String {
    let whose = |private: bool| if private { "a caller's" } else { "all" }.to_owned();
    if args.built {
        let row = |image: &BuiltView| vec![image.reference.clone(), image.age.clone(), image.last.clone(), image.id.clone()];
        return table(&["name", "built", "used", "id"], view.built.iter().flatten().map(row).collect());
    }
    if !args.failures {
        let row = |image: &ImageView| {
            let note = match (image.error.is_empty(), image.stale_since.is_empty()) {
                (false, _) => image.error.clone(),
                (true, false) => format!("may be old, for {}: {}", image.stale_for, image.stale_why),
                (true, true) => image.digest.clone(),
            };
            let whose = if image.placeholder { "the pool".to_owned() } else { whose(image.private) };
            let last = match (image.placeholder, image.held_until.is_empty()) {
                (true, _) => "always".to_owned(),
                (false, true) => image.last.clone(),
                (false, false) => format!("{}, held", image.last),
            };
            vec![image.reference.clone(), image.state.clone(), image.age.clone(), last, whose, image.id.clone(), note]
        };
        return table(&["reference", "state", "since", "used", "for", "id", "note"], view.images.iter().map(row).collect());
    }
    let row = |failed: &FailureView| {
        vec![failed.reference.clone(), failed.failure.clone(), failed.age.clone(), whose(failed.private), failed.error.clone()]
    };
    table(&["reference", "failure", "ago", "for", "error"], view.failures.iter().map(row).collect())
}
