//! `elapid verify`: whether a file is as it was written.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use elapid::verify;
use elapid_files::interrupt;

use super::bar::Bar;
use super::model::ComputeArgs;
use super::output;

/// Verify header, tables, padding and the checksum of every block, and print what is damaged
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, or hf:ORG/NAME or a checkpoint that is in the store. Default: the bundled one
    model: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let model = args.compute.open_as_asked(args.model.as_deref())?;
    if model.bytes().is_none() {
        return Err(Error::Usage("verify looks at the whole file: leave out --ram".into()));
    }
    interrupt::listen();
    let (bar, done) = (Bar::bytes("verifying"), AtomicU64::new(0));
    let total = model.layout().file_bytes();
    let damaged = verify(&model, &|bytes| {
        bar.set(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
        interrupt::check()
    })?;
    drop(bar);
    let mut out = output::stdout();
    for damage in &damaged {
        writeln!(out, "{damage}").map_err(output::failed)?;
    }
    let blocks = model.layout().block_count();
    let Some(first) = damaged.first() else {
        writeln!(out, "{}: all {blocks} blocks are as they were written", model.name())
            .map_err(output::failed)?;
        return output::finish(out);
    };
    let error =
        Error::Damaged { model: model.name().into(), first: first.to_string(), others: damaged.len() - 1 };
    output::finish(out).and(Err(error))
}
