//! Programs that are only built and measured.

use elapid_boards::Memory;

use super::elf;
use super::mcu::{LLD, build, sizes};
use super::{Board, Request};
use crate::apt::Apt;
use crate::error::{Error, Result};
use crate::toolchain::Toolchain;

/// A program for a microcontroller that nothing runs.
#[derive(Debug)]
pub struct Built {
    pub name: &'static str,
    pub target: &'static str,
    pub cpu: &'static str,
    /// The linker's regions, no larger than the program may be.
    pub memories: [Memory; 2],
    /// Bytes of code that it may have, constants not counted.
    pub code: u64,
    /// The profile of `boards/Cargo.toml`.
    pub profile: &'static str,
    /// Why it is not run.
    pub why: &'static str,
}

/// `core`'s step with everything that it links, but no tokenizer and no sampler. 48 KB is the aim, and
/// reached.
pub const STEP_SIZE: Built = Built {
    name: "step-size",
    target: "thumbv7em-none-eabihf",
    cpu: "cortex-m7",
    memories: [
        Memory { name: "flash", start: 0, bytes: 1 << 20 },
        Memory { name: "RAM", start: 0x2000_0000, bytes: 1 << 20 },
    ],
    code: 48 << 10,
    profile: "release",
    why: "it only shows how large the step's code is",
};

/// Where a new board begins.
pub const TEMPLATE: Built = Built {
    name: "template",
    target: "thumbv7m-none-eabi",
    cpu: "cortex-m3",
    memories: [
        Memory { name: "flash", start: 0, bytes: 256 << 10 },
        Memory { name: "RAM", start: 0x2000_0000, bytes: 128 << 10 },
    ],
    code: 256 << 10,
    profile: "release",
    why: "it is for no board in particular: docs/porting.md says how to make it one",
};

impl Board for Built {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> String {
        format!("{} (built only)", self.target)
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(self.target, &[LLD], apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        build(toolchain, (self.target, self.cpu), "core,alloc", self.profile, self.name)?;
        let program = toolchain.target_dir().join(self.target).join(self.profile).join(self.name);
        sizes(&program, self.name, &self.memories, 4 << 10)?;
        let (code, most) = (elf::code(&program)?, self.code);
        println!("{}: {code} bytes of code, {most} allowed", self.name);
        if code > most {
            return Err(Error::new(format!("{} has {code} bytes of code, {most} are allowed", self.name)));
        }
        Ok(())
    }

    fn run(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        Err(Error::new(format!("{} is not run: {}", self.name, self.why)))
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)
    }

    fn flash(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        Err(Error::new(format!("{} is not flashed: {}", self.name, self.why)))
    }
}
