//! The recurrent state: all that a model remembers.

use crate::format::Config;
use crate::kernels::fixed::{Range, SsmState};
use crate::model::StepError;
use crate::numbers::fixed::{LOW, bits, magnitude};

/// The type of the recurrent state. The convolution's state always has 30 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateKind {
    /// 15 bits and sign, with an exponent a channel.
    #[default]
    I16,
    /// 29 bits and sign, with an exponent a channel.
    I32,
}

/// A bound on the exponents of the convolution's inputs that no file can reach: products of a few f32, at most 2^128 each, with scales
/// below 2 stay below 2^200.
const INPUT_TOP: i32 = 1 << 10;
/// A bound on the exponents of states that no file can reach: dt, u and B are at most three such series of products each. With inputs
/// within the bound above, the part that is added to a state stays below the largest exponent there is.
const STATE_TOP: i32 = 1 << 12;

/// The state of all layers, borrowed. All zeros is the state before the first token.
#[derive(Debug)]
pub struct State<'a> {
    /// `[n_layer][d_inner/16][d_conv - 1][16]`, the last inputs of the convolution, oldest first.
    pub conv: &'a mut [i32],
    /// Their exponents above the lowest there is, `[n_layer][d_inner/16][d_conv - 1]`.
    pub conv_exponents: &'a mut [u16],
    /// `[n_layer][d_inner/16][d_state][16]`.
    pub ssm: SsmState<'a>,
    /// `[n_layer][d_inner]`.
    pub ranges: &'a mut [Range],
}

/// Elements of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSize {
    /// Mantissas of the convolution's part.
    pub conv: usize,
    /// Its exponents.
    pub conv_exponents: usize,
    /// Elements of the recurrent part.
    pub ssm: usize,
    /// Its channels.
    pub ranges: usize,
}

impl StateSize {
    /// The state of `layers` layers: `usize::MAX` if that many can't be counted.
    #[must_use]
    pub const fn of(config: &Config, layers: usize) -> Self {
        Self {
            conv: config.conv_state_len().saturating_mul(layers),
            conv_exponents: (config.conv_state_len() / 16).saturating_mul(layers),
            ssm: config.ssm_state_len().saturating_mul(layers),
            ranges: (config.padded_inner() as usize).saturating_mul(layers),
        }
    }

    /// Bytes of such a state.
    #[must_use]
    pub const fn bytes(&self, kind: StateKind) -> usize {
        let ssm = self.ssm.saturating_mul(if matches!(kind, StateKind::I32) { 4 } else { 2 });
        let conv = self.conv.saturating_mul(4).saturating_add(self.conv_exponents.saturating_mul(2));
        conv.saturating_add(ssm).saturating_add(self.ranges.saturating_mul(size_of::<Range>()))
    }
}

impl State<'_> {
    /// The elements.
    #[must_use]
    pub fn size(&self) -> StateSize {
        let ssm = match &self.ssm {
            SsmState::I16(s) => s.len(),
            SsmState::I32(s) => s.len(),
        };
        StateSize {
            conv: self.conv.len(),
            conv_exponents: self.conv_exponents.len(),
            ssm,
            ranges: self.ranges.len(),
        }
    }

    /// The type of the recurrent part.
    #[must_use]
    pub fn kind(&self) -> StateKind {
        if matches!(self.ssm, SsmState::I16(_)) { StateKind::I16 } else { StateKind::I32 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.conv.fill(0);
        self.conv_exponents.fill(0);
        match &mut self.ssm {
            SsmState::I16(s) => s.fill(0),
            SsmState::I32(s) => s.fill(0),
        }
        self.ranges.fill(Range::default());
    }

    /// Whether steps of a model file can produce these mantissas and exponents: only then nothing can overflow.
    ///
    /// For any weights these are:
    /// * inputs of the convolution: sums of a matrix, shifted to 30 bits and rounded half up, so within 2^30 on both sides,
    ///   2^30 itself included. Their exponent is bounded by [`INPUT_TOP`];
    /// * states: the decayed state is within 2^28, the added part within 2^28 - 2^14, as B is within 2^14 - 1. The sum is within
    ///   2^29 - 2^14: 29 bits, and 15 after rounding to i16. A range has exactly the bits of its channel's largest state, and
    ///   its top is bounded by [`STATE_TOP`].
    pub(super) fn check(&self, config: &Config) -> Result<(), StepError> {
        let error = |name, index, exponent| Err(StepError::Exponent { name, index, exponent });
        let rows = self.conv.as_chunks::<16>().0.iter().zip(self.conv_exponents.iter());
        for (index, (row, e)) in rows.enumerate() {
            let largest = row.iter().fold(0, |largest, m| m.unsigned_abs().max(largest));
            let top = i32::from(*e) + LOW + bits(largest);
            if largest > 1 << 30 || top > INPUT_TOP {
                return error("the convolution state", index, top);
            }
        }
        let d_state = config.d_state as usize;
        for (index, range) in self.ranges.iter().enumerate() {
            let (panel, lane) = (index / 16, index % 16);
            let places = (panel * d_state..(panel + 1) * d_state).map(|row| row * 16 + lane);
            let (largest, most) = match &self.ssm {
                SsmState::I16(s) => {
                    (places.fold(0, |all, i| all | magnitude(s.get(i).map_or(0, |m| i32::from(*m)))), 15)
                }
                SsmState::I32(s) => {
                    (places.fold(0, |all, i| all | magnitude(s.get(i).copied().unwrap_or(0))), 29)
                }
            };
            let held = range.top() - range.unit();
            if range.top() > STATE_TOP || bits(largest) > held || held > most {
                return error("the recurrent state", index, range.top());
            }
        }
        Ok(())
    }
}
