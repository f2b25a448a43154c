//! The one table from refusals to gRPC statuses: code, reason, and what helps the caller (RetryInfo, the bad fields).
//!
//! Everything that a service of ours says no with passes [`Refusal`], so that a reason cannot have two codes. What it deliberately does not
//! know: framing errors (a message that is too large or cannot be decoded, an unknown method), which keep tonic's own codes.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::image::cache::{Failure, Kind};
use crate::pool::Denied;

/// In every ErrorInfo.
const DOMAIN: &str = "nspool";

/// A status goes out in HTTP/2 headers, of which clients take 16 KiB by default: so many bad fields stay below that, however long.
const MOST_IN_DETAILS: usize = 16;
/// The same for the text, which is there twice.
const MOST_IN_MESSAGE: usize = 4;

/// Why not, as programs see it. The words and codes are those in the header of `pool.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    PoolEmpty,
    Quota,
    Starting,
    EngineAway,
    Stopping,
    NotRecorded,
    Cordoned,
    Draining,
    LeaseLost,
    LeaseEnded,
    UnknownToken,
    UnknownSlot,
    UnknownLease,
    NotAllowed,
    BadField,
    UnknownNetwork,
    SlowReader,
    Uncordoned,
    NoSnapshot,
    NoEngine,
    RegistryDenied,
    ImageUnknown,
    RegistryBusy,
    TooManyFetches,
    DiskFull,
    FetchFailed,
    BadBuild,
    ContextUnreadable,
    BuildFailed,
    PrivateImage,
    PushFailed,
}

/// All of them, in the order of their discriminants.
pub(super) const REASONS: [Reason; 31] = [
    Reason::PoolEmpty,
    Reason::Quota,
    Reason::Starting,
    Reason::EngineAway,
    Reason::Stopping,
    Reason::NotRecorded,
    Reason::Cordoned,
    Reason::Draining,
    Reason::LeaseLost,
    Reason::LeaseEnded,
    Reason::UnknownToken,
    Reason::UnknownSlot,
    Reason::UnknownLease,
    Reason::NotAllowed,
    Reason::BadField,
    Reason::UnknownNetwork,
    Reason::SlowReader,
    Reason::Uncordoned,
    Reason::NoSnapshot,
    Reason::NoEngine,
    Reason::RegistryDenied,
    Reason::ImageUnknown,
    Reason::RegistryBusy,
    Reason::TooManyFetches,
    Reason::DiskFull,
    Reason::FetchFailed,
    Reason::BadBuild,
    Reason::ContextUnreadable,
    Reason::BuildFailed,
    Reason::PrivateImage,
    Reason::PushFailed,
];

impl Reason {
    /// The table: the word on the wire, the same for metrics, the code.
    fn row(self) -> (&'static str, &'static str, Code) {
        match self {
            Self::PoolEmpty => ("POOL_EMPTY", "pool_empty", Code::ResourceExhausted),
            Self::Quota => ("QUOTA", "quota", Code::ResourceExhausted),
            Self::Starting => ("STARTING", "starting", Code::Unavailable),
            Self::EngineAway => ("ENGINE_AWAY", "engine_away", Code::Unavailable),
            Self::Stopping => ("STOPPING", "stopping", Code::Unavailable),
            Self::NotRecorded => ("NOT_RECORDED", "not_recorded", Code::Unavailable),
            Self::Cordoned => ("CORDONED", "cordoned", Code::FailedPrecondition),
            Self::Draining => ("DRAINING", "draining", Code::FailedPrecondition),
            Self::LeaseLost => ("LEASE_LOST", "lease_lost", Code::FailedPrecondition),
            Self::LeaseEnded => ("LEASE_ENDED", "lease_ended", Code::FailedPrecondition),
            Self::UnknownToken => ("UNKNOWN_TOKEN", "unknown_token", Code::NotFound),
            Self::UnknownSlot => ("UNKNOWN_SLOT", "unknown_slot", Code::NotFound),
            Self::UnknownLease => ("UNKNOWN_LEASE", "unknown_lease", Code::NotFound),
            Self::NotAllowed => ("NOT_ALLOWED", "not_allowed", Code::PermissionDenied),
            Self::BadField => ("BAD_FIELD", "bad_field", Code::InvalidArgument),
            Self::UnknownNetwork => ("UNKNOWN_NETWORK", "unknown_network", Code::InvalidArgument),
            Self::SlowReader => ("SLOW_READER", "slow_reader", Code::Aborted),
            Self::Uncordoned => ("UNCORDONED", "uncordoned", Code::Aborted),
            Self::NoSnapshot => ("NO_SNAPSHOT", "no_snapshot", Code::FailedPrecondition),
            Self::NoEngine => ("NO_ENGINE", "no_engine", Code::FailedPrecondition),
            Self::RegistryDenied => ("REGISTRY_DENIED", "registry_denied", Code::PermissionDenied),
            Self::ImageUnknown => ("IMAGE_UNKNOWN", "image_unknown", Code::NotFound),
            Self::RegistryBusy => ("REGISTRY_BUSY", "registry_busy", Code::ResourceExhausted),
            Self::TooManyFetches => ("TOO_MANY_FETCHES", "too_many_fetches", Code::ResourceExhausted),
            Self::DiskFull => ("DISK_FULL", "disk_full", Code::ResourceExhausted),
            Self::FetchFailed => ("FETCH_FAILED", "fetch_failed", Code::Unavailable),
            Self::BadBuild => ("BAD_BUILD", "bad_build", Code::InvalidArgument),
            Self::ContextUnreadable => ("CONTEXT_UNREADABLE", "context_unreadable", Code::FailedPrecondition),
            Self::BuildFailed => ("BUILD_FAILED", "build_failed", Code::FailedPrecondition),
            Self::PrivateImage => ("PRIVATE_IMAGE", "private_image", Code::FailedPrecondition),
            Self::PushFailed => ("PUSH_FAILED", "push_failed", Code::Unavailable),
        }
    }

    /// `POOL_EMPTY`
    pub(super) fn word(self) -> &'static str {
        self.row().0
    }

    /// `pool_empty`
    pub(super) fn metric(self) -> &'static str {
        self.row().1
    }
}

/// One field of a request that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadField {
    /// Its path, e.g. `labels["x"]`.
    pub(super) field: String,
    /// What is wrong, and what is allowed.
    pub(super) why: String,
}

/// Every no of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The pool's.
    Denied(Denied),
    /// All bad fields of a request, at once.
    BadFields(Vec<BadField>),
    /// The only bad field names a network that is not there.
    UnknownNetwork { asked: String, known: String },
    /// For operators only.
    NotAllowed { uid: u32 },
    /// The daemon is on its way out.
    Stopping,
    /// A watcher fell off the end of the ring.
    SlowReader,
    /// A drain was undone.
    Uncordoned,
    /// There is nothing to compare a slot's buddy with.
    NoSnapshot { slot: u32 },
    /// Images are a container engine's.
    NoEngine,
    /// An image could not be had.
    NotFetched(Failure),
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Refusal {
    pub(super) fn bad_field(field: &str, why: impl Into<String>) -> Self {
        Self::BadFields(vec![BadField { field: field.to_owned(), why: why.into() }])
    }

    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Denied(denied) => reason_of(denied),
            Self::BadFields(_) => Reason::BadField,
            Self::UnknownNetwork { .. } => Reason::UnknownNetwork,
            Self::NotAllowed { .. } => Reason::NotAllowed,
            Self::Stopping => Reason::Stopping,
            Self::SlowReader => Reason::SlowReader,
            Self::Uncordoned => Reason::Uncordoned,
            Self::NoSnapshot { .. } => Reason::NoSnapshot,
            Self::NoEngine => Reason::NoEngine,
            Self::NotFetched(failure) => reason_of_failure(failure.kind),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Denied(denied) => denied.to_string(),
            Self::BadFields(fields) => {
                let mut all: Vec<String> = fields.iter().take(MOST_IN_MESSAGE).map(|bad| format!("{}: {}", bad.field, bad.why)).collect();
                if fields.len() > all.len() {
                    all.push(format!("and {} more", fields.len() - all.len()));
                }
                all.join("; ")
            }
            Self::UnknownNetwork { asked, known } => format!("there is no network {asked:?} here; there are: {known}"),
            Self::NotAllowed { uid } => {
                format!("uid {uid} may not do this: it is for uid 0, the daemon's own uid and those in [api] admin_uids")
            }
            Self::Stopping => Denied::Stopping.to_string(),
            Self::SlowReader => "this watcher reads too slowly and has missed events: watch again for a new snapshot".to_owned(),
            Self::Uncordoned => "the pool was uncordoned before it was drained".to_owned(),
            Self::NoSnapshot { slot } => format!(
                "slot {slot} has no buddy of which it is known what it was at first: only those on networks with reuse = \"verified\" have, unless \
                 they are leased since before the daemon's start"
            ),
            Self::NoEngine => "this daemon makes its namespaces without a container engine, and has no images".to_owned(),
            Self::NotFetched(failure) => failure.to_string(),
        }
    }

    fn details(&self) -> ErrorDetails {
        let mut facts = HashMap::new();
        let mut details = ErrorDetails::new();
        match self {
            Self::Denied(denied) => denied_details(denied, &mut facts, &mut details),
            Self::BadFields(fields) => {
                let named = fields.iter().take(MOST_IN_DETAILS).map(|bad| FieldViolation::new(&bad.field, &bad.why));
                details.set_bad_request(named.collect::<Vec<_>>());
            }
            Self::UnknownNetwork { known, .. } => {
                facts.insert("networks".to_owned(), known.clone());
                details.add_bad_request_violation("network", self.message());
            }
            Self::NotAllowed { uid } => {
                facts.insert("uid".to_owned(), uid.to_string());
            }
            Self::NotFetched(failure) => {
                if failure.retry_after.is_some() {
                    details.set_retry_info(failure.retry_after);
                }
            }
            Self::Stopping | Self::SlowReader | Self::Uncordoned | Self::NoSnapshot { .. } | Self::NoEngine => {}
        }
        details.set_error_info(self.reason().word(), DOMAIN, facts);
        details
    }
}

fn reason_of_failure(kind: Kind) -> Reason {
    match kind {
        Kind::Denied => Reason::RegistryDenied,
        Kind::Unknown => Reason::ImageUnknown,
        Kind::Busy => Reason::RegistryBusy,
        Kind::DiskFull => Reason::DiskFull,
        Kind::EngineAway => Reason::EngineAway,
        Kind::Crowded => Reason::TooManyFetches,
        Kind::Stopping => Reason::Stopping,
        Kind::Invalid => Reason::BadBuild,
        Kind::ContextUnreadable => Reason::ContextUnreadable,
        Kind::BuildFailed => Reason::BuildFailed,
        Kind::Private => Reason::PrivateImage,
        Kind::PushFailed => Reason::PushFailed,
        Kind::Failed => Reason::FetchFailed,
    }
}

fn reason_of(denied: &Denied) -> Reason {
    match denied {
        // To a caller both are the same: nothing to be had now, a later try may do.
        Denied::PoolEmpty { .. } | Denied::TooManyWaiting => Reason::PoolEmpty,
        Denied::Quota { .. } => Reason::Quota,
        Denied::Starting { .. } => Reason::Starting,
        Denied::EngineAway => Reason::EngineAway,
        Denied::Cordoned => Reason::Cordoned,
        Denied::Draining => Reason::Draining,
        Denied::Stopping => Reason::Stopping,
        Denied::NotRecorded { .. } => Reason::NotRecorded,
        Denied::LeaseLost { .. } => Reason::LeaseLost,
        Denied::LeaseEnded { .. } => Reason::LeaseEnded,
        Denied::UnknownToken => Reason::UnknownToken,
        Denied::UnknownLease => Reason::UnknownLease,
        Denied::UnknownSlot { .. } => Reason::UnknownSlot,
        Denied::RequestConflict | Denied::NotRenewable | Denied::BadSize { .. } => Reason::BadField,
    }
}

fn denied_details(denied: &Denied, facts: &mut HashMap<String, String>, details: &mut ErrorDetails) {
    match denied {
        Denied::PoolEmpty { retry_after } | Denied::Starting { retry_after } => {
            // No estimate, no RetryInfo: a made-up one would be worse than none.
            if retry_after.is_some() {
                details.set_retry_info(*retry_after);
            }
        }
        Denied::Quota { uid, limit } => {
            facts.insert("uid".to_owned(), uid.to_string());
            facts.insert("limit".to_owned(), limit.to_string());
        }
        Denied::LeaseEnded { cause } => {
            facts.insert("cause".to_owned(), cause.word().to_owned());
        }
        Denied::RequestConflict => {
            details.add_bad_request_violation("request_id", denied.to_string());
        }
        Denied::NotRenewable => {
            details.add_bad_request_violation("token", denied.to_string());
        }
        Denied::BadSize { .. } => {
            details.add_bad_request_violation("ready", denied.to_string());
            details.add_bad_request_violation("max", denied.to_string());
        }
        Denied::TooManyWaiting
        | Denied::EngineAway
        | Denied::Cordoned
        | Denied::Draining
        | Denied::Stopping
        | Denied::NotRecorded { .. }
        | Denied::LeaseLost { .. }
        | Denied::UnknownToken
        | Denied::UnknownLease
        | Denied::UnknownSlot { .. } => {}
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (_, _, code) = refusal.reason().row();
        Self::with_error_details(code, refusal.message(), refusal.details())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_stands_where_its_number_says() {
        for (index, reason) in REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(reason.word().to_lowercase(), reason.metric());
        }
    }

    #[test]
    fn the_contract_names_every_reason() {
        let header = include_str!("../../proto/nspool/v1/pool.proto").split("syntax").next().unwrap();
        for reason in REASONS {
            let (word, _, code) = reason.row();
            let line = header.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word} is not in the contract"));
            let squeezed = |text: &str| text.replace('_', "").to_lowercase();
            assert!(squeezed(line).contains(&squeezed(&format!("{code:?}"))), "{word}: {line}");
        }
    }
}
