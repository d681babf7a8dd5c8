//! Boards with a microcontroller, emulated by `qemu-system-arm`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use elapid_boards as table;
use elapid_boards::Memory;
use serde_json::Value;

use super::elf;
use super::qemu::{Emulated, emulate};
use super::report::{Case, Report, measured};
use super::{Request, Target, fault};
use crate::apt::{Apt, Package, emulator};
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, shown};
use crate::programs::Program;
use crate::python;
use crate::toolchain::{Toolchain, models, root};

pub const QEMU: Package = Package { name: "qemu-system-arm", tool: Some("qemu-system-arm") };
pub const LLD: Package = Package { name: "lld", tool: Some("ld.lld") };

/// The Python package that emulates a CPU, and the environment that has it.
const UNICORN: &str = "unicorn==2.1.4";
const EMULATOR: &str = "unicorn";

/// What every board is asked for in its test.
const PROMPT: &str = "My fellow citizens";
const TOKENS: usize = 64;
/// A hang must end in an error, not in silence; a busy machine emulates slowly.
const LIMIT: Duration = Duration::from_secs(420);

/// What runs a board's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// `qemu-system-arm`, with the machine of the board's name.
    Qemu,
    /// A script in the board's folder: QEMU's CPU by way of the Python package `unicorn`, and its own model of the registers.
    Script(&'static str),
}

/// A board with a microcontroller, emulated.
#[derive(Debug)]
pub struct Mcu {
    pub name: &'static str,
    pub runner: Runner,
    /// Features of the program's crate, with commas.
    pub features: &'static str,
    /// Its memories, and how much of them the program may take.
    pub board: &'static table::Board,
    pub triple: &'static str,
    /// The CPU as the compiler knows it.
    pub cpu: &'static str,
    /// The model that the program is made for, in `host/models/`.
    pub model: &'static str,
    /// A model of another size, which the program must refuse; `None` where it runs any that fits.
    pub other_size: Option<&'static str>,
    /// Crates of the standard library that it links.
    pub build_std: &'static str,
    /// Words of its defmt logs, where it has them.
    pub logs: Option<&'static str>,
    /// Instructions that the emulator counts in a tick of the program's clock, where it counts them.
    pub instructions_a_tick: Option<u64>,
    /// Instructions that a token may take.
    pub instructions: u64,
}

impl Mcu {
    fn program(&self, toolchain: Toolchain) -> PathBuf {
        toolchain.target_dir().join(self.triple).join("release").join(self.board.name)
    }

    fn model<'a>(&self, request: &'a Request) -> std::borrow::Cow<'a, Path> {
        match &request.model {
            Some(model) => model.into(),
            None => models().join(self.model).into(),
        }
    }

    /// The emulator with `model` in the board's memory. What the program sends by semihosting goes to `logs`.
    fn emulator(&self, toolchain: Toolchain, model: Option<&Path>, logs: &Path) -> Command {
        if let Runner::Script(script) = self.runner {
            let mut command = Command::new(python::interpreter(EMULATOR));
            command.arg(root().join(script)).arg(self.program(toolchain)).args(model);
            return command;
        }
        let mut command = Command::new(emulator("qemu-system-arm"));
        command.args(["-M", self.board.name, "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-icount", "shift=0", "-chardev"]).arg(format!("file,id=logs,path={}", logs.display()));
        command.args(["-semihosting-config", "enable=on,target=native,chardev=logs", "-kernel"]);
        command.arg(self.program(toolchain));
        if let Some(model) = model {
            let (file, at) = (model.display(), self.board.model.start);
            command.arg("-device").arg(format!("loader,file={file},addr={at:#x},force-raw=on"));
        }
        command
    }

    /// The defmt frames that the program sent, as text.
    fn read_logs(&self, toolchain: Toolchain, logs: &Path) -> Result<String> {
        // For this machine, and with its own lock file: a decoder is no part of the workspace.
        let mut command = Toolchain::Current.cargo();
        command.args(["run", "--quiet", "--release", "--manifest-path", "boards/Cargo.toml"]);
        command.args(["-p", "elapid-board-log", "--target-dir"]).arg(root().join("target/boards"));
        capture(command.arg("--").arg(self.program(toolchain)).arg(logs))
    }

    /// Runs the program with what `change` makes of the model.
    fn with_fault(
        &self,
        toolchain: Toolchain,
        model: &[u8],
        script: &str,
        change: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<Emulated> {
        let mut bytes = model.to_vec();
        change(&mut bytes)?;
        let file = scratch(self.name, "-fault.elp")?;
        fs::write(&file, bytes).context(|| format!("cannot write {}", file.display()))?;
        let logs = scratch(self.name, "-fault.logs")?;
        emulate(&mut self.emulator(toolchain, Some(&file), &logs), script, LIMIT)
    }

    /// That the program refused what it was given, with a line that has all of `words`.
    fn refused(&self, what: &str, done: &Emulated, words: &[&str]) -> Result<()> {
        let line = done.console.lines().find(|line| words.iter().all(|word| line.contains(word)));
        if done.code != 0 && line.is_some_and(|line| line.contains("error: ")) {
            return Ok(());
        }
        Err(Error::new(format!(
            "{what}: {} ended with code {} and no error that has {words:?}; it wrote:\n{}",
            self.board.name, done.code, done.console
        )))
    }

    /// What the program measured, against its limits.
    fn measurements(&self, console: &str) -> Result<()> {
        let Some(instructions_a_tick) = self.instructions_a_tick else { return Ok(()) };
        let stack = measured(console, "stack")?;
        let instructions = measured(console, "ticks")? * instructions_a_tick;
        println!("{}: {instructions} instructions a token, {stack} bytes of stack", self.board.name);
        if stack > self.board.stack {
            let most = self.board.stack;
            return Err(Error::new(format!("{stack} bytes of stack were used, {most} are allowed")));
        }
        if instructions > self.instructions {
            let most = self.instructions;
            return Err(Error::new(format!("a token takes {instructions} instructions, {most} are allowed")));
        }
        Ok(())
    }

    /// Models that can't be run, each of which must be refused in words.
    fn bad_models(&self, toolchain: Toolchain, model: &[u8], script: &str) -> Result<()> {
        let logs = scratch(self.name, "-none.logs")?;
        let none = emulate(&mut self.emulator(toolchain, None, &logs), script, LIMIT)?;
        self.refused("no model", &none, &["not a packed model"])?;
        let newer = self.with_fault(toolchain, model, script, |file| fault::newer_version(file))?;
        self.refused("a newer version", &newer, &["version 2", "up to 1"])?;
        let large = self.with_fault(toolchain, model, script, fault::too_large)?;
        self.refused("a model too large", &large, &["the model has", "the memory for it"])?;
        let cut = self.with_fault(toolchain, model, script, |file| {
            file.truncate(file.len() / 2);
            Ok(())
        })?;
        self.refused("a model cut short", &cut, &["checksum does not match"])?;
        let damaged =
            self.with_fault(toolchain, model, script, |file| fault::damaged_weight(file).map(|_| ()))?;
        self.refused(
            "a damaged model",
            &damaged,
            &["of section layer", "offset", "checksum does not match"],
        )?;
        if let Some(other) = self.other_size {
            let file = models().join(other);
            let other = emulate(&mut self.emulator(toolchain, Some(&file), &logs), script, LIMIT)?;
            self.refused("a model of another size", &other, &["built for a model of", "this one has"])?;
        }
        Ok(())
    }
}

impl Target for Mcu {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> String {
        let emulator = if self.runner == Runner::Qemu { "QEMU" } else { "emulated" };
        format!("{} ({emulator} {})", self.triple, self.board.name)
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        if self.runner == Runner::Qemu {
            return Toolchain::for_target(self.triple, &[QEMU, LLD], apt);
        }
        python::ensure(apt, EMULATOR, &[UNICORN])?;
        Toolchain::for_target(self.triple, &[LLD], apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        build(toolchain, (self.triple, self.cpu), self.build_std, "release", self.board.name, self.features)?;
        let table::Board { name, code, ram, stack, .. } = *self.board;
        sizes(&self.program(toolchain), name, &[code, ram], stack)
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)?;
        let logs = scratch(self.name, ".logs")?;
        let mut command = self.emulator(toolchain, Some(&self.model(request)), &logs);
        println!("Type a prompt, or /exit.");
        must(&mut command)?;
        if self.logs.is_some() {
            println!("{}", self.read_logs(toolchain, &logs)?);
        }
        Ok(())
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)?;
        let file = self.model(request);
        let compute: &[&str] = match self.board.numbers {
            table::Numbers::Float => &[],
            table::Numbers::Fixed => &["--path", "fixed"],
        };
        let case = Case { model: &file, prompt: PROMPT, tokens: TOKENS, seed: 1, compute };
        let script = case.script();
        let logs = scratch(self.name, ".logs")?;
        let mut command = self.emulator(toolchain, Some(&file), &logs);
        let done = emulate(&mut command, &script, LIMIT)?;
        if done.code != 0 {
            return Err(Error::new(format!("`{}` ended with code {}", shown(&command), done.code)));
        }
        let report = Report::read(&done.console)?;
        if report.tokens.len() != TOKENS {
            return Err(Error::new(format!("{} tokens came, not {TOKENS}", report.tokens.len())));
        }
        let host = case.on_host(&report)?;
        report.compare(&host)?;
        report.snapshot_is(self.name, request.overwrite)?;
        self.measurements(&done.console)?;
        if self.board.heap.is_none() && self.runner == Runner::Qemu {
            predicted(&self.program(toolchain), self.board, &file)?;
        }
        if let Some(words) = self.logs {
            let text = self.read_logs(toolchain, &logs)?;
            println!("{text}");
            if !text.contains(words) {
                return Err(Error::new(format!("the logs don't say `{words}`")));
            }
        }

        let model = fs::read(&file).context(|| format!("cannot read {}", file.display()))?;
        let canary = self.with_fault(toolchain, &model, &script, |file| fault::another_weight(file))?;
        if Report::read(&canary.console)?.compare(&host).is_ok() {
            return Err(Error::new("the comparison is broken: it does not see that a weight was changed"));
        }
        let short = Case { tokens: 1, ..case }.script();
        self.bad_models(toolchain, &model, &short)
    }

    fn flash(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        if let Runner::Script(_) = self.runner {
            return Err(Error::new(format!("{} is for an emulator; `flash` {}", self.name, self.board.name)));
        }
        Err(Error::new(format!(
            "{} is an FPGA board that loads its image from an SD card; boards/{}/README.md says how. `run` runs it \
             under QEMU",
            self.board.name, self.board.name
        )))
    }
}

/// Builds the program of a board's crate for a CPU as the compiler knows it, perhaps followed by flags; `features` are the
/// crate's, with commas.
pub fn build(
    toolchain: Toolchain,
    (triple, cpu): (&str, &str),
    build_std: &str,
    profile: &str,
    name: &str,
    features: &str,
) -> Result<()> {
    let flags = format!("-C target-cpu={cpu} -C linker=ld.lld");
    let mut command = toolchain.cargo_for("build", triple, &flags, build_std);
    command
        .args(["--profile", profile, "--manifest-path", "boards/Cargo.toml", "-p"])
        .arg(format!("elapid-{name}"))
        .args((!features.is_empty()).then_some(["--features", features]).into_iter().flatten());
    // Without it defmt leaves all but errors out when the program is compiled.
    command.env("DEFMT_LOG", "info").arg("--target-dir").arg(toolchain.target_dir());
    must(&mut command)
}

/// Checks what a program takes of its board's memories; the stack is in what is left of the last one.
pub fn sizes(program: &Path, name: &str, memories: &[Memory], stack: u64) -> Result<()> {
    let mut left = 0;
    for memory in memories {
        let taken = elf::taken(program, memory)?;
        println!("{name}: {taken} of {} bytes of {} taken", memory.bytes, memory.name);
        left = memory.bytes.checked_sub(taken).ok_or_else(|| {
            Error::new(format!(
                "the program takes {taken} bytes of {}, which has {}",
                memory.name, memory.bytes
            ))
        })?;
    }
    if left < stack {
        return Err(Error::new(format!("{left} bytes are left for a stack that may take {stack}")));
    }
    Ok(())
}

/// That `elapid info --board` says of the model that `program` is built for what the linker says of the program.
pub fn predicted(program: &Path, board: &table::Board, model: &Path) -> Result<()> {
    /// Bytes that the linker may add to align data.
    const PADDING: u64 = 64;
    let arguments = ["info", &model.to_string_lossy(), "--json", "--board", board.name].map(str::to_owned);
    let report = Program::Elapid.build()?.output(arguments)?;
    let report: Value = serde_json::from_str(&report)
        .context(|| format!("`elapid info --json` printed something else than JSON: {report}"))?;
    let fit = &report["board"];
    let need = fit["ram"]["need_bytes"].as_u64().and_then(|need| need.checked_sub(board.stack));
    let linked = elf::taken(program, &board.ram)?;
    if fit["fits"] != Value::Bool(true) || need.is_none_or(|need| need.abs_diff(linked) > PADDING) {
        return Err(Error::new(format!(
            "the linker gave {} {linked} bytes of data; `elapid info --board` says, with {} bytes of stack: {fit}",
            board.name, board.stack
        )));
    }
    Ok(())
}

/// A file that a board's step writes: its name begins with the board's, since steps run side by side.
pub fn scratch(board: &str, rest: &str) -> Result<PathBuf> {
    let folder = root().join("target/boards");
    fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("{board}{rest}")))
}
