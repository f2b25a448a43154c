//! The way to the engine's socket: one Unix connection per request.
//!
//! Mutations and streams are bollard's, what is only read is read by [`Reader`]. bollard's own Unix transport looks for the socket when it is made, which a daemon that waits for its engine cannot use, and it does not
//! say when a request has been *accepted*, which is what makes a subscription a subscription. One connection per request (a connect costs
//! some 50 µs) means that hundreds of waits hold nothing that another call needs, that a dropped call closes its connection, and that a
//! connection that was cut between two calls fails neither.
//!
//! It deliberately sets no deadline: [`crate::engine::paced`] does, and waits, events and long pulls have none.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, BollardRequest};
use futures::FutureExt;
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// bollard wants a deadline in seconds; this one is a century.
const NO_DEADLINE_SECS: u64 = 100 * 365 * 24 * 3600;

/// Opens a connection to one socket, whatever host the request names.
#[derive(Clone)]
struct Connector {
    socket: Arc<Path>,
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let socket = Arc::clone(&self.socket);
        async move { Ok(TokioIo::new(UnixStream::connect(&socket).await?)) }.boxed()
    }
}

/// Reads from the engine into types of ours. bollard's own refuse a whole answer for one word they do not know, like podman's `stopped`, which
/// a container is for a moment after its end: one foreign container would spoil every list.
pub(super) struct Reader {
    client: Client<Connector, String>,
}

impl Reader {
    pub(super) fn new(socket: PathBuf) -> Self {
        let connector = Connector { socket: socket.into() };
        Self { client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector) }
    }

    /// Which program answers, as it says in the header of its answer to a ping; `None`: it does not say.
    pub(super) async fn server(&self) -> Result<Option<String>, Error> {
        let request = http::Request::get("http://localhost/_ping").body(String::new())?;
        let answer = self.client.request(request).await?;
        Ok(answer.headers().get(http::header::SERVER).and_then(|name| name.to_str().ok()).map(str::to_owned))
    }

    /// GETs a path with its query, which must not need escaping. Errors are bollard's, as those of all other calls.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let request = http::Request::get(format!("http://localhost{path}")).body(String::new())?;
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(serde_json::from_slice(&body)?);
        }
        let message = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.message);
        let message = message.unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
        Err(Error::DockerResponseServerError { status_code: status.as_u16(), message })
    }
}

#[derive(serde::Deserialize)]
struct Refusal {
    message: String,
}

/// A bollard client on the socket. `accepted` is told once when the head of the first successful answer has come.
pub(super) fn client(socket: PathBuf, accepted: Option<oneshot::Sender<()>>) -> Result<bollard::Docker, Error> {
    let connector = Connector { socket: socket.into() };
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let accepted = Arc::new(Mutex::new(accepted));
    let transport = move |request: BollardRequest| {
        let (answer, accepted) = (client.request(request), Arc::clone(&accepted));
        async move {
            let answer = answer.await.map_err(Error::from)?;
            if answer.status().is_success()
                && let Some(accepted) = accepted.lock().take()
            {
                // Nobody waits for it any more when the caller was dropped.
                let _unheard = accepted.send(());
            }
            Ok(answer)
        }
        .boxed()
    };
    bollard::Docker::connect_with_custom_transport(transport, Some("http://localhost"), NO_DEADLINE_SECS, API_DEFAULT_VERSION)
}
