//! The networks that nspool furnishes itself, or has CNI plugins furnish, as nannies use them: an address for a use, the link that goes with it, and what
//! becomes of both.
//!
//! What it promises: an address is given to one link at a time; it rests before another gets it, and from the start on for as long, since nobody
//! knows who had it last; while a link is there its address is nobody else's, also when it is a dead daemon's ([`Networks::begin`]). A furnishing
//! that fails leaves no link; one whose link cannot be taken away keeps its address, and is tried again ([`Networks::tidy`]). Plugins keep their own books:
//! what they gave is on record beside the namespace ([`super::cni`]), and is given back before that changes, or goes with its folder.
//!
//! What can go wrong: no address is free (it is said when one will be) · a link of that name is there, of a slot that somebody stays in (another name
//! is taken) · the worker does not answer in time (whatever it did is undone before its address rests).
//!
//! It deliberately does not know pools, leases or engines, nor when a namespace may be furnished or stripped.

mod link;
mod links;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::Held;
use super::cni::CniError;
use super::managed::FurnishError;
use super::managed::addresses::Moment;
use super::managed::host::Finding;
use super::managed::names::{HostEnd, Names};
use crate::level;
use crate::random::{HashMap, HashSet};
use link::{Kept, Managed, ManagedLink, Of};
pub use link::{Link, Reserved, Wire};
pub use links::{Found, Links, NetworkError};

/// Names that are tried, one after the other, when a link has that of another slot's use.
const TURNS: u64 = 36;
/// Links of one slot that are not gone yet. Fewer than names; and each is a namespace that the kernel has not taken away yet, whose memory counts as
/// the buddy's.
const MOST_LEFT: usize = 24;
/// Links that are taken away at once: no more than wait in the worker's queue beside all else.
const TOGETHER: usize = 256;
/// In this time the kernel takes a namespace and its link away that nobody holds. What is there after that is pinned.
const BY_ITSELF: Duration = Duration::from_millis(200);

enum Wired {
    Engines,
    Managed(Arc<Managed>),
    Cni(Arc<str>),
}

/// See the module.
pub struct Networks {
    names: Names,
    /// By the pool's network.
    by_index: Vec<Wired>,
    links: Option<Arc<dyn Links>>,
    /// What a dead daemon left is known.
    begun: level::Sender<bool>,
    /// Why they are not set up; empty when they are.
    trouble: level::Sender<String>,
    /// Links that slots use, with their addresses.
    used: Mutex<HashMap<HostEnd, IpAddr>>,
    /// Links that let nothing pass any more, and are about to be left.
    going: Mutex<HashSet<HostEnd>>,
    /// Links that are made at once.
    furnishing: Semaphore,
    /// Whoever takes links away has it.
    taking_away: tokio::sync::Mutex<()>,
    /// Links that are not gone yet, the oldest first.
    left: Mutex<VecDeque<ManagedLink>>,
    /// Rung when there is one more.
    more_left: Notify,
    /// Links of a dead daemon, whose slots are not adopted (yet).
    found: Mutex<Vec<(HostEnd, ManagedLink)>>,
}

impl Networks {
    /// `networks`: those of the pool, in order. Without `links` none may be managed.
    #[must_use]
    pub fn new(pool: &str, networks: Vec<Wire>, links: Option<Arc<dyn Links>>) -> Self {
        let wired = |(index, network)| match network {
            Wire::Engines => Wired::Engines,
            Wire::Managed(network, rest) => Wired::Managed(Arc::new(Managed { index, book: Mutex::new(network.book()), network, rest })),
            Wire::Cni(name) => Wired::Cni(name.into()),
        };
        let any = networks.iter().any(|network| matches!(network, Wire::Managed(..)));
        let trouble = if any { "not yet" } else { "" };
        Self {
            names: Names::of(pool),
            by_index: networks.into_iter().enumerate().map(wired).collect(),
            links,
            begun: level::Sender::new(!any),
            trouble: level::Sender::new(trouble.to_owned()),
            used: Mutex::default(),
            going: Mutex::default(),
            furnishing: Semaphore::new(TOGETHER),
            taking_away: tokio::sync::Mutex::default(),
            left: Mutex::default(),
            more_left: Notify::new(),
            found: Mutex::default(),
        }
    }

    /// Whether that network's slots have to be given their links: it is managed, or plugins furnish it.
    #[must_use]
    pub fn is_furnished(&self, network: usize) -> bool {
        self.by_index.get(network).is_some_and(|network| !matches!(network, Wired::Engines))
    }

    /// Whether any is managed.
    #[must_use]
    pub fn any(&self) -> bool {
        self.all_managed().next().is_some()
    }

    fn all_managed(&self) -> impl Iterator<Item = &Arc<Managed>> {
        self.by_index.iter().filter_map(|network| match network {
            Wired::Managed(managed) => Some(managed),
            Wired::Engines | Wired::Cni(_) => None,
        })
    }

    /// Why they are not set up; empty when they are.
    #[must_use]
    pub fn trouble(&self) -> level::Receiver<String> {
        self.trouble.subscribe()
    }

    /// Sets up what is missing on the host, and puts right what was changed. Answers what is still not as it should be. `elsewhere`: why what others make
    /// for the networks is not there; empty when it is.
    ///
    /// # Errors
    /// When something is in the way; it is also told by [`Networks::trouble`].
    pub async fn mend(&self, elsewhere: &str) -> Result<Vec<Finding>, NetworkError> {
        let mended = self.links()?.mend().await;
        let mended = if elsewhere.is_empty() { mended } else { mended.and(Err(NetworkError::NotSetUp(elsewhere.to_owned()))) };
        let trouble = mended.as_ref().err().map(NetworkError::why_not_set_up).unwrap_or_default();
        self.trouble.send_if_modified(|shown| {
            let news = *shown != trouble;
            *shown = trouble;
            news
        });
        mended
    }

    /// Once, before anything is furnished or adopted: what a dead daemon left is found, and its addresses are nobody's for as long as its link is
    /// there. All others rest, if there was a `predecessor`.
    ///
    /// # Errors
    /// The links cannot be listed.
    pub async fn begin(&self, now: Moment, predecessor: bool) -> Result<(), NetworkError> {
        let found = self.links()?.links().await?;
        if predecessor || !found.is_empty() {
            self.all_managed().for_each(|managed| managed.book.lock().rest_untouched(now + managed.rest));
        }
        let mut links = Vec::new();
        for (end, address) in found {
            let Some(address) = address else { continue };
            for managed in self.all_managed() {
                let Some(place) = managed.network.place_of(address) else { continue };
                let Some(mut plan) = managed.network.plan(&self.names, 0, 0, place) else { continue };
                if managed.book.lock().claim(place).is_ok() {
                    plan.host_end = end.clone();
                    links.push((end.clone(), ManagedLink { managed: Arc::clone(managed), place, plan, stuck: false }));
                }
            }
        }
        *self.found.lock() = links;
        self.begun.send_replace(true);
        Ok(())
    }

    /// Comes back once [`Networks::begin`] has. Cancel safe.
    pub async fn begun(&self) {
        // Its sender is here as well.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// The link that a dead daemon gave to a slot with this address. `None`: it is not there any more, or not as it was, which plugins are asked only where
    /// it was not `used`: somebody inside may have changed it, and has what there is.
    ///
    /// # Errors
    /// The worker, or the helper process, does not answer.
    pub async fn adopt(
        &self,
        network: usize,
        slot: u32,
        address: IpAddr,
        held: &dyn Held,
        used: bool,
    ) -> Result<Option<Link>, NetworkError> {
        if self.plugins(network).is_some() {
            return match held.attached(!used).await {
                Ok(attached) => Ok(attached.map(Of::Cni).map(Link).filter(|link| link.addresses().any(|own| own == address))),
                Err(error @ CniError::Stopped(_)) => Err(NetworkError::Cni(Box::new(error))),
                Err(error) => {
                    tracing::warn!(slot, %error, "what a predecessor had plugins give is not as it was");
                    Ok(None)
                }
            };
        }
        let link = {
            let mut found = self.found.lock();
            let is_it = |(end, link): &(HostEnd, ManagedLink)| {
                link.managed.index == network
                    && link.plan.ipv4.address == address
                    && self.names.slot_of(end.as_str()).is_some_and(|(_, of)| of == slot)
            };
            found.iter().position(is_it).map(|at| found.swap_remove(at).1)
        };
        let Some(link) = link else { return Ok(None) };
        match self.links()?.adopt(vec![link.plan.clone()]).await {
            Ok(()) => {
                self.used.lock().insert(link.plan.host_end.clone(), address);
                Ok(Some(Link(Of::Managed(link))))
            }
            Err(error) => {
                self.not_adopted(Some(Link(Of::Managed(link))));
                Err(error)
            }
        }
    }

    /// Whether an address is one that this network gives out.
    #[must_use]
    pub fn is_ours(&self, network: usize, address: IpAddr) -> bool {
        self.plugins(network).is_some() || self.managed(network).is_ok_and(|managed| managed.network.place_of(address).is_some())
    }

    /// It is still to be adopted.
    pub fn not_adopted(&self, link: Option<Link>) {
        if let Some(Link(Of::Managed(link))) = link {
            self.found.lock().push((link.plan.host_end.clone(), link));
        }
    }

    /// An address of a network, or when there will be one. Plugins have theirs, and say what is wrong when they are asked.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], [`NetworkError::NotSetUp`].
    pub fn reserve(&self, network: usize, now: Moment) -> Result<Reserved, NetworkError> {
        if let Some(name) = self.plugins(network) {
            return Ok(Reserved(Kept::Plugins(Arc::clone(name))));
        }
        let managed = self.managed(network)?;
        let trouble = self.trouble.borrow().clone();
        if !trouble.is_empty() {
            return Err(NetworkError::NotSetUp(trouble));
        }
        let allocated = managed.book.lock().allocate(now);
        let place = allocated.map_err(|error| NetworkError::Exhausted { network: managed.network.name.clone(), error })?;
        Ok(Reserved(Kept::Address(Arc::clone(managed), place)))
    }

    /// Gives the namespace a link with that address. `turn` tells uses of a slot apart in the link's name.
    ///
    /// Not cancel safe: the address of a call that is dropped is lost until the next start.
    ///
    /// # Errors
    /// See [`NetworkError`]. The namespace is as it was, or is to be given up; the address rests.
    pub async fn furnish(&self, reserved: Reserved, slot: u32, turn: u64, held: &dyn Held, now: Moment) -> Result<Link, NetworkError> {
        let (managed, place) = match reserved.take() {
            Kept::Address(managed, place) => (managed, place),
            Kept::Plugins(name) => {
                let attached = held.attach(&name).await;
                return attached.map(Of::Cni).map(Link).map_err(|error| NetworkError::Cni(Box::new(error)));
            }
            Kept::Nothing => return Err(NetworkError::NotSetUp("no address".to_owned())),
        };
        let links = self.links()?;
        let network = managed.network.clone();
        let mut turns = (turn..turn + TURNS).filter_map(|turn| network.plan(&self.names, slot, turn, place));
        // Not one of those that are still to be taken away by that name.
        let mut next = || turns.find(|plan| !self.is_left(&plan.host_end));
        let Some(plan) = next() else {
            managed.rest(place, Moment::ZERO);
            return Err(NetworkError::Link(FurnishError::AlreadyThere { name: format!("each of the {TURNS} links of slot {slot}") }));
        };
        let mut link = ManagedLink { managed, place, plan, stuck: false };
        // Never closed. Whoever waits here waits in turn, and not in the worker's queue, which has a deadline and an end.
        let _turn = self.furnishing.acquire().await;
        loop {
            let error = match links.furnish(held, &link.plan).await {
                Ok(()) => {
                    self.used.lock().insert(link.plan.host_end.clone(), link.plan.ipv4.address);
                    return Ok(Link(Of::Managed(link)));
                }
                Err(error) => error,
            };
            match (&error, next()) {
                (NetworkError::Link(FurnishError::AlreadyThere { .. }), Some(plan)) => link.plan = plan,
                (NetworkError::Link(FurnishError::AlreadyThere { .. }), None) => {
                    // None of them is this one's.
                    link.managed.rest(link.place, Moment::ZERO);
                    return Err(error);
                }
                _ => {
                    // Nobody knows whether it was done.
                    self.strip(link, now).await;
                    return Err(error);
                }
            }
        }
    }

    /// Takes the link away; its address rests. What cannot be taken away now keeps its address, and is tried again.
    async fn strip(&self, link: ManagedLink, now: Moment) {
        let end = link.plan.host_end.clone();
        self.no_longer_used(link);
        self.take_away(vec![end], now).await;
    }

    /// From here on its name and address are nobody's until it is gone.
    fn no_longer_used(&self, link: ManagedLink) {
        let end = link.plan.host_end.clone();
        self.used.lock().remove(&end);
        self.left.lock().push_back(link);
        self.going.lock().remove(&end);
        self.more_left.notify_one();
    }

    /// One at a time, and only what is still left: a name that is free again may be another link's by the time that it is asked for.
    async fn take_away(&self, ends: Vec<HostEnd>, now: Moment) {
        let _turn = self.taking_away.lock().await;
        let left: BTreeSet<HostEnd> = self.left.lock().iter().map(|link| link.plan.host_end.clone()).collect();
        let ends: Vec<HostEnd> = ends.into_iter().filter(|end| left.contains(end)).collect();
        for ends in ends.chunks(TOGETHER) {
            self.take_these_away(ends, now).await;
        }
    }

    async fn take_these_away(&self, ends: &[HostEnd], now: Moment) {
        // All at once: the worker removes those that wait together at the price of one.
        let taken = futures::future::join_all(ends.iter().map(|end| self.remove(end))).await;
        let mut left = self.left.lock();
        for (end, taken) in ends.iter().zip(taken) {
            let Some(at) = left.iter().position(|link| link.plan.host_end == *end) else { continue };
            match taken {
                Ok(()) => {
                    if let Some(link) = left.remove(at) {
                        link.managed.rest(link.place, now + link.managed.rest);
                    }
                }
                Err(error) if !std::mem::replace(&mut left[at].stuck, true) => {
                    tracing::warn!(link = end.as_str(), %error, "a slot's link is not gone yet: its address is kept");
                }
                Err(_) => {}
            }
        }
    }

    /// Lets nothing more pass the link: to be followed by [`Networks::leave`]. Plugins take theirs back, out of the namespace that is `held`.
    ///
    /// # Errors
    /// Something may still pass.
    pub async fn cut(&self, link: &Link, held: &dyn Held) -> Result<(), NetworkError> {
        let link = match &link.0 {
            Of::Managed(link) => link,
            Of::Cni(_) => return held.detach().await.map_err(|error| NetworkError::Cni(Box::new(error))),
        };
        self.going.lock().insert(link.plan.host_end.clone());
        self.used.lock().remove(&link.plan.host_end);
        self.links()?.cut(&link.plan.host_end).await
    }

    /// The namespace of this link goes, and the link with it, or else it is taken away a little later ([`Networks::tidy`]). Its address is kept until it
    /// is gone. Waits when there are as many of its slot's already as may be.
    pub async fn leave(&self, link: Link, now: Moment) {
        // What plugins gave goes before its namespace, or with its folder.
        let Of::Managed(link) = link.0 else { return };
        let slot = self.slot_of(&link.plan.host_end);
        self.no_longer_used(link);
        let oldest = {
            let left = self.left.lock();
            let mut of_slot = left.iter().map(|link| &link.plan.host_end).filter(|end| self.slot_of(end) == slot);
            let oldest = of_slot.next().cloned();
            oldest.filter(|_| of_slot.count() >= MOST_LEFT)
        };
        if let Some(end) = oldest {
            self.take_away(vec![end], now).await;
        }
    }

    /// Comes back some time after the last [`Networks::tidy`], when there is something to do. Cancel safe.
    pub async fn until_untidy(&self) {
        while self.left.lock().is_empty() {
            self.more_left.notified().await;
        }
        tokio::time::sleep(BY_ITSELF).await;
    }

    /// Takes away what is left, and gives the addresses back of what has gone by itself.
    pub async fn tidy(&self, now: Moment) {
        let ends = self.left.lock().iter().map(|link| link.plan.host_end.clone()).collect();
        self.take_away(ends, now).await;
    }

    /// Gives the addresses back of those links of a dead daemon that have gone with their namespaces.
    ///
    /// # Errors
    /// The links cannot be listed.
    pub async fn forget_gone(&self, now: Moment) -> Result<(), NetworkError> {
        if self.found.lock().is_empty() {
            return Ok(());
        }
        let there = self.links()?.links().await?;
        let gone: Vec<ManagedLink> = {
            let mut found = self.found.lock();
            let (stay, gone) = std::mem::take(&mut *found).into_iter().partition(|(end, _)| there.iter().any(|(other, _)| other == end));
            *found = stay;
            let gone: Vec<(HostEnd, ManagedLink)> = gone;
            gone.into_iter().map(|(_, link)| link).collect()
        };
        gone.iter().for_each(|link| link.managed.rest(link.place, now + link.managed.rest));
        Ok(())
    }

    /// Takes all away that is this pool's on the host.
    ///
    /// # Errors
    /// The worker does not answer.
    pub async fn tear_down(&self) -> Result<Vec<FurnishError>, NetworkError> {
        self.links()?.tear_down().await
    }

    /// Whose link that is.
    #[must_use]
    pub fn slot_of(&self, end: &HostEnd) -> Option<u32> {
        self.names.slot_of(end.as_str()).map(|(_, slot)| slot)
    }

    /// Counts what happened to links and rules; `None` without managed networks.
    #[must_use]
    pub fn changes(&self) -> Option<level::Receiver<u64>> {
        self.links.as_ref().map(|links| links.changes())
    }

    async fn remove(&self, end: &HostEnd) -> Result<(), NetworkError> {
        self.links()?.strip(end).await
    }

    /// The address that goes with a link which a slot uses now.
    #[must_use]
    pub fn address_of(&self, end: &HostEnd) -> Option<IpAddr> {
        self.used.lock().get(end).copied()
    }

    /// It is a slot's whose address is not given back yet, and nothing is wrong with that.
    #[must_use]
    pub fn is_left(&self, end: &HostEnd) -> bool {
        // In the order in which a link goes: it is never seen in between.
        self.going.lock().contains(end)
            || self.left.lock().iter().any(|link| link.plan.host_end == *end)
            || self.found.lock().iter().any(|(found, _)| found == end)
    }

    fn links(&self) -> Result<&Arc<dyn Links>, NetworkError> {
        self.links.as_ref().ok_or_else(|| NetworkError::NotSetUp("nobody makes links here".to_owned()))
    }

    fn managed(&self, network: usize) -> Result<&Arc<Managed>, NetworkError> {
        match self.by_index.get(network) {
            Some(Wired::Managed(managed)) => Ok(managed),
            Some(Wired::Engines | Wired::Cni(_)) | None => Err(NetworkError::NotSetUp(format!("network {network} is the engine's"))),
        }
    }

    /// The name that it has with its plugins, if it is theirs.
    fn plugins(&self, network: usize) -> Option<&Arc<str>> {
        match self.by_index.get(network)? {
            Wired::Cni(name) => Some(name),
            Wired::Engines | Wired::Managed(_) => None,
        }
    }
}
