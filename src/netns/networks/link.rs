//! What a slot has of a network: a place that is kept for it, and then its link.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::netns::cni::{Attached, Own};
use crate::netns::managed::addresses::{AddressBook, Moment, Place};
use crate::netns::managed::network::Interface;
use crate::netns::managed::{ManagedNetwork, Plan};

/// A network of the pool, by who gives its namespaces their links.
#[derive(Clone, Debug)]
pub enum Wire {
    /// The engine, or nobody.
    Engines,
    /// nspool, with how long addresses rest.
    Managed(ManagedNetwork, Duration),
    /// CNI plugins, by the name of the network in their configuration.
    Cni(String),
}

/// A network's addresses.
#[derive(Debug)]
pub(super) struct Managed {
    pub(super) index: usize,
    pub(super) network: ManagedNetwork,
    pub(super) rest: Duration,
    pub(super) book: Mutex<AddressBook>,
}

impl Managed {
    pub(super) fn rest(&self, place: Place, until: Moment) {
        if let Err(error) = self.book.lock().rest(place, until) {
            tracing::error!(%error, "an address came back that nobody had");
        }
    }
}

/// For a use that is prepared. Dropped, an address is free again: nobody has used it.
#[derive(Debug)]
#[must_use]
pub struct Reserved(pub(super) Kept);

#[derive(Debug)]
pub(super) enum Kept {
    Address(Arc<Managed>, Place),
    /// Plugins say which address it is when they give it.
    Plugins(Arc<str>),
    /// It was made use of.
    Nothing,
}

impl Reserved {
    pub(super) fn take(mut self) -> Kept {
        std::mem::replace(&mut self.0, Kept::Nothing)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Kept::Address(managed, place) = std::mem::replace(&mut self.0, Kept::Nothing) {
            managed.rest(place, Moment::ZERO);
        }
    }
}

/// A slot's link, and its addresses. Whoever has it gives it back: [`Networks::cut`](super::Networks::cut), then
/// [`Networks::leave`](super::Networks::leave).
#[derive(Debug)]
#[must_use]
pub struct Link(pub(super) Of);

#[derive(Debug)]
pub(super) enum Of {
    Managed(ManagedLink),
    /// What plugins gave; what is needed to take it back is with the namespace.
    Cni(Attached),
}

/// One that nspool made.
#[derive(Debug)]
pub(super) struct ManagedLink {
    pub(super) managed: Arc<Managed>,
    pub(super) place: Place,
    pub(super) plan: Plan,
    /// It could not be taken away, which has been said.
    pub(super) stuck: bool,
}

impl Link {
    /// Of the slot, IPv4 first.
    #[must_use]
    pub fn interfaces(&self) -> Vec<Own> {
        let own = |own: &Interface| Own { address: own.address, prefix: own.prefix, gateway: Some(own.gateway) };
        match &self.0 {
            Of::Managed(link) => std::iter::once(&link.plan.ipv4).chain(&link.plan.ipv6).map(own).collect(),
            Of::Cni(attached) => attached.addresses.clone(),
        }
    }

    /// Those of the slot.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.interfaces().into_iter().map(|own| own.address)
    }

    /// Of the link.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        match &self.0 {
            Of::Managed(link) => link.plan.mtu,
            Of::Cni(attached) => attached.mtu,
        }
    }

    /// How names are found on that network; empty: it does not say.
    #[must_use]
    pub fn resolv_conf(&self) -> &str {
        match &self.0 {
            Of::Managed(_) => "",
            Of::Cni(attached) => &attached.resolv_conf,
        }
    }

    /// It has to be cut before its namespace is another one: plugins take back what they find there.
    #[must_use]
    pub fn goes_first(&self) -> bool {
        matches!(self.0, Of::Cni(_))
    }
}
