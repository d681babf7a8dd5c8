//! Integer matrices times a chunk of tokens, in an order for 32 registers of four lanes.
//!
//! One token: two panels at once, which share the activations. More tokens: a strip of a panel at a time, with 4-bit
//! weights and scales widened once for all tokens. The sums of all tokens lie in `y` between strips, so that neither
//! weights nor activations leave the first cache. No order changes a bit: groups are still joined in theirs.

use core::ops::Range;

use crate::format::{MatrixShape, Quant};
use crate::kernels::isa::{GROUP, Isa, LANES, TILE, TILES, TOKEN_BLOCK};
use crate::kernels::matmul::{self, Block, Panel};
use crate::kernels::{Input, Scale};

/// A group of 16 rows as int8.
pub(super) type Bytes = [[u8; TILE]; TILES];
/// The same in 4 bits.
pub(super) type Nibbles = [[u8; TILE]; TILES / 2];

/// Groups in a strip: 8 KiB of weights, and half a KiB of activations a token.
const STRIP: usize = 16;

/// Dot products beyond those of [`Isa`].
pub(in crate::kernels) trait Dots: Isa {
    /// Adds two panels times one token to their sums.
    #[inline(always)]
    fn pair_i8(self, pair: &Pair<'_, Bytes>, sums: [Self::F; 2]) -> [Self::F; 2] {
        in_turn::<Self, Q8>(self, pair, sums)
    }
    /// The same for 4-bit weights.
    #[inline(always)]
    fn pair_u4(self, pair: &Pair<'_, Nibbles>, sums: [Self::F; 2]) -> [Self::F; 2] {
        in_turn::<Self, Q4>(self, pair, sums)
    }
    /// A group of 4-bit weights with one token, whose integers have this sum.
    fn one_u4(self, w: &Nibbles, x: &[i8; GROUP], sum: i32) -> Self::I;
    /// A group of int8 within -8 and 7.
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T];
}

/// The groups of two panels and of one token.
pub(in crate::kernels) struct Pair<'a, G> {
    /// Each panel's weights.
    pub(super) w: [&'a [G]; 2],
    /// Their scales, f16.
    pub(super) ws: [&'a [[u8; 2 * LANES]]; 2],
    /// The token's activations.
    pub(super) x: &'a [[i8; GROUP]],
    /// Their scales.
    pub(super) xs: &'a [Scale],
}

impl<G> Pair<'_, G> {
    /// Groups of which everything is there.
    #[inline(always)]
    pub(super) fn groups(&self) -> usize {
        let ([wa, wb], [sa, sb]) = (self.w, self.ws);
        wa.len().min(wb.len()).min(sa.len()).min(sb.len()).min(self.x.len()).min(self.xs.len())
    }
}

/// Two panels times one token, group by group, so that what both need of the token is at hand.
#[inline(always)]
fn in_turn<S: Dots, P: Packed<S>>(s: S, pair: &Pair<'_, P::Group>, sums: [S::F; 2]) -> [S::F; 2] {
    let ([mut a, mut b], [wa, wb], [sa, sb]) = (sums, pair.w, pair.ws);
    let weights = wa.iter().zip(wb).zip(sa.iter().zip(sb));
    for (((wa, wb), (sa, sb)), (x, xs)) in weights.zip(pair.x.iter().zip(pair.xs)) {
        let (dot_a, dot_b, scale) = (P::one(s, wa, x, *xs), P::one(s, wb, x, *xs), s.splat(xs.scale));
        a = joined(s, a, dot_a, sa, scale);
        b = joined(s, b, dot_b, sb, scale);
    }
    [a, b]
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
    fn one(s: S, w: &Self::Group, x: &[i8; GROUP], xs: Scale) -> S::I;
    fn pair(s: S, pair: &Pair<'_, Self::Group>, sums: [S::F; 2]) -> [S::F; 2];
}

struct Q8;
impl<S: Dots> Packed<S> for Q8 {
    type Group = Bytes;
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Bytes] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn one(s: S, w: &Bytes, x: &[i8; GROUP], xs: Scale) -> S::I {
        let [dot] = s.dot_i8(w, &[*x], &[xs]);
        dot
    }
    #[inline(always)]
    fn pair(s: S, pair: &Pair<'_, Bytes>, sums: [S::F; 2]) -> [S::F; 2] {
        s.pair_i8(pair, sums)
    }
}

struct Q4;
impl<S: Dots> Packed<S> for Q4 {
    type Group = Nibbles;
    #[inline(always)]
    fn groups(bytes: &[u8]) -> &[Nibbles] {
        bytes.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn one(s: S, w: &Nibbles, x: &[i8; GROUP], xs: Scale) -> S::I {
        s.one_u4(w, x, xs.sum)
    }
    #[inline(always)]
    fn pair(s: S, pair: &Pair<'_, Nibbles>, sums: [S::F; 2]) -> [S::F; 2] {
        s.pair_u4(pair, sums)
    }
}

/// The scales of a panel, group by group; what pads them may come last.
#[inline(always)]
fn scales<'a>(panel: &Panel<'a>) -> &'a [[u8; 2 * LANES]] {
    panel.scales.as_chunks().0
}

/// `y = W x + bias` for some panels.
#[inline(always)]
pub(in crate::kernels) fn matmul<S: Dots>(
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

#[inline(always)]
fn one_token<S: Dots, P: Packed<S>>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    let panels = panels.chunks_exact(shape.panel_bytes() as usize);
    let y = y.as_chunks_mut::<LANES>().0;
    // Of panels for which there are weights: the last one may have no second to it, however long `y` is.
    let given = panels.len().min(y.len());
    let (pairs, last) = y[..given].as_chunks_mut::<2>();
    let mut panels = panels.map(|bytes| Panel::new(shape, bytes));
    let (x, xs) = (x.q.as_chunks().0, x.scales);
    for [ya, yb] in pairs {
        let (Some(a), Some(b)) = (panels.next(), panels.next()) else { return };
        let ([sum_a], [sum_b]) = (a.start(s), b.start(s));
        let w = [P::groups(a.weights), P::groups(b.weights)];
        let [sum_a, sum_b] = P::pair(s, &Pair { w, ws: [scales(&a), scales(&b)], x, xs }, [sum_a, sum_b]);
        s.store(sum_a, ya);
        s.store(sum_b, yb);
    }
    if let ([y], Some(panel)) = (last, panels.next()) {
        let [mut sum] = panel.start(s);
        for ((w, ws), (x, xs)) in P::groups(panel.weights).iter().zip(scales(&panel)).zip(x.iter().zip(xs)) {
            sum = joined(s, sum, P::one(s, w, x, *xs), ws, s.splat(xs.scale));
        }
        s.store(sum, y);
    }
}

/// The 4-bit weights of a group as int8.
#[inline(always)]
fn widen(from: &Nibbles, to: &mut Bytes) {
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
    let activations = x.q.chunks_exact(x.tokens).zip(x.scales.chunks_exact(x.tokens));
    for ((w, ws), (q, xs)) in tiles.iter().zip(scales).zip(activations) {
        let (Some((q, _)), Some((xs, _))) =
            (q[first..].split_first_chunk::<T>(), xs[first..].split_first_chunk::<T>())
        else {
            return;
        };
        let dots = if SMALL { s.dot_small(w, q) } else { s.dot_i8(w, q, xs) };
        let ws = s.load(ws);
        for t in 0..T {
            sums[t] = s.fma(s.int_to_float(dots[t]), s.mul(ws, s.splat(xs[t].scale)), sums[t]);
        }
    }
    for t in 0..T {
        s.store(sums[t], &mut y[t]);
    }
}
