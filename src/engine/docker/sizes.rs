//! What images take, layer by layer, and their removal.
//!
//! What the engines say of sizes, tried on Docker 20.10 and podman 4.3 with one image that two others begin from:
//!
//! | | Docker | podman |
//! |---|---|---|
//! | `/images/json`, `Size` | all of its layers, shared or not | the same and its own metadata |
//! | `/images/json?shared-size=1` | -1 | 0 |
//! | `/system/df`, `LayersSize` | each layer once | 0 |
//! | `/system/df`, of each image | right | the parent's size is called shared, one row for each name |
//! | `/images/ID/json`, `RootFS.Layers` | right | right |
//! | `/images/ID/history`, `Size` | right | right (as of the layer's tar) |
//!
//! So both are asked for the layers' digests and for the history, once for each image, as neither changes. A layer is known by its *chain*: by itself and all below it,
//! which is how engines share them. The history has steps that made no layer, without saying so; they have no size. Only where a layer is empty, too, it is not certain which
//! step made which layer ([`align`]): then what other images have told of the same layers decides, and the sum of all is right in any case.

use std::time::{Duration, SystemTime};

use bollard::errors::Error;
use bollard::query_parameters::RemoveImageOptions;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::images::{again, is_gone};
use super::{Docker, convert, errors};
use crate::engine::{EngineError, ErrorClass, Image, ImageId, ImageRemoval, Labels, Layer, SizedImage};
use crate::random::HashMap;

/// Images that are looked at at once.
const LOOKS: usize = 4;

/// What is known of an image's layers: it never changes.
pub(super) type Known = HashMap<ImageId, Told>;

/// Of one image: its layers' chains, the lowest first, and the sizes of the steps in its history that have one.
#[derive(Clone, Debug)]
pub(super) struct Told {
    chains: Vec<String>,
    steps: Vec<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    created: Option<i64>,
    repo_tags: Option<Vec<String>>,
    repo_digests: Option<Vec<String>>,
    labels: Option<Labels>,
    size: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(rename = "RootFS")]
    root: Option<RootFs>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    layers: Option<Vec<String>>,
}

/// The newest is told first.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Step {
    size: Option<i64>,
}

/// All images that a list shows: with names, or at the top of their kind.
pub(super) async fn list(docker: &Docker) -> Result<Vec<SizedImage>, EngineError> {
    let listed = docker.about_images("/images/json").await;
    let rows: Vec<Row> = listed.map_err(|error| errors::convert("image sizes", "", &error))?;
    let unknown: Vec<ImageId> = {
        let known = docker.layers.lock();
        rows.iter().map(|row| ImageId::from(row.id.as_str())).filter(|id| !known.contains_key(id)).collect()
    };
    let look = |id: ImageId| async move {
        let told = look(docker, &id).await?;
        Ok::<_, EngineError>(told.map(|told| (id, told)))
    };
    let found: Vec<Option<(ImageId, Told)>> = stream::iter(unknown).map(look).buffer_unordered(LOOKS).try_collect().await?;
    let mut known = docker.layers.lock();
    known.extend(found.into_iter().flatten());
    known.retain(|id, _| rows.iter().any(|row| row.id == id.as_str()));
    Ok(sized(rows, &known))
}

/// `None`: it is gone meanwhile.
async fn look(docker: &Docker, id: &ImageId) -> Result<Option<Told>, EngineError> {
    let failed = |error: &Error| errors::convert("image sizes", id.as_str(), error);
    if !convert::is_path_safe(id.as_str()) {
        return Err(errors::refused("image sizes", ErrorClass::Refused, id.as_str(), "no image can have this id"));
    }
    let inspected = match docker.about_images::<Inspected>(&format!("/images/{id}/json")).await {
        Err(error) if is_gone(&error) => return Ok(None),
        answer => answer.map_err(|error| failed(&error))?,
    };
    let steps = match docker.reader.get::<Vec<Step>>(&format!("/images/{id}/history")).await {
        Err(error) if is_gone(&error) => return Ok(None),
        // One whose history does not fit its layers: its size is known from the list, and no part of it.
        Err(Error::DockerResponseServerError { .. }) => Vec::new(),
        answer => answer.map_err(|error| failed(&error))?,
    };
    let layers = inspected.root.and_then(|root| root.layers).unwrap_or_default();
    let steps = steps.iter().rev().map(|step| bytes(step.size)).filter(|bytes| *bytes > 0).collect();
    Ok(Some(Told { chains: chains(&layers), steps }))
}

fn bytes(size: Option<i64>) -> u64 {
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default()
}

/// A layer with all below it.
fn chains(layers: &[String]) -> Vec<String> {
    let mut below = String::new();
    let chain = |layer: &String| {
        let hash = Sha256::new_with_prefix(&below).chain_update(" ").chain_update(layer).finalize();
        below = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        below.clone()
    };
    layers.iter().map(chain).collect()
}

fn sized(rows: Vec<Row>, known: &Known) -> Vec<SizedImage> {
    let mut told: Vec<(Row, &Told)> =
        rows.into_iter().filter_map(|row| known.get(&ImageId::from(row.id.as_str())).map(|told| (row, told))).collect();
    // Those that leave nothing open, and the bases of others, tell of the rest.
    told.sort_by_key(|(_, told)| (told.steps.len() != told.chains.len(), told.chains.len()));
    let mut sizes: HashMap<String, u64> = HashMap::default();
    let image = |(row, told): (Row, &Told)| SizedImage {
        layers: align(told, bytes(row.size), &mut sizes),
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(bytes(row.created)),
        image: Image {
            id: ImageId::from(row.id),
            tags: row.repo_tags.unwrap_or_default().into_iter().filter(|tag| tag != NO_NAME).collect(),
            digests: row.repo_digests.unwrap_or_default().into_iter().filter(|digest| digest != NO_DIGEST).collect(),
            labels: row.labels.unwrap_or_default(),
        },
    };
    told.into_iter().map(image).collect()
}

/// What Docker says for no name.
const NO_NAME: &str = "<none>:<none>";
const NO_DIGEST: &str = "<none>@<none>";

/// Each layer's size. `sizes` has those that other images have told; the steps for them are passed over, and the rest goes to the topmost layers. `whole`
/// is the image's size, for one whose history says less.
fn align(told: &Told, whole: u64, sizes: &mut HashMap<String, u64>) -> Vec<Layer> {
    let is_certain = told.steps.len() == told.chains.len();
    let below = if is_certain { 0 } else { told.chains.iter().take_while(|chain| sizes.contains_key(*chain)).count() };
    let known: Vec<u64> = told.chains[..below].iter().filter_map(|chain| sizes.get(chain).copied()).collect();
    let passed = known.iter().filter(|bytes| **bytes > 0).count().min(told.steps.len());
    let above = told.chains.len() - below;
    let mut rest = if above == 0 { Vec::new() } else { told.steps[passed..].to_vec() };
    if rest.len() > above {
        // More steps than layers: the lowest has what is left over.
        let over = rest.drain(..=rest.len() - above).sum();
        rest.insert(0, over);
    } else {
        rest.splice(0..0, std::iter::repeat_n(0, above - rest.len()));
    }
    let said = known.iter().chain(&rest).fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    if !is_certain && let Some(top) = rest.last_mut() {
        *top = top.saturating_add(whole.saturating_sub(said));
    }
    let layers = told.chains.iter().zip(known.into_iter().chain(rest));
    let layers: Vec<Layer> = layers.map(|(chain, bytes)| Layer { chain: chain.clone(), bytes }).collect();
    sizes.extend(layers.iter().map(|layer| (layer.chain.clone(), layer.bytes)));
    layers
}

/// Takes a name away, or an image by its id that has no more than one; never by force.
pub(super) async fn remove(docker: &Docker, name: &str) -> Result<ImageRemoval, EngineError> {
    if !convert::is_path_safe(name) {
        return Err(errors::refused("remove image", ErrorClass::Refused, name, "not an image reference"));
    }
    match again(|| docker.client.remove_image(name, None::<RemoveImageOptions>, None)).await {
        Ok(_) => Ok(ImageRemoval::Removed),
        Err(error) if is_gone(&error) => Ok(ImageRemoval::Absent),
        Err(Error::DockerResponseServerError { status_code: 409, message }) => Ok(ImageRemoval::InUse(message)),
        Err(error) => Err(errors::convert("remove image", name, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(layers: &str, steps: &[u64]) -> Told {
        let layers: Vec<String> = layers.chars().map(String::from).collect();
        Told { chains: chains(&layers), steps: steps.to_vec() }
    }

    fn aligned(told: &Told, whole: u64, sizes: &mut HashMap<String, u64>) -> Vec<u64> {
        align(told, whole, sizes).into_iter().map(|layer| layer.bytes).collect()
    }

    #[test]
    fn a_layer_is_itself_and_all_below() {
        let (one, other) = (told("abc", &[]).chains, told("abd", &[]).chains);
        assert_eq!(one[..2], other[..2]);
        assert_ne!(one[2], other[2]);
        assert_ne!(told("b", &[]).chains[0], one[1], "the same layer upon others is another one for the engine");
    }

    #[test]
    fn steps_and_layers_find_each_other() {
        let mut sizes = HashMap::default();
        assert_eq!(aligned(&told("abc", &[3, 2, 1]), 6, &mut sizes), [3, 2, 1]);
        // As Docker tells of a base, an empty folder and a file.
        assert_eq!(aligned(&told("abcde", &[3, 2, 1, 7]), 13, &mut sizes), [3, 2, 1, 0, 7]);
        let nobody_else = &mut HashMap::default();
        assert_eq!(aligned(&told("xyz", &[3, 7]), 10, nobody_else), [0, 3, 7]);
        assert_eq!(aligned(&told("xyzu", &[3, 7, 5]), 15, nobody_else), [0, 3, 7, 5], "what was told once stays so");
    }

    #[test]
    fn the_sum_is_right_whatever_the_history_says() {
        for (layers, steps, whole) in
            [("ab", &[][..], 9), ("ab", &[4], 9), ("ab", &[1, 2, 3], 6), ("a", &[1, 2, 3], 6), ("abc", &[9], 9), ("", &[], 0)]
        {
            let sum: u64 = aligned(&told(layers, steps), whole, &mut HashMap::default()).iter().sum();
            assert_eq!(sum, whole, "{layers} {steps:?}");
        }
    }

    #[test]
    fn an_image_that_goes_while_it_is_looked_at_is_gone() {
        let says = |status_code, message: &str| is_gone(&Error::DockerResponseServerError { status_code, message: message.into() });
        assert!(says(404, "No such image") && says(500, "locating image with ID \"f741\": image not known"));
        assert!(!says(500, "no space left on device") && !says(409, "image is in use by a container"));
    }

    /// As Docker 20.10 and podman 4.3 list them.
    #[test]
    fn rows_without_names_are_read() {
        let rows = r#"[{"Created":1795334285,"Id":"sha256:e1","Labels":{"x":"y"},"ParentId":"sha256:bf","RepoDigests":["<none>@<none>"],"RepoTags":["<none>:<none>"],
            "SharedSize":-1,"Size":8964512},{"Id":"sha256:19","RepoTags":null,"RepoDigests":[],"Created":1795334290,"Size":6974179,"Labels":null}]"#;
        let rows: Vec<Row> = serde_json::from_str(rows).unwrap();
        let known = ["sha256:e1", "sha256:19"].map(|id| (ImageId::from(id), told("a", &[5]))).into_iter().collect();
        let images = sized(rows, &known);
        assert!(images.iter().all(|sized| sized.image.tags.is_empty() && sized.image.digests.is_empty() && sized.layers.len() == 1));
        assert_eq!(images[0].image.labels["x"], "y");
    }
}
