//! `cargo xtask`: sets up what the project needs and runs everything.
#![forbid(unsafe_code)]

mod apt;
mod bare;
mod board;
mod check_real;
mod count;
mod counter;
mod cross;
mod cycles;
mod error;
mod exec;
mod figures;
mod fixtures;
mod fuzz;
mod integers;
mod lanes;
mod libtest;
mod models;
mod peer;
mod programs;
mod python;
mod steps;
mod table;
mod test;
mod toolchain;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up what the project needs, and run everything
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run all tests: lints, this machine, bare metal, and aarch64 under emulation
    ///
    /// Names missing tools (emulator, cross compiler) and installs them with apt-get. Prints a table of what ran where at
    /// the end. Exits with 1 if a step failed, or, with CI=true, if a target that CI requires did not run.
    Test {
        /// Steps or groups of steps to run. Default: all
        #[arg(long, value_delimiter = ',', value_name = "STEP")]
        only: Vec<String>,
        /// Also run the slow checks that rarely fail: sweeps over every number, and packaging
        #[arg(long)]
        full: bool,
        /// Install nothing, and skip steps that can't run
        #[arg(long)]
        no_install: bool,
        /// Number of steps that run at once. Default: the number of cores, at most 4
        #[arg(short, long, value_name = "N")]
        jobs: Option<NonZeroUsize>,
        /// Run one step, and write its result to this file
        #[arg(long, hide = true, requires = "only", value_name = "FILE")]
        row: Option<PathBuf>,
        /// Print the names of steps and groups instead
        #[arg(long)]
        list: bool,
    },
    /// Build, run, test or flash the program of a board
    Board {
        /// Name of a folder in boards/
        name: String,
        /// What to do with it
        #[arg(value_enum, default_value = "build")]
        action: board::Action,
        /// Packed model. Default: the one that the board is made for
        #[arg(long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// Store the board's output instead of comparing it with the stored one
        #[arg(long)]
        overwrite: bool,
        /// Device or file to write to, with `flash`. Default: only make the image
        #[arg(long, value_name = "DEVICE")]
        to: Option<PathBuf>,
        /// Folder with the start files of the Raspberry Pi's makers, with `flash`. Default: write no start files
        #[arg(long, value_name = "FOLDER")]
        firmware: Option<PathBuf>,
        /// Run the tests that take half an hour or more instead: falcon-mamba-7b on an emulated machine with 512 MB (pi-linux; 9 GB of disk)
        #[arg(long)]
        long: bool,
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Build a static `elapid` for another machine
    Cross {
        /// Target of the program
        #[arg(default_value = toolchain::AARCH64_LINUX)]
        target: String,
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Count the instructions per token on emulated ARM CPUs, and print a table in Markdown
    ///
    /// Exits with 1 if a count is above its limit.
    Count {
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Print the cycles of inner loops on ARM CPUs, according to LLVM's models, as a table in Markdown
    Cycles {
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Pack a real checkpoint, and compare its text with the published one
    CheckReal {
        /// Folder with config.json, weights and tokenizer
        folder: PathBuf,
        /// Type of the weights: f32, f16, q8, q5, q4 or q3. Default: f16, for falcon-mamba-7b q8
        #[arg(long)]
        quant: Option<String>,
        /// File wiki.test.raw of wikitext-2, to compare the perplexity too. Default: compare only the text
        #[arg(long, value_name = "FILE")]
        wiki: Option<PathBuf>,
    },
    /// Pack the models that come with the project into host/models/
    Bundle {
        /// Folder with their checkpoints. Default: those in tests/support
        #[arg(long, value_name = "FOLDER")]
        from: Option<PathBuf>,
    },
    /// Measure random models of real size, and print a table in Markdown
    Bench {
        /// Compare with llama.cpp, which is downloaded and built (5 to 45 minutes the first time)
        #[arg(long)]
        peer: bool,
        /// Presets of `elapid-pack --random` to measure, with --peer
        #[arg(long, requires = "peer", value_delimiter = ',', default_value = "mamba-130m")]
        model: Vec<String>,
        /// Numbers of threads, with --peer
        #[arg(short, long, requires = "peer", value_delimiter = ',', default_value = "1,2")]
        threads: Vec<u32>,
        /// Python to use
        #[arg(long, default_value = "python3")]
        python: String,
    },
    /// Measure and draw the figures of docs/ (makes a falcon-mamba-7b of random weights: 4.3 GB)
    Figures {
        /// Figures to measure: long, prompt, cap. Default: all
        #[arg(long, value_delimiter = ',', value_name = "FIGURE")]
        only: Vec<String>,
        /// Draw the stored data without measuring
        #[arg(long)]
        draw: bool,
        /// Packed falcon-mamba-7b. Default: one of random weights
        #[arg(long, value_name = "FILE")]
        large: Option<PathBuf>,
        /// Number of threads of the model. Default: one for each core
        #[arg(short, long)]
        threads: Option<u16>,
    },
    /// Fuzz one target or all: with libFuzzer if there is a nightly compiler, else with proptest
    ///
    /// If an input shows a fault, keeps it in fuzz/artifacts or prints it with its seed, and exits with 1.
    Fuzz {
        /// Target to fuzz. Default: all, as many at once as there are cores
        target: Option<fuzz::Target>,
        /// Fuzz each target for N minutes
        #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        minutes: u64,
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Generate tests/fixtures with the reference implementation in Python (PyTorch: a few gigabytes)
    Fixtures {
        /// Python to use
        #[arg(long, default_value = "python3")]
        python: String,
    },
}

fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let task = match elapid_args::parse::<Args>() {
        Ok(args) => args.command,
        Err(code) => return code,
    };
    let result = match task {
        Task::Test { list: true, .. } => {
            test::list();
            Ok(ExitCode::SUCCESS)
        }
        Task::Test { only, full, no_install, row: Some(file), .. } => {
            test::one_step(&only.join(","), full, !no_install, &file)
        }
        Task::Test { only, full, no_install, jobs, .. } => test::test(&only, full, !no_install, jobs),
        Task::Board { name, action, model, overwrite, to, firmware, long, no_install } => {
            let request = board::Request { model, overwrite, to, firmware, long, install: !no_install };
            board::board(&name, action, &request).map(done)
        }
        Task::Cross { target, no_install } => cross::cross(&target, !no_install).map(done),
        Task::Count { no_install } => count::count(!no_install).map(done),
        Task::Cycles { no_install } => cycles::cycles(!no_install).map(done),
        Task::CheckReal { folder, quant, wiki } => {
            check_real::check_real(&folder, quant.as_deref(), wiki.as_deref())
        }
        Task::Bundle { from } => {
            let checkpoints = from.unwrap_or_else(|| elapid_test_support::data::path("models"));
            models::bundle(&toolchain::root().join(checkpoints)).map(done)
        }
        Task::Bench { peer: true, model, threads, python } => {
            peer::bench(&python, &model, &threads).map(done)
        }
        Task::Bench { .. } => models::bench().map(done),
        Task::Figures { only, draw, large, threads } => {
            figures::figures(&only, draw, large.as_deref(), threads).map(done)
        }
        Task::Fuzz { target, minutes, no_install } => fuzz::fuzz(target, minutes, !no_install).map(done),
        Task::Fixtures { python } => fixtures::fixtures(&python).map(done),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn help_follows_its_rules() {
        Args::command().debug_assert();
        assert_eq!(elapid_args::help_faults(&Args::command()), [""; 0]);
    }
}
