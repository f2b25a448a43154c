//! What a function's container can do to a network namespace that it joins, by what it was created with.
//!
//! *Bounded* is one that, as root, can do no more than the engine's own set of capabilities and NET_ADMIN allow: whatever it leaves, an inspection at
//! the usual depth finds. What can go wrong: a new way to more power that is not known here; so whatever is not known to be harmless is not bounded.
//! What cannot be seen here: `exec --privileged` into a running container, a volume whose driver mounts /proc, defaults of podman's that were made
//! greater, and what podman leaves unmasked when asked for single paths.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Docker's own set, podman's, and what changes nothing but what an inspection looks at.
const HARMLESS: [&str; 17] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "KILL",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
];

/// Of `HostConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Powers {
    privileged: Option<bool>,
    cap_add: Option<Vec<String>>,
    /// Docker says those that it keeps from being written; podman nothing.
    readonly_paths: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    /// The runtime writes them before /proc/sys is closed to the container.
    sysctls: Option<BTreeMap<String, String>>,
}

/// Of `Mounts`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Mount {
    source: Option<String>,
}

pub(super) fn is_bounded(powers: &Powers, pid_mode: &str, mounts: &[Mount]) -> bool {
    let harmless = |cap: &String| {
        let name = cap.to_ascii_uppercase();
        HARMLESS.contains(&name.strip_prefix("CAP_").unwrap_or(&name))
    };
    // Either way /proc/sys can be written, where the namespace's settings are.
    let settings_are_kept = powers.readonly_paths.as_ref().is_none_or(|paths| paths.iter().any(|path| path == "/proc/sys"));
    let unmasked = powers.security_opt.iter().flatten().any(|option| option.starts_with("unmask"));
    let shows_proc =
        |mount: &Mount| mount.source.as_deref().is_some_and(|source| ["/", "/proc"].contains(&source) || source.starts_with("/proc/"));
    // In another's pid namespace it may get at processes that are not its own.
    let own_pids = ["", "private"].contains(&pid_mode);
    powers.privileged != Some(true)
        && powers.cap_add.iter().flatten().all(harmless)
        && powers.sysctls.as_ref().is_none_or(BTreeMap::is_empty)
        && own_pids
        && settings_are_kept
        && !unmasked
        && !mounts.iter().any(shows_proc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_harmless_is_not_bounded() {
        let bounded = |host: serde_json::Value, mounts: serde_json::Value| {
            let mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
            is_bounded(&serde_json::from_value(host).unwrap(), "", &mounts)
        };
        let docker =
            serde_json::json!({ "Privileged": false, "CapAdd": null, "ReadonlyPaths": ["/proc/bus", "/proc/sys"], "SecurityOpt": null });
        let with = |key: &str, value: serde_json::Value| {
            let mut host = docker.clone();
            host[key] = value;
            host
        };
        let none = serde_json::json!([]);
        assert!(bounded(docker.clone(), none.clone()));
        assert!(bounded(serde_json::json!({}), none.clone()), "podman says less");
        assert!(bounded(with("CapAdd", serde_json::json!(["NET_ADMIN", "CAP_NET_RAW", "net_raw"])), none.clone()));
        assert!(bounded(docker.clone(), serde_json::json!([{ "Source": "/srv/data" }, { "Source": "/processed" }, { "Type": "tmpfs" }])));
        for more in ["SYS_ADMIN", "CAP_BPF", "ALL", "CAP_OF_A_LATER_KERNEL"] {
            assert!(!bounded(with("CapAdd", serde_json::json!(["NET_ADMIN", more])), none.clone()), "{more}");
        }
        assert!(!bounded(with("Privileged", serde_json::json!(true)), none.clone()));
        assert!(!bounded(with("Sysctls", serde_json::json!({ "net.ipv4.ip_default_ttl": "7" })), none.clone()));
        assert!(bounded(with("Sysctls", serde_json::json!({})), none.clone()));
        for (mode, expected) in [("", true), ("private", true), ("host", false), ("container:abc", false)] {
            assert_eq!(is_bounded(&serde_json::from_value(docker.clone()).unwrap(), mode, &[]), expected, "{mode}");
        }
        assert!(!bounded(with("ReadonlyPaths", none.clone()), none.clone()), "systempaths=unconfined");
        assert!(!bounded(with("SecurityOpt", serde_json::json!(["unmask=ALL"])), none.clone()));
        for source in ["/", "/proc", "/proc/sys"] {
            assert!(!bounded(docker.clone(), serde_json::json!([{ "Source": source }])), "{source}");
        }
    }
}
