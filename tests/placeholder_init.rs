//! The embedded init itself, without an engine: as a plain child, and as pid 1 of a pid namespace (needs root, `unshare` and `nsenter`).
//!
//! Promises: with the argument `exit` it ends at once; without, it leaves with code 0 on SIGTERM and SIGINT within 100 ms, reaps orphans, and uses no processor time while it waits.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]
#![expect(clippy::print_stdout, reason = "what was measured, or said, is worth a look")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nspool::image::placeholder::INIT;
use rustix::process::{Pid, Signal, kill_process};

const DEADLINE: Duration = Duration::from_secs(10);

/// Waits on a level; never sleeps and then asserts.
fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "after {DEADLINE:?} still not: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

struct Init {
    child: Child,
    /// Of the init, in the tests' own pid namespace.
    pid: u32,
    _folder: tempfile::TempDir,
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn install() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("init");
    std::fs::write(&program, INIT).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    (folder, program)
}

fn as_child() -> Init {
    let (folder, program) = install();
    let child = Command::new(program).spawn().unwrap();
    let init = Init { pid: child.id(), child, _folder: folder };
    wait_until("the init waits for signals", || waits_for_signals(init.pid).then_some(()));
    init
}

fn as_pid_1() -> Init {
    let (folder, program) = install();
    let child = Command::new("unshare").args(["-fp", "--kill-child"]).arg(program).spawn().unwrap();
    let mut init = Init { pid: 0, child, _folder: folder };
    init.pid = wait_until("unshare has a child", || children(init.child.id()).first().copied());
    wait_until("the init waits for signals", || waits_for_signals(init.pid).then_some(()));
    init
}

/// It is inside `rt_sigtimedwait`.
fn waits_for_signals(pid: u32) -> bool {
    let number = if cfg!(target_arch = "aarch64") { "137" } else { "128" };
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split_whitespace().next() == Some(number)
}

fn status_line(pid: u32, key: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key).map(|value| value.trim().to_owned()))
}

fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// User and system time, in clock ticks.
fn processor_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

fn end_with(mut init: Init, signal: Signal) -> (ExitStatus, Duration) {
    let begin = Instant::now();
    kill_process(Pid::from_raw(init.pid.cast_signed()).unwrap(), signal).unwrap();
    let status = wait_until("the init has ended", || init.child.try_wait().unwrap());
    (status, begin.elapsed())
}

#[test]
fn it_leaves_at_once_on_term_and_int() {
    for signal in [Signal::TERM, Signal::INT] {
        for (name, init) in [("child", as_child()), ("pid 1", as_pid_1())] {
            let (status, took) = end_with(init, signal);
            println!("as {name}, {signal:?}: {took:?}");
            assert_eq!(status.code(), Some(0), "as {name}, {signal:?}: {status:?}");
            assert!(took < Duration::from_millis(100), "as {name}, {signal:?}: {took:?}");
        }
    }
}

#[test]
fn it_is_a_function_that_ends_at_once_when_told_to() {
    let (_folder, program) = install();
    let end = Command::new(&program).arg("exit").output().unwrap();
    assert_eq!(end.status.code(), Some(0));
    // Any other word is none: a placeholder that ends for a typing error would be no placeholder.
    for words in [&["exi"][..], &["exits"], &["x", "exit"], &[""]] {
        let mut child = Command::new(&program).args(words).spawn().unwrap();
        wait_until("the init waits for signals", || waits_for_signals(child.id()).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn other_signals_do_not_end_pid_1() {
    let init = as_pid_1();
    let pid = Pid::from_raw(init.pid.cast_signed()).unwrap();
    // From outside, a SIGUSR1 without a handler is dropped for an init; stopped and continued, it waits on.
    for signal in [Signal::USR1, Signal::HUP, Signal::STOP, Signal::CONT] {
        kill_process(pid, signal).unwrap();
    }
    wait_until("it waits again", || waits_for_signals(init.pid).then_some(()));
    let (status, _) = end_with(init, Signal::TERM);
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn it_reaps_orphans() {
    let init = as_pid_1();
    // Each shell leaves a grandchild behind that outlives it: the init gets it, and must take its end.
    for round in 0..5 {
        let script = "(sleep 0.2 &) ; exit 0";
        let enter = Command::new("nsenter").args(["-t", &init.pid.to_string(), "-p", "sh", "-c", script]).status().unwrap();
        assert!(enter.success(), "round {round}: {enter:?}");
    }
    wait_until("the init has got orphans", || (!children(init.pid).is_empty()).then_some(()));
    wait_until("all orphans are gone, and no zombie stays", || children(init.pid).is_empty().then_some(()));
    let (status, _) = end_with(init, Signal::TERM);
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn it_uses_no_processor_time_while_it_waits() {
    let init = as_pid_1();
    let switches = |pid| -> u64 {
        ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
            .iter()
            .map(|key| status_line(pid, key).unwrap().parse::<u64>().unwrap())
            .sum()
    };
    let before = switches(init.pid);
    // A look over some time, not a wait for something: the longer, the stricter.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!(switches(init.pid), before, "it woke up with nothing to do");
    assert_eq!(processor_ticks(init.pid), 0);
}

#[test]
fn a_kill_ends_it_too() {
    let (status, _) = end_with(as_child(), Signal::KILL);
    assert_eq!(status.signal(), Some(9));
}
