//! The command line as people and programs meet it: help, tables, JSON, errors and exit codes.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod stub;

use std::io::Write as _;
use std::time::Duration;

use assert_cmd::Command;
use nspool::proto::{Engine, Lease, Lifetime, OciNamespace};
use stub::{Running, refusal};
use tonic::Code;

/// The program, deaf to this machine's configuration.
fn nspool(daemon: Option<&Running>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nspool"));
    command.env_clear().env("COLUMNS", "100").env("TERM", "dumb");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    let endpoint = daemon.map_or_else(|| "unix:/nowhere/nspool.sock".to_owned(), Running::endpoint);
    command.env("NSPOOL_ENDPOINT", endpoint);
    command.timeout(Duration::from_secs(30));
    command
}

/// Code, stdout and stderr in one text, without what differs from run to run.
fn run(daemon: Option<&Running>, arguments: &[&str]) -> String {
    let output = nspool(daemon).args(arguments).output().unwrap();
    let socket = daemon.map_or_else(String::new, |daemon| daemon.path.display().to_string());
    let clean = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        if socket.is_empty() { text } else { text.replace(&socket, "SOCKET") }
    };
    let mut text = format!("$ nspool {}\nexit code {}\n", arguments.join(" "), output.status.code().unwrap());
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            text.push_str(&format!("--- {name}\n{}", clean(bytes)));
        }
    }
    text
}

/// A configuration of nothing but defaults; tests run in the package's folder.
const SAMPLE: &str = "systemd/nspool.toml";

const COMMANDS: &[&str] = &[
    "serve",
    "allocate",
    "renew",
    "release",
    "resume",
    "run",
    "exec",
    "usage",
    "slots",
    "leases",
    "watch",
    "whois",
    "resize",
    "cordon",
    "uncordon",
    "drain",
    "recycle",
    "audit",
    "inspect",
    "image",
    "restart-plan",
    "purge",
    "doctor",
    "demo",
    "bench",
    "config",
    "completions",
    "man",
];

#[test]
fn help_of_every_command() {
    let mut all = run(None, &["-h"]).replace("unix:/nowhere/nspool.sock", "");
    for command in COMMANDS {
        let help = run(None, &[command, "-h"]).replace("unix:/nowhere/nspool.sock", "");
        assert!(help.contains("exit code 0") && !help.contains("--- stderr"), "{help}");
        // The same for all; shown once, above.
        let help = help.split("\nGlobal options:").collect::<Vec<_>>();
        let rest = help.get(1).and_then(|rest| rest.split_once("\n\n")).map_or("", |(_, rest)| rest);
        all.push_str(&format!("\n\n{}\n{rest}", help[0]));
    }
    insta::assert_snapshot!("help", all);
}

#[test]
fn every_command_is_in_the_manual_and_in_docs() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cli.md")).unwrap();
    for command in COMMANDS {
        assert!(
            docs.contains(&format!("\n## nspool {command}")) || docs.contains(&format!("nspool {command}`")),
            "docs/cli.md lacks {command}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    nspool(None).args(["man", dir.path().to_str().unwrap()]).assert().success();
    for command in COMMANDS {
        assert!(dir.path().join(format!("nspool-{command}.1")).exists(), "{command}");
    }
    let page = nspool(None).arg("man").output().unwrap().stdout;
    assert!(String::from_utf8_lossy(&page).contains(".TH nspool 1"));
}

#[test]
fn completions_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let script = nspool(None).args(["completions", shell]).output().unwrap();
        assert!(script.status.success() && String::from_utf8_lossy(&script.stdout).contains("uncordon"), "{shell}");
    }
}

#[test]
fn tables_for_people() {
    let daemon = Running::start();
    let mut all = Vec::new();
    for arguments in [
        &["allocate", "--wait", "1s"][..],
        &["renew", "t"],
        &["release", "t"],
        &["release", "--lease", "lease-1"],
        &["resume", "agent-1"],
        &["usage"],
        &["watch", "--once"],
        &["resize", "--ready", "9"],
        &["cordon", "--reason", "update"],
        &["uncordon"],
        &["drain"],
        &["drain", "--timeout", "1s"],
        &["recycle", "7"],
        &["audit"],
        &["audit", "--fix"],
        &["inspect", "7"],
        &["inspect", "1"],
        &["image", "ensure", "busybox:1.36", "reg:5000/fn:7"],
        &["image", "push", "fn:7", "reg:5000/fn:7"],
        &["image", "push", "gone:1"],
        &["image", "prune", "--dry-run"],
        &["image", "prune", "--room", "1MiB"],
        &["restart-plan", "--config", SAMPLE],
        &["whois", "172.17.0.5"],
        &["whois", "nspool-default-1-1041-3-k2"],
        &["whois", "10.0.0.1"],
    ] {
        all.push(run(Some(&daemon), arguments));
    }
    insta::assert_snapshot!("tables", all.join("\n"));
}

/// Ages differ from run to run, so their column is not compared.
#[test]
fn tables_with_ages() {
    let daemon = Running::start();
    let built = run(Some(&daemon), &["image", "list", "--built"]);
    assert!(
        built.contains("BUILT") && built.contains(&format!("nspool.local/build:{}", "ab".repeat(32))) && built.contains("sha256:b1"),
        "{built}"
    );
    let slots = run(Some(&daemon), &["slots"]);
    assert!(slots.contains("SLOT  STATE        SINCE"), "{slots}");
    assert!(
        slots.contains("no space left on device") && slots.contains("held by process 77 (sleep)") && slots.contains("detached"),
        "{slots}"
    );
    let images = run(Some(&daemon), &["image", "list"]);
    assert!(images.contains("REFERENCE      STATE    SINCE") && images.contains("a caller's") && images.contains("sha256:1d"), "{images}");
    let failures = run(Some(&daemon), &["image", "list", "--failures"]);
    assert!(failures.contains("denied") && !failures.contains("busybox"), "{failures}");
    let leases = run(Some(&daemon), &["leases"]);
    assert!(leases.contains("lease-1") && leases.contains("agent-1"), "{leases}");
    assert!(run(Some(&daemon), &["slots", "--state", "ready"]).lines().filter(|line| line.contains("bridge")).count() == 1);
    assert!(!run(Some(&daemon), &["leases", "--owner", "other"]).contains("lease-1"));
}

#[test]
fn json_for_programs() {
    let daemon = Running::start();
    let mut all = Vec::new();
    for arguments in [
        &["allocate", "-o", "json", "--ttl", "10m", "--lifetime", "ttl"][..],
        &["renew", "t", "-o", "json"],
        &["release", "t", "-o", "json"],
        &["resume", "agent-1", "-o", "json"],
        &["usage", "-o", "json"],
        &["slots", "-o", "json", "--state", "quarantined"],
        &["leases", "-o", "json"],
        &["watch", "--once", "-o", "json"],
        &["resize", "--ready", "9", "-o", "json"],
        &["drain", "-o", "json"],
        &["recycle", "7", "-o", "json"],
        &["audit", "-o", "json"],
        &["image", "ensure", "busybox:1.36", "-o", "json"],
        &["image", "push", "reg:5000/fn:7", "-o", "json"],
        &["image", "list", "-o", "json"],
        &["image", "list", "--failures", "-o", "json"],
        &["image", "prune", "-o", "json"],
        &["restart-plan", "--config", SAMPLE, "-o", "json"],
        &["whois", "nspool-default-1-1041-3-k2", "-o", "json"],
    ] {
        let text = run(Some(&daemon), arguments);
        let body = text.split("--- stdout\n").nth(1).unwrap().split("--- stderr").next().unwrap();
        let documents: Result<Vec<serde_json::Value>, _> = serde_json::Deserializer::from_str(body).into_iter().collect();
        assert!(documents.is_ok(), "{text}");
        all.push(text);
    }
    insta::assert_snapshot!("json", all.join("\n"));
}

#[test]
fn the_keys_that_are_promised_are_there() {
    let daemon = Running::start();
    let keys = |arguments: &[&str]| {
        let output = nspool(Some(&daemon)).args(arguments).args(["-o", "json"]).output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let usage = keys(&["usage"]);
    for key in "vacant ready leased vacating renewing cooling quarantined retiring detached lost target max waiting misses".split(' ') {
        assert!(usage[key].is_u64(), "usage.{key}");
    }
    let lease = keys(&["allocate"]);
    for key in
        "token lease_id namespace_id network_mode netns_path oci_namespaces slot generation use network ip_addresses expires_at".split(' ')
    {
        assert!(lease.get(key).is_some(), "allocate.{key}");
    }
    let slots = keys(&["slots"]);
    for key in "slot generation use state namespace_id container_id network since failures last_error".split(' ') {
        assert!(slots[0].get(key).is_some(), "slots.{key}");
    }
}

#[test]
fn errors_say_what_to_do_next() {
    let daemon = Running::start();
    let mut all = vec![run(None, &["usage"])];
    for (code, reason, message, retry) in [
        (Code::ResourceExhausted, "POOL_EMPTY", "no slot is ready", Some(Duration::from_millis(1_200))),
        (Code::ResourceExhausted, "QUOTA", "uid 1000 has 10 leases, its quota", None),
        (Code::Unavailable, "STARTING", "the pool is filling: 0 of 8", Some(Duration::from_millis(400))),
        (Code::Unavailable, "ENGINE_AWAY", "the engine does not answer", None),
        (Code::FailedPrecondition, "CORDONED", "the pool is cordoned: update", None),
        (Code::InvalidArgument, "UNKNOWN_NETWORK", "the request is not valid", None),
        (Code::PermissionDenied, "NOT_ALLOWED", "uid 1000 may not do that", None),
        (Code::Internal, "", "a bug", None),
    ] {
        daemon.script(|script| script.allocate.push_back(refusal(code, reason, message, retry)));
        all.push(run(Some(&daemon), &["allocate"]));
    }
    insta::assert_snapshot!("errors", all.join("\n"));
}

#[test]
fn usage_mistakes_exit_with_64() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["allocate", "--lifetime", "ttl"],
        &["allocate", "--ttl", "1m"],
        &["allocate", "--lifetime", "connection"],
        &["allocate", "--wait", "soon"],
        &["allocate", "--label", "novalue"],
        &["release"],
        &["resize"],
        &["image"],
        &["image", "ensure"],
        &["image", "prune", "--room", "much"],
        &["image", "ensure", "busybox", "--username", "ann"],
        &["image", "push"],
        &["image", "push", "fn:7", "--password-stdin"],
        &["usage", "--endpoint", "tcp://127.0.0.1:1"],
    ] {
        let text = run(None, arguments);
        assert!(text.contains("exit code 64\n"), "{text}");
    }
}

#[test]
fn a_release_tells_by_its_exit_code_whether_all_is_well() {
    use nspool::proto::ReleaseOutcome;
    let daemon = Running::start();
    for (outcome, code) in [
        (ReleaseOutcome::Returned, 0),
        (ReleaseOutcome::AlreadyReleased, 0),
        (ReleaseOutcome::JoinerStillThere, 1),
        (ReleaseOutcome::AlreadyEnded, 1),
    ] {
        daemon.script(|script| script.outcome = outcome);
        nspool(Some(&daemon)).args(["release", "t", "--doubtful"]).assert().code(code);
    }
    daemon.script(|script| assert!(script.released.iter().all(|release| release.doubtful)));
}

#[test]
fn images_that_are_here_are_told_whatever_became_of_the_others() {
    let daemon = Running::start();
    let text = run(Some(&daemon), &["image", "ensure", "busybox:1.36", "gone:1", "reg:5000/fn:7"]);
    assert!(text.contains("exit code 1\n") && text.contains("sha256:1d") && text.contains("manifest unknown"), "{text}");
    assert!(text.contains("Is the reference right") && text.contains("Try again in 30s."), "{text}");
    daemon.script(|script| assert_eq!(script.calls, ["EnsureImage busybox:1.36", "EnsureImage gone:1"]));
    let text = run(Some(&daemon), &["image", "ensure", "slow:1", "--timeout", "200ms"]);
    assert!(text.contains("exit code 75\n") && text.contains("slow:1: not here within 200ms; the fetch goes on"), "{text}");
}

#[test]
fn a_push_that_is_waited_for_in_vain_goes_on() {
    let daemon = Running::start();
    let text = run(Some(&daemon), &["image", "push", "slow:1", "--timeout", "3s"]);
    assert!(text.contains("exit code 75\n") && text.contains("slow:1: not there within 3s; the push goes on"), "{text}");
    daemon.script(|script| assert_eq!(script.calls, ["PushImage slow:1 to \"\""]));
}

#[test]
fn what_is_built_is_sent_where_the_daemon_cannot_read_it() {
    let (daemon, dir) = (Running::start(), tempfile::tempdir().unwrap());
    let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).unwrap();
    write("Dockerfile", "FROM scratch");
    write(".dockerignore", "left*");
    write("left-out", "");
    let folder = dir.path().to_str().unwrap();
    let text = run(Some(&daemon), &["image", "build", folder, "--build-arg", "VERSION=7"]);
    assert!(text.contains("exit code 0\n") && text.contains("sha256:b1"), "{text}");
    // Nothing that a build prints gets at the terminal.
    assert!(text.contains("(2 lines were missed)\nStep 1/1 : FROM scratch\n --->  [31m"), "{text}");
    let named = dir.path().file_name().unwrap().to_str().unwrap();
    daemon.script(|script| {
        let sent = "BuildImage \"\" \"\" \"\" \"7\" false of .dockerignore Dockerfile";
        assert_eq!(script.calls, [format!("BuildImage in {named}"), sent.to_owned()]);
        script.calls.clear();
    });

    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(elsewhere.path(), "FROM busybox").unwrap();
    let (file, tar) = (elsewhere.path().to_str().unwrap(), tar_of(dir.path()));
    nspool(Some(&daemon)).args(["image", "build", folder, "-f", file, "--anew", "--target", "broken"]).assert().code(1);
    nspool(Some(&daemon)).args(["image", "build", "-", "-f", "sub/Dockerfile"]).write_stdin(tar).assert().success();
    daemon.script(|script| {
        let sent = "BuildImage \"\" \"FROM busybox\" \"broken\" \"\" true of .dockerignore Dockerfile";
        assert_eq!(script.calls[1..], [sent, "BuildImage \"sub/Dockerfile\" \"\" \"\" \"\" false of Dockerfile"]);
    });
    nspool(Some(&daemon)).args(["image", "build", "/nowhere"]).assert().code(64);
    nspool(Some(&daemon)).args(["image", "build", file]).assert().code(64);
    write(".dockerignore", "[");
    nspool(Some(&daemon)).args(["image", "build", folder]).assert().failure().stderr(predicates::str::contains("line 1"));
}

/// A tar with the Dockerfile of a folder.
fn tar_of(folder: &std::path::Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_path_with_name(folder.join("Dockerfile"), "Dockerfile").unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn a_password_comes_by_stdin() {
    let daemon = Running::start();
    let ensure = ["image", "ensure", "reg:5000/fn:7", "--username", "ann", "--password-stdin"];
    nspool(Some(&daemon)).args(ensure).write_stdin("anns-word\nmore").assert().success();
    daemon.script(|script| assert_eq!(script.calls, ["EnsureImage reg:5000/fn:7 by ann anns-word"]));
    nspool(Some(&daemon)).args(ensure).write_stdin("\n").assert().code(64);
    let push = ["image", "push", "fn:7", "reg:5000/fn:7", "--username", "ann", "--password-stdin"];
    nspool(Some(&daemon)).args(push).write_stdin("anns-word\n").assert().success();
    daemon.script(|script| assert_eq!(script.calls[1..], ["PushImage fn:7 to \"reg:5000/fn:7\" by ann anns-word"]));
}

#[test]
fn an_allocation_by_hand_stands() {
    let daemon = Running::start();
    nspool(Some(&daemon)).arg("allocate").assert().success();
    nspool(Some(&daemon)).args(["resume", "agent-1"]).assert().success();
    daemon.script(|script| assert!(script.released.is_empty()));
}

#[test]
fn a_process_is_found_by_its_namespace() {
    let daemon = Running::start();
    // The stub says that slot 7's buddy is this process, so a child in the same namespace belongs to it.
    let text = run(Some(&daemon), &["whois", "-o", "json", &std::process::id().to_string()]);
    assert!(text.contains("\"kind\": \"buddy\"") && text.contains("lease-1"), "{text}");
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let text = run(Some(&daemon), &["whois", "-o", "json", &child.id().to_string()]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(text.contains("\"kind\": \"process\""), "{text}");
}

#[test]
fn mistakes_in_the_configuration_are_all_told() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[pool]\nready = \"many\"\nmaxx = 3\n[api]\nlisten = [\"tcp:1\"]\n").unwrap();
    let path = file.path().to_str().unwrap();
    for arguments in [&["config", "check", path][..], &["config", "show", path], &["serve", "--config", path]] {
        let text = run(None, arguments);
        assert!(text.contains("exit code 78\n") && text.contains("3 mistakes") && text.contains(&format!("{path}:3: pool.maxx")), "{text}");
    }
    let text = run(None, &["serve", "--config", "/dev/null", "--ready", "x", "--pacer-rate", "-1", "--reuse", "fresh"]);
    assert!(text.contains("3 mistakes") && text.contains("--pacer-rate: pacer.rate: read \"-1\""), "{text}");
}

#[test]
fn config_show_says_where_values_are_from() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[pool]\nready = 3\n").unwrap();
    let output =
        nspool(None).args(["config", "show", file.path().to_str().unwrap(), "--changed"]).env("NSPOOL_POOL_MAX", "5").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace(file.path().to_str().unwrap(), "FILE");
    assert_eq!(text, "KEY         VALUE  FROM\npool.ready  3      FILE:2\npool.max    5      NSPOOL_POOL_MAX\n");
}

#[test]
fn config_show_shows_managed_networks() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"managed\"\nmtu = 1400\n").unwrap();
    let text = run(None, &["config", "show", file.path().to_str().unwrap()]);
    let cells = |key: &str| {
        let row = text.lines().find(|line| line.contains(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
        row.split_whitespace().skip_while(|cell| !cell.contains(key)).skip(1).map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(cells("pool.reuse"), "\"auto\" default");
    assert_eq!(cells("networks.\"fast\".mtu"), format!("1400 {}:5", file.path().display()));
    assert_eq!(cells("networks.\"fast\".bridge"), "\"ns-fast\" default");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let daemon = Running::start();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_nspool"))
        .args(["watch", "--endpoint", &daemon.endpoint()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// An engine's client that writes its arguments down and does what `body` says.
struct FakeDocker {
    dir: tempfile::TempDir,
}

impl FakeDocker {
    fn new(body: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("#!/bin/sh\necho \"$@\" > {}/arguments\n{body}\n", dir.path().display());
        // By another process: a child that another test forks while this one has the file open for writing would keep it from being run.
        let path = dir.path().join("docker");
        Command::new("install").args(["-m", "755", "/dev/stdin"]).arg(path).write_stdin(script).assert().success();
        Self { dir }
    }

    fn path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.dir.path().display())
    }

    fn arguments(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.path().join("arguments")).ok()
    }
}

#[test]
fn run_hands_on_arguments_output_and_exit_code() {
    let daemon = Running::start();
    let docker = FakeDocker::new("echo from the container; exit 7");
    let output = nspool(Some(&daemon))
        .args(["run", "--tenant", "t", "--engine-arg=--memory=64m", "busybox", "ip", "-o", "addr"])
        .env("PATH", docker.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from the container\n");
    assert_eq!(
        docker.arguments().unwrap().trim(),
        "-H unix:///var/run/docker.sock run --rm --network container:nspool-default-7-1042-3-k2 \
         --label nspool.namespace_id=nspool-default-7-1042-3-k2 --cap-drop NET_RAW --memory=64m busybox ip -o addr"
    );
    daemon.script(|script| {
        assert_eq!(script.released.len(), 1);
        assert!(!script.released[0].doubtful, "the container is gone for certain");
    });
}

#[test]
fn run_doubts_when_the_engine_failed() {
    let daemon = Running::start();
    let docker = FakeDocker::new("echo 'Cannot connect' >&2; exit 125");
    nspool(Some(&daemon)).args(["run", "busybox"]).env("PATH", docker.path()).assert().code(125);
    daemon.script(|script| assert!(script.released[0].doubtful));
}

#[test]
fn run_without_the_engines_client_says_so_and_releases() {
    let daemon = Running::start();
    let text = nspool(Some(&daemon)).args(["run", "busybox"]).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(text.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&text.stderr).contains("must be installed"));
    daemon.script(|script| assert!(!script.released[0].doubtful));
}

#[test]
fn run_hands_on_a_signal_and_waits() {
    let daemon = Running::start();
    let docker = FakeDocker::new("trap 'echo told; exit 143' TERM; echo up; n=0; while [ $n -lt 1000 ]; do n=$((n+1)); sleep 0.02; done");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_nspool"))
        .args(["run", "--endpoint", &daemon.endpoint(), "busybox"])
        .env("PATH", docker.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "told");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    daemon.script(|script| assert!(!script.released[0].doubtful));
}

#[test]
fn run_on_a_pool_without_an_engine_says_what_to_use_and_releases() {
    let daemon = Running::start();
    daemon.script(|script| script.lease = Some(Lease { engine: Some(native()), ..stub::lease("t") }));
    let output = nspool(Some(&daemon)).args(["run", "busybox"]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nspool exec"));
    daemon.script(|script| assert!(!script.released[0].doubtful, "nothing was started"));
}

fn native() -> Engine {
    Engine { kind: "native".into(), id: "native".into(), endpoint: "/run/nspool/ns".into(), version: "6.1".into() }
}

fn oci(r#type: &str, path: &std::path::Path) -> OciNamespace {
    OciNamespace { r#type: r#type.into(), path: path.display().to_string() }
}

/// Its right to join is looked at first, so this is as root; nothing is joined but what this process is in.
#[test]
fn exec_asks_for_a_lease_that_is_renewed_and_gives_it_back_in_every_case() {
    let daemon = Running::start();
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    std::fs::create_dir(&pool).unwrap();
    let own = std::path::Path::new("/proc/self/ns/net");
    for (namespaces, program, code, words) in [
        (vec![oci("network", own)], "true", 0, ""),
        (vec![oci("network", own)], "no-such-program", 127, "not found"),
        (vec![oci("network", &pool.join("gone/net"))], "true", 1, "the lease has ended"),
        (vec![oci("network", own), oci("uts", &pool.join("gone/uts"))], "true", 1, "the lease has ended"),
        (vec![oci("network", std::path::Path::new("/nowhere/x/y/net"))], "true", 69, "not seen from here"),
        (vec![oci("cgroup", own)], "true", 69, "cgroup namespace, only a container can"),
        (vec![], "true", 69, "(native) have no paths"),
    ] {
        daemon.script(|script| {
            script.lease = Some(Lease { engine: Some(native()), oci_namespaces: namespaces, ..stub::lease("t") });
            (script.allocated, script.released) = Default::default();
        });
        let output = nspool(Some(&daemon)).args(["exec", "--tenant", "acme", "--", program]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words) && (code != 0 || said.is_empty()), "{said}");
        daemon.script(|script| {
            let [asked] = &script.allocated[..] else { panic!("{:?}", script.allocated) };
            assert_eq!((asked.owner.as_str(), asked.tenant.as_str(), asked.lifetime()), ("nspool-exec", "acme", Lifetime::Ttl));
            let [released] = &script.released[..] else { panic!("{:?}", script.released) };
            assert!(!released.doubtful, "what was started has ended");
        });
    }
}

#[test]
fn whois_asks_the_engine_about_a_container_that_is_no_buddy() {
    let daemon = Running::start();
    let docker = FakeDocker::new(&format!("echo {} container:{}", "f".repeat(64), "7".repeat(64)));
    let output = nspool(Some(&daemon)).args(["whois", "my-function", "-o", "json"]).env("PATH", docker.path()).output().unwrap();
    let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((view["kind"].as_str(), view["slot"]["slot"].as_u64()), (Some("joiner"), Some(7)));
    assert_eq!(view["lease"]["owner"], "agent-1");

    let docker = FakeDocker::new("echo 'Error: No such container: x' >&2; exit 1");
    let output = nspool(Some(&daemon)).args(["whois", "x"]).env("PATH", docker.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("No such container"));
}
