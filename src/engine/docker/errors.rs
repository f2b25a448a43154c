//! What an engine's refusal means: from operation, status and words to an [`ErrorClass`].
//!
//! Everything here is pure. The words are those of Docker 20.10 to 28 and podman 4.3 to 5; a refusal whose words are not known here is
//! [`ErrorClass::Refused`], an answer that did not come, was not understood or says that the engine could not tell is [`ErrorClass::Unknown`].

use std::error::Error as _;
use std::io;

use bollard::errors::Error;

use super::retry_after;
use crate::engine::{EngineError, ErrorClass};

/// Longest message kept, in bytes.
const LONGEST: usize = 512;

/// Turns bollard's error into ours.
pub(super) fn convert(operation: &'static str, subject: &str, error: &Error) -> EngineError {
    let (class, status, message) = if let Error::DockerResponseServerError { status_code, message } = error {
        (classify(operation, subject, Some(*status_code), message), Some(*status_code), message.clone())
    } else if let Error::DockerStreamError { error } = error {
        // Inside a stream whose status was 200: a pull's or a load's failure.
        (classify(operation, subject, None, error), None, error.clone())
    } else if let Some(failed) = connect_error(error) {
        let (class, message) = connect_failure(failed.source());
        (class, None, message)
    } else {
        (ErrorClass::Unknown, None, chain(error))
    };
    EngineError { operation, class, subject: one_line(subject), message: one_line(&message), status }
}

/// A refusal that this side has made itself, before anything was sent.
pub(super) fn refused(operation: &'static str, class: ErrorClass, subject: &str, message: &str) -> EngineError {
    EngineError { operation, class, subject: one_line(subject), message: one_line(message), status: None }
}

fn connect_error(error: &Error) -> Option<&hyper_util::client::legacy::Error> {
    if let Error::HyperLegacyError { err } = error { Some(err).filter(|err| err.is_connect()) } else { None }
}

/// Nothing was sent, so nothing was done; only whether a retry can help differs.
fn connect_failure(source: Option<&(dyn std::error::Error + 'static)>) -> (ErrorClass, String) {
    let mut cause = source;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            let class = if io.kind() == io::ErrorKind::PermissionDenied { ErrorClass::NotAllowed } else { ErrorClass::Away };
            return (class, format!("cannot connect to the engine's socket: {io}"));
        }
        cause = error.source();
    }
    (ErrorClass::Away, "cannot connect to the engine's socket".to_owned())
}

/// The class of a refusal. `status` is `None` for one inside a stream.
fn classify(operation: &str, subject: &str, status: Option<u16>, message: &str) -> ErrorClass {
    let words = message.to_lowercase();
    let says = |any: &[&str]| any.iter().any(|word| words.contains(word));
    if says(&["no space left", "disk quota exceeded"]) {
        return ErrorClass::DiskFull;
    }
    match operation {
        "create" | "rename" if says(&["already in use"]) => ErrorClass::NameTaken,
        "create" | "start" if says(NO_ADDRESSES) => ErrorClass::NoAddresses,
        "create" if says(&["network"]) && says(&["not found"]) => ErrorClass::NetworkMissing,
        "create" if says(&["no such container"]) => ErrorClass::NetworkMissing,
        "create" if status == Some(404) || says(&["image not known", "no such image"]) => ErrorClass::ImageMissing,
        "start" if says(&["network"]) && says(&["not found", "cannot join network", "could not find network"]) => {
            ErrorClass::NetworkMissing
        }
        // The container itself, or the one that it joins: the engine names the one it misses.
        "start" if status == Some(404) && !words.contains(&subject.to_lowercase()) => ErrorClass::NetworkMissing,
        "remove" if says(&["dependent containers"]) => ErrorClass::HasDependents,
        // podman reads the process's files for its answer, and the process has just ended.
        "inspect" if says(&["no such process"]) => ErrorClass::Unknown,
        "pull" if status == Some(429) || says(REGISTRY_BUSY) => ErrorClass::RegistryBusy { retry_after: retry_after::of_words(message) },
        "pull" if matches!(status, Some(401 | 403)) || says(REGISTRY_DENIED) => ErrorClass::RegistryDenied,
        "pull" if status == Some(404) || says(REGISTRY_UNKNOWN) => ErrorClass::RegistryUnknown,
        // podman reads all images for each step, and one of them has just gone.
        "build" if says(&["layer not known", "image not known"]) => ErrorClass::ImageMissing,
        "pull" | "load" | "build" => ErrorClass::Refused,
        _ if status == Some(404) || says(&["no such container"]) => ErrorClass::NotFound,
        _ => ErrorClass::Refused,
    }
}

/// Docker (libnetwork), podman with CNI (host-local), podman with netavark.
const NO_ADDRESSES: &[&str] = &[
    "no available ipv4 addresses",
    "no available ipv6 addresses",
    "no ip addresses available",
    "no available addresses",
    "could not find free ip",
];

/// What registries and engines say for "these credentials will not do", and for "some are wanted".
const REGISTRY_DENIED: &[&str] = &[
    "no basic auth credentials",
    "unauthorized",
    "authentication required",
    "access denied",
    "access to the resource is denied",
    "requested access is denied",
    "invalid username/password",
    "incorrect username or password",
    "403 (forbidden)",
    "status code 401",
];

/// What they say for a 429.
const REGISTRY_BUSY: &[&str] = &["toomanyrequests", "too many requests", "429 response"];

/// What they say for an image that the registry has not.
const REGISTRY_UNKNOWN: &[&str] = &["manifest unknown", "name unknown", "name_unknown", "repository name not known"];

/// The error and its causes, once each: bollard's `Display` leaves the causes out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    text
}

/// Without line ends and other control characters, without the user part of any URL, at most [`LONGEST`] bytes.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let mut line = words.into_iter().map(without_userinfo).collect::<Vec<_>>().join(" ");
    if line.len() > LONGEST {
        let end = (0..=LONGEST - '…'.len_utf8()).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

/// `https://user:secret@host/` becomes `https://…@host/`.
fn without_userinfo(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let authority = rest.find('/').unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => word.to_owned(),
    }
}

/// Takes a secret out of a message, should a registry have repeated it.
pub(super) fn without_secret(mut error: EngineError, secret: &str) -> EngineError {
    if !secret.is_empty() {
        error.message = error.message.replace(secret, "…");
    }
    error
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_engines_words_have_their_classes() {
        use ErrorClass as C;
        let id = "e6d884b234f0";
        let cases: &[(&str, Option<u16>, &str, ErrorClass)] = &[
            ("create", Some(404), "No such image: nope:1", C::ImageMissing),
            ("create", Some(404), "no such image: docker.io/library/nope:1: image not known", C::ImageMissing),
            ("create", Some(409), "Conflict. The container name \"/b1\" is already in use by container \"61e5\".", C::NameTaken),
            ("create", Some(500), "creating container storage: the container name \"b1\" is already in use by e6d8", C::NameTaken),
            ("rename", Some(409), "Conflict. The container name \"/b1\" is already in use by container \"61e5\".", C::NameTaken),
            ("create", Some(500), "unable to find network with name or ID nonet: network not found", C::NetworkMissing),
            ("create", Some(500), "looking up container to share net namespace with: no such container", C::NetworkMissing),
            ("start", Some(404), "network nonet not found", C::NetworkMissing),
            ("start", Some(404), "No such container: nspool-default-7-1042-3", C::NetworkMissing),
            ("start", Some(404), "No such container: e6d884b234f0", C::NotFound),
            ("start", Some(404), "no container with name or ID \"e6d884b234f0\" found: no such container", C::NotFound),
            ("start", Some(409), "cannot join network of a non running container: 61e5", C::NetworkMissing),
            (
                "start",
                Some(500),
                "failed to create endpoint x on network y: no available IPv4 addresses on this network's pools",
                C::NoAddresses,
            ),
            (
                "start",
                Some(500),
                "IPAM error: failed to allocate for range 0: no IP addresses available in range set: 10.0.0.1",
                C::NoAddresses,
            ),
            ("start", Some(500), "mkdir /data/x: no space left on device", C::DiskFull),
            ("create", Some(500), "write /x: no space left on device", C::DiskFull),
            ("inspect", Some(404), "No such container: x", C::NotFound),
            ("inspect", Some(500), "read /proc/4711/cgroup: no such process", C::Unknown),
            ("remove", Some(404), "no container with ID or name \"x\" found: no such container", C::NotFound),
            (
                "remove",
                Some(500),
                "container e6d8 has dependent containers which must be removed before it: 61e5: container already exists",
                C::HasDependents,
            ),
            ("pull", None, "Get \"http://127.0.0.1:5000/v2/a/manifests/1\": no basic auth credentials", C::RegistryDenied),
            ("pull", Some(500), "Get \"http://127.0.0.1:40193/v2/\": dial tcp 127.0.0.1:40193: connect: connection refused", C::Refused),
            ("pull", Some(404), "manifest for 127.0.0.1:5000/a:1 not found: manifest unknown", C::RegistryUnknown),
            (
                "pull",
                None,
                "reading manifest 1 in 127.0.0.1:5000/a: name unknown: repository name not known to registry",
                C::RegistryUnknown,
            ),
            ("pull", Some(500), "toomanyrequests: retry-after: 2s", C::RegistryBusy { retry_after: Some(Duration::from_secs(2)) }),
            ("pull", None, "received unexpected HTTP status: 429 Too Many Requests", C::RegistryBusy { retry_after: None }),
            ("start", Some(500), "error while dialing containerd", C::Refused),
            (
                "build",
                None,
                "checking if cached image exists from a previous build: getting top layer info: layer not known",
                C::ImageMissing,
            ),
            ("build", None, "The command '/bin/sh -c false' returned a non-zero code: 1", C::Refused),
        ];
        for (operation, status, message, class) in cases {
            assert_eq!(classify(operation, id, *status, message), *class, "{operation} {status:?} {message}");
        }
    }

    #[test]
    fn messages_are_one_bounded_line_without_user_and_password() {
        assert_eq!(one_line("a\n\tb \u{1b}[31mc"), "a b [31mc");
        assert_eq!(one_line("Get \"https://bob:s3cret@reg.example/v2/\": no"), "Get \"https://…@reg.example/v2/\": no");
        assert_eq!(one_line("https://reg.example/a@b"), "https://reg.example/a@b");
        let long = one_line(&"é".repeat(1000));
        assert!(long.len() <= LONGEST && long.len() > LONGEST - 4 && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn a_socket_that_is_not_there_is_away_and_one_that_is_forbidden_is_not_allowed() {
        for (kind, class) in [
            (io::ErrorKind::NotFound, ErrorClass::Away),
            (io::ErrorKind::ConnectionRefused, ErrorClass::Away),
            (io::ErrorKind::PermissionDenied, ErrorClass::NotAllowed),
        ] {
            assert_eq!(connect_failure(Some(&io::Error::from(kind))).0, class);
        }
    }

    #[test]
    fn a_secret_that_comes_back_is_not_repeated() {
        let error = refused("pull", ErrorClass::Refused, "x", "bad password hunter2 for bob");
        assert_eq!(without_secret(error.clone(), "hunter2").message, "bad password … for bob");
        assert_eq!(without_secret(error.clone(), ""), error);
    }
}
