//! Progress of long work: a bar or a spinner on a terminal, plain lines where somebody should read them later.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::say;

/// A spinner with words that change; hidden unless stderr is a terminal.
#[must_use]
pub fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::default_spinner());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A part of the work: a bar on a terminal, elsewhere a line at its beginning; and a line at its end in both cases.
#[must_use]
pub(super) struct Step(ProgressBar);

impl Step {
    /// `length`: how many pieces there are.
    pub(super) fn begin(words: &str, length: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            say(&format!("{words} …"));
        }
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        // The template is a constant of ours; were it wrong, the default would do.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {bar:32} {pos}/{len}") {
            bar.set_style(style);
        }
        bar.set_message(words.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// So many pieces are done.
    pub(super) fn at(&self, pieces: u64) {
        self.0.set_position(pieces);
    }

    /// Replaces the bar by a line.
    pub(super) fn end(self, words: &str) {
        self.0.finish_and_clear();
        say(words);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
