//! One sequence of tokens: its memory, and the steps over it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid_core::fixed;
use elapid_core::format::Config;
use elapid_core::kernels::LANES;
use elapid_core::model::{Rows, StateKind, StepError};
use elapid_core::source::SliceSource;

use crate::path::{Buffers, Steps, scratch_bytes, smaller_state, state_bytes};
use crate::residency::{Numbers, Source, Streamer, zeroed};
use crate::{Batch, Engine, Error, ReadBy};

/// Tokens of a chunk if nothing else is asked for: enough that a chunk's weights are read once for many tokens.
const CHUNK: usize = 256;
/// Bytes that the working memory of a chunk, or the logits of its tokens, may take if nothing else is asked for.
const CHUNK_BYTES: usize = 32 << 20;

/// How a sequence is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryOptions {
    /// How the recurrent state is kept. f16 halves it, and rounds it after every token.
    pub state: StateKind,
    /// Compute in integers, with a recurrent state of this kind; in floating point, with `state`, if left out. The model's
    /// matrices must be q8 or q4.
    pub fixed: Option<fixed::StateKind>,
    /// Tokens that pass a layer together; a good number for the model if left out. It changes no bit of the results.
    pub chunk: Option<usize>,
    /// Logits of every token will be wanted ([`Sequence::feed_each`]): their memory is planned and allocated beforehand.
    pub rows: bool,
    /// Bytes that the caller holds, such as a prompt: a cap is for all of the process.
    pub held: usize,
    /// Sequences that can step together, see [`Batch`](crate::Batch): at most 64, and in floating point only. 0 and 1 are one.
    pub sequences: usize,
}

/// The memory of one sequence: state, undo copy, working memory and logits. It outlives the sequences that use it, one
/// after the other.
#[derive(Debug)]
pub struct Memory {
    buffers: Buffers,
    logits: Vec<f32>,
    row: Vec<f32>,
    /// Logits of a chunk's tokens.
    all: Vec<f32>,
    /// What reads the weights, where they are streamed.
    streamer: Option<Streamer>,
    /// Blocks of the engine's file that were checked.
    checked: Vec<u32>,
    engine: u64,
    chunk: usize,
}

/// Zeros, or an error where the system has no memory for them.
pub(crate) fn zeros<T: Numbers>(what: &'static str, len: usize) -> Result<Vec<T>, Error> {
    let bytes = len.saturating_mul(size_of::<T>());
    zeroed(len).ok_or(Error::Memory { what, bytes, hint: "" })
}

/// Tokens of a chunk whose working memory stays within [`CHUNK_BYTES`], one at least.
pub(crate) fn default_chunk(config: &Config, options: &MemoryOptions) -> usize {
    let each = scratch_bytes(config, options, 1);
    (CHUNK_BYTES / each.max(1)).clamp(1, CHUNK)
}

/// Tokens of a chunk whose logits are wanted.
fn rows_chunk(chunk: usize, padded_vocab: usize) -> usize {
    chunk.min((CHUNK_BYTES / (4 * padded_vocab)).max(1))
}

/// Bytes of state and working memory that a sequence takes, weights not counted.
#[must_use]
pub fn memory_bytes(config: &Config, options: &MemoryOptions) -> usize {
    let chunk = options.chunk.unwrap_or_else(|| default_chunk(config, options)).max(1);
    let state = state_bytes(config, options, config.n_layer as usize);
    let undo = state_bytes(config, options, 1);
    let logits = options.sequences.max(1).saturating_mul(4 * config.padded_vocab() as usize);
    state.saturating_add(undo).saturating_add(scratch_bytes(config, options, chunk)).saturating_add(logits)
}

impl Memory {
    pub(crate) fn new(
        engine: &Engine,
        options: &MemoryOptions,
        streamer: Option<Streamer>,
    ) -> Result<Self, Error> {
        let layout = engine.layout();
        let config = layout.config();
        let chunk = options.chunk.unwrap_or_else(|| default_chunk(config, options)).max(1);
        let working = "the working memory of a step";
        let padded = config.padded_vocab() as usize;
        let (row, rows) = if options.rows { (padded, rows_chunk(chunk, padded) * padded) } else { (0, 0) };
        Ok(Self {
            buffers: Buffers::new(config, options, chunk).map_err(|error| {
                match (error, smaller_state(options)) {
                    (Error::Memory { what, bytes, .. }, Some((_, hint))) => {
                        Error::Memory { what, bytes, hint }
                    }
                    (error, _) => error,
                }
            })?,
            logits: zeros(working, options.sequences.max(1).saturating_mul(padded))?,
            row: zeros(working, if options.sequences > 1 { padded } else { row })?,
            all: zeros("logits", rows)?,
            streamer,
            checked: zeros(working, SliceSource::checked_words(layout))?,
            engine: engine.number(),
            chunk,
        })
    }

    /// How the weights are read, where they are streamed.
    #[must_use]
    pub fn read_by(&self) -> Option<ReadBy> {
        self.streamer.as_ref().map(Streamer::read_by)
    }

    /// Begins a new sequence of the engine that this memory was made by.
    ///
    /// # Errors
    /// [`Error::Step`] if it was made by another.
    pub fn sequence<'a>(&'a mut self, engine: &'a Engine) -> Result<Sequence<'a>, Error> {
        let Parts { steps, source, logits, row, all, chunk } = self.parts(engine)?;
        Ok(Sequence { engine, steps, source, logits, row, all, chunk, fed: 0, started: 0 })
    }

    /// Begins new sequences that can step together: as many as [`MemoryOptions::sequences`] says.
    ///
    /// # Errors
    /// As [`Memory::sequence`]; [`Error::FixedBatch`] in the fixed path.
    pub fn batch<'a>(&'a mut self, engine: &'a Engine) -> Result<Batch<'a>, Error> {
        Batch::new(engine, self.parts(engine)?)
    }

    /// What sequences of the engine are made of, with their state cleared.
    fn parts<'a>(&'a mut self, engine: &'a Engine) -> Result<Parts<'a>, Error> {
        if self.engine != engine.number() {
            return Err(engine.step_error(StepError::OtherModel));
        }
        let steps = self.buffers.steps(engine).map_err(|cause| engine.step_error(cause))?;
        let source = engine.source(&mut self.checked, self.streamer.as_mut())?;
        let (logits, row, all) = (&mut self.logits, &mut self.row, &mut self.all);
        Ok(Parts { steps, source, logits, row, all, chunk: self.chunk })
    }
}

/// What sequences are made of.
pub(crate) struct Parts<'a> {
    pub steps: Steps<'a>,
    pub source: Source<'a>,
    /// Logits of a token each, `[sequences][padded vocab]`.
    pub logits: &'a mut Vec<f32>,
    pub row: &'a mut Vec<f32>,
    pub all: &'a mut Vec<f32>,
    pub chunk: usize,
}

/// Row `t` of logits `[vocab/16][T][16]`.
pub(crate) fn row_of(panels: &[[f32; LANES]], tokens: usize, t: usize, row: &mut [f32]) {
    for (to, panel) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(panels.chunks_exact(tokens)) {
        *to = panel[t];
    }
}

/// How far a computation has come, in tokens times layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// What there is to do.
    pub total: u64,
    /// Bytes of weights that came from storage since it was begun; 0 where they are in memory.
    pub read: u64,
}

/// Told of progress after every layer of a chunk; [`ControlFlow::Break`] ends the computation.
pub type Watch<'w> = dyn FnMut(Progress) -> ControlFlow<()> + 'w;

/// Given the place of a token and the logits `[vocab]` after it; an error ends the computation.
pub type EachRow<'e> = dyn FnMut(usize, &[f32]) -> Result<(), Error> + 'e;

/// One sequence: tokens go in, logits come out.
pub struct Sequence<'a> {
    engine: &'a Engine,
    steps: Steps<'a>,
    source: Source<'a>,
    logits: &'a mut Vec<f32>,
    row: &'a mut Vec<f32>,
    all: &'a mut Vec<f32>,
    chunk: usize,
    /// Tokens of the last call that were fed.
    fed: usize,
    /// What the source had read when that call began.
    started: u64,
}

impl std::fmt::Debug for Sequence<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequence")
            .field("engine", self.engine)
            .field("chunk", &self.chunk)
            .finish_non_exhaustive()
    }
}

impl Sequence<'_> {
    /// Forgets everything, an interrupted computation too.
    pub fn clear(&mut self) {
        self.steps.clear();
    }

    /// Feeds tokens. Any number of them, in one call or many: the results are the same bits.
    ///
    /// # Errors
    /// [`Error::Step`]: a token that the model does not know (nothing was fed then), damaged weights, or a value that is
    /// not finite.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.feed_watched(tokens, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Sequence::feed`], telling `watch` how far it is.
    ///
    /// # Errors
    /// As [`Sequence::feed`], and [`Error::Interrupted`] if `watch` breaks: [`Sequence::resume`] goes on, or [`Sequence::clear`]
    /// gives it up.
    pub fn feed_watched(&mut self, tokens: &[u32], watch: &mut Watch<'_>) -> Result<(), Error> {
        self.begin(tokens)?;
        self.source.expect_bare((tokens.len() - 1) / self.chunk);
        let total = self.work(tokens.len());
        let mut done = 0;
        for chunk in tokens.chunks(self.chunk) {
            self.pass(chunk, &mut done, total, watch)?;
        }
        Ok(())
    }

    /// Goes on after an interruption, or after weights could not be read ([`Error::Storage`], or damage), from the layer where that
    /// was. Returns how many tokens of the call that failed have been fed when it succeeds: feed the others then.
    ///
    /// # Errors
    /// As [`Sequence::feed_watched`].
    pub fn resume(&mut self, watch: &mut Watch<'_>) -> Result<usize, Error> {
        let Some((layer, tokens)) = self.steps.suspended() else { return Ok(self.fed) };
        let (mut done, total) = (tokens as u64 * u64::from(layer), self.work(tokens));
        self.started = self.source.read_bytes();
        self.advance(tokens, &mut done, total, watch, Ok(true))?;
        Ok(self.fed)
    }

    /// Feeds tokens and calls `each` with the place and the logits `[vocab]` of every one.
    ///
    /// # Errors
    /// As [`Sequence::feed_watched`], and what `each` returns.
    pub fn feed_each(
        &mut self,
        tokens: &[u32],
        watch: &mut Watch<'_>,
        each: &mut EachRow<'_>,
    ) -> Result<(), Error> {
        self.begin(tokens)?;
        self.source.expect_bare(0);
        let (vocab, padded) =
            (self.engine.config().vocab as usize, self.engine.config().padded_vocab() as usize);
        let total = self.work(tokens.len());
        let (mut done, mut place) = (0, 0);
        let chunk = rows_chunk(self.chunk, padded).min(tokens.len());
        if self.all.len() < chunk * padded {
            *self.all = zeros("logits", chunk * padded)?;
        }
        self.row.resize(padded, 0.0);
        for tokens in tokens.chunks(chunk) {
            self.pass(tokens, &mut done, total, watch)?;
            let out = self.steps.logits(&mut self.source, Rows::All, &mut self.all[..padded * tokens.len()]);
            out.map_err(|cause| self.engine.step_error(cause))?;
            let panels = self.all[..padded * tokens.len()].as_chunks::<LANES>().0;
            for t in 0..tokens.len() {
                row_of(panels, tokens.len(), t, self.row);
                each(place, &self.row[..vocab])?;
                place += 1;
            }
        }
        Ok(())
    }

    /// The logits `[vocab]` after the last token, for the caller to use up. A vocabulary may be padded: mask ids without a token
    /// ([`Tokenizer::mask`](elapid_core::tokenizer::Tokenizer::mask)) before one is chosen.
    ///
    /// # Errors
    /// [`Error::Step`] if no token was fed, or as [`Sequence::feed`].
    pub fn logits(&mut self) -> Result<&mut [f32], Error> {
        let out = self.steps.logits(&mut self.source, Rows::Last, self.logits);
        out.map_err(|cause| self.engine.step_error(cause))?;
        Ok(&mut self.logits[..self.engine.config().vocab as usize])
    }

    /// Bytes of weights that came from storage since the memory was made; 0 where they are in memory.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.source.read_bytes()
    }

    /// Only reads the weights, as a token's computation would, for at least `time` or once through. Returns bytes that came from
    /// storage, and the time. Only between whole calls of the others; it changes no state.
    ///
    /// # Errors
    /// [`Error::Storage`], or damage.
    pub fn skim(&mut self, time: Duration) -> Result<(u64, Duration), Error> {
        let (start, before) = (Instant::now(), self.source.read_bytes());
        self.source.expect_bare(0);
        let skimmed = self.source.skim(self.engine.layout(), &mut || start.elapsed() < time);
        skimmed.map_err(|cause| self.engine.step_error(cause))?;
        Ok((self.source.read_bytes() - before, start.elapsed()))
    }

    /// Tokens of the last call that were fed, with those of a step that is suspended: [`Sequence::resume`] feeds them.
    pub(crate) fn taken(&self) -> usize {
        self.fed + self.steps.suspended().map_or(0, |(_, tokens)| tokens)
    }

    /// Begins a call.
    fn begin(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.check(tokens)?;
        self.fed = 0;
        self.started = self.source.read_bytes();
        Ok(())
    }

    /// Tokens times layers.
    fn work(&self, tokens: usize) -> u64 {
        tokens as u64 * u64::from(self.engine.config().n_layer)
    }

    /// Whether all tokens can be fed, so that a bad one is known by its place in all of them, before any is fed.
    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let vocab = self.engine.config().vocab;
        if self.steps.suspended().is_some() {
            return Err(self.engine.step_error(StepError::Suspended));
        }
        if tokens.is_empty() {
            return Err(self.engine.step_error(StepError::NoTokens));
        }
        match tokens.iter().position(|token| *token >= vocab) {
            Some(position) => {
                Err(self.engine.step_error(StepError::Token { position, token: tokens[position], vocab }))
            }
            None => Ok(()),
        }
    }

    /// One chunk through all layers.
    fn pass(
        &mut self,
        tokens: &[u32],
        done: &mut u64,
        total: u64,
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        self.source.begin_pass();
        let begun = self.steps.begin(&mut self.source, tokens).map(|()| true);
        self.advance(tokens.len(), done, total, watch, begun)
    }

    /// Lets `tokens` tokens pass the layers that are left.
    fn advance(
        &mut self,
        tokens: usize,
        done: &mut u64,
        total: u64,
        watch: &mut Watch<'_>,
        mut more: Result<bool, StepError>,
    ) -> Result<(), Error> {
        let Self { engine, steps, source, started, fed, .. } = self;
        while more.map_err(|cause| engine.step_error(cause))? {
            more = steps.advance(source);
            if let Ok(layers_left) = more {
                *fed += if layers_left { 0 } else { tokens };
                *done += tokens as u64;
                let read = source.read_bytes() - *started;
                if watch(Progress { done: *done, total, read }).is_break() {
                    return Err(Error::Interrupted);
                }
            }
        }
        Ok(())
    }
}
