//! What a check found: one line for people, one object for programs.

use serde::Serialize;

/// How bad it is, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// nspool works, but less well, or not for ever.
    Warning,
    /// nspool does not work without it.
    Missing,
}

impl Status {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// Of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Which group of checks it belongs to; set by whoever ran them.
    pub(super) area: &'static str,
    /// Of the check: stable, for programs.
    pub(super) name: &'static str,
    pub(super) status: Status,
    pub(super) seen: String,
    /// What it is needed for.
    pub(super) why: &'static str,
    /// Commands or lines of a unit, any of which helps.
    pub(super) remedies: Vec<String>,
}

impl Finding {
    /// One more thing that helps.
    pub(super) fn remedy(mut self, words: impl Into<String>) -> Self {
        self.remedies.push(words.into());
        self
    }
}

/// What is looked at, before it is known how it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) why: &'static str,
}

impl Check {
    pub(super) fn of(name: &'static str, why: &'static str) -> Self {
        Self { name, why }
    }

    pub(super) fn is(self, status: Status, seen: impl Into<String>) -> Finding {
        Finding { area: "", name: self.name, status, seen: seen.into(), why: self.why, remedies: Vec::new() }
    }

    pub(super) fn ok(self, seen: impl Into<String>) -> Finding {
        self.is(Status::Ok, seen)
    }

    pub(super) fn note(self, seen: impl Into<String>) -> Finding {
        self.is(Status::Note, seen)
    }

    pub(super) fn warning(self, seen: impl Into<String>) -> Finding {
        self.is(Status::Warning, seen)
    }

    pub(super) fn missing(self, seen: impl Into<String>) -> Finding {
        self.is(Status::Missing, seen)
    }

    /// When the host does not say.
    pub(super) fn unknown(self, error: &std::io::Error) -> Finding {
        self.note(format!("cannot be seen: {error}"))
    }
}
