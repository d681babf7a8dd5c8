//! The project's own programs, built as users build them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result};
use crate::exec::{capture, must, shown};
use crate::toolchain::{Toolchain, root};

/// A program of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Elapid,
    Pack,
}

impl Program {
    /// The crate that it is built from, and its own name.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Elapid => ("elapid-cli", "elapid"),
            Self::Pack => ("elapid-pack-cli", "elapid-pack"),
        }
    }

    /// Builds it and returns how to call it, in the root of the workspace.
    pub fn build(self) -> Result<Built> {
        let (package, name) = self.names();
        must(Toolchain::Current.cargo().args([
            "build",
            "--quiet",
            "--release",
            "-p",
            package,
            "--bin",
            name,
        ]))?;
        let file = Toolchain::Current.target_dir().join("release").join(name);
        Ok(Built { file: file.with_extension(std::env::consts::EXE_EXTENSION) })
    }
}

/// A program that was built.
pub struct Built {
    file: PathBuf,
}

impl Built {
    /// A command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.current_dir(root());
        command
    }

    /// Runs it with `arguments` for its standard output.
    pub fn output<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let mut command = self.command();
        command.args(arguments);
        println!("$ {}", shown(&command));
        capture(&mut command)
    }
}

/// Packs what `source` says (a folder, or `--random` and a preset) into `file`, by way of a folder that may not exist.
pub fn pack(packer: &Built, source: &[&std::ffi::OsStr], file: &Path, quant: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))?;
    }
    must(packer.command().args(source).args(["--quant", quant, "-o"]).arg(file))
}
