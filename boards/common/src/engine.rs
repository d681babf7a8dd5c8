//! What computes a model on a board.

use elapid_core::fixed;
use elapid_core::model::{Model, Rows, Session};
use elapid_core::source::SliceSource;

use crate::{Error, Platform};

/// One sequence of a model: tokens go in, logits come out.
pub trait Engine {
    /// Begins a new sequence.
    fn clear(&mut self);

    /// Lets one token pass the model, with [`Platform::alive`] called after every layer.
    ///
    /// # Errors
    /// Damaged weights, or values that are not finite.
    fn feed(&mut self, token: u32, platform: &mut dyn Platform) -> Result<(), Error>;

    /// The logits `[vocab]` after the last token, for the caller to use up.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    fn logits(&mut self) -> Result<&mut [f32], Error>;
}

/// The float path, over a model in memory.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Float<'m> {
    model: Model<'m>,
    session: Session<'m>,
    source: SliceSource<'m>,
    logits: &'m mut [f32],
}

impl<'m> Float<'m> {
    /// A new sequence. `logits` must have the padded vocabulary's length.
    #[must_use]
    pub const fn new(
        model: Model<'m>,
        session: Session<'m>,
        source: SliceSource<'m>,
        logits: &'m mut [f32],
    ) -> Self {
        Self { model, session, source, logits }
    }
}

impl Engine for Float<'_> {
    fn clear(&mut self) {
        self.session.clear();
    }

    fn feed(&mut self, token: u32, platform: &mut dyn Platform) -> Result<(), Error> {
        self.model.begin(&mut self.session, &mut self.source, &[token])?;
        while self.model.advance(&mut self.session, &mut self.source)? {
            platform.alive();
        }
        Ok(())
    }

    fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.model.logits(&mut self.session, &mut self.source, Rows::Last, self.logits)?;
        let vocab = self.model.config().vocab as usize;
        Ok(self.logits.get_mut(..vocab).unwrap_or_default())
    }
}

/// The fixed path, over a model in memory.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Fixed<'m> {
    model: fixed::Model<'m>,
    session: fixed::Session<'m>,
    source: SliceSource<'m>,
    logits: &'m mut [i32],
    sampled: &'m mut [f32],
}

impl<'m> Fixed<'m> {
    /// A new sequence. `logits` and `sampled` must have the padded vocabulary's length: the step gives integers, the
    /// sampler takes floats.
    #[must_use]
    pub const fn new(
        model: fixed::Model<'m>,
        session: fixed::Session<'m>,
        source: SliceSource<'m>,
        logits: &'m mut [i32],
        sampled: &'m mut [f32],
    ) -> Self {
        Self { model, session, source, logits, sampled }
    }
}

impl Engine for Fixed<'_> {
    fn clear(&mut self) {
        self.session.clear();
    }

    fn feed(&mut self, token: u32, platform: &mut dyn Platform) -> Result<(), Error> {
        self.model.begin(&mut self.session, &mut self.source, &[token])?;
        while self.model.advance(&mut self.session, &mut self.source)? {
            platform.alive();
        }
        Ok(())
    }

    fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.model.logits(&mut self.session, &mut self.source, Rows::Last, self.logits)?;
        // An integer is rounded to a float, then scaled exactly: the same bits with and without an FPU.
        let unit = self.model.config().logit_unit();
        for (sampled, logit) in self.sampled.iter_mut().zip(&*self.logits) {
            *sampled = *logit as f32 * unit;
        }
        let vocab = self.model.config().vocab as usize;
        Ok(self.sampled.get_mut(..vocab).unwrap_or_default())
    }
}
