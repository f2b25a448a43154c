//! Private engines for tests: a dockerd or a podman service with folders, socket, bridge and address range of its own.
//!
//! Each engine has a *minder*, a shell in a process group of its own that starts the engine and takes everything away when its standard
//! input ends: at [`TestEngine`]'s drop, and also when the test process ends in whatever way, which is what shared engines rely on (libtest
//! never drops statics). Should the minder itself be killed, the next start finds its folder unlocked and sweeps it.
//!
//! `NSPOOL_TEST_DOCKER` and `NSPOOL_TEST_PODMAN` may name sockets of engines to use instead; their folder's name must be their link prefix.

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nspool::engine::EngineKind;

use super::wait_for;

/// How long an engine may take to answer after its start, on a loaded machine.
const START: Duration = Duration::from_secs(60);

/// Starts a dockerd for one test alone; dropping what comes back ends it.
pub struct PrivateDocker;

/// Starts a podman service for one test alone; dropping what comes back ends it.
pub struct PrivatePodman;

impl PrivateDocker {
    /// Panics with the engine's log when it does not come up.
    pub fn start() -> TestEngine {
        Self::start_with(&[])
    }

    /// With more options for dockerd, e.g. `--live-restore`.
    pub fn start_with(options: &[&str]) -> TestEngine {
        TestEngine::private(EngineKind::Docker, options)
    }
}

impl PrivatePodman {
    /// Panics with the engine's log when it does not come up.
    pub fn start() -> TestEngine {
        TestEngine::private(EngineKind::Podman, &[])
    }
}

/// An engine to test with.
pub struct TestEngine {
    /// Docker or podman.
    pub kind: EngineKind,
    /// The socket's path.
    pub socket: PathBuf,
    /// Folder of everything that it keeps.
    pub dir: PathBuf,
    /// All links made for it begin with this.
    pub prefix: String,
    minder: Option<Minder>,
}

/// A signal is on its way for a while, and one thread after the other stops.
fn are_stopped(pid: i32) -> bool {
    let stopped = |thread: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().all(stopped)
}

struct Minder {
    child: Child,
    words: Option<ChildStdin>,
}

/// No engine: the daemon makes namespaces itself.
pub fn native() -> &'static TestEngine {
    &NATIVE
}

static NATIVE: LazyLock<TestEngine> = LazyLock::new(|| TestEngine {
    kind: EngineKind::Native,
    socket: PathBuf::new(),
    dir: std::env::temp_dir(),
    prefix: String::new(),
    minder: None,
});
static DOCKER: LazyLock<TestEngine> = LazyLock::new(|| TestEngine::from_env("NSPOOL_TEST_DOCKER", EngineKind::Docker));
static PODMAN: LazyLock<TestEngine> = LazyLock::new(|| TestEngine::from_env("NSPOOL_TEST_PODMAN", EngineKind::Podman));

/// The Docker shared by this test binary's tests; never freeze or stop it.
pub fn docker() -> &'static TestEngine {
    &DOCKER
}

/// The podman shared by this test binary's tests; never freeze or stop it.
pub fn podman() -> &'static TestEngine {
    &PODMAN
}

/// What Docker says when it was in its own way, and does not say the next time: a link of another test's went while it listed them all for a new network; a
/// container's end was written down in the folder that was being removed. And podman, which reads all images to answer about one, of which another test's may
/// just be going.
const PASSING: [&str; 4] = ["no such network interface", "directory not empty", "image not known", "layer not known"];
const TRIES: u32 = 5;

/// Asks again for as long as what is said is passing.
pub fn insisted(mut ask: impl FnMut() -> Output) -> Output {
    let mut output = ask();
    for _ in 0..TRIES {
        let words = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !PASSING.iter().any(|passing| words.contains(passing)) {
            break;
        }
        output = ask();
    }
    output
}

impl TestEngine {
    fn from_env(variable: &str, kind: EngineKind) -> Self {
        let Some(socket) = std::env::var_os(variable).map(PathBuf::from) else { return Self::private(kind, &[]) };
        let dir = socket.parent().expect("a socket is in a folder").to_owned();
        let prefix = dir.file_name().expect("the folder has a name").to_string_lossy().into_owned();
        Self { kind, socket, dir, prefix, minder: None }
    }

    fn private(kind: EngineKind, options: &[&str]) -> Self {
        let base = PathBuf::from("/tmp/nspool-test-0");
        std::fs::create_dir_all(&base).unwrap();
        sweep_abandoned(&base);
        let number = unique();
        let prefix = format!("nt{number:05x}");
        let dir = base.join(&prefix);
        std::fs::create_dir(&dir).unwrap();
        let [x, y] = [number as u8 & 63, (number >> 6) as u8];
        let script = if kind == EngineKind::Podman { "podman-engine.sh" } else { "docker-engine.sh" };
        let mut args = vec![scripts().join(script).display().to_string(), dir.display().to_string()];
        if kind == EngineKind::Podman {
            write_podman_config(&dir, &prefix, x, y);
            args.push(prefix.clone());
        } else {
            args.extend([format!("{prefix}b"), format!("10.{}.{y}.1/24", 64 + x), format!("base=10.{}.{y}.0/24,size=28", 128 + x)]);
            args.extend(options.iter().map(ToString::to_string));
        }
        std::fs::write(dir.join("args"), args.join("\n")).unwrap();
        let mut child = Command::new("sh").args(&args).stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let words = child.stdin.take();
        let mut engine = Self { kind, socket: dir.join("s"), dir, prefix, minder: Some(Minder { child, words }) };
        engine.launch();
        engine
    }

    /// `unix:///…`
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The same engine to look at, while this one is stopped and started.
    pub fn handle(&self) -> Self {
        Self { kind: self.kind, socket: self.socket.clone(), dir: self.dir.clone(), prefix: self.prefix.clone(), minder: None }
    }

    /// Starts it (again, after [`TestEngine::kill`]) and waits until it answers.
    pub fn launch(&mut self) {
        let minder = self.minder.as_mut().expect("a shared engine is not ours to start");
        writeln!(minder.words.as_mut().unwrap(), "start").unwrap();
        let child = &mut minder.child;
        let (endpoint, log) = (format!("unix://{}", self.socket.display()), self.dir.join("log"));
        let mut looks = 0;
        wait_for("the engine to answer", START, || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the engine's minder ended with {status}");
            }
            let up = Command::new("docker").args(["-H", &endpoint, "version"]).output().unwrap().status.success();
            let failed = std::fs::read_to_string(&log).unwrap_or_default().contains("failed to start daemon");
            looks += 1;
            assert!(up || !(failed || looks > 1000), "{}", std::fs::read_to_string(&log).unwrap());
            up.then_some(())
        });
    }

    /// The engine's own process.
    pub fn pid(&self) -> i32 {
        let file = if self.kind == EngineKind::Podman { "podman.pid" } else { "docker.pid" };
        std::fs::read_to_string(self.dir.join(file)).unwrap().trim().parse().unwrap()
    }

    /// Sends a signal to the engine's process, e.g. `STOP`, `CONT`, `KILL`.
    pub fn signal(&self, signal: &str) {
        assert!(self.minder.is_some(), "a shared engine is not ours to signal");
        let pid = self.pid();
        let done = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
        assert!(done.success());
        if signal == "STOP" {
            wait_for("all of the engine's threads to stop", START, || are_stopped(pid).then_some(()));
        }
    }

    /// Kills the engine's process; its containers go on. [`TestEngine::launch`] brings it back.
    pub fn kill(&self) {
        self.signal("KILL");
        // A killed engine leaves its socket behind, which is refused once the last of its threads has ended.
        wait_for("the engine's process to end", Duration::from_secs(10), || UnixStream::connect(&self.socket).err());
    }

    /// Runs the docker command line client on this engine.
    pub fn client(&self, args: &[&str]) -> Output {
        if self.kind == EngineKind::Native {
            // Asked at the end of each test for what may be left: nothing is in no engine.
            return Command::new("true").output().unwrap();
        }
        Command::new("docker").arg("-H").arg(self.endpoint()).args(args).output().unwrap()
    }

    /// The same; panics unless it succeeds, gives what it printed, trimmed.
    pub fn run(&self, args: &[&str]) -> String {
        let output = insisted(|| self.client(args));
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Creates a network; dropping what comes back removes it, once its containers are gone. `subnet` as in [`unique_subnet`].
    pub fn network(&self, subnet: &str) -> TestNetwork<'_> {
        let name = format!("{}n{:x}", self.prefix, unique() & 0xffff);
        let option = format!("com.docker.network.bridge.name={name}");
        self.run(&["network", "create", "--subnet", subnet, "-o", &option, &name]);
        TestNetwork { engine: self, name }
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        if let Some(mut minder) = self.minder.take() {
            minder.words = None;
            let ended = minder.child.wait();
            if !std::thread::panicking() {
                assert!(ended.unwrap().success(), "the engine's minder could not clean up");
                assert!(!self.dir.exists());
            }
        }
    }
}

/// See [`TestEngine::network`].
pub struct TestNetwork<'a> {
    engine: &'a TestEngine,
    /// The engine's name for it, and the bridge's.
    pub name: String,
}

impl Drop for TestNetwork<'_> {
    fn drop(&mut self) {
        self.engine.client(&["network", "rm", &self.name]);
    }
}

/// A range that no other test of this process uses, and most likely none of another: `10.x.y.0/<length>`.
pub fn unique_subnet(length: u8) -> String {
    let number = unique();
    Ipv4Addr::new(10, 192 + (number as u8 & 63), (number >> 6) as u8, 0).to_string() + &format!("/{length}")
}

/// Different for each call, and over processes for some thousand of them.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) & 0xf_ffff
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support")
}

/// Limits, registries on loopback without TLS (as Docker has them by itself), and the default network, without its iptables plugins, with its address book in our folder.
fn write_podman_config(dir: &Path, prefix: &str, x: u8, y: u8) {
    let ipam = serde_json::json!({"type": "host-local", "dataDir": dir.join("ipam"), "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": format!("10.{}.{y}.0/24", 64 + x), "gateway": format!("10.{}.{y}.1", 64 + x)}]]});
    let bridge = serde_json::json!({"type": "bridge", "bridge": format!("{prefix}b"), "isGateway": true, "ipMasq": false, "ipam": ipam});
    let list = serde_json::json!({"cniVersion": "0.4.0", "name": "podman", "plugins": [bridge]});
    std::fs::create_dir(dir.join("net")).unwrap();
    std::fs::write(dir.join("net/87-podman.conflist"), list.to_string()).unwrap();
    // podman's own defaults are refused where limits may not be raised.
    std::fs::write(dir.join("containers.conf"), "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=16384:16384\"]\n").unwrap();
    std::fs::write(dir.join("registries.conf"), "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n").unwrap();
}

/// Ends what killed minders left. A folder younger than a minute may just be starting.
fn sweep_abandoned(base: &Path) {
    for entry in std::fs::read_dir(base).unwrap().flatten() {
        let dir = entry.path();
        let Ok(args) = std::fs::read_to_string(dir.join("args")) else { continue };
        let old = entry.metadata().and_then(|m| m.modified()).is_ok_and(|t| t.elapsed().is_ok_and(|age| age > Duration::from_secs(60)));
        if old {
            // The script itself refuses when another minder holds the folder's lock.
            let _refused = Command::new("sh").args(args.lines()).stdin(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}
