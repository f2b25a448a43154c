//! The observer: one task that listens to the engine's events, and with them knows whether the engine answers.
//!
//! What it promises: the subscription comes before the list, so nothing falls between them; after every reconnect there is a list, for events of
//! the time in between are not replayed; an engine that is silent is asked whether it lives ([`config::Engine::probe_every`]), and one that does not
//! answer is away, like one whose stream ended; a container's death is only ever a *doubt* here, which its nanny settles. What it deliberately
//! does not know: slots. It speaks of containers, the pool knows whose they are.
//!
//! Events come late, podman's by a tenth of a second and more: what they tell may concern a use that has ended, or a container that is gone. So
//! who joins what is told with the time it was asked for, and asked again where the pool finds that too old; and what an inspection found counts
//! for nothing once the container's removal was told.

mod heard;

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
use crate::image::build::Builds;
use crate::image::gate::Gate;
use crate::level;
use crate::nanny::backoff::Backoff;
use crate::nanny::buddy::{LABEL_GENERATION, LABEL_INSTANCE, LABEL_NAMESPACE_ID};
use crate::pool::{JoinerSeen, Moment, Pool};
use crate::random::{HashMap, HashSet};

pub use heard::Heard;
use heard::UnderWay;

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
    /// What was built here; `None` without a container engine.
    pub builds: Option<Builds>,
    /// Told when something may have happened to a buddy.
    pub doubts: Arc<Doubts>,
    /// Told which fences were heard of.
    pub heard: Arc<Heard>,
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

/// The containers that events or lists have told of, until their removal, by their own id.
type Known = HashMap<String, Sight>;

/// Of a question: its number, about which container, as of when.
type Answer = (u64, String, Moment, Result<Container, EngineError>);

/// What follows from an answer.
enum Next {
    /// It is known what the container was.
    Settled,
    /// It is to be asked about again.
    Again,
    /// Its start or its end will tell.
    Open,
}

/// What is known of one container.
#[derive(Debug, Default)]
struct Sight {
    /// The buddies it joins; what a container joins never changes.
    seen: Vec<JoinerSeen>,
    /// The engine is being asked about it.
    asked: bool,
    /// Something has happened to it since: that answer may be too old.
    again: bool,
    /// For which lease it says it is; it may be gone before more can be known.
    label: Option<String>,
    /// It ran: before, it was nowhere inside.
    started: bool,
    /// The pool knows all of it.
    told: bool,
    /// Its end was told while the engine was being asked.
    removed: bool,
    /// The engine did not know it, in the answer to that question: what comes next, its start or its end, says whether it was inside.
    gone: Option<u64>,
}

/// Where [`Observer::follow`] begins.
struct Connected {
    events: BoxStream<'static, Result<EngineEvent, EngineError>>,
    /// Containers that were there before.
    listed: HashSet<String>,
    known: Known,
    doubtful: Vec<String>,
}

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
            Ok(connected) => {
                backoff.reset();
                self.follow(connected).await
            }
            Err(error) => error,
        }
    }

    async fn connect(&self) -> Result<Connected, EngineError> {
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
        let as_of = self.pool.now();
        let list = self.engine.list().await?;
        let all = joiners(&list, as_of);
        let known = all.iter().map(|seen| (seen.joiner.to_string(), Sight { seen: vec![seen.clone()], ..Sight::default() })).collect();
        let doubtful = self.pool.with(|state, now| {
            let doubtful = state.joiners_listed(now, &all).into_iter().map(|seen| seen.joiner.to_string()).collect();
            state.set_engine_up(true);
            doubtful
        });
        self.doubts.raise_unless_running(&list);
        tracing::info!(kind = %info.kind, version = info.version, endpoint = info.endpoint, containers = list.len(), "the engine answers");
        self.late.seen.notify_one();
        self.state.send_replace(EngineState::Up(info));
        self.gate.nudge();
        // What happened meanwhile nobody heard.
        self.builds.iter().for_each(Builds::forget);
        let listed = list.iter().map(|container| container.id.to_string()).collect();
        Ok(Connected { events, listed, known, doubtful })
    }

    async fn follow(&self, connected: Connected) -> EngineError {
        let Connected { mut events, listed, mut known, doubtful } = connected;
        let (mut inspections, mut under_way) = (FuturesUnordered::new(), UnderWay::new(Arc::clone(&self.heard)));
        for id in doubtful {
            inspections.extend(self.ask(id, &mut known, &mut under_way));
        }
        let mut probe = tokio::time::interval(self.probe_every);
        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ping = None;
        loop {
            tokio::select! {
                // What comes most often last: it keeps nothing else waiting.
                biased;
                Some(answer) = inspections.next() => {
                    let (number, id) = (answer.0, answer.1.clone());
                    match self.inspected(answer, &listed, &mut known) {
                        Next::Open => {}
                        Next::Settled => under_way.settled(number),
                        Next::Again => {
                            inspections.extend(self.ask(id, &mut known, &mut under_way));
                            under_way.settled(number);
                        }
                    }
                }
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
                        if event.action == EventAction::Renamed {
                            under_way.renamed(event.id, event.name);
                        } else if let Some(id) = self.handle(event, &mut known, &mut under_way) {
                            inspections.extend(self.ask(id, &mut known, &mut under_way));
                        }
                    }
                    Some(Err(error)) => return error,
                    None => return ended("the event stream ended"),
                },
            }
        }
    }

    /// What an event means. Answers a container that has to be inspected: one that may have joined a buddy, which no event tells.
    fn handle(&self, event: EngineEvent, known: &mut Known, under_way: &mut UnderWay) -> Option<String> {
        match event.action {
            // Nobody else's image or container says this run's name, which is drawn by lot: a buddy of ours, which joins nobody.
            EventAction::Created | EventAction::Started if event.attributes.get(LABEL_INSTANCE) == Some(&self.late.instance) => {}
            EventAction::Created => {
                self.late_one(&event);
                known.entry(event.id.clone()).or_default().label = event.attributes.get(LABEL_NAMESPACE_ID).cloned();
                return Some(event.id);
            }
            EventAction::Started => {
                self.late_one(&event);
                let is_new = !known.contains_key(&event.id);
                let sight = known.entry(event.id.clone()).or_default();
                sight.label = event.attributes.get(LABEL_NAMESPACE_ID).cloned();
                sight.started = true;
                if let Some(number) = sight.gone {
                    self.was_nobody_knows_who(known.remove(&event.id));
                    under_way.settled(number);
                    return None;
                }
                sight.again = sight.asked;
                let started: Vec<JoinerSeen> =
                    sight.seen.iter().map(|seen| JoinerSeen { live: true, as_of: Moment::ZERO, ..seen.clone() }).collect();
                if is_new || !self.tell(&started) {
                    return Some(event.id);
                }
            }
            EventAction::Died => {
                self.doubts.raise(&event.id);
                if let Some(sight) = known.get_mut(&event.id) {
                    sight.again = sight.asked;
                    for seen in &sight.seen {
                        self.pool.with(|state, _| state.joiner_stopped(&seen.buddy, &seen.joiner));
                    }
                }
            }
            EventAction::Paused | EventAction::Unpaused => self.doubts.raise(&event.id),
            EventAction::Removed => {
                self.doubts.raise(&event.id);
                let sight = known.get_mut(&event.id)?;
                for seen in std::mem::take(&mut sight.seen) {
                    self.pool.with(|state, now| state.joiner_removed(now, &seen.buddy, &seen.joiner));
                }
                sight.removed = sight.asked;
                if !sight.asked {
                    let gone = sight.gone;
                    known.remove(&event.id);
                    // It never ran.
                    gone.into_iter().for_each(|number| under_way.settled(number));
                }
            }
            EventAction::ImageGone => {
                self.gate.image_gone(&event.id);
                self.builds.iter().for_each(|builds| builds.image_gone(&event.id));
            }
            EventAction::Renamed => {}
        }
        None
    }

    /// It may be a buddy that a predecessor's call has made by now.
    fn late_one(&self, event: &EngineEvent) {
        if event.attributes.contains_key(LABEL_GENERATION) {
            self.late.seen.notify_one();
        }
    }

    /// Asks about a container that may have joined a buddy, unless that is under way.
    fn ask(&self, id: String, known: &mut Known, under_way: &mut UnderWay) -> Option<impl Future<Output = Answer> + use<>> {
        let sight = known.entry(id.clone()).or_default();
        if std::mem::replace(&mut sight.asked, true) {
            sight.again = true;
            return None;
        }
        let (engine, as_of, number) = (Arc::clone(&self.engine), self.pool.now(), under_way.ask());
        Some(async move {
            let inspected = engine.inspect(&id).await;
            (number, id, as_of, inspected)
        })
    }

    fn inspected(&self, (number, id, as_of, inspected): Answer, listed: &HashSet<String>, known: &mut Known) -> Next {
        let Some(sight) = known.get_mut(&id) else { return Next::Settled };
        sight.asked = false;
        let again = std::mem::take(&mut sight.again);
        let container = match inspected {
            Ok(container) => container,
            Err(error) if error.class == ErrorClass::NotFound && !sight.started && !sight.removed => {
                sight.gone = Some(number);
                return Next::Open;
            }
            Err(error) => {
                if error.class != ErrorClass::NotFound {
                    // Whether it joined will be known from the list at the next reconnect, and before any namespace is given on.
                    tracing::warn!(%error, "cannot tell what a new container joins");
                }
                let harmless = sight.told || sight.removed && !sight.started;
                let sight = known.remove(&id);
                if !harmless {
                    self.was_nobody_knows_who(sight);
                }
                return Next::Settled;
            }
        };
        let (removed, started) = (sight.removed, sight.started);
        if !container.bounded && (started || !removed) {
            self.through_others(&container, listed, known);
        }
        if removed {
            // It is nobody's joiner any more, and it was.
            if started && !container.bounded {
                self.pool.with(|state, _| container.joins().for_each(|buddy| state.joiner_was_unbounded(buddy)));
            }
            known.remove(&id);
            return Next::Settled;
        }
        let Some(sight) = known.get_mut(&id) else { return Next::Settled };
        sight.seen = container
            .joins()
            .map(|buddy| JoinerSeen {
                buddy: buddy.into(),
                joiner: Arc::clone(&container.id.0),
                namespace_id: container.labels.get(LABEL_NAMESPACE_ID).cloned(),
                live: container.status.is_live(),
                bounded: container.bounded,
                as_of,
            })
            .collect();
        let conclusive = self.tell(&sight.seen);
        sight.told = conclusive;
        if !sight.seen.is_empty() && (again || !conclusive) { Next::Again } else { Next::Settled }
    }

    /// Who joins a function is in its buddy's namespace as well.
    fn through_others(&self, container: &Container, listed: &HashSet<String>, known: &Known) {
        self.pool.with(|state, _| {
            for joined in container.joins() {
                match known.get(joined) {
                    // What that one joins is still being asked.
                    Some(other) if other.asked && other.seen.is_empty() => state.joiner_unknown(None),
                    Some(other) => other.seen.iter().for_each(|seen| state.joiner_was_unbounded(&seen.buddy)),
                    // Those that were there before and join somebody are known.
                    None if state.is_buddy(joined) || listed.contains(joined) => {}
                    None => state.joiner_unknown(None),
                }
            }
        });
    }

    /// Somebody was inside, of whom nothing is known but what its label says.
    fn was_nobody_knows_who(&self, sight: Option<Sight>) {
        let label = sight.and_then(|sight| sight.label);
        self.pool.with(|state, _| state.joiner_unknown(label.as_deref()));
    }

    /// `false`: the pool finds one of them too old to be believed.
    fn tell(&self, seen: &[JoinerSeen]) -> bool {
        let untold = seen.iter().filter(|seen| !self.pool.with(|state, now| state.joined(now, seen))).count();
        untold == 0
    }
}

/// Who joins whom, by the engine's list, which was asked for at `as_of`.
#[must_use]
pub fn joiners(list: &[ContainerSummary], as_of: Moment) -> Vec<JoinerSeen> {
    let seen = |container: &ContainerSummary| {
        Some(JoinerSeen {
            buddy: container.joins()?.into(),
            joiner: Arc::clone(&container.id.0),
            namespace_id: container.labels.get(LABEL_NAMESPACE_ID).cloned(),
            live: container.status.is_live(),
            bounded: false,
            as_of,
        })
    };
    list.iter().filter_map(seen).collect()
}

fn ended(why: &str) -> EngineError {
    EngineError { operation: "events", class: ErrorClass::Away, subject: String::new(), message: why.to_owned(), status: None }
}
