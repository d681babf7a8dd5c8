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
    /// A group of two panels with one token.
    fn two_panels_i8(self, w: [&Bytes; 2], x: &[i8; GROUP]) -> [Self::I; 2];
    /// The same for 4-bit weights.
    fn two_panels_u4(self, w: [&Nibbles; 2], x: &[i8; GROUP], sum: i32) -> [Self::I; 2];
    /// A group of int8 within -8 and 7.
    fn dot_small<const T: usize>(self, w: &Bytes, x: &[[i8; GROUP]; T]) -> [Self::I; T];
}

/// Weights of one token's products.
trait Packed<S: Dots> {
    type Group;
    fn groups(bytes: &[u8]) -> &[Self::Group];
    fn one(s: S, w: &Self::Group, x: &[i8; GROUP], xs: Scale) -> S::I;
    fn two(s: S, w: [&Self::Group; 2], x: &[i8; GROUP], xs: Scale) -> [S::I; 2];
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
    fn two(s: S, w: [&Bytes; 2], x: &[i8; GROUP], _: Scale) -> [S::I; 2] {
        s.two_panels_i8(w, x)
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
        let [dot] = s.dot_u4(w, &[*x], &[xs]);
        dot
    }
    #[inline(always)]
    fn two(s: S, w: [&Nibbles; 2], x: &[i8; GROUP], xs: Scale) -> [S::I; 2] {
        s.two_panels_u4(w, x, xs.sum)
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
    let groups = (shape.cols() as usize / GROUP).saturating_mul(x.tokens);
    if x.q.len() / GROUP < groups || x.scales.len() < groups {
        return matmul::matmul(s, shape, panels, x, y);
    }
    match (shape.quant(), x.tokens) {
        (Quant::Q8, 1) => one_token::<S, Q8>(s, shape, panels, x, y),
        (Quant::Q4, 1) => one_token::<S, Q4>(s, shape, panels, x, y),
        (Quant::Q8 | Quant::Q4, 2..) => many_tokens(s, shape, panels, x, y),
        _ => matmul::matmul(s, shape, panels, x, y),
    }
}

#[inline(always)]
fn one_token<S: Dots, P: Packed<S>>(s: S, shape: &MatrixShape, panels: &[u8], x: &Input<'_>, y: &mut [f32]) {
    let activations = || x.q.as_chunks::<GROUP>().0.iter().zip(x.scales);
    let panels = panels.chunks_exact(shape.panel_bytes() as usize);
    let y = y.as_chunks_mut::<LANES>().0;
    // Of panels for which there are weights: the last one may have no second to it, however long `y` is.
    let given = panels.len().min(y.len());
    let (pairs, last) = y[..given].as_chunks_mut::<2>();
    let mut panels = panels.map(|bytes| Panel::new(shape, bytes));
    for [ya, yb] in pairs {
        let (Some(a), Some(b)) = (panels.next(), panels.next()) else { return };
        let ([mut sum_a], [mut sum_b]) = (a.start(s), b.start(s));
        let weights = P::groups(a.weights).iter().zip(P::groups(b.weights));
        let scales = scales(&a).iter().zip(scales(&b));
        for (((wa, wb), (sa, sb)), (q, xs)) in weights.zip(scales).zip(activations()) {
            let [dot_a, dot_b] = P::two(s, [wa, wb], q, *xs);
            let scale = s.splat(xs.scale);
            sum_a = s.fma(s.int_to_float(dot_a), s.mul(s.load_f16_bytes(sa), scale), sum_a);
            sum_b = s.fma(s.int_to_float(dot_b), s.mul(s.load_f16_bytes(sb), scale), sum_b);
        }
        s.store(sum_a, ya);
        s.store(sum_b, yb);
    }
    if let ([y], Some(panel)) = (last, panels.next()) {
        let [mut sum] = panel.start(s);
        for ((w, ws), (q, xs)) in P::groups(panel.weights).iter().zip(scales(&panel)).zip(activations()) {
            let dot = P::one(s, w, q, *xs);
            sum = s.fma(s.int_to_float(dot), s.mul(s.load_f16_bytes(ws), s.splat(xs.scale)), sum);
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
