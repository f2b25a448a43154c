//! What is seen from outside: metrics that a strict reader takes, logs that programs can read, and no token in either.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::support::daemon::{TestDaemon, text};
use crate::support::engines::TestEngine;
use crate::support::registry::reserved_port;

on_both_engines!(metrics_agree_with_usage, no_token_is_told);

/// A configuration line, and where the metrics are then.
pub(super) fn listener() -> (String, String) {
    let (port, address) = reserved_port();
    // As long as the tests run: the daemon may be started again.
    std::mem::forget(port);
    (format!("metrics.listen = {address:?}"), address)
}

pub(super) fn metrics(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    body.to_owned()
}

/// The sum over all samples of that name whose labels contain `label`.
pub(super) fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let samples = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    samples.filter(|line| line.contains(label)).map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

async fn metrics_agree_with_usage(engine: &TestEngine) {
    let (line, address) = listener();
    let daemon = TestDaemon::start(engine, &[&line]).await;
    daemon.settled(2).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let done = daemon.allocate(&client).await;
    client.release(&done.token, false).await.unwrap();
    let over = |u: &nspool::proto::Usage| u.ready == 2 && u.leased == 1 && u.vacating + u.renewing + u.quarantined + u.retiring == 0;
    let usage = daemon.usage("two ready beside the lease, and nothing left of the other", over).await;
    let text = metrics(&address);
    let states = [("vacant", usage.vacant), ("ready", 2), ("leased", 1), ("vacating", 0), ("quarantined", 0), ("retiring", 0)];
    for (state, count) in states {
        assert_eq!(sum(&text, "nspool_slots", &format!("state=\"{state}\"")), f64::from(count), "{state}\n{text}");
    }
    for (name, value) in [("nspool_target", usage.target), ("nspool_max", usage.max), ("nspool_waiting", 0), ("nspool_engine_up", 1)] {
        assert_eq!(sum(&text, name, ""), f64::from(value), "{name}");
    }
    assert_eq!(sum(&text, "nspool_image_ready", ""), 1.0);
    assert_eq!(sum(&text, "nspool_allocations_total", "outcome=\"granted\""), 2.0);
    assert_eq!(sum(&text, "nspool_releases_total", "outcome=\"returned\""), 1.0);
    assert!(sum(&text, "nspool_engine_calls_total", "operation=\"create\"") >= 3.0);
    assert!(sum(&text, "nspool_fill_seconds_count", "") >= 3.0);
    assert!(!text.contains(&lease.token));
    lint(&text);
}

fn lint(metrics: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's prometheus package, is installed");
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = [text(&output.stdout), text(&output.stderr)].concat();
    assert!(output.status.success() && words.is_empty(), "{words}\n{metrics}");
}

async fn no_token_is_told(engine: &TestEngine) {
    let (line, address) = listener();
    let mut daemon = TestDaemon::start(engine, &["log.filter = \"trace\"", "log.format = \"json\"", "pool.ready = 1", &line]).await;
    let client = daemon.client();
    let lease = daemon.allocate(&client).await;
    let wrong = "0123456789abcdef0123456789abcdef";
    assert!(client.renew(&lease.token, None).await.is_err());
    assert!(client.release(wrong, false).await.is_err());
    let lists = [daemon.json(&["leases"]), daemon.json(&["slots"]), daemon.json(&["usage"])];
    assert_eq!(lists[0][0]["lease_id"].as_str(), Some(lease.lease_id.as_str()));
    let told = metrics(&address);
    client.release(&lease.token, false).await.unwrap();
    client.release(&lease.token, false).await.unwrap();
    drop(client);
    assert_eq!(daemon.stop().await, 0);
    let log = daemon.log();
    for (what, text) in [("the log", &log), ("the metrics", &told), ("a list", &format!("{lists:?}"))] {
        assert!(!text.contains(&lease.token) && !text.contains(wrong), "{what} tells a token");
    }
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
    }
    let ready = log.lines().find(|line| line.contains("buddy ready")).unwrap();
    let ready: serde_json::Value = serde_json::from_str(ready).unwrap();
    assert!(ready["slot"].is_u64() && ready["generation"].is_u64(), "{ready}");
}
