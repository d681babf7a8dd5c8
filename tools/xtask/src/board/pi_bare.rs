//! The Raspberry Pi 3 and 4 without an operating system, tried in QEMU's `raspi3b`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::dialogue::Dialogue;
use super::report::{Case, Report};
use super::sd_image::{self, Item};
use super::{Board, Request, fault};
use crate::apt::{Apt, Package};
use crate::error::{Context, Error, Result};
use crate::exec::{must, succeeds};
use crate::toolchain::{Toolchain, root};

pub struct PiBare;

const TARGET: &str = "aarch64-unknown-none";
/// Both CPUs have the checksum instructions. Neither has the cryptographic ones, which LLVM's Cortex-A53 and QEMU's have:
/// with them the program would run in the emulator only.
const FLAGS: &str = "-C target-cpu=cortex-a53 -C target-feature=-aes,-sha2";
const QEMU: Package = Package { name: "qemu-system-arm", tool: Some("qemu-system-aarch64") };
const LINKER: Package = Package { name: "lld", tool: Some("ld.lld") };
const COMPILER: Package = Package { name: "gcc", tool: Some("cc") };
/// Where the firmware loads the kernel.
const LOADED_AT: u64 = 0x8_0000;
/// Code in which cores wait (`kernel8.ld`).
const IDLE: std::ops::Range<u64> = 0x8_0400..0x8_0440;
/// What a Raspberry Pi needs on its card beside the kernel, from its makers.
const FIRMWARE: [&str; 6] =
    ["bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"];
const CONFIG: &str = "arm_64bit=1\nkernel=kernel8.img\nenable_uart=1\ninit_uart_clock=48000000\n";

const PROMPT: &str = "elapid> ";
const NO_MODEL: &str = "(no model; Enter looks at the card again) ";
const PATIENCE: Duration = Duration::from_secs(300);

impl Board for PiBare {
    fn name(&self) -> &'static str {
        "pi-bare"
    }

    fn platform(&self) -> String {
        format!("{TARGET} (raspi3b)")
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(TARGET, &[QEMU, LINKER, COMPILER], apt)
    }

    fn build(&self, toolchain: Toolchain, _: &Request) -> Result<()> {
        let image = kernel(toolchain)?;
        let size = image.metadata().context(|| format!("cannot find {}", image.display()))?.len();
        println!("{} ({size} bytes)", image.display());
        Ok(())
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let kernel = kernel(toolchain)?;
        let card = card(&model(request), None)?;
        println!("Ctrl-A X ends the emulator");
        must(qemu(&kernel, Some(&card)).args(["-serial", "mon:stdio"]))
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let mut units = Toolchain::Current.cargo();
        units.current_dir(folder()).args(["test", "--quiet", "--lib"]);
        units.env("CARGO_TARGET_DIR", Toolchain::Current.target_dir().join("boards"));
        must(&mut units)?;
        let kernel = kernel(toolchain)?;
        generates_as_the_host(&kernel, request)?;
        faults_are_told(&kernel)?;
        cards_that_are_none(&kernel)?;
        four_cores_are_faster(&kernel)
    }

    fn flash(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let kernel = kernel(toolchain)?;
        let card = card(&model(request), Some((&kernel, request.firmware.as_deref())))?;
        match &request.to {
            Some(device) => {
                sd_image::copy(&card, device)?;
                println!("{} is written", device.display());
            }
            None => println!(
                "{}: write it to a card, for example with `--to /dev/sdX` behind this command as root",
                card.display()
            ),
        }
        if request.firmware.is_none() {
            println!(
                "Without `--firmware FOLDER` the card lacks what a Raspberry Pi starts with: copy {} from \
                 github.com/raspberrypi/firmware (boot/) to it",
                FIRMWARE.join(", ")
            );
        }
        Ok(())
    }
}

fn folder() -> PathBuf {
    root().join("boards/pi-bare")
}

fn work() -> PathBuf {
    root().join("target/boards/pi-bare")
}

fn model(request: &Request) -> PathBuf {
    request.model.clone().unwrap_or_else(|| root().join("models/address-4m.elp"))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).context(|| format!("cannot read {}", file.display()))
}

/// Builds the kernel and returns where its image is.
fn kernel(toolchain: Toolchain) -> Result<PathBuf> {
    let linker = if toolchain == Toolchain::Debian { " -C linker=ld.lld" } else { "" };
    let mut cargo = toolchain.cargo_for("build", TARGET, &format!("{FLAGS}{linker}"), "core");
    must(
        cargo
            .current_dir(folder())
            .args(["--release", "--bin", "kernel8"])
            .env("CARGO_TARGET_DIR", toolchain.target_dir()),
    )?;
    let program = toolchain.target_dir().join(TARGET).join("release/kernel8");
    let image = flat_image(&read(&program)?)
        .ok_or_else(|| Error::new(format!("{} is no ELF file of 64 bits", program.display())))?;
    let file = work().join("kernel8.img");
    fs::create_dir_all(work()).context(|| format!("cannot make {}", work().display()))?;
    fs::write(&file, image).context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The bytes of an ELF program as they lie in memory from [`LOADED_AT`] on.
fn flat_image(elf: &[u8]) -> Option<Vec<u8>> {
    const LOAD: u32 = 1;
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let long = |at: usize| Some(u64::from_le_bytes(*elf.get(at..)?.first_chunk()?));
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(*elf.get(at..)?.first_chunk()?)));
    let (table, size, count) = (usize::try_from(long(32)?).ok()?, half(54)?, half(56)?);
    let mut image = Vec::new();
    for i in 0..count {
        let at = table.checked_add(i * size)?;
        let kind = u32::from_le_bytes(*elf.get(at..)?.first_chunk()?);
        let (from, to, length) = (long(at + 8)? as usize, long(at + 24)?, long(at + 32)? as usize);
        if kind == LOAD && length > 0 {
            let to = usize::try_from(to.checked_sub(LOADED_AT)?).ok()?;
            let end = to.checked_add(length).filter(|end| *end < 2 << 20)?;
            image.resize(image.len().max(end), 0);
            image[to..end].copy_from_slice(elf.get(from..from.checked_add(length)?)?);
        }
    }
    (!image.is_empty()).then_some(image)
}

/// Makes a card with a model; with the kernel and the firmware's files where it is for a board.
fn card(model: &Path, boot: Option<(&Path, Option<&Path>)>) -> Result<PathBuf> {
    let name = model.file_name().map_or("model.elp".into(), |name| name.to_string_lossy());
    let mut files = vec![(name.into_owned(), read(model)?)];
    if let Some((kernel, firmware)) = boot {
        files.push(("kernel8.img".into(), read(kernel)?));
        files.push(("config.txt".into(), CONFIG.into()));
        for name in FIRMWARE.iter().filter(|_| firmware.is_some()) {
            let file = firmware.unwrap_or(Path::new("")).join(name);
            files.push(((*name).into(), read(&file)?));
        }
    }
    let items: Vec<_> = files.iter().map(|(name, bytes)| Item { name, bytes }).collect();
    let file = work().join("sd.img");
    sd_image::write(&file, &items)?;
    Ok(file)
}

fn qemu(kernel: &Path, card: Option<&Path>) -> Command {
    let mut command = Command::new("qemu-system-aarch64");
    command.args(["-M", "raspi3b", "-display", "none", "-no-reboot", "-kernel"]).arg(kernel);
    if let Some(card) = card {
        command.arg("-drive").arg(format!("if=sd,format=raw,file={}", card.display()));
    }
    command
}

/// Starts a kernel with a card whose console and monitor are the dialogue's.
fn start(kernel: &Path, card: Option<&Path>, accelerator: &[&str]) -> Result<Dialogue> {
    let mut command = qemu(kernel, card);
    command.args(["-serial", "mon:stdio"]).args(accelerator);
    Dialogue::start(&mut command, PATIENCE)
}

/// All cores take turns on one of ours: quick where ours are few, and the same order every time.
const ONE_THREAD: [&str; 2] = ["-accel", "tcg,thread=single"];
/// Each core is a thread of ours: only so do they race.
const THREADS: [&str; 2] = ["-accel", "tcg,thread=multi"];

/// Has a case generated, after the prompt has been shown.
fn generate(dialogue: &mut Dialogue, case: &Case<'_>) -> Result<Report> {
    dialogue.send(&format!("/check\r/seed {}\r/n {}\r{}\r", case.seed, case.tokens, case.prompt))?;
    let report = Report::read(&dialogue.until("--- end\n")?)?;
    dialogue.until(PROMPT)?;
    Ok(report)
}

fn generates_as_the_host(kernel: &Path, request: &Request) -> Result<()> {
    let model = model(request);
    let card = card(&model, None)?;
    let case = Case { model: &model, prompt: "My fellow citizens", tokens: 64, seed: 7, compute: &[] };
    let mut dialogue = start(kernel, Some(&card), &THREADS)?;
    dialogue.until(PROMPT)?;
    let held = generate(&mut dialogue, &case)?;
    held.compare(&case.on_host(&held)?)?;
    if request.model.is_none() {
        held.snapshot_is("pi-bare", request.overwrite)?;
    }

    // The same from the card, fewer tokens: the emulator's card is slow. A memory that holds a part of the model.
    if request.model.is_none() {
        dialogue.send("/memory 4700K\r")?;
        if !dialogue.until(PROMPT)?.contains("are read from the card for every token") {
            return Err(Error::new("nothing is read from the card with 4700 KiB of memory"));
        }
        let short = Case { tokens: 6, ..case };
        let streamed = generate(&mut dialogue, &short)?;
        streamed.compare(&short.on_host(&streamed)?)?;
        dialogue.send("/memory all\r")?;
        let overlap = dialogue.until(PROMPT)?;
        println!("streamed: {}", overlap.lines().find(|line| line.starts_with("of ")).unwrap_or("?"));
    }
    dialogue.send("/exit\r")?;
    dialogue.end().map(|_| ())
}

/// What a model file or a card can do to a user, in one session.
fn faults_are_told(kernel: &Path) -> Result<()> {
    let good = read(&root().join("models/address-300k.elp"))?;
    let large = read(&root().join("models/address-4m.elp"))?;
    let changed = |change: &dyn Fn(&mut Vec<u8>) -> Result<()>| {
        let mut bytes = good.clone();
        change(&mut bytes).map(|()| bytes)
    };
    let other = changed(&|bytes| fault::another_weight(bytes))?;
    let damaged = changed(&|bytes| fault::damaged_weight(bytes).map(|_| ()))?;
    let newer = changed(&|bytes| fault::newer_version(bytes))?;
    let short = changed(&|bytes| {
        bytes.truncate(bytes.len() - 4096);
        Ok(())
    })?;
    let file = work().join("faults.img");
    let item = |name, bytes| Item { name, bytes };
    let items = [
        item("elapid.txt", b"# settings\nmodel = good.elp\ncores = many\n".as_slice()),
        item("good.elp", &good),
        item("other.elp", &other),
        item("damaged.elp", &damaged),
        item("newer.elp", &newer),
        item("short.elp", &short),
        item("text.elp", b"not a model\n".as_slice()),
        item("large.elp", &large),
    ];
    sd_image::write(&file, &items)?;
    let model = root().join("models/address-300k.elp");
    let case = Case { model: &model, prompt: "The whale", tokens: 16, seed: 3, compute: &[] };

    let mut dialogue = start(kernel, Some(&file), &ONE_THREAD)?;
    let greeting = dialogue.until(PROMPT)?;
    wants(&greeting, "ELAPID.TXT: `cores = many`: it takes a number from 1 to 4")?;
    let report = generate(&mut dialogue, &case)?;
    let host = case.on_host(&report)?;
    report.compare(&host)?;

    // The canary: with one weight changed, the comparison must see it.
    dialogue.send("/model other.elp\r")?;
    dialogue.until(PROMPT)?;
    if generate(&mut dialogue, &case)?.compare(&host).is_ok() {
        return Err(Error::new("a model with another weight gives the same: the comparison does not work"));
    }

    for (command, told) in [
        ("/model damaged.elp", "is damaged (its checksum does not match): copy the file again"),
        ("/model newer.elp", "the file is of format version 2"),
        ("/model short.elp", "the file is cut short"),
        ("/model text.elp", "too few for a header"),
        ("/model missing.elp", "the model that was named is not on the card"),
        ("/model large.elp\r/memory 3M", "the model is too large for the memory"),
        ("/memory 100K", "not enough memory for"),
    ] {
        dialogue.send(&format!("{command}\r"))?;
        // Both of two commands end at a prompt.
        for _ in 1..command.split('\r').count() {
            dialogue.until(PROMPT)?;
        }
        wants(&dialogue.until(NO_MODEL)?, told)?;
    }

    // A card that is pulled out while it is read, and put in again.
    dialogue.send("/memory 4700K\r")?;
    dialogue.until(PROMPT)?;
    dialogue.send("/n 200\rMy fellow citizens\r")?;
    dialogue.until("--- text\n")?;
    monitor(&mut dialogue, "eject -f sd0")?;
    wants(&dialogue.until(PROMPT)?, "error: block ")?;
    dialogue.send("/load\r")?;
    wants(&dialogue.until(NO_MODEL)?, "error: no card answers")?;
    dialogue.send("/exit\r")?;
    dialogue.end().map(|_| ())
}

/// Says something to the emulator instead of to the program.
fn monitor(dialogue: &mut Dialogue, command: &str) -> Result<()> {
    dialogue.send("\x01c")?;
    dialogue.until("(qemu) ")?;
    dialogue.send(&format!("{command}\n"))?;
    dialogue.until("(qemu) ")?;
    dialogue.send("\x01c")
}

fn wants(console: &str, text: &str) -> Result<()> {
    if console.contains(text) {
        return Ok(());
    }
    Err(Error::new(format!("the console should say {text:?}; it says:\n{console}")))
}

/// No card, one without a file system, and one without a model.
fn cards_that_are_none(kernel: &Path) -> Result<()> {
    let file = work().join("none.img");
    for (card, told) in [
        (None, "error: no card answers"),
        (Some(&[][..]), "error: no model on the card"),
        (Some(&[0u8; 512][..]), "error: the card has no FAT file system"),
    ] {
        if let Some(start) = card {
            sd_image::write(&file, &[Item { name: "notes.txt", bytes: b"nothing" }])?;
            let mut image = read(&file)?;
            image[..start.len()].copy_from_slice(start);
            fs::write(&file, image).context(|| format!("cannot write {}", file.display()))?;
        }
        let mut dialogue = start(kernel, card.map(|_| file.as_path()), &ONE_THREAD)?;
        wants(&dialogue.until(NO_MODEL)?, told)?;
        dialogue.send("/exit\r")?;
        dialogue.end()?;
    }
    Ok(())
}

/// Four cores against one, by the instructions of the busiest core.
fn four_cores_are_faster(kernel: &Path) -> Result<()> {
    /// As the issue of the boards wants it.
    const LEAST: f64 = 3.2;
    let plugin = work().join("count_cores.so");
    let source = root().join("tools/xtask/plugins/count_cores.c");
    // QEMU 9 and later have the second version of the interface; which one it is shows when it is loaded.
    let build = |api: u32| {
        let define = format!("-DAPI={api}");
        must(Command::new("cc").args(["-O2", "-shared", "-fPIC", &define, "-o"]).arg(&plugin).arg(&source))
    };
    let loads = || {
        let plugin = format!("{},start=0,end=0", plugin.display());
        succeeds(Command::new("qemu-system-aarch64").args(["-M", "none", "-plugin", &plugin, "-version"]))
    };
    build(1)?;
    if !loads() {
        build(2)?;
    }
    let card = card(&root().join("models/address-4m.elp"), None)?;
    let busiest = |cores: u32, tokens: u32| -> Result<u64> {
        let plugin = format!("{},start={:#x},end={:#x}", plugin.display(), IDLE.start, IDLE.end);
        let log = work().join("instructions.txt");
        let mut command = qemu(kernel, Some(&card));
        // Time is counted in instructions, so that waiting for the card takes as many every time.
        command
            .args(["-serial", "mon:stdio", "-icount", "shift=0", "-plugin", &plugin, "-d", "plugin", "-D"])
            .arg(&log);
        let mut dialogue = Dialogue::start(&mut command, PATIENCE)?;
        dialogue.until(PROMPT)?;
        dialogue
            .send(&format!("/cores {cores}\r/seed 7\r/temp 0\r/n {tokens}\rMy fellow citizens\r/exit\r"))?;
        dialogue.end()?;
        let log = fs::read_to_string(&log).context(|| format!("cannot read {}", log.display()))?;
        let counts =
            log.lines().filter_map(|line| line.strip_prefix("core ")?.split_once(": ")?.1.parse().ok());
        counts.max().ok_or_else(|| Error::new(format!("the plugin counted nothing; it wrote:\n{log}")))
    };
    let a_token = |cores: u32| -> Result<f64> {
        let (few, many) = (busiest(cores, 4)?, busiest(cores, 20)?);
        Ok(many.saturating_sub(few) as f64 / 16.0)
    };
    let (one, four) = (a_token(1)?, a_token(4)?);
    println!(
        "instructions of the busiest core for a token: {:.2} M on one core, {:.2} M on four ({:.2} times fewer)",
        one / 1e6,
        four / 1e6,
        one / four
    );
    if one / four >= LEAST {
        return Ok(());
    }
    Err(Error::new(format!("four cores are {:.2} times as fast as one, {LEAST} is the least", one / four)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, one program header, and three bytes to be loaded 16 bytes behind the start.
    #[test]
    fn an_image_is_what_is_loaded() {
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        elf[64 + 8] = 120;
        elf[64 + 24..64 + 32].copy_from_slice(&(LOADED_AT + 16).to_le_bytes());
        elf[64 + 32] = 3;
        elf.extend(b"abc");
        let image = flat_image(&elf).unwrap();
        assert_eq!((image.len(), &image[16..]), (19, &b"abc"[..]));
        assert!(image[..16].iter().all(|byte| *byte == 0));
        assert!(flat_image(&elf[..122]).is_none());
        assert!(flat_image(b"\x7fELF\x01\x01").is_none());
    }
}
