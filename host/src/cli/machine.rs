//! `elapid board`: this machine, and what suits it.

use std::io::Write;
use std::path::PathBuf;

use elapid::{Drive, Error, Profile};
use serde::Serialize;

use super::output;

/// Says what machine this is, and what suits it: threads, kernels, memory, reads at a time
///
/// All commands do as it says where no option says otherwise. None of it changes a bit of the results.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A packed model: what it lies on decides how it is read; what the program lies on if left out
    model: Option<PathBuf>,
    /// Print JSON: board, model, threads, kernels, memory_bytes, ram_auto_bytes, drive, reads
    #[arg(long)]
    json: bool,
    /// A folder with another machine's proc and sys, for tests
    #[arg(long, hide = true, default_value = "/")]
    root: PathBuf,
}

#[derive(Serialize)]
struct Machine {
    board: &'static str,
    model: Option<String>,
    threads: usize,
    kernels: &'static str,
    memory_bytes: Option<u64>,
    ram_auto_bytes: Option<u64>,
    drive: &'static str,
    reads: usize,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let Profile { board, model, threads, kernels, memory, cap, .. } = Profile::in_root(&args.root);
    let drive = match &args.model {
        Some(file) => {
            file.metadata().map_err(|cause| Error::File { path: file.clone(), action: "read", cause })?;
            Drive::of(file)
        }
        None => std::env::current_exe().map_or(Drive::Other, |program| Drive::of(&program)),
    };
    let machine = Machine {
        board: board.name(),
        model,
        threads,
        kernels,
        memory_bytes: memory,
        ram_auto_bytes: cap,
        drive: drive.name(),
        reads: board.reads(drive),
    };
    if args.json {
        return output::json(&machine);
    }
    let mut out = output::stdout();
    let mebibytes =
        |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| format!("{} MiB", bytes >> 20));
    let lines = [
        ("board", machine.model.unwrap_or_else(|| machine.board.into())),
        ("profile", machine.board.into()),
        ("threads", machine.threads.to_string()),
        ("kernels", machine.kernels.into()),
        ("memory", mebibytes(machine.memory_bytes)),
        ("--ram auto", mebibytes(machine.ram_auto_bytes)),
        ("drive", format!("{}, {} reads at a time", machine.drive, machine.reads)),
    ];
    for (name, value) in lines {
        writeln!(out, "{name:12} {value}").map_err(output::failed)?;
    }
    output::finish(out)
}
