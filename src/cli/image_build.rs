//! `image build`: a Dockerfile and its context, by folder where the daemon can read it, else as a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use futures::StreamExt as _;
use futures::stream::{self, Stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio_util::io::ReaderStream;

use super::Globals;
use super::exit::{self, Failure};
use super::output::table;
use super::progress::spinner;
use crate::client::{Client, ClientError};
use crate::image::build;
use crate::proto;
use crate::proto::build_image_request::Part;
use crate::proto::build_image_response::Event;

/// Of a tar on its way: less than the daemon's smallest usual `[api] max_message`.
const PIECE: usize = 32 << 10;

#[derive(Debug, Args)]
pub(super) struct Build {
    /// The context: a folder, or - for a tar on stdin
    #[arg(default_value = ".", value_name = "PATH")]
    context: PathBuf,
    /// The Dockerfile [default: PATH/Dockerfile]
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Build only this stage, and those it needs
    #[arg(long, default_value = "", hide_default_value = true)]
    target: String,
    /// A build arg; NAME alone takes its value from the environment
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    build_args: Vec<String>,
    /// os/arch[/variant] [default: the engine's own]
    #[arg(long, default_value = "", hide_default_value = true)]
    platform: String,
    /// Build it, though there is an image of it, and without the engine's build cache
    #[arg(long)]
    anew: bool,
}

#[derive(Debug, Serialize)]
struct BuiltView {
    id: String,
    key: String,
    reference: String,
    reused: bool,
}

pub(super) async fn run(globals: &Globals, args: Build) -> anyhow::Result<ExitCode> {
    let (client, bar) = (globals.client()?, spinner());
    let built = async {
        if args.context == Path::new("-") {
            let stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
            let definition = definition(&args, None)?;
            return Ok(send(&client, definition, Some(stdin), &bar).await?);
        }
        by_folder_or_tar(&client, &args, &bar).await
    };
    let built = match globals.timeout {
        None => built.await,
        Some(patience) => tokio::time::timeout(patience, built).await.unwrap_or_else(|_| {
            let words = format!("not built within {}; a build that has begun goes on", humantime::format_duration(patience));
            Err(Failure::new(exit::TEMPFAIL, words).into())
        }),
    };
    bar.finish_and_clear();
    let proto::BuiltImage { id, key, reference, reused, .. } = built?;
    globals.out().print(&BuiltView { id, key, reference, reused }, |view| {
        let how = if view.reused { "was here" } else { "built" };
        table(&["", "id", "name"], vec![vec![how.to_owned(), view.id.clone(), view.reference.clone()]])
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The daemon may see other folders than we do, and reads them for operators only; then it gets a tar.
async fn by_folder_or_tar(client: &Client, args: &Build, bar: &ProgressBar) -> anyhow::Result<proto::BuiltImage> {
    let unreadable = |error| Failure::new(exit::USAGE, format!("{}: {error}", args.context.display()));
    let folder = args.context.canonicalize().map_err(unreadable)?;
    let seen = folder.metadata().map_err(unreadable)?;
    if !seen.is_dir() {
        let words = format!("{}: not a folder; for a tar: nspool image build - <{}", args.context.display(), args.context.display());
        return Err(Failure::new(exit::USAGE, words).into());
    }
    let definition = definition(args, Some(&folder))?;
    if let Some(path) = folder.to_str() {
        let by_folder = proto::BuildDefinition {
            context_folder: path.to_owned(),
            context_device: seen.dev(),
            context_inode: seen.ino(),
            ..definition.clone()
        };
        match send(client, by_folder, None, bar).await {
            Err(error) if ["CONTEXT_UNREADABLE", "NOT_ALLOWED"].contains(&error.reason()) => {}
            other => return Ok(other?),
        }
    }
    let named = if definition.dockerfile.is_empty() { "Dockerfile" } else { &definition.dockerfile };
    let dockerfile = definition.dockerfile_content.is_empty().then(|| named.to_owned());
    let tar = build::tar_of(&folder, dockerfile.as_deref(), u64::MAX);
    let tar = tar.map_err(|error| anyhow::Error::new(error).context(format!("packing {}", folder.display())))?;
    Ok(send(client, definition, Some(tar), bar).await?)
}

/// Without a context.
fn definition(args: &Build, folder: Option<&Path>) -> anyhow::Result<proto::BuildDefinition> {
    let mut build_args = HashMap::new();
    for arg in &args.build_args {
        match arg.split_once('=') {
            Some((name, value)) => drop(build_args.insert(name.to_owned(), value.to_owned())),
            // As docker does: what is not there is not given.
            None => drop(std::env::var(arg).ok().map(|value| build_args.insert(arg.clone(), value))),
        }
    }
    let (mut dockerfile, mut dockerfile_content) = (String::new(), String::new());
    match (&args.file, folder) {
        (None, _) => {}
        // In the tar.
        (Some(file), None) => dockerfile = utf8(file)?,
        (Some(file), Some(folder)) => {
            let unreadable = |error| Failure::new(exit::USAGE, format!("{}: {error}", file.display()));
            let file = file.canonicalize().map_err(unreadable)?;
            match file.strip_prefix(folder) {
                Ok(inside) => dockerfile = utf8(inside)?,
                Err(_) => dockerfile_content = std::fs::read_to_string(&file).map_err(unreadable)?,
            }
        }
    }
    let (target, platform) = (args.target.clone(), args.platform.clone());
    Ok(proto::BuildDefinition { dockerfile, dockerfile_content, target, platform, build_args, anew: args.anew, ..Default::default() })
}

fn utf8(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::new(exit::USAGE, format!("{}: its name is not UTF-8", path.display())).into())
}

fn parts(definition: proto::BuildDefinition, tar: Option<File>) -> impl Stream<Item = proto::BuildImageRequest> + Send + 'static {
    let first = stream::iter([proto::BuildImageRequest { part: Some(Part::Definition(definition)) }]);
    let pieces = stream::iter(tar).flat_map(|tar| ReaderStream::with_capacity(tokio::fs::File::from_std(tar), PIECE));
    let pieces = pieces.scan((), |(), piece| {
        // The daemon is told by a tar that ends too early.
        let piece = piece.inspect_err(|error| _ = writeln!(std::io::stderr(), "nspool: reading the context: {error}"));
        futures::future::ready(piece.ok())
    });
    first.chain(pieces.map(|piece| proto::BuildImageRequest { part: Some(Part::Context(piece.to_vec())) }))
}

async fn send(
    client: &Client,
    definition: proto::BuildDefinition,
    tar: Option<File>,
    bar: &ProgressBar,
) -> Result<proto::BuiltImage, ClientError> {
    bar.set_message("reading the context, and having the images that it begins from");
    let mut answers = client.build_image(parts(definition, tar)).await?;
    while let Some(answer) = answers.next().await? {
        match answer.event {
            Some(Event::Image(image)) => return Ok(image),
            Some(Event::Log(log)) => bar.suspend(|| say(&log)),
            None => {}
        }
    }
    Err(ClientError::BadReply { operation: "BuildImage", what: "the stream has ended without an answer" })
}

/// What a build prints, to stderr: stdout is for the image.
fn say(log: &proto::BuildLog) {
    let mut stderr = std::io::stderr().lock();
    if log.missed > 0 {
        // Nobody can be told when stderr is closed.
        _ = writeln!(stderr, "({} lines were missed)", log.missed);
    }
    for line in &log.lines {
        _ = writeln!(stderr, "{}", line.replace(|char: char| char.is_control() && char != '\t', " "));
    }
}
