//! `PushImage`: for operators, each push followed by as many as ask.
//!
//! Progress and outcome go out as [`follow`](super::follow) says. A caller that goes away stops following, which ends nothing else.

use std::sync::Arc;

use super::connection::Peer;
use super::follow::{Following, Heard};
use super::status::Refusal;
use super::{Shared, validate};
use crate::image::cache::{Failure, Kind};
use crate::image::push::{Layers, Pushed, Told};
use crate::image::reference::Reference;
use crate::proto;
use crate::proto::push_image_response::Event;

/// One caller's view of a push.
pub(super) struct Follower {
    target: Reference,
    following: Following<Told, proto::PushProgress>,
}

impl Follower {
    /// Who may not push is told so before the engine is asked for anything.
    pub(super) async fn new(shared: Arc<Shared>, peer: Peer, asked: proto::PushImageRequest) -> Result<Self, Refusal> {
        let pusher = shared.images.as_ref().ok_or(Refusal::NoEngine)?.pusher.clone();
        if !shared.is_admin(peer) {
            return Err(Refusal::NotAllowed { uid: peer.uid });
        }
        let (source, target, credentials) = validate::push(&asked.source, &asked.target, asked.auth)?;
        let own = credentials.is_some();
        tracing::debug!(?source, %target, own_credentials = own, peer_uid = peer.uid, peer_pid = peer.pid, "an image is to be pushed");
        let begun = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return Err(Refusal::Stopping),
            begun = pusher.push(&source, &target, credentials) => begun,
        };
        let following = Following::new(begun.map_err(Refusal::NotFetched)?, shared.stop.clone());
        Ok(Self { target, following })
    }

    /// The next answer; [`Event::Pushed`] is the last. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Event, Refusal> {
        let read = |told: Told| match told.outcome {
            Some(outcome) => Heard::Outcome(outcome),
            None => Heard::Progress(progress(&told)),
        };
        let lost = || Failure::new(Kind::PushFailed, "the push ended without a word: a bug in nspool");
        match self.following.next(read, lost).await? {
            Heard::Progress(progress) => Ok(Event::Progress(progress)),
            Heard::Outcome(done) => Ok(Event::Pushed(pushed(&self.target, &done))),
        }
    }
}

fn progress(told: &Told) -> proto::PushProgress {
    let crate::image::push::Progress { layers, layers_done, bytes, bytes_total } = told.progress;
    proto::PushProgress { layers, layers_done, bytes, bytes_total }
}

fn pushed(target: &Reference, pushed: &Pushed) -> proto::PushedImage {
    let Pushed { id, digest, layers, bytes } = pushed;
    let Layers { seen, mounted, present, uploaded } = *layers;
    let (digest, target, id) = (digest.to_string(), target.to_string(), id.to_string());
    proto::PushedImage { digest, target, layers: layers.all(), uploaded, mounted, seen, present, bytes: *bytes, id }
}
