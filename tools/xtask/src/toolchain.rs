//! Which Rust builds for which target, and how to call it.
//!
//! rustup's target is used where it is installed. Where it is not (a machine that reaches Debian's archive but not
//! rustup's), Debian's own Rust stands in: its packages `rustc-web` and `cargo-web` follow the newest stable, have the
//! standard library for arm64, and the library's source for bare metal. It is not on the path of a rustup user, so
//! nothing of the running toolchain's environment may reach it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::{Apt, Package};
use crate::error::{Error, Result};
use crate::exec::capture;

/// aarch64 Linux with glibc, what a 64-bit Raspberry Pi OS runs.
pub const AARCH64_LINUX: &str = "aarch64-unknown-linux-gnu";
/// The same with musl, of which rustup's target brings all that is linked.
pub const AARCH64_MUSL: &str = "aarch64-unknown-linux-musl";

const DEBIAN: [Package; 2] =
    [Package { name: "rustc-web", tool: None }, Package { name: "cargo-web", tool: None }];
const DEBIAN_SOURCE: Package = Package { name: "rust-web-src", tool: None };
const DEBIAN_ARM64: Package = Package { name: "libstd-rust-web-dev:arm64", tool: None };
const LINKER: &str = "aarch64-linux-gnu-gcc";
const CROSS_GCC: [Package; 2] = [
    Package { name: "gcc-aarch64-linux-gnu", tool: Some(LINKER) },
    // Only recommended by the compiler, but nothing links without it.
    Package { name: "libc6-dev-arm64-cross", tool: Some(LINKER) },
];

/// What of the environment belongs to the toolchain that runs this program, and would mislead another.
const FOREIGN: [&str; 16] = [
    "CARGO",
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "DYLD_FALLBACK_LIBRARY_PATH",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
    "RUST_TARGET_PATH",
];

/// A Rust that can build for a certain target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolchain {
    /// The one that runs this program.
    Current,
    /// Debian's, in /usr/bin.
    Debian,
}

impl Toolchain {
    /// A toolchain that builds for `target`, with `others` beside it; installs what is missing. The error names that.
    pub fn for_target(target: &str, others: &[Package], apt: &mut Apt) -> Result<Self> {
        let linux = target == AARCH64_LINUX;
        let mut needs = others.to_vec();
        if linux && !cfg!(all(target_arch = "aarch64", target_os = "linux")) {
            needs.extend(CROSS_GCC);
        }
        if has_target(target) {
            return apt.ensure(&needs).map(|()| Self::Current);
        }
        if target == AARCH64_MUSL {
            return Err(Error::new(format!(
                "Debian has no compiled standard library for {target}: `rustup target add {target}`"
            )));
        }
        needs.extend(DEBIAN);
        needs.push(if linux { DEBIAN_ARM64 } else { DEBIAN_SOURCE });
        apt.ensure(&needs).and_then(|()| debian_is_usable()).map_err(|error| {
            Error::new(format!(
                "{error}. With rustup, `rustup target add {target}` does instead of Debian's Rust"
            ))
        })?;
        Ok(Self::Debian)
    }

    /// A `cargo` command of this toolchain in the root of the workspace.
    pub fn cargo(self) -> Command {
        let mut command = match self {
            Self::Current => Command::new(current("CARGO", "cargo")),
            Self::Debian => Command::new("/usr/bin/cargo"),
        };
        command.current_dir(root());
        // The running `cargo` says these about this package; they would make others look changed.
        for (name, _) in std::env::vars_os() {
            let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
            if name.to_str().is_some_and(|name| told.iter().any(|prefix| name.starts_with(prefix))) {
                command.env_remove(name);
            }
        }
        if self == Self::Debian {
            debian_environment(&mut command);
            command.env("RUSTC", "/usr/bin/rustc").env("RUSTDOC", "/usr/bin/rustdoc");
            // Apart from the other's, so that neither rebuilds what the other built.
            command.env("CARGO_TARGET_DIR", self.target_dir());
        }
        command
    }

    /// A `rustc` command of this toolchain.
    pub fn rustc(self) -> Command {
        match self {
            Self::Current => Command::new(current("RUSTC", "rustc")),
            Self::Debian => {
                let mut command = Command::new("/usr/bin/rustc");
                debian_environment(&mut command);
                command
            }
        }
    }

    /// `cargo SUBCOMMAND` for `target`, with the target's compiler flags and linker, and the library's crates
    /// `build_std` built from source where no compiled ones are there.
    pub fn cargo_for(self, subcommand: &str, target: &str, rustflags: &str, build_std: &str) -> Command {
        let mut command = self.cargo();
        command.args([subcommand, "--target", target]);
        command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", rustflags);
        if target == AARCH64_LINUX {
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
        } else if target == AARCH64_MUSL {
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
        } else if self == Self::Debian {
            command.arg(format!("-Zbuild-std={build_std}")).env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// Where this toolchain's builds go.
    pub fn target_dir(self) -> PathBuf {
        let base = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => root().join(folder),
            None => root().join("target"),
        };
        match self {
            Self::Current => base,
            Self::Debian => base.join("cross-debian"),
        }
    }
}

/// The root of the workspace.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// The models that come with the project, within the package that carries one of them.
pub fn models() -> PathBuf {
    root().join("host/models")
}

/// The triple of this machine.
pub fn host() -> Result<String> {
    let version = capture(Toolchain::Current.rustc().arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .ok_or_else(|| Error::new("`rustc -vV` names no host"))
}

fn current(variable: &str, otherwise: &str) -> std::ffi::OsString {
    std::env::var_os(variable).unwrap_or_else(|| otherwise.into())
}

fn debian_environment(command: &mut Command) {
    for name in FOREIGN {
        command.env_remove(name);
    }
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
}

/// Whether the current toolchain has a compiled standard library (or core) for `target`.
fn has_target(target: &str) -> bool {
    let mut rustc = Toolchain::Current.rustc();
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(root());
    rustc.output().is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(folder.trim()).is_dir()
    })
}

/// That /usr/bin/rustc is Debian's, not rustup's proxy, and new enough.
fn debian_is_usable() -> Result<()> {
    let sysroot = capture(Toolchain::Debian.rustc().args(["--print", "sysroot"]))?;
    if sysroot.trim() != "/usr" {
        return Err(Error::new(format!(
            "/usr/bin/rustc is not Debian's (its sysroot is {})",
            sysroot.trim()
        )));
    }
    let version = capture(Toolchain::Debian.rustc().arg("--version"))?;
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    if minor(&version) < minor(wanted) {
        return Err(Error::new(format!("Debian's {} is older than {wanted}", version.trim())));
    }
    Ok(())
}

/// 96 for "rustc 1.96.0 (…)" and "1.96".
fn minor(version: &str) -> Option<u32> {
    let number = version.split(' ').find(|word| word.starts_with("1."))?;
    number.split('.').nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare() {
        assert_eq!(minor("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\n"), Some(96));
        assert_eq!(minor("1.89"), Some(89));
        assert!(minor("no version") < minor("1.89"));
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("tools/xtask/Cargo.toml").is_file());
    }

    #[test]
    fn this_machine_is_a_target_that_is_there() {
        assert!(has_target(&host().unwrap()));
        assert!(!has_target("no-such-target"));
    }

    #[test]
    fn debians_cargo_sees_no_other_compiler() {
        let command = Toolchain::Debian.cargo_for("build", "aarch64-unknown-none", "-C x", "core");
        let value = |name: &str| command.get_envs().find(|(key, _)| *key == name).map(|(_, value)| value);
        assert_eq!(value("RUSTUP_TOOLCHAIN"), Some(None));
        assert_eq!(value("LD_LIBRARY_PATH"), Some(None));
        assert_eq!(value("RUSTC"), Some(Some("/usr/bin/rustc".as_ref())));
        assert_eq!(value("RUSTFLAGS"), Some(Some("-C x".as_ref())));
        assert_eq!(command.get_program(), "/usr/bin/cargo");
    }
}
