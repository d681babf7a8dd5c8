//! Tokens a second of sequences that step together, beside one alone, in turn.
//!
//! `cargo run --release -p elapid-tests --example batch_speed MODEL [SEQUENCES [ROUNDS]]` prints a Markdown table of medians.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use elapid::{Batch, Error, Model, ModelOptions, SessionOptions};

/// One step of the first `count` sequences; the token is the same in all, which costs what any other would.
fn step(batch: &mut Batch, count: usize) -> Result<Duration, Error> {
    let tokens: Vec<(usize, u32)> = (0..count).map(|sequence| (sequence, 1)).collect();
    let start = Instant::now();
    batch.step(&tokens, |_, _| Ok::<(), Error>(()))?;
    Ok(start.elapsed())
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}

fn measure(model: &Path, sequences: usize, rounds: usize) -> Result<(), Error> {
    let model = Model::open(model, &ModelOptions::default())?;
    let mut batch = model.batch(sequences, &SessionOptions::default())?;
    // Weights are checked and pages mapped before anything is measured.
    step(&mut batch, sequences)?;
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        alone.push(step(&mut batch, 1)?);
        together.push(step(&mut batch, sequences)?);
    }
    let (alone, together) = (median(&mut alone).recip(), sequences as f64 * median(&mut together).recip());
    println!("| model | sequences | tokens/s | one alone | ratio |\n|---|---|---|---|---|");
    println!("| {} | {sequences} | {together:.1} | {alone:.1} | {:.2} |", model.name(), together / alone);
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(model) = arguments.next().map(PathBuf::from) else {
        eprintln!("usage: batch MODEL [SEQUENCES [ROUNDS]]");
        return ExitCode::from(2);
    };
    let mut number = |default: usize| match arguments.next() {
        None => Some(default),
        Some(text) => text.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0),
    };
    let (Some(sequences), Some(rounds)) = (number(8), number(20)) else {
        eprintln!("SEQUENCES and ROUNDS are numbers from 1");
        return ExitCode::from(2);
    };
    match measure(&model, sequences, rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
