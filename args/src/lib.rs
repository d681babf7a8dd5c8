//! Arguments of Elapid's programs: parsers of values, and one line that says what is wrong and what to do.
#![forbid(unsafe_code)]

mod explain;
mod help;
mod value;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

pub use explain::{explain, quoted};
pub use help::help_faults;
pub use value::{SIZE_LIMIT, bytes, size, whole};

/// Parses the program's arguments.
///
/// # Errors
/// The exit code, after the help that was asked for is printed to standard output, or one line that says what is wrong with the
/// arguments to standard error.
pub fn parse<P: Parser>() -> Result<P, ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    P::try_parse_from(&args).map_err(|error| {
        let code = ExitCode::from(error.exit_code() as u8);
        if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // Whoever asked for help and does not read it has what they wanted.
            let _ = error.print();
        } else {
            // Standard error may be closed; there is nowhere left to say so.
            let _ = writeln!(std::io::stderr(), "{}", explain(error, &P::command(), &args));
        }
        code
    })
}
