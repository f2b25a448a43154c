//! `nspool.v1.ImageCache`: images for whoever may call, each fetch followed by as many as ask.
//!
//! Progress and outcome go out as [`follow`](super::follow) says. A caller that goes away stops following, which ends nothing else.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::connection::Peer;
use super::follow::{Following, Heard};
use super::image_builds::Builder;
use super::status::Refusal;
use super::{Shared, image_builds, image_push, image_room, validate};
use crate::engine::Credentials;
use crate::image::build;
use crate::image::cache::{Cache, Ensured, Failed, Failure, ImageState, Kind, Row, Told};
use crate::image::freshness::Stale;
use crate::image::gate::Placeholder;
use crate::image::reference::Reference;
use crate::proto;
use crate::proto::build_image_response;
use crate::proto::ensure_image_response::Event;
use crate::proto::image_cache_server::ImageCache;
use crate::proto::push_image_response;
use crate::telemetry::metric;

/// See the module. One instance per connection, which knows its peer.
pub(super) struct ImageService {
    shared: Arc<Shared>,
    peer: Peer,
}

impl ImageService {
    pub(super) fn new(shared: Arc<Shared>, peer: Peer) -> Self {
        Self { shared, peer }
    }

    fn cache(&self) -> Result<&Cache, Refusal> {
        self.shared.images.as_ref().map(|images| &images.cache).ok_or(Refusal::NoEngine)
    }

    /// What was built here, asked of the engine if need be.
    async fn built(&self) -> Option<Vec<build::Row>> {
        let builds = &self.shared.images.as_ref()?.builds;
        builds.list().await;
        builds.rows()
    }

    /// When it was asked for last, and for how long it is held.
    fn with_use(&self, image: proto::KnownImage) -> proto::KnownImage {
        let (used, held_until) = self.use_of(&image.id);
        proto::KnownImage { used, held_until, ..image }
    }

    fn built_with_use(&self, row: build::Row) -> proto::BuiltImage {
        let image = image_builds::listed(row);
        let (used, held_until) = self.use_of(&image.id);
        proto::BuiltImage { used: used.or(image.used), held_until, ..image }
    }

    fn use_of(&self, id: &str) -> (Option<prost_types::Timestamp>, Option<prost_types::Timestamp>) {
        let Some(uses) = self.shared.images.as_ref().map(|images| images.room.uses()) else { return (None, None) };
        let known = uses.of(id).filter(|_| !id.is_empty());
        let held = known.as_ref().map(|known| known.held_until).filter(|until| *until > uses.now());
        (known.map(|known| known.asked.into()), held.map(Into::into))
    }

    fn begin(&self, asked: proto::EnsureImageRequest) -> Result<Follower, Refusal> {
        let cache = self.cache()?;
        let (reference, credentials) = validate::image(&asked.reference, asked.auth)?;
        let own = credentials.is_some();
        tracing::debug!(%reference, own_credentials = own, peer_uid = self.peer.uid, peer_pid = self.peer.pid, "an image is asked for");
        let following = Following::new(cache.ensure(&reference, credentials), self.shared.stop.clone());
        Ok(Follower { reference, following })
    }
}

#[tonic::async_trait]
impl ImageCache for ImageService {
    type EnsureImageStream = BoxStream<'static, Result<proto::EnsureImageResponse, Status>>;

    async fn ensure_image(&self, request: Request<proto::EnsureImageRequest>) -> Result<Response<Self::EnsureImageStream>, Status> {
        let follower = self.begin(request.into_inner()).inspect_err(|refusal| count(refusal.reason().metric()))?;
        let messages = stream::try_unfold(Some(follower), |follower| async move {
            let Some(mut follower) = follower else { return Ok(None) };
            let event = follower.next().await.inspect_err(|refusal| count(refusal.reason().metric()))?;
            let over = matches!(event, Event::Image(_));
            Ok::<_, Status>(Some((proto::EnsureImageResponse { event: Some(event) }, (!over).then_some(follower))))
        });
        Ok(Response::new(messages.boxed()))
    }

    type BuildImageStream = BoxStream<'static, Result<proto::BuildImageResponse, Status>>;

    async fn build_image(&self, request: Request<Streaming<proto::BuildImageRequest>>) -> Result<Response<Self::BuildImageStream>, Status> {
        let builder = Builder::new(Arc::clone(&self.shared), self.peer, request.into_inner())?;
        let messages = stream::try_unfold(Some(builder), |builder| async move {
            let Some(mut builder) = builder else { return Ok(None) };
            let event = builder.next().await?;
            let over = matches!(event, build_image_response::Event::Image(_));
            Ok::<_, Status>(Some((proto::BuildImageResponse { event: Some(event) }, (!over).then_some(builder))))
        });
        Ok(Response::new(messages.boxed()))
    }

    type PushImageStream = BoxStream<'static, Result<proto::PushImageResponse, Status>>;

    async fn push_image(&self, request: Request<proto::PushImageRequest>) -> Result<Response<Self::PushImageStream>, Status> {
        let follower = image_push::Follower::new(Arc::clone(&self.shared), self.peer, request.into_inner()).await?;
        let messages = stream::try_unfold(Some(follower), |follower| async move {
            let Some(mut follower) = follower else { return Ok(None) };
            let event = follower.next().await?;
            let over = matches!(event, push_image_response::Event::Pushed(_));
            Ok::<_, Status>(Some((proto::PushImageResponse { event: Some(event) }, (!over).then_some(follower))))
        });
        Ok(Response::new(messages.boxed()))
    }

    type PruneImagesStream = BoxStream<'static, Result<proto::PruneImagesResponse, Status>>;

    async fn prune_images(&self, request: Request<proto::PruneImagesRequest>) -> Result<Response<Self::PruneImagesStream>, Status> {
        Ok(Response::new(image_room::prune(&self.shared, self.peer, request.into_inner())?))
    }

    async fn list_images(&self, _: Request<proto::ListImagesRequest>) -> Result<Response<proto::ListImagesResponse>, Status> {
        let cache = self.cache()?;
        let all = self.shared.is_admin(self.peer);
        let own = self.shared.status.borrow().placeholder.clone().map(|(reference, shown)| placeholder(reference, &shown));
        let images = cache.images().into_iter().filter(|row| all || !row.private).map(known).map(|image| self.with_use(image)).chain(own);
        let failures = cache.failures().into_iter().filter(|failed| all || !failed.private);
        let (images, failures) = (images.collect(), failures.map(failure).collect());
        let built = self.built().await;
        let (built_unknown, built) = (built.is_none(), built.unwrap_or_default().into_iter().map(|row| self.built_with_use(row)).collect());
        Ok(Response::new(proto::ListImagesResponse { images, failures, built, built_unknown }))
    }
}

fn count(outcome: &'static str) {
    metrics::counter!(metric::IMAGE_ENSURES, "outcome" => outcome).increment(1);
}

/// One caller's view of a fetch.
struct Follower {
    reference: Reference,
    following: Following<Told, proto::FetchProgress>,
}

impl Follower {
    /// Cancel safe.
    async fn next(&mut self) -> Result<Event, Refusal> {
        let read = |told: Told| match told.outcome {
            Some(outcome) => Heard::Outcome(outcome),
            None => Heard::Progress(progress(&told)),
        };
        let lost = || Failure::new(Kind::Failed, "the fetch ended without a word: a bug in nspool");
        match self.following.next(read, lost).await? {
            Heard::Progress(progress) => Ok(Event::Progress(progress)),
            Heard::Outcome(ensured) => {
                count(if ensured.fetched { "fetched" } else { "present" });
                Ok(Event::Image(image(&self.reference, ensured)))
            }
        }
    }
}

fn progress(told: &Told) -> proto::FetchProgress {
    let crate::image::cache::Progress { attempt, layers, layers_done, bytes, bytes_total } = told.progress;
    let last_error = told.after.as_deref().unwrap_or_default().to_owned();
    proto::FetchProgress { attempt, layers, layers_done, bytes, bytes_total, last_error }
}

fn image(reference: &Reference, ensured: Ensured) -> proto::EnsuredImage {
    let Ensured { id, digest, fetched, stale } = ensured;
    let stale_since = stale.map(|stale| stale.since.into());
    proto::EnsuredImage { id: id.to_string(), digest, fetched, reference: reference.to_string(), stale_since }
}

fn known(row: Row) -> proto::KnownImage {
    let Row { reference, private, state, since, checked, stale } = row;
    let checked = checked.map(Into::into);
    let image = with_age(proto::KnownImage { reference, private, since: Some(since.into()), checked, ..Default::default() }, stale);
    match state {
        ImageState::Fetching => proto::KnownImage { state: "fetching".to_owned(), ..image },
        ImageState::Present(Ensured { id, digest, .. }) => {
            proto::KnownImage { state: "present".to_owned(), id: id.to_string(), digest, ..image }
        }
        ImageState::Failed(Failure { kind, why, .. }) => {
            proto::KnownImage { state: "failed".to_owned(), failure: kind.word().to_owned(), error: why.to_string(), ..image }
        }
    }
}

fn with_age(image: proto::KnownImage, stale: Option<Stale>) -> proto::KnownImage {
    let Some(Stale { since, why }) = stale else { return image };
    proto::KnownImage { stale_since: Some(since.into()), stale_why: why.to_string(), ..image }
}

fn placeholder(reference: String, shown: &Placeholder) -> proto::KnownImage {
    let Placeholder { id, digest, since, stale } = shown.clone();
    let (id, state, since) = (id.to_string(), "present".to_owned(), Some(since.into()));
    with_age(proto::KnownImage { reference, id, digest, state, since, placeholder: true, ..Default::default() }, stale)
}

fn failure(failed: Failed) -> proto::ImageFailure {
    let Failed { reference, private, at, failure } = failed;
    let Failure { kind, why, .. } = failure;
    proto::ImageFailure { reference, at: Some(at.into()), failure: kind.word().to_owned(), error: why.to_string(), private }
}

impl From<proto::RegistryAuth> for Credentials {
    fn from(auth: proto::RegistryAuth) -> Self {
        if auth.identity_token.is_empty() {
            return Self { username: auth.username, secret: auth.password };
        }
        Self { username: String::new(), secret: auth.identity_token }
    }
}
