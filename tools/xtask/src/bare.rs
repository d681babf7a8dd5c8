//! Building `core` for bare metal, and seeing that it links neither std nor an allocator.

use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::toolchain::Toolchain;

/// Builds `elapid-core` for `target` and checks what it links.
///
/// Where the library is built from source, only its `core` is: a use of `alloc` does not even compile. Where rustup's
/// compiled one is used, `alloc` lies beside it, so the crates that the result depends on are read from it.
pub fn build(toolchain: Toolchain, target: &str, rustflags: &str) -> Result<()> {
    must(toolchain.cargo_for("build", target, rustflags, "core").args([
        "-p",
        "elapid-core",
        "--no-default-features",
        "--release",
    ]))?;
    let library = toolchain.target_dir().join(target).join("release/libelapid_core.rlib");
    let linked = crates_of(toolchain, &library)?;
    println!("{} links {}", library.display(), linked.join(", "));
    if !linked.iter().any(|name| name == "core") {
        return Err(Error::new(format!("what {} links could not be read", library.display())));
    }
    if let Some(name) = linked.iter().find(|name| hosted(name)) {
        return Err(Error::new(format!("{} links {name}", library.display())));
    }
    canary(toolchain)
}

/// Sees to it that `alloc` would be found: by compiling, for this machine, a crate that uses it.
fn canary(toolchain: Toolchain) -> Result<()> {
    let folder = toolchain.target_dir().join("xtask-canary");
    std::fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    let source = folder.join("canary.rs");
    std::fs::write(&source, "#![no_std]\nextern crate alloc;\npub use alloc::vec::Vec;\n")
        .context(|| format!("cannot write {}", source.display()))?;
    let library = folder.join("libcanary.rlib");
    // The compiler that runs us: it has `alloc` for this machine, and reads as the other does.
    let current = Toolchain::Current;
    capture(
        current.rustc().args(["--crate-type", "rlib", "--edition", "2024", "-o"]).arg(&library).arg(&source),
    )?;
    if crates_of(current, &library)?.iter().any(|name| hosted(name)) {
        Ok(())
    } else {
        Err(Error::new("the check for alloc is broken: it does not see it in a crate that uses it"))
    }
}

fn hosted(name: &str) -> bool {
    matches!(name, "alloc" | "std" | "proc_macro" | "test")
}

/// The crates that a compiled library depends on, those of its dependencies included.
fn crates_of(toolchain: Toolchain, library: &Path) -> Result<Vec<String>> {
    let listing = capture(toolchain.rustc().arg("-Zls=root").arg(library).env("RUSTC_BOOTSTRAP", "1"))?;
    Ok(dependencies(&listing))
}

/// Reads lines such as `1 core-2c0b0ac80d80b1c4 hash … kind Unconditional public`. Macros run in the compiler only.
fn dependencies(listing: &str) -> Vec<String> {
    let lines = listing.lines().skip_while(|line| *line != "=External Dependencies=").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        .filter(|line| !line.contains("kind MacrosOnly"))
        .filter_map(|line| line.split(' ').nth(1)?.rsplit_once('-'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let listing = "Crate info:\nname canary\n=External Dependencies=\n\
            1 core-120cbae4e86ec454 hash 4102 host_hash None kind Unconditional public\n\
            2 alloc-6e6df4ffe0af4d15 hash 2fda host_hash None kind Unconditional public\n\
            3 zerocopy_derive-40 hash 2f host_hash None kind MacrosOnly public\n\n\n";
        assert_eq!(dependencies(listing), ["core", "alloc"]);
    }

    #[test]
    fn alloc_is_found() {
        canary(Toolchain::Current).unwrap();
    }

    #[test]
    fn alloc_and_std_are_refused() {
        assert!(hosted("alloc") && hosted("std"));
        assert!(!hosted("core") && !hosted("compiler_builtins"));
    }
}
