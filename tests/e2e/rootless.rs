//! Without root: a pool of one's own in a user namespace, whose slots have loopback alone.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use crate::support::daemon::{LIMIT, NSPOOL, TestDaemon, text};
use crate::support::engines::native;
use crate::support::eventually;

/// Nobody in particular.
const USER: [&str; 6] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
/// What `docs/native.md` says.
pub(super) const ALONE: [&str; 4] = ["unshare", "-Urnmpf", "--kill-child", "--mount-proc"];

/// A daemon's folder that the user can use, with the program in it.
pub(super) fn prepared(lines: &[&str]) -> TestDaemon<'static> {
    let mut daemon = TestDaemon::prepare(native(), &[&["pool.networks = [\"none\"]", "pool.ready = 2", "pool.max = 2"], lines].concat());
    let program = daemon.dir.path().join("program");
    // By another process: a child that another test forks while this one has the file open for writing would keep it from being run.
    assert!(Command::new("cp").arg(NSPOOL).arg(&program).status().unwrap().success());
    std::fs::set_permissions(daemon.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(daemon.dir.path(), Some(65534), Some(65534)).unwrap();
    daemon.program = program;
    daemon
}

pub(super) fn command(daemon: &TestDaemon<'_>, alone: &[&str]) -> Command {
    let mut command = daemon.command(&[&USER[..], alone].concat());
    command.env("XDG_RUNTIME_DIR", daemon.dir.path());
    command
}

/// The words that lead into the daemon's own namespaces, as its user.
pub(super) fn enter(pid: u32) -> Vec<String> {
    let enter = ["nsenter", "-t", &pid.to_string(), "-U", "-n", "-m", "-p", "--preserve-credentials"].map(str::to_owned);
    USER.map(str::to_owned).into_iter().chain(enter).collect()
}

/// A client in there.
pub(super) fn beside(daemon: &TestDaemon<'_>, pid: u32, words: &[&str]) -> Output {
    let enter = enter(pid);
    let client = [&daemon.program.display().to_string(), "--endpoint", &daemon.endpoint()].map(str::to_owned);
    Command::new(&enter[0]).args(&enter[1..]).args(client).args(words).output().unwrap()
}

/// Of the daemon that is below `unshare`, as this process counts.
pub(super) async fn daemons_pid(daemon: &TestDaemon<'_>) -> u32 {
    let child = || async {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).ok()?;
        children.split_whitespace().next()?.parse().ok()
    };
    eventually("the daemon below unshare", LIMIT, child).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_has_a_pool_of_their_own_in_a_user_namespace() {
    let mut daemon = prepared(&[]);
    daemon.launch_as(command(&daemon, &ALONE)).await;
    let inside = daemons_pid(&daemon).await;
    let seen = || {
        let ran = beside(
            &daemon,
            inside,
            &["exec", "--wait", "20s", "--", "sh", "-c", "readlink /proc/self/ns/net; ip -o addr; ip addr add 192.0.2.7/32 dev lo"],
        );
        assert!(ran.status.success(), "{}{}", text(&ran.stdout), daemon.log());
        text(&ran.stdout)
    };
    let (first, next) = (seen(), seen());
    let own = std::fs::read_link(format!("/proc/{inside}/ns/net")).unwrap().display().to_string();
    for seen in [&first, &next] {
        assert!(seen.contains("127.0.0.1/8") && !seen.contains(&own) && seen.lines().all(|line| !line.contains("eth")), "{seen}");
    }
    // Numbers are given out again: what one has left is not there for the next.
    assert!(!next.contains("192.0.2.7"), "each has a namespace of its own:\n{next}");
    daemon.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_network_namespace_of_its_own_it_says_so_at_the_start() {
    let mut daemon = prepared(&[]);
    daemon.spawn(command(&daemon, &["unshare", "-Urmpf", "--kill-child", "--mount-proc"]));
    assert_eq!(daemon.exit_code(LIMIT).await, 77, "{}", daemon.log());
    daemon.says("going into this process's own network namespace").await;
}
