//! `PushImage`: for operators, each push followed by as many as ask.
//!
//! Progress goes out when it differs, at most every [`PACE`]; the outcome at once. A caller that goes away stops following, which ends nothing else.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::Status;

use super::connection::Peer;
use super::image_cache::PACE;
use super::status::Refusal;
use super::{Shared, validate};
use crate::image::cache::{Failure, Kind};
use crate::image::push::{Layers, Pushed, Told};
use crate::image::reference::Reference;
use crate::level;
use crate::proto;
use crate::proto::push_image_response::Event;

/// One caller's view of a push.
pub(super) struct Follower {
    shared: Arc<Shared>,
    target: Reference,
    following: level::Receiver<Told>,
    /// What was told last, and when the next may be told.
    told: Option<proto::PushProgress>,
    next_at: Instant,
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
        let following = begun.map_err(Refusal::NotFetched)?;
        Ok(Self { shared, target, following, told: None, next_at: Instant::now() })
    }

    /// The next answer; [`Event::Pushed`] is the last. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Event, Status> {
        loop {
            let now = self.following.borrow_and_update().clone();
            if let Some(outcome) = now.outcome {
                return Ok(Event::Pushed(pushed(&self.target, &outcome.map_err(Refusal::NotFetched)?)));
            }
            let progress = progress(&now);
            let differs = self.told.as_ref() != Some(&progress);
            if differs && Instant::now() >= self.next_at {
                self.told = Some(progress);
                self.next_at = Instant::now() + PACE;
                return Ok(Event::Progress(progress));
            }
            tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Err(Refusal::Stopping.into()),
                changed = self.following.changed() => if changed.is_err() && self.following.borrow().outcome.is_none() {
                    let failure = Failure::new(Kind::PushFailed, "the push ended without a word: a bug in nspool");
                    return Err(Refusal::NotFetched(failure).into());
                },
                () = tokio::time::sleep_until(self.next_at), if differs => {}
            }
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
