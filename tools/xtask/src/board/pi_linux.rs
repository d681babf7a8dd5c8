//! The Raspberry Pi with Linux: the static program and its package, on emulated CPUs and on a real kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::dialogue::Dialogue;
use super::initramfs::{self, Entry};
use super::report::field;
use super::{Board, Request};
use crate::apt::{Apt, Package};
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, on_path};
use crate::programs::{Program, pack};
use crate::toolchain::{AARCH64_LINUX, Toolchain, root};

pub struct PiLinux;

const QEMU_USER: Package = Package { name: "qemu-user", tool: Some("qemu-aarch64") };
const QEMU_SYSTEM: Package = Package { name: "qemu-system-arm", tool: Some("qemu-system-aarch64") };
const EXT4: Package = Package { name: "e2fsprogs", tool: Some("mke2fs") };
/// A Raspberry Pi 3 or Zero 2 W, a 4, a 5; and the kernels that the program must choose there.
const CPUS: [(&str, &str); 3] = [("cortex-a53", "NEON"), ("cortex-a72", "NEON"), ("cortex-a76", "NEON")];
/// In the order in which they need each other. The file systems are part of the kernel.
const MODULES: [&str; 6] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
];
const PROMPT: &str = "My fellow citizens";
/// Tokens that the 130-million-parameter model is given; its weights are random, so that any do.
const TOKENS: &str = "1,2,3,5000,42,50000,7,11";
/// What the real kernel lets the program and its files have.
const CAP: &str = "64M";
const PATIENCE: Duration = Duration::from_secs(400);

impl Board for PiLinux {
    fn name(&self) -> &'static str {
        "pi-linux"
    }

    fn platform(&self) -> String {
        format!("{AARCH64_LINUX} (Linux in QEMU)")
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        Toolchain::for_target(AARCH64_LINUX, &[QEMU_USER, QEMU_SYSTEM, EXT4], apt)
    }

    fn build(&self, toolchain: Toolchain, _: &Request) -> Result<()> {
        let program = program(toolchain)?;
        let size = program.metadata().context(|| format!("cannot find {}", program.display()))?.len();
        println!("{} ({:.1} MB)", program.display(), size as f64 / 1e6);
        Ok(())
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let program = program(toolchain)?;
        let mut command = user("cortex-a72", &program);
        command.arg("run").args(&request.model).arg(PROMPT);
        must(&mut command)
    }

    fn test(&self, toolchain: Toolchain, _: &Request) -> Result<()> {
        let program = program(toolchain)?;
        on_every_cpu(&program)?;
        on_a_real_kernel(&program)
    }

    fn flash(&self, toolchain: Toolchain, _: &Request) -> Result<()> {
        let program = program(toolchain)?;
        let package = package(&program)?;
        println!("{}: copy it to the board and `sudo apt install ./FILE`", package.display());
        Ok(())
    }
}

fn work() -> PathBuf {
    root().join("target/boards/pi-linux")
}

/// Builds the static program and returns where it is.
fn program(toolchain: Toolchain) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo_for("build", AARCH64_LINUX, "-C target-feature=+crt-static", "");
    must(cargo.args(["--release", "-p", "elapid", "--bin", "elapid"]))?;
    fs::create_dir_all(work()).context(|| format!("cannot make {}", work().display()))?;
    Ok(toolchain.target_dir().join(AARCH64_LINUX).join("release/elapid"))
}

fn user(cpu: &str, program: &Path) -> Command {
    let mut command = Command::new("qemu-aarch64");
    command.args(["-cpu", cpu]).arg(program).current_dir(root());
    command
}

/// Makes the Debian package, with completions and manual pages.
fn package(program: &Path) -> Result<PathBuf> {
    let elapid = Program::Elapid.build()?;
    // Where the package's definition in host/Cargo.toml looks for them.
    must(elapid.command().arg("package").arg(root().join("target/package")))?;
    let tools = root().join("target/tools");
    let deb = on_path("cargo-deb").unwrap_or_else(|| tools.join("bin/cargo-deb"));
    if !deb.is_file() {
        let mut install = Toolchain::Current.cargo();
        must(install.args(["install", "--locked", "cargo-deb", "--root"]).arg(&tools))?;
    }
    let folder = root().join("target/package");
    fs::copy(program, folder.join("elapid-arm64")).context(|| "cannot copy the program".into())?;
    let file = folder.join("elapid_arm64.deb");
    // `cargo deb` as cargo would call it; what is built is not built again.
    let mut command = Command::new(deb);
    command.current_dir(root()).args([
        "deb",
        "--no-build",
        "--no-strip",
        "-p",
        "elapid",
        "--target",
        AARCH64_LINUX,
    ]);
    must(command.arg("-o").arg(&file))?;
    Ok(file)
}

/// The program on each CPU writes what it writes here.
fn on_every_cpu(program: &Path) -> Result<()> {
    let arguments = ["run", "models/address-4m.elp", PROMPT, "-n", "64", "--seed", "7"];
    let here = Program::Elapid.build()?.output(arguments)?;
    for (cpu, kernels) in CPUS {
        let there = capture(user(cpu, program).args(arguments))?;
        if there != here {
            return Err(Error::new(format!(
                "on {cpu} the text is another\n  there: {there:?}\n  here:  {here:?}"
            )));
        }
        let board = capture(user(cpu, program).arg("board"))?;
        if !board.lines().any(|line| line.starts_with("kernels") && line.contains(kernels)) {
            return Err(Error::new(format!(
                "on {cpu} the kernels should be {kernels}; `elapid board` says:\n{board}"
            )));
        }
        println!("{cpu}: the same 64 tokens as here");
    }
    // The canary: another seed is another text.
    let other = [&arguments[..6], &["8"]].concat();
    if capture(user(CPUS[0].0, program).args(other))? == here {
        return Err(Error::new("another seed gives the same text: the comparison does not work"));
    }
    Ok(())
}

/// The files of a Debian package for arm64, unpacked.
fn unpacked(package: &str) -> Result<PathBuf> {
    let folder = work().join("debian").join(package);
    let into = folder.join("files");
    if into.is_dir() {
        return Ok(into);
    }
    fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    must(Command::new("apt-get").current_dir(&folder).args(["download", "-q", &format!("{package}:arm64")]))?;
    let files = fs::read_dir(&folder).context(|| format!("cannot read {}", folder.display()))?;
    let archive =
        files.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
    let archive = archive.ok_or_else(|| Error::new(format!("apt-get brought no {package}")))?;
    // Under its name only when it is complete.
    let part = folder.join("part");
    must(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part))?;
    fs::rename(&part, &into).context(|| format!("cannot rename {}", part.display()))?;
    Ok(into)
}

/// The name of the package with Debian's kernel for virtual machines.
fn kernel_package() -> Result<String> {
    let listing = capture(Command::new("apt-cache").args(["depends", "linux-image-cloud-arm64:arm64"]))?;
    let depends = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let name = depends.into_iter().next().and_then(|rest| rest.strip_suffix(":arm64").or(Some(rest)));
    name.map(|name| format!("linux-image-{name}")).ok_or_else(|| {
        Error::new("apt-cache knows no linux-image-cloud-arm64:arm64 (dpkg --add-architecture arm64)")
    })
}

/// On Debian's kernel with 512 MB, in a control group of 64 MB, a model of twice that gives the host's logits.
fn on_a_real_kernel(program: &Path) -> Result<()> {
    let model = root().join("target/boards/mamba-130m-q8.elp");
    if !model.is_file() {
        pack(&Program::Pack.build()?, &["--random".as_ref(), "mamba-130m".as_ref()], &model, "q8")?;
    }
    let npy = work().join("logits.npy");
    let elapid = Program::Elapid.build()?;
    must(elapid.command().args(["logits", "--tokens", TOKENS, "--all", "-o"]).arg(&npy).arg(&model))?;
    let expected = cksum(&read(&npy)?);

    let disk = work().join("model.ext4");
    let content = work().join("content");
    fs::create_dir_all(&content).context(|| format!("cannot make {}", content.display()))?;
    fs::copy(&model, content.join("model.elp")).context(|| format!("cannot copy {}", model.display()))?;
    let _ = fs::remove_file(&disk);
    must(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&content).arg(&disk).arg("192M"))?;

    let kernel = unpacked(&kernel_package()?)?;
    let initrd = work().join("initramfs");
    write_initramfs(program, &kernel, &initrd)?;

    let image = only_file(&kernel.join("boot"), "vmlinuz-")?;
    let mut command = Command::new("qemu-system-aarch64");
    command.args(["-M", "virt", "-cpu", "cortex-a53", "-m", "512M", "-smp", "4", "-display", "none"]);
    command.args(["-no-reboot", "-monitor", "none", "-serial", "stdio", "-kernel"]).arg(image);
    command.arg("-initrd").arg(&initrd).args(["-append", "console=ttyAMA0 panic=-1 quiet"]);
    command.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", disk.display()));
    let console = Dialogue::start(&mut command, PATIENCE)?.end()?;

    let said = |name: &str| {
        field(&console, name)
            .ok_or_else(|| Error::new(format!("the machine said no {name}; it said:\n{console}")))
    };
    if said("logits")? != expected.to_string() {
        return Err(Error::new(format!(
            "the logits' checksum is {}, here it is {expected}",
            said("logits")?
        )));
    }
    // The canary: a program that wants more than its group may have must not get it.
    if said("greedy")? == "0" {
        return Err(Error::new("a program took 100 MB in a control group of 64 MB: the cap is none"));
    }
    println!("in {CAP}: the same logits as here; most memory charged to the group: {} bytes", said("peak")?);
    Ok(())
}

fn write_initramfs(program: &Path, kernel: &Path, file: &Path) -> Result<()> {
    let busybox = read(&unpacked("busybox-static")?.join("bin/busybox"))?;
    let modules = only_file(&kernel.join("lib/modules"), "")?.join("kernel");
    let modules = MODULES.map(|module| Ok((module, read(&modules.join(module))?)));
    let modules = modules.into_iter().collect::<Result<Vec<_>>>()?;
    let elapid = read(program)?;
    let script = script();
    let mut entries = vec![
        Entry::folder("bin"),
        Entry::folder("dev"),
        Entry::file("init", script.as_bytes()),
        Entry::file("bin/busybox", &busybox),
        Entry::file("bin/elapid", &elapid),
    ];
    let names: Vec<_> = modules.iter().map(|(name, _)| module_name(name).to_owned()).collect();
    entries.extend(names.iter().zip(&modules).map(|(name, (_, bytes))| Entry::file(name, bytes)));
    fs::write(file, initramfs::archive(&entries)).context(|| format!("cannot write {}", file.display()))
}

fn module_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The first program of the machine.
fn script() -> String {
    let modules: Vec<_> = MODULES.iter().map(|module| format!("insmod /{}", module_name(module))).collect();
    format!(
        "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /tmp /model
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
{modules}
mount -t ext4 -o ro /dev/vda /model
mount -t cgroup2 cgroup /sys/fs/cgroup
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/small
echo {CAP} > /sys/fs/cgroup/small/memory.max
elapid board
capped() {{ sh -c 'echo $$ > /sys/fs/cgroup/small/cgroup.procs; exec \"$@\"' sh \"$@\"; }}
capped elapid logits /model/model.elp --tokens {TOKENS} --all -o /tmp/logits.npy
echo \"--- logits $(cksum < /tmp/logits.npy | cut -d' ' -f1)\"
rm -f /tmp/logits.npy
echo \"--- peak $(cat /sys/fs/cgroup/small/memory.peak)\"
capped dd if=/dev/zero of=/dev/null bs=100M count=1 2> /dev/null
echo \"--- greedy $?\"
poweroff -f
",
        modules = modules.join("\n")
    )
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).context(|| format!("cannot read {}", file.display()))
}

/// The one entry of a folder whose name begins so.
fn only_file(folder: &Path, start: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut entries =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
    let entry = entries.next().ok_or_else(|| Error::new(format!("{} has no {start}…", folder.display())))?;
    Ok(entry.path())
}

/// The checksum that POSIX' `cksum` prints.
fn cksum(bytes: &[u8]) -> u32 {
    let mut length = bytes.len();
    let mut lengths = Vec::new();
    while length > 0 {
        lengths.push(length as u8);
        length >>= 8;
    }
    !bytes.iter().chain(&lengths).fold(0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte) << 24, |sum, _| {
            if sum >> 31 == 1 { sum << 1 ^ 0x04c1_1db7 } else { sum << 1 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `printf 123456789 | cksum` and `cksum < /dev/null` print.
    #[test]
    fn checksums_are_those_of_posix() {
        assert_eq!((cksum(b"123456789"), cksum(b"")), (930_766_865, u32::MAX));
    }

    #[test]
    fn the_script_loads_every_module() {
        let script = script();
        for module in MODULES {
            assert!(script.contains(&format!("insmod /{}\n", module_name(module))), "{module}");
        }
    }
}
