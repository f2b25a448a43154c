//! User namespaces without a container engine: who is root in a lease is nobody on the host, and the other namespaces are theirs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use nspool::proto;

use super::fresh::{address, one_slot, own};
use super::helper::rights;
use super::pids::enter;
use crate::support::daemon::{LIMIT, NSPOOL, TestDaemon, is_init, text};
use crate::support::engines::native;
use crate::support::eventually;

const USER: &str = "pool.namespaces = [\"net\", \"ipc\", \"uts\", \"user\"]";
const USER_AND_PID: &str = "pool.namespaces = [\"net\", \"ipc\", \"uts\", \"pid\", \"user\"]";

async fn started(more: &[&str]) -> TestDaemon<'static> {
    let (lines, _) = own(more);
    TestDaemon::start(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// As root of the lease's user namespace.
fn inside(lease: &proto::Lease, command: &str) -> Result<String, String> {
    let output = enter(lease).args(["sh", "-c", command]).output().unwrap();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn words(map: &str) -> Vec<&str> {
    map.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_root_inside_is_nobody_on_the_host() {
    let daemon = started(&[&one_slot()[..], &[USER]].concat()).await;
    let client = daemon.client();
    let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
    for number in 1..=3 {
        let lease = daemon.allocate(&client).await;
        // Only what is there still is told apart by its number: the kernel gives those out again.
        let user = lease.oci_namespaces.iter().find(|namespace| namespace.r#type == "user").unwrap();
        kept.push(std::fs::File::open(&user.path).unwrap());
        assert_eq!(lease.r#use, number, "renewed, not made anew:\n{}", daemon.log());
        let said =
            inside(&lease, "id -u; id -G; readlink /proc/self/ns/user; cat /proc/self/uid_map; hostname; ip -o addr; ip route; ipcs -m")
                .unwrap();
        let [uid, groups, namespace, map, ..] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        assert_eq!((uid, groups, words(map)), ("0", "0", vec!["0", "1879048192", "65536"]), "{said}");
        assert!(said.contains(&format!("inet {}", lease.ip_addresses[0])) && said.contains("default via"), "{said}");
        assert!(seen.insert(namespace.to_owned()), "{namespace} again");
        assert!(!said.contains("evil") && !said.contains("7654321"), "{said}");
        // Its namespaces are root's in there, the host's files are not.
        inside(&lease, "ip link add dirt0 type veth peer name dirt1 && hostname evil && ipcmk -M 7654321").unwrap();
        inside(&lease, &format!("busybox ping -c 1 -W 2 {}", lease.gateways[0])).unwrap();
        let file = daemon.dir.path().join("roots");
        assert!(inside(&lease, &format!("touch {}", file.display())).unwrap_err().contains("Permission denied"));
        client.release(&lease.token, false).await.unwrap();
        daemon.slot(0, "the next use", |slot| slot.r#use == number + 1 && slot.state == "ready").await;
        assert!(inside(&lease, "true").is_err() && !Path::new(&lease.netns_path).exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_process_of_a_pid_namespace_is_nobody_on_the_host_too() {
    let mut daemon = started(&[USER_AND_PID, "pool.ready = 2", "pool.max = 2", "pool.user_ids = \"1900000000:70000\""]).await;
    daemon.settled(2).await;
    for init in daemon.inits() {
        let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        let of = |key: &str| words(status.lines().find_map(|line| line.strip_prefix(key)).unwrap()).join(" ");
        assert_eq!((of("Uid:"), of("Gid:"), of("Groups:")), (["1900000000"; 4].join(" "), ["1900000000"; 4].join(" "), String::new()));
        assert_eq!((of("CapEff:"), of("CapPrm:"), of("NoNewPrivs:")), ("0000000000000000".into(), "0000000000000000".into(), "1".into()));
    }
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    // The pid namespace is theirs as well: without that no /proc of it could be mounted in there.
    let said = inside(&lease, "unshare --mount sh -c 'mount -t proc proc /proc && cat /proc/1/comm && cat /proc/1/uid_map'").unwrap();
    assert_eq!(words(&said), ["init", "0", "1900000000", "70000"]);
    let before = daemon.inits();
    daemon.kill();
    assert!(inside(&lease, "ip -o addr").unwrap().contains(address(&lease)));
    daemon.launch().await;
    daemon.usage("what was there", |usage| usage.ready == 1 && usage.leased == 1).await;
    assert_eq!(daemon.inits(), before);
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.settled(2).await;
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert!(daemon.mounts().is_empty() && !before.iter().any(|init| is_init(*init)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_root_in_the_lease_alone() {
    for namespaces in [USER, USER_AND_PID] {
        let daemon = started(&[&one_slot()[..], &[namespaces]].concat()).await;
        let output = daemon.cli(&[
            "exec",
            "--wait",
            "60s",
            "--",
            "sh",
            "-c",
            "id -u; id -G; cat /proc/self/gid_map; ip link set lo down; ip -o addr",
        ]);
        let (said, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && err.is_empty(), "{err}");
        let [uid, groups, map, ..] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        assert_eq!((uid, groups, words(map)), ("0", "0", vec!["0", "1879048192", "65536"]), "{said}");
        daemon.settled(1).await;

        // It ends with who started it.
        let program = ["exec", "--wait", "60s", "--", "sh", "-c", "readlink /proc/self/ns/user; exec sleep 1000"];
        let mut child = daemon.cli_of(NSPOOL.as_ref(), &program).stdout(Stdio::piped()).spawn().unwrap();
        let mut namespace = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut namespace).unwrap();
        assert!(in_user_namespace(namespace.trim()) > daemon.inits().len());
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = || async { (in_user_namespace(namespace.trim()) == daemon.inits().len()).then_some(()) };
        eventually("the program's end", LIMIT, gone).await;
    }
}

/// How many processes are.
fn in_user_namespace(namespace: &str) -> usize {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/user")).is_ok_and(|own| own == Path::new(namespace))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drop_ins_rights_are_enough() {
    for (file, namespaces) in
        [("native.conf", "pool.namespaces = [\"net\", \"ipc\", \"uts\", \"pid\"]"), ("native-user.conf", USER_AND_PID)]
    {
        let (lines, _) = own(&[&one_slot()[..], &[namespaces]].concat());
        let mut daemon = TestDaemon::prepare(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>());
        let command = daemon.command(&["setpriv", &rights(file), "--no-new-privs"]);
        daemon.launch_as(command).await;
        let client = daemon.client();
        let lease = daemon.allocate(&client).await;
        assert!(inside(&lease, "ip -o addr").unwrap().contains(address(&lease)), "{file}");
        client.release(&lease.token, false).await.unwrap();
        daemon.settled(1).await;
        assert_eq!(daemon.stop().await, 0, "{file}: {}", daemon.log());
        assert!(daemon.mounts().is_empty(), "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_is_not_ours_to_give_is_said() {
    // The helper has no right to give ids away: as in a unit without the drop-in.
    let (lines, _) = own(&[&one_slot()[..], &[USER]].concat());
    let mut daemon = TestDaemon::prepare(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>());
    let command = daemon.command(&["setpriv", "--bounding-set=-setuid", "--inh-caps=-setuid"]);
    daemon.launch_as(command).await;
    let slot = daemon.slot(0, "the reason", |slot| slot.last_error.contains("user namespace")).await;
    assert!(
        slot.last_error.contains("writing the ids of a user namespace") && slot.last_error.contains("CAP_SETUID"),
        "{}",
        slot.last_error
    );
    assert_eq!(daemon.mounts().len(), 1, "the root alone: {:?}", daemon.mounts());
}
