//! One caller's way to an image: the context surveyed, the key found, the image looked for, a build begun or followed.
//!
//! All that it does until there is a build it does while the caller waits, and for nobody else; who goes away ends it. What changes under it is begun anew.

use std::fs::File;
use std::sync::Arc;

use super::context::{self, ContextError, Entries, Folder, Selection, Source, Tarball};
use super::dockerfile::Dockerfile;
use super::flight::{Ended, Flight, Told};
use super::guess::Early;
use super::key::Inputs;
use super::{Built, Context, Definition, Event, Inner, Key, Look};
use crate::engine::ImageId;
use crate::image::cache::{Failure, Kind};
use crate::image::reference::Reference;
use crate::level;

/// A context or base that changes under each of so many attempts is given up.
pub(super) const ATTEMPTS: u32 = 3;

/// One caller's view.
pub struct Building {
    builds: Arc<Inner>,
    definition: Arc<Definition>,
    attempts: u32,
    following: Option<Following>,
}

struct Following {
    told: level::Receiver<Told>,
    /// Lines that were told.
    cursor: u64,
}

/// What is known of a context before the builder gets it.
pub(super) struct Surveyed {
    /// At its key's image, if that was guessed.
    looked: Option<Look>,
    pub(super) key: Key,
    pub(super) bases: Vec<(Reference, ImageId)>,
    pub(super) parcel: Parcel,
    /// Its name for the builder.
    pub(super) dockerfile: String,
    pub(super) text: String,
}

/// A context, as far as it is ready.
pub(super) enum Parcel {
    Folder { folder: Arc<Folder>, selection: Selection },
    Packed(File),
}

impl Building {
    pub(super) fn new(builds: Arc<Inner>, definition: Definition) -> Self {
        Self { builds, definition: Arc::new(definition), attempts: 0, following: None }
    }

    /// The next thing to tell; [`Event::Built`] is the last. Dropped, the work on the caller's own context may be lost, a build goes on.
    ///
    /// # Errors
    /// [`Failure`]: nothing comes after it.
    pub async fn next(&mut self) -> Result<Event, Failure> {
        loop {
            let Some(following) = &mut self.following else {
                if let Some(built) = self.find_or_start().await? {
                    return Ok(Event::Built(built));
                }
                continue;
            };
            match following.next().await {
                Ok(event) => return Ok(event),
                Err(Ended::Failed(failure)) => return Err(failure),
                Err(Ended::Changed(what)) if self.attempts < ATTEMPTS => {
                    tracing::info!(%what, "what an image is built from has changed meanwhile; beginning anew");
                    self.following = None;
                }
                Err(Ended::Changed(what)) => {
                    return Err(Failure::new(Kind::Failed, &format!("{what} changed while it was built from, {ATTEMPTS} times")));
                }
            }
        }
    }

    async fn find_or_start(&mut self) -> Result<Option<Built>, Failure> {
        self.attempts += 1;
        let mut surveyed = self.survey().await?;
        let key = surveyed.key;
        let known = match surveyed.looked.take() {
            _ if self.definition.anew => None,
            Some(look) => self.builds.seen(look).await?,
            None => self.builds.known(key).await?,
        };
        if let Some(built) = known {
            return Ok(Some(built));
        }
        let mut table = self.builds.table.lock();
        let told = match table.under_way.get(&key) {
            Some(following) => following.clone(),
            None => {
                let (told, following) = level::channel(Told::default());
                table.under_way.insert(key, following.clone());
                let flight = Flight::new(Arc::clone(&self.builds), Arc::clone(&self.definition), surveyed, told);
                self.builds.tasks.spawn(flight.run());
                following
            }
        };
        self.following = Some(Following { told, cursor: 0 });
        Ok(None)
    }

    async fn survey(&self) -> Result<Surveyed, Failure> {
        let (builds, definition) = (Arc::clone(&self.builds), Arc::clone(&self.definition));
        let builder = self.builds.builder().await?;
        let place = self.definition.hint_of_place(builder);
        let look = async |hint: Option<Key>| Early::of(&self.builds, &self.definition, hint?).await;
        let read = self.builds.blocking(move || Read::new(&builds, &definition));
        // The engine is asked beside the reading, and not after it: most definitions are as they were.
        let (read, early) = tokio::try_join!(read, async { Ok(look(place).await) })?;
        let Read { parcel, entries, dockerfile, text } = read;
        let invalid = |why: &dyn std::fmt::Display| Failure::new(Kind::Invalid, &format!("{}: {why}", self.definition.dockerfile));
        let file = Dockerfile::parse(&text, &self.definition.args).map_err(|bad| invalid(&bad))?;
        let target = &self.definition.target;
        if !target.is_empty() && !file.has_stage(target) {
            return Err(invalid(&format!("there is no stage {target:?}")));
        }
        let Definition { platform, args, .. } = &*self.definition;
        let words = self.definition.hint_of_text(builder, &text);
        let mut early = match early {
            Some(early) => early,
            None => look(Some(words)).await.unwrap_or_default(),
        };
        let bases = self.builds.bases(&file, &mut early).await?;
        let key = Inputs { builder, platform, dockerfile: &text, target, args, bases: &bases, context: &entries }.key();
        self.builds.guesses.lock().note(place.into_iter().chain([words]), key, file.bases.iter().cloned());
        Ok(Surveyed { key, looked: early.image.filter(|look| look.key == key), bases, parcel, dockerfile, text })
    }
}

/// What is read of a context before anything else.
struct Read {
    parcel: Parcel,
    entries: Entries,
    dockerfile: String,
    text: String,
}

impl Read {
    fn new(builds: &Inner, definition: &Definition) -> Result<Self, ContextError> {
        let select =
            |source: &dyn Source| Selection::new(source, &definition.dockerfile, definition.content.clone(), builds.settings.context_limit);
        match &definition.context {
            Context::Folder { path, identity } => {
                let folder = Arc::new(Folder::open(path, *identity)?);
                let (selection, dockerfile, text) = select(&*folder)?;
                let entries = context::survey(&folder, &selection, &builds.memo)?;
                Ok(Self { parcel: Parcel::Folder { folder, selection }, entries, dockerfile, text })
            }
            Context::Tar(file) => {
                let tarball = Tarball::new(file.try_clone().map_err(ContextError::Spool)?)?;
                let (selection, dockerfile, text) = select(&tarball)?;
                let packed = tempfile::tempfile_in(&builds.settings.spool).map_err(ContextError::Spool)?;
                let entries = context::pack(&tarball, &selection, &packed)?;
                Ok(Self { parcel: Parcel::Packed(packed), entries, dockerfile, text })
            }
        }
    }
}

impl Following {
    async fn next(&mut self) -> Result<Event, Ended> {
        loop {
            {
                let told = self.told.borrow_and_update();
                let (lines, missed, cursor) = told.log.after(self.cursor);
                if !lines.is_empty() {
                    self.cursor = cursor;
                    return Ok(Event::Log { lines, missed });
                }
                if let Some(outcome) = &told.outcome {
                    return outcome.clone().map(Event::Built);
                }
            }
            if self.told.changed().await.is_err() && self.told.borrow().outcome.is_none() {
                return Err(Ended::Failed(Failure::new(Kind::Failed, "the build ended without a word: a bug in nspool")));
            }
        }
    }
}
