//! The folders that nspool writes to: that they can be written, on what they are, and whether there is room.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatVfs, accessat, statvfs};
use rustix::io::Errno;

use super::finding::{Check, Finding};
use super::host::Host;
use crate::config::{Config, EngineChoice};

/// Sockets, locks, and the links that leases are known by.
const RUN: &str = "/run/nspool";
/// A ledger is rewritten while the old one is still there; ten thousand leases are a few MiB.
const LEAST: Room = Room { bytes: 16 << 20, files: 1000 };

/// What is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    /// `u64::MAX` where the file system does not count them.
    pub(super) files: u64,
}

impl Room {
    pub(super) fn of(found: &StatVfs) -> Self {
        let files = if found.f_files == 0 { u64::MAX } else { found.f_favail };
        Self { bytes: found.f_bavail.saturating_mul(found.f_frsize), files }
    }
}

/// An error is a finding, too: one that wants a remedy.
pub(super) fn room(check: Check, place: &str, free: Room, least: Room) -> Result<Finding, Finding> {
    let files = if free.files == u64::MAX { String::new() } else { format!(" and {} files", free.files) };
    let seen = format!("{place}: {}{files} free", bytes(free.bytes));
    if free.bytes < least.bytes || free.files < least.files { Err(check.warning(seen)) } else { Ok(check.ok(seen)) }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

pub(super) fn check(host: &Host, config: &Config) -> Vec<Finding> {
    let state = Check::of("state", "an answered lease is in the ledger there before the answer goes out");
    let mut findings = vec![of_folder(host, Check::of("run", "sockets and locks are there"), Path::new(RUN))];
    findings.push(of_folder(host, state, &config.state.dir));
    findings.push(of_kind(host, &config.state.dir));
    if config.engine.kind != EngineChoice::Native {
        let images = Check::of("images", "the host's own images, and beside them when images were asked for, are there");
        findings.push(of_folder(host, images, &config.images.store));
        let spool = Check::of("spool", "what is built and pushed is there on its way");
        findings.push(of_spool(host, spool, &config.images.spool));
    }
    findings
}

/// The folder, or what of it there is: the daemon makes the rest.
fn there(host: &Host, folder: &Path) -> PathBuf {
    let is_there = |folder: &&Path| host.path(folder).symlink_metadata().is_ok();
    folder.ancestors().find(is_there).unwrap_or(Path::new("/")).to_owned()
}

/// Nobody makes this one: it is there on every host, or somebody has named another.
fn of_spool(host: &Host, check: Check, folder: &Path) -> Finding {
    if there(host, folder) != folder {
        return check.missing(format!("{} is not there", folder.display())).remedy(format!("mkdir -p {}", folder.display()));
    }
    of_folder(host, check, folder)
}

fn of_folder(host: &Host, check: Check, folder: &Path) -> Finding {
    let (shown, there) = (folder.display(), there(host, folder));
    let place = if there == folder { shown.to_string() } else { format!("{shown}, to be made in {}", there.display()) };
    let path = host.path(&there);
    if !path.is_dir() {
        return check.missing(format!("{} is no folder", there.display())).remedy(format!("mv {0} {0}.old", there.display()));
    }
    match accessat(CWD, &path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => {}
        Err(Errno::ROFS) => {
            let seen = format!("{place}: the file system is read-only");
            return check
                .missing(seen)
                .remedy(format!("ReadWritePaths={} (in the unit)", there.display()))
                .remedy(format!("mount -o remount,rw {}", mount_point(host, &there)));
        }
        Err(errno) if host.is_root() => {
            return check.missing(format!("{place}: {errno}")).remedy(format!("chown root: {}", there.display()));
        }
        Err(_) => return check.note(format!("{place}: for root alone; cannot be written as {}", host.user())).remedy("sudo nspool doctor"),
    }
    match statvfs(&path) {
        Ok(found) => match room(check, &place, Room::of(&found), LEAST) {
            Ok(finding) => finding,
            Err(finding) => widen(host, finding, &there, &found),
        },
        Err(errno) => check.unknown(&errno.into()),
    }
}

/// For the words of a remedy.
fn mount_point(host: &Host, folder: &Path) -> String {
    host.mount_of(folder).map_or_else(|| "/".to_owned(), |mount| mount.place.display().to_string())
}

fn widen(host: &Host, finding: Finding, folder: &Path, found: &StatVfs) -> Finding {
    let place = mount_point(host, folder);
    match host.mount_of(folder).is_some_and(|mount| mount.is_in_memory()) {
        true => {
            let megabytes = (found.f_blocks.saturating_mul(found.f_frsize) >> 20).max(32) * 2;
            finding.remedy(format!("mount -o remount,size={megabytes}M,nr_inodes={} {place}", found.f_files.max(65_536) * 2))
        }
        false => finding.remedy(format!("df -h {place} && df -i {place}")),
    }
}

fn of_kind(host: &Host, folder: &Path) -> Finding {
    let check = Check::of(
        "state_kind",
        "a lease is written before it is answered: in memory that costs microseconds; after a reboot there is nothing to keep",
    );
    match host.mount_of(folder) {
        Some(mount) if mount.is_in_memory() => check.ok(format!("{} is in memory ({})", folder.display(), mount.kind)),
        Some(mount) => {
            let finding = check.note(format!("{} is on {}: each lease is written to a disk", folder.display(), mount.kind));
            finding.remedy(format!("mount -t tmpfs -o mode=755 tmpfs {RUN} (before serve is started)")).remedy("[state] dir on a tmpfs")
        }
        None => check.note("the mounts cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::host::made_up::MadeUp;
    use super::*;

    const IN_MEMORY: &str = "21 1 8:1 / / rw - ext4 /dev/vda rw\n22 21 0:5 / /run rw - tmpfs tmpfs rw";

    fn statuses(findings: &[Finding]) -> Vec<(&str, Status)> {
        findings.iter().map(|finding| (finding.name, finding.status)).collect()
    }

    #[test]
    fn folders_that_are_there_or_can_be_made_are_well() {
        let made_up = MadeUp::new().with_folder("/run").with_folder("/var/tmp").with("/proc/self/mountinfo", IN_MEMORY);
        let mut config = Config::default();
        let findings = check(&made_up.host, &config);
        let names = ["run", "state", "state_kind", "images", "spool"];
        assert_eq!(statuses(&findings), names.map(|name| (name, Status::Ok)), "{findings:?}");
        assert!(findings[1].seen.contains("to be made in /run"), "{findings:?}");
        assert!(findings[3].seen.starts_with("/var/lib/nspool/images, to be made in /var: "), "{findings:?}");
        config.engine.kind = EngineChoice::Native;
        assert_eq!(check(&made_up.host, &config).len(), 3, "without an engine there are no images");
    }

    #[test]
    fn a_file_in_the_way_is_missing_and_a_disk_is_a_note() {
        let made_up = MadeUp::new()
            .with("/run/nspool", "")
            .with_folder("/var/lib/nspool")
            .with("/proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/vda rw");
        let findings = check(&made_up.host, &Config::default());
        assert_eq!(
            statuses(&findings),
            [
                ("run", Status::Missing),
                ("state", Status::Missing),
                ("state_kind", Status::Note),
                ("images", Status::Ok),
                ("spool", Status::Missing)
            ],
            "{findings:?}"
        );
    }

    #[test]
    fn little_room_is_a_warning_of_bytes_or_of_files() {
        let check = Check::of("x", "");
        let least = Room { bytes: 1 << 20, files: 10 };
        let told = |bytes, files| room(check, "/x", Room { bytes, files }, least);
        assert_eq!(told(5 << 30, u64::MAX).unwrap().seen, "/x: 5 GiB free");
        assert_eq!(told(1 << 10, 100).unwrap_err().seen, "/x: 1 KiB and 100 files free");
        assert_eq!(told(2 << 20, 9).unwrap_err().status, Status::Warning);
    }
}
