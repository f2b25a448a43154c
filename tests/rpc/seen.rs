//! What is seen from outside: metrics by outcome, one log line per event, and never a token.

use std::io::Write;
use std::sync::{Arc, Mutex};

use metrics_exporter_prometheus::PrometheusBuilder;
use nspool::proto::CordonRequest;

use crate::served::*;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Takes nothing, and never says so for good. Whether anybody wants an event is remembered for all threads, so one that another test meets before there is
/// anybody, in the moment in which this one comes, would be lost to it.
struct Nobody;

impl tracing::Subscriber for Nobody {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> tracing::subscriber::Interest {
        tracing::subscriber::Interest::sometimes()
    }

    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        false
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::Id) {}
    fn exit(&self, _: &tracing::Id) {}
}

/// Everything runs on this test's thread, so that its own recorder sees all and nothing else.
#[tokio::test]
async fn outcomes_are_counted() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let served = served_one().await;
    let mut agent = served.agent().await;
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    allocate(&mut agent, request("a")).await.unwrap();
    allocate(&mut agent, request("b")).await.unwrap_err();
    let mut waiter = agent.clone();
    let wait = tokio::spawn(async move { allocate(&mut waiter, waiting("c", SOON)).await });
    served.until(|state| state.usage().waiting == 1).await;
    release(&mut agent, &lease.token).await.unwrap();
    soon(wait).await.unwrap().unwrap();
    release(&mut agent, &lease.token).await.unwrap();
    release(&mut agent, "never seen").await.unwrap_err();
    let seen = recorder.handle().render();
    for line in [
        r#"nspool_allocations_total{outcome="granted"} 2"#,
        r#"nspool_allocations_total{outcome="repeated"} 1"#,
        r#"nspool_allocations_total{outcome="pool_empty"} 1"#,
        r#"nspool_releases_total{outcome="returned"} 1"#,
        r#"nspool_releases_total{outcome="already_released"} 1"#,
        r#"nspool_releases_total{outcome="unknown_token"} 1"#,
        "nspool_allocate_wait_seconds_count 1",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line} is not in:\n{seen}");
    }
}

#[tokio::test]
async fn logs_name_the_lease_and_the_peer_and_never_the_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(Nobody).unwrap();
    let _guard = tracing::subscriber::set_default(subscriber);
    // The client is in the same process, and the protocol's own traces hold the frames: only ours count.
    let ours = |log: &Log| log.text().lines().filter(|line| line.contains("nspool::")).collect::<Vec<_>>().join("\n");
    let served = served().await;
    let (mut agent, mut operator) = (served.agent().await, served.operator().await);
    let lease = allocate(&mut agent, request("a")).await.unwrap();
    release(&mut agent, &lease.token).await.unwrap();
    operator.cordon(CordonRequest { reason: "maintenance".into() }).await.unwrap();
    let text = ours(&log);
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("no {word:?} in:\n{text}"));
    let pid = format!("peer_pid={}", std::process::id());
    let lease_id = format!("lease_id={}", lease.lease_id);
    for part in ["DEBUG", "owner=\"agent-1\"", "slot=", "generation=", "use_number=1", &lease_id, &pid] {
        assert!(line(": allocated ").contains(part), "{part} in {}", line(": allocated "));
        assert!(line(": released ").contains(part), "{part} in {}", line(": released "));
    }
    assert!(line("cordoned by an operator").contains("INFO") && line("cordoned by an operator").contains("peer_uid=0"));
    assert!(!text.contains(&lease.token), "{text}");
}
