//! The recurrent state: all that a model remembers.

use crate::format::Config;
use crate::kernels::SsmState;

/// The type of the recurrent state. The convolution's state is always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateKind {
    /// f32.
    #[default]
    F32,
    /// f16, rounded after every token and saturating.
    F16,
}

/// The state of all layers, borrowed.
#[derive(Debug)]
pub struct State<'a> {
    /// `[n_layer][d_inner/16][d_conv - 1][16]`, the last inputs of the convolution, oldest first.
    pub conv: &'a mut [f32],
    /// `[n_layer][d_inner/16][d_state][16]`.
    pub ssm: SsmState<'a>,
}

/// Elements of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSize {
    /// Floats of the convolution's part.
    pub conv: usize,
    /// Elements of the recurrent part.
    pub ssm: usize,
}

impl StateSize {
    /// The state of `layers` layers: `usize::MAX` if that many can't be counted.
    #[must_use]
    pub const fn of(config: &Config, layers: usize) -> Self {
        Self {
            conv: config.conv_state_len().saturating_mul(layers),
            ssm: config.ssm_state_len().saturating_mul(layers),
        }
    }

    /// Bytes of such a state.
    #[must_use]
    pub const fn bytes(&self, kind: StateKind) -> usize {
        let ssm = self.ssm.saturating_mul(if matches!(kind, StateKind::F32) { 4 } else { 2 });
        self.conv.saturating_mul(4).saturating_add(ssm)
    }
}

impl State<'_> {
    /// The elements.
    #[must_use]
    pub fn size(&self) -> StateSize {
        let ssm = match &self.ssm {
            SsmState::F32(s) => s.len(),
            SsmState::F16(s) => s.len(),
        };
        StateSize { conv: self.conv.len(), ssm }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.conv.fill(0.0);
        match &mut self.ssm {
            SsmState::F32(s) => s.fill(0.0),
            SsmState::F16(s) => s.fill(0),
        }
    }
}
