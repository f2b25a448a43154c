//! Which of root's powers this process has, against what `serve` and its helper process need ([`crate::netns::helper::powers`]); and which the
//! unit gives them.

use rustix::thread::CapabilitySet;

use super::finding::{Check, Finding, Status};
use super::host::Host;
use super::units::Unit;
use crate::config::{Config, EngineChoice, Reuse};
use crate::engine::NamespaceKind;
use crate::netns::helper::powers;

/// One of them.
struct Power {
    bit: CapabilitySet,
    name: &'static str,
    /// As systemd and capsh write it.
    written: &'static str,
    why: &'static str,
}

const POWERS: [Power; 9] = [
    Power {
        bit: CapabilitySet::SYS_PTRACE,
        name: "sys_ptrace",
        written: "CAP_SYS_PTRACE",
        why: "to see who is in a namespace, among all users' processes",
    },
    Power {
        bit: CapabilitySet::SYS_ADMIN,
        name: "sys_admin",
        written: "CAP_SYS_ADMIN",
        why: "to go into a slot's namespaces: managed networks, and reuse = \"verified\"",
    },
    Power {
        bit: CapabilitySet::NET_ADMIN,
        name: "net_admin",
        written: "CAP_NET_ADMIN",
        why: "links, addresses and rules: managed networks, and reuse = \"verified\"",
    },
    Power {
        bit: CapabilitySet::DAC_OVERRIDE,
        name: "dac_override",
        written: "CAP_DAC_OVERRIDE",
        why: "for sockets and files of other users, as podman's",
    },
    Power { bit: CapabilitySet::CHOWN, name: "chown", written: "CAP_CHOWN", why: "to give the API's socket to its group" },
    Power {
        bit: CapabilitySet::SETPCAP,
        name: "setpcap",
        written: "CAP_SETPCAP",
        why: "to give all of them away for good, once the sockets are open",
    },
    Power {
        bit: CapabilitySet::SYS_CHROOT,
        name: "sys_chroot",
        written: "CAP_SYS_CHROOT",
        why: "to mount namespaces where all see them, from inside a unit's sandbox: without a container engine",
    },
    Power { bit: CapabilitySet::SETUID, name: "setuid", written: "CAP_SETUID", why: "to say whose ids are whose in user namespaces" },
    Power { bit: CapabilitySet::SETGID, name: "setgid", written: "CAP_SETGID", why: "to say whose ids are whose in user namespaces" },
];

/// Of this process.
#[derive(Clone, Copy, Debug)]
struct Own {
    effective: CapabilitySet,
    /// What a program that it starts could get.
    bounding: CapabilitySet,
}

pub(super) fn check(host: &Host, config: &Config) -> Vec<Finding> {
    let mut findings = match own(host) {
        Some(own) => of_process(host, config, own),
        None => vec![Check::of("user", "serve needs some of root's powers").note("cannot be seen: /proc/self/status does not say")],
    };
    findings.extend(Unit::read(host, "nspool.service").map(|unit| of_unit(config, &unit)));
    findings
}

fn own(host: &Host) -> Option<Own> {
    let set = |field| Some(CapabilitySet::from_bits_retain(u64::from_str_radix(&host.own(field)?, 16).ok()?));
    Some(Own { effective: set("CapEff")?, bounding: set("CapBnd")? })
}

fn is_native(config: &Config) -> bool {
    config.engine.kind == EngineChoice::Native
}

/// Whether the helper process has to go into namespaces with this configuration.
fn enters(config: &Config) -> bool {
    is_native(config)
        || !config.managed.is_empty()
        || (0..config.pool.networks.len()).any(|network| config.reuse_of(network) == Reuse::Verified)
}

/// How bad it is without it.
fn need(config: &Config, power: &Power) -> Status {
    match power.name {
        "sys_ptrace" => Status::Missing,
        "sys_admin" | "net_admin" if enters(config) => Status::Missing,
        "sys_admin" | "net_admin" => Status::Note,
        "sys_chroot" if !is_native(config) => Status::Note,
        "setuid" | "setgid" if config.pool.namespaces.contains(&NamespaceKind::User) => Status::Missing,
        "setuid" | "setgid" => Status::Note,
        _ => Status::Warning,
    }
}

fn of_process(host: &Host, config: &Config, own: Own) -> Vec<Finding> {
    // Somebody who has none of them is no daemon, and is not held to account for each.
    let is_visitor = !host.is_root() && (own.effective & all()).is_empty();
    let mut findings = vec![of_user(host, config, is_visitor)];
    for power in &POWERS {
        let check = Check::of(power.name, power.why);
        let (has, may) = (own.effective.contains(power.bit), own.bounding.contains(power.bit));
        findings.push(match (has, may) {
            (true, _) => check.ok("there"),
            (false, true) if is_visitor => check.note(format!("not as {}; what root starts here can have it", host.user())),
            (false, may) => {
                let seen = if may {
                    "not there, but what is started with it can have it"
                } else {
                    "not there, and nothing that is started here gets it"
                };
                refused(config, power, check.is(need(config, power), unneeded(config, power, seen)), may)
            }
        });
    }
    findings
}

fn all() -> CapabilitySet {
    POWERS.iter().fold(powers::HELPERS, |all, power| all | power.bit)
}

fn unneeded(config: &Config, power: &Power, seen: &str) -> String {
    if need(config, power) == Status::Note { format!("{seen}; not needed with this configuration") } else { seen.to_owned() }
}

fn refused(config: &Config, power: &Power, finding: Finding, may: bool) -> Finding {
    if need(config, power) == Status::Note {
        return finding;
    }
    let finding = finding.remedy(format!("CapabilityBoundingSet={} (in the unit; systemctl edit nspool)", power.written));
    match may {
        true => finding.remedy("sudo nspool serve"),
        false => finding.remedy(format!("--cap-add {} (of the container that this is)", power.written.trim_start_matches("CAP_"))),
    }
}

fn of_user(host: &Host, config: &Config, is_visitor: bool) -> Finding {
    let check = Check::of("user", "serve needs some of root's powers, and the engine's socket");
    let seen = format!("uid {} ({})", host.uid, host.user());
    if !is_visitor {
        return check.ok(seen);
    }
    let needed: Vec<&str> = POWERS.iter().filter(|power| need(config, power) != Status::Note).map(|power| power.written).collect();
    let lines = format!("AmbientCapabilities={} (in a unit with User=; CapabilityBoundingSet= as well)", needed.join(" "));
    check.warning(format!("{seen}: serve does not start as this user")).remedy("sudo nspool serve, or systemctl start nspool").remedy(lines)
}

fn of_unit(config: &Config, unit: &Unit) -> Finding {
    let check = Check::of("unit", "the daemon has no more than its unit gives it");
    let shown = unit.path.display();
    let Some(given) = unit.list("CapabilityBoundingSet") else { return check.ok(format!("{shown} takes nothing away")) };
    if given.iter().any(|capability| capability.starts_with('~')) {
        return check.note(format!("{shown} says what it takes away, which is not looked into"));
    }
    let lacks = |bad: Status| {
        let lacking = POWERS.iter().filter(|power| need(config, power) == bad && !given.contains(&power.written));
        lacking.map(|power| power.written).collect::<Vec<_>>()
    };
    let bad = [Status::Missing, Status::Warning].into_iter().find(|bad| !lacks(*bad).is_empty());
    let Some(bad) = bad else { return check.ok(format!("{shown} gives what this configuration needs")) };
    let finding = check.is(bad, format!("{shown} does not give {}", lacks(bad).join(", ")));
    let finding = finding.remedy(format!("CapabilityBoundingSet={} (systemctl edit nspool)", lacks(bad).join(" ")));
    match enters(config) {
        true if config.pool.namespaces.contains(&NamespaceKind::User) => {
            finding.remedy("install -D systemd/native-user.conf /etc/systemd/system/nspool.service.d/native-user.conf")
        }
        true if is_native(config) => finding.remedy("install -D systemd/native.conf /etc/systemd/system/nspool.service.d/native.conf"),
        true => finding.remedy("install -D systemd/managed-networks.conf /etc/systemd/system/nspool.service.d/managed-networks.conf"),
        false => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::made_up::MadeUp;
    use super::*;
    use crate::config::Pool;

    fn with(effective: &str, bounding: &str) -> MadeUp {
        MadeUp::new().with("/proc/self/status", &format!("Name:\tx\nCapEff:\t{effective}\nCapBnd:\t{bounding}\n"))
    }

    fn verified() -> Config {
        Config { pool: Pool { reuse: Some(Reuse::Verified), ..Pool::default() }, ..Config::default() }
    }

    fn found(made_up: &MadeUp, config: &Config, name: &str) -> Finding {
        check(&made_up.host, config).into_iter().find(|finding| finding.name == name).unwrap()
    }

    const FULL: &str = "000001ffffffffff";
    const NONE: &str = "0000000000000000";
    /// Of the unit: SYS_PTRACE, CHOWN, DAC_OVERRIDE, SETPCAP.
    const UNITS: &str = "0000000000080103";

    #[test]
    fn every_power_of_the_helper_is_looked_at() {
        assert_eq!(
            POWERS.iter().fold(CapabilitySet::empty(), |all, power| all | power.bit),
            powers::HELPERS | powers::OF_USERS | CapabilitySet::SETPCAP
        );
    }

    #[test]
    fn the_units_powers_are_enough_until_namespaces_are_entered() {
        let made_up = with(UNITS, UNITS);
        assert!(check(&made_up.host, &Config::default()).iter().all(|finding| finding.status <= Status::Note));
        let finding = found(&made_up, &verified(), "net_admin");
        assert_eq!(finding.status, Status::Missing);
        assert!(finding.remedies[0].contains("CapabilityBoundingSet=CAP_NET_ADMIN") && finding.remedies[1].contains("--cap-add NET_ADMIN"));
        assert!(check(&with(FULL, FULL).host, &verified()).iter().all(|finding| finding.status == Status::Ok));
    }

    #[test]
    fn root_without_ptrace_is_no_daemon_and_a_visitor_is_not_asked_to_be_one() {
        let lacking = "000001fffff7ffff";
        assert_eq!(found(&with(lacking, FULL), &Config::default(), "sys_ptrace").status, Status::Missing);
        let visitor = with(NONE, FULL).asked_by(7);
        assert_eq!(found(&visitor, &verified(), "sys_ptrace").status, Status::Note);
        let user = found(&visitor, &verified(), "user");
        assert!(
            user.status == Status::Warning && user.remedies[1].contains("AmbientCapabilities=CAP_SYS_PTRACE CAP_SYS_ADMIN"),
            "{user:?}"
        );
        // What nobody here can get is missing whoever asks; and who has some has a daemon in mind.
        assert_eq!(found(&with(NONE, lacking).asked_by(7), &verified(), "sys_ptrace").status, Status::Missing);
        assert_eq!(found(&with("0000000000001000", FULL).asked_by(7), &verified(), "sys_ptrace").status, Status::Missing);
    }

    #[test]
    fn a_unit_without_the_drop_in_is_told_what_it_lacks() {
        let unit = include_str!("../../../systemd/nspool.service");
        let made_up = with(FULL, FULL).with("/usr/lib/systemd/system/nspool.service", unit);
        assert_eq!(found(&made_up, &Config::default(), "unit").status, Status::Ok);
        let finding = found(&made_up, &verified(), "unit");
        assert!(finding.status == Status::Missing && finding.seen.contains("CAP_SYS_ADMIN, CAP_NET_ADMIN"), "{finding:?}");
        let drop_in = include_str!("../../../systemd/managed-networks.conf");
        let made_up = made_up.with("/etc/systemd/system/nspool.service.d/managed-networks.conf", drop_in);
        assert_eq!(found(&made_up, &verified(), "unit").status, Status::Ok);
    }
}
