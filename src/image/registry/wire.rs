//! Requests on their way: over TLS by the host's certificates, or in the open, which is for loopback only (`place` sees to that).

use std::io;
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::OnceCell;

use super::error::RegistryError;

/// What is sent: nothing, some bytes, or a file as it is read.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

type Http = legacy::Client<HttpConnector, Body>;
type Https = legacy::Client<HttpsConnector<HttpConnector>, Body>;

/// Keeps connections. Does nothing before the first request.
pub(super) struct Wire {
    http: Http,
    /// With the host's certificates, read when they are needed first.
    https: OnceCell<Https>,
}

impl Default for Wire {
    fn default() -> Self {
        Self { http: legacy::Client::builder(TokioExecutor::new()).build_http(), https: OnceCell::new() }
    }
}

pub(super) fn body(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

impl Wire {
    /// Until the answer's head is there, which has a deadline. `host`: for errors.
    pub(super) async fn send(&self, host: &str, request: Request<Body>, within: Duration) -> Result<Response<Incoming>, RegistryError> {
        let sent = tokio::time::timeout(within, self.send_patiently(host, request)).await;
        sent.unwrap_or_else(|_| Err(RegistryError::silent(host, within)))
    }

    /// Without a deadline.
    pub(super) async fn send_patiently(&self, host: &str, mut request: Request<Body>) -> Result<Response<Incoming>, RegistryError> {
        let agent = HeaderValue::from_static(concat!("nspool/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let plain = request.uri().scheme_str() == Some("http");
        let sent = if plain { self.http.request(request).await } else { self.https(host).await?.request(request).await };
        sent.map_err(|error| RegistryError::unreachable(host, &error))
    }

    async fn https(&self, host: &str) -> Result<&Https, RegistryError> {
        let make = async {
            let read = tokio::task::spawn_blocking(|| HttpsConnectorBuilder::new().with_native_roots()).await;
            let read = read.map_err(|error| RegistryError::unreachable(host, &error))?;
            let roots = read.map_err(|error| RegistryError::unreachable(host, &error))?;
            Ok(legacy::Client::builder(TokioExecutor::new()).build(roots.https_only().enable_http1().build()))
        };
        self.https.get_or_try_init(|| make).await
    }
}
