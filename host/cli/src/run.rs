//! `elapid run`: text after a prompt.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::error::Error;
use elapid::core::tokenizer::EncodeOptions;
use elapid::{End, Error as LibraryError, GenerateOptions, Generated, Progress, encode};
use elapid_args::whole;
use elapid_files::interrupt;

use super::bar::{Bar, Status};
use super::cache::{CacheArgs, report_files};
use super::error::Failure;
use super::grammar::GrammarArgs;
use super::model::{ComputeArgs, ModelAndText, STDIN, StateArgs, read_text, report_incidents, text};
use super::output;
use super::sampling::SamplingArgs;
use super::session::SessionArgs;
use super::stream::{Report, Stream, end_name};

/// Generate text from a prompt
///
/// `elapid run "My fellow citizens"` uses the bundled model, `elapid run model.elp "My fellow citizens"` a file. A single argument
/// is the model if it ends in .elp, names a model of the Hub or in the store, or if a file or folder of that name exists; otherwise it
/// is the prompt.
///
/// Without a prompt, or if it is `-`, the prompt is read from standard input, without the newline at its end. A prompt that begins
/// with a hyphen goes after `--`: `elapid run model.elp -- "- buy milk"`.
///
/// Only the generated text is written to standard output; with --json, one line of JSON at the end.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, hf:ORG/NAME, or a checkpoint to pack. Default: the bundled one
    model: Option<OsString>,
    /// Prompt, `-` for standard input. Default: standard input
    prompt: Option<OsString>,

    /// Maximum number of tokens to generate
    #[arg(short, default_value_t = 256, value_parser = whole::<u32>(1..=u32::MAX.into()), allow_hyphen_values = true)]
    n: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop before this text; may be given several times. Default: none
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    #[command(flatten)]
    grammar: GrammarArgs,
    /// Print seed and speed even if stderr is not a terminal
    #[arg(short, long)]
    verbose: bool,
    /// Print one line of JSON at the end instead of the text: text, tokens, prompt_tokens, cached_tokens, computed_tokens, seed and
    /// end
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    files: SessionArgs,
    #[command(flatten)]
    cache: CacheArgs,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// The prompt given, or standard input's. A text that is continued needs none.
fn prompt(argument: Option<OsString>, goes_on: bool) -> Result<String, Error> {
    let prompt = match argument {
        Some(argument) if argument != STDIN => text(argument, "the prompt")?,
        None if goes_on && io::stdin().is_terminal() => String::new(),
        None if io::stdin().is_terminal() => {
            return Err(Error::Usage(
                "no prompt: give one, such as `elapid run \"My fellow citizens\"`".into(),
            ));
        }
        _ => {
            let mut text = read_text(STDIN.as_ref())?;
            for end in ['\n', '\r'] {
                text.truncate(text.strip_suffix(end).map_or(text.len(), str::len));
            }
            text
        }
    };
    if prompt.is_empty() && !goes_on {
        return Err(Error::Usage("the prompt is empty: give a word at least".into()));
    }
    Ok(prompt)
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let inputs = ModelAndText::new(args.model, args.prompt, "prompt", "run");
    if args.grammar.reads_stdin() && inputs.text.as_deref().is_none_or(|text| text == STDIN) {
        return Err(Error::Usage(
            "the prompt and the schema or grammar can't both come from standard input: give one of them as an argument or a file".into(),
        )
        .into());
    }
    let model = args.compute.open(inputs.model.as_deref()).map_err(|error| inputs.explain(error))?;
    let tokenizer = model.tokenizer()?;
    let goes_on = args.files.goes_on();
    let prompt = prompt(inputs.text, goes_on)?;
    // Nothing is added in the middle of a text.
    let add = EncodeOptions { add_special: !goes_on, ..EncodeOptions::default() };
    let tokens = encode(&tokenizer, &prompt, add)?;
    let (settings, seed) = (args.sampling.settings(), args.sampling.seed());
    let options = GenerateOptions::default().max_tokens(args.n as usize).settings(settings).seed(seed);
    let options = args.stop.into_iter().fold(options, GenerateOptions::stop);
    let options = args.grammar.constrain(&model, options)?;
    // A seed that is given begins a sampler of its own.
    let options = args.files.autosave(options.go_on(true).fresh(args.sampling.seeded()));
    let held = prompt.len() + 4 * tokens.capacity();
    let cache = args.cache.open(&model)?;
    let mut session = model.session(&args.state.options()?.held(held))?;
    args.files.load(&mut session)?;
    let (mut before, pending) = (session.tokens().len(), session.pending().len());
    let whole = before + pending + tokens.len();
    interrupt::listen();
    let bar = Bar::new("reading the prompt");
    let (mut rest, start) = (&tokens[..], Instant::now());
    // A session that is continued knows its past already.
    if let Some(cache) = cache.filter(|_| before + pending == 0) {
        let fed = cache.feed_to(&mut session, &tokens, &mut |Progress { done, total, .. }| {
            bar.set(done, total);
            interrupt::check()
        });
        report_files(&cache);
        match fed {
            Ok(fed) => before = fed.cached,
            // The generation below is interrupted, too, and saves what there is.
            Err(LibraryError::Interrupted) => before = cache.stats().cached as usize,
            Err(error) => return Err(error.into()),
        }
        rest = &tokens[session.tokens().len()..];
    }
    let cache_time = start.elapsed();
    let status = Status::new(model.config().n_layer);
    let kept = args.json.then(String::new);
    let mut stream = Stream::new(kept, Some(bar), status);
    let generated = session.generate(rest, &options)?.run(|event| stream.take(event));
    // The text is saved even if nobody reads it any more.
    let saved = args.files.save(&mut session);
    let mut generated = generated?;
    generated.prompt_time += cache_time;
    saved?;
    let seed = session.seed().unwrap_or(seed);
    if let Some(text) = stream.kept.take() {
        drop(stream);
        output::json(&Report {
            text,
            tokens: generated.tokens,
            prompt_tokens: whole,
            cached_tokens: before,
            computed_tokens: session.tokens().len() - before,
            seed,
            end: end_name(generated.end),
        })?;
    } else if !stream.newline && stream.out.is_terminal() {
        writeln!(stream.out).map_err(output::failed)?;
    }
    report_incidents(&model);
    if args.verbose || io::stderr().is_terminal() {
        // The text is out: that it can't be reported on is no failure.
        let _ = writeln!(io::stderr(), "{}", summary(&generated, whole - before, before, seed));
    }
    match generated.end {
        Some(End::Interrupted) | None => Ok(()),
        _ if generated.matches => Ok(()),
        Some(End::Length) => Err(Error::Failed(format!(
            "the text was cut off after {} tokens, before it was complete: allow more with -n",
            generated.tokens
        ))
        .into()),
        Some(_) => Err(Error::Failed("a stop text ended the text before it was complete".into()).into()),
    }
}

fn summary(generated: &Generated, computed: usize, known: usize, seed: u64) -> String {
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let end = match generated.end {
        Some(End::Eos) => ", the model ended the text",
        Some(End::Stop) => ", ended by a stop text, schema or grammar",
        Some(End::Interrupted) => ", interrupted",
        _ => "",
    };
    let known = if known > 0 { format!(" ({known} more were known)") } else { String::new() };
    format!(
        "[prompt: {computed} tokens{known}, {:.0} tokens/s; text: {} tokens, {:.1} tokens/s; seed {seed}{end}]",
        rate(computed, generated.prompt_time),
        generated.tokens,
        rate(generated.tokens, generated.time)
    )
}
