//! Logs and metrics: how they are set up, and every metric's name in one place ([`metric`]).
//!
//! Logs go to stderr, one line or one JSON object per event, without colours unless stderr is a terminal; their filter can be changed while
//! running. Metrics are kept by the recorder of the Prometheus exporter and served by [`serve_metrics`] to loopback only. Nothing here knows
//! what is measured: who measures uses [`metric`].

pub mod metric;

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{Log, LogFormat};

/// What can go wrong in setting up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Not a filter; the validated configuration has none of these.
    #[error("the log filter {filter:?} is not understood")]
    Filter {
        /// As it was given.
        filter: String,
        /// The parser's words.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before.
    #[error("logging is set up already")]
    LogTwice,
    /// The filter's owner is gone.
    #[error("the log filter cannot be changed any more")]
    FilterGone(#[source] reload::Error),
    /// The recorder was installed before, or its buckets are wrong.
    #[error("the metrics recorder cannot be installed")]
    Recorder(#[source] metrics_exporter_prometheus::BuildError),
    /// The port is taken, for example.
    #[error("metrics: cannot listen on {address}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Not a loopback address; the validated configuration has none of these.
    #[error("metrics: {0} is not a loopback address")]
    NotLoopback(SocketAddr),
}

/// Changes the log filter while running.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// When the last handle is dropped, what is still queued is written.
    _writer: Arc<WorkerGuard>,
}

impl LogHandle {
    /// Of a log that nobody writes.
    #[cfg(test)]
    pub(crate) fn nobodys() -> Self {
        let (_, filter) = reload::Layer::new(EnvFilter::default());
        Self { filter, _writer: Arc::new(tracing_appender::non_blocking(io::sink()).1) }
    }

    /// Takes effect for the next event.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        self.filter.reload(parse(filter)?).map_err(TelemetryError::FilterGone)
    }
}

/// Sets up logging for the whole process; once.
pub fn init(log: &Log) -> Result<LogHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(&log.filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    // By a thread of its own: a terminal that takes no output, or a full journal, must not hold up the pool. What does not fit is dropped and
    // the pool goes on; the queue holds 128,000 lines.
    let (writer, guard) = tracing_appender::non_blocking(io::stderr());
    let done = match log.format {
        LogFormat::Text => {
            let ansi = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            registry.with(fmt::layer().with_writer(writer).with_ansi(ansi)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(writer).with_ansi(false)).try_init(),
    };
    done.map_err(|_| TelemetryError::LogTwice)?;
    Ok(LogHandle { filter: handle, _writer: Arc::new(guard) })
}

fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(filter).map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

/// Installs the recorder for the whole process, once, and describes every metric. Without it, recording a metric costs next to nothing.
pub fn install_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = builder()?.install_recorder().map_err(TelemetryError::Recorder)?;
    metric::describe_all();
    Ok(handle)
}

pub(crate) fn builder() -> Result<PrometheusBuilder, TelemetryError> {
    let mut builder = PrometheusBuilder::new();
    for (metric, buckets) in metric::BUCKETS {
        builder = builder.set_buckets_for_metric(Matcher::Full((*metric).to_owned()), buckets).map_err(TelemetryError::Recorder)?;
    }
    Ok(builder)
}

/// Binds the metrics' listener, so that a port that is taken is known at start.
pub async fn listen_metrics(address: SocketAddr) -> Result<TcpListener, TelemetryError> {
    if !address.ip().is_loopback() {
        return Err(TelemetryError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|source| TelemetryError::Listen { address, source })
}

/// Serves `/metrics` until `stop`. `refresh` sets the gauges right before each reading, so that they cannot disagree with the pool.
/// Errors only when accepting fails for good.
pub async fn serve_metrics(
    listener: TcpListener,
    handle: PrometheusHandle,
    refresh: Arc<dyn Fn() + Send + Sync>,
    stop: CancellationToken,
) -> io::Result<()> {
    let render = move || {
        refresh();
        handle.run_upkeep();
        let text = handle.render();
        std::future::ready(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
    };
    let router = axum::Router::new().route("/metrics", get(render));
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

#[cfg(test)]
mod tests;
