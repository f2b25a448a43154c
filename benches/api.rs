//! What an Allocate + Release over the socket costs beside a handler that does nothing, and what the ledger costs.
//!
//! Three servers in one process: ours over a real pool, the same with a ledger in a file (in the temporary folder, or in the one that
//! NSPOOL_BENCH_STATE names), and tonic's own server with a handler that answers an empty message. Each has a Unix socket; servers share one runtime, clients another. Rounds are interleaved (A B A B …), the figures are medians over rounds. A round
//! has laps that need no slot twice; after each all slots come back, untimed, as if nannies had done it. Figures are calls per second:
//! an Allocate + Release counts as two.
//!
//! `cargo bench --bench api [-- ROUNDS]`

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on says so by a panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::stream::{self, BoxStream};
use hyper_util::rt::TokioIo;
use nspool::api::{About, Api, DaemonStatus, EngineState, ImageState, Limits, serve};
use nspool::config;
use nspool::engine::{EngineInfo, EngineKind};
use nspool::ledger::{Identity, Ledger};
use nspool::level;
use nspool::pool::Pool;
use nspool::pool::state::{Afterwards, Order, Rules};
use nspool::proto;
use nspool::proto::namespace_pool_client::NamespacePoolClient;
use nspool::proto::namespace_pool_server::{NamespacePool, NamespacePoolServer};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

#[path = "../tests/support/world.rs"]
mod world;

const SLOTS: u32 = 1024;
const IN_FLIGHT: u32 = 8;
/// Pairs of ours, or as many calls twice of the empty handler, until the slots come back.
const PAIRS: u32 = 1000;
/// So many times that per round.
const LAPS_AT_8: u32 = 12;
const LAPS_AT_1: u32 = 3;
const NUMBER_OF_ROUNDS: usize = 15;

type Client = NamespacePoolClient<Channel>;

fn main() {
    let rounds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(NUMBER_OF_ROUNDS);
    let runtime = |name: &str| tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build().unwrap();
    let (servers, clients) = (runtime("server"), runtime("client"));
    let dir = tempfile::tempdir().unwrap();
    let state = std::env::var_os("NSPOOL_BENCH_STATE").map_or_else(|| dir.path().join("state"), PathBuf::from);
    let identity = Identity { boot_id: "bench".into(), pool: "bench".into(), now: Duration::ZERO, engine: String::new() };
    let (ledger, _) = Ledger::open(&state, &identity).unwrap();
    servers.spawn(Arc::clone(&ledger).keep_short(world::boot_time, 16_384, CancellationToken::new()));
    let (pool, recorded) = (filled_pool(None), filled_pool(Some(ledger)));
    let path = |name: &str| dir.path().join(name);
    let mut tasks = JoinSet::new();
    start_ours(&servers, &mut tasks, Arc::clone(&pool), &path("ours"));
    start_ours(&servers, &mut tasks, Arc::clone(&recorded), &path("recorded"));
    start_empty(&servers, &mut tasks, &path("empty"));
    let [ours, with_ledger, empty] = ["ours", "recorded", "empty"].map(|name| clients.block_on(connect(path(name))));
    let bench = Bench { clients, pool, recorded, ours, with_ledger, empty };
    bench.warm_up();
    let mut lines = vec![format!("{rounds} rounds, interleaved; medians; calls/s, an Allocate + Release is two calls")];
    let sides = [("ours", Side::Ours), ("with ledger", Side::WithLedger), ("empty", Side::Empty)];
    for (in_flight, laps) in [(IN_FLIGHT, LAPS_AT_8), (1, LAPS_AT_1)] {
        lines.extend(bench.compare(rounds, in_flight, laps, sides[0], sides[2]));
        lines.extend(bench.compare(rounds, in_flight, laps, sides[1], sides[0]));
    }
    report(&lines);
    drop(tasks);
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn report(lines: &[String]) {
    for line in lines {
        println!("{line}");
    }
}

fn line(in_flight: u32, name: &str, speed: f64, p50: f64, cpu: f64) -> String {
    format!("{in_flight} in flight: {name:11} {speed:>8.0} calls/s, p50 {p50:>6.1} us, cpu {cpu:>5.1} us/call")
}

struct Bench {
    clients: Runtime,
    pool: Arc<Pool>,
    recorded: Arc<Pool>,
    ours: Client,
    with_ledger: Client,
    empty: Client,
}

#[derive(Clone, Copy)]
enum Side {
    Ours,
    WithLedger,
    Empty,
}

/// One round: calls per second, and the median of single calls in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    calls_per_second: f64,
    p50: f64,
    /// Processor time of the whole process (both ends) per call, in microseconds: what other load on the machine disturbs least.
    cpu: f64,
}

impl Bench {
    fn warm_up(&self) {
        for _ in 0..3 {
            self.round(Side::Ours, IN_FLIGHT, LAPS_AT_8);
            self.round(Side::WithLedger, IN_FLIGHT, LAPS_AT_8);
            self.round(Side::Empty, IN_FLIGHT, LAPS_AT_8);
        }
    }

    fn compare(&self, rounds: usize, in_flight: u32, laps: u32, one: (&str, Side), other: (&str, Side)) -> Vec<String> {
        let mut figures = (Vec::new(), Vec::new());
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let ours = self.round(one.1, in_flight, laps);
            let empty = self.round(other.1, in_flight, laps);
            ratios.push(ours.calls_per_second / empty.calls_per_second);
            figures.0.push(ours);
            figures.1.push(empty);
        }
        let speed = |figures: &[Figures]| median(figures.iter().map(|round| round.calls_per_second).collect());
        let p50 = |figures: &[Figures]| median(figures.iter().map(|round| round.p50).collect());
        let cpu = |figures: &[Figures]| median(figures.iter().map(|round| round.cpu).collect());
        let (ours, empty) = (&figures.0, &figures.1);
        vec![
            line(in_flight, one.0, speed(ours), p50(ours), cpu(ours)),
            line(in_flight, other.0, speed(empty), p50(empty), cpu(empty)),
            format!(
                "{in_flight} in flight: ratio {:.3} (of medians {:.3}; by processor time {:.3}), p50 {:+.1} us",
                median(ratios),
                speed(ours) / speed(empty),
                cpu(empty) / cpu(ours),
                p50(ours) - p50(empty)
            ),
        ]
    }

    fn round(&self, side: Side, in_flight: u32, laps: u32) -> Figures {
        let (mut took, mut cpu, mut nanos) = (Duration::ZERO, Duration::ZERO, Vec::new());
        for _ in 0..laps {
            let (started, cpu_started) = (Instant::now(), cpu_time());
            nanos.extend(self.lap(side, in_flight));
            took += started.elapsed();
            cpu += cpu_time() - cpu_started;
            match side {
                Side::Ours => bring_back(&self.pool),
                Side::WithLedger => bring_back(&self.recorded),
                Side::Empty => {}
            }
        }
        nanos.sort_unstable();
        let calls = f64::from(laps * PAIRS * 2);
        Figures {
            calls_per_second: calls / took.as_secs_f64(),
            p50: f64::from(nanos[nanos.len() / 2]) / 1000.0,
            cpu: cpu.as_secs_f64() * 1e6 / calls,
        }
    }

    /// What each call took, in nanoseconds.
    fn lap(&self, side: Side, in_flight: u32) -> Vec<u32> {
        let left = Arc::new(AtomicU32::new(PAIRS));
        self.clients.block_on(async {
            let mut callers = JoinSet::new();
            for caller in 0..in_flight {
                let left = Arc::clone(&left);
                match side {
                    Side::Ours => callers.spawn(allocate_and_release(self.ours.clone(), left, caller)),
                    Side::WithLedger => callers.spawn(allocate_and_release(self.with_ledger.clone(), left, caller)),
                    Side::Empty => callers.spawn(two_empty_calls(self.empty.clone(), left)),
                };
            }
            callers.join_all().await.concat()
        })
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn take_one(left: &AtomicU32) -> Option<u32> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()
}

fn since(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

async fn allocate_and_release(mut client: Client, left: Arc<AtomicU32>, caller: u32) -> Vec<u32> {
    let mut nanos = Vec::new();
    let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    while let Some(number) = take_one(&left) {
        let request = proto::AllocateRequest {
            request_id: format!("{run:x}-{caller}-{number}"),
            owner: "agent-1".into(),
            ..proto::AllocateRequest::default()
        };
        let start = Instant::now();
        let lease = client.allocate(request).await.unwrap().into_inner().lease.unwrap();
        nanos.push(since(start));
        let start = Instant::now();
        client.release(proto::ReleaseRequest { token: lease.token, doubtful: false }).await.unwrap();
        nanos.push(since(start));
    }
    nanos
}

async fn two_empty_calls(mut client: Client, left: Arc<AtomicU32>) -> Vec<u32> {
    let mut nanos = Vec::new();
    while take_one(&left).is_some() {
        for _ in 0..2 {
            let start = Instant::now();
            client.get_info(proto::GetInfoRequest {}).await.unwrap();
            nanos.push(since(start));
        }
    }
    nanos
}

fn filled_pool(ledger: Option<Arc<Ledger>>) -> Arc<Pool> {
    let rules = Rules {
        networks: 1,
        ready: SLOTS,
        max: SLOTS,
        afterwards: [Afterwards::Reuse].into(),
        keep_tenants: false,
        linger: Duration::from_secs(10),
        max_detached: 64,
        max_waiting: 1024,
        quota_per_uid: None,
        remember: Duration::from_secs(600),
        remember_max: 16_384,
        trim_after: Duration::from_secs(30),
    };
    let journal = ledger.map(|ledger| (ledger, ["bridge".to_owned()].into()));
    let pool = Pool::recorded(rules, 1, 4096, world::real(), journal);
    pool.with(|state, now| {
        state.set_engine_up(true);
        state.resize(now, SLOTS, SLOTS).unwrap();
        for slot in 0..SLOTS {
            let Order::Fill { generation } = state.order(slot) else { panic!("slot {slot} is to be filled") };
            state.registered(now, slot, generation, world::namespace(slot, generation, 1));
        }
    });
    pool
}

fn bring_back(pool: &Pool) {
    pool.with(|state, now| {
        for slot in 0..SLOTS {
            if let Order::Vacate(key) = state.order(slot) {
                state.vacated(now, key, world::namespace(slot, key.generation, key.use_number + 1));
            }
        }
        assert_eq!(state.usage().ready, SLOTS);
    });
}

fn start_ours(servers: &Runtime, tasks: &mut JoinSet<()>, pool: Arc<Pool>, path: &Path) {
    let config = config::Config::default();
    let info = EngineInfo {
        kind: EngineKind::Docker,
        id: "ABCD:EFGH:IJKL:MNOP:QRST:UVWX".into(),
        version: "20.10.24".into(),
        endpoint: "unix:///var/run/docker.sock".into(),
    };
    let status = DaemonStatus { engine: EngineState::Up, engine_info: Some(info), image: ImageState::Ready, ..DaemonStatus::default() };
    let api = Api {
        pool,
        about: About {
            namespaces: vec![nspool::engine::NamespaceKind::Net],
            pool: "default".into(),
            networks: vec!["bridge".into()],
            reuse: "always".into(),
            at_stop: "remove".into(),
            state_dir: String::new(),
            incarnation: "1".into(),
            version: "0.1.0".into(),
            started_at: SystemTime::now(),
            started_boot: world::boot_time(),
        },
        status: level::channel(status).1,
        limits: level::channel(Limits::of(&config.api, &config.pool)).1,
        detached: Arc::new(Vec::new),
        images: None,
        builders: nspool::config::Builders::default(),
        inspect: Arc::new(|_, _| Box::pin(async { None })),
        audit: Arc::new(|_| Box::pin(async { Err(nspool::audit::NotNow::Starting) })),
        max_message: config.api.max_message,
        max_streams: config.api.max_streams,
        grace: Duration::from_secs(1),
    };
    let _inside = servers.enter();
    let listener = UnixListener::bind(path).unwrap();
    tasks.spawn_on(async move { serve(api, vec![listener], CancellationToken::new()).await.unwrap() }, servers.handle());
}

fn start_empty(servers: &Runtime, tasks: &mut JoinSet<()>, path: &Path) {
    let _inside = servers.enter();
    let listener = UnixListener::bind(path).unwrap();
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let server = Server::builder().add_service(NamespacePoolServer::new(Empty)).serve_with_incoming(incoming);
    tasks.spawn_on(async move { server.await.unwrap() }, servers.handle());
}

async fn connect(path: PathBuf) -> Client {
    let connect = move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(connect)).await.unwrap();
    NamespacePoolClient::new(channel)
}

/// Answers an empty message to an empty message; only `get_info` is ever called.
struct Empty;

#[tonic::async_trait]
impl NamespacePool for Empty {
    async fn get_info(&self, _: Request<proto::GetInfoRequest>) -> Result<Response<proto::GetInfoResponse>, Status> {
        Ok(Response::new(proto::GetInfoResponse::default()))
    }

    async fn allocate(&self, _: Request<proto::AllocateRequest>) -> Result<Response<proto::AllocateResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn renew(&self, _: Request<proto::RenewRequest>) -> Result<Response<proto::RenewResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type KeepAliveStream = BoxStream<'static, Result<proto::KeepAliveResponse, Status>>;

    async fn keep_alive(&self, _: Request<Streaming<proto::KeepAliveRequest>>) -> Result<Response<Self::KeepAliveStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn release(&self, _: Request<proto::ReleaseRequest>) -> Result<Response<proto::ReleaseResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn get_lease(&self, _: Request<proto::GetLeaseRequest>) -> Result<Response<proto::GetLeaseResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type ResumeStream = BoxStream<'static, Result<proto::ResumeResponse, Status>>;

    async fn resume(&self, _: Request<proto::ResumeRequest>) -> Result<Response<Self::ResumeStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn get_usage(&self, _: Request<proto::GetUsageRequest>) -> Result<Response<proto::GetUsageResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
