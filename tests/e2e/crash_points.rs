//! kill -9 of the real daemon in each mutation of a real engine that one use of a slot takes, before it is carried out and before its answer is
//! there, and in each write of the ledger. A lease is held over all of it, with a function in it; the call that was cut off is made again.
//!
//! The engine's calls pass a proxy, which lets the daemon end when the one in question comes by. The writes are counted by `strace`, which ends it
//! as it is about to make one.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use nspool::client::Request;
use nspool::proto::{self, LeaseState};

use crate::support::daemon::{LIMIT, TestDaemon, kill, load_busybox, text};
use crate::support::engines::TestEngine;
use crate::support::eventually;

on_both_engines!(the_daemon_may_end_in_any_call_of_the_engine, the_daemon_may_end_in_any_write_of_the_ledger);

/// When to end the daemon.
#[derive(Default)]
struct Point {
    /// Mutations to come, the last of which is the end; 0: none is.
    left: AtomicI64,
    /// … once it was carried out.
    answered: AtomicBool,
    pid: AtomicU32,
    reached: AtomicBool,
}

impl Point {
    fn arm(&self, n: i64, answered: bool, pid: u32) {
        self.pid.store(pid, Ordering::SeqCst);
        self.answered.store(answered, Ordering::SeqCst);
        self.reached.store(false, Ordering::SeqCst);
        self.left.store(n, Ordering::SeqCst);
    }

    fn end(&self) {
        kill("KILL", self.pid.load(Ordering::SeqCst));
        self.reached.store(true, Ordering::SeqCst);
    }
}

/// Between a daemon and its engine. Its threads end with their connections.
struct Proxy {
    path: PathBuf,
    point: Arc<Point>,
}

impl Proxy {
    fn before(engine: &TestEngine, dir: &Path) -> Self {
        let path = dir.join("engine");
        let (listener, point) = (UnixListener::bind(&path).unwrap(), Arc::new(Point::default()));
        let socket = engine.endpoint().trim_start_matches("unix://").to_owned();
        let counted = Arc::clone(&point);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else { return };
                let last = Arc::new(AtomicBool::new(false));
                let (to, from) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                let (up, down) = (Arc::clone(&counted), Arc::clone(&counted));
                let ending = Arc::clone(&last);
                std::thread::spawn(move || pump(to.0, to.1, |bytes| up.passes(bytes, &ending)));
                std::thread::spawn(move || pump(from.0, from.1, |_| down.is_answered(&last)));
            }
        });
        Self { path, point }
    }
}

impl Point {
    /// A request on its way to the engine. One request at a time is on a connection, and its head comes in one piece.
    fn passes(&self, bytes: &[u8], last: &AtomicBool) -> bool {
        if !is_mutation(bytes) || self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return true;
        }
        if self.answered.load(Ordering::SeqCst) {
            last.store(true, Ordering::SeqCst);
            return true;
        }
        self.end();
        false
    }

    fn is_answered(&self, last: &AtomicBool) -> bool {
        let ends = last.swap(false, Ordering::SeqCst);
        if ends {
            self.end();
        }
        !ends
    }
}

fn is_mutation(bytes: &[u8]) -> bool {
    let head = String::from_utf8_lossy(bytes.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = head.split(' ');
    let (verb, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    (verb == "POST" || verb == "DELETE") && !path.contains("/wait")
}

fn pump(mut from: UnixStream, mut to: UnixStream, passes: impl Fn(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !passes(&buffer[..read]) || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // The other side hears of the end; a socket that is closed already cannot be shut down.
    let _ = (to.shutdown(std::net::Shutdown::Both), from.shutdown(std::net::Shutdown::Both));
}

/// What outlives every daemon.
struct Survivor {
    lease: proto::Lease,
    function: String,
}

impl Survivor {
    async fn of(daemon: &TestDaemon<'_>) -> Self {
        daemon.settled(2).await;
        let lease = daemon.client().allocate(Request::new().owner("survivor").wait(LIMIT)).await.unwrap().keep();
        let function = daemon.stay(&lease.network_mode);
        daemon.settled_but_leased(1).await;
        Self { lease, function }
    }

    /// Nothing is lost, nothing doubled, nothing leaked.
    async fn is_alone(&self, daemon: &TestDaemon<'_>, what: &str) {
        daemon.settled_but_leased(1).await;
        let client = daemon.client();
        let lease = client.lease(&self.lease.token).await.unwrap();
        assert_eq!((lease.state(), &lease.namespace_id), (LeaseState::Active, &self.lease.namespace_id), "{what}");
        assert!(daemon.engine.run(&["exec", &self.function, "ip", "-o", "-4", "addr"]).contains(&lease.ip_addresses[0]), "{what}");
        let audit = daemon.cli(&["audit"]);
        assert_eq!(audit.status.code(), Some(0), "{what}: {}{}", text(&audit.stdout), text(&audit.stderr));
        let slots: BTreeSet<String> = daemon.slots().await.into_iter().map(|slot| slot.container_id).filter(|id| !id.is_empty()).collect();
        assert_eq!(daemon.buddies().into_iter().collect::<BTreeSet<_>>(), slots, "{what}");
    }
}

fn is_quiet(usage: &proto::Usage) -> bool {
    usage.filling + usage.vacating + usage.quarantined + usage.retiring == 0
}

/// A client calls a daemon that is gone again and again for as long as it is willing to wait: here for so long.
const WILLING: Duration = Duration::from_secs(5);

/// One use of a slot; an error when the daemon has ended in the middle.
async fn whole_use(daemon: &TestDaemon<'_>, id: &str, wait: Duration) -> Result<(), String> {
    let client = daemon.client();
    let request = Request::new().owner("agent").request_id(id).wait(wait);
    let lease = client.allocate(request).await.map_err(|error| error.to_string())?.keep();
    let seen = daemon.function(&["run", "--rm"], &lease.network_mode, &["ip", "-o", "-4", "addr", "show", "dev", "eth0"])?;
    assert!(seen.contains(&lease.ip_addresses[0]), "{seen}");
    client.release(&lease.token, false).await.map_err(|error| error.to_string())?;
    Ok(())
}

/// After the end of a daemon in the middle of a use: another one takes over, and the agent calls again.
async fn succeeded(daemon: &mut TestDaemon<'_>, survivor: &Survivor, what: &str) {
    daemon.reap().await;
    daemon.launch().await;
    match whole_use(daemon, what, LIMIT).await {
        // The end came after the release.
        Err(error) if error.contains("released by its holder") => whole_use(daemon, &format!("{what}, another"), LIMIT).await,
        outcome => outcome,
    }
    .unwrap_or_else(|error| panic!("{what}: {error}"));
    survivor.is_alone(daemon, what).await;
}

async fn the_daemon_may_end_in_any_call_of_the_engine(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::prepare(engine, &["pool.max = 8"]);
    let proxy = Proxy::before(engine, daemon.dir.path());
    daemon.configure(&[&format!("engine.endpoint = \"unix://{}\"", proxy.path.display())]);
    daemon.launch().await;
    let survivor = Survivor::of(&daemon).await;
    let mut ends = 0;
    for answered in [false, true] {
        for n in 1.. {
            let what = format!("call {n}, answered: {answered}");
            proxy.point.arm(n, answered, daemon.pid());
            let used = whole_use(&daemon, &what, WILLING).await;
            let reached = || async { proxy.point.reached.load(Ordering::SeqCst).then_some(true) };
            let calm = || async {
                let usage = daemon.client().usage().await.ok()?.total?;
                (used.is_ok() && usage.ready == 2 && usage.leased == 1 && is_quiet(&usage)).then_some(false)
            };
            let ended = eventually(&what, LIMIT, || async {
                match reached().await {
                    Some(reached) => Some(reached),
                    None => calm().await,
                }
            });
            if !ended.await {
                break;
            }
            ends += 1;
            proxy.point.arm(0, false, 0);
            succeeded(&mut daemon, &survivor, &what).await;
        }
    }
    // Create and start of the next, rename and removal of the last, each twice.
    assert!(ends >= 8, "only {ends} calls were there to end in");
    engine.run(&["rm", "-f", &survivor.function]);
}

async fn the_daemon_may_end_in_any_write_of_the_ledger(engine: &TestEngine) {
    load_busybox(engine);
    let mut daemon = TestDaemon::start(engine, &["pool.max = 8"]).await;
    let survivor = Survivor::of(&daemon).await;
    let ledger = daemon.dir.path().join("state/ledger");
    let mut ends = 0;
    // The one that begins the file anew, at the start, goes beside it.
    let points = std::iter::once((ledger.with_extension("next"), 1)).chain((1..).map(|n| (ledger.clone(), n)));
    for (file, n) in points {
        let what = format!("write {n} to {}", file.file_name().unwrap().display());
        daemon.kill();
        let inject = format!("inject=pwrite64:signal=KILL:when={n}");
        let filter = ["-e", "trace=pwrite64", "-e", &inject, "-P", file.to_str().unwrap(), "--"];
        let mut command = daemon.command(&[&["strace", "-D", "-f", "-qqq", "-o", "/dev/null"][..], &filter].concat());
        // It is counted by thread.
        command.env("TOKIO_WORKER_THREADS", "1");
        daemon.spawn(command);
        if !ends_in_use(&daemon, &what).await {
            break;
        }
        ends += 1;
        succeeded(&mut daemon, &survivor, &what).await;
    }
    // The start's, adopted slots, a lease, its end, the last buddy's, the next one's.
    assert!(ends >= 6, "only {ends} writes were there to end in");
    engine.run(&["rm", "-f", &survivor.function]);
}

/// Uses a daemon that has just been started, until it ends (`true`) or nothing is left to do.
async fn ends_in_use(daemon: &TestDaemon<'_>, what: &str) -> bool {
    let client = daemon.client();
    let over = || async {
        if daemon.has_ended() {
            return Some(true);
        }
        let usage = client.usage().await.ok()?.total?;
        (usage.ready == 2 && usage.leased == 1 && is_quiet(&usage)).then_some(false)
    };
    if eventually(what, LIMIT, over).await {
        return true;
    }
    // Its error is the daemon's end, which is looked for.
    let _cut_off = whole_use(daemon, what, WILLING).await;
    eventually(what, LIMIT, over).await
}
