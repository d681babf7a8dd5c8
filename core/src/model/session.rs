//! Sequences that step together: where their step stands, and how it goes on.

use super::StepError;
use super::operations::{Float, LayerState, MAX_SLOTS, Members, Model, Operations, Pass, Rows, Undo};
use super::step::{head, layer};
use crate::format::{Config, Section};
use crate::source::LayerSource;

/// Where a step stands: layers before `layer` have committed their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
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

impl Position {
    /// The layer that a suspended step goes on from, and the step's tokens; `None` if no step is suspended.
    #[must_use]
    pub const fn suspended(self) -> Option<(u32, usize)> {
        if let Cursor::Layer { layer, tokens, .. } = self.0 { Some((layer, tokens)) } else { None }
    }
}

/// One sequence, or several that step together: their state, their working memory, and where their step stands.
#[derive(Debug)]
pub struct Session<'s, N: Operations = Float> {
    pub(super) config: Config,
    slots: usize,
    pub(super) state: N::State<'s>,
    /// A copy of one layer's state of the sequences that take part, while that layer is being computed.
    pub(super) undo: N::State<'s>,
    scratch: N::Scratch<'s>,
    cursor: Cursor,
}

impl<'s, N: Operations> Session<'s, N> {
    /// A session of one sequence that goes on from `state` (all zeros for a new sequence).
    ///
    /// `undo` holds one layer's state of the same kind; `scratch` limits how many tokens a chunk can have.
    ///
    /// # Errors
    /// [`StepError::Buffer`] naming the buffer: states must have exactly the elements of their `StateSize`, and be of one
    /// kind; `scratch` at least those of its `ScratchSize` for one token. [`StepError::Exponent`] for a state that no step
    /// can have left behind.
    pub fn new(
        model: &Model<'_, N>,
        state: N::State<'s>,
        undo: N::State<'s>,
        scratch: N::Scratch<'s>,
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
        model: &Model<'_, N>,
        slots: usize,
        state: N::State<'s>,
        undo: N::State<'s>,
        scratch: N::Scratch<'s>,
    ) -> Result<Self, StepError> {
        let session = Self::at(model, slots, state, undo, scratch, Cursor::Empty)?;
        N::check_contents(&session.config, &session.state)?;
        Ok(session)
    }

    /// Puts a session together again from its buffers, to go on at `position`. Only sizes are checked: this takes no longer
    /// for a larger state.
    ///
    /// State and working memory must be as the session left them that `position` is of; otherwise results mean nothing.
    ///
    /// # Errors
    /// As [`Session::with_slots`], and [`StepError::OtherModel`] if `position` can't be of such a session.
    pub fn resume_at(
        model: &Model<'_, N>,
        slots: usize,
        state: N::State<'s>,
        undo: N::State<'s>,
        scratch: N::Scratch<'s>,
        position: Position,
    ) -> Result<Self, StepError> {
        let config = model.config();
        let (tokens, possible) = match position.0 {
            Cursor::Empty => (0, true),
            Cursor::Done { tokens } => (tokens, true),
            Cursor::Layer { layer, tokens, members } => {
                (tokens, layer < config.n_layer && members.of(tokens).all(|(slot, _)| slot < slots))
            }
        };
        if !possible || N::lacks(config, tokens, &scratch).is_some() {
            return Err(StepError::OtherModel);
        }
        Self::at(model, slots, state, undo, scratch, position.0)
    }

    /// A session whose buffers have the sizes that they need.
    fn at(
        model: &Model<'_, N>,
        slots: usize,
        state: N::State<'s>,
        undo: N::State<'s>,
        scratch: N::Scratch<'s>,
        cursor: Cursor,
    ) -> Result<Self, StepError> {
        if slots == 0 || slots > MAX_SLOTS {
            return Err(StepError::Slot { slot: slots, slots: MAX_SLOTS });
        }
        let config = model.config();
        N::check_sizes(config, slots, &state, &undo, &scratch)?;
        Ok(Self { config: *config, slots, state, undo, scratch, cursor })
    }

    /// Where the step stands, for [`Session::resume_at`].
    #[must_use]
    pub const fn position(&self) -> Position {
        Position(self.cursor)
    }

    /// The state. While a step is suspended, layers before [`Session::suspended_at`] are a chunk ahead of the others.
    #[must_use]
    pub const fn state(&self) -> &N::State<'s> {
        &self.state
    }

    /// Whether the session was made for a model of this configuration: its buffers fit no other.
    fn check(&self, config: &Config) -> Result<(), StepError> {
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
        let layers = self.config.n_layer as usize;
        for layer in 0..layers {
            N::clear(&mut N::layer(&self.config, &mut self.state, slot * layers + layer));
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
        N::clear(&mut self.state);
        self.cursor = Cursor::Empty;
    }

    /// Forgets what the last step left in the working memory: there are no logits until the next one.
    pub(super) fn forget_step(&mut self) {
        self.cursor = Cursor::Empty;
    }

    /// The layer that a suspended step goes on from; `None` if no step is suspended.
    #[must_use]
    pub const fn suspended_at(&self) -> Option<u32> {
        if let Some((layer, _)) = self.position().suspended() { Some(layer) } else { None }
    }
}

impl<N: Operations> Model<'_, N> {
    fn pass<'p>(&'p self, source: &'p mut dyn LayerSource, section: Section, tokens: usize) -> Pass<'p, N> {
        Pass { model: *self, source, section, tokens }
    }

    /// Lets a chunk of tokens pass all layers.
    ///
    /// # Errors
    /// After [`StepError::Source`] in a layer, [`Model::resume`] goes on from that layer; if no step is suspended then,
    /// begin again.
    pub fn forward(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        self.begin(session, source, tokens)?;
        self.resume(session, source)
    }

    /// Begins a step of the first sequence: looks the tokens up in the embedding.
    ///
    /// # Errors
    /// For no tokens, too many for the working memory, one that the model does not know, or a suspended step: nothing
    /// is changed then. After [`StepError::Source`] the state is unchanged too, but the last logits are gone; begin again.
    pub fn begin(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        self.begin_slot(session, source, 0, tokens)
    }

    /// Begins a step of one sequence of several.
    ///
    /// # Errors
    /// As [`Model::begin`], or [`StepError::Slot`].
    pub fn begin_slot(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        slot: usize,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        session.check_slot(slot)?;
        self.begin_for(session, source, Members::One(slot), tokens.iter().copied())
    }

    /// Begins a step of several sequences, one token each: pairs of a slot and its token, in the order of the slots. They
    /// give the bits that each gives alone, and the weights are read once. [`Rows::All`] gives their logits in that order.
    ///
    /// # Errors
    /// As [`Model::begin`], or [`StepError::Slot`].
    pub fn begin_each(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        tokens: &[(usize, u32)],
    ) -> Result<(), StepError> {
        let mut taking_part = 0u64;
        for &(slot, _) in tokens {
            session.check_slot(slot)?;
            if taking_part >> slot != 0 {
                return Err(StepError::Slot { slot, slots: session.slots });
            }
            taking_part |= 1 << slot;
        }
        let members = Members::Each(taking_part);
        self.begin_for(session, source, members, tokens.iter().map(|&(_, token)| token))
    }

    fn begin_for(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        members: Members,
        tokens: impl ExactSizeIterator<Item = u32> + Clone,
    ) -> Result<(), StepError> {
        let (config, vocab) = (self.config(), self.config().vocab);
        session.check(config)?;
        if session.suspended_at().is_some() {
            return Err(StepError::Suspended);
        }
        let count = tokens.len();
        if count == 0 {
            return Err(StepError::NoTokens);
        }
        if let Some((position, token)) = tokens.clone().enumerate().find(|(_, token)| *token >= vocab) {
            return Err(StepError::Token { position, token, vocab });
        }
        if let Some((have, need)) = N::lacks(config, count, &session.scratch) {
            return Err(StepError::Buffer { name: "the working memory for a chunk", have, need });
        }
        let mut buffers = N::cut(config, count, &mut session.scratch);
        session.cursor = Cursor::Empty;
        let mut p = self.pass(source, Section::Embedding, count);
        for (t, token) in tokens.enumerate() {
            N::embed(&mut p, token, t, &mut buffers.x)?;
        }
        session.cursor = Cursor::Layer { layer: 0, tokens: count, members };
        Ok(())
    }

    /// Finishes a step that was begun, from the layer where it stands.
    ///
    /// # Errors
    /// As [`Model::advance`].
    pub fn resume(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
    ) -> Result<(), StepError> {
        while self.advance(session, source)? {}
        Ok(())
    }

    /// Lets the tokens of a step pass one more layer. Returns whether there are more.
    ///
    /// # Errors
    /// If the layer could not be computed. After [`StepError::Source`] its state is what it was before, and it may be
    /// tried again; after [`StepError::NonFinite`] only [`Session::clear`] helps. [`StepError::NotReady`] if no step was
    /// begun.
    pub fn advance(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
    ) -> Result<bool, StepError> {
        let config = self.config();
        session.check(config)?;
        let (at, tokens, members) = match session.cursor {
            Cursor::Layer { layer, tokens, members } => (layer, tokens, members),
            Cursor::Done { .. } => return Ok(false),
            Cursor::Empty => return Err(StepError::NotReady),
        };
        let section = Section::Layer(at);
        // What can't fail in the middle needs no way back; after a value that is not finite there is none.
        let copy =
            if source.is_verified(section) { N::none(&session.undo) } else { N::reborrow(&mut session.undo) };
        let all = N::reborrow(&mut session.state);
        let mut state = LayerState { all, undo: Undo::new(copy), members, layer: at as usize };
        let mut buffers = N::cut(config, tokens, &mut session.scratch);
        if let Err(error) = layer(&mut self.pass(source, section, tokens), &mut state, &mut buffers) {
            state.restore(config, tokens);
            return Err(error);
        }
        let next = at + 1;
        let done = next == config.n_layer;
        session.cursor =
            if done { Cursor::Done { tokens } } else { Cursor::Layer { layer: next, tokens, members } };
        Ok(!done)
    }

    /// Computes logits for the tokens of the last step: floats, or integers in units of [`Config::logit_unit`]. May be
    /// called again, for other rows too.
    ///
    /// # Errors
    /// [`StepError::Buffer`] if `out` is too small: `padded_vocab` elements for each token wanted.
    /// [`StepError::NotReady`] or [`StepError::Suspended`] if no step was finished.
    pub fn logits(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        rows: Rows,
        out: &mut [N::Logit],
    ) -> Result<(), StepError> {
        let config = self.config();
        session.check(config)?;
        let tokens = match session.cursor {
            Cursor::Done { tokens } => tokens,
            Cursor::Layer { .. } => return Err(StepError::Suspended),
            Cursor::Empty => return Err(StepError::NotReady),
        };
        let wanted = if rows == Rows::Last { 1 } else { tokens };
        let need = (config.padded_vocab() as usize).saturating_mul(wanted);
        let have = out.len();
        let out = out.get_mut(..need).ok_or(StepError::Buffer { name: "the logits", have, need })?;
        let buffers = N::cut(config, tokens, &mut session.scratch);
        head(&mut self.pass(source, Section::FinalNorm, tokens), rows, buffers, out)
    }
}
