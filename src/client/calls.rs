//! One thin method for each call of the contract: a deadline, and errors as [`ClientError`]; nothing is tried again here.

use std::time::Duration;

use futures::Stream;
use tonic::{IntoStreamingRequest, Request, Response, Status, Streaming};

use super::lease::proto_duration;
use super::{Client, ClientError};
use crate::proto;

/// A stream of answers, with errors as [`ClientError`].
#[derive(Debug)]
pub struct Answers<T> {
    operation: &'static str,
    endpoint: String,
    inner: Streaming<T>,
}

impl<T> Answers<T> {
    /// The next one; `None` when the daemon ended the stream. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let error = |status| ClientError::from_status(self.operation, &self.endpoint, status, Duration::ZERO);
        self.inner.message().await.map_err(error)
    }
}

/// Runs one unary call under the client's deadline, which the daemon is told.
macro_rules! unary {
    ($self:ident . $service:ident . $method:ident, $operation:literal, $message:expr) => {{
        let mut service = $self.$service.clone();
        let request = $self.request($message, $self.timeout);
        $self.settle($operation, $self.timeout, service.$method(request)).await
    }};
}

/// The same for a call that answers with a stream: the deadline is for its beginning only.
macro_rules! streaming {
    ($self:ident . $service:ident . $method:ident, $operation:literal, $message:expr) => {{
        let mut service = $self.$service.clone();
        let inner = $self.settle($operation, $self.timeout, service.$method($message)).await?;
        Ok(Answers { operation: $operation, endpoint: $self.endpoint().to_owned(), inner })
    }};
}

impl Client {
    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        request
    }

    async fn settle<T>(
        &self,
        operation: &'static str,
        timeout: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(ClientError::from_status(operation, self.endpoint(), status, timeout)),
            Err(_) => Err(ClientError::Deadline { operation, endpoint: self.endpoint().to_owned(), after: timeout }),
        }
    }

    pub(super) async fn allocate_once(
        &self,
        message: proto::AllocateRequest,
        timeout: Duration,
    ) -> Result<proto::AllocateResponse, ClientError> {
        let mut pool = self.pool.clone();
        let request = self.request(message, timeout);
        self.settle("Allocate", timeout, pool.allocate(request)).await
    }

    /// Who answers, on which engine.
    pub async fn info(&self) -> Result<proto::GetInfoResponse, ClientError> {
        unary!(self.pool.get_info, "GetInfo", proto::GetInfoRequest {})
    }

    /// Moves the expiry of a `ttl` lease; without `ttl`, by the one it was allocated with.
    pub async fn renew(&self, token: &str, ttl: Option<Duration>) -> Result<proto::RenewResponse, ClientError> {
        unary!(self.pool.renew, "Renew", proto::RenewRequest { token: token.to_owned(), ttl: ttl.and_then(proto_duration) })
    }

    /// Renews all tokens that are sent, and answers each.
    pub async fn keep_alive(
        &self,
        tokens: impl Stream<Item = Vec<String>> + Send + 'static,
    ) -> Result<Answers<proto::KeepAliveResponse>, ClientError> {
        use futures::StreamExt;
        let messages = tokens.map(|tokens| proto::KeepAliveRequest { tokens });
        streaming!(self.pool.keep_alive, "KeepAlive", messages.into_streaming_request())
    }

    /// Gives a lease back; safe to repeat. `doubtful`: a create or start in that namespace may still be under way.
    pub async fn release(&self, token: &str, doubtful: bool) -> Result<proto::ReleaseResponse, ClientError> {
        unary!(self.pool.release, "Release", proto::ReleaseRequest { token: token.to_owned(), doubtful })
    }

    /// What a token stands for.
    pub async fn lease(&self, token: &str) -> Result<proto::Lease, ClientError> {
        let response = unary!(self.pool.get_lease, "GetLease", proto::GetLeaseRequest { token: token.to_owned() })?;
        response.lease.ok_or(ClientError::BadReply { operation: "GetLease", what: "no lease in it" })
    }

    /// All leases of an owner (of this uid), with their tokens; [`Client::adopt`] makes guards of them.
    pub async fn resume(&self, owner: &str) -> Result<Vec<proto::Lease>, ClientError> {
        let answers: Result<Answers<proto::ResumeResponse>, ClientError> =
            streaming!(self.pool.resume, "Resume", proto::ResumeRequest { owner: owner.to_owned() });
        let mut answers = answers?;
        let mut leases = Vec::new();
        let all = async {
            while let Some(answer) = answers.next().await? {
                leases.extend(answer.lease);
            }
            Ok(())
        };
        match tokio::time::timeout(self.timeout, all).await {
            Ok(result) => result.map(|()| leases),
            Err(_) => Err(ClientError::Deadline { operation: "Resume", endpoint: self.endpoint().to_owned(), after: self.timeout }),
        }
    }

    /// Slots by state.
    pub async fn usage(&self) -> Result<proto::GetUsageResponse, ClientError> {
        unary!(self.pool.get_usage, "GetUsage", proto::GetUsageRequest {})
    }

    /// A snapshot, then every change; or what came after a position.
    pub async fn watch(&self, position: Option<u64>) -> Result<Answers<proto::WatchResponse>, ClientError> {
        streaming!(self.pool.watch, "Watch", proto::WatchRequest { position })
    }

    /// Every slot, and the detached buddies.
    pub async fn slots(&self) -> Result<proto::ListSlotsResponse, ClientError> {
        unary!(self.admin.list_slots, "ListSlots", proto::ListSlotsRequest {})
    }

    /// Every lease, without tokens.
    pub async fn leases(&self) -> Result<Vec<proto::Lease>, ClientError> {
        unary!(self.admin.list_leases, "ListLeases", proto::ListLeasesRequest {}).map(|response| response.leases)
    }

    /// Other sizes, over restarts too, until the configuration has other sizes than now.
    pub async fn resize(&self, ready: Option<u32>, max: Option<u32>) -> Result<proto::ResizeResponse, ClientError> {
        unary!(self.admin.resize, "Resize", proto::ResizeRequest { ready, max })
    }

    /// Hand out nothing more.
    pub async fn cordon(&self, reason: &str) -> Result<(), ClientError> {
        unary!(self.admin.cordon, "Cordon", proto::CordonRequest { reason: reason.to_owned() }).map(|_| ())
    }

    /// Undoes a cordon or a drain.
    pub async fn uncordon(&self) -> Result<(), ClientError> {
        unary!(self.admin.uncordon, "Uncordon", proto::UncordonRequest {}).map(|_| ())
    }

    /// Cordon, then wait until nothing is leased; the last answer says how it ended.
    pub async fn drain(&self, timeout: Option<Duration>) -> Result<Answers<proto::DrainResponse>, ClientError> {
        streaming!(self.admin.drain, "Drain", proto::DrainRequest { timeout: timeout.and_then(proto_duration) })
    }

    /// Sees to it that an image is here, by the daemon's credentials or by `auth`. Progress, then the image; dropping the stream ends no fetch.
    pub async fn ensure_image(
        &self,
        reference: &str,
        auth: Option<proto::RegistryAuth>,
    ) -> Result<Answers<proto::EnsureImageResponse>, ClientError> {
        streaming!(self.images.ensure_image, "EnsureImage", proto::EnsureImageRequest { reference: reference.to_owned(), auth })
    }

    /// An image of a Dockerfile and its context. `parts`: the definition, then the pieces of a tar, if it names no folder. What the build prints, then the
    /// image; dropping the stream ends no build.
    pub async fn build_image(
        &self,
        parts: impl Stream<Item = proto::BuildImageRequest> + Send + 'static,
    ) -> Result<Answers<proto::BuildImageResponse>, ClientError> {
        streaming!(self.images.build_image, "BuildImage", parts)
    }

    /// Brings an image that is here to a registry. Progress, then what became of it; dropping the stream ends no push.
    pub async fn push_image(&self, asked: proto::PushImageRequest) -> Result<Answers<proto::PushImageResponse>, ClientError> {
        streaming!(self.images.push_image, "PushImage", asked)
    }

    /// Makes room on the disk, or says what that would take: each image, then a summary. `room`: bytes that are left at most; dropping the stream ends nothing.
    pub async fn prune_images(&self, dry_run: bool, room: Option<u64>) -> Result<Answers<proto::PruneImagesResponse>, ClientError> {
        streaming!(self.images.prune_images, "PruneImages", proto::PruneImagesRequest { dry_run, room })
    }

    /// What the daemon knows of images that were asked for, and the last failures.
    pub async fn images(&self) -> Result<proto::ListImagesResponse, ClientError> {
        unary!(self.images.list_images, "ListImages", proto::ListImagesRequest {})
    }

    /// Holds pool, ledger, engine and kernel against each other; with `fix` mends what is safe.
    pub async fn audit(&self, fix: bool) -> Result<proto::AuditResponse, ClientError> {
        unary!(self.admin.audit, "Audit", proto::AuditRequest { fix })
    }

    /// A new buddy for a slot; returns the state it was found in.
    pub async fn recycle(&self, slot: u32, force: bool) -> Result<String, ClientError> {
        unary!(self.admin.recycle_slot, "RecycleSlot", proto::RecycleSlotRequest { slot, force }).map(|response| response.state)
    }

    /// What is different in a slot's buddy from what it was.
    pub async fn inspect(&self, slot: u32) -> Result<proto::InspectResponse, ClientError> {
        unary!(self.admin.inspect, "Inspect", proto::InspectRequest { slot })
    }

    /// Ends a lease by its id.
    pub async fn force_release(&self, lease_id: &str) -> Result<proto::ReleaseOutcome, ClientError> {
        unary!(self.admin.force_release, "ForceRelease", proto::ForceReleaseRequest { lease_id: lease_id.to_owned() })
            .map(|response| response.outcome())
    }
}
