//! What a lease spares: a namespace, a link, an address and a route, made when the program is to start.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{OWN, Took, ended};
use crate::causes::with_causes;
use crate::config::Config;
use crate::engine::native::{NONE, Native};
use crate::engine::{BuddySpec, ContainerId, Engine as _, Flavour, ImageId, Labels, NamespaceKind};
use crate::netns::Kernel;
use crate::netns::folders::Mounter;
use crate::netns::join::Place;
use crate::netns::managed::{Furnisher, Worker};
use crate::netns::networks::{Link, NetworkError, Networks, Wire};

/// Makes them.
pub(super) struct Own {
    engine: Native,
    kernel: Arc<dyn Kernel>,
    networks: Networks,
    worker: Worker,
    /// Each has a name of its own.
    number: AtomicU32,
}

impl Own {
    /// Nothing is made on the host yet.
    pub(super) fn new(
        config: &Config,
        (worker, furnisher): (Worker, Furnisher),
        mounter: Arc<dyn Mounter>,
        kernel: Arc<dyn Kernel>,
    ) -> Self {
        let managed = config.managed.iter().map(|managed| Wire::Managed(managed.network.clone(), Duration::ZERO)).collect();
        let networks = Networks::new(OWN, managed, Some(Arc::new(furnisher)));
        Self { engine: Native::new(&config.state.namespaces, OWN, mounter), kernel, networks, worker, number: AtomicU32::new(0) }
    }

    /// Its bridge.
    pub(super) async fn set_up(&self) -> Result<(), NetworkError> {
        self.networks.begin(self.kernel.since_boot(), false).await?;
        self.networks.mend("").await.map(drop)
    }

    /// The program with networks of its own, so many at once.
    pub(super) async fn batch(&self, at_once: u32, program: &[OsString]) -> anyhow::Result<Vec<Took>> {
        let ran = futures::future::try_join_all((0..at_once).map(|_| self.one(program))).await?;
        let mut took = Vec::new();
        for (one, id, link) in ran {
            self.engine.remove(&id).await?;
            self.networks.leave(link, self.kernel.since_boot()).await;
            took.push(one);
        }
        self.networks.tidy(self.kernel.since_boot()).await;
        Ok(took)
    }

    async fn one(&self, program: &[OsString]) -> anyhow::Result<(Took, ContainerId, Link)> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let id = self.engine.create(&spec(number)).await?;
        self.engine.start(&id).await?;
        let folder = self.engine.inspect(id.as_str()).await?.folder.unwrap_or_default();
        let held = self.kernel.hold_folder(&folder, &[NamespaceKind::Net]).await?;
        let now = self.kernel.since_boot();
        let link = self.networks.furnish(self.networks.reserve(0, now)?, number, 1, held.as_ref(), now).await?;
        let network = begun.elapsed();
        let place = Place::new("network", &folder.join("net").display().to_string());
        let place = place.ok_or_else(|| anyhow::anyhow!("the folder has no network namespace"))?;
        ended(&[place], program).await?;
        Ok((Took { all: begun.elapsed(), network }, id, link))
    }

    /// Answers what stays.
    pub(super) async fn close(self) -> Vec<String> {
        let mut left: Vec<String> = match self.networks.tear_down().await {
            Ok(failures) => failures.iter().map(|failure| with_causes(failure)).collect(),
            Err(error) => vec![error.to_string()],
        };
        match self.engine.list().await {
            Ok(all) => {
                for one in all {
                    left.extend(self.engine.remove(&one.id).await.err().map(|error| error.to_string()));
                }
            }
            Err(error) => left.push(error.to_string()),
        }
        self.worker.stop().await;
        left
    }
}

fn spec(number: u32) -> BuddySpec {
    BuddySpec {
        name: format!("own-{number}"),
        image: ImageId::from(""),
        command: Vec::new(),
        labels: Labels::new(),
        network: NONE.to_owned(),
        namespaces: vec![NamespaceKind::Net],
        user: String::new(),
        memory_bytes: 0,
        pids: 0,
        flavour: Flavour::Fixed,
        ipv6: false,
    }
}
