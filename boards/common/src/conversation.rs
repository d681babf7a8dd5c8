//! Generates the text that follows a typed line.

use elapid_core::generate::{End, Generation, Next, Prompt};
use elapid_core::tokenizer::EncodeOptions;

use crate::command::Settings;
use crate::model::Text;
use crate::report::{Checksum, Report};
use crate::{Engine, Error, Place, Platform, say};

/// Tokens that the repetition penalty looks back at, and that a text's speed is measured over.
pub const WINDOW: usize = 256;

/// The memory of a conversation. Its contents don't matter.
#[derive(Debug)]
pub struct Buffers<'b> {
    /// The tokens of a prompt: as long as one can be.
    pub prompt: &'b mut [u32],
    /// Generated tokens: those that a report lists, where a text has more.
    pub tokens: &'b mut [u32],
    /// The last tokens: those that the repetition penalty looks back at.
    pub recent: &'b mut [u32],
    /// Tokens a second, for each of the last tokens.
    pub rates: &'b mut [f32],
    /// What the tokenizer works in, see [`elapid_core::tokenizer::Tokenizer::scratch_for`].
    pub scratch: &'b mut [u8],
}

/// A model that is talked to.
#[allow(missing_debug_implementations, reason = "an engine need not have one")]
pub struct Conversation<'c> {
    text: &'c Text<'c>,
    engine: &'c mut dyn Engine,
    buffers: Buffers<'c>,
    /// Whether a chat has begun, whose next message goes on.
    begun: bool,
}

impl<'c> Conversation<'c> {
    /// A conversation that has not begun.
    #[must_use]
    pub const fn new(text: &'c Text<'c>, engine: &'c mut dyn Engine, buffers: Buffers<'c>) -> Self {
        Self { text, engine, buffers, begun: false }
    }

    /// A conversation over an engine that stands where another one stood, in which a chat has begun or not.
    #[must_use]
    pub fn resumed(self, begun: bool) -> Self {
        Self { begun, ..self }
    }

    /// Whether a chat has begun, whose next message continues it.
    #[must_use]
    pub const fn begun(&self) -> bool {
        self.begun
    }

    /// Finishes what was interrupted, so that the sequence can be saved.
    ///
    /// # Errors
    /// What went wrong. The sequence is then forgotten.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.engine.settle().inspect_err(|_| self.forget())
    }

    /// Where the engine stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.engine.place()
    }

    /// Whether the model has a chat template that can be used here.
    #[must_use]
    pub const fn can_chat(&self) -> bool {
        self.text.roles.is_some()
    }

    /// Begins a new sequence.
    pub fn forget(&mut self) {
        self.engine.clear();
        self.begun = false;
    }

    /// Writes the model's continuation of `line` to the console, or its answer in a chat, and a line on it. `interrupted` is asked
    /// after every layer whether to end the text.
    ///
    /// # Errors
    /// What went wrong. The sequence is then forgotten.
    pub fn say(
        &mut self,
        line: &str,
        settings: &Settings,
        platform: &mut dyn Platform,
        interrupted: &mut dyn FnMut(&mut dyn Platform) -> bool,
    ) -> Result<(), Error> {
        if settings.check {
            say(platform, format_args!("--- text\n"));
        }
        let chats = settings.chat && self.can_chat();
        if !chats {
            self.forget();
        }
        let result =
            self.encode(line, chats).and_then(|count| self.generate(count, settings, platform, interrupted));
        match result {
            Ok(()) => self.begun = chats,
            Err(_) => self.forget(),
        }
        result
    }

    /// Encodes what is fed. Returns how many tokens it has.
    fn encode(&mut self, line: &str, chats: bool) -> Result<usize, Error> {
        let Self { text, buffers, begun, .. } = self;
        let mut prompt = Prompt::new(buffers.prompt, buffers.scratch);
        match &text.roles {
            Some(roles) if chats => prompt.add_message(&text.tokenizer, roles, !*begun, line)?,
            _ => prompt.add(&text.tokenizer, line, EncodeOptions::default())?,
        }
        Ok(prompt.finish().len())
    }

    /// Generates after the first `count` tokens of the prompt's buffer.
    fn generate(
        &mut self,
        count: usize,
        settings: &Settings,
        platform: &mut dyn Platform,
        interrupted: &mut dyn FnMut(&mut dyn Platform) -> bool,
    ) -> Result<(), Error> {
        let Self { text, engine, buffers, .. } = self;
        let Buffers { prompt, tokens, recent, rates, .. } = buffers;
        let prompt = prompt.get(..count).unwrap_or_default();
        let seed = settings.seed.unwrap_or_else(|| platform.ticks() % 1_000_000_000);
        let n = settings.n as usize;
        let mut generation = Generation::with_memory(settings.sampling, seed, n, &mut **recent, [])?;
        generation.prompt(prompt);
        let mut logits_sum = Checksum::default();
        let (start, mut read, mut last, mut step, mut intervals) = (platform.ticks(), 0, 0, 0, 0usize);
        let end = loop {
            let before = platform.ticks();
            let in_text = generation.tokens() > 0;
            match generation.next(prompt) {
                Next::Feed(tokens) => {
                    let fed = match in_text && interrupted(platform) {
                        true => None,
                        false => engine.feed(tokens, &mut || interrupted(platform))?,
                    };
                    match fed {
                        Some(fed) => generation.fed(fed),
                        // The rest of a token's step is done when the chat goes on.
                        None if in_text => {
                            generation.interrupt(*text, &mut |piece| say(platform, format_args!("{piece}")));
                        }
                        None => return Err(Error::Interrupted),
                    }
                }
                Next::Choose => {
                    let logits = engine.logits()?;
                    let computed = platform.ticks();
                    step += if in_text { computed - before } else { 0 };
                    if settings.check {
                        logits_sum.add(logits);
                    }
                    let sink = &mut |piece: &str| say(platform, format_args!("{piece}"));
                    if let Some(token) = generation.choose(*text, logits, sink)?
                        && let Some(place) = tokens.get_mut(generation.tokens() - 1)
                    {
                        *place = token;
                    }
                    let now = platform.ticks();
                    if !in_text {
                        read = before;
                    } else if let Some(at) = intervals.checked_rem(rates.len())
                        && let Some(rate) = rates.get_mut(at)
                    {
                        *rate = platform.ticks_a_second() as f32 / (now - last).max(1) as f32;
                        intervals += 1;
                    }
                    last = now;
                    continue;
                }
                Next::End(end) => break end,
            }
            // The prompt's blocks were checked as they were first read: what is measured here is the step alone.
            step += if in_text { platform.ticks() - before } else { 0 };
        };
        let made = generation.tokens();
        let report = Report {
            prompt,
            tokens: tokens.get(..made).unwrap_or(tokens),
            made,
            logits: logits_sum.finish(),
            step: step.checked_div(made.saturating_sub(1) as u64),
            prompt_ticks: read.saturating_sub(start),
            ticks: platform.ticks() - start,
            rates: rates.get(..intervals).unwrap_or(rates),
            seed,
            end: match end {
                End::Length => "",
                End::Eos => ", the model ended the text",
                End::Stop => ", ended by a stop text",
                End::Interrupted => ", interrupted",
                _ => ", ended",
            },
        };
        if settings.check {
            report.for_tests(platform);
        } else {
            report.for_people(platform);
        }
        Ok(())
    }
}
