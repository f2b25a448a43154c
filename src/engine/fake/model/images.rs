//! Images: what is here, what a registry has, what an archive brings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use super::{Model, fail};
use crate::engine::fake::script::Operation;
use crate::engine::{Credentials, EngineError, EngineEvent, ErrorClass, EventAction, Image, ImageId, Labels};

/// Tags and ids.
#[derive(Debug, Default)]
pub(in crate::engine::fake) struct Images {
    tags: BTreeMap<String, ImageId>,
    ids: BTreeSet<ImageId>,
    registry: BTreeMap<String, Option<Credentials>>,
    /// Those that were loaded, as they were.
    archives: BTreeMap<ImageId, Vec<u8>>,
    next: u64,
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
        if self.ids.contains(&id) { Some(id) } else { self.tags.get(&full(reference)).cloned() }
    }

    /// All its names; those that it was pulled by have a digest, too.
    pub(in crate::engine::fake) fn look(&self, reference: &str) -> Option<Image> {
        let id = self.find(reference)?;
        let tags: Vec<String> = self.tags.iter().filter(|(_, other)| **other == id).map(|(tag, _)| tag.clone()).collect();
        let pulled = tags.iter().filter(|tag| self.registry.contains_key(*tag));
        let digests = pulled.filter_map(|tag| Some(format!("{}@{id}", tag.rsplit_once(':')?.0))).collect();
        Some(Image { id, tags, digests })
    }

    pub(in crate::engine::fake) fn name(&mut self, id: &ImageId, name: &str) -> Result<(), EngineError> {
        if !self.has(id) {
            return Err(fail(Operation::TagImage, ErrorClass::NotFound, id.as_str(), "No such image", Some(404)));
        }
        self.tag(name, id.clone());
        Ok(())
    }

    pub(in crate::engine::fake) fn put(&mut self, reference: &str) -> ImageId {
        self.next += 1;
        let id = ImageId::from(format!("sha256:{:064x}", self.next));
        self.tag(reference, id.clone());
        id
    }

    fn tag(&mut self, reference: &str, id: ImageId) {
        self.ids.insert(id.clone());
        self.tags.insert(full(reference), id);
    }

    pub(in crate::engine::fake) fn publish(&mut self, reference: &str, credentials: Option<Credentials>) {
        self.registry.insert(full(reference), credentials);
    }

    pub(in crate::engine::fake) fn pull(&mut self, reference: &str, credentials: Option<&Credentials>) -> Result<(), EngineError> {
        let refuse = |class, message: &str| Err(fail(Operation::PullImage, class, reference, message, Some(500)));
        match self.registry.get(&full(reference)) {
            None => refuse(ErrorClass::RegistryUnknown, "manifest unknown"),
            Some(Some(wanted)) if credentials != Some(wanted) => refuse(ErrorClass::RegistryDenied, "no basic auth credentials"),
            Some(_) => {
                if self.find(reference).is_none() {
                    self.put(reference);
                }
                Ok(())
            }
        }
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
    /// The image loses this tag; without another one it is gone. By id: gone with all its tags.
    pub(in crate::engine::fake) fn remove_image(&mut self, reference: &str) {
        if let Some(id) = self.images.remove(reference)
            && self.hearing
        {
            let attributes = Labels::new();
            self.send(&EngineEvent { action: EventAction::ImageGone, id: id.to_string(), name: String::new(), attributes });
        }
    }
}
