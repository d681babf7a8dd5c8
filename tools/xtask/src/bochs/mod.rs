//! x86 instructions that this CPU may lack, in a machine that Bochs emulates: AVX-512 and AVX-VNNI.
//!
//! QEMU has neither. Bochs emulates a whole machine, so each test program is put into a file system of its own, and boots
//! with Debian's kernel as its only process. Cargo starts it as it does any test, through `cargo xtask in-bochs`.

mod cpio;
mod machine;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use machine::Machine;

use crate::apt::{Apt, Package};
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must};
use crate::steps::EMULATED_LIMIT;
use crate::toolchain::{Toolchain, root};

const NEEDS: [Package; 4] = [
    Package { name: "bochs", tool: Some("bochs") },
    Package { name: "isolinux", tool: None },
    Package { name: "syslinux-common", tool: None },
    Package { name: "xorriso", tool: Some("xorriso") },
];
/// The package that names the newest small kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Names another Bochs than Debian's.
const OTHER: &str = "ELAPID_BOCHS";
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn bochs() -> PathBuf {
    std::env::var_os(OTHER).map_or_else(|| "/usr/bin/bochs-bin".into(), PathBuf::from)
}

fn folder() -> PathBuf {
    Toolchain::Current.target_dir().join("xtask-bochs")
}

fn kernel() -> PathBuf {
    folder().join("vmlinuz")
}

/// Sees to it that a machine with `cpu` can boot. The error says what is missing.
pub fn prepare(cpu: &str, apt: &mut Apt) -> Result<()> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Err(Error::new("only on x86-64 Linux"));
    }
    apt.ensure(&NEEDS)?;
    let bochs = bochs();
    if !machine::help(&bochs, "cpu").lines().any(|line| line.trim() == cpu) {
        let path = bochs.display();
        return Err(Error::new(format!("{path} knows no CPU {cpu}: {OTHER} may name a newer Bochs")));
    }
    if kernel().is_file() { Ok(()) } else { download(apt) }
}

/// Fetches and unpacks a kernel. It is not installed: nothing of this machine's own boot changes.
fn download(apt: &mut Apt) -> Result<()> {
    let folder = folder();
    std::fs::create_dir_all(&folder).context(|| format!("cannot make {}", folder.display()))?;
    apt.update()?;
    let depends = capture(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let name = depends
        .lines()
        .find_map(|line| {
            line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-"))
        })
        .ok_or_else(|| Error::new(format!("apt knows no {KERNEL}")))?;
    println!("Downloading {name}, which is unpacked into {} and not installed", folder.display());
    must(Command::new("apt-get").args(["download", "-q", name]).current_dir(&folder))?;
    let files = |folder: &Path, start: &str| {
        let entries = std::fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let is = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start));
        paths.find(is).ok_or_else(|| Error::new(format!("{}: no {start}…", folder.display())))
    };
    let package = files(&folder, &format!("{name}_"))?;
    let unpacked = folder.join("kernel");
    must(Command::new("dpkg").arg("-x").arg(&package).arg(&unpacked))?;
    let from = files(&unpacked.join("boot"), "vmlinuz-")?;
    std::fs::rename(&from, kernel()).context(|| format!("cannot move {}", from.display()))?;
    std::fs::remove_file(&package).context(|| format!("cannot remove {}", package.display()))?;
    std::fs::remove_dir_all(&unpacked).context(|| format!("cannot remove {}", unpacked.display()))
}

/// `cargo test` in machines with `cpu`. The binaries are static: nothing else is in their file system.
pub fn tests(cpu: &str, arguments: &[&str]) -> Result<Command> {
    let this = std::env::current_exe().context(|| "cannot tell where this program is".into())?;
    let flags = "-C target-feature=+crt-static -C strip=debuginfo";
    let mut command = Toolchain::Current.cargo_for("test", TARGET, flags, "");
    command
        .args(arguments)
        .args(["--no-fail-fast", "--", "--show-output"])
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", format!("{} in-bochs {cpu}", this.display()))
        .env("ELAPID_EMULATED", "1");
    Ok(command)
}

/// Boots a machine with `cpu` for one test program: what cargo calls.
pub fn run(cpu: &str, program: &Path, arguments: &[String]) -> Result<ExitCode> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = folder().join(format!("{cpu}-{name}"));
    let (bochs, kernel) = (bochs(), kernel());
    let limit = Duration::from_secs(u64::from(EMULATED_LIMIT));
    let machine = Machine { bochs: &bochs, cpu, kernel: &kernel, folder: &folder, limit };
    // What the tests read, at the paths that were compiled into them.
    let trees = ["tests/fixtures", "tests/snapshots"].map(|tree| root().join(tree));
    let env: Vec<_> = std::env::vars().filter(|(name, _)| name.starts_with("ELAPID_")).collect();
    let code = machine.run(program, arguments, &env, &trees)?;
    Ok(ExitCode::from(code))
}
