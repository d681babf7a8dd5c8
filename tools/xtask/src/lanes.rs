//! Several steps at once: each is a process of its own, and what it prints appears when it ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::exec;
use crate::libtest::Tally;
use crate::steps::Step;
use crate::table::{Outcome, Row};
use crate::toolchain::Toolchain;

/// How long a step may take, several times what the slowest does: one that hangs must end in a table that says so.
const LIMIT: Duration = Duration::from_secs(35 * 60);

/// Which steps wait and which run. Places are those in the list of steps.
struct Queue<'s> {
    waiting: Vec<(usize, &'s Step)>,
    running: Vec<(usize, &'s Step)>,
    rows: Vec<(usize, Row)>,
}

impl<'s> Queue<'s> {
    fn new(steps: &[&'s Step]) -> Self {
        let waiting = steps.iter().copied().enumerate().collect();
        Self { waiting, running: Vec::new(), rows: Vec::new() }
    }

    /// Takes the first step that needs nothing which a running one has to itself.
    fn take(&mut self) -> Option<(usize, &'s Step)> {
        let taken = |resource| self.running.iter().any(|(_, step)| step.resource() == Some(resource));
        let free = |step: &Step| !step.resource().is_some_and(taken);
        let next = self.waiting.iter().position(|(_, step)| free(step))?;
        let next = self.waiting.remove(next);
        self.running.push(next);
        Some(next)
    }

    fn finish(&mut self, place: usize, row: Row) {
        self.running.retain(|(running, _)| *running != place);
        self.rows.push((place, row));
    }
}

/// Runs `steps`, up to `jobs` at once; the rows are in the order of the steps.
pub fn run(steps: &[&Step], full: bool, install: bool, jobs: usize) -> Result<Vec<Row>> {
    let folder = Toolchain::Current.target_dir().join("xtask-steps");
    fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    let (queue, changed) = (Mutex::new(Queue::new(steps)), Condvar::new());
    let work = || {
        while let Some((place, step)) = next(&queue, &changed) {
            let row = perform(step, full, install, &folder);
            lock(&queue).finish(place, row);
            changed.notify_all();
        }
    };
    thread::scope(|scope| {
        for _ in 1..jobs.min(steps.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut rows = queue.into_inner().unwrap_or_else(PoisonError::into_inner).rows;
    rows.sort_by_key(|(place, _)| *place);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Waits for a step that can run now; `None` if no more will come.
fn next<'s>(queue: &Mutex<Queue<'s>>, changed: &Condvar) -> Option<(usize, &'s Step)> {
    let mut queue = lock(queue);
    loop {
        if let Some(step) = queue.take() {
            return Some(step);
        }
        if queue.waiting.is_empty() {
            return None;
        }
        queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<'q, 's>(queue: &'q Mutex<Queue<'s>>) -> MutexGuard<'q, Queue<'s>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one step as a process and prints what it printed.
fn perform(step: &Step, full: bool, install: bool, folder: &Path) -> Row {
    println!("... {} runs", step.name);
    let (log, row) =
        (folder.join(step.name).with_extension("log"), folder.join(step.name).with_extension("json"));
    let start = Instant::now();
    let result = process(step, full, install, &log, &row);
    // One call, so that no other step's lines come between.
    print!("{}", String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()));
    result.unwrap_or_else(|error| {
        println!("--- {}: FAILED: {error}", step.name);
        broken(step, &error, start.elapsed())
    })
}

fn process(step: &Step, full: bool, install: bool, log: &Path, row: &PathBuf) -> Result<Row> {
    let _ = fs::remove_file(row);
    let output = File::create(log).context(|| format!("cannot write {}", log.display()))?;
    let errors = output.try_clone().context(|| format!("cannot write {}", log.display()))?;
    let program = std::env::current_exe().context(|| "cannot find this program's file".into())?;
    let mut command = Command::new(program);
    command.args(["test", "--only", step.name, "--row"]).arg(row);
    command.args(full.then_some("--full")).args((!install).then_some("--no-install"));
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let status = exec::within(LIMIT, &mut command)?;
    let text =
        fs::read(row).map_err(|_| Error::new(format!("its process ended without a result ({status})")))?;
    serde_json::from_slice(&text).context(|| format!("cannot read {}", row.display()))
}

/// Writes what [`process`] reads.
pub fn write_row(file: &Path, row: &Row) -> Result<()> {
    let text = serde_json::to_vec(row).context(|| format!("cannot write the result of {}", row.step))?;
    fs::write(file, text).context(|| format!("cannot write {}", file.display()))
}

fn broken(step: &Step, error: &Error, took: Duration) -> Row {
    Row {
        step: step.name.into(),
        target: String::new(),
        required: step.required,
        outcome: Outcome::Failed(error.to_string()),
        tests: Tally::default(),
        took,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::select;

    #[test]
    fn steps_that_share_a_resource_do_not_run_at_once() {
        let names = ["fmt", "clippy", "pi-linux", "pi-linux-kernel"].map(String::from);
        let steps = select(&names, false).unwrap();
        let mut queue = Queue::new(&steps);
        let mut take = || queue.take().map(|(_, step)| step.name);
        assert_eq!([take(), take(), take()], [Some("fmt"), Some("pi-linux"), None]);
        queue.finish(0, broken(steps[0], &Error::new("x"), Duration::ZERO));
        assert_eq!(queue.take().map(|(_, step)| step.name), Some("clippy"));
        assert_eq!(queue.take().map(|(_, step)| step.name), None);
    }

    #[test]
    fn a_row_can_be_read_back() {
        let step = select(&["fmt".into()], false).unwrap()[0];
        let row = broken(step, &Error::new("cause"), Duration::from_millis(1500));
        let file = std::env::temp_dir().join(format!("elapid-row-{}", std::process::id()));
        write_row(&file, &row).unwrap();
        let again: Row = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!((again.outcome, again.step, again.took), (row.outcome, row.step, row.took));
    }
}
