//! What was scripted, and what was called.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::engine::ErrorClass;
use crate::netns::{KernelError, RenewError};

/// Every call of the two traits that a script or a count can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// `Engine::info`
    Info,
    /// `Engine::ping`
    Ping,
    /// `Engine::image`
    Image,
    /// `Engine::load_image`
    LoadImage,
    /// `Engine::save_image`: its beginning.
    SaveImage,
    /// `Engine::pull_image`
    PullImage,
    /// `Engine::tag_image`
    TagImage,
    /// `Engine::images`
    Images,
    /// `Engine::image_sizes`
    ImageSizes,
    /// `Engine::remove_image`
    RemoveImage,
    /// `Engine::build_image`
    BuildImage,
    /// `Engine::create`
    Create,
    /// `Engine::start`
    Start,
    /// `Engine::inspect`
    Inspect,
    /// `Engine::rename`
    Rename,
    /// `Engine::remove`
    Remove,
    /// `Engine::wait`
    Wait,
    /// `Engine::list`
    List,
    /// `Engine::networks`
    Networks,
    /// `Engine::create_network`
    CreateNetwork,
    /// `Engine::network_users`
    NetworkUsers,
    /// `Engine::remove_network`
    RemoveNetwork,
    /// `Engine::events`: the subscription, not the stream.
    Events,
    /// `Kernel::hold`; see `FakeWorld::script_hold`.
    Hold,
    /// `Kernel::members`; see `FakeWorld::script_members`.
    Members,
    /// `Held::renew`; see `FakeWorld::script_renewal`.
    Renew,
}

impl Operation {
    /// As it stands in errors.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Ping => "ping",
            Self::Image => "image",
            Self::LoadImage => "load",
            Self::SaveImage => "save",
            Self::PullImage => "pull",
            Self::TagImage => "tag",
            Self::Images => "images",
            Self::ImageSizes => "image sizes",
            Self::RemoveImage => "remove image",
            Self::BuildImage => "build",
            Self::Create => "create",
            Self::Start => "start",
            Self::Inspect => "inspect",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Wait => "wait",
            Self::List => "list",
            Self::Networks => "networks",
            Self::CreateNetwork => "create network",
            Self::NetworkUsers => "network users",
            Self::RemoveNetwork => "remove network",
            Self::Events => "events",
            Self::Hold => "hold",
            Self::Members => "members",
            Self::Renew => "renew",
        }
    }

    /// Changes something at the engine.
    #[must_use]
    pub fn is_mutation(self) -> bool {
        match self {
            Self::LoadImage
            | Self::BuildImage
            | Self::RemoveImage
            | Self::PullImage
            | Self::TagImage
            | Self::Create
            | Self::Start
            | Self::Rename
            | Self::Remove
            | Self::CreateNetwork
            | Self::RemoveNetwork => true,
            Self::Info
            | Self::Ping
            | Self::Image
            | Self::Images
            | Self::ImageSizes
            | Self::SaveImage
            | Self::Inspect
            | Self::Wait
            | Self::List
            | Self::Networks
            | Self::NetworkUsers
            | Self::Events
            | Self::Hold
            | Self::Members
            | Self::Renew => false,
        }
    }
}

/// How one call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// As it should: for a place in the queue.
    Ok,
    /// Not done; this class, these words of the engine.
    Error(ErrorClass, String),
    /// Done after this long, also when the caller is gone by then.
    Slow(Duration),
    /// Done at once, answered after this long.
    Late(Duration),
    /// Not done, and never answered (until the engine goes away).
    Never,
    /// Done, and never answered.
    DoneNever,
    /// The connection is cut; a wait ends with an empty body.
    Unknown {
        /// Whether it was done.
        done: bool,
    },
}

/// How one `Kernel::members` goes.
#[derive(Clone, Debug)]
pub enum MembersFault {
    /// As it should.
    Ok,
    /// Cannot be told.
    Error(KernelError),
    /// A look that begins this much later.
    Slow(Duration),
    /// Never answered.
    Never,
}

/// How one `Held::renew` goes.
#[derive(Clone, Debug)]
pub enum RenewalFault {
    /// As it should.
    Ok,
    /// It moves this much later, also when nobody waits any more.
    Slow(Duration),
    /// It does not obey, and stays where it is.
    Never,
    /// It is refused the system call, and ends with a code of its own.
    Refused,
    /// It ends by a signal from elsewhere.
    Killed,
    /// It moves into the host's namespace.
    Strays,
    /// It moves as it should, and the proof says this.
    Error(RenewError),
}

/// Where a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is done yet.
    Begun,
    /// The outcome is settled.
    Answered,
}

/// One call of the engine or kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// From 0.
    pub number: u64,
    /// Which.
    pub operation: Operation,
    /// What it was on: the name or id as given.
    pub subject: String,
    /// The container's name when the call began; the subject where there was none.
    pub name: String,
    /// Begun or answered; in the list, the last it came to.
    pub phase: Phase,
    /// Once answered.
    pub outcome: Option<Result<(), ErrorClass>>,
}

pub(super) type Hook = dyn Fn(&Call) + Send + Sync;

#[derive(Debug)]
struct Entry {
    filter: Option<String>,
    fault: Fault,
    always: bool,
}

/// Faults to come and calls that were.
#[derive(Debug, Default)]
pub(super) struct Script {
    entries: BTreeMap<Operation, VecDeque<Entry>>,
    latencies: BTreeMap<Operation, Duration>,
    counts: BTreeMap<Operation, u64>,
    calls: Vec<Call>,
    forgetful: bool,
    next: u64,
    pub holds: VecDeque<KernelError>,
    pub members: VecDeque<MembersFault>,
    pub renewals: VecDeque<RenewalFault>,
    pub in_flight: u32,
    pub high_water: u32,
}

impl Script {
    pub(super) fn push(&mut self, operation: Operation, filter: Option<String>, fault: Fault, always: bool) {
        self.entries.entry(operation).or_default().push_back(Entry { filter, fault, always });
    }

    pub(super) fn clear(&mut self, operation: Operation) {
        self.entries.remove(&operation);
    }

    pub(super) fn set_latency(&mut self, operation: Operation, latency: Duration) {
        self.latencies.insert(operation, latency);
    }

    pub(super) fn latency(&self, operation: Operation) -> Duration {
        self.latencies.get(&operation).copied().unwrap_or_default()
    }

    /// Notes the call, and says how it is to go.
    pub(super) fn begin(&mut self, operation: Operation, subject: &str, name: String) -> (Call, Fault, Duration) {
        let call = Call { number: self.next, operation, subject: subject.to_owned(), name, phase: Phase::Begun, outcome: None };
        self.next += 1;
        *self.counts.entry(operation).or_default() += 1;
        if !self.forgetful {
            self.calls.push(call.clone());
        }
        if operation.is_mutation() {
            self.in_flight += 1;
            self.high_water = self.high_water.max(self.in_flight);
        }
        let fault = self.take(operation, subject, &call.name);
        (call, fault, self.latency(operation))
    }

    fn take(&mut self, operation: Operation, subject: &str, name: &str) -> Fault {
        let Some(entries) = self.entries.get_mut(&operation) else { return Fault::Ok };
        let fits = |entry: &Entry| entry.filter.as_ref().is_none_or(|f| subject.starts_with(f) || name.starts_with(f));
        let Some(at) = entries.iter().position(fits) else { return Fault::Ok };
        if entries[at].always {
            return entries[at].fault.clone();
        }
        entries.remove(at).map_or(Fault::Ok, |entry| entry.fault)
    }

    pub(super) fn end(&mut self, call: &Call) {
        if call.operation.is_mutation() {
            self.in_flight -= 1;
        }
        let kept = usize::try_from(call.number).ok().and_then(|at| self.calls.get_mut(at));
        if let Some(kept) = kept {
            *kept = call.clone();
        }
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.clone()
    }

    pub(super) fn forget_calls(&mut self) {
        self.forgetful = true;
        self.calls = Vec::new();
    }

    pub(super) fn count(&self, operation: Operation) -> u64 {
        self.counts.get(&operation).copied().unwrap_or(0)
    }
}
