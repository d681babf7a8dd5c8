//! `elapid perplexity`: how well a model knows a text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::error::Error;
use elapid::core::tokenizer::EncodeOptions;
use elapid::{Progress, encode};
use elapid_args::whole;
use elapid_files::interrupt;
use serde::Serialize;

use super::bar::Bar;
use super::model::{ComputeArgs, StateArgs, read_text, report_incidents};
use super::output;

/// Measure how well a model predicts a text
///
/// Perplexity is exp of the mean of -ln p(token) over all tokens except the first. The whole text is one sequence that starts from
/// an empty state: it is not cut into windows, and no token is added to it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Packed model, hf:ORG/NAME, or a checkpoint to pack. Default: the bundled one
    model: Option<PathBuf>,
    /// File with the text, `-` for standard input
    #[arg(long)]
    file: PathBuf,
    /// Use only the first N tokens of the text. Default: all
    #[arg(long, value_name = "N", value_parser = whole::<u64>(2..=u64::MAX), allow_hyphen_values = true)]
    max_tokens: Option<u64>,
    /// Print JSON: perplexity, tokens
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state: StateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Serialize)]
struct Report {
    perplexity: f64,
    tokens: usize,
}

/// `-ln softmax(logits)[target]`, computed in f64.
fn loss(logits: &[f32], target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - f64::from(largest)).exp()).sum();
    let logit = logits.get(target as usize).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() + f64::from(largest) - f64::from(logit)
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let model = args.compute.open(args.model.as_deref())?;
    let tokenizer = model.tokenizer()?;
    let text = read_text(&args.file)?;
    let whole = EncodeOptions { add_special: false, ..EncodeOptions::default() };
    let mut tokens = encode(&tokenizer, &text, whole)?;
    tokens.truncate(usize::try_from(args.max_tokens.unwrap_or(u64::MAX)).unwrap_or(usize::MAX));
    let [context @ .., _] = &tokens[..] else {
        return Err(Error::Usage(format!(
            "{}: the text is empty: give 2 tokens at least",
            args.file.display()
        )));
    };
    if context.is_empty() {
        return Err(Error::Usage(format!("{}: only one token: give 2 at least", args.file.display())));
    }
    let held = text.len() + 4 * tokens.capacity();
    let mut session = model.session(&args.state.options()?.rows(true).held(held))?;
    interrupt::listen();
    let bar = Bar::new("reading the text");
    let mut watch = |Progress { done, total, .. }: Progress| -> ControlFlow<()> {
        bar.set(done, total);
        interrupt::check()
    };
    let mut sum = 0.0;
    session.feed_each(context, &mut watch, |i, logits| {
        sum += loss(logits, tokens[i + 1]);
        Ok::<(), Error>(())
    })?;
    drop(bar);
    report_incidents(&model);
    let report = Report { perplexity: (sum / context.len() as f64).exp(), tokens: tokens.len() };
    if args.json {
        return output::json(&report);
    }
    let mut out = output::stdout();
    writeln!(out, "perplexity {:.4} over {} tokens", report.perplexity, report.tokens)
        .map_err(output::failed)?;
    output::finish(out)
}

#[cfg(test)]
mod tests {
    use super::loss;

    #[test]
    fn losses_are_those_of_the_definition() {
        assert!((loss(&[0.0; 8], 3) - 8f64.ln()).abs() < 1e-15);
        let logits = [1000.0, 999.0, -1000.0];
        assert!((loss(&logits, 0) - (1.0 + (-1f64).exp()).ln()).abs() < 1e-12);
        assert!((loss(&logits, 2) - 2000.0 - (1.0 + (-1f64).exp()).ln()).abs() < 1e-9);
    }
}
