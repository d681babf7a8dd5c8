//! `elapid board`: this machine, and what suits it.

use std::io::Write;
use std::path::PathBuf;

use crate::error::Error;
use elapid::{Drive, Profile};
use serde::Serialize;

use super::model::stored;
use super::output;

/// Print what machine this is and which settings suit it: threads, kernels, memory, concurrent reads
///
/// Commands use these settings unless options override them. They do not change the results.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, whose drive decides how it is read. Default: the drive of this program
    model: Option<PathBuf>,
    /// Print JSON: board, model, threads, kernels, memory_bytes, ram_auto_bytes, drive, reads
    #[arg(long)]
    json: bool,
    /// Folder with another machine's proc and sys, for tests
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
    let Profile { machine, model, threads, kernels, memory, cap, .. } = Profile::in_root(&args.root);
    let drive = match &args.model {
        Some(file) => {
            let file = stored(file)?;
            file.metadata().map_err(|cause| Error::file(file.clone(), "read", cause))?;
            Drive::of(&file)
        }
        None => std::env::current_exe().map_or(Drive::Other, |program| Drive::of(&program)),
    };
    let machine = Machine {
        board: machine.name(),
        model,
        threads,
        kernels,
        memory_bytes: memory,
        ram_auto_bytes: cap,
        drive: drive.name(),
        reads: machine.reads(drive),
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
