//! What systemd was told about nspool: its unit with all drop-ins, read as text.

use std::path::PathBuf;

use super::host::Host;

/// Where units are, those that go first at the front.
const FOLDERS: [&str; 5] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// One unit: where it is, and what it says.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) path: PathBuf,
    settings: Vec<(String, String)>,
}

impl Unit {
    /// None where there is no unit of that name.
    pub(super) fn read(host: &Host, name: &str) -> Option<Self> {
        let (path, text) =
            FOLDERS.iter().map(|folder| format!("{folder}/{name}")).find_map(|path| Some((path.clone(), host.read(&path).ok()?)))?;
        let mut drop_ins: Vec<(String, String)> = Vec::new();
        for folder in FOLDERS {
            let entries = std::fs::read_dir(host.path(format!("{folder}/{name}.d"))).into_iter().flatten().flatten();
            let files = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|file| file.ends_with(".conf"));
            for file in files {
                // Of two of one name the first one counts, in the order of the folders.
                if !drop_ins.iter().any(|(known, _)| *known == file) {
                    let text = host.read(&format!("{folder}/{name}.d/{file}")).unwrap_or_default();
                    drop_ins.push((file, text));
                }
            }
        }
        drop_ins.sort();
        let texts = std::iter::once(text).chain(drop_ins.into_iter().map(|(_, text)| text));
        let setting = |line: &str| {
            let (key, value) = line.trim().split_once('=')?;
            (!key.starts_with(['#', ';'])).then(|| (key.trim().to_owned(), value.trim().to_owned()))
        };
        let settings = texts.flat_map(|text| text.lines().filter_map(setting).collect::<Vec<_>>()).collect();
        Some(Self { path: path.into(), settings })
    }

    /// The last word on something.
    pub(super) fn last(&self, key: &str) -> Option<&str> {
        self.settings.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Of a list that later lines add to, and that an empty one begins anew. None when nothing is said.
    pub(super) fn list(&self, key: &str) -> Option<Vec<&str>> {
        let mut found: Option<Vec<&str>> = None;
        for (_, value) in self.settings.iter().filter(|(known, _)| known == key) {
            let list = found.get_or_insert_default();
            if value.is_empty() { list.clear() } else { list.extend(value.split_whitespace()) }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::made_up::MadeUp;
    use super::*;

    #[test]
    fn drop_ins_add_and_the_first_folder_wins() {
        let made_up = MadeUp::new()
            .with("/usr/lib/systemd/system/a.service", "[Service]\nLimitNOFILE=1\n#LimitNOFILE=9\nCapabilityBoundingSet=CAP_A\n")
            .with("/usr/lib/systemd/system/a.service.d/10.conf", "CapabilityBoundingSet=CAP_HIDDEN")
            .with("/etc/systemd/system/a.service.d/10.conf", "CapabilityBoundingSet=CAP_B CAP_C\nLimitNOFILE = 2")
            .with("/etc/systemd/system/a.service.d/readme", "LimitNOFILE=7");
        let unit = Unit::read(&made_up.host, "a.service").unwrap();
        assert_eq!(unit.last("LimitNOFILE"), Some("2"));
        assert_eq!(unit.list("CapabilityBoundingSet").unwrap(), ["CAP_A", "CAP_B", "CAP_C"]);
        assert!(unit.list("TasksMax").is_none() && Unit::read(&made_up.host, "b.service").is_none());
        let made_up = made_up.with("/etc/systemd/system/a.service", "CapabilityBoundingSet=CAP_D\nCapabilityBoundingSet=\n");
        let unit = Unit::read(&made_up.host, "a.service").unwrap();
        assert_eq!(unit.list("CapabilityBoundingSet").unwrap(), ["CAP_B", "CAP_C"], "begun anew");
        assert!(unit.path.starts_with("/etc"));
    }
}
