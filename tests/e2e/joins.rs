//! The lines of `docs/joining.md`, run as they stand there: by each way in a function sees the lease's address and reaches its gateway, and after the
//! release the same line fails, as its path is gone.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::fresh::{one_slot, own};
use crate::support::daemon::{NSPOOL, TestDaemon, load_busybox, text};
use crate::support::engines::{TestEngine, docker, native, podman};
use crate::support::image::{BUSYBOX, busybox_archive};

const GREETING: &str = "the gateway says hello";

/// The lines after `<!-- tested: NAME -->`.
fn lines(name: &str) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/joining.md")).unwrap();
    let after = page.split_once(&format!("<!-- tested: {name} -->\n```")).unwrap_or_else(|| panic!("no lines {name:?} on the page")).1;
    let (_, lines) = after.split_once('\n').unwrap();
    lines.split_once("\n```").unwrap().0.to_owned()
}

/// A shell whose variables last from one part of the page to the next.
struct Reader {
    daemon: TestDaemon<'static>,
    dir: tempfile::TempDir,
    /// What has been read, and is said again before what follows.
    known: String,
}

impl Reader {
    async fn start(more: &[&str]) -> Self {
        let (settings, _) = own(&[&one_slot()[..], more].concat());
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let daemon = TestDaemon::start(native(), &settings).await;
        daemon.settled(1).await;
        let reader = Self { daemon, dir: tempfile::tempdir().unwrap(), known: String::new() };
        std::fs::create_dir_all(reader.path("bin")).unwrap();
        std::os::unix::fs::symlink(NSPOOL, reader.path("bin/nspool")).unwrap();
        reader
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program of that name, before those of the host.
    fn program(&self, name: &str, script: &str) {
        program(&self.path("bin").join(name), script);
    }

    /// What the page calls a function: the same on the host and in a root of its own. Somebody listens at the gateway for it.
    fn handler(&self, gateway: &str) {
        let listener = TcpListener::bind((gateway, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        self.program("handler", &format!("#!/bin/sh\nbusybox ip -o addr && busybox nc -w 5 {gateway} {port} < /dev/null\n"));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for function in listener.incoming() {
                let _gone = function.and_then(|mut function| function.write_all(GREETING.as_bytes()));
            }
        });
    }

    fn run(&self, script: &str) -> Result<String, String> {
        let mut command = Command::new("sh");
        command.args(["-euc", &format!("{}\n{script}", self.known)]).current_dir(self.dir.path()).stdin(Stdio::null());
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.path("bin").display())).env("NSPOOL_ENDPOINT", self.daemon.endpoint());
        command.env_remove("NSPOOL_TOKEN");
        let output = command.output().unwrap();
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    /// Takes a lease as the page says; the address that it has.
    fn allocate(&mut self) -> String {
        self.run(&lines("allocate")).unwrap();
        // From the file, for these have run: one lease is enough.
        self.known = lines("allocate").lines().filter(|line| line.contains("$(")).collect::<Vec<_>>().join("\n");
        let lease = self.lease();
        self.handler(lease["gateways"][0].as_str().unwrap());
        lease["ip_addresses"][0].as_str().unwrap().to_owned()
    }

    fn lease(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("lease.json")).unwrap()).unwrap()
    }

    fn release(&self) {
        let said = self.run(&lines("release")).unwrap();
        assert_eq!(said, "returned");
    }

    /// A root with busybox and the function.
    fn root(&self) {
        let folders = "bundle/rootfs/bin bundle/rootfs/proc bundle/rootfs/dev bundle/rootfs/sys bundle/rootfs/tmp bundle/rootfs/etc";
        let programs = "cp \"$(command -v busybox)\" bin/handler bundle/rootfs/bin && ln -s busybox bundle/rootfs/bin/sh";
        self.run(&format!("mkdir -p {folders} && {programs}")).unwrap();
    }

    /// Of this page, under a name that no other test has for its container.
    fn line(&self, way: &str) -> String {
        lines(way).replace("function-1", &format!("function-{}", self.daemon.pool))
    }
}

/// By another process: a child that another test forks while this one has the file open for writing would keep it from being run.
fn program(path: &Path, script: &str) {
    let mut install = Command::new("install").args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
    install.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success());
}

/// With the page's lease: in, out, and not in again.
async fn joins(reader: &Reader, way: &str, line: &str, address: &str) {
    let seen = reader.run(line).unwrap_or_else(|said| panic!("{way}: {said}"));
    assert!(seen.contains(&format!("inet {address} ")), "{way} is not in the lease's namespace:\n{seen}");
    assert!(seen.contains(GREETING), "{way} does not reach the gateway:\n{seen}");
    reader.release();
    let ended = reader.lease()["namespace_id"].as_str().unwrap().to_owned();
    reader.daemon.slot(0, "the next use", |slot| slot.state == "ready" && slot.namespace_id != ended).await;
    let late = reader.run(line).expect_err("it was late, and got in");
    // A runtime has the kernel's words; nspool's client asks first, and has the daemon's.
    let says_why = late.to_lowercase().contains("no such file") || late.contains("nspool leases");
    assert!(says_why, "{way}: {late}");
    assert!(!late.contains("inet "), "{way}: {late}");
}

async fn a_runtime_joins(runtime: &str, more: &[&str]) {
    let mut reader = Reader::start(more).await;
    let address = reader.allocate();
    reader.root();
    reader.run(&lines("bundle")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(reader.path("bundle/config.json")).unwrap()).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    for leased in reader.lease()["oci_namespaces"].as_array().unwrap() {
        assert_eq!(namespaces.iter().filter(|namespace| namespace["type"] == leased["type"]).collect::<Vec<_>>(), [leased]);
    }
    joins(&reader, runtime, &reader.line(runtime), &address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_joins_by_path() {
    a_runtime_joins("runc", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_joins_all_that_is_shared() {
    a_runtime_joins("runc", &["pool.namespaces = [\"net\", \"ipc\", \"uts\", \"pid\"]"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crun_joins_by_path() {
    let mut reader = Reader::start(&[]).await;
    if Path::new("/sys/fs/cgroup/unified").exists() {
        // It refuses a host with both versions of cgroups, which has nothing to do with namespaces.
        let crun = text(&Command::new("which").arg("crun").output().unwrap().stdout);
        let script = "umount /sys/fs/cgroup/unified && exec \"$0\" \"$@\"";
        reader.program("crun", &format!("#!/bin/sh\nexec unshare --mount sh -c '{script}' {crun} \"$@\"\n"));
    }
    let address = reader.allocate();
    reader.root();
    reader.run(&lines("bundle")).unwrap();
    joins(&reader, "crun", &reader.line("crun"), &address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_program_joins_by_path() {
    for way in ["exec-token", "nsenter"] {
        let mut reader = Reader::start(&[]).await;
        let address = reader.allocate();
        joins(&reader, way, &lines(way), &address).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_program_gets_a_lease_of_its_own() {
    let mut reader = Reader::start(&[]).await;
    let before = reader.allocate();
    reader.release();
    let seen = reader.run(&lines("exec")).unwrap_or_else(|said| panic!("{said}"));
    assert!(seen.contains(GREETING) && !seen.contains(&format!("inet {before} ")), "{seen}");
}

/// The page's image is one that has the function; here it is one that is given the same words.
fn with_image(line: &str, image: &str, reader: &Reader) -> String {
    let handler = std::fs::read_to_string(reader.path("bin/handler")).unwrap();
    let words = handler.split_once('\n').unwrap().1.trim();
    let line = line.replace("docker.io/library/my-function:latest", image).replace("my-function", image);
    line.strip_suffix("handler").unwrap().to_owned() + &format!("sh -c '{words}'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_joins_by_path() {
    load_busybox(podman());
    let mut reader = Reader::start(&[]).await;
    reader.program("podman", &format!("#!/bin/sh\nexec /usr/bin/podman --remote --url {} \"$@\"\n", podman().endpoint()));
    let address = reader.allocate();
    assert_eq!(reader.lease()["network_mode"], format!("ns:{}", reader.lease()["netns_path"].as_str().unwrap()));
    let line = with_image(&lines("podman"), BUSYBOX, &reader);
    joins(&reader, "podman", &line, &address).await;
}

/// The same over the API of Docker, as agents have it: a create with the lease's network mode, or with its `host_config`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn podman_joins_by_the_leases_network_mode_over_dockers_api() {
    let engine = podman();
    load_busybox(engine);
    let mut reader = Reader::start(&[]).await;
    let address = reader.allocate();
    let lease = reader.lease();
    let mode = lease["network_mode"].as_str().unwrap();
    assert_eq!(lease["host_config"]["HostConfig"]["NetworkMode"], mode);
    let function = || engine.client(&["run", "--rm", "--network", mode, BUSYBOX, "ip", "-o", "addr"]);
    let seen = function();
    assert!(text(&seen.stdout).contains(&format!("inet {address} ")), "{seen:?}");
    // Created in time, started late.
    let created = engine.run(&["create", "--network", mode, BUSYBOX, "ip", "-o", "addr"]);
    reader.release();
    let ended = reader.lease()["namespace_id"].as_str().unwrap().to_owned();
    reader.daemon.slot(0, "the next use", |slot| slot.state == "ready" && slot.namespace_id != ended).await;
    let started = engine.client(&["start", "-a", &created]);
    assert!(!started.status.success() && !text(&started.stdout).contains("inet "), "{started:?}");
    engine.run(&["rm", "-f", &created]);
    assert!(!function().status.success());
}

/// containerd as Docker starts it, with its own client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_joins_by_path() {
    let engine: &TestEngine = docker();
    let mut reader = Reader::start(&[]).await;
    // Beside the engine's own folder; an engine that is shared by all tests has it elsewhere.
    let sockets = ["exec", "docker"].map(|folder| engine.dir.join(folder).join("containerd/containerd.sock"));
    let socket = sockets.iter().find(|socket| socket.exists()).unwrap();
    let space = reader.daemon.pool.clone();
    reader.program(
        "ctr",
        &format!("#!/bin/sh\nexport CONTAINERD_SNAPSHOTTER=native\nexec /usr/bin/ctr -a {} -n {space} \"$@\"\n", socket.display()),
    );
    std::fs::write(reader.path("image.tar"), busybox_archive(BUSYBOX)).unwrap();
    reader.run("ctr images import image.tar").unwrap();
    let address = reader.allocate();
    let line = with_image(&reader.line("ctr"), BUSYBOX, &reader);
    joins(&reader, "ctr", &line, &address).await;
    // What is late is created, and left behind by its client.
    reader.run(&format!("ctr containers rm function-{space} 2> /dev/null || true; ctr images rm --sync {BUSYBOX}")).unwrap();
}

#[test]
fn systemd_accepts_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("function-1.service");
    std::fs::write(&unit, lines("unit")).unwrap();
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(unit).env("LC_ALL", "C").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

/// A way in that nobody has tried is not to be found among those that are said to be tested.
#[test]
fn all_that_is_said_to_be_tested_is_tested() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/joining.md")).unwrap();
    let names: Vec<&str> = page.split("<!-- tested: ").skip(1).map(|rest| rest.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["allocate", "release", "exec", "exec-token", "nsenter", "bundle", "runc", "crun", "podman", "ctr", "unit"]);
}
