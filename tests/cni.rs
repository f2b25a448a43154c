//! CNI plugins, run for namespaces of a test's own: scripted ones that do what they should not, and Debian's. Needs root, `ip`, `nsenter`, and
//! `containernetworking-plugins`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

#[path = "support/space.rs"]
mod space;

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nspool::netns::cni::{Attached, Cni, CniError, Failure, RECORD, Wanted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use space::Space;

/// Debian's.
const PLUGINS: &str = "/usr/lib/cni";
const SCRIPTED: [&str; 13] = [
    "good",
    "lies",
    "passes",
    "fails",
    "fails-del",
    "fails-check",
    "grumbles",
    "hangs",
    "leaves",
    "nonsense",
    "other-version",
    "floods",
    "quiet",
];

/// A namespace, and what there is of CNI for it.
struct Rig {
    dir: tempfile::TempDir,
    space: Space,
    cni: Cni,
}

impl Rig {
    /// A network `net` of these plugins, which are scripted ones.
    fn scripted(types: &[&str]) -> Self {
        let rig = Self::of(&types.iter().map(|kind| json!({ "type": kind })).collect::<Vec<_>>(), "1.0.0");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/cni.sh");
        SCRIPTED.iter().for_each(|name| symlink(&script, rig.bin().join(name)).unwrap());
        rig
    }

    fn of(plugins: &[Value], version: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["conf", "bin", "buddy"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let list = json!({"cniVersion": version, "name": "net", "plugins": plugins});
        std::fs::write(dir.path().join("conf/10-net.conflist"), list.to_string()).unwrap();
        let cni = Cni { conf_dir: dir.path().join("conf"), bin_dirs: vec![dir.path().join("bin")], timeout: Duration::from_secs(20) };
        Self { dir, space: Space::new(), cni }
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn record(&self) -> PathBuf {
        self.dir.path().join("buddy").join(RECORD)
    }

    fn attach(&self) -> Result<Attached, CniError> {
        let wanted = Wanted { network: "net", id: "nspool-p-1-2-3-abc", args: &[("NSPOOL_POOL", "p")] };
        self.cni.attach(&wanted, self.space.fd(), &self.record())
    }

    fn detach(&self) -> Result<(), CniError> {
        self.cni.detach(Some(self.space.fd()), &self.record())
    }

    /// Which plugin was asked what, in order.
    fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.bin().join("calls")).unwrap_or_default();
        calls.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    }

    /// What the plugin of the last call got.
    fn input(&self) -> Value {
        let calls = std::fs::read_to_string(self.bin().join("calls")).unwrap();
        serde_json::from_str(calls.lines().last().unwrap().splitn(5, ' ').nth(4).unwrap()).unwrap()
    }

    fn failure(&self) -> Failure {
        let error = self.attach().unwrap_err();
        let CniError::Plugin { failure, .. } = error else { panic!("{error}") };
        *failure
    }

    /// A process that a plugin started: its end, which the kernel may still be at, is waited for.
    fn child_has_ended(&self) -> bool {
        let pid: i32 = std::fs::read_to_string(self.bin().join("child")).unwrap().trim().parse().unwrap();
        match pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) {
            Ok(pidfd) => poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap() > 0,
            Err(errno) => errno == Errno::SRCH,
        }
    }
}

#[test]
fn a_chain_is_added_in_order_checked_in_order_and_deleted_in_reverse() {
    let rig = Rig::scripted(&["good", "passes"]);
    let attached = rig.attach().unwrap();
    assert_eq!((attached.network.as_str(), attached.addresses[0].to_string().as_str()), ("net", "10.9.8.7/24"));
    assert_eq!(attached.mtu, 1500);
    assert_eq!(rig.input()["prevResult"]["ips"][0]["address"], "10.9.8.7/24");
    assert_eq!(rig.cni.look(rig.space.fd(), &rig.record(), false).unwrap(), Some(attached.clone()));
    assert_eq!(rig.cni.look(rig.space.fd(), &rig.record(), true).unwrap(), Some(attached));
    // Of another daemon, which has the namespace by another path, and the network's file is gone.
    std::fs::remove_dir_all(rig.dir.path().join("conf")).unwrap();
    let other = rig.space.owned();
    rig.cni.detach(Some(std::os::fd::AsFd::as_fd(&other)), &rig.record()).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&other));
    assert_eq!(rig.input()["prevResult"]["interfaces"][0]["sandbox"], path);
    assert_eq!(rig.calls(), ["good ADD", "passes ADD", "good CHECK", "passes CHECK", "passes DEL", "good DEL"]);
    assert!(!rig.record().exists() && !rig.space.run("ip -o link").contains("eth0"));
    rig.detach().unwrap();
    assert_eq!(rig.calls().len(), 6, "nothing is left to be done");
}

#[test]
fn a_failure_in_the_chain_undoes_all_of_it() {
    let rig = Rig::scripted(&["good", "fails", "passes"]);
    let error = rig.attach().unwrap_err().to_string();
    assert_eq!(error, "network net: CNI plugin fails, ADD: no way (from a test), code 100");
    assert_eq!(rig.calls(), ["good ADD", "fails ADD", "passes DEL", "fails DEL", "good DEL"]);
    assert!(!rig.record().exists() && !rig.space.run("ip -o link").contains("eth0"));
}

#[test]
fn what_cannot_be_undone_is_told_and_stays_on_record() {
    let rig = Rig::scripted(&["good", "fails-del", "fails", "fails-del"]);
    let error = rig.attach().unwrap_err();
    let CniError::NotUndone { left, .. } = &error else { panic!("{error}") };
    assert!(matches!(&**left, CniError::Several(all) if all.len() == 2), "{error}");
    let words = error.to_string();
    assert!(words.contains("fails, ADD: no way") && words.contains("fails-del, DEL: not now"), "{words}");
    assert!(rig.record().exists());
    assert_eq!(rig.cni.look(rig.space.fd(), &rig.record(), false).unwrap(), None, "no whole one");
    rig.detach().unwrap_err();
    assert!(rig.record().exists());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/cni.sh");
    std::fs::create_dir(rig.dir.path().join("mended")).unwrap();
    for name in ["good", "fails"] {
        symlink(&script, rig.dir.path().join("mended").join(name)).unwrap();
    }
    symlink("/bin/true", rig.dir.path().join("mended/fails-del")).unwrap();
    let mended = Cni { bin_dirs: vec![rig.dir.path().join("mended")], ..rig.cni.clone() };
    mended.detach(None, &rig.record()).unwrap();
    assert!(!rig.record().exists());
}

#[test]
fn a_plugin_that_hangs_is_killed_with_what_it_started() {
    let mut rig = Rig::scripted(&["good", "hangs"]);
    rig.cni.timeout = Duration::from_secs(5);
    let began = Instant::now();
    assert_eq!(rig.failure(), Failure::TimedOut(Duration::from_secs(5)));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(rig.child_has_ended());
    assert!(!rig.record().exists());
}

#[test]
fn what_a_plugin_leaves_running_is_ended() {
    let rig = Rig::scripted(&["leaves"]);
    let began = Instant::now();
    rig.attach().unwrap();
    assert!(rig.child_has_ended() && began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn what_is_no_result_is_told() {
    let said = |kind: &str| Rig::scripted(&[kind]).failure();
    assert!(matches!(said("nonsense"), Failure::Nonsense(_)));
    assert!(matches!(said("quiet"), Failure::Nonsense(_)));
    assert!(matches!(said("other-version"), Failure::Nonsense(why) if why.contains("0.4.0")));
    assert!(matches!(said("floods"), Failure::TooMuch { .. }));
    let Failure::Exited { status, stderr } = said("grumbles") else { panic!("it is told otherwise") };
    assert_eq!((status.as_str(), stderr.as_str()), ("exit status: 3", "out of luck"));
}

#[test]
fn a_lie_about_the_address_is_found_out() {
    let rig = Rig::scripted(&["lies"]);
    let error = rig.attach().unwrap_err().to_string();
    assert_eq!(error, "network net: the plugins say that eth0 has 10.9.8.7/24, the namespace has 10.9.8.6/24");
    assert_eq!(rig.calls(), ["lies ADD", "lies DEL"]);
    let rig = Rig::scripted(&["good"]);
    rig.attach().unwrap();
    rig.space.run("ip addr flush dev eth0");
    let error = rig.cni.look(rig.space.fd(), &rig.record(), true).unwrap_err().to_string();
    assert!(error.ends_with("the namespace has no address there"), "{error}");
}

#[test]
fn a_check_that_fails_is_told() {
    let rig = Rig::scripted(&["good", "fails-check"]);
    rig.attach().unwrap();
    let error = rig.cni.look(rig.space.fd(), &rig.record(), true).unwrap_err().to_string();
    assert!(error.contains("fails-check, CHECK: it is another one"), "{error}");
}

#[test]
fn without_its_plugins_nothing_is_begun() {
    let rig = Rig::scripted(&["good", "missing"]);
    let error = rig.attach().unwrap_err().to_string();
    assert!(error.contains("no CNI plugin \"missing\"") && error.contains("cni.bin_dirs"), "{error}");
    let file = rig.bin().join("missing");
    std::fs::write(&file, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = rig.attach().unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()) && error.contains("chmod +x"), "{error}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&file, "no program at all").unwrap();
    assert_eq!((rig.calls(), rig.record().exists()), (Vec::new(), false), "until here");
    // It can be found, and not be started.
    let CniError::NotUndone { error, .. } = rig.attach().unwrap_err() else { panic!("it cannot be asked to undo either") };
    assert!(error.to_string().contains("it cannot be started"), "{error}");
}

#[test]
fn two_who_take_back_the_same_do_so_one_after_the_other() {
    let rig = Rig::scripted(&["good"]);
    rig.attach().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| rig.detach().unwrap());
        }
    });
    assert_eq!(rig.calls(), ["good ADD", "good DEL"]);
}

/// On a bridge of the scratch host, with addresses from a book in a folder of the test.
fn debians(rig: &Rig, version: &str, more: &[Value]) -> Cni {
    let bridge = json!({
        "type": "bridge", "bridge": "br0", "isGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": rig.dir.path().join("book"), "ranges": [[{"subnet": "10.77.0.0/24"}]],
                 "routes": [{"dst": "0.0.0.0/0"}]},
        "dns": {"nameservers": ["10.77.0.53"], "search": ["a.test"]},
    });
    let plugins: Vec<&Value> = std::iter::once(&bridge).chain(more).collect();
    let list = json!({"cniVersion": version, "name": "net", "plugins": plugins});
    std::fs::write(rig.dir.path().join("conf/10-net.conflist"), list.to_string()).unwrap();
    Cni { bin_dirs: vec![PLUGINS.into()], ..rig.cni.clone() }
}

fn given(rig: &Rig) -> usize {
    let book = std::fs::read_dir(rig.dir.path().join("book/net")).unwrap();
    book.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("10.")).count()
}

#[test]
fn debians_plugins_furnish_a_namespace_and_take_it_all_back() {
    for version in ["0.4.0", "1.0.0"] {
        let (host, mut rig) = (Space::new(), Rig::of(&[], version));
        let more = [
            json!({"type": "loopback"}),
            json!({"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}, "mtu": 1400}),
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
        ];
        rig.cni = debians(&rig, version, &more);
        host.inside(|| {
            let attached = rig.attach().unwrap_or_else(|error| panic!("{version}: {error}"));
            assert_eq!((attached.addresses[0].to_string().as_str(), attached.mtu), ("10.77.0.2/24", 1400), "{version}");
            assert_eq!(attached.addresses[0].gateway, Some("10.77.0.1".parse().unwrap()));
            assert_eq!(attached.resolv_conf, "search a.test\nnameserver 10.77.0.53\n");
            assert_eq!(rig.cni.look(rig.space.fd(), &rig.record(), true).unwrap(), Some(attached));
            assert!(rig.space.run("busybox ping -c 1 -W 2 10.77.0.1").contains("1 packets received"));
            assert!(rig.space.run("ip -o link show lo").contains("UP"));
            assert_eq!(given(&rig), 1);
            rig.detach().unwrap();
        });
        assert_eq!((given(&rig), rig.record().exists()), (0, false), "{version}");
        assert!(!rig.space.run("ip -o link").contains("eth0"));
        assert!(!host.run("ip -o link").contains("veth"));
    }
}

#[test]
fn debians_plugins_are_asked_to_take_back_what_is_gone() {
    let (host, mut rig) = (Space::new(), Rig::of(&[], "1.0.0"));
    rig.cni = debians(&rig, "1.0.0", &[json!({"type": "firewall", "backend": "iptables"})]);
    host.inside(|| rig.attach().unwrap());
    rig.space = Space::new();
    host.inside(|| rig.cni.detach(None, &rig.record()).unwrap());
    assert_eq!((given(&rig), rig.record().exists()), (0, false));
}

#[test]
fn a_book_without_an_address_left_is_told_in_the_plugins_words() {
    let (host, mut rig) = (Space::new(), Rig::of(&[], "1.0.0"));
    rig.cni = debians(&rig, "1.0.0", &[]);
    let file = rig.dir.path().join("conf/10-net.conflist");
    let small = std::fs::read_to_string(&file).unwrap().replace("10.77.0.0/24", "10.77.0.0/30");
    std::fs::write(&file, small).unwrap();
    host.inside(|| {
        rig.attach().unwrap();
        let (other, folder) = (Space::new(), tempfile::tempdir().unwrap());
        let wanted = Wanted { network: "net", id: "other", args: &[] };
        let error = rig.cni.attach(&wanted, other.fd(), &folder.path().join(RECORD)).unwrap_err().to_string();
        assert!(error.contains("CNI plugin bridge, ADD") && error.contains("no IP addresses available"), "{error}");
        assert!(!folder.path().join(RECORD).exists() && !other.run("ip -o link").contains("eth0"));
    });
}

#[test]
fn a_version_that_a_plugin_does_not_know_says_what_to_write() {
    let (host, mut rig) = (Space::new(), Rig::of(&[], "1.1.0"));
    rig.cni = debians(&rig, "1.1.0", &[]);
    let error = host.inside(|| rig.attach()).unwrap_err().to_string();
    assert!(error.contains("cniVersion in the configuration"), "{error}");
}
