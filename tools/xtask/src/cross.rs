//! `cargo xtask cross`: the `elapid` program for another machine.

use std::path::{Path, PathBuf};

use crate::apt::Apt;
use crate::error::{Context, Error, Result};
use crate::exec::must;
use crate::toolchain::{AARCH64_LINUX, AARCH64_MUSL, Toolchain};

/// Builds a static `elapid` for `target` and prints where it is.
pub fn cross(target: &str, install: bool) -> Result<()> {
    if ![AARCH64_LINUX, AARCH64_MUSL].contains(&target) {
        return Err(Error::new(format!(
            "`{target}` is not a target of the program; {AARCH64_LINUX} and {AARCH64_MUSL} are"
        )));
    }
    let toolchain = Toolchain::for_target(target, &[], &mut Apt::new(install))?;
    say(&build(toolchain, target)?)
}

/// Prints where a program is, and its size.
pub fn say(program: &Path) -> Result<()> {
    let size = program.metadata().context(|| format!("cannot find {}", program.display()))?.len();
    println!("{} ({:.1} MB)", program.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds it for a target of 64-bit ARM Linux and returns where it is.
pub fn build(toolchain: Toolchain, target: &str) -> Result<PathBuf> {
    build_with(toolchain, target, &[])
}

/// The same with features of the program that are not in by default.
pub fn build_with(toolchain: Toolchain, target: &str, features: &[&str]) -> Result<PathBuf> {
    // Static, so that it runs whatever glibc the board has.
    let mut command = toolchain.cargo_for("build", target, "-C target-feature=+crt-static", "");
    command.args(["--release", "-p", "elapid-cli", "--bin", "elapid"]);
    if target == AARCH64_MUSL {
        // The cryptography of the Hub's connections needs a C compiler for that library.
        command.args(["--no-default-features", "--features", "bundled"]);
    } else {
        command.args(["--features", &features.join(",")]);
    }
    must(&mut command)?;
    Ok(toolchain.target_dir().join(target).join("release/elapid"))
}
