//! The same for the host's own store, by what it lets others do: names are taken away, and a sweep gives back what nobody needs any more.
//!
//! Blobs are counted once. All images in it are nspool's; the one that was asked for the longest ago goes first, and of one that nobody asked for yet
//! counts when it came. It blocks.

use std::time::SystemTime;

use super::low_of;
use super::plan::{Candidate, Piece, Stays, bytes_of, plan};
use super::uses::Known;
use crate::engine::ImageId;
use crate::image::reference::Reference;
use crate::image::store::{Store, StoreError, StoredImage};
use crate::telemetry::metric;

pub(super) fn sweep(store: &Store, room: u64, known: &Known) -> Result<(), StoreError> {
    let images = store.images()?;
    let candidates = images.iter().map(|image| candidate(store, image, known)).collect::<Result<Vec<_>, _>>()?;
    let before = bytes_of(candidates.iter().map(|candidate| &*candidate.pieces));
    let mut after = before;
    if before > room {
        let plan = plan(&candidates, low_of(room));
        for goes in &plan.goes {
            remove(store, &images[goes.index])?;
        }
        let swept = store.sweep()?;
        after = plan.after;
        tracing::info!(images = plan.goes.len(), blobs = swept.blobs, bytes = swept.bytes, "images of the store made room");
    }
    #[expect(clippy::cast_precision_loss, reason = "a gauge of bytes; nobody has 8 PiB of images")]
    metrics::gauge!(metric::IMAGE_STORE_BYTES).set(after as f64);
    Ok(())
}

fn remove(store: &Store, image: &StoredImage) -> Result<(), StoreError> {
    for name in image.names.iter().filter_map(|name| Reference::parse(name).ok()) {
        store.remove(&name)?;
    }
    metrics::counter!(metric::IMAGES_REMOVED, "reason" => "store_room", "outcome" => "removed").increment(1);
    tracing::info!(image = %image.id, names = ?image.names, "an image was removed from the store to make room");
    Ok(())
}

fn candidate(store: &Store, image: &StoredImage, known: &Known) -> Result<Candidate, StoreError> {
    let manifest = store.manifest(&image.manifest)?;
    let parts = std::iter::once(&manifest.config).chain(&manifest.layers);
    let mut pieces: Vec<Piece> = parts.map(|part| Piece { name: part.digest.to_string(), bytes: part.size }).collect();
    let rest = image.size.saturating_sub(pieces.iter().map(|piece| piece.bytes).sum());
    pieces.push(Piece { name: image.manifest.to_string(), bytes: rest });
    let came = || std::fs::metadata(store.root().join("blobs/sha256").join(image.manifest.hex())).and_then(|file| file.modified());
    let asked = known.get(&ImageId::from(image.id.as_str())).map(|known| known.asked);
    let used = asked.or_else(|| came().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
    let has_names = !image.names.is_empty() && image.names.iter().all(|name| Reference::parse(name).is_ok());
    Ok(Candidate { pieces, used, stays: (!has_names).then_some(Stays::Nameless) })
}
