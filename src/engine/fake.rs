//! A scripted engine and kernel in one deterministic world, for tests, simulations and benches.
//!
//! It behaves as Docker was measured to behave: a rename makes the old name unresolvable (a container created to join by it fails at start), a
//! name resolves to an id at create, joiners outlive their buddy, a wait hangs on a paused container, a missing network and used-up addresses
//! show at start only, a cancelled call is carried out all the same, pids and inode numbers come back at once. What goes wrong is scripted:
//! per operation ([`FakeWorld::script`]), for the whole engine ([`FakeWorld::engine_away`]), or done by hand from outside
//! ([`FakeWorld::kill`]). What must never happen is recorded ([`FakeWorld::violations`]).
//!
//! There is no real clock and no randomness: time is tokio's (so it may be paused), ids come from a counter. It deliberately does not know
//! slots, leases or the pacer; the only label it knows is the one that a function carries.
//!
//! Reading order: this file → `script` (faults and calls) → `machine` (processes and namespaces) → `model` (containers) → `serve` (the
//! [`Engine`] side) → `kernel` → `renewal` → `outside` (acts and observations).

mod inspection;
mod kernel;
mod links;
mod machine;
mod model;
mod networks;
mod outside;
mod renewal;
mod script;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{ContainerId, Engine};
use crate::level;
use crate::netns::{Kernel, KernelError};

pub use inspection::InspectionFault;
pub use links::LinkFault;
pub use outside::{FunctionSpec, HalfCreated};
pub use script::{Call, Fault, MembersFault, Operation, Phase, RenewalFault};

use model::Model;
use script::{Hook, Script};

/// The label by which a function says whose namespace it means to join.
pub const FUNCTION_LABEL: &str = "nspool.namespace_id";

/// A function container's id.
pub type FunctionId = ContainerId;

/// What must never happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// I9: the engine was told to remove a buddy while somebody was in its namespaces.
    RemovedWithJoiner {
        /// The buddy's name.
        buddy: String,
        /// Who was inside.
        inside: Vec<String>,
    },
    /// I9: a buddy was told to leave its network namespace while somebody else was in it.
    RenewedWithJoiner {
        /// The buddy's name.
        buddy: String,
        /// Who was inside.
        inside: Vec<String>,
    },
    /// A buddy got a name that another one, or itself, had before.
    NameUsedTwice(String),
    /// An address was given to a namespace while another one had it.
    AddressTwice(std::net::IpAddr),
    /// I3: the engine was told to change a container that was not made through [`Engine::create`].
    ForeignTouched {
        /// `start`, `rename`, `remove`.
        operation: Operation,
        /// The container's name.
        name: String,
    },
}

/// Whether the containers outlive an absence of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Containers {
    /// As with live-restore.
    Kept,
    /// All were stopped.
    Stopped,
}

/// Whether a subscriber that stayed connected hears what happened meanwhile. Only a frozen engine has such subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// They come late.
    Late,
    /// They never come.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineState {
    Up,
    /// Stopped by a signal: connects, never answers.
    Frozen,
    /// No socket.
    Away,
}

/// See the module.
pub struct FakeWorld {
    model: Mutex<Model>,
    script: Mutex<Script>,
    links: Mutex<links::LinkTable>,
    soil: Mutex<inspection::Soil>,
    hook: Mutex<Option<Arc<Hook>>>,
    state: level::Sender<EngineState>,
    /// Owns the calls that take time, so that they go on when their caller is gone.
    tasks: TaskTracker,
    began: Instant,
    boot_offset: Mutex<Duration>,
}

impl std::fmt::Debug for FakeWorld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeWorld({} containers)", self.model.lock().containers.len())
    }
}

impl FakeWorld {
    /// An engine that is up, with the network `bridge` (plenty of addresses), `none` and `host`, and no image. `seed` goes into the ids.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(Model::new(seed)),
            script: Mutex::new(Script::default()),
            links: Mutex::default(),
            soil: Mutex::default(),
            hook: Mutex::new(None),
            state: level::Sender::new(EngineState::Up),
            tasks: TaskTracker::new(),
            began: Instant::now(),
            boot_offset: Mutex::new(Duration::from_secs(1000)),
        })
    }

    /// The engine's side.
    #[must_use]
    pub fn engine(self: &Arc<Self>) -> Arc<dyn Engine> {
        Arc::new(serve::FakeEngine(Arc::clone(self)))
    }

    /// The kernel's side.
    #[must_use]
    pub fn kernel(self: &Arc<Self>) -> Arc<dyn Kernel> {
        Arc::new(kernel::FakeKernel(Arc::clone(self)))
    }

    // ---- scripts -------------------------------------------------------------------------------------------------------------------

    /// The next call of `operation` that no earlier script takes goes like this. Scripts of one operation are used up in order.
    pub fn script(&self, operation: Operation, fault: Fault) {
        self.script.lock().push(operation, None, fault, false);
    }

    /// Like [`Self::script`], for the next call on a container (or image) whose name or id begins with `filter`.
    pub fn script_for(&self, operation: Operation, filter: &str, fault: Fault) {
        self.script.lock().push(operation, Some(filter.to_owned()), fault, false);
    }

    /// Every further call of `operation` goes like this, on `filter` or on anything, until [`Self::unscript`].
    pub fn script_always(&self, operation: Operation, filter: Option<&str>, fault: Fault) {
        self.script.lock().push(operation, filter.map(str::to_owned), fault, true);
    }

    /// Forgets all scripts of `operation`.
    pub fn unscript(&self, operation: Operation) {
        self.script.lock().clear(operation);
    }

    /// The next [`Kernel::hold`] that is not of a dead process fails like this.
    pub fn script_hold(&self, error: KernelError) {
        self.script.lock().holds.push_back(error);
    }

    /// The next [`Kernel::members`] goes like this.
    pub fn script_members(&self, fault: MembersFault) {
        self.script.lock().members.push_back(fault);
    }

    /// The next [`crate::netns::Held::renew`] goes like this.
    pub fn script_renewal(&self, fault: RenewalFault) {
        self.script.lock().renewals.push_back(fault);
    }

    /// Every call of `operation` takes this long from now on; zero by default.
    pub fn set_latency(&self, operation: Operation, latency: Duration) {
        self.script.lock().set_latency(operation, latency);
    }

    /// Tells `hook` of each call twice, before it is carried out and after it was answered. It may act on the world; one hook at a time.
    pub fn on_call(&self, hook: impl Fn(&Call) + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// All calls so far, in the order they came (nothing once [`Self::forget_calls`] was said).
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.script.lock().calls()
    }

    /// Keeps no list of calls from now on, only their numbers: for long runs.
    pub fn forget_calls(&self) {
        self.script.lock().forget_calls();
    }

    /// How often `operation` was called.
    #[must_use]
    pub fn count(&self, operation: Operation) -> u64 {
        self.script.lock().count(operation)
    }

    /// The most mutations that were ever in flight at once.
    #[must_use]
    pub fn mutations_high_water(&self) -> u32 {
        self.script.lock().high_water
    }

    /// Mutations that the engine is busy with now, whether or not their callers are still there.
    #[must_use]
    pub fn mutations_in_flight(&self) -> u32 {
        self.script.lock().in_flight
    }

    // ---- the whole engine ----------------------------------------------------------------------------------------------------------

    /// The engine's process is gone: calls fail with `Away`, what was in flight is `Unknown`, waits and event streams end. Containers go on.
    pub fn engine_away(&self) {
        let mut model = self.model.lock();
        self.state.send_replace(EngineState::Away);
        model.set_hearing(false);
        model.cut_events();
        model.cut_waits();
    }

    /// The engine is stopped by a signal: every call hangs, and is carried out when it is back.
    pub fn engine_frozen(&self) {
        self.model.lock().set_hearing(false);
        self.state.send_replace(EngineState::Frozen);
    }

    /// The engine is back, after [`Self::engine_away`] or [`Self::engine_frozen`], and learns what became of its containers.
    pub fn engine_back(&self, containers: Containers, events: Events) {
        let mut model = self.model.lock();
        model.set_hearing(true);
        if containers == Containers::Stopped {
            model.end_all();
        }
        model.hear_all(events == Events::Late);
        self.state.send_replace(EngineState::Up);
        model.wake_waits();
    }

    /// containerd is dead: starts fail, deaths are not noticed (inspect says running, waits and events are silent), all else goes on.
    pub fn containerd_away(&self) {
        self.model.lock().containerd = false;
    }

    /// containerd is back: the deaths meanwhile are told.
    pub fn containerd_back(&self) {
        let mut model = self.model.lock();
        model.containerd = true;
        model.hear_all(true);
    }

    /// All event streams end.
    pub fn cut_events(&self) {
        self.model.lock().cut_events();
    }

    /// All waits in flight end with an empty body, which says nothing.
    pub fn cut_waits(&self) {
        self.model.lock().cut_waits();
    }

    // ---- time ----------------------------------------------------------------------------------------------------------------------

    /// The machine was asleep for this long: the time since boot went on, tokio's clock did not.
    pub fn sleep_machine(&self, asleep: Duration) {
        *self.boot_offset.lock() += asleep;
    }

    fn since_boot(&self) -> Duration {
        self.began.elapsed() + *self.boot_offset.lock()
    }

    // ---- records -------------------------------------------------------------------------------------------------------------------

    /// What happened that must never happen.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.model.lock().violations.clone()
    }
}
