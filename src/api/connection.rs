//! Connections: accepting them, who is at the other end, what happens when one ends.
//!
//! Each connection is one task with its own instances of the services, which know their peer: no call looks it up. The peer's uid and pid are
//! those of connect(), as the kernel noted them. A connection's end, for whatever cause (closed, broken, cut at the stop), runs [`Closing`],
//! which ends its `connection` leases; the calls in flight are dropped before that, which a waiting Allocate takes as its cancellation.
//!
//! Why not tonic's own server: it cannot be stopped within a bound, gives a connection's end to nobody, answers a passed deadline with
//! CANCELLED, and its layers cost as much per call as an Allocate itself. Its services and codecs are used as they are.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;

use super::Shared;
use super::admin::AdminService;
use super::deadline::{self, Call};
use super::image_cache::ImageService;
use super::namespace_pool::PoolService;
use super::turns::Turns;
use crate::pool::ConnectionId;
use crate::proto::image_cache_server::ImageCacheServer;
use crate::proto::namespace_pool_server::NamespacePoolServer;
use crate::proto::pool_admin_server::PoolAdminServer;

/// Out of descriptors or memory: only time helps.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    /// 0 when the kernel does not say.
    pub(super) pid: i32,
    pub(super) connection: ConnectionId,
}

/// Serves the connections of one listener.
#[derive(Clone)]
pub(super) struct Server {
    shared: Arc<Shared>,
    /// Health and reflection.
    rest: Routes,
    tasks: TaskTracker,
    /// Cancelled when the grace is over.
    cut: CancellationToken,
}

impl Server {
    pub(super) fn new(shared: Arc<Shared>, rest: Routes, tasks: TaskTracker, cut: CancellationToken) -> Self {
        Self { shared, rest, tasks, cut }
    }

    /// Until the stop.
    pub(super) async fn accept(self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted.and_then(|(stream, _)| self.peer_of(&stream).map(|peer| (stream, peer))) {
                Ok((stream, peer)) => {
                    self.tasks.spawn(self.clone().connection(stream, peer));
                }
                // The caller went away between connect and accept: no reason to rest.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::select! {
                        () = self.shared.stop.cancelled() => return,
                        () = tokio::time::sleep(ACCEPT_AGAIN_AFTER) => {}
                    }
                }
            }
        }
    }

    fn peer_of(&self, stream: &UnixStream) -> io::Result<Peer> {
        let credentials = stream.peer_cred()?;
        Ok(Peer { uid: credentials.uid(), pid: credentials.pid().unwrap_or(0), connection: self.shared.next_connection() })
    }

    /// One connection, from its first byte to its end.
    async fn connection(self, stream: UnixStream, peer: Peer) {
        let closing = Closing::of(&self.shared, peer.connection);
        tracing::debug!(peer_uid = peer.uid, peer_pid = peer.pid, connection = peer.connection.0, "connected");
        let (mut turns, socket, calls) = Turns::new(stream);
        let mut http = http2::Builder::new(calls);
        http.timer(TokioTimer::new()).max_concurrent_streams(self.shared.max_streams);
        let mut serving = pin!(http.serve_connection(TokioIo::new(socket), Services::new(&self, peer)));
        let ended = tokio::select! {
            ended = turns.run(serving.as_mut()) => ended,
            () = self.shared.stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = turns.run(serving.as_mut()) => ended,
                    () = self.cut.cancelled() => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(
                peer_pid = peer.pid,
                connection = peer.connection.0,
                error = &error as &dyn std::error::Error,
                "connection broke"
            );
        }
        // The calls in flight go before the connection does.
        drop(turns);
        drop(closing);
    }
}

/// Dropped, it ends what was to last as long as the connection.
pub(super) struct Closing {
    shared: Arc<Shared>,
    connection: ConnectionId,
}

impl Closing {
    pub(super) fn of(shared: &Arc<Shared>, connection: ConnectionId) -> Self {
        shared.connections.lock().insert(connection);
        Self { shared: Arc::clone(shared), connection }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        // First out of the set, then out of the pool: see `PoolService::hold`.
        self.shared.connections.lock().remove(&self.connection);
        self.shared.pool.with(|state, now| state.connection_closed(now, self.connection));
    }
}

/// The services of one connection.
struct Services {
    pool: NamespacePoolServer<PoolService>,
    admin: PoolAdminServer<AdminService>,
    images: ImageCacheServer<ImageService>,
    rest: Routes,
    timeout: Duration,
}

impl Services {
    fn new(server: &Server, peer: Peer) -> Self {
        let shared = &server.shared;
        let (most, timeout) = (shared.max_message, shared.limits.borrow().timeout);
        Self {
            pool: NamespacePoolServer::new(PoolService::new(Arc::clone(shared), peer)).max_decoding_message_size(most),
            admin: PoolAdminServer::new(AdminService::new(Arc::clone(shared), peer)).max_decoding_message_size(most),
            images: ImageCacheServer::new(ImageService::new(Arc::clone(shared), peer)).max_decoding_message_size(most),
            rest: server.rest.clone(),
            timeout,
        }
    }
}

impl hyper::service::Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        let timeout = deadline::of_headers(request.headers()).unwrap_or(self.timeout);
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let answer = match service {
            "nspool.v1.NamespacePool" => self.pool.clone().call(request),
            "nspool.v1.PoolAdmin" => self.admin.clone().call(request),
            "nspool.v1.ImageCache" => self.images.clone().call(request),
            // This says UNIMPLEMENTED for what nobody knows.
            _ => Box::pin(self.rest.clone().call(request)),
        };
        Call::new(answer, timeout)
    }
}
