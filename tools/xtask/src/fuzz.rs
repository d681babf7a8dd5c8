//! Fuzzing: by libFuzzer where a nightly compiler is, else by proptest on random inputs. The targets are the same code
//! (`tests/src/fuzz`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;

use crate::error::{Context, Error, Result};
use crate::exec::{must, on_path, shown, succeeds, tee, wait_within, within};
use crate::libtest::Tally;
use crate::toolchain::{Toolchain, root};

/// A fuzz target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Packed files of any shape, through all kernels
    Model,
    /// Tokenizer tables, and texts through them
    Tokenizer,
    /// Generation defaults, role tables and chat templates
    Data,
    /// Checkpoints, through the packer
    Pack,
    /// Session files
    Session,
}

const ALL: [Target; 5] = [Target::Model, Target::Tokenizer, Target::Data, Target::Pack, Target::Session];
/// Seconds that `cargo xtask test` gives libFuzzer for each target.
const SECONDS: u64 = 60;
/// Rounds of `tests/tests/fuzz.rs` in `cargo xtask test`, each of about a second, and with `--full`.
const ROUNDS: u64 = 10;
const FULL_ROUNDS: u64 = 30;
/// Seconds, or rounds, in which a planted fault must be found.
const PLANTED: u64 = 60;
/// The variable that plants a fault in the target that it names.
const FAULT: &str = "ELAPID_FUZZ_FAULT";

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Tokenizer => "tokenizer",
            Self::Data => "data",
            Self::Pack => "pack",
            Self::Session => "session",
        }
    }
}

/// What makes inputs.
enum Engine {
    /// cargo-fuzz, with the nightly compiler or with the one that runs this program.
    LibFuzzer {
        cargo_fuzz: PathBuf,
        nightly: bool,
    },
    Proptest,
}

/// `cargo xtask fuzz`: fuzzes one target or all for some minutes each.
pub fn fuzz(only: Option<Target>, minutes: u64, install: bool) -> Result<()> {
    let targets = only.map_or(ALL.to_vec(), |target| vec![target]);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Engine::find(install).run(&targets, 60 * minutes, seed).map(|_| ())
}

/// The step of `cargo xtask test`: finds a planted fault in every target, and none without.
pub fn check(install: bool, full: bool) -> Result<Tally> {
    let engine = Engine::find(install);
    let time = match engine {
        Engine::LibFuzzer { .. } => SECONDS,
        Engine::Proptest if full => FULL_ROUNDS,
        Engine::Proptest => ROUNDS,
    };
    // Always the same inputs as far as they get: a run of CI depends on the change, not on luck.
    let mut tests = engine.run(&ALL, time, 1)?;
    for target in ALL {
        engine.find_planted(target)?;
        println!("{}: the planted fault was found", target.name());
        tests.passed += 1;
    }
    Ok(tests)
}

impl Engine {
    /// libFuzzer with a nightly compiler, or with this one if `RUSTC_BOOTSTRAP` is set; else proptest. Says which.
    fn find(install: bool) -> Self {
        let nightly = succeeds(Command::new("rustup").args(["run", "nightly", "rustc", "--version"]));
        if !nightly && std::env::var_os("RUSTC_BOOTSTRAP").is_none() {
            println!("fuzzing with proptest: for libFuzzer, `rustup toolchain install nightly`");
            return Self::Proptest;
        }
        match cargo_fuzz(install) {
            Ok(cargo_fuzz) => Self::LibFuzzer { cargo_fuzz, nightly },
            Err(error) => {
                println!("fuzzing with proptest: {error}");
                Self::Proptest
            }
        }
    }

    /// Fuzzes `targets` for some seconds (or rounds) each; an error names those in which something was found.
    fn run(&self, targets: &[Target], time: u64, seed: u64) -> Result<Tally> {
        let Self::LibFuzzer { .. } = self else { return proptest(targets, time, seed) };
        self.build()?;
        let mut tests = Tally::default();
        let mut found = Vec::new();
        for group in targets.chunks(available_parallelism().map_or(1, usize::from)) {
            let started: Vec<(Target, Child)> = group
                .iter()
                .map(|&target| {
                    write_seeds(&root().join("fuzz/corpus").join(target.name()))?;
                    let mut command = self.libfuzzer(&["run", target.name(), "--", "-print_final_stats=1"]);
                    command.args(limits(time)).arg(format!("-seed={}", seed as u32));
                    println!("$ {}", shown(&command));
                    Ok((target, command.spawn().context(|| format!("cannot start `{}`", shown(&command)))?))
                })
                .collect::<Result<_>>()?;
            for (target, mut child) in started {
                let ended = wait_within(limit(time), &mut child);
                if ended.context(|| format!("fuzzing {} did not end", target.name()))?.success() {
                    tests.passed += 1;
                } else {
                    found.push(target.name());
                }
            }
        }
        if found.is_empty() {
            return Ok(tests);
        }
        Err(Error::new(format!(
            "fuzzing found a fault in {}: the input is in fuzz/artifacts, and a command that runs it again is above",
            found.join(" and ")
        )))
    }

    /// An error if a fault that is planted in `target` is not found.
    fn find_planted(&self, target: Target) -> Result<()> {
        let name = target.name();
        let missed = || Error::new(format!("fuzzing did not find the fault that was planted in {name}"));
        let Self::LibFuzzer { .. } = self else {
            let mut command = driver(&[target], PLANTED, 0);
            let output = command.env(FAULT, name).output();
            let output = output.context(|| format!("cannot start `{}`", shown(&command)))?;
            let tests = Tally::read(&String::from_utf8_lossy(&output.stdout));
            return if (tests.passed, tests.failed) == (0, 1) { Ok(()) } else { Err(missed()) };
        };
        let folder = root().join("fuzz/artifacts/planted").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        let corpus = folder.join("corpus");
        write_seeds(&corpus)?;
        let mut command = self.libfuzzer(&["run", name]);
        command.arg(&corpus).args(["--", "-print_final_stats=1"]).args(limits(PLANTED));
        command.arg(format!("-artifact_prefix={}/", folder.display())).env(FAULT, name);
        // It reports a fault, as it must; what it says of that would only mislead.
        let _ = within(limit(PLANTED), command.stdout(Stdio::null()).stderr(Stdio::null()));
        let crash = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("crash-"))
        };
        let found = std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.any(crash));
        let _ = std::fs::remove_dir_all(&folder);
        if found { Ok(()) } else { Err(missed()) }
    }

    fn build(&self) -> Result<()> {
        must(&mut self.libfuzzer(&["build"]))
    }

    /// A command of cargo-fuzz.
    fn libfuzzer(&self, arguments: &[&str]) -> Command {
        let Self::LibFuzzer { cargo_fuzz, nightly } = self else { return Command::new("true") };
        let mut command = if *nightly { Command::new("rustup") } else { Command::new(cargo_fuzz) };
        if *nightly {
            command.args(["run", "nightly"]).arg(cargo_fuzz);
            // Those of the toolchain that runs this program.
            for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"] {
                command.env_remove(name);
            }
        }
        command.args(arguments).current_dir(root());
        command
    }
}

/// libFuzzer's limits: seconds for all, seconds and MB for one input, and bytes of an input.
fn limits(seconds: u64) -> [String; 5] {
    let time = format!("-max_total_time={seconds}");
    ["-timeout=60", "-rss_limit_mb=1024", "-max_len=4096", "-len_control=0", &time].map(str::to_owned)
}

/// How long libFuzzer may take that has `seconds`: it has been seen to hang where it reports what it found.
fn limit(seconds: u64) -> Duration {
    Duration::from_secs(2 * seconds + 180)
}

/// cargo-fuzz on the path or in `.xtask`, where it is installed if it may be.
fn cargo_fuzz(install: bool) -> Result<PathBuf> {
    let ours = root().join(".xtask/bin/cargo-fuzz");
    if let Some(there) = on_path("cargo-fuzz").or_else(|| ours.is_file().then(|| ours.clone())) {
        return Ok(there);
    }
    let how = "`cargo install cargo-fuzz` makes libFuzzer available";
    if !install {
        return Err(Error::new(how));
    }
    let mut command = Toolchain::Current.cargo();
    command.args(["install", "--locked", "cargo-fuzz", "--version", "^0.13", "--root"]);
    must(command.arg(root().join(".xtask"))).context(|| how.into())?;
    Ok(ours)
}

/// Inputs to begin with: noise of several lengths, since any bytes are an input.
fn write_seeds(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
    let mut state = 1u64;
    for i in 0..32 {
        let bytes: Vec<u8> = (0..64 << (i % 6))
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let path = folder.join(format!("seed-{i:02}"));
        std::fs::write(&path, bytes).context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// `tests/tests/fuzz.rs` on some targets.
fn driver(targets: &[Target], rounds: u64, seed: u64) -> Command {
    let mut command = Toolchain::Current.cargo();
    command.args(["test", "-p", "elapid-tests", "--test", "fuzz", "--", "--show-output", "--exact"]);
    command.args(targets.iter().map(|target| target.name()));
    command.env("ELAPID_FUZZ_ROUNDS", rounds.to_string()).env("ELAPID_FUZZ_SEED", seed.to_string());
    command
}

fn proptest(targets: &[Target], rounds: u64, seed: u64) -> Result<Tally> {
    let mut command = driver(targets, rounds, seed);
    println!("$ {}", shown(&command));
    let finished = tee(&mut command)?;
    let tests = Tally::read(&finished.stdout);
    if finished.success && tests.passed == targets.len() {
        return Ok(tests);
    }
    Err(Error::new(format!("`{}` failed: the input is above", shown(&command))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_its_file() {
        let folder = root().join("fuzz/fuzz_targets");
        let files = std::fs::read_dir(&folder).unwrap().count();
        assert_eq!(files, ALL.len());
        for target in ALL {
            assert!(folder.join(target.name()).with_extension("rs").is_file(), "{target:?}");
        }
    }
}
