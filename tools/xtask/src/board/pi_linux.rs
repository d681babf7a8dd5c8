//! The Raspberry Pi with Linux: the static program and its package, on emulated CPUs and on a real kernel.

mod initramfs;
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mcu::scratch;
use super::pi_bare::QEMU_SYSTEM;
use super::{Board, Request};
use crate::apt::{Apt, Package};
use crate::cross;
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::programs::Program;
use crate::toolchain::{AARCH64_LINUX, Toolchain, root};

/// One program for all of them.
#[derive(Debug)]
pub struct PiLinux;

const QEMU_USER: Package = Package { name: "qemu-user", tool: Some("qemu-aarch64") };
const EXT4: Package = Package { name: "e2fsprogs", tool: Some("mke2fs") };
/// The CPUs of a Raspberry Pi 3 or Zero 2 W, of a 4 and of a 5.
const CPUS: [&str; 3] = ["cortex-a53", "cortex-a72", "cortex-a76"];
const MODEL: &str = "models/address-4m.elp";
const PROMPT: &str = "My fellow citizens";

impl Board for PiLinux {
    fn name(&self) -> &'static str {
        "pi-linux"
    }

    fn platform(&self) -> String {
        format!("{AARCH64_LINUX} (QEMU, user and virt)")
    }

    fn tools(&self, apt: &mut Apt) -> Result<Toolchain> {
        let toolchain = Toolchain::for_target(AARCH64_LINUX, &[QEMU_USER, QEMU_SYSTEM, EXT4], apt)?;
        kernel::fetch(apt)?;
        Ok(toolchain)
    }

    fn build(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        let program = cross::build(toolchain)?;
        let size = program.metadata().context(|| format!("cannot find {}", program.display()))?.len();
        println!("{} ({:.1} MB)", program.display(), size as f64 / 1e6);
        Ok(())
    }

    fn run(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let program = cross::build(toolchain)?;
        must(user("cortex-a72", &program).arg("run").args(&request.model).arg(PROMPT))
    }

    fn test(&self, toolchain: Toolchain, request: &Request) -> Result<()> {
        let program = cross::build(toolchain)?;
        package(&program)?;
        on_every_cpu(&program)?;
        kernel::test(&program, request.model.as_deref())
    }

    fn flash(&self, toolchain: Toolchain, _request: &Request) -> Result<()> {
        let package = package(&cross::build(toolchain)?)?;
        println!("{}: copy it to the board, and there `sudo apt install ./FILE`", package.display());
        Ok(())
    }
}

fn user(cpu: &str, program: &Path) -> Command {
    let mut command = Command::new("qemu-aarch64");
    command.args(["-cpu", cpu]).arg(program).current_dir(root());
    command
}

/// What is in the package beside the program, as a check that nothing went missing.
const PACKAGED: [&str; 6] = [
    "./usr/bin/elapid",
    "./usr/share/man/man1/elapid.1",
    "./usr/share/man/man1/elapid-run.1",
    "./usr/share/bash-completion/completions/elapid",
    "./usr/share/zsh/vendor-completions/_elapid",
    "./usr/share/fish/vendor_completions.d/elapid.fish",
];

/// Makes the Debian package: the program, completions and manual pages. It needs nothing, so that any release will do.
fn package(program: &Path) -> Result<PathBuf> {
    let tree = work("package")?;
    let _ = fs::remove_dir_all(&tree);
    must(Program::Elapid.build()?.command().arg("package").arg(&tree))?;
    let put = |name: &str, from: &dyn Fn(&Path) -> std::io::Result<()>| {
        let to = tree.join(name);
        let made = to.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| from(&to));
        made.context(|| format!("cannot make {}", to.display()))
    };
    put("usr/bin/elapid", &|to| fs::copy(program, to).map(drop))?;
    put("usr/share/doc/elapid/README.md", &|to| fs::copy(root().join("README.md"), to).map(drop))?;
    put("DEBIAN/control", &|to| fs::write(to, control()))?;
    let file = work("elapid_arm64.deb")?;
    must(Command::new("dpkg-deb").args(["--build", "--root-owner-group"]).arg(&tree).arg(&file))?;
    let content = capture(Command::new("dpkg-deb").arg("--contents").arg(&file))?;
    match PACKAGED.iter().find(|name| !content.lines().any(|line| line.ends_with(**name))) {
        None => Ok(file),
        Some(missing) => Err(Error::new(format!("{} lacks {missing}", file.display()))),
    }
}

fn control() -> String {
    format!(
        "Package: elapid
Version: {}
Architecture: arm64
Maintainer: The Elapid authors <elapid@localhost>
Section: science
Priority: optional
Homepage: https://github.com/elapid/elapid
Description: runs Mamba and Falcon Mamba language models
 From packed files, in as much memory as it is given, at constant memory and
 speed for each token.
",
        env!("CARGO_PKG_VERSION")
    )
}

/// The program on each CPU writes what it writes here.
fn on_every_cpu(program: &Path) -> Result<()> {
    let arguments = ["run", MODEL, PROMPT, "-n", "64", "--seed", "7"];
    let here = Program::Elapid.build()?.output(arguments)?;
    for cpu in CPUS {
        let there = capture(user(cpu, program).args(arguments))?;
        if there != here {
            return Err(Error::new(format!(
                "on {cpu} the text is another\n  there: {there:?}\n  here:  {here:?}"
            )));
        }
        let board = capture(user(cpu, program).arg("board"))?;
        let kernels = board.lines().find(|line| line.starts_with("kernels")).unwrap_or("no kernels");
        println!("{cpu}: the same 64 tokens as here; {kernels}");
        // What the CPU has must be used: dot products came with the last of them.
        if !kernels.contains("NEON") || kernels.contains("dot") != (cpu == "cortex-a76") {
            return Err(Error::new(format!("on {cpu} `elapid board` says {kernels:?}")));
        }
    }
    // The canary: another seed is another text.
    let other = [&arguments[..6], &["8"]].concat();
    if capture(user(CPUS[0], program).args(other))? == here {
        return Err(Error::new("another seed gives the same text: the comparison does not work"));
    }
    Ok(())
}

/// A folder for what this board's test makes.
fn work(name: &str) -> Result<PathBuf> {
    scratch(&format!("pi-linux-{name}"))
}
