//! Working memory of a step, cut from slices that the caller gives.

use super::Float;
use crate::format::Config;
use crate::kernels::{GROUP, Scale};
use crate::model::operations::Buffers;

/// Elements of the working memory for chunks of up to some number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchSize {
    /// Floats.
    pub floats: usize,
    /// int8 activations.
    pub ints: usize,
    /// Scales of groups of activations.
    pub scales: usize,
}

/// Floats of each buffer.
struct Lengths {
    x: usize,
    xn: usize,
    xz: usize,
    u: usize,
    dbc: usize,
    inv: usize,
}

impl Lengths {
    const fn of(config: &Config, tokens: usize) -> Self {
        let (model, inner) = (config.padded_model() as usize, config.padded_inner() as usize);
        Self {
            x: model.saturating_mul(tokens),
            xn: model.saturating_mul(tokens),
            // The head borrows it for a copy of the residual.
            xz: (if 2 * inner > model { 2 * inner } else { model }).saturating_mul(tokens),
            u: inner.saturating_mul(tokens),
            dbc: (config.x_proj().rows() as usize).saturating_mul(tokens),
            inv: tokens,
        }
    }
}

/// The widest vector that a matrix is multiplied with, padded to 32.
const fn widest(config: &Config) -> usize {
    let (model, inner, rank) = (config.padded_model(), config.padded_inner(), config.padded_rank());
    let widest = if model > inner { model } else { inner };
    (if widest > rank { widest } else { rank }) as usize
}

impl ScratchSize {
    /// The elements that chunks of up to `tokens` tokens need: `usize::MAX` if that can't be counted.
    #[must_use]
    pub const fn of(config: &Config, tokens: usize) -> Self {
        let n = Lengths::of(config, tokens);
        let ints = widest(config).saturating_mul(tokens);
        let projected = n.xz.saturating_add(n.u).saturating_add(n.dbc);
        let floats = n.x.saturating_add(n.xn).saturating_add(projected).saturating_add(n.inv);
        Self { floats, ints, scales: ints / GROUP }
    }

    /// Bytes in all.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        let scales = self.scales.saturating_mul(size_of::<Scale>());
        self.floats.saturating_mul(4).saturating_add(self.ints).saturating_add(scales)
    }
}

/// Borrowed working memory. Between steps its contents are meaningless, except while a step is suspended.
#[derive(Debug)]
pub struct Scratch<'a> {
    /// At least [`ScratchSize::floats`].
    pub floats: &'a mut [f32],
    /// At least [`ScratchSize::ints`].
    pub ints: &'a mut [i8],
    /// At least [`ScratchSize::scales`].
    pub scales: &'a mut [Scale],
}

/// The buffers of operations other than their vectors, for chunks of `T` tokens.
pub struct Work<'a> {
    /// Reciprocals of the root mean squares, `[T]`.
    pub inv: &'a mut [f32],
    /// Activations as int8.
    pub q: &'a mut [i8],
    /// Their scales.
    pub scales: &'a mut [Scale],
}

impl Scratch<'_> {
    /// Elements.
    #[must_use]
    pub fn size(&self) -> ScratchSize {
        ScratchSize { floats: self.floats.len(), ints: self.ints.len(), scales: self.scales.len() }
    }

    /// Whether it is large enough for chunks of `tokens` tokens.
    #[must_use]
    pub fn fits(&self, config: &Config, tokens: usize) -> bool {
        let (have, need) = (self.size(), ScratchSize::of(config, tokens));
        have.floats >= need.floats && have.ints >= need.ints && have.scales >= need.scales
    }

    /// Cuts it into buffers; it must be large enough.
    pub(in crate::model) fn cut(&mut self, config: &Config, tokens: usize) -> Buffers<'_, Float> {
        let n = Lengths::of(config, tokens);
        let mut rest = &mut *self.floats;
        let mut take = |len: usize| rest.split_off_mut(..len).unwrap_or_default();
        let (x, xn, xz, u) = (take(n.x), take(n.xn), take(n.xz), take(n.u));
        let (dbc, inv) = (take(n.dbc), take(n.inv));
        Buffers { x, xn, xz, u, dbc, work: Work { inv, q: self.ints, scales: self.scales } }
    }
}
