//! One sequence: its state, and where its step stands.

use super::{Model, Scratch, ScratchSize, State, StateSize};
use crate::format::Config;
use crate::model::StepError;

/// Where a step stands. Part of the API in that a step can be resumed: layers before `layer` have committed their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// No tokens yet.
    Empty,
    /// `tokens` tokens have passed the layers before `layer`.
    Layer { layer: u32, tokens: usize },
    /// `tokens` tokens have passed all layers.
    Done { tokens: usize },
}

impl Cursor {
    /// Whether a step with these tokens may begin.
    pub(super) fn check(self, tokens: &[u32], vocab: u32) -> Result<(), StepError> {
        if let Self::Layer { .. } = self {
            return Err(StepError::Suspended);
        }
        if tokens.is_empty() {
            return Err(StepError::NoTokens);
        }
        match tokens.iter().enumerate().find(|(_, token)| **token >= vocab) {
            Some((position, &token)) => Err(StepError::Token { position, token, vocab }),
            None => Ok(()),
        }
    }

    /// Where a step of `n_layer` layers stands when `tokens` tokens have passed `layer`.
    pub(super) fn passed(layer: u32, tokens: usize, n_layer: u32) -> Self {
        let next = layer + 1;
        if next == n_layer { Self::Done { tokens } } else { Self::Layer { layer: next, tokens } }
    }

    /// The tokens of a step that is complete.
    pub(super) fn done(self) -> Result<usize, StepError> {
        match self {
            Self::Done { tokens } => Ok(tokens),
            Self::Layer { .. } => Err(StepError::Suspended),
            Self::Empty => Err(StepError::NotReady),
        }
    }
}

/// Where a session's step stands, without its buffers. The default is the start: no tokens yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(Cursor);

impl Default for Position {
    fn default() -> Self {
        Self(Cursor::Empty)
    }
}

/// One sequence: its state, its working memory, and where its step stands.
#[derive(Debug)]
pub struct Session<'s> {
    config: Config,
    pub(super) state: State<'s>,
    /// A copy of one layer's state, while that layer is being computed.
    pub(super) undo: State<'s>,
    pub(super) scratch: Scratch<'s>,
    pub(super) cursor: Cursor,
}

impl<'s> Session<'s> {
    /// A session that goes on from `state` (all zeros for a new sequence).
    ///
    /// `undo` holds one layer's state of the same kind; `scratch` limits how many tokens a chunk can have.
    ///
    /// # Errors
    /// [`StepError::Buffer`] naming the buffer: states must have exactly the elements of [`StateSize::of`], and be of one
    /// kind; `scratch` at least those of [`ScratchSize::of`] for one token. [`StepError::Exponent`] for a state that no
    /// step can have left behind.
    pub fn new(
        model: &Model<'_>,
        state: State<'s>,
        undo: State<'s>,
        scratch: Scratch<'s>,
    ) -> Result<Self, StepError> {
        let session = Self::sized(model, state, undo, scratch)?;
        session.state.check(model.config())?;
        Ok(session)
    }

    /// Puts a session together again from its buffers, to go on at `position`. Only sizes are checked: this takes no longer
    /// for a larger state.
    ///
    /// State and working memory must be as the session left them that `position` is of; otherwise results mean nothing.
    ///
    /// # Errors
    /// [`StepError::Buffer`] as [`Session::new`], and [`StepError::OtherModel`] if `position` can't be of such a session.
    pub fn resume_at(
        model: &Model<'_>,
        state: State<'s>,
        undo: State<'s>,
        scratch: Scratch<'s>,
        position: Position,
    ) -> Result<Self, StepError> {
        let session = Self::sized(model, state, undo, scratch)?;
        let config = model.config();
        let (tokens, possible) = match position.0 {
            Cursor::Empty => (0, true),
            Cursor::Done { tokens } => (tokens, true),
            Cursor::Layer { layer, tokens } => (tokens, layer < config.n_layer),
        };
        if !possible || !session.scratch.fits(config, tokens) {
            return Err(StepError::OtherModel);
        }
        Ok(Self { cursor: position.0, ..session })
    }

    /// Where the step stands, for [`Session::resume_at`].
    #[must_use]
    pub const fn position(&self) -> Position {
        Position(self.cursor)
    }

    /// A session whose buffers have the sizes they need.
    fn sized(
        model: &Model<'_>,
        state: State<'s>,
        undo: State<'s>,
        scratch: Scratch<'s>,
    ) -> Result<Self, StepError> {
        let config = model.config();
        let one = StateSize::of(config, 1);
        let all = StateSize::of(config, config.n_layer as usize);
        let (has, copy) = (state.size(), undo.size());
        let copied = if state.kind() == undo.kind() { copy.ssm } else { 0 };
        let exact = [
            ("the convolution state", has.conv, all.conv),
            ("the exponents of the convolution state", has.conv_exponents, all.conv_exponents),
            ("the recurrent state", has.ssm, all.ssm),
            ("the ranges of the recurrent state", has.ranges, all.ranges),
            ("the undo copy of the convolution state", copy.conv, one.conv),
            ("the undo copy of its exponents", copy.conv_exponents, one.conv_exponents),
            ("the undo copy of the recurrent state", copied, one.ssm),
            ("the undo copy of its ranges", copy.ranges, one.ranges),
        ];
        let (has, floor) = (scratch.size(), ScratchSize::of(config, 1));
        let least = [
            ("the working memory", has.words, floor.words),
            ("the memory of activations", has.halves, floor.halves),
            ("the memory of groups of activations", has.groups, floor.groups),
            ("the memory of norms", has.tokens, floor.tokens),
        ];
        let wrong = exact.into_iter().find(|(_, have, need)| have != need);
        if let Some((name, have, need)) = wrong.or(least.into_iter().find(|(_, have, need)| have < need)) {
            return Err(StepError::Buffer { name, have, need });
        }
        Ok(Self { config: *config, state, undo, scratch, cursor: Cursor::Empty })
    }

    /// The state. While a step is suspended, layers before [`Session::suspended_at`] are a chunk ahead of the others.
    #[must_use]
    pub fn state(&self) -> &State<'s> {
        &self.state
    }

    /// Whether the session was made for a model of this configuration: its buffers fit no other.
    pub(super) fn check(&self, config: &Config) -> Result<(), StepError> {
        if self.config == *config { Ok(()) } else { Err(StepError::OtherModel) }
    }

    /// Forgets everything: the next token is the first of a new sequence.
    pub fn clear(&mut self) {
        self.state.clear();
        self.cursor = Cursor::Empty;
    }

    /// The layer that a suspended step goes on from; `None` if no step is suspended.
    #[must_use]
    pub fn suspended_at(&self) -> Option<u32> {
        if let Cursor::Layer { layer, .. } = self.cursor { Some(layer) } else { None }
    }

    /// The tokens of a suspended step; 0 if no step is suspended.
    #[must_use]
    pub fn suspended_tokens(&self) -> usize {
        if let Cursor::Layer { tokens, .. } = self.cursor { tokens } else { 0 }
    }
}
