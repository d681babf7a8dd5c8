//! The `elapid-pack` program.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use elapid_core::format::Quant;
use elapid_pack::checkpoint::ModelConfig;
use elapid_pack::weights::Weights;
use elapid_pack::write::Progress;
use elapid_pack::{Options, PackError, Plan, random};
use indicatif::{ProgressBar, ProgressStyle};

/// Packs a Mamba or Falcon Mamba checkpoint into a file that elapid runs.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    /// A Hugging Face folder: config.json, safetensors (sharded too), tokenizer.json
    #[arg(required_unless_present = "random", conflicts_with = "random")]
    source: Option<PathBuf>,

    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// How the large matrices are stored
    #[arg(long, value_parser = quant, default_value = "q8", value_name = "f32|f16|q8|q5|q4|q3")]
    quant: Quant,

    /// How head and embedding are stored, if not as --quant
    #[arg(long, value_parser = quant, value_name = "f32|f16|q8|q5|q4|q3")]
    head: Option<Quant>,

    /// Bytes of a block: 16K to 1M, a multiple of 16K; small ones suit boards with little memory
    #[arg(long, value_parser = block_bytes, default_value = "1M", value_name = "SIZE")]
    block: u32,

    /// Align to 512 bytes rather than to pages: a smaller file for a small model, read through the page cache where it is
    /// streamed
    #[arg(long)]
    compact: bool,

    /// Random weights instead of a checkpoint: mamba-130m, -370m, -790m, -1.4b, -2.8b, falcon-mamba-7b, or a config.json
    #[arg(long, value_name = "PRESET|CONFIG.json")]
    random: Option<String>,

    /// Seed of the random weights
    #[arg(long, default_value_t = 0, requires = "random")]
    seed: u64,

    /// Text like what the model will read: q5, q4 and q3 are then chosen for what comes of the weights on it
    #[arg(long, value_name = "FILE", conflicts_with = "random")]
    calibrate: Option<PathBuf>,

    /// Tokens of that text to use, spread over all of it
    #[arg(long, default_value_t = 32_768, requires = "calibrate", value_name = "N")]
    calibrate_tokens: usize,

    /// Threads that quantize (all cores if left out)
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

fn quant(text: &str) -> Result<Quant, String> {
    let known = Quant::ALL.into_iter().find(|q| q.name() == text);
    known.ok_or_else(|| "choose f32, f16, q8, q5, q4 or q3".into())
}

fn block_bytes(text: &str) -> Result<u32, String> {
    let error = "give a multiple of 16K from 16K to 1M, such as 64K";
    let (digits, unit) = match text.trim_end_matches(['k', 'K', 'm', 'M']) {
        digits if text.ends_with(['m', 'M']) => (digits, 1 << 20),
        digits if text.ends_with(['k', 'K']) => (digits, 1 << 10),
        digits => (digits, 1),
    };
    let bytes = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
    bytes
        .filter(|b| (16 << 10..=1 << 20).contains(b) && b.is_multiple_of(16 << 10))
        .ok_or_else(|| error.into())
}

/// A bar on standard error, drawn only on a terminal, and Ctrl-C.
struct Bar {
    bar: ProgressBar,
    interrupted: &'static AtomicBool,
}

impl Progress for Bar {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn write<W: Weights>(plan: &Plan<W>, args: &Args, options: &Options) -> Result<(), PackError> {
    let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bytes = plan.layout().file_bytes();
    let bar = Bar { bar: ProgressBar::new(bytes).with_style(style), interrupted: &INTERRUPTED };
    plan.write(&args.output, options, &bar)?;
    bar.bar.finish_and_clear();
    eprintln!("wrote {} ({bytes} bytes)", args.output.display());
    Ok(())
}

fn random_model(name: &str) -> Result<ModelConfig, PackError> {
    match random::preset(name) {
        Some(model) => Ok(model),
        None if name.ends_with(".json") => ModelConfig::from_file(Path::new(name)),
        None => Err(PackError::UnknownPreset { name: name.to_owned(), known: random::PRESETS.join(", ") }),
    }
}

fn run(args: &Args) -> Result<(), PackError> {
    let (quant, head, block_bytes, compact) = (args.quant, args.head, args.block, args.compact);
    let mut options = Options { quant, head, block_bytes, compact, ..Options::default() };
    if let Some(threads) = args.threads {
        options.threads = usize::from(threads);
    }
    match (&args.random, &args.source) {
        (Some(name), _) => write(&Plan::random(&random_model(name)?, args.seed, &options)?, args, &options),
        (None, Some(folder)) => {
            let mut plan = Plan::checkpoint(folder, &options)?;
            if let Some(text) = &args.calibrate {
                plan.calibrate(text, args.calibrate_tokens)?;
            }
            write(&plan, args, &options)
        }
        (None, None) => Ok(()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Without a handler an interruption would leave the unfinished file behind.
    let handler = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed));
    if let Err(error) = handler {
        eprintln!("warning: an interruption will leave an unfinished .part file: {error}");
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
