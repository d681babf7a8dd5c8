//! Programs that are only built and measured.

use elapid_boards::Memory;

use super::elf;
use super::mcu::{LLD, build, sizes};
use super::{Request, Target};
use crate::apt::Apt;
use crate::error::{Error, Result};
use crate::toolchain::Toolchain;

/// A program for a microcontroller that nothing runs.
#[derive(Debug)]
pub struct Built {
    pub name: &'static str,
    pub triple: &'static str,
    pub cpu: &'static str,
    /// The linker's regions, no larger than the program may be.
    pub memories: [Memory; 2],
    /// Bytes of code that it should have at most, constants not counted.
    pub aim: u64,
    /// Bytes of code that it may have.
    pub limit: u64,
    /// The profile of `boards/Cargo.toml`.
    pub profile: &'static str,
    /// Why it is not run.
    pub why: &'static str,
}

/// What `core`'s step should have: 48 KB.
const STEP_AIM: u64 = 48 << 10;

/// `core`'s step with everything that it links, but no tokenizer and no sampler. 5% above the aim fail.
pub const STEP_SIZE: Built = Built {
    name: "step-size",
    triple: "thumbv7em-none-eabihf",
    cpu: "cortex-m7",
    memories: [
        Memory { name: "flash", start: 0, bytes: 1 << 20 },
        Memory { name: "RAM", start: 0x2000_0000, bytes: 1 << 20 },
    ],
    aim: STEP_AIM,
    limit: STEP_AIM * 105 / 100,
    profile: "release",
    why: "it only shows how large the step's code is",
};

/// Where a new board begins.
pub const TEMPLATE: Built = Built {
    name: "template",
    triple: "thumbv7m-none-eabi",
    cpu: "cortex-m3",
    memories: [
        Memory { name: "flash", start: 0, bytes: 256 << 10 },
        Memory { name: "RAM", start: 0x2000_0000, bytes: 128 << 10 },
    ],
    aim: 256 << 10,
    limit: 256 << 10,
    profile: "release",
    why: "it is for no board in particular: docs/porting.md says how to make it one",
};

impl Target for Built {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> String {
        format!("{} (built only)", self.triple)
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(self.triple, &[LLD], apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        build(toolchain, (self.triple, self.cpu), "core,alloc", self.profile, self.name, "")?;
        let program = toolchain.target_dir().join(self.triple).join(self.profile).join(self.name);
        sizes(&program, self.name, &self.memories, 4 << 10)?;
        let Self { name, aim, limit, .. } = self;
        let code = elf::code(&program)?;
        println!("{name}: {code} bytes of code; the aim is {aim}, the limit {limit}");
        if code > *limit {
            return Err(Error::new(format!("{name} has {code} bytes of code, {limit} are allowed")));
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
