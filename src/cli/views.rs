//! What is printed: the JSON documents whose keys `docs/cli.md` promises. They are written out here, rather than derived from the contract,
//! so that a change of the contract cannot change them unseen.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::proto;

/// RFC 3339 in UTC; empty when there is none.
pub(super) fn time(timestamp: Option<&prost_types::Timestamp>) -> String {
    let time = timestamp.and_then(|timestamp| SystemTime::try_from(*timestamp).ok());
    time.map_or_else(String::new, |time| humantime::format_rfc3339_millis(time).to_string())
}

/// How long ago, in whole seconds, for people.
pub(super) fn age(timestamp: Option<&prost_types::Timestamp>) -> String {
    let since = timestamp.and_then(|timestamp| SystemTime::try_from(*timestamp).ok()).and_then(|time| time.elapsed().ok());
    since.map_or_else(String::new, |since| crate::config::value::show_duration(Duration::from_secs(since.as_secs())))
}

pub(super) fn seconds(duration: Option<&prost_types::Duration>) -> Option<f64> {
    duration.and_then(|duration| Duration::try_from(*duration).ok()).map(|duration| duration.as_secs_f64())
}

pub(super) fn lifetime(lifetime: proto::Lifetime) -> &'static str {
    match lifetime {
        proto::Lifetime::Unspecified | proto::Lifetime::Joiners => "joiners",
        proto::Lifetime::Ttl => "ttl",
        proto::Lifetime::Connection => "connection",
    }
}

pub(super) fn lease_state(state: proto::LeaseState) -> &'static str {
    match state {
        proto::LeaseState::Unspecified => "unknown",
        proto::LeaseState::Active => "active",
        proto::LeaseState::Lost => "lost",
        proto::LeaseState::Ended => "ended",
    }
}

pub(super) fn release_outcome(outcome: proto::ReleaseOutcome) -> &'static str {
    match outcome {
        proto::ReleaseOutcome::Unspecified => "unknown",
        proto::ReleaseOutcome::Returned => "returned",
        proto::ReleaseOutcome::JoinerStillThere => "joiner_still_there",
        proto::ReleaseOutcome::AlreadyReleased => "already_released",
        proto::ReleaseOutcome::AlreadyEnded => "already_ended",
    }
}

#[derive(Debug, Serialize)]
pub(super) struct EngineView {
    pub(super) kind: String,
    pub(super) id: String,
    pub(super) endpoint: String,
    pub(super) version: String,
}

impl From<proto::Engine> for EngineView {
    fn from(engine: proto::Engine) -> Self {
        let proto::Engine { kind, id, endpoint, version } = engine;
        Self { kind, id, endpoint, version }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct OciNamespaceView {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) path: String,
}

impl From<proto::OciNamespace> for OciNamespaceView {
    fn from(namespace: proto::OciNamespace) -> Self {
        let proto::OciNamespace { r#type, path } = namespace;
        Self { type_: r#type, path }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct LeaseView {
    /// Left out in lists, which have no tokens.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) token: String,
    pub(super) lease_id: String,
    pub(super) state: &'static str,
    pub(super) namespace_id: String,
    pub(super) network_mode: String,
    pub(super) netns_path: String,
    /// Goes into an OCI runtime's `linux.namespaces` as it is.
    pub(super) oci_namespaces: Vec<OciNamespaceView>,
    pub(super) slot: u32,
    pub(super) generation: u64,
    #[serde(rename = "use")]
    pub(super) use_: u64,
    pub(super) network: String,
    pub(super) ip_addresses: Vec<String>,
    pub(super) gateways: Vec<String>,
    pub(super) mtu: u32,
    pub(super) expires_at: Option<String>,
    pub(super) remaining_seconds: Option<f64>,
    pub(super) lifetime: &'static str,
    pub(super) allocated_at: String,
    pub(super) owner: String,
    pub(super) tenant: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) cause: String,
    pub(super) container_id: String,
    pub(super) engine: Option<EngineView>,
    /// Merge it into a container create; null in lists.
    pub(super) host_config: serde_json::Value,
    #[serde(skip)]
    pub(super) age: String,
}

impl From<proto::Lease> for LeaseView {
    fn from(lease: proto::Lease) -> Self {
        Self {
            state: lease_state(lease.state()),
            lifetime: lifetime(lease.lifetime()),
            expires_at: Some(time(lease.expires_at.as_ref())).filter(|text| !text.is_empty()),
            remaining_seconds: seconds(lease.remaining.as_ref()),
            allocated_at: time(lease.allocated_at.as_ref()),
            age: age(lease.allocated_at.as_ref()),
            host_config: serde_json::from_str(&lease.host_config).unwrap_or_default(),
            token: lease.token,
            lease_id: lease.lease_id,
            namespace_id: lease.namespace_id,
            network_mode: lease.network_mode,
            netns_path: lease.netns_path,
            oci_namespaces: lease.oci_namespaces.into_iter().map(OciNamespaceView::from).collect(),
            slot: lease.slot,
            generation: lease.generation,
            use_: lease.r#use,
            network: lease.network,
            ip_addresses: lease.ip_addresses,
            gateways: lease.gateways,
            mtu: lease.mtu,
            owner: lease.owner,
            tenant: lease.tenant,
            labels: lease.labels.into_iter().collect(),
            cause: lease.cause,
            container_id: lease.container_id,
            engine: lease.engine.map(EngineView::from),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct SlotView {
    pub(super) slot: u32,
    pub(super) generation: u64,
    #[serde(rename = "use")]
    pub(super) use_: u64,
    pub(super) state: String,
    pub(super) namespace_id: String,
    pub(super) container_id: String,
    pub(super) network: String,
    pub(super) since: String,
    pub(super) failures: u32,
    pub(super) last_error: String,
    pub(super) lease_id: String,
    pub(super) doomed: bool,
    pub(super) joiners: Vec<String>,
    pub(super) pid: u32,
    #[serde(skip)]
    pub(super) age: String,
}

impl From<proto::Slot> for SlotView {
    fn from(slot: proto::Slot) -> Self {
        Self {
            since: time(slot.since.as_ref()),
            age: age(slot.since.as_ref()),
            slot: slot.slot,
            generation: slot.generation,
            use_: slot.r#use,
            state: slot.state,
            namespace_id: slot.namespace_id,
            container_id: slot.container_id,
            network: slot.network,
            failures: slot.failures,
            last_error: slot.last_error,
            lease_id: slot.lease_id,
            doomed: slot.doomed,
            joiners: slot.joiners,
            pid: slot.pid,
        }
    }
}

/// A buddy without a slot stands in the list by the slot it was made for.
impl From<proto::DetachedBuddy> for SlotView {
    fn from(buddy: proto::DetachedBuddy) -> Self {
        Self {
            since: time(buddy.since.as_ref()),
            age: age(buddy.since.as_ref()),
            slot: buddy.slot,
            generation: buddy.generation,
            use_: 0,
            state: "detached".to_owned(),
            namespace_id: buddy.name,
            container_id: buddy.container_id,
            network: String::new(),
            failures: 0,
            last_error: String::new(),
            lease_id: String::new(),
            doomed: false,
            joiners: buddy.joiners,
            pid: 0,
        }
    }
}

/// The counts of a pool or of one of its networks.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CountsView {
    pub(super) vacant: u32,
    pub(super) filling: u32,
    pub(super) ready: u32,
    pub(super) leased: u32,
    pub(super) vacating: u32,
    pub(super) renewing: u32,
    pub(super) cooling: u32,
    pub(super) quarantined: u32,
    pub(super) retiring: u32,
    pub(super) detached: u32,
    pub(super) lost: u32,
    pub(super) target: u32,
    pub(super) max: u32,
    pub(super) waiting: u32,
    pub(super) misses: u64,
    pub(super) allocations: u64,
}

impl From<proto::Usage> for CountsView {
    fn from(usage: proto::Usage) -> Self {
        Self {
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
}

impl CountsView {
    /// Names and counts that people look at, in the order of a slot's life.
    pub(super) fn columns(&self) -> [(&'static str, String); 14] {
        [
            ("ready", self.ready.to_string()),
            ("leased", self.leased.to_string()),
            ("filling", self.filling.to_string()),
            ("vacant", self.vacant.to_string()),
            ("vacating", self.vacating.to_string()),
            ("renewing", self.renewing.to_string()),
            ("cooling", self.cooling.to_string()),
            ("quarantined", self.quarantined.to_string()),
            ("retiring", self.retiring.to_string()),
            ("detached", self.detached.to_string()),
            ("lost", self.lost.to_string()),
            ("waiting", self.waiting.to_string()),
            ("target", self.target.to_string()),
            ("max", self.max.to_string()),
        ]
    }
}

#[derive(Debug, Serialize)]
pub(super) struct UsageView {
    pub(super) pool: String,
    #[serde(flatten)]
    pub(super) total: CountsView,
    pub(super) networks: BTreeMap<String, CountsView>,
    pub(super) engine_state: String,
    pub(super) engine_error: String,
    pub(super) image_state: String,
    pub(super) image_error: String,
    pub(super) ledger_error: String,
    pub(super) cordoned: bool,
    pub(super) draining: bool,
    pub(super) engine: Option<EngineView>,
}

impl From<proto::GetUsageResponse> for UsageView {
    fn from(response: proto::GetUsageResponse) -> Self {
        Self {
            pool: response.pool,
            total: response.total.unwrap_or_default().into(),
            networks: response.networks.into_iter().map(|(name, usage)| (name, usage.into())).collect(),
            engine_state: response.engine_state,
            engine_error: response.engine_error,
            image_state: response.image_state,
            image_error: response.image_error,
            ledger_error: response.ledger_error,
            cordoned: response.cordoned,
            draining: response.draining,
            engine: response.engine.map(EngineView::from),
        }
    }
}
