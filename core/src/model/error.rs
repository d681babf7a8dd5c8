//! Why a step could not be done.

use core::fmt;

use crate::format::{Quant, Section};
use crate::source::SourceError;

/// Why a step could not be done. Except after [`StepError::NonFinite`], the state is as it was after the last complete layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError {
    /// Weights could not be read. A step that had begun its layers may be resumed.
    Source(SourceError),
    /// An activation became infinite or NaN. Only clearing the session helps.
    NonFinite {
        /// Where: a layer, or the head.
        section: Section,
    },
    /// A token that the model does not know.
    Token {
        /// Its place in the chunk.
        position: usize,
        /// The token.
        token: u32,
        /// Tokens that the model knows.
        vocab: u32,
    },
    /// No tokens were given.
    NoTokens,
    /// A slot that the session does not have, or slots out of order.
    Slot {
        /// The slot, or how many were asked for.
        slot: usize,
        /// How many there are, or can be.
        slots: usize,
    },
    /// Buffers are too small for the model or the chunk.
    Buffer {
        /// Which.
        name: &'static str,
        /// Elements it has.
        have: usize,
        /// Elements it needs.
        need: usize,
    },
    /// A step was begun but not finished: resume it, or clear the session.
    Suspended,
    /// There is no step to continue, or none whose logits could be computed.
    NotReady,
    /// The session was made for another model.
    OtherModel,
    /// The fixed path has no kernels for a type of matrix.
    Type {
        /// The matrix.
        matrix: &'static str,
        /// Its type.
        quant: Quant,
    },
    /// A state of the fixed path that no step can produce.
    Exponent {
        /// Which state.
        name: &'static str,
        /// Where in it: a row of sixteen values of the convolution's state, or a channel of the recurrent state.
        index: usize,
        /// The exponent of the values there.
        exponent: i32,
    },
}

impl From<SourceError> for StepError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(error) => error.fmt(f),
            Self::NonFinite { section } => write!(
                f,
                "a value became infinite or NaN in {section}: the weights or the state are damaged or out of range; \
                 verify the model file and start a new session"
            ),
            Self::Token { position, token, vocab } => {
                write!(
                    f,
                    "token {token} at position {position} is not in the vocabulary: give ids below {vocab}"
                )
            }
            Self::Slot { slot, slots } => write!(
                f,
                "slot {slot} of {slots}: number slots from 0, and give those that step together in ascending order"
            ),
            Self::NoTokens => f.write_str("no tokens: give at least one"),
            Self::Buffer { name, have, need } => write!(f, "{name} has {have} elements and needs {need}"),
            Self::Suspended => {
                f.write_str("a step was begun but not finished: resume it, or clear the session")
            }
            Self::OtherModel => {
                f.write_str("the session was made for another model: make one for this model")
            }
            Self::Type { matrix, quant } => write!(
                f,
                "the fixed path supports only q8 and q4 matrices, and {matrix} is {}: pack the model as q8 or q4, or use the \
                 float path",
                quant.name()
            ),
            Self::Exponent { name, index, exponent } => write!(
                f,
                "{name} is damaged: exponent {exponent} at index {index} is out of range or too small for its mantissas; \
                 start a new session"
            ),
            Self::NotReady => f.write_str("no tokens were fed since the session began: feed some first"),
        }
    }
}

impl core::error::Error for StepError {}
