//! What ran where: the table at the end, the totals, and whether all of it is good.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::libtest::Tally;

/// How a step ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// One step of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub step: String,
    /// The target triple, with the emulated CPU where there is one.
    pub target: String,
    /// Whether CI must not pass without it.
    pub required: bool,
    pub outcome: Outcome,
    pub tests: Tally,
    pub took: Duration,
}

/// The table, then why steps were skipped or failed, then what single tests skipped.
pub fn render(rows: &[Row]) -> String {
    let header = ["step", "target", "result", "tests", "time"].map(String::from);
    let cells = rows.iter().map(|row| {
        let result = match row.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed(_) => "FAILED",
            Outcome::Skipped(_) => "skipped",
        };
        let tests = if row.tests.seen() == 0 { "-".into() } else { counts(&row.tests) };
        [row.step.clone(), row.target.clone(), result.into(), tests, clock(row.took)]
    });
    let lines = std::iter::once(header).chain(cells).collect::<Vec<_>>();
    let mut widths = [0; 5];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let padded = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    }
    for row in rows {
        match &row.outcome {
            Outcome::Passed => {}
            Outcome::Failed(reason) => _ = writeln!(text, "\nFAILED: {}: {reason}", row.step),
            Outcome::Skipped(reason) => _ = writeln!(text, "\nskipped: {}: {reason}", row.step),
        }
    }
    if rows.iter().any(|row| !row.tests.notes.is_empty()) {
        text.push_str("\nTests that skipped all or part of what they check:\n");
        for row in rows {
            for note in &row.tests.notes {
                let _ = writeln!(text, "  {}: {}: {}", row.step, note.test, note.reason);
            }
        }
    }
    text
}

/// Why the run as a whole is not good; empty if it is.
pub fn problems(rows: &[Row], ci: bool) -> Vec<String> {
    let mut problems = Vec::new();
    for row in rows {
        match &row.outcome {
            Outcome::Failed(_) => problems.push(format!("{} failed", row.step)),
            Outcome::Skipped(_) if ci && row.required => {
                problems.push(format!("{} ({}) is required in CI and did not run", row.step, row.target));
            }
            Outcome::Passed if row.tests.failed > 0 => {
                problems.push(format!("{} passed with failed tests", row.step));
            }
            Outcome::Passed | Outcome::Skipped(_) => {}
        }
    }
    if rows.iter().all(|row| row.outcome != Outcome::Passed) {
        problems.push("nothing passed".into());
    }
    problems
}

/// The last line: tests over all steps.
///
/// A step that failed without a failed test (it did not compile, say) counts as one failed test, a skipped step as
/// one skipped test: the line never looks better than the table.
pub fn totals(rows: &[Row]) -> String {
    let mut sum = Tally::default();
    for row in rows {
        sum.passed += row.tests.passed;
        sum.failed += row.tests.failed;
        sum.skipped += row.tests.skipped;
        match row.outcome {
            Outcome::Failed(_) if row.tests.failed == 0 => sum.failed += 1,
            Outcome::Skipped(_) => sum.skipped += 1,
            Outcome::Passed | Outcome::Failed(_) => {}
        }
    }
    counts(&sum)
}

fn counts(tests: &Tally) -> String {
    format!("{} passed, {} failed, {} skipped", tests.passed, tests.failed, tests.skipped)
}

/// A duration as "0.4 s" or "2 min 05 s".
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f32())
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtest::Note;

    fn row(step: &'static str, required: bool, outcome: Outcome, passed: usize, failed: usize) -> Row {
        let tests = Tally { passed, failed, ..Tally::default() };
        Row {
            step: step.into(),
            target: "t".into(),
            required,
            outcome,
            tests,
            took: Duration::from_millis(1400),
        }
    }

    #[test]
    fn a_failed_step_fails_the_run() {
        let rows = [
            row("good", true, Outcome::Passed, 3, 0),
            row("bad", false, Outcome::Failed("it did not compile".into()), 0, 0),
        ];
        assert_eq!(problems(&rows, false), ["bad failed"]);
        assert_eq!(totals(&rows), "3 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn ci_fails_without_a_required_target() {
        let rows = [
            row("host", true, Outcome::Passed, 3, 0),
            row("arm", true, Outcome::Skipped("no QEMU".into()), 0, 0),
            row("extra", false, Outcome::Skipped("no QEMU".into()), 0, 0),
        ];
        assert_eq!(problems(&rows, true), ["arm (t) is required in CI and did not run"]);
        assert_eq!(problems(&rows, false), [""; 0]);
        assert_eq!(totals(&rows), "3 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn failed_tests_are_not_lost_behind_a_good_exit_code() {
        assert_eq!(problems(&[row("host", true, Outcome::Passed, 3, 1)], false).len(), 1);
    }

    #[test]
    fn a_run_of_nothing_is_not_good() {
        assert_eq!(problems(&[], false), ["nothing passed"]);
        assert_eq!(
            problems(&[row("a", false, Outcome::Skipped("x".into()), 0, 0)], false),
            ["nothing passed"]
        );
    }

    #[test]
    fn the_table_says_what_was_skipped_and_why() {
        let mut rows = [
            row("host", true, Outcome::Passed, 12, 0),
            row("arm", true, Outcome::Skipped("no QEMU".into()), 0, 0),
            row("fmt", true, Outcome::Failed("exit code".into()), 0, 0),
        ];
        rows[0].tests.notes.push(Note { test: "isa".into(), reason: "no AVX-512".into() });
        let text = render(&rows);
        assert!(text.starts_with("step  target  result   tests                           time\n"), "{text}");
        assert!(text.contains("host  t       ok       12 passed, 0 failed, 0 skipped  1.4 s\n"), "{text}");
        assert!(text.contains("\nskipped: arm: no QEMU\n"), "{text}");
        assert!(text.contains("\nFAILED: fmt: exit code\n"), "{text}");
        assert!(text.contains("  host: isa: no AVX-512\n"), "{text}");
    }

    #[test]
    fn time_is_readable() {
        assert_eq!(clock(Duration::from_millis(440)), "0.4 s");
        assert_eq!(clock(Duration::from_secs(125)), "2 min 05 s");
    }
}
