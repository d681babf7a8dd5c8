//! Sequences that step together, and then read the weights once.

use elapid_core::format::Layout;
use elapid_core::kernels::LANES;
use elapid_core::model::{Model, Rows, Session, StepError};

use crate::path::Steps;
use crate::residency::Source;
use crate::sequence::{Parts, row_of};
use crate::{Engine, Error};

/// Given a sequence and the logits `[vocab]` after its token, to use up (and to mask first, see
/// [`Sequence::logits`](crate::Sequence::logits)); an error ends the computation.
pub type EachSequence<'e> = dyn FnMut(usize, &mut [f32]) -> Result<(), Error> + 'e;

/// Sequences that are independent of each other, numbered from 0. Each gives the bits that it gives alone; a step of several
/// reads the weights once, which is what decoding waits for.
///
/// ```no_run
/// # fn main() -> Result<(), elapid::Error> {
/// use elapid::{Engine, EngineOptions, MemoryOptions};
/// let engine = Engine::open("model.elp".as_ref(), &EngineOptions::default())?;
/// let mut memory = engine.memory(&MemoryOptions { sequences: 8, ..MemoryOptions::default() })?;
/// let mut batch = memory.batch(&engine)?;
/// batch.feed(0, &[1, 2, 3])?;
/// batch.feed(5, &[4, 5])?;
/// batch.step(&[(0, 7), (5, 8)], &mut |sequence, logits| Ok(println!("{sequence}: {}", logits[0])))?;
/// # Ok(())
/// # }
/// ```
pub struct Batch<'a> {
    engine: &'a Engine,
    model: Model<'a>,
    session: Session<'a>,
    source: Source<'a>,
    logits: &'a mut Vec<f32>,
    row: &'a mut Vec<f32>,
    chunk: usize,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Batch");
        out.field("engine", self.engine).field("sequences", &self.sequences()).finish_non_exhaustive()
    }
}

impl<'a> Batch<'a> {
    pub(crate) fn new(engine: &'a Engine, parts: Parts<'a>) -> Result<Self, Error> {
        let Parts { steps, source, logits, row, chunk, .. } = parts;
        let Steps::Float { model, session } = steps else { return Err(Error::FixedBatch) };
        Ok(Self { engine, model, session, source, logits, row, chunk })
    }

    /// How many sequences there are.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.session.slots()
    }

    /// Forgets a sequence, so that another can take its place. A step that failed is given up; clear every sequence that took
    /// part in it.
    ///
    /// # Errors
    /// [`Error::Step`] if there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<(), Error> {
        self.session.clear_slot(sequence).map_err(|cause| self.engine.step_error(cause))
    }

    /// Feeds any number of tokens to one sequence.
    ///
    /// # Errors
    /// [`Error::Step`]: no such sequence, a token that the model does not know, or as
    /// [`Sequence::feed`](crate::Sequence::feed).
    pub fn feed(&mut self, sequence: usize, tokens: &[u32]) -> Result<(), Error> {
        let Self { engine, model, session, source, chunk, .. } = self;
        let vocab = engine.config().vocab;
        if tokens.is_empty() {
            return Err(engine.step_error(StepError::NoTokens));
        }
        if let Some(position) = tokens.iter().position(|token| *token >= vocab) {
            return Err(engine.step_error(StepError::Token { position, token: tokens[position], vocab }));
        }
        source.expect_bare((tokens.len() - 1) / *chunk);
        for tokens in tokens.chunks(*chunk) {
            source.begin_pass();
            let fed = model
                .begin_slot(session, source, sequence, tokens)
                .and_then(|()| model.resume(session, source));
            fed.map_err(|cause| engine.step_error(cause))?;
        }
        Ok(())
    }

    /// The logits `[vocab]` after the last token that [`Batch::feed`] fed, for the caller to use up.
    ///
    /// # Errors
    /// As [`Sequence::logits`](crate::Sequence::logits).
    pub fn logits(&mut self) -> Result<&mut [f32], Error> {
        let out = self.model.logits(&mut self.session, &mut self.source, Rows::Last, self.logits);
        out.map_err(|cause| self.engine.step_error(cause))?;
        Ok(&mut self.logits[..self.engine.config().vocab as usize])
    }

    /// Feeds one token to each of several sequences, in ascending order of the sequences, and calls `each` with the logits of
    /// every one.
    ///
    /// # Errors
    /// [`Error::Step`]: sequences that are not there or out of order, a token that the model does not know, damaged weights,
    /// or a value that is not finite (clear all sequences that took part then); and what `each` returns.
    pub fn step(&mut self, tokens: &[(usize, u32)], each: &mut EachSequence<'_>) -> Result<(), Error> {
        let Self { engine, model, session, source, logits, row, .. } = self;
        source.expect_bare(0);
        source.begin_pass();
        let stepped = model
            .begin_each(session, source, tokens)
            .and_then(|()| model.resume(session, source))
            .and_then(|()| model.logits(session, source, Rows::All, logits));
        stepped.map_err(|cause| engine.step_error(cause))?;
        let (vocab, padded) = sizes(engine.layout());
        row.resize(padded, 0.0);
        let panels = logits[..padded * tokens.len()].as_chunks::<LANES>().0;
        for (t, &(sequence, _)) in tokens.iter().enumerate() {
            row_of(panels, tokens.len(), t, row);
            each(sequence, &mut row[..vocab])?;
        }
        Ok(())
    }
}

/// The vocabulary, and what it is padded to.
fn sizes(layout: &Layout) -> (usize, usize) {
    (layout.config().vocab as usize, layout.config().padded_vocab() as usize)
}
