//! Exit codes, and what is said about an error: what was tried, what came back, what to do next.
//!
//! The codes are those of sysexits(3), so that a script or a unit can tell "try again" from "mend the configuration".

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use tonic::Code;

use crate::client::ClientError;
use crate::config::raw::Mistakes;

/// It ran, but found something: joiners left at a stop, a lease that is lost, nothing that matches.
pub const FOUND: u8 = 1;
/// The command line, or a field of a request.
pub const USAGE: u8 = 64;
/// The daemon, or the engine, cannot be reached.
pub const UNAVAILABLE: u8 = 69;
/// A bug in nspool.
pub const SOFTWARE: u8 = 70;
/// Try again later.
pub const TEMPFAIL: u8 = 75;
/// Not allowed.
pub const NOPERM: u8 = 77;
/// Mistakes in the configuration.
pub const CONFIG: u8 = 78;
/// As a shell has it: the program is there, and cannot be started.
pub const NOT_EXECUTABLE: u8 = 126;
/// As a shell has it: there is no such program.
pub const NO_PROGRAM: u8 = 127;

/// An error with an exit code of its own and words for people, for where no typed error says it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// `code` is one of this module's.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What clap has to say: help and version are no errors.
pub(super) fn of_usage(error: &clap::Error) -> ExitCode {
    // A closed pipe while printing the help is nobody's concern.
    _ = error.print();
    let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if asked_for { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
}

/// Says an error, once, with its whole chain.
pub(super) fn of_result(result: anyhow::Result<ExitCode>) -> ExitCode {
    let error = match result {
        Ok(code) => return code,
        Err(error) => error,
    };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    // Nobody can be told when stderr is closed.
    _ = writeln!(io::stderr(), "{}", message(&error));
    ExitCode::from(code(&error))
}

/// Whoever read our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.code;
    }
    if error.is::<Mistakes>() {
        return CONFIG;
    }
    error.downcast_ref::<ClientError>().map_or(SOFTWARE, code_of_client)
}

fn code_of_client(error: &ClientError) -> u8 {
    match error {
        ClientError::BadEndpoint { .. } => USAGE,
        ClientError::NoRuntime | ClientError::BadReply { .. } => SOFTWARE,
        ClientError::Unreachable { .. } if io_kind(error) == Some(io::ErrorKind::PermissionDenied) => NOPERM,
        ClientError::Unreachable { .. } | ClientError::Lost { .. } | ClientError::Deadline { .. } => UNAVAILABLE,
        ClientError::Refused { code, reason, .. } => code_of_refusal(*code, reason),
    }
}

fn code_of_refusal(code: Code, reason: &str) -> u8 {
    match reason {
        "POOL_EMPTY" | "QUOTA" | "STARTING" | "CORDONED" | "DRAINING" => return TEMPFAIL,
        "LEASE_LOST" | "LEASE_ENDED" | "UNKNOWN_TOKEN" | "UNKNOWN_SLOT" | "UNKNOWN_LEASE" => return FOUND,
        _ => {}
    }
    match code {
        Code::Unavailable | Code::DeadlineExceeded => UNAVAILABLE,
        Code::ResourceExhausted | Code::Aborted => TEMPFAIL,
        Code::PermissionDenied | Code::Unauthenticated => NOPERM,
        Code::InvalidArgument | Code::OutOfRange => USAGE,
        Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists | Code::Cancelled => FOUND,
        Code::Ok | Code::Unknown | Code::Internal | Code::Unimplemented | Code::DataLoss => SOFTWARE,
    }
}

fn message(error: &anyhow::Error) -> String {
    let mut text = format!("nspool: {error}");
    let client = error.downcast_ref::<ClientError>();
    if let Some(words) = client.and_then(system_words) {
        text.push_str(": ");
        text.push_str(&words);
    } else if client.is_none() {
        for cause in error.chain().skip(1) {
            text.push_str(&format!(": {cause}"));
        }
    }
    if let Some(advice) = client.and_then(advice) {
        text.push_str("\n  ");
        text.push_str(&advice);
    }
    text
}

/// The innermost cause: between it and our own words there are only the layers of the transport.
fn system_words(error: &ClientError) -> Option<String> {
    let chain = std::iter::successors(std::error::Error::source(error), |error| error.source());
    chain.last().map(ToString::to_string)
}

fn io_kind(error: &ClientError) -> Option<io::ErrorKind> {
    let chain = std::iter::successors(std::error::Error::source(error), |error| error.source());
    chain.filter_map(|error| error.downcast_ref::<io::Error>()).last().map(io::Error::kind)
}

/// What to do next.
fn advice(error: &ClientError) -> Option<String> {
    match error {
        ClientError::BadEndpoint { .. } => Some("Write it like unix:/run/nspool/nspool.sock (--endpoint, NSPOOL_ENDPOINT).".into()),
        ClientError::Unreachable { .. } if io_kind(error) == Some(io::ErrorKind::PermissionDenied) => {
            Some("The socket is for root and its group (usually nspool): use sudo, or join that group.".into())
        }
        ClientError::Unreachable { .. } => Some(
            "Is the daemon there? `systemctl status nspool` says so; `nspool serve` starts one by hand. Another socket: --endpoint.".into(),
        ),
        ClientError::Lost { .. } | ClientError::Deadline { .. } => {
            Some("Whether it was done is not known. `nspool usage` and the daemon's log (`journalctl -u nspool`) say more.".into())
        }
        ClientError::Refused { reason, retry_after, .. } => advice_on_refusal(reason, *retry_after),
        ClientError::NoRuntime | ClientError::BadReply { .. } => None,
    }
}

fn advice_on_refusal(reason: &str, retry_after: Option<std::time::Duration>) -> Option<String> {
    let advice = match reason {
        "POOL_EMPTY" => "Wait for a slot with --wait, or keep more of them ready: `nspool usage`, `nspool resize --ready N`.",
        "QUOTA" => "Release a lease first: `nspool leases` lists them. The quota is pool.quota_per_uid.",
        "STARTING" => "The pool is filling for the first time: `nspool usage` shows how far it is.",
        "ENGINE_AWAY" => "The daemon cannot reach its container engine: `nspool usage` has the engine's words.",
        "CORDONED" | "DRAINING" => "`nspool uncordon` lets it hand out again.",
        "NOT_RECORDED" => "The state folder ([state] dir) cannot be written; see the daemon's log.",
        "STOPPING" => "The daemon is on its way out: `systemctl status nspool`.",
        "LEASE_LOST" => "The namespace is gone or not to be trusted: release the lease and allocate another.",
        "LEASE_ENDED" | "UNKNOWN_TOKEN" | "UNKNOWN_LEASE" => "`nspool leases` lists those that stand.",
        "UNKNOWN_SLOT" => "`nspool slots` lists them.",
        "UNKNOWN_NETWORK" => "`nspool usage` lists the pool's networks.",
        "NO_ENGINE" => "Images are a container engine's: `nspool usage` shows what this daemon works with.",
        "REGISTRY_DENIED" => {
            "Give the daemon credentials for it ([registries] in its configuration, or its Docker config file), or bring them with --username."
        }
        "IMAGE_UNKNOWN" => "Is the reference right, with registry and tag?",
        "REGISTRY_BUSY" => "The registry limits how often it is asked; with an account it may allow more.",
        "TOO_MANY_FETCHES" => "`nspool image list` shows what is being fetched; [images] queue is the bound.",
        "DISK_FULL" => "The engine's disk has no room for it: `docker system df`, or podman's.",
        "FETCH_FAILED" => "`nspool image list --failures` has the last ones; the daemon's log has all.",
        "PRIVATE_IMAGE" => "`docker rmi nspool.local/private:<id>` gives it to everybody.",
        "PUSH_FAILED" => "The daemon's log has more of what the registry says.",
        "NOT_ALLOWED" => "It takes root, the daemon's own uid, or one of [api] admin_uids.",
        _ => "",
    };
    let retry = retry_after.map(|after| format!("Try again in {}.", crate::config::value::show_duration(rounded(after))));
    let words: Vec<String> = Some(advice.to_owned()).filter(|advice| !advice.is_empty()).into_iter().chain(retry).collect();
    if words.is_empty() { None } else { Some(words.join(" ")) }
}

fn rounded(duration: std::time::Duration) -> std::time::Duration {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    std::time::Duration::from_millis(if millis >= 1000 { millis.next_multiple_of(1000) } else { millis.max(1) })
}
