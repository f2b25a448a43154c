//! The end of a daemon at one exact point: from then on nothing that it does has any effect outside, though its tasks may go on for a moment.
//!
//! The point is its n-th call of the engine (not carried out, or carried out and not answered) or its n-th write to the ledger (of which nothing, or
//! a part, is on the disk). Calls that only listen are not counted.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::stream::{BoxStream, StreamExt};
use nspool::engine::{
    BuddySpec, BuildSpec, Chunks, Container, ContainerId, ContainerSummary, Credentials, Engine, EngineError, EngineEvent, EngineFuture,
    EngineInfo, Image, ImageArchive, ImageId, ImageRemoval, Network, NetworkSpec, PullStep, SizedImage, WaitOutcome,
};
use nspool::ledger::Store;

/// One daemon's.
#[derive(Debug, Default)]
pub struct Life {
    over: AtomicBool,
    /// Calls to come, the last of which is the end; 0: none is.
    calls: AtomicU64,
    /// … after it was carried out.
    answered_never: AtomicBool,
    writes: AtomicU64,
    /// So many bytes of the last write are there.
    torn: AtomicU64,
}

impl Life {
    /// It ends in its n-th call from now, before or after that is carried out.
    pub fn end_in_call(&self, n: u64, after: bool) {
        self.answered_never.store(after, Ordering::Relaxed);
        self.calls.store(n, Ordering::Relaxed);
    }

    /// It ends in its n-th write from now, of which so many bytes are written.
    pub fn end_in_write(&self, n: u64, torn: u64) {
        self.torn.store(torn, Ordering::Relaxed);
        self.writes.store(n, Ordering::Relaxed);
    }

    /// It goes on.
    pub fn spare(&self) {
        self.calls.store(0, Ordering::Relaxed);
        self.writes.store(0, Ordering::Relaxed);
    }

    /// Whether that point was reached.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Whether this is the last one.
    fn count(&self, left: &AtomicU64) -> bool {
        let last = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1);
        last && !self.over.swap(true, Ordering::Relaxed)
    }

    async fn pass<T>(&self, call: EngineFuture<'_, T>) -> Result<T, EngineError> {
        let last = !self.is_over() && self.count(&self.calls);
        if self.is_over() && !(last && self.answered_never.load(Ordering::Relaxed)) {
            return std::future::pending().await;
        }
        let answer = call.await;
        // An answer that comes after the end reaches nobody.
        if self.is_over() { std::future::pending().await } else { answer }
    }
}

/// An engine that a dead daemon cannot call.
pub struct MortalEngine {
    pub engine: Arc<dyn Engine>,
    pub life: Arc<Life>,
}

/// One that only listens.
async fn listen<T>(life: &Life, call: EngineFuture<'_, T>) -> Result<T, EngineError> {
    let answer = if life.is_over() { std::future::pending().await } else { call.await };
    if life.is_over() { std::future::pending().await } else { answer }
}

impl Engine for MortalEngine {
    fn info(&self) -> EngineFuture<'_, EngineInfo> {
        Box::pin(listen(&self.life, self.engine.info()))
    }
    fn ping(&self) -> EngineFuture<'_, ()> {
        Box::pin(listen(&self.life, self.engine.ping()))
    }
    fn image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Option<Image>> {
        Box::pin(self.life.pass(self.engine.image(reference)))
    }
    fn load_image(&self, archive: ImageArchive) -> EngineFuture<'_, ()> {
        Box::pin(self.life.pass(self.engine.load_image(archive)))
    }
    fn save_image<'a>(&'a self, reference: &'a str) -> EngineFuture<'a, Chunks> {
        Box::pin(self.life.pass(self.engine.save_image(reference)))
    }
    fn pull_image<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<&'a Credentials>,
        told: &'a (dyn Fn(PullStep) + Send + Sync),
    ) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.pull_image(reference, credentials, told)))
    }
    fn tag_image<'a>(&'a self, id: &'a ImageId, repository: &'a str, tag: &'a str) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.tag_image(id, repository, tag)))
    }
    fn images<'a>(&'a self, label: &'a str) -> EngineFuture<'a, Vec<Image>> {
        Box::pin(self.life.pass(self.engine.images(label)))
    }
    fn image_sizes(&self) -> EngineFuture<'_, Vec<SizedImage>> {
        Box::pin(self.life.pass(self.engine.image_sizes()))
    }
    fn remove_image<'a>(&'a self, name: &'a str) -> EngineFuture<'a, ImageRemoval> {
        Box::pin(self.life.pass(self.engine.remove_image(name)))
    }
    fn build_image<'a>(&'a self, spec: &'a BuildSpec, context: File, told: &'a (dyn Fn(&str) + Send + Sync)) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.build_image(spec, context, told)))
    }
    fn create<'a>(&'a self, spec: &'a BuddySpec) -> EngineFuture<'a, ContainerId> {
        Box::pin(self.life.pass(self.engine.create(spec)))
    }
    fn start<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.start(id)))
    }
    fn inspect<'a>(&'a self, id_or_name: &'a str) -> EngineFuture<'a, Container> {
        Box::pin(self.life.pass(self.engine.inspect(id_or_name)))
    }
    fn rename<'a>(&'a self, id: &'a ContainerId, name: &'a str) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.rename(id, name)))
    }
    fn remove<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.remove(id)))
    }
    fn wait<'a>(&'a self, id: &'a ContainerId) -> EngineFuture<'a, WaitOutcome> {
        Box::pin(listen(&self.life, self.engine.wait(id)))
    }
    fn list(&self) -> EngineFuture<'_, Vec<ContainerSummary>> {
        Box::pin(self.life.pass(self.engine.list()))
    }
    fn networks(&self) -> EngineFuture<'_, Vec<Network>> {
        Box::pin(self.life.pass(self.engine.networks()))
    }
    fn create_network<'a>(&'a self, spec: &'a NetworkSpec) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.create_network(spec)))
    }
    fn network_users<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, Vec<String>> {
        Box::pin(self.life.pass(self.engine.network_users(network)))
    }
    fn remove_network<'a>(&'a self, network: &'a Network) -> EngineFuture<'a, ()> {
        Box::pin(self.life.pass(self.engine.remove_network(network)))
    }
    fn events(&self) -> EngineFuture<'_, BoxStream<'static, Result<EngineEvent, EngineError>>> {
        let life = Arc::clone(&self.life);
        Box::pin(async move {
            let events = listen(&self.life, self.engine.events()).await?;
            Ok(events.take_while(move |_| std::future::ready(!life.is_over())).boxed())
        })
    }
}

/// A disk that a dead daemon cannot write to.
pub struct MortalStore<S> {
    pub store: S,
    pub life: Arc<Life>,
}

impl<S: Store> Store for MortalStore<S> {
    fn read(&self, from: u64) -> io::Result<Vec<u8>> {
        self.store.read(from)
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.life.is_over() {
            return Ok(());
        }
        let written = if self.life.count(&self.life.writes) {
            &bytes[..bytes.len().min(usize::try_from(self.life.torn.load(Ordering::Relaxed)).unwrap())]
        } else {
            bytes
        };
        self.store.write(at, written)
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        if self.life.is_over() { Ok(()) } else { self.store.truncate(length) }
    }
    fn reserve(&mut self, length: u64) -> io::Result<()> {
        if self.life.is_over() { Ok(()) } else { self.store.reserve(length) }
    }
    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.life.is_over() { Ok(()) } else { self.store.replace(bytes) }
    }
    fn keep_aside(&mut self) -> io::Result<String> {
        self.store.keep_aside()
    }
}
