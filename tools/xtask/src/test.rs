//! `cargo xtask test`: runs the steps and prints what ran where.

use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::apt::{Apt, Package, QEMU_USER};
use crate::bare;
use crate::board;
use crate::error::{Error, Result};
use crate::exec::{Finished, must, run, shown, succeeds, tee};
use crate::fuzz;
use crate::integers;
use crate::lanes;
use crate::libtest::Tally;
use crate::python;
use crate::steps::{EMULATED_LIMIT, STEPS, Step, Work, select};
use crate::table::{Outcome, Row, clock, problems, render, totals};
use crate::toolchain::{AARCH64_LINUX, Toolchain, host, root};

/// What disassembles.
const LLVM: Package = Package { name: "llvm", tool: Some("llvm-objdump") };

/// Prints the names that `--only` takes.
pub fn list() {
    for Step { name, group, shows, required, full, .. } in STEPS {
        let required = if *required {
            "required"
        } else if *full {
            "full"
        } else {
            ""
        };
        println!("{name:15} {group:8} {required:9} {shows}");
    }
}

/// Runs the steps that `only` names, all if it is empty, up to `jobs` of them at once.
pub fn test(only: &[String], full: bool, install: bool, jobs: Option<NonZeroUsize>) -> Result<ExitCode> {
    let chosen = select_steps(only, full)?;
    let ci = is_ci();
    let jobs = jobs.map_or_else(default_jobs, NonZeroUsize::get);
    let rows = if jobs == 1 || chosen.len() == 1 {
        let (host, mut apt) = (host()?, Apt::new(install));
        chosen.iter().map(|step| perform(step, &host, full, install, &mut apt)).collect()
    } else {
        lanes::run(&chosen, full, install, jobs)?
    };

    println!("\n{}", render(&rows));
    let problems = problems(&rows, ci);
    for problem in &problems {
        println!("error: {problem}");
    }
    println!("{}", totals(&rows));
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one step and writes its row of the table to `file`: a process of [`lanes`].
pub fn one_step(name: &str, full: bool, install: bool, file: &Path) -> Result<ExitCode> {
    let step = STEPS.iter().find(|step| step.name == name);
    let step = step.ok_or_else(|| Error::new(format!("no step is called `{name}`; `--list` shows them")))?;
    lanes::write_row(file, &perform(step, &host()?, full, install, &mut Apt::new(install)))?;
    Ok(ExitCode::SUCCESS)
}

fn select_steps(only: &[String], full: bool) -> Result<Vec<&'static Step>> {
    select(only, full)
        .map_err(|name| Error::new(format!("no step or group is called `{name}`; `--list` shows them")))
}

/// A step keeps one core busy most of the time: emulators and linkers have one thread.
fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(4)
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}

/// What a step came to before it became a row.
struct Done {
    outcome: Outcome,
    tests: Tally,
}

fn perform(step: &Step, host: &str, full: bool, install: bool, apt: &mut Apt) -> Row {
    println!("\n=== {}: {}", step.name, step.shows);
    let start = Instant::now();
    let target = match &step.work {
        Work::Host { .. }
        | Work::Plugin { .. }
        | Work::Python { .. }
        | Work::HostTests { .. }
        | Work::PythonTests { .. }
        | Work::Fuzz => host.to_owned(),
        Work::Bare { target, .. } | Work::Checked { target } | Work::Integers { target, .. } => {
            (*target).to_owned()
        }
        Work::Emulated { cpu, .. } => format!("{AARCH64_LINUX} ({cpu})"),
        Work::Target { name } => {
            board::find(name).map_or_else(|_| (*name).into(), |target| target.platform())
        }
    };
    let done = match &step.work {
        Work::Host { commands, env } => on_host(commands, env),
        Work::Plugin { name, commands } => prepared(plugin(name), |()| on_host(commands, &[])),
        Work::Python { package, program, arguments } => {
            prepared(python::ensure(apt, program, &[package]), |()| with_python(program, arguments))
        }
        Work::HostTests { arguments } => run_tests([host_tests(arguments, full)]),
        Work::PythonTests { name, packages, needs, arguments } => {
            let ready = python::ensure(apt, name, packages).and_then(|()| apt.ensure(needs));
            prepared(ready, |()| {
                let mut command = host_tests(arguments, full);
                command.env("ELAPID_PYTHON", python::interpreter(name));
                run_tests([command])
            })
        }
        Work::Fuzz => fuzz::check(install, full).map(|tests| Done { outcome: Outcome::Passed, tests }),
        Work::Checked { target } => prepared(Toolchain::for_target(target, &[], apt), |toolchain| {
            let mut command = toolchain.cargo_for("check", target, "-D warnings", "std");
            // The cryptography of the Hub's connections needs a C compiler for that system.
            must(command.args(["--no-default-features", "-p", "elapid-cli", "-p", "elapid-pack-cli"]))
                .map(passed)
        }),
        Work::Bare { target, rustflags } => prepared(Toolchain::for_target(target, &[], apt), |toolchain| {
            bare::build(toolchain, target, rustflags).map(passed)
        }),
        Work::Integers { target, cpu, kernels } => {
            prepared(Toolchain::for_target(target, &[LLVM], apt), |toolchain| {
                integers::check(toolchain, target, cpu, kernels).map(passed)
            })
        }
        Work::Emulated { cpu, tests } => {
            prepared(Toolchain::for_target(AARCH64_LINUX, &[QEMU_USER], apt), |toolchain| {
                run_tests(tests.iter().map(|test| emulated(toolchain, cpu, test)))
            })
        }
        Work::Target { name } => board::find(name).and_then(|target| {
            prepared(target.tools(apt), |toolchain| {
                target.test(toolchain, &board::Request::default()).map(passed)
            })
        }),
    };
    let Done { outcome, tests } = done.unwrap_or_else(|error| Done {
        outcome: Outcome::Failed(error.to_string()),
        tests: Tally::default(),
    });
    let took = start.elapsed();
    match &outcome {
        Outcome::Passed => println!("--- {}: ok, {}", step.name, clock(took)),
        Outcome::Failed(reason) => println!("--- {}: FAILED, {}: {reason}", step.name, clock(took)),
        Outcome::Skipped(reason) => println!("--- {}: SKIPPED: {reason}", step.name),
    }
    Row { step: step.name.into(), target, required: step.required, outcome, tests, took }
}

/// `cargo test` on this machine.
fn host_tests(arguments: &[&str], full: bool) -> Command {
    let mut command = Toolchain::Current.cargo();
    command.arg("test").args(arguments).args(["--no-fail-fast", "--", "--show-output"]);
    command.envs(full.then_some(("ELAPID_FULL", "1")));
    command
}

/// That cargo has a plugin.
fn plugin(name: &str) -> Result<()> {
    if succeeds(Toolchain::Current.cargo().args([name, "--version"])) {
        return Ok(());
    }
    Err(Error::new(format!("cargo-{name} is not installed; `cargo install cargo-{name}` installs it")))
}

fn on_host(commands: &[&[&str]], env: &[(&str, &str)]) -> Result<Done> {
    for arguments in commands {
        let mut command = Toolchain::Current.cargo();
        command.args(*arguments).envs(env.iter().copied());
        println!("$ {}", shown(&command));
        if !run(&mut command)?.success {
            return Ok(failed(format!("`{}` failed", shown(&command)), Tally::default()));
        }
    }
    Ok(passed(()))
}

fn with_python(program: &str, arguments: &[&str]) -> Result<Done> {
    must(Command::new(python::program(program, program)).args(arguments).current_dir(root())).map(passed)
}

/// Does the work once what it needs is there, or says what is missing.
fn prepared<T>(ready: Result<T>, work: impl FnOnce(T) -> Result<Done>) -> Result<Done> {
    match ready {
        Ok(ready) => work(ready),
        Err(missing) => Ok(skipped(&missing)),
    }
}

fn passed((): ()) -> Done {
    Done { outcome: Outcome::Passed, tests: Tally::default() }
}

/// Runs all of `commands`, also after one has failed.
fn run_tests(commands: impl IntoIterator<Item = Command>) -> Result<Done> {
    let runs = commands.into_iter().map(|mut command| {
        let line = shown(&command);
        println!("$ {line}");
        tee(&mut command).map(|finished| (line, finished))
    });
    runs.collect::<Result<Vec<_>>>().map(judge)
}

fn judge(runs: Vec<(String, Finished)>) -> Done {
    let mut tests = Tally::default();
    let mut broken = Vec::new();
    for (line, finished) in runs {
        let tally = Tally::read(&finished.stdout);
        if !finished.success {
            broken.push(format!("`{line}` failed"));
        } else if tally.seen() == 0 {
            // Either a name in `steps` no longer fits, or libtest's output is no longer understood.
            broken.push(format!("`{line}` ran no test"));
        }
        tests.add(tally);
    }
    if broken.is_empty() {
        Done { outcome: Outcome::Passed, tests }
    } else {
        failed(broken.join("; "), tests)
    }
}

/// `cargo test` for aarch64 Linux on an emulated `cpu`.
///
/// The binaries are static: under QEMU a dynamic one takes its loader from one glibc and its libraries from another.
fn emulated(toolchain: Toolchain, cpu: &str, arguments: &[&str]) -> Command {
    let mut command = toolchain.cargo_for("test", AARCH64_LINUX, "-C target-feature=+crt-static", "");
    let runner = format!("timeout --foreground --kill-after=10 {EMULATED_LIMIT} qemu-aarch64 -cpu {cpu}");
    command
        .args(arguments)
        .args(["--no-fail-fast", "--", "--show-output"])
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner)
        .env("ELAPID_EMULATED", "1");
    command
}

fn failed(reason: String, tests: Tally) -> Done {
    Done { outcome: Outcome::Failed(reason), tests }
}

fn skipped(missing: &Error) -> Done {
    Done { outcome: Outcome::Skipped(missing.to_string()), tests: Tally::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(success: bool, stdout: &str) -> (String, Finished) {
        ("cargo test".into(), Finished { success, stdout: stdout.into() })
    }

    #[test]
    fn one_failure_does_not_hide_the_rest() {
        let done = judge(vec![
            ran(false, "test result: FAILED. 1 passed; 1 failed; 0 ignored;"),
            ran(true, "test result: ok. 5 passed; 0 failed; 0 ignored;"),
        ]);
        assert!(matches!(done.outcome, Outcome::Failed(_)));
        assert_eq!((done.tests.passed, done.tests.failed), (6, 1));
    }

    #[test]
    fn what_did_not_compile_has_failed() {
        assert!(matches!(judge(vec![ran(false, "")]).outcome, Outcome::Failed(_)));
    }

    #[test]
    fn a_plugin_that_is_absent_is_named() {
        assert!(plugin("fmt").is_ok());
        let missing = plugin("no-such-plugin").unwrap_err().to_string();
        assert_eq!(
            missing,
            "cargo-no-such-plugin is not installed; `cargo install cargo-no-such-plugin` installs it"
        );
    }

    #[test]
    fn no_test_at_all_is_a_failure() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored;";
        assert!(matches!(judge(vec![ran(true, none)]).outcome, Outcome::Failed(_)));
    }

    #[test]
    fn the_emulated_run_names_its_cpu_and_says_that_it_is_emulated() {
        let line = shown(&emulated(Toolchain::Debian, "cortex-a53", &["-p", "elapid-core"]));
        assert!(line.contains("qemu-aarch64 -cpu cortex-a53"), "{line}");
        assert!(line.contains("ELAPID_EMULATED=1"), "{line}");
        assert!(!line.contains("build-std"), "{line}");
    }
}
