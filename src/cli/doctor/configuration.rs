//! Whether `serve` would find a configuration that it takes.

use std::path::PathBuf;

use super::finding::{Check, Finding};
use super::host::Host;
use crate::config::Config;
use crate::config::raw::{self, DEFAULT_FILE, Loaded, Mistakes, Sources};

/// What the other checks go by: the configuration, or the defaults where there is none.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) config: Config,
    pub(super) has_mistakes: bool,
    pub(super) findings: Vec<Finding>,
}

pub(super) fn check(host: &Host, file: Option<PathBuf>) -> Configured {
    let shown = file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    // Mistakes of the file are the operator's; a file that this user may not read has none that can be told.
    let closed = std::fs::File::open(&shown).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    if closed && !host.is_root() {
        let seen = format!("{} cannot be read as {}: what follows is about the defaults", shown.display(), host.user());
        let finding = of_file().warning(seen).remedy("sudo nspool doctor");
        return Configured { config: Config::default(), has_mistakes: false, findings: vec![finding] };
    }
    judge(raw::load(&Sources::from_process(file, Vec::new())), &shown.display().to_string())
}

fn of_file() -> Check {
    Check::of("file", "nspool does not start with mistakes in its configuration")
}

fn judge(loaded: Result<Loaded, Mistakes>, shown: &str) -> Configured {
    match loaded {
        Ok(loaded) => {
            let seen = match &loaded.file {
                Some(file) => format!("{}: no mistakes", file.display()),
                None => format!("there is no {shown}: defaults and variables"),
            };
            let odd = Check::of("variables", "it is understood, but should be written otherwise");
            let warnings = loaded.warnings.iter().map(|warning| odd.note(warning.clone()));
            let findings = std::iter::once(of_file().ok(seen)).chain(warnings).collect();
            Configured { config: loaded.config, has_mistakes: false, findings }
        }
        Err(Mistakes(mistakes)) => {
            let first = mistakes.first().map(|mistake| format!(", the first: {mistake}")).unwrap_or_default();
            let count = mistakes.len();
            let seen = format!("{shown} and variables: {count} {}{first}", if count == 1 { "mistake" } else { "mistakes" });
            let finding = of_file().missing(seen).remedy(format!("nspool config check {shown}"));
            Configured { config: Config::default(), has_mistakes: true, findings: vec![finding] }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Status;

    #[test]
    fn mistakes_are_counted_and_the_way_to_all_of_them_is_said() {
        let sources =
            Sources { env: vec![("NSPOOL_POOL_READY".into(), "x".into()), ("NSPOOL_POOL_MAX".into(), "y".into())], ..Sources::default() };
        let configured = judge(raw::load(&sources), "/f.toml");
        assert!(configured.has_mistakes);
        assert_eq!(configured.findings[0].status, Status::Missing);
        assert!(configured.findings[0].seen.contains("2 mistakes") && configured.findings[0].seen.contains("NSPOOL_POOL_"));
        assert_eq!(configured.findings[0].remedies, ["nspool config check /f.toml"]);
    }

    #[test]
    fn what_is_written_in_fns_words_is_a_note() {
        let sources = Sources { env: vec![("FN_EXPERIMENTAL_PREFORK_POOL_SIZE".into(), "3".into())], ..Sources::default() };
        let configured = judge(raw::load(&sources), "/f.toml");
        assert!(!configured.has_mistakes && configured.config.pool.ready == 3);
        let statuses: Vec<_> = configured.findings.iter().map(|finding| finding.status).collect();
        assert_eq!(statuses, [Status::Ok, Status::Note], "{:?}", configured.findings);
    }
}
