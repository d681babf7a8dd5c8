//! The `elapid` program.
#![forbid(unsafe_code)]

mod cli;
mod cpu;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cpu::missing_feature() {
        None => {
            elapid::one_heap();
            cli::main()
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
