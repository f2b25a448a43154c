//! One helper's time, from its start to its end: questions go out, and answers come back by their numbers.
//!
//! It has an end, and no way back: whatever is wrong with what comes, or does not come, ends it, and all that it was asked for has failed then.
//! Numbers rise and are never used twice, so that nothing can be taken for the answer to another question.
//!
//! It deliberately does not know who comes after it ([`Helper`](super::Helper)), nor what answers mean.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::{Shutdown, shutdown};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::channel::{self, Message, NEWS};
use super::verbs::{Begin, BeginError, Hosts, Verb, write};
use crate::causes::with_causes;
use crate::level;

/// Questions that wait to be sent: more than there are slots that can wait at once.
const QUEUE: usize = 16 * 1024;
/// For what has no time of its own; also to find all processes of a busy host, and links that wait behind each other for 10 s at most.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// Beyond the time that a deed has.
pub(super) const SLACK: Duration = Duration::from_secs(2);
/// How often it is seen whether it answers at all, and how soon it has to.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_WITHIN: Duration = Duration::from_secs(5);
/// Of a session that is to have no successor.
pub(super) const STOPS: &str = "the daemon stops";

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

impl Session {
    /// With a thread that sends and one that receives, until it is ended.
    pub(super) fn open(socket: OwnedFd, changes: &Arc<level::Sender<u64>>) -> Result<Arc<Self>, HelperError> {
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

    /// Until it has ended: why. `None`: it is not wanted any more, and was ended for that.
    pub(super) async fn watch(&self, is_wanted: impl Fn() -> bool) -> Option<String> {
        let mut ended = self.ended.subscribe();
        loop {
            let over = tokio::time::timeout(PING_EVERY, ended.wait_for(Option::is_some)).await.is_ok();
            if over || self.ask::<()>(Verb::Ping, Vec::new(), PING_WITHIN).await.is_err() {
                return Some(self.why_ended().unwrap_or_else(|| "it does not answer".to_owned()));
            }
            if !is_wanted() {
                self.end(STOPS);
                return None;
            }
        }
    }

    /// Has it begin to work.
    pub(super) async fn begin(&self, begin: &Begin) -> Result<Hosts, HelperError> {
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
        // Ended: then there is nothing to be told. Or so far behind with what it is asked for that it is about to be ended.
        let _ = self.post(verb, Vec::new());
    }

    /// Its number, and where the answer comes.
    pub(super) fn post(&self, verb: &Verb, descriptors: Vec<OwnedFd>) -> Result<(u64, oneshot::Receiver<Message>), HelperError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::NamespaceKind;
    use crate::netns::helper::client::Helper;
    use crate::netns::helper::held::Remote;
    use crate::netns::helper::scripted::{begin, said, scripted};
    use crate::netns::{Kernel as _, KernelError, NamespaceId, Process};

    #[tokio::test]
    async fn who_does_not_answer_is_ended_and_what_was_asked_has_failed() {
        let nobody = || said(&Ok::<_, KernelError>(Vec::<(NamespaceId, Vec<Process>)>::new()));
        let starter = scripted(move |turn, _| (turn > 1).then(nobody));
        let helper = Helper::start(starter, begin()).await.unwrap();
        let first = helper.session().await.unwrap();
        let other = first.post(&Verb::Links, Vec::new()).unwrap().1;
        let late = first.ask::<()>(Verb::Mend, Vec::new(), Duration::from_millis(20)).await;
        assert!(matches!(late, Err(HelperError::Late { verb: "mend", .. })), "{late:?}");
        assert!(first.why_ended().is_some_and(|why| why.contains("did not mend within 20ms")));
        other.await.unwrap_err();
        Remote(helper).members(NamespaceKind::Net, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_nobody_asked_for_is_its_end() {
        let (ours, theirs) = channel::pair().unwrap();
        let session = Session::open(ours, &Arc::new(level::Sender::new(0))).unwrap();
        let (number, waiting) = session.post(&Verb::Links, Vec::new()).unwrap();
        channel::send(theirs.as_fd(), &Message { number: number + 1, ..Message::default() }).unwrap();
        tokio::time::timeout(ANSWERED_WITHIN, waiting).await.unwrap().unwrap_err();
        assert_eq!(session.why_ended().unwrap(), "it answers what nobody asked");
        assert!(matches!(session.post(&Verb::Links, Vec::new()), Err(HelperError::Away(why)) if why.contains("nobody asked")));
    }
}
