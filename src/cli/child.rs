//! One child in a leased namespace: what `run` and `exec` have in common. Signals are handed on, its exit code is the result, and the lease goes back.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use super::exit::{self, Failure};
use super::output::say;
use super::signals::{Interrupted, Signals};
use crate::client::{Client, Lease, Request};
use crate::proto;

/// Who the child is, in words for people.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    /// e.g. `the program`.
    pub(super) name: &'static str,
    /// What a second signal means.
    pub(super) at_once: &'static str,
    /// It is in our process group, so that what is typed there reaches both.
    pub(super) shares_our_terminal: bool,
}

/// Takes a namespace, unless a signal comes first.
pub(super) async fn allocate(client: &Client, request: Request, signals: &mut Signals) -> anyhow::Result<Lease> {
    tokio::select! {
        biased;
        lease = client.allocate(request) => Ok(lease?),
        Interrupted { name, .. } = signals.next() => {
            let message = format!("{name} before a namespace was there; if one was granted meanwhile, its lease ends by itself");
            Err(Failure::new(exit::TEMPFAIL, message).into())
        }
    }
}

/// Waits for the child. A first SIGINT or SIGTERM is handed on, a second one kills.
pub(super) async fn supervise(mut child: Child, signals: &mut Signals, who: Who) -> io::Result<ExitStatus> {
    let mut told = false;
    loop {
        let received = tokio::select! {
            biased;
            status = child.wait() => return status,
            received = signals.next() => received,
        };
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) else { continue };
        hand_on(pid, received, told, who);
        told = true;
    }
}

fn hand_on(pid: Pid, received: Interrupted, again: bool, who: Who) {
    let Interrupted { signal, name } = received;
    say(&format!("nspool: {name}: {}", if again { who.at_once } else { "handed on; once more ends at once" }));
    // A Ctrl-C has been sent to the whole group. Twice is something else than once, to many programs.
    if !again && signal == Signal::INT && who.shares_our_terminal && in_foreground() {
        return;
    }
    if let Err(error) = kill_process(pid, if again { Signal::KILL } else { signal }) {
        say(&format!("nspool: cannot signal {}: {error}", who.name));
    }
}

/// Whether a terminal sends our process group what is typed. Not known: no.
fn in_foreground() -> bool {
    std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_in_foreground(&stat))
}

fn is_in_foreground(stat: &str) -> bool {
    // After the name, which may have anything in it: state, parent, group, session, terminal, and the terminal's foreground group.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    matches!(fields[..], [_, _, group, _, terminal, foreground, ..] if terminal != "0" && group == foreground)
}

/// As a shell says it.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The child's exit code is the result, so a failed release is only said; the guard tries it again.
pub(super) async fn give_back(lease: Lease) {
    let lease_id = lease.lease_id.clone();
    match lease.release().await {
        Ok(response) if response.outcome() == proto::ReleaseOutcome::JoinerStillThere => {
            say("nspool: somebody is still in the namespace; its slot waits until nobody is (`nspool slots` shows who)");
        }
        Ok(_) => {}
        Err(error) => say(&format!("nspool: lease {lease_id} could not be released: {error}; it ends by itself")),
    }
}

#[cfg(test)]
mod tests {
    use super::is_in_foreground;

    #[test]
    fn the_foreground_is_read_from_the_kernels_line() {
        assert!(is_in_foreground("7 (a) b) S 1 7 7 34816 7 4194560 0"));
        assert!(!is_in_foreground("7 (a) S 1 7 7 34816 9 4194560 0"), "in the background");
        assert!(!is_in_foreground("7 (a) S 1 0 7 0 -1 4194560 0"), "no terminal");
        assert!(!is_in_foreground("") && !is_in_foreground("7 (a) S 1"));
    }
}
