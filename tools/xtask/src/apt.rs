//! Debian packages that a step needs: which are missing, and installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::exec::{capture, must, on_path, run, shown, succeeds};

/// A package, and the program that shows its presence on systems without dpkg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    /// None: nothing but Debian's own package will do.
    pub tool: Option<&'static str>,
}

/// The emulator of a 64-bit ARM machine's programs, and that of whole machines.
pub const QEMU_USER: Package = Package { name: "qemu-user", tool: Some("qemu-aarch64") };
pub const QEMU_SYSTEM: Package = Package { name: "qemu-system-arm", tool: Some("qemu-system-aarch64") };
/// A browser without its window.
pub const CHROMIUM: Package = Package { name: "chromium", tool: Some("chromium") };

/// Installs packages at most once each, and only where it may.
pub struct Apt {
    allowed: bool,
    updated: bool,
    /// Packages that an attempt did not bring; not tried again.
    failed: Vec<&'static str>,
}

impl Apt {
    /// With `allowed` false nothing is ever installed.
    pub fn new(allowed: bool) -> Self {
        Self { allowed, updated: false, failed: Vec::new() }
    }

    /// Whether anything may be fetched.
    pub fn allowed(&self) -> bool {
        self.allowed
    }

    /// Sees to it that every one of `needs` is there. The error says what to install, and why it was not done here.
    pub fn ensure(&mut self, needs: &[Package]) -> Result<()> {
        let missing = missing(needs);
        if missing.is_empty() {
            return Ok(());
        }
        let refuse = |why: &str| Err(Error::new(refusal(&missing, why)));
        if !self.allowed {
            return refuse("--no-install was given");
        }
        if on_path("apt-get").is_none() {
            let names = missing.join(" ");
            return Err(Error::new(format!(
                "needs what Debian calls {names}, and this system has no apt-get"
            )));
        }
        let Some(root) = root_prefix() else {
            return refuse("this needs root, and `sudo -n` is not allowed to do it");
        };
        if missing.iter().any(|name| self.failed.contains(name)) {
            return refuse("apt-get could not install them, see above");
        }
        let _alone = alone()?;
        let missing = self::missing(needs);
        if !missing.is_empty() {
            println!("Installing what the next step needs: {}", missing.join(" "));
            self.install(&root, &missing);
            self.unpack_emulator(&root, &self::missing(needs));
        }
        let still = self::missing(needs);
        if still.is_empty() {
            return Ok(());
        }
        self.failed.extend(&still);
        Err(Error::new(refusal(&still, "apt-get could not install them, see above")))
    }

    /// Unpacks the files of a package for arm64 as `folder`, once; nothing is installed. `package` says its name, when the
    /// lists of packages are there.
    pub fn unpack_arm64(&mut self, package: impl FnOnce() -> Result<String>, folder: &Path) -> Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        if !self.allowed {
            let folder = folder.display();
            return Err(Error::new(format!(
                "needs the files of a Debian package in {folder} (--no-install was given)"
            )));
        }
        if on_path("apt-get").is_none() {
            return Err(Error::new(
                "needs files of Debian's packages for arm64, and this system has no apt-get",
            ));
        }
        let _alone = alone()?;
        if folder.is_dir() {
            return Ok(());
        }
        if let Some(root) = root_prefix() {
            self.update(&root, !cfg!(target_arch = "aarch64"));
        }
        let package = package()?;
        // Under its name only when it is complete.
        let (archive, part) = (folder.with_extension("deb"), folder.with_extension("part"));
        for old in [&archive, &part] {
            let _ = fs::remove_dir_all(old);
        }
        fs::create_dir_all(&archive).context(|| format!("cannot make {}", archive.display()))?;
        let name = format!("{package}:arm64");
        println!("Downloading what the next step needs: {name}");
        must(Command::new("apt-get").current_dir(&archive).args(["download", "-q", &name]))?;
        let files = fs::read_dir(&archive).context(|| format!("cannot read {}", archive.display()))?;
        let file =
            files.flatten().next().ok_or_else(|| Error::new(format!("apt-get brought no {package}")))?;
        must(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&part))?;
        fs::rename(&part, folder).context(|| format!("cannot make {}", folder.display()))?;
        fs::remove_dir_all(&archive).context(|| format!("cannot remove {}", archive.display()))
    }

    /// Brings the lists of packages up to date, once.
    fn update(&mut self, root: &[&str], arm64: bool) {
        if arm64 && !has_arm64() {
            step(root, &["dpkg", "--add-architecture", "arm64"]);
            self.updated = false;
        }
        if !self.updated {
            // A foreign source without arm64 makes this fail though Debian's own worked, so go on either way.
            step(root, &["apt-get", "update", "-q"]);
            self.updated = true;
        }
    }

    /// Whether it worked is for the caller to see: from dpkg, not from exit codes.
    fn install(&mut self, root: &[&str], names: &[&str]) {
        self.update(root, needs_arm64(names));
        // --no-remove: another Rust that the user installed by apt conflicts with this one, and must stay.
        let mut command = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y"];
        command.extend(["--no-install-recommends", "--no-remove", "-o", "DPkg::Lock::Timeout=120"]);
        command.extend(names);
        step(root, &command);
    }
}

/// The packages of the emulator that [`Apt::unpack_emulator`] unpacks.
const EMULATOR: [&str; 3] = ["qemu-system-arm", "qemu-system-common", "qemu-system-data"];

impl Apt {
    /// Unpacks the emulator of whole machines beside the installed packages where it can't be one of them: it conflicts with
    /// programs of another QEMU, such as newer `qemu-utils`, which must stay. What it links with is installed.
    fn unpack_emulator(&mut self, root: &[&str], missing: &[&str]) {
        if !missing.contains(&EMULATOR[0]) {
            return;
        }
        println!("Unpacking what can't be installed: {}", EMULATOR.join(" "));
        let mut names: Vec<_> = missing.iter().copied().filter(|name| *name != EMULATOR[0]).collect();
        let libraries = fetch_emulator().unwrap_or_else(|error| {
            println!("warning: {error}");
            Vec::new()
        });
        // With the packages that apt-get refused together with the emulator.
        names.extend(libraries.iter().map(String::as_str));
        self.install(root, &names);
    }
}

/// Downloads and unpacks the emulator. Returns the other packages that it depends on.
fn fetch_emulator() -> Result<Vec<String>> {
    let folder = emulator_folder();
    let (packages, part) = (folder.with_extension("deb"), folder.with_extension("part"));
    for folder in [&packages, &part] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
    }
    must(Command::new("apt-get").current_dir(&packages).args(["download", "-q"]).args(EMULATOR))?;
    let mut libraries = Vec::new();
    let files = fs::read_dir(&packages).context(|| format!("cannot read {}", packages.display()))?;
    for file in files.flatten() {
        must(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&part))?;
        libraries.extend(dependencies(&capture(
            Command::new("dpkg-deb").arg("-f").arg(file.path()).arg("Depends"),
        )?));
    }
    fs::rename(&part, &folder).context(|| format!("cannot make {}", folder.display()))?;
    fs::remove_dir_all(&packages).context(|| format!("cannot remove {}", packages.display()))?;
    Ok(libraries)
}

/// The first choice of each dependency in a package's field, without the emulator's own packages.
fn dependencies(field: &str) -> Vec<String> {
    let names = field.split(',').filter_map(|choices| choices.split('|').next()?.split_whitespace().next());
    names.filter(|name| !name.starts_with("qemu-")).map(str::to_owned).collect()
}

fn emulator_folder() -> PathBuf {
    crate::toolchain::root().join(".xtask/qemu")
}

/// The file of an emulator that was unpacked.
fn unpacked_emulator(tool: &str) -> Option<PathBuf> {
    let file = emulator_folder().join("usr/bin").join(tool);
    file.is_file().then_some(file)
}

/// How to start an emulator of whole machines: the installed one, or the one that was unpacked.
pub fn emulator(tool: &str) -> PathBuf {
    let unpacked = || unpacked_emulator(tool).unwrap_or_else(|| tool.into());
    if on_path(tool).is_some() { tool.into() } else { unpacked() }
}

/// Waits until no other step installs anything, and keeps others waiting while the result lives.
fn alone() -> Result<fs::File> {
    let folder = crate::toolchain::root().join(".xtask");
    let file = folder.join("apt.lock");
    let locked = fs::create_dir_all(&folder).and_then(|()| fs::File::create(&file)).and_then(|lock| {
        lock.lock()?;
        Ok(lock)
    });
    locked.context(|| format!("cannot lock {}", file.display()))
}

fn step(root: &[&str], words: &[&str]) {
    let words = [root, words].concat();
    let [program, arguments @ ..] = words.as_slice() else { return };
    let mut command = Command::new(program);
    command.args(arguments);
    println!("$ {}", shown(&command));
    match run(&mut command) {
        Ok(finished) if finished.success => {}
        Ok(_) => println!("warning: `{}` failed", shown(&command)),
        Err(error) => println!("warning: {error}"),
    }
}

/// Those of `needs` that are not installed.
fn missing(needs: &[Package]) -> Vec<&'static str> {
    let dpkg = on_path("dpkg-query").is_some();
    let here = |need: &Package| {
        let found = |tool| (!dpkg && on_path(tool).is_some()) || unpacked_emulator(tool).is_some();
        (dpkg && installed(need.name)) || need.tool.is_some_and(found)
    };
    needs.iter().filter(|need| !here(need)).map(|need| need.name).collect()
}

fn installed(name: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status}", name]).stderr(std::process::Stdio::null());
    query.output().is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn needs_arm64(names: &[&str]) -> bool {
    names.iter().any(|name| name.ends_with(":arm64")) && !cfg!(target_arch = "aarch64")
}

fn has_arm64() -> bool {
    capture(Command::new("dpkg").arg("--print-foreign-architectures"))
        .is_ok_and(|list| list.lines().any(|line| line.trim() == "arm64"))
}

/// What to put in front of a command to run it as root; None if that is not possible without asking for a password.
fn root_prefix() -> Option<Vec<&'static str>> {
    if capture(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0") {
        Some(Vec::new())
    } else if succeeds(Command::new("sudo").args(["-n", "true"])) {
        Some(vec!["sudo", "-n"])
    } else {
        None
    }
}

fn refusal(missing: &[&str], why: &str) -> String {
    let architecture = if needs_arm64(missing) { "dpkg --add-architecture arm64 && " } else { "" };
    let names = missing.join(" ");
    format!(
        "needs {names} ({why}). As root: {architecture}apt-get update && apt-get install --no-install-recommends {names}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Package = Package { name: "elapid-no-such-package", tool: None };

    #[test]
    fn a_refusal_says_what_to_type() {
        let error = Apt::new(false).ensure(&[NOWHERE]).unwrap_err().to_string();
        assert!(error.contains("--no-install was given"), "{error}");
        assert!(error.contains("apt-get install --no-install-recommends elapid-no-such-package"), "{error}");
        assert!(!error.contains("add-architecture"), "{error}");
    }

    #[test]
    #[cfg(not(target_arch = "aarch64"))]
    fn a_foreign_package_names_its_architecture() {
        assert!(refusal(&["libx:arm64"], "why").contains("dpkg --add-architecture arm64 && apt-get update"));
    }

    #[test]
    fn what_is_unpacked_is_not_downloaded_again() {
        let unknown = || Err(Error::new("nobody should ask for the name"));
        let mut apt = Apt::new(false);
        assert!(apt.unpack_arm64(unknown, crate::toolchain::root()).is_ok());
        let nowhere = crate::toolchain::root().join("no-such-folder");
        let error = apt.unpack_arm64(unknown, &nowhere).unwrap_err().to_string();
        assert!(error.contains("--no-install was given") && error.contains("no-such-folder"), "{error}");
    }

    #[test]
    fn dependencies_are_read() {
        let field = "libaio1 (>= 0.3.93), libfuse3-3 | libfuse4, qemu-system-common (= 1:7.2), zlib1g\n";
        assert_eq!(dependencies(field), ["libaio1", "libfuse3-3", "zlib1g"]);
        assert!(dependencies("").is_empty());
    }

    #[test]
    fn nothing_needed_is_nothing_done() {
        assert!(Apt::new(true).ensure(&[]).is_ok());
    }
}
