//! The commented sample file and the reference page, written from the key table, so that they cannot say anything else than the program.

use std::fmt::Write as _;

use super::keys::{KEYS, Key, NAMED_SECTIONS, SECTIONS};

const COMMENT_WIDTH: usize = 116;

/// What a service is not to find out by looking around: the key, its value, and why.
const PACKAGED: (&str, &str, &str) = (
    "engine.kind",
    "\"docker\"",
    "Named, so that a start before Docker's, or after its removal, changes nothing. Without this line: \"auto\".",
);

/// `systemd/nspool.toml`: every key, commented out, with its default, but for the one that is packaged otherwise.
#[must_use]
pub fn sample() -> String {
    let mut text = String::from(
        "# nspool's configuration. It goes to /etc/nspool/nspool.toml; without it, every key has the default shown here.\n\
         # Variables (NSPOOL_POOL_READY=16) go before this file, and flags of `nspool serve` (--ready 16) before both.\n\
         # Check it with `nspool config check`, see what is in force with `nspool config show`.\n\
         # After `systemctl reload nspool` the keys marked (live) take effect; the daemon says which others need a restart.\n",
    );
    for (section, about) in SECTIONS {
        _ = write!(text, "\n# {about}\n[{section}]\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let mark = if key.live { " (live)" } else { "" };
            text.push_str(&comment(&format!("{}{mark} Allowed: {}.", key.doc, key.kind.allowed())));
            if key.path == PACKAGED.0 {
                text.push_str(&comment(PACKAGED.2));
                _ = writeln!(text, "{} = {}", key.name, PACKAGED.1);
            } else {
                _ = writeln!(text, "#{} = {}", key.name, key.default_toml());
            }
        }
    }
    for named in NAMED_SECTIONS {
        _ = write!(text, "\n{}#[{}]\n", comment(named.doc), named.header);
        for key in named.keys {
            text.push_str(&comment(&format!("{} Allowed: {}.", key.doc, key.kind.allowed())));
            _ = writeln!(text, "#{} = {}", key.name, key.example);
        }
    }
    text
}

fn comment(words: &str) -> String {
    let mut text = String::new();
    let mut line = String::from("#");
    for word in words.split_whitespace() {
        if line.len() + 1 + word.len() > COMMENT_WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
    text
}

/// The tables of `docs/configuration.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for (section, about) in SECTIONS {
        _ = write!(text, "\n## [{section}]\n\n{about}\n\n| key | default | variable, flag | live | |\n|---|---|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            _ = writeln!(text, "{}", row(key));
        }
    }
    for named in NAMED_SECTIONS {
        _ = write!(text, "\n## [{}]\n\n{}\nOnly in the file.\n\n| key | example | |\n|---|---|---|\n", named.header, named.doc);
        for key in named.keys {
            _ = writeln!(text, "| `{}` | `{}` | {} Allowed: {}. |", key.name, key.example, key.doc, escape(&key.kind.allowed()));
        }
    }
    text
}

fn row(key: &Key) -> String {
    let live = if key.live { "yes" } else { "no" };
    let (default, env, allowed) = (key.default_toml(), key.env(), escape(&key.kind.allowed()));
    format!("| `{}` | `{default}` | `{env}` `--{}` | {live} | {} Allowed: {allowed}. |", key.name, key.flag, escape(key.doc))
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;")
}
