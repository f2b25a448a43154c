//! `nspool exec`: a plain program in a lease's namespaces, as somebody types it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nspool::client::Request;
use nspool::proto;

use super::fresh::{address, one_slot, own, started};
use crate::support::daemon::{LIMIT, NSPOOL, TestDaemon, kill, load_busybox, text};
use crate::support::engines::{docker, native};

/// With one slot.
async fn one(more: &[&str]) -> TestDaemon<'static> {
    let (lines, _) = own(&[&one_slot()[..], more].concat());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    TestDaemon::start(native(), &lines).await
}

fn exec(daemon: &TestDaemon<'_>, words: &[&str]) -> Output {
    daemon.cli(&[&["exec", "--wait", "60s"], words].concat())
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The slot is ready again, for that use: the lease went back without doubt, and nobody was inside.
async fn renewed(daemon: &TestDaemon<'_>, number: u64) {
    daemon.slot(0, "the next use", |slot| slot.r#use == number && slot.state == "ready").await;
    assert_eq!(daemon.log().matches("buddy ready").count(), 1, "no other buddy was made:\n{}", daemon.log());
}

/// A program that is inside, and says so on its first line.
struct Inside {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Inside {
    fn start(daemon: &TestDaemon<'_>, program: &str) -> Self {
        let mut command = daemon.cli_of(NSPOOL.as_ref(), &["exec", "--wait", "60s", "--", "sh", "-c", program]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), text(&output.stderr))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_in_the_leases_namespaces_and_each_use_is_a_new_one() {
    let daemon = one(&["pool.namespaces = [\"net\", \"ipc\", \"uts\"]"]).await;
    let mut addresses = std::collections::BTreeSet::new();
    for number in 1..=3 {
        let look = "echo $NSPOOL_IP_ADDRESS; echo $NSPOOL_NETNS_PATH; echo $NSPOOL_NAMESPACE_ID; hostname; ip -o addr; ip route; ipcs -m; \
                    hostname evil; ipcmk -M 7654321; ip link add dirt0 type veth peer name dirt1";
        let (code, out, err) = said(&exec(&daemon, &["--", "sh", "-c", look]));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        let [ip, path, id, ..] = out.lines().collect::<Vec<_>>()[..] else { panic!("{out}") };
        assert!(out.contains(&format!("inet {ip}/")) && out.contains("default via"), "{out}");
        assert_eq!(Path::new(path), daemon.dir.path().join("ns").join(&daemon.pool).join(id).join("net"));
        assert!(!out.contains("evil") && !out.contains("7654321") && !out.contains("dirt0"), "use {number}:\n{out}");
        assert!(addresses.insert(ip.to_owned()), "{ip} again");
        // The lease ends first, its path with the fence, which is before the next use.
        renewed(&daemon, number + 1).await;
        assert!(!Path::new(path).exists(), "it is fenced");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_output_and_exit_codes_are_handed_on() {
    let daemon = one(&[]).await;
    let mut command = daemon.cli_of(NSPOOL.as_ref(), &["exec", "--wait", "60s", "--", "sh", "-c", "cat; echo err >&2; exit 7"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"what came in").unwrap();
    assert_eq!(said(&child.wait_with_output().unwrap()), (Some(7), "what came in".into(), "err".into()));
    // What looks like an option of ours is the program's, with and without the dashes.
    assert_eq!(said(&exec(&daemon, &["echo", "--wait", "-o", "--"])).1, "--wait -o --");
    assert_eq!(exec(&daemon, &["--", "sh", "-c", "kill -USR1 $$"]).status.code(), Some(128 + 10));
    renewed(&daemon, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_be_started_is_told_as_a_shell_does() {
    let daemon = one(&[]).await;
    let (code, _, err) = said(&exec(&daemon, &["--", "no-such-program"]));
    assert_eq!((code, err.as_str()), (Some(127), "nspool: no-such-program: not found"));
    let file = daemon.dir.path().join("no-program");
    std::fs::write(&file, "x").unwrap();
    let (code, _, err) = said(&exec(&daemon, &["--", file.to_str().unwrap()]));
    assert_eq!(code, Some(126), "{err}");
    assert!(err.contains("no-program") && err.contains("Permission denied"), "{err}");
    renewed(&daemon, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_signal_is_handed_on_and_a_second_one_ends_the_program() {
    let daemon = one(&[]).await;
    // They wait without a process of their own, which would be left behind: what is not written comes never.
    let waits = "while :; do read never; done";
    let mut polite = Inside::start(&daemon, &format!("trap 'echo told; exit 3' TERM; echo in; {waits}"));
    assert_eq!(polite.line(), "in");
    kill("TERM", polite.child.id());
    assert_eq!(polite.line(), "told");
    let (code, err) = polite.end();
    assert_eq!(code, Some(3), "{err}");
    renewed(&daemon, 2).await;

    let mut deaf = Inside::start(&daemon, &format!("trap 'echo told' INT; echo in; {waits}"));
    assert_eq!(deaf.line(), "in");
    kill("INT", deaf.child.id());
    assert_eq!(deaf.line(), "told");
    kill("INT", deaf.child.id());
    let (code, err) = deaf.end();
    assert_eq!(code, Some(137), "{err}");
    assert!(err.contains("SIGINT: handed on") && err.contains("SIGINT: ending the program"), "{err}");
    renewed(&daemon, 3).await;
}

/// `script` is the terminal, whose other end is its standard input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_typed_on_a_terminal_reaches_the_program_once() {
    let daemon = one(&[]).await;
    let program = "trap 'n=$((n+1)); echo told $n' INT; echo in; read one; read two; echo count $n; exit 4";
    let line = format!("exec {NSPOOL} exec --wait 60s -- sh -c '{}'", program.replace('\'', "'\\''"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("NSPOOL_ENDPOINT", daemon.endpoint()).env("SHELL", "/bin/sh");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut typed = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut until = |word: &str| lines.find(|line| line.contains(word)).unwrap_or_else(|| panic!("it ended before {word:?}"));
    until("in");
    typed.write_all(b"\x03").unwrap();
    until("handed on");
    typed.write_all(b"\n\n\n").unwrap();
    assert_eq!(until("count").trim(), "count 1");
    assert_eq!(child.wait().unwrap().code(), Some(4));
    renewed(&daemon, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_ends_with_who_started_it() {
    let daemon = one(&[]).await;
    let another = "setpriv --pdeathsig keep --reuid 1000 --regid 1000 --clear-groups";
    let mut inside = Inside::start(&daemon, &format!("echo $$; exec {another} sh -c 'id -u; exec sleep 1000'"));
    let pid: u32 = inside.line().parse().unwrap();
    assert_eq!(inside.line(), "1000");
    kill("KILL", inside.child.id());
    assert!(inside.lines.next().is_none(), "the other end is closed by the program's end");
    assert_eq!(inside.end().0, None);
    daemon.level("the program's end", |_| async move { (!Path::new(&format!("/proc/{pid}/ns/net")).exists()).then_some(()) }).await;
    let leases = daemon.client().leases().await.unwrap();
    assert!(leases[0].expires_at.is_some() && leases[0].owner == "nspool-exec", "its lease ends by itself: {leases:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_leaves_inside_keeps_the_slot_and_is_said() {
    let daemon = one(&[]).await;
    let left = "sleep 1000 < /dev/null > /dev/null 2>&1 & echo $!";
    let (code, pid, err) = said(&exec(&daemon, &["--", "sh", "-c", left]));
    assert_eq!(code, Some(0), "{err}");
    let slot = daemon.slot(0, "quarantine", |slot| slot.state == "quarantined").await;
    assert!(slot.joiners.iter().any(|who| who.contains(&pid)), "{slot:?}");
    kill("KILL", pid.parse().unwrap());
    daemon.settled(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_one_has_is_used_and_kept() {
    let daemon = one(&[]).await;
    let client = daemon.client();
    let lease = client.allocate(Request::new().wait(LIMIT).ttl(LIMIT * 10)).await.unwrap().keep();
    for _ in 0..2 {
        let (code, out, err) = said(&daemon.cli(&["exec", "--token", &lease.token, "sh", "-c", "ip -o addr; echo token $NSPOOL_TOKEN."]));
        assert_eq!(code, Some(0), "{err}");
        assert!(out.contains(address(&lease)) && out.contains("token ."), "{out}");
    }
    let mut by_variable = daemon.cli_of(NSPOOL.as_ref(), &["exec", "--", "env"]);
    let (code, out, err) = said(&by_variable.env("NSPOOL_TOKEN", &lease.token).output().unwrap());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(&format!("NSPOOL_IP_ADDRESS={}", address(&lease))) && !out.contains("NSPOOL_TOKEN"), "{out}");
    assert_eq!(client.lease(&lease.token).await.unwrap().state(), proto::LeaseState::Active);

    let (code, _, err) = said(&daemon.cli(&["exec", "--token", &"0".repeat(32), "true"]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("nspool leases"), "{err}");
    let (code, _, err) = said(&daemon.cli(&["exec", "--token", &lease.token, "--tenant", "t", "true"]));
    assert_eq!(code, Some(64), "{err}");
    client.release(&lease.token, false).await.unwrap();
    let (code, _, err) = said(&daemon.cli(&["exec", "--token", &lease.token, "true"]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("ended") || err.contains("released"), "{err}");
}

/// The program is about to join when the lease ends: what the lease's holder passed on leads nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_join_finds_no_path() {
    let daemon = one(&[]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let late = || {
        let mut words = vec!["helper".to_owned(), "join".into(), std::process::id().to_string(), lease.oci_namespaces.len().to_string()];
        words.extend(lease.oci_namespaces.iter().map(|namespace| format!("{}={}", namespace.r#type, namespace.path)));
        said(&Command::new(NSPOOL).args(words).args(["ip", "-o", "addr"]).output().unwrap())
    };
    let (code, out, err) = late();
    assert!(code == Some(0) && out.contains(address(&lease)), "{out}{err}");
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(1).await;
    let (code, out, err) = late();
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("the lease has ended") && err.contains(&lease.netns_path), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_pool_and_a_daemon_that_is_away_are_told_apart() {
    let mut daemon = one(&[]).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let (code, _, err) = said(&daemon.cli(&["exec", "--wait", "50ms", "true"]));
    assert_eq!(code, Some(75), "{err}");
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.kill();
    let (code, _, err) = said(&daemon.cli(&["exec", "--wait", "50ms", "true"]));
    assert_eq!(code, Some(69), "{err}");
    assert!(err.contains("no connection to the daemon"), "{err}");
}

/// The program goes on, and so does its lease: the next daemon has it from the ledger, and is asked to renew it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_takes_nothing_from_a_program() {
    let mut daemon = one(&[]).await;
    let mut inside = Inside::start(&daemon, "echo $NSPOOL_IP_ADDRESS; read line; ip -o addr; exit 5");
    let ip = inside.line();
    let expiry = |lease: &proto::Lease| lease.expires_at.map(|at| (at.seconds, at.nanos));
    let before = expiry(&daemon.client().leases().await.unwrap()[0]);
    daemon.kill();
    daemon.launch().await;
    let renewed = |client: nspool::client::Client| async move { (expiry(client.leases().await.ok()?.first()?) > before).then_some(()) };
    daemon.level("the lease to be renewed", renewed).await;
    writeln!(inside.child.stdin.as_ref().unwrap()).unwrap();
    let seen: Vec<String> = inside.lines.by_ref().map(Result::unwrap).collect();
    assert!(seen.iter().any(|line| line.contains(&format!("inet {ip}/"))), "{seen:?}");
    let (code, err) = inside.end();
    assert_eq!(code, Some(5), "{err}");
    daemon.settled(1).await;
}

/// As `nobody`, whose groups are none.
fn as_nobody(daemon: &TestDaemon<'_>, launcher: &[&str]) -> (Option<i32>, String, String) {
    // Another user sees neither the build's folder nor the test's.
    let program = daemon.dir.path().join("nspool");
    if !program.exists() {
        // By another process, so that no child of another test's has it open for writing when it is to be run.
        assert!(Command::new("cp").arg(NSPOOL).arg(&program).status().unwrap().success());
    }
    std::fs::set_permissions(daemon.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(launcher).arg(program);
    command.args(["exec", "--wait", "1s", "--", "id", "-u"]).env("NSPOOL_ENDPOINT", daemon.endpoint()).env_remove("NSPOOL_TOKEN");
    said(&command.stdin(Stdio::null()).output().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_told_what_is_missing() {
    let daemon = one(&[]).await;
    daemon.settled(1).await;
    let (code, _, err) = as_nobody(&daemon, &[]);
    assert_eq!(code, Some(77), "{err}");
    assert!(err.contains("The socket is for root") && !err.contains("CAP_SYS_ADMIN"), "{err}");
    std::fs::set_permissions(&daemon.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (code, _, err) = as_nobody(&daemon, &[]);
    assert_eq!(code, Some(77), "{err}");
    assert!(err.contains("CAP_SYS_ADMIN") && err.contains("sudo") && err.contains("AmbientCapabilities="), "{err}");
    assert_eq!(daemon.usage("nothing taken", |_| true).await.allocations, 0, "no lease was used up for it");
    // Of a user namespace of its own it has all rights, and of the lease's namespaces none.
    let (code, _, err) = as_nobody(&daemon, &["unshare", "--user", "--map-root-user"]);
    assert_eq!(code, Some(77), "{err}");
    assert!(err.contains("not allowed to join") && err.contains("CAP_SYS_ADMIN"), "{err}");
    daemon.settled(1).await;
    // That right alone is enough.
    let (code, out, err) = as_nobody(&daemon, &["--inh-caps=+sys_admin", "--ambient-caps=+sys_admin"]);
    assert_eq!((code, out.as_str()), (Some(0), "65534"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_needs_an_engine_and_says_what_does_not() {
    let daemon = one(&[]).await;
    let (code, _, err) = said(&daemon.cli(&["run", "--wait", "60s", "busybox", "true"]));
    assert_eq!(code, Some(69), "{err}");
    assert!(err.contains("no container engine") && err.contains("nspool exec"), "{err}");
    renewed(&daemon, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_container_engine_a_program_joins_by_path_too() {
    load_busybox(docker());
    let (daemon, _) = started(docker(), &one_slot()).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let (code, out, err) = said(&daemon.cli(&["exec", "--token", &lease.token, "ip", "-o", "addr"]));
    assert!(code == Some(0) && out.contains(address(&lease)), "{out}{err}");
}
