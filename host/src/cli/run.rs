//! `elapid run`: text after a prompt.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, StdoutLock, Write};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use elapid::core::sample::Settings;
use elapid::core::tokenizer::EncodeOptions;
use elapid::{End, Error, GenerateOptions, Generated, Listener, MemoryOptions, Progress, encode, generate};

use super::bar::{Bar, Status};
use super::model::{ComputeArgs, StateArgs, model_and_text, report_incidents, text, utf8};
use super::{interrupt, output};

/// Writes text that goes on from a prompt, as it is generated
///
/// `elapid run "My fellow citizens"` takes the bundled model; `elapid run model.elp "My fellow citizens"` takes a file. A single
/// argument is the model if it ends in .elp or names something that exists, and the prompt otherwise. Without a prompt,
/// it is read from standard input (a newline at its end is left out). Only the continuation is written to standard output.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A packed model; the bundled one if left out
    model: Option<OsString>,
    /// The text to go on from; standard input if left out
    prompt: Option<OsString>,

    /// Tokens to generate at most
    #[arg(short, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Randomness: 0 always takes the most likely token, 1 follows the model
    #[arg(long, default_value_t = 0.8, value_name = "T", allow_negative_numbers = true)]
    temp: f32,
    /// Choose among the K most likely tokens only; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: u32,
    /// Choose among the most likely tokens that together reach probability P; 1 for all
    #[arg(long, default_value_t = 0.95, value_name = "P", allow_negative_numbers = true)]
    top_p: f32,
    /// Choose among tokens that are at least P times as likely as the most likely one
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    min_p: f32,
    /// Make tokens of the last 256 less likely; 1 for not at all
    #[arg(long, default_value_t = 1.0, value_name = "R", allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Equal seeds give equal texts; from the clock if left out
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// End before this text; may be given again
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Say seed and speed at the end, also where standard error is no terminal
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Writes text to standard output at once.
struct Stream {
    out: StdoutLock<'static>,
    bar: Option<Bar>,
    status: Status,
    newline: bool,
}

impl Listener for Stream {
    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.bar = None;
        self.status.clear();
        self.newline = text.ends_with('\n');
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(output::failed)
    }

    fn prompt(&mut self, progress: Progress) {
        match &self.bar {
            Some(bar) if progress.done < progress.total => bar.set(progress.done, progress.total),
            _ => {
                self.bar = None;
                self.status.clear();
            }
        }
    }

    fn token(&mut self, progress: Progress) {
        self.status.set(progress);
    }

    fn next(&mut self) -> ControlFlow<()> {
        interrupt::check()
    }
}

/// The prompt given, or standard input's.
fn prompt(argument: Option<OsString>) -> Result<String, Error> {
    let prompt = match argument {
        Some(argument) => text(argument, "the prompt")?,
        None if io::stdin().is_terminal() => {
            return Err(Error::Usage(
                "no prompt: give one, such as `elapid run \"My fellow citizens\"`".into(),
            ));
        }
        None => {
            let mut bytes = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|cause| Error::File { path: "standard input".into(), action: "read", cause })?;
            let mut text = utf8(bytes, "the prompt on standard input")?;
            for end in ['\n', '\r'] {
                text.truncate(text.strip_suffix(end).map_or(text.len(), str::len));
            }
            text
        }
    };
    if prompt.is_empty() {
        return Err(Error::Usage("the prompt is empty: give a word at least".into()));
    }
    Ok(prompt)
}

/// A seed that differs from run to run, short enough to type.
fn seed_from_clock() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    (time.as_nanos() / 1000 % 1_000_000_000) as u64
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let (model, prompt_argument) = model_and_text(args.model, args.prompt);
    let engine = args.compute.open(model.as_deref())?;
    let tokenizer = engine.tokenizer()?;
    let prompt = prompt(prompt_argument)?;
    let tokens = encode(&tokenizer, &prompt, EncodeOptions::default())?;
    let options = GenerateOptions {
        max_tokens: args.n as usize,
        settings: Settings {
            temperature: args.temp,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repeat_penalty: args.repeat_penalty,
        },
        seed: args.seed.unwrap_or_else(seed_from_clock),
        eos: engine.generation()?.map_or(Vec::new(), |g| g.eos.iter().collect()),
        stop: args.stop,
    };
    let held = prompt.len() + 4 * tokens.capacity();
    let mut memory = engine.memory(&MemoryOptions { held, ..args.state.memory()? })?;
    let mut sequence = memory.sequence(&engine)?;
    interrupt::listen();
    let bar = Some(Bar::new("reading the prompt"));
    let status = Status::new(engine.config().n_layer);
    let mut stream = Stream { out: io::stdout().lock(), bar, status, newline: false };
    let generated = generate(&mut sequence, &tokenizer, &tokens, &options, &mut stream)?;
    if !stream.newline && stream.out.is_terminal() {
        writeln!(stream.out).map_err(output::failed)?;
    }
    report_incidents(&engine);
    if args.verbose || io::stderr().is_terminal() {
        // The text is out: that it can't be reported on is no failure.
        let _ = writeln!(io::stderr(), "{}", summary(&generated, tokens.len(), options.seed));
    }
    Ok(())
}

fn summary(generated: &Generated, prompt: usize, seed: u64) -> String {
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let end = match generated.end {
        End::Length => "",
        End::Eos => ", the model ended the text",
        End::Stop => ", ended by a stop text",
        End::Interrupted => ", interrupted",
    };
    format!(
        "[prompt: {prompt} tokens, {:.0} tokens/s; text: {} tokens, {:.1} tokens/s; seed {seed}{end}]",
        rate(prompt, generated.prompt_time),
        generated.tokens,
        rate(generated.tokens, generated.time)
    )
}
