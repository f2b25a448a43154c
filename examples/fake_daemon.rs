//! The whole daemon on the scripted engine, for the tests of clients in any language: real sockets, real API, containers in memory.
//!
//!     cargo run --example fake_daemon -- unix:/tmp/nspool.sock
//!
//! Ends at SIGTERM like the real one; kill it with SIGKILL to see what a client makes of that.

use std::process::ExitCode;

use nspool::config::Config;
use nspool::daemon::{Daemon, Parts, Signal};
use nspool::engine::fake::FakeWorld;
use nspool::image::gate::Source;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let endpoint = std::env::args().nth(1).unwrap_or_default();
    let Some(path) = endpoint.strip_prefix("unix:") else {
        anyhow::bail!("usage: fake_daemon unix:/path/to/socket");
    };
    let mut config = Config::default();
    config.pacer.rate = None;
    // A killed one leaves its socket; whoever starts another one on the same path means it.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let world = FakeWorld::new(u64::from(std::process::id()));
    world.forget_calls();
    let locks = tempfile::tempdir()?;
    let parts = Parts {
        engine: world.engine(),
        kernel: world.kernel(),
        links: None,
        mounter: None,
        source: Source::from_config(&config.placeholder, &[])?,
        listeners: vec![UnixListener::bind(path)?],
        locks: locks.path().to_owned(),
        ledger: None,
        keep: false,
    };
    let (tell, told) = mpsc::channel(1);
    let mut terminate = signal(SignalKind::terminate())?;
    let daemon = Daemon::assemble(config, parts).run(told);
    let stop = async {
        terminate.recv().await;
        tell.send(Signal::Stop).await
    };
    let (stopped, _) = tokio::join!(daemon, stop);
    Ok(if stopped?.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
