//! The sequences that step together: their state, and where their step stands.

use core::ops::Range;

use super::{Model, Scratch, ScratchSize, State, StateSize, StepError};
use crate::format::Config;
use crate::kernels::SsmState;

/// The most sequences that a session can have.
pub const MAX_SLOTS: usize = 64;

/// Whose the tokens of a step are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Members {
    /// All of one slot's sequence, in order.
    One(usize),
    /// One each of the sequences in the slots whose bits are set, in the order of the slots.
    Each(u64),
}

impl Members {
    /// The slots that take part, and which of the `tokens` tokens are theirs.
    pub(super) fn of(self, tokens: usize) -> impl Iterator<Item = (usize, Range<usize>)> + Clone {
        let (slots, each) = match self {
            Self::One(slot) => (1 << slot, tokens),
            Self::Each(slots) => (slots, 1),
        };
        let taking_part = (0..MAX_SLOTS).filter(move |slot| slots >> slot & 1 == 1);
        taking_part.enumerate().map(move |(i, slot)| (slot, i * each..(i + 1) * each))
    }
}

/// Where a step stands. Part of the API in that a step can be resumed: layers before `layer` have committed their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// No tokens yet.
    Empty,
    /// `tokens` tokens have passed the layers before `layer`.
    Layer { layer: u32, tokens: usize, members: Members },
    /// `tokens` tokens have passed all layers.
    Done { tokens: usize },
}

/// Where a session's step stands, without its buffers. The default is the start: no tokens yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(Cursor);

impl Default for Position {
    fn default() -> Self {
        Self(Cursor::Empty)
    }
}

/// One sequence, or several that step together: their state, their working memory, and where their step stands.
#[derive(Debug)]
pub struct Session<'s> {
    config: Config,
    slots: usize,
    pub(super) state: State<'s>,
    /// A copy of one layer's state of the sequences that take part, while that layer is being computed.
    pub(super) undo: State<'s>,
    pub(super) scratch: Scratch<'s>,
    pub(super) cursor: Cursor,
}

impl<'s> Session<'s> {
    /// A session of one sequence that goes on from `state` (all zeros for a new sequence).
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
        Self::with_slots(model, 1, state, undo, scratch)
    }

    /// A session of `slots` sequences: independent of each other, but they can step together and then read the weights
    /// once.
    ///
    /// `state` and `undo` are those of `slots` sequences, one behind the other: of all layers and of one.
    ///
    /// # Errors
    /// As [`Session::new`]; [`StepError::Slot`] for no slots or more than [`MAX_SLOTS`].
    pub fn with_slots(
        model: &Model<'_>,
        slots: usize,
        state: State<'s>,
        undo: State<'s>,
        scratch: Scratch<'s>,
    ) -> Result<Self, StepError> {
        if slots == 0 || slots > MAX_SLOTS {
            return Err(StepError::Slot { slot: slots, slots: MAX_SLOTS });
        }
        let config = model.config();
        let one = StateSize::of(config, slots);
        let all = StateSize::of(config, (config.n_layer as usize).saturating_mul(slots));
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
        Ok(Self { config: *config, slots, state, undo, scratch, cursor: Cursor::Empty })
    }

    /// Puts a session together again from its buffers, to go on at `position`. Only sizes are checked: this takes no longer
    /// for a larger state.
    ///
    /// State and working memory must be as the session left them that `position` is of; otherwise results mean nothing.
    ///
    /// # Errors
    /// As [`Session::with_slots`], and [`StepError::OtherModel`] if `position` can't be of such a session.
    pub fn resume_at(
        model: &Model<'_>,
        slots: usize,
        state: State<'s>,
        undo: State<'s>,
        scratch: Scratch<'s>,
        position: Position,
    ) -> Result<Self, StepError> {
        let session = Self::with_slots(model, slots, state, undo, scratch)?;
        let config = model.config();
        let (tokens, possible) = match position.0 {
            Cursor::Empty => (0, true),
            Cursor::Done { tokens } => (tokens, true),
            Cursor::Layer { layer, tokens, members } => {
                (tokens, layer < config.n_layer && members.of(tokens).all(|(slot, _)| slot < slots))
            }
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

    /// The state. While a step is suspended, layers before [`Session::suspended_at`] are a chunk ahead of the others.
    #[must_use]
    pub fn state(&self) -> &State<'s> {
        &self.state
    }

    /// Whether the session was made for a model of this configuration: its buffers fit no other.
    pub(super) fn check(&self, config: &Config) -> Result<(), StepError> {
        if self.config == *config { Ok(()) } else { Err(StepError::OtherModel) }
    }

    /// How many sequences there is room for.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Forgets one sequence: the slot's next token is the first of a new one. A step that was suspended is given up; the
    /// sequences that took part in it must be cleared as well.
    ///
    /// # Errors
    /// [`StepError::Slot`] if there is no such slot.
    pub fn clear_slot(&mut self, slot: usize) -> Result<(), StepError> {
        self.check_slot(slot)?;
        for layer in 0..self.config.n_layer as usize {
            self.state.layer(&self.config, slot * self.config.n_layer as usize + layer).clear();
        }
        self.cursor = Cursor::Empty;
        Ok(())
    }

    /// Whether there is such a slot.
    pub(super) fn check_slot(&self, slot: usize) -> Result<(), StepError> {
        if slot < self.slots { Ok(()) } else { Err(StepError::Slot { slot, slots: self.slots }) }
    }

    /// Forgets everything: the next token of every slot is the first of a new sequence.
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
