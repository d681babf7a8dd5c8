//! Working memory of a step, cut from slices that the caller gives.

use super::Fixed;
use crate::format::Config;
use crate::kernels::GROUP;
use crate::kernels::fixed::{Group, Inverse, WideMut};
use crate::model::operations::Buffers;

/// Elements of the working memory for chunks of up to some number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScratchSize {
    /// Mantissas and exponents.
    pub words: usize,
    /// Mantissas of activations.
    pub halves: usize,
    /// Groups of activations.
    pub groups: usize,
    /// Tokens.
    pub tokens: usize,
}

/// Elements of each buffer.
struct Lengths {
    /// Mantissas of `x`, `xn`, `xz`, `u`, `dbc`; all but `x` have an exponent for each sixteen.
    wide: [usize; 5],
    bc: usize,
}

impl Lengths {
    const fn of(config: &Config, tokens: usize) -> Self {
        let (model, inner) = (config.padded_model() as usize, config.padded_inner() as usize);
        // The head borrows xz for a copy of the residual.
        let xz = if 2 * inner > model { 2 * inner } else { model };
        let dbc = config.x_proj().rows() as usize;
        let mut wide = [model, model, xz, inner, dbc];
        let mut i = 0;
        while i < wide.len() {
            wide[i] = wide[i].saturating_mul(tokens);
            i += 1;
        }
        Self { wide, bc: (2 * config.padded_state() as usize).saturating_mul(tokens) }
    }
}

/// The widest vector that a matrix is multiplied with, padded to 32.
const fn widest(config: &Config) -> usize {
    let (model, inner, rank) = (config.padded_model(), config.padded_inner(), config.padded_rank());
    let widest = if model > inner { model } else { inner };
    (if widest > rank { widest } else { rank }) as usize
}

/// Exponents of a token other than those of panels: of `x` before and after, of activations, of B and C.
const TOKEN: usize = 5;

impl ScratchSize {
    /// The elements that chunks of up to `tokens` tokens need: `usize::MAX` if that can't be counted.
    #[must_use]
    pub const fn of(config: &Config, tokens: usize) -> Self {
        let n = Lengths::of(config, tokens);
        let mut words = n.wide[0].saturating_add(tokens.saturating_mul(TOKEN));
        let mut i = 1;
        while i < n.wide.len() {
            words = words.saturating_add(n.wide[i]).saturating_add(n.wide[i] / 16);
            i += 1;
        }
        let q = widest(config).saturating_mul(tokens);
        Self { words, halves: q.saturating_add(n.bc), groups: q / GROUP, tokens }
    }

    /// Bytes in all.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        let groups = self.groups.saturating_mul(size_of::<Group>());
        let tokens = self.tokens.saturating_mul(size_of::<Inverse>());
        self.words
            .saturating_mul(4)
            .saturating_add(self.halves.saturating_mul(2))
            .saturating_add(groups)
            .saturating_add(tokens)
    }
}

/// Borrowed working memory. Between steps its contents are meaningless, except while a step is suspended.
#[derive(Debug)]
pub struct Scratch<'a> {
    /// At least [`ScratchSize::words`].
    pub words: &'a mut [i32],
    /// At least [`ScratchSize::halves`].
    pub halves: &'a mut [i16],
    /// At least [`ScratchSize::groups`].
    pub groups: &'a mut [Group],
    /// At least [`ScratchSize::tokens`].
    pub inverses: &'a mut [Inverse],
}

/// The residual stream of a chunk, which has one exponent a token.
pub struct Residual<'a> {
    /// `[d_model/16][T][16]`.
    pub m: &'a mut [i32],
    /// `[T]`.
    pub e: &'a mut [i32],
    /// Exponents of bounds on the elements, `[T]`: [`Operations::norm`](crate::model::operations::Operations::norm) finds them.
    pub top: &'a mut [i32],
}

/// The buffers of operations other than their vectors, for chunks of `T` tokens.
pub struct Work<'a> {
    /// Reciprocals of the root mean squares, `[T]`.
    pub inv: &'a mut [Inverse],
    /// Activations, `[d/32][T][32]`.
    pub q: &'a mut [i16],
    /// Their groups, `[d/32][T]`.
    pub groups: &'a mut [Group],
    /// Their vectors' exponents, `[T]`.
    pub qe: &'a mut [i32],
    /// B and C as activations, `[d_state/16][T][16]` each.
    pub bc: &'a mut [i16],
    /// Their exponents, `[2][T]`.
    pub bce: &'a mut [i32],
}

impl Scratch<'_> {
    /// Elements.
    #[must_use]
    pub fn size(&self) -> ScratchSize {
        let Self { words, halves, groups, inverses } = self;
        ScratchSize { words: words.len(), halves: halves.len(), groups: groups.len(), tokens: inverses.len() }
    }

    /// Whether it is large enough for chunks of `tokens` tokens.
    #[must_use]
    pub fn fits(&self, config: &Config, tokens: usize) -> bool {
        let (have, need) = (self.size(), ScratchSize::of(config, tokens));
        have.words >= need.words
            && have.halves >= need.halves
            && have.groups >= need.groups
            && have.tokens >= need.tokens
    }

    /// Cuts it into buffers; it must be large enough.
    pub(super) fn cut(&mut self, config: &Config, tokens: usize) -> Buffers<'_, Fixed> {
        let n = Lengths::of(config, tokens);
        let mut rest = &mut *self.words;
        let mut take = |len: usize| rest.split_off_mut(..len).unwrap_or_default();
        let x = Residual { m: take(n.wide[0]), e: take(tokens), top: take(tokens) };
        let (qe, bce) = (take(tokens), take(2 * tokens));
        let mut vectors = |len: usize| WideMut { m: take(len), e: take(len / 16) };
        let (xn, xz) = (vectors(n.wide[1]), vectors(n.wide[2]));
        let (u, dbc) = (vectors(n.wide[3]), vectors(n.wide[4]));
        let (bc, q) = self.halves.split_at_mut_checked(n.bc).unwrap_or_default();
        let inv = self.inverses.get_mut(..tokens).unwrap_or_default();
        Buffers { x, xn, xz, u, dbc, work: Work { inv, q, groups: self.groups, qe, bc, bce } }
    }
}
