//! The bare loop that the daemon is compared with: the same buddies, created and started by parallel creators without any daemon, and removed
//! one by one.
//!
//! They belong to a pool of their own, whose lock is held meanwhile, so that a purge finds them if this process is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use crate::cli::stage::Stage;
use crate::cli::{host, purge};
use crate::config::Placeholder;
use crate::engine::docker::Docker;
use crate::engine::{ContainerId, Engine, EngineInfo, ImageId};
use crate::lock::PoolLock;
use crate::nanny::buddy::{Breed, Wiring};
use crate::netns::Kernel;
use crate::recovery;

/// The pool's name.
const POOL: &str = "bench-bare";
/// For creates under way to end at the close.
const LAST_CREATES: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Bare {
    docker: Arc<Docker>,
    kernel: Arc<dyn Kernel>,
    engine: EngineInfo,
    placeholder: String,
    breed: Breed,
    generation: AtomicU64,
    /// Creates and starts, which nobody cancels.
    tasks: TaskTracker,
    lock: Mutex<Option<PoolLock>>,
}

impl Bare {
    pub(super) fn new(stage: &Stage, network: &str) -> Self {
        let placeholder = Placeholder::default();
        let breed = Breed {
            pool: POOL.to_owned(),
            instance: uuid::Uuid::new_v4().to_string(),
            networks: vec![Wiring::engines(network)],
            namespaces: vec![crate::engine::NamespaceKind::Net],
            command: placeholder.command,
            user: placeholder.user,
            memory: placeholder.memory,
            pids: placeholder.pids,
            may_fork: false,
            native: false,
            folders: None,
        };
        Self {
            docker: Arc::clone(&stage.docker),
            kernel: Arc::clone(&stage.kernel),
            engine: stage.engine.clone(),
            placeholder: stage.placeholder().to_owned(),
            breed,
            generation: AtomicU64::new(1),
            tasks: TaskTracker::new(),
            lock: Mutex::new(None),
        }
    }

    /// Takes the lock, and removes what a killed run left.
    pub(super) async fn begin(&self) -> anyhow::Result<()> {
        let lock = host::lock(&self.engine, POOL)?;
        *self.lock.lock() = Some(lock);
        let left = self.clear().await;
        anyhow::ensure!(left.is_empty(), "an earlier run has left: {}", left.join(", "));
        Ok(())
    }

    /// Creates and starts so many, `parallel` at a time.
    pub(super) async fn fill(&self, count: u32, parallel: u32) -> anyhow::Result<(Vec<ContainerId>, Duration)> {
        let image = self.docker.image_id(&self.placeholder).await?;
        let image = image.ok_or_else(|| anyhow::anyhow!("the image {} has gone", self.placeholder))?;
        let begin = Instant::now();
        let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let creators = (0..parallel).map(|_| {
            let (next, docker, breed, image) = (Arc::clone(&next), Arc::clone(&self.docker), self.breed.clone(), image.clone());
            let generation = self.generation.fetch_add(1, Ordering::Relaxed);
            self.tasks.spawn(async move { create(&docker, &breed, &image, generation, &next, count).await })
        });
        let mut made = Vec::new();
        for creator in join_all(creators.collect::<Vec<_>>()).await {
            made.extend(creator??);
        }
        Ok((made, begin.elapsed()))
    }

    /// Removes them one after the other.
    pub(super) async fn remove_one_by_one(&self, buddies: Vec<ContainerId>, removed: impl Fn(u64)) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        for (count, buddy) in (1..).zip(buddies) {
            self.docker.remove(&buddy).await?;
            removed(count);
        }
        Ok(begin.elapsed())
    }

    /// Answers what stays, for people.
    pub(super) async fn close(self) -> Vec<String> {
        self.tasks.close();
        // Its creators stop by themselves when the engine has answered what was asked last.
        let waited = tokio::time::timeout(LAST_CREATES, self.tasks.wait()).await;
        if self.lock.lock().is_none() {
            return Vec::new();
        }
        let mut left = self.clear().await;
        if waited.is_err() {
            left.push(format!("buddies whose creation the engine has not answered: nspool purge --pool {POOL}"));
        }
        if let Some(lock) = self.lock.into_inner()
            && left.is_empty()
            && let Err(error) = lock.discard()
        {
            left.push(host::lock_failure(&error).to_string());
        }
        left
    }

    async fn clear(&self) -> Vec<String> {
        let engine: Arc<dyn Engine> = Arc::clone(&self.docker) as _;
        let cleared = async {
            let means = purge::means(POOL, engine, Arc::clone(&self.kernel)).await.map_err(|error| error.to_string())?;
            recovery::recover(&means, |_, _| false, None).await.map_err(|error| error.to_string())
        };
        match cleared.await {
            Ok(recovered) => {
                recovered.occupied.into_iter().map(|buddy| format!("the buddy {}: {}", buddy.name, buddy.joiners.join(", "))).collect()
            }
            Err(error) => vec![format!("buddies of the bare loop: {error}")],
        }
    }
}

/// One of the creators: takes the next number until there are enough.
async fn create(
    docker: &Docker,
    breed: &Breed,
    image: &ImageId,
    generation: u64,
    next: &std::sync::atomic::AtomicU32,
    count: u32,
) -> anyhow::Result<Vec<ContainerId>> {
    let mut made = Vec::new();
    loop {
        let slot = next.fetch_add(1, Ordering::Relaxed);
        if slot >= count {
            return Ok(made);
        }
        let name = breed.name(slot, generation, 1, fastrand::u32(..));
        let id = docker.create(&breed.spec(slot, generation, 0, &name, image)).await?;
        docker.start(&id).await?;
        made.push(id);
    }
}
