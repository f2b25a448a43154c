//! A placeholder that is pulled: from a real registry, with and without a password, on Docker and on podman.
//!
//! Promises: the image is really pulled; what the registry says is kept, without secrets; a mistake that is mended opens the gate by itself.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails it")]
#![expect(clippy::print_stdout, reason = "what was measured, or said, is worth a look")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use nspool::config;
use nspool::engine::docker::Docker;
use nspool::engine::paced::{Deadlines, Paced};
use nspool::engine::{ContainerStatus, Engine, ErrorClass, ImageId};
use nspool::image::gate::{Failure, Gate, GateState, Source};
use nspool::image::pull::CredentialSource;
use support::engines::{TestEngine, docker, podman, unique};
use support::image::{BUSYBOX, busybox_image};
use support::registry::{PASSWORD, TestRegistry, USER};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const LIMIT: Duration = Duration::from_secs(60);

macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod docker_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::docker()).await } )* }
        mod podman_engine { $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { super::$name(super::podman()).await } )* }
    };
}

on_both_engines!(
    an_open_registry_needs_no_credentials,
    a_wrong_password_is_denied_in_the_registrys_words,
    the_password_comes_from_the_configuration_or_the_docker_config_file,
    a_registry_that_comes_late_opens_the_gate_by_itself,
);

/// A gate that runs; dropped, it stops.
struct Running {
    gate: Arc<Gate>,
    engine: Arc<dyn Engine>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    fn start(engine: &TestEngine, reference: &str, credentials: CredentialSource) -> Self {
        let docker = Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap();
        let deadlines = Deadlines::from_config(&config::Engine::default(), &config::Placeholder::default());
        let tasks = TaskTracker::new();
        let engine: Arc<dyn Engine> = Arc::new(Paced::new(Arc::new(docker), &config::Pacer::default(), deadlines, tasks.clone()));
        let backoff = config::Backoff { longest: Duration::from_secs(1), ..config::Backoff::default() };
        let source = Source::Reference { reference: reference.to_owned(), credentials };
        let gate = Arc::new(Gate::new(engine.clone(), source, backoff, LIMIT));
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

    async fn failed(&self) -> Failure {
        let mut changes = self.gate.subscribe();
        let failed = tokio::time::timeout(LIMIT, changes.wait_for(|state| matches!(state, GateState::Failed(_)))).await;
        failed.expect("it fails in time").unwrap().failure().unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(LIMIT, self.tasks.wait()).await.expect("the gate's task ends");
    }
}

fn nothing() -> CredentialSource {
    CredentialSource::new(Vec::new(), None)
}

fn configured(registry: &TestRegistry, password: &str) -> CredentialSource {
    let entry = config::Registry { host: registry.host.clone(), username: USER.into(), password: password.into() };
    CredentialSource::new(vec![entry], None)
}

/// In the registry, and under that name no longer in the engine.
async fn pushed(engine: &TestEngine, registry: &TestRegistry) -> String {
    busybox_image(&Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap()).await;
    registry.push(engine, BUSYBOX, "team/holder:1")
}

async fn an_open_registry_needs_no_credentials(engine: &TestEngine) {
    let registry = TestRegistry::start(false);
    let reference = pushed(engine, &registry).await;
    let running = Running::start(engine, &reference, nothing());
    let image = running.ready().await;
    assert_eq!(running.engine.image_id(&reference).await.unwrap(), Some(image.clone()));

    let spec = nspool::engine::BuddySpec {
        name: format!("pulled-{:x}", unique()),
        image,
        command: vec!["/bin/sleep".into(), "100000".into()],
        labels: nspool::engine::Labels::new(),
        network: "bridge".into(),
        namespaces: vec![nspool::engine::NamespaceKind::Net],
        user: "65533:65533".into(),
        memory_bytes: 16 << 20,
        pids: 16,
        flavour: nspool::engine::Flavour::Fixed,
        ipv6: false,
    };
    let id = running.engine.create(&spec).await.unwrap();
    running.engine.start(&id).await.unwrap();
    assert_eq!(running.engine.inspect(id.as_str()).await.unwrap().status, ContainerStatus::Running);
    running.engine.remove(&id).await.unwrap();
    running.stop().await;
}

async fn a_wrong_password_is_denied_in_the_registrys_words(engine: &TestEngine) {
    let registry = TestRegistry::start(true);
    let reference = pushed(engine, &registry).await;
    for credentials in [configured(&registry, "wrong-horse-7"), nothing()] {
        let running = Running::start(engine, &reference, credentials);
        let failure = running.failed().await;
        println!("{}: {}", engine.kind, failure.why);
        assert_eq!(failure.class, ErrorClass::RegistryDenied, "{}", failure.why);
        let words = ["unauthorized", "authentication required", "no basic auth credentials"];
        assert!(words.iter().any(|word| failure.why.contains(word)), "{}", failure.why);
        assert!(failure.why.contains(&reference) && !failure.why.contains("wrong-horse-7"), "{}", failure.why);
        running.stop().await;
    }
}

async fn the_password_comes_from_the_configuration_or_the_docker_config_file(engine: &TestEngine) {
    let registry = TestRegistry::start(true);
    let reference = pushed(engine, &registry).await;
    let file = CredentialSource::new(Vec::new(), Some(registry.docker_config()));
    for credentials in [configured(&registry, PASSWORD), file] {
        let running = Running::start(engine, &reference, credentials);
        running.ready().await;
        running.stop().await;
        engine.run(&["rmi", &reference]);
    }
}

async fn a_registry_that_comes_late_opens_the_gate_by_itself(engine: &TestEngine) {
    let mut registry = TestRegistry::prepare(false);
    let reference = format!("{}/team/holder:1", registry.host);
    let running = Running::start(engine, &reference, nothing());
    let failure = running.failed().await;
    println!("{}: {}", engine.kind, failure.why);
    assert!(failure.why.contains("connection refused"), "{}", failure.why);

    registry.launch();
    let mut changes = running.gate.subscribe();
    // Then it is there and has no such image.
    let unknown = |state: &GateState| {
        state.failure().is_some_and(|f| ["manifest unknown", "not found", "name unknown"].iter().any(|w| f.why.contains(w)))
    };
    tokio::time::timeout(LIMIT, changes.wait_for(unknown)).await.expect("the registry's own words").unwrap();
    pushed(engine, &registry).await;
    running.ready().await;
    running.stop().await;
}
