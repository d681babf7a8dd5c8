//! The two paths of a computation, in floating point and in integers: their memory and their steps.

use elapid_core::fixed;
use elapid_core::format::Config;
use elapid_core::kernels::fixed::{Group, Inverse, Range, SsmState as FixedSsm};
use elapid_core::kernels::{Scale, SsmState};
use elapid_core::model::{
    Model, Rows, Scratch, ScratchSize, Session, State, StateKind, StateSize, StepError,
};
use elapid_core::source::LayerSource;

use crate::sequence::zeros;
use crate::{Engine, Error, MemoryOptions};

/// What zeros are wanted for.
const STATE: &str = "the state";
const WORKING: &str = "the working memory of a step";

/// Bytes of the working memory for chunks of `tokens` tokens.
pub(crate) fn scratch_bytes(config: &Config, options: &MemoryOptions, tokens: usize) -> usize {
    match options.fixed {
        None => ScratchSize::of(config, tokens.max(options.sequences)).bytes(),
        // Logits are made floats once they are complete.
        Some(_) => {
            fixed::ScratchSize::of(config, tokens).bytes().saturating_add(4 * config.padded_vocab() as usize)
        }
    }
}

/// Bytes of the state of `layers` layers, of all sequences.
pub(crate) fn state_bytes(config: &Config, options: &MemoryOptions, layers: usize) -> usize {
    match options.fixed {
        None => StateSize::of(config, layers.saturating_mul(options.sequences.max(1))).bytes(options.state),
        Some(kind) => fixed::StateSize::of(config, layers).bytes(kind),
    }
}

/// The same with a smaller state, and how to ask for it; [`None`] where there is none.
pub(crate) fn smaller_state(options: &MemoryOptions) -> Option<(MemoryOptions, &'static str)> {
    match (options.fixed, options.state) {
        (None, StateKind::F32) => Some((MemoryOptions { state: StateKind::F16, ..*options }, "--state f16")),
        (Some(fixed::StateKind::I32), _) => {
            Some((MemoryOptions { fixed: Some(fixed::StateKind::I16), ..*options }, "--state i16"))
        }
        _ => None,
    }
}

/// The recurrent state's elements.
#[derive(Debug)]
enum Ssm {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

/// A state of the float path.
#[derive(Debug)]
pub(crate) struct FloatState {
    conv: Vec<f32>,
    ssm: Ssm,
}

impl FloatState {
    fn new(config: &Config, layers: usize, kind: StateKind) -> Result<Self, Error> {
        let size = StateSize::of(config, layers);
        let ssm = match kind {
            StateKind::F32 => Ssm::F32(zeros(STATE, size.ssm)?),
            StateKind::F16 => Ssm::F16(zeros(STATE, size.ssm)?),
        };
        Ok(Self { conv: zeros(STATE, size.conv)?, ssm })
    }

    fn lend(&mut self) -> State<'_> {
        let ssm = match &mut self.ssm {
            Ssm::F32(state) => SsmState::F32(state),
            Ssm::F16(state) => SsmState::F16(state),
        };
        State { conv: &mut self.conv, ssm }
    }
}

/// The recurrent state's elements.
#[derive(Debug)]
enum Ints {
    I16(Vec<i16>),
    I32(Vec<i32>),
}

/// A state of the fixed path.
#[derive(Debug)]
pub(crate) struct FixedState {
    conv: Vec<i32>,
    conv_exponents: Vec<u16>,
    ssm: Ints,
    ranges: Vec<Range>,
}

impl FixedState {
    fn new(config: &Config, layers: usize, kind: fixed::StateKind) -> Result<Self, Error> {
        let size = fixed::StateSize::of(config, layers);
        let ssm = match kind {
            fixed::StateKind::I16 => Ints::I16(zeros(STATE, size.ssm)?),
            fixed::StateKind::I32 => Ints::I32(zeros(STATE, size.ssm)?),
        };
        Ok(Self {
            conv: zeros(STATE, size.conv)?,
            conv_exponents: zeros(STATE, size.conv_exponents)?,
            ssm,
            ranges: zeros(STATE, size.ranges)?,
        })
    }

    fn lend(&mut self) -> fixed::State<'_> {
        let ssm = match &mut self.ssm {
            Ints::I16(state) => FixedSsm::I16(state),
            Ints::I32(state) => FixedSsm::I32(state),
        };
        let Self { conv, conv_exponents, ranges, .. } = self;
        fixed::State { conv, conv_exponents, ssm, ranges }
    }
}

/// State, undo copy and working memory of one sequence, or in floating point of several.
#[derive(Debug)]
pub(crate) enum Buffers {
    Float {
        sequences: usize,
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
    pub(crate) fn new(config: &Config, options: &MemoryOptions, chunk: usize) -> Result<Self, Error> {
        let layers = config.n_layer as usize;
        Ok(match options.fixed {
            None => {
                let sequences = options.sequences.max(1);
                let scratch = ScratchSize::of(config, chunk.max(sequences));
                Self::Float {
                    sequences,
                    state: FloatState::new(config, layers.saturating_mul(sequences), options.state)?,
                    undo: FloatState::new(config, sequences, options.state)?,
                    floats: zeros(WORKING, scratch.floats)?,
                    ints: zeros(WORKING, scratch.ints)?,
                    scales: zeros(WORKING, scratch.scales)?,
                }
            }
            Some(kind) => {
                let scratch = fixed::ScratchSize::of(config, chunk);
                Self::Fixed {
                    state: FixedState::new(config, layers, kind)?,
                    undo: FixedState::new(config, 1, kind)?,
                    words: zeros(WORKING, scratch.words)?,
                    halves: zeros(WORKING, scratch.halves)?,
                    groups: zeros(WORKING, scratch.groups)?,
                    inverses: zeros(WORKING, scratch.tokens)?,
                    logits: zeros(WORKING, config.padded_vocab() as usize)?,
                }
            }
        })
    }

    /// The steps of a new sequence.
    pub(crate) fn steps<'a>(&'a mut self, engine: &'a Engine) -> Result<Steps<'a>, StepError> {
        match self {
            Self::Float { sequences, state, undo, floats, ints, scales } => {
                let model = engine.model();
                let scratch = Scratch { floats, ints, scales };
                let mut session =
                    Session::with_slots(&model, *sequences, state.lend(), undo.lend(), scratch)?;
                session.clear();
                Ok(Steps::Float { model, session })
            }
            Self::Fixed { state, undo, words, halves, groups, inverses, logits } => {
                let model = engine.fixed_model()?;
                let scratch = fixed::Scratch { words, halves, groups, inverses };
                let mut state = state.lend();
                // What the last sequence left is not gone on from, so that it need not be valid.
                state.clear();
                let session = fixed::Session::new(&model, state, undo.lend(), scratch)?;
                Ok(Steps::Fixed { model, session, logits })
            }
        }
    }
}

/// A model and a session of one path.
pub(crate) enum Steps<'a> {
    Float { model: Model<'a>, session: Session<'a> },
    Fixed { model: fixed::Model<'a>, session: fixed::Session<'a>, logits: &'a mut Vec<i32> },
}

/// The same call on either path.
macro_rules! on_both {
    ($steps:expr, |$model:ident, $session:ident| $call:expr) => {
        match $steps {
            Steps::Float { model: $model, session: $session } => $call,
            Steps::Fixed { model: $model, session: $session, .. } => $call,
        }
    };
}

impl Steps<'_> {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        on_both!(self, |_model, session| session.clear());
    }

    /// The layer that a suspended step goes on from, and its tokens.
    pub(crate) fn suspended(&self) -> Option<(u32, usize)> {
        on_both!(self, |_model, session| session
            .suspended_at()
            .map(|layer| (layer, session.suspended_tokens())))
    }

    /// Begins a step.
    pub(crate) fn begin(&mut self, source: &mut dyn LayerSource, tokens: &[u32]) -> Result<(), StepError> {
        on_both!(self, |model, session| model.begin(session, source, tokens))
    }

    /// Lets its tokens pass one more layer. Returns whether there are more.
    pub(crate) fn advance(&mut self, source: &mut dyn LayerSource) -> Result<bool, StepError> {
        on_both!(self, |model, session| model.advance(session, source))
    }

    /// Computes logits. Those of the fixed path are integers, rounded to nearest where they have more than 24 bits.
    pub(crate) fn logits(
        &mut self,
        source: &mut dyn LayerSource,
        rows: Rows,
        out: &mut [f32],
    ) -> Result<(), StepError> {
        match self {
            Self::Float { model, session } => model.logits(session, source, rows, out),
            Self::Fixed { model, session, logits } => {
                if logits.len() < out.len() {
                    logits.resize(out.len(), 0);
                }
                let logits = &mut logits[..out.len()];
                model.logits(session, source, rows, logits)?;
                let unit = model.config().logit_unit();
                for (out, logit) in out.iter_mut().zip(logits) {
                    *out = *logit as f32 * unit;
                }
                Ok(())
            }
        }
    }
}
