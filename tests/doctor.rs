//! `nspool doctor` as somebody types it, on this host and on what a test makes of it. Runs as root.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod stub;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A configuration of nothing but defaults; tests run in the package's folder.
const SAMPLE: &str = "systemd/nspool.toml";
const PROGRAM: &str = env!("CARGO_BIN_EXE_nspool");

/// By another program, e.g. `setpriv`, deaf to this machine's configuration and engines.
fn through(wrapper: &[&str], program: &str, arguments: &[&str]) -> Command {
    let line: Vec<&str> = wrapper.iter().chain([&program, &"doctor"]).chain(arguments).copied().collect();
    let mut command = Command::new(line[0]);
    command.args(&line[1..]).env_clear().stdin(Stdio::null());
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("NSPOOL_CONFIG", SAMPLE).env("DOCKER_HOST", "unix:///nowhere/engine.sock");
    command.env("NSPOOL_ENDPOINT", "unix:/nowhere/nspool.sock");
    command
}

fn doctor(arguments: &[&str]) -> Command {
    through(&[], PROGRAM, arguments)
}

struct Seen {
    code: i32,
    report: Value,
}

impl Seen {
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        Self { code: output.status.code().unwrap(), report }
    }

    fn by(mut command: Command) -> Self {
        Self::of(&command.args(["-o", "json"]).output().unwrap())
    }

    fn findings(&self) -> &Vec<Value> {
        self.report["findings"].as_array().unwrap()
    }

    fn finding(&self, name: &str) -> &Value {
        let found = self.findings().iter().find(|finding| finding["name"] == name);
        found.unwrap_or_else(|| panic!("no {name} in {:#}", self.report))
    }

    fn status(&self, name: &str) -> &str {
        self.finding(name)["status"].as_str().unwrap()
    }

    fn helps(&self, name: &str, remedy: &str) -> bool {
        self.finding(name)["remedies"].as_array().unwrap().iter().any(|known| known.as_str().unwrap().contains(remedy))
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn links() -> BTreeSet<String> {
    std::fs::read_to_string("/proc/self/net/dev")
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect()
}

/// What no mistake of a host's makes go away.
const NAMES: &[&str] = &[
    "configuration/file",
    "engine/answers",
    "kernel/version",
    "kernel/proc",
    "kernel/others_namespaces",
    "kernel/seccomp",
    "kernel/cgroup",
    "kernel/ip_forward",
    "kernel/ipv6",
    "kernel/unprivileged_namespaces",
    "kernel/pidfd",
    "kernel/net_namespaces",
    "kernel/ipc_namespaces",
    "kernel/uts_namespaces",
    "kernel/pid_namespaces",
    "kernel/user_namespaces",
    "kernel/bridge",
    "kernel/veth",
    "kernel/nf_tables",
    "capabilities/user",
    "capabilities/sys_ptrace",
    "capabilities/sys_admin",
    "capabilities/net_admin",
    "capabilities/dac_override",
    "capabilities/chown",
    "capabilities/setpcap",
    "capabilities/sys_chroot",
    "capabilities/setuid",
    "capabilities/setgid",
    "limits/nofile",
    "limits/pid_max",
    "limits/threads_max",
    "limits/pids_max",
    "limits/max_net_namespaces",
    "limits/mount_max",
    "limits/gc_thresh3",
    "folders/run",
    "folders/state",
    "folders/state_kind",
    "folders/images",
    "folders/spool",
    "clock/boottime",
    "clock/wall_clock",
    "daemon/systemd",
    "daemon/units",
    "daemon/group",
    "daemon/daemon",
];
/// Those that are there only where there is something to say.
const SOMETIMES: &[&str] = &[
    "configuration/variables",
    "engine/id",
    "engine/storage",
    "kernel/trials",
    "capabilities/unit",
    "limits/nf_conntrack_max",
    "configuration/late",
];

#[test]
fn its_keys_are_stable_and_documented_and_it_leaves_nothing() {
    let before = links();
    let seen = Seen::by(doctor(&[]));
    assert_eq!(links(), before, "what was tried was tried elsewhere");
    let told: Vec<String> = seen
        .findings()
        .iter()
        .map(|finding| format!("{}/{}", finding["area"].as_str().unwrap(), finding["name"].as_str().unwrap()))
        .collect();
    let always: Vec<&str> = told.iter().map(String::as_str).filter(|name| !SOMETIMES.contains(name)).collect();
    assert_eq!(always, NAMES);
    assert_eq!(keys(&seen.report), BTreeSet::from(["version", "uid", "missing", "warnings", "notes", "findings"]));
    for finding in seen.findings() {
        assert_eq!(keys(finding), BTreeSet::from(["area", "name", "status", "seen", "why", "remedies"]), "{finding}");
        let status = finding["status"].as_str().unwrap();
        assert!(["ok", "note", "warning", "missing"].contains(&status) && !finding["seen"].as_str().unwrap().is_empty(), "{finding}");
        assert!(status != "missing" || !finding["remedies"].as_array().unwrap().is_empty(), "nothing helps: {finding}");
    }
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md")).unwrap();
    let section = docs.split("\n## nspool doctor").nth(1).unwrap().split("\n## ").next().unwrap();
    for name in NAMES.iter().chain(SOMETIMES) {
        let (area, name) = name.split_once('/').unwrap();
        assert!(section.contains(&format!("| `{area}` |")) && section.contains(&format!("`{name}`")), "docs/cli.md lacks {area}/{name}");
    }
}

#[test]
fn as_root_on_this_host_what_the_tests_need_is_there() {
    let seen = Seen::by(doctor(&[]));
    assert_eq!(seen.report["uid"], 0);
    for name in ["file", "proc", "pidfd", "net_namespaces", "bridge", "veth", "nf_tables", "sys_ptrace", "boottime", "run"] {
        assert_eq!(seen.status(name), "ok", "{}", seen.finding(name));
    }
    // DOCKER_HOST names an engine that is not there.
    assert_eq!((seen.status("answers"), seen.code), ("missing", 1));
    assert!(seen.report["missing"].as_u64().unwrap() >= 1 && seen.helps("answers", "docker.io"));
}

#[test]
fn people_get_groups_with_what_helps_below() {
    let output = doctor(&[]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for head in ["configuration", "engine", "kernel", "capabilities", "limits", "folders", "clock", "daemon"] {
        assert!(text.lines().any(|line| line == head), "{head} is no line of {text}");
    }
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.trim_start().starts_with("answers ")).unwrap();
    assert!(
        lines[at].contains(" missing  no engine is there") && lines[at + 2].trim_start().starts_with("> apt-get install docker.io"),
        "{text}"
    );
    let indented = |line: &str| line.find("no engine").or_else(|| line.find("> ")).unwrap();
    assert_eq!(indented(lines[at]), indented(lines[at + 2]), "{text}");
    assert!(lines.last().unwrap().contains("missing; ") && !text.contains('\x1b'), "{text}");
}

#[test]
fn a_process_with_few_descriptors_is_told_how_many_it_wants() {
    let seen = Seen::by(through(&["prlimit", "--nofile=100:100", "--"], PROGRAM, &[]));
    // A unit that is installed here goes first.
    if !seen.finding("nofile")["seen"].as_str().unwrap().contains("in the unit") {
        assert_eq!((seen.status("nofile"), seen.code), ("missing", 1), "{}", seen.finding("nofile"));
        assert!(seen.helps("nofile", "LimitNOFILE=448") && seen.helps("nofile", "ulimit -n 448"));
    }
}

#[test]
fn root_without_ptrace_is_no_daemon() {
    let without = ["setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace", "--"];
    let seen = Seen::by(through(&without, PROGRAM, &[]));
    assert_eq!((seen.status("sys_ptrace"), seen.status("chown"), seen.code), ("missing", "ok", 1));
    assert!(seen.helps("sys_ptrace", "CapabilityBoundingSet=CAP_SYS_PTRACE"), "{}", seen.finding("sys_ptrace"));
    assert_eq!(
        seen.status("others_namespaces"),
        "missing",
        "process 1's neighbours have more than it: {}",
        seen.finding("others_namespaces")
    );
}

#[test]
fn hidden_processes_are_found_out() {
    // Root's own group sees all.
    let script = "mount -t proc -o hidepid=2 proc /proc && exec setpriv --regid=65534 --clear-groups --inh-caps=-sys_ptrace --bounding-set=-sys_ptrace -- \"$@\"";
    let seen = Seen::by(through(&["unshare", "--mount", "sh", "-c", script, "sh"], PROGRAM, &[]));
    let finding = seen.finding("proc");
    assert!(finding["status"] == "missing" && finding["seen"].as_str().unwrap().contains("hidepid="), "{finding}");
    assert!(seen.helps("proc", "hidepid=0") && seen.helps("proc", "ProtectProc"));
}

#[test]
fn a_kernel_that_makes_no_network_namespace_is_found_out() {
    // The limit is the user namespace's own, and goes with it.
    let script = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$@\"";
    let seen = Seen::by(through(&["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"], PROGRAM, &[]));
    for name in ["net_namespaces", "max_net_namespaces"] {
        assert_eq!(seen.status(name), "missing", "{}", seen.finding(name));
        assert!(seen.helps(name, "sysctl -w user.max_net_namespaces="), "{}", seen.finding(name));
    }
    assert_eq!((seen.status("veth"), seen.status("uts_namespaces")), ("note", "ok"), "there was nowhere to try it");
}

/// The program, where anybody may run it.
fn for_anybody() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::Builder::new().prefix("nspd").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("nspool");
    // By another process: a child that another test forks while this one has the file open for writing would keep it from being run.
    let copied = Command::new("install").args(["-m", "755", PROGRAM]).arg(&path).status().unwrap();
    assert!(copied.success());
    (dir, path)
}

const NOBODY: [&str; 5] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];

#[test]
fn an_ordinary_user_is_told_what_cannot_be_seen() {
    let (dir, program) = for_anybody();
    let closed = dir.path().join("closed.toml");
    std::fs::write(&closed, "[pool]\nready = 3\n").unwrap();
    Command::new("chmod").arg("600").arg(&closed).status().unwrap();
    let engine = dir.path().join("engine.sock");
    let _root_alone = UnixListener::bind(&engine).unwrap();
    Command::new("chmod").arg("600").arg(&engine).status().unwrap();

    let mut command = through(&NOBODY, program.to_str().unwrap(), &["--config", closed.to_str().unwrap()]);
    command.env("DOCKER_HOST", format!("unix://{}", engine.display()));
    let seen = Seen::by(command);
    assert_eq!(seen.report["uid"], 65534);
    for (name, status) in
        [("file", "warning"), ("answers", "warning"), ("user", "warning"), ("sys_ptrace", "note"), ("others_namespaces", "note")]
    {
        assert_eq!(seen.status(name), status, "{}", seen.finding(name));
    }
    assert!(
        seen.helps("file", "sudo")
            && seen.helps("answers", "usermod -aG docker nobody")
            && seen.helps("user", "AmbientCapabilities=CAP_SYS_PTRACE")
    );
    // Where anybody may make user namespaces, what the kernel can is seen in one.
    assert!(["ok", "note"].contains(&seen.status("net_namespaces")), "{}", seen.finding("net_namespaces"));
    assert_eq!((seen.report["missing"].as_u64().unwrap(), seen.code), (0, 0), "{:#}", seen.report);
}

#[test]
fn mistakes_in_the_configuration_are_told_with_the_rest() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[pool]\nready = \"many\"\nmaxx = 3\n").unwrap();
    let path = file.path().to_str().unwrap();
    let seen = Seen::by(doctor(&["--config", path]));
    assert_eq!((seen.status("file"), seen.code), ("missing", 78));
    assert!(
        seen.finding("file")["seen"].as_str().unwrap().contains("2 mistakes") && seen.helps("file", &format!("nspool config check {path}"))
    );
    assert_eq!(seen.status("pidfd"), "ok", "the rest is looked at all the same");
    assert_eq!(doctor(&["--nonsense"]).output().unwrap().status.code(), Some(64));
}

#[test]
fn an_engine_and_a_daemon_that_never_answer_are_told_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, daemon) = (dir.path().join("engine.sock"), dir.path().join("nspool.sock"));
    let _frozen = [&engine, &daemon].map(|path| UnixListener::bind(path).unwrap());
    let begun = Instant::now();
    let mut command = doctor(&["--timeout", "1s", "--endpoint", &format!("unix:{}", daemon.display())]);
    command.env("DOCKER_HOST", format!("unix://{}", engine.display()));
    let seen = Seen::by(command);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!((seen.status("answers"), seen.status("daemon"), seen.code), ("missing", "missing", 1));
    assert!(seen.finding("answers")["seen"].as_str().unwrap().contains("did not answer within 1s"), "{}", seen.finding("answers"));
    assert!(seen.helps("answers", "systemctl restart docker") && seen.helps("daemon", "systemctl restart nspool"));
}

/// Answers what `doctor` asks, as Docker does.
fn serve_engine(path: &Path, storage: &str) {
    let listener = UnixListener::bind(path).unwrap();
    let info = format!(r#"{{"ID":"ABCD:EFGH","DockerRootDir":"{storage}"}}"#);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut asked = String::new();
            BufReader::new(connection.try_clone().unwrap()).read_line(&mut asked).unwrap();
            let body = if asked.contains("/version") { r#"{"Version":"20.10.24","Components":[{"Name":"Engine"}]}"# } else { &info };
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    });
}

#[test]
fn an_engine_and_a_daemon_that_answer_are_told_with_version_and_room() {
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("engine.sock");
    serve_engine(&engine, "/nowhere/docker");
    let daemon = stub::Running::start();
    let mut command = doctor(&["--endpoint", &daemon.endpoint()]);
    command.env("DOCKER_HOST", format!("unix://{}", engine.display()));
    let seen = Seen::by(command);
    assert_eq!((seen.status("answers"), seen.status("id"), seen.status("daemon")), ("ok", "ok", "ok"), "{:#}", seen.report);
    assert!(seen.finding("answers")["seen"].as_str().unwrap().starts_with("docker 20.10.24 at unix://"));
    assert_eq!((seen.finding("id")["seen"].as_str().unwrap(), seen.status("storage")), ("ABCD:EFGH", "note"));
    assert!(seen.finding("daemon")["seen"].as_str().unwrap().contains("for the pool default"));
    daemon.script(|script| assert_eq!(script.calls, ["GetInfo"], "and nothing else was asked"));
}
