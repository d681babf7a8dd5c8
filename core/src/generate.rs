//! The loop from a prompt to a text, as a state machine. Its driver asks it what to do next.
//!
//! ```
//! use elapid_core::generate::{End, Generation, Next, Rules};
//! use elapid_core::sample::{SampleError, Settings};
//! # struct Session;
//! # impl Session {
//! #     fn feed(&mut self, tokens: &[u32]) -> usize { tokens.len() }
//! #     fn logits(&mut self) -> &mut [f32] { &mut [] }
//! # }
//!
//! fn write(session: &mut Session, rules: &impl Rules, prompt: &[u32]) -> Result<End, SampleError> {
//!     let mut generation = Generation::new(Settings::MODEL, 7, 256)?;
//!     generation.prompt(prompt);
//!     loop {
//!         match generation.next(prompt) {
//!             Next::Feed(tokens) => {
//!                 // The model takes as many of them as fit a chunk.
//!                 let count = session.feed(tokens);
//!                 generation.fed(count);
//!             }
//!             Next::Choose => {
//!                 generation.choose(rules, session.logits(), &mut |text| print!("{text}"))?;
//!             }
//!             Next::End(end) => return Ok(end),
//!         }
//!     }
//! }
//! ```
//!
//! The driver owns the model and does everything that waits: it checks for an interruption, feeds watchdogs, shows progress,
//! adds logits to a checksum. So the same loop works in an iterator, in a thread pool in which several sequences step together,
//! and on a microcontroller. Nothing here is generic over a model, so a program with both number paths contains this code
//! only once. [`Generation::choose`] gives text to a callback instead of returning it, because a token's text need not be
//! contiguous, and boards have no memory to join it in.
//!
//! The caller chooses the memory with two type parameters: one for the tokens that the repetition penalty looks back at, one for
//! the text that is held back because a stop text may begin with it. Both are empty by default and may be arrays,
//! vectors or borrowed slices.

mod prompt;
mod stops;

pub use prompt::{Prompt, PromptError};
pub use stops::held_bytes;

use crate::sample::{SampleError, Sampler, Settings};
use crate::tokenizer::{Decoder, Tokenizer};
use stops::Stops;

/// The meaning of tokens, and which tokens or texts end a text. The rules must not change while a text is generated.
pub trait Rules {
    /// The model's tokenizer.
    fn tokenizer(&self) -> &Tokenizer<'_>;

    /// Whether a token ends the text.
    fn is_end(&self, token: u32) -> bool;

    /// Stop texts: they end the text, whatever tokens they consist of; special tokens count too. Empty ones are ignored.
    fn stops(&self) -> impl Iterator<Item = &str> {
        core::iter::empty()
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The maximum number of tokens was reached.
    Length,
    /// The model ended the text.
    Eos,
    /// A stop text was found, or [`Generation::complete`] was called.
    Stop,
    /// [`Generation::interrupt`] was called.
    Interrupted,
}

/// The next task of the driver of a [`Generation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'t> {
    /// Feed the model with some or all of these tokens, from the first on, and call [`Generation::fed`].
    Feed(&'t [u32]),
    /// Call [`Generation::choose`] with the logits after the last token.
    Choose,
    /// Nothing: the text is complete.
    End(End),
}

/// A text that is being generated.
///
/// `H` is memory for the tokens that the repetition penalty looks back at, the prompt's included.
/// `B` is memory for text that is held back: [`held_bytes`] of the stop texts.
#[derive(Clone, Debug)]
pub struct Generation<H = [u32; 0], B = [u8; 0]> {
    sampler: Sampler,
    decoder: Decoder,
    stops: Stops<B>,
    history: H,
    /// Tokens in `history`, the newest last.
    known: usize,
    max_tokens: usize,
    tokens: usize,
    fed: usize,
    /// Tokens of the current piece of the prompt that were fed.
    read: usize,
    /// The token that was chosen last, until it is fed.
    chosen: Option<[u32; 1]>,
    end: Option<End>,
}

impl Generation {
    /// A text of at most `max_tokens` tokens whose choices follow from `seed`, without a repetition penalty and stop texts.
    ///
    /// # Errors
    /// [`SampleError::Setting`] if a setting is out of its range.
    pub fn new(settings: Settings, seed: u64, max_tokens: usize) -> Result<Self, SampleError> {
        Self::with_memory(settings, seed, max_tokens, [], [])
    }
}

impl<H, B> Generation<H, B>
where
    H: AsRef<[u32]> + AsMut<[u32]>,
    B: AsRef<[u8]> + AsMut<[u8]>,
{
    /// As [`Generation::new`], with memory for the repetition penalty and for text that is held back. Its contents don't matter.
    ///
    /// # Errors
    /// As [`Generation::new`].
    pub fn with_memory(
        settings: Settings,
        seed: u64,
        max_tokens: usize,
        history: H,
        held: B,
    ) -> Result<Self, SampleError> {
        Ok(Self::with_sampler(Sampler::new(settings, seed)?, max_tokens, history, held))
    }

    /// As [`Generation::with_memory`], with a sampler that may have been used before.
    pub fn with_sampler(sampler: Sampler, max_tokens: usize, history: H, held: B) -> Self {
        Self {
            sampler,
            decoder: Decoder::within_text(),
            stops: Stops::new(held),
            history,
            known: 0,
            max_tokens,
            tokens: 0,
            fed: 0,
            read: 0,
            chosen: None,
            end: None,
        }
    }

    /// The sampler that chooses the tokens, in its current state.
    #[must_use]
    pub const fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The token that was chosen last, if it has not been fed.
    #[must_use]
    pub fn chosen(&self) -> Option<u32> {
        self.chosen.map(|[token]| token)
    }

    /// Adds tokens that came before the prompt to those that the repetition penalty looks back at.
    pub fn look_back_at(&mut self, tokens: &[u32]) {
        let window = self.history.as_ref().len();
        let recent = tokens.get(tokens.len().saturating_sub(window)..).unwrap_or_default();
        recent.iter().for_each(|token| self.remember(*token));
    }

    /// Announces the prompt, or its next piece: [`Generation::next`] asks for it from now on. If a prompt does not fit the driver's
    /// buffer, announce it piece by piece, each when the piece before has been fed.
    ///
    /// Without a prompt the text continues from the model's current logits.
    pub fn prompt(&mut self, piece: &[u32]) {
        self.read = 0;
        self.look_back_at(piece);
    }

    /// What to do next. `prompt` is the piece that was given to [`Generation::prompt`] last.
    #[must_use]
    pub fn next<'t>(&'t self, prompt: &'t [u32]) -> Next<'t> {
        let unread = prompt.get(self.read..).unwrap_or_default();
        match (self.end, &self.chosen) {
            (Some(end), _) => Next::End(end),
            (None, Some(token)) => Next::Feed(token),
            (None, None) if !unread.is_empty() => Next::Feed(unread),
            (None, None) if self.max_tokens == 0 => Next::End(End::Length),
            (None, None) => Next::Choose,
        }
    }

    /// Tells how many tokens of [`Next::Feed`] the model was fed. The tokens of an interrupted step count, because that step must be
    /// finished before the sequence can continue.
    pub fn fed(&mut self, count: usize) {
        self.fed += count;
        if self.chosen.is_none() {
            self.read += count;
        } else if count > 0 {
            self.chosen = None;
        }
    }

    /// Chooses a token by the logits `[vocab]` after the last one, and gives `sink` the text that is certain: complete characters
    /// that can't belong to a stop text. Special tokens are searched for stop texts, but are not part of the text.
    ///
    /// Ids without a token are never chosen. The logits are overwritten. Returns the token, or `None` if it ends the text and is
    /// not part of it.
    ///
    /// # Errors
    /// Those of [`Sampler::sample`].
    pub fn choose<R: Rules>(
        &mut self,
        rules: &R,
        logits: &mut [f32],
        sink: &mut dyn FnMut(&str),
    ) -> Result<Option<u32>, SampleError> {
        let tokenizer = rules.tokenizer();
        tokenizer.mask(logits);
        let history = self.history.as_ref().get(..self.known).unwrap_or_default();
        let token = self.sampler.sample(logits, history)?;
        if rules.is_end(token) {
            self.finish(End::Eos, rules, sink);
            return Ok(None);
        }
        self.tokens += 1;
        self.remember(token);
        self.chosen = Some([token]);
        let Self { decoder, stops, .. } = self;
        // The token has text: ids without text are masked.
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        if tokenizer.is_special(token) {
            for chunk in bytes.utf8_chunks() {
                stops.push(rules, chunk.valid(), false, sink);
                if !chunk.invalid().is_empty() {
                    stops.push(rules, "\u{fffd}", false, sink);
                }
            }
        } else {
            // An id without text gives none.
            let _ = decoder.push(tokenizer, token, &mut |text| stops.push(rules, text, true, sink));
        }
        if self.stops.found() {
            self.finish(End::Stop, rules, sink);
        } else if self.tokens >= self.max_tokens {
            self.finish(End::Length, rules, sink);
        }
        Ok(Some(token))
    }

    /// Ends the text here, and gives `sink` the text that was held back.
    pub fn interrupt<R: Rules>(&mut self, rules: &R, sink: &mut dyn FnMut(&str)) {
        if self.end.is_none() {
            self.finish(End::Interrupted, rules, sink);
        }
    }

    /// Ends the text here because nothing can follow, also where the limit has just ended it. Gives `sink` the text that was held back.
    pub fn complete<R: Rules>(&mut self, rules: &R, sink: &mut dyn FnMut(&str)) {
        if self.end.is_none() {
            self.finish(End::Stop, rules, sink);
        }
        self.end = Some(End::Stop);
    }

    /// The number of chosen tokens, without the one that ended the text. If a limit or a stop text ended it, the last token has not
    /// been fed; if an end token or an interruption within a token ended it, it has ([`Generation::total_fed`]).
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// The number of tokens of prompt and text that the model was fed.
    #[must_use]
    pub const fn total_fed(&self) -> usize {
        self.fed
    }

    // Not inlined at each of its calls: code size matters on boards.
    #[inline(never)]
    fn finish<R: Rules>(&mut self, end: End, rules: &R, sink: &mut dyn FnMut(&str)) {
        self.end = Some(end);
        let Self { decoder, stops, .. } = self;
        decoder.finish(&mut |text| stops.push(rules, text, true, sink));
        stops.rest(sink);
    }

    /// Adds a token to the history, and drops the oldest one if there is no room.
    fn remember(&mut self, token: u32) {
        let history = self.history.as_mut();
        if self.known == history.len() && self.known > 0 {
            history.copy_within(1.., 0);
            self.known -= 1;
        }
        if let Some(place) = history.get_mut(self.known) {
            *place = token;
            self.known += 1;
        }
    }
}

#[cfg(test)]
mod tests;
