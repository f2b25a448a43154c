//! The care for managed networks: what a predecessor left is found, bridges and rules are made, mended when somebody changes them, and taken away
//! with the pool; and so are the networks that the engine makes for us ([`crate::engine_networks`]).
//!
//! What can go wrong: something of another's is in the way (said again only when it changes; no slot of a managed network is filled meanwhile) · a
//! firewall is reloaded under us (noticed, and mended within [`AT_MOST_EVERY`]) · somebody removes a slot's link (its buddy is given up: a lease on it is
//! LOST, as a function without a network is none).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Left;
use crate::causes::with_causes;
use crate::engine_networks::{Care, EngineNetworks};
use crate::nanny::Tools;
use crate::netns::managed::host::Finding;
use crate::netns::managed::names::HostEnd;
use crate::pool::{Address, state::State};

/// Our own changes are told, too, and looking costs as much as some links.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// What nobody tells of: forwarding, and whatever the kernel's news did not say.
const AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// For the engine to remove its networks, at a stop that has removed the slots.
const END_OF_ENGINES: Duration = Duration::from_secs(10);

/// Until `stop`. `predecessor`: a daemon of this pool ran before on this boot.
pub(super) async fn run(tools: Arc<Tools>, engines: Arc<EngineNetworks>, predecessor: bool, stop: CancellationToken) {
    let networks = &tools.networks;
    let Some(mut changes) = networks.changes() else { return };
    while let Err(error) = networks.begin(tools.pool.now(), predecessor).await {
        tracing::error!(%error, "what is left of the managed networks cannot be looked at");
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AT_MOST_EVERY) => {}
        }
    }
    let (mut said, mut care) = (Said::default(), Care::new(engines));
    loop {
        let _seen = *changes.borrow_and_update();
        // Open: the lock is held, and a predecessor is dead that might take away what is made.
        let may_look = tools.engine_state.borrow().is_up() && tools.pool.read(State::is_open);
        let looked = networks.mend(care.look(may_look).await).await;
        let longest = if looked.is_ok() { AT_LEAST_EVERY } else { AT_MOST_EVERY };
        match looked {
            Ok(findings) => said.found(&tools, &findings),
            Err(error) => said.failed(error.to_string()),
        }
        if let Err(error) = networks.forget_gone(tools.pool.now()).await {
            tracing::debug!(%error, "it cannot be told which of a dead daemon's links are gone");
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AT_MOST_EVERY) => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Ok(()) = changes.changed() => {}
            () = tokio::time::sleep(longest.saturating_sub(AT_MOST_EVERY)) => {}
        }
    }
}

/// Gives the addresses back of links that have gone, and takes those away that somebody pins, until `stop`.
pub(super) async fn tidy(tools: Arc<Tools>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tools.networks.until_untidy() => {}
        }
        tools.networks.tidy(tools.pool.now()).await;
    }
}

/// After the slots are gone: nothing of the pool stays on the host, nor of its networks in the engine, but for those that others are on.
pub(super) async fn tear_down(tools: &Tools, engines: &EngineNetworks) -> Vec<Left> {
    if !tools.networks.any() {
        return Vec::new();
    }
    match tools.networks.tear_down().await {
        Ok(failures) => failures.iter().for_each(|error| {
            tracing::warn!(error = with_causes(error), "a part of the managed networks stays");
        }),
        Err(error) => tracing::warn!(%error, "the managed networks stay"),
    }
    remove_engines(engines).await
}

async fn remove_engines(engines: &EngineNetworks) -> Vec<Left> {
    let removed = tokio::time::timeout(END_OF_ENGINES, engines.remove(false)).await;
    let why = match removed {
        Ok(Ok(outcome)) => {
            outcome.removed.iter().for_each(|network| tracing::info!(network, "the engine removed this network"));
            let left = outcome.left.into_iter();
            return left.map(|left| Left { container: format!("network {}", left.network), why: left.why.join(", ") }).collect();
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the engine did not remove it within {END_OF_ENGINES:?}"),
    };
    tracing::debug!(why, "it is not known which networks of the engine are ours");
    engines.names().map(|name| Left { container: format!("network {name}"), why: why.clone() }).collect()
}

/// What was said, so that it is said once; and links that were gone at the last look.
#[derive(Debug, Default)]
struct Said {
    findings: BTreeSet<Finding>,
    failure: String,
    gone: BTreeSet<HostEnd>,
}

impl Said {
    fn failed(&mut self, why: String) {
        if self.failure != why {
            tracing::error!(why, "the managed networks cannot be set up");
        }
        self.failure = why;
    }

    fn found(&mut self, tools: &Tools, findings: &[Finding]) {
        if !std::mem::take(&mut self.failure).is_empty() {
            tracing::info!("the managed networks are set up");
        }
        let now: BTreeSet<Finding> = findings.iter().cloned().collect();
        // A link whose namespace goes is on its way out, and one that is still there is to be taken away: neither is news.
        let is_news = |finding: &&Finding| {
            let stray_of_ours = matches!(finding, Finding::Stray(end) if tools.networks.is_left(end));
            let going = matches!(finding, Finding::PortGone(end) if tools.networks.address_of(end).is_none());
            !stray_of_ours && !going
        };
        for finding in now.difference(&self.findings).filter(is_news) {
            tracing::warn!(%finding, "a managed network is not as it should be");
        }
        let gone: BTreeSet<HostEnd> =
            now.iter().filter_map(|finding| if let Finding::PortGone(end) = finding { Some(end.clone()) } else { None }).collect();
        // Twice, since a slot may just be moving on.
        for end in gone.intersection(&self.gone) {
            give_up(tools, end);
        }
        (self.findings, self.gone) = (now, gone);
    }
}

/// Only the buddy that uses it: the slot may have another one by now.
fn give_up(tools: &Tools, end: &HostEnd) {
    let (Some(slot), Some(address)) = (tools.networks.slot_of(end), tools.networks.address_of(end)) else { return };
    tools.pool.with(|state, now| {
        if slot >= state.slot_count() {
            return;
        }
        let view = state.slot_view(slot);
        let uses = |own: &Address| own.address.split('/').next() == Some(&address.to_string());
        if view.namespace.is_some_and(|namespace| namespace.addresses.first().is_some_and(uses)) {
            state.buddy_gone(now, view.key, format!("its link {end} was removed"));
        }
    });
}
