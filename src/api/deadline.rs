//! Deadlines of calls: the caller's `grpc-timeout`, or the configured one where the caller brings none.
//!
//! A call that has not begun to answer by then ends with DEADLINE_EXCEEDED and its handler is dropped (all handlers are cancel safe). Streams
//! begin to answer at once, so that only unary calls are concerned. The timer is made when a call really has to wait: most never do.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};

/// The header that carries it.
pub(super) const HEADER: &str = "grpc-timeout";

/// The caller's deadline. `None` without one, or with one that cannot be read, which the protocol lets a server ignore.
pub(super) fn of_headers(headers: &HeaderMap) -> Option<Duration> {
    parse(headers.get(HEADER)?.as_bytes())
}

/// At most 8 digits and a unit.
pub(super) fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// How long a handler may wait so that its answer is back before the deadline: a tenth less, between 5 and 250 ms.
pub(super) fn wait_below(deadline: Duration) -> Duration {
    deadline.saturating_sub((deadline / 10).clamp(Duration::from_millis(5), Duration::from_millis(250)))
}

/// A call under its deadline.
pub(super) struct Call {
    inner: BoxFuture<'static, Result<Response<Body>, Infallible>>,
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Call {
    pub(super) fn new(inner: BoxFuture<'static, Result<Response<Body>, Infallible>>, timeout: Duration) -> Self {
        Self { inner, timeout, timer: None }
    }
}

impl Future for Call {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let ready @ Poll::Ready(_) = self.inner.as_mut().poll(cx) {
            return ready;
        }
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + timeout)));
        timer.as_mut().poll(cx).map(|()| Ok(Status::deadline_exceeded("the call's deadline passed").into_http()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_the_protocol_writes_them() {
        for (text, millis) in
            [("2S", 2_000.0), ("99999999m", 99_999_999.0), ("3H", 10_800_000.0), ("1M", 60_000.0), ("500u", 0.5), ("0n", 0.0)]
        {
            assert_eq!(parse(text.as_bytes()).unwrap().as_secs_f64() * 1000.0, millis, "{text}");
        }
        for wrong in ["", "S", "1", "1s", "-1S", "123456789S", "1 S", "0x1S"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_wait_ends_before_its_deadline() {
        for millis in [0, 1, 6, 100, 5_000, 100_000] {
            let deadline = Duration::from_millis(millis);
            let wait = wait_below(deadline);
            assert!(wait < deadline || wait.is_zero(), "{deadline:?}");
            assert!(deadline - wait <= Duration::from_millis(250));
        }
    }
}
