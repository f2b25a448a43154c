//! The audit: holds what the pool believes against the ledger, the engine and the kernel, and says where they do not agree.
//!
//! Nothing stands still for it: a slot that is being filled or cleared is its nanny's business, and what an honest change would explain is no
//! finding. So the pool is read before and after the others, only what was the same both times is judged ([`compare`]), and what does not agree
//! has to disagree again a second later. Whatever could not be asked is a finding of its own ([`Kind::Unknown`]), never an agreement.
//!
//! What is mended, and only when a person asks: a slot in doubt is looked at by its nanny, a ready one that somebody is in is given up, a buddy
//! that belongs to no slot goes to the minder (which removes it once nobody is inside), joiners that no event told of are told, the ledger is
//! written anew, a folder by which a use was joined that is over is cleared away. Mended is what a later look finds to agree. No namespace and no container
//! is ever removed here, and nothing of others is touched (I3, I9).

mod compare;
mod sight;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::nanny::Tools;
use crate::nanny::minder::DetachedList;
use crate::pool::{Moment, SlotIndex};
use crate::recovery::{self, Means};
use crate::telemetry::metric;
use sight::Sight;

/// Between the look that finds something and the one that confirms it: longer than the minder or an event take.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Findings listed at most (I12): with more than these, one knows.
const MOST: usize = 1_000;
/// How long a repair may take to show.
const MENDED_WITHIN: Duration = Duration::from_secs(10);
const MENDED_EVERY: Duration = Duration::from_millis(250);

/// What does not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The ledger tells something else than the pool: the next daemon would believe it.
    Ledger,
    /// A slot's buddy is gone, stopped, paused or another one than was proven.
    Buddy,
    /// A buddy is not called as its holder was told.
    Name,
    /// A slot's network namespace is the host's, or another slot's.
    Namespace,
    /// Somebody is where nobody was let in, or joined unseen.
    Joiner,
    /// A buddy of this pool that neither a slot nor the minder has.
    Orphan,
    /// A folder of this pool's with namespaces that no slot has.
    Folder,
    /// A container with the labels of this pool's buddies that nspool did not name, or a folder among the pool's that is not proven to be nobody's: it is never
    /// touched.
    Stray,
    /// Something could not be asked.
    Unknown,
}

impl Kind {
    /// As the contract says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Buddy => "buddy",
            Self::Name => "name",
            Self::Namespace => "namespace",
            Self::Joiner => "joiner",
            Self::Orphan => "orphan",
            Self::Folder => "folder",
            Self::Stray => "stray",
            Self::Unknown => "unknown",
        }
    }
}

/// One thing that does not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of which kind.
    pub kind: Kind,
    /// What it is about: a slot, a lease, a container, a folder.
    pub subject: String,
    /// What each side says.
    pub detail: String,
    /// Whether there is a repair that is safe.
    pub fixable: bool,
    /// It was repaired, and agrees now.
    pub fixed: bool,
}

/// What an audit came to.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// When it was over.
    pub at: Moment,
    /// Slots that were looked at.
    pub slots: u32,
    /// Leases that were looked at.
    pub leases: u32,
    /// Containers on the engine, anybody's.
    pub containers: u32,
    /// What does not agree.
    pub findings: Vec<Finding>,
    /// As many more, when there are too many to list.
    pub more: u32,
}

/// Why there is nothing to audit yet, or any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// What a predecessor left is still looked for.
    #[error("the pool is still taking over what its predecessor left")]
    Starting,
    /// The daemon is on its way out.
    #[error("the daemon is stopping")]
    Stopping,
}

/// A repair.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mend {
    /// Its nanny should look.
    Doubt(String),
    /// Give the buddy up, once its lease is over.
    Recycle(SlotIndex),
    /// Tell the pool who joins whom.
    Relist,
    /// Hand the container to the minder.
    Mind(String),
    /// Clear the folder away.
    Clear(String),
    /// Write the ledger anew.
    Rewrite,
}

struct Found {
    finding: Finding,
    mend: Option<Mend>,
}

impl Found {
    fn key(&self) -> (Kind, String) {
        (self.finding.kind, self.finding.subject.clone())
    }
}

/// See the module. One audit at a time.
pub struct Auditor {
    tools: Arc<Tools>,
    means: Means,
    detached: DetachedList,
    turn: Semaphore,
}

impl Auditor {
    /// Looks at what these know.
    #[must_use]
    pub fn new(tools: Arc<Tools>, means: Means, detached: DetachedList) -> Self {
        Self { tools, means, detached, turn: Semaphore::new(1) }
    }

    /// Audits; with `fix` repairs what is safe. Takes as long as the engine's list and a scan of the processes, a second more when something is
    /// found, and up to ten when it is repaired. Cancel safe: repairs that were begun go on.
    ///
    /// # Errors
    /// [`NotNow`].
    pub async fn audit(&self, fix: bool) -> Result<Audit, NotNow> {
        // Only closing it, which nobody does, could fail.
        let _turn = self.turn.acquire().await.ok();
        let first = self.look().await?;
        let suspected: BTreeSet<_> = first.found.iter().map(Found::key).collect();
        if suspected.is_empty() {
            return Ok(self.outcome(&first.sight, Vec::new()));
        }
        tokio::time::sleep(AGAIN_AFTER).await;
        let mut second = self.look().await?;
        let mut found = std::mem::take(&mut second.found);
        found.retain(|found| suspected.contains(&found.key()));
        if fix {
            for found in &found {
                self.mend(found, &second.sight).await;
            }
            self.see_mended(&mut found).await?;
        }
        Ok(self.outcome(&second.sight, found.into_iter().map(|found| found.finding).collect()))
    }

    fn outcome(&self, sight: &Sight, mut findings: Vec<Finding>) -> Audit {
        let more = findings.len().saturating_sub(MOST);
        findings.truncate(MOST);
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        Audit {
            at: self.tools.pool.now(),
            slots: count(sight.before.slots.len()),
            leases: count(sight.before.told.leases.len()),
            containers: count(sight.list.as_ref().map_or(0, |list| list.len())),
            findings,
            more: count(more),
        }
    }

    async fn look(&self) -> Result<Look, NotNow> {
        let (open, stopping) = self.tools.pool.read(|state| (state.is_open(), state.is_stopping()));
        if stopping {
            return Err(NotNow::Stopping);
        }
        if !open {
            return Err(NotNow::Starting);
        }
        let sight = Sight::of(&self.tools, &self.detached).await;
        let found = compare::all(&sight, &self.tools.breed);
        Ok(Look { sight, found })
    }

    async fn mend(&self, found: &Found, sight: &Sight) {
        let Some(mend) = &found.mend else { return };
        tracing::info!(kind = found.finding.kind.word(), subject = found.finding.subject, ?mend, "mending what the audit found");
        match mend {
            Mend::Doubt(container) => self.tools.doubts.raise(container),
            Mend::Recycle(slot) => drop(self.tools.pool.with(|state, now| state.recycle(now, *slot, false))),
            Mend::Relist => {
                let Ok(list) = &sight.list else { return };
                let all = crate::observer::joiners(list, sight.listed_at);
                let doubtful = self.tools.pool.with(|state, now| state.joiners_listed(now, &all).len());
                tracing::debug!(doubtful, "the pool was told who joins whom");
            }
            Mend::Mind(container) => self.mind(container, sight).await,
            Mend::Clear(name) => {
                if let Some(leftovers) = &self.tools.leftovers {
                    leftovers.clear(name).await;
                }
            }
            Mend::Rewrite => {
                let pool = Arc::clone(&self.tools.pool);
                if let Ok(Err(error)) = tokio::task::spawn_blocking(move || pool.rewrite_ledger()).await {
                    tracing::error!(%error, "the ledger cannot be written anew");
                }
            }
        }
    }

    async fn mind(&self, container: &str, sight: &Sight) {
        let Ok(list) = &sight.list else { return };
        let Some(found) = list.iter().find(|found| found.id.as_str() == container) else { return };
        let Some(owner) = self.tools.breed.owned(&found.name, &found.labels) else { return };
        let Ok(place) = self.tools.detached.try_reserve() else {
            tracing::warn!(container, "too many buddies are watched already");
            return;
        };
        let found = recovery::examine(&self.means, found.clone(), owner).await;
        self.tools.pool.with(|state, _| state.adopt_detached());
        place.send(found.detached(self.tools.pool.now()));
    }

    /// Looks until nothing that has a repair is found any more, or the time is up.
    async fn see_mended(&self, found: &mut [Found]) -> Result<(), NotNow> {
        let until = tokio::time::Instant::now() + MENDED_WITHIN;
        loop {
            let still: BTreeSet<_> = self.look().await?.found.iter().map(Found::key).collect();
            for found in found.iter_mut() {
                found.finding.fixed = found.mend.is_some() && !still.contains(&found.key());
            }
            let all = found.iter().all(|found| found.finding.fixed || found.mend.is_none());
            if all || tokio::time::Instant::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(MENDED_EVERY).await;
        }
    }

    /// Audits every so often, until `stop`: what is found is logged when it is new, and counted in a gauge.
    pub async fn run(&self, every: Duration, stop: CancellationToken) {
        let mut known = BTreeSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(every) => {}
            }
            let audit = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                audit = self.audit(false) => audit,
            };
            match audit {
                Ok(audit) => known = report(&audit, &known),
                Err(why) => tracing::debug!(%why, "no audit for now"),
            }
        }
    }
}

struct Look {
    sight: Sight,
    found: Vec<Found>,
}

/// Logs what is new; answers what is known now.
fn report(audit: &Audit, known: &BTreeSet<(Kind, String)>) -> BTreeSet<(Kind, String)> {
    metrics::gauge!(metric::AUDIT_FINDINGS).set(u32::try_from(audit.findings.len()).unwrap_or(u32::MAX));
    metrics::counter!(metric::AUDITS, "outcome" => if audit.findings.is_empty() { "agreed" } else { "found" }).increment(1);
    let now: BTreeSet<_> = audit.findings.iter().map(|finding| (finding.kind, finding.subject.clone())).collect();
    for finding in audit.findings.iter().filter(|finding| !known.contains(&(finding.kind, finding.subject.clone()))) {
        tracing::warn!(kind = finding.kind.word(), subject = finding.subject, detail = finding.detail, "the audit found something");
    }
    if now.is_empty() && !known.is_empty() {
        tracing::info!("the audit finds nothing any more");
    }
    now
}
