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
mod integers;
mod lanes;
mod libtest;
mod models;
mod peer;
mod programs;
mod steps;
mod table;
mod test;
mod toolchain;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up what the project needs and runs everything
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs all tests: lints, this machine, bare metal, and aarch64 under emulation
    ///
    /// Installs with apt-get what is missing (emulator, cross compiler), and says so before. Ends with a table of what
    /// ran where. Exits with 1 if a step failed, or, with CI=true, if a target that CI requires did not run.
    Test {
        /// Steps or groups of steps; all if left out
        #[arg(long, value_delimiter = ',', value_name = "STEP")]
        only: Vec<String>,
        /// Install nothing; skip what can't run
        #[arg(long)]
        no_install: bool,
        /// Number of steps that run at once; default: the number of cores, at most 4
        #[arg(short, long, value_name = "N")]
        jobs: Option<NonZeroUsize>,
        /// Run one step and write its result here
        #[arg(long, hide = true, requires = "only", value_name = "FILE")]
        row: Option<PathBuf>,
        /// Print the names of steps and groups instead
        #[arg(long)]
        list: bool,
    },
    /// Builds, runs, tests or flashes the program of a board
    Board {
        /// The name of a folder in boards/
        name: String,
        #[arg(value_enum, default_value = "build")]
        action: board::Action,
        /// A packed model instead of the one that the board is made for
        #[arg(long, value_name = "FILE")]
        model: Option<PathBuf>,
        /// Store what the board prints instead of comparing it with what is stored
        #[arg(long)]
        overwrite: bool,
        /// flash: the device (or file) to write to; without it only the image is made
        #[arg(long, value_name = "DEVICE")]
        to: Option<PathBuf>,
        /// flash, for a Raspberry Pi: the folder with its makers' start files
        #[arg(long, value_name = "FOLDER")]
        firmware: Option<PathBuf>,
        /// Test what takes half an hour or more instead: falcon-mamba-7b on an emulated machine with 512 MB (pi-linux; 9 GB of disk)
        #[arg(long)]
        long: bool,
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Builds a static `elapid` for another machine
    Cross {
        #[arg(default_value = toolchain::AARCH64_LINUX)]
        target: String,
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Counts instructions a token on emulated ARM CPUs and prints a table in Markdown
    ///
    /// Exits with 1 if a count is above its limit.
    Count {
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Prints what the inner loops take on ARM CPUs by LLVM's models of them, as a table in Markdown
    Cycles {
        /// Install nothing
        #[arg(long)]
        no_install: bool,
    },
    /// Packs a real checkpoint and compares what it writes with what is published about it
    CheckReal {
        /// A folder with config.json, weights and tokenizer
        folder: PathBuf,
        /// How to pack it: f32, f16, q8, q5, q4 or q3; what suits the model if left out
        #[arg(long)]
        quant: Option<String>,
        /// wikitext-2's wiki.test.raw, to compare the perplexity too
        #[arg(long, value_name = "FILE")]
        wiki: Option<PathBuf>,
    },
    /// Packs the models that come with the project into models/
    Bundle {
        /// The folder with their checkpoints; default: those in tests/data
        #[arg(long, value_name = "FOLDER")]
        from: Option<PathBuf>,
    },
    /// Measures random models of real size and prints a table in Markdown
    Bench {
        /// Measure beside llama.cpp, which is downloaded and built for it (5 to 45 minutes, the first time)
        #[arg(long)]
        peer: bool,
        /// With --peer: the presets of `elapid-pack --random` to measure
        #[arg(long, requires = "peer", value_delimiter = ',', default_value = "mamba-130m")]
        model: Vec<String>,
        /// With --peer: the numbers of threads
        #[arg(short, long, requires = "peer", value_delimiter = ',', default_value = "1,2")]
        threads: Vec<u32>,
        #[arg(long, default_value = "python3")]
        python: String,
    },
    /// Measures and draws the figures of docs/ (a falcon-mamba-7b of random weights is made: 4.3 GB)
    Figures {
        /// Figures to measure: long, prompt, cap; all if left out
        #[arg(long, value_delimiter = ',', value_name = "FIGURE")]
        only: Vec<String>,
        /// Measure nothing: draw the data that is there
        #[arg(long)]
        draw: bool,
        /// A packed falcon-mamba-7b, instead of a random one
        #[arg(long, value_name = "FILE")]
        large: Option<PathBuf>,
        /// Threads that compute; all cores if left out
        #[arg(short, long)]
        threads: Option<u16>,
    },
    /// Makes tests/fixtures anew with the reference implementation in Python (PyTorch: some gigabytes)
    Fixtures {
        #[arg(long, default_value = "python3")]
        python: String,
    },
}

fn main() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let result = match Args::parse().command {
        Task::Test { list: true, .. } => {
            test::list();
            Ok(ExitCode::SUCCESS)
        }
        Task::Test { only, no_install, row: Some(file), .. } => {
            test::one_step(&only.join(","), !no_install, &file)
        }
        Task::Test { only, no_install, jobs, .. } => test::test(&only, !no_install, jobs),
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
            let checkpoints = from.unwrap_or_else(|| elapid_test_data::path("models"));
            models::bundle(&toolchain::root().join(checkpoints)).map(done)
        }
        Task::Bench { peer: true, model, threads, python } => {
            peer::bench(&python, &model, &threads).map(done)
        }
        Task::Bench { .. } => models::bench().map(done),
        Task::Figures { only, draw, large, threads } => {
            figures::figures(&only, draw, large.as_deref(), threads).map(done)
        }
        Task::Fixtures { python } => fixtures::fixtures(&python).map(done),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
