//! What can be written, and where: the file, then Fn's variables, then `NSPOOL_…` variables, then flags; the later wins.
//!
//! [`load`] reads them all and gives either a valid [`Config`] or *every* mistake there is, each with its place. Nothing stops at the first
//! one: syntax errors, unknown keys, wrong types, values out of range and rules between keys come in one report. This file deliberately does
//! not know any key (`keys`), nor what an engine or a socket is.

mod named;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS, Key, NAMED_SECTIONS, SECTIONS};
use super::value::{Value, Wrong, shorten, show_toml};
use super::{Config, Registry, fn_env, networks, validate};

/// Where the file is when nobody says.
pub const DEFAULT_FILE: &str = "/etc/nspool/nspool.toml";

/// Larger files are refused unread: no configuration is that long.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Variables that begin like ours, but belong to the clients and to `--config`.
const OTHER_VARIABLES: &[&str] = &["NSPOOL_ENDPOINT", "NSPOOL_CONFIG", "NSPOOL_OUTPUT", "NSPOOL_TOKEN"];

/// What [`load`] reads. Keep it to load again at a reload: the environment and the flags of a process do not change.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Must exist; `None`: [`DEFAULT_FILE`], if it exists.
    pub file: Option<PathBuf>,
    /// Name and value; only `NSPOOL_…` and Fn's are looked at.
    pub env: Vec<(String, String)>,
    /// A key's `section.name` and what its flag was given.
    pub flags: Vec<(&'static str, String)>,
}

impl Sources {
    /// From the file, or the default one, and this process's environment.
    #[must_use]
    pub fn from_process(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Self {
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        // An empty NSPOOL_CONFIG means none.
        let file = file.filter(|file| !file.as_os_str().is_empty());
        Self { file, env: std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))).collect(), flags }
    }
}

/// Where a value was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// File and line, counted from 1.
    File(Arc<Path>, usize),
    /// The variable's name.
    Variable(String),
    /// The flag's name, without dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// One mistake: where, which key, what was read, what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is.
    pub origin: Origin,
    /// `section.name`, or as much of it as there is; empty when the file as a whole is meant.
    pub key: String,
    /// What is wrong, e.g. `read "eight"` or `unknown key`.
    pub what: String,
    /// What may be written there; may be empty.
    pub allowed: String,
    /// A reason, or a guess what was meant; may be empty.
    pub hint: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed)?;
        }
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// Every mistake that was found, in the order of the sources; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", report(.0))]
pub struct Mistakes(pub Vec<Mistake>);

fn report(mistakes: &[Mistake]) -> String {
    let count = mistakes.len();
    let mut text = format!("{count} {} in the configuration:", if count == 1 { "mistake" } else { "mistakes" });
    for mistake in mistakes {
        text.push_str("\n  ");
        text.push_str(&mistake.to_string());
    }
    text
}

/// A valid configuration, and where each of its values came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the daemon works with.
    pub config: Config,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What is understood, but should be written otherwise.
    pub warnings: Vec<String>,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where the value of a key (`section.name`, or [`Managed::path`](super::Managed::path)) was read.
    #[must_use]
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }
}

/// Reads all sources and validates.
pub fn load(sources: &Sources) -> Result<Loaded, Mistakes> {
    let mut draft = Draft::default();
    let file = draft.read_file(sources.file.as_deref());
    fn_env::apply(&mut draft, &sources.env);
    draft.read_env(&sources.env);
    for (path, text) in &sources.flags {
        let Some(key) = keys::find(path) else { continue };
        draft.set_text(key, text, Origin::Flag(key.flag));
    }
    let config = validate::build(&mut draft);
    if draft.mistakes.is_empty() {
        let of_networks = draft.networks.iter().flat_map(networks::Section::origins);
        let origins = draft.settings.into_iter().map(|(path, (_, origin))| (path.to_owned(), origin)).chain(of_networks).collect();
        Ok(Loaded { config, file, warnings: draft.warnings, origins })
    } else {
        Err(Mistakes(draft.mistakes))
    }
}

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) settings: BTreeMap<&'static str, (Value, Origin)>,
    pub(super) registries: Vec<Registry>,
    /// `[networks.NAME]`, in the order of the file.
    pub(super) networks: Vec<networks::Section>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<String>,
}

impl Draft {
    pub(super) fn mistake(
        &mut self,
        origin: Origin,
        key: &str,
        what: impl Into<String>,
        allowed: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.mistakes.push(Mistake { origin, key: key.into(), what: what.into(), allowed: allowed.into(), hint: hint.into() });
    }

    fn wrong(&mut self, origin: Origin, key: &str, read: String, allowed: String, wrong: Wrong) {
        let read = shorten(wrong.part.unwrap_or(read));
        self.mistake(origin, key, format!("read {read}"), allowed, wrong.because.unwrap_or_default());
    }

    /// A value from a variable or a flag.
    pub(super) fn set_text(&mut self, key: &'static Key, text: &str, origin: Origin) {
        match key.kind.read_text(text) {
            Ok(value) => _ = self.settings.insert(key.path, (value, origin)),
            Err(wrong) => self.wrong(origin, key.path, format!("{text:?}"), key.kind.allowed(), wrong),
        }
    }

    fn read_env(&mut self, env: &[(String, String)]) {
        let mut ours: Vec<_> = env.iter().filter(|(name, _)| name.starts_with("NSPOOL_")).collect();
        ours.sort();
        for (name, text) in ours {
            if let Some(key) = KEYS.iter().find(|key| key.env() == *name) {
                self.set_text(key, text, Origin::Variable(name.clone()));
            } else if OTHER_VARIABLES.contains(&name.as_str()) {
                // Read by the command line.
            } else if SECTIONS.iter().any(|(section, _)| name.starts_with(&format!("NSPOOL_{}_", section.to_uppercase()))) {
                let names: Vec<String> = KEYS.iter().map(Key::env).collect();
                let hint = did_you_mean(name, names.iter().map(String::as_str));
                self.mistake(Origin::Variable(name.clone()), "", "unknown variable", "NSPOOL_<SECTION>_<KEY> of a known key", hint);
            } else {
                self.warnings.push(format!("the variable {name} is not one of nspool's and was left out"));
            }
        }
    }

    /// Returns the file that was read.
    fn read_file(&mut self, path: Option<&Path>) -> Option<PathBuf> {
        let explicit = path.is_some();
        let path = path.unwrap_or(Path::new(DEFAULT_FILE));
        let origin = |line| Origin::File(path.into(), line);
        match read_bounded(path) {
            Ok(text) => {
                self.read_toml(&text, path);
                Some(path.to_owned())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !explicit => None,
            Err(error) => {
                self.mistake(origin(1), "", format!("cannot be read: {error}"), "a readable file in TOML", "");
                None
            }
        }
    }

    fn read_toml(&mut self, text: &str, path: &Path) {
        let file = FileText { path: path.into(), text };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut broken: Vec<usize> = Vec::new();
        for error in &errors {
            let line = file.line(error.span().map_or(0, |span| span.start));
            // One slip of the pen makes the parser stumble several times: the first word on each line is the one that helps.
            if !broken.contains(&line) {
                broken.push(line);
                self.mistake(file.origin_of_line(line), "", format!("not TOML: {}", error.message()), "", "");
            }
        }
        let before = self.mistakes.len();
        for (name, value) in in_order(table.get_ref()) {
            self.read_section(&file, name, value);
        }
        let mut found = self.mistakes.split_off(before);
        found.retain(|mistake| !matches!(&mistake.origin, Origin::File(_, line) if broken.contains(line)));
        self.mistakes.append(&mut found);
    }

    fn read_section(&mut self, file: &FileText<'_>, name: &Spanned<impl AsRef<str>>, value: &Spanned<DeValue<'_>>) {
        let section = name.get_ref().as_ref();
        let named = NAMED_SECTIONS.iter().find(|named| named.section == section);
        let known = SECTIONS.iter().any(|(known, _)| *known == section);
        if !known && named.is_none() {
            let sections: Vec<&str> =
                SECTIONS.iter().map(|(name, _)| *name).chain(NAMED_SECTIONS.iter().map(|named| named.section)).collect();
            let hint = misplaced(section).unwrap_or_else(|| did_you_mean(section, sections.iter().copied()));
            return self.mistake(file.origin(name), section, "unknown section", sections.join(", "), hint);
        }
        let DeValue::Table(table) = value.get_ref() else {
            return self.mistake(
                file.origin(value),
                section,
                format!("read {}", show_toml(value.get_ref())),
                format!("a section [{section}]"),
                "",
            );
        };
        for (key, value) in in_order(table) {
            match named {
                Some(named) => self.read_named(file, named, key, value),
                None => self.read_key(file, section, key, value),
            }
        }
    }

    fn read_key(&mut self, file: &FileText<'_>, section: &str, name: &Spanned<impl AsRef<str>>, value: &Spanned<DeValue<'_>>) {
        let path = format!("{section}.{}", name.get_ref().as_ref());
        let Some(key) = keys::find(&path) else {
            let names: Vec<&str> = KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect();
            let hint = misplaced(name.get_ref().as_ref()).unwrap_or_else(|| did_you_mean(name.get_ref().as_ref(), names.iter().copied()));
            return self.mistake(file.origin(name), &path, "unknown key", names.join(", "), hint);
        };
        match key.kind.read_toml(value.get_ref()) {
            Ok(parsed) => _ = self.settings.insert(key.path, (parsed, file.origin(name))),
            Err(wrong) => self.wrong(file.origin(name), key.path, show_toml(value.get_ref()), key.kind.allowed(), wrong),
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if metadata.len() > FILE_MAX_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {FILE_MAX_BYTES} bytes")));
    }
    std::fs::read_to_string(path)
}

/// The keys of a table as they stand in the file.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Spanned<toml::de::DeString<'i>>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

/// A file's text, to find lines in.
struct FileText<'a> {
    path: Arc<Path>,
    text: &'a str,
}

impl FileText<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
    }

    fn origin_of_line(&self, line: usize) -> Origin {
        Origin::File(self.path.clone(), line)
    }

    fn origin<T>(&self, at: &Spanned<T>) -> Origin {
        self.origin_of_line(self.line(at.span().start))
    }
}

/// For a name that is known elsewhere.
fn misplaced(name: &str) -> Option<String> {
    let homes: Vec<&str> = KEYS.iter().filter(|key| key.name == name).map(|key| key.section).collect();
    if homes.is_empty() { None } else { Some(format!("{name} belongs under [{}]", homes.join("], ["))) }
}

/// The nearest of some names, if it is near enough to have been meant.
fn did_you_mean<'a>(read: &str, names: impl Iterator<Item = &'a str>) -> String {
    let nearest = names.map(|name| (distance(read, name), name)).min();
    match nearest {
        Some((far, name)) if far <= 1 + read.len() / 4 => format!("did you mean {name}?"),
        _ => String::new(),
    }
}

/// Insertions, deletions and replacements between two texts (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
