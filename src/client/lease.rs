//! What to allocate, and the guard of what was allocated.

use std::fmt;
use std::time::Duration;

use super::{Client, ClientError};
use crate::proto;

/// What to ask for. The default: any network, no wait, a lease that ends after its containers are gone.
#[derive(Clone, Debug, Default)]
pub struct Request(proto::AllocateRequest);

impl Request {
    /// The default request.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same id again gets the same lease; without one, each call of [`Client::allocate`] makes its own.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.0.request_id = id.into();
        self
    }

    /// The agent's name, stable over its restarts: what [`Client::resume`] goes by.
    #[must_use]
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.0.owner = owner.into();
        self
    }

    /// Whom it is for.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.0.tenant = tenant.into();
        self
    }

    /// One of the configured networks; empty: any.
    #[must_use]
    pub fn network(mut self, network: impl Into<String>) -> Self {
        self.0.network = network.into();
        self
    }

    /// How long to wait for a slot.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.0.wait = proto_duration(wait);
        self
    }

    /// A lease that ends when no container joined by then, or after the last one is gone.
    #[must_use]
    pub fn joiners(mut self, join_by: Option<Duration>) -> Self {
        self.0.lifetime = proto::Lifetime::Joiners.into();
        self.0.join_by = join_by.and_then(proto_duration);
        self
    }

    /// A lease that ends after `ttl`, unless it is renewed.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.0.lifetime = proto::Lifetime::Ttl.into();
        self.0.ttl = proto_duration(ttl);
        self
    }

    /// A lease that ends with this client's connection.
    #[must_use]
    pub fn connection(mut self) -> Self {
        self.0.lifetime = proto::Lifetime::Connection.into();
        self
    }

    /// Shown in lists, never interpreted.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.labels.insert(key.into(), value.into());
        self
    }

    pub(super) fn into_message(mut self) -> proto::AllocateRequest {
        if self.0.request_id.is_empty() {
            // Without one, a reply that is lost would leave a lease that nobody knows.
            self.0.request_id = uuid::Uuid::new_v4().to_string();
        }
        self.0
    }
}

/// Too long for the wire is as good as forever for the daemon, which bounds it.
pub(super) fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    Some(duration.try_into().unwrap_or(prost_types::Duration { seconds: i64::from(u32::MAX), nanos: 0 }))
}

/// A lease that is given back when this is dropped.
///
/// Dropping it spawns the release on the client ([`Client::close`] waits for those). It is marked `doubtful`, so that the namespace is never
/// used again, unless [`Lease::finished`] said that no container of the holder's is in it, or on its way into it.
pub struct Lease {
    lease: proto::Lease,
    client: Client,
    finished: bool,
    armed: bool,
}

/// Without the token.
impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("lease_id", &self.lease.lease_id)
            .field("namespace_id", &self.lease.namespace_id)
            .finish_non_exhaustive()
    }
}

impl std::ops::Deref for Lease {
    type Target = proto::Lease;

    fn deref(&self) -> &proto::Lease {
        &self.lease
    }
}

impl Lease {
    pub(super) fn new(lease: proto::Lease, client: Client) -> Self {
        Self { lease, client, finished: false, armed: true }
    }

    /// Says that every container of the holder's that was to join is gone: the release will not be doubtful.
    pub fn finished(&mut self) {
        self.finished = true;
    }

    /// Gives it back and says how that went. When it fails, or this future is dropped, the guard tries again in the background.
    pub async fn release(mut self) -> Result<proto::ReleaseResponse, ClientError> {
        let response = self.client.release(&self.lease.token, !self.finished).await?;
        self.armed = false;
        Ok(response)
    }

    /// Lets the lease stand, without a guard.
    #[must_use]
    pub fn keep(mut self) -> proto::Lease {
        self.armed = false;
        std::mem::take(&mut self.lease)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.armed {
            let lease = std::mem::take(&mut self.lease);
            self.client.release_later(lease.token, lease.lease_id, !self.finished);
        }
    }
}
