//! The fake engine's containers: what each mutation does, all at once, under the world's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::Violation;
use super::machine::{HOST, Machine, NsSet};
use super::networks::EngineNetworks;
use super::script::Operation;
use crate::engine::{
    Address, BuddySpec, Container, ContainerId, ContainerStatus, ContainerSummary, EngineError, ErrorClass, EventAction, NamespaceKind,
};
use crate::random::{HashMap, HashSet};

mod events;
mod images;
mod items;
mod lives;

use items::{id_text, started_at};

pub(super) use events::Subscriber;
pub(super) use images::Images;
pub(super) use items::{Attachment, Item, Network, Recipe};
pub(super) use lives::Look;

#[derive(Debug)]
pub(super) struct Model {
    seed: u64,
    next_container: u64,
    next_start: u64,
    next_network: u32,
    pub containers: BTreeMap<u64, Item>,
    by_id: HashMap<Arc<str>, u64>,
    by_name: HashMap<Arc<str>, u64>,
    /// Hashes of all names that buddies ever had.
    names_ever: HashSet<u64>,
    pub networks: BTreeMap<Arc<str>, Network>,
    pub engine_networks: EngineNetworks,
    pub images: Images,
    pub machine: Machine,
    pub violations: Vec<Violation>,
    pub disk_full: bool,
    pub containerd: bool,
    /// Set: a buddy ends as soon as it was started.
    pub exits_at_once: Option<i64>,
    /// The engine joins where a buddy was started, wherever it is now.
    pub remembers_first_namespaces: bool,
    pub buddies: u32,
    pub buddies_high_water: u32,
    hearing: bool,
    waits_cut: u64,
    subscribers: Vec<std::sync::Weak<Subscriber>>,
}

/// An error in the engine's words.
pub(super) fn fail(operation: Operation, class: ErrorClass, subject: &str, message: impl Into<String>, status: Option<u16>) -> EngineError {
    EngineError { operation: operation.word(), class, subject: subject.to_owned(), message: message.into(), status }
}

fn no_such(operation: Operation, id_or_name: &str) -> EngineError {
    fail(operation, ErrorClass::NotFound, id_or_name, format!("No such container: {id_or_name}"), Some(404))
}

impl Model {
    pub(super) fn new(seed: u64) -> Self {
        let mut model = Self {
            seed,
            next_container: 0,
            next_start: 0,
            next_network: 0,
            containers: BTreeMap::new(),
            by_id: HashMap::default(),
            by_name: HashMap::default(),
            names_ever: HashSet::default(),
            networks: BTreeMap::new(),
            engine_networks: EngineNetworks::default(),
            images: Images::default(),
            machine: Machine::new(),
            violations: Vec::new(),
            disk_full: false,
            containerd: true,
            exits_at_once: None,
            remembers_first_namespaces: false,
            buddies: 0,
            buddies_high_water: 0,
            hearing: true,
            waits_cut: 0,
            subscribers: Vec::new(),
        };
        model.set_addresses("bridge", 1 << 22);
        model
    }

    pub(super) fn set_addresses(&mut self, network: &str, most: u32) {
        let number = self.next_network;
        let known = self.networks.entry(network.into()).or_insert(Network::new(number, most));
        known.set_most(most);
        self.next_network += u32::from(known.number == number);
    }

    pub(super) fn next_number(&self) -> u64 {
        self.next_container
    }

    /// By id or by name.
    pub(super) fn find(&self, id_or_name: &str) -> Option<u64> {
        self.by_id.get(id_or_name).or_else(|| self.by_name.get(id_or_name)).copied()
    }

    pub(super) fn item(&self, number: u64) -> &Item {
        &self.containers[&number]
    }

    pub(super) fn item_mut(&mut self, number: u64) -> &mut Item {
        self.containers.get_mut(&number).expect("a number is of a container that is there")
    }

    fn known(&self, operation: Operation, id_or_name: &str) -> Result<u64, EngineError> {
        self.find(id_or_name).ok_or_else(|| no_such(operation, id_or_name))
    }

    fn name_is_free(&self, operation: Operation, name: &str) -> Result<(), EngineError> {
        match self.by_name.get(name) {
            None => Ok(()),
            Some(number) => {
                let message =
                    format!("Conflict. The container name \"/{name}\" is already in use by container \"{}\"", self.item(*number).id);
                Err(fail(operation, ErrorClass::NameTaken, name, message, Some(409)))
            }
        }
    }

    fn buddy_is_named(&mut self, name: &str) {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        if !self.names_ever.insert(hasher.finish()) {
            self.violations.push(Violation::NameUsedTwice(name.to_owned()));
        }
    }

    fn only_ours(&mut self, operation: Operation, number: u64) {
        let item = &self.containers[&number];
        if !item.buddy {
            self.violations.push(Violation::ForeignTouched { operation, name: item.name.to_string() });
        }
    }

    // ---- what the engine does ------------------------------------------------------------------------------------------------------

    /// The name in `container:<name>` is resolved here, once and for all; one that does not resolve is found out at start.
    pub(super) fn resolve(&self, joining: &str) -> Attachment {
        Attachment::Joins { written: joining.to_owned(), number: self.find(joining) }
    }

    pub(super) fn create(&mut self, recipe: Recipe) -> Result<ContainerId, EngineError> {
        if self.disk_full {
            return Err(fail(Operation::Create, ErrorClass::DiskFull, &recipe.name, "no space left on device", Some(500)));
        }
        self.name_is_free(Operation::Create, &recipe.name)?;
        if !self.images.has(&recipe.image) {
            let message = format!("No such image: {}", recipe.image);
            return Err(fail(Operation::Create, ErrorClass::ImageMissing, &recipe.name, message, Some(404)));
        }
        let number = self.next_container;
        self.next_container += 1;
        let id = ContainerId(id_text(self.seed, number).into());
        let name: Arc<str> = recipe.name.into();
        if let Attachment::Joins { number: Some(buddy), .. } = recipe.network
            && let Some(buddy) = self.containers.get_mut(&buddy)
        {
            buddy.joiners.insert(number);
        }
        self.by_id.insert(Arc::clone(&id.0), number);
        self.by_name.insert(Arc::clone(&name), number);
        if recipe.buddy {
            self.buddy_is_named(&name);
            self.buddies += 1;
            self.buddies_high_water = self.buddies_high_water.max(self.buddies);
        }
        self.containers.insert(
            number,
            Item {
                id: id.clone(),
                name,
                labels: recipe.labels,
                image: recipe.image,
                network: recipe.network,
                shares: recipe.shares,
                privileged: recipe.privileged,
                buddy: recipe.buddy,
                flavour: recipe.flavour,
                status: ContainerStatus::Created,
                told_pid: 0,
                process: None,
                namespaces: None,
                start_number: 0,
                exit_code: None,
                error: String::new(),
                address: None,
                joiners: BTreeSet::new(),
                waits: None,
                unheard: None,
                lies: false,
                survives: false,
            },
        );
        self.emit(EventAction::Created, number);
        Ok(id)
    }

    /// A buddy's create, from the engine's interface.
    pub(super) fn create_buddy(&mut self, spec: BuddySpec) -> Result<ContainerId, EngineError> {
        if let Some(why) = spec.contradiction() {
            return Err(fail(Operation::Create, ErrorClass::Refused, &spec.name, why, None));
        }
        let network = spec.joins().map_or_else(|| Attachment::Network(spec.network.as_str().into()), |joined| self.resolve(joined));
        let shares = spec.namespaces.into_iter().filter(|kind| *kind != NamespaceKind::Net).collect();
        let flavour = spec.flavour;
        self.create(Recipe {
            name: spec.name,
            labels: spec.labels,
            image: spec.image,
            network,
            shares,
            privileged: false,
            buddy: true,
            flavour,
        })
    }

    /// `by_engine_user`: through the trait, so only buddies may be touched.
    pub(super) fn start(&mut self, id: &str, by_engine_user: bool) -> Result<(), EngineError> {
        let number = self.known(Operation::Start, id)?;
        if by_engine_user {
            self.only_ours(Operation::Start, number);
        }
        let refused = |message: &str, status| Err(fail(Operation::Start, ErrorClass::Refused, id, message, Some(status)));
        match self.item(number).status {
            ContainerStatus::Running | ContainerStatus::Restarting => return Ok(()),
            ContainerStatus::Paused => return refused("cannot start a paused container, try unpause instead", 409),
            ContainerStatus::Removing | ContainerStatus::Dead | ContainerStatus::Unknown => {
                return refused("container is marked for removal", 409);
            }
            ContainerStatus::Created | ContainerStatus::Exited => {}
        }
        if let Err(error) = self.run(number, id) {
            self.item_mut(number).error.clone_from(&error.message);
            return Err(error);
        }
        self.emit(EventAction::Started, number);
        let (buddy, code) = (self.item(number).buddy, self.exits_at_once);
        if let Some(code) = code.filter(|_| buddy) {
            self.end(number, code);
        }
        Ok(())
    }

    fn run(&mut self, number: u64, subject: &str) -> Result<(), EngineError> {
        if self.disk_full {
            return Err(fail(Operation::Start, ErrorClass::DiskFull, subject, "no space left on device", Some(500)));
        }
        let (namespaces, address) = self.furnish(number, subject)?;
        self.next_start += 1;
        let start_number = self.next_start;
        let command = if self.item(number).buddy { "placeholder" } else { "function" };
        let pid = self.machine.spawn(namespaces, Some(number), command);
        let item = self.item_mut(number);
        item.status = ContainerStatus::Running;
        (item.told_pid, item.process) = (pid, Some(pid));
        (item.namespaces, item.address) = (Some(namespaces), address);
        item.start_number = start_number;
        (item.exit_code, item.unheard) = (None, None);
        item.error.clear();
        Ok(())
    }

    /// The namespaces and the address of a container that starts. Nothing is changed when it fails.
    fn furnish(&mut self, number: u64, subject: &str) -> Result<(NsSet, Option<u32>), EngineError> {
        let missing = |message: String| fail(Operation::Start, ErrorClass::NetworkMissing, subject, message, Some(404));
        let refused = |message: String, status| fail(Operation::Start, ErrorClass::Refused, subject, message, Some(status));
        let item = &self.containers[&number];
        let shares = |kind| item.shares.contains(&kind);
        let (net, joined, address) = match &item.network {
            Attachment::Joins { written, number: target } => {
                let buddy = target.and_then(|target| self.containers.get(&target));
                let buddy = buddy.ok_or_else(|| missing(format!("No such container: {written}")))?;
                let running = matches!(buddy.status, ContainerStatus::Running | ContainerStatus::Paused);
                let theirs = buddy.namespaces.filter(|set| running && self.machine.is_there(set[0]));
                let theirs = theirs.ok_or_else(|| refused(format!("cannot join network of a non running container: {}", buddy.id), 409))?;
                (Some(theirs[0]), Some(theirs), None)
            }
            Attachment::Network(name) if &**name == "host" => (Some(HOST[0]), None, None),
            Attachment::Network(name) if &**name == "none" => (None, None, None),
            Attachment::Network(name) => {
                let network = self.networks.get_mut(name).ok_or_else(|| missing(format!("network {name} not found")))?;
                let class = ErrorClass::NoAddresses;
                let out =
                    || fail(Operation::Start, class, subject, "no available IPv4 addresses on this network's address pools", Some(500));
                (None, None, Some(network.take().ok_or_else(out)?))
            }
        };
        if !self.containerd {
            let name = match &item.network {
                Attachment::Network(name) => Some(Arc::clone(name)),
                Attachment::Joins { .. } => None,
            };
            self.give_back(name.as_deref(), address);
            return Err(refused("connection error: desc = \"transport: error while dialing containerd.sock\"".into(), 500));
        }
        let ipc = joined.filter(|_| shares(NamespaceKind::Ipc)).map(|theirs| theirs[1]);
        let pid = joined.filter(|_| shares(NamespaceKind::Pid)).map(|theirs| theirs[2]);
        let mut own = |key: Option<u64>| key.unwrap_or_else(|| self.machine.new_namespace());
        Ok(([own(net), own(ipc), own(pid), own(None), HOST[4]], address))
    }

    pub(super) fn give_back(&mut self, network: Option<&str>, address: Option<u32>) {
        if let Some(network) = network.and_then(|name| self.networks.get_mut(name))
            && let Some(address) = address
        {
            network.give_back(address);
        }
    }

    pub(super) fn rename(&mut self, id: &str, name: &str) -> Result<(), EngineError> {
        let number = self.known(Operation::Rename, id)?;
        self.only_ours(Operation::Rename, number);
        self.name_is_free(Operation::Rename, name)?;
        let name: Arc<str> = name.into();
        let item = self.item_mut(number);
        let old = std::mem::replace(&mut item.name, Arc::clone(&name));
        let buddy = item.buddy;
        self.by_name.remove(&old);
        self.by_name.insert(Arc::clone(&name), number);
        if buddy {
            self.buddy_is_named(&name);
        }
        self.emit(EventAction::Renamed, number);
        Ok(())
    }

    /// By force; gone already is fine.
    pub(super) fn remove(&mut self, id: &str, by_engine_user: bool) {
        let Some(number) = self.find(id) else { return };
        if by_engine_user {
            self.only_ours(Operation::Remove, number);
            let inside = self.joiners_inside(number);
            // Who joins another one owns no namespace that somebody could be left in.
            let owns = matches!(self.item(number).network, Attachment::Network(_));
            if owns && !inside.is_empty() {
                self.violations.push(Violation::RemovedWithJoiner { buddy: self.item(number).name.to_string(), inside });
            }
        }
        self.remove_item(number);
    }

    // ---- what the engine says ------------------------------------------------------------------------------------------------------

    pub(super) fn inspect(&self, id_or_name: &str) -> Result<Container, EngineError> {
        let item = self.item(self.known(Operation::Inspect, id_or_name)?);
        let mode = |kind: NamespaceKind| match &item.network {
            Attachment::Joins { .. } if item.shares.contains(&kind) => self.network_mode(item),
            Attachment::Network(_) if item.shares.contains(&kind) => "shareable".to_owned(),
            Attachment::Joins { .. } | Attachment::Network(_) => "private".to_owned(),
        };
        Ok(Container {
            id: item.id.clone(),
            name: item.name.to_string(),
            status: item.status,
            pid: item.told_pid,
            folder: None,
            started_at: started_at(item.start_number),
            exit_code: item.exit_code,
            error: item.error.clone(),
            labels: item.labels.clone(),
            image: item.image.clone(),
            network_mode: self.network_mode(item),
            ipc_mode: mode(NamespaceKind::Ipc),
            pid_mode: mode(NamespaceKind::Pid),
            addresses: self.address_of(item).into_iter().collect(),
            resolv_conf_path: String::new(),
            hosts_path: String::new(),
            hostname_path: String::new(),
            bounded: !item.privileged,
        })
    }

    pub(super) fn summary(&self, item: &Item) -> ContainerSummary {
        ContainerSummary {
            id: item.id.clone(),
            name: item.name.to_string(),
            labels: item.labels.clone(),
            status: item.status,
            network_mode: self.network_mode(item),
            image: item.image.clone(),
        }
    }

    fn network_mode(&self, item: &Item) -> String {
        match &item.network {
            Attachment::Network(name) => name.to_string(),
            Attachment::Joins { written, number } => match number.and_then(|number| self.containers.get(&number)) {
                Some(buddy) => format!("container:{}", buddy.id),
                None => format!("container:{written}"),
            },
        }
    }

    fn address_of(&self, item: &Item) -> Option<Address> {
        let Attachment::Network(name) = &item.network else { return None };
        let network = self.networks.get(name)?;
        let host = item.address? + 2;
        let subnet = 16 + network.number % 200;
        let [_, a, b, c] = host.to_be_bytes();
        Some(Address { address: format!("{subnet}.{a}.{b}.{c}/8"), gateway: format!("{subnet}.0.0.1") })
    }
}
