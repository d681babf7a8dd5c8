//! From a prompt to text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid_core::sample::{Sampler, Settings};
use elapid_core::tokenizer::{Decoder, Tokenizer};

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
    /// Texts that end the text, whatever tokens they come in; they are no part of it.
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

/// Generates text after `prompt`, which goes on from what `sequence` was fed before. What was made when a generation is
/// interrupted is given to `listener` whole. The last token that was chosen, the one that ended the generation, has not been
/// fed.
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
    let fed = sequence.feed_watched(prompt, &mut |progress| {
        listener.prompt(progress);
        listener.next()
    });
    let prompt_time = start.elapsed();
    let mut end = match fed {
        Err(Error::Interrupted) => Some(End::Interrupted),
        fed => fed.map(|()| (options.max_tokens == 0).then_some(End::Length))?,
    };

    let mut history = prompt[prompt.len().saturating_sub(PENALTY_WINDOW)..].to_vec();
    let mut decoder = Decoder::new().skip_special(true);
    let mut stops = Stops::new(&options.stop);
    let mut tokens = 0;
    let start = Instant::now();
    let end = loop {
        if let Some(end) = end {
            break end;
        }
        let token = sampler.sample(sequence.logits()?, &history).map_err(sampled)?;
        if options.eos.contains(&token) {
            break End::Eos;
        }
        tokens += 1;
        // A vocabulary that is padded has ids without a token: they have no text.
        let _ = decoder.push(tokenizer, token, &mut |text| stops.push(text));
        listener_text(listener, stops.ready())?;
        end = if stops.found {
            Some(End::Stop)
        } else if tokens >= options.max_tokens {
            Some(End::Length)
        } else if listener.next().is_break() {
            Some(End::Interrupted)
        } else {
            let fed = sequence.feed_watched(&[token], &mut |progress| {
                listener.token(progress);
                listener.next()
            });
            if let Err(Error::Interrupted) = fed {
                break End::Interrupted;
            }
            fed?;
            if history.len() == PENALTY_WINDOW {
                history.remove(0);
            }
            history.push(token);
            None
        };
    };
    decoder.finish(&mut |text| stops.push(text));
    listener_text(listener, stops.rest())?;
    Ok(Generated { tokens, prompt_time, time: start.elapsed(), end })
}

fn listener_text(listener: &mut dyn Listener, text: String) -> Result<(), Error> {
    if text.is_empty() { Ok(()) } else { listener.text(&text) }
}

/// Looks for stop texts in a stream, and holds back what may become one.
struct Stops<'a> {
    stops: &'a [String],
    held: String,
    /// A stop text came: `held` ends before it.
    found: bool,
}

impl<'a> Stops<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new(), found: false }
    }

    fn stops(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.stops.iter().map(String::as_str).filter(|stop| !stop.is_empty())
    }

    fn push(&mut self, text: &str) {
        if self.found {
            return;
        }
        self.held.push_str(text);
        if let Some(at) = self.stops().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            self.found = true;
        }
    }

    /// What surely is no part of a stop text.
    fn ready(&mut self) -> String {
        // The longest end of `held` with which a stop text begins.
        let begins =
            |at: usize| self.stops().any(|stop| stop.as_bytes().starts_with(&self.held.as_bytes()[at..]));
        let longest = self.stops().map(str::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = (from..self.held.len()).find(|at| self.held.is_char_boundary(*at) && begins(*at));
        let keep = keep.filter(|_| !self.found).unwrap_or(self.held.len());
        self.held.drain(..keep).collect()
    }

    /// All that is left.
    fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::Stops;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut stops = Stops::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            stops.push(piece);
            out.push(stops.ready());
        }
        (out, stops.rest(), stops.found)
    }

    #[test]
    fn a_stop_text_may_span_pieces() {
        let (out, rest, found) = run(&["\n\nEnd"], &["one\n", "two\n", "\nE", "nd of", "more"]);
        assert_eq!(out, ["one", "\ntwo", "", "", ""]);
        assert_eq!((rest.as_str(), found), ("", true));
    }

    #[test]
    fn what_only_began_like_one_comes_out() {
        let (out, rest, found) = run(&["abac"], &["ab", "ab", "a", "x", "aba"]);
        assert_eq!(out, ["", "ab", "", "abax", ""]);
        assert_eq!((rest.as_str(), found), ("aba", false));
    }

    #[test]
    fn the_earliest_wins_and_multibyte_characters_stay_whole() {
        let (out, _, found) = run(&["ö!", "é"], &["größ", "er öé", "!"]);
        assert_eq!((out.concat().as_str(), found), ("größer ö", true));
        let (out, rest, found) = run(&["öö"], &["xö", "é"]);
        assert_eq!((out.concat().as_str(), rest.as_str(), found), ("xöé", "", false));
    }

    #[test]
    fn without_stop_texts_nothing_is_held() {
        let (out, rest, found) = run(&[""], &["a", "b"]);
        assert_eq!(out, ["a", "b"]);
        assert_eq!((rest.as_str(), found), ("", false));
    }
}
