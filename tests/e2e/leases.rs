//! The main job: a namespace is ready, a function starts in it, it is given back, and what comes after is as the policy says.

use nspool::client::{Client, Request};
use nspool::proto::ReleaseOutcome;

use crate::support::daemon::{TestDaemon, load_busybox, returned, text};
use crate::support::engines::{TestEngine, unique_subnet};
use crate::support::image::BUSYBOX;

on_both_engines!(
    a_function_sees_the_buddys_address,
    the_command_line_does_the_whole_job,
    once_gives_a_new_buddy_to_each_use,
    always_keeps_the_buddy_under_another_name,
    ipc_is_shared_when_configured,
    slots_are_spread_over_the_networks,
);

async fn a_function_sees_the_buddys_address(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &[]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = client.allocate(Request::new()).await.unwrap();
    let mode = lease.network_mode.clone();
    assert_eq!(mode, format!("container:{}", lease.namespace_id));
    let seen = daemon.function(&["run", "--rm"], &mode, &["ip", "-o", "-4", "addr", "show", "dev", "eth0"]).unwrap();
    assert!(seen.contains(&lease.ip_addresses[0]), "{seen} is not {:?}", lease.ip_addresses);
    let route = daemon.function(&["run", "--rm"], &mode, &["ip", "route"]).unwrap();
    assert!(route.contains(&format!("default via {}", lease.gateways[0])), "{route}");
    let mut lease = lease;
    lease.finished();
    let (token, generation) = (lease.token.clone(), lease.generation);
    returned(&lease.release().await.unwrap());
    assert_eq!(client.release(&token, false).await.unwrap().outcome(), ReleaseOutcome::AlreadyReleased);
    daemon.settled(2).await;
    assert!(daemon.slots().await.iter().all(|slot| slot.state != "ready" || slot.generation != generation));
    assert_eq!(daemon.buddies().len(), 2, "no more than the pool knows");
}

async fn the_command_line_does_the_whole_job(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1"]).await;
    let lease = daemon.json(&["allocate", "--wait", "60s", "--owner", "agent", "--tenant", "acme", "--label", "k=v"]);
    let word = |key: &str| lease[key].as_str().unwrap().to_owned();
    assert_eq!(
        (lease["owner"].as_str(), lease["tenant"].as_str(), lease["labels"]["k"].as_str()),
        (Some("agent"), Some("acme"), Some("v"))
    );
    assert_eq!(lease["host_config"]["HostConfig"]["NetworkMode"].as_str(), Some(word("network_mode").as_str()));
    let function = daemon.stay(&word("network_mode"));
    let pid = engine.run(&["inspect", "--format", "{{.State.Pid}}", &function]);
    let ip = lease["ip_addresses"][0].as_str().unwrap().split('/').next().unwrap().to_owned();
    let buddy = word("container_id");
    for (asked, kind) in [(&function, "joiner"), (&pid, "process"), (&ip, "address"), (&buddy, "buddy"), (&word("namespace_id"), "buddy")] {
        let found = daemon.json(&["whois", asked]);
        assert_eq!(
            (found["kind"].as_str(), found["lease"]["lease_id"].as_str()),
            (Some(kind), lease["lease_id"].as_str()),
            "whois {asked}"
        );
    }
    let heard = |client: Client| async move { client.leases().await.ok()?.iter().all(|l| l.remaining.is_none()).then_some(()) };
    daemon.level("the function to be heard of", heard).await;
    engine.run(&["rm", "-f", &function]);
    // The daemon hears of it from the engine's events, which podman sends late: then the lease has an end in sight again.
    let lingers = |client: Client| async move { client.leases().await.ok()?.iter().any(|l| l.remaining.is_some()).then_some(()) };
    daemon.level("the function to have left", lingers).await;
    assert_eq!(daemon.json(&["usage"])["leased"], 1);
    let released = daemon.json(&["release", &word("token")]);
    assert_eq!(released["outcome"], "returned");

    let ran = daemon.cli(&["run", "--wait", "60s", BUSYBOX, "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.status.code(), text(&ran.stdout).as_str()), (Some(7), "out"), "{}", text(&ran.stderr));
    assert!(text(&ran.stderr).contains("err"));
    daemon.settled(1).await;
    assert_eq!(daemon.cli(&["whois", "203.0.113.1"]).status.code(), Some(1));
}

async fn once_gives_a_new_buddy_to_each_use(engine: &TestEngine) {
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1", "pool.reuse = \"once\""]).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let mut before = daemon.allocate(&client).await;
    for _ in 0..2 {
        client.release(&before.token, false).await.unwrap();
        let lease = daemon.allocate(&client).await;
        assert!(lease.generation > before.generation && lease.namespace_id != before.namespace_id);
        assert_ne!(lease.container_id, before.container_id);
        before = lease;
    }
}

async fn always_keeps_the_buddy_under_another_name(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.max = 1", "pool.reuse = \"always\""]).await;
    daemon.settled(1).await;
    let client = daemon.client();
    let first = daemon.allocate(&client).await;
    assert_eq!(first.container_id, "", "an id would outlive the fence");
    daemon.function(&["run", "--rm"], &first.network_mode, &["true"]).unwrap();
    client.release(&first.token, false).await.unwrap();
    let second = daemon.allocate(&client).await;
    assert_eq!((second.generation, second.r#use), (first.generation, first.r#use + 1));
    assert_ne!(second.namespace_id, first.namespace_id);
    assert_eq!(second.ip_addresses, first.ip_addresses);
    // Only a release without doubt leads to another use.
    client.release(&second.token, true).await.unwrap();
    let third = daemon.allocate(&client).await;
    assert!(third.generation > second.generation);
}

async fn ipc_is_shared_when_configured(engine: &TestEngine) {
    load_busybox(engine);
    let daemon = TestDaemon::start(engine, &["pool.ready = 1", "pool.namespaces = [\"net\", \"ipc\"]"]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let merge: serde_json::Value = serde_json::from_str(&lease.host_config).unwrap();
    let ipc = merge["HostConfig"]["IpcMode"].as_str().unwrap();
    let pid = daemon.slots().await.into_iter().find(|slot| slot.slot == lease.slot).unwrap().pid;
    let buddys = std::fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap().display().to_string();
    let seen = daemon.function(&["run", "--rm", "--ipc", ipc], &lease.network_mode, &["ls", "-l", "/proc/self/ns/ipc"]).unwrap();
    assert!(seen.contains(&buddys), "{seen} is not {buddys}");
}

async fn slots_are_spread_over_the_networks(engine: &TestEngine) {
    load_busybox(engine);
    let (one, other) = (engine.network(&unique_subnet(27)), engine.network(&unique_subnet(27)));
    let networks = format!("pool.networks = [{:?}, {:?}]", one.name, other.name);
    let daemon = TestDaemon::start(engine, &["pool.ready = 4", &networks]).await;
    daemon.settled(4).await;
    let per_network = daemon.client().usage().await.unwrap().networks;
    assert_eq!([per_network[&one.name].ready, per_network[&other.name].ready], [2, 2]);
    let client = daemon.client();
    for network in [&one, &other] {
        let lease = client.allocate(Request::new().network(&network.name)).await.unwrap().keep();
        assert_eq!(lease.network, network.name);
        let seen = daemon.function(&["run", "--rm"], &lease.network_mode, &["ip", "-o", "-4", "addr"]).unwrap();
        assert!(seen.contains(&lease.ip_addresses[0]), "{seen}");
    }
    let unknown = daemon.cli(&["allocate", "--network", "nowhere"]);
    assert_eq!(unknown.status.code(), Some(64), "{}", text(&unknown.stderr));
}
