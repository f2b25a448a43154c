//! One sweep of an engine: what is there, why it stays, and what becomes of the rest.

use std::time::SystemTime;

use super::plan::{Candidate, Piece, Plan, Stays, bytes_of, plan};
use super::uses::Known;
use super::{Inner, Limits, NOT_KNOWN_FOR, Recalled, low_of};
use crate::engine::{Engine, EngineError, Image, ImageId, ImageRemoval, SizedImage};
use crate::image::cache::PRIVATE;
use crate::image::reference::{self, repository_of};
use crate::image::{build, placeholder};
use crate::random::HashSet;
use crate::telemetry::metric;

/// Why there is a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Something is new, or it is time.
    Room,
    /// A fetch could not be kept.
    DiskFull,
    /// An operator says so.
    Prune,
}

impl Why {
    fn word(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::DiskFull => "disk_full",
            Self::Prune => "prune",
        }
    }
}

/// When it is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// So many bytes are left at most.
    Below(u64),
    /// The same, at nine tenths of `high`, and only if there is more than that now.
    BelowIfAbove { high: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    pub(super) why: Why,
    pub(super) until: Until,
    /// Nothing is removed.
    pub(super) dry_run: bool,
}

/// What a sweep has found and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// What images took, layers counted once.
    pub before: u64,
    /// What they take now, or would.
    pub after: u64,
    /// Of what they took: of those that came by nspool.
    pub ours: u64,
    /// It was to be so many at most.
    pub wanted: u64,
    /// All images: those that go in their order, then those that stay, the largest first.
    pub rows: Vec<Row>,
}

impl Swept {
    /// How many images went.
    #[must_use]
    pub fn removed(&self) -> usize {
        self.rows.iter().filter(|row| row.outcome == Outcome::Removed).count()
    }
}

/// What becomes of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its own.
    pub id: ImageId,
    /// As the engine has them; of one without, its digests.
    pub names: Vec<String>,
    /// All of its layers.
    pub bytes: u64,
    /// What its removal frees, all that goes before it being gone.
    pub frees: u64,
    /// When it was asked for last, as far as that is known.
    pub used: Option<SystemTime>,
    /// When it was built, wherever that was.
    pub created: SystemTime,
    /// It came by nspool.
    pub ours: bool,
    /// And this is why, or how.
    pub outcome: Outcome,
}

/// See [`Row::outcome`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone.
    Removed,
    /// It would go.
    WouldGo,
    /// It might go, and there is room enough.
    Fits,
    /// It has a reason to stay.
    Stays(Stays),
    /// The engine keeps it; its words.
    Kept(String),
    /// Nobody knows; the engine's words.
    Failed(String),
    /// The sweep ended before it: slots are being filled, or nspool is stopping.
    NotNow,
}

impl Outcome {
    /// A word for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::WouldGo => "would_go",
            Self::Fits | Self::Stays(_) => "stays",
            Self::Kept(_) => "kept",
            Self::Failed(_) => "failed",
            Self::NotNow => "not_now",
        }
    }

    /// Words for people.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Removed | Self::WouldGo => "",
            Self::Fits => "there is room for it",
            Self::Stays(stays) => stays.words(),
            Self::Kept(words) | Self::Failed(words) => words,
            Self::NotNow => "slots are being filled, or nspool is stopping",
        }
    }
}

impl Sweep {
    /// The caller has the turn.
    pub(super) async fn carry_out(self, room: &Inner, recalled: Recalled) -> Result<Swept, EngineError> {
        let listed = room.uses.now();
        let images = room.engine.image_sizes().await?;
        // After the images: whatever was made from one of them is seen.
        let in_use: HashSet<String> = room.engine.list().await?.iter().map(|container| container.image.bare().to_owned()).collect();
        let there: HashSet<&str> = images.iter().map(|image| image.image.id.bare()).collect();
        room.uses.keep_only(|id| there.contains(id.bare()), listed);
        let limits = *room.limits.lock();
        let pinned = room.pinned.get().map(|pinned| pinned()).unwrap_or_default();
        let view = View { known: room.all_known().await, in_use, pinned, now: room.uses.now(), recalled, for_others: limits.for_others };
        let candidates: Vec<Candidate> = images.iter().map(|image| view.candidate(image)).collect();
        let before = bytes_of(candidates.iter().map(|candidate| &*candidate.pieces));
        let wanted = match self.until {
            Until::Below(low) => low,
            Until::BelowIfAbove { high } if before > high => low_of(high),
            Until::BelowIfAbove { .. } => before,
        };
        let plan = plan(&candidates, wanted);
        let outcomes = self.remove(room, &images, &plan).await;
        let swept = view.swept(&images, &candidates, &plan, outcomes, wanted);
        swept.tell(self, limits);
        Ok(swept)
    }

    /// What became of each that goes, in their order.
    async fn remove(self, room: &Inner, images: &[SizedImage], plan: &Plan) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for goes in &plan.goes {
            let image = &images[goes.index].image;
            let outcome = if self.dry_run {
                Outcome::WouldGo
            } else if room.stop.is_cancelled() || self.why != Why::Prune && room.places.is_short() {
                Outcome::NotNow
            } else {
                let outcome = remove_claimed(room, image).await;
                metrics::counter!(metric::IMAGES_REMOVED, "reason" => self.why.word(), "outcome" => outcome.word()).increment(1);
                outcome
            };
            outcomes.push(outcome);
        }
        outcomes
    }
}

/// Unless somebody was told of it since the plan was made.
async fn remove_claimed(room: &Inner, image: &Image) -> Outcome {
    let Some(claim) = room.uses.claim(&image.id) else { return Outcome::Stays(Stays::Held) };
    match remove(&*room.engine, image).await {
        Ok(ImageRemoval::Removed | ImageRemoval::Absent) => {
            tracing::info!(image = %image.id, names = ?image.tags, "an image was removed to make room");
            Outcome::Removed
        }
        Ok(ImageRemoval::InUse(words)) => {
            claim.stays();
            tracing::debug!(image = %image.id, words, "the engine keeps an image that was to make room");
            Outcome::Kept(words)
        }
        // It may be gone: the claim ends with that.
        Err(error) => {
            tracing::warn!(image = %image.id, %error, "an image could not be removed to make room");
            Outcome::Failed(error.to_string())
        }
    }
}

/// Name by name, as no engine removes one with several at once unless it is forced. The name that says whose it is goes last; what the engine keeps gets
/// its names back.
async fn remove(engine: &dyn Engine, image: &Image) -> Result<ImageRemoval, EngineError> {
    let mut names: Vec<&str> = image.tags.iter().map(String::as_str).collect();
    names.sort_by_key(|name| repository_of(name) == PRIVATE);
    if names.is_empty() && image.digests.len() > 1 {
        names.extend(image.digests.iter().map(String::as_str));
    }
    let mut taken = Vec::new();
    for name in names {
        match engine.remove_image(name).await {
            Ok(ImageRemoval::Removed) => taken.push(name),
            Ok(ImageRemoval::Absent) => {}
            Ok(ImageRemoval::InUse(words)) => {
                give_back(engine, &image.id, &taken).await;
                return Ok(ImageRemoval::InUse(words));
            }
            Err(error) => {
                give_back(engine, &image.id, &taken).await;
                return Err(error);
            }
        }
    }
    // What had no name, or others are made of. Whoever named it meanwhile has it.
    match engine.image(image.id.as_str()).await? {
        None => Ok(ImageRemoval::Removed),
        Some(left) if !left.tags.is_empty() => Ok(ImageRemoval::InUse(format!("it has the name {} by now", left.tags[0]))),
        Some(_) => {
            let removed = engine.remove_image(image.id.as_str()).await;
            if !matches!(removed, Ok(ImageRemoval::Removed | ImageRemoval::Absent)) {
                give_back(engine, &image.id, &taken).await;
            }
            removed
        }
    }
}

async fn give_back(engine: &dyn Engine, id: &ImageId, names: &[&str]) {
    for name in names {
        let Some((repository, tag)) = name.rsplit_once(':').filter(|_| !name.contains('@')) else { continue };
        if let Err(error) = engine.tag_image(id, repository, tag).await {
            tracing::warn!(image = %id, name, %error, "an image that stays has lost a name");
        }
    }
}

/// All that a reason to stay may come from.
struct View {
    known: Known,
    /// Bare ids.
    in_use: HashSet<String>,
    pinned: Vec<String>,
    now: SystemTime,
    recalled: Recalled,
    for_others: bool,
}

impl View {
    fn candidate(&self, image: &SizedImage) -> Candidate {
        let pieces = image.layers.iter().map(|layer| Piece { name: layer.chain.clone(), bytes: layer.bytes }).collect();
        let used = self.known.get(&image.image.id).map_or(image.created, |known| known.asked);
        Candidate { pieces, used: used.min(self.now), stays: self.stays(&image.image) }
    }

    fn stays(&self, image: &Image) -> Option<Stays> {
        let known = self.known.get(&image.id);
        if self.is_pinned(image) {
            Some(Stays::Pinned)
        } else if self.in_use.contains(image.id.bare()) {
            Some(Stays::InUse)
        } else if known.is_some_and(|known| known.held_until > self.now) {
            Some(Stays::Held)
        } else if !self.for_others && !self.is_ours(image) {
            Some(Stays::NotOurs)
        } else if self.now < self.recalled.all_held_until {
            Some(Stays::Held)
        } else if known.is_none() && self.now < self.recalled.since + NOT_KNOWN_FOR {
            Some(Stays::NotKnown)
        } else {
            None
        }
    }

    fn is_pinned(&self, image: &Image) -> bool {
        let names = || image.tags.iter().chain(&image.digests);
        let is_it = |pinned: &String| {
            ImageId::from(pinned.as_str()).bare() == image.id.bare() || names().any(|name| reference::is_same(name, pinned))
        };
        names().any(|name| repository_of(name) == placeholder::REPOSITORY) || self.pinned.iter().any(is_it)
    }

    /// It came by nspool, and nobody else has named it.
    fn is_ours(&self, image: &Image) -> bool {
        let known = self.known.get(&image.id);
        let marked = |name: &String| [PRIVATE, build::REPOSITORY].contains(&repository_of(name));
        let is_ours = |name: &String| marked(name) || known.is_some_and(|known| known.knows(name));
        let came = known.is_some_and(|known| known.came) || image.tags.iter().any(marked);
        let from = |digest: &String| known.is_some_and(|known| known.names.iter().any(|name| repository_of(name) == repository_of(digest)));
        came && image.tags.iter().all(is_ours) && image.digests.iter().all(|digest| marked(digest) || from(digest))
    }

    fn swept(&self, images: &[SizedImage], candidates: &[Candidate], plan: &Plan, outcomes: Vec<Outcome>, wanted: u64) -> Swept {
        let row = |index: usize, frees: u64, outcome: Outcome| {
            let SizedImage { image, created, .. } = &images[index];
            let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
            Row {
                id: image.id.clone(),
                names: names.clone(),
                bytes: bytes_of([&*candidates[index].pieces]),
                frees,
                used: self.known.get(&image.id).map(|known| known.asked),
                created: *created,
                ours: self.is_ours(image),
                outcome,
            }
        };
        let is_gone = |outcome: &Outcome| matches!(outcome, Outcome::Removed | Outcome::WouldGo);
        let gone: HashSet<usize> =
            plan.goes.iter().zip(&outcomes).filter(|(_, outcome)| is_gone(outcome)).map(|(goes, _)| goes.index).collect();
        let left = candidates.iter().enumerate().filter(|(index, _)| !gone.contains(index)).map(|(_, candidate)| &*candidate.pieces);
        let after = bytes_of(left);
        let ours = images.iter().zip(candidates).filter(|(image, _)| self.is_ours(&image.image)).map(|(_, candidate)| &*candidate.pieces);
        let goes: HashSet<usize> = plan.goes.iter().map(|goes| goes.index).collect();
        let stay = |index: usize| row(index, 0, candidates[index].stays.map_or(Outcome::Fits, Outcome::Stays));
        let mut rest: Vec<Row> = (0..images.len()).filter(|index| !goes.contains(index)).map(stay).collect();
        rest.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        let mut rows: Vec<Row> = plan.goes.iter().zip(outcomes).map(|(goes, outcome)| row(goes.index, goes.frees, outcome)).collect();
        rows.extend(rest);
        Swept { before: plan.before, after, ours: bytes_of(ours), wanted, rows }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of bytes; nobody has 8 PiB of images")]
pub(super) fn tell_room(room: Option<u64>) {
    metrics::gauge!(metric::IMAGE_ROOM).set(room.unwrap_or_default() as f64);
}

impl Swept {
    #[expect(clippy::cast_precision_loss, reason = "a gauge of bytes; nobody has 8 PiB of images")]
    fn tell(&self, sweep: Sweep, limits: Limits) {
        let now = if sweep.dry_run { self.before } else { self.after };
        metrics::gauge!(metric::IMAGE_BYTES).set(now as f64);
        metrics::gauge!(metric::IMAGE_BYTES_OURS).set(self.ours as f64);
        tell_room(limits.room);
        let removed = self.removed();
        if removed > 0 {
            tracing::info!(reason = sweep.why.word(), removed, before = self.before, after = self.after, "images made room");
        }
        if !sweep.dry_run && self.after > self.wanted && sweep.why != Why::Prune {
            let (after, wanted) = (self.after, self.wanted);
            tracing::warn!(
                after,
                wanted,
                "images take more than [images] room, and no other one may go (nspool image prune --dry-run says why)"
            );
        }
    }
}
