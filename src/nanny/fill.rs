//! Fill: from a vacant slot to a proven buddy, or to nothing at all.
//!
//! What can go wrong, and what is done about it: the image is gone (404 at create: the gate closes) · the network is missing, addresses or disk
//! are used up (the container is removed again, the engine's words are kept) · nobody knows whether the create worked (its name is looked up
//! before anything else) · the placeholder ends at once ([`Trust`]: the first buddy of a placeholder, and each one after a death at a young age,
//! has to live for [`PROBATION`] before it is handed out) · the undo fails (the name is debris: cleared before the slot's next preparation).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::files::SharedFiles;
use super::renew::turn;
use super::shelf::ShelfError;
use super::{Buddy, Nanny};
use crate::causes::with_causes;
use crate::engine::paced::PreparationPermit;
use crate::engine::{Container, ContainerId, ContainerStatus, Engine, EngineError, ErrorClass, Flavour, ImageId, NamespaceKind};
use crate::netns::files::MOST_BYTES;
use crate::netns::inspection::InspectError;
use crate::netns::networks::{NetworkError, Reserved};
use crate::netns::{Held, Kernel, KernelError};
use crate::observer::EngineState;
use crate::pool::state::{Afterwards, Order};

/// How long a buddy must live before the first of its kind is handed out.
pub const PROBATION: Duration = Duration::from_millis(300);

/// Whether buddies of this placeholder are known to stay.
#[derive(Debug, Default)]
pub struct Trust(AtomicBool);

impl Trust {
    fn earned(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn earn(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// There is no process that could end.
    #[must_use]
    pub fn certain() -> Self {
        Self(AtomicBool::new(true))
    }

    /// A buddy died young.
    pub fn shaken(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// For how long a container that was not found may still appear: the engine carries out a create whose caller has given up, at 50 at once
/// after 0.3 s, after a freeze as soon as it goes on.
const MAY_APPEAR_FOR: Duration = Duration::from_secs(5);
/// Names that one slot remembers; beyond, it waits until they are cleared.
const MOST_DEBRIS: usize = 4;

/// A container that may exist though its creation, or removal, failed.
#[derive(Debug)]
pub(super) struct Debris {
    name: String,
    /// When a look found nothing for the first time.
    missed: Option<tokio::time::Instant>,
}

impl Debris {
    pub(super) fn of(name: String) -> Self {
        Self { name, missed: None }
    }
}

/// Why a slot could not be filled.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    #[error("{0}")]
    Engine(EngineError),
    #[error("{0}")]
    Kernel(KernelError),
    #[error("the buddy {0}")]
    Unfit(&'static str),
    #[error("the placeholder ended at once, with exit code {code}; it must run until it is stopped")]
    EndedAtOnce { code: i64 },
    #[error("containers of earlier tries could not be removed yet: {0}")]
    Debris(String),
    #[error("buddies cannot be renewed on this engine, so reuse = \"fresh\" is not to be had: {0}")]
    CannotRenew(String),
    #[error("{0}")]
    Network(NetworkError),
    #[error("{0}")]
    Shelf(ShelfError),
    #[error("a file that joiners share with the buddy: {0}")]
    Files(std::io::Error),
    #[error("what its namespaces are cannot be read, so reuse = \"verified\" is not to be had: {}", with_causes(.0))]
    Snapshot(InspectError),
}

impl Nanny {
    pub(super) async fn fill(&mut self, generation: u64) {
        let began = self.tools.pool.now();
        let reserved = if self.tools.networks.is_furnished(self.network()) {
            let Some(reserved) = self.address(&Order::Fill { generation }).await else { return };
            Some(reserved)
        } else {
            None
        };
        let Some((image, permit)) = self.admitted(generation).await else { return };
        let prepared = self.prepare(generation, &image, &permit, reserved).await;
        drop(permit);
        match prepared {
            Ok(buddy) => {
                let tools = Arc::clone(&self.tools);
                let namespace = tools.breed.namespace(self.network(), &buddy);
                let took = tools.pool.now().saturating_sub(began);
                tracing::info!(
                    slot = self.slot, generation, namespace_id = buddy.name, container = %buddy.id, pid = buddy.facts.pid,
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "buddy ready"
                );
                metrics::histogram!(crate::telemetry::metric::FILL).record(took);
                self.buddy = Some(buddy);
                tools.pool.with(|state, now| {
                    state.made_of(self.slot, image.bare());
                    state.registered(now, self.slot, generation, Arc::new(namespace));
                });
                tools.made.notify_one();
            }
            // What was cut short by the stop, or failed when nobody wanted it any more, is nothing to look after.
            Err(error) if self.tools.pool.read(|state| state.is_stopping()) => {
                tracing::debug!(slot = self.slot, generation, %error, "a preparation ended with the stop");
                self.tools.pool.with(|state, now| state.fill_failed(now, self.slot, generation, error.to_string()));
            }
            Err(error) => {
                tracing::warn!(slot = self.slot, generation, %error, failures = self.backoff.failures() + 1, "slot could not be filled");
                self.tools.pool.with(|state, now| state.fill_failed(now, self.slot, generation, error.to_string()));
            }
        }
    }

    /// Waits for the engine, the gate and the pacer; `None` when the order changes meanwhile, or debris is in the way.
    async fn admitted(&mut self, generation: u64) -> Option<(ImageId, PreparationPermit)> {
        let tools = Arc::clone(&self.tools);
        let order = Order::Fill { generation };
        let mut engine_state = tools.engine_state.clone();
        tokio::select! {
            biased;
            () = self.until_order_is_not(&order) => return None,
            up = engine_state.wait_for(EngineState::is_up) => if up.is_err() { return None },
        }
        self.clear_debris().await;
        if self.debris.len() >= MOST_DEBRIS {
            let names: Vec<&str> = self.debris.iter().map(|debris| debris.name.as_str()).collect();
            let left = FillError::Debris(names.join(", ")).to_string();
            tools.pool.with(|state, now| state.fill_failed(now, self.slot, generation, left));
            return None;
        }
        let image = tokio::select! {
            biased;
            () = self.until_order_is_not(&order) => return None,
            image = tools.gate.ready() => image,
        };
        // A token is one preparation with its undo.
        tokio::select! {
            biased;
            () = self.until_order_is_not(&order) => None,
            permit = tools.engine.preparation() => Some((image, permit)),
        }
    }

    async fn prepare(
        &mut self,
        generation: u64,
        image: &ImageId,
        permit: &PreparationPermit,
        reserved: Option<Reserved>,
    ) -> Result<Buddy, FillError> {
        let tools = Arc::clone(&self.tools);
        let name = tools.breed.name(self.slot, generation, 1, self.dice());
        let spec = tools.breed.spec(self.slot, generation, self.network(), &name, image);
        if spec.flavour == Flavour::Renewable {
            self.is_fit(generation, image).await?;
        }
        let id = match tools.engine.create(&spec).await {
            Ok(id) => id,
            Err(error) => {
                if error.class == ErrorClass::ImageMissing {
                    tools.gate.image_gone(image.as_str());
                }
                if error.class == ErrorClass::Unknown {
                    // It may exist, now or in a while: the engine carries out what it has begun.
                    self.debris.push(Debris::of(name));
                }
                return Err(FillError::Engine(error));
            }
        };
        let buddy = match tools.engine.start(&id).await {
            Ok(()) => self.furnished(generation, name.clone(), &id, reserved).await,
            Err(error) => Err(FillError::Engine(error)),
        };
        match buddy {
            Ok(buddy) => Ok(buddy),
            Err(error) => {
                self.undo(&id, name, permit).await;
                Err(error)
            }
        }
    }

    /// Proven, and on a managed network with its link.
    async fn furnished(&self, generation: u64, name: String, id: &ContainerId, reserved: Option<Reserved>) -> Result<Buddy, FillError> {
        let (held, facts) = self.prove(id).await?;
        let files = self.baseline(&facts).await.map_err(FillError::Files)?;
        let mut buddy = self.buddy(generation, name, held, facts).await;
        buddy.files = files;
        if let Some(reserved) = reserved {
            let (networks, now) = (&self.tools.networks, self.tools.pool.now());
            let link = networks.furnish(reserved, self.slot, turn(generation, 1), buddy.held.as_ref(), now).await;
            buddy.link = Some(link.map_err(FillError::Network)?);
        }
        buddy.snapshot = self.take_snapshot(&buddy).await.map_err(FillError::Snapshot)?;
        self.tools.publish(&mut buddy).await.map_err(FillError::Shelf)?;
        Ok(buddy)
    }

    /// What the shared files are before anybody joins; nothing for a buddy that is not to be renewed or verified.
    pub(super) async fn baseline(&self, facts: &Container) -> std::io::Result<Option<SharedFiles>> {
        match self.tools.breed.networks[self.network()].afterwards {
            Afterwards::Renew | Afterwards::Verify => SharedFiles::of(facts, &self.tools.kernel).await.map(Some),
            Afterwards::Retire | Afterwards::Reuse => Ok(None),
        }
    }

    async fn undo(&mut self, id: &ContainerId, name: String, permit: &PreparationPermit) {
        if let Err(error) = permit.undo(id).await {
            tracing::warn!(slot = self.slot, container = %id, %error, "what is half-made could not be removed yet");
            self.debris.push(Debris::of(name));
        }
    }

    /// I4: started, alive by its pidfd, not paused, the same container and start before and after its namespaces were opened, in namespaces of
    /// its own. Names, pids and inode numbers are no identity, hence the second look.
    pub(super) async fn prove(&self, id: &ContainerId) -> Result<(Box<dyn Held>, Container), FillError> {
        let tools = &self.tools;
        let first = tools.engine.inspect(id.as_str()).await.map_err(FillError::Engine)?;
        if first.status != ContainerStatus::Running {
            return Err(unfit(&first));
        }
        let held = match hold(tools.kernel.as_ref(), &first, &tools.breed.namespaces).await {
            Ok(Some(held)) => held,
            Ok(None) => return Err(unfit(&first)),
            Err(KernelError::Gone { .. }) => {
                let now = tools.engine.inspect(id.as_str()).await.map_err(FillError::Engine)?;
                return Err(unfit(&now));
            }
            Err(error) => return Err(FillError::Kernel(error)),
        };
        if !tools.trust.earned() {
            let lived = tokio::time::timeout(PROBATION, held.exited()).await.is_err();
            if lived {
                tools.trust.earn();
            }
        }
        let again = tools.engine.inspect(id.as_str()).await.map_err(FillError::Engine)?;
        if again.status != ContainerStatus::Running || !held.is_alive() {
            return Err(unfit(&again));
        }
        if (again.pid, &again.started_at, &again.id) != (first.pid, &first.started_at, id) {
            return Err(FillError::Unfit("was restarted while it was looked at"));
        }
        for kind in &tools.breed.namespaces {
            let hosts = tools.kernel.host_namespace(*kind).map_err(FillError::Kernel)?;
            if held.namespace(*kind).is_none_or(|own| own == hosts) {
                return Err(FillError::Unfit("is in a namespace of the host"));
            }
        }
        Ok((held, again))
    }

    pub(super) async fn buddy(&self, generation: u64, name: String, held: Box<dyn Held>, facts: Container) -> Buddy {
        let doubt = Arc::new(Notify::new());
        self.tools.doubts.watch(&facts.id, &doubt);
        self.tools.present.holds(&facts.id, held.as_ref());
        let resolv_conf = match facts.resolv_conf_path.as_str() {
            "" => String::new(),
            // Only told to the holder, who can do without; the path is the engine's and may be out of our sight.
            path => {
                let read = self.tools.kernel.read_files(vec![(path.into(), MOST_BYTES)]).await.pop();
                read.and_then(|file| String::from_utf8(file.ok()?.content).ok()).unwrap_or_default()
            }
        };
        Buddy {
            id: facts.id.clone(),
            name,
            generation,
            held,
            started_at: facts.started_at.clone(),
            registered_at: self.tools.pool.now(),
            resolv_conf: resolv_conf.into(),
            facts,
            doubt,
            witness: None,
            attach_at: tokio::time::Instant::now(),
            fenced: None,
            depended_on: false,
            proven_empty: None,
            link: None,
            shelved: None,
            renewed: None,
            files: None,
            snapshot: None,
            heard: None,
        }
    }

    /// Removes what earlier tries may have left, as far as it is there now.
    pub(super) async fn clear_debris(&mut self) {
        let mut left = Vec::new();
        for mut debris in std::mem::take(&mut self.debris) {
            let removed = match self.tools.engine.inspect(&debris.name).await {
                // By our name and labels it is what we made; anything else has taken the name since.
                Ok(container) if self.tools.breed.owned(&container.name, &container.labels).is_some() => {
                    self.tools.engine.remove(&container.id).await
                }
                Ok(_) => Ok(()),
                Err(error) if error.class == ErrorClass::NotFound => {
                    let missed = *debris.missed.get_or_insert_with(tokio::time::Instant::now);
                    if missed.elapsed() < MAY_APPEAR_FOR {
                        left.push(debris);
                    }
                    continue;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(slot = self.slot, name = debris.name, %error, "debris could not be cleared yet");
                left.push(debris);
            }
        }
        self.debris = left;
    }
}

fn unfit(container: &Container) -> FillError {
    match container.status {
        ContainerStatus::Exited | ContainerStatus::Dead => FillError::EndedAtOnce { code: container.exit_code.unwrap_or(-1) },
        ContainerStatus::Paused => FillError::Unfit("was paused at once"),
        ContainerStatus::Running => FillError::Unfit("ended at once, while it was looked at; it must run until it is stopped"),
        ContainerStatus::Created | ContainerStatus::Restarting | ContainerStatus::Removing | ContainerStatus::Unknown => {
            FillError::Unfit("does not run after its start")
        }
    }
}

/// A buddy's process, or the folder that its namespaces are in; `None`: it has neither.
pub(crate) async fn hold(kernel: &dyn Kernel, buddy: &Container, shared: &[NamespaceKind]) -> Result<Option<Box<dyn Held>>, KernelError> {
    if buddy.pid == 0 && buddy.folder.is_none() {
        return Ok(None);
    }
    hold_there(kernel, buddy.folder.as_deref(), buddy.pid, shared).await.map(Some)
}

/// The same, where there is one of them.
pub(crate) async fn hold_there(
    kernel: &dyn Kernel,
    folder: Option<&Path>,
    pid: u32,
    shared: &[NamespaceKind],
) -> Result<Box<dyn Held>, KernelError> {
    match folder {
        // Also what another configuration had shared: somebody may be in it.
        Some(folder) => kernel.hold_folder(folder, &NamespaceKind::JOINABLE).await,
        None => kernel.hold(pid, &kinds_held(shared)).await,
    }
}

/// The pid namespace is held beside the configured ones: it tells the buddy's own children from joiners.
fn kinds_held(shared: &[NamespaceKind]) -> Vec<NamespaceKind> {
    let mut kinds = shared.to_vec();
    if !kinds.contains(&NamespaceKind::Pid) {
        kinds.push(NamespaceKind::Pid);
    }
    kinds
}
