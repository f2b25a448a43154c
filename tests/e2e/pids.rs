//! Pid namespaces without a container engine: each has a first process of nspool's, which is of no use to who is in there, and goes with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nspool::proto;

use super::fresh::{address, one_slot, own};
use super::helper::helpers;
use crate::support::daemon::{LIMIT, NSPOOL, TestDaemon, is_init, kill, text};
use crate::support::engines::native;

const PIDS: &str = "pool.namespaces = [\"net\", \"ipc\", \"uts\", \"pid\"]";

async fn started(more: &[&str]) -> TestDaemon<'static> {
    let (lines, _) = own(&[&[PIDS][..], more].concat());
    TestDaemon::start(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// In the lease's namespaces, and with files in /proc as they look from there.
fn inside(lease: &proto::Lease, command: &str) -> Result<String, String> {
    let mut enter = enter(lease);
    let command = format!("mount -t proc proc /proc && {command}");
    let output = enter.args(["unshare", "--mount", "sh", "-c", &command]).output().unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

pub(super) fn enter(lease: &proto::Lease) -> Command {
    let mut command = Command::new("nsenter");
    command.args(lease.oci_namespaces.iter().map(|namespace| match namespace.r#type.as_str() {
        "network" => format!("--net={}", namespace.path),
        kind => format!("--{kind}={}", namespace.path),
    }));
    command
}

/// A process that stays inside until it is killed from there, or with the namespace.
fn stays(lease: &proto::Lease) -> Child {
    let mut child = enter(lease).args(["sh", "-c", "echo in; exec sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    child
}

fn identity(pid: u32, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_use_has_a_pid_namespace_of_its_own() {
    let daemon = started(&one_slot()).await;
    let client = daemon.client();
    let mut before = None;
    for _ in 1..=3 {
        let lease = daemon.allocate(&client).await;
        let [init] = daemon.inits()[..] else { panic!("{:?}", daemon.inits()) };
        assert_ne!(before, Some(init), "another one for each use");
        let seen = inside(&lease, "cat /proc/1/comm; echo /proc/[0-9]*; ip -o addr; hostname evil; sleep 1000 >&- 2>&- & true").unwrap();
        assert!(seen.starts_with("init\n") && seen.contains(address(&lease)), "{seen}");
        let processes = seen.lines().nth(1).unwrap().split(' ').count();
        assert_eq!(processes, 2, "the first one and the shell: {seen}");
        // What it has left behind: the slot would wait for it.
        let left = inside(&lease, "kill -9 $(pidof sleep) && while pidof sleep > /dev/null; do :; done");
        left.unwrap();
        client.release(&lease.token, false).await.unwrap();
        daemon.level("the first process to end", |_| async { (!is_init(init)).then_some(()) }).await;
        assert!(!Path::new(&lease.netns_path).exists() && inside(&lease, "true").is_err());
        daemon.settled(1).await;
        before = Some(init);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_process_has_no_rights_and_nothing_to_see() {
    let daemon = started(&["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    let inits = daemon.inits();
    assert_eq!(inits.len(), 2);
    for init in &inits {
        let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        for line in [
            "CapEff:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.contains(line), "{line} in\n{status}");
        }
        let files: Vec<_> = std::fs::read_dir(format!("/proc/{init}/root/")).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, ["init"]);
        let mounts = std::fs::read_to_string(format!("/proc/{init}/mounts")).unwrap();
        assert!(mounts.lines().count() == 1 && mounts.contains(" ro,"), "{mounts}");
        let open = std::fs::read_dir(format!("/proc/{init}/fd")).unwrap().map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap());
        assert_eq!(open.collect::<Vec<_>>(), [Path::new("/dev/null"); 3]);
        for kind in ["mnt", "net", "ipc", "uts"] {
            assert_ne!(identity(*init, kind), identity(std::process::id(), kind), "{kind}");
            assert_eq!(identity(*init, kind), identity(inits[0], kind), "all are in one cell: {kind}");
        }
    }
    let lease = daemon.allocate(&daemon.client()).await;
    let seen = inside(&lease, "readlink /proc/1/ns/net /proc/self/ns/net").unwrap();
    assert_ne!(seen.lines().next(), seen.lines().nth(1), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_in_the_pid_namespace_alone_keeps_the_slot() {
    let daemon = started(&one_slot()).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let path = &lease.oci_namespaces.iter().find(|namespace| namespace.r#type == "pid").unwrap().path;
    let mut command = Command::new("nsenter");
    let mut child =
        command.args([&format!("--pid={path}"), "sh", "-c", "echo in; exec sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    let [init] = daemon.inits()[..] else { panic!("{:?}", daemon.inits()) };
    client.release(&lease.token, false).await.unwrap();
    daemon.slot(0, "quarantine", |slot| slot.state == "quarantined" && !slot.joiners.is_empty()).await;
    assert!(is_init(init) && child.try_wait().unwrap().is_none(), "nobody is ended who is still inside");
    // nsenter waits for it: ended from inside.
    let sleeper = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    kill("KILL", sleeper.trim().parse().unwrap());
    child.wait().unwrap();
    daemon.settled(1).await;
    assert!(!is_init(init));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_daemons_and_helpers_take_no_namespace_along_and_a_stop_leaves_none() {
    let mut daemon = started(&["pool.ready = 1", "pool.max = 2"]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    daemon.settled_but_leased(1).await;
    let mut child = stays(&lease);
    let before = daemon.inits();
    assert_eq!(before.len(), 2);
    kill("KILL", helpers(&daemon).await.1);
    daemon.kill();
    assert_eq!(daemon.inits(), before);
    daemon.launch().await;
    daemon.usage("what was there", |usage| usage.ready == 1 && usage.leased == 1).await;
    assert_eq!(daemon.inits(), before);
    assert!(child.try_wait().unwrap().is_none() && inside(&lease, "ip -o addr").unwrap().contains(address(&lease)));
    let sleeper = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    kill("KILL", sleeper.trim().parse().unwrap());
    child.wait().unwrap();
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.usage("all ready", |usage| usage.leased + usage.vacating + usage.retiring == 0).await;
    let last = daemon.inits();
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!((daemon.mounts().len(), last.iter().filter(|pid| is_init(**pid)).count()), (0, 0), "{last:?}");
    assert!(before.iter().all(|pid| !is_init(*pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_first_process_is_killed_is_lost() {
    let daemon = started(&one_slot()).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let mut child = stays(&lease);
    let [init] = daemon.inits()[..] else { panic!("{:?}", daemon.inits()) };
    kill("KILL", init);
    // The kernel ends all who are in there.
    assert!(!child.wait().unwrap().success());
    let lost = |client: nspool::client::Client| {
        let token = lease.token.clone();
        async move { (client.lease(&token).await.ok()?.state() == proto::LeaseState::Lost).then_some(()) }
    };
    daemon.level("the lease to be lost", lost).await;
    client.release(&lease.token, false).await.unwrap();
    daemon.settled(1).await;
    assert_ne!(daemon.inits(), [init]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_ends_the_first_processes_of_a_dead_pool() {
    let mut daemon = started(&["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    daemon.kill();
    let left = daemon.inits();
    assert_eq!(left.len(), 2);
    let namespaces = daemon.dir.path().join("ns").display().to_string();
    let purged = daemon.cli(&["purge", "--pool", &daemon.pool, "--engine", "native", "--namespaces", &namespaces]);
    assert!(purged.status.success(), "{}{}", text(&purged.stdout), text(&purged.stderr));
    assert!(left.iter().all(|pid| !is_init(*pid)) && daemon.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_started_in_the_pid_namespace() {
    let daemon = started(&one_slot()).await;
    let exec = |program: &str| {
        let output =
            daemon.cli(&["exec", "--wait", "60s", "--", "unshare", "--mount", "sh", "-c", &format!("mount -t proc proc /proc; {program}")]);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = exec("cat /proc/1/comm; ip -o addr; echo $$; exit 7");
    assert_eq!((code, err.as_str()), (Some(7), ""), "{out}");
    assert!(out.starts_with("init\n") && out.contains("eth0") && out.trim_end().ends_with("\n2"), "{out}");
    daemon.settled(1).await;

    // It ends with who started it.
    let mut command = daemon.cli_of(NSPOOL.as_ref(), &["exec", "--wait", "60s", "--", "sh", "-c", "echo in; exec sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    let [init] = daemon.inits()[..] else { panic!("{:?}", daemon.inits()) };
    assert_eq!(sleepers(init), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    let alone = || async { (sleepers(init) == 0).then_some(()) };
    crate::support::eventually("the program's end", LIMIT, alone).await;
}

/// Processes in that one's pid namespace, beside it.
fn sleepers(init: u32) -> usize {
    let Ok(namespace) = std::fs::read_link(format!("/proc/{init}/ns/pid")) else { return 0 };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != init && std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|other| other == namespace)).count()
}
