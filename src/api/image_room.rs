//! `PruneImages`: one sweep by an operator's word, told image by image. It goes on when its caller goes.

use std::sync::Arc;

use futures::stream::{self, BoxStream, Stream};
use futures::{StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::Shared;
use super::connection::Peer;
use super::status::Refusal;
use crate::image::cache::Failure;
use crate::image::room::{PruneError, Row, Swept};
use crate::proto;
use crate::proto::prune_images_response::Event;

/// All answers; the summary is the last. They begin at once: removing takes as long as a disk does.
pub(super) fn prune(
    shared: &Arc<Shared>,
    peer: Peer,
    asked: proto::PruneImagesRequest,
) -> Result<BoxStream<'static, Result<proto::PruneImagesResponse, Status>>, Refusal> {
    let room = shared.images.as_ref().ok_or(Refusal::NoEngine)?.room.clone();
    if !shared.is_admin(peer) {
        tracing::info!(peer_uid = peer.uid, peer_pid = peer.pid, "an admin call was refused");
        return Err(Refusal::NotAllowed { uid: peer.uid });
    }
    let (shared, proto::PruneImagesRequest { dry_run, room: wanted }) = (Arc::clone(shared), asked);
    tracing::info!(dry_run, ?wanted, peer_uid = peer.uid, peer_pid = peer.pid, "images are pruned by an operator");
    let swept = async move {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => Err(Status::from(Refusal::Stopping)),
            swept = room.prune(wanted, dry_run) => swept.map(events).map_err(|error| refusal(error).into()),
        }
    };
    Ok(stream::once(swept).try_flatten().boxed())
}

fn events(swept: Swept) -> impl Stream<Item = Result<proto::PruneImagesResponse, Status>> {
    let summary = Event::Summary(summary(&swept));
    let events = swept.rows.into_iter().map(|row| Event::Image(image(row))).chain([summary]);
    stream::iter(events.map(|event| Ok(proto::PruneImagesResponse { event: Some(event) })))
}

fn refusal(error: PruneError) -> Refusal {
    match error {
        PruneError::NoLimit => Refusal::bad_field("room", error.to_string()),
        PruneError::Stopping => Refusal::Stopping,
        PruneError::Engine(error) => Refusal::NotFetched(Failure::from(error)),
    }
}

fn image(row: Row) -> proto::PrunedImage {
    proto::PrunedImage {
        id: row.id.to_string(),
        names: row.names,
        bytes: row.bytes,
        frees: row.frees,
        used: row.used.map(Into::into),
        created: Some(row.created.into()),
        ours: row.ours,
        outcome: row.outcome.word().to_owned(),
        why: row.outcome.why().to_owned(),
    }
}

fn summary(swept: &Swept) -> proto::PruneSummary {
    proto::PruneSummary {
        bytes_before: swept.before,
        bytes_after: swept.after,
        bytes_ours: swept.ours,
        bytes_wanted: swept.wanted,
        removed: u32::try_from(swept.removed()).unwrap_or(u32::MAX),
    }
}
