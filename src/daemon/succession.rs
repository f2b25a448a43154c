//! Taking over from a predecessor: from the engine's first answer to the end of the last nanny.
//!
//! The pool's lock proves that it is dead. Then nannies adopt what the ledger tells, and the rest of what it left is cleared away, at once and again
//! whenever something of it turns up: its last calls may be carried out long after its death (an engine that was frozen, a connection that was
//! cut), and the container that comes of one is in no list before. What this daemon's own nannies made is theirs alone (I3).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::DaemonError;
use crate::engine::ContainerId;
use crate::lock::{LockError, PoolLock};
use crate::nanny::Tools;
use crate::nanny::backoff::Backoff;
use crate::nanny::buddy::Ownership;
use crate::nanny::minder::DetachedList;
use crate::observer::{EngineState, Late};
use crate::pool::state::State;
use crate::recovery::{self, Means, Suspects};
use crate::supervisor;

/// How long a start waits for a predecessor that is on its way out.
pub(crate) const WAIT_FOR_LOCK: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Succession {
    pub(super) tools: Arc<Tools>,
    pub(super) means: Means,
    pub(super) suspects: Option<Suspects>,
    pub(super) late: Arc<Late>,
    pub(super) detached: DetachedList,
    pub(super) pool: String,
    pub(super) locks: PathBuf,
}

impl Succession {
    /// Ends with the last nanny.
    pub(super) async fn work(self) -> Result<(), DaemonError> {
        let Some(engine_id) = self.engine_id().await else { return Ok(()) };
        let _lock = self.take_lock(&engine_id).await.map_err(DaemonError::Lock)?;
        // Nannies adopt what the ledger tells while what it does not tell is cleared away.
        let nannies = supervisor::run(Arc::clone(&self.tools));
        let rest = async {
            self.take_over().await;
            Ok(())
        };
        tokio::try_join!(nannies, rest).map(|_| ()).map_err(DaemonError::Nanny)
    }

    /// `None`: the stop came first, and nothing that is known of has to be removed.
    async fn engine_id(&self) -> Option<String> {
        let mut state = self.tools.engine_state.clone();
        tokio::select! {
            biased;
            up = state.wait_for(EngineState::is_up) => up.ok()?.info().map(|info| info.id.clone()),
            () = self.tools.pool.until(|state| state.is_stopping() && (state.is_keeping() || state.unproven() == 0)) => None,
        }
    }

    async fn take_lock(&self, engine_id: &str) -> Result<PoolLock, LockError> {
        let deadline = tokio::time::Instant::now() + WAIT_FOR_LOCK;
        loop {
            match PoolLock::take(&self.locks, engine_id, &self.pool) {
                Err(LockError::Taken { .. }) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                taken => return taken,
            }
        }
    }

    async fn stopping(&self) {
        self.tools.pool.until(|state| state.is_stopping()).await;
    }

    /// Until the stop.
    async fn take_over(&self) {
        let pool = &self.tools.pool;
        if let Some(leftovers) = &self.tools.leftovers {
            // No slot is filled yet: whatever is told of, the ledger tells.
            let told = pool.read(|state| state.slot_views());
            let told = told.into_iter().filter_map(|slot| Some(slot.namespace?.namespace_id.clone())).collect();
            match leftovers.sweep(&told).await {
                Ok(alone) => alone.iter().for_each(|(name, why)| tracing::warn!(name, why, "a folder that is no slot's is left alone")),
                Err(error) => tracing::warn!(%error, "the folders that a predecessor left cannot be listed"),
            }
        }
        if self.clear_up().await
            && let Err(denied) = pool.with(State::open)
        {
            tracing::error!(%denied, "the configured size is refused");
        }
        if pool.read(State::unproven) > 0 {
            let began = pool.now();
            pool.until(|state| state.unproven() == 0 || state.is_stopping()).await;
            tracing::info!(took = ?pool.now().saturating_sub(began), "what the ledger told of is proven");
        }
        loop {
            tokio::select! {
                biased;
                () = self.stopping() => return,
                () = self.late.seen() => {}
            }
            if !self.clear_up().await {
                return;
            }
        }
    }

    /// `false`: the stop came first.
    async fn clear_up(&self) -> bool {
        let mut backoff = Backoff::new(&self.tools.settings.borrow().backoff.clone(), 0);
        let recovered = loop {
            let error = match recovery::recover(&self.means, |id, owner| self.is_ours(id, owner), self.suspects).await {
                Ok(recovered) => break recovered,
                Err(error) => error,
            };
            tracing::warn!(%error, "cannot look for what a predecessor left");
            tokio::select! {
                biased;
                () = self.stopping() => return false,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        };
        self.tools.pool.with(|state, _| state.generations_begin_at(recovered.next_generation));
        for buddy in recovered.occupied {
            // The minder outlives this, and takes one after the other.
            if let Ok(place) = self.tools.detached.reserve().await {
                self.tools.pool.with(|state, _| state.adopt_detached());
                place.send(buddy);
            }
        }
        true
    }

    /// Made by this daemon's nannies, in one of its slots, or minded.
    fn is_ours(&self, id: &ContainerId, owner: &Ownership) -> bool {
        owner.instance == self.late.instance
            || self.tools.pool.read(|state| state.has_container(id.as_str()))
            || self.detached.lock().iter().any(|buddy| buddy.id == *id)
    }
}
