//! What the kernel has and shows, read from its files. What has to be tried is in [`super::trials`].

use std::io;
use std::path::Path;

use super::finding::{Check, Finding};
use super::host::Host;
use crate::config::Config;
use crate::netns::managed::host::Forwarding;

/// With pidfd_open, on which everything rests; and with a network namespace's cookie, which makes the proof of a renewal a stronger one.
const NEEDED: (u32, u32) = (5, 3);
const WANTED: (u32, u32) = (5, 14);
/// Beyond that many processes one more unreadable one says nothing new.
const LOOKED_AT: usize = 4096;

pub(super) fn check(host: &Host, config: &Config) -> Vec<Finding> {
    vec![
        version(host),
        all_processes(host),
        others_namespaces(host),
        seccomp(host),
        cgroups(host),
        forwarding(host, config),
        ipv6(host, config),
        user_namespaces(host),
    ]
}

fn version(host: &Host) -> Finding {
    let check = Check::of("version", "pidfd_open is from 5.3; 5.14 tells one network namespace from all others until a reboot");
    let release = match host.read("/proc/sys/kernel/osrelease") {
        Ok(release) => release,
        Err(error) => return check.unknown(&error),
    };
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < NEEDED => {
            check.missing(release).remedy("apt-get install linux-image-amd64, and reboot")
        }
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < WANTED => check.note(release),
        (Some(Ok(_)), Some(Ok(_))) => check.ok(release),
        _ => check.note(format!("{release}: cannot be told")),
    }
}

fn all_processes(host: &Host) -> Finding {
    let check = Check::of("proc", "who is in a namespace is looked for among all processes");
    let hidden = host.mount_of(Path::new("/proc")).map(|mount| mount.options).unwrap_or_default();
    let hidden = hidden
        .into_iter()
        .find(|option| option.strip_prefix("hidepid=").is_some_and(|value| !["0", "off"].contains(&value)) || option == "subset=pid");
    let remedies = |finding: Finding| {
        let finding = finding.remedy("mount -o remount,hidepid=0 /proc");
        finding.remedy("ProtectProc=default and ProcSubset=all (in the unit)")
    };
    match (host.exists("/proc/1"), hidden) {
        (false, hidden) => {
            let how = hidden.map_or_else(String::new, |hidden| format!(" ({hidden})"));
            remedies(check.missing(format!("/proc does not show process 1{how}")))
        }
        // Nothing is hidden from who may trace.
        (true, Some(hidden)) => {
            check.note(format!("/proc is mounted with {hidden}: all processes are seen by its group, and by who has CAP_SYS_PTRACE"))
        }
        (true, None) => check.ok("/proc shows all processes"),
    }
}

fn others_namespaces(host: &Host) -> Finding {
    let check =
        Check::of("others_namespaces", "a process whose namespaces cannot be read may be in a slot: nothing would ever be free again");
    let folder = match std::fs::read_dir(host.path("/proc")) {
        Ok(folder) => folder,
        Err(error) => return check.unknown(&error),
    };
    let pids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).take(LOOKED_AT);
    let (mut read, mut refused) = (0_u32, 0_u32);
    for pid in pids {
        match std::fs::metadata(host.path(format!("/proc/{pid}/ns/net"))) {
            Ok(_) => read += 1,
            // A hardened init's need not be readable: it is in the host's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && pid != 1 => refused += 1,
            // It ended.
            Err(_) => {}
        }
    }
    match (read, refused) {
        (0, 0) => check.missing("no process's namespaces can be read").remedy("a kernel with CONFIG_NET_NS"),
        (_, 0) => check.ok(format!("those of all {read} processes can be read")),
        (_, refused) if host.is_root() => check
            .missing(format!("those of {refused} processes cannot be read"))
            .remedy("CapabilityBoundingSet=CAP_SYS_PTRACE (in the unit)"),
        (_, refused) => check.note(format!("those of {refused} processes cannot be read as {}", host.user())).remedy("sudo nspool doctor"),
    }
}

fn seccomp(host: &Host) -> Finding {
    let check = Check::of("seccomp", "the engine puts buddies that are renewed behind a filter of nspool's");
    match host.read("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.split_whitespace().any(|action| action == "errno") => check.ok("filters are possible"),
        // The folder is younger than the filters.
        Ok(_) | Err(_) if host.own("Seccomp").is_some() => check.note("there is seccomp; whether filters are possible is not told"),
        Ok(_) | Err(_) => check.warning("the kernel has none").remedy("a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn cgroups(host: &Host) -> Finding {
    let check = Check::of("cgroup", "the engine limits each buddy's memory and processes");
    if let Ok(controllers) = host.read("/sys/fs/cgroup/cgroup.controllers") {
        let has = |name: &str| controllers.split_whitespace().any(|controller| controller == name);
        let lacks: Vec<&str> = ["memory", "pids"].into_iter().filter(|name| !has(name)).collect();
        return match lacks.is_empty() {
            true => check.ok("version 2, with memory and pids"),
            false => check
                .warning(format!("version 2, without {}", lacks.join(" and ")))
                .remedy("cgroup_enable=memory (on the kernel's command line)"),
        };
    }
    let has = |name: &str| host.exists(format!("/sys/fs/cgroup/{name}"));
    match (has("memory"), has("pids")) {
        (true, true) => check.ok("version 1, with memory and pids"),
        (false, false) => check.warning("none is mounted below /sys/fs/cgroup").remedy("mount -t cgroup2 none /sys/fs/cgroup"),
        _ => check.warning("version 1, without memory or pids").remedy("cgroup_enable=memory (on the kernel's command line)"),
    }
}

fn forwarding(host: &Host, config: &Config) -> Finding {
    let check = Check::of("ip_forward", "without it the slots of managed networks reach nobody but the host");
    let is_on = match host.number("/proc/sys/net/ipv4/ip_forward") {
        Some(number) => number != 0,
        None => return check.note("cannot be seen: there is no /proc/sys/net/ipv4/ip_forward"),
    };
    match (is_on, config.managed.is_empty(), config.forwarding()) {
        (true, _, _) => check.ok("on"),
        (false, true, _) => {
            check.note("off, which matters for managed networks only: none is configured, and engines switch it on for theirs")
        }
        (false, false, Forwarding::SwitchedOn) => check.ok("off: serve switches it on"),
        (false, false, Forwarding::Told) => check
            .warning("off, and serve may not switch it on")
            .remedy("sysctl -w net.ipv4.ip_forward=1")
            .remedy("forwarding = true, in [networks.NAME]"),
    }
}

fn ipv6(host: &Host, config: &Config) -> Finding {
    let check = Check::of("ipv6", "for managed networks with subnet6");
    let wanted = config.managed.iter().any(|managed| managed.network.ipv6.is_some());
    let tell = |seen: &str| if wanted { check.missing(seen) } else { check.note(seen) };
    match (host.exists("/proc/net/if_inet6"), host.number("/proc/sys/net/ipv6/conf/default/disable_ipv6")) {
        (false, _) => tell("the kernel has none").remedy("without ipv6.disable=1 on the kernel's command line"),
        (true, Some(1)) => tell("switched off for new links").remedy("sysctl -w net.ipv6.conf.default.disable_ipv6=0"),
        (true, _) => check.ok("there"),
    }
}

/// Nothing of nspool needs them as long as it runs as root.
fn user_namespaces(host: &Host) -> Finding {
    let check = Check::of("unprivileged_namespaces", "only for running without root");
    let settings = [
        ("kernel.unprivileged_userns_clone", "/proc/sys/kernel/unprivileged_userns_clone", 0, 1),
        ("user.max_user_namespaces", "/proc/sys/user/max_user_namespaces", 0, 15_000),
        ("kernel.apparmor_restrict_unprivileged_userns", "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", 1, 0),
    ];
    let forbidding: Vec<_> = settings.into_iter().filter(|(_, path, forbids, _)| host.number(path) == Some(*forbids)).collect();
    if forbidding.is_empty() {
        return check.ok("no setting forbids them");
    }
    let seen: Vec<String> = forbidding.iter().map(|(name, _, forbids, _)| format!("{name} = {forbids}")).collect();
    let finding = check.note(format!("forbidden by {}", seen.join(", ")));
    forbidding.iter().fold(finding, |finding, (name, _, _, allows)| finding.remedy(format!("sysctl -w {name}={allows}")))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config::raw::{Sources, load};

    fn managed(extra: &str) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!("[pool]\nnetworks = [\"fast\"]\n[networks.fast]\nkind = \"managed\"\n{extra}\n");
        std::fs::write(file.path(), text).unwrap();
        load(&Sources { file: Some(file.path().to_owned()), ..Sources::default() }).unwrap().config
    }

    #[test]
    fn an_old_kernel_is_told_by_what_it_lacks() {
        let of = |release: &str| version(&MadeUp::new().with("/proc/sys/kernel/osrelease", release).host).status;
        assert_eq!(
            ["4.19.0-27-amd64", "5.2.21", "5.3.0", "5.10.0-28", "5.14-rc1", "6.1.0-18-amd64", "10.0"].map(of),
            [Status::Missing, Status::Missing, Status::Note, Status::Note, Status::Ok, Status::Ok, Status::Ok]
        );
        assert_eq!([of("x"), version(&MadeUp::new().host).status], [Status::Note, Status::Note]);
    }

    #[test]
    fn hidden_processes_are_missing_unless_one_sees_them_all_the_same() {
        let mount = |option: &str| format!("24 21 0:7 / /proc rw,nosuid - proc proc rw{option}");
        let of = |made_up: MadeUp| all_processes(&made_up.host);
        let seen = |option| MadeUp::new().with("/proc/1/stat", "").with("/proc/self/mountinfo", &mount(option));
        assert_eq!(of(seen("")).status, Status::Ok);
        assert_eq!(of(seen(",hidepid=off")).status, Status::Ok);
        assert_eq!(of(seen(",hidepid=invisible")).status, Status::Note);
        let finding = of(MadeUp::new().with("/proc/self/mountinfo", &mount(",hidepid=2")));
        assert_eq!((finding.status, finding.remedies.len()), (Status::Missing, 2));
        assert!(finding.seen.contains("hidepid=2"), "{finding:?}");
    }

    #[test]
    fn namespaces_that_nobody_can_read_are_missing() {
        assert_eq!(others_namespaces(&MadeUp::new().with("/proc/7/stat", "").host).status, Status::Missing);
        assert_eq!(others_namespaces(&MadeUp::new().with("/proc/7/ns/net", "").host).status, Status::Ok);
    }

    #[test]
    fn limits_want_their_controllers() {
        let of = |made_up: MadeUp| cgroups(&made_up.host).status;
        assert_eq!(of(MadeUp::new().with("/sys/fs/cgroup/cgroup.controllers", "cpu memory pids")), Status::Ok);
        assert_eq!(of(MadeUp::new().with("/sys/fs/cgroup/cgroup.controllers", "cpu pids")), Status::Warning);
        assert_eq!(of(MadeUp::new().with_folder("/sys/fs/cgroup/memory").with_folder("/sys/fs/cgroup/pids")), Status::Ok);
        assert_eq!(of(MadeUp::new()), Status::Warning);
    }

    #[test]
    fn a_kernel_without_filters_is_a_warning() {
        let of = |made_up: MadeUp| seccomp(&made_up.host).status;
        assert_eq!(of(MadeUp::new()), Status::Warning);
        assert_eq!(of(MadeUp::new().with("/proc/self/status", "Name:\tx\nSeccomp:\t0\n")), Status::Note);
        assert_eq!(of(MadeUp::new().with("/proc/sys/kernel/seccomp/actions_avail", "kill_process errno log")), Status::Ok);
    }

    #[test]
    fn forwarding_matters_for_managed_networks_that_may_not_switch_it_on() {
        let of = |text: &str, config: &Config| forwarding(&MadeUp::new().with("/proc/sys/net/ipv4/ip_forward", text).host, config).status;
        assert_eq!(of("0", &Config::default()), Status::Note);
        assert_eq!(of("0", &managed("")), Status::Ok);
        assert_eq!(of("0", &managed("forwarding = false")), Status::Warning);
        assert_eq!(of("1", &managed("forwarding = false")), Status::Ok);
    }

    #[test]
    fn ipv6_is_needed_where_a_subnet_of_it_is_configured() {
        let none = MadeUp::new();
        assert_eq!(ipv6(&none.host, &Config::default()).status, Status::Note);
        assert_eq!(ipv6(&none.host, &managed("subnet6 = \"fd00:213::/64\"")).status, Status::Missing);
        let off = MadeUp::new().with("/proc/net/if_inet6", "").with("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        assert_eq!(ipv6(&off.host, &managed("subnet6 = \"fd00:213::/64\"")).status, Status::Missing);
        assert_eq!(ipv6(&MadeUp::new().with("/proc/net/if_inet6", "").host, &Config::default()).status, Status::Ok);
    }

    #[test]
    fn each_setting_that_forbids_user_namespaces_is_named() {
        let made_up = MadeUp::new()
            .with("/proc/sys/kernel/unprivileged_userns_clone", "0")
            .with("/proc/sys/user/max_user_namespaces", "0")
            .with("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1");
        let finding = user_namespaces(&made_up.host);
        assert_eq!((finding.status, finding.remedies.len()), (Status::Note, 3));
        assert_eq!(finding.remedies[0], "sysctl -w kernel.unprivileged_userns_clone=1");
        assert_eq!(user_namespaces(&MadeUp::new().host).status, Status::Ok);
    }
}
