//! What agents and chaos know together: which leases are held, whom something was done to, and the numbers of the report.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nspool::proto;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::support::daemon::text;
use crate::support::engines::TestEngine;

/// For one call of the engine's client: beyond a freeze, a restart and the daemon's own wait for containerd.
const CLIENT: Duration = Duration::from_secs(90);

/// Where the whole story is kept: the diary always, the logs when it ended badly.
pub(crate) fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{name}.log"))
}

/// Numbers of the report.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub answered: u64,
    /// Answered to a caller who had given up on an earlier call with that request id.
    pub asked_again: u64,
    pub functions: u64,
    /// That the engine could not run because it, or the buddy, was hurt meanwhile.
    pub functions_failed: u64,
    pub releases: BTreeMap<&'static str, u64>,
    pub lost: u64,
    /// Forgotten leases that ended by themselves.
    pub ended_alone: u64,
    /// Leases that were there when all was over.
    pub forced: usize,
    pub comebacks: u64,
    /// Starts that the death of containerd left half done, cleared away by hand.
    pub cut_off: u64,
    pub looks: u64,
    pub most_leased: usize,
}

/// A lease that its agent forgot, and since when it may end.
#[derive(Clone, Debug)]
pub(crate) struct Forgotten {
    pub lease: proto::Lease,
    pub since: Instant,
}

#[derive(Debug, Default)]
struct Book {
    /// Every namespace that was ever handed out: none comes twice.
    handed_out: HashSet<String>,
    /// Those that are in somebody's hands.
    held: HashSet<String>,
    /// Containers of buddies that something was done to.
    hurt: HashSet<String>,
    forgotten: Vec<Forgotten>,
    tally: Tally,
}

/// See the module.
pub(crate) struct World {
    pub engine: TestEngine,
    pub pool: String,
    pub endpoint: String,
    book: Mutex<Book>,
    /// What everybody did and when, to be read beside the daemon's log.
    diary: Mutex<std::fs::File>,
    /// Odd while something is being done to the engine.
    trouble: AtomicU64,
    stopped: AtomicBool,
}

impl World {
    pub(crate) fn new(engine: TestEngine, pool: String, endpoint: String) -> Self {
        let diary = Mutex::new(std::fs::File::create(kept("diary")).unwrap());
        Self { engine, pool, endpoint, book: Mutex::default(), diary, trouble: AtomicU64::new(0), stopped: AtomicBool::new(false) }
    }

    /// Writes it down with the time (UTC, as the daemon's log).
    pub(crate) fn note(&self, words: &str) {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        let time = format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        writeln!(self.diary.lock(), "{time} {words}").unwrap();
    }

    /// The agents end what they hold, and go.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Before and after something is done to the engine.
    pub(crate) fn trouble(&self) {
        self.trouble.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the engine was well from `since` (as [`World::now`] said) until now.
    pub(crate) fn calm_since(&self, since: u64) -> bool {
        since.is_multiple_of(2) && self.now() == since
    }

    pub(crate) fn now(&self) -> u64 {
        self.trouble.load(Ordering::SeqCst)
    }

    /// Something is about to be done to this buddy.
    pub(crate) fn hurts(&self, container: &str) {
        self.book.lock().hurt.insert(container.to_owned());
    }

    pub(crate) fn is_hurt(&self, lease: &proto::Lease) -> bool {
        self.book.lock().hurt.contains(&lease.container_id)
    }

    /// A new lease was answered.
    pub(crate) fn takes(&self, lease: &proto::Lease) {
        let mut book = self.book.lock();
        assert!(book.handed_out.insert(lease.namespace_id.clone()), "{} was handed out before", lease.namespace_id);
        assert!(book.handed_out.insert(lease.container_id.clone()), "{} was handed out under another name", lease.namespace_id);
        book.held.insert(lease.namespace_id.clone());
        book.tally.answered += 1;
        book.tally.most_leased = book.tally.most_leased.max(book.held.len());
    }

    /// It is not in the agent's hands any more.
    pub(crate) fn gives(&self, lease: &proto::Lease) {
        assert!(self.book.lock().held.remove(&lease.namespace_id));
    }

    /// Answers `false` when too many are forgotten already.
    pub(crate) fn may_forget(&self) -> bool {
        self.book.lock().forgotten.len() < 4
    }

    pub(crate) fn forgets(&self, lease: proto::Lease) {
        self.book.lock().forgotten.push(Forgotten { lease, since: Instant::now() });
    }

    pub(crate) fn forgotten(&self) -> Vec<Forgotten> {
        self.book.lock().forgotten.clone()
    }

    /// A forgotten lease has ended.
    pub(crate) fn is_over(&self, lease: &proto::Lease) {
        let mut book = self.book.lock();
        book.forgotten.retain(|forgotten| forgotten.lease.token != lease.token);
        book.held.remove(&lease.namespace_id);
    }

    pub(crate) fn tally<T>(&self, count: impl FnOnce(&mut Tally) -> T) -> T {
        count(&mut self.book.lock().tally)
    }

    /// Runs the engine's client, whatever comes of it.
    pub(crate) async fn docker(&self, args: &[&str]) -> Output {
        let mut client = tokio::process::Command::new("docker");
        client.arg("-H").arg(self.engine.endpoint()).args(args).stdin(Stdio::null()).kill_on_drop(true);
        match tokio::time::timeout(CLIENT, client.output()).await {
            Ok(output) => output.unwrap(),
            Err(_) => panic!("docker {args:?} did not come back within {CLIENT:?}"),
        }
    }

    /// Removes a container that may not be there; tries until the engine says so.
    pub(crate) async fn remove(&self, container: &str) {
        let end = Instant::now() + CLIENT;
        loop {
            let output = self.docker(&["rm", "-f", "-v", container]).await;
            let words = text(&output.stderr);
            if words.contains("No such container") || (output.status.success() && words.is_empty()) {
                return;
            }
            assert!(Instant::now() < end, "{container} cannot be removed: {words}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn report(&self, lasted: Duration, forced: usize, faults: &BTreeMap<&'static str, u32>) -> String {
        let book = self.book.lock();
        let list = |rows: Vec<String>| rows.join(", ");
        let tally = &book.tally;
        let releases = list(tally.releases.iter().map(|(kind, count)| format!("{count} {kind}")).collect());
        let kinds = list(faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect());
        format!(
            "soak: {} s\n\
             leases: {} answered ({} to a caller who asked again), at most {} at once; each looked at while held, {} looks\n\
             functions: {} run; {} could not, because the engine or the buddy was hurt meanwhile\n\
             ends: {releases}, {} forgotten that ended by themselves, {} lost (on hurt buddies, all of them), {forced} forced at the end\n\
             agents that came back: {}\n\
             faults: {} ({kinds}); {} starts of containers were cut off and cleared away by hand",
            lasted.as_secs(),
            tally.answered,
            tally.asked_again,
            tally.most_leased,
            tally.looks,
            tally.functions,
            tally.functions_failed,
            tally.ended_alone,
            tally.lost,
            tally.comebacks,
            faults.values().sum::<u32>(),
            tally.cut_off,
        )
    }
}
