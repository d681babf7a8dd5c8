//! The fixed path's bits on microcontrollers: `boards/fixed-bits` runs packed fixtures, and its checksums of the logits are
//! those that the host's tests store and compare with every other instruction set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use elapid_boards::Memory;

use super::mcu::{LLD, QEMU, build, scratch, sizes};
use super::qemu::emulate;
use super::report::{field, measured};
use super::{Request, Target, fault};
use crate::apt::{Apt, emulator};
use crate::error::{Context, Error, Result};
use crate::programs::{Built, Program, pack};
use crate::toolchain::{Toolchain, models, root};

/// The name of the program and its folder.
const PROGRAM: &str = "fixed-bits";
const MODEL_AT: u32 = 0x2020_0000;
const TOKENS_AT: u32 = 0x2038_0000;
/// Tokens that the stored checksums are of.
const TOKENS: usize = 256;
const MEMORIES: [Memory; 2] = [
    Memory { name: "code memory", start: 0, bytes: 4 << 20 },
    Memory { name: "RAM", start: 0x2000_0000, bytes: 2 << 20 },
];
/// A hang must end in an error, not in silence; a busy machine emulates slowly.
const LIMIT: Duration = Duration::from_secs(420);
/// Bytes of stack that the whole program may take; the step's part of it is checked in its code (`integers-…`).
const STACK: u64 = 8 << 10;
/// Instructions that QEMU counts in a tick of the program's clock.
const A_TICK: u64 = 40;

/// The bundled model that the limit is for, as it is committed.
const BUNDLED: &str = "address-300k";
/// Committed checkpoints of both architectures: odd sizes, biases, 24 states and a convolution over 8 tokens, the ranges
/// of a real model.
const FIXTURES: [&str; 4] = ["falcon-odd", "mamba-bias", "falcon-state24", "mamba-harsh"];

/// A CPU that the program runs on.
#[derive(Debug)]
pub struct Bits {
    name: &'static str,
    triple: &'static str,
    cpu: &'static str,
    /// QEMU's name of the board.
    machine: &'static str,
    /// What the program must say of its kernels.
    kernels: &'static str,
    /// Instructions that a token of the bundled model may take: what was counted, and some for other compilers.
    instructions: u64,
}

/// Cortex-M3: no floating point, one product an instruction.
pub const M3: Bits = Bits {
    name: "fixed-m3",
    triple: "thumbv7m-none-eabi",
    cpu: "cortex-m3",
    machine: "mps2-an385",
    kernels: "Thumb-2",
    instructions: 2_300_000,
};

/// Cortex-M7: two products an instruction.
pub const M7: Bits = Bits {
    name: "fixed-m7",
    triple: "thumbv7em-none-eabihf",
    cpu: "cortex-m7",
    machine: "mps2-an500",
    kernels: "Cortex-M DSP",
    instructions: 1_520_000,
};

/// What the program said of a model.
struct Ran {
    logits: String,
    instructions: u64,
    stack: u64,
}

impl Bits {
    fn program(&self, toolchain: Toolchain) -> PathBuf {
        toolchain.target_dir().join(self.triple).join("release").join(PROGRAM)
    }

    fn run(&self, toolchain: Toolchain, model: &Path, tokens: &[u32]) -> Result<Ran> {
        let file = scratch(self.name, ".tokens")?;
        let words = std::iter::once(tokens.len() as u32).chain(tokens.iter().copied());
        fs::write(&file, words.flat_map(u32::to_le_bytes).collect::<Vec<_>>())
            .context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(emulator("qemu-system-arm"));
        command.args(["-M", self.machine, "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-icount", "shift=0", "-semihosting-config", "enable=on,target=native", "-kernel"]);
        command.arg(self.program(toolchain));
        for (file, at) in [(model, MODEL_AT), (&file, TOKENS_AT)] {
            command.arg("-device").arg(format!("loader,file={},addr={at:#x},force-raw=on", file.display()));
        }
        let done = emulate(&mut command, "", LIMIT)?;
        let said = |name| field(&done.console, name).map(str::to_owned);
        let (Some(kernels), Some(logits), 0) = (said("kernels"), said("logits"), done.code) else {
            return Err(Error::new(format!("it ended with code {}; it wrote:\n{}", done.code, done.console)));
        };
        if kernels != self.kernels || measured(&done.console, "tokens")? != tokens.len() as u64 {
            return Err(Error::new(format!("not {TOKENS} tokens by {}: {}", self.kernels, done.console)));
        }
        let instructions = measured(&done.console, "ticks")? * A_TICK;
        Ok(Ran { logits, instructions, stack: measured(&done.console, "stack")? })
    }

    /// Runs a model, whose logits must have the checksum that is stored under `name`.
    fn compare(&self, toolchain: Toolchain, name: &str, model: &Path, tokens: &[u32]) -> Result<Ran> {
        let of_model = |error: Error| Error::new(format!("{name}: {error}"));
        let ran = self.run(toolchain, model, tokens).map_err(of_model)?;
        let stored = stored(name)?;
        println!("{name}: {} instructions a token, {} bytes of stack", ran.instructions, ran.stack);
        if ran.logits != stored {
            return Err(Error::new(format!("{name}: the logits' checksum is {}, not {stored}", ran.logits)));
        }
        if ran.stack > STACK {
            return Err(Error::new(format!("{name}: {} bytes of stack, {STACK} are allowed", ran.stack)));
        }
        Ok(ran)
    }
}

impl Target for Bits {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> String {
        format!("{} (QEMU {})", self.triple, self.machine)
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(self.triple, &[QEMU, LLD], apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        build(toolchain, (self.triple, self.cpu), "core,alloc", "release", PROGRAM, "")?;
        sizes(&self.program(toolchain), self.name, &MEMORIES, STACK)
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.test(toolchain, request)
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)?;
        let model = models().join(BUNDLED).with_extension("elp");
        let tokens = tokens(BUNDLED)?;
        let ran = self.compare(toolchain, &format!("{BUNDLED} q8 I16"), &model, &tokens)?;
        let most = self.instructions;
        if ran.instructions > most {
            let took = ran.instructions;
            return Err(Error::new(format!("a token takes {took} instructions, {most} are allowed")));
        }

        let mut bytes = fs::read(&model).context(|| format!("cannot read {}", model.display()))?;
        fault::another_weight(&mut bytes)?;
        let changed = scratch(self.name, "-fault.elp")?;
        fs::write(&changed, bytes).context(|| format!("cannot write {}", changed.display()))?;
        if Bits::run(self, toolchain, &changed, &tokens)?.logits == ran.logits {
            return Err(Error::new("the comparison is broken: it does not see that a weight was changed"));
        }

        let packer = Program::Pack.build()?;
        for fixture in FIXTURES {
            let tokens = self::tokens(fixture)?;
            for quant in ["q8", "q4"] {
                let model = packed(self.name, &packer, fixture, quant)?;
                self.compare(toolchain, &format!("{fixture} {quant} I16"), &model, &tokens)?;
            }
        }
        Ok(())
    }

    fn flash(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        Err(Error::new(format!("{} is a test for QEMU alone", self.name)))
    }
}

/// A fixture's checkpoint, packed.
fn packed(board: &str, packer: &Built, fixture: &str, quant: &str) -> Result<PathBuf> {
    let file = scratch(board, &format!("-{fixture}-{quant}.elp"))?;
    pack(packer, &[folder(fixture).as_os_str()], &file, quant)?;
    Ok(file)
}

fn folder(fixture: &str) -> PathBuf {
    root().join("tests/fixtures").join(fixture)
}

/// The tokens that a fixture's checksums are of: its own 64 over and over.
fn tokens(fixture: &str) -> Result<Vec<u32>> {
    let file = folder(fixture).join("expected.safetensors");
    let bytes = fs::read(&file).context(|| format!("cannot read {}", file.display()))?;
    let own = ids(&bytes).ok_or_else(|| Error::new(format!("{} has no tokens", file.display())))?;
    Ok(own.into_iter().cycle().take(TOKENS).collect())
}

/// The tensor `tokens` of a safetensors file.
fn ids(bytes: &[u8]) -> Option<Vec<u32>> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (header, data) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let header: serde_json::Value = serde_json::from_slice(header).ok()?;
    let offset = |i: usize| usize::try_from(header["tokens"]["data_offsets"][i].as_u64()?).ok();
    let ids = data.get(offset(0)?..offset(1)?)?.as_chunks::<4>().0;
    Some(ids.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

/// The checksum that `tests/tests/fixed.rs` stores and compares.
fn stored(name: &str) -> Result<String> {
    let file = root().join("tests/snapshots/fixed.txt");
    let text = fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?;
    let sum = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    sum.map(str::to_owned).ok_or_else(|| Error::new(format!("{} has no {name}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_has_tokens_and_a_checksum() {
        for fixture in FIXTURES {
            assert_eq!(tokens(fixture).unwrap().len(), TOKENS, "{fixture}");
            assert_eq!(stored(&format!("{fixture} q4 I16")).unwrap().len(), 8, "{fixture}");
        }
        assert_eq!(tokens(BUNDLED).unwrap().len(), TOKENS);
        assert!(stored("no such model").is_err());
    }

    #[test]
    fn what_is_no_safetensors_file_has_no_tokens() {
        assert_eq!(ids(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), None);
        assert_eq!(ids(b"\x02\0\0\0\0\0\0\0{}"), None);
    }
}
