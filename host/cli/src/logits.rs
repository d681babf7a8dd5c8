//! `elapid logits`: what the model says of the next token.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::error::Error;
use elapid::{Model, Progress, Session};
use elapid_files::{interrupt, same_file};

use super::bar::Bar;
use super::model::{ComputeArgs, StateArgs, report_incidents};
use super::npy::Writer;
use super::output;

/// Print the logits after a text, or after each of its tokens
///
/// The JSON is {"tokens": [...], "logits": [...]}; with --all, `logits` has one array for each token. The NumPy array has f32
/// elements and the shape [vocab], or [tokens, vocab] with --all.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("input").required(true))]
pub(super) struct Args {
    /// Packed model, hf:ORG/NAME, or a checkpoint to pack. Default: the bundled one
    model: Option<PathBuf>,
    /// Token ids, such as 1,2,3 or what `elapid tokenize` prints
    #[arg(long, value_parser = ids, group = "input", value_name = "IDS", allow_hyphen_values = true)]
    tokens: Vec<Ids>,
    /// Text, tokenized as by `elapid tokenize`
    #[arg(long, group = "input", allow_hyphen_values = true)]
    text: Option<String>,
    /// Print logits after every token instead of only the last
    #[arg(long)]
    all: bool,
    /// Write a NumPy array to this file, or to standard output for -. Default: print JSON
    #[arg(short, value_name = "FILE.npy", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print JSON, which is the default without -o
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// What one `--tokens` holds.
type Ids = Vec<u32>;

/// Parses token ids: numbers with commas or white space between them, in brackets or not.
fn ids(text: &str) -> Result<Ids, String> {
    let text = text.trim();
    let list = text.strip_prefix('[').map_or(Some(text), |rest| rest.strip_suffix(']'));
    let list = list.filter(|list| list.split(',').all(|ids| !ids.trim().is_empty()));
    let ids = list.and_then(|list| {
        let ids = list.split([',', ' ', '\t', '\r', '\n']).filter(|id| !id.is_empty());
        ids.map(|id| id.parse().ok()).collect()
    });
    ids.ok_or_else(|| format!("give whole numbers from 0 to {}, such as 1,2,3 or [1, 2, 3]", u32::MAX))
}

fn tokens(args: &Args, model: &Model) -> Result<Vec<u32>, Error> {
    let Some(text) = &args.text else { return Ok(args.tokens.concat()) };
    let tokens = model.encode(text)?;
    if tokens.is_empty() {
        return Err(Error::Usage("the text is empty: give a word at least".into()));
    }
    Ok(tokens)
}

/// Hands the rows that were asked for to `each`.
fn rows(
    session: &mut Session,
    tokens: &[u32],
    all: bool,
    mut each: impl FnMut(usize, &[f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let bar = Bar::new("computing");
    let mut watch = |Progress { done, total, .. }: Progress| -> ControlFlow<()> {
        bar.set(done, total);
        interrupt::check()
    };
    if all {
        return session.feed_each(tokens, &mut watch, each);
    }
    session.feed_watched(tokens, &mut watch)?;
    each(0, session.logits()?)
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    if let (Some(model), Some(output)) = (&args.model, &args.output)
        && same_file(model, output)
    {
        let name = output.display();
        return Err(Error::Usage(format!("{name}: -o would replace the model: give another file")));
    }
    let model = args.compute.open(args.model.as_deref())?;
    let tokens = tokens(args, &model)?;
    let held = args.text.as_ref().map_or(0, String::len) + 4 * tokens.len();
    let mut session = model.session(&args.state.options()?.rows(args.all).held(held))?;
    interrupt::listen();
    if let Some(path) = &args.output {
        let vocab = model.config().vocab as usize;
        let shape = [tokens.len(), vocab];
        let mut file = Writer::create(path, if args.all { &shape } else { &shape[1..] })?;
        rows(&mut session, &tokens, args.all, |_, row| file.extend(row))?;
        report_incidents(&model);
        return file.finish();
    }
    // Nothing is written before there is something to write, so that what fails leaves no half of a line.
    let mut out = output::stdout();
    rows(&mut session, &tokens, args.all, |i, row| {
        let between = match i {
            0 => format!("{{\"tokens\":{},\"logits\":{}", compact(&tokens), if args.all { "[" } else { "" }),
            _ => ",".into(),
        };
        out.write_all(between.as_bytes()).map_err(output::failed)?;
        serde_json::to_writer(&mut out, row).map_err(|e| output::failed(e.into()))
    })?;
    report_incidents(&model);
    writeln!(out, "{}", if args.all { "]}" } else { "}" }).map_err(output::failed)?;
    output::finish(out)
}

/// The ids as a JSON array.
fn compact(tokens: &[u32]) -> String {
    let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
    format!("[{}]", ids.join(","))
}
