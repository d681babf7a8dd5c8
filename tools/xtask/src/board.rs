//! `cargo xtask board`: the boards' programs, built, run, tested against the host, and flashed.
//!
//! What is built for is a [`Target`], listed in [`TARGETS`]: a board, an emulated machine, or a program that is only measured. What
//! targets have in common lies beside: running an
//! emulator ([`qemu`]), reading what a program reports and comparing it with the host's own output ([`report`]), model
//! files with a fault in them ([`fault`]), images of SD cards ([`sd_image`]).

mod bits;
mod built;
mod chat;
mod elf;
pub mod fault;
mod mcu;
mod mps2;
mod pi_bare;
mod pi_linux;
mod pico2;
pub mod qemu;
pub mod report;
mod sd_image;
mod uf2;

use std::path::PathBuf;

use clap::ValueEnum;

use crate::apt::Apt;
use crate::error::{Error, Result};
use crate::toolchain::Toolchain;

/// What the command line asks of a target.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The packed model; the target's own choice if left out.
    pub model: Option<PathBuf>,
    /// Renews the stored snapshot instead of comparing with it.
    pub overwrite: bool,
    /// The device, or the file, that `flash` writes to.
    pub to: Option<PathBuf>,
    /// A folder with the files that the board's makers ask for.
    pub firmware: Option<PathBuf>,
    /// Runs the test that takes too long for CI, where a board has one, instead of the other.
    pub long: bool,
    /// Whether the test may install what it needs.
    pub install: bool,
}

/// What a program is built for: how it is built, started and judged.
pub trait Target: Sync {
    /// The name of its folder in `boards/`, and of its step.
    fn name(&self) -> &'static str;

    /// The target triple, with the emulated machine where there is one.
    fn platform(&self) -> String;

    /// Sees to it that everything is there that building and running need. The error names what is missing.
    fn tools(&self, apt: &mut Apt) -> Result<Toolchain>;

    /// Builds the program, checks that it fits the board, and says where it is.
    fn build(&self, toolchain: Toolchain, request: &Request) -> Result<()>;

    /// Runs it for a person, with this terminal as its console.
    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()>;

    /// Builds it and shows that it is right, with canaries for what shows that.
    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()>;

    /// Puts it on a board, or writes the image for that and says what to do with it.
    fn flash(&self, toolchain: Toolchain, request: &Request) -> Result<()>;
}

/// Every target.
pub const TARGETS: &[&dyn Target] = &[
    &mps2::AN500,
    &mps2::AN385,
    &mps2::AN505,
    &pi_linux::GLIBC,
    &pi_linux::MUSL,
    &pi_linux::Kernel,
    &pico2::Pico2,
    &pico2::UART,
    &pi_bare::PI_3,
    &pi_bare::PI_4,
    &bits::M3,
    &bits::M7,
    &built::STEP_SIZE,
    &built::TEMPLATE,
];

/// What is done with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Build its program, and check that it fits
    Build,
    /// Run it under QEMU, with this terminal as the console
    Run,
    /// Compare what it prints with the host's own output and the stored snapshot
    Test,
    /// Put it on a board, or make the image or package for that
    #[value(alias = "package")]
    Flash,
}

/// The target of this name.
pub fn find(name: &str) -> Result<&'static dyn Target> {
    TARGETS.iter().copied().find(|target| target.name() == name).ok_or_else(|| {
        let known = TARGETS.iter().map(|target| target.name()).collect::<Vec<_>>().join(", ");
        Error::new(format!("no board is called `{name}`; there are {known}"))
    })
}

/// Does what the command line asks.
pub fn board(name: &str, action: Action, request: &Request) -> Result<()> {
    let target = find(name)?;
    if request.long && (action, name) != (Action::Test, "pi-linux") {
        return Err(Error::new("only `board pi-linux test` has a long test"));
    }
    let toolchain = target.tools(&mut Apt::new(request.install))?;
    match action {
        Action::Build => target.build(toolchain, request),
        Action::Run => target.run(toolchain, request),
        Action::Test => target.test(toolchain, request),
        Action::Flash => target.flash(toolchain, request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::{STEPS, Step, Work};

    #[test]
    fn every_target_is_a_step() {
        for target in TARGETS {
            let here = |step: &Step| matches!(step.work, Work::Target { name } if name == target.name());
            assert!(STEPS.iter().any(here), "{}", target.name());
        }
        for step in STEPS {
            if let Work::Target { name } = step.work {
                assert!(find(name).is_ok(), "{name}");
            }
        }
    }

    /// Start and bytes of a region in a linker script: `NAME : ORIGIN = 0x…, LENGTH = 4M`.
    fn region(script: &str, name: &str) -> Option<(u64, u64)> {
        let line = script.lines().find(|line| line.trim().starts_with(&format!("{name} ")))?;
        let (origin, length) = line.split_once("ORIGIN = 0x")?.1.split_once(", LENGTH = ")?;
        let (number, shift) = match length.trim().split_at(length.trim().len() - 1) {
            (number, "K") => (number, 10),
            (number, "M") => (number, 20),
            _ => return None,
        };
        Some((u64::from_str_radix(origin, 16).ok()?, number.parse::<u64>().ok()? << shift))
    }

    #[test]
    fn linker_scripts_say_what_the_table_says() {
        for board in &elapid_boards::BOARDS {
            assert!(find(board.name).is_ok(), "{}", board.name);
            let file = crate::toolchain::root().join("boards").join(board.name).join("memory.x");
            let script = std::fs::read_to_string(&file).unwrap();
            for (name, memory) in [("FLASH", board.code), ("RAM", board.ram)] {
                let expected = Some((memory.start, memory.bytes));
                assert_eq!(region(&script, name), expected, "{name} in {}", file.display());
            }
        }
    }

    #[test]
    fn an_unknown_board_is_named() {
        assert!(find("no-such-board").is_err_and(|error| error.to_string().contains("no-such-board")));
    }
}
