//! Networks that the fake engine makes when it is told to, with their bridges on the fake host. Docker's ways: names may come twice, a bridge
//! that is there already is used as it is, a network in use stays, and its bridge goes with it.
//!
//! It knows nothing of the networks that the fake containers are on, which have addresses and nothing else.

use std::collections::BTreeSet;

use super::model::fail;
use super::script::Operation;
use super::{FakeWorld, Violation};
use crate::engine::{EngineError, ErrorClass, Network, NetworkSpec};

#[derive(Debug, Default)]
pub(super) struct EngineNetworks {
    next: u32,
    there: Vec<Entry>,
    /// On the host.
    bridges: BTreeSet<String>,
    /// Made on another host than ours, as a rootless engine does.
    elsewhere: bool,
}

#[derive(Debug)]
struct Entry {
    network: Network,
    users: Vec<String>,
    /// Not made through the engine's trait.
    foreign: bool,
}

impl EngineNetworks {
    pub(super) fn list(&self) -> Vec<Network> {
        self.there.iter().map(|entry| entry.network.clone()).collect()
    }

    pub(super) fn create(&mut self, spec: NetworkSpec) -> Result<(), EngineError> {
        if let Some(other) = self.there.iter().find(|entry| entry.network.made_with.bridge == spec.bridge) {
            let words = format!("conflicts with network {}: networks have same bridge name", other.network.id);
            return Err(fail(Operation::CreateNetwork, ErrorClass::Refused, &spec.name, words, Some(403)));
        }
        if !self.elsewhere {
            self.bridges.insert(spec.bridge.clone());
        }
        self.put(spec, false);
        Ok(())
    }

    fn put(&mut self, spec: NetworkSpec, foreign: bool) {
        self.next += 1;
        let network = Network { id: format!("network{}", self.next), driver: "bridge".to_owned(), internal: false, made_with: spec };
        self.there.push(Entry { network, users: Vec::new(), foreign });
    }

    pub(super) fn users(&self, id: &str) -> Vec<String> {
        self.there.iter().filter(|entry| entry.network.id == id).flat_map(|entry| entry.users.clone()).collect()
    }

    pub(super) fn remove(&mut self, id: &str) -> Result<Option<Violation>, EngineError> {
        let Some(at) = self.there.iter().position(|entry| entry.network.id == id) else { return Ok(None) };
        let name = self.there[at].network.made_with.name.clone();
        if !self.there[at].users.is_empty() {
            let words = format!("network {name} id {id} has active endpoints");
            return Err(fail(Operation::RemoveNetwork, ErrorClass::Refused, &name, words, Some(403)));
        }
        let gone = self.there.remove(at);
        self.bridges.remove(&gone.network.made_with.bridge);
        Ok(gone.foreign.then_some(Violation::ForeignTouched { operation: Operation::RemoveNetwork, name }))
    }
}

impl FakeWorld {
    /// Networks that somebody had the engine make.
    #[must_use]
    pub fn engine_networks(&self) -> Vec<Network> {
        self.model.lock().engine_networks.list()
    }

    /// Somebody else makes a network, with its bridge.
    pub fn make_network(&self, spec: NetworkSpec) {
        let mut model = self.model.lock();
        model.engine_networks.bridges.insert(spec.bridge.clone());
        model.engine_networks.put(spec, true);
    }

    /// Somebody removes all networks of that name, used or not.
    pub fn prune_network(&self, name: &str) {
        let networks = &mut self.model.lock().engine_networks;
        let (gone, stay) = std::mem::take(&mut networks.there).into_iter().partition(|entry| entry.network.made_with.name == name);
        networks.there = stay;
        let gone: Vec<Entry> = gone;
        gone.iter().for_each(|entry| _ = networks.bridges.remove(&entry.network.made_with.bridge));
    }

    /// These containers, and no others, are on the networks of that name.
    pub fn use_network(&self, name: &str, containers: &[&str]) {
        let mut model = self.model.lock();
        let of_name = model.engine_networks.there.iter_mut().filter(|entry| entry.network.made_with.name == name);
        of_name.for_each(|entry| entry.users = containers.iter().map(|name| (*name).to_owned()).collect());
    }

    /// Somebody makes or removes a link on the host, whatever the engine thinks.
    pub fn set_bridge(&self, name: &str, there: bool) {
        let bridges = &mut self.model.lock().engine_networks.bridges;
        if there { _ = bridges.insert(name.to_owned()) } else { _ = bridges.remove(name) }
    }

    /// Whether there is such a link on the host.
    #[must_use]
    pub fn has_bridge(&self, name: &str) -> bool {
        self.model.lock().engine_networks.bridges.contains(name)
    }

    /// The engine's bridges are on another host from now on.
    pub fn make_bridges_elsewhere(&self) {
        self.model.lock().engine_networks.elsewhere = true;
    }
}
