//! The form of `docker save`: a `manifest.json` that names a config and layers by their places in the archive.
//!
//! It has no OCI manifest, so one is made here; the same archive always gives the same one.

use serde::Deserialize;

use super::archive::Unpacked;
use super::name;
use crate::image::store::commit::{Commit, parse};
use crate::image::store::error::StoreError;
use crate::image::store::layout::{CONFIG_TYPE, Config, Descriptor, Digest, LAYER_TYPE, Manifest, layer_type};
use crate::image::store::staging::Staging;

pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn images(staging: &Staging, unpacked: &Unpacked) -> Result<Vec<Commit>, StoreError> {
    let text = unpacked.small(staging, MANIFEST)?;
    let saved: Vec<Saved> = serde_json::from_slice(&text).map_err(|error| StoreError::refused(MANIFEST, error.to_string()))?;
    saved.iter().map(|saved| image(staging, unpacked, saved)).collect()
}

fn image(staging: &Staging, unpacked: &Unpacked, saved: &Saved) -> Result<Commit, StoreError> {
    let found = unpacked.file(&saved.config)?;
    // Its name says its digest in every form of these archives.
    let stem = saved.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if let Some(expected) = Digest::of_hex(stem).filter(|expected| *expected != found.digest) {
        let what = format!("the archive's {:?}", saved.config);
        return Err(StoreError::Digest { what, expected, actual: found.digest.clone() });
    }
    let config: Config = parse("config", &found.digest, &staging.read(&found.digest)?)?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != saved.layers.len() {
        let why = format!("there are {} layers, and its config is about {}", saved.layers.len(), diff_ids.len());
        return Err(StoreError::refused(format!("the image {}", found.digest), why));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in saved.layers.iter().zip(diff_ids) {
        let layer = unpacked.file(path)?;
        let media_type = layer_type(&layer.beginning);
        // What is compressed has another digest; there the engine looks, when it unpacks it.
        if media_type == LAYER_TYPE && layer.digest != *diff_id {
            let what = format!("the archive's {path:?}");
            return Err(StoreError::Digest { what, expected: diff_id.clone(), actual: layer.digest.clone() });
        }
        layers.push(Descriptor::new(media_type, layer.digest.clone(), layer.size));
    }
    let manifest = Manifest::new(Descriptor::new(CONFIG_TYPE, found.digest.clone(), found.size), layers);
    let (bytes, descriptor) = manifest.bytes().map_err(|error| StoreError::refused(MANIFEST, error.to_string()))?;
    staging.put("the manifest", &descriptor.media_type, &bytes)?;
    let names = saved.repo_tags.iter().flatten().map(|tag| name(tag)).collect::<Result<_, _>>()?;
    Ok(Commit { manifest: descriptor, names, origin: None })
}
