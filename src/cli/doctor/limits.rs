//! Whether the host's limits have room for as many slots as the configuration allows.
//!
//! What a slot takes is counted generously; where a limit is met, filling stops there, with the kernel's or the engine's words in the log.

use super::finding::{Check, Finding, Status};
use super::host::Host;
use super::units::Unit;
use crate::config::Config;

/// Connections of callers, sockets, logs.
const DESCRIPTORS_BESIDES: u64 = 256;
/// A buddy, and what the engine runs beside it: a shim with a dozen threads, or a monitor.
const TASKS_PER_SLOT: u64 = 16;
/// The unit's own: the daemon's threads and the helper's.
const TASKS_OF_DAEMON: u64 = 256;
/// The old namespace of a slot that is renewed goes a moment later.
const NAMESPACES_PER_SLOT: u64 = 2;
/// The container's root, its namespace's file, its shared memory, and the lease's file.
const MOUNTS_PER_SLOT: u64 = 4;
/// The slot's entry for its gateway, and the host's for the slot: all namespaces share one table.
const NEIGHBOURS_PER_SLOT: u64 = 2;

pub(super) fn check(host: &Host, config: &Config) -> Vec<Finding> {
    let slots = u64::from(config.pool.max);
    let mut findings = vec![descriptors(host, config)];
    findings.extend([tasks(host, "pid_max", slots), tasks(host, "threads_max", slots), cgroup_tasks(host)]);
    findings.extend([namespaces(host, slots), mounts(host, slots), neighbours(host, slots)]);
    findings.extend(connections(host));
    findings
}

/// Like `Max open files            1024                 524288               files`.
fn own_descriptors(host: &Host) -> Option<u64> {
    let limits = host.read("/proc/self/limits").ok()?;
    number(limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?)
}

fn number(word: &str) -> Option<u64> {
    if ["unlimited", "infinity", "max"].contains(&word) { Some(u64::MAX) } else { word.parse().ok() }
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "no limit".to_owned() } else { limit.to_string() }
}

fn descriptors(host: &Host, config: &Config) -> Finding {
    let check = Check::of("nofile", "each slot holds a descriptor of its process, of the engine's wait and of each shared namespace");
    let per_slot = 2 + config.pool.namespaces.len() as u64;
    let need = |slots: u32| u64::from(slots) * per_slot + DESCRIPTORS_BESIDES;
    let (ready, max) = (need(config.pool.ready), need(config.pool.max));
    // With a unit the daemon has its limit, whatever this shell's is. `soft:hard` is a way to write it.
    let of_unit = Unit::read(host, "nspool.service").and_then(|unit| number(unit.last("LimitNOFILE")?.split(':').next()?));
    let (limit, whose) = match (of_unit, own_descriptors(host)) {
        (Some(limit), _) => (limit, "in the unit"),
        (None, Some(limit)) => (limit, "of this process"),
        (None, None) => return check.note("cannot be seen: /proc/self/limits does not say"),
    };
    let seen = format!("{} {whose}; pool.max = {} wants {max}, {per_slot} each", shown(limit), config.pool.max);
    let status = if limit >= max {
        Status::Ok
    } else if limit >= ready {
        Status::Warning
    } else {
        Status::Missing
    };
    let finding = check.is(status, seen);
    if status == Status::Ok {
        finding
    } else {
        finding.remedy(format!("LimitNOFILE={max} (in the unit)")).remedy(format!("ulimit -n {max}"))
    }
}

/// `used` of `limit`, and what all slots may take besides.
fn against(check: Check, limit: u64, used: u64, wanted: u64, setting: &str) -> Finding {
    let needed = used.saturating_add(wanted);
    let now = if used == 0 { String::new() } else { format!(", besides {used} now") };
    let seen = format!("{}; pool.max wants {wanted}{now}", shown(limit));
    match limit >= needed {
        true => check.ok(seen),
        false => check.warning(seen).remedy(format!("sysctl -w {setting}={}", needed.next_power_of_two())),
    }
}

/// Threads of the whole host: the fourth field of `0.1 0.2 0.3 2/345 6789`.
fn running(host: &Host) -> u64 {
    let load = host.read("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().nth(3).and_then(|field| field.split_once('/')?.1.parse().ok()).unwrap_or(0)
}

fn tasks(host: &Host, name: &'static str, slots: u64) -> Finding {
    let check = Check::of(name, "each buddy is a process, and the engine runs some threads beside it");
    let file = if name == "pid_max" { "pid_max" } else { "threads-max" };
    match host.number(&format!("/proc/sys/kernel/{file}")) {
        Some(limit) => against(check, limit, running(host), slots * TASKS_PER_SLOT, &format!("kernel.{file}")),
        None => check.note(format!("cannot be seen: there is no /proc/sys/kernel/{file}")),
    }
}

/// Of the cgroup that this process is in, and of all above it.
fn cgroup_tasks(host: &Host) -> Finding {
    let check = Check::of("pids_max", "the daemon and its helper process have threads");
    let own = host.read("/proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let base = match controllers {
            "" => "/sys/fs/cgroup",
            "pids" => "/sys/fs/cgroup/pids",
            _ => return None,
        };
        Some((base, path.to_owned()))
    });
    let Some((base, path)) = group else { return check.note("this process is in no cgroup that can be seen") };
    let groups = std::path::Path::new(&path).ancestors().map(|group| format!("{base}{}", group.display()).trim_end_matches('/').to_owned());
    let limits = groups.filter_map(|group| {
        let limit = number(&host.read(&format!("{group}/pids.max")).ok()?)?;
        Some((limit.saturating_sub(host.number(&format!("{group}/pids.current")).unwrap_or(0)), limit, group))
    });
    match limits.min() {
        Some((left, limit, group)) if left < TASKS_OF_DAEMON && limit != u64::MAX => {
            let finding = check.warning(format!("{group} has room for {left} of {limit}; the daemon may want {TASKS_OF_DAEMON}"));
            finding.remedy("TasksMax=256 (in a unit of its own)").remedy(format!("echo max > {group}/pids.max"))
        }
        Some((_, limit, _)) => check.ok(format!("{} where this process is", shown(limit))),
        None => check.ok("no limit where this process is"),
    }
}

fn namespaces(host: &Host, slots: u64) -> Finding {
    let check = Check::of("max_net_namespaces", "each slot is one, and for a moment two when it is renewed");
    match host.number("/proc/sys/user/max_net_namespaces") {
        Some(0) => check.missing("0: nobody may make one").remedy("sysctl -w user.max_net_namespaces=15000"),
        Some(limit) => against(check, limit, 0, slots * NAMESPACES_PER_SLOT, "user.max_net_namespaces"),
        None => check.note("cannot be seen: there is no /proc/sys/user/max_net_namespaces"),
    }
}

fn mounts(host: &Host, slots: u64) -> Finding {
    let check = Check::of("mount_max", "a container has some mounts, and a lease one");
    let now = host.read("/proc/self/mountinfo").map_or(0, |mounts| mounts.lines().count() as u64);
    match host.number("/proc/sys/fs/mount-max") {
        Some(limit) => against(check, limit, now, slots * MOUNTS_PER_SLOT, "fs.mount-max"),
        None => check.note("cannot be seen: there is no /proc/sys/fs/mount-max"),
    }
}

fn neighbours(host: &Host, slots: u64) -> Finding {
    let check = Check::of("gc_thresh3", "all namespaces share one neighbour table: when it is full, functions reach nobody");
    match host.number("/proc/sys/net/ipv4/neigh/default/gc_thresh3") {
        Some(limit) => against(check, limit, 0, slots * NEIGHBOURS_PER_SLOT, "net.ipv4.neigh.default.gc_thresh3"),
        None => check.note("cannot be seen: there is no /proc/sys/net/ipv4/neigh/default/gc_thresh3"),
    }
}

/// None where the host tracks none.
fn connections(host: &Host) -> Option<Finding> {
    let check = Check::of("nf_conntrack_max", "NAT tracks connections: when the table is full, new ones are dropped");
    let limit = host.number("/proc/sys/net/netfilter/nf_conntrack_max")?;
    let now = host.number("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
    let seen = format!("{now} of {limit}");
    Some(match now <= limit / 4 * 3 {
        true => check.ok(seen),
        false => check.warning(seen).remedy(format!("sysctl -w net.netfilter.nf_conntrack_max={}", limit.saturating_mul(2).max(65_536))),
    })
}

#[cfg(test)]
mod tests {
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config::Pool;

    fn of(max: u32) -> Config {
        Config { pool: Pool { ready: 8, max, ..Pool::default() }, ..Config::default() }
    }

    fn found(made_up: &MadeUp, config: &Config, name: &str) -> Finding {
        check(&made_up.host, config).into_iter().find(|finding| finding.name == name).unwrap()
    }

    fn with_descriptors(soft: &str) -> MadeUp {
        let limits = format!(
            "Limit                     Soft Limit           Hard Limit           Units\nMax open files            {soft}                 524288               files\n"
        );
        MadeUp::new().with("/proc/self/limits", &limits)
    }

    #[test]
    fn descriptors_are_counted_against_the_slots() {
        let status = |soft, max| found(&with_descriptors(soft), &of(max), "nofile").status;
        assert_eq!(
            [status("1024", 64), status("1024", 300), status("100", 64), status("unlimited", 9999)],
            [Status::Ok, Status::Warning, Status::Missing, Status::Ok]
        );
        let finding = found(&with_descriptors("100"), &of(64), "nofile");
        assert_eq!(finding.remedies, ["LimitNOFILE=448 (in the unit)", "ulimit -n 448"]);
        let made_up = with_descriptors("100").with("/lib/systemd/system/nspool.service", "LimitNOFILE=131072");
        assert_eq!(found(&made_up, &of(64), "nofile").status, Status::Ok, "the unit's");
    }

    #[test]
    fn small_tables_are_named_with_the_setting_that_widens_them() {
        let made_up = MadeUp::new()
            .with("/proc/loadavg", "0.00 0.01 0.05 1/31000 4242")
            .with("/proc/sys/kernel/pid_max", "32768")
            .with("/proc/sys/kernel/threads-max", "126000")
            .with("/proc/sys/user/max_net_namespaces", "100")
            .with("/proc/sys/fs/mount-max", "1000")
            .with("/proc/sys/net/ipv4/neigh/default/gc_thresh3", "1024");
        let remedy = |name, max| found(&made_up, &of(max), name).remedies.first().cloned();
        assert_eq!(remedy("pid_max", 64), None);
        assert_eq!(remedy("pid_max", 200).unwrap(), "sysctl -w kernel.pid_max=65536");
        assert_eq!(remedy("threads_max", 200), None);
        assert_eq!(remedy("max_net_namespaces", 64).unwrap(), "sysctl -w user.max_net_namespaces=128");
        assert_eq!(remedy("mount_max", 1000).unwrap(), "sysctl -w fs.mount-max=4096");
        assert_eq!(remedy("gc_thresh3", 512), None);
        assert_eq!(remedy("gc_thresh3", 513).unwrap(), "sysctl -w net.ipv4.neigh.default.gc_thresh3=2048");
        let none = MadeUp::new().with("/proc/sys/user/max_net_namespaces", "0");
        assert_eq!(found(&none, &of(8), "max_net_namespaces").status, Status::Missing);
    }

    #[test]
    fn the_narrowest_cgroup_counts() {
        let made_up = MadeUp::new()
            .with("/proc/self/cgroup", "0::/user.slice/a.scope")
            .with("/sys/fs/cgroup/user.slice/pids.max", "300")
            .with("/sys/fs/cgroup/user.slice/pids.current", "100")
            .with("/sys/fs/cgroup/user.slice/a.scope/pids.max", "max");
        let finding = found(&made_up, &of(8), "pids_max");
        assert!(finding.status == Status::Warning && finding.seen.contains("user.slice has room for 200 of 300"), "{finding:?}");
        let made_up = made_up.with("/sys/fs/cgroup/user.slice/pids.max", "max");
        assert_eq!(found(&made_up, &of(8), "pids_max").status, Status::Ok);
        let old = MadeUp::new().with("/proc/self/cgroup", "4:memory:/\n3:pids:/x").with("/sys/fs/cgroup/pids/x/pids.max", "10");
        assert_eq!(found(&old, &of(8), "pids_max").status, Status::Warning);
    }

    #[test]
    fn tracked_connections_matter_where_they_are_tracked() {
        assert!(!check(&MadeUp::new().host, &of(8)).iter().any(|finding| finding.name == "nf_conntrack_max"));
        let with = |count: &str| {
            let made_up = MadeUp::new().with("/proc/sys/net/netfilter/nf_conntrack_max", "1000");
            found(&made_up.with("/proc/sys/net/netfilter/nf_conntrack_count", count), &of(8), "nf_conntrack_max").status
        };
        assert_eq!([with("750"), with("751")], [Status::Ok, Status::Warning]);
    }

    #[test]
    fn what_cannot_be_seen_is_a_note_and_no_panic() {
        assert!(check(&MadeUp::new().host, &of(8)).iter().all(|finding| finding.status == Status::Note || finding.name == "pids_max"));
    }
}
