//! `elapid bench`: how fast, and how close to what the machine's memory allows.

use std::hint::black_box;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::Error;
use elapid::core::format::{Layout, Part, Section};
use elapid::{Model, Progress, ReadBy, Session};
use elapid_args::whole;
use elapid_files::interrupt;
use serde::Serialize;

use super::bar::Bar;
use super::measure::{median, most_likely, tokenizer};
use super::model::{ComputeArgs, StateArgs, report_incidents};
use super::output;

/// Tokens generated between two passes over the weights that only read.
const INTERLEAVE: u32 = 4;

/// Measure speed, and compare it with the machine's read rate
///
/// Decoding reads the weights once for each token, so tokens per second times bytes per token is a read rate. `bench` compares it
/// with the rate at which the same threads only read the same bytes: the best of several passes between tokens, in one, two and
/// four streams per thread.
///
/// If --ram makes the model stream, both are rates of the storage: tokens and passes that only read take turns, and the median of
/// each is used.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, hf:ORG/NAME, or a checkpoint to pack. Default: the bundled one
    model: Option<PathBuf>,
    /// Number of tokens of the prompt
    #[arg(short, default_value_t = 512, value_parser = whole::<u32>(1..=1_000_000), allow_hyphen_values = true)]
    p: u32,
    /// Number of tokens to decode
    #[arg(short, default_value_t = 64, value_parser = whole::<u32>(1..=1_000_000), allow_hyphen_values = true)]
    n: u32,
    /// Generate this many tokens instead, and print speed and memory along the way. Default: measure -p and -n tokens
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["p", "n"], value_parser = whole::<u32>(1000..=100_000_000), allow_hyphen_values = true)]
    long: Option<u32>,
    /// Print JSON: prefill_tps, decode_tps, bytes_per_token, read_gbps, machine_read_gbps, peak_rss_bytes, …
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Report {
    prefill_tps: f64,
    decode_tps: f64,
    bytes_per_token: u64,
    read_gbps: f64,
    machine_read_gbps: f64,
    ratio: f64,
    /// The median pass' time over the median token's: other work on the machine disturbs it less.
    median_ratio: f64,
    /// What a token reads from storage, and the tokens/s that the plan promises at the storage's rate.
    streamed_bytes_per_token: u64,
    promised_tps: Option<f64>,
    /// How reads are made, where weights are streamed.
    read_by: Option<&'static str>,
    /// The cap, and what is kept of the weights in it, where they are streamed.
    cap_bytes: Option<u64>,
    pinned_bytes: Option<u64>,
    chunk: Option<u64>,
    /// Absent where the system does not tell.
    peak_rss_bytes: Option<u64>,
    threads: usize,
    kernels: &'static str,
    prompt_tokens: u32,
    decoded_tokens: u32,
}

/// All parts of the weights that a decode step reads, where each lies: blocks as they are shared out.
fn parts(layout: &Layout) -> Vec<(Section, Part)> {
    let layers = (0..layout.config().n_layer).map(Section::Layer);
    let layers = layers.flat_map(|layer| Part::LAYER.map(|part| (layer, part)));
    layers.chain([(Section::FinalNorm, Part::FinalNorm), layout.head()]).collect()
}

/// Bytes of weights that one decode step reads: all layers, the head, and a panel of the embedding.
fn bytes_per_token(layout: &Layout) -> u64 {
    let part = |part| {
        let geometry = layout.part(part);
        u64::from(geometry.panels) * u64::from(geometry.panel_bytes)
    };
    let all: u64 = parts(layout).into_iter().map(|(_, p)| part(p)).sum();
    all + u64::from(layout.part(Part::Embedding).panel_bytes)
}

/// Where some panels of a part lie in the file: a range a block.
fn panels(
    layout: &Layout,
    (section, part): (Section, Part),
    panels: Range<u32>,
) -> impl Iterator<Item = Range<usize>> {
    let geometry = *layout.part(part);
    let start = layout.section(section).offset + geometry.offset;
    let (per_block, size) = (geometry.panels_per_block, u64::from(geometry.panel_bytes));
    let blocks = panels.start / per_block..panels.end.div_ceil(per_block);
    blocks.map(move |block| {
        let first = panels.start.max(block * per_block);
        let end = panels.end.min((block + 1) * per_block);
        let from = start
            + u64::from(block) * u64::from(geometry.block_stride)
            + u64::from(first - block * per_block) * size;
        from as usize..(from + u64::from(end.saturating_sub(first)) * size) as usize
    })
}

/// How passes read the weights, in turn: which is fastest depends on the CPU and on the size of pages.
const READS: [fn(&[u8]) -> u64; 3] = [read::<1>, read::<2>, read::<4>];

/// Reads bytes as fast as they come, in some streams side by side: loads of 16 bytes into sums that fill vector registers. Wider
/// loads are slower on a Zen 4: more lines would be awaited at once than its first cache can await.
fn read<const STREAMS: usize>(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    let mut add = |line: &[u8; 128]| {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    };
    let (lines, _) = bytes.as_chunks();
    let each = lines.len() / STREAMS;
    let streams: [_; STREAMS] = std::array::from_fn(|stream| &lines[stream * each..(stream + 1) * each]);
    for i in 0..each {
        streams.iter().for_each(|stream| add(&stream[i]));
    }
    lines[each * STREAMS..].iter().for_each(add);
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// One pass of all threads over a decode step's weights, shared out as the step shares them.
fn read_pass(model: &Model, parts: &[(Section, Part)], read: fn(&[u8]) -> u64) -> Duration {
    let (layout, team, file) = (model.layout(), model.team(), model.bytes().unwrap_or_default());
    let members = team.size() as u64;
    let start = Instant::now();
    team.run(&|member| {
        let member = member as u64;
        for &part in parts {
            let all = u64::from(layout.part(part.1).panels);
            let mine = (all * member / members) as u32..(all * (member + 1) / members) as u32;
            for range in panels(layout, part, mine) {
                black_box(read(file.get(range).unwrap_or_default()));
            }
        }
    });
    start.elapsed()
}

/// The process' largest resident set, where the system tells it in `/proc`.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let model = args.compute.open(args.model.as_deref())?;
    if let Some(tokens) = args.long {
        interrupt::listen();
        return super::long::run(&model, &args.state.options()?, tokens, args.json);
    }
    let tokenizer = tokenizer(&model)?;
    let vocab = model.config().vocab;
    let options = args.state.options()?.held(4 * args.p as usize);
    let plan = model.plan(&options)?;
    let streamed = plan.filter(|plan| !plan.mapped);
    let mut session = model.session(&options)?;
    let read_by = session.read_by().map(ReadBy::name);
    interrupt::listen();

    // Touches and checks all weights once, so that neither is measured.
    let prompt: Vec<u32> = (0..args.p).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) % vocab).collect();
    let bar = Bar::new("loading");
    session.feed_watched(&prompt[..1], &mut |Progress { done, total, .. }| {
        bar.set(done, total);
        interrupt::check()
    })?;
    session.logits()?;
    drop(bar);
    session.clear();

    let bar = Bar::new("reading a prompt");
    let start = Instant::now();
    session.feed_watched(&prompt, &mut |Progress { done, total, .. }| {
        bar.set(done, total);
        interrupt::check()
    })?;
    let prefill = start.elapsed();
    drop(bar);

    let bar = Bar::new("decoding");
    let parts = parts(model.layout());
    let mut times = Vec::new();
    // By the way of reading; where weights are streamed, there is but one.
    let mut passes = READS.map(|_| Vec::new());
    let mut turn = READS.iter().enumerate().cycle();
    let mut token = most_likely(&mut session, tokenizer.as_ref())?;
    let mut skim = |session: &mut Session| -> Result<(), Error> {
        let (kind, time) = match streamed {
            // Per byte of a token, so that both kinds of pass compare alike.
            Some(plan) => {
                let (bytes, time) = session.skim(Duration::MAX)?;
                (0, time.mul_f64(plan.streamed_bytes as f64 / bytes.max(1) as f64))
            }
            None => match turn.next() {
                Some((kind, &read)) => (kind, read_pass(&model, &parts, read)),
                None => return Ok(()),
            },
        };
        passes[kind].push(time);
        Ok(())
    };
    let mut streamed_bytes = 0;
    for i in 0..args.n {
        if streamed.is_some() || i % INTERLEAVE == 0 {
            skim(&mut session)?;
        }
        let (start, before) = (Instant::now(), session.read_bytes());
        session.feed(&[token])?;
        token = most_likely(&mut session, tokenizer.as_ref())?;
        times.push(start.elapsed());
        streamed_bytes += session.read_bytes() - before;
        bar.set(u64::from(i), u64::from(args.n));
        if interrupt::check() == ControlFlow::Break(()) {
            return Err(elapid::Error::Interrupted.into());
        }
    }
    // So that there is a pass of each kind.
    for _ in READS {
        skim(&mut session)?;
    }
    drop(bar);

    let pass_median = passes
        .iter_mut()
        .filter(|passes| !passes.is_empty())
        .map(|p| median(p))
        .fold(f64::INFINITY, f64::min);
    let streamed_bytes = streamed_bytes / u64::from(args.n);
    let bytes = if streamed.is_some() { streamed_bytes } else { bytes_per_token(model.layout()) };
    let counted = streamed.map_or(bytes, |plan| plan.streamed_bytes);
    let (token_seconds, pass_seconds) = match streamed {
        // A drive that others use, too, has bad moments, and a virtual one has good ones.
        Some(_) => (median(&mut times), pass_median),
        None => {
            let fastest = passes.iter().flatten().copied().min().unwrap_or_default();
            (times.iter().sum::<Duration>().as_secs_f64() / f64::from(args.n), fastest.as_secs_f64())
        }
    };
    let decode_tps = 1.0 / token_seconds;
    let read_gbps = bytes as f64 * decode_tps / 1e9;
    let machine_read_gbps = counted as f64 / pass_seconds / 1e9;
    report_incidents(&model);
    let report = Report {
        prefill_tps: f64::from(args.p) / prefill.as_secs_f64(),
        decode_tps,
        bytes_per_token: bytes,
        read_gbps,
        machine_read_gbps,
        ratio: read_gbps / machine_read_gbps,
        median_ratio: pass_median * bytes as f64 / (median(&mut times) * counted as f64),
        streamed_bytes_per_token: streamed_bytes,
        promised_tps: streamed.map(|plan| 1.0 / plan.seconds_per_token(1e9 * machine_read_gbps)),
        read_by,
        cap_bytes: plan.map(|plan| plan.cap_bytes),
        pinned_bytes: streamed.map(|plan| plan.pinned_bytes),
        chunk: plan.map(|plan| plan.chunk),
        peak_rss_bytes: peak_rss(),
        threads: model.team().size(),
        kernels: model.kernels(options.numbers),
        prompt_tokens: args.p,
        decoded_tokens: args.n,
    };
    if args.json { output::json(&report) } else { table(&model, &report) }
}

fn table(model: &Model, r: &Report) -> Result<(), Error> {
    let mut out = output::stdout();
    let rss = r.peak_rss_bytes.map_or("unknown".into(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    let rows = [
        ("model", model.name().to_owned()),
        ("computed by", format!("{} threads, {}", r.threads, r.kernels)),
        ("prefill", format!("{:.1} tokens/s ({} tokens)", r.prefill_tps, r.prompt_tokens)),
        ("decode", format!("{:.2} tokens/s ({} tokens)", r.decode_tps, r.decoded_tokens)),
        ("a token reads", format!("{:.1} MB", r.bytes_per_token as f64 / 1e6)),
        ("read rate", format!("{:.2} GB/s", r.read_gbps)),
        (
            if r.promised_tps.is_some() { "storage's" } else { "machine's" },
            format!(
                "{:.2} GB/s at best, of which decode reaches {:.0}% (median of median: {:.0}%)",
                r.machine_read_gbps,
                100.0 * r.ratio,
                100.0 * r.median_ratio
            ),
        ),
        ("peak memory", rss),
    ];
    let plan = match (r.cap_bytes, r.pinned_bytes, r.promised_tps) {
        (Some(cap), Some(pinned), Some(promised)) => Some((
            "plan",
            format!(
                "{:.1} MB at most, {:.1} MB of weights kept, {promised:.2} tokens/s at the storage's rate",
                cap as f64 / 1e6,
                pinned as f64 / 1e6
            ),
        )),
        _ => None,
    };
    for (name, value) in rows.into_iter().chain(plan) {
        writeln!(out, "{name:<15}{value}").map_err(output::failed)?;
    }
    output::finish(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_reading_reads_every_line() {
        for lines in 0..14 {
            let mut bytes: Vec<u8> = (0..128 * lines).map(|i| (i * 7 + i / 128) as u8).collect();
            let before = READS.map(|read| read(&bytes));
            assert_eq!(before, [before[0]; 3], "{lines} lines");
            for line in 0..lines {
                bytes[128 * line] ^= 1;
                let after = READS.map(|read| read(&bytes));
                assert!(after.iter().all(|&sum| sum != before[0]), "line {line} of {lines}: {after:?}");
                bytes[128 * line] ^= 1;
            }
        }
    }
}
