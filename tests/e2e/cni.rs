//! Networks of CNI plugins: Debian's, and scripted ones that do what they should not.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspool::proto::{self, ReleaseOutcome};
use serde_json::{Value, json};

use super::fresh::{address, one_slot, run};
use super::helper::helpers;
use crate::support::daemon::{LIMIT, TestDaemon, kill, text};
use crate::support::engines::{native, unique, unique_subnet};
use crate::support::eventually;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cni.sh");

/// A folder of configurations, one of plugins, and the book of addresses.
struct Plugs {
    dir: tempfile::TempDir,
    bridge: String,
    subnet: String,
}

impl Plugs {
    /// A network `net` of a bridge, then of these plugins.
    fn new(more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("nspcni").tempdir_in("/tmp").unwrap();
        let plugs = Self { dir, bridge: format!("nc{:x}", unique()), subnet: unique_subnet(24) };
        for folder in ["conf", "bin"] {
            std::fs::create_dir(plugs.dir.path().join(folder)).unwrap();
        }
        for plugin in ["bridge", "host-local", "tuning"] {
            plugs.plugin(plugin, Path::new("/usr/lib/cni").join(plugin));
        }
        for plugin in ["passes", "fails", "fails-del", "hangs"] {
            plugs.plugin(plugin, SCRIPT);
        }
        plugs.network("net", more);
        plugs
    }

    /// A plugin of that name is that program from now on.
    fn plugin(&self, name: &str, program: impl AsRef<Path>) {
        let (new, file) = (self.dir.path().join("new"), self.dir.path().join("bin").join(name));
        symlink(program, &new).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    fn network(&self, name: &str, more: &[&str]) {
        let bridge = json!({
            "type": "bridge", "bridge": self.bridge, "isGateway": true,
            "ipam": {"type": "host-local", "dataDir": self.book(), "ranges": [[{"subnet": self.subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
            "dns": {"nameservers": ["192.0.2.53"], "search": ["cni.test"]},
        });
        let tuning = json!({"type": "tuning", "mtu": 1400});
        let more = more.iter().map(|plugin| json!({ "type": plugin }));
        let plugins: Vec<Value> = [bridge, tuning].into_iter().chain(more).collect();
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
        std::fs::write(self.dir.path().join(format!("conf/{name}.conflist")), list.to_string()).unwrap();
    }

    fn book(&self) -> PathBuf {
        self.dir.path().join("book")
    }

    /// Addresses of that network which somebody has.
    fn given(&self, network: &str) -> Vec<String> {
        let book = std::fs::read_dir(self.book().join(network)).into_iter().flatten();
        book.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name.starts_with("10.")).collect()
    }

    fn links(&self) -> usize {
        run(&["ip", "-o", "link", "show", "master", &self.bridge]).lines().count()
    }

    fn lines(&self, more: &[&str]) -> Vec<String> {
        let lines = [
            "pool.networks = [\"net\"]".to_owned(),
            "networks.net.kind = \"cni\"".to_owned(),
            format!("cni.conf_dir = {:?}", self.dir.path().join("conf")),
            format!("cni.bin_dirs = [{:?}]", self.dir.path().join("bin")),
        ];
        lines.into_iter().chain(more.iter().map(|line| (*line).to_owned())).collect()
    }

    async fn started(&self, more: &[&str]) -> TestDaemon<'static> {
        let lines = self.lines(more);
        TestDaemon::start(native(), &lines.iter().map(String::as_str).collect::<Vec<_>>()).await
    }
}

impl Drop for Plugs {
    fn drop(&mut self) {
        // CNI leaves it. Not there where no plugin came so far.
        let _gone = Command::new("ip").args(["link", "del", &self.bridge]).output();
    }
}

fn inside(lease: &proto::Lease, command: &str) -> String {
    run(&["nsenter", &format!("--net={}", lease.netns_path), "sh", "-ec", command])
}

fn identity(lease: &proto::Lease) -> String {
    inside(lease, "readlink /proc/self/ns/net")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_use_has_a_new_namespace_with_what_the_plugins_gave() {
    let plugs = Plugs::new(&[]);
    let mut daemon = plugs.started(&one_slot()).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let mut seen = Vec::new();
    for number in 1..=3 {
        let lease = daemon.allocate(&client).await;
        assert_eq!((lease.r#use, lease.mtu), (number, 1400), "{}", daemon.log());
        assert_eq!(plugs.given("net"), [address(&lease)], "{}", daemon.log());
        assert_eq!(lease.resolv_conf, "search cni.test\nnameserver 192.0.2.53\n");
        let there = inside(&lease, "ip -o addr; ip route");
        assert!(there.contains(&lease.ip_addresses[0]) && there.contains(&format!("default via {}", lease.gateways[0])), "{there}");
        assert!(!there.contains("192.0.2.7"), "of the use before:\n{there}");
        inside(&lease, &format!("busybox ping -c 1 -W 2 {}", lease.gateways[0]));
        inside(&lease, "ip addr add 192.0.2.7/32 dev lo");
        seen.push((identity(&lease), address(&lease).to_owned()));
        let audit = daemon.cli(&["audit"]);
        assert_eq!(audit.status.code(), Some(0), "{}", text(&audit.stdout));
        assert_eq!(client.release(&lease.token, false).await.unwrap().outcome(), ReleaseOutcome::Returned);
        daemon.slot(0, "the next use", |slot| slot.r#use == number + 1 && slot.state == "ready").await;
    }
    assert!(seen.windows(2).all(|pair| pair[0].1 != pair[1].1), "addresses do not come back at once: {seen:?}");
    assert_eq!(daemon.log().matches("buddy ready").count(), 1, "no other buddy was made:\n{}", daemon.log());
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!((plugs.given("net").len(), plugs.links(), daemon.mounts().len()), (0, 0, 0), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemons_namespaces_are_adopted_and_given_back_later() {
    let plugs = Plugs::new(&["passes"]);
    let mut daemon = plugs.started(&["pool.ready = 2", "pool.max = 2"]).await;
    daemon.settled(2).await;
    let lease = daemon.allocate(&daemon.client()).await;
    let before = plugs.given("net");
    // What a killed daemon said last may never be written.
    daemon.level("both in the log", |_| async { (daemon.log().matches("buddy ready").count() == 2).then_some(()) }).await;
    daemon.kill();
    daemon.launch().await;
    daemon.usage("what was there", |usage| usage.ready == 1 && usage.leased == 1).await;
    assert_eq!(plugs.given("net").len(), before.len());
    assert_eq!(daemon.log().matches("buddy ready").count(), 2, "no other buddy was made:\n{}", daemon.log());
    let calls = std::fs::read_to_string(plugs.dir.path().join("bin/calls")).unwrap();
    assert_eq!(calls.matches("passes CHECK").count(), 1, "of the ready one:\n{calls}");
    let same = daemon.client().lease(&lease.token).await.unwrap();
    assert_eq!((same.ip_addresses, same.mtu, same.resolv_conf), (lease.ip_addresses.clone(), lease.mtu, lease.resolv_conf.clone()));
    daemon.client().release(&lease.token, false).await.unwrap();
    daemon.slot(lease.slot, "another buddy", |slot| slot.state == "ready" && slot.generation != lease.generation).await;
    assert!(!plugs.given("net").contains(&address(&lease).to_owned()), "it was given back");
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert_eq!((plugs.given("net").len(), plugs.links()), (0, 0), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_as_the_plugins_left_it_is_not_adopted() {
    let plugs = Plugs::new(&[]);
    let mut daemon = plugs.started(&one_slot()).await;
    daemon.settled(1).await;
    let slot = daemon.slots().await.remove(0);
    daemon.kill();
    let namespace = daemon.dir.path().join("ns").join(&daemon.pool).join(&slot.namespace_id).join("net");
    run(&["nsenter", &format!("--net={}", namespace.display()), "ip", "addr", "flush", "dev", "eth0"]);
    daemon.launch().await;
    daemon.slot(0, "another buddy", |now| now.state == "ready" && now.generation != slot.generation).await;
    daemon.says("CNI plugin bridge, CHECK: Failed to match addr").await;
    assert_eq!(plugs.given("net").len(), 1, "the old one was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_has_plugins_take_back_what_a_dead_daemon_left() {
    let plugs = Plugs::new(&[]);
    let mut daemon = plugs.started(&[]).await;
    daemon.settled(2).await;
    daemon.kill();
    assert_eq!(plugs.given("net").len(), 2);
    let (namespaces, plugins) = (daemon.dir.path().join("ns"), plugs.dir.path().join("bin"));
    let dirs = ["--namespaces", namespaces.to_str().unwrap(), "--cni-bin-dirs", plugins.to_str().unwrap()];
    let purged = daemon.cli(&[&["purge", "--pool", &daemon.pool, "--engine", "native"], &dirs[..]].concat());
    assert_eq!(purged.status.code(), Some(0), "{}{}", text(&purged.stdout), text(&purged.stderr));
    assert_eq!((plugs.given("net").len(), plugs.links(), daemon.mounts().len()), (0, 0, 0));
}

/// A second network of the pool, whose plugins are good.
const OTHER: [&str; 4] = ["pool.networks = [\"net\", \"good\"]", "networks.good.kind = \"cni\"", "pool.ready = 2", "pool.max = 2"];

/// The slot on `net` says so, and the one on `good` goes through its uses.
async fn only_the_other_goes_on(daemon: &TestDaemon<'_>, words: &str) {
    let waits = |client: nspool::client::Client| async move {
        client.slots().await.ok()?.slots.into_iter().find(|slot| slot.network == "net" && slot.last_error.contains(words))
    };
    daemon.level(words, waits).await;
    let client = daemon.client();
    for number in 1..=2 {
        let lease = client.allocate(nspool::client::Request::new().network("good").wait(LIMIT)).await.unwrap().keep();
        assert_eq!(lease.r#use, number);
        inside(&lease, &format!("busybox ping -c 1 -W 2 {}", lease.gateways[0]));
        client.release(&lease.token, false).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_fails_holds_up_its_own_network_only_until_it_is_mended() {
    let plugs = Plugs::new(&["fails"]);
    plugs.network("good", &[]);
    let mut daemon = plugs.started(&OTHER).await;
    only_the_other_goes_on(&daemon, "network net: CNI plugin fails, ADD: no way").await;
    let undone = |_| async { plugs.given("net").is_empty().then_some(()) };
    daemon.level("what was done before it failed to be undone", undone).await;
    plugs.network("net", &[]);
    daemon.settled(2).await;
    assert_eq!(plugs.given("net").len(), 1);
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_hangs_holds_up_its_own_network_only() {
    let plugs = Plugs::new(&["hangs"]);
    plugs.network("good", &[]);
    let daemon = plugs.started(&[&OTHER[..], &["cni.timeout = \"5s\""]].concat()).await;
    only_the_other_goes_on(&daemon, "CNI plugin hangs, ADD: it did not end within 5s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plugin_does_not_take_back_is_tried_again_until_it_does() {
    let plugs = Plugs::new(&["fails-del"]);
    let mut daemon = plugs.started(&one_slot()).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    client.release(&lease.token, false).await.unwrap();
    let slot = daemon.slot(0, "the plugin's words", |slot| slot.last_error.contains("CNI plugin fails-del, DEL: not now")).await;
    assert_eq!(slot.state, "retiring", "{slot:?}");
    // Of the next buddy, while the last one's are still to be taken back by what they were given by.
    plugs.network("net", &[]);
    plugs.plugin("fails-del", "/bin/true");
    daemon.slot(0, "another buddy", |slot| slot.state == "ready").await;
    assert!(!plugs.given("net").contains(&address(&lease).to_owned()), "{}", daemon.log());
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_is_killed_in_the_middle_leaves_the_next_one_the_means_to_take_it_back() {
    let plugs = Plugs::new(&["hangs"]);
    let daemon = plugs.started(&[&one_slot()[..], &["cni.timeout = \"60s\""]].concat()).await;
    let child = plugs.dir.path().join("bin/child");
    let hanging =
        eventually("a plugin that hangs", LIMIT, || async { std::fs::read_to_string(&child).ok()?.trim().parse::<u32>().ok() }).await;
    assert_eq!(plugs.given("net").len(), 1);
    plugs.network("net", &[]);
    plugs.plugin("hangs", "/bin/true");
    kill("KILL", helpers(&daemon).await.1);
    let group = run(&["ps", "-o", "pgid=", "-p", &hanging.to_string()]);
    run(&["sh", "-c", &format!("kill -9 -{}", group.trim())]);
    daemon.settled(1).await;
    daemon.level("one address, the next one's", |_| async { (plugs.given("net").len() == 1).then_some(()) }).await;
}
