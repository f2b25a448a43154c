//! The networks that nspool furnishes itself, as nannies use them: an address for a use, the link that goes with it, and what becomes of both.
//!
//! What it promises: an address is given to one link at a time; it rests before another gets it, and from the start on for as long, since nobody
//! knows who had it last; while a link is there its address is nobody else's, also when it is a dead daemon's ([`Networks::begin`]). A furnishing
//! that fails leaves no link; one whose link cannot be taken away keeps its address, and is tried again ([`Networks::tidy`]).
//!
//! What can go wrong: no address is free (it is said when one will be) · a link of that name is there, of a slot that somebody stays in (another name
//! is taken) · the worker does not answer in time (whatever it did is undone before its address rests).
//!
//! It deliberately does not know pools, leases or engines, nor when a namespace may be furnished or stripped.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::managed::addresses::{AddressBook, Exhausted, Moment, Place};
use super::managed::host::Finding;
use super::managed::names::{HostEnd, Names};
use super::managed::network::Interface;
use super::managed::{FurnishError, Furnisher, ManagedNetwork, Plan};
use super::{Held, KernelError};
use crate::causes::with_causes;
use crate::level;
use crate::random::HashMap;

/// Names that are tried, one after the other, when a link has that of another slot's use.
const TURNS: u64 = 36;
/// Links of one slot that are not gone yet. Fewer than names; and each is a namespace that the kernel has not taken away yet, whose memory counts as
/// the buddy's.
const MOST_LEFT: usize = 24;
/// In this time the kernel takes a namespace and its link away that nobody holds. What is there after that is pinned.
const BY_ITSELF: Duration = Duration::from_millis(200);

/// Links that were found, each with the address of its slot, if its alias tells.
pub type Found = Vec<(HostEnd, Option<IpAddr>)>;

/// Makes links and takes them away. [`Furnisher`] is the real one, `engine::fake` has one for tests.
pub trait Links: Send + Sync + 'static {
    /// All of it or nothing, but for a time-out: then nobody knows.
    fn furnish<'a>(&'a self, held: &'a dyn Held, plan: &'a Plan) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// When it answers, the link is gone, also for those who have the namespace.
    fn strip<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// When it answers, nothing passes the link any more; it may be there still.
    fn cut<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>>;
    /// Those that are there, whoever made them.
    fn links(&self) -> BoxFuture<'_, Result<Found, NetworkError>>;
    /// They shall be there: a predecessor made them.
    fn adopt(&self, plans: Vec<Plan>) -> BoxFuture<'_, Result<(), NetworkError>>;
    /// Makes and puts right what the networks need on the host.
    fn mend(&self) -> BoxFuture<'_, Result<Vec<Finding>, NetworkError>>;
    /// Takes all of it away; gives what could not be.
    fn tear_down(&self) -> BoxFuture<'_, Result<Vec<FurnishError>, NetworkError>>;
    /// Counts what happened to links and rules.
    fn changes(&self) -> level::Receiver<u64>;
}

/// Why a slot has no link.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// By the book.
    #[error("network {network}: {error}")]
    Exhausted {
        /// Its name.
        network: String,
        /// How many are where.
        error: Exhausted,
    },
    /// By the kernel, or the worker.
    #[error("the slot's link: {}", with_causes(.0))]
    Link(FurnishError),
    /// The namespace cannot be got at.
    #[error("the slot's namespace: {0}")]
    Namespace(KernelError),
    /// The bridges are not there yet, or not any more.
    #[error("the managed networks are not set up: {0}")]
    NotSetUp(String),
}

impl NetworkError {
    /// Without saying twice that it is not.
    fn why_not_set_up(&self) -> String {
        if let Self::NotSetUp(why) = self { why.clone() } else { self.to_string() }
    }

    /// When there will be an address, if that is known.
    #[must_use]
    pub fn retry_after(&self, now: Moment) -> Option<Duration> {
        match self {
            Self::Exhausted { error, .. } => error.next.map(|at| at.saturating_sub(now)),
            Self::Link(_) | Self::Namespace(_) | Self::NotSetUp(_) => None,
        }
    }
}

/// A network's addresses.
#[derive(Debug)]
struct Managed {
    index: usize,
    network: ManagedNetwork,
    rest: Duration,
    book: Mutex<AddressBook>,
}

/// An address for a use that is prepared. Dropped, it is free again: nobody has used it.
#[derive(Debug)]
#[must_use]
pub struct Reserved(Option<(Arc<Managed>, Place)>);

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some((managed, place)) = self.0.take() {
            managed.rest(place, Moment::ZERO);
        }
    }
}

/// A slot's link, and its address. Whoever has it gives it back: [`Networks::strip`].
#[derive(Debug)]
#[must_use]
pub struct Link {
    managed: Arc<Managed>,
    place: Place,
    plan: Plan,
    /// It could not be taken away, which has been said.
    stuck: bool,
}

impl Link {
    /// Those of the slot.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.plan.ipv4), self.plan.ipv6].into_iter().flatten().map(|interface| interface.address)
    }
}

impl Managed {
    fn rest(&self, place: Place, until: Moment) {
        if let Err(error) = self.book.lock().rest(place, until) {
            tracing::error!(%error, "an address came back that nobody had");
        }
    }
}

impl Link {
    /// Of the slot, IPv4 first.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        std::iter::once(&self.plan.ipv4).chain(&self.plan.ipv6)
    }

    /// Of the link.
    #[must_use]
    pub fn mtu(&self) -> u32 {
        self.plan.mtu
    }
}

/// See the module.
pub struct Networks {
    names: Names,
    /// By the pool's network; `None`: the engine's.
    by_index: Vec<Option<Arc<Managed>>>,
    links: Option<Arc<dyn Links>>,
    /// What a dead daemon left is known.
    begun: level::Sender<bool>,
    /// Why they are not set up; empty when they are.
    trouble: level::Sender<String>,
    /// Links that slots use, with their addresses.
    used: Mutex<HashMap<HostEnd, IpAddr>>,
    /// Whoever takes links away has it.
    taking_away: tokio::sync::Mutex<()>,
    /// Links that are not gone yet, the oldest first.
    left: Mutex<VecDeque<Link>>,
    /// Rung when there is one more.
    more_left: Notify,
    /// Links of a dead daemon, whose slots are not adopted (yet).
    found: Mutex<Vec<(HostEnd, Link)>>,
}

impl Networks {
    /// `networks`: by the pool's network, with how long addresses rest; `None` is an engine's. Without `links` all must be.
    #[must_use]
    pub fn new(pool: &str, networks: Vec<Option<(ManagedNetwork, Duration)>>, links: Option<Arc<dyn Links>>) -> Self {
        let managed = |index, (network, rest): (ManagedNetwork, Duration)| {
            Arc::new(Managed { index, book: Mutex::new(network.book()), network, rest })
        };
        let any = networks.iter().any(Option::is_some);
        let trouble = if any { "not yet" } else { "" };
        Self {
            names: Names::of(pool),
            by_index: networks.into_iter().enumerate().map(|(index, network)| Some(managed(index, network?))).collect(),
            links,
            begun: level::Sender::new(!any),
            trouble: level::Sender::new(trouble.to_owned()),
            used: Mutex::default(),
            taking_away: tokio::sync::Mutex::default(),
            left: Mutex::default(),
            more_left: Notify::new(),
            found: Mutex::default(),
        }
    }

    /// Whether nspool furnishes that network's slots.
    #[must_use]
    pub fn is_managed(&self, network: usize) -> bool {
        self.by_index.get(network).is_some_and(Option::is_some)
    }

    /// Whether any is.
    #[must_use]
    pub fn any(&self) -> bool {
        self.by_index.iter().any(Option::is_some)
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
            self.by_index.iter().flatten().for_each(|managed| managed.book.lock().rest_untouched(now + managed.rest));
        }
        let mut links = Vec::new();
        for (end, address) in found {
            let Some(address) = address else { continue };
            for managed in self.by_index.iter().flatten() {
                let Some(place) = managed.network.place_of(address) else { continue };
                let Some(mut plan) = managed.network.plan(&self.names, 0, 0, place) else { continue };
                if managed.book.lock().claim(place).is_ok() {
                    plan.host_end = end.clone();
                    links.push((end.clone(), Link { managed: Arc::clone(managed), place, plan, stuck: false }));
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

    /// The link that a dead daemon gave to a slot with this address. `None`: it is not there any more.
    ///
    /// # Errors
    /// The worker does not answer.
    pub async fn adopt(&self, network: usize, slot: u32, address: IpAddr) -> Result<Option<Link>, NetworkError> {
        let link = {
            let mut found = self.found.lock();
            let is_it = |(end, link): &(HostEnd, Link)| {
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
                Ok(Some(link))
            }
            Err(error) => {
                self.not_adopted(Some(link));
                Err(error)
            }
        }
    }

    /// Whether an address is one that this network gives out.
    #[must_use]
    pub fn is_ours(&self, network: usize, address: IpAddr) -> bool {
        self.managed(network).is_ok_and(|managed| managed.network.place_of(address).is_some())
    }

    /// It is still to be adopted.
    pub fn not_adopted(&self, link: Option<Link>) {
        self.found.lock().extend(link.map(|link| (link.plan.host_end.clone(), link)));
    }

    /// An address of a network, or when there will be one.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`], [`NetworkError::NotSetUp`].
    pub fn reserve(&self, network: usize, now: Moment) -> Result<Reserved, NetworkError> {
        let managed = self.managed(network)?;
        let trouble = self.trouble.borrow().clone();
        if !trouble.is_empty() {
            return Err(NetworkError::NotSetUp(trouble));
        }
        let allocated = managed.book.lock().allocate(now);
        let place = allocated.map_err(|error| NetworkError::Exhausted { network: managed.network.name.clone(), error })?;
        Ok(Reserved(Some((Arc::clone(managed), place))))
    }

    /// Gives the namespace a link with that address. `turn` tells uses of a slot apart in the link's name.
    ///
    /// Not cancel safe: the address of a call that is dropped is lost until the next start.
    ///
    /// # Errors
    /// See [`NetworkError`]. The namespace is as it was, or is to be given up; the address rests.
    pub async fn furnish(&self, mut reserved: Reserved, slot: u32, turn: u64, held: &dyn Held, now: Moment) -> Result<Link, NetworkError> {
        let links = self.links()?;
        let (managed, place) = reserved.0.take().ok_or_else(|| NetworkError::NotSetUp("no address".to_owned()))?;
        let network = managed.network.clone();
        let mut turns = (turn..turn + TURNS).filter_map(|turn| network.plan(&self.names, slot, turn, place));
        // Not one of those that are still to be taken away by that name.
        let mut next = || turns.find(|plan| !self.is_left(&plan.host_end));
        let Some(plan) = next() else {
            managed.rest(place, Moment::ZERO);
            return Err(NetworkError::Link(FurnishError::AlreadyThere { name: format!("each of the {TURNS} links of slot {slot}") }));
        };
        let mut link = Link { managed, place, plan, stuck: false };
        loop {
            let error = match links.furnish(held, &link.plan).await {
                Ok(()) => {
                    self.used.lock().insert(link.plan.host_end.clone(), link.plan.ipv4.address);
                    return Ok(link);
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
    pub async fn strip(&self, link: Link, now: Moment) {
        let end = link.plan.host_end.clone();
        self.no_longer_used(link);
        self.take_away(vec![end], now).await;
    }

    /// From here on its name and address are nobody's until it is gone.
    fn no_longer_used(&self, link: Link) {
        self.used.lock().remove(&link.plan.host_end);
        self.left.lock().push_back(link);
        self.more_left.notify_one();
    }

    /// One at a time, and only what is still left: a name that is free again may be another link's by the time that it is asked for.
    async fn take_away(&self, ends: Vec<HostEnd>, now: Moment) {
        let _turn = self.taking_away.lock().await;
        let ends: Vec<HostEnd> = {
            let left = self.left.lock();
            ends.into_iter().filter(|end| left.iter().any(|link| link.plan.host_end == *end)).collect()
        };
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

    /// Lets nothing more pass the link: to be followed by [`Networks::leave`].
    ///
    /// # Errors
    /// Something may still pass.
    pub async fn cut(&self, link: &Link) -> Result<(), NetworkError> {
        self.used.lock().remove(&link.plan.host_end);
        self.links()?.cut(&link.plan.host_end).await
    }

    /// The namespace of this link goes, and the link with it, or else it is taken away a little later ([`Networks::tidy`]). Its address is kept until it
    /// is gone. Waits when there are as many of its slot's already as may be.
    pub async fn leave(&self, link: Link, now: Moment) {
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
        let gone: Vec<Link> = {
            let mut found = self.found.lock();
            let (stay, gone) = std::mem::take(&mut *found).into_iter().partition(|(end, _)| there.iter().any(|(other, _)| other == end));
            *found = stay;
            let gone: Vec<(HostEnd, Link)> = gone;
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
        self.left.lock().iter().any(|link| link.plan.host_end == *end) || self.found.lock().iter().any(|(found, _)| found == end)
    }

    fn links(&self) -> Result<&Arc<dyn Links>, NetworkError> {
        self.links.as_ref().ok_or_else(|| NetworkError::NotSetUp("nobody makes links here".to_owned()))
    }

    fn managed(&self, network: usize) -> Result<&Arc<Managed>, NetworkError> {
        let managed = self.by_index.get(network).and_then(Option::as_ref);
        managed.ok_or_else(|| NetworkError::NotSetUp(format!("network {network} is the engine's")))
    }
}

impl Links for Furnisher {
    fn furnish<'a>(&'a self, held: &'a dyn Held, plan: &'a Plan) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            use std::os::fd::AsFd as _;
            let namespace = held.open_network().map_err(NetworkError::Namespace)?;
            Self::furnish(self, namespace.as_fd(), plan).await.map(drop).map_err(NetworkError::Link)
        })
    }

    fn strip<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move { Self::strip(self, end).await.map(drop).map_err(NetworkError::Link) })
    }

    fn cut<'a>(&'a self, end: &'a HostEnd) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move { Self::cut(self, end).await.map_err(NetworkError::Link) })
    }

    fn links(&self) -> BoxFuture<'_, Result<Found, NetworkError>> {
        Box::pin(async move { Self::links(self).await.map_err(NetworkError::Link) })
    }

    fn adopt(&self, plans: Vec<Plan>) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move { Self::adopt(self, plans).await.map_err(NetworkError::Link) })
    }

    fn mend(&self) -> BoxFuture<'_, Result<Vec<Finding>, NetworkError>> {
        Box::pin(async move { Self::mend(self).await.map_err(NetworkError::Link) })
    }

    fn tear_down(&self) -> BoxFuture<'_, Result<Vec<FurnishError>, NetworkError>> {
        Box::pin(async move { Self::tear_down(self).await.map_err(NetworkError::Link) })
    }

    fn changes(&self) -> level::Receiver<u64> {
        self.changes.clone()
    }
}
