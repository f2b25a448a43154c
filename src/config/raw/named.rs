//! Sections with a name of the operator's in their header: `[networks.NAME]` and `[registries."host"]`, which are only in the file.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::DeValue;

use super::{Draft, FileText, Origin, did_you_mean, in_order, read_bounded};
use crate::config::Registry;
use crate::config::keys::NamedSection;
use crate::config::networks::Section;
use crate::config::value::{Value, show_toml};

impl Draft {
    pub(super) fn read_named(
        &mut self,
        file: &FileText<'_>,
        named: &NamedSection,
        name: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
    ) {
        let path = format!("{}.{:?}", named.section, name.get_ref().as_ref());
        let DeValue::Table(table) = value.get_ref() else {
            let allowed = format!("a section [{path}]");
            return self.mistake(file.origin(value), &path, format!("read {}", show_toml(value.get_ref())), allowed, "");
        };
        let before = self.mistakes.len();
        let mut values: BTreeMap<&'static str, (Value, Origin)> = BTreeMap::new();
        for (key_name, value) in in_order(table) {
            let key_path = format!("{path}.{}", key_name.get_ref());
            let Some(key) = named.keys.iter().find(|key| key.name == key_name.get_ref().as_ref()) else {
                let names: Vec<&str> = named.keys.iter().map(|key| key.name).collect();
                let hint = did_you_mean(key_name.get_ref(), names.iter().copied());
                self.mistake(file.origin(key_name), &key_path, "unknown key", names.join(", "), hint);
                continue;
            };
            match key.kind.read_toml(value.get_ref()) {
                Ok(parsed) => _ = values.insert(key.name, (parsed, file.origin(key_name))),
                Err(wrong) => self.wrong(file.origin(key_name), &key_path, show_toml(value.get_ref()), key.kind.allowed(), wrong),
            }
        }
        let (name, origin, is_whole) = (name.get_ref().as_ref(), file.origin(name), self.mistakes.len() == before);
        if named.section == "networks" {
            self.networks.push(Section { name: name.to_owned(), origin, values, is_whole });
        } else if is_whole {
            self.registry(name, &path, origin, &values);
        }
    }

    fn registry(&mut self, host: &str, path: &str, section: Origin, values: &BTreeMap<&'static str, (Value, Origin)>) {
        let (Some((username, _)), Some((password_file, origin))) = (values.get("username"), values.get("password_file")) else {
            return self.mistake(section, path, "incomplete", "both username and password_file", "");
        };
        let file = Path::new(password_file.text());
        match read_bounded(file).map(|text| text.lines().next().unwrap_or_default().to_owned()) {
            Ok(password) if password.is_empty() => {
                let what = format!("the first line of {} is empty", file.display());
                self.mistake(origin.clone(), &format!("{path}.password_file"), what, "a file whose first line is the password", "");
            }
            Ok(password) => {
                self.warn_if_others_can_read(file, origin);
                self.registries.push(Registry { host: host.to_owned(), username: username.text().to_owned(), password });
            }
            Err(error) => {
                let what = format!("{} cannot be read: {error}", file.display());
                self.mistake(origin.clone(), &format!("{path}.password_file"), what, "the absolute path of a readable file", "");
            }
        }
    }

    fn warn_if_others_can_read(&mut self, file: &Path, origin: &Origin) {
        use std::os::unix::fs::MetadataExt;
        if std::fs::metadata(file).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
            self.warnings.push(format!("{origin}: every user can read the password in {}", file.display()));
        }
    }
}
