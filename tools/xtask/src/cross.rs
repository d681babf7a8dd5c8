//! `cargo xtask cross`: the `elapid` program for another machine.

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
    // Static, so that it runs whatever glibc the board has.
    must(toolchain.cargo_for("build", target, "-C target-feature=+crt-static", "").args([
        "--release",
        "-p",
        "elapid",
        "--bin",
        "elapid",
    ]))?;
    let program = toolchain.target_dir().join(target).join("release/elapid");
    let size = program.metadata().context(|| format!("cannot find {}", program.display()))?.len();
    println!("{} ({:.1} MB)", program.display(), size as f64 / 1e6);
    Ok(())
}
