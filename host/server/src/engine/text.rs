//! A text that is being generated: its sequence's tokens, the choice of the next one, and what its reader is told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use elapid::core::generate::{End, Generation, Next, Rules, held_bytes};
use elapid::core::sample::Sampler;
use elapid::{Model, PENALTY_WINDOW, TextRules};
use tokio::sync::mpsc::UnboundedSender;

use super::{Chosen, Event, Finished, Request};

/// Why a request failed.
pub(super) struct Failure(pub String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// A text that has a place in the batch.
pub(super) struct Text<'m> {
    pub request: Request,
    rules: TextRules<'m>,
    generation: Generation<Vec<u32>, Vec<u8>>,
    /// The tokens that the state has.
    pub fed: Vec<u32>,
    /// Tokens of the prompt that were cached.
    cached: usize,
    /// Log probabilities of the prompt's tokens.
    prompt: Vec<Chosen>,
    /// How often each token was generated, if a penalty asks for it.
    counts: HashMap<u32, u32>,
    /// Time in the queue.
    waited: Duration,
    pub began: Instant,
    /// When the prompt was read.
    read: Option<Instant>,
}

impl<'m> Text<'m> {
    /// A text after a prompt of which the state has the first `cached` tokens.
    pub(super) fn new(
        model: &'m Model,
        mut request: Request,
        cached: usize,
        since: Instant,
        began: Instant,
    ) -> Result<Self, Failure> {
        let rules = model.text_rules(request.eos.take(), std::mem::take(&mut request.stop))?;
        let sampler = Sampler::new(request.settings, request.seed)?;
        let held = vec![0; held_bytes(rules.stops())];
        let history = vec![0; if request.settings.repeat_penalty == 1.0 { 0 } else { PENALTY_WINDOW }];
        let mut generation = Generation::with_sampler(sampler, request.max_tokens, history, held);
        generation.prompt(&request.tokens);
        generation.fed(cached);
        let fed = request.tokens[..cached].to_vec();
        let (prompt, counts) = Default::default();
        let (waited, read) = (began - since, None);
        Ok(Self { request, rules, generation, fed, cached, prompt, counts, waited, began, read })
    }

    /// Tokens of the prompt that the state does not have.
    pub(super) fn unread(&self) -> usize {
        self.request.tokens.len().saturating_sub(self.fed.len())
    }

    /// The token that is fed next, once the prompt was read.
    pub(super) fn next_token(&self) -> Option<u32> {
        match self.generation.next(&self.request.tokens) {
            Next::Feed(&[token]) if self.unread() == 0 => Some(token),
            _ => None,
        }
    }

    /// Why the text is complete, if it is.
    pub(super) fn end(&self) -> Option<End> {
        match self.generation.next(&self.request.tokens) {
            Next::End(end) => Some(end),
            _ => None,
        }
    }

    /// Notes that the state has taken more tokens.
    pub(super) fn took(&mut self, tokens: &[u32]) {
        self.fed.extend(tokens);
        self.generation.fed(tokens.len());
    }

    /// Notes how likely the token at `place` of the prompt was by the logits before it.
    pub(super) fn note_prompt(&mut self, place: usize, logits: &[f32]) {
        if let Some(token) = self.request.tokens.get(place) {
            let mut logits = logits.to_vec();
            self.rules.tokenizer().mask(&mut logits);
            self.prompt.push(Chosen::new(&logits, *token, self.request.logprobs.unwrap_or(0)));
        }
    }

    /// Tells the reader that the prompt was read. True if a token is to be chosen by the logits after it.
    pub(super) fn has_read(&mut self) -> bool {
        self.read = Some(Instant::now());
        let prompt = std::mem::take(&mut self.prompt);
        tell(&self.request.events, Event::Read { cached: self.cached, prompt });
        self.generation.next(&self.request.tokens) == Next::Choose
    }

    /// Chooses the next token by the logits after the last one, and tells the reader.
    pub(super) fn choose(&mut self, logits: &mut [f32]) -> Result<(), Failure> {
        let Self { request, rules, generation, counts, .. } = self;
        rules.tokenizer().mask(logits);
        let unchanged = request.logprobs.map(|top| (top, logits.to_vec()));
        for (token, bias) in &request.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, count) in counts.iter() {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= *count as f32 * request.frequency_penalty + request.presence_penalty;
            }
        }
        if let Some(constraint) = &mut request.constraint {
            constraint.mask(logits)?;
        }
        let mut text = String::new();
        let Some(id) = generation.choose(rules, logits, &mut |piece| text.push_str(piece))? else {
            if !text.is_empty() {
                tell(&request.events, Event::Text { text, chosen: None });
            }
            return Ok(());
        };
        if request.frequency_penalty != 0.0 || request.presence_penalty != 0.0 {
            *counts.entry(id).or_default() += 1;
        }
        if let Some(constraint) = &mut request.constraint
            && constraint.advance(id)?
        {
            generation.complete(rules, &mut |piece| text.push_str(piece));
        }
        let chosen = unchanged.map(|(top, logits)| Chosen::new(&logits, id, top));
        tell(&request.events, Event::Text { text, chosen });
        Ok(())
    }

    /// Ends the text where it is.
    pub(super) fn interrupt(&mut self) {
        let mut text = String::new();
        self.generation.interrupt(&self.rules, &mut |piece| text.push_str(piece));
        if !text.is_empty() {
            tell(&self.request.events, Event::Text { text, chosen: None });
        }
    }

    /// Tells the reader that the text is complete.
    pub(super) fn finish(&self, end: End) {
        let read = self.read.unwrap_or(self.began);
        let finished = Finished {
            end,
            tokens: self.generation.tokens(),
            waited: self.waited,
            prompt_time: read - self.began,
            time: read.elapsed(),
        };
        tell(&self.request.events, Event::End(finished));
    }
}

/// Tells a reader. That it has left is noticed before the next step.
pub(super) fn tell(events: &UnboundedSender<Event>, event: Event) {
    let _ = events.send(event);
}
