//! The Raspberry Pi 3 and 4 without an operating system.

mod backports;
mod checks;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use elapid_boards::Memory;
use elapid_core::format::Header;
use elapid_core::kernels::SsmState;
use elapid_core::model::snapshot::snapshot_bytes;
use elapid_core::model::{Float, State, StateSize};

use super::elf;
use super::mcu::{self, LLD, scratch};
use super::sd_image::{self, Item};
use super::{Request, Target};
use crate::apt::{Apt, QEMU_SYSTEM, emulator};
use crate::counter;
use crate::error::{Context, Error, Result};
use crate::exec::must;
use crate::toolchain::{Toolchain, models, root};

/// One kernel for both boards.
#[derive(Debug)]
pub struct PiBare {
    /// The name of the step.
    name: &'static str,
    /// The machine as QEMU calls it.
    machine: &'static str,
    /// Debian's QEMU has it. Where not, that of its backports is fetched, and only what depends on the board is tested.
    everywhere: bool,
}

pub const PI_3: PiBare = PiBare { name: NAME, machine: "raspi3b", everywhere: true };
pub const PI_4: PiBare = PiBare { name: "pi-bare-4", machine: "raspi4b", everywhere: false };

const NAME: &str = "pi-bare";
const TARGET: &str = "aarch64-unknown-none";
/// Both CPUs have the checksum instructions. Neither has the cryptographic ones, which LLVM's Cortex-A53 and QEMU's have:
/// with them the program would run in the emulator only. The target's code reads bytes one by one where they may not be
/// aligned, and takes eight times as long for a matrix; with the MMU on, the CPU does that itself.
const CPU: &str = "cortex-a53 -C target-feature=-aes,-sha2,-strict-align";
pub const EMULATOR: &str = "qemu-system-aarch64";
/// Where the firmware loads the kernel, and the end of what is mapped for it (`kernel8.ld`).
const IMAGE: Memory = Memory { name: "the first 2 MiB", start: 0x8_0000, bytes: (2 << 20) - 0x8_0000 };
/// Stacks of all cores, with a page that is not there below each, and those for exceptions (`kernel8.ld`).
const STACKS: u64 = 4 * (0x1000 + 0x2_0000 + 0x2000);
/// What a Raspberry Pi needs on its card beside the kernel, from its makers.
const FIRMWARE: [&str; 6] =
    ["bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"];
const CONFIG: &str = "arm_64bit=1\nkernel=kernel8.img\nenable_uart=1\ninit_uart_clock=48000000\n";
/// Where sessions are saved on the card.
const SESSION_FILE: &str = "ELAPID.SES";
/// The model of an image that is made for nothing else.
const MODEL: &str = "address-4m.elp";

/// An emulator that has a machine.
#[derive(Debug, Clone)]
struct Emulator {
    /// The board's name.
    board: &'static str,
    program: PathBuf,
    machine: &'static str,
}

impl PiBare {
    fn emulator(&self) -> Result<Emulator> {
        let program = if self.everywhere { emulator(EMULATOR) } else { backports::program(self.machine)? };
        Ok(Emulator { board: self.name, program, machine: self.machine })
    }
}

impl Target for PiBare {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> String {
        format!("{TARGET} (QEMU {})", self.machine)
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        let toolchain = Toolchain::for_target(TARGET, &[QEMU_SYSTEM, LLD, counter::COMPILER], apt)?;
        if !self.everywhere {
            backports::ensure(self.machine, apt)?;
        }
        Ok(toolchain)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        let image = kernel(self.name, toolchain)?;
        println!("{}", image.display());
        Ok(())
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let kernel = kernel(self.name, toolchain)?;
        let card = card(self.name, &model(request), None)?;
        println!("Ctrl-A X ends the emulator");
        must(qemu(&self.emulator()?, &kernel, Some(&card)).args(["-serial", "mon:stdio"]))
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        if !self.everywhere {
            return checks::another_board(&self.emulator()?, &kernel(self.name, toolchain)?, request);
        }
        // What does not depend on the board has its tests on this machine.
        let mut units = Toolchain::Current.cargo();
        units.args([
            "test",
            "--quiet",
            "--manifest-path",
            "boards/Cargo.toml",
            "-p",
            "elapid-pi-bare",
            "-p",
            "elapid-console",
            "-p",
            "elapid-tiny",
            "--lib",
            "--tests",
        ]);
        must(units.arg("--target-dir").arg(root().join("target/boards")))?;
        checks::all(&self.emulator()?, &kernel(self.name, toolchain)?, request)
    }

    fn flash(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let kernel = kernel(self.name, toolchain)?;
        let card = card(self.name, &model(request), Some((&kernel, request.firmware.as_deref())))?;
        match &request.to {
            Some(device) => {
                sd_image::copy(&card, device)?;
                println!("{} is written", device.display());
            }
            None => println!(
                "{}: write it to a card, for example by `--to /dev/sdX` behind this command as root",
                card.display()
            ),
        }
        if request.firmware.is_none() {
            println!(
                "Without `--firmware FOLDER` the card lacks what a Raspberry Pi starts with: copy {} from the folder \
                 boot/ of github.com/raspberrypi/firmware to it",
                FIRMWARE.join(", ")
            );
        }
        Ok(())
    }
}

fn model(request: &Request) -> PathBuf {
    request.model.clone().unwrap_or_else(|| models().join(MODEL))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).context(|| format!("cannot read {}", file.display()))
}

/// Builds the kernel, checks that it fits, and returns where its image is.
fn kernel(board: &str, toolchain: Toolchain) -> Result<PathBuf> {
    mcu::build(toolchain, (TARGET, CPU), "core", "release", NAME, "")?;
    let program = toolchain.target_dir().join(TARGET).join("release/kernel8");
    mcu::sizes(&program, NAME, &[IMAGE], STACKS)?;
    let image = flat_image(&elf::stored(&program)?)?;
    let file = scratch(board, "-kernel8.img")?;
    fs::write(&file, image).context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The parts of a program as they lie in memory, from the start of [`IMAGE`] on.
fn flat_image(parts: &[(u64, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut image = Vec::new();
    for (at, bytes) in parts {
        let outside = || Error::new(format!("a part of the kernel lies at {at:#x}, outside {}", IMAGE.name));
        let from =
            at.checked_sub(IMAGE.start).filter(|from| *from < IMAGE.bytes).ok_or_else(outside)? as usize;
        image.resize(image.len().max(from + bytes.len()), 0);
        image[from..from + bytes.len()].copy_from_slice(bytes);
    }
    Ok(image)
}

/// A file for the sessions of a model: room for two (`boards/pi-bare/src/storage/session.rs`).
fn session_file(model: &[u8]) -> Result<Vec<u8>> {
    let header = Header::parse(model).map_err(|error| Error::new(error.to_string()))?;
    let config = header.layout().config();
    let size = StateSize::of(config, 1);
    let (mut conv, mut ssm) = (vec![0.0; size.conv], vec![0.0; size.ssm]);
    let mut layer = State { conv: &mut conv, ssm: SsmState::F32(&mut ssm) };
    let bytes = snapshot_bytes::<Float>(config, &mut layer, false, true) as usize;
    Ok(vec![0; 2 * (512 + bytes.next_multiple_of(512))])
}

/// Makes a card with a model; with the kernel and the firmware's files where it is for a board.
fn card(board: &str, model: &Path, boot: Option<(&Path, Option<&Path>)>) -> Result<PathBuf> {
    let name = model.file_name().map_or("model.elp".into(), |name| name.to_string_lossy());
    let mut files = vec![(name.into_owned(), read(model)?)];
    if let Some((kernel, firmware)) = boot {
        files.push((SESSION_FILE.into(), session_file(&files[0].1)?));
        files.push(("kernel8.img".into(), read(kernel)?));
        files.push(("config.txt".into(), CONFIG.into()));
        if let Some(folder) = firmware {
            for name in FIRMWARE {
                files.push((name.into(), read(&folder.join(name))?));
            }
        }
    }
    let items: Vec<_> = files.iter().map(|(name, bytes)| Item { name, bytes }).collect();
    let file = scratch(board, if boot.is_some() { ".img" } else { "-model.img" })?;
    sd_image::write(&file, &items)?;
    Ok(file)
}

/// The emulator with a kernel and a card.
fn qemu(emulator: &Emulator, kernel: &Path, card: Option<&Path>) -> Command {
    let mut command = Command::new(&emulator.program);
    // No sound: the modules for it are looked for where those of the installed QEMU lie, which do not fit another one.
    command.args([
        "-M",
        emulator.machine,
        "-nodefaults",
        "-audiodev",
        "none,id=none",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(kernel);
    if let Some(card) = card {
        command.arg("-drive").arg(format!("if=sd,format=raw,file={}", card.display()));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_what_is_loaded() {
        let part = |at, bytes: &[u8]| (IMAGE.start + at, bytes.to_vec());
        assert_eq!(flat_image(&[part(0, b"ab"), part(4, b"c")]).unwrap(), b"ab\0\0c");
        assert!(flat_image(&[(0, vec![1])]).is_err());
        assert!(flat_image(&[part(IMAGE.bytes, b"c")]).is_err());
    }
}
