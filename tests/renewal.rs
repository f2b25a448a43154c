//! Renewal in place on real engines: a buddy moves into a new network namespace when told, joiners follow, nothing else can be done from inside, and
//! what goes wrong is said.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]
#![expect(clippy::print_stdout, reason = "what was measured, or said, is worth a look")]

mod support;

use std::collections::BTreeSet;
use std::error::Error as _;
use std::process::Command;
use std::time::{Duration, Instant};

use nspool::engine::docker::Docker;
use nspool::engine::{BuddySpec, ContainerId, Engine, EngineKind, ErrorClass, NamespaceKind, WaitOutcome, seccomp};
use nspool::image::placeholder::{Arch, Archive};
use nspool::netns::linux::Linux;
use nspool::netns::{Kernel, RenewError, WrongAnswer};
use nspool::renewal::{Unfit, probe, prove};
use rustix::process::{Pid, Signal, kill_process};
use support::engines::{TestEngine, docker, podman, unique};
use support::image::{BUSYBOX, busybox_image};
use support::renewable::{Renewable, compile, connect, namespaces_of_the_machine, net_of, placeholder, spec, taken_away};
use support::{eventually, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
/// Long enough for a loaded machine.
const WITHIN: Duration = Duration::from_secs(10);
/// Long enough to be sure that nothing comes.
const SHORTLY: Duration = Duration::from_millis(200);

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod docker_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::docker()).await } )* }
        mod podman_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::podman()).await } )* }
    };
}

on_both_engines!(
    joiners_come_into_the_namespace_where_the_buddy_is_now,
    it_moves_for_the_next_number_alone,
    a_thousand_renewals_leave_nothing_behind,
    it_is_uid_0_with_one_capability_behind_a_filter,
    nothing_else_is_possible_inside,
    a_frozen_buddy_does_not_answer_and_moves_when_thawed,
    a_stopped_buddy_does_not_answer_and_a_killed_one_is_gone,
    the_probe_finds_this_engine_fit,
    the_probe_says_what_forbids_a_renewal,
    a_contradiction_is_refused,
);

/// A function of busybox that joins, and its pid.
async fn joiner(engine: &TestEngine, docker: &Docker, buddy: &Renewable) -> (String, u32) {
    let id = engine.run(&["run", "-d", "--net", &format!("container:{}", buddy.id), BUSYBOX, "/bin/sleep", "100000"]);
    let pid = docker.inspect(&id).await.unwrap().pid;
    (id, pid)
}

fn links(pid: u32) -> String {
    let output = Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip", "-br", "link"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

async fn joiners_come_into_the_namespace_where_the_buddy_is_now(engine: &TestEngine) {
    let (docker, kernel) = (connect(engine), Linux::new());
    busybox_image(&docker).await;
    let buddy = Renewable::start(&docker, "moves").await;
    let (early, early_pid) = joiner(engine, &docker, &buddy).await;
    let old = buddy.net();
    assert_eq!(net_of(early_pid), old);
    let left = Command::new("nsenter")
        .args(["-t", &early_pid.to_string(), "-n", "ip", "link", "add", "left", "type", "veth", "peer", "name", "right"])
        .status()
        .unwrap();
    assert!(left.success());

    let renewed = buddy.held.renew(2, WITHIN).await.unwrap();
    assert_eq!((renewed.namespace, buddy.net(), net_of(buddy.pid)), (buddy.net(), net_of(buddy.pid), renewed.namespace));
    assert_ne!(renewed.namespace, old);
    assert_ne!(renewed.namespace, kernel.host_namespace(NamespaceKind::Net).unwrap());
    assert_eq!(net_of(early_pid), old, "who is inside stays where it is");
    let (late, late_pid) = joiner(engine, &docker, &buddy).await;
    assert_eq!(net_of(late_pid), renewed.namespace);
    assert!(links(early_pid).contains("left") && !links(late_pid).contains("left"), "{}", links(late_pid));

    let members = kernel.members(NamespaceKind::Net, &[old, renewed.namespace]).await.unwrap();
    let pids = |id| members[&id].iter().map(|process| process.pid).collect::<BTreeSet<_>>();
    assert_eq!(pids(old), [early_pid].into());
    assert_eq!(pids(renewed.namespace), [buddy.pid, late_pid].into());
    // By the time of another renewal both are gone: nobody is left in any of the three.
    engine.run(&["rm", "-f", &early, &late]);
    let third = buddy.held.renew(3, WITHIN).await.unwrap();
    assert_ne!(third.cookie.unwrap(), renewed.cookie.unwrap());
    docker.remove(&buddy.id).await.unwrap();
}

async fn it_moves_for_the_next_number_alone(engine: &TestEngine) {
    let docker = connect(engine);
    let buddy = Renewable::start(&docker, "next").await;
    let start = buddy.net();
    for number in [0, 1, 3, u64::MAX, (1 << 32) + 2] {
        let refused = buddy.held.renew(number, SHORTLY).await.unwrap_err();
        assert!(matches!(refused, RenewError::NoAnswer { within: SHORTLY, .. }), "{number}: {refused}");
    }
    // By a plain kill, and by a real-time signal that is not ours.
    for signal in ["42", "43", "64"] {
        assert!(Command::new("kill").args(["-s", signal, &buddy.pid.to_string()]).status().unwrap().success());
    }
    assert!(Command::new("/bin/kill").args(["-q", "2", "-s", "43", &buddy.pid.to_string()]).status().unwrap().success());
    assert!(matches!(buddy.held.renew(3, SHORTLY).await, Err(RenewError::NoAnswer { .. })));
    assert_eq!((buddy.net(), net_of(buddy.pid)), (start, start));

    buddy.held.renew(2, WITHIN).await.unwrap();
    assert!(matches!(buddy.held.renew(2, SHORTLY).await, Err(RenewError::NoAnswer { .. })), "a repeat");
    buddy.held.renew(3, WITHIN).await.unwrap();
    docker.remove(&buddy.id).await.unwrap();
}

/// Descriptors of this process that hold a network namespace.
fn held_namespaces() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("net:["))).count()
}

/// Other tests of this binary, and of others, have some too: a leak would be a thousand.
async fn a_thousand_renewals_leave_nothing_behind(engine: &TestEngine) {
    const SLACK: usize = 200;
    let docker = connect(engine);
    let buddy = Renewable::start(&docker, "thousand").await;
    let (fds, all) = (held_namespaces(), namespaces_of_the_machine());
    let (mut cookies, begun) = (BTreeSet::new(), Instant::now());
    for number in 2..1002 {
        let before = buddy.net();
        let renewed = buddy.held.renew(number, WITHIN).await.unwrap();
        assert_ne!(renewed.namespace, before);
        assert!(cookies.insert(renewed.cookie.unwrap()), "a namespace that was there before");
        if number % 50 == 0 {
            taken_away(all).await;
        }
    }
    println!("{}: a thousand renewals in {:?}", engine.kind, begun.elapsed());
    assert!(held_namespaces() < fds + SLACK, "{fds} before, {} now", held_namespaces());
    taken_away(all).await;
    docker.remove(&buddy.id).await.unwrap();
}

async fn it_is_uid_0_with_one_capability_behind_a_filter(engine: &TestEngine) {
    let docker = connect(engine);
    let buddy = Renewable::start(&docker, "hard").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", buddy.pid)).unwrap();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).unwrap().to_owned();
    assert_eq!(line("Uid:").split_whitespace().collect::<BTreeSet<_>>(), ["0"].into());
    let sys_admin = format!("{:016x}", 1_u64 << 21);
    assert_eq!([line("CapEff:"), line("CapPrm:"), line("CapBnd:")], [sys_admin.clone(), sys_admin.clone(), sys_admin]);
    assert_eq!(line("CapAmb:"), "0000000000000000");
    assert_eq!((line("NoNewPrivs:"), line("Seccomp:"), line("Threads:")), ("1".into(), "2".into(), "1".into()));
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", buddy.pid)).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");
    assert_eq!(links(buddy.pid).lines().filter(|link| link.contains("UP")).count(), 1, "loopback alone: {}", links(buddy.pid));
    docker.remove(&buddy.id).await.unwrap();
}

/// podman may not know at first what became of a process that has just ended.
async fn ended(docker: &Docker, id: &ContainerId) -> WaitOutcome {
    eventually("an answer", LIMIT, || async { Some(docker.wait(id).await.unwrap()).filter(|told| *told != WaitOutcome::Unknown) }).await
}

async fn nothing_else_is_possible_inside(engine: &TestEngine) {
    let docker = connect(engine);
    let archive = Archive::build(&compile("cage.c"), Arch::NATIVE).unwrap();
    docker.load_image(archive.bytes().to_vec().into()).await.unwrap();
    let image = docker.image_id(archive.reference()).await.unwrap().unwrap();
    // A call by a foreign ABI ends the process by SIGSYS.
    for (command, code) in [(vec![], 0), (vec!["/init".to_owned(), "foreign".to_owned()], 128 + 31)] {
        let id = docker.create(&BuddySpec { command, ..spec("cage", &image).renewable() }).await.unwrap();
        docker.start(&id).await.unwrap();
        assert_eq!(ended(&docker, &id).await, WaitOutcome::Exited(code), "see cage.c for the number");
        docker.remove(&id).await.unwrap();
    }
    // The same program finds the first door open where it is not caged.
    let id = docker.create(&spec("free", &image)).await.unwrap();
    docker.start(&id).await.unwrap();
    assert_ne!(ended(&docker, &id).await, WaitOutcome::Exited(0));
    docker.remove(&id).await.unwrap();
    engine.client(&["rmi", archive.reference()]);
}

async fn a_frozen_buddy_does_not_answer_and_moves_when_thawed(engine: &TestEngine) {
    let docker = connect(engine);
    let buddy = Renewable::start(&docker, "frozen").await;
    buddy.held.renew(2, WITHIN).await.unwrap();
    let before = buddy.net();
    engine.run(&["pause", buddy.id.as_str()]);
    let silent = buddy.held.renew(3, SHORTLY).await.unwrap_err();
    println!("{}: {silent}", engine.kind);
    assert!(matches!(silent, RenewError::NoAnswer { .. }), "{silent}");
    assert_eq!((buddy.net(), net_of(buddy.pid)), (before, before));
    engine.run(&["unpause", buddy.id.as_str()]);
    wait_for("the late move", LIMIT, || (net_of(buddy.pid) != before).then_some(()));
    let late = buddy.held.renew(4, WITHIN).await.unwrap_err();
    assert!(matches!(late, RenewError::Wrong { wrong: WrongAnswer::MovedUntold, .. }), "{late}");
    assert_eq!(buddy.net(), before, "what is held is the old one");
    docker.remove(&buddy.id).await.unwrap();
}

async fn a_stopped_buddy_does_not_answer_and_a_killed_one_is_gone(engine: &TestEngine) {
    let docker = connect(engine);
    let buddy = Renewable::start(&docker, "stopped").await;
    let process = Pid::from_raw(buddy.pid.cast_signed()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    let silent = buddy.held.renew(2, SHORTLY).await.unwrap_err();
    assert!(matches!(silent, RenewError::NoAnswer { state: 'T', .. }), "{silent}");

    let begun = Instant::now();
    let midst = async {
        tokio::time::sleep(SHORTLY).await;
        kill_process(process, Signal::KILL).unwrap();
    };
    let (gone, ()) = tokio::join!(buddy.held.renew(3, LIMIT), midst);
    assert!(matches!(gone, Err(RenewError::Gone { .. })), "{gone:?}");
    assert!(begun.elapsed() < LIMIT / 2, "its end is an event: {:?}", begun.elapsed());
    assert!(matches!(buddy.held.renew(4, WITHIN).await, Err(RenewError::Gone { .. })));
    docker.remove(&buddy.id).await.unwrap();
}

async fn the_probe_finds_this_engine_fit(engine: &TestEngine) {
    let (docker, kernel) = (connect(engine), Linux::new());
    let image = placeholder(&docker).await;
    let (buddy, joiner) = (spec("probe", &image).renewable(), spec("probe-joiner", &image));
    let renewed = probe(&docker, &kernel, &buddy, &joiner, WITHIN).await.unwrap();
    println!("{}: {renewed:?}", engine.kind);
    assert!(renewed.cookie.is_some());
    let left = docker.list().await.unwrap();
    assert!(left.iter().all(|row| row.name != buddy.name && row.name != joiner.name), "{left:?}");
}

/// A renewable buddy in all but the one rule.
fn without_unshare() -> tempfile::NamedTempFile {
    let mut profile: serde_json::Value = serde_json::from_str(&seccomp::renewable()).unwrap();
    profile["syscalls"].as_array_mut().unwrap().retain(|rule| rule["names"] != serde_json::json!(["unshare"]));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), profile.to_string()).unwrap();
    file
}

async fn the_probe_says_what_forbids_a_renewal(engine: &TestEngine) {
    let (docker, kernel) = (connect(engine), Linux::new());
    let image = placeholder(&docker).await;
    let profile = without_unshare();
    // Docker's client sends the file's text itself; podman's API wants a path.
    let buddy = if engine.kind == EngineKind::Docker {
        let seccomp = format!("seccomp={}", profile.path().display());
        let hard = ["--network", "none", "--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", "--security-opt", "no-new-privileges"];
        engine.run(&[&["run", "-d"], &hard[..], &["--security-opt", &seccomp, image.as_str()]].concat()).into()
    } else {
        let id = docker.create(&spec("caps", &image)).await.unwrap();
        docker.start(&id).await.unwrap();
        id
    };
    let unfit = prove(&docker, &kernel, &buddy, &spec("joiner", &image), WITHIN).await.unwrap_err();
    println!("{}: {unfit}", engine.kind);
    assert!(matches!(unfit, Unfit::Ended { code: Some(103) }), "{unfit:?}");
    assert!(unfit.to_string().contains("forbids unshare"), "{unfit}");
    docker.remove(&buddy).await.unwrap();

    // A placeholder that knows no order, and an image that does not run at all behind the profile.
    let busybox = busybox_image(&docker).await;
    let sleeper = BuddySpec { command: vec!["/init".into(), "exit".into()], ..spec("ends", &image).renewable() };
    let unfit = eventually("an answer", LIMIT, || async {
        let unfit = probe(&docker, &kernel, &sleeper, &spec("joiner", &image), WITHIN).await.unwrap_err();
        // As above.
        Some(unfit).filter(|unfit| !matches!(unfit, Unfit::Engine { error, .. } if error.class == ErrorClass::Unknown))
    });
    let unfit = unfit.await;
    assert!(matches!(unfit, Unfit::Ended { .. }), "{unfit:?}");
    let id = docker.create(&BuddySpec { command: vec!["/bin/sleep".into(), "100".into()], ..spec("deaf", &busybox) }).await.unwrap();
    docker.start(&id).await.unwrap();
    let unfit = prove(&docker, &kernel, &id, &spec("joiner", &image), SHORTLY).await.unwrap_err();
    assert!(unfit.source().unwrap().to_string().contains("did not move"), "{unfit:?}");
    docker.remove(&id).await.unwrap();
}

async fn a_contradiction_is_refused(engine: &TestEngine) {
    let docker = connect(engine);
    let image = placeholder(&docker).await;
    let spec = BuddySpec { network: "host".into(), ..spec(&format!("never-{:x}", unique()), &image).renewable() };
    let refused = docker.create(&spec).await.unwrap_err();
    assert!(refused.message.contains("network none"), "{refused}");
    assert!(docker.list().await.unwrap().iter().all(|row| row.name != spec.name));
}
