//! Sequences that step together, so that the weights are read only once.

use std::ops::ControlFlow;
use std::path::Path;

use elapid_core::model::{MAX_SLOTS, StepError};

use crate::Error;
use crate::history;
use crate::model::{Lease, Model};
use crate::numbers::Numbers;
use crate::options::SessionOptions;
use crate::past::Snapshot;
use crate::session::Sequence;

/// Independent sequences, numbered from 0, that can step together. Each gives the same bits as alone. A step of several sequences
/// reads the weights only once, and reading weights is what limits decoding.
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
    pub(crate) sequence: Sequence,
    pub(crate) numbers: Numbers,
    /// The sequence whose logits [`Batch::logits`] gives.
    last: Option<usize>,
    /// The sequences of the last step, if nothing was computed since.
    stepped: Vec<usize>,
    // Dropped last, so that the share is given back after the memory is freed.
    pub(crate) lease: Lease,
}

impl Model {
    /// A batch of `sequences` sequences, 1 to 64.
    ///
    /// # Errors
    /// As [`Model::session`]; [`Error::Step`] for another number of sequences.
    pub fn batch(&self, sequences: usize, options: &SessionOptions) -> Result<Batch, Error> {
        if sequences == 0 || sequences > MAX_SLOTS {
            return Err(self.step_error(StepError::Slot { slot: sequences, slots: MAX_SLOTS }));
        }
        let options = SessionOptions { sequences, ..*options };
        let (lease, streamer, chunk) = self.lease(&options)?;
        let sequence = Sequence::new(self, &options, streamer, chunk)?;
        Ok(Batch { sequence, numbers: options.numbers, last: None, stepped: Vec::new(), lease })
    }
}

impl Batch {
    /// The number of sequences.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.sequence.memory.sequences
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.lease.model()
    }

    /// Forgets a sequence, so that another can take its place. A failed step is abandoned; clear every sequence that took
    /// part in it.
    ///
    /// # Errors
    /// [`Error::Step`] if there is no such sequence.
    pub fn clear(&mut self, sequence: usize) -> Result<(), Error> {
        self.forget_logits();
        let model = self.lease.model();
        self.sequence.stand_at(None);
        let (mut steps, _) = self.sequence.memory.take_up(model)?;
        steps.clear_sequence(sequence).map_err(|cause| model.step_error(cause))
    }

    /// Feeds any number of tokens to one sequence.
    ///
    /// # Errors
    /// [`Error::Step`]: no such sequence, a token that the model does not know, or as
    /// [`Session::feed`](crate::Session::feed).
    pub fn feed(&mut self, sequence: usize, tokens: &[u32]) -> Result<(), Error> {
        self.forget_logits();
        self.sequence.feed(self.lease.model(), sequence, tokens, &mut |_| ControlFlow::Continue(()))?;
        self.last = Some(sequence);
        Ok(())
    }

    /// Feeds tokens to one sequence, and calls `each` with the place and the logits `[vocab]` of every one. Plan its memory with
    /// [`SessionOptions::rows`].
    ///
    /// # Errors
    /// As [`Batch::feed`], and what `each` returns.
    pub fn feed_each<E: From<Error>>(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        each: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.forget_logits();
        let mut watch = |_| ControlFlow::Continue(());
        self.sequence.feed_each(self.lease.model(), sequence, tokens, &mut watch, each)?;
        self.last = Some(sequence);
        Ok(())
    }

    /// The tokens that [`Batch::feed`] takes through a layer together: where it is given more, it does several passes.
    #[must_use]
    pub fn chunk(&self) -> usize {
        self.sequence.chunk
    }

    fn forget_logits(&mut self) {
        self.last = None;
        self.stepped.clear();
    }

    /// A copy of a sequence's state, with the logits after its last token if they are those of [`Batch::logits`] or of the last step.
    pub(crate) fn snapshot(&mut self, sequence: usize) -> Result<Snapshot, Error> {
        let slots = self.sequences();
        if sequence >= slots {
            return Err(self.model().step_error(StepError::Slot { slot: sequence, slots }));
        }
        let model = self.lease.model();
        let logits = if self.last == Some(sequence) {
            Some(self.sequence.own_logits(model)?)
        } else {
            let place = self.stepped.iter().position(|stepped| *stepped == sequence);
            place.map(|t| self.sequence.own_row(model, self.stepped.len(), t))
        };
        Ok(Snapshot::new(self.sequence.memory.keep(sequence)?, logits))
    }

    /// Gives a sequence a state that was kept.
    pub(crate) fn restore(&mut self, sequence: usize, snapshot: &Snapshot) -> Result<(), Error> {
        self.forget_logits();
        self.sequence.restore(self.lease.model(), sequence, snapshot)?;
        self.last = snapshot.logits().map(|_| sequence);
        Ok(())
    }

    /// Gives a sequence the state of a file that has it after exactly these tokens.
    pub(crate) fn load_prefix(&mut self, sequence: usize, path: &Path, tokens: &[u32]) -> Result<(), Error> {
        self.forget_logits();
        history::load_prefix(self.lease.model(), &mut self.sequence, sequence, path, tokens)?;
        self.last = Some(sequence);
        Ok(())
    }

    /// The logits `[vocab]` after the last token that [`Batch::feed`] fed, or of the prefix that a cache had
    /// ([`PrefixCache::begin`](crate::PrefixCache::begin)). The caller may overwrite them.
    ///
    /// # Errors
    /// As [`Session::logits`](crate::Session::logits).
    pub fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.sequence.logits(self.lease.model())
    }

    /// Feeds one token to each of several sequences, in ascending order of the sequences. Calls `each` with the logits `[vocab]` of
    /// every sequence, which it may overwrite. Mask them first, see [`Session::logits`](crate::Session::logits).
    ///
    /// # Errors
    /// [`Error::Step`] if a sequence does not exist or they are out of order, if the model does not know a token, if weights are
    /// damaged, or if a value is not finite (then clear all sequences that took part). Also any error of `each`.
    pub fn step<E: From<Error>>(
        &mut self,
        tokens: &[(usize, u32)],
        each: impl FnMut(usize, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.forget_logits();
        self.sequence.stand_at(None);
        self.sequence.step(self.lease.model(), tokens, each)?;
        self.stepped.extend(tokens.iter().map(|(sequence, _)| *sequence));
        Ok(())
    }
}
