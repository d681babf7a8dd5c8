//! What computes a model on a board.

use elapid_core::fixed;
use elapid_core::model::{Model, Numbers, Rows, Session};
use elapid_core::source::LayerSource;

use crate::Error;

/// One sequence of a model: tokens go in, logits come out.
pub trait Engine {
    /// Begins a new sequence.
    fn clear(&mut self);

    /// Lets some of the tokens pass the model, from the first on, and returns how many. `interrupted` is asked after every layer:
    /// where it says so, the step is suspended, and the result is `None`. The next call finishes that step first.
    ///
    /// # Errors
    /// Damaged weights, or values that are not finite.
    fn feed(&mut self, tokens: &[u32], interrupted: &mut dyn FnMut() -> bool)
    -> Result<Option<usize>, Error>;

    /// The logits `[vocab]` after the last token, for the caller to use up.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    fn logits(&mut self) -> Result<&mut [f32], Error>;
}

/// What [`Engine::feed`] does, for either kind of numbers and tokens that fit.
fn feed<N: Numbers>(
    model: &Model<'_, N>,
    session: &mut Session<'_, N>,
    source: &mut dyn LayerSource,
    tokens: &[u32],
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<Option<usize>, Error> {
    let mut begun = session.suspended_at().is_none();
    loop {
        if begun {
            model.begin(session, source, tokens)?;
        }
        while model.advance(session, source)? {
            if interrupted() {
                return Ok(None);
            }
        }
        if begun {
            return Ok(Some(tokens.len()));
        }
        begun = true;
    }
}

/// The float path, over any source of weights.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Float<'m, S> {
    model: Model<'m>,
    session: Session<'m>,
    source: &'m mut S,
    logits: &'m mut [f32],
    chunk: usize,
}

impl<'m, S: LayerSource> Float<'m, S> {
    /// A new sequence. `logits` must have the padded vocabulary's length; `chunk` tokens at most pass the model together: the
    /// session must have the working memory for them.
    #[must_use]
    pub const fn new(
        model: Model<'m>,
        session: Session<'m>,
        source: &'m mut S,
        logits: &'m mut [f32],
        chunk: usize,
    ) -> Self {
        Self { model, session, source, logits, chunk }
    }
}

impl<S: LayerSource> Engine for Float<'_, S> {
    fn clear(&mut self) {
        self.session.clear();
    }

    fn feed(
        &mut self,
        tokens: &[u32],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Option<usize>, Error> {
        let tokens = tokens.get(..self.chunk).unwrap_or(tokens);
        feed(&self.model, &mut self.session, self.source, tokens, interrupted)
    }

    fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.model.logits(&mut self.session, self.source, Rows::Last, self.logits)?;
        let vocab = self.model.config().vocab as usize;
        Ok(self.logits.get_mut(..vocab).unwrap_or_default())
    }
}

/// The fixed path, over any source of weights.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Fixed<'m, S> {
    model: fixed::Model<'m>,
    session: fixed::Session<'m>,
    source: &'m mut S,
    logits: &'m mut [i32],
    sampled: &'m mut [f32],
    chunk: usize,
}

impl<'m, S: LayerSource> Fixed<'m, S> {
    /// As [`Float::new`]. `logits` and `sampled` must have the padded vocabulary's length: the step gives integers, the
    /// sampler takes floats.
    #[must_use]
    pub const fn new(
        model: fixed::Model<'m>,
        session: fixed::Session<'m>,
        source: &'m mut S,
        logits: &'m mut [i32],
        sampled: &'m mut [f32],
        chunk: usize,
    ) -> Self {
        Self { model, session, source, logits, sampled, chunk }
    }
}

impl<S: LayerSource> Engine for Fixed<'_, S> {
    fn clear(&mut self) {
        self.session.clear();
    }

    fn feed(
        &mut self,
        tokens: &[u32],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Option<usize>, Error> {
        let tokens = tokens.get(..self.chunk).unwrap_or(tokens);
        feed(&self.model, &mut self.session, self.source, tokens, interrupted)
    }

    fn logits(&mut self) -> Result<&mut [f32], Error> {
        self.model.logits(&mut self.session, self.source, Rows::Last, self.logits)?;
        // An integer is rounded to a float, then scaled exactly: the same bits with and without an FPU.
        let unit = self.model.config().logit_unit();
        for (sampled, logit) in self.sampled.iter_mut().zip(&*self.logits) {
            *sampled = *logit as f32 * unit;
        }
        let vocab = self.model.config().vocab as usize;
        Ok(self.sampled.get_mut(..vocab).unwrap_or_default())
    }
}
