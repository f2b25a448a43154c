//! What a build prints: its last lines, for any number of followers, each at its own place.

use std::collections::VecDeque;
use std::sync::Arc;

/// Lines that are kept.
const MOST_LINES: usize = 2000;
/// Bytes that are kept of a line: 8 MB in all at most.
const LONGEST_LINE: usize = 4096;

/// Bounded; what is oldest goes.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: VecDeque<Arc<str>>,
    /// Lines that have gone.
    gone: u64,
    /// What has no end yet.
    begun: String,
}

impl Log {
    /// Takes what was printed next, in whatever pieces.
    pub(super) fn push(&mut self, piece: &str) {
        for part in piece.split_inclusive('\n') {
            let room = LONGEST_LINE.saturating_sub(self.begun.len());
            let text = part.trim_end_matches(['\r', '\n']);
            let end = (0..=room.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
            self.begun.push_str(&text[..end]);
            if part.ends_with('\n') {
                self.end();
            }
        }
    }

    /// The last line, though it has no end.
    pub(super) fn end(&mut self) {
        let line = std::mem::take(&mut self.begun);
        if line.is_empty() {
            return;
        }
        if self.lines.len() == MOST_LINES {
            self.lines.pop_front();
            self.gone += 1;
        }
        self.lines.push_back(line.into());
    }

    /// The lines behind the first `cursor`, how many of them are gone, and the next cursor.
    pub(super) fn after(&self, cursor: u64) -> (Vec<Arc<str>>, u64, u64) {
        let skip = usize::try_from(cursor.saturating_sub(self.gone)).unwrap_or(usize::MAX);
        let lines = self.lines.iter().skip(skip).cloned().collect();
        (lines, self.gone.saturating_sub(cursor), self.gone + self.lines.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Arc<str>]) -> Vec<&str> {
        lines.iter().map(|line| &**line).collect()
    }

    #[test]
    fn pieces_become_lines() {
        let mut log = Log::default();
        for piece in ["Step 1", "/2 : FROM x\n", "\n ---> 1\r\nSte", "p 2"] {
            log.push(piece);
        }
        let (lines, missed, cursor) = log.after(0);
        assert_eq!((texts(&lines), missed, cursor), (vec!["Step 1/2 : FROM x", " ---> 1"], 0, 2));
        log.end();
        assert_eq!(texts(&log.after(cursor).0), ["Step 2"]);
        assert!(log.after(3).0.is_empty());
    }

    #[test]
    fn what_is_oldest_goes_and_is_counted() {
        let mut log = Log::default();
        for number in 0..MOST_LINES + 5 {
            log.push(&format!("{number}\n"));
        }
        let (lines, missed, cursor) = log.after(2);
        assert_eq!((lines.len(), &*lines[0], missed, cursor), (MOST_LINES, "5", 3, MOST_LINES as u64 + 5));
        log.push(&"ü".repeat(LONGEST_LINE));
        log.push("\n");
        assert_eq!(log.after(cursor).0[0].len(), LONGEST_LINE);
    }
}
