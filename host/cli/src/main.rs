//! The `elapid` program: the commands over the library of the same name. Data goes to standard output, everything else to
//! standard error.
#![forbid(unsafe_code)]

mod bar;
mod bench;
mod board;
mod cache;
mod chat;
mod cpu;
mod error;
mod grammar;
mod info;
#[cfg(feature = "hub")]
mod list;
mod logits;
mod long;
mod measure;
mod model;
mod npy;
mod output;
mod package;
mod perplexity;
#[cfg(feature = "hub")]
mod pull;
mod run;
mod sampling;
#[cfg(feature = "serve")]
mod serve;
mod session;
#[cfg(feature = "hub")]
mod source;
#[cfg(feature = "hub")]
mod store;
mod stream;
mod tokenize;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use crate::error::{Error, Failure};
use clap::{CommandFactory, Parser, Subcommand};
use elapid_files::interrupt;

/// Run Mamba and Falcon Mamba language models from packed files
///
/// `elapid-pack` makes packed files. MODEL can also be a model of the Hugging Face Hub, hf:ORG/NAME, or a checkpoint's folder or file:
/// it is packed at first use (see `elapid pull`). Without MODEL, commands use the bundled model.
///
/// Exit codes: 0 success, 1 failure, 2 usage error, 3 bad model file, 4 not enough memory; 130, 143 and 129 after SIGINT
/// (Ctrl-C), SIGTERM and SIGHUP.
#[derive(Parser)]
#[command(name = "elapid", version, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Chat(chat::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    #[cfg(feature = "hub")]
    Pull(pull::Args),
    #[cfg(feature = "hub")]
    List(list::ListArgs),
    #[cfg(feature = "hub")]
    Rm(list::RemoveArgs),
    Logits(logits::Args),
    Perplexity(perplexity::Args),
    Tokenize(tokenize::Args),
    Info(info::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Board(board::Args),
    #[command(hide = true)]
    Package(package::Args),
}

fn perform(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args)?,
        Command::Chat(args) => chat::run(args)?,
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args)?,
        #[cfg(feature = "hub")]
        Command::Pull(args) => pull::run(&args)?,
        #[cfg(feature = "hub")]
        Command::List(args) => list::list(&args)?,
        #[cfg(feature = "hub")]
        Command::Rm(args) => list::remove(&args)?,
        Command::Logits(args) => logits::run(&args)?,
        Command::Perplexity(args) => perplexity::run(&args)?,
        Command::Tokenize(args) => tokenize::run(args)?,
        Command::Info(args) => info::run(&args)?,
        Command::Verify(args) => verify::run(&args)?,
        Command::Bench(args) => bench::run(&args)?,
        Command::Board(args) => board::run(&args)?,
        Command::Package(args) => package::run(&args, Cli::command)?,
    }
    Ok(())
}

fn handle_signals() {
    if let Err(error) = interrupt::handle() {
        // Without it a signal ends the program at once, as it does by default.
        let _ = writeln!(std::io::stderr(), "warning: signals may leave unfinished files behind: {error}");
    }
}

/// Runs the program.
fn run() -> ExitCode {
    let command = match elapid_args::parse::<Cli>() {
        Ok(cli) => cli.command,
        Err(code) => return code,
    };
    // A chat does so itself.
    if !matches!(command, Command::Chat(_)) {
        handle_signals();
    }
    #[cfg(feature = "serve")]
    let ends_by_signal = matches!(command, Command::Serve(_));
    #[cfg(not(feature = "serve"))]
    let ends_by_signal = false;
    let result = perform(command);
    let code = match &result {
        Ok(()) | Err(Failure { error: Error::ClosedOutput, .. }) => 0,
        Err(Failure { error, hint }) => {
            // Standard error may be closed too; there is nowhere left to say so.
            let _ = writeln!(std::io::stderr(), "error: {error}{hint}");
            error.exit_code()
        }
    };
    ExitCode::from(match result {
        Err(Failure { error, .. }) if !error.is_end() => code,
        // That is how a server ends well.
        Ok(()) if ends_by_signal => code,
        _ => interrupt::exit_code().unwrap_or(code),
    })
}

fn main() -> ExitCode {
    match cpu::missing_feature() {
        None => {
            elapid::one_heap();
            run()
        }
        Some(feature) => refuse(feature),
    }
}

/// Says that this program is for another CPU. Written in pieces: nothing here should need much of the compiler.
#[cold]
#[inline(never)]
fn refuse(feature: &str) -> ExitCode {
    let mut out = std::io::stderr();
    for text in [
        "error: this elapid was compiled for CPUs with ",
        feature,
        ", which this one lacks: build it without `-C target-cpu` and `-C target-feature` (it finds out by itself what the \
         CPU has), or for this CPU\n",
    ] {
        // There is nowhere else to say so.
        let _ = out.write_all(text.as_bytes());
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_follows_its_rules() {
        Cli::command().debug_assert();
        assert_eq!(elapid_args::help_faults(&Cli::command()), [""; 0]);
    }
}
