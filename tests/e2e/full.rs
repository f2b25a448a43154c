//! A host that has no more mounts or namespaces to give: the slot waits and says why, the others serve leases, and it goes on when there is room.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, mount_bind_recursive, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::fresh::{address, links, own, run};
use super::rootless::{ALONE, beside, command, daemons_pid, enter, prepared};
use crate::support::daemon::{LIMIT, TestDaemon, text};
use crate::support::engines::native;
use crate::support::eventually;

/// A mount namespace whose first process is the daemon: that is where it mounts.
const OWN_MOUNTS: [&str; 4] = ["unshare", "-mpf", "--kill-child", "--mount-proc"];

/// The mounts of a daemon with a mount namespace of its own, and a folder to make more of them in.
struct Table {
    pid: u32,
    folder: PathBuf,
}

impl Table {
    /// With a mount that can be taken away again.
    fn of(daemon: &TestDaemon<'_>, pid: u32) -> Self {
        let table = Self { pid, folder: daemon.dir.path().join("fill") };
        let is_needed = |point: &Path| {
            let of_the_host = ["/proc", "/sys", "/dev"].iter().any(|folder| point.starts_with(folder)) || point == Path::new("/run");
            let leads_to = |path: &Path| path.starts_with(point);
            of_the_host || point.starts_with(daemon.dir.path()) || leads_to(daemon.dir.path()) || leads_to(&daemon.program)
        };
        let others: Vec<PathBuf> = table.points().into_iter().filter(|point| !is_needed(point)).collect();
        table.inside(|| {
            // Copies of what other tests have mounted: they go when what is mounted on is removed, and would make room at any time.
            for point in others.iter().rev() {
                let taken = unmount(point, UnmountFlags::DETACH);
                assert!(matches!(taken, Ok(()) | Err(Errno::INVAL | Errno::NOENT)), "{}: {taken:?}", point.display());
            }
            made(&table.folder);
            for own in ["tree", "spare"].map(|name| table.folder.join(name)) {
                mount_bind(made(&own), &own).unwrap();
            }
        });
        table
    }

    #[expect(deprecated, reason = "the folder that it is in is a thread's own then, which ends; that is none of what it warns of")]
    fn inside<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        let mounts = File::open(format!("/proc/{}/ns/mnt", self.pid)).unwrap();
        let work = || {
            rustix::thread::unshare(UnshareFlags::FS).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&mounts), Some(LinkNameSpaceType::Mount)).unwrap();
            deed()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    /// Until not one more mount is to be had, whatever the limit is.
    fn fill(&self) {
        self.inside(|| {
            let whole = self.folder.join("tree");
            let tree = |size: usize| whole.join(size.to_string());
            // Each time the whole tree is mounted inside itself.
            let largest = (0..).find(|size| !is_copied(&whole, &tree(*size))).unwrap();
            // Less than that is left: of each smaller tree one or none.
            for size in (0..largest).rev() {
                is_copied(&tree(size), &self.folder.join(format!("rest-{size}")));
            }
            assert!(!is_copied(&tree(0), &self.folder.join("rest")), "it is not full");
        });
    }

    fn take_away(&self, name: &str) {
        self.inside(|| unmount(self.folder.join(name), UnmountFlags::DETACH).unwrap());
    }

    /// Those of the daemon's namespaces, and of their root.
    fn of_namespaces(&self) -> usize {
        let below = self.folder.with_file_name("ns");
        self.points().iter().filter(|point| point.starts_with(&below)).count()
    }

    fn points(&self) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", self.pid)).unwrap();
        mounts.lines().filter_map(|line| line.split(' ').nth(1).map(PathBuf::from)).collect()
    }
}

fn made(folder: &Path) -> &Path {
    std::fs::create_dir(folder).unwrap();
    folder
}

/// `false`: there is no room for it.
fn is_copied(tree: &Path, to: &Path) -> bool {
    match mount_bind_recursive(tree, made(to)) {
        Err(Errno::NOSPC) => false,
        copied => copied.is_ok() || panic!("{}: {copied:?}", to.display()),
    }
}

/// Of slots, whether they are finished or not.
fn folders(daemon: &TestDaemon<'_>) -> usize {
    std::fs::read_dir(daemon.dir.path().join("ns").join(&daemon.pool)).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_mount_table_keeps_a_slot_waiting_and_nothing_half_made() {
    let (lines, bridge) = own(&["pool.ready = 1", "pool.max = 2", "pool.namespaces = [\"net\", \"ipc\", \"uts\"]"]);
    let mut daemon = TestDaemon::prepare(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>());
    daemon.launch_as(daemon.command(&OWN_MOUNTS)).await;
    let pid = daemons_pid(&daemon).await;
    daemon.settled(1).await;
    let table = Table::of(&daemon, pid);
    table.fill();
    daemon.json(&["resize", "--ready", "2"]);
    let waits = async |kind: &str| {
        let why = |slot: &nspool::proto::Slot| {
            slot.last_error.contains(&format!("/{kind}: no more mounts")) && slot.last_error.contains("fs.mount-max")
        };
        daemon.slot(1, &format!("the reason, at {kind}"), |slot| slot.state != "ready" && why(slot)).await;
        // The root, and those of the one that is ready.
        let nothing = |_| async { (folders(&daemon) == 1 && table.of_namespaces() == 4).then_some(()) };
        daemon.level("nothing half-made", nothing).await;
        links(&daemon, &bridge, 1).await;
    };
    waits("net").await;
    daemon.says("fs.mount-max").await;

    let client = daemon.client();
    for number in 1..=2 {
        let lease = daemon.allocate(&client).await;
        assert_eq!((lease.slot, lease.r#use), (0, number), "{}", daemon.log());
        let seen = run(&["nsenter", &format!("--net=/proc/{pid}/root{}", lease.netns_path), "ip", "-o", "addr"]);
        assert!(seen.contains(address(&lease)), "{seen}");
        client.release(&lease.token, false).await.unwrap();
    }

    // Room for the first of its namespaces, not for the next.
    table.take_away("spare");
    waits("ipc").await;
    table.take_away("tree/2");
    daemon.settled(2).await;
    assert_eq!(table.of_namespaces(), 7);
    run(&["kill", &pid.to_string()]);
    assert_eq!(daemon.exit_code(LIMIT).await, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_more_network_namespaces_a_slot_waits_and_the_others_serve() {
    let mut daemon = prepared(&["pool.max = 3"]);
    daemon.launch_as(command(&daemon, &ALONE)).await;
    let pid = daemons_pid(&daemon).await;
    let asked = |words: &[&str]| {
        let answer = beside(&daemon, pid, words);
        assert!(answer.status.success(), "{words:?}: {}{}", text(&answer.stderr), daemon.log());
        text(&answer.stdout)
    };
    let json = |words: &[&str]| serde_json::from_str::<serde_json::Value>(&asked(&[words, &["-o", "json"]].concat())).unwrap();
    let ready = async |count: u64| {
        let ready = || async { (json(&["usage"])["ready"] == count).then_some(()) };
        eventually(&format!("{count} ready"), LIMIT, ready).await;
    };
    // Of this user namespace alone.
    let limit = |most: &str| {
        let set = format!("echo {most} > /proc/sys/user/max_net_namespaces");
        let enter = enter(pid);
        let output = Command::new(&enter[0]).args(&enter[1..]).args(["sh", "-c", &set]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    ready(2).await;
    // The daemon's own, and those that are there.
    limit("3");
    json(&["resize", "--ready", "3"]);
    let waits = async || {
        let why = |slot: &serde_json::Value| {
            let (state, error) = (slot["state"].as_str().unwrap(), slot["last_error"].as_str().unwrap());
            (state != "ready" && error.contains("making namespaces: net: no more") && error.contains("user.max_net_namespaces"))
                .then_some(())
        };
        let slot = || async { json(&["slots"]).as_array().unwrap().iter().find_map(why) };
        eventually("the reason", LIMIT, slot).await;
        let nothing = || async { (folders(&daemon) == 2).then_some(()) };
        eventually("nothing half-made", LIMIT, nothing).await;
    };
    waits().await;
    daemon.says("user.max_net_namespaces").await;
    for _ in 0..3 {
        let seen = asked(&["exec", "--wait", "20s", "--", "ip", "-o", "addr"]);
        assert!(seen.contains("127.0.0.1/8"), "{seen}");
    }
    // A use's namespace goes before the next one is made, where two are too many.
    ready(2).await;
    waits().await;
    limit("100");
    ready(3).await;
    daemon.kill();
}
