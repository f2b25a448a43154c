//! The aarch64 init, compiled with Debian's cross compiler and run under user-mode emulation: the same promises as on x86_64, as far as an
//! emulated process can show them.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const COMPILER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";

/// A missing tool fails the test: a test that is skipped in silence promises nothing.
fn require(tool: &str, package: &str) {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(found.is_ok_and(|status| status.success()), "{tool} is missing: apt-get install {package}");
}

fn compile(into: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image");
    let flags = std::fs::read_to_string(root.join("init.flags")).unwrap();
    let program = into.join("init");
    let output = Command::new(COMPILER)
        .args(flags.lines().filter(|line| !line.starts_with('#') && !line.is_empty()))
        .args(["-Werror", "-o"])
        .arg(&program)
        .arg(root.join("init.c"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::metadata(&program).unwrap().permissions().mode() & 0o111, 0o111);
    program
}

#[test]
fn the_aarch64_init_waits_and_leaves_on_term() {
    require(COMPILER, "gcc-aarch64-linux-gnu");
    require(EMULATOR, "qemu-user-static");
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path());
    let bytes = std::fs::read(&program).unwrap();
    let again = tempfile::tempdir().unwrap();
    assert_eq!(bytes, std::fs::read(compile(again.path())).unwrap(), "the same compiler gives the same bytes, wherever");
    assert_eq!(bytes[18..20], [183, 0], "not an aarch64 executable");
    assert!(bytes.len() < 4096, "{} bytes", bytes.len());

    let function = Command::new(EMULATOR).arg(&program).arg("exit").status().unwrap();
    assert_eq!(function.code(), Some(0), "with the argument exit it ends at once");
    for signal in [Signal::TERM, Signal::INT] {
        let (status, calls) = run(&program, signal);
        assert_eq!(status.code(), Some(0), "{signal:?}: {status:?}, after {calls:?}");
        // What the default seccomp profiles are known to let through, and nothing else.
        assert_eq!(calls, ["rt_sigprocmask", "rt_sigtimedwait", "exit_group"], "{signal:?}");
    }
}

/// The emulator keeps two real-time signals for itself: 44 here is 42, `RENEW` of init.c, in there.
const RENEW: &str = "44";

#[test]
fn the_aarch64_init_renews_its_network_namespace_for_the_next_number_alone() {
    require(COMPILER, "gcc-aarch64-linux-gnu");
    require(EMULATOR, "qemu-user-static");
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path());
    // The first process of a pid namespace, so that what is sent comes from outside.
    let mut child = Command::new("timeout")
        .args(["-s", "KILL", "20", "unshare", "-fp", "--kill-child", EMULATOR, "-strace"])
        .arg(&program)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = ["3", "2", "2"].into_iter();
    let mut calls = Vec::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut word = Vec::new();
    while lines.read_until(b'(', &mut word).unwrap() > 0 {
        let text = String::from_utf8_lossy(&word).into_owned();
        word.clear();
        let Some((_, name)) = text.trim_end_matches('(').lines().last().and_then(|line| line.split_once(' ')) else { continue };
        calls.push(name.to_owned());
        if name == "rt_sigtimedwait" {
            let init = only_child(only_child(child.id()));
            let options = orders.next().map_or(vec!["-s", "TERM"], |number| vec!["-q", number, "-s", RENEW]);
            assert!(Command::new("/bin/kill").args(options).arg(init.to_string()).status().unwrap().success());
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "{calls:?}");
    let wait = "rt_sigtimedwait";
    assert_eq!(calls, ["rt_sigprocmask", wait, wait, "unshare", wait, wait, "exit_group"]);
}

fn only_child(pid: u32) -> u32 {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().parse().unwrap()
}

/// Sends `signal` once the program waits for it. Gives back how it ended and its system calls, as the emulator tells them.
fn run(program: &Path, signal: Signal) -> (ExitStatus, Vec<String>) {
    // The timeout ends what hangs, and with it the reading below.
    let mut child =
        Command::new("timeout").args(["-s", "KILL", "20", EMULATOR, "-strace"]).arg(program).stderr(Stdio::piped()).spawn().unwrap();
    let mut calls = Vec::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    // A call is written before it is made and its result after: so a waiting one is half a line, `pid name(`.
    let mut word = Vec::new();
    while lines.read_until(b'(', &mut word).unwrap() > 0 {
        let text = String::from_utf8_lossy(&word).into_owned();
        word.clear();
        let Some((pid, name)) = text.trim_end_matches('(').lines().last().and_then(|line| line.split_once(' ')) else { continue };
        calls.push(name.to_owned());
        if name == "rt_sigtimedwait" && calls.len() == 2 {
            kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), signal).unwrap();
        }
    }
    (child.wait().unwrap(), calls)
}
