//! Reads what `cargo test -- --show-output` prints.

use serde::{Deserialize, Serialize};

/// The tests of one or more `cargo test` runs.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    /// Ignored ones, and those that passed but said that they skipped something.
    pub skipped: usize,
    /// Each test that said so, and what it said.
    pub notes: Vec<Note>,
}

/// A line `skipped: …` in the output of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub test: String,
    pub reason: String,
}

impl Tally {
    /// Adds up every `test result:` line of `output`.
    ///
    /// A test that passed but printed `skipped: …` counts as skipped: what did not run must not look as if it had.
    pub fn read(output: &str) -> Self {
        let mut tally = Self::default();
        // The test whose output we are in, and whether it is one that passed.
        let mut test = "";
        let mut among_successes = false;
        // Only a test that passed may move from one count to the other, and once.
        let mut moved = Vec::new();
        for line in output.lines() {
            if let Some(counts) = line.strip_prefix("test result: ") {
                tally.passed += count_before(counts, " passed").saturating_sub(moved.len());
                tally.failed += count_before(counts, " failed");
                tally.skipped += count_before(counts, " ignored") + moved.len();
                moved.clear();
                test = "";
                among_successes = false;
            } else if line == "successes:" || line == "failures:" {
                among_successes = line == "successes:";
                test = "";
            } else if let Some(name) =
                line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
            {
                test = name;
            } else if let Some(reason) = line.trim_start().strip_prefix("skipped:") {
                if test.is_empty() {
                    continue;
                }
                tally.notes.push(Note { test: test.to_owned(), reason: reason.trim().to_owned() });
                if among_successes && !moved.contains(&test) {
                    moved.push(test);
                }
            }
        }
        tally
    }

    /// Adds the tests of another run.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.notes.extend(other.notes);
    }

    /// How many tests there were at all.
    pub fn seen(&self) -> usize {
        self.passed + self.failed + self.skipped
    }
}

/// The number in front of `unit`: 3 for " passed" in "ok. 3 passed; 1 failed".
fn count_before(counts: &str, unit: &str) -> usize {
    let Some((before, _)) = counts.split_once(unit) else { return 0 };
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_BINARIES: &str = "
running 4 tests
test a ... ok
test b ... ok
test c ... FAILED
test d ... ignored, too slow

successes:

---- b stdout ----
skipped: no AVX-512 on this machine
skipped: no VNNI on this machine


successes:
    a
    b

failures:

---- c stdout ----
skipped: nothing that matters
thread 'c' panicked at src/lib.rs:4:5


failures:
    c

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s


running 12 tests
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.10s
";

    #[test]
    fn results_add_up() {
        let tally = Tally::read(TWO_BINARIES);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (13, 1, 2));
        assert_eq!(tally.seen(), 16);
    }

    #[test]
    fn a_test_that_skipped_something_has_not_passed() {
        let tally = Tally::read(TWO_BINARIES);
        let b = tally.notes.iter().filter(|note| note.test == "b").collect::<Vec<_>>();
        assert_eq!(b.len(), 2);
        assert_eq!(b[0].reason, "no AVX-512 on this machine");
        // `c` failed: that it also skipped something must not hide the failure.
        assert_eq!(tally.failed, 1);
    }

    #[test]
    fn the_same_name_in_another_binary_is_another_test() {
        let one =
            "successes:\n---- t stdout ----\nskipped: x\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n";
        let tally = Tally::read(&one.repeat(2));
        assert_eq!((tally.passed, tally.skipped), (0, 2));
    }

    #[test]
    fn text_without_results_has_no_tests() {
        assert_eq!(Tally::read("error: could not compile\nskipped: by nobody\n"), Tally::default());
    }
}
