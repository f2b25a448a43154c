//! Where podman needs other calls for the same promise.
//!
//! Its list does not say what a container joins. Its wait keeps a core busy per dozen of waiters, because it polls (4.3: without a pause), so
//! here a wait is a subscription to one container's events, and a look at the container once subscribed. Both are measured; see
//! `tests/engines.rs`.

use std::collections::HashSet;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Docker;
use crate::engine::{
    Container, ContainerId, ContainerStatus, ContainerSummary, EngineError, EngineEvent, ErrorClass, EventAction, WaitOutcome,
};

/// Inspects in flight while a list is completed.
const INSPECTS: usize = 8;

/// Comes back when the container is not running, as Docker's wait does. A container that never ran has the code -1.
pub(super) async fn wait(docker: &Docker, id: &ContainerId) -> Result<WaitOutcome, EngineError> {
    let of_wait = |error: EngineError| EngineError { operation: "wait", subject: id.to_string(), ..error };
    let mut events = match docker.subscribe(Some(id)).await {
        Err(error) if error.class == ErrorClass::Unknown => return Ok(WaitOutcome::Unknown),
        events => events.map_err(of_wait)?,
    };
    // From here on its end is in the stream, so a look is enough for what was before.
    match docker.inspect_one(id.as_str()).await {
        Ok(container) if !container.status.is_live() => return Ok(WaitOutcome::Exited(exit_code(&container))),
        Ok(_) => {}
        Err(error) if error.class == ErrorClass::Unknown => return Ok(WaitOutcome::Unknown),
        Err(error) => return Err(of_wait(error)),
    }
    while let Some(Ok(event)) = events.next().await {
        if event.id == id.as_str() && matches!(event.action, EventAction::Died | EventAction::Removed) {
            return Ok(WaitOutcome::Exited(told_exit_code(&event)));
        }
    }
    Ok(WaitOutcome::Unknown)
}

fn exit_code(container: &Container) -> i64 {
    if container.status == ContainerStatus::Created { -1 } else { container.exit_code.unwrap_or(-1) }
}

fn told_exit_code(event: &EngineEvent) -> i64 {
    event.attributes.get("containerExitCode").and_then(|code| code.parse().ok()).unwrap_or(-1)
}

/// Completes a list by the network modes, which come from inspect, once per container. One that is gone by then is left out.
pub(super) async fn with_modes(docker: &Docker, rows: Vec<ContainerSummary>) -> Result<Vec<ContainerSummary>, EngineError> {
    let unknown: Vec<ContainerId> = {
        let modes = docker.modes.lock();
        rows.iter().filter(|row| !modes.contains_key(&row.id)).map(|row| row.id.clone()).collect()
    };
    let found: Vec<Option<(ContainerId, String)>> = stream::iter(unknown)
        .map(|id| async move {
            match docker.inspect_one(id.as_str()).await {
                Ok(container) => Ok(Some((id, container.network_mode))),
                Err(error) if error.class == ErrorClass::NotFound => Ok(None),
                Err(error) => Err(EngineError { operation: "list", ..error }),
            }
        })
        .buffer_unordered(INSPECTS)
        .try_collect()
        .await?;
    let mut modes = docker.modes.lock();
    modes.extend(found.into_iter().flatten());
    let rows: Vec<ContainerSummary> = rows
        .into_iter()
        .filter_map(|row| modes.get(&row.id).cloned().map(|network_mode| ContainerSummary { network_mode, ..row }))
        .collect();
    let present: HashSet<&ContainerId> = rows.iter().map(|row| &row.id).collect();
    modes.retain(|id, _| present.contains(id));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_the_code_that_the_event_tells() {
        let event = |attributes: &[(&str, &str)]| EngineEvent {
            action: EventAction::Died,
            id: "a".into(),
            name: String::new(),
            attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        assert_eq!(told_exit_code(&event(&[("containerExitCode", "137")])), 137);
        assert_eq!(told_exit_code(&event(&[])), -1);
    }
}
