//! Where a text is among the pieces of a pre-tokenizer's stages: each cuts the pieces of the one before it.

use super::TokenizerError;
use super::pattern::{MAX_STAGES, Patterns};

/// Characters that may be looked at for each byte of a text and each stage. An expression of use takes two or three.
const STEPS_PER_BYTE: usize = 64;

/// What is left of the piece of each stage at the current place, in bytes; 0 where the piece is not known yet.
///
/// It holds no places, so that it stays right where a text moves or is continued elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Stages {
    left: [usize; MAX_STAGES],
    steps: usize,
}

/// What comes next in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A word of this length. It stays the next one until [`Stages::advance`] is called.
    Word(usize),
    /// Text of this length that is left out, and is behind already.
    Skip(usize),
    /// It depends on what comes after the text.
    Undecided,
}

impl Stages {
    /// At the start of a text.
    pub(super) const fn new() -> Self {
        Self { left: [0; MAX_STAGES], steps: 0 }
    }

    /// Finds the next word at `text[at..]`, which must not be empty. What was decided at `sure` or beyond may still change.
    ///
    /// # Errors
    /// Where the expressions look at too many characters for a text of `total` bytes.
    #[inline]
    pub(super) fn next(
        &mut self,
        patterns: &Patterns<'_>,
        text: &[u8],
        at: usize,
        sure: usize,
        total: usize,
    ) -> Result<Next, TokenizerError> {
        let mut limit = text.len();
        let stages = patterns.stages();
        if stages == 0 {
            return Ok(if sure <= limit { Next::Undecided } else { Next::Word(limit.saturating_sub(at)) });
        }
        for i in 0..stages {
            let (Some(left), Some(stage)) = (self.left.get(i).copied(), patterns.automaton(i)) else { break };
            if left > 0 {
                // It may have been decided on more of the text than there is now.
                if at.saturating_add(left) >= sure {
                    return Ok(Next::Undecided);
                }
                limit = limit.min(at.saturating_add(left));
                continue;
            }
            let piece = stage.piece(text.get(..limit).unwrap_or(text), at);
            self.steps = self.steps.saturating_add(piece.steps);
            if self.steps > STEPS_PER_BYTE.saturating_mul(stages).saturating_mul(total.saturating_add(64)) {
                return Err(TokenizerError::TooManySteps { bytes: total });
            }
            if piece.decided >= sure {
                return Ok(Next::Undecided);
            }
            let len = piece.end.saturating_sub(at).max(1);
            if !piece.kept {
                self.advance(len);
                return Ok(Next::Skip(len));
            }
            if let Some(left) = self.left.get_mut(i) {
                *left = len;
            }
            limit = limit.min(at.saturating_add(len));
        }
        Ok(Next::Word(limit.saturating_sub(at)))
    }

    /// Goes on behind `len` bytes.
    #[inline]
    pub(super) fn advance(&mut self, len: usize) {
        for left in &mut self.left {
            *left = left.saturating_sub(len);
        }
    }

    /// Forgets the pieces: another text begins.
    pub(super) fn restart(&mut self) {
        self.left = [0; MAX_STAGES];
    }
}
