//! What computes a model on a board.

use elapid_core::format::Config;
use elapid_core::model::{Fixed, Float, Model, Numbers, Position, Rows, Session};
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

    /// Finishes a step that was interrupted, and computes the logits after the last token, as a snapshot has them.
    ///
    /// # Errors
    /// As [`Engine::feed`].
    fn settle(&mut self) -> Result<(), Error>;

    /// Where the sequence stands.
    fn place(&self) -> Place;
}

/// Where a sequence stands, without its memory. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its step. The default, where there are tokens, is that of a snapshot that was loaded: its logits are in memory.
    pub position: Position,
    /// Tokens that it was fed, those of a step that was interrupted too.
    pub tokens: u64,
}

/// A model in either kind of numbers, with a session of it, over any source of weights.
#[allow(missing_debug_implementations, reason = "a model has none")]
pub struct Computed<'m, N: Numbers, S, L> {
    model: Model<'m, N>,
    session: Session<'m, N>,
    source: &'m mut S,
    logits: L,
    chunk: usize,
    tokens: u64,
}

impl<'m, N: Numbers, S: LayerSource, L: Logits<N>> Computed<'m, N, S, L> {
    /// A new sequence. `chunk` tokens at most pass the model together: the session must have the working memory for them.
    #[must_use]
    pub const fn new(
        model: Model<'m, N>,
        session: Session<'m, N>,
        source: &'m mut S,
        logits: L,
        chunk: usize,
    ) -> Self {
        Self { model, session, source, logits, chunk, tokens: 0 }
    }

    /// A sequence that was fed so many tokens, as [`Place::tokens`] says; its session is at [`Place::position`].
    #[must_use]
    pub fn resumed(self, tokens: u64) -> Self {
        Self { tokens, ..self }
    }
}

impl<N: Numbers, S: LayerSource, L: Logits<N>> Engine for Computed<'_, N, S, L> {
    fn clear(&mut self) {
        self.session.clear();
        self.tokens = 0;
    }

    fn feed(
        &mut self,
        tokens: &[u32],
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Option<usize>, Error> {
        let Self { model, session, source, chunk, tokens: count, .. } = self;
        let tokens = tokens.get(..*chunk).unwrap_or(tokens);
        let mut begun = session.suspended_at().is_none();
        loop {
            if begun {
                model.begin(session, *source, tokens)?;
                *count += tokens.len() as u64;
            }
            while model.advance(session, *source)? {
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

    fn logits(&mut self) -> Result<&mut [f32], Error> {
        let Self { model, session, source, logits, .. } = self;
        model.logits(session, *source, Rows::Last, logits.computed())?;
        let vocab = model.config().vocab as usize;
        Ok(logits.sampled(model.config()).get_mut(..vocab).unwrap_or_default())
    }

    fn settle(&mut self) -> Result<(), Error> {
        let Self { model, session, source, logits, .. } = self;
        if session.suspended_at().is_some() {
            model.resume(session, *source)?;
        }
        if session.position() != Position::default() {
            model.logits(session, *source, Rows::Last, logits.computed())?;
        }
        Ok(())
    }

    fn place(&self) -> Place {
        Place { position: self.session.position(), tokens: self.tokens }
    }
}

/// Memory for the logits of a token, each part of the padded vocabulary's length.
pub trait Logits<N: Numbers> {
    /// Where the step leaves them.
    fn computed(&mut self) -> &mut [N::Logit];

    /// The same as the sampler takes them.
    fn sampled(&mut self, config: &Config) -> &mut [f32];
}

impl Logits<Float> for &mut [f32] {
    fn computed(&mut self) -> &mut [f32] {
        self
    }

    fn sampled(&mut self, _config: &Config) -> &mut [f32] {
        self
    }
}

/// The step of the fixed path gives integers, the sampler takes floats.
#[derive(Debug)]
pub struct FixedLogits<'l> {
    /// The step's.
    pub integers: &'l mut [i32],
    /// The sampler's.
    pub floats: &'l mut [f32],
}

impl Logits<Fixed> for FixedLogits<'_> {
    fn computed(&mut self) -> &mut [i32] {
        self.integers
    }

    fn sampled(&mut self, config: &Config) -> &mut [f32] {
        // An integer is rounded to a float, then scaled exactly: the same bits with and without an FPU.
        let unit = config.logit_unit();
        for (float, integer) in self.floats.iter_mut().zip(&*self.integers) {
            *float = *integer as f32 * unit;
        }
        self.floats
    }
}
