//! Why a call did not succeed.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A call that failed. `Display` never includes the source; print the chain once, where it is shown.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not `unix:/path`.
    #[error("the endpoint {endpoint:?} cannot be used: {why}")]
    BadEndpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// [`super::Client::connect`] was called outside of a tokio runtime.
    #[error("a client needs a tokio runtime, and there is none here")]
    NoRuntime,
    /// Nobody listens, or not to us: nothing was sent.
    #[error("{operation}: no connection to the daemon at {endpoint}")]
    Unreachable {
        /// e.g. `Allocate`.
        operation: &'static str,
        /// As it was given.
        endpoint: String,
        /// With the system's own words in its chain.
        #[source]
        source: Box<Status>,
    },
    /// The connection broke after the request was sent: nobody knows whether it was done.
    #[error("{operation}: the connection to {endpoint} broke before the answer came")]
    Lost {
        /// e.g. `Allocate`.
        operation: &'static str,
        /// As it was given.
        endpoint: String,
        /// With the system's own words in its chain.
        #[source]
        source: Box<Status>,
    },
    /// No answer in time: nobody knows whether it was done.
    #[error("{operation}: no answer from {endpoint} within {}", humantime::format_duration(*after))]
    Deadline {
        /// e.g. `Allocate`.
        operation: &'static str,
        /// As it was given.
        endpoint: String,
        /// How long was waited.
        after: Duration,
    },
    /// The daemon says no.
    #[error("{operation}: {message}{}", fields_text(fields))]
    Refused {
        /// e.g. `Allocate`.
        operation: &'static str,
        /// The gRPC status.
        code: Code,
        /// From ErrorInfo, e.g. `POOL_EMPTY`; empty when the answer has none.
        reason: String,
        /// The daemon's words.
        message: String,
        /// Field and what is wrong with it, of a bad request.
        fields: Vec<(String, String)>,
        /// When a later try may succeed.
        retry_after: Option<Duration>,
    },
    /// An answer that our contract does not know.
    #[error("{operation}: the daemon's answer is not understood: {what}")]
    BadReply {
        /// e.g. `Allocate`.
        operation: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

fn fields_text(fields: &[(String, String)]) -> String {
    fields.iter().map(|(field, what)| format!("; {field}: {what}")).collect()
}

impl ClientError {
    pub(super) fn from_status(operation: &'static str, endpoint: &str, status: Status, timeout: Duration) -> Self {
        let endpoint = endpoint.to_owned();
        // Only a status that was made on this side of the wire has a source.
        match find_in_chain::<tonic::ConnectError>(&status) {
            true => return Self::Unreachable { operation, endpoint, source: Box::new(status) },
            false if find_in_chain::<tonic::TimeoutExpired>(&status) => return Self::Deadline { operation, endpoint, after: timeout },
            false if std::error::Error::source(&status).is_some() => return Self::Lost { operation, endpoint, source: Box::new(status) },
            false => {}
        }
        let details = status.get_error_details();
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        Self::Refused {
            operation,
            code: status.code(),
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            fields: violations.iter().map(|violation| (violation.field.clone(), violation.description.clone())).collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// The daemon's reason, e.g. `POOL_EMPTY`; empty when there is none.
    #[must_use]
    pub fn reason(&self) -> &str {
        if let Self::Refused { reason, .. } = self { reason } else { "" }
    }

    /// The gRPC status, if the daemon sent one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        if let Self::Refused { code, .. } = self { Some(*code) } else { None }
    }

    /// The daemon's estimate when a later try may succeed.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Whether the daemon may have done what was asked.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Deadline { .. })
    }

    /// Whether the daemon is not there, or not yet, or not for long: the time to use something else, or to try again.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Lost { .. }) || self.code() == Some(Code::Unavailable)
    }
}

fn find_in_chain<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<E>())
}
