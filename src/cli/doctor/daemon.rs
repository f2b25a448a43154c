//! Whether the daemon is set up to be started, whether one runs, and whether whoever asks may talk to it.
//!
//! It starts nothing: a socket that systemd holds for a daemon that does not run is not connected to, as that would start it.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::finding::{Check, Finding};
use super::host::Host;
use super::units::Unit;
use crate::causes::with_causes;
use crate::client::{Client, ClientError, DEFAULT_ENDPOINT};
use crate::config::Config;

/// The group of the sockets, unless another is configured.
const GROUP: &str = "nspool";
/// Of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn check(host: &Host, config: &Config, endpoint: &str) -> Vec<Finding> {
    let units = [Unit::read(host, "nspool.service"), Unit::read(host, "nspool.socket")];
    let [_, by_socket] = &units;
    let mut findings = vec![of_systemd(host), of_units(host, &units), of_group(host, config, by_socket.is_some())];
    let endpoint = match config.api.listen.first() {
        Some(listen) if endpoint == DEFAULT_ENDPOINT => format!("unix:{}", listen.display()),
        Some(_) | None => endpoint.to_owned(),
    };
    findings.push(of_daemon(host, &endpoint, by_socket.as_ref()).await);
    findings
}

fn is_booted(host: &Host) -> bool {
    host.exists("/run/systemd/system")
}

fn of_systemd(host: &Host) -> Finding {
    let check = Check::of("systemd", "it starts the daemon again, watches it, and keeps its socket meanwhile");
    let first = host.read("/proc/1/comm").unwrap_or_default();
    match is_booted(host) {
        true => check.ok("it runs this host"),
        false => check
            .note(format!("it does not run this host (process 1 is {first:?}): something else has to start serve"))
            .remedy("nspool serve"),
    }
}

fn of_units(host: &Host, units: &[Option<Unit>; 2]) -> Finding {
    let check = Check::of("units", "systemctl knows the daemon by them");
    let there: Vec<String> = units.iter().flatten().map(|unit| unit.path.display().to_string()).collect();
    match there.len() {
        2 => check.ok(there.join(", ")),
        0 if !is_booted(host) => check.note("not installed, and of no use here"),
        0 => check.note("not installed").remedy("make install && systemctl daemon-reload"),
        _ => check.warning(format!("only {}", there.join(""))).remedy("make install && systemctl daemon-reload"),
    }
}

fn of_group(host: &Host, config: &Config, has_socket_unit: bool) -> Finding {
    let check = Check::of("group", "who is in it may take namespaces");
    let name = config.api.group.as_deref().unwrap_or(GROUP);
    let groups = host.read("/etc/group").unwrap_or_default();
    if groups.lines().any(|line| line.split(':').next() == Some(name)) {
        return check.ok(name);
    }
    let seen = format!("there is no group {name}");
    let finding = match (&config.api.group, has_socket_unit) {
        (Some(_), _) => check.missing(format!("{seen}, which is configured: serve does not start")),
        (None, true) => check.warning(format!("{seen}, which nspool.socket names: it does not start")),
        (None, false) => check.note(format!("{seen}: the socket is root's alone")),
    };
    finding.remedy(format!("groupadd --system {name}"))
}

/// Whether systemd runs the service, by its cgroup.
fn is_active(host: &Host) -> bool {
    let groups = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];
    groups.iter().any(|group| host.exists(format!("{group}/system.slice/nspool.service")))
}

async fn of_daemon(host: &Host, endpoint: &str, by_socket: Option<&Unit>) -> Finding {
    let check = Check::of("daemon", "it answers the agents' calls");
    let named = endpoint.trim_start_matches("unix:");
    let named = PathBuf::from(format!("/{}", named.trim_start_matches('/')));
    let path = host.path(&named);
    let shown = named.display();
    match path.symlink_metadata() {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return start(check.note(format!("none runs: there is no {shown}")), is_booted(host) && by_socket.is_some());
        }
        Err(error) => return not_allowed(host, check, &format!("{shown}: {error}")),
    }
    let listens = by_socket.is_some_and(|unit| unit.last("ListenStream").map(Path::new) == Some(named.as_path()));
    if is_booted(host) && listens && !is_active(host) {
        return check.note(format!("none runs; systemd holds {shown} and starts one with the first call")).remedy("systemctl start nspool");
    }
    if let Err(Errno::ACCESS | Errno::PERM) = accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS) {
        return not_allowed(host, check, &format!("{shown} may not be used as {}", host.user()));
    }
    ask(host, check, &path, &named).await
}

fn start(finding: Finding, has_units: bool) -> Finding {
    finding.remedy(if has_units { "systemctl enable --now nspool.socket nspool" } else { "nspool serve" })
}

fn not_allowed(host: &Host, check: Check, seen: &str) -> Finding {
    check.warning(seen).remedy(format!("usermod -aG {GROUP} {}", host.user())).remedy("sudo nspool doctor")
}

async fn ask(host: &Host, check: Check, path: &Path, named: &Path) -> Finding {
    let shown = named.display();
    let asked = async { Client::connect(&format!("unix:{}", path.display()))?.with_timeout(host.limit).info().await };
    let late = || {
        let finding = check.missing(format!("{shown} takes connections, but nothing answers within {:?}", host.limit));
        finding.remedy("systemctl restart nspool").remedy("journalctl -u nspool")
    };
    match tokio::time::timeout(host.limit, asked).await {
        Err(_) | Ok(Err(ClientError::Deadline { .. })) => late(),
        Ok(Ok(info)) if info.version == VERSION => check.ok(format!("{} answers at {shown}, for the pool {}", info.version, info.pool)),
        Ok(Ok(info)) => {
            let finding = check.note(format!("{} answers at {shown}; this program is {VERSION}", info.version));
            finding.remedy("nspool restart-plan && systemctl restart nspool")
        }
        Ok(Err(ClientError::Unreachable { .. })) => start(check.note(format!("none runs: nobody listens on {shown}")), false),
        Ok(Err(
            error @ (ClientError::BadEndpoint { .. }
            | ClientError::NoRuntime
            | ClientError::Lost { .. }
            | ClientError::Refused { .. }
            | ClientError::BadReply { .. }),
        )) => check.warning(format!("{shown}: {}", with_causes(&error))).remedy("systemctl status nspool"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config::Api;

    const ENDPOINT: &str = DEFAULT_ENDPOINT;
    const SOCKET_UNIT: &str = include_str!("../../../systemd/nspool.socket");

    async fn found(made_up: &MadeUp, name: &str) -> Finding {
        check(&made_up.host, &Config::default(), ENDPOINT).await.into_iter().find(|finding| finding.name == name).unwrap()
    }

    #[tokio::test]
    async fn without_systemd_and_daemon_all_is_a_note() {
        let made_up = MadeUp::new();
        let findings = check(&made_up.host, &Config::default(), ENDPOINT).await;
        assert_eq!(findings.iter().map(|finding| finding.name).collect::<Vec<_>>(), ["systemd", "units", "group", "daemon"]);
        assert!(findings.iter().all(|finding| finding.status == Status::Note), "{findings:?}");
    }

    #[tokio::test]
    async fn a_group_that_is_configured_or_that_the_socket_names_has_to_be_there() {
        let configured = Config { api: Api { group: Some("agents".into()), ..Api::default() }, ..Config::default() };
        let made_up = MadeUp::new().with("/etc/group", "root:x:0:\nagent:x:7:\n");
        let group = |made_up: &MadeUp, config: &Config, has_unit| of_group(&made_up.host, config, has_unit).status;
        assert_eq!(group(&made_up, &configured, false), Status::Missing);
        assert_eq!(group(&made_up, &Config::default(), true), Status::Warning);
        assert_eq!(group(&made_up.with("/etc/group", "agents:x:8:ann\nnspool:x:9:"), &configured, false), Status::Ok);
    }

    #[tokio::test]
    async fn one_of_the_units_alone_is_a_warning() {
        let made_up = MadeUp::new().with("/etc/systemd/system/nspool.socket", SOCKET_UNIT);
        assert_eq!(found(&made_up, "units").await.status, Status::Warning);
        let made_up = made_up.with("/etc/systemd/system/nspool.service", "");
        assert_eq!(found(&made_up, "units").await.status, Status::Ok);
    }

    #[tokio::test]
    async fn a_socket_that_systemd_holds_is_left_alone() {
        let made_up = MadeUp::new()
            .with_folder("/run/systemd/system")
            .with("/usr/lib/systemd/system/nspool.socket", SOCKET_UNIT)
            .with_folder("/run/nspool");
        let listener = std::os::unix::net::UnixListener::bind(made_up.host.path("/run/nspool/nspool.sock")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let finding = found(&made_up, "daemon").await;
        assert!(finding.status == Status::Note && finding.seen.contains("systemd holds"), "{finding:?}");
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody has connected");
        // It runs, and does not answer.
        let made_up = made_up.with_folder("/sys/fs/cgroup/system.slice/nspool.service");
        let finding = found(&made_up, "daemon").await;
        assert!(finding.status == Status::Missing && finding.seen.contains("nothing answers"), "{finding:?}");
        assert!(listener.accept().is_ok());
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_none() {
        let made_up = MadeUp::new().with_folder("/run/nspool");
        drop(std::os::unix::net::UnixListener::bind(made_up.host.path("/run/nspool/nspool.sock")).unwrap());
        let finding = found(&made_up, "daemon").await;
        assert!(finding.status == Status::Note && finding.seen.contains("nobody listens"), "{finding:?}");
    }
}
