//! What a layer remembers of the sequences that step together, and how it is undone.

use core::ops::Range;

use super::numbers::Operations;
use super::session::Members;
use crate::format::Config;

/// What one layer's state was before a step, as far as the step has overwritten it: a layer that fails leaves no trace.
pub struct Undo<'u, N: Operations> {
    /// Of one layer, that of the sequences that take part one behind the other; empty where nothing need be undone.
    pub state: N::State<'u>,
    /// Panels of the convolution's state that are copied.
    pub conv: usize,
    /// Panels of the recurrent state that are copied.
    pub ssm: usize,
}

impl<'u, N: Operations> Undo<'u, N> {
    /// Nothing is copied yet.
    pub const fn new(state: N::State<'u>) -> Self {
        Self { state, conv: 0, ssm: 0 }
    }
}

/// A layer's part of the state of all sequences.
pub struct LayerState<'r, N: Operations> {
    /// Of all layers and all sequences.
    pub all: N::State<'r>,
    /// Where operations keep what they are about to overwrite.
    pub undo: Undo<'r, N>,
    /// The sequences that take part.
    pub members: Members,
    pub layer: usize,
}

impl<N: Operations> LayerState<'_, N> {
    /// Elements of a sequence's state of all layers, and which of them are this layer's, where a layer has `len`.
    pub fn of_layer(&self, config: &Config, len: usize) -> (usize, Range<usize>) {
        let start = self.layer.saturating_mul(len);
        ((config.n_layer as usize).saturating_mul(len), start..start.saturating_add(len))
    }

    /// Gives all that was overwritten back.
    pub fn restore(&mut self, config: &Config, tokens: usize) {
        let copied = (self.undo.conv, self.undo.ssm);
        for (i, (sequence, _)) in self.members.of(tokens).enumerate() {
            let layer = sequence.saturating_mul(config.n_layer as usize).saturating_add(self.layer);
            let saved = N::layer(config, &mut self.undo.state, i);
            N::copy(config, copied, &saved, &mut N::layer(config, &mut self.all, layer));
        }
    }
}
