//! The API over a real Unix socket, with the real pool and nannies by hand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use nspool::api::{
    About, Api, DaemonStatus, Detached, Differs, EngineState, ImageState, Inspected, Inspections, Limits, ServeError, serve,
};
use nspool::audit::{Audit, Finding, Kind};
use nspool::config;
use nspool::engine::fake::FakeWorld;
use nspool::engine::{EngineInfo, EngineKind};
use nspool::image::Images;
use nspool::image::cache::Cache;
use nspool::image::pull::CredentialSource;
use nspool::level;
use nspool::pool::state::{Afterwards, Rules, State};
use nspool::pool::{Pool, UseKey};
use nspool::proto::image_cache_client::ImageCacheClient;
use nspool::proto::namespace_pool_client::NamespacePoolClient;
use nspool::proto::pool_admin_client::PoolAdminClient;
use nspool::proto::{AllocateRequest, Lease, ReleaseOutcome, ReleaseRequest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::hand::{Does, Hand};
use crate::world;

pub type Agent = NamespacePoolClient<Channel>;
pub type Operator = PoolAdminClient<Channel>;

/// A uid that is not the daemon's.
pub const NOBODY: u32 = 65534;

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Setup {
    pub config: config::Config,
    pub fill: bool,
    pub reuse: bool,
    pub engine_up: bool,
    pub grace: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let mut config = config::Config::default();
        (config.pool.ready, config.pool.max) = (2, 2);
        Self { config, fill: true, reuse: true, engine_up: true, grace: Duration::from_secs(5) }
    }
}

pub struct Served {
    pub pool: Arc<Pool>,
    pub hand: Hand,
    pub status: level::Sender<DaemonStatus>,
    pub limits: level::Sender<Limits>,
    /// The engine whose images there are.
    pub images: Arc<FakeWorld>,
    pub path: PathBuf,
    pub stop: CancellationToken,
    server: JoinSet<Result<(), ServeError>>,
    _timer: JoinSet<()>,
    _dir: tempfile::TempDir,
}

/// Two slots that come back for reuse; all of them ready when this returns.
pub async fn served() -> Served {
    Served::start(Setup::default()).await
}

/// One slot.
pub async fn served_one() -> Served {
    let mut setup = Setup::default();
    (setup.config.pool.ready, setup.config.pool.max) = (1, 1);
    Served::start(setup).await
}

fn rules(config: &config::Pool, reuse: bool) -> Rules {
    Rules {
        networks: config.networks.len() as u32,
        ready: config.ready,
        max: config.max,
        afterwards: vec![if reuse { Afterwards::Reuse } else { Afterwards::Retire }; config.networks.len()].into(),
        keep_tenants: false,
        linger: config.linger,
        max_detached: config.max_detached,
        max_waiting: config.max_waiting,
        quota_per_uid: config.quota_per_uid,
        remember: config.remember,
        remember_max: config.remember_max,
        trim_after: config.trim_after,
    }
}

fn about(config: &config::Pool) -> About {
    About {
        pool: config.name.clone(),
        networks: config.networks.clone(),
        namespaces: config.namespaces.clone(),
        reuse: "always".into(),
        at_stop: "keep".into(),
        state_dir: "/run/nspool/test".into(),
        incarnation: "incarnation-1".into(),
        version: "0.1.0".into(),
        started_at: SystemTime::now(),
        started_boot: world::boot_time(),
    }
}

pub fn engine_info() -> EngineInfo {
    EngineInfo { kind: EngineKind::Fake, id: "fake-1".into(), version: "1".into(), endpoint: "unix:///dev/null".into() }
}

/// Slot 0 is different; of others nothing is known.
fn inspections() -> Inspections {
    Arc::new(|slot, generation| {
        let differs = Differs { kind: "link", subject: format!("eth0 mtu, generation {generation}"), was: Some("1500".into()), is: None };
        let inspected = Inspected { differences: vec![differs], leftovers: vec![("neighbour", 2)] };
        Box::pin(async move { (slot == 0).then_some(inspected) })
    })
}

impl Served {
    pub async fn start(setup: Setup) -> Self {
        let Setup { config, fill, reuse, engine_up, grace } = setup;
        let pool = Pool::new(rules(&config.pool, reuse), 1, config.pool.watch_backlog, world::real());
        let hand = Hand::new(Arc::clone(&pool), Does { fill, vacate: true });
        pool.with(|state, now| {
            state.set_engine_up(engine_up);
            state.resize(now, config.pool.ready, config.pool.max).unwrap();
        });
        let (status, status_seen) = level::channel(DaemonStatus {
            engine: if engine_up { EngineState::Up } else { EngineState::Starting },
            engine_info: engine_up.then(engine_info),
            image: ImageState::Ready,
            ..DaemonStatus::default()
        });
        let (limits, limits_seen) = level::channel(Limits::of(&config.api, &config.pool));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        open_to_all(dir.path(), &path);
        let stop = CancellationToken::new();
        let images = FakeWorld::new(1);
        let api = Api {
            pool: Arc::clone(&pool),
            about: about(&config.pool),
            status: status_seen,
            limits: limits_seen,
            detached: Arc::new(|| {
                vec![Detached {
                    container_id: "d1".into(),
                    name: "nspool-test-detached".into(),
                    slot: 7,
                    generation: 3,
                    joiners: vec!["container f1".into()],
                    since: world::boot_time(),
                }]
            }),
            audit: Arc::new(|fix| {
                let finding =
                    Finding { kind: Kind::Orphan, subject: "c1".into(), detail: "no slot has it".into(), fixable: true, fixed: fix };
                let audit = Audit { at: world::boot_time(), slots: 2, leases: 1, containers: 3, findings: vec![finding], more: 4 };
                Box::pin(async move { Ok(audit) })
            }),
            inspect: inspections(),
            images: Some(Images::new(
                Cache::new(images.engine(), CredentialSource::new(Vec::new(), None), config.images.clone(), config.backoff.clone()),
                images.engine(),
                &config.images,
            )),
            builders: config.images.builders,
            max_message: config.api.max_message,
            max_streams: config.api.max_streams,
            grace,
        };
        let mut server = JoinSet::new();
        server.spawn(serve(api, vec![listener], stop.clone()));
        let mut timer = JoinSet::new();
        let (ticking, until) = (Arc::clone(&pool), stop.clone());
        timer.spawn(async move { ticking.run_timer(until).await });
        let served = Self { pool, hand, status, limits, images, path, stop, server, _timer: timer, _dir: dir };
        if fill && engine_up {
            served.until(|state| state.usage().ready == state.sizes().0).await;
        }
        served
    }

    pub fn endpoint() -> Endpoint {
        Endpoint::from_static("http://localhost")
    }

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        self.channel_by(Self::endpoint()).await
    }

    pub async fn channel_by(&self, endpoint: Endpoint) -> Channel {
        let path = self.path.clone();
        let connect = move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        };
        endpoint.connect_with_connector(tower::service_fn(connect)).await.unwrap()
    }

    /// A connection of another user. The kernel notes who a peer is at connect(), so one thread changes its uid, connects, and ends.
    pub async fn channel_as(&self, uid: u32) -> Channel {
        let path = self.path.clone();
        let connect = move || {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_uid(uid).expect("these tests need root, to connect as another user");
            std::os::unix::net::UnixStream::connect(path).unwrap()
        };
        let stream = std::thread::spawn(connect).join().unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut once = Some(TokioIo::new(UnixStream::from_std(stream).unwrap()));
        let connect = move |_| {
            let stream = once.take().ok_or_else(|| std::io::Error::other("this channel connects once"));
            async move { stream }
        };
        Self::endpoint().connect_with_connector(tower::service_fn(connect)).await.unwrap()
    }

    pub async fn agent(&self) -> Agent {
        NamespacePoolClient::new(self.channel().await)
    }

    pub async fn agent_as(&self, uid: u32) -> Agent {
        NamespacePoolClient::new(self.channel_as(uid).await)
    }

    pub async fn operator(&self) -> Operator {
        PoolAdminClient::new(self.channel().await)
    }

    pub async fn operator_as(&self, uid: u32) -> Operator {
        PoolAdminClient::new(self.channel_as(uid).await)
    }

    pub async fn images(&self) -> ImageCacheClient<Channel> {
        ImageCacheClient::new(self.channel().await)
    }

    pub async fn images_as(&self, uid: u32) -> ImageCacheClient<Channel> {
        ImageCacheClient::new(self.channel_as(uid).await)
    }

    /// Waits on a level of the pool.
    pub async fn until(&self, level: impl Fn(&State) -> bool) {
        let waited = tokio::time::timeout(SOON, self.pool.until(level)).await;
        if waited.is_err() {
            panic!("the pool did not get there: {:?}", self.pool.read(State::usage));
        }
    }

    /// All slots are ready, and nobody has or waits for one.
    pub async fn until_untouched(&self) {
        self.until(|state| {
            let usage = state.usage();
            usage.ready == usage.target && usage.leased == 0 && usage.waiting == 0 && state.lease_views(None).is_empty()
        })
        .await;
    }

    /// The buddy of a lease dies.
    pub fn kill_buddy(&self, lease: &Lease) {
        let key = UseKey { slot: lease.slot, generation: lease.generation, use_number: lease.r#use };
        self.pool.with(|state, now| state.buddy_gone(now, key, "killed by the test"));
    }

    /// The server's own answer, once it has come back.
    pub async fn ended(&mut self) -> Result<(), ServeError> {
        self.server.join_next().await.unwrap().unwrap()
    }
}

fn open_to_all(dir: &std::path::Path, socket: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666)).unwrap();
}

pub fn request(id: &str) -> AllocateRequest {
    AllocateRequest { request_id: id.into(), owner: "agent-1".into(), ..AllocateRequest::default() }
}

pub fn waiting(id: &str, wait: Duration) -> AllocateRequest {
    AllocateRequest { wait: Some(wait.try_into().unwrap()), ..request(id) }
}

pub fn seconds(seconds: u64) -> Option<prost_types::Duration> {
    Some(Duration::from_secs(seconds).try_into().unwrap())
}

pub fn millis(millis: u64) -> Option<prost_types::Duration> {
    Some(Duration::from_millis(millis).try_into().unwrap())
}

pub async fn allocate(agent: &mut Agent, request: AllocateRequest) -> Result<Lease, Status> {
    agent.allocate(request).await.map(|answer| answer.into_inner().lease.unwrap())
}

pub async fn release(agent: &mut Agent, token: &str) -> Result<ReleaseOutcome, Status> {
    agent.release(ReleaseRequest { token: token.into(), doubtful: false }).await.map(|answer| answer.into_inner().outcome())
}

/// Code and reason of a refusal of ours.
#[track_caller]
pub fn refusal(status: &Status) -> (Code, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "nspool");
    (status.code(), info.reason)
}

#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, reason: &str) -> Status {
    let status = outcome.expect_err("a refusal");
    assert_eq!(refusal(&status), (code, reason.to_owned()), "{status:?}");
    status
}

/// The fields that a BAD_FIELD names.
pub fn bad_fields(status: &Status) -> Vec<String> {
    let bad = status.get_details_bad_request().unwrap_or_else(|| panic!("no BadRequest in {status:?}"));
    bad.field_violations.into_iter().map(|violation| violation.field).collect()
}

/// What must come soon.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("it took too long")
}
