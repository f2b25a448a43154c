//! Who makes links and takes them away, and what can go wrong with it.

use std::net::IpAddr;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::causes::with_causes;
use crate::engine::NamespaceKind;
use crate::level;
use crate::netns::cni::CniError;
use crate::netns::managed::addresses::{Exhausted, Moment};
use crate::netns::managed::host::Finding;
use crate::netns::managed::names::HostEnd;
use crate::netns::managed::{FurnishError, Furnisher, Plan};
use crate::netns::{Held, KernelError};

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
    /// By plugins, or because they could not be asked.
    #[error("{0}")]
    Cni(Box<CniError>),
    /// The bridges are not there yet, or not any more.
    #[error("the managed networks are not set up: {0}")]
    NotSetUp(String),
}

impl NetworkError {
    /// Without saying twice that it is not.
    pub(super) fn why_not_set_up(&self) -> String {
        if let Self::NotSetUp(why) = self { why.clone() } else { self.to_string() }
    }

    /// When there will be an address, if that is known.
    #[must_use]
    pub fn retry_after(&self, now: Moment) -> Option<Duration> {
        match self {
            Self::Exhausted { error, .. } => error.next.map(|at| at.saturating_sub(now)),
            Self::Link(_) | Self::Namespace(_) | Self::Cni(_) | Self::NotSetUp(_) => None,
        }
    }
}

impl Links for Furnisher {
    fn furnish<'a>(&'a self, held: &'a dyn Held, plan: &'a Plan) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            use std::os::fd::AsFd as _;
            let namespace = held.open(NamespaceKind::Net).map_err(NetworkError::Namespace)?;
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
