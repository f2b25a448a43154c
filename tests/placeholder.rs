//! The embedded placeholder on real engines: Docker and podman load it, buddies of it run with everything taken away, leave at once, and reap
//! what joiners leave behind; the gate follows the engine's word.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]
#![expect(clippy::print_stdout, reason = "what was measured, or said, is worth a look")]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use nspool::config;
use nspool::engine::docker::Docker;
use nspool::engine::paced::{Deadlines, Paced};
use nspool::engine::{BuddySpec, ContainerStatus, Engine, ErrorClass, EventAction, Flavour, ImageId, Labels, NamespaceKind, WaitOutcome};
use nspool::image::gate::{Gate, GateState, Source};
use nspool::image::placeholder::{Arch, Archive, INIT};
use support::engines::{PrivateDocker, TestEngine, docker, podman, unique};
use support::image::{BUSYBOX, busybox_image};
use support::wait_for;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const LIMIT: Duration = Duration::from_secs(60);

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod docker_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::docker()).await } )* }
        mod podman_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::podman()).await } )* }
    };
}

on_both_engines!(a_buddy_runs_and_leaves_at_once, a_buddy_reaps_the_orphans_of_its_joiners, the_gate_brings_a_lost_image_back);

struct Running {
    gate: Arc<Gate>,
    engine: Arc<dyn Engine>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    fn start(engine: &TestEngine, archive: Archive) -> Self {
        let docker = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
        let deadlines = Deadlines::from_config(&config::Engine::default(), &config::Placeholder::default());
        let tasks = TaskTracker::new();
        let engine: Arc<dyn Engine> = Arc::new(Paced::new(Arc::new(docker), &config::Pacer::default(), deadlines, tasks.clone()));
        let gate = Arc::new(Gate::new(engine.clone(), Source::Embedded(archive), config::Backoff::default(), LIMIT));
        let stop = CancellationToken::new();
        tasks.spawn({
            let (gate, stop) = (gate.clone(), stop.clone());
            async move { gate.run(stop).await }
        });
        Self { gate, engine, stop, tasks }
    }

    async fn ready(&self) -> ImageId {
        let ready = tokio::time::timeout(LIMIT, self.gate.ready()).await;
        ready.unwrap_or_else(|_| panic!("not ready within {LIMIT:?}: {:?}", self.gate.state()))
    }

    async fn until(&self, what: &str, level: impl FnMut(&GateState) -> bool) -> GateState {
        let mut changes = self.gate.subscribe();
        tokio::time::timeout(LIMIT, changes.wait_for(level)).await.unwrap_or_else(|_| panic!("never {what}")).unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(LIMIT, self.tasks.wait()).await.expect("the gate's task ends");
    }
}

fn spec(image: ImageId) -> BuddySpec {
    BuddySpec {
        name: format!("buddy-{:x}", unique()),
        image,
        command: Vec::new(),
        labels: Labels::new(),
        network: "bridge".into(),
        namespaces: vec![NamespaceKind::Net, NamespaceKind::Pid],
        user: "65533:65533".into(),
        memory_bytes: 16 << 20,
        pids: 16,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}

async fn a_buddy_runs_and_leaves_at_once(engine: &TestEngine) {
    let running = Running::start(engine, Archive::embedded().unwrap());
    let image = running.ready().await;
    // What was loaded is what was made: the id is the digest of the config that the tag is made of.
    let tag = running.gate.reference().rsplit_once(':').unwrap().1.to_owned();
    assert!(image.as_str().trim_start_matches("sha256:").starts_with(&tag), "{image} is tagged {tag}");

    let mut shortest = Duration::MAX;
    // The host may be busy with something else.
    for _ in 0..10 {
        shortest = shortest.min(left_after(engine, &running, &image).await);
        if shortest < Duration::from_millis(100) {
            break;
        }
    }
    assert!(shortest < Duration::from_millis(100), "{shortest:?} at best");
    running.stop().await;
}

/// A buddy's life, and how long its end took.
async fn left_after(engine: &TestEngine, running: &Running, image: &ImageId) -> Duration {
    let id = running.engine.create(&spec(image.clone())).await.unwrap();
    running.engine.start(&id).await.unwrap();
    let buddy = running.engine.inspect(id.as_str()).await.unwrap();
    assert_eq!((buddy.status, buddy.exit_code), (ContainerStatus::Running, None), "{}", buddy.error);
    assert_eq!(buddy.labels["nspool.placeholder"], "1");
    wait_for("it waits for signals", LIMIT, || waits_for_signals(buddy.pid).then_some(()));

    let process = rustix::process::Pid::from_raw(buddy.pid.cast_signed()).unwrap();
    let begin = Instant::now();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    wait_for("its process to end", LIMIT, || ended(buddy.pid).then_some(()));
    let took = begin.elapsed();
    println!("{}: left after {took:?}", engine.kind);
    let outcome = tokio::time::timeout(LIMIT, running.engine.wait(&id)).await.unwrap().unwrap();
    assert_eq!(outcome, WaitOutcome::Exited(0));
    running.engine.remove(&id).await.unwrap();
    took
}

async fn a_buddy_reaps_the_orphans_of_its_joiners(engine: &TestEngine) {
    let running = Running::start(engine, Archive::embedded().unwrap());
    let id = running.engine.create(&spec(running.ready().await)).await.unwrap();
    running.engine.start(&id).await.unwrap();
    let buddy = running.engine.inspect(id.as_str()).await.unwrap();
    busybox_image(running.engine.as_ref()).await;

    // The joiner runs on while its child, left by a parent that ended, becomes the buddy's and ends in its turn.
    let mode = format!("container:{id}");
    let script = "(sleep 100000 &) ; exec sleep 100000";
    let joiner = engine.run(&["run", "-d", "--net", &mode, "--pid", &mode, BUSYBOX, "/bin/sh", "-c", script]);
    let orphan = || children(buddy.pid).first()?.split_whitespace().next()?.parse().ok().and_then(rustix::process::Pid::from_raw);
    let orphan = wait_for("the buddy has an orphan", LIMIT, orphan);
    rustix::process::kill_process(orphan, rustix::process::Signal::KILL).unwrap();
    wait_for("the orphan is gone, and no zombie stays", LIMIT, || children(buddy.pid).is_empty().then_some(()));
    engine.run(&["rm", "-f", &joiner]);
    running.engine.remove(&id).await.unwrap();
    running.stop().await;
}

async fn the_gate_brings_a_lost_image_back(engine: &TestEngine) {
    // An image of its own, so that the other tests keep theirs.
    let mut init = INIT.to_vec();
    init.extend(unique().to_le_bytes());
    let running = Running::start(engine, Archive::build(&init, Arch::NATIVE).unwrap());
    let image = running.ready().await;
    let mut events = running.engine.events().await.unwrap();
    engine.run(&["rmi", running.gate.reference()]);
    let gone = tokio::time::timeout(LIMIT, async {
        loop {
            let event = events.next().await.expect("the stream goes on").unwrap();
            if event.action == EventAction::ImageGone
                && event.id.trim_start_matches("sha256:") == image.as_str().trim_start_matches("sha256:")
            {
                break event;
            }
        }
    });
    running.gate.image_gone(&gone.await.expect("the engine says that it is gone").id);
    assert_eq!(running.ready().await, image);
    assert_eq!(running.engine.image_id(running.gate.reference()).await.unwrap(), Some(image.clone()));

    // The second witness: a create that is told so.
    engine.run(&["rmi", running.gate.reference()]);
    let error = running.engine.create(&spec(image.clone())).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::ImageMissing, "{error}");
    running.gate.image_gone(image.as_str());
    let id = running.engine.create(&spec(running.ready().await)).await.unwrap();
    running.engine.remove(&id).await.unwrap();
    engine.run(&["rmi", running.gate.reference()]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_away_is_said_and_the_gate_opens_when_it_is_back() {
    let mut engine = PrivateDocker::start();
    engine.kill();
    let running = Running::start(&engine, Archive::embedded().unwrap());
    let state = running.until("failed", |state| matches!(state, GateState::Failed(_))).await;
    let failure = state.failure().unwrap();
    assert_eq!(failure.class, ErrorClass::Away, "{}", failure.why);
    println!("{}", failure.why);
    engine.launch();
    running.gate.nudge();
    running.ready().await;
    running.stop().await;
}

/// It is inside `rt_sigtimedwait`.
fn waits_for_signals(pid: u32) -> bool {
    let number = if cfg!(target_arch = "aarch64") { "137" } else { "128" };
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    call.split_whitespace().next() == Some(number)
}

fn ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

fn children(pid: u32) -> Vec<String> {
    let output = Command::new("ps").args(["-o", "pid=,stat=,comm=", "--ppid", &pid.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
