//! What only files tell: multicast groups, the names of older tables, and for joiners that could write there, all of /proc/sys/net.

use std::fs;
use std::io;
use std::path::Path;

use super::facts::{Fact, Section};
use super::legacy;
use super::place::Place;
use super::verdict::{InspectError, Kind};

const SETTINGS: &str = "/proc/sys/net";
/// A count, which is looked at as such.
const PASSING: [&str; 1] = ["nf_conntrack_count"];
/// None is near as long.
const LONGEST: usize = 4096;
/// Folders within each other.
const DEEPEST: usize = 16;

/// Who is in which group, by link and number of users; not since when, nor who asked last.
pub(super) fn multicast(place: &Place) -> Result<Section, InspectError> {
    let mut facts = Vec::new();
    for line in place.file("dev_mcast")?.unwrap_or_default().lines() {
        let line: Vec<&str> = line.split_whitespace().collect();
        if let [_, dev, users, of_those_for_all, address] = line[..] {
            facts.push(Fact::text(format!("{address} dev {dev}"), format!("{users} users, {of_those_for_all} for all")));
        }
    }
    let mut dev = "";
    let text = place.file("igmp")?.unwrap_or_default();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // Links begin at the left.
            [_, link, ..] if !line.starts_with('\t') => dev = link,
            [group, users, ..] => facts.push(Fact::text(format!("{} dev {dev}", ipv4(group)), format!("{users} users"))),
            _ => {}
        }
    }
    for line in place.file("igmp6")?.unwrap_or_default().lines() {
        if let [_, dev, group, users, ..] = line.split_whitespace().collect::<Vec<_>>()[..] {
            facts.push(Fact::text(format!("{group} dev {dev}"), format!("{users} users")));
        }
    }
    Ok(Section { kind: Kind::Multicast, facts })
}

fn ipv4(digits: &str) -> String {
    u32::from_str_radix(digits, 16).map_or(digits.to_owned(), |word| std::net::Ipv4Addr::from(word.to_ne_bytes()).to_string())
}

/// Services that IPVS would divert, and to where. What the kernel counts of them is no part of it.
pub(super) fn virtual_servers(place: &Place) -> Result<Section, InspectError> {
    let text = place.file("ip_vs")?.unwrap_or_default();
    Ok(Section { kind: Kind::VirtualServer, facts: virtual_servers_in(&text) })
}

fn virtual_servers_in(text: &str) -> Vec<Fact> {
    let (mut service, mut facts) = ("", Vec::new());
    // Version, size, and the names of the columns in two lines.
    for line in text.lines().skip_while(|line| !line.trim_start().starts_with("->")).skip(1) {
        let line = line.trim();
        match line.strip_prefix("->").map(str::split_whitespace) {
            None => {
                service = line;
                facts.push(Fact::text(line.to_owned(), String::new()));
            }
            Some(mut words) => {
                let to = words.next().unwrap_or_default();
                facts.push(Fact::text(format!("{service} to {to}"), words.take(2).collect::<Vec<_>>().join(" ")));
            }
        }
    }
    facts
}

/// Those that the namespace has, with what is in them.
pub(super) fn legacy_tables(place: &Place) -> Result<Section, InspectError> {
    let mut facts = Vec::new();
    for family in legacy::FAMILIES {
        let text = place.file(family.names)?.unwrap_or_default();
        for name in text.lines() {
            let entries = family.entries(name).map_err(InspectError::reading(family.names))?;
            facts.push(Fact::text(format!("{} {}", family.program, name.escape_debug()), entries));
        }
    }
    Ok(Section { kind: Kind::LegacyTable, facts })
}

/// All settings, as the thread's namespace has them. One that cannot be read says why not.
pub(super) fn settings(place: &Place) -> Result<Section, InspectError> {
    let mut facts = Vec::new();
    walk(place, Path::new(SETTINGS), 0, &mut facts)?;
    Ok(Section { kind: Kind::Sysctl, facts })
}

fn walk(place: &Place, folder: &Path, depth: usize, facts: &mut Vec<Fact>) -> Result<(), InspectError> {
    place.in_time()?;
    let failed =
        |error: &io::Error| InspectError::reading(SETTINGS)(rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO));
    if depth > DEEPEST {
        return Err(InspectError::reading(SETTINGS)(rustix::io::Errno::LOOP));
    }
    for entry in fs::read_dir(folder).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        let path = entry.path();
        if entry.file_type().map_err(|error| failed(&error))?.is_dir() {
            walk(place, &path, depth + 1, facts)?;
        } else if !PASSING.iter().any(|passing| entry.file_name() == *passing) {
            let value = match fs::read(&path) {
                Ok(value) => String::from_utf8_lossy(&value).trim_end().chars().take(LONGEST).collect(),
                Err(error) => error.to_string(),
            };
            let subject = path.strip_prefix("/proc/sys").unwrap_or(&path).display().to_string();
            facts.push(Fact::text(subject.replace('/', "."), value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_services_and_where_they_lead() {
        let head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        assert!(virtual_servers_in(head).is_empty() && virtual_servers_in("").is_empty());
        let with = |counts: &str| format!("{head}TCP  0A000001:0050 rr\n  -> 06060606:0050      Masq    1      {counts}\n");
        let quiet = virtual_servers_in(&with("0          0"));
        assert_eq!(quiet.len(), 2);
        assert!(quiet == virtual_servers_in(&with("7          9")), "counts are not compared");
        assert!(quiet != virtual_servers_in(&with("0          0").replace("06060606", "07070707")));
    }
}
