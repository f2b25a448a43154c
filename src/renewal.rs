//! Whether renewal in place works on this engine, found out by doing it: a buddy is made, told to move, and joined.
//!
//! That `container:<id>` leads to the namespace where the buddy is *now*, and not to the one it was started in, is a habit of engines and not in
//! their contracts. So it is proven at the start, on the engine, the runtime and the kernel that are there, before `reuse = "fresh"` is relied
//! upon; an [`Unfit`] says in words for people what was tried and what came of it.
//!
//! It deliberately does not know slots, names or configuration: specs come from the caller, who knows how its containers are named and labelled, so
//! that those of a probe that was cut off by a crash are found as any other. Deadlines and pace are those of the engine that is handed in.

use std::time::Duration;

use crate::engine::{BuddySpec, Container, ContainerId, Engine, EngineError, NamespaceKind, WaitOutcome};
use crate::image::placeholder::EXIT_CANNOT_RENEW;
use crate::netns::{Held, Kernel, KernelError, NamespaceId, RenewError, Renewed};

#[cfg(test)]
mod tests;

/// The use that a buddy's first renewal makes ready.
const SECOND_USE: u64 = 2;

/// Why renewal in place is not to be had here.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The engine did not do its part; not the fault of renewal as such, if its class says so.
    #[error("{step} failed")]
    Engine {
        /// In a few words.
        step: &'static str,
        /// The engine's words.
        #[source]
        error: EngineError,
    },
    /// The kernel could not be asked.
    #[error("{step} failed")]
    Kernel {
        /// In a few words.
        step: &'static str,
        /// The kernel's words.
        #[source]
        error: KernelError,
    },
    /// The buddy ended by itself, before or when it was told to move.
    #[error("the renewable buddy {}", ended(*code))]
    Ended {
        /// As the engine says it.
        code: Option<i64>,
    },
    /// The engine gave it no network namespace of its own.
    #[error("the renewable buddy was started in the host's network namespace")]
    TheHosts,
    /// It did not move, or not as it should.
    #[error("the renewable buddy did not move to a new network namespace")]
    Renewal(#[source] RenewError),
    /// The engine put the joiner elsewhere.
    #[error("a container that joined the renewed buddy came into {}, not into the new network namespace", .0.words())]
    JoinerElsewhere(Elsewhere),
}

/// Where a joiner should not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// Where the buddy had been before.
    TheOld,
    /// Not isolated at all.
    TheHosts,
    /// None of those.
    Another,
}

impl Elsewhere {
    fn words(self) -> &'static str {
        match self {
            Self::TheOld => "the old network namespace",
            Self::TheHosts => "the host's network namespace",
            Self::Another => "some other network namespace",
        }
    }
}

fn ended(code: Option<i64>) -> String {
    match code {
        Some(EXIT_CANNOT_RENEW) => {
            "was refused a new network namespace: the seccomp profile in force forbids unshare, or SYS_ADMIN is missing".to_owned()
        }
        Some(code) => format!("ended with exit code {code}"),
        None => "ended".to_owned(),
    }
}

/// Makes `buddy` (a renewable spec), renews it, has `joiner` join it (its network is set here; it must run on by itself, as the
/// placeholder does), and proves that the joiner is in the new namespace. Removes both, whatever came of it.
///
/// `within` is for the renewal alone. Not cancel safe: the containers of a call that is dropped stay.
///
/// # Errors
/// See [`Unfit`]; the first thing that went wrong.
pub async fn probe(
    engine: &dyn Engine,
    kernel: &dyn Kernel,
    buddy: &BuddySpec,
    joiner: &BuddySpec,
    within: Duration,
) -> Result<Renewed, Unfit> {
    let id = engine.create(buddy).await.map_err(|error| Unfit::Engine { step: "creating a renewable buddy", error })?;
    let proven = match engine.start(&id).await {
        Ok(()) => prove(engine, kernel, &id, joiner, within).await,
        Err(error) => Err(Unfit::Engine { step: "starting a renewable buddy", error }),
    };
    let removed = engine.remove(&id).await.map_err(|error| Unfit::Engine { step: "removing the renewable buddy", error });
    proven.and_then(|renewed| removed.map(|()| renewed))
}

/// The same with a buddy that runs already, at its first use; it stays, and is at its second use if all went well.
///
/// # Errors
/// As [`probe`].
pub async fn prove(
    engine: &dyn Engine,
    kernel: &dyn Kernel,
    buddy: &ContainerId,
    joiner: &BuddySpec,
    within: Duration,
) -> Result<Renewed, Unfit> {
    let hosts = kernel.host_namespace(NamespaceKind::Net).map_err(|error| Unfit::Kernel { step: "finding the host's namespace", error })?;
    let held = hold(engine, kernel, buddy).await?;
    // Held a second time, so that the old namespace can still be told from others when the buddy has left it.
    let old = hold(engine, kernel, buddy).await?;
    if net(held.as_ref()) == Some(hosts) {
        return Err(Unfit::TheHosts);
    }
    let renewed = match held.renew(SECOND_USE, within).await {
        Ok(renewed) => renewed,
        Err(RenewError::Gone { .. }) => return Err(Unfit::Ended { code: exit_code(engine, buddy, within).await }),
        Err(error) => return Err(Unfit::Renewal(error)),
    };
    let found = join(engine, kernel, &BuddySpec { network: format!("container:{buddy}"), ..joiner.clone() }).await?;
    let elsewhere = match found {
        found if found == Some(renewed.namespace) => return Ok(renewed),
        found if found == net(old.as_ref()) => Elsewhere::TheOld,
        found if found == Some(hosts) => Elsewhere::TheHosts,
        _ => Elsewhere::Another,
    };
    Err(Unfit::JoinerElsewhere(elsewhere))
}

/// Where the joiner found itself. It is removed again.
async fn join(engine: &dyn Engine, kernel: &dyn Kernel, joiner: &BuddySpec) -> Result<Option<NamespaceId>, Unfit> {
    let failed = |step| move |error| Unfit::Engine { step, error };
    let id = engine.create(joiner).await.map_err(failed("creating a container that joins the renewed buddy"))?;
    let found = match engine.start(&id).await {
        Ok(()) => hold(engine, kernel, &id).await.map(|held| net(held.as_ref())),
        Err(error) => Err(failed("starting a container that joins the renewed buddy")(error)),
    };
    let removed = engine.remove(&id).await.map_err(failed("removing the container that joined the renewed buddy"));
    found.and_then(|found| removed.map(|()| found))
}

async fn hold(engine: &dyn Engine, kernel: &dyn Kernel, id: &ContainerId) -> Result<Box<dyn Held>, Unfit> {
    let container: Container =
        engine.inspect(id.as_str()).await.map_err(|error| Unfit::Engine { step: "inspecting a container of the probe", error })?;
    if container.pid == 0 {
        return Err(Unfit::Ended { code: container.exit_code });
    }
    match kernel.hold(container.pid, &[NamespaceKind::Net]).await {
        Ok(held) => Ok(held),
        Err(KernelError::Gone { .. }) => Err(Unfit::Ended { code: None }),
        Err(error) => Err(Unfit::Kernel { step: "holding a process of the probe", error }),
    }
}

fn net(held: &dyn Held) -> Option<NamespaceId> {
    held.namespace(NamespaceKind::Net)
}

/// Of a process that has ended; the engine hears of it a little later.
async fn exit_code(engine: &dyn Engine, id: &ContainerId, within: Duration) -> Option<i64> {
    match tokio::time::timeout(within, engine.wait(id)).await {
        Ok(Ok(WaitOutcome::Exited(code))) => Some(code),
        Ok(Ok(WaitOutcome::Unknown) | Err(_)) | Err(_) => None,
    }
}
