//! From what is typed to what the model answers.

use core::fmt::{self, Write};
use core::time::Duration;

use elapid_core::format::data::{DataError, Generation, RoleTable};
use elapid_core::kernels::{SsmState, Team, detect};
use elapid_core::model::{Rows, Scratch, ScratchSize, Session, State, StateSize, StepError};
use elapid_core::sample::{SampleError, Sampler};
use elapid_core::source::{Fault, LayerSource, SourceError};
use elapid_core::tokenizer::{Decoder, EncodeOptions, Tokenizer, TokenizerError};
use elapid_pi_bare::arena::{Arena, OutOfMemory};
use elapid_pi_bare::console::Settings;
use elapid_pi_bare::storage::Model;

use crate::arch;
use crate::board;
use crate::terminal::Terminal;

/// Tokens that pass a layer together, where memory allows.
const CHUNK: usize = 32;
/// Tokens of a prompt, and of a text that is generated, whose numbers are kept.
const MOST_TOKENS: usize = 8192;
/// Memory that the tokenizer works in: enough for words of some thousand bytes.
const SCRATCH: usize = 64 << 10;
/// Tokens that the repetition penalty looks back at.
const PENALTY_WINDOW: usize = 256;

/// Why there is no answer.
#[derive(Debug)]
pub enum TalkError {
    Step(StepError),
    Sample(SampleError),
    Tokenizer(TokenizerError),
    /// The prompt has more tokens than are kept.
    Long,
    /// Ctrl-C, while the prompt was read.
    Interrupted,
}

impl From<StepError> for TalkError {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

impl From<TokenizerError> for TalkError {
    fn from(error: TokenizerError) -> Self {
        Self::Tokenizer(error)
    }
}

impl From<SampleError> for TalkError {
    fn from(error: SampleError) -> Self {
        Self::Sample(error)
    }
}

impl fmt::Display for TalkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(StepError::Source(error @ SourceError { fault: Fault::Storage(code), .. })) => {
                write!(f, "block {} of section {}: ", error.block, error.section)?;
                match board::Fault::from_code(*code) {
                    Some(fault) => fault.fmt(f),
                    None => error.fmt(f),
                }
            }
            Self::Step(error) => error.fmt(f),
            Self::Sample(error) => error.fmt(f),
            Self::Tokenizer(error) => error.fmt(f),
            Self::Long => write!(f, "the text has more than {MOST_TOKENS} tokens: give a shorter one"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// Why a model can't be talked to.
#[derive(Debug)]
pub enum OpenError {
    Memory(OutOfMemory),
    Data(DataError),
    Tokenizer(TokenizerError),
    Step(StepError),
    NoTokenizer,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => error.fmt(f),
            Self::Data(error) => error.fmt(f),
            Self::Tokenizer(error) => error.fmt(f),
            Self::Step(error) => error.fmt(f),
            Self::NoTokenizer => f.write_str("the model has no tokenizer: pack it again with one"),
        }
    }
}

/// All memory of a sequence but its weights.
pub struct Memory<'a> {
    conv: &'a mut [f32],
    ssm: &'a mut [f32],
    undo_conv: &'a mut [f32],
    undo_ssm: &'a mut [f32],
    floats: &'a mut [f32],
    ints: &'a mut [i8],
    scales: &'a mut [elapid_core::kernels::Scale],
    logits: &'a mut [f32],
    /// Of the prompt, then of the text.
    tokens: &'a mut [u32],
    scratch: &'a mut [u8],
    chunk: usize,
}

impl<'a> Memory<'a> {
    /// Takes what a model needs.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn take(model: &Model<'_>, arena: &mut Arena<'a>) -> Result<Self, OutOfMemory> {
        let config = model.layout().config();
        let (all, one) = (StateSize::of(config, config.n_layer as usize), StateSize::of(config, 1));
        let fits = |chunk: &usize| ScratchSize::of(config, *chunk).bytes() as u64 <= arena.largest() / 8;
        let chunk = [CHUNK, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        let scratch = ScratchSize::of(config, chunk);
        Ok(Self {
            conv: arena.take("the state", all.conv, 0.0)?,
            ssm: arena.take("the state", all.ssm, 0.0)?,
            undo_conv: arena.take("the state", one.conv, 0.0)?,
            undo_ssm: arena.take("the state", one.ssm, 0.0)?,
            floats: arena.take("the working memory of a step", scratch.floats, 0.0)?,
            ints: arena.take("the working memory of a step", scratch.ints, 0)?,
            scales: arena.take("the working memory of a step", scratch.scales, Default::default())?,
            logits: arena.take("the logits", config.padded_vocab() as usize, 0.0)?,
            tokens: arena.take("the tokens", 2 * MOST_TOKENS, 0)?,
            scratch: arena.take("the tokenizer's work", SCRATCH, 0)?,
            chunk,
        })
    }
}

/// What a generation did.
pub struct Generated<'t> {
    pub prompt: &'t [u32],
    pub text: &'t [u32],
    pub prompt_time: Duration,
    pub text_time: Duration,
    pub seed: u64,
    /// With `/check`, the CRC-32 of all logits that tokens were chosen from, as little-endian f32, `[vocab]` for each token.
    pub logits: u32,
    /// Why it ended before its length, if it did.
    pub end: &'static str,
}

/// A model that can be talked to.
pub struct Talk<'m, 's> {
    model: elapid_core::model::Model<'m>,
    session: Session<'m>,
    source: &'s mut dyn LayerSource,
    tokenizer: Tokenizer<'m>,
    roles: Option<RoleTable<'m>>,
    generation: Option<Generation<'m>>,
    logits: &'m mut [f32],
    tokens: &'m mut [u32],
    scratch: &'m mut [u8],
    chunk: usize,
    /// Whether a chat has begun, whose next message goes on.
    begun: bool,
}

impl<'m, 's> Talk<'m, 's> {
    /// A model in `memory`, computed by `team` with weights from `source`.
    ///
    /// # Errors
    /// What is wrong with the model's data.
    pub fn new(
        model: &'m Model<'m>,
        memory: Memory<'m>,
        source: &'s mut dyn LayerSource,
        team: &'m dyn Team,
    ) -> Result<Self, OpenError> {
        let vocab = model.layout().config().vocab;
        if model.tokenizer.is_empty() {
            return Err(OpenError::NoTokenizer);
        }
        let tokenizer = Tokenizer::parse(model.tokenizer).map_err(OpenError::Tokenizer)?;
        let some = |bytes: &'m [u8]| (!bytes.is_empty()).then_some(bytes);
        let roles = some(model.roles).map(RoleTable::parse).transpose().map_err(OpenError::Data)?;
        let generation = some(model.generation)
            .map(|bytes| Generation::parse(bytes, vocab))
            .transpose()
            .map_err(OpenError::Data)?;
        let computed = elapid_core::model::Model::float(model.layout(), detect(), team);
        let state = State { conv: memory.conv, ssm: SsmState::F32(memory.ssm) };
        let undo = State { conv: memory.undo_conv, ssm: SsmState::F32(memory.undo_ssm) };
        let scratch = Scratch { floats: memory.floats, ints: memory.ints, scales: memory.scales };
        let session = Session::new(&computed, state, undo, scratch).map_err(OpenError::Step)?;
        Ok(Self {
            model: computed,
            session,
            source,
            tokenizer,
            roles,
            generation,
            logits: memory.logits,
            tokens: memory.tokens,
            scratch: memory.scratch,
            chunk: memory.chunk,
            begun: false,
        })
    }

    /// Whether the model has a chat template that can be used here.
    pub fn can_chat(&self) -> bool {
        self.roles.is_some()
    }

    /// Begins a new sequence.
    pub fn forget(&mut self) {
        self.session.clear();
        self.begun = false;
    }

    /// Writes the model's continuation of `text` to the terminal, or its answer in a chat.
    ///
    /// # Errors
    /// What went wrong. The sequence is then forgotten.
    pub fn say(
        &mut self,
        text: &str,
        settings: &Settings,
        terminal: &mut Terminal,
    ) -> Result<Generated<'_>, TalkError> {
        let chat = settings.chat && self.roles.is_some();
        if !chat {
            self.forget();
        }
        let seed = settings.seed.unwrap_or_else(|| arch::now().as_micros() as u64 % 1_000_000_000);
        match self.generate(text, chat, seed, settings, terminal) {
            Ok((prompt, made, times, logits, end)) => {
                self.begun = chat;
                let (prompt, rest) = self.tokens.split_at(prompt);
                let text = &rest[..made];
                Ok(Generated { prompt, text, prompt_time: times[0], text_time: times[1], seed, logits, end })
            }
            Err(error) => {
                self.forget();
                Err(error)
            }
        }
    }

    /// The tokens of what is fed, at the start of `self.tokens`. Returns how many there are.
    fn encode(&mut self, text: &str, chat: bool) -> Result<usize, TalkError> {
        let mut count = 0;
        let Self { tokenizer, tokens, scratch, roles, .. } = self;
        let mut long = false;
        let mut add =
            |text: &str, options: EncodeOptions| {
                tokenizer.encode(text, options, scratch, &mut |token| match tokens[..MOST_TOKENS]
                    .get_mut(count)
                {
                    Some(place) => {
                        *place = token;
                        count += 1;
                    }
                    None => long = true,
                })
            };
        match roles {
            Some(roles) if chat => {
                // What the template says may be special tokens; what a user types is text.
                let template = EncodeOptions { add_special: false, parse_special: true };
                let typed = EncodeOptions { add_special: false, parse_special: false };
                // The answer before is ended as the template has it: the token that ended it was not fed.
                add(if self.begun { roles.assistant.suffix } else { roles.start }, template)?;
                add(roles.user.prefix, template)?;
                add(text, typed)?;
                add(roles.user.suffix, template)?;
                add(roles.generation, template)?;
            }
            _ => add(text, EncodeOptions::default())?,
        }
        if long { Err(TalkError::Long) } else { Ok(count) }
    }

    /// Feeds tokens `range` of `self.tokens`, in chunks; between layers it looks for Ctrl-C. A step that Ctrl-C ended before is
    /// finished first.
    fn feed(&mut self, range: core::ops::Range<usize>, terminal: &mut Terminal) -> Result<(), TalkError> {
        if self.session.suspended_at().is_some() {
            advance(&self.model, &mut self.session, self.source, terminal)?;
        }
        for chunk in self.tokens[range].chunks(self.chunk) {
            self.model.begin(&mut self.session, self.source, chunk)?;
            advance(&self.model, &mut self.session, self.source, terminal)?;
        }
        Ok(())
    }

    #[allow(clippy::type_complexity)]
    fn generate(
        &mut self,
        text: &str,
        chat: bool,
        seed: u64,
        settings: &Settings,
        terminal: &mut Terminal,
    ) -> Result<(usize, usize, [Duration; 2], u32, &'static str), TalkError> {
        let mut sampler = Sampler::new(settings.sampling, seed)?;
        let prompt = self.encode(text, chat)?;
        let vocab = self.model.config().vocab as usize;
        let start = arch::now();
        self.feed(0..prompt, terminal)?;
        let read = arch::now();

        let mut decoder = Decoder::new().skip_special(true);
        let mut checksum = crc32fast::Hasher::new();
        let mut made = 0;
        let end = loop {
            self.model.logits(&mut self.session, self.source, Rows::Last, self.logits)?;
            if settings.check {
                add(&mut checksum, &self.logits[..vocab]);
            }
            let known = prompt + made;
            let history = &self.tokens[known.saturating_sub(PENALTY_WINDOW)..known];
            let logits = &mut self.logits[..vocab];
            self.tokenizer.mask(logits);
            let token = sampler.sample(logits, history)?;
            if self.generation.as_ref().is_some_and(|defaults| defaults.eos.contains(token)) {
                break ", the model ended the text";
            }
            // What was chosen has text: the others are masked. The console can't fail.
            let _ = decoder.push(&self.tokenizer, token, &mut |text| {
                let _ = terminal.write_str(text);
            });
            self.tokens[known] = token;
            made += 1;
            if made >= settings.n as usize {
                break "";
            }
            if made == MOST_TOKENS {
                break ", as long as a text can be here";
            }
            if terminal.interrupted() {
                break ", interrupted";
            }
            match self.feed(known..known + 1, terminal) {
                // The token is fed to its end when the chat goes on.
                Err(TalkError::Interrupted) => break ", interrupted",
                fed => fed?,
            }
        };
        decoder.finish(&mut |text| {
            let _ = terminal.write_str(text);
        });
        let times = [read.saturating_sub(start), arch::now().saturating_sub(read)];
        Ok((prompt, made, times, checksum.finalize(), end))
    }
}

/// Lets a step's tokens pass the layers that are left; between layers it looks for Ctrl-C.
fn advance(
    model: &elapid_core::model::Model<'_>,
    session: &mut Session<'_>,
    source: &mut dyn LayerSource,
    terminal: &mut Terminal,
) -> Result<(), TalkError> {
    while model.advance(session, source)? {
        if terminal.interrupted() {
            return Err(TalkError::Interrupted);
        }
    }
    Ok(())
}

/// Adds floats to a checksum, as little-endian bytes, some at once: a call costs more than what it does for four bytes.
fn add(checksum: &mut crc32fast::Hasher, floats: &[f32]) {
    for some in floats.chunks(64) {
        let mut bytes = [0; 4 * 64];
        for (to, float) in bytes.as_chunks_mut().0.iter_mut().zip(some) {
            *to = float.to_le_bytes();
        }
        checksum.update(&bytes[..4 * some.len()]);
    }
}
