//! A newer QEMU than Debian 12's, from its backports, unpacked beside the installed one.
//!
//! Installing it would replace `qemu-user` too, by one that counts no instructions. So nothing of the system is changed: lists
//! and packages have a folder of their own, and root is not needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::EMULATOR;
use crate::apt::{Apt, emulator};
use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, on_path};
use crate::toolchain::root;

const SOURCE: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
    http://deb.debian.org/debian bookworm-backports main\n";
/// The Debian whose libraries it is built for.
const DEBIAN: [&str; 2] = ["ID=debian", "VERSION_CODENAME=bookworm"];
const PACKAGES: [&str; 2] = ["qemu-system-arm", "qemu-system-common"];

/// The emulator that has `machine`: the installed one, or that which [`ensure`] fetched.
pub(super) fn program(machine: &str) -> Result<PathBuf> {
    let fetched = folder().join("root/usr/bin").join(EMULATOR);
    [emulator(EMULATOR), fetched]
        .into_iter()
        .find(|program| has(program, machine))
        .ok_or_else(|| Error::new(format!("needs a QEMU with the machine {machine} (9.0 and later have it)")))
}

/// Sees to it that there is one. The error says why there is none.
pub(super) fn ensure(machine: &str, apt: &Apt) -> Result<()> {
    let Err(none) = program(machine) else { return Ok(()) };
    let refuse = |why: &str| Err(Error::new(format!("{none}, and {why}")));
    if !apt.allowed() {
        return refuse("--no-install was given");
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !DEBIAN.iter().all(|line| release.lines().any(|has| has == *line)) || on_path("apt-get").is_none() {
        return refuse("it can be fetched on Debian 12 only: install a newer QEMU");
    }
    match fetch(&folder()).and_then(|()| program(machine)) {
        Ok(_) => Ok(()),
        Err(error) => refuse(&format!("fetching it from Debian's backports failed: {error}")),
    }
}

fn folder() -> PathBuf {
    root().join(".xtask/qemu-backports")
}

/// Whether `program` runs here and emulates `machine`.
fn has(program: &Path, machine: &str) -> bool {
    let list = (program.is_file() || on_path(&program.to_string_lossy()).is_some())
        .then(|| capture(Command::new(program).args(["-M", "help"])));
    list.is_some_and(|list| list.is_ok_and(|list| list.lines().any(|line| line.starts_with(machine))))
}

/// Downloads the packages and unpacks them into `folder/root`.
fn fetch(folder: &Path) -> Result<()> {
    let packages = folder.join("packages");
    let _ = fs::remove_dir_all(&packages);
    for part in ["lists/partial", "cache/archives/partial", "packages"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).context(|| format!("cannot make {}", part.display()))?;
    }
    let list = folder.join("sources.list");
    fs::write(&list, SOURCE).context(|| format!("cannot write {}", list.display()))?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        for (name, value) in [
            ("Dir::Etc::sourcelist", list.display().to_string()),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::State::lists", folder.join("lists").display().to_string()),
            ("Dir::Cache", folder.join("cache").display().to_string()),
            ("Acquire::http::Timeout", "20".into()),
            ("Acquire::Retries", "1".into()),
            // The files are ours: the user that apt-get downloads as could not write here.
            ("APT::Sandbox::User", "root".into()),
        ] {
            command.arg("-o").arg(format!("{name}={value}"));
        }
        must(command.args(["-q"]).args(arguments).current_dir(&packages))
    };
    apt(&["update", "--error-on=any"])?;
    apt(&[&["download"][..], &PACKAGES].concat())?;
    let files = fs::read_dir(&packages).context(|| format!("cannot read {}", packages.display()))?;
    for file in files {
        let file = file.context(|| format!("cannot read {}", packages.display()))?.path();
        must(Command::new("dpkg").arg("-x").arg(file).arg(folder.join("root")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_fetched_where_nothing_may_be() {
        let error = ensure("no-such-machine", &Apt::new(false)).unwrap_err().to_string();
        assert!(error.contains("no-such-machine") && error.contains("--no-install was given"), "{error}");
    }
}
