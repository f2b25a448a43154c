//! `nspool.v1.PoolAdmin`: what operators say. Each action is logged with who said it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::connection::Peer;
use super::convert::{self, Shown};
use super::status::Refusal;
use super::{Detached, Shared, validate};
use crate::audit::NotNow;
use crate::pool::Denied;
use crate::proto;
use crate::proto::pool_admin_server::PoolAdmin;

/// A drain that names no timeout waits this long (as the contract says).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a drain tells how far it is, at most.
const PACE: Duration = Duration::from_millis(100);
/// Beyond this a size is a slip of the hand: each slot takes memory for good.
const MOST_SLOTS: u32 = 1 << 20;

/// See the module. One instance per connection, which knows its peer.
pub(super) struct AdminService {
    shared: Arc<Shared>,
    peer: Peer,
}

impl Shared {
    /// Whether a peer sees and may do everything.
    pub(super) fn is_admin(&self, peer: Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own_uid || self.limits.borrow().admin_uids.contains(&peer.uid)
    }
}

impl AdminService {
    pub(super) fn new(shared: Arc<Shared>, peer: Peer) -> Self {
        Self { shared, peer }
    }

    fn admins_only(&self) -> Result<(), Refusal> {
        if self.shared.is_admin(self.peer) {
            return Ok(());
        }
        tracing::info!(peer_uid = self.peer.uid, peer_pid = self.peer.pid, "an admin call was refused");
        Err(Refusal::NotAllowed { uid: self.peer.uid })
    }

    fn detached(&self, buddy: Detached) -> proto::DetachedBuddy {
        proto::DetachedBuddy {
            container_id: buddy.container_id,
            name: buddy.name,
            slot: buddy.slot,
            generation: buddy.generation,
            joiners: buddy.joiners,
            since: Some(convert::timestamp(&self.shared.about, buddy.since)),
        }
    }
}

#[tonic::async_trait]
impl PoolAdmin for AdminService {
    async fn list_slots(&self, _: Request<proto::ListSlotsRequest>) -> Result<Response<proto::ListSlotsResponse>, Status> {
        let all = self.shared.is_admin(self.peer);
        let slots = self.shared.pool.read(crate::pool::state::State::slot_views);
        Ok(Response::new(proto::ListSlotsResponse {
            slots: slots.into_iter().map(|view| convert::slot(&self.shared.about, view, all)).collect(),
            detached: (self.shared.detached)().into_iter().map(|buddy| self.detached(buddy)).collect(),
        }))
    }

    async fn list_leases(&self, _: Request<proto::ListLeasesRequest>) -> Result<Response<proto::ListLeasesResponse>, Status> {
        let views = self.shared.pool.read(|state| state.lease_views(None));
        let (status, now) = (self.shared.status.borrow(), self.shared.pool.now());
        let leases = views.iter().map(|view| convert::lease(&self.shared.about, &status, view, now, Shown::InList)).collect();
        Ok(Response::new(proto::ListLeasesResponse { leases }))
    }

    async fn resize(&self, request: Request<proto::ResizeRequest>) -> Result<Response<proto::ResizeResponse>, Status> {
        self.admins_only()?;
        let asked = request.into_inner();
        if let Some(max) = asked.max.filter(|max| *max > MOST_SLOTS) {
            return Err(Refusal::bad_field("max", format!("is {max}, at most {MOST_SLOTS} are allowed")).into());
        }
        let resized = self.shared.pool.with(|state, now| {
            let (ready, max) = state.sizes();
            let (ready, max) = (asked.ready.unwrap_or(ready), asked.max.unwrap_or(max));
            state.resize_asked(now, ready, max).map(|()| (ready, max))
        });
        let (ready, max) = resized.map_err(Refusal::from)?;
        tracing::info!(ready, max, peer_uid = self.peer.uid, peer_pid = self.peer.pid, "resized by an operator");
        Ok(Response::new(proto::ResizeResponse { ready, max }))
    }

    async fn cordon(&self, request: Request<proto::CordonRequest>) -> Result<Response<proto::CordonResponse>, Status> {
        self.admins_only()?;
        let reason = request.into_inner().reason;
        let mut checks = validate::Checks::default();
        checks.text("reason", &reason);
        checks.done()?;
        self.shared.pool.with(|state, _| {
            // A drain goes on draining.
            let (cordoned, draining) = state.doors();
            if !cordoned {
                state.cordon(draining);
            }
        });
        tracing::info!(reason, peer_uid = self.peer.uid, peer_pid = self.peer.pid, "cordoned by an operator");
        Ok(Response::new(proto::CordonResponse {}))
    }

    async fn uncordon(&self, _: Request<proto::UncordonRequest>) -> Result<Response<proto::UncordonResponse>, Status> {
        self.admins_only()?;
        self.shared.pool.with(|state, _| {
            if state.doors().0 {
                state.uncordon();
            }
        });
        tracing::info!(peer_uid = self.peer.uid, peer_pid = self.peer.pid, "uncordoned by an operator");
        Ok(Response::new(proto::UncordonResponse {}))
    }

    type DrainStream = BoxStream<'static, Result<proto::DrainResponse, Status>>;

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        self.admins_only()?;
        let mut checks = validate::Checks::default();
        let timeout = checks.duration("timeout", request.into_inner().timeout, true, self.shared.limits.borrow().longest);
        checks.done()?;
        let timeout = timeout.unwrap_or(DRAIN_TIMEOUT);
        tracing::info!(?timeout, peer_uid = self.peer.uid, peer_pid = self.peer.pid, "drained by an operator");
        let drain = Drain::begin(Arc::clone(&self.shared), Instant::now() + timeout);
        let messages = stream::try_unfold(Some(drain), |drain| async move {
            let Some(mut drain) = drain else { return Ok(None) };
            let message = drain.next().await?;
            let over = message.drained || message.timed_out;
            Ok::<_, Status>(Some((message, (!over).then_some(drain))))
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn recycle_slot(&self, request: Request<proto::RecycleSlotRequest>) -> Result<Response<proto::RecycleSlotResponse>, Status> {
        self.admins_only()?;
        let proto::RecycleSlotRequest { slot, force } = request.into_inner();
        let found = self.shared.pool.with(|state, now| state.recycle(now, slot, force)).map_err(Refusal::from)?;
        tracing::info!(slot, force, found = found.word(), peer_uid = self.peer.uid, peer_pid = self.peer.pid, "recycled by an operator");
        Ok(Response::new(proto::RecycleSlotResponse { state: found.word().to_owned() }))
    }

    async fn force_release(&self, request: Request<proto::ForceReleaseRequest>) -> Result<Response<proto::ForceReleaseResponse>, Status> {
        self.admins_only()?;
        let lease_id = request.into_inner().lease_id;
        let Some(key) = convert::parse_lease_id(&lease_id) else {
            return Err(Refusal::bad_field("lease_id", "is no lease id: they look like 7-1042-3").into());
        };
        let released = self.shared.pool.with(|state, now| state.force_release(now, key));
        let released = released.map_err(|denied: Denied| Refusal::from(denied))?;
        tracing::info!(
            slot = key.slot,
            generation = key.generation,
            use_number = key.use_number,
            lease_id,
            peer_uid = self.peer.uid,
            peer_pid = self.peer.pid,
            "released by an operator"
        );
        Ok(Response::new(proto::ForceReleaseResponse { outcome: convert::released(&released).0.into() }))
    }

    async fn audit(&self, request: Request<proto::AuditRequest>) -> Result<Response<proto::AuditResponse>, Status> {
        self.admins_only()?;
        let fix = request.into_inner().fix;
        tracing::info!(fix, peer_uid = self.peer.uid, peer_pid = self.peer.pid, "audited by an operator");
        let audit = (self.shared.audit)(fix).await.map_err(|why| match why {
            NotNow::Starting => Refusal::Denied(Denied::Starting { retry_after: None }),
            NotNow::Stopping => Refusal::Stopping,
        })?;
        Ok(Response::new(convert::audit(&self.shared.about, audit)))
    }

    async fn inspect(&self, request: Request<proto::InspectRequest>) -> Result<Response<proto::InspectResponse>, Status> {
        self.admins_only()?;
        let slot = request.into_inner().slot;
        let view = self.shared.pool.read(|state| (slot < state.slot_count()).then(|| state.slot_view(slot)));
        let view = view.ok_or(Refusal::Denied(Denied::UnknownSlot { slot }))?;
        let seen = (self.shared.inspect)(slot, view.key.generation).await.ok_or(Refusal::NoSnapshot { slot })?;
        Ok(Response::new(convert::inspection(&self.shared.about, view, seen)))
    }
}

/// A drain that waits. Several may: the pool says DRAINING until the last of them is over (done, out of time, or its caller gone), CORDONED
/// from then on, until somebody uncordons it.
struct Drain {
    shared: Arc<Shared>,
    until: Instant,
    /// What was told last, and when the next may be told.
    told: Option<(u32, u32)>,
    next_at: Instant,
}

impl Drain {
    fn begin(shared: Arc<Shared>, until: Instant) -> Self {
        shared.pool.with(|state, _| {
            // Counted under the pool's lock, like its end below: so neither can slip between the other's two steps.
            shared.drains.fetch_add(1, Ordering::Relaxed);
            if state.doors() != (true, true) {
                state.cordon(true);
            }
        });
        Self { shared, until, told: None, next_at: Instant::now() }
    }

    async fn next(&mut self) -> Result<proto::DrainResponse, Status> {
        let shared = Arc::clone(&self.shared);
        loop {
            let mut changed = pin!(shared.pool.changed());
            changed.as_mut().enable();
            let (usage, doors) = shared.pool.read(|state| (state.usage(), state.doors()));
            if doors != (true, true) {
                return Err(Refusal::Uncordoned.into());
            }
            let (drained, timed_out) = (usage.leased == 0, Instant::now() >= self.until);
            let counts = (usage.leased, usage.waiting);
            let tell = self.told != Some(counts) && Instant::now() >= self.next_at;
            if drained || timed_out || tell {
                self.told = Some(counts);
                self.next_at = Instant::now() + PACE;
                let timed_out = timed_out && !drained;
                return Ok(proto::DrainResponse { leased: usage.leased, waiting: usage.waiting, drained, timed_out });
            }
            let untold = self.told != Some(counts);
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Err(Refusal::Stopping.into()),
                () = tokio::time::sleep_until(self.until) => {}
                () = tokio::time::sleep_until(self.next_at), if untold => {}
                () = changed => {}
            }
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.shared.pool.with(|state, _| {
            let last = self.shared.drains.fetch_sub(1, Ordering::Relaxed) == 1;
            if last && state.doors() == (true, true) {
                state.cordon(false);
            }
        });
    }
}
