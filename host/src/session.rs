//! One sequence of tokens: its memory, and the steps over it.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use elapid_core::kernels::LANES;
use elapid_core::model::{Position, Rows, StepError};
use elapid_core::source::SliceSource;

use crate::Error;
use crate::heap::zeros;
use crate::memory::{ReadBy, Source, Streamer};
use crate::model::{Lease, Model};
use crate::numbers::{Buffers, Numbers, Steps, WORKING};
use crate::options::{SessionOptions, rows_chunk};
use crate::past::{Past, Snapshot};
use crate::state::{Kept, Logits, Slot};

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

/// Tells a listener of a whole computation, where that is done in parts.
pub(crate) struct InParts<'a, 'w> {
    watch: &'a mut Watch<'w>,
    /// Of the whole, in tokens times layers.
    total: u64,
    /// Of the parts before this one, the same.
    done: u64,
    /// Bytes that were read for them.
    read: u64,
}

impl<'a, 'w> InParts<'a, 'w> {
    pub(crate) fn new(watch: &'a mut Watch<'w>, total: u64) -> Self {
        Self { watch, total, done: 0, read: 0 }
    }

    /// Runs a part, `work` tokens times layers, with what is to be told of its progress.
    pub(crate) fn part<T>(&mut self, work: u64, run: impl FnOnce(&mut Watch<'_>) -> T) -> T {
        let mut read = 0;
        let outcome = run(&mut |progress| {
            read = progress.read;
            let (done, read) = (self.done + progress.done, self.read + read);
            (self.watch)(Progress { done, total: self.total, read })
        });
        (self.done, self.read) = (self.done + work, self.read + read);
        outcome
    }
}

/// One sequence of a model: tokens go in, logits come out. It owns its state and working memory, and keeps the model open.
#[derive(Debug)]
pub struct Session {
    pub(crate) sequence: Sequence,
    pub(crate) past: Past,
    pub(crate) options: SessionOptions,
    // Dropped last: memory is given back when it is free.
    pub(crate) lease: Lease,
}

impl Model {
    /// A session, with an empty state. Under a cap, all that the plan says is allocated now, and reading begins.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough, [`Error::Cap`] and [`Error::Session`] as [`Model::plan`]; [`Error::Step`] where
    /// the fixed path does not take the model's types.
    pub fn session(&self, options: &SessionOptions) -> Result<Session, Error> {
        let options = SessionOptions { sequences: 1, ..*options };
        // What marks take is held by the caller, as a plan sees it.
        let planned = options.held(options.held.saturating_add(options.marks));
        let (lease, streamer, chunk) = self.lease(&planned)?;
        let past = Past::new(options.marks, options.mark_bytes(self.config()));
        Ok(Session { sequence: Sequence::new(self, &options, streamer, chunk)?, past, options, lease })
    }
}

impl Session {
    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.lease.model()
    }

    /// The numbers that it is computed with.
    #[must_use]
    pub fn numbers(&self) -> Numbers {
        self.options.numbers
    }

    /// How the weights are read, where they are streamed.
    #[must_use]
    pub fn read_by(&self) -> Option<ReadBy> {
        self.sequence.memory.streamer.as_ref().map(Streamer::read_by)
    }

    /// Forgets everything, an interrupted computation too: the next token is the first of a new sequence.
    pub fn clear(&mut self) {
        self.past.clear();
        self.sequence.stand_at(None);
        // The steps fail only if they failed when the session was made.
        if let Ok((mut steps, _)) = self.sequence.memory.take_up(self.lease.model()) {
            steps.clear();
        }
    }

    /// Feeds tokens. Any number of them, in one call or many: the results are the same bits.
    ///
    /// # Errors
    /// [`Error::Step`]: a token that the model does not know (nothing was fed then), damaged weights, or a value that is
    /// not finite.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.feed_watched(tokens, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Session::feed`], telling `watch` how far it is.
    ///
    /// # Errors
    /// As [`Session::feed`], and [`Error::Interrupted`] if `watch` breaks: [`Session::resume`] goes on, or [`Session::clear`]
    /// gives it up.
    pub fn feed_watched(&mut self, tokens: &[u32], watch: &mut Watch<'_>) -> Result<(), Error> {
        let Self { sequence, past, lease, .. } = self;
        feed(lease.model(), sequence, past, tokens, watch).1
    }

    /// Goes on after an interruption, or after weights could not be read ([`Error::Storage`], or damage), from the layer where that
    /// was. Returns how many tokens of the call that failed have been fed when it succeeds: feed the others then.
    ///
    /// # Errors
    /// As [`Session::feed_watched`].
    pub fn resume(&mut self, watch: &mut Watch<'_>) -> Result<usize, Error> {
        let fed = self.sequence.resume(self.lease.model(), watch)?;
        Ok(self.past.before + fed)
    }

    /// Feeds tokens and calls `each` with the place and the logits `[vocab]` of every one.
    ///
    /// # Errors
    /// As [`Session::feed_watched`], and what `each` returns.
    pub fn feed_each<E: From<Error>>(
        &mut self,
        tokens: &[u32],
        watch: &mut Watch<'_>,
        each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let fed = self.sequence.feed_each(self.lease.model(), 0, tokens, watch, each);
        self.past.take(0, tokens, self.sequence.taken());
        fed
    }

    /// The logits `[vocab]` after the last token, which the caller may overwrite. A vocabulary may be padded: mask ids without a token
    /// ([`Tokenizer::mask`](elapid_core::tokenizer::Tokenizer::mask)) before one is chosen.
    ///
    /// # Errors
    /// [`Error::Step`] if no token was fed, or as [`Session::feed`].
    pub fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.sequence.logits(self.lease.model())
    }

    /// Bytes of weights that came from storage since the session was made; 0 where they are in memory.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.sequence.memory.streamer.as_ref().map_or(0, Streamer::read_bytes)
    }

    /// Only reads the weights, as a token's computation would, for at least `time` or once through. Returns bytes that came from
    /// storage, and the time. Only between whole calls of the others; it changes no state.
    ///
    /// # Errors
    /// [`Error::Storage`], or damage.
    pub fn skim(&mut self, time: Duration) -> Result<(u64, Duration), Error> {
        let model = self.lease.model();
        let (_, mut source) = self.sequence.memory.take_up(model)?;
        let (start, before) = (Instant::now(), source.read_bytes());
        source.expect_bare(0);
        let skimmed = source.skim(model.layout(), &mut || start.elapsed() < time);
        skimmed.map_err(|cause| model.step_error(cause))?;
        Ok((source.read_bytes() - before, start.elapsed()))
    }
}

/// Feeds tokens, records them, and marks points on a long way. Returns how many of them the session has taken: those of a step that is
/// suspended count.
pub(crate) fn feed(
    model: &Model,
    sequence: &mut Sequence,
    past: &mut Past,
    tokens: &[u32],
    watch: &mut Watch<'_>,
) -> (usize, Result<(), Error>) {
    if let Err(error) = sequence.memory.check_ready(model) {
        return (0, Err(error));
    }
    (sequence.fed, past.before) = (0, 0);
    if let Err(error) = check_tokens(model, tokens) {
        return (0, Err(error));
    }
    let layers = u64::from(model.config().n_layer);
    let mut parts = InParts::new(watch, tokens.len() as u64 * layers);
    let mut done = 0;
    while done < tokens.len() {
        let left = tokens.len() - done;
        // Whole chunks, so that none is smaller than it would be without marks.
        let due = past.marks.due().map(|due| due.saturating_sub(past.tokens.len()).max(1));
        let due = due.map(|due| due.div_ceil(sequence.chunk).saturating_mul(sequence.chunk));
        let part = &tokens[done..done + due.unwrap_or(left).min(left)];
        let work = part.len() as u64 * layers;
        let outcome = parts.part(work, |watch| sequence.feed(model, 0, part, watch));
        let taken = sequence.taken();
        past.take(done, part, taken);
        done += taken;
        let marked = outcome.and_then(|()| {
            if done < tokens.len() {
                past.marks.set(past.tokens.len(), Snapshot::new(sequence.memory.keep(0)?, None));
            }
            Ok(())
        });
        if let Err(error) = marked {
            return (done, Err(error));
        }
    }
    (done, Ok(()))
}

/// What steps and their source of weights borrow during a call.
pub(crate) struct Memory {
    buffers: Buffers,
    pub sequences: usize,
    /// Where the step of the last call stands.
    position: Position,
    /// What reads the weights, where they are streamed.
    streamer: Option<Streamer>,
    /// Blocks of the model's file that were verified.
    pub checked: Vec<u32>,
}

impl Memory {
    /// Whether a step was begun and not finished.
    pub fn suspended(&self) -> bool {
        self.position.suspended().is_some()
    }

    /// An error where a step was begun and not finished.
    pub fn check_ready(&self, model: &Model) -> Result<(), Error> {
        if self.suspended() { Err(model.step_error(StepError::Suspended)) } else { Ok(()) }
    }

    /// A copy of one sequence's state.
    pub fn keep(&self, sequence: usize) -> Result<Kept, Error> {
        self.buffers.keep(Slot { slot: sequence, slots: self.sequences })
    }

    /// The steps and the source of weights of a call.
    pub fn take_up<'a>(&'a mut self, model: &'a Model) -> Result<(Steps<'a>, Source<'a>), Error> {
        let Self { buffers, sequences, position, checked, streamer } = self;
        Ok((model.steps(buffers, *sequences, position)?, model.source(checked, streamer.as_mut())?))
    }
}

/// The memory of a session or a batch, and the steps over it. Every call gets the model that it was made for.
pub(crate) struct Sequence {
    pub memory: Memory,
    /// Logits of a token each, `[sequences][padded vocab]`.
    logits: Vec<f32>,
    row: Vec<f32>,
    /// Logits of a chunk's tokens.
    all: Vec<f32>,
    pub chunk: usize,
    /// Tokens of the last call that were fed.
    fed: usize,
    /// The logits that came with the state, until a token is fed.
    stood: Option<Logits>,
}

impl std::fmt::Debug for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sequence").field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

/// A call's count of what is done.
struct Count {
    done: u64,
    total: u64,
    /// Bytes that were read from storage when it began.
    start: u64,
}

impl Sequence {
    pub(crate) fn new(
        model: &Model,
        options: &SessionOptions,
        streamer: Option<Streamer>,
        chunk: usize,
    ) -> Result<Self, Error> {
        let layout = model.layout();
        let config = layout.config();
        let padded = config.padded_vocab() as usize;
        let (row, rows) = if options.rows { (padded, rows_chunk(chunk, padded) * padded) } else { (0, 0) };
        let buffers = Buffers::new(config, options.numbers, options.sequences(), chunk);
        let memory = Memory {
            buffers: buffers.map_err(|error| match (error, options.numbers.smaller()) {
                (Error::Memory { what, bytes, .. }, Some(smaller)) => {
                    Error::Memory { what, bytes, smaller_state: Some(Numbers::state_name(smaller)) }
                }
                (error, _) => error,
            })?,
            sequences: options.sequences(),
            position: Position::default(),
            streamer,
            checked: zeros(WORKING, SliceSource::checked_words(layout))?,
        };
        let mut sequence = Self {
            memory,
            logits: zeros(WORKING, options.sequences().saturating_mul(padded))?,
            row: zeros(WORKING, if options.sequences() > 1 { padded } else { row })?,
            all: zeros("logits", rows)?,
            chunk,
            fed: 0,
            stood: None,
        };
        // Pages are written before any is read.
        sequence.memory.take_up(model)?.0.clear();
        Ok(sequence)
    }

    /// See [`Session::feed_watched`].
    pub(crate) fn feed(
        &mut self,
        model: &Model,
        sequence: usize,
        tokens: &[u32],
        watch: &mut Watch<'_>,
    ) -> Result<(), Error> {
        let (chunk, mut call) = (self.chunk, self.begin(model, sequence, tokens)?);
        call.source.expect_bare((tokens.len() - 1) / chunk);
        tokens.chunks(chunk).try_for_each(|chunk| call.pass(chunk, watch))
    }

    /// See [`Session::resume`].
    pub(crate) fn resume(&mut self, model: &Model, watch: &mut Watch<'_>) -> Result<usize, Error> {
        let Some((layer, tokens)) = self.memory.position.suspended() else { return Ok(self.fed) };
        let mut call = self.call(model, 0)?;
        call.count.done = tokens as u64 * u64::from(layer);
        call.count.total = call.work(tokens);
        call.advance(tokens, watch, Ok(true))?;
        Ok(*call.fed)
    }

    /// See [`Session::feed_each`].
    pub(crate) fn feed_each<E: From<Error>>(
        &mut self,
        model: &Model,
        sequence: usize,
        tokens: &[u32],
        watch: &mut Watch<'_>,
        mut each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (vocab, padded) = (model.config().vocab as usize, model.config().padded_vocab() as usize);
        let chunk = rows_chunk(self.chunk, padded).min(tokens.len());
        if self.all.len() < chunk * padded {
            self.all = zeros("logits", chunk * padded)?;
        }
        self.row.resize(padded, 0.0);
        let mut call = self.begin(model, sequence, tokens)?;
        call.source.expect_bare(0);
        let mut place = 0;
        for tokens in tokens.chunks(chunk) {
            call.pass(tokens, watch)?;
            let all = &mut call.all[..padded * tokens.len()];
            let out = call.steps.logits(call.source.blocks(), Rows::All, all);
            out.map_err(|cause| model.step_error(cause))?;
            let panels = all.as_chunks::<LANES>().0;
            for t in 0..tokens.len() {
                row_of(panels, tokens.len(), t, call.row);
                each(place, &call.row[..vocab])?;
                place += 1;
            }
        }
        Ok(())
    }

    /// See [`Session::logits`].
    pub(crate) fn logits(&mut self, model: &Model) -> Result<&mut [f32], Error> {
        let Self { memory, logits, stood, .. } = self;
        if let Some(stood) = stood {
            stood.write_to(model.config(), logits);
            return Ok(&mut logits[..model.config().vocab as usize]);
        }
        let (mut steps, mut source) = memory.take_up(model)?;
        let out = steps.logits(source.blocks(), Rows::Last, logits);
        out.map_err(|cause| model.step_error(cause))?;
        Ok(&mut logits[..model.config().vocab as usize])
    }

    /// The logits after the last token as they are computed, untouched by whoever chose a token by them.
    pub(crate) fn own_logits(&mut self, model: &Model) -> Result<Logits, Error> {
        self.memory.check_ready(model)?;
        if let Some(stood) = &self.stood {
            return Ok(stood.clone());
        }
        let (mut steps, mut source) = self.memory.take_up(model)?;
        let logits = steps.own_logits(source.blocks(), model.config());
        let logits = logits.map_err(|cause| model.step_error(cause))?;
        // Whoever asks for them next need not compute them again.
        self.stood = Some(logits.clone());
        Ok(logits)
    }

    /// Gives one sequence the state that was kept. The logits are now those that were kept with it.
    pub(crate) fn restore(
        &mut self,
        model: &Model,
        sequence: usize,
        snapshot: &Snapshot,
    ) -> Result<(), Error> {
        let slot = Slot { slot: sequence, slots: self.memory.sequences };
        if !self.memory.buffers.restore(slot, snapshot.kept()) {
            return Err(model.step_error(StepError::OtherModel));
        }
        self.memory.position = Position::default();
        self.stand_at(snapshot.logits().cloned());
        Ok(())
    }

    /// The state is another one, with these logits.
    pub(crate) fn stand_at(&mut self, logits: Option<Logits>) {
        (self.fed, self.stood) = (0, logits);
    }

    /// See [`Batch::step`](crate::Batch::step).
    pub(crate) fn step<E: From<Error>>(
        &mut self,
        model: &Model,
        tokens: &[(usize, u32)],
        mut each: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { memory, logits, row, .. } = self;
        let (mut steps, mut source) = memory.take_up(model)?;
        source.expect_bare(0);
        source.begin_pass();
        let stepped = steps
            .begin_each(source.blocks(), tokens)
            .and_then(|()| steps.finish(source.blocks()))
            .and_then(|()| steps.logits(source.blocks(), Rows::All, logits));
        stepped.map_err(|cause| model.step_error(cause))?;
        let (vocab, padded) = (model.config().vocab as usize, model.config().padded_vocab() as usize);
        row.resize(padded, 0.0);
        let panels = logits[..padded * tokens.len()].as_chunks::<LANES>().0;
        for (t, &(sequence, _)) in tokens.iter().enumerate() {
            row_of(panels, tokens.len(), t, row);
            each(sequence, &mut row[..vocab])?;
        }
        Ok(())
    }

    /// The logits of token `t` of the `tokens` tokens of the last [`Sequence::step`], as they were computed.
    pub(crate) fn own_row(&self, model: &Model, tokens: usize, t: usize) -> Logits {
        let padded = model.config().padded_vocab() as usize;
        if let Some(all) = self.memory.buffers.fixed_logits() {
            let mut row = vec![0; padded];
            row_of(all[..padded * tokens].as_chunks().0, tokens, t, &mut row);
            return Logits::Fixed(row);
        }
        let mut row = vec![0.0; padded];
        row_of(self.logits[..padded * tokens].as_chunks().0, tokens, t, &mut row);
        Logits::Float(row)
    }

    /// Tokens of the last call that were fed, with those of a step that is suspended: [`Session::resume`] feeds them.
    pub(crate) fn taken(&self) -> usize {
        self.fed + self.memory.position.suspended().map_or(0, |(_, tokens)| tokens)
    }

    /// Begins to feed tokens, once all of them can be fed: a bad one is known by its place in all of them, before any is fed.
    fn begin<'a>(&'a mut self, model: &'a Model, sequence: usize, tokens: &[u32]) -> Result<Call<'a>, Error> {
        if self.memory.position.suspended().is_some() {
            return Err(model.step_error(StepError::Suspended));
        }
        self.fed = 0;
        check_tokens(model, tokens)?;
        self.stood = None;
        let mut call = self.call(model, sequence)?;
        call.count.total = call.work(tokens.len());
        Ok(call)
    }

    fn call<'a>(&'a mut self, model: &'a Model, sequence: usize) -> Result<Call<'a>, Error> {
        let Self { memory, fed, row, all, .. } = self;
        let (steps, source) = memory.take_up(model)?;
        let count = Count { done: 0, total: 0, start: source.read_bytes() };
        Ok(Call { model, sequence, steps, source, fed, row, all, count })
    }
}

/// Whether all tokens are the model's, and there is one.
pub(crate) fn check_tokens(model: &Model, tokens: &[u32]) -> Result<(), Error> {
    let vocab = model.config().vocab;
    if tokens.is_empty() {
        return Err(model.step_error(StepError::NoTokens));
    }
    match tokens.iter().position(|token| *token >= vocab) {
        Some(position) => {
            Err(model.step_error(StepError::Token { position, token: tokens[position], vocab }))
        }
        None => Ok(()),
    }
}

/// Row `t` of logits `[vocab/16][T][16]`.
pub(crate) fn row_of<T: Copy>(panels: &[[T; LANES]], tokens: usize, t: usize, row: &mut [T]) {
    for (to, panel) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(panels.chunks_exact(tokens)) {
        *to = panel[t];
    }
}

/// A call that feeds tokens.
struct Call<'a> {
    model: &'a Model,
    sequence: usize,
    steps: Steps<'a>,
    source: Source<'a>,
    fed: &'a mut usize,
    row: &'a mut Vec<f32>,
    all: &'a mut Vec<f32>,
    count: Count,
}

impl Call<'_> {
    /// Tokens times layers.
    fn work(&self, tokens: usize) -> u64 {
        tokens as u64 * u64::from(self.model.config().n_layer)
    }

    /// One chunk through all layers.
    fn pass(&mut self, tokens: &[u32], watch: &mut Watch<'_>) -> Result<(), Error> {
        self.source.begin_pass();
        let begun = self.steps.begin_sequence(self.source.blocks(), self.sequence, tokens).map(|()| true);
        self.advance(tokens.len(), watch, begun)
    }

    /// Lets `tokens` tokens pass the layers that are left.
    fn advance(
        &mut self,
        tokens: usize,
        watch: &mut Watch<'_>,
        mut more: Result<bool, StepError>,
    ) -> Result<(), Error> {
        let Self { model, steps, source, fed, count, .. } = self;
        while more.map_err(|cause| model.step_error(cause))? {
            more = steps.advance(source.blocks());
            if let Ok(layers_left) = more {
                **fed += if layers_left { 0 } else { tokens };
                count.done += tokens as u64;
                let read = source.read_bytes() - count.start;
                if watch(Progress { done: count.done, total: count.total, read }).is_break() {
                    return Err(Error::Interrupted);
                }
            }
        }
        Ok(())
    }
}
