//! The units are what systemd accepts, and the sample configuration is what the key table says.

use std::path::{Path, PathBuf};
use std::process::Command;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// `systemd-analyze verify` wants the program to be there, so it is given this build's.
#[test]
fn systemd_accepts_the_units() {
    let dir = tempfile::tempdir().unwrap();
    for unit in ["nspool.service", "nspool.socket"] {
        let text = std::fs::read_to_string(here("systemd").join(unit)).unwrap();
        let text = text.replace("/usr/bin/nspool", env!("CARGO_BIN_EXE_nspool"));
        std::fs::write(dir.path().join(unit), text).unwrap();
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args([dir.path().join("nspool.service"), dir.path().join("nspool.socket")])
        .env("LC_ALL", "C")
        .output()
        .expect("systemd-analyze comes with Debian's package systemd");
    let words = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words}");
    assert_eq!(words.trim(), "", "it has something to say");
}

#[test]
fn every_directive_has_its_reason_near() {
    for unit in ["nspool.service", "nspool.socket"] {
        let text = std::fs::read_to_string(here("systemd").join(unit)).unwrap();
        for banned in ["BindsTo=", "PrivateUsers=yes", "ProtectProc=invisible"] {
            let written = text.lines().any(|line| line.starts_with(banned));
            assert!(!written, "{unit} has {banned}");
        }
    }
}

/// systemd adds a drop-in's capabilities to the unit's; written out, so that the file says all that the daemon has then.
#[test]
fn the_drop_ins_take_nothing_from_the_unit() {
    let capabilities = |file: &str| {
        let text = std::fs::read_to_string(here("systemd").join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
        line.split(' ').map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let (unit, more) = (capabilities("nspool.service"), capabilities("managed-networks.conf"));
    assert!(more.is_superset(&unit) && more.contains("CAP_NET_ADMIN") && more.contains("CAP_SYS_ADMIN"), "{more:?}");
    let native = capabilities("native.conf");
    assert!(native.is_superset(&more) && native.contains("CAP_SYS_CHROOT"), "{native:?}");
    let users = capabilities("native-user.conf");
    assert!(users.is_superset(&native) && users.contains("CAP_SETUID") && users.contains("CAP_SETGID"), "{users:?}");
}

#[test]
fn the_units_stop_is_longer_than_the_daemons() {
    let text = std::fs::read_to_string(here("systemd/nspool.service")).unwrap();
    let seconds = text.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let stop = humantime::parse_duration(seconds).unwrap();
    assert!(stop > nspool::config::Config::default().stop.timeout);
}

/// Written anew with `nspool config sample > systemd/nspool.toml`.
#[test]
fn the_sample_file_is_the_key_table() {
    let sample = std::fs::read_to_string(here("systemd/nspool.toml")).unwrap();
    assert_eq!(sample, nspool::config::sample::sample());
}

/// Written anew with `UPDATE_DOCS=1 cargo test --test units`.
#[test]
fn the_reference_page_is_the_key_table() {
    let path = here("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    let head = page.split("\n## [").next().unwrap();
    let wanted = format!("{head}{}", nspool::config::sample::reference());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(page == wanted || std::env::var_os("UPDATE_DOCS").is_some(), "docs/configuration.md is not what the key table says");
}
