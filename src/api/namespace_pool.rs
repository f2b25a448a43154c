//! `nspool.v1.NamespacePool`: what agents say. One instance per connection, which knows its peer.
//!
//! Every handler is cancel safe: dropped because its caller went away, it leaves nothing behind that the caller was not told of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::connection::Peer;
use super::convert::{self, Shown};
use super::status::{Reason, Refusal};
use super::{Shared, deadline, validate, watch};
use crate::pool::{Denied, Grant, LeaseView, Lifetime, Moment, Token};
use crate::proto;
use crate::proto::namespace_pool_server::NamespacePool;

/// See the module.
pub(super) struct PoolService {
    shared: Arc<Shared>,
    peer: Peer,
}

/// A malformed token was never handed out either, so it is not worth a reason of its own.
fn token(text: &str) -> Result<Token, Refusal> {
    Token::from_hex(text).ok_or(Refusal::Denied(Denied::UnknownToken))
}

impl PoolService {
    pub(super) fn new(shared: Arc<Shared>, peer: Peer) -> Self {
        Self { shared, peer }
    }

    async fn grant(&self, request: Request<proto::AllocateRequest>) -> Result<Grant, Refusal> {
        let timeout = deadline::of_headers(request.metadata().as_ref());
        let (asked, wait) = {
            let limits = self.shared.limits.borrow();
            let most = deadline::wait_below(timeout.unwrap_or(limits.timeout));
            let (asked, wait) = validate::allocate(request.into_inner(), self.peer.uid, self.peer.connection, &self.shared.about, &limits)?;
            (asked, wait.min(most))
        };
        if wait.is_zero() {
            return Ok(self.shared.pool.allocate(asked, wait).await?);
        }
        let started = Instant::now();
        let outcome = tokio::select! {
            biased;
            outcome = self.shared.pool.allocate(asked, wait) => outcome,
            () = self.shared.stop.cancelled() => Err(Denied::Stopping),
        };
        if outcome.as_ref().map_or_else(had_to_wait, |grant| grant.waited) {
            self.shared.counters.wait.record(started.elapsed());
        }
        Ok(outcome?)
    }

    /// Sees that a `connection` lease lasts as long as a connection that is open, and is answered on it.
    ///
    /// The end of a connection goes first out of the set of open ones, then into the pool; here the pool comes first, then the set. So either
    /// the end finds the lease, or this finds that the connection has ended. The lease may also be of another connection, when this call was
    /// a retry that waited along, and that one may have ended since.
    fn hold(&self, lease: &LeaseView) {
        let Lifetime::Connection(connection) = lease.request.lifetime else { return };
        let is_open = |connection| self.shared.connections.lock().contains(connection);
        if is_open(&connection) {
            return;
        }
        let own = self.peer.connection;
        self.shared.pool.with(|state, _| state.hold_by(lease.token, own));
        if !is_open(&own) {
            self.shared.pool.with(|state, now| state.connection_closed(now, own));
        }
    }

    fn lease(&self, view: &LeaseView) -> proto::Lease {
        convert::lease(&self.shared.about, &self.shared.status.borrow(), view, self.shared.pool.now(), Shown::ToHolder)
    }

    /// Answers the new expiry.
    fn renewed(&self, token: Token, ttl: Option<Duration>) -> Result<(Moment, Duration), Denied> {
        self.shared.pool.with(|state, now| state.renew(now, token, ttl).map(|until| (until, until.saturating_sub(now))))
    }

    fn log_granted(&self, grant: &Grant) {
        let (key, request) = (grant.lease.key, &grant.lease.request);
        tracing::debug!(
            slot = key.slot, generation = key.generation, use_number = key.use_number, lease_id = %key, owner = request.owner,
            peer_uid = self.peer.uid, peer_pid = self.peer.pid, repeated = grant.repeated, waited = grant.waited, "allocated"
        );
    }

    fn log_released(&self, lease: Option<&LeaseView>, outcome: &str) {
        let Some(lease) = lease else {
            tracing::debug!(peer_uid = self.peer.uid, peer_pid = self.peer.pid, outcome, "released");
            return;
        };
        let key = lease.key;
        tracing::debug!(
            slot = key.slot, generation = key.generation, use_number = key.use_number, lease_id = %key, owner = lease.request.owner,
            peer_uid = self.peer.uid, peer_pid = self.peer.pid, outcome, "released"
        );
    }
}

/// Whether a refusal came after a wait and not at once.
fn had_to_wait(denied: &Denied) -> bool {
    match denied {
        Denied::PoolEmpty { .. } | Denied::Starting { .. } | Denied::EngineAway | Denied::Draining | Denied::Stopping => true,
        Denied::TooManyWaiting
        | Denied::Quota { .. }
        | Denied::Cordoned
        | Denied::NotRecorded { .. }
        | Denied::LeaseLost { .. }
        | Denied::LeaseEnded { .. }
        | Denied::UnknownToken
        | Denied::UnknownLease
        | Denied::UnknownSlot { .. }
        | Denied::RequestConflict
        | Denied::NotRenewable
        | Denied::BadSize { .. } => false,
    }
}

#[tonic::async_trait]
impl NamespacePool for PoolService {
    async fn get_info(&self, _: Request<proto::GetInfoRequest>) -> Result<Response<proto::GetInfoResponse>, Status> {
        let about = &self.shared.about;
        Ok(Response::new(proto::GetInfoResponse {
            version: about.version.clone(),
            pool: about.pool.clone(),
            engine: self.shared.status.borrow().engine_info.as_ref().map(convert::engine),
            incarnation: about.incarnation.clone(),
            networks: about.networks.clone(),
            reuse: about.reuse.clone(),
            at_stop: about.at_stop.clone(),
            state_dir: about.state_dir.clone(),
            started_at: Some(about.started_at.into()),
        }))
    }

    async fn allocate(&self, request: Request<proto::AllocateRequest>) -> Result<Response<proto::AllocateResponse>, Status> {
        let counters = &self.shared.counters;
        let grant = self.grant(request).await.inspect_err(|refusal| counters.refused(refusal.reason()))?;
        if grant.repeated { &counters.repeated } else { &counters.granted }.increment(1);
        self.hold(&grant.lease);
        self.log_granted(&grant);
        Ok(Response::new(proto::AllocateResponse { lease: Some(self.lease(&grant.lease)), repeated_request: grant.repeated }))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        let asked = request.into_inner();
        let mut checks = validate::Checks::default();
        let ttl = checks.duration("ttl", asked.ttl, false, self.shared.limits.borrow().longest);
        checks.done()?;
        let (until, remaining) = self.renewed(token(&asked.token)?, ttl).map_err(Refusal::from)?;
        let expires_at = Some(convert::timestamp(&self.shared.about, until));
        Ok(Response::new(proto::RenewResponse { expires_at, remaining: convert::duration(remaining) }))
    }

    type KeepAliveStream = BoxStream<'static, Result<proto::KeepAliveResponse, Status>>;

    async fn keep_alive(&self, request: Request<Streaming<proto::KeepAliveRequest>>) -> Result<Response<Self::KeepAliveStream>, Status> {
        let service = Self::new(Arc::clone(&self.shared), self.peer);
        let answers = stream::try_unfold((service, request.into_inner()), |(service, mut asked)| async move {
            let message = tokio::select! {
                biased;
                () = service.shared.stop.cancelled() => return Err(Refusal::Stopping.into()),
                message = asked.message() => message?,
            };
            let Some(message) = message else { return Ok(None) };
            let answers: Vec<_> = message.tokens.into_iter().map(|token| Ok(service.kept_alive(token))).collect();
            Ok::<_, Status>(Some((stream::iter(answers), (service, asked))))
        });
        Ok(Response::new(futures::TryStreamExt::try_flatten(answers).boxed()))
    }

    async fn release(&self, request: Request<proto::ReleaseRequest>) -> Result<Response<proto::ReleaseResponse>, Status> {
        let asked = request.into_inner();
        let log = tracing::enabled!(tracing::Level::DEBUG);
        let (lease, outcome) = match Token::from_hex(&asked.token) {
            Some(token) => self.shared.pool.with(|state, now| {
                // Only the log wants to know which lease it was.
                let lease = if log { state.lease(token).ok() } else { None };
                (lease, state.release(now, token, asked.doubtful))
            }),
            None => (None, Err(Denied::UnknownToken)),
        };
        self.shared.counters.released(&outcome);
        let (outcome, cause) = match outcome {
            Ok(released) => convert::released(&released),
            Err(denied) => {
                self.log_released(None, Reason::UnknownToken.metric());
                return Err(Refusal::Denied(denied).into());
            }
        };
        if log {
            self.log_released(lease.as_ref(), outcome.as_str_name());
        }
        Ok(Response::new(proto::ReleaseResponse { outcome: outcome.into(), cause }))
    }

    async fn get_lease(&self, request: Request<proto::GetLeaseRequest>) -> Result<Response<proto::GetLeaseResponse>, Status> {
        let token = token(&request.into_inner().token)?;
        let view = self.shared.pool.read(|state| state.lease(token)).map_err(Refusal::from)?;
        Ok(Response::new(proto::GetLeaseResponse { lease: Some(self.lease(&view)) }))
    }

    type ResumeStream = BoxStream<'static, Result<proto::ResumeResponse, Status>>;

    async fn resume(&self, request: Request<proto::ResumeRequest>) -> Result<Response<Self::ResumeStream>, Status> {
        let owner = request.into_inner().owner;
        let mut checks = validate::Checks::default();
        checks.text("owner", &owner);
        checks.done()?;
        let leases = self.shared.pool.resume(self.peer.uid, &owner);
        tracing::debug!(owner, leases = leases.len(), peer_uid = self.peer.uid, peer_pid = self.peer.pid, "resumed");
        // From now on this connection holds what a connection held that is gone.
        leases.iter().for_each(|lease| self.hold(lease));
        let service = Self::new(Arc::clone(&self.shared), self.peer);
        let answers = leases.into_iter().map(move |view| Ok(proto::ResumeResponse { lease: Some(service.lease(&view)) }));
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn get_usage(&self, _: Request<proto::GetUsageRequest>) -> Result<Response<proto::GetUsageResponse>, Status> {
        let names = &self.shared.about.networks;
        let (total, parts, (cordoned, draining)) = self.shared.pool.read(|state| {
            let parts: Vec<_> = (0u32..).take(names.len()).map(|network| state.network_usage(network)).collect();
            (state.usage(), parts, state.doors())
        });
        let status = self.shared.status.borrow();
        Ok(Response::new(proto::GetUsageResponse {
            total: Some(convert::usage(&total)),
            networks: names.iter().cloned().zip(parts.iter().map(convert::usage)).collect(),
            engine_state: status.engine.word().to_owned(),
            engine_error: status.engine_error.clone(),
            image_state: status.image.word().to_owned(),
            image_error: status.image_error.clone(),
            ledger_error: status.ledger_error.clone(),
            cordoned,
            draining,
            engine: status.engine_info.as_ref().map(convert::engine),
            pool: self.shared.about.pool.clone(),
        }))
    }

    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(watch::stream(Arc::clone(&self.shared), self.peer, request.into_inner().position)))
    }
}

impl PoolService {
    fn kept_alive(&self, text: String) -> proto::KeepAliveResponse {
        let renewed = token(&text).and_then(|token| Ok(self.renewed(token, None)?));
        match renewed {
            Ok((_, remaining)) => proto::KeepAliveResponse { token: text, remaining: convert::duration(remaining), reason: String::new() },
            Err(refusal) => proto::KeepAliveResponse { token: text, remaining: None, reason: refusal.reason().word().to_owned() },
        }
    }
}
