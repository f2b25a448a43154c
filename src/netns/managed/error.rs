//! What can go wrong, and what follows from it.

use std::borrow::Cow;
use std::time::Duration;

use rustix::io::Errno;

use crate::netns::socket::Refusal;

/// Why something was not done. What was begun for a slot has been undone then, if that was possible.
#[derive(Clone, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum FurnishError {
    /// The kernel said no.
    #[error("{step} ({subject}){}", hint_of(*.cause))]
    Refused {
        /// What was tried.
        step: Cow<'static, str>,
        /// With what.
        subject: String,
        /// The kernel's word.
        #[source]
        #[serde(with = "crate::netns::errno")]
        cause: Errno,
    },
    /// A link with a name that we would use. It stays as it is.
    #[error("{name} is there, and it is not ours; give the network another bridge name, or remove it")]
    Foreign {
        /// Its name.
        name: String,
    },
    /// The host sends packets for some of its addresses elsewhere: a network of its own, or of another program's.
    #[error("{subnet} overlaps {route}, which this host reaches by {link}; give the network another subnet")]
    Overlap {
        /// The network's.
        subnet: String,
        /// The host's.
        route: String,
        /// Its link.
        link: String,
    },
    /// Not there, down, or no bridge.
    #[error("there is no bridge {name} that is up")]
    NoBridge {
        /// Its name.
        name: String,
    },
    /// The slot's own, of an earlier try, or one inside. Strip, and try again.
    #[error("{name} is there already")]
    AlreadyThere {
        /// Of the link.
        name: String,
    },
    /// More is waiting than the queue holds.
    #[error("the queue of the network's worker is full")]
    QueueFull,
    /// It may still be done, or be done and undone: strip before trying again.
    #[error("{what} took longer than {limit:?}")]
    TimedOut {
        /// What was asked for.
        what: Cow<'static, str>,
        /// How long it might have taken.
        limit: Duration,
    },
    /// The worker cannot get back to the host's network namespace. It ends, so that nothing is done in the wrong one.
    #[error("the network's worker cannot return to the host's namespace, and ends")]
    Astray {
        /// The kernel's word.
        #[source]
        #[serde(with = "crate::netns::errno")]
        cause: Errno,
    },
    /// The worker has ended.
    #[error("the network's worker has ended")]
    Stopped,
}

/// What a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something is in the way, now: strip, or wait, and try again.
    Busy,
    /// nspool lacks CAP_NET_ADMIN or CAP_SYS_ADMIN.
    NotPermitted,
    /// Ports, memory, descriptors.
    Exhausted,
    /// The bridge, or the link, is not there: audit and mend.
    Gone,
    /// Anything else. Trying again soon will not help.
    Failed,
}

impl FurnishError {
    /// See [`Class`].
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { cause, .. } | Self::Astray { cause } => class_of(*cause),
            Self::AlreadyThere { .. } | Self::QueueFull | Self::TimedOut { .. } => Class::Busy,
            Self::NoBridge { .. } => Class::Gone,
            Self::Foreign { .. } | Self::Overlap { .. } | Self::Stopped => Class::Failed,
        }
    }

    pub(super) fn refused(refusal: Refusal, subject: &str) -> Self {
        Self::Refused { step: refusal.step.into(), subject: subject.to_owned(), cause: refusal.errno }
    }

    pub(super) fn failing(step: &'static str, subject: &str) -> impl Fn(Errno) -> Self {
        move |cause| Self::Refused { step: step.into(), subject: subject.to_owned(), cause }
    }
}

/// Where the kernel's word alone does not say what to do.
fn hint_of(errno: Errno) -> &'static str {
    match errno {
        // Of a kind of link, or of rules, for which it has no module.
        Errno::OPNOTSUPP | Errno::PROTONOSUPPORT => ": perhaps a module is missing; `nspool doctor` says so",
        _ => "",
    }
}

fn class_of(errno: Errno) -> Class {
    match errno {
        Errno::EXIST | Errno::BUSY | Errno::AGAIN => Class::Busy,
        Errno::PERM | Errno::ACCESS => Class::NotPermitted,
        // A bridge without a port left says XFULL.
        Errno::XFULL | Errno::NOSPC | Errno::NOMEM | Errno::NOBUFS | Errno::MFILE | Errno::NFILE => Class::Exhausted,
        Errno::NODEV | Errno::NOENT | Errno::SRCH => Class::Gone,
        _ => Class::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_module_is_no_riddle() {
        let refused = |cause| FurnishError::failing("making the bridge", "ns-a")(cause).to_string();
        assert_eq!(refused(Errno::OPNOTSUPP), "making the bridge (ns-a): perhaps a module is missing; `nspool doctor` says so");
        assert_eq!(refused(Errno::PERM), "making the bridge (ns-a)");
    }
}
