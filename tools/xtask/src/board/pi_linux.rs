//! The `elapid` program for a Raspberry Pi with Linux: static, in a Debian package, on emulated CPUs and on a real kernel.

mod disk;
mod initramfs;
mod kernel;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mcu::scratch;
use super::{Request, Target};
use crate::apt::{Apt, Package, QEMU_USER};
use crate::cross;
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, on_path, shown};
use crate::programs::Program;
use crate::toolchain::{AARCH64_LINUX, AARCH64_MUSL, Toolchain, root};

pub use kernel::Kernel;

/// One program for all of them, with one of two C libraries.
#[derive(Debug)]
pub struct PiLinux {
    /// The name of the step.
    name: &'static str,
    target: &'static str,
    /// Whether a package is made of it.
    packaged: bool,
}

pub const GLIBC: PiLinux = PiLinux { name: "pi-linux", target: AARCH64_LINUX, packaged: true };
pub const MUSL: PiLinux = PiLinux { name: "pi-linux-musl", target: AARCH64_MUSL, packaged: false };

const EXT4: Package = Package { name: "e2fsprogs", tool: Some("mke2fs") };
const DPKG: Package = Package { name: "dpkg", tool: Some("dpkg-deb") };
/// The other target's compiler brings it.
const BINUTILS: Package = Package { name: "binutils-aarch64-linux-gnu", tool: Some(STRIP) };
const GZIP: Package = Package { name: "gzip", tool: Some("gzip") };

/// The CPUs of a Raspberry Pi 3 or Zero 2 W, of a 4 and of a 5, and the kernels that each must take.
const CPUS: [(&str, &str); 3] =
    [("cortex-a53", "NEON"), ("cortex-a72", "NEON"), ("cortex-a76", "NEON with dot product")];
const STRIP: &str = "aarch64-linux-gnu-strip";
const MODEL: &str = "host/models/address-4m.elp";
const PROMPT: &str = "My fellow citizens";

impl Target for PiLinux {
    fn name(&self) -> &'static str {
        self.name
    }

    fn platform(&self) -> String {
        format!("{} (QEMU user)", self.target)
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        let needs: &[Package] = if self.packaged { &[QEMU_USER, DPKG, GZIP] } else { &[QEMU_USER, BINUTILS] };
        Toolchain::for_target(self.target, needs, apt)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        cross::say(&stripped(self.name, &cross::build(toolchain, self.target)?)?)
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let program = cross::build(toolchain, self.target)?;
        must(user("cortex-a72", &program).arg("run").args(&request.model).arg(PROMPT))
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let program = cross::build(toolchain, self.target)?;
        if request.long {
            kernel::tools(&mut Apt::new(request.install))?;
            return kernel::test(&program, &kernel::LONG);
        }
        let program = stripped(self.name, &program)?;
        on_every_cpu(&if self.packaged { package::unpacked(&package::make(&program)?)? } else { program })
    }

    fn flash(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        // The package has the server, too. The tests do without it: it doubles their time.
        let features: &[&str] = if self.packaged { &["serve"] } else { &[] };
        let program = stripped(self.name, &cross::build_with(toolchain, self.target, features)?)?;
        if self.packaged {
            let package = package::make(&program)?;
            println!("{}: copy it to the board, and there `sudo apt install ./FILE`", package.display());
        } else {
            println!("{}: copy it to the board", program.display());
        }
        Ok(())
    }
}

/// The model that is compared.
fn model() -> PathBuf {
    root().join(MODEL)
}

fn user(cpu: &str, program: &Path) -> Command {
    let mut command = Command::new("qemu-aarch64");
    command.args(["-cpu", cpu]).arg(program).current_dir(root());
    command
}

/// A copy of the program without names for a debugger, which are three quarters of it.
fn stripped(name: &str, program: &Path) -> Result<PathBuf> {
    let file = scratch(name, "-elapid")?;
    let strip = if on_path(STRIP).is_some() { STRIP } else { "strip" };
    must(Command::new(strip).arg("-o").arg(&file).arg(program))?;
    Ok(file)
}

/// The program on each CPU writes what it writes here, with the kernels that are for that CPU.
fn on_every_cpu(program: &Path) -> Result<()> {
    let arguments = ["run", MODEL, PROMPT, "-n", "64", "--seed", "7"];
    let here = Program::Elapid.build()?.output(arguments)?;
    for (cpu, kernels) in CPUS {
        let mut command = user(cpu, program);
        println!("$ {}", shown(command.args(arguments)));
        let there = capture(&mut command)?;
        if there != here {
            return Err(Error::new(format!(
                "on {cpu} the text is another\n  there: {there:?}\n  here:  {here:?}"
            )));
        }
        let board = capture(user(cpu, program).args(["board", "--json"]))?;
        let board: serde_json::Value = serde_json::from_str(&board)
            .context(|| format!("`elapid board --json` printed no JSON: {board}"))?;
        println!("{cpu}: the same 64 tokens as here, kernels {}", board["kernels"]);
        if board["kernels"] != kernels {
            return Err(Error::new(format!("on {cpu} `elapid board` says {board}, not {kernels}")));
        }
    }
    // The canary: another seed is another text.
    let other = [&arguments[..6], &["8"]].concat();
    if capture(user(CPUS[0].0, program).args(other))? == here {
        return Err(Error::new("another seed gives the same text: the comparison does not work"));
    }
    Ok(())
}

/// A folder for what this board's test makes.
fn work(name: &str) -> Result<PathBuf> {
    scratch("pi-linux", &format!("-{name}"))
}

/// A folder for what is downloaded, which a clean build does not lose.
fn download(name: &str) -> Result<PathBuf> {
    let folder = root().join(".xtask");
    fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("debian-arm64-{name}")))
}
