//! Callers that wait for a slot, in the order they came, among those that a slot can serve.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::types::{NetworkIndex, Request, Token};

/// One waiting call (and its retries). Numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId {
    queue: usize,
    sequence: u64,
}

/// What a waiter will get its lease with.
#[derive(Debug)]
pub(super) struct Waiting {
    pub request: Arc<Request>,
    pub token: Token,
}

/// One queue per network, and one for those that take any.
#[derive(Debug)]
pub(super) struct Waiters {
    queues: Vec<BTreeMap<u64, Waiting>>,
    networks: u32,
    next: u64,
}

impl Waiters {
    pub(super) fn new(networks: u32) -> Self {
        Self { queues: (0..=networks).map(|_| BTreeMap::new()).collect(), networks, next: 0 }
    }

    pub(super) fn push(&mut self, waiting: Waiting) -> WaiterId {
        let queue = waiting.request.network.map_or(self.any(), usize::from);
        let sequence = self.next;
        self.next += 1;
        self.queues[queue].insert(sequence, waiting);
        WaiterId { queue, sequence }
    }

    pub(super) fn get(&self, id: WaiterId) -> Option<&Waiting> {
        self.queues[id.queue].get(&id.sequence)
    }

    pub(super) fn remove(&mut self, id: WaiterId) -> Option<Waiting> {
        self.queues[id.queue].remove(&id.sequence)
    }

    /// The one that waits longest among those that a slot of this network can serve, and that fit.
    pub(super) fn first_for(&self, network: NetworkIndex, fits: impl Fn(&Waiting) -> bool) -> Option<WaiterId> {
        let first = |queue: usize| {
            let (sequence, _) = self.queues[queue].iter().find(|(_, waiting)| fits(waiting))?;
            Some(WaiterId { queue, sequence: *sequence })
        };
        [usize::from(network), self.any()].into_iter().filter_map(first).min_by_key(|id| id.sequence)
    }

    /// Any one of them, for refusing them all.
    pub(super) fn first(&self) -> Option<WaiterId> {
        let first = |(queue, waiters): (usize, &BTreeMap<u64, Waiting>)| {
            waiters.first_key_value().map(|(sequence, _)| WaiterId { queue, sequence: *sequence })
        };
        self.queues.iter().enumerate().filter_map(first).min_by_key(|id| id.sequence)
    }

    /// How many callers wait for this network only.
    pub(super) fn of_network(&self, network: u32) -> u32 {
        self.length(network as usize)
    }

    /// How many callers take any network.
    pub(super) fn of_any(&self) -> u32 {
        self.length(self.any())
    }

    fn length(&self, queue: usize) -> u32 {
        u32::try_from(self.queues[queue].len()).unwrap_or(u32::MAX)
    }

    pub(super) fn len(&self) -> u32 {
        self.queues.iter().map(|queue| u32::try_from(queue.len()).unwrap_or(u32::MAX)).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (WaiterId, &Waiting)> {
        let waiters = self.queues.iter().enumerate();
        waiters
            .flat_map(|(queue, waiters)| waiters.iter().map(move |(sequence, waiting)| (WaiterId { queue, sequence: *sequence }, waiting)))
    }

    fn any(&self) -> usize {
        self.networks as usize
    }
}
