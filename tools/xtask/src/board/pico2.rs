//! Raspberry Pi Pico 2 and other boards with an RP2350: the program for a board is built and measured, and its images are made
//! and looked at; the same program with its console on the UART runs on an emulated RP2350.

use std::fs;
use std::path::{Path, PathBuf};

use elapid_boards::PICO2;

use super::mcu::{LLD, Mcu, Runner, build, predicted, scratch, sizes};
use super::mps2::AN505;
use super::{Request, Target, elf, uf2};
use crate::apt::Apt;
use crate::error::{Context, Error, Result};
use crate::toolchain::{Toolchain, models};

/// The program with its console on the UART.
pub const UART: Mcu = Mcu {
    name: "pico2-uart",
    runner: Runner::Script("boards/pico2/emulate.py"),
    features: "uart",
    board: &PICO2,
    // The larger bundled model is larger than the flash.
    other_size: None,
    // Its clock is this machine's.
    instructions_a_tick: None,
    ..AN505
};

/// The program with its console on USB, which no emulator has.
#[derive(Debug)]
pub struct Pico2;

const TARGET: &str = "thumbv8m.main-none-eabihf";
const MODEL: &str = "address-300k.elp";
/// RP2350 datasheet, 5.9.1: what begins an image definition, which the boot ROM looks for in the first 4 KB.
const MARKER: [u8; 4] = 0xffff_ded3u32.to_le_bytes();

const _: () = assert!(
    PICO2.code.start + PICO2.code.bytes <= PICO2.model.start,
    "program and model need their own flash"
);

/// Bytes and the addresses in flash that they are for.
type Parts = Vec<(u64, Vec<u8>)>;

fn program(toolchain: Toolchain) -> PathBuf {
    toolchain.target_dir().join(TARGET).join("release").join(PICO2.name)
}

fn model(request: &Request) -> PathBuf {
    request.model.clone().unwrap_or_else(|| models().join(MODEL))
}

/// What the program's file stores in flash. The error names what keeps the boot ROM from starting it.
fn stored(program: &Path) -> Result<Parts> {
    let parts = elf::stored(program)?;
    let code = PICO2.code;
    for (at, bytes) in &parts {
        let end = at + bytes.len() as u64;
        if *at < code.start || end > code.start + code.bytes {
            return Err(Error::new(format!(
                "the program stores {at:#x} to {end:#x}, which is not its flash"
            )));
        }
    }
    let bytes = parts.iter().flat_map(|(at, bytes)| (*at..).zip(bytes));
    let head: Vec<u8> = bytes.filter(|(at, _)| *at < code.start + 4096).map(|(_, byte)| *byte).collect();
    if !head.windows(MARKER.len()).any(|word| word == MARKER) {
        return Err(Error::new("no image definition in the first 4 KB: the boot ROM would not start it"));
    }
    Ok(parts)
}

/// The model, as it is to lie in its partition.
fn partition(file: &Path) -> Result<Vec<u8>> {
    let model = fs::read(file).context(|| format!("cannot read {}", file.display()))?;
    let (bytes, most) = (model.len() as u64, PICO2.model.bytes);
    if bytes > most {
        return Err(Error::new(format!(
            "{} has {bytes} bytes, and the model partition {most}",
            file.display()
        )));
    }
    Ok(model)
}

/// Writes an image.
fn write(rest: &str, bytes: &[u8]) -> Result<PathBuf> {
    let file = scratch(PICO2.name, rest)?;
    fs::write(&file, bytes).context(|| format!("cannot write {}", file.display()))?;
    println!("{}: {} bytes", file.display(), bytes.len());
    Ok(file)
}

impl Target for Pico2 {
    fn name(&self) -> &'static str {
        PICO2.name
    }

    fn platform(&self) -> String {
        format!("{TARGET} (RP2350, built only)")
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(TARGET, &[LLD], apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        build(toolchain, (TARGET, "cortex-m33"), "core,alloc", "release", PICO2.name, "")?;
        sizes(&program(toolchain), PICO2.name, &[PICO2.code, PICO2.ram], PICO2.stack)
    }

    fn run(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        Err(Error::new(
            "no emulator has the RP2350's USB: `board pico2-uart run` runs the program with its console on the UART, and `board pico2 flash` \
             makes the file for a board",
        ))
    }

    /// What can be shown without a board: that program and model fit, and that the boot ROM will find the program. What
    /// the images hold is shown by the tests of this module.
    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.flash(toolchain, request)?;
        predicted(&program(toolchain), &PICO2, &model(request))
    }

    fn flash(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)?;
        let mut parts = stored(&program(toolchain))?;
        let model = partition(&model(request))?;
        let alone = write(".uf2", &uf2::file(&parts, uf2::RP2350_ARM_S))?;
        let bare = write("-model.bin", &model)?;
        parts.push((PICO2.model.start, model));
        let both = write("-with-model.uf2", &uf2::file(&parts, uf2::RP2350_ARM_S))?;
        println!(
            "Hold BOOTSEL while you plug the board in, and copy {} to the drive that appears.",
            both.display()
        );
        println!("Later {} for the program alone,", alone.display());
        println!("or `picotool load -o {:#x} {}` for the model.", PICO2.model.start, bare.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_model_goes_to_its_partition() {
        let model = partition(&models().join(MODEL)).unwrap();
        let parts = vec![(PICO2.code.start, vec![1; 100_000]), (PICO2.model.start, model.clone())];
        let (flash, family) = uf2::independent::read(&uf2::file(&parts, uf2::RP2350_ARM_S)).unwrap();
        assert_eq!(family, 0xe48b_ff59);
        let from = PICO2.model.start as u32;
        let there: Vec<u8> = flash.range(from..from + model.len() as u32).map(|(_, byte)| *byte).collect();
        assert!(there == model);
        assert!(
            flash.keys().next_back().is_some_and(|at| u64::from(*at) < PICO2.model.start + PICO2.model.bytes)
        );
    }

    #[test]
    fn a_model_larger_than_its_partition_is_refused() {
        let error = partition(&models().join("address-4m.elp")).unwrap_err().to_string();
        assert!(error.contains("3145728"), "{error}");
    }
}
