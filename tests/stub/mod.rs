//! A daemon that answers what a test tells it to, on a Unix socket of its own.

#![expect(clippy::unwrap_used, reason = "a test helper: what fails here fails the test")]

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use futures::stream::{self, BoxStream, StreamExt};
use nspool::proto::image_cache_server::{ImageCache, ImageCacheServer};
use nspool::proto::namespace_pool_server::{NamespacePool, NamespacePoolServer};
use nspool::proto::pool_admin_server::{PoolAdmin, PoolAdminServer};
use nspool::proto::*;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// Everything that the daemon was asked, and what it is to answer.
#[derive(Default)]
pub struct Script {
    /// For the next Allocate calls; when empty, they are granted.
    pub allocate: VecDeque<Status>,
    /// How long the next Allocate calls take.
    pub delay: VecDeque<Duration>,
    /// What is granted; when there is none, [`lease`].
    pub lease: Option<Lease>,
    /// For the next Release calls.
    pub release: VecDeque<Status>,
    /// What a Release says when nothing is scripted.
    pub outcome: ReleaseOutcome,
    /// For any other call.
    pub refuse: Option<Status>,
    pub allocated: Vec<AllocateRequest>,
    pub released: Vec<ReleaseRequest>,
    pub calls: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Stub {
    pub script: Arc<Mutex<Script>>,
}

/// A running stub; dropping it ends it.
pub struct Running {
    pub stub: Stub,
    pub path: PathBuf,
    _dir: Arc<tempfile::TempDir>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Running {
    pub fn start() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let path = dir.path().join("nspool.sock");
        Self::start_at(Stub::default(), path, dir)
    }

    fn start_at(stub: Stub, path: PathBuf, dir: Arc<tempfile::TempDir>) -> Self {
        let stop = CancellationToken::new();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (served, stopped) = (stub.clone(), stop.clone());
        // A thread with a runtime of its own, so that tests without one can use it, and dropping it cuts every connection.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).unwrap();
                let incoming =
                    stream::unfold(listener, |listener| async move { Some((listener.accept().await.map(|(s, _)| s), listener)) });
                let server = tonic::transport::Server::builder()
                    .add_service(NamespacePoolServer::new(served.clone()))
                    .add_service(PoolAdminServer::new(served.clone()))
                    .add_service(ImageCacheServer::new(served))
                    .serve_with_incoming(incoming);
                tokio::select! { _ = server => {}, () = stopped.cancelled() => {} }
            });
        });
        Self { stub, path, _dir: dir, stop }
    }

    /// The same daemon again, on the same socket, after all connections were cut.
    pub fn restart(self) -> Self {
        self.stop.cancel();
        // Nobody can connect to a path that is gone, so what connects afterwards is the new one.
        std::fs::remove_file(&self.path).unwrap();
        Self::start_at(self.stub.clone(), self.path.clone(), self._dir.clone())
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    pub fn script<T>(&self, with: impl FnOnce(&mut Script) -> T) -> T {
        with(&mut self.stub.script.lock().unwrap())
    }
}

/// A refusal as the daemon makes them.
pub fn refusal(code: Code, reason: &str, message: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "nspool", std::collections::HashMap::new());
    details.set_retry_info(retry);
    if code == Code::InvalidArgument {
        details.add_bad_request_violation("network", "no such network");
    }
    Status::with_error_details(code, message, details)
}

fn timestamp(seconds: u64) -> Option<prost_types::Timestamp> {
    Some((UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)).into())
}

pub fn engine() -> Engine {
    Engine { kind: "docker".into(), id: "ABCD".into(), endpoint: "unix:///var/run/docker.sock".into(), version: "20.10.24".into() }
}

pub fn lease(token: &str) -> Lease {
    Lease {
        token: token.into(),
        lease_id: "lease-1".into(),
        state: LeaseState::Active.into(),
        slot: 7,
        generation: 1042,
        r#use: 3,
        namespace_id: "nspool-default-7-1042-3-k2".into(),
        network_mode: "container:nspool-default-7-1042-3-k2".into(),
        host_config: r#"{"HostConfig":{"NetworkMode":"container:nspool-default-7-1042-3-k2","CapDrop":["NET_RAW"]}}"#.into(),
        engine: Some(engine()),
        network: "bridge".into(),
        ip_addresses: vec!["172.17.0.5/16".into()],
        gateways: vec!["172.17.0.1".into()],
        mtu: 1500,
        lifetime: Lifetime::Joiners.into(),
        expires_at: timestamp(60),
        remaining: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        allocated_at: timestamp(0),
        owner: "agent-1".into(),
        tenant: "acme".into(),
        labels: [("app".to_owned(), "thumbs".to_owned())].into(),
        ..Lease::default()
    }
}

fn usage() -> Usage {
    Usage { ready: 5, leased: 2, filling: 1, vacant: 56, target: 8, max: 64, misses: 1, allocations: 40, ..Usage::default() }
}

fn slot(number: u32, state: &str) -> Slot {
    Slot {
        slot: number,
        generation: 1040 + u64::from(number),
        r#use: 3,
        state: state.into(),
        namespace_id: format!("nspool-default-{number}-104{number}-3-k2"),
        container_id: format!("{number}").repeat(64),
        network: "bridge".into(),
        since: timestamp(0),
        ..Slot::default()
    }
}

impl Stub {
    fn note(&self, call: impl Into<String>) -> Result<(), Status> {
        let mut script = self.script.lock().unwrap();
        script.calls.push(call.into());
        script.refuse.clone().map_or(Ok(()), Err)
    }
}

#[tonic::async_trait]
impl NamespacePool for Stub {
    type KeepAliveStream = BoxStream<'static, Result<KeepAliveResponse, Status>>;
    type ResumeStream = BoxStream<'static, Result<ResumeResponse, Status>>;
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        self.note("GetInfo")?;
        Ok(Response::new(GetInfoResponse {
            version: "0.1.0".into(),
            pool: "default".into(),
            engine: Some(engine()),
            at_stop: "keep".into(),
            state_dir: "/run/nspool/default".into(),
            ..GetInfoResponse::default()
        }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let (delay, refusal, granted) = {
            let mut script = self.script.lock().unwrap();
            script.allocated.push(request.into_inner());
            (script.delay.pop_front(), script.allocate.pop_front(), script.lease.clone())
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        match refusal {
            Some(status) => Err(status),
            None => {
                let granted = granted.unwrap_or_else(|| lease("secret-token"));
                Ok(Response::new(AllocateResponse { lease: Some(granted), repeated_request: false }))
            }
        }
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        self.note(format!("{:?}", request.into_inner()))?;
        Ok(Response::new(RenewResponse { expires_at: timestamp(600), remaining: Some(prost_types::Duration { seconds: 600, nanos: 0 }) }))
    }

    async fn keep_alive(&self, request: Request<Streaming<KeepAliveRequest>>) -> Result<Response<Self::KeepAliveStream>, Status> {
        let answers = request.into_inner().flat_map(|message| {
            let tokens = message.map(|message| message.tokens).unwrap_or_default();
            stream::iter(tokens.into_iter().map(|token| Ok(KeepAliveResponse { token, ..KeepAliveResponse::default() })))
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let mut script = self.script.lock().unwrap();
        script.released.push(request.into_inner());
        match script.release.pop_front() {
            Some(status) => Err(status),
            None => Ok(Response::new(ReleaseResponse {
                outcome: if script.outcome == ReleaseOutcome::Unspecified { ReleaseOutcome::Returned } else { script.outcome }.into(),
                cause: String::new(),
            })),
        }
    }

    async fn get_lease(&self, request: Request<GetLeaseRequest>) -> Result<Response<GetLeaseResponse>, Status> {
        self.note("GetLease")?;
        Ok(Response::new(GetLeaseResponse { lease: Some(lease(&request.into_inner().token)) }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<Self::ResumeStream>, Status> {
        self.note(format!("Resume {}", request.into_inner().owner))?;
        let leases = ["one", "two"].map(|token| Ok(ResumeResponse { lease: Some(lease(token)) }));
        Ok(Response::new(stream::iter(leases).boxed()))
    }

    async fn get_usage(&self, _: Request<GetUsageRequest>) -> Result<Response<GetUsageResponse>, Status> {
        self.note("GetUsage")?;
        Ok(Response::new(GetUsageResponse {
            total: Some(usage()),
            networks: BTreeMap::from([("bridge".to_owned(), usage())]).into_iter().collect(),
            engine_state: "away".into(),
            engine_error: "ping: connection refused".into(),
            image_state: "ready".into(),
            engine: Some(engine()),
            pool: "default".into(),
            ..GetUsageResponse::default()
        }))
    }

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use watch_response::Event;
        self.note(format!("{:?}", request.into_inner()))?;
        let event = LeaseEvent {
            lease_id: "lease-1".into(),
            namespace_id: "ns".into(),
            slot: 7,
            generation: 1042,
            r#use: 3,
            owner: "agent-1".into(),
            state: LeaseState::Lost.into(),
            cause: "the buddy died".into(),
        };
        let events = [
            Event::Snapshot(Snapshot { usage: Some(usage()), incarnation: "i1".into(), ..Snapshot::default() }),
            Event::Capacity(usage()),
            Event::Lost(event),
            Event::Cordon(CordonEvent { cordoned: true, draining: false }),
            Event::Reset(Reset {}),
        ];
        let events = events.into_iter().enumerate().map(|(n, event)| Ok(WatchResponse { position: n as u64, event: Some(event) }));
        Ok(Response::new(stream::iter(events.collect::<Vec<_>>()).boxed()))
    }
}

#[tonic::async_trait]
impl PoolAdmin for Stub {
    type DrainStream = BoxStream<'static, Result<DrainResponse, Status>>;

    async fn list_slots(&self, _: Request<ListSlotsRequest>) -> Result<Response<ListSlotsResponse>, Status> {
        self.note("ListSlots")?;
        let mut leased = slot(7, "leased");
        leased.lease_id = "lease-1".into();
        leased.pid = std::process::id();
        let mut failing = slot(2, "vacant");
        failing.failures = 3;
        failing.last_error = "create nspool-default-2: no space left on device".into();
        let mut held = slot(3, "quarantined");
        held.joiners = vec!["process 77 (sleep)".into()];
        let detached = DetachedBuddy {
            container_id: "d".repeat(64),
            name: "nspool-default-9-3-1".into(),
            slot: 9,
            generation: 3,
            joiners: vec!["container f".into()],
            since: timestamp(0),
        };
        Ok(Response::new(ListSlotsResponse { slots: vec![slot(1, "ready"), failing, held, leased], detached: vec![detached] }))
    }

    async fn list_leases(&self, _: Request<ListLeasesRequest>) -> Result<Response<ListLeasesResponse>, Status> {
        self.note("ListLeases")?;
        let listed = Lease { host_config: String::new(), ..lease("") };
        Ok(Response::new(ListLeasesResponse { leases: vec![listed] }))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeResponse>, Status> {
        self.note("Resize")?;
        let request = request.into_inner();
        Ok(Response::new(ResizeResponse { ready: request.ready.unwrap_or(8), max: request.max.unwrap_or(64) }))
    }

    async fn cordon(&self, request: Request<CordonRequest>) -> Result<Response<CordonResponse>, Status> {
        self.note(format!("Cordon {}", request.into_inner().reason))?;
        Ok(Response::new(CordonResponse {}))
    }

    async fn uncordon(&self, _: Request<UncordonRequest>) -> Result<Response<UncordonResponse>, Status> {
        self.note("Uncordon")?;
        Ok(Response::new(UncordonResponse {}))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let in_time = request.into_inner().timeout.is_none_or(|timeout| timeout.seconds > 5);
        let last = DrainResponse { leased: u32::from(!in_time), waiting: 0, drained: in_time, timed_out: !in_time };
        let answers = [Ok(DrainResponse { leased: 2, ..DrainResponse::default() }), Ok(last)];
        Ok(Response::new(stream::iter(answers).boxed()))
    }

    async fn recycle_slot(&self, request: Request<RecycleSlotRequest>) -> Result<Response<RecycleSlotResponse>, Status> {
        self.note(format!("{:?}", request.into_inner()))?;
        Ok(Response::new(RecycleSlotResponse { state: "ready".into() }))
    }

    async fn audit(&self, request: Request<AuditRequest>) -> Result<Response<AuditResponse>, Status> {
        let fix = request.into_inner().fix;
        self.note(format!("Audit {fix}"))?;
        let finding = |kind: &str, subject: &str, detail: &str, fixable: bool| AuditFinding {
            kind: kind.into(),
            subject: subject.into(),
            detail: detail.into(),
            fixable,
            fixed: fixable && fix,
        };
        let orphan =
            finding("orphan", "container 0123456789ab (nspool-default-3-7-1-0123abcd)", "a buddy of this pool that no slot has", true);
        let stray = finding("stray", "container ba9876543210 (web)", "it has the labels of this pool's buddies", false);
        // Once mended, the rest is for people.
        let findings = if fix { vec![orphan] } else { vec![orphan, stray] };
        Ok(Response::new(AuditResponse { findings, slots: 4, leases: 1, containers: 9, at: timestamp(0), more: 0 }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        let number = request.into_inner().slot;
        self.note(format!("Inspect {number}"))?;
        let slot = slot(number, if number == 7 { "leased" } else { "ready" });
        if number != 7 {
            return Ok(Response::new(InspectResponse { slot: Some(slot), ..InspectResponse::default() }));
        }
        let difference = |kind: &str, subject: &str, was: Option<&str>, is: Option<&str>| Difference {
            kind: kind.into(),
            subject: subject.into(),
            was: was.map(str::to_owned),
            is: is.map(str::to_owned),
        };
        let differences = vec![
            difference("link", "eth0 mtu", Some("1500"), Some("9000")),
            difference("route", "198.51.100.0/24", None, Some("")),
            difference("address", "10.0.0.2/24 dev eth0", Some("scope 0"), None),
        ];
        let leftovers = vec![Leftover { kind: "connection".into(), count: 3 }, Leftover { kind: "neighbour".into(), count: 1 }];
        Ok(Response::new(InspectResponse { slot: Some(slot), differences, leftovers }))
    }

    async fn force_release(&self, request: Request<ForceReleaseRequest>) -> Result<Response<ForceReleaseResponse>, Status> {
        self.note(format!("ForceRelease {}", request.into_inner().lease_id))?;
        Ok(Response::new(ForceReleaseResponse { outcome: ReleaseOutcome::Returned.into() }))
    }
}

fn built() -> BuiltImage {
    let key = "ab".repeat(32);
    BuiltImage { id: "sha256:b1".into(), reference: format!("nspool.local/build:{key}"), key, ..BuiltImage::default() }
}

#[tonic::async_trait]
impl ImageCache for Stub {
    type EnsureImageStream = BoxStream<'static, Result<EnsureImageResponse, Status>>;

    async fn ensure_image(&self, request: Request<EnsureImageRequest>) -> Result<Response<Self::EnsureImageStream>, Status> {
        use ensure_image_response::Event;
        let EnsureImageRequest { reference, auth } = request.into_inner();
        let account = auth.map_or_else(String::new, |auth| format!(" by {} {}", auth.username, auth.password));
        self.note(format!("EnsureImage {reference}{account}"))?;
        if reference == "gone:1" {
            let words = "pull gone:1: manifest unknown";
            return Err(refusal(Code::NotFound, "IMAGE_UNKNOWN", words, Some(Duration::from_secs(30))));
        }
        let progress =
            FetchProgress { attempt: 1, layers: 3, layers_done: 1, bytes: 5 << 20, bytes_total: 20 << 20, ..FetchProgress::default() };
        let image = EnsuredImage {
            id: "sha256:1d".into(),
            digest: "sha256:d1".into(),
            fetched: true,
            reference: reference.clone(),
            stale_since: None,
        };
        let mut events =
            stream::iter([Event::Progress(progress), Event::Image(image)].map(Some).map(|event| Ok(EnsureImageResponse { event }))).boxed();
        if reference == "slow:1" {
            events = events.take(1).chain(stream::pending()).boxed();
        }
        Ok(Response::new(events))
    }

    type BuildImageStream = BoxStream<'static, Result<BuildImageResponse, Status>>;

    /// Sees no folder: what comes as a tar is built.
    async fn build_image(&self, request: Request<Streaming<BuildImageRequest>>) -> Result<Response<Self::BuildImageStream>, Status> {
        use build_image_request::Part;
        use build_image_response::Event;
        let mut parts = request.into_inner();
        let Some(Part::Definition(asked)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("no definition"));
        };
        if !asked.context_folder.is_empty() {
            self.note(format!("BuildImage in {}", asked.context_folder.rsplit('/').next().unwrap_or_default()))?;
            return Err(refusal(Code::FailedPrecondition, "CONTEXT_UNREADABLE", "cannot read it", None));
        }
        let mut tar = Vec::new();
        while let Some(message) = parts.message().await? {
            if let Some(Part::Context(piece)) = message.part {
                tar.extend(piece);
            }
        }
        let mut names = Vec::new();
        for entry in tar::Archive::new(&tar[..]).entries()? {
            names.push(entry?.path()?.display().to_string());
        }
        let BuildDefinition { dockerfile, dockerfile_content, target, mut build_args, anew, .. } = asked;
        let version = build_args.remove("VERSION").unwrap_or_default();
        self.note(format!("BuildImage {dockerfile:?} {dockerfile_content:?} {target:?} {version:?} {anew} of {}", names.join(" ")))?;
        if target == "broken" {
            return Err(refusal(
                Code::FailedPrecondition,
                "BUILD_FAILED",
                "the command '/bin/sh -c false' returned a non-zero code: 1",
                None,
            ));
        }
        let log = BuildLog { lines: vec!["Step 1/1 : FROM scratch".into(), " ---> \x1b[31m".into()], missed: 2 };
        let events = [Event::Log(log), Event::Image(built())].map(|event| Ok(BuildImageResponse { event: Some(event) }));
        Ok(Response::new(stream::iter(events).boxed()))
    }

    type PushImageStream = BoxStream<'static, Result<PushImageResponse, Status>>;

    async fn push_image(&self, request: Request<PushImageRequest>) -> Result<Response<Self::PushImageStream>, Status> {
        use push_image_response::Event;
        let PushImageRequest { source, target, auth } = request.into_inner();
        let account = auth.map_or_else(String::new, |auth| format!(" by {} {}", auth.username, auth.password));
        self.note(format!("PushImage {source} to {target:?}{account}"))?;
        if source == "gone:1" {
            return Err(refusal(Code::NotFound, "IMAGE_UNKNOWN", "gone:1 is neither in the engine nor in the host's own store", None));
        }
        let progress = PushProgress { layers: 3, layers_done: 1, bytes: 5 << 20, bytes_total: 20 << 20 };
        let pushed = PushedImage {
            digest: "sha256:d1".into(),
            target: if target.is_empty() { source.clone() } else { target },
            layers: 5,
            uploaded: 1,
            mounted: 1,
            seen: 2,
            present: 1,
            bytes: 20 << 20,
            id: "sha256:1d".into(),
        };
        let events = [Event::Progress(progress), Event::Pushed(pushed)].map(|event| Ok(PushImageResponse { event: Some(event) }));
        let events = stream::iter(events).boxed();
        Ok(Response::new(if source == "slow:1" { events.take(1).chain(stream::pending()).boxed() } else { events }))
    }

    type PruneImagesStream = BoxStream<'static, Result<PruneImagesResponse, Status>>;

    async fn prune_images(&self, request: Request<PruneImagesRequest>) -> Result<Response<Self::PruneImagesStream>, Status> {
        use prune_images_response::Event;
        let PruneImagesRequest { dry_run, room } = request.into_inner();
        self.note(format!("PruneImages {dry_run} {room:?}"))?;
        let outcome = if dry_run { "would_go" } else { "removed" };
        let goes = PrunedImage {
            id: "sha256:1d".into(),
            names: vec!["busybox:1.36".into(), "reg:5000/busybox:1".into()],
            bytes: 3 << 20,
            frees: 1 << 20,
            created: timestamp(0),
            ours: true,
            outcome: outcome.into(),
            ..PrunedImage::default()
        };
        let stays = PrunedImage {
            id: "sha256:2d".into(),
            names: vec!["busybox:1.37".into()],
            bytes: 2 << 20,
            created: timestamp(0),
            outcome: "stays".into(),
            why: "a container has it".into(),
            ..PrunedImage::default()
        };
        let summary = PruneSummary {
            bytes_before: 3 << 20,
            bytes_after: 2 << 20,
            bytes_ours: 1 << 20,
            bytes_wanted: room.unwrap_or(5 << 20),
            removed: 1,
        };
        let events = [Event::Image(goes), Event::Image(stays), Event::Summary(summary)];
        Ok(Response::new(stream::iter(events.map(|event| Ok(PruneImagesResponse { event: Some(event) }))).boxed()))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        self.note("ListImages")?;
        let (present, failed) = ("busybox:1.36".to_owned(), "reg:5000/fn:7".to_owned());
        let error = "pull reg:5000/fn:7: unauthorized: authentication required".to_owned();
        let images = vec![
            KnownImage {
                reference: present,
                state: "present".into(),
                since: timestamp(0),
                id: "sha256:1d".into(),
                digest: "sha256:d1".into(),
                ..KnownImage::default()
            },
            KnownImage {
                reference: "busybox:1.37".into(),
                state: "present".into(),
                since: timestamp(0),
                id: "sha256:2d".into(),
                digest: "sha256:d2".into(),
                checked: timestamp(0),
                stale_since: timestamp(0),
                stale_why: "docker.io cannot be reached: no route to host".into(),
                placeholder: true,
                ..KnownImage::default()
            },
            KnownImage {
                reference: failed.clone(),
                state: "failed".into(),
                since: timestamp(0),
                failure: "denied".into(),
                error: error.clone(),
                private: true,
                ..KnownImage::default()
            },
        ];
        let failures = vec![ImageFailure { reference: failed, at: timestamp(0), failure: "denied".into(), error, private: true }];
        let built = vec![BuiltImage { built: timestamp(0), ..built() }];
        Ok(Response::new(ListImagesResponse { images, failures, built, built_unknown: false }))
    }
}
