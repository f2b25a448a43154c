//! What clients asked, what they were answered, and what watchers saw: all that the checker knows.

use std::time::Duration;

/// Since the history began. One clock for all.
pub type Time = Duration;

/// One call, from when it went out until its answer was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub began: Time,
    pub ended: Time,
    pub asked: Asked,
    pub answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// With a request id, or an empty one; for so long, or until it is released.
    Allocate {
        owner: String,
        request_id: String,
        ttl: Option<Duration>,
    },
    Renew(String),
    Release(String),
    Get(String),
    Resume(String),
    /// By lease id.
    Force(String),
    /// Not a call: the buddy under this lease, by its id, was killed.
    Kill(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Cancelled, or cut off: it may have been carried out, or be carried out later.
    Unknown,
    /// With its reason.
    Refused(String),
    Leases(Vec<Lease>),
    Released(Outcome),
    /// It is done, and nothing is to be said.
    Done,
}

/// How a Release came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By this call; with or without a joiner in it.
    Returned,
    AlreadyReleased,
    /// In other ways, told in words.
    AlreadyEnded(String),
}

/// What is compared of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub token: String,
    pub id: String,
    /// Slot and generation: the namespace itself, whatever its name is for this use.
    pub buddy: (u32, u64),
    pub lost: bool,
}

/// One message of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    pub at: Time,
    pub position: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It begins anew here, with these leases that are not lost, by id.
    Snapshot(Vec<String>),
    /// Ended by itself or by an operator.
    Ended(String),
    Lost(String),
    Reset,
}

/// All of it, in no order.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub calls: Vec<Call>,
    /// By watcher. The last thing that each of them saw came after all calls.
    pub sights: Vec<Vec<Sight>>,
}
