//! How a connection's bytes and calls move, for speed: all of a connection is one task, which takes turns. In a turn it reads what is there,
//! answers a few of the calls that can be answered, writes their answers at once, and so on until all are answered.
//!
//! Left to itself, hyper makes a task of each call, though nearly all are answered without any wait, and flushes after every data frame above a
//! few hundred bytes, which a lease is; each answer would be a task to schedule and a write and a wake-up of the peer of its own. Here the calls
//! live in the connection's task ([`Calls`] is the executor that brings them there), and what is written is kept until the turn is over
//! ([`Gathered`]). A connection that ends takes its calls along, which their handlers see as a cancellation.
//!
//! What can go wrong: a peer that does not read. At most [`MOST`] bytes are kept for it; then hyper's flow control takes over. A call that
//! panics ends alone. What this deliberately does not do: let two calls of one connection run at the same time; none takes long.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::task::AtomicWaker;
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// Bytes kept at most.
const MOST: usize = 64 << 10;

/// A turn goes on while one part of the connection has something for another, this often at most: a runtime that wants its thread back says so
/// by waking, too.
const MOST_ROUNDS: u32 = 16;

/// Calls begun before the answers so far are written: the peer works on those while the next calls are answered here. With eight calls in
/// flight and all of them answered in one go, both ends sleep by turns, and waking a processor costs as much as a call (`benches/api.rs`).
const AT_ONCE: usize = 2;

/// What happens to a call.
type Call = BoxFuture<'static, ()>;

/// The connection's socket, as hyper gets it.
pub(super) struct Gathered {
    reading: OwnedReadHalf,
    writing: Arc<Mutex<Writing>>,
}

/// Where hyper puts its calls. Only the connection's task takes the lock.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Vec<Call>>>);

/// Runs the connection.
pub(super) struct Turns {
    writing: Arc<Mutex<Writing>>,
    begun: Calls,
    waiting: FuturesUnordered<Call>,
    /// Not begun yet.
    arrived: VecDeque<Call>,
    bell: Arc<Bell>,
    ring: Waker,
}

struct Writing {
    half: OwnedWriteHalf,
    kept: Vec<u8>,
    /// Of `kept`, written already.
    written: usize,
}

/// The waker within a connection. During a turn it says that there is one more round to make; between turns it wakes the task.
struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

/// Between turns.
const IDLE: u8 = 0;
/// In a turn.
const BUSY: u8 = 1;
/// Rung since.
const RUNG: u8 = 2;

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

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, Ordering::AcqRel) == IDLE {
            self.task.wake();
        }
    }
}

impl<F> Executor<F> for Calls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        // As with a task of its own, a bug in one call is the end of that call and not of its connection.
        let call = AssertUnwindSafe(call).catch_unwind().map(|outcome| {
            if outcome.is_err() {
                tracing::error!("a call panicked");
            }
        });
        self.0.lock().push(call.boxed());
    }
}

impl Turns {
    /// The socket and the executor are for hyper.
    pub(super) fn new(stream: UnixStream) -> (Self, Gathered, Calls) {
        let (reading, half) = stream.into_split();
        let writing = Arc::new(Mutex::new(Writing { half, kept: Vec::new(), written: 0 }));
        let bell = Arc::new(Bell { state: AtomicU8::new(IDLE), task: AtomicWaker::new() });
        let begun = Calls::default();
        let turns = Self {
            writing: Arc::clone(&writing),
            begun: begun.clone(),
            waiting: FuturesUnordered::new(),
            arrived: VecDeque::new(),
            ring: Waker::from(Arc::clone(&bell)),
            bell,
        };
        (turns, Gathered { reading, writing }, begun)
    }

    /// Runs the connection to its end. Cancel safe: called again it goes on. What is kept unwritten when the connection ends is nobody's any
    /// more, as a connection that ends well shuts its socket down, which writes all.
    pub(super) async fn run(&mut self, mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>) -> Result<(), Broken> {
        poll_fn(|cx| {
            self.bell.task.register(cx.waker());
            self.poll_turn(cx, connection.as_mut())
        })
        .await
    }

    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        mut connection: Pin<&mut impl Future<Output = hyper::Result<()>>>,
    ) -> Poll<Result<(), Broken>> {
        let mut rung = Context::from_waker(&self.ring);
        for _ in 0..MOST_ROUNDS {
            self.bell.state.store(BUSY, Ordering::Release);
            if let Poll::Ready(ended) = connection.as_mut().poll(&mut rung) {
                return Poll::Ready(ended.map_err(Broken::Http));
            }
            if let Poll::Ready(Err(error)) = self.writing.lock().poll_out(cx) {
                return Poll::Ready(Err(Broken::Write(error)));
            }
            self.arrived.extend(self.begun.0.lock().drain(..));
            let now = self.arrived.len().min(AT_ONCE);
            self.waiting.extend(self.arrived.drain(..now));
            while let Poll::Ready(Some(())) = self.waiting.poll_next_unpin(&mut rung) {}
            let rested = self.bell.state.compare_exchange(BUSY, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if rested && self.arrived.is_empty() {
                return Poll::Pending;
            }
        }
        // Rung in the last round as well: the rest is for the next turn, after others had theirs.
        self.bell.task.wake();
        Poll::Pending
    }
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
