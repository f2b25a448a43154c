//! What registries say when they do not give what they were asked for.
//!
//! The words are the registry's own, cut short and without control characters.

use std::time::{Duration, SystemTime};

use http::header::{DATE, HeaderMap, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;

use super::ASK_TIMEOUT;
use crate::causes::with_causes;

/// What of an answer's body is read: a token and an error are shorter.
pub(super) const MOST_BODY: usize = 64 << 10;
/// To come back later than that is as good as never.
const LATEST: Duration = Duration::from_secs(24 * 3600);
/// What of a registry's words is told.
const MOST_WORDS: usize = 200;

/// Why a registry did not give or take something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// It wants other credentials, or any.
    #[error("{host} says no: {words}")]
    Denied {
        /// The registry.
        host: String,
        /// Its own.
        words: String,
    },
    /// It has no such image, or no such part of one.
    #[error("{host} has no such image: {words}")]
    Unknown {
        /// The registry.
        host: String,
        /// Its own.
        words: String,
    },
    /// Too many requests.
    #[error("{host} has had too many requests")]
    Busy {
        /// The registry.
        host: String,
        /// When to ask again, if it says so.
        retry_after: Option<Duration>,
    },
    /// No connection, or it ended early.
    #[error("{host} cannot be reached: {words}")]
    Unreachable {
        /// The registry, or who gives its tokens.
        host: String,
        /// The system's.
        words: String,
    },
    /// No answer, or none of its next bytes.
    #[error("{host} did not answer within {within:?}")]
    Silent {
        /// The registry.
        host: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// It has troubles of its own (a status from 500 on): the same question may be answered later.
    #[error("{host} has troubles of its own: {words}")]
    Ailing {
        /// The registry, or who gives its tokens.
        host: String,
        /// Its own.
        words: String,
    },
    /// Something else than the protocol says.
    #[error("{host} answered with {words}")]
    Strange {
        /// The registry, or who gives its tokens.
        host: String,
        /// What it was.
        words: String,
    },
}

impl RegistryError {
    /// When the registry wants to be asked again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            Self::Denied { .. }
            | Self::Unknown { .. }
            | Self::Unreachable { .. }
            | Self::Silent { .. }
            | Self::Ailing { .. }
            | Self::Strange { .. } => None,
        }
    }

    /// The same question may be answered otherwise in a while; all others stay as they are until somebody changes something.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Unreachable { .. } | Self::Silent { .. } | Self::Ailing { .. } => true,
            Self::Denied { .. } | Self::Unknown { .. } | Self::Strange { .. } => false,
        }
    }

    pub(super) fn denied(host: &str, words: &str) -> Self {
        Self::Denied { host: host.to_owned(), words: words.to_owned() }
    }

    pub(super) fn strange(host: &str, words: &str) -> Self {
        Self::Strange { host: host.to_owned(), words: words.to_owned() }
    }

    pub(super) fn unreachable(host: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Unreachable { host: host.to_owned(), words: cut_short(&with_causes(error)) }
    }

    pub(super) fn silent(host: &str, within: Duration) -> Self {
        Self::Silent { host: host.to_owned(), within }
    }
}

fn cut_short(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect()
}

/// An answer that is not what was hoped for.
#[derive(Debug)]
pub(super) struct No {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) errors: Vec<Reason>,
}

/// As the distribution protocol writes it.
#[derive(Debug, Deserialize)]
pub(super) struct Reason {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    pub(super) detail: Value,
}

#[derive(Deserialize)]
struct Reasons {
    errors: Vec<Reason>,
}

impl No {
    /// With its reasons, if it has any and they come soon.
    pub(super) async fn read(answer: Response<Incoming>) -> Self {
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        let body = tokio::time::timeout(ASK_TIMEOUT, Limited::new(answer.into_body(), MOST_BODY).collect()).await;
        let bytes = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let errors = serde_json::from_slice::<Reasons>(&bytes).map_or_else(|_| Vec::new(), |told| told.errors);
        Self { status, retry_after, errors }
    }

    /// `subject`: what was asked for.
    pub(super) fn error(&self, host: &str, subject: &str) -> RegistryError {
        let host = host.to_owned();
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied { host, words: self.words() },
            StatusCode::NOT_FOUND if self.errors.is_empty() => RegistryError::Unknown { host, words: subject.to_owned() },
            StatusCode::NOT_FOUND => RegistryError::Unknown { host, words: format!("{subject} ({})", self.words()) },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy { host, retry_after: self.retry_after },
            StatusCode::SERVICE_UNAVAILABLE if self.retry_after.is_some() => RegistryError::Busy { host, retry_after: self.retry_after },
            StatusCode::REQUEST_TIMEOUT => RegistryError::Ailing { host, words: self.words() },
            status if status.is_server_error() => RegistryError::Ailing { host, words: self.words() },
            _ => RegistryError::Strange { host, words: self.words() },
        }
    }

    fn words(&self) -> String {
        let status = format!("status {}", self.status.as_u16());
        let Some(Reason { code, message, .. }) = self.errors.first() else { return status };
        cut_short(&format!("{status}, {code} {message}"))
    }
}

/// Seconds, or a date: by the registry's own clock, if it tells what that shows.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let after = text(RETRY_AFTER)?;
    let wait = match after.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => date(after)?.duration_since(text(DATE).and_then(date).unwrap_or_else(SystemTime::now)).unwrap_or_default(),
    };
    Some(wait.min(LATEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_to_come_back_is_told_in_seconds_or_by_a_date() {
        let told = |after: &str, date: &str| {
            let header = |(name, value): (_, &str)| (name, value.parse().unwrap());
            let headers = [(RETRY_AFTER, after), (DATE, date)].into_iter().filter(|(_, value)| !value.is_empty()).map(header);
            retry_after(&headers.collect()).map(|after| after.as_secs())
        };
        let (noon, later) = ("Sun, 22 Nov 2026 12:00:00 GMT", "Sun, 22 Nov 2026 12:01:30 GMT");
        assert_eq!([told("7", ""), told(" 7 ", noon), told(later, noon), told(noon, later)], [Some(7), Some(7), Some(90), Some(0)]);
        // What is so long ago is over by our clock, too.
        assert_eq!(told("Sun, 06 Nov 1994 08:49:37 GMT", ""), Some(0));
        assert_eq!([told("18446744073709551615", ""), told("Fri, 31 Dec 9999 23:59:59 GMT", "")], [Some(86_400); 2], "as good as never");
        assert_eq!([told("", noon), told("soon", noon), told("-1", noon)], [None; 3]);
    }
}
