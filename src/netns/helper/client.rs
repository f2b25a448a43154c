//! The daemon's side: asks the helper, believes nothing unseen, and gets another helper when this one is no good.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::session::{ANSWERED_WITHIN, HelperError, STOPS, Session};
use super::verbs::{Begin, Hosts, LinkError, Verb};
use crate::causes::with_causes;
use crate::level;
use crate::netns::managed::Plan;
use crate::netns::managed::names::HostEnd;
use crate::telemetry::metric;

/// A helper that has just ended is followed by another in some milliseconds.
const NEXT_WITHIN: Duration = Duration::from_secs(1);
/// Between helpers that do not come to work.
const PAUSES: [Duration; 4] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// Starts a helper, after the end of the one before, and gives its end of a new channel. Blocks.
pub type Starter = Box<dyn FnMut() -> Result<OwnedFd, StartError> + Send>;

/// Why there is no helper.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// It may go next time.
    #[error("the helper process cannot be started: {0}")]
    Failed(String),
    /// There will be none any more.
    #[error("the keeper of the helper process is gone: {0}")]
    Lost(String),
}

/// See [`super`].
pub struct Helper {
    begin: Mutex<Begin>,
    pub(super) hosts: Hosts,
    session: level::Sender<Arc<Session>>,
    /// Links that should be there.
    ports: Mutex<BTreeMap<HostEnd, Plan>>,
    changes: Arc<level::Sender<u64>>,
    lost: level::Sender<Option<String>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Helper {
    /// Starts the first helper, and goes on to start others until it is dropped. Inside a tokio runtime.
    ///
    /// # Errors
    /// The first one cannot be started, or cannot work.
    pub async fn start(starter: Starter, begin: Begin) -> Result<Arc<Self>, HelperError> {
        let changes = Arc::new(level::Sender::new(0));
        let (started, starter) = next(starter).await;
        let session = Session::open(started.map_err(|error| HelperError::Away(error.to_string()))?, &changes)?;
        let hosts = session.begin(&begin).await?;
        let helper = Arc::new(Self {
            begin: Mutex::new(begin),
            hosts,
            session: level::Sender::new(session),
            ports: Mutex::default(),
            changes,
            lost: level::Sender::new(None),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (stopping, weak) = (helper.stopping.clone(), Arc::downgrade(&helper));
        helper.tasks.spawn(async move { stopping.run_until_cancelled(attend(weak, starter)).await });
        Ok(helper)
    }

    /// Whether it can mount namespaces where it was told to at the start.
    #[must_use]
    pub fn mounts(&self) -> bool {
        self.hosts.mounts
    }

    /// Why there will be no helper any more; until then `None`.
    #[must_use]
    pub fn lost(&self) -> level::Receiver<Option<String>> {
        self.lost.subscribe()
    }

    /// Which lines this helper writes from now on, and the next ones. Does not wait until it does.
    pub fn set_log_filter(&self, filter: &str) {
        let mut begin = self.begin.lock();
        filter.clone_into(&mut begin.log.filter);
        // With the lock, so that the last one is told last. A helper that begins just now is told when it is the session.
        self.session.borrow().tell(&Verb::Filter { filter: filter.to_owned() });
    }

    /// Nothing more is asked of it, and no other one is started. Cancel safe.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.session.borrow().end(STOPS);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What is done to its end even if nobody waits any more.
    pub(super) fn carried_out<T: Send + 'static>(&self, deed: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tasks.spawn(deed)
    }

    pub(super) fn news(&self) -> level::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Those that the next helper is told of.
    pub(super) fn ports(&self) -> parking_lot::MutexGuard<'_, BTreeMap<HostEnd, Plan>> {
        self.ports.lock()
    }

    /// The helper that is there, or comes soon.
    pub(super) async fn session(&self) -> Result<Arc<Session>, HelperError> {
        let mut sessions = self.session.subscribe();
        let live = async {
            // Its sender is here as well.
            let _ = sessions.wait_for(|session| session.why_ended().is_none()).await;
        };
        let waited = tokio::time::timeout(NEXT_WITHIN, live).await;
        let session = Arc::clone(&self.session.borrow());
        match (waited, session.why_ended()) {
            (Ok(()), _) | (Err(_), None) => Ok(session),
            (Err(_), Some(why)) => Err(HelperError::Away(why)),
        }
    }

    /// Asks whichever helper is there.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        verb: Verb,
        descriptors: Vec<OwnedFd>,
        within: Duration,
    ) -> Result<(T, Vec<OwnedFd>), HelperError> {
        self.session().await?.ask(verb, descriptors, within).await
    }

    async fn replace(&self, session: Arc<Session>) -> Result<(), HelperError> {
        let begin = self.begin.lock().clone();
        let hosts = session.begin(&begin).await?;
        if hosts != self.hosts {
            return Err(session.confused("begin", "it is not on the same host"));
        }
        let plans: Vec<Plan> = self.ports().values().cloned().collect();
        if !plans.is_empty() {
            let adopt = Verb::Adopt { plans };
            let (adopted, _): (Result<(), LinkError>, _) = session.ask(adopt, Vec::new(), ANSWERED_WITHIN).await?;
            adopted.map_err(|error| session.confused("adopt", &format!("{error:?}")))?;
        }
        self.session.send_replace(Arc::clone(&session));
        {
            let now = self.begin.lock();
            if now.log != begin.log {
                // Meanwhile, and only the last one was told.
                session.tell(&Verb::Filter { filter: now.log.filter.clone() });
            }
        }
        // Nobody listened meanwhile.
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }
}

/// Off the runtime's threads.
async fn next(mut starter: Starter) -> (Result<OwnedFd, StartError>, Starter) {
    let started = tokio::task::spawn_blocking(move || {
        let started = starter();
        (started, starter)
    });
    match started.await {
        Ok(both) => both,
        Err(error) => {
            let why = error.to_string();
            (Err(StartError::Lost(why.clone())), Box::new(move || Err(StartError::Lost(why.clone()))))
        }
    }
}

/// Sees that there is a helper which answers.
async fn attend(helper: Weak<Helper>, mut starter: Starter) {
    loop {
        let Some(session) = helper.upgrade().map(|helper| Arc::clone(&helper.session.borrow())) else { return };
        let why = session.watch(|| helper.strong_count() > 0).await;
        let Some(why) = why.filter(|why| why != STOPS) else { return };
        tracing::error!(why, "the helper process is ended, and another one started: what was under way has failed");
        metrics::counter!(metric::HELPERS).increment(1);
        let mut pauses = PAUSES.into_iter().chain(std::iter::repeat(PAUSES[PAUSES.len() - 1]));
        loop {
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
            let (started, again) = next(starter).await;
            starter = again;
            let Some(helper) = helper.upgrade() else { return };
            let begun = match started {
                Ok(socket) => match Session::open(socket, &helper.changes) {
                    Ok(session) => helper.replace(session).await.map_err(|error| with_causes(&error)),
                    Err(error) => Err(error.to_string()),
                },
                Err(error @ StartError::Failed(_)) => Err(error.to_string()),
                Err(error @ StartError::Lost(_)) => {
                    helper.lost.send_replace(Some(error.to_string()));
                    return;
                }
            };
            match begun {
                Ok(()) => break,
                Err(why) => tracing::error!(why, "there is no helper process: nothing gets ready"),
            }
        }
        tracing::info!("there is a helper process again");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use tokio::sync::mpsc;

    use super::*;
    use crate::engine::NamespaceKind;
    use crate::netns::Kernel as _;
    use crate::netns::helper::held::Remote;
    use crate::netns::helper::scripted::{begin, said, scripted};

    #[tokio::test]
    async fn a_lost_keeper_is_told() {
        let mut first = true;
        let mut start = scripted(|_, _| None);
        let starter: Starter =
            Box::new(move || if std::mem::take(&mut first) { start() } else { Err(StartError::Lost("it was killed".to_owned())) });
        let helper = Helper::start(starter, begin()).await.unwrap();
        helper.session.borrow().end("a test");
        let mut lost = helper.lost();
        let why = lost.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(why.contains("it was killed"), "{why}");
        let error = Remote(Arc::clone(&helper)).members(NamespaceKind::Net, &[]).await.unwrap_err();
        assert!(error.to_string().contains("the helper process is not there: a test"), "{error}");
    }

    #[tokio::test]
    async fn a_log_filter_reaches_the_helper_that_is_there_the_next_one_and_the_one_that_has_just_begun() {
        let (tell, mut told) = mpsc::channel(1);
        let (go_on, may_go_on) = sync_channel(1);
        let may_go_on = Mutex::new(may_go_on);
        let starter = scripted(move |turn, verb| {
            if let Verb::Begin(begin) = verb {
                tell.blocking_send((turn, begin.log.filter.clone())).unwrap();
                may_go_on.lock().recv().unwrap();
            } else if let Verb::Filter { filter } = verb {
                tell.blocking_send((turn, filter.clone())).unwrap();
            }
            Some(said(&()))
        });
        let mut next = async || {
            let next = tokio::time::timeout(ANSWERED_WITHIN, told.recv()).await.expect("it is not told");
            next.unwrap()
        };
        go_on.send(()).unwrap();
        let helper = Helper::start(starter, begin()).await.unwrap();
        assert_eq!(next().await, (1, "off".to_owned()));
        helper.set_log_filter("debug");
        assert_eq!(next().await, (1, "debug".to_owned()));
        helper.session.borrow().end("a test");
        assert_eq!(next().await, (2, "debug".to_owned()));
        helper.set_log_filter("trace");
        go_on.send(()).unwrap();
        assert_eq!(next().await, (2, "trace".to_owned()));
    }
}
