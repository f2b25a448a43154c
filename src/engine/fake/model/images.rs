//! Images: what is here, what a registry has, what an archive brings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::{Duration, SystemTime};

use super::{Model, fail};
use crate::engine::fake::script::Operation;
use crate::engine::{
    BuildSpec, Credentials, EngineError, EngineEvent, ErrorClass, EventAction, Image, ImageId, ImageRemoval, Labels, Layer, SizedImage,
};

/// Tags and ids.
#[derive(Debug, Default)]
pub(in crate::engine::fake) struct Images {
    tags: BTreeMap<String, ImageId>,
    ids: BTreeSet<ImageId>,
    labels: BTreeMap<ImageId, Labels>,
    /// Repository and image: those that were pulled by their digest.
    by_digest: BTreeSet<(String, ImageId)>,
    registry: BTreeMap<String, Published>,
    /// Those that were loaded, as they were.
    archives: BTreeMap<ImageId, Vec<u8>>,
    /// Of those that are not one layer of their own.
    layers: BTreeMap<ImageId, Vec<Layer>>,
    next: u64,
}

/// What an image takes of which nobody said anything.
const BYTES: u64 = 1000;

/// What a registry has under a name. An image's digest is its id here.
#[derive(Debug)]
struct Published {
    wants: Option<Credentials>,
    /// `None`: whatever was, or will be, pulled first.
    newest: Option<ImageId>,
}

#[derive(serde::Deserialize)]
struct Manifest {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
}

fn full(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

impl Images {
    pub(super) fn has(&self, id: &ImageId) -> bool {
        self.ids.contains(id)
    }

    pub(in crate::engine::fake) fn find(&self, reference: &str) -> Option<ImageId> {
        let id = ImageId::from(reference);
        if self.ids.contains(&id) {
            return Some(id);
        }
        if let Some((repository, digest)) = reference.split_once('@') {
            let id = ImageId::from(digest);
            let known = self.look(digest)?.digests.contains(&format!("{repository}@{digest}"));
            return known.then_some(id);
        }
        self.tags.get(&full(reference)).cloned()
    }

    /// All its names; those that it was pulled by have a digest, too.
    pub(in crate::engine::fake) fn look(&self, reference: &str) -> Option<Image> {
        let id = self.find(reference)?;
        let tags: Vec<String> = self.tags.iter().filter(|(_, other)| **other == id).map(|(tag, _)| tag.clone()).collect();
        let pulled = tags.iter().filter(|tag| self.registry.contains_key(*tag));
        let by_tag = pulled.filter_map(|tag| Some(tag.rsplit_once(':')?.0.to_owned()));
        let by_digest = self.by_digest.iter().filter(|(_, other)| *other == id).map(|(repository, _)| repository.clone());
        let repositories: BTreeSet<String> = by_tag.chain(by_digest).collect();
        let digests = repositories.into_iter().map(|repository| format!("{repository}@{id}")).collect();
        let labels = self.labels.get(&id).cloned().unwrap_or_default();
        Some(Image { id, tags, digests, labels })
    }

    pub(in crate::engine::fake) fn name(&mut self, id: &ImageId, name: &str) -> Result<(), EngineError> {
        if !self.has(id) {
            return Err(fail(Operation::TagImage, ErrorClass::NotFound, id.as_str(), "No such image", Some(404)));
        }
        self.tag(name, id.clone());
        Ok(())
    }

    fn new_id(&mut self) -> ImageId {
        self.next += 1;
        ImageId::from(format!("sha256:{:064x}", self.next))
    }

    pub(in crate::engine::fake) fn put(&mut self, reference: &str) -> ImageId {
        let id = self.new_id();
        self.tag(reference, id.clone());
        id
    }

    fn tag(&mut self, reference: &str, id: ImageId) {
        self.ids.insert(id.clone());
        self.tags.insert(full(reference), id);
    }

    pub(in crate::engine::fake) fn publish(&mut self, reference: &str, credentials: Option<Credentials>) {
        self.registry.insert(full(reference), Published { wants: credentials, newest: None });
    }

    pub(in crate::engine::fake) fn publish_anew(&mut self, reference: &str) -> ImageId {
        let id = self.new_id();
        let published = self.registry.entry(full(reference)).or_insert(Published { wants: None, newest: None });
        published.newest = Some(id.clone());
        id
    }

    pub(in crate::engine::fake) fn pull(&mut self, reference: &str, credentials: Option<&Credentials>) -> Result<(), EngineError> {
        let refuse = |class, message: &str| Err(fail(Operation::PullImage, class, reference, message, Some(500)));
        let published = match reference.split_once('@') {
            None => self.registry.get(&full(reference)),
            Some((repository, digest)) => self.registry.iter().find_map(|(name, published)| {
                let is_it = name.rsplit_once(':')?.0 == repository && published.newest.as_ref()?.as_str() == digest;
                is_it.then_some(published)
            }),
        };
        let Some(Published { wants, newest }) = published else { return refuse(ErrorClass::RegistryUnknown, "manifest unknown") };
        if wants.is_some() && credentials != wants.as_ref() {
            return refuse(ErrorClass::RegistryDenied, "no basic auth credentials");
        }
        match (newest.clone(), reference.split_once('@')) {
            (Some(id), Some((repository, _))) => {
                self.ids.insert(id.clone());
                self.by_digest.insert((repository.to_owned(), id));
            }
            (Some(id), None) => self.tag(reference, id),
            (None, _) if self.find(reference).is_none() => drop(self.put(reference)),
            (None, _) => {}
        }
        Ok(())
    }

    pub(in crate::engine::fake) fn with_label(&self, label: &str) -> Vec<Image> {
        let labelled = self.labels.iter().filter(|(id, labels)| self.has(id) && labels.contains_key(label));
        labelled.filter_map(|(id, _)| self.look(id.as_str())).collect()
    }

    pub(in crate::engine::fake) fn set_layers(&mut self, id: &ImageId, layers: &[(&str, u64)]) {
        let layer = |(chain, bytes): &(&str, u64)| Layer { chain: (*chain).to_owned(), bytes: *bytes };
        self.layers.insert(id.clone(), layers.iter().map(layer).collect());
    }

    /// Each is a second younger than the one before it.
    pub(in crate::engine::fake) fn sizes(&self) -> Vec<SizedImage> {
        let number = |id: &ImageId| u64::from_str_radix(id.bare().get(48..).unwrap_or_default(), 16).unwrap_or_default();
        let created = |id: &ImageId| SystemTime::UNIX_EPOCH + Duration::from_secs(number(id) % (1 << 30));
        let own = |id: &ImageId| vec![Layer { chain: id.to_string(), bytes: BYTES }];
        let layers = |id: &ImageId| self.layers.get(id).cloned().unwrap_or_else(|| own(id));
        let sized = |id: &ImageId| Some(SizedImage { image: self.look(id.as_str())?, created: created(id), layers: layers(id) });
        self.ids.iter().filter_map(sized).collect()
    }

    /// Each build is another image, as with Docker's classic builder.
    pub(in crate::engine::fake) fn build(&mut self, spec: &BuildSpec) {
        let id = self.put(&spec.tag);
        self.labels.insert(id, spec.labels.clone());
    }

    /// As the engine does: by the archive's own `manifest.json`.
    pub(in crate::engine::fake) fn load(&mut self, archive: &[u8]) -> Result<(), EngineError> {
        let refuse = |message: String| fail(Operation::LoadImage, ErrorClass::Refused, "", message, Some(500));
        let manifests = manifests(archive).map_err(|error| refuse(error.to_string()))?;
        if manifests.is_empty() {
            return Err(refuse("open manifest.json: no such file or directory".into()));
        }
        for manifest in manifests {
            let digest = manifest.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
            let id = ImageId::from(format!("sha256:{digest}"));
            self.ids.insert(id.clone());
            self.archives.insert(id.clone(), archive.to_vec());
            for tag in manifest.tags.unwrap_or_default() {
                self.tag(&tag, id.clone());
            }
        }
        Ok(())
    }

    /// Only what was loaded: nobody knows what is in the others.
    pub(in crate::engine::fake) fn save(&self, reference: &str) -> Result<Vec<u8>, EngineError> {
        let archive = self.find(reference).and_then(|id| self.archives.get(&id).cloned());
        archive.ok_or_else(|| fail(Operation::SaveImage, ErrorClass::NotFound, reference, "No such image", Some(404)))
    }

    /// Takes a tag away, or an id with all its tags. Answers the id.
    fn remove(&mut self, reference: &str) -> Option<ImageId> {
        let id = self.find(reference)?;
        self.tags.remove(&full(reference));
        if id.as_str() == reference {
            self.tags.retain(|_, other| *other != id);
        }
        if !self.tags.values().any(|other| *other == id) {
            self.ids.remove(&id);
            self.by_digest.retain(|(_, other)| *other != id);
        }
        Some(id)
    }
}

fn manifests(archive: &[u8]) -> std::io::Result<Vec<Manifest>> {
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if entry.path()?.as_os_str() == "manifest.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            return serde_json::from_str(&text).map_err(std::io::Error::other);
        }
    }
    Ok(Vec::new())
}

impl Model {
    /// The image loses this tag and stays, as one does that a container uses.
    pub(in crate::engine::fake) fn untag_image(&mut self, reference: &str) {
        let name = full(reference);
        let Some(id) = self.images.tags.remove(&name) else { return };
        let repository = name.rsplit_once(':').map(|(repository, _)| repository.to_owned());
        self.images.by_digest.retain(|(known, other)| *other != id || Some(known) != repository.as_ref());
        self.image_is_gone(&id);
    }

    /// Those that no container was made from, whatever their names.
    pub(in crate::engine::fake) fn prune_images(&mut self) {
        let used: BTreeSet<ImageId> = self.containers.values().map(|item| item.image.clone()).collect();
        for id in self.images.ids.difference(&used).cloned().collect::<Vec<_>>() {
            self.remove_image(id.as_str());
        }
    }

    /// As the engine does it when nobody forces it.
    pub(in crate::engine::fake) fn let_image_go(&mut self, name: &str) -> ImageRemoval {
        let Some(image) = self.images.look(name) else { return ImageRemoval::Absent };
        let user = self.containers.values().find(|item| item.image == image.id).map(|item| item.id.clone());
        let by_id = image.id.as_str() == name;
        if by_id && image.tags.len() > 1 {
            return ImageRemoval::InUse(format!("unable to delete {name} (must be forced) - image is referenced in multiple repositories"));
        }
        if let Some(user) = user.filter(|_| image.tags.len() <= 1) {
            return ImageRemoval::InUse(format!("unable to remove {name} (must force) - container {user} is using it"));
        }
        self.remove_image(name);
        ImageRemoval::Removed
    }

    fn image_is_gone(&mut self, id: &ImageId) {
        if self.hearing {
            let attributes = Labels::new();
            self.send(&EngineEvent { action: EventAction::ImageGone, id: id.to_string(), name: String::new(), attributes });
        }
    }

    /// The image loses this tag; without another one it is gone. By id: gone with all its tags.
    pub(in crate::engine::fake) fn remove_image(&mut self, reference: &str) {
        if let Some(id) = self.images.remove(reference) {
            self.image_is_gone(&id);
        }
    }
}
