//! From the pool's words to the contract's messages. No decisions but one: what of a lease is shown to whom ([`Shown`]).

use std::time::{Duration, SystemTime};

use super::{About, DaemonStatus, Differs, Inspected};
use crate::audit::{Audit, Finding};
use crate::engine::{EngineInfo, NamespaceKind};
use crate::pool::{Cause, LeaseNote, LeaseView, Lifetime, Moment, Namespace, Released, SlotView, UseKey};
use crate::proto;

/// To whom a lease is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Its holder: with the token.
    ToHolder,
    /// Anybody, in a list: without token and host_config.
    InList,
}

/// A moment on the wall clock, for people.
pub(super) fn wall(about: &About, moment: Moment) -> SystemTime {
    if moment >= about.started_boot {
        about.started_at + (moment - about.started_boot)
    } else {
        about.started_at.checked_sub(about.started_boot - moment).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

pub(super) fn timestamp(about: &About, moment: Moment) -> prost_types::Timestamp {
    wall(about, moment).into()
}

/// Never fails in practice: no duration of ours comes near what the message holds.
pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

pub(super) fn engine(info: &EngineInfo) -> proto::Engine {
    proto::Engine { kind: info.kind.to_string(), id: info.id.clone(), endpoint: info.endpoint.clone(), version: info.version.clone() }
}

pub(super) fn lease(about: &About, status: &DaemonStatus, view: &LeaseView, now: Moment, shown: Shown) -> proto::Lease {
    let (namespace, request) = (&*view.namespace, &*view.request);
    let holder = shown == Shown::ToHolder;
    let secret = |text: &dyn Fn() -> String| if holder { text() } else { String::new() };
    let gateways = namespace.addresses.iter().filter(|address| !address.gateway.is_empty());
    proto::Lease {
        token: secret(&|| view.token.to_hex()),
        lease_id: lease_id(view.key),
        state: if view.lost.is_some() { proto::LeaseState::Lost } else { proto::LeaseState::Active }.into(),
        slot: view.key.slot,
        generation: view.key.generation,
        r#use: view.key.use_number,
        namespace_id: namespace.namespace_id.clone(),
        network_mode: namespace.network_mode.clone(),
        host_config: secret(&|| namespace.host_config.clone()),
        container_id: if namespace.tell_container_id { namespace.container_id.to_string() } else { String::new() },
        engine: status.engine_info.as_ref().map(engine),
        netns_path: path_of(namespace, NamespaceKind::Net).unwrap_or_default(),
        oci_namespaces: about.namespaces.iter().filter_map(|kind| oci_namespace(namespace, *kind)).collect(),
        network: about.networks.get(usize::from(view.network)).cloned().unwrap_or_default(),
        ip_addresses: namespace.addresses.iter().map(|address| address.address.clone()).collect(),
        gateways: gateways.map(|address| address.gateway.clone()).collect(),
        mtu: namespace.mtu,
        resolv_conf: namespace.resolv_conf.clone(),
        lifetime: lifetime(request.lifetime).into(),
        expires_at: view.deadline.map(|deadline| timestamp(about, deadline)),
        remaining: view.deadline.and_then(|deadline| duration(deadline.saturating_sub(now))),
        allocated_at: Some(timestamp(about, view.allocated_at)),
        owner: request.owner.clone(),
        tenant: request.tenant.clone(),
        labels: request.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        cause: view.lost.as_deref().unwrap_or_default().to_owned(),
    }
}

fn path_of(namespace: &Namespace, kind: NamespaceKind) -> Option<String> {
    (!namespace.folder.is_empty()).then(|| format!("{}/{}", namespace.folder, kind.proc_name()))
}

/// As the OCI runtime specification calls it.
fn oci_namespace(namespace: &Namespace, kind: NamespaceKind) -> Option<proto::OciNamespace> {
    let r#type = if kind == NamespaceKind::Net { "network" } else { kind.proc_name() };
    Some(proto::OciNamespace { r#type: r#type.to_owned(), path: path_of(namespace, kind)? })
}

fn lifetime(lifetime: Lifetime) -> proto::Lifetime {
    match lifetime {
        Lifetime::Joiners { .. } => proto::Lifetime::Joiners,
        Lifetime::Ttl(_) => proto::Lifetime::Ttl,
        Lifetime::Connection(_) => proto::Lifetime::Connection,
    }
}

/// `slot-generation-use`, without the machinery of formatting: it is on the way of every Allocate.
pub(super) fn lease_id(key: UseKey) -> String {
    let mut text = String::with_capacity(24);
    for (index, number) in [u64::from(key.slot), key.generation, key.use_number].into_iter().enumerate() {
        if index > 0 {
            text.push('-');
        }
        let mut digits = [0u8; 20];
        let mut first = digits.len();
        let mut rest = number;
        loop {
            first -= 1;
            digits[first] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        text.extend(digits[first..].iter().copied().map(char::from));
    }
    text
}

/// The reverse of a [`UseKey`]'s `Display`.
pub(super) fn parse_lease_id(text: &str) -> Option<UseKey> {
    let mut parts = text.split('-');
    let key =
        UseKey { slot: parts.next()?.parse().ok()?, generation: parts.next()?.parse().ok()?, use_number: parts.next()?.parse().ok()? };
    // The numbers may be written in more than one way ("+1", "01"): only ours counts.
    (parts.next().is_none() && lease_id(key) == text).then_some(key)
}

pub(super) fn released(outcome: &Released) -> (proto::ReleaseOutcome, String) {
    match outcome {
        Released::Returned => (proto::ReleaseOutcome::Returned, String::new()),
        Released::JoinerStillThere => (proto::ReleaseOutcome::JoinerStillThere, String::new()),
        Released::AlreadyReleased => (proto::ReleaseOutcome::AlreadyReleased, Cause::Released.to_string()),
        Released::AlreadyEnded(cause) => (proto::ReleaseOutcome::AlreadyEnded, cause.to_string()),
    }
}

pub(super) fn usage(usage: &crate::pool::Usage) -> proto::Usage {
    proto::Usage {
        vacant: usage.vacant,
        filling: usage.filling,
        ready: usage.ready,
        leased: usage.leased,
        vacating: usage.vacating,
        renewing: usage.renewing,
        cooling: usage.cooling,
        quarantined: usage.quarantined,
        retiring: usage.retiring,
        detached: usage.detached,
        lost: usage.lost,
        target: usage.target,
        max: usage.max,
        waiting: usage.waiting,
        misses: usage.misses,
        allocations: usage.allocations,
    }
}

/// `all`: with the container id, which outlives the fence.
pub(super) fn slot(about: &About, view: SlotView, all: bool) -> proto::Slot {
    let namespace = view.namespace.as_deref();
    let container = namespace.filter(|namespace| all || namespace.tell_container_id);
    proto::Slot {
        slot: view.key.slot,
        generation: view.key.generation,
        r#use: view.key.use_number,
        state: view.state.word().to_owned(),
        namespace_id: namespace.map(|namespace| namespace.namespace_id.clone()).unwrap_or_default(),
        container_id: container.map(|namespace| namespace.container_id.to_string()).unwrap_or_default(),
        network: about.networks.get(usize::from(view.network)).cloned().unwrap_or_default(),
        since: Some(timestamp(about, view.since)),
        failures: view.failures,
        last_error: view.last_error.as_deref().unwrap_or_default().to_owned(),
        lease_id: if view.leased { lease_id(view.key) } else { String::new() },
        doomed: view.doom.is_some(),
        joiners: view.occupants.to_vec(),
        pid: namespace.map_or(0, |namespace| namespace.pid),
    }
}

pub(super) fn inspection(about: &About, view: SlotView, seen: Inspected) -> proto::InspectResponse {
    let difference = |Differs { kind, subject, was, is }: Differs| proto::Difference { kind: kind.to_owned(), subject, was, is };
    let leftover = |(kind, count): (&str, u64)| proto::Leftover { kind: kind.to_owned(), count };
    proto::InspectResponse {
        slot: Some(slot(about, view, true)),
        differences: seen.differences.into_iter().map(difference).collect(),
        leftovers: seen.leftovers.into_iter().map(leftover).collect(),
    }
}

pub(super) fn audit(about: &About, audit: Audit) -> proto::AuditResponse {
    let finding = |finding: Finding| proto::AuditFinding {
        kind: finding.kind.word().to_owned(),
        subject: finding.subject,
        detail: finding.detail,
        fixable: finding.fixable,
        fixed: finding.fixed,
    };
    proto::AuditResponse {
        findings: audit.findings.into_iter().map(finding).collect(),
        slots: audit.slots,
        leases: audit.leases,
        containers: audit.containers,
        at: Some(timestamp(about, audit.at)),
        more: audit.more,
    }
}

pub(super) fn note(note: &LeaseNote, state: proto::LeaseState) -> proto::LeaseEvent {
    proto::LeaseEvent {
        lease_id: lease_id(note.key),
        namespace_id: note.namespace_id.clone(),
        slot: note.key.slot,
        generation: note.key.generation,
        r#use: note.key.use_number,
        owner: note.owner.clone(),
        state: state.into(),
        cause: note.cause.clone(),
    }
}

/// A lease in a watcher's snapshot.
pub(super) fn lease_event(view: &LeaseView) -> proto::LeaseEvent {
    proto::LeaseEvent {
        lease_id: lease_id(view.key),
        namespace_id: view.namespace.namespace_id.clone(),
        slot: view.key.slot,
        generation: view.key.generation,
        r#use: view.key.use_number,
        owner: view.request.owner.clone(),
        state: if view.lost.is_some() { proto::LeaseState::Lost } else { proto::LeaseState::Active }.into(),
        cause: view.lost.as_deref().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_lease_id_is_the_key_as_it_is_logged_and_comes_back(slot: u32, generation: u64, use_number: u64) {
            let key = UseKey { slot, generation, use_number };
            prop_assert_eq!(lease_id(key), key.to_string());
            prop_assert_eq!(parse_lease_id(&key.to_string()), Some(key));
        }
    }

    #[test]
    fn what_is_no_lease_id_is_not_taken_for_one() {
        for wrong in ["", "1", "1-2", "1-2-3-4", "1-2-x", "+1-2-3", "01-2-3", "1--3", "99999999999-1-1", " 1-2-3"] {
            assert_eq!(parse_lease_id(wrong), None, "{wrong:?}");
        }
    }
}
