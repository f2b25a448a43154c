//! The way to the engine's socket: one Unix connection per request.
//!
//! bollard's own Unix transport looks for the socket when it is made, which a daemon that waits for its engine cannot use, and it does not
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

use bollard::{API_DEFAULT_VERSION, BollardRequest};
use futures::FutureExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
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

/// A bollard client on the socket. `accepted` is told once when the head of the first successful answer has come.
pub(super) fn client(socket: PathBuf, accepted: Option<oneshot::Sender<()>>) -> Result<bollard::Docker, bollard::errors::Error> {
    let connector = Connector { socket: socket.into() };
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let accepted = Arc::new(Mutex::new(accepted));
    let transport = move |request: BollardRequest| {
        let (answer, accepted) = (client.request(request), Arc::clone(&accepted));
        async move {
            let answer = answer.await.map_err(bollard::errors::Error::from)?;
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
