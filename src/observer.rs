//! The observer: one task that listens to the engine's events, and with them knows whether the engine answers.
//!
//! What it promises: the subscription comes before the list, so nothing falls between them; after every reconnect there is a list, for events of
//! the time in between are not replayed; an engine that is silent is asked whether it lives ([`config::Engine::probe_every`]), and one that does not
//! answer is away, like one whose stream ended; a container's death is only ever a *doubt* here, which its nanny settles. What it deliberately
//! does not know: slots. It speaks of containers, the pool knows whose they are.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{BoxStream, FuturesUnordered};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::engine::{
    Container, ContainerId, ContainerStatus, ContainerSummary, Engine, EngineError, EngineEvent, EngineInfo, ErrorClass, EventAction,
};
use crate::image::gate::Gate;
use crate::level;
use crate::nanny::backoff::Backoff;
use crate::nanny::buddy::{LABEL_GENERATION, LABEL_INSTANCE, LABEL_NAMESPACE_ID};
use crate::pool::{JoinerSeen, Moment, Pool};
use crate::random::{HashMap, HashSet};

/// Whether the engine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineState {
    /// Not reached yet since the daemon started.
    Starting {
        /// The last try's words; empty before the first.
        why: String,
    },
    /// It answers.
    Up(EngineInfo),
    /// It did, and does not any more.
    Away {
        /// Since when.
        since: Moment,
        /// In which words.
        why: String,
        /// Who it was.
        info: EngineInfo,
    },
}

impl EngineState {
    /// It answers.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }

    /// Who answers, or did.
    #[must_use]
    pub fn info(&self) -> Option<&EngineInfo> {
        match self {
            Self::Up(info) | Self::Away { info, .. } => Some(info),
            Self::Starting { .. } => None,
        }
    }

    /// What is wrong; empty when nothing is.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Starting { why } | Self::Away { why, .. } => why,
            Self::Up(_) => "",
        }
    }
}

/// Who wants to hear when something may have happened to a container.
#[derive(Debug, Default)]
pub struct Doubts(Mutex<HashMap<ContainerId, Arc<Notify>>>);

impl Doubts {
    /// From now on `doubt` is notified about `container`.
    pub fn watch(&self, container: &ContainerId, doubt: &Arc<Notify>) {
        self.0.lock().insert(container.clone(), Arc::clone(doubt));
    }

    /// No longer.
    pub fn forget(&self, container: &ContainerId) {
        self.0.lock().remove(container);
    }

    /// Something may have happened to it.
    pub fn raise(&self, container: &str) {
        if let Some(doubt) = self.0.lock().get(&ContainerId::from(container)) {
            doubt.notify_one();
        }
    }

    /// Raises a doubt about each one that the list does not show as running.
    fn raise_unless_running(&self, list: &[ContainerSummary]) {
        let running: HashSet<&ContainerId> =
            list.iter().filter(|container| container.status == ContainerStatus::Running).map(|container| &container.id).collect();
        for (_, doubt) in self.0.lock().iter().filter(|(id, _)| !running.contains(id)) {
            doubt.notify_one();
        }
    }
}

/// See the module.
pub struct Observer {
    /// The engine to listen to.
    pub engine: Arc<dyn Engine>,
    /// Told what joiners do.
    pub pool: Arc<Pool>,
    /// Told when an image goes, and when the engine is back.
    pub gate: Arc<Gate>,
    /// Told when something may have happened to a buddy.
    pub doubts: Arc<Doubts>,
    /// Where the engine's state is published.
    pub state: level::Sender<EngineState>,
    /// How often a silent engine is asked.
    pub probe_every: Duration,
    /// Of reconnects.
    pub backoff: config::Backoff,
    /// Told when a buddy may be there that no nanny of this daemon made.
    pub late: Arc<Late>,
}

/// A predecessor's last call may be carried out long after its death: the container that comes of it was in no list.
#[derive(Debug)]
pub struct Late {
    /// Which run of the daemon this is, as its buddies' labels say.
    pub instance: String,
    seen: Notify,
}

impl Late {
    /// For the run of that name.
    #[must_use]
    pub fn new(instance: String) -> Self {
        Self { instance, seen: Notify::new() }
    }

    /// Comes back when there may be one since the last time. Cancel safe.
    pub async fn seen(&self) {
        self.seen.notified().await;
    }
}

/// Joiners by their own id: which buddies they joined.
type Known = HashMap<String, Vec<JoinerSeen>>;

impl Observer {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let config = config::Backoff { longest: self.backoff.longest.min(Duration::from_secs(2)), ..self.backoff.clone() };
        let mut backoff = Backoff::new(&config, 0);
        loop {
            let error = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                error = self.listen(&mut backoff) => error,
            };
            self.away(&error);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next_wait()) => {}
            }
        }
    }

    fn away(&self, error: &EngineError) {
        let why = error.to_string();
        self.pool.with(|state, _| state.set_engine_up(false));
        let now = self.pool.now();
        self.state.send_if_modified(|state| {
            let next = match state {
                EngineState::Starting { .. } => EngineState::Starting { why },
                EngineState::Up(info) => EngineState::Away { since: now, why, info: info.clone() },
                EngineState::Away { since, info, .. } => EngineState::Away { since: *since, why, info: info.clone() },
            };
            let news = next != *state;
            if news {
                tracing::warn!(why = next.why(), "the engine does not answer");
            }
            *state = next;
            news
        });
    }

    /// One connection's life. Comes back with the reason why it ended.
    async fn listen(&self, backoff: &mut Backoff) -> EngineError {
        match self.connect().await {
            Ok((events, known)) => {
                backoff.reset();
                self.follow(events, known).await
            }
            Err(error) => error,
        }
    }

    async fn connect(&self) -> Result<(BoxStream<'static, Result<EngineEvent, EngineError>>, Known), EngineError> {
        let info = self.engine.info().await?;
        if let Some(before) = self.state.borrow().info()
            && before.id != info.id
        {
            return Err(EngineError {
                operation: "info",
                class: ErrorClass::Refused,
                subject: info.endpoint.clone(),
                message: format!("another engine answers ({}, it was {}): restart nspool to move to it", info.id, before.id),
                status: None,
            });
        }
        let events = self.engine.events().await?;
        let list = self.engine.list().await?;
        let all = joiners(&list);
        let known: Known = all.iter().map(|seen| (seen.joiner.to_string(), vec![seen.clone()])).collect();
        self.pool.with(|state, now| {
            state.joiners_listed(now, &all);
            state.set_engine_up(true);
        });
        self.doubts.raise_unless_running(&list);
        tracing::info!(kind = %info.kind, version = info.version, endpoint = info.endpoint, containers = list.len(), "the engine answers");
        self.late.seen.notify_one();
        self.state.send_replace(EngineState::Up(info));
        self.gate.nudge();
        Ok((events, known))
    }

    async fn follow(&self, mut events: BoxStream<'static, Result<EngineEvent, EngineError>>, mut known: Known) -> EngineError {
        let mut inspections = FuturesUnordered::new();
        let mut probe = tokio::time::interval(self.probe_every);
        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ping = None;
        loop {
            tokio::select! {
                // What comes most often last: it keeps nothing else waiting.
                biased;
                Some(inspected) = inspections.next() => self.inspected(inspected, &mut known),
                _ = probe.tick(), if ping.is_none() => {
                    let engine = Arc::clone(&self.engine);
                    ping = Some(Box::pin(async move { engine.ping().await }));
                }
                answer = async { match &mut ping { Some(ping) => ping.await, None => std::future::pending().await } } => {
                    ping = None;
                    if let Err(error) = answer {
                        return error;
                    }
                }
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if let Some(id) = self.handle(event, &mut known) {
                            let engine = Arc::clone(&self.engine);
                            inspections.push(async move { engine.inspect(&id).await });
                        }
                    }
                    Some(Err(error)) => return error,
                    None => return ended("the event stream ended"),
                },
            }
        }
    }

    /// What an event means. Answers a container that has to be inspected: one that may have joined a buddy, which no event tells.
    fn handle(&self, event: EngineEvent, known: &mut Known) -> Option<String> {
        match event.action {
            EventAction::Created | EventAction::Started if event.attributes.contains_key(LABEL_GENERATION) => {
                if event.attributes.get(LABEL_INSTANCE) != Some(&self.late.instance) {
                    self.late.seen.notify_one();
                }
            }
            EventAction::Created => return Some(event.id),
            EventAction::Started => match known.get_mut(&event.id) {
                None => return Some(event.id),
                Some(seen) => self.tell(seen.iter_mut().map(|seen| {
                    seen.live = true;
                    &*seen
                })),
            },
            EventAction::Died => {
                self.doubts.raise(&event.id);
                for seen in known.get_mut(&event.id).into_iter().flatten() {
                    seen.live = false;
                    self.pool.with(|state, _| state.joiner_stopped(&seen.buddy, &seen.joiner));
                }
            }
            EventAction::Paused | EventAction::Unpaused => self.doubts.raise(&event.id),
            EventAction::Removed => {
                self.doubts.raise(&event.id);
                for seen in known.remove(&event.id).into_iter().flatten() {
                    self.pool.with(|state, now| state.joiner_removed(now, &seen.buddy, &seen.joiner));
                }
            }
            EventAction::ImageGone => self.gate.image_gone(&event.id),
        }
        None
    }

    fn inspected(&self, inspected: Result<Container, EngineError>, known: &mut Known) {
        let container = match inspected {
            Ok(container) => container,
            Err(error) if error.class == ErrorClass::NotFound => return,
            Err(error) => {
                // Whether it joined will be known from the list at the next reconnect, and before any namespace is given on.
                tracing::warn!(%error, "cannot tell what a new container joins");
                return;
            }
        };
        let seen: Vec<JoinerSeen> = container
            .joins()
            .map(|buddy| JoinerSeen {
                buddy: buddy.into(),
                joiner: Arc::clone(&container.id.0),
                namespace_id: container.labels.get(LABEL_NAMESPACE_ID).cloned(),
                live: container.status.is_live(),
            })
            .collect();
        if !seen.is_empty() {
            self.tell(seen.iter());
            known.insert(container.id.to_string(), seen);
        }
    }

    fn tell<'a>(&self, seen: impl Iterator<Item = &'a JoinerSeen>) {
        for seen in seen {
            self.pool.with(|state, now| state.joined(now, seen));
        }
    }
}

/// Who joins whom, by the engine's list.
#[must_use]
pub fn joiners(list: &[ContainerSummary]) -> Vec<JoinerSeen> {
    let seen = |container: &ContainerSummary| {
        Some(JoinerSeen {
            buddy: container.joins()?.into(),
            joiner: Arc::clone(&container.id.0),
            namespace_id: container.labels.get(LABEL_NAMESPACE_ID).cloned(),
            live: container.status.is_live(),
        })
    };
    list.iter().filter_map(seen).collect()
}

fn ended(why: &str) -> EngineError {
    EngineError { operation: "events", class: ErrorClass::Away, subject: String::new(), message: why.to_owned(), status: None }
}
