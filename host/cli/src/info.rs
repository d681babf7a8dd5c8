//! `elapid info`: what a model file holds.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;
use elapid::core::fixed;
use elapid::core::format::{Config, Layout, Quant, Section};
use elapid::core::model::StateKind;
use elapid::{Fit, Model, Numbers, Plan, ReadBy, SessionOptions};
use elapid_boards::{BOARDS, Board, STORAGE};
use serde::Serialize;

use super::model::{ComputeArgs, StateArgs, open_to_read, report_incidents};
use super::output;

/// Print what a packed model holds: architecture, types, sizes, sections
///
/// With --ram, also measure the drive and print the plan: what the memory is used for, and the expected speed.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, or hf:ORG/NAME or a checkpoint that is in the store. Default: the bundled one
    model: Option<PathBuf>,

    /// Print whether the model fits this board with a microcontroller, and what it needs there. Default: no board
    #[arg(long, value_name = "NAME", value_parser = board)]
    board: Option<&'static Board>,

    /// Print JSON: arch, quant, config, sections, …
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// How long the storage's rate is measured.
const MEASURE: Duration = Duration::from_secs(2);

/// The board that an argument names.
fn board(name: &str) -> Result<&'static Board, String> {
    elapid_boards::find(name).ok_or_else(|| {
        let known = BOARDS.iter().map(|board| board.name).collect::<Vec<_>>().join(", ");
        format!("give the name of a board: {known}")
    })
}

/// A plan, and how long a token takes by it where reading bounds it.
#[derive(Serialize)]
struct Planned {
    #[serde(flatten)]
    plan: Plan,
    total_bytes: u64,
    /// How reads are made; absent, as what follows, where nothing is streamed.
    read_by: Option<&'static str>,
    storage_bytes_per_second: Option<f64>,
    expected_tps: Option<f64>,
    seconds_per_token: Vec<(&'static str, f64)>,
}

#[derive(Serialize)]
struct Info {
    arch: &'static str,
    /// The type of the large matrices.
    quant: &'static str,
    quants: Quants,
    config: Dimensions,
    parameters: u64,
    bits_per_weight: f64,
    file_bytes: u64,
    state_bytes: StateBytes,
    /// State in f32 and working memory of one sequence.
    memory_bytes: usize,
    vocabulary: Option<u32>,
    /// The kind of tokenizer.
    tokenizer: Option<&'static str>,
    generation: Option<Generation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Planned>,
    #[serde(skip_serializing_if = "Option::is_none")]
    board: Option<Fit>,
    sections: Vec<SectionInfo>,
}

#[derive(Serialize)]
struct Quants {
    embedding: &'static str,
    in_proj: &'static str,
    x_proj: &'static str,
    dt_proj: &'static str,
    out_proj: &'static str,
    head: &'static str,
}

#[derive(Serialize)]
struct Dimensions {
    d_model: u32,
    d_inner: u32,
    d_state: u32,
    d_conv: u32,
    dt_rank: u32,
    n_layer: u32,
    vocab: u32,
    norm_eps: f32,
    /// Absent where B, C and dt are not normalised.
    bcdt_eps: Option<f32>,
    tied: bool,
    bias: bool,
    conv_bias: bool,
    compact: bool,
    block_bytes: u32,
}

#[derive(Serialize)]
struct StateBytes {
    f32: usize,
    f16: usize,
    /// In the fixed path, with its exponents.
    i16: usize,
    i32: usize,
}

#[derive(Serialize)]
struct Generation {
    eos: Vec<u32>,
    bos: Option<u32>,
    pad: Option<u32>,
}

#[derive(Serialize)]
struct SectionInfo {
    name: String,
    offset: u64,
    bytes: u64,
    blocks: u32,
}

/// The parameters of the checkpoint, without padding.
fn parameters(c: &Config) -> u64 {
    let [d_model, d_inner, d_state, d_conv, dt_rank, n_layer, vocab] =
        [c.d_model, c.d_inner, c.d_state, c.d_conv, c.dt_rank, c.n_layer, c.vocab].map(u64::from);
    let (bias, conv_bias) = (u64::from(c.bias), u64::from(c.conv_bias));
    let in_proj = 2 * d_inner * (d_model + bias);
    let conv = d_inner * (d_conv + conv_bias);
    let x_proj = (dt_rank + 2 * d_state) * d_inner;
    let dt_proj = d_inner * (dt_rank + 1);
    let a_and_d = d_inner * (d_state + 1);
    let out_proj = d_model * (d_inner + bias);
    let layer = d_model + in_proj + conv + x_proj + dt_proj + a_and_d + out_proj;
    let tables = if c.tied { 1 } else { 2 };
    n_layer * layer + d_model + tables * vocab * d_model
}

/// Bytes of all sections of weights.
fn weight_bytes(layout: &Layout) -> u64 {
    let weights = |s: &Section| {
        matches!(s, Section::Embedding | Section::Layer(_) | Section::FinalNorm | Section::Head)
    };
    layout.sections().filter(weights).map(|s| layout.section(s).length).sum()
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let model = match args.compute.capped() {
        true => args.compute.open(args.model.as_deref())?,
        false => open_to_read(args.model.as_deref())?,
    };
    let plan = planned(&model, &args.state.options()?)?;
    let (layout, config) = (model.layout(), model.config());
    let sections = layout.sections().map(|s| {
        let place = layout.section(s);
        SectionInfo { name: s.to_string(), offset: place.offset, bytes: place.length, blocks: place.blocks }
    });
    let sections = sections.filter(|s| s.bytes > 0).collect();
    let vocabulary = match model.tokenizer() {
        Ok(tokenizer) => Some((tokenizer.vocab_size(), tokenizer.header().kind())),
        Err(elapid::Error::NoTokenizer { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let generation =
        model.generation()?.map(|g| Generation { eos: g.eos.iter().collect(), bos: g.bos, pad: g.pad });
    let state = |numbers: Numbers| numbers.state_bytes(config, config.n_layer as usize);
    let name = Quant::name;
    let q = &config.quants;
    let info = Info {
        arch: config.arch.name(),
        quant: name(q.in_proj),
        quants: Quants {
            embedding: name(q.embedding),
            in_proj: name(q.in_proj),
            x_proj: name(q.x_proj),
            dt_proj: name(q.dt_proj),
            out_proj: name(q.out_proj),
            head: name(q.head),
        },
        config: dimensions(config),
        parameters: parameters(config),
        bits_per_weight: 8.0 * weight_bytes(layout) as f64 / parameters(config) as f64,
        file_bytes: layout.file_bytes(),
        state_bytes: StateBytes {
            f32: state(Numbers::Float(StateKind::F32)),
            f16: state(Numbers::Float(StateKind::F16)),
            i16: state(Numbers::Fixed(fixed::StateKind::I16)),
            i32: state(Numbers::Fixed(fixed::StateKind::I32)),
        },
        memory_bytes: SessionOptions::default().memory_bytes(config),
        vocabulary: vocabulary.map(|(size, _)| size),
        tokenizer: vocabulary.map(|(_, kind)| kind),
        generation,
        plan,
        board: args.board.map(|board| Fit::new(board, layout)),
        sections,
    };
    if args.json { output::json(&info) } else { table(&info) }
}

/// The plan under a cap, with the rate of the storage measured by the reader that will stream from it.
fn planned(model: &Model, options: &SessionOptions) -> Result<Option<Planned>, Error> {
    let Some(plan) = model.plan(options)? else { return Ok(None) };
    let mut planned = Planned {
        plan,
        total_bytes: plan.total_bytes(),
        read_by: None,
        storage_bytes_per_second: None,
        expected_tps: None,
        seconds_per_token: Vec::new(),
    };
    if !plan.mapped {
        let mut session = model.session(options)?;
        planned.read_by = session.read_by().map(ReadBy::name);
        let (bytes, time) = session.skim(MEASURE)?;
        let rate = bytes as f64 / time.as_secs_f64().max(1e-9);
        planned.storage_bytes_per_second = Some(rate);
        planned.expected_tps = Some(1.0 / plan.seconds_per_token(rate).max(1e-9));
        planned.seconds_per_token =
            STORAGE.iter().map(|(name, rate)| (*name, plan.seconds_per_token(*rate))).collect();
        report_incidents(model);
    }
    Ok(Some(planned))
}

/// The lines of a plan.
fn plan_rows(planned: &Planned) -> Vec<(String, String)> {
    let plan = &planned.plan;
    let mb = |bytes: u64| format!("{:>9.2} MiB", bytes as f64 / f64::from(1 << 20));
    let mut rows = vec![
        ("cap", mb(plan.cap_bytes)),
        ("program", format!("{}  code, stacks, prompt, margin", mb(plan.program_bytes))),
        (
            "tables",
            format!("{}  tokenizer, checksums, places, a block of the embedding", mb(plan.tables_bytes)),
        ),
        ("state", format!("{}  all layers, and an undo copy of one", mb(plan.state_bytes))),
        ("working", format!("{}  chunks of {} tokens, and logits", mb(plan.working_bytes), plan.chunk)),
    ];
    if plan.mapped {
        rows.push(("weights", format!("{}  the whole file, mapped", mb(plan.file_bytes))));
    } else {
        let share = 100.0 * plan.pinned_bytes as f64 / plan.weights_bytes as f64;
        let by = planned.read_by.unwrap_or("threads");
        let ring = format!(
            "{}  {} buffers, {} reads under way by {by}",
            mb(plan.ring_bytes),
            plan.slots,
            plan.readers
        );
        rows.push(("ring", ring));
        rows.push((
            "kept",
            format!("{}  {share:.1}% of the weights, spread over all layers", mb(plan.pinned_bytes)),
        ));
        rows.push(("a token reads", mb(plan.streamed_bytes)));
    }
    rows.push(("in all", mb(planned.total_bytes)));
    let mut rows: Vec<_> = rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let (Some(rate), Some(tps)) = (planned.storage_bytes_per_second, planned.expected_tps) {
        let measured =
            format!("{:.1} MB/s, measured: {tps:.3} tokens/s, {:.2} s a token", rate / 1e6, 1.0 / tps);
        rows.push(("this storage".into(), measured));
    }
    for (board, seconds) in &planned.seconds_per_token {
        rows.push(((*board).into(), format!("{seconds:.1} s a token")));
    }
    rows
}

fn dimensions(c: &Config) -> Dimensions {
    Dimensions {
        d_model: c.d_model,
        d_inner: c.d_inner,
        d_state: c.d_state,
        d_conv: c.d_conv,
        dt_rank: c.dt_rank,
        n_layer: c.n_layer,
        vocab: c.vocab,
        norm_eps: c.norm_eps,
        bcdt_eps: c.bcdt_eps,
        tied: c.tied,
        bias: c.bias,
        conv_bias: c.conv_bias,
        compact: c.compact,
        block_bytes: c.block_bytes,
    }
}

fn table(info: &Info) -> Result<(), Error> {
    let c = &info.config;
    let (q, state) = (&info.quants, &info.state_bytes);
    let yes = |flag: bool| if flag { "yes" } else { "no" };
    let rows = [
        ("arch", info.arch.to_owned()),
        ("quant", format!("{} (x_proj {}, dt_proj {}, head {})", info.quant, q.x_proj, q.dt_proj, q.head)),
        ("parameters", format!("{}, {:.2} bits each in the file", info.parameters, info.bits_per_weight)),
        ("layers", format!("{} of d_model {}, d_inner {}", c.n_layer, c.d_model, c.d_inner)),
        ("mixer", format!("d_state {}, d_conv {}, dt_rank {}", c.d_state, c.d_conv, c.dt_rank)),
        (
            "norms",
            match c.bcdt_eps {
                Some(eps) => format!("eps {:e}, of B, C and dt {eps:e}", c.norm_eps),
                None => format!("eps {:e}", c.norm_eps),
            },
        ),
        (
            "options",
            format!(
                "tied head {}, biases {}, conv bias {}, compact {}",
                yes(c.tied),
                yes(c.bias),
                yes(c.conv_bias),
                yes(c.compact)
            ),
        ),
        (
            "vocabulary",
            match info.vocabulary.zip(info.tokenizer) {
                Some((n, kind)) => format!("{}, tokenizer {n} ({kind})", c.vocab),
                None => format!("{}, no tokenizer", c.vocab),
            },
        ),
        ("file", format!("{} bytes, blocks of up to {}", info.file_bytes, c.block_bytes)),
        (
            "state",
            format!(
                "{} bytes in f32, {} in f16, {} in i16, {} in i32",
                state.f32, state.f16, state.i16, state.i32
            ),
        ),
        ("memory", format!("{} bytes a sequence beside the weights", info.memory_bytes)),
    ];
    let mut out = output::stdout();
    let mut write = || {
        for (name, value) in &rows {
            writeln!(out, "{name:<12}{value}")?;
        }
        if let Some(fit) = &info.board {
            writeln!(out)?;
            for (name, value) in fit.rows() {
                writeln!(out, "{name:<12}{value}")?;
            }
        }
        if let Some(planned) = &info.plan {
            writeln!(out, "\nplan")?;
            for (name, value) in plan_rows(planned) {
                writeln!(out, "{name:<26}{value}")?;
            }
        }
        writeln!(out, "\n{:<22}{:>14}{:>14}{:>9}", "section", "offset", "bytes", "blocks")?;
        for s in &info.sections {
            writeln!(out, "{:<22}{:>14}{:>14}{:>9}", s.name, s.offset, s.bytes, s.blocks)?;
        }
        Ok(())
    };
    write().map_err(output::failed)?;
    output::finish(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_board_gets_the_list() {
        let error = board("pdp-11").unwrap_err();
        assert!(BOARDS.iter().all(|board| error.contains(board.name)), "{error}");
    }
}
