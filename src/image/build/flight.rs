//! One build, from its place to its outcome, which is told however it ends.

use std::fs::File;
use std::io::Seek as _;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::building::{Parcel, Surveyed};
use super::context::{self, ContextError};
use super::key::Inputs;
use super::log::Log;
use super::{Built, DATE_LABEL, Definition, Inner, KEY_LABEL, is_of, name_of};
use crate::engine::{BuildSpec, EngineError, ErrorClass, Labels};
use crate::image::cache::{Failure, Kind};
use crate::image::stages::Stage;
use crate::level;
use crate::telemetry::metric;

/// What is told of a build.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) log: Log,
    /// Once it is over.
    pub(super) outcome: Option<Result<Built, Ended>>,
}

/// How a build ends that brings nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// What it was built from is not what its key says: to be begun anew.
    Changed(Arc<str>),
    /// For good.
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<EngineError> for Ended {
    fn from(error: EngineError) -> Self {
        Self::Failed(error.into())
    }
}

/// Under way from [`Flight::new`] until it is dropped.
pub(super) struct Flight {
    builds: Arc<Inner>,
    definition: Arc<Definition>,
    surveyed: Option<Surveyed>,
    key: super::Key,
    told: level::Sender<Told>,
    outcome: Result<Built, Ended>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let fallen = Err(Ended::Failed(Failure::new(Kind::Failed, "the build ended early: a bug in nspool")));
        let outcome = std::mem::replace(&mut self.outcome, fallen);
        // Gone before it is told: who comes from here on finds the image, or begins another.
        self.builds.table.lock().under_way.remove(&self.key);
        self.told.send_modify(|told| {
            told.log.end();
            told.outcome = Some(outcome);
        });
    }
}

impl Flight {
    pub(super) fn new(builds: Arc<Inner>, definition: Arc<Definition>, surveyed: Surveyed, told: level::Sender<Told>) -> Self {
        let fallen = Err(Ended::Failed(Failure::new(Kind::Failed, "the build ended early: a bug in nspool")));
        Self { builds, definition, key: surveyed.key, surveyed: Some(surveyed), told, outcome: fallen }
    }

    pub(super) async fn run(mut self) {
        let Some(surveyed) = self.surveyed.take() else { return };
        let (stop, began) = (self.builds.stop.clone(), Instant::now());
        let late = self.builds.settings.build_timeout;
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Failure::new(Kind::Stopping, "nspool is stopping").into()),
            outcome = tokio::time::timeout(late, self.carry_out(surveyed)) => outcome.unwrap_or_else(|_| {
                let why = format!("not built within {} ([images] build_timeout)", humantime::format_duration(late));
                Err(Failure::new(Kind::BuildFailed, &why).into())
            }),
        };
        let (key, took) = (self.key, began.elapsed());
        let word = match &outcome {
            Ok(Built { id, .. }) => {
                tracing::info!(%key, image = %id, ?took, "an image was built");
                "built"
            }
            Err(Ended::Changed(_)) => "changed",
            Err(Ended::Failed(failure)) => {
                tracing::warn!(%key, outcome = failure.kind.word(), why = %failure.why, ?took, "an image cannot be built");
                failure.kind.word()
            }
        };
        metrics::histogram!(metric::IMAGE_BUILD).record(took);
        metrics::counter!(metric::IMAGE_BUILDS, "outcome" => word).increment(1);
        self.outcome = outcome;
    }

    async fn carry_out(&self, surveyed: Surveyed) -> Result<Built, Ended> {
        // Among the fetches: both burden the engine.
        let deadline = Instant::now() + self.builds.settings.build_timeout;
        let _place = self.builds.cache.places().acquire(deadline).await;
        // Another may have come to its end between the look and this.
        if !self.definition.anew
            && let Some(built) = self.builds.known(self.key).await?
        {
            return Ok(built);
        }
        let Surveyed { bases, parcel, dockerfile, text, .. } = surveyed;
        let packed = match parcel {
            Parcel::Packed(file) => file,
            Parcel::Folder { folder, selection } => {
                let spool = self.builds.settings.spool.clone();
                let pack = move || {
                    let packed = tempfile::tempfile_in(spool).map_err(ContextError::Spool)?;
                    let entries = context::pack(&*folder, &selection, &packed)?;
                    Ok((packed, entries))
                };
                let (packed, entries) = self.builds.blocking(pack).await?;
                let Definition { target, args, platform, .. } = &*self.definition;
                let builder = self.builds.builder().await?;
                let sent = Inputs { builder, platform, dockerfile: &text, target, args, bases: &bases, context: &entries };
                if sent.key() != self.key {
                    return Err(Ended::Changed("the context".into()));
                }
                packed
            }
        };
        self.build(packed, dockerfile).await?;
        let uses = self.builds.cache.uses();
        for (reference, id) in &bases {
            if self.builds.engine.image_id(reference.as_str()).await?.as_ref() != Some(id) {
                return Err(Ended::Changed("an image that it begins from".into()));
            }
        }
        let seen = uses.seen();
        let image = self.builds.engine.image(&name_of(&self.key)).await?.filter(|image| is_of(image, self.key));
        let image = image.ok_or_else(|| Failure::new(Kind::Failed, "the engine says that it was built, and then has no image of it"))?;
        if !uses.hold(&image.id, &name_of(&self.key), true, seen).await {
            return Err(Ended::Changed("the image itself".into()));
        }
        self.builds.table.lock().index.used(self.key, &image, SystemTime::now());
        Ok(Built { id: image.id, key: self.key, reused: false })
    }

    async fn build(&self, mut packed: File, dockerfile: String) -> Result<(), Ended> {
        packed.rewind().map_err(|error| Failure::from(ContextError::Spool(error)))?;
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let labels = Labels::from([(KEY_LABEL.to_owned(), self.key.to_string()), (DATE_LABEL.to_owned(), date)]);
        let Definition { target, args, platform, anew, .. } = &*self.definition;
        let spec = BuildSpec {
            dockerfile,
            target: target.clone(),
            args: args.clone(),
            platform: platform.clone(),
            labels,
            tag: name_of(&self.key),
            anew: *anew,
        };
        let hear = |piece: &str| self.told.send_modify(|told| told.log.push(piece));
        Stage::Build.of(self.builds.engine.build_image(&spec, packed, &hear)).await.map_err(|error| match (error.class, error.status) {
            // What the builder says before it begins.
            (ErrorClass::Refused, Some(400)) => Failure::new(Kind::Invalid, &error.message).into(),
            (ErrorClass::Refused, _) => Failure::new(Kind::BuildFailed, &error.message).into(),
            (ErrorClass::ImageMissing, _) => Ended::Changed(format!("what the engine has ({})", error.message).into()),
            _ => error.into(),
        })
    }
}
