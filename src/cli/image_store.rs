//! `image import`, `image verify`: this host's image store, without a daemon.
//!
//! The store is for several processes at once, so a daemon that uses it may run meanwhile.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Globals;
use super::exit::{self, Failure};
use super::output::{say, table};
use super::progress::spinner;
use crate::image::reference::{BadReference, Reference};
use crate::image::store::{DEFAULT, Options, Store, StoreError, StoredImage, Verified};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker save busybox:1.36 | nspool image import -
  nspool image import /media/usb/functions.tar
  skopeo copy docker://quay.io/org/fn:7 oci:/tmp/fn && nspool image import /tmp/fn --as quay.io/org/fn:7

For hosts without a network. Tars of docker save and podman save, OCI layouts as folders or in tars. What is not an image archive (a path that leads
out of it, a device), or has a wrong digest, is refused, and nothing of it is kept. All images of a file are there at once, or none.
Exit code 1: a file is not to be taken. 75: no space left. 77: not allowed.")]
pub(super) struct Import {
    /// Tars, folders, or - for stdin
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The image's name, in place of its own; for one file with one image
    #[arg(long = "as", value_name = "REF", value_parser = reference)]
    name: Option<Reference>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nspool image verify
  nspool image verify -o json | jq -r '.faults[].path'

Reads and hashes every blob. Changes nothing; a broken image is mended by importing or pulling it again.
Exit code 1: something is broken.")]
pub(super) struct Verify {
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// The store's folder
    #[arg(long, value_name = "DIR", default_value = DEFAULT)]
    store: PathBuf,
}

fn reference(text: &str) -> Result<Reference, BadReference> {
    Reference::parse(text)
}

#[derive(Debug, Serialize)]
struct ImportedView {
    references: Vec<String>,
    id: String,
    digest: String,
    size: u64,
    layers: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

impl From<StoredImage> for ImportedView {
    fn from(image: StoredImage) -> Self {
        let StoredImage { id, manifest, names, size, layers, origin } = image;
        Self {
            references: names,
            id: id.to_string(),
            digest: manifest.to_string(),
            size,
            layers,
            origin: origin.map(|origin| origin.to_string()),
        }
    }
}

#[derive(Debug, Serialize)]
struct VerifiedView {
    images: usize,
    blobs: usize,
    bytes: u64,
    faults: Vec<FaultView>,
}

#[derive(Debug, Serialize)]
struct FaultView {
    path: String,
    error: String,
    images: Vec<String>,
}

impl From<Verified> for VerifiedView {
    fn from(verified: Verified) -> Self {
        let Verified { images, blobs, bytes, faults } = verified;
        let fault = |fault: crate::image::store::Fault| FaultView {
            path: fault.path.display().to_string(),
            error: fault.why,
            images: fault.images,
        };
        Self { images, blobs, bytes, faults: faults.into_iter().map(fault).collect() }
    }
}

pub(super) async fn import(globals: &Globals, args: Import) -> anyhow::Result<ExitCode> {
    let Import { paths, name, place } = args;
    if name.is_some() && paths.len() > 1 {
        return Err(Failure::new(exit::USAGE, "--as names one image: import one file at a time").into());
    }
    let store = open(place).await?;
    let bar = spinner();
    let mut images: Vec<ImportedView> = Vec::new();
    for path in paths {
        bar.set_message(path.display().to_string());
        let (store, name, from) = (store.clone(), name.clone(), path.clone());
        match blocking(move || import_one(&store, &from, name.as_ref())).await? {
            Ok(stored) => images.extend(stored.into_iter().map(ImportedView::from)),
            Err(error) => {
                bar.finish_and_clear();
                // What is in the store is worth knowing, whatever became of the rest.
                globals.out().print(&images, |images| images_text(images))?;
                return Err(failed(&path.display().to_string(), &error));
            }
        }
    }
    bar.finish_and_clear();
    globals.out().print(&images, |images| images_text(images))?;
    Ok(ExitCode::SUCCESS)
}

fn import_one(store: &Store, path: &PathBuf, name: Option<&Reference>) -> Result<Vec<StoredImage>, StoreError> {
    if path.as_os_str() == "-" {
        return store.import_tar(io::stdin().lock(), name);
    }
    if path.is_dir() {
        return store.import_folder(path, name);
    }
    store.import_tar(std::fs::File::open(path).map_err(StoreError::Source)?, name)
}

pub(super) async fn verify(globals: &Globals, args: Verify) -> anyhow::Result<ExitCode> {
    let folder = args.place.store.display().to_string();
    let store = open(args.place).await?;
    let bar = spinner();
    bar.set_message(format!("reading {folder}"));
    let verified = blocking(move || store.verify()).await?;
    bar.finish_and_clear();
    let view = VerifiedView::from(verified.map_err(|error| failed(&folder, &error))?);
    globals.out().print(&view, verified_text)?;
    Ok(if view.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FOUND) })
}

async fn open(place: Place) -> anyhow::Result<Store> {
    let folder = place.store.display().to_string();
    let opened = blocking(move || Store::open(&place.store, Options::default())).await?;
    opened.map_err(|error| failed(&folder, &error))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// With its whole chain: the codes go by what it is.
fn failed(subject: &str, error: &StoreError) -> anyhow::Error {
    let source = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    let code = match error {
        StoreError::Full { .. } => exit::TEMPFAIL,
        StoreError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => exit::NOPERM,
        StoreError::Io { .. } => exit::UNAVAILABLE,
        StoreError::NotAStore { .. } | StoreError::Source(_) => exit::USAGE,
        StoreError::Broken { .. }
        | StoreError::Digest { .. }
        | StoreError::Size { .. }
        | StoreError::Missing { .. }
        | StoreError::Refused { .. }
        | StoreError::Name { .. } => exit::FOUND,
    };
    let advice = match error {
        StoreError::Full { .. } => "\n  Nothing of it was kept: make room, and import it again.",
        StoreError::Broken { .. } => "\n  `nspool image verify` names all that is broken.",
        StoreError::Io { .. }
        | StoreError::NotAStore { .. }
        | StoreError::Source(_)
        | StoreError::Digest { .. }
        | StoreError::Size { .. }
        | StoreError::Missing { .. }
        | StoreError::Refused { .. }
        | StoreError::Name { .. } => "",
    };
    Failure::new(code, format!("{subject}: {error}{source}{advice}")).into()
}

fn images_text(images: &[ImportedView]) -> String {
    let row = |image: &ImportedView| vec![image.references.join(", "), image.id.clone(), indicatif::HumanBytes(image.size).to_string()];
    table(&["reference", "id", "size"], images.iter().map(row).collect())
}

fn verified_text(view: &VerifiedView) -> String {
    let (images, blobs, bytes) = (view.images, view.blobs, indicatif::HumanBytes(view.bytes));
    say(&format!(
        "{images} images, {blobs} good blobs, {bytes}: {}",
        if view.faults.is_empty() { "all is well" } else { "something is broken" }
    ));
    if view.faults.is_empty() {
        return String::new();
    }
    let row = |fault: &FaultView| vec![fault.path.clone(), fault.error.clone(), fault.images.join(", ")];
    table(&["broken", "why", "images"], view.faults.iter().map(row).collect())
}
