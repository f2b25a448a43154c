//! The variables of Fn's own prefork pool, for agents that move over: understood, each with a warning that names ours.
//!
//! They go before the file and behind `NSPOOL_…` variables. What Fn means by them: a size of N is exactly N containers, lists are separated
//! by spaces, a command without an image runs in busybox, an image without a command runs `tail -f /dev/null`, and without USE_ONCE a
//! namespace is used again and again.

use super::keys;
use super::raw::{Draft, Origin};

const PREFIX: &str = "FN_EXPERIMENTAL_PREFORK_";
const DEFAULT_IMAGE: &str = "busybox";
const DEFAULT_COMMAND: &str = "tail -f /dev/null";

/// Fn's name, and ours for the warning.
const NAMES: &[(&str, &str)] = &[
    ("POOL_SIZE", "NSPOOL_POOL_READY and NSPOOL_POOL_MAX"),
    ("IMAGE", "NSPOOL_PLACEHOLDER_IMAGE"),
    ("CMD", "NSPOOL_PLACEHOLDER_COMMAND"),
    ("USE_ONCE", "NSPOOL_POOL_REUSE"),
    ("NETWORKS", "NSPOOL_POOL_NETWORKS"),
];

/// Reads them into the draft.
pub(super) fn apply(draft: &mut Draft, env: &[(String, String)]) {
    let value = |name: &str| env.iter().find(|(key, text)| key.strip_prefix(PREFIX) == Some(name) && !text.trim().is_empty());
    for (name, ours) in NAMES {
        let Some((variable, text)) = value(name) else { continue };
        draft.warnings.push(format!("{variable} is understood; nspool's own is {ours}"));
        match *name {
            "POOL_SIZE" => {
                set(draft, "pool.ready", text, variable);
                // One mistake about one variable is enough.
                if draft.settings.contains_key("pool.ready") && text.trim().parse::<u32>().is_ok() {
                    set(draft, "pool.max", text, variable);
                }
            }
            "IMAGE" => set(draft, "placeholder.image", text.trim(), variable),
            "CMD" => set(draft, "placeholder.command", text, variable),
            "USE_ONCE" => use_once(draft, text.trim(), variable),
            _ => set(draft, "pool.networks", &text.split([' ', ',', '\t']).collect::<Vec<_>>().join(","), variable),
        }
    }
    if let (Some((variable, _)), false) = (value("CMD"), draft.settings.contains_key("placeholder.image")) {
        set(draft, "placeholder.image", DEFAULT_IMAGE, variable);
    }
    if let (Some((variable, _)), false) = (value("IMAGE"), draft.settings.contains_key("placeholder.command")) {
        set(draft, "placeholder.command", DEFAULT_COMMAND, variable);
    }
}

fn use_once(draft: &mut Draft, text: &str, variable: &str) {
    let once = match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => text.parse::<u64>().ok().map(|number| number != 0),
    };
    match once {
        Some(true) => set(draft, "pool.reuse", "once", variable),
        Some(false) => set(draft, "pool.reuse", "always", variable),
        None => draft.mistake(Origin::Variable(variable.to_owned()), "pool.reuse", format!("read {text:?}"), "0 or 1", ""),
    }
}

fn set(draft: &mut Draft, path: &str, text: &str, variable: &str) {
    if let Some(key) = keys::find(path) {
        draft.set_text(key, text, Origin::Variable(variable.to_owned()));
    }
}
