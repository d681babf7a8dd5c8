//! The recurrent state: all that a model remembers.

use crate::format::Config;
use crate::kernels::{LANES, SsmState};

/// How the recurrent state is kept. The convolution's is always f32.
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
    /// The state of `layers` layers: `usize::MAX` where that many can't be counted.
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

    /// The state of one layer. `config` is the one that the state was sized by.
    pub(super) fn layer(&mut self, config: &Config, layer: usize) -> State<'_> {
        State {
            conv: part(self.conv, config.conv_state_len(), layer),
            ssm: match &mut self.ssm {
                SsmState::F32(s) => SsmState::F32(part(s, config.ssm_state_len(), layer)),
                SsmState::F16(s) => SsmState::F16(part(s, config.ssm_state_len(), layer)),
            },
        }
    }

    /// The same, for less long.
    pub(super) fn lend(&mut self) -> State<'_> {
        State { conv: self.conv, ssm: self.ssm.reborrow() }
    }
}

/// What one layer's state was before a step, as far as the step has overwritten it: a layer that fails leaves no trace.
pub(super) struct Undo<'u> {
    /// Of one layer, that of the sequences that take part one behind the other; empty where nothing need be undone.
    pub state: State<'u>,
    /// Panels of the convolution's state that are copied.
    pub conv: usize,
    /// Panels of the recurrent state that are copied.
    pub ssm: usize,
}

impl<'u> Undo<'u> {
    /// Nothing is copied yet.
    pub(super) const fn new(state: State<'u>) -> Self {
        Self { state, conv: 0, ssm: 0 }
    }

    /// Gives the layer of the sequence that takes part as `i`-th its state back.
    pub(super) fn restore(&mut self, config: &Config, i: usize, layer: &mut State<'_>) {
        let saved = self.state.layer(config, i);
        let len = self.conv * (config.d_conv as usize - 1) * LANES;
        copy(layer.conv, first(saved.conv, len));
        let len = self.ssm * config.d_state as usize * LANES;
        match (&mut layer.ssm, saved.ssm) {
            (SsmState::F32(to), SsmState::F32(from)) => copy(to, first(from, len)),
            (SsmState::F16(to), SsmState::F16(from)) => copy(to, first(from, len)),
            _ => debug_assert!(false, "states of two kinds"),
        }
    }
}

fn part<T>(all: &mut [T], len: usize, index: usize) -> &mut [T] {
    all.get_mut(index * len..(index + 1) * len).unwrap_or_default()
}

/// Copies as much as there is room for.
pub(super) fn copy<T: Copy>(to: &mut [T], from: &[T]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// The first `len` elements, or all.
fn first<T>(all: &[T], len: usize) -> &[T] {
    all.get(..len).unwrap_or(all)
}
