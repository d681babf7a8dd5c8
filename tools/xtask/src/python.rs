//! Python in environments of their own, with packages from its package index.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::apt::{Apt, Package};
use crate::error::{Context, Error, Result};
use crate::exec::{must, run};
use crate::toolchain::Toolchain;

/// On Debian what makes an environment is a package apart from the interpreter.
const VENV: Package = Package { name: "python3-venv", tool: None };

/// Where the environment `name` is.
fn folder(name: &str) -> PathBuf {
    Toolchain::Current.target_dir().join("python").join(name)
}

/// A program of the environment `name`, whether it is there or not.
pub fn program(name: &str, program: &str) -> PathBuf {
    folder(name).join(if cfg!(windows) { "Scripts" } else { "bin" }).join(program)
}

/// Its interpreter.
pub fn interpreter(name: &str) -> PathBuf {
    program(name, "python")
}

/// Makes the environment `name` with `python`, and installs what `packages` (arguments of pip) say; returns its interpreter.
/// What was made before with the same packages is kept.
pub fn environment(name: &str, python: &str, packages: &[&str]) -> Result<PathBuf> {
    let (interpreter, made) = (interpreter(name), folder(name).join("packages.txt"));
    let words = packages.join(" ");
    if fs::read_to_string(&made).is_ok_and(|before| before == words) && interpreter.is_file() {
        return Ok(interpreter);
    }
    must(Command::new(python).args(["-m", "venv"]).arg(folder(name)))?;
    let pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install"];
    must(Command::new(&interpreter).args(pip).args(packages).current_dir(crate::toolchain::root()))?;
    fs::write(&made, words).context(|| format!("cannot write {}", made.display()))?;
    Ok(interpreter)
}

/// The same for a step of the tests: the error says what is missing on this machine, and nothing is installed where it must not.
pub fn ensure(apt: &mut Apt, name: &str, packages: &[&str]) -> Result<()> {
    let made = || environment(name, "python3", packages).map(drop);
    if !apt.allowed() {
        let there = interpreter(name).is_file();
        let missing =
            format!("needs {} from Python's package index, and --no-install was given", packages.join(" "));
        return if there { Ok(()) } else { Err(Error::new(missing)) };
    }
    made().or_else(|first| {
        let venv = run(Command::new("python3").args(["-c", "import ensurepip"]));
        if venv.is_ok_and(|done| done.success) {
            return Err(first);
        }
        apt.ensure(&[VENV])?;
        made()
    })
}
