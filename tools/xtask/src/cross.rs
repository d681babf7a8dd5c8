//! `cargo xtask cross`: the `elapid` program for another machine.

use std::path::PathBuf;

use crate::apt::Apt;
use crate::error::{Context, Error, Result};
use crate::exec::must;
use crate::toolchain::{AARCH64_LINUX, Toolchain};

/// Builds a static `elapid` for `target` and prints where it is.
pub fn cross(target: &str, install: bool) -> Result<()> {
    if target != AARCH64_LINUX {
        return Err(Error::new(format!("`{target}` is not a target of the program; {AARCH64_LINUX} is")));
    }
    let toolchain = Toolchain::for_target(target, &[], &mut Apt::new(install))?;
    let program = build(toolchain)?;
    let size = program.metadata().context(|| format!("cannot find {}", program.display()))?.len();
    println!("{} ({:.1} MB)", program.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds it for 64-bit ARM Linux and returns where it is.
pub fn build(toolchain: Toolchain) -> Result<PathBuf> {
    // Static, so that it runs whatever glibc the board has.
    must(toolchain.cargo_for("build", AARCH64_LINUX, "-C target-feature=+crt-static", "").args([
        "--release",
        "-p",
        "elapid",
        "--bin",
        "elapid",
    ]))?;
    Ok(toolchain.target_dir().join(AARCH64_LINUX).join("release/elapid"))
}
