//! Daemons, one after the other, on one scripted engine, one disk and one socket; and connections that are cut exactly when their daemon
//! ends.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nspool::config::{Config, Reuse};
use nspool::daemon::{Daemon, DaemonError, Parts, Signal, Stopped};
use nspool::engine::fake::FakeWorld;
use nspool::image::gate::Source;
use nspool::ledger::{Identity, Ledger};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::disk::Disk;
use crate::mortal::{Life, MortalEngine, MortalStore};

pub struct House {
    pub world: Arc<FakeWorld>,
    config: Config,
    disk: Disk,
    path: PathBuf,
    dir: tempfile::TempDir,
    /// The present daemon's.
    life: Mutex<Arc<Life>>,
}

/// A running daemon.
pub struct Running {
    pub life: Arc<Life>,
    signals: mpsc::Sender<Signal>,
    task: JoinHandle<Result<Stopped, DaemonError>>,
}

impl House {
    pub fn new(seed: u64, reuse: Reuse) -> Arc<Self> {
        let mut config = Config::default();
        (config.pool.ready, config.pool.max, config.pool.reuse) = (3, 6, Some(reuse));
        config.pacer.rate = None;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let world = FakeWorld::new(seed);
        world.forget_calls();
        Arc::new(Self { world, config, disk: Disk::default(), path, dir, life: Mutex::default() })
    }

    /// The next daemon.
    pub fn start(&self) -> Running {
        let life = Arc::new(Life::default());
        *self.life.lock() = Arc::clone(&life);
        let identity = Identity {
            boot_id: "boot".into(),
            pool: self.config.pool.name.clone(),
            now: self.world.kernel().since_boot(),
            engine: String::new(),
        };
        let store = MortalStore { store: self.disk.clone(), life: Arc::clone(&life) };
        let ledger = Ledger::on(Box::new(store), &identity).unwrap();
        let _old = std::fs::remove_file(&self.path);
        let parts = Parts {
            engine: Arc::new(MortalEngine { engine: self.world.engine(), life: Arc::clone(&life) }),
            kernel: self.world.kernel(),
            links: Some(self.world.links()),
            mounter: None,
            source: Source::from_config(&self.config.placeholder, &[]).unwrap(),
            listeners: vec![UnixListener::bind(&self.path).unwrap()],
            locks: self.dir.path().to_owned(),
            ledger: Some(ledger),
            keep: true,
        };
        let (signals, received) = mpsc::channel(4);
        let daemon = Daemon::assemble(self.config.clone(), parts);
        Running { life, signals, task: tokio::spawn(daemon.run(received)) }
    }

    /// A connection of its own, to whichever daemon is there; made again when that one has ended.
    pub fn channel(self: &Arc<Self>) -> Channel {
        let house = Arc::clone(self);
        let connect = move |_| {
            let (path, life) = (house.path.clone(), Arc::clone(&house.life.lock()));
            async move { UnixStream::connect(path).await.map(|stream| TokioIo::new(Wire { stream, life })) }
        };
        Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(connect))
    }
}

impl Running {
    /// After its end: of what it still does, nothing has any effect.
    pub async fn bury(self) {
        self.task.abort();
        let _gone = self.task.await;
    }

    /// A stop that leaves everything to the next one.
    pub async fn stop(self) {
        self.signals.send(Signal::Stop).await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), self.task).await.expect("the daemon ends").unwrap().unwrap();
    }
}

/// Brings no answer of a daemon that has ended.
struct Wire {
    stream: UnixStream,
    life: Arc<Life>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.life.is_over() {
            buf.set_filled(before);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
