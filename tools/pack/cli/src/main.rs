//! The `elapid-pack` program.
#![forbid(unsafe_code)]

mod error;
mod inspect;
mod needs;
mod options;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use elapid_args::whole;
use elapid_core::format::Quant;
use elapid_files::{interrupt, same_file};
use elapid_pack::checkpoint::{Checkpoint, ModelConfig};
#[cfg(feature = "hub")]
use elapid_pack::hub::{Name, Settings, Source};
use elapid_pack::pack::parse_quant;
use elapid_pack::weights::Weights;
use elapid_pack::write::{Partial, Progress};
use elapid_pack::{Options, PackError, Plan, random};
use error::Error;
use indicatif::{ProgressBar, ProgressStyle};
use options::block_bytes;

/// Pack a Mamba or Falcon Mamba checkpoint into a file that elapid runs
#[derive(Parser)]
#[command(name = "elapid-pack", version, arg_required_else_help = true, max_term_width = 110)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Hugging Face folder or original Mamba folder (config.json, weights in safetensors or of torch.save, tokenizer.json), a
    /// file of weights in one, a GGUF file, or a model of the Hugging Face Hub (hf:ORG/NAME, hf:ORG/NAME@REVISION,
    /// hf:ORG/NAME/FILE); required without --random
    #[arg(required_unless_present = "random", conflicts_with = "random")]
    source: Option<PathBuf>,

    /// File to write
    #[arg(short, long, value_name = "FILE", required = true)]
    output: Option<PathBuf>,

    /// Type of the weights of the large matrices. Default: of a GGUF file the one that keeps its weights as they are (Q8_0: q8,
    /// Q5_0: q5, Q4_0: q4), otherwise q8
    #[arg(long, value_parser = parse_quant, value_name = "f32|f16|q8|q5|q4|q3")]
    quant: Option<Quant>,

    /// Type of the weights of head and embedding. Default: that of --quant; q8 where a GGUF file has finer ones
    #[arg(long, value_parser = parse_quant, value_name = "f32|f16|q8|q5|q4|q3")]
    head: Option<Quant>,

    /// Tokenizer: a tokenizer.json, or a folder or a model of the Hub with one. Default: that of SOURCE
    #[arg(long, value_name = "FILE", conflicts_with = "random")]
    tokenizer: Option<PathBuf>,

    /// Size of a block: 16K to 1M, a multiple of 16K. Small blocks suit boards with little memory
    #[arg(long, value_parser = block_bytes, default_value = "1M", value_name = "SIZE", allow_hyphen_values = true)]
    block: u32,

    /// Align to 512 bytes instead of pages: the file of a small model is smaller, but is read through the page cache if it is
    /// streamed
    #[arg(long)]
    compact: bool,

    /// Pack random weights of a preset's or a config.json's dimensions: mamba-130m, -370m, -790m, -1.4b, -2.8b, falcon-mamba-7b.
    /// Default: pack SOURCE
    #[arg(long, value_name = "PRESET|CONFIG.json")]
    random: Option<String>,

    /// Seed of the random weights. Default: 0
    #[arg(long, value_parser = whole::<u64>(0..=u64::MAX), allow_hyphen_values = true)]
    seed: Option<u64>,

    /// Round q5, q4 and q3 weights to minimise the error of their outputs on this text. Default: minimise the error of the weights
    #[arg(long, value_name = "FILE", conflicts_with = "random")]
    calibrate: Option<PathBuf>,

    /// Number of tokens of that text to use, spread over all of it. Default: 32768
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=u32::MAX.into()), allow_hyphen_values = true)]
    calibrate_tokens: Option<usize>,

    /// Number of threads that quantize. Default: one for each core, at least 8 for a model of the Hub
    #[arg(short, long, value_parser = whole::<u16>(1..=256), allow_hyphen_values = true)]
    threads: Option<u16>,
}

#[derive(clap::Subcommand)]
enum Command {
    Inspect(inspect::Args),
}

/// A bar on standard error, drawn only on a terminal, and Ctrl-C.
struct Bar(ProgressBar);

impl Progress for Bar {
    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
    fn skip(&self, bytes: u64) {
        self.0.inc(bytes);
        self.0.reset_eta();
    }
    fn restart(&self, bytes: u64) {
        self.0.reset();
        self.0.set_length(bytes);
    }
    fn cancelled(&self) -> bool {
        interrupt::check().is_break()
    }
}

/// Writes the file. What comes from afar, `remote`, goes on where an earlier program ended.
fn write<W: Weights>(
    plan: &Plan<W>,
    args: &Args,
    output: &Path,
    remote: Option<&str>,
    options: &Options,
) -> Result<(), Error> {
    let style = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bytes = plan.layout().file_bytes();
    let bar = Bar(ProgressBar::new(bytes).with_style(style));
    for note in plan.notes() {
        say(format_args!("note: {note}"));
    }
    if let Some(reason) = plan.without_tokenizer() {
        say(format_args!("note: {reason}; give one with --tokenizer FILE"));
    }
    interrupt::listen();
    // A link or a device is written to as it is.
    let is_plain = output.symlink_metadata().map_or(true, |about| about.is_file());
    let resumable = remote.filter(|_| is_plain && args.calibrate.is_none());
    let written = match resumable {
        Some(source) => {
            let mut path = output.as_os_str().to_owned();
            path.push(".part");
            let written = plan.resume(output, Partial { path: path.as_ref(), source }, options, &bar);
            if written.is_err() && Path::new(&path).exists() {
                say(format_args!(
                    "note: what is finished is in {}: the same command goes on there",
                    Path::new(&path).display()
                ));
            }
            written
        }
        None => plan.write(output, options, &bar),
    };
    let layout = written?;
    bar.0.finish_and_clear();
    say(format_args!("wrote {} ({} bytes)", output.display(), layout.file_bytes()));
    let (contents, q) = (plan.contents(), layout.config().quants);
    if let never @ [_, ..] = &plan.never_drawn()[..] {
        let ids: Vec<String> = never.iter().take(8).map(u32::to_string).collect();
        let more = if never.len() > ids.len() { ", …" } else { "" };
        let how = match contents.tokenizer {
            Some(_) => "these are never drawn",
            None => "their logits are 0, and without a tokenizer nothing keeps them from being drawn",
        };
        say(format_args!("note: rows of the head are -inf, of the ids {}{more}: {how}", ids.join(", ")));
    }
    // What one would otherwise find out on the device.
    say(format_args!(
        "tokenizer: {}; end tokens: {}; chat template: {}",
        contents.tokenizer_text(),
        contents.ends_text(),
        contents.template_text()
    ));
    let [matrices, small, head] = [q.in_proj, q.x_proj, q.head].map(Quant::name);
    say(format_args!("matrices: {matrices} (x_proj and dt_proj {small}, embedding and head {head})"));
    say(format_args!("memory: {}", needs::text(&layout)));
    Ok(())
}

/// Writes a line to standard error. If that fails, there is nowhere left to say so.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Refuses to write over what is to be read.
fn check_output(args: &Args, output: &Path) -> Result<(), Error> {
    let refused = |reason| Err(Error::Usage(format!("{}: {reason}", output.display())));
    if output.as_os_str() == "-" {
        return refused("a packed file can't go to standard output: give a file, such as model.elp");
    }
    let is_output = |path: &Path| same_file(path, output);
    if args.calibrate.as_deref().is_some_and(is_output) {
        return refused("-o would replace the text to calibrate on: give another file");
    }
    if args.random.as_deref().map(Path::new).is_some_and(is_output) {
        return refused("-o would replace the configuration: give another file");
    }
    if args.tokenizer.as_deref().is_some_and(is_output) {
        return refused("-o would replace the tokenizer: give another file");
    }
    if args.source.as_deref().is_some_and(is_output) {
        return refused("-o would replace the checkpoint: give another file, such as model.elp");
    }
    // What can't be listed can't be packed, which is said later. Packed files may lie beside the checkpoint.
    let listed = |folder: &Path| folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = args.source.iter().chain(&args.tokenizer).filter(|path| path.is_dir());
    let of_folders =
        folders.flat_map(|folder| listed(folder)).filter(|path| path.extension() != Some("elp".as_ref()));
    // Beside a file of weights: its configuration and tokenizer, and the other files of a split model.
    let is_part = |path: &PathBuf| {
        let parts = ["json", "jinja", "gguf", "safetensors", "bin", "pt", "pth"];
        parts.iter().any(|part| path.extension() == Some(part.as_ref()))
    };
    let beside = args.source.iter().filter(|path| !path.is_dir()).filter_map(|path| path.parent());
    let here =
        |folder: &Path| if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() };
    let of_files = beside.flat_map(|folder| listed(&here(folder))).filter(is_part);
    let mut inputs = of_folders.chain(of_files);
    if inputs.any(|path| is_output(&path)) {
        return refused("-o would replace a file of the checkpoint: give another file, such as model.elp");
    }
    Ok(())
}

fn random_model(name: &str) -> Result<ModelConfig, Error> {
    match random::preset(name) {
        Some(model) => Ok(model),
        None if name.ends_with(".json") => Ok(ModelConfig::from_file(Path::new(name))?),
        None => Err(Error::Usage(format!(
            "--random {name}: not a preset; give {}, or the path of a config.json",
            random::PRESETS.join(", ")
        ))),
    }
}

/// Opens a checkpoint. Of a model of the Hub there is also what tells it from any other.
fn open(source: &Path) -> Result<(Checkpoint, Option<String>), PackError> {
    #[cfg(feature = "hub")]
    if let Some(name) = Name::text(source) {
        let settings = Settings { cancelled: || interrupt::check().is_break(), ..Settings::from_env()? };
        let source = Source::find(&Name::parse(name)?, settings)?;
        let which = format!("{} {}", source.name(), source.commit());
        let checkpoint = source.open()?;
        let which = format!("{which} {}", checkpoint.version());
        return Ok((checkpoint, Some(which)));
    }
    Ok((Checkpoint::open(source)?, None))
}

fn run(args: &Args) -> Result<(), Error> {
    if let Some(Command::Inspect(args)) = &args.command {
        return inspect::run(args);
    }
    // clap asks for it where there is no command.
    let Some(output) = args.output.as_deref() else { return Ok(()) };
    check_output(args, output)?;
    let (mut checkpoint, remote) = args.source.as_deref().map(open).transpose()?.unzip();
    let remote = remote.flatten();
    if let (Some(checkpoint), Some(tokenizer)) = (&mut checkpoint, &args.tokenizer) {
        checkpoint.use_tokenizer(tokenizer)?;
    }
    let kept = checkpoint.as_ref().and_then(Checkpoint::kept_as).filter(|_| args.quant.is_none());
    let (quant, head) = match kept {
        Some((quant, head)) => (quant, args.head.or(head)),
        None => (args.quant.unwrap_or(Quant::Q8), args.head),
    };
    if let Some((quant, _)) = kept {
        let head = head
            .filter(|head| *head != quant)
            .map_or_else(String::new, |head| format!(", embedding and head as {}", head.name()));
        say(format_args!(
            "note: packed as {}{head}, which keeps the file's weights as they are",
            quant.name()
        ));
    }
    let (block_bytes, compact) = (args.block, args.compact);
    let mut options = Options { quant, head, block_bytes, compact, ..Options::default() };
    if remote.is_some() {
        options = options.remote();
    }
    if let Some(threads) = args.threads {
        options.threads = usize::from(threads);
    }
    match (&args.random, checkpoint) {
        (Some(name), _) => {
            let plan = Plan::random(&random_model(name)?, args.seed.unwrap_or(0), &options)?;
            write(&plan, args, output, None, &options)
        }
        (None, Some(checkpoint)) => {
            let mut plan = Plan::open(checkpoint, &options)?;
            if let Some(text) = &args.calibrate {
                plan.calibrate(text, args.calibrate_tokens.unwrap_or(32_768))?;
            }
            write(&plan, args, output, remote.as_deref(), &options)
        }
        (None, None) => Ok(()),
    }
}

impl Args {
    /// What is wrong where an option would do nothing. clap's `requires` is no help: it does not ask for `--random` where
    /// SOURCE excludes it.
    fn idle_option(&self) -> Option<&'static str> {
        if self.seed.is_some() && self.random.is_none() {
            Some("--seed goes with --random")
        } else if self.calibrate_tokens.is_some() && self.calibrate.is_none() {
            Some("--calibrate-tokens goes with --calibrate")
        } else {
            None
        }
    }
}

fn main() -> ExitCode {
    let args = match elapid_args::parse::<Args>() {
        Ok(args) => args,
        Err(code) => return code,
    };
    if let Some(message) = args.idle_option() {
        say(format_args!("error: {message} (see --help)"));
        return ExitCode::from(2);
    }
    if let Err(error) = interrupt::handle() {
        say(format_args!("warning: signals may leave unfinished files behind: {error}"));
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads any more: a quiet end.
        Err(Error::Output(cause)) if cause.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {error}"));
            let interrupted = if matches!(error, Error::Pack(PackError::Cancelled)) {
                interrupt::exit_code()
            } else {
                None
            };
            ExitCode::from(interrupted.unwrap_or_else(|| error.exit_code()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn help_follows_its_rules() {
        Args::command().debug_assert();
        assert_eq!(elapid_args::help_faults(&Args::command()), [""; 0]);
    }

    /// What the program says of arguments.
    fn said(args: &[&str]) -> String {
        let args: Vec<OsString> = ["elapid-pack"].iter().chain(args).map(Into::into).collect();
        let Err(error) = Args::try_parse_from(&args) else { panic!("{args:?} is taken") };
        elapid_args::explain(error, &Args::command(), &args)
    }

    #[test]
    fn arguments_that_cannot_be_are_explained() {
        for (args, says) in [
            (
                &["m", "--quan", "q8"][..],
                "unexpected argument '--quan' found: a similar argument exists: '--quant'",
            ),
            (
                &["-model", "-o", "m.elp"],
                "unexpected argument '-model' found: put an argument that begins with a hyphen after `--`: `elapid-pack -o m.elp -- \
                 -model`",
            ),
            (&["m"], "the following required arguments were not provided: --output <FILE>"),
        ] {
            assert_eq!(said(args), format!("error: {says} (see --help)"));
        }
        for (option, name, says) in [
            ("--threads <THREADS>", "-t", "give a whole number from 1 to 256"),
            ("--calibrate-tokens <N>", "--calibrate-tokens", "give a whole number from 1 to 4294967295"),
            ("--seed <SEED>", "--seed", "give a whole number from 0 to 18446744073709551615"),
            ("--block <SIZE>", "--block", "give a multiple of 16K from 16K to 1M, such as 64K"),
        ] {
            for value in ["-1", "-inf", "nan", "two", "1e30", "99999999999999999999", "64KK"] {
                let line = format!("error: invalid value '{value}' for '{option}': {says} (see --help)");
                assert_eq!(said(&["m", "-o", "m.elp", name, value]), line);
            }
        }
        assert_eq!(block_bytes("0.25MiB"), Ok(256 << 10));
        for size in ["0", "8K", "17K", "2M"] {
            assert!(block_bytes(size).is_err(), "{size}");
        }
    }
}
