//! Where to look while a context is still being read: what the same definition was built from and to the last time.
//!
//! Nothing is believed of it. The engine is asked for that image and those bases, and what it says is used if the context turns out to have that key, and the
//! Dockerfile to name those bases. So a definition that is as it was costs the time of one question, and one that has changed costs some questions for
//! nothing; no guess ever fetches anything. Bounded: of more than [`MOST`] all are forgotten.

use futures::future::join_all;

use super::context::Entries;
use super::key::Inputs;
use super::{Context, Definition, Inner, Key, Look};
use crate::image::cache;
use crate::image::reference::Reference;
use crate::random::HashMap;

const MOST: usize = 2048;

/// What came of a definition.
#[derive(Clone, Debug)]
struct Guess {
    key: Key,
    bases: Vec<Reference>,
}

#[derive(Debug, Default)]
pub(super) struct Guesses(HashMap<Key, Guess>);

impl Guesses {
    /// For the next time.
    pub(super) fn note(&mut self, hints: impl IntoIterator<Item = Key>, key: Key, bases: impl Iterator<Item = Reference> + Clone) {
        for hint in hints {
            if self.0.len() >= MOST && !self.0.contains_key(&hint) {
                self.0.clear();
            }
            self.0.insert(hint, Guess { key, bases: bases.clone().collect() });
        }
    }
}

/// What the engine has said before it was known what to ask.
#[derive(Default)]
pub(super) struct Early {
    pub(super) image: Option<Look>,
    bases: HashMap<Reference, cache::Look>,
}

impl Early {
    /// A look that the engine does not answer is none: who needs it asks again.
    pub(super) async fn of(builds: &Inner, definition: &Definition, hint: Key) -> Option<Self> {
        let Guess { key, bases } = builds.guesses.lock().0.get(&hint).cloned()?;
        let look = async { if definition.anew { None } else { builds.look(key).await.ok() } };
        let bases = bases.into_iter().map(|reference| async move {
            let look = builds.cache.look(&reference).await.ok()?;
            Some((reference, look))
        });
        let (image, bases) = tokio::join!(look, join_all(bases));
        Some(Self { image, bases: bases.into_iter().flatten().collect() })
    }

    pub(super) fn base(&mut self, reference: &Reference) -> Option<cache::Look> {
        self.bases.remove(reference)
    }
}

impl Definition {
    /// Known before anything is read; `None`: where its context was says nothing of it.
    pub(super) fn hint_of_place(&self, builder: &str) -> Option<Key> {
        let Context::Folder { path, .. } = &self.context else { return None };
        Some(self.hint_of_text(builder, &format!("{} in {}", self.dockerfile, path.display())))
    }

    /// The same by its Dockerfile, wherever that is.
    pub(super) fn hint_of_text(&self, builder: &str, text: &str) -> Key {
        let Self { target, args, platform, .. } = self;
        Inputs { builder, platform, dockerfile: text, target, args, bases: &[], context: &Entries::default() }.key()
    }
}
