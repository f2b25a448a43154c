//! The helper process alone, asked by the test instead of a daemon: how it ends, and what it says then. What it does is in `tests/e2e/helper.rs`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

mod support;

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use support::daemon::{LIMIT, NSPOOL};
use support::wait_for;

/// Of a packet that is a message's last one: that, and the message's number.
const HEADER: usize = 9;

/// Ended and reaped with the test.
struct Process(Child);

impl Process {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn ended(&mut self) -> ExitStatus {
        wait_for("its end", LIMIT, || self.0.try_wait().unwrap())
    }

    fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = (self.0.kill(), self.0.wait());
    }
}

struct Helper {
    process: Process,
    socket: OwnedFd,
    asked: u64,
    /// Of its lock.
    folder: tempfile::TempDir,
}

impl Helper {
    /// It has begun, with that log filter.
    fn start(filter: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (socket, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut command = Command::new(NSPOOL);
        let process = command.args(["helper", "work"]).stdin(its).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It has its own by now.
        drop(command);
        let mut helper = Self { process: Process(process), socket, asked: 0, folder };
        let lock = helper.folder.path().join("lock");
        let begun = helper.ask(
            &json!({"Begin": {"host": null, "folders": null, "must_mount": false, "lock": lock, "log": {"filter": filter, "json": false}}}),
        );
        assert!(begun["Ok"].is_object(), "{begun}");
        helper
    }

    /// A message of one packet.
    fn tell(&mut self, body: &[u8], descriptors: &[BorrowedFd<'_>]) {
        self.asked += 1;
        let mut packet = vec![1];
        packet.extend_from_slice(&self.asked.to_ne_bytes());
        packet.extend_from_slice(body);
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        sendmsg(&self.socket, &[IoSlice::new(&packet)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// Asks for a verb, and waits for its answer.
    fn ask(&mut self, verb: &Value) -> Value {
        self.tell(verb.to_string().as_bytes(), &[]);
        let mut buffer = [0; 4096];
        let (length, _) = recv(&self.socket, &mut buffer, RecvFlags::empty()).unwrap();
        let (header, body) = buffer[..length].split_at_checked(HEADER).expect("it has ended");
        assert_eq!(header[1..], self.asked.to_ne_bytes(), "it answers something else");
        serde_json::from_slice(body).unwrap()
    }

    /// Its exit code, and its log.
    fn ended(mut self) -> (Option<i32>, String) {
        let code = self.process.ended().code();
        let mut log = String::new();
        self.process.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (code, log)
    }
}

#[test]
fn what_it_does_not_understand_is_in_the_log_before_it_ends() {
    for (body, why) in [(&b"what?"[..], "no verb: "), (b"{\"Dance\":{}}", "Dance")] {
        let mut helper = Helper::start("error");
        helper.tell(body, &[]);
        let (code, log) = helper.ended();
        assert!(code == Some(1) && log.contains("is not understood") && log.contains(why), "{code:?}: {log}");
    }
    let helper = Helper::start("error");
    rustix::io::write(&helper.socket, b"short").unwrap();
    let (code, log) = helper.ended();
    assert!(code == Some(1) && log.contains("what came is too short"), "{code:?}: {log}");
}

#[test]
fn it_writes_what_the_filter_lets_through_that_it_was_told_last() {
    for (filter, is_written) in [("off", false), ("error", true)] {
        let mut helper = Helper::start("off");
        for filter in [if is_written { "off" } else { "error" }, filter] {
            assert_eq!(helper.ask(&json!({"Filter": {"filter": filter}})), Value::Null);
        }
        helper.tell(b"what?", &[]);
        let (_, log) = helper.ended();
        assert_eq!(log.contains("is not understood"), is_written, "{filter}: {log}");
    }
}

/// A process that obeys no order to move.
fn deaf() -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' 42; echo deaf; exec sleep 1000"]);
    let mut child = Process(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut said = [0; 5];
    child.0.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"deaf\n");
    child
}

#[test]
fn a_renewal_that_takes_its_time_does_not_hold_up_its_end() {
    let (mut helper, deaf) = (Helper::start("error"), deaf());
    let pidfd = pidfd_open(Pid::from_child(&deaf.0), PidfdFlags::empty()).unwrap();
    let network = File::open(format!("/proc/{}/ns/net", deaf.id())).unwrap();
    // All that it starts by itself are there when it answers.
    assert_eq!(helper.ask(&json!("Ping")), Value::Null);
    let before = helper.process.threads();
    let within = json!({"secs": 2 * LIMIT.as_secs(), "nanos": 0});
    let renew = json!({"Renew": {"use_number": 2, "within": within}}).to_string();
    helper.tell(renew.as_bytes(), &[pidfd.as_fd(), network.as_fd()]);
    wait_for("the thread of the renewal", LIMIT, || (helper.process.threads() > before).then_some(()));
    // As the daemon's end closes it.
    rustix::net::shutdown(&helper.socket, rustix::net::Shutdown::Both).unwrap();
    assert_eq!(helper.ended(), (Some(0), String::new()));
}
