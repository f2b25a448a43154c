//! The embedded init itself, without an engine: as a plain child, and as pid 1 of a pid namespace (needs root, `unshare` and `nsenter`).
//!
//! Promises: with the argument `exit` it ends at once; without, it leaves with code 0 on SIGTERM and SIGINT within 100 ms, reaps orphans, and uses no processor time while it waits.
//! Told to, it moves into a new network namespace: only by a queued signal from outside its pid namespace with the next number.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]
#![expect(clippy::print_stdout, reason = "what was measured, or said, is worth a look")]

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nspool::engine::NamespaceKind;
use nspool::image::placeholder::{EXIT_CANNOT_RENEW, INIT};
use nspool::netns::linux::Linux;
use nspool::netns::{Held, RenewError};
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
}

impl Drop for Init {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Written once, before any test starts a process: a file that a child, forked by another test meanwhile, has open for writing cannot be run.
fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("placeholder-init");
        let written = program.with_extension(std::process::id().to_string());
        std::fs::write(&written, INIT).unwrap();
        std::fs::set_permissions(&written, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&written, &program).unwrap();
        program
    });
    &PROGRAM
}

fn as_child() -> Init {
    let child = Command::new(program()).spawn().unwrap();
    let init = Init { pid: child.id(), child };
    wait_until("the init waits for signals", || waits_for_signals(init.pid).then_some(()));
    init
}

fn as_pid_1() -> Init {
    let child = Command::new("unshare").args(["-fp", "--kill-child"]).arg(program()).spawn().unwrap();
    let mut init = Init { pid: 0, child };
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
        for (name, start) in [("child", as_child as fn() -> Init), ("pid 1", as_pid_1)] {
            // The host may be busy with something else.
            let is_quick = (0..10).any(|_| {
                let (status, took) = end_with(start(), signal);
                println!("as {name}, {signal:?}: {took:?}");
                assert_eq!(status.code(), Some(0), "as {name}, {signal:?}: {status:?}");
                took < Duration::from_millis(100)
            });
            assert!(is_quick, "as {name}, {signal:?}");
        }
    }
}

#[test]
fn it_is_a_function_that_ends_at_once_when_told_to() {
    let end = Command::new(program()).arg("exit").output().unwrap();
    assert_eq!(end.status.code(), Some(0));
    // Any other word is none: a placeholder that ends for a typing error would be no placeholder.
    for words in [&["exi"][..], &["exits"], &["x", "exit"], &[""]] {
        let mut child = Command::new(program()).args(words).spawn().unwrap();
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
        let script = "(sleep 1000 &) ; exit 0";
        let enter = Command::new("nsenter").args(["-t", &init.pid.to_string(), "-p", "sh", "-c", script]).status().unwrap();
        assert!(enter.success(), "round {round}: {enter:?}");
    }
    let orphans = wait_until("the init has got its orphans", || Some(children(init.pid)).filter(|all| all.len() == 5));
    for orphan in orphans {
        kill_process(Pid::from_raw(orphan.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }
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
    let before = (switches(init.pid), processor_ticks(init.pid));
    // A look over some time, not a wait for something: the longer, the stricter.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(500) {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert_eq!((switches(init.pid), processor_ticks(init.pid)), before, "it woke up with nothing to do");
}

#[test]
fn a_kill_ends_it_too() {
    let (status, _) = end_with(as_child(), Signal::KILL);
    assert_eq!(status.signal(), Some(9));
}

/// `RENEW` of init.c.
const RENEW: &str = "42";
/// Long enough for a loaded machine.
const WITHIN: Duration = Duration::from_secs(10);
/// Long enough to be sure that nothing comes.
const SHORTLY: Duration = Duration::from_millis(100);

fn hold(init: &Init) -> Box<dyn Held> {
    Linux::new().hold_now(init.pid, &[]).unwrap()
}

fn net(pid: u32) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()
}

/// util-linux's kill: with `-q N` it queues the signal with that number, as sigqueue(3) does.
fn signal(before: &[&str], options: &[&str], pid: u32) {
    let words: Vec<&str> = before.iter().copied().chain(["/bin/kill"]).chain(options.iter().copied()).collect();
    let sent = Command::new(words[0]).args(&words[1..]).arg(pid.to_string()).status().unwrap();
    assert!(sent.success(), "{words:?}");
}

/// All that was sent before has been looked at when it waits again: signals are taken one after the other, and this one is the last.
fn all_taken(init: &Init) {
    wait_until("no signal is pending", || (status_line(init.pid, "ShdPnd:")? == "0000000000000000").then_some(()));
    wait_until("it waits again", || waits_for_signals(init.pid).then_some(()));
}

#[tokio::test]
async fn told_from_outside_it_moves_once_for_each_number() {
    let init = as_pid_1();
    let (held, start) = (hold(&init), net(init.pid));
    assert_eq!(start, net(std::process::id()), "not unless it is asked");
    // It was in the test's own namespace, as a buddy never is: so the proof may find another wrong in it, but not the old one.
    let first = held.renew(2, WITHIN).await.unwrap();
    let second = held.renew(3, WITHIN).await.unwrap();
    assert_ne!(first.cookie.unwrap(), second.cookie.unwrap());
    assert_eq!(held.namespace(NamespaceKind::Net), Some(second.namespace));
    assert!(matches!(held.renew(3, SHORTLY).await, Err(RenewError::NoAnswer { .. })), "a repeat");
    assert!(matches!(held.renew(5, SHORTLY).await, Err(RenewError::NoAnswer { .. })), "one too far");
    signal(&[], &["-q", "4", "-s", RENEW], init.pid);
    wait_until("it moves by a queued signal of anybody outside", || {
        (net(init.pid).to_string_lossy() != format!("net:[{}]", second.namespace.ino)).then_some(())
    });
    let (status, _) = end_with(init, Signal::TERM);
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn orders_that_are_none_do_nothing() {
    let init = as_pid_1();
    let start = net(init.pid);
    let inside = ["nsenter", "-t", &init.pid.to_string(), "-p"].map(str::to_owned);
    let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
    for number in ["0", "1", "3", "4"] {
        signal(&[], &["-q", number, "-s", RENEW], init.pid);
    }
    // A plain kill carries no number; the neighbours are not ours.
    signal(&[], &["-s", RENEW], init.pid);
    for foreign in ["34", "41", "43", "64"] {
        signal(&[], &["-q", "2", "-s", foreign], init.pid);
    }
    // The right number, from inside the pid namespace, where the init is pid 1.
    signal(&inside, &["-q", "2", "-s", RENEW], 1);
    all_taken(&init);
    assert_eq!(net(init.pid), start);
    // And it still knows which one is next.
    signal(&[], &["-q", "2", "-s", RENEW], init.pid);
    wait_until("it moves", || (net(init.pid) != start).then_some(()));
    let (status, _) = end_with(init, Signal::TERM);
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[test]
fn as_a_plain_child_it_takes_orders_from_nobody() {
    let init = as_child();
    let start = net(init.pid);
    signal(&[], &["-q", "2", "-s", RENEW], init.pid);
    all_taken(&init);
    assert_eq!(net(init.pid), start);
}

#[test]
fn an_end_does_not_wait_behind_orders() {
    let init = as_pid_1();
    let pid = Pid::from_raw(init.pid.cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    for _ in 0..20 {
        signal(&[], &["-q", "1", "-s", RENEW], init.pid);
    }
    kill_process(pid, Signal::TERM).unwrap();
    let (status, _) = end_with(init, Signal::CONT);
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[tokio::test]
async fn without_the_capability_it_says_so_by_its_exit_code() {
    let child = Command::new("unshare")
        .args(["-fp", "--kill-child", "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all"])
        .arg(program())
        .spawn()
        .unwrap();
    let mut init = Init { pid: 0, child };
    init.pid = wait_until("unshare has a child", || children(init.child.id()).first().copied());
    wait_until("the init waits for signals", || waits_for_signals(init.pid).then_some(()));
    assert!(matches!(hold(&init).renew(2, WITHIN).await, Err(RenewError::Gone { .. })));
    let status = wait_until("the init has ended", || init.child.try_wait().unwrap());
    assert_eq!(status.code().map(i64::from), Some(EXIT_CANNOT_RENEW), "{status:?}");
}
