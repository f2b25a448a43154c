//! What systemd sees and gives: notifications, the watchdog, inherited sockets. Once is enough: no engine takes part.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::support::daemon::TestDaemon;
use crate::support::engines::docker;

/// Reads notifications until one has this line; answers all lines of that one.
fn notified(socket: &UnixDatagram, line: &str) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen = Vec::new();
    while Instant::now() < deadline {
        let mut buffer = [0; 4096];
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let lines: Vec<String> = String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned).collect();
        if lines.iter().any(|told| told.starts_with(line)) {
            return lines;
        }
        seen.extend(lines);
    }
    panic!("{line} was not told, but {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn systemd_hears_of_readiness_reload_stop_and_the_heartbeat() {
    let mut daemon = TestDaemon::prepare(docker(), &["pool.ready = 1"]);
    let path = daemon.dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut command = daemon.command(&[]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    daemon.spawn(command);
    notified(&socket, "READY=1");
    daemon.settled(1).await;
    let status = notified(&socket, "STATUS=1 of 1 ready");
    assert_eq!(status.len(), 1, "{status:?}");
    notified(&socket, "WATCHDOG=1");
    notified(&socket, "WATCHDOG=1");
    daemon.signal("HUP");
    let reloading = notified(&socket, "RELOADING=1");
    assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
    notified(&socket, "READY=1");
    daemon.signal("TERM");
    notified(&socket, "STOPPING=1");
    assert_eq!(daemon.exit_code(Duration::from_secs(20)).await, 0);
    // Under systemd `auto` keeps: the next start goes on with the same buddy.
    let kept = daemon.buddies();
    assert_eq!(kept.len(), 1);
    daemon.launch().await;
    daemon.settled(1).await;
    assert_eq!(daemon.buddies(), kept);
    assert_eq!(daemon.stop().await, 0);
    assert_eq!(daemon.containers(), [""; 0], "without systemd it removes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inherited_socket_is_used_and_stays() {
    let mut daemon = TestDaemon::prepare(docker(), &["pool.ready = 1"]);
    let passed = daemon.dir.path().join("passed");
    let configured = std::mem::replace(&mut daemon.socket, passed.clone());
    let command = daemon.command(&["systemd-socket-activate", "--listen", &passed.display().to_string()]);
    daemon.spawn(command);
    // The launcher becomes the daemon at the first connection.
    daemon.settled(1).await;
    assert!(!configured.exists(), "passed sockets go before configured ones");
    assert_eq!(daemon.stop().await, 0, "{}", daemon.log());
    assert!(passed.exists(), "it is systemd's");
    assert_eq!(daemon.containers(), [""; 0]);
}
