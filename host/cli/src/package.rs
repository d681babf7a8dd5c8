//! What a package of the program holds besides the program: made from the same definition as its arguments.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::error::Error;
use clap::Command;
use clap_complete::{Shell, generate};

/// Where Debian's shells look for completions, and by which names.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "usr/share/bash-completion/completions", "elapid"),
    (Shell::Zsh, "usr/share/zsh/vendor-completions", "_elapid"),
    (Shell::Fish, "usr/share/fish/vendor_completions.d", "elapid.fish"),
];
const MANUAL: &str = "usr/share/man/man1";

/// Write shell completions and manual pages, for packages
#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder that stands for the root of a system
    folder: PathBuf,
}

/// `program` makes the definition of the program's arguments.
pub(super) fn run(args: &Args, program: fn() -> Command) -> Result<(), Error> {
    // For as long as the program runs: names of commands are not copied.
    static COMMAND: OnceLock<Command> = OnceLock::new();
    let program = COMMAND.get_or_init(program);
    let mut command = shown(program);
    let failed = |cause| Error::file(args.folder.clone(), "write to", cause);
    for (shell, folder, name) in COMPLETIONS {
        let mut text = Vec::new();
        generate(shell, &mut command, "elapid", &mut text);
        let folder = args.folder.join(folder);
        fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), text)).map_err(failed)?;
    }
    let manual = args.folder.join(MANUAL);
    fs::create_dir_all(&manual)
        .and_then(|()| clap_mangen::generate_to(program.clone(), &manual))
        .map_err(failed)
}

/// A command without what is hidden. Completions would offer it: `clap_complete` leaves hidden values out, but not hidden options
/// and commands.
fn shown(command: &'static Command) -> Command {
    let shown_only = Command::new(command.get_name())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).map(shown));
    match command.get_version() {
        Some(version) => shown_only.version(version),
        None => shown_only,
    }
}
