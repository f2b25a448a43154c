//! Configurations of networks: found in their folder, read, and made into what a plugin gets on its standard input.
//!
//! A `.conflist` is a list of plugins; a `.conf` or `.json` is one plugin's, a list of one. Files are looked at by their names' order, and the first one of the
//! wanted network counts, as everywhere with CNI. A file that cannot be read is another network's business, unless none is found.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{CniError, MOST_PLUGINS};

/// Versions of the specification that have results which go from plugin to plugin; the newest last.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The first one with CHECK.
const WITH_CHECK: usize = 2;
/// Of one file.
const LONGEST: u64 = 1 << 20;
/// In the folder.
const MOST_FILES: usize = 1000;

/// A network, as its file says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NetworkList {
    pub(super) name: String,
    pub(super) version: String,
    /// The network wants no CHECK.
    disable_check: bool,
    plugins: Vec<Map<String, Value>>,
}

/// The first one of that name.
pub(super) fn find(dir: &Path, network: &str) -> Result<NetworkList, CniError> {
    let shown = dir.display().to_string();
    let unknown = |there: String| CniError::Unknown { network: network.to_owned(), dir: shown.clone(), there };
    let files = files_in(dir).map_err(|error| unknown(format!(", which cannot be read: {error}")))?;
    let (mut others, mut unread) = (Vec::new(), Vec::new());
    for file in files {
        match read(&file) {
            Ok(list) if list.name == network => return Ok(list),
            Ok(list) => others.push(list.name),
            // It is the one, and broken.
            Err((Some(name), error)) if name == network => return Err(error),
            Err((_, error)) => unread.push(error.to_string()),
        }
    }
    let others = if others.is_empty() { ", nor any other".to_owned() } else { format!(", only {}", others.join(", ")) };
    let unread = if unread.is_empty() { String::new() } else { format!("; {}", unread.join("; ")) };
    Err(unknown(others + &unread))
}

fn files_in(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)?.take(MOST_FILES) {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| ["conflist", "conf", "json"].iter().any(|known| extension == *known)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// An error comes with the network's name, if that could be read.
fn read(file: &Path) -> Result<NetworkList, (Option<String>, CniError)> {
    let wrong = |mistake: String| CniError::Configuration { file: file.display().to_string(), mistake };
    let mut text = Vec::new();
    let opened = std::fs::File::open(file).and_then(|open| open.take(LONGEST + 1).read_to_end(&mut text));
    opened.map_err(|error| (None, wrong(error.to_string())))?;
    if text.len() as u64 > LONGEST {
        return Err((None, wrong(format!("it is longer than {LONGEST} bytes"))));
    }
    let value: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| (None, wrong(error.to_string())))?;
    let name = value.get("name").and_then(Value::as_str).map(str::to_owned);
    let is_list = file.extension().is_some_and(|extension| extension == "conflist");
    parse(value, is_list).map_err(|mistake| (name, wrong(mistake)))
}

fn parse(mut value: Map<String, Value>, is_list: bool) -> Result<NetworkList, String> {
    let name = value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !is_name(&name) {
        return Err(format!("`name` is {name:?}, not letters, digits, `_`, `.` and `-`, beginning with a letter or digit"));
    }
    let version = version_of(&value)?;
    let disable_check = match value.get("disableCheck") {
        None => false,
        Some(Value::Bool(disable)) => *disable,
        Some(Value::String(word)) if word == "true" || word == "false" => word == "true",
        Some(other) => return Err(format!("`disableCheck` is {other}, not true or false")),
    };
    let plugins = match value.remove("plugins") {
        Some(Value::Array(plugins)) if is_list => plugins,
        Some(_) => return Err("`plugins` is for a list, in a file that ends in .conflist".to_owned()),
        None if is_list => return Err("it has no `plugins`".to_owned()),
        None => vec![Value::Object(value)],
    };
    if plugins.is_empty() || plugins.len() > MOST_PLUGINS as usize {
        return Err(format!("it has {} plugins, not 1 to {MOST_PLUGINS}", plugins.len()));
    }
    let plugins = plugins.into_iter().enumerate().map(|(at, plugin)| {
        let is_one = plugin.get("type").and_then(Value::as_str).is_some_and(is_type);
        let shown = plugin.get("type").unwrap_or(&Value::Null).to_string();
        let wrong = || format!("plugin {}: `type` is {shown}, not a program's name", at + 1);
        if let Value::Object(plugin) = plugin
            && is_one
        {
            Ok(plugin)
        } else {
            Err(wrong())
        }
    });
    Ok(NetworkList { name, version, disable_check, plugins: plugins.collect::<Result<_, String>>()? })
}

/// Of the versions that it gives, the newest one known here.
fn version_of(value: &Map<String, Value>) -> Result<String, String> {
    let one = value.get("cniVersion").and_then(Value::as_str);
    let many = value.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let given: Vec<&str> = one.into_iter().chain(many).collect();
    let newest = VERSIONS.iter().rev().find(|version| given.contains(version));
    let said = if given.is_empty() { "`cniVersion` is missing".to_owned() } else { format!("`cniVersion` is {}", given.join(", ")) };
    newest.map(|version| (*version).to_owned()).ok_or_else(|| format!("{said}; known are {}", VERSIONS.join(", ")))
}

/// By the specification.
fn is_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

/// It leads to a file in a folder of plugins, and nowhere else.
fn is_type(name: &str) -> bool {
    (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"_.-".contains(&c))
}

impl NetworkList {
    /// Of each, in order.
    pub(super) fn types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.get("type").and_then(Value::as_str).unwrap_or_default())
    }

    /// Those that plugins start themselves for addresses, by the key that all of them have for it.
    pub(super) fn address_types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().filter_map(|plugin| plugin.get("ipam")?.get("type")?.as_str().filter(|name| is_type(name)))
    }

    pub(super) fn can_check(&self) -> bool {
        !self.disable_check && VERSIONS[WITH_CHECK..].contains(&self.version.as_str())
    }

    /// What that plugin gets: its own part, with the network's name and version, and what the one before it said. `capabilities` are a question to whoever
    /// runs plugins, and not theirs to see.
    pub(super) fn execution(&self, at: usize, previous: Option<&Value>) -> Vec<u8> {
        let mut plugin = self.plugins.get(at).cloned().unwrap_or_default();
        plugin.remove("capabilities");
        plugin.remove("cniVersions");
        plugin.insert("name".to_owned(), self.name.clone().into());
        plugin.insert("cniVersion".to_owned(), self.version.clone().into());
        if let Some(previous) = previous {
            plugin.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(plugin).to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    const ONE: &str = r#"{"cniVersion":"1.0.0","name":"one","plugins":[{"type":"a","capabilities":{"x":true},"k":1},{"type":"b"}]}"#;

    #[test]
    fn the_first_file_of_that_name_counts_and_a_single_plugin_is_a_list_of_one() {
        let dir = written(&[
            ("10-x.conf", r#"{"cniVersion":"0.4.0","name":"single","type":"s","bridge":"b"}"#),
            ("20-one.conflist", ONE),
            ("30-one.conflist", &ONE.replace("\"k\":1", "\"k\":2")),
            ("05-note.txt", "no configuration"),
        ]);
        let one = find(dir.path(), "one").unwrap();
        assert_eq!((one.types().collect::<Vec<_>>(), one.version.as_str(), one.can_check()), (vec!["a", "b"], "1.0.0", true));
        let first: Value = serde_json::from_slice(&one.execution(0, None)).unwrap();
        assert_eq!(first, serde_json::json!({"cniVersion": "1.0.0", "name": "one", "type": "a", "k": 1}));
        let said = serde_json::json!({"ips": []});
        let second: Value = serde_json::from_slice(&one.execution(1, Some(&said))).unwrap();
        assert_eq!(second["prevResult"], said);
        let single = find(dir.path(), "single").unwrap();
        let only: Value = serde_json::from_slice(&single.execution(0, None)).unwrap();
        assert_eq!(only, serde_json::json!({"cniVersion": "0.4.0", "name": "single", "type": "s", "bridge": "b"}));
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let dir = written(&[("1.conflist", ONE), ("2.conf", "{")]);
        let error = find(dir.path(), "two").unwrap_err().to_string();
        assert!(error.contains("only one") && error.contains("2.conf"), "{error}");
        let error = find(&dir.path().join("nowhere"), "two").unwrap_err().to_string();
        assert!(error.contains("cannot be read: No such file"), "{error}");
        let error = find(written(&[]).path(), "two").unwrap_err().to_string();
        assert!(error.ends_with("nor any other"), "{error}");
    }

    #[test]
    fn mistakes_are_told_by_their_keys() {
        for (text, word) in [
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "cniVersion"),
            (r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"a"}]}"#, "0.2.0; known are 0.3.0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "0 plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "`plugins`"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#, "`type`"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":".."}]}"#, "`type`"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[7]}"#, "plugin 1: `type` is null"),
            (r#"{"cniVersion":"1.0.0","name":"n","disableCheck":3,"plugins":[{"type":"a"}]}"#, "`disableCheck`"),
        ] {
            let error = find(written(&[("x.conflist", text)]).path(), "n").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("x.conflist"), "{text}: {error}");
        }
        let long = format!("{}{}", ONE, " ".repeat(LONGEST as usize));
        assert!(find(written(&[("x.conflist", &long)]).path(), "one").unwrap_err().to_string().contains("longer"));
        let error = find(written(&[("x.conflist", r#"{"name":"../n"}"#)]).path(), "../n").unwrap_err().to_string();
        assert!(error.contains("`name`"), "{error}");
    }

    #[test]
    fn the_newest_of_several_versions_counts_and_old_ones_have_no_check() {
        let with = |versions: &str| {
            let text = format!(r#"{{{versions},"name":"n","plugins":[{{"type":"a"}}]}}"#);
            find(written(&[("x.conflist", &text)]).path(), "n").unwrap()
        };
        assert_eq!(with(r#""cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.9.9"]"#).version, "1.1.0");
        assert!(!with(r#""cniVersion":"0.3.1""#).can_check());
        assert!(!with(r#""cniVersion":"1.0.0","disableCheck":true"#).can_check());
    }
}
