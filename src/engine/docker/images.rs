//! Images: what is here, what is loaded, pulled and named.
//!
//! The two engines differ in one thing that matters: Docker takes a manifest that it has for an answer when a pull names a digest, and asks no
//! registry then. Whoever pulls with credentials wants to know whether *they* are good for it, so Docker is told to ask first ([`Docker::pull`]).

use std::collections::HashMap;
use std::fs::File;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::models::{BuildInfo, CreateImageInfo, ImageSummary};
use bollard::query_parameters::{BuildImageOptions, CreateImageOptions, ImportImageOptions, ListImagesOptions, TagImageOptions};
use futures::stream::{self, Stream};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_util::io::ReaderStream;

use super::{Docker, convert, errors};
use crate::engine::{
    BuildSpec, Chunks, Credentials, EngineError, EngineKind, ErrorClass, Image, ImageArchive, ImageId, Labels, LayerStage, PullStep,
};

/// Of a context on its way.
const CHUNK: usize = 1 << 18;

/// Of `/images/<reference>/json`. podman says null for an empty list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: Option<String>,
    repo_tags: Option<Vec<String>>,
    repo_digests: Option<Vec<String>>,
    config: Option<InspectedConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    labels: Option<Labels>,
}

/// How long podman is let be after an answer that was none, in milliseconds.
const AGAIN_AFTER: [u64; 4] = [10, 40, 160, 640];

/// While an image is on its way in or out, podman answers questions about it, and about all others, by a 500 in ever other words ("locating item named
/// manifest", "failed to convert ImageData", another one's "image not known"): that passes within milliseconds, and what it says then holds.
pub(super) async fn again<T, F>(ask: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    for wait in AGAIN_AFTER {
        match ask().await {
            Err(Error::DockerResponseServerError { status_code: 500, .. }) => tokio::time::sleep(Duration::from_millis(wait)).await,
            answer => return answer,
        }
    }
    ask().await
}

impl Docker {
    pub(super) async fn about_images<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        again(|| self.reader.get(path)).await
    }

    pub(super) async fn look_at_image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        if !convert::is_path_safe(reference) {
            return Err(errors::refused("inspect image", ErrorClass::Refused, reference, "not an image reference"));
        }
        match self.about_images::<Inspected>(&format!("/images/{reference}/json")).await {
            Ok(Inspected { id, repo_tags, repo_digests, config }) => Ok(id.map(|id| Image {
                id: ImageId::from(id),
                tags: repo_tags.unwrap_or_default(),
                digests: repo_digests.unwrap_or_default(),
                labels: config.and_then(|config| config.labels).unwrap_or_default(),
            })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(errors::convert("inspect image", reference, &error)),
        }
    }

    pub(super) async fn load(&self, archive: ImageArchive) -> Result<(), EngineError> {
        let body = match archive {
            ImageArchive::Whole(bytes) => bollard::body_full(bytes.into()),
            ImageArchive::Chunks(chunks) => bollard::body_try_stream(chunks),
        };
        let stream = self.client.import_image(ImportImageOptions::default(), body, None);
        drain("load", "", stream, |_| {}).await
    }

    /// Waits for the first piece, so that an image that is not there is this call's error and not the archive's.
    pub(super) async fn save(&self, reference: &str) -> Result<Chunks, EngineError> {
        if !convert::is_path_safe(reference) {
            return Err(errors::refused("save", ErrorClass::Refused, reference, "not an image reference"));
        }
        let subject = reference.to_owned();
        let mut pieces = self.client.export_image(reference).map_err(move |error| errors::convert("save", &subject, &error)).boxed();
        let first = pieces.try_next().await?;
        Ok(stream::iter(first.map(Ok)).chain(pieces).map_err(std::io::Error::other).boxed())
    }

    pub(super) async fn pull(
        &self,
        reference: &str,
        credentials: Option<&Credentials>,
        told: &(dyn Fn(PullStep) + Send + Sync),
    ) -> Result<(), EngineError> {
        let secret = credentials.map_or("", |credentials| &credentials.secret);
        let pulled = self.pull_by(reference, credentials.map(|credentials| registry_auth(reference, credentials)), told).await;
        pulled.map_err(|error| errors::without_secret(error, secret))
    }

    async fn pull_by(
        &self,
        reference: &str,
        auth: Option<DockerCredentials>,
        told: &(dyn Fn(PullStep) + Send + Sync),
    ) -> Result<(), EngineError> {
        let (name, tag) = convert::split_reference(reference);
        if reference.contains('@') && self.kind("pull", reference).await? == EngineKind::Docker {
            if !convert::is_path_safe(reference) {
                return Err(errors::refused("pull", ErrorClass::Refused, reference, "not an image reference"));
            }
            let asked = self.client.inspect_registry_image(reference, auth.clone()).await;
            asked.map_err(|error| errors::convert("pull", reference, &error))?;
        }
        let options = CreateImageOptions { from_image: Some(name.to_owned()), tag: Some(tag.to_owned()), ..Default::default() };
        let stream = self.client.create_image(Some(options), None, auth);
        drain("pull", reference, stream, |info| step(info).into_iter().for_each(told)).await
    }

    pub(super) async fn images_with(&self, label: &str) -> Result<Vec<Image>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![label.to_owned()])]);
        let options = ListImagesOptions { filters: Some(filters), ..Default::default() };
        let listed = again(|| self.client.list_images(Some(options.clone()))).await;
        let listed = listed.map_err(|error| errors::convert("images", label, &error))?;
        let image = |image: ImageSummary| Image {
            id: ImageId::from(image.id),
            tags: image.repo_tags,
            digests: image.repo_digests,
            labels: image.labels.into_iter().collect(),
        };
        Ok(listed.into_iter().map(image).collect())
    }

    /// By Docker's classic builder, or podman's own: what BuildKit tells of a build is for its own client.
    pub(super) async fn build(&self, spec: &BuildSpec, context: File, told: &(dyn Fn(&str) + Send + Sync)) -> Result<(), EngineError> {
        let options = BuildImageOptions {
            dockerfile: spec.dockerfile.clone(),
            t: Some(spec.tag.clone()),
            target: spec.target.clone(),
            buildargs: Some(spec.args.clone().into_iter().collect()),
            labels: Some(spec.labels.clone().into_iter().collect()),
            platform: spec.platform.clone(),
            nocache: spec.anew,
            // Also those of a build that fails, which Docker else keeps.
            rm: true,
            forcerm: true,
            ..Default::default()
        };
        let chunks = ReaderStream::with_capacity(tokio::fs::File::from_std(context), CHUNK);
        let stream = self.client.build_image(options, None, Some(bollard::body_try_stream(chunks)));
        let hear = |info: BuildInfo| info.stream.iter().for_each(|words| told(words));
        drain("build", &spec.tag, stream, hear).await
    }

    pub(super) async fn tag(&self, id: &ImageId, repository: &str, tag: &str) -> Result<(), EngineError> {
        if !convert::is_path_safe(id.as_str()) {
            return Err(errors::refused("tag", ErrorClass::NotFound, id.as_str(), "no image can have this id"));
        }
        let options = TagImageOptions { repo: Some(repository.to_owned()), tag: Some(tag.to_owned()) };
        let tagged = self.client.tag_image(id.as_str(), Some(options)).await;
        tagged.map_err(|error| errors::convert("tag", id.as_str(), &error))
    }
}

/// There is no such image. podman may say it by a 500, [`again`] and again.
pub(super) fn is_gone(error: &Error) -> bool {
    let Error::DockerResponseServerError { status_code, message } = error else { return false };
    *status_code == 404 || *status_code == 500 && message.contains("image not known")
}

/// Reads a pull's or load's progress to its end; an error inside it is the call's error.
async fn drain<T>(
    operation: &'static str,
    subject: &str,
    stream: impl Stream<Item = Result<T, Error>>,
    told: impl Fn(T),
) -> Result<(), EngineError> {
    let read = stream.try_for_each(|line| {
        told(line);
        futures::future::ready(Ok(()))
    });
    read.await.map_err(|error| errors::convert(operation, subject, &error))
}

/// What a line of a pull says of a layer; most other lines say what goes before or comes after the layers.
fn step(info: CreateImageInfo) -> Option<PullStep> {
    let (layer, status) = (info.id?, info.status?);
    let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default();
    let stage = match status.as_str() {
        "Pulling fs layer" | "Waiting" => LayerStage::Waiting,
        "Downloading" => {
            let detail = info.progress_detail?;
            LayerStage::Downloading { current: bytes(detail.current), total: bytes(detail.total) }
        }
        "Verifying Checksum" | "Download complete" | "Extracting" => LayerStage::Downloaded,
        "Pull complete" | "Already exists" => LayerStage::Done,
        _ => return None,
    };
    Some(PullStep { layer, stage })
}

/// What goes into the registry header: an account, or an identity token when there is no user name.
fn registry_auth(reference: &str, credentials: &Credentials) -> DockerCredentials {
    let serveraddress = Some(convert::registry(reference).to_owned());
    let secret = Some(credentials.secret.clone());
    if credentials.username.is_empty() {
        return DockerCredentials { identitytoken: secret, serveraddress, ..Default::default() };
    }
    DockerCredentials { username: Some(credentials.username.clone()), password: secret, serveraddress, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use bollard::models::ProgressDetail;

    use super::*;

    /// The answers one after the other, the last one for ever; how many were taken, too.
    async fn asked(answers: &[(u16, &str)]) -> (Result<(), Error>, u32) {
        let taken = AtomicU32::new(0);
        let answered = again(|| async {
            let turn = taken.fetch_add(1, Ordering::Relaxed) as usize;
            match answers[turn.min(answers.len() - 1)] {
                (200, _) => Ok(()),
                (status_code, message) => Err(Error::DockerResponseServerError { status_code, message: message.into() }),
            }
        });
        (answered.await, taken.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_is_asked_again_and_what_holds_is_told() {
        let (answered, taken) =
            asked(&[(500, "locating image with ID \"d8\": image not known"), (500, "layer not known"), (200, "")]).await;
        assert!(answered.is_ok() && taken == 3, "{answered:?} {taken}");
        let (answered, taken) = asked(&[(500, "image not known"), (404, "no such image")]).await;
        assert!(is_gone(&answered.unwrap_err()) && taken == 2, "{taken}");
        let (answered, taken) = asked(&[(500, "no space left on device")]).await;
        assert!(answered.unwrap_err().to_string().contains("no space left") && taken == 1 + u32::try_from(AGAIN_AFTER.len()).unwrap());
        for others in [404, 409, 503] {
            assert_eq!(asked(&[(others, "no"), (200, "")]).await.1, 1, "{others}");
        }
    }

    #[test]
    fn lines_about_layers_are_steps_and_the_others_are_not() {
        let line = |id: Option<&str>, status: &str, detail| CreateImageInfo {
            id: id.map(str::to_owned),
            status: Some(status.to_owned()),
            progress_detail: detail,
            ..CreateImageInfo::default()
        };
        let of = |status: &str, detail| step(line(Some("4f4fb700ef54"), status, detail)).map(|step| step.stage);
        let detail = |current, total| Some(ProgressDetail { current: Some(current), total });
        assert_eq!(of("Pulling fs layer", None), Some(LayerStage::Waiting));
        assert_eq!(of("Downloading", detail(7, Some(9))), Some(LayerStage::Downloading { current: 7, total: 9 }));
        assert_eq!(of("Downloading", detail(7, None)), Some(LayerStage::Downloading { current: 7, total: 0 }));
        assert_eq!(of("Downloading", detail(-7, Some(-1))), Some(LayerStage::Downloading { current: 0, total: 0 }));
        // Its bytes count another thing.
        assert_eq!(of("Extracting", detail(1, Some(9))), Some(LayerStage::Downloaded));
        assert_eq!(of("Pull complete", None), Some(LayerStage::Done));
        assert_eq!(of("Retrying in 3 seconds", None), None);
        assert_eq!(step(line(None, "Digest: sha256:00", None)), None);
        assert_eq!(step(line(Some("latest"), "Pulling from library/busybox", None)), None);
    }
}
