//! The daemon's side: asks the helper, believes nothing unseen, and gets another helper when this one is no good.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{Shutdown, shutdown};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel::{self, Message};
use super::verbs::{Begin, BeginError, Hosts, Verb};
use crate::causes::with_causes;
use crate::level;
use crate::netns::managed::Plan;
use crate::netns::managed::names::HostEnd;
use crate::telemetry::metric;

/// Questions that wait to be sent: more than there are slots that can wait at once.
const QUEUE: usize = 16 * 1024;
/// For what has no time of its own; also to find all processes of a busy host, and links that wait behind each other for 10 s at most.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Beyond the time that a deed has.
pub(super) const SLACK: Duration = Duration::from_secs(2);
/// How often it is seen whether it answers at all, and how soon it has to.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// A helper that has just ended is followed by another in some milliseconds.
const NEXT_WITHIN: Duration = Duration::from_secs(1);
/// Of a session that is to have no successor.
const STOPS: &str = "the daemon stops";
/// Between helpers that do not come to work.
const PAUSES: [Duration; 4] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// Why the helper did not do something, or may have done it without telling.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HelperError {
    /// There is none.
    #[error("the helper process is not there: {0}")]
    Away(String),
    /// It was ended for that.
    #[error("the helper process did not {verb} within {limit:?}")]
    Late {
        /// What it was asked for.
        verb: &'static str,
        /// How long it might have taken.
        limit: Duration,
    },
    /// It was ended for that.
    #[error("the helper process was confused when asked to {verb}: {why}")]
    Confused {
        /// What it was asked for.
        verb: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// It has not begun to work.
    #[error("the helper process cannot work")]
    Begin(#[source] BeginError),
}

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
    begin: Begin,
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
            begin,
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

    /// Why there will be no helper any more; until then `None`.
    #[must_use]
    pub fn lost(&self) -> level::Receiver<Option<String>> {
        self.lost.subscribe()
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
        let hosts = session.begin(&self.begin).await?;
        if hosts != self.hosts {
            return Err(session.confused("begin", "it is not on the same host"));
        }
        let plans: Vec<Plan> = self.ports().values().cloned().collect();
        if !plans.is_empty() {
            let adopt = Verb::Adopt { plans };
            let (adopted, _): (Result<(), super::verbs::LinkError>, _) = session.ask(adopt, Vec::new(), ANSWERED_WITHIN).await?;
            adopted.map_err(|error| session.confused("adopt", &format!("{error:?}")))?;
        }
        self.session.send_replace(session);
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
        let why = session.watch(&helper).await;
        let Some(why) = why else { return };
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

/// One helper's time.
#[derive(Debug)]
pub(super) struct Session {
    socket: OwnedFd,
    to: mpsc::Sender<Message>,
    /// Who waits for which answer; `None` after its end.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Message>>>>,
    number: AtomicU64,
    ended: level::Sender<Option<String>>,
}

/// News that come without a question.
pub(super) const NEWS: u64 = 0;

impl Session {
    fn open(socket: OwnedFd, changes: &Arc<level::Sender<u64>>) -> Result<Arc<Self>, HelperError> {
        let (to, outgoing) = mpsc::channel(QUEUE);
        let ended = level::Sender::new(None);
        let waiting = Mutex::new(Some(HashMap::new()));
        let session = Arc::new(Self { socket, to, waiting, number: AtomicU64::new(NEWS + 1), ended });
        let (sender, receiver, changes) = (Arc::clone(&session), Arc::clone(&session), Arc::clone(changes));
        let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
            started.map(drop).map_err(|error| HelperError::Away(format!("a thread for it: {error}")))
        };
        thread("helper-to", Box::new(move || sender.send_all(outgoing)))?;
        let received = thread("helper-from", Box::new(move || receiver.receive_all(&changes)));
        if let Err(error) = &received {
            session.end(&error.to_string());
        }
        received.map(|()| session)
    }

    fn send_all(&self, mut outgoing: mpsc::Receiver<Message>) {
        while let Some(message) = outgoing.blocking_recv() {
            if message.number == NEWS {
                return;
            }
            if let Err(errno) = channel::send(self.socket.as_fd(), &message) {
                return self.end(&format!("it does not listen: {errno}"));
            }
        }
    }

    fn receive_all(&self, changes: &level::Sender<u64>) {
        let why = loop {
            match channel::receive(self.socket.as_fd()) {
                Ok(None) => break "it has ended".to_owned(),
                Err(error) => break error.to_string(),
                Ok(Some(message)) if message.number == NEWS => changes.send_modify(|changes| *changes += 1),
                Ok(Some(message)) if message.number >= self.number.load(Ordering::Relaxed) => {
                    break "it answers what nobody asked".to_owned();
                }
                Ok(Some(message)) => {
                    let waiter = self.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&message.number));
                    // Nobody waits any more.
                    if let Some(waiter) = waiter {
                        drop(waiter.send(message));
                    }
                }
            }
        };
        self.end(&why);
    }

    /// Whatever it was asked for has failed. The first reason is the one that is told.
    pub(super) fn end(&self, why: &str) {
        self.ended.send_if_modified(|ended| {
            let news = ended.is_none();
            ended.get_or_insert_with(|| why.to_owned());
            news
        });
        self.waiting.lock().take();
        // Ends the threads. An error says that it is so already.
        let _ = shutdown(&self.socket, Shutdown::Both);
        let _ = self.to.try_send(Message::default());
    }

    pub(super) fn why_ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Until it has ended: why. `None`: the daemon has no use for a helper any more.
    async fn watch(&self, helper: &Weak<Helper>) -> Option<String> {
        let mut ended = self.ended.subscribe();
        loop {
            let over = tokio::time::timeout(PING_EVERY, ended.wait_for(Option::is_some)).await.is_ok();
            if over || self.ask::<()>(Verb::Ping, Vec::new(), PING_WITHIN).await.is_err() {
                return Some(self.why_ended().unwrap_or_else(|| "it does not answer".to_owned()));
            }
            if helper.strong_count() == 0 {
                self.end(STOPS);
                return None;
            }
        }
    }

    async fn begin(&self, begin: &Begin) -> Result<Hosts, HelperError> {
        let (begun, _) = self.ask::<Result<Hosts, BeginError>>(Verb::Begin(begin.clone()), Vec::new(), ANSWERED_WITHIN).await?;
        begun.map_err(|error| {
            self.end(&with_causes(&error));
            HelperError::Begin(error)
        })
    }

    pub(super) fn confused(&self, verb: &'static str, why: &str) -> HelperError {
        let error = HelperError::Confused { verb, why: why.to_owned() };
        self.end(&error.to_string());
        error
    }

    /// Sends it, and does not wait: for what need not be known.
    pub(super) fn tell(&self, verb: &Verb) {
        // Full, or ended: then there is nothing to be told.
        let _ = self.post(verb, Vec::new());
    }

    fn post(&self, verb: &Verb, descriptors: Vec<OwnedFd>) -> Result<(u64, oneshot::Receiver<Message>), HelperError> {
        let body = write(verb).map_err(|error| HelperError::Away(format!("{} cannot be said: {error}", verb.name())))?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let (to, answer) = oneshot::channel();
        let away = || HelperError::Away(self.why_ended().unwrap_or_else(|| "more waits than it can be told".to_owned()));
        self.waiting.lock().as_mut().ok_or_else(away)?.insert(number, to);
        self.to.try_send(Message { number, body, descriptors }).map_err(|_| away())?;
        Ok((number, answer))
    }

    /// What is late, or is no answer, is its end. Not cancel safe where the verb changes something.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        verb: Verb,
        descriptors: Vec<OwnedFd>,
        within: Duration,
    ) -> Result<(T, Vec<OwnedFd>), HelperError> {
        let (_, answer) = self.post(&verb, descriptors)?;
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(message)) => match serde_json::from_slice(&message.body) {
                Ok(answer) => Ok((answer, message.descriptors)),
                Err(error) => Err(self.confused(verb.name(), &error.to_string())),
            },
            Ok(Err(_)) => Err(HelperError::Away(self.why_ended().unwrap_or_else(|| "it has ended".to_owned()))),
            Err(_) => {
                let error = HelperError::Late { verb: verb.name(), limit: within };
                self.end(&error.to_string());
                Err(error)
            }
        }
    }
}

pub(super) fn write(what: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::engine::NamespaceKind;
    use crate::netns::helper::held::Remote;
    use crate::netns::helper::verbs::Log;
    use crate::netns::{Kernel as _, KernelError, NamespaceId, Process};

    const NOBODYS: NamespaceId = NamespaceId { dev: 0, ino: 1 };

    fn begin() -> Begin {
        Begin { host: None, lock: "/nowhere".into(), log: Log { filter: "off".to_owned(), json: false } }
    }

    fn hosts() -> Hosts {
        Hosts { net: NOBODYS, ipc: NOBODYS, pid: NOBODYS }
    }

    /// Helpers that begin well, and answer everything but pings as the script says: the first one so, the next ones so.
    fn scripted(script: impl Fn(usize, &Verb) -> Option<(Vec<u8>, Vec<OwnedFd>)> + Send + Sync + 'static) -> Starter {
        let (script, mut turn) = (Arc::new(script), 0);
        Box::new(move || {
            turn += 1;
            let (ours, theirs) = channel::pair().map_err(|errno| StartError::Failed(errno.to_string()))?;
            let script = Arc::clone(&script);
            std::thread::spawn(move || {
                while let Ok(Some(question)) = channel::receive(theirs.as_fd()) {
                    let verb: Verb = serde_json::from_slice(&question.body).unwrap();
                    let answer = if matches!(verb, Verb::Begin(_)) {
                        Some((write(&Ok::<_, BeginError>(hosts())).unwrap(), Vec::new()))
                    } else if matches!(verb, Verb::Ping) {
                        Some((write(&()).unwrap(), Vec::new()))
                    } else {
                        script(turn, &verb)
                    };
                    let Some((body, descriptors)) = answer else { continue };
                    let _ = channel::send(theirs.as_fd(), &Message { number: question.number, body, descriptors });
                }
            });
            Ok(ours)
        })
    }

    fn opened(path: &str) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn pidfd(pid: u32) -> OwnedFd {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
    }

    /// It is not believed, it is ended, and the next one, who does better, is asked.
    async fn is_not_believed(what: &str, nonsense: impl Fn() -> (Vec<u8>, Vec<OwnedFd>) + Send + Sync + 'static) {
        let own = std::process::id();
        let sane = move || (br#"{"Ok":["net"]}"#.to_vec(), vec![pidfd(own), opened("/proc/self/ns/net")]);
        let starter = scripted(move |turn, _| Some(if turn == 1 { nonsense() } else { sane() }));
        let helper = Helper::start(starter, begin()).await.unwrap();
        let kernel = Remote(Arc::clone(&helper));
        let first = kernel.hold(own, &[NamespaceKind::Net]).await;
        let Err(KernelError::Failed { message, .. }) = first else { panic!("{what}: {first:?}") };
        assert!(message.contains("confused") || message.contains("not there"), "{what}: {message}");
        let held = kernel.hold(own, &[NamespaceKind::Net]).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(held.is_alive() && held.pid() == own, "{what}");
    }

    #[tokio::test]
    async fn nonsense_is_not_believed() {
        let ok = || br#"{"Ok":["net"]}"#.to_vec();
        is_not_believed("no answer at all", || (b"what?".to_vec(), Vec::new())).await;
        is_not_believed("another verb's answer", || (b"{\"Ok\":7}".to_vec(), Vec::new())).await;
        is_not_believed("no descriptors", move || (ok(), Vec::new())).await;
        is_not_believed("no namespace", move || (ok(), vec![pidfd(std::process::id())])).await;
        is_not_believed("not all kinds", || (br#"{"Ok":[]}"#.to_vec(), vec![pidfd(std::process::id())])).await;
        is_not_believed("no pidfd", move || (ok(), vec![opened("/dev/null"), opened("/proc/self/ns/net")])).await;
        is_not_believed("another's pidfd", move || (ok(), vec![pidfd(1), opened("/proc/self/ns/net")])).await;
        is_not_believed("no namespace's descriptor", move || (ok(), vec![pidfd(std::process::id()), opened("/dev/null")])).await;
        is_not_believed("a namespace of another kind", move || (ok(), vec![pidfd(std::process::id()), opened("/proc/self/ns/ipc")])).await;
    }

    #[tokio::test]
    async fn a_namespace_that_is_not_told_of_does_not_pass_for_empty() {
        let other = NamespaceId { dev: 0, ino: 2 };
        let told = Ok::<_, KernelError>(vec![(NOBODYS, Vec::<Process>::new())]);
        let starter = scripted(move |_, _| Some((write(&told).unwrap(), Vec::new())));
        let kernel = Remote(Helper::start(starter, begin()).await.unwrap());
        assert_eq!(kernel.members(NamespaceKind::Net, &[NOBODYS]).await.unwrap()[&NOBODYS], []);
        kernel.members(NamespaceKind::Net, &[NOBODYS, other]).await.unwrap_err();
    }

    #[tokio::test]
    async fn who_does_not_answer_is_ended_and_what_was_asked_has_failed() {
        let nobody = || write(&Ok::<_, KernelError>(Vec::<(NamespaceId, Vec<Process>)>::new())).unwrap();
        let starter = scripted(move |turn, _| (turn > 1).then(|| (nobody(), Vec::new())));
        let helper = Helper::start(starter, begin()).await.unwrap();
        let first = Arc::clone(&helper.session.borrow());
        let other = first.post(&Verb::Links, Vec::new()).unwrap().1;
        let late = first.ask::<()>(Verb::Mend, Vec::new(), Duration::from_millis(20)).await;
        assert!(matches!(late, Err(HelperError::Late { verb: "mend", .. })), "{late:?}");
        assert!(first.why_ended().is_some_and(|why| why.contains("did not mend within 20ms")));
        other.await.unwrap_err();
        Remote(helper).members(NamespaceKind::Net, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_nobody_asked_for_is_its_end() {
        let starter = scripted(|_, _| None);
        let helper = Helper::start(starter, begin()).await.unwrap();
        let session = Arc::clone(&helper.session.borrow());
        let (number, waiting) = session.post(&Verb::Links, Vec::new()).unwrap();
        assert!(number > NEWS);
        session.end("a test");
        waiting.await.unwrap_err();
        assert!(matches!(session.post(&Verb::Links, Vec::new()), Err(HelperError::Away(why)) if why == "a test"));
    }

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
}
