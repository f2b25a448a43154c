//! Helpers for tests, which say what a script has them say.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::channel::{self, Message};
use super::client::{StartError, Starter};
use super::verbs::{Begin, BeginError, Hosts, Log, Verb, write};
use crate::netns::NamespaceId;
use crate::netns::cni::Cni;

pub(super) const NOBODYS: NamespaceId = NamespaceId { dev: 0, ino: 1 };

/// What is said, with the descriptors that go along.
pub(super) type Said = (Vec<u8>, Vec<OwnedFd>);

pub(super) fn begin() -> Begin {
    Begin {
        host: None,
        folders: None,
        must_mount: false,
        ids: None,
        cni: Cni::default(),
        lock: "/nowhere".into(),
        log: Log { filter: "off".to_owned(), json: false },
    }
}

fn hosts() -> Hosts {
    Hosts { net: NOBODYS, ipc: NOBODYS, pid: NOBODYS, uts: NOBODYS, user: NOBODYS, mounts: false }
}

/// Helpers that begin well, answer pings, and all else as the script says: the first one so, the next ones so. `None` is no answer. The script hears
/// of all.
pub(super) fn scripted(script: impl Fn(usize, &Verb) -> Option<Said> + Send + Sync + 'static) -> Starter {
    let (script, mut turn) = (Arc::new(script), 0);
    Box::new(move || {
        turn += 1;
        let (ours, theirs) = channel::pair().map_err(|errno| StartError::Failed(errno.to_string()))?;
        let script = Arc::clone(&script);
        std::thread::spawn(move || {
            while let Ok(Some(question)) = channel::receive(theirs.as_fd()) {
                let verb: Verb = serde_json::from_slice(&question.body).unwrap();
                let answer = script(turn, &verb);
                let answer = if matches!(verb, Verb::Begin(_)) {
                    Some(said(&Ok::<_, BeginError>(hosts())))
                } else if matches!(verb, Verb::Ping) {
                    Some(said(&()))
                } else {
                    answer
                };
                let Some((body, descriptors)) = answer else { continue };
                let _ = channel::send(theirs.as_fd(), &Message { number: question.number, body, descriptors });
            }
        });
        Ok(ours)
    })
}

pub(super) fn said(what: &impl serde::Serialize) -> Said {
    (write(what).unwrap(), Vec::new())
}

/// This process and its network namespace.
pub(super) fn own_process() -> Said {
    (br#"{"Ok":["net"]}"#.to_vec(), vec![pidfd(std::process::id()), opened("/proc/self/ns/net")])
}

pub(super) fn opened(path: &str) -> OwnedFd {
    File::open(path).unwrap().into()
}

pub(super) fn pidfd(pid: u32) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}
