//! Why a step could not be done.

use core::fmt;

use crate::format::{Quant, Section};
use crate::source::SourceError;

/// Why a step could not be done. Except after [`StepError::NonFinite`], the state is as it was after the last complete layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError {
    /// Weights could not be had. A step that had begun its layers may be resumed.
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
    /// A step was begun and not finished: resume it, or clear the session.
    Suspended,
    /// There is no step to go on with, or none whose logits could be computed.
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
    /// A state of the fixed path that no step can have left behind.
    Exponent {
        /// Which state.
        name: &'static str,
        /// Where in it: a row of sixteen of the convolution's, a channel of the recurrent one.
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
                write!(f, "token {token} at position {position} is not below the vocabulary of {vocab}")
            }
            Self::Slot { slot, slots } => write!(
                f,
                "slot {slot} of {slots}: slots are numbered from 0, and those that step together are given in ascending order"
            ),
            Self::NoTokens => f.write_str("no tokens: give at least one"),
            Self::Buffer { name, have, need } => write!(f, "{name} has {have} elements and needs {need}"),
            Self::Suspended => {
                f.write_str("a step was begun and not finished: resume it, or clear the session")
            }
            Self::OtherModel => {
                f.write_str("the session was made for another model: make one for this model")
            }
            Self::Type { matrix, quant } => write!(
                f,
                "the fixed path takes matrices as q8 and q4, and {matrix} is {}: pack the model as one of them, or take the \
                 float path",
                quant.name()
            ),
            Self::Exponent { name, index, exponent } => write!(
                f,
                "{name} is damaged: exponent {exponent} at place {index} is out of range or too small for its mantissas; \
                 start a new session"
            ),
            Self::NotReady => {
                f.write_str("no tokens have passed the model since the session began: give some first")
            }
        }
    }
}

impl core::error::Error for StepError {}
