//! Parsers of values that several commands take.

use std::time::Duration;

use crate::config::keys::KEYS;
use crate::config::value::Kind;

/// `20s`, `1m30s`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; a duration reads like 20s, 1m30s or 500ms"))
}

/// `20GiB`, `512MiB`, `1000`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    crate::config::value::parse_size(text).ok_or_else(|| "a size reads like 20GiB, 512MiB or 1000000".to_owned())
}

/// `key=value`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label reads like key=value".to_owned()),
    }
}

/// A flag for each key of the configuration, made from the key table. What they are given is checked with the file and the environment, so
/// that all mistakes come in one report.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigFlags(pub(super) Vec<(&'static str, String)>);

impl clap::Args for ConfigFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        KEYS.iter().fold(command, |command, key| {
            let list = matches!(key.kind, Kind::List { .. } | Kind::Numbers { .. });
            let help = format!("{} [default: {}]", key.doc.trim_end_matches('.'), key.default_toml().trim_matches('"'));
            command.arg(
                clap::Arg::new(key.path)
                    .long(key.flag)
                    .value_name(if list { "A,B,…" } else { "VALUE" })
                    .allow_hyphen_values(true)
                    .help_heading("Configuration, as in the file")
                    .help(help),
            )
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let given = KEYS.iter().filter_map(|key| matches.get_one::<String>(key.path).map(|text| (key.path, text.clone())));
        Ok(Self(given.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
