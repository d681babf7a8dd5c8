//! `cargo xtask fixtures`: makes what Python's reference implementation says, in an environment of its own.

use std::process::Command;

use crate::error::Result;
use crate::exec::must;
use crate::python::environment;
use crate::toolchain::root;

/// Run in this order: the second reads what the first makes.
const SCRIPTS: &[&str] = &["tests/reference/make_fixtures.py", "tests/reference/perplexity.py"];

/// Makes the fixtures anew. The diff of the repository then says what changed.
pub fn fixtures(python: &str) -> Result<()> {
    let python = environment("fixtures", python, &["-r", "tests/reference/requirements.txt"])?;
    SCRIPTS.iter().try_for_each(|script| must(Command::new(&python).arg(script).current_dir(root())))
}
