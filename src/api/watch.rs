//! Watch: a snapshot, then every change.
//!
//! Each watcher reads the pool's ring at its own pace; nothing is queued for it but what one look found. Events of leases go out at once, the
//! counts when they differ, at most every [`PACE`]. Who is not an operator sees the leases of its own uid. A watcher that was connected and
//! fell off the end of the ring is cut off with SLOW_READER; one that comes back with a position that is not remembered gets RESET and a
//! snapshot. The counters of [`Usage`] that only grow (misses, allocations) do not count as a change.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::time::Instant;
use tonic::Status;

use super::connection::Peer;
use super::status::Refusal;
use super::{Shared, convert};
use crate::pool::{Backlog, PoolEvent, Position, Usage};
use crate::proto;
use crate::proto::watch_response::Event;

/// The counts go out this often at most.
const PACE: Duration = Duration::from_millis(100);

/// One watcher's stream, from `position` on or from the beginning.
pub(super) fn stream(
    shared: Arc<Shared>,
    peer: Peer,
    position: Option<Position>,
) -> BoxStream<'static, Result<proto::WatchResponse, Status>> {
    let watcher = Watcher::new(shared, peer, position);
    stream::try_unfold(watcher, |mut watcher| async move {
        let message = watcher.next().await?;
        Ok(Some((message, watcher)))
    })
    .boxed()
}

struct Watcher {
    shared: Arc<Shared>,
    /// `None`: all leases.
    only_uid: Option<u32>,
    /// Up to here everything is in `queue`, or told.
    position: Position,
    /// Found, and not told yet.
    queue: VecDeque<proto::WatchResponse>,
    told: Option<Usage>,
    /// Not before this are the counts looked at again.
    counts_at: Instant,
}

impl Watcher {
    fn new(shared: Arc<Shared>, peer: Peer, position: Option<Position>) -> Self {
        let only_uid = (!shared.is_admin(peer)).then_some(peer.uid);
        let mut watcher = Self { shared, only_uid, position: 0, queue: VecDeque::new(), told: None, counts_at: Instant::now() };
        match position.map(|position| watcher.shared.pool.events_since(Some(position))) {
            Some(Backlog::Events(events, end)) => watcher.take(events, end),
            Some(Backlog::Reset(end)) => {
                watcher.queue.push_back(response(end, Event::Reset(proto::Reset {})));
                watcher.snapshot();
            }
            None => watcher.snapshot(),
        }
        watcher
    }

    fn snapshot(&mut self) {
        let (found, position) = self.shared.pool.snapshot(|state| (state.usage(), state.doors(), state.lease_views(None)));
        let (usage, (cordoned, draining), leases) = found;
        let own = leases.iter().filter(|view| self.sees(view.request.uid));
        let snapshot = proto::Snapshot {
            usage: Some(convert::usage(&usage)),
            cordoned,
            draining,
            leases: own.map(convert::lease_event).collect(),
            incarnation: self.shared.about.incarnation.clone(),
        };
        self.position = position;
        self.told = Some(lasting(usage));
        self.counts_at = Instant::now() + PACE;
        self.queue.push_back(response(position, Event::Snapshot(snapshot)));
    }

    fn sees(&self, uid: u32) -> bool {
        self.only_uid.is_none_or(|only| only == uid)
    }

    /// Cancel safe.
    async fn next(&mut self) -> Result<proto::WatchResponse, Status> {
        let shared = Arc::clone(&self.shared);
        loop {
            if let Some(message) = self.queue.pop_front() {
                return Ok(message);
            }
            // Subscribe, then look.
            let mut news = pin!(shared.pool.news());
            let mut changed = pin!(shared.pool.changed());
            news.as_mut().enable();
            changed.as_mut().enable();
            let differs = self.look()?;
            if !self.queue.is_empty() {
                continue;
            }
            let counts_at = self.counts_at;
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Err(Refusal::Stopping.into()),
                () = news => {}
                () = async {
                    tokio::time::sleep_until(counts_at).await;
                    if !differs {
                        changed.await;
                    }
                } => {}
            }
        }
    }

    /// Queues what is new. Answers whether the counts differ from those told and have to wait for their time.
    fn look(&mut self) -> Result<bool, Refusal> {
        match self.shared.pool.events_since(Some(self.position)) {
            Backlog::Events(events, end) => self.take(events, end),
            Backlog::Reset(_) => return Err(Refusal::SlowReader),
        }
        let usage = self.shared.pool.read(crate::pool::state::State::usage);
        let differs = self.told != Some(lasting(usage));
        let now = Instant::now();
        if now < self.counts_at {
            return Ok(differs);
        }
        self.counts_at = now + PACE;
        if differs {
            self.told = Some(lasting(usage));
            self.queue.push_back(response(self.position, Event::Capacity(convert::usage(&usage))));
        }
        Ok(false)
    }

    fn take(&mut self, events: Vec<PoolEvent>, end: Position) {
        let first = end - events.len() as u64;
        for (after, event) in (first + 1..).zip(events) {
            if let Some(event) = self.seen(event) {
                self.queue.push_back(response(after, event));
            }
        }
        self.position = end;
    }

    fn seen(&self, event: PoolEvent) -> Option<Event> {
        use proto::LeaseState::{Active, Ended, Lost};
        Some(match event {
            PoolEvent::Joined(note) => Event::Joined(self.sees(note.uid).then(|| convert::note(&note, Active))?),
            PoolEvent::Lost(note) => Event::Lost(self.sees(note.uid).then(|| convert::note(&note, Lost))?),
            PoolEvent::Ending(note) => Event::Ending(self.sees(note.uid).then(|| convert::note(&note, Ended))?),
            PoolEvent::Cordon { cordoned, draining } => Event::Cordon(proto::CordonEvent { cordoned, draining }),
        })
    }
}

fn response(position: Position, event: Event) -> proto::WatchResponse {
    proto::WatchResponse { position, event: Some(event) }
}

/// Without what only grows.
fn lasting(usage: Usage) -> Usage {
    Usage { misses: 0, allocations: 0, ..usage }
}
