//! From a prompt to text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid_core::sample::{Sampler, Settings};
use elapid_core::tokenizer::{Decoder, Tokenizer};

use crate::stops::Stops;
use crate::{Error, Progress, Sequence};

/// Tokens that the repetition penalty looks back at.
const PENALTY_WINDOW: usize = 256;

/// How a text is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub settings: Settings,
    /// What the choices follow from: equal seeds give equal texts, on every machine.
    pub seed: u64,
    /// Tokens that end the text; they are no part of it.
    pub eos: Vec<u32>,
    /// Texts that end the text, whatever tokens they come in, special ones included; they are no part of it.
    pub stop: Vec<String>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All tokens that were asked for are there.
    Length,
    /// The model ended the text.
    Eos,
    /// A stop text came.
    Stop,
    /// The listener wanted no more.
    Interrupted,
}

/// What a generation did.
#[derive(Clone, Copy, Debug)]
pub struct Generated {
    /// Tokens generated, the one that ended the text not counted.
    pub tokens: usize,
    /// Tokens of the prompt, and after them of the text, that the sequence has been fed. Those of a step that was interrupted
    /// count: the next call finishes it.
    pub fed: usize,
    /// Time until the prompt was read.
    pub prompt_time: Duration,
    /// Time after that.
    pub time: Duration,
    /// Why it ended.
    pub end: End,
}

/// Hears a text as it is generated.
pub trait Listener {
    /// A piece of the text: whole characters, and surely no part of a stop text.
    ///
    /// # Errors
    /// An error ends the generation.
    fn text(&mut self, text: &str) -> Result<(), Error>;

    /// How far the prompt has been read.
    fn prompt(&mut self, progress: Progress) {
        let _ = progress;
    }

    /// How far a token has come, told after every layer.
    fn token(&mut self, progress: Progress) {
        let _ = progress;
    }

    /// Asked after every token and every layer: [`ControlFlow::Break`] ends the generation.
    fn next(&mut self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Generates text after `prompt`, which goes on from what `sequence` was fed before; a step that was interrupted is finished
/// first. What was made when a generation is interrupted is given to `listener` whole. The last token that was chosen has not been
/// fed, unless the generation was interrupted within it: [`Generated::fed`] says where the sequence stands.
///
/// # Errors
/// A setting that is out of its range, an empty prompt, what [`Sequence::feed`] returns, and what `listener` returns.
pub fn generate(
    sequence: &mut Sequence<'_>,
    tokenizer: &Tokenizer<'_>,
    prompt: &[u32],
    options: &GenerateOptions,
    listener: &mut dyn Listener,
) -> Result<Generated, Error> {
    let sampled = |cause| Error::Sample { cause };
    let mut sampler = Sampler::new(options.settings, options.seed).map_err(sampled)?;
    let start = Instant::now();
    let mut fed = 0;
    let mut end = match read(sequence, prompt, &mut fed, listener) {
        Err(Error::Interrupted) => Some(End::Interrupted),
        read => read.map(|()| (options.max_tokens == 0).then_some(End::Length))?,
    };
    let prompt_time = start.elapsed();

    let mut history = prompt[prompt.len().saturating_sub(PENALTY_WINDOW)..].to_vec();
    let mut decoder = Decoder::new();
    let mut stops = Stops::new(&options.stop);
    let mut tokens = 0;
    let start = Instant::now();
    let end = loop {
        if let Some(end) = end {
            break end;
        }
        let logits = sequence.logits()?;
        tokenizer.mask(logits);
        let token = sampler.sample(logits, &history).map_err(sampled)?;
        if options.eos.contains(&token) {
            break End::Eos;
        }
        tokens += 1;
        if tokenizer.is_special(token) {
            let text = tokenizer.token_bytes(token).unwrap_or_default();
            stops.push(&String::from_utf8_lossy(text), false);
        } else {
            // The token has text: ids that have none are masked.
            let _ = decoder.push(tokenizer, token, &mut |text| stops.push(text, true));
        }
        listener_text(listener, stops.ready())?;
        end = if stops.found {
            Some(End::Stop)
        } else if tokens >= options.max_tokens {
            Some(End::Length)
        } else if listener.next().is_break() {
            Some(End::Interrupted)
        } else {
            let outcome = sequence.feed_watched(&[token], &mut |progress| {
                listener.token(progress);
                listener.next()
            });
            fed += sequence.taken();
            if let Err(Error::Interrupted) = outcome {
                break End::Interrupted;
            }
            outcome?;
            if history.len() == PENALTY_WINDOW {
                history.remove(0);
            }
            history.push(token);
            None
        };
    };
    decoder.finish(&mut |text| stops.push(text, true));
    listener_text(listener, stops.rest())?;
    Ok(Generated { tokens, fed, prompt_time, time: start.elapsed(), end })
}

/// Finishes a step that was interrupted, then feeds the prompt and counts how much of it was fed.
fn read(
    sequence: &mut Sequence<'_>,
    prompt: &[u32],
    fed: &mut usize,
    listener: &mut dyn Listener,
) -> Result<(), Error> {
    sequence.resume(&mut |_| listener.next())?;
    let outcome = sequence.feed_watched(prompt, &mut |progress| {
        listener.prompt(progress);
        listener.next()
    });
    *fed = sequence.taken();
    outcome
}

fn listener_text(listener: &mut dyn Listener, text: String) -> Result<(), Error> {
    if text.is_empty() { Ok(()) } else { listener.text(&text) }
}
