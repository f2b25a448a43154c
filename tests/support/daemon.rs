//! The real program, as a child: `nspool serve` on a real engine, with a pool, a configuration and a socket of its own.
//!
//! What it leaves behind when a test ends, in whatever way: nothing. The daemon dies with the test's thread, and its buddies and the test's
//! functions are found by their labels. Its log is printed when the test fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nspool::client::{Answers, Client, Request};
use nspool::engine::EngineKind;
use nspool::nanny::buddy::PIN_SLOT;
use nspool::proto::watch_response::Event;
use nspool::proto::{self, ReleaseOutcome};

use super::engines::{TestEngine, unique};
use super::eventually;
use super::image::{BUSYBOX, busybox_archive};

/// The program under test.
pub const NSPOOL: &str = env!("CARGO_BIN_EXE_nspool");
/// For a level that a loaded machine reaches late; a test that waits this long has failed.
pub const LIMIT: Duration = Duration::from_secs(60);
/// On all that a test makes in the engine beside the daemon; its value is the pool's name.
pub const TEST_LABEL: &str = "nspool-test";

/// A daemon, or one that can be started again.
pub struct TestDaemon<'e> {
    pub engine: &'e TestEngine,
    /// No other test's.
    pub pool: String,
    pub socket: PathBuf,
    pub dir: tempfile::TempDir,
    /// What is started as the daemon: [`NSPOOL`], unless a test says otherwise.
    pub program: PathBuf,
    settings: BTreeMap<String, String>,
    child: Option<Child>,
}

impl<'e> TestDaemon<'e> {
    /// With two ready slots and an open pacer, unless `config` (lines like `pool.ready = 4`) says otherwise. Waits until it answers calls.
    pub async fn start(engine: &'e TestEngine, config: &[&str]) -> Self {
        let mut daemon = Self::prepare(engine, config);
        daemon.launch().await;
        daemon
    }

    /// Everything but the start.
    pub fn prepare(engine: &'e TestEngine, config: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("nsp").tempdir_in("/tmp").unwrap();
        let socket = dir.path().join("s");
        let pool = format!("t{:x}", unique());
        let mut daemon = Self { engine, pool, socket, dir, program: NSPOOL.into(), settings: BTreeMap::new(), child: None };
        let lines = [
            format!("pool.name = {:?}", daemon.pool),
            "pool.ready = 2".into(),
            "pool.max = 4".into(),
            "pacer.rate = 0".into(),
            "backoff.longest = \"1s\"".into(),
            "log.filter = \"info,nspool=debug\"".into(),
            match engine.kind {
                EngineKind::Native => "engine.kind = \"native\"".into(),
                EngineKind::Docker | EngineKind::Podman | EngineKind::Fake => format!("engine.endpoint = {:?}", engine.endpoint()),
            },
            format!("state.namespaces = {:?}", daemon.dir.path().join("ns").display().to_string()),
            format!("api.listen = [\"unix:{}\"]", daemon.socket.display()),
            format!("state.dir = {:?}", daemon.dir.path().join("state").display().to_string()),
            format!("images.store = {:?}", daemon.dir.path().join("images").display().to_string()),
        ];
        daemon.configure(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        daemon.configure(config);
        daemon
    }

    /// Changes lines of the configuration file; for a running daemon, [`TestDaemon::signal`] it with HUP then.
    pub fn configure(&mut self, lines: &[&str]) {
        for line in lines {
            let (key, value) = line.split_once('=').unwrap();
            self.settings.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        let text: String = self.settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        std::fs::write(self.config(), text).unwrap();
    }

    /// Takes a line out of the configuration file: for a program that does not know the key.
    pub fn leave_out(&mut self, key: &str) {
        self.settings.remove(key);
        self.configure(&[]);
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("nspool.toml")
    }

    /// Starts it (again), and waits until it answers calls.
    pub async fn launch(&mut self) {
        let command = self.command(&[]);
        self.launch_as(command).await;
    }

    /// The same, by that command.
    pub async fn launch_as(&mut self, command: Command) {
        self.spawn(command);
        let client = self.client();
        let answers = || async {
            assert!(!self.has_ended(), "the daemon ended at once:\n{}", self.log());
            client.info().await.ok()
        };
        eventually("the daemon to answer", LIMIT, answers).await;
    }

    /// `nspool serve`, behind a prefix such as a launcher that becomes it.
    pub fn command(&self, launcher: &[&str]) -> Command {
        // It must not outlive a test that is killed: its parent's end is the kernel's to tell.
        let mut words = vec!["setpriv", "--pdeathsig", "KILL"];
        words.extend(launcher);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&self.program).args(["serve", "--config"]).arg(self.config());
        scrub(&mut command);
        command
    }

    /// Starts that command as this daemon; its log goes to a file.
    pub fn spawn(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "it runs already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    /// All that it said on stderr, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits until it has said so: what it does is seen before its log is written.
    pub async fn says(&self, words: &str) {
        eventually(&format!("the log to say {words:?}"), LIMIT, || async { self.log().contains(words).then_some(()) }).await;
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// `TERM`, `HUP`, …
    pub fn signal(&self, signal: &str) {
        kill(signal, self.pid());
    }

    /// It waits for its parent to hear of it.
    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    }

    /// Waits for the end of the process; its exit code. Panics when a signal ended it.
    pub async fn exit_code(&mut self, limit: Duration) -> i32 {
        eventually("the daemon's end", limit, || async { self.has_ended().then_some(()) }).await;
        let status = self.child.take().unwrap().wait().unwrap();
        status.code().unwrap_or_else(|| panic!("{status}\n{}", self.log()))
    }

    /// Waits for the end of the process, in whatever way.
    pub async fn reap(&mut self) {
        eventually("the daemon's end", LIMIT, || async { self.has_ended().then_some(()) }).await;
        self.child.take().unwrap().wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub async fn stop(&mut self) -> i32 {
        self.signal("TERM");
        self.exit_code(LIMIT).await
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A client of its own connection.
    pub fn client(&self) -> Client {
        Client::connect(&self.endpoint()).unwrap().with_timeout(Duration::from_secs(20))
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.socket.display())
    }

    /// The command line client.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.cli_of(NSPOOL.as_ref(), args).output().unwrap()
    }

    /// That of another program, not started yet.
    pub fn cli_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        scrub(&mut command);
        command.args(args).env("NSPOOL_ENDPOINT", self.endpoint()).stdin(Stdio::null());
        command
    }

    /// The same; panics unless it succeeds, gives the document it printed.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.cli(&[args, &["-o", "json"]].concat());
        assert!(output.status.success(), "nspool {args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits for something that can be seen through the client; says what there is instead when it waited in vain.
    pub async fn level<T, F: Future<Output = Option<T>>>(&self, what: &str, look: impl Fn(Client) -> F) -> T {
        let client = self.client();
        let found = async {
            loop {
                if let Some(found) = look(client.clone()).await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(LIMIT, found).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}: {:#?}\n{:#?}\n{}", client.usage().await, client.slots().await, self.log()),
        }
    }

    /// Waits for a level of the counts.
    pub async fn usage(&self, what: &str, level: impl Fn(&proto::Usage) -> bool) -> proto::Usage {
        let level = &level;
        self.level(what, |client| async move { client.usage().await.ok()?.total.filter(|usage| level(usage)) }).await
    }

    /// Waits until exactly so many are ready and no slot is on its way to or from there.
    pub async fn settled(&self, ready: u32) -> proto::Usage {
        let quiet = |u: &proto::Usage| u.filling + u.leased + u.vacating + u.renewing + u.quarantined + u.retiring == 0;
        self.usage(&format!("{ready} ready and quiet"), |usage| usage.ready == ready && quiet(usage)).await
    }

    /// The same with so many leased, whatever is ready.
    pub async fn settled_but_leased(&self, leased: u32) -> proto::Usage {
        let quiet = |u: &proto::Usage| u.filling + u.vacating + u.renewing + u.quarantined + u.retiring == 0;
        self.usage(&format!("{leased} leased and quiet"), |usage| usage.leased == leased && quiet(usage)).await
    }

    /// Waits until what a predecessor left is taken over, before which nothing is compared: the counts of its leases are told earlier.
    pub async fn taken_over(&self) {
        self.level("the pool to be taken over", |client| async move { client.audit(false).await.ok() }).await;
    }

    pub async fn slots(&self) -> Vec<proto::Slot> {
        self.client().slots().await.unwrap().slots
    }

    /// Waits for a level of one slot.
    pub async fn slot(&self, index: u32, what: &str, level: impl Fn(&proto::Slot) -> bool) -> proto::Slot {
        let level = &level;
        let look =
            |client: Client| async move { client.slots().await.ok()?.slots.into_iter().find(|slot| slot.slot == index && level(slot)) };
        self.level(what, look).await
    }

    /// A lease without a guard.
    pub async fn allocate(&self, client: &Client) -> proto::Lease {
        client.allocate(Request::new().wait(LIMIT)).await.unwrap().keep()
    }

    /// `docker run` of busybox in a lease's namespaces, or `docker create`; what the client printed, or its words of failure.
    pub fn function(&self, verb: &[&str], network_mode: &str, command: &[&str]) -> Result<String, String> {
        let label = format!("{TEST_LABEL}={}", self.pool);
        let namespace = format!("nspool.namespace_id={}", network_mode.trim_start_matches("container:"));
        let options = ["--label", &label, "--label", &namespace, "--network", network_mode, BUSYBOX];
        let output = self.engine.client(&[verb, &options, command].concat());
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A function that stays; its container id.
    pub fn stay(&self, network_mode: &str) -> String {
        self.function(&["run", "-d"], network_mode, &["sleep", "1000"]).unwrap()
    }

    /// What is mounted below the daemon's folder.
    pub fn mounts(&self) -> Vec<String> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        points.filter(|point| point.starts_with(&self.dir.path().display().to_string())).map(str::to_owned).collect()
    }

    /// First processes of pid namespaces: those that are written down, and are there.
    pub fn inits(&self) -> Vec<u32> {
        let folders = std::fs::read_dir(self.dir.path().join("ns").join(&self.pool)).into_iter().flatten().flatten();
        let written = folders.filter_map(|folder| std::fs::read_to_string(folder.path().join("init")).ok());
        let pids = written.map(|line| line.split(' ').next().unwrap().parse().unwrap());
        pids.filter(|pid| is_init(*pid)).collect()
    }

    /// Ids of this pool's buddies in the engine, whatever their state.
    pub fn buddies(&self) -> Vec<String> {
        let pin = format!("nspool-{}-{PIN_SLOT}-", self.pool);
        self.own().into_iter().filter(|(_, name)| !name.starts_with(&pin)).map(|(id, _)| id).collect()
    }

    /// The same with the one that keeps the placeholder's image while there is no buddy, which a slow fill has, too.
    pub fn containers(&self) -> Vec<String> {
        self.own().into_iter().map(|(id, _)| id).collect()
    }

    /// Full ids and names.
    fn own(&self) -> Vec<(String, String)> {
        let label = format!("label=nspool.pool={}", self.pool);
        let listed = self.engine.run(&["ps", "-a", "--no-trunc", "--filter", &label, "--format", "{{.ID}} {{.Names}}"]);
        listed.lines().filter_map(|line| line.split_once(' ')).map(|(id, name)| (id.to_owned(), name.to_owned())).collect()
    }
}

/// Reads a watch until an event of interest, at most [`LIMIT`].
pub async fn next_event<T>(events: &mut Answers<proto::WatchResponse>, what: &str, of_interest: impl Fn(Event) -> Option<T>) -> T {
    let found = async {
        loop {
            let event = events.next().await.unwrap().expect("the watch goes on").event;
            if let Some(found) = event.and_then(&of_interest) {
                return found;
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The lease was given back. Engines tell of a function's start and end after they answered, podman by a tenth of a second and more: whether one is
/// still there is what the daemon has heard so far.
pub fn returned(answer: &proto::ReleaseResponse) {
    assert!([ReleaseOutcome::Returned, ReleaseOutcome::JoinerStillThere].contains(&answer.outcome()), "{answer:?}");
}

/// Waits until the daemon has seen a joiner of that lease, which may not have started yet.
pub async fn joined(events: &mut Answers<proto::WatchResponse>, lease: &proto::Lease) -> proto::LeaseEvent {
    let of_lease = |event| {
        if let Event::Joined(joined) = event
            && joined.lease_id == lease.lease_id
        {
            Some(joined)
        } else {
            None
        }
    };
    next_event(events, "JOINED", of_lease).await
}

/// Loads the image of the functions, once for each engine and process.
pub fn load_busybox(engine: &TestEngine) {
    use std::io::Write;
    static LOADED: parking_lot::Mutex<Vec<PathBuf>> = parking_lot::Mutex::new(Vec::new());
    let mut loaded = LOADED.lock();
    if loaded.contains(&engine.socket) {
        return;
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&busybox_archive(BUSYBOX)).unwrap();
    engine.run(&["load", "-i", &file.path().display().to_string()]);
    loaded.push(engine.socket.clone());
}

/// Full ids of the containers with this label.
pub fn containers(engine: &TestEngine, label: &str) -> Vec<String> {
    engine.run(&["ps", "-aq", "--no-trunc", "--filter", &format!("label={label}")]).lines().map(str::to_owned).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Signals a process of the host.
pub fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap().success());
}

/// Nothing of the tests' own surroundings is for the program.
fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("NSPOOL_") || name.starts_with("DOCKER_") || name.starts_with("FN_") {
            command.env_remove(&*name);
        }
    }
    for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
}

/// A first process of nspool's.
pub fn is_init(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with("nspool-init"))
}

impl Drop for TestDaemon<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = (child.kill(), child.wait());
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(80).collect();
            for line in tail.iter().rev() {
                #[expect(clippy::print_stderr, reason = "the test has failed, this says why")]
                {
                    eprintln!("{line}");
                }
            }
        }
        // Joiners first: podman keeps a container that another one depends on.
        for label in [TEST_LABEL, "nspool.pool"] {
            let found = self.engine.client(&["ps", "-aq", "--filter", &format!("label={label}={}", self.pool)]);
            let found = text(&found.stdout);
            if !found.is_empty() {
                self.engine.client(&[&["rm", "-f", "-v"], &found.lines().collect::<Vec<_>>()[..]].concat());
            }
        }
        let networks = self.engine.client(&["network", "ls", "-q", "--filter", &format!("label=nspool.pool={}", self.pool)]);
        for network in text(&networks.stdout).lines() {
            self.engine.client(&["network", "rm", network]);
        }
        // A killed daemon leaves its bridges, whose ranges are in the way of later runs. Those of others are theirs to remove.
        let anothers = self.settings.keys().any(|key| key.ends_with(".existing") || key.ends_with(".engine_network"));
        for (_, bridge) in self.settings.iter().filter(|(key, _)| key.ends_with(".bridge") && !anothers) {
            let _gone = Command::new("ip").args(["link", "del", bridge.trim_matches('"')]).stderr(Stdio::null()).status();
        }
        for init in self.inits() {
            let _gone = Command::new("kill").args(["-KILL", &init.to_string()]).stderr(Stdio::null()).status();
        }
        for mount in self.mounts().iter().rev() {
            let _gone = Command::new("umount").arg("-l").arg(mount).status();
        }
        for lock in std::fs::read_dir(nspool::lock::LOCKS).into_iter().flatten().flatten() {
            if lock.file_name().to_string_lossy().starts_with(&format!("{}-", self.pool)) {
                let _gone = std::fs::remove_file(lock.path());
            }
        }
    }
}
