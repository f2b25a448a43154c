//! Verify: from an empty, fenced use to the next one in the same namespaces, when they are as they were.
//!
//! ```text
//!  who was inside? ─► inspected ─► the shared files: compared, and replaced ─► look again ─► Ready
//! ```
//!
//! A structure that differs is never repaired: the buddy is retired, with the differences as the reason. What comes about by and by (connections that
//! wait for their end, neighbours) is removed, and looked for again. The shared files are replaced even when they are as they were: a process
//! elsewhere may hold one open.
//!
//! Who was inside, the engine's events tell. They come late, so they are waited for: the fence is among them, and what comes after it is no matter of
//! the use before.
//!
//! What can go wrong: somebody was inside who can do what no inspection finds, or it cannot be told who was (an engine that was away, a container that
//! was gone at once): retired, or inspected with all settings, as configured · something cannot be read, or takes too long: as good as dirty · what
//! it was at first is not known (the daemon that took it is gone, and the buddy was leased): retired.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::files::SharedFiles;
use super::{Buddy, Nanny};
use crate::config::Unbounded;
use crate::engine::Address;
use crate::netns::Snapshot;
use crate::netns::inspection::{Depth, Difference, InspectError, Seen, Verdict};
use crate::netns::networks::Link;
use crate::pool::state::{Afterwards, Order};
use crate::pool::{SlotIndex, UseKey};
use crate::random::HashMap;
use crate::telemetry::metric;

/// An inspection takes a millisecond, on a host where everything is late some tens; a snapshot is taken beside 250 ms of the engine's.
const WITHIN: Duration = Duration::from_secs(2);
/// A look that people asked for keeps an inspection waiting.
const LOOK_WITHIN: Duration = Duration::from_millis(500);
/// Events come after some milliseconds, podman's after a tenth of a second and more.
const HEARD_WITHIN: Duration = Duration::from_secs(3);
/// Lines of the log for one use; a function decides how many there are.
const MOST_LOGGED: usize = 32;
/// That are told as the reason of a retirement; the log has all of them.
const MOST_TOLD: usize = 3;

/// Why a buddy's namespaces are not used again.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotVerified {
    #[error("a privileged container was inside, or it cannot be told who was")]
    Unbounded,
    #[error("what it was at first is not known any more")]
    NoSnapshot,
    #[error("not as it was: {}", told(.0))]
    Dirty(Vec<Difference>),
    #[error("a file that its joiners share could not be replaced: {0}")]
    Files(std::io::Error),
}

impl NotVerified {
    /// For the metrics: the first thing that is different stands for all.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Unbounded => "unbounded",
            Self::NoSnapshot => "no_snapshot",
            Self::Dirty(differences) => differences.first().map_or("dirty", |difference| difference.kind.word()),
            Self::Files(_) => "files",
        }
    }
}

fn told(differences: &[Difference]) -> String {
    let mut words: Vec<String> = differences.iter().take(MOST_TOLD).map(ToString::to_string).collect();
    if differences.len() > MOST_TOLD {
        words.push(format!("and {} more", differences.len() - MOST_TOLD));
    }
    words.join("; ")
}

/// What the buddies of all slots were, for people who want to see what became of it.
#[derive(Debug, Default)]
pub struct Snapshots(Mutex<HashMap<SlotIndex, Reference>>);

#[derive(Clone, Debug)]
struct Reference {
    generation: u64,
    snapshot: Weak<dyn Snapshot>,
    files: SharedFiles,
}

impl Snapshots {
    /// What is different now in the slot's buddy of that generation; `None`: nothing is known of it, which is so where `reuse` is not `verified`.
    /// Changes nothing. Cancel safe.
    ///
    /// # Errors
    /// Something cannot be read, or not in time.
    pub async fn look(&self, slot: SlotIndex, generation: u64) -> Result<Option<Seen>, InspectError> {
        let reference = self.0.lock().get(&slot).filter(|reference| reference.generation == generation).cloned();
        let Some(reference) = reference else { return Ok(None) };
        let Some(snapshot) = reference.snapshot.upgrade() else { return Ok(None) };
        let (seen, files) = tokio::join!(snapshot.look(LOOK_WITHIN), reference.files.differences(LOOK_WITHIN));
        let mut seen = seen?;
        seen.differences.extend(files);
        Ok(Some(seen))
    }

    fn keep(&self, slot: SlotIndex, generation: u64, snapshot: &Arc<dyn Snapshot>, files: SharedFiles) {
        let reference = Reference { generation, snapshot: Arc::downgrade(snapshot), files };
        self.0.lock().insert(slot, reference);
    }
}

impl Nanny {
    /// By its network's policy.
    pub(super) fn verifies(&self) -> bool {
        self.tools.breed.networks[self.network()].afterwards == Afterwards::Verify
    }

    /// What the buddy's namespaces are, if they are to be verified: nobody has joined yet.
    pub(super) async fn take_snapshot(&self, buddy: &Buddy) -> Result<Option<Arc<dyn Snapshot>>, InspectError> {
        if !self.verifies() {
            return Ok(None);
        }
        let depth = match self.tools.unbounded {
            Unbounded::Retire => Depth::Usual,
            Unbounded::Inspect => Depth::Privileged,
        };
        let own = |address: &Address| address.address.split('/').next()?.parse().ok();
        let engines = buddy.facts.addresses.iter().filter_map(own);
        let addresses = engines.chain(buddy.link.iter().flat_map(Link::addresses)).collect();
        let snapshot = buddy.held.snapshot(depth, addresses, WITHIN).await?;
        self.tools.snapshots.keep(self.slot, buddy.generation, &snapshot, buddy.files.clone().unwrap_or_default());
        Ok(Some(snapshot))
    }

    /// That the buddy is as it was, or has been made so. `None`: the order changed meanwhile.
    pub(super) async fn verify(&mut self, key: UseKey) -> Option<Result<(), NotVerified>> {
        if let Some(buddy) = &mut self.buddy {
            // Should the slot be given up meanwhile, it is looked into once more.
            buddy.proven_empty = None;
        }
        let verified = self.verify_now(key).await?;
        let outcome = verified.as_ref().err().map_or("clean", NotVerified::word);
        metrics::counter!(metric::INSPECTIONS, "outcome" => outcome).increment(1);
        if let Err(NotVerified::Dirty(differences)) = &verified {
            let more = differences.len().saturating_sub(MOST_LOGGED);
            for difference in differences.iter().take(MOST_LOGGED) {
                tracing::warn!(slot = self.slot, generation = key.generation, use_number = key.use_number, lease_id = %key, %difference, more, "left behind");
            }
        }
        Some(verified)
    }

    async fn verify_now(&self, key: UseKey) -> Option<Result<(), NotVerified>> {
        let known = self.buddy.as_ref().and_then(|buddy| Some((buddy.snapshot.as_ref()?, buddy.files.as_ref()?)));
        let Some((snapshot, files)) = known else { return Some(Err(NotVerified::NoSnapshot)) };
        let order = Order::Renew(key);
        let all_known = tokio::select! {
            biased;
            () = self.until_order_is_not(&order) => return None,
            all_known = self.has_heard_of_all() => all_known,
        };
        let unbounded = !all_known || self.tools.pool.read(|state| state.slot_view(key.slot).unbounded);
        let depth = match (unbounded, self.tools.unbounded) {
            (true, Unbounded::Retire) => return Some(Err(NotVerified::Unbounded)),
            (true, Unbounded::Inspect) => Depth::Privileged,
            (false, _) => Depth::Usual,
        };
        let began = self.tools.pool.now();
        let (verdict, mut differences) = tokio::join!(snapshot.inspect(depth, WITHIN), files.differences(WITHIN));
        metrics::histogram!(metric::INSPECTION).record(self.tools.pool.now().saturating_sub(began));
        match verdict {
            Verdict::Clean { removed } => {
                for leftover in removed {
                    metrics::counter!(metric::LEFTOVERS, "kind" => leftover.kind.word()).increment(leftover.count as u64);
                }
            }
            Verdict::Dirty(more) => differences.splice(..0, more).for_each(drop),
        }
        if !differences.is_empty() {
            return Some(Err(NotVerified::Dirty(differences)));
        }
        Some(files.renew().await.map_err(NotVerified::Files))
    }

    /// Whether everybody who was there before the fence was told of, and looked at.
    async fn has_heard_of_all(&self) -> bool {
        let Some(mut heard) = self.buddy.as_ref().and_then(|buddy| buddy.heard.clone()) else { return false };
        matches!(tokio::time::timeout(HEARD_WITHIN, heard.wait_for(|heard| *heard)).await, Ok(Ok(_)))
    }
}
