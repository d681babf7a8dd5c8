//! `cargo xtask fixtures`: makes what Python's reference implementation says, in an environment of its own.

use std::process::Command;

use crate::error::Result;
use crate::exec::must;
use crate::toolchain::{Toolchain, root};

/// Run in this order: the second reads what the first makes.
const SCRIPTS: &[&str] = &["tests/reference/make_fixtures.py", "tests/reference/perplexity.py"];

/// Makes the fixtures anew. The diff of the repository then says what changed.
pub fn fixtures(python: &str) -> Result<()> {
    let environment = Toolchain::Current.target_dir().join("fixtures-python");
    let at_root = |program: &std::ffi::OsStr| {
        let mut command = Command::new(program);
        command.current_dir(root());
        command
    };
    must(at_root(python.as_ref()).args(["-m", "venv"]).arg(&environment))?;
    let folder = if cfg!(windows) { "Scripts" } else { "bin" };
    let python = environment.join(folder).join("python");
    let pip = ["-m", "pip", "install", "--quiet", "-r", "tests/reference/requirements.txt"];
    must(at_root(python.as_os_str()).args(pip))?;
    SCRIPTS.iter().try_for_each(|script| must(at_root(python.as_os_str()).arg(script)))
}
