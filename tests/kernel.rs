//! `netns::linux` on the kernel that the tests run on: holding a process, seeing it end, finding who else is inside, renewals that are none. Needs root.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nspool::engine::NamespaceKind;
use nspool::netns::linux::Linux;
use nspool::netns::{Kernel, KernelError, RenewError, WrongAnswer};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

/// A process in namespaces of its own, ended and reaped with the test.
struct Buddy(Child);

impl Buddy {
    /// With `options` of unshare(1). Comes back when it is inside.
    fn start(options: &[&str]) -> Self {
        let mut child = Command::new("unshare")
            .args(options)
            .args(["sh", "-c", "echo inside; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "inside\n");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Buddy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_held_process_is_seen_to_end_within_100_ms() {
    let mut shortest = Duration::MAX;
    // The host may be busy with something else.
    for _ in 0..10 {
        shortest = shortest.min(seen_to_end_after().await);
        if shortest < Duration::from_millis(100) {
            return;
        }
    }
    panic!("{shortest:?} at best");
}

async fn seen_to_end_after() -> Duration {
    let kernel = Linux::new();
    let mut buddy = Buddy::start(&["--net", "--ipc"]);
    let held = kernel.hold_now(buddy.pid(), &[NamespaceKind::Ipc]).unwrap();
    assert_eq!(held.pid(), buddy.pid());
    assert!(held.is_alive());
    assert!(timeout(Duration::from_millis(50), held.exited()).await.is_err(), "it has not ended");

    let start = Instant::now();
    buddy.0.kill().unwrap();
    // Three waiters, nobody reaps it: a zombie has ended.
    timeout(LIMIT, async { tokio::join!(held.exited(), held.exited(), held.exited()) }).await.unwrap();
    let took = start.elapsed();
    assert!(!held.is_alive());
    timeout(LIMIT, held.exited()).await.expect("at once when it had ended");
    assert!(held.namespace(NamespaceKind::Net).is_some(), "what is held stays known");

    assert!(matches!(kernel.hold_now(buddy.pid(), &[]), Err(KernelError::Gone { .. })), "a zombie cannot be taken hold of");
    let pid = buddy.pid();
    buddy.0.wait().unwrap();
    assert!(matches!(kernel.hold_now(pid, &[]), Err(KernelError::Gone { .. })));
    std::mem::forget(buddy);
    took
}

#[tokio::test]
async fn a_namespace_of_ones_own_is_not_the_hosts() {
    let kernel = Linux::new();
    let buddy = Buddy::start(&["--net", "--ipc"]);
    let held = kernel.hold_now(buddy.pid(), &[NamespaceKind::Net, NamespaceKind::Ipc]).unwrap();
    for kind in [NamespaceKind::Net, NamespaceKind::Ipc] {
        assert_ne!(held.namespace(kind).unwrap(), kernel.host_namespace(kind).unwrap(), "{kind:?}");
    }
    assert_eq!(held.namespace(NamespaceKind::Pid), None, "not held with it");
    // The same process without namespaces of its own has the host's.
    let plain = Buddy::start(&["--uts"]);
    let plain = kernel.hold_now(plain.pid(), &[]).unwrap();
    assert_eq!(plain.namespace(NamespaceKind::Net).unwrap(), kernel.host_namespace(NamespaceKind::Net).unwrap());
}

#[tokio::test]
async fn members_are_processes_even_by_one_thread() {
    let kernel = Linux::new();
    let buddies = [Buddy::start(&["--net"]), Buddy::start(&["--net"])];
    let held: Vec<_> = buddies.iter().map(|buddy| kernel.hold_now(buddy.pid(), &[]).unwrap()).collect();
    let ids: Vec<_> = held.iter().map(|held| held.namespace(NamespaceKind::Net).unwrap()).collect();
    let pids = |members: &nspool::netns::Members, id| members[id].iter().map(|process| process.pid).collect::<Vec<_>>();

    let joiner = Command::new("nsenter").args(["-t", &buddies[0].pid().to_string(), "-n", "sleep", "1000"]).spawn().unwrap();
    let joiner = Buddy(joiner);
    support_wait(|| {
        let proc = format!("/proc/{}", joiner.pid());
        std::fs::metadata(format!("{proc}/ns/net")).is_ok_and(|m| std::os::unix::fs::MetadataExt::ino(&m) == ids[0].ino)
            && std::fs::read_to_string(format!("{proc}/comm")).is_ok_and(|name| name == "sleep\n")
    });
    let members = kernel.members(NamespaceKind::Net, &ids).await.unwrap();
    let mut expected = [buddies[0].pid(), joiner.pid()];
    expected.sort_unstable();
    assert_eq!(pids(&members, &ids[0]), expected);
    assert_eq!(members[&ids[0]].iter().find(|process| process.pid == joiner.pid()).unwrap().command, "sleep");
    assert_eq!(pids(&members, &ids[1]), [buddies[1].pid()]);

    // One thread of this process joins the second.
    let namespace = File::open(format!("/proc/{}/ns/net", buddies[1].pid())).unwrap();
    let (inside, is_inside) = tokio::sync::oneshot::channel();
    let (leave, told_to_leave) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).unwrap();
        inside.send(rustix::thread::gettid()).unwrap();
        told_to_leave.blocking_recv().unwrap();
    });
    let thread_id = is_inside.await.unwrap();
    let members = kernel.members(NamespaceKind::Net, &ids[1..]).await.unwrap();
    assert!(pids(&members, &ids[1]).contains(&std::process::id()), "{members:?}");
    leave.send(()).unwrap();
    thread.join().unwrap();
    // The kernel takes it out of its namespaces after that.
    support_wait(|| !std::path::Path::new(&format!("/proc/self/task/{}", thread_id.as_raw_nonzero())).exists());

    // Held open, so that it is still the same namespace; nobody is in it.
    let [first, second] = buddies;
    drop((first, joiner));
    let members = kernel.members(NamespaceKind::Net, &ids).await.unwrap();
    assert_eq!(pids(&members, &ids[0]), [] as [u32; 0], "asked for, so it is there, empty");
    assert_eq!(pids(&members, &ids[1]), [second.pid()]);
}

#[tokio::test]
async fn a_thousand_questions_at_once_are_answered_by_few_looks() {
    let kernel = Linux::new();
    let buddy = Buddy::start(&["--net"]);
    let id = [kernel.hold_now(buddy.pid(), &[]).unwrap().namespace(NamespaceKind::Net).unwrap()];
    let start = Instant::now();
    kernel.members(NamespaceKind::Net, &id).await.unwrap();
    let one = start.elapsed();
    let start = Instant::now();
    let all = futures::future::join_all((0..1000).map(|_| kernel.members(NamespaceKind::Net, &id))).await;
    assert!(all.into_iter().all(|members| members.unwrap()[&id[0]].len() == 1));
    assert!(start.elapsed() < one * 200 + Duration::from_millis(200), "one {one:?}, a thousand {:?}", start.elapsed());
}

#[tokio::test]
async fn processes_that_come_and_go_do_not_disturb_a_look() {
    let kernel = Linux::new();
    let buddy = Buddy::start(&["--net"]);
    let id = [kernel.hold_now(buddy.pid(), &[]).unwrap().namespace(NamespaceKind::Net).unwrap()];
    let _churn = Buddy(Command::new("sh").args(["-c", "while :; do /bin/true; done"]).spawn().unwrap());
    for _ in 0..50 {
        let members = kernel.members(NamespaceKind::Net, &id).await.unwrap();
        assert_eq!(members[&id[0]].len(), 1, "{members:?}");
    }
}

#[tokio::test]
async fn a_process_of_many_threads_is_not_told_to_move() {
    let held = Linux::new().hold_now(std::process::id(), &[]).unwrap();
    // The signal would end this process, had it been sent.
    let refused = held.renew(2, Duration::from_millis(50)).await;
    assert!(matches!(refused, Err(RenewError::Wrong { wrong: WrongAnswer::Threads(2..), .. })), "{refused:?}");
}

#[tokio::test]
async fn who_moves_into_the_hosts_namespace_is_found_out() {
    // Deaf from then on, since the order may be repeated.
    let script = "trap 'trap \"\" 42; exec nsenter --net=/proc/$PPID/ns/net sleep 1000' 42; echo inside; while :; do sleep 0.01; done";
    let mut child = Command::new("unshare").args(["--net", "bash", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let liar = Buddy(child);
    let kernel = Linux::new();
    let held = kernel.hold_now(liar.pid(), &[]).unwrap();
    let before = held.namespace(NamespaceKind::Net);
    let wrong = held.renew(2, LIMIT).await;
    assert!(matches!(wrong, Err(RenewError::Wrong { wrong: WrongAnswer::TheHosts, .. })), "{wrong:?}");
    assert_eq!(held.namespace(NamespaceKind::Net), before, "what is held stays the old one");
}

#[expect(clippy::disallowed_methods, reason = "the level is another process's, nobody can wake us")]
fn support_wait(level: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !level() {
        assert!(Instant::now() < end, "in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}
