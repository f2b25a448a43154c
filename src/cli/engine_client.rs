//! The engine's own command-line client (`docker`, `podman`), as a child: what people would have typed themselves.
//!
//! nspool's daemon never uses it; it is here for `run` and `whois`, which do by hand what an agent does over the engine's API.

use std::io;

use tokio::process::Command;

use super::exit::{self, Failure};
use crate::proto;

/// A command of the client of that engine, pointed at its endpoint.
pub(super) fn command(engine: &proto::Engine) -> Result<Command, Failure> {
    let command = match engine.kind.as_str() {
        "docker" => {
            let mut command = Command::new("docker");
            command.args(["-H", &engine.endpoint]);
            command
        }
        "podman" => {
            let mut command = Command::new("podman");
            command.args(["--remote", "--url", &engine.endpoint]);
            command
        }
        "native" => {
            let message = "this pool has no container engine whose client could be asked\n  \
                           `nspool exec -- COMMAND` runs a plain program in one of its namespaces; docs/joining.md has other ways in.";
            return Err(Failure::new(exit::UNAVAILABLE, message));
        }
        other => return Err(Failure::new(exit::UNAVAILABLE, format!("nspool knows no command-line client of the engine {other:?}"))),
    };
    Ok(command)
}

/// Why the client could not be started, and what to do.
pub(super) fn not_started(engine: &proto::Engine, error: &io::Error) -> Failure {
    let hint = if error.kind() == io::ErrorKind::NotFound { "; it must be installed and in PATH" } else { "" };
    Failure::new(exit::UNAVAILABLE, format!("cannot start the command-line client of {}: {error}{hint}", engine.kind))
}
