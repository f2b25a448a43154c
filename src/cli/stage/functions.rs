//! Functions, as an agent starts them: in a lease, or on a network of the engine, and how long that took.
//!
//! Each start runs as a task that nobody cancels, because an engine carries out what it was told whoever stops listening. All functions have
//! a label with a random value of this run: [`Functions::clear`] finds what was dropped half-way.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::client::{Client, Lease, Request};
use crate::engine::docker::{Docker, FunctionSpec};
use crate::engine::{ContainerId, Engine as _, EngineError, ImageId, Labels, WaitOutcome};

/// On every function of ours; its value is the pool's name and the run's.
const LABEL_RUN: &str = "nspool.run";
/// For one call of the engine.
const CALL: Duration = Duration::from_secs(120);
/// Longer than any measurement: a lease must not end while it goes on.
const TTL: Duration = Duration::from_secs(3600);
/// What a lease says of capabilities; the functions on the bridge get no more.
const CAP_DROP: &str = "NET_RAW";

/// What functions run.
#[derive(Clone, Debug)]
pub(in crate::cli) enum Image {
    /// The placeholder by its reference, told to end at once.
    Placeholder(String),
    /// Another, with its own command.
    Given(ImageId),
}

/// Where a function gets its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Place {
    /// From a lease, which is taken first: that is part of the start.
    Lease,
    /// From the engine, on this network.
    Network(String),
}

/// A function that was started.
#[derive(Debug)]
pub(in crate::cli) struct Started {
    id: ContainerId,
    lease: Option<Lease>,
    /// From the first call (of the daemon, or of the engine) until the engine says that the function runs.
    pub(in crate::cli) took: Duration,
    /// The part of it that the lease took; zero without one.
    pub(in crate::cli) leasing: Duration,
}

/// See the module. Clones share all.
#[derive(Clone)]
pub(in crate::cli) struct Functions {
    docker: Arc<Docker>,
    image: Image,
    client: Client,
    pool: String,
    run: String,
    tasks: TaskTracker,
}

impl Functions {
    pub(super) fn new(docker: Arc<Docker>, image: Image, client: Client, pool: &str) -> Self {
        let run = format!("{pool}/{}", uuid::Uuid::new_v4());
        Self { docker, image, client, pool: pool.to_owned(), run, tasks: TaskTracker::new() }
    }

    /// Starts so many at once, and waits until all run. Cancel safe: what was begun is found by [`Functions::clear`].
    pub(in crate::cli) async fn start(&self, count: u32, place: &Place) -> anyhow::Result<Vec<Started>> {
        let image = match &self.image {
            Image::Given(id) => id.clone(),
            Image::Placeholder(reference) => {
                let id = self.docker.image_id(reference).await?;
                id.ok_or_else(|| anyhow::anyhow!("the image {reference} has gone"))?
            }
        };
        let begun = Instant::now();
        let tasks = (0..count).map(|_| {
            let (this, place, image) = (self.clone(), place.clone(), image.clone());
            self.tasks.spawn(async move { this.start_one(&place, image, begun).await })
        });
        let mut started = Vec::new();
        for task in join_all(tasks.collect::<Vec<_>>()).await {
            started.push(task??);
        }
        Ok(started)
    }

    async fn start_one(&self, place: &Place, image: ImageId, begun: Instant) -> anyhow::Result<Started> {
        let lease = match place {
            Place::Lease => Some(self.client.allocate(Request::new().owner(&self.pool).ttl(TTL)).await?),
            Place::Network(_) => None,
        };
        let leasing = if lease.is_some() { begun.elapsed() } else { Duration::ZERO };
        let id = bounded("create", self.docker.create_function(&self.spec(place, lease.as_ref(), image))).await?;
        bounded("start", self.docker.start(&id)).await?;
        Ok(Started { id, lease, took: begun.elapsed(), leasing })
    }

    fn spec(&self, place: &Place, lease: Option<&Lease>, image: ImageId) -> FunctionSpec {
        let network_mode = match (place, lease) {
            (_, Some(lease)) => lease.network_mode.clone(),
            (Place::Network(network), None) => network.clone(),
            // A start in a lease has one.
            (Place::Lease, None) => String::new(),
        };
        let mut labels = Labels::from([(LABEL_RUN.to_owned(), self.run.clone())]);
        labels.extend(lease.map(|lease| (crate::nanny::buddy::LABEL_NAMESPACE_ID.to_owned(), lease.namespace_id.clone())));
        let command = match self.image {
            Image::Placeholder(_) => vec!["/init".to_owned(), "exit".to_owned()],
            Image::Given(_) => Vec::new(),
        };
        FunctionSpec { image, command, network_mode, labels, cap_drop: vec![CAP_DROP.to_owned()] }
    }

    /// Waits for their ends and removes them, all at once; gives back the leases, which are held on. A function of an image of the user's may run on:
    /// it is removed all the same.
    ///
    /// # Errors
    /// The placeholder, told to end, ended with another code than 0; the engine's own.
    pub(in crate::cli) async fn finish(&self, started: Vec<Started>) -> anyhow::Result<Vec<Lease>> {
        let ends = started.into_iter().map(|function| async move {
            if matches!(self.image, Image::Placeholder(_)) {
                let ended = bounded("wait", self.docker.wait(&function.id)).await?;
                anyhow::ensure!(ended == WaitOutcome::Exited(0), "a function that should end with 0 did not: {ended:?}");
            }
            bounded("remove", self.docker.remove(&function.id)).await?;
            Ok(function.lease)
        });
        let ended = join_all(ends).await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let finished = ended.into_iter().flatten().map(|mut lease| {
            lease.finished();
            lease
        });
        Ok(finished.collect())
    }

    /// Gives leases back, and waits for it.
    pub(in crate::cli) async fn release(leases: Vec<Lease>) -> anyhow::Result<()> {
        for released in join_all(leases.into_iter().map(Lease::release)).await {
            released?;
        }
        Ok(())
    }

    /// Removes every function of this run that is still there, once no start is under way. Answers what stays, for people.
    pub(super) async fn clear(&self, bound: Duration) -> Vec<String> {
        self.tasks.close();
        let mut left = Vec::new();
        if tokio::time::timeout(bound, self.tasks.wait()).await.is_err() {
            left.push("functions whose start the engine has not answered".to_owned());
        }
        left.extend(self.remove_all(|run| run == self.run).await);
        left
    }

    /// Removes what a killed run of the same pool left; only when the pool's lock is ours, which proves that it is dead.
    pub(in crate::cli) async fn clear_dead_runs(&self) {
        let prefix = format!("{}/", self.pool);
        for left in self.remove_all(|run| run.starts_with(&prefix) && run != self.run).await {
            tracing::warn!("left by an earlier run: {left}");
        }
    }

    async fn remove_all(&self, which: impl Fn(&str) -> bool) -> Vec<String> {
        let list = match bounded("list", self.docker.list()).await {
            Ok(list) => list,
            Err(error) => return vec![format!("functions that could not be listed: {error}")],
        };
        let ours = list.into_iter().filter(|container| container.labels.get(LABEL_RUN).is_some_and(|run| which(run)));
        let removed = join_all(ours.map(|container| async move { bounded("remove", self.docker.remove(&container.id)).await })).await;
        removed.into_iter().filter_map(Result::err).map(|error| format!("a function: {error}")).collect()
    }
}

/// With a deadline: an engine that is silent must not hold up the cleaning.
async fn bounded<T>(operation: &'static str, call: impl Future<Output = Result<T, EngineError>>) -> Result<T, EngineError> {
    tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| Err(EngineError::deadline(operation, "", CALL)))
}
