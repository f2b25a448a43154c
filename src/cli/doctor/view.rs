//! The report: for people in groups, with what helps below each thing that is not well; for programs one document.

use serde::Serialize;

use super::finding::{Finding, Status};
use crate::cli::output::rows;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Of this program.
    version: &'static str,
    /// Of whoever asked.
    uid: u32,
    missing: usize,
    warnings: usize,
    notes: usize,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(uid: u32, findings: Vec<Finding>) -> Self {
        let count = |status| findings.iter().filter(|finding| finding.status == status).count();
        let (missing, warnings, notes) = (count(Status::Missing), count(Status::Warning), count(Status::Note));
        Self { version: env!("CARGO_PKG_VERSION"), uid, missing, warnings, notes, findings }
    }

    pub(super) fn is_good(&self) -> bool {
        self.missing == 0
    }

    pub(super) fn text(&self) -> String {
        // The same for all groups, so that they stand below each other.
        let width = self.findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for group in self.findings.chunk_by(|one, next| one.area == next.area) {
            text.push_str(group.first().map_or("", |finding| finding.area));
            text.push('\n');
            text.push_str(&rows(group.iter().map(|finding| row(finding, width)).collect()));
            text.push('\n');
        }
        text.push_str(&self.summary());
        text
    }

    fn summary(&self) -> String {
        let many = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let rest = format!("{}, {}", many(self.warnings, "warning"), many(self.notes, "note"));
        match self.missing {
            0 => format!("nothing is missing; {rest}\n"),
            1 => format!("1 thing is missing; {rest}\n"),
            missing => format!("{missing} things are missing; {rest}\n"),
        }
    }
}

fn row(finding: &Finding, width: usize) -> Vec<String> {
    let mut seen = finding.seen.clone();
    if finding.status != Status::Ok {
        seen.push_str(&format!("\n({})", finding.why));
        seen.extend(finding.remedies.iter().map(|remedy| format!("\n> {remedy}")));
    }
    vec![format!("  {:<width$}", finding.name), format!("{:<7}", finding.status.word()), seen]
}

#[cfg(test)]
mod tests {
    use super::super::finding::Check;
    use super::*;

    #[test]
    fn groups_stand_below_each_other_with_what_helps() {
        let of = |area, finding: Finding| Finding { area, ..finding };
        let report = Report::new(
            0,
            vec![
                of("engine", Check::of("answers", "it fills slots").missing("it does not").remedy("start it").remedy("or another")),
                of("clock", Check::of("boottime", "x").ok("it goes on")),
                of("clock", Check::of("wall", "for the log").note("alone")),
            ],
        );
        let wanted = "engine\n  answers   missing  it does not\n                     (it fills slots)\n                     > start it\n                     \
                      > or another\n\nclock\n  boottime  ok       it goes on\n  wall      note     alone\n                     (for the log)\n\n\
                      1 thing is missing; 0 warnings, 1 note\n";
        assert_eq!(report.text(), wanted);
        assert!(!report.is_good());
    }
}
