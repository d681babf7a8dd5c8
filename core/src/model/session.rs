//! One sequence: its state, and where its step stands.

use super::{Model, Scratch, ScratchSize, State, StateSize, StepError};
use crate::format::Config;
use crate::kernels::SsmState;

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
    /// kind; `scratch` at least those of [`ScratchSize::of`] for one token.
    pub fn new(
        model: &Model<'_>,
        state: State<'s>,
        undo: State<'s>,
        scratch: Scratch<'s>,
    ) -> Result<Self, StepError> {
        let config = model.config();
        let one = StateSize::of(config, 1);
        let all = StateSize::of(config, config.n_layer as usize);
        let floor = ScratchSize::of(config, 1);
        let has = scratch.size();
        let same_kind = matches!(
            (&state.ssm, &undo.ssm),
            (SsmState::F32(_), SsmState::F32(_)) | (SsmState::F16(_), SsmState::F16(_))
        );
        let exact = [
            ("the convolution state", state.size().conv, all.conv),
            ("the recurrent state", state.size().ssm, all.ssm),
            ("the undo copy of the convolution state", undo.size().conv, one.conv),
            ("the undo copy of the recurrent state", if same_kind { undo.size().ssm } else { 0 }, one.ssm),
        ];
        let least = [
            ("the working memory", has.floats, floor.floats),
            ("the memory of quantized activations", has.ints, floor.ints),
            ("the memory of scales", has.scales, floor.scales),
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
}
