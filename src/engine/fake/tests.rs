//! The fake behaves as the engines were measured to behave. Each test is one row of what was seen.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};

use super::*;
use crate::engine::{BuddySpec, ContainerStatus, EngineEvent, ErrorClass, EventAction, Flavour, ImageId, NamespaceKind, WaitOutcome};

fn world() -> (Arc<FakeWorld>, Arc<dyn Engine>) {
    let world = FakeWorld::new(7);
    world.put_image("placeholder");
    let engine = world.engine();
    (world, engine)
}

fn spec(world: &FakeWorld, name: &str) -> BuddySpec {
    let image = world.model.lock().images.find("placeholder").unwrap_or(ImageId::from("sha256:none"));
    BuddySpec {
        name: name.into(),
        image,
        command: Vec::new(),
        labels: [("nspool.pool".to_owned(), "default".to_owned())].into(),
        network: "bridge".into(),
        namespaces: vec![NamespaceKind::Net],
        user: "65533:65533".into(),
        memory_bytes: 16 << 20,
        pids: 16,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}

async fn buddy(world: &Arc<FakeWorld>, name: &str) -> ContainerId {
    let engine = world.engine();
    let id = engine.create(&spec(world, name)).await.unwrap();
    engine.start(&id).await.unwrap();
    id
}

/// The message's class, or `None` when it went well.
fn class<T>(answer: Result<T, crate::engine::EngineError>) -> Option<ErrorClass> {
    answer.err().map(|error| error.class)
}

#[tokio::test(start_paused = true)]
async fn a_buddy_runs_in_namespaces_of_its_own_with_an_address() {
    let (world, engine) = world();
    let one = buddy(&world, "one").await;
    let two = buddy(&world, "two").await;
    let (first, second) = (engine.inspect("one").await.unwrap(), engine.inspect(two.as_str()).await.unwrap());
    assert_eq!((first.status, first.id.clone()), (ContainerStatus::Running, one.clone()));
    assert_ne!(first.pid, second.pid);
    assert_ne!(first.addresses, second.addresses);
    assert_ne!(first.started_at, second.started_at);
    let kernel = world.kernel();
    let (held, other) = (kernel.hold(first.pid, &[]).await.unwrap(), kernel.hold(second.pid, &[]).await.unwrap());
    let net = held.namespace(NamespaceKind::Net).unwrap();
    assert_ne!(Some(net), other.namespace(NamespaceKind::Net));
    assert_ne!(net, kernel.host_namespace(NamespaceKind::Net).unwrap());
    assert_eq!(one.as_str().len(), 64);
}

#[tokio::test(start_paused = true)]
async fn pids_and_inode_numbers_come_back_unless_held() {
    let (world, engine) = world();
    let kernel = world.kernel();
    buddy(&world, "one").await;
    let before = engine.inspect("one").await.unwrap();
    let held = kernel.hold(before.pid, &[]).await.unwrap();
    let net = held.namespace(NamespaceKind::Net).unwrap();
    world.kill("one");
    assert!(!held.is_alive());
    held.exited().await;
    buddy(&world, "two").await;
    let after = engine.inspect("two").await.unwrap();
    assert_eq!(after.pid, before.pid, "the pid came back");
    assert_ne!(world.namespace_of("two"), Some(net), "held open, so the number cannot come back");
    drop(held);
    buddy(&world, "three").await;
    assert_eq!(world.namespace_of("three"), Some(net), "not held any more");
}

#[tokio::test(start_paused = true)]
async fn rename_is_a_fence_for_names_but_not_for_ids() {
    let (world, engine) = world();
    let id = buddy(&world, "lease-1").await;
    let early = world.create_function(FunctionSpec::joining("lease-1", Some("lease-1"))).unwrap();
    engine.rename(&id, "lease-2").await.unwrap();
    assert_eq!(class(engine.inspect("lease-1").await), Some(ErrorClass::NotFound));
    let late = world.create_function(FunctionSpec::joining("lease-1", Some("lease-1"))).expect("the create is accepted");
    assert_eq!(class(world.start_function(&late)), Some(ErrorClass::NetworkMissing));
    world.start_function(&early).expect("it was resolved before the rename");
    assert_eq!(world.live_joiners("lease-2").len(), 1);
    let listed = engine.list().await.unwrap();
    let joins: Vec<_> = listed.iter().filter_map(|row| row.joins()).collect();
    assert_eq!(joins, [id.as_str(), "lease-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_create_resolves_early_and_is_listed_late() {
    let (world, engine) = world();
    let id = buddy(&world, "lease-1").await;
    let half = world.begin_create_function(FunctionSpec::joining("lease-1", None)).unwrap();
    engine.rename(&id, "lease-2").await.unwrap();
    assert_eq!(engine.list().await.unwrap().len(), 1);
    let function = world.finish_create_function(half).unwrap();
    world.start_function(&function).unwrap();
    assert_eq!(world.live_joiners("lease-2").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_joiner_outlives_its_buddy_and_removing_the_buddy_is_recorded() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    let function = world.run_function("one", None, "f").unwrap();
    world.kill("one");
    assert!(world.is_alive(function.as_str()));
    assert_eq!(world.live_joiners("one"), ["container f"]);
    assert_eq!(class(world.run_function("one", None, "g")), Some(ErrorClass::Refused), "a stopped one cannot be joined");
    engine.remove(&id).await.unwrap();
    assert_eq!(world.violations(), [Violation::RemovedWithJoiner { buddy: "one".into(), inside: vec!["container f".into()] }]);
    engine.remove(&id).await.expect("gone already is fine");
    assert_eq!(world.violations().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stranger_in_the_namespace_is_seen_by_the_kernel_alone() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    let net = world.namespace_of("one").unwrap();
    let pid = world.leave_process_behind("one").unwrap();
    assert!(engine.list().await.unwrap().iter().all(|row| row.joins().is_none()));
    let kernel = world.kernel();
    let members = kernel.members(NamespaceKind::Net, &[net]).await.unwrap();
    assert!(members[&net].iter().any(|process| process.pid == pid));
    world.end_process(pid);
    engine.remove(&id).await.unwrap();
    assert_eq!(world.violations(), []);
    assert_eq!(kernel.members(NamespaceKind::Net, &[net]).await.unwrap()[&net], []);
}

#[tokio::test(start_paused = true)]
async fn a_process_may_outlive_the_removal_of_its_container() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    let pid = engine.inspect("one").await.unwrap().pid;
    let held = world.kernel().hold(pid, &[]).await.unwrap();
    world.survive_removal("one");
    engine.remove(&id).await.unwrap();
    assert!(world.container("one").is_none());
    assert!(held.is_alive());
    world.end_process(pid);
    assert!(!held.is_alive());
}

#[tokio::test(start_paused = true)]
async fn wait_tells_a_death_hangs_on_a_paused_one_and_ends_empty_when_the_engine_goes() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    let mut wait = engine.wait(&id);
    assert!(wait.as_mut().now_or_never().is_none());
    world.pause("one");
    assert!(wait.as_mut().now_or_never().is_none());
    world.unpause("one");
    world.kill("one");
    assert_eq!(wait.await.unwrap(), WaitOutcome::Exited(137));
    assert_eq!(engine.wait(&id).await.unwrap(), WaitOutcome::Exited(137), "safe to attach again");
    let id = buddy(&world, "two").await;
    let mut wait = engine.wait(&id);
    assert!(wait.as_mut().now_or_never().is_none());
    world.engine_away();
    assert_eq!(wait.await.unwrap(), WaitOutcome::Unknown);
    assert_eq!(class(engine.wait(&id).await), Some(ErrorClass::Away));
}

async fn actions(events: &mut (impl futures::Stream<Item = Result<EngineEvent, crate::engine::EngineError>> + Unpin)) -> Vec<EventAction> {
    let mut seen = Vec::new();
    while let Some(Some(Ok(event))) = events.next().now_or_never() {
        seen.push(event.action);
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn events_tell_a_life_in_order() {
    let (world, engine) = world();
    let mut events = engine.events().await.unwrap();
    let id = buddy(&world, "one").await;
    world.pause("one");
    world.unpause("one");
    engine.remove(&id).await.unwrap();
    world.image_removed("placeholder");
    use EventAction::{Created, Died, ImageGone, Paused, Removed, Started, Unpaused};
    assert_eq!(actions(&mut events).await, [Created, Started, Paused, Unpaused, Died, Removed, ImageGone]);
    world.cut_events();
    assert_eq!(class(events.next().await.unwrap()), Some(ErrorClass::Unknown));
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_dies_while_the_engine_is_away_is_never_told_but_known() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    world.engine_away();
    world.kill("one");
    assert_eq!(class(engine.inspect("one").await), Some(ErrorClass::Away));
    world.engine_back(Containers::Kept, Events::Lost);
    let mut events = engine.events().await.unwrap();
    assert_eq!(engine.inspect("one").await.unwrap().status, ContainerStatus::Exited);
    assert_eq!(engine.wait(&id).await.unwrap(), WaitOutcome::Exited(137));
    assert_eq!(actions(&mut events).await, []);
    buddy(&world, "two").await;
    world.engine_away();
    world.engine_back(Containers::Stopped, Events::Lost);
    assert!(!world.is_alive("two"));
}

#[tokio::test(start_paused = true)]
async fn a_frozen_engine_answers_when_it_is_back_even_if_the_caller_is_gone() {
    let (world, engine) = world();
    let mut events = engine.events().await.unwrap();
    let id = buddy(&world, "one").await;
    assert_eq!(actions(&mut events).await.len(), 2);
    world.engine_frozen();
    let mut ping = engine.ping();
    assert!(ping.as_mut().now_or_never().is_none());
    let rename = tokio::time::timeout(Duration::from_secs(5), engine.rename(&id, "two")).await;
    assert!(rename.is_err(), "no answer");
    world.kill("one");
    assert_eq!(actions(&mut events).await, []);
    world.engine_back(Containers::Kept, Events::Late);
    ping.await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().action, EventAction::Died);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(world.container("two").is_some(), "a cancelled call is carried out all the same");
}

#[tokio::test(start_paused = true)]
async fn the_engine_can_lie() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    let pid = engine.inspect("one").await.unwrap().pid;
    let held = world.kernel().hold(pid, &[]).await.unwrap();
    let mut events = engine.events().await.unwrap();
    world.lie_running("one");
    held.exited().await;
    let lie = engine.inspect("one").await.unwrap();
    assert_eq!((lie.status, lie.pid), (ContainerStatus::Running, pid));
    let mut wait = engine.wait(&id);
    assert!(wait.as_mut().now_or_never().is_none());
    assert_eq!(actions(&mut events).await, []);
    world.stop_lying("one");
    assert_eq!(wait.await.unwrap(), WaitOutcome::Exited(137));
    assert_eq!(actions(&mut events).await, [EventAction::Died]);
}

#[tokio::test(start_paused = true)]
async fn without_containerd_creates_go_on_and_starts_fail() {
    let (world, engine) = world();
    world.containerd_away();
    let id = engine.create(&spec(&world, "one")).await.unwrap();
    assert_eq!(class(engine.start(&id).await), Some(ErrorClass::Refused));
    assert_eq!(world.addresses_in_use("bridge"), 0, "a failed start gives its address back");
    world.containerd_back();
    engine.start(&id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_engine_says_no_in_its_own_words() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    assert_eq!(class(engine.create(&spec(&world, "one")).await), Some(ErrorClass::NameTaken));
    assert_eq!(class(engine.create(&BuddySpec { image: "sha256:x".into(), ..spec(&world, "x") }).await), Some(ErrorClass::ImageMissing));
    let lost = engine.create(&BuddySpec { network: "nowhere".into(), ..spec(&world, "lost") }).await.expect("found out at start");
    assert_eq!(class(engine.start(&lost).await), Some(ErrorClass::NetworkMissing));
    assert_eq!(engine.inspect("lost").await.unwrap().error, "network nowhere not found");
    world.set_addresses("small", 1);
    let small = |name: &str| BuddySpec { network: "small".into(), ..spec(&world, name) };
    let (first, second) = (engine.create(&small("s1")).await.unwrap(), engine.create(&small("s2")).await.unwrap());
    engine.start(&first).await.unwrap();
    assert_eq!(class(engine.start(&second).await), Some(ErrorClass::NoAddresses));
    engine.remove(&first).await.unwrap();
    engine.start(&second).await.expect("the address came back");
    engine.start(&id).await.expect("already running is fine");
    world.set_disk_full(true);
    assert_eq!(class(engine.create(&spec(&world, "two")).await), Some(ErrorClass::DiskFull));
    engine.remove(&id).await.expect("rm works");
    world.network_removed("small");
    assert!(world.is_alive("s2"));
}

#[tokio::test(start_paused = true)]
async fn scripts_are_used_up_in_order_by_name_and_seen_by_the_hook() {
    let (world, engine) = world();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    world.on_call(move |call| log.lock().push((call.operation, call.phase)));
    world.script_for(Operation::Create, "b", Fault::Error(ErrorClass::Refused, "no".into()));
    world.script(Operation::Create, Fault::Unknown { done: true });
    world.script(Operation::Create, Fault::Unknown { done: false });
    assert_eq!(class(engine.create(&spec(&world, "a")).await), Some(ErrorClass::Unknown));
    assert!(world.container("a").is_some());
    assert_eq!(class(engine.create(&spec(&world, "b")).await), Some(ErrorClass::Refused));
    assert_eq!(class(engine.create(&spec(&world, "c")).await), Some(ErrorClass::Unknown));
    assert!(world.container("c").is_none());
    engine.create(&spec(&world, "b")).await.unwrap();
    assert_eq!(world.count(Operation::Create), 4);
    assert_eq!(seen.lock()[..2], [(Operation::Create, Phase::Begun), (Operation::Create, Phase::Answered)]);
    assert_eq!(world.calls().last().unwrap().outcome, Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn slow_mutations_overlap_and_go_on_without_their_caller() {
    let (world, engine) = world();
    world.set_latency(Operation::Create, Duration::from_secs(1));
    let (one, two) = (spec(&world, "one"), spec(&world, "two"));
    let (first, second) = tokio::join!(engine.create(&one), tokio::time::timeout(Duration::from_millis(10), engine.create(&two)));
    first.unwrap();
    assert!(second.is_err());
    assert_eq!(world.mutations_high_water(), 2);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(world.container("two").is_some());
    assert_eq!(world.mutations_in_flight(), 0);
    world.script(Operation::Start, Fault::Never);
    let id = world.container("one").unwrap().id;
    assert!(tokio::time::timeout(Duration::from_secs(60), engine.start(&id)).await.is_err());
    world.script(Operation::Start, Fault::DoneNever);
    assert!(tokio::time::timeout(Duration::from_secs(60), engine.start(&id)).await.is_err());
    assert!(world.is_alive("one"));
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_with_the_right_credentials_and_loaded_by_their_manifest() {
    let (world, engine) = world();
    let credentials = crate::engine::Credentials { username: "u".into(), secret: "s".into() };
    world.publish_image("reg:5000/tail:1", Some(credentials.clone()));
    assert_eq!(class(engine.pull_image("reg:5000/tail:1", None, &|_| {}).await), Some(ErrorClass::RegistryDenied));
    assert_eq!(class(engine.pull_image("reg:5000/other", None, &|_| {}).await), Some(ErrorClass::RegistryUnknown));
    engine.pull_image("reg:5000/tail:1", Some(&credentials), &|_| {}).await.unwrap();
    assert!(engine.image_id("reg:5000/tail:1").await.unwrap().is_some());
    let mut archive = tar::Builder::new(Vec::new());
    let manifest = br#"[{"Config":"abc.json","RepoTags":["mine:1"],"Layers":[]}]"#;
    let mut header = tar::Header::new_gnu();
    header.set_size(manifest.len() as u64);
    archive.append_data(&mut header, "manifest.json", &manifest[..]).unwrap();
    engine.load_image(archive.into_inner().unwrap().into()).await.unwrap();
    assert_eq!(engine.image_id("mine:1").await.unwrap(), Some(ImageId::from("sha256:abc")));
    assert_eq!(class(engine.load_image(vec![1, 2, 3].into()).await), Some(ErrorClass::Refused));
    world.image_removed("mine:1");
    assert_eq!(engine.image_id("sha256:abc").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_must_never_happen_is_recorded() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    engine.remove(&id).await.unwrap();
    buddy(&world, "one").await;
    let decoy = world.create_function(FunctionSpec { name: "decoy".into(), ..FunctionSpec::default() }).unwrap();
    engine.remove(&decoy).await.unwrap();
    let foreign = Violation::ForeignTouched { operation: Operation::Remove, name: "decoy".into() };
    assert_eq!(world.violations(), [Violation::NameUsedTwice("one".into()), foreign]);
}

#[tokio::test(start_paused = true)]
async fn the_kernel_can_be_scripted_and_its_clock_counts_sleep() {
    let (world, _engine) = world();
    buddy(&world, "one").await;
    let kernel = world.kernel();
    let pid = world.container("one").unwrap().pid;
    let failed = KernelError::Failed { what: "pidfd_open".into(), message: "too many open files".into() };
    world.script_hold(failed);
    assert!(matches!(kernel.hold(pid, &[]).await, Err(KernelError::Failed { .. })));
    assert!(matches!(kernel.hold(4_000_000, &[]).await, Err(KernelError::Gone { .. })));
    kernel.hold(pid, &[NamespaceKind::Ipc]).await.unwrap().namespace(NamespaceKind::Ipc).unwrap();
    world.script_members(MembersFault::Never);
    assert!(tokio::time::timeout(Duration::from_secs(9), kernel.members(NamespaceKind::Net, &[])).await.is_err());
    let before = kernel.since_boot();
    tokio::time::advance(Duration::from_secs(1)).await;
    world.sleep_machine(Duration::from_secs(10));
    assert_eq!(kernel.since_boot() - before, Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_shared_pid_namespace_ends_its_joiners() {
    let (world, engine) = world();
    let shared = BuddySpec { namespaces: vec![NamespaceKind::Net, NamespaceKind::Pid], ..spec(&world, "one") };
    let id = engine.create(&shared).await.unwrap();
    engine.start(&id).await.unwrap();
    let function = FunctionSpec { also: vec![NamespaceKind::Pid], name: "f".into(), ..FunctionSpec::joining("one", None) };
    let function = world.create_function(function).unwrap();
    world.start_function(&function).unwrap();
    assert_eq!(world.container("f").unwrap().joins().count(), 2);
    world.kill("one");
    assert!(!world.is_alive("f"));
}

#[tokio::test(start_paused = true)]
async fn placeholders_can_end_at_once_and_containers_be_restarted() {
    let (world, engine) = world();
    let id = buddy(&world, "one").await;
    let before = engine.inspect("one").await.unwrap();
    world.restart("one").unwrap();
    let after = engine.inspect("one").await.unwrap();
    assert_eq!((&before.id, before.id.clone()), (&after.id, id));
    assert_ne!(before.started_at, after.started_at);
    world.buddies_exit_at_once(Some(3));
    buddy(&world, "two").await;
    assert_eq!(engine.inspect("two").await.unwrap().exit_code, Some(3));
}

#[tokio::test(start_paused = true)]
async fn it_carries_many_buddies() {
    let (world, engine) = world();
    world.forget_calls();
    let mut spec = spec(&world, "");
    let mut ids = Vec::new();
    for number in 0..20_000 {
        spec.name = format!("buddy-{number}");
        let id = engine.create(&spec).await.unwrap();
        engine.start(&id).await.unwrap();
        ids.push(id);
    }
    let mut waits: Vec<_> = ids.iter().map(|id| engine.wait(id)).collect();
    assert!(waits.iter_mut().all(|wait| wait.as_mut().now_or_never().is_none()));
    ids.iter().for_each(|id| world.kill(id.as_str()));
    for wait in waits {
        assert_eq!(wait.await.unwrap(), WaitOutcome::Exited(137));
    }
    for id in &ids {
        engine.remove(id).await.unwrap();
    }
    assert_eq!((world.buddy_count(), world.buddies_high_water(), world.addresses_in_use("bridge")), (0, 20_000, 0));
}
