//! From a prompt to text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid_core::sample::{Sampler, Settings};
use elapid_core::tokenizer::{Decoder, Tokenizer};

use crate::Error;
use crate::model::Model;
use crate::session::{Progress, Sequence, Session};
use crate::stops::Stops;

/// Tokens that the repetition penalty looks back at.
const PENALTY_WINDOW: usize = 256;

/// How a text is generated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// Tokens to generate at most. Default: 256.
    pub max_tokens: usize,
    /// How tokens are chosen. Default: from the model's own distribution.
    pub settings: Settings,
    /// What the choices follow from: equal seeds give equal texts, on every machine. Default: 0.
    pub seed: u64,
    /// Tokens that end the text; they are no part of it. Default: those that the model names.
    pub eos: Option<Vec<u32>>,
    /// Texts that end the text, whatever tokens they come in, special ones included; they are no part of it. Default: none.
    pub stop: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_tokens: 256, settings: Settings::MODEL, seed: 0, eos: None, stop: Vec::new() }
    }
}

impl GenerateOptions {
    /// Sets [`GenerateOptions::max_tokens`].
    #[must_use]
    pub fn max_tokens(self, max_tokens: usize) -> Self {
        Self { max_tokens, ..self }
    }
    /// Sets [`GenerateOptions::settings`].
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }
    /// Sets [`GenerateOptions::seed`].
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
    /// Sets [`GenerateOptions::eos`].
    #[must_use]
    pub fn eos(self, tokens: impl Into<Vec<u32>>) -> Self {
        Self { eos: Some(tokens.into()), ..self }
    }
    /// Adds a text to [`GenerateOptions::stop`].
    #[must_use]
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(text.into());
        self
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// All tokens that were asked for are there.
    Length,
    /// The model ended the text.
    Eos,
    /// A stop text came.
    Stop,
    /// The caller wanted no more.
    Interrupted,
}

/// What a generation has done.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Generated {
    /// Tokens generated, the one that ended the text not counted.
    pub tokens: usize,
    /// Tokens of the prompt, and after them of the text, that the session has been fed. Those of a step that was interrupted
    /// count: the next generation finishes it.
    pub fed: usize,
    /// Time until the prompt was read.
    pub prompt_time: Duration,
    /// Time after that.
    pub time: Duration,
    /// Why it ended; [`None`] if it has not.
    pub end: Option<End>,
}

/// A piece of a text as it is generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Complete characters that can't belong to a stop text. The last piece may have none.
    pub text: String,
    /// The tokens that were generated since the last piece.
    pub tokens: Vec<u32>,
}

/// What happens in a generation, see [`Generation::run`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'e> {
    /// How far the prompt has been read, after every layer.
    Prompt(Progress),
    /// A token was chosen.
    Token(u32),
    /// Complete characters that can't belong to a stop text.
    Text(&'e str),
    /// How far a chosen token has come, after every layer.
    Layer(Progress),
}

/// What is told of events; it breaks to interrupt the generation.
type Listen<'l> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'l;

/// A text being made after a prompt: an iterator of its pieces. [`Generation::run`] is the same with a callback, which can
/// interrupt it within a token.
///
/// A token is fed when the one after it is asked for. So the last token that was chosen has not been fed, unless the generation was
/// interrupted within it: [`Generated::fed`] says where the session stands.
pub struct Generation<'s> {
    model: &'s Model,
    sequence: &'s mut Sequence,
    tokenizer: Tokenizer<'s>,
    prompt: Vec<u32>,
    max_tokens: usize,
    eos: Vec<u32>,
    sampler: Sampler,
    decoder: Decoder,
    stops: Stops,
    /// The last tokens that were fed.
    history: Vec<u32>,
    next: Next,
    done: Generated,
    /// When the prompt was begun, then when it was read.
    start: Instant,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Next {
    Prompt,
    /// Feed a token.
    Feed(u32),
    Nothing,
}

impl std::fmt::Debug for Generation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Session {
    /// Generates text after `prompt`, which goes on from what the session was fed before; a step that was interrupted is
    /// finished first. Nothing is computed before the first piece is asked for.
    ///
    /// # Errors
    /// A setting that is out of its range, and what [`Model::tokenizer`] and [`Model::generation`] return.
    pub fn generate(&mut self, prompt: &[u32], options: &GenerateOptions) -> Result<Generation<'_>, Error> {
        let Self { sequence, lease } = self;
        let model = lease.model();
        let eos = match &options.eos {
            Some(eos) => eos.clone(),
            None => model.generation()?.map_or(Vec::new(), |defaults| defaults.eos.iter().collect()),
        };
        let sampler = Sampler::new(options.settings, options.seed);
        let zero = Duration::ZERO;
        Ok(Generation {
            model,
            sequence,
            tokenizer: model.tokenizer()?,
            prompt: prompt.to_vec(),
            max_tokens: options.max_tokens,
            eos,
            sampler: sampler.map_err(|cause| Error::Sample { cause })?,
            decoder: Decoder::new(),
            stops: Stops::new(&options.stop),
            history: prompt[prompt.len().saturating_sub(PENALTY_WINDOW)..].to_vec(),
            next: Next::Prompt,
            done: Generated { tokens: 0, fed: 0, prompt_time: zero, time: zero, end: None },
            start: Instant::now(),
        })
    }
}

impl Generation<'_> {
    /// What has been done so far.
    #[must_use]
    pub fn generated(&self) -> Generated {
        match (self.next, self.done.end) {
            (Next::Feed(_), None) => Generated { time: self.start.elapsed(), ..self.done },
            _ => self.done,
        }
    }

    /// Generates all that is left, and tells `each` of every event; [`ControlFlow::Break`] after any but a text interrupts it.
    /// What was made until then is told whole.
    ///
    /// # Errors
    /// An empty prompt, what [`Session::feed`] returns, and what `each` returns, which ends it at once.
    pub fn run<E: From<Error>>(
        mut self,
        mut each: impl FnMut(Event<'_>) -> Result<ControlFlow<()>, E>,
    ) -> Result<Generated, E> {
        let mut failed = None;
        while !matches!(self.next, Next::Nothing) {
            let more = self.advance(&mut |event| {
                if failed.is_some() {
                    return ControlFlow::Break(());
                }
                each(event).unwrap_or_else(|error| {
                    failed = Some(error);
                    ControlFlow::Break(())
                })
            });
            if let Some(error) = failed {
                return Err(error);
            }
            more?;
        }
        Ok(self.done)
    }

    /// Reads the prompt, or feeds the last token; then chooses one.
    fn advance(&mut self, each: &mut Listen<'_>) -> Result<(), Error> {
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        let end = match next {
            Next::Nothing => return Ok(()),
            Next::Prompt => {
                self.start = Instant::now();
                let read = self.read(each);
                self.done.prompt_time = self.start.elapsed();
                self.start = Instant::now();
                match read {
                    Ok(()) if self.max_tokens == 0 => Some(End::Length),
                    Err(Error::Interrupted) => Some(End::Interrupted),
                    read => read.map(|()| None)?,
                }
            }
            Next::Feed(token) => {
                let mut watch = |progress| each(Event::Layer(progress));
                let outcome = self.sequence.feed(self.model, &[token], &mut watch);
                self.done.fed += self.sequence.taken(self.model)?;
                match outcome {
                    Err(Error::Interrupted) => Some(End::Interrupted),
                    outcome => outcome.map(|()| None)?,
                }
            }
        };
        let end = match end {
            None => {
                if let Next::Feed(token) = next {
                    if self.history.len() == PENALTY_WINDOW {
                        self.history.remove(0);
                    }
                    self.history.push(token);
                }
                self.choose(each)?
            }
            end => end,
        };
        if end.is_some() {
            self.decoder.finish(&mut |text| self.stops.push(text, true));
            let rest = self.stops.rest();
            self.done.end = end;
            self.next = Next::Nothing;
            self.done.time = self.start.elapsed();
            tell(&rest, each);
        }
        Ok(())
    }

    /// Finishes a step that was interrupted, then feeds the prompt and counts how much of it was fed.
    fn read(&mut self, each: &mut Listen<'_>) -> Result<(), Error> {
        let mut watch = |progress| each(Event::Prompt(progress));
        self.sequence.resume(self.model, &mut watch)?;
        let outcome = self.sequence.feed(self.model, &self.prompt, &mut watch);
        self.done.fed = self.sequence.taken(self.model)?;
        outcome
    }

    /// Chooses a token, and tells its text.
    fn choose(&mut self, each: &mut Listen<'_>) -> Result<Option<End>, Error> {
        let Self { tokenizer, decoder, stops, .. } = self;
        let logits = self.sequence.logits(self.model)?;
        tokenizer.mask(logits);
        let token = self.sampler.sample(logits, &self.history).map_err(|cause| Error::Sample { cause })?;
        if self.eos.contains(&token) {
            return Ok(Some(End::Eos));
        }
        self.done.tokens += 1;
        if tokenizer.is_special(token) {
            let text = tokenizer.token_bytes(token).unwrap_or_default();
            stops.push(&String::from_utf8_lossy(text), false);
        } else {
            // The token has text: ids that have none are masked.
            let _ = decoder.push(tokenizer, token, &mut |text| stops.push(text, true));
        }
        let text = stops.ready();
        self.next = Next::Feed(token);
        tell(&text, each);
        let told = each(Event::Token(token));
        Ok(if self.stops.found {
            Some(End::Stop)
        } else if self.done.tokens >= self.max_tokens {
            Some(End::Length)
        } else if told.is_break() {
            Some(End::Interrupted)
        } else {
            None
        })
    }
}

/// Tells of a text, if there is any. Whoever breaks here is asked again after the token.
fn tell(text: &str, each: &mut Listen<'_>) {
    if !text.is_empty() {
        let _ = each(Event::Text(text));
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = Piece::default();
        while piece.text.is_empty() && !matches!(self.next, Next::Nothing) {
            let advanced = self.advance(&mut |event| {
                match event {
                    Event::Text(text) => piece.text.push_str(text),
                    Event::Token(token) => piece.tokens.push(token),
                    Event::Prompt(_) | Event::Layer(_) => {}
                }
                ControlFlow::Continue(())
            });
            if let Err(error) = advanced {
                return Some(Err(error));
            }
        }
        if piece == Piece::default() { None } else { Some(Ok(piece)) }
    }
}
