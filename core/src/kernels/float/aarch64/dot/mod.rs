//! Exact dot products of int8, of groups and of panels: by `sdot`, or by products in pairs.

mod pairs;
mod panels;
mod products;
mod sdot;

use super::unpack::{Bytes, Nibbles};
use crate::kernels::float::isa::Dot;
use crate::kernels::float::matmul::Block;
use crate::kernels::float::operands::Scale;
use crate::numbers::{GROUP, LANES};

/// Products of panels, beyond those of [`Dot`].
///
/// # Safety
/// As for [`Isa`](crate::kernels::float::isa::Isa).
pub(in crate::kernels::float) unsafe trait PanelDot: Dot {
    /// Adds a panel times one token to its sums.
    #[inline(always)]
    fn panel_i8(self, panel: &OneToken<'_, Bytes>, sums: Self::F) -> Self::F {
        in_turn::<Self, Q8>(self, panel, sums)
    }
    /// The same for 4-bit weights.
    #[inline(always)]
    fn panel_u4(self, panel: &OneToken<'_, Nibbles>, sums: Self::F) -> Self::F {
        in_turn::<Self, Q4>(self, panel, sums)
    }
    /// Adds two panels times one token to their sums.
    #[inline(always)]
    fn pair_i8(self, [a, b]: &[OneToken<'_, Bytes>; 2], sums: [Self::F; 2]) -> [Self::F; 2] {
        [self.panel_i8(a, sums[0]), self.panel_i8(b, sums[1])]
    }
    /// The same for 4-bit weights.
    #[inline(always)]
    fn pair_u4(self, [a, b]: &[OneToken<'_, Nibbles>; 2], sums: [Self::F; 2]) -> [Self::F; 2] {
        [self.panel_u4(a, sums[0]), self.panel_u4(b, sums[1])]
    }
    /// A group of int8 within -8 and 7.
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T];
    /// Adds a slice of a panel times `T` tokens to their sums. Weights are within -8 and 7 if `SMALL`.
    #[inline(always)]
    fn slice<const SMALL: bool, const T: usize>(
        self,
        slice: &Tokens<'_>,
        sums: [Self::F; T],
    ) -> [Self::F; T] {
        group_by_group::<Self, SMALL, T>(self, slice, sums)
    }
}

/// The groups of a panel and of one token.
pub(in crate::kernels::float) struct OneToken<'a, G> {
    pub(super) w: &'a [G],
    /// The weights' scales, f16.
    pub(super) ws: &'a [[u8; 2 * LANES]],
    pub(super) x: &'a [[i8; GROUP]],
    /// The activations' scales.
    pub(super) xs: &'a [Scale],
}

impl<G> OneToken<'_, G> {
    /// Groups of which everything is there.
    #[inline(always)]
    pub(super) fn groups(&self) -> usize {
        self.w.len().min(self.ws.len()).min(self.x.len()).min(self.xs.len())
    }
}

/// A slice of a panel, and a block of tokens of which some are multiplied.
pub(in crate::kernels::float) struct Tokens<'a> {
    pub(super) w: &'a [Bytes],
    /// The weights' scales.
    pub(super) ws: &'a [[f32; LANES]],
    /// The activations of the same groups.
    pub(super) x: &'a Block<'a>,
    /// The first token.
    pub(super) first: usize,
}

impl Tokens<'_> {
    /// Groups of which everything is there for `tokens` tokens.
    #[inline(always)]
    pub(super) fn groups(&self, tokens: usize) -> usize {
        let x = self.x;
        if self.first + tokens > x.tokens {
            return 0;
        }
        self.w.len().min(self.ws.len()).min(x.q.len() / x.tokens).min(x.scales.len() / x.tokens)
    }
}

#[inline(always)]
fn in_turn<S: PanelDot, P: Packed<S>>(s: S, panel: &OneToken<'_, P::Group>, mut sums: S::F) -> S::F {
    for ((w, ws), (x, xs)) in panel.w.iter().zip(panel.ws).zip(panel.x.iter().zip(panel.xs)) {
        sums = joined(s, sums, P::dot(s, w, x, *xs), ws, s.splat(xs.scale));
    }
    sums
}

/// A slice times tokens, whose weights are in registers for all of them.
#[inline(always)]
pub(super) fn group_by_group<S: PanelDot, const SMALL: bool, const T: usize>(
    s: S,
    slice: &Tokens<'_>,
    mut sums: [S::F; T],
) -> [S::F; T] {
    let (x, first) = (slice.x, slice.first);
    let activations = x.q.chunks_exact(x.tokens).zip(x.scales.chunks_exact(x.tokens));
    for ((w, ws), (q, xs)) in slice.w.iter().zip(slice.ws).zip(activations) {
        let (Some((q, _)), Some((xs, _))) =
            (q[first..].split_first_chunk::<T>(), xs[first..].split_first_chunk::<T>())
        else {
            return sums;
        };
        let dots = if SMALL { s.dot_small(w, q) } else { s.dot_i8(w, q, xs) };
        let ws = s.load(ws);
        for t in 0..T {
            sums[t] = s.fma(s.int_to_float(dots[t]), s.mul(ws, s.splat(xs[t].scale)), sums[t]);
        }
    }
    sums
}

/// A sum with a group's dot products, as the scales of weights and activations say.
#[inline(always)]
fn joined<S: Dot>(s: S, sum: S::F, dot: S::I, ws: &[u8; 2 * LANES], scale: S::F) -> S::F {
    s.fma(s.int_to_float(dot), s.mul(s.load_f16_bytes(ws), scale), sum)
}

/// Weights of one token's products.
pub(super) trait Packed<S: PanelDot> {
    type Group;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn dot(s: S, w: &Self::Group, x: &[i8; GROUP], xs: Scale) -> S::I;
    fn panel(s: S, panel: &OneToken<'_, Self::Group>, sums: S::F) -> S::F;
    fn pair(s: S, pair: &[OneToken<'_, Self::Group>; 2], sums: [S::F; 2]) -> [S::F; 2];
}

/// Implements it by methods of [`Dot`] and [`PanelDot`].
macro_rules! packed {
    ($name:ident, $group:ident, $dot:ident, $panel:ident, $pair:ident) => {
        pub(super) struct $name;
        impl<S: PanelDot> Packed<S> for $name {
            type Group = $group;
            #[inline(always)]
            fn groups(bytes: &[u8]) -> &[$group] {
                bytes.as_chunks().0.as_chunks().0
            }
            #[inline(always)]
            fn dot(s: S, w: &$group, x: &[i8; GROUP], xs: Scale) -> S::I {
                let [dot] = s.$dot(w, &[*x], &[xs]);
                dot
            }
            #[inline(always)]
            fn panel(s: S, panel: &OneToken<'_, $group>, sums: S::F) -> S::F {
                s.$panel(panel, sums)
            }
            #[inline(always)]
            fn pair(s: S, pair: &[OneToken<'_, $group>; 2], sums: [S::F; 2]) -> [S::F; 2] {
                s.$pair(pair, sums)
            }
        }
    };
}

packed!(Q8, Bytes, dot_i8, panel_i8, pair_i8);
packed!(Q4, Nibbles, dot_u4, panel_u4, pair_u4);
