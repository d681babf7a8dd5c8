//! What a package of the program holds besides the program: made from the same definition as its arguments.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate};
use elapid::Error;

/// Writes shell completions and manual pages into a folder, for packages
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder; it is made if it does not exist
    folder: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let folder = &args.folder;
    let failed = |cause| Error::File { path: folder.clone(), action: "write to", cause };
    let command = super::Cli::command().name("elapid");
    fs::create_dir_all(folder).and_then(|()| completions(&command, folder)).map_err(failed)?;
    clap_mangen::generate_to(command, folder).map_err(failed)
}

fn completions(command: &Command, folder: &Path) -> io::Result<()> {
    // Where Debian's shells look for them, by these names.
    for (shell, name) in [(Shell::Bash, "elapid"), (Shell::Zsh, "_elapid"), (Shell::Fish, "elapid.fish")] {
        let mut text = Vec::new();
        generate(shell, &mut command.clone(), "elapid", &mut text);
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
