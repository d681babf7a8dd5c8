//! The float path and the fixed path, joined: their sizes, their memory and their steps.
//!
//! Nothing else in this crate tells them apart, but for what a state consists of (`state`).

use elapid_core::fixed;
use elapid_core::format::{Config, Fingerprint, Layout};
use elapid_core::kernels::fixed::{Group, Inverse};
use elapid_core::kernels::{self, Kernels, Scale, Team, detect, for_each_available};
use elapid_core::model::snapshot::{About, Saved, Sink, SnapshotError, Source};
use elapid_core::model::{
    Model, Position, Rows, Scratch, ScratchSize, Session, StateKind, StateSize, StepError,
};
use elapid_core::source::LayerSource;

use crate::Error;
use crate::heap::zeros;
use crate::state::{FixedState, FloatState, Kept, Logits, Slot, to_floats};

/// What zeros are wanted for.
pub(crate) const WORKING: &str = "the working memory of a step";

/// The numbers that a model is computed with, and the type of the recurrent state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Numbers {
    /// Floating point. A state in f16 takes half the memory and is rounded after every token.
    Float(StateKind),
    /// Integers. The model's matrices must be q8 or q4.
    Fixed(fixed::StateKind),
}

impl Default for Numbers {
    fn default() -> Self {
        Self::Float(StateKind::F32)
    }
}

impl Numbers {
    /// Every kind of numbers that a session can be computed with.
    pub const ALL: [Self; 4] = [
        Self::Float(StateKind::F32),
        Self::Float(StateKind::F16),
        Self::Fixed(fixed::StateKind::I16),
        Self::Fixed(fixed::StateKind::I32),
    ];

    /// The name of the state's type.
    #[must_use]
    pub const fn state_name(self) -> &'static str {
        match self {
            Self::Float(StateKind::F32) => "f32",
            Self::Float(StateKind::F16) => "f16",
            Self::Fixed(fixed::StateKind::I16) => "i16",
            Self::Fixed(fixed::StateKind::I32) => "i32",
        }
    }

    /// The same with a smaller state, if there is one.
    pub(crate) const fn smaller(self) -> Option<Self> {
        match self {
            Self::Float(StateKind::F32) => Some(Self::Float(StateKind::F16)),
            Self::Fixed(fixed::StateKind::I32) => Some(Self::Fixed(fixed::StateKind::I16)),
            _ => None,
        }
    }

    /// Bytes of the state of `layers` layers of one sequence.
    #[must_use]
    pub const fn state_bytes(self, config: &Config, layers: usize) -> usize {
        match self {
            Self::Float(kind) => StateSize::of(config, layers).bytes(kind),
            Self::Fixed(kind) => fixed::StateSize::of(config, layers).bytes(kind),
        }
    }

    /// Bytes of the working memory for chunks of `tokens` tokens.
    pub(crate) const fn scratch_bytes(self, config: &Config, tokens: usize) -> usize {
        match self {
            Self::Float(_) => ScratchSize::of(config, tokens).bytes(),
            Self::Fixed(_) => fixed::ScratchSize::of(config, tokens).bytes(),
        }
    }

    /// Bytes that a token's logits take beside those that become floats: the fixed path's are integers first.
    pub(crate) const fn integer_logits_bytes(self, config: &Config) -> usize {
        match self {
            Self::Float(_) => 0,
            Self::Fixed(_) => 4 * config.padded_vocab() as usize,
        }
    }
}

/// What computes a model, with either numbers.
#[derive(Clone, Copy)]
pub(crate) struct KernelSet {
    float: &'static dyn Kernels,
    fixed: &'static dyn kernels::fixed::Kernels,
}

impl KernelSet {
    /// Kernels by name, without regard to case, or the best. The fixed path has no variants of its own for some instruction
    /// sets: it then takes its best.
    pub(crate) fn new(name: Option<&str>) -> Result<Self, Error> {
        let mut set = Self { float: detect(), fixed: kernels::fixed::detect() };
        let Some(name) = name else { return Ok(set) };
        let (mut found, mut known) = (false, Vec::new());
        for_each_available(&mut |kernels| {
            known.push(kernels.name());
            if kernels.name().eq_ignore_ascii_case(name) {
                (set.float, found) = (kernels, true);
            }
        });
        kernels::fixed::for_each_available(&mut |kernels| {
            if kernels.name().eq_ignore_ascii_case(name) {
                set.fixed = kernels;
            }
        });
        if found { Ok(set) } else { Err(Error::Kernels { name: name.into(), known: known.join(", ") }) }
    }

    /// The name of the kernels for these numbers.
    pub(crate) fn name(&self, numbers: Numbers) -> &'static str {
        match numbers {
            Numbers::Float(_) => self.float.name(),
            Numbers::Fixed(_) => self.fixed.name(),
        }
    }
}

/// State, undo copy and working memory of some sequences, and where their step stands.
#[derive(Debug)]
pub(crate) enum Buffers {
    Float {
        state: FloatState,
        undo: FloatState,
        floats: Vec<f32>,
        ints: Vec<i8>,
        scales: Vec<Scale>,
    },
    Fixed {
        state: FixedState,
        undo: FixedState,
        words: Vec<i32>,
        halves: Vec<i16>,
        groups: Vec<Group>,
        inverses: Vec<Inverse>,
        logits: Vec<i32>,
    },
}

impl Buffers {
    /// Memory for `sequences` sequences and chunks of `chunk` tokens.
    pub(crate) fn new(
        config: &Config,
        numbers: Numbers,
        sequences: usize,
        chunk: usize,
    ) -> Result<Self, Error> {
        let layers = (config.n_layer as usize).saturating_mul(sequences);
        let tokens = chunk.max(sequences);
        Ok(match numbers {
            Numbers::Float(kind) => {
                let scratch = ScratchSize::of(config, tokens);
                Self::Float {
                    state: FloatState::new(config, layers, kind)?,
                    undo: FloatState::new(config, sequences, kind)?,
                    floats: zeros(WORKING, scratch.floats)?,
                    ints: zeros(WORKING, scratch.ints)?,
                    scales: zeros(WORKING, scratch.scales)?,
                }
            }
            Numbers::Fixed(kind) => {
                let scratch = fixed::ScratchSize::of(config, tokens);
                Self::Fixed {
                    state: FixedState::new(config, layers, kind)?,
                    undo: FixedState::new(config, sequences, kind)?,
                    words: zeros(WORKING, scratch.words)?,
                    halves: zeros(WORKING, scratch.halves)?,
                    groups: zeros(WORKING, scratch.groups)?,
                    inverses: zeros(WORKING, scratch.tokens)?,
                    logits: zeros(WORKING, (config.padded_vocab() as usize).saturating_mul(sequences))?,
                }
            }
        })
    }

    /// A copy of one sequence's state.
    pub(crate) fn keep(&self, slot: Slot) -> Result<Kept, Error> {
        Ok(match self {
            Self::Float { state, .. } => Kept::Float(state.copy(slot)?),
            Self::Fixed { state, .. } => Kept::Fixed(state.copy(slot)?),
        })
    }

    /// Gives one sequence the state that was kept; false where it is of other numbers or another model.
    pub(crate) fn restore(&mut self, slot: Slot, kept: &Kept) -> bool {
        match (self, kept) {
            (Self::Float { state, .. }, Kept::Float(kept)) => state.put(slot, kept),
            (Self::Fixed { state, .. }, Kept::Fixed(kept)) => state.put(slot, kept),
            _ => false,
        }
    }

    /// The fixed path's logits as the last call computed them.
    pub(crate) fn fixed_logits(&self) -> Option<&[i32]> {
        if let Self::Fixed { logits, .. } = self { Some(logits) } else { None }
    }

    /// The steps of `sequences` sequences over these buffers, from `position` on.
    pub(crate) fn steps<'a>(
        &'a mut self,
        sequences: usize,
        position: &'a mut Position,
        layout: &'a Layout,
        kernels: &KernelSet,
        team: &'a dyn Team,
    ) -> Result<Steps<'a>, StepError> {
        let running = match self {
            Self::Float { state, undo, floats, ints, scales } => {
                let model = Model::float(layout, kernels.float, team);
                let (state, undo) = (state.borrow(), undo.borrow());
                let scratch = Scratch { floats, ints, scales };
                let session = Session::resume_at(&model, sequences, state, undo, scratch, *position)?;
                Running::Float { model, session }
            }
            Self::Fixed { state, undo, words, halves, groups, inverses, logits } => {
                let model = Model::fixed(layout, kernels.fixed, team)?;
                let (state, undo) = (state.borrow(), undo.borrow());
                let scratch = fixed::Scratch { words, halves, groups, inverses };
                let session = Session::resume_at(&model, sequences, state, undo, scratch, *position)?;
                Running::Fixed { model, session, logits }
            }
        };
        Ok(Steps { running, position })
    }
}

/// A model and a session of one path.
enum Running<'a> {
    Float { model: Model<'a>, session: Session<'a> },
    Fixed { model: fixed::Model<'a>, session: fixed::Session<'a>, logits: &'a mut Vec<i32> },
}

/// The steps of some sequences. The position is kept up to date, so that the buffers can be taken up again at any time.
pub(crate) struct Steps<'a> {
    running: Running<'a>,
    position: &'a mut Position,
}

/// The same call on either path.
macro_rules! on_both {
    ($steps:expr, |$model:ident, $session:ident| $call:expr) => {
        match &mut $steps.running {
            Running::Float { model: $model, session: $session } => {
                let outcome = $call;
                *$steps.position = $session.position();
                outcome
            }
            Running::Fixed { model: $model, session: $session, .. } => {
                let outcome = $call;
                *$steps.position = $session.position();
                outcome
            }
        }
    };
}

impl Steps<'_> {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        on_both!(self, |_model, session| session.clear());
    }

    /// Forgets one of several sequences.
    pub(crate) fn clear_sequence(&mut self, sequence: usize) -> Result<(), StepError> {
        on_both!(self, |_model, session| session.clear_slot(sequence))
    }

    /// Begins a step of one of several sequences.
    pub(crate) fn begin_sequence(
        &mut self,
        source: &mut dyn LayerSource,
        sequence: usize,
        tokens: &[u32],
    ) -> Result<(), StepError> {
        on_both!(self, |model, session| model.begin_slot(session, source, sequence, tokens))
    }

    /// Begins a step of several sequences, one token each.
    pub(crate) fn begin_each(
        &mut self,
        source: &mut dyn LayerSource,
        tokens: &[(usize, u32)],
    ) -> Result<(), StepError> {
        on_both!(self, |model, session| model.begin_each(session, source, tokens))
    }

    /// Lets its tokens pass one more layer. Returns whether there are more.
    pub(crate) fn advance(&mut self, source: &mut dyn LayerSource) -> Result<bool, StepError> {
        on_both!(self, |model, session| model.advance(session, source))
    }

    /// Lets its tokens pass all layers that are left.
    pub(crate) fn finish(&mut self, source: &mut dyn LayerSource) -> Result<(), StepError> {
        while self.advance(source)? {}
        Ok(())
    }

    /// Logits after the last token, as they are computed.
    pub(crate) fn own_logits(
        &mut self,
        source: &mut dyn LayerSource,
        config: &Config,
    ) -> Result<Logits, StepError> {
        let padded = config.padded_vocab() as usize;
        match &mut self.running {
            Running::Float { model, session } => {
                let mut out = vec![0.0; padded];
                model.logits(session, source, Rows::Last, &mut out)?;
                Ok(Logits::Float(out))
            }
            Running::Fixed { model, session, .. } => {
                let mut out = vec![0; padded];
                model.logits(session, source, Rows::Last, &mut out)?;
                Ok(Logits::Fixed(out))
            }
        }
    }

    /// Writes the state of the first sequence and the logits after its last token.
    pub(crate) fn save<S: Sink>(
        &mut self,
        about: &About,
        logits: Option<&Logits>,
        sink: &mut S,
    ) -> Result<(), SnapshotError<S::Error>> {
        match (&mut self.running, logits) {
            (Running::Float { session, .. }, Some(Logits::Float(logits))) => {
                session.save(0, about, Some(logits), sink)
            }
            (Running::Fixed { session, .. }, Some(Logits::Fixed(logits))) => {
                session.save(0, about, Some(logits), sink)
            }
            (Running::Float { session, .. }, _) => session.save(0, about, None, sink),
            (Running::Fixed { session, .. }, _) => session.save(0, about, None, sink),
        }
    }

    /// The bytes that [`Steps::save`] writes.
    pub(crate) fn saved_bytes(&mut self, about: &About) -> u64 {
        match &mut self.running {
            Running::Float { session, .. } => session.saved_bytes(about),
            Running::Fixed { session, .. } => session.saved_bytes(about),
        }
    }

    /// Checks what [`Steps::save`] wrote, and changes nothing.
    pub(crate) fn check_saved<S: Source>(
        &mut self,
        fingerprint: &Fingerprint,
        source: &mut S,
    ) -> Result<Saved, SnapshotError<S::Error>> {
        match &mut self.running {
            Running::Float { session, .. } => session.check_saved(fingerprint, source),
            Running::Fixed { session, .. } => session.check_saved(fingerprint, source),
        }
    }

    /// Reads what [`Steps::save`] wrote into one of the sequences, with its logits.
    pub(crate) fn load<S: Source>(
        &mut self,
        slot: usize,
        fingerprint: &Fingerprint,
        config: &Config,
        source: &mut S,
    ) -> Result<(Saved, Logits), SnapshotError<S::Error>> {
        let vocab = config.vocab as usize;
        match &mut self.running {
            Running::Float { session, .. } => {
                let mut logits = vec![0.0; vocab];
                let saved = session.load(slot, fingerprint, source, &mut logits)?;
                *self.position = session.position();
                Ok((saved, Logits::Float(logits)))
            }
            Running::Fixed { session, .. } => {
                let mut logits = vec![0; vocab];
                let saved = session.load(slot, fingerprint, source, &mut logits)?;
                *self.position = session.position();
                Ok((saved, Logits::Fixed(logits)))
            }
        }
    }

    /// Computes logits. Those of the fixed path are integers, rounded to nearest where they have more than 24 bits.
    pub(crate) fn logits(
        &mut self,
        source: &mut dyn LayerSource,
        rows: Rows,
        out: &mut [f32],
    ) -> Result<(), StepError> {
        match &mut self.running {
            Running::Float { model, session } => model.logits(session, source, rows, out),
            Running::Fixed { model, session, logits } => {
                if logits.len() < out.len() {
                    logits.resize(out.len(), 0);
                }
                let logits = &mut logits[..out.len()];
                model.logits(session, source, rows, logits)?;
                to_floats(logits, model.config(), out);
                Ok(())
            }
        }
    }
}
