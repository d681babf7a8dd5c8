//! Sequences that step together, and then read the weights once.

use elapid_core::model::{MAX_SLOTS, StepError};

use crate::Error;
use crate::model::{Lease, Model};
use crate::options::SessionOptions;
use crate::session::{Sequence, check_tokens};

/// Sequences that are independent of each other, numbered from 0. Each gives the bits that it gives alone; a step of several
/// reads the weights once, which is what decoding waits for.
///
/// ```
/// # fn main() -> Result<(), elapid::Error> {
/// use elapid::{Model, ModelOptions, SessionOptions};
/// let model = Model::bundled(&ModelOptions::default())?;
/// let mut batch = model.batch(8, &SessionOptions::default())?;
/// batch.feed(0, &[1, 2, 3])?;
/// batch.feed(5, &[4, 5])?;
/// batch.step(&[(0, 7), (5, 8)], |sequence, logits| {
///     println!("{sequence}: {}", logits[0]);
///     Ok::<(), elapid::Error>(())
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Batch {
    sequence: Sequence,
    // Dropped last: memory is given back when it is free.
    lease: Lease,
}

impl Model {
    /// `sequences` sequences that can step together, 1 to 64. [`SessionOptions::rows`] means nothing here.
    ///
    /// # Errors
    /// As [`Model::session`]; [`Error::Step`] for a number of sequences that can't be.
    pub fn batch(&self, sequences: usize, options: &SessionOptions) -> Result<Batch, Error> {
        if sequences == 0 || sequences > MAX_SLOTS {
            return Err(self.step_error(StepError::Slot { slot: sequences, slots: MAX_SLOTS }));
        }
        let options = SessionOptions { sequences, ..*options };
        let (lease, streamer, chunk) = self.lease(&options)?;
        let sequence = Sequence::new(self, &options, streamer, chunk)?;
        Ok(Batch { sequence, lease })
    }
}

impl Batch {
    /// How many sequences there are.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequence.memory.sequences
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.lease.model()
    }

    /// Forgets a sequence, so that another can take its place. A step that failed is given up; clear every sequence that took
    /// part in it.
    ///
    /// # Errors
    /// [`Error::Step`] if there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<(), Error> {
        let model = self.lease.model();
        let (mut steps, _) = self.sequence.memory.take_up(model)?;
        steps.clear_sequence(sequence).map_err(|cause| model.step_error(cause))
    }

    /// Feeds any number of tokens to one sequence.
    ///
    /// # Errors
    /// [`Error::Step`]: no such sequence, a token that the model does not know, or as
    /// [`Session::feed`](crate::Session::feed).
    pub fn feed(&mut self, sequence: usize, tokens: &[u32]) -> Result<(), Error> {
        let (model, chunk) = (self.lease.model(), self.sequence.chunk);
        check_tokens(model, tokens)?;
        let (mut steps, mut source) = self.sequence.memory.take_up(model)?;
        source.expect_bare((tokens.len() - 1) / chunk);
        for tokens in tokens.chunks(chunk) {
            source.begin_pass();
            let fed = steps
                .begin_sequence(source.blocks(), sequence, tokens)
                .and_then(|()| steps.finish(source.blocks()));
            fed.map_err(|cause| model.step_error(cause))?;
        }
        Ok(())
    }

    /// The logits `[vocab]` after the last token that [`Batch::feed`] fed, which the caller may overwrite.
    ///
    /// # Errors
    /// As [`Session::logits`](crate::Session::logits).
    pub fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.sequence.logits(self.lease.model())
    }

    /// Feeds one token to each of several sequences, in ascending order of the sequences, and calls `each` with the logits
    /// `[vocab]` of every one, which it may overwrite (mask them first, see [`Session::logits`](crate::Session::logits)).
    ///
    /// # Errors
    /// [`Error::Step`]: sequences that are not there or out of order, a token that the model does not know, damaged weights,
    /// or a value that is not finite (clear all sequences that took part then); and what `each` returns.
    pub fn step<E: From<Error>>(
        &mut self,
        tokens: &[(usize, u32)],
        each: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.sequence.step(self.lease.model(), tokens, each)
    }
}
