//! Values of configuration keys: read from text or TOML, written as TOML.
//!
//! A [`Kind`] says what may be written for a key; it is the same for the file, the environment and the flags. This file deliberately does
//! not know any key.

use std::time::Duration;

use toml::de::DeValue;

/// A value that its key's [`Kind`] has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Counts, bytes, permission bits.
    Number(u64),
    /// A length of time.
    Duration(Duration),
    /// Everything with a syntax of its own.
    Text(String),
    /// Lists of names.
    List(Vec<String>),
    /// Lists of numbers.
    Numbers(Vec<u32>),
    /// Yes or no.
    Switch(bool),
}

/// Accessors for who knows the key: a kind that does not fit is our own mistake in the table, which a test over all keys would find.
impl Value {
    pub(super) fn number(&self) -> u64 {
        let Self::Number(number) = self else { unreachable!("the key's kind gives no number: {self:?}") };
        *number
    }

    /// Every number's kind has bounds that fit.
    pub(super) fn small(&self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    pub(super) fn duration(&self) -> Duration {
        let Self::Duration(duration) = self else { unreachable!("the key's kind gives no duration: {self:?}") };
        *duration
    }

    pub(super) fn text(&self) -> &str {
        let Self::Text(text) = self else { unreachable!("the key's kind gives no text: {self:?}") };
        text
    }

    pub(super) fn list(&self) -> &[String] {
        let Self::List(list) = self else { unreachable!("the key's kind gives no list: {self:?}") };
        list
    }

    pub(super) fn numbers(&self) -> &[u32] {
        let Self::Numbers(numbers) = self else { unreachable!("the key's kind gives no numbers: {self:?}") };
        numbers
    }

    pub(super) fn is_on(&self) -> bool {
        let Self::Switch(is_on) = self else { unreachable!("the key's kind gives no switch: {self:?}") };
        *is_on
    }
}

/// A test of a text, and what it allows in words.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Goes into the error message after "allowed:".
    pub allowed: &'static str,
    /// An error may come with a reason.
    pub test: fn(&str) -> Result<(), Option<String>>,
}

/// What may be written for a key.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number; `zero` says what 0 means where it means something special.
    Number {
        /// The least.
        min: u32,
        /// The greatest.
        max: u32,
        /// e.g. "no limit".
        zero: Option<&'static str>,
    },
    /// A number of bytes, with or without a unit.
    Size {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// A length of time like `20s` or `1m30s`.
    Duration {
        /// The least.
        min: Duration,
        /// The greatest.
        max: Duration,
    },
    /// One of some words; `refused` are words that have a meaning, but not here and now, with the reason.
    Choice {
        /// Taken.
        allowed: &'static [&'static str],
        /// Word and reason.
        refused: &'static [(&'static str, &'static str)],
    },
    /// A text with a syntax of its own.
    Text(Check),
    /// A list of texts; comma separated in variables and flags.
    List {
        /// Of each item.
        item: Check,
        /// Items at least.
        min: usize,
        /// Items at most.
        max: usize,
    },
    /// A command: a list, or one string that is split into words.
    Words {
        /// Of each word.
        item: Check,
        /// Words at most.
        max: usize,
    },
    /// A list of numbers.
    Numbers {
        /// Items at most.
        max: usize,
    },
    /// Permission bits, as an octal string like `"0660"`.
    Mode,
    /// `true` or `false`.
    Switch,
}

/// Why a value was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// What was read, where that is only a part (an item of a list).
    pub(super) part: Option<String>,
    /// A reason beyond "not among what is allowed".
    pub(super) because: Option<String>,
}

impl Wrong {
    const PLAIN: Self = Self { part: None, because: None };

    fn because(reason: impl Into<String>) -> Self {
        Self { part: None, because: Some(reason.into()) }
    }
}

impl Kind {
    /// What may be written, in words.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Number { min, max, zero: None } => format!("a whole number from {min} to {max}"),
            Self::Number { min, max, zero: Some(zero) } => format!("a whole number from {min} to {max}; 0 means {zero}"),
            Self::Size { min, max } => format!("a size from {} to {}, like \"16MiB\"", show_size(*min), show_size(*max)),
            Self::Duration { min, max } => {
                format!("a duration from {} to {}, like \"20s\", \"1m30s\" or \"500ms\"", show_duration(*min), show_duration(*max))
            }
            Self::Choice { allowed, refused: _ } => allowed.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or "),
            Self::Text(check) => check.allowed.to_owned(),
            Self::List { item, min, max } => format!("a list of {min} to {max} items: {}", item.allowed),
            Self::Words { item, max } => format!("{}; at most {max} words", item.allowed),
            Self::Numbers { max } => format!("a list of at most {max} whole numbers from 0 to {}", u32::MAX),
            Self::Mode => "permission bits as an octal string, \"0600\" to \"0777\"".to_owned(),
            Self::Switch => "true or false".to_owned(),
        }
    }

    /// Reads what a variable or a flag holds.
    pub(super) fn read_text(&self, text: &str) -> Result<Value, Wrong> {
        match self {
            Self::Number { .. } => self.check_number(text.trim().parse().map_err(|_| Wrong::PLAIN)?),
            Self::Size { min, max } => {
                let size = parse_size(text).ok_or(Wrong::PLAIN)?;
                if (*min..=*max).contains(&size) { Ok(Value::Number(size)) } else { Err(Wrong::PLAIN) }
            }
            Self::Duration { min, max } => {
                let duration = humantime::parse_duration(text.trim()).map_err(|error| Wrong::because(error.to_string()))?;
                if (*min..=*max).contains(&duration) { Ok(Value::Duration(duration)) } else { Err(Wrong::PLAIN) }
            }
            Self::Choice { allowed, refused } => {
                if let Some((_, reason)) = refused.iter().find(|(word, _)| *word == text) {
                    return Err(Wrong::because(*reason));
                }
                if allowed.contains(&text) { Ok(Value::Text(text.to_owned())) } else { Err(Wrong::PLAIN) }
            }
            Self::Text(check) => {
                (check.test)(text).map_err(|because| Wrong { part: None, because })?;
                Ok(Value::Text(text.to_owned()))
            }
            Self::List { .. } => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect();
                self.check_items(items)
            }
            Self::Words { .. } => self.check_items(shell_words::split(text).map_err(|error| Wrong::because(error.to_string()))?),
            Self::Numbers { max } => {
                let items: Vec<_> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
                let numbers: Result<Vec<u32>, _> = items.iter().map(|item| item.parse().map_err(|_| part(format!("{item:?}")))).collect();
                if items.len() > *max { Err(Wrong::PLAIN) } else { Ok(Value::Numbers(numbers?)) }
            }
            Self::Mode => {
                let mode = u64::from_str_radix(text.trim_start_matches("0o"), 8).map_err(|_| Wrong::PLAIN)?;
                if (0o600..=0o777).contains(&mode) { Ok(Value::Number(mode)) } else { Err(Wrong::PLAIN) }
            }
            Self::Switch => Ok(Value::Switch(text.trim().parse().map_err(|_| Wrong::PLAIN)?)),
        }
    }

    /// Reads what the file holds.
    pub(super) fn read_toml(&self, value: &DeValue<'_>) -> Result<Value, Wrong> {
        match (self, value) {
            (Self::Number { .. }, DeValue::Integer(integer)) => {
                self.check_number(u64::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| Wrong::PLAIN)?)
            }
            (Self::Number { .. }, _) => Err(Wrong::because("a number is written without quotes")),
            (Self::Size { .. }, DeValue::Integer(integer)) if integer.radix() == 10 => self.read_text(integer.as_str()),
            (Self::Duration { .. }, DeValue::Integer(_)) => Err(Wrong::because("a duration needs a unit, and quotes")),
            (Self::Mode, DeValue::Integer(integer)) if integer.radix() == 8 => self.read_text(integer.as_str()),
            (Self::Mode, DeValue::Integer(_)) => Err(Wrong::because("without quotes it would be a decimal number")),
            (Self::Switch, DeValue::Boolean(is_on)) => Ok(Value::Switch(*is_on)),
            (Self::Switch, DeValue::String(_)) => Err(Wrong::because("true and false are written without quotes")),
            (Self::Numbers { max }, DeValue::Array(array)) => {
                let number = |item: &toml::Spanned<DeValue<'_>>| {
                    let integer = item.get_ref().as_integer().filter(|integer| integer.radix() == 10);
                    integer.and_then(|integer| integer.as_str().parse().ok()).ok_or_else(|| part(show_toml(item.get_ref())))
                };
                let numbers: Result<Vec<u32>, Wrong> = array.iter().map(number).collect();
                if array.len() > *max { Err(Wrong::PLAIN) } else { Ok(Value::Numbers(numbers?)) }
            }
            (Self::List { .. } | Self::Words { .. }, DeValue::Array(array)) => {
                let items: Result<Vec<String>, Wrong> = array
                    .iter()
                    .map(|item| item.get_ref().as_str().map(str::to_owned).ok_or_else(|| part(show_toml(item.get_ref()))))
                    .collect();
                self.check_items(items?)
            }
            (Self::List { .. } | Self::Numbers { .. }, DeValue::String(_)) => Err(Wrong::because("a list is written in square brackets")),
            (_, DeValue::String(text)) => self.read_text(text),
            _ => Err(Wrong::PLAIN),
        }
    }

    fn check_number(&self, number: u64) -> Result<Value, Wrong> {
        let Self::Number { min, max, zero } = self else { return Err(Wrong::PLAIN) };
        let in_range = (u64::from(*min)..=u64::from(*max)).contains(&number) || (zero.is_some() && number == 0);
        if in_range { Ok(Value::Number(number)) } else { Err(Wrong::PLAIN) }
    }

    fn check_items(&self, items: Vec<String>) -> Result<Value, Wrong> {
        let (item, min, max) = match self {
            Self::List { item, min, max } => (item, *min, *max),
            Self::Words { item, max } => (item, 0, *max),
            Self::Number { .. } | Self::Size { .. } | Self::Duration { .. } | Self::Choice { .. } | Self::Text(_) => {
                return Err(Wrong::PLAIN);
            }
            Self::Numbers { .. } | Self::Mode | Self::Switch => return Err(Wrong::PLAIN),
        };
        for text in &items {
            (item.test)(text).map_err(|because| Wrong { part: Some(format!("{text:?}")), because })?;
        }
        if (min..=max).contains(&items.len()) { Ok(Value::List(items)) } else { Err(Wrong::because(format!("these are {}", items.len()))) }
    }

    /// As it is written in TOML, e.g. `"20s"` or `["bridge"]`.
    #[must_use]
    pub fn to_toml(&self, value: &Value) -> String {
        match value {
            Value::Number(number) => match self {
                Self::Mode => format!("\"{number:04o}\""),
                Self::Size { .. } => format!("{:?}", show_size(*number)),
                Self::Number { .. } | Self::Duration { .. } | Self::Choice { .. } | Self::Text(_) => number.to_string(),
                Self::List { .. } | Self::Words { .. } | Self::Numbers { .. } | Self::Switch => number.to_string(),
            },
            Value::Duration(duration) => format!("{:?}", show_duration(*duration)),
            Value::Text(text) => quote(text),
            Value::Switch(is_on) => is_on.to_string(),
            Value::List(items) => format!("[{}]", items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", ")),
            Value::Numbers(numbers) => format!("[{}]", numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

fn part(text: String) -> Wrong {
    Wrong { part: Some(text), because: None }
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// What was read, short enough for a message.
pub(super) fn show_toml(value: &DeValue<'_>) -> String {
    let text = match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(items) => format!("[{}]", items.iter().map(|item| show_toml(item.get_ref())).collect::<Vec<_>>().join(", ")),
        DeValue::Table(_) => "a table".to_owned(),
    };
    shorten(text)
}

/// At most 100 characters of it.
pub(super) fn shorten(text: String) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A duration without spaces, as it can be read again.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

const UNITS: &[(&str, u64)] =
    &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000), ("B", 1)];

/// Bytes, with or without a unit.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, factor) =
        UNITS.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number.trim_end(), *factor))).unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn show_size(bytes: u64) -> String {
    let unit = UNITS[..3].iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(unit, factor)| format!("{}{unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [("16MiB", 16 << 20), ("64 KiB", 64 << 10), ("1MB", 1_000_000), ("4096", 4096), ("7B", 7)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "99999999999GiB", "1TiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(show_size(16 << 20), "16MiB");
        assert_eq!(show_size(1000), "1000");
    }

    #[test]
    fn durations_are_written_as_they_can_be_read() {
        for duration in [Duration::from_millis(1500), Duration::from_secs(90), Duration::from_secs(24 * 3600), Duration::ZERO] {
            assert_eq!(humantime::parse_duration(&show_duration(duration)).unwrap(), duration);
        }
    }
}
