//! `elapid bench --long`: whether the millionth token costs what the first did.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::Error;
use elapid::core::tokenizer::Tokenizer;
use elapid::{Model, Session, SessionOptions};
use elapid_files::interrupt;
use serde::Serialize;

use super::bar::Bar;
use super::measure::{median, most_likely, tokenizer};
use super::output;

/// Samples on the way.
const SAMPLES: u32 = 64;
/// Tokens of a turn. Rates are those of the median turn: one in which something else had the processor says nothing of this
/// program.
const TURN: u32 = 10;
/// Turns in a thousand tokens.
const TURNS: u32 = 100;
/// How often the last thousand tokens and the first thousand of a new sequence take turns, so that what else the machine does meets
/// both alike.
const PASSES: u32 = 3;

#[derive(Serialize)]
struct Sample {
    tokens: u32,
    seconds: f64,
    /// Of the median turn since the sample before.
    tps: Option<f64>,
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
    /// Of the first thousand tokens of a sequence and of those after `tokens`, in turns.
    first_tps: f64,
    last_tps: f64,
    /// The second by the first, of the median pair of turns.
    ratio: f64,
    /// Between the first sample and the largest.
    resident_growth_bytes: Option<u64>,
}

/// What of this process is in memory, to the page. The usual counters are rounded by the number of CPUs.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}

/// Tokens a second of the median turn.
fn median_tps(turns: &mut [Duration]) -> f64 {
    f64::from(TURN) / median(turns)
}

/// Generates `n` tokens, each the most likely, and returns the time.
fn generate(
    session: &mut Session,
    tokenizer: Option<&Tokenizer<'_>>,
    token: &mut u32,
    n: u32,
) -> Result<Duration, Error> {
    let start = Instant::now();
    for _ in 0..n {
        session.feed(&[*token])?;
        *token = most_likely(session, tokenizer)?;
        if interrupt::check() == ControlFlow::Break(()) {
            return Err(elapid::Error::Interrupted.into());
        }
    }
    Ok(start.elapsed())
}

pub(super) fn run(model: &Model, options: &SessionOptions, tokens: u32, json: bool) -> Result<(), Error> {
    if model.plan(options)?.is_some() {
        return Err(Error::Usage(
            "--long keeps two sequences, a cap has room for one: leave out --ram".into(),
        ));
    }
    let (mut long, mut short) = (model.session(options)?, model.session(options)?);
    let tokenizer = tokenizer(model)?;
    let text = tokenizer.as_ref();
    let bar = Bar::at_once("generating", u64::from(tokens));
    let (mut token, mut first) = (1, 1);
    // Both sequences touch all that they have before anything is measured.
    generate(&mut short, text, &mut first, 1)?;
    generate(&mut long, text, &mut token, 1)?;
    let step = (tokens / SAMPLES).max(1);
    let mut samples = Vec::with_capacity(2 * SAMPLES as usize);
    let (mut done, mut time) = (1, Duration::ZERO);
    let mut sample = |tokens, time: Duration, tps| {
        samples.push(Sample { tokens, seconds: time.as_secs_f64(), tps, resident_bytes: resident() });
    };
    let mut turns = Vec::with_capacity(step.div_ceil(TURN) as usize);
    // What measures is to be in memory, too: code counts when it runs first, and the first look at /proc allocates a little.
    bar.set(u64::from(done), u64::from(tokens));
    let _ = (resident(), median_tps(&mut [Duration::MAX]));
    sample(done, time, None);
    while done < tokens {
        let end = (done + step).min(tokens);
        turns.clear();
        while done < end {
            let n = TURN.min(end - done);
            let turn = generate(&mut long, text, &mut token, n)?;
            time += turn;
            done += n;
            if n == TURN {
                turns.push(turn);
            }
        }
        sample(done, time, (!turns.is_empty()).then(|| median_tps(&mut turns)));
        bar.set(u64::from(done), u64::from(tokens));
    }
    let (mut early, mut late, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..PASSES * TURNS {
        if turn % TURNS == 0 {
            short.clear();
            first = 1;
        }
        let one = generate(&mut short, text, &mut first, TURN)?;
        let other = generate(&mut long, text, &mut token, TURN)?;
        early.push(one);
        late.push(other);
        ratios.push(one.as_secs_f64() / other.as_secs_f64());
    }
    drop(bar);
    ratios.sort_unstable_by(f64::total_cmp);
    let (first_tps, last_tps) = (median_tps(&mut early), median_tps(&mut late));
    let start = samples.first().and_then(|sample| sample.resident_bytes);
    let most = samples.iter().filter_map(|sample| sample.resident_bytes).max();
    let growth = start.zip(most).map(|(start, most)| most.saturating_sub(start));
    let config = model.config();
    let state = options.numbers.state_bytes(config, config.n_layer as usize);
    let report = Report {
        tokens,
        threads: model.team().size(),
        kernels: model.kernels(options.numbers),
        file_bytes: model.layout().file_bytes(),
        state_bytes: state,
        samples,
        first_tps,
        last_tps,
        ratio: ratios[ratios.len() / 2],
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
