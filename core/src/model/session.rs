//! Sequences that step together: the position of their step, and how it continues.

use super::StepError;
use super::operations::{Float, LayerState, MAX_SLOTS, Members, Model, Operations, Pass, Rows, Undo};
use super::step::{head, layer};
use crate::format::{Config, Section};
use crate::source::LayerSource;

/// The position of a step. The state of layers before `layer` is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    /// No tokens yet.
    Empty,
    /// `tokens` tokens have passed the layers before `layer`.
    Layer { layer: u32, tokens: usize, members: Members },
    /// `tokens` tokens have passed all layers.
    Done { tokens: usize },
}

/// The position of a session's step, without its buffers. The default is the start: no tokens yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(Cursor);

impl Default for Position {
    fn default() -> Self {
        Self(Cursor::Empty)
    }
}

impl Position {
    /// The layer at which a suspended step continues, and the number of its tokens; `None` if no step is suspended.
    #[must_use]
    pub const fn suspended(self) -> Option<(u32, usize)> {
        if let Cursor::Layer { layer, tokens, .. } = self.0 { Some((layer, tokens)) } else { None }
    }
}

/// One sequence, or several that step together: their state, their working memory, and the position of their step.
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
    /// A session of one sequence that continues from `state` (all zeros for a new sequence).
    ///
    /// `undo` holds one layer's state of the same kind; `scratch` limits how many tokens a chunk can have.
    ///
    /// # Errors
    /// [`StepError::Buffer`] names a buffer of the wrong size. `state` and `undo` must have exactly the elements of their
    /// `StateSize`, and be of one kind; `scratch` must have at least those of its `ScratchSize` for one token.
    /// [`StepError::Exponent`] for a state that no step can produce.
    pub fn new(
        model: &Model<'_, N>,
        state: N::State<'s>,
        undo: N::State<'s>,
        scratch: N::Scratch<'s>,
    ) -> Result<Self, StepError> {
        Self::with_slots(model, 1, state, undo, scratch)
    }

    /// A session of `slots` sequences. They are independent of each other, but can step together and then read the weights
    /// only once.
    ///
    /// `state` has all layers of `slots` sequences, one sequence behind the other. `undo` has one layer of each.
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

    /// Makes a session again from its buffers, to continue at `position`. Only sizes are checked, so this takes the same time
    /// for any state.
    ///
    /// State and working memory must be unchanged since `position` was taken; otherwise results are meaningless.
    ///
    /// # Errors
    /// As [`Session::with_slots`], and [`StepError::OtherModel`] if such a session can't have this `position`.
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

    /// A session whose buffers have the right sizes.
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

    /// The position of the step, for [`Session::resume_at`].
    #[must_use]
    pub const fn position(&self) -> Position {
        Position(self.cursor)
    }

    /// The state. While a step is suspended, layers before [`Session::suspended_at`] are a chunk ahead of the others.
    #[must_use]
    pub const fn state(&self) -> &N::State<'s> {
        &self.state
    }

    /// Whether the session was made for a model of this configuration: its buffers only fit that.
    fn check(&self, config: &Config) -> Result<(), StepError> {
        if self.config == *config { Ok(()) } else { Err(StepError::OtherModel) }
    }

    /// How many sequences there is room for.
    #[must_use]
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Forgets one sequence: the slot's next token is the first of a new one. A suspended step is abandoned; clear all
    /// sequences that took part in it.
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

    /// Forgets the result of the last step in the working memory: there are no logits until the next step.
    pub(super) fn forget_step(&mut self) {
        self.cursor = Cursor::Empty;
    }

    /// The layer at which a suspended step continues; `None` if no step is suspended.
    #[must_use]
    pub const fn suspended_at(&self) -> Option<u32> {
        if let Some((layer, _)) = self.position().suspended() { Some(layer) } else { None }
    }
}

impl<N: Operations> Model<'_, N> {
    fn pass<'p>(&'p self, source: &'p mut dyn LayerSource, section: Section, tokens: usize) -> Pass<'p, N> {
        Pass { model: *self, source, section, tokens }
    }

    /// Computes all layers for a chunk of tokens.
    ///
    /// # Errors
    /// After [`StepError::Source`] in a layer, [`Model::resume`] continues at that layer. If no step is suspended,
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
    /// If there are no tokens, too many for the working memory, or a token that the model does not know, or if a step is
    /// suspended. Nothing is changed then. After [`StepError::Source`] the state is unchanged too, but the last logits are
    /// lost; begin again.
    pub fn begin(
        &self,
        session: &mut Session<'_, N>,
        source: &mut dyn LayerSource,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        self.begin_slot(session, source, 0, tokens)
    }

    /// Begins a step of one of several sequences.
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

    /// Begins a step of several sequences, with one token each: pairs of a slot and its token, in the order of the slots. Each
    /// sequence gives the same bits as alone, and the weights are read once. [`Rows::All`] gives their logits in that order.
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

    /// Finishes a step that was begun, starting at its current layer.
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

    /// Computes the next layer of a step. Returns whether there are more layers.
    ///
    /// # Errors
    /// If the layer could not be computed. After [`StepError::Source`] its state is restored, and it may be tried
    /// again; after [`StepError::NonFinite`] only [`Session::clear`] helps. [`StepError::NotReady`] if no step was begun.
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
        // A step that can't fail in the middle needs no undo copy. After a value that is not finite, undoing does not help.
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

    /// Computes logits for the tokens of the last step: floats, or integers in units of [`Config::logit_unit`]. It may be
    /// called again, also for other rows.
    ///
    /// # Errors
    /// [`StepError::Buffer`] if `out` is too small: it needs `padded_vocab` elements for each token.
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
