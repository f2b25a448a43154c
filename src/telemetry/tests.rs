//! Names keep Prometheus' rules, and what is recorded can be read at `/metrics`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use metric::Kind;

/// What `promtool check metrics` complains about.
#[test]
fn names_keep_the_rules() {
    let names: BTreeSet<_> = metric::ALL.iter().map(|(name, _, _)| name).collect();
    assert_eq!(names.len(), metric::ALL.len());
    for (name, kind, help) in metric::ALL {
        assert!(name.starts_with("nspool_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(!help.is_empty(), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert_eq!(name.ends_with("_seconds"), *kind == Kind::Histogram, "{name}");
        for bad in ["_milliseconds", "_ms", "_count", "_sum", "_bucket", "_info_"] {
            assert!(!name.ends_with(bad), "{name}");
        }
        let buckets = metric::BUCKETS.iter().find(|(of, _)| of == name);
        assert_eq!(buckets.is_some(), *kind == Kind::Histogram, "{name}");
        assert!(buckets.is_none_or(|(_, bounds)| bounds.is_sorted()), "{name}");
    }
}

#[tokio::test]
async fn what_is_recorded_is_served_with_fresh_gauges() {
    let recorder = builder().unwrap().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        metric::describe_all();
        metrics::counter!(metric::ALLOCATIONS, "outcome" => "granted").increment(2);
        metrics::histogram!(metric::FILL).record(0.2);
    });
    let slots = metrics::with_local_recorder(&recorder, || metrics::gauge!(metric::SLOTS, "state" => "ready", "network" => "bridge"));
    let refreshed = Arc::new(AtomicU32::new(0));
    let counted = refreshed.clone();
    let refresh = Arc::new(move || slots.set(f64::from(counted.fetch_add(1, Ordering::Relaxed) + 1)));

    let listener = listen_metrics("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = serve_metrics(listener, handle, refresh, stop.clone());
    let reading = async {
        let first = read(address, "/metrics").await;
        let second = read(address, "/metrics").await;
        let other = read(address, "/").await;
        stop.cancel();
        (first, second, other)
    };
    let (served, (first, second, other)) = tokio::join!(serving, reading);
    served.unwrap();
    assert!(first.contains("# HELP nspool_allocations_total Allocate calls by outcome."), "{first}");
    assert!(first.contains("nspool_allocations_total{outcome=\"granted\"} 2"), "{first}");
    assert!(first.contains("nspool_fill_seconds_bucket{le=\"0.25\"} 1"), "{first}");
    assert!(first.contains("nspool_slots{state=\"ready\",network=\"bridge\"} 1"), "{first}");
    assert!(second.contains("nspool_slots{state=\"ready\",network=\"bridge\"} 2"), "{second}");
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
}

async fn read(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn metrics_stay_on_loopback_and_a_taken_port_is_told() {
    let everywhere = listen_metrics("0.0.0.0:0".parse().unwrap()).await;
    assert!(matches!(everywhere, Err(TelemetryError::NotLoopback(_))));
    let taken = listen_metrics("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let again = listen_metrics(taken.local_addr().unwrap()).await;
    assert!(matches!(again, Err(TelemetryError::Listen { .. })));
}

/// The only test of the process-wide subscriber: it can be set once.
#[test]
fn the_log_filter_changes_while_running() {
    let handle = init(&Log { format: LogFormat::Json, filter: "error".into() }).unwrap();
    assert!(!tracing::enabled!(tracing::Level::INFO));
    handle.set_filter("info").unwrap();
    assert!(tracing::enabled!(tracing::Level::INFO));
    assert!(matches!(handle.set_filter("nspool=loud"), Err(TelemetryError::Filter { .. })));
    handle.set_filter("off").unwrap();
    assert!(matches!(init(&Log::default()), Err(TelemetryError::LogTwice)));
}
