//! Integer matrices times a chunk of tokens, in an order for 32 registers of four lanes.
//!
//! One token: two panels at once, which share the activations. More tokens: a strip of a panel at a time, with 4-bit
//! weights and scales widened once for all tokens. The sums of all tokens lie in `y` between strips, so that neither
//! weights nor activations leave the first cache. No order changes a bit: groups are still joined in theirs.

use core::ops::Range;

use crate::format::{MatrixShape, Quant};
use crate::kernels::float::isa::{Isa, TOKEN_BLOCK};
use crate::kernels::float::matmul::{self, Block, Panel};
use crate::kernels::float::{Input, Scale};
use crate::numbers::{GROUP, LANES, TILE, TILES};

/// A group of 16 rows as int8.
pub(super) type Bytes = [[u8; TILE]; TILES];
/// The same in 4 bits.
pub(super) type Nibbles = [[u8; TILE]; TILES / 2];

/// Groups in a strip: 8 KiB of weights, and half a KiB of activations a token.
const STRIP: usize = 16;

/// Products beyond those of [`Isa`].
pub(in crate::kernels::float) trait Dots: Isa {
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
    /// Adds a strip times `T` tokens to their sums. Weights are within -8 and 7 if `SMALL`.
    #[inline(always)]
    fn strip<const SMALL: bool, const T: usize>(
        self,
        strip: &Tokens<'_>,
        sums: [Self::F; T],
    ) -> [Self::F; T] {
        group_by_group::<Self, SMALL, T>(self, strip, sums)
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

/// A strip of a panel, and a block of tokens of which some are multiplied.
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
fn in_turn<S: Dots, P: Packed<S>>(s: S, panel: &OneToken<'_, P::Group>, mut sums: S::F) -> S::F {
    for ((w, ws), (x, xs)) in panel.w.iter().zip(panel.ws).zip(panel.x.iter().zip(panel.xs)) {
        sums = joined(s, sums, P::dot(s, w, x, *xs), ws, s.splat(xs.scale));
    }
    sums
}

/// A strip times tokens, whose weights are in registers for all of them.
#[inline(always)]
pub(super) fn group_by_group<S: Dots, const SMALL: bool, const T: usize>(
    s: S,
    strip: &Tokens<'_>,
    mut sums: [S::F; T],
) -> [S::F; T] {
    let (x, first) = (strip.x, strip.first);
    let activations = x.q.chunks_exact(x.tokens).zip(x.scales.chunks_exact(x.tokens));
    for ((w, ws), (q, xs)) in strip.w.iter().zip(strip.ws).zip(activations) {
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
fn joined<S: Isa>(s: S, sum: S::F, dot: S::I, ws: &[u8; 2 * LANES], scale: S::F) -> S::F {
    s.fma(s.int_to_float(dot), s.mul(s.load_f16_bytes(ws), scale), sum)
}

/// Weights of one token's products.
trait Packed<S: Dots> {
    type Group;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn dot(s: S, w: &Self::Group, x: &[i8; GROUP], xs: Scale) -> S::I;
    fn panel(s: S, panel: &OneToken<'_, Self::Group>, sums: S::F) -> S::F;
    fn pair(s: S, pair: &[OneToken<'_, Self::Group>; 2], sums: [S::F; 2]) -> [S::F; 2];
}

/// Implements it by methods of [`Isa`] and [`Dots`].
macro_rules! packed {
    ($name:ident, $group:ident, $dot:ident, $panel:ident, $pair:ident) => {
        struct $name;
        impl<S: Dots> Packed<S> for $name {
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

/// The scales of a panel, group by group; what pads them may come last.
#[inline(always)]
fn scales<'a>(panel: &Panel<'a>) -> &'a [[u8; 2 * LANES]] {
    panel.scales.as_chunks().0
}

/// `y = W x + bias` for some panels.
#[inline(always)]
pub(in crate::kernels::float) fn matmul<S: Dots>(
    s: S,
    shape: &MatrixShape,
    panels: &[u8],
    x: &Input<'_>,
    y: &mut [f32],
) {
    // Inputs that end early are worked on as far as the common order does.
    let whole = x.is_whole(shape);
    match (shape.quant(), x.tokens) {
        (Quant::Q8, 1) if whole => one_token::<S, Q8>(s, shape, panels, x, y),
        (Quant::Q4, 1) if whole => one_token::<S, Q4>(s, shape, panels, x, y),
        (Quant::Q8 | Quant::Q4, 2..) if whole => many_tokens(s, shape, panels, x, y),
        _ => matmul::matmul(s, shape, panels, x, y),
    }
}

/// A panel and the token that it meets.
#[inline(always)]
fn with<'a, S: Dots, P: Packed<S>>(panel: &Panel<'a>, x: &Input<'a>) -> OneToken<'a, P::Group> {
    OneToken { w: P::groups(panel.weights), ws: scales(panel), x: x.q.as_chunks().0, xs: x.scales }
}

#[inline(always)]
fn one_token<S: Dots, P: Packed<S>>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    let panels = panels.chunks_exact(shape.panel_bytes() as usize);
    let y = y.as_chunks_mut::<LANES>().0;
    // Of panels for which there are weights: the last one may have no second to it, however long `y` is.
    let given = panels.len().min(y.len());
    let (pairs, last) = y[..given].as_chunks_mut::<2>();
    let mut panels = panels.map(|bytes| Panel::new(shape, bytes));
    for [ya, yb] in pairs {
        let (Some(a), Some(b)) = (panels.next(), panels.next()) else { return };
        let ([sum_a], [sum_b]) = (a.start(s), b.start(s));
        let [sum_a, sum_b] = P::pair(s, &[with::<S, P>(&a, x), with::<S, P>(&b, x)], [sum_a, sum_b]);
        s.store(sum_a, ya);
        s.store(sum_b, yb);
    }
    if let ([y], Some(panel)) = (last, panels.next()) {
        let [sum] = panel.start(s);
        s.store(P::panel(s, &with::<S, P>(&panel, x), sum), y);
    }
}

/// The 4-bit weights of a group as int8.
#[inline(always)]
pub(super) fn widen(from: &Nibbles, to: &mut Bytes) {
    for (pair, tiles) in from.iter().zip(to.as_chunks_mut::<2>().0) {
        let [low, high] = tiles;
        for ((byte, low), high) in pair.iter().zip(low).zip(high) {
            *low = (byte & 15).wrapping_sub(8);
            *high = (byte >> 4).wrapping_sub(8);
        }
    }
}

/// What is prepared of a strip of a panel before the tokens pass.
struct Strip {
    tiles: [Bytes; STRIP],
    scales: [[f32; LANES]; STRIP],
}

#[inline(always)]
fn many_tokens<S: Dots>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    let (all, tokens) = (shape.cols() as usize / GROUP, x.tokens);
    let mut strip = Strip { tiles: [[[0; TILE]; TILES]; STRIP], scales: [[0.0; LANES]; STRIP] };
    let y = y.as_chunks_mut::<LANES>().0.chunks_exact_mut(tokens);
    for (bytes, y) in panels.chunks_exact(shape.panel_bytes() as usize).zip(y) {
        let panel = Panel::new(shape, bytes);
        let [start] = panel.start(s);
        for y in &mut *y {
            s.store(start, y);
        }
        for first in (0..all).step_by(STRIP) {
            let groups = first..(first + STRIP).min(all);
            let scales = scales(&panel).get(groups.clone()).unwrap_or_default();
            for (from, to) in scales.iter().zip(&mut strip.scales) {
                s.store(s.load_f16_bytes(from), to);
            }
            let scales = &strip.scales[..groups.len()];
            if shape.quant() == Quant::Q4 {
                let nibbles =
                    <Q4 as Packed<S>>::groups(panel.weights).get(groups.clone()).unwrap_or_default();
                for (from, to) in nibbles.iter().zip(&mut strip.tiles) {
                    widen(from, to);
                }
                all_blocks::<S, true>(s, &strip.tiles, scales, x, (all, &groups), y);
            } else {
                let tiles = <Q8 as Packed<S>>::groups(panel.weights).get(groups.clone()).unwrap_or_default();
                all_blocks::<S, false>(s, tiles, scales, x, (all, &groups), y);
            }
        }
    }
}

/// A strip, some groups of all, times all tokens.
#[inline(always)]
fn all_blocks<S: Dots, const SMALL: bool>(
    s: S,
    tiles: &[Bytes],
    scales: &[[f32; LANES]],
    x: &Input<'_>,
    (all, groups): (usize, &Range<usize>),
    y: &mut [[f32; LANES]],
) {
    for (i, y) in y.chunks_mut(TOKEN_BLOCK).enumerate() {
        let Some(x) = Block::new(x, i * TOKEN_BLOCK, all, groups) else { return };
        let tokens = x.tokens.min(y.len());
        let mut first = 0;
        if S::BLOCK == 3 {
            while first + 3 <= tokens {
                tile::<S, SMALL, 3>(s, tiles, scales, &x, first, y);
                first += 3;
            }
        }
        while first + 2 <= tokens {
            tile::<S, SMALL, 2>(s, tiles, scales, &x, first, y);
            first += 2;
        }
        if first < tokens {
            tile::<S, SMALL, 1>(s, tiles, scales, &x, first, y);
        }
    }
}

/// Adds a strip times `T` tokens to their sums.
#[inline(always)]
fn tile<S: Dots, const SMALL: bool, const T: usize>(
    s: S,
    tiles: &[Bytes],
    scales: &[[f32; LANES]],
    x: &Block<'_>,
    first: usize,
    y: &mut [[f32; LANES]],
) {
    let Some(y) = y.get_mut(first..).and_then(|y| y.first_chunk_mut::<T>()) else { return };
    let mut sums = [s.splat(0.0); T];
    for t in 0..T {
        sums[t] = s.load(&y[t]);
    }
    let sums = s.strip::<SMALL, T>(&Tokens { w: tiles, ws: scales, x, first }, sums);
    for t in 0..T {
        s.store(sums[t], &mut y[t]);
    }
}
