//! `elapid bench --long`: whether the millionth token costs what the first did.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid::{Engine, Error, MemoryOptions, Sequence};
use serde::Serialize;

use super::bar::Bar;
use super::bench::most_likely;
use super::{interrupt, output};

/// Samples on the way.
const SAMPLES: u32 = 64;
/// Rounds in which the last tokens and the first ones of a new sequence take turns, so that what else the machine does meets
/// both alike; and tokens of each in a round.
const ROUNDS: u32 = 20;
const TURN: u32 = 50;

#[derive(Serialize)]
struct Sample {
    tokens: u32,
    seconds: f64,
    /// Absent where the system does not tell.
    resident_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Report {
    tokens: u32,
    threads: usize,
    kernels: &'static str,
    file_bytes: u64,
    state_bytes: usize,
    samples: Vec<Sample>,
    /// Of the first thousand tokens of a sequence and of the thousand after `tokens`, in turns.
    first_tps: f64,
    last_tps: f64,
    ratio: f64,
    /// Between the first sample and the last.
    resident_growth_bytes: Option<i64>,
}

/// What of this process is in memory, to the page. The usual counters are rounded by the number of CPUs.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}

/// Generates `n` tokens, each the most likely, and returns the time.
fn generate(sequence: &mut Sequence<'_>, token: &mut u32, n: u32) -> Result<Duration, Error> {
    let start = Instant::now();
    for _ in 0..n {
        sequence.feed(&[*token])?;
        *token = most_likely(sequence.logits()?);
        if interrupt::check() == ControlFlow::Break(()) {
            return Err(Error::Interrupted);
        }
    }
    Ok(start.elapsed())
}

pub(super) fn run(engine: &Engine, options: &MemoryOptions, tokens: u32, json: bool) -> Result<(), Error> {
    if engine.plan(options)?.is_some() {
        return Err(Error::Usage(
            "--long keeps two sequences, a cap has room for one: leave out --ram".into(),
        ));
    }
    let (mut long, mut short) = (engine.memory(options)?, engine.memory(options)?);
    let (mut long, mut short) = (long.sequence(engine)?, short.sequence(engine)?);
    let bar = Bar::new("generating");
    let (mut token, mut first) = (1, 1);
    // Both sequences touch all that they have before anything is measured.
    generate(&mut short, &mut first, 1)?;
    generate(&mut long, &mut token, 1)?;
    let step = (tokens / SAMPLES).max(1);
    let mut samples = Vec::with_capacity(2 * SAMPLES as usize);
    let (mut done, mut time) = (1, Duration::ZERO);
    let mut sample = |done, time: Duration| {
        samples.push(Sample { tokens: done, seconds: time.as_secs_f64(), resident_bytes: resident() });
    };
    // The first look at /proc allocates a little.
    let _ = resident();
    sample(done, time);
    while done < tokens {
        let n = step.min(tokens - done);
        time += generate(&mut long, &mut token, n)?;
        done += n;
        sample(done, time);
        bar.set(u64::from(done), u64::from(tokens));
    }
    short.clear();
    first = 1;
    let (mut early, mut late) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        early += generate(&mut short, &mut first, TURN)?;
        late += generate(&mut long, &mut token, TURN)?;
    }
    drop(bar);
    let rate = |time: Duration| f64::from(ROUNDS * TURN) / time.as_secs_f64();
    let ends = samples.first().zip(samples.last());
    let growth = ends.and_then(|(a, b)| Some(b.resident_bytes? as i64 - a.resident_bytes? as i64));
    let config = engine.config();
    let state = elapid::core::model::StateSize::of(config, config.n_layer as usize).bytes(options.state);
    let report = Report {
        tokens,
        threads: engine.team().size(),
        kernels: engine.kernels().name(),
        file_bytes: engine.layout().file_bytes(),
        state_bytes: state,
        samples,
        first_tps: rate(early),
        last_tps: rate(late),
        ratio: rate(late) / rate(early),
        resident_growth_bytes: growth,
    };
    if json {
        return output::json(&report);
    }
    let mut out = output::stdout();
    let growth = report.resident_growth_bytes.map_or("unknown".into(), |bytes| format!("{bytes} bytes"));
    writeln!(
        out,
        "{tokens} tokens in {:.1} s\nspeed          {:.2} tokens/s at the start, {:.2} at the end ({:.1}%)\nresident       grew by \
         {growth} since the first token",
        time.as_secs_f64(),
        report.first_tps,
        report.last_tps,
        100.0 * report.ratio
    )
    .map_err(output::failed)?;
    output::finish(out)
}
