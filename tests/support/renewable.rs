//! A renewable buddy of the embedded placeholder on a real engine, held; for tests and benches of renewal.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nspool::engine::docker::Docker;
use nspool::engine::{BuddySpec, ContainerId, Engine, Flavour, ImageId, Labels, NamespaceKind};
use nspool::image::placeholder::Archive;
use nspool::netns::linux::Linux;
use nspool::netns::{Held, NamespaceId};

use super::engines::{TestEngine, unique};
use super::eventually;

/// A client of the engine that refuses any other kind.
pub fn connect(engine: &TestEngine) -> Docker {
    Docker::connect(&engine.endpoint(), Some(engine.kind)).unwrap()
}

/// The embedded placeholder, loaded; its id.
pub async fn placeholder(docker: &Docker) -> ImageId {
    let archive = Archive::embedded().unwrap();
    docker.load_image(archive.bytes().to_vec().into()).await.unwrap();
    docker.image_id(archive.reference()).await.unwrap().expect("the image is there after its load")
}

/// A buddy of the fixed flavour; `renewable()` makes it the other.
pub fn spec(what: &str, image: &ImageId) -> BuddySpec {
    BuddySpec {
        name: format!("{what}-{:x}", unique()),
        image: image.clone(),
        command: Vec::new(),
        labels: Labels::new(),
        network: "bridge".into(),
        namespaces: vec![NamespaceKind::Net],
        user: "65533:65533".into(),
        memory_bytes: 16 << 20,
        pids: 16,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}

/// A started, renewable buddy.
pub struct Renewable {
    /// Of the container.
    pub id: ContainerId,
    /// Its first process.
    pub pid: u32,
    /// The same, held.
    pub held: Box<dyn Held>,
}

impl Renewable {
    /// Must be removed by the caller.
    pub async fn start(docker: &Docker, what: &str) -> Self {
        let spec = spec(what, &placeholder(docker).await).renewable();
        let id = docker.create(&spec).await.unwrap();
        docker.start(&id).await.unwrap();
        let pid = docker.inspect(id.as_str()).await.unwrap().pid;
        Self { held: Linux::new().hold_now(pid, &[]).unwrap(), id, pid }
    }

    /// Where it is held.
    pub fn net(&self) -> NamespaceId {
        self.held.namespace(NamespaceKind::Net).unwrap()
    }
}

/// The network namespace that a process is in now.
pub fn net_of(pid: u32) -> NamespaceId {
    let stat = rustix::fs::stat(format!("/proc/{pid}/ns/net")).unwrap();
    NamespaceId { dev: stat.st_dev, ino: stat.st_ino }
}

/// Network namespaces of this machine, those that the kernel has yet to take away included.
pub fn namespaces_of_the_machine() -> u64 {
    let slabs = std::fs::read_to_string("/proc/slabinfo").unwrap();
    let line = slabs.lines().find(|line| line.starts_with("net_namespace ")).expect("the kernel counts them");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until there are about as many as there were. Until the kernel has taken a namespace away, which it does in the background, its memory counts
/// as that of the buddy which made it: some hundred in a row are more than a buddy's limit, and the kernel ends it.
pub async fn taken_away(before: u64) {
    const OTHERS: u64 = 50;
    let level = || async { (namespaces_of_the_machine() < before + OTHERS).then_some(()) };
    eventually("the kernel to take the old namespaces away", Duration::from_secs(60), level).await;
}

/// A static program without a libc from a source of `tests/support`, compiled as the init is.
pub fn compile(source: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let flags = std::fs::read_to_string(root.join("src/image/init.flags")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let output = Command::new("cc")
        .args(flags.lines().filter(|line| !line.starts_with('#') && !line.is_empty()))
        .args(["-Werror", "-o"])
        .arg(&program)
        .arg(root.join("tests/support").join(source))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(program).unwrap()
}
