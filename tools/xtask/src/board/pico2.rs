//! Raspberry Pi Pico 2 and other boards with an RP2350. No emulator runs it: its program is built and measured, and its
//! images are made and read back.

use std::fs;
use std::path::PathBuf;

use super::elf::{self, Memory};
use super::mcu::{build, scratch, sizes};
use super::{Board, Request, uf2};
use crate::apt::Apt;
use crate::error::{Context, Error, Result};
use crate::toolchain::{Toolchain, root};

/// The RP2350 as programs see it. What is computed is the same crate as on mps2-an505, which QEMU runs.
#[derive(Debug)]
pub struct Pico2;

const NAME: &str = "pico2";
const TARGET: &str = "thumbv8m.main-none-eabihf";
const MODEL: &str = "address-300k.elp";
/// Where the program looks for the model, and the bytes of flash that are left there (boards/pico2/src/main.rs).
const PARTITION: Memory = Memory { name: "model partition", start: 0x1010_0000, bytes: 3 << 20 };
const MEMORIES: [Memory; 2] = [
    Memory { name: "flash", start: 0x1000_0000, bytes: 1 << 20 },
    Memory { name: "RAM", start: 0x2000_0000, bytes: 512 << 10 },
];
/// Bytes that the stack may need.
const STACK: u64 = 16 << 10;

/// The files for a board.
struct Images {
    program: PathBuf,
    both: PathBuf,
    partition: PathBuf,
}

impl Pico2 {
    fn program(toolchain: Toolchain) -> PathBuf {
        toolchain.target_dir().join(TARGET).join("release").join(NAME)
    }

    /// Makes the images.
    fn images(toolchain: Toolchain, request: &Request) -> Result<Images> {
        let file = request.model.clone().unwrap_or_else(|| root().join("models").join(MODEL));
        let mut model = fs::read(&file).context(|| format!("cannot read {}", file.display()))?;
        if model.len() as u64 > PARTITION.bytes {
            return Err(Error::new(format!(
                "{} has {} bytes, and the model partition {}",
                file.display(),
                model.len(),
                PARTITION.bytes
            )));
        }
        model.resize(model.len().next_multiple_of(uf2::PAYLOAD), 0xff);
        let mut parts = elf::stored(&Self::program(toolchain))?;
        let images = Images {
            program: scratch("pico2.uf2")?,
            both: scratch("pico2-with-model.uf2")?,
            partition: scratch("pico2-model.bin")?,
        };
        let write = |file: &PathBuf, bytes: &[u8]| {
            fs::write(file, bytes).context(|| format!("cannot write {}", file.display()))
        };
        write(&images.program, &uf2::file(&parts, uf2::RP2350_ARM_S))?;
        write(&images.partition, &model)?;
        parts.push((PARTITION.start, model));
        write(&images.both, &uf2::file(&parts, uf2::RP2350_ARM_S))?;
        Ok(images)
    }
}

impl Board for Pico2 {
    fn name(&self) -> &'static str {
        NAME
    }

    fn platform(&self) -> String {
        format!("{TARGET} (RP2350, built only)")
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(TARGET, &[super::mcu::LLD], apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        build(toolchain, (TARGET, "cortex-m33"), "core,alloc", "release", NAME)?;
        sizes(&Self::program(toolchain), NAME, &MEMORIES, STACK)
    }

    fn run(&self, _toolchain: Toolchain, _request: &Request) -> Result<()> {
        Err(Error::new(
            "no emulator knows the RP2350: `flash` makes the file for a board; mps2-an505 runs the same code",
        ))
    }

    /// What can be shown without a board: that the program fits, that the boot ROM will find its image definition, and
    /// that the images hold program and model where they belong.
    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)?;
        let images = Self::images(toolchain, request)?;
        let read = |file: &PathBuf| fs::read(file).context(|| format!("cannot read {}", file.display()));
        let memory = flash_of(&read(&images.both)?)?;
        // RP2350 datasheet, 5.9.1: a block's first word, within the first 4 KB.
        let marker = 0xffff_ded3u32.to_le_bytes();
        if !memory.iter().take(4096).collect::<Vec<_>>().windows(4).any(|w| w.iter().copied().eq(&marker)) {
            return Err(Error::new("no image definition in the first 4 KB: the boot ROM would not start it"));
        }
        let model = read(&images.partition)?;
        let at = (PARTITION.start - MEMORIES[0].start) as usize;
        if memory.get(at..at + model.len()) != Some(&model) {
            return Err(Error::new("the model is not where the program looks for it"));
        }
        if flash_of(&read(&images.program)?)?.len() > MEMORIES[0].bytes as usize {
            return Err(Error::new("the program reaches into the model partition"));
        }
        Ok(())
    }

    fn flash(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        self.build(toolchain, request)?;
        let Images { program, both, partition } = Self::images(toolchain, request)?;
        println!("program and model: {}", both.display());
        println!("the program alone: {}", program.display());
        println!(
            "the model alone:   {}  (picotool load -o {:#x} FILE)",
            partition.display(),
            PARTITION.start
        );
        println!(
            "Hold BOOTSEL while you plug the board in, and copy the first file to the drive that appears."
        );
        Ok(())
    }
}

/// What a UF2 file writes to flash, from its start on; 0xff where it writes nothing.
fn flash_of(uf2: &[u8]) -> Result<Vec<u8>> {
    let mut flash = Vec::new();
    for block in uf2.chunks_exact(512) {
        let word = |at: usize| block.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
        let (Some(address), Some(size)) = (word(12), word(16)) else { continue };
        let at = u64::from(address).checked_sub(MEMORIES[0].start).map(|at| at as usize);
        let payload = block.get(32..32 + size as usize);
        let (Some(at), Some(payload)) = (at, payload) else {
            return Err(Error::new(format!("a block is for {address:#x}, which is not in flash")));
        };
        if flash.len() < at + payload.len() {
            flash.resize(at + payload.len(), 0xff);
        }
        flash[at..at + payload.len()].copy_from_slice(payload);
    }
    Ok(flash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flash_is_what_the_file_says() {
        let parts = vec![(0x1000_0000, vec![1; 300]), (0x1000_0400, vec![2; 10])];
        let flash = flash_of(&uf2::file(&parts, uf2::RP2350_ARM_S)).unwrap();
        assert_eq!((flash[299], flash[300], flash[600], flash[1024], flash[1033]), (1, 0, 0xff, 2, 2));
        assert!(flash_of(&uf2::file(&[(0x2000_0000, vec![1])], uf2::RP2350_ARM_S)).is_err());
    }
}
