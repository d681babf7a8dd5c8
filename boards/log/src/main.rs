//! Prints the defmt logs that a board's program wrote: `board-log PROGRAM FILE`. The texts are in the program's ELF file, the
//! frames in the file name them.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use defmt_decoder::{DecodeError, Table};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, file] = arguments.as_slice() else {
        eprintln!("usage: board-log PROGRAM FILE");
        return ExitCode::from(2);
    };
    match print(program, file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(program: &str, file: &str) -> Result<(), Box<dyn Error>> {
    let elf = fs::read(program).map_err(|error| format!("cannot read {program}: {error}"))?;
    let frames = fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let table = Table::parse(&elf).map_err(|error| format!("{program}: {error}"))?;
    let table = table.ok_or_else(|| format!("{program} has no defmt texts"))?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(&frames);
    loop {
        match decoder.decode() {
            Ok(frame) => println!("{}", frame.display(false)),
            Err(DecodeError::UnexpectedEof) => return Ok(()),
            Err(DecodeError::Malformed) => return Err(format!("{file}: a frame is damaged").into()),
        }
    }
}
