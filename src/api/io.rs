//! How a connection's bytes and calls move, for speed: one write per turn, and no task for a call that can be answered at once.
//!
//! HTTP/2 as hyper does it flushes after every data frame above a few hundred bytes, which a lease is, so that each answer would be a write and
//! a wake-up of the other end of its own. [`Gathered`] keeps what is written until the connection's turn is over ([`Turns`]); then all of it goes
//! out at once. And each call would be a task, made, scheduled and joined, though nearly all calls are answered without any wait: [`Inline`] polls
//! a call once where it came in, and makes a task only of one that has to wait.
//!
//! What can go wrong: a peer that does not read. At most [`MOST`] bytes are kept for it; then hyper's flow control takes over.

use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::task::TaskTracker;

/// Bytes kept at most.
const MOST: usize = 64 << 10;

/// A socket whose writes are kept until the end of a turn ([`Turns::run`]).
pub(super) struct Gathered {
    reading: OwnedReadHalf,
    writing: Arc<Mutex<Writing>>,
}

/// The other hold on a [`Gathered`]'s writes. The lock is never contended: both are used by the connection's one task.
pub(super) struct Turns(Arc<Mutex<Writing>>);

struct Writing {
    half: OwnedWriteHalf,
    kept: Vec<u8>,
    /// Of `kept`, written already.
    written: usize,
}

pub(super) fn gather(stream: UnixStream) -> (Gathered, Turns) {
    let (reading, half) = stream.into_split();
    let writing = Arc::new(Mutex::new(Writing { half, kept: Vec::new(), written: 0 }));
    (Gathered { reading, writing: Arc::clone(&writing) }, Turns(writing))
}

impl Writing {
    /// Writes what is kept.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            match ready!(Pin::new(&mut self.half).poll_write(cx, &self.kept[self.written..])) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(bytes) => self.written += bytes,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.kept.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl Turns {
    /// Runs a connection, and writes at the end of each of its turns what it has written in it. Comes back as the connection does; what is kept
    /// then is nobody's any more, as a connection that ends well shuts its socket down, which writes all.
    pub(super) async fn run(&self, connection: Pin<&mut impl Future<Output = hyper::Result<()>>>) -> Result<(), Broken> {
        let mut connection = connection;
        poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx);
            if ended.is_pending()
                && let Poll::Ready(Err(error)) = self.0.lock().poll_out(cx)
            {
                return Poll::Ready(Err(Broken::Write(error)));
            }
            ended.map_err(Broken::Http)
        })
        .await
    }
}

/// How a connection can end badly.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The peer does not take what is written any more.
    #[error("write to the peer")]
    Write(#[source] io::Error),
    /// What it sent makes no sense, or ended in the middle.
    #[error("serve the connection")]
    Http(#[source] hyper::Error),
}

impl AsyncRead for Gathered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reading).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut writing = self.writing.lock();
        if writing.kept.len() >= MOST {
            ready!(writing.poll_out(cx))?;
        }
        let taken = buf.len().min(MOST - writing.kept.len());
        writing.kept.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    /// Says that it is done, which it will be at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut writing = self.writing.lock();
        ready!(writing.poll_out(cx))?;
        Pin::new(&mut writing.half).poll_shutdown(cx)
    }
}

/// Polls a call once where it came in; if it has to wait it becomes a task, which is joined at the stop like everything else.
#[derive(Clone)]
pub(super) struct Inline(pub(super) TaskTracker);

impl<F> Executor<F> for Inline
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let mut call = Box::pin(call);
        // A task polls it again at once, so that nobody has to be woken by this first poll.
        let mut cx = Context::from_waker(Waker::noop());
        // As with a task of its own, a bug in one call is the end of that call and not of its connection.
        match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx))) {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => drop(self.0.spawn(call)),
            Err(_) => tracing::error!("a call panicked"),
        }
    }
}
