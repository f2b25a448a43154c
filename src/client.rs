//! The Rust client of nspool: every call of its services, and a [`Lease`] guard that gives its lease back when it is dropped.
//!
//! A [`Client`] connects when it is first used and again when the daemon came back; making one never waits. Cloning is cheap, all clones share
//! one connection. What can go wrong is in [`ClientError`]: whether the daemon was reached at all, and if so, its reason.
//!
//! It deliberately does not know containers: who allocates starts them, and says with [`Lease::finished`] that they are gone.

mod calls;
mod error;
mod lease;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

pub use calls::Answers;
pub use error::ClientError;
pub use lease::{Lease, Request};

use crate::proto;
use crate::proto::image_cache_client::ImageCacheClient;
use crate::proto::namespace_pool_client::NamespacePoolClient;
use crate::proto::pool_admin_client::PoolAdminClient;

/// Where the daemon listens when nobody says.
pub const DEFAULT_ENDPOINT: &str = "unix:/run/nspool/nspool.sock";

/// For a call, unless [`Client::with_timeout`] says otherwise.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For one attempt to connect: a local socket answers at once, or its backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a dropped guard's release is tried.
const RELEASE_FOR: Duration = Duration::from_secs(10);
/// How long an allocation whose reply was lost is asked for again, beyond its own `wait`.
const LOST_REPLY_GRACE: Duration = Duration::from_secs(2);

/// A connection to one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Arc<str>,
    pool: NamespacePoolClient<Channel>,
    admin: PoolAdminClient<Channel>,
    images: ImageCacheClient<Channel>,
    timeout: Duration,
    /// Where dropped guards spawn their releases, and who waits for them.
    runtime: Handle,
    releases: TaskTracker,
}

impl Client {
    /// For `unix:/path` or `unix:///path`. Connects at the first call. Needs to be called within a tokio runtime, which the guards use.
    pub fn connect(endpoint: &str) -> Result<Self, ClientError> {
        let path = socket_path(endpoint)?;
        let runtime = Handle::try_current().map_err(|_| ClientError::NoRuntime)?;
        // The address is a name only; C-core servers and proxies want one that reads like a host's.
        let channel = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT).connect_with_connector_lazy(service_fn(
            move |_: Uri| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            },
        ));
        Ok(Self {
            endpoint: endpoint.into(),
            pool: NamespacePoolClient::new(channel.clone()),
            admin: PoolAdminClient::new(channel.clone()),
            images: ImageCacheClient::new(channel),
            timeout: CALL_TIMEOUT,
            runtime,
            releases: TaskTracker::new(),
        })
    }

    /// The same connection, with another deadline for its calls (streams: until they begin). An `Allocate` gets its `wait` on top.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// As it was given to [`Client::connect`].
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Waits until the releases of dropped guards are through, at most `bound`; returns how many are not.
    pub async fn close(&self, bound: Duration) -> usize {
        self.releases.close();
        match tokio::time::timeout(bound, self.releases.wait()).await {
            Ok(()) => 0,
            Err(_) => self.releases.len(),
        }
    }

    /// Takes a slot. The guard gives it back when it is dropped.
    ///
    /// A reply that was lost is asked for again under the same request id, so that no lease is left behind; a daemon that cannot be reached,
    /// or says that it is starting, is tried again as long as the request's `wait` allows. Not cancel safe: when the future is dropped,
    /// a lease may stand until its `join_by`, a `ttl`, or the next call with the same request id.
    pub async fn allocate(&self, request: Request) -> Result<Lease, ClientError> {
        let message = request.into_message();
        let wait = message.wait.as_ref().and_then(|wait| Duration::try_from(*wait).ok()).unwrap_or_default();
        let begun = Instant::now();
        let mut patience = wait;
        let mut pause = Backoff::default();
        loop {
            let left = (wait + self.timeout).saturating_sub(begun.elapsed());
            let error = match self.allocate_once(message.clone(), left).await {
                Ok(response) => return self.granted(response),
                Err(error) => error,
            };
            if error.outcome_unknown() {
                patience = wait + LOST_REPLY_GRACE.min(self.timeout);
            }
            let pause = error.retry_after().unwrap_or_else(|| pause.next());
            if !error.is_unavailable() || begun.elapsed() + pause >= patience {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn granted(&self, response: proto::AllocateResponse) -> Result<Lease, ClientError> {
        let lease = response.lease.ok_or(ClientError::BadReply { operation: "Allocate", what: "no lease in it" })?;
        Ok(self.adopt(lease))
    }

    /// A guard for a lease that is there already, e.g. from [`Client::resume`].
    #[must_use]
    pub fn adopt(&self, lease: proto::Lease) -> Lease {
        Lease::new(lease, self.clone())
    }

    /// What a dropped guard leaves to do.
    fn release_later(&self, token: String, lease_id: String, doubtful: bool) {
        let client = self.clone();
        let work = async move {
            if let Err(error) = client.release_until(&token, doubtful, Instant::now() + RELEASE_FOR).await {
                tracing::warn!(%lease_id, error = %error, "a dropped lease could not be released; it stands until it expires");
            }
        };
        self.releases.spawn_on(work, &self.runtime);
    }

    async fn release_until(&self, token: &str, doubtful: bool, deadline: Instant) -> Result<(), ClientError> {
        let mut pause = Backoff::default();
        loop {
            let error = match self.release(token, doubtful).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let pause = pause.next();
            if !error.is_unavailable() || Instant::now() + pause >= deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// 20 ms, doubling to half a second: a local daemon is back within that, or not at all.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Duration::from_millis(20))
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(Duration::from_millis(500));
        now
    }
}

fn socket_path(endpoint: &str) -> Result<PathBuf, ClientError> {
    let bad = |why| ClientError::BadEndpoint { endpoint: endpoint.to_owned(), why };
    let path = endpoint.strip_prefix("unix:").ok_or_else(|| bad("it must begin with unix:"))?;
    let path = path.strip_prefix("//").unwrap_or(path);
    if !path.starts_with('/') {
        return Err(bad("the socket's path must be absolute"));
    }
    Ok(PathBuf::from(path))
}
