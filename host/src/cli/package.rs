//! What a package of the program holds besides the program: made from the same definition as its arguments.

use std::fs;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::{Shell, generate};
use elapid::Error;

/// Where Debian's shells look for completions, and by which names.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "usr/share/bash-completion/completions", "elapid"),
    (Shell::Zsh, "usr/share/zsh/vendor-completions", "_elapid"),
    (Shell::Fish, "usr/share/fish/vendor_completions.d", "elapid.fish"),
];
const MANUAL: &str = "usr/share/man/man1";

/// Writes shell completions and manual pages, for packages
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder that stands for the root of a system
    folder: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let command = super::Cli::command().name("elapid");
    let failed = |cause| Error::File { path: args.folder.clone(), action: "write to", cause };
    for (shell, folder, name) in COMPLETIONS {
        let mut text = Vec::new();
        generate(shell, &mut command.clone(), "elapid", &mut text);
        let folder = args.folder.join(folder);
        fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), text)).map_err(failed)?;
    }
    let manual = args.folder.join(MANUAL);
    fs::create_dir_all(&manual).and_then(|()| clap_mangen::generate_to(command, &manual)).map_err(failed)
}
