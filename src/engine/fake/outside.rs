//! What others do at the machine, and what a test can see of it. All of it happens at once; container names and ids are both taken.

use super::model::{Attachment, Item, Model, Recipe};
use super::script::Operation;
use super::{EngineState, FUNCTION_LABEL, FakeWorld, FunctionId};
use crate::engine::{
    Container, ContainerId, ContainerStatus, ContainerSummary, Credentials, EngineError, ErrorClass, EventAction, Flavour, ImageId, Labels,
    NamespaceKind,
};
use crate::netns::{NamespaceId, Process};

use super::model::fail;

/// A function container, or any other that is not ours.
#[derive(Clone, Debug, Default)]
pub struct FunctionSpec {
    /// The name or id of the container it joins; `None`: it has a namespace of its own on `bridge`.
    pub joins: Option<String>,
    /// Empty: the engine makes one up.
    pub name: String,
    /// All of them.
    pub labels: Labels,
    /// Namespaces it joins besides the network's.
    pub also: Vec<NamespaceKind>,
    /// It could do more than root with NET_ADMIN.
    pub privileged: bool,
}

impl FunctionSpec {
    /// One that joins `buddy` (a name or id), with the label of a lease if there is one.
    #[must_use]
    pub fn joining(buddy: &str, namespace_id: Option<&str>) -> Self {
        let labels = namespace_id.map(|id| (FUNCTION_LABEL.to_owned(), id.to_owned())).into_iter().collect();
        Self { joins: Some(buddy.to_owned()), labels, ..Self::default() }
    }
}

/// A create that the engine is busy with: the name it joins is resolved, the container is not in any list yet.
pub struct HalfCreated(Recipe);

impl FakeWorld {
    fn answering(&self, operation: Operation) -> Result<(), EngineError> {
        match *self.state.borrow() {
            EngineState::Up => Ok(()),
            EngineState::Frozen => Err(fail(operation, ErrorClass::Unknown, "", "no answer", None)),
            EngineState::Away => Err(fail(operation, ErrorClass::Away, "", "connection refused", None)),
        }
    }

    // ---- functions -----------------------------------------------------------------------------------------------------------------

    /// Creates and starts a function that joins `buddy` (a name or id), with the label of a lease if there is one. What a failed start leaves
    /// behind is removed.
    ///
    /// # Errors
    /// The engine's, of the create or of the start.
    pub fn run_function(&self, buddy: &str, namespace_id: Option<&str>, name: &str) -> Result<FunctionId, EngineError> {
        let id = self.create_function(FunctionSpec { name: name.to_owned(), ..FunctionSpec::joining(buddy, namespace_id) })?;
        if let Err(error) = self.start_function(&id) {
            self.remove_function(&id);
            return Err(error);
        }
        Ok(id)
    }

    /// Creates a function; it is a configured joiner from now on.
    ///
    /// # Errors
    /// The engine's.
    pub fn create_function(&self, spec: FunctionSpec) -> Result<FunctionId, EngineError> {
        let half = self.begin_create_function(spec)?;
        self.finish_create_function(half)
    }

    /// The first half of a slow create: resolves the name that is joined.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn begin_create_function(&self, spec: FunctionSpec) -> Result<HalfCreated, EngineError> {
        self.answering(Operation::Create)?;
        let mut model = self.model.lock();
        let network = spec.joins.as_deref().map_or_else(|| Attachment::Network("bridge".into()), |joins| model.resolve(joins));
        let image = model.images.find("function").unwrap_or_else(|| model.images.put("function"));
        let name = if spec.name.is_empty() { model.made_up_name() } else { spec.name };
        Ok(HalfCreated(Recipe {
            name,
            labels: spec.labels,
            image,
            network,
            shares: spec.also,
            privileged: spec.privileged,
            buddy: false,
            flavour: Flavour::Fixed,
        }))
    }

    /// The second half: the container exists, and is listed.
    ///
    /// # Errors
    /// The engine's.
    pub fn finish_create_function(&self, half: HalfCreated) -> Result<FunctionId, EngineError> {
        self.answering(Operation::Create)?;
        self.model.lock().create(half.0)
    }

    /// Starts it: a live joiner from now on.
    ///
    /// # Errors
    /// The engine's: `NetworkMissing` when what it joins did not resolve at create or is gone.
    pub fn start_function(&self, function: &FunctionId) -> Result<(), EngineError> {
        self.answering(Operation::Start)?;
        self.model.lock().start(function.as_str(), false)
    }

    /// Its process ends with this code; the container stays, exited.
    pub fn exit_function(&self, function: &FunctionId, code: i64) {
        self.on(function.as_str(), |model, number| model.end(number, code));
    }

    /// Removes it, by force.
    pub fn remove_function(&self, function: &FunctionId) {
        self.remove_by_hand(function.as_str());
    }

    // ---- acts ----------------------------------------------------------------------------------------------------------------------

    fn on(&self, container: &str, act: impl FnOnce(&mut Model, u64)) {
        let mut model = self.model.lock();
        if let Some(number) = model.find(container) {
            act(&mut model, number);
        }
    }

    /// SIGKILL from the host: exit code 137.
    pub fn kill(&self, container: &str) {
        self.on(container, |model, number| model.end(number, 137));
    }

    /// Freezes a running container.
    pub fn pause(&self, container: &str) {
        self.on(container, |model, number| model.set_paused(number, true));
    }

    /// Thaws it.
    pub fn unpause(&self, container: &str) {
        self.on(container, |model, number| model.set_paused(number, false));
    }

    /// Ends it, if it runs, and starts it again: the same id, another process, namespace and `StartedAt`.
    ///
    /// # Errors
    /// The engine's, of the start.
    pub fn restart(&self, container: &str) -> Result<(), EngineError> {
        self.answering(Operation::Start)?;
        self.kill(container);
        self.model.lock().start(container, false)
    }

    /// `rm -f` by somebody else.
    pub fn remove_by_hand(&self, container: &str) {
        self.model.lock().remove(container, false);
    }

    /// Its process ends, and the engine does not notice, until [`Self::stop_lying`]: inspect says running, wait and events are silent.
    pub fn lie_running(&self, container: &str) {
        self.on(container, |model, number| {
            model.item_mut(number).lies = true;
            model.end(number, 137);
        });
    }

    /// The engine notices.
    pub fn stop_lying(&self, container: &str) {
        self.on(container, |model, number| {
            model.item_mut(number).lies = false;
            model.hear_all(true);
        });
    }

    /// Its process will outlive the container's removal: then a process that no engine knows is in its namespaces. End it with
    /// [`Self::end_process`].
    pub fn survive_removal(&self, container: &str) {
        self.on(container, |model, number| model.item_mut(number).survives = true);
    }

    /// A process that no engine knows enters the container's namespaces and stays until [`Self::end_process`]. `None` if it does not run.
    pub fn leave_process_behind(&self, container: &str) -> Option<u32> {
        let mut model = self.model.lock();
        let number = model.find(container)?;
        let host = super::machine::HOST;
        let theirs = model.item(number).namespaces.filter(|set| model.machine.is_there(set[0]))?;
        Some(model.machine.spawn([theirs[0], host[1], host[2], host[3], host[4]], None, "stranger"))
    }

    /// Ends a process; if it is a container's, the container.
    pub fn end_process(&self, pid: u32) {
        self.model.lock().end_process(pid, 137);
    }

    /// Every buddy ends with this code as soon as it was started; `None`: no more.
    pub fn buddies_exit_at_once(&self, code: Option<i64>) {
        self.model.lock().exits_at_once = code;
    }

    /// The engine joins a buddy where it was started from now on, also when it has moved.
    pub fn remember_first_namespaces(&self) {
        self.model.lock().remembers_first_namespaces = true;
    }

    /// Creates and starts fail for want of space; removals work.
    pub fn set_disk_full(&self, full: bool) {
        self.model.lock().disk_full = full;
    }

    // ---- images and networks -------------------------------------------------------------------------------------------------------

    /// A new local image with this tag.
    pub fn put_image(&self, reference: &str) -> ImageId {
        self.model.lock().images.put(reference)
    }

    /// What an image is made of, the lowest layer first: each name is a layer with all below it.
    pub fn set_layers(&self, id: &ImageId, layers: &[(&str, u64)]) {
        self.model.lock().images.set_layers(id, layers);
    }

    /// A container of somebody's is made from it, and never started; until that is removed, the engine lets it not go.
    ///
    /// # Errors
    /// The engine's.
    pub fn use_image(&self, id: &ImageId) -> Result<ContainerId, EngineError> {
        let mut model = self.model.lock();
        let name = model.made_up_name();
        let (labels, network) = (Labels::new(), Attachment::Network("none".into()));
        let (image, flavour) = (id.clone(), Flavour::Fixed);
        model.create(Recipe { name, labels, image, network, shares: Vec::new(), privileged: false, buddy: false, flavour })
    }

    /// The registry has it from now on, for these credentials or for anyone.
    pub fn publish_image(&self, reference: &str, credentials: Option<Credentials>) {
        self.model.lock().images.publish(reference, credentials);
    }

    /// The registry has another image under this name from now on. Answers its digest, which is its id here once it is pulled.
    pub fn publish_anew(&self, reference: &str) -> ImageId {
        self.model.lock().images.publish_anew(reference)
    }

    /// A local image loses this tag and stays, as one does that a container uses.
    pub fn image_untagged(&self, reference: &str) {
        self.model.lock().untag_image(reference);
    }

    /// `docker image prune -a`: all images go that no container was made from.
    pub fn images_pruned(&self) {
        self.model.lock().prune_images();
    }

    /// A local image loses this tag; without another one it is gone. By id: gone with all its tags.
    pub fn image_removed(&self, reference: &str) {
        self.model.lock().remove_image(reference);
    }

    /// The network is there with `n` addresses; made if it was not.
    pub fn set_addresses(&self, network: &str, n: u32) {
        self.model.lock().set_addresses(network, n);
    }

    /// The network is gone; containers on it go on.
    pub fn network_removed(&self, network: &str) {
        self.model.lock().networks.remove(network);
    }

    // ---- observations --------------------------------------------------------------------------------------------------------------

    /// What the engine would say of it.
    #[must_use]
    pub fn container(&self, container: &str) -> Option<Container> {
        self.model.lock().inspect(container).ok()
    }

    /// All containers, the oldest first.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerSummary> {
        self.summaries(|_| true)
    }

    /// Those with this label.
    #[must_use]
    pub fn containers_labelled(&self, label: &str, value: &str) -> Vec<ContainerSummary> {
        self.summaries(|item| item.labels.get(label).is_some_and(|has| has == value))
    }

    /// Those made through [`crate::engine::Engine::create`].
    #[must_use]
    pub fn buddies(&self) -> Vec<ContainerSummary> {
        self.summaries(|item| item.buddy)
    }

    fn summaries(&self, wanted: impl Fn(&Item) -> bool) -> Vec<ContainerSummary> {
        let model = self.model.lock();
        model.containers.values().filter(|item| wanted(item)).map(|item| model.summary(item)).collect()
    }

    /// How many buddies there are.
    #[must_use]
    pub fn buddy_count(&self) -> u32 {
        self.model.lock().buddies
    }

    /// The most buddies that ever existed at once.
    #[must_use]
    pub fn buddies_high_water(&self) -> u32 {
        self.model.lock().buddies_high_water
    }

    /// Whether it has a process, whatever the engine says.
    #[must_use]
    pub fn is_alive(&self, container: &str) -> bool {
        let model = self.model.lock();
        model.find(container).is_some_and(|number| model.item(number).process.is_some())
    }

    /// Who is in the namespaces of a container's last run besides itself.
    #[must_use]
    pub fn live_joiners(&self, container: &str) -> Vec<String> {
        let model = self.model.lock();
        model.find(container).map(|number| model.joiners_inside(number)).unwrap_or_default()
    }

    /// The containers that were created to join it, in any state, by name.
    #[must_use]
    pub fn configured_joiners(&self, container: &str) -> Vec<String> {
        let model = self.model.lock();
        let number = model.find(container);
        number.into_iter().flat_map(|number| &model.item(number).joiners).map(|joiner| model.item(*joiner).name.to_string()).collect()
    }

    /// The network namespace of the container's last run, if it is still there.
    #[must_use]
    pub fn namespace_of(&self, container: &str) -> Option<NamespaceId> {
        let model = self.model.lock();
        let number = model.find(container)?;
        model.item(number).namespaces.and_then(|set| model.machine.id_of(set[0]))
    }

    /// All processes in a namespace.
    #[must_use]
    pub fn processes_in(&self, namespace: NamespaceId) -> Vec<Process> {
        self.model.lock().machine.members(namespace)
    }

    /// Addresses given out.
    #[must_use]
    pub fn addresses_in_use(&self, network: &str) -> u32 {
        self.model.lock().networks.get(network).map_or(0, super::model::Network::in_use)
    }
}

impl Model {
    fn made_up_name(&self) -> String {
        format!("made_up_{}", self.next_number())
    }

    fn set_paused(&mut self, number: u64, paused: bool) {
        let (from, to, action) = if paused {
            (ContainerStatus::Running, ContainerStatus::Paused, EventAction::Paused)
        } else {
            (ContainerStatus::Paused, ContainerStatus::Running, EventAction::Unpaused)
        };
        if self.item(number).status == from {
            self.item_mut(number).status = to;
            self.emit(action, number);
            if !paused {
                self.obey_late(number);
            }
        }
    }
}
