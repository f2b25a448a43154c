//! One suite for Docker and podman, the real ones: what `engine::docker` promises holds on both, whatever their APIs say.
//!
//! Engines are shared by the tests of this file, so each test has names of its own; those that freeze or kill an engine start their own.

#![expect(clippy::unwrap_used, reason = "the bodies of tests are functions of their own here, shared by the engines")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use nspool::engine::docker::Docker;
use nspool::engine::{
    BuddySpec, ContainerStatus, Credentials, Engine, EngineError, EngineEvent, EngineKind, ErrorClass, EventAction, Flavour, ImageId,
    Labels, NamespaceKind, WaitOutcome,
};
use support::engines::{PrivateDocker, PrivatePodman, TestEngine, docker, podman, unique, unique_subnet};
use support::eventually;
use support::image::{BUSYBOX, busybox_archive, busybox_image};
use support::registry::reserved_port;
use tokio::time::timeout;

/// Long enough for a loaded machine; a test that reaches it has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Each `async fn(&TestEngine)` of the suite as a test of its own on Docker and on podman.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod docker_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::docker()).await } )* }
        mod podman_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::podman()).await } )* }
    };
}

on_both_engines!(
    a_buddy_lives_from_create_to_removal,
    a_buddy_is_hardened,
    the_engine_says_who_it_is,
    a_rename_is_the_fence,
    the_list_says_who_joins_whom,
    ipc_and_pid_joiners_show_in_inspect,
    events_are_subscribed_when_the_call_returns,
    a_lost_image_is_an_event,
    the_exit_code_is_the_process_s_own,
    a_name_is_taken_once,
    an_image_that_is_not_there_is_said_so,
    a_network_that_is_not_there_is_said_so,
    addresses_that_are_used_up_are_said_so,
    what_is_not_there_is_not_found_and_its_removal_is_done,
    two_hundred_waits_hold_up_nobody,
    a_pull_that_fails_has_the_registrys_words,
    a_registry_that_wants_credentials_is_said_so,
    a_load_that_fails_is_an_error,
);

fn connect(engine: &TestEngine) -> Docker {
    Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap()
}

fn name(what: &str) -> String {
    format!("{what}-{:x}", unique())
}

fn spec(name: &str, image: &ImageId, command: &[&str]) -> BuddySpec {
    BuddySpec {
        name: name.to_owned(),
        image: image.clone(),
        command: command.iter().map(ToString::to_string).collect(),
        labels: Labels::from([("nspool.test".to_owned(), "a value\nwith two lines".to_owned())]),
        network: "bridge".to_owned(),
        namespaces: vec![NamespaceKind::Net],
        user: "65533:65533".to_owned(),
        memory_bytes: 16 << 20,
        pids: 16,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}

const SLEEP: &[&str] = &["/bin/sleep", "100000"];

/// A started buddy that sleeps.
async fn buddy(docker: &Docker, name: &str) -> nspool::engine::Container {
    let image = busybox_image(docker).await;
    let id = docker.create(&spec(name, &image, SLEEP)).await.unwrap();
    docker.start(&id).await.unwrap();
    docker.inspect(id.as_str()).await.unwrap()
}

/// Creates a container that joins; the id, or the engine's refusal.
fn create_joiner(engine: &TestEngine, name: &str, options: &[&str]) -> Result<String, String> {
    let output = engine.client(&[&["create", "--name", name], options, &[BUSYBOX]].concat());
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

async fn a_buddy_lives_from_create_to_removal(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    let name = name("life");
    let spec = spec(&name, &image, SLEEP);
    let id = docker.create(&spec).await.unwrap();
    assert_eq!(id.as_str().len(), 64);

    let created = docker.inspect(&name).await.unwrap();
    assert_eq!((created.status, created.pid, created.exit_code), (ContainerStatus::Created, 0, None));

    docker.start(&id).await.unwrap();
    docker.start(&id).await.expect("a second start is success");
    let running = docker.inspect(id.as_str()).await.unwrap();
    assert_eq!((running.status, &running.id, &running.name, &running.image), (ContainerStatus::Running, &id, &name, &image));
    assert_eq!(running.labels["nspool.test"], spec.labels["nspool.test"]);
    assert_ne!(running.started_at, created.started_at);
    assert_eq!(running.exit_code, None);
    assert!(std::path::Path::new(&running.resolv_conf_path).exists(), "{}", running.resolv_conf_path);
    let address = &running.addresses[0];
    let inside = std::process::Command::new("nsenter").args(["-t", &running.pid.to_string(), "-n", "ip", "-br", "addr"]).output().unwrap();
    let inside = String::from_utf8(inside.stdout).unwrap();
    assert!(inside.contains(&address.address), "{address:?} is not in {inside}");
    assert!(!address.gateway.is_empty());

    let row = docker.list().await.unwrap().into_iter().find(|row| row.id == id).expect("it is in the list");
    assert_eq!((row.name, row.status, row.labels), (name.clone(), ContainerStatus::Running, running.labels));

    docker.remove(&id).await.unwrap();
    assert_eq!(docker.inspect(&name).await.unwrap_err().class, ErrorClass::NotFound);
    assert!(docker.list().await.unwrap().iter().all(|row| row.id != id));
}

async fn a_buddy_is_hardened(engine: &TestEngine) {
    let docker = connect(engine);
    let buddy = buddy(&docker, &name("hard")).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", buddy.pid)).unwrap();
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim).unwrap().to_owned();
    assert_eq!(line("Uid:").split_whitespace().next(), Some("65533"));
    assert_eq!(line("Gid:").split_whitespace().next(), Some("65533"));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    assert_eq!(line("NoNewPrivs:"), "1");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", buddy.pid)).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|option| option == "ro"), "{root}");

    let inspected: serde_json::Value = serde_json::from_str(&engine.run(&["inspect", buddy.id.as_str()])).unwrap();
    let host = &inspected[0]["HostConfig"];
    assert_eq!(
        (host["Memory"].as_i64(), host["MemorySwap"].as_i64(), host["PidsLimit"].as_i64()),
        (Some(16 << 20), Some(16 << 20), Some(16))
    );
    assert_eq!((host["LogConfig"]["Type"].as_str(), host["RestartPolicy"]["Name"].as_str()), (Some("none"), Some("no")));
    let hostname = inspected[0]["Config"]["Hostname"].as_str().unwrap();
    assert_eq!(hostname, "nspool", "neither the container's id nor the host's name");
    docker.remove(&buddy.id).await.unwrap();
}

async fn the_engine_says_who_it_is(engine: &TestEngine) {
    let docker = connect(engine);
    docker.ping().await.unwrap();
    let info = docker.info().await.unwrap();
    assert_eq!((info.kind, &info.endpoint), (engine.kind, &engine.endpoint()));
    assert!(info.version.starts_with(|c: char| c.is_ascii_digit()), "{}", info.version);
    assert!(!info.id.is_empty());
    assert_eq!(connect(engine).info().await.unwrap().id, info.id, "the id is the same at each call");

    let other = if engine.kind == EngineKind::Docker { EngineKind::Podman } else { EngineKind::Docker };
    let error = Docker::connect(&engine.endpoint(), Some(other)).unwrap().info().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Refused);
    assert!(error.to_string().contains(&format!("{other} is configured")), "{error}");
}

async fn a_rename_is_the_fence(engine: &TestEngine) {
    let docker = connect(engine);
    let (old, new) = (name("old"), name("new"));
    let buddy = buddy(&docker, &old).await;
    let before = create_joiner(engine, &name("before"), &["--network", &format!("container:{old}")]).unwrap();
    docker.rename(&buddy.id, &new).await.unwrap();

    assert_eq!(docker.inspect(&old).await.unwrap_err().class, ErrorClass::NotFound);
    assert_eq!(docker.inspect(&new).await.unwrap().id, buddy.id);
    // Docker refuses a late join at the start, podman at the create already.
    let late = create_joiner(engine, &name("late"), &["--network", &format!("container:{old}")]);
    if let Ok(id) = &late {
        assert_eq!(engine.kind, EngineKind::Docker);
        let error = docker.start(&id.as_str().into()).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::NetworkMissing, "{error}");
        assert_eq!(docker.inspect(id).await.unwrap().status, ContainerStatus::Created);
        docker.remove(&id.as_str().into()).await.unwrap();
    }
    // Who was created before holds the id: it is what has to be looked for.
    docker.start(&before.as_str().into()).await.unwrap();
    assert_eq!(docker.inspect(&before).await.unwrap().joins().collect::<Vec<_>>(), [buddy.id.as_str()]);
    docker.remove(&before.as_str().into()).await.unwrap();

    let taken = docker.rename(&buddy.id, &buddy_name(&docker, "taken").await).await.unwrap_err();
    assert_eq!(taken.class, ErrorClass::NameTaken, "{taken}");
    docker.remove(&buddy.id).await.unwrap();
}

async fn buddy_name(docker: &Docker, what: &str) -> String {
    buddy(docker, &name(what)).await.name
}

async fn the_list_says_who_joins_whom(engine: &TestEngine) {
    let docker = connect(engine);
    let host = name("host");
    let buddy = buddy(&docker, &host).await;
    let network = format!("container:{host}");
    let created = create_joiner(engine, &name("created"), &["--network", &network]).unwrap();
    let running = create_joiner(engine, &name("running"), &["--network", &network]).unwrap();
    docker.start(&running.as_str().into()).await.unwrap();
    for _ in 0..2 {
        let rows = docker.list().await.unwrap();
        let joins =
            |id: &str| rows.iter().find(|row| row.id.as_str() == id).map(|row| (row.joins().map(str::to_owned), row.status)).unwrap();
        assert_eq!(joins(&created), (Some(buddy.id.to_string()), ContainerStatus::Created));
        assert_eq!(joins(&running), (Some(buddy.id.to_string()), ContainerStatus::Running));
        assert_eq!(joins(buddy.id.as_str()).0, None);
    }
    for id in [created.as_str().into(), running.as_str().into(), buddy.id] {
        docker.remove(&id).await.unwrap();
    }
}

async fn ipc_and_pid_joiners_show_in_inspect(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    let shared =
        BuddySpec { namespaces: vec![NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Pid], ..spec(&name("all"), &image, SLEEP) };
    let id = docker.create(&shared).await.unwrap();
    docker.start(&id).await.unwrap();
    let mode = format!("container:{}", shared.name);
    let joiner = create_joiner(engine, &name("joins"), &["--network", "none", "--ipc", &mode, "--pid", &mode]).unwrap();
    docker.start(&joiner.as_str().into()).await.unwrap();
    let inspected = docker.inspect(&joiner).await.unwrap();
    assert_eq!(inspected.joins().collect::<Vec<_>>(), [id.as_str(), id.as_str()], "{inspected:?}");
    let buddy = docker.inspect(id.as_str()).await.unwrap();
    for kind in ["ipc", "pid"] {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert_eq!(of(buddy.pid), of(inspected.pid), "{kind}");
    }
    docker.remove(&joiner.as_str().into()).await.unwrap();
    docker.remove(&id).await.unwrap();
}

/// Actions on one container until it is removed.
async fn story(events: &mut (impl futures::Stream<Item = Result<EngineEvent, EngineError>> + Unpin), id: &str) -> Vec<EventAction> {
    let mut seen = Vec::new();
    while seen.last() != Some(&EventAction::Removed) {
        let event = timeout(LIMIT, events.next()).await.unwrap_or_else(|_| panic!("no more events after {seen:?}"));
        let event = event.expect("the stream goes on").unwrap();
        if event.id == id {
            seen.push(event.action);
        }
    }
    seen
}

async fn events_are_subscribed_when_the_call_returns(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    let mut events = docker.events().await.unwrap();
    let spec = spec(&name("told"), &image, SLEEP);
    let id = docker.create(&spec).await.unwrap();
    docker.start(&id).await.unwrap();
    engine.run(&["pause", id.as_str()]);
    assert_eq!(docker.inspect(id.as_str()).await.unwrap().status, ContainerStatus::Paused);
    engine.run(&["unpause", id.as_str()]);
    docker.remove(&id).await.unwrap();
    let mut seen = story(&mut events, id.as_str()).await;
    seen.dedup();
    use EventAction::{Created, Died, Paused, Removed, Started, Unpaused};
    assert_eq!(seen, [Created, Started, Paused, Unpaused, Died, Removed]);

    // The labels come with the events: a nanny's observer knows a joiner by them.
    let mut events = docker.events().await.unwrap();
    let id = docker.create(&BuddySpec { name: name("told"), ..spec.clone() }).await.unwrap();
    let event = loop {
        let event = timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
        if event.id == id.as_str() {
            break event;
        }
    };
    assert_eq!(event.action, EventAction::Created);
    assert_eq!(event.attributes["nspool.test"], spec.labels["nspool.test"]);
    assert!(event.name.starts_with("told-"), "{event:?}");
    docker.remove(&id).await.unwrap();
}

async fn a_lost_image_is_an_event(engine: &TestEngine) {
    let docker = connect(engine);
    let tag = format!("localhost/{}:1", name("lost"));
    docker.load_image(busybox_archive(&tag).into()).await.unwrap();
    assert!(docker.image_id(&tag).await.unwrap().is_some());
    let mut events = docker.events().await.unwrap();
    engine.run(&["rmi", &tag]);
    let gone = async { while events.next().await.expect("the stream goes on").unwrap().action != EventAction::ImageGone {} };
    timeout(LIMIT, gone).await.expect("an ImageGone event");
    assert_eq!(docker.image_id(&tag).await.unwrap(), None);
}

async fn the_exit_code_is_the_process_s_own(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    for code in [0, 7] {
        let spec = spec(&name("exits"), &image, &["/bin/sh", "-c", &format!("exit {code}")]);
        let id = docker.create(&spec).await.unwrap();
        docker.start(&id).await.unwrap();
        // podman may not be able to tell while the process is about to end; then it is asked again, as nannies do.
        let asked = || async { Some(docker.wait(&id).await.unwrap()).filter(|outcome| *outcome != WaitOutcome::Unknown) };
        assert_eq!(eventually("an answer", LIMIT, asked).await, WaitOutcome::Exited(code));
        assert_eq!(timeout(LIMIT, docker.wait(&id)).await.unwrap().unwrap(), WaitOutcome::Exited(code), "attached again");
        let ended = docker.inspect(id.as_str()).await.unwrap();
        assert_eq!((ended.status, ended.exit_code), (ContainerStatus::Exited, Some(code)));
        docker.remove(&id).await.unwrap();
    }
    let killed = buddy(&docker, &name("killed")).await;
    let asked = || async { Some(docker.wait(&killed.id).await.unwrap()).filter(|outcome| *outcome != WaitOutcome::Unknown) };
    let (outcome, ()) = tokio::join!(eventually("an answer", LIMIT, asked), async {
        assert!(std::process::Command::new("kill").args(["-KILL", &killed.pid.to_string()]).status().unwrap().success());
    });
    assert_eq!(outcome, WaitOutcome::Exited(137));
    docker.remove(&killed.id).await.unwrap();
}

async fn a_name_is_taken_once(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    let spec = spec(&name("twice"), &image, SLEEP);
    let id = docker.create(&spec).await.unwrap();
    let error = docker.create(&spec).await.unwrap_err();
    assert_eq!((error.class, error.operation, &error.subject), (ErrorClass::NameTaken, "create", &spec.name), "{error}");
    docker.remove(&id).await.unwrap();
    docker.remove(&docker.create(&spec).await.unwrap()).await.unwrap();
}

async fn an_image_that_is_not_there_is_said_so(engine: &TestEngine) {
    let docker = connect(engine);
    let nowhere = ImageId::from(format!("sha256:{}", "0".repeat(64)));
    let error = docker.create(&spec(&name("noimage"), &nowhere, SLEEP)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::ImageMissing, "{error}");
    assert_eq!(docker.image_id("localhost/never:1").await.unwrap(), None);
    assert_eq!(docker.image_id(nowhere.as_str()).await.unwrap(), None);
}

async fn a_network_that_is_not_there_is_said_so(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    let spec = BuddySpec { network: "no-such-network".into(), ..spec(&name("nonet"), &image, SLEEP) };
    // Docker says so at the start, podman at the create.
    let error = match docker.create(&spec).await {
        Err(error) => error,
        Ok(id) => {
            let error = docker.start(&id).await.unwrap_err();
            docker.remove(&id).await.unwrap();
            error
        }
    };
    assert_eq!(error.class, ErrorClass::NetworkMissing, "{error}");
    assert!(error.message.contains("no-such-network"), "{error}");
    assert_eq!(docker.inspect(&spec.name).await.unwrap_err().class, ErrorClass::NotFound);
}

async fn addresses_that_are_used_up_are_said_so(engine: &TestEngine) {
    let docker = connect(engine);
    let image = busybox_image(&docker).await;
    // Network, gateway, one host, broadcast.
    let network = engine.network(&unique_subnet(30));
    let on_it = |what: &str| BuddySpec { network: network.name.clone(), ..spec(&name(what), &image, SLEEP) };
    let first = docker.create(&on_it("fits")).await.unwrap();
    docker.start(&first).await.unwrap();
    assert_eq!(docker.inspect(first.as_str()).await.unwrap().addresses.len(), 1);
    let second = docker.create(&on_it("does-not-fit")).await.unwrap();
    let error = docker.start(&second).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::NoAddresses, "{error}");
    docker.remove(&first).await.unwrap();
    eventually("the address to be free again", LIMIT, || async { docker.start(&second).await.ok() }).await;
    docker.remove(&second).await.unwrap();
}

async fn what_is_not_there_is_not_found_and_its_removal_is_done(engine: &TestEngine) {
    let docker = connect(engine);
    let nobody = "0".repeat(64).into();
    assert_eq!(docker.inspect("nobody-here").await.unwrap_err().class, ErrorClass::NotFound);
    assert_eq!(docker.start(&nobody).await.unwrap_err().class, ErrorClass::NotFound);
    assert_eq!(docker.rename(&nobody, &name("x")).await.unwrap_err().class, ErrorClass::NotFound);
    assert_eq!(docker.wait(&nobody).await.unwrap_err().class, ErrorClass::NotFound);
    docker.remove(&nobody).await.unwrap();
}

async fn two_hundred_waits_hold_up_nobody(engine: &TestEngine) {
    let docker = Arc::new(connect(engine));
    let buddy = buddy(&docker, &name("waited")).await;
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (docker, id) = (Arc::clone(&docker), buddy.id.clone());
        waits.spawn(async move { docker.wait(&id).await });
    }
    // Each of the waits has its connection before the other calls are made.
    let connections = || async { (connections_to(&engine.socket) >= 200).then_some(()) };
    eventually("200 connections", LIMIT, connections).await;
    let start = Instant::now();
    for _ in 0..20 {
        timeout(LIMIT, docker.inspect(buddy.id.as_str())).await.unwrap().unwrap();
    }
    // They take less than a second; with waits that poll inside podman they took 37.
    assert!(start.elapsed() < Duration::from_secs(15), "20 inspects beside 200 waits took {:?}", start.elapsed());
    docker.remove(&buddy.id).await.unwrap();
    while let Some(outcome) = timeout(LIMIT, waits.join_next()).await.expect("every wait comes back") {
        assert_eq!(outcome.unwrap().unwrap(), WaitOutcome::Exited(137));
    }
}

/// Connections that are accepted on a Unix socket, from the kernel's table.
fn connections_to(socket: &std::path::Path) -> usize {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let path = socket.display().to_string();
    // The listening socket itself has the same path.
    table.lines().filter(|line| line.ends_with(&path)).count().saturating_sub(1)
}

async fn a_pull_that_fails_has_the_registrys_words(engine: &TestEngine) {
    let docker = connect(engine);
    // Nobody listens there.
    let (_port, host) = reserved_port();
    let reference = format!("{host}/nspool/none:1");
    let error = timeout(LIMIT, docker.pull_image(&reference, None, &|_| {})).await.unwrap().unwrap_err();
    assert_eq!((error.class, error.operation), (ErrorClass::Refused, "pull"), "{error}");
    assert!(error.message.contains("connection refused"), "{error}");
    assert_eq!(docker.image_id(&reference).await.unwrap(), None);
}

/// Says 401 to everything, and keeps what it was sent.
async fn strict_registry(listener: tokio::net::TcpListener, heard: &std::sync::Mutex<String>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).await.unwrap_or(0);
        heard.lock().unwrap().push_str(&String::from_utf8_lossy(&request[..length]));
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let head =
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"strict\"\r\nDocker-Distribution-Api-Version: registry/2.0\r\n";
        let answer = format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        // An engine that tries TLS first hangs up.
        let _hung_up = connection.write_all(answer.as_bytes()).await;
    }
}

async fn a_registry_that_wants_credentials_is_said_so(engine: &TestEngine) {
    let docker = connect(engine);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference = format!("{}/nspool/secret:1", listener.local_addr().unwrap());
    let heard = std::sync::Mutex::new(String::new());
    let credentials = Credentials { username: "bob".into(), secret: "hunter2".into() };
    let pulls = async {
        for credentials in [None, Some(&credentials)] {
            let error = timeout(LIMIT, docker.pull_image(&reference, credentials, &|_| {})).await.unwrap().unwrap_err();
            assert_eq!(error.class, ErrorClass::RegistryDenied, "{error}");
            assert!(!error.to_string().contains("hunter2"));
        }
    };
    tokio::select! { () = pulls => {}, () = strict_registry(listener, &heard) => {} }
    // bob:hunter2
    assert!(heard.lock().unwrap().contains("Basic Ym9iOmh1bnRlcjI="), "the credentials reached the registry: {heard:?}");
}

async fn a_load_that_fails_is_an_error(engine: &TestEngine) {
    let docker = connect(engine);
    let error = docker.load_image(b"this is no archive".to_vec().into()).await.unwrap_err();
    assert_eq!((error.class, error.operation), (ErrorClass::Refused, "load"), "{error}");
}

/// What a nanny sees when its engine freezes, goes and comes back.
async fn a_frozen_and_a_killed_engine(mut engine: TestEngine) {
    let docker = connect(&engine);
    let buddy = buddy(&docker, "survivor").await;
    let mut events = docker.events().await.unwrap();
    let waiting = docker.wait(&buddy.id);
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(200), &mut waiting).await.is_err());

    engine.signal("STOP");
    // Frozen: it connects and never answers; the deadline is the caller's.
    assert!(timeout(Duration::from_millis(500), docker.ping()).await.is_err());
    assert!(timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    engine.signal("CONT");
    timeout(LIMIT, docker.ping()).await.unwrap().unwrap();

    engine.kill();
    assert_eq!(timeout(LIMIT, &mut waiting).await.unwrap().unwrap(), WaitOutcome::Unknown, "an engine that went away says nothing");
    let ended = timeout(LIMIT, async { while let Some(Ok(_)) = events.next().await {} }).await;
    assert!(ended.is_ok(), "the event stream ends");
    assert_eq!(docker.ping().await.unwrap_err().class, ErrorClass::Away);
    assert_eq!(docker.create(&spec("x", &buddy.image, SLEEP)).await.unwrap_err().class, ErrorClass::Away);
    assert!(std::path::Path::new(&format!("/proc/{}", buddy.pid)).exists(), "the buddy is not the engine's child");

    engine.launch();
    docker.info().await.unwrap();
    let back = docker.inspect(buddy.id.as_str()).await.unwrap();
    assert_eq!((back.status, back.pid, &back.started_at), (ContainerStatus::Running, buddy.pid, &buddy.started_at));
    docker.remove(&buddy.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_docker_that_freezes_and_goes() {
    a_frozen_and_a_killed_engine(PrivateDocker::start_with(&["--live-restore"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_podman_that_freezes_and_goes() {
    a_frozen_and_a_killed_engine(PrivatePodman::start()).await;
}
