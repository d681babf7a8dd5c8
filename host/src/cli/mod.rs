//! The program's commands. Data goes to standard output, everything else to standard error.

mod bar;
mod bench;
mod board;
mod info;
mod interrupt;
mod logits;
mod long;
mod machine;
mod model;
mod npy;
mod output;
mod package;
mod perplexity;
mod run;
mod tokenize;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use elapid::{Error, ExitClass};

/// Runs Mamba and Falcon Mamba language models from packed files (see elapid-pack).
///
/// MODEL left out means the model that the program carries. Exit codes: 0 success, 1 failure, 2 usage, 3 bad model file, 4 not
/// enough memory.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Logits(logits::Args),
    Perplexity(perplexity::Args),
    Tokenize(tokenize::Args),
    Info(info::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Board(machine::Args),
    #[command(hide = true)]
    Package(package::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return explain(&error),
    };
    let result = match command {
        Command::Run(args) => run::run(args),
        Command::Logits(args) => logits::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Info(args) => info::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Board(args) => machine::run(&args),
        Command::Package(args) => package::run(&args),
    };
    match result {
        Ok(()) | Err(Error::ClosedOutput) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed too; there is nowhere left to say so.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.class() as u8)
        }
    }
}

/// Prints help to standard output, or what is wrong with the arguments as one line.
fn explain(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Whoever asked for help and does not read it has what they wanted.
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let _ = writeln!(std::io::stderr(), "{} (see --help)", lines.join(" "));
    ExitCode::from(ExitClass::Usage as u8)
}
